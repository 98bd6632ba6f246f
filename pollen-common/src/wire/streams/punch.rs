//! What two ends of a connection tell each other to find a straight way (`docs/protocol/punching.md`): what opens such a
//! stream, and the answer. Owns the bytes; knows nothing of when to send a probe.
//! Invariant: bytes of a peer become a typed value or a typed refusal, of at most [`CANDIDATES_MAX`] addresses.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use minicbor::bytes::ByteVec;

use super::StreamKind;
use super::denial::{ACCEPTED, Denial, decode_status, encode_answer as status};
use super::opening::{OpeningError, encoded, of_version, put};
use crate::mapping::{CANDIDATES_MAX, NatKind, Nats};

/// The only version of the format so far.
pub const VERSION: u32 = 1;
/// The longest header, and the longest answer without its status and length.
pub const BYTES_MAX: usize = 256;

const V4_BYTES: usize = 6;
const V6_BYTES: usize = 18;

/// What one end says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standpoint {
    /// What stands between it and others.
    pub nats: Nats,
    /// Where others see it.
    pub candidates: Vec<SocketAddr>,
}

/// What opens the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Probe me at my candidates, half a round trip after you answered: then I probe you. Otherwise it is asked only
    /// where the other end is seen.
    pub punch: bool,
    pub me: Standpoint,
}

/// What it is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where packets of whoever asked come from, if they come straight.
    pub seen: Option<SocketAddr>,
    pub me: Standpoint,
}

#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    version: u32,
    #[n(1)]
    punch: Option<bool>,
    #[n(2)]
    v4: u8,
    #[n(3)]
    v6: u8,
    #[n(4)]
    candidates: Vec<ByteVec>,
    #[n(5)]
    seen: Option<ByteVec>,
}

impl Standpoint {
    fn wire(&self, punch: Option<bool>, seen: Option<SocketAddr>) -> Wire {
        let candidates = self.candidates.iter().take(CANDIDATES_MAX).map(|addr| write(*addr)).collect();
        let (v4, v6) = (self.nats.v4.code(), self.nats.v6.code());
        Wire { version: VERSION, punch, v4, v6, candidates, seen: seen.map(write) }
    }

    fn of(wire: &Wire) -> Result<Self, OpeningError> {
        if wire.candidates.len() > CANDIDATES_MAX {
            return Err(OpeningError::Malformed);
        }
        let candidates = wire.candidates.iter().map(|bytes| read(bytes)).collect::<Result<_, _>>()?;
        let nats = Nats { v4: NatKind::from_code(wire.v4), v6: NatKind::from_code(wire.v6) };
        Ok(Self { nats, candidates })
    }
}

impl Header {
    /// The bytes that open a stream: its kind, the header's length, the header.
    #[must_use]
    pub fn opening(&self) -> Vec<u8> {
        let mut bytes = Vec::from([StreamKind::Punch as u8]);
        put(&mut bytes, self.me.wire(Some(self.punch), None));
        bytes
    }

    /// The header alone, without kind and length.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encoded(self.me.wire(Some(self.punch), None))
    }

    /// Parses the header alone. Unknown fields are skipped.
    ///
    /// # Errors
    /// When the bytes are no header of a version that this node speaks, or more than one header.
    pub fn decode(bytes: &[u8]) -> Result<Self, OpeningError> {
        let wire: Wire = of_version(bytes, VERSION)?;
        let punch = wire.punch.ok_or(OpeningError::Malformed)?;
        Ok(Self { punch, me: Standpoint::of(&wire)? })
    }
}

impl Answer {
    /// The answer without its status and length.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encoded(self.me.wire(None, self.seen))
    }

    /// The inverse of [`Answer::encode`].
    ///
    /// # Errors
    /// As [`Header::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, OpeningError> {
        let wire: Wire = of_version(bytes, VERSION)?;
        let seen = wire.seen.as_ref().map(|bytes| read(bytes)).transpose()?;
        Ok(Self { seen, me: Standpoint::of(&wire)? })
    }
}

/// All that is answered: a status, then length and answer, or the reason.
#[must_use]
pub fn encode_answer(answer: &Result<Answer, Denial>) -> Vec<u8> {
    match answer {
        Ok(answer) => {
            let mut bytes = Vec::from([ACCEPTED]);
            put(&mut bytes, answer.me.wire(None, answer.seen));
            bytes
        }
        Err(denial) => status(Err(*denial)),
    }
}

/// Whether an answer follows the first byte, or a reason.
///
/// # Errors
/// [`OpeningError::Malformed`]: neither.
pub fn is_accepted(first: u8) -> Result<bool, OpeningError> {
    decode_status(first).ok_or(OpeningError::Malformed)
}

fn write(addr: SocketAddr) -> ByteVec {
    let mut bytes = match addr.ip().to_canonical() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.extend_from_slice(&addr.port().to_be_bytes());
    bytes.into()
}

fn read(bytes: &[u8]) -> Result<SocketAddr, OpeningError> {
    let (ip, port) = bytes.split_last_chunk().ok_or(OpeningError::Malformed)?;
    let ip = match bytes.len() {
        V4_BYTES => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip).map_err(|_| OpeningError::Malformed)?)),
        V6_BYTES => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip).map_err(|_| OpeningError::Malformed)?)),
        _ => return Err(OpeningError::Malformed),
    };
    // One address has one form: IPv4 in IPv6 would be a second.
    if ip.to_canonical() != ip {
        return Err(OpeningError::Malformed);
    }
    Ok(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::vectors::assert_described;
    use super::*;

    const DOCUMENT: &str = include_str!("../../../../docs/protocol/punching.md");

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn standpoint() -> Standpoint {
        let nats = Nats { v4: NatKind::Easy, v6: NatKind::Unknown };
        Standpoint { nats, candidates: [addr("203.0.113.1:60611"), addr("[2001:db8::1]:60611")].into() }
    }

    #[test]
    fn what_is_described_is_what_is_sent() {
        let alone = Standpoint::default();
        let answer = Answer { seen: Some(addr("203.0.113.1:60611")), me: alone.clone() };
        assert_described(
            DOCUMENT,
            "punch",
            &[
                ("punch where", Header { punch: false, me: alone }.opening()),
                ("punch begin", Header { punch: true, me: standpoint() }.opening()),
                ("punch seen", encode_answer(&Ok(answer))),
                ("punch ready", encode_answer(&Ok(Answer { seen: None, me: standpoint() }))),
                ("punch refused", encode_answer(&Err(Denial::Busy))),
            ],
        );
    }

    #[test]
    fn too_many_addresses_and_second_forms_of_one_are_refused() {
        let wire = |candidates: Vec<ByteVec>| {
            encoded(Wire { version: VERSION, punch: Some(true), v4: 0, v6: 0, candidates, seen: None })
        };
        let one = write(addr("203.0.113.1:1"));
        assert!(Header::decode(&wire([one.clone()].into())).is_ok());
        assert_eq!(Header::decode(&wire(alloc::vec![one; CANDIDATES_MAX + 1])), Err(OpeningError::Malformed));
        let mut mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets().to_vec();
        mapped.extend_from_slice(&[0, 1]);
        assert_eq!(Header::decode(&wire([mapped.into()].into())), Err(OpeningError::Malformed));
        assert_eq!(Header::decode(&wire([ByteVec::from(Vec::new())].into())), Err(OpeningError::Malformed));
        let longest = Standpoint { candidates: alloc::vec![addr("[2001:db8::1]:1"); 9], ..Standpoint::default() };
        assert!(Answer { seen: Some(addr("[2001:db8::1]:1")), me: longest }.encode().len() <= BYTES_MAX);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_no_bytes_harm(
            punch: bool, v4 in 0..5_u8, v6 in 0..5_u8,
            addrs in proptest::collection::vec(any::<SocketAddr>(), 0..=CANDIDATES_MAX), seen: Option<SocketAddr>,
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            // Scope and flow are nobody else's business, and mapped addresses are IPv4's.
            let plain = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
            let nats = Nats { v4: NatKind::from_code(v4), v6: NatKind::from_code(v6) };
            let me = Standpoint { nats, candidates: addrs.into_iter().map(plain).collect() };
            let header = Header { punch, me: me.clone() };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
            let answer = Answer { seen: seen.map(plain), me };
            prop_assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
            let _ = (Header::decode(&bytes), Answer::decode(&bytes));
        }
    }
}
