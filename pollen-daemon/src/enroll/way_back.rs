//! How a member comes back that lost its database: a second copy, in a file of its own, of what leads to its cluster
//! and of what only this node knows. Owns that file and when it is used; what the records in it mean is the core's.
//! Invariant: a directory that holds anything of a node never becomes another cluster's, nor that of a new one, unasked.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use pollen_common::identity::{ClusterId, NodeKey};
use pollen_common::node::Write;
use serde::{Deserialize, Serialize};

use super::{EnrollError, is_member, read_cluster};
use crate::clock::unix_now;
use crate::config::{self, Settings};
use crate::keys;
use crate::services::ServicesConfig;
use crate::store::{self, Change, OpenError, Store};

const FILE: &str = "way-back";
const FILE_NEW: &str = "way-back.new";

/// A longer file is none of ours: 16 neighbours with their addresses and what shows that they stand take a tenth of it,
/// and nobody configures more services than fit in the rest.
const FILE_BYTES_MAX: u64 = 4 << 20;

const ABOUT: &str = "Written by pln: what this node needs to come back should state.redb be lost. Belongs in a backup.";

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayBack {
    about: String,
    node: String,
    cluster: String,
    pub settings: Settings,
    pub services: ServicesConfig,
    /// Records of the core in hexadecimal: key and value.
    records: Vec<(String, String)>,
}

impl WayBack {
    /// Of a node that runs: `records` are what [`pollen_common::node::Node::way_back`] says.
    #[must_use]
    pub fn new(
        node: NodeKey,
        cluster: ClusterId,
        settings: Settings,
        services: ServicesConfig,
        records: &[Write],
    ) -> Self {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        let records = records.iter().filter_map(|write| Some((hex(&write.key), hex(write.value.as_ref()?))));
        let (node, cluster) = (node.to_string(), cluster.to_string());
        Self { about: ABOUT.into(), node, cluster, settings, services, records: records.collect() }
    }

    /// Replaces the file, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written; the one before stays.
    ///
    /// # Panics
    /// If it has no JSON form, which plain data always has.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join(FILE_NEW);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self).expect("plain data, which JSON can say"))?;
        file.sync_all()?;
        fs::rename(&new, dir.join(FILE))?;
        fs::File::open(dir)?.sync_all()
    }

    /// The file of `dir`; none if it is missing or unreadable as such.
    ///
    /// # Errors
    /// If the disk does not give it.
    pub fn read(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(FILE);
        let found = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        if found.len() > FILE_BYTES_MAX {
            return Ok(None);
        }
        Ok(serde_json::from_slice(&fs::read(path)?).ok())
    }

    /// The same, if it is that of the node whose key is in `dir` and of the cluster that `dir` names, if it names one.
    fn of_node(dir: &Path) -> Result<Option<Self>, EnrollError> {
        let (Some(back), Some(key)) = (Self::read(dir)?, keys::load_node(dir)?) else { return Ok(None) };
        let same_cluster = read_cluster(dir)?.is_none_or(|(cluster, _)| cluster.to_string() == back.cluster);
        Ok(Some(back).filter(|back| same_cluster && back.node == key.public().to_string()))
    }

    /// What a new database begins with; none if the records are not readable.
    fn changes(&self) -> Option<[Change; 3]> {
        let bytes = |hex: &String| data_encoding::HEXLOWER.decode(hex.as_bytes()).ok();
        let record = |(key, value): &(String, String)| Some(Write { key: bytes(key)?, value: Some(bytes(value)?) });
        let records: Vec<Write> = self.records.iter().map(record).collect::<Option<_>>()?;
        Some([
            Change::Node(records),
            Change::set(config::SETTINGS_KEY, &self.settings),
            Change::set(config::SERVICES_KEY, &self.services),
        ])
    }
}

/// Opens the store of a directory. One whose database is lost or damaged, but whose key and way back are there, is
/// begun anew from that; a damaged file is kept beside it. Where nothing leads back the store has no membership.
///
/// # Errors
/// [`EnrollError`]; a damaged database from which nothing leads back is left as it was found.
pub fn open_member(path: &Path) -> Result<Store, EnrollError> {
    let store = match store::open_or_create(path) {
        Err(OpenError::Database { source, .. }) if is_damage(&source) && WayBack::of_node(path)?.is_some() => {
            store::open_or_set_aside(path)?
        }
        opened => opened?,
    };
    if is_member(&store)? {
        return Ok(store);
    }
    if let Some(changes) = WayBack::of_node(store.dir())?.and_then(|back| back.changes()) {
        store.apply(&changes)?;
        pass_the_second();
        tracing::warn!("the database was lost: this node comes back from its neighbours");
    }
    Ok(store)
}

/// The cluster that the file leads to, as far as it can be read.
///
/// # Errors
/// If the disk does not give it.
pub(super) fn cluster(dir: &Path) -> io::Result<Option<String>> {
    if !dir.join(FILE).try_exists()? {
        return Ok(None);
    }
    Ok(Some(WayBack::read(dir)?.map_or_else(|| "(its file is unreadable)".into(), |back| back.cluster)))
}

/// Waits until the clock's next second begins. A node's sequences begin at the second in which it boots, and what it had
/// reserved is lost with the database: in the same second as before it would be taken for its own twin.
fn pass_the_second() {
    std::thread::sleep(Duration::from_millis(1000 - unix_now().0 % 1000));
}

/// Whether an error of opening says that the content is wrong, not that it could not be had.
fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) => true,
        redb::Error::Io(error) => {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        _ => false,
    }
}
