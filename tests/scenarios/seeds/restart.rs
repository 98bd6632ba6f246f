//! All machines lose power at once and come back: seeds answer soon, from what is on disk.

use std::time::{Duration, Instant};

use tests::patience::eventually;
use tests::seeds::{example, example_in_go};

use super::{FLOOR, Mesh, ask, metric};

/// From the start of the processes until each node has an answer from each seed.
const BACK: Duration = Duration::from_secs(5);
const METRICS_PORT: u16 = 9191;

#[test]
fn after_all_were_killed_seeds_answer_and_nothing_is_compiled_again() {
    let Some(mut mesh) = Mesh::new() else { return };
    mesh.seed(&example("hello"), "hello", &[], FLOOR);
    let mut seeds = vec![("hello", "Hello, Ada!")];
    if let Some(module) = example_in_go() {
        mesh.seed(&module, "frozen", &["--memory", "64MiB", "--image"], FLOOR);
        seeds.push(("frozen", "Hello, Ada, from Go!"));
    }
    for node in &mesh.nodes {
        node.ok(&["set", "http", &format!("127.0.0.1:{METRICS_PORT}")]).unwrap();
    }
    let compiled = |mesh: &Mesh| -> f64 {
        let of = |node| metric(node, METRICS_PORT, "pln_compilations_total", "compiled");
        mesh.nodes.iter().map(of).sum()
    };
    assert!(compiled(&mesh) >= 2.0, "the metric counts nothing");

    for node in &mut mesh.nodes {
        node.kill().unwrap();
    }
    let started = Instant::now();
    for node in &mut mesh.nodes {
        node.spawn_up().unwrap();
    }
    for node in &mut mesh.nodes {
        node.await_answer().unwrap();
    }
    for node in &mesh.nodes {
        for (name, greeting) in &seeds {
            let answered = || match ask(node, name, "greet", b"Ada") {
                Ok(answer) if answer.output == greeting.as_bytes() => Ok(()),
                other => Err(format!("{} got {other:?}", node.host.name())),
            };
            eventually(&format!("{name} answers"), BACK.saturating_sub(started.elapsed()), answered).unwrap();
        }
    }
    eprintln!("all answer everywhere after {:?}", started.elapsed());
    for (name, _) in &seeds {
        mesh.settled(name, FLOOR);
    }
    assert_eq!(compiled(&mesh), 0.0, "compiled after the restart");
}
