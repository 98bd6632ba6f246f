//! Making members: founding a cluster, minting invites, redeeming them as an admin.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use rand_core::RngCore;

use super::link::Phase;
use super::persist::After;
use super::{EventKind, InviteTerms, LinkId, Node, Write, records};
use crate::identity::{Digest, NodeKey, SecretKey, Strict};
use crate::roll::{
    Contact, Genesis, Parent, RedeemTerms, Rights, Roll, SignError, Statement, StatementError, Tier, TokenError,
};
use crate::time::{Now, UnixMs};
use crate::wire::Message;

/// Admins named in a token, this node among them: any of them redeems it.
const CONTACTS_MAX: usize = 5;

/// Why a cluster was not founded.
pub type FoundError = SignError;

/// Why a token was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MintError {
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl MintError {
    /// Whether nobody could make an invite with these terms: properties that fit no statement, a quota below the least.
    pub(super) fn is_of_terms(&self) -> bool {
        matches!(self, Self::Sign(SignError::Statement(_) | SignError::QuotaTooSmall))
    }

    /// What the asker can do about it, where the error alone does not say.
    pub(super) fn hint(&self) -> Option<&'static str> {
        let too_long = matches!(self, Self::Sign(SignError::Statement(StatementError::BodyTooLong(_))));
        too_long.then_some("use fewer or shorter properties: all that a member may share 1 KiB")
    }
}

/// The records of a new cluster's first node. `root` signs only here; `next` commits to the key that may replace it
/// (see [`crate::roll::commitment`]).
///
/// # Errors
/// If the properties do not fit into a statement.
pub fn found(
    root: &SecretKey,
    next: Digest,
    node: &SecretKey,
    props: &BTreeMap<String, String>,
    now: UnixMs,
) -> Result<Vec<Write>, FoundError> {
    let mut roll = Roll::new(Genesis::sign(root, next));
    let rights = Rights { props: props.clone(), ..Rights::first_admin() };
    let edge = roll.admit(root, node.public(), rights, now)?;
    let stand = roll.stand(node, Parent::Root, now)?;
    roll.merge([Arc::new(edge), Arc::new(stand)], &Strict);
    Ok(records::of_roll(&roll))
}

impl Node {
    /// A token that admits one node on these terms; nothing is published yet.
    pub(super) fn mint(&mut self, terms: &InviteTerms, now: Now) -> Result<Vec<u8>, MintError> {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let redeem = RedeemTerms { not_after: terms.not_after, bound: terms.subject };
        let contacts = self.admin_contacts();
        let token = self.standing.invite(&self.secret, &seed, terms.rights.clone(), redeem, &contacts, now.unix)?;
        Ok(token.encode()?)
    }

    /// This node and other admins that can be reached, with their addresses.
    fn admin_contacts(&self) -> Vec<Contact> {
        let admins = self.view.nodes.values().filter(|info| info.member.rights.tier == Tier::Admin);
        let mut admins: Vec<_> = admins.filter(|info| !info.addrs.is_empty()).collect();
        admins.sort_by_key(|info| (info.key != self.me, !info.liveness.is_online(), info.key));
        let contacts = admins.into_iter().take(CONTACTS_MAX);
        contacts.map(|info| Contact { key: info.key, addrs: info.addrs.clone() }).collect()
    }

    /// The records that lead this node back to its cluster should all others be lost: the lineage, what shows that it
    /// and some neighbours stand, and where those are. Such a node signs nothing durable before a neighbour has told it
    /// what it had said.
    #[must_use]
    pub fn way_back(&self) -> Vec<Write> {
        let others = self.view.nodes.values().filter(|info| info.key != self.me && !info.addrs.is_empty());
        let mut others: Vec<_> = others.map(|info| (!info.liveness.is_online(), info.key, &info.addrs)).collect();
        others.sort_unstable_by_key(|(offline, key, _)| (*offline, *key));
        others.truncate(CONTACTS_MAX);
        // The order must not change with who is online, or the file would be written with each flap.
        others.sort_unstable_by_key(|(_, key, _)| *key);
        let members: Vec<NodeKey> = others.iter().map(|(_, key, _)| *key).chain([self.me]).collect();
        let contacts = others.iter().map(|(_, key, addrs)| records::contact(key, addrs));
        let told = self.contacts.iter().filter(|(key, _)| !members.contains(key));
        let told = told.map(|(key, addrs)| records::contact(key, addrs));
        let shown = records::of_members(&self.roll, &self.standing, &members);
        shown.into_iter().chain(contacts).chain(told).chain([records::returning(true)]).collect()
    }

    /// A joiner's first word: accept it into the roll, on disk, then say so.
    pub(super) fn redeem(&mut self, id: LinkId, statements: &[Vec<u8>], now: Now) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.phase = Phase::Joining;
        link.progress = now.mono;
        let peer = link.peer;
        match self.redeemed(&peer, statements, now) {
            Ok(message) => {
                self.event(EventKind::Joined, Some(peer), alloc::format!("{} joined by an invite", peer.short()));
                self.persist(Vec::new(), alloc::vec![After::Tell(id, Box::new(message))]);
            }
            Err(reason) => {
                self.refuse("invite");
                self.event(EventKind::Refused, Some(peer), alloc::format!("an invite was refused: {reason}"));
                self.send(id, &Message::Refused { reason });
            }
        }
    }

    fn redeemed(&mut self, peer: &NodeKey, statements: &[Vec<u8>], now: Now) -> Result<Message, String> {
        let decoded: Result<Vec<_>, _> =
            statements.iter().map(|bytes| Statement::decode(bytes).map(Arc::new)).collect();
        let decoded = decoded.map_err(|error| error.to_string())?;
        // TLS has proved the peer's key: nobody redeems in another's name.
        if !decoded.iter().any(|statement| statement.subject() == *peer) {
            return Err(String::from("the redemption names another machine than the one that brings it"));
        }
        let admitted = self.standing.redeem(&decoded, &self.secret, self.verify.as_ref(), now.unix);
        self.merge(admitted.map_err(|error| error.to_string())?, None, now);
        if let Err(reason) = self.standing.stands(peer, now.unix) {
            return Err(reason.to_string());
        }
        let shown = self.standing.bundle(peer).into_iter().chain(self.standing.bundle(&self.me));
        let mut shown: Vec<Arc<Statement>> = self.roll.lineage().rotations.into_iter().chain(shown).collect();
        shown.sort_by_key(|statement| statement.digest());
        shown.dedup_by_key(|statement| statement.digest());
        let statements = shown.iter().map(|statement| statement.bytes().to_vec()).collect();
        let contacts = self.admin_contacts().into_iter().map(|contact| (contact.key, contact.addrs)).collect();
        Ok(Message::Redeemed { statements, contacts })
    }

    /// What this node has to sign because the roll is as it is: redemptions of its invites that others witnessed, its
    /// own stand where a better one is open to it, and live members whose statements newer ones would push out. Each
    /// leaves less to sign, so this ends.
    pub(super) fn keep_roll(&mut self, now: Now) {
        let adopted = self.standing.adopt(&self.secret, now.unix).unwrap_or_default();
        let restand = self.standing.restand(&self.secret, now.unix).ok().flatten();
        let renewed = self.roll.renewals(&self.secret, now.unix).unwrap_or_default();
        let signed: Vec<_> = adopted.into_iter().chain(restand).chain(renewed).map(Arc::new).collect();
        if !signed.is_empty() {
            self.merge(signed, None, now);
        }
    }
}
