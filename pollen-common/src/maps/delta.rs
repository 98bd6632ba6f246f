//! What changed in one lane since a sequence that the receiver is thought to hold. Owns its bounded form; decides
//! nothing: the signed root proves the result, so a wrong or partial delta costs a repair and nothing else.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use minicbor::{Decoder, Encoder};

use super::bounded;
use super::entry::{Entry, KEY_BYTES_MAX, SEQ_MAX, check_key};
use super::head::{HEAD_BYTES, HeadError, SignedHead};

/// The most bytes of an encoded delta. A lane that changed more is finished by trie; a whole lane of a node with the
/// usual quota of 1 MiB fits.
pub const DELTA_BYTES_MAX: usize = 1024 * 1024;

/// The most entries, and the most deletions, in a delta. Each entry counts at least 64 bytes toward a quota, so a
/// lane of that many counts as much as a delta holds; without it, tiny items would cost a receiver tenfold.
const ITEMS_MAX: usize = DELTA_BYTES_MAX / 64;

/// Head, base, three array heads, with room to spare.
const FRAME_BYTES: usize = HEAD_BYTES + 64;

/// An entry's or deletion's own CBOR heads: array 1, sequence 9, key 2, value 5.
const ITEM_FRAME_BYTES: usize = 17;

/// A head with what its author changed after `base`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    pub head: SignedHead,
    /// Everything newer than this sequence is in, unless it did not fit or is no longer known.
    pub base: u64,
    pub puts: Vec<Arc<Entry>>,
    /// Removed keys and the sequence of the head that first lacked each. Hints: the root proves them.
    pub deletions: Vec<(Box<[u8]>, u64)>,
}

/// A delta, and whether it is expected to suffice.
#[derive(Clone, Debug)]
pub struct Built {
    pub delta: Delta,
    /// `false`: the changes did not fit, or deletions reach back further than is remembered; a receiver that holds
    /// `base` will likely have to copy by trie.
    pub complete: bool,
}

/// Why bytes are no delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    #[error("a delta has at most {DELTA_BYTES_MAX} bytes")]
    TooLong,
    #[error("its head: {0}")]
    Head(#[from] HeadError),
    #[error("not a delta, or an entry in it exceeds its bounds")]
    Malformed,
}

impl Delta {
    /// From the newest `map` of `head`: what changed after `base`, as far as it fits. `deletions` are candidates;
    /// those up to `base` are left out.
    pub(super) fn build<'a>(
        head: &SignedHead,
        map: impl Iterator<Item = &'a Arc<Entry>>,
        deletions: impl Iterator<Item = (&'a [u8], u64)>,
        base: u64,
    ) -> Built {
        let mut room = DELTA_BYTES_MAX - FRAME_BYTES;
        let mut complete = true;
        let mut take = |bytes: usize| {
            let fits = bytes + ITEM_FRAME_BYTES <= room;
            room -= if fits { bytes + ITEM_FRAME_BYTES } else { 0 };
            complete &= fits;
            fits
        };
        let deletions = deletions
            .filter(|(_, seq)| *seq > base)
            .filter(|(key, _)| take(key.len()))
            .map(|(key, seq)| (key.into(), seq))
            .take(ITEMS_MAX)
            .collect();
        let puts = map
            .filter(|entry| entry.seq() > base)
            .filter(|entry| take(entry.key().len() + entry.value().len()))
            .take(ITEMS_MAX)
            .cloned()
            .collect::<Vec<_>>();
        complete &= puts.len() < ITEMS_MAX;
        Built { delta: Self { head: *head, base, puts, deletions }, complete }
    }

    /// `[head, base, [[seq, key, value]…], [[seq, key]…]]`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::new());
        self.write(&mut e).expect("writing to a vector cannot fail");
        e.into_writer()
    }

    fn write(&self, e: &mut Encoder<Vec<u8>>) -> Result<(), minicbor::encode::Error<core::convert::Infallible>> {
        e.array(4)?.bytes(self.head.bytes())?.u64(self.base)?;
        e.array(self.puts.len() as u64)?;
        for entry in &self.puts {
            e.encode(entry.as_ref())?;
        }
        e.array(self.deletions.len() as u64)?;
        for (key, seq) in &self.deletions {
            e.array(2)?.u64(*seq)?.bytes(key)?;
        }
        Ok(())
    }

    /// Reads a peer's words; the signature is not yet checked.
    ///
    /// # Errors
    /// If the bytes are no delta within its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, DeltaError> {
        if bytes.len() > DELTA_BYTES_MAX {
            return Err(DeltaError::TooLong);
        }
        let mut d = Decoder::new(bytes);
        let mut read = || -> Result<Result<Self, HeadError>, minicbor::decode::Error> {
            let len = bounded::array_of_at_least(&mut d, 4)?;
            let head = match SignedHead::decode(d.bytes()?) {
                Ok(head) => head,
                Err(error) => return Ok(Err(error)),
            };
            let base = d.u64()?;
            let puts = bounded::list(&mut d, ITEMS_MAX, |d| d.decode::<Entry>().map(Arc::new))?;
            let deletions = bounded::list(&mut d, ITEMS_MAX, deletion)?;
            bounded::skip_newer(&mut d, len, 4)?;
            bounded::nothing_after(&d)?;
            Ok(Ok(Self { head, base, puts, deletions }))
        };
        Ok(read().map_err(|_| DeltaError::Malformed)??)
    }
}

fn deletion(d: &mut Decoder<'_>) -> Result<(Box<[u8]>, u64), minicbor::decode::Error> {
    let len = bounded::array_of_at_least(d, 2)?;
    let seq = d.u64()?;
    let key = d.bytes()?;
    if seq > SEQ_MAX || check_key(key).is_err() {
        return Err(minicbor::decode::Error::message("a deletion exceeds its bounds"));
    }
    bounded::skip_newer(d, len, 2)?;
    Ok((key.into(), seq))
}

const _: () = assert!(KEY_BYTES_MAX < 256, "ITEM_FRAME_BYTES has two bytes for a key's length");
