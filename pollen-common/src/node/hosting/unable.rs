//! Versions that this node cannot make ready, for a reason of its own. Owns the waits between quiet tries; must not know
//! where a version belongs, or how it is tried. Invariant: what is held here is what this node says of itself in its
//! live lane, so that others pass it over, and it is held until a try succeeds or nobody would ask for one.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::time::Instant;
use crate::views::{Inability, UNABLE_MAX, VersionId};

/// The first try after a node said that it cannot; each further failure doubles it. Minutes, as what fails for a reason
/// of its own seldom mends itself, and trying takes a processor and the network.
pub(super) const QUIET_FIRST: Duration = Duration::from_secs(120);

/// The longest wait between tries: a disk that was emptied is noticed within it.
const QUIET_MAX: Duration = Duration::from_secs(30 * 60);

/// Of a reason's text, in bytes: enough for a sentence with a path in it.
const REASON_BYTES_MAX: usize = 400;

#[derive(Clone, Debug)]
struct Unable {
    own: Inability,
    reason: String,
    failures: u32,
    again: Instant,
    /// It is being made ready, to see whether it can be.
    tried: bool,
}

/// What this node cannot make ready, at most [`UNABLE_MAX`] versions.
#[derive(Clone, Debug)]
pub(super) struct Unables(BTreeMap<VersionId, Unable>);

impl Unables {
    pub(super) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// An attempt failed for a reason of this node's own. `false`: there is no room to say so.
    pub(super) fn insert(&mut self, id: VersionId, own: Inability, reason: &str, now: Instant) -> bool {
        if self.0.len() >= UNABLE_MAX && !self.0.contains_key(&id) {
            return false;
        }
        let failures = self.0.get(&id).map_or(0, |before| before.failures).saturating_add(1);
        let reason = String::from(&reason[..reason.floor_char_boundary(REASON_BYTES_MAX)]);
        self.0.insert(id, Unable { own, reason, failures, again: now + wait(failures), tried: false });
        true
    }

    /// It could not be tried: later.
    pub(super) fn put_off(&mut self, id: &VersionId, now: Instant) {
        if let Some(unable) = self.0.get_mut(id) {
            (unable.again, unable.tried) = (now + wait(unable.failures), false);
        }
    }

    /// It is being tried.
    pub(super) fn begin(&mut self, id: &VersionId) {
        if let Some(unable) = self.0.get_mut(id) {
            unable.tried = true;
        }
    }

    pub(super) fn forget(&mut self, id: &VersionId) {
        self.0.remove(id);
    }

    /// Forgets what no seed names.
    pub(super) fn keep(&mut self, named: &BTreeSet<VersionId>) {
        self.0.retain(|id, _| named.contains(id));
    }

    pub(super) fn says(&self, id: &VersionId) -> bool {
        self.0.contains_key(id)
    }

    pub(super) fn is_tried(&self, id: &VersionId) -> bool {
        self.0.get(id).is_some_and(|unable| unable.tried)
    }

    /// What this node says of itself.
    pub(super) fn said(&self) -> impl Iterator<Item = (&VersionId, Inability)> {
        self.0.iter().map(|(id, unable)| (id, unable.own))
    }

    /// What is to be tried now.
    pub(super) fn due(&self, now: Instant) -> Vec<VersionId> {
        self.0.iter().filter(|(_, unable)| !unable.tried && unable.again <= now).map(|(id, _)| *id).collect()
    }

    /// When the next is to be tried.
    pub(super) fn at(&self) -> Option<Instant> {
        self.0.values().filter(|unable| !unable.tried).map(|unable| unable.again).min()
    }

    /// The reason, as a sentence about this node.
    pub(super) fn told(&self, id: &VersionId, now: Instant) -> Option<String> {
        let unable = self.0.get(id)?;
        let minutes = unable.again.since(now).as_secs() / 60 + 1;
        Some(format!("this node cannot make it ready: {}; it tries again within {minutes} min", unable.reason))
    }
}

fn wait(failures: u32) -> Duration {
    QUIET_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(QUIET_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Digest;

    const NOW: Instant = Instant(1_000_000_000);

    fn id(n: u16) -> VersionId {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        VersionId(Digest(bytes))
    }

    #[test]
    fn tries_are_minutes_apart_and_half_an_hour_at_most() {
        let (mut unable, mut now) = (Unables::new(), NOW);
        let mut waits = Vec::new();
        for _ in 0..6 {
            assert!(unable.insert(id(1), Inability::Disk, "no room", now));
            let again = unable.at().expect("it is tried again");
            waits.push(again.since(now).as_secs() / 60);
            assert!(unable.due(again - Duration::from_millis(1)).is_empty());
            assert_eq!(unable.due(again), [id(1)]);
            unable.begin(&id(1));
            assert!(unable.due(again).is_empty() && unable.is_tried(&id(1)), "once at a time");
            now = again;
        }
        assert_eq!(waits, [2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn a_try_that_said_nothing_of_this_node_is_made_again_as_late_and_the_reason_stands() {
        let mut unable = Unables::new();
        unable.insert(id(1), Inability::Full, "full", NOW);
        unable.begin(&id(1));
        unable.put_off(&id(1), NOW + QUIET_FIRST);
        assert_eq!(unable.at(), Some(NOW + QUIET_FIRST * 2));
        assert_eq!(unable.said().collect::<Vec<_>>(), [(&id(1), Inability::Full)]);
        let told = unable.told(&id(1), NOW + QUIET_FIRST).expect("it is known");
        assert!(told.contains("full; it tries again within 3 min"), "{told}");
    }

    #[test]
    fn as_much_is_said_as_others_count_and_reasons_are_short() {
        let mut unable = Unables::new();
        let most = u16::try_from(UNABLE_MAX).expect("few");
        assert!((0..most).all(|n| unable.insert(id(n), Inability::Unfit, &"ä".repeat(999), NOW)));
        assert!(!unable.insert(id(most), Inability::Unfit, "one more", NOW));
        assert!(unable.insert(id(0), Inability::Unfit, "again", NOW));
        assert!(unable.told(&id(1), NOW).expect("it is known").len() < REASON_BYTES_MAX + 100);
        unable.keep(&BTreeSet::from([id(7)]));
        assert_eq!(unable.said().count(), 1);
    }
}
