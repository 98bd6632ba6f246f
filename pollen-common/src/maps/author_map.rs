//! The entries of one lane of one author. Owns count and bytes beside the trie, so that they cannot disagree with it;
//! must not know heads. A clone shares everything.

use alloc::sync::Arc;

use super::entry::{Entry, path_of_key};
use super::head::Head;
use crate::identity::Digest;
use crate::trie::Trie;

/// A set of entries by key.
#[derive(Clone, Debug, Default)]
pub struct AuthorMap {
    trie: Trie<Arc<Entry>>,
    size_bytes: u64,
}

impl AuthorMap {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Arc<Entry>> {
        self.trie.get(&path_of_key(key))
    }

    /// The entry at a place in the trie.
    #[must_use]
    pub fn at(&self, path: &Digest) -> Option<&Arc<Entry>> {
        self.trie.get(path)
    }

    /// Puts an entry in, replacing the one of its key.
    pub fn insert(&mut self, entry: Arc<Entry>) {
        let path = entry.path();
        let before = self.trie.get(&path).map_or(0, |entry| entry.size_bytes());
        self.size_bytes = self.size_bytes - before + entry.size_bytes();
        self.trie.insert(path, entry.digest(), entry);
    }

    /// Takes the entry of `key` out.
    pub fn remove(&mut self, key: &[u8]) -> Option<Arc<Entry>> {
        self.remove_at(&path_of_key(key))
    }

    /// Takes the entry at a place in the trie out.
    pub fn remove_at(&mut self, path: &Digest) -> Option<Arc<Entry>> {
        let entry = self.trie.get(path)?.clone();
        self.trie.remove(path);
        self.size_bytes -= entry.size_bytes();
        Some(entry)
    }

    /// All entries, in the order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.trie.values()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.trie.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.trie.is_empty()
    }

    /// What all entries count toward their author's quota.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    #[must_use]
    pub fn root(&self) -> Digest {
        self.trie.root()
    }

    #[must_use]
    pub const fn trie(&self) -> &Trie<Arc<Entry>> {
        &self.trie
    }

    /// Whether this is exactly the content that `head` names.
    #[must_use]
    pub fn matches(&self, head: &Head) -> bool {
        self.root() == head.root && u32::try_from(self.len()) == Ok(head.count) && self.size_bytes == head.size_bytes
    }
}
