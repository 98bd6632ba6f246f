//! What may be wrong, one shape for all of it: the line of `pln status`, the object of `--json`, the event and the
//! series of the metric are made from it. Owns the codes, which are contract; judges nothing.
//! Invariant: every condition says in one sentence what is so, and in another what to do.

use serde::{Deserialize, Serialize};

use super::HealthState;

/// Something that needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub code: Code,
    /// What it is about: a node's key, `8080/tcp`, a name; with the code it says which condition this is.
    pub subject: String,
    /// How this node is because of it.
    pub state: HealthState,
    /// One sentence: what is so.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// The kinds of conditions: words in JSON and labels of `pln_condition`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// This node is no member.
    NotMember,
    /// Its membership ends soon.
    MembershipEnds,
    /// It reaches no other node.
    Alone,
    /// More than one machine uses a node's key.
    KeyShared,
    /// A clock is off.
    Clock,
    /// A neighbour takes nothing of what there is to tell it.
    GossipStalled,
    /// Its state cannot be written.
    Disk,
    /// A local port of `pln connect` cannot be listened on.
    ListenerWaits,
    /// The port of `/metrics` cannot be listened on.
    MetricsWait,
    /// What the operator chose to carry circuits' frames cannot be had.
    DatapathRefused,
    /// Nobody listens on a port that it serves.
    ServiceUnanswered,
    /// Several machines chose one name.
    NameShared,
    /// A name that it claims is another's.
    NameLost,
    /// A seed of its own that nobody serves.
    SeedUnserved,
    /// Some of its entries do not count.
    EntriesRefused,
}

impl Code {
    /// All of them, so that the metric has its series from the start.
    pub const ALL: [Self; 15] = [
        Self::NotMember,
        Self::MembershipEnds,
        Self::Alone,
        Self::KeyShared,
        Self::Clock,
        Self::GossipStalled,
        Self::Disk,
        Self::ListenerWaits,
        Self::MetricsWait,
        Self::DatapathRefused,
        Self::ServiceUnanswered,
        Self::NameShared,
        Self::NameLost,
        Self::SeedUnserved,
        Self::EntriesRefused,
    ];

    /// The word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotMember => "not_member",
            Self::MembershipEnds => "membership_ends",
            Self::Alone => "alone",
            Self::KeyShared => "key_shared",
            Self::Clock => "clock",
            Self::GossipStalled => "gossip_stalled",
            Self::Disk => "disk",
            Self::ListenerWaits => "listener_waits",
            Self::MetricsWait => "metrics_wait",
            Self::DatapathRefused => "datapath_refused",
            Self::ServiceUnanswered => "service_unanswered",
            Self::NameShared => "name_shared",
            Self::NameLost => "name_lost",
            Self::SeedUnserved => "seed_unserved",
            Self::EntriesRefused => "entries_refused",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_a_code_is_the_same_in_json_and_as_a_label() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_string(&code).expect("a word"), format!("\"{}\"", code.label()));
        }
    }
}
