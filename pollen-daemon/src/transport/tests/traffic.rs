//! What links and connections carry, and how they hold back.

use super::*;
use crate::transport::{SERVICE_DATAGRAM, open_stream};

/// Bytes that differ everywhere, the same for the same seed.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

#[tokio::test]
async fn the_ordered_stream_carries_bytes_both_ways_and_says_when_there_is_room() {
    let (mut a, at_a, mut b, at_b) = linked().await;
    let (there, back) = (noise(2_000_000, 1), noise(1_500_000, 2));
    for chunk in there.chunks(100_000) {
        a.mesh.send(at_a, chunk.to_vec());
    }
    b.mesh.send(at_b, back.clone());
    assert!(b.bytes(at_b, there.len()).await == there);
    let (mut all, mut writable) = (Vec::new(), false);
    while all.len() < back.len() || !writable {
        match a.next().await {
            MeshEvent::LinkBytes { bytes, .. } => all.extend(bytes),
            MeshEvent::LinkWritable { link } => writable = link == at_a,
            other => panic!("{other:?}"),
        }
    }
    assert!(all == back);
}

#[tokio::test]
async fn probes_reach_the_driver_and_service_datagrams_the_services() {
    let (mut a, at_a, mut b, at_b) = linked().await;
    a.mesh.send_datagram(at_a, b"ping".to_vec());
    assert!(matches!(b.next().await, MeshEvent::LinkDatagram { link, bytes } if link == at_b && bytes == b"ping"));
    b.mesh.send_datagram(at_b, Vec::new());
    assert!(matches!(a.next().await, MeshEvent::LinkDatagram { link, bytes } if link == at_a && bytes.is_empty()));
    let connection = a.mesh.connection(b.key).await.unwrap();
    connection.send_datagram([&[SERVICE_DATAGRAM], b"payload".as_slice()].concat().into()).unwrap();
    assert_eq!(timeout(PATIENCE, b.datagrams.recv()).await.unwrap().unwrap(), b"payload".as_slice());
}

#[tokio::test]
async fn streams_of_either_end_reach_the_other_ends_services() {
    let (mut a, _, mut b, _) = linked().await;
    for (kind, from_a) in [(StreamKind::Tcp, true), (StreamKind::Udp, false)] {
        let (from, to) = if from_a { (&mut a, &mut b) } else { (&mut b, &mut a) };
        let connection = from.mesh.connection(to.key).await.unwrap();
        let (mut send, mut recv) = open_stream(&connection, kind).await.unwrap();
        send.write_all(b"question").await.unwrap();
        send.finish().unwrap();
        let (taken, mut back, mut there) = timeout(PATIENCE, to.streams.recv()).await.unwrap().unwrap();
        assert_eq!(taken, kind);
        assert_eq!(there.read_to_end(100).await.unwrap(), b"question");
        back.write_all(b"answer").await.unwrap();
        back.finish().unwrap();
        assert_eq!(recv.read_to_end(100).await.unwrap(), b"answer");
    }
}

#[tokio::test]
async fn a_thousand_streams_are_open_at_once() {
    let (a, _, mut b, _) = linked().await;
    let connection = a.mesh.connection(b.key).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..1000 {
        open.push(timeout(PATIENCE, open_stream(&connection, StreamKind::Tcp)).await.unwrap().unwrap());
    }
    for _ in 0..1000 {
        open.push({
            let (_, send, recv) = timeout(PATIENCE, b.streams.recv()).await.unwrap().unwrap();
            (send, recv)
        });
    }
}

#[tokio::test]
async fn stalled_readers_hold_up_neither_the_link_nor_other_streams() {
    let (a, at_a, mut b, at_b) = linked().await;
    let connection = a.mesh.connection(b.key).await.unwrap();
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let (mut send, _) = open_stream(&connection, StreamKind::Tcp).await.unwrap();
        let bulk = a.mesh.runtime().spawn(async move { send.write_all(&vec![0; 8 << 20]).await });
        stalled.push((bulk, timeout(PATIENCE, b.streams.recv()).await.unwrap().unwrap()));
    }
    a.mesh.send(at_a, b"still here".to_vec());
    assert_eq!(b.bytes(at_b, 10).await, b"still here");
    for (bulk, _) in &stalled {
        assert!(!bulk.is_finished(), "a reader that stops stops its writer");
        bulk.abort();
    }
}

#[tokio::test]
async fn a_quarter_of_a_gigabyte_arrives_as_it_was_sent() {
    const LEN: usize = 256 << 20;
    const BLOCK: usize = 1 << 20;
    let (a, _, mut b, _) = linked().await;
    let connection = a.mesh.connection(b.key).await.unwrap();
    let block = Bytes::from(noise(BLOCK, 3));
    let mut expected = sum_of_blocks(&block, LEN / BLOCK);
    let (mut send, _recv) = open_stream(&connection, StreamKind::Tcp).await.unwrap();
    a.mesh.runtime().spawn(async move {
        for _ in 0..LEN / BLOCK {
            send.write_chunk(block.clone()).await.unwrap();
        }
        send.finish().unwrap();
        send.stopped().await
    });
    let (_, _send, mut recv) = timeout(PATIENCE, b.streams.recv()).await.unwrap().unwrap();
    let got = b.mesh.runtime().spawn(async move {
        let (mut sum, mut len) = (Sum::default(), 0);
        while let Some(chunk) = recv.read_chunk(usize::MAX, true).await.unwrap() {
            sum.add(&chunk.bytes);
            len += chunk.bytes.len();
        }
        (sum, len)
    });
    let (mut sum, len) = timeout(4 * PATIENCE, got).await.unwrap().unwrap();
    assert_eq!(len, LEN);
    assert_eq!(sum.finish(), expected.finish());
    let sent = &a.mesh.snapshot().peers[0];
    eprintln!("{} datagrams out, {} lost, mtu {}", sent.datagrams_out, sent.packets_lost, sent.mtu);
}

#[tokio::test]
async fn a_driver_that_does_not_read_stops_the_sender_and_loses_nothing() {
    let (a, at_a, mut b, at_b) = link(peer(1), peer_with(2, true, 1, |_| {})).await;
    let sent = noise(7 << 20, 4);
    a.mesh.send(at_a, sent.clone());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(a.mesh.snapshot().peers[0].bytes_out < 5 << 20, "the window, and not all of it");
    assert!(b.bytes(at_b, sent.len()).await == sent);
}

#[tokio::test]
async fn a_peer_that_never_reads_costs_a_bound_and_then_its_link() {
    let (mut a, at_a, b, _) = link(peer(1), peer_with(2, true, 1, |_| {})).await;
    for _ in 0..20 {
        a.mesh.send(at_a, vec![0; 1 << 20]);
    }
    assert_eq!(a.down(at_a).await, "the peer does not read what it is sent");
    assert_eq!(a.dropped(crate::transport::DropReason::LinkOverflow), 1);
    drop(b);
}

#[tokio::test]
async fn a_stranger_gets_few_streams() {
    let (a, _, b, _) = link(peer(1), peer_with(2, false, 64, |_| {})).await;
    let connection = a.mesh.connection(b.key).await.unwrap();
    let mut open = Vec::new();
    let opening = async {
        for _ in 0..100 {
            open.push(open_stream(&connection, StreamKind::Tcp).await.unwrap());
        }
    };
    assert!(timeout(Duration::from_millis(500), opening).await.is_err());
    assert_eq!(open.len(), 15, "sixteen, and one is the link's");
}

/// A sum of a sequence of bytes, however it is cut: enough to notice any loss, change or exchange.
#[derive(Default)]
struct Sum {
    state: u64,
    part: [u8; 8],
    filled: usize,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.part[self.filled] = byte;
            self.filled += 1;
            if self.filled == 8 {
                self.step();
            }
        }
    }

    fn step(&mut self) {
        self.state = (self.state ^ u64::from_le_bytes(self.part)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        self.filled = 0;
    }

    fn finish(&mut self) -> u64 {
        self.step();
        self.state
    }
}

fn sum_of_blocks(block: &[u8], blocks: usize) -> Sum {
    let mut sum = Sum::default();
    for _ in 0..blocks {
        sum.add(block);
    }
    sum
}
