//! A machine whose disk has no room for a module is passed over for it, says so, and holds nobody up.

use std::path::PathBuf;

use tests::cluster::form;
use tests::lab::{Family, Host, lab_or_skip};
use tests::pln::Pln;
use tests::seeds::answering;
use tests::status::Status;

use super::{Mesh, READY_DEADLINE, answer, settled};
use tests::patience::eventually;

/// The node whose content lies on a small disk.
const SMALL: &str = "b";
/// That disk, in KiB: some small modules.
const DISK_KIB: usize = 64;

/// `pln` on a host, with a small file system of its own where its content lies: mounted in a namespace that ends with
/// the daemon.
fn on_a_small_disk(host: Host) -> Pln {
    let node = Pln::on(host);
    let content = node.dir().join("content");
    let mount = format!("mkdir -p \"$0\" && mount -t tmpfs -o size={DISK_KIB}k,mode=700 none \"$0\" && exec \"$@\"");
    let mut starter: Vec<_> = ["unshare", "--mount", "sh", "-c", &mount].map(Into::into).into();
    starter.extend([content.into_os_string(), tests::binary::pln().into()]);
    node.started_by(starter, Vec::new())
}

fn mesh() -> Option<Mesh> {
    let mut lab = lab_or_skip()?;
    let on = |host: Host| if host.name() == SMALL { on_a_small_disk(host) } else { Pln::on(host) };
    let mut nodes = lab.hosts(Family::Both, ["a", "b", "c", "d"]).unwrap().map(on);
    form(&mut nodes, &["--publisher"]).unwrap();
    Some(Mesh { nodes, _lab: lab })
}

/// A module that answers `text` and is larger than the small disk: what nobody reads makes it so.
fn large(host: &Host, text: &str) -> PathBuf {
    let path = answering(host, text).unwrap();
    let mut module = std::fs::read(&path).unwrap();
    let mut section = vec![3];
    section.extend(b"pad");
    section.resize(2 * DISK_KIB * 1024, b'.');
    module.push(0);
    let mut len = section.len();
    while len >= 0x80 {
        module.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
        len >>= 7;
    }
    module.push(u8::try_from(len).unwrap());
    module.extend(section);
    std::fs::write(&path, module).unwrap();
    path
}

fn note(published: &serde_json::Value) -> String {
    published["note"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_host_without_room_for_a_version_is_passed_over_and_says_so() {
    let Some(mesh) = mesh() else { return };
    let (a, b) = (&mesh.nodes[0], mesh.node(SMALL));
    let (small, large) = (answering(&a.host, "small").unwrap(), large(&a.host, "large"));
    mesh.seed(&small, "who", &["--everywhere"], 4);

    // The new version does not wait for it, though it serves the old one.
    let published = a.json(&["seed", large.to_str().unwrap(), "who", "--everywhere"]).unwrap();
    assert_eq!((published["ready"].as_u64(), published["floor"].as_u64()), (Some(3), Some(3)), "{published}");
    assert!(note(&published).contains(&format!("{SMALL}: its disk does not take")), "{published}");
    assert!(!mesh.settled("who", 3).contains(SMALL));
    for node in &mesh.nodes {
        assert_eq!(answer(node, "who", "answer", b""), "large", "on {}", node.host.name());
    }
    let said = mesh.nodes[2].ok(&["why", "who"]).unwrap();
    let of_it = said.lines().find(|line| line.contains("cannot make it ready"));
    assert!(of_it.is_some_and(|line| line.contains(SMALL) && line.contains("its disk does not take")), "{said}");
    let said = b.ok(&["why", "who"]).unwrap();
    assert!(said.contains("No space left on device") && said.contains("tries again within"), "{said}");
    for shown in [&["status", "seeds"][..], &["inspect", "who"]] {
        let shown = mesh.nodes[3].ok(shown).unwrap();
        assert!(shown.to_lowercase().contains("cannot") && shown.contains("its disk does not take"), "{shown}");
    }

    // Nor does the floor: others make up for it.
    let wide = a.json(&["seed", large.to_str().unwrap(), "wide", "--min-replicas", "3"]).unwrap();
    assert_eq!(wide["ready"].as_u64(), Some(3), "{wide}");
    assert!(!mesh.settled("wide", 3).contains(SMALL));
    // What it has room for it hosts as before.
    mesh.seed(&small, "who", &["--everywhere"], 4);

    // What it said of a version goes with the version.
    a.ok(&["unseed", "wide"]).unwrap();
    let forgotten = || {
        let status = Status::of(&mesh.nodes[2]).map_err(|error| format!("{error:#}"))?;
        let seed = status.seed("who").map_err(|error| format!("{error:#}"))?.ok_or("no seed")?;
        if seed["cannot"].as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(format!("{seed}")) }
    };
    eventually("nothing is said of what no seed names", READY_DEADLINE, forgotten).unwrap();
    let all: Vec<&Pln> = mesh.nodes.iter().collect();
    assert_eq!(settled(&all, "who", 4, READY_DEADLINE).len(), 4);
    assert!(!b.ok(&["why", "who"]).unwrap().contains("cannot make it ready"));
}
