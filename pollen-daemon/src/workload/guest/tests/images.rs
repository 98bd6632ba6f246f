//! Images, and what is kept of compiled code.

use super::*;

/// A start that takes its time and leaves a mark, and counts itself where only the next call could see it.
const STARTING: &str = r#"
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
"#;
const STARTED: &str = r#"
  (global $started (mut i32) (i32.const 0))
  (func (export "_initialize")
    (global.set $started (i32.add (global.get $started) (i32.const 1)))
    (i32.store (i32.const 0) (global.get $started))
    (drop (call $random (i32.const 16) (i32.const 8))))
  (func (export "starts") (result i32)
    (i32.store8 (i32.const 8) (i32.add (i32.load (i32.const 0)) (i32.const 48)))
    (i32.store (i32.const 0) (i32.const 99))
    (call $answer (i32.const 8) (i32.const 1))
    (i32.const 0))
  (func (export "drawn") (result i32)
    (call $answer (i32.const 16) (i32.const 8))
    (i32.const 0))
"#;

#[tokio::test]
async fn every_instance_is_started_once_with_an_image_and_without() {
    let stage = Stage::new();
    for image in [false, true] {
        let guest =
            stage.prepare_with(&text(STARTING, STARTED), |version| version.image = image).await.expect("a guest");
        for _ in 0..3 {
            assert_eq!(call(&guest, "starts", b"").await.as_deref(), Ok(&b"1"[..]), "image: {image}");
        }
        let (one, two) = (call(&guest, "drawn", b"").await, call(&guest, "drawn", b"").await);
        assert!(one.is_ok());
        assert_eq!(one == two, image, "an image keeps what its start drew");
    }
    let numbers = stage.engine.numbers();
    assert_eq!((numbers.compilations, numbers.images), (2, 1));
}

#[tokio::test]
async fn a_start_that_never_ends_has_no_image() {
    let stage = Stage::new();
    let endless = r#"(func (export "_initialize") unreachable) (func (export "f"))"#;
    let error = stage.prepare_with(&text("", endless), |version| version.image = true).await.err().expect("it traps");
    assert!(error.to_string().contains("publish it without --image"), "{error}");
    let guest = stage.guest(&text("", endless)).await;
    assert!(matches!(call(&guest, "f", b"").await, Err(CallError::Trap(_))));
}

#[tokio::test]
async fn a_module_is_compiled_once_and_loaded_after_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let same_dir = |config: &mut EngineConfig| config.cache_dir = dir.path().join("code");
    let body = r#"(func (export "f") (result i32) (call $answer (i32.const 0) (i32.const 1)) (i32.const 0))"#;
    let numbers = |stage: &Stage| {
        let numbers = stage.engine.numbers();
        (numbers.compilations, numbers.cache_hits, numbers.cache_damaged)
    };

    let stage = Stage::with(same_dir);
    stage.guest(&text("", body)).await;
    stage.guest(&text("", body)).await;
    assert_eq!(numbers(&stage), (1, 1, 0));

    let stage = Stage::with(same_dir);
    let guest = stage.guest(&text("", body)).await;
    assert_eq!(numbers(&stage), (0, 1, 0));
    assert_eq!(guest.functions(), ["f"]);
    assert_eq!(call(&guest, "f", b"").await.as_deref(), Ok(&b"\0"[..]));
    stage.prepare_with(&text("", body), |version| version.memory_bytes *= 2).await.expect("it is a guest");
    assert_eq!(numbers(&stage), (1, 1, 0), "other limits are other code");

    for file in std::fs::read_dir(dir.path().join("code")).expect("it is there").flatten() {
        let mut code = std::fs::read(file.path()).expect("it is ours");
        let middle = code.len() / 2;
        code[middle] ^= 1;
        std::fs::write(file.path(), code).expect("it is ours");
    }
    let stage = Stage::with(same_dir);
    let guest = stage.guest(&text("", body)).await;
    assert_eq!(numbers(&stage), (1, 0, 1), "changed code is noticed and compiled anew");
    assert_eq!(call(&guest, "f", b"").await.as_deref(), Ok(&b"\0"[..]));
}

#[tokio::test]
async fn only_the_bytes_that_were_published_are_prepared() {
    let stage = Stage::new();
    let mut wasm = wat::parse_str(text("", "(func (export \"f\"))")).expect("the text is valid");
    let version = version(&wasm);
    *wasm.last_mut().expect("it is not empty") ^= 1;
    let error = stage.engine.prepare(version.module, wasm, &version).await.err().expect("they were changed");
    assert!(matches!(error, PrepareError::WrongBytes(digest) if digest == version.module), "{error}");
}
