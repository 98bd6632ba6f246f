//! The words in which a seed is published and withdrawn. Shapes alone; must not know HTTP, nor how a module is run.

use bytes::Bytes;
use pollen_common::identity::{Digest, NodeKey};
use pollen_common::views::{Name, VersionId};

/// A seed to publish: `POST /v1/seeds`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedRequest {
    pub name: Name,
    /// The module as it was built, not larger than [`pollen_module::MODULE_BYTES_MAX`].
    pub module: Bytes,
    /// How many nodes shall be ready to serve it, at the least.
    pub min_replicas: u16,
    /// Every eligible node shall.
    pub everywhere: bool,
    /// The most linear memory that one call may have.
    pub memory_bytes: u64,
    /// The longest that one call may take, in milliseconds.
    pub timeout_ms: u32,
    /// A call may be run again when its host died in the middle of it.
    pub idempotent: bool,
    /// Instances start from memory captured after the module's own start.
    pub image: bool,
    /// An output that reads as a tail call is one.
    pub tail_calls: bool,
}

/// How far a seed has come on its way to be published. Only the newest counts: a reader may miss some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeedProgress {
    pub stage: SeedStage,
    /// Of [`Self::total`], in what the stage counts; both 0 where it counts nothing.
    pub done: u64,
    pub total: u64,
}

impl SeedProgress {
    /// The beginning of a stage that counts nothing.
    #[must_use]
    pub const fn at(stage: SeedStage) -> Self {
        Self { stage, done: 0, total: 0 }
    }
}

/// What is done for a seed, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SeedStage {
    /// The module is checked: what it imports, what it exports.
    Checking,
    /// It is written to this node's disk.
    Storing,
    /// It is compiled here, and its image taken.
    Compiling,
    /// The claim of its name is signed and made durable.
    Publishing,
    /// Nodes make it ready; counted in nodes.
    Spreading,
}

impl SeedStage {
    /// The word in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Checking => "checking",
            Self::Storing => "storing",
            Self::Compiling => "compiling",
            Self::Publishing => "publishing",
            Self::Spreading => "spreading",
        }
    }
}

/// A published seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seeded {
    pub name: Name,
    pub version: VersionId,
    /// BLAKE3 of the module: what it can be called by.
    pub module: Digest,
    /// Nodes that are ready to serve it.
    pub ready: usize,
    /// How many there shall be: less than was asked for where fewer nodes are eligible.
    pub floor: usize,
    /// What the publisher should know: a floor that was not reached in time, an upgrade that is still under way.
    pub note: Option<String>,
}

/// A withdrawn seed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unseeded {
    /// Nodes that are alive and have not said in time that they serve it no more.
    pub still_served_by: Vec<NodeKey>,
    /// Calls of it that still ran here when they were no longer waited for.
    pub calls_running: usize,
}
