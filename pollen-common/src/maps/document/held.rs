//! One lane of one author with the head that proves it, and the deletions remembered for neighbours that are behind.
//! Invariant: the map is exactly the content that the head names.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::maps::author_map::AuthorMap;
use crate::maps::delta::{Built, Delta};
use crate::maps::head::SignedHead;

/// The most deletions remembered for one lane: enough for the bursts that gossip forwards, and at most 32 KiB of keys
/// for each lane. Neighbours further behind copy by trie.
const DELETIONS_MAX: usize = 256;

/// Keys lately removed from a lane.
#[derive(Clone, Debug, Default)]
pub(super) struct Deletions {
    /// All deletions after this sequence are remembered.
    floor: u64,
    /// Key and the sequence of the head that first lacked it; oldest in front.
    ring: VecDeque<(Box<[u8]>, u64)>,
}

impl Deletions {
    fn push(&mut self, key: Box<[u8]>, seq: u64) {
        if self.ring.len() == DELETIONS_MAX
            && let Some((_, forgotten)) = self.ring.pop_front()
        {
            self.floor = self.floor.max(forgotten);
        }
        self.ring.push_back((key, seq));
    }
}

/// What this replica holds of one lane of one author.
#[derive(Clone, Debug)]
pub struct Held {
    head: SignedHead,
    map: AuthorMap,
    deletions: Deletions,
}

impl Held {
    /// What an author seals: `removed` left the map of `previous` with this head.
    #[must_use]
    pub fn sealed(head: SignedHead, map: AuthorMap, previous: Option<&Self>, removed: Vec<Box<[u8]>>) -> Self {
        assert!(map.matches(head.head()), "a head is sealed over its content");
        // Before the first head nothing was ever deleted, so all deletions are known.
        let mut deletions = previous.map_or_else(Deletions::default, |previous| previous.deletions.clone());
        removed.into_iter().for_each(|key| deletions.push(key, head.head().seq));
        Self { head, map, deletions }
    }

    /// From the disk. `None` if the map is not what the head names.
    #[must_use]
    pub fn restored(head: SignedHead, map: AuthorMap) -> Option<Self> {
        let deletions = Deletions { floor: head.head().seq, ring: VecDeque::new() };
        map.matches(head.head()).then_some(Self { head, map, deletions })
    }

    pub(super) fn advanced(head: SignedHead, map: AuthorMap, deletions: Deletions) -> Self {
        Self { head, map, deletions }
    }

    /// Content copied by trie: which deletions led to it is not known, but what went is. Each is remembered as of
    /// this head, which at worst costs a neighbour in between a copy of its own.
    pub(super) fn copied(head: SignedHead, map: AuthorMap, previous: Option<&Self>) -> Self {
        let seq = head.head().seq;
        let mut deletions = previous.map_or_else(Deletions::default, |previous| previous.deletions.clone());
        deletions.floor = seq;
        if let Some(previous) = previous {
            let gone = map.trie().diff(previous.map.trie()).gone;
            gone.into_iter().for_each(|(_, entry)| deletions.push(entry.key().into(), seq));
        }
        Self { head, map, deletions }
    }

    #[must_use]
    pub const fn head(&self) -> &SignedHead {
        &self.head
    }

    #[must_use]
    pub const fn map(&self) -> &AuthorMap {
        &self.map
    }

    pub(super) fn build_delta(&self, base: u64) -> Built {
        let deletions = self.deletions.ring.iter().map(|(key, seq)| (key.as_ref(), *seq));
        let gone = deletions.filter(|(key, _)| self.map.get(key).is_none());
        let mut built = Delta::build(&self.head, self.map.iter(), gone, base);
        // One that holds nothing of the lane has nothing to delete.
        built.complete &= base == 0 || base >= self.deletions.floor;
        built
    }
}

/// The lane, if a delta's puts alone are exactly what its head names.
pub(super) fn whole(delta: &Delta) -> Option<AuthorMap> {
    if u32::try_from(delta.puts.len()) != Ok(delta.head.head().count) {
        return None;
    }
    let mut map = AuthorMap::new();
    delta.puts.iter().for_each(|entry| map.insert(entry.clone()));
    map.matches(delta.head.head()).then_some(map)
}

/// `mine` with a delta's changes: its map, which may or may not be what the delta's head names, and the deletions
/// to remember if it is.
pub(super) fn merged(mine: Option<&Held>, delta: &Delta) -> (AuthorMap, Deletions) {
    let mut map = mine.map(|held| held.map.clone()).unwrap_or_default();
    let mut deletions = mine.map_or_else(
        || Deletions { floor: delta.head.head().seq, ring: VecDeque::new() },
        |held| held.deletions.clone(),
    );
    let seq = mine.map_or(0, |held| held.head.head().seq);
    if delta.base > seq {
        // What was put and removed between is known to neither side.
        deletions.floor = deletions.floor.max(delta.base);
    }
    // Newest of each key, in case a sender repeats itself.
    let newest: BTreeMap<&[u8], u64> = delta.deletions.iter().map(|(key, seq)| (key.as_ref(), *seq)).collect();
    let mut in_order: Vec<_> = newest.into_iter().filter(|(_, at)| *at > seq).collect();
    in_order.sort_by_key(|(_, at)| *at);
    for (key, at) in in_order {
        if map.get(key).is_some_and(|entry| entry.seq() < at) {
            map.remove(key);
        }
        deletions.push(key.into(), at);
    }
    for entry in &delta.puts {
        if map.get(entry.key()).is_none_or(|held| held.seq() < entry.seq()) {
            map.insert(entry.clone());
        }
    }
    (map, deletions)
}
