//! How places and summaries of a trie travel. Owns their CBOR forms; knows nothing of what is compared.
//! Invariant: what decodes is canonical: nothing beyond a prefix's length is set, and no bucket exceeds its bound.

use alloc::vec::Vec;

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};

use super::{BUCKET_MAX, Prefix, Summary};
use crate::identity::Digest;

/// Bytes of one item of a bucket, and of two children of a branch.
const PAIR_BYTES: usize = 64;

/// The most bytes that one encoded summary takes: a full bucket and its head.
pub const SUMMARY_BYTES_MAX: usize = 8 + BUCKET_MAX * PAIR_BYTES;

impl<C> Encode<C> for Prefix {
    /// `[length in nibbles, the bytes that hold them]`.
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.array(2)?.u8(self.len)?.bytes(&self.path.0[..usize::from(self.len.div_ceil(2))])?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Prefix {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        if d.array()? != Some(2) {
            return Err(DecodeError::message("a prefix is a pair"));
        }
        let len = d.u8()?;
        let bytes = d.bytes()?;
        let mut path = Digest::ZERO;
        if bytes.len() != usize::from(len.div_ceil(2)) || bytes.len() > path.0.len() {
            return Err(DecodeError::message("a prefix has one byte for two nibbles"));
        }
        path.0[..bytes.len()].copy_from_slice(bytes);
        Self::new(path, len).ok_or(DecodeError::message("a nibble beyond the prefix is set"))
    }
}

impl<C> Encode<C> for Summary {
    /// `[0, items as path and digest]` for a bucket, `[1, 16 digests]` for a branch.
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        let mut bytes = Vec::with_capacity(SUMMARY_BYTES_MAX);
        let kind = match self {
            Self::Bucket(items) => {
                items.iter().for_each(|(path, digest)| {
                    bytes.extend_from_slice(&path.0);
                    bytes.extend_from_slice(&digest.0);
                });
                0
            }
            Self::Branch(children) => {
                children.iter().for_each(|child| bytes.extend_from_slice(&child.0));
                1
            }
        };
        e.array(2)?.u8(kind)?.bytes(&bytes)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Summary {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        if d.array()? != Some(2) {
            return Err(DecodeError::message("a summary is a pair"));
        }
        let kind = d.u8()?;
        let (pairs, rest) = d.bytes()?.as_chunks::<PAIR_BYTES>();
        if !rest.is_empty() || pairs.len() > BUCKET_MAX {
            return Err(DecodeError::message("a summary has whole items, within its bound"));
        }
        let halves = |pair: &[u8; PAIR_BYTES]| {
            let (mut path, mut digest) = (Digest::ZERO, Digest::ZERO);
            path.0.copy_from_slice(&pair[..32]);
            digest.0.copy_from_slice(&pair[32..]);
            (path, digest)
        };
        match kind {
            0 => Ok(Self::Bucket(pairs.iter().map(halves).collect())),
            1 if pairs.len() == 8 => {
                let mut children = [Digest::ZERO; 16];
                for (two, pair) in children.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                    (two[0], two[1]) = halves(pair);
                }
                Ok(Self::Branch(children))
            }
            _ => Err(DecodeError::message("a summary is a bucket or sixteen children")),
        }
    }
}
