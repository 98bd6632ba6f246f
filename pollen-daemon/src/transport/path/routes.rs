//! Who is where: which node a source belongs to, and where a node's packets go. Owns the table and its bound; knows
//! neither probes nor sockets: what is put in has been proved.
//! Invariant: a source belongs to exactly one node, and every route of a node is one of its sources.

use std::collections::HashMap;

use pollen_common::identity::NodeKey;
use pollen_common::path_probe::Nonce;

use super::address::{Source, VirtualAddr};

/// Bound sources at once. A few thousand nodes talk to one at most; an entry is some 200 bytes, so this is under 1 MiB.
pub const SOURCES_MAX: usize = 4096;
/// Sources of one node: its addresses, times the ports that a NAT between gives it. The oldest gives way.
const SOURCES_PER_PEER_MAX: usize = 8;

/// The table. Cloned only when a reader still holds the last one.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    sources: HashMap<Source, Bound>,
    peers: HashMap<VirtualAddr, Peer>,
    /// Connections with each node that has one; while there is one its sources are not evicted.
    held: HashMap<VirtualAddr, u32>,
    /// Counts bindings, so that the oldest can be told.
    bindings: u64,
    /// Counts changes of where some node's packets go.
    moves: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bound {
    peer: VirtualAddr,
    /// When, in bindings.
    at: u64,
}

#[derive(Clone, Debug)]
struct Peer {
    route: Source,
    /// The dial that made the route: within one dial the first binding wins.
    nonce: Nonce,
}

/// All sources are held by nodes that are connected: nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the table of bound sources is full of connected nodes")]
pub struct Full;

impl Routes {
    /// The node that `source` belongs to.
    #[must_use]
    pub fn peer_at(&self, source: &Source) -> Option<VirtualAddr> {
        self.sources.get(source).map(|bound| bound.peer)
    }

    /// Where packets for `peer` go.
    #[must_use]
    pub fn route(&self, peer: &VirtualAddr) -> Option<Source> {
        self.peers.get(peer).map(|peer| peer.route)
    }

    /// Grows whenever some node's packets go elsewhere, or nowhere.
    #[must_use]
    pub const fn moves(&self) -> u64 {
        self.moves
    }

    /// Sources bound now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether none is bound.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// `key` was proved at `source` in the dial `nonce`. Takes the source from whoever had it.
    ///
    /// # Errors
    /// [`Full`] if no source can give way.
    pub fn bind(&mut self, source: Source, key: NodeKey, nonce: Nonce) -> Result<(), Full> {
        let address = VirtualAddr::of(&key);
        let known = self.sources.get(&source).map(|bound| bound.peer);
        if known.is_some_and(|peer| peer != address) {
            self.remove(source);
        }
        if known.is_none() {
            self.make_room(address)?;
        }
        self.bindings += 1;
        self.sources.insert(source, Bound { peer: address, at: self.bindings });
        let before = self.route(&address);
        let peer = self.peers.entry(address).or_insert(Peer { route: source, nonce });
        if peer.nonce != nonce {
            (peer.route, peer.nonce) = (source, nonce);
        }
        self.moves += u64::from(self.route(&address) != before);
        Ok(())
    }

    /// A connection with `peer` began: its sources stay until [`Routes::release`].
    pub fn hold(&mut self, peer: VirtualAddr) {
        *self.held.entry(peer).or_insert(0) += 1;
    }

    /// A connection with `peer` ended. Whether it was the last one.
    pub fn release(&mut self, peer: VirtualAddr) -> bool {
        let Some(connections) = self.held.get_mut(&peer) else { return true };
        *connections -= 1;
        let last = *connections == 0;
        if last {
            self.held.remove(&peer);
        }
        last
    }

    /// Nobody is at `source` any more.
    pub fn unbind(&mut self, source: Source) {
        self.remove(source);
    }

    /// Frees a place for a source of `peer` if one is needed.
    fn make_room(&mut self, peer: VirtualAddr) -> Result<(), Full> {
        let of_peer = self.sources.values().filter(|bound| bound.peer == peer).count();
        let oldest = |may_go: &dyn Fn(&Source, &Bound) -> bool| {
            self.sources.iter().filter(|(source, bound)| may_go(source, bound)).min_by_key(|(_, bound)| bound.at)
        };
        let goes = if of_peer >= SOURCES_PER_PEER_MAX {
            let route = self.route(&peer);
            oldest(&|source, bound| bound.peer == peer && Some(*source) != route)
        } else if self.sources.len() >= SOURCES_MAX {
            oldest(&|_, bound| !self.held.contains_key(&bound.peer))
        } else {
            return Ok(());
        };
        let goes = goes.map(|(source, _)| *source).ok_or(Full)?;
        self.remove(goes);
        Ok(())
    }

    fn remove(&mut self, source: Source) {
        let Some(bound) = self.sources.remove(&source) else { return };
        let before = self.route(&bound.peer);
        let left = self.sources.iter().filter(|(_, other)| other.peer == bound.peer).max_by_key(|(_, other)| other.at);
        match (left.map(|(source, _)| *source), self.peers.get_mut(&bound.peer)) {
            (Some(left), Some(peer)) if peer.route == source => peer.route = left,
            (None, _) => drop(self.peers.remove(&bound.peer)),
            _ => {}
        }
        self.moves += u64::from(self.route(&bound.peer) != before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u16) -> Source {
        Source::from(std::net::SocketAddr::from(([10, 0, (n >> 8) as u8, (n & 0xff) as u8], 1000)))
    }

    fn key(n: u16) -> NodeKey {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        NodeKey(key)
    }

    const DIAL: Nonce = Nonce([1; 16]);
    const LATER_DIAL: Nonce = Nonce([2; 16]);

    #[test]
    fn the_first_binding_of_a_dial_is_the_route_until_the_next_dial() {
        let mut routes = Routes::default();
        let peer = VirtualAddr::of(&key(1));
        routes.bind(source(1), key(1), DIAL).unwrap();
        routes.bind(source(2), key(1), DIAL).unwrap();
        assert_eq!(routes.route(&peer), Some(source(1)));
        routes.bind(source(2), key(1), LATER_DIAL).unwrap();
        assert_eq!(routes.route(&peer), Some(source(2)));
        assert_eq!(routes.peer_at(&source(1)), Some(peer), "what is still under way from the old source counts");
    }

    #[test]
    fn a_source_belongs_to_the_node_that_proved_it_last() {
        let mut routes = Routes::default();
        routes.bind(source(1), key(1), DIAL).unwrap();
        routes.bind(source(1), key(2), LATER_DIAL).unwrap();
        assert_eq!(routes.peer_at(&source(1)), Some(VirtualAddr::of(&key(2))));
        assert_eq!(routes.route(&VirtualAddr::of(&key(1))), None);
        assert_eq!(routes.len(), 1);
    }

    #[test]
    fn a_full_table_gives_up_its_oldest_unconnected_source_and_no_connected_one() {
        let mut routes = Routes::default();
        let places = u16::try_from(SOURCES_MAX).unwrap();
        for n in 0..places {
            routes.bind(source(n), key(n), DIAL).unwrap();
        }
        routes.hold(VirtualAddr::of(&key(0)));
        routes.bind(source(places), key(places), DIAL).unwrap();
        assert!(routes.peer_at(&source(0)).is_some(), "connected");
        assert!(routes.peer_at(&source(1)).is_none(), "the oldest of the rest");
        for n in 0..=places {
            routes.hold(VirtualAddr::of(&key(n)));
        }
        assert_eq!(routes.bind(source(places + 1), key(places + 1), DIAL), Err(Full));
        routes.release(VirtualAddr::of(&key(2)));
        routes.bind(source(places + 1), key(places + 1), DIAL).unwrap();
        assert_eq!(routes.len(), SOURCES_MAX);
    }

    #[test]
    fn one_node_cannot_fill_the_table() {
        let mut routes = Routes::default();
        for n in 0..100 {
            routes.bind(source(n), key(1), DIAL).unwrap();
        }
        assert_eq!(routes.len(), SOURCES_PER_PEER_MAX);
        assert_eq!(routes.route(&VirtualAddr::of(&key(1))), Some(source(0)), "the route itself stays");
    }
}
