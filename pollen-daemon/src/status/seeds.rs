//! Seeds as `status` and `inspect` show them: what the view and the placement say of each. Owns the shapes, which are
//! contract; pure. Invariant: who hosts and who should are asked of the functions that decide it.

use std::collections::{BTreeMap, BTreeSet};

use pollen_common::identity::{Digest, NodeKey};
use pollen_common::placement::{Presence, place, place_version};
use pollen_common::views::{Name, SeedInfo, SeedVersion, VersionId, View};
use serde::{Deserialize, Serialize};

use super::inspect::{Inspected, LostClaim};
use super::{NodeRef, Reading, node_ref};
use crate::status::{EngineNumbers, HeldModule, SeedNumbers};

/// A seed of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedRow {
    pub name: String,
    pub owner: NodeRef,
    /// The version that answers.
    #[serde(flatten)]
    pub version: VersionRow,
    /// What the publisher asked for.
    pub min_replicas: u16,
    pub everywhere: bool,
    /// How many nodes should host it now: less than asked for where fewer may.
    pub floor: usize,
    /// The version that is to replace it, while it is not yet ready.
    pub upgrading_to: Option<VersionRow>,
    /// Claims of the same name that lost.
    pub conflicts: usize,
}

impl SeedRow {
    /// How many nodes shall be ready to serve it.
    #[must_use]
    pub fn wanted(&self) -> usize {
        if self.everywhere { self.floor.max(1) } else { usize::from(self.min_replicas.max(1)) }
    }
}

/// One version of a seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRow {
    /// BLAKE3 of the module: what `pln call` takes beside the name.
    pub module: String,
    /// The module and its limits together.
    pub version: String,
    pub size_bytes: u64,
    /// The most memory that one call may have.
    pub memory_bytes: u64,
    /// The longest that one call may take.
    pub timeout_ms: u32,
    pub idempotent: bool,
    pub image: bool,
    pub tail_calls: bool,
    /// Nodes that are ready to serve it.
    pub ready: Vec<NodeRef>,
    /// Nodes that are passed over as they cannot make it ready.
    pub cannot: Vec<UnableRow>,
}

/// A node that cannot make a version ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnableRow {
    pub node: NodeRef,
    /// A sentence about the node.
    pub reason: String,
}

/// A seed in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedDetail {
    #[serde(flatten)]
    pub row: SeedRow,
    pub claimed_unix_ms: u64,
    /// One for each module that the claim names.
    pub modules: Vec<ModuleDetail>,
    /// Nodes that still serve versions which the claim no longer names.
    pub retiring: Vec<NodeRef>,
    /// Claims of the same name that lost.
    pub claims_lost: Vec<LostClaim>,
}

/// A module of a seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleDetail {
    pub module: String,
    /// Where it is on this node's disk.
    pub sha256: Option<String>,
    /// What can be called, where it is on this node's disk.
    pub functions: Option<Vec<String>>,
    /// Online nodes that keep it.
    pub holders: Vec<NodeRef>,
}

/// What runs seeds on this node, and what they do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// Absent as long as nothing needed it.
    pub standing: Option<EngineRow>,
    /// Calls that run here now, and those that wait for their turn.
    pub running: u64,
    pub waiting: u64,
}

/// How guests run here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineRow {
    /// `pooling`, `on_demand`, `none`.
    pub allocator: String,
    /// How a used instance's memory is made blank.
    pub reset: String,
    /// Instances at a time.
    pub slots: u64,
    /// Why it is not better; empty where it is best.
    pub why_not_better: String,
}

impl From<&SeedNumbers> for Engine {
    fn from(numbers: &SeedNumbers) -> Self {
        let EngineNumbers { standing, .. } = &numbers.engine;
        let standing = standing.as_ref().map(|standing| EngineRow {
            allocator: standing.allocator.clone(),
            reset: standing.reset.clone(),
            slots: standing.slots,
            why_not_better: standing.why_not_better.clone(),
        });
        Self { standing, running: numbers.calls.running, waiting: numbers.calls.waiting }
    }
}

pub(super) fn rows(view: &View) -> Vec<SeedRow> {
    view.seeds.values().map(|seed| row(view, seed)).collect()
}

fn row(view: &View, seed: &SeedInfo) -> SeedRow {
    let next = seed.versions.get(1);
    SeedRow {
        name: seed.name.to_string(),
        owner: node_ref(view, seed.owner),
        version: version_row(view, seed, seed.current()),
        min_replicas: seed.min_replicas,
        everywhere: seed.everywhere,
        floor: place(view, seed).floor,
        upgrading_to: next.map(|version| version_row(view, seed, version)),
        conflicts: seed.conflicts.len(),
    }
}

fn version_row(view: &View, seed: &SeedInfo, version: &SeedVersion) -> VersionRow {
    let id = version.id();
    let placement = place_version(view, seed, version, Presence::Seen);
    let unable = placement.unable().map(|(key, why)| UnableRow { node: node_ref(view, *key), reason: why.to_string() });
    VersionRow {
        module: version.module.to_string(),
        version: id.to_string(),
        size_bytes: version.size_bytes,
        memory_bytes: version.memory_bytes,
        timeout_ms: version.timeout_ms,
        idempotent: version.idempotent,
        image: version.image,
        tail_calls: version.tail_calls,
        ready: refs(view, seed.replicas.get(&id).into_iter().flatten()),
        cannot: unable.collect(),
    }
}

fn refs<'a>(view: &View, keys: impl Iterator<Item = &'a NodeKey>) -> Vec<NodeRef> {
    keys.map(|key| node_ref(view, *key)).collect()
}

/// A seed in full, with what is known of the modules that are on this disk; none if nobody claims the name.
#[must_use]
pub fn inspect(reading: Reading<'_>, name: &Name, held: &BTreeMap<Digest, HeldModule>) -> Option<Inspected> {
    let view = reading.view;
    let seed = view.seeds.get(name)?;
    let named: BTreeSet<VersionId> = seed.versions.iter().map(SeedVersion::id).collect();
    let retiring = seed.replicas.iter().filter(|(id, _)| !named.contains(id)).flat_map(|(_, nodes)| nodes);
    let retiring: BTreeSet<&NodeKey> = retiring.collect();
    let modules: BTreeSet<Digest> = seed.versions.iter().map(|version| version.module).collect();
    Some(Inspected::Seed(Box::new(SeedDetail {
        row: row(view, seed),
        claimed_unix_ms: seed.claimed.0,
        modules: modules.iter().map(|module| module_detail(view, module, held.get(module))).collect(),
        retiring: refs(view, retiring.into_iter()),
        claims_lost: seed.conflicts.iter().map(|conflict| LostClaim::of(view, conflict)).collect(),
    })))
}

fn module_detail(view: &View, module: &Digest, held: Option<&HeldModule>) -> ModuleDetail {
    ModuleDetail {
        module: module.to_string(),
        sha256: held.map(|held| held.sha256.clone()),
        functions: held.map(|held| held.functions.clone()),
        holders: refs(view, view.holders.get(module).into_iter().flatten()),
    }
}
