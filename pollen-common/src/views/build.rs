//! A view from a judgement: only arranges what was decided. Invariant: decides nothing itself.

use alloc::collections::{BTreeMap, BTreeSet};

use super::contest::Contest;
use super::entries::{Claim, SeedClaim};
use super::judge::Judged;
use super::links::Alive;
use super::{Fallen, Name, NodeInfo, SeedInfo, ServiceInfo, VersionId, View};
use crate::identity::{Digest, NodeKey};
use crate::maps::{Document, Lane};
use crate::roll::{NotStanding, Roll, Standing, Verdict};
use crate::time::UnixMs;

impl View {
    /// Reads the cluster as `me` sees it at `now`. `standing` is of `roll`.
    #[must_use]
    pub fn build(me: NodeKey, roll: &Roll, standing: &Standing, document: &Document, now: UnixMs) -> Self {
        let judged = Judged::of(standing, document, now);
        let alive = judged.links.alive(me);
        let info = |(key, member): (&NodeKey, &&crate::roll::Member)| {
            let info = NodeInfo {
                key: *key,
                name: judged.names.get(key).cloned(),
                chosen_name: judged.chosen.get(key).cloned(),
                addrs: judged.addrs.get(key).cloned().unwrap_or_default(),
                member: (*member).clone(),
                liveness: alive.liveness(key),
                links: judged.links.of(key).copied().collect(),
                capacity: judged.hosts.capacity.get(key).copied(),
                draining: judged.hosts.draining.contains(key),
                unable: judged.hosts.unable.get(key).cloned().unwrap_or_default(),
            };
            (*key, info)
        };
        let nodes = judged.members.iter().map(info).collect();
        let services = judged.contests.iter().map(|(name, contest)| (name.clone(), service(&judged, name, contest)));
        let seeds = judged.seeds.iter().map(|(name, contest)| (name.clone(), seed(&judged, &alive, name, contest)));
        let [facts, live, state] = Lane::ALL.map(|lane| document.root(lane));
        Self {
            cluster: *document.cluster(),
            me,
            nodes,
            services: services.collect(),
            seeds: seeds.collect(),
            holders: holders(&judged, &alive),
            retiring: retiring(&judged, &alive),
            fallen: fallen(roll, standing, now),
            roots: [roll.trie().root(), facts, live, state],
            document_bytes: document.size_bytes(),
            document_entries: Lane::ALL
                .into_iter()
                .flat_map(|lane| document.iter(lane))
                .map(|held| held.map().len() as u64)
                .sum(),
            unnamed: judged.unnamed,
            refused: judged.refused.into_iter().map(|(_, entry)| entry).collect(),
        }
    }
}

fn fallen(roll: &Roll, standing: &Standing, now: UnixMs) -> BTreeMap<NodeKey, Fallen> {
    let against = roll.statements().filter(|statement| {
        let edge = statement.edge().filter(|edge| edge.invite.is_none());
        edge.is_some_and(|edge| matches!(edge.verdict, Verdict::Denied | Verdict::Retired))
    });
    let named = against.map(|statement| statement.subject()).chain(standing.members().map(|member| member.key));
    let fallen = named.filter_map(|subject| match standing.stands(&subject, now).err()? {
        NotStanding::Denied { key, by } if key == subject => Some((key, Fallen::Denied { by })),
        NotStanding::Retired { key, by } if key == subject => Some((key, Fallen::Retired { by })),
        NotStanding::Expired { key, since } if key == subject => Some((key, Fallen::Expired { since })),
        _ => None,
    });
    fallen.collect()
}

fn service(judged: &Judged<'_>, name: &Name, contest: &Contest<Claim>) -> ServiceInfo {
    let owner = contest.owner();
    ServiceInfo {
        name: name.clone(),
        owner: owner.author,
        protocol: owner.claim.protocol,
        shared: owner.claim.shared,
        claimed: owner.claimed,
        policy: owner.claim.policy.clone(),
        providers: judged.providers.get(name).cloned().unwrap_or_default(),
        conflicts: contest.conflicts(|key| judged.called(key)),
    }
}

fn seed(judged: &Judged<'_>, alive: &Alive, name: &Name, contest: &Contest<SeedClaim>) -> SeedInfo {
    let owner = contest.owner();
    let ready = judged.hosts.replicas.get(name).into_iter().flatten();
    let online = ready.map(|(version, nodes)| (*version, online(alive, nodes)));
    SeedInfo {
        name: name.clone(),
        owner: owner.author,
        claimed: owner.claimed,
        min_replicas: owner.claim.min_replicas,
        everywhere: owner.claim.everywhere,
        versions: owner.claim.versions.clone(),
        replicas: online.filter(|(_, nodes)| !nodes.is_empty()).collect(),
        conflicts: contest.conflicts(|key| judged.called(key)),
    }
}

/// Who can be asked for a module now: its owner, those that serve it, those that say that they keep it.
fn holders(judged: &Judged<'_>, alive: &Alive) -> BTreeMap<Digest, BTreeSet<NodeKey>> {
    let mut holders: BTreeMap<Digest, BTreeSet<NodeKey>> = BTreeMap::new();
    for (name, contest) in &judged.seeds {
        let owner = contest.owner();
        let ready = judged.hosts.replicas.get(name);
        for version in &owner.claim.versions {
            let nodes = holders.entry(version.module).or_default();
            nodes.insert(owner.author);
            nodes.extend(ready.and_then(|ready| ready.get(&version.id())).into_iter().flatten());
            nodes.extend(judged.hosts.holding.get(&version.module).into_iter().flatten());
        }
    }
    holders.values_mut().for_each(|nodes| *nodes = online(alive, nodes));
    holders
}

fn retiring(judged: &Judged<'_>, alive: &Alive) -> BTreeMap<VersionId, BTreeSet<NodeKey>> {
    let of = judged.hosts.retiring.iter().map(|(version, nodes)| (*version, online(alive, nodes)));
    of.filter(|(_, nodes)| !nodes.is_empty()).collect()
}

fn online(alive: &Alive, nodes: &BTreeSet<NodeKey>) -> BTreeSet<NodeKey> {
    nodes.iter().filter(|node| alive.liveness(node).is_online()).copied().collect()
}
