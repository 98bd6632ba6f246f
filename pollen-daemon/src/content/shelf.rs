//! What is on the disk and what may go: sizes, what seeds name, room. Pure bookkeeping, told the time. Invariant: what
//! is named is never given up for room, and all that is kept or being written stays within the bound.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use pollen_common::identity::Digest;

/// Bytes of all content together, on disk. Two dozen of the largest modules, or thousands of usual ones.
pub const TOTAL_BYTES_MAX: u64 = 2 << 30;

/// Files of content: what a directory and a comparison of names take easily.
pub const FILES_MAX: usize = 4096;

/// How long content stays that no seed names: a seed that is withdrawn and published again need not travel twice.
pub const UNNAMED_KEPT_FOR: Duration = Duration::from_secs(600);

/// How long it stays even when room is short: content is stored before the claim that names it.
pub const UNNAMED_SPARED_FOR: Duration = Duration::from_secs(60);

/// There is no room, and nothing that may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the content store is full: seeds name {} MiB of at most {} MiB", .kept_bytes >> 20, TOTAL_BYTES_MAX >> 20)]
pub struct Full {
    pub kept_bytes: u64,
}

struct Kept {
    bytes: u64,
    /// Since when no seed names it; `None` while one does.
    unnamed_since: Option<Instant>,
}

/// The index of a store.
#[derive(Default)]
pub struct Shelf {
    kept: BTreeMap<Digest, Kept>,
    /// For what is being written.
    reserved_bytes: u64,
}

impl Shelf {
    pub fn has(&self, digest: &Digest) -> bool {
        self.kept.contains_key(digest)
    }

    pub fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        self.kept.keys().copied()
    }

    pub fn bytes(&self) -> u64 {
        self.kept.values().map(|kept| kept.bytes).sum()
    }

    pub fn insert(&mut self, digest: Digest, bytes: u64, now: Instant) {
        let unnamed_since = self.kept.get(&digest).map_or(Some(now), |kept| kept.unnamed_since);
        self.kept.insert(digest, Kept { bytes, unnamed_since });
    }

    pub fn remove(&mut self, digest: &Digest) -> bool {
        self.kept.remove(digest).is_some()
    }

    /// Sets `bytes` aside for one more file, to be released. Returns what has to go for it: the longest unnamed first.
    pub fn reserve(&mut self, bytes: u64, now: Instant) -> Result<Vec<Digest>, Full> {
        let mut used = self.bytes() + self.reserved_bytes;
        let mut files = self.kept.len();
        let fits = |used: u64, files: usize| used + bytes <= TOTAL_BYTES_MAX && files < FILES_MAX;
        let mut gone = Vec::new();
        if !fits(used, files) {
            let spared = |since: &Instant| now.duration_since(*since) < UNNAMED_SPARED_FOR;
            let unnamed =
                self.kept.iter().filter_map(|(digest, kept)| Some((kept.unnamed_since?, *digest, kept.bytes)));
            let mut unnamed: Vec<_> = unnamed.filter(|(since, ..)| !spared(since)).collect();
            unnamed.sort_unstable();
            for (_, digest, freed) in unnamed {
                if fits(used, files) {
                    break;
                }
                (used, files) = (used - freed, files - 1);
                gone.push(digest);
            }
        }
        if !fits(used, files) {
            return Err(Full { kept_bytes: used });
        }
        self.kept.retain(|digest, _| !gone.contains(digest));
        self.reserved_bytes += bytes;
        Ok(gone)
    }

    pub fn release(&mut self, bytes: u64) {
        self.reserved_bytes -= bytes;
    }

    /// Notes what is named at present, and takes out what has not been for too long.
    pub fn tidy(&mut self, named: &BTreeSet<Digest>, now: Instant) -> Vec<Digest> {
        for (digest, kept) in &mut self.kept {
            kept.unnamed_since = match kept.unnamed_since {
                _ if named.contains(digest) => None,
                since => since.or(Some(now)),
            };
        }
        let expired = |kept: &Kept| kept.unnamed_since.is_some_and(|since| now - since >= UNNAMED_KEPT_FOR);
        let gone: Vec<_> = self.kept.iter().filter(|(_, kept)| expired(kept)).map(|(digest, _)| *digest).collect();
        self.kept.retain(|digest, _| !gone.contains(digest));
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: u64 = TOTAL_BYTES_MAX / 2;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    #[test]
    fn what_no_seed_names_goes_after_a_while_and_what_one_names_stays() {
        let start = Instant::now();
        let mut shelf = Shelf::default();
        shelf.insert(digest(1), 10, start);
        shelf.insert(digest(2), 10, start);
        let named = BTreeSet::from([digest(1)]);
        assert_eq!(shelf.tidy(&named, start + UNNAMED_KEPT_FOR - Duration::from_secs(1)), []);
        assert_eq!(shelf.tidy(&named, start + UNNAMED_KEPT_FOR), [digest(2)]);
        let later = start + 2 * UNNAMED_KEPT_FOR;
        assert_eq!(shelf.tidy(&BTreeSet::new(), later), [], "its while begins when it is named no more");
        assert_eq!(shelf.tidy(&BTreeSet::new(), later + UNNAMED_KEPT_FOR), [digest(1)]);
        assert_eq!(shelf.bytes(), 0);
    }

    #[test]
    fn room_is_made_by_the_longest_unnamed_and_by_nothing_that_is_named_or_new() {
        let start = Instant::now();
        let mut shelf = Shelf::default();
        shelf.insert(digest(1), HALF, start);
        shelf.insert(digest(2), HALF, start);
        let now = start + UNNAMED_SPARED_FOR;
        assert_eq!(shelf.reserve(1, start), Err(Full { kept_bytes: TOTAL_BYTES_MAX }), "its claim may be on the way");
        shelf.tidy(&BTreeSet::from([digest(1)]), start);
        assert_eq!(shelf.reserve(1, now), Ok(vec![digest(2)]));
        assert_eq!(shelf.reserve(HALF, now), Err(Full { kept_bytes: HALF + 1 }), "what is being written counts");
        shelf.release(1);
        assert_eq!(shelf.reserve(HALF, now), Ok(vec![]));
    }

    #[test]
    fn files_are_bounded_in_number_too() {
        let start = Instant::now();
        let mut shelf = Shelf::default();
        for n in 0..FILES_MAX {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
            shelf.insert(Digest(bytes), 1, start);
        }
        assert!(shelf.reserve(1, start).is_err());
        assert_eq!(shelf.reserve(1, start + UNNAMED_SPARED_FOR).map(|gone| gone.len()), Ok(1));
    }
}
