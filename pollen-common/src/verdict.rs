//! The only forwarding decision: every rung of the datapath calls [`decide`], so that no two can disagree.
//! Knows frames, not where they came from: the caller carries the verdict out.
//! Invariant: each frame has exactly one verdict, and its reason is counted under one label on every rung.

use crate::packet::{self, Bytes, NotDatagram, RELAY_MARK};

/// What is to be done with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave it to the network stack.
    Pass,
}

/// Why; also the label of the frame's counter and its slot in [`COUNTERS`](crate::abi::COUNTERS).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Not UDP over IP.
    Other = 0,
    /// A fragment of an IPv4 packet.
    Fragment = 1,
    /// Cut short, or with headers that contradict each other.
    Malformed = 2,
    /// A datagram that is no relay frame.
    NotRelay = 3,
    /// A relay frame, and no circuit is known that it could belong to.
    NoCircuit = 4,
}

impl Reason {
    /// Every reason, each at the index that is its counter's slot.
    pub const ALL: [Self; 5] = [Self::Other, Self::Fragment, Self::Malformed, Self::NotRelay, Self::NoCircuit];

    /// The slot of this reason's counter.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> u32 {
        self as u32
    }

    /// The value of the metric label `reason`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Fragment => "fragment",
            Self::Malformed => "malformed",
            Self::NotRelay => "not_relay",
            Self::NoCircuit => "no_circuit",
        }
    }
}

/// An action and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub action: Action,
    pub reason: Reason,
}

/// Decides what happens to a received Ethernet frame. No circuits exist yet, so every frame passes.
#[inline(always)]
#[must_use]
pub fn decide<B: Bytes + ?Sized>(frame: &B) -> Verdict {
    let reason = match packet::parse(frame) {
        Ok(datagram) if datagram.mark == Some(RELAY_MARK) => Reason::NoCircuit,
        Ok(_) => Reason::NotRelay,
        Err(NotDatagram::Other) => Reason::Other,
        Err(NotDatagram::Fragment) => Reason::Fragment,
        Err(NotDatagram::Malformed) => Reason::Malformed,
    };
    Verdict { action: Action::Pass, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_slot_and_a_label_of_its_own() {
        for (slot, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(usize::try_from(reason.slot()), Ok(slot));
            assert_eq!(Reason::ALL.iter().filter(|other| other.label() == reason.label()).count(), 1);
        }
    }

    #[test]
    fn frames_that_are_not_for_pollen_pass() {
        for frame in [[0u8; 0].as_slice(), &[0; 60], &[0xff; 1500]] {
            assert_eq!(decide(frame).action, Action::Pass);
        }
    }
}
