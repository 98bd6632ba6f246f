//! Which peers a node keeps links with: a pure function of who stands. Owns the choice, not the dialling.
//! Invariant: the graph over nodes that all choose this way is connected, whichever subset is alive it was made for.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::hash::{Context, digest};
use crate::identity::NodeKey;
use crate::views::View;

/// Up to this many nodes everybody links with everybody: a death is then seen directly by all, at about 200 bytes a
/// second and pair.
pub const FULL_MESH_MAX: usize = 16;

/// Beyond it: so many nearest successors on the ring of keys (and, as they choose too, predecessors)…
const RING: usize = 3;

/// …and so many long links, each to the closest in hash order, which makes a random graph of small diameter.
const LONG: usize = 4;

/// The peers that `me` should keep links with, out of all that stand.
#[must_use]
pub fn neighbours(me: &NodeKey, standing: &[NodeKey]) -> BTreeSet<NodeKey> {
    let others: BTreeSet<NodeKey> = standing.iter().filter(|key| *key != me).copied().collect();
    if others.len() < FULL_MESH_MAX {
        return others;
    }
    let after = others.range(*me..).chain(others.iter()).take(RING);
    let mut by_hash: Vec<_> = others.iter().map(|key| (digest(Context::Path, &[&me.0, &key.0]), *key)).collect();
    by_hash.sort_unstable();
    after.copied().chain(by_hash.into_iter().take(LONG).map(|(_, key)| key)).collect()
}

/// Who could pass packets between `me` and `peer`: members that are neighbours of both, by their own word or by the other
/// end's. `peer` itself need not be online: it may be cut off from us alone.
#[must_use]
pub fn relays(view: &View, peer: &NodeKey) -> Vec<NodeKey> {
    let linked = |a: &NodeKey, b: &NodeKey| {
        let says = |from: &NodeKey, to: &NodeKey| view.nodes.get(from).is_some_and(|node| node.links.contains(to));
        says(a, b) || says(b, a)
    };
    let others = view.nodes.values().filter(|node| node.key != view.me && node.key != *peer);
    let between =
        others.filter(|node| node.liveness.is_online() && linked(&node.key, &view.me) && linked(&node.key, peer));
    between.map(|node| node.key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_clusters_are_full_meshes_and_large_ones_connected_with_few_links() {
        let keys = |n: u8| (0..n).map(|i| NodeKey(digest(Context::Test, &[&[i]]).0)).collect::<Vec<_>>();
        let small = keys(5);
        assert!(small.iter().all(|me| neighbours(me, &small).len() == 4));
        let large = keys(200);
        let mut reached = BTreeSet::from([large[0]]);
        let mut edge = alloc::vec![large[0]];
        while let Some(at) = edge.pop() {
            let linked = neighbours(&at, &large);
            assert!(linked.len() <= RING + LONG);
            edge.extend(linked.into_iter().filter(|key| reached.insert(*key)));
        }
        assert_eq!(reached.len(), 200);
    }
}
