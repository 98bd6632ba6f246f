//! Copies under way of lanes that deltas could not settle: one for each book, over one link at a time. Owns which
//! link serves which copy; proving the pieces is [`crate::maps::Repair`]'s.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use super::link::Book;
use super::{LinkId, Node};
use crate::identity::NodeKey;
use crate::maps::{Answer, Applied, Ask, Progress, Repair};
use crate::time::{Instant, Now};
use crate::wire::Message;

/// Copies at once. Each holds at most its author's quota; further heads are offered again by anti-entropy.
const REPAIRS_MAX: usize = 64;

/// A neighbour that has not answered for so long is asked no more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A copy that takes longer is begun anew, perhaps over another link: one slow neighbour holds up no book for ever.
const COPY_MAX: Duration = Duration::from_secs(120);

#[derive(Debug)]
struct Copy {
    link: LinkId,
    repair: Repair,
    begun: Instant,
    progress: Instant,
    /// Questions on the link without an answer.
    asked: u32,
    /// Of these, the ones about a head that the copy has turned away from: their answers are passed over.
    stale: u32,
}

impl Copy {
    fn deadline(&self) -> Instant {
        (self.progress + ANSWER_TIMEOUT).min(self.begun + COPY_MAX)
    }
}

/// All copies under way.
#[derive(Debug)]
pub(super) struct Repairs {
    enabled: bool,
    copies: BTreeMap<Book, Copy>,
}

impl Repairs {
    pub(super) const fn new(enabled: bool) -> Self {
        Self { enabled, copies: BTreeMap::new() }
    }

    /// Whether anything of this author's is being copied.
    pub(super) fn is_copying(&self, author: &NodeKey) -> bool {
        self.copies.keys().any(|(_, of)| of == author)
    }
}

impl Node {
    pub(super) fn begin_repair(&mut self, id: LinkId, repair: Repair, now: Now) {
        if !self.repairs.enabled {
            return;
        }
        let book = (repair.lane(), *repair.author());
        // What this node said itself it needs before it may say anything more.
        let full = self.repairs.copies.len() >= REPAIRS_MAX && book.1 != self.me;
        match self.repairs.copies.get_mut(&book) {
            // The head has moved on: turn to it, over the link that offers it.
            Some(copy) if copy.repair.head().rank() < repair.head().rank() => {
                copy.repair.advance(repair);
                if copy.link != id {
                    (copy.link, copy.asked) = (id, 0);
                }
                copy.stale = copy.asked;
            }
            Some(_) => return,
            None if full => return self.refuse("too_many_repairs"),
            None => {
                self.repairs
                    .copies
                    .insert(book, Copy { link: id, repair, begun: now.mono, progress: now.mono, asked: 0, stale: 0 });
            }
        }
        self.drive_repair(book);
    }

    fn drive_repair(&mut self, book: Book) {
        let Some(copy) = self.repairs.copies.get_mut(&book) else { return };
        let link = copy.link;
        if let Some(ask) = copy.repair.poll_ask() {
            copy.asked += 1;
            self.send(link, &Message::MapAsk { ask: ask.encode() });
        }
    }

    pub(super) fn repair_message(&mut self, id: LinkId, message: Message, now: Now) {
        match message {
            Message::MapAsk { ask } => match Ask::decode(&ask) {
                Ok(ask) => {
                    let answer = self.document.answer(&ask).encode();
                    self.send(id, &Message::MapAnswer { answer });
                }
                Err(_) => self.refuse("malformed_ask"),
            },
            Message::MapAnswer { answer } => match Answer::decode(&answer) {
                Ok(answer) => self.repair_answer(id, &answer, now),
                Err(_) => self.refuse("malformed_answer"),
            },
            _ => {
                self.refuse("out_of_turn");
                self.close(id, "the peer spoke out of turn");
            }
        }
    }

    fn repair_answer(&mut self, id: LinkId, answer: &Answer, now: Now) {
        let book = (answer.lane(), answer.author());
        let Some(copy) = self.repairs.copies.get_mut(&book).filter(|copy| copy.link == id) else { return };
        copy.asked = copy.asked.saturating_sub(1);
        if copy.stale > 0 {
            copy.stale -= 1;
            return;
        }
        copy.progress = now.mono;
        match copy.repair.answer(answer, self.verify.as_ref()) {
            Ok(Progress::More) => self.drive_repair(book),
            Ok(Progress::Complete) => {
                if let Some(copy) = self.repairs.copies.remove(&book) {
                    self.repaired(id, copy.repair, now);
                }
            }
            Err(_) => {
                self.refuse("repair_failed");
                self.repairs.copies.remove(&book);
                self.ask_everyone();
            }
        }
    }

    fn repaired(&mut self, id: LinkId, repair: Repair, now: Now) {
        let Ok((head, map)) = repair.into_content() else { return };
        if head.head().author == self.me {
            self.authoring.adopt(head, map);
            return self.adopted(now);
        }
        let allowance = super::gossip::allowance(&self.standing, now.unix);
        if let Applied::Advanced { previous, held } = self.document.commit(head, map, allowance, self.verify.as_ref()) {
            self.advanced(previous.as_deref(), &held, Some(id), now);
        }
    }

    /// The book is as new as a copy of it would be.
    pub(super) fn settle_repair(&mut self, book: Book) {
        let held = self.document.held(&book.1, book.0).map(|held| held.head().rank());
        if self.repairs.copies.get(&book).is_some_and(|copy| held >= Some(copy.repair.head().rank())) {
            self.repairs.copies.remove(&book);
        }
    }

    /// A link is gone: what was copied over it is asked for elsewhere.
    pub(super) fn drop_repairs_over(&mut self, id: LinkId) {
        let before = self.repairs.copies.len();
        self.repairs.copies.retain(|_, copy| copy.link != id);
        if self.repairs.copies.len() < before {
            self.ask_everyone();
        }
    }

    /// Gives up copies whose neighbour does not answer.
    pub(super) fn time_out_repairs(&mut self, now: Now) {
        let before = self.repairs.copies.len();
        self.repairs.copies.retain(|_, copy| now.mono < copy.deadline());
        if self.repairs.copies.len() < before {
            self.refuse("repair_timed_out");
            self.ask_everyone();
        }
        let next = self.repairs.copies.values().map(Copy::deadline).min();
        next.into_iter().for_each(|at| self.due.by(at));
    }

    /// Compares with all neighbours: whoever holds the newer head offers it again.
    fn ask_everyone(&mut self) {
        let open: Vec<_> = self.live_links().map(|(id, _)| id).collect();
        open.into_iter().for_each(|id| self.send_roots(id, true));
    }
}
