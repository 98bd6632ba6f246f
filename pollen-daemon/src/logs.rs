//! Logs: to standard error, and to a bounded file in the state directory that `pln logs` reads. Owns the filter that
//! can change while the daemon runs. Invariant: logs never hold more than two files of `FILE_BYTES_MAX`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;
use tracing_subscriber::fmt::writer::MakeWriterExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

mod journal;

const LOG_DIR: &str = "log";
const LOG_FILE: &str = "pln.log";
const LOG_FILE_OLD: &str = "pln.log.1";

/// When the file has grown to this it becomes the old one: weeks at the usual level.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Lines that can be asked for; more is a job for a pager on the file.
pub const TAIL_LINES_MAX: usize = 10_000;

/// A follower that falls this many lines behind misses some, and is told.
const FOLLOWER_LAG_MAX: usize = 512;

const LEVEL_DEFAULT: &str = "info";

/// The logs of the running daemon.
#[derive(Clone)]
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
    sink: SharedSink,
    state_dir: PathBuf,
}

/// Not a filter of logs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no log level: {reason}")]
pub struct LevelError {
    text: String,
    reason: String,
}

/// The levels, which alone are a whole filter.
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// A filter of logs: a level, or levels by module. A lone word is a level: the filter's own syntax would take any other
/// for a module to log in full, and log nothing else.
///
/// # Errors
/// [`LevelError`]
pub fn parse_level(text: &str) -> Result<EnvFilter, LevelError> {
    let wrong = |reason: String| LevelError { text: text.to_owned(), reason };
    let mut words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    let lone = words.next().filter(|word| words.next().is_none() && !word.contains(['=', '[']));
    if lone.is_some_and(|word| !LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word))) {
        return Err(wrong(format!("the levels are {}", LEVELS.join(", "))));
    }
    EnvFilter::builder().parse(text).map_err(|error| wrong(error.to_string()))
}

impl Logs {
    /// Sends this process's logs to standard error and to the file of the state directory. A remembered `level` that
    /// this version cannot read gives way to the default.
    ///
    /// # Errors
    /// If the file cannot be made.
    ///
    /// # Panics
    /// If the process logs elsewhere already.
    pub fn start(state_dir: &Path, level: Option<&str>) -> io::Result<Self> {
        let filter = level.and_then(|level| parse_level(level).ok()).unwrap_or_else(|| EnvFilter::new(LEVEL_DEFAULT));
        let (filter, handle) = reload::Layer::new(filter);
        let sink = SharedSink::open(state_dir)?;
        let to_sink = sink.clone();
        // One formatter for both, without colours: two would mix the spans' fields of one into the other. A full disk
        // or a closed terminal must not bring the daemon down by a panic about it.
        let lines = fmt::layer().with_ansi(false).log_internal_errors(false);
        let lines = lines.with_writer(journal::Stderr::of_process().and(move || to_sink.clone()));
        tracing_subscriber::registry().with(filter).with(lines).init();
        Ok(Self { filter: handle, sink, state_dir: state_dir.to_owned() })
    }

    /// Changes what is logged from now on; `None`: the default.
    ///
    /// # Errors
    /// [`LevelError`]: then nothing has changed.
    pub fn set_level(&self, level: Option<&str>) -> Result<(), LevelError> {
        let filter = parse_level(level.unwrap_or(LEVEL_DEFAULT))?;
        // Fails only when the subscriber is gone, and then there is nothing to filter.
        let _ = self.filter.reload(filter);
        Ok(())
    }

    /// Logs of nothing, for tests: a process has but one place to log to.
    #[cfg(test)]
    pub(crate) fn of_nothing(state_dir: &Path) -> io::Result<Self> {
        let (_, filter) = reload::Layer::new(EnvFilter::new(LEVEL_DEFAULT));
        Ok(Self { filter, sink: SharedSink::open(state_dir)?, state_dir: state_dir.to_owned() })
    }

    /// The last `lines` lines, oldest first, and what follows them without a gap.
    #[must_use]
    pub fn follow(&self, lines: usize) -> (Vec<String>, broadcast::Receiver<String>) {
        self.sink.follow(&self.state_dir, lines)
    }
}

/// Where lines go: the file, and whoever follows.
#[derive(Clone, Debug)]
struct SharedSink(Arc<Mutex<Sink>>);

#[derive(Debug)]
struct Sink {
    file: RotatingFile,
    followers: broadcast::Sender<String>,
}

impl SharedSink {
    fn open(state_dir: &Path) -> io::Result<Self> {
        let file = RotatingFile::open(&state_dir.join(LOG_DIR), FILE_BYTES_MAX)?;
        Ok(Self(Arc::new(Mutex::new(Sink { file, followers: broadcast::Sender::new(FOLLOWER_LAG_MAX) }))))
    }

    fn follow(&self, state_dir: &Path, lines: usize) -> (Vec<String>, broadcast::Receiver<String>) {
        // Held while the files are read, so that no line is both in them and still to come.
        let sink = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let past = tail(state_dir, lines).unwrap_or_else(|error| vec![format!("the log cannot be read: {error}")]);
        (past, sink.followers.subscribe())
    }
}

impl Write for SharedSink {
    /// One call is one line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut sink = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sink.followers.receiver_count() > 0 {
            let text = String::from_utf8_lossy(line);
            // The last follower may just have left.
            let _ = sink.followers.send(text.trim_end_matches('\n').to_owned());
        }
        sink.file.write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The last `lines` lines (at most [`TAIL_LINES_MAX`]) in the logs of a state directory, oldest first.
///
/// # Errors
/// If a file cannot be read; one that is not there is empty.
pub fn tail(state_dir: &Path, lines: usize) -> io::Result<Vec<String>> {
    let (dir, lines) = (state_dir.join(LOG_DIR), lines.min(TAIL_LINES_MAX));
    let newer = last_lines(&dir.join(LOG_FILE), lines)?;
    let mut found = last_lines(&dir.join(LOG_FILE_OLD), lines - newer.len())?;
    found.extend(newer);
    Ok(found)
}

/// The last `count` lines of a file.
fn last_lines(path: &Path, count: usize) -> io::Result<Vec<String>> {
    const BLOCK: u64 = 64 << 10;
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let (mut start, mut bytes) = (file.metadata()?.len(), Vec::new());
    // One newline more than lines: the one that ends the line before the first.
    while start > 0 && bytes.iter().filter(|&&byte| byte == b'\n').count() <= count {
        let length = BLOCK.min(start);
        start -= length;
        file.seek(SeekFrom::Start(start))?;
        let mut block = Vec::new();
        (&mut file).take(length).read_to_end(&mut block)?;
        block.append(&mut bytes);
        bytes = block;
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect())
}

/// The file that lines go to; it becomes the old one when it is full.
#[derive(Debug)]
struct RotatingFile {
    dir: PathBuf,
    file: File,
    size_bytes: u64,
    size_bytes_max: u64,
}

impl RotatingFile {
    fn open(dir: &Path, size_bytes_max: u64) -> io::Result<Self> {
        match fs::DirBuilder::new().mode(0o750).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let file = Self::open_file(dir)?;
        let size_bytes = file.metadata()?.len();
        Ok(Self { dir: dir.to_owned(), file, size_bytes, size_bytes_max })
    }

    fn open_file(dir: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o640).open(dir.join(LOG_FILE))
    }
}

impl Write for RotatingFile {
    /// One call is one line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.size_bytes >= self.size_bytes_max {
            fs::rename(self.dir.join(LOG_FILE), self.dir.join(LOG_FILE_OLD))?;
            self.file = Self::open_file(&self.dir)?;
            self.size_bytes = 0;
        }
        let written = self.file.write(line)?;
        self.size_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file: &mut RotatingFile, lines: impl IntoIterator<Item = u32>) {
        for line in lines {
            file.write_all(format!("line {line}\n").as_bytes()).expect("a test file");
        }
    }

    #[test]
    fn the_tail_spans_both_files_and_never_more_is_kept() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let mut file = RotatingFile::open(&temp.path().join(LOG_DIR), 1000).expect("a log");
        write(&mut file, 0..10_000);
        let lines = tail(temp.path(), 100).expect("readable");
        let wanted: Vec<String> = (9900..10_000).map(|line| format!("line {line}")).collect();
        assert_eq!(lines, wanted);
        let sizes = fs::read_dir(temp.path().join(LOG_DIR)).expect("a log");
        let total: u64 = sizes.map(|entry| entry.and_then(|entry| entry.metadata()).expect("a log").len()).sum();
        assert!(total < 2100, "{total} bytes kept");
    }

    #[test]
    fn a_follower_misses_no_line_between_the_tail_and_the_next() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let sink = SharedSink::open(temp.path()).expect("a log");
        let say = |line: &str| sink.clone().write_all(line.as_bytes()).expect("a test file");
        say("one\n");
        let (lines, mut followers) = sink.follow(temp.path(), 10);
        say("two\n");
        assert_eq!(lines, ["one"]);
        assert_eq!(followers.try_recv(), Ok("two".to_owned()));
    }

    #[test]
    fn a_log_that_is_not_there_is_empty() {
        let temp = tempfile::tempdir().expect("temporary directory");
        assert!(tail(temp.path(), 5).expect("readable").is_empty());
    }
}
