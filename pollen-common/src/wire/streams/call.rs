//! What opens a call stream, as `docs/protocol/calls.md` describes. Owns the codec of the header; knows nothing of
//! streams, hosts or views.
//! Invariant: bytes of a peer become a typed header or a typed error, and what is accepted survives being written again.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec::Vec;

use super::StreamKind;
use super::opening::{OpeningError, encoded, of_version, put};
use crate::identity::{Digest, NodeKey};
use crate::names::{Name, VersionId};

/// The only version of the header so far.
pub const VERSION: u32 = 1;
/// The longest header: sixteen names of a path take 1040 bytes, a delegation some 300 a step.
pub const HEADER_BYTES_MAX: usize = 4096;
/// The longest name of a function, in bytes.
pub const FUNCTION_BYTES_MAX: usize = 255;
/// The most seeds that one call may lead through, itself included.
pub const CALL_DEPTH_MAX: usize = 16;
/// How often one call may be passed on by tail calls before it counts as running in circles.
pub const HOPS_MAX: u8 = 32;

/// A seed that waits for a call of its own, by what it was called: two names that stand for the same module are two
/// seeds, and a new version of a name is not another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Seed(Name),
    /// It was called by the hash of its module.
    Module(Digest),
}

impl<C> minicbor::Encode<C> for Step {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        match self {
            Self::Seed(name) => e.str(name.as_str())?.ok(),
            Self::Module(module) => module.encode(e, ctx),
        }
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Step {
    fn decode(d: &mut minicbor::Decoder<'b>, ctx: &mut C) -> Result<Self, minicbor::decode::Error> {
        if d.datatype()? != minicbor::data::Type::String {
            return Digest::decode(d, ctx).map(Self::Module);
        }
        let name = d.str()?.parse();
        name.map(Self::Seed).map_err(|_| minicbor::decode::Error::message("a step that is no name"))
    }
}

/// What a call asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub seed: Name,
    /// The version that the caller's view says answers. A host that runs another one may answer in its place.
    pub version: VersionId,
    /// Only versions of this module will do: the caller named it by hash.
    pub module: Option<Digest>,
    /// 1 to 255 bytes.
    pub function: String,
    /// How long the caller waits, in milliseconds.
    pub remaining_ms: u32,
    /// The seeds that wait for this call, the first one first.
    pub path: Vec<Step>,
    /// Tail calls so far.
    pub hops: u8,
    /// Who called first, where that is not the sender. Proved by a delegation alone, so it counts for nothing yet.
    pub origin: Option<NodeKey>,
}

// 6 is reserved for a delegation, 10 for an idempotency key, 11 for trace context.
#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct Wire<'b> {
    #[n(0)]
    version: u32,
    #[b(1)]
    seed: &'b str,
    #[n(2)]
    wanted: Digest,
    #[n(3)]
    module: Option<Digest>,
    #[b(4)]
    function: &'b str,
    #[n(5)]
    remaining_ms: u32,
    #[n(7)]
    path: Option<Vec<Step>>,
    #[n(8)]
    hops: Option<u8>,
    #[n(9)]
    origin: Option<NodeKey>,
}

impl Header {
    /// The bytes that open a stream up to the input: kind, the header's length, the header, the input's length.
    #[must_use]
    pub fn opening(&self, input_bytes: u32) -> Vec<u8> {
        /// Enough for a header without a path.
        const USUAL_BYTES: usize = 160;
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        bytes.push(StreamKind::Call as u8);
        put(&mut bytes, self.wire());
        bytes.extend_from_slice(&input_bytes.to_be_bytes());
        bytes
    }

    /// The header alone.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encoded(self.wire())
    }

    fn wire(&self) -> Wire<'_> {
        Wire {
            version: VERSION,
            seed: self.seed.as_str(),
            wanted: self.version.0,
            module: self.module,
            function: &self.function,
            remaining_ms: self.remaining_ms,
            path: (!self.path.is_empty()).then(|| self.path.clone()),
            hops: (self.hops > 0).then_some(self.hops),
            origin: self.origin,
        }
    }

    /// Parses the header alone. Unknown fields are skipped.
    ///
    /// # Errors
    /// When the bytes are no header of a version that this node speaks, or more than one header.
    pub fn decode(bytes: &[u8]) -> Result<Self, OpeningError> {
        let wire: Wire<'_> = of_version(bytes, VERSION)?;
        let path = wire.path.unwrap_or_default();
        let bounded = bytes.len() <= HEADER_BYTES_MAX
            && (1..=FUNCTION_BYTES_MAX).contains(&wire.function.len())
            && path.len() <= CALL_DEPTH_MAX;
        if !bounded {
            return Err(OpeningError::Malformed);
        }
        Ok(Self {
            seed: wire.seed.parse().map_err(|_| OpeningError::Malformed)?,
            version: VersionId(wire.wanted),
            module: wire.module,
            function: wire.function.to_owned(),
            remaining_ms: wire.remaining_ms,
            path,
            hops: wire.hops.unwrap_or_default(),
            origin: wire.origin,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::vectors::assert_described;
    use super::*;

    fn version(byte: u8) -> VersionId {
        VersionId(Digest([byte; 32]))
    }

    fn step(name: &str) -> Step {
        Step::Seed(name.parse().expect("a name"))
    }

    fn simple() -> Header {
        Header {
            seed: "hello".parse().expect("a name"),
            version: version(0xaa),
            module: None,
            function: "greet".into(),
            remaining_ms: 60_000,
            path: Vec::new(),
            hops: 0,
            origin: None,
        }
    }

    #[test]
    fn the_described_bytes_are_the_ones_that_are_sent() {
        let nested = Header {
            module: Some(Digest([0xbb; 32])),
            path: alloc::vec![Step::Module(Digest([0xcc; 32])), step("relay")],
            hops: 1,
            origin: Some(NodeKey([0xdd; 32])),
            ..simple()
        };
        let mut small = simple().opening(2);
        small.extend_from_slice(b"hi");
        let expected =
            [("call with two bytes of input", small), ("call by hash from within a call", nested.opening(0))];
        let document = include_str!("../../../../docs/protocol/calls.md");
        assert_described(document, "call ", &expected);
    }

    #[test]
    fn fields_of_later_minor_formats_are_skipped_and_other_versions_refused() {
        let mut bytes = simple().encode();
        assert_eq!(bytes[0], 0xa5, "five fields");
        bytes[0] += 1;
        bytes.extend_from_slice(&[0x18, 99, 0x82, 0x01, 0x61, b'x']);
        assert_eq!(Header::decode(&bytes), Ok(simple()));
        assert_eq!(Header::decode(&[0xa1, 0x00, 0x02]), Err(OpeningError::Version));
    }

    #[test]
    fn what_exceeds_its_bounds_is_no_header() {
        let path = alloc::vec![step("s"); CALL_DEPTH_MAX + 1];
        for bad in [
            Header { function: String::new(), ..simple() },
            Header { function: "f".repeat(FUNCTION_BYTES_MAX + 1), ..simple() },
            Header { path, ..simple() },
        ] {
            assert_eq!(Header::decode(&bad.encode()), Err(OpeningError::Malformed));
        }
        let mut trailing = simple().encode();
        trailing.push(0);
        assert_eq!(Header::decode(&trailing), Err(OpeningError::Malformed));
        let longest = Header {
            seed: "s".repeat(63).parse().expect("a name"),
            function: "f".repeat(FUNCTION_BYTES_MAX),
            path: alloc::vec![step(&"s".repeat(63)); CALL_DEPTH_MAX],
            module: Some(Digest([1; 32])),
            origin: Some(NodeKey([1; 32])),
            ..simple()
        };
        assert_eq!(Header::decode(&longest.encode()), Ok(longest));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_what_parses_is_stable(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
            }
        }

        #[test]
        fn headers_round_trip(
            function in "\\PC{1,60}", remaining_ms in any::<u32>(), depth in 0..CALL_DEPTH_MAX, hops in any::<u8>(),
            module in prop::option::of(any::<[u8; 32]>()), origin in prop::option::of(any::<[u8; 32]>()),
        ) {
            let of = |index: usize| match index % 2 {
                0 => step(&alloc::format!("s{index}")),
                _ => Step::Module(Digest([u8::try_from(index).expect("below 16"); 32])),
            };
            let path = (0..depth).map(of).collect();
            let header = Header {
                function, remaining_ms, path, hops, module: module.map(Digest), origin: origin.map(NodeKey), ..simple()
            };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }
}
