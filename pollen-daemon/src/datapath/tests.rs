//! The embedded object against the real kernel, frame by frame beside the same decision in user space.

use std::collections::{BTreeMap, BTreeSet};

use aya::programs::{TestRun as _, TestRunOptions};
use pollen_common::abi::{Endpoint, Entry, Leg, NextHop};
use pollen_common::packet::{Bytes as _, readdress};
use pollen_common::verdict::{self, Action, Table};

use super::program::XdpProgram;
use super::*;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// Test frames come in at the loopback.
const LOOPBACK: u32 = 1;

/// What is told to the kernel, and to user space.
#[derive(Default)]
struct Told {
    entries: BTreeMap<u32, Entry>,
    here: BTreeSet<Endpoint>,
}

impl Table for Told {
    fn entry(&self, slot: u32) -> Option<&Entry> {
        // The kernel's table has them all.
        const FREE: &Entry = &Entry::FREE;
        (slot < pollen_common::abi::LABELS_MAX).then(|| self.entries.get(&slot).unwrap_or(FREE))
    }

    fn is_here(&self, at: &Endpoint) -> bool {
        self.here.contains(at)
    }
}

impl Told {
    fn tell(&mut self, xdp: &mut XdpProgram, slot: u32, entry: Entry) {
        xdp.set(slot, entry).unwrap();
        self.entries.insert(slot, entry);
    }
}

/// The loaded program, or nothing where it cannot be loaded, which `PLN_REQUIRE` makes a failure.
fn loaded() -> Option<XdpProgram> {
    match XdpProgram::load() {
        Ok(program) => Some(program),
        Err(reason @ Unavailable::NotPermitted) => {
            assert!(std::env::var_os("PLN_REQUIRE").is_none(), "PLN_REQUIRE is set: {reason}");
            eprintln!("skipped: {reason}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A UDP datagram in IPv4 with `options` words of options, or in IPv6.
fn udp(options: Option<u8>, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap();
    let ip = match options {
        Some(words) => {
            let header_len = 20 + 4 * u16::from(words);
            let mut ip = vec![0x08, 0x00, 0x45 + words, 0];
            ip.extend((len + header_len).to_be_bytes());
            ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            ip.extend(vec![1; 4 * usize::from(words)]);
            ip
        }
        None => {
            let mut ip = vec![0x86, 0xdd, 0x60, 0, 0, 0];
            ip.extend(len.to_be_bytes());
            ip.extend([17, 64]);
            for host in [1, 2] {
                ip.extend([0xfd; 15]);
                ip.push(host);
            }
            ip
        }
    };
    [&[0; 12][..], &ip, &[0x04, 0x57, 0xec, 0xc3], &len.to_be_bytes(), &[0x12, 0x34], payload].concat()
}

/// Runs one frame through the kernel; returns the action, the reason whose counter went up by exactly one, and the frame.
fn run(xdp: &mut XdpProgram, frame: &[u8]) -> (u32, Reason, Vec<u8>) {
    let before = xdp.frames().unwrap();
    let mut out = vec![0; frame.len()];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
    let result = xdp.program().unwrap().test_run(options).unwrap();
    let after = xdp.frames().unwrap();
    let counted: Vec<_> = after
        .iter()
        .zip(before)
        .map(|((reason, after), (_, before))| (*reason, after.frames - before.frames))
        .filter(|(_, n)| *n > 0)
        .collect();
    assert!(matches!(counted[..], [(_, 1)]), "one frame adds one to one counter: {counted:?}");
    (result.return_value, counted[0].0, out)
}

/// The same in user space.
fn decided(told: &Told, frame: &[u8]) -> (u32, Reason, Vec<u8>) {
    let verdict = verdict::decide(frame, told);
    let mut out = frame.to_vec();
    let action = match verdict.action {
        Action::Pass => XDP_PASS,
        Action::Drop => XDP_DROP,
        Action::Forward(forward) => {
            let next = &forward.entry.next;
            readdress(out.as_mut_slice(), &forward.datagram, forward.to, next, forward.out).unwrap();
            XDP_TX
        }
    };
    (action, verdict.reason, out)
}

fn leg(v6: bool, host: u8) -> Leg {
    let at = |host: u8, port: u16| match v6 {
        false => Endpoint::v4([10, 0, 0, host], port.to_be_bytes()),
        true => Endpoint::v6([[0xfd; 15].as_slice(), &[host]].concat().try_into().unwrap(), port.to_be_bytes()),
    };
    Leg { remote: at(host, 0x0457), local: at(2, 0xecc3) }
}

const NEXT: NextHop = NextHop { interface: LOOPBACK, mtu: 1500, source: [0x5151; 3], destination: [0xd1d1; 3] };

/// Tells both of a circuit in each family, one that ends here, and one that leads into the other family.
fn told(xdp: &mut XdpProgram) -> Told {
    let mut told = Told::default();
    for (slot, v6, to_v6, next) in [
        (0, false, false, NEXT),
        (1, true, true, NEXT),
        (2, false, true, NEXT),
        (3, false, false, NextHop::UNKNOWN),
        (4, true, true, NextHop { mtu: 60, ..NEXT }),
    ] {
        let label = Label::new(slot, 7);
        let entry = Entry::hop(label, leg(v6, 1), leg(to_v6, 3), next, Label(0xfeed_beef));
        told.tell(xdp, u32::from(slot), entry);
    }
    told.tell(xdp, 5, Entry::end(Label::new(5, 7)));
    for v6 in [false, true] {
        xdp.set_here(leg(v6, 1).local, true);
        told.here.insert(leg(v6, 1).local);
    }
    told
}

#[test]
fn the_kernel_and_user_space_decide_and_write_alike() {
    let Some(mut xdp) = loaded() else { return };
    let told = told(&mut xdp);
    let mut payloads =
        vec![Vec::new(), b"\x01".to_vec(), b"\x40quic".to_vec(), [&[1][..], &[0; 7], b"sealed"].concat()];
    for slot in [0, 1, 2, 3, 4, 5, 6, 60_000] {
        for generation in [7, 8] {
            let header = Label::new(slot, generation).header(7);
            payloads.push([&header[..], b"\x40sealed"].concat());
            payloads.push([&header[..], b"\x40sealed", &header, b"\x40sealed"].concat());
        }
    }
    let mut frames = vec![vec![0; 60], vec![0xff; 1500]];
    for options in [Some(0), Some(1), Some(10), None] {
        for payload in &payloads {
            let whole = udp(options, payload);
            // The kernel takes no test frame shorter than an Ethernet header.
            frames.extend((14..=whole.len()).map(|len| whole[..len].to_vec()));
        }
    }
    let mut fragment = udp(Some(0), b"x");
    fragment[20] = 0x20;
    frames.push(fragment);
    let mut unsummed = udp(None, &[&Label::new(1, 7).header(1)[..], b"x"].concat());
    unsummed[60..62].fill(0);
    frames.push(unsummed);
    let mut seen = BTreeSet::new();
    for frame in frames {
        let here = decided(&told, &frame);
        seen.insert(here.1);
        assert_eq!(run(&mut xdp, &frame), here, "{frame:02x?}");
    }
    let missed: Vec<_> = Reason::ALL.into_iter().filter(|reason| !seen.contains(reason)).collect();
    assert_eq!(missed, [Reason::Elsewhere], "every other reason is met");
}

#[test]
fn frames_of_others_and_to_others_are_judged_alike() {
    let Some(mut xdp) = loaded() else { return };
    let told = told(&mut xdp);
    for (options, slot) in [(Some(0), 0u16), (None, 1)] {
        let payload = [&Label::new(slot, 7).header(1)[..], b"x"].concat();
        let whole = udp(options, &payload);
        let at = if options.is_some() { 26..38 } else { 22..58 };
        for byte in at {
            let mut frame = whole.clone();
            frame[byte] ^= 0x40;
            let here = decided(&told, &frame);
            assert!(matches!(here.1, Reason::Source), "byte {byte}: {here:?}");
            assert_eq!(run(&mut xdp, &frame), here, "byte {byte}");
        }
        // To nobody's port, under nobody's label.
        let mut elsewhere = udp(options, &[&Label::new(9, 9).header(1)[..], b"x"].concat());
        let port = if options.is_some() { 36 } else { 56 };
        assert_eq!(run(&mut xdp, &elsewhere).1, Reason::NoCircuit);
        elsewhere[port] ^= 1;
        assert_eq!(run(&mut xdp, &elsewhere), decided(&told, &elsewhere));
        assert_eq!(decided(&told, &elsewhere).1, Reason::Elsewhere);
    }
}

#[test]
fn what_goes_on_is_counted_by_its_label_until_that_is_given_up() {
    let Some(mut xdp) = loaded() else { return };
    let mut told = told(&mut xdp);
    let frame = udp(Some(0), &[&Label::new(0, 7).header(3)[..], b"abc"].concat());
    for _ in 0..3 {
        assert_eq!(run(&mut xdp, &frame).0, XDP_TX);
    }
    assert_eq!(xdp.passed(0), Count { frames: 3, bytes: 3 * 11 });
    told.tell(&mut xdp, 0, Entry::FREE);
    assert_eq!(run(&mut xdp, &frame).1, Reason::NoCircuit);
    assert_eq!(run(&mut xdp, &frame), decided(&told, &frame));
    assert_eq!(
        frame.as_slice().load::<u16>(36).map(u16::from_be),
        Some(0xecc3),
        "the port that is known to the kernel"
    );
}
