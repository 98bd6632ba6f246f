//! Reading a peer's CBOR: definite lengths only, and no memory is set aside on the word of a length alone.
//! Owns the few steps that every decoder of author maps shares; knows no format.

use alloc::vec::Vec;

use minicbor::Decoder;
use minicbor::decode::Error;

/// The length of an array that a newer version may have made longer: at least `known` elements.
pub(super) fn array_of_at_least(d: &mut Decoder<'_>, known: u64) -> Result<u64, Error> {
    match d.array()? {
        Some(len) if len >= known => Ok(len),
        _ => Err(Error::message("an array is indefinite or too short")),
    }
}

/// Skips what a newer version appended to an array of which `known` elements were read.
pub(super) fn skip_newer(d: &mut Decoder<'_>, len: u64, known: u64) -> Result<(), Error> {
    if len < known {
        return Err(Error::message("an array is too short"));
    }
    (known..len).try_for_each(|_| d.skip())
}

/// A list of at most `max` elements. Grows as elements are read: a length costs its sender the elements.
pub(super) fn list<'b, T>(
    d: &mut Decoder<'b>,
    max: usize,
    mut element: impl FnMut(&mut Decoder<'b>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let len = d.array()?.ok_or(Error::message("a list is indefinite"))?;
    if len > u64::try_from(max).unwrap_or(u64::MAX) {
        return Err(Error::message("a list is too long"));
    }
    let mut found = Vec::new();
    for _ in 0..len {
        found.push(element(d)?);
    }
    Ok(found)
}

/// Refuses bytes after the object that should have been the whole.
pub(super) fn nothing_after(d: &Decoder<'_>) -> Result<(), Error> {
    if d.position() == d.input().len() { Ok(()) } else { Err(Error::message("bytes follow the object")) }
}
