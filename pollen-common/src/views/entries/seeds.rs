//! What is said of seeds: who claims one and in which versions, what a node offers them, what it serves and keeps.
//! Owns these formats (`docs/protocol/state.md`); must not decide what counts. Invariant: a version is read whole or
//! not at all, since a limit that is passed over is a limit that does not hold.

use alloc::vec::Vec;

use minicbor::{Decoder, Encoder};

use super::{HASHES_MAX, Pair, Said, Unread, empty, fields, list, parse_name, written};
use crate::hash::{Context, digest};
use crate::identity::Digest;
use crate::time::UnixMs;
use crate::views::{Capacity, Inability, Name, SeedVersion, VersionId};

const SEED: &[u8] = b"seed/";
const HOST: &[u8] = b"host";
const REPLICA: &[u8] = b"rep/";
const HOLD: &[u8] = b"hold/";
const UNABLE: &[u8] = b"unable/";
const DRAIN: &[u8] = b"drain";

/// What a claim says of a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedClaim {
    /// One or two different ones: that which answers, and that which is to replace it. At most [`HASHES_MAX`].
    pub versions: Vec<SeedVersion>,
    pub min_replicas: u16,
    pub everywhere: bool,
    pub claimed: UnixMs,
}

impl SeedVersion {
    /// The digest of all that it says.
    #[must_use]
    pub fn id(&self) -> VersionId {
        let bytes = written(|e| write_version(e, self));
        VersionId(digest(Context::SeedVersion, &[&bytes]))
    }
}

type Written = Result<(), minicbor::encode::Error<core::convert::Infallible>>;

fn write_version(e: &mut Encoder<&mut Vec<u8>>, version: &SeedVersion) -> Written {
    let SeedVersion { module, size_bytes, memory_bytes, timeout_ms, idempotent, image, tail_calls } = version;
    e.map(if *tail_calls { 7 } else { 6 })?
        .u8(0)?
        .encode(module)?
        .u8(1)?
        .u64(*size_bytes)?
        .u8(2)?
        .u64(*memory_bytes)?;
    e.u8(3)?.u32(*timeout_ms)?.u8(4)?.bool(*idempotent)?.u8(5)?.bool(*image)?;
    // Written only where it says something: what was published before it existed keeps its identity.
    if *tail_calls {
        e.u8(6)?.bool(true)?;
    }
    Ok(())
}

/// Facts: a claim of a seed's name.
#[must_use]
pub fn seed(name: &Name, claim: &SeedClaim) -> Pair {
    let value = written(|e| {
        e.map(4)?.u8(1)?.u16(claim.min_replicas)?.u8(2)?.bool(claim.everywhere)?.u8(3)?.u64(claim.claimed.0)?;
        e.u8(4)?.array(claim.versions.len() as u64)?;
        claim.versions.iter().try_for_each(|version| write_version(e, version))
    });
    (seed_key(name), value)
}

/// The key of the claim of the seed `name`.
#[must_use]
pub fn seed_key(name: &Name) -> Vec<u8> {
    [SEED, name.as_str().as_bytes()].concat()
}

/// What the keys of all claims of seeds begin with.
#[must_use]
pub const fn seed_prefix() -> &'static [u8] {
    SEED
}

/// The seed whose claim has this key.
#[must_use]
pub fn seed_in(key: &[u8]) -> Option<Name> {
    parse_name(key.strip_prefix(SEED)?)
}

/// Facts: what this node offers to seeds.
#[must_use]
pub fn host(capacity: &Capacity) -> Pair {
    let value = written(|e| e.map(2)?.u8(0)?.u32(capacity.memory_mib)?.u8(1)?.u16(capacity.cores).map(drop));
    (host_key(), value)
}

/// The key of what this node offers to seeds.
#[must_use]
pub fn host_key() -> Vec<u8> {
    HOST.to_vec()
}

/// Live: this node is ready to serve a version of the seed `name`.
#[must_use]
pub fn replica(version: &VersionId, name: &Name) -> Pair {
    let key = [REPLICA, &version.0.0[..]].concat();
    (key, written(|e| e.map(1)?.u8(0)?.str(name.as_str()).map(drop)))
}

/// Live: this node keeps a module, whole.
#[must_use]
pub fn holding(module: &Digest) -> Pair {
    ([HOLD, &module.0[..]].concat(), empty())
}

/// Live: this node cannot make a version ready.
#[must_use]
pub fn unable(version: &VersionId, why: Inability) -> Pair {
    let key = [UNABLE, &version.0.0[..]].concat();
    (key, written(|e| e.map(1)?.u8(0)?.u8(why.code()).map(drop)))
}

/// Live: this node is about to leave.
#[must_use]
pub fn drain() -> Pair {
    (DRAIN.to_vec(), empty())
}

/// Whether an entry of this key says what this node serves or keeps of seeds, or cannot make ready.
#[must_use]
pub fn is_hosting(key: &[u8]) -> bool {
    DIGEST_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// What the keys before a digest begin with.
pub(super) const DIGEST_PREFIXES: [&[u8]; 3] = [REPLICA, HOLD, UNABLE];

/// Reads a fact about seeds; `None` if it is about something else.
pub(super) fn read_fact(key: &[u8], value: &[u8]) -> Option<Result<Said, Unread>> {
    if let Some(name) = key.strip_prefix(SEED) {
        let name = parse_name(name).ok_or(Unread::Malformed);
        return Some(name.and_then(|name| Ok(Said::Seed { name, claim: read_claim(value)? })));
    }
    (key == HOST).then(|| read_host(value))
}

/// Reads a live entry about seeds; `None` if it is about something else.
pub(super) fn read_live(key: &[u8], value: &[u8]) -> Option<Result<Said, Unread>> {
    let of = |bytes: &[u8]| Digest::try_from(bytes).map_err(|_| Unread::Malformed);
    if let Some(version) = key.strip_prefix(REPLICA) {
        let said = |version| Ok(Said::Replica { version: VersionId(version), name: read_name(value)? });
        return Some(of(version).and_then(said));
    }
    if let Some(module) = key.strip_prefix(HOLD) {
        return Some(of(module).and_then(|module| bare(value, Said::Holds { module })));
    }
    if let Some(version) = key.strip_prefix(UNABLE) {
        let said = |version| Ok(Said::Unable { version: VersionId(version), why: read_inability(value)? });
        return Some(of(version).and_then(said));
    }
    (key == DRAIN).then(|| bare(value, Said::Drains))
}

/// The claim in the value of a claim's entry.
///
/// # Errors
/// If it is none that this version understands whole.
pub fn read_claim(value: &[u8]) -> Result<SeedClaim, Unread> {
    let (mut versions, mut min_replicas, mut everywhere, mut claimed) = (Vec::new(), 0, false, None);
    fields(value, |field, d| {
        match field {
            1 => min_replicas = d.u16()?,
            2 => everywhere = d.bool()?,
            3 => claimed = Some(UnixMs(d.u64()?)),
            4 => versions = list(d, HASHES_MAX, read_version)?,
            // Policy (who may call it) and constraints (who may host it): no clause is known yet.
            5 | 6 => {
                if d.map()? != Some(0) {
                    return Err(Unread::Clause);
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let different = match &versions[..] {
        [_] => true,
        [current, next] => current != next,
        _ => false,
    };
    let claimed = claimed.filter(|_| different).ok_or(Unread::Malformed)?;
    Ok(SeedClaim { versions, min_replicas, everywhere, claimed })
}

/// A version: all of its fields in order, and none that is unknown here.
fn read_version(d: &mut Decoder<'_>) -> Result<SeedVersion, Unread> {
    let len = d.map()?.ok_or(Unread::Malformed)?;
    if len > 7 {
        return Err(Unread::Clause);
    }
    let key = |d: &mut Decoder<'_>, expected: u64| match d.u64()? {
        key if key == expected => Ok(()),
        key if key > 6 => Err(Unread::Clause),
        _ => Err(Unread::Malformed),
    };
    key(d, 0)?;
    let module = d.decode()?;
    key(d, 1)?;
    let size_bytes = d.u64()?;
    key(d, 2)?;
    let memory_bytes = d.u64()?;
    key(d, 3)?;
    let timeout_ms = d.u32()?;
    key(d, 4)?;
    let idempotent = d.bool()?;
    key(d, 5)?;
    let image = d.bool()?;
    let tail_calls = len == 7;
    if tail_calls {
        key(d, 6)?;
        // There is one way to write each version.
        if !d.bool()? {
            return Err(Unread::Malformed);
        }
    }
    Ok(SeedVersion { module, size_bytes, memory_bytes, timeout_ms, idempotent, image, tail_calls })
}

fn read_host(value: &[u8]) -> Result<Said, Unread> {
    let (mut memory_mib, mut cores) = (None, None);
    fields(value, |field, d| {
        match field {
            0 => memory_mib = Some(d.u32()?),
            1 => cores = Some(d.u16()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    match (memory_mib, cores) {
        (Some(memory_mib), Some(cores)) => Ok(Said::Host(Capacity { memory_mib, cores })),
        _ => Err(Unread::Malformed),
    }
}

fn read_name(value: &[u8]) -> Result<Name, Unread> {
    let mut name = None;
    fields(value, |field, d| match field {
        0 => {
            name = Some(parse_name(d.str()?.as_bytes()).ok_or(Unread::Malformed)?);
            Ok(true)
        }
        _ => Ok(false),
    })?;
    name.ok_or(Unread::Malformed)
}

fn read_inability(value: &[u8]) -> Result<Inability, Unread> {
    let mut why = None;
    fields(value, |field, d| match field {
        0 => {
            why = Some(Inability::of_code(d.u8()?));
            Ok(true)
        }
        _ => Ok(false),
    })?;
    why.ok_or(Unread::Malformed)
}

/// An entry that says all by its key.
fn bare(value: &[u8], said: Said) -> Result<Said, Unread> {
    fields(value, |_, _| Ok(false))?;
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::{Entry, Lane};
    use crate::views::entries::{claim_key, read, show_key};

    fn said(lane: Lane, (key, value): &Pair) -> Result<Said, Unread> {
        read(lane, &Entry::new(key, 1, value).expect("within bounds"))
    }

    fn name() -> Name {
        "hello".parse().expect("a name")
    }

    fn version(n: u8) -> SeedVersion {
        SeedVersion {
            module: Digest([n; 32]),
            size_bytes: 4096,
            memory_bytes: 8 << 20,
            timeout_ms: 30_000,
            idempotent: true,
            image: false,
            tail_calls: false,
        }
    }

    fn claim(versions: &[SeedVersion]) -> SeedClaim {
        SeedClaim { versions: versions.to_vec(), min_replicas: 2, everywhere: true, claimed: UnixMs(7) }
    }

    #[test]
    fn whatever_is_said_of_seeds_is_read_back() {
        let tail_calls = SeedVersion { tail_calls: true, ..version(1) };
        for versions in [&[version(1)][..], &[version(1), version(2)], &[tail_calls, version(2)]] {
            let pair = seed(&name(), &claim(versions));
            assert_eq!(said(Lane::Facts, &pair), Ok(Said::Seed { name: name(), claim: claim(versions) }));
            assert_eq!(seed_in(&pair.0), Some(name()));
        }
        let capacity = Capacity { memory_mib: 512, cores: 4 };
        assert_eq!(said(Lane::Facts, &host(&capacity)), Ok(Said::Host(capacity)));
        let (id, module) = (version(1).id(), Digest([3; 32]));
        assert_eq!(said(Lane::Live, &replica(&id, &name())), Ok(Said::Replica { version: id, name: name() }));
        assert_eq!(said(Lane::Live, &holding(&module)), Ok(Said::Holds { module }));
        assert_eq!(said(Lane::Live, &drain()), Ok(Said::Drains));
        for code in 0..=u8::MAX {
            let why = Inability::of_code(code);
            assert_eq!(why.code(), code);
            assert_eq!(said(Lane::Live, &unable(&id, why)), Ok(Said::Unable { version: id, why }));
        }
        assert_eq!(said(Lane::Live, &(unable(&id, Inability::Disk).0, empty())), Err(Unread::Malformed));
        assert!(show_key(&holding(&module).0).starts_with("hold/03030303"));
        assert!(is_hosting(&replica(&id, &name()).0) && !is_hosting(&drain().0));
    }

    #[test]
    fn every_limit_makes_another_version() {
        let one = version(1);
        let others = [
            SeedVersion { module: Digest([2; 32]), ..one },
            SeedVersion { size_bytes: 1, ..one },
            SeedVersion { memory_bytes: 1, ..one },
            SeedVersion { timeout_ms: 1, ..one },
            SeedVersion { idempotent: false, ..one },
            SeedVersion { image: true, ..one },
            SeedVersion { tail_calls: true, ..one },
        ];
        assert!(others.iter().all(|other| other.id() != one.id()));
    }

    #[test]
    fn a_claim_names_one_or_two_different_versions() {
        for versions in [&[][..], &[version(1), version(1)], &[version(1), version(2), version(3)]] {
            assert_eq!(said(Lane::Facts, &seed(&name(), &claim(versions))), Err(Unread::Malformed));
        }
    }

    #[test]
    fn a_seed_with_an_unknown_clause_or_limit_is_refused_and_other_new_fields_are_passed_over() {
        let with = |field: u8, clauses: u64, limits: u64| {
            let value = written(|e| {
                e.map(3)?.u8(3)?.u64(1)?.u8(4)?.array(1)?;
                write_version(e, &version(1))?;
                e.u8(field)?.map(clauses)?;
                (0..clauses).try_for_each(|n| e.u64(n)?.bool(true).map(drop))
            });
            // The version's map grows by a field of a later version.
            let at = value.windows(2).position(|pair| pair == [0x81, 0xa6]).expect("one version") + 1;
            let end = value.len() - 2 * usize::try_from(clauses).expect("few") - 2;
            let mut longer = value;
            // Field 7 upwards: 6 is known.
            (0..limits).for_each(|_| drop(longer.splice(end..end, [0x07, 0xf5])));
            longer[at] += u8::try_from(limits).expect("few");
            said(Lane::Facts, &(seed_key(&name()), longer))
        };
        assert!(with(5, 0, 0).is_ok() && with(6, 0, 0).is_ok() && with(7, 1, 0).is_ok());
        assert_eq!((with(5, 1, 0), with(6, 2, 0)), (Err(Unread::Clause), Err(Unread::Clause)));
        assert_eq!(with(7, 0, 1), Err(Unread::Clause));
    }

    #[test]
    fn what_is_only_written_when_true_is_never_read_as_false() {
        let mut pair = seed(&name(), &claim(&[SeedVersion { tail_calls: true, ..version(1) }]));
        let at = pair.1.windows(2).rposition(|pair| pair == [0x06, 0xf5]).expect("the field") + 1;
        pair.1[at] = 0xf4;
        assert_eq!(said(Lane::Facts, &pair), Err(Unread::Malformed));
    }

    #[test]
    fn seeds_and_services_have_names_of_their_own() {
        assert_ne!(seed_key(&name()), claim_key(&name()));
        assert_eq!(seed_in(&claim_key(&name())), None);
    }
}
