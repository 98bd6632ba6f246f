//! Invites: redeemed by their issuer, by a witness, twice, too late, by the wrong one, and adopted afterwards.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::world::{World, key, secret};
use crate::identity::Strict;
use crate::roll::{
    Genesis, NotStanding, Parent, RedeemError, RedeemTerms, Rights, Roll, SignError, Standing, Statement, Tier, Token,
    TokenError, commitment,
};
use crate::time::UnixMs;

/// Root, admins 1, 2 and 3, the latter two below 1.
fn admins() -> World {
    let mut world = World::founded();
    world.admits_as(1, 2, Tier::Admin);
    world.admits_as(1, 3, Tier::Admin);
    world
}

#[test]
fn the_issuer_admits_the_joiner_and_ends_the_invite() {
    let mut world = admins();
    let token = world.invites(1, 100, Tier::Publisher, None);
    world.redeems(&token, 9, 1).expect("valid");
    let member = world.stands(9).expect("stands");
    assert_eq!((member.path, member.rights.tier), (vec![key(1)], Tier::Publisher));
    assert_eq!(world.redeems(&token, 10, 1), Err(RedeemError::Used { holder: key(9) }));
    let before = world.roll.trie().root();
    assert_eq!(world.redeems(&token, 9, 1), Ok(()), "asked again because the answer was lost");
    assert_eq!(world.roll.trie().root(), before);
}

#[test]
fn another_admin_witnesses_and_the_issuer_adopts_when_it_is_back() {
    let mut world = admins();
    let token = world.invites(1, 100, Tier::Leaf, None);
    world.redeems(&token, 9, 2).expect("valid");
    let came = world.stands(9).expect("stands");
    assert_eq!(came.path, [key(100), key(1)], "by its invite");
    assert_eq!(world.redeems(&token, 10, 3), Err(RedeemError::Used { holder: key(9) }));

    let now = world.tick();
    let adopted = world.standing().adopt(&secret(1), now).expect("signs");
    assert_eq!(adopted.len(), 1, "not yet the end of the invite, on which 9 still stands");
    world.merge(adopted);
    assert_eq!(world.stands(9).map(|m| m.path), Ok(vec![key(1)]));
    let now = world.tick();
    let stand = world.standing().restand(&secret(9), now).expect("signs").expect("moves off the invite");
    world.add(stand);
    let now = world.tick();
    let ended = world.standing().adopt(&secret(1), now).expect("signs");
    assert_eq!(ended.len(), 1);
    assert!(world.merge(ended).displaced.is_empty(), "the redemption goes, nobody falls");
    let after = world.stands(9).expect("still stands");
    assert_eq!(after.admitted, came.admitted, "adoption costs no seniority");
    let now = world.tick();
    assert_eq!(world.standing().adopt(&secret(1), now), Ok(vec![]));
    assert_eq!(world.standing().restand(&secret(9), now), Ok(None));
    assert_eq!(world.redeems(&token, 10, 3), Err(RedeemError::Used { holder: key(9) }));
}

#[test]
fn until_adopted_a_joiner_falls_with_its_witness_and_afterwards_not() {
    let mut world = admins();
    let token = world.invites(1, 100, Tier::Leaf, None);
    world.redeems(&token, 9, 2).expect("valid");
    let mut adopted = world.fork();
    world.denies(1, 2);
    assert_eq!(world.stands(9), Err(NotStanding::WitnessNotStanding { key: key(9), witness: key(2) }));
    let now = adopted.tick();
    let edges = adopted.standing().adopt(&secret(1), now).expect("signs");
    adopted.merge(edges);
    adopted.denies(1, 2);
    assert!(adopted.stands(9).is_ok());
}

#[test]
fn two_partitions_admit_one_each_and_healing_keeps_the_earlier() {
    let mut here = admins();
    let token = here.invites(1, 100, Tier::Leaf, None);
    let mut there = here.fork();
    here.redeems(&token, 9, 2).expect("valid here");
    there.tick();
    there.redeems(&token, 10, 3).expect("valid there, which has not heard");
    let told = there.fork().roll.merge(here.roll.trie().values().cloned(), &Strict);
    let displaced: Vec<_> = told.displaced.iter().map(|redeem| redeem.subject()).collect();
    assert_eq!(displaced, [key(10)], "who was let in and is out again is named");
    here.heals_with(&mut there);
    assert!(here.stands(9).is_ok());
    assert_eq!(here.stands(10), Err(NotStanding::Unknown { key: key(10) }), "exactly one redemption stays");
    let used = RedeemError::Used { holder: key(9) };
    assert_eq!(there.redeems(&token, 10, 3), Err(used), "as 10 is told when it asks again");
}

#[test]
fn two_witnesses_of_one_redemption_do_not_tie() {
    let mut here = admins();
    let token = here.invites(1, 100, Tier::Leaf, None);
    let mut there = here.fork();
    let now = here.tick();
    let shown = token.redemption(&secret(9), now).expect("unbound");
    for (world, witness) in [(&mut here, 2), (&mut there, 3)] {
        let made = world.standing().redeem(&shown, &secret(witness), &Strict, now).expect("valid");
        world.roll.merge(made, &Strict);
    }
    assert_ne!(here.roll.trie().root(), there.roll.trie().root());
    here.heals_with(&mut there);
    assert!(here.stands(9).is_ok());
}

#[test]
fn a_token_is_refused_with_the_reason() {
    let mut world = admins();
    let token = world.invites(1, 100, Tier::Leaf, None);
    let late = world.now().after(Duration::from_secs(601));
    let shown = token.redemption(&secret(9), late).expect("unbound");
    let redeem = |world: &World, shown: &[Arc<Statement>], at: u8, now: UnixMs| {
        world.standing().redeem(shown, &secret(at), &Strict, now).map(|_| ())
    };
    let not_after = token.terms().expect("an invite").not_after;
    assert_eq!(redeem(&world, &shown, 1, late), Err(RedeemError::Expired { not_after }));
    assert_eq!(redeem(&world, &shown, 2, late), Err(RedeemError::Expired { not_after }));
    assert_eq!(redeem(&world, &shown[..2], 1, world.now()), Err(RedeemError::Malformed));
    let leaf = {
        world.admits_as(1, 4, Tier::Leaf);
        redeem(&world, &shown, 4, world.now())
    };
    assert_eq!(leaf, Err(RedeemError::NotAdmin(NotStanding::NotAdmin { key: key(4) })));

    let mut forged = shown[0].bytes().to_vec();
    let at = forged.windows(32).position(|w| w == key(100).0).expect("names the invite") + 32 + 7;
    forged[at] ^= 1;
    let forged = Arc::new(Statement::decode(&forged).expect("well-formed"));
    let forged = [forged, shown[1].clone(), shown[2].clone()];
    assert_eq!(redeem(&world, &forged, 1, world.now()), Err(RedeemError::Tampered));

    let other = World { roll: Roll::new(Genesis::sign(&secret(150), commitment(&key(151)))), ..world.fork() };
    let wrong = RedeemError::WrongCluster { theirs: world.roll.cluster(), ours: other.roll.cluster() };
    assert_eq!(redeem(&other, &shown, 1, world.now()), Err(wrong));

    world.denies(1, 100);
    assert_eq!(redeem(&world, &shown, 2, world.now()), Err(RedeemError::Revoked));
}

#[test]
fn a_bound_token_is_for_one_key() {
    let mut world = admins();
    let token = world.invites(1, 100, Tier::Leaf, Some(9));
    let refused = token.redemption(&secret(10), world.now()).map(|_| ());
    assert_eq!(refused, Err(TokenError::BoundToAnother { bound: key(9), me: key(10) }));
    // One who has the secret but not the manners.
    let mut unbound = world.invites(1, 100, Tier::Leaf, None).redemption(&secret(10), world.now()).expect("unbound");
    unbound[0] = token.redemption(&secret(9), world.now()).expect("bound")[0].clone();
    let refused = world.standing().redeem(&unbound, &secret(2), &Strict, world.now());
    assert_eq!(refused, Err(RedeemError::BoundToAnother { bound: key(9) }));
    assert_eq!(world.redeems(&token, 9, 2), Ok(()));
}

#[test]
fn a_denied_issuers_tokens_and_a_denied_joiner_are_refused() {
    let mut world = admins();
    let token = world.invites(2, 100, Tier::Leaf, None);
    let of_one = world.invites(1, 101, Tier::Leaf, None);
    world.admits_as(1, 9, Tier::Leaf);
    world.denies(1, 9);
    let denied = NotStanding::Denied { key: key(9), by: Some(key(1)) };
    assert_eq!(world.redeems(&of_one, 9, 1), Err(RedeemError::Refused(denied)), "an invite is no allow");
    assert_eq!(world.redeems(&of_one, 9, 3), Err(RedeemError::Refused(denied)));
    world.denies(1, 2);
    let fallen = NotStanding::Denied { key: key(2), by: Some(key(1)) };
    assert_eq!(world.redeems(&token, 10, 3), Err(RedeemError::IssuerNotStanding(fallen)));
}

#[test]
fn an_admin_let_in_by_a_witness_invites_but_witnesses_only_once_adopted() {
    let mut world = admins();
    let token = world.invites(1, 100, Tier::Admin, None);
    world.redeems(&token, 9, 2).expect("valid");
    assert_eq!(world.stands(9).map(|m| m.rights.tier), Ok(Tier::Admin));
    let its_own = world.invites(9, 101, Tier::Leaf, None);
    world.redeems(&its_own, 10, 9).expect("the issuer redeems");
    assert!(world.stands(10).is_ok());
    let another = world.invites(1, 102, Tier::Leaf, None);
    assert_eq!(world.redeems(&another, 11, 9), Err(RedeemError::WitnessNotAdopted));
    let now = world.tick();
    let adopted = world.standing().adopt(&secret(1), now).expect("signs");
    world.merge(adopted);
    assert_eq!(world.redeems(&another, 11, 9), Ok(()));
    assert!(world.stands(11).is_ok());
}

#[test]
fn an_admin_of_an_invites_tier_is_not_the_invite_key() {
    let mut world = admins();
    let token = world.invites(1, 100, Tier::Admin, None);
    world.redeems(&token, 9, 1).expect("valid");
    let now = world.tick();
    let edge = world.roll.admit(&secret(100), key(50), Rights::of(Tier::Leaf), now).expect("signs");
    assert!(!world.merge(vec![edge]).changed(), "whoever kept the token's secret issues nothing with it");
}

#[test]
fn a_pool_that_is_used_up_invites_nobody_more() {
    let mut world = World::founded();
    world.admits(1, 2, Rights { pool_kib: 200, ..Rights::of(Tier::Admin) });
    for n in [20, 21, 22] {
        world.admits_as(2, n, Tier::Leaf);
    }
    let now = world.tick();
    let terms = RedeemTerms { not_after: now, bound: None };
    let invite = world.standing().invite(&secret(2), &[100; 32], Rights::of(Tier::Leaf), terms, &[], now);
    let used_up = SignError::PoolUsedUp { needed_kib: 64, used_kib: 192, pool_kib: 200 };
    assert_eq!(invite.map(|_| ()), Err(used_up));
}

#[test]
fn a_joiner_checks_the_admin_it_dialled_by_the_tokens_lineage() {
    let mut world = admins();
    let token = world.invites(1, 100, Tier::Leaf, None);
    let bytes = token.encode().expect("short enough");
    assert!(bytes.len() < 2048, "{} bytes", bytes.len());
    let token = Token::decode(&bytes).expect("whole");
    let mut roll = token.roll(&Strict, world.now()).expect("shows that the issuer stands");
    assert!(Standing::of(&roll).stands(&key(3), world.now()).is_err(), "not yet shown");
    roll.merge(world.standing().bundle(&key(3)), &Strict);
    assert!(Standing::of(&roll).stands_as_admin(&key(3), world.now()).is_ok());
    assert_eq!(token.contacts()[0].addrs, [([10, 0, 0, 1], 60611).into()]);
}

#[test]
fn a_damaged_token_says_so() {
    let mut world = admins();
    let bytes = world.invites(1, 100, Tier::Leaf, None).encode().expect("short enough");
    let refusal = |bytes: &[u8]| Token::decode(bytes).map(|_| ()).expect_err("refused");
    for at in [4, 40, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        assert_eq!(refusal(&damaged), TokenError::Damaged);
        assert_eq!(refusal(&bytes[..at]), TokenError::Damaged, "cut off");
    }
    assert_eq!(refusal(b"hello"), TokenError::NotAToken);
    assert_eq!(refusal(b"pln\x09"), TokenError::Version(9));
}

#[test]
fn a_member_moves_its_stand_to_where_it_is_let_in() {
    let mut world = admins();
    world.admits_as(2, 9, Tier::Leaf);
    let now = world.tick();
    assert_eq!(world.standing().restand(&secret(9), now), Ok(None), "all is well");
    world.denies(2, 9);
    let now = world.tick();
    let by_one = world.roll.admit(&secret(1), key(9), Rights::of(Tier::Publisher), now).expect("signs");
    world.add(by_one);
    let stand = world.standing().restand(&secret(9), now).expect("signs").expect("moves");
    world.add(stand);
    assert_eq!(world.stands(9).map(|m| (m.path, m.rights.tier)), Ok((vec![key(1)], Tier::Publisher)));
    world.stands_on(9, Parent::None);
    assert_eq!(world.standing().restand(&secret(9), now), Ok(None), "who left stays away");
}

#[test]
fn a_higher_grant_moves_a_member_that_stands() {
    let mut world = admins();
    world.admits_as(2, 9, Tier::Leaf);
    let now = world.tick();
    let by_one = world.roll.admit(&secret(1), key(9), Rights::of(Tier::Admin), now).expect("signs");
    world.add(by_one);
    assert_eq!(world.stands(9).map(|m| m.rights.tier), Ok(Tier::Leaf), "the meet of both edges");
    let stand = world.standing().restand(&secret(9), now).expect("signs").expect("moves");
    world.add(stand);
    assert_eq!(world.stands(9).map(|m| m.rights.tier), Ok(Tier::Admin));
}

#[test]
fn members_are_renewed_before_old_denials_push_them_out() {
    let mut world = World::founded();
    world.admits(1, 2, Rights { pool_kib: 256, ..Rights::of(Tier::Admin) });
    world.admits_as(2, 9, Tier::Leaf);
    let mut renewed = 0;
    for n in 20..90 {
        world.denies(2, n);
        let now = world.tick();
        let renewals: Vec<_> = world.roll.renewals(&secret(2), now).expect("signs");
        renewed += renewals.len();
        world.merge(renewals);
        assert!(world.stands(9).is_ok(), "after {n}");
        assert_eq!(world.roll.renewals(&secret(2), UnixMs(7)), Ok(vec![]), "once is enough");
    }
    assert!((1..40).contains(&renewed), "{renewed} renewals for 70 denials");
}

#[test]
fn admins_by_default_admit_admins_by_default() {
    let mut world = World::founded();
    for n in 2..=7 {
        let now = world.tick();
        let terms = RedeemTerms { not_after: now.after(Duration::from_secs(60)), bound: None };
        let rights = Rights::of(Tier::Admin);
        let token = world.standing().invite(&secret(n - 1), &[100 + n; 32], rights, terms, &[], now);
        world.redeems(&token.expect("fits"), n, n - 1).expect("valid");
    }
    let last = world.stands(7).expect("stands").rights;
    assert_eq!((last.tier, last.pool_kib >= 4096), (Tier::Admin, true), "{last:?}");
}

#[test]
fn an_invite_of_the_whole_pool_is_adopted_at_once_and_a_used_one_costs_nothing() {
    let mut world = admins();
    let whole = Rights { pool_kib: 60_000, ..Rights::of(Tier::Admin) };
    let now = world.tick();
    let terms = RedeemTerms { not_after: now.after(Duration::from_secs(60)), bound: None };
    let token = world.standing().invite(&secret(2), &[100; 32], whole, terms, &[], now).expect("fits");
    world.redeems(&token, 9, 3).expect("valid");
    let now = world.tick();
    let adopted = world.standing().adopt(&secret(2), now).expect("signs");
    world.merge(adopted);
    assert_eq!(world.stands(9).map(|m| m.path), Ok(vec![key(2), key(1)]));
    assert_eq!(world.roll.usage(&key(2)).cost_kib, 61_024, "the member alone");
}
