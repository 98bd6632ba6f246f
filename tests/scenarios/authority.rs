//! Who may do what, at an operator's word: denying cuts at once, lasts, and is lifted; granting takes effect as it is said.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use tests::cluster::{TOGETHER_DEADLINE, form, invite, join};
use tests::lab::{Family, lab_or_skip};
use tests::patience::eventually;
use tests::pln::{Pln, exit};
use tests::status::{Status, await_condition, await_online};
use tests::traffic::{Server, dial, exchange};

use super::services::connect;

/// How soon a denial must have cut what is open, on nodes that are connected.
const CUT_WITHIN: Duration = Duration::from_secs(2);

fn key(node: &Pln) -> String {
    node.ok(&["id"]).unwrap().trim().to_owned()
}

/// One word through a stream and back, which stays open.
fn echoed(stream: &mut std::net::TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

/// Waits for the end of a stream that was open.
fn ended(stream: &mut std::net::TcpStream, within: Duration) -> Duration {
    let begun = Instant::now();
    stream.set_read_timeout(Some(within)).unwrap();
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("{other:?} after {:?}", begun.elapsed()),
    }
    begun.elapsed()
}

#[test]
fn a_denied_member_is_cut_off_everywhere_with_all_it_admitted_and_comes_back_when_allowed() {
    let Some(mut lab) = lab_or_skip() else { return };
    let [mut a, mut b, mut c, mut d] = lab.hosts(Family::Both, ["a", "b", "c", "d"]).unwrap().map(Pln::on);
    tests::cluster::found(&mut a).unwrap();
    join(&mut b, &invite(&a, &["--admin"]).unwrap()).unwrap();
    join(&mut c, &invite(&a, &["--publisher"]).unwrap()).unwrap();
    await_online(&[&a, &b, &c], &["a", "b", "c"], TOGETHER_DEADLINE).unwrap();
    join(&mut d, &invite(&b, &["--publisher"]).unwrap()).unwrap();
    await_online(&[&a, &b, &c, &d], &["a", "b", "c", "d"], TOGETHER_DEADLINE).unwrap();

    // A stream of the denied one's, and one of a member that it admitted, at a third node that is told by gossip.
    let server = Server::tcp_echo(&c.host, 0).unwrap();
    c.ok(&["serve", &server.port.to_string(), "echo"]).unwrap();
    let mut streams = [&b, &d].map(|node| dial(&node.host, connect(node, "echo")).unwrap());
    for stream in &mut streams {
        echoed(stream);
    }
    let id = key(&b);
    let said = a.json(&["deny", "b"]).unwrap();
    assert_eq!((said["key"].as_str(), said["name"].as_str()), (Some(id.as_str()), Some("b")));
    for stream in &mut streams {
        let after = ended(stream, CUT_WITHIN);
        assert!(after < CUT_WITHIN, "cut after {after:?}");
    }
    await_online(&[&a, &c], &["a", "c"], CUT_WITHIN).unwrap();
    let shown = a.ok(&["status", "--include-offline"]).unwrap();
    assert!(shown.contains("denied by a") && shown.contains(&id[..8]), "{shown}");
    let events = a.ok(&["events"]).unwrap();
    assert!(events.contains("is denied, by this node"), "{events}");

    // Both that are out are told what happened, not that their network fails.
    for node in [&b, &d] {
        await_condition(node, "not_member", &["denied"], TOGETHER_DEADLINE).unwrap();
    }

    // It lasts: over everybody's restart, and while only those who heard it from others are up.
    for node in [&mut a, &mut b, &mut c, &mut d] {
        node.terminate().unwrap();
    }
    c.up().unwrap();
    b.up().unwrap();
    d.up().unwrap();
    std::thread::sleep(Duration::from_secs(5));
    await_online(&[&c], &["c"], Duration::from_secs(1)).unwrap();
    let why = c.ok(&["why", &id]).unwrap();
    assert!(why.contains("denied"), "{why}");
    a.up().unwrap();
    await_online(&[&a, &c], &["a", "c"], TOGETHER_DEADLINE).unwrap();

    // Only whoever said it lifts it, and then all is as before.
    let start = &id[..12];
    let said = c.fails(exit::DENIED, &["allow", start]).unwrap();
    assert!(said.contains("admin"), "{said}");
    a.ok(&["allow", start]).unwrap();
    await_online(&[&a, &b, &c, &d], &["a", "b", "c", "d"], TOGETHER_DEADLINE).unwrap();
    for node in [&b, &d] {
        let mut stream = dial(&node.host, connect(node, "echo")).unwrap();
        assert_eq!(exchange(&mut stream, b"again").unwrap(), b"again");
    }
}

#[test]
fn a_grant_holds_at_once_and_what_it_gave_an_end_ends_then() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b"]).unwrap().map(Pln::on);
    form(&mut nodes, &[]).unwrap();
    let [a, b] = &nodes;
    let said = b.fails(exit::DENIED, &["serve", "8080", "api"]).unwrap();
    assert!(said.contains("publisher"), "{said}");
    a.ok(&["grant", "b", "--publisher", "--prop", "site=attic"]).unwrap();
    let served = || {
        b.run(&["serve", "8080", "api"])
            .ok()
            .filter(|output| output.status.success())
            .ok_or_else(|| String::from("not yet"))
    };
    eventually("it may publish", CUT_WITHIN, served).unwrap();
    let nodes_seen = a.json(&["status", "nodes"]).unwrap();
    let row = nodes_seen.as_array().unwrap().iter().find(|row| row["name"] == "b").unwrap();
    assert_eq!((row["tier"].as_str(), row["props"]["site"].as_str()), (Some("publisher"), Some("attic")));

    // Down again: what it published counts no more, on the connection that stays.
    a.ok(&["grant", "b", "--leaf"]).unwrap();
    let gone = || Status::of(a).and_then(|status| status.services()).map_err(|error| format!("{error:#}"));
    eventually("what a leaf says of services does not count", CUT_WITHIN, || {
        gone().and_then(|services| if services.is_empty() { Ok(()) } else { Err(format!("{services:?}")) })
    })
    .unwrap();
    await_online(&[a, b], &["a", "b"], CUT_WITHIN).unwrap();

    let server = Server::tcp_echo(&a.host, 0).unwrap();
    a.ok(&["serve", &server.port.to_string(), "echo"]).unwrap();
    let mut stream = dial(&b.host, connect(b, "echo")).unwrap();
    echoed(&mut stream);
    let begun = Instant::now();
    a.ok(&["grant", "b", "--expire-after", "3s"]).unwrap();
    ended(&mut stream, Duration::from_secs(6));
    let after = begun.elapsed();
    assert!((Duration::from_millis(2500)..Duration::from_secs(5)).contains(&after), "after {after:?}");
    let shown = a.ok(&["status", "--include-offline"]).unwrap();
    assert!(shown.contains("expired 20"), "{shown}");
    a.ok(&["grant", &key(b)[..12], "--no-expiry"]).unwrap();
    await_online(&[a, b], &["a", "b"], TOGETHER_DEADLINE).unwrap();
}

#[test]
fn whoever_may_not_is_told_who_could() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["amsterdam", "leaf", "other"]).unwrap().map(Pln::on);
    form(&mut nodes, &[]).unwrap();
    let [founder, leaf, _] = &nodes;
    for command in [&["deny", "other"][..], &["retire", "other"], &["allow", "other"], &["grant", "other", "--leaf"]] {
        let said = leaf.fails(exit::DENIED, command).unwrap();
        assert!(said.contains("admin") && said.contains("amsterdam"), "{command:?}: {said}");
    }
    let said = founder.fails(exit::USAGE, &["deny", "amsterdam"]).unwrap();
    assert!(said.contains("itself"), "{said}");
    founder.fails(exit::NOT_FOUND, &["deny", "nobody"]).unwrap();
    founder.fails(exit::NOT_FOUND, &["allow", &"ab".repeat(32)]).unwrap();
    let said = founder.fails(exit::USAGE, &["grant", "leaf"]).unwrap();
    assert!(said.contains("--publisher"), "{said}");
    // A machine that is gone for good: off the members, and a condition of nobody's.
    founder.ok(&["retire", "other"]).unwrap();
    await_online(&[founder, leaf], &["amsterdam", "leaf"], CUT_WITHIN).unwrap();
    let shown = founder.ok(&["status", "--include-offline"]).unwrap();
    assert!(shown.contains("retired by amsterdam"), "{shown}");
}
