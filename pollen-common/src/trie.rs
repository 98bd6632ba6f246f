//! A Merkle trie whose shape depends on its set of items alone, so that equal sets have equal roots however they
//! came about. Serves author maps, a lane's document and the roll. Persistent: a clone is one reference count,
//! and an update shares all it does not touch. Owns digests and shape; knows nothing of what the items mean.
//!
//! `T(S, d)` over the items whose paths share `d` nibbles: none is zero; at most [`BUCKET_MAX`] is
//! `bucket(count, (path, digest)…)` in path order; more is `node(16 children by nibble d)`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::ControlFlow;

use crate::hash::{Context, digest};
use crate::identity::Digest;

mod codec;
mod diff;
mod walk;
pub use codec::SUMMARY_BYTES_MAX;
pub use diff::Diff;
pub use walk::{Found, Walk};

/// The most items that a bucket holds: at 64 bytes an item, a summary fits comfortably into one message.
pub const BUCKET_MAX: usize = 32;

/// The nibbles of a path.
pub const DEPTH_MAX: u8 = 64;

/// The first nibbles of a path: the place of a subtree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// Zero beyond `len`.
    path: Digest,
    len: u8,
}

impl Prefix {
    /// The whole trie.
    pub const ROOT: Self = Self { path: Digest::ZERO, len: 0 };

    /// From a peer's words: `None` where `len` is too large or a nibble beyond it is set.
    #[must_use]
    pub fn new(path: Digest, len: u8) -> Option<Self> {
        (len <= DEPTH_MAX && (len..DEPTH_MAX).all(|at| nibble(&path, at) == 0)).then_some(Self { path, len })
    }

    #[must_use]
    pub const fn path(&self) -> &Digest {
        &self.path
    }

    #[must_use]
    pub const fn len(&self) -> u8 {
        self.len
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The child at `n` (0 to 15), `None` at the full depth.
    #[must_use]
    pub fn child(mut self, n: u8) -> Option<Self> {
        if self.len == DEPTH_MAX || n > 15 {
            return None;
        }
        let byte = &mut self.path.0[usize::from(self.len / 2)];
        *byte |= if self.len.is_multiple_of(2) { n << 4 } else { n };
        self.len += 1;
        Some(self)
    }

    /// Whether the item at `path` lies in this subtree.
    #[must_use]
    pub fn contains(&self, path: &Digest) -> bool {
        (0..self.len).all(|at| nibble(path, at) == nibble(&self.path, at))
    }
}

fn nibble(path: &Digest, at: u8) -> u8 {
    let byte = path.0[usize::from(at / 2)];
    if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
}

/// What one subtree says of itself to another replica.
#[expect(clippy::large_enum_variant, reason = "a full bucket holds four times that, and branches are the usual answer")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Summary {
    /// Digests of the sixteen children, zero where empty.
    Branch([Digest; 16]),
    /// All items, as (path, digest) in path order; at most [`BUCKET_MAX`].
    Bucket(Vec<(Digest, Digest)>),
}

impl Summary {
    /// The digest that a parent holds for this subtree. A bucket out of order, repeated or too long has none.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Branch(children) => Some(branch_digest(children)),
            Self::Bucket(items) => {
                let ordered = items.windows(2).all(|pair| pair[0].0 < pair[1].0);
                (ordered && items.len() <= BUCKET_MAX).then(|| bucket_digest(items.iter().copied()))
            }
        }
    }
}

fn bucket_digest(items: impl ExactSizeIterator<Item = (Digest, Digest)>) -> Digest {
    if items.len() == 0 {
        return Digest::ZERO;
    }
    let mut bytes = Vec::with_capacity(1 + 64 * items.len());
    // At most BUCKET_MAX.
    bytes.push(u8::try_from(items.len()).unwrap_or(u8::MAX));
    for (path, item) in items {
        bytes.extend_from_slice(&path.0);
        bytes.extend_from_slice(&item.0);
    }
    digest(Context::Bucket, &[&bytes])
}

fn branch_digest(children: &[Digest; 16]) -> Digest {
    digest(Context::Node, &children.each_ref().map(|child| &child.0[..]))
}

#[derive(Clone, Debug)]
struct Item<V> {
    path: Digest,
    digest: Digest,
    value: V,
}

#[derive(Debug)]
struct Tree<V> {
    digest: Digest,
    count: usize,
    shape: Shape<V>,
}

#[derive(Debug)]
enum Shape<V> {
    Bucket(Vec<Item<V>>),
    Branch([Option<Arc<Tree<V>>>; 16]),
}

/// A set of items, each at its 32-byte path with the digest of its content; `V` rides along and is not hashed.
#[derive(Debug)]
pub struct Trie<V> {
    root: Option<Arc<Tree<V>>>,
}

impl<V> Clone for Trie<V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone() }
    }
}

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self { root: None }
    }
}

impl<V: Clone> Trie<V> {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The digest of the whole set; zero when empty.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.root.as_ref().map_or(Digest::ZERO, |tree| tree.digest)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.root.as_ref().map_or(0, |tree| tree.count)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    #[must_use]
    pub fn get(&self, path: &Digest) -> Option<&V> {
        self.item(path).map(|item| &item.value)
    }

    /// The digest of the item at `path`.
    #[must_use]
    pub fn digest_of(&self, path: &Digest) -> Option<Digest> {
        self.item(path).map(|item| item.digest)
    }

    fn item(&self, path: &Digest) -> Option<&Item<V>> {
        let mut tree = self.root.as_deref()?;
        for depth in 0.. {
            match &tree.shape {
                Shape::Bucket(items) => {
                    return items.binary_search_by(|item| item.path.cmp(path)).ok().map(|at| &items[at]);
                }
                Shape::Branch(children) => tree = children[usize::from(nibble(path, depth))].as_deref()?,
            }
        }
        None
    }

    /// Puts an item in, replacing what was at its path.
    pub fn insert(&mut self, path: Digest, digest: Digest, value: V) {
        self.root = Some(Arc::new(inserted(self.root.as_deref(), 0, Item { path, digest, value })));
    }

    /// Takes the item at `path` out; whether there was one.
    pub fn remove(&mut self, path: &Digest) -> bool {
        let Some(tree) = self.root.as_deref().filter(|_| self.item(path).is_some()) else { return false };
        self.root = removed(tree, 0, path).map(Arc::new);
        true
    }

    /// The paths of all items under `prefix`, in order.
    #[must_use]
    pub fn paths_under(&self, prefix: &Prefix) -> Vec<Digest> {
        let mut places = alloc::vec![*prefix];
        let mut paths = Vec::new();
        while let Some(place) = places.pop() {
            match self.summary(&place) {
                Summary::Bucket(items) => paths.extend(items.iter().map(|(path, _)| *path)),
                Summary::Branch(_) => places.extend((0..16).rev().filter_map(|n| place.child(n))),
            }
        }
        paths
    }

    /// All values in path order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, _, value)| value)
    }

    /// All items in path order, as path, digest, value.
    pub fn iter(&self) -> impl Iterator<Item = (&Digest, &Digest, &V)> {
        let mut stack: Vec<&Tree<V>> = self.root.as_deref().into_iter().collect();
        let mut bucket: core::slice::Iter<'_, Item<V>> = [].iter();
        core::iter::from_fn(move || {
            loop {
                if let Some(item) = bucket.next() {
                    return Some((&item.path, &item.digest, &item.value));
                }
                match &stack.pop()?.shape {
                    Shape::Bucket(items) => bucket = items.iter(),
                    Shape::Branch(children) => stack.extend(children.iter().rev().filter_map(Option::as_deref)),
                }
            }
        })
    }

    /// What this replica says of the subtree at `prefix`.
    #[must_use]
    pub fn summary(&self, prefix: &Prefix) -> Summary {
        match self.find(prefix) {
            Place::Empty => Summary::Bucket(Vec::new()),
            Place::Tree(tree) => match &tree.shape {
                Shape::Bucket(items) => Summary::Bucket(items.iter().map(|i| (i.path, i.digest)).collect()),
                Shape::Branch(children) => Summary::Branch(child_digests(children)),
            },
            Place::Within(items) => {
                Summary::Bucket(items.iter().filter(|i| prefix.contains(&i.path)).map(|i| (i.path, i.digest)).collect())
            }
        }
    }

    /// The digest of the subtree at `prefix`, zero when empty.
    #[must_use]
    pub fn digest_at(&self, prefix: &Prefix) -> Digest {
        match self.find(prefix) {
            Place::Empty => Digest::ZERO,
            Place::Tree(tree) => tree.digest,
            Place::Within(items) => {
                let inside: Vec<_> =
                    items.iter().filter(|i| prefix.contains(&i.path)).map(|i| (i.path, i.digest)).collect();
                bucket_digest(inside.into_iter())
            }
        }
    }

    fn find(&self, prefix: &Prefix) -> Place<'_, V> {
        let found = (0..prefix.len).try_fold(self.root.as_deref(), |tree, depth| match tree.map(|t| &t.shape) {
            None => ControlFlow::Break(Place::Empty),
            Some(Shape::Bucket(items)) => ControlFlow::Break(Place::Within(items)),
            Some(Shape::Branch(children)) => {
                ControlFlow::Continue(children[usize::from(nibble(&prefix.path, depth))].as_deref())
            }
        });
        match found {
            ControlFlow::Break(place) => place,
            ControlFlow::Continue(tree) => tree.map_or(Place::Empty, Place::Tree),
        }
    }
}

enum Place<'a, V> {
    Empty,
    Tree(&'a Tree<V>),
    /// The prefix is longer than the bucket's place: some of its items may lie inside.
    Within(&'a [Item<V>]),
}

fn child_digests<V>(children: &[Option<Arc<Tree<V>>>; 16]) -> [Digest; 16] {
    children.each_ref().map(|child| child.as_ref().map_or(Digest::ZERO, |tree| tree.digest))
}

fn bucket<V: Clone>(items: Vec<Item<V>>) -> Tree<V> {
    Tree {
        digest: bucket_digest(items.iter().map(|i| (i.path, i.digest))),
        count: items.len(),
        shape: Shape::Bucket(items),
    }
}

fn branch<V: Clone>(children: [Option<Arc<Tree<V>>>; 16]) -> Tree<V> {
    Tree {
        digest: branch_digest(&child_digests(&children)),
        count: children.iter().flatten().map(|tree| tree.count).sum(),
        shape: Shape::Branch(children),
    }
}

/// The tree of `items` (in path order) at `depth`.
fn built<V: Clone>(items: Vec<Item<V>>, depth: u8) -> Tree<V> {
    if items.len() <= BUCKET_MAX {
        return bucket(items);
    }
    let mut parts: [Vec<Item<V>>; 16] = core::array::from_fn(|_| Vec::new());
    for item in items {
        parts[usize::from(nibble(&item.path, depth))].push(item);
    }
    branch(parts.map(|part| (!part.is_empty()).then(|| Arc::new(built(part, depth + 1)))))
}

fn inserted<V: Clone>(tree: Option<&Tree<V>>, depth: u8, item: Item<V>) -> Tree<V> {
    match tree.map(|t| &t.shape) {
        None => bucket(alloc::vec![item]),
        Some(Shape::Bucket(items)) => {
            let mut items = items.clone();
            match items.binary_search_by(|other| other.path.cmp(&item.path)) {
                Ok(at) => items[at] = item,
                Err(at) => items.insert(at, item),
            }
            built(items, depth)
        }
        Some(Shape::Branch(children)) => {
            let mut children = children.clone();
            let child = &mut children[usize::from(nibble(&item.path, depth))];
            *child = Some(Arc::new(inserted(child.as_deref(), depth + 1, item)));
            branch(children)
        }
    }
}

/// `tree` without the item at `path`, which is in it; `None` when nothing is left.
fn removed<V: Clone>(tree: &Tree<V>, depth: u8, path: &Digest) -> Option<Tree<V>> {
    match &tree.shape {
        Shape::Bucket(items) => {
            let rest: Vec<_> = items.iter().filter(|item| item.path != *path).cloned().collect();
            (!rest.is_empty()).then(|| bucket(rest))
        }
        Shape::Branch(children) => {
            let mut children = children.clone();
            let child = &mut children[usize::from(nibble(path, depth))];
            *child = child.as_deref().and_then(|tree| removed(tree, depth + 1, path)).map(Arc::new);
            if tree.count - 1 > BUCKET_MAX {
                return Some(branch(children));
            }
            let rest = Trie { root: Some(Arc::new(branch(children))) };
            let items =
                rest.iter().map(|(path, digest, value)| Item { path: *path, digest: *digest, value: value.clone() });
            Some(bucket(items.collect()))
        }
    }
}

#[cfg(test)]
mod tests;
