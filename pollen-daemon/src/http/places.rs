//! The places of one listener: who holds one, and who gives way when all are taken. Owns the bound and the choice; reads
//! and writes no connection.
//! Invariant: never more places than the bound, and a connection whose request has begun is not cut for another, but
//! where the listener allows it for one that does not read its answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::refused::{Refused, Tally};

/// How long a client keeps its place in any case: its request is on the way as a rule, or here and not yet read, when
/// many come at once.
pub(super) const WAITING_SPARED: Duration = Duration::from_millis(200);
/// How often a newcomer looks again whether somebody has had its time: nothing tells it.
const LOOK_AGAIN_EVERY: Duration = Duration::from_millis(50);

/// The places of a listener.
pub(super) struct Places {
    most: usize,
    spare_waiting: Duration,
    spare_readers: Option<Duration>,
    refused: Arc<Tally>,
    held: Mutex<Held>,
    /// Some place is free, or may be had now. One task waits for it: the one that accepts.
    changed: Notify,
}

#[derive(Default)]
struct Held {
    next: u64,
    /// In the order in which they came.
    open: BTreeMap<u64, Open>,
}

struct Open {
    stage: Stage,
    cut: Arc<Notify>,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// It has not brought its first request yet, and came then.
    Waits(Instant),
    /// A request is being carried out.
    Begun,
    /// There is an answer, since then; whether it is being read, nobody knows.
    Answered(Instant),
}

/// One connection's place, free again when dropped.
pub(super) struct Place {
    number: u64,
    cut: Arc<Notify>,
    places: Arc<Places>,
}

impl Places {
    /// With room for `most`; whoever gives way is counted in `refused`. A connection that brings nothing does so after
    /// `spare_waiting`, and one that was answered after `spare_readers`, if that is given.
    pub(super) fn new(
        most: usize,
        spare_waiting: Duration,
        spare_readers: Option<Duration>,
        refused: Arc<Tally>,
    ) -> Arc<Self> {
        Arc::new(Self { most, spare_waiting, spare_readers, refused, held: Mutex::default(), changed: Notify::new() })
    }

    /// A place, that of another if need be; waits where nobody can be asked to give way.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        loop {
            if let Some(place) = self.try_take() {
                return place;
            }
            // Whatever ends the wait, the next look decides.
            let _ = tokio::time::timeout(LOOK_AGAIN_EVERY, self.changed.notified()).await;
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Place> {
        let mut held = self.held();
        if held.open.len() >= self.most {
            let given_up = held.gives_way(self.spare_waiting, self.spare_readers)?;
            // It finds out by not being there any more, wherever it is.
            held.open.remove(&given_up).inspect(|open| open.cut.notify_one());
            self.refused.count(Refused::Displaced);
        }
        let (number, cut) = (held.next, Arc::new(Notify::new()));
        held.next += 1;
        held.open.insert(number, Open { stage: Stage::Waits(Instant::now()), cut: Arc::clone(&cut) });
        Some(Place { number, cut, places: Arc::clone(self) })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Who has waited longest for nothing.
    fn gives_way(&self, spare_waiting: Duration, spare_readers: Option<Duration>) -> Option<u64> {
        let oldest = |gives: &dyn Fn(Stage) -> bool| {
            self.open.iter().find(|(_, open)| gives(open.stage)).map(|(number, _)| *number)
        };
        oldest(&|stage| matches!(stage, Stage::Waits(since) if since.elapsed() >= spare_waiting)).or_else(|| {
            let spared = spare_readers?;
            oldest(&|stage| matches!(stage, Stage::Answered(since) if since.elapsed() >= spared))
        })
    }
}

impl Place {
    /// A request begins: from here on its connection is safe. False where the place was given up before; then nothing
    /// may be done of it.
    pub(super) fn begins(&self) -> bool {
        self.set(Stage::Begun)
    }

    /// The request is answered.
    pub(super) fn answered(&self) {
        self.set(Stage::Answered(Instant::now()));
    }

    fn set(&self, stage: Stage) -> bool {
        self.places.held().open.get_mut(&self.number).map(|open| open.stage = stage).is_some()
    }

    /// Returns when the place is another's.
    pub(super) async fn given_up(&self) {
        self.cut.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.held().open.remove(&self.number);
        self.places.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(most: usize, spare_readers: Option<Duration>) -> (Arc<Places>, Arc<Tally>) {
        let refused = Arc::new(Tally::default());
        (Places::new(most, Duration::ZERO, spare_readers, Arc::clone(&refused)), refused)
    }

    #[tokio::test]
    async fn a_client_that_came_just_now_keeps_its_place() {
        let places = Places::new(1, Duration::from_secs(3600), None, Arc::default());
        let _first = places.try_take().expect("there is room");
        assert!(places.try_take().is_none(), "its request may be on the way");
    }

    #[tokio::test]
    async fn the_oldest_that_has_brought_no_request_gives_way() {
        let (places, refused) = places(3, None);
        let [first, second, third] = [(); 3].map(|()| places.try_take().expect("there is room"));
        assert!(first.begins());
        let fourth = places.try_take().expect("the second gives way");
        second.given_up().await;
        assert!(!second.begins(), "what gave way must do nothing any more");
        assert!(third.begins() && fourth.begins());
        drop(second);
        assert!(places.try_take().is_none(), "a request that has begun gave way");
        let (fifth, ()) = tokio::join!(places.take(), async { drop(first) });
        assert!(fifth.begins(), "a free place is given");
        assert_eq!(refused.of(Refused::Displaced), 1);
    }

    #[tokio::test]
    async fn a_reader_gives_way_only_where_that_is_allowed_and_after_its_time() {
        for spare_readers in [None, Some(Duration::from_secs(3600))] {
            let (places, _) = places(1, spare_readers);
            let reader = places.try_take().expect("there is room");
            reader.answered();
            assert!(places.try_take().is_none(), "{spare_readers:?}");
        }
        let (places, refused) = places(1, Some(Duration::ZERO));
        let reader = places.try_take().expect("there is room");
        assert!(reader.begins());
        assert!(places.try_take().is_none(), "it has no answer yet");
        reader.answered();
        let next = places.try_take().expect("its time is over");
        reader.given_up().await;
        assert!(next.begins());
        assert_eq!(refused.of(Refused::Displaced), 1);
    }
}
