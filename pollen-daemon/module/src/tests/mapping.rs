//! Every index that merging moves: wrongly mapped, a guest would call, read or return something else.

use super::{Running, merged};

const IMPORTS: &str = r#"
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "log_info" (func $log (param i64)))
    (import "extism:host/env" "length" (func $length (param i64) (result i64)))
    (import "extism:host/env" "length" (func $length_again (param i64) (result i64)))
    (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
    (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
    (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
    (import "extism:host/env" "load_u8" (func $load_u8 (param i64) (result i32)))"#;

fn guest(rest: &str) -> Running {
    Running::of(&format!("(module {IMPORTS} {rest})"))
}

#[test]
fn imports_of_the_host_stay_in_order_and_all_others_go() {
    let merged = merged(&format!(r#"(module {IMPORTS} (func (export "f") (call $log (i64.const 1))))"#)).unwrap();
    let expected = [("extism:host/env", "log_info"), ("wasi_snapshot_preview1", "sched_yield")];
    assert_eq!(merged.imports, expected.map(|(module, name)| (module.to_owned(), name.to_owned())));
    assert!(merged.initialize.is_none());
}

#[test]
fn names_of_extism_before_version_1_are_the_same_functions() {
    let merged = merged(
        r#"(module
            (import "env" "extism_alloc" (func (param i64) (result i64)))
            (import "env" "extism_config_get" (func (param i64) (result i64))))"#,
    );
    assert_eq!(merged.unwrap().imports, [("extism:host/env".to_owned(), "config_get".to_owned())]);
}

#[test]
fn calls_reach_guest_functions_kernel_functions_and_the_host() {
    let mut guest = guest(
        r#"(func $seven (result i32) (i32.const 7))
           (func (export "own") (result i32) (call $seven))
           (func (export "kernel") (result i32) (i32.wrap_i64 (call $length (call $alloc (i64.const 42)))))
           (func (export "host") (result i32) (call $yield))"#,
    );
    assert_eq!((guest.get("own"), guest.get("kernel")), (7, 42));
    let error = guest.call("host", &[]).unwrap_err();
    assert!(format!("{error:?}").contains("sched_yield"), "{error:?}");
}

#[test]
fn tables_hold_kernel_functions_and_guest_functions_alike() {
    let mut guest = guest(
        r#"(table 6 funcref)
           (elem (i32.const 0) $alloc $length_again $eight $load_u8)
           (elem (i32.const 4) funcref (ref.func $length) (ref.null func))
           (func $eight (result i32) (i32.const 8))
           (func (export "through_alloc") (result i32)
             (i32.wrap_i64 (call_indirect (param i64) (result i64)
               (call_indirect (param i64) (result i64) (i64.const 33) (i32.const 0)) (i32.const 1))))
           (func (export "through_expression") (result i32)
             (i32.wrap_i64 (call_indirect (param i64) (result i64) (call $alloc (i64.const 34)) (i32.const 4))))
           (func (export "through_load") (result i32) (local $block i64)
             (local.set $block (call $alloc (i64.const 1)))
             (call $store_u8 (local.get $block) (i32.const 77))
             (call_indirect (param i64) (result i32) (local.get $block) (i32.const 3)))
           (func (export "through_own") (result i32) (call_indirect (result i32) (i32.const 2)))
           (func (export "empty") (result i32) (call_indirect (result i32) (i32.const 5)))"#,
    );
    assert_eq!(guest.get("through_alloc"), 33);
    assert_eq!(guest.get("through_expression"), 34);
    assert_eq!(guest.get("through_load"), 77);
    assert_eq!(guest.get("through_own"), 8);
    assert!(guest.call("empty", &[]).is_err());
}

#[test]
fn references_to_imports_are_declared_and_kept() {
    let mut guest = guest(
        r#"(table $t 2 funcref)
           (elem declare func $alloc)
           (global $g funcref (ref.func $length))
           (func (export "f") (result i32)
             (table.set $t (i32.const 0) (ref.func $alloc))
             (table.set $t (i32.const 1) (global.get $g))
             (i32.wrap_i64 (call_indirect $t (param i64) (result i64)
               (call_indirect $t (param i64) (result i64) (i64.const 21) (i32.const 0)) (i32.const 1))))"#,
    );
    assert_eq!(guest.get("f"), 21);
}

#[test]
fn an_import_that_is_exported_again_is_the_kernels() {
    let mut guest = guest(r#"(export "again" (func $alloc)) (export "size" (func $length_again))"#);
    let block = guest.call("again", &[12]).unwrap();
    assert_eq!(guest.call("size", &[block]).unwrap(), 12);
}

#[test]
fn a_start_function_runs_once_in_each_instance_even_if_it_is_an_import() {
    let mut guest = guest(
        r#"(global $runs (mut i32) (i32.const 0))
           (func $begin (global.set $runs (i32.add (global.get $runs) (i32.const 1))))
           (start $begin)
           (func (export "runs") (result i32) (global.get $runs))"#,
    );
    assert_eq!(guest.get("runs"), 1);
    Running::of(r#"(module (import "extism:host/env" "reset" (func $reset)) (start $reset))"#);
}

#[test]
fn globals_of_the_guest_keep_their_places_and_extended_constants() {
    let mut guest = guest(
        r#"(global $a i32 (i32.const 5))
           (global $b (mut i64) (i64.const 6))
           (global $c i32 (i32.add (i32.const 5) (i32.const 2)))
           (data (offset (i32.add (i32.const 5) (i32.const 3))) "x")
           (memory 1)
           (func (export "f") (result i32)
             (global.set $b (i64.add (global.get $b) (i64.const 1)))
             (i32.add (i32.mul (i32.add (global.get $c) (global.get $a)) (i32.const 100))
               (i32.add (i32.wrap_i64 (global.get $b)) (i32.load8_u (i32.const 8)))))"#,
    );
    assert_eq!(guest.get("f"), 1200 + 7 + i64::from(b'x'));
}

#[test]
fn tail_calls_reach_what_calls_do() {
    let mut guest = guest(
        r#"(func $ask (param i64) (result i64) (return_call $length (local.get 0)))
           (func $load (param i64) (result i32) (return_call $load_u8 (local.get 0)))
           (func (export "length") (result i32) (i32.wrap_i64 (call $ask (call $alloc (i64.const 19)))))
           (func (export "load") (result i32) (local $block i64)
             (local.set $block (call $alloc (i64.const 1)))
             (call $store_u8 (local.get $block) (i32.const 55))
             (call $load (local.get $block)))"#,
    );
    assert_eq!((guest.get("length"), guest.get("load")), (19, 55));
}

#[test]
fn opened_accesses_keep_locals_blocks_and_unreachable_code_intact() {
    let mut guest = guest(
        r#"(func (export "f") (result i32) (local $a i32) (local $b f64) (local $block i64)
             (local.set $a (i32.const 3))
             (local.set $b (f64.const 2.5))
             (local.set $block (call $alloc (i64.const 8)))
             (block $out
               (loop $in
                 (call $store_u8 (local.get $block) (local.get $a))
                 (br_if $out (i32.eq (call $load_u8 (local.get $block)) (i32.const 3)))
                 (br $in)))
             (i32.add
               (i32.add (local.get $a) (i32.trunc_f64_s (local.get $b)))
               (call $load_u8 (local.get $block))))
           (func (export "never") (result i32) (unreachable) (call $load_u8) (drop) (call $store_u8) (i32.const 0))"#,
    );
    assert_eq!(guest.get("f"), 3 + 2 + 3);
    assert!(guest.call("never", &[]).is_err());
}

#[test]
fn a_function_without_room_for_scratch_locals_calls_instead() {
    for locals in [49_996, 49_997, 49_999] {
        let many = "i32 ".repeat(locals);
        let mut guest = guest(&format!(
            r#"(func $f (param $block i64) (result i32) (local {many}) (call $load_u8 (local.get $block)))
               (func (export "f") (result i32) (call $f (call $alloc (i64.const 1))))"#
        ));
        assert_eq!(guest.get("f"), 0, "{locals}");
    }
}

#[test]
fn callers_may_name_functions_without_parameters_and_at_most_one_i32() {
    let merged = merged(
        r#"(module
            (memory (export "memory") 1) (table (export "table") 1 funcref) (global (export "g") i32 (i32.const 0))
            (func (export "greet") (result i32) (i32.const 0))
            (func (export "touch"))
            (func (export "_start"))
            (func (export "_initialize"))
            (func (export "add") (param i32) (result i32) (i32.const 0))
            (func (export "wide") (result i64) (i64.const 0))
            (func (export "two") (result i32 i32) (i32.const 0) (i32.const 0)))"#,
    );
    assert_eq!(merged.unwrap().exports, ["greet", "touch", "_start"]);
}

#[test]
fn runtimes_are_started_as_extisms_hosts_do() {
    let trace = |exports: &str| {
        let mut guest = Running::of(&format!(
            r#"(module
                (global $trace (mut i32) (i32.const 0))
                (func $note (param i32)
                  (global.set $trace (i32.add (i32.mul (global.get $trace) (i32.const 10)) (local.get 0))))
                {exports}
                (func (export "trace") (result i32) (global.get $trace)))"#
        ));
        guest.get("trace")
    };
    let reactor = r#"(func (export "_initialize") (call $note (i32.const 1)))"#;
    let constructors = r#"(func (export "__wasm_call_ctors") (call $note (i32.const 2)))"#;
    let haskell = r#"(func (export "hs_init") (param i32 i32) (result i32)
        (call $note (i32.add (i32.const 3) (i32.add (local.get 0) (local.get 1)))) (i32.const 0))"#;
    let odd = r#"(func (export "__wasm_call_ctors") (param i32) (call $note (i32.const 4)))"#;
    assert_eq!(trace(""), 0);
    assert_eq!(trace(reactor), 1);
    assert_eq!(trace(constructors), 2);
    assert_eq!(trace(&[reactor, constructors].concat()), 2);
    assert_eq!(trace(&[reactor, haskell].concat()), 13);
    assert_eq!(trace(haskell), 3);
    assert_eq!(trace(&[reactor, odd].concat()), 0);
}

#[test]
fn traps_name_the_guests_functions() {
    let mut guest = guest(
        r#"(func $inner_most (unreachable))
           (func $outer (export "f") (call $inner_most) (drop (call $alloc (i64.const 1))))"#,
    );
    let trace = format!("{:?}", guest.call("f", &[]).unwrap_err());
    assert!(trace.contains("inner_most") && trace.contains("outer"), "{trace}");
}

#[test]
fn other_custom_sections_are_left_out() {
    let mut wasm = wat::parse_str(r#"(module (@custom "secret" "bytes") (func (export "f")))"#).unwrap();
    wasm.extend([0, 9, 4]);
    wasm.extend(b"name\x01\xff\xff\xff");
    let merged = crate::merge(&wasm, &super::OPTIONS).unwrap();
    assert!(!merged.wasm.windows(6).any(|window| window == b"secret"));
    Running::of_merged(&merged).get("f");
}
