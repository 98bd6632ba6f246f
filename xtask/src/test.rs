//! Every test there is, in the order in which they build on each other.
//! Invariant: what is left out is said, with its reason; with `PLN_REQUIRE` it fails.

use anyhow::{Result, ensure};
use tests::{binary, lab};

use crate::{ebpf, needs, seeds, shell};

#[derive(clap::Args, Debug)]
pub struct Flags {
    #[command(flatten)]
    needs: needs::Install,
}

/// `cargo xtask test`.
pub fn run(flags: &Flags) -> Result<()> {
    let mut left_out = Vec::new();
    let needed =
        [needs::IP, needs::NFT, needs::CONNTRACK, needs::TCPDUMP, needs::ETHTOOL, needs::SYSTEMD, needs::SETPRIV];
    needs::meet(&needed, flags.needs)?;
    if let Err(reason) = lab::available() {
        left_out.push(format!("scenarios in the lab: {reason}"));
    }
    match ebpf::build(flags.needs)? {
        ebpf::Built::Object(path) => println!("built {}", path.display()),
        ebpf::Built::Nothing(reason) => left_out.push(format!("the eBPF program: {reason}")),
    }
    ensure!(
        left_out.is_empty() || std::env::var_os("PLN_REQUIRE").is_none(),
        "PLN_REQUIRE is set, and cannot be tested: {}",
        left_out.join("; ")
    );
    // Go may be left out anywhere: seeds in Go are tested where it is installed.
    let seeds = seeds::build(flags.needs)?;
    left_out.extend(seeds.left_out);

    // Once for all: the scenarios would each ask cargo.
    let pln = binary::build("dev")?;
    let mut test = shell::cargo();
    test.args(["test", "--locked", "--workspace", "--features", "pollen-common/sim"])
        .env("PLN_BIN", &pln)
        .env("PLN_SEEDS", &seeds.dir);
    shell::run(&mut test)?;

    let mut demo = std::process::Command::new(std::env::current_exe()?);
    demo.args(["demo", "--once"]).env("PLN_BIN", &pln).env("PLN_SEEDS", &seeds.dir).current_dir(shell::tree());
    if flags.needs.no_install {
        demo.arg("--no-install");
    }
    shell::run(&mut demo)?;

    for reason in &left_out {
        println!("left out: {reason}");
    }
    println!("\nAll tests passed{}.", if left_out.is_empty() { "" } else { ", but for those left out" });
    Ok(())
}
