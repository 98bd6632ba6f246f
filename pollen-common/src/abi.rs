//! The kernel layer's shared types: labels and what they mean, maps and counters as both sides of the eBPF boundary lay
//! them out.
//! Words as they lie in packets, four-byte aligned and without padding: what the kernel's machine compares and adds in one
//! step each, where arrays of bytes would take as many steps as bytes, and more stack than it has. No allocation, no
//! `std`; values are made by constructors.
//! Invariant: a layout that an object was built with is the layout that the daemon reads it with.

/// The name of the XDP program.
pub const PROGRAM: &str = "pollen";

/// The name of the per-CPU array of [`Count`] by [`Reason`](crate::verdict::Reason), one slot each.
pub const COUNTERS: &str = "COUNTERS";

/// The name of the array of [`Entry`] by a label's slot.
pub const LABELS: &str = "LABELS";

/// The name of the array of [`Count`] by a label's slot: what was sent on under it, and under those that had its slot
/// before.
pub const PASSED: &str = "PASSED";

/// The name of the hash of [`Endpoint`]s at which this node takes datagrams. The value means nothing.
pub const HERE: &str = "HERE";

/// Labels at once.
pub const LABELS_MAX: u32 = 32_768;

/// Addresses of one machine that are known to the kernel program; at others unknown labels are left to the sockets.
pub const HERE_MAX: u32 = 256;

/// What tells a circuit's frames from others: made by whoever receives them. The lower half is a slot of its table, the
/// upper half counts what had that slot before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(pub u32);

impl Label {
    #[must_use]
    pub const fn new(slot: u16, generation: u16) -> Self {
        Self((generation as u32) << 16 | slot as u32)
    }

    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.0 & 0xffff
    }

    #[must_use]
    pub const fn generation(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// What a label means to the node that made it. `P` is how nodes are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use<P> {
    /// Frames from `from` go on to `to`, under the label that that one made.
    Hop { from: P, to: P, out: Label },
    /// Frames from the relay are of `peer`, and what is sent there goes to the relay under its label.
    End { relay: P, peer: P, out: Label },
}

/// Frames and their bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub frames: u64,
    pub bytes: u64,
}

/// An IP address and UDP port, in network order (IPv4 as `::ffff:a.b.c.d`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    address: [u32; 4],
    port: u16,
    zero: u16,
}

/// The third word of an IPv4 address in its mapped form.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Endpoint {
    /// From an IPv4 address and a port in network order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(address: [u8; 4], port: [u8; 2]) -> Self {
        Self::of_ipv4(u32::from_ne_bytes(address), u16::from_ne_bytes(port))
    }

    /// From an IPv6 address and a port in network order.
    #[inline(always)]
    #[must_use]
    pub const fn v6(address: [u8; 16], port: [u8; 2]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
        let words = [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]];
        let [a, b, c, d] = words;
        let address = [u32::from_ne_bytes(a), u32::from_ne_bytes(b), u32::from_ne_bytes(c), u32::from_ne_bytes(d)];
        Self::of_ipv6(address, u16::from_ne_bytes(port))
    }

    /// From words as they lie in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn of_ipv4(address: u32, port: u16) -> Self {
        Self { address: [0, 0, MAPPED, address], port, zero: 0 }
    }

    /// From words as they lie in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn of_ipv6(address: [u32; 4], port: u16) -> Self {
        Self { address, port, zero: 0 }
    }

    /// The address in the words of a packet.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u32; 4] {
        self.address
    }

    /// The IPv4 address in the word of a packet, where it is one.
    #[inline(always)]
    #[must_use]
    pub const fn ipv4(&self) -> Option<u32> {
        match self.address {
            [0, 0, MAPPED, address] => Some(address),
            _ => None,
        }
    }

    /// The port as it lies in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn port_word(&self) -> u16 {
        self.port
    }

    /// The port, in host order.
    #[inline(always)]
    #[must_use]
    pub const fn port(&self) -> u16 {
        u16::from_be(self.port)
    }
}

// Derived, it would be a call that compares memory, for which the words would have to lie there.
impl PartialEq for Endpoint {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.address, other.address);
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) | u32::from(self.port ^ other.port) == 0
    }
}

/// Both ends of a circuit's leg, as this node sees them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The peer.
    pub remote: Endpoint,
    /// This node.
    pub local: Endpoint,
}

/// An Ethernet address, as it lies in a frame.
pub type Mac = [u16; 3];

/// How frames leave for a leg's peer, over Ethernet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface's index.
    pub interface: u32,
    /// The most bytes of an IP packet; 0 where the next hop is not known.
    pub mtu: u32,
    /// The interface's own.
    pub source: Mac,
    pub destination: Mac,
}

impl NextHop {
    /// Frames are left to the sockets.
    pub const UNKNOWN: Self = Self { interface: 0, mtu: 0, source: [0; 3], destination: [0; 3] };
}

const FREE: u32 = 0;
const END: u32 = 1;
const HOP: u32 = 2;

/// What a label means to the kernel program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    label: u32,
    out: u32,
    kind: u32,
    from: Leg,
    to: Leg,
    /// To `to`.
    pub next: NextHop,
}

impl Entry {
    const NOWHERE: Leg = Leg { remote: Endpoint::of_ipv6([0; 4], 0), local: Endpoint::of_ipv6([0; 4], 0) };

    /// Of a slot whose label means nothing.
    pub const FREE: Self =
        Self { label: 0, out: 0, kind: FREE, from: Self::NOWHERE, to: Self::NOWHERE, next: NextHop::UNKNOWN };

    /// Its frames are for this node, or for the sockets to send on.
    #[must_use]
    pub const fn end(label: Label) -> Self {
        Self { label: label.0, kind: END, ..Self::FREE }
    }

    /// Its frames come from `from` and go on to `to` by `next`, under the label `out`.
    #[must_use]
    pub const fn hop(label: Label, from: Leg, to: Leg, next: NextHop, out: Label) -> Self {
        Self { label: label.0, out: out.0, kind: HOP, from, to, next }
    }

    /// Whether it is about this label, and not about one that had its slot before or will have it.
    #[inline(always)]
    #[must_use]
    pub fn is_of(&self, label: Label) -> bool {
        self.kind != FREE && self.label == label.0
    }

    /// Where frames go on, if they do: the ends of both legs, and the label.
    #[inline(always)]
    #[must_use]
    pub const fn means(&self) -> Option<Use<&Leg>> {
        match self.kind {
            HOP => Some(Use::Hop { from: &self.from, to: &self.to, out: Label(self.out) }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_one_form_for_both_families() {
        let mapped = core::net::Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped().octets();
        let v4 = Endpoint::v4([10, 1, 2, 3], [0xec, 0xc3]);
        assert_eq!(v4, Endpoint::v6(mapped, [0xec, 0xc3]));
        assert_eq!((v4.port(), v4.ipv4().map(u32::to_ne_bytes)), (60611, Some([10, 1, 2, 3])));
        let v6 = Endpoint::v6([0xfd; 16], [0xec, 0xc3]);
        assert_eq!((v6.ipv4(), v6 == v4, v6 == Endpoint::v6([0xfd; 16], [0xec, 0xc4])), (None, false, false));
        for at in 0..16 {
            let mut other = [0xfd; 16];
            other[at] ^= 1;
            assert_ne!(v6, Endpoint::v6(other, [0xec, 0xc3]), "byte {at}");
        }
    }

    #[test]
    fn what_maps_hold_has_no_padding() {
        assert_eq!(
            (size_of::<Endpoint>(), size_of::<Leg>(), size_of::<NextHop>(), size_of::<Count>()),
            (20, 40, 20, 16)
        );
        assert_eq!((size_of::<Entry>(), align_of::<Entry>()), (4 + 4 + 4 + 40 + 40 + 20, 4));
    }

    #[test]
    fn an_entry_is_of_one_label_only() {
        let label = Label::new(3, 1);
        let hop = Entry::hop(label, Entry::NOWHERE, Entry::NOWHERE, NextHop::UNKNOWN, Label(9));
        assert!(hop.is_of(label) && !hop.is_of(Label::new(3, 2)) && !Entry::FREE.is_of(Label(0)));
        assert!(Entry::end(label).is_of(label) && Entry::end(label).means().is_none());
        assert_eq!(hop.means(), Some(Use::Hop { from: &hop.from, to: &hop.to, out: Label(9) }));
    }
}
