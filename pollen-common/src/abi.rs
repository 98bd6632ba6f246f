//! The kernel layer's shared types: maps and counters as both sides of the eBPF boundary lay them out.
//! Byte arrays only: no padding, no byte order to forget. No allocation, no `std`; values are made by constructors.
//! Invariant: a layout that an object was built with is the layout that the daemon reads it with.

/// The name of the per-CPU array of `u64` that counts frames by [`Reason`](crate::verdict::Reason), one slot each.
pub const COUNTERS: &str = "COUNTERS";

/// The name of the XDP program.
pub const PROGRAM: &str = "pollen";

/// An IP address and UDP port: sixteen bytes of address (IPv4 as `::ffff:a.b.c.d`), two of port, network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    address: [u8; 16],
    port: [u8; 2],
}

impl Endpoint {
    /// From an IPv4 address and a port in network order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(a: [u8; 4], port: [u8; 2]) -> Self {
        Self { address: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]], port }
    }

    /// From an IPv6 address and a port in network order.
    #[inline(always)]
    #[must_use]
    pub const fn v6(address: [u8; 16], port: [u8; 2]) -> Self {
        Self { address, port }
    }

    /// The address, IPv4 as `::ffff:a.b.c.d`.
    #[inline(always)]
    #[must_use]
    pub const fn address(&self) -> [u8; 16] {
        self.address
    }

    /// The port, in host order.
    #[inline(always)]
    #[must_use]
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_no_padding_and_one_form_for_both_families() {
        assert_eq!((size_of::<Endpoint>(), align_of::<Endpoint>()), (18, 1));
        let mapped = core::net::Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped().octets();
        assert_eq!(Endpoint::v4([10, 1, 2, 3], [0xec, 0xc3]), Endpoint::v6(mapped, [0xec, 0xc3]));
        assert_eq!(Endpoint::v6(mapped, [0xec, 0xc3]).port(), 60611);
    }
}
