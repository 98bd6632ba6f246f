//! Counters of calls, and where each seed's last calls went. They never go down while the daemon runs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use pollen_common::identity::NodeKey;
use pollen_common::views::Name;
use tokio::time::Instant;

use crate::services::choose::Reason;
use crate::workload::{CallNumbers, Histogram};

/// Upper bounds of the histogram, in microseconds: from an empty call in memory to the default time limit and beyond.
const BOUNDS_US: [u64; 18] = [
    25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    5_000_000, 30_000_000, 60_000_000,
];
/// Placements remembered of one seed.
const PLACEMENTS_MAX: usize = 4;
/// Seeds whose placements are remembered; those called last.
const SEEDS_MAX: usize = 1024;

/// Everything that is counted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    results: Mutex<BTreeMap<&'static str, u64>>,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    retries: AtomicU64,
    /// One for each bound, and one for all that took longer.
    took: [AtomicU64; BOUNDS_US.len() + 1],
    took_us: AtomicU64,
}

impl Tally {
    /// A call ended: `ok`, or the label of its failure.
    pub(super) fn ended(&self, label: &'static str) {
        *lock(&self.results).entry(label).or_default() += 1;
    }

    /// A call was turned away here before it ran.
    pub(super) fn refused(&self, label: &'static str) {
        *lock(&self.refused).entry(label).or_default() += 1;
    }

    /// A call is made elsewhere, too or again.
    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A call ran here.
    pub(super) fn ran(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.took[bucket].fetch_add(1, Ordering::Relaxed);
        self.took_us.fetch_add(us, Ordering::Relaxed);
    }

    /// All but what is running and waiting.
    pub(super) fn read(&self) -> CallNumbers {
        let owned = |counts: &Mutex<BTreeMap<&'static str, u64>>| {
            lock(counts).iter().map(|(label, count)| ((*label).to_owned(), *count)).collect()
        };
        let mut count = 0;
        let mut buckets = Vec::with_capacity(BOUNDS_US.len());
        for (bound, bucket) in BOUNDS_US.iter().zip(&self.took) {
            count += bucket.load(Ordering::Relaxed);
            buckets.push((Duration::from_micros(*bound).as_secs_f64(), count));
        }
        count += self.took[BOUNDS_US.len()].load(Ordering::Relaxed);
        let sum = Duration::from_micros(self.took_us.load(Ordering::Relaxed)).as_secs_f64();
        CallNumbers {
            results: owned(&self.results),
            refused: owned(&self.refused),
            retries: self.retries.load(Ordering::Relaxed),
            seconds: Histogram { buckets, sum, count },
            ..CallNumbers::default()
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

/// Several calls that went to one host for one reason.
#[derive(Debug)]
struct Placement {
    node: NodeKey,
    reason: Reason,
    calls: u64,
    last: Instant,
}

/// Where the last calls of each seed went.
#[derive(Debug, Default)]
pub(super) struct Placements(Mutex<BTreeMap<Name, VecDeque<Placement>>>);

impl Placements {
    pub(super) fn note(&self, seed: &Name, node: NodeKey, reason: &Reason, now: Instant) {
        let mut seeds = lock(&self.0);
        let Some(placements) = seeds.get_mut(seed) else {
            if seeds.len() >= SEEDS_MAX {
                let oldest = seeds.iter().min_by_key(|(_, placements)| placements.back().map(|placed| placed.last));
                let oldest = oldest.map(|(name, _)| name.clone());
                oldest.and_then(|name| seeds.remove(&name));
            }
            seeds.insert(seed.clone(), [Placement { node, reason: reason.clone(), calls: 1, last: now }].into());
            return;
        };
        let same = |placed: &Placement| {
            placed.node == node && std::mem::discriminant(&placed.reason) == std::mem::discriminant(reason)
        };
        if let Some(placed) = placements.iter_mut().find(|placed| same(placed)) {
            placed.calls += 1;
            placed.last = now;
            if placed.reason != *reason {
                placed.reason.clone_from(reason);
            }
            return;
        }
        if placements.len() >= PLACEMENTS_MAX {
            let oldest = (0..placements.len()).min_by_key(|index| placements[*index].last);
            oldest.and_then(|index| placements.remove(index));
        }
        placements.push_back(Placement { node, reason: reason.clone(), calls: 1, last: now });
    }

    /// A sentence each, the newest first.
    pub(super) fn sentences(&self, seed: &Name, name_of: impl Fn(&NodeKey) -> String, now: Instant) -> Vec<String> {
        let seeds = lock(&self.0);
        let mut placements: Vec<&Placement> = seeds.get(seed).into_iter().flatten().collect();
        placements.sort_by_key(|placed| std::cmp::Reverse(placed.last));
        let sentence = |placed: &&Placement| {
            let calls = if placed.calls == 1 { "one call".to_owned() } else { format!("{} calls", placed.calls) };
            let ago = now.saturating_duration_since(placed.last).as_secs();
            format!("{calls} from here went to {}, the last {ago} s ago: {}", name_of(&placed.node), placed.reason)
        };
        placements.iter().map(sentence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_counts_each_call_once_and_ascends() {
        let tally = Tally::default();
        for us in [10, 25, 26, 999, 120_000_000] {
            tally.ran(Duration::from_micros(us));
        }
        let seconds = tally.read().seconds;
        assert_eq!(seconds.count, 5);
        assert_eq!(seconds.buckets[0], (25e-6, 2));
        assert_eq!(seconds.buckets[1], (50e-6, 3));
        assert_eq!(seconds.buckets.last().map(|(_, count)| *count), Some(4), "one took longer than any bound");
        assert!((seconds.sum - 120.001_06).abs() < 1e-6);
    }

    #[test]
    fn placements_of_one_kind_are_one_sentence_and_only_the_last_kinds_are_kept() {
        let placements = Placements::default();
        let seed: Name = "s".parse().expect("a name");
        let mut now = Instant::now();
        for node in 0..9 {
            placements.note(&seed, NodeKey([node; 32]), &Reason::Only, now);
            placements.note(&seed, NodeKey([node; 32]), &Reason::Only, now);
            now += Duration::from_secs(1);
        }
        let sentences = placements.sentences(&seed, NodeKey::short, now);
        assert_eq!(sentences.len(), PLACEMENTS_MAX);
        assert_eq!(sentences[0], "2 calls from here went to 08080808, the last 1 s ago: the only provider");
    }

    #[test]
    fn only_so_many_seeds_are_remembered() {
        let placements = Placements::default();
        for index in 0..SEEDS_MAX + 10 {
            placements.note(
                &format!("s{index}").parse().expect("a name"),
                NodeKey([1; 32]),
                &Reason::Local,
                Instant::now(),
            );
        }
        assert_eq!(lock(&placements.0).len(), SEEDS_MAX);
    }
}
