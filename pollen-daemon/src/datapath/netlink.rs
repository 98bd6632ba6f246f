//! Questions to the kernel by netlink: messages and their attributes, and nothing of what they mean.
//! Invariant: what the kernel answers is read within its own length, and an answer that is late is taken for no other's.

use std::cell::Cell;
use std::io::{self, Read as _};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

const REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const HEADER_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;
/// An answer about one thing is some hundred bytes; the kernel fills at most this.
const ROOM_BYTES: usize = 32 << 10;
/// It answers at once; one that does not must not hold the asker.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// A socket for one family of questions.
pub struct Netlink {
    socket: Socket,
    asked: Cell<u32>,
}

impl Netlink {
    /// `protocol` is one of `linux/netlink.h`.
    ///
    /// # Errors
    /// Where the kernel or a sandbox does not let us ask.
    pub fn open(protocol: libc::c_int) -> io::Result<Self> {
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))?;
        socket.set_read_timeout(Some(ANSWER_MAX))?;
        Ok(Self { socket, asked: Cell::new(0) })
    }

    /// Asks for one thing: the body of the answer.
    ///
    /// # Errors
    /// The kernel's refusal, which for many questions says that there is none.
    pub fn ask(&self, kind: u16, body: &[u8]) -> io::Result<Vec<u8>> {
        let len = u32::try_from(HEADER_BYTES + body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut request = Vec::with_capacity(HEADER_BYTES + body.len());
        request.extend(len.to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(REQUEST.to_ne_bytes());
        let asked = self.asked.get().wrapping_add(1);
        self.asked.set(asked);
        request.extend(asked.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(body);
        self.socket.send(&request)?;
        let mut room = vec![0; ROOM_BYTES];
        let (len, kind) = loop {
            let read = (&self.socket).read(&mut room)?;
            let header = room[..read].first_chunk::<HEADER_BYTES>().ok_or(io::ErrorKind::InvalidData)?;
            let [a, b, c, d, e, f, _, _, g, h, i, j, ..] = *header;
            // Another is the answer to a question that was given up.
            if u32::from_ne_bytes([g, h, i, j]) == asked {
                break (u32::from_ne_bytes([a, b, c, d]) as usize, u16::from_ne_bytes([e, f]));
            }
        };
        let body = room.get(HEADER_BYTES..len).ok_or(io::ErrorKind::InvalidData)?;
        if kind == NLMSG_ERROR {
            let code = body.first_chunk().map_or(0, |code| -i32::from_ne_bytes(*code));
            return Err(io::Error::from_raw_os_error(code));
        }
        Ok(body.to_vec())
    }
}

/// An attribute, padded as they are.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(ATTRIBUTE_BYTES + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of `kind`.
pub fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    /// Flags of nested attributes and of those in network order.
    const KIND_MASK: u16 = 0x3fff;
    while let Some((head, _)) = attributes.split_first_chunk::<ATTRIBUTE_BYTES>() {
        let [a, b, c, d] = *head;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(ATTRIBUTE_BYTES..len)?;
        if u16::from_ne_bytes([c, d]) & KIND_MASK == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
    None
}

/// The same, as a number of four bytes.
pub fn find_u32(attributes: &[u8], kind: u16) -> Option<u32> {
    find(attributes, kind)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_found_behind_others_of_any_length() {
        let bytes = [attribute(1, b"abc"), attribute(2, b""), attribute(0x8003, &7u32.to_ne_bytes())].concat();
        assert_eq!(find(&bytes, 1), Some(&b"abc"[..]));
        assert_eq!(find(&bytes, 2), Some(&b""[..]));
        assert_eq!((find_u32(&bytes, 3), find(&bytes, 4)), (Some(7), None));
        for len in 0..4 {
            assert_eq!(find(&bytes[..len], 1), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..100), kind: u16) {
            let _ = find(&bytes, kind);
        }
    }
}
