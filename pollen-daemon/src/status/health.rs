//! Whether this node is well, in one word and with all that is wrong. Owns the rules; pure.
//! Invariant: a node that is not healthy always says why and what to do, and one that is has nothing to say.

use std::collections::BTreeMap;

use pollen_common::views::{Liveness, Name, NodeInfo, SeedInfo, View};
use serde::{Deserialize, Serialize};

use super::condition::{Code, Condition};
use super::when::Span;
use super::{Reading, label};
use crate::store::health::DiskHealth;

mod machines;

/// A membership that ends sooner than this is worth a warning: a day is time enough to be granted another.
const EXPIRY_WARNING_MS: u64 = 24 * 60 * 60 * 1000;

/// Machines of one name that are listed: a line.
const NAMESAKES_SHOWN_MAX: usize = 5;

/// How this node is, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The worst of the conditions.
    pub state: HealthState,
    /// Empty when healthy.
    pub conditions: Vec<Condition>,
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
        let mut conditions = Vec::new();
        conditions.extend(standing(reading));
        conditions.extend(company(reading.view));
        conditions.extend(machines::of(reading));
        conditions.extend(disk(reading));
        conditions.extend(listeners(reading));
        conditions.extend(metrics(reading));
        conditions.extend(datapath(reading));
        conditions.extend(unanswered(reading));
        conditions.extend(namesakes(reading.view));
        conditions.extend(names(reading.view));
        conditions.extend(seeds(reading.view));
        conditions.extend(entries(reading.view));
        let worst = conditions.iter().map(|condition| condition.state).max();
        Self { state: worst.unwrap_or(HealthState::Healthy), conditions }
    }
}

fn degraded(code: Code, subject: impl ToString, message: String, remedy: impl Into<String>) -> Condition {
    Condition { code, subject: subject.to_string(), state: HealthState::Degraded, message, remedy: remedy.into() }
}

fn unhealthy(code: Code, subject: impl ToString, message: String, remedy: impl Into<String>) -> Condition {
    Condition { state: HealthState::Unhealthy, ..degraded(code, subject, message, remedy) }
}

fn standing(Reading { view, now, .. }: Reading<'_>) -> Option<Condition> {
    let Some(me) = view.nodes.get(&view.me) else {
        return Some(unhealthy(
            Code::NotMember,
            view.me,
            "this node is not a member: it was denied, or its membership ended".into(),
            "ask an admin of the cluster to `pln allow` it, or to `pln grant` it anew",
        ));
    };
    let left = me.member.rights.expires?.0.saturating_sub(now.0);
    (left < EXPIRY_WARNING_MS).then(|| {
        let message = format!("this node's membership ends in {}", Span::from_ms(left));
        degraded(Code::MembershipEnds, view.me, message, "ask an admin of the cluster to `pln grant` it anew")
    })
}

fn company(view: &View) -> Option<Condition> {
    let others = view.nodes.len().saturating_sub(usize::from(view.nodes.contains_key(&view.me)));
    let alone = !view.nodes.values().any(|node| matches!(node.liveness, Liveness::Online { .. }));
    let message = match others {
        0 => return None,
        1 => "the only other node cannot be reached".to_owned(),
        _ => format!("none of the {others} other nodes can be reached"),
    };
    let remedy = "see that they run, and that UDP between their addresses and this node's is let through";
    alone.then(|| unhealthy(Code::Alone, view.me, message, remedy))
}

fn disk(Reading { about, troubles, .. }: Reading<'_>) -> Option<Condition> {
    let DiskHealth::Refusing(refusing) = &troubles.disk else { return None };
    let message = format!("{}, since {}", refusing.message(), refusing.since);
    Some(degraded(Code::Disk, about.dir.display(), message, refusing.hint()))
}

fn listeners(Reading { listeners, .. }: Reading<'_>) -> impl Iterator<Item = Condition> {
    listeners.iter().filter_map(|listener| {
        let why = listener.waiting.as_ref()?;
        let (port, service) = (listener.local_port, &listener.service);
        let protocol = label::protocol(listener.protocol);
        let message =
            format!("local {protocol} port {port}, asked for by `pln connect {service}`, is not listened on: {why}");
        let remedy = format!(
            "stop what uses it (`ss -lnp 'sport = :{port}'` shows it): then it is taken over by itself; or \
             `pln disconnect {port}` and connect again with another local port"
        );
        Some(degraded(Code::ListenerWaits, format!("{port}/{protocol}"), message, remedy))
    })
}

fn metrics(Reading { troubles, .. }: Reading<'_>) -> Option<Condition> {
    let why = troubles.metrics_wait.as_ref()?;
    let remedy =
        "stop what uses the port: then it is taken over by itself; or `pln set http` to another, or `pln unset http`";
    Some(degraded(Code::MetricsWait, "http", format!("metrics are off: {why}"), remedy))
}

fn datapath(Reading { numbers, .. }: Reading<'_>) -> Option<Condition> {
    let standing = &numbers.datapath.standing;
    let message = format!("circuits' frames go by the sockets, against the setting: {}", standing.why_not_higher);
    let remedy = "`pln set datapath auto` takes what there is; it is tried again each minute otherwise";
    standing.is_refused.then(|| degraded(Code::DatapathRefused, "datapath", message, remedy))
}

fn unanswered(Reading { troubles, .. }: Reading<'_>) -> impl Iterator<Item = Condition> {
    troubles.unanswered.iter().map(|export| {
        let (port, label, protocol) = (export.port, export.label(), label::protocol(export.protocol));
        let message = format!("{protocol} port {port} is served as {label}, and nobody listens on it");
        let remedy = format!("start the server on this machine, on port {port}; or `pln unserve {label}`");
        degraded(Code::ServiceUnanswered, format!("{port}/{protocol}"), message, remedy)
    })
}

/// Machines called alike, as those made of one image are: each name once, with what tells them apart here.
fn namesakes(view: &View) -> impl Iterator<Item = Condition> {
    let mut called: BTreeMap<&Name, Vec<&NodeInfo>> = BTreeMap::new();
    for node in view.nodes.values() {
        if let Some(name) = &node.chosen_name {
            called.entry(name).or_default().push(node);
        }
    }
    called.into_iter().filter(|(_, nodes)| nodes.len() > 1).map(|(name, nodes)| {
        let mut shown: Vec<String> =
            nodes.iter().filter_map(|node| node.name.as_ref()).map(ToString::to_string).collect();
        shown.sort_by_key(|name| (name.len(), name.clone()));
        let more = shown.len().saturating_sub(NAMESAKES_SHOWN_MAX);
        shown.truncate(NAMESAKES_SHOWN_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let message =
            format!("{} machines are called {name}: they are told apart as {}{more}", nodes.len(), shown.join(", "));
        degraded(Code::NameShared, name, message, "give each a name of its own: `pln set name NAME` on it")
    })
}

fn names(view: &View) -> Option<Condition> {
    let lost: Vec<&str> = view
        .services
        .values()
        .filter(|service| service.conflicts.iter().any(|conflict| conflict.author == view.me))
        .map(|service| service.name.as_str())
        .collect();
    let lost = lost.join(", ");
    (!lost.is_empty()).then(|| {
        let message = format!("names this node claims belong to others: {lost}");
        degraded(Code::NameLost, lost, message, "`pln unserve` them, and serve under other names")
    })
}

/// Seeds of this node's own that nobody serves: what their callers meet is worth a look. A floor that is not reached for
/// want of nodes is none, or a cluster of one would never be well.
fn seeds(view: &View) -> Option<Condition> {
    let unserved = |seed: &&SeedInfo| seed.owner == view.me && !seed.replicas.contains_key(&seed.current().id());
    let unserved: Vec<&str> = view.seeds.values().filter(unserved).map(|seed| seed.name.as_str()).collect();
    let unserved = unserved.join(", ");
    (!unserved.is_empty()).then(|| {
        let message = format!("no node is ready to serve: {unserved}");
        degraded(Code::SeedUnserved, unserved, message, "`pln why` on them says what keeps each node from it")
    })
}

fn entries(view: &View) -> Option<Condition> {
    let refused = view.refused.iter().filter(|entry| entry.author == view.me).count();
    (refused > 0).then(|| {
        let message = format!("{refused} of this node's entries do not count");
        let remedy = format!("`pln why {}` says why", view.me.short());
        degraded(Code::EntriesRefused, view.me, message, remedy)
    })
}
