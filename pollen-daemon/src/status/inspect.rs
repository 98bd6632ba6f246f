//! One node, service or seed in full, for `pln inspect`. Owns the shapes, which are contract; pure.
//! Invariant: what is shown for a target is what the view decided about it, with the losing claims.

use pollen_common::identity::NodeKey;
use pollen_common::views::{Capacity, Conflict, Name, Provider, SeedInfo, View};
use serde::{Deserialize, Serialize};

pub use super::seeds::{SeedDetail, inspect as seed};
use super::{NodeRef, NodeRow, Reading, RefusedRow, ServiceRow, named_row, node_ref, node_row};
use crate::status::ProtocolName;

/// `GET /v1/inspect/{target}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Inspected {
    Node(Box<NodeDetail>),
    Service(Box<ServiceDetail>),
    Seed(Box<SeedDetail>),
    /// A service and a seed of one name.
    Several {
        found: Vec<Inspected>,
    },
}

/// A member in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetail {
    #[serde(flatten)]
    pub row: NodeRow,
    /// Keys from its parent up to the root, invite keys included: who answers for it.
    pub path_to_root: Vec<String>,
    pub admitted_unix_ms: u64,
    /// KiB that it may replicate.
    pub quota_kib: u32,
    /// KiB that all it admits may use together.
    pub pool_kib: u32,
    /// Name prefixes that it wins outright.
    pub prefixes: Vec<String>,
    /// Peers that it has links with.
    pub neighbours: Vec<NodeRef>,
    pub provides: Vec<Provided>,
    /// What it offers to seeds; absent if it hosts none.
    pub offers: Option<Offers>,
    /// It is about to leave, and hands over what it hosts.
    pub draining: bool,
    /// Seeds that it is ready to serve.
    pub hosts: Vec<String>,
    /// Its entries that do not count, with the reason.
    pub refused: Vec<RefusedRow>,
}

/// A service that a node provides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provided {
    pub name: Option<String>,
    pub protocol: ProtocolName,
    pub port: u16,
}

/// What a node offers to seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offers {
    pub memory_mib: u32,
    pub cores: u16,
}

/// A service in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDetail {
    #[serde(flatten)]
    pub row: ServiceRow,
    pub claimed_unix_ms: u64,
    /// Claims of the same name that lost.
    pub claims_lost: Vec<LostClaim>,
}

/// A claim of a name that another claim won.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostClaim {
    pub author: NodeRef,
    pub claimed_unix_ms: u64,
    pub reason: String,
}

impl LostClaim {
    pub(super) fn of(view: &View, conflict: &Conflict) -> Self {
        Self {
            author: node_ref(view, conflict.author),
            claimed_unix_ms: conflict.claimed.0,
            reason: conflict.reason.clone(),
        }
    }
}

/// A node in full; none if it does not stand.
#[must_use]
pub fn node(reading: Reading<'_>, key: NodeKey) -> Option<Inspected> {
    let Reading { view, numbers, .. } = reading;
    let node = view.nodes.get(&key)?;
    let rights = &node.member.rights;
    let mine = |provider: &&Provider| provider.node == key;
    let provided = |name: Option<&Name>, provider: &Provider| Provided {
        name: name.map(ToString::to_string),
        protocol: provider.protocol.into(),
        port: provider.port,
    };
    let named = view.services.values().flat_map(|service| {
        service.providers.iter().filter(mine).map(|provider| provided(Some(&service.name), provider))
    });
    let unnamed = view.unnamed.iter().filter(mine).map(|provider| provided(None, provider));
    Some(Inspected::Node(Box::new(NodeDetail {
        row: node_row(node, numbers),
        path_to_root: node.member.path.iter().map(ToString::to_string).collect(),
        admitted_unix_ms: node.member.admitted,
        quota_kib: rights.quota_kib,
        pool_kib: rights.pool_kib,
        prefixes: rights.prefixes.clone(),
        neighbours: node.links.iter().map(|peer| node_ref(view, *peer)).collect(),
        provides: named.chain(unnamed).collect(),
        offers: node.capacity.map(|Capacity { memory_mib, cores }| Offers { memory_mib, cores }),
        draining: node.draining,
        hosts: hosted(view, &key),
        refused: view
            .refused
            .iter()
            .filter(|entry| entry.author == key)
            .map(|entry| RefusedRow {
                author: node_ref(view, key),
                entry: entry.key.clone(),
                reason: entry.reason.clone(),
            })
            .collect(),
    })))
}

fn hosted(view: &View, node: &NodeKey) -> Vec<String> {
    let hosts = |seed: &&SeedInfo| seed.replicas.values().any(|nodes| nodes.contains(node));
    view.seeds.values().filter(hosts).map(|seed| seed.name.to_string()).collect()
}

/// A named service in full; none if nobody claims the name.
#[must_use]
pub fn service(reading: Reading<'_>, name: &Name) -> Option<Inspected> {
    let Reading { view, listeners, .. } = reading;
    let service = view.services.get(name)?;
    Some(Inspected::Service(Box::new(ServiceDetail {
        row: named_row(view, listeners, service),
        claimed_unix_ms: service.claimed.0,
        claims_lost: service.conflicts.iter().map(|conflict| LostClaim::of(view, conflict)).collect(),
    })))
}
