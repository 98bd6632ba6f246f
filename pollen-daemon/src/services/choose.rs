//! Which provider a new connection goes to, or which host a call. A pure decision over what is known of the candidates.
//! Invariant: every candidate appears once in the answer, each with the reason of its place, so that failing over
//! never repeats and never gives up early.

use std::fmt;
use std::time::Duration;

use pollen_common::identity::NodeKey;

/// Latencies closer than this count as equal: below it, jitter decides, not distance.
const LATENCY_EQUAL: Duration = Duration::from_millis(2);

/// A provider as a new connection sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub node: NodeKey,
    /// This very node.
    pub local: bool,
    pub online: bool,
    /// Last measured, if this node has had a connection with it.
    pub rtt: Option<Duration>,
    /// How busy it is: streams and sessions that this node has open with it, or the load that a host told.
    pub open: usize,
    /// Why it did not take a connection a short while ago.
    pub failed: Option<String>,
}

/// A provider to try, and why it has this place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub node: NodeKey,
    pub reason: Reason,
}

/// Why a candidate has its place. A sentence for people, which most choices never need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Local,
    /// There is no other.
    Only,
    /// The others are offline or failed.
    OnlyFit,
    /// The better of `drawn`, which were drawn from `of`.
    Better {
        drawn: usize,
        of: usize,
        by: By,
    },
    Next,
    Failed(String),
    Offline,
}

/// What made one of two the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Latency { near: Duration, far: Duration },
    Load { less: usize, more: usize },
    Lot,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("this node provides it itself"),
            Self::Only => f.write_str("the only provider"),
            Self::OnlyFit => f.write_str("the only provider that is online and well"),
            Self::Better { drawn, of, by } => write!(f, "the better of {drawn} drawn from {of}: {by}"),
            Self::Next => f.write_str("next by latency, should others fail"),
            Self::Failed(why) => write!(f, "kept for last because it failed a short while ago: {why}"),
            Self::Offline => f.write_str("held for offline; tried only when no other is left"),
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latency { near, far } => write!(f, "latency {near:.1?} against {far:.1?}"),
            Self::Load { less, more } => write!(f, "load {less} against {more}"),
            Self::Lot => f.write_str("equal in latency and load, so by lot"),
        }
    }
}

/// All candidates in the order in which to try them. `coin` is any number that varies from call to call.
///
/// This node itself comes first: nothing is closer. Among the others two are drawn, and the better one goes first:
/// drawing before comparing keeps many callers from all running to the same best provider.
pub(crate) fn order(candidates: Vec<Candidate>, coin: u64) -> Vec<Choice> {
    let total = candidates.len();
    let mut choices = Vec::with_capacity(total);
    let mut fit = Vec::new();
    let mut failed = Vec::new();
    let mut offline = Vec::new();
    for candidate in candidates {
        if candidate.local && candidate.failed.is_none() {
            choices.push(Choice { node: candidate.node, reason: Reason::Local });
        } else if !candidate.online {
            offline.push(candidate);
        } else if candidate.failed.is_some() {
            failed.push(candidate);
        } else {
            fit.push(candidate);
        }
    }
    if fit.len() > 2 {
        let first = remainder(coin, fit.len());
        fit.swap(0, first);
        let second = 1 + remainder(coin >> 32, fit.len() - 1);
        fit.swap(1, second);
    }
    let drawn = fit.len().min(2);
    let first = match fit.as_slice() {
        [] => None,
        [_] => Some((0, if total == 1 { Reason::Only } else { Reason::OnlyFit })),
        [a, b, ..] => {
            let (better, by) = better(a, b, coin);
            Some((better, Reason::Better { drawn, of: fit.len(), by }))
        }
    };
    if let Some((first, reason)) = first {
        choices.push(Choice { node: fit.remove(first).node, reason });
    }
    fit.sort_by_key(|candidate| (candidate.rtt.unwrap_or_default(), candidate.open));
    choices.extend(fit.into_iter().map(|c| Choice { node: c.node, reason: Reason::Next }));
    choices.extend(failed.into_iter().map(|candidate| {
        let why = candidate.failed.unwrap_or_default();
        Choice { node: candidate.node, reason: Reason::Failed(why) }
    }));
    choices.extend(offline.into_iter().map(|c| Choice { node: c.node, reason: Reason::Offline }));
    choices
}

/// The index of the better of two, and why.
fn better(a: &Candidate, b: &Candidate, coin: u64) -> (usize, By) {
    if let (Some(a_rtt), Some(b_rtt)) = (a.rtt, b.rtt) {
        let difference = a_rtt.abs_diff(b_rtt);
        if difference > LATENCY_EQUAL {
            let (index, near, far) = if a_rtt < b_rtt { (0, a_rtt, b_rtt) } else { (1, b_rtt, a_rtt) };
            return (index, By::Latency { near, far });
        }
    }
    match a.open.cmp(&b.open) {
        std::cmp::Ordering::Less => (0, By::Load { less: a.open, more: b.open }),
        std::cmp::Ordering::Greater => (1, By::Load { less: b.open, more: a.open }),
        std::cmp::Ordering::Equal => (remainder(coin >> 16, 2), By::Lot),
    }
}

fn remainder(coin: u64, of: usize) -> usize {
    usize::try_from(coin % of as u64).expect("below a usize")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(node: u8, rtt_ms: Option<u64>, open: usize) -> Candidate {
        Candidate {
            node: NodeKey([node; 32]),
            local: false,
            online: true,
            rtt: rtt_ms.map(Duration::from_millis),
            open,
            failed: None,
        }
    }

    fn first(candidates: Vec<Candidate>, coin: u64) -> u8 {
        order(candidates, coin)[0].node.0[0]
    }

    #[test]
    fn the_nearer_of_two_wins_whatever_the_lot() {
        for coin in 0..1000 {
            assert_eq!(first(vec![candidate(1, Some(40), 0), candidate(2, Some(5), 9)], coin << 15), 2);
        }
    }

    #[test]
    fn equals_share_new_connections_by_what_is_open_and_by_lot() {
        assert_eq!(first(vec![candidate(1, Some(1), 3), candidate(2, Some(2), 2)], 0), 2);
        let lots = (0..100u64).map(|coin| first(vec![candidate(1, None, 0), candidate(2, None, 0)], coin << 16));
        let ones = lots.filter(|node| *node == 1).count();
        assert_eq!(ones, 50);
    }

    #[test]
    fn this_node_comes_first_and_the_failed_and_offline_last() {
        let mut offline = candidate(1, Some(1), 0);
        offline.online = false;
        let mut failed = candidate(2, Some(1), 0);
        failed.failed = Some("refused".into());
        let mut local = candidate(4, None, 100);
        local.local = true;
        let choices = order(vec![offline, failed, candidate(3, Some(90), 5), local], 7);
        assert_eq!(choices.iter().map(|c| c.node.0[0]).collect::<Vec<_>>(), [4, 3, 2, 1]);
        assert!(choices[2].reason.to_string().contains("refused"));
    }

    proptest! {
        #[test]
        fn every_candidate_is_tried_exactly_once(
            shapes in prop::collection::vec((any::<bool>(), prop::option::of(0u64..100), 0usize..5, any::<bool>()), 0..9),
            coin in any::<u64>(),
        ) {
            let candidates: Vec<Candidate> = shapes.iter().enumerate().map(|(index, (online, rtt, open, failed))| Candidate {
                online: *online,
                failed: failed.then(|| "x".to_owned()),
                ..candidate(u8::try_from(index).expect("below 9"), *rtt, *open)
            }).collect();
            let mut nodes: Vec<_> = order(candidates.clone(), coin).into_iter().map(|c| c.node).collect();
            nodes.sort();
            prop_assert_eq!(nodes, candidates.into_iter().map(|c| c.node).collect::<Vec<_>>());
        }
    }
}
