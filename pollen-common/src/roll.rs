//! The roll: who may speak. (Skeleton: shapes only, filled in by its owner.)
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::identity::NodeKey;
use crate::time::UnixMs;

/// What a member may do; each contains the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Connects and calls.
    Leaf,
    /// Also publishes names, services, seeds.
    Publisher,
    /// Also admits others.
    Admin,
}

/// What an edge grants, and what the meet of several leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    pub tier: Tier,
    pub props: BTreeMap<String, String>,
    /// Properties that the subject may hand on, as exact pairs; see `docs/protocol/roll.md`.
    pub grantable: BTreeMap<String, String>,
    /// KiB that this member may replicate, at least 64.
    pub quota_kib: u32,
    /// KiB that all it admits may use together.
    pub pool_kib: u32,
    /// Name prefixes that it wins outright.
    pub prefixes: Vec<String>,
    /// When the membership ends, by the reader's clock.
    pub expires: Option<UnixMs>,
}

/// One who stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub key: NodeKey,
    /// The meet of every edge above it.
    pub rights: Rights,
    /// From its parent up to the root: the keys on its path, invite keys included.
    pub path: Vec<NodeKey>,
    /// Generation of the edge it stands on (about when it was admitted, unix ms): no claim of its is older.
    pub admitted: u64,
}
