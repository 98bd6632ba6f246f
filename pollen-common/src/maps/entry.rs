//! One entry of an author map: a key, an opaque value, and the sequence of the head that first held it.
//! Owns its bounds, its digest and its place in the trie; must not know what the value means.

use alloc::boxed::Box;

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};

use super::bounded;
use crate::hash::{Context, digest};
use crate::identity::Digest;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 128;

/// The longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 32 * 1024;

/// Counted for every entry besides its key and value: its path and digest, which each replica holds in the trie.
/// Without it a quota could be spent on empty entries that cost far more than they count.
pub const ENTRY_OVERHEAD_BYTES: u64 = 64;

/// The greatest sequence: half of the range, so that adding to one never overflows.
pub const SEQ_MAX: u64 = (1 << 63) - 1;

/// Why an entry cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("a key has 1 to {KEY_BYTES_MAX} bytes")]
    Key,
    #[error("a value has at most {VALUE_BYTES_MAX} bytes")]
    Value,
    #[error("a sequence is at most 2^63 - 1")]
    Seq,
}

/// One entry, within its bounds by construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    key: Box<[u8]>,
    seq: u64,
    value: Box<[u8]>,
}

impl Entry {
    /// # Errors
    /// If a bound is exceeded.
    pub fn new(key: &[u8], seq: u64, value: &[u8]) -> Result<Self, EntryError> {
        check_key(key)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(EntryError::Value);
        }
        if seq > SEQ_MAX {
            return Err(EntryError::Seq);
        }
        Ok(Self { key: key.into(), seq, value: value.into() })
    }

    #[must_use]
    pub const fn key(&self) -> &[u8] {
        &self.key
    }

    /// The sequence of the head that first held this value.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    #[must_use]
    pub const fn value(&self) -> &[u8] {
        &self.value
    }

    /// What it counts toward its author's quota, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        size_bytes(&self.key, &self.value)
    }

    /// Its place in the author's trie.
    #[must_use]
    pub fn path(&self) -> Digest {
        path_of_key(&self.key)
    }

    /// Its digest in the author's trie: key, sequence and value, each behind its length.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let len = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
        let parts: [&[u8]; 6] = [
            &len(self.key.len()),
            &self.key,
            &len(size_of::<u64>()),
            &self.seq.to_be_bytes(),
            &len(self.value.len()),
            &self.value,
        ];
        digest(Context::Leaf, &parts)
    }
}

/// What an entry of `key` and `value` counts toward its author's quota, in bytes.
pub(super) fn size_bytes(key: &[u8], value: &[u8]) -> u64 {
    // Both are bounded far below 2^32.
    ENTRY_OVERHEAD_BYTES + (key.len() + value.len()) as u64
}

/// # Errors
/// If `key` is empty or too long.
pub(super) fn check_key(key: &[u8]) -> Result<(), EntryError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX { Err(EntryError::Key) } else { Ok(()) }
}

/// The place of the entry with this key in its author's trie.
#[must_use]
pub fn path_of_key(key: &[u8]) -> Digest {
    digest(Context::Path, &[key])
}

impl<C> Encode<C> for Entry {
    /// `[seq, key, value]`.
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.array(3)?.u64(self.seq)?.bytes(&self.key)?.bytes(&self.value)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Entry {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let len = bounded::array_of_at_least(d, 3)?;
        let seq = d.u64()?;
        let key = d.bytes()?;
        let value = d.bytes()?;
        let entry = Self::new(key, seq, value).map_err(|_| DecodeError::message("an entry exceeds its bounds"))?;
        bounded::skip_newer(d, len, 3)?;
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_keeps_within_its_bounds() {
        assert_eq!(Entry::new(b"", 1, b""), Err(EntryError::Key));
        assert_eq!(Entry::new(&[0; KEY_BYTES_MAX + 1], 1, b""), Err(EntryError::Key));
        assert_eq!(Entry::new(b"k", 1, &[0; VALUE_BYTES_MAX + 1]), Err(EntryError::Value));
        assert_eq!(Entry::new(b"k", SEQ_MAX + 1, b""), Err(EntryError::Seq));
        assert!(Entry::new(&[0; KEY_BYTES_MAX], SEQ_MAX, &[0; VALUE_BYTES_MAX]).is_ok());
    }

    #[test]
    fn bytes_cannot_move_between_key_and_value_without_changing_the_digest() {
        let digest = |key: &[u8], value: &[u8]| Entry::new(key, 7, value).map(|entry| entry.digest());
        assert_ne!(digest(b"ab", b"c"), digest(b"a", b"bc"));
        assert_ne!(digest(b"a", b"c"), Entry::new(b"a", 8, b"c").map(|entry| entry.digest()));
    }
}
