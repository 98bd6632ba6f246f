//! The words that stand for kinds in JSON, in tables and as labels of metrics: one place, so that the three agree.
//! Invariant: a word never changes its meaning; scripts and dashboards match on them.

use pollen_common::node::EventKind;
use pollen_common::views::Protocol;

/// Every kind of event, so that a metric has its series from the start.
pub const EVENTS: [EventKind; 16] = [
    EventKind::PeerUp,
    EventKind::PeerDown,
    EventKind::LinkDown,
    EventKind::LinkSilent,
    EventKind::Joined,
    EventKind::Admitted,
    EventKind::Denied,
    EventKind::Published,
    EventKind::Withdrawn,
    EventKind::Replica,
    EventKind::Conflict,
    EventKind::Twin,
    EventKind::Refused,
    EventKind::Rotated,
    EventKind::ConditionBegan,
    EventKind::ConditionEnded,
];

/// The word for a kind of event.
#[must_use]
pub const fn event(kind: EventKind) -> &'static str {
    match kind {
        EventKind::PeerUp => "peer_up",
        EventKind::PeerDown => "peer_down",
        EventKind::LinkDown => "link_down",
        EventKind::LinkSilent => "link_silent",
        EventKind::Joined => "joined",
        EventKind::Admitted => "admitted",
        EventKind::Denied => "denied",
        EventKind::Published => "published",
        EventKind::Withdrawn => "withdrawn",
        EventKind::Replica => "replica",
        EventKind::Conflict => "conflict",
        EventKind::Twin => "twin",
        EventKind::Refused => "refused",
        EventKind::Rotated => "rotated",
        EventKind::ConditionBegan => "condition_began",
        EventKind::ConditionEnded => "condition_ended",
    }
}

/// The word for a protocol.
#[must_use]
pub const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}
