//! rustup's nightly: what builds the BPF object and the fuzz targets, and the developer's own builds do not need.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::{needs, shell};

/// Whether `cargo +nightly` is something here.
fn is_here() -> bool {
    let mut rustc = Command::new("rustc");
    rustc.args(["+nightly", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    rustc.status().is_ok_and(|status| status.success())
}

/// Makes sure that there is one, fetching it if it may be.
pub fn ensure_here(flags: needs::Install) -> Result<()> {
    if is_here() {
        return Ok(());
    }
    ensure!(!flags.no_install, "rustup's nightly is missing, and not installed (--no-install)");
    fetch()
}

/// Fetches it, with the sources of `core`, which no toolchain ships built for BPF.
pub fn fetch() -> Result<()> {
    ensure!(shell::has("rustup"), "there is no rustup here");
    let mut rustup = Command::new("rustup");
    rustup.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
    shell::run(rustup.args(["--component", "rust-src", "--no-self-update"]))
}
