//! A file between two nodes: straight, and through a third that relays it, by turns; how much of a processor each node
//! takes for it, and the round trip either way.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::lab::{Family, Lab};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::traffic::{self, Server};
use tests::{binary, cluster};

use super::{save, spread};
use crate::needs;

#[derive(clap::Args, Debug)]
pub struct Flags {
    /// Runs of each
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How large the file is
    #[arg(long, default_value_t = 500)]
    megabytes: usize,
    /// The profile that pln is built with
    #[arg(long, default_value = "dist")]
    profile: String,
    #[command(flatten)]
    needs: needs::Install,
}

/// A path that is not taken by then is not taken.
const SWITCHED_DEADLINE: Duration = Duration::from_secs(60);
/// A service that is not known by then is not coming.
const UP_DEADLINE: Duration = Duration::from_secs(10);
/// Clock ticks a second, in which the kernel counts processes' time.
pub(super) const TICKS: f64 = 100.0;
const WAYS: [&str; 2] = ["direct", "relayed"];

/// `cargo xtask bench path`.
pub fn run(flags: &Flags) -> Result<()> {
    ensure!(needs::meet(&[needs::IP], flags.needs)?, "this benchmark cannot do without");
    ensure!(flags.rounds > 0, "--rounds: at least 1");
    let pln = binary::build(&flags.profile)?;
    // SAFETY: no other thread runs yet that could read the environment.
    unsafe { std::env::set_var("PLN_BIN", pln) };
    let mut lab = Lab::new()?;
    let mut nodes = lab.hosts(Family::V4, ["relay", "server", "client"])?.map(Pln::on);
    cluster::form(&mut nodes, &["--publisher"])?;
    let [relay, server, client] = &nodes;
    let files = Server::http(&server.host, 0, traffic::pattern(1, flags.megabytes * 1_000_000))?;
    server.ok(&["serve", &files.port.to_string(), "files"])?;
    let connect = || client.json(&["connect", "files"]).map_err(|error| format!("{error:#}"));
    let (answer, _) = eventually("the client knows the service", UP_DEADLINE, connect)?;
    let local: std::net::SocketAddr = answer["local"][0].as_str().context("connect answers no address")?.parse()?;

    let mut gbit: [Vec<f64>; 2] = Default::default();
    let mut rtt: [Vec<f64>; 2] = Default::default();
    let mut cpu: [[Vec<f64>; 3]; 2] = Default::default();
    for _ in 0..flags.rounds {
        for (way, name) in WAYS.iter().enumerate() {
            let took = eventually(&format!("the path is {name}"), SWITCHED_DEADLINE, || path(client, name))?;
            println!("{name}: round trip {:.0} us", took.0);
            rtt[way].push(took.0);
            let before = [client, server, relay].map(busy);
            let began = Instant::now();
            let mut curl = client.host.command("curl");
            let fetched =
                curl.args(["-sf", "-o", "/dev/null", &format!("http://{local}/")]).status().context("curl")?;
            ensure!(fetched.success(), "the file did not come");
            let seconds = began.elapsed().as_secs_f64();
            gbit[way].push(flags.megabytes as f64 * 8e-3 / seconds);
            for (node, (process, before)) in [client, server, relay].into_iter().zip(before).enumerate() {
                cpu[way][node].push((busy(process)? - before?) / seconds);
            }
            println!("{name}: {:.2} Gbit/s", flags.megabytes as f64 * 8e-3 / seconds);
            if way == 0 {
                client.host.shun(&server.host)?;
                server.host.shun(&client.host)?;
            } else {
                client.host.reach(&server.host)?;
                server.host.reach(&client.host)?;
            }
        }
    }
    let mut table = String::from(
        "| path | Gbit/s | of direct | round trip, us | processors: client | server | relay |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let straight = super::median(&mut gbit[0]);
    for (way, name) in WAYS.iter().enumerate() {
        let of = super::median(&mut gbit[way]) / straight;
        let [a, b, c] = cpu[way].each_mut().map(|all| spread(all, 2));
        let (gbit, rtt) = (spread(&mut gbit[way], 2), spread(&mut rtt[way], 0));
        writeln!(table, "| {name} | {gbit} | {of:.2} | {rtt} | {a} | {b} | {c} |")?;
    }
    let notes = format!(
        "- three nodes on one switch of the lab, {} MB over one stream; all on the same processors\n",
        flags.megabytes
    );
    save("path", &notes, &table)?;
    Ok(())
}

/// The round trip to the server by the path `kind`, in microseconds, once that is what the client goes by.
fn path(client: &Pln, kind: &str) -> Result<f64, String> {
    let nodes = client.json(&["status", "nodes"]).map_err(|error| format!("{error:#}"))?;
    let row = nodes.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == "server"));
    let path = &row.ok_or("the server is not known")?["path"];
    if path["kind"] != kind {
        return Err(format!("it is {}", path["kind"]));
    }
    path["rtt_us"].as_u64().map(|us| us as f64).ok_or_else(|| Value::to_string(path))
}

/// Seconds of processors that a node has taken so far.
pub(super) fn busy(node: &Pln) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid()?))?;
    let (_, fields) = stat.rsplit_once(')').context("a process without a name")?;
    let ticks: Vec<&str> = fields.split_whitespace().skip(11).take(2).collect();
    let ticks: Result<Vec<f64>, _> = ticks.into_iter().map(str::parse).collect();
    Ok(ticks?.into_iter().sum::<f64>() / TICKS)
}
