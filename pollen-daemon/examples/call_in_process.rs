//! The seed engine alone, called without a pause in its own process: what `cargo xtask bench call` measures beside the
//! `extism` crate. Prints one line of numbers. Callers are tasks on the engine's workers.
#![allow(clippy::print_stdout, reason = "its line is read by the benchmark")]

#[path = "../../bench/meter.rs"]
mod meter;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use meter::{Bell, Run, Start};
use pollen_common::identity::{Digest, NodeKey};
use pollen_common::views::SeedVersion;
use pollen_daemon::workload::engine::{Engine, EngineConfig};
use pollen_daemon::workload::guest::Guest;
use pollen_daemon::workload::{Caller, Invocation, LogLevel, World};

/// As many as the lab's machine has processors.
const WORKERS: usize = 2;
const CALLS_MAX: usize = 256;
const MEMORY_BUDGET: u64 = 4 << 30;
const GUEST_MEMORY: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Nobody to ask: `echo` asks nobody.
struct Nowhere;

impl World for Nowhere {
    fn request(&self, _: &Invocation, _: String, _: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(std::future::ready(Err("there is no mesh here".to_owned())))
    }

    fn log(&self, _: &Invocation, _: LogLevel, _: &str) {}
}

fn main() -> Result<()> {
    let run = Run::of_arguments();
    let before_kib = meter::resident_kib();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cache_dir = std::env::temp_dir().join(format!("pln-bench-{}", std::process::id()));
    let result = runtime.block_on(measure(&run, before_kib, &cache_dir));
    std::fs::remove_dir_all(cache_dir)?;
    result
}

async fn measure(run: &Run, before_kib: u64, cache_dir: &std::path::Path) -> Result<()> {
    let engine = Engine::start(EngineConfig {
        cache_dir: cache_dir.to_owned(),
        cache_key: [0; 32],
        memory_budget_bytes: MEMORY_BUDGET,
        workers: WORKERS,
        calls_max: CALLS_MAX,
    })?;
    let wasm = std::fs::read(&run.module)?;
    let module = Digest(*blake3::hash(&wasm).as_bytes());
    let version = SeedVersion {
        module,
        size_bytes: wasm.len() as u64,
        memory_bytes: GUEST_MEMORY,
        timeout_ms: 30_000,
        idempotent: false,
        image: run.image,
        tail_calls: false,
    };
    let guest = engine.prepare(module, wasm, &version).await?;
    let (input, world): (Bytes, Arc<dyn World>) = (run.input().into(), Arc::new(Nowhere));
    // The first call of all pays for what is made once.
    ensure!(guest.call(echo(&input), Arc::clone(&world)).await? == input, "the guest echoes something else");

    let bell = Arc::new(Bell::new());
    let start = Start::now();
    let callers: Vec<_> = (0..run.callers)
        .map(|_| engine.spawn(caller(guest.clone(), input.clone(), Arc::clone(&world), Arc::clone(&bell))))
        .collect();
    // This thread is none of the workers.
    bell.ring_after(Duration::from_secs(run.seconds));
    let mut took = Vec::new();
    for caller in callers {
        took.extend(caller.await.context("a caller panicked")?);
    }
    start.end(took).print(before_kib);
    Ok(())
}

async fn caller(guest: Guest, input: Bytes, world: Arc<dyn World>, bell: Arc<Bell>) -> Vec<u64> {
    let mut took = Vec::new();
    while !bell.rang() {
        let began = Instant::now();
        let output = guest.call(echo(&input), Arc::clone(&world)).await.expect("the guest answers");
        took.push(u64::try_from(began.elapsed().as_nanos()).expect("within five centuries"));
        assert_eq!(output.len(), input.len());
    }
    took
}

fn echo(input: &Bytes) -> Invocation {
    let caller = Caller { peer: NodeKey([0; 32]), attributes: Default::default(), path: Vec::new() };
    Invocation {
        seed: "bench".parse().expect("a name"),
        function: "echo".into(),
        input: input.clone(),
        caller: Arc::new(caller),
        deadline: tokio::time::Instant::now() + PATIENCE,
    }
}
