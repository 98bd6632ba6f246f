//! The clients of UDP listeners. Owns the table of each listener, and the task of each client from its first payload to
//! the end of its last session. Must not know how a provider is chosen or reached (see [`super::dial`]).
//! Invariants: a queue in the table has a task that takes from it, so that a payload which meets the end of a session
//! opens the next; a full table gives up the client that was used least recently, and never the one that just came.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

use super::dial::{Client, First, Local, Way};
use super::idle::{Activity, Idlest};
use super::imports::{self, Imported};
use super::queue::{Budget, Queue};
use super::session::{self, Inlet, Outlet};
use super::tally::Dropped;
use super::{Shared, pump};

/// Clients of one UDP listener at once: twice the sessions that one provider takes, so that those which are still being
/// opened find room beside them.
const CLIENTS_MAX: usize = 2 * super::live::SESSIONS_PER_PEER_MAX;

/// The clients of one listening socket.
#[derive(Debug, Default)]
struct Clients {
    entries: BTreeMap<SocketAddr, Entry>,
    order: Idlest<SocketAddr>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    /// Tells a client's entry from its next one.
    serial: u64,
    queue: Queue,
    /// Dropped with the entry, which ends the task.
    _stay: oneshot::Sender<()>,
}

/// A client that had no entry.
struct New {
    address: SocketAddr,
    serial: u64,
    inlet: Inlet,
    activity: Arc<Activity>,
    gone: oneshot::Receiver<()>,
}

/// What became of a payload.
enum Put {
    Waits,
    NoRoom,
    /// It waits for the client's task, which is to be started. With whether another client had to go.
    First(New, bool),
}

impl Clients {
    fn put(&mut self, address: SocketAddr, payload: Bytes, budget: &Budget) -> Put {
        if let Some(entry) = self.entries.get(&address) {
            return if entry.queue.push(payload) { Put::Waits } else { Put::NoRoom };
        }
        let (queue, waiting) = Queue::new(budget);
        if !queue.push(payload) {
            return Put::NoRoom;
        }
        let full = self.entries.len() >= CLIENTS_MAX;
        if full && let Some(idlest) = self.order.idlest() {
            self.remove(&idlest);
        }
        let (stay, gone) = oneshot::channel();
        let (serial, activity) = (self.next, Arc::<Activity>::default());
        self.next += 1;
        self.entries.insert(address, Entry { serial, queue, _stay: stay });
        self.order.insert(address, Arc::clone(&activity));
        Put::First(New { address, serial, inlet: Inlet::Queue(waiting), activity, gone }, full)
    }

    fn remove(&mut self, address: &SocketAddr) {
        self.entries.remove(address);
        self.order.remove(address);
    }

    /// Takes a client out whose session has ended, unless a payload came for it meanwhile. Whether its task is to end.
    fn retire(&mut self, address: &SocketAddr, serial: u64, inlet: &Inlet) -> bool {
        if self.entries.get(address).is_none_or(|entry| entry.serial != serial) {
            return true;
        }
        if inlet.has_more() {
            return false;
        }
        self.remove(address);
        true
    }
}

fn lock(clients: &Mutex<Clients>) -> MutexGuard<'_, Clients> {
    clients.lock().expect("nothing panics while it holds this lock")
}

/// Takes what comes to a listening socket, for as long as it is awaited.
pub(super) async fn accept(shared: &Arc<Shared>, imported: &Arc<Imported>, socket: std::net::UdpSocket) {
    let socket = match UdpSocket::from_std(socket) {
        Ok(socket) => Arc::new(socket),
        Err(error) => return tracing::error!(%error, "cannot watch a socket"),
    };
    let clients = Arc::<Mutex<Clients>>::default();
    let mut lost = 0;
    loop {
        let received = session::with_scratch(|scratch| {
            socket.try_recv_from(scratch).map(|(n, client)| (Bytes::copy_from_slice(&scratch[..n]), client))
        });
        match received {
            Ok((payload, client)) => {
                let put = lock(&clients).put(client, payload, shared.inboxes.budget());
                match put {
                    Put::Waits => {}
                    Put::NoRoom => shared.inboxes.dropped(&imported.tally, Dropped::QueueFull, 1),
                    Put::First(new, instead) => {
                        if instead {
                            shared.inboxes.dropped(&imported.tally, Dropped::SessionGivenUp, 1);
                        }
                        let outlet = Outlet::Client(Arc::clone(&socket), client);
                        let table = Arc::downgrade(&clients);
                        drop(tokio::spawn(attend(Arc::clone(shared), Arc::clone(imported), new, outlet, table)));
                    }
                }
                tokio::task::consume_budget().await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let before = std::mem::replace(&mut lost, session::lost_by(&*socket));
                if lost > before {
                    shared.inboxes.dropped(&imported.tally, Dropped::SocketFull, lost - before);
                }
                if let Err(error) = socket.readable().await {
                    return tracing::error!(%error, "cannot watch a socket");
                }
            }
            // An earlier reply met a closed port: no matter of the socket's other clients.
            Err(error) => {
                tracing::debug!(%error, "local UDP socket");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Opens a session for what waits, carries it to its end, and opens another for what came meanwhile.
async fn attend(
    shared: Arc<Shared>,
    imported: Arc<Imported>,
    mut new: New,
    outlet: Outlet,
    clients: Weak<Mutex<Clients>>,
) {
    let hops = shared.passed_on_udp.of(&new.address);
    loop {
        let stays = session_of(&shared, &imported, &mut new, &outlet, hops).await;
        let ends = |clients: Arc<Mutex<Clients>>| lock(&clients).retire(&new.address, new.serial, &new.inlet);
        if !stays || clients.upgrade().is_none_or(ends) {
            break;
        }
        new.activity.begin_again();
    }
    drop_waiting(&shared, &imported, &mut new.inlet, Dropped::SessionGivenUp);
}

/// One session. Whether the client is still in the table as far as was heard.
async fn session_of(shared: &Shared, imported: &Imported, new: &mut New, outlet: &Outlet, hops: u8) -> bool {
    let Some(first) = new.inlet.next_now() else { return true };
    if let Some(why) = first.unfit() {
        shared.inboxes.dropped(&imported.tally, why, 1);
        return true;
    }
    let tally = &imported.tally;
    let session = Some(First { payload: first.bytes(), activity: &new.activity, tally });
    let result = tokio::select! {
        result = imports::open(shared, imported, Client { hops, session }) => result,
        _ = &mut new.gone => return false,
    };
    imported.remember_result(&result);
    let (opened, mut slot) = match result {
        Ok(opened) => opened,
        Err(error) => {
            tracing::debug!(service = %imported.import.target, %error, "datagrams dropped");
            shared.inboxes.dropped(tally, Dropped::NoProvider, 1);
            drop_waiting(shared, imported, &mut new.inlet, Dropped::NoProvider);
            return true;
        }
    };
    let length = first.bytes().len() as u64;
    new.activity.asked();
    let (uses, inlet) = ((&*new.activity, shared.idle), &mut new.inlet);
    let ended = match opened.way {
        Way::Session(session) => {
            tally.moved.outward.fetch_add(length, Ordering::Relaxed);
            drop(first);
            session.run(inlet, outlet, uses, slot.cut()).await
        }
        Way::Local(Local::Udp(server), _) => {
            tally.moved.inward.fetch_add(length, Ordering::Relaxed);
            // Refused, it says so again to whatever comes next.
            let _ = server.socket.send(first.bytes()).await;
            drop(first);
            let counts = (&**tally, &*shared.inboxes);
            session::exchange((inlet, outlet), Arc::clone(&server.socket), counts, uses, slot.cut()).await
        }
        Way::Mesh(..) | Way::Local(Local::Tcp(_), _) => unreachable!("a way has the protocol of its import"),
    };
    match ended {
        Ok(()) => {}
        Err(pump::Broken::Remote) => tracing::debug!(service = %imported.import.target, "the provider ended a session"),
        Err(broken) => tracing::debug!(service = %imported.import.target, %broken, "session broke"),
    }
    true
}

fn drop_waiting(shared: &Shared, imported: &Imported, inlet: &mut Inlet, why: Dropped) {
    let count = std::iter::from_fn(|| inlet.next_now()).count() as u64;
    if count > 0 {
        shared.inboxes.dropped(&imported.tally, why, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: usize) -> SocketAddr {
        SocketAddr::from((
            [127, 0, u8::try_from(number >> 12).expect("few"), 1],
            1000 + u16::try_from(number & 0xfff).expect("few"),
        ))
    }

    #[test]
    fn a_full_table_gives_up_the_idlest_and_takes_every_newcomer() {
        let (mut clients, budget) = (Clients::default(), Budget::default());
        let mut news = Vec::new();
        for number in 0..CLIENTS_MAX + 100 {
            let Put::First(new, instead) = clients.put(client(number), Bytes::from_static(b"?"), &budget) else {
                panic!("client {number} was not taken");
            };
            assert_eq!(instead, number >= CLIENTS_MAX);
            // The very first is used all the time, the others once, one after the other.
            new.activity.set_ms(number as u64);
            news.push(new);
            news[0].activity.set_ms(number as u64);
        }
        assert_eq!(clients.entries.len(), CLIENTS_MAX);
        let gone = news.iter_mut().filter_map(|new| new.gone.try_recv().err());
        let gone = gone.map(|error| error == oneshot::error::TryRecvError::Closed).collect::<Vec<_>>();
        let expected: Vec<_> = (0..CLIENTS_MAX + 100).map(|number| (1..=100).contains(&number)).collect();
        assert_eq!(gone, expected);
    }

    #[test]
    fn a_payload_that_comes_as_the_session_ends_keeps_the_client_and_its_task() {
        let (mut clients, budget) = (Clients::default(), Budget::default());
        let put = |clients: &mut Clients| clients.put(client(1), Bytes::from_static(b"?"), &budget);
        let Put::First(mut new, _) = put(&mut clients) else { panic!("it is the first") };
        assert!(new.inlet.next_now().is_some());
        assert!(matches!(put(&mut clients), Put::Waits));
        assert!(!clients.retire(&new.address, new.serial, &new.inlet));
        assert!(new.inlet.next_now().is_some());
        assert!(clients.retire(&new.address, new.serial, &new.inlet));
        let Put::First(next, _) = put(&mut clients) else { panic!("it has left") };
        assert!(clients.retire(&new.address, new.serial, &new.inlet), "the entry is another's");
        assert!(!clients.retire(&next.address, next.serial, &next.inlet));
    }
}
