//! Installing the service and taking it away. Owns the order of the steps, each of which can be done again after an
//! end in the middle. Invariants: state that is not ours is left alone; files are given to the service's user before
//! that user owns the directory they lie in, so that it cannot have other files put in their place.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use super::account::{self, Account};
use super::unit::{self, USER, Unfit};
use super::{Machine, ToolError};
use crate::store::layout::{self, Found, SYSTEM_DIR};
use crate::store::{self, OpenError, StateDir};

/// The state directory's mode: its owner, and the group that operates the node through the socket in it.
const STATE_MODE: u32 = 0o750;

/// Why the service was not installed, or not taken away. What was done before stays, and the next try goes on there.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("systemd does not run this machine: there is nothing to install a service into")]
    NotBooted,
    #[error("installing a service takes root")]
    NotRoot,
    #[error("this program cannot be the service's: {0}")]
    Unfit(#[from] Unfit),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{} belongs to the user {uid}, who is neither root nor {USER}", path.display())]
    Owner { path: PathBuf, uid: u32 },
    #[error("there is no user {USER}, though systemd-sysusers was asked to make one")]
    NoUser,
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    move |source| InstallError::Io { path: path.to_owned(), source }
}

/// What is installed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    pub unit: PathBuf,
    pub program: PathBuf,
    /// Whether the unit is another than it was.
    pub changed: bool,
}

/// Makes `program` the service of this machine: user, state directory, unit. Starts nothing.
///
/// # Errors
/// [`InstallError`]
pub fn install(machine: &Machine<'_>, program: &Path) -> Result<Installed, InstallError> {
    allowed(machine)?;
    let program = unit::program(program)?;
    let account = account(machine)?;
    provide_state(&machine.state_dir(), account)?;
    let path = machine.unit_path();
    let text = unit::text(&program);
    let changed = fs::read_to_string(&path).ok().as_ref() != Some(&text);
    if changed {
        // At once, as systemd may look at any time.
        let new = path.with_extension("service.new");
        fs::write(&new, &text).map_err(at(&new))?;
        fs::set_permissions(&new, Permissions::from_mode(0o644)).map_err(at(&new))?;
        fs::rename(&new, &path).map_err(at(&path))?;
    }
    // Also where nothing changed: the last try may have ended before this.
    machine.tools.run("systemctl", &["daemon-reload"])?;
    Ok(Installed { unit: path, program, changed })
}

/// What was taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uninstalled {
    pub service: bool,
    pub state: bool,
    pub user: bool,
}

/// Stops the service and takes it away; its state, keys and user only where `purge` says so.
///
/// # Errors
/// [`InstallError`]
pub fn uninstall(machine: &Machine<'_>, purge: bool) -> Result<Uninstalled, InstallError> {
    allowed(machine)?;
    let path = machine.unit_path();
    let service = path.exists();
    if service {
        machine.tools.run("systemctl", &["--quiet", "disable", "--now", unit::NAME])?;
        fs::remove_file(&path).map_err(at(&path))?;
        machine.tools.run("systemctl", &["daemon-reload"])?;
        // One that failed is remembered beyond its file; any other is not known any more, which is said as a failure.
        drop(machine.tools.run("systemctl", &["--quiet", "reset-failed", unit::NAME]));
    }
    let state = purge && purge_state(&machine.state_dir())?;
    let user = purge && account::user(&machine.root, USER).is_some();
    if user {
        // The group of the same name goes with it, unless somebody else is in it.
        machine.tools.run("userdel", &[USER])?;
    }
    Ok(Uninstalled { service, state, user })
}

fn allowed(machine: &Machine<'_>) -> Result<(), InstallError> {
    if !machine.is_booted() {
        return Err(InstallError::NotBooted);
    }
    // In a test's machine everything is the tester's own.
    if machine.root == Path::new("/") && !rustix::process::geteuid().is_root() {
        return Err(InstallError::NotRoot);
    }
    Ok(())
}

/// The service's user, made if there is none.
fn account(machine: &Machine<'_>) -> Result<Account, InstallError> {
    if let Some(account) = account::user(&machine.root, USER) {
        return Ok(account);
    }
    let line = format!("u {USER} - \"Pollen mesh node\" {SYSTEM_DIR}");
    let root = format!("--root={}", machine.root.display());
    machine.tools.run("systemd-sysusers", &[&root, "--inline", &line])?;
    account::user(&machine.root, USER).ok_or(InstallError::NoUser)
}

/// The state directory, as the service needs it: made, laid out, and its user's.
fn provide_state(dir: &Path, account: Account) -> Result<(), InstallError> {
    let held = match StateDir::create(dir) {
        Ok(held) => Some(held),
        // The service itself runs on it, and it is as it should be.
        Err(OpenError::Locked { .. }) if owner(dir)? == account.uid => None,
        Err(error) => return Err(error.into()),
    };
    match owner(dir)? {
        uid if uid == account.uid => {}
        0 => give(dir, account)?,
        uid => return Err(InstallError::Owner { path: dir.to_owned(), uid }),
    }
    fs::set_permissions(dir, Permissions::from_mode(STATE_MODE)).map_err(at(dir))?;
    drop(held);
    Ok(())
}

fn owner(path: &Path) -> Result<u32, InstallError> {
    fs::symlink_metadata(path).map(|found| found.uid()).map_err(at(path))
}

/// Gives a directory and all in it to `account`, the directory last. Links are given, never followed.
fn give(dir: &Path, account: Account) -> Result<(), InstallError> {
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        let path = entry.path();
        if entry.file_type().map_err(at(&path))?.is_dir() {
            give(&path, account)?;
        } else {
            lchown(&path, Some(account.uid), Some(account.gid)).map_err(at(&path))?;
        }
    }
    lchown(dir, Some(account.uid), Some(account.gid)).map_err(at(dir))
}

/// Deletes the state, keys and all; whether there was any. A directory that is not ours stays.
fn purge_state(dir: &Path) -> Result<bool, InstallError> {
    match layout::inspect(dir) {
        Err(OpenError::Missing { .. }) => return Ok(false),
        Ok(Found::Ours) => store::purge(StateDir::open(dir)?, true).map_err(at(dir))?,
        Ok(Found::Empty) => {}
        Err(error) => return Err(error.into()),
    }
    fs::remove_dir(dir).map_err(at(dir))?;
    Ok(true)
}

#[cfg(test)]
mod tests;
