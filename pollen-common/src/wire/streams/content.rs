//! What a content stream says before its bytes, as `docs/protocol/content.md` describes. Owns the codecs; knows no
//! files and no streams. Invariant: no length is trusted before it is bounded.

use alloc::vec::Vec;

use super::denial::ACCEPTED;
use super::opening::{OpeningError, encoded, of_version, put};
use crate::identity::Digest;

mod outline;

pub use outline::{GROUP_BYTES, Outline, Outlining, digest_of, group_count};

/// The largest content that any node stores, in bytes: no module is larger.
pub const CONTENT_BYTES_MAX: usize = 64 * 1024 * 1024;
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

impl Request {
    /// The request behind the stream's kind: its length, then itself.
    #[must_use]
    pub fn opening(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, self.wire());
        bytes
    }

    /// The request alone.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encoded(self.wire())
    }

    fn wire(&self) -> Wire {
        let Self { digest, from_group } = *self;
        Wire { version: VERSION, digest, from_group }
    }

    /// Parses the request alone. Unknown fields are skipped.
    ///
    /// # Errors
    /// When the bytes are no request of a version that this node speaks, or more than one.
    pub fn decode(bytes: &[u8]) -> Result<Self, OpeningError> {
        let Wire { digest, from_group, .. } = of_version(bytes, VERSION)?;
        Ok(Self { digest, from_group })
    }
}

/// What an acceptance says before the groups: the size, and the values of all groups where there are several.
#[must_use]
pub fn encode_acceptance(size_bytes: u64, values: &[[u8; 32]]) -> Vec<u8> {
    let mut bytes = Vec::from([ACCEPTED]);
    bytes.extend_from_slice(&size_bytes.to_be_bytes());
    bytes.extend(values.iter().flatten());
    bytes
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

    use super::super::denial::{Denial, encode_answer};
    use super::super::vectors::assert_described;
    use super::*;

    #[test]
    fn the_described_bytes_are_the_ones_that_are_sent() {
        let hello = b"hello";
        let zeros = alloc::vec![0; GROUP_BYTES + 1];
        let outline = |bytes: &[u8]| {
            let outline = Outlining::of(bytes).outline(digest_of(bytes)).expect("its own digest");
            encode_acceptance(outline.size_bytes(), outline.values())
        };
        let request = Request { digest: digest_of(&zeros), from_group: 1 };
        let expected = [
            ("request", request.opening()),
            ("refused", encode_answer(Err(Denial::Busy))),
            ("accepted, one group", outline(hello)),
            ("accepted, two groups", outline(&zeros)),
        ];
        assert_described(include_str!("../../../../docs/protocol/content.md"), "", &expected);
        assert_eq!(Request::decode(&request.opening()[2..]), Ok(request));
    }

    #[test]
    fn fields_of_later_minor_formats_are_skipped_and_other_versions_refused() {
        let mut bytes = Vec::new();
        let mut encoder = minicbor::Encoder::new(&mut bytes);
        let built = encoder.map(4).and_then(|e| e.u8(0)?.u8(1)?.u8(1)?.bytes(&[7; 32])?.u8(2)?.u8(0)?.u8(9)?.str("x"));
        built.expect("writing to a vector does not fail");
        assert_eq!(Request::decode(&bytes), Ok(Request { digest: Digest([7; 32]), from_group: 0 }));
        assert_eq!(Request::decode(&[0xa1, 0x00, 0x02]), Err(OpeningError::Version));
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
    }
}
