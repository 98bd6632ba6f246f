//! The reference page `docs/guide/cli.md`, made from the parser itself. Invariant: the page in the tree is what this
//! makes; a test compares them.

use std::fmt::Write as _;

use clap::CommandFactory as _;

/// Columns at which help is wrapped, so that the page does not depend on a terminal.
const WIDTH: usize = 100;

fn page() -> String {
    let mut pln = super::Cli::command().term_width(WIDTH);
    pln.build();
    let mut page = String::from(HEAD);
    describe(&mut pln, "pln", &mut page);
    page
}

/// The commands of `parent`, and theirs.
fn describe(parent: &mut clap::Command, path: &str, page: &mut String) {
    for command in parent.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        let path = format!("{path} {}", command.get_name());
        let help = command.render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        // Writing to a string does not fail.
        let _ = write!(page, "\n## {path}\n\n```text\n{}\n```\n", help.join("\n").trim_end());
        describe(command, &path, page);
    }
}

const HEAD: &str = "# Command line

Every command takes `--json` and `--dir PATH` (or `PLN_DIR`). Answers go to standard output; failures to standard error, in
one or two lines: what failed and why, then what to do next. With `--json` an answer is one document, or one object a line
where it is a stream, and a failure, bad usage too, is an object of `code`, `message` and `hint`. `pln help COMMAND` and
`pln COMMAND --help` show what follows here.

| exit code | `code` | |
| --- | --- | --- |
| 0 | | success |
| 1 | `failed` | any other failure |
| 2 | `usage` | the command makes no sense |
| 3 | `not_found` | nothing of that name |
| 4 | `denied` | this node, or this user, may not |
| 5 | `ambiguous` | several things match |
| 6 | `unreachable` | the daemon or a peer does not answer |

A node is named by its name or by a prefix of its key, a service by its name, a seed by its name or by a prefix of its module's
hash; where a port may stand, a number up to 65535 is a port. The state directory is `--dir`, else `PLN_DIR`, else `/var/lib/pln` if it is provisioned, else `~/.pln`.

This page is made from the command line itself: `PLN_UPDATE=1 cargo test -p pollen-daemon reference`.
";

#[test]
fn the_reference_page_is_what_the_parser_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/guide/cli.md");
    if std::env::var_os("PLN_UPDATE").is_some() {
        std::fs::write(path, page()).expect("the tree can be written");
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(written, page(), "docs/guide/cli.md is stale: PLN_UPDATE=1 cargo test -p pollen-daemon reference");
}
