//! Names the commit that is built, if there is one: a build without git says none.
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    name_commit();
}

/// Sets `PLN_COMMIT` for the compiler, unless whoever builds has set it. Only where it is optimised: a developer's build
/// is of whatever the tree holds, and would be built anew after each commit for the sake of this line.
fn name_commit() {
    println!("cargo::rerun-if-env-changed=PLN_COMMIT");
    let optimised = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if env::var_os("PLN_COMMIT").is_some() || !optimised {
        return;
    }
    let Some((commit, moves)) = commit() else { return };
    for file in moves {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    println!("cargo::rustc-env=PLN_COMMIT={commit}");
}

/// The commit that is checked out, and the files that change when another one is. None where there is no git, or where
/// these sources lie in a repository that is not theirs.
fn commit() -> Option<(String, Vec<PathBuf>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.canonicalize().ok()?;
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(&root).args(args).output().ok()?;
        let said = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !said.is_empty()).then_some(said)
    };
    if Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()? != root {
        return None;
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let file = |name: &str| Some(root.join(git(&["rev-parse", "--git-path", name])?));
    let branch = git(&["symbolic-ref", "-q", "HEAD"]).and_then(|branch| file(&branch));
    // A watched file that is missing would make every build a changed one.
    let moves = [file("HEAD"), branch, file("packed-refs")].into_iter().flatten().filter(|file| file.exists());
    Some((commit, moves.collect()))
}
