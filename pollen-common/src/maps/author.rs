//! What this node says: changes gathered into signed heads. Owns the sequence, the wait at boot and the watch for a
//! twin; must not know what entries mean. Time is an argument.
//! Invariant: no sequence is used that a restart could use again, and a head of this node that it did not sign is
//! adopted or yielded to, never outbid.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::author_map::AuthorMap;
use super::delta::Delta;
use super::document::{Applied, Document, Held};
use super::entry::EntryError;
use super::head::{Head, Lane, SignedHead};
use super::records;
use super::records::Write;
use super::repair::Repair;
use crate::identity::{ClusterId, NodeKey, SecretKey, Verify};
use crate::time::{Instant, Now, UnixMs};

mod draft;
mod twin;

use draft::Draft;
pub use twin::Twin;

/// How many sequences are reserved by one write: so many heads pass between two such writes.
const SEQ_BLOCK: u64 = 1 << 16;

/// A second of the clock is this many sequences (as a shift): no node seals 16 million heads in one.
const SEQ_PER_SECOND_SHIFT: u32 = 24;

/// Seconds of the clock beyond this are not believed: they would leave no sequences above.
const CLOCK_SECONDS_MAX: u64 = 1 << 38;

/// How long a node that boots waits for a neighbour to tell of its own heads before it signs durable lanes.
pub const BOOT_WAIT: Duration = Duration::from_secs(5);

/// How long one waits that knows that it lost its maps: signing without them would delete what neighbours hold.
pub const RETURN_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Why a change was refused; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorError {
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error("this would make {size_bytes} bytes in lane {lane}, of which {allowance_bytes} are allowed")]
    TooLarge { lane: Lane, size_bytes: u64, allowance_bytes: u64 },
}

/// What a head of this node, shown by a neighbour, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// The newest that this node signed.
    Current,
    /// Older than what this node holds: answer with that.
    Stale,
    /// From before boot, but newer than the disk: [`Authoring::heard`] takes its content over.
    Adopt,
    /// Signed since boot, but not here: another process uses this node's key. Publishing has stopped for a while.
    Twin,
    /// Not signed with this node's key.
    Forged,
}

/// What became of a delta of this node's own that a neighbour sent.
#[derive(Debug)]
pub enum Heard {
    /// Nothing is to be adopted: what the head is.
    Not(Offer),
    /// Adopted, and to be sealed anew. Nothing of it is on disk yet: only sealing writes own lanes.
    Adopted,
    /// To be adopted, but the delta does not suffice: copy it by trie, then [`Authoring::adopt`] the content.
    NeedsRepair(Box<Repair>),
    /// This node does not stand here, or its lane exceeds what it may count now.
    NotAllowed,
}

/// One round of sealing.
#[derive(Debug)]
pub struct Sealed {
    /// The new lanes. A durable one may be placed in the document and sent once `writes` are on disk.
    pub held: Vec<Arc<Held>>,
    /// In one batch. Empty if nothing durable changed.
    pub writes: Vec<Write>,
    /// The writes reserve the sequences of this round: even a live lane must wait for them.
    pub reserves: bool,
}

/// This node's own lanes and the changes not yet sealed.
#[derive(Debug)]
pub struct Authoring {
    secret: SecretKey,
    me: NodeKey,
    cluster: ClusterId,
    /// Greater than every sequence used before this boot.
    boot_seq: u64,
    next_seq: u64,
    /// Up to here sequences are reserved on disk, or will be with the batch being sealed.
    reserved: u64,
    /// When durable lanes may be signed even if no neighbour has answered. `None`: they may.
    wait_until: Option<Instant>,
    drafts: [Draft; 3],
    /// The newest known content from before boot, to which deltas of it apply.
    before: Document,
    twin: twin::Watch,
}

impl Authoring {
    /// Starts from what the disk gave back.
    #[must_use]
    pub fn boot(secret: SecretKey, document: &Document, reserved: u64, now: Now) -> Self {
        let me = secret.public();
        let boot_seq = clock_seq(now.unix).max(reserved.saturating_add(1));
        let mut before = Document::new(*document.cluster());
        Lane::ALL.into_iter().filter_map(|lane| document.held(&me, lane)).for_each(|held| before.place(held.clone()));
        Self {
            before,
            me,
            cluster: *document.cluster(),
            boot_seq,
            next_seq: boot_seq,
            reserved,
            wait_until: Some(now.mono + BOOT_WAIT),
            drafts: Lane::ALL.map(|lane| Draft::new(lane, document.held(&me, lane).cloned())),
            twin: twin::Watch::default(),
            secret,
        }
    }

    #[must_use]
    pub const fn me(&self) -> &NodeKey {
        &self.me
    }

    /// The newest sealed content of a lane.
    #[must_use]
    pub fn held(&self, lane: Lane) -> Option<&Arc<Held>> {
        self.drafts[lane.index()].held()
    }

    /// The value that `key` has, sealed or not.
    #[must_use]
    pub fn value(&self, lane: Lane, key: &[u8]) -> Option<&[u8]> {
        self.drafts[lane.index()].value(key)
    }

    /// All keys that have a value, sealed or not, that begin with `prefix`.
    #[must_use]
    pub fn keys(&self, lane: Lane, prefix: &[u8]) -> Vec<Box<[u8]>> {
        self.drafts[lane.index()].keys(prefix)
    }

    /// The counted bytes of a lane, unsealed changes included.
    #[must_use]
    pub fn size_bytes(&self, lane: Lane) -> u64 {
        self.drafts[lane.index()].size_bytes()
    }

    /// Puts a value; whether that changed anything. `allowance_bytes`: what the lane may count.
    ///
    /// # Errors
    /// If the entry exceeds its bounds or the lane its allowance.
    pub fn put(&mut self, lane: Lane, key: &[u8], value: &[u8], allowance_bytes: u64) -> Result<bool, AuthorError> {
        self.drafts[lane.index()].put(key, value, allowance_bytes)
    }

    /// Deletes a key; whether it had a value.
    pub fn delete(&mut self, lane: Lane, key: &[u8]) -> bool {
        self.drafts[lane.index()].delete(key)
    }

    /// A neighbour has told of all heads of this node that it has, and what was to be adopted is; or there is none to
    /// ask. Durable lanes may be signed.
    pub fn release(&mut self) {
        self.wait_until = None;
    }

    /// What this node said is known to be lost here: wait for a neighbour, however long that takes people to mend.
    pub fn hold(&mut self, now: Instant) {
        self.wait_until = Some(now + RETURN_WAIT);
    }

    /// Whether durable lanes may be signed at `now`.
    #[must_use]
    pub fn is_released(&self, now: Instant) -> bool {
        self.wait_until.is_none_or(|until| until <= now)
    }

    /// From when on [`Self::seal`] has something to do: `None` if nothing changed. May lie in the past.
    #[must_use]
    pub fn sealable_at(&self) -> Option<Instant> {
        let lane_at = |draft: &Draft| match self.wait_until {
            Some(until) if draft.lane().is_durable() => until,
            _ => Instant(0),
        };
        let at = self.drafts.iter().filter(|draft| draft.is_changed()).map(lane_at).min()?;
        Some(self.twin.paused_until().map_or(at, |until| at.max(until)))
    }

    /// Signs one head for each changed lane. `None` if nothing changed, or nothing may be signed yet. The caller
    /// waits a little after a change (20 ms) so that changes gather.
    pub fn seal(&mut self, now: Now) -> Option<Sealed> {
        if self.twin.paused_until().is_some_and(|until| now.mono < until) {
            return None;
        }
        let released = self.is_released(now.mono);
        let mut sealed = Sealed { held: Vec::new(), writes: Vec::new(), reserves: false };
        if self.twin.resume(now.mono) {
            // The clock, not the twin's sequence, decides who is newer from here on.
            self.next_seq = self.next_seq.max(clock_seq(now.unix));
            self.drafts.iter_mut().for_each(Draft::touch);
        }
        for at in 0..self.drafts.len() {
            let lane = self.drafts[at].lane();
            if !self.drafts[at].is_changed() || (lane.is_durable() && !released) {
                continue;
            }
            let seq = self.take_seq(&mut sealed);
            let (cluster, author) = (self.cluster, self.me);
            let sign = |map: &AuthorMap| {
                let head = Head {
                    cluster,
                    author,
                    lane,
                    seq,
                    root: map.root(),
                    // A lane counts at least 64 bytes an entry of at most 2^42.
                    count: u32::try_from(map.len()).expect("an allowance holds less than 2^32 entries"),
                    size_bytes: map.size_bytes(),
                };
                SignedHead::sign(head, &self.secret)
            };
            let (stored, held) = self.drafts[at].seal(seq, sign);
            sealed.writes.extend(records::advance(stored.as_deref(), &held));
            sealed.held.push(held);
        }
        (!sealed.held.is_empty()).then_some(sealed)
    }

    /// Judges a head of this node that a neighbour shows.
    pub fn offered(&mut self, head: &SignedHead, now: Now, verify: &(impl Verify + ?Sized)) -> Offer {
        assert!(head.head().author == self.me, "only heads of this node are judged here");
        let draft = &self.drafts[head.head().lane.index()];
        let mine = draft.held().map(|held| held.head().rank());
        if mine == Some(head.rank()) {
            return Offer::Current;
        }
        if head.head().cluster != self.cluster || !head.verify(verify) {
            return Offer::Forged;
        }
        let seq = head.head().seq;
        if seq < self.boot_seq {
            let newer = draft.lane().is_durable() && seq > draft.known_seq();
            return if newer { Offer::Adopt } else { Offer::Stale };
        }
        if mine.is_some_and(|mine| head.rank() < mine && mine.0 != seq) {
            return Offer::Stale;
        }
        self.twin.seen(*head, now.mono);
        Offer::Twin
    }

    /// Judges a delta of this node's own lanes that a neighbour sends, and takes it over if it is from before boot and
    /// was lost here. `allowance` as for [`Document::apply`]. After `Adopted`, local configuration is asserted again.
    pub fn heard(
        &mut self,
        delta: &Delta,
        allowance: impl Fn(&NodeKey, Lane) -> Option<u64>,
        now: Now,
        verify: &(impl Verify + ?Sized),
    ) -> Heard {
        match self.offered(&delta.head, now, verify) {
            Offer::Adopt => {}
            other => return Heard::Not(other),
        }
        match self.before.apply(delta, allowance, verify) {
            Applied::Advanced { held, .. } => {
                self.adopt(*held.head(), held.map().clone());
                Heard::Adopted
            }
            Applied::NeedsRepair(repair) => Heard::NeedsRepair(repair),
            _ => Heard::NotAllowed,
        }
    }

    /// Takes over the content of a head of this node from before boot: whatever was not rewritten since. The caller
    /// then asserts its local configuration again. Anything else than such a head changes nothing.
    pub fn adopt(&mut self, head: SignedHead, map: AuthorMap) {
        assert!(head.head().author == self.me && map.matches(head.head()), "only proved content is adopted");
        let boot_seq = self.boot_seq;
        let draft = &mut self.drafts[head.head().lane.index()];
        if head.head().seq < boot_seq && head.head().seq > draft.known_seq() && draft.lane().is_durable() {
            self.before.place(Arc::new(Held::restored(head, map.clone()).expect("it matches, as asserted")));
            draft.adopt(head, map, boot_seq);
        }
    }

    /// Whether the lane has changes that no head holds yet.
    #[must_use]
    pub fn has_unsealed(&self, lane: Lane) -> bool {
        self.drafts[lane.index()].is_changed()
    }

    /// The twin that was seen last, and until when publishing rests.
    #[must_use]
    pub const fn twin(&self) -> Option<&Twin> {
        self.twin.last()
    }

    fn take_seq(&mut self, sealed: &mut Sealed) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        if seq > self.reserved {
            self.reserved = seq + SEQ_BLOCK;
            sealed.writes.push(records::reserve(self.reserved));
            sealed.reserves = true;
        }
        seq
    }
}

/// The sequence that the clock stands for.
fn clock_seq(now: UnixMs) -> u64 {
    (now.0 / 1000).min(CLOCK_SECONDS_MAX) << SEQ_PER_SECOND_SHIFT
}

#[cfg(test)]
mod tests;
