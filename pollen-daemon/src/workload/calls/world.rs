//! What a guest on this node may ask of the world: other seeds, services, and a line in the log. Owns the bounds of
//! what a guest may log; calls go the way of everyone's calls.
//! Invariant: a request ends by the deadline of the call that made it, and holds no thread while it waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use pollen_common::views::Name;
use pollen_common::wire::streams::call::Step;
use tokio::time::Instant;

use super::tail::{self, TailCall};
use super::target::Uri;
use super::{Ask, GUEST_RETRIES, Shared, dispatch};
use crate::workload::SeedRef;
use crate::workload::{BODY_BYTES_MAX, Caller, Invocation, LogLevel, World};

/// Lines that a seed may log at once after a pause.
const LINES_BURST: u32 = 200;
/// Lines that a seed may log in the long run, each second: a log that anybody reads has fewer.
const LINES_PER_SECOND: u32 = 50;
/// The longest line, in bytes.
const LINE_BYTES_MAX: usize = 4096;
/// Seeds whose logging is watched; beyond them all start anew.
const SEEDS_MAX: usize = 1024;

/// The world of one call.
pub(super) struct GuestWorld {
    shared: Arc<Shared>,
    /// The seed that runs, as it was called.
    step: Step,
    hops: u8,
    /// What the guest asked for last to answer in its place.
    tail: Mutex<Option<TailCall>>,
}

impl GuestWorld {
    pub(super) fn new(shared: Arc<Shared>, step: Step, hops: u8) -> Self {
        Self { shared, step, hops, tail: Mutex::default() }
    }

    /// What shall answer in the guest's place.
    pub(super) fn take_tail(&self) -> Option<TailCall> {
        self.tail.lock().expect("nothing panics while it holds this lock").take()
    }
}

impl World for GuestWorld {
    fn request(&self, invocation: &Invocation, uri: String, input: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        let (shared, deadline) = (Arc::clone(&self.shared), invocation.deadline);
        match uri.parse() {
            Err(error) => std::future::ready(Err(super::target::UriError::to_string(&error))).boxed(),
            Ok(Uri::Service(service)) => async move {
                let answer = shared.services.exchange(service, input, BODY_BYTES_MAX);
                match tokio::time::timeout_at(deadline, answer).await {
                    Ok(answer) => answer.map_err(|error| error.to_string()),
                    Err(_) => Err("the caller's deadline passed".to_owned()),
                }
            }
            .boxed(),
            Ok(Uri::Seed { name, function }) => {
                let Caller { peer, attributes, path } = &*invocation.caller;
                let path = path.iter().cloned().chain([self.step.clone()]).collect();
                let ask = Ask {
                    target: SeedRef::Name(name),
                    function,
                    input,
                    deadline,
                    retries: GUEST_RETRIES,
                    waited: Duration::ZERO,
                    caller: Arc::new(Caller { peer: *peer, attributes: attributes.clone(), path }),
                    hops: self.hops,
                };
                let done = dispatch::boxed(shared, ask);
                async move { done.await.map(|done| done.output).map_err(|failure| failure.message) }.boxed()
            }
        }
    }

    fn tail_call(&self, _: &Invocation, uri: &str, input: Bytes) -> bool {
        let tail = tail::to(uri, input).ok();
        let noted = tail.is_some();
        *self.tail.lock().expect("nothing panics while it holds this lock") = tail;
        noted
    }

    fn log_level(&self) -> LogLevel {
        use tracing::{Level, enabled};
        // Each is a place of its own to the filter, whose answer is remembered.
        if enabled!(target: "seed", Level::TRACE) {
            LogLevel::Trace
        } else if enabled!(target: "seed", Level::DEBUG) {
            LogLevel::Debug
        } else if enabled!(target: "seed", Level::INFO) {
            LogLevel::Info
        } else if enabled!(target: "seed", Level::WARN) {
            LogLevel::Warn
        } else {
            LogLevel::Error
        }
    }

    fn log(&self, invocation: &Invocation, level: LogLevel, message: &str) {
        match self.shared.log_gate.pass(&invocation.seed, Instant::now()) {
            None => return,
            Some(0) => {}
            Some(left_out) => tracing::warn!(target: "seed", seed = %invocation.seed, left_out, "it logs too much"),
        }
        let line = printable(message);
        let (seed, peer) = (&invocation.seed, invocation.caller.peer.short());
        match level {
            LogLevel::Trace => tracing::trace!(target: "seed", %seed, peer, "{line}"),
            LogLevel::Debug => tracing::debug!(target: "seed", %seed, peer, "{line}"),
            LogLevel::Info => tracing::info!(target: "seed", %seed, peer, "{line}"),
            LogLevel::Warn => tracing::warn!(target: "seed", %seed, peer, "{line}"),
            LogLevel::Error => tracing::error!(target: "seed", %seed, peer, "{line}"),
        }
    }
}

/// A guest's words as one line: nothing in them can begin a line of its own or move a cursor.
fn printable(message: &str) -> String {
    let end = message.floor_char_boundary(LINE_BYTES_MAX);
    message[..end].trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// How much each seed has logged lately.
#[derive(Debug, Default)]
pub(super) struct LogGate(Mutex<BTreeMap<Name, Bucket>>);

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
    left_out: u64,
}

impl LogGate {
    /// Whether a line may be written, and how many were left out since the last one.
    fn pass(&self, seed: &Name, now: Instant) -> Option<u64> {
        let mut buckets = self.0.lock().expect("nothing panics while it holds this lock");
        if buckets.len() >= SEEDS_MAX && !buckets.contains_key(seed) {
            buckets.clear();
        }
        if !buckets.contains_key(seed) {
            buckets.insert(seed.clone(), Bucket { left: f64::from(LINES_BURST), at: now, left_out: 0 });
        }
        let bucket = buckets.get_mut(seed).expect("put there above");
        let earned = now.saturating_duration_since(bucket.at).as_secs_f64() * f64::from(LINES_PER_SECOND);
        bucket.left = (bucket.left + earned).min(f64::from(LINES_BURST));
        bucket.at = now;
        if bucket.left < 1.0 {
            bucket.left_out += 1;
            return None;
        }
        bucket.left -= 1.0;
        Some(std::mem::take(&mut bucket.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_logs_too_much_is_cut_short_and_that_is_told_once() {
        let gate = LogGate::default();
        let (loud, quiet) = ("loud".parse().expect("a name"), "quiet".parse().expect("a name"));
        let now = Instant::now();
        let passed = (0..1000).filter(|_| gate.pass(&loud, now).is_some()).count();
        assert_eq!(passed, LINES_BURST as usize);
        assert_eq!(gate.pass(&quiet, now), Some(0));
        let now = now + Duration::from_secs(1);
        assert_eq!(gate.pass(&loud, now), Some(1000 - u64::from(LINES_BURST)));
        assert_eq!(gate.pass(&loud, now), Some(0));
    }

    #[test]
    fn a_guest_cannot_write_a_line_that_is_not_its_own() {
        assert_eq!(printable("hello\nERROR root: \u{1b}[31mall lost\n"), "hello ERROR root:  [31mall lost");
        assert_eq!(printable(&"ä".repeat(LINE_BYTES_MAX)).len(), LINE_BYTES_MAX);
    }
}
