//! Network namespaces by way of `ip`, and threads inside them.
//! Knows nothing of Pollen. Invariant: a namespace's processes end before it is deleted, and with its owner.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::patience::eventually;

/// Where `ip netns` keeps its handles.
const HANDLES: &str = "/run/netns";
/// A process that was killed is reaped by its parent or by init; either may be busy.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// A network namespace, deleted with all its processes and devices when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with its loopback up.
    ///
    /// # Errors
    /// If `ip` is missing or refuses: no root, no namespaces in this container, or the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let namespace = Self { name: name.to_owned() };
        namespace.ip(&["link", "set", "lo", "up"])?;
        // Addresses are usable at once: duplicate detection would delay each start by a second or two.
        namespace.enter(|| std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0"))??;
        Ok(namespace)
    }

    /// The name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` on what is inside the namespace.
    ///
    /// # Errors
    /// If `ip` does: with its message.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.name], args].concat())
    }

    /// Runs a command inside, to its end.
    ///
    /// # Errors
    /// If it is missing or fails: with what it said.
    pub fn ok(&self, program: &str, args: &[&str]) -> Result<()> {
        let output = self.command(program).args(args).output().with_context(|| program.to_owned())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {}: {}", args.join(" "), said.trim());
        Ok(())
    }

    /// A command that will run inside.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `work` on a thread inside the namespace: sockets that it opens are the namespace's for good.
    ///
    /// # Errors
    /// If the namespace is gone or may not be entered. A panic of `work` is passed on.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        let handle = File::open(&path).with_context(|| format!("{}", path.display()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: a plain system call on a descriptor that is open for the whole call; it moves this thread only.
                let moved = unsafe { libc::setns(handle.as_raw_fd(), libc::CLONE_NEWNET) };
                ensure!(moved == 0, "cannot enter {}: {}", path.display(), std::io::Error::last_os_error());
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn path(&self) -> PathBuf {
        Path::new(HANDLES).join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = delete(&self.name) {
            eprintln!("namespace {} stays behind: {error:#}", self.name);
        }
    }
}

/// The namespaces whose names start with `prefix`.
///
/// # Errors
/// If their folder exists and cannot be read.
pub fn list(prefix: &str) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(HANDLES) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(HANDLES)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Ends every process inside, then deletes the namespace.
///
/// # Errors
/// If a process survives, or `ip` refuses.
pub fn delete(name: &str) -> Result<()> {
    let inside = || -> Result<Vec<libc::pid_t>> {
        let output = Command::new("ip").args(["netns", "pids", name]).stderr(Stdio::null()).output()?;
        let own = std::process::id().to_string();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().filter(|pid| *pid != own).map(|pid| Ok(pid.parse()?)).collect()
    };
    eventually(&format!("no process in {name}"), KILL_DEADLINE, || {
        let pids = inside().map_err(|error| error.to_string())?;
        for pid in &pids {
            // SAFETY: a plain system call; the process is in our own namespace, so it is ours.
            unsafe { libc::kill(*pid, libc::SIGKILL) };
        }
        if pids.is_empty() || pids.iter().all(|pid| is_zombie(*pid)) { Ok(()) } else { Err(format!("{pids:?}")) }
    })?;
    ip(&["netns", "del", name])
}

fn is_zombie(pid: libc::pid_t) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the last parenthesis: the name between them may hold anything.
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("ip (Debian: iproute2)")?;
    ensure!(output.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
