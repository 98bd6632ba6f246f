//! Meaning: what the replicated entries say, judged when read. A view decides for each entry whether its author may
//! say it, and keeps the reason for what it refused. Pure: built from a roll's standing, a document and the wall
//! clock (for expiry alone). Invariant: nothing here decides what is *stored*.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::identity::{ClusterId, Digest, NodeKey};
use crate::roll::Member;
use crate::time::UnixMs;

mod build;
mod contest;
pub mod entries;
mod hosts;
mod judge;
mod links;
mod namesakes;
pub mod policy;
mod seed;
mod why;
pub use crate::names::{Name, Protocol, VersionId};
pub use hosts::{HOLDS_MAX, REPLICAS_MAX, UNABLE_MAX};
pub use judge::REFUSED_PER_AUTHOR_MAX;
pub use policy::Policy;
pub use seed::{Capacity, Inability, SeedInfo, SeedTerms, SeedVersion};
pub use why::Target;

#[cfg(test)]
mod tests;

/// One consistent reading of the cluster. Cheap to share behind an `Arc`; rebuilt when the roll, the document or an
/// expiry changes it.
#[derive(Clone, Debug)]
pub struct View {
    pub cluster: ClusterId,
    pub me: NodeKey,
    /// All who stand, whether online or not.
    pub nodes: BTreeMap<NodeKey, NodeInfo>,
    pub services: BTreeMap<Name, ServiceInfo>,
    /// Seeds; their names are a space of their own beside the services'.
    pub seeds: BTreeMap<Name, SeedInfo>,
    /// Online nodes that hold a module, by its hash: its owner, its replicas, and whoever still keeps it.
    pub holders: BTreeMap<Digest, BTreeSet<NodeKey>>,
    /// Online nodes that still say they serve a version which no seed names any more: until they have heard of it.
    pub retiring: BTreeMap<VersionId, BTreeSet<NodeKey>>,
    /// Services served without a name, reached by provider and port.
    pub unnamed: Vec<Provider>,
    /// Entries that do not count, each with its reason.
    pub refused: Vec<RefusedEntry>,
    /// Keys that were members and are none any more, but for those that fell with another.
    pub fallen: BTreeMap<NodeKey, Fallen>,
    /// Digests that are equal on nodes that hold equal content: the roll, then the lanes facts, live, state.
    pub roots: [Digest; 4],
    /// Bytes of replicated entries that count toward quotas, over all authors and lanes.
    pub document_bytes: u64,
    /// How many entries that is, whether they count in this view or not.
    pub document_entries: u64,
}

/// Why a key that was a member is none any more. No issuer is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallen {
    Denied {
        by: Option<NodeKey>,
    },
    /// Denied without blame.
    Retired {
        by: Option<NodeKey>,
    },
    /// Its membership ended by itself.
    Expired {
        since: UnixMs,
    },
}

/// A member as the others see it.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub key: NodeKey,
    /// What tells it from all others: what it chose, with a number where others chose that before.
    pub name: Option<Name>,
    /// What it says it is called.
    pub chosen_name: Option<Name>,
    /// Where it says it can be reached by UDP, at most 8.
    pub addrs: Vec<SocketAddr>,
    pub member: Member,
    pub liveness: Liveness,
    /// Peers with whom both ends claim a link.
    pub links: Vec<NodeKey>,
    /// What it offers to seeds; nothing if it hosts none.
    pub capacity: Option<Capacity>,
    /// It is about to leave: it takes no new replicas and hands over those it has.
    pub draining: bool,
    /// Versions of seeds that it tried and cannot make ready.
    pub unable: BTreeMap<VersionId, Inability>,
}

/// Whether a node is reachable through links that both ends claim and live nodes vouch for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// This node itself.
    Me,
    /// Reached over `via`, the neighbour of ours that the path starts with (itself when adjacent), in `hops`.
    Online { via: NodeKey, hops: u8 },
    /// No live node vouches for it.
    Offline,
}

impl Liveness {
    #[must_use]
    pub const fn is_online(&self) -> bool {
        !matches!(self, Self::Offline)
    }
}

/// A named service: its owner's claim and everyone who provides it.
#[derive(Clone, Debug)]
pub struct ServiceInfo {
    pub name: Name,
    pub owner: NodeKey,
    /// What its owner claimed it for first; each provider says what it speaks.
    pub protocol: Protocol,
    /// Whether the owner lets other publishers provide it.
    pub shared: bool,
    pub claimed: UnixMs,
    /// Whom its owner lets use it, wherever it is provided.
    pub policy: Policy,
    /// The owner if it provides (it may only hold the name), and others where shared; in key order, one that speaks both
    /// protocols once for each.
    pub providers: Vec<Provider>,
    /// Claims of the same name that lost, with the reason.
    pub conflicts: Vec<Conflict>,
}

impl ServiceInfo {
    /// Whether somebody provides it in `protocol`.
    #[must_use]
    pub fn speaks(&self, protocol: Protocol) -> bool {
        self.providers.iter().any(|provider| provider.protocol == protocol)
    }
}

/// A node's local port behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    pub node: NodeKey,
    pub protocol: Protocol,
    /// The provider's local port.
    pub port: u16,
    /// Whom this provider lets use it, of those whom the owner lets.
    pub policy: Policy,
}

/// A claim of a name that another claim won.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub author: NodeKey,
    pub claimed: UnixMs,
    /// A sentence: why the other claim won.
    pub reason: String,
}

/// An entry that does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedEntry {
    pub author: NodeKey,
    /// The entry's key where it is text, its hexadecimal otherwise.
    pub key: String,
    /// A sentence: which rule refused it.
    pub reason: String,
}
