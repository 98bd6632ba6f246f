//! One node or service in full, for `pln inspect`. Owns the shapes, which are contract; pure.
//! Invariant: what is shown for a target is what the view decided about it, with the losing claims.

use pollen_common::identity::NodeKey;
use pollen_common::views::{Name, Provider};
use serde::{Deserialize, Serialize};

use super::{NodeRef, NodeRow, Reading, RefusedRow, ServiceRow, named_row, node_ref, node_row};
use crate::control::api::ProtocolName;

/// `GET /v1/inspect/{target}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Inspected {
    Node(Box<NodeDetail>),
    Service(Box<ServiceDetail>),
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
        row: node_row(node, numbers.peers.iter().find(|peer| peer.peer == key)),
        path_to_root: node.member.path.iter().map(ToString::to_string).collect(),
        admitted_unix_ms: node.member.admitted,
        quota_kib: rights.quota_kib,
        pool_kib: rights.pool_kib,
        prefixes: rights.prefixes.clone(),
        neighbours: node.links.iter().map(|peer| node_ref(view, *peer)).collect(),
        provides: named.chain(unnamed).collect(),
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

/// A named service in full; none if nobody claims the name.
#[must_use]
pub fn service(reading: Reading<'_>, name: &Name) -> Option<Inspected> {
    let Reading { view, listeners, .. } = reading;
    let service = view.services.get(name)?;
    Some(Inspected::Service(Box::new(ServiceDetail {
        row: named_row(view, listeners, service),
        claimed_unix_ms: service.claimed.0,
        claims_lost: service
            .conflicts
            .iter()
            .map(|conflict| LostClaim {
                author: node_ref(view, conflict.author),
                claimed_unix_ms: conflict.claimed.0,
                reason: conflict.reason.clone(),
            })
            .collect(),
    })))
}
