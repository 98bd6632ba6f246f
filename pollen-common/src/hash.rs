//! Every digest of the protocol: BLAKE3 in key-derivation mode, one context per use, so that bytes hashed for
//! one purpose never stand for another. Formats: `docs/protocol/state.md`.

use crate::identity::Digest;

/// What a digest is for. The context string is part of the format: it never changes, a new use gets a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// A trie item's content (an entry of an author map).
    Leaf,
    /// At most [`crate::trie::BUCKET_MAX`] items of a trie.
    Bucket,
    /// Sixteen children of a trie.
    Node,
    /// The 32-byte place of an item in a trie.
    Path,
    /// The content of a statement of the roll.
    Statement,
    /// The content of a head of an author map.
    Head,
    /// The identity of a cluster.
    Genesis,
    /// The address by which QUIC knows a node. Local to each node, never sent.
    VirtualAddress,
    /// A version of a seed.
    SeedVersion,
    /// Who hosts a seed, by rendezvous.
    Rendezvous,
    /// The checksum of an invite token.
    Token,
    /// What an ed25519 key signs is the signed content under a prefix naming its use; this one is for tests.
    Test,
}

impl Context {
    const fn string(self) -> &'static str {
        match self {
            Self::Leaf => "pollen 2026 v1 leaf",
            Self::Bucket => "pollen 2026 v1 bucket",
            Self::Node => "pollen 2026 v1 node",
            Self::Path => "pollen 2026 v1 path",
            Self::Statement => "pollen 2026 v1 statement",
            Self::Head => "pollen 2026 v1 head",
            Self::Genesis => "pollen 2026 v1 genesis",
            Self::VirtualAddress => "pollen 2026 v1 virtual address",
            Self::SeedVersion => "pollen 2026 v1 seed version",
            Self::Rendezvous => "pollen 2026 v1 rendezvous",
            Self::Token => "pollen 2026 v1 token",
            Self::Test => "pollen 2026 v1 test",
        }
    }
}

/// The digest of `bytes` under a key that is itself a digest of some context: for many short inputs of one use, at half
/// the cost of [`digest`].
#[must_use]
pub fn keyed(key: &Digest, bytes: &[u8]) -> Digest {
    Digest(*blake3::keyed_hash(&key.0, bytes).as_bytes())
}

/// The digest of the concatenation of `parts`. Callers whose parts vary in length put the lengths in.
#[must_use]
pub fn digest(context: Context, parts: &[&[u8]]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key(context.string());
    for part in parts {
        hasher.update(part);
    }
    Digest(*hasher.finalize().as_bytes())
}
