//! What granting, denying and allowing mean, told on simulated machines.

use core::time::Duration;
use std::collections::BTreeMap;
use std::string::String;

use super::{all_online, ask, online, serve, until};
use crate::node::{Command, Grant, RefusalKind};
use crate::roll::{Rights, Tier};
use crate::sim::World;

/// The founder 0, its admin 1, and the publisher 2 that 1 admitted; all see each other.
fn three_generations(seed: u64) -> World {
    let mut world = World::new(seed, 1, true);
    let token = world.invite(0, Rights::of(Tier::Admin), Duration::from_secs(300));
    world.join(0, &token).expect("admitted");
    until(&mut world, all_online);
    // By then it has said where it is, which a joiner has to be told.
    world.run_for(Duration::from_secs(5));
    let token = world.invite(1, Rights::of(Tier::Publisher), Duration::from_secs(300));
    world.join(1, &token).expect("admitted");
    until(&mut world, all_online);
    world
}

fn key(world: &World, at: usize) -> crate::identity::NodeKey {
    world.node(at).expect("it is up").view().me
}

fn members(world: &World, at: usize) -> usize {
    world.node(at).map_or(0, |node| node.view().nodes.len())
}

fn refused(world: &mut World, at: usize, command: Command) -> (RefusalKind, String) {
    let refusal = ask(world, at, command).expect_err("it may not");
    (refusal.kind, refusal.message)
}

#[test]
fn who_is_denied_falls_with_all_that_it_admitted_and_is_what_it_was_when_allowed() {
    let mut world = three_generations(70);
    ask(&mut world, 2, serve("api", false)).expect("a publisher");
    until(&mut world, |world| world.node(0).is_some_and(|node| !node.view().services.is_empty()));
    let admin = key(&world, 1);
    ask(&mut world, 0, Command::Deny { subject: admin }).expect("its own admin");
    assert!(until(&mut world, |world| members(world, 0) == 1) < Duration::from_secs(1));
    assert!(world.node(0).is_some_and(|node| node.view().services.is_empty()), "what the fallen said is gone");
    // Nobody comes back by itself, by a restart of anyone, or by being asked for again.
    for at in 0..3 {
        world.crash(at);
        world.start(at);
    }
    world.run_for(Duration::from_secs(20));
    assert_eq!((members(&world, 0), online(&world, 0)), (1, 1));
    let out = world.node(0).map(|node| node.view().fallen.clone()).expect("it is up");
    assert_eq!(out.keys().copied().collect::<std::vec::Vec<_>>(), [admin], "the key that was named, and no other");
    ask(&mut world, 0, Command::Deny { subject: admin }).expect("said twice is said once");

    ask(&mut world, 0, Command::Allow { subject: admin }).expect("its own word");
    assert!(until(&mut world, all_online) < Duration::from_secs(20));
    assert!(world.node(0).is_some_and(|node| node.view().fallen.is_empty()));
    until(&mut world, |world| world.node(0).is_some_and(|node| !node.view().services.is_empty()));
}

#[test]
fn only_those_above_may_deny_and_only_the_one_who_did_may_allow() {
    let mut world = three_generations(71);
    let [founder, admin, leaf] = [0, 1, 2].map(|at| key(&world, at));
    for (at, subject) in [(1, founder), (2, admin), (2, founder)] {
        let (kind, said) = refused(&mut world, at, Command::Deny { subject });
        assert_eq!(kind, RefusalKind::Denied, "{said}");
    }
    let (kind, said) = refused(&mut world, 1, Command::Deny { subject: admin });
    assert_eq!(kind, RefusalKind::Usage, "of itself: {said}");
    let (kind, said) = refused(&mut world, 0, Command::Allow { subject: crate::identity::NodeKey([7; 32]) });
    assert_eq!(kind, RefusalKind::NotFound, "{said}");

    // The founder reaches past the admin, and the admin cannot undo it.
    ask(&mut world, 0, Command::Deny { subject: leaf }).expect("it is below");
    until(&mut world, |world| members(world, 0) == 2 && members(world, 1) == 2);
    let (kind, said) = refused(&mut world, 1, Command::Allow { subject: leaf });
    assert_eq!(kind, RefusalKind::Denied, "{said}");
    ask(&mut world, 0, Command::Allow { subject: leaf }).expect("its own word");
    until(&mut world, all_online);
    // Both said it: both have to lift it.
    ask(&mut world, 0, Command::Retire { subject: leaf }).expect("it is below");
    until(&mut world, |world| members(world, 1) == 2);
    ask(&mut world, 0, Command::Allow { subject: leaf }).expect("its own word");
    until(&mut world, all_online);
}

#[test]
fn a_grant_takes_effect_on_open_links_up_as_well_as_down() {
    let mut world = three_generations(72);
    let leaf = key(&world, 2);
    let tier = |tier| Grant { tier: Some(tier), ..Grant::default() };
    let rights = |world: &World, at: usize| world.node(at).map(|node| node.view().nodes[&leaf].member.rights.clone());

    ask(&mut world, 1, Command::Grant { subject: leaf, grant: tier(Tier::Leaf) }).expect("its own member");
    until(&mut world, |world| rights(world, 2).is_some_and(|rights| rights.tier == Tier::Leaf));
    let (kind, _) = refused(&mut world, 2, serve("api", false));
    assert_eq!(kind, RefusalKind::Denied);

    // By the founder, past what the admin gave.
    let props = BTreeMap::from([(String::from("site"), String::from("attic"))]);
    let grant = Grant { props: Some(props.clone()), ..tier(Tier::Publisher) };
    ask(&mut world, 0, Command::Grant { subject: leaf, grant }).expect("it is below");
    until(&mut world, |world| rights(world, 2).is_some_and(|rights| rights.tier == Tier::Publisher));
    until(&mut world, |world| rights(world, 0).is_some_and(|rights| rights.props == props));
    ask(&mut world, 2, serve("api", false)).expect("a publisher again");

    // What is not named stays; a membership can be given an end, and that is exact.
    let end = world.clock().unix.after(Duration::from_secs(5));
    let grant = Grant { expires: Some(Some(end)), ..Grant::default() };
    ask(&mut world, 0, Command::Grant { subject: leaf, grant }).expect("it is below");
    until(&mut world, |world| rights(world, 2).is_some_and(|rights| rights.expires == Some(end)));
    assert_eq!(rights(&world, 0).map(|rights| (rights.tier, rights.props)), Some((Tier::Publisher, props)));
    let gone = until(&mut world, |world| members(world, 0) == 2 && members(world, 1) == 2);
    assert!(gone <= Duration::from_secs(5), "after {gone:?}");
    // An expired member is known still, and can be given more time.
    let grant = Grant { expires: Some(None), ..Grant::default() };
    ask(&mut world, 0, Command::Grant { subject: leaf, grant }).expect("it is below");
    until(&mut world, all_online);
}

#[test]
fn what_a_nodes_own_rights_do_not_cover_it_cannot_grant() {
    let mut world = three_generations(73);
    let [admin, leaf] = [1, 2].map(|at| key(&world, at));
    let quota = Grant { quota_kib: Some(u32::MAX), ..Grant::default() };
    let (kind, said) = refused(&mut world, 1, Command::Grant { subject: leaf, grant: quota });
    assert_eq!(kind, RefusalKind::Denied, "{said}");
    let pool = Grant { pool_kib: Some(64), ..Grant::default() };
    let (kind, said) = refused(&mut world, 1, Command::Grant { subject: leaf, grant: pool });
    assert_eq!(kind, RefusalKind::Usage, "{said}");
    let (kind, said) = refused(&mut world, 2, Command::Grant { subject: admin, grant: Grant::default() });
    assert_eq!(kind, RefusalKind::Denied, "{said}");
    // An admin made below an admin falls to a leaf when that one does.
    ask(&mut world, 1, Command::Grant { subject: leaf, grant: Grant { tier: Some(Tier::Admin), ..Grant::default() } })
        .expect("it has room below it");
    until(&mut world, |world| {
        world.node(0).is_some_and(|node| node.view().nodes[&leaf].member.rights.tier == Tier::Admin)
    });
}
