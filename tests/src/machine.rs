//! A machine of the lab that systemd runs: this very system under an overlay, in namespaces and a control group of its
//! own, on the network of one of the lab's hosts. Knows what a booted machine is, nothing of `pln` but where it lies.
//! Invariant: nothing that is done on it changes this system, and dropping it ends all that runs on it.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::binary;
use crate::lab::Host;
use crate::patience::eventually;
use crate::process;

/// Where the machine's `pln` lies, as an administrator would have put it there.
pub const PLN: &str = "/usr/local/bin/pln";
/// Makes a process the machine's init.
const BOOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/machine/boot.sh");
/// systemd has started everything within this: it takes a second here.
const BOOT_DEADLINE: Duration = Duration::from_secs(60);
/// All processes of a killed machine are gone within this.
const GONE_DEADLINE: Duration = Duration::from_secs(10);
/// What commands find in their environment, as root's shell has it.
const ENVIRONMENT: [&str; 2] = ["HOME=/root", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
/// How much of its journal a failed test shows.
const JOURNAL_LINES: &str = "--lines=60";

/// A booted machine.
pub struct Machine {
    pub host: Host,
    /// What made the namespaces; it ends when the machine's init does.
    outside: Child,
    /// The machine's first process, as this system numbers it.
    init: libc::pid_t,
    group: String,
}

impl Machine {
    /// Boots `host` with systemd and waits until it has started everything, `pln` in its place.
    ///
    /// # Errors
    /// If this system does not allow it (no systemd, no overlays, no control groups), or it does not boot in time.
    pub fn boot(host: Host) -> Result<Self> {
        let group = host.namespace().context("a machine needs a network of its own")?.name().to_owned();
        ensure!(Path::new("/lib/systemd/systemd").exists(), "there is no systemd here (Debian: systemd)");
        let dir = host.dir().join("machine");
        std::fs::create_dir_all(&dir)?;
        let console = File::create(console(&host))?;
        let mut boot = host.command("unshare");
        boot.args(["--mount", "sh", BOOT, &group]).arg(&dir).arg(host.name()).stdin(Stdio::null());
        let outside = boot.stdout(console.try_clone()?).stderr(console).spawn().context("unshare")?;
        let mut machine = Self { host, outside, init: 0, group };
        machine.await_boot()?;
        std::fs::copy(binary::pln(), machine.path(PLN)).context("pln cannot be installed")?;
        Ok(machine)
    }

    fn await_boot(&mut self) -> Result<()> {
        let mut ended = None;
        let up = eventually("systemd is up", BOOT_DEADLINE, || {
            ended = self.outside.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() {
                return Ok(());
            }
            self.init = child_of(self.outside.id()).ok_or("no process has begun")?;
            let comm = std::fs::read_to_string(format!("/proc/{}/comm", self.init));
            if comm.as_ref().map_or("", |comm| comm.trim()) != "systemd" {
                return Err(format!("the first process is {comm:?}"));
            }
            let state = self.output(&["systemctl", "is-system-running"]).map_err(|error| error.to_string())?;
            match String::from_utf8_lossy(&state.stdout).trim() {
                // Some service of this system's own may not like where it finds itself: that is not what is tested.
                "running" | "degraded" => Ok(()),
                other => Err(other.to_owned()),
            }
        });
        let console = || std::fs::read_to_string(console(&self.host)).unwrap_or_default();
        if let Some(status) = ended {
            bail!("systemd cannot run here: {status}: {}", console().trim());
        }
        up.map(drop).with_context(|| console().trim().to_owned())
    }

    /// A command that will run on it, as root.
    #[must_use]
    pub fn command<W: AsRef<OsStr>>(&self, words: &[W]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init));
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd=/"]);
        command.args(["env", "-i"]).args(ENVIRONMENT).args(words);
        command
    }

    /// Runs a command to its end, however it ends.
    ///
    /// # Errors
    /// If it hangs.
    pub fn output<W: AsRef<OsStr>>(&self, words: &[W]) -> Result<Output> {
        process::finish(self.command(words), &[]).with_context(|| shown(words))
    }

    /// Runs a command that must succeed; returns what it printed, trimmed.
    ///
    /// # Errors
    /// If it fails: with its message.
    pub fn ok<W: AsRef<OsStr>>(&self, words: &[W]) -> Result<String> {
        let output = self.output(words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}: {}: {said}", self.host.name(), shown(words), output.status);
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Runs a command that must fail with exit code `code`; returns what it said on standard error.
    ///
    /// # Errors
    /// If it succeeds or fails in another way.
    pub fn fails<W: AsRef<OsStr>>(&self, code: i32, words: &[W]) -> Result<String> {
        let output = self.output(words)?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let exited = output.status.code();
        ensure!(exited == Some(code), "{}: {}: {exited:?}, not {code}: {said}", self.host.name(), shown(words));
        Ok(said)
    }

    /// Runs `pln --json` with these arguments, which must succeed; returns its document.
    ///
    /// # Errors
    /// If it fails, or prints something else.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let printed = self.ok(&[&["pln", "--json"], args].concat())?;
        serde_json::from_str(&printed).with_context(|| printed)
    }

    /// A property of a unit, as systemd knows it.
    ///
    /// # Errors
    /// If systemd does not answer.
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        self.ok(&["systemctl", "show", "--value", &format!("--property={property}"), unit])
    }

    /// Where a file of the machine is found from outside, while it runs. Links inside are followed outside: for plain
    /// paths only.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        Path::new("/proc").join(self.init.to_string()).join("root").join(inside.trim_start_matches('/'))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && self.init != 0 {
            let journal = self.output(&["journalctl", "--no-pager", JOURNAL_LINES]);
            let journal = journal.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            eprintln!("--- journal of {}\n{}", self.host.name(), journal.unwrap_or_else(|error| format!("{error:#}")));
        }
        // All of the machine's processes end with its first.
        let first = if self.init == 0 { libc::pid_t::try_from(self.outside.id()).unwrap_or(0) } else { self.init };
        if first > 0 && matches!(self.outside.try_wait(), Ok(None)) {
            // SAFETY: a plain system call; the process is our child, or the one that our child waits for, so the number
            // is its own.
            unsafe { libc::kill(first, libc::SIGKILL) };
        }
        let gone = process::wait(&mut self.outside, GONE_DEADLINE).map(drop);
        if let Err(error) = gone.and_then(|()| delete_group(&self.group)) {
            eprintln!("the machine {} stays behind: {error:#}", self.host.name());
        }
    }
}

/// The control groups of machines whose names start with `prefix`; none where there can be no machines.
pub(crate) fn groups(prefix: &str) -> Result<Vec<String>> {
    let output = in_groups("ls", &[])?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(listed.lines().filter(|name| name.starts_with(prefix)).map(str::to_owned).collect())
}

/// Deletes a machine's control group with all beneath it; no process may be in it any more.
pub(crate) fn delete_group(name: &str) -> Result<()> {
    let deleted = || match in_groups(r#"! [ -e "$0" ] || find "$0" -depth -type d -exec rmdir {} +"#, &[name]) {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("{error:#}")),
    };
    // A process that was killed leaves its group a moment after it has ended.
    eventually(&format!("no control group {name}"), GONE_DEADLINE, deleted).map(drop)
}

/// Runs a line of shell where this system's control groups are, wherever it has them mounted itself.
fn in_groups(line: &str, args: &[&str]) -> Result<Output> {
    let line = format!("mount -t cgroup2 cgroup2 /sys/fs/cgroup && cd /sys/fs/cgroup && {{ {line}; }}");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &line]).args(args);
    process::finish(command, &[])
}

/// The only child of a process with one thread.
fn child_of(pid: u32) -> Option<libc::pid_t> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.split_whitespace().next()?.parse().ok()
}

/// Where its first words go.
fn console(host: &Host) -> PathBuf {
    host.dir().join("console")
}

fn shown<W: AsRef<OsStr>>(words: &[W]) -> String {
    words.iter().map(|word| word.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ")
}
