use alloc::format;
use alloc::string::ToString;

use super::*;
use crate::identity::ClusterId;
use crate::roll::{Member, Rights, Tier};
use crate::time::UnixMs;
use crate::views::Liveness;

fn key(n: u16) -> NodeKey {
    NodeKey(digest(Context::Test, &[&n.to_be_bytes()]).0)
}

fn version(memory_mib: u64) -> SeedVersion {
    SeedVersion {
        module: Digest([1; 32]),
        size_bytes: 4096,
        memory_bytes: memory_mib << 20,
        timeout_ms: 30_000,
        idempotent: false,
        image: false,
        tail_calls: false,
    }
}

fn node(n: u16, memory_mib: u32) -> NodeInfo {
    let member = Member { key: key(n), rights: Rights::of(Tier::Leaf), path: Vec::new(), admitted: 0 };
    let capacity = Some(Capacity { memory_mib, cores: 2 });
    let liveness = Liveness::Online { via: key(n), hops: 1 };
    NodeInfo {
        key: key(n),
        name: None,
        chosen_name: None,
        addrs: Vec::new(),
        member,
        liveness,
        links: Vec::new(),
        capacity,
        draining: false,
        unable: BTreeMap::new(),
    }
}

fn view(nodes: impl IntoIterator<Item = NodeInfo>) -> View {
    View {
        cluster: ClusterId([0; 32]),
        me: key(0),
        nodes: nodes.into_iter().map(|node| (node.key, node)).collect(),
        services: BTreeMap::new(),
        seeds: BTreeMap::new(),
        holders: BTreeMap::new(),
        retiring: BTreeMap::new(),
        unnamed: Vec::new(),
        refused: Vec::new(),
        fallen: BTreeMap::new(),
        roots: [Digest::ZERO; 4],
        document_bytes: 0,
        document_entries: 0,
    }
}

fn seed(name: &str, min_replicas: u16) -> SeedInfo {
    SeedInfo {
        name: name.parse().expect("a name"),
        owner: key(0),
        claimed: UnixMs(0),
        min_replicas,
        everywhere: false,
        versions: alloc::vec![version(8)],
        replicas: BTreeMap::new(),
        conflicts: Vec::new(),
    }
}

fn hosts(view: &View, name: &str, min_replicas: u16) -> BTreeSet<NodeKey> {
    place(view, &seed(name, min_replicas)).hosts
}

#[test]
fn the_floor_is_at_least_one_and_at_most_what_may_host() {
    let three = view((0..3).map(|n| node(n, 512)));
    for (asked, floor) in [(0, 1), (1, 1), (2, 2), (9, 3)] {
        let placement = place(&three, &seed("a", asked));
        assert_eq!((placement.floor, placement.hosts.len()), (floor, floor));
    }
    let nobody = place(&view([]), &seed("a", 2));
    assert!(nobody.hosts.is_empty() && !nobody.is_met_by(Some(&BTreeSet::new())), "there is nobody to hand over to");
}

#[test]
fn everywhere_means_every_node_that_may() {
    let mut nodes: Vec<_> = (0..4).map(|n| node(n, 512)).collect();
    (nodes[1].liveness, nodes[2].draining) = (Liveness::Offline, true);
    let seed = SeedInfo { everywhere: true, ..seed("a", 1) };
    let placement = place(&view(nodes), &seed);
    assert_eq!((placement.floor, placement.hosts), (2, BTreeSet::from([key(0), key(3)])));
    assert_eq!(placement.rules[&key(0)], Rule::Everywhere);
}

#[test]
fn each_node_has_the_rule_that_decided_as_a_sentence() {
    let mut nodes: Vec<_> = (0..8).map(|n| node(n, 512)).collect();
    nodes[1].liveness = Liveness::Offline;
    nodes[2].draining = true;
    nodes[3].capacity = None;
    nodes[4].capacity = Some(Capacity { memory_mib: 4, cores: 1 });
    nodes[7].unable.insert(version(8).id(), Inability::Disk);
    let mut seed = seed("a", 1);
    seed.replicas.insert(version(8).id(), BTreeSet::from([key(2)]));
    let placement = place(&view(nodes), &seed);
    let rule = |n| placement.rules[&key(n)].clone();
    assert_eq!((rule(1), rule(3)), (Rule::Offline, Rule::OffersNothing));
    assert_eq!(rule(4), Rule::TooSmall { needs_mib: 8, has_mib: 4 });
    assert_eq!(rule(2), Rule::KeptUntilHandedOver { otherwise: Box::new(Rule::Draining) });
    assert!(rule(2).to_string().contains("until all that should host it are ready: it takes no replicas"));
    assert_eq!(rule(7), Rule::Cannot(Inability::Disk));
    assert_eq!(rule(7).to_string(), "cannot make it ready: its disk does not take or give the module");
    let ranks: BTreeSet<_> = [0, 5, 6].map(|n| rule(n).to_string()).into();
    let expected =
        ["hosts it: number 1 in its order, of 1 wanted", "need not host it: number 2 in its order, of 1 wanted"];
    assert!(expected.iter().all(|sentence| ranks.contains(*sentence)), "{ranks:?}");
}

#[test]
fn nodes_come_first_in_proportion_to_what_they_offer() {
    let cluster = view([node(1, 256), node(2, 512), node(3, 1024)]);
    let mut firsts = BTreeMap::<NodeKey, usize>::new();
    for n in 0..7000 {
        let first = hosts(&cluster, &format!("seed-{n}"), 1).pop_first().expect("one hosts");
        *firsts.entry(first).or_default() += 1;
    }
    for (n, expected) in [(1, 1000), (2, 2000), (3, 4000)] {
        // Four standard deviations of a binomial draw.
        assert!(firsts[&key(n)].abs_diff(expected) < 170, "node {n}: {} of {expected}", firsts[&key(n)]);
    }
}

#[test]
fn a_death_moves_only_what_the_dead_hosted_and_a_join_at_most_its_share() {
    let all: Vec<_> = (0..12).map(|n| node(n, 512)).collect();
    let (whole, less) = (view(all.clone()), view(all[..11].to_vec()));
    let mut moved = 0_usize;
    for n in 0..1200 {
        let name = format!("seed-{n}");
        let (with, without) = (hosts(&whole, &name, 3), hosts(&less, &name, 3));
        if with.contains(&key(11)) {
            moved += 1;
            assert_eq!(with.difference(&without).count(), 1, "the others stay");
        } else {
            assert_eq!(with, without, "what it did not host does not move");
        }
    }
    // A twelfth of 3,600 replicas, within four standard deviations.
    assert!(moved.abs_diff(300) < 60, "{moved} moved");
}

#[test]
fn a_new_version_goes_where_the_old_one_is() {
    let cluster = view((0..9).map(|n| node(n, 512)));
    let seed = seed("a", 3);
    let next = place_version(&cluster, &seed, &version(64), Presence::Seen);
    assert_eq!(place(&cluster, &seed).hosts, next.hosts);
}

#[test]
fn one_that_cannot_make_a_version_ready_is_passed_over_for_that_version_alone() {
    let mut cluster = view((0..6).map(|n| node(n, 512)));
    let seed = SeedInfo { versions: alloc::vec![version(8), version(64)], ..seed("a", 3) };
    let [old, new] = [version(8), version(64)];
    let before = place_version(&cluster, &seed, &new, Presence::Seen).hosts;
    let beyond = *before.first().expect("three");
    cluster.nodes.get_mut(&beyond).expect("a member").unable.insert(new.id(), Inability::Unfit);
    let after = place_version(&cluster, &seed, &new, Presence::Seen);
    assert_eq!(after.hosts.len(), 3, "another takes its share");
    assert_eq!(before.difference(&after.hosts).collect::<Vec<_>>(), [&beyond], "the others stay");
    assert_eq!(after.unable().collect::<Vec<_>>(), [(&beyond, Inability::Unfit)]);
    assert_eq!(place_version(&cluster, &seed, &old, Presence::Seen).hosts, before, "the old version stays");
    let everywhere = SeedInfo { everywhere: true, ..seed.clone() };
    assert_eq!(place_version(&cluster, &everywhere, &new, Presence::Seen).hosts.len(), 5);
    // What it says binds what is asked of it, not what it would be asked if it could.
    cluster.me = beyond;
    assert!(should_if_able(&cluster, &seed, &new, Presence::Seen));
    cluster.me = *after.hosts.difference(&before).next().expect("the one in its place");
    assert!(should_if_able(&cluster, &seed, &new, Presence::Seen), "others are taken at their word");
    cluster.nodes.values_mut().for_each(|node| {
        node.unable.insert(new.id(), Inability::Unfit);
    });
    let nobody = place_version(&cluster, &seed, &new, Presence::Seen);
    assert!(nobody.hosts.is_empty() && !nobody.is_met_by(Some(&BTreeSet::new())), "nothing is replaced");
}

#[test]
fn whoever_has_just_started_takes_all_members_for_present() {
    let mut nodes: Vec<_> = (0..5).map(|n| node(n, 512)).collect();
    let expected = hosts(&view(nodes.clone()), "a", 2);
    nodes.iter_mut().for_each(|node| node.liveness = Liveness::Offline);
    let alone = view(nodes);
    assert!(hosts(&alone, "a", 2).is_empty());
    assert_eq!(place_version(&alone, &seed("a", 2), &version(8), Presence::Presumed).hosts, expected);
}

#[test]
fn a_node_that_drains_waits_for_those_that_may_and_for_nobody_else() {
    let mut nodes: Vec<_> = (0..3).map(|n| node(n, 512)).collect();
    nodes[0].liveness = Liveness::Me;
    nodes[0].draining = true;
    let mut cluster = view(nodes);
    let mut handed = seed("a", 2);
    let ready = |keys: &[u16]| BTreeMap::from([(version(8).id(), keys.iter().map(|n| key(*n)).collect())]);
    let mut waits = |cluster: &mut View, replicas| {
        handed.replicas = replicas;
        cluster.seeds = BTreeMap::from([(handed.name.clone(), handed.clone())]);
        cluster.handing_over().len()
    };
    assert_eq!(waits(&mut cluster, ready(&[0, 1])), 1, "one of two is ready");
    assert_eq!(waits(&mut cluster, ready(&[0, 1, 2])), 0);
    assert_eq!(waits(&mut cluster, ready(&[1])), 0, "this node serves nothing");
    cluster.nodes.values_mut().for_each(|node| node.capacity = None);
    assert_eq!(waits(&mut cluster, ready(&[0])), 0, "nobody could take it");
}

#[test]
fn logarithms_are_those_of_arithmetic() {
    assert_eq!((log2(1), log2(2), log2(1 << 63)), (0, 1 << LOG_BITS, 63 << LOG_BITS));
    // Fixed for all time: another value would place differently on another version.
    assert_eq!((log2(3), log2(u64::MAX)), (6_807_362_105, (64 << LOG_BITS) - 1));
    for n in [3_u64, 10, 12_345, 1 << 40, (1 << 52) + 12_345] {
        #[expect(clippy::cast_precision_loss, reason = "numbers below 2^53 are exact")]
        let (expected, found) = ((n as f64).log2(), log2(n) as f64 / 2_f64.powi(32));
        assert!((expected - found).abs() < 1e-8, "{n}: {found}, not {expected}");
    }
}

#[test]
fn every_machine_ranks_alike_for_all_time() {
    let cluster = view((0..5).map(|n| node(n, 256 << n)));
    let placement = place(&cluster, &SeedInfo { min_replicas: 2, ..seed("hello", 2) });
    let order: Vec<_> = (0..5).filter(|n| placement.hosts.contains(&key(*n))).collect();
    assert_eq!(order, [2, 3]);
    let cost = Draw::of(&"hello".parse().expect("a name")).cost(&key(0), &Capacity { memory_mib: 256, cores: 1 });
    assert_eq!(cost, 80_229_641_454_313_700_946_083_840);
}
