//! `POST /v1/seeds` and `DELETE /v1/seeds/SEED`: a module comes in as it was built, what becomes of it goes out a line
//! at a time. Owns the reading of both; the daemon publishes. Invariant: a module that was taken in is published or
//! refused whether or not its sender stays, and few are taken in at a time.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use futures_util::{Stream, StreamExt as _, stream};
use pollen_common::node::Refusal;
use serde::Deserialize;
use tokio::sync::{Semaphore, oneshot, watch};

use super::api::{SeedLine, StageLine, UnseededAnswer};
use super::resolve;
use super::server::{Asked, Segment, Shared, body_within, parse_name, within};
use super::stream::line;
use crate::handle::{SeedProgress, SeedRequest, SeedStage, Seeded};
use crate::http::Endless;
use crate::http::failure::{Code, Failure};
use crate::http::refused::Refused;
use pollen_module::MODULE_BYTES_MAX;

/// Modules that are taken in and made ready at a time; each may be [`MODULE_BYTES_MAX`], and compiling one keeps a
/// processor busy for seconds.
const UPLOADS_MAX: usize = 2;
/// How long a client may take over a module: within an exchange's time, and enough for one over SSH.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(50);

/// The floor of replicas where the publisher does not say: one may die.
pub const MIN_REPLICAS_DEFAULT: u16 = 2;
/// The most memory of a call where the publisher does not say.
pub const MEMORY_BYTES_DEFAULT: u64 = 8 * 1024 * 1024;
/// The longest that a call may take where the publisher does not say.
pub const TIMEOUT_MS_DEFAULT: u32 = 30_000;

/// Room for uploads.
pub(super) fn uploads() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(UPLOADS_MAX))
}

/// What follows the question mark of `POST /v1/seeds`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Terms {
    name: String,
    min_replicas: Option<u16>,
    #[serde(default)]
    everywhere: bool,
    memory_bytes: Option<u64>,
    timeout_ms: Option<u32>,
    #[serde(default)]
    idempotent: bool,
    #[serde(default)]
    image: bool,
    #[serde(default)]
    tail_calls: bool,
}

pub(super) async fn publish(
    State(api): Shared,
    Asked(terms): Asked<Terms>,
    request: Request,
) -> Result<Response, Response> {
    let name = parse_name(&terms.name).map_err(Failure::into_response)?;
    let memory_bytes = terms.memory_bytes.unwrap_or(MEMORY_BYTES_DEFAULT);
    let timeout_ms = terms.timeout_ms.unwrap_or(TIMEOUT_MS_DEFAULT);
    if memory_bytes == 0 || timeout_ms == 0 {
        let nothing = Failure::new(Code::Usage, "a call without memory or time cannot run");
        return Err(nothing.into_response());
    }
    let Ok(place) = Arc::clone(&api.uploads).try_acquire_owned() else {
        let busy = Failure::new(Code::Failed, format!("{UPLOADS_MAX} seeds are being published already"));
        return Err(Refused::Uploads.mark(busy.hint("try again when one of them is done").into_response()));
    };
    let module = body_within(request.into_body(), MODULE_BYTES_MAX, UPLOAD_TIMEOUT).await?;
    let request = SeedRequest {
        name,
        module,
        min_replicas: terms.min_replicas.unwrap_or(MIN_REPLICAS_DEFAULT),
        everywhere: terms.everywhere,
        memory_bytes,
        timeout_ms,
        idempotent: terms.idempotent,
        image: terms.image,
        tail_calls: terms.tail_calls,
    };
    let (progress, steps) = watch::channel(SeedProgress::at(SeedStage::Checking));
    let (ended, end) = oneshot::channel();
    // On a task of its own: the module is held until it is dealt with, and the place with it.
    tokio::spawn(async move {
        let result = api.daemon.seed(request, progress).await;
        drop(place);
        // Nobody may be left to hear it.
        let _ = ended.send(result);
    });
    let mut response =
        ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(told(steps, end).map(line))).into_response();
    response.extensions_mut().insert(Endless);
    Ok(response)
}

type End = oneshot::Receiver<Result<Seeded, Refusal>>;

/// Each step as it is reached, then how it ended.
fn told(steps: watch::Receiver<SeedProgress>, end: End) -> impl Stream<Item = SeedLine> {
    stream::unfold((steps, Some(end)), async |(mut steps, end)| {
        let mut end = end?;
        let result = tokio::select! {
            biased;
            Ok(()) = steps.changed() => {
                let step = *steps.borrow_and_update();
                return Some((SeedLine::Progress(StageLine::from(step)), (steps, Some(end))));
            }
            result = &mut end => result,
        };
        let last = match result {
            Ok(Ok(seeded)) => SeedLine::Seeded(seeded.into()),
            Ok(Err(refusal)) => SeedLine::Error(refusal.into()),
            Err(_) => SeedLine::Error(Failure::new(Code::Failed, "publishing was given up: see `pln logs`")),
        };
        Some((last, (steps, None)))
    })
}

pub(super) async fn withdraw(State(api): Shared, Segment(target): Segment) -> Result<Json<UnseededAnswer>, Failure> {
    let view = api.daemon.view();
    let name = match (resolve::seed_name(&view, &target), target.parse()) {
        // A claim of this node's that does not count is in no table, and can be withdrawn all the same.
        (Err(failure), Ok(name)) if failure.code == Code::NotFound => name,
        (found, _) => found?,
    };
    let unseeded = within(api.daemon.unseed(name)).await?;
    Ok(Json(UnseededAnswer::of(&api.daemon.view(), &unseeded)))
}
