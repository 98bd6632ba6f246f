//! The programs that call guests in their own process: Pollen's engine, and the `extism` crate. Owns how they are built
//! and what they print.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{Guest, Sample, Way};
use crate::{shell, toolchain};

/// Built programs.
pub struct Programs {
    engine: PathBuf,
    extism: Option<PathBuf>,
}

impl Programs {
    pub fn build(profile: &str, extism: bool) -> Result<Self> {
        let mut cargo = shell::cargo();
        cargo.args(["build", "--package", "pollen-daemon", "--example", "call_in_process", "--profile", profile]);
        let engine = executable(&mut cargo)?;
        let target_dir = toolchain::target_dir("extism")?;
        let mut cargo = shell::cargo();
        cargo.args(["build", "--locked", "--release", "--manifest-path", "bench/extism/Cargo.toml", "--target-dir"]);
        let extism = extism.then(|| executable(cargo.arg(target_dir))).transpose()?;
        Ok(Self { engine, extism })
    }

    /// One run in a process of its own.
    pub fn measure(&self, way: Way, guest: &Guest, bytes: usize, callers: usize, seconds: u32) -> Result<Sample> {
        let program = if way == Way::Extism { self.extism.as_ref() } else { Some(&self.engine) };
        let mut command = Command::new(program.context("it was not built")?);
        command.arg("--module").arg(&guest.module).args(["--bytes", &bytes.to_string()]);
        command.args(["--callers", &callers.to_string(), "--seconds", &seconds.to_string()]);
        if guest.image {
            command.arg("--image");
        }
        let line: serde_json::Value = serde_json::from_str(&shell::output(&mut command)?)?;
        let number = |field: &str| line[field].as_f64().with_context(|| format!("no {field} in {line}"));
        Ok(Sample {
            calls: number("calls")?,
            seconds: number("seconds")?,
            p50_us: number("p50_us")?,
            p99_us: number("p99_us")?,
            cpu_seconds: number("cpu_seconds")?,
            resident_kib: Some(number("after_kib")?),
        })
    }
}

/// Builds, and returns the program that came of it.
fn executable(cargo: &mut Command) -> Result<PathBuf> {
    let output = cargo.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "cargo build failed");
    String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
        .next_back()
        .context("cargo named no executable")
}
