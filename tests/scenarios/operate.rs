//! What a person does with a running mesh beside reaching services: asks it, sets it, and ends it, by the command line.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use serde_json::Value;
use tests::cluster::{TOGETHER_DEADLINE, form};
use tests::lab::{Family, lab_or_skip};
use tests::patience::eventually;
use tests::pln::{Pln, exit};
use tests::status::{Status, await_online};
use tests::traffic::{Server, dial, http_get, pattern};

use crate::services::connect;

/// What is done after an acknowledged request, by a process that need not wait for anything.
const SOON: Duration = Duration::from_secs(5);

/// The answer of a command whose JSON is one object a line.
fn lines(node: &Pln, args: &[&str]) -> Vec<Value> {
    let printed = node.ok(&[&["--json"], args].concat()).unwrap();
    printed.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{args:?}: {line}"))).collect()
}

#[test]
fn a_mesh_answers_who_stands_why_and_what_happened() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b"]).unwrap().map(Pln::on);
    form(&mut nodes, &["--publisher", "--prop", "role=edge"]).unwrap();
    let [a, b] = &nodes;

    let own = b.json(&["inspect", "b"]).unwrap();
    assert_eq!((&own["kind"], &own["state"]), (&"node".into(), &"me".into()), "{own}");
    let seen = a.json(&["inspect", "b"]).unwrap();
    assert_eq!((&seen["key"], &seen["state"]), (&own["key"], &"online".into()), "{seen}");
    assert_eq!(seen["props"], serde_json::json!({"role": "edge"}), "what the invite said of it");
    a.fails(exit::NOT_FOUND, &["inspect", "nobody"]).unwrap();

    let long = format!("note={}", "x".repeat(2000));
    let said = a.fails(exit::USAGE, &["invite", "--prop", &long]).unwrap();
    assert!(said.contains("fewer or shorter properties"), "{said}");

    b.ok(&["serve", "8080", "web"]).unwrap();
    let provided = || match Status::of(a).and_then(|status| status.providers("web")) {
        Ok(providers) if providers.contains("b") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("a knows what b serves", TOGETHER_DEADLINE, provided).unwrap();
    for (target, kind, word) in [("b", "node", "online"), ("web", "service", "owns web")] {
        let why = a.json(&["why", target]).unwrap();
        let reasons = why["reasons"].as_array().unwrap();
        let is_said = reasons.iter().any(|reason| reason.as_str().unwrap().contains(word));
        assert!(why["kind"] == kind && is_said, "{target}: {why}");
    }

    let events = lines(a, &["events"]);
    let numbers: Vec<_> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    for kind in ["joined", "peer_up"] {
        let is_told = |event: &Value| event["kind"] == kind && event["peer"] == own["key"];
        assert!(events.iter().any(is_told), "a tells no {kind} of b: {events:?}");
    }
    assert!(events.iter().any(|event| event["kind"] == "published"), "a tells of no service: {events:?}");
    assert_eq!(lines(a, &["events", "-n", "1"]).len(), 1);

    let logged = lines(a, &["logs", "-n", "3"]);
    assert_eq!(logged.len(), 3, "{logged:?}");
    assert!(logged.iter().all(|line| line["line"].as_str().is_some_and(|line| !line.is_empty())), "{logged:?}");

    let version = a.json(&["version"]).unwrap();
    assert!(version["version"].as_str().is_some_and(|number| !number.is_empty()), "{version}");
    assert_eq!(version["daemon"]["version"], version["version"], "one binary is both");
}

#[test]
fn a_node_is_set_and_unset_while_it_runs_and_ends_when_told() {
    const PORT: u16 = 9191;
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b"]).unwrap().map(Pln::on);
    form(&mut nodes, &[]).unwrap();
    let [a, b] = &mut nodes;

    assert!(dial(&a.host, PORT).is_err(), "metrics are served that nobody asked for");
    let address = format!("127.0.0.1:{PORT}");
    a.ok(&["set", "http", &address]).unwrap();
    assert_eq!(a.json(&["set", "http"]).unwrap()["http"], address);
    let metrics = String::from_utf8(http_get(&a.host, PORT, "/metrics").unwrap()).unwrap();
    for line in ["pln_nodes{state=\"online\"} 1", "pln_nodes{state=\"offline\"} 0"] {
        assert!(metrics.lines().any(|found| found == line), "no {line} in\n{metrics}");
    }
    a.ok(&["unset", "http"]).unwrap();
    assert!(dial(&a.host, PORT).is_err(), "metrics are served after `unset`");
    assert!(a.json(&["set", "http"]).unwrap()["http"].is_null());

    b.ok(&["down"]).unwrap();
    await_online(&[a], &["a"], Duration::from_secs(1)).unwrap();
    eventually("b's process is gone", SOON, || if b.is_up() { Err("it runs".to_owned()) } else { Ok(()) }).unwrap();
    b.fails(exit::UNREACHABLE, &["status"]).unwrap();
}

#[test]
fn a_download_that_runs_when_its_node_is_told_to_end_is_finished() {
    const HALF: usize = 1 << 20;
    /// Streams that do not end are cut after this; ours does.
    const DRAIN_MAX: Duration = Duration::from_secs(10);
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b"]).unwrap().map(Pln::on);
    form(&mut nodes, &[]).unwrap();
    let [a, b] = &mut nodes;
    let (go_on, told) = mpsc::channel();
    let told = Mutex::new(told);
    let server = Server::tcp(&a.host, 0, move |mut stream| {
        let file = pattern(1, 2 * HALF);
        // A client that is gone shows at the client.
        let _gone = stream.write_all(&file[..HALF]);
        if told.lock().unwrap().recv_timeout(DRAIN_MAX).is_ok() {
            let _gone = stream.write_all(&file[HALF..]);
        }
    })
    .unwrap();
    a.ok(&["serve", &server.port.to_string(), "file"]).unwrap();
    let mut stream = dial(&b.host, connect(b, "file")).unwrap();
    let mut file = vec![0; HALF];
    stream.read_exact(&mut file).unwrap();

    let log = a.log_path();
    let took = std::thread::scope(|scope| {
        let ending = scope.spawn(|| a.terminate());
        let is_stopping = || {
            let log = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
            if log.contains("stopping") { Ok(()) } else { Err("it is not".to_owned()) }
        };
        eventually("a is about to end", SOON, is_stopping).unwrap();
        assert!(!ending.is_finished(), "a did not wait for its stream");
        go_on.send(()).unwrap();
        stream.read_to_end(&mut file).unwrap();
        // Until the client has closed its half too, it might still say something.
        stream.shutdown(Shutdown::Write).unwrap();
        ending.join().unwrap().unwrap()
    });
    assert!(file == pattern(1, 2 * HALF), "{} bytes arrived, of {}", file.len(), 2 * HALF);
    assert!(took < DRAIN_MAX, "a waited {took:?}, longer than its stream ran");
    await_online(&[b], &["b"], Duration::from_secs(1)).unwrap();
}
