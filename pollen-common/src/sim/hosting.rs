//! Seeds on simulated machines: modules on disks, fetching from reachable holders, compiling, serving; and a watch over
//! seeds that must never be without a replica. Owns the delays and the failures; decides nothing.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::World;
use super::network::At;
use super::world::Event;
use crate::identity::{Digest, NodeKey};
use crate::node::{Command, Input, RequestId};
use crate::views::{Inability, Name, SeedTerms, SeedVersion, VersionId};

/// What a machine has of seeds. Modules survive a crash, replicas do not.
#[derive(Clone, Debug, Default)]
pub(super) struct Seeds {
    modules: BTreeSet<Digest>,
    making: BTreeMap<VersionId, u64>,
    serving: BTreeMap<VersionId, Name>,
    attempts: u64,
    /// Nothing more can be made ready here, for a reason of the machine's own. Outlives crashes, as a full disk does.
    unable: bool,
    /// Replicas ever asked for.
    pub(super) starts: usize,
}

impl Seeds {
    pub(super) fn crash(&mut self) {
        self.making.clear();
        self.serving.clear();
    }
}

/// A replica being made.
#[derive(Debug)]
pub(super) struct Making {
    version: SeedVersion,
    name: Name,
    attempt: u64,
    /// Where the module comes from, if it is not on the disk.
    from: Option<At>,
    fails: bool,
    own: Option<Inability>,
}

/// Seeds that must be served at every moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    names: BTreeSet<Name>,
    /// What was found wrong, the first few times.
    gaps: Vec<String>,
    /// Of replicas being made, in 1/256, fail.
    pub(super) flaky: usize,
}

/// How long a machine that has started may take to hear of all others, over this network.
const JUST_STARTED: Duration = Duration::from_secs(1);

/// What is wrong again and again need not be told more often.
const GAPS_MAX: usize = 5;

impl World {
    /// Publishes `name` on a machine with a module made up from `content`, which is put on its disk. `None` when it is
    /// down.
    pub fn publish_seed(&mut self, at: At, name: &Name, terms: SeedTerms) -> Option<RequestId> {
        self.node(at)?;
        self.machines[at].seeds.modules.insert(terms.version.module);
        self.tell_holding(at);
        self.command(at, Command::Seed { name: name.clone(), terms })
    }

    /// The machines that serve a version now, by what they do and not by what anybody says.
    #[must_use]
    pub fn serving(&self, version: &VersionId) -> BTreeSet<NodeKey> {
        let up = self.machines.iter().filter(|machine| machine.node.is_some());
        up.filter(|machine| machine.seeds.serving.contains_key(version)).map(|machine| machine.key()).collect()
    }

    /// All versions that any machine serves.
    #[must_use]
    pub fn served(&self) -> BTreeSet<VersionId> {
        self.machines.iter().flat_map(|machine| machine.seeds.serving.keys().copied()).collect()
    }

    /// Replicas that machines were ever asked for.
    #[must_use]
    pub fn starts(&self) -> usize {
        self.machines.iter().map(|machine| machine.seeds.starts).sum()
    }

    /// From now on a machine can make nothing ready, or again can. What it serves it goes on serving.
    pub fn set_unable(&mut self, at: At, unable: bool) {
        self.machines[at].seeds.unable = unable;
    }

    /// From now on a seed must be served, and be reachable by what each machine knows, at every event.
    pub fn watch(&mut self, name: &Name) {
        self.watch.names.insert(name.clone());
    }

    /// What the watch has found.
    #[must_use]
    pub fn gaps(&self) -> &[String] {
        &self.watch.gaps
    }

    pub(super) fn look(&mut self) {
        if self.watch.gaps.len() >= GAPS_MAX {
            return;
        }
        let names: Vec<Name> = self.watch.names.iter().cloned().collect();
        for name in names {
            let up = (0..self.len()).filter(|at| self.node(*at).is_some());
            let lost: Vec<At> = up.filter(|at| !self.can_call(*at, &name)).collect();
            if !lost.is_empty() {
                let at = self.clock().mono.0 / 1_000_000;
                self.watch.gaps.push(format!("{at} ms: no replica of {name} for machines {lost:?}"));
            }
        }
    }

    /// Whether a machine's view names a replica that serves and can be reached. One that does not know the seed yet, or
    /// has met nobody or only just started, asks for nothing: it hears of those who serve from one neighbour at a time.
    fn can_call(&self, at: At, name: &Name) -> bool {
        let Some(node) = self.node(at) else { return true };
        let view = node.view();
        let Some(seed) = view.seeds.get(name) else { return true };
        let just_started = self.clock().mono.since(self.machines[at].started) < JUST_STARTED;
        if just_started || view.nodes.values().filter(|info| info.liveness.is_online()).count() < 2 {
            return true;
        }
        let serves = |id: &VersionId, key: &NodeKey| {
            let to = self.machines.iter().position(|machine| machine.key() == *key);
            to.is_some_and(|to| {
                let machine = &self.machines[to];
                self.network.reaches(at, to) && machine.node.is_some() && machine.seeds.serving.contains_key(id)
            })
        };
        seed.replicas.iter().any(|(id, nodes)| nodes.iter().any(|key| serves(id, key)))
    }

    pub(super) fn start_replica(&mut self, at: At, version: SeedVersion, name: Name, holders: &[NodeKey]) {
        let id = version.id();
        let fails = self.below(256) < self.watch.flaky;
        let holds = |to: &At| {
            let machine = &self.machines[*to];
            machine.node.is_some() && self.network.reaches(at, *to) && machine.seeds.modules.contains(&version.module)
        };
        let on_disk = self.machines[at].seeds.modules.contains(&version.module);
        let known = holders.iter().filter_map(|key| self.machines.iter().position(|machine| machine.key() == *key));
        let from = known.filter(|_| !on_disk).find(holds);
        let seeds = &mut self.machines[at].seeds;
        let own = seeds.unable.then_some(Inability::Disk);
        assert!(!seeds.serving.contains_key(&id), "what serves is not started again");
        seeds.starts += 1;
        seeds.attempts += 1;
        let attempt = seeds.attempts;
        let doubled = seeds.making.insert(id, attempt);
        assert!(doubled.is_none(), "what is being started is not started again");
        // What was compiled once is in a cache beside the module.
        let ms = if on_disk { 2 + self.below(20) } else { 50 + self.below(800) };
        let fails = fails || (!on_disk && from.is_none());
        let making = Making { version, name, attempt, from, fails, own };
        let life = self.machines[at].life;
        self.later(Duration::from_millis(ms as u64), Event::Made { machine: at, life, making });
    }

    pub(super) fn made(&mut self, at: At, life: u64, making: Making) {
        let Making { version, name, attempt, from, fails, own } = making;
        let id = version.id();
        if self.machines[at].life != life || self.machines[at].seeds.making.get(&id) != Some(&attempt) {
            return;
        }
        let lost = from.is_some_and(|from| self.node(from).is_none() || !self.network.reaches(at, from));
        let seeds = &mut self.machines[at].seeds;
        seeds.making.remove(&id);
        let failed = if fails || lost {
            Some(("nobody could be asked for it", None))
        } else {
            own.map(|own| ("the disk is full", Some(own)))
        };
        if let Some((reason, own)) = failed {
            self.input(at, Input::ReplicaFailed { version: id, reason: reason.into(), own });
            return;
        }
        seeds.serving.insert(id, name);
        if seeds.modules.insert(version.module) {
            self.tell_holding(at);
        }
        self.input(at, Input::ReplicaReady { version: id });
    }

    pub(super) fn stop_replica(&mut self, at: At, version: VersionId) {
        let seeds = &mut self.machines[at].seeds;
        seeds.making.remove(&version);
        seeds.serving.remove(&version);
        let (life, ms) = (self.machines[at].life, self.below(200));
        self.later(Duration::from_millis(ms as u64), Event::Stopped { machine: at, life, version });
    }

    fn tell_holding(&mut self, at: At) {
        let modules = self.machines[at].seeds.modules.iter().copied().collect();
        self.input(at, Input::Holding { modules });
    }
}
