//! The first bytes of a service stream and the answer to them, as `docs/protocol/services.md` describes.
//! Owns the two codecs; knows nothing of sockets, exports or standing.
//! Invariant: bytes of a peer become a typed value or a typed refusal, and no length is trusted before it is bounded.

use pollen_common::views::{Name, Protocol};

/// The kind byte of a stream that carries one TCP connection.
pub const KIND_TCP: u8 = 2;
/// The kind byte of a stream that carries one UDP session.
pub const KIND_UDP: u8 = 3;
/// The first byte of a QUIC datagram that carries a UDP payload.
pub const DATAGRAM_UDP: u8 = 2;
/// The only version of the header so far.
pub const VERSION: u32 = 1;
/// The longest header: room for a delegation (about 300 bytes a step) and a trace, far below what costs memory.
pub const HEADER_BYTES_MAX: usize = 4096;

/// What a stream asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A service by its name.
    Name(Name),
    /// Whatever the provider serves on this local port.
    Port(u16),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Port(port) => port.fmt(f),
        }
    }
}

/// The header of a service stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub target: Target,
    pub protocol: Protocol,
}

/// Why the bytes of a peer are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the header is not what the format says")]
    Malformed,
    #[error("the header has a version that this node does not speak")]
    Version,
}

#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct Wire<'b> {
    #[n(0)]
    version: u32,
    #[b(1)]
    name: Option<&'b str>,
    #[n(2)]
    port: Option<u16>,
    #[n(3)]
    protocol: u8,
}

/// Read first, because a later version may change every other field.
#[derive(minicbor::Decode)]
#[cbor(map)]
struct WireVersion {
    #[n(0)]
    version: u32,
}

impl Header {
    /// The bytes that open a stream: its kind, the header's length, the header.
    #[must_use]
    pub fn opening(&self) -> Vec<u8> {
        let body = self.encode();
        let length = u16::try_from(body.len()).expect("a name of at most 63 bytes and a few integers fit");
        let kind = match self.protocol {
            Protocol::Tcp => KIND_TCP,
            Protocol::Udp => KIND_UDP,
        };
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// The header alone, without kind and length.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (name, port) = match &self.target {
            Target::Name(name) => (Some(name.as_str()), None),
            Target::Port(port) => (None, Some(*port)),
        };
        let protocol = match self.protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
        };
        minicbor::to_vec(Wire { version: VERSION, name, port, protocol }).expect("writing to a vector does not fail")
    }

    /// Parses the header alone. Unknown fields are skipped.
    ///
    /// # Errors
    /// When the bytes are no header of a version that this node speaks, or more than one header.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let WireVersion { version } = minicbor::decode(bytes).map_err(|_| HeaderError::Malformed)?;
        if version != VERSION {
            return Err(HeaderError::Version);
        }
        let mut decoder = minicbor::Decoder::new(bytes);
        let wire: Wire<'_> = decoder.decode().map_err(|_| HeaderError::Malformed)?;
        if decoder.position() != bytes.len() {
            return Err(HeaderError::Malformed);
        }
        let target = match (wire.name, wire.port) {
            (Some(name), None) => Target::Name(name.parse().map_err(|_| HeaderError::Malformed)?),
            (None, Some(port)) if port != 0 => Target::Port(port),
            _ => return Err(HeaderError::Malformed),
        };
        let protocol = match wire.protocol {
            0 => Protocol::Tcp,
            1 => Protocol::Udp,
            _ => return Err(HeaderError::Malformed),
        };
        Ok(Self { target, protocol })
    }
}

/// Why a provider refuses a stream. Also the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Denial {
    /// The caller may not, or there is no such service: one answer, so that a stranger cannot tell names apart.
    #[error("denied or absent")]
    DeniedOrAbsent,
    #[error("nothing listens on the provider's local port")]
    Unavailable,
    #[error("the provider is at one of its limits")]
    Busy,
    #[error("the header was malformed")]
    Malformed,
    #[error("the provider does not speak this version of the header")]
    Version,
    #[error("the provider is shutting down")]
    Draining,
    /// A reason that a newer provider may give.
    #[error("refused for reason {0}")]
    Other(u8),
}

/// First byte of an answer.
const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

impl Denial {
    /// The reason's code on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::DeniedOrAbsent => 1,
            Self::Unavailable => 2,
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
            2 => Self::Unavailable,
            3 => Self::Busy,
            4 => Self::Malformed,
            5 => Self::Version,
            6 => Self::Draining,
            other => Self::Other(other),
        }
    }
}

/// What the provider says first: the stream is open, or why not.
#[must_use]
pub fn encode_answer(answer: Result<(), Denial>) -> Vec<u8> {
    match answer {
        Ok(()) => vec![ACCEPTED],
        Err(denial) => vec![REFUSED, denial.code()],
    }
}

/// Whether a status byte accepts (`true`) or announces a reason (`false`).
///
/// # Errors
/// When the byte is neither.
pub const fn decode_status(status: u8) -> Result<bool, HeaderError> {
    match status {
        ACCEPTED => Ok(true),
        REFUSED => Ok(false),
        _ => Err(HeaderError::Malformed),
    }
}

/// A UDP payload in a QUIC datagram: the session's number as a QUIC variable-length integer stands before it.
#[must_use]
pub fn datagram_prefix(session: u64) -> Vec<u8> {
    let mut bytes = vec![DATAGRAM_UDP];
    match session {
        0..=0x3f => bytes.push(u8::try_from(session).expect("below 64")),
        0x40..=0x3fff => bytes.extend((u16::try_from(session).expect("below 2^14") | 0x4000).to_be_bytes()),
        0x4000..=0x3fff_ffff => {
            bytes.extend((u32::try_from(session).expect("below 2^30") | 0x8000_0000).to_be_bytes());
        }
        _ => bytes.extend((session | 0xc000_0000_0000_0000).to_be_bytes()),
    }
    bytes
}

/// The session's number at the start of a datagram (behind its first byte), and the bytes it takes.
#[must_use]
pub fn session_number(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1usize << (first >> 6);
    let mut number = u64::from(first & 0x3f);
    for byte in bytes.get(1..length)? {
        number = number << 8 | u64::from(*byte);
    }
    Some((number, length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        data_encoding::HEXLOWER.encode(bytes)
    }

    /// The vectors of the format's description, in the order in which they stand there.
    fn vectors() -> Vec<(String, Vec<u8>)> {
        include_str!("../../../docs/protocol/services.md")
            .lines()
            .filter_map(|line| line.strip_prefix("- `vector ")?.split_once("`: `"))
            .map(|(label, rest)| {
                let digits = rest.split('`').next().expect("split yields at least one part").replace(' ', "");
                (label.to_owned(), data_encoding::HEXLOWER.decode(digits.as_bytes()).expect("a vector is hexadecimal"))
            })
            .collect()
    }

    #[test]
    fn the_described_bytes_are_the_ones_that_are_sent() {
        let api = Header { target: Target::Name("api".parse().expect("a name")), protocol: Protocol::Tcp };
        let dns = Header { target: Target::Port(53), protocol: Protocol::Udp };
        let mut datagram = datagram_prefix(4);
        datagram.extend_from_slice(b"hi");
        let mut late = datagram_prefix(16_400);
        late.extend_from_slice(b"hi");
        let expected = [
            ("tcp by name", api.opening()),
            ("udp by port", dns.opening()),
            ("accepted", encode_answer(Ok(()))),
            ("refused", encode_answer(Err(Denial::Unavailable))),
            ("datagram of session 4", datagram),
            ("datagram of session 16400", late),
        ];
        let described = vectors();
        assert_eq!(described.len(), expected.len(), "each vector is checked");
        for ((label, bytes), (expected_label, expected_bytes)) in described.iter().zip(&expected) {
            assert_eq!((label.as_str(), hex(bytes)), (*expected_label, hex(expected_bytes)));
        }
        assert_eq!(Header::decode(&described[0].1[3..]), Ok(api));
        assert_eq!(Header::decode(&described[1].1[3..]), Ok(dns));
    }

    #[test]
    fn fields_of_later_minor_formats_are_skipped_and_other_versions_refused() {
        let mut bytes = Vec::new();
        let mut encoder = minicbor::Encoder::new(&mut bytes);
        let built = encoder
            .map(4)
            .and_then(|e| e.u8(0)?.u8(1)?.u8(1)?.str("api")?.u8(3)?.u8(0)?.u8(9)?.array(2)?.u8(1)?.str("x"));
        built.expect("writing to a vector does not fail");
        assert_eq!(Header::decode(&bytes).map(|h| h.target), Ok(Target::Name("api".parse().expect("a name"))));
        assert_eq!(Header::decode(&[0xa1, 0x00, 0x02]), Err(HeaderError::Version));
    }

    #[test]
    fn a_header_names_exactly_one_target() {
        let encode =
            |name: Option<&str>, port| minicbor::to_vec(Wire { version: 1, name, port, protocol: 0 }).expect("vector");
        for bad in [encode(None, None), encode(Some("api"), Some(80)), encode(None, Some(0)), encode(Some("80"), None)]
        {
            assert_eq!(Header::decode(&bad), Err(HeaderError::Malformed), "{}", hex(&bad));
        }
        let mut trailing = encode(None, Some(80));
        trailing.push(0);
        assert_eq!(Header::decode(&trailing), Err(HeaderError::Malformed));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_what_parses_is_stable(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
            }
            if let Some((number, length)) = session_number(&bytes) {
                prop_assert!(length <= bytes.len() && number < 1 << 62);
            }
        }

        #[test]
        fn session_numbers_round_trip(number in 0u64..1 << 62) {
            let bytes = datagram_prefix(number);
            prop_assert_eq!(session_number(&bytes[1..]), Some((number, bytes.len() - 1)));
        }

        #[test]
        fn answers_round_trip(code in 1u8..) {
            prop_assert_eq!(Denial::from_code(code).code(), code);
        }
    }
}
