//! Services that are connected to themselves, and listeners at other addresses than this machine's loopback.

use std::net::{IpAddr, SocketAddr};

use pollen_common::views::Protocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::cluster::{Cluster, SOON, expect_reset_at};
use crate::services::ConnectError;
use crate::services::{Connect, ServiceRef};

fn named(name: &str) -> ServiceRef {
    ServiceRef::Name(name.parse().expect("a name"))
}

/// A port whose server answers `A` to each client.
async fn server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let _ = tcp.write_all(b"A").await;
        }
    });
    port
}

#[tokio::test]
async fn a_service_that_is_its_own_server_refuses_its_callers() {
    let cluster = Cluster::start(2);
    let node = cluster.key(0);
    cluster.publish(|view| view.service("own", Protocol::Tcp, &[(node, 1)]));
    let at = cluster.0[0].connect("own");
    cluster.0[0].serve(Some("own"), Protocol::Tcp, at.port());
    cluster.publish(|view| view.service("own", Protocol::Tcp, &[(node, at.port())]));

    expect_reset_at(at).await;
    expect_reset_at(cluster.0[1].connect("own")).await;
    let services = &cluster.0[0].services;
    assert_eq!(services.numbers().streams, 0, "no stream was opened");
    assert_eq!(services.refusals().get("circle"), Some(&1));
    assert!(services.why(&"own".parse().expect("a name")).iter().any(|why| why.contains("leads back to itself")));
    assert!(
        services.unheard(Protocol::Tcp, at.port()).is_some_and(|told| told.contains("a listener of this node's own"))
    );
}

#[tokio::test]
async fn a_circle_over_two_nodes_ends_after_a_few_rounds() {
    let cluster = Cluster::start(2);
    let (a, b) = (cluster.key(0), cluster.key(1));
    cluster.publish(|view| view.service("x", Protocol::Tcp, &[(a, 1)]).service("y", Protocol::Tcp, &[(b, 1)]));
    let (at_a, at_b) = (cluster.0[0].connect("y"), cluster.0[1].connect("x"));
    cluster.0[0].serve(Some("x"), Protocol::Tcp, at_a.port());
    cluster.0[1].serve(Some("y"), Protocol::Tcp, at_b.port());
    expect_reset_at(at_a).await;
    let streams: u64 = cluster.0.iter().map(|node| node.services.numbers().streams).sum();
    assert!((2..40).contains(&streams), "{streams}");
    let refused = |index: usize| cluster.0[index].services.refusals().get("circle").copied().unwrap_or_default();
    assert_eq!(refused(0) + refused(1), 1);
    for node in &cluster.0 {
        node.until("all is over", |services| services.numbers().streams_open == 0).await;
    }
}

#[tokio::test]
async fn a_service_of_another_node_is_served_on() {
    let cluster = Cluster::start(2);
    let (a, b) = (cluster.key(0), cluster.key(1));
    let port = server().await;
    cluster.0[0].serve(Some("first"), Protocol::Tcp, port);
    cluster.publish(|view| view.service("first", Protocol::Tcp, &[(a, port)]));
    let on = cluster.0[1].connect("first").port();
    cluster.0[1].serve(Some("second"), Protocol::Tcp, on);
    cluster.publish(|view| {
        view.service("first", Protocol::Tcp, &[(a, port)]).service("second", Protocol::Tcp, &[(b, on)])
    });
    let mut tcp = TcpStream::connect(cluster.0[0].connect("second")).await.expect("a listener");
    let mut said = [0];
    tokio::time::timeout(SOON, tcp.read_exact(&mut said)).await.expect("in time").expect("an answer");
    assert_eq!(&said, b"A");
}

#[tokio::test]
async fn a_listener_stands_where_it_is_told_and_not_where_the_service_itself_is() {
    let cluster = Cluster::start(2);
    let node = cluster.key(0);
    let port = server().await;
    cluster.0[0].serve(Some("api"), Protocol::Tcp, port);
    cluster.publish(|view| view.service("api", Protocol::Tcp, &[(node, port)]));

    let address: IpAddr = [127, 0, 0, 9].into();
    let request = Connect { service: named("api"), provider: None, bind: Some(address), local_port: Some(0) };
    let listener = cluster.0[1].services.connect(&request).expect("known");
    let [at]: [SocketAddr; 1] = listener[0].local.clone().try_into().expect("that address alone");
    assert_eq!(at.ip(), address);
    let mut tcp = TcpStream::connect(at).await.expect("a listener");
    assert_eq!(tcp.read_u8().await.expect("an answer"), b'A');
    let again = Connect { local_port: Some(at.port()), ..request };
    assert_eq!(cluster.0[1].services.connect(&again).expect("it is there"), listener);

    let own = Connect { service: named("api"), provider: None, bind: None, local_port: None };
    assert!(matches!(cluster.0[0].services.connect(&own), Err(ConnectError::Itself { .. })));
    let own = Connect { bind: Some(address), ..own };
    assert!(cluster.0[0].services.connect(&own).is_ok(), "an address that its server is not dialled at");
}

#[tokio::test]
async fn a_taken_port_is_told_by_whom() {
    let cluster = Cluster::start(2);
    let node = cluster.key(0);
    cluster
        .publish(|view| view.service("api", Protocol::Tcp, &[(node, 1)]).service("web", Protocol::Tcp, &[(node, 2)]));
    let port = cluster.0[1].connect("api").port();
    let request =
        |local_port| Connect { service: named("web"), provider: None, bind: None, local_port: Some(local_port) };
    let refused = cluster.0[1].services.connect(&request(port)).expect_err("taken");
    assert!(refused.to_string().contains("listener for api"), "{refused}");
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("free");
    let refused = cluster.0[1].services.connect(&request(other.local_addr().expect("bound").port()));
    assert!(matches!(refused, Err(ConnectError::Taken { .. })));
}

/// What a node has open to one service says nothing of another.
#[tokio::test]
async fn sessions_of_another_service_do_not_turn_connections_away() {
    let cluster = Cluster::start(3);
    let (a, b) = (cluster.key(0), cluster.key(1));
    let mut servers = Vec::new();
    for index in 0..2 {
        let port = server().await;
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
        cluster.0[index].serve(Some("api"), Protocol::Tcp, port);
        servers.push((port, udp));
    }
    let dns = servers[0].1.local_addr().expect("bound").port();
    cluster.0[0].serve(Some("dns"), Protocol::Udp, dns);
    cluster.publish(|view| {
        let view = view.service("api", Protocol::Tcp, &[(a, servers[0].0), (b, servers[1].0)]);
        view.service("dns", Protocol::Udp, &[(a, dns)])
    });
    let (api, dns) = (cluster.0[2].connect("api"), cluster.0[2].connect("dns"));
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    client.send_to(b"?", dns).await.expect("sent");
    tokio::time::timeout(SOON, servers[0].1.recv(&mut [0; 9])).await.expect("in time").expect("a datagram");
    for _ in 0..60 {
        let mut tcp = TcpStream::connect(api).await.expect("a listener");
        let mut said = Vec::new();
        tokio::time::timeout(SOON, tcp.read_to_end(&mut said)).await.expect("in time").expect("an answer");
    }
    let carried = |index: usize| {
        let all = cluster.0[index].services.carried();
        all.iter().find(|one| one.service == "api").map_or(0, |one| one.carried.opened)
    };
    assert!((10..=50).contains(&carried(0)), "{} of 60 went one way", carried(0));
    assert_eq!(carried(0) + carried(1), 60);
}

#[tokio::test]
async fn one_connect_brings_both_protocols_of_a_name() {
    let cluster = Cluster::start(2);
    let node = cluster.key(0);
    let tcp = server().await;
    let echo = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let udp = echo.local_addr().expect("bound").port();
    cluster.0[0].serve(Some("dns"), Protocol::Tcp, tcp);
    cluster.0[0].serve(Some("dns"), Protocol::Udp, udp);
    cluster.publish(|view| view.service("dns", Protocol::Tcp, &[(node, tcp)]).also("dns", Protocol::Udp, node, udp));
    // Neither server's port is free on this one machine.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("free").local_addr().expect("bound").port();
    let request = Connect { service: named("dns"), provider: None, bind: None, local_port: Some(free) };
    let listeners = cluster.0[1].services.connect(&request).expect("known");
    let protocols: Vec<_> = listeners.iter().map(|listener| (listener.protocol, listener.local[0].port())).collect();
    assert_eq!(protocols, [(Protocol::Tcp, free), (Protocol::Udp, free)]);
    assert_eq!(cluster.0[1].services.connect(&request).expect("there already"), listeners);

    let mut stream = TcpStream::connect(("127.0.0.1", free)).await.expect("a listener");
    assert_eq!(stream.read_u8().await.expect("an answer"), b'A');
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    client.send_to(b"?", ("127.0.0.1", free)).await.expect("sent");
    tokio::time::timeout(SOON, echo.recv(&mut [0; 9])).await.expect("in time").expect("a datagram");
}

#[tokio::test]
async fn servers_at_other_addresses_and_unix_sockets_are_reached() {
    let cluster = Cluster::start(2);
    let node = cluster.key(0);
    let elsewhere = TcpListener::bind("127.0.0.7:0").await.expect("loopback");
    let at = elsewhere.local_addr().expect("bound");
    let temp = tempfile::tempdir().expect("a directory");
    let path = temp.path().join("server.sock");
    let unix = tokio::net::UnixListener::bind(&path).expect("a fresh directory");
    let echo = UdpSocket::bind("127.0.0.7:0").await.expect("loopback");
    let udp_at = echo.local_addr().expect("bound");
    for (name, protocol, port, server) in [
        ("lan", Protocol::Tcp, 1, at.to_string()),
        ("unix", Protocol::Tcp, 2, format!("unix:{}", path.display())),
        ("udp", Protocol::Udp, 3, udp_at.to_string()),
    ] {
        let (name, server) = (Some(name.parse().expect("a name")), server.parse().expect("a server"));
        let request = crate::services::Serve { port, name, protocol, shared: false, server, policy: None };
        cluster.0[0].services.serve(request).expect("room");
    }
    cluster.publish(|view| {
        let view = view.service("lan", Protocol::Tcp, &[(node, 1)]).service("unix", Protocol::Tcp, &[(node, 2)]);
        view.service("udp", Protocol::Udp, &[(node, 3)])
    });
    assert!(cluster.0[0].services.unanswered().is_empty(), "the kernel knows nothing of servers elsewhere");
    let read = cluster.0[0].services.config();
    assert_eq!(read.exports[1].server, Some(format!("unix:{}", path.display())));

    // Enough that writing meets a full buffer, and an end that the server waits for.
    let question = vec![7; 4 << 20];
    let heard = async |mut server: Box<dyn Duplex>| {
        let mut asked = Vec::new();
        server.read_to_end(&mut asked).await.expect("an end in good order");
        server.write_all(&asked).await.expect("open");
    };
    for name in ["lan", "unix"] {
        let mut client = TcpStream::connect(cluster.0[1].connect(name)).await.expect("a listener");
        let answered = async {
            let server: Box<dyn Duplex> = match name {
                "lan" => Box::new(elsewhere.accept().await.expect("a connection").0),
                _ => Box::new(unix.accept().await.expect("a connection").0),
            };
            heard(server).await;
        };
        let asked = async {
            client.write_all(&question).await.expect("open");
            client.shutdown().await.expect("open");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.expect("an end in good order");
            answer
        };
        let both = tokio::time::timeout(SOON, async { tokio::join!(answered, asked).1 }).await;
        assert!(both.expect("in time") == question, "{name}");
    }
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    client.send_to(b"?", cluster.0[1].connect("udp")).await.expect("sent");
    tokio::time::timeout(SOON, echo.recv(&mut [0; 9])).await.expect("in time").expect("a datagram");

    std::fs::remove_file(&path).expect("it is there");
    expect_reset_at(cluster.0[1].connect("unix")).await;
}

/// A stream of any kind.
trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Duplex for T {}
