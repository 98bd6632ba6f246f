//! What the control socket asks of seeds: publishing, calling, and the numbers of those who do the work. Shapes alone;
//! must not know HTTP, nor how a module is run. Invariant: nothing here is unbounded but by what made it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use pollen_common::identity::{Digest, NodeKey};
use pollen_common::node::RefusalKind;
use pollen_common::views::{Name, VersionId};
use pollen_common::wire::streams::call::Step;

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

/// Which seed a call is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SeedRef {
    /// The present version of a name.
    Name(Name),
    /// Any version of this very module.
    Module(Digest),
}

impl SeedRef {
    /// What a call by it is on the path of further calls.
    #[must_use]
    pub fn step(&self) -> Step {
        match self {
            Self::Name(name) => Step::Seed(name.clone()),
            Self::Module(module) => Step::Module(*module),
        }
    }
}

/// A call of an operator's: `POST /v1/calls/SEED/FUNCTION`.
#[derive(Clone, Debug)]
pub struct CallRequest {
    pub seed: SeedRef,
    pub function: String,
    pub input: Bytes,
    /// How long its asker waits, over all tries.
    pub timeout: Duration,
    /// How often it may be tried again elsewhere.
    pub retries: u32,
}

/// What a call gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallAnswer {
    pub output: Bytes,
    pub served_by: NodeKey,
    pub version: VersionId,
    /// How often it was tried elsewhere before.
    pub retries: u32,
}

/// Why a call gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallFailure {
    pub kind: RefusalKind,
    pub message: String,
    pub hint: Option<String>,
    /// The guest began, or may have: doing it again may do it twice.
    pub may_have_run: bool,
    /// The node that said so, where one did.
    pub served_by: Option<NodeKey>,
}

/// What this node knows of a module that is on its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldModule {
    /// SHA-256 of the module, in hexadecimal, for those who compare digests.
    pub sha256: String,
    /// The functions that can be called.
    pub functions: Vec<String>,
}

/// What runs guests, how many at a time, and why it does no better. Absent as long as nothing needed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStanding {
    /// `pooling`, `on_demand`, or `none` where guests cannot run here.
    pub allocator: String,
    /// How a used instance's memory is made new: `pagemap_scan`, `keep`, `decommit`.
    pub reset: String,
    /// Instances at a time.
    pub slots: u64,
    /// Why it is not better: a clause for people; empty where it is best.
    pub why_not_better: String,
}

/// Counters and gauges of seeds. Counters count from the start of the daemon.
#[derive(Clone, Debug, Default)]
pub struct SeedNumbers {
    pub calls: CallNumbers,
    pub engine: EngineNumbers,
    pub content: ContentNumbers,
    /// Modules that are hosted here, by their state: `starting`, `ready`, `stopping`.
    pub replicas: BTreeMap<String, u64>,
}

/// Calls that ran here or were asked for here.
#[derive(Clone, Debug, Default)]
pub struct CallNumbers {
    /// Guests that run here now.
    pub running: u64,
    /// Calls that wait here for their turn.
    pub waiting: u64,
    /// Calls that were asked for here or came here, by how they ended: `ok`, or the reason's label.
    pub results: BTreeMap<String, u64>,
    /// Calls that this node turned away before they ran, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Calls that were tried again elsewhere.
    pub retries: u64,
    /// How long the calls took that ran here.
    pub seconds: Histogram,
}

/// How long things took: counts of those at most so long, as Prometheus counts them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// An upper bound in seconds and how many took at most that long, ascending in both.
    pub buckets: Vec<(f64, u64)>,
    /// Of all, in seconds.
    pub sum: f64,
    pub count: u64,
}

/// What the engine did.
#[derive(Clone, Debug, Default)]
pub struct EngineNumbers {
    pub standing: Option<EngineStanding>,
    /// Instances there are now.
    pub instances: u64,
    /// What running guests hold, in bytes.
    pub memory_bytes: u64,
    /// What idle slots keep for the next call, in bytes.
    pub kept_bytes: u64,
    /// Modules made ready, by how: `compiled`, `cached`; and `damaged` code that was on disk, and never run.
    pub compilations: BTreeMap<String, u64>,
}

/// What the content store holds and did.
#[derive(Clone, Debug, Default)]
pub struct ContentNumbers {
    pub modules: u64,
    pub bytes: u64,
    /// Modules fetched from others, by how that ended: `ok`, `failed`, `damaged`.
    pub fetched: BTreeMap<String, u64>,
}
