//! Frames against a table of three labels, and what is sent on against a plain recomputation of all its checksums.

extern crate std;
use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::abi::NextHop;
use crate::packet::readdress;

const PORT: u16 = 60611;
const NEXT: NextHop = NextHop { interface: 7, mtu: 1500, source: [0x5151; 3], destination: [0xd1d1; 3] };
const HOP: Label = Label::new(0, 3);
const ENDS_HERE: Label = Label::new(1, 0);
const OUT: Label = Label(0xdead_beef);

#[derive(Clone, Copy, Debug)]
struct Ends {
    from: Leg,
    to: Leg,
}

struct Fixed {
    entries: Vec<Entry>,
    here: BTreeSet<Endpoint>,
}

impl Table for Fixed {
    fn entry(&self, slot: u32) -> Option<&Entry> {
        self.entries.get(usize::try_from(slot).ok()?)
    }

    fn is_here(&self, at: &Endpoint) -> bool {
        self.here.contains(at)
    }
}

fn table(ends: Ends, next: NextHop) -> Fixed {
    let entries = vec![Entry::hop(HOP, ends.from, ends.to, next, OUT), Entry::end(ENDS_HERE), Entry::FREE];
    Fixed { entries, here: [ends.from.local].into() }
}

fn at(v6: bool, host: u8, port: u16) -> Endpoint {
    match v6 {
        false => Endpoint::v4([10, 0, 0, host], port.to_be_bytes()),
        true => Endpoint::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host], port.to_be_bytes()),
    }
}

fn ends(v6: bool) -> Ends {
    let leg = |host| Leg { remote: at(v6, host, PORT), local: at(v6, 1, PORT) };
    Ends { from: leg(2), to: leg(3) }
}

fn address(end: &Endpoint) -> Vec<u8> {
    end.words().into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// The one's complement sum of words, as RFC 1071 has it; an odd byte is the upper half of a word.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

fn pseudo_header(source: &Endpoint, destination: &Endpoint, udp_len: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for end in [source, destination] {
        match end.ipv4() {
            Some(v4) => bytes.extend(v4.to_ne_bytes()),
            None => bytes.extend(address(end)),
        }
    }
    bytes.extend([0, 17]);
    bytes.extend(udp_len.to_be_bytes());
    bytes
}

/// A whole frame of `leg`'s remote, with right checksums.
fn frame(leg: &Leg, label: Label, packet: &[u8]) -> Vec<u8> {
    let payload = [&label.header(u16::try_from(packet.len()).unwrap())[..], packet].concat();
    datagram(leg, &payload)
}

fn datagram(leg: &Leg, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (&leg.remote, &leg.local);
    let udp_len = u16::try_from(8 + payload.len()).unwrap();
    let mut udp =
        [source.port().to_be_bytes(), destination.port().to_be_bytes(), udp_len.to_be_bytes(), [0; 2]].concat();
    udp.extend(payload);
    let checksum = match !sum(&[pseudo_header(source, destination, udp_len), udp.clone()].concat()) {
        0 => 0xffff,
        checksum => checksum,
    };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = vec![0xaa; 12];
    match (source.ipv4(), destination.ipv4()) {
        (Some(source), Some(destination)) => {
            let mut ip = vec![0x45, 0];
            ip.extend((20 + udp_len).to_be_bytes());
            ip.extend([0x12, 0x34, 0x40, 0, 17, 17, 0, 0]);
            ip.extend(source.to_ne_bytes());
            ip.extend(destination.to_ne_bytes());
            let checksum = !sum(&ip);
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            frame.extend([8, 0]);
            frame.extend(ip);
        }
        _ => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(udp_len.to_be_bytes());
            frame.extend([17, 9]);
            frame.extend(address(source));
            frame.extend(address(destination));
        }
    }
    frame.extend(udp);
    frame
}

/// What is sent on, if it is.
fn sent_on(mut frame: Vec<u8>, table: &Fixed) -> Result<Vec<u8>, Reason> {
    let verdict = decide(frame.as_slice(), table);
    let Action::Forward(forward) = verdict.action else { return Err(verdict.reason) };
    assert_eq!((verdict.reason, forward.slot), (Reason::Forwarded, HOP.slot()));
    let next = &forward.entry.next;
    readdress(frame.as_mut_slice(), &forward.datagram, forward.to, next, forward.out).expect("it was parsed");
    Ok(frame)
}

/// The frame that goes on as it should: as if it had been written anew.
fn anew(to: &Leg, packet: &[u8]) -> Vec<u8> {
    let turned = Leg { remote: to.local, local: to.remote };
    let mut frame = frame(&turned, OUT, packet);
    frame[..6].fill(0xd1);
    frame[6..12].fill(0x51);
    if to.remote.ipv4().is_some() {
        frame[22] = 64;
        frame[24..26].fill(0);
        let checksum = !sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    } else {
        frame[21] = 64;
    }
    frame
}

#[test]
fn every_reason_has_its_slot_and_a_label_of_its_own() {
    for (slot, reason) in Reason::ALL.into_iter().enumerate() {
        assert_eq!(usize::try_from(reason.slot()), Ok(slot));
        assert_eq!(Reason::ALL.iter().filter(|other| other.label() == reason.label()).count(), 1);
    }
}

#[test]
fn frames_that_are_not_for_pollen_pass() {
    let table = table(ends(false), NEXT);
    for frame in [[0u8; 0].as_slice(), &[0; 60], &[0xff; 1500]] {
        assert_eq!(decide(frame, &table).action, Action::Pass);
    }
    let quic = datagram(&ends(false).from, b"\x40quic");
    assert_eq!(decide(quic.as_slice(), &table), Verdict { action: Action::Pass, reason: Reason::NotRelay });
}

#[test]
fn a_frame_goes_on_only_from_whom_and_to_where_its_label_says() {
    for v6 in [false, true] {
        let Ends { from, to } = ends(v6);
        let table = table(ends(v6), NEXT);
        assert_eq!(sent_on(frame(&from, HOP, b"packet"), &table), Ok(anew(&to, b"packet")), "{v6}");
        for (leg, label, reason) in [
            (from, Label::new(0, 2), Reason::NoCircuit),
            (from, Label::new(2, 0), Reason::NoCircuit),
            (from, Label::new(999, 0), Reason::NoCircuit),
            (Leg { local: at(v6, 1, 53), ..from }, Label::new(2, 0), Reason::Elsewhere),
            (Leg { local: at(v6, 9, PORT), ..from }, HOP, Reason::Source),
            (Leg { remote: at(v6, 9, PORT), ..from }, HOP, Reason::Source),
            (Leg { remote: at(v6, 2, 1), ..from }, HOP, Reason::Source),
            (from, ENDS_HERE, Reason::End),
        ] {
            assert_eq!(sent_on(frame(&leg, label, b"packet"), &table), Err(reason), "{leg:?} {label:?}");
        }
    }
}

#[test]
fn what_the_kernel_could_not_send_on_rightly_is_left_to_the_sockets() {
    let Ends { from, .. } = ends(false);
    let refused = |frame: Vec<u8>, next| sent_on(frame, &table(ends(false), next)).unwrap_err();
    let whole = frame(&from, HOP, b"packet");
    assert_eq!(refused(whole.clone(), NextHop::UNKNOWN), Reason::NoRoute);
    assert_eq!(refused(whole.clone(), NextHop { mtu: 41, ..NEXT }), Reason::TooLong);
    let mut crossing = ends(false);
    crossing.to = ends(true).to;
    assert_eq!(sent_on(whole.clone(), &table(crossing, NEXT)), Err(Reason::Family));
    let two = [&HOP.header(6)[..], b"packet", &HOP.header(6), b"packet"].concat();
    assert_eq!(refused(datagram(&from, &two), NEXT), Reason::Merged, "two frames in one: merged on their way here");
    assert_eq!(refused(datagram(&from, b"\x01"), NEXT), Reason::NotRelay, "no header");
    for payload in [&HOP.header(1)[..], &HOP.header(0), b"\x01\x01\0\x01\0\x03\0\0x"] {
        assert_eq!(refused(datagram(&from, payload), NEXT), Reason::Merged, "{payload:?}");
    }
    let mut options = whole;
    options[14] = 0x46;
    options.splice(34..34, [1; 4]);
    let len = u16::from_be_bytes([options[16], options[17]]) + 4;
    options[16..18].copy_from_slice(&len.to_be_bytes());
    assert_eq!(refused(options, NEXT), Reason::Options);
}

#[test]
fn a_checksum_that_hardware_was_to_complete_is_left_out_or_left_alone() {
    for v6 in [false, true] {
        let Ends { from, to } = ends(v6);
        let mut partial = frame(&from, HOP, b"packet");
        let at = if v6 { 60 } else { 40 };
        let len = u16::try_from(partial.len() - (at - 6)).unwrap();
        let pseudo = sum(&pseudo_header(&from.remote, &from.local, len));
        partial[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        let sent = sent_on(partial, &table(ends(v6), NEXT));
        if v6 {
            assert_eq!(sent, Err(Reason::Checksum), "IPv6 knows no packet without");
        } else {
            let mut expected = anew(&to, b"packet");
            expected[at..at + 2].fill(0);
            assert_eq!(sent, Ok(expected));
        }
    }
    let mut none = frame(&ends(false).from, HOP, b"packet");
    none[40..42].fill(0);
    let sent = sent_on(none, &table(ends(false), NEXT)).unwrap();
    assert_eq!(sent[40..42], [0, 0], "what had none gets none");
}

fn any_leg(v6: bool) -> impl Strategy<Value = Leg> {
    let end = move || {
        (any::<[u8; 16]>(), any::<[u8; 2]>()).prop_map(move |(bytes, port)| match v6 {
            false => Endpoint::v4([bytes[0], bytes[1], bytes[2], bytes[3]], port),
            // None that is an IPv4 address in disguise.
            true => Endpoint::v6([&[0xfd], &bytes[1..]].concat().try_into().unwrap(), port),
        })
    };
    (end(), end()).prop_map(|(remote, local)| Leg { remote, local })
}

proptest! {
    #[test]
    fn what_is_sent_on_is_as_if_it_had_been_written_anew(
        (from, to) in any::<bool>().prop_flat_map(|v6| (any_leg(v6), any_leg(v6))),
        packet in proptest::collection::vec(any::<u8>(), 1..1400),
    ) {
        let table = table(Ends { from, to }, NEXT);
        let whole = frame(&from, HOP, &packet);
        match sent_on(whole, &table) {
            Ok(sent) => {
                let mut anew = anew(&to, &packet);
                let at = if to.remote.ipv4().is_some() { 40 } else { 60 };
                if sent[at..at + 2] == [0, 0] {
                    // Once in 65,536 a whole checksum looks like one that is to be completed.
                    anew[at..at + 2].fill(0);
                }
                prop_assert_eq!(sent, anew);
            }
            Err(reason) => prop_assert_eq!(reason, Reason::Checksum),
        }
    }

    #[test]
    fn any_bytes_have_a_verdict_and_what_goes_on_keeps_its_length(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let table = table(ends(false), NEXT);
        let mut frame = bytes.clone();
        if let Action::Forward(forward) = decide(bytes.as_slice(), &table).action {
            let next = &forward.entry.next;
            readdress(frame.as_mut_slice(), &forward.datagram, forward.to, next, forward.out).expect("it was parsed");
        }
        prop_assert_eq!(frame.len(), bytes.len());
    }
}
