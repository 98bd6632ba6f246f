//! The Unix socket's file: where it is, who may open it. Owns binding and removing; speaks no HTTP.
//! Invariant: at no moment may anyone outside the owner and the group `pln` open it. Only the daemon that holds the
//! state directory's lock binds, so a socket file found there is a dead one's.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, chmod, chownat, fchmod};
use tokio::net::UnixListener;

/// The socket's name in the state directory.
pub const FILE: &str = "pln.sock";

/// The group whose members may operate the node, where it exists.
const GROUP: &str = "pln";

/// The longest path that fits `sockaddr_un`, without its final zero.
const PATH_BYTES_MAX: usize = 107;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("the path {0} is too long for a Unix socket ({PATH_BYTES_MAX} bytes); choose a shorter state directory")]
    TooLong(PathBuf),
    #[error("cannot listen on {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// The socket of the daemon whose state is in `dir`.
#[must_use]
pub fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Listens on the socket in `dir`, in place of whatever socket was left there.
///
/// # Errors
/// When the path is too long or the system refuses; nothing listens then.
pub fn bind(dir: &Path) -> Result<UnixListener, BindError> {
    let path = path(dir);
    if path.as_os_str().as_bytes().len() > PATH_BYTES_MAX {
        return Err(BindError::TooLong(path));
    }
    bind_private(&path).map_err(|source| BindError::Io { path: path.clone(), source })
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    remove(path)?;
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    // On Linux the file that `bind` makes takes the mode of the socket's own inode: so there is no moment at which
    // the umask alone decides who may open it.
    fchmod(socket.as_fd(), Mode::RUSR | Mode::WUSR)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    if let Some(gid) = group(GROUP) {
        // Without the right to give the file to the group (an unprivileged daemon outside of it), the owner alone
        // operates the node.
        if chownat(CWD, path, None, Some(gid), AtFlags::SYMLINK_NOFOLLOW).is_err() {
            tracing::debug!("the control socket stays with its owner: no right to give it to the group {GROUP}");
        }
    }
    chmod(path, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

/// Connections that wait to be accepted: as many as may call (see `call`) can come at once, and a client that does not
/// block is turned away by the system where this is full.
const BACKLOG: i32 = 1024;

/// Removes the socket file if there is one.
///
/// # Errors
/// When something is there and cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The number of a group in `/etc/group`. Read directly: a static binary has no name service.
fn group(name: &str) -> Option<Gid> {
    let groups = std::fs::read("/etc/group").ok()?;
    group_in(&groups, name)
}

fn group_in(groups: &[u8], name: &str) -> Option<Gid> {
    groups.split(|&c| c == b'\n').find_map(|line| {
        let mut fields = line.split(|&c| c == b':');
        let found = OsStr::from_bytes(fields.next()?) == name;
        let gid = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
        found.then(|| Gid::from_raw(gid))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

    use super::*;

    #[tokio::test]
    async fn the_socket_is_for_owner_and_group_and_replaces_a_dead_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = bind(dir.path()).expect("an empty directory");
        drop(first);
        let _second = bind(dir.path()).expect("a dead socket is replaced");
        let file = std::fs::metadata(path(dir.path())).expect("it is there");
        assert!(file.file_type().is_socket());
        assert_eq!(file.permissions().mode() & 0o777, 0o660);
    }

    #[tokio::test]
    async fn a_path_that_does_not_fit_is_refused_with_a_sentence() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = dir.path().join("d".repeat(120));
        assert!(matches!(bind(&deep), Err(BindError::TooLong(_))));
        assert!(matches!(bind(&dir.path().join("absent")), Err(BindError::Io { .. })));
    }

    #[test]
    fn groups_are_found_by_exact_name() {
        let groups = b"root:x:0:\nplnx:x:7:\npln:x:990:alice\nbroken\n";
        assert_eq!(group_in(groups, "pln").map(Gid::as_raw), Some(990));
        assert_eq!(group_in(groups, "pl"), None);
        assert_eq!(group_in(b"pln:x:many:", "pln"), None);
    }
}
