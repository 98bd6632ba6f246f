//! Endless answers: the timeline and the logs, a JSON object a line. Owns following; the daemon owns what is followed.
//! Invariant: a reader slower than what it follows loses lines and is told so; it never makes the daemon keep them.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use futures_util::{Stream, StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::api::{EventLine, LogLine};
use super::server::{Api, Asked, Shared};
use crate::http::Endless;
use crate::http::failure::{Code, Failure};
use crate::http::refused::Refused;

/// Log lines told where the asker does not say how many.
const LOG_LINES_DEFAULT: usize = 50;
/// The most log lines told, whatever the asker says: what the daemon keeps.
pub const LOG_LINES_MAX: usize = 10_000;

/// How much to tell, and whether to go on.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Follow {
    #[serde(default)]
    follow: bool,
    /// The newest so many; everything kept where absent (events), [`LOG_LINES_DEFAULT`] (logs).
    lines: Option<usize>,
}

pub(super) async fn events(State(api): Shared, Asked(asked): Asked<Follow>) -> Response {
    let (mut past, live) = api.daemon.events();
    let skipped = asked.lines.map_or(0, |lines| past.len().saturating_sub(lines));
    past.drain(..skipped);
    let past: Vec<EventLine> = past.iter().map(EventLine::from).collect();
    // A gap shows in the numbers of the events themselves.
    answer(&api, asked.follow, past, live, |record| EventLine::from(&record), |_| None)
}

pub(super) async fn logs(State(api): Shared, Asked(asked): Asked<Follow>) -> Response {
    let (past, live) = api.daemon.logs(asked.lines.unwrap_or(LOG_LINES_DEFAULT).min(LOG_LINES_MAX));
    let past = past.into_iter().map(|line| LogLine { line }).collect();
    let gap = |lost| Some(LogLine { line: format!("({lost} lines lost: the reader was too slow)") });
    answer(&api, asked.follow, past, live, |line| LogLine { line }, gap)
}

fn answer<T: Clone + Send + 'static, L: Serialize + Send + 'static>(
    api: &Arc<Api>,
    follow: bool,
    past: Vec<L>,
    live: Receiver<T>,
    show: impl Fn(T) -> L + Send + 'static,
    gap: impl Fn(u64) -> Option<L> + Send + 'static,
) -> Response {
    let past = stream::iter(past);
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    if !follow {
        return (kind, Body::from_stream(past.map(line))).into_response();
    }
    let Ok(place) = Arc::clone(&api.followers).try_acquire_owned() else {
        let failure = Failure::new(Code::Failed, "too many are following already");
        return Refused::Followers.mark(failure.hint("end another `pln events` or `pln logs -f`").into_response());
    };
    let live =
        follow_live(live, place).filter_map(move |told| std::future::ready(told.map(&show).map_or_else(&gap, Some)));
    let body = Body::from_stream(past.chain(live).map(line));
    let mut response = (kind, body).into_response();
    response.extensions_mut().insert(Endless);
    response
}

/// What happens from now on, or how much of it was missed. The reader holds its place for as long as it reads.
fn follow_live<T: Clone + Send + 'static>(
    live: Receiver<T>,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<T, u64>> {
    stream::unfold((live, place), async |(mut live, place)| {
        let told = match live.recv().await {
            Ok(item) => Ok(item),
            Err(RecvError::Lagged(lost)) => Err(lost),
            Err(RecvError::Closed) => return None,
        };
        Some((told, (live, place)))
    })
}

pub(super) fn line(line: impl Serialize) -> Result<Bytes, serde_json::Error> {
    let mut bytes = serde_json::to_vec(&line)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}
