//! A call that another node sent: from its stream to the answer. Owns the order of the checks.
//! Invariants: nothing is run for who does not stand; no input is taken that there is no room for; whoever goes away
//! ends what was run for it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use pollen_common::identity::NodeKey;
use pollen_common::node::RefusalKind;
use pollen_common::wire::streams::OpeningError;
use pollen_common::wire::streams::answer::{PULSE, Remark, Status};
use pollen_common::wire::streams::call::{CALL_DEPTH_MAX, HEADER_BYTES_MAX, HOPS_MAX, Header};
use quinn::{RecvStream, SendStream};
use tokio::time::{Instant, timeout};

use super::failure::Failure;
use super::peers::PULSE_EVERY;
use super::run::{self, Done};
use super::wire::{self, Broken, CODE_TOO_SLOW, Incoming, PATIENCE, patience};
use super::{Ask, DEADLINE_MAX, GUEST_RETRIES, Shared, caller};
use crate::workload::SeedRef;
use crate::workload::{BODY_BYTES_MAX, Caller};

/// Counts a call of another until it is answered.
struct Serving<'a>(&'a Shared);

impl<'a> Serving<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.serving.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.serving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves the stream to its end.
pub(super) async fn serve(shared: Arc<Shared>, peer: NodeKey, mut send: SendStream, recv: RecvStream) {
    let _serving = Serving::begin(&shared);
    let mut incoming = Incoming::new(recv, None);
    let Some(result) = while_wanted(&shared, peer, &mut send, &mut incoming).await else {
        shared.tally.ended("given_up");
        return;
    };
    shared.tally.ended(result.as_ref().map_or_else(|failure| failure.label, |_| "ok"));
    let load = shared.admission.load();
    let (status, remark, output) = match result {
        Ok(done) => {
            let remark = Remark { ran: true, load, served: Some(done.version), ..Remark::default() };
            (Status::Done, remark, done.output)
        }
        Err(failure) => {
            tracing::debug!(%peer, label = failure.label, message = failure.message, "call not served");
            (failure.status, Remark { load, ..failure.remark() }, Bytes::new())
        }
    };
    let length = u32::try_from(output.len()).expect("the engine bounds outputs");
    let opening = remark.answering(status, length);
    let sent = timeout(patience(output.len()), wire::send(&mut send, opening, output)).await;
    if sent.is_err() {
        // The direction may have ended already.
        let _ = send.reset(CODE_TOO_SLOW);
    }
}

/// The call's result, unless its asker goes away or no longer stands. While it takes, the asker hears so.
async fn while_wanted(
    shared: &Arc<Shared>,
    peer: NodeKey,
    send: &mut SendStream,
    incoming: &mut Incoming,
) -> Option<Result<Done, Failure>> {
    let known = shared.peers.of(peer);
    let mut gone = pin!(send.stopped());
    let mut work = pin!(answer_to(shared, peer, incoming));
    let mut pulse = pin!(tokio::time::sleep(PULSE_EVERY));
    let mut stood = false;
    loop {
        tokio::select! {
            biased;
            result = &mut work => return Some(result),
            _ = &mut gone => return None,
            () = &mut pulse => {
                let stands = shared.standing.is(&peer);
                if stood && !stands {
                    return None;
                }
                stood = stands;
                if known.shall_be_told(Instant::now()) {
                    // What does not go now is late anyhow.
                    let _ = send.write(&[PULSE]).now_or_never();
                }
                pulse.as_mut().reset(Instant::now() + PULSE_EVERY);
            }
        }
    }
}

async fn answer_to(shared: &Arc<Shared>, peer: NodeKey, incoming: &mut Incoming) -> Result<Done, Failure> {
    let header =
        timeout(PATIENCE, header(incoming)).await.map_err(|_| malformed("the header did not come in time"))??;
    let now = Instant::now();
    if shared.draining.load(Ordering::Relaxed) {
        return Err(refusal(shared, Status::Draining, "this node is leaving"));
    }
    if !shared.standing.soon(&peer).await {
        return Err(refusal(shared, Status::Denied, "denied or absent"));
    }
    if header.path.len() >= CALL_DEPTH_MAX || header.hops > HOPS_MAX {
        return Err(Failure::depth());
    }
    let target = header.module.map_or(SeedRef::Name(header.seed.clone()), SeedRef::Module);
    if header.path.contains(&target.step()) {
        return Err(Failure::cycle());
    }
    let begun = run::begin(shared, &header.seed, header.version, header.module).inspect_err(|failure| {
        shared.tally.refused(failure.label);
    })?;
    let input = input(shared, incoming).await?;
    let remaining = Duration::from_millis(header.remaining_ms.into()).min(DEADLINE_MAX);
    let caller = Caller { path: header.path, ..caller(&shared.view(), peer) };
    let ask = Ask {
        target,
        function: header.function,
        input,
        deadline: now + remaining,
        retries: GUEST_RETRIES,
        waited: Duration::ZERO,
        caller: Arc::new(caller),
        hops: header.hops,
    };
    run::run(shared, begun, ask).await
}

async fn header(incoming: &mut Incoming) -> Result<Header, Failure> {
    let bytes = incoming.short(HEADER_BYTES_MAX).await.map_err(broken)?;
    let bytes = bytes.ok_or_else(|| malformed("the header is too long"))?;
    Header::decode(&bytes).map_err(|error| match error {
        OpeningError::Malformed => malformed(&error.to_string()),
        OpeningError::Version => {
            Failure::before(Status::Version, RefusalKind::Failed, Status::Version.label(), error.to_string())
        }
    })
}

async fn input(shared: &Shared, incoming: &mut Incoming) -> Result<Bytes, Failure> {
    let length = timeout(PATIENCE, incoming.length()).await.map_err(|_| malformed("no input came in time"))?;
    let length = length.map_err(broken)?;
    if length > BODY_BYTES_MAX {
        return Err(Failure::input_too_large(length));
    }
    let Some(room) = shared.room.take(length) else {
        shared.tally.refused("body_room");
        return Err(Failure::busy("body_room", "no more inputs can be held at present".into()));
    };
    let whole = async {
        let input = incoming.take(length).await?;
        incoming.end().await?;
        Ok(input)
    };
    let input = timeout(patience(length), whole).await.map_err(|_| malformed("the input came too slowly"))?;
    Ok(room.by(input.map_err(broken)?))
}

fn broken(broken: Broken) -> Failure {
    malformed(&broken.to_string())
}

fn malformed(why: &str) -> Failure {
    Failure::before(Status::Malformed, RefusalKind::Failed, Status::Malformed.label(), why.to_owned())
}

fn refusal(shared: &Shared, status: Status, why: &str) -> Failure {
    shared.tally.refused(status.label());
    Failure::before(status, RefusalKind::Failed, status.label(), why.to_owned())
}
