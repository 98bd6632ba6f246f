//! The node as a service: its unit as systemd reads it, and the daemon as the unit's user with the unit's rights.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pollen_daemon::systemd::unit;
use tests::cluster::{TOGETHER_DEADLINE, invite, join};
use tests::lab::{Family, lab_or_skip};
use tests::pln::{Pln, exit};
use tests::status::await_online;
use tests::traffic::{Server, http_get, pattern};
use tests::{binary, patience::eventually};

/// What `systemd-analyze security` may find exposed at the most, of 100: it grades 20 and below as OK. Most of what is
/// left is the network itself, which is what the node is for.
const EXPOSURE_MAX: u32 = 20;

/// A user and group that no machine has by name: only the numbers matter.
const UID: u32 = 64_611;

/// The keys of a unit, each with its values in their order.
fn settings(unit: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut settings = BTreeMap::<_, Vec<_>>::new();
    for (key, value) in unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')) {
        settings.entry(key).or_default().push(value);
    }
    settings
}

/// Whether a tool is here; where not, the reason is printed, and `PLN_REQUIRE` makes it a failure.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        assert!(std::env::var_os("PLN_REQUIRE").is_none(), "PLN_REQUIRE is set, and there is no {tool}");
        eprintln!("skipped: there is no {tool}");
    }
    found
}

/// The unit in a file, as systemd wants to read it.
fn unit_file(dir: &Path) -> PathBuf {
    let path = dir.join(unit::NAME);
    std::fs::write(&path, unit::text(binary::pln())).unwrap();
    path
}

#[test]
fn systemd_finds_nothing_to_object_to_in_the_unit() {
    if !has("systemd-analyze") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("systemd-analyze").arg("verify").arg(unit_file(dir.path())).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // A word that it does not know is a warning, and the line is then without effect.
    let about_it: Vec<_> = said.lines().filter(|line| line.contains(unit::NAME)).collect();
    assert!(about_it.is_empty(), "{about_it:?}");
}

#[test]
fn the_unit_exposes_little() {
    if !has("systemd-analyze") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["security", "--no-pager", "--offline=true", &threshold]).arg(unit_file(dir.path()));
    let output = analyze.output().unwrap();
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{why}");
}

/// `setpriv` with exactly what the unit gives: user, group, capabilities, and no way to more.
fn starter(unit: &str, program: PathBuf) -> Vec<OsString> {
    let settings = settings(unit);
    let of = |key: &str| settings.get(key).unwrap_or_else(|| panic!("the unit has no {key}")).join(" ");
    let capabilities = |key| {
        let names = of(key).to_lowercase().replace("cap_", "+").split_whitespace().collect::<Vec<_>>().join(",");
        format!("-all,{names}")
    };
    assert_eq!((of("User"), of("Group"), of("NoNewPrivileges")), ("pln".into(), "pln".into(), "yes".into()));
    let ambient = capabilities("AmbientCapabilities");
    let words = [
        "setpriv".to_owned(),
        format!("--reuid={UID}"),
        format!("--regid={UID}"),
        "--clear-groups".to_owned(),
        "--no-new-privs".to_owned(),
        format!("--inh-caps={ambient}"),
        format!("--ambient-caps={ambient}"),
        format!("--bounding-set={}", capabilities("CapabilityBoundingSet")),
    ];
    words.into_iter().map(OsString::from).chain([program.into()]).collect()
}

/// What the kernel says of a process.
fn status_of(pid: u32) -> BTreeMap<String, String> {
    status_in(&std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap())
}

/// The same, of what was read.
pub fn status_in(status: &str) -> BTreeMap<String, String> {
    let pairs = status.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

/// Bits of the capabilities that the unit names (`linux/capability.h`).
pub fn mask() -> u64 {
    let bit = |name: &str| match name {
        "CAP_NET_BIND_SERVICE" => 10,
        "CAP_NET_ADMIN" => 12,
        "CAP_PERFMON" => 38,
        "CAP_BPF" => 39,
        other => panic!("the unit names {other}, which this test does not know"),
    };
    unit::CAPABILITIES.iter().map(|name| 1u64 << bit(name)).sum()
}

fn hears(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer).expect("it says so in time");
    String::from_utf8_lossy(&buffer[..len]).into_owned()
}

fn everything_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(everything_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn the_services_user_with_the_units_rights_serves_the_mesh_and_says_when_it_is_ready() {
    let Some(mut lab) = lab_or_skip() else { return };
    if !has("setpriv") {
        return;
    }
    let [a, b] = lab.hosts(Family::V4, ["a", "b"]).unwrap();
    // Where the build lies the service's user may not look.
    std::fs::create_dir_all(a.dir()).unwrap();
    let program = a.dir().join("pln");
    std::fs::copy(binary::pln(), &program).unwrap();
    let notified = a.dir().join("notify");
    let manager = UnixDatagram::bind(&notified).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    std::fs::set_permissions(&notified, std::fs::Permissions::from_mode(0o666)).unwrap();
    let starter = starter(&unit::text(&program), program);
    let mut a = Pln::on(a).started_by(starter, vec![("NOTIFY_SOCKET".into(), notified.into())]);
    std::fs::create_dir(a.dir()).unwrap();
    std::fs::set_permissions(a.dir(), std::fs::Permissions::from_mode(0o750)).unwrap();
    chown(a.dir(), Some(UID), Some(UID)).unwrap();

    // By root, as `sudo pln init` after an install would be.
    a.ok(&["init"]).unwrap();
    a.up().unwrap();
    assert_eq!(hears(&manager), "READY=1\n");
    let status = status_of(a.pid().unwrap());
    assert_eq!(status["Uid"].split_whitespace().collect::<Vec<_>>(), vec![UID.to_string(); 4]);
    for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status[set], 16).unwrap(), mask(), "{set} is {}", status[set]);
    }
    assert_eq!(status["NoNewPrivs"], "1");

    let mut b = Pln::on(b);
    join(&mut b, &invite(&a, &["--publisher"]).unwrap()).unwrap();
    await_online(&[&a, &b], &["a", "b"], TOGETHER_DEADLINE).unwrap();
    let body = pattern(1, 1 << 20);
    let _web = Server::http(&b.host, 8080, body.clone()).unwrap();
    b.ok(&["serve", "8080", "web"]).unwrap();
    // A port that takes a capability.
    let connect = || a.json(&["connect", "web", "80"]).map_err(|error| format!("{error:#}"));
    eventually("a knows the service", TOGETHER_DEADLINE, connect).unwrap();
    eventually("a reaches the service of b", TOGETHER_DEADLINE, || match http_get(&a.host, 80, "/") {
        Ok(got) if got == body => Ok(()),
        other => Err(format!("{:?}", other.map(|got| got.len()))),
    })
    .unwrap();

    for path in everything_below(&a.dir()) {
        let owner = std::fs::symlink_metadata(&path).unwrap().uid();
        assert_eq!(owner, UID, "{} belongs to {owner}", path.display());
    }
    let socket = std::fs::metadata(a.socket()).unwrap();
    assert_eq!(socket.mode() & 0o777, 0o660);
    a.terminate().unwrap();
    assert_eq!(hears(&manager), "STOPPING=1\n");
}

#[test]
fn without_systemd_each_command_about_the_service_says_what_to_do_instead() {
    if Path::new("/run/systemd/system").exists() {
        eprintln!("skipped: systemd runs this machine, and a test must not change its services");
        return;
    }
    let Some(mut lab) = lab_or_skip() else { return };
    let [a] = lab.hosts(Family::V4, ["a"]).unwrap().map(Pln::on);
    for command in [&["up", "-d"][..], &["restart"], &["daemon", "uninstall"]] {
        let said = a.fails(exit::FAILURE, command).unwrap();
        assert!(said.contains("systemd does not run this machine"), "{command:?}: {said}");
        assert!(said.contains("pln up"), "{command:?}: {said}");
    }
    let printed = a.ok(&["daemon", "install", "--print"]).unwrap();
    assert!(settings(&printed).contains_key("ExecStart"), "{printed}");
    assert!(!a.dir().exists(), "asking changed nothing");
}
