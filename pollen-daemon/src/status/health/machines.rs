//! What is wrong with machines: a key on two of them, clocks that differ, a neighbour that takes nothing. Owns the
//! sentences and whose clock is held for wrong; what was seen is the core's. Pure.

use std::collections::BTreeMap;

use pollen_common::identity::NodeKey;
use pollen_common::node::SharedKey;
use pollen_common::views::View;

use super::{Code, Condition, degraded, unhealthy};
use crate::status::Reading;
use crate::status::when::Span;

/// Offsets that differ by less are the same: a clock drifts little between two looks.
const SAME_MS: u64 = 2_000;

pub(super) fn of(reading: Reading<'_>) -> Vec<Condition> {
    let Reading { view, troubles, .. } = reading;
    let signs = &troubles.signs;
    let shared = signs.shared_keys.iter().map(|(key, shared)| key_shared(view, *key, shared));
    let clocks = clocks(view, &signs.clocks, signs.clocks_known);
    let stalled = signs.stalled.iter().map(|key| stalled(view, *key));
    shared.chain(clocks).chain(stalled).collect()
}

/// A node as people name it, with enough of its key to tell it from its namesakes.
fn named(view: &View, key: NodeKey) -> String {
    let name = view.nodes.get(&key).and_then(|node| node.name.as_ref());
    name.map_or_else(|| key.short(), |name| format!("{name} ({})", key.short()))
}

fn key_shared(view: &View, key: NodeKey, shared: &SharedKey) -> Condition {
    let mut addrs = shared.addrs.clone();
    addrs.dedup();
    let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    if key != view.me {
        let at = if addrs.is_empty() { String::new() } else { format!(" at {}", addrs.join(" and at ")) };
        let (name, seen) = (named(view, key), shared.seen);
        let message = format!("more than one machine runs with the key of {name}: it was seen{at}, last at {seen}");
        return degraded(Code::KeyShared, key, message, remedy());
    }
    let at = match (shared.witness, addrs.as_slice()) {
        (Some(witness), [here, there]) => {
            format!(": {} sees this one at {here}, and the other at {there}", named(view, witness))
        }
        (Some(witness), [at]) => format!(": {} sees it at {at}", named(view, witness)),
        _ => String::new(),
    };
    let message = format!(
        "another machine runs with this node's key{at}, last at {}; nothing is published while it does",
        shared.seen
    );
    unhealthy(Code::KeyShared, key, message, remedy())
}

fn remedy() -> &'static str {
    "on the machine with the copy: `pln down`, `pln purge --include-keys`, and `pln join` with an invite of its own; a \
     node's directory is moved, never copied"
}

/// Whose clock is off is a matter of numbers: where this node differs from most of its neighbours by the same, it is its
/// own. With one neighbour nobody knows.
fn clocks(view: &View, offs: &BTreeMap<NodeKey, i64>, known: usize) -> Vec<Condition> {
    let agreeing = |off: i64| offs.values().filter(|other| other.abs_diff(off) < SAME_MS).count();
    if let Some(off) = offs.values().copied().max_by_key(|off| agreeing(*off))
        && agreeing(off) >= 2
        && agreeing(off) * 2 > known
    {
        let own = clock(
            view.me,
            format!("this node's clock is {} of most of its neighbours", told(off.saturating_neg(), "those")),
        );
        let others =
            offs.iter().filter(|(_, other)| other.abs_diff(off) >= SAME_MS).map(|(key, off)| theirs(view, *key, *off));
        return std::iter::once(own).chain(others).collect();
    }
    offs.iter().map(|(key, off)| theirs(view, *key, *off)).collect()
}

fn theirs(view: &View, key: NodeKey, off: i64) -> Condition {
    clock(key, format!("the clock of {} is {}", named(view, key), told(off, "this node's")))
}

fn told(off_ms: i64, whose: &str) -> String {
    // The size is rounded to seconds: nobody sets a clock to more.
    let size = Span::from_ms(off_ms.unsigned_abs().saturating_add(500) / 1000 * 1000);
    if off_ms < 0 { format!("{size} behind {whose}") } else { format!("{size} ahead of {whose}") }
}

fn clock(subject: NodeKey, message: String) -> Condition {
    let remedy = "set the one that is wrong, best by NTP (`timedatectl set-ntp true`): invites and memberships end early \
                  or late, and the newest claim of a name may not win";
    degraded(Code::Clock, subject, message, remedy)
}

fn stalled(view: &View, key: NodeKey) -> Condition {
    let name = named(view, key);
    let message = format!("{name} takes nothing of what this node has to tell it, though it answers");
    let remedy = format!("see what keeps its machine busy; `pln restart` there, or `pln inspect {}` here", key.short());
    degraded(Code::GossipStalled, key, message, remedy)
}
