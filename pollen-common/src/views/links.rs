//! Which links there are and who is alive by them. Owns the search; must not know probes or transports.
//! Invariant: a link is there only if both ends claim it, and a node is alive only if a path of such links leads to
//! it from here, so that what a dead node said last keeps nobody alive.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use super::Liveness;
use crate::identity::NodeKey;

/// Claims of links, by author.
#[derive(Clone, Debug, Default)]
pub(super) struct Links {
    claims: BTreeMap<NodeKey, BTreeSet<NodeKey>>,
}

/// How a node is reached: the neighbour of it that vouches for it, and how far away it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reached {
    from: NodeKey,
    via: NodeKey,
    hops: u8,
}

/// Who is alive, seen from one node.
#[derive(Clone, Debug)]
pub(super) struct Alive {
    me: NodeKey,
    reached: BTreeMap<NodeKey, Reached>,
}

impl Links {
    /// `author` says that it is connected with `peer`.
    pub(super) fn claim(&mut self, author: NodeKey, peer: NodeKey) {
        if author != peer {
            self.claims.entry(author).or_default().insert(peer);
        }
    }

    /// Whether `author` claims a link with `peer`.
    pub(super) fn claims(&self, author: &NodeKey, peer: &NodeKey) -> bool {
        self.claims.get(author).is_some_and(|peers| peers.contains(peer))
    }

    /// The peers with whom both ends claim a link, in key order.
    pub(super) fn of<'a>(&'a self, node: &'a NodeKey) -> impl Iterator<Item = &'a NodeKey> {
        self.claims.get(node).into_iter().flatten().filter(|peer| self.claims(peer, node))
    }

    /// Those who claim a link with `node`, in key order, whether it claims it too or not.
    pub(super) fn claimants<'a>(&'a self, node: &'a NodeKey) -> impl Iterator<Item = &'a NodeKey> {
        self.claims.keys().filter(|author| self.claims(author, node))
    }

    /// Searches from `me`, nearest first and lowest key first.
    pub(super) fn alive(&self, me: NodeKey) -> Alive {
        let mut alive = Alive { me, reached: BTreeMap::new() };
        let mut queue = VecDeque::from([me]);
        while let Some(node) = queue.pop_front() {
            let here = alive.reached.get(&node).copied();
            for peer in self.of(&node).filter(|peer| **peer != me) {
                alive.reached.entry(*peer).or_insert_with(|| {
                    queue.push_back(*peer);
                    let via = here.map_or(*peer, |here| here.via);
                    Reached { from: node, via, hops: here.map_or(1, |here| here.hops.saturating_add(1)) }
                });
            }
        }
        alive
    }
}

impl Alive {
    pub(super) fn liveness(&self, node: &NodeKey) -> Liveness {
        if *node == self.me {
            return Liveness::Me;
        }
        let online = |reached: &Reached| Liveness::Online { via: reached.via, hops: reached.hops };
        self.reached.get(node).map_or(Liveness::Offline, online)
    }

    /// The nodes from `me` to `node`, both included, over which it is reached. Empty if it is not.
    pub(super) fn path(&self, node: &NodeKey) -> Vec<NodeKey> {
        let mut path = Vec::new();
        let mut at = *node;
        while at != self.me {
            let Some(reached) = self.reached.get(&at) else { return Vec::new() };
            path.push(at);
            at = reached.from;
        }
        path.push(self.me);
        path.reverse();
        path
    }
}
