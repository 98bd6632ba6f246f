//! Every fuzz target is replayed over its corpus: what was once found stays found.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

// By path: the crate of the fuzz targets is a workspace of its own, built by cargo-fuzz on nightly.
#[path = "../fuzz/src/lib.rs"]
mod fuzz_targets;

const FUZZ: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz");

fn names(folder: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(Path::new(FUZZ).join(folder)).unwrap();
    entries
        .map(|entry| PathBuf::from(entry.unwrap().file_name()).file_stem().unwrap().to_str().unwrap().into())
        .collect()
}

#[test]
fn every_fuzz_target_has_a_program_and_a_corpus() {
    let targets: BTreeSet<String> = fuzz_targets::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
}

#[test]
fn every_input_of_the_corpora_is_answered_or_refused() {
    for (name, run) in fuzz_targets::TARGETS {
        let mut inputs = 0;
        for entry in std::fs::read_dir(Path::new(FUZZ).join("corpus").join(name)).unwrap() {
            let input = std::fs::read(entry.unwrap().path()).unwrap();
            // Every input cut at every place is one more input.
            for len in 0..=input.len().min(2048) {
                run(&input[..len]);
            }
            run(&input);
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has an empty corpus");
    }
}

#[test]
fn an_honest_session_cut_anywhere_harms_nobody() {
    let said = fuzz_targets::session::honest_transcript();
    for len in (0..said.len()).step_by(37) {
        fuzz_targets::session::member_says(&said[..len]);
    }
}

#[test]
fn an_honest_answer_makes_a_member_and_no_part_of_it_does() {
    let answer = fuzz_targets::session::honest_answer();
    assert!(fuzz_targets::session::contact_answers(&answer));
    for len in (0..answer.len()).step_by(7) {
        assert!(!fuzz_targets::session::contact_answers(&answer[..len]), "{len} bytes were enough");
    }
}
