//! A cluster of named keys for tests: a root, admins, members, and every statement that they made.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::identity::{NodeKey, SecretKey, Strict};
use crate::roll::{
    Contact, Genesis, Member, Merged, NotStanding, Parent, RedeemError, RedeemTerms, Rights, Roll, Standing, Statement,
    Tier, Token, commitment,
};
use crate::time::UnixMs;

/// The start of simulated time.
pub(super) const START: u64 = 1_800_000_000_000;

/// The secret key of a number.
pub(super) fn secret(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

/// The public key of a number.
pub(super) fn key(n: u8) -> NodeKey {
    secret(n).public()
}

pub(super) const ROOT: u8 = 200;
pub(super) const NEXT_ROOT: u8 = 201;
pub(super) const LAST_ROOT: u8 = 202;

pub(super) struct World {
    pub roll: Roll,
    pub now: u64,
}

impl World {
    /// A cluster whose root admitted nobody.
    pub(super) fn empty() -> Self {
        let genesis = Genesis::sign(&secret(ROOT), commitment(&key(NEXT_ROOT)));
        Self { roll: Roll::new(genesis), now: START }
    }

    /// A cluster in which the root admitted 1 as admin.
    pub(super) fn founded() -> Self {
        let mut world = Self::empty();
        world.admits(ROOT, 1, Rights::first_admin());
        world
    }

    /// The next moment.
    pub(super) fn tick(&mut self) -> UnixMs {
        self.now += 1000;
        UnixMs(self.now)
    }

    pub(super) fn now(&self) -> UnixMs {
        UnixMs(self.now)
    }

    pub(super) fn merge(&mut self, statements: Vec<Statement>) -> Merged {
        self.roll.merge(statements.into_iter().map(Arc::new), &Strict)
    }

    /// Merges what must be stored.
    pub(super) fn add(&mut self, statement: Statement) {
        let merged = self.merge(alloc::vec![statement]);
        assert!(merged.refused.is_empty() && !merged.added.is_empty(), "{merged:?}");
    }

    /// `by` admits `subject`, which stands on it.
    pub(super) fn admits(&mut self, by: u8, subject: u8, rights: Rights) {
        let now = self.tick();
        let edge = self.roll.admit(&secret(by), key(subject), rights, now).expect("may admit");
        self.add(edge);
        self.stands_on(subject, if by == ROOT { Parent::Root } else { Parent::Key { parent: key(by), via: None } });
    }

    pub(super) fn stands_on(&mut self, subject: u8, parent: Parent) {
        let now = self.tick();
        let stand = self.roll.stand(&secret(subject), parent, now).expect("signs");
        self.add(stand);
    }

    pub(super) fn admits_as(&mut self, by: u8, subject: u8, tier: Tier) {
        // An admin's admins must fit into its own pool.
        let pool_kib = match tier {
            Tier::Admin if matches!(by, ROOT | 1) => 65_536,
            Tier::Admin => 4096,
            _ => 0,
        };
        let rights = Rights { pool_kib, ..Rights::of(tier) };
        self.admits(by, subject, rights);
    }

    pub(super) fn denies(&mut self, by: u8, subject: u8) {
        let now = self.tick();
        let edge = self.roll.deny(&secret(by), key(subject), now).expect("signs");
        self.add(edge);
    }

    pub(super) fn allows(&mut self, by: u8, subject: u8) {
        let now = self.tick();
        let edge = self.roll.allow(&secret(by), key(subject), now).expect("signs");
        self.add(edge);
    }

    /// `by` makes a token with the key of number `invite`, valid for ten minutes.
    pub(super) fn invites(&mut self, by: u8, invite: u8, tier: Tier, bound: Option<u8>) -> Token {
        let now = self.tick();
        let rights = self.roll.default_rights(&key(by), tier);
        let terms = RedeemTerms { not_after: now.after(Duration::from_secs(600)), bound: bound.map(key) };
        let contacts = [Contact { key: key(by), addrs: alloc::vec![([10, 0, 0, by], 60611).into()] }];
        self.standing().invite(&secret(by), &[invite; 32], rights, terms, &contacts, now).expect("may invite")
    }

    /// `at` redeems the token for `joiner` and merges the outcome.
    pub(super) fn redeems(&mut self, token: &Token, joiner: u8, at: u8) -> Result<(), RedeemError> {
        let now = self.tick();
        let shown = token.redemption(&secret(joiner), now).expect("not bound to another");
        let made = self.standing().redeem(&shown, &secret(at), &Strict, now)?;
        let merged = self.roll.merge(made, &Strict);
        assert!(merged.refused.is_empty(), "{merged:?}");
        Ok(())
    }

    /// Both replicas offer each other all they hold until nothing changes.
    pub(super) fn heals_with(&mut self, other: &mut Self) {
        self.now = self.now.max(other.now);
        other.now = self.now;
        loop {
            let (ours, theirs): (Vec<_>, Vec<_>) =
                (self.roll.trie().values().cloned().collect(), other.roll.trie().values().cloned().collect());
            let changed = self.roll.merge(theirs, &Strict).changed() | other.roll.merge(ours, &Strict).changed();
            if !changed {
                break;
            }
        }
        assert_eq!(self.roll.trie().root(), other.roll.trie().root());
    }

    pub(super) fn fork(&self) -> Self {
        Self { roll: self.roll.clone(), now: self.now }
    }

    pub(super) fn standing(&self) -> Standing {
        Standing::of(&self.roll)
    }

    pub(super) fn stands(&self, n: u8) -> Result<Member, NotStanding> {
        self.standing().stands(&key(n), self.now()).cloned()
    }

    /// The numbers below 100 of all who stand.
    pub(super) fn members(&self) -> Vec<u8> {
        let standing = self.standing();
        (0..100).filter(|n| standing.stands(&key(*n), self.now()).is_ok()).collect()
    }
}
