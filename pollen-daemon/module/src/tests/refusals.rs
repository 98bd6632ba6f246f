//! What may not be a seed, and the sentence that says so.

use proptest::prelude::any;
use proptest::{collection, proptest};

use super::{OPTIONS, merged};
use crate::{MODULE_BYTES_MAX, ModuleError, merge};

fn refusal(text: &str) -> ModuleError {
    merged(text).expect_err("the module is refused")
}

#[test]
fn bytes_that_are_no_module_are_named_for_what_they_are() {
    for bytes in [&b""[..], b"\0as", b"\0asm", b"\0asm\x02\0\0\0", b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01"] {
        assert_eq!(merge(bytes, &OPTIONS), Err(ModuleError::NotWasm), "{bytes:?}");
    }
    assert_eq!(merge(&wat::parse_str("(component)").unwrap(), &OPTIONS), Err(ModuleError::Component));
    let large = vec![0; MODULE_BYTES_MAX + 1];
    let error = merge(&large, &OPTIONS).unwrap_err();
    assert_eq!(error, ModuleError::TooLarge { bytes: MODULE_BYTES_MAX + 1, max: MODULE_BYTES_MAX });
}

#[test]
fn a_module_cut_anywhere_is_refused_or_whole() {
    let text = r#"(module (import "extism:host/env" "alloc" (func (param i64) (result i64))) (memory 1)
        (table 1 funcref) (elem (i32.const 0) 0) (global i32 (i32.const 1)) (data (i32.const 0) "abc")
        (func (export "f") (result i32) (memory.grow (i32.const 1))))"#;
    let wasm = wat::parse_str(text).unwrap();
    for end in 0..wasm.len() {
        if let Ok(merged) = merge(&wasm[..end], &OPTIONS) {
            wasmparser::validate(&merged.wasm).expect("what merging gives is valid");
        }
    }
}

#[test]
fn code_that_does_not_type_check_is_invalid() {
    let error = refusal("(module (func (result i32) (i64.const 1)))");
    assert!(matches!(&error, ModuleError::Invalid(reason) if reason.contains("type mismatch")), "{error}");
}

#[test]
fn a_guest_cannot_reach_the_kernels_memory() {
    let error = refusal("(module (memory 1) (func (drop (i32.load 1 (i32.const 0)))))");
    assert!(matches!(error, ModuleError::Invalid(_) | ModuleError::Feature(_)), "{error}");
    assert_eq!(refusal("(module (memory 1) (memory 1))"), ModuleError::Memories(2));
}

#[test]
fn features_outside_the_set_are_refused_as_features() {
    for text in [
        "(module (memory i64 1))",
        "(module (memory 1 1 shared))",
        "(module (type (struct (field i32))))",
        "(module (tag))",
        "(module (table 1 externref))",
        "(module (type $f (func)) (func (param (ref $f))))",
    ] {
        let error = refusal(text);
        assert!(matches!(error, ModuleError::Feature(_)), "{text}: {error}");
    }
}

#[test]
fn features_within_the_set_are_accepted() {
    for text in [
        "(module (func (param v128) (result v128) (i32x4.add (local.get 0) (local.get 0))))",
        "(module (func (param i32) (result i32) (i32.extend8_s (local.get 0))))",
        "(module (func (param f32) (result i32) (i32.trunc_sat_f32_s (local.get 0))))",
        "(module (func (result i32 i32) (i32.const 1) (i32.const 2)))",
        "(module (func $f (return_call $f)))",
        "(module (table 1 funcref) (table 2 funcref) (func (table.copy 0 1 (i32.const 0) (i32.const 0) (i32.const 1))))",
    ] {
        super::Running::of_merged(&merged(text).expect(text));
    }
}

#[test]
fn only_functions_may_be_imported() {
    for (kind, import) in [
        ("memory", r#"(import "env" "memory" (memory 1))"#),
        ("table", r#"(import "env" "table" (table 1 funcref))"#),
        ("global", r#"(import "env" "base" (global i32))"#),
    ] {
        let error = refusal(&format!("(module {import})"));
        assert!(matches!(&error, ModuleError::ImportKind { kind: found, .. } if *found == kind), "{error}");
    }
}

#[test]
fn an_import_that_nobody_knows_is_refused_by_name() {
    for (module, name) in [
        ("extism:host/env", "extism_alloc"),
        ("extism:host/user", "pollen_teleport"),
        ("wasi_snapshot_preview1", "fd_teleport"),
        ("env", "alloc"),
        ("env", "abort"),
        ("wasi_unstable", "fd_write"),
        ("", ""),
    ] {
        let error = refusal(&format!(r#"(module (import "{module}" "{name}" (func)))"#));
        assert_eq!(error, ModuleError::UnknownImport { module: module.to_owned(), name: name.to_owned() });
    }
    let sentence = refusal(r#"(module (import "env" "abort" (func)))"#).to_string();
    assert_eq!(sentence, "the module imports env abort, which is not offered here");
}

#[test]
fn an_import_of_another_type_is_refused_with_both_types() {
    for text in [
        r#"(module (import "extism:host/env" "alloc" (func (param i32) (result i64))))"#,
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32) (result i32))))"#,
        r#"(module (import "extism:host/user" "pollen_log" (func (param i64))))"#,
        r#"(module (import "extism:host/env" "http_status_code" (func (result i64))))"#,
    ] {
        assert!(matches!(refusal(text), ModuleError::ImportType { .. }), "{text}");
    }
    let sentence = refusal(r#"(module (import "extism:host/env" "alloc" (func (param i32) (result i64))))"#);
    assert_eq!(
        sentence.to_string(),
        "the module imports extism:host/env alloc as (i32) -> (i64); it is (i64) -> (i64)"
    );
}

#[test]
fn names_of_the_host_are_reserved() {
    let error = refusal(r#"(module (func (export "pln:alloc")))"#);
    assert_eq!(error, ModuleError::Reserved("pln:alloc".to_owned()));
    let error = refusal(r#"(module (import "pln:host" "f" (func)))"#);
    assert_eq!(error, ModuleError::Reserved("pln:host".to_owned()));
}

#[test]
fn a_module_as_full_as_the_validator_lets_it_be_is_refused_not_broken() {
    let error = refusal(&format!("(module {})", "(type (func))".repeat(1_000_000 - 3)));
    assert_eq!(error, ModuleError::Full("types"));
}

/// A module with something of each section.
fn of_everything() -> Vec<u8> {
    let text = r#"(module
        (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
        (import "extism:host/env" "load_u64" (func $load (param i64) (result i64)))
        (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
        (memory 1 9) (table 4 funcref) (elem (i32.const 0) $alloc $f) (global $g (mut i32) (i32.const 1))
        (data (i32.const 0) "active") (data $p "passive")
        (func $f (export "f") (result i32) (local $block i64)
          (local.set $block (call $alloc (i64.const 8)))
          (memory.init $p (i32.const 9) (i32.const 0) (i32.const 7))
          (drop (call $load (local.get $block)))
          (i32.add (memory.grow (i32.const 1)) (call_indirect (result i32) (i32.const 1))))
        (func $start (export "_initialize") (global.set $g (i32.const 2)))
        (start $start))"#;
    wat::parse_str(text).expect("the test's text assembles")
}

proptest! {
    #[test]
    fn a_damaged_module_is_refused_or_merged_into_a_valid_one(
        damage in collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut wasm = of_everything();
        for (at, byte) in damage {
            let at = at.index(wasm.len());
            wasm[at] = byte;
        }
        if let Ok(merged) = merge(&wasm, &OPTIONS) {
            wasmparser::validate(&merged.wasm).expect("what merging gives is valid");
        }
    }
}
