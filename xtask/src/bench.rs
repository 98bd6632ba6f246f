//! Benchmarks of the whole: real processes on lab hosts, beside their peers in the same run.
//! Invariant: what is printed is what is saved, with the commit, kernel and command that gave it.

mod call;
mod idle;
mod link;
mod path;
mod relay;
mod tunnel;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::Subcommand;

use crate::shell;

#[derive(Subcommand)]
pub enum What {
    /// TCP goodput through serve and connect, beside direct and haproxy with mutual TLS
    Tunnel(tunnel::Flags),
    /// Calls of seeds in process, through the socket and from afar, beside the extism crate
    Call(call::Flags),
    /// A file over bad links: lossy, jittery, far, slow; beside plain TCP over the same link
    Link(link::Flags),
    /// A file straight and through a relay, by turns: goodput, round trip, processors
    Path(path::Flags),
    /// A file and small requests through a relay, on each rung of its datapath: goodput, processors, round trip
    Relay(relay::Flags),
    /// Memory, CPU and traffic of an idle cluster; start; size; time until a death is known
    Idle(idle::Flags),
}

/// `cargo xtask bench`.
pub fn run(what: &What) -> Result<()> {
    match what {
        What::Tunnel(flags) => tunnel::run(flags),
        What::Call(flags) => call::run(flags),
        What::Link(flags) => link::run(flags),
        What::Path(flags) => path::run(flags),
        What::Relay(flags) => relay::run(flags),
        What::Idle(flags) => idle::run(flags),
    }
}

/// Prints a report and saves it as `bench/results/NAME-COMMIT.md`.
fn save(name: &str, notes: &str, table: &str) -> Result<PathBuf> {
    let git = |args: &[&str]| shell::output(Command::new("git").current_dir(shell::tree()).args(args));
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    let dirty =
        if git(&["status", "--porcelain", "--", "*.rs", "*.toml"])?.is_empty() { "" } else { " (with changes)" };
    let command: Vec<_> = std::env::args().skip(1).collect();
    let report = format!(
        "# {name}\n\n- commit: {commit}{dirty}\n- date: {}\n- kernel: {}\n- processors: {}\n- command: `cargo xtask {}`\n{notes}\n{table}",
        shell::output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))?,
        shell::output(Command::new("uname").arg("-sr"))?,
        std::thread::available_parallelism()?,
        command.join(" "),
    );
    let path = shell::tree().join(format!("bench/results/{name}-{commit}.md"));
    std::fs::create_dir_all(path.parent().expect("it lies in bench/results"))?;
    std::fs::write(&path, &report)?;
    println!("\n{report}\nsaved as {}", path.display());
    Ok(path)
}

/// Of at least one number, the middle one; the lower of two.
fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[(numbers.len() - 1) / 2]
}

/// `median [min-max]`, with so many digits after the point.
fn spread(numbers: &mut [f64], digits: usize) -> String {
    let middle = median(numbers);
    format!("{middle:.digits$} [{:.digits$}-{:.digits$}]", numbers[0], numbers[numbers.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_shows_the_middle_and_both_ends() {
        assert_eq!(spread(&mut [3.0, 1.0, 2.0], 1), "2.0 [1.0-3.0]");
        assert_eq!(spread(&mut [4.0, 1.0], 0), "1 [1-4]");
    }
}
