//! What becomes of a node's directory: a member whose database is lost is still that member, and a disk that fills
//! stops nobody.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::cluster::{TOGETHER_DEADLINE, form};
use tests::lab::{Family, lab_or_skip};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::status::{Status, await_equal, await_online};
use tests::traffic::{Server, dial, exchange};

use crate::services::connect;

/// The writer tries again every two seconds.
const WRITTEN_DEADLINE: Duration = Duration::from_secs(10);

/// The name of the file by which a member comes back.
const WAY_BACK: &str = "way-back";

/// What may become of a database, and how.
type Harm = (&'static str, fn(&Path));

#[test]
fn a_member_whose_database_is_lost_or_damaged_comes_back_as_itself_with_what_it_served_and_listened_to() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b", "c"]).unwrap().map(Pln::on);
    form(&mut nodes, &["--publisher"]).unwrap();
    let server = Server::tcp_echo(&nodes[0].host, 0).unwrap();
    nodes[0].ok(&["serve", &server.port.to_string(), "echo"]).unwrap();
    nodes[2].ok(&["serve", "8080", "web"]).unwrap();
    let port = connect(&nodes[2], "echo");
    let id = nodes[2].json(&["id"]).unwrap();
    let way_back = nodes[2].dir().join(WAY_BACK);
    let known = || match fs::read_to_string(&way_back) {
        Ok(text) if text.contains("echo") && text.contains("web") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("the way back names what the node does", TOGETHER_DEADLINE, known).unwrap();

    let harms: [Harm; 4] = [
        ("gone", |path| fs::remove_file(path).unwrap()),
        ("empty", |path| fs::write(path, []).unwrap()),
        ("cut", |path| fs::write(path, &fs::read(path).unwrap()[..5000]).unwrap()),
        ("damaged", |path| fs::write(path, vec![0x55; 65536]).unwrap()),
    ];
    for (harm, act) in harms {
        nodes[2].kill().unwrap();
        act(&nodes[2].dir().join("state.redb"));
        nodes[2].up().unwrap();
        await_online(&nodes.each_ref(), &["a", "b", "c"], TOGETHER_DEADLINE).unwrap();
        assert_eq!(nodes[2].json(&["id"]).unwrap(), id, "{harm}: it became another");
        await_equal(&nodes.each_ref(), TOGETHER_DEADLINE).unwrap();
        for node in &nodes {
            let services = Status::of(node).unwrap().services().unwrap();
            assert!(services.contains("web") && services.contains("echo"), "{harm}: {services:?}");
        }
        let host = &nodes[2].host;
        let echo = || match dial(host, port).and_then(|mut stream| exchange(&mut stream, b"still there?")) {
            Ok(answer) if answer == b"still there?" => Ok(()),
            other => Err(format!("{other:?}")),
        };
        eventually("the listener is back", TOGETHER_DEADLINE, echo).unwrap();
    }
}

/// A small file system of its own, gone with the test.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn at(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m,mode=700", "none"]).arg(&path).status();
        assert!(mounted.unwrap().success(), "tests that need root have it here");
        Self(path)
    }

    pub(crate) fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    pub(crate) fn fill(&self) {
        let mut file = fs::File::create(self.ballast()).unwrap();
        while file.write_all(&[1; 512]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The daemon may still be ending: a lazy unmount waits for it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_stops_no_daemon_and_what_others_said_is_made_up_for() {
    const NAMES: usize = 40;
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b"]).unwrap().map(Pln::on);
    let disk = SmallDisk::at(nodes[1].dir());
    form(&mut nodes, &["--publisher"]).unwrap();
    nodes[1].ok(&["serve", "7000", "mine"]).unwrap();

    disk.fill();
    for number in 0..NAMES {
        nodes[0].ok(&["serve", &(9000 + number).to_string(), &format!("name-{number}")]).unwrap();
    }
    await_equal(&nodes.each_ref(), TOGETHER_DEADLINE).unwrap();
    let refused = || match nodes[1].run(&["serve", "7001", "late"]) {
        Ok(output) if String::from_utf8_lossy(&output.stderr).contains("full") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("what must be durable is refused", TOGETHER_DEADLINE, refused).unwrap();

    nodes[1].kill().unwrap();
    nodes[1].up().unwrap();
    let services = || match Status::of(&nodes[1]).and_then(|status| status.services()) {
        Ok(services) if services.len() == NAMES + 1 && services.contains("mine") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("a node that started on a full disk knows all names", TOGETHER_DEADLINE, services).unwrap();

    fs::remove_file(disk.ballast()).unwrap();
    let served = || nodes[1].ok(&["serve", "7002", "later"]).map_err(|error| format!("{error:#}"));
    eventually("there is room again", WRITTEN_DEADLINE, served).unwrap();
    // Whom it is linked with it could not sign before: sequences are reserved on disk.
    await_online(&nodes.each_ref(), &["a", "b"], TOGETHER_DEADLINE).unwrap();
    await_equal(&nodes.each_ref(), TOGETHER_DEADLINE).unwrap();
    nodes[0].terminate().unwrap();
    nodes[1].kill().unwrap();
    nodes[1].up().unwrap();
    let services = Status::of(&nodes[1]).unwrap().services().unwrap();
    assert!(services.contains("mine") && services.contains("later") && services.len() == NAMES + 2, "{services:?}");
}
