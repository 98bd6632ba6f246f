//! A thousand calls that each wait for another seed that waits for a service hold no threads.

use std::time::Duration;

use tests::calls::{Call, Crowd};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::seeds::example;
use tests::traffic::{Gate, Server, allow_descriptors, exchange};

use super::{Mesh, ask, relayed};

const CALLS: usize = 1000;
/// Setting up a thousand chains takes as long as a loaded machine takes.
const SET_UP: Duration = Duration::from_secs(30);

/// A service that answers each connection when the gate opens, and two relays before it.
struct Chain {
    mesh: Mesh<3>,
    gate: Gate,
    _server: Server,
    call: Call,
}

impl Chain {
    fn new() -> Option<Self> {
        // The daemons inherit it.
        allow_descriptors(16 * CALLS as u64).unwrap();
        let mesh = Mesh::of(["a", "b", "c"])?;
        let gate = Gate::default();
        let before = gate.clone();
        let server = Server::tcp(&mesh.nodes[2].host, 0, move |stream| {
            before.pass();
            let mut all = Vec::new();
            let asked = std::io::copy(&mut &stream, &mut all);
            let answered = std::io::Write::write_all(&mut &stream, &all);
            // A failed test wants to know whether it was the service that was not heard.
            if asked.is_err() || answered.is_err() || all.is_empty() {
                eprintln!("the service: {asked:?}, {answered:?}");
            }
        })
        .unwrap();
        mesh.nodes[2].ok(&["serve", &server.port.to_string(), "slow"]).unwrap();
        mesh.seed(&example("relay"), "first", &["--everywhere", "--timeout", "50s"], 3);
        mesh.seed(&example("relay"), "second", &["--everywhere", "--timeout", "49s"], 3);
        let call = Call::of("first", "ask", &relayed(&["pln://seed/second/ask", "pln://service/slow"], "hi"));
        Some(Self { mesh, gate, _server: server, call })
    }

    fn nodes(&self) -> Vec<&Pln> {
        self.mesh.nodes.iter().collect()
    }

    fn threads(&self) -> Vec<usize> {
        self.mesh.nodes.iter().map(|node| node.threads().unwrap()).collect()
    }
}

#[test]
fn a_thousand_calls_that_wait_in_chains_hold_no_threads() {
    let Some(chain) = Chain::new() else { return };
    // Every thread that a call may start for good is there after these.
    let few = Crowd::start(&chain.nodes(), 30, &chain.call);
    eventually("thirty wait", SET_UP, || waiting(&chain.gate, 30)).unwrap();
    let before = chain.threads();
    let crowd = Crowd::start(&chain.nodes(), CALLS, &chain.call);
    eventually("all wait at the service", SET_UP, || waiting(&chain.gate, CALLS + 30)).unwrap();
    assert_eq!(chain.threads(), before, "threads before and with a thousand calls that wait");
    assert_eq!(crowd.ended(), 0);
    // What waits hinders no other.
    for node in &chain.mesh.nodes {
        node.ok(&["status"]).unwrap();
    }
    chain.gate.open();
    for record in few.join().unwrap().into_iter().chain(crowd.join().unwrap()) {
        assert_eq!(record.outcome.map(|answer| answer.output), Ok(b"hi".to_vec()));
    }
}

fn waiting(gate: &Gate, count: usize) -> Result<(), String> {
    let waiting = gate.waiting();
    if waiting >= count { Ok(()) } else { Err(format!("{waiting} of {count}")) }
}

#[test]
fn a_service_that_never_answers_ends_a_chain_by_its_deadline() {
    let Some(mesh) = Mesh::of(["a", "b"]) else { return };
    let gate = Gate::default();
    let before = gate.clone();
    let server = Server::tcp(&mesh.nodes[1].host, 0, move |mut stream| {
        before.pass();
        let _gone = exchange(&mut stream, b"");
    })
    .unwrap();
    mesh.nodes[1].ok(&["serve", &server.port.to_string(), "silent"]).unwrap();
    mesh.seed(&example("relay"), "relay", &["--timeout", "1s"], 2);
    let input = relayed(&["pln://service/silent"], "");
    let failure = ask(&mesh.nodes[0], "relay", "ask", &input).unwrap_err();
    gate.open();
    assert!(failure.message.contains("time limit of 1 s"), "{failure:?}");
}
