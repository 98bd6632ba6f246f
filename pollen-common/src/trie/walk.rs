//! Finding where another replica's trie differs from ours: ask for a prefix, get sixteen digests or a bucket,
//! descend where they differ. Owns the questions still to ask; sends nothing.
//! Invariant: with a proven root, every accepted summary is checked against the digest its parent gave for it.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use super::{Prefix, Summary, Trie};
use crate::identity::Digest;

/// What an accepted summary showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Items that the other replica has and we lack or have with another digest, as (path, their digest).
    pub theirs: Vec<(Digest, Digest)>,
    /// Subtrees in which the other replica has nothing but we do, and buckets' paths that it lacks.
    pub only_ours: Vec<Prefix>,
}

/// One comparison under way.
#[derive(Clone, Debug)]
pub struct Walk {
    to_ask: VecDeque<Prefix>,
    expected: BTreeMap<Prefix, Digest>,
    proven: bool,
}

impl Walk {
    /// Compares with a replica whose root is `theirs`. `proven` when a signature vouches for that root: a summary
    /// that does not hash to it is then refused. Otherwise (their set may change while we ask) any is taken.
    #[must_use]
    pub fn new(theirs: Digest, proven: bool) -> Self {
        Self { to_ask: VecDeque::from([Prefix::ROOT]), expected: BTreeMap::from([(Prefix::ROOT, theirs)]), proven }
    }

    /// The next place to ask for.
    pub fn poll_ask(&mut self) -> Option<Prefix> {
        self.to_ask.pop_front()
    }

    /// Whether every question was answered.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.expected.is_empty()
    }

    /// Takes the answer for `prefix`. `None`: it was not asked for, or does not match what its parent promised.
    pub fn answer<V: Clone>(&mut self, ours: &Trie<V>, prefix: Prefix, summary: &Summary) -> Option<Found> {
        let expected = *self.expected.get(&prefix)?;
        let digest = summary.digest()?;
        if self.proven && digest != expected {
            return None;
        }
        self.expected.remove(&prefix);
        let mut found = Found::default();
        match summary {
            Summary::Branch(children) => self.descend(ours, prefix, children, &mut found),
            Summary::Bucket(items) => {
                if items.iter().any(|(path, _)| !prefix.contains(path)) {
                    return None;
                }
                let differs = |(path, digest): &&(Digest, Digest)| ours.digest_of(path) != Some(*digest);
                found.theirs = items.iter().filter(differs).copied().collect();
                found.only_ours = ours_alone(ours, prefix, items);
            }
        }
        Some(found)
    }

    fn descend<V: Clone>(&mut self, ours: &Trie<V>, prefix: Prefix, children: &[Digest; 16], found: &mut Found) {
        for (n, theirs) in (0..16).zip(children) {
            let Some(child) = prefix.child(n) else { continue };
            let mine = ours.digest_at(&child);
            if mine == *theirs {
                continue;
            }
            if *theirs == Digest::ZERO {
                found.only_ours.push(child);
            } else {
                self.expected.insert(child, *theirs);
                self.to_ask.push_back(child);
            }
        }
    }
}

/// The full-depth prefixes of our items under `prefix` whose paths `theirs` lacks.
fn ours_alone<V: Clone>(ours: &Trie<V>, prefix: Prefix, theirs: &[(Digest, Digest)]) -> Vec<Prefix> {
    let mut places = alloc::vec![prefix];
    let mut alone = Vec::new();
    while let Some(place) = places.pop() {
        match ours.summary(&place) {
            Summary::Branch(children) => {
                places.extend(
                    (0..16).zip(&children).filter(|(_, d)| **d != Digest::ZERO).filter_map(|(n, _)| place.child(n)),
                );
            }
            Summary::Bucket(items) => {
                let lacking = items.iter().filter(|(path, _)| theirs.binary_search_by(|(p, _)| p.cmp(path)).is_err());
                alone.extend(lacking.filter_map(|(path, _)| Prefix::new(*path, super::DEPTH_MAX)));
            }
        }
    }
    alone
}
