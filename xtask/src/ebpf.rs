//! Builds `pollen-ebpf` for the BPF target, and holds the object in the tree, which `pln`'s build embeds, to its sources.
//! Two toolchains can: rustup's nightly with `rust-src`, and Debian's own compiler where rustup's servers are out of
//! reach. Which of them fits the installed `bpf-linker` depends on the LLVM it was built with, so each is tried.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

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
            Ok(object) => return place(&object, &compiler(toolchain)?).map(Built::Object),
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

/// What the object depends on, from the top of the tree. The rest of `pollen-common` is not built for it.
const SOURCES: &[&str] = &[
    "pollen-common/src/abi.rs",
    "pollen-common/src/packet.rs",
    "pollen-common/src/verdict.rs",
    "pollen-ebpf/.cargo/config.toml",
    "pollen-ebpf/Cargo.lock",
    "pollen-ebpf/Cargo.toml",
    "pollen-ebpf/src/main.rs",
];

/// What the object in the tree was made of, and by what.
#[derive(Debug, PartialEq, Eq)]
struct Made {
    sources: String,
    compiler: String,
}

impl Made {
    fn path() -> PathBuf {
        shell::tree().join("pollen-ebpf/object/made-of")
    }

    fn recorded() -> Result<Self> {
        let text = std::fs::read_to_string(Self::path()).context("pollen-ebpf/object/made-of")?;
        let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        let (sources, compiler) = (line("sources "), line("compiler "));
        let (sources, compiler) =
            sources.zip(compiler).context("pollen-ebpf/object/made-of says less than it should")?;
        Ok(Self { sources, compiler })
    }

    fn record(&self) -> Result<()> {
        let text = format!("sources {}\ncompiler {}\n", self.sources, self.compiler);
        std::fs::write(Self::path(), text).context("pollen-ebpf/object/made-of")
    }
}

/// A digest of the sources as they are now.
fn digest() -> Result<String> {
    let mut hasher = Sha256::new();
    for source in SOURCES {
        let bytes = std::fs::read(shell::tree().join(source)).with_context(|| (*source).to_owned())?;
        hasher.update(format!("{source} {}\n", bytes.len()));
        hasher.update(bytes);
    }
    Ok(format!("{:x}", hasher.finalize()))
}

fn compiler(toolchain: Toolchain) -> Result<String> {
    let linker = Command::new("bpf-linker").arg("--version").output().context("bpf-linker")?;
    Ok(format!("{}, {}", toolchain.version()?, String::from_utf8_lossy(&linker.stdout).trim()))
}

/// Holds the object in the tree to a fresh one: the same, where the same compiler made both of the same sources; put in its
/// place where the sources have changed; left alone where another compiler gives other bytes.
fn place(object: &Path, compiler: &str) -> Result<PathBuf> {
    let built = std::fs::read(object).with_context(|| object.display().to_string())?;
    let place = shell::tree().join("pollen-ebpf/object/pollen-ebpf.o");
    let now = Made { sources: digest()?, compiler: compiler.to_owned() };
    match Made::recorded() {
        Ok(made) if made == now => {
            let same = std::fs::read(&place).is_ok_and(|held| held == built);
            ensure!(same, "{} is not what its sources give: remove {}", place.display(), Made::path().display());
        }
        Ok(made) if made.sources == now.sources => {
            println!(
                "the eBPF object in the tree was made by {}: not compared with what {compiler} makes",
                made.compiler
            );
        }
        _ => {
            std::fs::write(&place, built).with_context(|| place.display().to_string())?;
            now.record()?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_in_the_tree_is_of_the_sources_in_the_tree() {
        let made = Made::recorded().unwrap();
        assert_eq!(made.sources, digest().unwrap(), "`cargo xtask ebpf` makes it anew");
    }
}
