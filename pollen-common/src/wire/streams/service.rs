//! The first bytes of a service stream, and the prefix of its datagrams, as `docs/protocol/services.md` describes.
//! Owns the two codecs; knows nothing of sockets, exports or standing.
//! Invariant: bytes of a peer become a typed value or a typed refusal, and no length is trusted before it is bounded.

use alloc::vec::Vec;
use core::fmt;

use super::StreamKind;
use super::opening::{OpeningError, encoded, of_version, put};
use super::varint;
use crate::names::{Name, Protocol};

/// The first byte of a QUIC datagram that carries a UDP payload.
pub const DATAGRAM_UDP: u8 = 2;
/// The only version of the header so far.
pub const VERSION: u32 = 1;
/// The longest header: room for a delegation (about 300 bytes a step) and a trace, far below what costs memory.
pub const HEADER_BYTES_MAX: usize = 4096;

/// How often a connection may be passed on by nodes whose server is a listener of their own. Chains of services are
/// short; what is longer goes in a circle.
pub const HOPS_MAX: u8 = 8;

/// What a stream asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A service by its name.
    Name(Name),
    /// Whatever the provider serves on this local port.
    Port(u16),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    /// How often the connection was passed on before: each time, the server that a node served was its own listener.
    pub hops: u8,
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
    #[n(6)]
    hops: Option<u8>,
}

impl Header {
    /// The bytes that open a stream: its kind, the header's length, the header.
    #[must_use]
    pub fn opening(&self) -> Vec<u8> {
        let kind = match self.protocol {
            Protocol::Tcp => StreamKind::Tcp,
            Protocol::Udp => StreamKind::Udp,
        };
        let mut bytes = Vec::from([kind as u8]);
        put(&mut bytes, self.wire());
        bytes
    }

    /// The header alone, without kind and length.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encoded(self.wire())
    }

    fn wire(&self) -> Wire<'_> {
        let (name, port) = match &self.target {
            Target::Name(name) => (Some(name.as_str()), None),
            Target::Port(port) => (None, Some(*port)),
        };
        let protocol = match self.protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
        };
        Wire { version: VERSION, name, port, protocol, hops: Some(self.hops).filter(|hops| *hops > 0) }
    }

    /// Parses the header alone. Unknown fields are skipped.
    ///
    /// # Errors
    /// When the bytes are no header of a version that this node speaks, or more than one header.
    pub fn decode(bytes: &[u8]) -> Result<Self, OpeningError> {
        let wire: Wire<'_> = of_version(bytes, VERSION)?;
        let target = match (wire.name, wire.port) {
            (Some(name), None) => Target::Name(name.parse().map_err(|_| OpeningError::Malformed)?),
            (None, Some(port)) if port != 0 => Target::Port(port),
            _ => return Err(OpeningError::Malformed),
        };
        let protocol = match wire.protocol {
            0 => Protocol::Tcp,
            1 => Protocol::Udp,
            _ => return Err(OpeningError::Malformed),
        };
        Ok(Self { target, protocol, hops: wire.hops.unwrap_or_default() })
    }
}

/// A UDP payload in a QUIC datagram: the session's number as a QUIC variable-length integer stands before it.
#[must_use]
pub fn datagram_prefix(session: u64) -> Vec<u8> {
    let mut bytes = Vec::from([DATAGRAM_UDP]);
    varint::put(&mut bytes, session);
    bytes
}

/// The session's number at the start of a datagram (behind its first byte), and the bytes it takes.
#[must_use]
pub fn session_number(bytes: &[u8]) -> Option<(u64, usize)> {
    varint::read(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::denial::{Denial, encode_answer};
    use super::super::vectors::{assert_described, hex};
    use super::*;

    #[test]
    fn the_described_bytes_are_the_ones_that_are_sent() {
        let api = Header { target: Target::Name("api".parse().expect("a name")), protocol: Protocol::Tcp, hops: 0 };
        let dns = Header { target: Target::Port(53), protocol: Protocol::Udp, hops: 0 };
        let passed_on = Header { hops: 2, ..api.clone() };
        let mut datagram = datagram_prefix(4);
        datagram.extend_from_slice(b"hi");
        let mut late = datagram_prefix(16_400);
        late.extend_from_slice(b"hi");
        let expected = [
            ("tcp by name", api.opening()),
            ("udp by port", dns.opening()),
            ("tcp passed on twice", passed_on.opening()),
            ("accepted", encode_answer(Ok(()))),
            ("refused", encode_answer(Err(Denial::Unavailable))),
            ("datagram of session 4", datagram),
            ("datagram of session 16400", late),
        ];
        assert_described(include_str!("../../../../docs/protocol/services.md"), "", &expected);
        assert_eq!(Header::decode(&api.opening()[3..]), Ok(api));
        assert_eq!(Header::decode(&dns.opening()[3..]), Ok(dns));
        assert_eq!(Header::decode(&passed_on.opening()[3..]), Ok(passed_on));
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
        assert_eq!(Header::decode(&[0xa1, 0x00, 0x02]), Err(OpeningError::Version));
    }

    #[test]
    fn a_header_names_exactly_one_target() {
        let encode = |name: Option<&str>, port| {
            minicbor::to_vec(Wire { version: 1, name, port, protocol: 0, hops: None }).expect("vector")
        };
        for bad in [encode(None, None), encode(Some("api"), Some(80)), encode(None, Some(0)), encode(Some("80"), None)]
        {
            assert_eq!(Header::decode(&bad), Err(OpeningError::Malformed), "{}", hex(&bad));
        }
        let mut trailing = encode(None, Some(80));
        trailing.push(0);
        assert_eq!(Header::decode(&trailing), Err(OpeningError::Malformed));
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
    }
}
