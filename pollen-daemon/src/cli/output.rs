//! Where answers go: text for people or JSON for programs on standard output, failures on standard error. Owns the
//! choice between them. Invariant: what others wrote never reaches a terminal with control characters in it.

use std::io::{self, IsTerminal as _, Write};

use serde::Serialize;

use crate::http::failure::{Code, Failure};
use crate::status::plain::plain;

/// The process's surroundings, or a test's.
pub(super) struct Terminal<'a> {
    pub(super) out: Box<dyn Write + 'a>,
    pub(super) err: Box<dyn Write + 'a>,
    /// Whether escape sequences are welcome.
    pub(super) colour: bool,
    /// Whether somebody watches standard error as it comes.
    pub(super) watched: bool,
}

impl Terminal<'static> {
    pub(super) fn of_process() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = io::stdout().is_terminal() && !set("NO_COLOR") && !dumb;
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            colour,
            watched: io::stderr().is_terminal() && !dumb,
        }
    }
}

impl Terminal<'_> {
    /// Shows what the parser has to say: help on standard output, errors on standard error.
    pub(super) fn usage(&mut self, error: &clap::Error, json: bool) -> u8 {
        if json && error.use_stderr() {
            let failure = usage_failure(&error.render().to_string());
            Output::new(self, true).failure(&failure);
            return failure.code.exit();
        }
        let shown = if self.colour { error.render().ansi().to_string() } else { error.render().to_string() };
        let to = if error.use_stderr() { &mut self.err } else { &mut self.out };
        // Nothing is left to tell anyone when even this cannot be written.
        let _ = to.write_all(shown.as_bytes());
        u8::try_from(error.exit_code()).unwrap_or(Code::Usage.exit())
    }
}

/// What the parser says in paragraphs, as a failure: the first is what is wrong, the others what to do.
fn usage_failure(text: &str) -> Failure {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let rest: Vec<&str> = lines.collect();
    let wrong = first.strip_prefix("error: ").unwrap_or(first);
    let failure = Failure::new(Code::Usage, wrong);
    if rest.is_empty() { failure } else { failure.hint(rest.join("; ")) }
}

/// How one command answers.
pub(super) struct Output<'t, 'a> {
    terminal: &'t mut Terminal<'a>,
    json: bool,
}

impl<'t, 'a> Output<'t, 'a> {
    pub(super) fn new(terminal: &'t mut Terminal<'a>, json: bool) -> Self {
        Self { terminal, json }
    }

    pub(super) fn colour(&self) -> bool {
        self.terminal.colour
    }

    /// The whole answer: `document` for programs, `text` for people.
    pub(super) fn answer(&mut self, document: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let text = if self.json { json(document, serde_json::to_string_pretty)? } else { text() };
        self.write(text.trim_end_matches('\n')).map(|_| ())
    }

    /// One line of a stream; false when the reader has gone.
    pub(super) fn line(&mut self, document: &impl Serialize, text: impl FnOnce() -> String) -> Result<bool, Failure> {
        let line = if self.json { json(document, serde_json::to_string)? } else { plain(&text()).into_owned() };
        self.write(&line)
    }

    fn write(&mut self, text: &str) -> Result<bool, Failure> {
        let out = &mut self.terminal.out;
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            // `pln … | head` is no failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Failure::new(Code::Failed, format!("the answer cannot be written: {error}"))),
        }
    }

    /// The whole answer as bytes that are not ours to change; as a document where programs want one.
    pub(super) fn raw<T: Serialize>(&mut self, bytes: &[u8], document: impl FnOnce() -> T) -> Result<(), Failure> {
        if self.json {
            return self.answer(&document(), String::new);
        }
        let out = &mut self.terminal.out;
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(Code::Failed, format!("the answer cannot be written: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// What is being done, in place of what was said to be done before: for people who watch.
    pub(super) fn progress(&mut self, text: &str) {
        if self.terminal.watched && !self.json {
            let err = &mut self.terminal.err;
            // The answer matters; a bar that cannot be drawn does not.
            let _ = write!(err, "\r\x1b[K{}", plain(text)).and_then(|()| err.flush());
        }
    }

    /// Takes the last [`Self::progress`] away.
    pub(super) fn progress_over(&mut self) {
        self.progress("");
    }

    /// Something beside the answer, for people alone.
    pub(super) fn note(&mut self, text: &str) {
        if !self.json {
            // The answer matters; a note that cannot be written does not.
            let _ = writeln!(self.terminal.err, "{}", plain(text));
        }
    }

    /// Why there is no answer.
    pub(super) fn failure(&mut self, failure: &Failure) {
        let shown = if self.json {
            serde_json::to_string(failure).unwrap_or_else(|_| failure.to_string())
        } else {
            format!("pln: {}", plain(&failure.to_string()))
        };
        // The exit code still tells.
        let _ = writeln!(self.terminal.err, "{shown}");
    }
}

fn json<T: Serialize>(document: &T, with: fn(&T) -> serde_json::Result<String>) -> Result<String, Failure> {
    with(document).map_err(|error| Failure::new(Code::Failed, format!("the answer cannot be written: {error}")))
}
