//! The deterministic CBOR of bodies: maps of definite length with ascending integer keys, nothing after the end.
//! Owns only that reading discipline; what the fields mean is their owners'. Invariant: no allocation before the
//! input, already bounded by its carrier, was seen to hold what it claims.

use minicbor::{Decoder, Encoder, decode};

/// Why a body is none.
pub(super) type Error = decode::Error;

/// Reads one map. `field` takes each value it knows and says so; the rest is skipped. Whether all were known.
pub(super) fn read_map<'b>(
    d: &mut Decoder<'b>,
    mut field: impl FnMut(u64, &mut Decoder<'b>) -> Result<bool, Error>,
) -> Result<bool, Error> {
    let len = definite(d.map()?)?;
    let mut last = None;
    let mut all_known = true;
    for _ in 0..len {
        let key = d.u64()?;
        if last.is_some_and(|last| last >= key) {
            return Err(Error::message("keys of a map must ascend"));
        }
        last = Some(key);
        if !field(key, d)? {
            all_known = false;
            d.skip()?;
        }
    }
    Ok(all_known)
}

/// The length of a map or array, which must be stated in front.
pub(super) fn definite(len: Option<u64>) -> Result<u64, Error> {
    len.ok_or_else(|| Error::message("lengths must be definite"))
}

/// Reads exactly one item from all of `bytes`.
pub(super) fn read_all<'b, T>(
    bytes: &'b [u8],
    read: impl FnOnce(&mut Decoder<'b>) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut d = Decoder::new(bytes);
    let value = read(&mut d)?;
    if d.position() != bytes.len() {
        return Err(Error::message("bytes after the end"));
    }
    Ok(value)
}

/// What a field that must be there holds.
pub(super) fn required<T>(value: Option<T>, what: &'static str) -> Result<T, Error> {
    value.ok_or_else(|| Error::message(what))
}

/// Writes into memory, which cannot fail.
pub(super) type Writer<'a> = Encoder<&'a mut alloc::vec::Vec<u8>>;

/// What writing into memory gives.
pub(super) type Written = Result<(), minicbor::encode::Error<core::convert::Infallible>>;

/// The bytes that `write` writes.
pub(super) fn written(write: impl FnOnce(&mut Writer<'_>) -> Written) -> alloc::vec::Vec<u8> {
    let mut bytes = alloc::vec::Vec::new();
    write(&mut Encoder::new(&mut bytes)).expect("writing into memory cannot fail");
    bytes
}
