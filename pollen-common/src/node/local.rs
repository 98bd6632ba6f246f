//! What this node says itself: local requests become entries of its own maps, sealed, written, then published.
//! Owns which requests wait for which seal. Invariant: nothing is acknowledged before it is on disk.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use super::persist::After;
use super::{Command, LinkId, Node, Publish, Refusal, RefusalKind, Reply, RequestId};
use crate::identity::NodeKey;
use crate::maps::{Held, Lane, Sealed};
use crate::roll::{Tier, Verdict};
use crate::time::{Instant, Now};
use crate::views::entries::Claim;
use crate::views::{Name, Policy, Protocol, Target, entries};
use crate::wire::Message;

/// Addresses that a node says of itself.
const ADDRS_MAX: usize = 8;

/// Changes of so long share one head, one signature and one write.
const COALESCE: Duration = Duration::from_millis(20);

/// Local requests and what changed when.
#[derive(Clone, Debug, Default)]
pub(super) struct Local {
    /// Requests whose entries wait for the next seal of their lane.
    waiting: [Vec<RequestId>; 3],
    changed: [Option<Instant>; 3],
    /// This node said goodbye: it makes no more links.
    pub(super) leaving: bool,
    /// When what has changed in own lanes is to be sealed.
    seal_at: Option<Instant>,
}

impl Local {
    pub(super) fn note_change(&mut self, lane: Lane, now: Instant) {
        self.changed[lane.index()] = Some(now);
    }

    /// Own changes are sealed at `at`, or before.
    pub(super) fn seal_by(&mut self, at: Instant) {
        self.seal_at = Some(self.seal_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// When any author's lane last changed here.
    pub(super) fn changed(&self, lane: Lane) -> Option<Instant> {
        self.changed[lane.index()]
    }
}

pub(super) fn refusal(kind: RefusalKind, message: impl Into<String>) -> Refusal {
    Refusal { kind, message: message.into(), hint: None }
}

impl Node {
    pub(super) fn command(&mut self, id: RequestId, command: Command, now: Now) {
        let outcome = match command {
            Command::Announce { name, addrs } => self.announce(id, name.as_ref(), &addrs, now),
            Command::Serve(publish) => self.serve(id, publish, now),
            Command::Unserve { name, protocol, port } => self.unserve(id, name.as_ref(), protocol, port, now),
            Command::Invite { terms } => self.invite(id, &terms, now),
            Command::Grant { subject, grant } => self.grant(id, &subject, grant, now),
            Command::Deny { subject } => self.put_out(id, &subject, Verdict::Denied, now),
            Command::Retire { subject } => self.put_out(id, &subject, Verdict::Retired, now),
            Command::Allow { subject } => self.allow(id, &subject, now),
            Command::Submit { statements } => self.submit(id, &statements, now),
            Command::PutState { key, value } => self.write(id, Lane::State, &key, Some(value), now),
            Command::DeleteState { key } => self.write(id, Lane::State, &key, None, now),
            Command::Offer { capacity } => self.offer(id, capacity, now),
            Command::Seed { name, terms } => self.seed(id, &name, &terms, now),
            Command::Unseed { name } => self.unseed(id, &name, now),
            Command::Patience { patience } => self.set_patience(id, patience),
            Command::Drain => self.drain(id, now),
            Command::Leave => {
                self.leave(now);
                self.reply(id, Ok(Reply::Done));
                Ok(())
            }
        };
        if let Err(refusal) = outcome {
            self.reply(id, Err(refusal));
        }
    }

    fn announce(&mut self, id: RequestId, name: Option<&Name>, addrs: &[SocketAddr], now: Now) -> Result<(), Refusal> {
        let addrs = &addrs[..addrs.len().min(ADDRS_MAX)];
        let (key, value) = entries::node(name, addrs);
        self.write(id, Lane::Facts, &key, Some(value), now)
    }

    fn serve(&mut self, id: RequestId, publish: Publish, now: Now) -> Result<(), Refusal> {
        let Publish { name, protocol, port, shared, policy } = publish;
        self.require(Tier::Publisher, now)?;
        if !policy.fits() {
            let most = (Policy::PEERS_MAX, Policy::PROPS_MAX, Policy::TEXT_BYTES_MAX);
            let message =
                format!("a policy has at most {} peers and {} properties of {} bytes", most.0, most.1, most.2);
            return Err(refusal(RefusalKind::Usage, message));
        }
        let Some(name) = &name else {
            let (key, value) = entries::unnamed(protocol, port, &policy);
            return self.write(id, Lane::Facts, &key, Some(value), now);
        };
        let owner = self.view.services.get(name).filter(|service| service.owner != self.me);
        if let Some(service) = owner {
            if !service.shared {
                let owner = self.name_of(&service.owner);
                return Err(Refusal {
                    hint: Some(format!("choose another name, or ask {owner} to serve it with --shared")),
                    ..refusal(RefusalKind::Denied, format!("the name {name} belongs to {owner} and is not shared"))
                });
            }
            if service.protocol != protocol && !service.speaks(protocol) {
                let owner = self.name_of(&service.owner);
                return Err(Refusal {
                    hint: Some(format!("{owner} has to serve it so, or choose another name")),
                    ..refusal(
                        RefusalKind::Denied,
                        format!("the shared service {name} of {owner} speaks the other protocol"),
                    )
                });
            }
            let key = entries::provider_key(name, &service.owner);
            let offered = self.authoring.value(Lane::Facts, &key).and_then(entries::offered_in);
            let mut offered = offered.unwrap_or_default();
            offered.set_port(protocol, Some(port));
            offered.policy = policy;
            let (key, value) = entries::provider(name, &service.owner, &offered);
            return self.write(id, Lane::Facts, &key, Some(value), now);
        }
        let key = entries::claim_key(name);
        // A claim keeps its date when its details change: the date decides who owns the name.
        let own = self.authoring.value(Lane::Facts, &key).and_then(entries::claim_in);
        let new = Claim {
            protocol,
            port: None,
            also: None,
            shared,
            claimed: now.unix,
            hashes: Vec::new(),
            policy: Policy::default(),
        };
        let mut claim = Claim { shared, policy, ..own.unwrap_or(new) };
        claim.set_port(protocol, Some(port));
        let (key, value) = entries::claim(name, &claim);
        self.write(id, Lane::Facts, &key, Some(value), now)
    }

    fn unserve(
        &mut self,
        id: RequestId,
        name: Option<&Name>,
        protocol: Protocol,
        port: u16,
        now: Now,
    ) -> Result<(), Refusal> {
        let (name, claim) = match name {
            None => (port.to_string(), entries::unnamed(protocol, port, &Policy::default()).0),
            Some(name) => (name.to_string(), entries::claim_key(name)),
        };
        let prefix = name.parse().map(|name| entries::provider_prefix(&name)).ok();
        let provided = prefix.map(|prefix| self.authoring.keys(Lane::Facts, &prefix)).unwrap_or_default();
        let mut keys: Vec<Vec<u8>> = provided.into_iter().map(Vec::from).chain([claim]).collect();
        keys.retain(|key| self.authoring.value(Lane::Facts, key).is_some());
        let Some((last, rest)) = keys.split_last() else {
            return Err(refusal(RefusalKind::NotFound, format!("this node does not serve {name}")));
        };
        for key in rest {
            let left = self.without(key, protocol, port);
            self.put(Lane::Facts, key, left, now)?;
        }
        let left = self.without(last, protocol, port);
        self.write(id, Lane::Facts, last, left, now)
    }

    /// What is left of an own claim or offer when it no longer speaks `protocol`; with port 0, when it is withdrawn.
    fn without(&self, key: &[u8], protocol: Protocol, port: u16) -> Option<Vec<u8>> {
        let Some(Target::Name(name)) = entries::target_in(key).filter(|_| port > 0) else { return None };
        let value = self.authoring.value(Lane::Facts, key)?;
        if key == entries::claim_key(&name) {
            let mut claim = entries::claim_in(value)?;
            claim.set_port(protocol, None);
            return claim.port.map(|_| entries::claim(&name, &claim).1);
        }
        let mut offered = entries::offered_in(value)?;
        offered.set_port(protocol, None);
        let owner = NodeKey::try_from(&key[entries::provider_prefix(&name).len()..]).ok()?;
        offered.of_claim.map(|_| entries::provider(&name, &owner, &offered).1)
    }

    /// Changes an own entry; the request is answered when that is on disk.
    pub(super) fn write(
        &mut self,
        id: RequestId,
        lane: Lane,
        key: &[u8],
        value: Option<Vec<u8>>,
        now: Now,
    ) -> Result<(), Refusal> {
        if let Some(reason) = self.resting(now.mono) {
            // Waiting would outlast the asker.
            return Err(refusal(RefusalKind::Failed, reason));
        }
        if self.put(lane, key, value, now)? || self.authoring.has_unsealed(lane) {
            // If it was so already, then perhaps by a change that is not sealed yet.
            self.local.waiting[lane.index()].push(id);
        } else {
            // Its write may still be under way, and must be on disk before this is answered.
            self.persist(Vec::new(), alloc::vec![After::Reply(id, Ok(Reply::Done))]);
        }
        Ok(())
    }

    /// Whether that changed anything.
    pub(super) fn put(&mut self, lane: Lane, key: &[u8], value: Option<Vec<u8>>, now: Now) -> Result<bool, Refusal> {
        let member = self.standing.stands(&self.me, now.unix);
        let member = member.map_err(|reason| refusal(RefusalKind::Denied, reason.to_string()))?;
        let limit = lane.allowance_bytes(member.rights.quota_kib);
        let changed = match value {
            Some(value) => self.authoring.put(lane, key, &value, limit),
            None => Ok(self.authoring.delete(lane, key)),
        };
        if let Ok(true) = changed {
            self.local.seal_by(now.mono + COALESCE);
        }
        changed.map_err(|error| refusal(RefusalKind::Failed, error.to_string()))
    }

    pub(super) fn require(&self, tier: Tier, now: Now) -> Result<(), Refusal> {
        let mine = self.standing.stands(&self.me, now.unix).map_err(|r| refusal(RefusalKind::Denied, r.to_string()))?;
        if mine.rights.tier >= tier {
            return Ok(());
        }
        let who: Vec<_> = self.standing.could_grant(tier, now.unix).iter().map(|key| self.name_of(key)).collect();
        Err(Refusal {
            hint: Some(format!("{} could grant it", who.join(" or "))),
            ..refusal(
                RefusalKind::Denied,
                format!("this needs the tier {tier}, and this node is a {}", mine.rights.tier),
            )
        })
    }

    pub(super) fn name_of(&self, key: &NodeKey) -> String {
        let name = self.view.nodes.get(key).and_then(|info| info.name.as_ref());
        name.map_or_else(|| key.short(), |name| format!("{name} ({})", key.short()))
    }

    fn invite(&mut self, id: RequestId, terms: &super::InviteTerms, now: Now) -> Result<(), Refusal> {
        self.require(Tier::Admin, now)?;
        let token = self.mint(terms, now).map_err(|error| {
            // Whether it is the terms that no invite can have, or this node that may not give them.
            let kind = if error.is_of_terms() { RefusalKind::Usage } else { RefusalKind::Denied };
            Refusal { hint: error.hint().map(Into::into), ..refusal(kind, error.to_string()) }
        })?;
        self.reply(id, Ok(Reply::Token(token)));
        Ok(())
    }

    /// Withdraws its links and says goodbye: all who hear either know at once, whatever others still claim.
    fn leave(&mut self, now: Now) {
        self.local.leaving = true;
        for key in self.authoring.keys(Lane::Live, &[]) {
            let _ = self.put(Lane::Live, &key, None, now);
        }
        if let Some(sealed) = self.authoring.seal(now) {
            self.sealed(sealed, now);
        }
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for id in links {
            self.tell_last(id);
            self.send(id, &Message::Bye);
            self.close(id, "this node leaves");
        }
    }

    /// Own claims of links: exactly those that are open.
    pub(super) fn claim_links(&mut self, now: Now) {
        let live = self.links.values().filter(|link| link.is_live());
        let linked: BTreeMap<Vec<u8>, Vec<u8>> = live.map(|link| entries::link(&link.peer)).collect();
        let claimed = self.authoring.keys(Lane::Live, &[]);
        // Neither exceeds the quota: a link's entry is small, and neighbours are few.
        for key in claimed.iter().filter(|key| entries::is_link(key) && !linked.contains_key(&key[..])) {
            let _ = self.put(Lane::Live, key, None, now);
        }
        for (key, value) in linked {
            let _ = self.put(Lane::Live, &key, Some(value), now);
        }
    }

    /// Seals own lanes whose changes have waited long enough, and writes them.
    pub(super) fn author(&mut self, now: Now) {
        if self.view.nodes.len() <= 1 {
            // Nobody else could know anything of ours.
            self.authoring.release();
        }
        let Some(at) = self.local.seal_at.zip(self.authoring.sealable_at()).map(|(a, b)| a.max(b)) else { return };
        if now.mono < at {
            return self.due.by(at);
        }
        if let Some(sealed) = self.authoring.seal(now) {
            self.sealed(sealed, now);
        }
        // Lanes that may not be signed yet wait on.
        self.local.seal_at = self.authoring.sealable_at();
        self.local.seal_at.into_iter().for_each(|at| self.due.by(at));
    }

    pub(super) fn sealed(&mut self, sealed: Sealed, now: Now) {
        let waits = |held: &Arc<Held>| sealed.reserves || held.head().head().lane.is_durable();
        let (durable, passing): (Vec<_>, Vec<_>) = sealed.held.into_iter().partition(waits);
        self.publish(&passing, now);
        let lanes = durable.iter().map(|held| held.head().head().lane.index());
        let done: Vec<_> = lanes.flat_map(|lane| core::mem::take(&mut self.local.waiting[lane])).collect();
        let replies = done.into_iter().map(|id| After::Reply(id, Ok(Reply::Done)));
        let after = core::iter::once(After::Publish(durable)).chain(replies).collect();
        self.persist(sealed.writes, after);
    }
}
