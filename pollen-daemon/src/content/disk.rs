//! Files of content: one for each digest, under its hexadecimal name. Owns the directory; knows no seeds. All of it
//! blocks. Invariant: a file has its final name only once it is whole, verified and on disk; what is read is verified
//! again, and a file that does not hold what its name says is removed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use pollen_common::identity::Digest;
use pollen_common::wire::streams::content::{CONTENT_BYTES_MAX, GROUP_BYTES, Outline, Outlining, digest_of};

/// Why content was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("it is not on this node")]
    Absent,
    #[error("its stored bytes had changed: the file was removed")]
    Damaged,
    #[error("reading it failed: {0}")]
    Io(#[from] io::Error),
}

/// The directory.
pub struct Disk {
    dir: PathBuf,
    parts: AtomicU64,
}

impl Disk {
    /// The directory, made if it is not there, and what it holds with sizes. Removes what an earlier run left
    /// unfinished.
    pub fn open(dir: PathBuf) -> io::Result<(Self, Vec<(Digest, u64)>)> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut held = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let digest =
                entry.file_name().to_str().filter(|name| is_lower_hex(name)).and_then(|name| name.parse().ok());
            match digest {
                Some(digest) if metadata.is_file() && metadata.len() <= CONTENT_BYTES_MAX as u64 => {
                    held.push((digest, metadata.len()));
                }
                _ if metadata.is_file() => fs::remove_file(entry.path())?,
                // Nothing of ours: not ours to remove.
                _ => {}
            }
        }
        Ok((Self { dir, parts: AtomicU64::new(0) }, held))
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    fn open_file(&self, digest: &Digest) -> Result<File, ReadError> {
        match File::open(self.path(digest)) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ReadError::Absent),
            Err(error) => Err(error.into()),
        }
    }

    /// The whole of it, verified.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, ReadError> {
        let file = self.open_file(digest)?;
        let mut bytes = Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or(0).min(CONTENT_BYTES_MAX));
        file.take(CONTENT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
        if digest_of(&bytes) != *digest {
            return Err(self.damaged(digest)?);
        }
        Ok(bytes)
    }

    /// The file and its outline, verified without holding it in memory. What is read of the file later is not.
    pub fn outline(&self, digest: &Digest) -> Result<(File, Outline), ReadError> {
        let file = self.open_file(digest)?;
        match outline_of(*digest, (&file).take(CONTENT_BYTES_MAX as u64 + 1))? {
            Some(outline) => Ok((file, outline)),
            None => Err(self.damaged(digest)?),
        }
    }

    fn damaged(&self, digest: &Digest) -> io::Result<ReadError> {
        self.remove(digest)?;
        Ok(ReadError::Damaged)
    }

    pub fn remove(&self, digest: &Digest) -> io::Result<()> {
        match fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A new unfinished file.
    pub fn part(&self) -> io::Result<Part> {
        let number = self.parts.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{number}.part"));
        let file = OpenOptions::new().write(true).read(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Part { file, path: Some(path) })
    }

    /// Makes a part, whose bytes the caller has verified to be those of `digest`, what is stored under it. Durable
    /// when it returns.
    pub fn finish(&self, mut part: Part, digest: &Digest) -> io::Result<()> {
        part.file.sync_all()?;
        let path = part.path.take().expect("a part has its path until it is finished or dropped");
        if let Err(error) = fs::rename(&path, self.path(digest)) {
            part.path = Some(path);
            return Err(error);
        }
        File::open(&self.dir)?.sync_all()
    }
}

/// Names are compared as they are written: upper case would be a second name of the same digest.
fn is_lower_hex(name: &str) -> bool {
    name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// An unfinished file; gone when dropped.
pub struct Part {
    file: File,
    path: Option<PathBuf>,
}

impl Part {
    pub fn write_group(&self, index: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, index * GROUP_BYTES as u64)
    }

    pub fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, 0)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // What stays is swept at the next start.
            let _ = fs::remove_file(path);
        }
    }
}

/// The outline of what `content` reads, if that has `root`. Holds one group in memory.
fn outline_of(root: Digest, mut content: impl Read) -> io::Result<Option<Outline>> {
    let (mut outlining, mut group) = (Outlining::default(), Vec::with_capacity(GROUP_BYTES));
    while content.by_ref().take(GROUP_BYTES as u64).read_to_end(&mut group)? > 0 {
        outlining.push(&group);
        group.clear();
    }
    Ok(outlining.outline(root))
}

/// One group of a file.
pub fn read_group(file: &File, outline: &Outline, index: u64) -> io::Result<Vec<u8>> {
    let mut group = vec![0; outline.group_len(index)];
    file.read_exact_at(&mut group, index * GROUP_BYTES as u64)?;
    Ok(group)
}

/// Where content is kept in a state directory.
#[must_use]
pub fn directory(state: &Path) -> PathBuf {
    state.join("content")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn store(disk: &Disk, bytes: &[u8]) -> Digest {
        let digest = digest_of(bytes);
        let part = disk.part().expect("a part");
        part.write_all(bytes).expect("written");
        disk.finish(part, &digest).expect("stored");
        digest
    }

    #[test]
    fn what_was_stored_is_there_after_a_restart_and_what_was_unfinished_is_gone() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let dir = directory(temp.path());
        let (disk, held) = Disk::open(dir.clone()).expect("made");
        assert_eq!(held, []);
        let digest = store(&disk, b"module");
        assert_eq!(fs::metadata(disk.path(&digest)).expect("stored").mode() & 0o777, 0o600);
        fs::write(dir.join("0.part"), "half").expect("written");
        fs::write(dir.join(digest.to_string().to_uppercase()), "module").expect("written");
        let (disk, held) = Disk::open(dir.clone()).expect("there");
        assert_eq!(held, [(digest, 6)]);
        assert_eq!(fs::read_dir(&dir).expect("there").count(), 1, "swept");
        assert_eq!(disk.read(&digest).expect("whole"), b"module");
    }

    #[test]
    fn a_file_is_outlined_as_its_bytes_are() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let (disk, _) = Disk::open(directory(temp.path())).expect("made");
        for len in [0, 1, GROUP_BYTES, 2 * GROUP_BYTES + 5] {
            let bytes = vec![7; len];
            let digest = store(&disk, &bytes);
            let (file, outline) = disk.outline(&digest).expect("whole");
            assert_eq!(Outlining::of(&bytes).outline(digest).as_ref(), Some(&outline), "{len} bytes");
            let last = outline.groups() - 1;
            assert!(outline.proves(last, &read_group(&file, &outline, last).expect("readable")));
        }
    }

    #[test]
    fn a_dropped_part_leaves_nothing() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let (disk, _) = Disk::open(directory(temp.path())).expect("made");
        let part = disk.part().expect("a part");
        part.write_group(3, b"far").expect("written");
        drop(part);
        assert_eq!(fs::read_dir(&disk.dir).expect("there").count(), 0);
    }

    #[test]
    fn a_changed_file_is_never_read_and_is_removed() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let (disk, _) = Disk::open(directory(temp.path())).expect("made");
        for (from, to) in [(&b"module"[..], &b"modulf"[..]), (b"long module", b"long"), (b"x", b"xy")] {
            let digest = store(&disk, from);
            fs::write(disk.path(&digest), to).expect("changed");
            assert!(matches!(disk.read(&digest), Err(ReadError::Damaged)));
            assert!(matches!(disk.read(&digest), Err(ReadError::Absent)));
            store(&disk, from);
            fs::write(disk.path(&digest), to).expect("changed");
            assert!(matches!(disk.outline(&digest), Err(ReadError::Damaged)));
            assert!(matches!(disk.outline(&digest), Err(ReadError::Absent)));
        }
    }
}
