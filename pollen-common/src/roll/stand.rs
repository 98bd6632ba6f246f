//! Who stands, and with which rights: computed from a roll, by keys and denials on the path to the root. Knows no
//! clock: expiry is compared with the time it is asked about. Invariant: the least fixpoint, so a circle of members
//! and witnesses who vouch for each other vouches for nobody.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::body::{Body, EdgeBody, Parent, Verdict};
use super::explain::NotStanding;
use super::{Kind, Rights, Roll, Statement, Tier};
use crate::identity::NodeKey;
use crate::time::UnixMs;

/// The most keys from a member up to below the root, its own and invite keys included: a chain of admission longer
/// than this is a mistake or a game.
pub const PATH_KEYS_MAX: usize = 8;

/// One who stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub key: NodeKey,
    /// The meet of every edge above it.
    pub rights: Rights,
    /// From its parent up: the keys on its path, invite keys included, the root's own excluded; so empty directly
    /// below the root.
    pub path: Vec<NodeKey>,
    /// When it was admitted (unix ms, as the admitting admin saw it): no claim of its counts as older.
    pub admitted: u64,
}

/// Who stands in a roll.
#[derive(Clone, Debug)]
pub struct Standing {
    roll: Roll,
    work: Arc<Work>,
}

impl Standing {
    /// Works out who stands.
    #[must_use]
    pub fn of(roll: &Roll) -> Self {
        let mut work = Work { edges: Edges::of(roll), members: BTreeMap::new() };
        let mut todo: BTreeSet<NodeKey> = work.edges.stands.keys().copied().collect();
        // Each success may let others succeed, by parent or by witness. At most one success for each member.
        while let Some(key) = todo.pop_first() {
            if work.members.contains_key(&key) {
                continue;
            }
            if let Ok(member) = work.judge(&key) {
                work.members.insert(key, member);
                todo.extend(work.edges.dependents.get(&key).into_iter().flatten().copied());
            }
        }
        Self { roll: roll.clone(), work: Arc::new(work) }
    }

    /// The roll that this is about.
    #[must_use]
    pub const fn roll(&self) -> &Roll {
        &self.roll
    }

    /// The member with this key.
    ///
    /// # Errors
    /// If it does not stand at `now`: why, naming the keys.
    pub fn stands(&self, key: &NodeKey, now: UnixMs) -> Result<&Member, NotStanding> {
        let Some(member) = self.work.members.get(key) else { return Err(self.work.explain(key)) };
        match member.rights.expires {
            Some(since) if since <= now => Err(NotStanding::Expired { key: *key, since }),
            _ => Ok(member),
        }
    }

    /// The member with this key, if it stands and is an admin.
    ///
    /// # Errors
    /// As [`Standing::stands`], and if it is no admin.
    pub fn stands_as_admin(&self, key: &NodeKey, now: UnixMs) -> Result<&Member, NotStanding> {
        let member = self.stands(key, now)?;
        if member.rights.tier == Tier::Admin { Ok(member) } else { Err(NotStanding::NotAdmin { key: *key }) }
    }

    /// All who stand but for expiry, in key order.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.work.members.values()
    }

    /// All who stand at `now`, in key order.
    pub fn members_at(&self, now: UnixMs) -> impl Iterator<Item = &Member> {
        self.members().filter(move |member| member.rights.expires.is_none_or(|end| end > now))
    }

    /// When the next membership ends by itself.
    #[must_use]
    pub fn next_expiry(&self, now: UnixMs) -> Option<UnixMs> {
        self.members().filter_map(|member| member.rights.expires).filter(|end| *end > now).min()
    }

    /// Who could raise a member to `tier`: the admins that stand, nearest to the root first.
    #[must_use]
    pub fn could_grant(&self, tier: Tier, now: UnixMs) -> Vec<NodeKey> {
        // One directly below an admin has a path one longer.
        let has_room = |m: &Member| m.path.len() + 1 < PATH_KEYS_MAX;
        let may = |m: &&Member| m.rights.tier == Tier::Admin && m.rights.tier >= tier && has_room(m);
        let mut admins: Vec<_> = self.members_at(now).filter(may).map(|m| (m.path.len(), m.key)).collect();
        admins.sort_unstable();
        admins.into_iter().map(|(_, key)| key).collect()
    }

    /// Everything that shows that `key` stands, to one who knows the lineage. Empty if it does not.
    #[must_use]
    pub fn bundle(&self, key: &NodeKey) -> Vec<Arc<Statement>> {
        let mut bundle: BTreeMap<_, Arc<Statement>> = BTreeMap::new();
        let mut todo = alloc::vec![*key];
        let mut done = BTreeSet::new();
        while let Some(member) = todo.pop().and_then(|key| self.work.members.get(&key)) {
            if !done.insert(member.key) {
                continue;
            }
            let keys: Vec<NodeKey> = core::iter::once(member.key).chain(member.path.iter().copied()).collect();
            for (at, lower) in keys.iter().enumerate() {
                let above = keys[at + 1..].iter().chain(core::iter::once(&self.roll.root));
                let edges = above.filter_map(|upper| self.roll.get(Kind::Edge, upper, lower));
                let redeems = keys[at + 1..].first().and_then(|upper| self.roll.get(Kind::Redeem, upper, lower));
                let stand = self.roll.get(Kind::Stand, lower, lower);
                for statement in edges.chain(redeems).chain(stand) {
                    todo.extend(statement.witness().map(|witness| witness.key));
                    bundle.insert(statement.slot(), statement.clone());
                }
            }
        }
        bundle.into_values().collect()
    }
}

/// The roll's statements with effect, by the keys that they join.
#[derive(Debug)]
pub(super) struct Edges {
    pub root: NodeKey,
    /// By issuer and subject.
    pub edges: BTreeMap<(NodeKey, NodeKey), Arc<Statement>>,
    pub stands: BTreeMap<NodeKey, Parent>,
    /// By invite key.
    pub redeems: BTreeMap<NodeKey, Arc<Statement>>,
    /// Everyone whom an edge is about.
    named: BTreeSet<NodeKey>,
    /// Who may stand once this one does: those that stand on it, and those whom it witnessed.
    dependents: BTreeMap<NodeKey, Vec<NodeKey>>,
}

impl Edges {
    fn of(roll: &Roll) -> Self {
        let mut all = Self {
            root: roll.root(),
            edges: BTreeMap::new(),
            stands: BTreeMap::new(),
            redeems: BTreeMap::new(),
            named: BTreeSet::new(),
            dependents: BTreeMap::new(),
        };
        for statement in roll.statements() {
            let (issuer, subject) = (statement.issuer(), statement.subject());
            match statement.body() {
                Body::Edge(_) => {
                    all.edges.insert((issuer, subject), statement.clone());
                    all.named.insert(subject);
                }
                Body::Stand(parent) => {
                    all.stands.insert(subject, *parent);
                    if let Parent::Key { parent, .. } = parent {
                        all.dependents.entry(*parent).or_default().push(subject);
                    }
                }
                Body::Redeem => {
                    all.redeems.insert(issuer, statement.clone());
                    if let Some(witness) = statement.witness() {
                        all.dependents.entry(witness.key).or_default().push(subject);
                    }
                }
                Body::Rotate(_) | Body::Unknown => {}
            }
        }
        all
    }

    pub(super) fn edge(&self, issuer: &NodeKey, subject: &NodeKey) -> Option<&EdgeBody> {
        self.edges.get(&(*issuer, *subject)).and_then(|statement| statement.edge())
    }

    fn generation(&self, issuer: &NodeKey, subject: &NodeKey) -> u64 {
        self.edges.get(&(*issuer, *subject)).map_or(0, |statement| statement.generation())
    }
}

/// How a member is joined to its parent.
struct Joint<'a> {
    /// The edge whose rights and properties hold: into the member, or into the invite key that it came by.
    rights: &'a Rights,
    via: Option<NodeKey>,
    admitted: u64,
    /// When the witness' membership ends: until adopted, the member falls with it.
    witness_expires: Option<UnixMs>,
}

/// Who stands, as far as worked out.
#[derive(Debug)]
pub(super) struct Work {
    pub edges: Edges,
    pub members: BTreeMap<NodeKey, Member>,
}

impl Work {
    /// Whether `key` stands, given who is known to.
    pub(super) fn judge(&self, key: &NodeKey) -> Result<Member, NotStanding> {
        let key = *key;
        let (above, rights_above, parent, via) = match self.edges.stands.get(&key) {
            None if self.edges.named.contains(&key) => return Err(NotStanding::NoStand { key }),
            None => return Err(NotStanding::Unknown { key }),
            Some(Parent::None) => return Err(NotStanding::Left { key }),
            Some(Parent::Root) => (Vec::new(), None, self.edges.root, None),
            Some(Parent::Key { parent, via }) => {
                let above = self.members.get(parent).ok_or(NotStanding::ParentNotStanding { key, parent: *parent })?;
                if above.rights.tier != Tier::Admin {
                    return Err(NotStanding::NotAdmin { key: *parent });
                }
                let path: Vec<_> = core::iter::once(*parent).chain(above.path.iter().copied()).collect();
                (path, Some(&above.rights), *parent, *via)
            }
        };
        let joint = self.joint(key, parent, via)?;
        let path: Vec<NodeKey> = joint.via.into_iter().chain(above.iter().copied()).collect();
        if path.contains(&key) {
            return Err(NotStanding::Loop { key });
        }
        if path.len() >= PATH_KEYS_MAX {
            return Err(NotStanding::TooDeep { key });
        }
        let uppers: Vec<NodeKey> = above.iter().copied().chain([self.edges.root]).collect();
        let mut rights = rights_above.map_or_else(|| joint.rights.clone(), |above| joint.rights.meet(above));
        self.bind(&uppers, key, &mut rights)?;
        if let Some(via) = joint.via {
            self.bind(&uppers, via, &mut rights)?;
            self.bind(&[via], key, &mut rights)?;
        }
        if let Some(above) = rights_above {
            rights.props.retain(|key, value| above.may_grant(key, value));
        }
        rights.expires = [rights.expires, joint.witness_expires].into_iter().flatten().min();
        Ok(Member { key, rights, path, admitted: joint.admitted })
    }

    /// Applies what every key above says of `key`: denials, and member edges, which all bind.
    fn bind(&self, uppers: &[NodeKey], key: NodeKey, rights: &mut Rights) -> Result<(), NotStanding> {
        for by in uppers {
            let Some(edge) = self.edges.edge(by, &key) else { continue };
            match (edge.verdict, &edge.rights) {
                (Verdict::Denied, _) => return Err(NotStanding::Denied { key, by: self.name(by) }),
                (Verdict::Retired, _) => return Err(NotStanding::Retired { key, by: self.name(by) }),
                (Verdict::Member, Some(_)) if !edge.understood => {
                    return Err(NotStanding::UnknownRight { key, by: self.name(by) });
                }
                (Verdict::Member, Some(bound)) => *rights = rights.meet(bound),
                _ => {}
            }
        }
        Ok(())
    }

    /// `None` for the root, whose key nobody needs to know.
    fn name(&self, key: &NodeKey) -> Option<NodeKey> {
        (*key != self.edges.root).then_some(*key)
    }

    /// What joins `key` to `parent`: the parent's own edge if there is one, else the invite that it came by.
    fn joint(&self, key: NodeKey, parent: NodeKey, via: Option<NodeKey>) -> Result<Joint<'_>, NotStanding> {
        if let Some(edge) = self.edges.edge(&parent, &key)
            && let (Verdict::Member, Some(rights)) = (edge.verdict, &edge.rights)
        {
            let generation = self.edges.generation(&parent, &key);
            let admitted = edge.since.map_or(generation, |since| since.0.min(generation));
            return Ok(Joint { rights, via: None, admitted, witness_expires: None });
        }
        match self.edges.edge(&parent, &key).map(|edge| edge.verdict) {
            Some(Verdict::Denied) => return Err(NotStanding::Denied { key, by: self.name(&parent) }),
            Some(Verdict::Retired) => return Err(NotStanding::Retired { key, by: self.name(&parent) }),
            _ => {}
        }
        let Some(via) = via else { return Err(NotStanding::NotAdmitted { key, by: self.name(&parent) }) };
        self.joint_by_invite(key, parent, via)
    }

    fn joint_by_invite(&self, key: NodeKey, parent: NodeKey, invite: NodeKey) -> Result<Joint<'_>, NotStanding> {
        let edge = self.edges.edge(&parent, &invite).filter(|edge| edge.verdict == Verdict::Invite);
        let Some((edge, terms, rights)) = edge.and_then(|e| Some((e, e.invite.as_ref()?, e.rights.as_ref()?))) else {
            return Err(NotStanding::InviteRevoked { key, invite });
        };
        if !edge.understood {
            return Err(NotStanding::UnknownRight { key, by: self.name(&parent) });
        }
        let redeemed = self.edges.redeems.get(&invite).and_then(|redeem| Some((redeem.subject(), redeem.witness()?)));
        let Some((holder, witness)) = redeemed else { return Err(NotStanding::NotRedeemed { key, invite }) };
        if holder != key {
            return Err(NotStanding::RedeemedByAnother { key, invite, holder });
        }
        if terms.bound.is_some_and(|bound| bound != key) {
            return Err(NotStanding::BoundToAnother { key, invite });
        }
        if witness.at > terms.not_after {
            return Err(NotStanding::RedeemedTooLate { key, invite });
        }
        let Some(standing) = self.members.get(&witness.key).filter(|w| w.rights.tier == Tier::Admin) else {
            return Err(NotStanding::WitnessNotStanding { key, witness: witness.key });
        };
        let admitted = witness.at.0.max(self.edges.generation(&parent, &invite));
        Ok(Joint { rights, via: Some(invite), admitted, witness_expires: standing.rights.expires })
    }
}
