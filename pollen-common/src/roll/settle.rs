//! Which statements are stored: the rules of slots, issuers, pools and invites, as one function of a set. Knows
//! nothing of clocks, of arrival, or of who stands. Invariant: settling what was kept together with what comes is
//! settling everything, so that replicas that were offered the same statements hold the same ones.
//!
//! Every step only ever adds: a larger pool lets a walk go further, a longer walk records more admins. So the least
//! fixpoint exists and does not depend on the order of work. Redemptions would break that (an invite's earliest
//! witness may be recorded through its later one), so witnesses are those recorded without any redemption.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::genesis::{Genesis, ROTATIONS_MAX, commitment};
use super::{Body, Kind, Statement, Tier, Verdict};
use crate::identity::{Digest, NodeKey};

/// The most statements of the root. It has no pool; each costs a signature made by hand.
pub const ROOT_STATEMENTS_MAX: usize = 65_536;
/// What every admin may say, however small its pool.
const STATEMENTS_BASE: u64 = 16;
/// One more statement for each so many KiB of pool.
const POOL_KIB_PER_STATEMENT: u64 = 16;

/// How much of what it may say an issuer has said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub statements: usize,
    pub statements_max: usize,
    pub cost_kib: u64,
    /// The largest pool that a stored edge gives it; the root has no limit.
    pub pool_kib: u64,
}

/// What is stored of a set of statements.
#[derive(Debug)]
pub(super) struct Settled {
    /// By slot.
    pub kept: BTreeMap<Digest, Arc<Statement>>,
    /// The slots kept only to mark where an issuer's walk ended. Without them an older, cheaper statement could
    /// take the place of the one that was too much, and what is stored would hang on the order of arrival.
    pub inert: BTreeSet<Digest>,
    /// Oldest first.
    pub rotations: Vec<Arc<Statement>>,
    pub root: NodeKey,
    /// The commitment to the next root.
    pub next: Digest,
    /// The redemption that counts, of each invite key that has one; stored if its invite is.
    pub redeems: BTreeMap<NodeKey, Arc<Statement>>,
    /// Every key that may issue edges.
    pub issuers: BTreeMap<NodeKey, Usage>,
}

pub(super) fn settle(genesis: &Genesis, candidates: impl Iterator<Item = Arc<Statement>>) -> Settled {
    let mut sorted = Sorted::default();
    candidates.for_each(|statement| sorted.add(statement));
    let (root, next, rotations) = succession(genesis, &sorted.rotates);
    let walks = sorted.walks();
    let mut work = Work::new(&walks, root);
    work.exhaust();
    work.choose(&sorted.redeems);
    work.exhaust();
    work.finish(sorted.stands, rotations, root, next)
}

/// The candidates by kind, one for each slot but for redemptions.
#[derive(Default)]
struct Sorted {
    edges: BTreeMap<Digest, Arc<Statement>>,
    stands: BTreeMap<NodeKey, Arc<Statement>>,
    rotates: BTreeMap<NodeKey, Vec<Arc<Statement>>>,
    redeems: BTreeMap<NodeKey, Vec<Arc<Statement>>>,
}

impl Sorted {
    fn add(&mut self, statement: Arc<Statement>) {
        match statement.kind() {
            Kind::Edge | Kind::Unknown(_) => keep_greater(&mut self.edges, statement.slot(), statement),
            Kind::Stand => keep_greater(&mut self.stands, statement.issuer(), statement),
            // The edges of every rotation, of one that loses too: they are the new root's own, and whoever saw them
            // with a rotation that later lost holds them already.
            Kind::Rotate => {
                statement.inline().iter().cloned().for_each(|edge| self.add(edge));
                self.rotates.entry(statement.issuer()).or_default().push(statement);
            }
            Kind::Redeem => self.redeems.entry(statement.issuer()).or_default().push(statement),
        }
    }

    /// Each issuer's edges, newest first.
    fn walks(&self) -> BTreeMap<NodeKey, Vec<Arc<Statement>>> {
        let mut walks: BTreeMap<NodeKey, Vec<Arc<Statement>>> = BTreeMap::new();
        for edge in self.edges.values() {
            walks.entry(edge.issuer()).or_default().push(edge.clone());
        }
        for walk in walks.values_mut() {
            walk.sort_by_cached_key(|statement| core::cmp::Reverse(statement.rank()));
        }
        walks
    }
}

fn keep_greater<K: Ord>(slots: &mut BTreeMap<K, Arc<Statement>>, key: K, statement: Arc<Statement>) {
    let held = slots.entry(key).or_insert_with(|| statement.clone());
    if held.rank() < statement.rank() {
        *held = statement;
    }
}

/// From the genesis, rotation by rotation, to the present root.
fn succession(
    genesis: &Genesis,
    rotates: &BTreeMap<NodeKey, Vec<Arc<Statement>>>,
) -> (NodeKey, Digest, Vec<Arc<Statement>>) {
    let (mut root, mut next, mut rotations) = (genesis.root(), genesis.next(), Vec::new());
    for number in 1..=ROTATIONS_MAX as u64 {
        let follows = |s: &&Arc<Statement>| {
            commitment(&s.subject()) == next && matches!(s.body(), Body::Rotate(r) if r.number == number)
        };
        let found = rotates.get(&root).and_then(|of| of.iter().filter(follows).max_by_key(|s| s.rank()));
        let Some((found, Body::Rotate(body))) = found.map(|s| (s, s.body())) else { break };
        (root, next) = (found.subject(), body.next);
        rotations.push(found.clone());
    }
    (root, next, rotations)
}

/// One issuer's walk so far: what it may take, what it has taken.
#[derive(Default)]
struct Taken {
    count: usize,
    cost_kib: u64,
}

struct Work<'a> {
    walks: &'a BTreeMap<NodeKey, Vec<Arc<Statement>>>,
    root: NodeKey,
    /// Recorded admins and the largest pool given to each.
    recorded: BTreeMap<NodeKey, u64>,
    taken: BTreeMap<NodeKey, Taken>,
    todo: BTreeSet<NodeKey>,
    invites: Vec<Arc<Statement>>,
    /// The redemption that counts, of each invite key; empty until witnesses are known.
    chosen: BTreeMap<NodeKey, Arc<Statement>>,
    named: BTreeSet<NodeKey>,
    kept: BTreeMap<Digest, Arc<Statement>>,
}

impl<'a> Work<'a> {
    fn new(walks: &'a BTreeMap<NodeKey, Vec<Arc<Statement>>>, root: NodeKey) -> Self {
        Self {
            walks,
            root,
            recorded: BTreeMap::new(),
            taken: BTreeMap::new(),
            todo: BTreeSet::from([root]),
            invites: Vec::new(),
            chosen: BTreeMap::new(),
            named: BTreeSet::new(),
            kept: BTreeMap::new(),
        }
    }

    fn limits(&self, issuer: &NodeKey) -> (usize, u64) {
        if *issuer == self.root {
            return (ROOT_STATEMENTS_MAX, u64::MAX);
        }
        let pool = self.recorded.get(issuer).copied().unwrap_or(0);
        (usize::try_from(STATEMENTS_BASE + pool / POOL_KIB_PER_STATEMENT).unwrap_or(usize::MAX), pool)
    }

    fn exhaust(&mut self) {
        while let Some(issuer) = self.todo.pop_first() {
            self.walk(issuer);
        }
    }

    /// Goes on with an issuer's walk from where its pool, as known before, ended it.
    fn walk(&mut self, issuer: NodeKey) {
        let (count_max, cost_max) = self.limits(&issuer);
        let mut taken = self.taken.remove(&issuer).unwrap_or_default();
        let statements = self.walks.get(&issuer).map_or(&[][..], Vec::as_slice);
        for statement in &statements[taken.count..] {
            let cost_kib = taken.cost_kib + statement.edge().map_or(0, super::EdgeBody::cost_kib);
            if taken.count >= count_max || cost_kib > cost_max {
                break;
            }
            taken = Taken { count: taken.count + 1, cost_kib };
            self.keep(statement);
        }
        self.taken.insert(issuer, taken);
    }

    fn keep(&mut self, statement: &Arc<Statement>) {
        self.kept.insert(statement.slot(), statement.clone());
        let Some(edge) = statement.edge() else { return };
        self.named.insert(statement.subject());
        match (&edge.rights, edge.verdict) {
            (_, Verdict::Invite) => {
                self.invites.push(statement.clone());
                self.redeem(statement);
            }
            // The denial of an invite key repeats the invite's tier, which was never the key's own.
            (Some(rights), verdict)
                if !matches!(verdict, Verdict::Unknown(_)) && rights.tier == Tier::Admin && edge.invite.is_none() =>
            {
                self.record(statement.subject(), rights.pool_kib);
            }
            _ => {}
        }
    }

    fn record(&mut self, admin: NodeKey, pool_kib: u32) {
        let pool = u64::from(pool_kib);
        let held = self.recorded.get(&admin).copied();
        if held.is_none_or(|held| held < pool) {
            self.recorded.insert(admin, pool);
            if admin != self.root {
                self.todo.insert(admin);
            }
        }
    }

    /// Settles which redemption of each invite key counts, and what follows from it.
    fn choose(&mut self, redeems: &BTreeMap<NodeKey, Vec<Arc<Statement>>>) {
        for (invite, candidates) in redeems {
            let order = |s: &Arc<Statement>| {
                let witness = s.witness().filter(|w| self.recorded.contains_key(&w.key))?;
                Some((witness.at, s.digest()))
            };
            let earliest = candidates.iter().filter_map(|s| Some((order(s)?, s))).min_by_key(|(order, _)| *order);
            if let Some((_, chosen)) = earliest {
                self.chosen.insert(*invite, chosen.clone());
            }
        }
        for invite in core::mem::take(&mut self.invites) {
            self.redeem(&invite);
        }
    }

    fn redeem(&mut self, invite: &Arc<Statement>) {
        let Some(chosen) = self.chosen.get(&invite.subject()).cloned() else { return };
        self.named.insert(chosen.subject());
        self.kept.insert(chosen.slot(), chosen.clone());
        if let Some(rights) = invite.edge().and_then(|edge| edge.rights.as_ref())
            && rights.tier == Tier::Admin
        {
            self.record(chosen.subject(), rights.pool_kib);
        }
    }

    fn finish(
        mut self,
        stands: BTreeMap<NodeKey, Arc<Statement>>,
        rotations: Vec<Arc<Statement>>,
        root: NodeKey,
        next: Digest,
    ) -> Settled {
        let mut inert = BTreeSet::new();
        let mut issuers = BTreeMap::new();
        for (issuer, taken) in &self.taken {
            if let Some(end) = self.walks.get(issuer).and_then(|walk| walk.get(taken.count)) {
                inert.insert(end.slot());
                self.kept.insert(end.slot(), end.clone());
            }
            let (statements_max, pool_kib) = self.limits(issuer);
            let usage = Usage { statements: taken.count, statements_max, cost_kib: taken.cost_kib, pool_kib };
            issuers.insert(*issuer, usage);
        }
        let stands = stands.into_iter().filter(|(member, _)| self.named.contains(member)).map(|(_, stand)| stand);
        for statement in stands.chain(rotations.iter().cloned()) {
            self.kept.insert(statement.slot(), statement);
        }
        Settled { kept: self.kept, inert, rotations, root, next, redeems: self.chosen, issuers }
    }
}
