//! What a content stream says before its bytes, as `docs/protocol/content.md` describes. Owns the codecs; knows no
//! files and no streams. Invariant: no length is trusted before it is bounded.

use pollen_common::identity::Digest;

use crate::content::CONTENT_BYTES_MAX;
use crate::content::tree::group_count;

/// The only version of the request so far.
pub const VERSION: u32 = 1;
/// The longest request: room for fields of later versions.
pub const REQUEST_BYTES_MAX: usize = 1024;
/// Bytes of an outline's head: the size.
pub const SIZE_BYTES: usize = 8;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub digest: Digest,
    /// The first group that is wanted: those before it are there already.
    pub from_group: u32,
}

/// Why the bytes of a peer are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the request is not what the format says")]
    Malformed,
    #[error("the request has a version that this node does not speak")]
    Version,
}

#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    version: u32,
    #[n(1)]
    digest: Digest,
    #[n(2)]
    from_group: u32,
}

/// Read first, because a later version may change every other field.
#[derive(minicbor::Decode)]
#[cbor(map)]
struct WireVersion {
    #[n(0)]
    version: u32,
}

impl Request {
    /// The request behind the stream's kind: its length, then itself.
    #[must_use]
    pub fn opening(&self) -> Vec<u8> {
        let body = self.encode();
        let length = u16::try_from(body.len()).expect("a digest and two integers fit");
        [&length.to_be_bytes(), body.as_slice()].concat()
    }

    /// The request alone.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { digest, from_group } = *self;
        minicbor::to_vec(Wire { version: VERSION, digest, from_group }).expect("writing to a vector does not fail")
    }

    /// Parses the request alone. Unknown fields are skipped.
    ///
    /// # Errors
    /// When the bytes are no request of a version that this node speaks, or more than one.
    pub fn decode(bytes: &[u8]) -> Result<Self, RequestError> {
        let WireVersion { version } = minicbor::decode(bytes).map_err(|_| RequestError::Malformed)?;
        if version != VERSION {
            return Err(RequestError::Version);
        }
        let mut decoder = minicbor::Decoder::new(bytes);
        let Wire { digest, from_group, .. } = decoder.decode().map_err(|_| RequestError::Malformed)?;
        if decoder.position() != bytes.len() {
            return Err(RequestError::Malformed);
        }
        Ok(Self { digest, from_group })
    }
}

/// Why a holder refuses. Also the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Denial {
    /// Whoever asks may not, or it is not here: one answer, so that digests cannot be probed.
    #[error("denied or absent")]
    DeniedOrAbsent,
    #[error("it serves as many transfers as it may")]
    Busy,
    #[error("the request was malformed")]
    Malformed,
    #[error("it does not speak this version of the request")]
    Version,
    #[error("it is shutting down")]
    Draining,
    /// A reason that a newer holder may give.
    #[error("refused for reason {0}")]
    Other(u8),
}

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

impl Denial {
    /// The reason's code on the wire: those of service streams, where they mean the same.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::DeniedOrAbsent => 1,
            Self::Busy => 3,
            Self::Malformed => 4,
            Self::Version => 5,
            Self::Draining => 6,
            Self::Other(code) => code,
        }
    }

    /// The reason behind a code.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::DeniedOrAbsent,
            3 => Self::Busy,
            4 => Self::Malformed,
            5 => Self::Version,
            6 => Self::Draining,
            other => Self::Other(other),
        }
    }

    /// A metric's label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::DeniedOrAbsent => "denied_or_absent",
            Self::Busy => "busy",
            Self::Malformed => "malformed",
            Self::Version => "unknown_version",
            Self::Draining => "draining",
            Self::Other(_) => "other",
        }
    }
}

/// What a refusal says.
#[must_use]
pub fn encode_refusal(denial: Denial) -> Vec<u8> {
    vec![REFUSED, denial.code()]
}

/// What an acceptance says before the groups: the size, and the values of all groups where there are several.
#[must_use]
pub fn encode_acceptance(size_bytes: u64, values: &[[u8; 32]]) -> Vec<u8> {
    let mut bytes = vec![ACCEPTED];
    bytes.extend_from_slice(&size_bytes.to_be_bytes());
    bytes.extend(values.iter().flatten());
    bytes
}

/// Whether a status byte accepts (`true`) or announces a reason (`false`); `None` if it is neither.
#[must_use]
pub const fn decode_status(status: u8) -> Option<bool> {
    match status {
        ACCEPTED => Some(true),
        REFUSED => Some(false),
        _ => None,
    }
}

/// The size that an acceptance gives, and the bytes of values that follow it; `None` for what no node may store.
#[must_use]
pub fn decode_size(bytes: [u8; SIZE_BYTES]) -> Option<(u64, usize)> {
    let size = u64::from_be_bytes(bytes);
    if size > CONTENT_BYTES_MAX as u64 {
        return None;
    }
    let groups = usize::try_from(group_count(size)).ok()?;
    Some((size, if groups == 1 { 0 } else { groups * 32 }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::content::tree::{GROUP_BYTES, Outline, digest_of};

    /// The vectors of the format's description, in the order in which they stand there.
    fn vectors() -> Vec<(String, String)> {
        include_str!("../../../../docs/protocol/content.md")
            .lines()
            .filter_map(|line| line.strip_prefix("- `vector ")?.split_once("`: `"))
            .map(|(label, rest)| {
                let digits = rest.split('`').next().expect("split yields at least one part").replace(' ', "");
                (label.to_owned(), digits)
            })
            .collect()
    }

    #[test]
    fn the_described_bytes_are_the_ones_that_are_sent() {
        let hello = b"hello";
        let zeros = vec![0; GROUP_BYTES + 1];
        let outline = |bytes: &[u8]| {
            let outline = Outline::of(digest_of(bytes), bytes).expect("memory is readable").expect("its own digest");
            encode_acceptance(outline.size_bytes(), outline.values())
        };
        let request = Request { digest: digest_of(&zeros), from_group: 1 };
        let expected = [
            ("request", request.opening()),
            ("refused", encode_refusal(Denial::Busy)),
            ("accepted, one group", outline(hello)),
            ("accepted, two groups", outline(&zeros)),
        ];
        let described = vectors();
        assert_eq!(described.len(), expected.len(), "each vector is checked");
        for ((label, digits), (expected_label, bytes)) in described.iter().zip(&expected) {
            let sent = data_encoding::HEXLOWER.encode(bytes);
            assert_eq!((label.as_str(), digits), (*expected_label, &sent));
        }
        assert_eq!(Request::decode(&request.opening()[2..]), Ok(request));
    }

    #[test]
    fn fields_of_later_minor_formats_are_skipped_and_other_versions_refused() {
        let mut bytes = Vec::new();
        let mut encoder = minicbor::Encoder::new(&mut bytes);
        let built = encoder.map(4).and_then(|e| e.u8(0)?.u8(1)?.u8(1)?.bytes(&[7; 32])?.u8(2)?.u8(0)?.u8(9)?.str("x"));
        built.expect("writing to a vector does not fail");
        assert_eq!(Request::decode(&bytes), Ok(Request { digest: Digest([7; 32]), from_group: 0 }));
        assert_eq!(Request::decode(&[0xa1, 0x00, 0x02]), Err(RequestError::Version));
    }

    #[test]
    fn a_size_that_no_node_may_store_is_refused_before_anything_is_allocated_for_it() {
        assert_eq!(decode_size(u64::MAX.to_be_bytes()), None);
        assert_eq!(decode_size((CONTENT_BYTES_MAX as u64 + 1).to_be_bytes()), None);
        assert_eq!(decode_size((CONTENT_BYTES_MAX as u64).to_be_bytes()), Some((CONTENT_BYTES_MAX as u64, 32 * 1024)));
        assert_eq!(decode_size([0; 8]), Some((0, 0)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_what_parses_is_stable(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = Request::decode(&bytes) {
                prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
            }
        }

        #[test]
        fn reasons_round_trip(code in 1u8..) {
            prop_assert_eq!(Denial::from_code(code).code(), code);
        }
    }
}
