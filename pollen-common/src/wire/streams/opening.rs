//! The framing that opens every stream but the link's, behind its kind: two bytes of length, big-endian, then one CBOR
//! map whose field 0 is the version of its format. Owns that framing alone; knows no format.
//! Invariant: another version is refused before any other field is looked at, and nothing follows the map.

use alloc::vec::Vec;

use minicbor::{Decode, Encode};

/// The bytes of the length.
pub const LENGTH_BYTES: usize = 2;

/// Why the bytes of a peer do not open a stream. Nothing was done for it; the peer is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpeningError {
    #[error("the header is not what the format says")]
    Malformed,
    #[error("the header has a version that this node does not speak")]
    Version,
}

/// Read first, because a later version may change every other field.
#[derive(Decode)]
#[cbor(map)]
struct Version {
    #[n(0)]
    version: u32,
}

/// `value` alone.
pub(super) fn encoded(value: impl Encode<()>) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing to a vector does not fail")
}

/// Appends `value`, its length before it. Panics when two bytes cannot say the length: our own values are bounded.
pub(super) fn put(bytes: &mut Vec<u8>, value: impl Encode<()>) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; LENGTH_BYTES]);
    minicbor::encode(value, &mut *bytes).expect("writing to a vector does not fail");
    let length = u16::try_from(bytes.len() - start - LENGTH_BYTES).expect("names and paths within their bounds fit");
    bytes[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// The one value that `bytes` are. Unknown fields of a map are skipped.
///
/// # Errors
/// [`OpeningError::Malformed`]: they are none, or more than one.
pub(super) fn whole<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, OpeningError> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let value = decoder.decode().map_err(|_| OpeningError::Malformed)?;
    if decoder.position() == bytes.len() { Ok(value) } else { Err(OpeningError::Malformed) }
}

/// The same for a map that says its version.
///
/// # Errors
/// [`OpeningError::Version`]: it is not `version`, and nothing else is known of it.
pub(super) fn of_version<'b, T: Decode<'b, ()>>(bytes: &'b [u8], version: u32) -> Result<T, OpeningError> {
    let said: Version = minicbor::decode(bytes).map_err(|_| OpeningError::Malformed)?;
    if said.version == version { whole(bytes) } else { Err(OpeningError::Version) }
}
