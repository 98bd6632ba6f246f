//! The service where a real systemd runs the machine: installed, sandboxed, restarted, stopped and taken away as an
//! administrator does it, with seeds that run under the unit's system-call filter.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use pollen_daemon::systemd::unit;
use tests::calls::{Answer, Call, Caller, Failure, Load};
use tests::cluster::{TOGETHER_DEADLINE, join};
use tests::lab::{Family, Lab, lab_or_skip};
use tests::machine::Machine;
use tests::patience::eventually;
use tests::pln::{Pln, exit};
use tests::seeds::{answering, example, example_in_go};
use tests::status::{Status, await_online};

use crate::systemd::{mask, status_in};

const STATE_DIR: &str = "/var/lib/pln";
/// A seed is ready where it shall be within this: its code is made by a build without optimisation.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// systemd waits a moment before it starts a service again that failed.
const BACK_DEADLINE: Duration = Duration::from_secs(15);
/// Who may operate the node by its group alone.
const OPERATOR: &str = "ada";
const OTHER: &str = "eve";

/// A machine with systemd, the lab's first host, and others beside it.
fn booted<const N: usize>(others: [&str; N]) -> Option<(Machine, [Pln; N], Lab)> {
    let mut lab = lab_or_skip()?;
    let switch = lab.switch(Family::V4).unwrap();
    let host = lab.host("box", &[switch], 1500).unwrap();
    match Machine::boot(host) {
        Ok(machine) => {
            let others = others.map(|name| Pln::on(lab.host(name, &[switch], 1500).unwrap()));
            Some((machine, others, lab))
        }
        Err(error) => {
            assert!(std::env::var_os("PLN_REQUIRE").is_none(), "PLN_REQUIRE is set: {error:#}");
            eprintln!("skipped: {error:#}");
            None
        }
    }
}

fn installed_and_up(machine: &Machine) {
    machine.ok(&["pln", "daemon", "install"]).unwrap();
    machine.ok(&["pln", "init"]).unwrap();
    machine.ok(&["pln", "up", "-d"]).unwrap();
    assert_eq!(state(machine), "active");
}

fn state(machine: &Machine) -> String {
    machine.property(unit::NAME, "ActiveState").unwrap()
}

/// Enrols the others with the booted machine, and waits until all see all.
fn together(machine: &Machine, others: &mut [Pln]) {
    for other in &mut *others {
        let token = machine.json(&["invite", "--publisher"]).unwrap();
        join(other, token["token"].as_str().unwrap()).unwrap();
    }
    let names: Vec<_> = ["box"].into_iter().chain(others.iter().map(|other| other.host.name())).collect();
    await_online(&others.iter().collect::<Vec<_>>(), &names, TOGETHER_DEADLINE).unwrap();
}

/// `pln` as a user of the machine, with the groups that the user has.
fn pln_as<'a>(user: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    let by = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "env", "HOME=/nowhere", "pln"];
    [&by, args].concat()
}

/// Publishes on the booted machine; the module lies where any user's would.
fn seed(machine: &Machine, module: &Path, name: &str, flags: &[&str]) {
    let inside = format!("/tmp/{name}.wasm");
    std::fs::copy(module, machine.path(&inside)).unwrap();
    machine.json(&[&["seed", &inside, name], flags].concat()).unwrap();
}

fn ask(socket: &Path, seed: &str, function: &str, input: &[u8]) -> Result<Answer, Failure> {
    Caller::at(socket).call(&Call::of(seed, function, input)).unwrap()
}

fn control(machine: &Machine) -> std::path::PathBuf {
    machine.path("/var/lib/pln/pln.sock")
}

/// What the service and systemd about it wrote in the journal, from warnings upwards.
fn complaints(machine: &Machine) -> String {
    machine.ok(&["journalctl", "--quiet", "--no-pager", "--unit", unit::NAME, "--priority", "warning"]).unwrap()
}

#[test]
fn seeds_run_under_the_units_sandbox_and_its_filter_of_system_calls() {
    let Some((machine, mut others, _lab)) = booted(["b"]) else { return };
    installed_and_up(&machine);
    let pid = machine.property(unit::NAME, "MainPID").unwrap();
    let status = status_in(&machine.ok(&["cat", &format!("/proc/{pid}/status")]).unwrap());
    assert_eq!((status["Seccomp"].as_str(), status["NoNewPrivs"].as_str()), ("2", "1"), "the unit's sandbox");
    for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status[set], 16).unwrap(), mask(), "{set} is {}", status[set]);
    }

    together(&machine, &mut others);
    let b = others[0].socket();
    let mut seeds = vec![("hello", "Hello, Ada!")];
    seed(&machine, &example("hello"), "hello", &[]);
    if let Some(module) = example_in_go() {
        seed(&machine, &module, "frozen", &["--memory", "64MiB", "--image"]);
        seeds.push(("frozen", "Hello, Ada, from Go!"));
    }
    seed(&machine, &example("misbehave"), "misbehave", &["--timeout", "1s"]);
    for (name, greeting) in seeds {
        // Of two nodes both host it; from either its own answers.
        for socket in [control(&machine), b.clone()] {
            let answered = || match ask(&socket, name, "greet", b"Ada") {
                Ok(answer) if answer.output == greeting.as_bytes() => Ok(()),
                other => Err(format!("{other:?}")),
            };
            eventually(&format!("{name} answers"), READY_DEADLINE, answered).unwrap();
        }
    }
    // Signals, guard pages, interruption and growth, all of which a filter could break.
    for (function, word) in
        [("trap", "trap"), ("recurse", "stack limit"), ("allocate", "memory limit"), ("spin", "time limit")]
    {
        let failure = ask(&control(&machine), "misbehave", function, b"").unwrap_err();
        assert!(failure.message.contains(word), "{function}: {failure:?}");
        assert_eq!(ask(&control(&machine), "misbehave", "fine", b"").unwrap().output, b"fine", "after {function}");
    }
    assert_eq!(machine.ok(&["pln", "call", "hello", "greet", "Ada"]).unwrap(), "Hello, Ada!");
    assert_eq!(complaints(&machine), "");
}

#[test]
fn who_is_in_the_group_operates_the_node_and_the_daemon_never_sees_the_roots_keys() {
    let Some((machine, [], _lab)) = booted([]) else { return };
    // As a boot script has it: no home, no terminal.
    machine.ok(&["env", "--unset=HOME", "pln", "daemon", "install"]).unwrap();
    installed_and_up(&machine);
    machine.ok(&["useradd", "--groups", unit::USER, OPERATOR]).unwrap();
    machine.ok(&["useradd", OTHER]).unwrap();
    assert!(machine.ok(&pln_as(OPERATOR, &["status"])).unwrap().contains("box"));
    let said = machine.fails(exit::DENIED, &pln_as(OTHER, &["status"])).unwrap();
    assert!(said.contains("group pln"), "{said}");
    // The socket's group gives the node's own power, not systemd's.
    let said = machine.fails(exit::DENIED, &pln_as(OPERATOR, &["restart"])).unwrap();
    assert!(said.contains("sudo"), "{said}");

    // What is set by whoever operates it is told to the mesh, now and by the next daemon.
    let offered = || match machine.json(&["inspect", "box"]) {
        Ok(shown) if shown["offers"]["memory_mib"] == 64 => Ok(()),
        other => Err(format!("{other:?}")),
    };
    machine.ok(&pln_as(OPERATOR, &["set", "seed-memory", "64MiB"])).unwrap();
    eventually("so much is offered", BACK_DEADLINE, offered).unwrap();
    machine.ok(&["pln", "restart"]).unwrap();
    eventually("so much is offered again", BACK_DEADLINE, offered).unwrap();
    let root = format!("{STATE_DIR}/root");
    assert_ne!(machine.ok(&["ls", "-A", &root]).unwrap(), "");
    let pid = machine.property(unit::NAME, "MainPID").unwrap();
    let seen = machine.output(&["nsenter", "--mount", "--target", &pid, "ls", "-A", &root]).unwrap();
    assert!(seen.stdout.is_empty(), "{}", String::from_utf8_lossy(&seen.stdout));
    machine.json(&["invite", "--admin"]).unwrap();

    machine.ok(&pln_as(OPERATOR, &["down"])).unwrap();
    let ended = || match state(&machine).as_str() {
        "inactive" => Ok(()),
        other => Err(other.to_owned()),
    };
    eventually("systemd takes that for its end", BACK_DEADLINE, ended).unwrap();
    assert_eq!(machine.property(unit::NAME, "Result").unwrap(), "success");
    assert_eq!(machine.property(unit::NAME, "NRestarts").unwrap(), "0");
}

#[test]
fn a_restart_under_load_costs_no_call_and_neither_it_nor_a_death_compiles_anything_again() {
    let Some((machine, mut others, _lab)) = booted(["b", "c"]) else { return };
    installed_and_up(&machine);
    together(&machine, &mut others);
    let [b, c] = &others;
    // Which two of three host it falls by its name: one that the machine hosts, and another does not.
    let hosts = |name: &str| match Status::of(b).and_then(|status| status.hosts(name)) {
        Ok(hosts) if hosts.len() == 2 => Ok(hosts),
        other => Err(format!("{other:?}")),
    };
    let module = answering(&b.host, "one").unwrap();
    let found = ["who", "whom", "whose", "which", "what", "where", "when", "why"].into_iter().zip(20..).find_map(
        |(name, limit)| {
            // Another limit, another version: names of one version would have their replicas in common.
            seed(&machine, &module, name, &["--timeout", &format!("{limit}s")]);
            let (hosts, _) = eventually("two are ready", READY_DEADLINE, || hosts(name)).unwrap();
            hosts.contains("box").then_some((name, hosts))
        },
    );
    let (name, at) = found.expect("of eight names one falls to the machine, but for one time in six thousand");
    let away = [b, c].into_iter().find(|node| !at.contains(node.host.name())).unwrap();

    let load = Load::start(away, 50, &Call::of(name, "answer", b""));
    std::thread::sleep(Duration::from_secs(2));
    let compiled = compiled(&machine);
    assert!(!compiled.is_empty());
    machine.ok(&["pln", "restart"]).unwrap();
    eventually("two are ready again", READY_DEADLINE, || hosts(name)).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let records = load.stop().unwrap();
    assert!(records.len() >= 100, "{} calls are no load", records.len());
    for record in records {
        assert!(record.outcome.is_ok(), "{:?} after {:?}", record.outcome, record.took());
    }
    assert_eq!(complaints(&machine), "");

    machine.ok(&["systemctl", "kill", "--signal=KILL", unit::NAME]).unwrap();
    let answers = || {
        let restarts = machine.property(unit::NAME, "NRestarts").unwrap();
        // A socket of the one that was killed refuses.
        let answer = Caller::at(&control(&machine)).call(&Call::of(name, "answer", b""));
        match answer {
            Ok(Ok(answer)) if answer.output == b"one" && restarts == "1" => Ok(()),
            other => Err(format!("{other:?} after {restarts} restarts")),
        }
    };
    eventually("the service is back", BACK_DEADLINE, answers).unwrap();
    eventually("two are ready again", READY_DEADLINE, || hosts(name)).unwrap();
    assert_eq!(self::compiled(&machine), compiled, "compiled again");
}

/// The files of compiled code, each with its number: one that is made again is another file. Its time says when it was
/// used last.
fn compiled(machine: &Machine) -> String {
    machine.ok(&["find", &format!("{STATE_DIR}/compiled"), "-type", "f", "-printf", "%f %i\n"]).unwrap()
}

#[test]
fn logs_are_shown_and_followed_and_the_journal_has_them_with_their_levels() {
    let Some((machine, [], _lab)) = booted([]) else { return };
    installed_and_up(&machine);
    let shown = machine.ok(&["pln", "logs", "-n", "2"]).unwrap();
    assert_eq!(shown.lines().count(), 2, "{shown}");
    let path = machine.host.dir().join("followed");
    let mut follow = machine.command(&["pln", "logs", "-f", "-n", "1"]);
    let follow = follow.stdin(Stdio::null()).stdout(File::create(&path).unwrap()).stderr(Stdio::inherit());
    let mut follower = follow.spawn().unwrap();
    let holds = |text: &str| {
        let followed = std::fs::read_to_string(&path).unwrap();
        if followed.contains(text) { Ok(()) } else { Err(followed) }
    };
    eventually("the past is shown", BACK_DEADLINE, || holds("announced")).unwrap();
    seed(&machine, &example("hello"), "hello", &[]);
    eventually("what comes is followed", BACK_DEADLINE, || holds("hello is published")).unwrap();
    machine.ok(&["pln", "down"]).unwrap();
    // It ends with the daemon.
    eventually("the follower ends", BACK_DEADLINE, || follower.try_wait().unwrap().ok_or("it runs".to_owned()))
        .unwrap();

    let journal = |priority: &str| {
        let args = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--identifier=pln", "--priority", priority];
        machine.ok(&args).unwrap()
    };
    let lines = journal("info..info");
    assert!(lines.contains("hello is published"), "{lines}");
    // The journal has the time of each line itself.
    assert!(lines.lines().all(|line| !line.starts_with("20")), "{lines}");
    assert_eq!(journal("notice"), "");
}

#[test]
fn a_seed_answers_as_soon_as_a_restart_has_returned_however_often() {
    let Some((machine, [], _lab)) = booted([]) else { return };
    installed_and_up(&machine);
    seed(&machine, &example("hello"), "hello", &[]);
    for _ in 0..12 {
        machine.ok(&["pln", "restart"]).unwrap();
        let answer = ask(&control(&machine), "hello", "greet", b"Ada").unwrap();
        assert_eq!(answer.output, b"Hello, Ada!");
    }
}

#[test]
fn a_service_that_cannot_start_says_why_is_not_tried_again_and_can_be_removed() {
    let Some((machine, [], _lab)) = booted([]) else { return };
    installed_and_up(&machine);
    machine.ok(&["pln", "down"]).unwrap();
    let key = format!("{STATE_DIR}/keys/node.key");
    machine.ok(&["chmod", "0", &key]).unwrap();
    let said = machine.fails(exit::FAILURE, &["pln", "up", "-d"]).unwrap();
    assert!(said.contains("does not start") && said.contains(&key), "{said}");
    assert_eq!(
        (state(&machine).as_str(), machine.property(unit::NAME, "NRestarts").unwrap().as_str()),
        ("failed", "0")
    );
    machine.ok(&["pln", "daemon", "uninstall", "--purge"]).unwrap();
    assert_eq!(units(&machine), "");
}

/// Units of ours that systemd remembers.
fn units(machine: &Machine) -> String {
    machine.ok(&["systemctl", "list-units", "--all", "--plain", "--no-legend", "pln*"]).unwrap()
}

#[test]
fn a_stop_lets_a_call_end_and_an_uninstall_leaves_what_it_says() {
    let Some((machine, [], _lab)) = booted([]) else { return };
    let before = named_so(&machine);
    installed_and_up(&machine);
    let id = machine.ok(&["pln", "id"]).unwrap();
    seed(&machine, &example("misbehave"), "misbehave", &["--timeout", "3s"]);
    let socket = control(&machine);
    eventually("it answers", READY_DEADLINE, || ask(&socket, "misbehave", "fine", b"").map_err(|f| format!("{f:?}")))
        .unwrap();
    let began = Instant::now();
    let call = std::thread::spawn(move || ask(&socket, "misbehave", "spin", b"").map_err(|failure| failure.message));
    std::thread::sleep(Duration::from_millis(500));
    machine.ok(&["systemctl", "stop", unit::NAME]).unwrap();
    let took = began.elapsed();
    let said = call.join().unwrap().unwrap_err();
    assert!(said.contains("time limit"), "the call was cut after {took:?}: {said}");
    assert!(took < unit::STOP_TIMEOUT, "{took:?}");
    assert_eq!((state(&machine).as_str(), complaints(&machine).as_str()), ("inactive", ""));
    assert_eq!(machine.property(unit::NAME, "Result").unwrap(), "success");

    machine.ok(&["pln", "daemon", "uninstall"]).unwrap();
    assert_eq!(machine.property(unit::NAME, "LoadState").unwrap(), "not-found");
    machine.ok(&["pln", "daemon", "install"]).unwrap();
    machine.ok(&["pln", "up", "-d"]).unwrap();
    assert_eq!(machine.ok(&["pln", "id"]).unwrap(), id, "the state stayed");
    // While it runs.
    machine.ok(&["pln", "daemon", "uninstall", "--purge"]).unwrap();
    assert_eq!(machine.property(unit::NAME, "LoadState").unwrap(), "not-found");
    assert_eq!(units(&machine), "");
    assert_eq!(named_so(&machine), before);
    for database in ["passwd", "group"] {
        assert!(!machine.output(&["getent", database, unit::USER]).unwrap().status.success(), "{database} has it");
    }
    assert_eq!(machine.ok(&["pln", "daemon", "uninstall", "--purge"]).unwrap(), "nothing was installed");
}

/// Files of the system that have our name: this system may have some for reasons of its own.
fn named_so(machine: &Machine) -> String {
    machine.ok(&["find", "/etc", "/var", "/run", "-name", "pln*"]).unwrap()
}
