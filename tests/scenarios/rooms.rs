//! The order of rooms that `docs/ARCHITECTURE.md` gives, held against every `use` of the tree: a room imports only from
//! rooms before it in its crate's list. What is compiled for tests alone may look anywhere.

use std::path::{Path, PathBuf};

const TREE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The rooms of a crate, from the ground up.
fn order(page: &str, crate_name: &str) -> Vec<String> {
    let opening = format!("```rooms {crate_name}\n");
    let (_, list) = page.split_once(&opening).unwrap_or_else(|| panic!("no list of {crate_name}'s rooms"));
    let (list, _) = list.split_once("```").expect("the list ends");
    list.split_whitespace().map(str::to_owned).collect()
}

/// Every file of a module that is compiled into the crate, `path` itself included.
fn shipped(path: &Path, into: &mut Vec<(PathBuf, String)>) {
    let text = std::fs::read_to_string(path).unwrap();
    let root = ["lib.rs", "main.rs"].iter().any(|root| path.ends_with(root));
    let below = if root { path.parent().unwrap().to_owned() } else { path.with_extension("") };
    let (mut code, mut for_tests) = (String::new(), false);
    for line in text.lines() {
        let plain = line.split("//").next().unwrap();
        let declared = plain.trim().strip_suffix(';').and_then(|line| line.rsplit_once("mod ")).map(|(_, name)| name);
        match declared {
            Some(name) if !for_tests => shipped(&below.join(format!("{name}.rs")), into),
            // A module of tests is the last of its file.
            None if for_tests && plain.contains("mod ") => break,
            _ => {}
        }
        for_tests = plain.trim() == "#[cfg(test)]" || (for_tests && plain.trim().starts_with("#["));
        code.push_str(plain);
        code.push('\n');
    }
    into.push((path.to_owned(), code));
}

/// The first names behind each `crate::` of a text.
fn named(code: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(list) = rest.strip_prefix('{') else {
            names.push(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    names.push(word(&list[i..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    names
}

/// Which room of `src` a file is in; the crate's root is above all rooms.
fn room(src: &Path, file: &Path) -> Option<String> {
    let inside = file.strip_prefix(src).unwrap().components().next().unwrap();
    let name = Path::new(&inside).with_extension("").to_str().unwrap().to_owned();
    (!["lib", "main"].contains(&name.as_str())).then_some(name)
}

fn wrong_way(crate_name: &str) -> Vec<String> {
    let page = std::fs::read_to_string(Path::new(TREE).join("docs/ARCHITECTURE.md")).unwrap();
    let order = order(&page, crate_name);
    let src = Path::new(TREE).join(crate_name).join("src");
    let mut files = Vec::new();
    shipped(&src.join("lib.rs"), &mut files);
    let place = |name: &str| order.iter().position(|room| room == name);
    let mut found = Vec::new();
    for (file, code) in &files {
        let Some(here) = room(&src, file) else { continue };
        let Some(at) = place(&here) else {
            found.push(format!("the page's list of {crate_name} lacks the room {here}"));
            continue;
        };
        // A macro of the crate's, or an item of its root, is no room.
        let up = named(code).into_iter().filter(|name| place(name).is_some_and(|other| other > at));
        found.extend(up.map(|name| format!("{}: {here} imports from {name}, which stands above it", file.display())));
    }
    assert!(files.len() > order.len(), "{crate_name} was looked for in the wrong place");
    found
}

#[test]
fn no_room_imports_from_one_above_it() {
    let found: Vec<_> = ["pollen-common", "pollen-daemon"].into_iter().flat_map(wrong_way).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn what_is_named_behind_crate_is_found() {
    let code = "use crate::maps::{Lane, head};\nuse crate::{hash, views::{Name, Protocol}, wire};\nlet x = crate::time::now();";
    assert_eq!(named(code), ["maps", "hash", "views", "wire", "time"]);
}
