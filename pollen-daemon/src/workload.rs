//! Seeds: WebAssembly that this node runs for callers anywhere in the mesh. Owns the shapes that its rooms share.
//! The core decides what runs where; nothing here does. Invariants: a fresh instance for every call, and no guest on the
//! control or mesh thread.
//!
//! The rooms: `engine` runs what `pollen_module` makes of what was published, `guest` is what it may import, `replicas`
//! executes what the core wants hosted, `calls` brings calls to instances.

pub mod calls;
pub mod engine;
pub mod guest;
pub mod hosted;
pub mod machine;
mod numbers;
pub mod replicas;
mod request;

pub use numbers::{CallNumbers, Histogram};
pub use request::{CallAnswer, CallFailure, CallRequest, SeedRef};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use pollen_common::identity::NodeKey;
use pollen_common::views::Name;
use pollen_common::wire::streams::call::Step;
use tokio::time::Instant;

/// The most bytes that a call may bring or answer with. A guest also needs the memory for them.
pub const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What a guest may know of whoever called it, and how the call came here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who called first, as far as it is proved to this node: else whoever called this node.
    pub peer: NodeKey,
    /// Its properties by the roll.
    pub attributes: BTreeMap<String, String>,
    /// The seeds that the call came through, the first one first; the one that runs now is not among them.
    pub path: Vec<Step>,
}

/// One call of one function.
#[derive(Clone, Debug)]
pub struct Invocation {
    pub seed: Name,
    pub function: String,
    pub input: Bytes,
    pub caller: Arc<Caller>,
    /// When the caller gives up.
    pub deadline: Instant,
}

/// How grave a guest's message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// What a running guest may ask of the world around it.
pub trait World: Send + Sync + 'static {
    /// A request to another seed or a service, by URI. `None` to the guest is any failure; the reason is for the log.
    fn request(&self, invocation: &Invocation, uri: String, input: Bytes) -> BoxFuture<'static, Result<Bytes, String>>;

    /// The guest wants its answer to be that of another seed, to be called under its caller's key when it has ended.
    /// Whether that can be; the last one counts.
    fn tail_call(&self, invocation: &Invocation, uri: &str, input: Bytes) -> bool {
        let _ = (invocation, uri, input);
        false
    }

    /// A line that the guest wrote.
    fn log(&self, invocation: &Invocation, level: LogLevel, message: &str);

    /// The least grave level that is worth a guest's effort: what is below it is not even written.
    fn log_level(&self) -> LogLevel {
        LogLevel::Trace
    }
}

/// Why a call that began here gave no output. Each limit names itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// With the functions that there are, in words.
    #[error("it has no function {function}; {known}")]
    NoFunction { function: String, known: String },
    #[error("no instance is free: {0} run already")]
    PoolFull(usize),
    #[error("the input of {bytes} bytes is over the limit of {max}")]
    InputTooLarge { bytes: usize, max: usize },
    #[error("the output of {bytes} bytes is over the limit of {max}")]
    OutputTooLarge { bytes: u64, max: usize },
    #[error("it reached its memory limit of {} MiB", .max_bytes / (1024 * 1024))]
    Memory { max_bytes: u64 },
    /// Of all guests of this node together. Nothing ran if it was reached before the call began.
    #[error("the guests of this node reached their memory budget of {} MiB", .max_bytes / (1024 * 1024))]
    NodeMemory { max_bytes: u64, ran: bool },
    /// Of what it asks the host to keep for it: input, output, variables, messages.
    #[error("it reached the limit of {} MiB for what passes between it and its host", .max_bytes / (1024 * 1024))]
    Blocks { max_bytes: u64 },
    #[error("it reached its time limit of {} s", .0.as_secs_f64())]
    Time(Duration),
    #[error("the caller's deadline passed")]
    Deadline,
    #[error("it reached the stack limit of {} KiB", .max_bytes / 1024)]
    Stack { max_bytes: usize },
    #[error("it trapped: {0}")]
    Trap(String),
    #[error("it failed: {0}")]
    Failed(String),
}

/// Names that are shown of the functions that there are: enough for a module by hand, and a few lines of a terminal.
const KNOWN_SHOWN_MAX: usize = 16;
/// Of each: compilers export names of any length. What is still too long for an answer, its remark cuts.
const KNOWN_NAME_CHARS_MAX: usize = 64;

impl CallError {
    /// There is no such function, but there are these.
    #[must_use]
    pub fn no_function(function: String, functions: &[String]) -> Self {
        let shorten = |name: &String| name.chars().take(KNOWN_NAME_CHARS_MAX).collect::<String>();
        let shown: Vec<String> = functions.iter().take(KNOWN_SHOWN_MAX).map(shorten).collect();
        let known = match functions.len().saturating_sub(shown.len()) {
            0 if shown.is_empty() => "it has none that can be called".to_owned(),
            0 => format!("it has {}", shown.join(", ")),
            more => format!("it has {}, and {more} more (`pln inspect` lists them)", shown.join(", ")),
        };
        Self::NoFunction { function, known }
    }

    /// Whether nothing of the guest has run, so that the call may be made elsewhere.
    #[must_use]
    pub const fn never_ran(&self) -> bool {
        matches!(
            self,
            Self::NoFunction { .. }
                | Self::PoolFull(_)
                | Self::InputTooLarge { .. }
                | Self::NodeMemory { ran: false, .. }
        )
    }

    /// The reason as a metric's label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NoFunction { .. } => "no_function",
            Self::PoolFull(_) => "pool_full",
            Self::InputTooLarge { .. } => "input_too_large",
            Self::OutputTooLarge { .. } => "output_too_large",
            Self::Memory { .. } => "memory_limit",
            Self::NodeMemory { .. } => "node_memory",
            Self::Blocks { .. } => "block_limit",
            Self::Time(_) => "time_limit",
            Self::Deadline => "deadline",
            Self::Stack { .. } => "stack_limit",
            Self::Trap(_) => "trap",
            Self::Failed(_) => "failed",
        }
    }
}
