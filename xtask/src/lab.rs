//! A lab to play with: nodes already in one mesh, and how to enter them.

use anyhow::{Context as _, Result, ensure};
use tests::lab::{Family, Lab, Whose, sweep};
use tests::pln::Pln;
use tests::{binary, cluster};

use crate::{interrupt, needs};

/// More would only be slow: every node is a process on this machine.
const NODES_MAX: usize = 26;

#[derive(clap::Args, Debug)]
pub struct Flags {
    /// How many nodes
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Hosts with IPv6 addresses only
    #[arg(long)]
    v6: bool,
    /// The largest packet of the cables, in bytes
    #[arg(long, default_value_t = 1500)]
    mtu: u32,
    /// Take down every lab of this machine, also one in use, and exit
    #[arg(long)]
    down: bool,
    #[command(flatten)]
    needs: needs::Install,
}

/// `cargo xtask lab`.
pub fn run(flags: &Flags) -> Result<()> {
    if flags.down {
        let gone = sweep(Whose::All)?;
        println!("{} namespaces deleted", gone.len());
        return Ok(());
    }
    ensure!((1..=NODES_MAX).contains(&flags.nodes), "--nodes: 1 to {NODES_MAX}");
    needs::meet(&[needs::IP], flags.needs)?;
    let pln = binary::pln();
    interrupt::catch();
    let mut lab = Lab::new()?;
    let switch = lab.switch(if flags.v6 { Family::V6 } else { Family::Both })?;
    let mut nodes = Vec::new();
    for name in ('a'..='z').take(flags.nodes) {
        nodes.push(Pln::on(lab.host(&name.to_string(), &[switch], flags.mtu)?));
    }
    cluster::form(&mut nodes, &["--publisher"])?;
    println!("{} nodes are one mesh. To enter one:\n", nodes.len());
    for node in &nodes {
        let namespace = node.host.namespace().context("every host of a lab is a namespace")?.name();
        println!(
            "  ip netns exec {namespace} env PLN_DIR={} bash   # log: {}",
            node.dir().display(),
            node.log_path().display()
        );
    }
    println!("\nand there: {} status", pln.display());
    println!("To pull a cable: ip -n NAMESPACE link set eth0 down\nCtrl-C takes the lab down.");
    interrupt::wait();
    drop(nodes);
    Ok(())
}
