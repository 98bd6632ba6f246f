//! Local requests about seeds: publishing, upgrading, withdrawing them, what this node offers, and that it drains.
//! Owns how a claim changes; must not know what is ready where but by the view. Invariant: a claim loses its old version
//! only when the new one serves, or by a request.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use super::local::refusal;
use super::persist::After;
use super::{Node, Refusal, RefusalKind, Reply, RequestId};
use crate::maps::Lane;
use crate::placement::{Presence, place_version};
use crate::roll::Tier;
use crate::time::Now;
use crate::views::entries::{self, SeedClaim};
use crate::views::{Capacity, Name, SeedTerms, SeedVersion, View};

/// How long a new version must have been ready before the old one goes: a node that has just come back is seen with
/// what it said before it fell, until it has spoken.
const PROVEN: Duration = Duration::from_millis(500);

impl Node {
    pub(super) fn offer(&mut self, id: RequestId, capacity: Option<Capacity>, now: Now) -> Result<(), Refusal> {
        let value = capacity.map(|capacity| entries::host(&capacity).1);
        self.write(id, Lane::Facts, &entries::host_key(), value, now)
    }

    pub(super) fn seed(&mut self, id: RequestId, name: &Name, terms: &SeedTerms, now: Now) -> Result<(), Refusal> {
        self.require(Tier::Publisher, now)?;
        if let Some(other) = self.view.seeds.get(name).filter(|seed| seed.owner != self.me) {
            let owner = self.name_of(&other.owner);
            return Err(Refusal {
                hint: Some(format!("choose another name, or ask {owner} to unseed it")),
                ..refusal(RefusalKind::Denied, format!("the seed {name} belongs to {owner}"))
            });
        }
        let before = self.own_claim(name);
        // A claim keeps its date when its details change: the date decides who owns the name.
        let claim = SeedClaim {
            claimed: before.as_ref().map_or(now.unix, |before| before.claimed),
            versions: upgraded(before.map(|before| before.versions).as_deref(), terms.version),
            min_replicas: terms.min_replicas,
            everywhere: terms.everywhere,
        };
        let (key, value) = entries::seed(name, &claim);
        self.write(id, Lane::Facts, &key, Some(value), now)
    }

    pub(super) fn unseed(&mut self, id: RequestId, name: &Name, now: Now) -> Result<(), Refusal> {
        let key = entries::seed_key(name);
        if self.authoring.value(Lane::Facts, &key).is_none() {
            let owner = self.view.seeds.get(name).map(|seed| self.name_of(&seed.owner));
            return Err(Refusal {
                hint: owner.map(|owner| format!("it belongs to {owner}: unseed it there")),
                ..refusal(RefusalKind::NotFound, format!("this node has no seed {name}"))
            });
        }
        self.write(id, Lane::Facts, &key, None, now)
    }

    /// Says that this node takes no more replicas, at once, and answers when neighbours are being told.
    pub(super) fn drain(&mut self, id: RequestId, now: Now) -> Result<(), Refusal> {
        if let Some(reason) = self.resting(now.mono) {
            return Err(refusal(RefusalKind::Failed, reason));
        }
        let (key, value) = entries::drain();
        self.put(Lane::Live, &key, Some(value), now)?;
        if let Some(sealed) = self.authoring.seal(now) {
            self.sealed(sealed, now);
        }
        // Behind a seal that reserves sequences, which is published once that is on disk.
        self.persist(Vec::new(), alloc::vec![After::Reply(id, Ok(Reply::Done))]);
        Ok(())
    }

    /// What this node claims of a seed, sealed or not.
    fn own_claim(&self, name: &Name) -> Option<SeedClaim> {
        let value = self.authoring.value(Lane::Facts, &entries::seed_key(name))?;
        entries::read_seed_claim(value).ok()
    }

    /// Lets go of old versions of own seeds whose new ones serve on all nodes that should host them.
    pub(super) fn finish_upgrades(&mut self, view: &View, presence: Presence, now: Now) {
        let (me, mut proving) = (self.me, BTreeMap::new());
        for seed in view.seeds.values().filter(|seed| seed.owner == me) {
            let [_, next] = seed.versions[..] else { continue };
            let ready = seed.replicas.get(&next.id());
            if presence == Presence::Presumed || !place_version(view, seed, &next, presence).is_met_by(ready) {
                continue;
            }
            let since = self.hosting.proving.get(&next.id()).copied().unwrap_or(now.mono);
            if now.mono < since + PROVEN {
                self.hosting.by(since + PROVEN);
                proving.insert(next.id(), since);
                continue;
            }
            let claim = self.own_claim(&seed.name).filter(|claim| claim.versions == seed.versions);
            if let Some(claim) = claim {
                let (key, value) = entries::seed(&seed.name, &SeedClaim { versions: [next].into(), ..claim });
                // Smaller than what it replaces: there is room.
                let _ = self.put(Lane::Facts, &key, Some(value), now);
            }
        }
        self.hosting.proving = proving;
    }
}

/// The versions of a claim that names `before` once `new` is published.
fn upgraded(before: Option<&[SeedVersion]>, new: SeedVersion) -> Vec<SeedVersion> {
    match before.and_then(<[_]>::first) {
        // What answers goes on answering until the newest is ready; one that is not ready yet is passed over.
        Some(current) if *current != new => [*current, new].into(),
        _ => [new].into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Digest;

    #[test]
    fn what_answers_stays_until_the_newest_is_ready() {
        let [one, two, three] = [1, 2, 3].map(|n| SeedVersion {
            module: Digest([n; 32]),
            size_bytes: 1,
            memory_bytes: 1,
            timeout_ms: 1,
            idempotent: false,
            image: false,
            tail_calls: false,
        });
        assert_eq!(upgraded(None, one), [one]);
        assert_eq!(upgraded(Some(&[one]), one), [one]);
        assert_eq!(upgraded(Some(&[one]), two), [one, two]);
        assert_eq!(upgraded(Some(&[one, two]), two), [one, two]);
        assert_eq!(upgraded(Some(&[one, two]), three), [one, three], "the third replaces the pending one");
        assert_eq!(upgraded(Some(&[one, two]), one), [one], "back to what answers");
    }
}
