//! The timeline that people read: the last events in memory, and each new one to whoever follows. Owns their numbers
//! and times; must not decide anything from them. Invariant: memory is bounded, and a slow follower holds up nobody.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use pollen_common::node::{Event, EventKind};
use pollen_common::time::UnixMs;
use tokio::sync::broadcast;

/// Events kept: a few days of a quiet cluster, some minutes of a very troubled one, about 300 KiB.
pub const EVENTS_KEPT_MAX: usize = 1024;

/// A follower that falls this far behind misses some, and is told.
const FOLLOWER_LAG_MAX: usize = 256;

/// An event with its place in the timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// Counts from 1 at each start of the daemon.
    pub seq: u64,
    pub at: UnixMs,
    pub event: Event,
}

/// A handle of the timeline.
#[derive(Clone, Debug)]
pub struct Events {
    ring: Arc<Mutex<Ring>>,
    followers: broadcast::Sender<EventRecord>,
}

#[derive(Debug, Default)]
struct Ring {
    records: VecDeque<EventRecord>,
    recorded: u64,
    by_kind: BTreeMap<EventKind, u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self { ring: Arc::default(), followers: broadcast::Sender::new(FOLLOWER_LAG_MAX) }
    }
}

impl Events {
    /// Adds an event, forgetting the oldest if there are too many.
    pub fn record(&self, at: UnixMs, event: Event) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.recorded += 1;
        *ring.by_kind.entry(event.kind).or_default() += 1;
        let record = EventRecord { seq: ring.recorded, at, event };
        if ring.records.len() == EVENTS_KEPT_MAX {
            ring.records.pop_front();
        }
        ring.records.push_back(record.clone());
        // No follower is no error. Sent under the lock, so that followers see the order of the ring.
        let _ = self.followers.send(record);
    }

    /// The last `count` events, oldest first, and all that come after them.
    #[must_use]
    pub fn follow(&self, count: usize) -> (Vec<EventRecord>, broadcast::Receiver<EventRecord>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped = ring.records.len().saturating_sub(count);
        (ring.records.iter().skip(skipped).cloned().collect(), self.followers.subscribe())
    }

    /// The last `count` events, oldest first.
    #[must_use]
    pub fn last(&self, count: usize) -> Vec<EventRecord> {
        self.follow(count).0
    }

    /// How many there have been of each kind since the daemon started.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<EventKind, u64> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).by_kind.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind) -> Event {
        Event { kind, peer: None, message: "it happened".into() }
    }

    #[test]
    fn the_oldest_events_are_forgotten_and_all_are_counted() {
        let events = Events::default();
        for at in 0..=EVENTS_KEPT_MAX as u64 {
            events.record(UnixMs(at), event(EventKind::PeerUp));
        }
        let kept = events.last(usize::MAX);
        assert_eq!((kept.len(), kept[0].seq), (EVENTS_KEPT_MAX, 2));
        assert_eq!(events.counts()[&EventKind::PeerUp], EVENTS_KEPT_MAX as u64 + 1);
        assert_eq!(events.last(3).len(), 3);
    }

    #[test]
    fn a_follower_sees_each_event_once() {
        let events = Events::default();
        events.record(UnixMs(1), event(EventKind::PeerUp));
        let (past, mut future) = events.follow(10);
        events.record(UnixMs(2), event(EventKind::PeerDown));
        assert_eq!(past.iter().map(|record| record.seq).collect::<Vec<_>>(), [1]);
        assert_eq!(future.try_recv().map(|record| record.seq), Ok(2));
        assert!(future.try_recv().is_err());
    }
}
