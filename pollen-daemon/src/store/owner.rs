//! Whose a state directory is: root, asked to change one of another user, does it as that user. Owns the change of
//! identity. Invariant: root never writes below a directory that another user controls, who could have put a link there,
//! and never leaves files there that the node's own daemon cannot read.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Why the owner's place could not be taken. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot act as the user {uid}, whose state this is: {source}")]
pub struct ActError {
    uid: u32,
    source: io::Error,
}

/// This process acts as a directory's owner until dropped.
#[derive(Debug)]
pub struct Acting {
    /// What root was, where its place was left.
    root: Option<Groups>,
}

/// The groups of a process.
#[derive(Debug)]
struct Groups {
    own: libc::gid_t,
    others: Vec<libc::gid_t>,
}

/// Acts as the owner of `dir` from now on, if this process is root's and `dir` is another's. Does nothing otherwise.
/// To be called while the process has one thread: those made later act alike.
///
/// # Errors
/// [`ActError`]
pub fn act_for(dir: &Path) -> Result<Acting, ActError> {
    let Ok(found) = std::fs::metadata(dir) else { return Ok(Acting { root: None }) };
    let (uid, gid) = (found.uid(), found.gid());
    if !rustix::process::geteuid().is_root() || uid == 0 {
        return Ok(Acting { root: None });
    }
    become_user(uid, gid).map_err(|source| ActError { uid, source })
}

fn become_user(uid: u32, gid: u32) -> io::Result<Acting> {
    let acting = Acting { root: Some(groups()?) };
    // Groups first: once the user is another there is no right to change them. A failure half-way is undone by `acting`.
    set_groups(&[gid])?;
    // SAFETY: plain system calls without memory.
    checked(unsafe { libc::setegid(gid) })?;
    // SAFETY: as above.
    checked(unsafe { libc::seteuid(uid) })?;
    Ok(acting)
}

impl Drop for Acting {
    fn drop(&mut self) {
        let Some(groups) = &self.root else { return };
        // SAFETY: plain system calls without memory. The real and saved user are still root, so they do not fail.
        let user = checked(unsafe { libc::seteuid(0) });
        // SAFETY: as above.
        let group = checked(unsafe { libc::setegid(groups.own) });
        let restored = user.and(group).and_then(|()| set_groups(&groups.others));
        restored.expect("the saved user is root, who may be any user");
    }
}

fn groups() -> io::Result<Groups> {
    let others = rustix::process::getgroups()?.into_iter().map(rustix::process::Gid::as_raw).collect();
    Ok(Groups { own: rustix::process::getegid().as_raw(), others })
}

fn set_groups(groups: &[libc::gid_t]) -> io::Result<()> {
    // SAFETY: the pointer and length are those of a slice, which is only read.
    checked(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })
}

fn checked(returned: libc::c_int) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
