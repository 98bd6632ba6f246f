//! What the content store and its transfers did since the start, as metrics show it.

use pollen_common::wire::streams::Denial;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Counters since the start, and what is held now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContentNumbers {
    /// Files on this disk, and their bytes.
    pub held: u64,
    pub held_bytes: u64,
    /// Contents that were fetched whole, and their bytes.
    pub fetched: u64,
    pub fetched_bytes: u64,
    /// Fetches that came to nothing.
    pub failed: u64,
    /// Transfers that were served to their end, and their bytes.
    pub served: u64,
    pub served_bytes: u64,
    /// Stored files whose bytes had changed.
    pub damaged: u64,
    /// Holders that sent what they were not asked for.
    pub lied: u64,
    /// Transfers that were refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
pub(super) struct Tally {
    fetched: [AtomicU64; 2],
    served: [AtomicU64; 2],
    failed: AtomicU64,
    damaged: AtomicU64,
    lied: AtomicU64,
    /// As many labels as there are reasons.
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

fn count([times, total]: &[AtomicU64; 2], bytes: u64) {
    times.fetch_add(1, Ordering::Relaxed);
    total.fetch_add(bytes, Ordering::Relaxed);
}

impl Tally {
    pub(super) fn fetched(&self, bytes: u64) {
        count(&self.fetched, bytes);
    }

    pub(super) fn served(&self, bytes: u64) {
        count(&self.served, bytes);
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn damaged(&self) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn lied(&self) {
        self.lied.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, denial: Denial) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(denial.label()).or_default() += 1;
    }

    pub(super) fn read(&self, held: u64, held_bytes: u64) -> ContentNumbers {
        let [fetched, fetched_bytes] = [0, 1].map(|at: usize| self.fetched[at].load(Ordering::Relaxed));
        let [served, served_bytes] = [0, 1].map(|at: usize| self.served[at].load(Ordering::Relaxed));
        ContentNumbers {
            held,
            held_bytes,
            fetched,
            fetched_bytes,
            served,
            served_bytes,
            failed: self.failed.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
            lied: self.lied.load(Ordering::Relaxed),
            refused: self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
