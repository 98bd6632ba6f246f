//! Whom to connect to and when: one entry for each wanted peer without a link, with back-off. Owns the schedule; the
//! choice of neighbours is [`crate::topology`]'s, addresses are the view's.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use rand_core::RngCore;

use crate::identity::NodeKey;
use crate::time::Instant;

/// The first retry; each failure doubles it.
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// The longest wait: a machine that comes back is found within it, whoever dials.
const RETRY_MAX: Duration = Duration::from_secs(4);

/// How long the end with the larger key leaves the dialling to the other, so that a pair rarely dials both ways. Not
/// at start: a node that comes back signs nothing before a neighbour has answered.
const POLITENESS: Duration = Duration::from_millis(300);

/// After a goodbye the peer is left alone this long.
const AFTER_GOODBYE: Duration = Duration::from_secs(2);

/// A dial that nothing came of for so long is made again: transports give up sooner and say so, but a dial that
/// crosses a link that is just ending may have no answer.
const UNANSWERED: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
struct Target {
    /// When to dial; while dialling, when to do so again.
    at: Instant,
    failures: u32,
    dialing: bool,
}

/// The dials to make.
#[derive(Clone, Debug, Default)]
pub struct Dials {
    targets: BTreeMap<NodeKey, Target>,
    /// The first round is over.
    begun: bool,
}

impl Dials {
    /// Makes `wanted` (peers without a link) the set of targets, keeping what is known of those already in it.
    pub fn want(&mut self, me: &NodeKey, wanted: &BTreeSet<NodeKey>, now: Instant) {
        self.targets.retain(|peer, target| target.dialing || wanted.contains(peer));
        for peer in wanted {
            let polite = if me < peer || !self.begun { Duration::ZERO } else { POLITENESS };
            self.targets.entry(*peer).or_insert(Target { at: now + polite, failures: 0, dialing: false });
        }
        self.begun = true;
    }

    /// The peers to dial now; each counts as being dialled until [`Self::failed`] or [`Self::connected`].
    pub fn poll(&mut self, now: Instant) -> Vec<NodeKey> {
        let due = self.targets.iter_mut().filter(|(_, t)| t.at <= now);
        due.map(|(peer, target)| {
            (target.dialing, target.at) = (true, now + UNANSWERED);
            *peer
        })
        .collect()
    }

    /// The next moment at which a dial is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.targets.values().map(|t| t.at).min()
    }

    /// A link is up, whoever dialled.
    pub fn connected(&mut self, peer: &NodeKey) {
        self.targets.remove(peer);
    }

    /// A dial did not come up, or its link ended before it served.
    pub fn failed(&mut self, peer: NodeKey, now: Instant, rng: &mut impl RngCore) {
        let target = self.targets.entry(peer).or_insert(Target { at: now, failures: 0, dialing: false });
        let wait = RETRY_FIRST.saturating_mul(1 << target.failures.min(8)).min(RETRY_MAX);
        target.failures = target.failures.saturating_add(1);
        target.dialing = false;
        // Up to a quarter more, so that nodes that fell together do not rise in step.
        target.at = now + wait + wait * (rng.next_u32() % 256) / 1024;
    }

    /// The peer said goodbye.
    pub fn left(&mut self, peer: NodeKey, now: Instant) {
        self.targets.insert(peer, Target { at: now + AFTER_GOODBYE, failures: 0, dialing: false });
    }
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn the_smaller_key_dials_at_once_and_failures_back_off_to_a_bound() {
        let mut rng = rand_chacha::ChaCha8Rng::from_seed([1; 32]);
        let (small, large) = (NodeKey([1; 32]), NodeKey([2; 32]));
        let mut dials = Dials::default();
        dials.want(&small, &BTreeSet::from([large]), Instant(0));
        assert_eq!(dials.poll(Instant(0)), [large]);
        assert_eq!(dials.poll(Instant(1)), [], "one dial at a time");
        assert_eq!(dials.poll(Instant(0) + UNANSWERED), [large], "but not for ever");
        let mut now = Instant(0);
        for _ in 0..20 {
            dials.failed(large, now, &mut rng);
            let next = dials.next().expect("a retry is due");
            assert!(next.since(now) <= RETRY_MAX + RETRY_MAX / 4);
            now = next;
            assert_eq!(dials.poll(now), [large]);
        }
        let mut dials = Dials::default();
        dials.want(&large, &BTreeSet::new(), Instant(0));
        dials.want(&large, &BTreeSet::from([small]), Instant(0));
        assert_eq!(dials.poll(Instant(0)), []);
    }
}
