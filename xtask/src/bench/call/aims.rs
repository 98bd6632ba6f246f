//! What calls are meant to take, beside what they took. Knows the aims; must not know how anything was measured.

use std::collections::BTreeMap;

use super::{Case, Cell, Way, got};

/// The guest that the aims are for.
const RUST: usize = 0;
const MEMORY_MIB: f64 = 64.0;

/// An upper bound on the median latency in microseconds, or a lower one on calls a second.
enum Aim {
    Microseconds(f64),
    Rate(f64),
    /// Of what the `extism` crate takes for the same.
    ShareOfExtism(f64),
}

const AIMS: &[(Way, usize, usize, Aim)] = &[
    (Way::InProcess, 64, 1, Aim::Microseconds(15.0)),
    (Way::InProcess, 1 << 20, 1, Aim::ShareOfExtism(0.5)),
    (Way::InProcess, 64, 32, Aim::Rate(120_000.0)),
    (Way::Hosting, 64, 1, Aim::Microseconds(110.0)),
    (Way::Remote, 64, 1, Aim::Microseconds(250.0)),
    (Way::Hosting, 64, 32, Aim::Rate(22_000.0)),
    (Way::Remote, 64, 32, Aim::Rate(18_000.0)),
    (Way::Remote, 64 << 10, 1, Aim::Microseconds(450.0)),
    (Way::Remote, 1 << 20, 1, Aim::Microseconds(5_000.0)),
];

/// The table of aims; `later_mib` is what the larger node holds a minute after the load.
pub fn table(cells: &mut BTreeMap<Case, Cell>, later_mib: f64) -> String {
    let mut table = "\n## Aims, with the Rust guest\n\n| | aim | got | |\n|---|---|---|---|\n".to_owned();
    for (way, bytes, callers, aim) in AIMS {
        let case = (RUST, *bytes, *callers, *way);
        let (aim, got, met) = match aim {
            Aim::Microseconds(most) => {
                let Some(got) = got(cells, case, |cell| &mut cell.p50_us) else { continue };
                (format!("p50 {most} us"), format!("{got:.1} us"), got <= *most)
            }
            Aim::Rate(least) => {
                let Some(got) = got(cells, case, |cell| &mut cell.rate) else { continue };
                (format!("{least} calls/s"), format!("{got:.0} calls/s"), got >= *least)
            }
            Aim::ShareOfExtism(most) => {
                let peer = got(cells, (RUST, *bytes, *callers, Way::Extism), |cell| &mut cell.p50_us);
                let own = got(cells, case, |cell| &mut cell.p50_us);
                let (Some(own), Some(peer)) = (own, peer) else { continue };
                (format!("{most} of extism's"), format!("{:.2} of it", own / peer), own / peer <= *most)
            }
        };
        table += &row(&format!("{}, {callers} calling, {}", way.name(), super::size(*bytes)), &aim, &got, met);
    }
    let memory = format!("{later_mib:.1} MiB");
    table + &row("resident a minute after the load", &format!("{MEMORY_MIB} MiB"), &memory, later_mib <= MEMORY_MIB)
}

fn row(what: &str, aim: &str, got: &str, met: bool) -> String {
    format!("| {what} | {aim} | {got} | {} |\n", if met { "met" } else { "not met" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_is_met_by_less_time_or_more_calls_and_left_out_where_nothing_was_measured() {
        let cell = |p50, rate| Cell { p50_us: vec![p50], rate: vec![rate], ..Cell::default() };
        let mut cells = BTreeMap::from([
            ((RUST, 64, 1, Way::InProcess), cell(12.0, 1.0)),
            ((RUST, 64, 1, Way::Remote), cell(251.0, 1.0)),
            ((RUST, 64, 32, Way::Hosting), cell(1.0, 22_000.0)),
            ((RUST, 1 << 20, 1, Way::InProcess), cell(400.0, 1.0)),
            ((RUST, 1 << 20, 1, Way::Extism), cell(1_000.0, 1.0)),
        ]);
        let table = table(&mut cells, 70.0);
        let rows: Vec<_> = table.lines().skip(5).collect();
        let says = |row: &str, words: &[&str]| assert!(words.iter().all(|word| row.contains(word)), "{row}");
        says(rows[0], &["in process, 1 calling, 64 B", "12.0 us", "| met |"]);
        says(rows[1], &["0.40 of it", "| met |"]);
        says(rows[2], &["remote", "251.0 us", "| not met |"]);
        says(rows[3], &["hosting", "22000 calls/s", "| met |"]);
        says(rows[4], &["70.0 MiB", "| not met |"]);
        assert_eq!(rows.len(), 5);
    }
}
