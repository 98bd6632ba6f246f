//! When UDP sessions were last used, and which of many was used least recently. Knows nothing of what a session is.
//! Invariant: finding the idlest looks at each entry again only where it was used since it was last looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::Instant;

/// What all times are counted from.
static EPOCH: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);

/// How long a session outlives its last payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IdleLimits {
    /// While nothing has come back.
    pub unreplied: Duration,
    /// Once something has: at least two minutes, says RFC 4787 in REQ-5.
    pub replied: Duration,
}

impl IdleLimits {
    /// As Linux has it for connections that it tracks.
    pub(super) const USUAL: Self = Self { unreplied: Duration::from_secs(30), replied: Duration::from_secs(120) };
    /// How much longer the provider waits: the caller's side ends a session, so that a payload which meets the end is
    /// still with the one that can open another.
    const PROVIDER_LONGER: Duration = Duration::from_secs(5);

    pub(super) fn of_provider(self) -> Self {
        Self { unreplied: self.unreplied + Self::PROVIDER_LONGER, replied: self.replied + Self::PROVIDER_LONGER }
    }
}

/// When a payload last went through a session, in either direction.
#[derive(Debug)]
pub(super) struct Activity {
    last_ms: AtomicU64,
    replied: AtomicBool,
}

impl Default for Activity {
    fn default() -> Self {
        Self { last_ms: AtomicU64::new(now_ms()), replied: AtomicBool::new(false) }
    }
}

fn now_ms() -> u64 {
    u64::try_from(Instant::from_std(*EPOCH).elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Activity {
    /// Last used so long after the beginning of all times.
    #[cfg(test)]
    pub(super) fn at_ms(last_ms: u64) -> Arc<Self> {
        Arc::new(Self { last_ms: AtomicU64::new(last_ms), replied: AtomicBool::new(false) })
    }

    #[cfg(test)]
    pub(super) fn set_ms(&self, last_ms: u64) {
        self.last_ms.store(last_ms, Ordering::Relaxed);
    }

    /// A payload of the client.
    pub(super) fn asked(&self) {
        self.last_ms.store(now_ms(), Ordering::Relaxed);
    }

    /// A payload of the server.
    pub(super) fn answered(&self) {
        self.asked();
        self.replied.store(true, Ordering::Relaxed);
    }

    /// Another session of the same client, of whose server nothing has come yet.
    pub(super) fn begin_again(&self) {
        self.replied.store(false, Ordering::Relaxed);
        self.asked();
    }

    /// Resolves when nothing went through for as long as `limits` say.
    pub(super) async fn idle(&self, limits: IdleLimits) {
        loop {
            let limit = if self.replied.load(Ordering::Relaxed) { limits.replied } else { limits.unreplied };
            let end = Instant::from_std(*EPOCH) + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + limit;
            if Instant::now() >= end {
                return;
            }
            // A first reply only makes it longer.
            tokio::time::sleep_until(end).await;
        }
    }
}

/// Many sessions, in the order of their last use as far as that was looked at.
#[derive(Debug)]
pub(super) struct Idlest<K> {
    order: BTreeSet<(u64, K)>,
    held: BTreeMap<K, (u64, Arc<Activity>)>,
}

impl<K> Default for Idlest<K> {
    fn default() -> Self {
        Self { order: BTreeSet::new(), held: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Idlest<K> {
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn insert(&mut self, key: K, activity: Arc<Activity>) {
        self.remove(&key);
        let last = activity.last_ms.load(Ordering::Relaxed);
        self.order.insert((last, key.clone()));
        self.held.insert(key, (last, activity));
    }

    pub(super) fn remove(&mut self, key: &K) {
        if let Some((last, _)) = self.held.remove(key) {
            self.order.remove(&(last, key.clone()));
        }
    }

    /// The one whose last use is longest ago. Each step puts an entry where its use since belongs, so that all steps
    /// together are no more than the uses there were.
    pub(super) fn idlest(&mut self) -> Option<K> {
        loop {
            let (known, key) = self.order.pop_first()?;
            let (held, activity) = self.held.get_mut(&key).expect("it stands in both");
            *held = activity.last_ms.load(Ordering::Relaxed);
            let last = *held;
            self.order.insert((last, key.clone()));
            if last <= known {
                return Some(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idlest_goes_first_whatever_was_used_since_and_never_the_newest() {
        let mut idlest = Idlest::default();
        let activities: Vec<_> = (0..100).map(Activity::at_ms).collect();
        for (key, activity) in activities.iter().enumerate() {
            idlest.insert(key, Arc::clone(activity));
        }
        activities[0].set_ms(1000);
        activities[1].set_ms(2000);
        let mut order = Vec::new();
        while let Some(key) = idlest.idlest() {
            idlest.remove(&key);
            order.push(key);
        }
        let expected: Vec<usize> = (2..100).chain([0, 1]).collect();
        assert_eq!(order, expected);
        assert_eq!((idlest.len(), idlest.order.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_reply_makes_a_session_live_longer_and_another_session_begins_without() {
        let limits = IdleLimits { unreplied: Duration::from_millis(50), replied: Duration::from_millis(300) };
        let activity = Activity::default();
        let waited = async || {
            let start = Instant::now();
            activity.idle(limits).await;
            start.elapsed()
        };
        assert!(waited().await < limits.replied);
        activity.answered();
        assert!(waited().await > limits.replied - Duration::from_millis(5));
        activity.begin_again();
        assert!(waited().await < limits.replied);
    }

    #[test]
    fn the_provider_waits_longer_than_the_caller() {
        let (caller, provider) = (IdleLimits::USUAL, IdleLimits::USUAL.of_provider());
        assert!(provider.unreplied > caller.unreplied && provider.replied > caller.replied);
        assert!(caller.replied >= Duration::from_secs(120), "RFC 4787, REQ-5");
    }
}
