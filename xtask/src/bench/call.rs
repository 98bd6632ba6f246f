//! Calls of seeds, each in a fresh instance: in process, through the control socket of a node that hosts the seed, from
//! a node that hosts nothing, and the same guests on the `extism` crate. Rounds are interleaved, for the machine's own
//! speed drifts; load and nodes share its processors.

mod aims;
mod nodes;
mod program;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::lab::{Family, Lab};
use tests::pln::Pln;
use tests::{binary, cluster};

use self::program::Programs;
use super::{median, save, spread};
use crate::{needs, seeds};

#[derive(clap::Args, Debug)]
pub struct Flags {
    /// Seconds of each run
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Runs of each
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// The profile that pln is built with
    #[arg(long, default_value = "dist")]
    profile: String,
    /// Only guests, ways and sizes whose name contains this, such as `rust` or `remote`
    #[arg(long)]
    only: Option<String>,
    /// Without the `extism` crate, which takes minutes to build
    #[arg(long)]
    no_extism: bool,
    #[command(flatten)]
    needs: needs::Install,
}

const SIZES: [usize; 3] = [64, 64 << 10, 1 << 20];
const CALLERS: [usize; 2] = [1, 32];
/// When the memory is looked at again.
const QUIET: Duration = Duration::from_secs(60);

/// A guest as it is measured.
struct Guest {
    name: &'static str,
    module: PathBuf,
    image: bool,
}

/// One of the ways to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    InProcess,
    Hosting,
    Remote,
    Extism,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::InProcess => "in process",
            Self::Hosting => "socket, hosting node",
            Self::Remote => "socket, remote node",
            Self::Extism => "extism crate, in process",
        }
    }
}

/// What is measured again in each round: the guest's index, the size of input and output, how many call at once, and how.
type Case = (usize, usize, usize, Way);

/// What all rounds of a case gave, a number each.
#[derive(Default)]
struct Cell {
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    rate: Vec<f64>,
    per_cpu_second: Vec<f64>,
}

/// One run of a case.
struct Sample {
    calls: f64,
    seconds: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_seconds: f64,
    /// After the run, where it is a process of its own.
    resident_kib: Option<f64>,
}

impl Cell {
    fn add(&mut self, sample: &Sample) {
        self.p50_us.push(sample.p50_us);
        self.p99_us.push(sample.p99_us);
        self.rate.push(sample.calls / sample.seconds);
        self.per_cpu_second.push(sample.calls / sample.cpu_seconds);
    }
}

/// `cargo xtask bench call`.
pub fn run(flags: &Flags) -> Result<()> {
    ensure!(needs::meet(&[needs::IP], flags.needs)?, "this benchmark cannot do without");
    ensure!(flags.rounds > 0 && flags.seconds > 0, "--rounds and --seconds: at least 1");
    let guests = guests(flags)?;
    let programs = Programs::build(&flags.profile, !flags.no_extism)?;
    let pln = binary::build(&flags.profile)?;
    // SAFETY: no other thread runs yet that could read the environment.
    unsafe { std::env::set_var("PLN_BIN", pln) };
    let mut lab = Lab::new()?;
    let mut pair = lab.hosts(Family::Both, ["a", "b"])?.map(Pln::on);
    cluster::form(&mut pair, &["--publisher"])?;
    for guest in &guests {
        nodes::publish(&pair[0], guest)?;
    }
    let hosts = guests.iter().map(|guest| nodes::host(&pair, guest.name)).collect::<Result<Vec<_>>>()?;

    let cases = cases(flags, &guests);
    let before = nodes::resident(&pair)?;
    let mut cells: BTreeMap<Case, Cell> = BTreeMap::new();
    let mut process_kib: BTreeMap<Way, f64> = BTreeMap::new();
    for round in 0..flags.rounds {
        for &case in &cases {
            let (guest, bytes, callers, way) = case;
            let from_nodes = |from| {
                let load = (bytes, callers);
                nodes::measure(&pair, from, hosts[guest], &guests[guest], load, flags.seconds)
            };
            let sample = match way {
                Way::InProcess | Way::Extism => programs.measure(way, &guests[guest], bytes, callers, flags.seconds)?,
                Way::Hosting => from_nodes(hosts[guest])?,
                Way::Remote => from_nodes(1 - hosts[guest])?,
            };
            println!("round {round}: {}: {}", title(&guests, case), shown(&sample));
            if let Some(kib) = sample.resident_kib {
                let most = process_kib.entry(way).or_default();
                *most = most.max(kib);
            }
            cells.entry(case).or_default().add(&sample);
        }
    }
    let after = nodes::resident(&pair)?;
    println!("Waiting {} s, to look at the memory of the nodes again ...", QUIET.as_secs());
    std::thread::sleep(QUIET);
    let memory = Memory { before, after, later: nodes::resident(&pair)?, process_kib };
    report(flags, &guests, &mut cells, &memory)
}

fn guests(flags: &Flags) -> Result<Vec<Guest>> {
    let built = seeds::build(flags.needs)?;
    let mut guests = vec![Guest { name: "rust", module: built.dir.join("hello.wasm"), image: false }];
    if built.left_out.is_empty() {
        guests.push(Guest { name: "go-image", module: built.dir.join("hello-go.wasm"), image: true });
    }
    for reason in &built.left_out {
        println!("left out: {reason}");
    }
    Ok(guests)
}

fn cases(flags: &Flags, guests: &[Guest]) -> Vec<Case> {
    let mut cases = Vec::new();
    for guest in 0..guests.len() {
        for bytes in SIZES {
            for callers in CALLERS {
                for way in [Way::InProcess, Way::Extism, Way::Hosting, Way::Remote] {
                    cases.push((guest, bytes, callers, way));
                }
            }
        }
    }
    cases.retain(|&case| !(flags.no_extism && case.3 == Way::Extism));
    cases.retain(|&case| flags.only.as_ref().is_none_or(|only| title(guests, case).contains(only)));
    cases
}

fn title(guests: &[Guest], (guest, bytes, callers, way): Case) -> String {
    format!("{} guest, {}, {callers} calling, {}", guests[guest].name, size(bytes), way.name())
}

fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn shown(sample: &Sample) -> String {
    format!("p50 {:.1} us, p99 {:.1} us, {:.0} calls/s", sample.p50_us, sample.p99_us, sample.calls / sample.seconds)
}

/// Resident memory, in MiB: of the two nodes when the guests were ready, after the load, and after some quiet.
struct Memory {
    before: [f64; 2],
    after: [f64; 2],
    later: [f64; 2],
    /// The most of a process that called in process, in KiB.
    process_kib: BTreeMap<Way, f64>,
}

fn report(flags: &Flags, guests: &[Guest], cells: &mut BTreeMap<Case, Cell>, memory: &Memory) -> Result<()> {
    let mut table = String::new();
    for (index, guest) in guests.iter().enumerate() {
        table += &format!("## The guest {}\n\n", guest.name);
        table += "| | callers | bytes | p50, us | p99, us | calls/s | calls per CPU-second |\n|---|---|---|---|---|---|---|\n";
        for (case, cell) in cells.iter_mut().filter(|(case, _)| case.0 == index) {
            table += &format!(
                "| {} | {} | {} | {} | {} | {} | {} |\n",
                case.3.name(),
                case.2,
                size(case.1),
                spread(&mut cell.p50_us, 1),
                spread(&mut cell.p99_us, 1),
                spread(&mut cell.rate, 0),
                spread(&mut cell.per_cpu_second, 0)
            );
        }
        table.push('\n');
    }
    table += "## Resident memory, MiB\n\n| | before the load | after it | a minute later |\n|---|---|---|---|\n";
    for (index, name) in ["node a", "node b"].iter().enumerate() {
        let [before, after, later] = [memory.before, memory.after, memory.later].map(|all| all[index]);
        table += &format!("| {name} | {before:.1} | {after:.1} | {later:.1} |\n");
    }
    for (way, kib) in &memory.process_kib {
        table += &format!("| {}, the most of any run | | {:.1} | |\n", way.name(), kib / 1024.0);
    }
    table += &aims::table(cells, memory.later.into_iter().fold(0.0, f64::max));
    let notes = format!(
        "\nEvery call is `echo` in a fresh instance, input and output of the size shown. Two nodes in namespaces joined by a\n\
         bridge; load and nodes share the processors above. CPU-seconds are those of the nodes, or of the process that\n\
         calls in process; the load's own are not counted. Callers are threads with a connection each that call without a\n\
         pause; in process they are tasks on two workers, with `extism` threads. `extism` is on its pooling allocator, a\n\
         fresh plugin from a compiled one, without an image, which it has not. Median [min-max] of {} interleaved runs of\n\
         {} s. pln: profile {}.\n",
        flags.rounds, flags.seconds, flags.profile
    );
    save("call", &notes, &table).map(drop)
}

/// The median of what a case gave, if it was measured.
fn got(cells: &mut BTreeMap<Case, Cell>, case: Case, number: fn(&mut Cell) -> &mut Vec<f64>) -> Option<f64> {
    cells.get_mut(&case).map(|cell| median(number(cell)))
}
