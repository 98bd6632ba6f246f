//! Becoming a member: founding a cluster, redeeming an invite, and saying who this node is. Library calls that need no
//! daemon and hold the state directory while they work; `init` alone makes and uses the root's keys.
//! Invariant: killed at any moment, they leave either nothing or a member, and calling them again goes on from there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pollen_common::identity::{ClusterId, NodeKey, SecretKey, Strict};
use pollen_common::node::{self, Node, NodeConfig, RestoreError};
use pollen_common::roll;

use crate::clock::Clock;
use crate::clock::unix_now;
use crate::keys::{self, KeyError};
use crate::store::{self, Change, OpenError, Store, StoreError};

mod redeem;
pub mod way_back;
pub use redeem::{JoinError, JoinOptions, Joined, join};

/// Public facts about the membership, readable while a daemon holds the directory.
const CLUSTER_FILE: &str = "cluster";
const CLUSTER_FILE_NEW: &str = "cluster.new";

/// A cluster was not founded. What was made so far is used when it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("this node is already a member of the cluster {cluster}, whose root is elsewhere: `pln purge` forgets it")]
    Member { cluster: ClusterId },
    #[error(
        "this directory is of a member of the cluster {cluster}, whose database is lost: put it back from a backup, or `pln \
         join` with a new invite of that cluster, which keeps the node's key; `pln purge` makes it forget the cluster"
    )]
    Lost { cluster: String },
    #[error("the node's state does not make a node: {0}")]
    Restore(#[from] RestoreError),
    #[error("there is no node key in {}, though it holds a node's state: put `keys/` back from a backup, or give the node up with `pln purge`", dir.display())]
    KeyMissing { dir: PathBuf },
    #[error("the file `cluster` in {} names the cluster {file}, the database is that of {database}: files of two nodes were mixed; put back those that belong together, or remove `cluster` if the database is right", dir.display())]
    Mixed { dir: PathBuf, file: ClusterId, database: ClusterId },
    #[error("the first statements cannot be signed: {0}")]
    Sign(#[from] roll::SignError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A cluster rooted in a state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Founded {
    pub cluster: ClusterId,
    /// The root's public key.
    pub root: NodeKey,
    /// This node's.
    pub node: NodeKey,
    /// Whether this call founded it.
    pub new: bool,
}

/// Who this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its key, which `invite --subject` takes.
    pub node: NodeKey,
    /// The cluster that it is a member of.
    pub cluster: Option<ClusterId>,
    /// That cluster's root when this node last looked.
    pub root: Option<NodeKey>,
}

/// Founds a cluster rooted in `dir`, with this node as its first admin, whose properties are `props`. On a root it
/// changes nothing and answers the same, daemon or not.
///
/// # Errors
/// [`EnrollError`]
pub fn init(dir: &Path, props: &BTreeMap<String, String>) -> Result<Founded, EnrollError> {
    let store = match store::open_or_create(dir) {
        Err(OpenError::Locked { path }) => {
            return match (rooted_in(dir)?, running_member(dir)?) {
                (Some(founded), _) => Ok(founded),
                (None, Some((cluster, _))) => Err(EnrollError::Member { cluster }),
                (None, None) => Err(EnrollError::Open(OpenError::Locked { path })),
            };
        }
        opened => opened?,
    };
    found_in(&store, props)
}

/// The same in an opened store.
///
/// # Errors
/// [`EnrollError`]
pub fn found_in(store: &Store, props: &BTreeMap<String, String>) -> Result<Founded, EnrollError> {
    let new = !is_member(store)?;
    if !new && keys::load_root(store.dir())?.is_none() {
        let node = open_node(store, &member_key(store)?)?;
        return Err(EnrollError::Member { cluster: node.view().cluster });
    }
    if new && let Some(cluster) = lost_cluster(store.dir())? {
        return Err(EnrollError::Lost { cluster });
    }
    let root = keys::load_or_make_root(store.dir())?;
    let secret = if new { keys::load_or_make_node(store.dir())? } else { member_key(store)? };
    if new {
        let next = roll::commitment(&root.successor.public());
        store.apply(&[Change::Node(node::found(&root.root, next, &secret, props, unix_now())?)])?;
    }
    let node = open_node(store, &secret)?;
    let cluster = node.view().cluster;
    if node.roll().root() != root.root.public() {
        return Err(EnrollError::Member { cluster });
    }
    note_cluster(store.dir(), &node)?;
    Ok(Founded { cluster, root: root.root.public(), node: secret.public(), new })
}

/// Whether the store holds a membership.
///
/// # Errors
/// [`StoreError`]
pub fn is_member(store: &Store) -> Result<bool, StoreError> {
    // Memberships are written whole, in one transaction.
    Ok(!store.node_records()?.is_empty())
}

/// The cluster that a directory without a membership was of, as far as it can be read: whoever founds another one there
/// makes a second node of one key.
fn lost_cluster(dir: &Path) -> io::Result<Option<String>> {
    if !dir.join(CLUSTER_FILE).try_exists()? {
        return way_back::cluster(dir);
    }
    Ok(Some(read_cluster(dir)?.map_or_else(|| "(its file is unreadable)".into(), |(cluster, _)| cluster.to_string())))
}

/// Whether no membership ever left its mark in a directory.
///
/// # Errors
/// If it cannot be looked at.
pub fn never_a_member(dir: &Path) -> io::Result<bool> {
    Ok(lost_cluster(dir)?.is_none())
}

/// This node's key and cluster, or nothing where there is no node. Needs no lock.
///
/// # Errors
/// [`EnrollError`]
pub fn id(dir: &Path) -> Result<Option<Identity>, EnrollError> {
    match store::layout::inspect(dir) {
        Err(OpenError::Missing { .. }) => return Ok(None),
        found => drop(found?),
    }
    let Some(secret) = keys::load_node(dir)? else { return Ok(None) };
    let (cluster, root) = read_cluster(dir)?.unzip();
    Ok(Some(Identity { node: secret.public(), cluster, root }))
}

/// What a locked directory says of itself, if it holds the root's keys.
fn rooted_in(dir: &Path) -> Result<Option<Founded>, EnrollError> {
    let (Some(keys), Some(identity)) = (keys::load_root(dir)?, id(dir)?) else { return Ok(None) };
    let root = keys.root.public();
    let Some(cluster) = identity.cluster.filter(|_| identity.root == Some(root)) else { return Ok(None) };
    Ok(Some(Founded { cluster, root, node: identity.node, new: false }))
}

/// The cluster of a locked directory, and its node.
fn running_member(dir: &Path) -> Result<Option<(ClusterId, NodeKey)>, EnrollError> {
    Ok(id(dir)?.and_then(|identity| identity.cluster.zip(Some(identity.node))))
}

fn member_key(store: &Store) -> Result<SecretKey, EnrollError> {
    // A new key would make a node that restores and stands nowhere.
    keys::load_node(store.dir())?.ok_or_else(|| EnrollError::KeyMissing { dir: store.dir().to_owned() })
}

/// The node of a store, only to be read.
fn open_node(store: &Store, secret: &SecretKey) -> Result<Node, EnrollError> {
    let config = NodeConfig::new(secret.clone(), [0; 32], Arc::new(Strict));
    Ok(Node::restore(config, store.node_records()?, Clock::default().now())?)
}

/// Refuses a directory whose parts belong to two nodes.
///
/// # Errors
/// [`EnrollError::Mixed`]
pub fn check_cluster(dir: &Path, node: &Node) -> Result<(), EnrollError> {
    let database = node.view().cluster;
    match read_cluster(dir)? {
        Some((file, _)) if file != database => Err(EnrollError::Mixed { dir: dir.to_owned(), file, database }),
        _ => Ok(()),
    }
}

/// Writes down which cluster a node is in, for those who may not open the store.
///
/// # Errors
/// If the file cannot be written.
pub fn note_cluster(dir: &Path, node: &Node) -> io::Result<()> {
    let (cluster, root) = (node.view().cluster, node.roll().root());
    if read_cluster(dir)? == Some((cluster, root)) {
        return Ok(());
    }
    let new = dir.join(CLUSTER_FILE_NEW);
    let mut file = File::create(&new)?;
    writeln!(file, "cluster_id {cluster}\nroot_pub {root}")?;
    file.sync_all()?;
    fs::rename(&new, dir.join(CLUSTER_FILE))?;
    File::open(dir)?.sync_all()
}

fn read_cluster(dir: &Path) -> io::Result<Option<(ClusterId, NodeKey)>> {
    let text = match fs::read_to_string(dir.join(CLUSTER_FILE)) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => return Ok(None),
        Err(error) => return Err(error),
    };
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    let cluster = value("cluster_id").and_then(|hex| hex.parse().ok());
    let root = value("root_pub").and_then(|hex| hex.parse().ok());
    Ok(cluster.zip(root))
}

#[cfg(test)]
mod tests;
