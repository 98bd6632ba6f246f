//! Which peers a node keeps links with: a pure function of who stands. Owns the choice, not the dialling.
//! Invariant: the graph over nodes that all choose this way is connected, whichever subset is alive it was made for.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::hash::{Context, digest};
use crate::identity::NodeKey;

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
