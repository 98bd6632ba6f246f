//! The probes that bind a UDP source to a node before any QUIC packet of it is looked at. Owns their bytes and what
//! is signed; knows no sockets and keeps no state. Format: `docs/protocol/path.md`.
//! Invariant: no answer is longer than its question, so a forged source gains nothing by asking.

use alloc::vec::Vec;
use core::net::{Ipv6Addr, SocketAddrV6};

use crate::hash::{Context, digest};
use crate::identity::{NodeKey, SecretKey, Signature, Verify};

/// The first byte of a UDP payload that is a probe. QUIC's fixed bit (0x40) is clear in it.
pub const FIRST_BYTE: u8 = 0x02;
/// The bit that every QUIC packet of ours has set in its first byte.
pub const QUIC_FIXED_BIT: u8 = 0x40;
/// The longest probe, a `Bind`.
pub const LEN_MAX: usize = BIND_LEN;
/// How long a cookie's tick lasts, in milliseconds. A cookie is good for its own tick and the next one.
pub const COOKIE_TICK_MS: u64 = 15_000;

const HELLO: u8 = 1;
const CHALLENGE: u8 = 2;
const BIND: u8 = 3;
const BOUND: u8 = 4;

const HELLO_LEN: usize = 2 + 32 + 32 + 16;
const CHALLENGE_LEN: usize = 2 + 16 + 16;
const BIND_LEN: usize = 2 + 32 + 32 + 16 + 16 + 64;
const BOUND_LEN: usize = 2 + 16 + 64;
const _: () = assert!(CHALLENGE_LEN <= HELLO_LEN && BOUND_LEN <= BIND_LEN, "answers must not amplify");

const BIND_CONTEXT: &[u8] = b"pollen 2026 v1 path bind";
const BOUND_CONTEXT: &[u8] = b"pollen 2026 v1 path bound";

/// Names one dial; 16 random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nonce(pub [u8; 16]);

/// What the answering side gives out instead of keeping state: proof that the asker receives at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub [u8; 16]);

/// A probe, as parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `from` wants to be bound at `to`.
    Hello { from: NodeKey, to: NodeKey, nonce: Nonce },
    /// The answer to `Hello`: come back with this cookie and a signature.
    Challenge { nonce: Nonce, cookie: Cookie },
    /// `from` proves its key, and by the cookie that it receives where it sends from.
    Bind { from: NodeKey, to: NodeKey, nonce: Nonce, cookie: Cookie, signature: Signature },
    /// The answer to `Bind`: bound, and the answering node proves its own key.
    Bound { nonce: Nonce, signature: Signature },
}

/// Why bytes are no probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("not a probe that this version knows")]
    Kind,
    #[error("a probe of the wrong length")]
    Length,
}

impl Probe {
    /// From a whole UDP payload. Lengths are exact: what is longer or shorter is no probe.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ProbeError> {
        let [FIRST_BYTE, kind, rest @ ..] = bytes else { return Err(ProbeError::Kind) };
        let mut fields = Fields(rest);
        let probe = match *kind {
            HELLO => {
                Self::Hello { from: NodeKey(fields.take()?), to: NodeKey(fields.take()?), nonce: Nonce(fields.take()?) }
            }
            CHALLENGE => Self::Challenge { nonce: Nonce(fields.take()?), cookie: Cookie(fields.take()?) },
            BIND => Self::Bind {
                from: NodeKey(fields.take()?),
                to: NodeKey(fields.take()?),
                nonce: Nonce(fields.take()?),
                cookie: Cookie(fields.take()?),
                signature: Signature(fields.take()?),
            },
            BOUND => Self::Bound { nonce: Nonce(fields.take()?), signature: Signature(fields.take()?) },
            _ => return Err(ProbeError::Kind),
        };
        if fields.0.is_empty() { Ok(probe) } else { Err(ProbeError::Length) }
    }

    /// The bytes to send; [`Probe::decode`] of them gives the same probe.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LEN_MAX);
        bytes.push(FIRST_BYTE);
        match self {
            Self::Hello { from, to, nonce } => {
                bytes.push(HELLO);
                append(&mut bytes, &[&from.0, &to.0, &nonce.0]);
            }
            Self::Challenge { nonce, cookie } => {
                bytes.push(CHALLENGE);
                append(&mut bytes, &[&nonce.0, &cookie.0]);
            }
            Self::Bind { from, to, nonce, cookie, signature } => {
                bytes.push(BIND);
                append(&mut bytes, &[&from.0, &to.0, &nonce.0, &cookie.0, &signature.0]);
            }
            Self::Bound { nonce, signature } => {
                bytes.push(BOUND);
                append(&mut bytes, &[&nonce.0, &signature.0]);
            }
        }
        bytes
    }

    /// A `Bind` of `secret`'s node at `to`.
    #[must_use]
    pub fn bind(secret: &SecretKey, to: NodeKey, nonce: Nonce, cookie: Cookie) -> Self {
        let from = secret.public();
        let signature = secret.sign(&signed(BIND_CONTEXT, &from, &to, nonce, cookie));
        Self::Bind { from, to, nonce, cookie, signature }
    }

    /// A `Bound` of `secret`'s node, answering `dialler`'s `Bind`.
    #[must_use]
    pub fn bound(secret: &SecretKey, dialler: NodeKey, nonce: Nonce, cookie: Cookie) -> Self {
        let signature = secret.sign(&signed(BOUND_CONTEXT, &secret.public(), &dialler, nonce, cookie));
        Self::Bound { nonce, signature }
    }
}

/// Whether `signature` is `from`'s over a `Bind` to `to`.
#[must_use]
pub fn bind_holds(
    verify: &dyn Verify,
    from: &NodeKey,
    to: &NodeKey,
    nonce: Nonce,
    cookie: Cookie,
    signature: &Signature,
) -> bool {
    verify.verify(from, &signed(BIND_CONTEXT, from, to, nonce, cookie), signature)
}

/// Whether `signature` is `from`'s over the `Bound` that answers `dialler`.
#[must_use]
pub fn bound_holds(
    verify: &dyn Verify,
    from: &NodeKey,
    dialler: &NodeKey,
    nonce: Nonce,
    cookie: Cookie,
    signature: &Signature,
) -> bool {
    verify.verify(from, &signed(BOUND_CONTEXT, from, dialler, nonce, cookie), signature)
}

fn signed(context: &[u8], from: &NodeKey, to: &NodeKey, nonce: Nonce, cookie: Cookie) -> Vec<u8> {
    let mut message = Vec::with_capacity(context.len() + 96);
    append(&mut message, &[context, &from.0, &to.0, &nonce.0, &cookie.0]);
    message
}

fn append(bytes: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        bytes.extend_from_slice(part);
    }
}

/// The fields of a probe still unread.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ProbeError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(ProbeError::Length)?;
        self.0 = rest;
        Ok(*field)
    }
}

/// The secret that makes cookies; random, and gone with the process.
pub struct CookieKey(pub [u8; 32]);

impl CookieKey {
    /// The cookie for whoever receives at `source` and says it is `from`, in the tick of `time_ms` (any clock of this
    /// node that does not go back).
    #[must_use]
    pub fn cookie(&self, source: &SocketAddrV6, from: &NodeKey, nonce: Nonce, time_ms: u64) -> Cookie {
        self.of_tick(source, from, nonce, time_ms / COOKIE_TICK_MS)
    }

    /// Whether `cookie` was given out for exactly this in this tick or the last.
    #[must_use]
    pub fn accepts(&self, cookie: Cookie, source: &SocketAddrV6, from: &NodeKey, nonce: Nonce, time_ms: u64) -> bool {
        let tick = time_ms / COOKIE_TICK_MS;
        let last = tick.saturating_sub(1);
        same(cookie, self.of_tick(source, from, nonce, tick)) || same(cookie, self.of_tick(source, from, nonce, last))
    }

    fn of_tick(&self, source: &SocketAddrV6, from: &NodeKey, nonce: Nonce, tick: u64) -> Cookie {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&source.ip().octets());
        hasher.update(&source.port().to_be_bytes());
        hasher.update(&source.scope_id().to_be_bytes());
        hasher.update(&from.0);
        hasher.update(&nonce.0);
        hasher.update(&tick.to_be_bytes());
        let (cookie, _) =
            hasher.finalize().as_bytes().split_first_chunk::<16>().map(|(c, r)| (*c, r)).expect("32 > 16");
        Cookie(cookie)
    }
}

/// Equality that takes the same time wherever the difference is, so that a cookie cannot be guessed byte by byte.
fn same(a: Cookie, b: Cookie) -> bool {
    a.0.iter().zip(&b.0).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// The address by which QUIC knows a node, whatever path its packets take: `fd70::/16` and 112 bits of its key's digest.
/// Never on the wire.
#[must_use]
pub fn virtual_ip(key: &NodeKey) -> Ipv6Addr {
    let hash = digest(Context::VirtualAddress, &[&key.0]);
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfd, 0x70]);
    octets[2..].copy_from_slice(&hash.0[..14]);
    Ipv6Addr::from(octets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Strict;
    use std::string::String;
    use std::vec;

    const NONCE: Nonce = Nonce([0x11; 16]);
    const COOKIE: Cookie = Cookie([0x22; 16]);

    fn secrets() -> (SecretKey, SecretKey) {
        (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]))
    }

    fn every_kind() -> [(&'static str, Probe); 4] {
        let (a, b) = secrets();
        [
            ("hello", Probe::Hello { from: a.public(), to: b.public(), nonce: NONCE }),
            ("challenge", Probe::Challenge { nonce: NONCE, cookie: COOKIE }),
            ("bind", Probe::bind(&a, b.public(), NONCE, COOKIE)),
            ("bound", Probe::bound(&b, a.public(), NONCE, COOKIE)),
        ]
    }

    #[test]
    fn every_probe_round_trips_and_no_other_length_parses() {
        for (name, probe) in every_kind() {
            let bytes = probe.encode();
            assert_eq!(Probe::decode(&bytes), Ok(probe), "{name}");
            assert!(bytes.len() <= LEN_MAX);
            for len in 0..bytes.len() {
                assert!(Probe::decode(&bytes[..len]).is_err(), "{name} cut to {len}");
            }
            assert_eq!(Probe::decode(&[bytes, vec![0]].concat()), Err(ProbeError::Length), "{name} and a byte");
        }
        assert_eq!(Probe::decode(&[FIRST_BYTE, 9]), Err(ProbeError::Kind));
        assert_eq!(Probe::decode(&[0x01, HELLO]), Err(ProbeError::Kind));
    }

    #[test]
    fn the_bytes_are_those_of_the_document() {
        let mut vectors = String::new();
        for (name, probe) in every_kind() {
            let hex: String = probe.encode().iter().map(|byte| std::format!("{byte:02x}")).collect();
            vectors += &std::format!("{name}: {hex}\n");
        }
        vectors += &std::format!("virtual address: {}\n", virtual_ip(&secrets().0.public()));
        let document = include_str!("../../docs/protocol/path.md");
        assert!(document.contains(&vectors), "docs/protocol/path.md lacks\n{vectors}");
    }

    #[test]
    fn a_bind_holds_for_its_ends_nonce_and_cookie_only() {
        let (a, b) = secrets();
        let Probe::Bind { signature, .. } = Probe::bind(&a, b.public(), NONCE, COOKIE) else { unreachable!() };
        let (a, b) = (a.public(), b.public());
        assert!(bind_holds(&Strict, &a, &b, NONCE, COOKIE, &signature));
        assert!(!bind_holds(&Strict, &b, &a, NONCE, COOKIE, &signature));
        assert!(!bind_holds(&Strict, &a, &b, Nonce([0; 16]), COOKIE, &signature));
        assert!(!bind_holds(&Strict, &a, &b, NONCE, Cookie([0; 16]), &signature));
        assert!(!bound_holds(&Strict, &a, &b, NONCE, COOKIE, &signature), "a bind is no answer");
    }

    #[test]
    fn a_cookie_is_good_for_its_source_key_nonce_and_two_ticks_only() {
        let key = CookieKey([7; 32]);
        let source = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 9000, 0, 0);
        let other = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 9001, 0, 0);
        let (a, b) = (secrets().0.public(), secrets().1.public());
        let cookie = key.cookie(&source, &a, NONCE, 0);
        assert!(key.accepts(cookie, &source, &a, NONCE, COOKIE_TICK_MS));
        assert!(!key.accepts(cookie, &source, &a, NONCE, 2 * COOKIE_TICK_MS));
        assert!(!key.accepts(cookie, &other, &a, NONCE, 0));
        assert!(!key.accepts(cookie, &source, &b, NONCE, 0));
        assert!(!key.accepts(cookie, &source, &a, Nonce([0; 16]), 0));
    }
}
