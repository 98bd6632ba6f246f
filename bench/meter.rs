//! What the programs of the call benchmark share: a guest, callers that call it without a pause, and what that took.
//! Included by path, as they are in workspaces of their own; knows the standard library alone.
//! Invariant: every program prints one line of the same fields, so that their numbers may stand side by side.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What one run is to do: `--module PATH --bytes N --callers N --seconds N [--image]`.
#[derive(Clone, Debug)]
pub struct Run {
    pub module: String,
    /// The size of the input, which is the output too.
    pub bytes: usize,
    pub callers: usize,
    pub seconds: u64,
    /// Only Pollen's engine knows images.
    #[allow(dead_code, reason = "each program reads what it can do")]
    pub image: bool,
}

impl Run {
    /// From the program's arguments.
    ///
    /// # Panics
    /// If they are others: it is called by the benchmark alone.
    pub fn of_arguments() -> Self {
        let mut run = Self { module: String::new(), bytes: 64, callers: 1, seconds: 1, image: false };
        let mut arguments = std::env::args().skip(1);
        while let Some(flag) = arguments.next() {
            let mut number = || arguments.next().expect("a number").parse::<u32>().expect("a number");
            match flag.as_str() {
                "--image" => run.image = true,
                "--bytes" => run.bytes = number() as usize,
                "--callers" => run.callers = number() as usize,
                "--seconds" => run.seconds = number().into(),
                "--module" => run.module = arguments.next().expect("a path"),
                other => panic!("what is {other}?"),
            }
        }
        run
    }

    /// An input that no two bytes in a row of are the same.
    pub fn input(&self) -> Vec<u8> {
        (0..self.bytes).map(|index| u8::try_from(index % 251).expect("below 256")).collect()
    }
}

/// What a run came to.
pub struct Numbers {
    /// How long each call took, in nanoseconds.
    pub took_ns: Vec<u64>,
    pub wall: Duration,
    /// Of this process, in seconds.
    pub cpu: f64,
}

impl Numbers {
    /// The line that the benchmark reads.
    pub fn print(mut self, before_kib: u64) {
        self.took_ns.sort_unstable();
        let at = |percent: usize| self.took_ns[(self.took_ns.len() - 1) * percent / 100] as f64 / 1e3;
        println!(
            "{{\"calls\":{},\"seconds\":{},\"p50_us\":{},\"p99_us\":{},\"cpu_seconds\":{},\"before_kib\":{before_kib},\"after_kib\":{}}}",
            self.took_ns.len(),
            self.wall.as_secs_f64(),
            at(50),
            at(99),
            self.cpu,
            resident_kib()
        );
    }
}

/// When callers that call without a pause shall end.
pub struct Bell(AtomicBool);

impl Bell {
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    pub fn rang(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Lets the callers go on for so long; returns when they were told to end.
    pub fn ring_after(&self, time: Duration) {
        std::thread::sleep(time);
        self.0.store(true, Ordering::Relaxed);
    }
}

/// When callers began, by the clock and by what this process had used.
pub struct Start {
    at: Instant,
    cpu: f64,
}

impl Start {
    pub fn now() -> Self {
        Self { cpu: cpu_seconds(), at: Instant::now() }
    }

    /// The callers have ended; `took_ns` is what each call took.
    pub fn end(self, took_ns: Vec<u64>) -> Numbers {
        Numbers { took_ns, wall: self.at.elapsed(), cpu: cpu_seconds() - self.cpu }
    }
}

/// This process's resident memory.
pub fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a running process has memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// This process's time on processors, in seconds.
pub fn cpu_seconds() -> f64 {
    /// Clock ticks a second that `/proc/PID/stat` counts in, on every Linux.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let mut fields = fields.split_whitespace().skip(11).map(|field| field.parse::<f64>().expect("a number"));
    (fields.next().expect("utime") + fields.next().expect("stime")) / TICKS
}
