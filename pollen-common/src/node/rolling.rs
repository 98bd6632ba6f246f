//! Reconciling the roll: by trie before anything else is said on a link, by pushing what is new afterwards.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::gossip::allowance;
use super::link::{Phase, Pull};
use super::{EventKind, LinkId, Node};
use crate::identity::Digest;
use crate::maps::{Held, records};
use crate::roll::{RollRefusal, Standing, Statement};
use crate::time::Now;
use crate::trie::{Prefix, Summary};
use crate::wire::{FRAME_BYTES_MAX, Message};

/// A session that is not open and comes no further for so long is closed.
pub(super) const PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);

/// A session that is not open after so long is closed, whatever progress it makes: the largest roll takes a fraction.
const SESSION_MAX: Duration = Duration::from_secs(120);

/// Statements of one message together, leaving room for its framing.
const BATCH_BYTES_MAX: usize = FRAME_BYTES_MAX - 4096;

impl Node {
    pub(super) fn begin_rolling(&mut self, id: LinkId, theirs: Digest, bundle: Vec<Vec<u8>>, now: Now) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.phase = Phase::Rolling { ours: false, theirs: false };
        link.roll_pull = Some(Pull::new(theirs));
        self.merge_from(id, &bundle, now);
        self.drive_roll(id, now);
    }

    /// Compares the roll with an open neighbour's once more.
    pub(super) fn pull_roll(&mut self, id: LinkId, theirs: Digest, now: Now) {
        let Some(link) = self.links.get_mut(&id).filter(|link| link.roll_pull.is_none()) else { return };
        link.roll_pull = Some(Pull::new(theirs));
        self.drive_roll(id, now);
    }

    fn drive_roll(&mut self, id: LinkId, now: Now) {
        let ours = self.roll.trie().root();
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(pull) = &mut link.roll_pull else { return };
        let asks = pull.asks();
        if pull.theirs() != ours && !pull.is_done() {
            for prefix in asks {
                self.send(id, &Message::RollAsk { prefix });
            }
            return;
        }
        link.roll_pull = None;
        // All that supports them is here now, if anything does.
        let staged = link.unstage();
        self.merge(staged, Some(id), now);
        let Some(link) = self.links.get_mut(&id) else { return };
        if let Phase::Rolling { ours, .. } = &mut link.phase {
            *ours = true;
            self.send(id, &Message::RollDone);
            self.judge_peer(id, now);
            self.open_when_done(id, now);
        }
    }

    /// Answers what was kept back if the peer stands by now; closes the link if it does not.
    fn judge_peer(&mut self, id: LinkId, now: Now) {
        let Some(link) = self.links.get_mut(&id) else { return };
        match self.standing.stands(&link.peer, now.unix) {
            Ok(_) => link.undefer().into_iter().for_each(|question| self.roll_question(id, question)),
            Err(reason) => {
                self.refuse("not_standing");
                self.close(id, alloc::format!("{reason}"));
            }
        }
    }

    /// A question about the roll: answered to members alone, as it tells who there is. Who is not yet seen to stand
    /// waits until its own roll has been read.
    pub(super) fn roll_asked(&mut self, id: LinkId, question: Message, now: Now) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if self.standing.stands(&link.peer, now.unix).is_ok() {
            self.roll_question(id, question);
        } else if !link.defer(question) {
            self.refuse("too_many_questions");
            self.close(id, "the peer asks too much before it is known to stand");
        }
    }

    fn roll_question(&mut self, id: LinkId, question: Message) {
        match question {
            Message::RollAsk { prefix } => {
                let summary = self.roll.trie().summary(&prefix);
                self.send(id, &Message::RollAnswer { prefix, summary });
            }
            Message::RollWant { slots } => {
                let wanted: Vec<_> = slots.iter().filter_map(|slot| self.roll.trie().get(slot).cloned()).collect();
                self.send_statements(id, &wanted, true);
            }
            _ => {}
        }
    }

    pub(super) fn roll_answer(&mut self, id: LinkId, prefix: Prefix, summary: &Summary, now: Now) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let found = link.roll_pull.as_mut().and_then(|pull| pull.answer(self.roll.trie(), prefix, summary));
        let Some(found) = found else { return self.refuse("unasked_answer") };
        link.progress = now.mono;
        if !found.theirs.is_empty() {
            if let Some(pull) = &mut link.roll_pull {
                pull.wants += 1;
            }
            let slots = found.theirs.iter().map(|(slot, _)| *slot).collect();
            self.send(id, &Message::RollWant { slots });
        }
        self.drive_roll(id, now);
    }

    /// Sends statements in as many messages as they need; the last one answers the request, if it is `asked` for.
    fn send_statements(&mut self, id: LinkId, statements: &[Arc<Statement>], asked: bool) {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for statement in statements {
            if bytes + statement.bytes().len() > BATCH_BYTES_MAX {
                self.send(id, &Message::Roll { statements: core::mem::take(&mut batch), asked: false });
                bytes = 0;
            }
            bytes += statement.bytes().len() + 8;
            batch.push(statement.bytes().to_vec());
        }
        self.send(id, &Message::Roll { statements: batch, asked });
    }

    pub(super) fn roll_statements(&mut self, id: LinkId, statements: &[Vec<u8>], asked: bool, now: Now) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if let Some(pull) = link.roll_pull.as_mut().filter(|pull| asked && pull.wants > 0) {
            pull.wants -= 1;
            link.progress = now.mono;
        }
        self.merge_from(id, statements, now);
        self.drive_roll(id, now);
    }

    fn merge_from(&mut self, id: LinkId, statements: &[Vec<u8>], now: Now) {
        let decoded = statements.iter().filter_map(|bytes| Statement::decode(bytes).ok());
        let decoded: Vec<_> = decoded.map(Arc::new).collect();
        if decoded.len() < statements.len() {
            self.refuse("malformed_statement");
        }
        let Some(link) = self.links.get_mut(&id) else { return };
        let comparing = link.roll_pull.is_some();
        let unsupported = self.merge(decoded, Some(id), now);
        if let Some(link) = self.links.get_mut(&id).filter(|_| comparing) {
            link.stage(unsupported);
        }
    }

    /// Merges statements, keeps what is new on disk, tells the neighbours (but `from`). Gives back those that nothing
    /// supports yet.
    pub(super) fn merge(&mut self, batch: Vec<Arc<Statement>>, from: Option<LinkId>, now: Now) -> Vec<Arc<Statement>> {
        if batch.is_empty() {
            return Vec::new();
        }
        let merged = self.roll.merge(batch.iter().cloned(), self.verify.as_ref());
        let offered: BTreeMap<Digest, Arc<Statement>> = batch.into_iter().map(|s| (s.digest(), s)).collect();
        let mut unsupported = Vec::new();
        for (digest, refusal) in &merged.refused {
            match refusal {
                RollRefusal::Unsupported => unsupported.extend(offered.get(digest).cloned()),
                RollRefusal::Superseded => {}
                RollRefusal::OtherCluster => self.refuse("statement_of_other_cluster"),
                RollRefusal::Signature => {
                    self.refuse("statement_signature");
                    // Checking costs far more than sending: no second try.
                    from.into_iter().for_each(|id| self.close(id, "the peer sent a statement with a bad signature"));
                }
                RollRefusal::OverPool => self.refuse("statement_over_pool"),
            }
        }
        for key in merged.displaced.iter().map(|redemption| redemption.subject()) {
            let what = alloc::format!("{} fell: its invite had been redeemed earlier by another", key.short());
            self.event(EventKind::Denied, Some(key), what);
        }
        if merged.changed() {
            self.persist_roll(&merged.added, &merged.removed);
            let others: Vec<_> = self.live_links().map(|(id, _)| id).filter(|id| Some(*id) != from).collect();
            for id in others.into_iter().filter(|_| !merged.added.is_empty()) {
                self.send_statements(id, &merged.added, false);
            }
            self.roll_changed(now);
        }
        unsupported
    }

    /// Everything that follows from the roll is computed anew: standing, links, the document, the view.
    pub(super) fn roll_changed(&mut self, now: Now) {
        self.standing = Arc::new(Standing::of(&self.roll));
        self.standing_changed(now);
        self.keep_roll(now);
    }

    /// Who stands may have changed, by the roll or by the clock.
    pub(super) fn standing_changed(&mut self, now: Now) {
        let standing = self.standing.clone();
        // Those that are silent too: whoever does not stand may not come back.
        let fallen: Vec<_> = (self.links.iter().filter(|(_, link)| link.is_open()))
            .filter_map(|(id, link)| Some((*id, standing.stands(&link.peer, now.unix).err()?)))
            .collect();
        for (id, reason) in fallen {
            self.refuse("not_standing");
            self.close(id, alloc::format!("{reason}"));
        }
        let settled = self.document.settle(allowance(&standing, now.unix), now.mono);
        // Own lanes stay on disk: only authoring writes them, and it counts on what it wrote.
        let others = |held: &&Arc<Held>| held.head().head().author != self.me;
        let gone = settled.left.iter().filter(others).flat_map(|held| records::remove(held));
        let back = settled.back.iter().filter(others).flat_map(|held| records::advance(None, held));
        self.persist_now(gone.chain(back).collect());
        self.due.expiry = standing.next_expiry(now.unix);
        self.due.view = true;
        self.due.links = true;
    }

    pub(super) fn roll_done_by_peer(&mut self, id: LinkId, now: Now) {
        if let Some(link) = self.links.get_mut(&id) {
            if let Phase::Rolling { theirs, .. } = &mut link.phase {
                *theirs = true;
            }
            self.open_when_done(id, now);
        }
    }

    fn open_when_done(&mut self, id: LinkId, now: Now) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.phase != (Phase::Rolling { ours: true, theirs: true }) {
            return;
        }
        match self.standing.stands(&link.peer, now.unix) {
            Ok(_) => {
                link.phase = Phase::Open;
                link.was_open = true;
                self.opened(id);
            }
            Err(reason) => {
                self.refuse("not_standing");
                self.close(id, alloc::format!("{reason}"));
            }
        }
    }

    /// Closes links whose sessions come no further.
    pub(super) fn time_out_sessions(&mut self, now: Now) {
        let waiting = |phase: &Phase| !matches!(phase, Phase::Open | Phase::Closing);
        let mut late = Vec::new();
        for (id, link) in self.links.iter().filter(|(_, link)| waiting(&link.phase)) {
            let end = (link.progress + PROGRESS_TIMEOUT).min(link.since + SESSION_MAX);
            if end <= now.mono { late.push(*id) } else { self.due.by(end) }
        }
        late.into_iter().for_each(|id| self.close(id, "the session did not open in time"));
    }
}
