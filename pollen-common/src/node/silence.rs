//! A peer that answers nothing is not alive, and yet may come back: its connection waits, with all streams on it. Owns
//! when a link is silent and when it is given up; the transport looks for the peer meanwhile.
//! Invariant: what is alive (claims of links, gossip, placement) never counts a silent link; what is open outlives it.

use alloc::format;
use core::time::Duration;

use super::{EventKind, LinkId, Node, Output, Refusal, Reply, RequestId};
use crate::time::{Instant, Now};

/// How long a silent peer is waited for unless this node's owner says otherwise: about as long as TCP goes on sending
/// to a peer that does not acknowledge (RFC 1122 asks for 100 s at least, Linux gives up after some 15 minutes).
pub const PATIENCE_DEFAULT: Duration = Duration::from_secs(15 * 60);

impl Node {
    /// The peer answers no probes. Only a link that carried something has what is worth waiting for.
    pub(super) fn fell_silent(&mut self, id: LinkId, now: Now) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if !link.is_open() {
            return self.close(id, "the peer does not answer probes");
        }
        let peer = link.peer;
        link.silent = Some(now.mono);
        let addrs = self.addrs_of(&peer);
        if let Some(link) = self.links.get_mut(&id) {
            link.sought_at.clone_from(&addrs);
        }
        self.outputs.push_back(Output::Silent { link: id, addrs });
        self.event(EventKind::LinkSilent, Some(peer), "link silent: what is open on it waits".into());
        self.drop_repairs_over(id);
        self.due.links = true;
    }

    /// The peer said something.
    pub(super) fn heard(&mut self, id: LinkId, now: Now) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.probe.heard(now.mono);
        let Some(since) = link.silent.take() else { return };
        let peer = link.peer;
        self.outputs.push_back(Output::Heard { link: id });
        let silence = now.mono.since(since).as_secs_f32();
        self.event(EventKind::LinkSilent, Some(peer), format!("link goes on after {silence:.1} s of silence"));
        // What was pushed to others meanwhile was not pushed here.
        self.send_roots(id, true);
        self.due.links = true;
    }

    /// Closes what has been silent for longer than this node waits.
    pub(super) fn give_up_silent(&mut self, now: Now) {
        let over = |since: Instant| since + self.patience;
        let silent = self.links.iter().filter(|(_, link)| link.is_open());
        let ends: alloc::vec::Vec<_> = silent.filter_map(|(id, link)| Some((*id, over(link.silent?)))).collect();
        for (id, at) in ends {
            if at <= now.mono {
                self.close(id, format!("the peer has been silent for {} s", self.patience.as_secs()));
            } else {
                self.due.by(at);
            }
        }
    }

    /// Looks for silent peers where they are said to be by now.
    pub(super) fn seek_silent(&mut self) {
        let silent = self.links.iter().filter(|(_, link)| link.is_open() && link.silent.is_some());
        let moved: alloc::vec::Vec<_> = silent
            .map(|(id, link)| (*id, self.addrs_of(&link.peer), &link.sought_at))
            .filter(|(_, addrs, sought_at)| addrs != *sought_at)
            .map(|(id, addrs, _)| (id, addrs))
            .collect();
        for (id, addrs) in moved {
            if let Some(link) = self.links.get_mut(&id) {
                link.sought_at.clone_from(&addrs);
            }
            self.outputs.push_back(Output::Silent { link: id, addrs });
        }
    }

    pub(super) fn set_patience(&mut self, id: RequestId, patience: Duration) -> Result<(), Refusal> {
        self.patience = patience;
        self.outputs.push_back(Output::Reply { id, result: Ok(Reply::Done) });
        Ok(())
    }
}
