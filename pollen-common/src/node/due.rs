//! What is due: the flags that inputs raise and the moments that timers wait for, and the one place that acts on
//! them. Owns no state of its own beyond the schedule.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use rand_core::RngCore;

use super::{Node, Output};
use crate::identity::NodeKey;
use crate::time::{Instant, Now, UnixMs};
use crate::topology::neighbours;
use crate::views::View;
use crate::wire::Message;

/// One neighbour is compared with so often, whatever was pushed.
const ANTI_ENTROPY: Duration = Duration::from_secs(10);

/// What inputs have made due, and when to look again.
#[derive(Clone, Debug)]
pub(super) struct Due {
    /// Meaning may have changed.
    pub(super) view: bool,
    /// Which links there are, or should be, may have changed.
    pub(super) links: bool,
    /// What this node hosts may have changed, or should.
    pub(super) hosting: bool,
    /// The next moment at which a member's rights end.
    pub(super) expiry: Option<UnixMs>,
    anti_entropy: Instant,
    next: Option<Instant>,
}

impl Due {
    pub(super) fn at_start(now: Instant) -> Self {
        Self { view: true, links: true, hosting: true, expiry: None, anti_entropy: now + ANTI_ENTROPY, next: None }
    }

    /// Something is to be done at `at`, or before.
    pub(super) fn by(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    pub(super) const fn next(&self) -> Option<Instant> {
        self.next
    }
}

impl Node {
    /// Does whatever is due now. Each step may raise what a later one does.
    pub(super) fn settle(&mut self, now: Now) {
        self.due.next = None;
        if self.due.expiry.is_some_and(|at| at <= now.unix) {
            self.standing_changed(now);
        }
        if let Some(at) = self.due.expiry {
            // Wall time may be set meanwhile: look at least once a minute.
            let wait = Duration::from_millis(at.0.saturating_sub(now.unix.0)).min(Duration::from_secs(60));
            self.due.by(now.mono + wait);
        }
        self.probe_links(now);
        self.give_up_silent(now);
        self.time_out_sessions(now);
        self.time_out_repairs(now);
        self.author(now);
        if core::mem::take(&mut self.due.view) {
            self.rebuild_view(now);
        }
        self.host(now);
        if core::mem::take(&mut self.due.links) {
            self.claim_links(now);
            self.author(now);
            self.want_links(now);
        }
        self.dial_due(now);
        self.seek_silent();
        self.compare_with_one(now);
        self.flush(now);
        self.notice(now);
    }

    fn rebuild_view(&mut self, now: Now) {
        let view = Arc::new(View::build(self.me, &self.roll, &self.standing, &self.document, now.unix));
        let before = core::mem::replace(&mut self.view, view.clone());
        self.events_between(&before, &view);
        self.due.links = true;
        self.due.hosting = true;
        self.outputs.push_back(Output::ViewChanged);
    }

    /// Keeps the set of peers to dial: the chosen neighbours to whom there is no link.
    fn want_links(&mut self, now: Now) {
        // Those that are closing too: a new one begins when the old one is gone.
        let linked: BTreeSet<NodeKey> = self.links.values().map(|link| link.peer).collect();
        let standing: Vec<_> = self.view.nodes.keys().copied().collect();
        let (none, wanted) = (BTreeSet::new(), neighbours(&self.me, &standing).difference(&linked).copied().collect());
        self.dials.want(&self.me, if self.local.leaving { &none } else { &wanted }, now.mono);
    }

    fn dial_due(&mut self, now: Now) {
        for peer in self.dials.poll(now.mono) {
            let addrs = self.addrs_of(&peer);
            if addrs.is_empty() {
                self.dials.failed(peer, now.mono, &mut self.rng);
            } else {
                self.outputs.push_back(Output::Dial { peer, addrs });
            }
        }
        if let Some(at) = self.dials.next() {
            self.due.by(at);
        }
    }

    /// Where a peer may be: as it says itself, or else as an invite said.
    pub(super) fn addrs_of(&self, peer: &NodeKey) -> Vec<SocketAddr> {
        let known = self.view.nodes.get(peer).map(|info| info.addrs.clone()).unwrap_or_default();
        if known.is_empty() { self.contacts.get(peer).cloned().unwrap_or_default() } else { known }
    }

    /// Anti-entropy: one neighbour at a time is told our roots and asked for its own.
    fn compare_with_one(&mut self, now: Now) {
        if self.due.anti_entropy <= now.mono {
            let open: Vec<_> = self.live_links().map(|(id, _)| id).collect();
            if let Some(id) = usize::try_from(self.rng.next_u32()).ok().and_then(|n| open.get(n % open.len().max(1))) {
                self.send_roots(*id, true);
            }
            self.due.anti_entropy = now.mono + ANTI_ENTROPY - ANTI_ENTROPY * (self.rng.next_u32() % 256) / 1024;
        }
        self.due.by(self.due.anti_entropy);
    }

    pub(super) fn send_roots(&mut self, id: super::LinkId, answer: bool) {
        let roots = Message::Roots { roll: self.roll.trie().root(), lanes: self.lane_roots(), answer };
        self.send(id, &roots);
    }
}
