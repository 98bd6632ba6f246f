//! wasmtime as the host of guests: one engine for the node, its worker threads, its pool of instances, and what it
//! compiled. Must not know calls between nodes, replicas or names. Invariant: as many guests run at once as there are
//! slots, and what cannot be had is refused, never waited for.

mod budget;
mod cache;
mod image;
mod numbers;
mod prepare;
mod settings;
mod ticker;
mod warm;
mod workers;

use std::future::Future;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;
use wasmtime::{InstancePre, Linker, Store, UpdateDeadline};

use super::CallError;
use super::guest::{self, CallState, Exports};
pub use budget::Budget;
use budget::Place;
use cache::Cache;
pub use image::TakeError;
use numbers::Counters;
pub use numbers::EngineNumbers;
use prepare::Preparations;
pub use prepare::PrepareError;
pub use settings::{Instances, Reset, STACK_BYTES_MAX};
use ticker::Ticker;
use warm::Warm;
pub(super) use warm::{Counted, Slots, give_back};
pub(super) use workers::Long;
pub use workers::Task;
use workers::Workers;

/// What an engine is given.
#[derive(Clone)]
pub struct EngineConfig {
    /// Where compiled modules are kept; made with mode 0700 if it is not there.
    pub cache_dir: PathBuf,
    /// A secret of this node: compiled code is run only if it was written by whoever knew it.
    pub cache_key: [u8; 32],
    /// The most memory of all guests together, in bytes.
    pub memory_budget_bytes: u64,
    /// Threads that guests run on; none is one.
    pub workers: usize,
    /// The most calls at once; those that wait for others count.
    pub calls_max: usize,
}

/// No guest can run on this node.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Unable(#[from] settings::Unable),
    #[error("the host functions do not fit the engine: {0}")]
    Host(String),
    #[error("the directory of compiled modules: {0}")]
    Cache(#[from] cache::CacheError),
    #[error("no thread for guests: {0}")]
    Threads(std::io::Error),
}

/// What the engine found on this machine.
#[derive(Clone, Debug)]
pub struct EngineStanding {
    pub instances: Instances,
    pub workers: usize,
    pub memory_budget_bytes: u64,
    /// What compiled code depends on beside the module: another id, and everything is compiled anew.
    pub id: String,
}

impl EngineStanding {
    /// The standing in one line.
    #[must_use]
    pub fn sentence(&self) -> String {
        match &self.instances {
            Instances::Pool { slots, reset, stepped_down: None } => format!("{slots} slots; {}", reset.sentence()),
            Instances::Pool { slots, reset, stepped_down: Some(why) } => {
                format!("{slots} slots; {}; {why}", reset.sentence())
            }
            Instances::OnDemand { slots, why } => {
                format!("{slots} calls at once, each with memory of its own: no pool of instances fits: {why}")
            }
        }
    }
}

/// The node's engine. Clones are the same engine.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    wasmtime: wasmtime::Engine,
    linker: Linker<CallState>,
    instances: Instances,
    id: String,
    ticker: Ticker,
    workers: Arc<Workers>,
    budget: Arc<Budget>,
    warm: Warm,
    cache: Cache,
    preparations: Preparations,
    counters: Counters,
}

impl Engine {
    /// Probes the machine and starts the threads. Nothing is compiled yet.
    pub fn start(config: EngineConfig) -> Result<Self, EngineError> {
        let slots = NonZeroUsize::new(config.calls_max).unwrap_or(NonZeroUsize::MIN);
        let (wasmtime, instances) = settings::probe(slots)?;
        let linker = guest::linker(&wasmtime).map_err(|error| EngineError::Host(error.to_string()))?;
        let id = prepare::engine_id(&wasmtime);
        let workers = Workers::start(config.workers.max(1)).map_err(EngineError::Threads)?;
        Ok(Self(Arc::new(Shared {
            ticker: Ticker::start(wasmtime.clone()).map_err(EngineError::Threads)?,
            warm: Warm::new(workers.count()),
            cache: Cache::open(config.cache_dir, config.cache_key)?,
            budget: Arc::new(Budget::new(config.memory_budget_bytes)),
            preparations: Preparations::default(),
            counters: Counters::default(),
            wasmtime,
            linker,
            instances,
            id,
            workers,
        })))
    }

    /// What the engine found on this machine: for status and metrics.
    #[must_use]
    pub fn standing(&self) -> EngineStanding {
        EngineStanding {
            instances: self.0.instances.clone(),
            workers: self.0.workers.count(),
            memory_budget_bytes: self.0.budget.total_bytes(),
            id: self.0.id.clone(),
        }
    }

    /// What all guests may have together from now on, in bytes. What they have beyond it stays theirs until they end.
    pub(super) fn set_memory_budget(&self, bytes: u64) {
        self.0.budget.set_total_bytes(bytes);
    }

    /// What it counted since it started.
    #[must_use]
    pub fn numbers(&self) -> EngineNumbers {
        let pool = self.0.wasmtime.pooling_allocator_metrics();
        EngineNumbers {
            running: self.0.ticker.running(),
            slots: self.slots(),
            memory_bytes: self.0.budget.used_bytes(),
            kept_bytes: pool.map_or(0, |pool| pool.unused_memory_bytes_resident() as u64),
            ..self.0.counters.read()
        }
    }

    /// Runs `future` on the worker that has the least to do; dropping the task drops it. Whoever spawns bounds how many.
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        self.0.workers.spawn(future)
    }

    /// The runtime of a worker, each in turn: what calls guests again and again is served there without a change of
    /// thread.
    #[must_use]
    pub fn next_seat(&self) -> Handle {
        self.0.workers.next_seat()
    }

    /// The most calls at once.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.0.instances.slots()
    }

    /// Calls that run now, those that wait for others included.
    #[must_use]
    pub fn running(&self) -> usize {
        self.0.ticker.running()
    }

    /// The worker that this thread is, if it is one.
    pub(super) fn here(&self) -> Option<usize> {
        self.0.workers.here()
    }

    /// Whether a call that begins on this worker had better begin on another.
    pub(super) fn is_long(&self, worker: usize) -> bool {
        self.0.workers.is_long(worker)
    }

    /// Where the slots are counted that a module's calls are in.
    pub(super) fn slots_of(&self, pre: InstancePre<CallState>, exports: Arc<Exports>) -> Arc<Slots> {
        self.0.warm.add(pre, exports)
    }

    pub(super) fn budget(&self) -> Arc<Budget> {
        Arc::clone(&self.0.budget)
    }

    /// A place for an instance that begins with so much memory.
    pub(super) fn admit(&self, initial_bytes: u64) -> Result<Admitted<'_>, CallError> {
        let slots = self.slots();
        let place = self
            .0
            .budget
            .place(initial_bytes)
            .ok_or_else(|| CallError::NodeMemory { max_bytes: self.0.budget.total_bytes(), ran: false })?;
        if !self.0.ticker.enter(slots) {
            return Err(CallError::PoolFull(slots));
        }
        Ok(Admitted { ticker: &self.0.ticker, _place: place })
    }

    /// A store for one instance, interrupted at each tick so that others have their turn.
    pub(super) fn store(&self, state: CallState) -> Store<CallState> {
        let mut store = Store::new(&self.0.wasmtime, state);
        store.limiter(CallState::limiter);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|mut call| {
            call.data_mut().ran_long();
            Ok(UpdateDeadline::Yield(1))
        });
        store
    }

    pub(super) fn count_failure(&self, error: &CallError) {
        self.0.counters.failed(error);
    }
}

/// A call's place among those that run, until it is dropped.
pub(super) struct Admitted<'a> {
    ticker: &'a Ticker,
    _place: Place<'a>,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.ticker.leave();
    }
}
