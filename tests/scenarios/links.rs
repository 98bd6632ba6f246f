//! Bad links are links: what is far, jittery, lossy, slow or narrow carries streams, and nobody on it is called dead.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use tests::cluster::form;
use tests::lab::{Family, Lab, lab_or_skip};
use tests::link::{BadLink, Quality};
use tests::pln::Pln;
use tests::status::await_online;
use tests::traffic::{Server, dial, http_get, pattern};

use crate::services::connect;

const GOOD: Quality = Quality {
    delay: Duration::ZERO,
    jitter: Duration::ZERO,
    lost: 0,
    doubled: 0,
    kbit: 0,
    buffer_bytes: 0,
    packet_bytes_max: 0,
    without_ecn: false,
};

/// Two nodes with a link between them that can be made bad.
struct Pair {
    client: Pln,
    server: Pln,
    link: BadLink,
    _lab: Lab,
}

impl Pair {
    fn over(quality: Quality) -> Option<Self> {
        let mut lab = lab_or_skip()?;
        let switch = lab.switch(Family::V4).unwrap();
        let hosts = ["c", "s"].map(|name| lab.host(name, &[switch], 1500).unwrap());
        let link = lab.part_by(switch, &[&hosts[0]], quality).unwrap();
        let mut nodes = hosts.map(Pln::on);
        form(&mut nodes, &["--publisher"]).unwrap();
        let [client, server] = nodes;
        Some(Self { client, server, link, _lab: lab })
    }

    /// How long a file of so many bytes takes, which must arrive whole.
    fn file(&self, bytes: usize) -> Duration {
        let file = pattern(3, bytes);
        let files = Server::http(&self.server.host, 0, file.clone()).unwrap();
        self.server.ok(&["serve", &files.port.to_string(), "files"]).unwrap();
        let port = connect(&self.client, "files");
        let began = Instant::now();
        assert!(http_get(&self.client.host, port, "/").unwrap() == file, "the file came otherwise than it was sent");
        began.elapsed()
    }

    /// Neither end was ever called dead by the other.
    fn nobody_died(&self) {
        for node in [&self.client, &self.server] {
            let events = node.ok(&["events"]).unwrap();
            assert!(!events.contains("offline"), "{}: {events}", node.host.name());
        }
        await_online(&[&self.client, &self.server], &["c", "s"], Duration::from_secs(5)).unwrap();
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn packets_that_overtake_each_other_are_not_lost() {
    let Some(pair) = Pair::over(Quality { delay: ms(20), jitter: ms(1), ..GOOD }) else { return };
    let took = pair.file(5_000_000);
    assert!(took < Duration::from_secs(4), "{took:?}, where plain TCP takes a third of a second");
    pair.nobody_died();
}

#[test]
fn loss_by_chance_slows_a_file_no_more_than_the_bytes_that_are_sent_again() {
    let Some(pair) = Pair::over(Quality { delay: ms(10), lost: 30, ..GOOD }) else { return };
    let took = pair.file(5_000_000);
    assert!(took < Duration::from_secs(5), "{took:?}, where plain TCP takes half a second");
    pair.nobody_died();
}

#[test]
fn packets_that_come_twice_come_once_to_those_who_read() {
    let Some(pair) = Pair::over(Quality { delay: ms(5), doubled: 300, ..GOOD }) else { return };
    pair.file(2_000_000);
    pair.nobody_died();
}

#[test]
fn a_round_trip_that_jumps_to_two_seconds_ends_no_stream() {
    let Some(pair) = Pair::over(Quality { delay: ms(5), ..GOOD }) else { return };
    let echo = Server::tcp_echo(&pair.server.host, 0).unwrap();
    pair.server.ok(&["serve", &echo.port.to_string(), "echo"]).unwrap();
    let mut stream = dial(&pair.client.host, connect(&pair.client, "echo")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for delay in [5, 600, 5, 1000, 5] {
        pair.link.set(Quality { delay: ms(delay), ..GOOD });
        for _ in 0..3 {
            stream.write_all(b"still there").unwrap();
            stream.read_exact(&mut [0; 11]).expect("the stream goes on");
        }
    }
}

#[test]
fn bulk_over_a_slow_line_with_a_long_buffer_kills_nobody() {
    let line = Quality { delay: ms(5), kbit: 2000, buffer_bytes: 300_000, ..GOOD };
    let Some(pair) = Pair::over(line) else { return };
    pair.file(2_000_000);
    pair.nobody_died();
}

#[test]
fn a_path_that_loses_what_ecn_marks_carries_all_the_same() {
    let Some(pair) = Pair::over(Quality { without_ecn: true, ..GOOD }) else { return };
    pair.file(1_000_000);
    pair.nobody_died();
}

#[test]
fn a_path_that_swallows_long_packets_stalls_no_stream_for_long() {
    let Some(pair) = Pair::over(Quality { packet_bytes_max: 1280, ..GOOD }) else { return };
    pair.file(1_000_000);
    // And one that shrinks under an open transfer.
    pair.link.set(GOOD);
    let echo = Server::tcp_echo(&pair.server.host, 0).unwrap();
    pair.server.ok(&["serve", &echo.port.to_string(), "echo"]).unwrap();
    let mut stream = dial(&pair.client.host, connect(&pair.client, "echo")).unwrap();
    let block = pattern(4, 100_000);
    let mut ask = |longest: Duration| {
        stream.set_read_timeout(Some(longest)).unwrap();
        stream.write_all(&block).unwrap();
        let mut answer = vec![0; block.len()];
        stream.read_exact(&mut answer).expect("the stream goes on");
        assert!(answer == block, "a block came back otherwise than it was sent");
    };
    for _ in 0..50 {
        ask(Duration::from_secs(3));
    }
    pair.link.set(Quality { packet_bytes_max: 1280, ..GOOD });
    for _ in 0..10 {
        ask(Duration::from_secs(4));
    }
    pair.nobody_died();
}
