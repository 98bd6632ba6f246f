//! Runs a merged module once, up to the end of its start, so that its image can be taken. Must not know what an image
//! holds. Invariant: it runs on an engine of its own, away from the calls' slots, within a limit of time.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use wasmtime::{Module, Store};

use super::budget::Budget;
use super::settings;
use super::ticker::Ticker;
use crate::workload::guest::{self, CallState, Exports, Incomplete};
use pollen_module::Merged;
use pollen_module::image::{ImageError, Imaging};

/// The longest that a start may take. Those of today's languages take a millisecond.
const START_MAX: Duration = Duration::from_secs(10);

/// Why no image was taken. The module may be published without one.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Incomplete(#[from] Incomplete),
    #[error("its start failed while its image was taken: {0}; publish it without --image")]
    Start(String),
    #[error("its start took longer than {} s while its image was taken; publish it without --image", START_MAX.as_secs())]
    Slow,
    #[error("no engine to take its image with: {0}")]
    Engine(String),
}

/// The module whose instances begin where the start of this one ends. Blocks; to be called on a thread of one's own.
pub(super) fn take(merged: Merged, memory_bytes: u64) -> Result<Merged, TakeError> {
    let Some(initialize) = merged.initialize else { return Ok(merged) };
    let broken = |error: &dyn std::fmt::Display| TakeError::Engine(error.to_string());
    let engine = settings::apart().map_err(|error| broken(&error))?;
    let linker = guest::linker(&engine).map_err(|error| broken(&error))?;
    let ticker = Ticker::start(engine.clone()).map_err(|error| broken(&error))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|error| broken(&error))?;

    let imaging = Imaging::of(&merged)?;
    let failed = |error: wasmtime::Error| TakeError::Start(error.root_cause().to_string());
    let module = Module::new(&engine, imaging.wasm()).map_err(failed)?;
    let exports = Arc::new(Exports::of(&module)?);
    // What the start may grow to, beside what its memories have.
    let budget = Arc::new(Budget::new(memory_bytes));
    let state = CallState::of_nobody(exports, budget, Instant::now() + START_MAX);
    let mut store = Store::new(&engine, state);
    store.limiter(CallState::limiter);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    ticker.enter(NonZeroUsize::MIN.get());
    let start = async {
        let instance = linker.instantiate_async(&mut store, &module).await?;
        instance.get_typed_func::<(), ()>(&mut store, initialize.name)?.call_async(&mut store, ()).await?;
        Ok(instance)
    };
    let instance =
        runtime.block_on(async { timeout(START_MAX, start).await }).map_err(|_| TakeError::Slow)?.map_err(failed)?;
    Ok(imaging.take(&mut store, instance)?)
}
