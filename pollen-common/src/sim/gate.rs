//! The simulation gate: hundreds of seeded runs must end in agreement. `PLN_SIM_SEED=N` replays one.

use std::format;
use std::string::String;
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

use super::{Failure, Schedule, Summary};

/// Seeds of the gate: the least that we promise, and every count of nodes many times.
const SEEDS: u64 = 300;

/// Runs all seeds below `seeds` on two threads.
fn run_all(seeds: u64, repair: bool) -> Vec<Result<Summary, Failure>> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut results = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return results;
            }
            results.push(Schedule { seed, repair }.run());
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut results = work();
        results.extend(other.join().expect("no schedule panics"));
        results
    })
}

#[test]
fn every_schedule_ends_in_agreement_with_the_model() {
    if let Some(seed) = std::env::var("PLN_SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        let result = Schedule { seed, repair: true }.run();
        std::eprintln!("{result:?}");
        return assert!(result.is_ok(), "seed {seed} fails");
    }
    let results = run_all(SEEDS, true);
    let failures: Vec<String> = results.iter().filter_map(|r| r.as_ref().err()).map(|f| format!("{f}")).collect();
    assert!(failures.is_empty(), "{} of {SEEDS} seeds fail:\n{}", failures.len(), failures.join("\n"));
    let total = |of: fn(&Summary) -> usize| results.iter().flatten().map(of).sum::<usize>();
    assert!(results.iter().flatten().all(|s| (5..=9).contains(&s.nodes) && s.changes >= 200));
    let (crashes, partitions, cuts) = (total(|s| s.crashes), total(|s| s.partitions), total(|s| s.cuts));
    assert!(crashes > 300 && partitions > 300 && cuts > 300, "{crashes} crashes, {partitions} partitions, {cuts} cuts");
    let (seedings, drains) = (total(|s| s.seedings), total(|s| s.drains));
    let inabilities = total(|s| s.inabilities);
    assert!(
        seedings > 800 && drains > 100 && inabilities > 100,
        "{seedings} seedings, {drains} drains, {inabilities} inabilities"
    );
}

#[test]
fn without_repair_by_trie_the_gate_fails() {
    let results = run_all(20, false);
    let failures = results.iter().filter(|result| result.is_err()).count();
    assert!(failures > 0, "the gate would not notice that repair by trie is missing");
}
