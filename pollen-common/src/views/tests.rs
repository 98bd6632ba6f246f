//! A small cluster whose members say things, and what the others make of it.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::entries::{self, Claim, Pair};
use super::*;
use crate::identity::{SecretKey, Strict};
use crate::maps::{Authoring, Document, Entry, Lane};
use crate::roll::{Genesis, Parent, Rights, Roll, Standing, Tier, commitment};
use crate::time::{Instant, Now};

mod seeds;

const ROOT: u8 = 200;
const START: UnixMs = UnixMs(1_800_000_000_000);
const HOUR: u64 = 3_600_000;

fn secret(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn key(n: u8) -> NodeKey {
    secret(n).public()
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

struct World {
    roll: Roll,
    authors: BTreeMap<u8, Authoring>,
    document: Document,
}

impl World {
    /// Admin 1, publishers 2 and 3, leaf 4: called ams, bern, cork and dover.
    fn new() -> Self {
        let genesis = Genesis::sign(&secret(ROOT), commitment(&key(ROOT + 1)));
        let roll = Roll::new(genesis);
        let document = Document::new(roll.cluster());
        let mut world = Self { roll, authors: BTreeMap::new(), document };
        world.admit(ROOT, 1, Rights::first_admin(), START);
        world.admit(1, 2, Rights::of(Tier::Publisher), START);
        world.admit(1, 3, Rights::of(Tier::Publisher), START);
        world.admit(1, 4, Rights::of(Tier::Leaf), START);
        for (n, called) in [(1, "ams"), (2, "bern"), (3, "cork"), (4, "dover")] {
            world.says(n, Lane::Facts, entries::node(Some(&name(called)), &[]));
        }
        world
    }

    fn admit(&mut self, by: u8, subject: u8, rights: Rights, now: UnixMs) {
        let edge = self.roll.admit(&secret(by), key(subject), rights, now).expect("may admit");
        self.roll.merge([Arc::new(edge)], &Strict);
        let parent = if by == ROOT { Parent::Root } else { Parent::Key { parent: key(by), via: None } };
        let stand = self.roll.stand(&secret(subject), parent, now).expect("may stand");
        self.roll.merge([Arc::new(stand)], &Strict);
    }

    fn author(&mut self, n: u8) -> &mut Authoring {
        let start = Now { mono: Instant(0), unix: START };
        let document = &self.document;
        let author = self.authors.entry(n).or_insert_with(|| Authoring::boot(secret(n), document, 0, start));
        author.release();
        author
    }

    fn seal(&mut self, n: u8) {
        let sealed = self.author(n).seal(Now { mono: Instant(0), unix: START });
        sealed.into_iter().flat_map(|sealed| sealed.held).for_each(|held| self.document.place(held));
    }

    fn says(&mut self, n: u8, lane: Lane, (key, value): Pair) {
        self.author(n).put(lane, &key, &value, 1 << 20).expect("room");
        self.seal(n);
    }

    fn unsays(&mut self, n: u8, lane: Lane, key: &[u8]) {
        self.author(n).delete(lane, key);
        self.seal(n);
    }

    fn claims(&mut self, n: u8, text: &str, after_start: u64, shared: bool, port: Option<u16>) {
        let claimed = UnixMs(START.0 + after_start);
        let (protocol, policy) = (Protocol::Tcp, Policy::default());
        let claim = Claim { protocol, port, also: None, shared, claimed, hashes: Vec::new(), policy };
        self.says(n, Lane::Facts, entries::claim(&name(text), &claim));
    }

    fn provides(&mut self, n: u8, text: &str, owner: u8, port: u16) {
        self.says(
            n,
            Lane::Facts,
            entries::provider(
                &name(text),
                &key(owner),
                &entries::Offered { of_claim: Some(port), ..entries::Offered::default() },
            ),
        );
    }

    fn offers(&mut self, n: u8, text: &str, owner: u8, ports: &[(Protocol, u16)]) {
        let mut offered = entries::Offered::default();
        ports.iter().for_each(|(protocol, port)| offered.set_port(*protocol, Some(*port)));
        self.says(n, Lane::Facts, entries::provider(&name(text), &key(owner), &offered));
    }

    fn link(&mut self, a: u8, b: u8) {
        self.says(a, Lane::Live, entries::link(&key(b)));
        self.says(b, Lane::Live, entries::link(&key(a)));
    }

    fn view_at(&self, me: u8, now: UnixMs) -> View {
        View::build(key(me), &self.roll, &Standing::of(&self.roll), &self.document, now)
    }

    fn view(&self, me: u8) -> View {
        self.view_at(me, UnixMs(START.0 + 24 * HOUR))
    }

    fn why(&self, me: u8, target: &Target) -> Vec<String> {
        let now = UnixMs(START.0 + 24 * HOUR);
        self.view(me).why(target, &self.roll, &Standing::of(&self.roll), &self.document, now)
    }

    fn why_name(&self, text: &str) -> Vec<String> {
        self.why(1, &Target::Name(name(text)))
    }
}

fn owner(view: &View, text: &str) -> Option<NodeKey> {
    view.services.get(&name(text)).map(|service| service.owner)
}

fn providers(view: &View, text: &str) -> Vec<(NodeKey, u16)> {
    view.services[&name(text)].providers.iter().map(|provider| (provider.node, provider.port)).collect()
}

fn has(reasons: &[String], part: &str) -> bool {
    reasons.iter().any(|reason| reason.contains(part))
}

#[test]
fn a_name_belongs_to_the_earliest_claim_whoever_asks_and_losers_are_told() {
    let mut world = World::new();
    world.claims(3, "api", 2 * HOUR, false, Some(81));
    world.claims(2, "api", HOUR, false, Some(80));
    for me in 1..=4 {
        let view = world.view(me);
        assert_eq!(owner(&view, "api"), Some(key(2)));
        assert_eq!(providers(&view, "api"), [(key(2), 80)], "a loser provides nothing under the name");
        let conflicts = &view.services[&name("api")].conflicts;
        assert_eq!((conflicts.len(), conflicts[0].author), (1, key(3)));
        assert!(conflicts[0].reason.contains("bern") && conflicts[0].reason.contains("earlier"));
    }
    let reasons = world.why_name("api");
    assert!(has(&reasons, "bern") && has(&reasons, "the claim of cork") && has(&reasons, "provides it as its owner"));
    world.unsays(2, Lane::Facts, &entries::claim_key(&name("api")));
    assert_eq!(owner(&world.view(4), "api"), Some(key(3)), "what is free again goes to the next");
}

#[test]
fn equal_dates_go_to_the_lowest_key_and_a_granted_prefix_wins_over_dates() {
    let mut world = World::new();
    world.claims(2, "api.web", HOUR, false, Some(80));
    world.claims(3, "api.web", HOUR, false, Some(80));
    let lowest = key(2).min(key(3));
    assert_eq!(owner(&world.view(1), "api.web"), Some(lowest));
    let other = if lowest == key(2) { 3 } else { 2 };
    let rights = Rights { prefixes: alloc::vec!["api.".into()], ..Rights::of(Tier::Publisher) };
    world.admit(1, other, rights.clone(), UnixMs(START.0 + 2 * HOUR));
    assert_eq!(owner(&world.view(1), "api.web"), Some(lowest), "ams granted what it has not");
    world.admit(ROOT, 1, Rights { prefixes: rights.prefixes, ..Rights::first_admin() }, UnixMs(START.0 + 2 * HOUR));
    let view = world.view(1);
    assert_eq!(owner(&view, "api.web"), Some(key(other)));
    assert!(view.services[&name("api.web")].conflicts[0].reason.contains("prefix"));
}

#[test]
fn no_claim_is_older_than_its_authors_admission() {
    let mut world = World::new();
    world.claims(2, "api", 5 * HOUR, false, Some(80));
    world.admit(1, 5, Rights::of(Tier::Publisher), UnixMs(START.0 + 6 * HOUR));
    world.claims(5, "api", 0, false, Some(80));
    assert_eq!(owner(&world.view(1), "api"), Some(key(2)), "a back-dated claim steals nothing");
}

#[test]
fn a_leaf_publishes_nothing_and_is_told_why() {
    let mut world = World::new();
    world.claims(4, "api", 0, true, Some(80));
    world.says(4, Lane::Facts, entries::unnamed(Protocol::Tcp, 22, &Policy::default()));
    world.claims(2, "web", 0, true, Some(80));
    world.provides(4, "web", 2, 81);
    let view = world.view(1);
    assert!(owner(&view, "api").is_none() && view.unnamed.is_empty());
    assert_eq!(providers(&view, "web"), [(key(2), 80)]);
    let refused: Vec<_> = view.refused.iter().map(|entry| (entry.author, entry.key.clone())).collect();
    let owner_short = key(2).short();
    let expected = ["port/tcp/22", &alloc::format!("prov/web/{owner_short}"), "svc/api"];
    assert_eq!(refused, expected.map(|entry| (key(4), entry.into())));
    assert!(view.refused.iter().all(|entry| entry.reason.contains("leaf") && entry.reason.contains("publisher")));
    assert!(has(&world.why_name("api"), "its author is a leaf"));
    assert!(has(&world.why(1, &Target::Node(key(4))), "svc/api does not count"));
    world.admit(1, 4, Rights::of(Tier::Publisher), UnixMs(START.0 + HOUR));
    assert_eq!(owner(&world.view(1), "api"), Some(key(4)), "a grant takes effect without a new claim");
}

#[test]
fn others_provide_only_what_its_owner_shares() {
    let mut world = World::new();
    world.provides(3, "api", 2, 81);
    assert!(has(&world.why_name("api"), "nobody claims the name"));
    world.claims(2, "api", 0, false, None);
    assert!(providers(&world.view(1), "api").is_empty());
    assert!(has(&world.why_name("api"), "does not say shared") && has(&world.why_name("api"), "only holds the name"));
    world.claims(2, "api", 0, true, None);
    assert_eq!(providers(&world.view(1), "api"), [(key(3), 81)]);
    world.claims(2, "api", 0, true, Some(80));
    let mut both = [(key(2), 80), (key(3), 81)];
    both.sort_unstable();
    assert_eq!(providers(&world.view(1), "api"), both);
    assert!(has(&world.why_name("api"), "cork") && has(&world.why_name("api"), "as the owner shares it"));
    // The name changes hands: what was offered to the old owner is not the new one's.
    world.unsays(2, Lane::Facts, &entries::claim_key(&name("api")));
    world.claims(1, "api", HOUR, true, None);
    assert!(providers(&world.view(1), "api").is_empty());
    assert!(has(&world.why_name("api"), "it was offered to bern"));
}

#[test]
fn an_unreadable_entry_is_refused_and_does_no_harm_to_the_rest() {
    let mut world = World::new();
    world.claims(2, "api", 0, false, Some(80));
    world.says(2, Lane::Facts, (b"quux".to_vec(), Vec::new()));
    world.says(2, Lane::Facts, (b"svc/web".to_vec(), alloc::vec![0xff]));
    for n in 0..100u8 {
        world.says(3, Lane::Facts, (alloc::vec![b'x', n], Vec::new()));
    }
    let view = world.view(1);
    assert_eq!(owner(&view, "api"), Some(key(2)));
    assert_eq!(view.refused.iter().filter(|entry| entry.author == key(2)).count(), 2);
    let cork: Vec<_> = view.refused.iter().filter(|entry| entry.author == key(3)).collect();
    assert_eq!(cork.len(), REFUSED_PER_AUTHOR_MAX);
    assert!(cork.iter().any(|entry| entry.reason.contains("68 more entries")), "the rest is counted");
}

#[test]
fn a_node_is_alive_while_links_that_both_ends_claim_lead_to_it() {
    let mut world = World::new();
    world.link(1, 2);
    world.link(2, 3);
    let view = world.view(1);
    assert_eq!(view.nodes[&key(1)].liveness, Liveness::Me);
    assert_eq!(view.nodes[&key(2)].liveness, Liveness::Online { via: key(2), hops: 1 });
    assert_eq!(view.nodes[&key(3)].liveness, Liveness::Online { via: key(2), hops: 2 });
    assert_eq!(view.nodes[&key(4)].liveness, Liveness::Offline);
    assert_eq!(view.nodes[&key(2)].links.len(), 2);
    assert!(has(&world.why(1, &Target::Node(key(3))), "both ends claim each link of ams"));
    assert!(has(&world.why(1, &Target::Node(key(4))), "nobody claims a link with it"));
    // Cork dies: its neighbour says so, while its own last words stay.
    world.unsays(2, Lane::Live, &entries::link_key(&key(3)));
    assert_eq!(world.view(1).nodes[&key(3)].liveness, Liveness::Offline);
    world.says(4, Lane::Live, entries::link(&key(1)));
    assert_eq!(world.view(1).nodes[&key(4)].liveness, Liveness::Offline, "one end alone claims in vain");
    assert!(has(&world.why(1, &Target::Node(key(1))), "is this node"));
}

#[test]
fn links_among_the_dead_keep_nobody_alive() {
    let mut world = World::new();
    world.link(3, 4);
    let view = world.view(1);
    assert!(!view.nodes[&key(3)].liveness.is_online() && !view.nodes[&key(4)].liveness.is_online());
    assert!(has(&world.why(1, &Target::Node(key(3))), "nothing links them with this node"));
    assert!(world.view(3).nodes[&key(4)].liveness.is_online(), "they see each other");
}

#[test]
fn whoever_stops_standing_is_in_no_view_and_why_says_by_whom() {
    let mut world = World::new();
    world.claims(2, "api", 0, false, Some(80));
    let deny = world.roll.deny(&secret(1), key(2), UnixMs(START.0 + HOUR)).expect("may deny");
    world.roll.merge([Arc::new(deny)], &Strict);
    let view = world.view(3);
    assert!(!view.nodes.contains_key(&key(2)) && owner(&view, "api").is_none());
    assert!(has(&world.why(3, &Target::Node(key(2))), "denied by"));
    let mut world = World::new();
    let end = UnixMs(START.0 + 2 * HOUR);
    let rights = Rights { expires: Some(end), ..Rights::of(Tier::Publisher) };
    world.admit(1, 2, rights, UnixMs(START.0 + HOUR));
    assert!(world.view_at(3, UnixMs(end.0 - 1)).nodes.contains_key(&key(2)));
    assert!(!world.view_at(3, end).nodes.contains_key(&key(2)), "expiry is exact");
}

#[test]
fn why_a_node_stands_names_every_edge_above_it() {
    let world = World::new();
    let reasons = world.why(3, &Target::Node(key(2)));
    assert!(has(&reasons, "stands as publisher on ams") && has(&reasons, "which stands on the root"));
    assert!(has(&reasons, "grants bern") && has(&reasons, "the root grants ams"));
}

#[test]
fn a_view_counts_bytes_and_shows_roots_that_equal_documents_share() {
    let world = World::new();
    let (one, two) = (world.view(1), world.view(4));
    assert_eq!((one.roots, one.document_bytes), (two.roots, two.document_bytes));
    assert_eq!(one.roots[0], world.roll.trie().root());
    let entries: Vec<u64> =
        world.document.iter(Lane::Facts).flat_map(|h| h.map().iter()).map(|e: &Arc<Entry>| e.size_bytes()).collect();
    assert_eq!((one.document_entries, one.document_bytes), (entries.len() as u64, entries.iter().sum()));
}

#[test]
fn a_name_has_the_protocols_of_its_owner_and_others_offer_those_they_have() {
    let mut world = World::new();
    let claim = |also| Claim {
        protocol: Protocol::Tcp,
        port: Some(53),
        also,
        shared: true,
        claimed: START,
        hashes: Vec::new(),
        policy: Policy::default(),
    };
    world.says(2, Lane::Facts, entries::claim(&name("dns"), &claim(Some(5353))));
    world.offers(3, "dns", 2, &[(Protocol::Udp, 54)]);
    let spoken = |world: &World| -> Vec<_> {
        let view = world.view(1);
        view.services[&name("dns")].providers.iter().map(|p| (p.node, p.protocol, p.port)).collect()
    };
    let owner = [(key(2), Protocol::Tcp, 53), (key(2), Protocol::Udp, 5353)];
    let one = (key(3), Protocol::Udp, 54);
    assert_eq!(spoken(&world), [owner[0], owner[1], one]);
    world.offers(3, "dns", 2, &[(Protocol::Udp, 54), (Protocol::Tcp, 55)]);
    assert_eq!(spoken(&world), [owner[0], owner[1], (key(3), Protocol::Tcp, 55), one]);
    world.provides(3, "dns", 2, 56);
    assert_eq!(spoken(&world)[2..], [(key(3), Protocol::Tcp, 56)], "as a node says that knows of one protocol alone");

    world.says(2, Lane::Facts, entries::claim(&name("dns"), &claim(None)));
    world.offers(3, "dns", 2, &[(Protocol::Udp, 54)]);
    assert_eq!(spoken(&world), [owner[0]]);
    assert!(world.why_name("dns").iter().any(|why| why.contains("does not speak that protocol")));
}

#[test]
fn a_claim_that_loses_its_first_protocol_goes_on_with_the_other() {
    let mut claim = Claim {
        protocol: Protocol::Tcp,
        port: Some(53),
        also: None,
        shared: false,
        claimed: UnixMs(7),
        hashes: Vec::new(),
        policy: Policy::default(),
    };
    claim.set_port(Protocol::Udp, Some(54));
    claim.set_port(Protocol::Tcp, None);
    assert_eq!((claim.protocol, claim.port, claim.also), (Protocol::Udp, Some(54), None));
    claim.set_port(Protocol::Udp, None);
    assert_eq!((claim.port_in(Protocol::Udp), claim.port_in(Protocol::Tcp)), (None, None));
}
