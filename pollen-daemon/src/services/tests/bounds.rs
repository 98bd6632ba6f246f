//! Policies at the provider: who is let in, who is told what, and what becomes of streams that are open.

use std::time::Duration;

use pollen_common::identity::NodeKey;
use pollen_common::node::EventKind;
use pollen_common::roll::Tier;
use pollen_common::views::{Policy, Protocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::cluster::{Cluster, SOON, echo, expect_reset, expect_reset_at};
use super::view::ViewBuilder;
use crate::events::Events;

fn with_prop() -> Policy {
    Policy { props: [("env".into(), "prod".into())].into(), ..Policy::default() }
}

async fn echoed(tcp: &mut TcpStream) {
    tcp.write_all(b"a").await.expect("open");
    let mut back = [0; 1];
    tokio::time::timeout(SOON, tcp.read_exact(&mut back)).await.expect("in time").expect("an answer");
}

async fn open(addr: std::net::SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(addr).await.expect("a listener");
    echoed(&mut tcp).await;
    tcp
}

/// Gives every node the same view, in which `caller` is what it is said to be.
fn caller_is(cluster: &Cluster, port: u16, protocol: Protocol, tier: Tier, props: &[(&str, &str)]) {
    let (provider, caller) = (cluster.key(0), cluster.key(1));
    cluster.publish(|view| view.service("api", protocol, &[(provider, port)]).rights(caller, tier, props));
}

#[tokio::test]
async fn a_property_lets_in_and_its_loss_cuts_what_is_open() {
    let cluster = Cluster::start(2);
    let events = Events::default();
    let (provider, port) = (&cluster.0[0], echo().await);
    provider.services.tell(events.clone());
    provider.serve_to(Some("api"), Protocol::Tcp, port, Some(with_prop()));
    let is = |tier, props: &[(&str, &str)]| caller_is(&cluster, port, Protocol::Tcp, tier, props);
    is(Tier::Leaf, &[("env", "prod")]);
    let addr = cluster.0[1].connect("api");
    let mut live = open(addr).await;
    is(Tier::Leaf, &[("env", "prod"), ("more", "x")]);
    echoed(&mut live).await;

    is(Tier::Admin, &[("env", "dev")]);
    expect_reset(live).await;
    expect_reset_at(addr).await;
    let refused = provider.services.refusals();
    assert!(refused.get("policy_property").is_some_and(|count| *count >= 2), "{refused:?}");
    let told: Vec<_> = events.last(10).into_iter().map(|record| (record.event.kind, record.event.message)).collect();
    assert_eq!(told.len(), 1, "once, however often it tries: {told:?}");
    assert!(told[0].0 == EventKind::Refused && told[0].1.contains("env=dev"), "{told:?}");
    let why = provider.services.why(&"api".parse().expect("a name"));
    assert!(why[0].contains("members with env=prod"), "{why:?}");
    assert!(why[1].contains("refused to") && why[1].contains("it has env=dev"), "{why:?}");
    let callers = cluster.0[1].services.why(&"api".parse().expect("a name")).join("; ");
    assert!(callers.contains("denied or absent") && !callers.contains("env"), "the caller learns no more: {callers}");

    is(Tier::Leaf, &[("env", "prod")]);
    drop(open(addr).await);
}

#[tokio::test]
async fn a_name_stands_in_for_the_tier_and_a_new_policy_cuts_whom_it_leaves_out() {
    let cluster = Cluster::start(3);
    let (provider, port) = (&cluster.0[0], echo().await);
    let policy = Policy { peers: [cluster.key(1)].into(), tier: Some(Tier::Admin), ..Policy::default() };
    provider.serve_to(Some("api"), Protocol::Tcp, port, Some(policy));
    let owner = cluster.key(0);
    let say = |view: ViewBuilder| {
        view.service("api", Protocol::Tcp, &[(owner, port)]).rights(cluster.key(1), Tier::Leaf, &[])
    };
    cluster.publish(say);
    let (named, other) = (cluster.0[1].connect("api"), cluster.0[2].connect("api"));
    let mut live = open(named).await;
    expect_reset_at(other).await;
    assert_eq!(provider.services.refusals().get("policy_tier"), Some(&1));
    cluster.publish(|view| say(view).rights(cluster.key(2), Tier::Admin, &[]));
    let admins = open(other).await;

    // Said again without clauses it stays as it is; with others, whoever is left out is cut off.
    provider.serve(Some("api"), Protocol::Tcp, port);
    echoed(&mut live).await;
    let only = Policy { peers: [cluster.key(1)].into(), ..Policy::default() };
    provider.serve_to(Some("api"), Protocol::Tcp, port, Some(only));
    expect_reset(admins).await;
    expect_reset_at(other).await;
    echoed(&mut live).await;
    assert!(provider.services.refusals().get("policy_peer").is_some_and(|count| *count >= 2));
    provider.serve_to(Some("api"), Protocol::Tcp, port, Some(Policy::default()));
    drop(open(other).await);
}

#[tokio::test]
async fn one_who_provides_anothers_name_keeps_out_whom_the_owner_keeps_out() {
    let cluster = Cluster::start(3);
    let port = echo().await;
    let (owner, provider, caller) = (cluster.key(0), cluster.key(1), cluster.key(2));
    cluster.0[1].serve(Some("api"), Protocol::Tcp, port);
    let say = |view: ViewBuilder| {
        view.service("api", Protocol::Tcp, &[(owner, 1)]).also("api", Protocol::Tcp, provider, port).offline(owner)
    };
    cluster.publish(|view| say(view).bounded("api", with_prop()).rights(caller, Tier::Leaf, &[("env", "prod")]));
    let addr = cluster.0[2].connect("api");
    let live = open(addr).await;
    cluster.publish(|view| say(view).bounded("api", with_prop()));
    expect_reset(live).await;
    expect_reset_at(addr).await;
    cluster.publish(say);
    drop(open(addr).await);
}

#[tokio::test]
async fn datagrams_are_bounded_as_streams_are() {
    let cluster = Cluster::start(2);
    let server = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let port = server.local_addr().expect("bound").port();
    let heard = tokio::spawn(async move {
        let mut bytes = [0; 64];
        let mut heard = Vec::new();
        while let Ok((length, client)) = server.recv_from(&mut bytes).await {
            heard.push(bytes[..length].to_vec());
            let _ = server.send_to(&bytes[..length], client).await;
            if heard.last().is_some_and(|last| last == b"end") {
                break;
            }
        }
        heard
    });
    cluster.0[0].serve_to(Some("api"), Protocol::Udp, port, Some(with_prop()));
    let is = |props: &[(&str, &str)]| caller_is(&cluster, port, Protocol::Udp, Tier::Leaf, props);
    is(&[("env", "prod")]);
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    client.connect(cluster.0[1].connect("api")).await.expect("loopback");
    let exchange = async |payload: &[u8]| {
        client.send(payload).await.expect("loopback");
        let mut bytes = [0; 64];
        tokio::time::timeout(SOON, client.recv(&mut bytes)).await.expect("in time").expect("a reply")
    };
    exchange(b"first").await;
    is(&[]);
    cluster.0[0].until("its session is cut", |services| services.numbers().sessions_open == 0).await;
    client.send(b"kept out").await.expect("loopback");
    let refused = |services: &crate::services::Services| {
        services.refusals().get("policy_property").is_some_and(|count| *count >= 2)
    };
    cluster.0[0].until("the new session is refused", refused).await;
    is(&[("env", "prod")]);
    // A provider that refused stands back for a while at the caller.
    let end = async {
        loop {
            client.send(b"end").await.expect("loopback");
            if tokio::time::timeout(Duration::from_millis(200), client.recv(&mut [0; 64])).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, end).await.expect("let in again");
    let heard = heard.await.expect("it ends");
    assert!(!heard.iter().any(|payload| payload == b"kept out"), "{heard:?}");
}

#[tokio::test]
async fn a_port_without_a_name_has_a_policy_too_and_its_own_node_is_never_kept_out() {
    let cluster = Cluster::start(2);
    let (provider, port) = (cluster.key(0), echo().await);
    let nobody = Policy { peers: [NodeKey([9; 32])].into(), ..Policy::default() };
    cluster.0[0].serve_to(None, Protocol::Tcp, port, Some(nobody));
    cluster.publish(|view| view.unnamed(provider, Protocol::Tcp, port));
    let connect = |node: usize| {
        let request = crate::services::Connect {
            service: crate::services::ServiceRef::Port(port),
            provider: Some(provider.to_string()),
            bind: None,
            local_port: Some(0),
        };
        cluster.0[node].services.connect(&request).expect("known")[0].local[0]
    };
    expect_reset_at(connect(1)).await;
    assert_eq!(cluster.0[0].services.refusals().get("policy_peer"), Some(&1));
    drop(open(connect(0)).await);
}
