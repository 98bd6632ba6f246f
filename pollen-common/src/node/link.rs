//! What a node remembers of one link: how far its session has come, what the peer is known to hold, and what must
//! still be told. Owns no decision about content.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use crate::identity::{Digest, NodeKey};
use crate::maps::Lane;
use crate::node::probe::Probe;
use crate::node::signs::ClockWatch;
use crate::roll::Statement;
use crate::time::Instant;
use crate::trie::{Found, Prefix, Summary, Trie, Walk};
use crate::wire::{Frames, Message};

/// Questions under way at once in one comparison: enough to fill a round trip, few enough that the answers (at most
/// 2 KiB each) stay small.
const ASKS_MAX: usize = 16;

/// Bytes given to the transport that it has not taken yet. Beyond it the peer does not read, and the link is closed.
pub(super) const UNSENT_BYTES_MAX: usize = 4 << 20;

/// Deltas are only built while less than this waits: what is built late is newest.
pub(super) const UNSENT_BYTES_CALM: usize = 64 << 10;

/// Bytes of statements kept back until those that support them arrive: some thousand, or a few rotations.
const STAGED_BYTES_MAX: usize = 1 << 20;

/// Questions about the roll kept back until the peer is seen to stand: what an honest end asks at once.
const DEFERRED_MAX: usize = 2 * ASKS_MAX;

/// How far a session has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing heard yet.
    Greeting,
    /// Reconciling the roll, before anything else is said.
    Rolling { ours: bool, theirs: bool },
    /// Everything flows.
    Open,
    /// An unadmitted peer that redeems an invite.
    Joining,
    /// We asked for it to be closed.
    Closing,
}

/// One comparison of a trie with the peer's, under way.
#[derive(Clone, Debug)]
pub(super) struct Pull {
    theirs: Digest,
    walk: Walk,
    asked: usize,
    /// Requests for items whose answers have not come; only the roll counts them.
    pub(super) wants: usize,
}

impl Pull {
    pub(super) fn new(theirs: Digest) -> Self {
        Self { theirs, walk: Walk::new(theirs, false), asked: 0, wants: 0 }
    }

    /// The root that the peer named.
    pub(super) const fn theirs(&self) -> Digest {
        self.theirs
    }

    /// Places to ask for now.
    pub(super) fn asks(&mut self) -> Vec<Prefix> {
        let room = ASKS_MAX.saturating_sub(self.asked);
        let asks: Vec<_> = core::iter::from_fn(|| self.walk.poll_ask()).take(room).collect();
        self.asked += asks.len();
        asks
    }

    pub(super) fn answer<V: Clone>(&mut self, ours: &Trie<V>, prefix: Prefix, summary: &Summary) -> Option<Found> {
        let found = self.walk.answer(ours, prefix, summary)?;
        self.asked = self.asked.saturating_sub(1);
        Some(found)
    }

    pub(super) fn is_done(&self) -> bool {
        self.walk.is_done() && self.wants == 0
    }
}

/// An author's lane: what deltas are about.
pub(super) type Book = (Lane, NodeKey);

#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) peer: NodeKey,
    pub(super) dialed: bool,
    pub(super) phase: Phase,
    pub(super) frames: Frames,
    pub(super) probe: Probe,
    /// When the connection came up.
    pub(super) since: Instant,
    /// The last time the session came further, before it is open.
    pub(super) progress: Instant,
    /// The peer said goodbye.
    pub(super) goodbye: bool,
    /// It carried everything, at some time.
    pub(super) was_open: bool,
    /// The peer answers no probes, since this moment: not alive, but its connection and all that is on it waits.
    pub(super) silent: Option<Instant>,
    /// Where the peer is being looked for meanwhile.
    pub(super) sought_at: Vec<SocketAddr>,
    pub(super) unsent: usize,
    /// Since when some of that waits.
    pub(super) unsent_since: Option<Instant>,
    /// Where the peer was when the connection came up.
    pub(super) remote: Option<SocketAddr>,
    /// Its clock against this node's.
    pub(super) clock: ClockWatch,
    pub(super) roll_pull: Option<Pull>,
    staged: Vec<Arc<Statement>>,
    staged_bytes: usize,
    deferred: Vec<Message>,
    pub(super) lane_pulls: [Option<Pull>; 3],
    /// Lanes were compared once since the link opened.
    pub(super) compared: bool,
    /// When to compare again, after what is on its way has arrived.
    pub(super) compare_at: Option<Instant>,
    /// The sequence of each book that the peer is known to hold, or was sent.
    pub(super) known: BTreeMap<Book, u64>,
    /// Books in which the peer may be behind.
    pub(super) dirty: BTreeSet<Book>,
    /// When a book would be sent next at its pace: it may be [`BURST`] sends ahead of that.
    paced: BTreeMap<Book, Instant>,
}

impl Link {
    pub(super) fn new(me: &NodeKey, peer: NodeKey, dialed: bool, now: Instant) -> Self {
        Self {
            peer,
            dialed,
            phase: Phase::Greeting,
            frames: Frames::default(),
            probe: Probe::new(*me < peer, now),
            since: now,
            progress: now,
            goodbye: false,
            was_open: false,
            silent: None,
            sought_at: Vec::new(),
            unsent: 0,
            unsent_since: None,
            remote: None,
            clock: ClockWatch::default(),
            roll_pull: None,
            staged: Vec::new(),
            staged_bytes: 0,
            deferred: Vec::new(),
            lane_pulls: [None, None, None],
            compared: false,
            compare_at: None,
            known: BTreeMap::new(),
            dirty: BTreeSet::new(),
            paced: BTreeMap::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Open, and its peer answers.
    pub(super) fn is_live(&self) -> bool {
        self.is_open() && self.silent.is_none()
    }

    /// Takes out the statements kept back.
    pub(super) fn unstage(&mut self) -> Vec<Arc<Statement>> {
        self.staged_bytes = 0;
        core::mem::take(&mut self.staged)
    }

    /// Keeps back statements that nothing supports yet, as far as there is room: a hostile peer's are endless.
    pub(super) fn stage(&mut self, statements: Vec<Arc<Statement>>) {
        for statement in statements {
            self.staged_bytes += statement.bytes().len();
            if self.staged_bytes > STAGED_BYTES_MAX {
                self.staged_bytes -= statement.bytes().len();
                return;
            }
            self.staged.push(statement);
        }
    }

    /// Keeps a question back; whether there was room.
    pub(super) fn defer(&mut self, question: Message) -> bool {
        self.deferred.push(question);
        self.deferred.len() <= DEFERRED_MAX
    }

    /// Takes out the questions kept back.
    pub(super) fn undefer(&mut self) -> Vec<Message> {
        core::mem::take(&mut self.deferred)
    }

    /// The peer may lack the newest of `book`.
    pub(super) fn mark(&mut self, book: Book) {
        if self.is_open() {
            self.dirty.insert(book);
        }
    }

    /// The dirty books that may be sent now, at most `limit`.
    pub(super) fn sendable(&self, now: Instant, limit: usize) -> Vec<Book> {
        self.dirty.iter().filter(|book| self.may_send(book).is_none_or(|at| at <= now)).take(limit).copied().collect()
    }

    /// `book` was sent up to `seq`.
    pub(super) fn sent(&mut self, book: Book, seq: u64, now: Instant) {
        self.dirty.remove(&book);
        self.known.insert(book, seq);
        self.paced.retain(|_, at| *at > now);
        let next = self.paced.entry(book).or_insert(now);
        *next = *next + pace(book.0);
    }

    /// From when on a book may be sent; `None`: at any time.
    fn may_send(&self, book: &Book) -> Option<Instant> {
        self.paced.get(book).map(|next| *next - pace(book.0) * BURST)
    }

    /// When the next dirty book may be sent; `None` when there is none or the stream is full.
    pub(super) fn next_send(&self, now: Instant) -> Option<Instant> {
        if self.unsent >= UNSENT_BYTES_CALM {
            return None;
        }
        self.dirty.iter().map(|book| self.may_send(book).unwrap_or(now)).min()
    }
}

/// Deltas of a book that may follow each other at once: links come up and services are published a few at a time.
const BURST: u32 = 3;

/// The time between two deltas of one book on one link, in the long run: a busy author's changes travel together.
fn pace(lane: Lane) -> Duration {
    match lane {
        Lane::Live => Duration::from_millis(1000),
        Lane::Facts => Duration::from_millis(500),
        Lane::State => Duration::from_millis(50),
    }
}
