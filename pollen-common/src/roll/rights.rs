//! What an edge grants, and the meet of several. Knows nothing of who granted it.
//! Invariant: `meet` never gives more than either side, so a chain of edges gives at most its weakest.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use minicbor::Decoder;

use super::cbor::{Error, Writer, Written, definite, read_map, required};
use crate::time::UnixMs;

/// What a member may do; each contains the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Connects and calls.
    Leaf,
    /// Also publishes names, services, seeds.
    Publisher,
    /// Also admits others.
    Admin,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Leaf => "leaf",
            Self::Publisher => "publisher",
            Self::Admin => "admin",
        })
    }
}

/// What an edge grants, and what the meet of several leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    pub tier: Tier,
    pub props: BTreeMap<String, String>,
    /// Properties that the subject may hand on: exact pairs, or [`Rights::ANY`] for every value of a key, or as key
    /// and value both for everything.
    pub grantable: BTreeMap<String, String>,
    /// KiB that this member may replicate, at least [`Rights::QUOTA_KIB_MIN`].
    pub quota_kib: u32,
    /// KiB that all it admits may use together.
    pub pool_kib: u32,
    /// Name prefixes that it wins outright.
    pub prefixes: Vec<String>,
    /// When the membership ends, by the reader's clock.
    pub expires: Option<UnixMs>,
}

impl Rights {
    /// Stands for any key or any value in `grantable`.
    pub const ANY: &'static str = "*";
    /// Below this a member could not even say where it can be reached.
    pub const QUOTA_KIB_MIN: u32 = 64;
    /// A publisher's and an admin's quota unless told otherwise: thousands of names.
    pub const QUOTA_KIB_PUBLISHER: u32 = 1024;
    /// An admin's pool unless told otherwise: some 250 publishers or 4,000 leaves.
    pub const POOL_KIB_ADMIN: u32 = 256 * 1024;
    /// The first admin's pool, which all others share.
    pub const POOL_KIB_FIRST_ADMIN: u32 = 1024 * 1024;

    /// The defaults of a tier: no properties; admins may hand on any.
    #[must_use]
    pub fn of(tier: Tier) -> Self {
        let any = || BTreeMap::from([(String::from(Self::ANY), String::from(Self::ANY))]);
        let admin = tier == Tier::Admin;
        Self {
            tier,
            props: BTreeMap::new(),
            grantable: if admin { any() } else { BTreeMap::new() },
            quota_kib: if tier == Tier::Leaf { Self::QUOTA_KIB_MIN } else { Self::QUOTA_KIB_PUBLISHER },
            pool_kib: if admin { Self::POOL_KIB_ADMIN } else { 0 },
            prefixes: Vec::new(),
            expires: None,
        }
    }

    /// What the root gives the cluster's first node.
    #[must_use]
    pub fn first_admin() -> Self {
        Self { pool_kib: Self::POOL_KIB_FIRST_ADMIN, ..Self::of(Tier::Admin) }
    }

    /// What is left when both bind. Properties are `self`'s alone: they are the last edge's, filtered by
    /// [`Rights::may_grant`], not intersected.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        Self {
            tier: self.tier.min(other.tier),
            props: self.props.clone(),
            grantable: both_grant(self, other),
            quota_kib: self.quota_kib.min(other.quota_kib),
            pool_kib: self.pool_kib.min(other.pool_kib),
            prefixes: both_cover(&self.prefixes, &other.prefixes),
            expires: [self.expires, other.expires].into_iter().flatten().min(),
        }
    }

    /// Whether the holder may hand this property on.
    #[must_use]
    pub fn may_grant(&self, key: &str, value: &str) -> bool {
        [key, Self::ANY].into_iter().any(|key| self.grantable.get(key).is_some_and(|v| v == value || v == Self::ANY))
    }

    pub(super) fn write(&self, e: &mut Writer<'_>) -> Written {
        let text_map = |e: &mut Writer<'_>, map: &BTreeMap<String, String>| -> Written {
            e.map(map.len() as u64)?;
            map.iter().try_for_each(|(key, value)| e.str(key)?.str(value)?.ok())
        };
        let fields = 3
            + u64::from(!self.props.is_empty())
            + u64::from(!self.grantable.is_empty())
            + u64::from(!self.prefixes.is_empty())
            + u64::from(self.expires.is_some());
        e.map(fields)?.u64(0)?.u8(self.tier as u8)?.u64(1)?.u32(self.quota_kib)?.u64(2)?.u32(self.pool_kib)?;
        if !self.props.is_empty() {
            text_map(e.u64(3)?, &self.props)?;
        }
        if !self.grantable.is_empty() {
            text_map(e.u64(4)?, &self.grantable)?;
        }
        if !self.prefixes.is_empty() {
            e.u64(5)?.array(self.prefixes.len() as u64)?;
            self.prefixes.iter().try_for_each(|prefix| e.str(prefix)?.ok())?;
        }
        if let Some(expires) = self.expires {
            e.u64(6)?.u64(expires.0)?;
        }
        Ok(())
    }

    /// The rights, and whether every clause of them is known here: where one is not, the edge grants nothing.
    pub(super) fn read(d: &mut Decoder<'_>) -> Result<(Self, bool), Error> {
        let (mut tier, mut quota, mut pool) = (None, None, None);
        let mut known_tier = true;
        let mut rights = Self::of(Tier::Leaf);
        let understood = read_map(d, |key, d| {
            match key {
                0 => {
                    let number = d.u8()?;
                    tier = Some([Tier::Leaf, Tier::Publisher, Tier::Admin].get(usize::from(number)).copied());
                    known_tier = tier.flatten().is_some();
                }
                1 => quota = Some(d.u32()?),
                2 => pool = Some(d.u32()?),
                3 => rights.props = read_text_map(d)?,
                4 => rights.grantable = read_text_map(d)?,
                5 => {
                    for _ in 0..definite(d.array()?)? {
                        rights.prefixes.push(d.str()?.into());
                    }
                }
                6 => rights.expires = Some(UnixMs(d.u64()?)),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        rights.tier = required(tier, "rights without a tier")?.unwrap_or(Tier::Leaf);
        rights.quota_kib = required(quota, "rights without a quota")?;
        rights.pool_kib = required(pool, "rights without a pool")?;
        if rights.quota_kib < Self::QUOTA_KIB_MIN {
            return Err(Error::message("a quota below the least"));
        }
        Ok((rights, understood && known_tier))
    }
}

fn read_text_map(d: &mut Decoder<'_>) -> Result<BTreeMap<String, String>, Error> {
    let mut map = BTreeMap::new();
    for _ in 0..definite(d.map()?)? {
        let (key, value) = (d.str()?, d.str()?);
        if map.last_key_value().is_some_and(|(last, _): (&String, _)| last.as_str() >= key) {
            return Err(Error::message("keys of a map must ascend"));
        }
        map.insert(key.into(), value.into());
    }
    Ok(map)
}

/// The entries of either that the other covers. A pair of patterns whose overlap is neither of them (any key with
/// one value, one key with any) is left out: less, never more.
fn both_grant(a: &Rights, b: &Rights) -> BTreeMap<String, String> {
    let covered = |from: &Rights, by: &Rights| -> Vec<(String, String)> {
        let covers = |(key, value): &(&String, &String)| match (key.as_str(), value.as_str()) {
            (Rights::ANY, Rights::ANY) => by.grantable.get(Rights::ANY).is_some_and(|v| v == Rights::ANY),
            (Rights::ANY, value) => by.grantable.get(Rights::ANY).is_some_and(|v| v == Rights::ANY || v == value),
            (key, value) => by.may_grant(key, value),
        };
        from.grantable.iter().filter(covers).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    let mut both: BTreeMap<_, _> = covered(a, b).into_iter().collect();
    both.extend(covered(b, a));
    both
}

/// The prefixes of either that lie within one of the other's.
fn both_cover(a: &[String], b: &[String]) -> Vec<String> {
    let within = |prefix: &&String, of: &[String]| of.iter().any(|outer| prefix.starts_with(outer.as_str()));
    let mut both: Vec<String> =
        a.iter().filter(|p| within(p, b)).chain(b.iter().filter(|p| within(p, a))).cloned().collect();
    both.sort();
    both.dedup();
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    }

    #[test]
    fn a_meet_is_never_more_than_either() {
        let wide = Rights { prefixes: alloc::vec!["team-".into()], ..Rights::first_admin() };
        let narrow = Rights {
            grantable: map(&[("region", "eu"), ("zone", "*")]),
            prefixes: alloc::vec!["team-a-".into(), "other-".into()],
            expires: Some(UnixMs(9)),
            ..Rights::of(Tier::Publisher)
        };
        let met = wide.meet(&narrow);
        assert_eq!(met.tier, Tier::Publisher);
        assert_eq!(met.grantable, narrow.grantable, "everything covers the pairs");
        assert_eq!(met.prefixes, ["team-a-"]);
        assert_eq!((met.quota_kib, met.pool_kib, met.expires), (1024, 0, Some(UnixMs(9))));
        assert_eq!(narrow.meet(&wide), met);
    }

    #[test]
    fn grantable_pairs_and_wildcards_intersect() {
        let with = |pairs| Rights { grantable: map(pairs), ..Rights::of(Tier::Admin) };
        let any_zone = with(&[("zone", "*")]);
        assert!(any_zone.may_grant("zone", "a") && !any_zone.may_grant("region", "a"));
        assert_eq!(any_zone.meet(&with(&[("zone", "a"), ("gpu", "yes")])).grantable, map(&[("zone", "a")]));
        assert_eq!(any_zone.meet(&with(&[("zone", "*")])).grantable, map(&[("zone", "*")]));
        assert_eq!(with(&[("*", "x")]).meet(&any_zone).grantable, map(&[]), "less rather than more");
    }
}
