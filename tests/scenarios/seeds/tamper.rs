//! Bytes that changed on a disk, in a module or in compiled code, are noticed, had again, and never run.

use std::path::{Path, PathBuf};

use tests::pln::Pln;
use tests::seeds::answering;

use super::{FLOOR, Mesh, answer, seed};

const METRICS_PORT: u16 = 9191;

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

/// The stored module with these bytes.
fn stored(node: &Pln, module: &[u8]) -> PathBuf {
    let found =
        files_below(&node.dir().join("content")).into_iter().find(|path| std::fs::read(path).unwrap() == module);
    found.unwrap_or_else(|| panic!("{} has no file with the module", node.host.name()))
}

fn compiled(node: &Pln) -> Vec<PathBuf> {
    files_below(&node.dir()).into_iter().filter(|path| path.extension().is_some_and(|end| end == "cwasm")).collect()
}

/// Changes one byte in the middle.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_stored_module_that_changed_is_fetched_again() {
    let Some(mut mesh) = Mesh::new() else { return };
    let path = answering(&mesh.nodes[0].host, "as published").unwrap();
    let module = std::fs::read(&path).unwrap();
    // The connection that the host had is not a second old: who asks by it asks nobody, and asks again.
    let hosts = mesh.seed(&path, "who", &["--idempotent"], FLOOR);
    let name = hosts.first().unwrap().clone();
    // Its compiled code too: else it would not need the module.
    let host = mesh.node_mut(&name);
    host.kill().unwrap();
    let file = stored(host, &module);
    flip(&file);
    for code in compiled(host) {
        std::fs::remove_file(code).unwrap();
    }
    host.up().unwrap();
    let hosts = mesh.settled("who", FLOOR);
    for node in &mesh.nodes {
        assert_eq!(answer(node, "who", "answer", b""), "as published");
    }
    let host = mesh.node(&name);
    if hosts.contains(&name) {
        assert!(std::fs::read(&file).unwrap() == module, "the changed file is still there");
    }
    let log = std::fs::read_to_string(host.log_path()).unwrap();
    assert!(log.contains("changed") || log.contains("damaged"), "the log of {name} does not say what it found");
}

#[test]
fn compiled_code_that_changed_is_compiled_again() {
    let Some(mut mesh) = Mesh::new() else { return };
    let path = answering(&mesh.nodes[0].host, "as published").unwrap();
    let hosts = mesh.seed(&path, "who", &["--everywhere"], 4);
    assert_eq!(hosts.len(), 4);
    let host = &mut mesh.nodes[1];
    host.ok(&["set", "http", &format!("127.0.0.1:{METRICS_PORT}")]).unwrap();
    host.kill().unwrap();
    let code = compiled(host);
    assert!(!code.is_empty(), "no compiled code is kept");
    for file in &code {
        flip(file);
    }
    host.up().unwrap();
    mesh.settled("who", 4);
    assert_eq!(answer(&mesh.nodes[1], "who", "answer", b""), "as published");
    let compilations = super::metric(&mesh.nodes[1], METRICS_PORT, "pln_compilations_total", "compiled");
    assert!(compilations >= 1.0, "changed code was taken from the disk");
}

#[test]
fn a_holder_whose_file_changed_gives_it_to_nobody() {
    let Some(mesh) = Mesh::new() else { return };
    let path = answering(&mesh.nodes[0].host, "as published").unwrap();
    let module = std::fs::read(&path).unwrap();
    let hosts = mesh.seed(&path, "who", &[], FLOOR);
    // Under the feet of a node that runs: its guest is in memory, and what it gives others is on its disk. Not of the
    // publisher, which has the only copy beside those of the hosts.
    let changed = hosts.iter().find(|name| *name != "a").unwrap();
    flip(&stored(mesh.node(changed), &module));
    seed(&mesh.nodes[0], &path, "who", &["--everywhere"]);
    let hosts = mesh.settled("who", mesh.nodes.len());
    for node in &mesh.nodes {
        assert_eq!(answer(node, "who", "answer", b""), "as published");
    }
    // Whoever took it then had it from a holder whose file was whole.
    for name in hosts.iter().filter(|name| *name != changed) {
        stored(mesh.node(name), &module);
    }
}
