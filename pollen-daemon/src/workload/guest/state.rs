//! What one call has beside its instance: who called, its variables, its half-written lines, what memory it took.
//! Must not outlive the call. Invariant: memory taken from the node's budget returns to it with the call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use pollen_common::identity::NodeKey;
use tokio::time::Instant;
use wasmtime::ResourceLimiter;

use super::Exports;
use super::lines::Lines;
use super::variables::Variables;
use crate::workload::engine::{Budget, Long};
use crate::workload::{Caller, Invocation, LogLevel, World};

/// Messages of one call that reach the log, in bytes; what comes after them is counted, not kept.
pub const LOG_BYTES_MAX: usize = 64 * 1024;
/// What each message costs of that beside its text, so that empty ones are bounded too.
const MESSAGE_COST_BYTES: usize = 32;

/// The state of one call.
pub(in crate::workload) struct CallState {
    pub(super) invocation: Arc<Invocation>,
    pub(super) world: Arc<dyn World>,
    pub(super) exports: Arc<Exports>,
    pub(super) variables: Variables,
    pub(super) limiter: Limiter,
    stdout: Lines,
    stderr: Lines,
    logged_bytes: usize,
    log_full: bool,
    /// The first line on standard error: runtimes say there why they gave up.
    complaint: Option<String>,
    /// It was interrupted because it computes at length.
    long: Option<Long>,
}

impl CallState {
    pub(in crate::workload) fn new(
        invocation: Invocation,
        world: Arc<dyn World>,
        exports: Arc<Exports>,
        budget: Arc<Budget>,
    ) -> Self {
        Self {
            invocation: Arc::new(invocation),
            world,
            exports,
            variables: Variables::default(),
            limiter: Limiter::new(budget),
            stdout: Lines::default(),
            stderr: Lines::default(),
            logged_bytes: 0,
            log_full: false,
            complaint: None,
            long: None,
        }
    }

    /// It has computed until it was interrupted: who comes now goes elsewhere, if there is less to do.
    pub(in crate::workload) fn ran_long(&mut self) {
        if self.long.is_none() {
            self.long = Long::here();
        }
    }

    /// It waits for something outside: meanwhile others have its thread.
    pub(super) fn waits(&mut self) {
        self.long = None;
    }

    /// The state of an instance that runs before any call, to take its image: nobody called it, and it reaches nobody.
    pub(in crate::workload) fn of_nobody(exports: Arc<Exports>, budget: Arc<Budget>, deadline: Instant) -> Self {
        let caller = Caller { peer: NodeKey([0; 32]), attributes: BTreeMap::new(), path: Vec::new() };
        let invocation = Invocation {
            seed: "image".parse().expect("it is a name"),
            function: "start".into(),
            input: Bytes::new(),
            caller: Arc::new(caller),
            deadline,
        };
        Self::new(invocation, Arc::new(NoWorld), exports, budget)
    }

    pub(in crate::workload) fn limiter(&mut self) -> &mut dyn ResourceLimiter {
        &mut self.limiter
    }

    /// What the guest says, to the log; bounded for each call.
    pub(super) fn log(&mut self, level: LogLevel, message: &str) {
        if self.log_full {
            return;
        }
        let bytes = message.len() + MESSAGE_COST_BYTES;
        if self.logged_bytes + bytes > LOG_BYTES_MAX {
            self.log_full = true;
            let note = format!("it wrote more than {} KiB in one call: the rest is dropped", LOG_BYTES_MAX / 1024);
            self.world.log(&self.invocation, LogLevel::Warn, &note);
            return;
        }
        self.logged_bytes += bytes;
        self.world.log(&self.invocation, level, message);
    }

    /// Bytes that the guest wrote to its standard output or error, a line at a time.
    pub(super) fn print(&mut self, is_error: bool, bytes: &[u8]) {
        if self.log_full {
            return;
        }
        // More than that would be dropped line by line.
        let bytes = &bytes[..bytes.len().min(LOG_BYTES_MAX)];
        let lines = if is_error { &mut self.stderr } else { &mut self.stdout };
        for line in lines.push(bytes) {
            self.print_line(is_error, &line);
            if self.log_full {
                return;
            }
        }
    }

    /// Lines that were begun and not ended are lines all the same.
    pub(super) fn finish_lines(&mut self) {
        for is_error in [false, true] {
            let rest = if is_error { self.stderr.finish() } else { self.stdout.finish() };
            if let Some(line) = rest {
                self.print_line(is_error, &line);
            }
        }
    }

    fn print_line(&mut self, is_error: bool, line: &str) {
        if is_error && self.complaint.is_none() {
            self.complaint = Some(line.to_owned());
        }
        self.log(if is_error { LogLevel::Warn } else { LogLevel::Info }, line);
    }

    /// The first line that the guest wrote on its standard error.
    pub(super) fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }
}

/// What an instance's growth is held to, and what of it was refused last.
pub(super) struct Limiter {
    budget: Arc<Budget>,
    grown_bytes: AtomicU64,
    pub(super) refused: Option<Refused>,
}

/// Why a memory did not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Beyond what the memory may have at the most. Only that of the blocks gets there: the guest's own has its limit
    /// within.
    Maximum,
    /// All calls of this node together have as much as they may.
    Budget { bytes: u64 },
}

impl Limiter {
    fn new(budget: Arc<Budget>) -> Self {
        Self { budget, grown_bytes: AtomicU64::new(0), refused: None }
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        // What an instance begins with was admitted with the call.
        if current == 0 {
            return Ok(true);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            self.refused = Some(Refused::Maximum);
            return Ok(false);
        }
        let more = desired.saturating_sub(current) as u64;
        if !self.budget.take(more) {
            self.refused = Some(Refused::Budget { bytes: self.budget.total_bytes() });
            return Ok(false);
        }
        self.grown_bytes.fetch_add(more, Ordering::Relaxed);
        self.refused = None;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(maximum.is_none_or(|maximum| desired <= maximum))
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.budget.give(*self.grown_bytes.get_mut());
    }
}

/// What an instance finds around it while its image is taken.
pub(in crate::workload) struct NoWorld;

impl World for NoWorld {
    fn request(&self, _: &Invocation, _: String, _: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(async { Err("there is nobody to ask while an image is taken".into()) })
    }

    fn log(&self, _: &Invocation, _: LogLevel, _: &str) {}
}
