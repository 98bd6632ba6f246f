//! A peer that speaks QUIC with a key of its own and says what no honest node says: it is let in no further.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pollen_common::identity::{NodeKey, SecretKey};
use pollen_common::node::LinkId;
use pollen_common::wire::streams::StreamKind;
use pollen_common::wire::streams::service::{Header, Target};
use pollen_daemon::transport::{Mesh, MeshConfig, MeshEvent, StreamHandler, open_stream};
use tests::cluster::form;
use tests::lab::{Family, Host, lab_or_skip};
use tests::pln::Pln;
use tests::status::await_online;
use tests::traffic::{Server, address, pattern};
use tokio::sync::mpsc;

use crate::garbage::GROWTH_KIB_MAX;

const PATIENCE: Duration = Duration::from_secs(20);

/// It takes nothing: what the node opens is dropped.
struct Deaf;

impl StreamHandler for Deaf {
    fn stream(&self, _: NodeKey, _: &quinn::Connection, _: StreamKind, _: quinn::SendStream, _: quinn::RecvStream) {}
    fn datagram(&self, _: NodeKey, _: &quinn::Connection, _: Bytes) {}
    fn closed(&self, _: usize) {}
}

struct Stranger {
    mesh: Mesh,
    events: mpsc::Receiver<MeshEvent>,
    node: NodeKey,
    at: SocketAddr,
}

impl Stranger {
    /// A stranger on `host`, with a key of its own, that wants to talk to `node`.
    fn on(host: &Host, node: &Pln, seed: u8) -> Self {
        let (sender, events) = mpsc::channel(1024);
        // The mesh's thread is made here, so it and its socket are the host's.
        let start = || Mesh::start(MeshConfig::new(SecretKey::from_seed(&[seed; 32]), 0), sender, Arc::new(Deaf));
        let mesh = host.enter(start).unwrap().unwrap();
        let key = node.json(&["id"]).unwrap()["key"].as_str().unwrap().parse().unwrap();
        let at = SocketAddr::new(address(&node.host, false).unwrap(), node.host.port());
        Self { mesh, events, node: key, at }
    }

    /// Opens a link and waits until it is up.
    fn link(&mut self) -> LinkId {
        self.mesh.dial(self.node, vec![self.at]);
        let up = self.until(|event| match event {
            MeshEvent::LinkUp { link, .. } => Some(*link),
            _ => None,
        });
        up.expect("a stranger may say hello")
    }

    /// The first thing that happens and is `wanted`; none if it does not happen in time.
    fn until<T>(&mut self, wanted: impl Fn(&MeshEvent) -> Option<T>) -> Option<T> {
        let runtime = self.mesh.runtime().clone();
        runtime.block_on(async {
            let found = async {
                loop {
                    if let Some(found) = self.events.recv().await.as_ref().and_then(&wanted) {
                        return found;
                    }
                }
            };
            tokio::time::timeout(PATIENCE, found).await.ok()
        })
    }

    fn is_closed(&mut self, link: LinkId) -> bool {
        self.until(|event| matches!(event, MeshEvent::LinkDown { link: down, .. } if *down == link).then_some(()))
            .is_some()
    }
}

#[test]
fn garbage_on_the_ordered_stream_ends_the_link_and_nothing_else() {
    let Some(mut lab) = lab_or_skip() else { return };
    let switch = lab.switch(Family::V4).unwrap();
    let mut nodes = ["a", "b"].map(|name| Pln::on(lab.host(name, &[switch], 1500).unwrap()));
    let outside = lab.host("outside", &[switch], 1500).unwrap();
    form(&mut nodes, &[]).unwrap();
    let [a, b] = &nodes;
    let before = a.resident_kib().unwrap();
    let mut stranger = Stranger::on(&outside, a, 66);
    let frame = |body: &[u8]| [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat();
    let inputs = [
        vec![0xff; 64],
        vec![0; 64],
        u32::MAX.to_be_bytes().to_vec(),
        frame(&pattern(1, 4000)),
        frame(b"\x80"),
        // A well-formed message of no known kind, then garbage.
        [frame(b"\x81\x18\xff"), pattern(2, 100_000)].concat(),
        pattern(3, 4 << 20),
    ];
    for (index, input) in inputs.into_iter().enumerate() {
        let link = stranger.link();
        stranger.mesh.send(link, input);
        stranger.mesh.send_datagram(link, pattern(4, 1000));
        assert!(stranger.is_closed(link), "input {index} did not end the link");
    }
    let malformed = crate::garbage::counted(a, "pln_frames_dropped_total{reason=\"core_malformed_frame\"}");
    assert!(malformed > 0, "garbage ended links and was counted nowhere");
    await_online(&[a, b], &["a", "b"], Duration::from_secs(1)).unwrap();
    let after = a.resident_kib().unwrap();
    assert!(after <= before + GROWTH_KIB_MAX, "a grew from {before} to {after} KiB");
}

#[test]
fn a_stranger_reaches_no_service_and_learns_of_none() {
    let Some(mut lab) = lab_or_skip() else { return };
    let switch = lab.switch(Family::V4).unwrap();
    let mut nodes = ["a"].map(|name| Pln::on(lab.host(name, &[switch], 1500).unwrap()));
    let outside = lab.host("outside", &[switch], 1500).unwrap();
    form(&mut nodes, &[]).unwrap();
    let [a] = &nodes;
    let server = Server::tcp_echo(&a.host, 0).unwrap();
    a.ok(&["serve", &server.port.to_string(), "echo"]).unwrap();
    // A new one for each question: a stranger that answers no probes is not kept for long.
    let ask = |seed: u8, name: &str| {
        let stranger = Stranger::on(&outside, a, seed);
        let header = Header {
            target: Target::Name(name.parse().unwrap()),
            protocol: pollen_common::views::Protocol::Tcp,
            hops: 0,
        };
        let opening = header.opening();
        let runtime = stranger.mesh.runtime().clone();
        runtime.block_on(async {
            let connection = stranger.mesh.connect(stranger.node, vec![stranger.at]).await.unwrap();
            let (mut send, mut recv) = open_stream(&connection, StreamKind::Tcp).await.unwrap();
            // The kind has been said.
            send.write_all(&opening[1..]).await.unwrap();
            let answer = tokio::time::timeout(PATIENCE, recv.read_to_end(64)).await.expect("an answer in time");
            answer.unwrap_or_default()
        })
    };
    let served = ask(66, "echo");
    assert_eq!(served.first(), Some(&1), "a stranger was let in, or told nothing");
    assert_eq!(served, ask(67, "no-such-name"), "a stranger can tell what is served from what is not");
}

#[test]
fn streams_and_datagrams_of_no_known_kind_are_refused_and_counted() {
    let Some(mut lab) = lab_or_skip() else { return };
    let switch = lab.switch(Family::V4).unwrap();
    let mut nodes = ["a"].map(|name| Pln::on(lab.host(name, &[switch], 1500).unwrap()));
    let outside = lab.host("outside", &[switch], 1500).unwrap();
    form(&mut nodes, &[]).unwrap();
    let [a] = &nodes;
    let stranger = Stranger::on(&outside, a, 66);
    let runtime = stranger.mesh.runtime().clone();
    runtime.block_on(async {
        let connection = stranger.mesh.connect(stranger.node, vec![stranger.at]).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(b"\x63garbage").await.unwrap();
        let refused = tokio::time::timeout(PATIENCE, recv.read_to_end(64)).await.expect("an answer in time");
        assert!(refused.is_err(), "a stream of no known kind was taken: {refused:?}");
        connection.send_datagram(Bytes::from_static(b"\x63garbage")).unwrap();
    });
    for reason in ["stream_kind", "datagram_kind"] {
        let is_counted =
            || match crate::garbage::counted(a, &format!("pln_frames_dropped_total{{reason=\"{reason}\"}}")) {
                1 => Ok(()),
                other => Err(format!("{other} counted")),
            };
        tests::patience::eventually(reason, Duration::from_secs(5), is_counted).unwrap();
    }
}
