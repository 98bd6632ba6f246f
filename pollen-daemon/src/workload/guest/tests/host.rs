//! What guests import of Extism and of Pollen.

use super::*;

#[tokio::test]
async fn input_comes_back_as_output() {
    let stage = Stage::new();
    let echo = r#"(func (export "echo") (result i32)
        (call $output_set (call $input_offset) (call $input_length)) (i32.const 0))
      (func (export "nothing"))"#;
    let guest = stage.guest(&text("", echo)).await;
    assert_eq!(guest.functions(), ["echo", "nothing"]);
    assert!(guest.has("echo") && !guest.has("memory"));
    for length in [0, 1, 64, 100_000, 5_000_000] {
        let input: Vec<u8> = (0..length).map(|index: u32| index.to_le_bytes()[0]).collect();
        assert_eq!(call(&guest, "echo", &input).await.as_deref(), Ok(&input[..]));
    }
    assert_eq!(call(&guest, "nothing", b"ignored").await.as_deref(), Ok(&b""[..]));
    assert_eq!(guest.calls(), 6);
}

#[tokio::test]
async fn a_guests_own_error_is_the_calls() {
    let stage = Stage::new();
    let failing = r#"(data (i32.const 0) "no such thing")
      (func (export "fail") (result i32)
        (call $error_set (call $hand (i32.const 0) (i32.const 13))) (i32.const 1))"#;
    let guest = stage.guest(&text("", failing)).await;
    assert_eq!(call(&guest, "fail", b"").await, Err(CallError::Failed("no such thing".into())));
}

#[tokio::test]
async fn variables_live_for_one_call_and_there_is_no_configuration() {
    let stage = Stage::new();
    let guest = stage
        .guest(&text(
            r#"(import "extism:host/env" "var_get" (func $get (param i64) (result i64)))
               (import "extism:host/env" "var_set" (func $set (param i64 i64)))
               (import "extism:host/env" "config_get" (func $config (param i64) (result i64)))"#,
            r#"(data (i32.const 0) "keyvalue")
               (func $key (result i64) (call $hand (i32.const 0) (i32.const 3)))
               (func (export "keep") (result i32)
                 (local $got i64)
                 (if (i64.ne (call $get (call $key)) (i64.const 0)) (then unreachable))
                 (if (i64.ne (call $config (call $key)) (i64.const 0)) (then unreachable))
                 (call $set (call $key) (call $hand (i32.const 3) (i32.const 5)))
                 (local.set $got (call $get (call $key)))
                 (call $output_set (local.get $got) (call $length (local.get $got)))
                 (call $set (call $key) (i64.const 0))
                 (if (i64.ne (call $get (call $key)) (i64.const 0)) (then unreachable))
                 (call $set (call $key) (call $key))
                 (i32.const 0))
               (func (export "hoard") (result i32)
                 (call $set (call $key) (call $alloc (i64.const 2000000))) (i32.const 0))"#,
        ))
        .await;
    for _ in 0..2 {
        assert_eq!(call(&guest, "keep", b"").await.as_deref(), Ok(&b"value"[..]));
    }
    match call(&guest, "hoard", b"").await {
        Err(CallError::Trap(text)) => assert!(text.contains("over the limit of 1048576"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn messages_reach_the_log_up_to_a_bound() {
    let stage = Stage::new();
    let guest = stage
        .guest(&text(
            r#"(import "extism:host/env" "log_warn" (func $warn (param i64)))
               (import "extism:host/env" "get_log_level" (func $level (result i32)))
               (import "extism:host/user" "pollen_log" (func $log (param i64 i64)))"#,
            r#"(data (i32.const 0) "hello")
               (func (export "log") (result i32)
                 (call $warn (call $hand (i32.const 0) (i32.const 5)))
                 (call $log (i64.const 3) (call $hand (i32.const 1) (i32.const 4)))
                 (call $level))
               (func (export "flood") (result i32)
                 (loop $again (call $warn (call $hand (i32.const 0) (i32.const 5))) (br $again))
                 unreachable)"#,
        ))
        .await;
    let world = Arc::new(Witness::default());
    guest.call(invocation("log", b""), Arc::clone(&world) as _).await.expect("everything is worth logging");
    assert_eq!(world.said(), [(LogLevel::Warn, "hello".into()), (LogLevel::Error, "ello".into())]);

    let world = Arc::new(Witness::default());
    let soon = Invocation { deadline: Instant::now() + Duration::from_millis(300), ..invocation("flood", b"") };
    assert_eq!(guest.call(soon, Arc::clone(&world) as _).await, Err(CallError::Deadline));
    let said = world.said();
    assert_eq!(said.len(), 65536 / 37 + 1);
    assert!(said.last().is_some_and(|(_, last)| last.contains("more than 64 KiB")), "{said:?}");
}

#[tokio::test]
async fn http_is_refused_with_a_sentence_and_other_imports_by_name() {
    let stage = Stage::new();
    let http = r#"(import "extism:host/env" "http_request" (func $http (param i64 i64) (result i64)))"#;
    let asking = r#"(func (export "ask") (result i32) (drop (call $http (i64.const 0) (i64.const 0))) (i32.const 0))"#;
    let guest = stage.guest(&text(http, asking)).await;
    match call(&guest, "ask", b"").await {
        Err(CallError::Trap(text)) => {
            assert!(text.starts_with("HTTP from guests is not allowed by any policy"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let unknown = r#"(import "extism:host/user" "launch" (func (param i64)))"#;
    let error = stage.prepare(&text(unknown, "")).await.err().expect("nobody offers it");
    assert!(error.to_string().contains("extism:host/user launch"), "{error}");
}

const ASKING: &str = r#"(import "extism:host/user" "pollen_request" (func $ask (param i64 i64) (result i64)))
  (import "extism:host/user" "pollen_caller_info" (func $info (result i64)))"#;

#[tokio::test]
async fn requests_go_to_the_world_and_come_back() {
    let stage = Stage::new();
    let guest = stage
        .guest(&text(
            ASKING,
            r#"(data (i32.const 0) "pln://seed/echo/echorefused")
               (func (export "ask") (result i32)
                 (local $got i64)
                 (local.set $got (call $ask (call $hand (i32.const 0) (i32.const 20)) (call $input_offset)))
                 (call $output_set (local.get $got) (call $length (local.get $got)))
                 (i32.const 0))
               (func (export "fail") (result i32)
                 (i32.wrap_i64 (call $ask (call $hand (i32.const 0) (i32.const 27)) (call $input_offset))))
               (func (export "empty") (result i32)
                 (local $got i64)
                 (local.set $got (call $ask (call $hand (i32.const 0) (i32.const 20)) (i64.const 0)))
                 (if (i64.eqz (local.get $got)) (then (return (i32.const 1))))
                 (i32.wrap_i64 (call $length (local.get $got))))
               (func (export "wild") (result i32)
                 (i32.wrap_i64 (call $length (call $ask (i64.const 12345) (i64.const -1)))))"#,
        ))
        .await;
    let world = Arc::new(Witness::default());
    let output = guest.call(invocation("ask", b"there and back"), Arc::clone(&world) as _).await;
    assert_eq!(output.as_deref(), Ok(&b"there and back"[..]));
    let asked = world.asked.lock().expect("no test panics here").clone();
    assert_eq!(asked, [("pln://seed/echo/echo".into(), Bytes::from_static(b"there and back"))]);

    let answer = guest.call(invocation("empty", b""), Arc::new(Witness::default())).await;
    answer.expect("an answer without bytes is a block without length, and no failure");

    let world = Arc::new(Witness::default());
    guest.call(invocation("fail", b""), Arc::clone(&world) as _).await.expect("0 is a failure that guests can bear");
    assert!(world.said().iter().any(|(_, line)| line.contains("it is refused")), "{:?}", world.said());
    // Handles of no block are an empty URI and an empty input, and so the answer is empty.
    guest.call(invocation("wild", b""), Arc::clone(&world) as _).await.expect("nothing happened");
}

#[tokio::test]
async fn a_guest_learns_who_called() {
    let stage = Stage::new();
    let guest = stage
        .guest(&text(
            ASKING,
            r#"(func (export "who") (result i32)
                 (local $got i64)
                 (local.set $got (call $info))
                 (call $output_set (local.get $got) (call $length (local.get $got)))
                 (i32.const 0))"#,
        ))
        .await;
    let output = call(&guest, "who", b"").await.expect("it answers");
    let info: serde_json::Value = serde_json::from_slice(&output).expect("it is JSON");
    assert_eq!(info["peerKey"], "ab".repeat(32));
    assert_eq!(info["attributes"], serde_json::json!({"region": "eu"}));
    let left = info["deadlineUnixMs"].as_u64().expect("a number");
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).expect("after 1970");
    let left = Duration::from_millis(left).saturating_sub(now);
    assert!(left > Duration::from_secs(20) && left <= Duration::from_secs(30), "{left:?}");
}
