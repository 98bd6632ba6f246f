//! The driver around a real node and a real store, with links that only record what they are told.

use std::path::Path;
use std::thread::JoinHandle;

use pollen_common::identity::{NodeKey, SecretKey, Strict};
use pollen_common::node::{InviteTerms, NodeConfig};
use pollen_common::roll::{Rights, Tier};
use pollen_common::views::{Name, Protocol, SeedVersion, VersionId};

use super::*;
use crate::{enroll, keys, store};

#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<Vec<String>>>);

impl Recorded {
    fn note(&self, what: String) {
        self.0.lock().expect("no test panics while it holds this").push(what);
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().expect("no test panics while it holds this").clone()
    }
}

impl Links for Recorded {
    fn dial(&self, peer: NodeKey, _: Vec<SocketAddr>) {
        self.note(format!("dial {}", peer.short()));
    }
    fn send(&self, link: LinkId, bytes: Vec<u8>) {
        assert!(!bytes.is_empty());
        self.note(format!("send on {}", link.0));
    }
    fn send_datagram(&self, link: LinkId, _: Vec<u8>) {
        self.note(format!("datagram on {}", link.0));
    }
    fn silent(&self, link: LinkId, _: Vec<SocketAddr>) {
        self.note(format!("silent {}", link.0));
    }
    fn heard(&self, link: LinkId) {
        self.note(format!("heard {}", link.0));
    }
    fn close(&self, link: LinkId, _: String) {
        self.note(format!("close {}", link.0));
    }
}

struct Rig {
    handle: DriverHandle,
    links: Recorded,
    happens: mpsc::Sender<Input>,
    driver: tokio::task::JoinHandle<Result<(), DriverError>>,
    writer: Writer,
    writer_thread: JoinHandle<()>,
}

fn node_in(dir: &Path) -> (Node, store::Store, Clock) {
    let store = store::open_or_create(dir).expect("ours");
    enroll::found_in(&store, &BTreeMap::new()).expect("a cluster");
    let secret = keys::load_node(dir).expect("readable").expect("made with the cluster");
    let clock = Clock::default();
    let config = NodeConfig::new(secret, [7; 32], Arc::new(Strict));
    let node = Node::restore(config, store.node_records().expect("readable"), clock.now()).expect("a node");
    (node, store, clock)
}

struct HostsNothing;

impl Hosting for HostsNothing {
    fn start(&self, _: SeedVersion, name: Name, _: Vec<NodeKey>) {
        panic!("nobody publishes {name}");
    }

    fn stop(&self, _: VersionId) {
        panic!("nothing was started");
    }
}

fn rig(dir: &Path) -> Rig {
    rig_of(node_in(dir))
}

fn rig_of((node, store, clock): (Node, store::Store, Clock)) -> Rig {
    let (view, _) = views_of(&node);
    let (written, acks) = mpsc::unbounded_channel();
    let (writer, writer_thread) = Writer::start(store, written);
    let links = Recorded::default();
    let (_, reports) = mpsc::channel(1);
    let parts = Parts {
        node,
        clock,
        links: links.clone(),
        hosting: Box::new(HostsNothing),
        reports,
        writer: writer.clone(),
        written: acks,
        events: Events::default(),
    };
    let (driver, handle) = Driver::new(parts, view);
    let (happens, mesh) = mpsc::channel(4);
    let driver = tokio::spawn(driver.run(mesh));
    Rig { handle, links, happens, driver, writer, writer_thread }
}

fn serve(name: &str) -> Command {
    let name = Some(name.parse().expect("a name"));
    let policy = pollen_common::views::Policy::default();
    Command::Serve(pollen_common::node::Publish { name, protocol: Protocol::Tcp, port: 80, shared: false, policy })
}

#[tokio::test]
async fn whoever_gets_an_answer_sees_its_effect_in_the_view_and_on_disk() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let rig = rig(temp.path());
    assert_eq!(rig.handle.command(serve("api")).await, Ok(Reply::Done));
    let name = "api".parse().expect("a name");
    assert!(rig.handle.view().services.contains_key(&name), "answered before the view showed it");
    // Nothing more is written: what is there now was there when the answer came.
    rig.driver.abort();
    rig.writer.stop();
    rig.writer_thread.join().expect("the writer does not panic");
    let (again, ..) = node_in(temp.path());
    assert!(again.view().services.contains_key(&name), "answered before it was on disk");
}

#[tokio::test]
async fn each_asker_gets_its_own_answer() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let rig = rig(temp.path());
    let not_after = crate::clock::unix_now().after(std::time::Duration::from_secs(60));
    let terms = InviteTerms { rights: Rights::of(Tier::Leaf), subject: None, not_after };
    let unserve = Command::Unserve { name: None, protocol: Protocol::Tcp, port: 9 };
    let (invited, refused) = tokio::join!(rig.handle.command(Command::Invite { terms }), rig.handle.command(unserve));
    assert!(matches!(invited, Ok(Reply::Token(token)) if !token.is_empty()));
    assert_eq!(refused.map_err(|refusal| refusal.kind), Err(RefusalKind::NotFound));
    let why = rig.handle.why(Target::Node(rig.handle.view().me)).await;
    assert!(why.is_ok_and(|reasons| !reasons.is_empty()));
}

#[tokio::test]
async fn a_new_link_is_spoken_to() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let rig = rig(temp.path());
    let peer = SecretKey::from_seed(&[9; 32]).public();
    rig.happens
        .send(Input::LinkUp { link: LinkId(3), peer, dialed: true, remote: None })
        .await
        .expect("the driver listens");
    while rig.links.all().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(rig.links.all().contains(&"send on 3".to_owned()), "{:?}", rig.links.all());
}

#[tokio::test]
async fn it_stops_when_asked_and_says_so_to_later_askers() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let rig = rig(temp.path());
    rig.handle.stop().await;
    rig.driver.await.expect("the driver does not panic").expect("a stop is no failure");
    let refused = rig.handle.command(serve("late")).await;
    assert_eq!(refused.map_err(|refusal| refusal.kind), Err(RefusalKind::Unreachable));
}

#[tokio::test]
async fn a_full_disk_refuses_what_must_be_durable_and_the_node_goes_on_until_there_is_room() {
    let temp = tempfile::tempdir().expect("temporary directory");
    drop(node_in(temp.path()));
    let disk = store::failing::Disk::default();
    let store = store::failing::open(temp.path(), &disk).expect("sound");
    let secret = keys::load_node(temp.path()).expect("readable").expect("made with the cluster");
    let clock = Clock::default();
    let config = NodeConfig::new(secret, [7; 32], Arc::new(Strict));
    let node = Node::restore(config, store.node_records().expect("readable"), clock.now()).expect("a node");
    let rig = rig_of((node, store, clock));
    assert_eq!(rig.handle.command(serve("before")).await, Ok(Reply::Done));

    disk.fails_with(libc::ENOSPC);
    for name in ["first", "second"] {
        let refused = rig.handle.command(serve(name)).await.expect_err("there is no room for it");
        assert!(refused.message.contains("the disk with this node's state is full"), "{refused:?}");
        let name = name.parse().expect("a name");
        assert!(!rig.handle.view().services.contains_key(&name), "published what is not on disk");
    }
    let me = rig.handle.view().me;
    assert!(rig.handle.why(Target::Node(me)).await.is_ok(), "the node stopped");

    disk.is_fine();
    let mut health = rig.writer.health();
    health.wait_for(|health| *health == DiskHealth::Fine).await.expect("the writer lives");
    assert_eq!(rig.handle.command(serve("after")).await, Ok(Reply::Done));
    rig.handle.stop().await;
    rig.driver.await.expect("the driver does not panic").expect("a stop is no failure");
    rig.writer.stop();
    rig.writer_thread.join().expect("the writer does not panic");
    let (again, ..) = node_in(temp.path());
    for name in ["before", "after"] {
        assert!(again.view().services.contains_key(&name.parse().expect("a name")), "lost {name}");
    }
}

#[tokio::test]
async fn a_node_stops_when_asked_though_its_disk_is_full() {
    let temp = tempfile::tempdir().expect("temporary directory");
    drop(node_in(temp.path()));
    let disk = store::failing::Disk::default();
    let store = store::failing::open(temp.path(), &disk).expect("sound");
    disk.fails_with(libc::EROFS);
    let (written, mut answers) = mpsc::unbounded_channel();
    let (writer, thread) = Writer::start(store, written);
    writer.persist(pollen_common::node::PersistId(1), Vec::new());
    assert!(matches!(answers.recv().await, Some(Written::Refused)));
    let refused = writer.configure(store::Change::set("port", &7)).await.expect_err("nothing is written");
    assert!(refused.to_string().contains("read-only"), "{refused}");
    writer.stop();
    thread.join().expect("the writer does not panic");
}
