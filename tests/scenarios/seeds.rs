//! A mesh with seeds in it, as the scenarios of seeds need it: who hosts one, who does not, and what a call says.
//! Each scenario is a room of its own beneath.

mod calls;
mod chains;
mod coming;
mod death;
mod limits;
mod restart;
mod tamper;
mod unable;
mod upgrade;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use tests::calls::{Answer, Call, Caller, Failure};
use tests::cluster::form;
use tests::lab::{Family, Lab, lab_or_skip};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::status::Status;
use tests::traffic::http_get;

/// A seed is ready on as many nodes as it shall be, and every node knows it, within this: compiling the largest module
/// takes seconds on a loaded machine.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// How many nodes host a seed unless its publisher says otherwise.
const FLOOR: usize = 2;

/// Four nodes, all of them publishers, of which two host a seed that asks for no more.
struct Mesh<const N: usize = 4> {
    nodes: [Pln; N],
    _lab: Lab,
}

impl Mesh {
    fn new() -> Option<Self> {
        Self::of(["a", "b", "c", "d"])
    }
}

impl<const N: usize> Mesh<N> {
    fn of(names: [&str; N]) -> Option<Self> {
        let mut lab = lab_or_skip()?;
        let mut nodes = lab.hosts(Family::Both, names).unwrap().map(Pln::on);
        form(&mut nodes, &["--publisher"]).unwrap();
        Some(Self { nodes, _lab: lab })
    }

    fn node(&self, name: &str) -> &Pln {
        self.nodes.iter().find(|node| node.host.name() == name).unwrap()
    }

    fn node_mut(&mut self, name: &str) -> &mut Pln {
        self.nodes.iter_mut().find(|node| node.host.name() == name).unwrap()
    }

    /// Publishes on the first node, waits until all nodes see `floor` hosts ready; returns who they are.
    fn seed(&self, module: &Path, name: &str, flags: &[&str], floor: usize) -> BTreeSet<String> {
        seed(&self.nodes[0], module, name, flags);
        self.settled(name, floor)
    }

    /// Who hosts a seed, once all nodes that are up agree on `floor` of them.
    fn settled(&self, name: &str, floor: usize) -> BTreeSet<String> {
        let up: Vec<&Pln> = self.nodes.iter().filter(|node| node.pid().is_ok()).collect();
        settled(&up, name, floor, READY_DEADLINE)
    }

    /// All but the node of this name.
    fn without(&self, name: &str) -> Vec<&Pln> {
        self.nodes.iter().filter(|node| node.host.name() != name).collect()
    }

    /// A node that does not host `seed`, given who does.
    fn outsider(&self, hosts: &BTreeSet<String>) -> &Pln {
        self.nodes.iter().find(|node| !hosts.contains(node.host.name())).unwrap()
    }
}

/// Publishes a module under a name.
fn seed(node: &Pln, module: &Path, name: &str, flags: &[&str]) {
    node.json(&[&["seed", module.to_str().unwrap(), name], flags].concat()).unwrap();
}

/// Who hosts a seed, once `nodes` agree on `floor` hosts, all of them among themselves.
fn settled(nodes: &[&Pln], name: &str, floor: usize, deadline: Duration) -> BTreeSet<String> {
    let among: BTreeSet<_> = nodes.iter().map(|node| node.host.name().to_owned()).collect();
    let agreed = || {
        let mut seen = BTreeSet::new();
        for node in nodes {
            let hosts = Status::of(node).and_then(|status| status.hosts(name)).map_err(|error| format!("{error:#}"))?;
            if hosts.len() != floor || !hosts.is_subset(&among) {
                return Err(format!("{} sees it on {hosts:?}", node.host.name()));
            }
            seen.insert(hosts);
        }
        if seen.len() == 1 { Ok(seen.pop_first().unwrap()) } else { Err(format!("they see {seen:?}")) }
    };
    eventually(&format!("{name} is ready on {floor}"), deadline, agreed).unwrap().0
}

/// Calls once, as the control socket does it.
fn ask(node: &Pln, seed: &str, function: &str, input: &[u8]) -> Result<Answer, Failure> {
    Caller::on(node).call(&Call::of(seed, function, input)).unwrap()
}

/// What a call answers, as text.
fn answer(node: &Pln, seed: &str, function: &str, input: &[u8]) -> String {
    let answer = ask(node, seed, function, input).unwrap_or_else(|f| panic!("{seed} {function}: {f:?}"));
    String::from_utf8(answer.output).unwrap()
}

/// What a relay is told: whom to ask, and what.
fn relayed(uris: &[&str], input: &str) -> Vec<u8> {
    [uris, &[input]].concat().join("\n").into_bytes()
}

/// The sum of a metric's values over the lines that contain `label`, on a node whose metrics are served at `port`.
fn metric(node: &Pln, port: u16, name: &str, label: &str) -> f64 {
    let metrics = String::from_utf8(http_get(&node.host, port, "/metrics").unwrap()).unwrap();
    let of_it = |line: &&str| line.starts_with(name) && line.contains(label);
    metrics.lines().filter(of_it).map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}
