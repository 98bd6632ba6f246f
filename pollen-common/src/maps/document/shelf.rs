//! Lanes of authors that stopped standing, kept aside for a while so that lifting a deny costs no transfer.
//! Owns their bound in bytes and age. Invariant: nothing on the shelf is ever shown, compared or forwarded.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::Held;
use crate::identity::NodeKey;
use crate::maps::head::Lane;
use crate::time::Instant;

/// How long a lane is kept: a deny that is regretted is regretted within a week.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The most counted bytes kept: a dozen full quotas of the usual publisher.
const SHELF_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Clone, Debug, Default)]
pub(super) struct Shelf {
    lanes: BTreeMap<(NodeKey, Lane), (Instant, Arc<Held>)>,
}

impl Shelf {
    /// Keeps a lane, in place of an older version; the longest kept go first when there is no room.
    pub(super) fn keep(&mut self, held: Arc<Held>, now: Instant) {
        let head = held.head().head();
        if cost(&held) > SHELF_BYTES_MAX {
            return;
        }
        self.lanes.insert((head.author, head.lane), (now, held));
        let mut total: u64 = self.lanes.values().map(|(_, held)| cost(held)).sum();
        while total > SHELF_BYTES_MAX {
            let oldest = self.lanes.iter().min_by_key(|(key, (since, _))| (*since, **key)).map(|(key, _)| *key);
            let Some((_, held)) = oldest.and_then(|key| self.lanes.remove(&key)) else { break };
            total -= cost(&held);
        }
    }

    /// Takes back all that fit again, and forgets the aged.
    pub(super) fn take(&mut self, fits: impl Fn(&Held) -> bool, now: Instant) -> Vec<Arc<Held>> {
        self.lanes.retain(|_, (since, _)| now.since(*since) <= AGE_MAX);
        let back: Vec<_> = self.lanes.values().filter(|(_, held)| fits(held)).map(|(_, held)| held.clone()).collect();
        for held in &back {
            let head = held.head().head();
            self.lanes.remove(&(head.author, head.lane));
        }
        back
    }
}

/// What a shelved lane costs: even an empty one has a head.
fn cost(held: &Held) -> u64 {
    held.map().size_bytes() + crate::maps::head::HEAD_BYTES as u64
}
