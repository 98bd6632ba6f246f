//! One simulated machine: a node that may be down, its disk, and the writes on their way to it.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::hosting::Seeds;
use crate::identity::{NodeKey, SecretKey, Strict};
use crate::node::{Node, NodeConfig, PersistId, Write};
use crate::time::{Instant, Now};

/// A machine. What survives a crash is its secret and its disk, nothing else.
pub struct Machine {
    pub(super) secret: SecretKey,
    pub(super) node: Option<Node>,
    disk: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Batches not yet on disk, oldest first.
    writing: VecDeque<(PersistId, Vec<Write>)>,
    /// Raised at every start: what was meant for an earlier life is not delivered.
    pub(super) life: u64,
    /// When this life began.
    pub(super) started: Instant,
    pub(super) repair: bool,
    pub(super) seeds: Seeds,
    /// How far its wall clock is ahead of the world's.
    pub(super) clock_ahead_ms: u64,
}

impl Machine {
    pub(super) fn new(secret: SecretKey, records: Vec<Write>, repair: bool) -> Self {
        let mut machine = Self {
            secret,
            node: None,
            disk: BTreeMap::new(),
            writing: VecDeque::new(),
            life: 0,
            started: Instant::default(),
            repair,
            seeds: Seeds::default(),
            clock_ahead_ms: 0,
        };
        machine.apply(records);
        machine
    }

    /// Another machine with the same secret and the same disk.
    pub(super) fn copy(&self) -> Self {
        let (secret, disk) = (self.secret.clone(), self.disk.clone());
        Self {
            secret,
            node: None,
            disk,
            writing: VecDeque::new(),
            life: 0,
            started: Instant::default(),
            repair: self.repair,
            seeds: Seeds::default(),
            clock_ahead_ms: self.clock_ahead_ms,
        }
    }

    pub(super) fn key(&self) -> NodeKey {
        self.secret.public()
    }

    pub(super) fn start(&mut self, entropy: [u8; 32], now: Now) {
        self.life += 1;
        self.started = now.mono;
        let config =
            NodeConfig { repair: self.repair, ..NodeConfig::new(self.secret.clone(), entropy, Arc::new(Strict)) };
        let records = self.disk.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let node = Node::restore(config, records, now);
        self.node = Some(node.expect("the disk of a member makes a node"));
    }

    /// The process is gone at once; batches that were under way are not on disk.
    pub(super) fn crash(&mut self) {
        self.node = None;
        self.writing.clear();
        self.seeds.crash();
    }

    pub(super) fn write(&mut self, id: PersistId, writes: Vec<Write>) {
        self.writing.push_back((id, writes));
    }

    /// The oldest batch reaches the disk.
    pub(super) fn written(&mut self) -> Option<PersistId> {
        let (id, writes) = self.writing.pop_front()?;
        self.apply(writes);
        Some(id)
    }

    fn apply(&mut self, writes: Vec<Write>) {
        for write in writes {
            match write.value {
                Some(value) => drop(self.disk.insert(write.key, value)),
                None => drop(self.disk.remove(&write.key)),
            }
        }
    }
}
