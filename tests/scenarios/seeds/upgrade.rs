//! What is done on purpose costs nobody a call: a host that leaves, a host that restarts, and a new version.

use std::time::{Duration, Instant};

use tests::calls::{Call, Load, Record};
use tests::pln::exit;
use tests::seeds::answering;

use super::{FLOOR, Mesh, READY_DEADLINE, answer, seed, settled};

const PER_SECOND: u32 = 50;
const MOMENT: Duration = Duration::from_secs(2);

fn none_failed(records: &[Record]) {
    assert!(records.len() >= 100, "{} calls are no load", records.len());
    for record in records {
        assert!(record.outcome.is_ok(), "{:?} after {:?}", record.outcome, record.took());
    }
}

#[test]
fn a_host_that_is_told_to_leave_costs_no_call() {
    let Some(mesh) = Mesh::new() else { return };
    let module = answering(&mesh.nodes[0].host, "one").unwrap();
    let hosts = mesh.seed(&module, "who", &[], FLOOR);
    let away = mesh.outsider(&hosts);
    let leaving = mesh.node(hosts.first().unwrap());
    let load = Load::start(away, PER_SECOND, &Call::of("who", "answer", b""));
    std::thread::sleep(MOMENT);
    leaving.ok(&["down"]).unwrap();
    settled(&mesh.without(leaving.host.name()), "who", FLOOR, READY_DEADLINE);
    std::thread::sleep(MOMENT);
    none_failed(&load.stop().unwrap());
}

#[test]
fn a_host_that_ends_by_signal_and_comes_again_costs_no_call() {
    let Some(mut mesh) = Mesh::new() else { return };
    let module = answering(&mesh.nodes[0].host, "one").unwrap();
    let hosts = mesh.seed(&module, "who", &[], FLOOR);
    let load = Load::start(mesh.outsider(&hosts), PER_SECOND, &Call::of("who", "answer", b""));
    std::thread::sleep(MOMENT);
    let restarting = mesh.node_mut(hosts.last().unwrap());
    let took = restarting.terminate().unwrap();
    restarting.up().unwrap();
    eprintln!("it left within {took:?}");
    mesh.settled("who", FLOOR);
    std::thread::sleep(MOMENT);
    none_failed(&load.stop().unwrap());
}

#[test]
fn a_new_version_costs_no_call_and_then_the_old_one_answers_no_more() {
    let Some(mesh) = Mesh::new() else { return };
    let (old, new) = (answering(&mesh.nodes[0].host, "old").unwrap(), answering(&mesh.nodes[0].host, "new").unwrap());
    let hosts = mesh.seed(&old, "who", &[], FLOOR);
    let away = mesh.outsider(&hosts);
    let load = Load::start(away, PER_SECOND, &Call::of("who", "answer", b""));
    std::thread::sleep(MOMENT);
    seed(&mesh.nodes[0], &new, "who", &[]);
    let returned = Instant::now();
    for node in &mesh.nodes {
        for _ in 0..8 {
            assert_eq!(answer(node, "who", "answer", b""), "new", "on {}", node.host.name());
        }
    }
    std::thread::sleep(MOMENT);
    let records = load.stop().unwrap();
    none_failed(&records);
    let (before, after): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.began < returned);
    let answered = |records: &[&Record], text: &[u8]| {
        records.iter().filter(|record| record.outcome.as_ref().is_ok_and(|answer| answer.output == text)).count()
    };
    assert!(answered(&before, b"old") > 0, "the old version never answered");
    assert_eq!(answered(&before, b"old") + answered(&before, b"new"), before.len());
    assert_eq!(answered(&after, b"new"), after.len(), "the old version answered after the command had returned");
}

#[test]
fn a_version_that_cannot_run_leaves_the_present_one_in_place() {
    let Some(mesh) = Mesh::of(["a", "b"]) else { return };
    let good = answering(&mesh.nodes[0].host, "good").unwrap();
    mesh.seed(&good, "who", &[], FLOOR);
    let bad = tests::seeds::written(
        &mesh.nodes[0].host,
        "bad",
        r#"(module (import "extism:host/user" "no_such_thing" (func)) (func (export "answer") (result i32) i32.const 0))"#,
    )
    .unwrap();
    let said = mesh.nodes[0].fails(exit::FAILURE, &["seed", bad.to_str().unwrap(), "who"]).unwrap();
    assert!(said.contains("no_such_thing"), "{said}");
    for node in &mesh.nodes {
        assert_eq!(answer(node, "who", "answer", b""), "good");
    }
}
