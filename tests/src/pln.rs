//! One `pln` on a host of the lab: its daemon as a process, its command line as a function.
//! Knows the contract of the command line (flags, exit codes, JSON), nothing of how it is kept.
//! Invariant: the daemon ends with its owner, and a failed test shows the end of its log.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::binary;
use crate::lab::Host;
use crate::process;

/// A started daemon answers within this, on a loaded machine and in a build without optimisation too.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// After SIGTERM open streams may finish for a bounded time; this is longer.
const TERMINATE_DEADLINE: Duration = Duration::from_secs(20);
/// How much of a log a failed test shows.
const LOG_LINES_SHOWN: usize = 40;

/// The exit codes of the command line.
pub mod exit {
    pub const FAILURE: i32 = 1;
    pub const USAGE: i32 = 2;
    pub const NOT_FOUND: i32 = 3;
    pub const DENIED: i32 = 4;
    pub const AMBIGUOUS: i32 = 5;
    pub const UNREACHABLE: i32 = 6;
}

/// `pln` on a host.
pub struct Pln {
    pub host: Host,
    daemon: Option<Child>,
    /// Flags for `up`, beyond those that say which node it is.
    up_flags: Vec<String>,
    /// What starts the daemon: a program and its arguments, before those of `pln`.
    starter: Vec<OsString>,
    /// What the daemon finds in its environment.
    env: Vec<(OsString, OsString)>,
}

impl Pln {
    /// `pln` on `host`, with no state yet and nothing running.
    #[must_use]
    pub fn on(host: Host) -> Self {
        Self { host, daemon: None, up_flags: Vec::new(), starter: vec![binary::pln().into()], env: Vec::new() }
    }

    /// The same with flags for `up`.
    #[must_use]
    pub fn with_up_flags(mut self, flags: &[&str]) -> Self {
        self.up_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self
    }

    /// The same with a daemon that is started by other means than by its path: `starter` ends in a program that is
    /// `pln`.
    #[must_use]
    pub fn started_by(mut self, starter: Vec<OsString>, env: Vec<(OsString, OsString)>) -> Self {
        (self.starter, self.env) = (starter, env);
        self
    }

    /// Where this node's state lies.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.host.dir().join("state")
    }

    /// Where its daemon's log goes.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.host.dir().join("log")
    }

    /// A command of the command line, ready to run.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_by(&[binary::pln().into()], args)
    }

    fn command_by(&self, starter: &[OsString], args: &[&str]) -> Command {
        let (program, first) = starter.split_first().expect("something starts it");
        let mut command = self.host.command(program);
        command.args(first).arg("--dir").arg(self.dir()).args(args).env_remove("PLN_DIR").env_remove("PLN_HOST");
        command
    }

    /// Runs a command, whatever its exit code; nothing on its standard input.
    ///
    /// # Errors
    /// If it cannot be started or hangs.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        self.run_with(args, &[])
    }

    /// The same with `input` on its standard input.
    ///
    /// # Errors
    /// As [`Pln::run`].
    pub fn run_with(&self, args: &[&str], input: &[u8]) -> Result<Output> {
        std::fs::create_dir_all(self.host.dir())?;
        process::finish(self.command(args), input).with_context(|| format!("pln {}", shown(args)))
    }

    /// Runs a command that must succeed; returns what it printed, trimmed.
    ///
    /// # Errors
    /// If it fails: with its message.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: pln {}: {}: {said}", self.host.name(), shown(args), output.status);
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Runs a command that must succeed, with `--json`; returns its document.
    ///
    /// # Errors
    /// If it fails, or prints something else.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let printed = self.ok(&[&["--json"], args].concat())?;
        serde_json::from_str(&printed).with_context(|| format!("pln {} --json: {printed}", shown(args)))
    }

    /// Runs a command that must fail with exit code `code`; returns what it said on standard error.
    ///
    /// # Errors
    /// If it succeeds or fails in another way.
    pub fn fails(&self, code: i32, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let exited = output.status.code();
        let (name, args) = (self.host.name(), shown(args));
        ensure!(exited == Some(code), "{name}: pln {args}: {exited:?}, not {code}: {said}");
        ensure!(!said.is_empty(), "{name}: pln {args}: says nothing on standard error");
        Ok(said)
    }

    /// Starts the daemon and waits until it answers; returns how long that took.
    ///
    /// # Errors
    /// If it ends or does not answer in time.
    pub fn up(&mut self) -> Result<Duration> {
        ensure!(self.daemon.is_none(), "{} is up already", self.host.name());
        let started = Instant::now();
        self.spawn_up()?;
        self.await_answer()?;
        Ok(started.elapsed())
    }

    /// Starts the daemon without waiting.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub fn spawn_up(&mut self) -> Result<()> {
        std::fs::create_dir_all(self.host.dir())?;
        let mut log = File::options().create(true).append(true).open(self.log_path())?;
        writeln!(log, "--- up")?;
        let port = self.host.port().to_string();
        let mut command = self.command_by(&self.starter, &["up", "--port", &port, "--name", self.host.name()]);
        command
            .envs(self.env.iter().cloned())
            .args(&self.up_flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // Its own group: Ctrl-C at the demo's terminal ends the demo, which then ends its nodes.
        self.daemon = Some(command.process_group(0).spawn()?);
        Ok(())
    }

    /// Waits until the daemon answers on its control socket.
    ///
    /// # Errors
    /// If it ends or does not answer in time.
    pub fn await_answer(&mut self) -> Result<()> {
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            let daemon = self.daemon.as_mut().context("no daemon was started")?;
            if let Some(status) = daemon.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.host.name(), self.log_tail());
            }
            // A socket that accepts is the sign that start-up is over; asking by command would cost a process a look.
            if std::os::unix::net::UnixStream::connect(self.socket()).is_ok() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} does not answer:\n{}", self.host.name(), self.log_tail());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir().join("pln.sock")
    }

    /// Kills the daemon as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// If there is none.
    pub fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().with_context(|| format!("{} is not up", self.host.name()))?;
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// Ends the daemon with SIGTERM and waits.
    ///
    /// # Errors
    /// If there is none, or it does not end well and in time.
    pub fn terminate(&mut self) -> Result<Duration> {
        self.end_by(libc::SIGTERM)
    }

    /// Ends the daemon as a terminal does that is closed, with SIGHUP, and waits.
    ///
    /// # Errors
    /// As [`Pln::terminate`].
    pub fn hang_up(&mut self) -> Result<Duration> {
        self.end_by(libc::SIGHUP)
    }

    fn end_by(&mut self, signal: libc::c_int) -> Result<Duration> {
        let mut daemon = self.daemon.take().with_context(|| format!("{} is not up", self.host.name()))?;
        let started = Instant::now();
        let pid = libc::pid_t::try_from(daemon.id())?;
        // SAFETY: a plain system call; the process is our child and not yet waited for, so the number is its own.
        unsafe { libc::kill(pid, signal) };
        let status = process::wait(&mut daemon, TERMINATE_DEADLINE)?;
        ensure!(status.success(), "{} ended with {status}:\n{}", self.host.name(), self.log_tail());
        Ok(started.elapsed())
    }

    /// Stops the daemon where it is, as a suspended machine does, for as long as `pause` runs.
    ///
    /// # Errors
    /// If there is none.
    pub fn stopped<T>(&self, pause: impl FnOnce() -> T) -> Result<T> {
        let pid = libc::pid_t::try_from(self.pid()?)?;
        // SAFETY: a plain system call; the process is our child and not yet waited for, so the number is its own.
        let signal = |signal| unsafe { libc::kill(pid, signal) };
        signal(libc::SIGSTOP);
        let done = pause();
        signal(libc::SIGCONT);
        Ok(done)
    }

    /// Whether the daemon runs.
    #[must_use]
    pub fn is_up(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|daemon| matches!(daemon.try_wait(), Ok(None)))
    }

    /// The daemon's process.
    ///
    /// # Errors
    /// If there is none.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().with_context(|| format!("{} is not up", self.host.name()))?.id())
    }

    /// The daemon's resident memory, in KiB.
    ///
    /// # Errors
    /// If there is none.
    pub fn resident_kib(&self) -> Result<u64> {
        Ok(self.process("VmRSS:")?.trim_end_matches(" kB").parse()?)
    }

    /// How many threads the daemon has.
    ///
    /// # Errors
    /// If there is none.
    pub fn threads(&self) -> Result<usize> {
        Ok(self.process("Threads:")?.parse()?)
    }

    /// A field of what the kernel says of the daemon's process.
    fn process(&self, field: &str) -> Result<String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let value = status.lines().find_map(|line| line.strip_prefix(field));
        Ok(value.with_context(|| format!("no {field} the daemon ended"))?.trim().to_owned())
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }
}

impl Drop for Pln {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.host.name(), self.log_tail());
        }
        if self.daemon.is_some() {
            // It may have ended by itself; then there is nothing left to do.
            let _ended = self.kill();
        }
    }
}

/// Arguments as a failure shows them: tokens are long, and not for a log.
fn shown(args: &[&str]) -> String {
    const LEN_MAX: usize = 48;
    let shorten = |arg: &&str| arg.get(..LEN_MAX).map_or_else(|| (*arg).to_owned(), |start| format!("{start}..."));
    args.iter().map(shorten).collect::<Vec<_>>().join(" ")
}
