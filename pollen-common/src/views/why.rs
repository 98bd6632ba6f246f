//! Why a node stands or is offline, and why a name has the owner and providers that it has. Owns the sentences; the
//! reasons come from the code that decides.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::judge::Judged;
use super::{Liveness, Name, Protocol, View};
use crate::identity::NodeKey;
use crate::maps::Document;
use crate::roll::{Kind, Member, Roll, Standing};
use crate::time::UnixMs;

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Node(NodeKey),
    /// A service.
    Name(Name),
    Seed(Name),
}

impl View {
    /// The reasons, as sentences, judged anew by what decided this view.
    #[must_use]
    pub fn why(
        &self,
        target: &Target,
        roll: &Roll,
        standing: &Standing,
        document: &Document,
        now: UnixMs,
    ) -> Vec<String> {
        let judged = Judged::of(standing, document, now);
        match target {
            Target::Node(key) => {
                let mut reasons = match standing.stands(key, now) {
                    Ok(member) => stands(&judged, roll, member),
                    Err(reason) => alloc::vec![format!("does not stand: {reason}")],
                };
                if judged.members.contains_key(key) {
                    reasons.extend(alive(&judged, &self.me, key));
                }
                let refused = judged.refused.iter().filter(|(_, entry)| entry.author == *key);
                reasons.extend(
                    refused.map(|(_, entry)| format!("its entry {} does not count: {}", entry.key, entry.reason)),
                );
                reasons
            }
            Target::Name(name) => owned(&judged, &self.me, name),
            Target::Seed(name) => seeded(&judged, name),
        }
    }
}

/// The path to the root, and every edge that bounds the member's rights.
fn stands(judged: &Judged<'_>, roll: &Roll, member: &Member) -> Vec<String> {
    let called = |key: &NodeKey| if *key == roll.root() { "the root".into() } else { judged.called(key) };
    let mut path: Vec<NodeKey> = member.path.clone();
    path.push(roll.root());
    let chain: Vec<_> = path.iter().map(called).collect();
    let rights = &member.rights;
    let mut reasons = alloc::vec![format!(
        "stands as {} on {}, with a quota of {} KiB",
        rights.tier,
        chain.join(", which stands on "),
        rights.quota_kib
    )];
    reasons.extend(rights.expires.map(|end| format!("its membership ends {end}")));
    let below: Vec<NodeKey> = core::iter::once(member.key).chain(member.path.iter().copied()).collect();
    for (at, lower) in below.iter().enumerate() {
        for upper in &path[at..] {
            if let Some(edge) = roll.edge(upper, lower)
                && let Some(rights) = &edge.rights
            {
                reasons.push(format!(
                    "{} grants {} {}, quota {} KiB",
                    called(upper),
                    called(lower),
                    rights.tier,
                    rights.quota_kib
                ));
            }
            let redeemed = roll.get(Kind::Redeem, upper, lower).and_then(|redeem| redeem.witness());
            reasons.extend(redeemed.map(|witness| {
                format!("{} was redeemed before {}, {}", called(upper), called(&witness.key), witness.at)
            }));
        }
    }
    reasons
}

/// Which links vouch for a node, or why none does.
fn alive(judged: &Judged<'_>, me: &NodeKey, node: &NodeKey) -> Vec<String> {
    let alive = judged.links.alive(*me);
    match alive.liveness(node) {
        Liveness::Me => alloc::vec!["is this node".to_string()],
        Liveness::Online { .. } => {
            let path: Vec<_> = alive.path(node).iter().map(|key| judged.called(key)).collect();
            alloc::vec![format!("online: both ends claim each link of {}", path.join(" - "))]
        }
        Liveness::Offline => {
            let sides = judged.links.claimants(node).map(|peer| {
                let peer_called = judged.called(peer);
                if judged.links.claims(node, peer) {
                    format!("offline with {peer_called}: they are linked, but nothing links them with this node")
                } else {
                    format!("offline: {peer_called} claims a link with it that it does not claim")
                }
            });
            let mut reasons: Vec<String> = sides.collect();
            if reasons.is_empty() {
                reasons.push("offline: nobody claims a link with it".to_string());
            }
            reasons
        }
    }
}

/// Who owns a name and by which rule, who lost it, and who provides it or why not.
fn owned(judged: &Judged<'_>, me: &NodeKey, name: &Name) -> Vec<String> {
    let mut reasons = Vec::new();
    let alive = judged.links.alive(*me);
    match judged.contests.get(name) {
        None => reasons.push(format!("nobody who may claims the name {name}")),
        Some(contest) => {
            let (owner, called) = (contest.owner(), |key: &NodeKey| judged.called(key));
            reasons.extend(contest.reasons(name, called));
            let providers = judged.providers.get(name).map_or(&[][..], |providers| &providers[..]);
            for provider in providers {
                let by = if provider.node == owner.author { "as its owner" } else { "as the owner shares it" };
                let online = if alive.liveness(&provider.node).is_online() { "online" } else { "offline" };
                let (port, called) = (provider.port, judged.called(&provider.node));
                let protocol = match provider.protocol {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                };
                reasons.push(format!("{called} provides it {by}, on {protocol} port {port}, and is {online}"));
            }
            if providers.is_empty() {
                reasons.push("nobody provides it: its owner only holds the name".to_string());
            }
        }
    }
    reasons.extend(refused(judged, &Target::Name(name.clone())));
    reasons
}

/// Who owns a seed's name, and what does not count of what is said of it. Where it is placed is said by whoever
/// places it.
fn seeded(judged: &Judged<'_>, name: &Name) -> Vec<String> {
    let mut reasons = match judged.seeds.get(name) {
        None => alloc::vec![format!("nobody who may claims the seed {name}")],
        Some(contest) => contest.reasons(name, |key| judged.called(key)),
    };
    reasons.extend(refused(judged, &Target::Seed(name.clone())));
    reasons
}

/// The entries about something that do not count.
fn refused<'a>(judged: &'a Judged<'_>, target: &'a Target) -> impl Iterator<Item = String> + 'a {
    let about = judged.refused.iter().filter(move |(about, _)| about.as_ref() == Some(target));
    about.map(|(_, entry)| {
        format!("the entry {} of {} does not count: {}", entry.key, judged.called(&entry.author), entry.reason)
    })
}
