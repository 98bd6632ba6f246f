//! Which calls may run here now. Owns the counts of what runs, for each seed and caller, and a short queue before them;
//! knows nothing of guests, streams or views.
//! Invariants: no count exceeds its limit; a call within a call never waits, so that calls cannot wait for each other;
//! whoever leaves, in whatever way, makes room for the first that fits.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pollen_common::identity::NodeKey;
use pollen_common::views::VersionId;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long a call may wait for its turn: about what trying another host costs.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// Calls that may wait, for each worker: those that it can be expected to begin within [`WAIT_MAX`].
const WAITING_PER_WORKER: usize = 64;

/// How much may run here at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Instances that there is memory for.
    pub running_max: usize,
    /// Of one seed's version, so that one seed leaves room for others.
    pub per_seed_max: usize,
    /// For one caller, so that one caller leaves room for others.
    pub per_caller_max: usize,
    /// Calls that wait for their turn.
    pub waiting_max: usize,
    pub wait_max: Duration,
    /// Threads that run guests: what load is told in proportion to.
    pub workers: usize,
}

impl Limits {
    /// For an engine of so many slots and workers. One seed, or one caller, gets three quarters at most.
    #[must_use]
    pub fn of_engine(slots: usize, workers: usize) -> Self {
        let (slots, workers) = (slots.max(1), workers.max(1));
        let most = (slots * 3 / 4).max(1);
        Self {
            running_max: slots,
            per_seed_max: most,
            per_caller_max: most,
            waiting_max: WAITING_PER_WORKER * workers,
            wait_max: WAIT_MAX,
            workers,
        }
    }
}

/// Which limit a call met. Nothing of it has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Crowded {
    #[error("as many calls run as there is room for")]
    Running,
    #[error("as many calls of this seed run as may")]
    Seed,
    #[error("as many calls of this caller run as may")]
    Caller,
    #[error("as many calls wait as may")]
    Queue,
    #[error("its turn did not come in time")]
    Waited,
}

impl Crowded {
    /// The label of its metric.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Running => "pool_full",
            Self::Seed => "seed_limit",
            Self::Caller => "caller_limit",
            Self::Queue => "queue_full",
            Self::Waited => "waited_too_long",
        }
    }
}

type Key = (VersionId, NodeKey);

struct Waiter {
    id: u64,
    key: Key,
    tell: oneshot::Sender<()>,
}

#[derive(Default)]
struct State {
    running: usize,
    /// No entry where none run.
    by_seed: BTreeMap<VersionId, usize>,
    by_caller: BTreeMap<NodeKey, usize>,
    waiting: VecDeque<Waiter>,
    next: u64,
}

/// The door.
#[derive(Clone)]
pub(super) struct Admission(Arc<(Limits, Mutex<State>)>);

/// Leave to run; given back when dropped.
pub(super) struct Pass {
    door: Admission,
    key: Key,
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new((limits, Mutex::default())))
    }

    fn limits(&self) -> &Limits {
        &self.0.0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.1.lock().expect("nothing panics while it holds this lock")
    }

    /// Calls that run and that wait.
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        (state.running, state.waiting.len())
    }

    /// Calls that run or wait for each worker, in hundredths.
    pub(super) fn load(&self) -> u32 {
        let (running, waiting) = self.counts();
        u32::try_from((running + waiting) * 100 / self.limits().workers).unwrap_or(u32::MAX)
    }

    /// Whether a call would begin at once.
    pub(super) fn has_room(&self, version: VersionId, caller: NodeKey) -> bool {
        let state = self.lock();
        state.fits(self.limits(), &(version, caller)).is_ok()
    }

    /// Leave for a call, at once or after a short wait. One within another call, `nested`, does not wait: those that
    /// would make room may be waiting for it.
    pub(super) async fn enter(
        &self,
        version: VersionId,
        caller: NodeKey,
        nested: bool,
        deadline: Instant,
    ) -> Result<Pass, Crowded> {
        let key = (version, caller);
        let mut waiting = {
            let mut state = self.lock();
            match state.fits(self.limits(), &key) {
                // Nobody is overtaken: whoever waits does not fit, or it would have been let in.
                Ok(()) => {
                    state.begin(key);
                    return Ok(Pass { door: self.clone(), key });
                }
                Err(Crowded::Caller) => return Err(Crowded::Caller),
                Err(crowded) if nested => return Err(crowded),
                _ if state.waiting.len() >= self.limits().waiting_max => return Err(Crowded::Queue),
                _ => {}
            }
            let (tell, told) = oneshot::channel();
            let id = state.next;
            state.next += 1;
            state.waiting.push_back(Waiter { id, key, tell });
            Waiting { door: self, id, key, told: Some(told) }
        };
        let until = deadline.min(Instant::now() + self.limits().wait_max);
        let told = waiting.told.as_mut().expect("taken below alone");
        match tokio::time::timeout_at(until, told).await {
            Ok(Ok(())) => {
                waiting.told = None;
                Ok(Pass { door: self.clone(), key })
            }
            _ => Err(Crowded::Waited),
        }
    }

    fn leave(&self, key: &Key) {
        let mut state = self.lock();
        state.end(key);
        state.admit_waiting(self.limits());
    }
}

impl State {
    fn fits(&self, limits: &Limits, (version, caller): &Key) -> Result<(), Crowded> {
        if self.by_caller.get(caller).is_some_and(|running| *running >= limits.per_caller_max) {
            return Err(Crowded::Caller);
        }
        if self.running >= limits.running_max {
            return Err(Crowded::Running);
        }
        if self.by_seed.get(version).is_some_and(|running| *running >= limits.per_seed_max) {
            return Err(Crowded::Seed);
        }
        Ok(())
    }

    fn begin(&mut self, (version, caller): Key) {
        self.running += 1;
        *self.by_seed.entry(version).or_default() += 1;
        *self.by_caller.entry(caller).or_default() += 1;
    }

    fn end(&mut self, (version, caller): &Key) {
        self.running -= 1;
        one_less(&mut self.by_seed, version);
        one_less(&mut self.by_caller, caller);
    }

    /// Lets those in that fit now, in the order in which they came.
    fn admit_waiting(&mut self, limits: &Limits) {
        let mut index = 0;
        while self.running < limits.running_max
            && let Some(key) = self.waiting.get(index).map(|waiter| waiter.key)
        {
            if self.fits(limits, &key).is_err() {
                index += 1;
                continue;
            }
            let waiter = self.waiting.remove(index).expect("looked at above");
            self.begin(key);
            if waiter.tell.send(()).is_err() {
                // It has just given up.
                self.end(&key);
            }
        }
    }
}

fn one_less<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    let count = counts.get_mut(key).expect("counted when it began");
    *count -= 1;
    if *count == 0 {
        counts.remove(key);
    }
}

/// A place in the queue, left when dropped.
struct Waiting<'a> {
    door: &'a Admission,
    id: u64,
    key: Key,
    /// `None` once it was let in.
    told: Option<oneshot::Receiver<()>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(mut told) = self.told.take() else { return };
        told.close();
        if told.try_recv().is_ok() {
            // Let in at the very moment in which it gave up.
            self.door.leave(&self.key);
        } else {
            self.door.lock().waiting.retain(|waiter| waiter.id != self.id);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.door.leave(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use pollen_common::identity::Digest;

    use super::*;

    const LIMITS: Limits = Limits {
        running_max: 3,
        per_seed_max: 2,
        per_caller_max: 2,
        waiting_max: 1,
        wait_max: Duration::from_millis(50),
        workers: 1,
    };

    fn seed(byte: u8) -> VersionId {
        VersionId(Digest([byte; 32]))
    }

    fn caller(byte: u8) -> NodeKey {
        NodeKey([byte; 32])
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    async fn enter(door: &Admission, s: u8, c: u8) -> Result<Pass, Crowded> {
        door.enter(seed(s), caller(c), true, later()).await
    }

    #[tokio::test]
    async fn one_seed_and_one_caller_leave_room_for_others() {
        let door = Admission::new(LIMITS);
        let _first = enter(&door, 1, 1).await.expect("room");
        let second = enter(&door, 1, 2).await.expect("room");
        assert_eq!(enter(&door, 1, 3).await.err(), Some(Crowded::Seed));
        let _third = enter(&door, 2, 1).await.expect("room");
        assert_eq!(enter(&door, 3, 1).await.err(), Some(Crowded::Caller));
        assert_eq!(enter(&door, 3, 3).await.err(), Some(Crowded::Running));
        drop(second);
        assert!(enter(&door, 3, 3).await.is_ok());
        assert_eq!(door.counts(), (2, 0));
    }

    #[tokio::test]
    async fn a_call_waits_for_its_turn_briefly_and_the_queue_is_short() {
        let door = Admission::new(Limits { running_max: 1, ..LIMITS });
        let running = enter(&door, 1, 1).await.expect("room");
        let waits = {
            let door = door.clone();
            tokio::spawn(async move { door.enter(seed(2), caller(2), false, later()).await.map(drop) })
        };
        tokio::task::yield_now().await;
        assert_eq!(door.counts(), (1, 1));
        assert_eq!(door.load(), 200);
        let refused = door.enter(seed(3), caller(3), false, later()).await;
        assert_eq!(refused.err(), Some(Crowded::Queue), "the queue holds one");
        drop(running);
        assert_eq!(waits.await.expect("no panic"), Ok(()));
        assert_eq!(door.counts(), (0, 0));

        let _running = enter(&door, 1, 1).await.expect("room");
        let before = Instant::now();
        let refused = door.enter(seed(2), caller(2), false, later()).await;
        assert_eq!(refused.err(), Some(Crowded::Waited));
        assert!(before.elapsed() >= LIMITS.wait_max);
        assert_eq!(door.counts(), (1, 0));
    }

    #[tokio::test]
    async fn who_goes_away_while_it_waits_leaves_nothing_behind() {
        let door = Admission::new(Limits { running_max: 1, ..LIMITS });
        let running = enter(&door, 1, 1).await.expect("room");
        {
            let gone = door.enter(seed(2), caller(2), false, later());
            assert!(tokio::time::timeout(Duration::from_millis(1), gone).await.is_err());
        }
        assert_eq!(door.counts(), (1, 0));
        drop(running);
        assert_eq!(door.counts(), (0, 0));
    }

    #[tokio::test]
    async fn a_call_within_a_call_never_waits() {
        let door = Admission::new(Limits { running_max: 1, ..LIMITS });
        let _running = enter(&door, 1, 1).await.expect("room");
        assert_eq!(enter(&door, 2, 2).now_or_never().map(|r| r.err()), Some(Some(Crowded::Running)));
    }

    #[tokio::test]
    async fn one_that_does_not_fit_does_not_hold_up_those_behind_it() {
        let door = Admission::new(Limits { per_seed_max: 1, waiting_max: 2, ..LIMITS });
        let _first = enter(&door, 1, 1).await.expect("room");
        let second = enter(&door, 2, 2).await.expect("room");
        let spawn = |s, c| {
            let door = door.clone();
            tokio::spawn(async move { door.enter(seed(s), caller(c), false, later()).await.map(drop) })
        };
        let (same, other) = (spawn(1, 3), spawn(2, 4));
        tokio::task::yield_now().await;
        drop(second);
        assert_eq!(other.await.expect("no panic"), Ok(()));
        assert_eq!(same.await.expect("no panic"), Err(Crowded::Waited));
    }
}
