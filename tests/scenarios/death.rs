//! A machine that dies is known dead soon, and what it provided is had from another.

use std::time::Duration;

use tests::cluster::{TOGETHER_DEADLINE, form};
use tests::lab::{Family, lab_or_skip};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::status::{Status, await_online};
use tests::traffic::{Server, dial, exchange};

use crate::services::connect;

const DEATH_DEADLINE: Duration = Duration::from_secs(3);

#[test]
fn a_killed_node_is_offline_for_every_other_within_seconds() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::Both, ["a", "b", "c", "d"]).unwrap().map(Pln::on);
    form(&mut nodes, &[]).unwrap();
    let [a, b, c, d] = &mut nodes;
    d.kill().unwrap();
    await_online(&[a, b, c], &["a", "b", "c"], DEATH_DEADLINE).unwrap();
    // The root dies like any other.
    a.kill().unwrap();
    await_online(&[b, c], &["b", "c"], DEATH_DEADLINE).unwrap();
}

#[test]
fn a_node_that_says_goodbye_is_known_to_be_off_at_once() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::Both, ["a", "b", "c"]).unwrap().map(Pln::on);
    form(&mut nodes, &[]).unwrap();
    let [a, b, c] = &mut nodes;
    c.terminate().unwrap();
    await_online(&[a, b], &["a", "b"], Duration::from_secs(1)).unwrap();
}

#[test]
fn new_connections_reach_the_other_provider_of_a_shared_name() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::Both, ["a", "b", "c"]).unwrap().map(Pln::on);
    form(&mut nodes, &["--publisher"]).unwrap();
    let [a, b, c] = &mut nodes;
    let says = |name: &'static str| {
        move |mut stream: std::net::TcpStream| {
            // The client may be gone already.
            let _gone = std::io::Write::write_all(&mut stream, name.as_bytes());
        }
    };
    let on_a = Server::tcp(&a.host, 0, says("a")).unwrap();
    let on_b = Server::tcp(&b.host, 0, says("b")).unwrap();
    a.ok(&["serve", &on_a.port.to_string(), "who", "--shared"]).unwrap();
    let known = |node: &Pln, count: usize| {
        let providers = Status::of(node).and_then(|status| status.providers("who")).map_err(|e| format!("{e:#}"))?;
        if providers.len() == count { Ok(()) } else { Err(format!("{providers:?}")) }
    };
    eventually("b knows that the name is shared", TOGETHER_DEADLINE, || known(b, 1)).unwrap();
    b.ok(&["serve", &on_b.port.to_string(), "who"]).unwrap();
    eventually("c knows both", TOGETHER_DEADLINE, || known(c, 2)).unwrap();
    let port = connect(c, "who");
    let ask = || exchange(&mut dial(&c.host, port)?, b"").map(|answer| String::from_utf8_lossy(&answer).into_owned());
    let mut answers = std::collections::BTreeSet::new();
    for _ in 0..40 {
        answers.insert(ask().unwrap());
    }
    assert!(answers.iter().all(|answer| answer == "a" || answer == "b"), "{answers:?}");

    b.kill().unwrap();
    let other = || match ask() {
        Ok(answer) if answer == "a" => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("a new connection reaches a", DEATH_DEADLINE, other).unwrap();
    await_online(&[a, c], &["a", "c"], DEATH_DEADLINE).unwrap();
    for _ in 0..40 {
        assert_eq!(ask().unwrap(), "a");
    }
}
