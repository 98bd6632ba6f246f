//! Runs every fuzz target for its share of the time. Found inputs go to `tests/fuzz/artifacts`; a corpus grows in the
//! target directory, so that a run leaves the tree as it was.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{needs, nightly, shell};

#[derive(clap::Args, Debug)]
pub struct Flags {
    /// How long in all
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only this target
    #[arg(long)]
    target: Option<String>,
    #[command(flatten)]
    needs: needs::Install,
}

/// An input larger than this tests nothing new: every decoder bounds what it takes.
const INPUT_LEN_MAX: u32 = 1 << 17;

/// `cargo xtask fuzz`.
pub fn run(flags: &Flags) -> Result<()> {
    if !shell::has("cargo-fuzz") {
        ensure!(!flags.needs.no_install, "cargo-fuzz is missing, and not installed (--no-install)");
        shell::run(Command::new("cargo").args(["install", "cargo-fuzz", "--locked"]))?;
    }
    nightly::ensure_here(flags.needs)?;
    let mut targets = targets()?;
    if let Some(only) = &flags.target {
        targets.retain(|target| target == only);
        ensure!(!targets.is_empty(), "no target is called {only}");
    }
    // All at once: what they share is compiled once, and time is spent on running from here on.
    shell::run(&mut fuzz(&["build", "--fuzz-dir", "tests/fuzz"]))?;
    let share = (flags.seconds / u64::try_from(targets.len())?).max(1);
    let mut failed = Vec::new();
    for target in &targets {
        let grown = shell::tree().join("tests/fuzz/target/corpus").join(target);
        std::fs::create_dir_all(&grown)?;
        let mut cargo = fuzz(&["run", "--fuzz-dir", "tests/fuzz", target]);
        cargo.arg(&grown).arg(shell::tree().join("tests/fuzz/corpus").join(target)).arg("--");
        cargo.arg(format!("-max_total_time={share}")).arg(format!("-max_len={INPUT_LEN_MAX}"));
        if let Err(error) = shell::run(cargo.arg("-timeout=10").arg("-rss_limit_mb=1024")) {
            println!("{error:#}");
            failed.push(target.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("found something in {}; see tests/fuzz/artifacts", failed.join(", "));
    }
    println!("{} targets, {share} s each: nothing found", targets.len());
    Ok(())
}

fn targets() -> Result<Vec<String>> {
    let listed = shell::output(&mut fuzz(&["list", "--fuzz-dir", "tests/fuzz"])).context("cargo fuzz list")?;
    let targets: Vec<_> = listed.lines().map(str::to_owned).collect();
    ensure!(!targets.is_empty(), "there are no fuzz targets");
    Ok(targets)
}

/// libFuzzer's instrumentation is a nightly feature.
fn fuzz(args: &[&str]) -> Command {
    let mut cargo = shell::cargo();
    cargo.args(["+nightly", "fuzz"]).args(args).env_remove("LD_LIBRARY_PATH");
    cargo
}
