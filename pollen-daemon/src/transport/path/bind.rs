//! Binding before QUIC, as a state machine: what to answer to a probe, and which source it proves whose. Owns the dials
//! under way, the cookie secret and the answering rate; knows no socket and is told the time.
//! Invariant: a stranger's `Hello` leaves no state, and a source is proved by signature and cookie, never by claim.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pollen_common::identity::{NodeKey, SecretKey, Signature, Strict};
use pollen_common::path_probe::{Cookie, CookieKey, Nonce, Probe, bind_holds, bound_holds};

use super::address::Source;
use crate::transport::drops::DropReason;

/// Dials at once. A node that starts in a large cluster dials some hundreds; the driver retries what is refused.
pub const DIALS_MAX: usize = 256;
/// Addresses raced in one dial.
pub const ADDRS_MAX: usize = 8;
/// Places a dial may be answered from beyond those asked: a peer with several addresses answers from another one.
const CANDIDATES_MAX: usize = 2 * ADDRS_MAX;
/// Signatures spent on one dial: one per candidate and a second when cookies age, so that forged challenges cost little.
const SIGNATURES_MAX: u32 = 32;
/// Hellos answered a second. Each costs a hash and a short packet; a cluster of thousands starting at once stays below.
const HELLOS_PER_SECOND: u32 = 4000;
/// Binds checked a second. Each costs a verification and a signature, some 100 us: 5 % of one core.
const BINDS_PER_SECOND: u32 = 500;
/// When to repeat what was not answered, from the start of the dial; the last step repeats until the dial is given up.
const RETRY_STEPS_MS: [u64; 4] = [100, 200, 400, 800];

/// What a probe led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// To send back to where the probe came from.
    pub reply: Option<Vec<u8>>,
    /// The probe's source was proved to be this node's, in this dial.
    pub proved: Option<(NodeKey, Nonce)>,
    /// The dial that was proved is our own.
    pub ours: bool,
}

/// A dial of a peer, from `Hello` until its `Bound`.
#[derive(Debug)]
struct Dial {
    peer: NodeKey,
    candidates: Vec<Candidate>,
    signatures: u32,
}

#[derive(Debug)]
struct Candidate {
    source: Source,
    /// Its challenge, and our answer to it.
    bind: Option<(Cookie, Vec<u8>)>,
    bound: bool,
}

/// The state machine. One per socket.
pub struct Binder {
    secret: SecretKey,
    key: NodeKey,
    cookies: CookieKey,
    epoch: Instant,
    dials: HashMap<[u8; 16], Dial>,
    hellos: Bucket,
    binds: Bucket,
}

/// Too many dials at once: nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{DIALS_MAX} dials are under way already")]
pub struct TooManyDials;

impl Binder {
    /// For the node with `secret`; `cookie_key` is random and this process's own.
    #[must_use]
    pub fn new(secret: SecretKey, cookie_key: [u8; 32], now: Instant) -> Self {
        Self {
            key: secret.public(),
            secret,
            cookies: CookieKey(cookie_key),
            epoch: now,
            dials: HashMap::new(),
            hellos: Bucket::new(HELLOS_PER_SECOND, now),
            binds: Bucket::new(BINDS_PER_SECOND, now),
        }
    }

    /// Begins to dial `peer` at the first [`ADDRS_MAX`] of `addrs`; `nonce` is random.
    ///
    /// # Errors
    /// [`TooManyDials`].
    pub fn dial(&mut self, peer: NodeKey, addrs: &[Source], nonce: Nonce) -> Result<(), TooManyDials> {
        if self.dials.len() >= DIALS_MAX {
            return Err(TooManyDials);
        }
        let mut candidates: Vec<Candidate> = Vec::new();
        for &source in addrs.iter().filter(|source| source.is_usable()) {
            if candidates.len() < ADDRS_MAX && candidates.iter().all(|known| known.source != source) {
                candidates.push(Candidate { source, bind: None, bound: false });
            }
        }
        self.dials.insert(nonce.0, Dial { peer, candidates, signatures: 0 });
        Ok(())
    }

    /// One more place to try in a dial under way, and what to send there now.
    pub fn also(&mut self, nonce: Nonce, source: Source) -> Option<Vec<u8>> {
        let dial = self.dials.get_mut(&nonce.0)?;
        let new = dial.candidates.len() < CANDIDATES_MAX && dial.candidates.iter().all(|known| known.source != source);
        new.then(|| {
            dial.candidates.push(Candidate { source, bind: None, bound: false });
            Probe::Hello { from: self.key, to: dial.peer, nonce }.encode()
        })
    }

    /// What the dial has to send now, and again after [`retry_after`]. Once one candidate is bound no further one is
    /// greeted, but each that was challenged is bound as well: the peer may have made it its route to us.
    #[must_use]
    pub fn packets(&self, nonce: Nonce) -> Vec<(Source, Vec<u8>)> {
        let Some(dial) = self.dials.get(&nonce.0) else { return Vec::new() };
        let hello = Probe::Hello { from: self.key, to: dial.peer, nonce }.encode();
        let greet = dial.candidates.iter().all(|candidate| !candidate.bound);
        let packet = |candidate: &Candidate| match &candidate.bind {
            _ if candidate.bound => None,
            Some((_, bind)) => Some((candidate.source, bind.clone())),
            None => greet.then(|| (candidate.source, hello.clone())),
        };
        dial.candidates.iter().filter_map(packet).collect()
    }

    /// Forgets a dial, bound or not.
    pub fn end(&mut self, nonce: Nonce) {
        self.dials.remove(&nonce.0);
    }

    /// A probe came from `source`.
    ///
    /// # Errors
    /// Why it was dropped, as a metric label. Nothing was changed.
    pub fn handle(&mut self, source: Source, bytes: &[u8], now: Instant) -> Result<Outcome, DropReason> {
        match Probe::decode(bytes).map_err(|_| DropReason::ProbeMalformed)? {
            Probe::Hello { from, to, nonce } => self.hello(source, from, to, nonce, now),
            Probe::Challenge { nonce, cookie } => self.challenge(source, nonce, cookie),
            Probe::Bind { from, to, nonce, cookie, signature } => {
                self.for_us(&from, &to)?;
                if !self.cookies.accepts(cookie, &source.as_v6(), &from, nonce, self.time_ms(now)) {
                    return Err(DropReason::ProbeCookie);
                }
                self.binds.take(now)?;
                if !bind_holds(&Strict, &from, &to, nonce, cookie, &signature) {
                    return Err(DropReason::ProbeSignature);
                }
                let reply = Some(Probe::bound(&self.secret, from, nonce, cookie).encode());
                Ok(Outcome { reply, proved: Some((from, nonce)), ours: false })
            }
            Probe::Bound { nonce, signature } => self.bound(source, nonce, &signature),
        }
    }

    fn hello(
        &mut self,
        source: Source,
        from: NodeKey,
        to: NodeKey,
        nonce: Nonce,
        now: Instant,
    ) -> Result<Outcome, DropReason> {
        self.for_us(&from, &to)?;
        self.hellos.take(now)?;
        let cookie = self.cookies.cookie(&source.as_v6(), &from, nonce, self.time_ms(now));
        Ok(Outcome { reply: Some(Probe::Challenge { nonce, cookie }.encode()), ..Outcome::default() })
    }

    fn challenge(&mut self, source: Source, nonce: Nonce, cookie: Cookie) -> Result<Outcome, DropReason> {
        let dial = self.dials.get_mut(&nonce.0).ok_or(DropReason::ProbeUnexpected)?;
        let place = match dial.candidates.iter().position(|candidate| candidate.source == source) {
            Some(place) => place,
            // The nonce is known only where we asked, so another source is another address of whoever is there.
            None if dial.candidates.len() < CANDIDATES_MAX && source.is_usable() => {
                dial.candidates.push(Candidate { source, bind: None, bound: false });
                dial.candidates.len() - 1
            }
            None => return Err(DropReason::ProbeUnexpected),
        };
        let candidate = &mut dial.candidates[place];
        if candidate.bind.as_ref().is_none_or(|(known, _)| *known != cookie) {
            if dial.signatures >= SIGNATURES_MAX {
                return Err(DropReason::ProbeRate);
            }
            dial.signatures += 1;
            candidate.bind = Some((cookie, Probe::bind(&self.secret, dial.peer, nonce, cookie).encode()));
        }
        Ok(Outcome { reply: candidate.bind.as_ref().map(|(_, bind)| bind.clone()), ..Outcome::default() })
    }

    fn bound(&mut self, source: Source, nonce: Nonce, signature: &Signature) -> Result<Outcome, DropReason> {
        let dial = self.dials.get_mut(&nonce.0).ok_or(DropReason::ProbeUnexpected)?;
        let candidate = dial.candidates.iter_mut().find(|candidate| candidate.source == source && !candidate.bound);
        let candidate = candidate.ok_or(DropReason::ProbeUnexpected)?;
        let (cookie, _) = candidate.bind.as_ref().ok_or(DropReason::ProbeUnexpected)?;
        if !bound_holds(&Strict, &dial.peer, &self.key, nonce, *cookie, signature) {
            return Err(DropReason::ProbeSignature);
        }
        candidate.bound = true;
        Ok(Outcome { reply: None, proved: Some((dial.peer, nonce)), ours: true })
    }

    /// Refuses what names another node, and what claims to be ours.
    fn for_us(&self, from: &NodeKey, to: &NodeKey) -> Result<(), DropReason> {
        if *to == self.key && *from != self.key { Ok(()) } else { Err(DropReason::ProbeNotForUs) }
    }

    fn time_ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }
}

/// How long to wait for answers after having sent [`Binder::packets`] `sent` times.
#[must_use]
pub fn retry_after(sent: usize) -> Duration {
    Duration::from_millis(RETRY_STEPS_MS[sent.saturating_sub(1).min(RETRY_STEPS_MS.len() - 1)])
}

/// A bound on a rate: a second's worth may come at once.
#[derive(Debug)]
struct Bucket {
    per_second: u32,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second, tokens: f64::from(per_second), filled: now }
    }

    fn take(&mut self, now: Instant) -> Result<(), DropReason> {
        let rate = f64::from(self.per_second);
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * rate;
        self.tokens = (self.tokens + gained).min(rate);
        self.filled = now;
        if self.tokens < 1.0 {
            return Err(DropReason::ProbeRate);
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    const NONCE: Nonce = Nonce([9; 16]);

    struct Pair {
        a: Binder,
        b: Binder,
        at_a: Source,
        at_b: Source,
        now: Instant,
    }

    fn source(port: u16) -> Source {
        Source::from(SocketAddr::from(([192, 0, 2, 1], port)))
    }

    fn pair() -> Pair {
        let now = Instant::now();
        let binder = |seed| Binder::new(SecretKey::from_seed(&[seed; 32]), [seed; 32], now);
        Pair { a: binder(1), b: binder(2), at_a: source(1), at_b: source(2), now }
    }

    impl Pair {
        /// A's bind of B, up to and without B's handling of it.
        fn bind(&mut self) -> Vec<u8> {
            self.a.dial(self.b.key, &[self.at_b], NONCE).unwrap();
            let (to, hello) = self.a.packets(NONCE).remove(0);
            assert_eq!(to, self.at_b);
            let challenge = self.b.handle(self.at_a, &hello, self.now).unwrap().reply.unwrap();
            self.a.handle(self.at_b, &challenge, self.now).unwrap().reply.unwrap()
        }
    }

    #[test]
    fn two_nodes_prove_each_other_in_two_round_trips() {
        let mut pair = pair();
        let bind = pair.bind();
        let at_b = pair.b.handle(pair.at_a, &bind, pair.now).unwrap();
        assert_eq!(at_b.proved, Some((pair.a.key, NONCE)));
        let at_a = pair.a.handle(pair.at_b, &at_b.reply.unwrap(), pair.now).unwrap();
        assert_eq!(at_a, Outcome { reply: None, proved: Some((pair.b.key, NONCE)), ours: true });
        assert!(pair.a.packets(NONCE).is_empty(), "nothing is left to ask");
    }

    #[test]
    fn a_bind_replayed_from_another_source_or_later_proves_nothing() {
        let mut pair = pair();
        let bind = pair.bind();
        assert_eq!(pair.b.handle(source(3), &bind, pair.now), Err(DropReason::ProbeCookie));
        let later = pair.now + Duration::from_secs(60);
        assert_eq!(pair.b.handle(pair.at_a, &bind, later), Err(DropReason::ProbeCookie));
        let mut forged = bind.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(pair.b.handle(pair.at_a, &forged, pair.now), Err(DropReason::ProbeSignature));
        assert!(pair.b.handle(pair.at_a, &bind, pair.now).is_ok(), "and the true one still does");
    }

    #[test]
    fn whoever_holds_another_key_cannot_answer_a_dial() {
        let mut pair = pair();
        let bind = pair.bind();
        let Ok(Probe::Bind { nonce, cookie, from, .. }) = Probe::decode(&bind) else { panic!("a bind") };
        let imposter = Probe::bound(&SecretKey::from_seed(&[3; 32]), from, nonce, cookie).encode();
        assert_eq!(pair.a.handle(pair.at_b, &imposter, pair.now), Err(DropReason::ProbeSignature));
        let honest = Probe::bound(&SecretKey::from_seed(&[2; 32]), from, nonce, cookie).encode();
        assert_eq!(pair.a.handle(source(3), &honest, pair.now), Err(DropReason::ProbeUnexpected), "not from there");
    }

    #[test]
    fn a_peer_may_answer_from_another_of_its_addresses() {
        let mut pair = pair();
        pair.a.dial(pair.b.key, &[pair.at_b], NONCE).unwrap();
        let (_, hello) = pair.a.packets(NONCE).remove(0);
        let challenge = pair.b.handle(pair.at_a, &hello, pair.now).unwrap().reply.unwrap();
        let other = source(7);
        let bind = pair.a.handle(other, &challenge, pair.now).unwrap().reply.unwrap();
        let bound = pair.b.handle(pair.at_a, &bind, pair.now).unwrap().reply.unwrap();
        assert_eq!(pair.a.handle(other, &bound, pair.now).unwrap().proved, Some((pair.b.key, NONCE)));
        assert!(pair.a.packets(NONCE).is_empty(), "bound, so no further address is greeted");
    }

    #[test]
    fn every_challenged_address_is_bound_even_after_the_first() {
        let mut pair = pair();
        let second = source(8);
        pair.a.dial(pair.b.key, &[pair.at_b, second], NONCE).unwrap();
        let (_, hello) = pair.a.packets(NONCE).remove(0);
        let challenge = pair.b.handle(pair.at_a, &hello, pair.now).unwrap().reply.unwrap();
        let bind = pair.a.handle(pair.at_b, &challenge, pair.now).unwrap().reply.unwrap();
        pair.a.handle(second, &challenge, pair.now).unwrap();
        let bound = pair.b.handle(pair.at_a, &bind, pair.now).unwrap().reply.unwrap();
        pair.a.handle(pair.at_b, &bound, pair.now).unwrap();
        assert_eq!(pair.a.packets(NONCE), [(second, bind)]);
        assert!(pair.a.handle(second, &bound, pair.now).unwrap().proved.is_some());
        assert!(pair.a.packets(NONCE).is_empty());
    }

    #[test]
    fn a_dial_asks_each_address_once_and_at_most_eight() {
        let mut pair = pair();
        let many: Vec<Source> = (0..20).map(|port| source(port / 2)).collect();
        pair.a.dial(pair.b.key, &many, NONCE).unwrap();
        let sources: std::collections::BTreeSet<Source> = pair.a.packets(NONCE).into_iter().map(|(s, _)| s).collect();
        assert_eq!(sources.len(), ADDRS_MAX);
        assert!(!sources.contains(&source(0)), "port 0 cannot be sent to");
    }

    #[test]
    fn forged_challenges_cost_a_bounded_number_of_signatures() {
        let mut pair = pair();
        pair.a.dial(pair.b.key, &[pair.at_b], NONCE).unwrap();
        let answered = (0..1000_u16)
            .filter(|n| {
                let mut cookie = [0; 16];
                cookie[..2].copy_from_slice(&n.to_be_bytes());
                let challenge = Probe::Challenge { nonce: NONCE, cookie: Cookie(cookie) }.encode();
                pair.a.handle(pair.at_b, &challenge, pair.now).is_ok()
            })
            .count();
        assert_eq!(answered, SIGNATURES_MAX as usize);
    }

    #[test]
    fn hellos_beyond_the_rate_are_dropped_and_come_through_a_second_later() {
        let mut pair = pair();
        let hello = Probe::Hello { from: pair.a.key, to: pair.b.key, nonce: NONCE }.encode();
        for _ in 0..HELLOS_PER_SECOND {
            assert!(pair.b.handle(pair.at_a, &hello, pair.now).is_ok());
        }
        assert_eq!(pair.b.handle(pair.at_a, &hello, pair.now), Err(DropReason::ProbeRate));
        assert!(pair.b.handle(pair.at_a, &hello, pair.now + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn dials_are_bounded_and_an_ended_one_makes_room() {
        let mut pair = pair();
        for n in 0..DIALS_MAX {
            let mut nonce = [0; 16];
            nonce[..8].copy_from_slice(&(n as u64).to_be_bytes());
            pair.a.dial(pair.b.key, &[pair.at_b], Nonce(nonce)).unwrap();
        }
        assert_eq!(pair.a.dial(pair.b.key, &[pair.at_b], NONCE), Err(TooManyDials));
        pair.a.end(Nonce([0; 16]));
        assert_eq!(pair.a.dial(pair.b.key, &[pair.at_b], NONCE), Ok(()));
    }
}
