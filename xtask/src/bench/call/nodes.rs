//! Calls through the control sockets of two nodes: the load, and what the nodes used meanwhile. Owns its threads; must
//! not know what is compared with what.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tests::calls::{Call, Caller};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::status::Status;

use super::{Guest, Sample};

/// Of a large Go guest, on a machine that does something else too.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Calls before each measured run: connections are made, slots touched.
const WARM_UP: usize = 64;
/// Clock ticks a second that `/proc/PID/stat` counts in, on every Linux.
const TICKS: f64 = 100.0;

/// Publishes a guest under its name, to be hosted by one node.
pub fn publish(node: &Pln, guest: &Guest) -> Result<()> {
    let module = guest.module.to_str().context("a path that is no text")?;
    let mut words = vec!["seed", module, guest.name, "--min-replicas", "1", "--memory", "64MiB"];
    words.extend(guest.image.then_some("--image"));
    node.ok(&words).map(drop)
}

/// Which of the two nodes hosts a seed.
pub fn host(nodes: &[Pln; 2], seed: &str) -> Result<usize> {
    let settled = || {
        let of = |node: &Pln| Status::of(node).and_then(|status| status.hosts(seed)).map_err(|e| format!("{e:#}"));
        let (here, there) = (of(&nodes[0])?, of(&nodes[1])?);
        let host = nodes.iter().position(|node| here.contains(node.host.name()));
        host.filter(|_| here == there && here.len() == 1).ok_or_else(|| format!("a sees {here:?}, b sees {there:?}"))
    };
    Ok(eventually(&format!("{seed} is ready on one node"), READY_DEADLINE, settled)?.0)
}

/// Calls on node `from` a guest that node `host` hosts, by so many callers with inputs of so many bytes.
pub fn measure(
    nodes: &[Pln; 2],
    from: usize,
    host: usize,
    guest: &Guest,
    (bytes, callers): (usize, usize),
    seconds: u32,
) -> Result<Sample> {
    let input: Vec<u8> = (0..bytes).map(|index| u8::try_from(index % 251).expect("below 256")).collect();
    let call = Call::of(guest.name, "echo", &input);
    let key = nodes[host].json(&["inspect", nodes[host].host.name()])?["key"].as_str().context("no key")?.to_owned();
    let mut first = Caller::on(&nodes[from]);
    for _ in 0..WARM_UP {
        match first.call(&call)? {
            Ok(answer) => ensure!(answer.output == input && answer.served_by == key, "{} answered", answer.served_by),
            Err(failure) => bail!("a call before the run: {failure:?}"),
        }
    }
    let stop = AtomicBool::new(false);
    let (cpu, began) = (cpu_seconds(nodes)?, Instant::now());
    let mut took = std::thread::scope(|scope| -> Result<Vec<Duration>> {
        let one = || -> Result<Vec<Duration>> {
            let (mut caller, mut took) = (Caller::on(&nodes[from]), Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                match caller.call(&call)? {
                    Ok(answer) => ensure!(answer.output.len() == bytes, "{} bytes came back", answer.output.len()),
                    Err(failure) => bail!("a call failed: {failure:?}"),
                }
                took.push(began.elapsed());
            }
            Ok(took)
        };
        let threads: Vec<_> = (0..callers).map(|_| scope.spawn(one)).collect();
        std::thread::sleep(Duration::from_secs(seconds.into()));
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??);
        }
        Ok(all)
    })?;
    let (seconds, cpu_seconds) = (began.elapsed().as_secs_f64(), cpu_seconds(nodes)? - cpu);
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    let (p50_us, p99_us) = (at(50), at(99));
    Ok(Sample { calls: took.len() as f64, seconds, p50_us, p99_us, cpu_seconds, resident_kib: None })
}

/// Processor time that both nodes used so far.
fn cpu_seconds(nodes: &[Pln; 2]) -> Result<f64> {
    let mut ticks = 0.0;
    for node in nodes {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid()?))?;
        let after_name = stat.rsplit_once(')').context("/proc/PID/stat has no name")?.1;
        for field in after_name.split_whitespace().skip(11).take(2) {
            ticks += field.parse::<f64>()?;
        }
    }
    Ok(ticks / TICKS)
}

/// Resident memory of each, in MiB.
pub fn resident(nodes: &[Pln; 2]) -> Result<[f64; 2]> {
    Ok([nodes[0].resident_kib()? as f64 / 1024.0, nodes[1].resident_kib()? as f64 / 1024.0])
}
