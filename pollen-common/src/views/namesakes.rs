//! Machines that chose one name, told apart: the member longest admitted keeps it, the others are `vm-2`, `vm-3` and so
//! on. Must not know what names are for. Invariant: after this no two members have one name, and what nobody shares
//! stays as it was chosen.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;

use super::Name;
use crate::identity::NodeKey;
use crate::names::NAME_BYTES_MAX;

/// The names by which the nodes are told apart. `chosen` is what each says it is called, `admitted` since when it is a member.
pub(super) fn told_apart(
    chosen: &BTreeMap<NodeKey, Name>,
    admitted: impl Fn(&NodeKey) -> u64,
) -> BTreeMap<NodeKey, Name> {
    let mut by_name: BTreeMap<&Name, Vec<NodeKey>> = BTreeMap::new();
    for (key, name) in chosen {
        by_name.entry(name).or_default().push(*key);
    }
    // What somebody chose is nobody's by number.
    let mut taken: BTreeSet<Name> = chosen.values().cloned().collect();
    let mut names = BTreeMap::new();
    for (name, mut keys) in by_name {
        keys.sort_by_key(|key| (admitted(key), *key));
        let mut number = 1;
        for key in keys {
            let told = if number == 1 { name.clone() } else { free(name, &mut number, &taken) };
            taken.insert(told.clone());
            names.insert(key, told);
            number += 1;
        }
    }
    names
}

/// The next numbered form of `name` that is not taken. Ends, for no more names are taken than there are nodes.
fn free(name: &Name, number: &mut usize, taken: &BTreeSet<Name>) -> Name {
    loop {
        let suffix = format!("-{number}");
        // Names are ASCII; a cut one may end in what no name ends in, but a digit follows.
        let kept = name.as_str().len().min(NAME_BYTES_MAX - suffix.len());
        let numbered = format!("{}{suffix}", &name.as_str()[..kept]).parse().ok().filter(|name| !taken.contains(name));
        match numbered {
            Some(free) => return free,
            None => *number += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};

    use super::*;

    fn told(chosen: &[&str]) -> Vec<String> {
        let key = |i: usize| NodeKey([u8::try_from(i).expect("a few"); 32]);
        let names = chosen.iter().enumerate().map(|(i, name)| (key(i), name.parse().expect("a name"))).collect();
        // The later in the list, the longer a member.
        let told = told_apart(&names, |key| 100 - u64::from(key.0[0]));
        (0..chosen.len()).map(|i| told[&key(i)].to_string()).collect()
    }

    #[test]
    fn the_member_longest_admitted_keeps_the_name_that_several_chose() {
        assert_eq!(told(&["vm", "db", "vm", "vm"]), ["vm-3", "db", "vm-2", "vm"]);
    }

    #[test]
    fn a_number_that_somebody_chose_is_passed_over() {
        assert_eq!(told(&["vm", "vm-2", "vm", "vm-2"]), ["vm-3", "vm-2-2", "vm", "vm-2"]);
    }

    #[test]
    fn a_long_name_is_cut_for_its_number_and_stays_a_name() {
        let long = "a".repeat(61) + "-b";
        let told = told(&[&long, &long]);
        assert_eq!(told[0], "a".repeat(61) + "-2");
        assert_eq!(told[1], long);
    }
}
