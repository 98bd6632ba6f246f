//! Images: instances that begin where a start ended.

use super::{Running, merged};
use crate::image::{ImageError, Imaging};
use crate::{INITIALIZE, Merged};

fn imaged(text: &str) -> Merged {
    let merged = merged(text).expect("the test's module may be a seed");
    let imaging = Imaging::of(&merged).expect("an image can be taken");
    let instrumented = Merged { wasm: imaging.wasm().to_vec(), ..merged.clone() };
    let Running { mut store, instance } = Running::of_merged(&instrumented);
    imaging.take(&mut store, instance).expect("an image is taken")
}

const SLOW_START: &str = r#"(module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "length" (func $length (param i64) (result i64)))
    (import "extism:host/env" "log_info" (func $log (param i64)))
    (memory (export "memory") 1)
    (data (i32.const 0) "from the module")
    (global $runs (mut i32) (i32.const 0))
    (global $block (mut i64) (i64.const 0))
    (global $ratio (mut f64) (f64.const 0))
    (func (export "_initialize")
      (global.set $runs (i32.add (global.get $runs) (i32.const 1)))
      (global.set $ratio (f64.const 0.5))
      (global.set $block (call $alloc (i64.const 77)))
      (drop (memory.grow (i32.const 2)))
      (i32.store (i32.const 150000) (i32.const 0x01020304)))
    (func (export "runs") (result i32) (global.get $runs))
    (func (export "length") (result i32) (i32.wrap_i64 (call $length (global.get $block))))
    (func (export "pages") (result i32) (memory.size))
    (func (export "half") (result i32) (i32.trunc_f64_s (f64.mul (global.get $ratio) (f64.const 100))))
    (func (export "grown") (result i32) (i32.load (i32.const 150000)))
    (func (export "first") (result i32) (i32.load8_u (i32.const 0))))"#;

#[test]
fn an_instance_of_an_image_begins_with_what_its_start_left() {
    let image = imaged(SLOW_START);
    assert!(image.initialize.is_none());
    assert_eq!(image.imports, [("extism:host/env".to_owned(), "log_info".to_owned())]);
    let mut guest = Running::of_merged(&image);
    assert_eq!((guest.get("runs"), guest.get("pages"), guest.get("half")), (1, 3, 50));
    assert_eq!((guest.get("grown"), guest.get("first")), (0x0102_0304, i64::from(b'f')));
    assert_eq!(guest.get("length"), 77, "blocks that the start allocated are there");
    assert!(guest.instance.get_func(&mut guest.store, INITIALIZE).is_none());
    guest.set_input(b"still works");
}

#[test]
fn an_image_of_a_module_without_start_is_that_module() {
    let image = imaged(r#"(module (memory 1) (func (export "f") (result i32) (i32.const 4)))"#);
    assert_eq!(Running::of_merged(&image).get("f"), 4);
}

#[test]
fn a_start_function_has_run_already() {
    let image = imaged(
        r#"(module (global $runs (mut i32) (i32.const 0))
            (func $begin (global.set $runs (i32.add (global.get $runs) (i32.const 1)))) (start $begin)
            (func (export "runs") (result i32) (global.get $runs)))"#,
    );
    assert_eq!(Running::of_merged(&image).get("runs"), 1);
}

#[test]
fn spent_segments_go_where_no_code_names_them() {
    let segments = |image: &Merged| {
        let sections = wasmparser::Parser::new(0).parse_all(&image.wasm);
        sections
            .filter_map(|payload| match payload.expect("an image is valid") {
                wasmparser::Payload::DataSection(segments) => Some(segments.count()),
                _ => None,
            })
            .sum::<u32>()
    };
    let many: String = (0..50).map(|at| format!("(data (i32.const {}) \"x\")", at * 2)).collect();
    let image = imaged(&format!(r#"(module (memory 1) {many} (func (export "f")))"#));
    assert_eq!(segments(&image), 1, "what is left is the memory as it was");

    let image = imaged(&format!(
        r#"(module (memory 1) {many} (data $p "passive")
            (func (export "f") (result i32)
              (memory.init $p (i32.const 1000) (i32.const 0) (i32.const 7)) (i32.load8_u (i32.const 1000))))"#
    ));
    assert_eq!(Running::of_merged(&image).get("f"), i64::from(b'p'), "segments that code names keep their places");
}

#[test]
fn what_an_image_cannot_hold_is_refused_with_the_way_out() {
    for text in [
        "(module (table 1 funcref) (func (table.set 0 (i32.const 0) (ref.null func))))",
        r#"(module (memory 1) (data $d "x") (func (data.drop $d)))"#,
        "(module (global (mut funcref) (ref.null func)))",
    ] {
        let merged = merged(text).unwrap();
        let error = Imaging::of(&merged).err().expect(text);
        assert!(matches!(error, ImageError::Unsupported(_)), "{text}: {error}");
        assert!(error.to_string().ends_with("publish it without --image"), "{error}");
    }
    let merged = merged(r#"(module (func (export "__wizer_memory_0")))"#).unwrap();
    assert!(matches!(Imaging::of(&merged), Err(ImageError::Reserved(_))));
}
