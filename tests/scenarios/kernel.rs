//! The kernel's program as a relay: what passes through it is whole, it comes and goes under open streams, and nothing of it
//! is left by a daemon that is killed.

use std::process::{Child, Stdio};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tests::cluster::{TOGETHER_DEADLINE, found, invite, join};
use tests::lab::{Family, Lab, lab_or_skip};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::status::await_online;
use tests::traffic::{Server, dial, http_get, pattern};

use super::circuits::ask;
use super::services::connect;

/// How soon a daemon stands on another rung: it looks each second.
const RUNG_DEADLINE: Duration = Duration::from_secs(10);
const METRICS: u16 = 9090;
const FILE_BYTES: usize = 20_000_000;

/// `a` and `b` on a switch each, and `r` on both, which is their only way: it forwards nothing of its own accord.
struct Between {
    a: Pln,
    b: Pln,
    r: Pln,
    _lab: Lab,
}

impl Between {
    fn new(families: [Family; 2]) -> Option<Self> {
        let mut lab = lab_or_skip()?;
        let [left, right] = families.map(|family| lab.switch(family).unwrap());
        let mut host = |name: &str, switches: &[_]| Pln::on(lab.host(name, switches, 1500).unwrap());
        let (mut a, mut b, mut r) = (host("a", &[left]), host("b", &[right]), host("r", &[left, right]));
        for node in [&a, &b, &r] {
            lab.like_hardware(&node.host).unwrap();
        }
        found(&mut r).unwrap();
        for node in [&mut a, &mut b] {
            join(node, &invite(&r, &["--publisher"]).unwrap()).unwrap();
        }
        await_online(&[&a, &b, &r], &["a", "b", "r"], TOGETHER_DEADLINE).unwrap();
        r.ok(&["set", "http", &format!("127.0.0.1:{METRICS}")]).unwrap();
        Some(Self { a, b, r, _lab: lab })
    }

    /// The rung that `r` stands on.
    fn await_rung(&self, rung: &str) {
        let stands = || {
            let status = self.r.json(&["status"]).map_err(|error| format!("{error:#}"))?;
            let datapath = &status["datapath"];
            if datapath["rung"] == rung { Ok(()) } else { Err(datapath.to_string()) }
        };
        eventually(&format!("it stands on {rung}"), RUNG_DEADLINE, stands).unwrap();
    }

    /// Frames that the kernel of `r` saw and made this of.
    fn seen(&self, reason: &str) -> u64 {
        let metrics = String::from_utf8(http_get(&self.r.host, METRICS, "/metrics").unwrap()).unwrap();
        let series = format!("pln_datapath_frames_total{{reason=\"{reason}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
    }

    /// Whether a program is on any interface of `r`.
    fn programs(&self) -> usize {
        let output = self.r.host.command("ip").args(["-d", "link", "show"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().matches("prog/xdp").count()
    }

    /// Captures what arrives at `a`, which takes the file.
    fn capture(&self) -> Child {
        let mut tcpdump = self.a.host.command("tcpdump");
        tcpdump.args(["-i", "any", "-Q", "in", "-U", "-c", "2000", "-s", "0", "-w"]).arg(self.captured()).arg("udp");
        let tcpdump = tcpdump.stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(1));
        tcpdump
    }

    fn captured(&self) -> std::path::PathBuf {
        self.a.host.dir().join("arrived.pcap")
    }

    /// What tcpdump says of the capture, which it ends.
    fn read(&self, mut capture: Child) -> String {
        let _asked = std::process::Command::new("kill").args(["-INT", &capture.id().to_string()]).status().unwrap();
        capture.wait().unwrap();
        let mut read = std::process::Command::new("tcpdump");
        let output = read.args(["-vv", "-n", "-r"]).arg(self.captured()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

fn file_comes_whole(at: &Between, seed: u64) {
    let file = pattern(seed, FILE_BYTES);
    let expected = Sha256::digest(&file);
    let server = Server::http(&at.b.host, 0, file).unwrap();
    let name = format!("files-{seed}");
    at.b.ok(&["serve", &server.port.to_string(), &name]).unwrap();
    let got = http_get(&at.a.host, connect(&at.a, &name), "/").unwrap();
    assert_eq!((got.len(), Sha256::digest(&got)), (FILE_BYTES, expected));
}

#[test]
fn what_passes_through_the_kernel_is_whole_on_each_rung_and_in_each_family() {
    for family in [Family::V4, Family::V6] {
        let Some(at) = Between::new([family; 2]) else { return };
        for (seed, rung) in [(1, "xdp"), (2, "xdp-generic")] {
            at.r.ok(&["set", "datapath", rung]).unwrap();
            at.await_rung(rung);
            assert_eq!(at.programs(), 2, "one on each side");
            let (before, capture) = (at.seen("forwarded"), at.capture());
            file_comes_whole(&at, seed);
            let forwarded = at.seen("forwarded") - before;
            assert!(forwarded > (FILE_BYTES / 1452) as u64, "{family:?} {rung}: {forwarded} frames");
            let arrived = at.read(capture);
            assert!(arrived.matches("UDP").count() > 1000, "{arrived:.2000}");
            let bad = arrived.lines().find(|line| line.contains("bad udp cksum") || line.contains("bad cksum"));
            assert_eq!(bad, None, "{family:?} {rung}");
            let status = at.r.json(&["status"]).unwrap();
            assert!(status["circuits"]["frames"].as_u64() > Some(forwarded), "{}", status["circuits"]);
        }
        at.r.ok(&["set", "datapath", "socket"]).unwrap();
        at.await_rung("sockets");
        assert_eq!(at.programs(), 0);
    }
}

#[test]
fn what_the_kernel_cannot_do_the_sockets_do() {
    let Some(at) = Between::new([Family::V4, Family::V6]) else { return };
    at.r.ok(&["set", "datapath", "xdp"]).unwrap();
    at.await_rung("xdp");
    file_comes_whole(&at, 3);
    assert!(at.seen("family") > 1000, "it goes on in the other family");
    assert_eq!(at.seen("forwarded"), 0);
}

#[test]
fn the_rung_changes_under_an_open_stream_and_a_killed_relay_leaves_nothing() {
    let Some(mut at) = Between::new([Family::V4; 2]) else { return };
    let echo = Server::tcp_echo(&at.b.host, 0).unwrap();
    at.b.ok(&["serve", &echo.port.to_string(), "echo"]).unwrap();
    let mut stream = dial(&at.a.host, connect(&at.a, "echo")).unwrap();
    for rung in ["xdp", "socket", "xdp-generic", "xdp", "auto"] {
        at.r.ok(&["set", "datapath", rung]).unwrap();
        at.await_rung(if matches!(rung, "socket" | "auto") { "sockets" } else { rung });
        ask(&mut stream, rung.as_bytes());
    }
    at.r.ok(&["set", "datapath", "xdp"]).unwrap();
    for _ in 0..3 {
        at.await_rung("xdp");
        let before = at.seen("forwarded");
        ask(&mut stream, b"through the kernel");
        assert!(at.seen("forwarded") > before);
        at.r.kill().unwrap();
        assert_eq!(at.programs(), 0, "it ends with the process");
        at.r.up().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        ask(&mut stream, b"and again");
    }
}
