//! Whether this node is well, in one word and with its reasons. Owns the rules; pure.
//! Invariant: a node that is not healthy always says why.

use pollen_common::views::{Liveness, SeedInfo, View};
use serde::{Deserialize, Serialize};

use super::Reading;
use super::when::Span;

/// A membership that ends sooner than this is worth a warning: a day is time enough to be granted another.
const EXPIRY_WARNING_MS: u64 = 24 * 60 * 60 * 1000;

/// How this node is, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub state: HealthState,
    /// A sentence each; empty when healthy.
    pub reasons: Vec<String>,
}

/// How a node is; worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    Healthy,
    /// It works, and something needs attention.
    Degraded,
    /// It is no part of a working mesh.
    Unhealthy,
}

impl Health {
    /// Judges one reading.
    #[must_use]
    pub fn of(reading: Reading<'_>) -> Self {
        let found =
            [standing(reading), company(reading.view), names(reading.view), seeds(reading.view), entries(reading.view)];
        let found: Vec<(HealthState, String)> = found.into_iter().flatten().collect();
        Self {
            state: found.iter().map(|(state, _)| *state).max().unwrap_or(HealthState::Healthy),
            reasons: found.into_iter().map(|(_, reason)| reason).collect(),
        }
    }
}

fn standing(Reading { view, now, .. }: Reading<'_>) -> Option<(HealthState, String)> {
    let Some(me) = view.nodes.get(&view.me) else {
        return Some((
            HealthState::Unhealthy,
            "this node is not a member: it was denied, or its membership ended".into(),
        ));
    };
    let left = me.member.rights.expires?.0.saturating_sub(now.0);
    (left < EXPIRY_WARNING_MS)
        .then(|| (HealthState::Degraded, format!("this node's membership ends in {}", Span::from_ms(left))))
}

fn company(view: &View) -> Option<(HealthState, String)> {
    let others = view.nodes.len().saturating_sub(usize::from(view.nodes.contains_key(&view.me)));
    let alone = !view.nodes.values().any(|node| matches!(node.liveness, Liveness::Online { .. }));
    let reason = match others {
        0 => return None,
        1 => "the only other node cannot be reached".to_owned(),
        _ => format!("none of the {others} other nodes can be reached"),
    };
    alone.then_some((HealthState::Unhealthy, reason))
}

fn names(view: &View) -> Option<(HealthState, String)> {
    let lost: Vec<&str> = view
        .services
        .values()
        .filter(|service| service.conflicts.iter().any(|conflict| conflict.author == view.me))
        .map(|service| service.name.as_str())
        .collect();
    (!lost.is_empty())
        .then(|| (HealthState::Degraded, format!("names this node claims belong to others: {}", lost.join(", "))))
}

/// Seeds of this node's own that nobody serves: what their callers meet is worth a look. A floor that is not reached for
/// want of nodes is none, or a cluster of one would never be well.
fn seeds(view: &View) -> Option<(HealthState, String)> {
    let unserved = |seed: &&SeedInfo| seed.owner == view.me && !seed.replicas.contains_key(&seed.current().id());
    let unserved: Vec<&str> = view.seeds.values().filter(unserved).map(|seed| seed.name.as_str()).collect();
    (!unserved.is_empty())
        .then(|| (HealthState::Degraded, format!("no node is ready to serve: {}", unserved.join(", "))))
}

fn entries(view: &View) -> Option<(HealthState, String)> {
    let refused = view.refused.iter().filter(|entry| entry.author == view.me).count();
    (refused > 0).then(|| {
        (HealthState::Degraded, format!("{refused} of this node's entries do not count; `pln why` on it says why"))
    })
}
