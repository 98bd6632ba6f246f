//! Seeds as a view shows them: who claims one, which versions there are, who is ready to serve them. Shapes alone:
//! `entries` has the formats, `judge` the rules, [`crate::placement`] says who should host.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::fmt;

use super::{Conflict, Name, VersionId};
use crate::identity::{Digest, NodeKey};
use crate::time::UnixMs;

/// One version of a seed: what to run and within which limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeedVersion {
    /// Plain BLAKE3 of the module as it was published: what `pln call HASH` and content transfer know it by.
    pub module: Digest,
    /// Size of the module, in bytes.
    pub size_bytes: u64,
    /// The most linear memory that one call may have, in bytes.
    pub memory_bytes: u64,
    /// The longest that one call may take, in milliseconds.
    pub timeout_ms: u32,
    /// A call may be run again when its host died in the middle of it.
    pub idempotent: bool,
    /// Instances start from memory captured after the module's own start.
    pub image: bool,
    /// An output that reads as a tail call is one, as guests of the Go Pollen ask for it. Of any other guest it is data.
    pub tail_calls: bool,
}

/// What a publisher asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedTerms {
    pub version: SeedVersion,
    /// How many nodes shall be ready to serve it, at the least.
    pub min_replicas: u16,
    /// Every eligible node shall.
    pub everywhere: bool,
}

/// A seed: its owner's claim, and who is ready to serve which version.
#[derive(Clone, Debug)]
pub struct SeedInfo {
    pub name: Name,
    pub owner: NodeKey,
    pub claimed: UnixMs,
    pub min_replicas: u16,
    pub everywhere: bool,
    /// One or two: the version that answers, and the one that is to replace it once it is ready.
    pub versions: Vec<SeedVersion>,
    /// Nodes that say they are ready to serve a version, while they are online. Those of versions that the claim no
    /// longer names are here too: they serve until they have heard of it.
    pub replicas: BTreeMap<VersionId, BTreeSet<NodeKey>>,
    /// Claims of the same name that lost, with the reason.
    pub conflicts: Vec<Conflict>,
}

impl SeedInfo {
    /// The version that answers calls by name.
    #[must_use]
    pub fn current(&self) -> &SeedVersion {
        self.versions.first().expect("a claim without a version is not read")
    }
}

/// What a node offers to seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capacity {
    /// Memory for the calls of seeds, in MiB: a node takes replicas in proportion to it.
    pub memory_mib: u32,
    /// Processors that run guests.
    pub cores: u16,
}

/// Why a node cannot make a version ready, for a reason of its own. Displays as what follows "it cannot make it ready: ".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Inability {
    /// Its disk does not take the module, or does not give it back.
    Disk,
    /// Its content store is full of what other seeds name.
    Full,
    /// It runs no guests.
    Engine,
    /// The module does not compile there, or does not fit its engine.
    Unfit,
    /// The module's start, of which an image was to be taken, did not end well there.
    Image,
    /// It has no thread or memory left to compile it.
    Exhausted,
    /// A reason that this version does not know.
    Other(u8),
}

impl Inability {
    /// As entries have it.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Disk => 1,
            Self::Full => 2,
            Self::Engine => 3,
            Self::Unfit => 4,
            Self::Image => 5,
            Self::Exhausted => 6,
            Self::Other(code) => code,
        }
    }

    /// Of its code.
    #[must_use]
    pub const fn of_code(code: u8) -> Self {
        match code {
            1 => Self::Disk,
            2 => Self::Full,
            3 => Self::Engine,
            4 => Self::Unfit,
            5 => Self::Image,
            6 => Self::Exhausted,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Inability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "its disk does not take or give the module",
            Self::Full => "its content store is full",
            Self::Engine => "guests cannot run there",
            Self::Unfit => "its engine does not take the module",
            Self::Image => "no image of the module's start could be taken there",
            Self::Exhausted => "it has no thread or memory to compile it",
            Self::Other(code) => return write!(f, "for reason {code}, which is unknown here"),
        })
    }
}
