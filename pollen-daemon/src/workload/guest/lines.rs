//! Bytes that come in pieces, as lines. Invariant: what waits for its end is bounded.

/// A longer line is cut into several.
const LINE_BYTES_MAX: usize = 4096;

/// A line that has begun.
#[derive(Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// The lines that `bytes` complete, one at a time; what is left waits for its end once all were taken.
    pub fn push<'a>(&'a mut self, mut bytes: &'a [u8]) -> Vec<String> {
        let mut lines = Vec::new();
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - self.0.len();
            let piece = &bytes[..bytes.len().min(room)];
            if let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
                self.0.extend_from_slice(&piece[..end]);
                bytes = &bytes[end + 1..];
            } else {
                self.0.extend_from_slice(piece);
                bytes = &bytes[piece.len()..];
                if self.0.len() < LINE_BYTES_MAX {
                    break;
                }
            }
            lines.push(self.take());
        }
        lines
    }

    /// What has begun, if anything has.
    pub fn finish(&mut self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let line = String::from_utf8_lossy(&self.0).trim_end_matches('\r').to_owned();
        self.0.clear();
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_their_bytes_come() {
        let mut lines = Lines::default();
        assert!(lines.push(b"one, ").is_empty());
        assert_eq!(lines.push(b"still one\r\ntwo\n\nfo"), ["one, still one", "two", ""]);
        assert_eq!(lines.push(b"ur\n"), ["four"]);
        assert_eq!(lines.finish(), None);
        assert!(lines.push(b"unended").is_empty());
        assert_eq!(lines.finish().as_deref(), Some("unended"));
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut lines = Lines::default();
        let long = vec![b'x'; 2 * LINE_BYTES_MAX + 1];
        let cut = lines.push(&long);
        assert_eq!(cut.iter().map(String::len).collect::<Vec<_>>(), [LINE_BYTES_MAX, LINE_BYTES_MAX]);
        assert_eq!(lines.finish().as_deref(), Some("x"));
    }
}
