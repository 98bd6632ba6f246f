//! The joiner's side of redeeming an invite, before it is a member: what to say on a link's ordered stream, and what
//! to keep of the answer. Pure: the caller brings the connection and the disk.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::{Write, records};
use crate::identity::{ClusterId, NodeKey, SecretKey, Verify};
use crate::roll::{Contact, Standing, Statement, Token, TokenError};
use crate::time::UnixMs;
use crate::wire::{FrameError, Frames, Message, framed};

/// Why a token was not redeemed. Nothing was changed here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error("{0}")]
    Token(#[from] TokenError),
    /// The admin's own words.
    #[error("the invite was refused: {0}")]
    Refused(String),
    #[error("the peer broke the protocol")]
    Protocol,
    /// The answer does not show what it should: the peer is no admin of this cluster.
    #[error("the answer does not make this node a member of the token's cluster")]
    Unproven,
}

impl From<FrameError> for JoinError {
    fn from(_: FrameError) -> Self {
        Self::Protocol
    }
}

/// A membership, ready to be written.
#[derive(Clone, Debug)]
pub struct Joined {
    pub cluster: ClusterId,
    /// The records of a node that has joined; written atomically they make it a member.
    pub records: Vec<Write>,
}

/// One attempt to redeem a token at one admin.
pub struct Joining {
    token: Token,
    me: NodeKey,
    request: Vec<u8>,
    verify: Arc<dyn Verify + Send + Sync>,
    frames: Frames,
}

impl Joining {
    /// Reads a token and signs what redeems it. `joiner` is this node's key.
    pub fn new(
        token: &[u8],
        joiner: &SecretKey,
        verify: Arc<dyn Verify + Send + Sync>,
        now: UnixMs,
    ) -> Result<Self, JoinError> {
        let token = Token::decode(token)?;
        token.roll(verify.as_ref(), now)?;
        let statements = token.redemption(joiner, now)?.iter().map(|s| s.bytes().to_vec()).collect();
        let request = framed(&Message::Redeem { statements });
        Ok(Self { token, me: joiner.public(), request, verify, frames: Frames::default() })
    }

    /// The cluster that the token invites to.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.token.cluster()
    }

    /// The admins that may redeem it, in the order to try, and where they can be reached.
    #[must_use]
    pub fn contacts(&self) -> &[Contact] {
        self.token.contacts()
    }

    /// What to send on the ordered stream of a new link to a contact. Ends what an earlier contact had begun to say.
    pub fn request(&mut self) -> Vec<u8> {
        self.frames = Frames::default();
        self.request.clone()
    }

    /// Takes the next bytes of the contact's answer; `None` while it is not whole.
    pub fn answer(&mut self, contact: &NodeKey, bytes: &[u8], now: UnixMs) -> Result<Option<Joined>, JoinError> {
        self.frames.push(bytes);
        let Some(body) = self.frames.poll()? else { return Ok(None) };
        match Message::decode(&body) {
            Ok(Message::Redeemed { statements, contacts }) => {
                self.joined(contact, &statements, &contacts, now).map(Some)
            }
            Ok(Message::Refused { reason }) => Err(JoinError::Refused(reason)),
            _ => Err(JoinError::Protocol),
        }
    }

    fn joined(
        &self,
        contact: &NodeKey,
        statements: &[Vec<u8>],
        contacts: &[(NodeKey, Vec<SocketAddr>)],
        now: UnixMs,
    ) -> Result<Joined, JoinError> {
        // Built on the token's own lineage: a contact cannot pass another cluster for this one.
        let mut roll = self.token.roll(self.verify.as_ref(), now)?;
        let given: Result<Vec<_>, _> = statements.iter().map(|bytes| Statement::decode(bytes).map(Arc::new)).collect();
        roll.merge(given.map_err(|_| JoinError::Protocol)?, self.verify.as_ref());
        let standing = Standing::of(&roll);
        if standing.stands(&self.me, now).is_err() || standing.stands(contact, now).is_err() {
            return Err(JoinError::Unproven);
        }
        let told = self.token.contacts().iter().map(|contact| (contact.key, &contact.addrs));
        let known = told.chain(contacts.iter().take(records::CONTACTS_MAX).map(|(key, addrs)| (*key, addrs)));
        let records =
            records::of_roll(&roll).into_iter().chain(known.map(|(key, addrs)| records::contact(&key, addrs)));
        Ok(Joined { cluster: roll.cluster(), records: records.collect() })
    }
}
