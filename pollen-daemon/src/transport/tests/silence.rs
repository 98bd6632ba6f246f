//! Peers that fall silent: what is open waits for them, and they are found where they are by then.

use tokio::net::UdpSocket;

use super::*;
use crate::transport::DropReason;

/// What stands between two peers: a UDP port on each side, which can be told to lose everything or to move.
pub(super) struct Between {
    pub(super) at: SocketAddr,
    pub(super) pass: tokio::sync::watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Between {
    /// Passes on what comes to it to `to`, and what `to` answers back to whoever asked first.
    pub(super) async fn to(to: SocketAddr) -> Self {
        let (near, far) =
            (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let at = near.local_addr().unwrap();
        let (pass, passes) = tokio::sync::watch::channel(true);
        let task = tokio::spawn(async move {
            let (mut asker, mut out, mut back) = (None, vec![0; 65_536], vec![0; 65_536]);
            loop {
                tokio::select! {
                    Ok((len, from)) = near.recv_from(&mut out) => {
                        asker = Some(from);
                        if *passes.borrow() {
                            let _lost = far.send_to(&out[..len], to).await;
                        }
                    }
                    Ok((len, _)) = far.recv_from(&mut back) => {
                        if let Some(asker) = asker.filter(|_| *passes.borrow()) {
                            let _lost = near.send_to(&back[..len], asker).await;
                        }
                    }
                }
            }
        });
        Self { at, pass, task }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A stream from the first to the second, its two ends.
pub(super) async fn stream(a: &Peer, b: &mut Peer) -> ((SendStream, RecvStream), (SendStream, RecvStream)) {
    let connection = a.mesh.connection(b.key).await.expect("they are linked");
    let at_a = crate::transport::open_stream(&connection, StreamKind::Tcp).await.unwrap();
    let (_, send, recv) = timeout(PATIENCE, b.streams.recv()).await.expect("in time").expect("a stream");
    (at_a, (send, recv))
}

pub(super) async fn through(send: &mut SendStream, recv: &mut RecvStream, text: &[u8]) {
    send.write_all(text).await.unwrap();
    let mut read = vec![0; text.len()];
    timeout(PATIENCE, recv.read_exact(&mut read)).await.expect("in time").expect("whole");
    assert_eq!(read, text);
}

#[tokio::test]
async fn a_stream_goes_on_over_a_new_address_when_the_old_one_has_died() {
    let (mut a, mut b) = (peer(1), peer(2));
    let between = Between::to(b.addr()).await;
    a.mesh.dial(b.key, vec![between.at]);
    let (at_a, _) = (a.up().await, b.up().await);
    let (mut near, mut far) = stream(&a, &mut b).await;
    through(&mut near.0, &mut far.1, b"before").await;
    between.pass.send_replace(false);
    a.mesh.silent(at_a, vec![b.addr()]);
    assert!(a.mesh.connection(b.key).await.is_none(), "nothing new goes to a silent peer");
    through(&mut near.0, &mut far.1, b"after").await;
    through(&mut far.0, &mut near.1, b"and back").await;
    a.mesh.heard(at_a);
    assert!(a.mesh.connection(b.key).await.is_some());
    assert_eq!(a.mesh.snapshot().peers[0].remote, Some(b.addr()));
}

#[tokio::test]
async fn what_was_in_full_flow_resumes_at_once_when_the_path_is_back() {
    let (mut a, mut b) = (peer(1), peer(2));
    let between = Between::to(b.addr()).await;
    a.mesh.dial(b.key, vec![between.at]);
    let (at_a, _) = (a.up().await, b.up().await);
    let (mut near, mut far) = stream(&a, &mut b).await;
    let writing = tokio::spawn(async move {
        near.0.write_all(&vec![7; 4 << 20]).await.expect("it goes on");
        near.0.finish().expect("open");
    });
    let mut some = vec![0; 1 << 20];
    far.1.read_exact(&mut some).await.unwrap();
    between.pass.send_replace(false);
    // Long enough for QUIC to back off by seconds.
    tokio::time::sleep(Duration::from_secs(4)).await;
    a.mesh.silent(at_a, vec![between.at]);
    between.pass.send_replace(true);
    let rest = timeout(Duration::from_secs(2), far.1.read_to_end(4 << 20)).await;
    assert_eq!(rest.expect("it does not wait out QUIC's back-off").unwrap().len(), 3 << 20);
    writing.await.unwrap();
}

#[tokio::test]
async fn a_peer_that_was_restarted_says_so_and_what_was_open_ends() {
    let (mut a, at_a, b, _) = linked().await;
    let (port, addr) = (b.mesh.local_addr().unwrap().port(), b.addr());
    b.mesh.stop().await;
    drop(b);
    let mut b = peer_with(2, true, 64, |config| config.port = port);
    // It dials nobody: being looked for has to be enough.
    a.mesh.silent(at_a, vec![addr]);
    assert_eq!(timeout(Duration::from_secs(3), a.down(at_a)).await.expect("at once"), "reset by peer");
    a.mesh.dial(b.key, vec![addr]);
    a.up().await;
    b.up().await;
}

#[tokio::test]
async fn whoever_wants_a_silent_peer_waits_for_it_and_gets_the_connection_there_was() {
    let (a, at_a, b, _) = linked().await;
    let before = a.mesh.connection(b.key).await.unwrap().stable_id();
    a.mesh.silent(at_a, vec![b.addr()]);
    let (mesh, key, addr) = (a.mesh.clone(), b.key, b.addr());
    let wanted = tokio::spawn(async move { mesh.connect(key, vec![addr]).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!wanted.is_finished());
    a.mesh.heard(at_a);
    assert_eq!(wanted.await.unwrap().unwrap().stable_id(), before);
    assert_eq!(b.dropped(DropReason::Handshake), 0);
}

#[tokio::test]
async fn a_peer_that_was_dialled_and_killed_a_moment_ago_dials_from_elsewhere_and_is_let_in() {
    for round in 0..5_u8 {
        // Whichever key is smaller: only one of the two may be refused.
        let (first, second) = if round % 2 == 0 { (1, 2) } else { (2, 1) };
        let (mut a, at_a, b, _) = link(peer(first), peer(second)).await;
        b.mesh.stop().await;
        drop(b);
        let mut b = peer(second);
        b.mesh.dial(a.key, vec![a.addr()]);
        b.up().await;
        a.down(at_a).await;
        a.up().await;
    }
}
