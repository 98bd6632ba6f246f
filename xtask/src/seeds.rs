//! Builds the example seeds of `docs/examples` into `target/seeds`, for people to try and for the tests to call.
//! Invariant: what could not be built is said with its reason, and no file of an older build stays in its place.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::toolchain::{self, Toolchain};
use crate::{needs, shell};

const TARGET: &str = "wasm32-unknown-unknown";
/// Debian's Rust, with the sources of its standard library and a linker for WebAssembly.
const DEBIAN_RUST: &[&str] = &["rustc-web", "cargo-web", "rust-web-src", "lld-22"];
const DEBIAN_LINKER: &str = "/usr/lib/llvm-22/bin/wasm-ld";
/// Go builds seeds since this minor version of 1: before it there is no `//go:wasmexport`.
const GO_MINOR_MIN: u32 = 24;

const IN_RUST: &[&str] = &["hello", "relay"];
const IN_TEXT: &[&str] = &["echo", "misbehave"];
const IN_GO: &[&str] = &["hello-go"];

/// What a build came to.
pub struct Built {
    /// Where the modules are: `hello.wasm` and so on.
    pub dir: PathBuf,
    /// What is not there, and why. Only what needs Go: the rest is an error.
    pub left_out: Vec<String>,
}

/// `cargo xtask seeds`.
pub fn run(flags: needs::Install) -> Result<()> {
    let built = build(flags)?;
    let mut modules: Vec<_> =
        std::fs::read_dir(&built.dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    modules.sort();
    for module in modules.iter().filter(|path| path.extension().is_some_and(|end| end == "wasm")) {
        println!("built {} ({} KiB)", module.display(), std::fs::metadata(module)?.len().div_ceil(1024));
    }
    for reason in &built.left_out {
        println!("left out: {reason}");
    }
    Ok(())
}

/// Builds all of them, installing what is missing where that may be done.
///
/// # Errors
/// If no compiler can build those in Rust, or an example does not compile.
pub fn build(flags: needs::Install) -> Result<Built> {
    let dir = toolchain::target_dir("seeds")?;
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let examples = shell::tree().join("docs/examples");
    for name in IN_TEXT {
        let source = examples.join(name).with_extension("wat");
        let module = wat::parse_file(&source).with_context(|| source.display().to_string())?;
        std::fs::write(module_path(&dir, name), module)?;
    }
    build_rust(&examples, &dir, flags)?;
    let mut left_out = Vec::new();
    for name in IN_GO {
        let module = module_path(&dir, name);
        match go() {
            Ok(go) => build_go(&go, &examples.join(name), &module)?,
            Err(reason) => {
                if module.exists() {
                    std::fs::remove_file(&module)?;
                }
                left_out.push(format!("the seed {name}: {reason}"));
            }
        }
    }
    Ok(Built { dir, left_out })
}

/// The module of one example: as `PLN_SEEDS` has it, else built now.
pub fn example(name: &str, flags: needs::Install) -> Result<PathBuf> {
    let dir = match std::env::var_os("PLN_SEEDS") {
        Some(dir) => dir.into(),
        None => build(flags)?.dir,
    };
    Ok(module_path(&dir, name))
}

fn module_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(name).with_extension("wasm")
}

/// With the first compiler that can.
fn build_rust(examples: &Path, dir: &Path, flags: needs::Install) -> Result<()> {
    let mut failures = Vec::new();
    for toolchain in [Toolchain::Default, Toolchain::Debian] {
        let usable = match toolchain {
            Toolchain::Default => toolchain.has_target(TARGET) || fetch_target(flags),
            _ => debian(flags)?,
        };
        if !usable {
            failures.push(format!("{toolchain:?}: it has no {TARGET}"));
            continue;
        }
        match compile(toolchain, examples, dir) {
            Ok(()) => return Ok(()),
            Err(error) => failures.push(format!("{toolchain:?}: {error:#}")),
        }
    }
    bail!("no compiler builds the seeds in Rust: {}", failures.join("; "))
}

fn compile(toolchain: Toolchain, examples: &Path, dir: &Path) -> Result<()> {
    for name in IN_RUST {
        // One folder for all: they share most of what they are built of.
        let target_dir = dir.join("cargo");
        let mut cargo = toolchain.cargo("build");
        cargo.current_dir(examples.join(name));
        cargo.args(["--release", "--locked", "--target", TARGET, "--target-dir"]).arg(&target_dir);
        if toolchain == Toolchain::Debian {
            cargo.arg("-Zbuild-std=std,panic_abort");
            cargo.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", DEBIAN_LINKER);
        }
        shell::run(&mut cargo)?;
        let module = target_dir.join(TARGET).join("release").join(name).with_extension("wasm");
        std::fs::copy(&module, module_path(dir, name)).with_context(|| module.display().to_string())?;
    }
    Ok(())
}

/// Asks rustup for the target; a failure is not final, for Debian's compiler is next.
fn fetch_target(flags: needs::Install) -> bool {
    if flags.no_install || !shell::has("rustup") {
        return false;
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", TARGET]).current_dir(shell::tree());
    if let Err(error) = shell::run(&mut rustup) {
        println!("rustup has no {TARGET} for us ({error:#}); trying Debian's compiler");
    }
    Toolchain::Default.has_target(TARGET)
}

fn debian(flags: needs::Install) -> Result<bool> {
    let usable = || Toolchain::Debian.has_sources() && Path::new(DEBIAN_LINKER).exists();
    if !usable() {
        toolchain::fetch_debian(DEBIAN_RUST, "the compiler for WebAssembly", flags)?;
    }
    Ok(usable())
}

/// The Go that is here, if it is new enough.
fn go() -> Result<PathBuf, String> {
    // Where Go's own archive puts it, off most paths.
    let go = if shell::has("go") { PathBuf::from("go") } else { PathBuf::from("/usr/local/go/bin/go") };
    let output = Command::new(&go).args(["env", "GOVERSION"]).output().map_err(|_| "Go is not installed".to_owned())?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if go_minor(&version).is_some_and(|minor| minor >= GO_MINOR_MIN) {
        Ok(go)
    } else {
        Err(format!("Go is {version}, and building seeds takes go1.{GO_MINOR_MIN}"))
    }
}

/// N of `go1.N.M`.
fn go_minor(version: &str) -> Option<u32> {
    let minor = version.strip_prefix("go1.")?;
    minor[..minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len())].parse().ok()
}

fn build_go(go: &Path, source: &Path, module: &Path) -> Result<()> {
    let mut go = Command::new(go);
    go.current_dir(source).env("GOOS", "wasip1").env("GOARCH", "wasm");
    go.args(["build", "-buildmode=c-shared", "-trimpath", "-ldflags=-s -w", "-o"]).arg(module).arg(".");
    shell::run(&mut go)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_told_apart() {
        assert_eq!(go_minor("go1.24"), Some(24));
        assert_eq!(go_minor("go1.26.8"), Some(26));
        assert_eq!(go_minor("go1.25rc1"), Some(25));
        assert_eq!(go_minor("go2.0"), None);
        assert_eq!(go_minor("devel"), None);
    }
}
