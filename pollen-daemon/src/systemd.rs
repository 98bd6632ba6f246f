//! The node as a service of systemd: what is installed, and what systemd is asked. Owns the unit, its user and its
//! directory; must not know what a node does.
//! Invariants: nothing is changed on a machine that systemd does not run; installing again changes nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::store::layout::SYSTEM_DIR;

mod account;
pub mod install;
pub mod notify;
pub mod unit;

/// Where units of this machine's administrator are.
const UNIT_DIR: &str = "etc/systemd/system";
/// There if and only if systemd is the init of this machine (`sd_booted(3)`).
const BOOTED: &str = "run/systemd/system";
/// Where the sentence that the daemon ends with is to be found: a hint and systemd's own words may follow it.
const LAST_LINES: &str = "--lines=20";
/// How much of what a tool said is repeated.
const SAID_CHARS_MAX: usize = 300;

/// A tool of the system that was asked for something.
pub trait Tools {
    /// Runs `program` to its end; what it wrote on standard output.
    ///
    /// # Errors
    /// [`ToolError`]
    fn run(&self, program: &'static str, args: &[&str]) -> Result<String, ToolError>;
}

/// A tool of the system failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    #[error("{0} cannot be run: {1}")]
    Absent(&'static str, String),
    #[error("{program} failed: {said}")]
    Failed { program: &'static str, said: String },
}

/// The real ones.
#[derive(Clone, Copy, Debug)]
pub struct SystemTools;

impl Tools for SystemTools {
    fn run(&self, program: &'static str, args: &[&str]) -> Result<String, ToolError> {
        let output = Command::new(program).args(args).stdin(Stdio::null()).output();
        let output = output.map_err(|error| ToolError::Absent(program, error.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            let said = if said.is_empty() { output.status.to_string() } else { said };
            return Err(ToolError::Failed { program, said: said.chars().take(SAID_CHARS_MAX).collect() });
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// The machine whose services are meant.
pub struct Machine<'t> {
    /// `/`, but in tests.
    root: PathBuf,
    tools: &'t dyn Tools,
}

/// Why systemd was not asked, or did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    #[error("systemd does not run this machine, so there is no pln service on it")]
    NotBooted,
    #[error("the pln service is not installed")]
    NotInstalled,
    #[error("the pln service keeps its state in {SYSTEM_DIR}, not in {}", .0.display())]
    OtherDir(PathBuf),
    #[error(transparent)]
    Tool(#[from] ToolError),
}

impl Machine<'static> {
    /// The one that this process runs on.
    #[must_use]
    pub fn here() -> Self {
        Self { root: PathBuf::from("/"), tools: &SystemTools }
    }
}

impl<'t> Machine<'t> {
    /// A machine whose files are below `root`.
    #[must_use]
    pub fn below(root: &Path, tools: &'t dyn Tools) -> Self {
        Self { root: root.to_owned(), tools }
    }

    /// Whether systemd runs it.
    #[must_use]
    pub fn is_booted(&self) -> bool {
        self.root.join(BOOTED).is_dir()
    }

    /// The service that runs the node of `dir`.
    ///
    /// # Errors
    /// [`ServiceError`], if there is none.
    pub fn service(&self, dir: &Path) -> Result<Service<'t>, ServiceError> {
        if !self.is_booted() {
            return Err(ServiceError::NotBooted);
        }
        if !self.unit_path().exists() {
            return Err(ServiceError::NotInstalled);
        }
        if dir != Path::new(SYSTEM_DIR) {
            return Err(ServiceError::OtherDir(dir.to_owned()));
        }
        Ok(Service(self.tools))
    }

    fn unit_path(&self) -> PathBuf {
        self.root.join(UNIT_DIR).join(unit::NAME)
    }

    /// The service's state directory.
    fn state_dir(&self) -> PathBuf {
        self.root.join(SYSTEM_DIR.trim_start_matches('/'))
    }
}

/// An installed service.
pub struct Service<'t>(&'t dyn Tools);

impl Service<'_> {
    /// Starts it now and at every boot; returns when the node answers.
    ///
    /// # Errors
    /// What systemd said.
    pub fn start(&self) -> Result<(), ToolError> {
        self.systemctl(&["enable", "--now", unit::NAME])
    }

    /// Stops it, until the next boot or start; returns when it has ended.
    ///
    /// # Errors
    /// What systemd said.
    pub fn stop(&self) -> Result<(), ToolError> {
        self.systemctl(&["stop", unit::NAME])
    }

    /// Stops it if it runs, and starts it; returns when the node answers.
    ///
    /// # Errors
    /// What systemd said.
    pub fn restart(&self) -> Result<(), ToolError> {
        self.systemctl(&["restart", unit::NAME])
    }

    /// Whether systemd runs it, or is about to.
    ///
    /// # Errors
    /// What systemd said.
    pub fn is_active(&self) -> Result<bool, ToolError> {
        let state = self.0.run("systemctl", &["show", "--property=ActiveState", "--value", unit::NAME])?;
        Ok(!matches!(state.as_str(), "inactive" | "failed"))
    }

    /// The sentence that the service last ended with, if it did not end well.
    #[must_use]
    pub fn last_words(&self) -> Option<String> {
        let run = self.0.run("systemctl", &["show", "--property=InvocationID", "--value", unit::NAME]).ok()?;
        // What was just written may be on its way.
        self.0.run("journalctl", &["--sync"]).ok()?;
        let run = format!("_SYSTEMD_INVOCATION_ID={run}");
        let said = self.0.run("journalctl", &["--quiet", "--no-pager", "--output=cat", LAST_LINES, &run]).ok()?;
        said.lines().rev().find_map(|line| line.strip_prefix("pln: ")).map(str::to_owned)
    }

    /// Never asks for a password: what asks is a script's undoing.
    fn systemctl(&self, args: &[&str]) -> Result<(), ToolError> {
        self.0.run("systemctl", &[&["--no-ask-password", "--quiet"], args].concat()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A journal of these lines.
    struct Journal(&'static str);

    impl Tools for Journal {
        fn run(&self, program: &'static str, args: &[&str]) -> Result<String, ToolError> {
            match (program, args) {
                ("systemctl", _) => Ok("4e1f".into()),
                ("journalctl", ["--sync"]) => Ok(String::new()),
                ("journalctl", [.., "_SYSTEMD_INVOCATION_ID=4e1f"]) => Ok(self.0.into()),
                _ => Err(ToolError::Absent(program, format!("{args:?}"))),
            }
        }
    }

    #[test]
    fn the_last_words_are_the_sentence_and_neither_its_hint_nor_the_log() {
        let journal = Journal("INFO pollen_daemon: up\npln: no key\n  look for it\npln.service: Failed\n");
        assert_eq!(Service(&journal).last_words().as_deref(), Some("no key"));
        assert_eq!(Service(&Journal("INFO pollen_daemon: up\n")).last_words(), None);
    }
}
