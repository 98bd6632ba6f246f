//! Machines become one mesh by `init`, `invite` and `join`, and by nothing else.

use std::time::Duration;

use tests::cluster::{self, TOGETHER_DEADLINE, found, invite, join};
use tests::lab::{Family, lab_or_skip};
use tests::pln::{Pln, exit};
use tests::status::await_online;

#[test]
fn three_machines_see_each_other_soon_after_the_last_join() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::Both, ["a", "b", "c"]).unwrap().map(Pln::on);
    cluster::form(&mut nodes, &[]).unwrap();
}

#[test]
fn three_machines_find_together_on_a_switch_that_has_only_ipv6() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V6, ["a", "b", "c"]).unwrap().map(Pln::on);
    cluster::form(&mut nodes, &[]).unwrap();
}

#[test]
fn an_invite_is_redeemed_at_another_admin_while_its_issuer_is_off() {
    let Some(mut lab) = lab_or_skip() else { return };
    let [a, b, c] = lab.hosts(Family::Both, ["a", "b", "c"]).unwrap().map(Pln::on);
    let mut pair = [a, b];
    cluster::form(&mut pair, &["--admin"]).unwrap();
    let [mut a, b] = pair;
    let mut c = c;
    let token = invite(&a, &[]).unwrap();
    a.terminate().unwrap();
    join(&mut c, &token).unwrap();
    await_online(&[&b, &c], &["b", "c"], TOGETHER_DEADLINE).unwrap();
    a.up().unwrap();
    await_online(&[&a, &b, &c], &["a", "b", "c"], TOGETHER_DEADLINE).unwrap();
}

#[test]
fn a_token_that_is_no_good_is_refused_with_a_sentence_that_says_why() {
    let Some(mut lab) = lab_or_skip() else { return };
    let [a, b, c] = lab.hosts(Family::V4, ["a", "b", "c"]).unwrap().map(Pln::on);
    let (mut a, mut b) = (a, b);
    found(&mut a).unwrap();

    let used = invite(&a, &[]).unwrap();
    join(&mut b, &used).unwrap();
    let said = refused(&c, &used);
    assert!(said.contains("already") || said.contains("redeemed"), "reused: {said}");

    let expired = invite(&a, &["--ttl", "1s"]).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let said = refused(&c, &expired);
    assert!(said.contains("expired"), "expired: {said}");

    let good = invite(&a, &[]).unwrap();
    let mut tampered = good.clone().into_bytes();
    let middle = tampered.len() / 2;
    tampered[middle] = if tampered[middle] == b'A' { b'B' } else { b'A' };
    let said = refused(&c, &String::from_utf8(tampered).unwrap());
    assert!(!said.contains("expired") && !said.contains("already"), "tampered: {said}");
    let said = refused(&c, "not-a-token");
    assert!(said.contains("token"), "no token at all: {said}");

    let other = "00".repeat(32);
    let bound = invite(&a, &["--subject", &other]).unwrap();
    let said = refused(&c, &bound);
    assert!(said.contains("another") || said.contains("subject") || said.contains("key"), "for another: {said}");

    // What was refused has left nothing that would stand in the way of a good token.
    let mut c = c;
    join(&mut c, &good).unwrap();
    await_online(&[&a, &b, &c], &["a", "b", "c"], TOGETHER_DEADLINE).unwrap();
}

/// The token is refused, by a command that says so and joins nothing.
fn refused(node: &Pln, token: &str) -> String {
    let output = node.run(&["join", token, "--no-up"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{token} was accepted");
    assert!(!said.trim().is_empty() && !said.contains("panicked"), "{said}");
    said
}

#[test]
fn a_member_of_one_cluster_does_not_join_another() {
    let Some(mut lab) = lab_or_skip() else { return };
    let [a, b] = lab.hosts(Family::V4, ["a", "b"]).unwrap().map(Pln::on);
    let (mut a, mut b) = (a, b);
    found(&mut a).unwrap();
    b.ok(&["init"]).unwrap();
    let token = invite(&a, &[]).unwrap();
    let said = refused(&b, &token);
    assert!(said.contains("cluster"), "{said}");
    b.up().unwrap();
    await_online(&[&a], &["a"], TOGETHER_DEADLINE).unwrap();
    await_online(&[&b], &["b"], TOGETHER_DEADLINE).unwrap();
}

#[test]
fn a_leaf_that_publishes_is_told_who_could_let_it() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["amsterdam", "leaf"]).unwrap().map(Pln::on);
    cluster::form(&mut nodes, &[]).unwrap();
    let [_, leaf] = &nodes;
    let said = leaf.fails(exit::DENIED, &["serve", "8080", "api"]).unwrap();
    assert!(said.contains("publisher") && said.contains("amsterdam"), "{said}");
    let said = leaf.fails(exit::DENIED, &["invite"]).unwrap();
    assert!(said.contains("admin"), "{said}");
}

#[test]
fn key_files_are_readable_by_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(mut lab) = lab_or_skip() else { return };
    let [a] = lab.hosts(Family::V4, ["a"]).unwrap().map(Pln::on);
    let mut a = a;
    found(&mut a).unwrap();
    let mut folders = vec![a.dir()];
    let mut keys = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let mode = path.metadata().unwrap().permissions().mode();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "key") {
                keys += 1;
                assert_eq!(mode & 0o777, 0o600, "{}", path.display());
            }
        }
    }
    assert!(keys >= 2, "the node's key and the root's, found {keys}");
}
