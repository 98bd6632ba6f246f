//! All lanes of all authors that stand, as this replica holds them. Owns which head is current and the proof that
//! its content is whole; must not know what entries mean, nor decide who stands (it asks).
//! Invariant: what is held depends on who stands and on signed sizes alone, never on arrival order or a clock; a
//! held head never regresses while its author stands.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::author_map::AuthorMap;
use super::delta::{Built, Delta};
use super::head::{Lane, SignedHead, path_of_author};
use super::repair::Repair;
use crate::identity::{ClusterId, Digest, NodeKey, Verify};
use crate::time::Instant;
use crate::trie::Trie;

mod held;
mod shelf;

pub use held::Held;
use shelf::Shelf;

/// What applying a delta did. Only `Advanced` changed the document.
#[derive(Debug)]
pub enum Applied {
    /// The delta's head is current now, with exactly its content.
    Advanced { previous: Option<Arc<Held>>, held: Arc<Held> },
    /// This head is held already.
    Same,
    /// A greater head is held: answer with it.
    Older { mine: Arc<Held> },
    /// The author does not stand here. No fault of the sender: it may know more of the roll.
    NotStanding,
    /// The lane is beyond its author's allowance, so it is in no document.
    TooLarge,
    /// Of another cluster, or not signed by its author: the sender forwarded what it should have refused.
    BadSignature,
    /// The head is good, but the delta does not lead to its content: copy it by trie.
    NeedsRepair(Box<Repair>),
}

/// Two heads that one author signed at one sequence: a copied key, or a disk brought back from the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    pub lesser: SignedHead,
    pub greater: SignedHead,
}

/// What a change of the roll did to the document.
#[derive(Debug, Default)]
pub struct Settled {
    /// Lanes that left, because the author no longer stands or the lane no longer fits. Their records go too, but for
    /// this node's own, whose records only its authoring writes.
    pub left: Vec<Arc<Held>>,
    /// Lanes that came back from the shelf.
    pub back: Vec<Arc<Held>>,
}

/// The document. A clone shares all content.
#[derive(Clone, Debug)]
pub struct Document {
    cluster: ClusterId,
    lanes: [Trie<Arc<Held>>; 3],
    /// At most one for each lane of each author that ever stood.
    evidence: BTreeMap<(NodeKey, Lane), Evidence>,
    shelf: Shelf,
}

impl Document {
    #[must_use]
    pub fn new(cluster: ClusterId) -> Self {
        Self { cluster, lanes: Default::default(), evidence: BTreeMap::new(), shelf: Shelf::default() }
    }

    #[must_use]
    pub const fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    #[must_use]
    pub fn held(&self, author: &NodeKey, lane: Lane) -> Option<&Arc<Held>> {
        self.held_at(lane, &path_of_author(author))
    }

    /// What is held at a place in a lane's trie.
    #[must_use]
    pub fn held_at(&self, lane: Lane, path: &Digest) -> Option<&Arc<Held>> {
        self.lanes[lane.index()].get(path)
    }

    /// The digest of a whole lane over all authors. Comparable between replicas whose rolls are equal.
    #[must_use]
    pub fn root(&self, lane: Lane) -> Digest {
        self.lanes[lane.index()].root()
    }

    /// The heads of a lane, by the path of their author.
    #[must_use]
    pub const fn trie(&self, lane: Lane) -> &Trie<Arc<Held>> {
        &self.lanes[lane.index()]
    }

    /// All of a lane, in the order of the authors' paths.
    pub fn iter(&self, lane: Lane) -> impl Iterator<Item = &Arc<Held>> {
        self.lanes[lane.index()].values()
    }

    /// Counted bytes of all lanes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        Lane::ALL.into_iter().flat_map(|lane| self.iter(lane)).map(|held| held.map().size_bytes()).sum()
    }

    /// Two heads at one sequence, for every lane where they were seen.
    pub fn evidence(&self) -> impl Iterator<Item = &Evidence> {
        self.evidence.values()
    }

    /// Applies a delta, wholly or not at all. `allowance` gives the bytes that a lane may count, `None` if its author
    /// does not stand.
    pub fn apply(
        &mut self,
        delta: &Delta,
        allowance: impl Fn(&NodeKey, Lane) -> Option<u64>,
        verify: &(impl Verify + ?Sized),
    ) -> Applied {
        let head = &delta.head;
        let (allowance, mine) = match self.examine(head, allowance, verify) {
            Ok(known) => known,
            Err(settled) => return settled,
        };
        let (map, deletions) = held::merged(mine.as_deref(), delta);
        if map.matches(head.head()) {
            let held = Held::advanced(*head, map, deletions);
            return self.put(held);
        }
        // Everything the lane has is newer than the base, as after its author booted: what is held does not matter.
        if let Some(whole) = held::whole(delta) {
            return self.put(Held::copied(*head, whole, mine.as_deref()));
        }
        Applied::NeedsRepair(Box::new(Repair::new(*head, map, allowance)))
    }

    /// Takes content that a repair has proved. Who stands may have changed since it began, so that is asked again.
    pub fn commit(
        &mut self,
        head: SignedHead,
        map: AuthorMap,
        allowance: impl Fn(&NodeKey, Lane) -> Option<u64>,
        verify: &(impl Verify + ?Sized),
    ) -> Applied {
        let mine = match self.examine(&head, allowance, verify) {
            Ok((_, mine)) => mine,
            Err(settled) => return settled,
        };
        assert!(map.matches(head.head()), "a repair completes only with the content that its head names");
        self.put(Held::copied(head, map, mine.as_deref()))
    }

    /// Takes this node's own newest lane, as its authoring sealed it, or a record of the disk. Not asked: whether the
    /// author stands; the next [`Self::settle`] does.
    pub fn place(&mut self, held: Arc<Held>) {
        let head = held.head();
        self.lanes[head.head().lane.index()].insert(path_of_author(&head.head().author), head.digest(), held);
    }

    /// Brings the document in line with who stands now: lanes whose author does not stand, or that no longer fit,
    /// leave it at once, and are kept aside for a while in case a deny is lifted.
    pub fn settle(&mut self, allowance: impl Fn(&NodeKey, Lane) -> Option<u64>, now: Instant) -> Settled {
        let fits = |held: &Held| {
            let head = held.head().head();
            allowance(&head.author, head.lane).is_some_and(|bytes| head.size_bytes <= bytes)
        };
        let left: Vec<_> =
            Lane::ALL.into_iter().flat_map(|lane| self.iter(lane)).filter(|held| !fits(held)).cloned().collect();
        let back = self.shelf.take(fits, now);
        for held in &left {
            let head = held.head().head();
            self.lanes[head.lane.index()].remove(&path_of_author(&head.author));
            self.shelf.keep(held.clone(), now);
        }
        let newer = |held: &Arc<Held>| {
            let head = held.head().head();
            self.held(&head.author, head.lane).is_none_or(|mine| mine.head().rank() < held.head().rank())
        };
        let back: Vec<_> = back.into_iter().filter(newer).collect();
        back.iter().for_each(|held| self.place(held.clone()));
        Settled { left, back }
    }

    /// The first steps of applying: everything that needs no content.
    fn examine(
        &mut self,
        signed: &SignedHead,
        allowance: impl Fn(&NodeKey, Lane) -> Option<u64>,
        verify: &(impl Verify + ?Sized),
    ) -> Result<(u64, Option<Arc<Held>>), Applied> {
        let head = signed.head();
        if head.cluster != self.cluster {
            return Err(Applied::BadSignature);
        }
        let allowance = allowance(&head.author, head.lane).ok_or(Applied::NotStanding)?;
        let mine = self.held(&head.author, head.lane).cloned();
        if let Some(mine) = &mine {
            if mine.head().rank() == signed.rank() {
                return Err(Applied::Same);
            }
            // A lesser head at another sequence is stale, whoever signed it: no need to check.
            if signed.head().seq < mine.head().head().seq {
                return Err(Applied::Older { mine: mine.clone() });
            }
        }
        if head.size_bytes > allowance {
            return Err(Applied::TooLarge);
        }
        if !signed.verify(verify) {
            return Err(Applied::BadSignature);
        }
        if let Some(mine) = &mine {
            self.note_fork(mine.head(), signed);
            if signed.rank() < mine.head().rank() {
                return Err(Applied::Older { mine: mine.clone() });
            }
        }
        Ok((allowance, mine))
    }

    /// Keeps the first proof that an author signed two heads at one sequence. Both signatures hold.
    fn note_fork(&mut self, mine: &SignedHead, theirs: &SignedHead) {
        if mine.head().seq != theirs.head().seq || mine.rank() == theirs.rank() {
            return;
        }
        let (lesser, greater) = if mine.rank() < theirs.rank() { (mine, theirs) } else { (theirs, mine) };
        self.evidence
            .entry((mine.head().author, mine.head().lane))
            .or_insert(Evidence { lesser: *lesser, greater: *greater });
    }

    fn put(&mut self, held: Held) -> Applied {
        let head = held.head().head();
        let previous = self.held(&head.author, head.lane).cloned();
        let held = Arc::new(held);
        self.place(held.clone());
        Applied::Advanced { previous, held }
    }
}

impl Held {
    /// What changed in this lane after `base`, for a neighbour that holds that.
    #[must_use]
    pub fn delta(&self, base: u64) -> Built {
        self.build_delta(base)
    }
}
