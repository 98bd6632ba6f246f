//! A machine that publishes a seed and serves it dies under load.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tests::calls::{Call, Load, Record};
use tests::seeds::example;

use super::{FLOOR, Mesh, answer, seed, settled};

const PER_SECOND: u32 = 50;
const BEFORE: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_secs(7);
/// What an idempotent call may take, whatever dies.
const PATIENCE: Duration = Duration::from_secs(3);
/// A dead machine is known dead within this; whoever asked it before then may be in doubt.
const KNOWN_DEAD: Duration = Duration::from_secs(4);
const FLOOR_BACK: Duration = Duration::from_secs(10);
/// Names that are tried until the publisher is among those who host: each has even chances.
const TRIES: usize = 24;

/// Publishes `hello` on the first node under names until it is a host itself; returns the name and the hosts.
fn published_and_served(mesh: &Mesh, flags: &[&str]) -> (String, BTreeSet<String>) {
    for number in 0..TRIES {
        let name = format!("hello-{number}");
        // Another limit is another version, and has other hosts.
        let timeout = format!("{}s", 30 + number);
        seed(&mesh.nodes[0], &example("hello"), &name, &[flags, &["--timeout", &timeout]].concat());
        let hosts = mesh.settled(&name, FLOOR);
        if hosts.contains("a") {
            return (name, hosts);
        }
        mesh.nodes[0].ok(&["unseed", &name]).unwrap();
    }
    panic!("{TRIES} seeds, and none is hosted by who published it");
}

struct Death {
    name: String,
    records: Vec<Record>,
    killed: Instant,
}

/// Kills the node that publishes and serves, while one that hosts nothing calls fifty times a second.
fn die_under_load(mesh: &mut Mesh, flags: &[&str]) -> Death {
    let (name, hosts) = published_and_served(mesh, flags);
    let load = Load::start(mesh.outsider(&hosts), PER_SECOND, &Call::of(&name, "greet", b"Ada"));
    std::thread::sleep(BEFORE);
    let killed = Instant::now();
    mesh.node_mut("a").kill().unwrap();
    let back = settled(&mesh.without("a"), &name, FLOOR, FLOOR_BACK);
    eprintln!("the floor is back after {:?}, on {back:?}", killed.elapsed());
    std::thread::sleep(AFTER.saturating_sub(killed.elapsed()));
    let records = load.stop().unwrap();
    let slowest = records.iter().map(Record::took).max().unwrap();
    let failed = records.iter().filter(|record| record.outcome.is_err()).count();
    eprintln!("{} calls, {failed} failed, the slowest took {slowest:?}", records.len());
    assert!(records.len() >= 50 * 9, "{} calls are no load", records.len());
    for record in &records {
        if let Ok(answer) = &record.outcome {
            assert_eq!(answer.output, b"Hello, Ada!");
        }
    }
    Death { name, records, killed }
}

#[test]
fn no_idempotent_call_fails_or_takes_long_when_its_host_dies() {
    let Some(mut mesh) = Mesh::new() else { return };
    let death = die_under_load(&mut mesh, &["--idempotent"]);
    for record in &death.records {
        assert!(record.took() <= PATIENCE, "{:?}: {:?}", record.took(), record.outcome);
        assert!(record.outcome.is_ok(), "{:?}", record.outcome);
    }
}

#[test]
fn of_other_calls_only_those_under_way_at_the_dead_host_fail_and_say_so() {
    let Some(mut mesh) = Mesh::new() else { return };
    let death = die_under_load(&mut mesh, &[]);
    for record in &death.records {
        let Err(failure) = &record.outcome else { continue };
        assert!(failure.may_have_run && failure.message.contains("may have run"), "{failure:?}");
        assert!(record.ended >= death.killed, "{failure:?}, before anything died");
        assert!(record.began < death.killed + KNOWN_DEAD, "{failure:?}, when the host was known to be dead");
    }
    // And every node that is left still answers.
    for node in mesh.without("a") {
        assert_eq!(answer(node, &death.name, "greet", b"Ada"), "Hello, Ada!");
    }
}
