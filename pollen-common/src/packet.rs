//! Where the fields of a received Ethernet frame lie, and how it is addressed anew: one parser and one writer for the eBPF
//! programs, the daemon, tests and fuzzer. Knows Ethernet II, IPv4, IPv6, UDP and the header of a circuit's frame; knows
//! nothing of what happens to a packet (see [`crate::verdict`]).
//! Invariant: no byte is read that the source did not confirm, and every offset is bounded by a constant.

pub use crate::abi::Label;
use crate::abi::{Endpoint, Leg, NextHop};

/// A number as it lies in a packet, in whatever order: what is read and written in one step.
pub trait Word: Copy {
    /// The first bytes, if they are all there.
    fn read(bytes: &[u8]) -> Option<Self>;
    /// Writes over the first bytes, if there is room.
    fn write(self, bytes: &mut [u8]) -> Option<()>;
}

macro_rules! words {
    ($($word:ty)*) => {$(
        impl Word for $word {
            fn read(bytes: &[u8]) -> Option<Self> {
                bytes.first_chunk().map(|bytes| Self::from_ne_bytes(*bytes))
            }

            fn write(self, bytes: &mut [u8]) -> Option<()> {
                *bytes.first_chunk_mut()? = self.to_ne_bytes();
                Some(())
            }
        }
    )*};
}
words!(u8 u16 u32);

/// A source of bytes that checks each read. Slices implement it; the eBPF program does over its packet's pointers,
/// in the form the kernel's verifier follows: compare with the end, then read.
pub trait Bytes {
    /// The word at `offset`, or nothing if it is not all there.
    fn load<W: Word>(&self, offset: usize) -> Option<W>;
}

/// The same, to be written.
pub trait BytesMut: Bytes {
    /// Writes at `offset`, or nothing if there is no room for all of it.
    fn store<W: Word>(&mut self, offset: usize, word: W) -> Option<()>;
}

impl Bytes for [u8] {
    fn load<W: Word>(&self, offset: usize) -> Option<W> {
        W::read(self.get(offset..)?)
    }
}

impl BytesMut for [u8] {
    fn store<W: Word>(&mut self, offset: usize, word: W) -> Option<()> {
        word.write(self.get_mut(offset..)?)
    }
}

/// The first byte of a circuit's frame, which is a UDP payload. QUIC's fixed bit is clear in it, and it is no probe, so all
/// share one port.
pub const RELAY_MARK: u8 = 0x01;
/// What stands before the packet in a circuit's frame: the mark, flags, the packet's length, the label.
pub const RELAY_HEADER_BYTES: usize = 8;

impl Label {
    /// The header of a frame with this label and a packet of so many bytes.
    #[inline(always)]
    #[must_use]
    pub const fn header(self, packet_len: u16) -> [u8; RELAY_HEADER_BYTES] {
        let ([h, l], [a, b, c, d]) = (packet_len.to_be_bytes(), self.0.to_be_bytes());
        [RELAY_MARK, 0, h, l, a, b, c, d]
    }
}

/// The header of a circuit's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayHeader {
    /// The mark, flags, the packet's length.
    kind: u32,
    label: u32,
}

impl RelayHeader {
    /// What stands at `offset`.
    #[inline(always)]
    pub fn load<B: Bytes + ?Sized>(frame: &B, offset: usize) -> Option<Self> {
        Some(Self { kind: u32::from_be(frame.load(offset)?), label: u32::from_be(frame.load(offset + 4)?) })
    }

    /// Whether it begins as they do.
    #[inline(always)]
    #[must_use]
    pub const fn is_marked(self) -> bool {
        self.kind >> 24 == RELAY_MARK as u32
    }

    /// The label of a frame that is `payload_len` bytes long. It must carry one packet, of the length that it says: without
    /// that, several frames that a network card or the kernel merged could not be told from one. A frame whose flags say
    /// anything is of a newer version.
    #[inline(always)]
    #[must_use]
    pub const fn label(self, payload_len: usize) -> Option<Label> {
        let packet_len = (self.kind & 0xffff) as usize;
        let is_of_this_version = self.kind >> 16 == (RELAY_MARK as u32) << 8;
        if is_of_this_version && packet_len > 0 && payload_len == packet_len + RELAY_HEADER_BYTES {
            return Some(Label(self.label));
        }
        None
    }
}

/// The label of a frame, as a UDP payload.
#[must_use]
pub fn relay_label(frame: &[u8]) -> Option<Label> {
    RelayHeader::load(frame, 0)?.label(frame.len())
}

const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const UDP_LEN: u16 = 8;
/// Of a circuit's label, from the UDP header.
const LABEL_OFFSET: usize = 8 + 4;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_UDP: u8 = 17;
/// "More fragments" and the fragment offset: any of them set means that the UDP header may be elsewhere.
const FRAGMENT_MASK: u16 = 0x3fff;
/// Of packets that this node sends on: as of those that it sends itself.
const HOPS: u8 = 64;

/// What a datagram is carried by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip {
    V4,
    V6,
}

/// A UDP datagram inside a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub ip: Ip,
    /// The IP packet's, with its header.
    pub ip_len: u16,
    pub source: Endpoint,
    pub destination: Endpoint,
    /// From the start of the frame: 42 or 62.
    pub payload_offset: usize,
    /// By the UDP header: at most what the IP header leaves; the frame itself may be cut shorter.
    pub payload_len: u16,
    /// As it lies in the packet; 0 where there is none, which only IPv4 allows.
    pub checksum: u16,
}

impl Datagram {
    /// The sum of the pseudo header, folded, as it lies in a packet: what stands in the place of a checksum that hardware is
    /// to complete. A whole checksum is the same once in 65,536 times.
    #[inline(always)]
    #[must_use]
    pub fn pseudo_header(&self) -> u16 {
        let mut sum = Sum(0);
        // What marks an IPv4 address as one adds up to nothing.
        for words in [self.source.words(), self.destination.words()] {
            let [a, b, c, d] = words;
            sum.0 += u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d);
        }
        sum.0 += u64::from(u16::from_be(u16::from(PROTOCOL_UDP)));
        sum.0 += u64::from((self.payload_len + UDP_LEN).to_be());
        sum.folded()
    }
}

/// A sum as the Internet checksum has it (RFC 1071), of words as they lie in a packet, whatever the machine's order.
struct Sum(u64);

impl Sum {
    /// Takes `old` out of a sum, and adds `new` (RFC 1624).
    #[inline(always)]
    fn replace(&mut self, old: u32, new: u32) {
        self.0 += u64::from(!old) + u64::from(new);
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the last carry is folded in: two bytes are left")]
    fn folded(&self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        (sum + (sum >> 16)) as u16
    }

    /// A checksum of which this has changed.
    #[inline(always)]
    fn changes(mut self, checksum: u16) -> u16 {
        self.0 += u64::from(!checksum);
        !self.folded()
    }
}

/// Addresses a circuit's frame anew, in place: to the next hop, from `local` to `remote`, under another label. The packet
/// in it is not touched. Nothing if the frame is too short for its headers: then it must not be sent.
#[inline(always)]
pub fn readdress<B: BytesMut + ?Sized>(
    frame: &mut B,
    datagram: &Datagram,
    to: &Leg,
    next: &NextHop,
    out: Label,
) -> Option<()> {
    for (at, mac) in [(0, &next.destination), (6, &next.source)] {
        let [a, b, c] = *mac;
        frame.store(at, a)?;
        frame.store(at + 2, b)?;
        frame.store(at + 4, c)?;
    }
    // Each with offsets that are constants, as the kernel's verifier and the compiler like them.
    match datagram.ip {
        Ip::V4 => readdress_ipv4(frame, datagram, to, out),
        Ip::V6 => readdress_ipv6(frame, datagram, to, out),
    }
}

#[inline(always)]
fn readdress_ipv4<B: BytesMut + ?Sized>(frame: &mut B, datagram: &Datagram, to: &Leg, out: Label) -> Option<()> {
    let (source, destination) = (to.local.words()[3], to.remote.words()[3]);
    let mut addresses = Sum(0);
    addresses.replace(datagram.source.words()[3], source);
    addresses.replace(datagram.destination.words()[3], destination);
    let mut of_ip = Sum(addresses.0);
    let old = frame.load::<u16>(ETHERNET_LEN + 8)?;
    let new = u16::from_ne_bytes([HOPS, PROTOCOL_UDP]);
    of_ip.replace(u32::from(old), u32::from(new));
    let checksum = frame.load::<u16>(ETHERNET_LEN + 10)?;
    frame.store(ETHERNET_LEN + 8, new)?;
    frame.store(ETHERNET_LEN + 10, of_ip.changes(checksum))?;
    frame.store(ETHERNET_LEN + 12, source)?;
    frame.store(ETHERNET_LEN + 16, destination)?;
    // One that hardware was to complete cannot be completed any more: IPv4 lets it be left out.
    let checksum = if datagram.checksum == datagram.pseudo_header() { 0 } else { datagram.checksum };
    readdress_udp(frame, ETHERNET_LEN + IPV4_LEN, to, out, addresses, checksum)
}

#[inline(always)]
fn readdress_ipv6<B: BytesMut + ?Sized>(frame: &mut B, datagram: &Datagram, to: &Leg, out: Label) -> Option<()> {
    let mut addresses = Sum(0);
    frame.store(ETHERNET_LEN + 7, HOPS)?;
    for (at, old, new) in
        [(ETHERNET_LEN + 8, &datagram.source, &to.local), (ETHERNET_LEN + 24, &datagram.destination, &to.remote)]
    {
        let ([a, b, c, d], [e, f, g, h]) = (old.words(), new.words());
        addresses.replace(a, e);
        addresses.replace(b, f);
        addresses.replace(c, g);
        addresses.replace(d, h);
        frame.store(at, e)?;
        frame.store(at + 4, f)?;
        frame.store(at + 8, g)?;
        frame.store(at + 12, h)?;
    }
    readdress_udp(frame, ETHERNET_LEN + IPV6_LEN, to, out, addresses, datagram.checksum)
}

/// Ports, label, and the checksum unless it is 0, which says that there is none.
#[inline(always)]
fn readdress_udp<B: BytesMut + ?Sized>(
    frame: &mut B,
    at: usize,
    to: &Leg,
    out: Label,
    mut addresses: Sum,
    checksum: u16,
) -> Option<()> {
    let out = out.0.to_be();
    addresses.replace(frame.load(at)?, 0);
    addresses.replace(frame.load(at + LABEL_OFFSET)?, out);
    addresses.0 += u64::from(to.local.port_word()) + u64::from(to.remote.port_word());
    let checksum = match addresses.changes(checksum) {
        _ if checksum == 0 => 0,
        0 => 0xffff,
        changed => changed,
    };
    frame.store(at, to.local.port_word())?;
    frame.store(at + 2, to.remote.port_word())?;
    frame.store(at + 6, checksum)?;
    frame.store(at + LABEL_OFFSET, out)
}

/// Why a frame is not a datagram that Pollen would look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDatagram {
    /// Another protocol: ARP, TCP, IPv6 with extension headers, tagged frames.
    Other,
    /// A fragment of an IPv4 packet.
    Fragment,
    /// IPv4 with options.
    Options,
    /// Shorter than its headers say, or headers that contradict each other.
    Malformed,
}

/// Finds the UDP datagram in a frame.
///
/// # Errors
/// If there is none: the reason. Nothing is judged here: such frames are the kernel's to handle.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(frame: &B) -> Result<Datagram, NotDatagram> {
    let ethertype = u16::from_be(load(frame, 12)?);
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame),
        ETHERTYPE_IPV6 => ipv6(frame),
        _ => Err(NotDatagram::Other),
    }
}

#[inline(always)]
fn ipv4<B: Bytes + ?Sized>(frame: &B) -> Result<Datagram, NotDatagram> {
    let version_ihl: u8 = load(frame, ETHERNET_LEN)?;
    // Behind options the header would be at no fixed place, and nobody sends any.
    match version_ihl {
        0x45 => {}
        0x46..=0x4f => return Err(NotDatagram::Options),
        _ => return Err(NotDatagram::Malformed),
    }
    let protocol: u8 = load(frame, ETHERNET_LEN + 9)?;
    if protocol != PROTOCOL_UDP {
        return Err(NotDatagram::Other);
    }
    if u16::from_be(load(frame, ETHERNET_LEN + 6)?) & FRAGMENT_MASK != 0 {
        return Err(NotDatagram::Fragment);
    }
    let total_len = u16::from_be(load(frame, ETHERNET_LEN + 2)?);
    let room = usize::from(total_len).checked_sub(IPV4_LEN).ok_or(NotDatagram::Malformed)?;
    let source = load(frame, ETHERNET_LEN + 12)?;
    let destination = load(frame, ETHERNET_LEN + 16)?;
    let udp = udp(frame, ETHERNET_LEN + IPV4_LEN, room)?;
    let ends = [Endpoint::of_ipv4(source, udp.source), Endpoint::of_ipv4(destination, udp.destination)];
    Ok(udp.between(Ip::V4, total_len, ends))
}

#[inline(always)]
fn ipv6<B: Bytes + ?Sized>(frame: &B) -> Result<Datagram, NotDatagram> {
    let version: u8 = load(frame, ETHERNET_LEN)?;
    if version >> 4 != 6 {
        return Err(NotDatagram::Malformed);
    }
    let next_header: u8 = load(frame, ETHERNET_LEN + 6)?;
    if next_header != PROTOCOL_UDP {
        return Err(NotDatagram::Other);
    }
    let room = u16::from_be(load(frame, ETHERNET_LEN + 4)?);
    let source = ipv6_address(frame, ETHERNET_LEN + 8)?;
    let destination = ipv6_address(frame, ETHERNET_LEN + 24)?;
    let udp = udp(frame, ETHERNET_LEN + IPV6_LEN, usize::from(room))?;
    let ends = [Endpoint::of_ipv6(source, udp.source), Endpoint::of_ipv6(destination, udp.destination)];
    // Longer ones, which nobody sends, go on nowhere.
    Ok(udp.between(Ip::V6, room.saturating_add(40), ends))
}

#[inline(always)]
fn ipv6_address<B: Bytes + ?Sized>(frame: &B, at: usize) -> Result<[u32; 4], NotDatagram> {
    Ok([load(frame, at)?, load(frame, at + 4)?, load(frame, at + 8)?, load(frame, at + 12)?])
}

struct Udp {
    source: u16,
    destination: u16,
    payload_offset: usize,
    payload_len: u16,
    checksum: u16,
}

impl Udp {
    #[inline(always)]
    fn between(&self, ip: Ip, ip_len: u16, [source, destination]: [Endpoint; 2]) -> Datagram {
        let Self { payload_offset, payload_len, checksum, .. } = *self;
        Datagram { ip, ip_len, source, destination, payload_offset, payload_len, checksum }
    }
}

/// The UDP header at `offset`; `room` is what the IP header leaves for it and its payload.
#[inline(always)]
fn udp<B: Bytes + ?Sized>(frame: &B, offset: usize, room: usize) -> Result<Udp, NotDatagram> {
    let source = load(frame, offset)?;
    let destination = load(frame, offset + 2)?;
    let len = u16::from_be(load(frame, offset + 4)?);
    if usize::from(len) > room {
        return Err(NotDatagram::Malformed);
    }
    let payload_len = len.checked_sub(UDP_LEN).ok_or(NotDatagram::Malformed)?;
    let payload_offset = offset + usize::from(UDP_LEN);
    let checksum = load(frame, offset + 6)?;
    Ok(Udp { source, destination, payload_offset, payload_len, checksum })
}

#[inline(always)]
fn load<B: Bytes + ?Sized, W: Word>(frame: &B, offset: usize) -> Result<W, NotDatagram> {
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
    fn a_datagram_is_found_behind_ipv4_and_behind_ipv6() {
        let frame = ipv4_frame(0, 0, b"\x01rest");
        let found = parse(frame.as_slice()).unwrap();
        assert_eq!(found.source, Endpoint::v4([10, 0, 0, 1], 1111u16.to_be_bytes()));
        assert_eq!((found.destination.port(), found.payload_len), (60611, 5));
        assert_eq!(&frame[found.payload_offset..], b"\x01rest");
        for options in 1..=10 {
            assert_eq!(parse(ipv4_frame(options, 0, b"\x01rest").as_slice()), Err(NotDatagram::Options));
        }
        let found = parse(ipv6_frame(b"").as_slice()).unwrap();
        assert_eq!((found.destination.words(), found.payload_len), ([u32::from_ne_bytes([0xfe; 4]); 4], 0));
    }

    #[test]
    fn what_is_no_frame_of_this_version_has_no_label() {
        let label = Label(0x0001_0002);
        let whole = [&label.header(6)[..], b"packet"].concat();
        assert_eq!((relay_label(&whole), label.slot(), label.generation()), (Some(label), 2, 1));
        for len in 0..whole.len() {
            assert_eq!(relay_label(&whole[..len]), None, "cut at {len}");
        }
        assert_eq!(relay_label(&label.header(0)), None, "it carries nothing");
        for at in 0..4 {
            let mut other = whole.clone();
            other[at] ^= 1;
            assert_eq!(relay_label(&other), None, "byte {at}");
        }
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
        for frame in [ipv4_frame(0, 0, b""), ipv6_frame(b"")] {
            for len in 0..frame.len() {
                assert_eq!(parse(&frame[..len]), Err(NotDatagram::Malformed), "cut at {len}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(found) = parse(bytes.as_slice()) {
                prop_assert!(found.payload_offset <= bytes.len(), "its headers are there");
            }
        }
    }
}
