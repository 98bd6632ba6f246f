//! Runs one call on this node, whoever it came from. Owns the steps around the instance: which version answers, whether
//! there is room, and what follows when the output is a tail call.
//! Invariant: the instance and its place are given up before a tail call goes on.

use std::sync::Arc;
use std::time::Duration;

use pollen_common::identity::{Digest, NodeKey};
use pollen_common::node::RefusalKind;
use pollen_common::views::{Name, VersionId};
use pollen_common::wire::streams::answer::Status;
use pollen_common::wire::streams::call::HOPS_MAX;
use tokio::time::Instant;

use super::dispatch;
use super::failure::Failure;
use super::tail::{self, TailCall};
use super::target;
use super::world::GuestWorld;
use super::{Ask, GUEST_RETRIES, Instance, Shared};
use crate::workload::SeedRef;
use crate::workload::{CallError, Invocation};
use bytes::Bytes;

/// A call that gave an output.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub output: Bytes,
    pub by: NodeKey,
    pub version: VersionId,
    /// Tries before the one that gave it.
    pub retries: u32,
}

/// A hosted version, held so that it is not let go.
pub(super) struct Begun {
    seed: Name,
    version: VersionId,
    instance: Box<dyn Instance>,
}

/// The version that is asked for, or the one that answers in its place by this node's own view.
pub(super) fn begin(shared: &Shared, seed: &Name, wanted: VersionId, module: Option<Digest>) -> Result<Begun, Failure> {
    let host = &shared.sides.get().ok_or_else(Failure::not_here)?.host;
    let begun = |version: VersionId| {
        let instance = host.begin(&version)?;
        Some(Begun { seed: seed.clone(), version, instance })
    };
    begun(wanted)
        .or_else(|| {
            let others = target::in_place_of(&shared.view(), seed, module);
            others.into_iter().filter(|version| *version != wanted).find_map(begun)
        })
        .ok_or_else(Failure::not_here)
}

/// Runs the call to its output, through tail calls.
pub(super) async fn run(shared: &Arc<Shared>, begun: Begun, ask: Ask) -> Result<Done, Failure> {
    let me = shared.view.borrow().me;
    let version = begun.version;
    let by_output = begun.instance.tail_calls();
    let (output, asked) = instance(shared, begun, &ask, me).await?;
    let tail = if asked.is_none() && by_output { tail::of_output(&output) } else { Ok(asked) };
    let tail = tail
        .map_err(|broken| Failure::before(Status::Failed, RefusalKind::Failed, "failed", broken.to_string()).after())?;
    match tail {
        None => Ok(Done { output, by: me, version, retries: 0 }),
        Some(tail) => go_on(shared, tail, ask).await.map_err(Failure::after),
    }
}

/// The output of one instance, and what it asked for to answer in its place.
async fn instance(
    shared: &Arc<Shared>,
    begun: Begun,
    ask: &Ask,
    me: NodeKey,
) -> Result<(Bytes, Option<TailCall>), Failure> {
    let failed = |error: CallError| {
        let failure = Failure::of_run(&error, me);
        if !failure.ran {
            shared.tally.refused(error.label());
        }
        failure
    };
    if !begun.instance.has(&ask.function) {
        return Err(failed(CallError::no_function(ask.function.clone(), begun.instance.functions())));
    }
    let nested = !ask.caller.path.is_empty();
    let pass = shared.admission.enter(begun.version, ask.caller.peer, nested, ask.deadline).await;
    let _pass = pass.map_err(|crowded| {
        shared.tally.refused(crowded.label());
        Failure::busy(crowded.label(), crowded.to_string())
    })?;
    let invocation = Invocation {
        seed: begun.seed,
        function: ask.function.clone(),
        input: ask.input.clone(),
        caller: Arc::clone(&ask.caller),
        deadline: ask.deadline,
    };
    let world = Arc::new(GuestWorld::new(Arc::clone(shared), ask.target.step(), ask.hops));
    let started = Instant::now();
    let result = tokio::time::timeout_at(ask.deadline, begun.instance.call(invocation, Arc::clone(&world) as _)).await;
    shared.tally.ran(started.elapsed());
    let output = result.unwrap_or(Err(CallError::Deadline)).map_err(failed)?;
    Ok((output, world.take_tail()))
}

/// The call that an output asked for, in the place of the one that gave it: same caller, same path.
async fn go_on(shared: &Arc<Shared>, tail: TailCall, ask: Ask) -> Result<Done, Failure> {
    if ask.hops >= HOPS_MAX {
        return Err(Failure::depth());
    }
    let TailCall { name, function, input } = tail;
    let (target, retries, hops) = (SeedRef::Name(name), GUEST_RETRIES, ask.hops + 1);
    let next = Ask { target, function, input, retries, waited: Duration::ZERO, hops, ..ask };
    dispatch::boxed(Arc::clone(shared), next).await
}
