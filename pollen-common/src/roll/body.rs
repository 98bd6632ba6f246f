//! The bodies of statements: what each kind says beyond its header. Owns their encoding; knows nothing of keys or
//! signatures around them. Invariant: a body that decodes is meaningful by itself; unknown fields were ignored,
//! except in rights, where they are remembered as not understood.

use alloc::vec::Vec;

use super::cbor::{self, Error, Writer, Written, definite, read_map, required};
use super::rights::Rights;
use super::statement::{Kind, ROTATE_BODY_BYTES_MAX};
use crate::identity::{Digest, NodeKey};
use crate::time::UnixMs;

/// The most edges that a rotation carries inline: each admin below the root, and as many that it denies.
pub const INLINE_EDGES_MAX: usize = 128;

/// What the bytes of a body were lacking.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed body: {0}")]
pub struct BodyError(alloc::string::String);

impl From<Error> for BodyError {
    fn from(error: Error) -> Self {
        Self(alloc::format!("{error}"))
    }
}

/// What an edge says of its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// A member below the issuer.
    Member,
    /// A one-use key that may name one member.
    Invite,
    /// Out, with everything below it.
    Denied,
    /// Out for good and without blame: long unseen, or replaced.
    Retired,
    /// The issuer says nothing any more.
    Clear,
    /// Of a newer version: kept, without effect.
    Unknown(u8),
}

impl Verdict {
    const fn number(self) -> u8 {
        match self {
            Self::Member => 0,
            Self::Invite => 1,
            Self::Denied => 2,
            Self::Retired => 3,
            Self::Clear => 4,
            Self::Unknown(number) => number,
        }
    }

    const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Member,
            1 => Self::Invite,
            2 => Self::Denied,
            3 => Self::Retired,
            4 => Self::Clear,
            number => Self::Unknown(number),
        }
    }
}

/// How an invite may be redeemed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedeemTerms {
    /// No witness accepts it after this.
    pub not_after: UnixMs,
    /// Only this key may redeem it.
    pub bound: Option<NodeKey>,
}

/// What an edge says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeBody {
    pub verdict: Verdict,
    /// None for a verdict that repeats nothing (Clear).
    pub rights: Option<Rights>,
    /// Whether every clause of the rights is known here. If not, the edge grants nothing.
    pub understood: bool,
    /// The terms of an invite; a Denied or Retired of an invite key repeats them.
    pub invite: Option<RedeemTerms>,
    /// Where the key of a used invite is denied: who used it.
    pub redeemed_by: Option<NodeKey>,
    /// When the subject was first admitted, if that was before this edge: a new grant costs no seniority.
    pub since: Option<UnixMs>,
}

impl EdgeBody {
    /// An edge of plain rights.
    #[must_use]
    pub const fn new(verdict: Verdict, rights: Option<Rights>) -> Self {
        Self { verdict, rights, understood: true, invite: None, redeemed_by: None, since: None }
    }

    /// What it takes from its issuer's pool, in KiB.
    #[must_use]
    pub fn cost_kib(&self) -> u64 {
        let (quota, pool) = self.rights.as_ref().map_or((0, 0), |r| (u64::from(r.quota_kib), u64::from(r.pool_kib)));
        match self.verdict {
            Verdict::Member | Verdict::Invite => quota + pool,
            Verdict::Denied | Verdict::Retired => pool,
            Verdict::Clear | Verdict::Unknown(_) => 0,
        }
    }

    fn write(&self, e: &mut Writer<'_>) -> Written {
        let fields = 1
            + u64::from(self.rights.is_some())
            + u64::from(self.invite.is_some())
            + u64::from(self.redeemed_by.is_some())
            + u64::from(self.since.is_some());
        e.map(fields)?.u64(0)?.u8(self.verdict.number())?;
        if let Some(rights) = &self.rights {
            rights.write(e.u64(1)?)?;
        }
        if let Some(terms) = &self.invite {
            e.u64(2)?.map(1 + u64::from(terms.bound.is_some()))?.u64(0)?.u64(terms.not_after.0)?;
            if let Some(bound) = &terms.bound {
                e.u64(1)?.bytes(&bound.0)?;
            }
        }
        if let Some(by) = &self.redeemed_by {
            e.u64(3)?.bytes(&by.0)?;
        }
        if let Some(since) = self.since {
            e.u64(4)?.u64(since.0)?;
        }
        Ok(())
    }

    fn read(d: &mut minicbor::Decoder<'_>) -> Result<Self, Error> {
        let mut verdict = None;
        let mut edge = Self::new(Verdict::Clear, None);
        read_map(d, |key, d| {
            match key {
                0 => verdict = Some(Verdict::from_number(d.u8()?)),
                1 => {
                    let (rights, understood) = Rights::read(d)?;
                    edge.rights = Some(rights);
                    edge.understood = understood;
                }
                2 => edge.invite = Some(read_terms(d)?),
                3 => edge.redeemed_by = Some(d.decode()?),
                4 => edge.since = Some(UnixMs(d.u64()?)),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        edge.verdict = required(verdict, "an edge without a verdict")?;
        match edge.verdict {
            Verdict::Member if edge.rights.is_none() => Err(Error::message("a member edge without rights")),
            Verdict::Invite if edge.rights.is_none() || edge.invite.is_none() => {
                Err(Error::message("an invite without rights or terms"))
            }
            _ => Ok(edge),
        }
    }
}

fn read_terms(d: &mut minicbor::Decoder<'_>) -> Result<RedeemTerms, Error> {
    let (mut not_after, mut bound) = (None, None);
    // Who may redeem is a constraint: a clause not understood means refuse, so nobody may.
    let understood = read_map(d, |key, d| {
        match key {
            0 => not_after = Some(UnixMs(d.u64()?)),
            1 => bound = Some(d.decode()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let not_after = required(not_after, "an invite without its end")?;
    Ok(RedeemTerms { not_after: if understood { not_after } else { UnixMs(0) }, bound })
}

/// On whom a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// It has left.
    None,
    /// The root, whichever key that is by now.
    Root,
    /// An admin, by way of an invite key if it came by one and was not yet adopted.
    Key { parent: NodeKey, via: Option<NodeKey> },
}

/// What a change of the root says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotateBody {
    /// One more than the rotation before, the first being 1.
    pub number: u64,
    /// Commits to the root after the new one (see [`super::commitment`]).
    pub next: Digest,
    /// The new root's edges, each a whole statement, effective together with the rotation.
    pub edges: Vec<Vec<u8>>,
}

/// What a statement says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Edge(EdgeBody),
    Stand(Parent),
    Rotate(RotateBody),
    /// An invite key names the member that it admits; the rights are the invite's.
    Redeem,
    /// Of a kind that a newer version knows.
    Unknown,
}

impl Body {
    /// The bytes of the body. Unknown bodies are only ever passed on, never written anew.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        cbor::written(|e| match self {
            Self::Edge(edge) => edge.write(e),
            Self::Stand(Parent::None) => e.map(1)?.u64(0)?.u8(0)?.ok(),
            Self::Stand(Parent::Root) => e.map(1)?.u64(0)?.u8(1)?.ok(),
            Self::Stand(Parent::Key { parent, via }) => {
                e.map(2 + u64::from(via.is_some()))?.u64(0)?.u8(2)?.u64(1)?.bytes(&parent.0)?;
                via.map_or(Ok(()), |via| e.u64(2)?.bytes(&via.0)?.ok())
            }
            Self::Rotate(rotate) => {
                e.map(3)?.u64(0)?.u64(rotate.number)?.u64(1)?.bytes(&rotate.next.0)?.u64(2)?;
                e.array(rotate.edges.len() as u64)?;
                rotate.edges.iter().try_for_each(|edge| e.bytes(edge)?.ok())
            }
            Self::Redeem | Self::Unknown => e.map(0)?.ok(),
        })
    }

    pub(super) fn from_bytes(kind: Kind, bytes: &[u8]) -> Result<Self, BodyError> {
        Ok(match kind {
            Kind::Edge => Self::Edge(cbor::read_all(bytes, EdgeBody::read)?),
            Kind::Stand => Self::Stand(cbor::read_all(bytes, read_parent)?),
            Kind::Rotate => Self::Rotate(cbor::read_all(bytes, read_rotate)?),
            Kind::Redeem => {
                cbor::read_all(bytes, |d| read_map(d, |_, _| Ok(false)))?;
                Self::Redeem
            }
            Kind::Unknown(_) => Self::Unknown,
        })
    }
}

fn read_parent(d: &mut minicbor::Decoder<'_>) -> Result<Parent, Error> {
    let (mut which, mut parent, mut via) = (None, None, None);
    read_map(d, |key, d| {
        match key {
            0 => which = Some(d.u8()?),
            1 => parent = Some(d.decode()?),
            2 => via = Some(d.decode()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    match (required(which, "a stand without its kind of parent")?, parent) {
        (0, None) => Ok(Parent::None),
        (1, None) => Ok(Parent::Root),
        (2, Some(parent)) => Ok(Parent::Key { parent, via }),
        _ => Err(Error::message("a stand on no known kind of parent")),
    }
}

fn read_rotate(d: &mut minicbor::Decoder<'_>) -> Result<RotateBody, Error> {
    let (mut number, mut next, mut edges) = (None, None, Vec::new());
    read_map(d, |key, d| {
        match key {
            0 => number = Some(d.u64()?),
            1 => next = Some(d.decode()?),
            2 => {
                for _ in 0..definite(d.array()?)? {
                    edges.push(d.bytes()?.to_vec());
                    if edges.len() > INLINE_EDGES_MAX {
                        return Err(Error::message("too many edges in a rotation"));
                    }
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    debug_assert!(edges.iter().map(Vec::len).sum::<usize>() <= ROTATE_BODY_BYTES_MAX, "bounded by the body");
    Ok(RotateBody {
        number: required(number, "a rotation without its number")?,
        next: required(next, "a rotation without the next commitment")?,
        edges,
    })
}
