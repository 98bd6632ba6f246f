//! Several claims of one name: who holds it. Owns the order between claims, the same for services and seeds.
//! Invariant: the winner depends on what is claimed and granted alone, never on what arrived first.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::{Conflict, Name};
use crate::identity::NodeKey;
use crate::roll::Member;
use crate::time::UnixMs;

/// A claim of a name by a publisher that stands.
#[derive(Clone, Debug)]
pub(super) struct Contender<C> {
    pub author: NodeKey,
    pub claim: C,
    /// Its date as written.
    pub claimed: UnixMs,
    /// Its date as it counts: none is older than its author's admission.
    pub since: UnixMs,
    /// Whether its author's rights grant a prefix of the name.
    pub granted: bool,
}

impl<C> Contender<C> {
    pub(super) fn new(member: &Member, name: &Name, claimed: UnixMs, claim: C) -> Self {
        let granted = member.rights.prefixes.iter().any(|prefix| name.as_str().starts_with(prefix.as_str()));
        Self { author: member.key, claim, claimed, since: claimed.max(UnixMs(member.admitted)), granted }
    }

    /// The least rank wins: a granted prefix, then the earliest, then the lowest key.
    fn rank(&self) -> (Reverse<bool>, UnixMs, NodeKey) {
        (Reverse(self.granted), self.since, self.author)
    }

    /// Why `self`, the winner, holds the name against `other`.
    fn beats(&self, other: &Self, called: impl Fn(&NodeKey) -> String) -> String {
        let winner = called(&self.author);
        if self.granted != other.granted {
            format!("{winner} was granted a prefix of this name")
        } else if self.since != other.since {
            format!("{winner} claimed it earlier, {}", self.since)
        } else {
            format!("{winner} claimed it at the same moment and has the lower key")
        }
    }
}

/// All claims of one name.
#[derive(Clone, Debug)]
pub(super) struct Contest<C> {
    /// In order once [`Self::settle`] was called: the owner is the first.
    contenders: Vec<Contender<C>>,
}

impl<C> Default for Contest<C> {
    fn default() -> Self {
        Self { contenders: Vec::new() }
    }
}

impl<C> Contest<C> {
    pub(super) fn enter(&mut self, contender: Contender<C>) {
        self.contenders.push(contender);
    }

    pub(super) fn settle(&mut self) {
        self.contenders.sort_by_key(Contender::rank);
    }

    pub(super) fn owner(&self) -> &Contender<C> {
        self.contenders.first().expect("a contest is opened by a claim")
    }

    /// The claims that lost, each with the reason.
    pub(super) fn conflicts(&self, called: impl Fn(&NodeKey) -> String) -> Vec<Conflict> {
        let owner = self.owner();
        let lost = |loser: &Contender<C>| Conflict {
            author: loser.author,
            claimed: loser.claimed,
            reason: owner.beats(loser, &called),
        };
        self.contenders[1..].iter().map(lost).collect()
    }

    /// Who owns `name` and by which rule, then why each other claim does not count.
    pub(super) fn reasons(&self, name: &Name, called: impl Fn(&NodeKey) -> String) -> Vec<String> {
        let owner = self.owner();
        let rule = match self.contenders.len() {
            1 => "the only claim".into(),
            _ if owner.granted => "by a prefix granted to it".into(),
            all => format!("the earliest of {all} claims, or the lowest key among equals"),
        };
        let first = format!("{} owns {name}, claimed {}: {rule}", called(&owner.author), owner.since);
        let lost = self.conflicts(&called);
        let lost = lost.iter().map(|c| format!("the claim of {} does not count: {}", called(&c.author), c.reason));
        core::iter::once(first).chain(lost).collect()
    }
}
