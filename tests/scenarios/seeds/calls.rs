//! The examples answer, called from a node that does not host them: in every language, small and large, and through
//! each other.

use std::collections::BTreeSet;

use tests::calls::{Call, Caller};
use tests::pln::Pln;
use tests::pln::exit;
use tests::seeds::{example, example_in_go};
use tests::status::Status;
use tests::traffic::{Server, pattern};

use super::{FLOOR, Mesh, answer, ask, relayed, seed, settled};

const MIB: usize = 1 << 20;
/// Calls over which two hosts are sure to have two each, nearly: the odds against are one in 10^5.
const DRAWS: usize = 24;

fn key_of(node: &Pln) -> String {
    node.json(&["inspect", node.host.name()]).unwrap()["key"].as_str().unwrap().to_owned()
}

#[test]
fn a_seed_in_rust_answers_on_every_node_by_the_command_line() {
    let Some(mesh) = Mesh::new() else { return };
    let hosts = mesh.seed(&example("hello"), "hello", &[], FLOOR);
    let away = mesh.outsider(&hosts);
    for node in &mesh.nodes {
        // The output as it is, without a line's end.
        let output = node.run(&["call", "hello", "greet", "Ada"]).unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"Hello, Ada!"[..]), "{output:?}");
    }
    let bytes = pattern(3, 64 * 1024);
    let output = away.run_with(&["call", "hello", "echo", "-"], &bytes).unwrap();
    assert!(output.status.success() && output.stdout == bytes, "{:?}", output.status);

    // Nothing outlives a call, and nobody draws another's numbers.
    for _ in 0..3 {
        assert_eq!(answer(away, "hello", "count", b""), "1");
    }
    assert_ne!(answer(away, "hello", "random", b""), answer(away, "hello", "random", b""));

    let said = away.fails(exit::NOT_FOUND, &["call", "hello", "sing"]).unwrap();
    assert!(said.contains("no function sing"), "{said}");
    let said = away.fails(exit::NOT_FOUND, &["call", "nobody", "greet"]).unwrap();
    assert!(said.contains("nobody"), "{said}");
}

#[test]
fn a_seed_knows_who_calls_and_its_host_logs_what_it_says() {
    let Some(mesh) = Mesh::new() else { return };
    let hosts = mesh.seed(&example("hello"), "hello", &[], FLOOR);
    let away = mesh.outsider(&hosts);
    let info: serde_json::Value = serde_json::from_str(&answer(away, "hello", "whoami", b"")).unwrap();
    assert_eq!(info["peerKey"], key_of(away), "{info}");
    assert!(info["attributes"].is_object(), "{info}");
    assert!(info["deadlineUnixMs"].as_u64().is_some_and(|ms| ms > 1_700_000_000_000), "{info}");

    let served_by = ask(away, "hello", "note", b"a word for the log").unwrap().served_by;
    let host = mesh.nodes.iter().find(|node| key_of(node) == served_by).unwrap();
    assert!(hosts.contains(host.host.name()), "{served_by} answered, and {hosts:?} host it");
    let logged = host.ok(&["logs", "-n", "20"]).unwrap();
    let times = logged.matches("a word for the log").count();
    assert!(times >= 2, "Extism's and Pollen's way of logging both end in the log: {logged}");
}

#[test]
fn bodies_of_sixteen_mebibytes_pass_both_ways_whole() {
    let Some(mesh) = Mesh::new() else { return };
    let flags = ["--memory", "128MiB"];
    let mut seeds = vec![("hello", example("hello")), ("echo", example("echo"))];
    seeds.extend(example_in_go().map(|module| ("hello-go", module)));
    for (name, module) in seeds {
        let hosts = mesh.seed(&module, name, &flags, FLOOR);
        let away = mesh.outsider(&hosts);
        for len in [0, 1, 7, 9, MIB, 16 * MIB] {
            let bytes = pattern(len as u64, len);
            let output = ask(away, name, "echo", &bytes).unwrap_or_else(|f| panic!("{name}, {len}: {f:?}")).output;
            assert!(output == bytes, "{name}: {} of {len} bytes, or others", output.len());
        }
    }
}

#[test]
fn a_seed_in_go_answers_with_and_without_an_image() {
    let Some(module) = example_in_go() else { return };
    let Some(mesh) = Mesh::new() else { return };
    for (name, flags) in [("plain", &["--memory", "64MiB"][..]), ("frozen", &["--memory", "64MiB", "--image"][..])] {
        let hosts = mesh.seed(&module, name, flags, FLOOR);
        let away = mesh.outsider(&hosts);
        assert_eq!(answer(away, name, "greet", b"Ada"), "Hello, Ada, from Go!");
        assert_eq!(answer(away, name, "find", b"word-4095"), "4095");
        let failure = ask(away, name, "find", b"no-word").unwrap_err();
        assert!(failure.message.contains("is not in the index"), "{failure:?}");

        let host = ask(away, name, "random", b"").unwrap().served_by;
        let mut draws = BTreeSet::new();
        let mut numbers = BTreeSet::new();
        // Each host takes an image of its own, so only draws of one host are alike.
        let of_one_host = (0..DRAWS).map(|_| ask(away, name, "random", b"").unwrap()).filter(|a| a.served_by == host);
        for answer in of_one_host {
            let output = String::from_utf8(answer.output).unwrap();
            let (number, bytes) = output.split_once(' ').unwrap();
            numbers.insert(number.to_owned());
            assert!(draws.insert(bytes.to_owned()), "crypto/rand gave {bytes} twice");
        }
        assert!(draws.len() > 1, "{host} answered {} of {DRAWS} calls", draws.len());
        assert_eq!(numbers.len() == 1, name == "frozen", "math/rand: {numbers:?}");
    }
}

#[test]
fn seeds_ask_seeds_and_services_and_hand_their_callers_on() {
    let Some(mesh) = Mesh::new() else { return };
    let hosts = mesh.seed(&example("relay"), "relay", &["--timeout", "20s"], FLOOR);
    mesh.seed(&example("hello"), "hello", &[], FLOOR);
    // Another limit, another version: two names of one version would have their replicas in common.
    mesh.seed(&example("relay"), "next", &["--timeout", "21s"], FLOOR);
    mesh.seed(&example("echo"), "echo", &[], FLOOR);
    let away = mesh.outsider(&hosts);
    let server = Server::tcp_echo(&mesh.nodes[1].host, 0).unwrap();
    mesh.nodes[1].ok(&["serve", &server.port.to_string(), "mirror"]).unwrap();

    let greeting = relayed(&["pln://seed/hello/greet"], "Ada");
    assert_eq!(answer(away, "relay", "ask", &greeting), "Hello, Ada!");
    assert_eq!(answer(away, "relay", "hand_over", &greeting), "Hello, Ada!");
    assert_eq!(answer(away, "relay", "twice", &greeting), "Hello, Ada!\nHello, Ada!");
    let far = relayed(&["pln://seed/next/ask", "pln://service/mirror"], "anyone?");
    let known = || ask(away, "relay", "ask", &far).map_err(|failure| format!("{failure:?}"));
    let (said, _) = tests::patience::eventually("the service is known", super::READY_DEADLINE, known).unwrap();
    assert_eq!(said.output, b"anyone?");
    assert_eq!(answer(away, "relay", "ask", &relayed(&["pln://seed/echo/echo"], "")), "", "nothing is an answer too");
    let circle = relayed(&["pln://seed/next/ask", "pln://seed/relay/ask", "pln://seed/hello/greet"], "Ada");
    ask(away, "relay", "ask", &circle).unwrap_err();
    let failure = ask(away, "relay", "ask", &relayed(&["pln://seed/nobody/greet"], "")).unwrap_err();
    assert!(failure.message.contains("gave no answer"), "{failure:?}");

    // Whoever called first is who calls, as far as it is proved: without that the node in between is.
    let whoami = answer(away, "relay", "ask", &relayed(&["pln://seed/hello/whoami"], ""));
    let caller: serde_json::Value = serde_json::from_str(&whoami).unwrap();
    assert!(mesh.nodes.iter().any(|node| caller["peerKey"] == key_of(node)), "{caller}");

    if let Some(module) = example_in_go() {
        mesh.seed(&module, "in-go", &["--memory", "64MiB"], FLOOR);
        assert_eq!(answer(away, "in-go", "ask", &greeting), "Hello, Ada!");
    }
}

#[test]
fn a_seed_is_called_by_its_hash_and_gone_when_it_is_unseeded() {
    let Some(mesh) = Mesh::new() else { return };
    let published = mesh.nodes[0].json(&["seed", example("hello").to_str().unwrap()]).unwrap();
    assert_eq!(published["name"], "hello", "named after its file: {published}");
    let hash = published["module"].as_str().unwrap();
    let hosts = mesh.settled("hello", FLOOR);
    let away = mesh.outsider(&hosts);
    assert_eq!(answer(away, hash, "greet", b"Ada"), "Hello, Ada!");
    assert_eq!(answer(away, &hash[..12], "greet", b"Ada"), "Hello, Ada!");

    // Once the command has returned it is gone from every node, without another try.
    let unseeded = mesh.nodes[0].json(&["unseed", "hello"]).unwrap();
    assert_eq!(unseeded["still_served_by"], serde_json::json!([]), "{unseeded}");
    for node in &mesh.nodes {
        for target in ["hello", hash] {
            let called = Caller::on(node).call(&Call::once(target, "greet", b"Ada")).unwrap();
            assert_eq!(called.expect_err("it is gone").code, "not_found", "{target} from {}", node.host.name());
        }
        assert!(Status::of(node).unwrap().seed("hello").unwrap().is_none());
    }
    away.fails(exit::NOT_FOUND, &["call", "hello", "greet", "Ada"]).unwrap();
}

#[test]
fn everywhere_is_every_node_also_one_that_comes_later() {
    let Some(mut mesh) = Mesh::of(["a", "b", "c"]) else { return };
    mesh.nodes[2].terminate().unwrap();
    seed(&mesh.nodes[0], &example("hello"), "hello", &["--everywhere"]);
    settled(&[&mesh.nodes[0], &mesh.nodes[1]], "hello", 2, super::READY_DEADLINE);
    mesh.nodes[2].up().unwrap();
    let hosts = mesh.settled("hello", 3);
    assert_eq!(hosts.len(), 3);
}

#[test]
fn what_cannot_run_is_refused_when_it_is_seeded_with_its_reason() {
    let Some(mesh) = Mesh::of(["a"]) else { return };
    let [node] = &mesh.nodes;
    let strange = r#"(module (import "env" "launch_rocket" (func)) (func (export "f") (result i32) i32.const 0))"#;
    let path = tests::seeds::written(&node.host, "strange", strange).unwrap();
    let said = node.fails(exit::FAILURE, &["seed", path.to_str().unwrap()]).unwrap();
    assert!(said.contains("launch_rocket"), "{said}");
    std::fs::write(node.host.dir().join("broken.wasm"), b"\0asm and then nothing").unwrap();
    node.fails(exit::FAILURE, &["seed", node.host.dir().join("broken.wasm").to_str().unwrap()]).unwrap();
    assert!(Status::of(node).unwrap().seed("strange").unwrap().is_none());
}
