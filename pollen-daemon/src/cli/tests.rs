//! Whole command lines against a state directory of their own: no network, no environment, no real daemon.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pollen_common::identity::ClusterId;
use pollen_common::views::{Policy, Protocol};
use serde_json::Value;
use tempfile::TempDir;

use super::offline::{Founded, Joined, Offline};
use super::output::Terminal;
use crate::config::UpOptions;
use crate::control::Control;
use crate::handle::fake::Fake;
use crate::http::failure::{Code, Failure};
use crate::status::sample;

mod seeds;

/// Remembers what it was asked instead of doing it.
#[derive(Default)]
struct Remembers {
    ran: Mutex<Vec<UpOptions>>,
    founded: Mutex<Vec<BTreeMap<String, String>>>,
}

impl Offline for Remembers {
    fn init(&self, _: &Path, props: BTreeMap<String, String>) -> Result<Founded, Failure> {
        self.founded.lock().expect("not poisoned").push(props);
        Ok(Founded { root: sample::key(9), cluster: ClusterId([0xC1; 32]), node: sample::key(1) })
    }

    fn join(&self, _: &Path, token: &str) -> Result<Joined, Failure> {
        if token == "spent" {
            return Err(Failure::new(Code::Denied, "the token was used already").hint("ask for another: pln invite"));
        }
        Ok(Joined { cluster: ClusterId([0xC1; 32]), node: sample::key(1) })
    }

    fn remember(&self, _: &Path, _: UpOptions) -> Result<(), Failure> {
        Ok(())
    }

    fn run(&self, _: &Path, options: UpOptions) -> Result<(), Failure> {
        self.ran.lock().expect("not poisoned").push(options);
        Ok(())
    }
}

struct Answer {
    code: u8,
    out: String,
    err: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

fn pln_with(offline: &Remembers, dir: &Path, args: &[&str]) -> Answer {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let line =
        ["pln", "--dir"].map(OsString::from).into_iter().chain([dir.into()]).chain(args.iter().map(OsString::from));
    let mut terminal = Terminal { out: Box::new(&mut out), err: Box::new(&mut err), colour: false, watched: false };
    let code = super::run(line, &mut terminal, offline);
    drop(terminal);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("what we print is text");
    Answer { code, out: text(out), err: text(err) }
}

fn pln(args: &[&str]) -> Answer {
    let dir = tempfile::tempdir().expect("a directory");
    pln_with(&Remembers::default(), dir.path(), args)
}

/// A fake daemon on a thread of its own, for commands bring their own event loop.
struct Daemon {
    dir: TempDir,
    fake: Arc<Fake>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let fake = Fake::new(dir.path());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (up, is_up) = std::sync::mpsc::channel();
        let daemon = fake.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
            runtime.block_on(async move {
                let control = Control::start(daemon.clone()).await.expect("an empty directory");
                up.send(()).expect("the test waits");
                let asked = async {
                    while !daemon.asked().shutdown {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::select! { _ = stopped => {}, () = asked => {} }
                control.stop().await;
            });
        });
        is_up.recv().expect("it starts");
        Self { dir, fake, stop: Some(stop), thread: Some(thread) }
    }

    fn pln(&self, args: &[&str]) -> Answer {
        pln_with(&Remembers::default(), self.dir.path(), args)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[test]
fn bad_usage_ends_with_2_and_says_so_on_standard_error() {
    for args in [
        &["frobnicate"][..],
        &[],
        &["serve"],
        &["serve", "0"],
        &["serve", "70000"],
        &["serve", "80", "--shared"],
        &["invite", "--ttl", "5"],
        &["invite", "--publisher", "--admin"],
        &["invite", "--pool", "1GiB"],
        &["invite", "aa", "--subject", "aa"],
        &["set", "htpp", ":1"],
        &["status", "blobs"],
        &["logs", "-n", "-1"],
        &["up", "--port", "70000"],
        &["up", "--ips", "nowhere"],
        &["up", "--metrics=nowhere"],
    ] {
        let answer = pln(args);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{args:?}: {}", answer.err);
        assert!(!answer.err.is_empty(), "{args:?}");
    }
    assert_eq!(pln(&["invite", "--prop", "nonsense"]).code, 2, "what only resolving can find");
}

#[test]
fn without_a_daemon_commands_end_with_6_and_a_way_out() {
    for args in [
        &["status"][..],
        &["inspect", "x"],
        &["why", "x"],
        &["events"],
        &["logs"],
        &["logs", "-f"],
        &["serve", "80"],
        &["unserve", "80"],
        &["connect", "api"],
        &["disconnect", "api"],
        &["invite"],
        &["set"],
        &["unset", "http"],
        &["down"],
    ] {
        let answer = pln(args);
        assert_eq!((answer.code, answer.out.as_str()), (6, ""), "{args:?}: {}", answer.err);
        assert_eq!(answer.err.lines().count(), 2, "{args:?}: {}", answer.err);
        assert!(answer.err.contains("pln up"), "{args:?}: {}", answer.err);
    }
    let json = pln(&["status", "--json"]);
    assert_eq!(serde_json::from_str::<Failure>(&json.err).expect("a failure").code, Code::Unreachable);
}

#[test]
fn help_and_version_need_nothing() {
    let help = pln(&["--help"]);
    assert_eq!((help.code, help.err.as_str()), (0, ""));
    assert!(help.out.contains("invite"));
    assert_eq!(pln(&["version", "--short"]).out.trim(), env!("CARGO_PKG_VERSION"));
    let version = pln(&["version", "--json"]);
    assert_eq!((version.code, version.json()["daemon"].clone()), (0, Value::Null));
}

#[test]
fn bad_usage_under_json_is_the_promised_object() {
    for args in [
        &["--json", "frobnicate"][..],
        &["serve", "--json"],
        &["status", "blobs", "--json"],
        &["serve", "web", "80", "--json"],
    ] {
        let answer = pln(args);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{args:?}");
        let failure: Failure = serde_json::from_str(&answer.err).unwrap_or_else(|e| panic!("{e}: {}", answer.err));
        assert_eq!(failure.code, Code::Usage, "{args:?}");
        assert!(!failure.message.starts_with("error") && !failure.message.contains('\n'), "{}", failure.message);
        assert!(failure.hint.is_some(), "{args:?}");
    }
    assert!(pln(&["call", "s", "f", "--nope", "--", "--json"]).err.starts_with("error"), "data is no option");
    let help = pln(&["serve", "--help", "--json"]);
    assert_eq!((help.code, help.err.as_str()), (0, ""), "help is no failure");
}

#[test]
fn help_is_a_command_too() {
    for args in [&["help"][..], &["help", "serve"], &["help", "daemon", "install"]] {
        let answer = pln(args);
        assert_eq!((answer.code, answer.err.as_str()), (0, ""), "{args:?}");
        assert!(answer.out.contains("Usage: pln"), "{args:?}: {}", answer.out);
    }
    assert!(pln(&["help", "serve"]).out.contains("Publish a port"));
}

#[test]
fn joining_where_the_node_runs_starts_no_second_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let offline = Remembers::default();
    assert_eq!(pln_with(&offline, dir.path(), &["id"]).code, 0);
    let _runs = crate::store::StateDir::open(dir.path()).expect("it is ours");
    let join = pln_with(&offline, dir.path(), &["join", "token"]);
    assert_eq!((join.code, join.err.as_str()), (0, "It runs already.\n"));
    assert!(offline.ran.lock().expect("not poisoned").is_empty());
}

#[test]
fn init_and_join_print_whom_they_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let offline = Remembers::default();
    let init = pln_with(&offline, dir.path(), &["init", "--prop", "region=eu", "--json"]);
    assert_eq!(init.json()["root_pub"], sample::key(9).to_string());
    assert_eq!(offline.founded.lock().expect("not poisoned")[0]["region"], "eu");
    assert!(pln(&["init"]).out.starts_with("root_pub    "));

    let join = pln_with(&offline, dir.path(), &["join", "token", "--no-up"]);
    assert_eq!(join.code, 0, "{}", join.err);
    assert!(offline.ran.lock().expect("not poisoned").is_empty());
    assert_eq!(pln_with(&offline, dir.path(), &["join", "token", "--port", "7", "--public"]).code, 0);
    let ran = offline.ran.lock().expect("not poisoned").clone();
    assert_eq!(ran, [UpOptions { port: Some(7), public: true, ..UpOptions::default() }]);

    let spent = pln(&["join", "spent"]);
    assert_eq!(spent.code, 4);
    assert_eq!(spent.err, "pln: the token was used already\n  ask for another: pln invite\n");
}

#[test]
fn up_hands_its_options_on_and_refuses_what_it_cannot_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let offline = Remembers::default();
    let args = ["up", "--ips", "192.0.2.1,2001:db8::1", "--name", "ams", "--metrics"];
    assert_eq!(pln_with(&offline, dir.path(), &args).code, 0);
    let ran = offline.ran.lock().expect("not poisoned").remove(0);
    assert_eq!((ran.ips.len(), ran.name.as_deref()), (2, Some("ams")));
    assert_eq!(ran.http.map(|at| at.port()), Some(9090));

    let args = ["up", "--ips", "not:10.8.0.0/16,not:wg0"];
    assert_eq!(pln_with(&offline, dir.path(), &args).code, 0);
    let ran = offline.ran.lock().expect("not poisoned").remove(0);
    assert_eq!((ran.ips.len(), ran.not_ips.len()), (0, 2));
    assert!(pln(&["up", "--ips", "wg0"]).err.contains("not:wg0"));

    let detached = pln_with(&offline, dir.path(), &["up", "-d"]);
    assert_ne!(detached.code, 0);
    assert!(detached.err.contains("foreground"), "{}", detached.err);
    assert!(offline.ran.lock().expect("not poisoned").is_empty());
}

#[test]
fn an_id_is_made_once_and_read_ever_after() {
    let dir = tempfile::tempdir().expect("a directory");
    let ask = || pln_with(&Remembers::default(), dir.path(), &["id"]);
    let first = ask();
    assert_eq!((first.code, first.out.trim().len()), (0, 64), "{}", first.err);
    assert_eq!(ask().out, first.out);
}

#[test]
fn purge_asks_unless_told_and_needs_something_to_delete() {
    assert_eq!(pln(&["purge", "--yes"]).code, 3, "there is nothing");
    let dir = tempfile::tempdir().expect("a directory");
    let pln = |args: &[&str]| pln_with(&Remembers::default(), dir.path(), args);
    let key = pln(&["id"]).out;
    assert_eq!(pln(&["purge", "--yes"]).code, 0);
    assert_eq!(pln(&["id"]).out, key, "the key stays");
    assert_eq!(pln(&["purge", "--yes", "--include-keys"]).code, 0);
    assert_ne!(pln(&["id"]).out, key, "the key is gone");
    let _held = crate::store::StateDir::open(dir.path()).expect("it is ours");
    let busy = pln(&["purge", "--yes"]);
    assert!(busy.code == 1 && busy.err.contains("pln down"), "{}", busy.err);
}

#[test]
fn a_status_is_tables_for_people_and_json_for_programs() {
    let daemon = Daemon::start();
    let text = daemon.pln(&["status"]);
    assert!(text.out.starts_with("[HEALTHY]  [ADMIN]  ams  2 of 3 nodes online  1 seed\n"), "{}", text.out);
    assert!(!text.out.contains("cork"), "offline nodes are not shown unless asked for");
    assert!(daemon.pln(&["status", "nodes", "--include-offline"]).out.contains("cork"));
    assert_eq!(daemon.pln(&["status", "--json"]).json()["nodes"][2]["name"], "cork", "programs get everything");
    assert_eq!(daemon.pln(&["status", "services", "--json"]).json()[0]["name"], "api");
}

#[test]
fn looking_names_targets_and_says_what_is_not_there() {
    let daemon = Daemon::start();
    assert!(daemon.pln(&["inspect", "berlin"]).out.starts_with("node         berlin\n"));
    assert_eq!(daemon.pln(&["inspect", "service/api", "--json"]).json()["kind"], "service");
    let why = daemon.pln(&["why", "api"]);
    assert!(why.out.starts_with("service api\n- "), "{}", why.out);
    let absent = daemon.pln(&["inspect", "paris"]);
    assert_eq!(absent.code, 3);
    assert_eq!(
        absent.err,
        "pln: there is no node, service or seed `paris`\n  see `pln status --include-offline` for what there is\n"
    );
    assert_eq!(daemon.pln(&["why", "a b?c/../d"]).code, 3, "odd targets stay targets");
    assert_eq!(daemon.pln(&["inspect", ""]).code, 2);
}

#[test]
fn what_is_served_says_who_may_reach_it_and_can_answers_for_a_member() {
    let daemon = Daemon::start();
    let bounds = ["--allow", "ams", "--allow-tier", "publisher", "--allow-prop", "env=prod", "--allow-prop", "gpu=yes"];
    let served = daemon.pln(&[&["serve", "8080", "web"][..], &bounds].concat());
    let ends = "; and publishers and admins with env=prod and gpu=yes may reach it, and nobody else\n";
    assert!(served.err.starts_with("ams") && served.err.ends_with(ends), "{}", served.err);
    let asked = daemon.fake.asked().served.last().and_then(|serve| serve.policy.clone()).expect("a policy");
    assert_eq!((asked.peers.len(), asked.props.len()), (1, 2));
    daemon.pln(&["serve", "8080", "web"]);
    daemon.pln(&["serve", "8080", "web", "--allow-all"]);
    let said: Vec<_> = daemon.fake.asked().served.iter().rev().take(2).map(|serve| serve.policy.clone()).collect();
    assert_eq!(said, [Some(Policy::default()), None]);
    for (args, code) in [
        (&["--allow", "nobody"][..], 3),
        (&["--allow-tier", "king"], 2),
        (&["--allow-prop", "env"], 2),
        (&["--allow-prop", "a=1", "--allow-prop", "a=2"], 2),
        (&["--allow-prop", "a=\u{202e}x"], 2),
        (&["--allow-all", "--allow", "ams"], 2),
    ] {
        assert_eq!(daemon.pln(&[&["serve", "8080", "web"], args].concat()).code, code, "{args:?}");
    }

    for (args, code, said) in [
        (&["berlin", "connect", "api"][..], 0, "yes: no policy bounds it: every member may reach it\n"),
        (&["ams", "connect", "5353", "berlin"], 0, "yes: the policy names it\n"),
        (&["berlin", "connect", "5353", "berlin"], 0, "yes: it provides the service itself\n"),
        (&["cork", "connect", "5353", "berlin"], 4, "no: the policy asks for the tier publisher, and it is a leaf\n"),
        (&["cork", "call", "hello"], 0, "yes: no policy bounds it: every member may reach it\n"),
    ] {
        let answer = daemon.pln(&[&["can"], args].concat());
        assert_eq!((answer.code, answer.out.as_str()), (code, said), "{args:?}: {}", answer.err);
    }
    let no = daemon.pln(&["can", "cork", "connect", "5353", "berlin", "--json"]);
    assert_eq!(
        (no.code, no.json()["allowed"].as_bool(), no.json()["peer"]["name"].as_str()),
        (4, Some(false), Some("cork"))
    );
    let out = daemon.pln(&["can", &sample::key(9).to_string(), "connect", "api"]);
    assert_eq!((out.code, out.out.as_str()), (4, "no: it is no member\n"));
    for (args, code) in [
        (&["nobody", "connect", "api"][..], 3),
        (&["cork", "connect", "nothing"], 3),
        (&["cork", "connect", "hello"], 3),
        (&["cork", "call", "api"], 3),
        (&["cork", "connect", "5353"], 2),
        (&["cork", "fly", "api"], 2),
    ] {
        assert_eq!(daemon.pln(&[&["can"], args].concat()).code, code, "{args:?}");
    }
}

#[test]
fn services_are_published_and_reached() {
    let daemon = Daemon::start();
    assert_eq!(daemon.pln(&["serve", "8080", "api", "--shared"]).out, "serving tcp port 8080 as api, shared\n");
    let quiet = daemon.pln(&["serve", "53", "--udp"]);
    assert_eq!(quiet.out, "serving udp port 53\n");
    let open = "every member of the cluster may reach it; bound it by --allow PEER, --allow-tier or --allow-prop\n";
    assert_eq!(quiet.err, format!("{open}warning: nothing listens there\n"));
    assert_eq!(daemon.pln(&["serve", "53", "--json"]).json()["warnings"][0], "nothing listens there");
    let both = daemon.pln(&["serve", "530", "dns", "--tcp", "--udp"]);
    assert_eq!(both.out, "serving tcp and udp port 530 as dns\n");
    let asked: Vec<_> = daemon.fake.asked().served.iter().rev().take(2).map(|s| (s.protocol, s.port)).collect();
    assert_eq!(asked, [(Protocol::Udp, 530), (Protocol::Tcp, 530)]);
    let denied = daemon.pln(&["serve", "60001", "x"]);
    assert_eq!(denied.code, 4);
    assert!(denied.err.contains("this node is a leaf"), "{}", denied.err);
    assert_eq!(daemon.pln(&["unserve", "api"]).code, 0);
    assert_eq!(daemon.pln(&["unserve", "other"]).code, 3);
    assert_eq!(daemon.pln(&["unserve", "a/b"]).code, 2);

    assert_eq!(daemon.pln(&["connect", "api"]).out, "api is at 127.0.0.1:8080 and [::1]:8080\n");
    daemon.pln(&["connect", "api", "9000"]);
    daemon.pln(&["connect", "api", "berlin", "9001"]);
    assert_eq!(daemon.pln(&["connect", "api", "berlin", "x"]).code, 2);
    assert_eq!(daemon.pln(&["connect", "8080"]).code, 2, "whose port?");
    let asked: Vec<(Option<String>, Option<u16>)> =
        daemon.fake.asked().connected.iter().map(|c| (c.provider.clone(), c.local_port)).collect();
    assert_eq!(asked, [(None, None), (None, Some(9000)), (Some("berlin".into()), Some(9001))]);
    assert_eq!(daemon.pln(&["disconnect", "9000", "--json"]).json().as_array().map(Vec::len), Some(1));
}

#[test]
fn an_invite_prints_the_token_alone() {
    let daemon = Daemon::start();
    let invited = daemon.pln(&["invite", "--publisher", "--ttl", "1h", "--prop", "region=eu", "--quota", "2MiB"]);
    assert_eq!(invited.out, "-_8B\n", "so that a script can pass it on");
    assert_eq!(invited.err, "Good once, until 2026-11-23 03:24:01Z\n");
    let wrong = daemon.pln(&["invite", "--subject", "abc"]);
    assert_eq!(wrong.code, 2);
    assert_eq!(daemon.pln(&["invite", "--quota", "1KiB"]).code, 2);
}

#[test]
fn streams_are_lines() {
    let daemon = Daemon::start();
    let events = daemon.pln(&["events", "-n", "1"]);
    assert_eq!(events.out, "2026-11-23 02:24:01Z  peer_up    8139770e  berlin is up (3)\n");
    let json = daemon.pln(&["events", "--json"]);
    assert_eq!(json.out.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count(), 3);
    assert_eq!(daemon.pln(&["logs", "-n", "2"]).out, "two\nthree\n");
}

#[test]
fn settings_are_shown_and_changed() {
    let daemon = Daemon::start();
    let keys = ["name", "http", "log-level", "seed-memory", "stream-patience", "relay", "datapath"];
    let shown: String = keys.iter().map(|key| format!("{key:15}  (default)\n")).collect();
    assert_eq!(daemon.pln(&["set"]).out, shown);
    assert_eq!(daemon.pln(&["set", "log-level", "debug"]).out, "log-level        debug\n");
    assert_eq!(daemon.pln(&["set", "log-level", "--json"]).json()["log-level"], "debug");
    assert_eq!(daemon.pln(&["set", "log-level", "pollen=loud"]).code, 2);
    assert_eq!(daemon.pln(&["set", "seed-memory", "4096MiB"]).out, "seed-memory      4GiB\n");
    assert_eq!(daemon.pln(&["set", "seed-memory", "4"]).code, 2);
    assert_eq!(daemon.pln(&["set", "stream-patience", "90s"]).out, "stream-patience  1m30s\n");
    assert_eq!(daemon.pln(&["set", "stream-patience", "90"]).code, 2);
    assert_eq!(daemon.pln(&["set", "datapath", "socket"]).out, "datapath         socket\n");
    assert!(daemon.pln(&["set", "datapath", "dpdk"]).err.contains("auto, xdp, xdp-generic or socket"));
    assert_eq!(daemon.pln(&["unset", "seed-memory"]).out, "seed-memory      (default)\n");
    assert_eq!(daemon.pln(&["unset", "log-level"]).out, "log-level        (default)\n");
}

#[test]
fn down_waits_until_the_daemon_is_gone() {
    let daemon = Daemon::start();
    assert_eq!(daemon.pln(&["down"]).out, "down\n");
    assert_eq!(daemon.pln(&["status"]).code, 6);
    assert_eq!(daemon.pln(&["down"]).code, 6);
}

#[test]
fn logs_of_a_daemon_that_is_gone_can_still_be_read() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("log")).expect("a fresh directory");
    std::fs::write(dir.path().join("log/pln.log"), "one\ntwo \x1b[2J\n").expect("a fresh directory");
    let logs = pln_with(&Remembers::default(), dir.path(), &["logs", "-n", "1"]);
    assert_eq!((logs.code, logs.out.as_str()), (0, "two \u{fffd}[2J\n"));
    assert!(logs.err.contains("down"));
}
