//! What guests see of the kernel: Extism's memory functions, called through a guest that re-exports them, and opened up
//! inside a guest that calls them.

use super::Running;
use crate::{ALLOC, ERROR_OFFSET, KERNEL_BYTES_MAX, LENGTH};

/// Each memory function twice: `NAME` is the kernel's own, `call_NAME` calls it from the guest's code.
fn every_function() -> Running {
    let functions = [
        ("alloc", "(param i64) (result i64)", 1),
        ("free", "(param i64)", 1),
        ("length", "(param i64) (result i64)", 1),
        ("length_unsafe", "(param i64) (result i64)", 1),
        ("load_u8", "(param i64) (result i32)", 1),
        ("load_u64", "(param i64) (result i64)", 1),
        ("store_u8", "(param i64 i32)", 2),
        ("store_u64", "(param i64 i64)", 2),
        ("input_set", "(param i64 i64)", 2),
        ("input_offset", "(result i64)", 0),
        ("input_length", "(result i64)", 0),
        ("input_load_u8", "(param i64) (result i32)", 1),
        ("input_load_u64", "(param i64) (result i64)", 1),
        ("output_set", "(param i64 i64)", 2),
        ("output_offset", "(result i64)", 0),
        ("output_length", "(result i64)", 0),
        ("error_set", "(param i64)", 1),
        ("error_get", "(result i64)", 0),
        ("reset", "", 0),
        ("memory_bytes", "(result i64)", 0),
    ];
    let mut imports = String::new();
    let mut callers = String::new();
    for (name, ty, params) in functions {
        imports += &format!("(import \"extism:host/env\" \"{name}\" (func ${name} {ty}))\n");
        let args: String = (0..params).map(|index| format!("(local.get {index})")).collect();
        callers += &format!("(export \"{name}\" (func ${name})) ");
        callers += &format!("(func (export \"call_{name}\") {ty} (call ${name} {args}))\n");
    }
    Running::of(&format!("(module {imports} {callers})"))
}

/// Runs a check on the kernel's own functions and on those that the guest's code reaches.
fn both_ways(check: impl Fn(&mut Running, &dyn Fn(&str) -> String)) {
    check(&mut every_function(), &|name| name.to_owned());
    check(&mut every_function(), &|name| format!("call_{name}"));
}

#[test]
fn a_block_has_the_length_it_was_asked_for_and_keeps_what_is_stored() {
    both_ways(|guest, name| {
        let block = guest.call(&name("alloc"), &[13]).unwrap();
        assert_ne!(block, 0);
        assert_eq!(guest.call(&name("length"), &[block]).unwrap(), 13);
        assert_eq!(guest.call(&name("length_unsafe"), &[block]).unwrap(), 13);
        assert_eq!(guest.call(LENGTH, &[block]).unwrap(), 13);
        guest.call(&name("store_u64"), &[block, 0x0807_0605_0403_0201]).unwrap();
        guest.call(&name("store_u8"), &[block + 8, 0x109]).unwrap();
        assert_eq!(guest.call(&name("load_u64"), &[block + 1]).unwrap(), 0x0908_0706_0504_0302);
        assert_eq!(guest.call(&name("load_u8"), &[block + 8]).unwrap(), 9);
    });
}

#[test]
fn nothing_is_offset_zero_and_too_much_ends_the_call() {
    both_ways(|guest, name| {
        assert_eq!(guest.call(&name("alloc"), &[0]).unwrap(), 0);
        for length in [-1, i64::MIN, i64::MAX, 1 << 31, 1 << 32, (1 << 32) + 16, KERNEL_BYTES_MAX.cast_signed()] {
            assert!(guest.call(&name("alloc"), &[length]).is_err(), "{length}");
            assert!(guest.call(ALLOC, &[length]).is_err(), "{length}");
        }
        assert_ne!(guest.call(&name("alloc"), &[100 << 20]).unwrap(), 0, "below the bound there is room");
        assert!(guest.call(&name("alloc"), &[100 << 20]).is_err(), "but not twice");
        assert_ne!(guest.call(&name("alloc"), &[20 << 20]).unwrap(), 0, "and a refusal spoils nothing");
    });
}

#[test]
fn nothing_of_the_hosts_is_a_block_without_length() {
    both_ways(|guest, name| {
        let empty = guest.call(ALLOC, &[0]).unwrap();
        assert_ne!(empty, 0);
        assert_eq!(guest.call(LENGTH, &[empty]).unwrap(), 0);
        let next = guest.call(&name("alloc"), &[16]).unwrap();
        assert!(next != empty && (next - empty).abs() >= 32, "it is a block of its own, with its header");
        guest.call(&name("free"), &[empty]).unwrap();
        assert_eq!(guest.call(ALLOC, &[0]).unwrap(), empty, "it is freed like any other");
    });
}

#[test]
fn only_the_start_of_a_block_has_a_length() {
    let mut guest = every_function();
    let block = guest.call("alloc", &[64]).unwrap();
    let next = guest.call("alloc", &[64]).unwrap();
    for offset in [0, 1, 15, 16, block - 1, block + 1, block + 16, next + 64, 1 << 32, (1 << 32) + block, -1, i64::MIN]
    {
        assert_eq!(guest.call("length", &[offset]).unwrap(), 0, "{offset}");
    }
    // Bytes that were a header elsewhere are none here.
    let (first, second) =
        (guest.call("load_u64", &[block - 16]).unwrap(), guest.call("load_u64", &[block - 8]).unwrap());
    guest.call("store_u64", &[block + 16, first]).unwrap();
    guest.call("store_u64", &[block + 24, second]).unwrap();
    assert_eq!(guest.call("length", &[block + 32]).unwrap(), 0);
    // A forged length reaches beyond all blocks: it is none.
    guest.call("store_u64", &[next - 8, 1 << 30]).unwrap();
    assert_eq!(guest.call("length", &[next]).unwrap(), 0);
}

#[test]
fn freed_blocks_have_no_length_and_are_used_again() {
    let mut guest = every_function();
    let large = guest.call("alloc", &[1000]).unwrap();
    let guard = guest.call("alloc", &[16]).unwrap();
    guest.call("free", &[large]).unwrap();
    assert_eq!(guest.call("length", &[large]).unwrap(), 0);
    guest.call("free", &[large]).unwrap();
    let parts: Vec<i64> = (0..3).map(|_| guest.call("alloc", &[200]).unwrap()).collect();
    for part in &parts {
        assert!(*part >= large && *part + 200 <= large + 1000, "{part} is not within the freed {large}");
        assert_eq!(guest.call("length", &[*part]).unwrap(), 200);
    }
    assert!(parts.iter().all(|part| parts.iter().filter(|other| (*other - part).abs() < 200).count() == 1));
    assert_eq!(guest.call("length", &[guard]).unwrap(), 16);

    let last = guest.call("alloc", &[5000]).unwrap();
    guest.call("free", &[last]).unwrap();
    assert_eq!(guest.call("alloc", &[6000]).unwrap(), last, "the last block gives its place back whole");
}

#[test]
fn a_million_blocks_that_are_freed_need_no_more_memory_than_one() {
    let mut guest = Running::of(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "free" (func $free (param i64)))
            (import "extism:host/env" "memory_bytes" (func $bytes (result i64)))
            (export "bytes" (func $bytes))
            (func (export "churn") (result i32) (local $left i32) (local $old i64) (local $new i64)
              (local.set $left (i32.const 1000000))
              (loop $again
                (local.set $new (call $alloc (i64.extend_i32_u (i32.and (local.get $left) (i32.const 4095)))))
                (call $free (local.get $old))
                (local.set $old (local.get $new))
                (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
              (i32.const 0)))"#,
    );
    let before = guest.get("bytes");
    guest.get("churn");
    assert_eq!(guest.get("bytes"), before);
}

#[test]
fn the_input_is_read_within_its_length_only() {
    both_ways(|guest, name| {
        assert_eq!(guest.get(&name("input_length")), 0);
        assert_eq!(guest.call(&name("input_load_u8"), &[0]).unwrap(), 0);
        guest.call("alloc", &[100]).unwrap();
        guest.set_input(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(guest.get(&name("input_length")), 9);
        let at = guest.get(&name("input_offset"));
        assert_eq!(guest.call(&name("length"), &[at]).unwrap(), 9);
        assert_eq!(guest.call(&name("input_load_u8"), &[8]).unwrap(), 9);
        assert_eq!(guest.call(&name("input_load_u64"), &[1]).unwrap(), 0x0908_0706_0504_0302);
        for offset in [9, 10, 1 << 32, (1 << 32) + 1, -1, -8, i64::MIN] {
            assert_eq!(guest.call(&name("input_load_u8"), &[offset]).unwrap(), 0, "{offset}");
        }
        for offset in [2, 9, 1 << 32, (1 << 32) + 1, -1, -8, i64::MIN] {
            assert_eq!(guest.call(&name("input_load_u64"), &[offset]).unwrap(), 0, "{offset}");
        }
        guest.call(&name("free"), &[at]).unwrap();
        assert_eq!(guest.get(&name("input_length")), 0, "a freed input is gone");
    });
}

#[test]
fn a_short_input_is_read_by_bytes() {
    both_ways(|guest, name| {
        guest.set_input(&[7; 5]);
        assert_eq!(guest.call(&name("input_load_u8"), &[4]).unwrap(), 7);
        assert_eq!(guest.call(&name("input_load_u64"), &[0]).unwrap(), 0);
        guest.set_input(&[]);
        assert_eq!(guest.get(&name("input_length")), 5, "no input changes nothing: a fresh instance has none");
    });
}

#[test]
fn offsets_beyond_32_bits_trap_instead_of_wrapping() {
    both_ways(|guest, name| {
        let block = guest.call(&name("alloc"), &[64]).unwrap();
        for offset in [block + (1 << 32), block - (1 << 32), -8, i64::MIN, 0xffff_fffc] {
            assert!(guest.call(&name("load_u8"), &[offset]).is_err(), "{offset}");
            assert!(guest.call(&name("load_u64"), &[offset]).is_err(), "{offset}");
            assert!(guest.call(&name("store_u8"), &[offset, 1]).is_err(), "{offset}");
            assert!(guest.call(&name("store_u64"), &[offset, 1]).is_err(), "{offset}");
        }
        assert_eq!(guest.call(&name("load_u64"), &[block]).unwrap(), 0);
    });
}

#[test]
fn the_output_is_taken_only_if_it_lies_in_the_memory() {
    both_ways(|guest, name| {
        let block = guest.call(&name("alloc"), &[4]).unwrap();
        guest.call(&name("store_u8"), &[block, 0x61]).unwrap();
        guest.call(&name("output_set"), &[block, 1]).unwrap();
        assert_eq!(guest.output(), b"a");
        let bytes = guest.get(&name("memory_bytes"));
        for (offset, length) in [(block, bytes), (-1, 1), (1, -1), (bytes + 1, 0), (i64::MIN, i64::MIN), (1 << 32, 1)] {
            guest.call(&name("output_set"), &[offset, length]).unwrap();
            assert_eq!(guest.output(), b"a", "{offset} {length}");
        }
        assert_eq!((guest.get(&name("output_offset")), guest.get(&name("output_length"))), (block, 1));
        guest.call(&name("output_set"), &[0, 0]).unwrap();
        assert_eq!(guest.output(), b"");
    });
}

#[test]
fn an_error_is_set_cleared_and_never_outside() {
    both_ways(|guest, name| {
        let block = guest.call(&name("alloc"), &[4]).unwrap();
        guest.call(&name("error_set"), &[block]).unwrap();
        guest.call(&name("error_set"), &[-5]).unwrap();
        assert_eq!((guest.get(&name("error_get")), guest.global(ERROR_OFFSET)), (block, block));
        guest.call(&name("error_set"), &[0]).unwrap();
        assert_eq!(guest.global(ERROR_OFFSET), 0);
    });
}

#[test]
fn a_reset_forgets_all_blocks_and_their_bytes() {
    both_ways(|guest, name| {
        guest.set_input(b"input");
        let block = guest.call(&name("alloc"), &[4]).unwrap();
        guest.call(&name("store_u8"), &[block, 1]).unwrap();
        guest.call(&name("output_set"), &[block, 1]).unwrap();
        guest.call(&name("error_set"), &[block]).unwrap();
        guest.call(&name("reset"), &[]).unwrap();
        for gone in ["input_length", "output_length", "output_offset", "error_get"] {
            assert_eq!(guest.get(&name(gone)), 0, "{gone}");
        }
        assert_eq!(guest.call(&name("length"), &[block]).unwrap(), 0);
        assert_eq!(guest.call(&name("load_u8"), &[block]).unwrap(), 0);
    });
}

#[test]
fn an_input_that_the_guest_sets_is_checked_like_an_output() {
    both_ways(|guest, name| {
        let block = guest.call(&name("alloc"), &[16]).unwrap();
        guest.call(&name("store_u64"), &[block + 8, 5]).unwrap();
        guest.call(&name("input_set"), &[block, 16]).unwrap();
        guest.call(&name("input_set"), &[block, i64::MAX]).unwrap();
        guest.call(&name("input_set"), &[-16, 32]).unwrap();
        assert_eq!((guest.get(&name("input_offset")), guest.get(&name("input_length"))), (block, 16));
        assert_eq!(guest.call(&name("input_load_u64"), &[8]).unwrap(), 5);
    });
}
