//! Who may say what: every entry is counted or refused, each with its reason. Owns the rules; a view is their result
//! and `why` their reasons, so that the two cannot differ. Knows no network.
//! Invariant: equal standing and documents give equal judgements, in whatever order things arrived.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::contest::{Contender, Contest};
use super::entries::{self, Claim, Offered, Said, SeedClaim};
use super::hosts::Hosts;
use super::links::Links;
use super::{Name, Protocol, Provider, RefusedEntry, Target, namesakes};
use crate::identity::NodeKey;
use crate::maps::{Document, Lane};
use crate::roll::{Member, Standing, Tier};
use crate::time::UnixMs;

/// The most refused entries kept for one lane of one author: enough to see what goes wrong, while nobody can fill a view with
/// what does not count.
pub const REFUSED_PER_AUTHOR_MAX: usize = 32;

/// The judgement of all entries.
#[derive(Clone, Debug)]
pub(super) struct Judged<'a> {
    pub members: BTreeMap<NodeKey, &'a Member>,
    /// What tells each from all others.
    pub names: BTreeMap<NodeKey, Name>,
    /// What each says it is called.
    pub chosen: BTreeMap<NodeKey, Name>,
    pub addrs: BTreeMap<NodeKey, Vec<SocketAddr>>,
    pub contests: BTreeMap<Name, Contest<Claim>>,
    /// By service, in the order of their keys.
    pub providers: BTreeMap<Name, Vec<Provider>>,
    pub seeds: BTreeMap<Name, Contest<SeedClaim>>,
    pub hosts: Hosts,
    pub unnamed: Vec<Provider>,
    pub links: Links,
    /// With the service or seed that each is about, if any.
    pub refused: Vec<(Option<Target>, RefusedEntry)>,
}

impl<'a> Judged<'a> {
    /// Judges all that the members of `now` say.
    pub(super) fn of(standing: &'a Standing, document: &Document, now: UnixMs) -> Self {
        let members: BTreeMap<_, _> = standing.members_at(now).map(|member| (member.key, member)).collect();
        let mut judged = Self {
            members,
            names: BTreeMap::new(),
            chosen: BTreeMap::new(),
            addrs: BTreeMap::new(),
            contests: BTreeMap::new(),
            providers: BTreeMap::new(),
            seeds: BTreeMap::new(),
            hosts: Hosts::default(),
            unnamed: Vec::new(),
            links: Links::default(),
            refused: Vec::new(),
        };
        let mut offers = Vec::new();
        let authors: Vec<NodeKey> = judged.members.keys().copied().collect();
        for author in &authors {
            for lane in [Lane::Facts, Lane::Live] {
                judged.read_lane(document, author, lane, &mut offers);
            }
        }
        judged.names = namesakes::told_apart(&judged.chosen, |key| judged.members[key].admitted);
        judged.contests.values_mut().for_each(Contest::settle);
        judged.seeds.values_mut().for_each(Contest::settle);
        judged.count_providers(offers);
        judged.count_hosts();
        judged.refused.sort_by(|(_, a), (_, b)| (a.author, &a.key).cmp(&(b.author, &b.key)));
        judged
    }

    fn read_lane(&mut self, document: &Document, author: &NodeKey, lane: Lane, offers: &mut Vec<Offer>) {
        let Some(held) = document.held(author, lane) else { return };
        let mut refused = Vec::new();
        // By key, so that what people read does not hop about as hashes do.
        let entries: BTreeMap<_, _> = held.map().iter().map(|entry| (entry.key(), entry)).collect();
        for (key, entry) in entries {
            let verdict = entries::read(lane, entry).map_err(|unread| unread.to_string());
            let verdict = verdict.and_then(|said| self.hear(author, said, offers));
            if let Err(reason) = verdict {
                refused.push((entries::target_in(key), refusal(author, key, reason)));
            }
        }
        let more = refused.len().saturating_sub(REFUSED_PER_AUTHOR_MAX);
        refused.truncate(REFUSED_PER_AUTHOR_MAX);
        if let (Some((_, last)), true) = (refused.last_mut(), more > 0) {
            last.reason = format!("{}; and {more} more entries in lane {lane} do not count", last.reason);
        }
        self.refused.append(&mut refused);
    }

    /// Takes what an author says, or says why it may not.
    fn hear(&mut self, author: &NodeKey, said: Said, offers: &mut Vec<Offer>) -> Result<(), String> {
        let member = self.members[author];
        match said {
            Said::Node { name, addrs } => {
                if let Some(name) = name {
                    self.chosen.insert(*author, name);
                }
                self.addrs.insert(*author, addrs);
            }
            Said::Link { peer } => self.links.claim(*author, peer),
            Said::Unnamed { protocol, port, policy } => {
                require_publisher(member)?;
                self.unnamed.push(Provider { node: *author, protocol, port, policy });
            }
            Said::Provider { name, owner, offered } => {
                require_publisher(member)?;
                offers.push(Offer { author: *author, name, owner, offered });
            }
            Said::Claim { name, claim } => {
                require_publisher(member)?;
                let contender = Contender::new(member, &name, claim.claimed, claim);
                self.contests.entry(name).or_default().enter(contender);
            }
            Said::Seed { name, claim } => {
                require_publisher(member)?;
                let contender = Contender::new(member, &name, claim.claimed, claim);
                self.seeds.entry(name).or_default().enter(contender);
            }
            Said::Host(capacity) => drop(self.hosts.capacity.insert(*author, capacity)),
            Said::Drains => drop(self.hosts.draining.insert(*author)),
            Said::Replica { version, name } => self.hosts.say_ready(*author, version, name)?,
            Said::Unable { version, why } => self.hosts.say_unable(*author, version, why)?,
            Said::Holds { module } => self.hosts.say_holding(*author, module)?,
        }
        Ok(())
    }

    /// Counts owners that provide what they claim, and the others where the owner shares it.
    fn count_providers(&mut self, offers: Vec<Offer>) {
        for (name, contest) in &self.contests {
            let owner = contest.owner();
            let own = |protocol| {
                let port = owner.claim.port_in(protocol)?;
                Some(Provider { node: owner.author, protocol, port, policy: owner.claim.policy.clone() })
            };
            self.providers.insert(name.clone(), Protocol::BOTH.into_iter().filter_map(own).collect());
        }
        for offer in offers {
            match self.judge_offer(&offer) {
                Ok(providers) => self.providers.entry(offer.name).or_default().extend(providers),
                Err(reason) => {
                    let key = entries::provider_key(&offer.name, &offer.owner);
                    self.refused.push((Some(Target::Name(offer.name)), refusal(&offer.author, &key, reason)));
                }
            }
        }
        self.providers
            .values_mut()
            .for_each(|providers| providers.sort_by_key(|provider| (provider.node, provider.protocol)));
    }

    /// Counts who serves and keeps what the seeds' owners name.
    fn count_hosts(&mut self) {
        let claims = self.seeds.iter().map(|(name, contest)| (name, &contest.owner().claim));
        let mut counts: BTreeMap<NodeKey, usize> = BTreeMap::new();
        for (author, key, about, reason) in self.hosts.settle(claims) {
            let count = counts.entry(author).or_default();
            *count += 1;
            if *count > REFUSED_PER_AUTHOR_MAX {
                continue;
            }
            self.refused.push((about.map(Target::Seed), refusal(&author, &key, reason)));
        }
    }

    fn judge_offer(&self, offer: &Offer) -> Result<Vec<Provider>, String> {
        let owner = self.contests.get(&offer.name).map(Contest::owner);
        let owner = owner.ok_or_else(|| format!("nobody claims the name {}", offer.name))?;
        let called = self.called(&owner.author);
        if owner.author == offer.author {
            return Err("it owns the name itself: its claim says what it provides".into());
        }
        if owner.author != offer.owner {
            return Err(format!("it was offered to {}, but {called} owns the name", self.called(&offer.owner)));
        }
        if !owner.claim.shared {
            return Err(format!("the claim of its owner {called} does not say shared"));
        }
        // Only as its owner has it: who asks for the name must find the same service wherever it is.
        let spoken = |protocol: &Protocol| *protocol == owner.claim.protocol || owner.claim.also.is_some();
        let provider = |protocol| {
            let port = offer.offered.port_in(protocol, owner.claim.protocol)?;
            Some(Provider { node: offer.author, protocol, port, policy: offer.offered.policy.clone() })
        };
        let providers: Vec<_> = Protocol::BOTH.into_iter().filter(spoken).filter_map(provider).collect();
        if providers.is_empty() {
            return Err(format!("its owner {called} does not speak that protocol"));
        }
        Ok(providers)
    }

    /// A node as sentences name it: its name if it has one, and its key's beginning.
    pub(super) fn called(&self, key: &NodeKey) -> String {
        self.names.get(key).map_or_else(|| key.short(), |name| format!("{name} ({})", key.short()))
    }
}

/// A publisher's offer to provide another's service.
struct Offer {
    author: NodeKey,
    name: Name,
    owner: NodeKey,
    offered: Offered,
}

fn require_publisher(member: &Member) -> Result<(), String> {
    if member.rights.tier >= Tier::Publisher {
        return Ok(());
    }
    Err(format!("its author is a {}; publishing takes a publisher", member.rights.tier))
}

fn refusal(author: &NodeKey, key: &[u8], reason: String) -> RefusedEntry {
    RefusedEntry { author: *author, key: entries::show_key(key), reason }
}
