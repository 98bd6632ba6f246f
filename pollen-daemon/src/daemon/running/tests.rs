//! A node alone, with its real driver, store and services, whose askers go away.

use bytes::Bytes;
use futures_util::FutureExt as _;
use pollen_common::identity::{NodeKey, Strict};
use pollen_common::node::{Node, NodeConfig};
use pollen_common::views::Policy;
use tokio::sync::mpsc;

use super::*;
use crate::clock::Clock;
use crate::driver::{Driver, Parts, views_of};
use crate::handle::SeedStage;
use crate::transport::MeshConfig;
use crate::workload::SeedRef;
use crate::workload::replicas::{REPORTS_WAITING_MAX, StartError};
use crate::{enroll, keys, store};

const EVENTS_WAITING_MAX: usize = 16;

fn running(dir: &std::path::Path) -> Running {
    let store = store::open_or_create(dir).expect("ours");
    enroll::found_in(&store, &std::collections::BTreeMap::new()).expect("a cluster");
    let secret = keys::load_node(dir).expect("readable").expect("made with the cluster");
    let clock = Clock::default();
    let config = NodeConfig::new(secret.clone(), [7; 32], Arc::new(Strict));
    let node = Node::restore(config, store.node_records().expect("readable"), clock.now()).expect("a node");
    let (view, views) = views_of(&node);
    let services = Services::new(views.clone());
    let content = Content::open(dir, views.clone()).expect("a directory of its own");
    let machine = Machine::of_node(dir, &secret);
    let calls = Calls::new(views, services.clone(), machine.limits());
    let (happens, mesh_events) = mpsc::channel(EVENTS_WAITING_MAX);
    let mesh = Mesh::start(MeshConfig::new(secret, 0), happens, Arc::new(services.clone())).expect("any port");
    services.start(Arc::new(mesh.clone()), mesh.runtime().clone(), &ServicesConfig::default());
    content.start(mesh.clone());
    let hosted = Hosted::default();
    calls.start(Arc::new(mesh.clone()), Arc::new(hosted.clone()));
    let (reports, reported) = mpsc::channel(REPORTS_WAITING_MAX);
    let replicas = Replicas::new(content.clone(), machine.clone(), hosted.clone(), reports);
    let (written, acks) = mpsc::unbounded_channel();
    let (writer, _) = Writer::start(store, written);
    let events = Events::default();
    let parts = Parts {
        node,
        clock,
        links: mesh.clone(),
        hosting: Box::new(replicas.clone()),
        reports: reported,
        writer: writer.clone(),
        written: acks,
        events: events.clone(),
    };
    let (driver, handle) = Driver::new(parts, view);
    tokio::spawn(driver.run(mesh_events));
    let logs = Logs::of_nothing(dir).expect("a log");
    let settings = Settings::default();
    Running::new(Wiring {
        dir: dir.to_owned(),
        port: 0,
        settings,
        driver: handle,
        mesh,
        services,
        content,
        machine,
        hosted,
        replicas,
        calls,
        events,
        logs,
        writer,
    })
}

fn serve(name: Option<&str>, port: u16) -> Serve {
    Serve {
        port,
        name: name.map(|name| name.parse().expect("a name")),
        protocol: Protocol::Tcp,
        shared: false,
        server: crate::services::Server::Here,
        policy: None,
    }
}

fn reference(service: &str) -> ServiceRef {
    service.parse().expect("a name or a port")
}

#[tokio::test]
async fn a_request_that_is_dropped_half_way_is_carried_through() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let node = running(temp.path());
    assert!(node.serve(serve(Some("api"), 80)).now_or_never().is_none(), "it waits for the disk");
    // The next change waits for the one that nobody waits for.
    node.serve(serve(Some("db"), 81)).await.expect("published");
    let served: Vec<String> = node.parts.services.exports().iter().map(Export::label).collect();
    assert_eq!(served, ["api", "db"]);
    let published: Vec<String> = node.view().services.keys().map(ToString::to_string).collect();
    assert_eq!(published, served);

    assert!(node.unserve(reference("api")).now_or_never().is_none(), "it waits for the disk");
    node.unserve(reference("db")).await.expect("withdrawn");
    assert!(node.parts.services.exports().is_empty() && node.view().services.is_empty());
}

#[tokio::test]
async fn what_is_published_and_not_configured_can_be_withdrawn() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let node = running(temp.path());
    for (request, by) in [(serve(Some("api"), 80), "api"), (serve(Some("api"), 80), "80"), (serve(None, 80), "80")] {
        let Serve { port, name, protocol, shared, .. } = request;
        let publish = Publish { name, protocol, port, shared, policy: Policy::default() };
        let published = node.parts.driver.command(Command::Serve(publish)).await;
        published.expect("nobody else claims it");
        node.unserve(reference(by)).await.expect("the core had it");
        assert!(node.view().services.is_empty() && node.view().unnamed.is_empty());
        let again = node.unserve(reference(by)).await;
        assert_eq!(again.map_err(|refusal| refusal.kind), Err(RefusalKind::NotFound));
    }
}

fn seeding(wat: &str) -> SeedRequest {
    SeedRequest {
        name: "echo".parse().expect("a name"),
        module: wat::parse_str(wat).expect("a module").into(),
        min_replicas: 2,
        everywhere: false,
        memory_bytes: 8 << 20,
        timeout_ms: 30_000,
        idempotent: false,
        image: false,
        tail_calls: false,
    }
}

/// A node that offers what its machine has, as one that is up does.
async fn hosting(dir: &std::path::Path) -> Running {
    let node = running(dir);
    let capacity = node.parts.machine.capacity();
    node.parts.driver.command(Command::Offer { capacity }).await.expect("a member offers what it likes");
    node
}

async fn seed(node: &Running, wat: &str) -> Result<Seeded, Refusal> {
    node.seed(seeding(wat), watch::Sender::new(SeedProgress::at(SeedStage::Checking))).await
}

async fn echoed(node: &Running, input: &'static str) -> Result<CallAnswer, CallFailure> {
    let seed = SeedRef::Name("echo".parse().expect("a name"));
    let input = Bytes::from_static(input.as_bytes());
    let timeout = Duration::from_secs(20);
    node.call(CallRequest { seed, function: "echo".into(), input, timeout, retries: 3, waited: Duration::ZERO }).await
}

const ECHO: &str = include_str!("../../../../docs/examples/echo.wat");

#[tokio::test]
async fn a_seed_that_is_published_answers_until_it_is_withdrawn() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let node = hosting(temp.path()).await;
    let seeded = seed(&node, ECHO).await.expect("published");
    assert_eq!((seeded.ready, seeded.floor, seeded.note), (1, 1, None), "one node is all there is");
    let answer = echoed(&node, "hello").await.expect("served");
    assert_eq!((&answer.output[..], answer.version), (&b"hello"[..], seeded.version));
    assert_eq!(node.numbers().seeds.replicas.get("ready"), Some(&1));

    let unseeded = node.unseed("echo".parse().expect("a name")).await.expect("published");
    assert_eq!(unseeded, Unseeded::default());
    assert!(echoed(&node, "hello").await.is_err() && node.parts.hosted.list().is_empty());
}

#[tokio::test]
async fn a_new_version_alone_answers_once_it_is_published() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let node = hosting(temp.path()).await;
    let first = seed(&node, ECHO).await.expect("published");
    let open = ECHO.trim_end().strip_suffix(')').expect("a module ends so");
    let second = seed(&node, &format!("{open} (func (export \"more\")))")).await.expect("published");
    assert!(second.version != first.version && second.note.is_none());
    assert_eq!(echoed(&node, "hello").await.expect("served").version, second.version);
    let view = node.view();
    let announced: Vec<_> = view.seeds.values().flat_map(|seed| seed.replicas.keys()).collect();
    assert_eq!(announced, [&second.version]);
}

#[tokio::test]
async fn a_module_that_cannot_run_is_refused_by_name_and_nothing_is_published() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let node = hosting(temp.path()).await;
    let stranger = r#"(module (import "env" "teleport" (func)) (func (export "echo")))"#;
    let refused = seed(&node, stranger).await.expect_err("nobody offers that");
    assert!(refused.message.contains("teleport"), "{}", refused.message);
    assert!(node.view().seeds.is_empty() && node.parts.content.held().is_empty());
}

#[tokio::test]
async fn a_replica_whose_stored_module_was_changed_is_not_started_from_it() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let node = hosting(temp.path()).await;
    let seeded = seed(&node, ECHO).await.expect("published");
    let version = *node.view().seeds.values().next().expect("published").current();
    let stored = temp.path().join("content").join(seeded.module.to_string());
    std::fs::write(&stored, b"\0asm of another").expect("changed");
    let refused = node.parts.replicas.rehearse(&version).await;
    assert!(matches!(refused, Err(StartError::Fetch(_))), "it is fetched again, and nobody else has it");
    assert!(!stored.exists() && node.parts.content.numbers().damaged == 1);
}

#[tokio::test]
async fn the_memory_of_seeds_is_changed_where_the_mesh_reads_it_and_never_beyond_the_machines() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let node = hosting(temp.path()).await;
    let offered = || node.view().nodes[&node.view().me].capacity.expect("it offers something").memory_mib;
    let usual = offered();
    let set = async |seed_memory_mib| {
        node.put_in_force(crate::config::LiveSettings { seed_memory_mib, ..node.settings() }).await
    };
    set(Some(64)).await.expect("every machine has as much");
    assert_eq!(offered(), 64);
    let refused = set(Some(u32::MAX)).await.expect_err("no machine has as much");
    assert_eq!((refused.kind, offered()), (RefusalKind::Usage, 64), "{}", refused.message);
    assert_eq!(node.settings_now().seed_memory_mib, Some(64));
    set(None).await.expect("the default is always there");
    assert_eq!(offered(), usual);
}

#[tokio::test]
async fn a_name_gains_and_loses_a_protocol_and_keeps_the_other() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let node = running(temp.path());
    let dns = |protocol, port| Serve { protocol, ..serve(Some("dns"), port) };
    let ports = || {
        let view = node.view();
        let providers = view.services.values().flat_map(|service| &service.providers);
        providers.map(|provider| (provider.protocol, provider.port)).collect::<Vec<_>>()
    };
    let (tcp, udp) = ((Protocol::Tcp, 53), (Protocol::Udp, 5353));
    for served in [udp, tcp, udp] {
        node.serve(dns(served.0, served.1)).await.expect("nobody else claims it");
    }
    assert_eq!(ports(), [tcp, udp]);
    let mut config = node.parts.services.config();
    adopt(&mut config, &node.view());
    assert_eq!(config.exports, node.parts.services.config().exports, "nothing is left to adopt");

    node.unserve(reference("5353")).await.expect("served");
    assert_eq!(ports(), [tcp]);
    assert_eq!(node.parts.services.exports().len(), 1);
    node.serve(dns(udp.0, udp.1)).await.expect("still ours");
    assert_eq!(ports(), [tcp, udp]);
    node.unserve(reference("dns")).await.expect("served");
    assert!(ports().is_empty() && node.parts.services.exports().is_empty());
}

#[tokio::test]
async fn a_policy_stays_until_another_is_said_and_is_adopted_with_its_claim() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let node = running(temp.path());
    let named = Policy { peers: [NodeKey([7; 32])].into(), ..Policy::default() };
    let bounded = Serve { policy: Some(named.clone()), ..serve(Some("dns"), 53) };
    let udp = Serve { protocol: Protocol::Udp, ..serve(Some("dns"), 53) };
    let port = Serve { policy: Some(named.clone()), ..serve(None, 80) };
    for request in [bounded, udp, port] {
        assert_eq!(node.serve(request).await.expect("published").policy, named);
    }
    let policies = |view: &View| -> Vec<Policy> {
        let named = view.services.values().flat_map(|service| service.providers.iter().chain(&[]));
        named.chain(&view.unnamed).map(|provider| provider.policy.clone()).collect()
    };
    assert_eq!(policies(&node.view()), vec![named.clone(); 3]);

    // Its database is gone, or a crash came before the configuration: never served to more than before.
    let mut lost = ServicesConfig::default();
    adopt(&mut lost, &node.view());
    let exports: Vec<_> = lost.exports.iter().map(|entry| Export::try_from(entry).expect("written here")).collect();
    assert_eq!(exports.iter().map(|export| &export.policy).collect::<Vec<_>>(), vec![&named; 3]);
    let mut older = node.parts.services.config();
    older.exports.iter_mut().for_each(|export| export.policy = None);
    adopt(&mut older, &node.view());
    assert_eq!(older.exports, node.parts.services.config().exports);

    let open = Serve { policy: Some(Policy::default()), ..serve(Some("dns"), 53) };
    assert_eq!(node.serve(open).await.expect("published").policy, Policy::default());
    assert_eq!(policies(&node.view()), vec![Policy::default(), Policy::default(), named]);
    let most = (0..=64).map(|n| NodeKey([n; 32])).collect();
    let too_many = Serve { policy: Some(Policy { peers: most, ..Policy::default() }), ..serve(Some("dns"), 53) };
    assert_eq!(node.serve(too_many).await.map_err(|refusal| refusal.kind), Err(RefusalKind::Usage));
}
