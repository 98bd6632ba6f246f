//! What a node notices of its neighbours' machines, and no document says: clocks that differ, a key that two machines
//! use, a link whose peer takes nothing. Owns what was seen and for how long it counts; decides nothing from it.
//! Invariant: everything here was seen first hand, but for what a neighbour says of this node's own key.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use super::{LinkId, Node, Output};
use crate::identity::NodeKey;
use crate::time::{Instant, Now, UnixMs};
use crate::wire::Message;

/// Clocks that differ by more are worth a word: less is what machines without NTP have after a day or two.
pub const CLOCK_OFF_MS: u64 = 5_000;

/// A change of an offset by less is none: it comes from the way.
const CLOCK_STEP_MS: u64 = 500;

/// How long a key counts as shared after the last sign of it: pauses and back-offs of the two lie between signs.
const SHARED_HOLD: Duration = Duration::from_secs(5 * 60);

/// Processes remembered for one key: two take turns, and some restarts of either may lie between.
const PROCESSES_MAX: usize = 4;

/// A peer that has taken nothing for so long, while there is something to take, is worth a word.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// What was noticed, as of now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// By how much the clocks of neighbours are ahead of this node's, in ms, where that is more than
    /// [`CLOCK_OFF_MS`]; negative where they are behind.
    pub clocks: BTreeMap<NodeKey, i64>,
    /// Neighbours whose clock is known at all.
    pub clocks_known: usize,
    /// Keys that more than one machine uses at a time.
    pub shared_keys: BTreeMap<NodeKey, SharedKey>,
    /// Neighbours that take nothing of what this node has to tell them.
    pub stalled: BTreeSet<NodeKey>,
}

/// A key on two machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedKey {
    /// Where the two were seen, as far as is known; for this node's own key the other machine comes last.
    pub addrs: Vec<SocketAddr>,
    /// Who saw them there, if it was not this node.
    pub witness: Option<NodeKey>,
    /// The last sign.
    pub seen: UnixMs,
}

/// One process of a peer's, by the number it gave itself when it started.
#[derive(Clone, Debug)]
struct Process {
    instance: u64,
    addr: Option<SocketAddr>,
}

/// What the node keeps for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    /// This process, to its neighbours.
    pub(super) instance: u64,
    /// Which processes spoke with a key, the one that spoke last at the end. Members alone.
    processes: BTreeMap<NodeKey, Vec<Process>>,
    shared: BTreeMap<NodeKey, (SharedKey, Instant)>,
    told: Arc<Signs>,
}

/// How far a peer's clock is ahead of this node's.
#[derive(Clone, Debug, Default)]
pub(super) struct ClockWatch {
    /// The last samples, in ms. What is on its way for long makes the peer look behind, never so for all of them.
    samples: [i64; 4],
    taken: usize,
}

impl ClockWatch {
    /// The peer's clock showed `theirs` when it sent what arrives now.
    pub(super) fn sample(&mut self, theirs: UnixMs, ours: UnixMs) {
        let ms = |at: UnixMs| i64::try_from(at.0).unwrap_or(i64::MAX);
        self.samples[self.taken % self.samples.len()] = ms(theirs).saturating_sub(ms(ours));
        self.taken += 1;
    }

    /// The smallest of the last offsets, once there are enough.
    fn offset_ms(&self) -> Option<i64> {
        (self.taken >= self.samples.len()).then(|| self.samples.into_iter().min_by_key(|ms| ms.unsigned_abs()))?
    }
}

impl Node {
    /// What was noticed, as of the last `SignsChanged`.
    #[must_use]
    pub fn signs(&self) -> Arc<Signs> {
        self.watch.told.clone()
    }

    /// A peer has proved its key and says which process it is. One that comes back after another spoke is a second one
    /// that runs: a process that has ended never speaks again.
    pub(super) fn process_greets(&mut self, id: LinkId, instance: u64, now: Now) {
        let Some(link) = self.links.get(&id) else { return };
        let (peer, addr) = (link.peer, link.remote);
        if !self.view.nodes.contains_key(&peer) {
            return;
        }
        let processes = self.watch.processes.entry(peer).or_default();
        let known = processes.iter().position(|process| process.instance == instance);
        let is_last = known.is_some_and(|at| at + 1 == processes.len());
        if let Some(at) = known {
            processes.remove(at);
        }
        let other = processes.last().cloned();
        processes.push(Process { instance, addr });
        if processes.len() > PROCESSES_MAX {
            processes.remove(0);
        }
        if let Some(other) = other.filter(|_| known.is_some() && !is_last) {
            let addrs = [addr, other.addr].into_iter().flatten().collect();
            self.key_is_shared(peer, addrs, None, now);
            self.send(id, &Message::SharedKey { here: addr, there: other.addr });
        }
    }

    /// A neighbour saw another process with this node's key.
    pub(super) fn told_of_shared_key(
        &mut self,
        id: LinkId,
        here: Option<SocketAddr>,
        there: Option<SocketAddr>,
        now: Now,
    ) {
        let Some(peer) = self.links.get(&id).map(|link| link.peer) else { return };
        if self.view.nodes.contains_key(&peer) {
            self.key_is_shared(self.me, [here, there].into_iter().flatten().collect(), Some(peer), now);
        }
    }

    /// A sign that more than one machine uses `key`. One without addresses leaves those that are known.
    pub(super) fn key_is_shared(&mut self, key: NodeKey, addrs: Vec<SocketAddr>, witness: Option<NodeKey>, now: Now) {
        let sign = SharedKey { addrs, witness, seen: now.unix };
        let (shared, at) = self.watch.shared.entry(key).or_insert_with(|| (sign.clone(), now.mono));
        *at = now.mono;
        if sign.addrs.len() >= shared.addrs.len() {
            *shared = sign;
        } else {
            shared.seen = now.unix;
        }
    }

    /// Says so if what is to be noticed has changed.
    pub(super) fn notice(&mut self, now: Now) {
        for link in self.links.values_mut().filter(|link| link.unsent > 0) {
            link.unsent_since.get_or_insert(now.mono);
        }
        let standing = &self.view.nodes;
        self.watch.processes.retain(|key, _| standing.contains_key(key));
        self.watch.shared.retain(|key, (_, at)| standing.contains_key(key) && now.mono < *at + SHARED_HOLD);
        let ends: Vec<Instant> = self.watch.shared.values().map(|(_, at)| *at + SHARED_HOLD).collect();
        ends.into_iter().for_each(|at| self.due.by(at));
        let told = &self.watch.told;
        let mut signs = Signs {
            shared_keys: self.watch.shared.iter().map(|(key, (shared, _))| (*key, shared.clone())).collect(),
            ..Signs::default()
        };
        let mut looks = Vec::new();
        for (_, link) in self.live_links() {
            if let Some(offset) = link.clock.offset_ms() {
                signs.clocks_known += 1;
                // Told as it was as long as it is about that: no news each second.
                let was = told.clocks.get(&link.peer).filter(|was| was.abs_diff(offset) < CLOCK_STEP_MS);
                if offset.unsigned_abs() > CLOCK_OFF_MS {
                    signs.clocks.insert(link.peer, *was.unwrap_or(&offset));
                }
            }
            match link.unsent_since.map(|since| since + STALLED_AFTER) {
                Some(at) if at <= now.mono => drop(signs.stalled.insert(link.peer)),
                Some(at) => looks.push(at),
                None => {}
            }
        }
        if **told != signs {
            self.watch.told = Arc::new(signs);
            self.outputs.push_back(Output::SignsChanged);
        }
        looks.into_iter().for_each(|at| self.due.by(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_by_the_least_of_the_last_samples() {
        let mut clock = ClockWatch::default();
        for late in [0, 3_000, 100] {
            clock.sample(UnixMs(1_000_000 - late), UnixMs(990_000));
            assert_eq!(clock.offset_ms(), None);
        }
        clock.sample(UnixMs(1_000_000), UnixMs(990_000));
        assert_eq!(clock.offset_ms(), Some(7_000), "what was late makes it look less ahead, and is no more than that");
        for _ in 0..4 {
            clock.sample(UnixMs(1), UnixMs(u64::MAX));
        }
        assert_eq!(clock.offset_ms(), Some(1 - i64::MAX));
        clock.sample(UnixMs(5), UnixMs(5));
        assert_eq!(clock.offset_ms(), Some(0), "one look after it was set right");
    }
}
