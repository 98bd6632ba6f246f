//! Who may say what: every entry is counted or refused, each with its reason. Owns the rules; a view is their result
//! and `why` their reasons, so that the two cannot differ. Knows no network.
//! Invariant: equal standing and documents give equal judgements, in whatever order things arrived.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::net::SocketAddr;

use super::entries::{self, Claim, Said};
use super::links::Links;
use super::{Name, Provider, RefusedEntry};
use crate::identity::NodeKey;
use crate::maps::{Document, Lane};
use crate::roll::{Member, Standing, Tier};
use crate::time::UnixMs;

/// The most refused entries kept for one lane of one author: enough to see what goes wrong, while nobody can fill a view with
/// what does not count.
pub const REFUSED_PER_AUTHOR_MAX: usize = 32;

/// A claim of a name by a publisher that stands.
#[derive(Clone, Debug)]
pub(super) struct Contender {
    pub author: NodeKey,
    pub claim: Claim,
    /// Its date as it counts: none is older than its author's admission.
    pub since: UnixMs,
    /// Whether its author's rights grant a prefix of the name.
    pub granted: bool,
}

impl Contender {
    /// The least rank wins: a granted prefix, then the earliest, then the lowest key.
    fn rank(&self) -> (Reverse<bool>, UnixMs, NodeKey) {
        (Reverse(self.granted), self.since, self.author)
    }

    /// Why `self`, the winner, holds the name against `other`.
    pub(super) fn beats(&self, other: &Self, called: impl Fn(&NodeKey) -> String) -> String {
        let winner = called(&self.author);
        if self.granted != other.granted {
            format!("{winner} was granted a prefix of this name")
        } else if self.since != other.since {
            format!("{winner} claimed it earlier, {}", self.since)
        } else {
            format!("{winner} claimed it at the same moment and has the lower key")
        }
    }
}

/// All claims of one name and who provides it.
#[derive(Clone, Debug)]
pub(super) struct Contest {
    /// In order: the owner is the first.
    pub contenders: Vec<Contender>,
    /// In the order of their keys.
    pub providers: Vec<Provider>,
}

impl Contest {
    pub(super) fn owner(&self) -> &Contender {
        self.contenders.first().expect("a contest is opened by a claim")
    }
}

/// The judgement of all entries.
#[derive(Clone, Debug)]
pub(super) struct Judged<'a> {
    pub members: BTreeMap<NodeKey, &'a Member>,
    pub names: BTreeMap<NodeKey, Name>,
    pub addrs: BTreeMap<NodeKey, Vec<SocketAddr>>,
    pub contests: BTreeMap<Name, Contest>,
    pub unnamed: Vec<Provider>,
    pub links: Links,
    /// With the service that each is about, if any.
    pub refused: Vec<(Option<Name>, RefusedEntry)>,
}

impl<'a> Judged<'a> {
    /// Judges all that the members of `now` say.
    pub(super) fn of(standing: &'a Standing, document: &Document, now: UnixMs) -> Self {
        let members: BTreeMap<_, _> = standing.members_at(now).map(|member| (member.key, member)).collect();
        let mut judged = Self {
            members,
            names: BTreeMap::new(),
            addrs: BTreeMap::new(),
            contests: BTreeMap::new(),
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
        for contest in judged.contests.values_mut() {
            contest.contenders.sort_by_key(Contender::rank);
        }
        judged.count_providers(offers);
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
                refused.push((entries::name_in(key), refusal(author, key, reason)));
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
                    self.names.insert(*author, name);
                }
                self.addrs.insert(*author, addrs);
            }
            Said::Link { peer } => self.links.claim(*author, peer),
            Said::Unnamed { protocol, port } => {
                require_publisher(member)?;
                self.unnamed.push(Provider { node: *author, protocol, port });
            }
            Said::Provider { name, owner, port } => {
                require_publisher(member)?;
                offers.push(Offer { author: *author, name, owner, port });
            }
            Said::Claim { name, claim } => {
                require_publisher(member)?;
                let granted = member.rights.prefixes.iter().any(|prefix| name.as_str().starts_with(prefix.as_str()));
                let since = claim.claimed.max(UnixMs(member.admitted));
                let contest = self.contests.entry(name);
                let contest = contest.or_insert_with(|| Contest { contenders: Vec::new(), providers: Vec::new() });
                contest.contenders.push(Contender { author: *author, claim, since, granted });
            }
        }
        Ok(())
    }

    /// Counts owners that provide what they claim, and the others where the owner shares it.
    fn count_providers(&mut self, offers: Vec<Offer>) {
        for contest in self.contests.values_mut() {
            let owner = contest.owner();
            let own =
                owner.claim.port.map(|port| Provider { node: owner.author, protocol: owner.claim.protocol, port });
            contest.providers.extend(own);
        }
        for offer in offers {
            match self.judge_offer(&offer) {
                Ok(provider) => {
                    let contest = self.contests.get_mut(&offer.name).expect("the offer was judged by its contest");
                    contest.providers.push(provider);
                }
                Err(reason) => {
                    let key = entries::provider(&offer.name, &offer.owner, offer.port).0;
                    self.refused.push((Some(offer.name), refusal(&offer.author, &key, reason)));
                }
            }
        }
        self.contests.values_mut().for_each(|contest| contest.providers.sort_by_key(|provider| provider.node));
        self.refused.sort_by(|(_, a), (_, b)| (a.author, &a.key).cmp(&(b.author, &b.key)));
    }

    fn judge_offer(&self, offer: &Offer) -> Result<Provider, String> {
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
        Ok(Provider { node: offer.author, protocol: owner.claim.protocol, port: offer.port })
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
    port: u16,
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
