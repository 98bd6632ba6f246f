//! A file and small requests through a relay, on each rung of its datapath by turns: goodput, round trip, and what the whole
//! machine and the relay's own process take for it.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::lab::{Family, Lab};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::status::await_online;
use tests::traffic::{self, Server};
use tests::{binary, cluster};

use super::path::{TICKS, busy};
use super::{save, spread};
use crate::needs;

#[derive(clap::Args, Debug)]
pub struct Flags {
    /// Runs of each
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How large the file is
    #[arg(long, default_value_t = 300)]
    megabytes: usize,
    /// Small requests of each run
    #[arg(long, default_value_t = 2000)]
    requests: usize,
    /// The profile that pln is built with
    #[arg(long, default_value = "dist")]
    profile: String,
    #[command(flatten)]
    needs: needs::Install,
}

/// A rung that is not taken by then is not taken.
const RUNG_DEADLINE: Duration = Duration::from_secs(30);
const TOGETHER_DEADLINE: Duration = Duration::from_secs(30);
/// As they are set, and as they are shown.
const RUNGS: [(&str, &str); 3] = [("socket", "sockets"), ("xdp-generic", "xdp-generic"), ("xdp", "xdp")];

/// What one rung gave in each run.
#[derive(Default)]
struct Measured {
    gbit: Vec<f64>,
    machine: Vec<f64>,
    relay: Vec<f64>,
    middle: Vec<f64>,
    tail: Vec<f64>,
}

/// `cargo xtask bench relay`.
pub fn run(flags: &Flags) -> Result<()> {
    ensure!(needs::meet(&[needs::IP, needs::ETHTOOL], flags.needs)?, "this benchmark cannot do without");
    ensure!(flags.rounds > 0 && flags.requests > 0, "--rounds, --requests: at least 1");
    let pln = binary::build(&flags.profile)?;
    // SAFETY: no other thread runs yet that could read the environment.
    unsafe { std::env::set_var("PLN_BIN", pln) };
    let mut lab = Lab::new()?;
    let (left, right) = (lab.switch(Family::V4)?, lab.switch(Family::V4)?);
    let mut host = |name: &str, switches: &[_]| lab.host(name, switches, 1500).map(Pln::on);
    let mut nodes = [host("relay", &[left, right])?, host("server", &[right])?, host("client", &[left])?];
    for node in &nodes {
        lab.like_hardware(&node.host)?;
    }
    let [relay, server, client] = &mut nodes;
    cluster::found(relay)?;
    for node in [server, client] {
        cluster::join(node, &cluster::invite(relay, &["--publisher"])?)?;
    }
    await_online(&nodes.each_ref(), &["relay", "server", "client"], TOGETHER_DEADLINE)?;
    let [relay, server, client] = &nodes;
    let files = Server::http(&server.host, 0, traffic::pattern(1, flags.megabytes * 1_000_000))?;
    let echo = Server::tcp_echo(&server.host, 0)?;
    let files = published(server, client, files.port, "files")?;
    let echo = published(server, client, echo.port, "echo")?;

    let mut measured: [Measured; 3] = Default::default();
    for _ in 0..flags.rounds {
        for ((set, shown), measured) in RUNGS.iter().zip(&mut measured) {
            relay.ok(&["set", "datapath", set])?;
            eventually(&format!("the relay stands on {shown}"), RUNG_DEADLINE, || rung(relay, shown))?;
            measured.file(flags, relay, client, files)?;
            measured.requests(flags, client, echo)?;
            println!("{shown}: {:.2?} Gbit/s, {:.0?} us", measured.gbit.last(), measured.middle.last());
        }
    }
    let mut table = String::from(
        "| rung of the relay | Gbit/s | machine, core s/GB | relay's process, core s/GB | request p50, us | p99, us |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for ((_, shown), measured) in RUNGS.iter().zip(&mut measured) {
        let Measured { gbit, machine, relay, middle, tail } = measured;
        let (gbit, machine, relay) = (spread(gbit, 2), spread(machine, 2), spread(relay, 2));
        writeln!(table, "| {shown} | {gbit} | {machine} | {relay} | {} | {} |", spread(middle, 0), spread(tail, 0))?;
    }
    let notes = format!(
        "- a relay between two switches of the lab; cables without offloads, as a network card's: one packet, one frame\n\
         - {} MB over one stream, {} requests of 64 bytes one after the other; all on the same processors\n",
        flags.megabytes, flags.requests
    );
    save("relay", &notes, &table)?;
    Ok(())
}

impl Measured {
    /// One file.
    fn file(&mut self, flags: &Flags, relay: &Pln, client: &Pln, at: SocketAddr) -> Result<()> {
        let (machine, process, began) = (machine_busy()?, busy(relay)?, Instant::now());
        let mut curl = client.host.command("curl");
        let fetched = curl.args(["-sf", "-o", "/dev/null", &format!("http://{at}/")]).status().context("curl")?;
        ensure!(fetched.success(), "the file did not come");
        let (seconds, gigabytes) = (began.elapsed().as_secs_f64(), flags.megabytes as f64 / 1e3);
        self.gbit.push(gigabytes * 8.0 / seconds);
        self.machine.push((machine_busy()? - machine) / gigabytes);
        self.relay.push((busy(relay)? - process) / gigabytes);
        Ok(())
    }

    /// Small requests, one after the other.
    fn requests(&mut self, flags: &Flags, client: &Pln, at: SocketAddr) -> Result<()> {
        let mut stream: TcpStream = traffic::dial(&client.host, at.port())?;
        stream.set_nodelay(true)?;
        let mut took = Vec::with_capacity(flags.requests);
        let mut bytes = [7; 64];
        for _ in 0..flags.requests {
            let began = Instant::now();
            stream.write_all(&bytes)?;
            stream.read_exact(&mut bytes)?;
            took.push(began.elapsed().as_secs_f64() * 1e6);
        }
        took.sort_by(f64::total_cmp);
        self.middle.push(took[took.len() / 2]);
        self.tail.push(took[took.len() * 99 / 100]);
        Ok(())
    }
}

/// Where the client reaches a port of the server.
fn published(server: &Pln, client: &Pln, port: u16, name: &str) -> Result<SocketAddr> {
    server.ok(&["serve", &port.to_string(), name])?;
    let answer = client.json(&["connect", name])?;
    Ok(answer["local"][0].as_str().context("connect answers no address")?.parse()?)
}

fn rung(relay: &Pln, shown: &str) -> Result<(), String> {
    let status = relay.json(&["status"]).map_err(|error| format!("{error:#}"))?;
    let datapath = &status["datapath"];
    if datapath["rung"] == shown { Ok(()) } else { Err(datapath.to_string()) }
}

/// Seconds of processors that the machine has worked so far, interrupts with it.
fn machine_busy() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks: Result<Vec<f64>, _> = line.split_whitespace().skip(1).map(str::parse).collect();
    // user, nice, system, idle, iowait, irq, softirq
    let ticks = ticks?;
    ensure!(ticks.len() > 6, "/proc/stat says too little");
    Ok((ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]) / TICKS)
}
