//! Guests on a real engine, written as text or built by the examples' compilers.

mod host;
mod images;
mod isolation;
mod limits;
mod taken;
mod wasi;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use pollen_common::identity::{Digest, NodeKey};
use pollen_common::views::SeedVersion;
use tokio::time::Instant;

use super::Guest;
use crate::workload::engine::{Engine, EngineConfig, PrepareError};
use crate::workload::{CallError, Caller, Invocation, LogLevel, World};

const MIB: u64 = 1024 * 1024;

/// An engine with a cache of its own.
struct Stage {
    engine: Engine,
    _dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut EngineConfig)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut config = EngineConfig {
            cache_dir: dir.path().join("code"),
            cache_key: [7; 32],
            memory_budget_bytes: 4096 * MIB,
            workers: 1,
            calls_max: 32,
        };
        change(&mut config);
        Self { engine: Engine::start(config).expect("wasmtime runs here"), _dir: dir }
    }

    async fn prepare(&self, text: &str) -> Result<Guest, PrepareError> {
        self.prepare_with(text, |_| {}).await
    }

    async fn prepare_with(&self, text: &str, change: impl FnOnce(&mut SeedVersion)) -> Result<Guest, PrepareError> {
        let wasm = wat::parse_str(text).expect("the text is valid");
        let mut version = version(&wasm);
        change(&mut version);
        self.engine.prepare(version.module, wasm, &version).await
    }

    /// A guest whose text holds everything it needs.
    async fn guest(&self, text: &str) -> Guest {
        self.prepare(text).await.expect("it is a guest")
    }
}

fn version(wasm: &[u8]) -> SeedVersion {
    SeedVersion {
        module: Digest(*blake3::hash(wasm).as_bytes()),
        size_bytes: wasm.len() as u64,
        memory_bytes: 8 * MIB,
        timeout_ms: 10_000,
        idempotent: false,
        image: false,
        tail_calls: false,
    }
}

fn invocation(function: &str, input: &[u8]) -> Invocation {
    Invocation {
        seed: "tested".parse().expect("it is a name"),
        function: function.into(),
        input: Bytes::copy_from_slice(input),
        caller: Arc::new(Caller {
            peer: NodeKey([0xab; 32]),
            attributes: BTreeMap::from([("region".into(), "eu".into())]),
            path: Vec::new(),
        }),
        deadline: Instant::now() + Duration::from_secs(30),
    }
}

async fn call(guest: &Guest, function: &str, input: &[u8]) -> Result<Bytes, CallError> {
    guest.call(invocation(function, input), Arc::new(Witness::default())).await
}

/// A world that remembers what it was told and asked, and answers with what it was asked.
#[derive(Default)]
struct Witness {
    said: Mutex<Vec<(LogLevel, String)>>,
    asked: Mutex<Vec<(String, Bytes)>>,
    delay: Duration,
    /// What it wants to hear of; all, if not said.
    level: Option<LogLevel>,
}

impl Witness {
    fn said(&self) -> Vec<(LogLevel, String)> {
        self.said.lock().expect("no test panics here").clone()
    }
}

impl World for Witness {
    fn request(&self, _: &Invocation, uri: String, input: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        self.asked.lock().expect("no test panics here").push((uri.clone(), input.clone()));
        let delay = self.delay;
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            if uri.ends_with("refused") { Err("it is refused".into()) } else { Ok(input) }
        })
    }

    fn log_level(&self) -> LogLevel {
        self.level.unwrap_or(LogLevel::Trace)
    }

    fn log(&self, _: &Invocation, level: LogLevel, message: &str) {
        self.said.lock().expect("no test panics here").push((level, message.to_owned()));
    }
}

/// Imports and functions that most guests of these tests need.
const PRELUDE: &str = r#"
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "load_u8" (func $load_u8 (param i64) (result i32)))
  (import "extism:host/env" "input_offset" (func $input_offset (result i64)))
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (import "extism:host/env" "error_set" (func $error_set (param i64)))
"#;

/// A function that makes a block of `length` bytes from `at` of the guest's memory.
const HAND: &str = r#"
  (func $hand (param $at i32) (param $length i32) (result i64)
    (local $block i64) (local $done i32)
    (local.set $block (call $alloc (i64.extend_i32_u (local.get $length))))
    (loop $next
      (call $store_u8 (i64.add (local.get $block) (i64.extend_i32_u (local.get $done)))
        (i32.load8_u (i32.add (local.get $at) (local.get $done))))
      (local.set $done (i32.add (local.get $done) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $done) (local.get $length))))
    (local.get $block))
  (func $answer (param $at i32) (param $length i32)
    (call $output_set (call $hand (local.get $at) (local.get $length)) (i64.extend_i32_u (local.get $length))))
"#;

/// A guest of these parts, with one page of memory.
fn text(imports: &str, body: &str) -> String {
    format!("(module {PRELUDE} {imports} (memory (export \"memory\") 1) {HAND} {body})")
}
