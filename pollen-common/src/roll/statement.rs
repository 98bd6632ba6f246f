//! The signed statement: a fixed header, a body, perhaps a witness, signatures. Owns the format; the bytes received
//! are kept, hashed and passed on, never encoded anew. Knows nothing of which statements count.
//! Invariant: a digest covers content, witness and time but no signature, so one saying has one digest.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::body::{Body, BodyError};
use crate::hash::{Context, digest};
use crate::identity::{ClusterId, Digest, NodeKey, SecretKey, Signature, Verify};
use crate::time::UnixMs;

const TAG: &[u8; 8] = b"pln/stmt";
const WITNESS_TAG: &[u8; 8] = b"pln/witn";
const VERSION: u8 = 1;
/// Tag, version, cluster, kind, issuer, subject, generation, length of the body.
const HEADER_BYTES: usize = 8 + 1 + 32 + 1 + 32 + 32 + 8 + 4;
const SIGNATURE_BYTES: usize = 64;
/// Key and time.
const WITNESS_BYTES: usize = 32 + 8;

/// The longest body but for a rotation's: properties of any sensible size fit.
pub const BODY_BYTES_MAX: usize = 1024;
/// The longest body of a rotation: the edges of 64 admins fit.
pub const ROTATE_BODY_BYTES_MAX: usize = 64 * 1024;
/// The longest statement.
pub const STATEMENT_BYTES_MAX: usize = HEADER_BYTES + ROTATE_BODY_BYTES_MAX + 1 + WITNESS_BYTES + 3 * SIGNATURE_BYTES;
/// One more than the greatest generation.
pub const GENERATION_END: u64 = 1 << 63;

/// What a statement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// By an admin or the root: what it makes of the subject.
    Edge,
    /// By a member, of itself: on whom it stands.
    Stand,
    /// By the root and its successor: the succession.
    Rotate,
    /// By an invite key, witnessed by an admin: who used it.
    Redeem,
    /// Of a newer version.
    Unknown(u8),
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Self::Edge => 1,
            Self::Stand => 2,
            Self::Rotate => 3,
            Self::Redeem => 4,
            Self::Unknown(number) => number,
        }
    }

    const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Edge,
            2 => Self::Stand,
            3 => Self::Rotate,
            4 => Self::Redeem,
            number => Self::Unknown(number),
        }
    }
}

/// An admin who saw an invite being redeemed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    pub key: NodeKey,
    /// When, by its clock.
    pub at: UnixMs,
    signature: Signature,
}

/// One signed statement, well-formed; whether its signatures hold is [`Statement::verify`]'s to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    bytes: Vec<u8>,
    content_len: usize,
    digest: Digest,
    slot: Digest,
    cluster: ClusterId,
    kind: Kind,
    issuer: NodeKey,
    subject: NodeKey,
    generation: u64,
    body: Body,
    witness: Option<Witness>,
    signature: Signature,
    /// The new root's, of a rotation.
    successor_signature: Option<Signature>,
    /// The edges that a rotation carries.
    inline: Vec<Arc<Self>>,
}

/// Why bytes are no statement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    #[error("a statement was cut off or is too long")]
    Length,
    #[error("not a statement")]
    Tag,
    #[error("a statement of version {0}, which this program does not know")]
    Version(u8),
    #[error("a body of {0} bytes, more than its kind may have")]
    BodyTooLong(usize),
    #[error("a generation beyond the greatest")]
    Generation,
    #[error("a stand must be about its issuer")]
    StandOfAnother,
    #[error("only the redemption of an invite is witnessed")]
    Witnessed,
    #[error("a rotation carries what is not an edge of the new root")]
    Inline,
    #[error(transparent)]
    Body(#[from] BodyError),
}

/// Takes fixed pieces off the front of bytes.
pub(super) struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], StatementError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(StatementError::Length)?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], StatementError> {
        self.take(N)?.try_into().map_err(|_| StatementError::Length)
    }
}

impl Statement {
    /// From exactly one statement's bytes.
    ///
    /// # Errors
    /// If they are not well-formed; signatures are not looked at.
    pub fn decode(bytes: &[u8]) -> Result<Self, StatementError> {
        if bytes.len() > STATEMENT_BYTES_MAX {
            return Err(StatementError::Length);
        }
        let mut cursor = Cursor(bytes);
        if cursor.take(TAG.len())? != TAG {
            return Err(StatementError::Tag);
        }
        let [version] = cursor.array()?;
        if version != VERSION {
            return Err(StatementError::Version(version));
        }
        let cluster = ClusterId(cursor.array()?);
        let kind = Kind::from_number(cursor.array::<1>()?[0]);
        let (issuer, subject) = (NodeKey(cursor.array()?), NodeKey(cursor.array()?));
        let generation = u64::from_be_bytes(cursor.array()?);
        if generation >= GENERATION_END {
            return Err(StatementError::Generation);
        }
        if kind == Kind::Stand && issuer != subject {
            return Err(StatementError::StandOfAnother);
        }
        let body_len = usize::try_from(u32::from_be_bytes(cursor.array()?)).map_err(|_| StatementError::Length)?;
        if body_len > body_bytes_max(kind) {
            return Err(StatementError::BodyTooLong(body_len));
        }
        let body = Body::from_bytes(kind, cursor.take(body_len)?)?;
        let content_len = HEADER_BYTES + body_len;
        let seen = match cursor.array()? {
            [0] => None,
            [1] if matches!(kind, Kind::Redeem | Kind::Unknown(_)) => {
                Some((NodeKey(cursor.array()?), UnixMs(u64::from_be_bytes(cursor.array()?))))
            }
            _ => return Err(StatementError::Witnessed),
        };
        let covered_len = bytes.len() - cursor.0.len();
        let signature = Signature(cursor.array()?);
        let successor_signature = if kind == Kind::Rotate { Some(Signature(cursor.array()?)) } else { None };
        let witness = match seen {
            Some((key, at)) => Some(Witness { key, at, signature: Signature(cursor.array()?) }),
            None => None,
        };
        if !cursor.0.is_empty() {
            return Err(StatementError::Length);
        }
        let inline = inline_edges(&body, cluster, subject)?;
        let digest = digest(Context::Statement, &[&bytes[..covered_len]]);
        let slot = slot_path(kind, &issuer, &subject);
        let bytes = bytes.to_vec();
        Ok(Self {
            bytes,
            content_len,
            digest,
            slot,
            cluster,
            kind,
            issuer,
            subject,
            generation,
            body,
            witness,
            signature,
            successor_signature,
            inline,
        })
    }

    /// The bytes as they were signed and are passed on.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Of content, witness key and time.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The place in the roll's trie of all statements of this kind, issuer and subject.
    #[must_use]
    pub const fn slot(&self) -> Digest {
        self.slot
    }

    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    #[must_use]
    pub const fn issuer(&self) -> NodeKey {
        self.issuer
    }

    #[must_use]
    pub const fn subject(&self) -> NodeKey {
        self.subject
    }

    /// Orders the statements of one slot; about unix ms.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    #[must_use]
    pub const fn body(&self) -> &Body {
        &self.body
    }

    #[must_use]
    pub const fn witness(&self) -> Option<&Witness> {
        self.witness.as_ref()
    }

    /// What it says if it is an edge.
    #[must_use]
    pub const fn edge(&self) -> Option<&super::EdgeBody> {
        match &self.body {
            Body::Edge(edge) => Some(edge),
            _ => None,
        }
    }

    /// The edges that a rotation carries.
    pub(super) fn inline(&self) -> &[Arc<Self>] {
        &self.inline
    }

    /// What orders the statements of one issuer: generation, a denial before others, digest.
    pub(super) fn rank(&self) -> (u64, bool, Digest) {
        let denied = self.edge().is_some_and(|edge| edge.verdict == super::Verdict::Denied);
        (self.generation, denied, self.digest)
    }

    /// Whether every signature holds, those of edges carried inline too.
    #[must_use]
    pub fn verify(&self, verify: &dyn Verify) -> bool {
        let content = &self.bytes[..self.content_len];
        verify.verify(&self.issuer, content, &self.signature)
            && self.successor_signature.as_ref().is_none_or(|s| verify.verify(&self.subject, content, s))
            && self.witness.as_ref().is_none_or(|w| verify.verify(&w.key, &witness_message(&self.digest), &w.signature))
            && self.inline.iter().all(|edge| edge.verify(verify))
    }
}

const fn body_bytes_max(kind: Kind) -> usize {
    match kind {
        Kind::Rotate => ROTATE_BODY_BYTES_MAX,
        _ => BODY_BYTES_MAX,
    }
}

/// The trie path of a slot.
pub(super) fn slot_path(kind: Kind, issuer: &NodeKey, subject: &NodeKey) -> Digest {
    digest(Context::Path, &[b"roll", &[kind.number()], &issuer.0, &subject.0])
}

fn witness_message(digest: &Digest) -> [u8; 41] {
    let mut message = [0; 41];
    message[..8].copy_from_slice(WITNESS_TAG);
    message[8] = VERSION;
    message[9..].copy_from_slice(&digest.0);
    message
}

fn inline_edges(body: &Body, cluster: ClusterId, root: NodeKey) -> Result<Vec<Arc<Statement>>, StatementError> {
    let Body::Rotate(rotate) = body else { return Ok(Vec::new()) };
    let edge = |bytes: &Vec<u8>| {
        // The length first: no rotation within a rotation gets decoded.
        if bytes.len() > HEADER_BYTES + BODY_BYTES_MAX + 1 + SIGNATURE_BYTES {
            return Err(StatementError::Inline);
        }
        let edge = Statement::decode(bytes)?;
        let fits = edge.kind == Kind::Edge && edge.issuer == root && edge.cluster == cluster;
        if fits { Ok(Arc::new(edge)) } else { Err(StatementError::Inline) }
    };
    rotate.edges.iter().map(edge).collect()
}

/// What is to be signed.
pub(super) struct Draft {
    pub cluster: ClusterId,
    pub subject: NodeKey,
    pub generation: u64,
    pub body: Body,
}

impl Draft {
    fn content(&self, kind: Kind, issuer: &NodeKey) -> Vec<u8> {
        let body = self.body.to_bytes();
        let mut content = Vec::with_capacity(HEADER_BYTES + body.len() + 1 + 2 * SIGNATURE_BYTES);
        content.extend_from_slice(TAG);
        content.push(VERSION);
        content.extend_from_slice(&self.cluster.0);
        content.push(kind.number());
        content.extend_from_slice(&issuer.0);
        content.extend_from_slice(&self.subject.0);
        content.extend_from_slice(&self.generation.to_be_bytes());
        content.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
        content.extend_from_slice(&body);
        content
    }

    /// Signs an edge, a stand or an unwitnessed redemption.
    ///
    /// # Errors
    /// If the body is too long or otherwise not what a reader accepts.
    pub(super) fn sign(&self, by: &SecretKey) -> Result<Statement, StatementError> {
        let kind = match self.body {
            Body::Edge(_) => Kind::Edge,
            Body::Stand(_) => Kind::Stand,
            Body::Redeem => Kind::Redeem,
            Body::Rotate(_) | Body::Unknown => return Err(StatementError::Inline),
        };
        let mut bytes = self.content(kind, &by.public());
        let signature = by.sign(&bytes);
        bytes.push(0);
        bytes.extend_from_slice(&signature.0);
        Statement::decode(&bytes)
    }

    /// Signs a rotation with the old root's and the new root's key.
    ///
    /// # Errors
    /// As [`Draft::sign`].
    pub(super) fn sign_rotation(&self, old: &SecretKey, new: &SecretKey) -> Result<Statement, StatementError> {
        let mut bytes = self.content(Kind::Rotate, &old.public());
        let (by_old, by_new) = (old.sign(&bytes), new.sign(&bytes));
        bytes.push(0);
        bytes.extend_from_slice(&by_old.0);
        bytes.extend_from_slice(&by_new.0);
        Statement::decode(&bytes)
    }
}

impl Statement {
    /// A redemption with this witness in place of whichever it had.
    ///
    /// # Errors
    /// If it is no redemption.
    pub(super) fn witnessed(&self, by: &SecretKey, at: UnixMs) -> Result<Self, StatementError> {
        if self.kind != Kind::Redeem {
            return Err(StatementError::Witnessed);
        }
        let mut bytes = self.bytes[..self.content_len].to_vec();
        bytes.push(1);
        bytes.extend_from_slice(&by.public().0);
        bytes.extend_from_slice(&at.0.to_be_bytes());
        let digest = digest(Context::Statement, &[&bytes]);
        bytes.extend_from_slice(&self.signature.0);
        bytes.extend_from_slice(&by.sign(&witness_message(&digest)).0);
        Self::decode(&bytes)
    }
}
