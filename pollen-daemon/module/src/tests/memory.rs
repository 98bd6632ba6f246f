//! The guest's memory: presized, yet by its own reckoning what it declared, and never over the limit.

use super::{MIB, OPTIONS, Running, merged};
use crate::{MEMORY_SIZE, ModuleError, ModuleOptions, PAGE_BYTES, PRESIZE_BYTES, merge};

const GROWER: &str = r#"(module
    (memory (export "memory") 2)
    (func (export "size") (result i32) (memory.size))
    (func (export "grow_by") (param i32) (result i32) (memory.grow (local.get 0)))
    (func (export "touch") (param i32) (result i32)
      (i32.store8 (local.get 0) (i32.const 1))
      (i32.load8_u (local.get 0)))
    (func (export "fill") (memory.fill (i32.const 65535) (i32.const 9) (i32.const 2)))
    (func (export "copy") (memory.copy (i32.const 0) (i32.const 65535) (i32.const 1))))"#;

#[test]
fn a_guest_sees_the_pages_that_it_declared_and_grew() {
    let mut guest = Running::of(GROWER);
    assert_eq!(guest.get("size"), 2);
    assert_eq!(guest.call("grow_by", &[3]).unwrap(), 2);
    assert_eq!(guest.call("grow_by", &[0]).unwrap(), 5);
    assert_eq!((guest.get("size"), guest.get(MEMORY_SIZE)), (5, 5));
    assert_eq!(guest.guest_pages() as u64, 2 + PRESIZE_BYTES / PAGE_BYTES, "growth within the presized part is free");
}

#[test]
fn growth_beyond_the_presized_part_is_real() {
    let mut guest = Running::of(GROWER);
    let limit_pages = i64::try_from(OPTIONS.memory_bytes / PAGE_BYTES).unwrap();
    assert_eq!(guest.call("grow_by", &[limit_pages - 2]).unwrap(), 2);
    assert_eq!(guest.guest_pages() as i64, limit_pages);
    let last = limit_pages * 65_536 - 1;
    assert_eq!(guest.call("touch", &[last]).unwrap(), 1);
    assert!(guest.call("touch", &[last + 1]).is_err());
}

#[test]
fn growth_beyond_the_limit_is_minus_one_and_changes_nothing() {
    let mut guest = Running::of(GROWER);
    let limit_pages = i64::try_from(OPTIONS.memory_bytes / PAGE_BYTES).unwrap();
    for more in [limit_pages - 1, limit_pages, 65_536, i64::from(i32::MAX), -1, i64::from(i32::MIN)] {
        assert_eq!(guest.call("grow_by", &[more]).unwrap(), -1, "{more}");
    }
    assert_eq!(guest.get("size"), 2);
    assert_eq!(guest.call("grow_by", &[limit_pages - 2]).unwrap(), 2);
    assert_eq!(guest.call("grow_by", &[1]).unwrap(), -1);
    assert_eq!(guest.get("size"), limit_pages);
}

#[test]
fn a_guests_own_maximum_holds_below_the_limit() {
    let mut guest = Running::of(
        r#"(module (memory 1 3) (func (export "grow_by") (param i32) (result i32) (memory.grow (local.get 0))))"#,
    );
    assert_eq!(guest.guest_pages(), 3, "presizing stops at the maximum");
    assert_eq!(guest.call("grow_by", &[3]).unwrap(), -1);
    assert_eq!(guest.call("grow_by", &[2]).unwrap(), 1);
}

#[test]
fn part_of_a_page_is_no_page() {
    let wasm = wat::parse_str(GROWER).unwrap();
    let merged = merge(&wasm, &ModuleOptions { memory_bytes: 3 * PAGE_BYTES - 1 }).unwrap();
    let mut guest = Running::of_merged(&merged);
    assert_eq!(guest.call("grow_by", &[1]).unwrap(), -1);
    assert_eq!(guest.guest_pages(), 2);
}

#[test]
fn a_memory_that_begins_over_the_limit_is_refused_with_both_numbers() {
    let error = merged("(module (memory 1025))").unwrap_err();
    assert_eq!(error, ModuleError::Memory { initial_bytes: 1025 * PAGE_BYTES, limit_bytes: 64 * MIB });
    assert!(error.to_string().contains("67174400") && error.to_string().contains("67108864"), "{error}");
    assert!(merged("(module (memory 1024))").is_ok());
}

#[test]
fn a_module_without_memory_gets_none() {
    let mut guest = Running::of(r#"(module (func (export "f")))"#);
    assert_eq!(guest.guest_pages(), 0);
    assert_eq!(guest.get(MEMORY_SIZE), 0);
}

#[test]
fn bulk_operations_and_segments_stay_in_the_guests_memory() {
    let mut guest = Running::of(GROWER);
    guest.get("fill");
    guest.get("copy");
    let memory = guest.memory(crate::MEMORY);
    assert_eq!((memory[0], memory[65_535], memory[65_536], memory[65_537]), (9, 9, 9, 0));

    let mut guest = Running::of(
        r#"(module (memory 1) (data (i32.const 5) "active") (data $p "passive")
            (func (export "f") (memory.init $p (i32.const 100) (i32.const 0) (i32.const 7)) (data.drop $p)))"#,
    );
    guest.get("f");
    let memory = guest.memory(crate::MEMORY);
    assert_eq!((&memory[5..11], &memory[100..107]), (&b"active"[..], &b"passive"[..]));
    assert!(guest.memory(crate::KERNEL).iter().all(|byte| *byte == 0));
}
