//! WASI preview 1, as guests find it.

use tokio::time::timeout;

use super::*;

const IMPORTS: &str = r#"
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
"#;

async fn guest(stage: &Stage, body: &str) -> Guest {
    stage.guest(&text(IMPORTS, body)).await
}

#[tokio::test]
async fn what_is_printed_is_lines_in_the_log() {
    let stage = Stage::new();
    let guest = guest(
        &stage,
        r#"(data (i32.const 0) "one\ntwo, unended")
           (data (i32.const 32) "\00\00\00\00\03\00\00\00\03\00\00\00\0d\00\00\00")
           (func (export "print") (result i32)
             (if (call $fd_write (i32.const 1) (i32.const 32) (i32.const 2) (i32.const 64)) (then unreachable))
             (if (i32.ne (i32.load (i32.const 64)) (i32.const 16)) (then unreachable))
             (call $fd_write (i32.const 2) (i32.const 32) (i32.const 1) (i32.const 64)))
           (func (export "wild") (result i32)
             ;; An iovec that points beyond the memory, then one that lies beyond it.
             (i32.store (i32.const 32) (i32.const -4))
             (if (i32.ne (call $fd_write (i32.const 1) (i32.const 32) (i32.const 1) (i32.const 64)) (i32.const 21))
               (then unreachable))
             (if (i32.ne (call $fd_write (i32.const 1) (i32.const -8) (i32.const 2) (i32.const 64)) (i32.const 21))
               (then unreachable))
             (if (i32.ne (call $fd_write (i32.const 5) (i32.const 32) (i32.const 1) (i32.const 64)) (i32.const 8))
               (then unreachable))
             (i32.const 0))"#,
    )
    .await;
    let world = Arc::new(Witness::default());
    guest.call(invocation("print", b""), Arc::clone(&world) as _).await.expect("it prints");
    let expected = [(LogLevel::Info, "one"), (LogLevel::Info, "two, unended"), (LogLevel::Warn, "one")]
        .map(|(l, t)| (l, t.into()));
    assert_eq!(world.said(), expected);
    call(&guest, "wild", b"").await.expect("each is an error number");
}

#[tokio::test]
async fn there_are_no_files_no_environment_and_no_input() {
    let stage = Stage::new();
    let guest = guest(
        &stage,
        r#"(func (export "look") (result i32)
             (i32.store (i32.const 0) (i32.const 99))
             (i32.store (i32.const 4) (i32.const 99))
             (if (i32.ne (call $prestat (i32.const 3) (i32.const 0)) (i32.const 8)) (then unreachable))
             (if (i32.ne (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)
                 (i64.const -1) (i64.const -1) (i32.const 0) (i32.const 0)) (i32.const 8)) (then unreachable))
             (if (call $environ (i32.const 0) (i32.const 4)) (then unreachable))
             (if (i64.ne (i64.load (i32.const 0)) (i64.const 0)) (then unreachable))
             (i32.store (i32.const 8) (i32.const 99))
             (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 8)) (then unreachable))
             (i32.load (i32.const 8)))"#,
    )
    .await;
    call(&guest, "look", b"").await.expect("nothing is there");
}

#[tokio::test]
async fn clocks_run_and_random_bytes_differ() {
    let stage = Stage::new();
    let guest = guest(
        &stage,
        r#"(func (export "time") (result i32)
             (if (call $clock (i32.const 0) (i64.const 1) (i32.const 0)) (then unreachable))
             (if (call $clock (i32.const 1) (i64.const 1) (i32.const 8)) (then unreachable))
             (if (i64.eqz (i64.load (i32.const 8))) (then unreachable))
             (if (i32.ne (call $clock (i32.const 9) (i64.const 1) (i32.const 8)) (i32.const 28)) (then unreachable))
             (call $answer (i32.const 0) (i32.const 8))
             (i32.const 0))
           (func (export "random") (result i32)
             (if (call $random (i32.const 0) (i32.const 32)) (then unreachable))
             (if (i32.ne (call $random (i32.const 65530) (i32.const 100)) (i32.const 0)) (then unreachable))
             (call $answer (i32.const 0) (i32.const 32))
             (i32.const 0))
           (func (export "wild") (result i32)
             (i32.ne (call $random (i32.const -10) (i32.const 10)) (i32.const 21)))"#,
    )
    .await;
    let time = call(&guest, "time", b"").await.expect("clocks run");
    let time = u64::from_le_bytes(time[..].try_into().expect("eight bytes"));
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).expect("after 1970");
    assert!(now.abs_diff(Duration::from_nanos(time)) < Duration::from_secs(10));
    let (one, two) = (call(&guest, "random", b"").await, call(&guest, "random", b"").await);
    assert!(one.is_ok() && one != two, "{one:?} {two:?}");
    call(&guest, "wild", b"").await.expect("a fault is an error number");
}

#[tokio::test]
async fn a_sleeping_guest_holds_no_thread_and_wakes_in_time() {
    let stage = Stage::new();
    // A subscription to the monotonic clock, 100 ms from now.
    let guest = guest(
        &stage,
        r#"(data (i32.const 0) "mark....\00\00\00\00\00\00\00\00\01\00\00\00\00\00\00\00")
           (func (export "sleep") (result i32)
             (i64.store (i32.const 24) (i64.const 100000000))
             (if (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)) (then unreachable))
             (if (i32.ne (i32.load (i32.const 128)) (i32.const 1)) (then unreachable))
             (if (call $yield) (then unreachable))
             (call $answer (i32.const 64) (i32.const 4))
             (i32.const 0))
           (func (export "oversleep") (result i32)
             (i64.store (i32.const 24) (i64.const -1))
             (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
           (func (export "wild") (result i32)
             (i32.ne (call $poll (i32.const 0) (i32.const 64) (i32.const 1000000) (i32.const 128)) (i32.const 28)))"#,
    )
    .await;
    let start = Instant::now();
    let sleepers = (0..10).map(|_| call(&guest, "sleep", b""));
    for woken in futures_util::future::join_all(sleepers).await {
        assert_eq!(woken.as_deref(), Ok(&b"mark"[..]));
    }
    let slept = start.elapsed();
    assert!(slept >= Duration::from_millis(100) && slept < Duration::from_millis(900), "ten at once took {slept:?}");
    let soon = Invocation { deadline: Instant::now() + Duration::from_millis(50), ..invocation("oversleep", b"") };
    assert_eq!(guest.call(soon, Arc::new(Witness::default())).await, Err(CallError::Deadline));
    call(&guest, "wild", b"").await.expect("too many subscriptions are an error number");
}

#[tokio::test]
async fn exiting_ends_the_call_and_only_zero_is_success() {
    let stage = Stage::new();
    let guest = guest(
        &stage,
        r#"(data (i32.const 0) "goroutine gone\n")
           (data (i32.const 32) "\00\00\00\00\0f\00\00\00")
           (func (export "leave") (result i32)
             (call $answer (i32.const 0) (i32.const 4))
             (call $exit (i32.const 0)) unreachable)
           (func (export "die") (result i32)
             (drop (call $fd_write (i32.const 2) (i32.const 32) (i32.const 1) (i32.const 64)))
             (call $exit (i32.const 2)) unreachable)"#,
    )
    .await;
    assert_eq!(call(&guest, "leave", b"").await.as_deref(), Ok(&b"goro"[..]));
    let died = CallError::Failed("it exited with status 2: goroutine gone".into());
    assert_eq!(call(&guest, "die", b"").await, Err(died));
}

#[tokio::test]
async fn a_guest_that_computed_and_waits_is_no_longer_gone_around() {
    let stage = Stage::with(|config| config.workers = 2);
    let guest = guest(
        &stage,
        r#"(func $now (result i64)
             (drop (call $clock (i32.const 1) (i64.const 0) (i32.const 256)))
             (i64.load (i32.const 256)))
           (func (export "f") (result i32) (local $end i64)
             (local.set $end (i64.add (call $now) (i64.const 30000000)))
             (loop $again (br_if $again (i64.lt_u (call $now) (local.get $end))))
             (i32.store (i32.const 16) (i32.const 1))
             (i64.store (i32.const 24) (i64.const 60000000000))
             (call $poll (i32.const 0) (i32.const 128) (i32.const 1) (i32.const 200)))"#,
    )
    .await;
    let waiting = tokio::spawn(async move { call(&guest, "f", b"").await });
    let gone_around = || stage.engine.is_long(0) || stage.engine.is_long(1);
    let until = async |wanted| {
        while gone_around() != wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(10), until(true)).await.expect("it computes for longer than a tick");
    timeout(Duration::from_secs(10), until(false)).await.expect("it waits for a minute");
    assert!(!waiting.is_finished() && stage.engine.running() == 1);
    waiting.abort();
}
