//! What changed between two versions of one trie. Owns the comparison; costs what differs, not what is held,
//! because subtrees of equal digest are skipped.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Item, Shape, Tree, Trie};
use crate::identity::Digest;

/// The items in which a newer trie differs from an older one.
#[derive(Debug)]
pub struct Diff<'a, V> {
    /// Items that the newer has and the older lacks or has with another digest, in path order.
    pub put: Vec<(Digest, &'a V)>,
    /// Items whose paths only the older has, in path order.
    pub gone: Vec<(Digest, &'a V)>,
}

impl<V: Clone> Trie<V> {
    /// What changed from `older` to this one.
    #[must_use]
    pub fn diff<'a>(&'a self, older: &'a Self) -> Diff<'a, V> {
        let mut diff = Diff { put: Vec::new(), gone: Vec::new() };
        compare(older.root.as_deref(), self.root.as_deref(), &mut diff);
        diff
    }
}

fn compare<'a, V>(older: Option<&'a Tree<V>>, newer: Option<&'a Tree<V>>, diff: &mut Diff<'a, V>) {
    let digest = |tree: Option<&Tree<V>>| tree.map(|tree| tree.digest);
    if digest(older) == digest(newer) {
        return;
    }
    if let (Some(Shape::Branch(old)), Some(Shape::Branch(new))) = (older.map(|t| &t.shape), newer.map(|t| &t.shape)) {
        old.iter().zip(new).for_each(|(old, new)| compare(old.as_deref(), new.as_deref(), diff));
        return;
    }
    let (old, new) = (items(older), items(newer));
    let find = |among: &[&Item<V>], path: &Digest| among.binary_search_by(|item| item.path.cmp(path)).ok();
    diff.put.extend(
        new.iter()
            .filter(|item| find(&old, &item.path).is_none_or(|at| old[at].digest != item.digest))
            .map(|item| (item.path, &item.value)),
    );
    diff.gone.extend(old.iter().filter(|item| find(&new, &item.path).is_none()).map(|item| (item.path, &item.value)));
}

/// All items below, in path order.
fn items<V>(tree: Option<&Tree<V>>) -> Vec<&Item<V>> {
    let mut found = Vec::new();
    let mut stack: Vec<&Tree<V>> = tree.into_iter().collect();
    while let Some(tree) = stack.pop() {
        match &tree.shape {
            Shape::Bucket(items) => found.extend(items),
            Shape::Branch(children) => stack.extend(children.iter().rev().filter_map(Option::as_ref).map(Arc::as_ref)),
        }
    }
    found
}
