//! Commands about seeds: `seed`, `unseed`, `call`.

use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::HeaderMap;
use hyper::Method;
use pollen_common::views::Name;

use super::output::Output;
use super::units;
use crate::control::api::{Called, SeedLine, SeededLine, StageLine, UnseededAnswer};
use crate::control::call;
use crate::control::client::{Client, segment};
use crate::http::failure::{Code, Failure};
use crate::workload::BODY_BYTES_MAX;
use pollen_module::MODULE_BYTES_MAX;

/// Publish a WebAssembly module that every member can call
///
/// It runs on as many nodes as it should, wherever in the mesh there is room, and elsewhere when one of them dies. The same
/// name again is a new version, ready before the old one goes. Prints the name and the module's hash.
#[derive(Debug, clap::Args)]
pub(super) struct Seed {
    /// A .wasm file, built with an Extism PDK
    source: PathBuf,
    /// What the mesh shall call it: letters, digits and - _ . [default: the file's name]
    name: Option<String>,
    /// How many nodes shall be ready to serve it
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    min_replicas: u16,
    /// On every node that takes seeds
    #[arg(long)]
    everywhere: bool,
    /// The most memory that one call may have
    #[arg(long, visible_alias = "mem", value_name = "SIZE", default_value = "8MiB", value_parser = units::size_kib)]
    memory: u32,
    /// The longest that one call may take
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::duration)]
    timeout: Duration,
    /// A call may run twice: made again elsewhere when its host dies in the middle of it
    #[arg(long)]
    idempotent: bool,
    /// Start each call from memory captured after the module's own start: for Go and other heavy starts
    ///
    /// It freezes what the start read: seeds of random numbers, the order of maps, environment and time.
    #[arg(long)]
    image: bool,
    /// An output that reads {"kind":"tail_call",...} is carried out under the caller's key: for guests of the Go Pollen
    ///
    /// Only for seeds whose output is never what somebody else gave them. Others import pollen_tail_call.
    #[arg(long)]
    tail_calls: bool,
}

impl Seed {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let module = module(&self.source)?;
        let name = self.name()?;
        let mut ended = None;
        let take = |line| {
            match line {
                SeedLine::Progress(step) => output.progress(&shown(&name, &step)),
                SeedLine::Seeded(seeded) => ended = Some(Ok(seeded)),
                SeedLine::Error(failure) => ended = Some(Err(failure)),
            }
            Ok(ended.is_none())
        };
        let answer = client.lines_of(Method::POST, &self.path(&name), module, take).await;
        output.progress_over();
        answer?;
        let seeded: SeededLine = ended.unwrap_or_else(|| {
            Err(Failure::new(Code::Failed, "the daemon ended before it said how this did")
                .hint("look at `pln status seeds` and `pln logs`"))
        })?;
        if let Some(note) = &seeded.note {
            output.note(note);
        }
        output.answer(&seeded, || format!("{} {}", seeded.name, seeded.module))
    }

    fn name(&self) -> Result<String, Failure> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let stem = self.source.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if stem.parse::<Name>().is_err() {
            let shown = self.source.display();
            return Err(Failure::new(Code::Usage, format!("{shown} has no name that a seed can have"))
                .hint(format!("give it one: pln seed {shown} NAME")));
        }
        Ok(stem.to_owned())
    }

    fn path(&self, name: &str) -> String {
        let Self { min_replicas, everywhere, memory, timeout, idempotent, image, tail_calls, .. } = self;
        format!(
            "/v1/seeds?name={}&min_replicas={min_replicas}&everywhere={everywhere}&memory_bytes={}&timeout_ms={}\
             &idempotent={idempotent}&image={image}&tail_calls={tail_calls}",
            segment(name),
            u64::from(*memory) * 1024,
            timeout.as_millis()
        )
    }
}

/// The bytes of a `.wasm` file.
fn module(source: &Path) -> Result<Bytes, Failure> {
    let shown = source.display();
    let unbuilt = |what| {
        Failure::new(Code::Usage, format!("{shown} is no .wasm file, and {what} are not built yet"))
            .hint("a seed is a WebAssembly module: pln seed FILE.wasm")
    };
    if source.is_dir() {
        return Err(unbuilt("sites"));
    }
    if source.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("wasm")) {
        return Err(unbuilt("blobs"));
    }
    let unread = |error: io::Error| Failure::new(Code::Failed, format!("{shown} cannot be read: {error}"));
    let size = std::fs::metadata(source).map_err(unread)?.len();
    if size > MODULE_BYTES_MAX as u64 {
        let max = MODULE_BYTES_MAX / (1024 * 1024);
        return Err(Failure::new(Code::Usage, format!("{shown} is larger than a module may be, {max} MiB"))
            .hint("strip what calls do not need: debug information, unused code"));
    }
    std::fs::read(source).map(Bytes::from).map_err(unread)
}

/// Columns of the bar.
const BAR: u64 = 20;

fn shown(name: &str, step: &StageLine) -> String {
    let StageLine { stage, done, total } = step;
    if *total == 0 {
        return format!("{name}: {stage} ...");
    }
    let full = usize::try_from(BAR * (*done).min(*total) / total).unwrap_or_default();
    let empty = usize::try_from(BAR).unwrap_or_default() - full;
    format!("{name}: {stage} [{}{}] {done} of {total}", "#".repeat(full), ".".repeat(empty))
}

/// Stop publishing a seed
///
/// Calls that run finish; new ones are refused. Returns once no node serves it.
#[derive(Debug, clap::Args)]
pub(super) struct Unseed {
    /// What `pln seed` published
    #[arg(value_name = "NAME|HASH")]
    seed: String,
}

impl Unseed {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let path = format!("/v1/seeds/{}", segment(&one(&self.seed)?));
        let unseeded: UnseededAnswer = client.exchange(Method::DELETE, &path, None::<&()>).await?;
        if let Some(note) = &unseeded.note {
            output.note(note);
        }
        output.answer(&unseeded, || format!("no longer publishing {}", self.seed))
    }
}

/// Call a function of a seed, wherever in the mesh it runs
///
/// Prints the output as the function gave it, byte for byte.
#[derive(Debug, clap::Args)]
pub(super) struct Call {
    /// A seed's name, or the start of its module's hash
    #[arg(value_name = "NAME|HASH")]
    seed: String,
    /// A function that the module exports
    function: String,
    /// What the function is given; standard input where this is - or absent
    #[arg(allow_hyphen_values = true)]
    input: Option<String>,
    /// How long to wait, over all tries
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::duration)]
    timeout: Duration,
    /// How often to try elsewhere while it is certain that it did not run, or the seed is idempotent
    #[arg(long, value_name = "N", default_value_t = call::RETRIES_DEFAULT)]
    retries: u32,
}

impl Call {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let path = format!(
            "{}{}/{}?timeout_ms={}&retries={}",
            call::PATH,
            segment(&one(&self.seed)?),
            segment(&one(&self.function)?),
            self.timeout.as_millis(),
            self.retries
        );
        let input = match self.input.as_deref() {
            Some("-") => standard_input()?,
            Some(text) => Bytes::copy_from_slice(text.as_bytes()),
            // Someone at a terminal has nothing to say unless they ask for it with `-`.
            None if io::stdin().is_terminal() => Bytes::new(),
            None => standard_input()?,
        };
        let begun = Instant::now();
        let (headers, bytes) = client.raw(Method::POST, &path, input, BODY_BYTES_MAX).await?;
        let ms = begun.elapsed().as_secs_f64() * 1000.0;
        output.raw(&bytes, || called(&headers, &bytes, ms))
    }
}

/// An answer as one document.
fn called(headers: &HeaderMap, output: &[u8], ms: f64) -> Called {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let text = std::str::from_utf8(output).ok().map(ToOwned::to_owned);
    Called {
        output_base64: text.is_none().then(|| data_encoding::BASE64.encode(output)),
        output: text,
        served_by: header(call::SERVED_BY).into(),
        version: header(call::VERSION).into(),
        retries: header(call::RETRIES).parse().unwrap_or_default(),
        ms: (ms * 1000.0).round() / 1000.0,
    }
}

fn standard_input() -> Result<Bytes, Failure> {
    let mut input = Vec::new();
    let one_more = BODY_BYTES_MAX as u64 + 1;
    io::stdin()
        .lock()
        .take(one_more)
        .read_to_end(&mut input)
        .map_err(|error| Failure::new(Code::Failed, format!("standard input cannot be read: {error}")))?;
    if input.len() > BODY_BYTES_MAX {
        let max = BODY_BYTES_MAX / (1024 * 1024);
        return Err(Failure::new(Code::Usage, format!("the input is over the limit of {max} MiB")));
    }
    Ok(input.into())
}

/// `text` as one segment of a path: never empty, never several.
fn one(text: &str) -> Result<String, Failure> {
    if text.is_empty() || text.contains('/') {
        return Err(Failure::new(Code::Usage, format!("`{text}` names nothing")));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_shown_with_a_bar_where_something_is_counted() {
        let step = |stage: &str, done, total| shown("hello", &StageLine { stage: stage.into(), done, total });
        assert_eq!(step("compiling", 0, 0), "hello: compiling ...");
        assert_eq!(step("spreading", 1, 2), "hello: spreading [##########..........] 1 of 2");
        assert_eq!(step("spreading", 3, 2), "hello: spreading [####################] 3 of 2");
    }

    #[test]
    fn an_output_that_is_no_text_is_base64_in_json() {
        let mut headers = HeaderMap::new();
        headers.insert(call::RETRIES, 2.into());
        let text = called(&headers, "é\n".as_bytes(), 1.23456);
        assert_eq!((text.output.as_deref(), text.output_base64, text.retries), (Some("é\n"), None, 2));
        assert!((text.ms - 1.235).abs() < 1e-9);
        let bytes = called(&headers, &[0xFF, 0], 1.0);
        assert_eq!((bytes.output, bytes.output_base64.as_deref()), (None, Some("/wA=")));
    }
}
