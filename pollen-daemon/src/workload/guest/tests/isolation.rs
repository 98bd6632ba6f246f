//! Nothing of one call is visible to the next, which runs in the very same slot: there is one worker and one call at a
//! time.

use super::*;

const SOILER: &str = r#"
  (table $table 4 4 funcref)
  (elem (i32.const 0) $nothing)
  (global $count (mut i32) (i32.const 0))
  (data (i32.const 0) "\01fine")
  (func $nothing)

  ;; Leaves marks wherever it can.
  (func (export "soil") (result i32)
    (local $block i64)
    (global.set $count (i32.const 7))
    (i32.store8 (i32.const 0) (i32.const 99))
    (table.set $table (i32.const 2) (ref.func $nothing))
    (if (i32.eq (memory.grow (i32.const 40)) (i32.const -1)) (then unreachable))
    (memory.fill (i32.const 4096) (i32.const 0xaa) (i32.const 2600000))
    (local.set $block (call $alloc (i64.const 3000000)))
    (call $store_u8 (i64.add (local.get $block) (i64.const 2999999)) (i32.const 0xaa))
    (call $output_set (local.get $block) (i64.const 3000000))
    (i32.const 0))

  ;; Traps at the first mark it finds.
  (func (export "look") (result i32)
    (local $at i32) (local $block i64)
    (if (global.get $count) (then unreachable))
    (if (i32.ne (i32.load8_u (i32.const 0)) (i32.const 1)) (then unreachable))
    (if (i32.eqz (ref.is_null (table.get $table (i32.const 2)))) (then unreachable))
    (if (i32.ne (memory.size) (i32.const 1)) (then unreachable))
    (if (i64.ne (call $input_length) (i64.const 0)) (then unreachable))
    ;; Memory of before that comes back by growth is new.
    (if (i32.eq (memory.grow (i32.const 40)) (i32.const -1)) (then unreachable))
    (local.set $at (i32.const 4096))
    (loop $next
      (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then unreachable))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const 2600000))))
    (local.set $block (call $alloc (i64.const 3000000)))
    (local.set $at (i32.const 0))
    (loop $more
      (if (call $load_u8 (i64.add (local.get $block) (i64.extend_i32_u (local.get $at)))) (then unreachable))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $at) (i32.const 3000000))))
    (call $answer (i32.const 1) (i32.const 4))
    (i32.const 0))

  ;; Answers with nothing set: what another call's output was would show.
  (func (export "silent") (result i32) (i32.const 0))
  (func (export "failing") (result i32) (i32.const 3))
  (func (export "complain") (call $error_set (call $hand (i32.const 1) (i32.const 4))))
"#;

#[tokio::test]
async fn a_call_finds_nothing_of_the_one_before_in_the_same_slot() {
    let stage = Stage::new();
    let guest = stage.guest(&text("", SOILER)).await;
    for _ in 0..3 {
        assert_eq!(call(&guest, "soil", b"secret").await.map(|output| output.len()), Ok(3_000_000));
        assert_eq!(call(&guest, "look", b"").await.as_deref(), Ok(&b"fine"[..]));
        assert_eq!(call(&guest, "complain", b"").await, Err(CallError::Failed("fine".into())));
        assert_eq!(call(&guest, "silent", b"").await.as_deref(), Ok(&b""[..]));
        assert_eq!(call(&guest, "failing", b"").await, Err(CallError::Failed("it returned 3".into())));
    }
}

#[tokio::test]
async fn an_instance_that_was_stopped_in_the_middle_leaves_nothing_either() {
    let stage = Stage::new();
    let spin = r#"
      (global $count (mut i32) (i32.const 0))
      (func (export "spin") (result i32)
        (global.set $count (i32.const 1))
        (memory.fill (i32.const 0) (i32.const 0xaa) (i32.const 65536))
        (loop $for_ever (br $for_ever)) unreachable)
      (func (export "look") (result i32)
        (i32.add (global.get $count) (i32.load (i32.const 65000))))
    "#;
    let guest = stage.prepare_with(&text("", spin), |version| version.timeout_ms = 50).await.expect("it is a guest");
    for _ in 0..3 {
        assert_eq!(call(&guest, "spin", b"").await, Err(CallError::Time(Duration::from_millis(50))));
        assert_eq!(call(&guest, "look", b"").await.as_deref(), Ok(&b""[..]));
    }
}

#[tokio::test]
async fn slots_are_as_new_after_their_memory_went_back_to_the_kernel() {
    let stage = Stage::new();
    let guest = stage.guest(&text("", SOILER)).await;
    call(&guest, "soil", b"secret").await.expect("it soils");
    let kept = stage.engine.numbers().kept_bytes;
    let engine = stage.engine.clone();
    stage.engine.spawn(async move { engine.sweep(0).await }).await.expect("it sweeps");
    let after = stage.engine.numbers().kept_bytes;
    assert!(after < kept / 4, "{kept} bytes were kept, {after} after the sweep");
    assert_eq!(call(&guest, "look", b"").await.as_deref(), Ok(&b"fine"[..]));
}

#[tokio::test]
async fn what_a_large_call_touched_is_given_back_when_small_ones_follow() {
    let stage = Stage::new();
    let guest = stage.guest(&text("", SOILER)).await;
    call(&guest, "soil", b"secret").await.expect("it soils");
    let kept = stage.engine.numbers().kept_bytes;
    call(&guest, "look", b"").await.expect("it looks");
    assert!(stage.engine.numbers().kept_bytes > kept / 2, "another large one may follow");
    for _ in 0..8 {
        assert_eq!(call(&guest, "look", b"").await.as_deref(), Ok(&b"fine"[..]));
    }
    let after = stage.engine.numbers().kept_bytes;
    assert!(after < kept / 4, "{kept} bytes were kept, {after} after small calls");
}
