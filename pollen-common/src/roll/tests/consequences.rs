//! What follows from the rules, for the people who deny, allow, grant and leave.

use alloc::collections::BTreeMap;
use alloc::string::ToString as _;
use alloc::vec;
use core::time::Duration;

use super::world::{LAST_ROOT, NEXT_ROOT, ROOT, World, key, secret};
use crate::identity::Strict;
use crate::roll::{NotStanding, Parent, Rights, Roll, RollRefusal, SignError, Tier, commitment};
use crate::time::UnixMs;

/// Root, admins 1 and 2 below 1, members 3 (of 1), 4 and 5 (of 2).
fn tree() -> World {
    let mut world = World::founded();
    world.admits_as(1, 2, Tier::Admin);
    world.admits_as(1, 3, Tier::Leaf);
    world.admits_as(2, 4, Tier::Publisher);
    world.admits_as(2, 5, Tier::Leaf);
    world
}

#[test]
fn a_deny_takes_the_whole_subtree_and_nothing_else() {
    let mut world = tree();
    assert_eq!(world.members(), [1, 2, 3, 4, 5]);
    world.denies(1, 2);
    assert_eq!(world.members(), [1, 3]);
    assert_eq!(world.stands(4), Err(NotStanding::Denied { key: key(2), by: Some(key(1)) }));
    world.allows(1, 2);
    assert_eq!(world.members(), [1, 2, 3, 4, 5], "allow restores what the issuer's deny took");
}

#[test]
fn an_edge_to_another_admins_member_gives_no_power_over_it() {
    let mut world = tree();
    world.admits_as(1, 6, Tier::Admin);
    world.denies(6, 4);
    assert_eq!(world.members(), [1, 2, 3, 4, 5, 6], "4 does not stand below 6");
}

#[test]
fn a_denied_admin_signs_in_vain() {
    let mut world = tree();
    world.denies(1, 2);
    world.admits_as(2, 7, Tier::Admin);
    world.denies(2, 1);
    assert_eq!(world.members(), [1, 3]);
}

#[test]
fn allow_lifts_only_the_issuers_own_deny() {
    let mut world = tree();
    world.denies(1, 4);
    world.denies(2, 4);
    world.allows(2, 4);
    assert_eq!(world.stands(4), Err(NotStanding::Denied { key: key(4), by: Some(key(1)) }));
    world.allows(1, 4);
    assert!(world.stands(4).is_ok(), "1 said nothing of 4 but the deny, so its allow is a Clear");
}

#[test]
fn a_higher_admin_overrules_by_its_own_edge_once_the_subject_moves() {
    let mut world = tree();
    world.denies(2, 4);
    world.admits_as(1, 4, Tier::Publisher);
    assert_eq!(world.stands(4).map(|m| m.path), Ok(vec![key(1)]));
}

#[test]
fn a_leaf_that_admits_has_admitted_nobody() {
    let mut world = tree();
    let now = world.tick();
    let edge = world.roll.admit(&secret(3), key(9), Rights::of(Tier::Admin), now).expect("signs");
    let digest = edge.digest();
    assert_eq!(world.merge(vec![edge]).refused, [(digest, RollRefusal::Unsupported)]);
}

#[test]
fn a_publisher_that_was_an_admin_keeps_no_members() {
    let mut world = tree();
    world.admits_as(1, 2, Tier::Publisher);
    assert_eq!(world.members(), [1, 2, 3], "a grant goes down as well as up");
}

#[test]
fn rights_are_the_meet_of_all_edges_above() {
    let mut world = tree();
    let zone = || BTreeMap::from([("zone".into(), "a".into()), ("gpu".into(), "yes".into())]);
    let short = Some(UnixMs(world.now().0 * 2));
    world.admits(2, 6, Rights { props: zone(), pool_kib: 4096, expires: short, ..Rights::of(Tier::Admin) });
    let admin = world.stands(6).expect("stands");
    assert_eq!((admin.rights.pool_kib, admin.rights.expires), (4096, short));
    assert_eq!(admin.rights.props, zone(), "2 may hand on anything");
    let only_zone = BTreeMap::from([("zone".into(), "*".into())]);
    world.admits(1, 2, Rights { grantable: only_zone, pool_kib: 65_536, quota_kib: 500, ..Rights::of(Tier::Admin) });
    let met = world.stands(6).expect("stands").rights;
    assert_eq!(met.props, BTreeMap::from([("zone".into(), "a".into())]), "children need no new edge for less");
    assert_eq!(met.quota_kib, 500);
}

#[test]
fn expiry_is_by_the_readers_clock_and_binds_all_below() {
    let mut world = World::founded();
    let end = UnixMs(world.now().0 + 100_000);
    world.admits(1, 2, Rights { expires: Some(end), pool_kib: 4096, ..Rights::of(Tier::Admin) });
    world.admits_as(2, 3, Tier::Leaf);
    let standing = world.standing();
    assert!(standing.stands(&key(3), world.now()).is_ok());
    assert_eq!(standing.stands(&key(3), end), Err(NotStanding::Expired { key: key(3), since: end }));
    assert_eq!(standing.next_expiry(world.now()), Some(end));
    assert_eq!(standing.next_expiry(end), None);
    assert_eq!(standing.members().count(), 3, "storage and the chain do not change");
}

#[test]
fn who_left_or_never_said_where_it_stands_does_not_stand() {
    let mut world = tree();
    world.stands_on(5, Parent::None);
    assert_eq!(world.stands(5), Err(NotStanding::Left { key: key(5) }));
    let now = world.tick();
    let edge = world.roll.admit(&secret(1), key(8), Rights::of(Tier::Leaf), now).expect("signs");
    world.add(edge);
    assert_eq!(world.stands(8), Err(NotStanding::NoStand { key: key(8) }));
    assert_eq!(world.stands(77), Err(NotStanding::Unknown { key: key(77) }));
    assert_eq!(world.stands(77).expect_err("unknown").to_string(), std::format!("nobody admitted {:?}", key(77)));
}

#[test]
fn admins_that_stand_on_each_other_do_not_stand() {
    let mut world = tree();
    world.admits_as(2, 6, Tier::Admin);
    world.admits(6, 2, Rights { pool_kib: 1024, ..Rights::of(Tier::Admin) });
    assert_eq!(world.members(), [1, 3], "2 stands on 6, which stands on 2");
    assert_eq!(world.stands(4), Err(NotStanding::Loop { key: key(2) }));
}

#[test]
fn a_chain_of_more_than_eight_keys_does_not_stand() {
    let mut world = World::founded();
    for n in 2..=9 {
        world.admits(n - 1, n, Rights { pool_kib: 4096 * (10 - u32::from(n)), ..Rights::of(Tier::Admin) });
    }
    assert_eq!(world.members(), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(world.stands(9), Err(NotStanding::TooDeep { key: key(9) }));
}

#[test]
fn admins_nearest_to_the_root_could_grant() {
    let world = tree();
    assert_eq!(world.standing().could_grant(Tier::Publisher, world.now()), [key(1), key(2)]);
}

#[test]
fn a_new_grant_costs_no_seniority() {
    let mut world = tree();
    let before = world.stands(4).expect("stands").admitted;
    world.admits_as(2, 4, Tier::Leaf);
    let after = world.stands(4).expect("stands");
    assert_eq!((after.admitted, after.rights.tier), (before, Tier::Leaf));
}

#[test]
fn a_clock_that_went_back_still_signs_what_counts() {
    let mut world = tree();
    let edge = world.roll.deny(&secret(1), key(2), UnixMs(5)).expect("signs");
    world.add(edge);
    assert_eq!(world.members(), [1, 3]);
}

#[test]
fn the_root_signs_for_at_most_64_admins_and_nobody_else() {
    let mut world = World::founded();
    let now = world.now();
    let leaf = world.roll.admit(&secret(ROOT), key(9), Rights::of(Tier::Leaf), now);
    assert_eq!(leaf, Err(SignError::RootAdmitsAdminsOnly));
    for n in 2..=64 {
        let edge = world.roll.admit(&secret(ROOT), key(n), Rights::of(Tier::Admin), now).expect("fits");
        world.add(edge);
    }
    let next = world.roll.admit(&secret(ROOT), key(65), Rights::of(Tier::Admin), now);
    assert_eq!(next, Err(SignError::RootIsFull));
    assert!(world.roll.admit(&secret(ROOT), key(64), Rights::first_admin(), now).is_ok(), "not a new one");
}

#[test]
fn a_bundle_and_the_lineage_show_that_a_key_stands() {
    let world = tree();
    let mut elsewhere = Roll::from_lineage(&world.roll.lineage(), &Strict).expect("proves itself");
    elsewhere.merge(world.standing().bundle(&key(4)), &Strict);
    let standing = crate::roll::Standing::of(&elsewhere);
    assert_eq!(standing.stands(&key(4), world.now()).cloned(), world.stands(4));
    assert!(standing.stands(&key(3), world.now()).is_err());
    assert!(world.standing().bundle(&key(50)).is_empty());
}

#[test]
fn a_rotation_takes_the_admins_along_and_ends_the_old_root() {
    let mut world = tree();
    world.admits_as(ROOT, 6, Tier::Admin);
    world.denies(ROOT, 6);
    let now = world.tick();
    let (old, new) = (secret(ROOT), secret(NEXT_ROOT));
    let unready = world.roll.rotate(&old, &secret(LAST_ROOT), commitment(&key(9)), now);
    assert_eq!(unready, Err(SignError::NotSuccessor));
    let rotation = world.roll.rotate(&old, &new, commitment(&key(LAST_ROOT)), now).expect("signs");
    let stale = world.roll.admit(&old, key(7), Rights::of(Tier::Admin), UnixMs(now.0 * 2)).expect("signs");
    let before = world.stands(4);
    world.add(rotation);
    assert_eq!(world.members(), [1, 2, 3, 4, 5], "nobody signs anew, the denied one stays out");
    assert_eq!(world.stands(4), before);
    let digest = stale.digest();
    assert_eq!(world.merge(vec![stale]).refused, [(digest, RollRefusal::Unsupported)], "whatever its generation");
    assert_eq!(world.roll.root(), key(NEXT_ROOT));

    let again = world.roll.rotate(&new, &secret(LAST_ROOT), commitment(&key(9)), now.after(Duration::from_secs(1)));
    world.add(again.expect("signs"));
    assert_eq!(world.members(), [1, 2, 3, 4, 5]);
    let lineage = world.roll.lineage();
    assert_eq!(lineage.rotations.len(), 2);
    let fresh = Roll::from_lineage(&lineage, &Strict).expect("proves itself");
    assert_eq!(fresh.root(), key(LAST_ROOT));
    let broken = crate::roll::Lineage { rotations: lineage.rotations[1..].to_vec(), ..lineage };
    assert!(Roll::from_lineage(&broken, &Strict).is_err());
}

#[test]
fn a_rotation_leaves_out_old_denials_that_do_not_fit_and_they_stay_out() {
    let mut world = World::founded();
    let long = BTreeMap::from([("note".into(), "x".repeat(900))]);
    for n in 2..=63 {
        world.admits(ROOT, n, Rights { props: long.clone(), ..Rights::of(Tier::Admin) });
    }
    (4..=63).for_each(|n| world.denies(ROOT, n));
    let now = world.tick();
    let rotation = world.roll.rotate(&secret(ROOT), &secret(NEXT_ROOT), commitment(&key(LAST_ROOT)), now);
    world.add(rotation.expect("fits"));
    assert_eq!(world.members(), [1, 2, 3]);
}

#[test]
fn an_admin_with_no_room_below_it_could_grant_nothing() {
    let mut world = World::founded();
    for n in 2..=8 {
        world.admits(n - 1, n, Rights { pool_kib: 4096 * (10 - u32::from(n)), ..Rights::of(Tier::Admin) });
    }
    let granters = world.standing().could_grant(Tier::Leaf, world.now());
    assert_eq!(granters, (1..=7).map(key).collect::<alloc::vec::Vec<_>>());
}
