//! Guests of WebAssembly on the real engine, asked over the real transport.

use std::time::Duration;

use pollen_common::identity::Digest;
use pollen_common::views::SeedVersion;

use super::cluster::{Cluster, TestNode, request};
use super::{seed_version, with_seed};
use crate::workload::CallRequest;
use crate::workload::engine::{Engine, EngineConfig};

/// `run` answers with its input; `ask` with what `pln://seed/echo/run` makes of its input; `spin` never ends.
const GUEST: &str = r#"(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
  (import "extism:host/env" "input_offset" (func $input_offset (result i64)))
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (import "extism:host/user" "pollen_request" (func $request (param i64 i64) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 0) "pln://seed/echo/run")
  (func $uri (result i64)
    (local $block i64) (local $at i32)
    (local.set $block (call $alloc (i64.const 19)))
    (loop $next
      (call $store (i64.add (local.get $block) (i64.extend_i32_u (local.get $at))) (i32.load8_u (local.get $at)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const 19))))
    (local.get $block))
  (func (export "run") (result i32)
    (call $output_set (call $input_offset) (call $input_length))
    (i32.const 0))
  (func (export "ask") (result i32)
    (local $got i64)
    (local.set $got (call $request (call $uri) (call $input_offset)))
    (call $output_set (local.get $got) (call $length (local.get $got)))
    (i32.eqz (i32.wrap_i64 (local.get $got))))
  (func (export "spin") (result i32) (loop $on (br $on)) (i32.const 0)))"#;

fn engine(dir: &tempfile::TempDir) -> Engine {
    let config = EngineConfig {
        cache_dir: dir.path().join("code"),
        cache_key: [7; 32],
        memory_budget_bytes: 1 << 30,
        workers: 1,
        calls_max: 32,
    };
    Engine::start(config).expect("wasmtime runs here")
}

async fn host(node: &TestNode, engine: &Engine, wasm: &[u8], version: SeedVersion) {
    let guest = engine.prepare(version.module, wasm.to_vec(), &version).await.expect("a guest");
    node.host(version, move |given| {
        let guest = guest.clone();
        async move { guest.call(given.invocation, given.world).await }
    });
}

#[tokio::test]
async fn guests_on_two_nodes_ask_each_other_and_keep_their_limits() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (cluster, engine) = (Cluster::start(3), engine(&dir));
    let wasm = wat::parse_str(GUEST).expect("the text is valid");
    let module = Digest(*blake3::hash(&wasm).as_bytes());
    let echo = SeedVersion { module, size_bytes: wasm.len() as u64, timeout_ms: 300, ..seed_version(0) };
    // Another limit makes another version of the same module.
    let asks = SeedVersion { timeout_ms: 20_000, ..echo };
    host(&cluster.0[0], &engine, &wasm, asks).await;
    host(&cluster.0[1], &engine, &wasm, echo).await;
    let hosts = [cluster.key(0), cluster.key(1)];
    cluster.publish(|view| {
        let view = with_seed(view, "asks", &[asks], &[(asks, &hosts[..1])]);
        with_seed(view, "echo", &[echo], &[(echo, &hosts[1..])])
    });
    let of = |function: &str, seed, input| CallRequest { function: function.into(), ..request(seed, input) };
    let answer = cluster.0[2].call(of("ask", "asks", b"there and back")).await.expect("both are hosted");
    assert_eq!((&answer.output[..], answer.served_by), (&b"there and back"[..], hosts[0]));
    let failure = cluster.0[2].call(of("spin", "echo", b"")).await.expect_err("it never ends");
    assert_eq!(failure.message, "it reached its time limit of 0.3 s");
    let hasty = CallRequest { timeout: Duration::from_millis(500), ..of("spin", "asks", b"") };
    assert!(cluster.0[2].call(hasty).await.expect_err("too slow").may_have_run);
    let answer = cluster.0[2].call(request("echo", b"again")).await.expect("the next call works");
    assert_eq!(answer.output, "again");
    let missing = cluster.0[2].call(of("nope", "echo", b"")).await.expect_err("no such function");
    assert!(!missing.may_have_run && missing.message.contains("no function nope"), "{missing:?}");
}
