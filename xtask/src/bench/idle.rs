//! What a cluster costs that does nothing, and how fast it starts and learns of a death.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::lab::{Family, Lab};
use tests::pln::Pln;
use tests::status::await_online;
use tests::{binary, cluster};

use super::{median, save, spread};
use crate::needs;

#[derive(clap::Args, Debug)]
pub struct Flags {
    /// Seconds of idling
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Starts and deaths measured
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// The profile that pln is built with
    #[arg(long, default_value = "dist")]
    profile: String,
    #[command(flatten)]
    needs: needs::Install,
}

/// What joining leaves behind is not idleness.
const SETTLE: Duration = Duration::from_secs(10);
const DEATH_DEADLINE: Duration = Duration::from_secs(30);
/// Clock ticks a second that `/proc/PID/stat` counts in, on every Linux.
const TICKS: f64 = 100.0;

/// `cargo xtask bench idle`.
pub fn run(flags: &Flags) -> Result<()> {
    ensure!(needs::meet(&[needs::IP], flags.needs)?, "this benchmark cannot do without");
    ensure!(flags.rounds > 0 && flags.seconds > 0, "--rounds and --seconds: at least 1");
    let pln = binary::build(&flags.profile)?;
    let size = std::fs::metadata(&pln)?.len();
    // SAFETY: no other thread runs yet that could read the environment.
    unsafe { std::env::set_var("PLN_BIN", pln) };
    let mut lab = Lab::new()?;
    let mut nodes = lab.hosts(Family::Both, ["a", "b", "c"])?.map(Pln::on);
    cluster::form(&mut nodes, &["--publisher"])?;
    std::thread::sleep(SETTLE);

    let mut rows = vec![format!("| binary, profile {} | {:.1} MiB |", flags.profile, size as f64 / f64::from(1 << 20))];
    rows.extend(idle(&nodes, flags.seconds)?);
    let (mut starts, mut deaths) = (Vec::new(), Vec::new());
    for round in 0..flags.rounds {
        let (others, last) = nodes.split_at_mut(2);
        let watchers: Vec<&Pln> = others.iter().collect();
        let killed = Instant::now();
        last[0].kill()?;
        await_online(&watchers, &["a", "b"], DEATH_DEADLINE)?;
        deaths.push(killed.elapsed().as_secs_f64());
        starts.push(last[0].up()?.as_secs_f64() * 1e3);
        let all: Vec<&Pln> = nodes.iter().collect();
        await_online(&all, &["a", "b", "c"], cluster::TOGETHER_DEADLINE)?;
        println!(
            "round {round}: death known after {:.2} s, start {:.0} ms",
            deaths[deaths.len() - 1],
            starts[starts.len() - 1]
        );
    }
    rows.push(format!("| start to answering on the control socket, after a crash | {} ms |", spread(&mut starts, 0)));
    rows.push(format!("| `kill -9` until both others say offline | {} s |", spread(&mut deaths, 2)));
    let notes = format!(
        "\nThree nodes in namespaces joined by a bridge, nothing published; {} s of idling, median of the nodes.\n\
         Starts include that of `ip netns exec`; deaths are looked at every 50 ms by `pln status`. {} rounds,\n\
         median [min-max].\n",
        flags.seconds, flags.rounds
    );
    save("idle", &notes, &format!("| | |\n|---|---|\n{}\n", rows.join("\n"))).map(drop)
}

fn idle(nodes: &[Pln], seconds: u64) -> Result<Vec<String>> {
    let before: Vec<_> = nodes.iter().map(Usage::of).collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_secs(seconds));
    let after: Vec<_> = nodes.iter().map(Usage::of).collect::<Result<_>>()?;
    let time = seconds as f64;
    let middle = |of: &dyn Fn(&Usage, &Usage) -> f64| {
        median(&mut before.iter().zip(&after).map(|(before, after)| of(before, after)).collect::<Vec<_>>())
    };
    Ok(vec![
        format!("| resident memory of a node | {:.1} MiB |", middle(&|_, after| after.resident_kib / 1024.0)),
        format!(
            "| CPU of a node | {:.2} % of one |",
            middle(&|before, after| (after.ticks - before.ticks) / TICKS / time * 100.0)
        ),
        format!(
            "| sent by a node, Ethernet headers included | {:.0} bit/s |",
            middle(&|before, after| (after.sent - before.sent) * 8.0 / time)
        ),
        format!(
            "| packets sent by a node | {:.1} a second |",
            middle(&|before, after| (after.packets - before.packets) / time)
        ),
    ])
}

/// What a node has used so far.
struct Usage {
    resident_kib: f64,
    ticks: f64,
    sent: f64,
    packets: f64,
}

impl Usage {
    fn of(node: &Pln) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid()?))?;
        let after_name = stat.rsplit_once(')').context("/proc/PID/stat has no name")?.1;
        let number = |text: Option<&str>| -> Result<f64> { Ok(text.context("a field is missing")?.parse()?) };
        let mut fields = after_name.split_whitespace().skip(11);
        let ticks = number(fields.next())? + number(fields.next())?;
        let devices = node.host.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        let device = devices.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("no eth0")?;
        let mut counters = device.split_whitespace().skip(8);
        let (sent, packets) = (number(counters.next())?, number(counters.next())?);
        Ok(Self { resident_kib: node.resident_kib()? as f64, ticks, sent, packets })
    }
}
