//! What this machine gives to seeds: how much of it, and the engine, made when it is first needed. Owns those numbers;
//! must not know which seeds there are. Invariant: a machine that cannot run guests says why, and is not asked again.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pollen_common::identity::SecretKey;
use pollen_common::views::Capacity;
use tokio::sync::{Notify, OnceCell};

use super::calls::Limits;
use super::engine::{Engine, EngineConfig};

/// The most calls at once. Each reserves 8 GiB of address space, of which there are 128 TiB; calls that wait for other
/// calls count, so that a thousand of them that lead through one more fit.
const CALLS_MAX: usize = 2048;

/// Guests may have one part in so many of the machine's memory together: the rest is for what else it is there for.
const MEMORY_SHARE: u64 = 2;

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

/// Where compiled code is kept in a state directory.
const COMPILED: &str = "compiled";

/// What the key of compiled code is derived for; changing it compiles everything anew.
const CACHE_KEY: &str = "pollen 2026 v1 compiled code";

/// Guests cannot run on this machine; the reason as a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoEngine(pub String);

/// This machine. Clones are the same.
#[derive(Clone)]
pub struct Machine(Arc<Inner>);

struct Inner {
    config: EngineConfig,
    /// What guests may have together now, in bytes.
    memory_bytes: AtomicU64,
    engine: OnceCell<Result<Engine, NoEngine>>,
    /// Told when the engine's start has ended.
    tried: Notify,
}

impl Machine {
    /// This machine, for the node of a state directory. Starts nothing.
    #[must_use]
    pub fn of_node(state_dir: &Path, secret: &SecretKey) -> Self {
        let memory_bytes = memory_bytes() / MEMORY_SHARE;
        let config = EngineConfig {
            cache_dir: state_dir.join(COMPILED),
            cache_key: blake3::derive_key(CACHE_KEY, &secret.seed()[..]),
            memory_budget_bytes: memory_bytes,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            calls_max: CALLS_MAX,
        };
        let memory_bytes = AtomicU64::new(memory_bytes);
        Self(Arc::new(Inner { config, memory_bytes, engine: OnceCell::new(), tried: Notify::new() }))
    }

    /// All that this process may use, in MiB: no more can be given to guests.
    #[must_use]
    pub fn memory_mib_max() -> u32 {
        in_mib(memory_bytes())
    }

    /// Gives guests so much memory together from now on, in MiB, or again the part that they have where nobody says.
    /// A machine that has less than it had when that was set gives what there is.
    pub fn give(&self, memory_mib: Option<u32>) {
        let bytes = memory_mib.map_or(memory_bytes() / MEMORY_SHARE, |mib| (u64::from(mib) * MIB).min(memory_bytes()));
        self.0.memory_bytes.store(bytes, Ordering::SeqCst);
        if let Some(Ok(engine)) = self.0.engine.get() {
            engine.set_memory_budget(bytes);
        }
    }

    /// What there is for seeds, as others are told it; nothing once it turned out that guests cannot run here.
    #[must_use]
    pub fn capacity(&self) -> Option<Capacity> {
        if matches!(self.found(), Some(Err(_))) {
            return None;
        }
        Some(Capacity {
            memory_mib: in_mib(self.0.memory_bytes.load(Ordering::SeqCst)),
            cores: u16::try_from(self.0.config.workers).unwrap_or(u16::MAX),
        })
    }

    /// How much may run at once.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits::of_engine(self.0.config.calls_max, self.0.config.workers)
    }

    /// The engine, started if it does not run yet.
    ///
    /// # Errors
    /// Why there is none, the same each time.
    pub async fn engine(&self) -> Result<Engine, NoEngine> {
        let start = || async {
            let config = self.0.config.clone();
            let started = tokio::task::spawn_blocking(move || Engine::start(config)).await;
            let started = started.map_err(|error| NoEngine(error.to_string()))?;
            let engine = started.map_err(|error| NoEngine(error.to_string()))?;
            tracing::info!("guests can run: {}", engine.standing().sentence());
            Ok(engine)
        };
        let found = self.0.engine.get_or_init(start).await.clone();
        if let Ok(engine) = &found {
            // It may have been changed while the engine started.
            engine.set_memory_budget(self.0.memory_bytes.load(Ordering::SeqCst));
        }
        self.0.tried.notify_waiters();
        found
    }

    /// Returns once it is known that guests cannot run here, with the reason.
    pub async fn unable(&self) -> NoEngine {
        loop {
            let tried = self.0.tried.notified();
            if let Some(Err(why)) = self.found() {
                return why;
            }
            tried.await;
        }
    }

    /// The engine if it runs, why there is none if that is known; `None` as long as nothing needed it.
    #[must_use]
    pub fn found(&self) -> Option<Result<Engine, NoEngine>> {
        self.0.engine.get().cloned()
    }
}

/// Memory that this process may use: the machine's, or less where its control group says so.
fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = info.totalram.saturating_mul(info.mem_unit.into());
    group_limit().map_or(machine, |limit| machine.min(limit))
}

fn in_mib(bytes: u64) -> u32 {
    u32::try_from(bytes / MIB).unwrap_or(u32::MAX)
}

/// The tightest limit from this process' control group upwards (version 2, mounted where it always is): what `MemoryMax`
/// and `MemoryHigh` of a unit, and a container's bound, come to.
fn group_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_below(Path::new("/sys/fs/cgroup"), groups.lines().find_map(|line| line.strip_prefix("0::/"))?)
}

fn limit_below(root: &Path, group: &str) -> Option<u64> {
    let path = root.join(group);
    let groups = path.ancestors().take_while(|path| path.starts_with(root));
    // Beyond `memory.high` the kernel throttles until it is of no use to have more.
    let files = groups.flat_map(|group| ["memory.max", "memory.high"].map(|file| group.join(file)));
    files.filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_offers_a_part_of_what_it_has_before_anything_is_started() {
        let machine = Machine::of_node(Path::new("/nowhere"), &SecretKey::from_seed(&[1; 32]));
        let Capacity { memory_mib, cores } = machine.capacity().expect("nothing is known against it");
        assert!(memory_mib > 0 && u64::from(memory_mib) * MIB <= memory_bytes() / MEMORY_SHARE);
        assert!(cores > 0 && machine.found().is_none());
    }

    #[tokio::test]
    async fn what_guests_are_given_is_what_is_offered_before_the_engine_starts_and_after() {
        let dir = tempfile::tempdir().expect("a directory");
        let machine = Machine::of_node(dir.path(), &SecretKey::from_seed(&[1; 32]));
        let usual = machine.capacity();
        let offered = |machine: &Machine| machine.capacity().expect("guests run here").memory_mib;
        machine.give(Some(64));
        assert_eq!(offered(&machine), 64);
        let engine = machine.engine().await.expect("guests run here");
        assert_eq!(engine.standing().memory_budget_bytes, 64 * MIB);
        machine.give(Some(u32::MAX));
        assert_eq!(offered(&machine), Machine::memory_mib_max(), "there is no more");
        machine.give(Some(32));
        assert_eq!((offered(&machine), engine.standing().memory_budget_bytes), (32, 32 * MIB));
        machine.give(None);
        assert_eq!(machine.capacity(), usual);
    }

    #[test]
    fn the_tightest_limit_of_the_group_and_those_above_it_counts() {
        let root = tempfile::tempdir().expect("a directory");
        let group = root.path().join("system.slice/pln.service");
        fs::create_dir_all(&group).expect("it is ours");
        let limit = || limit_below(root.path(), "system.slice/pln.service");
        let say = |path: &Path, text: &str| fs::write(path, text).expect("it is ours");
        assert_eq!(limit(), None);
        say(&group.join("memory.max"), "max\n");
        assert_eq!(limit(), None);
        say(&group.join("memory.max"), "4096\n");
        assert_eq!(limit(), Some(4096));
        say(&group.join("memory.high"), "2048\n");
        assert_eq!(limit(), Some(2048));
        say(&root.path().join("system.slice/memory.max"), "1024\n");
        assert_eq!(limit(), Some(1024));
        assert_eq!(limit_below(root.path(), ""), None);
    }

    #[tokio::test]
    async fn a_machine_that_cannot_run_guests_says_why_each_time_and_offers_nothing() {
        let machine = Machine::of_node(Path::new("/proc/nowhere"), &SecretKey::from_seed(&[1; 32]));
        let why = machine.engine().await.err().expect("nothing can be written there");
        assert!(!why.0.is_empty());
        assert_eq!(machine.engine().await.err(), Some(why));
        assert_eq!(machine.capacity(), None);
    }
}
