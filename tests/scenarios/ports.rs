//! The two ports that a node is asked at: neither is kept from those who ask by those who only hold it, and a socket
//! whose file somebody deleted comes back.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tests::cluster::form;
use tests::lab::{Family, lab_or_skip};
use tests::patience::eventually;
use tests::pln::{Pln, exit};
use tests::status::await_online;
use tests::traffic::dial;

use crate::garbage::counted;

const PORT: u16 = 9090;
/// A scraper's patience; a half-open client is held on to for 5 s, one that does not read for 60.
const SCRAPE_MAX: Duration = Duration::from_secs(3);

fn asked(node: &Pln, path: &str) -> String {
    let mut stream = dial(&node.host, PORT).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    // Its own half stays open: a client that closes it may have gone away.
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn clients_that_only_hold_the_metrics_port_keep_no_scraper_out() {
    /// More than there are places, and less than would not be accepted.
    const HOLDERS: usize = 100;
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a"]).unwrap().map(Pln::on);
    form(&mut nodes, &[]).unwrap();
    let [a] = &nodes;
    a.ok(&["set", "http", &format!("127.0.0.1:{PORT}")]).unwrap();
    let mut held: Vec<TcpStream> = Vec::new();
    for (kind, sent) in [("silent", ""), ("half", "GET /met"), ("deaf", "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")] {
        for _ in 0..HOLDERS {
            let mut stream = dial(&a.host, PORT).unwrap();
            // One that gave way may be closed already.
            let _closed = stream.write_all(sent.as_bytes());
            held.push(stream);
        }
        let started = Instant::now();
        let scraped = asked(a, "/metrics");
        assert!(scraped.contains("pln_build_info"), "{kind}: {scraped}");
        assert!(started.elapsed() < SCRAPE_MAX, "{kind}: a scrape took {:?}", started.elapsed());
    }
    let displaced = counted(a, "pln_http_refused_total{listener=\"metrics\",reason=\"displaced\"}");
    assert!(displaced >= 2 * HOLDERS as u64 - 64, "{displaced} are counted");
    // The first of them has long been told.
    held[0].set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let end = held[0].read(&mut [0]).map_err(|error| error.kind());
    assert!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "{end:?}");

    let front = asked(a, "/");
    assert!(front.contains("href=/metrics") && front.contains("href=/ready"), "{front}");
    assert!(asked(a, "/ready").starts_with("HTTP/1.1 200"));
}

#[test]
fn a_node_that_is_alone_or_gone_is_not_ready_and_hanging_up_says_goodbye() {
    /// Four probes unanswered and what follows, on a busy machine.
    const SILENT_MAX: Duration = Duration::from_secs(30);
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b"]).unwrap().map(Pln::on);
    form(&mut nodes, &[]).unwrap();
    let [a, b] = &mut nodes;
    a.ok(&["set", "http", &format!("127.0.0.1:{PORT}")]).unwrap();
    assert!(asked(a, "/ready").starts_with("HTTP/1.1 200"));
    let started = Instant::now();
    b.hang_up().unwrap();
    await_online(&[a], &["a"], Duration::from_secs(1)).unwrap();
    let not_ready = || {
        let said = asked(a, "/ready");
        if said.starts_with("HTTP/1.1 503") && said.ends_with("not ready: alone\n") { Ok(()) } else { Err(said) }
    };
    eventually("a is not ready", SILENT_MAX, not_ready).unwrap();
    assert!(started.elapsed() < SILENT_MAX);
}

#[test]
fn a_control_socket_that_was_deleted_is_there_again() {
    const AGAIN_MAX: Duration = Duration::from_secs(6);
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a"]).unwrap().map(Pln::on);
    form(&mut nodes, &[]).unwrap();
    let [a] = &mut nodes;
    let before = a.pid().unwrap();
    std::fs::remove_file(a.socket()).unwrap();
    a.fails(exit::UNREACHABLE, &["status"]).unwrap();
    eventually("commands are answered", AGAIN_MAX, || a.ok(&["status"]).map_err(|error| format!("{error:#}"))).unwrap();
    assert_eq!(a.pid().unwrap(), before);

    // A file that is none of the daemon's is neither removed nor listened on, when it runs and when it starts.
    std::fs::remove_file(a.socket()).unwrap();
    std::fs::write(a.socket(), "notes").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    a.terminate().unwrap();
    assert_eq!(std::fs::read(a.socket()).unwrap(), b"notes");
    let refused = a.fails(exit::FAILURE, &["up"]).unwrap();
    assert!(refused.contains("no socket") && refused.contains("move it away"), "{refused}");
    assert_eq!(std::fs::read(a.socket()).unwrap(), b"notes");
    std::fs::remove_file(a.socket()).unwrap();
    a.up().unwrap();
    a.ok(&["status"]).unwrap();
    a.terminate().unwrap();
    assert!(!a.socket().exists(), "the own one goes with its daemon");
}
