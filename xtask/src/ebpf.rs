//! Builds `pollen-ebpf` for the BPF target and puts the object where `pln`'s build embeds it.
//! Two toolchains can: rustup's nightly with `rust-src`, and Debian's own compiler where rustup's servers are out of
//! reach. Which of them fits the installed `bpf-linker` depends on the LLVM it was built with, so each is tried.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::toolchain::{self, Toolchain};
use crate::{needs, nightly, shell};

/// The linker of BPF objects, and the LLVM that Debian 12 has for it.
const LINKER_VERSION: &str = "0.13.0";
const LLVM: &str = "22";

/// Debian's Rust for BPF.
const DEBIAN_RUST: &[&str] = &["rustc-web", "cargo-web", "rust-web-src", "libstd-rust-web-dev-bpf"];

const LLVM_NEED: needs::Need = needs::Need {
    what: "llvm",
    why: "what bpf-linker is built with",
    met: || shell::has("bpf-linker") || Path::new("/usr/lib/llvm-22/lib/libLLVM.so").exists(),
    packages: &["llvm-22-dev", "lld-22", "gcc", "g++", "zlib1g-dev", "libzstd-dev"],
};

/// `cargo xtask ebpf`.
pub fn run(flags: needs::Install) -> Result<()> {
    match build(flags)? {
        Built::Object(path) => println!("built {}", path.display()),
        Built::Nothing(reason) => bail!("{reason}"),
    }
    Ok(())
}

/// What a build came to.
pub enum Built {
    Object(PathBuf),
    /// The toolchain is not here; why.
    Nothing(String),
}

/// Builds the object, installing the toolchain if it is missing and may be installed.
pub fn build(flags: needs::Install) -> Result<Built> {
    if !linker(flags)? {
        return Ok(Built::Nothing("bpf-linker is not installed".to_owned()));
    }
    if !flags.no_install && !Toolchain::Nightly.has_sources() {
        // A failure is not final: Debian's toolchain is next.
        if let Err(error) = nightly::fetch() {
            println!("rustup has no nightly for us ({error:#}); trying Debian's compiler");
        }
    }
    let mut failures = Vec::new();
    for toolchain in [Toolchain::Nightly, Toolchain::Debian] {
        let fetch = || toolchain::fetch_debian(DEBIAN_RUST, "the compiler for BPF", flags);
        let usable = toolchain.has_sources() || (toolchain == Toolchain::Debian && fetch()?);
        if !usable {
            failures.push(format!("{toolchain:?}: not installed"));
            continue;
        }
        match compile(toolchain) {
            Ok(object) => return place(&object).map(Built::Object),
            Err(error) => failures.push(format!("{toolchain:?}: {error:#}")),
        }
    }
    Ok(Built::Nothing(failures.join("; ")))
}

fn compile(toolchain: Toolchain) -> Result<PathBuf> {
    let target_dir = toolchain::target_dir("ebpf")?;
    let mut cargo = toolchain.cargo("build");
    cargo.current_dir(shell::tree().join("pollen-ebpf"));
    cargo.args(["--release", "--locked", "--target", "bpfel-unknown-none", "-Zbuild-std=core"]);
    shell::run(cargo.arg("--target-dir").arg(&target_dir))?;
    Ok(target_dir.join("bpfel-unknown-none/release/pollen-ebpf"))
}

/// Puts the object where the daemon's build looks; only if it differs, for a new file there means a new build.
fn place(object: &Path) -> Result<PathBuf> {
    let built = std::fs::read(object).with_context(|| object.display().to_string())?;
    let place = shell::tree().join("pollen-ebpf/object/pollen-ebpf.o");
    if std::fs::read(&place).ok().as_ref() != Some(&built) {
        std::fs::write(&place, built).with_context(|| place.display().to_string())?;
    }
    Ok(place)
}

/// Whether the linker is there, installing it if it may be.
fn linker(flags: needs::Install) -> Result<bool> {
    let ready = needs::meet(&[LLVM_NEED], flags)?;
    if shell::has("bpf-linker") || flags.no_install || !ready {
        return Ok(shell::has("bpf-linker"));
    }
    let mut cargo = Command::new("cargo");
    cargo.env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}"));
    cargo.args(["install", "bpf-linker", "--locked", "--version", LINKER_VERSION]);
    shell::run(cargo.args(["--no-default-features", "--features", &format!("llvm-{LLVM}")]))?;
    Ok(shell::has("bpf-linker"))
}
