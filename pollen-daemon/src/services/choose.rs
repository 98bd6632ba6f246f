//! Which provider a new connection goes to. A pure decision over what is known of the candidates.
//! Invariant: every candidate appears once in the answer, each with the reason of its place, so that failing over
//! never repeats and never gives up early.

use std::time::Duration;

use pollen_common::identity::NodeKey;

/// Latencies closer than this count as equal: below it, jitter decides, not distance.
const LATENCY_EQUAL: Duration = Duration::from_millis(2);

/// A provider as a new connection sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub node: NodeKey,
    /// This very node.
    pub local: bool,
    pub online: bool,
    /// Last measured, if this node has had a connection with it.
    pub rtt: Option<Duration>,
    /// Streams and sessions that this node has open with it.
    pub open: usize,
    /// Why it did not take a connection a short while ago.
    pub failed: Option<String>,
}

/// A provider to try, and why it has this place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub node: NodeKey,
    pub reason: String,
}

/// All candidates in the order in which to try them. `coin` is any number that varies from call to call.
///
/// This node itself comes first: nothing is closer. Among the others two are drawn, and the better one goes first:
/// drawing before comparing keeps many callers from all running to the same best provider.
pub(super) fn order(candidates: Vec<Candidate>, coin: u64) -> Vec<Choice> {
    let total = candidates.len();
    let mut choices = Vec::with_capacity(total);
    let mut fit = Vec::new();
    let mut failed = Vec::new();
    let mut offline = Vec::new();
    for candidate in candidates {
        if candidate.local && candidate.failed.is_none() {
            choices.push(Choice { node: candidate.node, reason: "this node provides it itself".into() });
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
    let (first, why) = match fit.as_slice() {
        [] => (None, String::new()),
        [_] => (
            Some(0),
            if total == 1 { "the only provider".into() } else { "the only provider that is online and well".into() },
        ),
        [a, b, ..] => {
            let (better, why) = better(a, b, coin);
            (Some(better), format!("the better of {drawn} drawn from {}: {why}", fit.len()))
        }
    };
    if let Some(first) = first {
        let chosen = fit.remove(first);
        choices.push(Choice { node: chosen.node, reason: why });
    }
    fit.sort_by_key(|candidate| (candidate.rtt.unwrap_or_default(), candidate.open));
    choices
        .extend(fit.into_iter().map(|c| Choice { node: c.node, reason: "next by latency, should others fail".into() }));
    choices.extend(failed.into_iter().map(|candidate| {
        let why = candidate.failed.unwrap_or_default();
        Choice { node: candidate.node, reason: format!("kept for last because it failed a short while ago: {why}") }
    }));
    choices.extend(
        offline
            .into_iter()
            .map(|c| Choice { node: c.node, reason: "held for offline; tried only when no other is left".into() }),
    );
    choices
}

/// The index of the better of two, and why.
fn better(a: &Candidate, b: &Candidate, coin: u64) -> (usize, String) {
    if let (Some(a_rtt), Some(b_rtt)) = (a.rtt, b.rtt) {
        let difference = a_rtt.abs_diff(b_rtt);
        if difference > LATENCY_EQUAL {
            let (index, near, far) = if a_rtt < b_rtt { (0, a_rtt, b_rtt) } else { (1, b_rtt, a_rtt) };
            return (index, format!("latency {near:.1?} against {far:.1?}"));
        }
    }
    match a.open.cmp(&b.open) {
        std::cmp::Ordering::Less => (0, format!("{} open streams against {}", a.open, b.open)),
        std::cmp::Ordering::Greater => (1, format!("{} open streams against {}", b.open, a.open)),
        std::cmp::Ordering::Equal => (remainder(coin >> 16, 2), "equal in latency and streams, so by lot".into()),
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
        assert!(choices[2].reason.contains("refused"));
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
