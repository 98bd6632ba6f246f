//! What operators are promised of seeds: served at every moment, by exactly as many as asked for after quiet, moved no
//! more than needed.

use std::collections::BTreeSet;

use super::*;
use crate::identity::NodeKey;
use crate::placement::place;
use crate::views::{Capacity, Name, SeedTerms, SeedVersion};

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

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

fn terms(n: u8, min_replicas: u16) -> SeedTerms {
    SeedTerms { version: version(n), min_replicas, everywhere: false }
}

fn settled(world: &mut World, request: crate::node::RequestId) -> Result<(), Refusal> {
    for _ in 0..200 {
        world.run_for(Duration::from_millis(50));
        if let Some(answer) = world.reply(request) {
            return answer.map(drop);
        }
    }
    panic!("no answer in ten seconds");
}

/// Machines that know each other and offer 512 MiB each.
fn cluster(seed: u64, count: usize) -> World {
    let mut world = World::new(seed, count, true);
    until(&mut world, all_online);
    for at in 0..count {
        let capacity = Some(Capacity { memory_mib: 512, cores: 2 });
        ask(&mut world, at, Command::Offer { capacity }).expect("any member may");
    }
    world
}

fn publish(world: &mut World, at: usize, text: &str, terms: SeedTerms) {
    let request = world.publish_seed(at, &name(text), terms).expect("the machine is up");
    settled(world, request).expect("published");
}

/// The machines that serve a version, by what they do.
fn serving(world: &World, n: u8) -> Vec<usize> {
    let keys = world.serving(&version(n).id());
    (0..world.len()).filter(|at| keys.contains(&world.machines[*at].key())).collect()
}

/// Whether each machine that is up sees exactly those ready that should be, and they are.
fn placed(world: &World, text: &str, n: u8) -> bool {
    let mut up = (0..world.len()).filter_map(|at| world.node(at));
    up.all(|node| {
        let view = node.view();
        let Some(seed) = view.seeds.get(&name(text)) else { return false };
        let ready: BTreeSet<NodeKey> = seed.replicas.values().flatten().copied().collect();
        let hosts = place(&view, seed).hosts;
        seed.versions == [version(n)] && ready == hosts && world.serving(&version(n).id()) == hosts
    })
}

/// A cluster of so many with `hello` on `replicas` of them, watched from then on.
fn serving_cluster(seed: u64, count: usize, replicas: u16) -> World {
    let mut world = cluster(seed, count);
    publish(&mut world, 0, "hello", terms(1, replicas));
    until(&mut world, |world| placed(world, "hello", 1));
    world.watch(&name("hello"));
    world
}

fn no_gap(world: &World) {
    assert!(world.gaps().is_empty(), "{:#?}", world.gaps());
}

#[test]
fn a_seed_is_ready_on_as_many_machines_as_asked_for_soon_after_it_is_published() {
    for seed in 0..10 {
        let mut world = cluster(seed, 5);
        publish(&mut world, 1, "hello", terms(1, 2));
        let took = until(&mut world, |world| placed(world, "hello", 1));
        assert!(took < Duration::from_secs(5), "seed {seed}: {took:?}");
        assert_eq!(serving(&world, 1).len(), 2);
        world.run_for(Duration::from_secs(30));
        assert!(placed(&world, "hello", 1) && world.starts() == 2, "{} starts", world.starts());
    }
}

#[test]
fn everywhere_is_on_every_machine_that_joins() {
    let mut world = cluster(20, 3);
    publish(&mut world, 0, "hello", SeedTerms { everywhere: true, ..terms(1, 1) });
    until(&mut world, |world| serving(world, 1).len() == 3);
    let token = world.invite(0, Rights::of(Tier::Leaf), Duration::from_secs(60));
    let joined = world.join(0, &token).expect("admitted");
    until(&mut world, all_online);
    let capacity = Some(Capacity { memory_mib: 512, cores: 2 });
    ask(&mut world, joined, Command::Offer { capacity }).expect("any member may");
    until(&mut world, |world| serving(world, 1).len() == 4 && placed(world, "hello", 1));
}

#[test]
fn one_of_two_hosts_dies_without_a_gap_and_the_floor_is_back_within_ten_seconds() {
    for seed in 0..20 {
        let mut world = serving_cluster(seed, 4, 2);
        world.run_for(Duration::from_millis(seed * 171));
        let dead = serving(&world, 1)[0];
        world.crash(dead);
        let took = until(&mut world, |world| placed(world, "hello", 1));
        assert!(took <= Duration::from_secs(10), "seed {seed}: {took:?}");
        no_gap(&world);
        // It comes back: it is first again, and the other lets go only after it is ready.
        world.start(dead);
        until(&mut world, |world| all_online(world) && placed(world, "hello", 1));
        assert!(serving(&world, 1).contains(&dead));
        no_gap(&world);
    }
}

#[test]
fn a_host_that_drains_hands_over_before_it_leaves() {
    for seed in 30..45 {
        let mut world = serving_cluster(seed, 4, 1 + u16::from(seed % 2 == 0));
        let leaver = serving(&world, 1)[0];
        ask(&mut world, leaver, Command::Drain).expect("answered");
        let handed = |world: &World| world.node(leaver).expect("up").view().handing_over().is_empty();
        let took = until(&mut world, handed);
        assert!(took < Duration::from_secs(3), "seed {seed}: {took:?}");
        world.command(leaver, Command::Leave);
        world.run_for(Duration::from_millis(500));
        world.crash(leaver);
        until(&mut world, |world| placed(world, "hello", 1));
        no_gap(&world);
        // A restart undoes it.
        world.start(leaver);
        until(&mut world, |world| all_online(world) && placed(world, "hello", 1));
        assert!(serving(&world, 1).contains(&leaver), "it is first again");
        no_gap(&world);
    }
}

#[test]
fn a_host_that_drains_serves_on_while_nobody_else_may() {
    let mut world = serving_cluster(50, 1, 1);
    ask(&mut world, 0, Command::Drain).expect("answered");
    world.run_for(Duration::from_secs(60));
    assert_eq!(serving(&world, 1), [0]);
    assert!(world.node(0).expect("up").view().handing_over().is_empty(), "it waits for nobody");
}

#[test]
fn a_new_version_is_ready_before_the_old_one_goes() {
    for seed in 60..75 {
        let mut world = serving_cluster(seed, 5, 2);
        publish(&mut world, 0, "hello", terms(2, 2));
        assert!(!serving(&world, 1).is_empty());
        let took = until(&mut world, |world| placed(world, "hello", 2));
        assert!(took < Duration::from_secs(8), "seed {seed}: {took:?}");
        assert!(serving(&world, 1).is_empty(), "the old one is gone");
        no_gap(&world);
    }
}

#[test]
fn an_upgrade_goes_on_when_its_owner_restarts_and_ends_with_the_newest() {
    for seed in 80..90 {
        let mut world = serving_cluster(seed, 5, 2);
        publish(&mut world, 0, "hello", terms(2, 2));
        publish(&mut world, 0, "hello", terms(3, 2));
        world.crash(0);
        world.run_for(Duration::from_secs(seed - 79));
        world.start(0);
        until(&mut world, |world| all_online(world) && placed(world, "hello", 3));
        assert_eq!(world.served(), BTreeSet::from([version(3).id()]));
        no_gap(&world);
    }
}

#[test]
fn a_version_that_fits_nowhere_replaces_nothing() {
    let mut world = serving_cluster(95, 3, 2);
    let huge = SeedVersion { memory_bytes: 1 << 40, ..version(2) };
    publish(&mut world, 0, "hello", SeedTerms { version: huge, ..terms(2, 2) });
    world.run_for(Duration::from_secs(60));
    assert_eq!(serving(&world, 1).len(), 2);
    no_gap(&world);
    let reasons = world.node(0).expect("up").why(&Target::Seed(name("hello")), world.clock());
    assert!(reasons.iter().any(|reason| reason.contains("too small: a call may need 1048576 MiB")), "{reasons:#?}");
}

#[test]
fn what_is_unseeded_stops_everywhere_and_only_its_owner_may() {
    let mut world = serving_cluster(100, 4, 3);
    world.run_for(Duration::from_secs(2));
    let refused = ask(&mut world, 1, Command::Unseed { name: name("hello") }).expect_err("not its own");
    assert_eq!(refused.kind, RefusalKind::NotFound);
    let taken = world.publish_seed(1, &name("hello"), terms(9, 1)).expect("up");
    assert_eq!(settled(&mut world, taken).expect_err("taken").kind, RefusalKind::Denied);
    no_gap(&world);
    ask(&mut world, 0, Command::Unseed { name: name("hello") }).expect("its own");
    let retiring =
        |world: &World| world.node(0).expect("up").view().retiring.values().map(BTreeSet::len).sum::<usize>();
    assert_eq!(retiring(&world), 2, "the others have not heard of it");
    let took = until(&mut world, |world| world.served().is_empty());
    assert!(took < Duration::from_secs(2), "{took:?}");
    until(&mut world, |world| retiring(world) == 0);
    assert!(world.node(3).expect("up").view().seeds.is_empty());
}

#[test]
fn everything_killed_at_once_serves_again_within_five_seconds_where_it_was() {
    for seed in 110..120 {
        let mut world = serving_cluster(seed, 5, 2);
        let (before, starts) = (serving(&world, 1), world.starts());
        (0..5).for_each(|at| world.crash(at));
        world.run_for(Duration::from_secs(5));
        (0..5).for_each(|at| world.start(at));
        let took = until(&mut world, |world| serving(world, 1) == before);
        assert!(took < Duration::from_secs(1), "seed {seed}: {took:?}");
        let took = until(&mut world, |world| placed(world, "hello", 1));
        assert!(took < Duration::from_secs(5), "seed {seed}: {took:?}");
        world.run_for(Duration::from_secs(20));
        assert!(placed(&world, "hello", 1));
        assert!(world.starts() <= starts + 3, "seed {seed}: {} starts after {starts}", world.starts());
    }
}

#[test]
fn a_machine_that_goes_up_and_down_moves_little() {
    let mut world = serving_cluster(130, 4, 2);
    let restless = serving(&world, 1)[0];
    let starts = world.starts();
    for _ in 0..20 {
        world.crash(restless);
        world.run_for(Duration::from_secs(4));
        world.start(restless);
        world.run_for(Duration::from_secs(6));
    }
    // Its own start each time, and now and then another's in its place.
    let moved = world.starts() - starts - 20;
    assert!(moved <= 4, "{moved} starts elsewhere");
    no_gap(&world);
}

#[test]
fn a_partition_that_heals_leaves_no_gap_and_exactly_the_floor() {
    for seed in 140..150 {
        let mut world = serving_cluster(seed, 5, 2);
        let hosts = serving(&world, 1);
        // A host on each side, so that each has somebody to fetch the module from.
        let far: Vec<usize> =
            (0..5).filter(|at| *at != hosts[1] && (*at == hosts[0] || (seed >> at) & 1 == 0)).collect();
        let floors = far.len().min(2) + (5 - far.len()).min(2);
        world.partition(far);
        world.run_for(Duration::from_secs(12));
        assert_eq!(serving(&world, 1).len(), floors, "seed {seed}: each side serves by itself");
        world.partition([]);
        until(&mut world, |world| all_online(world) && placed(world, "hello", 1));
        assert_eq!(serving(&world, 1).len(), 2);
    }
}

#[test]
fn a_joining_machine_takes_only_its_share() {
    let mut world = cluster(160, 4);
    for n in 0..24 {
        publish(&mut world, usize::from(n % 4), &std::format!("seed-{n}"), terms(n, 2));
    }
    world.run_for(Duration::from_secs(10));
    let before: Vec<_> = (0..24).map(|n| serving(&world, n)).collect();
    let token = world.invite(0, Rights::of(Tier::Leaf), Duration::from_secs(60));
    let joined = world.join(0, &token).expect("admitted");
    until(&mut world, all_online);
    let capacity = Some(Capacity { memory_mib: 512, cores: 2 });
    ask(&mut world, joined, Command::Offer { capacity }).expect("any member may");
    world.run_for(Duration::from_secs(20));
    let mut moved = 0;
    for n in 0..24 {
        let after = serving(&world, n);
        assert_eq!(after.len(), 2);
        let stayed = after.iter().filter(|at| before[usize::from(n)].contains(at)).count();
        moved += 2 - stayed;
        assert!(stayed == 2 || after.contains(&joined), "only to the new machine");
    }
    // A fifth of 48 is about 10; twice that is beyond four standard deviations.
    assert!((1..20).contains(&moved), "{moved} moved");
}

/// The rule of a machine in the sentences of another.
fn told(world: &World, of: usize, by: usize) -> Vec<String> {
    let node = world.node(by).expect("up");
    let of = world.machines[of].key().short();
    let reasons = node.why(&Target::Seed(name("hello")), world.clock());
    reasons.into_iter().filter(|reason| reason.contains(&of)).collect()
}

fn says_cannot(world: &World, of: usize, by: usize) -> bool {
    told(world, of, by).iter().any(|reason| reason.contains("cannot make it ready: its disk"))
}

/// A cluster in which one of the machines where `hello` belongs can make nothing ready, and that machine.
fn one_unable(seed: u64, count: usize) -> (World, usize) {
    let mut world = cluster(seed, count);
    publish(&mut world, 0, "hello", terms(1, 2));
    until(&mut world, |world| placed(world, "hello", 1));
    let first = serving(&world, 1)[0];
    ask(&mut world, 0, Command::Unseed { name: name("hello") }).expect("its own");
    until(&mut world, |world| world.served().is_empty());
    world.set_unable(first, true);
    (world, first)
}

#[test]
fn one_that_cannot_make_a_seed_ready_says_so_and_others_keep_the_floor_for_hours() {
    for seed in 200..206 {
        let (mut world, unable) = one_unable(seed, 5);
        let starts = world.starts();
        publish(&mut world, 0, "hello", terms(2, 2));
        let took = until(&mut world, |world| placed(world, "hello", 2) && serving(world, 2).len() == 2);
        assert!(took < Duration::from_secs(5), "seed {seed}: {took:?}");
        assert!((0..5).all(|by| says_cannot(&world, unable, by)), "{:#?}", told(&world, unable, 0));
        world.watch(&name("hello"));
        let (hosts, then) = (serving(&world, 2), world.starts());
        assert_eq!(then, starts + 3, "each that was asked was asked once");
        world.run_for(Duration::from_secs(3 * 3600));
        assert_eq!(serving(&world, 2), hosts, "nothing moved");
        // 2, 4, 8, 16 minutes, then every half hour.
        let tries = world.starts() - then;
        assert!((5..=10).contains(&tries), "{tries} quiet tries in three hours");
        no_gap(&world);
    }
}

#[test]
fn one_that_can_again_takes_its_place_without_a_gap() {
    let (mut world, unable) = one_unable(210, 4);
    publish(&mut world, 0, "hello", terms(2, 2));
    until(&mut world, |world| placed(world, "hello", 2) && serving(world, 2).len() == 2);
    assert!(says_cannot(&world, unable, 0));
    world.watch(&name("hello"));
    world.set_unable(unable, false);
    world.run_for(Duration::from_secs(150));
    assert!(placed(&world, "hello", 2) && serving(&world, 2).contains(&unable));
    assert!(!says_cannot(&world, unable, 0), "it says so no more");
    no_gap(&world);
}

#[test]
fn what_a_machine_said_it_could_not_is_forgotten_when_it_restarts_or_the_version_goes() {
    let (mut world, unable) = one_unable(220, 4);
    publish(&mut world, 0, "hello", terms(2, 2));
    until(&mut world, |world| placed(world, "hello", 2) && serving(world, 2).len() == 2);
    let said = |world: &World| {
        let node = world.node(if unable == 0 { 1 } else { 0 }).expect("up");
        node.view().nodes[&world.machines[unable].key()].unable.len()
    };
    assert_eq!(said(&world), 1);
    world.set_unable(unable, false);
    world.crash(unable);
    world.start(unable);
    until(&mut world, |world| all_online(world) && placed(world, "hello", 2) && serving(world, 2).contains(&unable));
    assert_eq!(said(&world), 0);
    world.set_unable(unable, true);
    publish(&mut world, 0, "hello", terms(3, 2));
    until(&mut world, |world| placed(world, "hello", 3));
    assert_eq!(said(&world), 1);
    ask(&mut world, 0, Command::Unseed { name: name("hello") }).expect("its own");
    until(&mut world, |world| world.served().is_empty() && said(world) == 0);
    world.run_for(Duration::from_secs(2));
    let live: Vec<_> = world.node(0).expect("up").view().refused.clone();
    assert!(live.is_empty(), "{live:?}");
}

#[test]
fn an_upgrade_waits_for_nobody_who_cannot() {
    for seed in 230..236 {
        let mut world = serving_cluster(seed, 5, 2);
        let unable = serving(&world, 1)[1];
        world.set_unable(unable, true);
        publish(&mut world, 0, "hello", terms(2, 2));
        let took = until(&mut world, |world| placed(world, "hello", 2));
        assert!(took < Duration::from_secs(10), "seed {seed}: {took:?}");
        assert!(serving(&world, 2).len() == 2 && !serving(&world, 2).contains(&unable));
        no_gap(&world);
    }
}

#[test]
fn an_upgrade_that_nobody_can_make_ready_leaves_the_old_version_until_one_can() {
    let mut world = serving_cluster(240, 3, 2);
    (0..3).for_each(|at| world.set_unable(at, true));
    let starts = world.starts();
    publish(&mut world, 0, "hello", terms(2, 2));
    world.run_for(Duration::from_secs(60));
    assert!((0..3).all(|of| (0..3).all(|by| says_cannot(&world, of, by))));
    assert_eq!((serving(&world, 1).len(), serving(&world, 2).len(), world.starts() - starts), (2, 0, 3));
    no_gap(&world);
    (0..3).for_each(|at| world.set_unable(at, false));
    world.run_for(Duration::from_secs(80));
    assert!(placed(&world, "hello", 2));
    no_gap(&world);
}

#[test]
fn everywhere_passes_over_those_that_cannot() {
    let mut world = cluster(250, 4);
    world.set_unable(2, true);
    publish(&mut world, 0, "hello", SeedTerms { everywhere: true, ..terms(1, 1) });
    until(&mut world, |world| serving(world, 1) == [0, 1, 3] && placed(world, "hello", 1));
    assert!(says_cannot(&world, 2, 0));
}
