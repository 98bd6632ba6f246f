//! UDP through the mesh: every size, every client its own replies, sessions that end.

use std::net::SocketAddr;
use std::time::Duration;

use pollen_common::views::Protocol;
use pollen_common::wire::streams::payload::PAYLOAD_BYTES_MAX;
use tokio::net::UdpSocket;

use super::cluster::{Cluster, SOON};

/// A server that sends every payload back. Returns its port.
async fn echo() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    crate::services::session::enlarge_buffers(&socket);
    let port = socket.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let mut bytes = vec![0; 1 << 16];
        while let Ok((length, client)) = socket.recv_from(&mut bytes).await {
            let _ = socket.send_to(&bytes[..length], client).await;
        }
    });
    port
}

async fn client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    crate::services::session::enlarge_buffers(&socket);
    socket.connect(to).await.expect("loopback");
    socket
}

/// Sends `payload` until its echo comes: UDP may lose it. Anything else that comes is a reply of somebody else.
async fn exchange(socket: &UdpSocket, payload: &[u8]) {
    let mut bytes = vec![0; 1 << 16];
    let patience = async {
        loop {
            socket.send(payload).await.expect("loopback");
            if let Ok(length) = tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut bytes)).await {
                return length.expect("no refusal");
            }
        }
    };
    let length = tokio::time::timeout(SOON, patience).await.expect("in time");
    assert!(bytes[..length] == *payload, "{} bytes came back for {}", length, payload.len());
}

#[tokio::test]
async fn fifty_clients_each_get_exactly_their_own_replies_of_every_size() {
    let cluster = Cluster::start(2);
    let addr = cluster.serve_and_connect("echo", Protocol::Udp, echo().await);
    let clients = (0..50usize).map(|index| async move {
        let socket = client(addr).await;
        let sizes = [1, 0, 100, 1180, 1400, 1500, 9000, 65_000, PAYLOAD_BYTES_MAX - index, PAYLOAD_BYTES_MAX];
        for size in sizes {
            let payload: Vec<u8> = (0..size).map(|at| (at * 7 + index).to_le_bytes()[0]).collect();
            exchange(&socket, &payload).await;
        }
        // Whatever was sent twice has come back twice, and nothing else has come.
        let mut bytes = vec![0; 1 << 16];
        while let Ok(Ok(length)) = tokio::time::timeout(Duration::from_millis(100), socket.recv(&mut bytes)).await {
            let own = (0..length).all(|at| bytes[at] == (at * 7 + index).to_le_bytes()[0]);
            assert!(own, "client {index} got somebody else's reply");
        }
    });
    futures_util::future::join_all(clients).await;
    assert_eq!(cluster.0[1].services.numbers().sessions_open, 50);
    assert_eq!(cluster.0[0].services.numbers().sessions, 50);
}

#[tokio::test]
async fn a_session_ends_when_it_is_idle_and_a_later_payload_opens_another() {
    let cluster = Cluster::start_with(2, Duration::from_millis(300));
    let addr = cluster.serve_and_connect("echo", Protocol::Udp, echo().await);
    let socket = client(addr).await;
    for times in 1..=2 {
        exchange(&socket, b"hello").await;
        assert!(cluster.0[1].services.numbers().sessions >= times);
        for node in &cluster.0 {
            node.until("the session is over", |services| services.numbers().sessions_open == 0).await;
        }
    }
}

#[tokio::test]
async fn a_dead_server_is_passed_over_before_anything_is_lost() {
    let cluster = Cluster::start(3);
    let (first, second) = (cluster.key(0), cluster.key(1));
    let port = echo().await;
    let dead = UdpSocket::bind("127.0.0.1:0").await.expect("loopback").local_addr().expect("bound").port();
    cluster.0[0].serve(Some("dns"), Protocol::Udp, dead);
    cluster.0[1].serve(Some("dns"), Protocol::Udp, port);
    cluster.publish(|view| view.service("dns", Protocol::Udp, &[(first, dead), (second, port)]));
    let addr = cluster.0[2].connect("dns");
    for _ in 0..10 {
        // One payload, no second try.
        let socket = client(addr).await;
        socket.send(b"question").await.expect("loopback");
        let mut bytes = [0; 16];
        let length = tokio::time::timeout(SOON, socket.recv(&mut bytes)).await.expect("in time").expect("no refusal");
        assert_eq!(&bytes[..length], b"question");
    }
}

#[tokio::test]
async fn a_provider_on_the_same_node_serves_udp_without_the_mesh() {
    let cluster = Cluster::start(1);
    let port = echo().await;
    let me = cluster.key(0);
    cluster.0[0].serve(Some("echo"), Protocol::Udp, port);
    cluster.publish(|view| view.service("echo", Protocol::Udp, &[(me, port)]));
    let socket = client(cluster.0[0].connect("echo")).await;
    for size in [0, 1, 1000, PAYLOAD_BYTES_MAX] {
        exchange(&socket, &vec![3; size]).await;
    }
}
