//! `status` tells the truth: what a user would feel is a line with what to do, and nothing else keeps a node from being
//! healthy.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::cluster::form;
use tests::lab::{Family, lab_or_skip};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::status::{await_condition, await_healthy, await_online};
use tests::traffic::{Server, address, http_get};

use crate::directory::SmallDisk;
use crate::services::connect;

/// The looks that nodes take are two seconds apart, and a listener tries again as often.
const TOLD_DEADLINE: Duration = Duration::from_secs(15);
/// The two take turns by the back-off of their dials.
const TURNS_DEADLINE: Duration = Duration::from_secs(60);
const DAY_S: u64 = 86_400;

/// Waits until the timeline of `node` says that a condition began or ended.
fn await_event(node: &Pln, kind: &str, code: &str) {
    let (kind, message) = (format!("\"kind\":\"{kind}\""), format!("\"message\":\"{code}: "));
    let told = || {
        let said = node.ok(&["--json", "events"]).map_err(|error| format!("{error:#}"))?;
        let found = said.lines().any(|line| line.contains(&kind) && line.contains(&message));
        if found { Ok(()) } else { Err(said) }
    };
    eventually("it is in the timeline", TOLD_DEADLINE, told).unwrap();
}

#[test]
fn a_directory_that_was_copied_to_another_machine_is_named_by_all_who_see_it() {
    let Some(mut lab) = lab_or_skip() else { return };
    let [a, b, c, d] = lab.hosts(Family::V4, ["a", "b", "c", "d"]).unwrap().map(Pln::on);
    let mut nodes = [a, b, c];
    form(&mut nodes, &["--publisher"]).unwrap();
    for node in &nodes {
        await_healthy(node, TOLD_DEADLINE).unwrap();
    }
    let mut copy = d;
    nodes[1].terminate().unwrap();
    fs::create_dir_all(copy.host.dir()).unwrap();
    let copied = Command::new("cp").arg("-a").arg(nodes[1].dir()).arg(copy.dir()).status().unwrap();
    assert!(copied.success());
    nodes[1].up().unwrap();
    await_online(&nodes.each_ref(), &["a", "b", "c"], TOLD_DEADLINE).unwrap();
    copy.up().unwrap();

    let at = [&nodes[1], &copy].map(|node| address(&node.host, false).unwrap().to_string());
    let both: Vec<&str> = at.iter().map(String::as_str).collect();
    for witness in [&nodes[0], &nodes[2]] {
        await_condition(witness, "key_shared", &both, TURNS_DEADLINE).unwrap();
    }
    for twin in [&nodes[1], &copy] {
        await_condition(twin, "key_shared", &["this node's key"], TURNS_DEADLINE).unwrap();
    }
    let text = nodes[0].ok(&["status"]).unwrap();
    assert!(text.starts_with("[DEGRADED]") && text.contains("pln purge --include-keys"), "{text}");
    await_event(&nodes[0], "condition_began", "key_shared");
}

/// Makes the wall clock of whatever is started with it be ahead: a library that stands before the system's.
fn clock_ahead(dir: &Path, seconds: u64) -> OsString {
    const SOURCE: &str = r"
        #define _GNU_SOURCE
        #include <time.h>
        #include <unistd.h>
        #include <sys/syscall.h>
        int clock_gettime(clockid_t id, struct timespec *at) {
            long failed = syscall(SYS_clock_gettime, id, at);
            if (!failed && id == CLOCK_REALTIME) at->tv_sec += AHEAD;
            return (int)failed;
        }
    ";
    fs::create_dir_all(dir).unwrap();
    let (source, library) = (dir.join("ahead.c"), dir.join("ahead.so"));
    fs::write(&source, SOURCE).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", &format!("-DAHEAD={seconds}"), "-o"]).arg(&library).arg(&source);
    assert!(cc.status().unwrap().success(), "whoever builds this has a C compiler: it links");
    library.into_os_string()
}

#[test]
fn a_clock_that_is_a_day_off_is_named_on_both_sides_until_it_is_set() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b", "c"]).unwrap().map(Pln::on);
    form(&mut nodes, &["--publisher"]).unwrap();
    let [a, mut b, c] = nodes;
    let pln: Vec<OsString> = vec![tests::binary::pln().into()];
    b.terminate().unwrap();
    let ahead = clock_ahead(b.host.dir(), DAY_S);
    b = b.started_by(pln.clone(), vec![("LD_PRELOAD".into(), ahead)]);
    b.up().unwrap();
    for other in [&a, &c] {
        await_condition(other, "clock", &["the clock of b", "1d ahead of this node's"], TOLD_DEADLINE).unwrap();
    }
    await_condition(&b, "clock", &["this node's clock is 1d ahead"], TOLD_DEADLINE).unwrap();
    b.terminate().unwrap();
    b = b.started_by(pln, Vec::new());
    b.up().unwrap();
    for node in [&a, &b, &c] {
        await_healthy(node, TOLD_DEADLINE).unwrap();
    }
}

#[test]
fn a_taken_port_and_a_service_without_a_server_are_told_until_they_are_mended() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b"]).unwrap().map(Pln::on);
    form(&mut nodes, &["--publisher"]).unwrap();
    let [a, mut b] = nodes;
    let page = Server::http(&a.host, 0, b"here".to_vec()).unwrap();
    let port = page.port.to_string();
    a.ok(&["serve", &port, "page"]).unwrap();
    let local = connect(&b, "page");
    for node in [&a, &b] {
        await_healthy(node, TOLD_DEADLINE).unwrap();
    }
    drop(page);
    await_condition(&a, "service_unanswered", &[&port, "page"], TOLD_DEADLINE).unwrap();
    let page = Server::http(&a.host, port.parse().unwrap(), b"again".to_vec()).unwrap();
    await_healthy(&a, TOLD_DEADLINE).unwrap();

    b.ok(&["set", "http", "127.0.0.1:9090"]).unwrap();
    b.terminate().unwrap();
    let squatter = Server::tcp_echo(&b.host, local).unwrap();
    let other = Server::tcp_echo(&b.host, 9090).unwrap();
    b.up().unwrap();
    await_condition(&b, "metrics_wait", &["9090"], TOLD_DEADLINE).unwrap();
    drop(other);
    await_condition(&b, "listener_waits", &[&local.to_string(), "in use"], TOLD_DEADLINE).unwrap();
    let text = b.ok(&["status"]).unwrap();
    assert!(text.contains(&format!("{local} (waiting)")), "{text}");
    await_event(&b, "condition_began", "listener_waits");
    drop(squatter);
    await_healthy(&b, TOLD_DEADLINE).unwrap();
    assert_eq!(http_get(&b.host, local, "/").unwrap(), b"again", "it was taken over by itself");
    await_event(&b, "condition_ended", "listener_waits");
    let metrics = String::from_utf8(http_get(&b.host, 9090, "/metrics").unwrap()).unwrap();
    assert!(metrics.contains("pln_condition{code=\"listener_waits\"} 0"), "{metrics}");
    drop(page);
}

#[test]
fn a_full_disk_is_told_until_there_is_room() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b"]).unwrap().map(Pln::on);
    let disk = SmallDisk::at(nodes[1].dir());
    form(&mut nodes, &["--publisher"]).unwrap();
    await_healthy(&nodes[1], TOLD_DEADLINE).unwrap();
    disk.fill();
    for number in 0..40 {
        nodes[0].ok(&["serve", &(9000 + number).to_string(), &format!("name-{number}")]).unwrap();
    }
    await_condition(&nodes[1], "disk", &["full"], TOLD_DEADLINE).unwrap();
    fs::remove_file(disk.ballast()).unwrap();
    await_healthy(&nodes[1], TOLD_DEADLINE).unwrap();
    await_condition(&nodes[0], "service_unanswered", &["nobody listens"], TOLD_DEADLINE).unwrap();
}

#[test]
fn machines_of_one_name_are_told_apart_until_each_is_given_its_own() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b", "c"]).unwrap().map(Pln::on);
    form(&mut nodes, &["--publisher"]).unwrap();
    let [a, b, c] = &nodes;
    for image in [b, c] {
        assert_eq!(image.ok(&["set", "name", "vm"]).unwrap(), "name             vm");
    }
    // The one that was admitted first keeps the name.
    await_online(&[a, b, c], &["a", "vm", "vm-2"], TOLD_DEADLINE).unwrap();
    for node in [a, b, c] {
        await_condition(node, "name_shared", &["called vm", "vm, vm-2"], TOLD_DEADLINE).unwrap();
    }
    assert_eq!(a.json(&["inspect", "vm-2"]).unwrap()["key"], c.json(&["id"]).unwrap()["key"]);
    await_event(c, "condition_began", "name_shared");
    c.ok(&["set", "name", "db"]).unwrap();
    await_online(&[a, b, c], &["a", "vm", "db"], TOLD_DEADLINE).unwrap();
    for node in [a, b, c] {
        await_healthy(node, TOLD_DEADLINE).unwrap();
    }
}
