//! Standard error as whoever started the daemon reads it. Owns how lines look to systemd's journal: each with its level,
//! none with a time. Invariant: what a guest or a peer had logged is never taken for a level.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::AsFd;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// The variable in which systemd names the stream that goes to the journal, as `DEVICE:INODE`.
const VARIABLE: &str = "JOURNAL_STREAM";

/// Standard error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stderr {
    is_journal: bool,
}

impl Stderr {
    /// This process's, which is the journal's only if it is still the stream that the environment names: the variable is
    /// inherited by what writes elsewhere, too.
    pub(super) fn of_process() -> Self {
        let named = std::env::var_os(VARIABLE);
        Self { is_journal: named.is_some_and(|named| is(io::stderr(), &named)) }
    }
}

fn is(stream: impl AsFd, named: &OsStr) -> bool {
    let found = rustix::fs::fstat(stream);
    found.is_ok_and(|found| named.to_str() == Some(&format!("{}:{}", found.st_dev, found.st_ino)))
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Lines<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        self.of_level(Level::INFO)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        self.of_level(*meta.level())
    }
}

impl Stderr {
    fn of_level(self, level: Level) -> Lines<io::Stderr> {
        Lines { to: io::stderr(), level: self.is_journal.then_some(level) }
    }
}

/// Where the lines of one event go; to the journal, if they have a level.
pub(super) struct Lines<W> {
    to: W,
    level: Option<Level>,
}

impl<W: Write> Write for Lines<W> {
    /// One call is one event.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        match self.level {
            Some(level) => self.to.write_all(&journaled(event, level))?,
            None => self.to.write_all(event)?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// An event for the journal, which takes `<N>` at the start of each line for its level (`sd-daemon(3)`): each line has
/// one, so that none can bring its own. The time, which is the first word, the journal has itself.
fn journaled(event: &[u8], level: Level) -> Vec<u8> {
    let priority = match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    };
    let time = event.iter().position(|&byte| byte == b' ').unwrap_or(0);
    let mut lines = Vec::with_capacity(event.len());
    for line in event[time..].trim_ascii_start().split_inclusive(|&byte| byte == b'\n') {
        lines.extend_from_slice(priority.as_bytes());
        lines.extend_from_slice(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn each_line_has_the_level_of_its_event_and_no_time() {
        let event = b"2026-11-23T08:43:46.372459Z  WARN pollen_daemon::driver: a guest said\n<0>all is lost\n";
        let lines = journaled(event, Level::WARN);
        assert_eq!(lines, b"<4>WARN pollen_daemon::driver: a guest said\n<4><0>all is lost\n");
        assert_eq!(journaled(b"", Level::INFO), b"");
    }

    #[test]
    fn elsewhere_an_event_is_left_as_it_is() {
        let mut written = Vec::new();
        Lines { to: &mut written, level: None }.write_all(b"2026 INFO a\n").expect("it is memory");
        assert_eq!(written, b"2026 INFO a\n");
    }

    #[test]
    fn a_stream_is_the_journals_only_if_it_is_the_very_one() {
        let file = File::open("/dev/null").expect("every machine has it");
        let found = file.metadata().expect("it is open");
        assert!(is(&file, OsStr::new(&format!("{}:{}", found.dev(), found.ino()))));
        assert!(!is(&file, OsStr::new(&format!("{}:{}", found.dev(), found.ino() + 1))));
        assert!(!is(&file, OsStr::new("")));
    }
}
