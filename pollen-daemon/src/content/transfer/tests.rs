//! Transfers between a few nodes over the real transport, some of whom do not do as they should.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pollen_common::identity::{Digest, NodeKey, SecretKey};
use pollen_common::views::View;
use pollen_common::wire::streams::content::{GROUP_BYTES, Outlining, Request, digest_of, encode_acceptance};
use pollen_common::wire::streams::{Denial, StreamKind, encode_answer};
use quinn::{Connection, RecvStream, SendStream};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

use crate::content::{Content, FetchError, Wanted};
use crate::services::tests::view::ViewBuilder;
use crate::transport::{Mesh, MeshConfig, StreamHandler, open_stream};

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(30);

/// What a node does with the transfers that are asked of it.
#[derive(Clone)]
enum Conduct {
    Honest,
    /// Answers with the values of `outlined`, then the bytes of `sent`, up to `limit` of them, and breaks off.
    Sends {
        outlined: Arc<Vec<u8>>,
        sent: Arc<Vec<u8>>,
        limit: usize,
    },
    /// Says nothing at all.
    Silent,
    /// Says that the content has another size.
    Resized(Arc<Vec<u8>>),
}

struct Node {
    key: NodeKey,
    content: Content,
    mesh: Mesh,
    view: watch::Sender<Arc<View>>,
    asked: Arc<AtomicUsize>,
    dir: TempDir,
    addr: SocketAddr,
}

struct Handler {
    content: Content,
    conduct: Conduct,
    asked: Arc<AtomicUsize>,
}

impl StreamHandler for Handler {
    fn stream(&self, peer: NodeKey, _: &Connection, _: StreamKind, send: SendStream, recv: RecvStream) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.conduct.clone() {
            Conduct::Honest => self.content.take_stream(peer, send, recv),
            Conduct::Sends { outlined, sent, limit } => {
                drop(tokio::spawn(lie((outlined, 0), sent, limit, send, recv)));
            }
            Conduct::Resized(bytes) => drop(tokio::spawn(lie((bytes.clone(), 1), bytes, usize::MAX, send, recv))),
            Conduct::Silent => drop(tokio::spawn(async move {
                let _held = (send, recv);
                std::future::pending::<()>().await;
            })),
        }
    }

    fn datagram(&self, _: NodeKey, _: &Connection, _: Bytes) {}
    fn closed(&self, _: usize) {}
}

async fn lie(
    (outlined, longer): (Arc<Vec<u8>>, u64),
    bytes: Arc<Vec<u8>>,
    limit: usize,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let request = recv.read_to_end(1000).await.expect("a request");
    let from = Request::decode(&request[2..]).expect("honest").from_group;
    let outline = Outlining::of(&outlined).outline(digest_of(&outlined)).expect("its own digest");
    let head = encode_acceptance(outline.size_bytes() + longer, outline.values());
    let rest = &bytes[usize::try_from(from).expect("small") * GROUP_BYTES..];
    // The asker hangs up as soon as it sees what this is.
    if send.write_all(&head).await.is_ok() && send.write_all(&rest[..rest.len().min(limit)]).await.is_ok() {
        let _ = send.finish();
    }
}

fn start(index: u8, conduct: Conduct) -> Node {
    let dir = tempfile::tempdir().expect("temporary directory");
    let secret = SecretKey::from_seed(&[index + 1; 32]);
    let key = secret.public();
    let (view, reader) = watch::channel(ViewBuilder::new(key).build());
    let content = Content::open(dir.path(), reader).expect("a directory of its own");
    let (events, mut happened) = mpsc::channel(64);
    let asked = Arc::<AtomicUsize>::default();
    let handler = Handler { content: content.clone(), conduct, asked: Arc::clone(&asked) };
    let mesh = Mesh::start(MeshConfig::new(secret, 0), events, Arc::new(handler)).expect("loopback");
    // Nobody judges links here.
    mesh.runtime().spawn(async move { while happened.recv().await.is_some() {} });
    content.start(mesh.clone());
    let port = mesh.local_addr().expect("bound").port();
    Node { key, content, mesh, view, asked, dir, addr: SocketAddr::from(([127, 0, 0, 1], port)) }
}

/// Nodes of these conducts, each of whose views has all of them and a seed of each module.
fn cluster(conducts: &[Conduct], modules: &[Digest]) -> Vec<Node> {
    let nodes: Vec<_> = (0..).zip(conducts).map(|(index, conduct)| start(index, conduct.clone())).collect();
    for node in &nodes {
        let known = nodes
            .iter()
            .fold(ViewBuilder::new(node.key), |view, other| view.node_at(other.key, None, vec![other.addr]));
        let named = modules.iter().fold(known, |view, module| view.seed(nodes[0].key, *module));
        node.view.send_replace(named.build());
    }
    nodes
}

fn keys(nodes: &[Node]) -> Vec<NodeKey> {
    nodes.iter().map(|node| node.key).collect()
}

fn module(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 249).expect("below 249")).collect()
}

fn wanted(bytes: &[u8]) -> Wanted {
    Wanted { digest: digest_of(bytes), size_bytes: bytes.len() as u64 }
}

async fn put(node: &Node, bytes: &[u8]) {
    node.content.put(Bytes::copy_from_slice(bytes)).await.expect("stored");
}

async fn fetch(node: &Node, bytes: &[u8], holders: &[NodeKey]) -> Result<(), FetchError> {
    tokio::time::timeout(SOON, node.content.fetch(wanted(bytes), holders)).await.expect("in time")
}

#[tokio::test]
async fn content_of_any_size_comes_from_who_holds_it() {
    let modules: Vec<_> = [1, 5, GROUP_BYTES, GROUP_BYTES + 1, 5_000_000].into_iter().map(module).collect();
    let digests: Vec<_> = modules.iter().map(|bytes| digest_of(bytes)).collect();
    let nodes = cluster(&[Conduct::Honest, Conduct::Honest], &digests);
    for bytes in &modules {
        put(&nodes[0], bytes).await;
        fetch(&nodes[1], bytes, &keys(&nodes)).await.expect("it is there");
        assert_eq!(nodes[1].content.read(digest_of(bytes)).await.expect("whole"), &bytes[..]);
    }
    let asked = nodes[0].asked.load(Ordering::Relaxed);
    fetch(&nodes[1], &modules[0], &keys(&nodes)).await.expect("it is here");
    assert_eq!(nodes[0].asked.load(Ordering::Relaxed), asked, "what is here is not fetched again");
    let total: u64 = modules.iter().map(|bytes| bytes.len() as u64).sum();
    assert_eq!(nodes[1].content.numbers().fetched_bytes, total);
}

#[tokio::test]
async fn a_holder_that_sends_other_bytes_is_left_for_the_next_and_asked_no_more() {
    let bytes = module(1_000_000);
    let mut other = bytes.clone();
    other[700_000] ^= 1;
    let (real, other) = (Arc::new(bytes.clone()), Arc::new(other));
    for lie in [
        Conduct::Sends { outlined: other.clone(), sent: other.clone(), limit: usize::MAX },
        Conduct::Sends { outlined: real.clone(), sent: other, limit: usize::MAX },
        Conduct::Resized(real),
    ] {
        let nodes = cluster(&[Conduct::Honest, Conduct::Honest, lie], &[digest_of(&bytes)]);
        put(&nodes[0], &bytes).await;
        // A connection that is up counts as nearer.
        nodes[1].mesh.connect(nodes[2].key, vec![nodes[2].addr]).await.expect("up");
        fetch(&nodes[1], &bytes, &keys(&nodes)).await.expect("the honest one has it");
        assert_eq!(nodes[1].content.read(digest_of(&bytes)).await.expect("whole"), &bytes[..]);
        assert_eq!((nodes[1].content.numbers().lied, nodes[2].asked.load(Ordering::Relaxed)), (1, 1));
        let alone = fetch(&nodes[0], &module(3), &[nodes[2].key]).await;
        assert!(matches!(alone, Err(FetchError::AllFailed(_))), "{alone:?}");
        assert!(!nodes[0].content.has(&digest_of(&module(3))));
    }
}

#[tokio::test]
async fn a_holder_whose_stored_file_was_changed_notices_and_serves_none_of_it() {
    let bytes = module(4 * GROUP_BYTES);
    let nodes = cluster(&[Conduct::Honest, Conduct::Honest], &[digest_of(&bytes)]);
    put(&nodes[0], &bytes).await;
    let path = nodes[0].dir.path().join("content").join(digest_of(&bytes).to_string());
    let mut changed = bytes.clone();
    changed[3 * GROUP_BYTES] ^= 1;
    fs::write(path, &changed).expect("changed");
    let fetched = fetch(&nodes[1], &bytes, &keys(&nodes)).await;
    assert!(matches!(fetched, Err(FetchError::AllFailed(_))), "{fetched:?}");
    assert!(!nodes[0].content.has(&digest_of(&bytes)));
    assert_eq!((nodes[0].content.numbers().damaged, nodes[0].content.numbers().served), (1, 0));
}

#[tokio::test]
async fn a_transfer_that_breaks_goes_on_with_the_next_holder_where_it_was() {
    let bytes = module(10 * GROUP_BYTES + 17);
    let whole = Arc::new(bytes.clone());
    let half = Conduct::Sends { outlined: whole.clone(), sent: whole, limit: 6 * GROUP_BYTES + 100 };
    let nodes = cluster(&[Conduct::Honest, Conduct::Honest, half], &[digest_of(&bytes)]);
    put(&nodes[0], &bytes).await;
    nodes[1].mesh.connect(nodes[2].key, vec![nodes[2].addr]).await.expect("up");
    fetch(&nodes[1], &bytes, &keys(&nodes)).await.expect("the other has the rest");
    assert_eq!(nodes[1].content.read(digest_of(&bytes)).await.expect("whole"), &bytes[..]);
    let rest = (bytes.len() - 6 * GROUP_BYTES) as u64;
    let served = async {
        while nodes[0].content.numbers().served == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, served).await.expect("its end is counted");
    assert_eq!(nodes[0].content.numbers().served_bytes, rest, "no group comes twice");
    assert_eq!(nodes[2].asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_same_holder_is_asked_again_for_the_rest_when_there_is_no_other() {
    let bytes = module(3 * GROUP_BYTES);
    let whole = Arc::new(bytes.clone());
    let a_group_at_a_time = Conduct::Sends { outlined: whole.clone(), sent: whole, limit: GROUP_BYTES + 1 };
    let nodes = cluster(&[a_group_at_a_time, Conduct::Honest], &[]);
    fetch(&nodes[1], &bytes, &keys(&nodes)).await.expect("three rounds of a group each");
    assert_eq!(nodes[0].asked.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_silent_holder_is_left_for_the_next() {
    let bytes = module(100);
    let nodes = cluster(&[Conduct::Honest, Conduct::Honest, Conduct::Silent], &[digest_of(&bytes)]);
    put(&nodes[0], &bytes).await;
    nodes[1].mesh.connect(nodes[2].key, vec![nodes[2].addr]).await.expect("up");
    fetch(&nodes[1], &bytes, &keys(&nodes)).await.expect("the other has it");
    assert_eq!(nodes[2].asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_no_seed_names_leaves_no_node_and_strangers_get_nothing() {
    let (named, unnamed) = (module(10), module(11));
    let nodes = cluster(&[Conduct::Honest, Conduct::Honest], &[digest_of(&named)]);
    put(&nodes[0], &named).await;
    put(&nodes[0], &unnamed).await;
    assert!(fetch(&nodes[1], &unnamed, &keys(&nodes)).await.is_err());
    // The holder's view has nobody but itself.
    let alone = ViewBuilder::new(nodes[0].key).node(nodes[0].key, None).seed(nodes[0].key, digest_of(&named));
    nodes[0].view.send_replace(alone.build());
    assert!(fetch(&nodes[1], &named, &keys(&nodes)).await.is_err());
    assert_eq!(nodes[0].content.numbers().refused.get("denied_or_absent"), Some(&2));
    assert_eq!(nodes[0].content.numbers().served, 0);
}

#[tokio::test]
async fn a_claimed_size_over_the_limit_and_a_missing_holder_are_refused_at_once() {
    let nodes = cluster(&[Conduct::Honest], &[]);
    let huge = Wanted { digest: Digest([1; 32]), size_bytes: u64::MAX };
    let refused = nodes[0].content.fetch(huge, &[]).await;
    assert!(matches!(refused, Err(FetchError::TooLarge { .. })));
    // Nobody but this node itself.
    assert!(matches!(fetch(&nodes[0], &module(5), &keys(&nodes)).await, Err(FetchError::NoHolder)));
}

#[tokio::test]
async fn garbage_is_answered_by_a_reason() {
    let nodes = cluster(&[Conduct::Honest, Conduct::Honest], &[]);
    let connection = nodes[1].mesh.connect(nodes[0].key, vec![nodes[0].addr]).await.expect("up");
    for (garbage, denial) in [
        (&[0xff, 0xff][..], Denial::Malformed),
        (&[0, 1, 0], Denial::Malformed),
        (&[0, 3, 0xa1, 0, 9], Denial::Version),
        (&[0, 9, 1], Denial::Malformed),
    ] {
        let (mut send, mut recv) = open_stream(&connection, StreamKind::Content).await.expect("a stream");
        send.write_all(garbage).await.expect("room");
        send.finish().expect("open");
        let answer = tokio::time::timeout(SOON, recv.read_to_end(10)).await.expect("in time").expect("an answer");
        assert_eq!(answer, encode_answer(Err(denial)), "{garbage:?}");
    }
}
