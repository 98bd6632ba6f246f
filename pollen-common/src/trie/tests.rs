use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::hash::{Context, digest};

fn path(n: u16) -> Digest {
    digest(Context::Test, &[&n.to_be_bytes()])
}

fn trie(items: &BTreeMap<u16, u8>) -> Trie<u8> {
    let mut trie = Trie::new();
    for (n, value) in items {
        trie.insert(path(*n), digest(Context::Test, &[&[*value]]), *value);
    }
    trie
}

/// Brings `ours` to `theirs` by asking, as repair does.
fn repaired(mut ours: Trie<u8>, theirs: &Trie<u8>) -> (Trie<u8>, usize) {
    let mut walk = Walk::new(theirs.root(), true);
    let mut asked = 0;
    while let Some(prefix) = walk.poll_ask() {
        asked += 1;
        let found = walk.answer(&ours, prefix, &theirs.summary(&prefix)).expect("an honest answer is accepted");
        for gone in found.only_ours {
            let paths: Vec<_> = ours.iter().map(|(p, _, _)| *p).filter(|p| gone.contains(p)).collect();
            paths.iter().for_each(|p| assert!(ours.remove(p)));
        }
        for (path, digest) in found.theirs {
            ours.insert(path, digest, *theirs.get(&path).expect("summaries name items that are there"));
        }
    }
    assert!(walk.is_done());
    (ours, asked)
}

proptest! {
    #[test]
    fn the_root_depends_on_the_set_alone(ops in prop::collection::vec((0u16..300, prop::option::of(any::<u8>())), 0..600)) {
        let mut model = BTreeMap::new();
        let mut ours = Trie::new();
        for (n, op) in ops {
            match op {
                Some(value) => {
                    model.insert(n, value);
                    ours.insert(path(n), digest(Context::Test, &[&[value]]), value);
                }
                None => prop_assert_eq!(ours.remove(&path(n)), model.remove(&n).is_some()),
            }
        }
        prop_assert_eq!(ours.root(), trie(&model).root());
        prop_assert_eq!(ours.len(), model.len());
        prop_assert!(model.iter().all(|(n, value)| ours.get(&path(*n)) == Some(value)));
    }

    #[test]
    fn asking_finds_every_difference(
        a in prop::collection::btree_map(0u16..400, 0u8..3, 0..300),
        b in prop::collection::btree_map(0u16..400, 0u8..3, 0..300),
    ) {
        let theirs = trie(&b);
        let (ours, _) = repaired(trie(&a), &theirs);
        prop_assert_eq!(ours.root(), theirs.root());
    }
}

#[test]
fn one_difference_in_thousands_costs_a_few_questions() {
    let mut items: BTreeMap<u16, u8> = (0..5000).map(|n| (n, 1)).collect();
    let ours = trie(&items);
    items.insert(77, 2);
    let (_, asked) = repaired(ours, &trie(&items));
    assert!(asked <= 4, "asked {asked} times");
}

#[test]
fn a_summary_that_its_parent_did_not_promise_is_refused() {
    let theirs = trie(&(0..100).map(|n| (n, 1)).collect());
    let forged = trie(&(0..100).map(|n| (n, 2)).collect());
    let mut walk = Walk::new(theirs.root(), true);
    let prefix = walk.poll_ask().expect("starts at the root");
    assert_eq!(walk.answer(&Trie::<u8>::new(), prefix, &forged.summary(&prefix)), None);
}

#[test]
fn a_prefix_with_bits_beyond_its_length_is_refused() {
    assert_eq!(Prefix::new(Digest([1; 32]), 2), None);
    assert_eq!(Prefix::new(Digest::ZERO, 65), None);
    assert_eq!(Prefix::new(path(1), 64).map(|p| p.len()), Some(64));
}
