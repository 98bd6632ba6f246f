//! How a cluster begins and how its root passes on: the genesis and the rotations after it. Owns the genesis format;
//! knows nothing of members. Invariant: the cluster id is the genesis' digest, so a lineage proves itself.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::cbor::{Error, read_all, read_map, required, written};
use super::statement::{Statement, StatementError};
use crate::hash::{Context, digest};
use crate::identity::{ClusterId, Digest, NodeKey, SecretKey, Signature, Verify};

const TAG: &[u8; 8] = b"pln/gene";
const VERSION: u8 = 1;

/// The longest genesis: two keys need far less, later fields fit.
pub const GENESIS_BYTES_MAX: usize = 512;

/// The most rotations of a cluster's life: one a month for twenty years.
pub const ROTATIONS_MAX: usize = 256;

/// The beginning of a cluster: its first root, and a commitment to the root after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    bytes: Vec<u8>,
    content_len: usize,
    root: NodeKey,
    next: Digest,
    signature: Signature,
}

/// Why bytes are no genesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenesisError {
    #[error("a genesis was cut off or is too long")]
    Length,
    #[error("not a genesis of a version that this program knows")]
    Tag,
    #[error("a malformed genesis")]
    Malformed,
}

impl From<Error> for GenesisError {
    fn from(_: Error) -> Self {
        Self::Malformed
    }
}

/// What commits to a root without showing its key.
#[must_use]
pub fn commitment(root: &NodeKey) -> Digest {
    digest(Context::Genesis, &[b"next root", &root.0])
}

impl Genesis {
    /// Founds a cluster. `next` commits to the successor's key (see [`commitment`]).
    #[must_use]
    pub fn sign(root: &SecretKey, next: Digest) -> Self {
        let mut bytes = TAG.to_vec();
        bytes.push(VERSION);
        bytes.extend(written(|e| e.map(2)?.u64(0)?.bytes(&root.public().0)?.u64(1)?.bytes(&next.0)?.ok()));
        let signature = root.sign(&bytes);
        let content_len = bytes.len();
        bytes.extend_from_slice(&signature.0);
        Self { bytes, content_len, root: root.public(), next, signature }
    }

    /// From exactly one genesis' bytes; the signature is [`Genesis::verify`]'s to check.
    ///
    /// # Errors
    /// If they are not well-formed.
    pub fn decode(bytes: &[u8]) -> Result<Self, GenesisError> {
        if bytes.len() > GENESIS_BYTES_MAX {
            return Err(GenesisError::Length);
        }
        let content_len = bytes.len().checked_sub(64).ok_or(GenesisError::Length)?;
        let (content, signature) = bytes.split_at(content_len);
        let body = content.strip_prefix(TAG).and_then(|rest| rest.strip_prefix(&[VERSION])).ok_or(GenesisError::Tag)?;
        let (mut root, mut next) = (None, None);
        read_all(body, |d| {
            read_map(d, |key, d| {
                match key {
                    0 => root = Some(d.decode()?),
                    1 => next = Some(d.decode()?),
                    _ => return Ok(false),
                }
                Ok(true)
            })
        })?;
        Ok(Self {
            bytes: bytes.to_vec(),
            content_len,
            root: required(root, "no root")?,
            next: required(next, "no commitment")?,
            signature: signature.try_into().map_err(|_| GenesisError::Length)?,
        })
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The identity of the cluster that begins here.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        ClusterId(digest(Context::Genesis, &[&self.bytes[..self.content_len]]).0)
    }

    /// The first root.
    #[must_use]
    pub const fn root(&self) -> NodeKey {
        self.root
    }

    /// The commitment to the second.
    #[must_use]
    pub const fn next(&self) -> Digest {
        self.next
    }

    /// Whether the root signed it.
    #[must_use]
    pub fn verify(&self, verify: &dyn Verify) -> bool {
        verify.verify(&self.root, &self.bytes[..self.content_len], &self.signature)
    }
}

/// A genesis and the rotations since, oldest first: who is root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    pub genesis: Genesis,
    pub rotations: Vec<Arc<Statement>>,
}

/// Why a lineage does not show who is root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineageError {
    #[error("the cluster's genesis is not signed by its root")]
    Signature,
    #[error("the cluster's genesis is malformed: {0}")]
    Genesis(#[from] GenesisError),
    #[error("a rotation is malformed: {0}")]
    Statement(#[from] StatementError),
    #[error("a rotation does not follow from the one before it")]
    Broken,
}
