//! The signed head of one lane of one author: which content is current. Owns the fixed layout and its signature;
//! must not know who stands. Invariant: the bytes received are the bytes kept, checked, hashed and forwarded.
//!
//! Layout: tag `H`, version 1, cluster 32, author 32, lane 1, seq 8, root 32, count 4, bytes 8 (integers big-endian),
//! then the signature, 64, over [`SIGNED_PREFIX`] and all before it.

use alloc::vec::Vec;
use core::fmt;

use super::entry::{ENTRY_OVERHEAD_BYTES, SEQ_MAX};
use crate::hash::{Context, digest};
use crate::identity::{ClusterId, Digest, NodeKey, SecretKey, Signature, Verify};

const TAG: u8 = b'H';
const VERSION: u8 = 1;
const CONTENT_BYTES: usize = 119;

/// The size of a signed head.
pub const HEAD_BYTES: usize = CONTENT_BYTES + 64;

/// What precedes a head's content where it is signed, so that no other use of the key yields a head.
const SIGNED_PREFIX: &[u8] = b"pollen 2026 v1 head\0";

/// The three maps of each author, which differ in how they are kept and forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// What a node is and serves: durable.
    Facts,
    /// What holds only now, such as links: empty at boot, never on disk.
    Live,
    /// Shared state of seeds and people: durable.
    State,
}

impl Lane {
    /// In the order of their codes.
    pub const ALL: [Self; 3] = [Self::Facts, Self::Live, Self::State];

    /// The lane's code in every format.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Facts => 0,
            Self::Live => 1,
            Self::State => 2,
        }
    }

    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.code() == code)
    }

    /// Where the lane stands in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.code() as usize
    }

    /// Whether it outlives the process.
    #[must_use]
    pub const fn is_durable(self) -> bool {
        !matches!(self, Self::Live)
    }

    /// The bytes that the lane of a member with a quota of `quota_kib` may count: an eighth for live, half for facts.
    #[must_use]
    pub fn allowance_bytes(self, quota_kib: u32) -> u64 {
        let eighths = match self {
            Self::Facts => 4,
            Self::Live => 1,
            Self::State => 3,
        };
        u64::from(quota_kib) * 1024 / 8 * eighths
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Facts => "facts",
            Self::Live => "live",
            Self::State => "state",
        })
    }
}

/// What a head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub cluster: ClusterId,
    pub author: NodeKey,
    pub lane: Lane,
    /// At most [`SEQ_MAX`]; the greater (seq, root) replaces the lesser.
    pub seq: u64,
    /// Of the trie of entries; zero when empty.
    pub root: Digest,
    /// Of entries.
    pub count: u32,
    /// Counted bytes of all entries, see [`super::Entry::size_bytes`].
    pub size_bytes: u64,
}

/// Why bytes are no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("a head has {HEAD_BYTES} bytes")]
    Length,
    #[error("not a head of a version known here")]
    Version,
    #[error("no such lane")]
    Lane,
    #[error("the sequence is beyond 2^63 - 1")]
    Seq,
    #[error("count, bytes and root contradict each other")]
    Contradiction,
}

/// A head as its author signed it. Whether the signature holds is asked with [`Self::verify`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SignedHead {
    head: Head,
    bytes: [u8; HEAD_BYTES],
}

impl SignedHead {
    /// Parses the fixed layout; the signature is not yet checked.
    ///
    /// # Errors
    /// If the bytes are no head.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeadError> {
        let bytes: [u8; HEAD_BYTES] = bytes.try_into().map_err(|_| HeadError::Length)?;
        if bytes[..2] != [TAG, VERSION] {
            return Err(HeadError::Version);
        }
        let head = Head {
            cluster: ClusterId(part(&bytes, 2)),
            author: NodeKey(part(&bytes, 34)),
            lane: Lane::from_code(bytes[66]).ok_or(HeadError::Lane)?,
            seq: u64::from_be_bytes(part(&bytes, 67)),
            root: Digest(part(&bytes, 75)),
            count: u32::from_be_bytes(part(&bytes, 107)),
            size_bytes: u64::from_be_bytes(part(&bytes, 111)),
        };
        if head.seq > SEQ_MAX {
            return Err(HeadError::Seq);
        }
        let empty = head.count == 0;
        let at_least = u64::from(head.count) * ENTRY_OVERHEAD_BYTES;
        if empty != (head.root == Digest::ZERO) || empty != (head.size_bytes == 0) || head.size_bytes < at_least {
            return Err(HeadError::Contradiction);
        }
        Ok(Self { head, bytes })
    }

    /// Signs `head`, whose author must be `secret`'s public key.
    #[must_use]
    pub fn sign(head: Head, secret: &SecretKey) -> Self {
        assert!(head.author == secret.public(), "a head is signed by its author");
        assert!(head.seq <= SEQ_MAX, "sequences are reserved below the bound");
        let mut content = Vec::with_capacity(CONTENT_BYTES);
        content.extend_from_slice(&[TAG, VERSION]);
        content.extend_from_slice(&head.cluster.0);
        content.extend_from_slice(&head.author.0);
        content.push(head.lane.code());
        content.extend_from_slice(&head.seq.to_be_bytes());
        content.extend_from_slice(&head.root.0);
        content.extend_from_slice(&head.count.to_be_bytes());
        content.extend_from_slice(&head.size_bytes.to_be_bytes());
        let signature = secret.sign(&signed(&content));
        let mut bytes = [0; HEAD_BYTES];
        bytes[..CONTENT_BYTES].copy_from_slice(&content);
        bytes[CONTENT_BYTES..].copy_from_slice(&signature.0);
        Self { head, bytes }
    }

    /// What it says.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// As received.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; HEAD_BYTES] {
        &self.bytes
    }

    /// Which of two heads of one lane is current: the greater.
    #[must_use]
    pub const fn rank(&self) -> (u64, Digest) {
        (self.head.seq, self.head.root)
    }

    /// The digest of the content, which the document's trie holds. Not of the signature.
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest(Context::Head, &[&self.bytes[..CONTENT_BYTES]])
    }

    /// Whether its author signed it.
    #[must_use]
    pub fn verify(&self, verify: &(impl Verify + ?Sized)) -> bool {
        let signature = Signature(part(&self.bytes, CONTENT_BYTES));
        verify.verify(&self.head.author, &signed(&self.bytes[..CONTENT_BYTES]), &signature)
    }
}

impl fmt::Debug for SignedHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head.fmt(f)
    }
}

/// The place of an author's head in the trie of each lane.
#[must_use]
pub fn path_of_author(author: &NodeKey) -> Digest {
    digest(Context::Path, &[&author.0])
}

fn signed(content: &[u8]) -> Vec<u8> {
    [SIGNED_PREFIX, content].concat()
}

fn part<const N: usize>(bytes: &[u8; HEAD_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Strict;

    fn head(secret: &SecretKey) -> Head {
        Head {
            cluster: ClusterId([1; 32]),
            author: secret.public(),
            lane: Lane::State,
            seq: SEQ_MAX,
            root: Digest([2; 32]),
            count: 3,
            size_bytes: 1000,
        }
    }

    #[test]
    fn a_head_reads_as_it_was_signed_and_no_altered_byte_passes() {
        let secret = SecretKey::from_seed(&[7; 32]);
        let signed = SignedHead::sign(head(&secret), &secret);
        assert_eq!(SignedHead::decode(signed.bytes()), Ok(signed));
        assert!(signed.verify(&Strict));
        for at in 0..HEAD_BYTES {
            let mut bytes = *signed.bytes();
            bytes[at] ^= 1;
            assert!(SignedHead::decode(&bytes).map_or(true, |head| !head.verify(&Strict)), "byte {at}");
        }
    }

    #[test]
    fn a_head_that_contradicts_itself_is_refused() {
        let secret = SecretKey::from_seed(&[7; 32]);
        let wrong = [
            Head { count: 0, ..head(&secret) },
            Head { root: Digest::ZERO, ..head(&secret) },
            Head { size_bytes: 10, ..head(&secret) },
        ];
        for head in wrong {
            let signed = SignedHead::sign(head, &secret);
            assert_eq!(SignedHead::decode(signed.bytes()), Err(HeadError::Contradiction));
        }
        assert_eq!(SignedHead::decode(&[]), Err(HeadError::Length));
        assert_eq!(SignedHead::decode(&[0; HEAD_BYTES]), Err(HeadError::Version));
    }

    #[test]
    fn lanes_share_a_quota_out_whole() {
        let sum: u64 = Lane::ALL.iter().map(|lane| lane.allowance_bytes(64)).sum();
        assert_eq!(sum, 64 * 1024);
        assert_eq!(Lane::Facts.allowance_bytes(u32::MAX), u64::from(u32::MAX) * 512);
        assert!(Lane::ALL.iter().all(|lane| Lane::from_code(lane.code()) == Some(*lane)));
    }
}
