//! The simulated world: machines, the network, and one queue of things to come. Executes nodes' outputs as the
//! daemon's driver does, in virtual time.

mod traffic;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::hosting::{Making, Watch};
use super::machine::Machine;
use super::network::{At, Network};
use crate::hash::{Context, digest};
use crate::identity::{Digest, NodeKey, SecretKey, Strict};
use crate::maps::Lane;
use crate::node::join::{JoinError, Joining};
use crate::node::{Command, Input, InviteTerms, LinkId, Node, Output, Refusal, Reply, RequestId, Write, found};
use crate::roll::{Rights, Tier};
use crate::time::{Instant, Now, UnixMs};
use crate::views::VersionId;
use crate::wire::{Frames, Message, framed};

/// Virtual time begins here; the wall clock of every machine with it.
const EPOCH_UNIX_MS: u64 = 1_800_000_000_000;

/// Something that will happen.
#[derive(Debug)]
pub(super) enum Event {
    Wake {
        machine: At,
        life: u64,
    },
    Written {
        machine: At,
        life: u64,
    },
    Connected {
        from: At,
        to: NodeKey,
        lives: (u64, u64),
    },
    DialFailed {
        from: At,
        to: NodeKey,
        life: u64,
    },
    Bytes {
        connection: u64,
        end: usize,
        bytes: Vec<u8>,
    },
    /// What a partition keeps back is sent again.
    Again {
        connection: u64,
        end: usize,
    },
    Writable {
        connection: u64,
        end: usize,
    },
    Datagram {
        connection: u64,
        end: usize,
        bytes: Vec<u8>,
    },
    Down {
        connection: u64,
        end: usize,
        reason: String,
    },
    /// A replica asked for is made, or not.
    Made {
        machine: At,
        life: u64,
        making: Making,
    },
    /// The last call of a replica has ended.
    Stopped {
        machine: At,
        life: u64,
        version: VersionId,
    },
}

/// A link whose other end is no machine.
struct Overheard {
    machine: At,
    link: LinkId,
    said: Vec<u8>,
    closed: bool,
}

/// A simulated cluster.
pub struct World {
    pub(super) rng: ChaCha8Rng,
    pub(super) machines: Vec<Machine>,
    pub(super) network: Network,
    now: Instant,
    queue: BTreeMap<(Instant, u64), Event>,
    order: u64,
    /// The moment of each machine's pending wake-up.
    wakes: Vec<Option<Instant>>,
    replies: BTreeMap<RequestId, Result<Reply, Refusal>>,
    last_request: u64,
    /// What a machine says on a link whose other end is no machine: a joiner's.
    overheard: Option<Overheard>,
    /// Of these machines nobody reads the ordered streams: they never hear that there is room.
    unread: BTreeSet<At>,
    /// Of datagrams, in 1/256.
    pub(super) loss: usize,
    pub(super) watch: Watch,
}

impl World {
    /// A cluster of `count` machines: the first founds it, each other redeems an invite at it. `repair` as in
    /// [`crate::node::NodeConfig`].
    #[must_use]
    pub fn new(seed: u64, count: usize, repair: bool) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let mut world = Self {
            rng: ChaCha8Rng::from_seed(bytes),
            machines: Vec::new(),
            network: Network::default(),
            now: Instant::default(),
            queue: BTreeMap::new(),
            order: 0,
            wakes: Vec::new(),
            replies: BTreeMap::new(),
            last_request: 0,
            overheard: None,
            unread: BTreeSet::new(),
            loss: 0,
            watch: Watch::default(),
        };
        world.found(repair);
        for _ in 1..count {
            world.enroll(repair);
        }
        world
    }

    fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        seed
    }

    fn found(&mut self, repair: bool) {
        let (root, node) = (SecretKey::from_seed(&self.seed()), SecretKey::from_seed(&self.seed()));
        let next = digest(Context::Test, &[&self.seed()]);
        let records = found(&root, next, &node, &BTreeMap::new(), self.clock().unix);
        let records = records.expect("no properties fit");
        self.add(node, records, repair);
    }

    fn enroll(&mut self, repair: bool) {
        let token = self.invite(0, Rights::of(Tier::Publisher), Duration::from_secs(300));
        let secret = SecretKey::from_seed(&self.seed());
        let joined = self.redeem(0, &secret, &token).expect("the founder accepts its own fresh invite");
        self.add(secret, joined, repair);
    }

    /// A token made by `issuer`, which must be an admin and up.
    pub fn invite(&mut self, issuer: At, rights: Rights, ttl: Duration) -> Vec<u8> {
        let terms = InviteTerms { rights, subject: None, not_after: self.clock().unix.after(ttl) };
        let id = self.command(issuer, Command::Invite { terms }).expect("the issuer is up");
        match self.reply(id) {
            Some(Ok(Reply::Token(token))) => token,
            other => panic!("an admin's invite is granted at once, not {other:?}"),
        }
    }

    /// Adds a machine that redeems `token` at the admin `via`, over a link of its own and by the real protocol.
    pub fn join(&mut self, via: At, token: &[u8]) -> Result<At, JoinError> {
        let secret = SecretKey::from_seed(&self.seed());
        let records = self.redeem(via, &secret, token)?;
        self.add(secret, records, true);
        Ok(self.machines.len() - 1)
    }

    /// Adds a machine with a copy of another's key and disk, as it is now.
    pub fn twin_of(&mut self, at: At) -> At {
        let twin = self.machines[at].copy();
        self.machines.push(twin);
        self.wakes.push(None);
        let twin = self.machines.len() - 1;
        self.start(twin);
        twin
    }

    /// Plays a stranger that dials `at` and says these things on the ordered stream; returns what it hears, and
    /// whether the node hung up.
    pub fn overhear(&mut self, at: At, peer: NodeKey, said: &[Message], wait: Duration) -> (Vec<Message>, bool) {
        self.last_request += 1;
        let link = LinkId(u64::MAX - self.last_request);
        self.input(at, Input::LinkUp { link, peer, dialed: false, remote: None });
        self.overheard = Some(Overheard { machine: at, link, said: Vec::new(), closed: false });
        for message in said {
            self.input(at, Input::LinkBytes { link, bytes: framed(message) });
        }
        self.run_for(wait);
        let heard = self.overheard.take().expect("set above");
        self.input(at, Input::LinkDown { link, reason: "left".into() });
        let mut frames = Frames::default();
        frames.push(&heard.said);
        let bodies = core::iter::from_fn(|| frames.poll().expect("nodes speak in frames"));
        (bodies.filter_map(|body| Message::decode(&body).ok()).collect(), heard.closed)
    }

    fn redeem(&mut self, via: At, secret: &SecretKey, token: &[u8]) -> Result<Vec<Write>, JoinError> {
        let mut joining = Joining::new(token, secret, alloc::sync::Arc::new(Strict), self.clock().unix)?;
        // Beside the numbers that the network gives.
        let (contact, link) = (self.machines[via].key(), LinkId(u64::MAX - self.last_request));
        let (request, peer) = (joining.request(), secret.public());
        self.input(via, Input::LinkUp { link, peer, dialed: false, remote: None });
        self.overheard = Some(Overheard { machine: via, link, said: Vec::new(), closed: false });
        self.input(via, Input::LinkBytes { link, bytes: request });
        self.run_for(Duration::from_millis(100));
        let answer = self.overheard.take().expect("set above").said;
        let joined = joining.answer(&contact, &answer, self.clock().unix);
        self.input(via, Input::LinkDown { link, reason: "joined".into() });
        Ok(joined?.expect("the answer is whole").records)
    }

    fn add(&mut self, secret: SecretKey, records: Vec<Write>, repair: bool) {
        self.machines.push(Machine::new(secret, records, repair));
        self.wakes.push(None);
        let at = self.machines.len() - 1;
        self.start(at);
        // Any address will do: this network finds machines by key.
        let addrs = alloc::vec![([127, 0, 0, 1], 1).into()];
        self.command(at, Command::Announce { name: None, addrs });
        self.run_for(Duration::from_millis(100));
    }

    /// Every machine's clocks.
    #[must_use]
    pub fn clock(&self) -> Now {
        Now { mono: self.now, unix: UnixMs(EPOCH_UNIX_MS + self.now.0 / 1_000_000) }
    }

    /// A machine's clocks.
    fn clock_of(&self, at: At) -> Now {
        let Now { mono, unix } = self.clock();
        Now { mono, unix: unix.after(Duration::from_millis(self.machines[at].clock_ahead_ms)) }
    }

    /// Whether its neighbours take what a machine sends on ordered streams.
    pub fn set_read(&mut self, at: At, read: bool) {
        self.unread.retain(|unread| *unread != at);
        self.unread.extend((!read).then_some(at));
    }

    /// Sets a machine's wall clock ahead of the others'.
    pub fn set_ahead(&mut self, at: At, ahead: Duration) {
        self.machines[at].clock_ahead_ms = u64::try_from(ahead.as_millis()).expect("a few days");
    }

    /// The node on a machine, if it is up.
    #[must_use]
    pub fn node(&self, at: At) -> Option<&Node> {
        self.machines.get(at)?.node.as_ref()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.machines.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }

    /// Starts a machine from its disk, if it is down.
    pub fn start(&mut self, at: At) {
        if self.machines[at].node.is_none() {
            let entropy = self.seed();
            let now = self.clock_of(at);
            self.machines[at].start(entropy, now);
            self.drain(at);
        }
    }

    /// Kills a machine. Its connections go silent; the other ends wait for it until it is back and knows nothing of them.
    pub fn crash(&mut self, at: At) {
        self.machines[at].crash();
        self.wakes[at] = None;
        let mine: Vec<_> = (self.network.connections.iter_mut())
            .filter_map(|(number, connection)| {
                let end = connection.ends.iter_mut().find(|end| end.machine == at)?;
                end.up = false;
                connection.open = false;
                Some(*number)
            })
            .collect();
        mine.into_iter().for_each(|number| self.network.forget_if_over(number));
    }

    /// Puts some machines on the other side: nothing crosses, and nobody is told.
    pub fn partition(&mut self, far: impl IntoIterator<Item = At>) {
        self.network.far = far.into_iter().collect();
    }

    /// Cuts a connection after so many more bytes, in the middle of whatever they belong to.
    pub fn cut_after(&mut self, bytes: usize) {
        let open: Vec<_> = self.network.connections.iter().filter(|(_, c)| c.open).map(|(n, _)| *n).collect();
        if let Some(number) = self.pick(&open)
            && let Some(connection) = self.network.connections.get_mut(&number)
        {
            connection.bytes_left = Some(bytes);
        }
    }

    /// Connects two machines once more, besides what they have.
    pub fn duplicate(&mut self, from: At, to: At) {
        let lives = (self.machines[from].life, self.machines[to].life);
        let to = self.machines[to].key();
        self.later(Duration::from_millis(5), Event::Connected { from, to, lives });
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len())])
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.rng.next_u64() % (bound.max(1) as u64)).unwrap_or(0)
    }

    /// Gives a machine's node a command; `None` when it is down.
    pub fn command(&mut self, at: At, command: Command) -> Option<RequestId> {
        self.last_request += 1;
        let id = RequestId(self.last_request);
        self.input(at, Input::Command { id, command }).then_some(id)
    }

    /// The answer to a command, once it has come.
    pub fn reply(&mut self, id: RequestId) -> Option<Result<Reply, Refusal>> {
        self.replies.remove(&id)
    }

    /// Lets virtual time pass.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), event) = entry.remove_entry();
            self.now = self.now.max(at);
            self.happen(event);
            self.look();
        }
        self.now = end;
    }

    /// The roots of a machine's roll and lanes that are equal on all once they agree. Live lanes of machines that
    /// are down count too: all forget them alike.
    #[must_use]
    pub fn roots(&self, at: At) -> Option<[Digest; 4]> {
        let node = self.node(at)?;
        let lanes = Lane::ALL.map(|lane| node.document().root(lane));
        Some([node.roll().trie().root(), lanes[0], lanes[1], lanes[2]])
    }

    /// All entries of all state lanes as a machine holds them.
    #[must_use]
    pub fn state(&self, at: At) -> BTreeMap<(NodeKey, Vec<u8>), Vec<u8>> {
        let lanes = self.node(at).into_iter().flat_map(|node| node.document().iter(Lane::State));
        lanes
            .flat_map(|held| {
                let author = held.head().head().author;
                held.map().iter().map(move |entry| ((author, entry.key().to_vec()), entry.value().to_vec()))
            })
            .collect()
    }

    pub(super) fn later(&mut self, after: Duration, event: Event) {
        self.order += 1;
        self.queue.insert((self.now + after, self.order), event);
    }

    /// Whether the node was there to take it.
    pub(super) fn input(&mut self, at: At, input: Input) -> bool {
        let now = self.clock_of(at);
        let Some(node) = self.machines[at].node.as_mut() else { return false };
        node.handle(input, now);
        self.drain(at);
        true
    }

    fn drain(&mut self, at: At) {
        while let Some(output) = self.machines[at].node.as_mut().and_then(Node::poll_output) {
            self.execute(at, output);
        }
        let wake = self.machines[at].node.as_ref().and_then(Node::poll_timeout);
        if let Some(wake) = wake.filter(|wake| self.wakes[at].is_none_or(|pending| *wake < pending)) {
            self.wakes[at] = Some(wake);
            let life = self.machines[at].life;
            self.later(wake.since(self.now), Event::Wake { machine: at, life });
        }
    }

    fn execute(&mut self, at: At, output: Output) {
        match output {
            Output::Dial { peer, .. } => self.dial(at, peer),
            Output::Send { link, bytes } => self.send(at, link, bytes),
            Output::SendDatagram { link, bytes } => self.send_datagram(at, link, bytes),
            Output::Close { link, reason } => self.close(at, link, &reason),
            Output::Persist { id, writes } => {
                self.machines[at].write(id, writes);
                let (life, delay) = (self.machines[at].life, Duration::from_millis(self.below(20) as u64));
                self.later(delay, Event::Written { machine: at, life });
            }
            Output::Reply { id, result } => drop(self.replies.insert(id, result)),
            Output::StartReplica { version, name, holders } => self.start_replica(at, version, name, &holders),
            Output::StopReplica { version } => self.stop_replica(at, version),
            // This network finds machines wherever they are.
            Output::Silent { .. } | Output::Heard { .. } => {}
            Output::ViewChanged | Output::SignsChanged | Output::Event(_) => {}
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake { machine, life } => {
                if self.machines[machine].life == life && self.wakes[machine].is_some_and(|at| at <= self.now) {
                    self.wakes[machine] = None;
                    let now = self.clock_of(machine);
                    if let Some(node) = self.machines[machine].node.as_mut() {
                        node.handle_timeout(now);
                    }
                    self.drain(machine);
                }
            }
            Event::Written { machine, life } => {
                if self.machines[machine].life == life
                    && let Some(id) = self.machines[machine].written()
                {
                    self.input(machine, Input::Persisted { id });
                }
            }
            Event::Connected { from, to, lives } => self.connected(from, to, lives),
            Event::DialFailed { from, to, life } => {
                if self.machines[from].life == life {
                    self.input(from, Input::DialFailed { peer: to, reason: "unreachable".into() });
                }
            }
            Event::Bytes { connection, end, bytes } => {
                let waiting = self.network.connections.get_mut(&connection).map(|c| &mut c.ends[end].waiting);
                let first = waiting.is_some_and(|waiting| {
                    waiting.push_back(bytes);
                    waiting.len() == 1
                });
                if first {
                    self.deliver(connection, end);
                }
            }
            Event::Again { connection, end } => self.deliver(connection, end),
            Event::Writable { connection, end } => {
                let machine = self.network.connections.get(&connection).map(|c| c.ends[end].machine);
                if machine.is_none_or(|machine| !self.unread.contains(&machine)) {
                    self.arrive(connection, end, |link| Input::LinkWritable { link });
                }
            }
            Event::Datagram { connection, end, bytes } => {
                self.arrive(connection, end, |link| Input::LinkDatagram { link, bytes });
            }
            Event::Down { connection, end, reason } => self.down(connection, end, reason),
            Event::Made { machine, life, making } => self.made(machine, life, making),
            Event::Stopped { machine, life, version } => {
                if self.machines[machine].life == life {
                    self.input(machine, Input::ReplicaStopped { version });
                }
            }
        }
    }
}
