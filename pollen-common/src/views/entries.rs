//! The kinds of entries: their keys and values, made by whoever authors them and read by views. Owns the formats
//! (`docs/protocol/state.md`); must not decide what counts. Invariant: reading never panics, ignores fields of newer
//! versions, and refuses a policy or constraint of which it does not know every clause.
//!
//! Values are CBOR maps with small integer keys.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use minicbor::{Decoder, Encoder};

use super::{Capacity, Inability, Name, Policy, Protocol, Target, VersionId};
use crate::identity::{Digest, NodeKey};
use crate::maps::{Entry, Lane};
use crate::time::UnixMs;

mod policy;
mod seeds;
pub use policy::{policy_bytes, policy_in};
use seeds::DIGEST_PREFIXES;
pub use seeds::{
    SeedClaim, drain, holding, host, host_key, is_hosting, read_claim as read_seed_claim, replica, seed, seed_in,
    seed_key, seed_prefix, unable,
};

/// The most addresses that a node says of itself.
pub const ADDRS_MAX: usize = 8;

/// A claim names the content of a version and of the one that is to replace it.
pub const HASHES_MAX: usize = 2;

const NODE: &[u8] = b"node";
const CLAIM: &[u8] = b"svc/";
const PROVIDER: &[u8] = b"prov/";
const TCP_PORT: &[u8] = b"port/tcp/";
const UDP_PORT: &[u8] = b"port/udp/";
const LINK: &[u8] = b"link/";

/// What one entry says, if its author may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// How the author is called and where it can be reached by UDP.
    Node { name: Option<Name>, addrs: Vec<SocketAddr> },
    /// The author claims a name.
    Claim { name: Name, claim: Claim },
    /// The author provides the service that `owner` claims.
    Provider { name: Name, owner: NodeKey, offered: Offered },
    /// The author serves a port without a name.
    Unnamed { protocol: Protocol, port: u16, policy: Policy },
    /// The author is connected with `peer`.
    Link { peer: NodeKey },
    /// The author claims the name of a seed.
    Seed { name: Name, claim: SeedClaim },
    /// The author runs seeds, with so much to offer.
    Host(Capacity),
    /// The author is ready to serve a version of the seed `name`.
    Replica { version: VersionId, name: Name },
    /// The author keeps a module, whole.
    Holds { module: Digest },
    /// The author cannot make a version ready, for a reason of its own.
    Unable { version: VersionId, why: Inability },
    /// The author is about to leave.
    Drains,
}

/// What a claim says of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub protocol: Protocol,
    /// The owner's local port, if it provides the service itself.
    pub port: Option<u16>,
    /// Its port in the other protocol, if it speaks both.
    pub also: Option<u16>,
    /// Whether other publishers may provide it.
    pub shared: bool,
    pub claimed: UnixMs,
    /// Content of this version and of the next, for kinds that have content. At most [`HASHES_MAX`].
    pub hashes: Vec<Digest>,
    /// Who may use it.
    pub policy: Policy,
}

impl Claim {
    /// The owner's port in a protocol.
    #[must_use]
    pub fn port_in(&self, protocol: Protocol) -> Option<u16> {
        if protocol == self.protocol { self.port } else { self.also }
    }

    /// Sets the owner's port in a protocol. The first stays the first while it is spoken.
    pub fn set_port(&mut self, protocol: Protocol, port: Option<u16>) {
        if protocol == self.protocol {
            self.port = port;
        } else {
            self.also = port;
        }
        if self.port.is_none() && self.also.is_some() {
            self.protocol = self.protocol.other();
            self.port = self.also.take();
        }
    }
}

/// What a provider that is not the owner offers: a port for each protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offered {
    pub tcp: Option<u16>,
    pub udp: Option<u16>,
    /// From a node that knows of one protocol alone: a port in that of the claim.
    pub of_claim: Option<u16>,
    /// Who may use it here, of those whom the owner lets.
    pub policy: Policy,
}

impl Offered {
    /// The port in a protocol, where the claim is for `claimed` first.
    #[must_use]
    pub fn port_in(&self, protocol: Protocol, claimed: Protocol) -> Option<u16> {
        if self.tcp.or(self.udp).is_none() {
            return self.of_claim.filter(|_| protocol == claimed);
        }
        match protocol {
            Protocol::Tcp => self.tcp,
            Protocol::Udp => self.udp,
        }
    }

    /// Sets the port in a protocol.
    pub fn set_port(&mut self, protocol: Protocol, port: Option<u16>) {
        match protocol {
            Protocol::Tcp => self.tcp = port,
            Protocol::Udp => self.udp = port,
        }
        self.of_claim = self.tcp.or(self.udp);
    }
}

/// Why an entry cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    #[error("its kind is unknown here")]
    Kind,
    #[error("its value is malformed")]
    Malformed,
    #[error("a clause of its policy, constraints or limits is unknown here")]
    Clause,
}

/// Bytes of an entry: key and value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Facts: this node's name and addresses, of which at most [`ADDRS_MAX`] are said.
#[must_use]
pub fn node(name: Option<&Name>, addrs: &[SocketAddr]) -> Pair {
    let value = written(|e| {
        e.map(1 + u64::from(name.is_some()))?;
        if let Some(name) = name {
            e.u8(0)?.str(name.as_str())?;
        }
        let addrs = &addrs[..addrs.len().min(ADDRS_MAX)];
        e.u8(1)?.array(addrs.len() as u64)?;
        addrs.iter().try_for_each(|addr| e.bytes(&addr_bytes(addr)).map(drop))
    });
    (NODE.to_vec(), value)
}

/// Facts: a claim of a service's name.
#[must_use]
pub fn claim(name: &Name, claim: &Claim) -> Pair {
    let value = written(|e| {
        let ports = u64::from(claim.port.is_some()) + u64::from(claim.also.is_some());
        let fields = 3 + ports + u64::from(!claim.hashes.is_empty()) + u64::from(!claim.policy.is_open());
        e.map(fields)?.u8(0)?.u8(protocol_code(claim.protocol))?;
        if let Some(port) = claim.port {
            e.u8(1)?.u16(port)?;
        }
        e.u8(2)?.bool(claim.shared)?.u8(3)?.u64(claim.claimed.0)?;
        if !claim.hashes.is_empty() {
            e.u8(4)?.encode(&claim.hashes)?;
        }
        if !claim.policy.is_open() {
            policy::write(e.u8(5)?, &claim.policy)?;
        }
        if let Some(also) = claim.also {
            e.u8(7)?.u16(also)?;
        }
        Ok(())
    });
    (claim_key(name), value)
}

/// The key of the claim of `name`.
#[must_use]
pub fn claim_key(name: &Name) -> Vec<u8> {
    [CLAIM, name.as_str().as_bytes()].concat()
}

/// The claim in a value of this node's own.
#[must_use]
pub fn claim_in(value: &[u8]) -> Option<Claim> {
    read_claim(value).ok()
}

/// What an own value offers.
#[must_use]
pub fn offered_in(value: &[u8]) -> Option<Offered> {
    read_offered(value).ok()
}

/// The date in a claim's value.
#[must_use]
pub fn claimed_at(value: &[u8]) -> Option<UnixMs> {
    read_claim(value).ok().map(|claim| claim.claimed)
}

/// Facts: this node provides the service `name` that `owner` claims and shares.
#[must_use]
pub fn provider(name: &Name, owner: &NodeKey, offered: &Offered) -> Pair {
    let ports = [(0, offered.of_claim), (1, offered.tcp), (2, offered.udp)];
    let said = || ports.iter().filter_map(|(field, port)| Some((*field, (*port)?)));
    let value = written(|e| {
        e.map(said().count() as u64 + u64::from(!offered.policy.is_open()))?;
        said().try_for_each(|(field, port): (u8, u16)| e.u8(field)?.u16(port).map(drop))?;
        if offered.policy.is_open() { Ok(()) } else { policy::write(e.u8(5)?, &offered.policy) }
    });
    (provider_key(name, owner), value)
}

/// The key of the entry that says so.
#[must_use]
pub fn provider_key(name: &Name, owner: &NodeKey) -> Vec<u8> {
    [&provider_prefix(name), &owner.0[..]].concat()
}

/// What the keys of all provider entries for `name` begin with.
#[must_use]
pub fn provider_prefix(name: &Name) -> Vec<u8> {
    [PROVIDER, name.as_str().as_bytes(), b"/"].concat()
}

/// Facts: a port served without a name.
#[must_use]
pub fn unnamed(protocol: Protocol, port: u16, policy: &Policy) -> Pair {
    let kind = match protocol {
        Protocol::Tcp => TCP_PORT,
        Protocol::Udp => UDP_PORT,
    };
    let value = written(|e| match policy.is_open() {
        true => e.map(0).map(drop),
        false => policy::write(e.map(1)?.u8(5)?, policy),
    });
    ([kind, alloc::format!("{port}").as_bytes()].concat(), value)
}

/// Live: a connection with `peer`.
#[must_use]
pub fn link(peer: &NodeKey) -> Pair {
    (link_key(peer), empty())
}

/// The key of the link with `peer`.
#[must_use]
pub fn link_key(peer: &NodeKey) -> Vec<u8> {
    [LINK, &peer.0[..]].concat()
}

/// Whether an entry of this key says of a link.
#[must_use]
pub fn is_link(key: &[u8]) -> bool {
    key.starts_with(LINK)
}

/// The service or seed that an entry of this key is about, whatever its value.
#[must_use]
pub fn target_in(key: &[u8]) -> Option<Target> {
    if let Some(seed) = seed_in(key) {
        return Some(Target::Seed(seed));
    }
    let name = match key.strip_prefix(CLAIM) {
        Some(name) => name,
        None => key.strip_prefix(PROVIDER)?.split(|byte| *byte == b'/').next()?,
    };
    parse_name(name).map(Target::Name)
}

/// A key as people read it: text where it is text, keys of nodes and digests shortened, else hexadecimal.
#[must_use]
pub fn show_key(key: &[u8]) -> String {
    let text = |bytes: &[u8]| {
        let text = core::str::from_utf8(bytes).ok()?;
        (!text.contains(char::is_control)).then(|| String::from(text))
    };
    let node_at_end = || {
        let (front, node) = key.split_at_checked(key.len().checked_sub(32)?)?;
        let known = front.starts_with(PROVIDER) || front == LINK || DIGEST_PREFIXES.contains(&front);
        Some(alloc::format!("{}{}", text(front).filter(|_| known)?, NodeKey::try_from(node).ok()?.short()))
    };
    let hex = || key.iter().map(|byte| alloc::format!("{byte:02x}")).collect();
    node_at_end().or_else(|| text(key)).unwrap_or_else(hex)
}

/// Reads an entry of the lanes facts and live.
///
/// # Errors
/// If it says nothing that this version knows.
pub fn read(lane: Lane, entry: &Entry) -> Result<Said, Unread> {
    let (key, value) = (entry.key(), entry.value());
    match lane {
        Lane::Facts => read_fact(key, value),
        Lane::Live => {
            if let Some(said) = seeds::read_live(key, value) {
                return said;
            }
            let peer = key.strip_prefix(LINK).ok_or(Unread::Kind)?;
            let peer = NodeKey::try_from(peer).map_err(|_| Unread::Kind)?;
            fields(value, |_, _| Ok(false))?;
            Ok(Said::Link { peer })
        }
        Lane::State => Err(Unread::Kind),
    }
}

fn read_fact(key: &[u8], value: &[u8]) -> Result<Said, Unread> {
    if key == NODE {
        return read_node(value);
    }
    if let Some(name) = key.strip_prefix(CLAIM) {
        let name = parse_name(name).ok_or(Unread::Malformed)?;
        return Ok(Said::Claim { name, claim: read_claim(value)? });
    }
    if let Some(rest) = key.strip_prefix(PROVIDER) {
        let slash = rest.iter().position(|byte| *byte == b'/').ok_or(Unread::Malformed)?;
        let name = parse_name(&rest[..slash]).ok_or(Unread::Malformed)?;
        let owner = NodeKey::try_from(&rest[slash + 1..]).map_err(|_| Unread::Malformed)?;
        return Ok(Said::Provider { name, owner, offered: read_offered(value)? });
    }
    if let Some(said) = seeds::read_fact(key, value) {
        return said;
    }
    for (kind, protocol) in [(TCP_PORT, Protocol::Tcp), (UDP_PORT, Protocol::Udp)] {
        if let Some(digits) = key.strip_prefix(kind) {
            let port = core::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<u16>().ok());
            let port = port.filter(|port| *port > 0 && alloc::format!("{port}").as_bytes() == digits);
            let mut policy = Policy::default();
            fields(value, |field, d| {
                if field == 5 {
                    policy = policy::read(d)?;
                }
                Ok(field == 5)
            })?;
            return Ok(Said::Unnamed { protocol, port: port.ok_or(Unread::Malformed)?, policy });
        }
    }
    Err(Unread::Kind)
}

fn read_offered(value: &[u8]) -> Result<Offered, Unread> {
    let mut offered = Offered::default();
    fields(value, |field, d| {
        let place = match field {
            0 => &mut offered.of_claim,
            1 => &mut offered.tcp,
            2 => &mut offered.udp,
            5 => {
                offered.policy = policy::read(d)?;
                return Ok(true);
            }
            _ => return Ok(false),
        };
        *place = Some(d.u16()?).filter(|port| *port > 0);
        Ok(true)
    })?;
    let any = offered.of_claim.or(offered.tcp).or(offered.udp);
    any.map(|_| offered).ok_or(Unread::Malformed)
}

fn read_node(value: &[u8]) -> Result<Said, Unread> {
    let (mut name, mut addrs) = (None, Vec::new());
    fields(value, |field, d| {
        match field {
            0 => name = Some(parse_name(d.str()?.as_bytes()).ok_or(Unread::Malformed)?),
            1 => addrs = list(d, ADDRS_MAX, |d| addr(d.bytes()?).ok_or(Unread::Malformed))?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Said::Node { name, addrs })
}

fn read_claim(value: &[u8]) -> Result<Claim, Unread> {
    let (mut protocol, mut port, mut shared, mut claimed, mut hashes) = (None, None, false, None, Vec::new());
    let (mut also, mut policy) = (None, Policy::default());
    fields(value, |field, d| {
        match field {
            0 => {
                protocol = match d.u8()? {
                    0 => Some(Protocol::Tcp),
                    1 => Some(Protocol::Udp),
                    _ => return Err(Unread::Malformed),
                }
            }
            1 => port = Some(d.u16()?).filter(|port| *port > 0),
            2 => shared = d.bool()?,
            3 => claimed = Some(UnixMs(d.u64()?)),
            4 => hashes = list(d, HASHES_MAX, |d| Ok(d.decode()?))?,
            5 => policy = policy::read(d)?,
            // Constraints (who may provide it): no clause is known yet.
            6 => {
                if d.map()? != Some(0) {
                    return Err(Unread::Clause);
                }
            }
            7 => also = Some(d.u16()?).filter(|port| *port > 0),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let (Some(protocol), Some(claimed)) = (protocol, claimed) else { return Err(Unread::Malformed) };
    Ok(Claim { protocol, port, also, shared, claimed, hashes, policy })
}

impl From<minicbor::decode::Error> for Unread {
    fn from(_: minicbor::decode::Error) -> Self {
        Self::Malformed
    }
}

/// Reads a map of definite length with ascending integer keys. `field` takes what it knows; the rest is skipped.
fn fields(value: &[u8], field: impl FnMut(u64, &mut Decoder<'_>) -> Result<bool, Unread>) -> Result<(), Unread> {
    let mut d = Decoder::new(value);
    fields_of(&mut d, field)?;
    if d.position() == value.len() { Ok(()) } else { Err(Unread::Malformed) }
}

/// The same of a map within a value.
fn fields_of(
    d: &mut Decoder<'_>,
    mut field: impl FnMut(u64, &mut Decoder<'_>) -> Result<bool, Unread>,
) -> Result<(), Unread> {
    let len = d.map()?.ok_or(Unread::Malformed)?;
    let mut last = None;
    for _ in 0..len {
        let key = d.u64()?;
        if last.replace(key).is_some_and(|last| last >= key) {
            return Err(Unread::Malformed);
        }
        if !field(key, d)? {
            d.skip()?;
        }
    }
    Ok(())
}

fn list<T>(
    d: &mut Decoder<'_>,
    max: usize,
    mut element: impl FnMut(&mut Decoder<'_>) -> Result<T, Unread>,
) -> Result<Vec<T>, Unread> {
    let len = d.array()?.and_then(|len| usize::try_from(len).ok()).filter(|len| *len <= max);
    (0..len.ok_or(Unread::Malformed)?).map(|_| element(d)).collect()
}

fn written(
    write: impl FnOnce(&mut Encoder<&mut Vec<u8>>) -> Result<(), minicbor::encode::Error<core::convert::Infallible>>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut Encoder::new(&mut bytes)).expect("writing to a vector cannot fail");
    bytes
}

fn empty() -> Vec<u8> {
    written(|e| e.map(0).map(drop))
}

const fn protocol_code(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
    }
}

/// Only names as they are written canonically: two spellings would be two keys for one name.
fn parse_name(bytes: &[u8]) -> Option<Name> {
    let text = core::str::from_utf8(bytes).ok()?;
    text.parse().ok().filter(|name: &Name| name.as_str() == text)
}

/// Address, 4 or 16 bytes, then port, big-endian.
fn addr_bytes(addr: &SocketAddr) -> Vec<u8> {
    let port = addr.port().to_be_bytes();
    match addr.ip() {
        IpAddr::V4(ip) => [&ip.octets()[..], &port].concat(),
        IpAddr::V6(ip) => [&ip.octets()[..], &port].concat(),
    }
}

fn addr(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_at_checked(bytes.len().checked_sub(2)?)?;
    let ip = match ip.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(port.try_into().ok()?)))
}

#[cfg(test)]
mod tests;
