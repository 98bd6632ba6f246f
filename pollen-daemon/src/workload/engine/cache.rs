//! Compiled modules on disk. Must not know how they are made. Invariant: what is given was written by this node under
//! the same name, bit for bit; anything else is removed and not given, because compiled code is run as it is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// All compiled modules together, in bytes: some hundred of the largest that people write.
const TOTAL_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// The largest file that is read: what compilers make of the largest module that may be published, some ten times that.
const FILE_BYTES_MAX: u64 = TOTAL_BYTES_MAX;
const MAGIC: &[u8; 8] = b"plncode1";
const CHECKSUM_BYTES: usize = 32;
const SUFFIX: &str = "cwasm";
const TEMPORARY: &str = "tmp";

/// The directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0} belongs to another user, who could change code that this node runs")]
    Foreign(PathBuf),
}

/// Compiled modules, by a name that says all that they depend on.
pub(super) struct Cache {
    dir: PathBuf,
    key: [u8; 32],
}

/// What was found.
pub(super) enum Found {
    Nothing,
    /// What was stored under the name.
    Stored(Vec<u8>),
    /// Something else was; it is removed.
    Damaged,
}

impl Cache {
    /// Opens the directory, or makes it; sweeps what a crash left half-written.
    pub(super) fn open(dir: PathBuf, key: [u8; 32]) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Io { path: dir.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
        let found = fs::metadata(&dir).map_err(failed)?;
        if found.uid() != rustix::process::geteuid().as_raw() {
            return Err(CacheError::Foreign(dir));
        }
        if found.mode() & 0o077 != 0 {
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
        for entry in fs::read_dir(&dir).map_err(failed)?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == TEMPORARY) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self { dir, key })
    }

    /// What was stored under `name`.
    pub(super) fn load(&self, name: &str) -> Found {
        let path = self.path(name);
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "compiled code cannot be read");
                return Found::Nothing;
            }
        };
        let Some(content) = self.verify(name, bytes) else {
            self.remove(name);
            return Found::Damaged;
        };
        // Last used now: the least recently used go first.
        if let Ok(file) = File::open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        Found::Stored(content)
    }

    /// Stores `content` under `name`, durably; makes room for it first.
    pub(super) fn store(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let bytes = content.len() as u64 + (MAGIC.len() + CHECKSUM_BYTES) as u64;
        self.make_room(bytes)?;
        let temporary = self.path(name).with_extension(TEMPORARY);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let written = file
            .write_all(MAGIC)
            .and_then(|()| file.write_all(self.checksum(name, content).as_bytes()))
            .and_then(|()| file.write_all(content))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&temporary, self.path(name)))
            .and_then(|()| File::open(&self.dir)?.sync_all());
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    pub(super) fn remove(&self, name: &str) {
        if let Err(error) = fs::remove_file(self.path(name))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(name, %error, "damaged code cannot be removed; it is not run");
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name).with_extension(SUFFIX)
    }

    fn verify(&self, name: &str, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let header = MAGIC.len() + CHECKSUM_BYTES;
        let (magic, rest) = bytes.split_at_checked(MAGIC.len())?;
        let (checksum, content) = rest.split_at_checked(CHECKSUM_BYTES)?;
        let checksum: [u8; CHECKSUM_BYTES] = checksum.try_into().ok()?;
        // Compared in constant time by its type.
        if magic != MAGIC || self.checksum(name, content) != checksum {
            return None;
        }
        bytes.drain(..header);
        Some(bytes)
    }

    /// Over the name too, so that a file which was moved to another name is not taken for that.
    fn checksum(&self, name: &str, content: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(content);
        hasher.finalize()
    }

    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == SUFFIX)
                && let Ok(found) = entry.metadata()
            {
                files.push((found.modified().unwrap_or(SystemTime::UNIX_EPOCH), found.len(), entry.path()));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in files {
            if total.saturating_add(bytes) <= TOTAL_BYTES_MAX {
                break;
            }
            if fs::remove_file(path).is_ok() {
                total -= length;
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("it is larger than any that was written"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cache = Cache::open(dir.path().join("code"), [7; 32]).expect("it opens");
        (dir, cache)
    }

    fn stored(cache: &Cache, name: &str) -> Option<Vec<u8>> {
        match cache.load(name) {
            Found::Stored(content) => Some(content),
            Found::Nothing | Found::Damaged => None,
        }
    }

    #[test]
    fn what_was_stored_is_found_again_by_those_who_have_the_key() {
        let (_dir, cache) = cache();
        assert!(matches!(cache.load("a-1"), Found::Nothing));
        cache.store("a-1", b"code").expect("the disk has room");
        assert_eq!(stored(&cache, "a-1").as_deref(), Some(&b"code"[..]));
        let other = Cache::open(cache.dir, [8; 32]).expect("it opens");
        assert!(matches!(other.load("a-1"), Found::Damaged), "written with another key");
    }

    #[test]
    fn any_changed_bit_is_noticed_and_the_file_removed() {
        let (_dir, cache) = cache();
        cache.store("a", b"co").expect("the disk has room");
        let whole = fs::read(cache.path("a")).expect("it is there");
        for bit in 0..whole.len() * 8 {
            let mut changed = whole.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            fs::write(cache.path("a"), &changed).expect("it is ours");
            assert!(matches!(cache.load("a"), Found::Damaged), "bit {bit}");
            assert!(!cache.path("a").exists());
        }
        for length in 0..whole.len() {
            fs::write(cache.path("a"), &whole[..length]).expect("it is ours");
            assert!(matches!(cache.load("a"), Found::Damaged), "cut to {length}");
        }
    }

    #[test]
    fn code_under_another_name_is_not_taken_for_it() {
        let (_dir, cache) = cache();
        cache.store("a", b"code").expect("the disk has room");
        fs::rename(cache.path("a"), cache.path("b")).expect("it is ours");
        assert!(matches!(cache.load("b"), Found::Damaged));
    }

    #[test]
    fn the_directory_is_for_its_owner_only_and_swept_at_the_start() {
        let (_dir, cache) = cache();
        fs::write(cache.dir.join("half.tmp"), b"ha").expect("it is ours");
        fs::set_permissions(&cache.dir, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let again = Cache::open(cache.dir, [7; 32]).expect("it opens");
        assert_eq!(fs::metadata(&again.dir).expect("it is there").mode() & 0o777, 0o700);
        assert!(!again.dir.join("half.tmp").exists());
    }
}
