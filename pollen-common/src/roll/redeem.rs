//! What becomes of an invite once somebody shows it: redeeming as an admin, adopting as its issuer, and where a
//! member moves its stand. Decides by signatures and standing; merges nothing itself.
//! Invariant: what is returned, merged, makes the joiner stand; otherwise there is an error that says why not.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::body::{Body, EdgeBody, Parent, RedeemTerms, Verdict};
use super::sign::SignError;
use super::{Kind, NotStanding, Rights, Standing, Statement};
use crate::identity::{ClusterId, NodeKey, SecretKey, Verify};
use crate::time::UnixMs;

/// Why an admin does not redeem an invite. Nothing was changed; each is a sentence for the joiner's terminal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedeemError {
    #[error("the token was tampered with: it does not hold an invite, its redemption and a stand that fit together")]
    Malformed,
    #[error("the token was tampered with: a signature does not hold")]
    Tampered,
    #[error("the token is for another cluster ({theirs:?}) than this one ({ours:?})")]
    WrongCluster { theirs: ClusterId, ours: ClusterId },
    #[error("this node may not admit anyone ({0}); ask another")]
    NotAdmin(NotStanding),
    #[error("this node was itself let in by a witness and not yet adopted, so it can witness nobody; ask another")]
    WitnessNotAdopted,
    #[error("the token expired at {not_after}; ask for a new one")]
    Expired { not_after: UnixMs },
    #[error("the token is for another machine ({})", bound.short())]
    BoundToAnother { bound: NodeKey },
    #[error("the token was already used, by {}; a token admits one machine", holder.short())]
    Used { holder: NodeKey },
    #[error("the token was revoked")]
    Revoked,
    #[error("the token's issuer no longer stands: {0}")]
    IssuerNotStanding(NotStanding),
    #[error("this machine is not let in: {0}")]
    Refused(NotStanding),
    #[error("the token's issuer has no room for another member: {0}")]
    Sign(#[from] SignError),
}

/// A redemption taken apart and found to be what it claims.
struct Shown<'a> {
    invite: &'a Arc<Statement>,
    redeem: &'a Arc<Statement>,
    stand: &'a Arc<Statement>,
    rights: &'a Rights,
    terms: &'a RedeemTerms,
}

impl<'a> Shown<'a> {
    fn parse(statements: &'a [Arc<Statement>]) -> Option<Self> {
        let [invite, redeem, stand] = statements else { return None };
        let edge = invite.edge().filter(|edge| edge.verdict == Verdict::Invite)?;
        let parent = Parent::Key { parent: invite.issuer(), via: Some(invite.subject()) };
        let fits = redeem.kind() == Kind::Redeem
            && redeem.issuer() == invite.subject()
            && *stand.body() == Body::Stand(parent)
            && stand.issuer() == redeem.subject();
        let shown = Self { invite, redeem, stand, rights: edge.rights.as_ref()?, terms: edge.invite.as_ref()? };
        fits.then_some(shown)
    }

    fn joiner(&self) -> NodeKey {
        self.stand.issuer()
    }

    fn issuer(&self) -> NodeKey {
        self.invite.issuer()
    }

    fn key(&self) -> NodeKey {
        self.invite.subject()
    }
}

impl Standing {
    /// Redeems an invite as the admin `me`, who should have synced its roll with whomever it can reach: what
    /// [`super::Token::redemption`] made becomes what is to be merged. The issuer itself admits the joiner and ends
    /// the invite; another admin witnesses. Nothing is to be merged if this very joiner was admitted before.
    ///
    /// # Errors
    /// A sentence that says which condition fails.
    pub fn redeem(
        &self,
        statements: &[Arc<Statement>],
        me: &SecretKey,
        verify: &dyn Verify,
        now: UnixMs,
    ) -> Result<Vec<Arc<Statement>>, RedeemError> {
        let ours = self.roll().cluster();
        if let Some(other) = statements.iter().find(|statement| statement.cluster() != ours) {
            return Err(RedeemError::WrongCluster { theirs: other.cluster(), ours });
        }
        let shown = Shown::parse(statements).ok_or(RedeemError::Malformed)?;
        self.stands_as_admin(&me.public(), now).map_err(RedeemError::NotAdmin)?;
        if !statements.iter().all(|statement| statement.verify(verify)) {
            return Err(RedeemError::Tampered);
        }
        if let Some(bound) = shown.terms.bound.filter(|bound| *bound != shown.joiner()) {
            return Err(RedeemError::BoundToAnother { bound });
        }
        if self.already_redeemed(&shown, now)? {
            return Ok(Vec::new());
        }
        if now > shown.terms.not_after {
            return Err(RedeemError::Expired { not_after: shown.terms.not_after });
        }
        self.stands_as_admin(&shown.issuer(), now).map_err(RedeemError::IssuerNotStanding)?;
        let result = self.admitting(&shown, me, now)?;
        let mut after = self.roll().clone();
        after.settle_with(result.clone());
        let witnessed = after.get(Kind::Redeem, &shown.key(), &shown.joiner()).is_some();
        if me.public() != shown.issuer() && !witnessed {
            return Err(RedeemError::WitnessNotAdopted);
        }
        Self::of(&after).stands(&shown.joiner(), now).map_err(RedeemError::Refused)?;
        Ok(result)
    }

    /// Whether this joiner redeemed this invite before and stands.
    fn already_redeemed(&self, shown: &Shown<'_>, now: UnixMs) -> Result<bool, RedeemError> {
        let edge = self.roll().edge(&shown.issuer(), &shown.key());
        let denied = edge.filter(|edge| matches!(edge.verdict, Verdict::Denied | Verdict::Retired));
        let redeemed = self.roll().statements().find(|s| s.kind() == Kind::Redeem && s.issuer() == shown.key());
        let holder = denied.and_then(|edge| edge.redeemed_by).or(redeemed.map(|s| s.subject()));
        match holder {
            Some(holder) if holder == shown.joiner() => {
                self.stands(&holder, now).map(|_| true).map_err(RedeemError::Refused)
            }
            Some(holder) => Err(RedeemError::Used { holder }),
            None if denied.is_some() => Err(RedeemError::Revoked),
            None => Ok(false),
        }
    }

    fn admitting(&self, shown: &Shown<'_>, me: &SecretKey, now: UnixMs) -> Result<Vec<Arc<Statement>>, RedeemError> {
        let roll = self.roll();
        if me.public() != shown.issuer() {
            roll.check_pool(shown.invite)?;
            let witnessed = Arc::new(shown.redeem.witnessed(me, now).map_err(SignError::from)?);
            return Ok(alloc::vec![shown.invite.clone(), witnessed, shown.stand.clone()]);
        }
        // An invite to anyone does not lift a denial of one: that takes `allow`.
        let key = shown.joiner();
        match roll.edge(&shown.issuer(), &key).map(|edge| edge.verdict) {
            Some(Verdict::Denied) => {
                return Err(RedeemError::Refused(NotStanding::Denied { key, by: Some(shown.issuer()) }));
            }
            Some(Verdict::Retired) => {
                return Err(RedeemError::Refused(NotStanding::Retired { key, by: Some(shown.issuer()) }));
            }
            _ => {}
        }
        let member = roll.admit(me, key, shown.rights.clone(), now)?;
        let used = roll.deny_used(me, shown.invite, key, now)?;
        Ok(alloc::vec![Arc::new(member), Arc::new(used), shown.stand.clone()])
    }

    /// What the admin `me` owes to redemptions that others witnessed while it was away: its own edge to each joiner
    /// that stands by one; and once that joiner stands on the edge, the end of the invite.
    ///
    /// # Errors
    /// If a statement cannot be made.
    pub fn adopt(&self, me: &SecretKey, now: UnixMs) -> Result<Vec<Statement>, SignError> {
        let (roll, issuer) = (self.roll(), me.public());
        let mut invites = roll.edges_of(&issuer, Verdict::Invite).peekable();
        if invites.peek().is_none() {
            return Ok(Vec::new());
        }
        let redeems: BTreeMap<NodeKey, &Arc<Statement>> =
            roll.statements().filter(|s| s.kind() == Kind::Redeem).map(|s| (s.issuer(), s)).collect();
        let mut adopted = Vec::new();
        for invite in invites {
            let redeem = redeems.get(&invite.subject()).and_then(|s| Some((s.subject(), s.witness()?.at)));
            let Some((joiner, seen)) = redeem else { continue };
            let stand = roll.get(Kind::Stand, &joiner, &joiner).map(|s| s.body());
            let stands_by_invite =
                stand == Some(&Body::Stand(Parent::Key { parent: issuer, via: Some(invite.subject()) }));
            match roll.edge(&issuer, &joiner) {
                None if stands_by_invite && self.stands(&joiner, now).is_ok() => {
                    if let Some(rights) = invite.edge().and_then(|edge| edge.rights.clone()) {
                        match roll.admit_since(me, joiner, rights.clone(), Some(seen), now) {
                            Ok(edge) => adopted.push(edge),
                            // No room for invite and edge beside each other: one takes the other's place at once.
                            Err(SignError::PoolUsedUp { .. }) => {
                                let edge =
                                    EdgeBody { since: Some(seen), ..EdgeBody::new(Verdict::Member, Some(rights)) };
                                adopted.push(roll.sign_edge(me, joiner, edge, now)?);
                                adopted.push(roll.deny_used(me, invite, joiner, now)?);
                            }
                            Err(error) => return Err(error),
                        }
                    }
                }
                Some(_) if !stands_by_invite => adopted.push(roll.deny_used(me, invite, joiner, now)?),
                _ => {}
            }
        }
        Ok(adopted)
    }

    /// The new stand that the member `me` should take, if any: from the invite that it came by to its issuer's own
    /// edge; to a higher admin that granted it anew; or, if it does not stand, to one on whom it would.
    ///
    /// # Errors
    /// If the statement cannot be made.
    pub fn restand(&self, me: &SecretKey, now: UnixMs) -> Result<Option<Statement>, SignError> {
        let key = me.public();
        let current = match self.roll().get(Kind::Stand, &key, &key).map(|s| s.body()) {
            Some(Body::Stand(Parent::None)) => return Ok(None),
            Some(Body::Stand(parent)) => Some(*parent),
            _ => None,
        };
        for parent in self.better_parents(&key, current, now) {
            let stand = self.roll().stand(me, parent, now)?;
            let mut after = self.roll().clone();
            after.settle_with(alloc::vec![Arc::new(stand.clone())]);
            if Self::of(&after).stands(&key, now).is_ok() {
                return Ok(Some(stand));
            }
        }
        Ok(None)
    }

    /// Parents whose own edge makes `key` a member, and for which it should leave its present one; best first.
    fn better_parents(&self, key: &NodeKey, current: Option<Parent>, now: UnixMs) -> Vec<Parent> {
        let root = self.roll().root();
        let (held, by_invite) = match current {
            Some(Parent::Root) => (Some(root), false),
            Some(Parent::Key { parent, via }) => (Some(parent), via.is_some()),
            _ => (None, false),
        };
        let generation = |by: &NodeKey| self.roll().get(Kind::Edge, by, key).map_or(0, |s| s.generation());
        let depth =
            |by: &NodeKey| if *by == root { Some(0) } else { self.stands(by, now).ok().map(|m| m.path.len() + 1) };
        let standing = self.stands(key, now).ok();
        let may_hold = |edge: &&Arc<Statement>| {
            let by = edge.issuer();
            let is_member = edge.subject() == *key && edge.edge().is_some_and(|e| e.verdict == Verdict::Member);
            is_member
                && match standing {
                    // It stands: only the issuer's own edge in place of its invite, or a newer word from higher up.
                    Some(_) if held == Some(by) => by_invite,
                    Some(member) => {
                        let higher = by == root || member.path.contains(&by);
                        higher && generation(&by) > held.map_or(0, |held| generation(&held))
                    }
                    None => held != Some(by) || by_invite,
                }
        };
        let mut parents: Vec<(usize, NodeKey)> = self
            .roll()
            .statements()
            .filter(may_hold)
            .filter_map(|edge| Some((depth(&edge.issuer())?, edge.issuer())))
            .collect();
        parents.sort_unstable();
        // Each is tried on a copy of the roll; whoever signs edges to us could otherwise make us try for long.
        parents.truncate(super::PATH_KEYS_MAX);
        let parent = |by| if by == root { Parent::Root } else { Parent::Key { parent: by, via: None } };
        parents.into_iter().map(|(_, by)| parent(by)).collect()
    }
}
