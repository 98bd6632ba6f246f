//! Seeds that misbehave are stopped with the limit's name, and whoever calls next finds nothing of it.

use tests::calls::{Call, Crowd};
use tests::pln::Pln;
use tests::seeds::example;

use super::{FLOOR, Mesh, answer, ask};

/// Each way to misbehave, and what the failure must say.
const WAYS: &[(&str, &str)] = &[
    ("spin", "time limit"),
    ("allocate", "memory limit"),
    ("hoard", "limit of 128 MiB"),
    ("recurse", "stack limit"),
    ("trap", "trap"),
    ("divide", "divi"),
    ("outside", "out of bounds"),
    ("fail", "it failed on purpose"),
    ("huge", "limit"),
    ("circle", "the circle was cut"),
    ("chase", "tail call"),
    ("garble", "tail call"),
];

/// Published with the name that it calls itself by.
fn misbehave(mesh: &Mesh) -> Vec<&Pln> {
    let hosts = mesh.seed(&example("misbehave"), "misbehave", &["--timeout", "1s", "--tail-calls"], FLOOR);
    // From a node that does not host it, and from one that does.
    vec![mesh.outsider(&hosts), mesh.node(hosts.first().unwrap())]
}

#[test]
fn each_way_to_misbehave_ends_with_its_name_and_leaves_nothing() {
    let Some(mesh) = Mesh::new() else { return };
    for node in misbehave(&mesh) {
        for (function, word) in WAYS {
            let failure = ask(node, "misbehave", function, b"").unwrap_err();
            assert!(failure.message.contains(word), "{function}: {failure:?}");
            assert!(failure.may_have_run, "{function} did run: {failure:?}");
            // Idle nodes give the slot that was used last: the next calls are from the same one.
            for _ in 0..4 {
                assert_eq!(answer(node, "misbehave", "fine", b""), "fine", "after {function}");
            }
        }
    }
}

#[test]
fn an_answer_that_lies_nowhere_is_none() {
    let Some(mesh) = Mesh::new() else { return };
    for node in misbehave(&mesh) {
        // As Extism has it: what is no block of its memory is not set as output.
        assert_eq!(answer(node, "misbehave", "liar", b""), "");
    }
}

#[test]
fn a_circle_is_cut_by_name_in_the_log_of_its_host() {
    let Some(mesh) = Mesh::new() else { return };
    let nodes = misbehave(&mesh);
    ask(nodes[0], "misbehave", "circle", b"").unwrap_err();
    let logs: String = mesh.nodes.iter().map(|node| node.ok(&["logs", "-n", "200"]).unwrap()).collect();
    assert!(logs.contains("leads back to a seed"), "no log says why");
}

#[test]
fn bodies_over_the_limit_are_refused_by_their_size() {
    const OVER: usize = 33 << 20;
    let Some(mesh) = Mesh::new() else { return };
    mesh.seed(&example("hello"), "hello", &["--memory", "256MiB"], FLOOR);
    let output = mesh.nodes[0].run_with(&["call", "hello", "echo", "-"], &vec![7; OVER]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("32 MiB"), "{:?} {said}", output.status);
    assert_eq!(answer(&mesh.nodes[0], "hello", "greet", b"Ada"), "Hello, Ada!");
}

#[test]
fn memory_that_a_seed_was_not_given_is_not_had_and_what_it_was_given_is() {
    let Some(mesh) = Mesh::new() else { return };
    let bytes = vec![1; 12 << 20];
    mesh.seed(&example("hello"), "small", &["--memory", "8MiB"], FLOOR);
    let failure = ask(&mesh.nodes[0], "small", "echo", &bytes).unwrap_err();
    assert!(failure.message.contains("memory limit of 8 MiB"), "{failure:?}");
    mesh.seed(&example("hello"), "large", &["--memory", "64MiB"], FLOOR);
    assert!(ask(&mesh.nodes[0], "large", "echo", &bytes).is_ok_and(|answer| answer.output == bytes));
}

#[test]
fn many_that_spin_at_once_hinder_neither_others_nor_the_mesh() {
    const SPINNERS: usize = 64;
    let Some(mesh) = Mesh::new() else { return };
    let nodes = misbehave(&mesh);
    mesh.seed(&example("hello"), "hello", &[], FLOOR);
    let crowd = Crowd::start(&nodes, SPINNERS, &Call::of("misbehave", "spin", b""));
    // Threads are shared with those that spin, so this is slower than it is otherwise, and it comes.
    for node in &mesh.nodes {
        assert_eq!(answer(node, "hello", "greet", b"Ada"), "Hello, Ada!");
        node.ok(&["status"]).unwrap();
    }
    for record in crowd.join().unwrap() {
        let failure = record.outcome.unwrap_err();
        assert!(failure.message.contains("time limit") || !failure.may_have_run, "{failure:?}");
    }
    assert_eq!(answer(nodes[0], "misbehave", "fine", b""), "fine");
}
