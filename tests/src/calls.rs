//! Calls of seeds over a node's control socket, one after the other on a connection or as a load. Knows the control
//! API's calls (HTTP/1.1, raw bodies), nothing of the command line. Invariant: every call is recorded, however it ended.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::pln::Pln;

/// No call takes longer: the daemon's own limits are shorter.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// The longest line of an answer's head, in bytes.
const LINE_BYTES_MAX: u64 = 16 * 1024;
/// What one thread of a load needs: it reads and writes buffers on the heap.
const STACK_BYTES: usize = 128 * 1024;

/// What is called, and how patiently.
#[derive(Clone, Debug)]
pub struct Call {
    /// The whole request, as a load sends it thousands of times.
    request: Arc<[u8]>,
}

impl Call {
    /// A function of a seed with an input, and the retries and the patience that `pln call` has.
    #[must_use]
    pub fn of(seed: &str, function: &str, input: &[u8]) -> Self {
        Self::with_retries(seed, function, input, 3)
    }

    /// The same, without another try elsewhere.
    #[must_use]
    pub fn once(seed: &str, function: &str, input: &[u8]) -> Self {
        Self::with_retries(seed, function, input, 0)
    }

    fn with_retries(seed: &str, function: &str, input: &[u8], retries: u32) -> Self {
        let head = format!(
            "POST /v1/calls/{seed}/{function}?timeout_ms=60000&retries={retries} HTTP/1.1\r\nhost: pln\r\n\
             content-length: {}\r\n\r\n",
            input.len()
        );
        Self { request: [head.as_bytes(), input].concat().into() }
    }
}

/// How a call ended.
pub type Outcome = std::result::Result<Answer, Failure>;

/// What a seed answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub output: Vec<u8>,
    /// The node's key, in hexadecimal.
    pub served_by: String,
    pub version: String,
}

/// What the daemon answered in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: String,
    pub message: String,
    pub may_have_run: bool,
}

/// A connection to a node's control socket, for one call after the other.
pub struct Caller {
    socket: PathBuf,
    stream: Option<BufReader<UnixStream>>,
}

impl Caller {
    /// Connects when first used.
    #[must_use]
    pub fn on(node: &Pln) -> Self {
        Self::at(&node.socket())
    }

    /// The same, by the socket's path.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), stream: None }
    }

    /// Makes a call and waits for what it gives.
    ///
    /// # Errors
    /// If the daemon does not answer by the contract. A failed call is an answer.
    pub fn call(&mut self, call: &Call) -> Result<Outcome> {
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = UnixStream::connect(&self.socket).with_context(|| self.socket.display().to_string())?;
                stream.set_read_timeout(Some(SILENCE_MAX))?;
                stream.set_write_timeout(Some(SILENCE_MAX))?;
                BufReader::new(stream)
            }
        };
        let (outcome, stream) = exchange(stream, call)?;
        self.stream = stream;
        Ok(outcome)
    }
}

/// Sends a request and reads its answer; returns the connection too, if it may be used again.
fn exchange(mut stream: BufReader<UnixStream>, call: &Call) -> Result<(Outcome, Option<BufReader<UnixStream>>)> {
    stream.get_mut().write_all(&call.request)?;
    let status = line(&mut stream)?;
    let status: u16 = status.split(' ').nth(1).context("no HTTP status")?.parse()?;
    let (mut length, mut close, mut served_by, mut version, mut may_have_run) =
        (None, false, String::new(), String::new(), false);
    loop {
        let header = line(&mut stream)?;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').with_context(|| header.clone())?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.parse::<usize>()?),
            "connection" => close = value.eq_ignore_ascii_case("close"),
            "pln-served-by" => value.clone_into(&mut served_by),
            "pln-version" => value.clone_into(&mut version),
            "pln-may-have-run" => may_have_run = value == "true",
            _ => {}
        }
    }
    let mut body = vec![0; length.context("an answer without a length")?];
    stream.read_exact(&mut body)?;
    let outcome = if status == 200 {
        Ok(Answer { output: body, served_by, version })
    } else {
        let failure: Value = serde_json::from_slice(&body).with_context(|| format!("{status}"))?;
        let text = |field: &str| failure[field].as_str().map(str::to_owned).with_context(|| format!("{failure}"));
        Err(Failure { code: text("code")?, message: text("message")?, may_have_run })
    };
    Ok((outcome, (!close).then_some(stream)))
}

fn line(stream: &mut BufReader<UnixStream>) -> Result<String> {
    let mut line = String::new();
    stream.take(LINE_BYTES_MAX).read_line(&mut line)?;
    ensure!(line.ends_with("\r\n"), "the daemon broke off after {line:?}");
    line.truncate(line.len() - 2);
    Ok(line)
}

/// One call of a load.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it was to begin, and when it ended.
    pub began: Instant,
    pub ended: Instant,
    pub outcome: Outcome,
}

impl Record {
    /// How long it took, counted from when it was due.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.ended - self.began
    }
}

/// Calls at a steady rate, each begun when it is due, whether those before it have ended or not.
pub struct Load {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Vec<JoinHandle<Result<Record>>>>,
}

impl Load {
    /// Begins.
    #[must_use]
    pub fn start(node: &Pln, per_second: u32, call: &Call) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let (ended, socket, call) = (Arc::clone(&end), node.socket(), call.clone());
        let thread = std::thread::spawn(move || {
            let mut calls = Vec::new();
            let mut due = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                calls.push(spawn(&socket, due, &call));
                due += Duration::from_secs(1) / per_second;
            }
            calls
        });
        Self { end, thread }
    }

    /// Ends it, and waits for the calls under way.
    ///
    /// # Errors
    /// If the daemon did not answer one by the contract.
    ///
    /// # Panics
    /// If a thread of the load did.
    pub fn stop(self) -> Result<Vec<Record>> {
        self.end.store(true, Ordering::Relaxed);
        let calls = self.thread.join().expect("the load only starts threads");
        calls.into_iter().map(|call| call.join().expect("a call that breaks is an error")).collect()
    }
}

/// Many calls at once, each on a connection of its own.
pub struct Crowd(Vec<JoinHandle<Result<Record>>>);

impl Crowd {
    /// Begins `count` calls, on `nodes` in turn.
    #[must_use]
    pub fn start(nodes: &[&Pln], count: usize, call: &Call) -> Self {
        let nodes = nodes.iter().cycle().take(count);
        Self(nodes.map(|node| spawn(&node.socket(), Instant::now(), call)).collect())
    }

    /// How many have ended.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.0.iter().filter(|call| call.is_finished()).count()
    }

    /// Waits for all.
    ///
    /// # Errors
    /// If the daemon did not answer one by the contract.
    ///
    /// # Panics
    /// If a thread of the crowd did.
    pub fn join(self) -> Result<Vec<Record>> {
        self.0.into_iter().map(|call| call.join().expect("a call that breaks is an error")).collect()
    }
}

fn spawn(socket: &Path, due: Instant, call: &Call) -> JoinHandle<Result<Record>> {
    let (mut caller, call) = (Caller::at(socket), call.clone());
    let work = move || {
        let outcome = caller.call(&call)?;
        Ok(Record { began: due, ended: Instant::now(), outcome })
    };
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work).expect("the machine has room for a thread")
}
