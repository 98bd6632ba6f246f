//! Commands about the service that keeps the node running: `daemon install`, `daemon uninstall`, `restart`; and what
//! `up -d`, `join` and `down` ask of it. Owns what people are told where there is no service.
//! Invariant: without systemd each says in a sentence what to do instead, and changes nothing.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::output::Output;
use crate::config::PORT_DEFAULT;
use crate::control::api::Done;
use crate::http::failure::{Code, Failure};
use crate::store::layout::{self, Found, SYSTEM_DIR};
use crate::systemd::install::{self, InstallError};
use crate::systemd::unit::{self, Unfit};
use crate::systemd::{Machine, Service, ServiceError, ToolError};

/// Install or remove the service that runs this node
#[derive(Debug, clap::Args)]
pub(super) struct Daemon {
    #[command(subcommand)]
    command: DaemonCommand,
}

#[derive(Debug, clap::Subcommand)]
enum DaemonCommand {
    Install(Install),
    Uninstall(Uninstall),
}

impl Daemon {
    pub(super) fn run(self, dirs: &Dirs<'_>, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        match self.command {
            DaemonCommand::Install(command) => command.run(dirs, output),
            DaemonCommand::Uninstall(command) => command.run(output),
        }
    }
}

/// Which state directories are meant.
pub(super) struct Dirs<'a> {
    /// What `--dir` or `PLN_DIR` says.
    pub(super) given: Option<&'a Path>,
    /// Where a command works that does not ask.
    pub(super) resolved: &'a Path,
}

impl Dirs<'_> {
    /// What a command about the service means: the service's own, unless another was named.
    pub(super) fn of_service(&self) -> &Path {
        self.given.unwrap_or(Path::new(SYSTEM_DIR))
    }
}

/// Install the node as a service of systemd
///
/// Makes the user and group pln, /var/lib/pln and a hardened unit, and starts nothing: `pln up -d` does. The service runs
/// this very program, from where it lies. Doing it again changes nothing; after an upgrade it brings the unit up to date.
#[derive(Debug, clap::Args)]
struct Install {
    /// Print the unit, and change nothing
    #[arg(long)]
    print: bool,
}

impl Install {
    fn run(self, dirs: &Dirs<'_>, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let program = std::env::current_exe();
        let program = program.map_err(|error| failed(format!("this program's own path is unknown: {error}")))?;
        if self.print {
            let unit = unit::text(&program);
            return output.answer(&json!({"unit": unit}), || unit.clone());
        }
        own_dir(dirs)?;
        let installed = install::install(&Machine::here(), &program).map_err(of_install)?;
        let (path, program) = (installed.unit.display(), installed.program.display());
        let document = json!({"unit": path.to_string(), "program": program.to_string(), "changed": installed.changed});
        output.answer(&document, || {
            let next = "`pln init` or `pln join TOKEN` makes it a member, `pln up -d` starts it";
            if installed.changed {
                format!("installed {path}, which runs {program}\n{next}; where it runs already, `pln restart`")
            } else {
                format!("{path} is as it should be, and runs {program}")
            }
        })
    }
}

/// The service's directory, or why it would be another than the one in use so far.
fn own_dir(dirs: &Dirs<'_>) -> Result<(), Failure> {
    if let Some(dir) = dirs.given {
        return if dir == Path::new(SYSTEM_DIR) { Ok(()) } else { Err(of_service(ServiceError::OtherDir(dir.into()))) };
    }
    if dirs.resolved == Path::new(SYSTEM_DIR) || layout::inspect(dirs.resolved).ok() != Some(Found::Ours) {
        return Ok(());
    }
    let dir = dirs.resolved.display();
    Err(failed(format!("this machine's node is in {dir}; the service would run another one, in {SYSTEM_DIR}")).hint(
        format!(
            "To keep that node: `pln down`, `mv {dir} {SYSTEM_DIR}`, and this again. \
             For another node beside it: `pln daemon install --dir {SYSTEM_DIR}`"
        ),
    ))
}

/// Stop the service and remove it
///
/// Its state, keys and user stay, for the next install, unless --purge.
#[derive(Debug, clap::Args)]
struct Uninstall {
    /// Also delete /var/lib/pln with the node's keys, and the user pln
    #[arg(long)]
    purge: bool,
}

impl Uninstall {
    fn run(self, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let gone = install::uninstall(&Machine::here(), self.purge).map_err(of_install)?;
        let document = json!({"service": gone.service, "state": gone.state, "user": gone.user});
        output.answer(&document, || {
            let parts = [(gone.service, "the service"), (gone.state, SYSTEM_DIR), (gone.user, "the user pln")];
            let parts: Vec<&str> = parts.into_iter().filter_map(|(is_gone, part)| is_gone.then_some(part)).collect();
            if parts.is_empty() { "nothing was installed".into() } else { format!("removed {}", parts.join(", ")) }
        })
    }
}

/// Restart the service
///
/// Open streams may finish for ten seconds; connections and published services come back by themselves.
#[derive(Debug, clap::Args)]
pub(super) struct Restart {}

impl Restart {
    pub(super) fn run(self, dirs: &Dirs<'_>, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let service = Machine::here().service(dirs.of_service()).map_err(|error| {
            of_service(error).or_hint("where the node runs in the foreground: `pln down`, then `pln up`")
        })?;
        service.restart().map_err(|error| of_start(&service, error))?;
        output.answer(&Done::YES, || "restarted".into())
    }
}

/// Starts the service of `dir`, now and at every boot.
pub(super) fn start(dir: &Path, port: Option<u16>) -> Result<(), Failure> {
    let service = Machine::here().service(dir).map_err(|error| of_service(error).or_hint(&foreground(port)))?;
    service.start().map_err(|error| of_start(&service, error))
}

/// What people are told of a service that was started.
pub(super) const STARTED: &str = "up, now and at every boot; `pln status` and `pln logs -f` show more";

/// Whether a service runs the node of `dir`, installed at least.
pub(super) fn governs(dir: &Path) -> bool {
    Machine::here().service(dir).is_ok()
}

/// Stops the node of `dir` through systemd; false where that is not systemd's to do, or not this user's to ask.
pub(super) fn stop(dir: &Path) -> Result<bool, Failure> {
    let Ok(service) = Machine::here().service(dir) else { return Ok(false) };
    // Members of the group pln may stop it by its socket, which systemd takes for the end it is.
    if !rustix::process::geteuid().is_root() || !service.is_active().map_err(of_tool)? {
        return Ok(false);
    }
    service.stop().map_err(of_tool)?;
    Ok(true)
}

fn foreground(port: Option<u16>) -> String {
    let port = port.filter(|port| *port != PORT_DEFAULT).map(|port| format!(" --port {port}")).unwrap_or_default();
    format!("run `pln up{port}` in the foreground, or under whatever keeps services running here")
}

fn failed(message: String) -> Failure {
    Failure::new(Code::Failed, message)
}

trait OrHint {
    /// With this hint, unless it has one.
    fn or_hint(self, hint: &str) -> Self;
}

impl OrHint for Failure {
    fn or_hint(mut self, hint: &str) -> Self {
        self.hint.get_or_insert_with(|| hint.to_owned());
        self
    }
}

fn of_service(error: ServiceError) -> Failure {
    let message = error.to_string();
    match error {
        ServiceError::NotBooted => failed(message),
        ServiceError::NotInstalled => {
            failed(message).hint("`sudo pln daemon install` first; or run `pln up` in the foreground")
        }
        ServiceError::OtherDir(dir) => Failure::new(Code::Usage, message)
            .hint(format!("leave out --dir; or run `pln --dir {} up` in the foreground", dir.display())),
        ServiceError::Tool(error) => of_tool(error),
    }
}

/// Why it does not start, in the daemon's own words where root asks and there are any.
fn of_start(service: &Service<'_>, error: ToolError) -> Failure {
    let failure = of_tool(error);
    match (failure.code, service.last_words()) {
        (Code::Failed, Some(why)) => Failure { message: format!("the service does not start: {why}"), ..failure },
        _ => failure,
    }
}

fn of_tool(error: ToolError) -> Failure {
    if rustix::process::geteuid().is_root() {
        return failed(error.to_string()).hint("see `journalctl -u pln -n 30`");
    }
    Failure::new(Code::Denied, error.to_string()).hint("run it with sudo")
}

fn of_install(error: InstallError) -> Failure {
    let message = error.to_string();
    match error {
        InstallError::NotBooted => failed(message).hint(foreground(None)),
        InstallError::NotRoot => Failure::new(Code::Denied, message).hint("run it with sudo"),
        InstallError::Unfit(unfit) => failed(message).hint(elsewhere(&unfit)),
        InstallError::Open(error) => Failure::new(super::offline::code_of_open(&error), message),
        InstallError::Owner { path, .. } => {
            failed(message).hint(format!("if it is this node's: `chown -R root: {}`, and this again", path.display()))
        }
        InstallError::Tool(error) => of_tool(error),
        InstallError::NoUser | InstallError::Io { .. } => failed(message),
    }
}

/// Where a program belongs that the service cannot run.
fn elsewhere(unfit: &Unfit) -> String {
    let installed = PathBuf::from("/usr/local/bin/pln");
    match unfit {
        Unfit::Hidden { path, .. } | Unfit::Writable { path } if *path != installed => {
            format!("`sudo install {} {1}`, then `sudo {1} daemon install`", path.display(), installed.display())
        }
        _ => "put the program where only root can change it: /usr/local/bin/pln".into(),
    }
}
