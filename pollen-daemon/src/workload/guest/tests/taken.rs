//! What the host takes over it frees, what it refuses ends the call, and an error that was set decides.

use super::*;

/// Imports of a guest that says, keeps and asks a lot.
const TALKATIVE: &str = r#"
  (import "extism:host/env" "store_u64" (func $store_u64 (param i64 i64)))
  (import "extism:host/env" "var_get" (func $get (param i64) (result i64)))
  (import "extism:host/env" "var_set" (func $set (param i64 i64)))
  (import "extism:host/env" "config_get" (func $config (param i64) (result i64)))
  (import "extism:host/env" "log_debug" (func $debug (param i64)))
  (import "extism:host/env" "log_info" (func $info (param i64)))
  (import "extism:host/env" "log_error" (func $error (param i64)))
  (import "extism:host/env" "get_log_level" (func $level (result i32)))
  (import "extism:host/user" "pollen_log" (func $pollen_log (param i64 i64)))
"#;

/// Does `body` so many times, then answers `end!`.
fn again(name: &str, times: u32, body: &str) -> String {
    format!(
        r#"(func (export "{name}") (result i32)
             (local $i i32)
             (loop $again
               {body}
               (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const {times}))))
             (call $answer (i32.const 0) (i32.const 4))
             (i32.const 0))"#
    )
}

#[tokio::test]
async fn whatever_a_guest_hands_over_again_and_again_takes_no_room() {
    let stage = Stage::new();
    let body = [
        r#"(data (i32.const 0) "end!")"#.to_owned(),
        again("log_long", 3000, "(call $info (call $alloc (i64.const 60000)))"),
        again("log_often", 200_000, "(call $info (call $alloc (i64.const 1000)))"),
        again("keep", 400, "(call $set (call $hand (i32.const 0) (i32.const 3)) (call $alloc (i64.const 500000)))"),
        again("look_up", 800_000, "(drop (call $config (call $alloc (i64.const 200))))"),
        again("read", 200_000, "(drop (call $get (call $alloc (i64.const 1000))))"),
    ];
    let guest = stage.guest(&text(TALKATIVE, &body.concat())).await;
    for function in ["log_long", "log_often", "keep", "look_up", "read"] {
        assert_eq!(call(&guest, function, b"").await.as_deref(), Ok(&b"end!"[..]), "{function}");
    }
}

#[tokio::test]
async fn a_block_that_is_name_and_value_at_once_is_both() {
    let stage = Stage::new();
    let both = r#"(data (i32.const 0) "key")
      (func (export "both") (result i32)
        (local $block i64) (local $got i64)
        (local.set $block (call $hand (i32.const 0) (i32.const 3)))
        (call $set (local.get $block) (local.get $block))
        (local.set $got (call $get (call $hand (i32.const 0) (i32.const 3))))
        (call $output_set (local.get $got) (call $length (local.get $got)))
        (i32.const 0))"#;
    let guest = stage.guest(&text(TALKATIVE, both)).await;
    assert_eq!(call(&guest, "both", b"").await.as_deref(), Ok(&b"key"[..]));
}

#[tokio::test]
async fn blocks_that_are_refused_end_the_call_and_are_never_a_wrong_answer() {
    let stage = Stage::new();
    let body = [
        r#"(data (i32.const 0) "end!")"#.to_owned(),
        again("hoard", 1000, "(call $store_u64 (call $alloc (i64.const 1048576)) (i64.const 7))"),
        again("ask_for_too_much", 1, "(drop (call $alloc (i64.const 4294967296)))"),
    ];
    let guest = stage.guest(&text(TALKATIVE, &body.concat())).await;
    for function in ["hoard", "ask_for_too_much"] {
        let ended = call(&guest, function, b"").await;
        assert!(
            matches!(ended, Err(CallError::Blocks { max_bytes }) if max_bytes == 128 * MIB),
            "{function}: {ended:?}"
        );
    }
}

#[tokio::test]
async fn an_error_that_was_set_decides_however_the_function_ends() {
    let stage = Stage::new();
    let exit = r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#;
    let body = r#"(data (i32.const 0) "boom, said the guest")
      (func $boom (call $answer (i32.const 0) (i32.const 4)) (call $error_set (call $hand (i32.const 0) (i32.const 20))))
      (func (export "returns_zero") (result i32) (call $boom) (i32.const 0))
      (func (export "returns_nothing") (call $boom))
      (func (export "returns_one") (result i32) (call $boom) (i32.const 1))
      (func (export "exits_with_zero") (call $boom) (call $exit (i32.const 0)))
      (func (export "exits_with_one") (call $boom) (call $exit (i32.const 1)))
      (func (export "traps") (call $boom) unreachable)
      (func (export "takes_it_back") (call $boom) (call $error_set (i64.const 0)))"#;
    let guest = stage.guest(&text(exit, body)).await;
    let plain = ["returns_zero", "returns_nothing", "returns_one", "exits_with_zero"];
    for function in plain {
        let ended = call(&guest, function, b"").await;
        assert_eq!(ended, Err(CallError::Failed("boom, said the guest".into())), "{function}");
    }
    for (function, how) in [("exits_with_one", "status 1"), ("traps", "unreachable")] {
        match call(&guest, function, b"").await {
            Err(CallError::Failed(said)) => {
                assert!(said.starts_with("boom, said the guest (") && said.contains(how), "{function}: {said}");
            }
            other => panic!("{function}: {other:?}"),
        }
    }
    assert_eq!(call(&guest, "takes_it_back", b"").await.as_deref(), Ok(&b"boom"[..]));
}

#[tokio::test]
async fn lines_that_nobody_asked_for_cost_nothing_and_long_ones_are_cut() {
    let stage = Stage::new();
    let body = [
        r#"(data (i32.const 0) "end!")"#.to_owned(),
        again("debug", 1000, "(call $debug (call $alloc (i64.const 200)))"),
        r#"(func (export "debug_then_error") (result i32)
             (local $i i32)
             (loop $again
               (call $debug (call $alloc (i64.const 200)))
               (call $pollen_log (i64.const 0) (call $hand (i32.const 0) (i32.const 4)))
               (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 1000))))
             (call $error (call $hand (i32.const 0) (i32.const 4)))
             (i32.sub (call $level) (i32.const 2)))
           (func (export "log_its_input")
             (call $pollen_log (i64.const 1) (call $input_offset))
             (call $output_set (call $input_offset) (call $input_length)))"#
            .to_owned(),
    ];
    let guest = stage.guest(&text(TALKATIVE, &body.concat())).await;
    let world = Arc::new(Witness { level: Some(LogLevel::Info), ..Witness::default() });
    guest
        .call(invocation("debug_then_error", b""), Arc::clone(&world) as _)
        .await
        .expect("it is told the level in force");
    assert_eq!(world.said(), [(LogLevel::Error, "end!".into())]);

    let world = Arc::new(Witness::default());
    let input = vec![b'x'; 1_000_000];
    let output = guest.call(invocation("log_its_input", &input), Arc::clone(&world) as _).await;
    assert!(output.is_ok_and(|output| output == input), "logging is no reason to fail");
    let said = world.said();
    assert!(said.len() == 1 && (1000..100_000).contains(&said[0].1.len()), "{} lines", said.len());
}
