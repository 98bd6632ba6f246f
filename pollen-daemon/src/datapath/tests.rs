//! The embedded object against the real kernel, frame by frame beside the same decision in user space.

use aya::programs::{TestRun as _, TestRunOptions};
use pollen_common::verdict::{self, Reason};

use super::*;

const XDP_PASS: u32 = 2;

/// The loaded program, or nothing where it cannot be loaded, which `PLN_REQUIRE` makes a failure.
fn loaded() -> Option<XdpProgram> {
    match XdpProgram::load() {
        Ok(program) => Some(program),
        Err(reason @ (Unavailable::NotBuilt | Unavailable::NotPermitted)) => {
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
            ip.extend([0xfd; 32]);
            ip
        }
    };
    [&[0; 12][..], &ip, &[0x04, 0x57, 0xec, 0xc3], &len.to_be_bytes(), &[0, 0], payload].concat()
}

/// Runs one frame through the kernel; returns the action and the reason whose counter went up by exactly one.
fn run(xdp: &mut XdpProgram, frame: &[u8]) -> (u32, Reason) {
    let before = xdp.frames().unwrap();
    let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
    let result = xdp.program().unwrap().test_run(options).unwrap();
    let after = xdp.frames().unwrap();
    let counted: Vec<_> = after
        .iter()
        .zip(before)
        .map(|((reason, after), (_, before))| (*reason, after - before))
        .filter(|(_, n)| *n > 0)
        .collect();
    assert!(matches!(counted[..], [(_, 1)]), "one frame adds one to one counter: {counted:?}");
    (result.return_value, counted[0].0)
}

#[test]
fn the_kernel_passes_a_frame_and_counts_it_once() {
    let Some(mut xdp) = loaded() else { return };
    assert_eq!(run(&mut xdp, &udp(Some(0), b"hello")), (XDP_PASS, Reason::NotRelay));
    assert_eq!(run(&mut xdp, &udp(None, b"\x01\0\0\0\0\0\0\0sealed")), (XDP_PASS, Reason::NoCircuit));
}

#[test]
fn the_kernel_and_user_space_decide_alike() {
    let Some(mut xdp) = loaded() else { return };
    let mut frames = vec![vec![0; 60], vec![0xff; 1500]];
    for options in (0..=10).map(Some).chain([None]) {
        for payload in [&b""[..], b"\x01", b"\x40quic"] {
            let whole = udp(options, payload);
            // The kernel takes no test frame shorter than an Ethernet header.
            frames.extend((14..=whole.len()).map(|len| whole[..len].to_vec()));
        }
    }
    let mut fragment = udp(Some(0), b"x");
    fragment[20] = 0x20;
    frames.push(fragment);
    for frame in frames {
        let decided = verdict::decide(frame.as_slice());
        assert_eq!(run(&mut xdp, &frame), (XDP_PASS, decided.reason), "{frame:02x?}");
    }
}
