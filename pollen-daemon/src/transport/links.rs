//! Which links there are, and which of two connections of one pair stays. Owns the table; knows no streams.
//! Invariant: a peer has at most one current link, and both ends choose the same one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pollen_common::identity::NodeKey;
use pollen_common::node::LinkId;

use super::link::{Link, Orders};

/// Connections at once; each costs some 20 KiB idle. Beyond it a node refuses.
pub const CONNECTIONS_MAX: usize = 4096;
/// Of these, connections of peers that are no members and dialled us. Many more than join at a time, and few enough that
/// whoever makes keys by the thousand takes no member's place.
pub const STRANGERS_MAX: usize = 256;
/// Two connections made within this time were dialled at the same time from both sides. A peer that dials later than
/// that has no connection any more, whatever we think.
const SIMULTANEOUS: Duration = Duration::from_secs(3);

/// The table.
pub struct Links {
    us: NodeKey,
    strangers_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    links: BTreeMap<LinkId, Arc<Link>>,
    current: BTreeMap<NodeKey, LinkId>,
}

/// Who dialled a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialer {
    Us,
    Member,
    /// No member, or not one yet.
    Stranger,
}

/// What becomes of a new connection.
pub enum Admission {
    /// It is the peer's link from now on.
    Current {
        link: Arc<Link>,
        orders: Orders,
        /// The link that it replaces.
        replaced: Option<Arc<Link>>,
    },
    /// The other connection of the pair stays.
    Duplicate(Arc<Link>),
    /// There are too many.
    Full,
}

impl Links {
    /// For the node with this key, that hears so many strangers at a time.
    pub fn new(us: NodeKey, strangers_max: usize) -> Self {
        Self { us, strangers_max, state: Mutex::default() }
    }

    /// Decides on a new connection with `peer`.
    pub fn admit(&self, peer: NodeKey, connection: quinn::Connection, dialer: Dialer, now: Instant) -> Admission {
        let mut state = self.lock();
        let dialed = matches!(dialer, Dialer::Us);
        let existing = state.current.get(&peer).and_then(|id| state.links.get(id)).cloned();
        let existing = existing.filter(|link| link.connection.close_reason().is_none());
        if let Some(existing) = &existing {
            let age = now.saturating_duration_since(existing.since);
            // Whoever dials has lost what it had, and what is silent here is what it lost.
            if !existing.is_silent() && !newer_stays(&self.us, &peer, existing.dialed, age, dialed) {
                return Admission::Duplicate(existing.clone());
            }
        }
        if state.links.len() >= CONNECTIONS_MAX {
            return Admission::Full;
        }
        let stranger = matches!(dialer, Dialer::Stranger);
        if stranger {
            // One that comes again takes its own place, not another.
            let others = state.links.values().filter(|link| link.peer != peer && link.is_stranger()).count();
            if others >= self.strangers_max {
                return Admission::Full;
            }
        }
        state.last += 1;
        let id = LinkId(state.last);
        let (link, orders) = Link::new(id, peer, connection, dialed, stranger, now);
        state.links.insert(id, link.clone());
        state.current.insert(peer, id);
        Admission::Current { link, orders, replaced: existing }
    }

    /// The link with this number, until it is down.
    pub fn link(&self, id: LinkId) -> Option<Arc<Link>> {
        self.lock().links.get(&id).cloned()
    }

    /// The current link with `peer`, which may be silent.
    pub fn current(&self, peer: &NodeKey) -> Option<Arc<Link>> {
        let state = self.lock();
        let link = state.current.get(peer).and_then(|id| state.links.get(id))?;
        link.connection.close_reason().is_none().then(|| link.clone())
    }

    /// The current connection with `peer`, if it answers.
    pub fn connection(&self, peer: &NodeKey) -> Option<quinn::Connection> {
        self.current(peer).filter(|link| !link.is_silent()).map(|link| link.connection.clone())
    }

    /// All links, oldest first.
    pub fn all(&self) -> Vec<Arc<Link>> {
        self.lock().links.values().cloned().collect()
    }

    /// The link is closing: it is no longer the peer's current one, so that a new dial is a new connection.
    pub fn retire(&self, id: LinkId) -> Option<Arc<Link>> {
        let mut state = self.lock();
        let link = state.links.get(&id).cloned()?;
        if state.current.get(&link.peer) == Some(&id) {
            state.current.remove(&link.peer);
        }
        Some(link)
    }

    /// The link is down.
    pub fn remove(&self, id: LinkId) {
        self.retire(id);
        self.lock().links.remove(&id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // No code under the lock panics halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a new connection replaces the one there is. Both ends must come to the same answer, each knowing only which
/// end dialled which.
fn newer_stays(us: &NodeKey, peer: &NodeKey, existing_dialed: bool, age: Duration, new_dialed: bool) -> bool {
    // One side dials again only after it has lost the first.
    let same_side = existing_dialed == new_dialed;
    let smaller_dialed = new_dialed == (us < peer);
    same_side || age >= SIMULTANEOUS || smaller_dialed
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: NodeKey = NodeKey([1; 32]);
    const LARGE: NodeKey = NodeKey([2; 32]);
    const YOUNG: Duration = Duration::from_millis(100);

    #[test]
    fn both_ends_keep_the_connection_that_the_smaller_key_dialled_in_whatever_order_they_come() {
        // At the smaller end its own dial is `dialed`, at the larger end the other one is.
        assert!(!newer_stays(&SMALL, &LARGE, true, YOUNG, false), "small has its own, large's arrives");
        assert!(newer_stays(&SMALL, &LARGE, false, YOUNG, true), "small has large's, its own comes up");
        assert!(newer_stays(&LARGE, &SMALL, true, YOUNG, false), "large has its own, small's arrives");
        assert!(!newer_stays(&LARGE, &SMALL, false, YOUNG, true), "large has small's, its own comes up");
    }

    #[test]
    fn a_peer_that_dials_again_has_lost_what_we_still_hold() {
        assert!(newer_stays(&SMALL, &LARGE, false, YOUNG, false), "the same side twice");
        assert!(newer_stays(&SMALL, &LARGE, true, SIMULTANEOUS, false), "long after ours");
    }
}
