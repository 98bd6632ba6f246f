//! Two nodes that cannot send each other a single packet are one mesh all the same, where a third reaches both.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tests::cluster::{TOGETHER_DEADLINE, found, invite, join};
use tests::lab::{Family, Lab, lab_or_skip};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::status::await_online;
use tests::traffic::{Server, dial, http_get, pattern};

use super::services::connect;

/// How soon a stream must go on through another relay: the dead one has to be noticed first.
const SWITCHED_DEADLINE: Duration = Duration::from_secs(6);
/// How soon a straight way is taken that was not there before.
const STRAIGHT_DEADLINE: Duration = Duration::from_secs(30);

/// The nodes `a` and `b`, which drop whatever is for each other, and relays that reach both. `r`, the first, founded.
struct Apart<const N: usize> {
    a: Pln,
    b: Pln,
    relays: [Pln; N],
    _lab: Lab,
}

impl<const N: usize> Apart<N> {
    fn new(relays: [&str; N]) -> Option<Self> {
        let mut lab = lab_or_skip()?;
        let switch = lab.switch(Family::V4).unwrap();
        let mut host = |name: &str| Pln::on(lab.host(name, &[switch], 1500).unwrap());
        let (mut a, mut b, mut relays) = (host("a"), host("b"), relays.map(host));
        a.host.shun(&b.host).unwrap();
        b.host.shun(&a.host).unwrap();
        let (first, others) = relays.split_first_mut().unwrap();
        found(first).unwrap();
        for node in others.iter_mut().chain([&mut a, &mut b]) {
            join(node, &invite(first, &["--publisher"]).unwrap()).unwrap();
        }
        let apart = Self { a, b, relays, _lab: lab };
        apart.together();
        Some(apart)
    }

    fn together(&self) {
        let all: Vec<&Pln> = self.relays.iter().chain([&self.a, &self.b]).collect();
        let names: Vec<&str> = all.iter().map(|node| node.host.name()).collect();
        await_online(&all, &names, TOGETHER_DEADLINE).unwrap();
    }

    /// How `a` reaches `b`, as its status says: the kind of path, and the relay.
    fn path(&self) -> Result<(String, String), String> {
        let nodes = self.a.json(&["status", "nodes"]).map_err(|error| format!("{error:#}"))?;
        let row = nodes.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == "b")).ok_or("no row of b")?;
        let text = |field: &str| row["path"][field].as_str().unwrap_or_default().to_owned();
        Ok((text("kind"), text("via")))
    }

    fn await_path(&self, kind: &str, deadline: Duration) -> String {
        let reached =
            || self.path().and_then(|(is, via)| if is == kind { Ok(via) } else { Err(format!("{is} {via}")) });
        eventually(&format!("b is reached {kind}"), deadline, reached).unwrap().0
    }
}

pub(super) fn ask(stream: &mut std::net::TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).expect("the stream goes on");
    assert_eq!(answer, text);
}

#[test]
fn services_and_files_pass_through_a_relay_that_reads_none_of_it() {
    const LEN: usize = 50_000_000;
    const CANARY: &[u8] = b"the-canary-sings-in-no-capture";
    let Some(apart) = Apart::new(["r"]) else { return };
    let Apart { a, b, relays: [relay], .. } = &apart;
    let via = apart.await_path("relayed", TOGETHER_DEADLINE);
    assert_eq!(via, relay.ok(&["id"]).unwrap().trim());
    let shown = a.ok(&["status"]).unwrap();
    assert!(shown.contains("relayed by r"), "{shown}");

    let echo = Server::tcp_echo(&b.host, 0).unwrap();
    b.ok(&["serve", &echo.port.to_string(), "echo"]).unwrap();
    let port = connect(a, "echo");
    let capture = relay.host.dir().join("relayed.pcap");
    let mut tcpdump = relay.host.command("tcpdump");
    tcpdump.args(["-i", "any", "-U", "-s", "0", "-w"]).arg(&capture);
    let mut tcpdump = tcpdump.stderr(std::process::Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let mut stream = dial(&a.host, port).unwrap();
    for _ in 0..50 {
        ask(&mut stream, CANARY);
    }
    std::thread::sleep(Duration::from_millis(500));
    let _asked = std::process::Command::new("kill").args(["-INT", &tcpdump.id().to_string()]).status().unwrap();
    tcpdump.wait().unwrap();
    let captured = std::fs::read(&capture).unwrap();
    // What went through was seen, in frames: or the absence below would mean nothing.
    assert!(captured.len() > 50 * 2 * CANARY.len(), "{} bytes captured", captured.len());
    assert!(!captured.windows(CANARY.len()).any(|window| window == CANARY), "the relay could read it");

    let file = pattern(3, LEN);
    let expected = Sha256::digest(&file);
    let server = Server::http(&b.host, 0, file).unwrap();
    b.ok(&["serve", &server.port.to_string(), "files"]).unwrap();
    let files = connect(a, "files");
    let got = http_get(&a.host, files, "/").unwrap();
    assert_eq!((got.len(), Sha256::digest(&got)), (LEN, expected));
    let (kind, _) = apart.path().unwrap();
    assert_eq!(kind, "relayed");
    let metrics = relay.json(&["status"]).unwrap();
    assert!(metrics["circuits"]["hops"].as_u64() >= Some(1), "{}", metrics["circuits"]);
}

#[test]
fn a_stream_outlives_its_relay_where_there_is_another_and_turns_straight_when_it_can() {
    let Some(mut apart) = Apart::new(["r", "q"]) else { return };
    let via = apart.await_path("relayed", TOGETHER_DEADLINE);
    let echo = Server::tcp_echo(&apart.b.host, 0).unwrap();
    apart.b.ok(&["serve", &echo.port.to_string(), "echo"]).unwrap();
    let mut stream = dial(&apart.a.host, connect(&apart.a, "echo")).unwrap();
    ask(&mut stream, b"before");
    let dead = apart.relays.iter().position(|relay| relay.ok(&["id"]).unwrap().trim() == via).unwrap();
    apart.relays[dead].kill().unwrap();
    stream.set_read_timeout(Some(SWITCHED_DEADLINE)).unwrap();
    ask(&mut stream, b"through the other");
    assert_ne!(apart.await_path("relayed", SWITCHED_DEADLINE), via);
    apart.relays[dead].up().unwrap();
    apart.together();

    // The way opens under the stream.
    apart.a.host.reach(&apart.b.host).unwrap();
    apart.b.host.reach(&apart.a.host).unwrap();
    apart.await_path("direct", STRAIGHT_DEADLINE);
    ask(&mut stream, b"straight");
    // And closes again.
    apart.a.host.shun(&apart.b.host).unwrap();
    apart.b.host.shun(&apart.a.host).unwrap();
    ask(&mut stream, b"around again");
    apart.await_path("relayed", SWITCHED_DEADLINE);
}

#[test]
fn a_node_that_is_told_not_to_relays_nothing() {
    let Some(apart) = Apart::new(["r"]) else { return };
    apart.await_path("relayed", TOGETHER_DEADLINE);
    let [relay] = &apart.relays;
    relay.ok(&["set", "relay", "off"]).unwrap();
    let gone = || {
        let status = relay.json(&["status"]).map_err(|error| format!("{error:#}"))?;
        if status["circuits"]["hops"] == 0 { Ok(()) } else { Err(status["circuits"].to_string()) }
    };
    eventually("nothing passes any more", SWITCHED_DEADLINE, gone).unwrap();
    let offline = || {
        let (kind, _) = apart.path()?;
        let nodes = apart.a.json(&["status", "nodes"]).map_err(|error| format!("{error:#}"))?;
        let row = nodes.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == "b")).ok_or("no row")?;
        // Others vouch for it still.
        if row["hops"] == 2 { Ok(()) } else { Err(format!("{kind}, {} hops", row["hops"])) }
    };
    eventually("a reaches b no more", TOGETHER_DEADLINE, offline).unwrap();
    relay.ok(&["unset", "relay"]).unwrap();
    apart.await_path("relayed", Duration::from_secs(60));
}
