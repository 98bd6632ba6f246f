//! The only forwarding decision: every rung of the datapath calls [`judge`], the sockets by [`Labels`](crate::circuit::Labels)
//! and what sees Ethernet frames by [`decide`], so that no two can disagree.
//! Knows frames, not where they came from: the caller carries the verdict out.
//! Invariant: each frame has exactly one verdict, and its reason is counted under one label on every rung.

pub use crate::abi::Use;
use crate::abi::{Endpoint, Entry, Leg};
use crate::packet::{self, Bytes, Datagram, Ip, Label, NotDatagram, RelayHeader};

/// What becomes of a circuit's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement<P> {
    /// Send it on, under this label.
    Forward {
        to: P,
        out: Label,
    },
    /// It is for this node: the packet in it came from `peer`.
    Deliver {
        peer: P,
    },
    Drop(Dropped),
}

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// No frame of this version.
    Malformed,
    /// No circuit has this label, or none has it any more.
    Label,
    /// It came from another than the one for whom the label was made.
    Source,
}

/// What becomes of a frame with this label, which means this; `came_from` says whether its source belongs to a node.
#[inline(always)]
pub fn judge<P: Copy>(label: Option<Label>, means: Option<Use<P>>, came_from: impl Fn(P) -> bool) -> Judgement<P> {
    match (label, means) {
        (None, _) => Judgement::Drop(Dropped::Malformed),
        (_, None) => Judgement::Drop(Dropped::Label),
        (_, Some(Use::Hop { from, to, out })) if came_from(from) => Judgement::Forward { to, out },
        (_, Some(Use::End { relay, peer, .. })) if came_from(relay) => Judgement::Deliver { peer },
        (_, Some(Use::Hop { .. } | Use::End { .. })) => Judgement::Drop(Dropped::Source),
    }
}

/// What is known of circuits where Ethernet frames are seen.
pub trait Table {
    /// What is at a label's slot.
    fn entry(&self, slot: u32) -> Option<&Entry>;
    /// Whether this node takes datagrams there.
    fn is_here(&self, at: &Endpoint) -> bool;
}

/// What is to be done with an Ethernet frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'t> {
    /// Leave it to the network stack.
    Pass,
    Drop,
    /// Address it anew and send it on.
    Forward(Forward<'t>),
}

/// How a frame goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward<'t> {
    /// Of the label under which it came.
    pub slot: u32,
    pub datagram: Datagram,
    pub entry: &'t Entry,
    pub to: &'t Leg,
    pub out: Label,
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
    /// A datagram that is no circuit's frame.
    NotRelay = 3,
    /// A circuit's frame for this node, and no circuit has its label. Dropped.
    NoCircuit = 4,
    /// It looks like a circuit's frame, and is for somebody else.
    Elsewhere = 5,
    /// Not one frame of this version: several that were merged, or garbage. The sockets see to it.
    Merged = 6,
    /// For this node itself, or for the sockets to send on.
    End = 7,
    /// From another address than the one at which the label's owner was last. The sockets know whether it has several.
    Source = 8,
    /// An IPv4 packet with options.
    Options = 9,
    /// Its checksum is left for hardware to complete, which is not possible from here.
    Checksum = 10,
    /// It goes on in the other family.
    Family = 11,
    /// Where it goes on is not known here.
    NoRoute = 12,
    /// Longer than what the next hop takes.
    TooLong = 13,
    /// Sent on.
    Forwarded = 14,
}

impl Reason {
    /// Every reason, each at the index that is its counter's slot.
    pub const ALL: [Self; 15] = [
        Self::Other,
        Self::Fragment,
        Self::Malformed,
        Self::NotRelay,
        Self::NoCircuit,
        Self::Elsewhere,
        Self::Merged,
        Self::End,
        Self::Source,
        Self::Options,
        Self::Checksum,
        Self::Family,
        Self::NoRoute,
        Self::TooLong,
        Self::Forwarded,
    ];

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
            Self::Elsewhere => "elsewhere",
            Self::Merged => "merged",
            Self::End => "end",
            Self::Source => "source",
            Self::Options => "options",
            Self::Checksum => "checksum",
            Self::Family => "family",
            Self::NoRoute => "no_route",
            Self::TooLong => "too_long",
            Self::Forwarded => "forwarded",
        }
    }
}

/// An action and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'t> {
    pub action: Action<'t>,
    pub reason: Reason,
}

/// Decides what happens to a received Ethernet frame.
#[inline(always)]
#[must_use]
pub fn decide<'t, B: Bytes + ?Sized, T: Table>(frame: &B, table: &'t T) -> Verdict<'t> {
    match forward(frame, table) {
        Ok(forward) => Verdict { action: Action::Forward(forward), reason: Reason::Forwarded },
        Err(Reason::NoCircuit) => Verdict { action: Action::Drop, reason: Reason::NoCircuit },
        Err(reason) => Verdict { action: Action::Pass, reason },
    }
}

/// How a frame goes on, or why not.
#[inline(always)]
fn forward<'t, B: Bytes + ?Sized, T: Table>(frame: &B, table: &'t T) -> Result<Forward<'t>, Reason> {
    let datagram = packet::parse(frame)?;
    let header = RelayHeader::load(frame, datagram.payload_offset).ok_or(Reason::NotRelay)?;
    if !header.is_marked() {
        return Err(Reason::NotRelay);
    }
    let label = header.label(usize::from(datagram.payload_len)).ok_or(Reason::Merged)?;
    let slot = label.slot();
    let Some(entry) = table.entry(slot).filter(|entry| entry.is_of(label)) else {
        return Err(if table.is_here(&datagram.destination) { Reason::NoCircuit } else { Reason::Elsewhere });
    };
    let means = entry.means().ok_or(Reason::End)?;
    let from = Leg { remote: datagram.source, local: datagram.destination };
    let Judgement::Forward { to, out } = judge(Some(label), Some(means), |leg| *leg == from) else {
        return Err(Reason::Source);
    };
    let next = &entry.next;
    if (datagram.ip == Ip::V6) == to.remote.ipv4().is_some() {
        return Err(Reason::Family);
    }
    if next.mtu == 0 {
        return Err(Reason::NoRoute);
    }
    if u32::from(datagram.ip_len) > next.mtu {
        return Err(Reason::TooLong);
    }
    if datagram.ip == Ip::V6 && (datagram.checksum == 0 || datagram.checksum == datagram.pseudo_header()) {
        return Err(Reason::Checksum);
    }
    Ok(Forward { slot, datagram, entry, to, out })
}

impl From<NotDatagram> for Reason {
    #[inline(always)]
    fn from(why: NotDatagram) -> Self {
        match why {
            NotDatagram::Other => Self::Other,
            NotDatagram::Fragment => Self::Fragment,
            NotDatagram::Options => Self::Options,
            NotDatagram::Malformed => Self::Malformed,
        }
    }
}

#[cfg(test)]
mod tests;
