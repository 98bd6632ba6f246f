//! Seeds for the scenarios: the examples of this tree as built, and modules made up on the spot. Knows where
//! `cargo xtask seeds` puts what it builds. Invariant: a module that is handed out exists.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::Host;

/// The module of an example that is always there: `hello`, `relay`, `echo`, `misbehave`.
///
/// # Panics
/// If the examples cannot be built: nothing can be tested then.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    let path = dir().join(name).with_extension("wasm");
    assert!(path.exists(), "{} is not there: `cargo xtask seeds` makes it", path.display());
    path
}

/// The module of the example in Go, where Go is installed; says so where not.
#[must_use]
pub fn example_in_go() -> Option<PathBuf> {
    let path = dir().join("hello-go.wasm");
    if path.exists() {
        return Some(path);
    }
    // Not by `PLN_REQUIRE`: seeds in Go are tested where Go is.
    eprintln!("left out: {} is not there, as Go is not", path.display());
    None
}

/// A module whose function `answer` answers `text`, in a file of the host's: two texts are two modules.
///
/// # Errors
/// If the file cannot be written.
///
/// # Panics
/// If `text` is not plain: it is pasted into source.
pub fn answering(host: &Host, text: &str) -> Result<PathBuf> {
    assert!(text.chars().all(|c| c.is_ascii_alphanumeric() || c == ' '), "{text:?}");
    let source = format!(
        r#"(module
          (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
          (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
          (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
          (memory (export "memory") 1)
          (data (i32.const 0) "{text}")
          (func (export "answer") (result i32) (local $block i64) (local $done i32)
            (local.set $block (call $alloc (i64.const {length})))
            (loop $next
              (call $store_u8 (i64.add (local.get $block) (i64.extend_i32_u (local.get $done)))
                (i32.load8_u (local.get $done)))
              (local.set $done (i32.add (local.get $done) (i32.const 1)))
              (br_if $next (i32.lt_u (local.get $done) (i32.const {length}))))
            (call $output_set (local.get $block) (i64.const {length}))
            (i32.const 0)))"#,
        length = text.len(),
    );
    written(host, &text.replace(' ', "-"), &source)
}

/// WebAssembly text as a module in a file of the host's.
///
/// # Errors
/// If it is no WebAssembly, or the file cannot be written.
pub fn written(host: &Host, name: &str, source: &str) -> Result<PathBuf> {
    let module = wat::parse_str(source)?;
    std::fs::create_dir_all(host.dir())?;
    let path = host.dir().join(name).with_extension("wasm");
    std::fs::write(&path, module).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Where the examples are: `PLN_SEEDS`, or where they are built to now. Built once a process.
fn dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| match std::env::var_os("PLN_SEEDS") {
        Some(dir) => dir.into(),
        None => build().unwrap_or_else(|error| panic!("{error:#}")),
    })
}

fn build() -> Result<PathBuf> {
    let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let cargo = || {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(tree).stderr(Stdio::inherit());
        cargo
    };
    let status = cargo().args(["run", "--quiet", "--package", "xtask", "--", "seeds", "--no-install"]).status()?;
    ensure!(status.success(), "`cargo xtask seeds` failed");
    let metadata = cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output()?;
    let metadata: Value = serde_json::from_slice(&metadata.stdout)?;
    Ok(Path::new(metadata["target_directory"].as_str().context("cargo metadata: no target directory")?).join("seeds"))
}
