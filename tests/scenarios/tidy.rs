//! The tree polices itself: what a machine can check about it is checked here.

use std::path::{Path, PathBuf};

const TREE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// No file of source grows past this: one that does is two things.
const FILE_LINES_MAX: usize = 600;

fn files_below(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            files.extend(files_below(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn sources() -> Vec<PathBuf> {
    let crates = ["pollen-common", "pollen-daemon", "pollen-ebpf", "xtask", "tests"];
    crates.iter().flat_map(|name| files_below(&Path::new(TREE).join(name), "rs")).collect()
}

#[test]
fn every_scenario_file_is_included() {
    let scenarios = Path::new(TREE).join("tests/scenarios");
    let mut files = 0;
    for path in files_below(&scenarios, "rs") {
        let (name, parent) = (path.file_stem().unwrap().to_str().unwrap(), path.parent().unwrap());
        let includer = if parent == scenarios { scenarios.join("main.rs") } else { parent.with_extension("rs") };
        if path != includer {
            files += 1;
            let text = std::fs::read_to_string(&includer).unwrap();
            assert!(text.contains(&format!("mod {name};")), "{} does not include {name}.rs", includer.display());
        }
    }
    assert!(files > 1, "the scenarios were looked for in the wrong place");
}

#[test]
fn every_source_file_says_what_it_owns_and_is_short() {
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        // Unit tests are about the module they lie in, which says what it owns.
        let exempt = path.ends_with("tests.rs") || lines < 2;
        assert!(exempt || text.starts_with("//! "), "{} does not open with what it owns", path.display());
        assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines: it is two things", path.display());
    }
}

#[test]
fn every_module_of_the_daemon_and_the_core_is_reachable() {
    for path in sources() {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let parent = path.parent().unwrap();
        let roots = ["lib", "main", "build", "mod"];
        if roots.contains(&name) || !path.components().any(|part| part.as_os_str() == "src") || parent.ends_with("bin")
        {
            continue;
        }
        let inside = if parent.ends_with("src") {
            ["lib.rs", "main.rs"].map(|root| parent.join(root)).to_vec()
        } else {
            vec![parent.with_extension("rs"), parent.join("mod.rs")]
        };
        let declared = inside
            .iter()
            .filter_map(|file| std::fs::read_to_string(file).ok())
            .any(|text| text.lines().any(|line| line.trim_end().ends_with(&format!("mod {name};"))));
        assert!(declared, "{} is in no module", path.display());
    }
}
