//! Seeds in a seeded run: which are published, replaced, withdrawn and drained, and what must be true of them after
//! quiet. Owns the choice of operations; the plain model is that of all writes.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::World;
use super::network::At;
use crate::hash::{Context, digest};
use crate::identity::NodeKey;
use crate::maps::Lane;
use crate::node::{Command, Node, RequestId};
use crate::placement::place;
use crate::time::UnixMs;
use crate::views::entries::{self, SeedClaim};
use crate::views::{Capacity, Name, SeedTerms, SeedVersion, VersionId};

/// Names each machine publishes under: few enough that they are replaced and withdrawn.
const NAMES: usize = 2;

/// A change of a claim that was asked for: its entry's key, and what the claim is to say once nothing replaces it.
pub(super) struct Change {
    pub(super) id: RequestId,
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
}

/// What a claim says but for its date, which the machine's clock sets.
fn told(name: &Name, versions: &[SeedVersion], min_replicas: u16, everywhere: bool) -> Vec<u8> {
    let claim = SeedClaim { versions: versions.to_vec(), min_replicas, everywhere, claimed: UnixMs(0) };
    entries::seed(name, &claim).1
}

impl World {
    /// Every machine offers something, and not the same.
    pub(super) fn offer_all(&mut self) {
        for at in 0..self.len() {
            let capacity = Some(Capacity { memory_mib: 256 << (at % 3), cores: 2 });
            self.command(at, Command::Offer { capacity });
        }
    }

    /// Publishes, replaces or withdraws one of a machine's seeds; `None` when it is down.
    pub(super) fn change_seed(&mut self, at: At) -> Option<Change> {
        self.node(at)?;
        let name: Name = format!("seed-{at}-{}", self.below(NAMES)).parse().expect("a name");
        let key = entries::seed_key(&name);
        if self.below(4) == 0 {
            let id = self.command(at, Command::Unseed { name })?;
            return Some(Change { id, key, value: None });
        }
        // Of few modules, so that versions come back and share them.
        let content = [u8::try_from(at).unwrap_or(0), u8::try_from(self.below(6)).unwrap_or(0)];
        let version = SeedVersion {
            module: digest(Context::Test, &[&content]),
            size_bytes: 4096,
            memory_bytes: 8 << 20,
            timeout_ms: 30_000,
            idempotent: false,
            image: false,
            tail_calls: false,
        };
        let min_replicas = u16::try_from(1 + self.below(3)).unwrap_or(1);
        let everywhere = self.below(8) == 0;
        let value = Some(told(&name, &[version], min_replicas, everywhere));
        let id = self.publish_seed(at, &name, SeedTerms { version, min_replicas, everywhere })?;
        Some(Change { id, key, value })
    }

    /// All claims of seeds as a machine holds them.
    pub(super) fn claims(&self, at: At) -> BTreeMap<(NodeKey, Vec<u8>), Vec<u8>> {
        let lanes = self.node(at).into_iter().flat_map(|node| node.document().iter(Lane::Facts));
        let claim = |entry: &crate::maps::Entry| {
            let name = entries::seed_in(entry.key())?;
            let claim = entries::read_seed_claim(entry.value()).ok()?;
            Some((entry.key().to_vec(), told(&name, &claim.versions, claim.min_replicas, claim.everywhere)))
        };
        lanes
            .flat_map(|held| {
                let author = held.head().head().author;
                held.map().iter().filter_map(move |entry| claim(entry)).map(move |(key, value)| ((author, key), value))
            })
            .collect()
    }

    /// The first way in which seeds are not served by exactly the machines that should, or are not seen to be.
    pub(super) fn misplaced(&self) -> Option<String> {
        (0..self.len()).find_map(|at| {
            let Some(view) = self.node(at).map(Node::view) else { return Some(format!("machine {at} is down")) };
            // One replica serves all seeds that name its version.
            let mut belongs: BTreeMap<VersionId, (BTreeSet<NodeKey>, bool)> = BTreeMap::new();
            for seed in view.seeds.values() {
                let hosts = place(&view, seed).hosts;
                let entry = belongs.entry(seed.current().id()).or_default();
                // Where nobody may, those that serve go on.
                entry.1 |= hosts.is_empty();
                entry.0.extend(hosts);
            }
            let unnamed = self.served().into_iter().find(|version| !belongs.contains_key(version));
            if let Some(version) = unnamed {
                return Some(format!("{version:?} is served though machine {at} knows no seed that names it"));
            }
            view.seeds.iter().find_map(|(name, seed)| {
                let (hosts, homeless) = &belongs[&seed.current().id()];
                let seen: BTreeSet<NodeKey> = seed.replicas.values().flatten().copied().collect();
                let serving = self.serving(&seed.current().id());
                let right = seed.versions.len() == 1 && (*homeless || (seen == *hosts && serving == *hosts));
                let found = || format!("{name} belongs on {hosts:?}, {seen:?} say so, {serving:?} serve");
                (!right).then(|| format!("machine {at}: {} version(s), {}", seed.versions.len(), found()))
            })
        })
    }
}
