//! How long a file takes over a bad link: through `pln serve`/`pln connect`, and by plain TCP over the same link.
//! Rounds are interleaved, for the machine's own speed drifts.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::lab::{Family, Host, Lab};
use tests::link::Quality;
use tests::patience::eventually;
use tests::pln::Pln;
use tests::status::Status;
use tests::traffic::{self, Server};
use tests::{binary, cluster};

use super::{save, spread};
use crate::needs;

#[derive(clap::Args, Debug)]
pub struct Flags {
    /// Runs of each
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Only links whose names contain this
    #[arg(long, default_value = "")]
    only: String,
    /// The profile that pln is built with
    #[arg(long, default_value = "dist")]
    profile: String,
    #[command(flatten)]
    needs: needs::Install,
}

/// A service that is not known by then is not coming.
const UP_DEADLINE: Duration = Duration::from_secs(10);
/// Nor is one whose provider is not seen by then, at a round trip of two seconds.
const LINKED_DEADLINE: Duration = Duration::from_secs(60);
/// A file that has not come by then is given up, and counts as that long.
const FILE_DEADLINE: Duration = Duration::from_secs(60);

/// A link and the file that goes over it.
struct Case {
    name: &'static str,
    quality: Quality,
    megabytes: usize,
}

const GOOD: Quality = Quality {
    delay: Duration::ZERO,
    jitter: Duration::ZERO,
    lost: 0,
    doubled: 0,
    kbit: 0,
    buffer_bytes: 0,
    packet_bytes_max: 0,
    without_ecn: false,
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const CASES: [Case; 12] = [
    Case { name: "nothing wrong", quality: GOOD, megabytes: 50 },
    Case { name: "40 ms", quality: Quality { delay: ms(20), ..GOOD }, megabytes: 10 },
    Case { name: "40 ms, jitter 1 ms", quality: Quality { delay: ms(20), jitter: ms(1), ..GOOD }, megabytes: 10 },
    Case { name: "40 ms, jitter 3 ms", quality: Quality { delay: ms(20), jitter: ms(3), ..GOOD }, megabytes: 10 },
    Case { name: "10 ms, jitter 1 ms", quality: Quality { delay: ms(5), jitter: ms(1), ..GOOD }, megabytes: 10 },
    Case { name: "1 % lost", quality: Quality { lost: 10, ..GOOD }, megabytes: 50 },
    Case { name: "3 % lost", quality: Quality { lost: 30, ..GOOD }, megabytes: 50 },
    Case { name: "5 % lost", quality: Quality { lost: 50, ..GOOD }, megabytes: 50 },
    Case { name: "20 ms, 1 % lost", quality: Quality { delay: ms(10), lost: 10, ..GOOD }, megabytes: 10 },
    Case { name: "20 ms, 3 % lost", quality: Quality { delay: ms(10), lost: 30, ..GOOD }, megabytes: 10 },
    Case { name: "2 s", quality: Quality { delay: ms(1000), ..GOOD }, megabytes: 1 },
    Case {
        name: "1 Mbit/s, 300 kB buffer",
        quality: Quality { delay: ms(5), kbit: 1000, buffer_bytes: 300_000, ..GOOD },
        megabytes: 2,
    },
];

/// `cargo xtask bench link`.
pub fn run(flags: &Flags) -> Result<()> {
    ensure!(needs::meet(&[needs::IP], flags.needs)?, "this benchmark cannot do without");
    ensure!(flags.rounds > 0, "--rounds: at least 1");
    let pln = binary::build(&flags.profile)?;
    // SAFETY: no other thread runs yet that could read the environment.
    unsafe { std::env::set_var("PLN_BIN", pln) };
    let mut lab = Lab::new()?;
    let switch = lab.switch(Family::V4)?;
    let mut nodes = ["server", "client"].map(|name| Ok(Pln::on(lab.host(name, &[switch], 1500)?)));
    let nodes = nodes.each_mut().map(|node: &mut Result<Pln>| std::mem::replace(node, Err(anyhow::anyhow!("taken"))));
    let mut nodes: Vec<Pln> = nodes.into_iter().collect::<Result<_>>()?;
    cluster::form(&mut nodes, &["--publisher"])?;
    let [server, client] = &mut nodes[..] else { unreachable!("two were made") };
    let link = lab.part_by(switch, &[&client.host], GOOD)?;
    let direct = (traffic::address(&server.host, false)?.to_string(), 8080);

    let mut table =
        String::from("| link | file | plain TCP, s | pln, s | pln / TCP |\n| --- | --- | --- | --- | --- |\n");
    for case in CASES.iter().filter(|case| case.name.contains(&flags.only)) {
        link.set(GOOD);
        let file = traffic::pattern(1, case.megabytes * 1_000_000);
        let files = Server::http_at(&server.host, (Ipv4Addr::UNSPECIFIED, direct.1).into(), file)?;
        server.ok(&["serve", &files.port.to_string(), "files"])?;
        let connect = || client.json(&["connect", "files"]).map_err(|error| format!("{error:#}"));
        let (answer, _) = eventually("the client knows the service", UP_DEADLINE, connect)?;
        let local: std::net::SocketAddr = answer["local"][0].as_str().context("connect answers no address")?.parse()?;
        let ways = [direct.clone(), ("127.0.0.1".to_owned(), local.port())];
        link.set(case.quality);
        // What a connection learned of a better link is no part of this.
        client.terminate()?;
        client.up()?;
        let known = || Status::of(client).and_then(|status| status.providers("files")).map_err(|e| format!("{e:#}"));
        let linked = || known().and_then(|by| if by.is_empty() { Err("nobody".into()) } else { Ok(()) });
        eventually("a provider is online", LINKED_DEADLINE, linked)?;
        let mut took: [Vec<f64>; 2] = Default::default();
        for round in 0..flags.rounds as usize {
            for index in 0..2 {
                let way = (round + index) % 2;
                let (address, port) = &ways[way];
                let seconds = fetch(&client.host, address, *port)?;
                println!("{:24} {:5} {seconds:7.2} s", case.name, ["TCP", "pln"][way]);
                took[way].push(seconds);
            }
        }
        let [tcp, pln] = took.each_mut().map(|all| spread(all, 2));
        let ratio = super::median(&mut took[1]) / super::median(&mut took[0]);
        writeln!(table, "| {} | {} MB | {tcp} | {pln} | {ratio:.2} |", case.name, case.megabytes)?;
        link.set(GOOD);
        server.ok(&["unserve", "files"])?;
        client.ok(&["disconnect", "files"])?;
        drop(files);
    }
    save(
        "link",
        "- a link between two hosts of the lab, both directions alike; the file flows from server to client\n",
        &table,
    )?;
    Ok(())
}

/// Seconds that the file took.
fn fetch(client: &Host, address: &str, port: u16) -> Result<f64> {
    let began = Instant::now();
    let mut curl = client.command("curl");
    let deadline = FILE_DEADLINE.as_secs().to_string();
    curl.args(["-s", "-o", "/dev/null", "--max-time", &deadline, &format!("http://{address}:{port}/")]);
    let status = curl.status().context("curl")?;
    let took = began.elapsed().as_secs_f64();
    Ok(if status.success() { took } else { took.max(FILE_DEADLINE.as_secs_f64()) })
}
