//! Keys, signatures and digests as types. Owns what a node *is*; knows nothing of what it may do (see [`crate::roll`]).
//! Invariant: signatures are checked one by one with strict rules; batch verification can disagree with it, and
//! replicas that disagree about a signature would split.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use ed25519_dalek::Signer as _;

macro_rules! bytes_type {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// The bytes, as they stand in every format.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(encode_hex(&self.0, &mut [0; 2 * $len]))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(encode_hex(&self.0[..4], &mut [0; 8]))
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = WrongLength;
            fn try_from(bytes: &[u8]) -> Result<Self, WrongLength> {
                bytes.try_into().map(Self).map_err(|_| WrongLength)
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                Self::try_from(d.bytes()?).map_err(|_| minicbor::decode::Error::message("wrong length"))
            }
        }

        impl FromStr for $name {
            type Err = WrongLength;
            /// From lower- or upper-case hexadecimal of exactly the full length.
            fn from_str(hex: &str) -> Result<Self, WrongLength> {
                let mut bytes = [0; $len];
                decode_hex(hex, &mut bytes)?;
                Ok(Self(bytes))
            }
        }
    };
}

bytes_type!(
    /// A node's ed25519 public key: the identity of a peer. Roots and invites have keys of the same kind.
    NodeKey, 32
);
bytes_type!(
    /// A cluster: the digest of its genesis.
    ClusterId, 32
);
bytes_type!(
    /// A BLAKE3 digest (see [`crate::hash`]).
    Digest, 32
);
bytes_type!(
    /// An ed25519 signature.
    Signature, 64
);

impl Digest {
    /// What stands for an empty trie or an absent child.
    pub const ZERO: Self = Self([0; 32]);
}

impl NodeKey {
    /// The first eight hexadecimal characters, as tables show a key.
    #[must_use]
    pub fn short(&self) -> String {
        alloc::format!("{self:?}")
    }
}

/// Bytes, or hexadecimal, of another length than the type has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("wrong length or not hexadecimal")]
pub struct WrongLength;

/// `text` is twice as long as `bytes`. Not digit by digit through a formatter: every answer to a call names two keys, and
/// that took a thirtieth of a call's time.
fn encode_hex<'a>(bytes: &[u8], text: &'a mut [u8]) -> &'a str {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    core::str::from_utf8(text).expect("digits are ASCII")
}

fn decode_hex(hex: &str, out: &mut [u8]) -> Result<(), WrongLength> {
    let hex = hex.as_bytes();
    if hex.len() != out.len() * 2 {
        return Err(WrongLength);
    }
    for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or(WrongLength);
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(())
}

/// An ed25519 secret key. Wiped when dropped; never printed.
#[derive(Clone)]
pub struct SecretKey(ed25519_dalek::SigningKey);

impl SecretKey {
    /// From the 32-byte seed (RFC 8032), which must come from a cryptographic source.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The seed, for the key file.
    #[must_use]
    pub fn seed(&self) -> zeroize::Zeroizing<[u8; 32]> {
        zeroize::Zeroizing::new(self.0.to_bytes())
    }

    /// The identity that this key proves.
    #[must_use]
    pub fn public(&self) -> NodeKey {
        NodeKey(self.0.verifying_key().to_bytes())
    }

    /// Signs `message`, whose first bytes must name its use.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({:?})", self.public())
    }
}

/// Signature verification, injected so that simulated nodes can share one cache of verified statements.
pub trait Verify {
    /// Whether `signature` over `message` was made with `key`'s secret.
    fn verify(&self, key: &NodeKey, message: &[u8], signature: &Signature) -> bool;
}

/// The real thing: ed25519 with the strict rules (no small-order keys, canonical encodings only).
#[derive(Clone, Copy, Debug, Default)]
pub struct Strict;

impl Verify for Strict {
    fn verify(&self, key: &NodeKey, message: &[u8], signature: &Signature) -> bool {
        ed25519_dalek::VerifyingKey::from_bytes(&key.0).is_ok_and(|verifying| {
            verifying.verify_strict(message, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_message_and_key_only() {
        let secret = SecretKey::from_seed(&[7; 32]);
        let signature = secret.sign(b"pollen");
        assert!(Strict.verify(&secret.public(), b"pollen", &signature));
        assert!(!Strict.verify(&secret.public(), b"Pollen", &signature));
        assert!(!Strict.verify(&SecretKey::from_seed(&[8; 32]).public(), b"pollen", &signature));
        assert!(!Strict.verify(&NodeKey([0; 32]), b"pollen", &signature), "a small-order key signs nothing");
    }

    #[test]
    fn hexadecimal_round_trips_and_refuses_other_lengths() {
        let key = SecretKey::from_seed(&[7; 32]).public();
        assert_eq!(alloc::format!("{key}").parse(), Ok(key));
        assert_eq!("abc".parse::<NodeKey>(), Err(WrongLength));
        assert_eq!("zz".repeat(32).parse::<NodeKey>(), Err(WrongLength));
    }
}
