//! Every developer command: `cargo xtask COMMAND`. Owns what it takes to build, try, test and measure Pollen on a
//! fresh machine; knows `pln` only by its command line.
#![allow(clippy::print_stdout, reason = "these commands talk to the person who typed them")]

mod bench;
mod demo;
mod ebpf;
mod fuzz;
mod interrupt;
mod lab;
mod needs;
mod nightly;
mod seeds;
mod shell;
mod test;
mod toolchain;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Every developer command of Pollen")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start a three-node cluster, reach a service through it, and stay until Ctrl-C
    Demo(demo::Flags),
    /// Run every test, the demo among them
    Test(test::Flags),
    /// Build the eBPF object that pln embeds
    Ebpf(needs::Install),
    /// Build the example seeds of docs/examples into target/seeds
    Seeds(needs::Install),
    /// Bring up a lab of nodes to play with, or take down what was left of one
    Lab(lab::Flags),
    /// Fuzz every decoder of bytes from outside
    Fuzz(fuzz::Flags),
    /// Measure, and save the numbers under bench/results
    Bench {
        #[command(subcommand)]
        what: bench::What,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Task::Demo(flags) => demo::run(&flags),
        Task::Test(flags) => test::run(&flags),
        Task::Ebpf(flags) => ebpf::run(flags),
        Task::Seeds(flags) => seeds::run(flags),
        Task::Lab(flags) => lab::run(&flags),
        Task::Fuzz(flags) => fuzz::run(&flags),
        Task::Bench { what } => bench::run(&what),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_commands_contradict_nothing() {
        super::Arguments::command().debug_assert();
    }
}
