//! What the transport refuses, counted by reason. Owns the reasons and their metric labels.
//! Invariant: nothing from a peer is dropped without a count here.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why something was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The label of its metric.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

reasons! {
    /// A circuit frame that carries nothing, or of another version.
    CircuitMalformed = "circuit_malformed",
    /// A circuit frame whose label means nothing (any more).
    CircuitLabel = "circuit_label",
    /// A circuit frame from another than the one for whom its label was made.
    CircuitSource = "circuit_source",
    /// A circuit frame that could not be passed on at once: the socket was full.
    RelayBusy = "relay_busy",
    /// A first byte that means nothing, or an empty payload.
    UnknownFrame = "unknown_frame",
    /// QUIC from a source that no node has proved.
    UnboundSource = "unbound_source",
    /// A probe of wrong length or kind.
    ProbeMalformed = "probe_malformed",
    /// A probe for another node.
    ProbeNotForUs = "probe_not_for_us",
    /// A bind without a cookie of ours: replayed, forged, or late.
    ProbeCookie = "probe_cookie",
    /// A bind or bound whose signature does not hold.
    ProbeSignature = "probe_signature",
    /// A challenge or bound that answers nothing we asked.
    ProbeUnexpected = "probe_unexpected",
    /// More probes than we answer.
    ProbeRate = "probe_rate",
    /// No room for another source.
    BindingsFull = "bindings_full",
    /// A QUIC packet for a node that has no route.
    NoRoute = "no_route",
    /// The kernel refused to send (unreachable, too long, not permitted).
    SendError = "send_error",
    /// The socket could not be read; nothing is known of what was lost.
    ReceiveError = "receive_error",
    /// A connection that did not finish its handshake, or presented another key than the bound one.
    Handshake = "handshake",
    /// A connection beyond the limit.
    ConnectionsFull = "connections_full",
    /// A stream whose first byte means nothing.
    StreamKind = "stream_kind",
    /// A stream that did not say its kind in time.
    StreamTimeout = "stream_timeout",
    /// A link stream beyond the one of its connection.
    StreamSecondLink = "stream_second_link",
    /// A datagram whose first byte means nothing.
    DatagramKind = "datagram_kind",
    /// A core probe for which the driver had no room.
    DriverBusy = "driver_busy",
    /// A link closed because its peer does not read what we send.
    LinkOverflow = "link_overflow",
}

/// One counter for each reason.
#[derive(Debug)]
pub struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; DropReason::ALL.len()])
    }
}

impl Drops {
    /// One more of `reason`.
    pub fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// `n` more of `reason`.
    pub fn add(&self, reason: DropReason, n: usize) {
        self.0[reason as usize].fetch_add(n as u64, Ordering::Relaxed);
    }

    /// How many of `reason` so far.
    #[must_use]
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// Every reason and its count.
    #[must_use]
    pub fn all(&self) -> Vec<(DropReason, u64)> {
        DropReason::ALL.iter().map(|reason| (*reason, self.of(*reason))).collect()
    }
}
