//! Where the fields of a received Ethernet frame lie: one parser for the eBPF programs, the daemon, tests and fuzzer.
//! Knows Ethernet II, IPv4, IPv6 and UDP; knows nothing of what happens to a packet (see [`crate::verdict`]).
//! Invariant: no byte is read that the source did not confirm, and every offset is bounded by a constant.

use crate::abi::Endpoint;

/// A source of bytes that checks each read. Slices implement it; the eBPF program does over its packet's pointers,
/// in the form the kernel's verifier follows: compare with the end, then read.
pub trait Bytes {
    /// The `N` bytes at `offset`, or nothing if they are not all there.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

/// The first byte of a relay frame's UDP payload. QUIC's fixed bit is clear in it, so both share one port.
pub const RELAY_MARK: u8 = 0x01;

const ETHERNET_LEN: usize = 14;
const IPV4_LEN_MIN: usize = 20;
const IPV6_LEN: usize = 40;
const UDP_LEN: u16 = 8;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_UDP: u8 = 17;
/// "More fragments" and the fragment offset: any of them set means that the UDP header may be elsewhere.
const FRAGMENT_MASK: u16 = 0x3fff;

/// A UDP datagram inside a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub source: Endpoint,
    pub destination: Endpoint,
    /// From the start of the frame, at most 82.
    pub payload_offset: usize,
    /// By the UDP header: at most what the IP header leaves; the frame itself may be cut shorter.
    pub payload_len: u16,
    /// The payload's first byte, none if it is empty.
    pub mark: Option<u8>,
}

/// Why a frame is not a datagram that Pollen would look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDatagram {
    /// Another protocol: ARP, TCP, IPv6 with extension headers, tagged frames.
    Other,
    /// A fragment of an IPv4 packet.
    Fragment,
    /// Shorter than its headers say, or headers that contradict each other.
    Malformed,
}

/// Finds the UDP datagram in a frame.
///
/// # Errors
/// If there is none: the reason. Nothing is judged here: such frames are the kernel's to handle.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(frame: &B) -> Result<Datagram, NotDatagram> {
    let ethertype = u16::from_be_bytes(load(frame, 12)?);
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame),
        ETHERTYPE_IPV6 => ipv6(frame),
        _ => Err(NotDatagram::Other),
    }
}

#[inline(always)]
fn ipv4<B: Bytes + ?Sized>(frame: &B) -> Result<Datagram, NotDatagram> {
    let [version_ihl] = load(frame, ETHERNET_LEN)?;
    // The header's length field is four bits: the offset below is at most 14 + 60.
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    if version_ihl >> 4 != 4 || header_len < IPV4_LEN_MIN {
        return Err(NotDatagram::Malformed);
    }
    let [protocol] = load(frame, ETHERNET_LEN + 9)?;
    if protocol != PROTOCOL_UDP {
        return Err(NotDatagram::Other);
    }
    if u16::from_be_bytes(load(frame, ETHERNET_LEN + 6)?) & FRAGMENT_MASK != 0 {
        return Err(NotDatagram::Fragment);
    }
    let total_len = u16::from_be_bytes(load(frame, ETHERNET_LEN + 2)?);
    let room = usize::from(total_len).checked_sub(header_len).ok_or(NotDatagram::Malformed)?;
    let source: [u8; 4] = load(frame, ETHERNET_LEN + 12)?;
    let destination: [u8; 4] = load(frame, ETHERNET_LEN + 16)?;
    let udp = udp(frame, ETHERNET_LEN + header_len, room)?;
    Ok(udp.between(Endpoint::v4(source, udp.source), Endpoint::v4(destination, udp.destination)))
}

#[inline(always)]
fn ipv6<B: Bytes + ?Sized>(frame: &B) -> Result<Datagram, NotDatagram> {
    let [version] = load(frame, ETHERNET_LEN)?;
    if version >> 4 != 6 {
        return Err(NotDatagram::Malformed);
    }
    let [next_header] = load(frame, ETHERNET_LEN + 6)?;
    if next_header != PROTOCOL_UDP {
        return Err(NotDatagram::Other);
    }
    let room = usize::from(u16::from_be_bytes(load(frame, ETHERNET_LEN + 4)?));
    let source: [u8; 16] = load(frame, ETHERNET_LEN + 8)?;
    let destination: [u8; 16] = load(frame, ETHERNET_LEN + 24)?;
    let udp = udp(frame, ETHERNET_LEN + IPV6_LEN, room)?;
    Ok(udp.between(Endpoint::v6(source, udp.source), Endpoint::v6(destination, udp.destination)))
}

struct Udp {
    source: [u8; 2],
    destination: [u8; 2],
    payload_offset: usize,
    payload_len: u16,
    mark: Option<u8>,
}

impl Udp {
    #[inline(always)]
    fn between(&self, source: Endpoint, destination: Endpoint) -> Datagram {
        let Self { payload_offset, payload_len, mark, .. } = *self;
        Datagram { source, destination, payload_offset, payload_len, mark }
    }
}

/// The UDP header at `offset`; `room` is what the IP header leaves for it and its payload.
#[inline(always)]
fn udp<B: Bytes + ?Sized>(frame: &B, offset: usize, room: usize) -> Result<Udp, NotDatagram> {
    let source = load(frame, offset)?;
    let destination = load(frame, offset + 2)?;
    let len = u16::from_be_bytes(load(frame, offset + 4)?);
    if usize::from(len) > room {
        return Err(NotDatagram::Malformed);
    }
    let payload_len = len.checked_sub(UDP_LEN).ok_or(NotDatagram::Malformed)?;
    let payload_offset = offset + usize::from(UDP_LEN);
    let mark = if payload_len == 0 { None } else { Some(load::<B, 1>(frame, payload_offset)?[0]) };
    Ok(Udp { source, destination, payload_offset, payload_len, mark })
}

#[inline(always)]
fn load<B: Bytes + ?Sized, const N: usize>(frame: &B, offset: usize) -> Result<[u8; N], NotDatagram> {
    frame.load(offset).ok_or(NotDatagram::Malformed)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn ipv4_frame(options: usize, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45 + u8::try_from(options).unwrap(), 0]);
        let udp_len = UDP_LEN + u16::try_from(payload.len()).unwrap();
        frame.extend((udp_len + 20 + 4 * u16::try_from(options).unwrap()).to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, PROTOCOL_UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(vec![1; 4 * options]);
        frame.extend(udp_header(udp_len));
        frame.extend(payload);
        frame
    }

    fn ipv6_frame(payload: &[u8]) -> Vec<u8> {
        let udp_len = UDP_LEN + u16::try_from(payload.len()).unwrap();
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(udp_len.to_be_bytes());
        frame.extend([PROTOCOL_UDP, 64]);
        frame.extend([0xfd; 16]);
        frame.extend([0xfe; 16]);
        frame.extend(udp_header(udp_len));
        frame.extend(payload);
        frame
    }

    fn udp_header(len: u16) -> Vec<u8> {
        [1111u16.to_be_bytes(), 60611u16.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat()
    }

    #[test]
    fn a_datagram_is_found_behind_ipv4_options_and_behind_ipv6() {
        for options in 0..=10 {
            let frame = ipv4_frame(options, 0, b"\x01rest");
            let found = parse(frame.as_slice()).unwrap();
            assert_eq!(found.source, Endpoint::v4([10, 0, 0, 1], 1111u16.to_be_bytes()));
            assert_eq!(found.destination.port(), 60611);
            assert_eq!(&frame[found.payload_offset..], b"\x01rest");
            assert_eq!((found.payload_len, found.mark), (5, Some(RELAY_MARK)));
        }
        let found = parse(ipv6_frame(b"").as_slice()).unwrap();
        assert_eq!((found.destination.address(), found.payload_len, found.mark), ([0xfe; 16], 0, None));
    }

    #[test]
    fn fragments_and_other_protocols_are_told_apart_from_malformed_frames() {
        assert_eq!(parse(ipv4_frame(0, 0x2000, b"x").as_slice()), Err(NotDatagram::Fragment));
        assert_eq!(parse(ipv4_frame(0, 7, b"x").as_slice()), Err(NotDatagram::Fragment));
        let mut tcp = ipv4_frame(0, 0, b"x");
        tcp[ETHERNET_LEN + 9] = 6;
        assert_eq!(parse(tcp.as_slice()), Err(NotDatagram::Other));
        assert_eq!(parse([0u8; 60].as_slice()), Err(NotDatagram::Other));
        let mut short_header = ipv4_frame(0, 0, b"x");
        short_header[ETHERNET_LEN] = 0x44;
        assert_eq!(parse(short_header.as_slice()), Err(NotDatagram::Malformed));
        let mut long_udp = ipv6_frame(b"x");
        long_udp[ETHERNET_LEN + IPV6_LEN + 5] = 200;
        assert_eq!(parse(long_udp.as_slice()), Err(NotDatagram::Malformed));
    }

    #[test]
    fn a_frame_cut_anywhere_before_its_payload_is_malformed() {
        for frame in [ipv4_frame(3, 0, b"\x01"), ipv6_frame(b"\x01")] {
            for len in 0..frame.len() {
                assert_eq!(parse(&frame[..len]), Err(NotDatagram::Malformed), "cut at {len}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(found) = parse(bytes.as_slice()) {
                prop_assert!(found.payload_offset <= 82);
                prop_assert_eq!(found.mark, bytes.get(found.payload_offset).copied().filter(|_| found.payload_len > 0));
            }
        }
    }
}
