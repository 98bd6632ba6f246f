//! Where other members see this node: the addresses that translators (NATs) on the way give its one socket, and what
//! kind of translator that makes. Owns what was reported, its bound and its age; asks and sends nothing.
//! Invariant: no report counts for more than one address of a reporter's, and no kind is said on one reporter's word.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use crate::identity::NodeKey;
use crate::time::Instant;

/// Reports kept. Two tell the kind of a translator; the rest is for reporters that go, and for liars.
pub const REPORTS_MAX: usize = 16;
/// A report that is older says nothing any more.
pub const REPORT_AGE_MAX: Duration = Duration::from_secs(10 * 60);
/// Addresses that a node offers to a peer, of both families together.
pub const CANDIDATES_MAX: usize = 4;

/// What kind of translator stands between a node and others, in one family of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum NatKind {
    /// Too few have reported.
    #[default]
    Unknown,
    /// None: others see an address that it has.
    None,
    /// One mapping for all destinations ("endpoint-independent mapping"): whoever is told of it can use it.
    Easy,
    /// A mapping for each destination: what one sees helps no other.
    Hard,
}

impl NatKind {
    /// Its number on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::None => 1,
            Self::Easy => 2,
            Self::Hard => 3,
        }
    }

    /// The kind of a number; unknown for what a later version may say.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::None,
            2 => Self::Easy,
            3 => Self::Hard,
            _ => Self::Unknown,
        }
    }

    /// As status says it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::None => "none",
            Self::Easy => "easy",
            Self::Hard => "hard",
        }
    }
}

/// The kinds in both families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nats {
    pub v4: NatKind,
    pub v6: NatKind,
}

impl Nats {
    /// Whether two nodes of these kinds cannot meet without guessing ports, in any family in which both are seen.
    #[must_use]
    pub fn is_hopeless_with(self, other: Self) -> bool {
        let pairs = [(self.v4, other.v4), (self.v6, other.v6)];
        let mut seen = pairs.iter().filter(|(a, b)| *a != NatKind::Unknown && *b != NatKind::Unknown).peekable();
        seen.peek().is_some() && seen.all(|(a, b)| (*a, *b) == (NatKind::Hard, NatKind::Hard))
    }
}

/// What one member said.
#[derive(Clone, Copy, Debug)]
struct Report {
    /// Where the member is: two at one address may share a mapping that others do not.
    from: IpAddr,
    mapped: SocketAddr,
    /// The node has this very address.
    own: bool,
    at: Instant,
}

/// What members said of where they see this node. One report for each member and family.
#[derive(Clone, Debug, Default)]
pub struct Mappings {
    reports: BTreeMap<(NodeKey, bool), Report>,
}

impl Mappings {
    /// `reporter`, which is at `from`, sees this node at `mapped`; `own` if that is an address that the node has. What
    /// is full takes a mapped address in place of an own one, and nothing else.
    pub fn add(&mut self, reporter: NodeKey, from: IpAddr, mapped: SocketAddr, own: bool, now: Instant) {
        self.reports.retain(|_, report| now.since(report.at) < REPORT_AGE_MAX);
        let (from, mapped) = (from.to_canonical(), SocketAddr::new(mapped.ip().to_canonical(), mapped.port()));
        let place = (reporter, mapped.is_ipv6());
        if self.reports.len() >= REPORTS_MAX && !self.reports.contains_key(&place) {
            let gives_way = self.reports.iter().find(|(_, report)| report.own).map(|(place, _)| *place);
            match gives_way.filter(|_| !own) {
                Some(gives_way) => drop(self.reports.remove(&gives_way)),
                None => return,
            }
        }
        self.reports.insert(place, Report { from, mapped, own, at: now });
    }

    /// Forgets what `reporter` said: it could not be reached for a while, so one of the two may have moved.
    pub fn forget(&mut self, reporter: &NodeKey) {
        for v6 in [false, true] {
            self.reports.remove(&(*reporter, v6));
        }
    }

    /// How old the newest report of `reporter` is.
    #[must_use]
    pub fn age(&self, reporter: &NodeKey, now: Instant) -> Option<Duration> {
        self.of(reporter).map(|report| now.since(report.at)).min()
    }

    /// Whether `reporter` sees this node where it is not: behind a translator.
    #[must_use]
    pub fn sees_mapped(&self, reporter: &NodeKey) -> bool {
        self.of(reporter).any(|report| !report.own)
    }

    fn of<'a>(&'a self, reporter: &NodeKey) -> impl Iterator<Item = &'a Report> {
        [false, true].map(|v6| self.reports.get(&(*reporter, v6))).into_iter().flatten()
    }

    /// What kinds of translator these reports come of.
    #[must_use]
    pub fn nats(&self, now: Instant) -> Nats {
        Nats { v4: self.kind(false, now), v6: self.kind(true, now) }
    }

    fn fresh(&self, v6: bool, now: Instant) -> impl Iterator<Item = &Report> {
        let fresh = move |report: &&Report| now.since(report.at) < REPORT_AGE_MAX && report.mapped.is_ipv6() == v6;
        self.reports.values().filter(fresh)
    }

    /// One liar cannot make an easy translator look hard where two honest members agree.
    fn kind(&self, v6: bool, now: Instant) -> NatKind {
        let mapped: Vec<&Report> = self.fresh(v6, now).filter(|report| !report.own).collect();
        let apart = |a: &Report, b: &Report| a.from != b.from;
        let agree = mapped.iter().any(|a| mapped.iter().any(|b| apart(a, b) && a.mapped == b.mapped));
        let differ = mapped.iter().any(|a| mapped.iter().any(|b| apart(a, b) && a.mapped != b.mapped));
        match (agree, differ) {
            (true, _) => NatKind::Easy,
            (false, true) => NatKind::Hard,
            (false, false) if mapped.is_empty() && self.fresh(v6, now).next().is_some() => NatKind::None,
            (false, false) => NatKind::Unknown,
        }
    }

    /// Where a peer may try to reach this node, the likeliest first: what most see, then what was seen last. Behind a
    /// hard translator one alone is of use: the peer's own may let in whatever comes from that address, of any port.
    #[must_use]
    pub fn candidates(&self, now: Instant) -> Vec<SocketAddr> {
        let mut ranked = Vec::new();
        for v6 in [false, true] {
            let mut seen: BTreeMap<SocketAddr, (usize, Instant)> = BTreeMap::new();
            for report in self.fresh(v6, now) {
                let (times, last) = seen.entry(report.mapped).or_default();
                (*times, *last) = (*times + 1, (*last).max(report.at));
            }
            let mut of_family: Vec<_> = seen.into_iter().map(|(addr, rank)| (Reverse(rank), addr)).collect();
            of_family.sort_unstable();
            of_family.truncate(if self.kind(v6, now) == NatKind::Hard { 1 } else { CANDIDATES_MAX });
            ranked.extend(of_family);
        }
        ranked.sort_unstable();
        ranked.truncate(CANDIDATES_MAX);
        ranked.into_iter().map(|(_, addr)| addr).collect()
    }
}

/// Whether a peer may be asked for at an address that it gives for itself: one that leads to another machine and to one
/// machine alone.
#[must_use]
pub fn may_be_asked(addr: &SocketAddr) -> bool {
    let usable = match addr.ip().to_canonical() {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        // A link-local address says nothing without the link, which only its owner knows.
        IpAddr::V6(ip) => {
            !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local()
        }
    };
    usable && addr.port() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant(1);

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Reports of members 1, 2, … at addresses of their own.
    fn reports(seen: &[(&str, bool)]) -> Mappings {
        let mut mappings = Mappings::default();
        for (n, (mapped, own)) in (1..).zip(seen) {
            mappings.add(NodeKey([n; 32]), IpAddr::from([192, 0, 2, n]), addr(mapped), *own, START);
        }
        mappings
    }

    #[test]
    fn the_kind_follows_from_what_several_see() {
        let kind = |seen: &[(&str, bool)]| reports(seen).nats(START).v4;
        assert_eq!(kind(&[]), NatKind::Unknown);
        assert_eq!(kind(&[("203.0.113.1:5", false)]), NatKind::Unknown, "one cannot tell");
        assert_eq!(kind(&[("203.0.113.1:5", false), ("203.0.113.1:5", false)]), NatKind::Easy);
        assert_eq!(kind(&[("203.0.113.1:5", false), ("203.0.113.1:6", false)]), NatKind::Hard);
        assert_eq!(kind(&[("10.0.0.1:5", true)]), NatKind::None);
        // Neighbours on the near side of it say nothing of it.
        let mixed = [("10.0.0.1:5", true), ("203.0.113.1:5", false), ("203.0.113.1:5", false)];
        assert_eq!(kind(&mixed), NatKind::Easy);
        assert_eq!(kind(&mixed[..2]), NatKind::Unknown);
    }

    #[test]
    fn a_liar_makes_no_easy_nat_hard_and_two_keys_at_one_address_agree_with_nobody() {
        let mut mappings = reports(&[("203.0.113.1:5", false), ("203.0.113.1:5", false), ("198.51.100.1:9", false)]);
        assert_eq!(mappings.nats(START).v4, NatKind::Easy);
        assert_eq!(mappings.candidates(START)[0], addr("203.0.113.1:5"), "what most see comes first");
        mappings = Mappings::default();
        for n in 1..=2 {
            mappings.add(NodeKey([n; 32]), IpAddr::from([192, 0, 2, 1]), addr("203.0.113.1:5"), false, START);
        }
        assert_eq!(mappings.nats(START).v4, NatKind::Unknown);
    }

    #[test]
    fn families_are_judged_apart_and_a_mapped_ipv4_address_is_ipv4() {
        let mut mappings = reports(&[("[::ffff:203.0.113.1]:5", false), ("203.0.113.1:5", false)]);
        mappings.add(NodeKey([9; 32]), addr("[2001:db8::9]:1").ip(), addr("[2001:db8::1]:5"), true, START);
        assert_eq!(mappings.nats(START), Nats { v4: NatKind::Easy, v6: NatKind::None });
        assert_eq!(mappings.candidates(START), [addr("203.0.113.1:5"), addr("[2001:db8::1]:5")]);
    }

    #[test]
    fn reports_age_and_are_bounded() {
        let mut mappings = Mappings::default();
        for n in 0..100 {
            let port = u16::from(n) + 1;
            mappings.add(
                NodeKey([n; 32]),
                IpAddr::from([192, 0, 2, n]),
                SocketAddr::from(([203, 0, 113, 1], port)),
                n % 2 == 0,
                START,
            );
        }
        assert_eq!(mappings.reports.len(), REPORTS_MAX);
        assert!(mappings.reports.values().all(|report| !report.own), "what is mapped displaced what is not");
        assert_eq!(mappings.candidates(START).len(), 1, "of a hard one, one");
        let later = START + REPORT_AGE_MAX;
        assert_eq!((mappings.nats(later), mappings.candidates(later)), (Nats::default(), Vec::new()));
        mappings.add(NodeKey([1; 32]), IpAddr::from([192, 0, 2, 1]), addr("203.0.113.1:5"), false, later);
        assert_eq!(mappings.reports.len(), 1);
        assert_eq!(mappings.age(&NodeKey([1; 32]), later), Some(Duration::ZERO));
        mappings.forget(&NodeKey([1; 32]));
        assert_eq!(mappings.age(&NodeKey([1; 32]), later), None);
    }

    #[test]
    fn two_hard_ones_are_hopeless_and_no_other_pair_is() {
        use NatKind::{Easy, Hard, None, Unknown};
        for a in [Unknown, None, Easy, Hard] {
            for b in [Unknown, None, Easy, Hard] {
                let of = |v4| Nats { v4, v6: Unknown };
                assert_eq!(of(a).is_hopeless_with(of(b)), (a, b) == (Hard, Hard), "{a:?} {b:?}");
            }
        }
        let with_v6 = Nats { v4: Hard, v6: None };
        assert!(!with_v6.is_hopeless_with(with_v6));
        assert!(with_v6.is_hopeless_with(Nats { v4: Hard, v6: Unknown }), "the other has no IPv6");
    }

    #[test]
    fn nobody_is_asked_for_where_no_other_machine_is() {
        for bad in ["127.0.0.1:5", "0.0.0.0:5", "224.0.0.1:5", "255.255.255.255:5", "[::1]:5", "[::]:5", "[ff02::1]:5"]
        {
            assert!(!may_be_asked(&addr(bad)), "{bad}");
        }
        for bad in ["[fe80::1]:5", "[::ffff:127.0.0.1]:5", "192.0.2.1:0"] {
            assert!(!may_be_asked(&addr(bad)), "{bad}");
        }
        assert!(may_be_asked(&addr("192.0.2.1:5")) && may_be_asked(&addr("[2001:db8::1]:5")));
    }
}
