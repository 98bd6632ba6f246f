//! The state directory: where it is, whose it is, and that one process at a time changes it. Knows nothing of what
//! the records mean. Invariant: a directory that is refused is left exactly as it was found, byte for byte.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

/// How often, and after which pause, a lock that another process holds is tried again.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// The layout that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// First word of the format file: tells our directories from anyone else's.
const FORMAT_WORD: &str = "pollen-state";
const FORMAT_FILE: &str = "format";
const FORMAT_FILE_NEW: &str = "format.new";

/// A format file is one short line; a longer one is not ours, and is not read whole.
const FORMAT_BYTES_MAX: u64 = 64;

/// Where a machine-wide installation keeps its state.
pub const SYSTEM_DIR: &str = "/var/lib/pln";

/// What the Go `pln` leaves in the directory whose path we share with it.
const GO_LAYOUT: [&str; 3] = ["state.pb", "config.yaml", "keys"];

/// A state directory was not opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} holds another program's files{}: give an empty directory with --dir", path.display(), because(found))]
    Foreign { path: PathBuf, found: String },
    #[error("{} was written by a newer pln (layout {found}, this one reads {FORMAT_VERSION}): upgrade pln", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error("the node in {} is running", path.display())]
    Locked { path: PathBuf },
    #[error("{} may be written by anyone (mode {mode:o}): make it yours alone with `chmod go-w`", path.display())]
    Unsafe { path: PathBuf, mode: u32 },
    #[error("{} does not exist: make a cluster with `pln init` or enter one with `pln join`", path.display())]
    Missing { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}: the database does not open: {source}; put it back from a backup, or `pln join` with a new invite, which sets \
         this file aside and keeps the node's key",
        path.display()
    )]
    Database { path: PathBuf, source: Box<redb::Error> },
}

fn because(found: &str) -> String {
    if found.is_empty() { String::new() } else { format!(" ({found})") }
}

/// The state directory that a command means: `flag` (`--dir`, which the caller also fills from `PLN_DIR`), else the
/// system's if it is provisioned, else `.pln` in `home`. Touches nothing. Whoever has no home is no person but the system
/// (a boot script, cloud-init, a job of root's), which means its own.
#[must_use]
pub fn resolve(flag: Option<&Path>, home: Option<&OsStr>) -> PathBuf {
    if let Some(dir) = flag {
        return dir.to_owned();
    }
    let system = Path::new(SYSTEM_DIR);
    match home.filter(|home| !home.is_empty()) {
        Some(home) if !is_provisioned(system) => Path::new(home).join(".pln"),
        _ => system.to_owned(),
    }
}

/// Whether a state directory was laid out there. One that this user may not look into was: taken for none, it would
/// send people to another node, or to a new one, instead of telling them what they lack.
fn is_provisioned(dir: &Path) -> bool {
    match fs::metadata(dir.join(FORMAT_FILE)) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

/// The whole of a directory, held by this process alone until dropped (or until the process dies in any way).
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Its lock is the advisory lock on the directory itself, so that taking it writes nothing.
    _lock: File,
}

impl StateDir {
    /// Takes the directory, laying it out if it is new or empty.
    ///
    /// # Errors
    /// [`OpenError`]; the directory is then unchanged.
    pub fn create(path: &Path) -> Result<Self, OpenError> {
        if !path.exists() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        }
        let (dir, found) = Self::take(path)?;
        if found == Found::Empty {
            write_format(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        }
        Ok(dir)
    }

    /// Takes a directory that must already be one of ours.
    ///
    /// # Errors
    /// [`OpenError`]; the directory is then unchanged.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        match Self::take(path)? {
            (dir, Found::Ours) => Ok(dir),
            (_, Found::Empty) => Err(OpenError::Missing { path: path.to_owned() }),
        }
    }

    fn take(path: &Path) -> Result<(Self, Found), OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let lock = match OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::Missing { path: path.to_owned() });
            }
            Err(error) => return Err(io(error)),
        };
        inspect(path)?;
        let mut tries = LOCK_TRIES;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if tries == 0 => {
                    return Err(OpenError::Locked { path: path.to_owned() });
                }
                // A process that is started inherits every lock, until it has become another program.
                Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
                Err(errno) => return Err(io(errno.into())),
            }
            tries -= 1;
        }
        // Again, under the lock: whoever held it may have laid the directory out meanwhile.
        let found = inspect(path)?;
        Ok((Self { path: path.to_owned(), _lock: lock }, found))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What an acceptable directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Empty,
    Ours,
}

/// Looks at a directory without changing it.
///
/// # Errors
/// [`OpenError`] if it is not ours to use.
pub fn inspect(path: &Path) -> Result<Found, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Missing { path: path.to_owned() });
        }
        Err(error) => return Err(io(error)),
    };
    if metadata.mode() & 0o002 != 0 {
        return Err(OpenError::Unsafe { path: path.to_owned(), mode: metadata.mode() & 0o7777 });
    }
    match read_format(&path.join(FORMAT_FILE)).map_err(io)? {
        Some(Some(FORMAT_VERSION)) => Ok(Found::Ours),
        Some(Some(found)) if found > FORMAT_VERSION => Err(OpenError::Newer { path: path.to_owned(), found }),
        Some(_) => Err(OpenError::Foreign { path: path.to_owned(), found: "its format file is not ours".into() }),
        None => {
            let names = names(path).map_err(io)?;
            // Ours died between making the directory and naming the format file.
            if names.iter().all(|name| name == FORMAT_FILE_NEW) {
                return Ok(Found::Empty);
            }
            Err(OpenError::Foreign { path: path.to_owned(), found: describe(&names) })
        }
    }
}

fn describe(names: &[String]) -> String {
    if GO_LAYOUT.iter().filter(|go| names.iter().any(|name| name == *go)).count() >= 2 {
        return "the state of the Go pln".into();
    }
    names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// `None`: no such file. `Some(None)`: not a format file of ours.
fn read_format(file: &Path) -> io::Result<Option<Option<u32>>> {
    let metadata = match fs::symlink_metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !metadata.is_file() || metadata.len() > FORMAT_BYTES_MAX {
        return Ok(Some(None));
    }
    let bytes = fs::read(file)?;
    let version = std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| text.strip_suffix('\n'))
        .and_then(|line| line.strip_prefix(FORMAT_WORD))
        .and_then(|rest| rest.strip_prefix(' '))
        .and_then(|version| version.parse().ok());
    Ok(Some(version))
}

fn write_format(path: &Path) -> io::Result<()> {
    let new = path.join(FORMAT_FILE_NEW);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
    writeln!(file, "{FORMAT_WORD} {FORMAT_VERSION}")?;
    file.sync_all()?;
    fs::rename(&new, path.join(FORMAT_FILE))?;
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Every file's path, bytes, mode and modification time.
    fn photograph(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32, i64, i64)> {
        let mut files = BTreeMap::new();
        let mut rooms = vec![dir.to_owned()];
        while let Some(room) = rooms.pop() {
            let metadata = fs::metadata(&room).expect("test directory");
            files.insert(room.clone(), (Vec::new(), metadata.mode(), metadata.mtime(), metadata.mtime_nsec()));
            for entry in fs::read_dir(&room).expect("test directory") {
                let path = entry.expect("test entry").path();
                if path.is_dir() {
                    rooms.push(path);
                } else {
                    let metadata = fs::metadata(&path).expect("test file");
                    let bytes = fs::read(&path).expect("test file");
                    files.insert(path, (bytes, metadata.mode(), metadata.mtime(), metadata.mtime_nsec()));
                }
            }
        }
        files
    }

    fn refused_untouched(dir: &Path) -> OpenError {
        let before = photograph(dir);
        let error = StateDir::create(dir).expect_err("the directory is not ours");
        assert_eq!(photograph(dir), before, "a refused directory was changed");
        StateDir::open(dir).expect_err("the directory is not ours");
        assert_eq!(photograph(dir), before, "a refused directory was changed");
        error
    }

    #[test]
    fn a_new_directory_is_laid_out_and_opens_again() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let path = temp.path().join("deep/pln");
        drop(StateDir::create(&path).expect("a new directory"));
        assert_eq!(fs::metadata(&path).expect("made").mode() & 0o777, 0o700);
        assert_eq!(fs::read(path.join("format")).expect("format file"), b"pollen-state 1\n");
        StateDir::open(&path).expect("ours");
    }

    #[test]
    fn the_state_of_the_go_pln_is_refused_and_left_untouched() {
        let temp = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(temp.path().join("keys")).expect("mkdir");
        for (name, bytes) in [("keys/node.pem", "-----BEGIN"), ("state.pb", "\u{1}\u{2}"), ("config.yaml", "a: b\n")] {
            fs::write(temp.path().join(name), bytes).expect("write");
        }
        let error = refused_untouched(temp.path());
        assert!(error.to_string().contains("the state of the Go pln"), "{error}");
    }

    #[test]
    fn a_newer_layout_is_refused_and_left_untouched() {
        let temp = tempfile::tempdir().expect("temporary directory");
        fs::write(temp.path().join("format"), "pollen-state 2\n").expect("write");
        fs::write(temp.path().join("state.redb"), [0xff; 5000]).expect("write");
        let error = refused_untouched(temp.path());
        assert!(matches!(error, OpenError::Newer { found: 2, .. }), "{error}");
    }

    #[test]
    fn any_other_files_are_refused_and_left_untouched() {
        for (name, bytes) in [("photo.jpg", "x"), ("format", "ext4\n"), ("format", "pollen-state one\n")] {
            let temp = tempfile::tempdir().expect("temporary directory");
            fs::write(temp.path().join(name), bytes).expect("write");
            let error = refused_untouched(temp.path());
            assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        }
    }

    #[test]
    fn a_directory_in_use_is_refused_and_left_untouched() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let held = StateDir::create(temp.path()).expect("a new directory");
        let error = refused_untouched(temp.path());
        assert!(matches!(error, OpenError::Locked { .. }), "{error}");
        drop(held);
        StateDir::open(temp.path()).expect("free again");
    }

    #[test]
    fn a_directory_that_anyone_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().expect("temporary directory");
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
        assert!(matches!(refused_untouched(temp.path()), OpenError::Unsafe { .. }));
    }

    #[test]
    fn a_crash_before_the_format_file_was_named_is_no_obstacle() {
        let temp = tempfile::tempdir().expect("temporary directory");
        fs::write(temp.path().join("format.new"), "pollen-st").expect("write");
        StateDir::create(temp.path()).expect("nothing but our own unfinished file");
    }

    #[test]
    fn a_directory_counts_once_it_is_laid_out() {
        let temp = tempfile::tempdir().expect("temporary directory");
        assert!(!is_provisioned(&temp.path().join("absent")));
        assert!(!is_provisioned(temp.path()));
        drop(StateDir::create(temp.path()).expect("an empty directory"));
        assert!(is_provisioned(temp.path()));
    }

    #[test]
    fn the_flag_wins_over_the_home_directory_and_who_has_none_means_the_systems() {
        let home = OsStr::new("/home/ada");
        assert_eq!(resolve(Some(Path::new("/x")), Some(home)), Path::new("/x"));
        assert_eq!(resolve(Some(Path::new("/x")), None), Path::new("/x"));
        assert_eq!(resolve(None, None), Path::new(SYSTEM_DIR));
        assert_eq!(resolve(None, Some(OsStr::new(""))), Path::new(SYSTEM_DIR));
    }
}
