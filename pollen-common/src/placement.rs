//! Who should host a seed: a pure function of the view, the same on every node that sees the same. Owns the rules and
//! their sentences; must not know how a replica is started or stopped, or when. Invariant: integers alone decide, so
//! that every machine ranks alike, and of the nodes that may host exactly the floor should.
//!
//! Nodes are ranked by weighted rendezvous hashing (Schindelhauer and Schomaker, 2005): each draws an exponential
//! variate from the hash of seed and node, divided by its weight, and the least come first. A node is then first in
//! proportion to its weight, and when one comes or goes only what it hosts moves. The draw depends on the seed's name
//! and not on the version, so that a new version goes where the old one is.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::fmt;

use crate::hash::{Context, digest, keyed};
use crate::identity::{Digest, NodeKey};
use crate::views::{Capacity, Inability, Name, NodeInfo, SeedInfo, SeedVersion, View};

/// Why a node should host a seed, or should not. Displays as what follows the node's name in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Among the first `floor` of those that may.
    Placed {
        rank: usize,
        floor: usize,
    },
    /// The seed runs on every node that may.
    Everywhere,
    /// It serves, though it need not, until those that should do. `otherwise`: why it need not.
    KeptUntilHandedOver {
        otherwise: Box<Rule>,
    },
    /// Others come before it.
    NotNeeded {
        rank: usize,
        floor: usize,
    },
    Offline,
    /// It is about to leave.
    Draining,
    /// It hosts no seeds.
    OffersNothing,
    /// One call may need more memory than it offers to all.
    TooSmall {
        needs_mib: u64,
        has_mib: u32,
    },
    /// It has tried to make the version ready, and cannot.
    Cannot(Inability),
}

impl Rule {
    /// Whether a node under this rule should host.
    #[must_use]
    pub const fn hosts(&self) -> bool {
        matches!(self, Self::Placed { .. } | Self::Everywhere)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Placed { rank, floor } => write!(f, "hosts it: number {rank} in its order, of {floor} wanted"),
            Self::Everywhere => f.write_str("hosts it: it runs everywhere"),
            Self::KeptUntilHandedOver { otherwise } => {
                write!(f, "keeps it until all that should host it are ready: it {otherwise}")
            }
            Self::NotNeeded { rank, floor } => {
                write!(f, "need not host it: number {rank} in its order, of {floor} wanted")
            }
            Self::Offline => f.write_str("cannot host it: it is offline"),
            Self::Draining => f.write_str("takes no replicas: it is about to leave"),
            Self::OffersNothing => f.write_str("does not host seeds"),
            Self::TooSmall { needs_mib, has_mib } => {
                write!(f, "is too small: a call may need {needs_mib} MiB, it offers {has_mib}")
            }
            Self::Cannot(why) => write!(f, "cannot make it ready: {why}"),
        }
    }
}

/// Where one version of a seed belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// How many nodes should host it, as far as that many may.
    pub floor: usize,
    /// Those that should.
    pub hosts: BTreeSet<NodeKey>,
    /// Every member, with what decided.
    pub rules: BTreeMap<NodeKey, Rule>,
}

impl Placement {
    /// Whether all that should host it are among `ready`. Never while nobody may: there is nobody to hand over to.
    #[must_use]
    pub fn is_met_by(&self, ready: Option<&BTreeSet<NodeKey>>) -> bool {
        !self.hosts.is_empty() && ready.is_some_and(|ready| self.hosts.is_subset(ready))
    }

    /// Those that are passed over because they cannot make it ready, though nothing else is against them.
    pub fn unable(&self) -> impl Iterator<Item = (&NodeKey, Inability)> {
        self.rules.iter().filter_map(|(key, rule)| match rule {
            Rule::Cannot(why) => Some((key, *why)),
            _ => None,
        })
    }
}

/// Whom a placement takes for online.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Who is online in the view.
    Seen,
    /// Every member: what a node goes by that has just started and has met nobody yet, so that it begins with what it
    /// will keep.
    Presumed,
}

/// Where the version of `seed` that answers belongs.
#[must_use]
pub fn place(view: &View, seed: &SeedInfo) -> Placement {
    place_version(view, seed, seed.current(), Presence::Seen)
}

/// Where a version of `seed` belongs.
#[must_use]
pub fn place_version(view: &View, seed: &SeedInfo, version: &SeedVersion, presence: Presence) -> Placement {
    placed(view, seed, version, presence, None)
}

/// Whether this node should host a version of `seed` if it could make it ready, whatever it says of that.
#[must_use]
pub fn should_if_able(view: &View, seed: &SeedInfo, version: &SeedVersion, presence: Presence) -> bool {
    placed(view, seed, version, presence, Some(&view.me)).hosts.contains(&view.me)
}

/// Where a version belongs if `able` could make it ready.
fn placed(
    view: &View,
    seed: &SeedInfo,
    version: &SeedVersion,
    presence: Presence,
    able: Option<&NodeKey>,
) -> Placement {
    let (id, draw) = (version.id(), Draw::of(&seed.name));
    let mut rules = BTreeMap::new();
    let mut ranked = Vec::new();
    for (key, node) in &view.nodes {
        let unable = node.unable.get(&id).filter(|_| able != Some(key));
        match may_host(node, version, unable, presence) {
            Ok(_) if seed.everywhere => ranked.push((0, *key)),
            Ok(capacity) => ranked.push((draw.cost(key, &capacity), *key)),
            Err(rule) => drop(rules.insert(*key, rule)),
        }
    }
    ranked.sort_unstable();
    let floor = usize::from(seed.min_replicas.max(1)).min(ranked.len());
    let ranks = ranked.into_iter().enumerate().map(|(at, (_, key))| (at + 1, key));
    rules.extend(ranks.map(|(rank, key)| match rank {
        _ if seed.everywhere => (key, Rule::Everywhere),
        _ if rank <= floor => (key, Rule::Placed { rank, floor }),
        _ => (key, Rule::NotNeeded { rank, floor }),
    }));
    let hosts: BTreeSet<_> = rules.iter().filter(|(_, rule)| rule.hosts()).map(|(key, _)| *key).collect();
    let ready = seed.replicas.get(&id).into_iter().flatten();
    for key in ready.filter(|key| !hosts.contains(key)) {
        if let Some(rule) = rules.get_mut(key) {
            *rule = Rule::KeptUntilHandedOver { otherwise: Box::new(rule.clone()) };
        }
    }
    Placement { floor: if seed.everywhere { hosts.len() } else { floor }, hosts, rules }
}

impl View {
    /// The replicas that this node announces and those that should host them do not all serve yet: what a node that
    /// drains waits for. What nobody else may host is not waited for.
    #[must_use]
    pub fn handing_over(&self) -> Vec<(Name, SeedVersion)> {
        let mut waiting = Vec::new();
        for seed in self.seeds.values() {
            for version in &seed.versions {
                let ready = seed.replicas.get(&version.id());
                if ready.is_some_and(|ready| ready.contains(&self.me)) {
                    let placement = place_version(self, seed, version, Presence::Seen);
                    if placement.hosts.iter().any(|host| *host != self.me) && !placement.is_met_by(ready) {
                        waiting.push((seed.name.clone(), *version));
                    }
                }
            }
        }
        waiting
    }
}

/// What a node offers to a version, or the rule that excludes it.
fn may_host(
    node: &NodeInfo,
    version: &SeedVersion,
    unable: Option<&Inability>,
    presence: Presence,
) -> Result<Capacity, Rule> {
    let capacity = node.capacity.filter(|capacity| capacity.memory_mib > 0).ok_or(Rule::OffersNothing)?;
    if presence == Presence::Seen && !node.liveness.is_online() {
        return Err(Rule::Offline);
    }
    if node.draining {
        return Err(Rule::Draining);
    }
    let needs_mib = version.memory_bytes.div_ceil(1 << 20);
    if needs_mib > u64::from(capacity.memory_mib) {
        return Err(Rule::TooSmall { needs_mib, has_mib: capacity.memory_mib });
    }
    if let Some(why) = unable {
        return Err(Rule::Cannot(*why));
    }
    Ok(capacity)
}

/// Bits behind the point of logarithms: ties and rounding stay rarer than one in a billion draws.
const LOG_BITS: u32 = 32;

/// The draws of one seed.
struct Draw(Digest);

impl Draw {
    fn of(name: &Name) -> Self {
        Self(digest(Context::Rendezvous, &[name.as_str().as_bytes()]))
    }

    /// A node's exponential variate over its weight: `-log2(h / 2^64) / weight`, in units of 2^-96. The base of the
    /// logarithm scales all alike.
    fn cost(&self, node: &NodeKey, capacity: &Capacity) -> u128 {
        let hash = keyed(&self.0, &node.0).0;
        let first = hash.first_chunk().expect("a digest has more than eight bytes");
        let h = u64::from_be_bytes(*first).max(1);
        let minus_log = (64_u64 << LOG_BITS) - log2(h);
        (u128::from(minus_log) << 64) / u128::from(capacity.memory_mib.max(1))
    }
}

/// The base-2 logarithm of `n`, which is not 0, with [`LOG_BITS`] bits behind the point, rounded down: the bits come
/// one at a time by squaring what is left, as each square doubles the logarithm.
fn log2(n: u64) -> u64 {
    let whole = n.ilog2();
    // In [1, 2), with 63 bits behind the point.
    let mut rest = u128::from(n << (63 - whole));
    let mut log = u64::from(whole);
    for _ in 0..LOG_BITS {
        rest = (rest * rest) >> 63;
        log <<= 1;
        if rest >> 64 != 0 {
            rest >>= 1;
            log |= 1;
        }
    }
    log
}

#[cfg(test)]
mod tests;
