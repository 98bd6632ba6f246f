//! Where UDP payloads wait: for a session to be opened, or for the next hop to take them. Knows neither sockets nor
//! sessions.
//! Invariants: a queue is bounded by its bytes, and all queues of a node together by theirs; few queues cannot use up
//! what all share, because each may hold only a part of what is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Bytes that wait in one queue: a burst of a thousand datagrams of the usual largest size, twice. Not a backlog: what
/// does not move for [`WAIT_MAX`] goes.
pub(super) const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Bytes that wait in all queues of this node together.
pub(super) const QUEUED_BYTES_MAX: usize = 32 << 20;
/// A queue may hold this part of what all have left: many full queues leave something to the next one.
const PART_OF_FREE: usize = 4;
/// What a queued payload costs besides its bytes: its allocation, and its place in the queue.
pub(super) const QUEUED_OVERHEAD: usize = 128;
/// How long a payload may wait: a resolver asks again after as long, and what a live stream said before is worth nothing.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// A payload in a queue; its share of the budget returns when it is dropped.
#[derive(Debug)]
pub(super) struct Payload {
    pub bytes: Bytes,
    since: Instant,
    _share: Share,
}

impl Payload {
    /// Whether it has waited for so long that nobody wants it any more.
    pub(super) fn is_late(&self) -> bool {
        self.since.elapsed() > WAIT_MAX
    }
}

#[derive(Debug)]
struct Share {
    cost: usize,
    held: Arc<AtomicUsize>,
    budget: Budget,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.fetch_sub(self.cost, Ordering::Relaxed);
        self.budget.0.fetch_sub(self.cost, Ordering::Relaxed);
    }
}

/// The bytes that all queues hold together.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget(Arc<AtomicUsize>);

/// The end of a queue where payloads are put in.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    sender: mpsc::UnboundedSender<Payload>,
    held: Arc<AtomicUsize>,
    budget: Budget,
}

/// The end where they come out.
pub(super) type Waiting = mpsc::UnboundedReceiver<Payload>;

impl Queue {
    pub(super) fn new(budget: &Budget) -> (Self, Waiting) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { sender, held: Arc::default(), budget: budget.clone() }, receiver)
    }

    /// Whether there was room. Bounds hold but for what other threads put in at the same moment.
    pub(super) fn push(&self, bytes: Bytes) -> bool {
        let cost = bytes.len() + QUEUED_OVERHEAD;
        let free = QUEUED_BYTES_MAX.saturating_sub(self.budget.0.load(Ordering::Relaxed));
        let room = QUEUE_BYTES_MAX.min(free / PART_OF_FREE);
        if self.held.load(Ordering::Relaxed) + cost > room {
            return false;
        }
        self.held.fetch_add(cost, Ordering::Relaxed);
        self.budget.0.fetch_add(cost, Ordering::Relaxed);
        let share = Share { cost, held: Arc::clone(&self.held), budget: self.budget.clone() };
        self.sender.send(Payload { bytes, since: Instant::now(), _share: share }).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(queue: &Queue, size: usize) -> usize {
        let payload = Bytes::from(vec![0; size]);
        std::iter::repeat_with(|| queue.push(payload.clone())).take_while(|fits| *fits).count()
    }

    #[test]
    fn a_burst_of_a_thousand_fits_one_queue_and_what_comes_out_makes_room() {
        let (queue, mut waiting) = Queue::new(&Budget::default());
        assert!((0..1000).all(|_| queue.push(Bytes::from(vec![0; 1400]))));
        let more = fill(&queue, 1400);
        assert_eq!(1000 + more, QUEUE_BYTES_MAX / (1400 + QUEUED_OVERHEAD));
        assert!(waiting.try_recv().is_ok());
        assert_eq!(fill(&queue, 1400), 1);
    }

    #[test]
    fn many_full_queues_leave_room_to_the_next_and_all_together_are_bounded() {
        let budget = Budget::default();
        let queues: Vec<_> = (0..64).map(|_| Queue::new(&budget)).collect();
        let held: Vec<usize> = queues.iter().map(|(queue, _)| fill(queue, 64)).collect();
        assert!(held.iter().sum::<usize>() * (64 + QUEUED_OVERHEAD) <= QUEUED_BYTES_MAX);
        let (late, _waiting) = Queue::new(&budget);
        assert!(late.push(Bytes::from_static(b"a question")));
        drop(queues);
        assert_eq!(fill(&late, 10), QUEUE_BYTES_MAX / (10 + QUEUED_OVERHEAD) - 1);
    }

    #[test]
    fn what_waited_for_too_long_is_late() {
        let (queue, mut waiting) = Queue::new(&Budget::default());
        assert!(queue.push(Bytes::new()));
        let mut payload = waiting.try_recv().expect("there");
        assert!(!payload.is_late());
        payload.since = payload.since.checked_sub(WAIT_MAX * 2).expect("the machine runs for longer");
        assert!(payload.is_late());
    }
}
