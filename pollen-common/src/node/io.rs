//! What goes into a node and comes out of it: inputs, outputs, local requests and their answers. Shapes alone; what
//! they cause is decided beside this file. Invariant: everything is plain data, so that a run can be recorded.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use crate::identity::{Digest, NodeKey};
use crate::maps::records::Write;
use crate::roll::{Rights, Tier};
use crate::time::UnixMs;
use crate::views::{Capacity, Inability, Name, Policy, Protocol, SeedTerms, SeedVersion, VersionId};

/// One connection with a peer, as the driver numbers it; never reused while the node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// A local request under way, as its asker numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A batch of writes under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PersistId(pub u64);

/// What happens to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// A connection is up: TLS has proved `peer`'s key, its ordered stream is open. `dialed` if this node dialled. `remote`: where
    /// the peer was then, for people.
    LinkUp { link: LinkId, peer: NodeKey, dialed: bool, remote: Option<SocketAddr> },
    /// The next bytes of the link's ordered stream, cut anywhere.
    LinkBytes { link: LinkId, bytes: Vec<u8> },
    /// The transport has taken everything sent on the link's stream so far: room for more.
    LinkWritable { link: LinkId },
    /// An unreliable datagram.
    LinkDatagram { link: LinkId, bytes: Vec<u8> },
    /// The connection is gone, by whatever cause, after which nothing of the link follows.
    LinkDown { link: LinkId, reason: String },
    /// A dial that was asked for did not come up.
    DialFailed { peer: NodeKey, reason: String },
    /// A local request.
    Command { id: RequestId, command: Command },
    /// A batch is on disk.
    Persisted { id: PersistId },
    /// What was asked for by `StartReplica` is ready to serve: it may be announced.
    ReplicaReady { version: VersionId },
    /// It could not be made ready, or stopped being so; asked for again later if it is still wanted. `own`: this node
    /// is at fault, and another may do better.
    ReplicaFailed { version: VersionId, reason: String, own: Option<Inability> },
    /// After `StopReplica`: no call of it runs here any more.
    ReplicaStopped { version: VersionId },
    /// The modules that are on this disk, whole and verified, of all that seeds name.
    Holding { modules: Vec<Digest> },
}

/// What a node wants done.
#[derive(Clone, Debug)]
pub enum Output {
    /// Connect to `peer` at any of `addrs`; answered by `LinkUp` or `DialFailed`.
    Dial { peer: NodeKey, addrs: Vec<SocketAddr> },
    /// Append to the link's ordered stream; answered by `LinkWritable` when taken.
    Send { link: LinkId, bytes: Vec<u8> },
    /// Send one datagram, best effort.
    SendDatagram { link: LinkId, bytes: Vec<u8> },
    /// The link's peer has fallen silent. Its connection and all streams on it stay; prove the peer anew at any of
    /// `addrs`, or where it was, until `Heard` or `LinkDown`. Said again when its addresses change.
    Silent { link: LinkId, addrs: Vec<SocketAddr> },
    /// The link's peer answers again.
    Heard { link: LinkId },
    /// Flush what was sent, then close the connection, telling the peer `reason`. `LinkDown` still follows.
    Close { link: LinkId, reason: String },
    /// Write all of `writes` atomically and durably, then say `Persisted`. Batches are written in order.
    Persist { id: PersistId, writes: Vec<Write> },
    /// The answer to a local request.
    Reply { id: RequestId, result: Result<Reply, Refusal> },
    /// The view has changed: fetch it with `Node::view`.
    ViewChanged,
    /// What was noticed has changed: fetch it with `Node::signs`.
    SignsChanged,
    /// Fetch the module if it is not here, from any of `holders`, and make it ready to serve. Answered by `ReplicaReady`
    /// or `ReplicaFailed`.
    StartReplica { version: SeedVersion, name: Name, holders: Vec<NodeKey> },
    /// Take no new calls of it, let those that run finish, then let it go; if it is still being made ready, give that
    /// up. It is no longer announced. Answered by `ReplicaStopped`, before which it is not asked for again.
    StopReplica { version: VersionId },
    /// For people: the timeline that `pln events` shows.
    Event(Event),
}

/// A local request.
#[derive(Clone, Debug)]
pub enum Command {
    /// What this node says of itself. Idempotent.
    Announce {
        name: Option<Name>,
        addrs: Vec<SocketAddr>,
    },
    /// Publish a local port, under a name or without one. Idempotent.
    Serve(Publish),
    /// Stop publishing a named service in one protocol (with port 0: in every), or the unnamed one on a port.
    Unserve {
        name: Option<Name>,
        protocol: Protocol,
        port: u16,
    },
    /// Make an invite: answered by `Reply::Token`.
    Invite {
        terms: InviteTerms,
    },
    /// Replaces what a member may do, up as well as down. Idempotent.
    Grant {
        subject: NodeKey,
        grant: Grant,
    },
    /// Puts a member out, with all that it admitted. Idempotent.
    Deny {
        subject: NodeKey,
    },
    /// The same without blame, for a machine that is gone for good. Idempotent.
    Retire {
        subject: NodeKey,
    },
    /// Lifts this node's own denial or retirement. Idempotent.
    Allow {
        subject: NodeKey,
    },
    /// Statements signed elsewhere (by the root, in the CLI) to be merged into the roll.
    Submit {
        statements: Vec<Vec<u8>>,
    },
    /// Shared state: put or delete an entry of this node's state lane.
    PutState {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    DeleteState {
        key: Vec<u8>,
    },
    /// What this node offers to seeds; `None` hosts none. Idempotent.
    Offer {
        capacity: Option<Capacity>,
    },
    /// Publish a seed, or a new version of one: then the old one answers until the new one is ready at its floor.
    /// Answered when the claim is on disk; the view shows the rest. Idempotent.
    Seed {
        name: Name,
        terms: SeedTerms,
    },
    /// Stop publishing a seed of this node's.
    Unseed {
        name: Name,
    },
    /// How long the connection of a silent peer is kept. Idempotent.
    Patience {
        patience: Duration,
    },
    /// Hand over: this node shall host nothing. Answered when that is published; the view shows when others have taken
    /// over. Undone by a restart.
    Drain,
    /// Say goodbye to all neighbours: they know at once. Answered when it has been sent.
    Leave,
}

/// What a grant changes; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    pub tier: Option<Tier>,
    /// All of its properties.
    pub props: Option<BTreeMap<String, String>>,
    pub quota_kib: Option<u32>,
    pub pool_kib: Option<u32>,
    /// When the membership ends; `Some(None)`: it no longer does.
    pub expires: Option<Option<UnixMs>>,
}

/// What an invite grants and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InviteTerms {
    pub rights: Rights,
    /// Only this key may redeem it.
    pub subject: Option<NodeKey>,
    /// No witness accepts it after this.
    pub not_after: UnixMs,
}

/// What a request gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Done,
    /// An invite token, as its binary form; people see it in base64url.
    Token(Vec<u8>),
}

/// A local port to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    pub name: Option<Name>,
    pub protocol: Protocol,
    pub port: u16,
    /// Whether others may provide it, too.
    pub shared: bool,
    /// Who may use it: of a name in both of its protocols, whichever this is for.
    pub policy: Policy,
}

/// Why a request was refused; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub kind: RefusalKind,
    /// What failed and why, one sentence.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// The kind of a refusal; each is one exit code of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalKind {
    Failed,
    Usage,
    NotFound,
    Denied,
    Ambiguous,
    Unreachable,
}

/// Something people may want to know happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub peer: Option<NodeKey>,
    /// One sentence.
    pub message: String,
}

/// The kind of an event: also the label of its metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    PeerUp,
    PeerDown,
    /// A connection ended, with its reason; the peer may be online by others.
    LinkDown,
    /// A peer answers nothing over its connection, which is kept; or it does again.
    LinkSilent,
    Joined,
    Admitted,
    Denied,
    Published,
    Withdrawn,
    /// A seed became ready to serve somewhere, stopped being so, or could not be made ready here.
    Replica,
    Conflict,
    Twin,
    Refused,
    Rotated,
    /// Something is wrong that was not, by the daemon's own judgement; it says what and what to do.
    ConditionBegan,
    /// It is over.
    ConditionEnded,
}
