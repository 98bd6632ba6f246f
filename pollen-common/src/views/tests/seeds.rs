//! What members say of seeds, and what the others make of it.

use super::*;
use crate::views::entries::SeedClaim;

fn version(n: u8) -> SeedVersion {
    SeedVersion {
        module: Digest([n; 32]),
        size_bytes: 4096,
        memory_bytes: 8 << 20,
        timeout_ms: 30_000,
        idempotent: false,
        image: false,
        tail_calls: false,
    }
}

impl World {
    fn seeds(&mut self, n: u8, text: &str, after_start: u64, versions: &[SeedVersion]) {
        let claimed = UnixMs(START.0 + after_start);
        let claim = SeedClaim { versions: versions.to_vec(), min_replicas: 2, everywhere: false, claimed };
        self.says(n, Lane::Facts, entries::seed(&name(text), &claim));
    }

    fn ready(&mut self, n: u8, text: &str, version: &SeedVersion) {
        self.says(n, Lane::Live, entries::replica(&version.id(), &name(text)));
    }
}

fn ready_on(view: &View, text: &str, version: &SeedVersion) -> Vec<NodeKey> {
    view.seeds[&name(text)].replicas.get(&version.id()).into_iter().flatten().copied().collect()
}

fn keys<const N: usize>(of: [u8; N]) -> Vec<NodeKey> {
    let mut keys: Vec<_> = of.into_iter().map(key).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn a_seeds_name_goes_as_a_services_does_and_beside_it() {
    let mut world = World::new();
    world.seeds(3, "hello", 2 * HOUR, &[version(3)]);
    world.seeds(2, "hello", HOUR, &[version(2)]);
    world.claims(1, "hello", 0, false, Some(80));
    for me in 1..=4 {
        let view = world.view(me);
        let seed = &view.seeds[&name("hello")];
        assert_eq!((seed.owner, seed.current()), (key(2), &version(2)));
        assert_eq!((seed.conflicts.len(), seed.conflicts[0].author), (1, key(3)));
        assert_eq!(owner(&view, "hello"), Some(key(1)), "services have names of their own");
    }
    let reasons = world.why(1, &Target::Seed(name("hello")));
    assert!(has(&reasons, "bern") && has(&reasons, "owns hello") && has(&reasons, "the claim of cork"));
    assert!(has(&world.why(1, &Target::Seed(name("other"))), "nobody who may claims the seed other"));
}

#[test]
fn a_leaf_publishes_no_seed_and_is_told_why() {
    let mut world = World::new();
    world.seeds(4, "hello", 0, &[version(1)]);
    assert!(world.view(1).seeds.is_empty());
    assert!(has(&world.why(1, &Target::Seed(name("hello"))), "its author is a leaf"));
}

#[test]
fn replicas_count_while_their_nodes_are_online_and_their_version_is_named() {
    let mut world = World::new();
    world.link(1, 2);
    world.link(1, 4);
    world.seeds(2, "hello", 0, &[version(1), version(2)]);
    world.ready(2, "hello", &version(1));
    world.ready(4, "hello", &version(1));
    world.ready(3, "hello", &version(2));
    world.ready(4, "elsewhere", &version(3));
    world.ready(4, "hello", &version(9));
    let view = world.view(1);
    assert_eq!(ready_on(&view, "hello", &version(1)), keys([2, 4]), "leaves host too");
    assert!(ready_on(&view, "hello", &version(2)).is_empty(), "cork is offline");
    assert_eq!(ready_on(&view, "hello", &version(9)), keys([4]), "it serves until it has heard of the new ones");
    let refused: Vec<_> = view.refused.iter().map(|entry| (entry.author, entry.reason.as_str())).collect();
    assert_eq!(refused, [(key(4), "no seed names this version")]);
    let retiring = [version(3), version(9)].map(|version| (version.id(), [key(4)].into()));
    assert_eq!(view.retiring, retiring.into(), "of any name");
    assert_eq!(ready_on(&world.view(3), "hello", &version(2)), keys([3]), "cork sees itself");
}

#[test]
fn one_replica_serves_every_seed_that_names_its_version() {
    let mut world = World::new();
    world.seeds(2, "one", 0, &[version(1)]);
    world.seeds(3, "other", 0, &[version(1)]);
    world.ready(1, "one", &version(1));
    let view = world.view(1);
    assert_eq!((ready_on(&view, "one", &version(1)), ready_on(&view, "other", &version(1))), (keys([1]), keys([1])));
}

#[test]
fn a_module_is_asked_of_its_owner_those_that_serve_it_and_those_that_keep_it_while_online() {
    let mut world = World::new();
    world.link(1, 2);
    world.link(1, 4);
    world.seeds(2, "hello", 0, &[version(1), version(2)]);
    world.ready(1, "hello", &version(2));
    for n in [3, 4] {
        world.says(n, Lane::Live, entries::holding(&version(1).module));
    }
    world.says(4, Lane::Live, entries::holding(&Digest([7; 32])));
    let view = world.view(1);
    let holders = |n: u8| view.holders[&Digest([n; 32])].iter().copied().collect::<Vec<_>>();
    assert_eq!((holders(1), holders(2)), (keys([2, 4]), keys([1, 2])));
    assert!(!view.holders.contains_key(&Digest([7; 32])), "no seed names it");
    assert!(view.refused.iter().any(|entry| entry.reason == "no seed names this module"));
}

#[test]
fn what_a_node_cannot_make_ready_counts_while_a_seed_names_it() {
    let mut world = World::new();
    world.seeds(2, "hello", 0, &[version(1), version(2)]);
    world.says(4, Lane::Live, entries::unable(&version(2).id(), Inability::Full));
    world.says(4, Lane::Live, entries::unable(&version(3).id(), Inability::Other(99)));
    let view = world.view(1);
    assert_eq!(view.nodes[&key(4)].unable, [(version(2).id(), Inability::Full)].into());
    assert!(view.nodes[&key(2)].unable.is_empty());
    assert!(view.refused.iter().any(|entry| entry.reason == "no seed names this version"));
    for n in 0..=UNABLE_MAX {
        let id = VersionId(crate::hash::digest(crate::hash::Context::Test, &[&n.to_be_bytes()]));
        let (key, value) = entries::unable(&id, Inability::Disk);
        world.author(1).put(Lane::Live, &key, &value, 1 << 20).expect("room");
    }
    world.seal(1);
    assert!(world.view(1).refused.iter().any(|entry| entry.reason.contains("more than 256 versions ready")));
}

#[test]
fn nodes_say_what_they_offer_and_that_they_leave() {
    let mut world = World::new();
    let capacity = Capacity { memory_mib: 512, cores: 4 };
    world.says(4, Lane::Facts, entries::host(&capacity));
    world.says(4, Lane::Live, entries::drain());
    let view = world.view(1);
    assert_eq!((view.nodes[&key(4)].capacity, view.nodes[&key(4)].draining), (Some(capacity), true));
    assert_eq!((view.nodes[&key(1)].capacity, view.nodes[&key(1)].draining), (None, false));
}

#[test]
fn nobody_says_more_of_hosting_than_is_counted() {
    let mut world = World::new();
    world.seeds(2, "hello", 0, &[version(1)]);
    for n in 0..=HOLDS_MAX {
        let module = Digest(crate::hash::digest(crate::hash::Context::Test, &[&n.to_be_bytes()]).0);
        let (key, value) = entries::holding(&module);
        world.author(1).put(Lane::Live, &key, &value, 1 << 20).expect("room");
    }
    world.seal(1);
    let view = world.view(1);
    let refused = view.refused.iter().filter(|entry| entry.author == key(1)).count();
    assert!((1..=2 * REFUSED_PER_AUTHOR_MAX).contains(&refused), "{refused}");
    assert!(view.refused.iter().any(|entry| entry.reason.contains("more than 256 modules")));
}
