//! Memory that slots of the pool keep after a call, and how it goes back to the kernel once a load is over.
//!
//! A pool's slot keeps the pages that calls touched, which makes the next call fast and would hold hundreds of
//! megabytes for ever after one busy second. wasmtime has no way to empty a slot that is not in use, so it is put to
//! use: as many instances as ran at once are made again, which takes those very slots (the last used first), their
//! memory is given back, and they are dropped without having run.
//! What a large call touched, every later call in the same slot would clear again, for many times what a small call takes:
//! so it goes back to the kernel once small calls have followed.
//! Invariant: only memory of instances that are held here is given back.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use wasmtime::{Extern, InstancePre, Store};

use super::{Engine, Instances};
use crate::workload::guest::{CallState, Exports};

/// How long after a call its slots are emptied: well within a minute, and rare enough to cost nothing under load.
const SWEEP_AFTER: Duration = Duration::from_secs(15);
/// Instances that are made before calls have their turn again.
const SWEEP_PIECE: usize = 16;
/// The longest that one sweep of a module may take: instances may run a start function of their own.
const SWEEP_MAX: Duration = Duration::from_secs(2);
/// Input and output from which on a call is large: a small one clears what that touched in about the time that it runs.
const LARGE_BYTES: usize = 64 * 1024;
/// Small calls in a row after which the memory of a large one is given back: where both come in turns, both are better
/// off with it.
const SMALL_IN_A_ROW: u8 = 4;

/// What each worker has to sweep.
pub(in crate::workload) struct Warm {
    modules: Mutex<Vec<Arc<Slots>>>,
    armed: Vec<AtomicBool>,
}

/// The slots that a module's calls were in.
pub(in crate::workload) struct Slots {
    pre: InstancePre<CallState>,
    exports: Arc<Exports>,
    at: Vec<AtWorker>,
}

/// Calls of a module on one worker. The pool keeps its slots apart by thread, so each thread sweeps its own.
/// A cache line for each, as every call counts here.
#[derive(Default)]
#[repr(align(128))]
struct AtWorker {
    now: AtomicUsize,
    peak: AtomicUsize,
    /// Small calls until the memory of a large one is given back; zero where none was.
    small_left: AtomicU8,
}

/// A call that is counted, until it is dropped.
pub(in crate::workload) struct Counted<'a>(&'a AtWorker);

impl Warm {
    pub(super) fn new(workers: usize) -> Self {
        Self { modules: Mutex::default(), armed: (0..workers).map(|_| AtomicBool::new(false)).collect() }
    }

    /// Slots for the calls of a module that was just prepared.
    pub(in crate::workload) fn add(&self, pre: InstancePre<CallState>, exports: Arc<Exports>) -> Arc<Slots> {
        let at = self.armed.iter().map(|_| AtWorker::default()).collect();
        let slots = Arc::new(Slots { pre, exports, at });
        self.modules.lock().expect("nothing panics while it looks").push(Arc::clone(&slots));
        slots
    }

    /// What has to be swept on a worker: each module, and how many of its instances ran at once since the last time.
    /// Modules that are gone and have nothing left to sweep are forgotten.
    fn take(&self, worker: usize) -> Vec<(Arc<Slots>, usize)> {
        let mut modules = self.modules.lock().expect("nothing panics while it looks");
        modules.retain(|slots| Arc::strong_count(slots) > 1 || slots.at.iter().any(AtWorker::has_run));
        modules.iter().map(|slots| (Arc::clone(slots), slots.at[worker].take())).filter(|(_, peak)| *peak > 0).collect()
    }
}

impl Slots {
    pub(in crate::workload) fn count(&self, worker: usize) -> Counted<'_> {
        let at = &self.at[worker];
        let now = at.now.fetch_add(1, Ordering::Relaxed) + 1;
        at.peak.fetch_max(now, Ordering::Relaxed);
        Counted(at)
    }
}

impl Counted<'_> {
    /// Whether the call, of so many bytes of input and output, is to give its memory back rather than leave it in its
    /// slot.
    pub(in crate::workload) fn is_to_be_emptied(&self, bytes: usize) -> bool {
        // No other thread has calls at this worker.
        let left = self.0.small_left.load(Ordering::Relaxed);
        let now = if bytes >= LARGE_BYTES { SMALL_IN_A_ROW } else { left.saturating_sub(1) };
        if now != left {
            self.0.small_left.store(now, Ordering::Relaxed);
        }
        now == 0 && left > 0
    }
}

impl AtWorker {
    fn has_run(&self) -> bool {
        self.peak.load(Ordering::Relaxed) > 0
    }

    fn take(&self) -> usize {
        self.peak.swap(self.now.load(Ordering::Relaxed), Ordering::Relaxed)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Engine {
    /// Sees to it that this worker's slots are emptied some time after a call. To be called on the worker.
    pub(in crate::workload) fn sweep_later(&self, worker: usize) {
        if matches!(self.0.instances, Instances::OnDemand { .. }) {
            return;
        }
        let armed = &self.0.warm.armed[worker];
        if armed.load(Ordering::Relaxed) || armed.swap(true, Ordering::Relaxed) {
            return;
        }
        let engine = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep(SWEEP_AFTER).await;
            if let Some(shared) = engine.upgrade() {
                Self(shared).sweep(worker).await;
            }
        });
    }

    /// Gives the memory of idle slots back to the kernel: those of the calls that ran on this worker.
    pub(in crate::workload) async fn sweep(&self, worker: usize) {
        // Calls from now on are for the next sweep.
        self.0.warm.armed[worker].store(false, Ordering::Relaxed);
        for (slots, peak) in self.0.warm.take(worker) {
            if timeout(SWEEP_MAX, self.empty(&slots, peak)).await != Ok(true) {
                slots.at[worker].peak.fetch_max(peak, Ordering::Relaxed);
            }
        }
        if self
            .0
            .warm
            .modules
            .lock()
            .expect("nothing panics while it looks")
            .iter()
            .any(|slots| slots.at[worker].has_run())
        {
            self.sweep_later(worker);
        }
    }

    /// False when calls left no room for it, so that it has to be done again.
    async fn empty(&self, slots: &Slots, peak: usize) -> bool {
        let mut held = Vec::with_capacity(peak);
        for index in 0..peak {
            if index % SWEEP_PIECE == SWEEP_PIECE - 1 {
                tokio::task::yield_now().await;
            }
            // No place, no sweep: calls come first.
            let Ok(place) = self.admit(0) else { return false };
            let state = CallState::of_nobody(Arc::clone(&slots.exports), self.budget(), Instant::now() + SWEEP_MAX);
            let mut store = self.store(state);
            let Ok(instance) = slots.pre.instantiate_async(&mut store).await else { return true };
            give_back(&mut store, &instance, &slots.exports);
            held.push((store, place));
        }
        true
    }
}

/// Unmaps the pages of an instance's memories: they are as they were at its start when they are next touched.
pub(in crate::workload) fn give_back(store: &mut Store<CallState>, instance: &wasmtime::Instance, exports: &Exports) {
    for export in [exports.memory, exports.kernel] {
        let Some(Extern::Memory(memory)) = instance.get_module_export(&mut *store, &export) else { continue };
        unmap(memory.data_mut(&mut *store));
    }
}

fn unmap(bytes: &mut [u8]) {
    // SAFETY: the range is a linear memory of an instance that this function's caller holds and nothing else refers to;
    // wasmtime maps linear memories from the start of a page on, and the kernel refuses a range that does not begin at
    // one. Pages become zero, or those of the module's image again: valid contents for bytes either way.
    // A refusal leaves the memory resident, which is no fault.
    unsafe { libc::madvise(bytes.as_mut_ptr().cast(), bytes.len(), libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of calls with so many bytes, one after the other: which give their memory back.
    fn emptied(calls: &[usize]) -> Vec<bool> {
        let at = AtWorker::default();
        calls.iter().map(|&bytes| Counted(&at).is_to_be_emptied(bytes)).collect()
    }

    #[test]
    fn memory_is_given_back_once_after_a_large_call_and_only_when_small_ones_follow() {
        let (small, large) = (100, LARGE_BYTES);
        assert_eq!(emptied(&[small; 6]), [false; 6]);
        assert_eq!(emptied(&[large; 6]), [false; 6]);
        assert_eq!(emptied(&[large, small, large, small, large, small]), [false; 6]);
        assert_eq!(emptied(&[large, small, small, small, small, small]), [false, false, false, false, true, false]);
    }
}
