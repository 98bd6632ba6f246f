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

/// A guide that tells people under attack what to type must not tell them what `pln` does not know.
#[test]
fn every_command_of_the_security_guide_is_one() {
    let guide = include_str!("../../../docs/guide/security.md");
    let blocks = guide.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let blocks = blocks.flat_map(str::lines).map(|line| line.split('#').next().unwrap_or(line));
    // What stands in a sentence may leave its arguments out; its words and flags must be there all the same.
    let prose = guide.split("\n```").step_by(2).flat_map(|text| text.split('`').skip(1).step_by(2));
    let known = super::Cli::command();
    let mut parsed = 0;
    for line in blocks {
        if let Err(error) = known.clone().try_get_matches_from(line.split_whitespace()) {
            panic!("{line}: {error}");
        }
        parsed += 1;
    }
    assert!(parsed >= 5, "{parsed} commands: the blocks are not found any more");
    for words in prose.map(|code| code.split_whitespace().collect::<Vec<_>>()) {
        let ["pln", name, ..] = words[..] else { continue };
        let Some(command) = known.find_subcommand(name) else { panic!("{words:?} is no command") };
        for flag in words.iter().filter_map(|word| word.strip_prefix("--")) {
            let has = command.get_arguments().chain(known.get_arguments()).any(|arg| arg.get_long() == Some(flag));
            assert!(has, "{words:?}: no --{flag}");
        }
    }
}
