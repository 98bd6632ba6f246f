//! Each limit is hit, names itself, and the next call works.

use super::*;
use crate::workload::BODY_BYTES_MAX;
use crate::workload::engine::STACK_BYTES_MAX;
use pollen_module::KERNEL_BYTES_MAX;

const GREEDY: &str = r#"
  (func (export "fine") (result i32) (i32.const 0))
  (func (export "spin") (result i32) (loop $for_ever (br $for_ever)) unreachable)
  (func $deep (export "deep") (result i32) (i32.add (call $deep) (i32.const 1)))
  (func (export "allocate") (result i32)
    (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    unreachable)
  (func (export "content") (result i32)
    (if (i32.ne (memory.grow (i32.const 100000)) (i32.const -1)) (then unreachable))
    (i32.const 0))
  (func (export "hoard") (result i32)
    (loop $more (br_if $more (i64.ne (call $alloc (i64.const 1000000)) (i64.const 0))))
    unreachable)
  (func (export "shout") (result i32)
    (call $output_set (call $alloc (i64.const 40000000)) (i64.const 40000000))
    (i32.const 0))
  (func (export "wild") (result i32) (i32.load (i32.const -4)))
  (func (export "divide") (result i32) (i32.div_u (i32.const 1) (i32.const 0)))
"#;

async fn greedy(stage: &Stage) -> Guest {
    stage.prepare_with(&text("", GREEDY), |version| version.timeout_ms = 100).await.expect("it is a guest")
}

#[tokio::test]
async fn every_limit_of_a_guest_names_itself_and_the_next_call_works() {
    let stage = Stage::new();
    let guest = greedy(&stage).await;
    for (function, error) in [
        ("spin", CallError::Time(Duration::from_millis(100))),
        ("deep", CallError::Stack { max_bytes: STACK_BYTES_MAX }),
        ("allocate", CallError::Memory { max_bytes: 8 * MIB }),
        ("hoard", CallError::Blocks { max_bytes: KERNEL_BYTES_MAX }),
        ("shout", CallError::OutputTooLarge { bytes: 40_000_000, max: BODY_BYTES_MAX }),
        ("absent", CallError::no_function("absent".into(), guest.functions())),
    ] {
        assert_eq!(call(&guest, function, b"").await, Err(error));
        assert_eq!(call(&guest, "fine", b"").await.as_deref(), Ok(&b""[..]), "after {function}");
    }
    // A guest that takes a refusal well is not stopped.
    assert_eq!(call(&guest, "content", b"").await.as_deref(), Ok(&b""[..]));
    let numbers = stage.engine.numbers();
    assert_eq!(numbers.failures["time_limit"], 1);
    assert_eq!(numbers.failures["memory_limit"], 1);
    assert_eq!((numbers.running, numbers.memory_bytes), (0, 0));
}

#[tokio::test]
async fn a_trap_says_what_and_where() {
    let stage = Stage::new();
    let guest = greedy(&stage).await;
    for (function, expected) in [("wild", "out of bounds memory access"), ("divide", "integer divide by zero")] {
        match call(&guest, function, b"").await {
            Err(CallError::Trap(text)) => assert!(text.contains(expected), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_input_over_the_limit_never_reaches_the_guest() {
    let stage = Stage::new();
    let guest = greedy(&stage).await;
    let input = vec![0; BODY_BYTES_MAX + 1];
    let error = call(&guest, "fine", &input).await.expect_err("it is too large");
    assert_eq!(error, CallError::InputTooLarge { bytes: BODY_BYTES_MAX + 1, max: BODY_BYTES_MAX });
    assert!(error.never_ran());
    assert_eq!(call(&guest, "fine", &input[1..]).await.as_deref(), Ok(&b""[..]));
}

#[tokio::test]
async fn the_callers_deadline_is_told_from_the_seeds_own_limit() {
    let stage = Stage::new();
    let guest = greedy(&stage).await;
    let until = |deadline| Invocation { deadline, ..invocation("spin", b"") };
    let soon = until(Instant::now() + Duration::from_millis(20));
    assert_eq!(guest.call(soon, Arc::new(Witness::default())).await, Err(CallError::Deadline));
    let past = until(Instant::now());
    assert_eq!(guest.call(past, Arc::new(Witness::default())).await, Err(CallError::Deadline));
}

#[tokio::test]
async fn a_busy_guest_shares_its_thread() {
    let stage = Stage::new();
    let guest = stage.prepare_with(&text("", GREEDY), |version| version.timeout_ms = 5_000).await.expect("a guest");
    let spinning = tokio::spawn({
        let guest = guest.clone();
        async move { call(&guest, "spin", b"").await }
    });
    while stage.engine.running() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(call(&guest, "fine", b"").await.as_deref(), Ok(&b""[..]));
    assert!(!spinning.is_finished(), "the other one ran beside it, on the only worker");
    // Nobody waits for it any more, so it is stopped long before its time.
    spinning.abort();
    let given_up = Instant::now();
    while stage.engine.running() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(given_up.elapsed() < Duration::from_secs(2), "it was stopped after {:?}", given_up.elapsed());
}

#[tokio::test]
async fn no_more_calls_run_than_there_are_slots() {
    let stage = Stage::with(|config| config.calls_max = 16);
    let waiting = text(
        r#"(import "extism:host/user" "pollen_request" (func $ask (param i64 i64) (result i64)))"#,
        r#"(data (i32.const 0) "pln://seed/slow/f")
           (func (export "ask") (result i32)
             (drop (call $ask (call $hand (i32.const 0) (i32.const 17)) (i64.const 0))) (i32.const 0))"#,
    );
    let guest = stage.guest(&waiting).await;
    let world = Arc::new(Witness { delay: Duration::from_millis(200), ..Witness::default() });
    let calls: Vec<_> =
        (0..20).map(|_| guest.call(invocation("ask", b""), Arc::clone(&world) as Arc<dyn World>)).collect();
    let results = futures_util::future::join_all(calls).await;
    let refused: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert_eq!(refused, vec![&CallError::PoolFull(16); 4]);
    assert_eq!(call(&guest, "ask", b"").await.as_deref(), Ok(&b""[..]), "there is room again");
}

#[tokio::test]
async fn all_guests_together_keep_to_the_nodes_budget() {
    // An instance begins with 1 page, 8 MiB of room and 4 MiB of blocks, of which an eighth is taken.
    let stage = Stage::with(|config| config.memory_budget_bytes = 3 * MIB);
    let grow = r#"
      (func (export "fine") (result i32) (i32.const 0))
      (func (export "grow") (result i32)
        (if (i32.eq (memory.grow (i32.const 192)) (i32.const -1)) (then unreachable)) (i32.const 0))"#;
    let guest = stage.prepare_with(&text("", grow), |version| version.memory_bytes = 64 * MIB).await.expect("a guest");
    assert_eq!(call(&guest, "fine", b"").await.as_deref(), Ok(&b""[..]));
    let error = call(&guest, "grow", b"").await.expect_err("there is no room");
    assert_eq!(error, CallError::NodeMemory { max_bytes: 3 * MIB, ran: true });
    assert!(!error.never_ran());

    let stage = Stage::with(|config| config.memory_budget_bytes = MIB);
    let guest = stage.guest(&text("", grow)).await;
    let error = call(&guest, "fine", b"").await.expect_err("there is no room");
    assert_eq!(error, CallError::NodeMemory { max_bytes: MIB, ran: false });
    assert!(error.never_ran());
}

#[tokio::test]
async fn a_function_that_is_missing_is_answered_with_those_there_are_and_no_more_than_a_few() {
    let stage = Stage::new();
    let two = r#"(func (export "one") (result i32) (i32.const 0)) (func (export "two") (result i32) (i32.const 0))"#;
    let guest = stage.guest(&text("", two)).await;
    let said = call(&guest, "absent", b"").await.expect_err("it is absent").to_string();
    assert_eq!(said, "it has no function absent; it has one, two");

    let none = CallError::no_function("absent".into(), &[]).to_string();
    assert_eq!(none, "it has no function absent; it has none that can be called");

    let many: Vec<String> = (0..1000).map(|n| format!("{n}{}", "x".repeat(500))).collect();
    let said = CallError::no_function("absent".into(), &many).to_string();
    assert!(said.len() < 1300 && said.contains("and 984 more"), "{said}");
}
