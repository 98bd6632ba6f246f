//! The tree that BLAKE3 makes of content, as far as a transfer needs it: groups of 64 KiB and their chaining values, so
//! that each group is verified when it arrives. Pure. Invariant: an outline that exists leads to its root, and as its
//! size fixes the tree's shape, no other values do.

use alloc::vec::Vec;

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::identity::Digest;

/// Bytes of a group: large enough that the values are half a thousandth of the content, small enough to hold one in
/// memory for each transfer. A power of two of BLAKE3's chunks, so that each group is a subtree.
pub const GROUP_BYTES: usize = 64 * 1024;

/// The digest by which content is known: plain BLAKE3.
#[must_use]
pub fn digest_of(content: &[u8]) -> Digest {
    Digest(*blake3::hash(content).as_bytes())
}

/// How many groups content of so many bytes has. Even nothing is one group.
#[must_use]
pub const fn group_count(size_bytes: u64) -> u64 {
    if size_bytes == 0 { 1 } else { size_bytes.div_ceil(GROUP_BYTES as u64) }
}

/// The values of a content's groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    root: Digest,
    size_bytes: u64,
    /// In order; none where there is only one group, as that is proved by the root itself.
    values: Vec<ChainingValue>,
}

impl Outline {
    /// The outline with these values, if they lead to `root`. There are as many values as groups, or none for one group.
    #[must_use]
    pub fn verified(root: Digest, size_bytes: u64, values: Vec<ChainingValue>) -> Option<Self> {
        let right = match values.as_slice() {
            [] => group_count(size_bytes) == 1,
            [_] => false,
            values => values.len() as u64 == group_count(size_bytes) && root_of(values) == root,
        };
        right.then_some(Self { root, size_bytes, values })
    }

    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The values as they are sent: 32 bytes each.
    #[must_use]
    pub fn values(&self) -> &[ChainingValue] {
        &self.values
    }

    #[must_use]
    pub const fn groups(&self) -> u64 {
        group_count(self.size_bytes)
    }

    /// Bytes of group `index`; nothing behind the last one.
    #[must_use]
    pub fn group_len(&self, index: u64) -> usize {
        let start = index.saturating_mul(GROUP_BYTES as u64);
        let left = self.size_bytes.saturating_sub(start).min(GROUP_BYTES as u64);
        usize::try_from(left).expect("at most a group")
    }

    /// Whether `bytes` are group `index`.
    #[must_use]
    pub fn proves(&self, index: u64, bytes: &[u8]) -> bool {
        if bytes.len() != self.group_len(index) {
            return false;
        }
        if self.values.is_empty() {
            return index == 0 && digest_of(bytes) == self.root;
        }
        let value = usize::try_from(index).ok().and_then(|index| self.values.get(index));
        value.is_some_and(|value| *value == value_of(index * GROUP_BYTES as u64, bytes))
    }
}

/// An outline in the making: groups in order, none held.
#[derive(Clone, Debug)]
pub struct Outlining {
    /// The digest of the first group, which is the root while it is the only one.
    first: Digest,
    size_bytes: u64,
    values: Vec<ChainingValue>,
}

impl Default for Outlining {
    fn default() -> Self {
        Self { first: digest_of(&[]), size_bytes: 0, values: Vec::new() }
    }
}

impl Outlining {
    /// Of content that is all in memory.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        let mut outlining = Self::default();
        content.chunks(GROUP_BYTES).for_each(|group| outlining.push(group));
        outlining
    }

    /// The next group: [`GROUP_BYTES`], but for the last one, which may be shorter and is not empty.
    pub fn push(&mut self, group: &[u8]) {
        assert!(!group.is_empty() && group.len() <= GROUP_BYTES, "a group has its size");
        assert!(self.size_bytes.is_multiple_of(GROUP_BYTES as u64), "nothing follows a short group");
        if self.values.is_empty() {
            self.first = digest_of(group);
        }
        self.values.push(value_of(self.size_bytes, group));
        self.size_bytes += group.len() as u64;
    }

    /// The outline, if what was pushed has `root`.
    #[must_use]
    pub fn outline(self, root: Digest) -> Option<Outline> {
        let Self { first, size_bytes, values } = self;
        if values.len() > 1 {
            return Outline::verified(root, size_bytes, values);
        }
        (first == root).then_some(Outline { root, size_bytes, values: Vec::new() })
    }
}

fn value_of(start: u64, group: &[u8]) -> ChainingValue {
    Hasher::new().set_input_offset(start).update(group).finalize_non_root()
}

/// Of two or more values.
fn root_of(values: &[ChainingValue]) -> Digest {
    let (left, right) = halves(values);
    Digest(*merge_subtrees_root(&merged(left), &merged(right), Mode::Hash).as_bytes())
}

/// Of one or more; as deep as the logarithm of their number.
fn merged(values: &[ChainingValue]) -> ChainingValue {
    if let [one] = values {
        return *one;
    }
    let (left, right) = halves(values);
    merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
}

/// BLAKE3's left subtree is the largest power of two that leaves something on the right.
fn halves(values: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    values.split_at(values.len().next_power_of_two() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from(at % 251).expect("below 251")).collect()
    }

    #[test]
    fn every_size_has_an_outline_that_leads_to_its_digest_and_proves_each_group() {
        for len in [0, 1, GROUP_BYTES - 1, GROUP_BYTES, GROUP_BYTES + 1, 3 * GROUP_BYTES, 7 * GROUP_BYTES + 1000] {
            let bytes = content(len);
            let root = digest_of(&bytes);
            let outline = Outlining::of(&bytes).outline(root).expect("its own digest");
            let again = Outline::verified(root, len as u64, outline.values().to_vec());
            assert_eq!(again.as_ref(), Some(&outline), "{len} bytes");
            for index in 0..outline.groups() {
                let start = usize::try_from(index).expect("small") * GROUP_BYTES;
                let group = &bytes[start..start + outline.group_len(index)];
                assert!(outline.proves(index, group), "group {index} of {len} bytes");
                assert!(!outline.proves(index + 1, group));
                if let Some((last, rest)) = group.split_last() {
                    assert!(!outline.proves(index, rest), "a shorter group");
                    assert!(!outline.proves(index, &[rest, &[last ^ 1]].concat()), "another group");
                }
            }
        }
    }

    #[test]
    fn values_that_lead_elsewhere_or_stand_for_another_shape_make_no_outline() {
        let bytes = content(4 * GROUP_BYTES);
        let root = digest_of(&bytes);
        let outline = Outlining::of(&bytes).outline(root).expect("its own digest");
        let values = outline.values().to_vec();
        assert_eq!(Outline::verified(Digest([1; 32]), outline.size_bytes(), values.clone()), None);
        let mut swapped = values.clone();
        swapped.swap(0, 1);
        assert_eq!(Outline::verified(root, outline.size_bytes(), swapped), None);
        // The two inner values lead to the root as well: only the size tells that they are no groups.
        let inner = alloc::vec![merged(&values[..2]), merged(&values[2..])];
        assert_eq!(root_of(&inner), root);
        assert_eq!(Outline::verified(root, outline.size_bytes(), inner), None);
        assert_eq!(Outline::verified(root, outline.size_bytes(), Vec::new()), None);
    }

    #[test]
    fn content_with_another_digest_has_no_outline() {
        for len in [0, 1, GROUP_BYTES, 100_000] {
            assert_eq!(Outlining::of(&content(len)).outline(Digest([7; 32])), None, "{len} bytes");
        }
    }
}
