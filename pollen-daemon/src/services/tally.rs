//! Counters of what services carried and refused. They never go down while the daemon runs.

use pollen_common::views::policy::Lack;
use pollen_common::wire::streams::Denial;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::pump::Moved;

/// What one export or import has carried.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// TCP streams or UDP sessions, ever.
    pub opened: AtomicU64,
    pub moved: Moved,
    /// UDP payloads dropped, for whatever reason.
    pub dropped: AtomicU64,
}

/// A reading of a [`Tally`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// TCP streams or UDP sessions, ever.
    pub opened: u64,
    /// Payload from the mesh to the local socket.
    pub bytes_in: u64,
    /// Payload from the local socket to the mesh.
    pub bytes_out: u64,
    /// UDP payloads dropped, for whatever reason.
    pub dropped: u64,
}

impl Tally {
    pub(super) fn count_opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Carried {
        Carried {
            opened: self.opened.load(Ordering::Relaxed),
            bytes_in: self.moved.inward.load(Ordering::Relaxed),
            bytes_out: self.moved.outward.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

/// Why a UDP payload was dropped, or a session with what it would have carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dropped {
    /// The queue of its session, or what all queues share, was full.
    QueueFull,
    /// It waited for so long that nobody wants it any more.
    Late,
    /// No provider took its session.
    NoProvider,
    /// The system's buffer of the local socket was full: it came faster than this process reads.
    SocketFull,
    /// Longer than IPv4 allows.
    TooLong,
    /// Not a payload: a session that was given up for a newer one, because it was used least recently.
    SessionGivenUp,
}

impl Dropped {
    /// Every reason there is.
    pub(crate) const ALL: [Self; 6] =
        [Self::QueueFull, Self::Late, Self::NoProvider, Self::SocketFull, Self::TooLong, Self::SessionGivenUp];

    /// The label of its metric.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Late => "late",
            Self::NoProvider => "no_provider",
            Self::SocketFull => "socket_full",
            Self::TooLong => "too_long",
            Self::SessionGivenUp => "session_given_up",
        }
    }
}

/// What was dropped of all services, by reason.
#[derive(Debug, Default)]
pub(super) struct Drops([AtomicU64; Dropped::ALL.len()]);

impl Drops {
    pub(super) fn count(&self, dropped: Dropped, count: u64) {
        self.0[dropped as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// As many entries as there are reasons that occurred.
    pub(super) fn read(&self) -> BTreeMap<&'static str, u64> {
        let read = Dropped::ALL.map(|dropped| (dropped.label(), self.0[dropped as usize].load(Ordering::Relaxed)));
        read.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

/// The labels of all reasons for which UDP payloads are dropped.
#[cfg(test)]
pub(crate) fn drop_labels() -> impl Iterator<Item = &'static str> {
    Dropped::ALL.into_iter().map(Dropped::label)
}

/// The label of datagrams that belong to no session: nobody was told anything.
pub(super) const DATAGRAM_OF_NO_SESSION: &str = "datagram_of_no_session";

/// Why a caller was turned away, more exactly than the caller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refused {
    /// The caller does not stand.
    Stranger,
    /// No such export.
    Absent,
    /// The header's protocol is not that of its stream's kind.
    WrongKind,
    /// The header did not come in time.
    Slow,
    /// It is not among the peers that the policy names.
    Peer,
    /// It has not the tier that the policy asks for.
    Tier,
    /// It has not a property that the policy asks for.
    Property,
    /// It leads back to this node's own listener for it.
    Circle,
    Denial(Denial),
}

impl Refused {
    pub(super) const fn denial(self) -> Denial {
        match self {
            Self::Stranger | Self::Absent | Self::Peer | Self::Tier | Self::Property => Denial::DeniedOrAbsent,
            Self::WrongKind | Self::Slow => Denial::Malformed,
            Self::Circle => Denial::Unavailable,
            Self::Denial(denial) => denial,
        }
    }

    /// Every reason there is, for the guide's table.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 15] = [
        Self::Stranger,
        Self::Absent,
        Self::Peer,
        Self::Tier,
        Self::Property,
        Self::WrongKind,
        Self::Slow,
        Self::Circle,
        Self::Denial(Denial::DeniedOrAbsent),
        Self::Denial(Denial::Unavailable),
        Self::Denial(Denial::Busy),
        Self::Denial(Denial::Malformed),
        Self::Denial(Denial::Version),
        Self::Denial(Denial::Draining),
        Self::Denial(Denial::Other(0)),
    ];

    /// The label of its metric.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Absent => "absent",
            Self::WrongKind => "wrong_kind",
            Self::Slow => "slow_header",
            Self::Peer => "policy_peer",
            Self::Tier => "policy_tier",
            Self::Property => "policy_property",
            Self::Circle => "circle",
            Self::Denial(Denial::Malformed) => "malformed_header",
            Self::Denial(denial) => denial.label(),
        }
    }
}

impl From<&Lack> for Refused {
    fn from(lack: &Lack) -> Self {
        match lack {
            Lack::Membership => Self::Stranger,
            Lack::Name => Self::Peer,
            Lack::Tier { .. } => Self::Tier,
            Lack::Property { .. } => Self::Property,
        }
    }
}

/// The labels of all reasons.
#[cfg(test)]
pub(crate) fn labels() -> impl Iterator<Item = &'static str> {
    Refused::ALL.into_iter().map(Refused::label).chain([DATAGRAM_OF_NO_SESSION])
}

/// Callers turned away, by reason: as many entries as there are reasons.
#[derive(Debug, Default)]
pub(super) struct Refusals(std::sync::Mutex<BTreeMap<&'static str, u64>>);

impl Refusals {
    pub(super) fn count(&self, refused: Refused) {
        *self.0.lock().expect("nothing panics while it holds this lock").entry(refused.label()).or_default() += 1;
    }

    pub(super) fn read(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().expect("nothing panics while it holds this lock").clone()
    }
}
