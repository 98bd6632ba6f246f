//! Who may reach a service, as it is shown. Owns the shape, which is contract, and the words for it; pure.

use std::collections::BTreeMap;

use pollen_common::views::{Policy, View};
use serde::{Deserialize, Serialize};

use super::{NodeRef, TierName, node_ref};

/// Who may reach what nothing bounds.
pub(crate) const EVERYONE: &str = "every member of the cluster";
/// Peers that a table's cell lists.
const BRIEF_PEERS_MAX: usize = 3;

/// A policy: each of the peers, and whoever has the tier and all of the properties, where either is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowRow {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<NodeRef>,
    /// At least this tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<TierName>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub props: BTreeMap<String, String>,
    /// The same as a sentence has it.
    pub who: String,
}

impl AllowRow {
    /// None where every member may.
    #[must_use]
    pub fn of(view: &View, policy: &Policy) -> Option<Self> {
        (!policy.is_open()).then(|| Self {
            peers: policy.peers.iter().map(|peer| node_ref(view, *peer)).collect(),
            tier: policy.tier.map(Into::into),
            props: policy.props.clone(),
            who: policy.who(|peer| super::table::show_ref(&node_ref(view, *peer))),
        })
    }

    /// Short, for a table.
    #[must_use]
    pub fn brief(&self) -> String {
        let tier = self.tier.map(|tier| super::table::tier(tier).to_owned());
        let props = self.props.iter().map(|(key, value)| format!("{key}={value}"));
        let standing: Vec<String> = tier.into_iter().chain(props).collect();
        let mut clauses: Vec<String> = match self.peers.len() {
            0..=BRIEF_PEERS_MAX => self.peers.iter().map(super::table::show_ref).collect(),
            many => vec![format!("{many} peers")],
        };
        clauses.extend((!standing.is_empty()).then(|| standing.join("+")));
        clauses.join(", ")
    }
}
