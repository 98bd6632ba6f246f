//! The written form of a policy, in a claim, an offer or beside a port. Owns the format; must not judge anyone.
//! Invariant: there is one form for each policy, and a clause that is unknown here refuses the whole entry.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::convert::Infallible;

use minicbor::{Decoder, Encoder};

use super::{Unread, fields_of, list};
use crate::identity::NodeKey;
use crate::roll::Tier;
use crate::views::policy::Policy;

const TIERS: [Tier; 3] = [Tier::Leaf, Tier::Publisher, Tier::Admin];

/// The bytes of a policy alone, as a node keeps it for what it serves.
#[must_use]
pub fn policy_bytes(policy: &Policy) -> Vec<u8> {
    super::written(|e| write(e, policy))
}

/// The policy in such bytes.
///
/// # Errors
/// If they say something else, or more than this version knows.
pub fn policy_in(bytes: &[u8]) -> Result<Policy, Unread> {
    let mut d = Decoder::new(bytes);
    let policy = read(&mut d)?;
    if d.position() == bytes.len() { Ok(policy) } else { Err(Unread::Malformed) }
}

pub(super) fn write(e: &mut Encoder<&mut Vec<u8>>, policy: &Policy) -> Result<(), minicbor::encode::Error<Infallible>> {
    let Policy { peers, tier, props } = policy;
    let clauses = u64::from(!peers.is_empty()) + u64::from(tier.is_some()) + u64::from(!props.is_empty());
    e.map(clauses)?;
    if !peers.is_empty() {
        e.u8(0)?.array(peers.len() as u64)?;
        peers.iter().try_for_each(|peer| e.bytes(&peer.0).map(drop))?;
    }
    if let Some(tier) = tier {
        e.u8(1)?.u8(*tier as u8)?;
    }
    if !props.is_empty() {
        e.u8(2)?.map(props.len() as u64)?;
        props.iter().try_for_each(|(key, value)| e.str(key)?.str(value).map(drop))?;
    }
    Ok(())
}

pub(super) fn read(d: &mut Decoder<'_>) -> Result<Policy, Unread> {
    let mut policy = Policy::default();
    fields_of(d, |clause, d| {
        match clause {
            0 => policy.peers = read_peers(d)?,
            1 => policy.tier = Some(*TIERS.get(usize::from(d.u8()?)).ok_or(Unread::Clause)?),
            2 => policy.props = read_props(d)?,
            _ => return Err(Unread::Clause),
        }
        Ok(true)
    })?;
    if policy.fits() { Ok(policy) } else { Err(Unread::Malformed) }
}

/// In ascending order, and at least one: an empty list would be a clause that bounds nothing.
fn read_peers(d: &mut Decoder<'_>) -> Result<BTreeSet<NodeKey>, Unread> {
    let peers = list(d, Policy::PEERS_MAX, |d| NodeKey::try_from(d.bytes()?).map_err(|_| Unread::Malformed))?;
    if peers.is_empty() || !peers.is_sorted_by(|a, b| a < b) {
        return Err(Unread::Malformed);
    }
    Ok(peers.into_iter().collect())
}

fn read_props(d: &mut Decoder<'_>) -> Result<BTreeMap<String, String>, Unread> {
    let len = d.map()?.and_then(|len| usize::try_from(len).ok()).filter(|len| (1..=Policy::PROPS_MAX).contains(len));
    let mut props: BTreeMap<String, String> = BTreeMap::new();
    for _ in 0..len.ok_or(Unread::Malformed)? {
        let (key, value) = (d.str()?, d.str()?);
        if props.last_key_value().is_some_and(|(last, _)| last.as_str() >= key) {
            return Err(Unread::Malformed);
        }
        props.insert(key.into(), value.into());
    }
    Ok(props)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Policy {
        Policy {
            peers: [NodeKey([1; 32]), NodeKey([2; 32])].into(),
            tier: Some(Tier::Publisher),
            props: [("env".into(), "prod".into()), ("gpu".into(), String::new())].into(),
        }
    }

    #[test]
    fn what_is_written_is_read_again_in_one_form() {
        for policy in [Policy::default(), full(), Policy { peers: BTreeSet::new(), ..full() }] {
            assert_eq!(policy_in(&policy_bytes(&policy)), Ok(policy));
        }
        let bytes = policy_bytes(&full());
        for len in 0..bytes.len() {
            assert!(policy_in(&bytes[..len]).is_err(), "{len} bytes of it");
        }
        assert!(policy_in(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn unknown_clauses_and_other_forms_are_refused() {
        let clause = [0xa1, 3, 0xf5];
        assert_eq!(policy_in(&clause), Err(Unread::Clause));
        assert_eq!(policy_in(&[0xa1, 1, 3]), Err(Unread::Clause), "a tier of a later version");
        let empty: [&[u8]; 2] = [&[0xa1, 0, 0x80], &[0xa1, 2, 0xa0]];
        let unordered: [&[u8]; 2] = [&[0xa2, 1, 0, 1, 0], &[0xa1, 2, 0xa2, 0x61, b'b', 0x60, 0x61, b'a', 0x60]];
        for bytes in empty.into_iter().chain(unordered) {
            assert_eq!(policy_in(bytes), Err(Unread::Malformed), "{bytes:?}");
        }
        let twice = [&[0xa1, 0, 0x82][..], &[0x58, 32], &[1; 32], &[0x58, 32], &[1; 32]].concat();
        assert_eq!(policy_in(&twice), Err(Unread::Malformed));
    }

    #[test]
    fn a_policy_is_bounded() {
        let many = |count: usize| {
            let peers = (0..count).map(|n| {
                let mut key = [0; 32];
                key[..8].copy_from_slice(&(n as u64).to_be_bytes());
                NodeKey(key)
            });
            Policy { peers: peers.collect(), ..Policy::default() }
        };
        assert!(policy_in(&policy_bytes(&many(Policy::PEERS_MAX))).is_ok());
        assert_eq!(policy_in(&policy_bytes(&many(Policy::PEERS_MAX + 1))), Err(Unread::Malformed));
        let long = "x".repeat(Policy::TEXT_BYTES_MAX + 1);
        let long = Policy { props: [("env".into(), long)].into(), ..Policy::default() };
        assert_eq!(policy_in(&policy_bytes(&long)), Err(Unread::Malformed));
    }
}
