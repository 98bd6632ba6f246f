//! Which session a datagram of the mesh belongs to. Owns the table; knows neither sockets nor services.
//! Invariant: a session is found for exactly as long as its registration lives.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use pollen_common::wire::streams::service;

use super::queue::{Budget, Queue, Waiting};
use super::tally::{Dropped, Drops, Tally};

/// A session on a connection: the connection's stable identifier and the session's number.
type Key = (usize, u64);

/// Every session's place for what comes from the mesh, and what is dropped on the way of UDP.
#[derive(Debug, Default)]
pub(super) struct Inboxes {
    budget: Budget,
    by_session: Mutex<BTreeMap<Key, (Queue, Arc<Tally>)>>,
    /// Datagrams of no session, or no datagrams at all.
    astray: AtomicU64,
    drops: Drops,
}

impl Inboxes {
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(super) fn astray(&self) -> u64 {
        self.astray.load(Ordering::Relaxed)
    }

    /// Payloads dropped, by reason.
    pub(super) fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Counts payloads of a service that were dropped.
    pub(super) fn dropped(&self, tally: &Tally, why: Dropped, count: u64) {
        tally.dropped.fetch_add(count, Ordering::Relaxed);
        self.drops.count(why, count);
    }

    /// Takes a datagram, behind its first byte.
    pub(super) fn deliver(&self, connection: usize, datagram: &Bytes) {
        let delivered = service::session_number(datagram).is_some_and(|(number, length)| {
            let payload = datagram.slice(length..);
            let inboxes = self.by_session.lock().expect("nothing panics while it holds this lock");
            let Some((queue, tally)) = inboxes.get(&(connection, number)) else { return false };
            if !queue.push(payload) {
                self.dropped(tally, Dropped::QueueFull, 1);
            }
            true
        });
        if !delivered {
            self.astray.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// To be called before the other side learns that the session is open: its first datagrams may come at once.
    pub(super) fn register(
        self: &Arc<Self>,
        connection: usize,
        number: u64,
        tally: &Arc<Tally>,
    ) -> (Registration, Waiting) {
        let key = (connection, number);
        let (queue, waiting) = Queue::new(&self.budget);
        self.by_session
            .lock()
            .expect("nothing panics while it holds this lock")
            .insert(key, (queue, Arc::clone(tally)));
        (Registration { inboxes: Arc::clone(self), key }, waiting)
    }
}

/// Keeps a session reachable for datagrams until dropped.
pub(super) struct Registration {
    inboxes: Arc<Inboxes>,
    key: Key,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.inboxes.by_session.lock().expect("nothing panics while it holds this lock").remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_of_no_session_is_counted_and_dropped() {
        let inboxes = Inboxes::default();
        for stray in [&b""[..], &[4], &[0x44], &[0xff, 1]] {
            inboxes.deliver(1, &Bytes::copy_from_slice(stray));
        }
        assert_eq!(inboxes.astray(), 4);
    }

    #[test]
    fn a_session_is_found_while_it_is_registered_and_what_it_has_no_room_for_is_counted() {
        let (inboxes, tally) = (Arc::new(Inboxes::default()), Arc::new(Tally::default()));
        let (registration, mut waiting) = inboxes.register(1, 4, &tally);
        let datagram = Bytes::from([&[4][..], &[7; 60_000]].concat());
        for _ in 0..1000 {
            inboxes.deliver(1, &datagram);
        }
        let mut came = 0;
        while waiting.try_recv().is_ok() {
            came += 1;
        }
        assert!(came > 50);
        assert_eq!(tally.read().dropped, 1000 - came);
        assert_eq!(inboxes.drops().read(), [("queue_full", 1000 - came)].into());
        drop(registration);
        inboxes.deliver(1, &datagram);
        assert_eq!(inboxes.astray(), 1);
    }
}
