//! What lets a node that was restarted say so at once: QUIC's stateless resets (RFC 9000, section 10.3) under a key that
//! outlives the process. Owns the key and the form of connection IDs; knows no connections.
//! Invariant: only who holds the node's key can make a reset that a peer believes.

use std::time::Duration;

use pollen_common::identity::SecretKey;
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator};

/// The context under which the key is derived from the node's.
const CONTEXT: &str = "pollen 2026 v1 reset tokens";
/// Bytes of a connection ID: two never meet by chance, and a packet spends no more on it.
const CID_BYTES: usize = 8;

/// The key of reset tokens: the same in every process of one node.
pub struct ResetKey([u8; 32]);

impl ResetKey {
    /// Of the node with `secret`.
    pub fn of(secret: &SecretKey) -> Self {
        Self(blake3::derive_key(CONTEXT, &secret.seed()[..]))
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        signature.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Comparing two hashes takes the same time whatever they are.
        let signature: [u8; blake3::OUT_LEN] = signature.try_into().map_err(|_| CryptoError)?;
        if blake3::keyed_hash(&self.0, data) == signature { Ok(()) } else { Err(CryptoError) }
    }
}

/// Connection IDs are random. quinn's own are recognised by their process alone, and a packet with one of an earlier
/// process would be passed over in silence instead of being answered with a reset.
pub struct Cids;

impl ConnectionIdGenerator for Cids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; CID_BYTES];
        getrandom::fill(&mut bytes).expect("the kernel has given random bytes at the start");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
