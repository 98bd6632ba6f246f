//! Who may use a service: the clauses that bound it, and the judgement of one caller by them. Pure; owns the rule by which
//! clauses combine and the sentences about it. Must not know where a policy is stored, nor who enforces it.
//! Invariant: every answer has its reason, and a caller is judged by what the roll says of it alone.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use super::{Provider, ServiceInfo, View};
use crate::identity::NodeKey;
use crate::roll::{Rights, Tier};

/// Who may use a service. No clause at all: every member. Else whoever is among the peers, and whoever has at least the
/// tier and all of the properties, where either is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Policy {
    pub peers: BTreeSet<NodeKey>,
    pub tier: Option<Tier>,
    pub props: BTreeMap<String, String>,
}

/// Why a caller may use a service: the clause that lets it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ground {
    /// There is no policy.
    Everyone,
    /// It is among the peers.
    Named,
    /// It has what is asked for.
    Has { tier: Option<Tier>, props: BTreeMap<String, String> },
    /// It provides the service itself.
    Provides,
}

/// Why it may not: the first clause that it fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It does not stand.
    Membership,
    /// It is not among the peers, and nobody else is let in.
    Name,
    Tier {
        has: Tier,
        needs: Tier,
    },
    Property {
        key: String,
        needs: String,
        has: Option<String>,
    },
}

impl Policy {
    /// Far more than a person would list; more is what properties are for.
    pub const PEERS_MAX: usize = 64;
    pub const PROPS_MAX: usize = 16;
    /// Of a key or a value, in bytes: members have all of theirs in 1 KiB.
    pub const TEXT_BYTES_MAX: usize = 256;

    /// Whether it bounds nothing.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a policy of this size can be published.
    #[must_use]
    pub fn fits(&self) -> bool {
        let short = |(key, value): (&String, &String)| {
            !key.is_empty() && key.len() <= Self::TEXT_BYTES_MAX && value.len() <= Self::TEXT_BYTES_MAX
        };
        self.peers.len() <= Self::PEERS_MAX && self.props.len() <= Self::PROPS_MAX && self.props.iter().all(short)
    }

    /// Judges a member that has these rights.
    ///
    /// # Errors
    /// The first clause that it fails.
    pub fn admits(&self, caller: &NodeKey, rights: &Rights) -> Result<Ground, Lack> {
        if self.is_open() {
            return Ok(Ground::Everyone);
        }
        if self.peers.contains(caller) {
            return Ok(Ground::Named);
        }
        if self.tier.is_none() && self.props.is_empty() {
            return Err(Lack::Name);
        }
        if let Some(needs) = self.tier.filter(|needs| rights.tier < *needs) {
            return Err(Lack::Tier { has: rights.tier, needs });
        }
        for (key, needs) in &self.props {
            let has = rights.props.get(key);
            if has != Some(needs) {
                return Err(Lack::Property { key: key.clone(), needs: needs.clone(), has: has.cloned() });
            }
        }
        Ok(Ground::Has { tier: self.tier, props: self.props.clone() })
    }

    /// Who it lets in, for a sentence; `called` names a peer.
    #[must_use]
    pub fn who(&self, called: impl Fn(&NodeKey) -> String) -> String {
        if self.is_open() {
            return "every member of the cluster".into();
        }
        let peers: Vec<String> = self.peers.iter().map(called).collect();
        let of_standing = (self.tier.is_some() || !self.props.is_empty()).then(|| asked(self.tier, &self.props));
        let named = (!peers.is_empty()).then(|| peers.join(", "));
        match (named, of_standing) {
            (Some(named), Some(standing)) => format!("{named}; and {standing}"),
            (one, other) => one.or(other).unwrap_or_default(),
        }
    }
}

impl View {
    /// Whether `caller` may reach what `provider` provides: by the provider's own policy, and for another's name by that
    /// of its owner as well.
    ///
    /// # Errors
    /// The first clause that it fails.
    pub fn may_connect(
        &self,
        service: Option<&ServiceInfo>,
        provider: &Provider,
        caller: &NodeKey,
    ) -> Result<Ground, Lack> {
        let Some(member) = self.nodes.get(caller) else { return Err(Lack::Membership) };
        if provider.node == *caller {
            return Ok(Ground::Provides);
        }
        let rights = &member.member.rights;
        let owners = service.filter(|service| service.owner != provider.node).map(|service| &service.policy);
        if let Some(owners) = owners {
            let ground = owners.admits(caller, rights)?;
            if provider.policy.is_open() {
                return Ok(ground);
            }
        }
        provider.policy.admits(caller, rights)
    }
}

/// "publishers with env=prod", as far as each is asked for.
fn asked(tier: Option<Tier>, props: &BTreeMap<String, String>) -> String {
    let who = match tier {
        None | Some(Tier::Leaf) => "members",
        Some(Tier::Publisher) => "publishers and admins",
        Some(Tier::Admin) => "admins",
    };
    let props: Vec<String> = props.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if props.is_empty() { who.to_string() } else { format!("{who} with {}", props.join(" and ")) }
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everyone => f.write_str("no policy bounds it: every member may reach it"),
            Self::Named => f.write_str("the policy names it"),
            Self::Has { tier, props } => write!(f, "the policy lets in {}", asked(*tier, props)),
            Self::Provides => f.write_str("it provides the service itself"),
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Membership => f.write_str("it is no member"),
            Self::Name => f.write_str("the policy names its peers, and it is not among them"),
            Self::Tier { has, needs } => write!(f, "the policy asks for the tier {needs}, and it is a {has}"),
            Self::Property { key, needs, has: None } => {
                write!(f, "the policy asks for {key}={needs}, and it has no property {key}")
            }
            Self::Property { key, needs, has: Some(has) } => {
                write!(f, "the policy asks for {key}={needs}, and it has {key}={has}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOB: NodeKey = NodeKey([2; 32]);
    const EVE: NodeKey = NodeKey([3; 32]);

    fn rights(tier: Tier, props: &[(&str, &str)]) -> Rights {
        Rights { props: map(props), ..Rights::of(tier) }
    }

    fn map(props: &[(&str, &str)]) -> BTreeMap<String, String> {
        props.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    #[test]
    fn without_a_clause_every_member_is_let_in_and_with_names_alone_nobody_else() {
        let leaf = rights(Tier::Leaf, &[]);
        assert_eq!(Policy::default().admits(&EVE, &leaf), Ok(Ground::Everyone));
        let named = Policy { peers: [BOB].into(), ..Policy::default() };
        assert_eq!(named.admits(&BOB, &leaf), Ok(Ground::Named));
        assert_eq!(named.admits(&EVE, &rights(Tier::Admin, &[])), Err(Lack::Name), "an admin is a stranger, too");
    }

    #[test]
    fn tier_and_every_property_are_asked_for_together_and_a_name_stands_in_for_all_of_them() {
        let policy =
            Policy { peers: [BOB].into(), tier: Some(Tier::Publisher), props: map(&[("env", "prod"), ("gpu", "yes")]) };
        assert_eq!(policy.admits(&BOB, &rights(Tier::Leaf, &[])), Ok(Ground::Named));
        let eve = |tier, props: &[(&str, &str)]| policy.admits(&EVE, &rights(tier, props));
        let all = [("env", "prod"), ("gpu", "yes"), ("more", "")];
        assert_eq!(eve(Tier::Leaf, &all), Err(Lack::Tier { has: Tier::Leaf, needs: Tier::Publisher }));
        assert!(eve(Tier::Publisher, &all).is_ok() && eve(Tier::Admin, &all).is_ok());
        let lacks = |has: Option<&str>| {
            Err(Lack::Property { key: "env".into(), needs: "prod".into(), has: has.map(Into::into) })
        };
        assert_eq!(eve(Tier::Admin, &[("env", "dev"), ("gpu", "yes")]), lacks(Some("dev")));
        assert_eq!(eve(Tier::Admin, &[("gpu", "yes")]), lacks(None));
        assert!(eve(Tier::Admin, &all[..1]).is_err());
    }

    #[test]
    fn a_policy_says_who_it_lets_in() {
        let called = |_: &NodeKey| String::from("bob");
        let mut policy = Policy { peers: [BOB].into(), ..Policy::default() };
        assert_eq!(policy.who(called), "bob");
        policy.props = map(&[("env", "prod")]);
        assert_eq!(policy.who(called), "bob; and members with env=prod");
        policy = Policy { tier: Some(Tier::Publisher), ..Policy::default() };
        assert_eq!(policy.who(called), "publishers and admins");
        assert_eq!(Policy::default().who(called), "every member of the cluster");
    }
}
