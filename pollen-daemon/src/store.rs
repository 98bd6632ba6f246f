//! The node's durable state: one redb database in the state directory. Owns transactions and crash safety; must not
//! know what a record means. Invariant: what was acknowledged as written is there after `kill -9` or power loss, and
//! a batch is there whole or not at all.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pollen_common::node::Write;
use redb::backends::InMemoryBackend;
use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageBackend as _, TableDefinition,
    TableError,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub mod health;
pub mod layout;
pub mod owner;
pub mod writer;

pub use layout::{OpenError, StateDir};

/// The core's records, opaque here.
const NODE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("node");
/// What people configured, as JSON by key.
const CONFIG: TableDefinition<&str, &[u8]> = TableDefinition::new("config");

const DATABASE_FILE: &str = "state.redb";

/// The core keeps its own copy of everything in memory, so the database is read once, at start: a larger page cache
/// would only be resident memory.
const CACHE_BYTES: usize = 1 << 20;

/// A read or write failed; a failed write changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the state database failed: {0}")]
    Database(Box<redb::Error>),
    #[error("the setting {key:?} in the state database is unreadable: {source}")]
    Config { key: String, source: serde_json::Error },
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// How the file is opened for reading and writing: another way in tests, where disks fail.
type Opener = Box<dyn Fn(&Path) -> Result<Database, DatabaseError> + Send + Sync>;

/// The opened store; its directory is this process's until it is dropped.
pub struct Store {
    opened: Mutex<Opened>,
    opener: Opener,
    dir: StateDir,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// What there is to read from and write to.
enum Opened {
    File(Database),
    /// The disk takes no writes, which opening a database needs: what the file holds, in memory, only to be read.
    Copy(Database),
    /// A write failed, after which redb does nothing until the file is opened again.
    Closed,
}

/// A stored record of the core: key and value.
pub type Record = (Vec<u8>, Vec<u8>);

/// One change of the store.
#[derive(Clone, Debug)]
pub enum Change {
    /// Records of the core.
    Node(Vec<Write>),
    /// A setting as JSON, or its removal.
    Config { key: &'static str, json: Option<Vec<u8>> },
}

impl Store {
    /// Opens the database of a directory, making it if it is new. One whose disk takes no writes is read into memory, so
    /// that a node starts; then each write tries to open the file again.
    ///
    /// # Errors
    /// [`OpenError::Database`] if the file is not a sound database; it is left as it was found.
    pub fn open(dir: StateDir) -> Result<Self, OpenError> {
        Self::open_with(dir, Box::new(open_file))
    }

    fn open_with(dir: StateDir, opener: Opener) -> Result<Self, OpenError> {
        let path = dir.path().join(DATABASE_FILE);
        // redb may panic on a file that was cut.
        let opened = std::panic::catch_unwind(AssertUnwindSafe(|| opener(&path)));
        let opened = match opened.unwrap_or_else(|_| Err(damaged("its pages contradict each other"))) {
            Ok(database) => Opened::File(database),
            Err(DatabaseError::Storage(redb::StorageError::Io(error))) if is_refusal(&error) => {
                tracing::error!("the state database cannot be written ({error}): started from what it holds");
                Opened::Copy(copy_of(&path)?)
            }
            Err(error) => return Err(OpenError::Database { path, source: Box::new(error.into()) }),
        };
        Ok(Self { opened: Mutex::new(opened), opener, dir })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(DATABASE_FILE)
    }

    fn read<T>(&self, read: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*opened, Opened::Closed) {
            *opened = Opened::File((self.opener)(&self.path())?);
        }
        match &*opened {
            Opened::File(database) | Opened::Copy(database) => read(database),
            Opened::Closed => unreachable!("opened above"),
        }
    }

    /// The directory that the database is in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// All of the core's records, in key order.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn node_records(&self) -> Result<Vec<Record>, StoreError> {
        self.read(|database| {
            let transaction = database.begin_read()?;
            let table = match transaction.open_table(NODE) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let mut records = Vec::new();
            for record in table.iter()? {
                let (key, value) = record?;
                records.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(records)
        })
    }

    /// Applies all `changes`, in order, in one durable transaction.
    ///
    /// # Errors
    /// [`StoreError`]: then none was applied.
    pub fn apply<'a>(&self, changes: impl IntoIterator<Item = &'a Change>) -> Result<(), StoreError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*opened, Opened::File(_)) {
            *opened = Opened::File((self.opener)(&self.path())?);
        }
        let Opened::File(database) = &*opened else { unreachable!("opened above") };
        let done = write(database, changes);
        if done.is_err() {
            *opened = Opened::Closed;
        }
        done
    }

    /// A setting, if it was ever set.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn config<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        self.read(|database| {
            let transaction = database.begin_read()?;
            let table = match transaction.open_table(CONFIG) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let Some(json) = table.get(key)? else { return Ok(None) };
            serde_json::from_slice(json.value())
                .map(Some)
                .map_err(|source| StoreError::Config { key: key.to_owned(), source })
        })
    }
}

/// One durable transaction.
fn write<'a>(database: &Database, changes: impl IntoIterator<Item = &'a Change>) -> Result<(), StoreError> {
    let transaction = database.begin_write()?;
    {
        let mut node = transaction.open_table(NODE)?;
        let mut config = transaction.open_table(CONFIG)?;
        for change in changes {
            match change {
                Change::Node(writes) => {
                    for write in writes {
                        match &write.value {
                            Some(value) => drop(node.insert(write.key.as_slice(), value.as_slice())?),
                            None => drop(node.remove(write.key.as_slice())?),
                        }
                    }
                }
                Change::Config { key, json: Some(json) } => drop(config.insert(*key, json.as_slice())?),
                Change::Config { key, json: None } => drop(config.remove(*key)?),
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// The node's own file, its pages checked: a flipped bit must not become a node that knows less than it did.
fn open_file(path: &Path) -> Result<Database, DatabaseError> {
    // Made here because redb would make it readable by all who may enter the directory.
    let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    made.map_err(redb::StorageError::from)?;
    Database::builder().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(path)
}

/// Whether an error of opening speaks of the disk, not of what the file holds.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
}

fn damaged(how: &str) -> DatabaseError {
    DatabaseError::Storage(redb::StorageError::Corrupted(how.into()))
}

/// What the file holds, in memory.
fn copy_of(path: &Path) -> Result<Database, OpenError> {
    let failed = |source: redb::Error| OpenError::Database { path: path.to_owned(), source: Box::new(source) };
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read.map_err(|source| OpenError::Io { path: path.to_owned(), source })?,
    };
    let memory = InMemoryBackend::new();
    let filled = memory.set_len(bytes.len() as u64).and_then(|()| memory.write(0, &bytes));
    filled.map_err(|error| failed(redb::Error::Io(error)))?;
    let opened = std::panic::catch_unwind(AssertUnwindSafe(|| {
        Database::builder().set_check_integrity_on_open(true).create_with_backend(memory)
    }));
    let opened = opened.unwrap_or_else(|_| Err(damaged("its pages contradict each other")));
    opened.map_err(|error| failed(error.into()))
}

impl Change {
    /// The change that sets `key` to `value`.
    ///
    /// # Panics
    /// If `value` has no JSON form, which a settings type always has.
    #[must_use]
    pub fn set<T: Serialize>(key: &'static str, value: &T) -> Self {
        Self::Config {
            key,
            json: Some(serde_json::to_vec(value).expect("settings are plain data, which JSON can say")),
        }
    }
}

/// Opens a store, making its directory if needed.
///
/// # Errors
/// [`OpenError`]; a directory that is not ours is left untouched.
pub fn open_or_create(path: &Path) -> Result<Store, OpenError> {
    Store::open(StateDir::create(path)?)
}

/// The same, but a database that does not open is set aside for people to look at, and a new one made.
///
/// # Errors
/// As [`open_or_create`], but for the database's own.
pub fn open_or_set_aside(path: &Path) -> Result<Store, OpenError> {
    match open_or_create(path) {
        Err(OpenError::Database { path: database, source }) => {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let aside = database.with_extension(format!("redb.damaged-{}", since.as_secs()));
            tracing::warn!(%source, aside = %aside.display(), "the database does not open: set aside");
            std::fs::rename(&database, aside).map_err(|source| OpenError::Io { path: database, source })?;
            open_or_create(path)
        }
        opened => opened,
    }
}

/// Removes the state in a directory: everything but keys, which go too when `keys` says so. The caller holds the
/// directory; the format file goes last, so that an interrupted purge is resumed by the next.
///
/// # Errors
/// The first file that could not be removed.
pub fn purge(dir: StateDir, keys: bool) -> io::Result<()> {
    let mut last = Vec::new();
    for entry in std::fs::read_dir(dir.path())? {
        let entry = entry?;
        let name = entry.file_name();
        let is_key = name == crate::keys::NODE_KEY_DIR || name == crate::keys::ROOT_KEY_DIR;
        if is_key && !keys {
            continue;
        }
        if name == "format" {
            last.push(entry.path());
        } else if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    // With keys left behind the directory is still ours, and must be known as such.
    if keys {
        last.into_iter().try_for_each(std::fs::remove_file)?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod failing;
#[cfg(test)]
mod tests;
