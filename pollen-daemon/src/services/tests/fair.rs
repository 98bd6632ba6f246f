//! One service whose clients or server have stopped, and another of the same two nodes.

use std::time::{Duration, Instant};

use pollen_common::views::Protocol;
use pollen_common::wire::streams::credit::INITIAL_BYTES;
use pollen_common::wire::streams::service::{Header, Target};
use pollen_common::wire::streams::{StreamKind, decode_status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::cluster::{Cluster, SOON};
use super::tcp::{dial, echo, server};

/// More than the window of a connection has room for at 2 MiB each.
const STALLED: usize = 150;
/// How long the stalled are given to fill all that they can.
const FILL: Duration = Duration::from_secs(2);

/// Both services; returns clients of the first, of which nothing more is read or written.
async fn stalled_readers(cluster: &Cluster) -> Vec<TcpStream> {
    let flood = server(|mut tcp| async move {
        let block = vec![7; 64 * 1024];
        while tcp.write_all(&block).await.is_ok() {}
    })
    .await;
    let addr = cluster.serve_and_connect("flood", Protocol::Tcp, flood);
    let mut clients = Vec::new();
    for _ in 0..STALLED {
        let mut tcp = dial(addr).await;
        tcp.read_exact(&mut [0; 1]).await.expect("it speaks at once");
        clients.push(tcp);
    }
    tokio::time::sleep(FILL).await;
    clients
}

/// Sends `len` bytes to an echo and hears them again.
async fn there_and_back(mut tcp: TcpStream, len: usize) {
    let sent: Vec<u8> = (0..=250).cycle().take(len).collect();
    let (mut reader, mut writer) = tcp.split();
    let mut heard = vec![0; len];
    let both = async { tokio::join!(writer.write_all(&sent), reader.read_exact(&mut heard)) };
    let (written, read) = tokio::time::timeout(SOON, both).await.expect("it goes on beside those that stand still");
    written.expect("open");
    read.expect("open");
    assert!(heard == sent);
}

async fn other_service(cluster: &Cluster) -> std::net::SocketAddr {
    let port = server(echo).await;
    let provider = cluster.key(0);
    cluster.0[0].serve(Some("other"), Protocol::Tcp, port);
    cluster.publish(|view| view.service("other", Protocol::Tcp, &[(provider, port)]));
    cluster.0[1].connect("other")
}

#[tokio::test]
async fn readers_that_stop_hold_up_no_other_service_and_get_all_when_they_go_on() {
    let cluster = Cluster::start(2);
    let mut clients = stalled_readers(&cluster).await;
    let other = other_service(&cluster).await;
    there_and_back(dial(other).await, 8 << 20).await;
    // Nothing was lost or ended: each goes on where it stood.
    for tcp in clients.iter_mut().take(3) {
        let mut bytes = vec![0; 16 << 20];
        tokio::time::timeout(SOON, tcp.read_exact(&mut bytes)).await.expect("in time").expect("open");
        assert!(bytes.iter().all(|byte| *byte == 7));
    }
    drop(clients);
    for node in &cluster.0 {
        node.until("those that went have left", |services| services.numbers().streams_open <= 1).await;
    }
}

#[tokio::test]
async fn a_server_that_hangs_holds_up_no_other_service() {
    let cluster = Cluster::start(2);
    let hung = server(|tcp| async move {
        let _kept = tcp;
        std::future::pending::<()>().await;
    })
    .await;
    let addr = cluster.serve_and_connect("hung", Protocol::Tcp, hung);
    let mut uploads = tokio::task::JoinSet::new();
    for _ in 0..STALLED {
        let mut tcp = dial(addr).await;
        uploads.spawn(async move {
            let block = vec![7; 64 * 1024];
            while tcp.write_all(&block).await.is_ok() {}
        });
    }
    tokio::time::sleep(FILL).await;
    let other = other_service(&cluster).await;
    there_and_back(dial(other).await, 8 << 20).await;
}

#[tokio::test]
async fn whoever_sends_beyond_its_credit_is_reset() {
    let cluster = Cluster::start(2);
    let port = server(|tcp| async move {
        let _kept = tcp;
        std::future::pending::<()>().await;
    })
    .await;
    let addr = cluster.serve_and_connect("hung", Protocol::Tcp, port);
    drop(dial(addr).await);
    cluster.0[1].until("there is a connection", |services| services.numbers().streams > 0).await;
    let connection = cluster.0[1].mesh.connection(cluster.key(0)).await.expect("just used");
    let (mut send, mut recv) = connection.open_bi().await.expect("open");
    let header = Header { target: Target::Name("hung".parse().expect("a name")), protocol: Protocol::Tcp, hops: 0 };
    send.write_all(&header.opening()).await.expect("open");
    let mut answer = [0; 1];
    recv.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(decode_status(answer[0]), Some(true));
    let within = usize::try_from(INITIAL_BYTES).expect("small");
    send.write_all(&vec![1; within]).await.expect("what all may send");
    let started = Instant::now();
    // At once more than all that this node grants anybody.
    let beyond = vec![1; 8 << 20];
    let written = tokio::time::timeout(SOON, send.write_all(&beyond)).await.expect("no wait for ever");
    assert!(written.is_err(), "stopped after {:?}", started.elapsed());
    assert!(connection.close_reason().is_none(), "and nothing else of the connection");
}

#[tokio::test]
async fn a_peer_that_breaks_the_format_of_credit_loses_its_connection() {
    let cluster = Cluster::start(2);
    let port = server(echo).await;
    let addr = cluster.serve_and_connect("echo", Protocol::Tcp, port);
    there_and_back(dial(addr).await, 1000).await;
    let connection = cluster.0[1].mesh.connection(cluster.key(0)).await.expect("just used");
    let (mut send, _recv) = crate::transport::open_stream(&connection, StreamKind::Credit).await.expect("open");
    send.write_all(&[9]).await.expect("open");
    tokio::time::timeout(SOON, connection.closed()).await.expect("in time");
    // The next connection of the two is a new one.
    there_and_back(dial(addr).await, 1000).await;
}
