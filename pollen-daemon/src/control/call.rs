//! `POST /v1/calls/SEED/FUNCTION`: a call of a seed, its bytes as they are. Answered before the router, and on
//! connections that stay open, since a call is the one request that comes by the thousand. Owns what such a request
//! looks like; the daemon makes the call.
//! Invariant: a body is bounded before it is read, and all bodies that are read at a time are.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::BytesMut;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use pollen_common::views::View;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::resolve;
use crate::handle::Daemon;
use crate::http::failure::{Code, Failure};
use crate::http::refused::Refused;
use crate::http::{After, App, Pace};
use crate::services::{COMING_MAX, may_come};
use crate::workload::BODY_BYTES_MAX;
use crate::workload::{CallAnswer, CallFailure, CallRequest, SeedRef};

/// What the path of a call begins with.
pub const PATH: &str = "/v1/calls/";
/// The node that answered, by its key.
pub const SERVED_BY: HeaderName = HeaderName::from_static("pln-served-by");
/// The version that answered.
pub const VERSION: HeaderName = HeaderName::from_static("pln-version");
/// How often the call was tried elsewhere before.
pub const RETRIES: HeaderName = HeaderName::from_static("pln-retries");
/// With a failure: whether the guest began, or may have.
pub const MAY_HAVE_RUN: HeaderName = HeaderName::from_static("pln-may-have-run");

/// How long a call may take where its asker does not say.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// The longest that an asker may wait: beyond it nobody does.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// How often a call is tried elsewhere where its asker does not say.
pub const RETRIES_DEFAULT: u32 = 3;
/// The most that an asker may say: more replicas than that, and the fault is not theirs.
pub const RETRIES_MAX: u32 = 100;
/// The longest name of a function, in bytes.
pub const FUNCTION_BYTES_MAX: usize = 255;

/// Connections that call at a time: what a machine's guests could not keep up with anyway. The socket takes a few more,
/// so that there is always room for a command.
pub const CALLERS_MAX: usize = 1024;
/// A body up to this size is read without asking for room: with [`CALLERS_MAX`] of them that is 64 MiB.
const SMALL_BODY_BYTES: usize = 64 * 1024;
/// Room for the larger ones, all together: eight of the largest.
const LARGE_BODIES_KIB: usize = 8 * BODY_BYTES_MAX / 1024;
/// How long a client may take over its input, waiting for room included.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// What an exchange may take beside the call itself: its input, and its output to a slow reader.
const EXCHANGE_SLACK: Duration = Duration::from_secs(120);

/// The control socket's requests: calls go straight to the daemon, everything else to the router.
#[derive(Clone)]
pub(super) struct Front {
    router: Router,
    calls: Arc<Calls>,
}

struct Calls {
    daemon: Arc<dyn Daemon>,
    callers: Arc<Semaphore>,
    large_bodies: Arc<Semaphore>,
}

impl Front {
    pub(super) fn new(daemon: Arc<dyn Daemon>, router: Router) -> Self {
        let calls = Calls {
            daemon,
            callers: Arc::new(Semaphore::new(CALLERS_MAX)),
            large_bodies: Arc::new(Semaphore::new(LARGE_BODIES_KIB)),
        };
        Self { router, calls: Arc::new(calls) }
    }
}

impl App for Front {
    async fn answer(&self, request: Request<Incoming>, pace: &Pace) -> (Response, After) {
        if !request.uri().path().starts_with(PATH) {
            return App::answer(&self.router, request, pace).await;
        }
        match self.calls.answer(request, pace).await {
            Ok(answer) => (shown(answer), After::Another),
            Err(Unanswered::Call(failure)) => (failed(failure), After::Another),
            // What is left of its body is of no use.
            Err(Unanswered::Request(response)) => (response, After::Close),
        }
    }

    const SEATS: bool = true;

    fn seat(&self, beginning: &[u8]) -> Option<Handle> {
        let seed = called(beginning)?;
        // What is no seed is refused wherever it is served.
        let seed = resolve::seed(&self.calls.daemon.view(), seed).ok()?;
        self.calls.daemon.seat_of_callers(&seed)
    }
}

/// The seed that a connection which begins like this calls, if it begins with a call.
fn called(beginning: &[u8]) -> Option<&str> {
    let target = beginning.strip_prefix(b"POST ")?.strip_prefix(PATH.as_bytes())?;
    let end = target.iter().position(|byte| *byte == b'/')?;
    std::str::from_utf8(&target[..end]).ok()
}

/// Why a request got no output.
enum Unanswered {
    /// The request is none that we take.
    Request(Response),
    Call(CallFailure),
}

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Self {
        Self::Request(failure.into_response())
    }
}

fn refused(reason: Refused, status: StatusCode, message: impl Into<String>) -> Unanswered {
    Unanswered::Request(reason.with(status, message))
}

impl Calls {
    async fn answer(&self, request: Request<Incoming>, pace: &Pace) -> Result<CallAnswer, Unanswered> {
        if !pace.has_place(&self.callers) {
            let busy = Failure::new(Code::Failed, format!("{CALLERS_MAX} connections to this socket call already"));
            let busy = busy.hint("it did not run: try again, on fewer connections");
            return Err(Unanswered::Request(Refused::Callers.mark(busy.into_response())));
        }
        let (head, body) = request.into_parts();
        if head.method != Method::POST {
            let message = format!("a call takes POST, not {}", head.method);
            return Err(refused(Refused::Method, StatusCode::METHOD_NOT_ALLOWED, message));
        }
        let asked = Asked::read(head.uri.path(), head.uri.query());
        let asked = asked.map_err(|message| refused(Refused::Target, StatusCode::BAD_REQUEST, message))?;
        pace.allow(asked.timeout + EXCHANGE_SLACK);
        let began = Instant::now();
        let seed = self.coming(&asked).await?;
        let waited = began.elapsed();
        let (input, room) = self.read(body).await?;
        let Asked { function, timeout, retries, .. } = asked;
        let call = CallRequest { seed, function: function.into_owned(), input, timeout, retries, waited };
        let answer = self.daemon.call(call).await.map_err(Unanswered::Call);
        drop(room);
        answer
    }

    /// The seed that is asked for; one that is not known yet is waited for, where news of it can come.
    async fn coming(&self, asked: &Asked<'_>) -> Result<SeedRef, Failure> {
        let found = resolve::seed(&self.daemon.view(), &asked.seed);
        if !is_unknown(&found) {
            return found;
        }
        let mut views = self.daemon.views();
        let may_end = |view: &Arc<View>| !may_come(view) || !is_unknown(&resolve::seed(view, &asked.seed));
        // What is not known by then is refused as unknown.
        let _ = tokio::time::timeout(COMING_MAX.min(asked.timeout), views.wait_for(may_end)).await;
        resolve::seed(&self.daemon.view(), &asked.seed)
    }

    /// The whole input. One that came with its head, as small ones do, is neither copied nor waited for.
    async fn read(&self, mut body: Incoming) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Unanswered> {
        if body.is_end_stream() {
            return Ok((Bytes::new(), None));
        }
        let declared = body.size_hint().exact();
        let declared = declared.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if declared.is_some_and(|bytes| bytes > BODY_BYTES_MAX) {
            return Err(too_large());
        }
        let first = match body.frame().now_or_never() {
            Some(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Some(Some(Err(error))) => return Err(broken(&error)),
            Some(None) | None => Bytes::new(),
        };
        if body.is_end_stream() {
            return Ok((first, None));
        }
        match tokio::time::timeout(BODY_TIMEOUT, self.read_on(body, first, declared)).await {
            Ok(read) => read,
            Err(_) => {
                let message = format!("no whole input within {} s", BODY_TIMEOUT.as_secs());
                Err(refused(Refused::BodySlow, StatusCode::REQUEST_TIMEOUT, message))
            }
        }
    }

    /// Where the size is not declared, the largest is reckoned with.
    async fn read_on(
        &self,
        mut body: Incoming,
        first: Bytes,
        declared: Option<usize>,
    ) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Unanswered> {
        let size_max = declared.unwrap_or(BODY_BYTES_MAX);
        let room = if size_max > SMALL_BODY_BYTES { Some(self.room(size_max).await) } else { None };
        let mut input = BytesMut::with_capacity(declared.unwrap_or(2 * first.len()));
        input.extend_from_slice(&first);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken(&error))?;
            let data = frame.into_data().unwrap_or_default();
            if input.len() + data.len() > BODY_BYTES_MAX {
                return Err(too_large());
            }
            input.extend_from_slice(&data);
        }
        Ok((input.freeze(), room))
    }

    async fn room(&self, bytes: usize) -> OwnedSemaphorePermit {
        let kib = u32::try_from(bytes.div_ceil(1024)).expect("no body is larger than BODY_BYTES_MAX");
        let room = Arc::clone(&self.large_bodies).acquire_many_owned(kib).await;
        room.expect("it is never closed")
    }
}

fn is_unknown(found: &Result<SeedRef, Failure>) -> bool {
    found.as_ref().is_err_and(|failure| failure.code == Code::NotFound)
}

fn too_large() -> Unanswered {
    let message = format!("the input is over the limit of {} MiB", BODY_BYTES_MAX / (1024 * 1024));
    refused(Refused::BodyTooLarge, StatusCode::PAYLOAD_TOO_LARGE, message)
}

fn broken(error: &hyper::Error) -> Unanswered {
    refused(Refused::BodyBroken, StatusCode::BAD_REQUEST, format!("the input broke off: {error}"))
}

fn shown(answer: CallAnswer) -> Response {
    let mut response = Response::new(Body::from(answer.output));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(SERVED_BY, text(answer.served_by.to_string()));
    headers.insert(VERSION, text(answer.version.to_string()));
    headers.insert(RETRIES, answer.retries.into());
    response
}

fn failed(failure: CallFailure) -> Response {
    let CallFailure { kind, message, hint, may_have_run, served_by } = failure;
    let mut response = Failure { code: kind.into(), message, hint, may_have_run: Some(may_have_run) }.into_response();
    let headers = response.headers_mut();
    headers.insert(MAY_HAVE_RUN, HeaderValue::from_static(if may_have_run { "true" } else { "false" }));
    if let Some(node) = served_by {
        headers.insert(SERVED_BY, text(node.to_string()));
    }
    response
}

/// Hexadecimal digits as a header's value, without another copy.
fn text(hex: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(hex)).expect("hexadecimal digits are no control characters")
}

/// What a call's path and query say.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    seed: Cow<'a, str>,
    function: Cow<'a, str>,
    timeout: Duration,
    retries: u32,
}

impl<'a> Asked<'a> {
    fn read(path: &'a str, query: Option<&str>) -> Result<Self, String> {
        let rest = path.strip_prefix(PATH).unwrap_or_default();
        let (seed, function) = rest.split_once('/').ok_or("a call's path is /v1/calls/SEED/FUNCTION")?;
        let (seed, function) = (decoded(seed)?, decoded(function)?);
        if seed.is_empty() || function.is_empty() || function.len() > FUNCTION_BYTES_MAX {
            return Err(format!("a call names a seed and a function, of at most {FUNCTION_BYTES_MAX} bytes"));
        }
        let mut asked = Self { seed, function, timeout: TIMEOUT_DEFAULT, retries: RETRIES_DEFAULT };
        for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("timeout_ms", ms)) => asked.timeout = timeout(ms)?,
                Some(("retries", count)) => asked.retries = retries(count)?,
                _ => return Err(format!("a call takes timeout_ms and retries, not `{pair}`")),
            }
        }
        Ok(asked)
    }
}

fn timeout(ms: &str) -> Result<Duration, String> {
    let read = ms.parse().map(Duration::from_millis).ok();
    read.filter(|time| !time.is_zero() && *time <= TIMEOUT_MAX)
        .ok_or_else(|| format!("timeout_ms is a number from 1 to {}, not `{ms}`", TIMEOUT_MAX.as_millis()))
}

fn retries(count: &str) -> Result<u32, String> {
    let read = count.parse().ok().filter(|count| *count <= RETRIES_MAX);
    read.ok_or_else(|| format!("retries is a number up to {RETRIES_MAX}, not `{count}`"))
}

/// A segment of a path without its percent encoding.
fn decoded(segment: &str) -> Result<Cow<'_, str>, String> {
    if !segment.contains('%') {
        return Ok(segment.into());
    }
    let wrong = || format!("`{segment}` is not percent-encoded text");
    let mut bytes = Vec::with_capacity(segment.len());
    let mut pieces = segment.split('%');
    bytes.extend_from_slice(pieces.next().unwrap_or_default().as_bytes());
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2).ok_or_else(wrong)?;
        let byte = data_encoding::HEXUPPER_PERMISSIVE.decode(digits.as_bytes()).map_err(|_| wrong())?;
        bytes.extend_from_slice(&byte);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::seat::LOOK_BYTES;

    #[test]
    fn a_call_says_its_seed_function_time_and_retries() {
        let plain = Asked::read("/v1/calls/hello/greet", None).expect("nothing more is needed");
        assert_eq!((&*plain.seed, &*plain.function), ("hello", "greet"));
        assert_eq!((plain.timeout, plain.retries), (TIMEOUT_DEFAULT, RETRIES_DEFAULT));
        let full = Asked::read("/v1/calls/a/b%2Fc%C3%A9", Some("timeout_ms=250&retries=0")).expect("it is well formed");
        assert_eq!((&*full.function, full.timeout, full.retries), ("b/cé", Duration::from_millis(250), 0));
    }

    #[test]
    fn the_first_bytes_of_a_connection_say_which_seed_it_calls() {
        let longest = format!("POST {PATH}{}/function HTTP/1.1", "a".repeat(64));
        assert_eq!(called(&longest.as_bytes()[..LOOK_BYTES]), Some("a".repeat(64).as_str()), "a whole hash");
        assert_eq!(called(b"POST /v1/calls/hello/greet?retries=0 HTTP/1.1"), Some("hello"));
        for other in ["", "POST /v1/calls/", "POST /v1/calls/hello", "GET /v1/calls/hello/greet", "POST /v1/seeds/a/b"]
        {
            assert_eq!(called(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_call_is_refused_with_a_sentence() {
        let long = format!("/v1/calls/a/{}", "f".repeat(256));
        for (path, query) in [
            ("/v1/calls/hello", None),
            ("/v1/calls//greet", None),
            ("/v1/calls/hello/", None),
            ("/v1/calls/hello/%F", None),
            ("/v1/calls/hello/%zz", None),
            ("/v1/calls/hello/%FF", None),
            ("/v1/calls/hello/a%é", None),
            (&long, None),
            ("/v1/calls/a/b", Some("timeout_ms=0")),
            ("/v1/calls/a/b", Some("timeout_ms=99999999")),
            ("/v1/calls/a/b", Some("retries=-1")),
            ("/v1/calls/a/b", Some("retry=1")),
        ] {
            assert!(Asked::read(path, query).is_err(), "{path} {query:?}");
        }
    }
}
