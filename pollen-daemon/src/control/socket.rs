//! The Unix socket's file: where it is, who may open it. Owns binding, removing, and making it again where somebody has
//! deleted it; speaks no HTTP.
//! Invariants: at no moment may anyone outside the owner and the group `pln` open it. Nothing is removed but a socket
//! that nobody answers at, and one's own.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Gid, Mode, chmod, chownat, fchmod};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep_until};

use crate::http::Accept;

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
    #[error("{0} is in the way: it is no socket, so the daemon does not remove it; see what it is, and move it away")]
    NoSocket(PathBuf),
    #[error(
        "another program answers at {0}, where this node's commands are taken: stop it, or choose another directory"
    )]
    Taken(PathBuf),
    #[error("cannot listen on {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// The socket of the daemon whose state is in `dir`.
#[must_use]
pub fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Which file a path names: what is removed, deleted or put in its place by others is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Of what is at `path` itself; none where nothing is, or it cannot be looked at.
    fn at(path: &Path) -> Option<Self> {
        let found = std::fs::symlink_metadata(path).ok()?;
        Some(Self { device: found.dev(), inode: found.ino() })
    }
}

/// Listens on the socket in `dir`, in place of a socket at which nobody answers any more.
///
/// # Errors
/// When the path is too long or something else's, or the system refuses; nothing listens then, and what was there is
/// there.
pub fn bind(dir: &Path) -> Result<Kept, BindError> {
    let dir = dir.to_owned();
    let (listener, file) = listen(&dir)?;
    let made = Made { path: path(&dir), file: Arc::new(Mutex::new(file)) };
    Ok(Kept { dir, listener, made, look_at: Instant::now() + LOOK_EVERY, failed: None })
}

fn listen(dir: &Path) -> Result<(UnixListener, Option<FileId>), BindError> {
    let path = path(dir);
    if path.as_os_str().as_bytes().len() > PATH_BYTES_MAX {
        return Err(BindError::TooLong(path));
    }
    clear(&path)?;
    let listener = bind_private(&path).map_err(|source| BindError::Io { path: path.clone(), source })?;
    Ok((listener, FileId::at(&path)))
}

/// Removes a socket at which nobody answers.
fn clear(path: &Path) -> Result<(), BindError> {
    let io = |source| BindError::Io { path: path.to_owned(), source };
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NoSocket(path.to_owned()));
    }
    match knock(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(io(error)),
        // Whatever else is said, it is not that nobody is there: its queue is full, or it speaks otherwise.
        _ => return Err(BindError::Taken(path.to_owned())),
    }
    remove(path, Some(FileId { device: found.dev(), inode: found.ino() })).map_err(io)
}

/// Whether anybody listens there, without waiting.
fn knock(path: &Path) -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&socket2::SockAddr::unix(path)?)
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
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

/// How often to look whether the file is still there: whoever deleted it gets an answer before giving up on the node.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A socket that is made again where its file was deleted.
#[derive(Debug)]
pub struct Kept {
    dir: PathBuf,
    listener: UnixListener,
    made: Made,
    look_at: Instant,
    /// What was last said of why it cannot be made again.
    failed: Option<String>,
}

impl Kept {
    /// The file, to be removed in the end.
    #[must_use]
    pub fn made(&self) -> Made {
        self.made.clone()
    }

    fn look(&mut self) {
        self.look_at = Instant::now() + LOOK_EVERY;
        if self.made.is_there() {
            return;
        }
        match listen(&self.dir) {
            Ok((listener, file)) => {
                tracing::warn!("{} was deleted while the node ran: it is there again", self.made.path.display());
                // Nobody has come to the old one since its file was deleted.
                self.listener = listener;
                self.made.set(file);
                self.failed = None;
            }
            Err(error) => {
                let why = error.to_string();
                if self.failed.as_ref() != Some(&why) {
                    tracing::warn!("the control socket was deleted, and cannot be made again: {why}");
                    self.failed = Some(why);
                }
            }
        }
    }
}

impl Accept for Kept {
    type Io = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => return accepted.map(|(io, _)| io),
                () = sleep_until(self.look_at) => self.look(),
            }
        }
    }
}

/// The file of a socket that this process made.
#[derive(Clone, Debug)]
pub struct Made {
    path: PathBuf,
    file: Arc<Mutex<Option<FileId>>>,
}

impl Made {
    fn file(&self) -> Option<FileId> {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, file: Option<FileId>) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }

    fn is_there(&self) -> bool {
        let found = FileId::at(&self.path);
        found.is_some() && found == self.file()
    }

    /// Removes it, unless its path is another's by now.
    pub fn remove(&self) {
        if let Err(error) = remove(&self.path, self.file()) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes what is at `path` if it is `file`.
fn remove(path: &Path, file: Option<FileId>) -> io::Result<()> {
    if file.is_none() || FileId::at(path) != file {
        return Ok(());
    }
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
    use std::os::unix::fs::PermissionsExt as _;

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
    async fn what_is_not_a_dead_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = path(dir.path());
        std::fs::write(&at, "notes").expect("an empty directory");
        let refused = bind(dir.path()).map(drop);
        assert!(matches!(refused, Err(BindError::NoSocket(_))), "{refused:?}");
        assert_eq!(std::fs::read(&at).expect("it is there"), b"notes");
        std::fs::remove_file(&at).expect("it is ours");

        std::os::unix::fs::symlink("/dev/null", &at).expect("an empty directory");
        assert!(matches!(bind(dir.path()), Err(BindError::NoSocket(_))));
        std::fs::remove_file(&at).expect("it is ours");

        let other = std::os::unix::net::UnixListener::bind(&at).expect("an empty directory");
        let refused = bind(dir.path()).map(drop);
        assert!(matches!(refused, Err(BindError::Taken(_))), "{refused:?}");
        let _client = std::os::unix::net::UnixStream::connect(&at).expect("it is where it was");
        drop(other);
        std::fs::remove_file(&at).expect("it is ours");

        let datagrams = std::os::unix::net::UnixDatagram::bind(&at).expect("an empty directory");
        assert!(matches!(bind(dir.path()), Err(BindError::Taken(_))));
        drop(datagrams);
        let _kept = bind(dir.path()).expect("nobody is there any more");
    }

    #[tokio::test]
    async fn only_the_own_file_is_removed_in_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = path(dir.path());
        let kept = bind(dir.path()).expect("an empty directory");
        let aside = dir.path().join("aside");
        std::fs::rename(&at, &aside).expect("it is there");
        let _other = std::os::unix::net::UnixListener::bind(&at).expect("the path is free");
        kept.made().remove();
        assert!(at.exists(), "another's socket was removed");
        std::fs::rename(&aside, &at).expect("both are there");
        kept.made().remove();
        assert!(!at.exists(), "the own socket stays");
    }

    #[tokio::test]
    async fn a_deleted_socket_is_made_again_and_one_in_the_way_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = path(dir.path());
        let mut kept = bind(dir.path()).expect("an empty directory");
        let (made, first) = (kept.made(), FileId::at(&at));
        kept.look();
        assert_eq!(FileId::at(&at), first, "it is made again for nothing");
        std::fs::remove_file(&at).expect("it is there");
        std::fs::write(&at, "in the way").expect("the path is free");
        kept.look();
        assert_eq!(std::fs::read(&at).expect("it is there"), b"in the way");
        std::fs::remove_file(&at).expect("it is there");
        kept.look();
        assert!(made.is_there());
        let (client, accepted) = tokio::join!(UnixStream::connect(&at), kept.accept());
        assert!(client.is_ok() && accepted.is_ok(), "it is the new one that is listened on");
        made.remove();
        assert!(!at.exists(), "what was made again is one's own too");
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
