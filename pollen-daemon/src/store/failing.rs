//! A disk for tests that refuses writes when told to. Owns the faults; the database above it is the real one.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::{Database, DatabaseError, OpenError, StateDir, Store};

/// What each write ends with; 0: it succeeds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<AtomicI32>);

impl Disk {
    pub(crate) fn fails_with(&self, errno: i32) {
        self.0.store(errno, Ordering::SeqCst);
    }

    pub(crate) fn is_fine(&self) {
        self.fails_with(0);
    }

    fn check(&self) -> io::Result<()> {
        match self.0.load(Ordering::SeqCst) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

#[derive(Debug)]
struct Failing {
    file: FileBackend,
    disk: Disk,
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.check()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.check()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

/// The store of `path` on that disk.
pub(crate) fn open(path: &Path, disk: &Disk) -> Result<Store, OpenError> {
    let disk = disk.clone();
    let opener = move |file: &Path| {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(file);
        let file = FileBackend::new(options.map_err(redb::StorageError::from)?)?;
        let backend = Failing { file, disk: disk.clone() };
        Database::builder().create_with_backend(backend) as Result<Database, DatabaseError>
    };
    Store::open_with(StateDir::create(path)?, Box::new(opener))
}
