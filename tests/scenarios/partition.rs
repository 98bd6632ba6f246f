//! A network that falls apart and heals: both sides go on, and agree again.

use std::time::Duration;

use tests::cluster::form;
use tests::lab::{Family, Host, lab_or_skip};
use tests::pln::Pln;
use tests::status::{Status, await_equal, await_online};

const PARTITION: Duration = Duration::from_secs(20);
const AGREE_DEADLINE: Duration = Duration::from_secs(5);

#[test]
fn both_sides_of_a_partition_change_and_agree_soon_after_it_heals() {
    let Some(mut lab) = lab_or_skip() else { return };
    let switch = lab.switch(Family::Both).unwrap();
    let mut nodes = ["a", "b", "c", "d"].map(|name| Pln::on(lab.host(name, &[switch], 1500).unwrap()));
    form(&mut nodes, &["--publisher"]).unwrap();
    let [a, b, c, d] = &nodes;
    a.ok(&["serve", "9000", "removed"]).unwrap();
    c.ok(&["serve", "9000", "kept"]).unwrap();
    await_equal(&[a, b, c, d], AGREE_DEADLINE).unwrap();

    let island: [&Host; 2] = [&c.host, &d.host];
    lab.part(switch, &island).unwrap();
    let parted = std::time::Instant::now();
    a.ok(&["unserve", "removed"]).unwrap();
    b.ok(&["serve", "9001", "from-b"]).unwrap();
    c.ok(&["serve", "9002", "from-c"]).unwrap();
    d.ok(&["serve", "9003", "from-d"]).unwrap();
    await_online(&[a, b], &["a", "b"], PARTITION).unwrap();
    await_online(&[c, d], &["c", "d"], PARTITION).unwrap();
    assert_ne!(Status::of(a).unwrap().roots().unwrap(), Status::of(c).unwrap().roots().unwrap());
    std::thread::sleep(PARTITION.saturating_sub(parted.elapsed()));

    lab.heal(switch, &island).unwrap();
    await_equal(&[a, b, c, d], AGREE_DEADLINE).unwrap();
    let expected = ["from-b", "from-c", "from-d", "kept"].map(str::to_owned).into();
    for node in &nodes {
        assert_eq!(Status::of(node).unwrap().services().unwrap(), expected, "{}", node.host.name());
    }
    await_online(&[a, b, c, d], &["a", "b", "c", "d"], AGREE_DEADLINE).unwrap();
}
