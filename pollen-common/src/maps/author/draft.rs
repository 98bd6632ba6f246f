//! One lane of this node: what is sealed and what changed since. Owns the sum of both; signs nothing itself.
//! Invariant: the counted bytes are those that the next head will count.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::AuthorError;
use crate::maps::author_map::AuthorMap;
use crate::maps::document::Held;
use crate::maps::entry::{Entry, EntryError, VALUE_BYTES_MAX, check_key, size_bytes};
use crate::maps::head::{Lane, SignedHead};

/// Keys deleted since boot that are remembered, so that adopting older content of ours does not bring them back.
/// Adoption happens once, soon after boot: few deletions precede it.
const DELETED_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Draft {
    lane: Lane,
    /// Newest sealed or adopted.
    held: Option<Arc<Held>>,
    /// What the records on disk hold, the batches under way included.
    stored: Option<Arc<Held>>,
    /// The greatest sequence of the content from before boot.
    known_seq: u64,
    /// Unsealed: `None` deletes.
    changes: BTreeMap<Box<[u8]>, Option<Box<[u8]>>>,
    size_bytes: u64,
    deleted: VecDeque<Box<[u8]>>,
    changed: bool,
}

impl Draft {
    pub(super) fn new(lane: Lane, restored: Option<Arc<Held>>) -> Self {
        Self {
            lane,
            known_seq: restored.as_ref().map_or(0, |held| held.head().head().seq),
            size_bytes: restored.as_ref().map_or(0, |held| held.map().size_bytes()),
            stored: restored.clone(),
            held: restored,
            changes: BTreeMap::new(),
            deleted: VecDeque::new(),
            // A live lane is empty at boot, and neighbours that hold the one from before must hear so.
            changed: !lane.is_durable(),
        }
    }

    pub(super) const fn lane(&self) -> Lane {
        self.lane
    }

    pub(super) const fn held(&self) -> Option<&Arc<Held>> {
        self.held.as_ref()
    }

    pub(super) const fn known_seq(&self) -> u64 {
        self.known_seq
    }

    pub(super) const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) const fn is_changed(&self) -> bool {
        self.changed
    }

    /// Makes the next round seal this lane even if nothing changed.
    pub(super) fn touch(&mut self) {
        self.changed = true;
    }

    pub(super) fn value(&self, key: &[u8]) -> Option<&[u8]> {
        match self.changes.get(key) {
            Some(change) => change.as_deref(),
            None => self.sealed(key).map(|entry| entry.value()),
        }
    }

    fn sealed(&self, key: &[u8]) -> Option<&Arc<Entry>> {
        self.held.as_ref().and_then(|held| held.map().get(key))
    }

    pub(super) fn keys(&self, prefix: &[u8]) -> Vec<Box<[u8]>> {
        let sealed = self.held.iter().flat_map(|held| held.map().iter()).map(|entry| entry.key());
        let sealed = sealed.filter(|key| !self.changes.contains_key(*key));
        let changed = self.changes.iter().filter(|(_, value)| value.is_some()).map(|(key, _)| key.as_ref());
        let mut keys: Vec<Box<[u8]>> =
            sealed.chain(changed).filter(|key| key.starts_with(prefix)).map(Into::into).collect();
        keys.sort_unstable();
        keys
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8], allowance_bytes: u64) -> Result<bool, AuthorError> {
        check_key(key)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(EntryError::Value.into());
        }
        if self.value(key) == Some(value) {
            return Ok(false);
        }
        let before = self.value(key).map_or(0, |value| size_bytes(key, value));
        let after = self.size_bytes - before + size_bytes(key, value);
        if after > allowance_bytes {
            return Err(AuthorError::TooLarge { lane: self.lane, size_bytes: after, allowance_bytes });
        }
        self.size_bytes = after;
        self.changes.insert(key.into(), Some(value.into()));
        self.changed = true;
        Ok(true)
    }

    pub(super) fn delete(&mut self, key: &[u8]) -> bool {
        if self.lane.is_durable() && !self.deleted.iter().any(|deleted| **deleted == *key) {
            if self.deleted.len() == DELETED_MAX {
                self.deleted.pop_front();
            }
            self.deleted.push_back(key.into());
        }
        let Some(value) = self.value(key) else { return false };
        self.size_bytes -= size_bytes(key, value);
        if self.sealed(key).is_some() {
            self.changes.insert(key.into(), None);
            self.changed = true;
        } else {
            // Put and deleted between two heads: nobody heard of it.
            self.changes.remove(key);
        }
        true
    }

    /// Applies all changes under one sequence; what the disk held before, and the new lane.
    pub(super) fn seal(
        &mut self,
        seq: u64,
        sign: impl FnOnce(&AuthorMap) -> SignedHead,
    ) -> (Option<Arc<Held>>, Arc<Held>) {
        let mut map = self.held.as_ref().map(|held| held.map().clone()).unwrap_or_default();
        let mut removed = Vec::new();
        for (key, change) in core::mem::take(&mut self.changes) {
            match change {
                Some(value) => {
                    let entry = Entry::new(&key, seq, &value).expect("bounds were checked when it was put");
                    map.insert(Arc::new(entry));
                }
                None => removed.extend(map.remove(&key).map(|_| key)),
            }
        }
        assert!(map.size_bytes() == self.size_bytes, "what was counted is what is sealed");
        let held = Arc::new(Held::sealed(sign(&map), map, self.held.as_deref(), removed));
        self.held = Some(held.clone());
        self.changed = false;
        (self.stored.replace(held.clone()), held)
    }

    /// Takes over older content of this node that the disk did not have, but for what was rewritten since boot.
    pub(super) fn adopt(&mut self, head: SignedHead, map: AuthorMap, boot_seq: u64) {
        self.known_seq = head.head().seq;
        let signed_since_boot = self.held.as_ref().filter(|held| held.head().head().seq >= boot_seq).cloned();
        let keep = |draft: &Self, key: &[u8]| {
            draft.changes.contains_key(key) || draft.deleted.iter().any(|deleted| **deleted == *key)
        };
        match signed_since_boot {
            None => {
                // Neighbours hold this very head: continue from it.
                let unsaid: Vec<_> = map.iter().filter(|entry| keep(self, entry.key())).cloned().collect();
                for entry in unsaid {
                    self.changes.entry(entry.key().into()).or_insert(None);
                }
                self.held = Held::restored(head, map).map(Arc::new);
            }
            Some(mine) => {
                // Neighbours may hold either; say again what differs.
                for entry in map.iter().filter(|entry| mine.map().get(entry.key()).is_none()) {
                    if !keep(self, entry.key()) {
                        self.changes.insert(entry.key().into(), Some(entry.value().into()));
                    }
                }
                for entry in mine.map().iter().filter(|entry| entry.seq() < boot_seq) {
                    let theirs = map.get(entry.key());
                    if !self.changes.contains_key(entry.key()) && theirs.map(|e| e.value()) != Some(entry.value()) {
                        self.changes.insert(entry.key().into(), theirs.map(|e| e.value().into()));
                    }
                }
            }
        }
        self.recount();
        self.changed = true;
    }

    /// Drops changes that change nothing, and counts anew.
    fn recount(&mut self) {
        let sealed = |key: &[u8]| self.held.as_ref().and_then(|held| held.map().get(key));
        let idle: Vec<Box<[u8]>> = self
            .changes
            .iter()
            .filter(|(key, change)| sealed(key).map(|entry| entry.value()) == change.as_deref())
            .map(|(key, _)| key.clone())
            .collect();
        idle.iter().for_each(|key| drop(self.changes.remove(key)));
        let mut size = self.held.as_ref().map_or(0, |held| held.map().size_bytes());
        for (key, change) in &self.changes {
            size -= self.sealed(key).map_or(0, |entry| entry.size_bytes());
            size += change.as_ref().map_or(0, |value| size_bytes(key, value));
        }
        self.size_bytes = size;
    }
}
