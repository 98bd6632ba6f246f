//! Copying one lane of one author by trie from a peer that has it. Owns the questions still open and what is already
//! proved; sends nothing, and touches no document until it is complete.
//! Invariant: every piece is checked against the digest that the signed root gives for it; what it holds never
//! exceeds what was held before plus what the head counts, itself within the author's allowance.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::author_map::AuthorMap;
use super::head::{Lane, SignedHead};
use crate::identity::{Digest, NodeKey, Verify};
use crate::trie::{Prefix, Summary, Walk};

mod exchange;

pub use exchange::{ANSWER_BYTES_MAX, Answer, Ask, ExchangeError, Want};

/// The most summaries asked for at once: their answer then fits [`ANSWER_BYTES_MAX`].
const SUMMARIES_PER_ASK: usize = 64;

/// The most entries asked for at once. The answer holds as many as fit; the rest is asked for again.
const ENTRIES_PER_ASK: usize = 1024;

/// Summaries that even a small lane may take: a path of 64 branches and their buckets.
const SUMMARIES_BASE: u64 = 1024;

/// How far an answer brought a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More to ask: see [`Repair::poll_ask`].
    More,
    /// All content is here: see [`Repair::into_content`].
    Complete,
}

/// Why a repair gave up. What was held before is untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepairError {
    #[error("the peer sent a piece that the signed root does not prove")]
    Unproved,
    #[error("the peer answered with nothing of what was asked")]
    NoProgress,
    #[error("the peer no longer has this lane, or an older version of it")]
    Behind,
    #[error("the author signed a root that no content has")]
    Impossible,
    #[error("the lane is beyond its author's allowance")]
    TooLarge,
}

/// One lane being copied.
#[derive(Clone, Debug)]
pub struct Repair {
    head: SignedHead,
    allowance: u64,
    /// On its way from what was held to what the head names.
    map: AuthorMap,
    /// Pieces of an earlier attempt that may fit again.
    spare: AuthorMap,
    walk: Walk,
    /// Entries still to fetch: path and digest. At most the items of one ask's summaries.
    wanted: BTreeMap<Digest, Digest>,
    asked: BTreeSet<Prefix>,
    /// Asked for, but left out of an answer.
    again: Vec<Prefix>,
    waiting: bool,
    /// Counted bytes of entries fetched for this head.
    staged_bytes: u64,
    summaries: u64,
}

impl Repair {
    /// Begins at `map`, what is held already, towards what `head` names. The head's signature has been checked, and
    /// its size against `allowance`.
    pub(super) fn new(head: SignedHead, map: AuthorMap, allowance: u64) -> Self {
        Self {
            head,
            allowance,
            map,
            spare: AuthorMap::new(),
            walk: Walk::new(head.head().root, true),
            wanted: BTreeMap::new(),
            asked: BTreeSet::new(),
            again: Vec::new(),
            waiting: false,
            staged_bytes: 0,
            summaries: 0,
        }
    }

    /// What is being copied.
    #[must_use]
    pub const fn head(&self) -> &SignedHead {
        &self.head
    }

    #[must_use]
    pub const fn author(&self) -> &NodeKey {
        &self.head.head().author
    }

    #[must_use]
    pub const fn lane(&self) -> Lane {
        self.head.head().lane
    }

    /// The entries at hand, proved and not.
    #[must_use]
    pub fn staged_entries(&self) -> usize {
        self.map.len()
    }

    /// The next question, one at a time: `None` while an answer is awaited or nothing is left to ask. Poll again
    /// after [`Self::answer`].
    pub fn poll_ask(&mut self) -> Option<Ask> {
        if self.waiting {
            return None;
        }
        let want = if self.wanted.is_empty() {
            let mut prefixes: Vec<_> = self.again.drain(..).collect();
            while prefixes.len() < SUMMARIES_PER_ASK
                && let Some(prefix) = self.walk.poll_ask()
            {
                prefixes.push(prefix);
            }
            if prefixes.is_empty() {
                return None;
            }
            self.asked = prefixes.iter().copied().collect();
            Want::Summaries(prefixes)
        } else {
            Want::Entries(self.wanted.keys().take(ENTRIES_PER_ASK).copied().collect())
        };
        self.waiting = true;
        let head = self.head.head();
        Some(Ask { author: head.author, lane: head.lane, root: head.root, want })
    }

    /// Takes the answer to the last question.
    ///
    /// # Errors
    /// If the peer cannot, or will not, serve this lane truthfully, or its author made it impossible. After
    /// [`RepairError::Unproved`], [`RepairError::NoProgress`] and [`RepairError::Behind`] another peer may still
    /// serve it: see [`Self::restart`].
    pub fn answer(&mut self, answer: &Answer, verify: &(impl Verify + ?Sized)) -> Result<Progress, RepairError> {
        let head = self.head.head();
        if !self.waiting || answer.author() != head.author || answer.lane() != head.lane {
            return Err(RepairError::NoProgress);
        }
        self.waiting = false;
        match answer {
            Answer::Summaries { summaries, .. } => self.take_summaries(summaries)?,
            Answer::Entries { entries, .. } => {
                let mut progress = false;
                for entry in entries {
                    if self.wanted.remove(&entry.path()) != Some(entry.digest()) {
                        return Err(RepairError::Unproved);
                    }
                    self.stage(entry.clone())?;
                    progress = true;
                }
                if !progress {
                    return Err(RepairError::NoProgress);
                }
            }
            Answer::Moved { head } => self.follow(head, verify)?,
            Answer::Gone { .. } => return Err(RepairError::Behind),
        }
        self.progress()
    }

    /// Begins to ask from the start, keeping what is proved: for another peer, or after the link was lost.
    pub fn restart(&mut self) {
        let head = self.head;
        let map = core::mem::take(&mut self.map);
        let spare = core::mem::take(&mut self.spare);
        *self = Self { spare, ..Self::new(head, map, self.allowance) };
    }

    /// Turns to the newer head of another repair of the same lane, keeping the pieces of both. An older one changes
    /// nothing.
    pub fn advance(&mut self, newer: Self) {
        if newer.author() == self.author() && newer.lane() == self.lane() && newer.head.rank() > self.head.rank() {
            let spare = core::mem::take(&mut self.map);
            *self = Self { spare, ..newer };
        }
    }

    /// The head and exactly its content.
    ///
    /// # Errors
    /// If it is not complete: gives it back.
    pub fn into_content(self) -> Result<(SignedHead, AuthorMap), Box<Self>> {
        if self.map.matches(self.head.head()) { Ok((self.head, self.map)) } else { Err(Box::new(self)) }
    }

    fn take_summaries(&mut self, summaries: &[(Prefix, Summary)]) -> Result<(), RepairError> {
        if summaries.is_empty() {
            return Err(RepairError::NoProgress);
        }
        for (prefix, summary) in summaries {
            if !self.asked.remove(prefix) {
                return Err(RepairError::Unproved);
            }
            self.summaries += 1;
            if self.summaries > SUMMARIES_BASE + 2 * u64::from(self.head.head().count) {
                return Err(RepairError::Impossible);
            }
            let found = self.walk.answer(self.map.trie(), *prefix, summary).ok_or(RepairError::Unproved)?;
            for place in found.only_ours {
                self.map.trie().paths_under(&place).iter().for_each(|path| {
                    self.map.remove_at(path);
                });
            }
            for (path, digest) in found.theirs {
                match self.spare.trie().digest_of(&path) {
                    Some(spare) if spare == digest => {
                        let entry = self.spare.at(&path).cloned().expect("it has a digest, so it is there");
                        self.stage(entry)?;
                    }
                    _ => {
                        self.wanted.insert(path, digest);
                    }
                }
            }
        }
        self.again.extend(core::mem::take(&mut self.asked));
        Ok(())
    }

    fn stage(&mut self, entry: alloc::sync::Arc<super::entry::Entry>) -> Result<(), RepairError> {
        self.staged_bytes += entry.size_bytes();
        if self.staged_bytes > self.head.head().size_bytes {
            return Err(RepairError::Impossible);
        }
        self.map.insert(entry);
        Ok(())
    }

    /// The peer has moved on to another head.
    fn follow(&mut self, head: &SignedHead, verify: &(impl Verify + ?Sized)) -> Result<(), RepairError> {
        if head.rank() <= self.head.rank() {
            return Err(RepairError::Behind);
        }
        if head.head().size_bytes > self.allowance {
            return Err(RepairError::TooLarge);
        }
        if head.head().cluster != self.head.head().cluster || !head.verify(verify) {
            return Err(RepairError::Unproved);
        }
        self.head = *head;
        self.restart();
        Ok(())
    }

    fn progress(&self) -> Result<Progress, RepairError> {
        if !self.walk.is_done() || !self.wanted.is_empty() {
            return Ok(Progress::More);
        }
        // Everything that the root proves is here, and still it is not what the head says of it.
        if self.map.matches(self.head.head()) { Ok(Progress::Complete) } else { Err(RepairError::Impossible) }
    }
}
