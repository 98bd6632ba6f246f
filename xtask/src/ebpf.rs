//! Builds `pollen-ebpf` for the BPF target and puts the object where `pln`'s build embeds it.
//! Two toolchains can: rustup's nightly with `rust-src`, and Debian's own compiler where rustup's servers are out of
//! reach. Which of them fits the installed `bpf-linker` depends on the LLVM it was built with, so each is tried.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

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
    if !flags.no_install && !Toolchain::Nightly.usable() {
        // A failure is not final: Debian's toolchain is next.
        if let Err(error) = nightly::fetch() {
            println!("rustup has no nightly for us ({error:#}); trying Debian's compiler");
        }
    }
    let mut failures = Vec::new();
    for toolchain in [Toolchain::Nightly, Toolchain::Debian] {
        let fetched = toolchain.usable() || (toolchain == Toolchain::Debian && fetch_debian(flags)?);
        if !fetched {
            failures.push(format!("{toolchain:?}: not installed"));
            continue;
        }
        match toolchain.build() {
            Ok(object) => return place(&object).map(Built::Object),
            Err(error) => failures.push(format!("{toolchain:?}: {error:#}")),
        }
    }
    Ok(Built::Nothing(failures.join("; ")))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Toolchain {
    Nightly,
    Debian,
}

impl Toolchain {
    /// Whether it has the sources of `core`, which no toolchain ships built for BPF.
    fn usable(self) -> bool {
        let sysroot = self.rustc().args(["--print", "sysroot"]).output();
        sysroot.ok().filter(|output| output.status.success()).is_some_and(|output| {
            let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
        })
    }

    fn rustc(self) -> Command {
        match self {
            Self::Nightly => {
                let mut rustc = Command::new("rustc");
                rustc.arg("+nightly");
                rustc
            }
            Self::Debian => Command::new("/usr/bin/rustc"),
        }
    }

    fn build(self) -> Result<PathBuf> {
        let target_dir = target_dir()?;
        let mut cargo = match self {
            Self::Nightly => {
                let mut cargo = Command::new("cargo");
                cargo.arg("+nightly");
                cargo
            }
            Self::Debian => {
                let mut cargo = Command::new("/usr/bin/cargo");
                // Building `core` is a nightly feature; Debian's compiler is a stable one.
                cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTUP_TOOLCHAIN");
                cargo
            }
        };
        // `cargo run` points it at the libraries of the toolchain that xtask was built with, not at this one's.
        cargo.env_remove("LD_LIBRARY_PATH").current_dir(shell::tree().join("pollen-ebpf"));
        cargo.args(["build", "--release", "--locked", "--target", "bpfel-unknown-none", "-Zbuild-std=core"]);
        shell::run(cargo.arg("--target-dir").arg(&target_dir))?;
        Ok(target_dir.join("bpfel-unknown-none/release/pollen-ebpf"))
    }
}

/// Beside the workspace's own artefacts, so that a kept target directory keeps these too.
fn target_dir() -> Result<PathBuf> {
    let metadata = shell::output(shell::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    Ok(Path::new(metadata["target_directory"].as_str().context("cargo metadata: no target directory")?).join("ebpf"))
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

fn fetch_debian(flags: needs::Install) -> Result<bool> {
    if flags.no_install || !shell::is_root() || !shell::has("apt-get") {
        return Ok(false);
    }
    println!("Needed here: {}, the compiler for BPF", DEBIAN_RUST.join(" "));
    needs::install(DEBIAN_RUST)?;
    Ok(Toolchain::Debian.usable())
}
