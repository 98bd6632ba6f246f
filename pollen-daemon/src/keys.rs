//! Secret keys on disk. Owns their files' format, modes and owners; must not know what a key signs. Invariants: a key
//! file is complete or absent, is never overwritten, and no one else can read it; the daemon opens the node's only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use pollen_common::identity::SecretKey;
use zeroize::{Zeroize as _, Zeroizing};

/// Holds `node.key`, in the state directory.
pub const NODE_KEY_DIR: &str = "keys";
/// Holds the root's and its successor's keys, apart so that they can be taken away.
pub const ROOT_KEY_DIR: &str = "root";

const NODE_KEY: &str = "node.key";
const ROOT_KEY: &str = "root.key";
const SUCCESSOR_KEY: &str = "successor.key";

/// A key file is this word, the seed in hexadecimal, and a newline.
const KEY_WORD: &str = "pollen-ed25519-1 ";
const SEED_HEX: usize = 64;
const FILE_BYTES: usize = KEY_WORD.len() + SEED_HEX + 1;

/// A key was not read or not made; no file was changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{} can be read by others (mode {mode:03o}): they may have copied the key; if not, `chmod {wanted:03o}` it", path.display())]
    Mode { path: PathBuf, mode: u32, wanted: u32 },
    #[error("{} belongs to another user (uid {uid}): run pln as that user, or give the file to this one", path.display())]
    Owner { path: PathBuf, uid: u32 },
    #[error("{} is not a key file of pln", path.display())]
    Format { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The root's keys: the present one, and the one that the cluster is committed to next.
#[derive(Debug)]
pub struct RootKeys {
    pub root: SecretKey,
    pub successor: SecretKey,
}

/// This node's key, or none if it has none yet.
///
/// # Errors
/// [`KeyError`]
pub fn load_node(dir: &Path) -> Result<Option<SecretKey>, KeyError> {
    load(&dir.join(NODE_KEY_DIR), NODE_KEY)
}

/// This node's key, made now if it has none yet. The caller holds the state directory.
///
/// # Errors
/// [`KeyError`]
pub fn load_or_make_node(dir: &Path) -> Result<SecretKey, KeyError> {
    load_or_make(&dir.join(NODE_KEY_DIR), NODE_KEY)
}

/// The root's keys in `dir`'s directory for them, if both are there. Never for the daemon.
///
/// # Errors
/// [`KeyError`]
pub fn load_root(dir: &Path) -> Result<Option<RootKeys>, KeyError> {
    let room = dir.join(ROOT_KEY_DIR);
    let Some(root) = load(&room, ROOT_KEY)? else { return Ok(None) };
    Ok(load(&room, SUCCESSOR_KEY)?.map(|successor| RootKeys { root, successor }))
}

/// The root's keys, each made now if it is not there yet. The caller holds the state directory.
///
/// # Errors
/// [`KeyError`]
pub fn load_or_make_root(dir: &Path) -> Result<RootKeys, KeyError> {
    let room = dir.join(ROOT_KEY_DIR);
    // The successor first: a root whose successor was never made could not be committed to it.
    let successor = load_or_make(&room, SUCCESSOR_KEY)?;
    Ok(RootKeys { root: load_or_make(&room, ROOT_KEY)?, successor })
}

fn load_or_make(room: &Path, name: &str) -> Result<SecretKey, KeyError> {
    if let Some(key) = load(room, name)? {
        return Ok(key);
    }
    let mut seed = Zeroizing::new([0; 32]);
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| KeyError::Io { path, source }
    };
    getrandom::fill(seed.as_mut_slice())
        .map_err(|error| KeyError::Io { path: room.join(name), source: io::Error::other(error.to_string()) })?;
    let key = SecretKey::from_seed(&seed);
    match fs::DirBuilder::new().mode(0o700).create(room) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io(room)(error)),
    }
    check(room, 0o700)?;
    write_new(room, name, &seed).map_err(io(&room.join(name)))?;
    Ok(key)
}

/// Complete or absent: written beside its place, then moved there without replacing anything.
fn write_new(room: &Path, name: &str, seed: &[u8; 32]) -> io::Result<()> {
    let unfinished = room.join(format!("{name}.new"));
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES));
    text.push_str(KEY_WORD);
    data_encoding::HEXLOWER.encode_append(seed, &mut text);
    text.push('\n');
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    let (from, to) = (&unfinished, &room.join(name));
    rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, rustix::fs::RenameFlags::NOREPLACE)?;
    File::open(room)?.sync_all()?;
    room.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn load(room: &Path, name: &str) -> Result<Option<SecretKey>, KeyError> {
    let path = room.join(name);
    let failed = |source| KeyError::Io { path: path.clone(), source };
    let mut file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    check(room, 0o700)?;
    check_metadata(&path, &file.metadata().map_err(failed)?, 0o600)?;
    // One byte more than a key file has, so that a longer one is noticed.
    let mut text = Zeroizing::new([0; FILE_BYTES + 1]);
    let mut read = 0;
    while read < text.len() {
        match file.read(&mut text[read..]).map_err(failed)? {
            0 => break,
            more => read += more,
        }
    }
    parse(&text[..read]).map(Some).ok_or(KeyError::Format { path })
}

fn parse(text: &[u8]) -> Option<SecretKey> {
    let hex = text.strip_prefix(KEY_WORD.as_bytes())?.strip_suffix(b"\n")?;
    if hex.len() != SEED_HEX {
        return None;
    }
    let mut seed = Zeroizing::new([0; 32]);
    let decoded = data_encoding::HEXLOWER.decode_mut(hex, seed.as_mut_slice());
    if decoded.is_err() {
        seed.zeroize();
        return None;
    }
    Some(SecretKey::from_seed(&seed))
}

fn check(path: &Path, wanted: u32) -> Result<(), KeyError> {
    let metadata = fs::metadata(path).map_err(|source| KeyError::Io { path: path.to_owned(), source })?;
    check_metadata(path, &metadata, wanted)
}

fn check_metadata(path: &Path, metadata: &fs::Metadata, wanted: u32) -> Result<(), KeyError> {
    let mode = metadata.mode() & 0o777;
    // Stricter than wanted is no harm.
    if mode & !wanted != 0 {
        return Err(KeyError::Mode { path: path.to_owned(), mode, wanted });
    }
    let me = rustix::process::geteuid().as_raw();
    // Root may read everyone's anyway, and runs `pln` for a service user.
    if metadata.uid() != me && me != 0 {
        return Err(KeyError::Owner { path: path.to_owned(), uid: metadata.uid() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod in a test directory");
    }

    #[test]
    fn a_key_is_made_once_and_is_its_owners_alone() {
        let temp = tempfile::tempdir().expect("temporary directory");
        assert!(load_node(temp.path()).expect("nothing there").is_none());
        let made = load_or_make_node(temp.path()).expect("a new key");
        let room = temp.path().join("keys");
        assert_eq!(fs::metadata(&room).expect("made").mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(room.join("node.key")).expect("made").mode() & 0o777, 0o600);
        assert_eq!(load_or_make_node(temp.path()).expect("the same").public(), made.public());
        assert_eq!(load_node(temp.path()).expect("the same").map(|key| key.public()), Some(made.public()));
        assert_eq!(fs::read_dir(&room).expect("made").count(), 1, "no unfinished file stays");
    }

    #[test]
    fn the_roots_keys_lie_apart_and_differ() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let made = load_or_make_root(temp.path()).expect("new keys");
        assert_ne!(made.root.public(), made.successor.public());
        assert_eq!(fs::metadata(temp.path().join("root")).expect("made").mode() & 0o777, 0o700);
        let again = load_root(temp.path()).expect("readable").expect("there");
        assert_eq!((again.root.public(), again.successor.public()), (made.root.public(), made.successor.public()));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let temp = tempfile::tempdir().expect("temporary directory");
        load_or_make_node(temp.path()).expect("a new key");
        let file = temp.path().join("keys/node.key");
        chmod(&file, 0o640);
        assert!(matches!(load_node(temp.path()), Err(KeyError::Mode { mode: 0o640, .. })));
        chmod(&file, 0o400);
        load_node(temp.path()).expect("stricter is fine");
        chmod(&temp.path().join("keys"), 0o755);
        assert!(matches!(load_node(temp.path()), Err(KeyError::Mode { mode: 0o755, .. })));
    }

    #[test]
    fn a_damaged_key_file_is_refused_and_not_replaced() {
        let temp = tempfile::tempdir().expect("temporary directory");
        load_or_make_node(temp.path()).expect("a new key");
        let file = temp.path().join("keys/node.key");
        let whole = fs::read(&file).expect("made");
        let mut longer = whole.clone();
        longer.push(b'\n');
        for bytes in [&whole[..whole.len() - 1], &whole[1..], &[], &longer] {
            fs::write(&file, bytes).expect("write");
            assert!(matches!(load_or_make_node(temp.path()), Err(KeyError::Format { .. })));
            assert_eq!(fs::read(&file).expect("still there"), bytes);
        }
    }

    #[test]
    fn a_crash_while_a_key_was_made_is_no_obstacle() {
        let temp = tempfile::tempdir().expect("temporary directory");
        fs::DirBuilder::new().mode(0o700).create(temp.path().join("keys")).expect("mkdir");
        fs::write(temp.path().join("keys/node.key.new"), "pollen-ed2").expect("write");
        load_or_make_node(temp.path()).expect("a new key");
    }
}
