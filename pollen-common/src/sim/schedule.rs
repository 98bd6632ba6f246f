//! One seeded run: writes, deletions and seeds under faults, then quiet, then the comparison of every replica with every
//! other and with the plain model.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use super::{Model, World};
use crate::identity::NodeKey;
use crate::node::{Command, RefusalKind, RequestId};

/// Writes and deletions of one run.
const CHANGES: usize = 220;

/// Keys each node writes to: few enough that they are written again and deleted.
const KEYS: usize = 40;

/// One run in so many has seeds too: replicas take their time to settle, which makes such a run twice as long.
const SEEDS_IN: u64 = 3;

/// The machine that cannot make anything ready at times, in runs with seeds: one, so that others always can.
const UNABLE_AT: usize = 1;

/// Virtual time within which healed replicas must agree.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// A run to make.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub seed: u64,
    /// As in [`crate::node::NodeConfig`]: off only to show that its absence is noticed.
    pub repair: bool,
}

/// What a run that ended well did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub nodes: usize,
    pub changes: usize,
    pub crashes: usize,
    pub partitions: usize,
    pub cuts: usize,
    /// Claims of seeds written, replaced or withdrawn.
    pub seedings: usize,
    pub drains: usize,
    /// Times that a machine became unable to make anything ready, or able again.
    pub inabilities: usize,
    /// Virtual time from the last fault to agreement, to the second.
    pub quiet: Duration,
}

/// How a run ended badly; its seed replays it.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.what)
    }
}

struct Pending {
    id: RequestId,
    author: NodeKey,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    machine: usize,
    life: u64,
}

struct Run {
    schedule: Schedule,
    world: World,
    model: Model,
    pending: Vec<Pending>,
    summary: Summary,
}

impl Schedule {
    /// Plays it. Five to nine nodes, by the seed.
    pub fn run(self) -> Result<Summary, Failure> {
        let nodes = 5 + usize::try_from(self.seed % 5).unwrap_or(0);
        let world = World::new(self.seed, nodes, self.repair);
        let summary = Summary { nodes, ..Summary::default() };
        let mut run = Run { schedule: self, world, model: Model::default(), pending: Vec::new(), summary };
        run.world.loss = 6;
        run.world.watch.flaky = 8;
        let seeds = self.seed.is_multiple_of(SEEDS_IN);
        if seeds {
            run.world.offer_all();
        }
        let mut single = 0;
        // Bursts come on top: they would end a run before its faults.
        while single < CHANGES {
            let pause = run.world.below(120);
            run.pass(Duration::from_millis(pause as u64))?;
            match run.world.below(100) {
                0..=2 => run.crash_or_start(),
                3..=4 => run.partition(),
                5..=8 => run.cut(),
                9 => run.connect_again(),
                10 => run.burst()?,
                11..=16 if seeds => run.seed(),
                17 if seeds => run.drain(),
                18 if seeds => run.enable_or_disable(),
                _ => single += usize::from(run.change()),
            }
        }
        run.heal()
    }
}

impl Run {
    fn failure(&self, what: String) -> Failure {
        Failure { seed: self.schedule.seed, what }
    }

    fn pass(&mut self, time: Duration) -> Result<(), Failure> {
        self.world.run_for(time);
        let mut open = Vec::new();
        for pending in core::mem::take(&mut self.pending) {
            match self.world.reply(pending.id) {
                Some(Ok(_)) => self.model.acknowledged(pending.author, &pending.key, &pending.value),
                // What was never written, or fell with a crash, is not there.
                Some(Err(refusal)) if refusal.kind == RefusalKind::NotFound => {
                    self.model.acknowledged(pending.author, &pending.key, &None);
                }
                Some(Err(refusal)) => return Err(self.failure(format!("a write was refused: {}", refusal.message))),
                None if self.world.machines[pending.machine].life == pending.life => open.push(pending),
                // The machine crashed: it may or may not have happened.
                None => {}
            }
        }
        self.pending = open;
        Ok(())
    }

    /// One write or deletion at a machine that is up, if there is one.
    fn change(&mut self) -> bool {
        let up: Vec<_> = (0..self.world.len()).filter(|at| self.world.node(*at).is_some()).collect();
        let Some(at) = self.world.pick(&up) else { return false };
        let key = format!("k{}", self.world.below(KEYS)).into_bytes();
        let size = if self.world.below(20) == 0 { 3000 } else { self.world.below(100) };
        let value = (self.world.below(3) > 0).then(|| {
            let mut value = format!("{}:", self.summary.changes).into_bytes();
            value.resize(value.len() + size, b'.');
            value
        });
        self.write(at, key, value);
        true
    }

    /// Many keys of one node at once, then all deleted: more deletions than any replica remembers.
    fn burst(&mut self) -> Result<(), Failure> {
        let at = self.world.below(self.world.len());
        for n in 0..300 {
            self.write(at, format!("b{n}").into_bytes(), Some(alloc::vec![b'b'; 8]));
        }
        self.pass(Duration::from_millis(300))?;
        for n in 0..300 {
            self.write(at, format!("b{n}").into_bytes(), None);
        }
        Ok(())
    }

    fn write(&mut self, machine: usize, key: Vec<u8>, value: Option<Vec<u8>>) {
        if self.world.node(machine).is_none() {
            return;
        }
        let author = self.world.machines[machine].key();
        self.model.asked(author, &key, value.clone());
        self.summary.changes += 1;
        let command = match value.clone() {
            Some(value) => Command::PutState { key: key.clone(), value },
            None => Command::DeleteState { key: key.clone() },
        };
        if let Some(id) = self.world.command(machine, command) {
            let life = self.world.machines[machine].life;
            self.pending.push(Pending { id, author, key, value, machine, life });
        }
    }

    /// Publishes, replaces or withdraws a seed.
    fn seed(&mut self) {
        let machine = self.world.below(self.world.len());
        let Some(change) = self.world.change_seed(machine) else { return };
        let (author, life) = (self.world.machines[machine].key(), self.world.machines[machine].life);
        let (id, key, value) = (change.id, change.key, change.value);
        self.model.asked(author, &key, value.clone());
        self.summary.seedings += 1;
        self.pending.push(Pending { id, author, key, value, machine, life });
    }

    /// Makes a machine hand over what it hosts, for the rest of its life.
    fn drain(&mut self) {
        let machine = self.world.below(self.world.len());
        self.summary.drains += usize::from(self.world.command(machine, Command::Drain).is_some());
    }

    /// Some of what it cannot make ready it goes on saying when all is quiet, and nobody may wait for it.
    fn enable_or_disable(&mut self) {
        let unable = self.world.below(2) == 0;
        self.world.set_unable(UNABLE_AT, unable);
        self.summary.inabilities += 1;
    }

    fn crash_or_start(&mut self) {
        let at = self.world.below(self.world.len());
        if self.world.node(at).is_some() {
            self.world.crash(at);
            self.summary.crashes += 1;
        } else {
            self.world.start(at);
        }
    }

    fn partition(&mut self) {
        let count = self.world.below(self.world.len());
        let far: Vec<_> = (0..count).map(|_| self.world.below(self.world.len())).collect();
        self.summary.partitions += usize::from(!far.is_empty());
        self.world.partition(far);
    }

    fn cut(&mut self) {
        let bytes = self.world.below(2000);
        self.world.cut_after(bytes);
        self.summary.cuts += 1;
    }

    fn connect_again(&mut self) {
        let (from, to) = (self.world.below(self.world.len()), self.world.below(self.world.len()));
        if from != to {
            self.world.duplicate(from, to);
        }
    }

    /// Ends all faults and waits for agreement.
    fn heal(mut self) -> Result<Summary, Failure> {
        self.world.partition([]);
        self.world.loss = 0;
        self.world.watch.flaky = 0;
        (0..self.world.len()).for_each(|at| self.world.start(at));
        let mut disagreement = String::from("never compared");
        while self.summary.quiet < QUIET_MAX {
            self.pass(Duration::from_secs(1))?;
            self.summary.quiet += Duration::from_secs(1);
            match self.disagreement() {
                None => return Ok(self.summary),
                Some(what) => disagreement = what,
            }
        }
        Err(self.failure(format!("no agreement after {QUIET_MAX:?}: {disagreement}")))
    }

    /// The first way in which the replicas differ from each other or from the model.
    fn disagreement(&self) -> Option<String> {
        if let Some(pending) = self.pending.first() {
            return Some(format!("{} write(s) not acknowledged, on {:?}", self.pending.len(), pending.author));
        }
        let first = self.world.roots(0);
        for at in 0..self.world.len() {
            let roots = self.world.roots(at);
            if roots != first {
                return Some(format!("machine {at} holds {roots:?}, machine 0 {first:?}"));
            }
            let mut found = self.world.state(at);
            found.extend(self.world.claims(at));
            if let Some(fault) = self.model.fault(&found) {
                return Some(format!("machine {at}: {fault:?}"));
            }
        }
        self.world.misplaced()
    }
}
