//! Exchanging author maps on an open link: what is new is pushed as deltas, what differs is found by comparing
//! tries and pulled. Sending decides nothing: whoever receives a delta proves it against its signed head.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::link::{Book, Link, Pull, UNSENT_BYTES_CALM};
use super::{EventKind, LinkId, Node};
use crate::identity::{Digest, NodeKey};
use crate::maps::{Applied, Delta, Heard, Held, Lane, Offer, SignedHead, records};
use crate::roll::Standing;
use crate::time::{Now, UnixMs};
use crate::trie::{Prefix, Summary};
use crate::wire::{Lanes, Message};

/// Deltas built for one link before its stream is asked for room again.
const DELTAS_MAX: usize = 32;

/// A lane that changed less than this ago is likely on its way already: comparing waits.
const SETTLING: Duration = Duration::from_secs(1);

/// The bytes that a lane of `author` may count, `None` where it does not stand.
pub(super) fn allowance(standing: &Standing, now: UnixMs) -> impl Fn(&NodeKey, Lane) -> Option<u64> {
    move |author, lane| standing.stands(author, now).ok().map(|member| lane.allowance_bytes(member.rights.quota_kib))
}

impl Node {
    /// A link's roll is reconciled and its peer stands: everything else begins.
    pub(super) fn opened(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.dirty.clear();
        let peer = link.peer;
        let heads = Lane::ALL
            .iter()
            .filter_map(|lane| self.document.held(&peer, *lane))
            .map(|held| held.head().bytes().to_vec())
            .collect();
        self.send(id, &Message::YourHeads { heads });
        self.send_roots(id, false);
        self.due.links = true;
    }

    pub(super) fn gossip_message(&mut self, id: LinkId, message: Message, now: Now) {
        match message {
            Message::Roots { roll, lanes, answer } => self.roots(id, roll, &lanes, answer, now),
            Message::YourHeads { heads } => self.your_heads(id, &heads, now),
            Message::LaneAsk { lane, prefix } => {
                let summary = self.document.trie(lane).summary(&prefix);
                self.send(id, &Message::LaneAnswer { lane, prefix, summary });
            }
            Message::LaneAnswer { lane, prefix, summary } => self.lane_answer(id, lane, prefix, &summary),
            Message::LaneWant { lane, authors } => self.lane_wanted(id, lane, &authors),
            Message::Delta { delta } => match Delta::decode(&delta) {
                Ok(delta) => self.delta(id, &delta, now),
                Err(_) => {
                    self.refuse("malformed_delta");
                    self.close(id, "the peer sent a malformed delta");
                }
            },
            message => self.repair_message(id, message, now),
        }
    }

    fn roots(&mut self, id: LinkId, roll: Digest, lanes: &Lanes, answer: bool, now: Now) {
        if answer {
            self.send_roots(id, false);
        }
        if roll != self.roll.trie().root() {
            self.pull_roll(id, roll, now);
        }
        for (lane, theirs) in Lane::ALL.into_iter().zip(lanes) {
            self.pull_lane(id, lane, *theirs, now);
        }
    }

    fn pull_lane(&mut self, id: LinkId, lane: Lane, theirs: Digest, now: Now) {
        let fresh = self.local.changed(lane).is_some_and(|at| now.mono < at + SETTLING);
        let differs = theirs != self.document.root(lane);
        let Some(link) = self.links.get_mut(&id) else { return };
        if !differs || link.lane_pulls[lane.index()].is_some() {
            return;
        }
        // At the first comparison of a link nothing is on its way yet.
        if fresh && link.compared {
            link.compare_at = Some(now.mono + SETTLING);
            return;
        }
        link.compared = true;
        link.lane_pulls[lane.index()] = Some(Pull::new(theirs));
        self.drive_lane(id, lane);
    }

    fn drive_lane(&mut self, id: LinkId, lane: Lane) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(pull) = &mut link.lane_pulls[lane.index()] else { return };
        let asks = pull.asks();
        if pull.is_done() {
            link.lane_pulls[lane.index()] = None;
        }
        for prefix in asks {
            self.send(id, &Message::LaneAsk { lane, prefix });
        }
    }

    fn lane_answer(&mut self, id: LinkId, lane: Lane, prefix: Prefix, summary: &Summary) {
        let trie = self.document.trie(lane);
        let pull = self.links.get_mut(&id).and_then(|link| link.lane_pulls[lane.index()].as_mut());
        let Some(found) = pull.and_then(|pull| pull.answer(trie, prefix, summary)) else {
            return self.refuse("unasked_answer");
        };
        let seq = |path: &Digest| self.document.held_at(lane, path).map_or(0, |held| held.head().head().seq);
        let authors: Vec<_> = found.theirs.iter().map(|(path, _)| (*path, seq(path))).collect();
        if !authors.is_empty() {
            self.send(id, &Message::LaneWant { lane, authors });
        }
        self.drive_lane(id, lane);
    }

    /// The peer asks for authors' newest: it says what it holds, so that is known now, and it goes out when due.
    fn lane_wanted(&mut self, id: LinkId, lane: Lane, authors: &[(Digest, u64)]) {
        for (path, seq) in authors {
            let Some(author) = self.document.held_at(lane, path).map(|held| held.head().head().author) else {
                continue;
            };
            if let Some(link) = self.links.get_mut(&id) {
                link.known.insert((lane, author), *seq);
                link.mark((lane, author));
            }
        }
    }

    fn delta(&mut self, id: LinkId, delta: &Delta, now: Now) {
        let head = *delta.head.head();
        let book = (head.lane, head.author);
        if head.author == self.me {
            return self.own_delta(id, delta, now);
        }
        let allowance = allowance(&self.standing, now.unix);
        match self.document.apply(delta, allowance, self.verify.as_ref()) {
            Applied::Advanced { previous, held } => {
                self.knows(id, book, head.seq);
                self.advanced(previous.as_deref(), &held, Some(id), now);
            }
            Applied::Same => self.knows(id, book, head.seq),
            Applied::Older { .. } => {
                if let Some(link) = self.links.get_mut(&id) {
                    link.known.insert(book, head.seq);
                    link.mark(book);
                }
            }
            Applied::NeedsRepair(repair) => self.begin_repair(id, *repair, now),
            Applied::NotStanding => self.refuse("author_not_standing"),
            Applied::TooLarge => self.refuse("over_quota"),
            Applied::BadSignature => {
                self.refuse("bad_head_signature");
                self.close(id, "the peer forwarded a head with a bad signature");
            }
        }
    }

    fn knows(&mut self, id: LinkId, book: Book, seq: u64) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let known = link.known.entry(book).or_default();
        *known = seq.max(*known);
        let mine = self.document.held(&book.1, book.0).map_or(0, |held| held.head().head().seq);
        if *known >= mine {
            link.dirty.remove(&book);
        }
    }

    /// A lane is newer now: keep it, tell the others, judge it anew.
    pub(super) fn advanced(&mut self, before: Option<&Held>, held: &Arc<Held>, from: Option<LinkId>, now: Now) {
        let head = held.head().head();
        let book = (head.lane, head.author);
        self.persist_now(records::advance(before, held));
        for (id, link) in &mut self.links {
            if Some(*id) != from && link.known.get(&book).is_none_or(|seq| *seq < head.seq) {
                link.mark(book);
            }
        }
        self.local.note_change(head.lane, now.mono);
        self.settle_repair(book);
        if head.lane != Lane::State {
            self.due.view = true;
        }
    }

    /// Own lanes are on disk, or never will be: they take effect.
    pub(super) fn publish(&mut self, sealed: &[Arc<Held>], now: Now) {
        for held in sealed {
            let head = held.head().head();
            self.document.place(held.clone());
            self.links.values_mut().for_each(|link| link.mark((head.lane, head.author)));
            self.local.note_change(head.lane, now.mono);
            self.due.view |= head.lane != Lane::State;
        }
    }

    /// Sends what neighbours lack, as far as their streams have room and the pace allows.
    pub(super) fn flush(&mut self, now: Now) {
        let open: Vec<_> = self.live_links().map(|(id, _)| id).collect();
        for id in open {
            let Some(link) = self.links.get_mut(&id) else { continue };
            if link.compare_at.is_some_and(|at| at <= now.mono) {
                link.compare_at = None;
                self.send_roots(id, true);
            }
            self.flush_link(id, now);
            let Some(link) = self.links.get(&id) else { continue };
            link.compare_at.into_iter().chain(link.next_send(now.mono)).for_each(|at| self.due.by(at));
        }
    }

    fn flush_link(&mut self, id: LinkId, now: Now) {
        for _ in 0..DELTAS_MAX {
            let Some(link) = self.links.get(&id).filter(|link| link.unsent < UNSENT_BYTES_CALM) else { return };
            let Some(book) = link.sendable(now.mono, 1).first().copied() else { return };
            let known = link.known.get(&book).copied().unwrap_or(0);
            let delta = self.document.held(&book.1, book.0).map(|held| held.delta(known).delta);
            let seq = delta.as_ref().map_or(known, |delta| delta.head.head().seq);
            if let Some(delta) = delta.filter(|_| seq > known || known == 0) {
                self.send(id, &Message::Delta { delta: delta.encode() });
            }
            if let Some(link) = self.links.get_mut(&id) {
                link.sent(book, seq, now.mono);
            }
        }
    }

    /// Sends this node's live lane whatever the pace: there is no later.
    pub(super) fn tell_last(&mut self, id: LinkId) {
        let held = self.document.held(&self.me, Lane::Live).filter(|_| self.links.get(&id).is_some_and(Link::is_open));
        if let Some(held) = held {
            let delta = held.delta(0).delta.encode();
            self.send(id, &Message::Delta { delta });
        }
    }

    /// A neighbour says what it holds of this node's own: what a restart has to know before it signs anything.
    fn your_heads(&mut self, id: LinkId, heads: &[Vec<u8>], now: Now) {
        for head in heads.iter().take(Lane::ALL.len()) {
            match SignedHead::decode(head) {
                Ok(head) if head.head().author == self.me => {
                    let offer = Delta { head, base: 0, puts: Vec::new(), deletions: Vec::new() };
                    self.own_delta(id, &offer, now);
                }
                _ => self.refuse("malformed_head"),
            }
        }
        if !self.repairs.is_copying(&self.me) {
            self.own_maps_known();
        }
    }

    /// Something of this node's own, as a neighbour holds it. It may be what was said before a restart.
    fn own_delta(&mut self, id: LinkId, delta: &Delta, now: Now) {
        let book = (delta.head.head().lane, self.me);
        let allowance = allowance(&self.standing, now.unix);
        match self.authoring.heard(delta, allowance, now, self.verify.as_ref()) {
            Heard::Adopted => self.adopted(now),
            Heard::NeedsRepair(repair) => self.begin_repair(id, *repair, now),
            Heard::NotAllowed => self.refuse("own_lane_not_allowed"),
            Heard::Not(offer) => self.own_offer(id, book, delta.head.head().seq, offer, now),
        }
    }

    fn own_offer(&mut self, id: LinkId, book: Book, seq: u64, offer: Offer, now: Now) {
        match offer {
            Offer::Adopt | Offer::Current => self.knows(id, book, seq),
            Offer::Stale => {
                if let Some(link) = self.links.get_mut(&id) {
                    link.known.insert(book, seq);
                    link.mark(book);
                }
            }
            Offer::Twin => {
                let what = "another machine signs with this node's key: publishing pauses";
                self.event(EventKind::Twin, Some(self.me), String::from(what));
                self.key_is_shared(self.me, Vec::new(), None, now);
            }
            Offer::Forged => {
                self.refuse("bad_head_signature");
                self.close(id, "the peer showed a head that this node never signed");
            }
        }
    }

    /// What neighbours hold of this node's own is here: it may speak.
    fn own_maps_known(&mut self) {
        self.authoring.release();
        if core::mem::take(&mut self.returning) {
            self.persist_now(alloc::vec![super::records::returning(false)]);
        }
    }

    /// This node's own words of an earlier life were taken over: sealing says and writes them anew.
    pub(super) fn adopted(&mut self, now: Now) {
        self.local.seal_by(now.mono);
        if !self.repairs.is_copying(&self.me) {
            self.own_maps_known();
        }
    }
}
