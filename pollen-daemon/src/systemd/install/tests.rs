//! Installing below a directory of its own, with tools that write down what they were asked.

use std::cell::RefCell;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::systemd::{ServiceError, Tools};

/// Makes the service's user the one that runs the test, and says the service is active.
struct Fake {
    root: TempDir,
    asked: RefCell<Vec<String>>,
}

impl Tools for Fake {
    fn run(&self, program: &'static str, args: &[&str]) -> Result<String, ToolError> {
        self.asked.borrow_mut().push(format!("{program} {}", args.last().unwrap_or(&"")));
        let passwd = self.root.path().join("etc/passwd");
        match program {
            "systemd-sysusers" => {
                let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                fs::write(passwd, format!("pln:x:{uid}:{gid}:Pollen:/var/lib/pln:\n")).expect("the tester's own");
            }
            "userdel" => fs::write(passwd, "").expect("the tester's own"),
            _ => {}
        }
        Ok("active".into())
    }
}

impl Fake {
    /// A machine that systemd runs.
    fn booted() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        for dir in ["etc/systemd/system", "run/systemd/system", "var/lib"] {
            fs::create_dir_all(root.path().join(dir)).expect("the tester's own");
        }
        Self { root, asked: RefCell::default() }
    }

    fn machine(&self) -> Machine<'_> {
        Machine::below(self.root.path(), self)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.take()
    }

    fn state(&self) -> PathBuf {
        self.root.path().join("var/lib/pln")
    }
}

/// A program that every machine has, and that root alone can change.
fn program() -> &'static Path {
    Path::new("/usr/bin/env")
}

#[test]
fn what_is_installed_is_there_and_installing_it_again_changes_nothing() {
    let fake = Fake::booted();
    let first = install(&fake.machine(), program()).expect("an empty machine");
    assert!(first.changed);
    assert_eq!(fs::read_to_string(&first.unit).expect("written"), unit::text(&first.program));
    assert_eq!(fs::metadata(fake.state()).expect("made").mode() & 0o777, 0o750);
    assert_eq!(layout::inspect(&fake.state()).expect("ours"), Found::Ours);
    let sysusers = "systemd-sysusers u pln - \"Pollen mesh node\" /var/lib/pln";
    assert_eq!(fake.asked(), [sysusers, "systemctl daemon-reload"]);

    let again = install(&fake.machine(), program()).expect("an installed machine");
    assert_eq!(again, Installed { changed: false, ..first });
    assert_eq!(fake.asked(), ["systemctl daemon-reload"]);
}

#[test]
fn it_can_be_installed_again_while_the_service_runs() {
    let fake = Fake::booted();
    install(&fake.machine(), program()).expect("an empty machine");
    let _running = StateDir::open(&fake.state()).expect("nobody runs yet");
    install(&fake.machine(), program()).expect("its state is as it should be");
}

#[test]
fn an_end_in_the_middle_is_mended_by_the_next_try() {
    let fake = Fake::booted();
    let installed = install(&fake.machine(), program()).expect("an empty machine");
    fs::remove_file(&installed.unit).expect("there");
    fs::write(installed.unit.with_extension("service.new"), "half a un").expect("the tester's own");
    assert!(install(&fake.machine(), program()).expect("half a machine").changed);
    let names: Vec<_> = fs::read_dir(installed.unit.parent().expect("a file")).expect("there").collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn the_state_of_another_program_stays_as_it_is() {
    let fake = Fake::booted();
    fs::create_dir(fake.state()).expect("the tester's own");
    fs::write(fake.state().join("photo.jpg"), "x").expect("the tester's own");
    assert!(matches!(install(&fake.machine(), program()), Err(InstallError::Open(OpenError::Foreign { .. }))));
    assert!(matches!(uninstall(&fake.machine(), true), Err(InstallError::Open(OpenError::Foreign { .. }))));
    assert!(fake.state().join("photo.jpg").exists());
}

#[test]
fn a_node_that_root_ran_becomes_the_services_and_links_are_not_followed() {
    let fake = Fake::booted();
    let outside = fake.root.path().join("outside");
    fs::write(&outside, "").expect("the tester's own");
    drop(StateDir::create(&fake.state()).expect("a new directory"));
    fs::create_dir(fake.state().join("keys")).expect("ours");
    fs::write(fake.state().join("keys/node.key"), "").expect("ours");
    symlink(&outside, fake.state().join("keys/link")).expect("ours");
    let theirs = Account { uid: 64_611, gid: 64_612 };
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: giving files away takes root");
        return;
    }
    provide_state(&fake.state(), theirs).expect("root's state");
    for part in ["", "format", "keys", "keys/node.key", "keys/link"] {
        let found = fs::symlink_metadata(fake.state().join(part)).expect("it is there");
        assert_eq!((found.uid(), found.gid()), (theirs.uid, theirs.gid), "{part}");
    }
    assert_eq!(fs::metadata(&outside).expect("there").uid(), 0);
    let somebody_else = Account { uid: 64_613, gid: 64_613 };
    let refused = provide_state(&fake.state(), somebody_else);
    assert!(matches!(refused, Err(InstallError::Owner { uid: 64_611, .. })), "{refused:?}");
}

#[test]
fn what_was_installed_can_be_taken_away_with_state_and_user_only_when_told() {
    let fake = Fake::booted();
    install(&fake.machine(), program()).expect("an empty machine");
    fs::create_dir(fake.state().join("keys")).expect("ours");
    fake.asked();
    let kept = uninstall(&fake.machine(), false).expect("installed");
    assert_eq!(kept, Uninstalled { service: true, state: false, user: false });
    assert_eq!(fake.asked(), ["systemctl pln.service", "systemctl daemon-reload", "systemctl pln.service"]);
    assert!(fake.state().join("keys").exists());

    let purged = uninstall(&fake.machine(), true).expect("state and user are left");
    assert_eq!(purged, Uninstalled { service: false, state: true, user: true });
    assert!(!fake.state().exists());
    assert_eq!(uninstall(&fake.machine(), true).expect("nothing is left"), Uninstalled::default());
}

#[test]
fn without_systemd_nothing_is_changed() {
    let fake = Fake::booted();
    fs::remove_dir(fake.root.path().join("run/systemd/system")).expect("the tester's own");
    assert!(matches!(install(&fake.machine(), program()), Err(InstallError::NotBooted)));
    assert!(matches!(uninstall(&fake.machine(), true), Err(InstallError::NotBooted)));
    let service = fake.machine().service(Path::new(SYSTEM_DIR)).map(drop);
    assert_eq!(service, Err(ServiceError::NotBooted));
    assert!(fake.asked().is_empty() && !fake.state().exists());
}

#[test]
fn a_service_is_asked_for_once_it_is_installed_and_about_its_own_directory() {
    let fake = Fake::booted();
    let of = |dir: &str| fake.machine().service(Path::new(dir)).map(drop);
    assert_eq!(of(SYSTEM_DIR), Err(ServiceError::NotInstalled));
    install(&fake.machine(), program()).expect("an empty machine");
    assert_eq!(of("/srv/pln"), Err(ServiceError::OtherDir("/srv/pln".into())));
    fake.asked();
    let machine = fake.machine();
    let service = machine.service(Path::new(SYSTEM_DIR)).expect("it is installed");
    service.start().expect("it starts");
    service.restart().expect("it starts");
    service.stop().expect("it stops");
    assert!(service.is_active().expect("it says"));
    assert_eq!(fake.asked(), vec!["systemctl pln.service"; 4]);
}
