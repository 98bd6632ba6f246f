//! Crashes at any moment: what was acknowledged is there afterwards, and nothing that was removed comes back.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tests::cluster::{TOGETHER_DEADLINE, form};
use tests::lab::{Family, lab_or_skip};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::status::{Status, await_equal, await_online};
use tests::traffic::{Server, Xorshift, dial, exchange};

use crate::services::connect;

/// A node that hears from no neighbour what it wrote before waits for five seconds.
const WRITABLE_DEADLINE: Duration = Duration::from_secs(8);
const BACK_DEADLINE: Duration = Duration::from_secs(10);

#[test]
fn a_cluster_that_died_at_once_is_back_without_a_command() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::Both, ["a", "b", "c"]).unwrap().map(Pln::on);
    form(&mut nodes, &["--publisher"]).unwrap();
    let server = Server::tcp_echo(&nodes[0].host, 0).unwrap();
    nodes[0].ok(&["serve", &server.port.to_string(), "echo"]).unwrap();
    let port = connect(&nodes[2], "echo");

    for node in &mut nodes {
        node.kill().unwrap();
    }
    let started = Instant::now();
    for node in &mut nodes {
        node.spawn_up().unwrap();
    }
    for node in &mut nodes {
        node.await_answer().unwrap();
    }
    let left = || BACK_DEADLINE.saturating_sub(started.elapsed());
    await_online(&nodes.each_ref(), &["a", "b", "c"], left()).unwrap();
    let host = &nodes[2].host;
    let echo = || match dial(host, port).and_then(|mut stream| exchange(&mut stream, b"still there?")) {
        Ok(answer) if answer == b"still there?" => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("the service is back", left(), echo).unwrap();
}

/// What one node has published, as far as its answers tell.
#[derive(Default)]
struct Ledger {
    published: BTreeSet<String>,
    /// The command that a crash cut off: it may have happened.
    in_doubt: Option<String>,
}

impl Ledger {
    /// Fails unless `seen` is what must be there; settles the doubt by it.
    fn check(&mut self, seen: &BTreeSet<String>, when: &str) {
        let settle = |names: &BTreeSet<String>| -> BTreeSet<String> {
            names.iter().filter(|name| Some(*name) != self.in_doubt.as_ref()).cloned().collect()
        };
        assert_eq!(settle(seen), settle(&self.published), "{when}; in doubt: {:?}", self.in_doubt);
        self.published.clone_from(seen);
        self.in_doubt = None;
    }

    /// Publishes and removes names until a command fails, as it does when the node dies; tells `acknowledged` of each.
    fn change(&mut self, node: &Pln, numbers: &mut Xorshift, acknowledged: &mpsc::Sender<()>) -> usize {
        const NAMES: u64 = 12;
        let mut done = 0;
        loop {
            let number = numbers.below(NAMES);
            let name = format!("name-{number}");
            let removes = self.published.contains(&name);
            let port = (9000 + number).to_string();
            let args: &[&str] = if removes { &["unserve", &name] } else { &["serve", &port, &name] };
            if node.run(args).unwrap().status.success() {
                if removes {
                    self.published.remove(&name)
                } else {
                    self.published.insert(name)
                };
                done += 1;
                // The killer listens to the first only.
                let _heard = acknowledged.send(());
            } else {
                self.in_doubt = Some(name);
                return done;
            }
        }
    }
}

#[test]
fn crashes_at_random_moments_lose_nothing_acknowledged_and_bring_nothing_back() {
    const ROUNDS: u64 = 50;
    let seed = std::env::var("PLN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x706f_6c6c_656e);
    eprintln!("seed {seed}: PLN_SEED={seed} repeats it");
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b"]).unwrap().map(Pln::on);
    form(&mut nodes, &["--publisher"]).unwrap();
    let [a, b] = &mut nodes;
    let mut numbers = Xorshift::new(seed);
    let mut ledger = Ledger::default();
    let mut done = 0;
    for round in 0..ROUNDS {
        // A restarted node writes once it has heard what its neighbours hold of its own, which takes a moment: most
        // rounds kill it soon after it has begun to, every fifth earlier.
        let patience = if round % 5 == 4 { Duration::from_millis(numbers.below(300)) } else { WRITABLE_DEADLINE };
        let delay = Duration::from_millis(numbers.below(120));
        let (acknowledged, first) = mpsc::channel();
        let pid = libc::pid_t::try_from(a.pid().unwrap()).unwrap();
        let killer = std::thread::spawn(move || {
            if first.recv_timeout(patience).is_ok() {
                std::thread::sleep(delay);
            }
            // SAFETY: a plain system call; the process is waited for only after this thread, so the number is its own.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        });
        done += ledger.change(a, &mut numbers, &acknowledged);
        killer.join().unwrap();
        // Collects the dead process.
        a.kill().unwrap();
        a.up().unwrap();
        let seen = Status::of(a).unwrap().services().unwrap();
        ledger.check(&seen, &format!("round {round}, seed {seed}"));
    }
    // At least one in each round that waits for it, however slow the machine.
    let least = usize::try_from(ROUNDS / 5 * 4).unwrap();
    assert!(done >= least, "only {done} commands were acknowledged: the rounds crashed nothing under way");
    await_online(&[a, b], &["a", "b"], TOGETHER_DEADLINE).unwrap();
    await_equal(&[a, b], TOGETHER_DEADLINE).unwrap();
    ledger.check(&Status::of(b).unwrap().services().unwrap(), &format!("on the other node, seed {seed}"));
}
