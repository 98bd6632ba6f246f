//! Making statements: the right generation, rights that repeat what they must, limits kept. Owns what an honest
//! signer does; what a hostile one can do is [`super::settle`]'s to bound. Changes no roll: the caller merges.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::body::{Body, EdgeBody, Parent, RedeemTerms, RotateBody, Verdict};
use super::genesis::commitment;
use super::statement::{Draft, GENERATION_END, ROTATE_BODY_BYTES_MAX, Statement, StatementError};
use super::{Kind, Rights, Roll, Tier};
use crate::identity::{Digest, NodeKey, SecretKey};
use crate::time::UnixMs;

/// The most admins directly below the root. Its key is used by hand, and a rotation signs them all anew.
pub const ROOT_ADMINS_MAX: usize = 64;

/// What CBOR adds to each edge inside a rotation.
const INLINE_FRAMING_BYTES: usize = 5;

/// Why a statement was not made. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    #[error("the root key signs for admins only; let an admin do it")]
    RootAdmitsAdminsOnly,
    #[error("the root key signs no invites; let an admin do it")]
    RootInvitesNobody,
    #[error("the root already has {ROOT_ADMINS_MAX} admins")]
    RootIsFull,
    #[error("this node may not admit anyone: {0}")]
    MayNotAdmit(super::NotStanding),
    #[error("this key is not the cluster's root")]
    NotRoot,
    #[error("this key is not the successor that the root committed to")]
    NotSuccessor,
    #[error("the quota must be at least {} KiB", Rights::QUOTA_KIB_MIN)]
    QuotaTooSmall,
    #[error("the pool is used up: {needed_kib} KiB more do not fit into {pool_kib} KiB, of which {used_kib} are used")]
    PoolUsedUp { needed_kib: u64, used_kib: u64, pool_kib: u64 },
    #[error("{} is not known to {}", subject.short(), issuer.short())]
    NothingToClear { issuer: NodeKey, subject: NodeKey },
    #[error("the statement's generation would be beyond the greatest")]
    Generation,
    #[error("the statement would not be valid: {0}")]
    Statement(#[from] StatementError),
}

impl Roll {
    /// The generation after the slot's, and no less than the clock.
    fn generation(&self, kind: Kind, issuer: &NodeKey, subject: &NodeKey, now: UnixMs) -> Result<u64, SignError> {
        let held = self.trie().get(&super::statement::slot_path(kind, issuer, subject));
        let generation = held.map_or(0, |s| s.generation() + 1).max(now.0);
        if generation < GENERATION_END { Ok(generation) } else { Err(SignError::Generation) }
    }

    pub(super) fn sign_edge(
        &self,
        by: &SecretKey,
        subject: NodeKey,
        edge: EdgeBody,
        now: UnixMs,
    ) -> Result<Statement, SignError> {
        let generation = self.generation(Kind::Edge, &by.public(), &subject, now)?;
        let draft = Draft { cluster: self.cluster(), subject, generation, body: Body::Edge(edge) };
        Ok(draft.sign(by)?)
    }

    /// The defaults of a tier below `issuer`. An admin's pool is at most so large that twice the cost fits into what
    /// the issuer has left: while an invite is being adopted both count, and then there is room for another admin.
    #[must_use]
    pub fn default_rights(&self, issuer: &NodeKey, tier: Tier) -> Rights {
        let usage = self.usage(issuer);
        let half_left = u32::try_from(usage.pool_kib.saturating_sub(usage.cost_kib) / 2).unwrap_or(u32::MAX);
        let rights = Rights::of(tier);
        Rights { pool_kib: rights.pool_kib.min(half_left.saturating_sub(rights.quota_kib)), ..rights }
    }

    /// Admits `subject`, or replaces what it may do, down as well as up. Its seniority stays.
    ///
    /// # Errors
    /// If the root may not, or the issuer's pool does not allow it.
    pub fn admit(&self, by: &SecretKey, subject: NodeKey, rights: Rights, now: UnixMs) -> Result<Statement, SignError> {
        self.admit_since(by, subject, rights, None, now)
    }

    /// As [`Roll::admit`], of one who came in by a witness at `since`.
    pub(super) fn admit_since(
        &self,
        by: &SecretKey,
        subject: NodeKey,
        rights: Rights,
        since: Option<UnixMs>,
        now: UnixMs,
    ) -> Result<Statement, SignError> {
        let issuer = by.public();
        self.check_root(&issuer, &subject, &rights)?;
        if rights.quota_kib < Rights::QUOTA_KIB_MIN {
            return Err(SignError::QuotaTooSmall);
        }
        let held = self.get(Kind::Edge, &issuer, &subject);
        let since = held.and_then(|s| s.edge().map(|e| e.since.unwrap_or(UnixMs(s.generation())))).or(since);
        let edge = EdgeBody { since, ..EdgeBody::new(Verdict::Member, Some(rights)) };
        let statement = self.sign_edge(by, subject, edge, now)?;
        self.check_pool(&statement)?;
        Ok(statement)
    }

    fn check_root(&self, issuer: &NodeKey, subject: &NodeKey, rights: &Rights) -> Result<(), SignError> {
        if *issuer != self.root() {
            return Ok(());
        }
        if rights.tier != Tier::Admin {
            return Err(SignError::RootAdmitsAdminsOnly);
        }
        let others = self.edges_of(issuer, Verdict::Member).filter(|s| s.subject() != *subject).count();
        if others >= ROOT_ADMINS_MAX { Err(SignError::RootIsFull) } else { Ok(()) }
    }

    /// An invite: the edge to the one-use key `invite`. Not for publishing: it travels in the token.
    ///
    /// # Errors
    /// As [`Roll::admit`].
    pub fn invite(
        &self,
        by: &SecretKey,
        invite: NodeKey,
        rights: Rights,
        terms: RedeemTerms,
        now: UnixMs,
    ) -> Result<Statement, SignError> {
        if by.public() == self.root() {
            return Err(SignError::RootInvitesNobody);
        }
        if rights.quota_kib < Rights::QUOTA_KIB_MIN {
            return Err(SignError::QuotaTooSmall);
        }
        let edge = EdgeBody { invite: Some(terms), ..EdgeBody::new(Verdict::Invite, Some(rights)) };
        let statement = self.sign_edge(by, invite, edge, now)?;
        self.check_pool(&statement)?;
        Ok(statement)
    }

    /// Puts `subject`, and all below it on a path through `by`, out. Also revokes an invite, by its key.
    ///
    /// # Errors
    /// If the statement cannot be made.
    pub fn deny(&self, by: &SecretKey, subject: NodeKey, now: UnixMs) -> Result<Statement, SignError> {
        self.sign_edge(by, subject, self.repeated(&by.public(), &subject, Verdict::Denied), now)
    }

    /// As [`Roll::deny`], for one long unseen or replaced.
    ///
    /// # Errors
    /// If the statement cannot be made.
    pub fn retire(&self, by: &SecretKey, subject: NodeKey, now: UnixMs) -> Result<Statement, SignError> {
        self.sign_edge(by, subject, self.repeated(&by.public(), &subject, Verdict::Retired), now)
    }

    /// Lifts `by`'s own denial: a member of before is one again, of another's member nothing more is said.
    ///
    /// # Errors
    /// If `by` said nothing of `subject`.
    pub fn allow(&self, by: &SecretKey, subject: NodeKey, now: UnixMs) -> Result<Statement, SignError> {
        let issuer = by.public();
        let held = self.edge(&issuer, &subject).ok_or(SignError::NothingToClear { issuer, subject })?;
        let edge = match (&held.rights, &held.invite) {
            (Some(_), None) => EdgeBody { verdict: Verdict::Member, ..held.clone() },
            _ => EdgeBody::new(Verdict::Clear, None),
        };
        let statement = self.sign_edge(by, subject, edge, now)?;
        self.check_pool(&statement)?;
        Ok(statement)
    }

    /// The edge that `issuer` has to `subject`, with another verdict. Rights are repeated because the statements of a
    /// denied admin stay and go on counting against its issuer's pool; nothing stays of an invite key, so its cost goes.
    fn repeated(&self, issuer: &NodeKey, subject: &NodeKey, verdict: Verdict) -> EdgeBody {
        let held = self.edge(issuer, subject).cloned().unwrap_or_else(|| EdgeBody::new(verdict, None));
        let rights = held.rights.filter(|_| held.invite.is_none());
        EdgeBody { verdict, rights, ..held }
    }

    /// The denial of an invite key that is known from its token and not from the roll.
    pub(super) fn deny_used(
        &self,
        by: &SecretKey,
        invite: &Statement,
        holder: NodeKey,
        now: UnixMs,
    ) -> Result<Statement, SignError> {
        let Some(edge) = invite.edge() else { return Err(SignError::Statement(StatementError::Inline)) };
        let invite_terms = edge.invite.clone();
        let edge = EdgeBody { invite: invite_terms, redeemed_by: Some(holder), ..EdgeBody::new(Verdict::Denied, None) };
        self.sign_edge(by, invite.subject(), edge, UnixMs(now.0.max(invite.generation() + 1)))
    }

    /// On whom `me` stands from now on.
    ///
    /// # Errors
    /// If the statement cannot be made.
    pub fn stand(&self, me: &SecretKey, parent: Parent, now: UnixMs) -> Result<Statement, SignError> {
        let subject = me.public();
        let generation = self.generation(Kind::Stand, &subject, &subject, now)?;
        Ok(Draft { cluster: self.cluster(), subject, generation, body: Body::Stand(parent) }.sign(me)?)
    }

    /// Passes the root from `old` to `new`, whose edges repeat `old`'s. `next` commits to the root after.
    ///
    /// # Errors
    /// If `old` is not the root or `new` not the one it committed to.
    pub fn rotate(&self, old: &SecretKey, new: &SecretKey, next: Digest, now: UnixMs) -> Result<Statement, SignError> {
        if old.public() != self.root() {
            return Err(SignError::NotRoot);
        }
        if commitment(&new.public()) != self.next_root() {
            return Err(SignError::NotSuccessor);
        }
        let held = self.statements().filter(|s| s.issuer() == self.root());
        let mut held: Vec<&Arc<Statement>> =
            held.filter(|s| s.edge().is_some_and(|e| e.verdict != Verdict::Clear)).collect();
        // Should there be more than fit, members come first and the oldest denials are left out: the new root has no
        // edge to such a key, so it comes back only if an admin admits it anew.
        held.sort_by_key(|s| (s.edge().map(|e| e.verdict), core::cmp::Reverse(s.generation())));
        held.truncate(super::body::INLINE_EDGES_MAX);
        let again = |s: &Arc<Statement>| -> Result<Vec<u8>, SignError> {
            let edge = s.edge().cloned().unwrap_or_else(|| EdgeBody::new(Verdict::Clear, None));
            let edge = EdgeBody { since: edge.since.or(Some(UnixMs(s.generation()))), ..edge };
            Ok(self.sign_edge(new, s.subject(), edge, now)?.bytes().to_vec())
        };
        let (mut edges, mut bytes) = (Vec::new(), 0);
        for edge in held {
            let is_member = edge.edge().is_some_and(|e| e.verdict == Verdict::Member);
            let signed = again(edge)?;
            bytes += signed.len() + INLINE_FRAMING_BYTES;
            if !is_member && bytes > ROTATE_BODY_BYTES_MAX - INLINE_FRAMING_BYTES * 10 {
                break;
            }
            edges.push(signed);
        }
        let body = Body::Rotate(RotateBody { number: self.rotations() + 1, next, edges });
        let generation = self.generation(Kind::Rotate, &old.public(), &new.public(), now)?;
        let draft = Draft { cluster: self.cluster(), subject: new.public(), generation, body };
        Ok(draft.sign_rotation(old, new)?)
    }

    /// The edges of an issuer with this verdict.
    pub(super) fn edges_of(&self, issuer: &NodeKey, verdict: Verdict) -> impl Iterator<Item = &Arc<Statement>> {
        let issuer = *issuer;
        self.statements().filter(move |s| s.issuer() == issuer && s.edge().is_some_and(|e| e.verdict == verdict))
    }

    /// That a new edge fits beside the issuer's members, not in place of one.
    pub(super) fn check_pool(&self, edge: &Statement) -> Result<(), SignError> {
        let issuer = edge.issuer();
        let mut after = self.clone();
        let merged = after.settle_with(alloc::vec![Arc::new(edge.clone())]);
        let pushes_out_a_member = self
            .edges_of(&issuer, Verdict::Member)
            .any(|s| s.subject() != edge.subject() && after.get(Kind::Edge, &issuer, &s.subject()).is_none());
        let stored = after.get(Kind::Edge, &issuer, &edge.subject()).is_some();
        let unknown_issuer = merged.refused.iter().any(|(_, why)| *why == super::RollRefusal::Unsupported);
        if unknown_issuer || (stored && !pushes_out_a_member) {
            return Ok(());
        }
        let usage = self.usage(&issuer);
        let needed_kib = edge.edge().map_or(0, EdgeBody::cost_kib);
        Err(SignError::PoolUsedUp { needed_kib, used_kib: usage.cost_kib, pool_kib: usage.pool_kib })
    }

    /// Live members whom `me` should admit anew before old statements are pushed out by newer ones: from three
    /// quarters of its pool or statements on, those in the older half.
    ///
    /// # Errors
    /// If a statement cannot be made.
    pub fn renewals(&self, me: &SecretKey, now: UnixMs) -> Result<Vec<Statement>, SignError> {
        let issuer = me.public();
        let usage = self.usage(&issuer);
        let full = usage.statements * 4 >= usage.statements_max * 3 || usage.cost_kib * 4 >= usage.pool_kib * 3;
        if issuer == self.root() || usage.statements == 0 || !full {
            return Ok(Vec::new());
        }
        let mut edges: Vec<&Arc<Statement>> =
            self.statements().filter(|s| s.issuer() == issuer && s.edge().is_some()).collect();
        edges.sort_by_key(|s| s.rank());
        let live = |s: &Arc<Statement>| s.edge().is_some_and(|e| e.verdict == Verdict::Member);
        // Only what is older than something that may go: once all members are newer, renewing would change nothing.
        let Some(newest) = edges.iter().rev().find(|s| !live(s)).map(|s| s.rank()) else { return Ok(Vec::new()) };
        let older = &edges[..edges.len().div_ceil(2)];
        let due = older.iter().filter(|s| live(s) && s.rank() < newest);
        let renew = |s: &&Arc<Statement>| {
            let edge = s.edge().cloned().unwrap_or_else(|| EdgeBody::new(Verdict::Clear, None));
            let since = edge.since.or(Some(UnixMs(s.generation())));
            // The clock may be behind the generations that were signed.
            self.sign_edge(me, s.subject(), EdgeBody { since, ..edge }, now.max(UnixMs(newest.0 + 1)))
        };
        due.map(renew).collect()
    }
}
