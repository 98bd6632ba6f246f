//! What people are told when the view changes. Owns the sentences; decides nothing.

use alloc::collections::BTreeSet;
use alloc::format;

use super::{EventKind, Node};
use crate::identity::NodeKey;
use crate::views::{Liveness, SeedInfo, View};

impl Node {
    /// Tells what changed between two views.
    pub(super) fn events_between(&mut self, before: &View, after: &View) {
        for (key, info) in &after.nodes {
            let was = before.nodes.get(key).map(|info| info.liveness.is_online());
            let is = info.liveness.is_online();
            let who = info.name.as_ref().map_or_else(|| key.short(), alloc::string::ToString::to_string);
            if was.is_none() {
                self.event(EventKind::Admitted, Some(*key), format!("{who} is a member"));
            }
            if was != Some(is) && info.liveness != Liveness::Me && (is || was.is_some()) {
                let (kind, word) = if is { (EventKind::PeerUp, "online") } else { (EventKind::PeerDown, "offline") };
                self.event(kind, Some(*key), format!("{who} is {word}"));
            }
        }
        self.service_events(before, after);
        self.seed_events(before, after);
    }

    fn service_events(&mut self, before: &View, after: &View) {
        for (name, service) in &after.services {
            if !before.services.contains_key(name) {
                self.event(EventKind::Published, Some(service.owner), format!("service {name} is published"));
            }
            if before.services.get(name).is_some_and(|old| old.conflicts.len() < service.conflicts.len()) {
                self.event(EventKind::Conflict, Some(service.owner), format!("the name {name} has another claim"));
            }
        }
        for (name, service) in before.services.iter().filter(|(name, _)| !after.services.contains_key(*name)) {
            self.event(EventKind::Withdrawn, Some(service.owner), format!("service {name} is gone"));
        }
    }

    fn seed_events(&mut self, before: &View, after: &View) {
        for (name, seed) in &after.seeds {
            let old = before.seeds.get(name);
            let published = match old {
                None => Some(format!("seed {name} is published")),
                Some(old) if old.current() != seed.current() => Some(format!("seed {name} answers with a new version")),
                Some(old) if old.versions != seed.versions && seed.versions.len() > 1 => {
                    Some(format!("seed {name} has a new version, which replaces the old one when it is ready"))
                }
                Some(_) => None,
            };
            published.into_iter().for_each(|what| self.event(EventKind::Published, Some(seed.owner), what));
            if old.is_some_and(|old| old.conflicts.len() < seed.conflicts.len()) {
                let what = format!("the name of the seed {name} has another claim");
                self.event(EventKind::Conflict, Some(seed.owner), what);
            }
            self.replica_events(old, seed, after);
        }
        for (name, seed) in before.seeds.iter().filter(|(name, _)| !after.seeds.contains_key(*name)) {
            self.event(EventKind::Withdrawn, Some(seed.owner), format!("seed {name} is gone"));
        }
    }

    fn replica_events(&mut self, old: Option<&SeedInfo>, seed: &SeedInfo, after: &View) {
        let serving = |seed: &SeedInfo| -> BTreeSet<NodeKey> { seed.replicas.values().flatten().copied().collect() };
        let (was, is) = (old.map(serving).unwrap_or_default(), serving(seed));
        for key in was.symmetric_difference(&is) {
            let word = if is.contains(key) { "is ready on" } else { "is no longer on" };
            let called = after.nodes.get(key).and_then(|info| info.name.as_ref());
            let called = called.map_or_else(|| key.short(), alloc::string::ToString::to_string);
            self.event(EventKind::Replica, Some(*key), format!("seed {} {word} {called}", seed.name));
        }
    }
}
