//! What the engine counts.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::workload::CallError;

/// What the engine counted since it started, and what it holds now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineNumbers {
    /// Calls that run now, those that wait for others included.
    pub running: usize,
    /// The most that can.
    pub slots: usize,
    /// What running guests hold of the memory budget, in bytes.
    pub memory_bytes: u64,
    /// Memory that idle slots keep for the next call, in bytes.
    pub kept_bytes: u64,
    /// Modules compiled.
    pub compilations: u64,
    /// Modules whose compiled code was on disk.
    pub cache_hits: u64,
    /// Compiled code on disk that was not as this node wrote it: removed, never run.
    pub cache_damaged: u64,
    /// Images taken.
    pub images: u64,
    /// Calls that failed, by [`CallError::label`].
    pub failures: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
pub(super) struct Counters {
    pub compilations: AtomicU64,
    pub cache_hits: AtomicU64,
    pub cache_damaged: AtomicU64,
    pub images: AtomicU64,
    /// Failing calls are rare enough for a lock.
    failures: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    pub fn failed(&self, error: &CallError) {
        let mut failures = self.failures.lock().expect("nothing panics while it counts");
        *failures.entry(error.label()).or_default() += 1;
    }

    pub fn read(&self) -> EngineNumbers {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineNumbers {
            compilations: value(&self.compilations),
            cache_hits: value(&self.cache_hits),
            cache_damaged: value(&self.cache_damaged),
            images: value(&self.images),
            failures: self.failures.lock().expect("nothing panics while it counts").clone(),
            ..EngineNumbers::default()
        }
    }
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
