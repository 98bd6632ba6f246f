//! What is stored does not depend on the order in which it was offered, and is what the rules say: compared with a
//! plain, slow reading of them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::hostile::{Said, Trusting, genesis, said};
use super::world::{ROOT, key};
use crate::identity::{Digest, NodeKey};
use crate::roll::{Body, Kind, Roll, Standing, Statement, Tier, Verdict, commitment};

/// Offers everything, one batch after the other, again and again until nothing changes.
fn offer_until_quiet(batches: &[Vec<Arc<Statement>>]) -> Roll {
    let mut roll = Roll::new(genesis());
    for _ in 0..100 {
        let mut changed = false;
        for batch in batches {
            changed |= roll.merge(batch.iter().cloned(), &Trusting).changed();
        }
        if !changed {
            return roll;
        }
    }
    panic!("a hundred rounds of the same statements and no rest");
}

fn digests(roll: &Roll) -> BTreeSet<Digest> {
    roll.statements().map(|s| s.digest()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_order_and_any_batches_store_the_same(
        (said, shuffled) in prop::collection::vec(said(), 1..70)
            .prop_flat_map(|said| (Just(said.clone()), Just(said).prop_shuffle())),
        batch in 1..8_usize,
    ) {
        let cluster = genesis().cluster();
        let sign = |said: &[Said]| -> Vec<Arc<Statement>> { said.iter().map(|s| s.sign(cluster)).collect() };
        let at_once = offer_until_quiet(&[sign(&said)]);
        let batches: Vec<_> = sign(&shuffled).chunks(batch).map(<[_]>::to_vec).collect();
        let in_batches = offer_until_quiet(&batches);
        prop_assert_eq!(at_once.trie().root(), in_batches.trie().root());
        prop_assert_eq!(digests(&at_once), digests(&in_batches), "with effect");

        let mut from_store = Roll::new(genesis());
        from_store.merge(at_once.trie().values().cloned(), &Trusting);
        prop_assert_eq!(from_store.trie().root(), at_once.trie().root(), "what is stored supports itself");
    }

    #[test]
    fn replicas_that_offer_each_other_what_they_store_become_equal(
        said in prop::collection::vec((said(), 0..3_u8), 1..70),
    ) {
        let cluster = genesis().cluster();
        let (mut a, mut b) = (Roll::new(genesis()), Roll::new(genesis()));
        for (said, to) in &said {
            let statement = said.sign(cluster);
            if *to != 1 { a.merge([statement.clone()], &Trusting); }
            if *to != 0 { b.merge([statement], &Trusting); }
        }
        for _ in 0..50 {
            let (of_a, of_b): (Vec<_>, Vec<_>) =
                (a.trie().values().cloned().collect(), b.trie().values().cloned().collect());
            a.merge(of_b, &Trusting);
            b.merge(of_a, &Trusting);
        }
        prop_assert_eq!(a.trie().root(), b.trie().root());
    }

    #[test]
    fn what_is_stored_is_what_the_rules_say(said in prop::collection::vec(said(), 1..70)) {
        let cluster = genesis().cluster();
        let all: Vec<_> = said.iter().map(|s| s.sign(cluster)).collect();
        let mut roll = Roll::new(genesis());
        roll.merge(all.iter().cloned(), &Trusting);
        prop_assert_eq!(digests(&roll), Model::of(&all).stored());
    }

    #[test]
    fn whoever_stands_is_joined_to_the_root_by_admins_none_of_whom_denies_it(
        said in prop::collection::vec(said(), 1..70),
    ) {
        let cluster = genesis().cluster();
        let mut roll = Roll::new(genesis());
        roll.merge(said.iter().map(|s| s.sign(cluster)), &Trusting);
        let standing = Standing::of(&roll);
        let members: BTreeMap<_, _> = standing.members().map(|m| (m.key, m)).collect();
        for member in members.values() {
            prop_assert!(member.path.len() < 8 && !member.path.contains(&member.key));
            let parent = member.path.iter().find_map(|key| members.get(key));
            prop_assert_eq!(parent.is_none(), member.path.is_empty());
            if let Some(parent) = parent {
                prop_assert_eq!(parent.rights.tier, Tier::Admin);
                prop_assert!(member.rights.quota_kib <= parent.rights.quota_kib);
                prop_assert!(member.path.ends_with(&parent.path));
            }
            for upper in member.path.iter().chain([&roll.root()]) {
                let verdict = roll.edge(upper, &member.key).map(|edge| edge.verdict);
                prop_assert!(!matches!(verdict, Some(Verdict::Denied | Verdict::Retired)));
            }
            let mut elsewhere = Roll::from_lineage(&roll.lineage(), &Trusting).expect("proves itself");
            elsewhere.merge(standing.bundle(&member.key), &Trusting);
            let shown = Standing::of(&elsewhere);
            let shown = shown.members().find(|m| m.key == member.key);
            prop_assert_eq!(shown, Some(*member), "its bundle shows that it stands, and how");
        }
    }
}

#[test]
fn a_redemption_cannot_record_the_witness_of_an_earlier_one() {
    // 2 comes in by an invite for admins and records 3, which pretends to have witnessed 4 before.
    let edge = |by, subject, verdict, pool_kib, generation| Said::Edge {
        by,
        subject,
        verdict,
        tier: 2,
        quota_kib: 64,
        pool_kib,
        generation,
    };
    let said = [
        edge(ROOT, 1, 0, 4000, 1),
        edge(1, 100, 1, 1000, 2),
        Said::Redeem { by: 100, subject: 2, witness: 1, at: 10 },
        edge(2, 3, 0, 300, 3),
        Said::Redeem { by: 100, subject: 4, witness: 3, at: 5 },
    ];
    let signed: Vec<_> = said.iter().map(|s| s.sign(genesis().cluster())).collect();
    let mut backwards: Vec<_> = signed.chunks(1).map(<[_]>::to_vec).collect();
    backwards.reverse();
    let roll = offer_until_quiet(&[signed]);
    let redeemed: Vec<_> = roll.statements().filter(|s| s.kind() == Kind::Redeem).map(|s| s.subject()).collect();
    assert_eq!(redeemed, [key(2)]);
    assert!(roll.edge(&key(2), &key(3)).is_some());
    assert_eq!(offer_until_quiet(&backwards).trie().root(), roll.trie().root());
}

/// The rules read plainly: everything that was offered is at hand, and each step looks at all of it.
struct Model {
    root: NodeKey,
    rotations: Vec<Arc<Statement>>,
    /// One for each slot.
    winners: Vec<Arc<Statement>>,
    redeems: Vec<Arc<Statement>>,
}

impl Model {
    fn of(all: &[Arc<Statement>]) -> Self {
        let (mut root, mut next) = (genesis().root(), genesis().next());
        let (mut rotations, mut all): (Vec<Arc<Statement>>, Vec<_>) = (Vec::new(), all.to_vec());
        while let Some(found) = all
            .iter()
            .filter(|s| s.issuer() == root && commitment(&s.subject()) == next)
            .filter(|s| matches!(s.body(), Body::Rotate(r) if r.number == rotations.len() as u64 + 1))
            .max_by_key(|s| s.rank())
        {
            let Body::Rotate(body) = found.body() else { unreachable!("filtered") };
            (root, next) = (found.subject(), body.next);
            rotations.push(found.clone());
        }
        let inline: Vec<_> = all.iter().flat_map(|s| s.inline().iter().cloned()).collect();
        all.extend(inline);
        let beaten = |s: &Arc<Statement>| all.iter().any(|o| o.slot() == s.slot() && o.rank() > s.rank());
        let plain = |s: &&Arc<Statement>| !matches!(s.kind(), Kind::Redeem | Kind::Rotate);
        let winners = all.iter().filter(plain).filter(|s| !beaten(s)).cloned().collect();
        let redeems = all.iter().filter(|s| s.kind() == Kind::Redeem).cloned().collect();
        Self { root, rotations, winners, redeems }
    }

    fn stored(&self) -> BTreeSet<Digest> {
        let by_edges_alone = self.grow(&BTreeSet::new());
        let recorded: BTreeSet<NodeKey> = self.recorded(&by_edges_alone).into_keys().collect();
        let mut chosen = BTreeMap::new();
        for redeem in &self.redeems {
            let Some(witness) = redeem.witness().filter(|w| recorded.contains(&w.key)) else { continue };
            let order = (witness.at, redeem.digest());
            let held = chosen.entry(redeem.issuer()).or_insert(order);
            *held = order.min(*held);
        }
        let mut stored = self.grow(&chosen.into_values().map(|(_, digest)| digest).collect());
        let named: BTreeSet<NodeKey> = self
            .everything()
            .filter(|s| matches!(s.kind(), Kind::Edge | Kind::Redeem) && stored.contains(&s.digest()))
            .map(|s| s.subject())
            .collect();
        let stands = self.winners.iter().filter(|s| s.kind() == Kind::Stand && named.contains(&s.subject()));
        stored.extend(stands.chain(&self.rotations).map(|s| s.digest()));
        stored
    }

    fn everything(&self) -> impl Iterator<Item = &Arc<Statement>> {
        self.winners.iter().chain(&self.redeems)
    }

    /// Applies the rules for edges, with these redemptions admitted, until nothing comes in any more.
    fn grow(&self, chosen: &BTreeSet<Digest>) -> BTreeSet<Digest> {
        let mut stored = BTreeSet::new();
        loop {
            let before = stored.len();
            let recorded = self.recorded(&stored);
            for issuer in recorded.keys().chain([&self.root]) {
                stored.extend(self.walk(issuer, recorded.get(issuer).copied().unwrap_or(0)));
            }
            let invited = |key: NodeKey| self.invites(&stored).any(|invite| invite.subject() == key);
            let redeemed: Vec<_> =
                self.redeems.iter().filter(|s| chosen.contains(&s.digest()) && invited(s.issuer())).collect();
            stored.extend(redeemed.into_iter().map(|s| s.digest()));
            if stored.len() == before {
                return stored;
            }
        }
    }

    fn invites<'a>(&'a self, stored: &'a BTreeSet<Digest>) -> impl Iterator<Item = &'a Arc<Statement>> {
        let is_invite = |s: &&Arc<Statement>| s.edge().is_some_and(|edge| edge.verdict == Verdict::Invite);
        self.winners.iter().filter(is_invite).filter(|s| stored.contains(&s.digest()))
    }

    /// Admins by what is stored, with the largest pool given to each.
    fn recorded(&self, stored: &BTreeSet<Digest>) -> BTreeMap<NodeKey, u64> {
        let mut recorded = BTreeMap::new();
        let mut record = |key: NodeKey, edge: &crate::roll::EdgeBody| {
            if let Some(rights) = edge.rights.as_ref().filter(|rights| rights.tier == Tier::Admin) {
                let held = recorded.entry(key).or_insert(0);
                *held = u64::from(rights.pool_kib).max(*held);
            }
        };
        for statement in self.winners.iter().filter(|s| stored.contains(&s.digest())) {
            if let Some(edge) = statement.edge().filter(|edge| edge.invite.is_none()) {
                record(statement.subject(), edge);
            }
        }
        for redeem in self.redeems.iter().filter(|s| stored.contains(&s.digest())) {
            for invite in self.invites(stored).filter(|invite| invite.subject() == redeem.issuer()) {
                if let Some(edge) = invite.edge() {
                    record(redeem.subject(), edge);
                }
            }
        }
        recorded
    }

    /// An issuer's edges from the newest to before the first that is too much.
    fn walk(&self, issuer: &NodeKey, pool: u64) -> Vec<Digest> {
        let mut own: Vec<_> = self
            .winners
            .iter()
            .filter(|s| s.issuer() == *issuer && matches!(s.kind(), Kind::Edge | Kind::Unknown(_)))
            .collect();
        own.sort_by_key(|s| core::cmp::Reverse(s.rank()));
        own.dedup_by_key(|s| s.digest());
        let (mut sum, mut walked) = (0, Vec::new());
        for statement in own {
            sum += statement.edge().map_or(0, crate::roll::EdgeBody::cost_kib);
            let limited = *issuer != self.root;
            if limited && (walked.len() as u64 >= 16 + pool / 16 || sum > pool) {
                break;
            }
            walked.push(statement.digest());
        }
        walked
    }
}
