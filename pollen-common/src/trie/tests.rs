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
    fn a_diff_names_exactly_what_changed(
        older in prop::collection::btree_map(0u16..300, any::<u8>(), 0..200),
        changes in prop::collection::vec((0u16..300, prop::option::of(any::<u8>())), 0..60),
    ) {
        let mut newer = older.clone();
        for (n, change) in changes {
            match change {
                Some(value) => { newer.insert(n, value); }
                None => { newer.remove(&n); }
            }
        }
        let (a, b) = (trie(&older), trie(&newer));
        let diff = b.diff(&a);
        let put: BTreeMap<_, _> = diff.put.iter().map(|(p, v)| (*p, **v)).collect();
        let gone: alloc::collections::BTreeSet<_> = diff.gone.iter().map(|(p, _)| *p).collect();
        let expected_put = newer.iter().filter(|(n, v)| older.get(n) != Some(v)).map(|(n, v)| (path(*n), *v)).collect();
        let expected_gone = older.keys().filter(|n| !newer.contains_key(n)).map(|n| path(*n)).collect();
        prop_assert_eq!(put, expected_put);
        prop_assert_eq!(gone, expected_gone);
    }

    #[test]
    fn places_and_summaries_travel_unchanged(items in prop::collection::btree_map(0u16..300, any::<u8>(), 0..200), at in any::<u16>()) {
        let trie = trie(&items);
        for len in [0u8, 1, 2, 3, 64] {
            let prefix = (0..len).fold(Prefix::ROOT, |prefix, depth| {
                prefix.child(nibble(&path(at), depth)).expect("within the depth")
            });
            let summary = trie.summary(&prefix);
            let bytes = minicbor::to_vec(&summary).expect("a vector takes all");
            prop_assert!(bytes.len() <= SUMMARY_BYTES_MAX);
            prop_assert_eq!(minicbor::decode::<Summary>(&bytes).ok(), Some(summary));
            let bytes = minicbor::to_vec(prefix).expect("a vector takes all");
            prop_assert_eq!(minicbor::decode::<Prefix>(&bytes).ok(), Some(prefix));
        }
    }

    #[test]
    fn decoders_survive_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = minicbor::decode::<Summary>(&bytes);
        if let Ok(prefix) = minicbor::decode::<Prefix>(&bytes) {
            prop_assert!(prefix.len() <= DEPTH_MAX);
        }
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
