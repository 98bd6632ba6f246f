//! A thousand calls that each wait for another seed that waits for a service hold no threads, and where there is no
//! room for more they are refused, not forgotten.

use std::time::Duration;

use tests::calls::{Call, Crowd};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::seeds::example;
use tests::traffic::{Gate, Server, allow_descriptors, exchange};

use super::{Mesh, READY_DEADLINE, answer, ask, relayed, settled};

const CALLS: usize = 1000;
/// As many as the control sockets of three nodes take.
const CALLS_TOO_MANY: usize = 3000;
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
            // A caller that gave up is not this server's trouble.
            let _gone = std::io::copy(&mut &stream, &mut all);
            let _gone = std::io::Write::write_all(&mut &stream, &all);
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
fn chains_beyond_what_fits_are_refused_early_and_the_rest_end_well() {
    let Some(chain) = Chain::new() else { return };
    let crowd = Crowd::start(&chain.nodes(), CALLS_TOO_MANY, &chain.call);
    let settled_down = || {
        let (waiting, ended) = (chain.gate.waiting(), crowd.ended());
        if waiting + ended >= CALLS_TOO_MANY { Ok(()) } else { Err(format!("{waiting} wait, {ended} have ended")) }
    };
    eventually("each waits at the service or was refused", SET_UP, settled_down).unwrap();
    chain.gate.open();
    let (mut answered, mut refused) = (0, 0);
    for record in crowd.join().unwrap() {
        match record.outcome {
            Ok(answer) => {
                assert_eq!(answer.output, b"hi");
                answered += 1;
            }
            // The outer call's own refusal, or its guest that was told that the inner one was refused.
            Err(failure) => {
                let is_refusal = !failure.may_have_run || failure.message.contains("gave no answer");
                assert!(is_refusal, "{failure:?}");
                refused += 1;
            }
        }
    }
    eprintln!("{answered} answered, {refused} refused");
    assert!(answered > 0, "{refused} refused");
    // And then there is room again.
    let settled = settled(&chain.nodes(), "second", 3, READY_DEADLINE);
    assert_eq!(settled.len(), 3);
    let input = relayed(&["pln://seed/second/ask", "pln://service/slow"], "once more");
    for node in &chain.mesh.nodes {
        assert_eq!(answer(node, "first", "ask", &input), "once more");
    }
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
