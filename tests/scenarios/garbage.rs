//! Garbage, truncated and oversized input where bytes come in: nothing crashes, nothing grows, all of it is counted.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tests::cluster::{TOGETHER_DEADLINE, form};
use tests::lab::{Family, lab_or_skip};
use tests::pln::Pln;
use tests::status::{Status, await_online};
use tests::traffic::{Xorshift, address, http_get, pattern};

/// What a process may grow by under garbage, in KiB.
pub const GROWTH_KIB_MAX: u64 = 16 << 10;

/// A counter of `/metrics`, all its series with this label together.
pub fn counted(node: &Pln, series: &str) -> u64 {
    const PORT: u16 = 9090;
    node.ok(&["set", "http", &format!("127.0.0.1:{PORT}")]).unwrap();
    let metrics = String::from_utf8(http_get(&node.host, PORT, "/metrics").unwrap()).unwrap();
    let values = metrics.lines().filter_map(|line| line.strip_prefix(series)?.split_whitespace().last());
    values.map(|value| value.parse::<u64>().unwrap()).sum()
}

#[test]
fn garbage_at_the_udp_port_is_counted_by_reason_and_disturbs_nobody() {
    const PACKETS: u64 = 20_000;
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b"]).unwrap().map(Pln::on);
    form(&mut nodes, &[]).unwrap();
    let [a, b] = &nodes;
    let to = SocketAddr::new(address(&a.host, false).unwrap(), a.host.port());
    let socket = b.host.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let before = a.resident_kib().unwrap();
    let mut numbers = Xorshift::new(6);
    for packet in 0..PACKETS {
        let len = match numbers.below(8) {
            0 => numbers.below(4),
            1 => 1200 + numbers.below(300),
            // Larger than the cables carry: it arrives in fragments.
            2 if packet % 64 == 0 => 65_507,
            _ => numbers.below(1500),
        };
        let mut bytes = pattern(packet, usize::try_from(len).unwrap());
        if let Some(first) = bytes.first_mut() {
            // A relay frame, a probe, QUIC with a long and with a short header, or anything.
            *first = *[0x01, 0x02, 0xc0, 0x40, *first].get(usize::try_from(packet % 5).unwrap()).unwrap();
        }
        if packet % 10 == 0 && bytes.len() > 8 {
            // A frame of this version, of no circuit that there is.
            let [high, low] = u16::try_from(bytes.len() - 8).unwrap().to_be_bytes();
            bytes[1..4].copy_from_slice(&[0, high, low]);
        }
        // The kernel may refuse for want of a buffer; enough others get through.
        let _refused = socket.send_to(&bytes, to);
    }
    await_online(&[a, b], &["a", "b"], Duration::from_secs(1)).unwrap();
    let after = a.resident_kib().unwrap();
    assert!(after <= before + GROWTH_KIB_MAX, "a grew from {before} to {after} KiB");
    for reason in ["circuit_malformed", "circuit_label", "unbound_source"] {
        let frames = counted(a, &format!("pln_frames_dropped_total{{reason=\"{reason}\"}}"));
        assert!(frames > PACKETS / 50, "{frames} frames were counted as {reason}");
    }
    let probes = counted(a, "pln_frames_dropped_total{reason=\"probe_");
    let unknown = counted(a, "pln_frames_dropped_total{reason=\"unknown_frame\"}");
    assert!(probes + unknown > PACKETS / 50, "{probes} bad probes and {unknown} unknown frames were counted");
}

#[test]
fn the_control_socket_answers_garbage_with_errors_and_goes_on() {
    const ROUNDS: u64 = 40;
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a"]).unwrap().map(Pln::on);
    form(&mut nodes, &[]).unwrap();
    let [a] = &nodes;
    let before = a.resident_kib().unwrap();
    let long_body = format!("POST /v1/services HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 1u64 << 40);
    let inputs: [&[u8]; 9] = [
        b"",
        b"\r\n\r\n",
        b"GET /v1/status",
        b"GET /v1/%ff%00/../../etc HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/services HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{\"port\":1",
        b"POST /v1/services HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nnull",
        b"POST /v1/invites HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        long_body.as_bytes(),
    ];
    let mut numbers = Xorshift::new(7);
    for round in 0..ROUNDS {
        for input in inputs {
            say(a, input);
        }
        say(a, &pattern(round, usize::try_from(numbers.below(100_000)).unwrap()));
    }
    // A head without end, and a body far beyond the bound.
    say(a, &[b"GET /v1/status HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; 4 << 20]].concat());
    let mut body = b"POST /v1/services HTTP/1.1\r\nHost: x\r\nContent-Length: 8388608\r\n\r\n".to_vec();
    body.resize(body.len() + (8 << 20), b' ');
    let answer = say(a, &body);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert_eq!(Status::of(a).unwrap().online().unwrap().len(), 1);
    let after = a.resident_kib().unwrap();
    assert!(after <= before + GROWTH_KIB_MAX, "a grew from {before} to {after} KiB");
    for reason in ["head_malformed", "head_too_large", "broken_off", "body_broken", "body_malformed", "body_too_large"]
    {
        let series = format!("pln_http_refused_total{{listener=\"control\",reason=\"{reason}\"}}");
        let refused = counted(a, &series);
        let least = if reason == "head_too_large" { 1 } else { ROUNDS };
        assert!(refused >= least, "{refused} were counted as {reason}");
    }
}

/// Sends bytes to the control socket; returns the start of what it answers, whatever that is.
fn say(node: &Pln, bytes: &[u8]) -> String {
    let mut socket = UnixStream::connect(node.socket()).unwrap();
    socket.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    // The daemon may have closed already: then it has said what it had to say.
    let _closed = socket.write_all(bytes);
    let _closed = socket.shutdown(std::net::Shutdown::Write);
    let mut answer = [0; 512];
    let len = socket.read(&mut answer).unwrap_or(0);
    String::from_utf8_lossy(&answer[..len]).into_owned()
}

#[test]
fn a_damaged_store_is_refused_and_left_as_it_is() {
    let Some(mut lab) = lab_or_skip() else { return };
    let [a] = lab.hosts(Family::V4, ["a"]).unwrap().map(Pln::on);
    let mut a = a;
    tests::cluster::found(&mut a).unwrap();
    a.terminate().unwrap();
    let format = a.dir().join("format");
    let kept = std::fs::read(&format).unwrap();
    std::fs::write(&format, "some other layout\n").unwrap();
    let said = a.fails(tests::pln::exit::FAILURE, &["up"]).unwrap();
    assert!(said.contains("format") || said.contains("layout"), "{said}");
    assert_eq!(std::fs::read(&format).unwrap(), b"some other layout\n");
    std::fs::write(&format, kept).unwrap();
    a.up().unwrap();
    await_online(&[&a], &["a"], TOGETHER_DEADLINE).unwrap();
}
