//! What operators are promised, told on simulated machines.

use core::time::Duration;
use std::string::String;
use std::vec::Vec;

use super::World;
use crate::identity::{ClusterId, Digest, SecretKey};
use crate::node::join::JoinError;
use crate::node::{Command, Publish, Refusal, RefusalKind};
use crate::roll::{Rights, Tier};
use crate::trie::Prefix;
use crate::views::{Policy, Protocol, Target};
use crate::wire::{Message, Versions};

mod authority;
mod seeds;

fn online(world: &World, at: usize) -> usize {
    world.node(at).map_or(0, |node| node.view().nodes.values().filter(|info| info.liveness.is_online()).count())
}

fn all_online(world: &World) -> bool {
    (0..world.len()).filter(|at| world.node(*at).is_some()).all(|at| online(world, at) == world.len())
}

/// Time until `done`, in steps of 50 ms, at most a minute.
fn until(world: &mut World, done: impl Fn(&World) -> bool) -> Duration {
    let step = Duration::from_millis(50);
    let mut waited = Duration::ZERO;
    while !done(world) {
        assert!(waited < Duration::from_secs(60), "waited a minute");
        world.run_for(step);
        waited += step;
    }
    waited
}

fn serve(name: &str, shared: bool) -> Command {
    let (name, protocol) = (name.parse().ok(), Protocol::Tcp);
    Command::Serve(Publish { name, protocol, port: 8080, shared, policy: Policy::default() })
}

fn ask(world: &mut World, at: usize, command: Command) -> Result<(), Refusal> {
    let id = world.command(at, command).expect("the machine is up");
    for _ in 0..200 {
        world.run_for(Duration::from_millis(50));
        if let Some(answer) = world.reply(id) {
            return answer.map(drop);
        }
    }
    panic!("no answer in ten seconds");
}

#[test]
fn three_machines_see_each_other_within_seconds_of_the_last_join() {
    let mut world = World::new(1, 3, true);
    let known = until(&mut world, all_online);
    assert!(known < Duration::from_secs(5), "after {known:?}");
}

#[test]
fn a_killed_machine_is_known_dead_everywhere_within_three_seconds() {
    for seed in 0..20 {
        let mut world = World::new(seed, 3, true);
        until(&mut world, all_online);
        world.run_for(Duration::from_millis(seed * 137));
        world.crash(2);
        let known = until(&mut world, |world| online(world, 0) == 2 && online(world, 1) == 2);
        assert!(known <= Duration::from_secs(3), "seed {seed}: after {known:?}");
    }
}

#[test]
fn a_goodbye_is_known_at_once() {
    let mut world = World::new(3, 3, true);
    until(&mut world, all_online);
    world.command(2, Command::Leave);
    let known = until(&mut world, |world| online(world, 0) == 2 && online(world, 1) == 2);
    assert!(known <= Duration::from_millis(700), "after {known:?}");
}

#[test]
fn all_machines_killed_at_once_find_each_other_again() {
    let mut world = World::new(4, 5, true);
    until(&mut world, all_online);
    (0..5).for_each(|at| world.crash(at));
    world.run_for(Duration::from_secs(5));
    (0..5).for_each(|at| world.start(at));
    assert!(until(&mut world, all_online) < Duration::from_secs(8));
}

#[test]
fn an_invite_is_redeemed_at_another_admin_while_its_issuer_is_off() {
    let mut world = World::new(5, 1, true);
    let token = world.invite(0, Rights::of(Tier::Admin), Duration::from_secs(300));
    let admin = world.join(0, &token).expect("admitted");
    until(&mut world, all_online);
    let token = world.invite(0, Rights::of(Tier::Leaf), Duration::from_secs(300));
    world.crash(0);
    world.run_for(Duration::from_secs(4));
    let joined = world.join(admin, &token).expect("the other admin is a witness");
    until(&mut world, |world| online(world, joined) == 2);
    world.start(0);
    assert!(until(&mut world, all_online) < Duration::from_secs(10));
}

#[test]
fn a_token_admits_once_in_time_and_undamaged() {
    let mut world = World::new(6, 1, true);
    let token = world.invite(0, Rights::of(Tier::Leaf), Duration::from_secs(60));
    world.join(0, &token).expect("admitted");
    let refused = |result: Result<usize, JoinError>| match result {
        Err(JoinError::Refused(reason)) => reason,
        other => panic!("expected a refusal, got {other:?}"),
    };
    let reason: String = refused(world.join(0, &token));
    assert!(reason.contains("used") || reason.contains("redeemed"), "{reason}");
    let late = world.invite(0, Rights::of(Tier::Leaf), Duration::from_secs(1));
    world.run_for(Duration::from_secs(2));
    let reason = refused(world.join(0, &late));
    assert!(reason.contains("expired"), "{reason}");
    let mut damaged: Vec<u8> = world.invite(0, Rights::of(Tier::Leaf), Duration::from_secs(60));
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    assert!(matches!(world.join(0, &damaged), Err(JoinError::Token(_))));
}

#[test]
fn a_leaf_that_publishes_is_told_what_it_lacks_and_who_could_grant_it() {
    let mut world = World::new(7, 1, true);
    let token = world.invite(0, Rights::of(Tier::Leaf), Duration::from_secs(60));
    let leaf = world.join(0, &token).expect("admitted");
    until(&mut world, all_online);
    let refusal = ask(&mut world, leaf, serve("api", false)).expect_err("a leaf publishes nothing");
    assert_eq!(refusal.kind, RefusalKind::Denied);
    assert!(refusal.message.contains("publisher"), "{}", refusal.message);
    let founder = world.node(0).expect("up").me().short();
    assert!(refusal.hint.as_ref().is_some_and(|hint| hint.contains(&founder)), "{:?}", refusal.hint);
}

#[test]
fn a_name_has_one_owner_and_is_provided_by_others_only_when_shared() {
    let mut world = World::new(8, 3, true);
    until(&mut world, all_online);
    ask(&mut world, 0, serve("mine", false)).expect("free");
    ask(&mut world, 0, serve("ours", true)).expect("free");
    world.run_for(Duration::from_secs(2));
    let refusal = ask(&mut world, 1, serve("mine", false)).expect_err("taken");
    assert_eq!(refusal.kind, RefusalKind::Denied);
    ask(&mut world, 1, serve("ours", false)).expect("shared");
    world.run_for(Duration::from_secs(2));
    let view = world.node(2).expect("up").view();
    let service = &view.services[&"ours".parse().expect("a name")];
    assert_eq!(service.providers.len(), 2);
}

#[test]
fn what_was_served_is_there_after_a_crash_and_what_was_removed_is_not() {
    let mut world = World::new(9, 2, true);
    until(&mut world, all_online);
    ask(&mut world, 1, serve("kept", false)).expect("free");
    ask(&mut world, 1, serve("gone", false)).expect("free");
    let name = |s: &str| s.parse().ok();
    let unserve = Command::Unserve { name: name("gone"), protocol: Protocol::Tcp, port: 8080 };
    ask(&mut world, 1, unserve).expect("it is served");
    world.crash(1);
    world.run_for(Duration::from_secs(4));
    world.start(1);
    until(&mut world, all_online);
    for at in 0..2 {
        let view = world.node(at).expect("up").view();
        let names: Vec<_> = view.services.keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["kept"], "as machine {at} sees it");
    }
}

#[test]
fn a_deletion_said_twice_is_acknowledged_only_when_it_is_on_disk() {
    let mut world = World::new(10, 1, true);
    let key = b"k".to_vec();
    ask(&mut world, 0, Command::PutState { key: key.clone(), value: b"v".to_vec() }).expect("written");
    let first = world.command(0, Command::DeleteState { key: key.clone() }).expect("up");
    let second = world.command(0, Command::DeleteState { key }).expect("up");
    // Steps far shorter than a change waits to be sealed: whatever is acknowledged now must survive now.
    let step = Duration::from_millis(1);
    while world.reply(second).is_none() {
        world.run_for(step);
    }
    assert!(world.reply(first).is_some(), "the first is acknowledged no later");
    world.crash(0);
    world.start(0);
    assert!(world.state(0).is_empty(), "the key is back");
}

#[test]
fn a_stranger_learns_nothing_of_the_roll_and_cannot_stay() {
    let mut world = World::new(11, 3, true);
    until(&mut world, all_online);
    let cluster = world.node(0).expect("up").roll().cluster();
    let stranger = SecretKey::from_seed(&[99; 32]).public();
    let hello = |cluster| Message::Hello {
        versions: Versions::OURS,
        cluster,
        roll: Digest::ZERO,
        lanes: [Digest::ZERO; 3],
        bundle: Vec::new(),
        instance: 1,
    };
    let prefix = Prefix::ROOT;
    let (heard, closed) = world.overhear(0, stranger, &[hello(ClusterId([7; 32]))], Duration::from_secs(1));
    assert!(heard.is_empty() && closed, "another cluster's: {heard:?}");
    let (heard, closed) =
        world.overhear(0, stranger, &[hello(cluster), Message::RollAsk { prefix }], Duration::from_secs(11));
    assert!(!heard.iter().any(|message| matches!(message, Message::RollAnswer { .. } | Message::Roll { .. })));
    assert!(closed, "it was not shown out");
    // Unasked statements are no progress.
    let idle = Message::Roll { statements: Vec::new(), asked: true };
    let (_, closed) = world.overhear(0, stranger, &[hello(cluster), idle], Duration::from_secs(11));
    assert!(closed, "it stays by saying nothing of use");
}

#[test]
fn a_machine_with_a_copied_key_is_told_of_and_refuses_to_publish_meanwhile() {
    let mut world = World::new(12, 3, true);
    until(&mut world, all_online);
    let key = world.node(1).expect("up").me();
    let twin = world.twin_of(1);
    let now = world.clock();
    let told = |world: &World, at: usize| {
        let reasons = world.node(at).expect("up").why(&Target::Node(key), now);
        reasons.iter().any(|reason| reason.contains("another machine signs"))
    };
    // One of the two hears of what the other signed.
    let put = |n: u8| Command::PutState { key: b"k".to_vec(), value: alloc::vec![n] };
    for n in 0..20 {
        world.command(1, put(n));
        world.command(twin, put(100 + n));
        world.run_for(Duration::from_millis(500));
    }
    assert!(told(&world, 1) || told(&world, twin));
    let resting = if told(&world, 1) { 1 } else { twin };
    let refusal = ask(&mut world, resting, serve("api", false)).expect_err("it rests");
    assert!(refusal.message.contains("another machine signs"), "{}", refusal.message);
    let shared = |world: &World, at: usize| world.node(at).expect("up").signs().shared_keys.contains_key(&key);
    assert!(shared(&world, resting));
}

#[test]
fn a_process_that_speaks_again_after_another_with_its_key_did_is_noticed_and_told_for_some_minutes() {
    let mut world = World::new(13, 3, true);
    until(&mut world, all_online);
    let key = world.node(1).expect("up").me();
    let cluster = world.node(0).expect("up").roll().cluster();
    let hello = |instance| Message::Hello {
        versions: Versions::OURS,
        cluster,
        roll: Digest::ZERO,
        lanes: [Digest::ZERO; 3],
        bundle: Vec::new(),
        instance,
    };
    let shared = |world: &World| world.node(0).expect("up").signs().shared_keys.contains_key(&key);
    let said = |heard: &[Message]| heard.iter().any(|message| matches!(message, Message::SharedKey { .. }));
    for instance in [1, 1, 2] {
        let (heard, _) = world.overhear(0, key, &[hello(instance)], Duration::from_secs(1));
        assert!(!shared(&world) && !said(&heard), "a new process is a restart, as far as one can know");
    }
    let (heard, _) = world.overhear(0, key, &[hello(1)], Duration::from_secs(1));
    assert!(shared(&world), "one that was followed by another is still there");
    assert!(said(&heard), "and is told");
    world.run_for(Duration::from_secs(4 * 60));
    assert!(shared(&world), "it is not forgotten while the two keep quiet");
    world.run_for(Duration::from_secs(2 * 60));
    assert!(!shared(&world));
}

#[test]
fn a_clock_that_is_off_is_noticed_on_both_sides_and_no_more_once_it_is_set() {
    let mut world = World::new(14, 3, true);
    until(&mut world, all_online);
    let keys: Vec<_> = (0..3).map(|at| world.node(at).expect("up").me()).collect();
    let offs = |world: &World, at: usize| world.node(at).expect("up").signs().clocks.clone();
    world.run_for(Duration::from_secs(10));
    assert!((0..3).all(|at| offs(&world, at).is_empty()));
    world.set_ahead(1, Duration::from_secs(3600));
    world.run_for(Duration::from_secs(10));
    let hour = |off: &i64| off.unsigned_abs().abs_diff(3_600_000) < 1_000;
    for other in [0, 2] {
        let off = offs(&world, other);
        assert!(off.len() == 1 && off.get(&keys[1]).is_some_and(|off| *off > 0 && hour(off)), "{off:?}");
    }
    let off = offs(&world, 1);
    assert!(off.len() == 2 && off.values().all(|off| *off < 0 && hour(off)), "{off:?}");
    world.set_ahead(1, Duration::ZERO);
    world.run_for(Duration::from_secs(5));
    assert!((0..3).all(|at| offs(&world, at).is_empty()));
}

#[test]
fn neighbours_that_answer_and_take_nothing_are_noticed_until_they_take_something() {
    let mut world = World::new(15, 3, true);
    until(&mut world, all_online);
    let stalled = |world: &World, at: usize| world.node(at).expect("up").signs().stalled.len();
    world.set_read(0, false);
    world.run_for(Duration::from_secs(5));
    assert_eq!(stalled(&world, 0), 0, "it may be a slow way");
    world.run_for(Duration::from_secs(25));
    assert_eq!((stalled(&world, 0), stalled(&world, 1)), (2, 0));
    assert_eq!(online(&world, 0), 3, "they answer");
    world.set_read(0, true);
    until(&mut world, |world| stalled(world, 0) == 0);
}
