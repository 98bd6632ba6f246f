//! An invite as a person carries it: a one-use secret key, what admits it, who is root, whom to ask. Owns the binary
//! form; people see it in base64url. Knows nothing of connections. Invariant: a token that opens is whole (checksum)
//! and about one cluster; that its signatures hold is for [`Token::roll`] and for the admin who redeems it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use super::body::{Body, Parent, Verdict};
use super::genesis::{GENESIS_BYTES_MAX, Genesis, GenesisError, Lineage, LineageError, ROTATIONS_MAX};
use super::statement::{Cursor, Draft, STATEMENT_BYTES_MAX, Statement, StatementError};
use super::{NotStanding, RedeemTerms, Rights, Roll, SignError, Standing};
use crate::hash::{Context, digest};
use crate::identity::{ClusterId, NodeKey, SecretKey, Verify};
use crate::time::UnixMs;

const MAGIC: &[u8; 3] = b"pln";
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 8;

/// The longest token: in base64url it still fits into one argument of a command (128 KiB on Linux).
pub const TOKEN_BYTES_MAX: usize = 96 * 1024 - 64;
/// The most admins whom a token names.
pub const CONTACTS_MAX: usize = 5;
/// The most addresses of each.
pub const CONTACT_ADDRS_MAX: usize = 8;
/// The most statements of an issuer's bundle: a path of eight keys, each with an edge from every key above, a stand
/// and a redemption, and witnesses' paths beside it.
const BUNDLE_MAX: usize = 512;

/// An admin who may redeem an invite, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    pub key: NodeKey,
    pub addrs: Vec<SocketAddr>,
}

/// An invite, with all that a machine that knows nothing else needs to redeem it.
#[derive(Clone, Debug)]
pub struct Token {
    /// The invite's own key. Never leaves the machine that redeems it.
    secret: SecretKey,
    invite: Arc<Statement>,
    /// Shows that the issuer stands.
    bundle: Vec<Arc<Statement>>,
    lineage: Lineage,
    contacts: Vec<Contact>,
}

/// Why a token cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("this is not a pollen token")]
    NotAToken,
    #[error("the token is of version {0}, which this program does not know; upgrade it")]
    Version(u8),
    #[error("the token is damaged or was cut off; copy it again in full")]
    Damaged,
    #[error("the token was tampered with: its parts do not belong together")]
    Inconsistent,
    #[error("the token was tampered with: {0}")]
    Statement(#[from] StatementError),
    #[error("the token was tampered with: {0}")]
    Lineage(#[from] LineageError),
    #[error("the token was tampered with: its invite is not signed by its issuer")]
    Signature,
    #[error("the token's issuer no longer stands: {0}")]
    IssuerNotStanding(NotStanding),
    #[error("the token is for another machine ({}), not for this one ({})", bound.short(), me.short())]
    BoundToAnother { bound: NodeKey, me: NodeKey },
    #[error("the token would be longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
}

impl From<GenesisError> for TokenError {
    fn from(error: GenesisError) -> Self {
        Self::Lineage(error.into())
    }
}

impl Standing {
    /// Invites: whoever redeems the token becomes a member with `rights` below `me`. `seed` is fresh entropy.
    /// A pool of the default size becomes what [`Roll::default_rights`] allows here, so that an admin by default can
    /// admit admins by default. Of `contacts` the first [`CONTACTS_MAX`] are named, each with its first [`CONTACT_ADDRS_MAX`] addresses.
    ///
    /// # Errors
    /// If `me` may not invite, or its pool is used up. Nothing is published either way.
    pub fn invite(
        &self,
        me: &SecretKey,
        seed: &[u8; 32],
        rights: Rights,
        terms: RedeemTerms,
        contacts: &[Contact],
        now: UnixMs,
    ) -> Result<Token, SignError> {
        self.stands_as_admin(&me.public(), now).map_err(SignError::MayNotAdmit)?;
        let secret = SecretKey::from_seed(seed);
        let mut rights = rights;
        if rights.pool_kib == Rights::POOL_KIB_ADMIN {
            rights.pool_kib = self.roll().default_rights(&me.public(), rights.tier).pool_kib;
        }
        let invite = Arc::new(self.roll().invite(me, secret.public(), rights, terms, now)?);
        let shorter = |c: &Contact| Contact { addrs: c.addrs.iter().take(CONTACT_ADDRS_MAX).copied().collect(), ..*c };
        Ok(Token {
            secret,
            invite,
            bundle: self.bundle(&me.public()),
            lineage: self.roll().lineage(),
            contacts: contacts.iter().take(CONTACTS_MAX).map(shorter).collect(),
        })
    }
}

impl Token {
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.invite.cluster()
    }

    /// The admin who invites.
    #[must_use]
    pub fn issuer(&self) -> NodeKey {
        self.invite.issuer()
    }

    /// The invite's public key: what `revoke` names.
    #[must_use]
    pub fn key(&self) -> NodeKey {
        self.invite.subject()
    }

    /// Admins to redeem it at, the issuer among them as far as it had addresses.
    #[must_use]
    pub fn contacts(&self) -> &[Contact] {
        &self.contacts
    }

    /// What the joiner is offered.
    #[must_use]
    pub fn rights(&self) -> Option<&Rights> {
        self.invite.edge().and_then(|edge| edge.rights.as_ref())
    }

    #[must_use]
    pub fn terms(&self) -> Option<&RedeemTerms> {
        self.invite.edge().and_then(|edge| edge.invite.as_ref())
    }

    /// The roll that the token shows: the lineage and the issuer's bundle. A joiner checks with it, and with the
    /// bundle of the peer that it dialled, that this peer stands in the token's cluster.
    ///
    /// # Errors
    /// If a signature does not hold or the issuer does not stand by what the token itself shows.
    pub fn roll(&self, verify: &dyn Verify, now: UnixMs) -> Result<Roll, TokenError> {
        let mut roll = Roll::from_lineage(&self.lineage, verify)?;
        roll.merge(self.bundle.iter().cloned(), verify);
        Standing::of(&roll).stands_as_admin(&self.issuer(), now).map_err(TokenError::IssuerNotStanding)?;
        if self.invite.verify(verify) { Ok(roll) } else { Err(TokenError::Signature) }
    }

    /// What `joiner` shows to an admin: the invite, its redemption (as yet without a witness), and the joiner's stand.
    ///
    /// # Errors
    /// If the invite is bound to another key.
    pub fn redemption(&self, joiner: &SecretKey, now: UnixMs) -> Result<Vec<Arc<Statement>>, TokenError> {
        let me = joiner.public();
        if let Some(bound) = self.terms().and_then(|terms| terms.bound).filter(|bound| *bound != me) {
            return Err(TokenError::BoundToAnother { bound, me });
        }
        let draft = |body| Draft { cluster: self.cluster(), subject: me, generation: now.0, body };
        let parent = Parent::Key { parent: self.issuer(), via: Some(self.key()) };
        Ok(alloc::vec![
            self.invite.clone(),
            Arc::new(draft(Body::Redeem).sign(&self.secret)?),
            Arc::new(draft(Body::Stand(parent)).sign(joiner)?),
        ])
    }

    /// The binary form.
    ///
    /// # Errors
    /// If it would be longer than a token may be: the lineage has too many large rotations.
    pub fn encode(&self) -> Result<Vec<u8>, TokenError> {
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        out.extend_from_slice(&*self.secret.seed());
        put(&mut out, self.lineage.genesis.bytes());
        put_all(&mut out, &self.lineage.rotations);
        put(&mut out, self.invite.bytes());
        put_all(&mut out, &self.bundle);
        out.push(u8::try_from(self.contacts.len()).unwrap_or(u8::MAX));
        for contact in &self.contacts {
            out.extend_from_slice(&contact.key.0);
            out.push(u8::try_from(contact.addrs.len()).unwrap_or(u8::MAX));
            contact.addrs.iter().for_each(|addr| put_addr(&mut out, addr));
        }
        let checksum = checksum(&out);
        out.extend_from_slice(&checksum);
        if out.len() <= TOKEN_BYTES_MAX { Ok(out) } else { Err(TokenError::TooLong) }
    }

    /// From exactly one token's bytes.
    ///
    /// # Errors
    /// If they are no token, damaged, or of parts that do not belong together.
    pub fn decode(bytes: &[u8]) -> Result<Self, TokenError> {
        let version = bytes.strip_prefix(MAGIC).and_then(|rest| rest.first()).ok_or(TokenError::NotAToken)?;
        if *version != VERSION {
            return Err(TokenError::Version(*version));
        }
        let content = bytes.len().checked_sub(CHECKSUM_BYTES).filter(|_| bytes.len() <= TOKEN_BYTES_MAX);
        let (content, sum) = bytes.split_at(content.ok_or(TokenError::Damaged)?);
        if checksum(content) != sum {
            return Err(TokenError::Damaged);
        }
        let mut cursor = Cursor(content.get(MAGIC.len() + 1..).ok_or(TokenError::Damaged)?);
        let token = Self {
            secret: SecretKey::from_seed(&cursor.array()?),
            lineage: Lineage {
                genesis: Genesis::decode(take(&mut cursor, GENESIS_BYTES_MAX)?)?,
                rotations: take_all(&mut cursor, ROTATIONS_MAX)?,
            },
            invite: Arc::new(Statement::decode(take(&mut cursor, STATEMENT_BYTES_MAX)?)?),
            bundle: take_all(&mut cursor, BUNDLE_MAX)?,
            contacts: take_contacts(&mut cursor)?,
        };
        let whole = cursor.0.is_empty() && token.is_consistent();
        if whole { Ok(token) } else { Err(TokenError::Inconsistent) }
    }

    fn is_consistent(&self) -> bool {
        let cluster = self.lineage.genesis.cluster();
        let statements = self.bundle.iter().chain(&self.lineage.rotations).chain([&self.invite]);
        self.invite.edge().is_some_and(|edge| edge.verdict == Verdict::Invite)
            && self.invite.subject() == self.secret.public()
            && statements.into_iter().all(|statement| statement.cluster() == cluster)
    }
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&digest(Context::Token, &[content]).0[..CHECKSUM_BYTES]);
    sum
}

/// Length (32 bits) and bytes.
fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Count (16 bits), then each.
fn put_all(out: &mut Vec<u8>, statements: &[Arc<Statement>]) {
    out.extend_from_slice(&u16::try_from(statements.len()).unwrap_or(u16::MAX).to_be_bytes());
    statements.iter().for_each(|statement| put(out, statement.bytes()));
}

/// Family (4 or 6), octets, port.
fn put_addr(out: &mut Vec<u8>, addr: &SocketAddr) {
    match addr.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&addr.port().to_be_bytes());
}

fn take<'a>(cursor: &mut Cursor<'a>, len_max: usize) -> Result<&'a [u8], TokenError> {
    let len = usize::try_from(u32::from_be_bytes(cursor.array()?)).unwrap_or(usize::MAX);
    if len > len_max { Err(TokenError::Inconsistent) } else { Ok(cursor.take(len)?) }
}

fn take_all(cursor: &mut Cursor<'_>, count_max: usize) -> Result<Vec<Arc<Statement>>, TokenError> {
    let count = usize::from(u16::from_be_bytes(cursor.array()?));
    if count > count_max {
        return Err(TokenError::Inconsistent);
    }
    (0..count).map(|_| Ok(Arc::new(Statement::decode(take(cursor, STATEMENT_BYTES_MAX)?)?))).collect()
}

fn take_contacts(cursor: &mut Cursor<'_>) -> Result<Vec<Contact>, TokenError> {
    let bounded =
        |count: u8, max: usize| if usize::from(count) <= max { Ok(count) } else { Err(TokenError::Inconsistent) };
    let [count] = cursor.array()?;
    let mut contact = || {
        let key = NodeKey(cursor.array()?);
        let [count] = cursor.array()?;
        let addrs = (0..bounded(count, CONTACT_ADDRS_MAX)?).map(|_| take_addr(cursor)).collect::<Result<_, _>>()?;
        Ok(Contact { key, addrs })
    };
    (0..bounded(count, CONTACTS_MAX)?).map(|_| contact()).collect()
}

fn take_addr(cursor: &mut Cursor<'_>) -> Result<SocketAddr, TokenError> {
    let ip = match cursor.array()? {
        [4] => IpAddr::from(cursor.array::<4>()?),
        [6] => IpAddr::from(cursor.array::<16>()?),
        _ => return Err(TokenError::Inconsistent),
    };
    Ok(SocketAddr::new(ip, u16::from_be_bytes(cursor.array()?)))
}
