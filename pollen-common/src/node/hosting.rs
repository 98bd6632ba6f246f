//! What this node hosts: from what the view says should be, to replicas started, announced, handed over and stopped.
//! Owns when; [`crate::placement`] owns what, and `replica` the waits of one version. Invariant: a replica is announced
//! exactly while it serves and may be counted on.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use super::{EventKind, Node, Output};
use crate::identity::{Digest, NodeKey};
use crate::maps::Lane;
use crate::placement::{Presence, place_version, should_if_able};
use crate::time::{Instant, Now};
use crate::views::{Capacity, HOLDS_MAX, Inability, Name, REPLICAS_MAX, SeedVersion, VersionId, View, entries};

mod replica;
mod unable;

use replica::{Act, DWELL, Phase, Replica, Want};
use unable::Unables;

/// How long a node that starts takes all members for present: so long its neighbours need to find it again when all
/// started together. It begins at once with what it will keep, and takes over from the dead soon after.
const PRESUMED: Duration = Duration::from_secs(3);

/// What moved back here within so long is let go more slowly each time.
const RESTLESS: Duration = Duration::from_secs(60);

/// Versions whose moves are remembered: as many as a node may host.
const RESTLESS_MAX: usize = REPLICAS_MAX;

/// Modules on this disk that are remembered, of which those that seeds name are said.
const HELD_MAX: usize = 16 * HOLDS_MAX;

/// What a placement depends on in a node that offers something.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Able {
    key: NodeKey,
    capacity: Capacity,
    draining: bool,
    online: bool,
    unable: BTreeMap<VersionId, Inability>,
}

/// What a placement depends on: while it is equal, so are the hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Grounds {
    nodes: Vec<Able>,
    seeds: Vec<(Name, Vec<SeedVersion>, u16, bool)>,
    presence: Presence,
}

impl Grounds {
    fn of(view: &View, presence: Presence) -> Self {
        let node = |info: &crate::views::NodeInfo| {
            Some(Able {
                key: info.key,
                capacity: info.capacity?,
                draining: info.draining,
                online: info.liveness.is_online(),
                unable: info.unable.clone(),
            })
        };
        let seed = |seed: &crate::views::SeedInfo| {
            (seed.name.clone(), seed.versions.clone(), seed.min_replicas, seed.everywhere)
        };
        Self {
            nodes: view.nodes.values().filter_map(node).collect(),
            seeds: view.seeds.values().map(seed).collect(),
            presence,
        }
    }
}

/// Where one version of one seed belongs.
#[derive(Clone, Debug)]
struct Placed {
    name: Name,
    version: SeedVersion,
    id: VersionId,
    hosts: BTreeSet<NodeKey>,
}

/// Everything that this node hosts or is about to.
#[derive(Debug)]
pub(super) struct Hosting {
    started: Instant,
    replicas: BTreeMap<VersionId, Replica>,
    /// What this node cannot make ready.
    unable: Unables,
    /// What recently left, how long its next life has to dwell, and until when that is remembered.
    restless: BTreeMap<VersionId, (Duration, Instant)>,
    /// Modules that are whole on this disk.
    held: BTreeSet<Digest>,
    grounds: Option<Grounds>,
    placed: Vec<Placed>,
    /// New versions of own seeds that are ready everywhere, since when.
    pub(super) proving: BTreeMap<VersionId, Instant>,
    /// Something that this node should say did not fit; said once.
    crowded: bool,
    /// When something is due though nothing else happens.
    at: Option<Instant>,
}

impl Hosting {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            started: now,
            replicas: BTreeMap::new(),
            unable: Unables::new(),
            restless: BTreeMap::new(),
            held: BTreeSet::new(),
            grounds: None,
            placed: Vec::new(),
            proving: BTreeMap::new(),
            crowded: false,
            at: None,
        }
    }

    pub(super) fn by(&mut self, at: Instant) {
        self.at = Some(self.at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Places anew if what it depends on has changed.
    fn place(&mut self, view: &View, presence: Presence) {
        let grounds = Grounds::of(view, presence);
        if self.grounds.as_ref() == Some(&grounds) {
            return;
        }
        self.grounds = Some(grounds);
        self.placed.clear();
        for seed in view.seeds.values() {
            for version in &seed.versions {
                let hosts = place_version(view, seed, version, presence).hosts;
                self.placed.push(Placed { name: seed.name.clone(), version: *version, id: version.id(), hosts });
            }
        }
    }

    /// What is expected of this node for each version that a seed names. What it tries whether it can is expected of
    /// it as long as it tries.
    fn wants(&self, view: &View) -> BTreeMap<VersionId, Want> {
        let mut wants: BTreeMap<VersionId, Want> = BTreeMap::new();
        for placed in &self.placed {
            let ready = view.seeds.get(&placed.name).and_then(|seed| seed.replicas.get(&placed.id));
            let met = !placed.hosts.is_empty() && ready.is_some_and(|ready| placed.hosts.is_subset(ready));
            let hosts = placed.hosts.contains(&view.me) || self.unable.is_tried(&placed.id);
            let want = if hosts { Want::Host } else { Want::Others { met } };
            // Several seeds of one version are served by one replica, which the most demanding of them decides on.
            let entry = wants.entry(placed.id).or_insert(want);
            *entry = match (*entry, want) {
                (Want::Others { met: a }, Want::Others { met: b }) => Want::Others { met: a && b },
                _ => Want::Host,
            };
        }
        wants
    }

    /// What this node should host and has nothing of, as far as there is room: made to be started.
    fn admit(&mut self, me: &NodeKey) -> Vec<VersionId> {
        let mut new = Vec::new();
        for placed in self.placed.iter().filter(|placed| placed.hosts.contains(me)) {
            // What it cannot make ready it says, which this placement may not know yet.
            let known = self.replicas.contains_key(&placed.id) || self.unable.says(&placed.id);
            if self.replicas.len() < REPLICAS_MAX && !known {
                self.replicas.insert(placed.id, begun(&mut self.restless, placed));
                new.push(placed.id);
            }
        }
        new
    }

    /// What this node could not make ready and shall try again now: made to be started. What it would not host even if
    /// it could is tried when it is asked for.
    fn try_again(&mut self, view: &View, presence: Presence, now: Instant) -> Vec<VersionId> {
        self.unable.keep(&self.placed.iter().map(|placed| placed.id).collect());
        let mut new = Vec::new();
        for id in self.unable.due(now) {
            let mut of_it = self.placed.iter().filter(|placed| placed.id == id);
            let wanted = of_it.find(|placed| {
                let seed = view.seeds.get(&placed.name);
                seed.is_some_and(|seed| should_if_able(view, seed, &placed.version, presence))
            });
            match wanted {
                None => self.unable.forget(&id),
                Some(_) if self.replicas.len() >= REPLICAS_MAX => self.unable.put_off(&id, now),
                Some(placed) => {
                    self.unable.begin(&id);
                    self.replicas.insert(id, begun(&mut self.restless, placed));
                    new.push(id);
                }
            }
        }
        new
    }

    fn forget_old(&mut self, now: Instant) {
        self.restless.retain(|_, (_, until)| now < *until);
    }
}

impl Node {
    /// Starts, keeps and stops replicas as the view asks for, and says which there are.
    pub(super) fn host(&mut self, now: Now) {
        if self.local.leaving {
            // It has said its last word; what still runs ends with the process.
            return;
        }
        if core::mem::take(&mut self.due.hosting) || self.hosting.at.is_some_and(|at| at <= now.mono) {
            self.hosting.at = None;
            self.hosting.forget_old(now.mono);
            let presence = self.presence(now.mono);
            let view = self.view.clone();
            self.hosting.place(&view, presence);
            let again = self.hosting.try_again(&view, presence, now.mono);
            self.step_replicas(&view, now.mono);
            again.iter().for_each(|id| self.start_replica(id, &view));
            self.hosting.unable.at().into_iter().for_each(|at| self.hosting.by(at));
            self.announce_hosting(&view, now);
            self.finish_upgrades(&view, presence, now);
            self.author(now);
        }
        if let Some(at) = self.hosting.at {
            self.due.by(at);
        }
    }

    fn presence(&mut self, now: Instant) -> Presence {
        let until = self.hosting.started + PRESUMED;
        if until <= now {
            return Presence::Seen;
        }
        self.hosting.by(until);
        Presence::Presumed
    }

    fn step_replicas(&mut self, view: &View, now: Instant) {
        let wants = self.hosting.wants(view);
        let known: Vec<VersionId> = self.hosting.replicas.keys().copied().collect();
        for id in known {
            self.step_replica(&id, wants.get(&id).copied().unwrap_or(Want::Nobody), view, now);
        }
        for id in self.hosting.admit(&self.me) {
            self.start_replica(&id, view);
        }
    }

    fn step_replica(&mut self, id: &VersionId, want: Want, view: &View, now: Instant) {
        let Some(replica) = self.hosting.replicas.get_mut(id) else { return };
        let news = others_holding(view, &replica.version.module) != replica.holders;
        // Being no longer wanted and others being ready can both be news.
        let act = replica.step(want, news, now).or_else(|| replica.step(want, news, now));
        let due = replica.due(news);
        if replica.phase == Phase::Gone {
            let dwell = replica.next_dwell();
            self.hosting.replicas.remove(id);
            if want != Want::Nobody && self.hosting.restless.len() < RESTLESS_MAX {
                self.hosting.restless.insert(*id, (dwell, now + RESTLESS));
            }
        }
        match act {
            Some(Act::Start) => self.start_replica(id, view),
            Some(Act::Stop) => self.outputs.push_back(Output::StopReplica { version: *id }),
            None => {}
        }
        due.into_iter().for_each(|at| self.hosting.by(at));
    }

    fn start_replica(&mut self, id: &VersionId, view: &View) {
        let Some(replica) = self.hosting.replicas.get_mut(id) else { return };
        replica.holders = others_holding(view, &replica.version.module);
        let (version, name, holders) = (replica.version, replica.name.clone(), replica.holders.clone());
        self.outputs.push_back(Output::StartReplica { version, name, holders });
    }

    /// Own live entries about seeds: exactly the replicas that may be counted on, the modules that nothing else says are
    /// here, and what cannot be made ready.
    fn announce_hosting(&mut self, view: &View, now: Now) {
        let announced = self.hosting.replicas.iter().filter(|(_, replica)| replica.is_announced());
        let mut said: BTreeMap<Vec<u8>, Vec<u8>> =
            announced.clone().map(|(id, replica)| entries::replica(id, &replica.name)).collect();
        let served: BTreeSet<Digest> = announced.map(|(_, replica)| replica.version.module).collect();
        let own = view.seeds.values().filter(|seed| seed.owner == self.me);
        let owned: BTreeSet<Digest> = own.flat_map(|seed| seed.versions.iter().map(|v| v.module)).collect();
        let named = self.hosting.held.iter().filter(|module| view.holders.contains_key(*module));
        let unsaid = named.filter(|module| !served.contains(*module) && !owned.contains(*module));
        said.extend(unsaid.take(HOLDS_MAX).map(entries::holding));
        said.extend(self.hosting.unable.said().map(|(id, own)| entries::unable(id, own)));
        let before = self.authoring.keys(Lane::Live, &[]);
        for key in before.iter().filter(|key| entries::is_hosting(key) && !said.contains_key(&key[..])) {
            let _ = self.put(Lane::Live, key, None, now);
        }
        let mut refused = None;
        for (key, value) in said {
            refused = self.put(Lane::Live, &key, Some(value), now).err().or(refused);
        }
        let was_crowded = core::mem::replace(&mut self.hosting.crowded, refused.is_some());
        if let Some(refusal) = refused.filter(|_| !was_crowded) {
            let what = format!("a replica is ready but cannot be announced: {}", refusal.message);
            self.event(EventKind::Replica, Some(self.me), what);
        }
    }

    pub(super) fn replica_ready(&mut self, id: &VersionId) {
        if self.hosting.replicas.get_mut(id).is_some_and(Replica::ready) {
            self.hosting.unable.forget(id);
            self.due.hosting = true;
        }
    }

    pub(super) fn replica_failed(&mut self, id: &VersionId, reason: String, own: Option<Inability>, now: Instant) {
        let Some(replica) = self.hosting.replicas.get_mut(id) else { return };
        self.due.hosting = true;
        let name = replica.name.to_string();
        if !replica.failed(reason.clone(), now) {
            return;
        }
        let known = self.hosting.unable.says(id);
        let said = match own {
            Some(own) => self.hosting.unable.insert(*id, own, &reason, now),
            // It could not be tried: what was said of it stands.
            None => known.then(|| self.hosting.unable.put_off(id, now)).is_some(),
        };
        if said {
            self.hosting.replicas.remove(id);
        }
        // Told once: what is tried quietly fails quietly.
        if !known {
            let then = if said { ", and others take its place" } else { "" };
            let what = format!("seed {name} is not ready here{then}: {reason}");
            self.event(EventKind::Replica, Some(self.me), what);
        }
    }

    pub(super) fn replica_stopped(&mut self, id: &VersionId) {
        if let Some(replica) = self.hosting.replicas.get_mut(id) {
            replica.stopped();
            self.due.hosting = true;
        }
    }

    /// The modules that are whole on this disk: others may ask for those that seeds name.
    pub(super) fn holding(&mut self, modules: Vec<Digest>) {
        self.hosting.held = modules.into_iter().take(HELD_MAX).collect();
        self.due.hosting = true;
    }

    /// How far this node has come with a version.
    pub(super) fn hosting_told(&self, id: &VersionId, now: Instant) -> Option<String> {
        let unable = || self.hosting.unable.told(id, now);
        self.hosting.replicas.get(id).map(|replica| replica.told(now)).or_else(unable)
    }
}

/// A replica of what is placed here, which knows whether it was here a moment ago.
fn begun(restless: &mut BTreeMap<VersionId, (Duration, Instant)>, placed: &Placed) -> Replica {
    let dwell = restless.remove(&placed.id).map_or(DWELL, |(dwell, _)| dwell);
    Replica::new(placed.version, placed.name.clone(), dwell)
}

/// The others that can be asked for a module.
fn others_holding(view: &View, module: &Digest) -> Vec<NodeKey> {
    view.holders.get(module).into_iter().flatten().filter(|key| **key != view.me).copied().collect()
}
