//! Who reaches a service and who does not: strangers, the denied, the malformed.

use std::time::Duration;

use pollen_common::views::Protocol;
use pollen_common::wire::streams::service::{Header, Target};
use quinn::Connection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::cluster::{Cluster, SOON, echo, expect_reset, expect_reset_at};
use crate::services::ServiceRef;

/// An open stream that has carried a byte each way.
async fn open(addr: std::net::SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(addr).await.expect("a listener");
    tcp.write_all(b"a").await.expect("open");
    tcp.read_exact(&mut [0; 1]).await.expect("an answer");
    tcp
}

#[tokio::test]
async fn unserve_cuts_its_streams_and_no_others() {
    let cluster = Cluster::start(2);
    let (one, two) = (echo().await, echo().await);
    let provider = cluster.key(0);
    cluster.0[0].serve(Some("one"), Protocol::Tcp, one);
    cluster.0[0].serve(Some("two"), Protocol::Tcp, two);
    cluster.publish(|view| {
        view.service("one", Protocol::Tcp, &[(provider, one)]).service("two", Protocol::Tcp, &[(provider, two)])
    });
    let (addr_one, addr_two) = (cluster.0[1].connect("one"), cluster.0[1].connect("two"));
    let (cut, mut kept) = (open(addr_one).await, open(addr_two).await);
    let gone = cluster.0[0].services.unserve(&ServiceRef::Name("one".parse().expect("a name")));
    assert_eq!(gone.len(), 1);
    expect_reset(cut).await;
    kept.write_all(b"b").await.expect("open");
    kept.read_exact(&mut [0; 1]).await.expect("an answer");
    expect_reset_at(addr_one).await;
    assert_eq!(cluster.0[0].services.refusals().get("absent"), Some(&1));
    assert!(cluster.0[0].services.numbers().bytes_in > 0, "what a withdrawn service carried still counts");
}

#[tokio::test]
async fn who_is_denied_is_cut_off_at_once_and_refused_from_then_on() {
    let cluster = Cluster::start(2);
    let port = echo().await;
    let addr = cluster.serve_and_connect("api", Protocol::Tcp, port);
    let (provider, caller) = (cluster.key(0), cluster.key(1));
    let live = open(addr).await;
    // Only the provider knows so far.
    let denied = crate::services::tests::view::ViewBuilder::new(provider)
        .node(provider, None)
        .service("api", Protocol::Tcp, &[(provider, port)])
        .without(caller)
        .build();
    cluster.0[0].view.send_replace(denied);
    expect_reset(live).await;
    expect_reset_at(addr).await;
    assert_eq!(cluster.0[0].services.refusals().get("stranger"), Some(&1));
}

#[tokio::test]
async fn a_caller_whose_admission_is_on_the_way_is_let_in() {
    let cluster = Cluster::start(2);
    let port = echo().await;
    let addr = cluster.serve_and_connect("api", Protocol::Tcp, port);
    let known = cluster.0[0].view.borrow().clone();
    let before = crate::services::tests::view::ViewBuilder::new(known.me).node(known.me, None).build();
    cluster.0[0].view.send_replace(before);
    let opening = tokio::spawn(open(addr));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!opening.is_finished());
    cluster.0[0].view.send_replace(known);
    tokio::time::timeout(SOON, opening).await.expect("in time").expect("let in");
}

/// What a provider answers to the bytes of a stream.
async fn answer(connection: &Connection, bytes: &[u8]) -> Vec<u8> {
    let (mut send, mut recv) = connection.open_bi().await.expect("connected");
    // The provider may refuse before all is written.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    tokio::time::timeout(SOON, recv.read_to_end(16)).await.expect("in time").unwrap_or_default()
}

#[tokio::test]
async fn malformed_headers_are_refused_counted_and_harm_nobody() {
    let cluster = Cluster::start(2);
    let port = echo().await;
    let addr = cluster.serve_and_connect("api", Protocol::Tcp, port);
    let provider = &cluster.0[0];
    let at = cluster.0[1].view.borrow().nodes[&provider.key].addrs.clone();
    let connection = cluster.0[1].mesh.connect(provider.key, at).await.expect("reachable");
    let good = Header { target: Target::Name("api".parse().expect("a name")), protocol: Protocol::Tcp, hops: 0 };
    let mut udp_header_on_tcp = Header { protocol: Protocol::Udp, ..good.clone() }.opening();
    udp_header_on_tcp[0] = 2;
    let malformed: [&[u8]; 6] = [
        &[2],
        &[2, 0],
        &[2, 0xff, 0xff, 1, 2, 3],
        &[2, 0, 4, 0xa1, 0, 1],
        &[3, 0, 3, 0xff, 0xff, 0xff],
        &udp_header_on_tcp,
    ];
    for bytes in malformed {
        assert_eq!(answer(&connection, bytes).await, [1, 4], "{bytes:?}");
    }
    assert_eq!(answer(&connection, &[2, 0, 3, 0xa1, 0, 2]).await, [1, 5], "a later version");
    let absent = Header { target: Target::Port(1), protocol: Protocol::Tcp, hops: 0 };
    assert_eq!(answer(&connection, &absent.opening()).await, [1, 1]);
    let mut early = good.opening();
    early.extend_from_slice(b"early");
    assert_eq!(answer(&connection, &early).await, b"\0early", "data may follow the header at once");
    let refusals = provider.services.refusals();
    assert_eq!(refusals.get("malformed_header"), Some(&5));
    assert_eq!(refusals.get("wrong_kind"), Some(&1));
    assert_eq!(refusals.get("unknown_version"), Some(&1));
    assert_eq!(refusals.get("absent"), Some(&1));
    drop(open(addr).await);
}
