//! TCP goodput between two hosts: direct, a pair of haproxies with mutual TLS, and `pln serve`/`pln connect`.
//! Rounds are interleaved, for the machine's own speed drifts; CPU is the busy time of the whole machine, for work in
//! the kernel belongs to no process.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::lab::{Family, Host, Lab};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::{binary, cluster, traffic};

use super::{median, save, spread};
use crate::needs::{self, Need};
use crate::shell;

#[derive(clap::Args, Debug)]
pub struct Flags {
    /// Seconds of each run
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Runs of each
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// The profile that pln is built with
    #[arg(long, default_value = "dist")]
    profile: String,
    #[command(flatten)]
    needs: needs::Install,
}

const NEEDS: [Need; 4] = [
    needs::IP,
    Need { what: "iperf3", why: "the load", met: || shell::has("iperf3"), packages: &["iperf3"] },
    Need { what: "haproxy", why: "the peer to compare with", met: || shell::has("haproxy"), packages: &["haproxy"] },
    Need { what: "openssl", why: "the peer's certificates", met: || shell::has("openssl"), packages: &["openssl"] },
];

const IPERF_PORT: u16 = 5201;
const HAPROXY_IN: u16 = 9000;
const HAPROXY_OUT: u16 = 9443;
/// A server that is not up by then does not come.
const UP_DEADLINE: Duration = Duration::from_secs(10);

/// One of the ways from the client's host to the server's.
struct Way {
    name: &'static str,
    address: String,
    port: u16,
    gbits: Vec<f64>,
    gbits_per_cpu: Vec<f64>,
}

/// `cargo xtask bench tunnel`.
pub fn run(flags: &Flags) -> Result<()> {
    ensure!(needs::meet(&NEEDS, flags.needs)?, "this benchmark cannot do without");
    ensure!(flags.rounds > 0 && flags.seconds > 0, "--rounds and --seconds: at least 1");
    let pln = binary::build(&flags.profile)?;
    // SAFETY: no other thread runs yet that could read the environment.
    unsafe { std::env::set_var("PLN_BIN", pln) };
    let mut lab = Lab::new()?;
    let [client, server] = lab.hosts(Family::V4, ["client", "server"])?;
    let direct = traffic::address(&server, false)?.to_string();
    let mut nodes = [Pln::on(server), Pln::on(client)];
    cluster::form(&mut nodes, &["--publisher"])?;
    let [server, client] = &nodes;

    let _iperf = Process::start(server.host.command("iperf3").args(["-s", "-p", &IPERF_PORT.to_string()]))?;
    let _haproxies = haproxies(&client.host, &server.host, &direct)?;
    server.ok(&["serve", &IPERF_PORT.to_string(), "iperf"])?;
    let connect = || client.json(&["connect", "iperf"]).map_err(|error| format!("{error:#}"));
    let (answer, _) = eventually("the client knows the service", UP_DEADLINE, connect)?;
    let local: std::net::SocketAddr = answer["local"][0].as_str().context("connect answers no address")?.parse()?;
    let mut ways = [
        Way::new("direct", &direct, IPERF_PORT),
        Way::new("haproxy mTLS", "127.0.0.1", HAPROXY_IN),
        Way::new("pln", "127.0.0.1", local.port()),
    ];
    for way in &ways {
        eventually(way.name, UP_DEADLINE, || way.measure(&client.host, 1).map(drop).map_err(|e| format!("{e:#}")))?;
    }
    for round in 0..flags.rounds {
        // Each begins as often as the others, so that what one leaves behind falls on all.
        for index in 0..ways.len() {
            let way = &mut ways[(index + round as usize) % 3];
            let (gbits, gbits_per_cpu) = way.measure(&client.host, flags.seconds)?;
            println!("round {round}: {:14} {gbits:6.2} Gbit/s {gbits_per_cpu:6.2} Gbit per CPU-second", way.name);
            way.gbits.push(gbits);
            way.gbits_per_cpu.push(gbits_per_cpu);
        }
    }
    report(flags, &mut ways)
}

impl Way {
    fn new(name: &'static str, address: &str, port: u16) -> Self {
        Self { name, address: address.to_owned(), port, gbits: Vec::new(), gbits_per_cpu: Vec::new() }
    }

    /// Gbit/s received, and Gbit per busy CPU-second of the machine.
    fn measure(&self, client: &Host, seconds: u32) -> Result<(f64, f64)> {
        let (port, seconds) = (self.port.to_string(), seconds.to_string());
        let mut iperf = client.command("iperf3");
        iperf.args(["-c", &self.address, "-p", &port, "-t", &seconds, "-J", "--connect-timeout", "2000"]);
        let before = busy_seconds()?;
        let output = iperf.stderr(Stdio::inherit()).output().context("iperf3")?;
        let busy = busy_seconds()? - before;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).context("iperf3 says no JSON")?;
        let received = &report["end"]["sum_received"];
        let bits = received["bits_per_second"].as_f64().with_context(|| format!("iperf3: {}", report["error"]))?;
        let took = received["seconds"].as_f64().context("iperf3 says no duration")?;
        Ok((bits / 1e9, bits * took / 1e9 / busy))
    }
}

fn report(flags: &Flags, ways: &mut [Way]) -> Result<()> {
    let peer = (median(&mut ways[1].gbits), median(&mut ways[1].gbits_per_cpu));
    let mut table =
        "| | Gbit/s | per CPU-second | goodput to haproxy | per CPU-second to haproxy |\n|---|---|---|---|---|\n"
            .to_owned();
    for way in ways {
        let (goodput, cpu) = (median(&mut way.gbits) / peer.0, median(&mut way.gbits_per_cpu) / peer.1);
        let (gbits, per_cpu) = (spread(&mut way.gbits, 2), spread(&mut way.gbits_per_cpu, 2));
        table += &format!("| {} | {gbits} | {per_cpu} | {goodput:.2} | {cpu:.2} |\n", way.name);
    }
    let notes = format!(
        "\nOne TCP connection (iperf3) between two namespaces joined by a bridge, MTU 1500, all on the processors above:\n\
         load, both ends and the kernel share them. Median [min-max] of {} interleaved runs of {} s. haproxy: one thread\n\
         a side, mutual TLS 1.3. pln: profile {}.\n\n\
         What limits pln: at this MTU each packet of 1,444 bytes is sealed and acknowledged on its own, and one thread a\n\
         process seals, counts and copies them all. The sending process fills one core first.\n",
        flags.rounds, flags.seconds, flags.profile
    );
    save("tunnel", &notes, &table).map(drop)
}

/// User, system and interrupt time of all processors, in seconds.
fn busy_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let ticks: Vec<f64> = stat
        .lines()
        .next()
        .context("/proc/stat is empty")?
        .split_whitespace()
        .skip(1)
        .map_while(|n| n.parse().ok())
        .collect();
    ensure!(ticks.len() > 6, "/proc/stat has no times");
    // user, nice, system, irq, softirq; a tick is 10 ms for user space on every Linux.
    Ok((ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]) / 100.0)
}

/// A process that ends with its owner.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Result<Self> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(quiet.spawn().with_context(|| format!("{:?}", quiet.get_args()))?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// One haproxy a side, one thread each, each proving itself to the other with the same certificate.
fn haproxies(client: &Host, server: &Host, direct: &str) -> Result<[Process; 2]> {
    let dir = server.dir();
    let (key, certificate, both) = (dir.join("key.pem"), dir.join("certificate.pem"), dir.join("both.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=lab"]).arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    ensure!(openssl.stderr(Stdio::null()).status()?.success(), "openssl makes no certificate");
    std::fs::write(&both, [std::fs::read(&certificate)?, std::fs::read(&key)?].concat())?;
    let tls = format!("ssl crt {} ca-file {} verify required", both.display(), certificate.display());
    let accepting =
        haproxy(server, &format!("bind {direct}:{HAPROXY_OUT} {tls}"), &format!("server s 127.0.0.1:{IPERF_PORT}"))?;
    let connecting =
        haproxy(client, &format!("bind 127.0.0.1:{HAPROXY_IN}"), &format!("server s {direct}:{HAPROXY_OUT} {tls}"))?;
    Ok([accepting, connecting])
}

fn haproxy(host: &Host, bind: &str, server: &str) -> Result<Process> {
    let path: &Path = &host.dir().join("haproxy.cfg");
    let config = format!(
        "global\n  nbthread 1\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         listen l\n  {bind}\n  {server}\n"
    );
    std::fs::write(path, config)?;
    Process::start(host.command("haproxy").arg("-db").arg("-f").arg(path))
}
