//! Where a call goes, and where next when it was not taken. Owns rounds, retries and hedges; knows nothing of streams.
//! Invariants: a node is tried once in a round, and rounds are bounded by what the asker allows, or, while all say that
//! this node's view is behind, by the time that a call waits for what is coming; a second try begins only when the
//! first certainly did not run, or the seed is idempotent.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use pollen_common::identity::NodeKey;
use pollen_common::views::View;
use pollen_common::wire::streams::answer::Status;
use pollen_common::wire::streams::call::{CALL_DEPTH_MAX, FUNCTION_BYTES_MAX, HOPS_MAX};
use tokio::time::{Instant, sleep_until};

use super::attempt::{self, NotTaken, Outcome};
use super::coming::coming;
use super::failure::Failure;
use super::run::{self, Done};
use super::target::Resolved;
use super::{Ask, Shared, name_of};
use crate::services::COMING_MAX;
use crate::services::choose::{self, Candidate, Choice};
use crate::workload::BODY_BYTES_MAX;
use crate::workload::{CallAnswer, SeedRef};

/// Hosts looked at for one call: more cannot make the better of two better, and a seed may be everywhere.
const CANDIDATES_MAX: usize = 16;
/// Hosts tried in one round.
const ATTEMPTS_MAX: usize = 4;
/// Rounds, whatever the asker allows.
const ROUNDS_MAX: u32 = 16;
/// The pause before the second round; it doubles for each further one.
const BACK_OFF_MIN: Duration = Duration::from_millis(20);
/// The longest pause between two rounds.
const BACK_OFF_MAX: Duration = Duration::from_millis(500);

/// What rounds have come to so far.
#[derive(Default)]
struct Trail {
    tries: u32,
    /// Of the last round.
    reasons: Vec<String>,
    status: Option<Status>,
    /// Nobody in the last round said anything but that it is not hosted there.
    moved: bool,
    /// A try may have run.
    ran: bool,
}

/// Makes the call: here or elsewhere, again where that is safe.
pub(super) async fn dispatch(shared: &Arc<Shared>, ask: Ask) -> Result<CallAnswer, Failure> {
    boxed(Arc::clone(shared), ask).await.map(|done| CallAnswer {
        output: done.output,
        served_by: done.by,
        version: done.version,
        retries: done.retries,
    })
}

/// The same, as a guest's request and a tail call need it: they are calls within calls.
pub(super) fn boxed(shared: Arc<Shared>, ask: Ask) -> BoxFuture<'static, Result<Done, Failure>> {
    async move {
        let result = rounds(&shared, &ask).await;
        shared.tally.ended(result.as_ref().map_or_else(|failure| failure.label, |_| "ok"));
        result
    }
    .boxed()
}

async fn rounds(shared: &Arc<Shared>, ask: &Ask) -> Result<Done, Failure> {
    if ask.input.len() > BODY_BYTES_MAX {
        return Err(Failure::input_too_large(ask.input.len()));
    }
    if !(1..=FUNCTION_BYTES_MAX).contains(&ask.function.len()) {
        return Err(Failure::function_name());
    }
    if ask.caller.path.len() >= CALL_DEPTH_MAX || ask.hops > HOPS_MAX {
        return Err(Failure::depth());
    }
    if ask.caller.path.contains(&ask.target.step()) {
        return Err(Failure::cycle());
    }
    let patient_until = ask.deadline.min(Instant::now() + COMING_MAX.saturating_sub(ask.waited));
    let mut trail = Trail::default();
    let (mut retries, mut pauses) = (0, 0);
    loop {
        let (view, found) = coming(shared, &ask.target, patient_until).await;
        let found = found.ok_or_else(|| Failure { ran: trail.ran, ..Failure::not_found(&ask.target) })?;
        trail.reasons.clear();
        trail.status = None;
        trail.moved = true;
        if let Some(result) = try_hosts(shared, &view, &found, ask, &mut trail).await {
            return result;
        }
        // All whom this node's view names say that it is elsewhere: the view is behind, and no host has failed.
        let behind = trail.moved && !trail.reasons.is_empty() && Instant::now() < patient_until;
        if !behind {
            let nobody = trail.reasons.is_empty() && Instant::now() >= ask.deadline;
            if nobody || retries == ask.retries.min(ROUNDS_MAX) {
                break;
            }
            retries += 1;
        }
        pauses += 1;
        back_off(shared, ask, pauses, &trail).await?;
    }
    // It may have gone while it was asked for: then nobody refused.
    if shared.meanings.of(&shared.view(), &ask.target).is_none() {
        return Err(Failure { ran: trail.ran, ..Failure::not_found(&ask.target) });
    }
    let target = match &ask.target {
        SeedRef::Name(name) => name.to_string(),
        SeedRef::Module(module) => module.to_string(),
    };
    if trail.reasons.is_empty() {
        return Err(Failure { ran: trail.ran, ..Failure::no_host(&target) });
    }
    Err(Failure::refused(&target, &trail.reasons, trail.status, trail.ran))
}

/// A pause, jittered so that those who were refused together do not come back together; ended early by news of the
/// cluster.
async fn back_off(shared: &Shared, ask: &Ask, round: u32, trail: &Trail) -> Result<(), Failure> {
    let pause = BACK_OFF_MAX.min(BACK_OFF_MIN * (1 << (round - 1).min(8)));
    // Without entropy all wait equally long, nothing worse.
    let jitter = u32::try_from(getrandom::u64().unwrap_or_default() % 100).expect("below 100");
    let until = Instant::now() + pause / 2 + pause * jitter / 100;
    if until >= ask.deadline {
        return Err(Failure::deadline(trail.ran));
    }
    let mut view = shared.view.clone();
    view.mark_unchanged();
    tokio::select! {
        () = sleep_until(until) => {}
        // Ends only with the node.
        _ = view.changed() => {}
    }
    Ok(())
}

/// One round: each host at most once. `None`: nobody took it, and `trail` says why.
async fn try_hosts(
    shared: &Arc<Shared>,
    view: &View,
    found: &Resolved,
    ask: &Ask,
    trail: &mut Trail,
) -> Option<Result<Done, Failure>> {
    let mut choices = choices(shared, view, found, ask).into_iter().take(ATTEMPTS_MAX);
    let mut under_way = FuturesUnordered::new();
    let mut newest = None;
    let mut next = choices.next();
    loop {
        if under_way.is_empty() {
            let choice = next.take()?;
            next = choices.next();
            newest = Some(choice.node);
            begin(shared, found, &choice, trail);
            under_way.push(attempt(shared, view, found, ask, choice.node));
        }
        let silent = fallen_silent(shared, view, newest);
        tokio::select! {
            outcome = under_way.next() => match outcome.expect("one is under way") {
                Outcome::Done(done) => return Some(Ok(Done { retries: trail.tries - 1, ..done })),
                Outcome::Final(failure) => return Some(Err(Failure { ran: failure.ran || trail.ran, ..failure })),
                Outcome::NotTaken(NotTaken { host, why, status, ran }) => {
                    tracing::debug!(%host, seed = %found.name, why, "call not taken");
                    trail.reasons.push(format!("{}: {why}", name_of(view, &host)));
                    trail.status = status.or(trail.status);
                    trail.moved &= status == Some(Status::NotHere);
                    trail.ran |= ran;
                }
            },
            () = silent, if found.idempotent && next.is_some() => {
                let choice = next.take().expect("looked at above");
                next = choices.next();
                newest = Some(choice.node);
                begin(shared, found, &choice, trail);
                under_way.push(attempt(shared, view, found, ask, choice.node));
            }
        }
    }
}

fn begin(shared: &Shared, found: &Resolved, choice: &Choice, trail: &mut Trail) {
    if trail.tries > 0 {
        shared.tally.retried();
    }
    trail.tries += 1;
    shared.placements.note(&found.name, choice.node, &choice.reason, Instant::now());
}

fn attempt<'a>(
    shared: &'a Arc<Shared>,
    view: &'a View,
    found: &'a Resolved,
    ask: &'a Ask,
    node: NodeKey,
) -> BoxFuture<'a, Outcome> {
    if node == view.me {
        local(shared, found, ask, node).boxed()
    } else {
        attempt::remote(shared, view, found, ask, node).boxed()
    }
}

async fn local(shared: &Arc<Shared>, found: &Resolved, ask: &Ask, me: NodeKey) -> Outcome {
    let result = match run::begin(shared, &found.name, found.id, found.module) {
        Ok(begun) => run::run(shared, begun, ask.clone()).await,
        Err(failure) => Err(failure),
    };
    match result {
        Ok(done) => Outcome::Done(done),
        Err(failure) if !failure.ran && matches!(failure.status, Status::NotHere | Status::Busy) => {
            Outcome::NotTaken(NotTaken { host: me, why: failure.message, status: Some(failure.status), ran: false })
        }
        Err(failure) => Outcome::Final(failure),
    }
}

/// Resolves when `host`, which owes an answer, has been silent for longer than distance explains.
async fn fallen_silent(shared: &Shared, view: &View, host: Option<NodeKey>) {
    let Some(host) = host.filter(|host| *host != view.me) else { return std::future::pending().await };
    let peer = shared.peers.of(host);
    loop {
        let left = peer.silent_after().saturating_sub(peer.silence(Instant::now()));
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

/// The hosts in the order in which to try them.
fn choices(shared: &Shared, view: &View, found: &Resolved, ask: &Ask) -> Vec<Choice> {
    let total = found.hosts.len();
    // Without a lot all are compared as if it always fell the same way: worse balance, nothing else.
    let coin = if total > 1 { getrandom::u64().unwrap_or_default() } else { 0 };
    let first = if total > CANDIDATES_MAX { usize::try_from(coin % total as u64).expect("below a usize") } else { 0 };
    let drawn = found.hosts.iter().cycle().skip(first).take(total.min(CANDIDATES_MAX)).filter(|host| **host != view.me);
    let own = found.hosts.get(&view.me);
    let candidate = |node: &NodeKey| {
        let info = view.nodes.get(node)?;
        let local = *node == view.me;
        let known = if local { here(shared, found, ask) } else { shared.peers.known(node, Instant::now()) };
        let leaving = info.draining.then(|| "it is leaving".to_owned());
        Some(Candidate {
            node: *node,
            local,
            online: info.liveness.is_online(),
            rtt: known.rtt,
            open: known.load,
            failed: known.failed.or(leaving),
        })
    };
    choose::order(own.into_iter().chain(drawn).filter_map(candidate).collect(), coin)
}

/// This node as a host of the seed.
fn here(shared: &Shared, found: &Resolved, ask: &Ask) -> super::peers::Known {
    let failed = if shared.draining.load(Ordering::Relaxed) {
        Some("it is leaving".to_owned())
    } else if !shared.admission.has_room(found.id, ask.caller.peer) {
        Some("it has no room at present".to_owned())
    } else {
        None
    };
    super::peers::Known { failed, ..Default::default() }
}
