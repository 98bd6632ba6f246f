//! The compilers that build for targets other than this machine: rustup's, and Debian's own where rustup's servers are
//! out of reach. Knows no crate. Invariant: each runs with its own libraries, whatever xtask itself was built with.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{needs, shell};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The one that the tree is built with.
    Default,
    /// rustup's nightly.
    Nightly,
    /// Debian's stable one, told to allow what only nightlies do.
    Debian,
}

impl Toolchain {
    /// Whether it has the sources of the standard library, to build for targets that nobody ships it for.
    pub fn has_sources(self) -> bool {
        self.library().is_some_and(|library| library.join("src/rust/library/core/Cargo.toml").exists())
    }

    /// Whether it has the standard library built for `target`.
    pub fn has_target(self, target: &str) -> bool {
        self.library().is_some_and(|library| library.join(target).join("lib").exists())
    }

    /// A cargo command, such as `build`.
    pub fn cargo(self, command: &str) -> Command {
        let mut cargo = Command::new(if self == Self::Debian { "/usr/bin/cargo" } else { "cargo" });
        match self {
            Self::Default => {}
            Self::Nightly => {
                cargo.arg("+nightly");
            }
            Self::Debian => {
                // Building the standard library is a nightly feature; Debian's compiler is a stable one.
                cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTUP_TOOLCHAIN");
            }
        }
        // `cargo run` points it at the libraries of the toolchain that xtask was built with, not at this one's.
        cargo.env_remove("LD_LIBRARY_PATH").arg(command);
        cargo
    }

    /// What its compiler calls itself.
    ///
    /// # Errors
    /// If it does not run.
    pub fn version(self) -> Result<String> {
        let mut rustc = Command::new(if self == Self::Debian { "/usr/bin/rustc" } else { "rustc" });
        if self == Self::Nightly {
            rustc.arg("+nightly");
        }
        let output = rustc.arg("--version").env_remove("LD_LIBRARY_PATH").output().context("rustc --version")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Where it keeps what it compiles with.
    fn library(self) -> Option<PathBuf> {
        let mut rustc = Command::new(if self == Self::Debian { "/usr/bin/rustc" } else { "rustc" });
        if self == Self::Nightly {
            rustc.arg("+nightly");
        }
        let output = rustc.args(["--print", "sysroot"]).env_remove("LD_LIBRARY_PATH").output().ok()?;
        let sysroot = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
        Some(Path::new(sysroot.trim()).join("lib/rustlib"))
    }
}

/// Installs Debian's compiler with what `packages` add to it, where that may be done; returns whether it is usable then.
pub fn fetch_debian(packages: &[&str], why: &str, flags: needs::Install) -> Result<bool> {
    if flags.no_install || !shell::is_root() || !shell::has("apt-get") {
        return Ok(false);
    }
    println!("Needed here: {}, {why}", packages.join(" "));
    needs::install(packages)?;
    Ok(Toolchain::Debian.has_sources())
}

/// The folder `name` beside the workspace's own artefacts, so that a kept target directory keeps it too.
pub fn target_dir(name: &str) -> Result<PathBuf> {
    let metadata = shell::output(shell::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    Ok(Path::new(metadata["target_directory"].as_str().context("cargo metadata: no target directory")?).join(name))
}
