//! A view from a judgement: only arranges what was decided. Invariant: decides nothing itself.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::judge::{Contest, Judged};
use super::{Conflict, Name, NodeInfo, ServiceInfo, View};
use crate::identity::NodeKey;
use crate::maps::{Document, Lane};
use crate::roll::{Roll, Standing};
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
                addrs: judged.addrs.get(key).cloned().unwrap_or_default(),
                member: (*member).clone(),
                liveness: alive.liveness(key),
                links: judged.links.of(key).copied().collect(),
                capacity: None,
                draining: false,
            };
            (*key, info)
        };
        let nodes = judged.members.iter().map(info).collect();
        let services = judged.contests.iter().map(|(name, contest)| (name.clone(), service(&judged, name, contest)));
        let [facts, live, state] = Lane::ALL.map(|lane| document.root(lane));
        Self {
            cluster: *document.cluster(),
            me,
            nodes,
            services: services.collect(),
            seeds: BTreeMap::new(),
            holders: BTreeMap::new(),
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

fn service(judged: &Judged<'_>, name: &Name, contest: &Contest) -> ServiceInfo {
    let owner = contest.owner();
    let conflicts: Vec<_> = contest.contenders[1..]
        .iter()
        .map(|loser| Conflict {
            author: loser.author,
            claimed: loser.claim.claimed,
            reason: owner.beats(loser, |key| judged.called(key)),
        })
        .collect();
    ServiceInfo {
        name: name.clone(),
        owner: owner.author,
        protocol: owner.claim.protocol,
        shared: owner.claim.shared,
        claimed: owner.claim.claimed,
        providers: contest.providers.clone(),
        conflicts,
    }
}
