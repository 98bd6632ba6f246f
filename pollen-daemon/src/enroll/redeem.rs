//! Redeeming an invite: finds an admin among those that the token names, and keeps what it answers. Owns the choice of
//! whom to ask and how long; what is said is the core's. Invariant: the membership is written whole or not at all, and
//! the node's key is on disk before any admin hears of it, so that the same token works again after a crash.

use pollen_common::wire::streams::StreamKind;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pollen_common::identity::{ClusterId, NodeKey, Strict};
use pollen_common::node::LinkId;
use pollen_common::node::join::{self as core, Joining};
use pollen_common::roll::Contact;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{EnrollError, is_member, member_key, note_cluster, open_node, running_member};
use crate::clock::unix_now;
use crate::keys::{self, KeyError};
use crate::store::{self, Change, OpenError, Store, StoreError};
use crate::transport::{Mesh, MeshConfig, MeshEvent, StreamHandler};

/// All attempts together: a person waits for this.
const JOIN_MAX: Duration = Duration::from_secs(20);

/// Once one admin has refused, how long the others have to say otherwise: what is wrong with a token is mostly wrong
/// with it everywhere.
const SECOND_OPINION_MAX: Duration = Duration::from_secs(2);

/// How long one admin may take over its answer, while others wait.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A token that is longer is none: an invite with ten admins and their lineage takes a tenth of it.
const TOKEN_BYTES_MAX: usize = 256 << 10;

/// Events of a mesh with a handful of links.
const EVENTS_WAITING_MAX: usize = 64;

/// How to reach out.
#[derive(Clone, Copy, Debug, Default)]
pub struct JoinOptions {
    /// UDP port to speak from; 0: any.
    pub port: u16,
}

/// A new membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    pub cluster: ClusterId,
    pub node: NodeKey,
    /// The admin that redeemed the token; none if this node was a member already.
    pub by: Option<NodeKey>,
}

/// The token was not redeemed; this node is what it was.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("this is no token: it should be the one line that `pln invite` printed ({0})")]
    Text(String),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(
        "this node is already a member of the cluster {mine}, and the token is for {theirs}: `pln purge` forgets the former"
    )]
    OtherCluster { mine: ClusterId, theirs: ClusterId },
    /// The core's reason, or the admin's.
    #[error(transparent)]
    Refused(#[from] core::JoinError),
    /// No admin that the token names could be reached: exit code 6.
    #[error("no admin that the token names could be reached{0}")]
    Unreachable(String),
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    #[error("{what} failed: {source}")]
    System { what: &'static str, source: io::Error },
}

impl JoinError {
    /// Whether trying again later may help without a new token.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}

/// Makes the node of `dir` a member by the token that `pln invite` printed. Joining a cluster again that one is a
/// member of changes nothing.
///
/// # Errors
/// [`JoinError`]
pub fn join(dir: &Path, token: &str, options: JoinOptions) -> Result<Joined, JoinError> {
    let token = decode(token)?;
    let store = match store::open_or_set_aside(dir) {
        Err(OpenError::Locked { path }) => {
            return joined_already(dir, &token)?.ok_or(JoinError::Open(OpenError::Locked { path }));
        }
        opened => opened?,
    };
    let secret = if is_member(&store)? { member_key(&store)? } else { keys::load_or_make_node(store.dir())? };
    let joining = Joining::new(&token, &secret, Arc::new(Strict), unix_now())?;
    let theirs = joining.cluster();
    if is_member(&store)? {
        let mine = open_node(&store, &secret)?.view().cluster;
        if mine != theirs {
            return Err(JoinError::OtherCluster { mine, theirs });
        }
        return Ok(Joined { cluster: mine, node: secret.public(), by: None });
    }
    // A member whose database is lost comes back into its own cluster alone.
    let was = super::read_cluster(store.dir())
        .map_err(|source| JoinError::System { what: "reading the cluster file", source })?;
    if let Some((mine, _)) = was.filter(|(mine, _)| *mine != theirs) {
        return Err(JoinError::OtherCluster { mine, theirs });
    }
    let system = |what| move |source| JoinError::System { what, source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("the runtime"))?;
    let (by, joined) = runtime.block_on(async {
        let (events, happens) = mpsc::channel(EVENTS_WAITING_MAX);
        let config = MeshConfig { accepts: false, ..MeshConfig::new(secret.clone(), options.port) };
        let mesh = Mesh::start(config, events, Arc::new(Nothing)).map_err(system("opening a UDP port"))?;
        let asked = Asking::new(mesh.clone(), joining).run(happens).await;
        mesh.shutdown("enrolled").await;
        asked
    })?;
    keep(&store, joined.records)?;
    note_cluster(store.dir(), &open_node(&store, &secret)?).map_err(system("writing the cluster file"))?;
    Ok(Joined { cluster: joined.cluster, node: secret.public(), by: Some(by) })
}

/// What a directory whose node runs says to a token: joining again changes nothing there either.
fn joined_already(dir: &Path, token: &[u8]) -> Result<Option<Joined>, JoinError> {
    let (Some((mine, node)), Some(secret)) = (running_member(dir)?, keys::load_node(dir)?) else { return Ok(None) };
    let theirs = Joining::new(token, &secret, Arc::new(Strict), unix_now())?.cluster();
    if mine != theirs {
        return Err(JoinError::OtherCluster { mine, theirs });
    }
    Ok(Some(Joined { cluster: mine, node, by: None }))
}

fn keep(store: &Store, records: Vec<pollen_common::node::Write>) -> Result<(), StoreError> {
    store.apply(&[Change::Node(records)])
}

fn decode(token: &str) -> Result<Vec<u8>, JoinError> {
    let token = token.trim();
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
        return Err(JoinError::Text(format!("it has {} characters", token.len())));
    }
    data_encoding::BASE64URL_NOPAD.decode(token.as_bytes()).map_err(|error| JoinError::Text(error.to_string()))
}

/// A joiner serves nothing.
struct Nothing;

impl StreamHandler for Nothing {
    fn stream(&self, _: NodeKey, _: &Connection, _: StreamKind, mut send: SendStream, mut recv: RecvStream) {
        // Closed streams, if the peer was quicker, are as good.
        let _ = send.reset(quinn::VarInt::from_u32(0));
        let _ = recv.stop(quinn::VarInt::from_u32(0));
    }

    fn datagram(&self, _: NodeKey, _: &Connection, _: Bytes) {}

    fn closed(&self, _: usize) {}
}

/// One redemption: all admins are dialled at once, and asked one after the other as they come up.
struct Asking {
    mesh: Mesh,
    joining: Joining,
    /// Admins of whom nothing is heard yet, and why each other one is out.
    dialled: Vec<NodeKey>,
    failed: BTreeMap<NodeKey, String>,
    up: VecDeque<(LinkId, NodeKey)>,
    asked: Option<(LinkId, NodeKey, Instant)>,
    refused: Option<core::JoinError>,
    deadline: Instant,
}

type Answer = (NodeKey, core::Joined);

impl Asking {
    fn new(mesh: Mesh, joining: Joining) -> Self {
        Self {
            mesh,
            joining,
            dialled: Vec::new(),
            failed: BTreeMap::new(),
            up: VecDeque::new(),
            asked: None,
            refused: None,
            deadline: Instant::now() + JOIN_MAX,
        }
    }

    async fn run(mut self, mut happens: mpsc::Receiver<MeshEvent>) -> Result<Answer, JoinError> {
        for Contact { key, addrs } in self.joining.contacts().to_vec() {
            self.mesh.dial(key, addrs);
            self.dialled.push(key);
        }
        loop {
            self.ask_next();
            if self.asked.is_none() && self.up.is_empty() && self.dialled.is_empty() {
                return Err(self.outcome());
            }
            let until = self.asked.map_or(self.deadline, |(_, _, until)| until.min(self.deadline));
            match tokio::time::timeout_at(until, happens.recv()).await {
                Ok(Some(event)) => {
                    if let Some(answer) = self.heard(event) {
                        return Ok(answer);
                    }
                }
                Ok(None) => return Err(self.outcome()),
                Err(_) if Instant::now() >= self.deadline => return Err(self.outcome()),
                Err(_) => self.out("no answer"),
            }
        }
    }

    fn ask_next(&mut self) {
        if self.asked.is_some() {
            return;
        }
        if let Some((link, admin)) = self.up.pop_front() {
            self.mesh.send(link, self.joining.request());
            self.asked = Some((link, admin, Instant::now() + ANSWER_MAX));
        }
    }

    fn heard(&mut self, event: MeshEvent) -> Option<Answer> {
        match event {
            MeshEvent::LinkUp { link, peer, .. } => {
                let position = self.dialled.iter().position(|dialled| *dialled == peer)?;
                self.dialled.swap_remove(position);
                self.up.push_back((link, peer));
            }
            MeshEvent::LinkBytes { link, bytes } => {
                let (_, admin, _) = self.asked.filter(|(asked, ..)| *asked == link)?;
                match self.joining.answer(&admin, &bytes, unix_now()) {
                    Ok(joined) => return joined.map(|joined| (admin, joined)),
                    Err(error) => {
                        self.out(&error.to_string());
                        self.refused.get_or_insert(error);
                        self.deadline = self.deadline.min(Instant::now() + SECOND_OPINION_MAX);
                    }
                }
            }
            MeshEvent::LinkDown { link, reason } => {
                self.up.retain(|(up, _)| *up != link);
                if self.asked.is_some_and(|(asked, ..)| asked == link) {
                    self.out(&reason);
                }
            }
            MeshEvent::DialFailed { peer, reason } => {
                self.dialled.retain(|dialled| *dialled != peer);
                self.failed.insert(peer, reason);
            }
            MeshEvent::LinkWritable { .. } | MeshEvent::LinkDatagram { .. } => {}
        }
        None
    }

    /// The admin that was asked is out.
    fn out(&mut self, reason: &str) {
        if let Some((link, admin, _)) = self.asked.take() {
            self.failed.insert(admin, reason.to_owned());
            self.mesh.close(link, "asked elsewhere".into());
        }
    }

    /// What to tell the person: a refusal says more than silence.
    fn outcome(self) -> JoinError {
        if let Some(refused) = self.refused {
            return refused.into();
        }
        let silent = self.dialled.into_iter().map(|admin| (admin, "no answer".to_owned()));
        let reasons = self.failed.into_iter().chain(silent);
        let reasons: Vec<String> = reasons.map(|(admin, reason)| format!("{}: {reason}", admin.short())).collect();
        let reasons = if reasons.is_empty() { ": it names none".into() } else { format!(" ({})", reasons.join("; ")) };
        JoinError::Unreachable(reasons)
    }
}
