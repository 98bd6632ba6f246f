//! The roll as a replica holds it: a Merkle trie of statements, one a slot. Owns merging; knows nothing of who
//! stands. Invariant: what is stored is a function of the statements offered, whatever their order; a clone is cheap.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::genesis::{Genesis, Lineage, LineageError};
use super::settle::{Settled, Usage, settle};
use super::statement::{Statement, slot_path};
use super::{EdgeBody, Kind};
use crate::identity::{ClusterId, Digest, NodeKey, Verify};
use crate::trie::Trie;

/// Everything that is stored of who may speak in one cluster.
#[derive(Clone, Debug)]
pub struct Roll {
    genesis: Arc<Genesis>,
    cluster: ClusterId,
    trie: Trie<Arc<Statement>>,
    /// Slots stored but without effect.
    inert: Arc<BTreeSet<Digest>>,
    rotations: Arc<Vec<Arc<Statement>>>,
    issuers: Arc<BTreeMap<NodeKey, Usage>>,
    pub(super) root: NodeKey,
    next: Digest,
}

/// What a merge did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// New in the roll; neighbours want them.
    pub added: Vec<Arc<Statement>>,
    /// Slots that are empty now.
    pub removed: Vec<Digest>,
    /// Redemptions that were stored and fell to an earlier one of the same invite: for the audit, as somebody who
    /// was let in is out again.
    pub displaced: Vec<Arc<Statement>>,
    /// Offered and not stored. What was known already is not among them.
    pub refused: Vec<(Digest, RollRefusal)>,
}

impl Merged {
    /// Whether the roll is another than before.
    #[must_use]
    pub fn changed(&self) -> bool {
        !self.added.is_empty() || !self.removed.is_empty()
    }
}

/// Why a statement is not stored. Also the label of its metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum RollRefusal {
    #[error("it is of another cluster")]
    OtherCluster,
    #[error("a signature does not hold")]
    Signature,
    #[error("a newer statement, or an earlier redemption, takes its place")]
    Superseded,
    /// Not a fault: what supports it may come later, and whoever has it will offer it again.
    #[error("nothing stored supports it yet")]
    Unsupported,
    #[error("its issuer's pool is used up by newer statements")]
    OverPool,
}

impl Roll {
    /// Only the genesis. Its signature is [`Genesis::verify`]'s to check.
    #[must_use]
    pub fn new(genesis: Genesis) -> Self {
        Self {
            cluster: genesis.cluster(),
            root: genesis.root(),
            next: genesis.next(),
            genesis: Arc::new(genesis),
            trie: Trie::new(),
            inert: Arc::default(),
            rotations: Arc::default(),
            issuers: Arc::default(),
        }
    }

    /// From who is root, with nothing but that.
    ///
    /// # Errors
    /// If the lineage does not prove itself.
    pub fn from_lineage(lineage: &Lineage, verify: &dyn Verify) -> Result<Self, LineageError> {
        if !lineage.genesis.verify(verify) {
            return Err(LineageError::Signature);
        }
        let mut roll = Self::new(lineage.genesis.clone());
        roll.merge(lineage.rotations.iter().cloned(), verify);
        if roll.rotations.len() < lineage.rotations.len() {
            return Err(LineageError::Broken);
        }
        Ok(roll)
    }

    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The key that is root now.
    #[must_use]
    pub const fn root(&self) -> NodeKey {
        self.root
    }

    /// The commitment to the root after it.
    #[must_use]
    pub const fn next_root(&self) -> Digest {
        self.next
    }

    /// The statements by slot, as replicas compare them.
    #[must_use]
    pub const fn trie(&self) -> &Trie<Arc<Statement>> {
        &self.trie
    }

    /// Who is root, and how it came about.
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        Lineage { genesis: (*self.genesis).clone(), rotations: (*self.rotations).clone() }
    }

    pub(super) fn rotations(&self) -> u64 {
        self.rotations.len() as u64
    }

    /// The statements that have effect, in no meaningful but always the same order.
    pub fn statements(&self) -> impl Iterator<Item = &Arc<Statement>> {
        self.trie.values().filter(|statement| !self.inert.contains(&statement.slot()))
    }

    /// The statement with effect in a slot.
    #[must_use]
    pub fn get(&self, kind: Kind, issuer: &NodeKey, subject: &NodeKey) -> Option<&Arc<Statement>> {
        let slot = slot_path(kind, issuer, subject);
        self.trie.get(&slot).filter(|_| !self.inert.contains(&slot))
    }

    /// What `issuer` makes of `subject`.
    #[must_use]
    pub fn edge(&self, issuer: &NodeKey, subject: &NodeKey) -> Option<&EdgeBody> {
        self.get(Kind::Edge, issuer, subject).and_then(|statement| statement.edge())
    }

    /// How much of its pool an issuer has used: nothing for keys that may not issue.
    #[must_use]
    pub fn usage(&self, issuer: &NodeKey) -> Usage {
        self.issuers.get(issuer).copied().unwrap_or_default()
    }

    /// Takes statements in, in any order. What finds no support, in the roll or among the others, is refused, not
    /// kept for later: whoever stores it offers it again, since the two rolls then differ.
    pub fn merge(&mut self, batch: impl IntoIterator<Item = Arc<Statement>>, verify: &dyn Verify) -> Merged {
        let mut refused = Vec::new();
        let mut fresh = Vec::new();
        for statement in batch {
            match self.screen(&statement, verify) {
                Ok(true) => fresh.push(statement),
                Ok(false) => {}
                Err(refusal) => refused.push((statement.digest(), refusal)),
            }
        }
        let mut merged = self.settle_with(fresh);
        merged.refused.splice(0..0, refused);
        merged
    }

    /// Whether a statement is new and sound.
    fn screen(&self, statement: &Statement, verify: &dyn Verify) -> Result<bool, RollRefusal> {
        if statement.cluster() != self.cluster {
            return Err(RollRefusal::OtherCluster);
        }
        if let Some(held) = self.trie.get(&statement.slot()) {
            if held.digest() == statement.digest() {
                return Ok(false);
            }
            // Before the costly check: a flood of old statements is cheap to turn away.
            let settled_by_rank = !matches!(statement.kind(), Kind::Redeem | Kind::Rotate);
            if settled_by_rank && held.rank() > statement.rank() {
                return Err(RollRefusal::Superseded);
            }
        }
        if statement.verify(verify) { Ok(true) } else { Err(RollRefusal::Signature) }
    }

    /// Takes in statements whose signatures are known to hold.
    pub(super) fn settle_with(&mut self, fresh: Vec<Arc<Statement>>) -> Merged {
        if fresh.is_empty() {
            return Merged::default();
        }
        let settled = settle(&self.genesis, self.trie.values().chain(&fresh).cloned());
        let mut merged = Merged::default();
        for statement in &fresh {
            let kept = settled.kept.get(&statement.slot()).is_some_and(|kept| kept.digest() == statement.digest());
            if !kept {
                merged.refused.push((statement.digest(), why_not(statement, &settled)));
            }
        }
        merged.removed = self.trie.iter().map(|(slot, ..)| *slot).filter(|s| !settled.kept.contains_key(s)).collect();
        for slot in &merged.removed {
            let redeem = self.trie.get(slot).filter(|s| s.kind() == Kind::Redeem);
            let by_another = |s: &&Arc<Statement>| {
                settled.redeems.get(&s.issuer()).is_some_and(|chosen| chosen.subject() != s.subject())
            };
            merged.displaced.extend(redeem.filter(by_another).cloned());
            self.trie.remove(slot);
        }
        for (slot, statement) in settled.kept {
            if self.trie.digest_of(&slot) != Some(statement.digest()) {
                self.trie.insert(slot, statement.digest(), statement.clone());
                merged.added.push(statement);
            }
        }
        self.inert = Arc::new(settled.inert);
        self.rotations = Arc::new(settled.rotations);
        self.issuers = Arc::new(settled.issuers);
        (self.root, self.next) = (settled.root, settled.next);
        merged
    }
}

fn why_not(statement: &Statement, settled: &Settled) -> RollRefusal {
    let slot_taken = settled.kept.contains_key(&statement.slot());
    match statement.kind() {
        _ if slot_taken => RollRefusal::Superseded,
        Kind::Redeem if settled.redeems.contains_key(&statement.issuer()) => RollRefusal::Superseded,
        Kind::Edge | Kind::Unknown(_) if settled.issuers.contains_key(&statement.issuer()) => RollRefusal::OverPool,
        _ => RollRefusal::Unsupported,
    }
}
