//! QUIC's variable-length integers (RFC 9000, section 16). Owns both ways; knows not what the numbers mean.

use alloc::vec::Vec;

/// The bytes of the longest.
pub(super) const BYTES_MAX: usize = 8;

/// Appends `number`, which is below 2^62.
pub(super) fn put(bytes: &mut Vec<u8>, number: u64) {
    match number {
        0..=0x3f => bytes.push(u8::try_from(number).expect("below 64")),
        0x40..=0x3fff => bytes.extend((u16::try_from(number).expect("below 2^14") | 0x4000).to_be_bytes()),
        0x4000..=0x3fff_ffff => {
            bytes.extend((u32::try_from(number).expect("below 2^30") | 0x8000_0000).to_be_bytes());
        }
        _ => bytes.extend((number | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

/// The number at the start, and the bytes it takes; `None` while they are not all there.
pub(super) fn read(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1usize << (first >> 6);
    let mut number = u64::from(first & 0x3f);
    for byte in bytes.get(1..length)? {
        number = number << 8 | u64::from(*byte);
    }
    Some((number, length))
}
