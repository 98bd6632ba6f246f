use proptest::prelude::*;

use super::*;

fn said(lane: Lane, (key, value): &Pair) -> Result<Said, Unread> {
    read(lane, &Entry::new(key, 1, value).expect("within bounds"))
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn plain() -> Claim {
    Claim {
        protocol: Protocol::Tcp,
        port: Some(80),
        also: None,
        shared: false,
        claimed: UnixMs(1),
        hashes: Vec::new(),
        policy: Policy::default(),
    }
}

fn named() -> Policy {
    Policy { peers: [NodeKey([5; 32])].into(), ..Policy::default() }
}

#[test]
fn whatever_is_said_is_read_back() {
    let owner = NodeKey([7; 32]);
    let addrs: Vec<SocketAddr> = ["192.0.2.1:60611", "[2001:db8::1]:1"].map(|a| a.parse().expect("an address")).into();
    let node_said = Said::Node { name: Some(name("ams")), addrs: addrs.clone() };
    assert_eq!(said(Lane::Facts, &node(Some(&name("ams")), &addrs)), Ok(node_said));
    let claims = [
        plain(),
        Claim { protocol: Protocol::Udp, port: None, shared: true, hashes: alloc::vec![Digest([3; 32]); 2], ..plain() },
    ];
    let both = Claim { also: Some(81), ..plain() };
    let bounded = Claim { policy: named(), ..plain() };
    for one in claims.into_iter().chain([both, bounded]) {
        let pair = claim(&name("api"), &one);
        assert_eq!(claimed_at(&pair.1), Some(UnixMs(1)));
        assert_eq!(target_in(&pair.0), Some(Target::Name(name("api"))));
        assert_eq!(said(Lane::Facts, &pair), Ok(Said::Claim { name: name("api"), claim: one }));
    }
    let mut offered = Offered::default();
    offered.set_port(Protocol::Udp, Some(81));
    for policy in [Policy::default(), named()] {
        let offered = Offered { policy, ..offered.clone() };
        let pair = provider(&name("api"), &owner, &offered);
        assert_eq!(said(Lane::Facts, &pair), Ok(Said::Provider { name: name("api"), owner, offered }));
    }
    let pair = provider(&name("api"), &owner, &offered);
    assert_eq!((target_in(&pair.0), show_key(&pair.0)), (Some(Target::Name(name("api"))), "prov/api/07070707".into()));
    for policy in [Policy::default(), named()] {
        let pair = unnamed(Protocol::Udp, 53, &policy);
        assert_eq!(said(Lane::Facts, &pair), Ok(Said::Unnamed { protocol: Protocol::Udp, port: 53, policy }));
    }
    let pair = unnamed(Protocol::Udp, 53, &Policy::default());
    assert_eq!(show_key(&pair.0), "port/udp/53");
    assert_eq!(said(Lane::Live, &link(&owner)), Ok(Said::Link { peer: owner }));
    assert!(is_link(&link(&owner).0) && !is_link(&pair.0));
    assert_eq!(show_key(&[1, 2, 0xff]), "0102ff");
}

#[test]
fn an_entry_counts_only_in_the_lane_of_its_kind() {
    assert_eq!(said(Lane::Live, &unnamed(Protocol::Tcp, 1, &Policy::default())), Err(Unread::Kind));
    assert_eq!(said(Lane::Facts, &link(&NodeKey([1; 32]))), Err(Unread::Kind));
    assert_eq!(said(Lane::State, &node(None, &[])), Err(Unread::Kind));
}

#[test]
fn unknown_fields_are_passed_over_but_an_unknown_clause_refuses() {
    let with = |field: u8, clauses: u64| {
        let value = written(|e| {
            e.map(4)?.u8(0)?.u8(0)?.u8(2)?.bool(true)?.u8(3)?.u64(1)?.u8(field)?.map(clauses)?;
            (0..clauses).try_for_each(|n| e.u64(n)?.bool(true).map(drop))
        });
        said(Lane::Facts, &(claim_key(&name("api")), value))
    };
    assert!(with(5, 0).is_ok() && with(6, 0).is_ok());
    // Of a policy, the first clause is a list of peers.
    assert_eq!((with(5, 1), with(6, 2)), (Err(Unread::Malformed), Err(Unread::Clause)));
    let later = written(|e| e.map(2)?.u8(1)?.u16(80)?.u8(5)?.map(1)?.u8(3)?.bool(true).map(drop));
    let key = provider_key(&name("api"), &NodeKey([7; 32]));
    assert_eq!(said(Lane::Facts, &(key, later)), Err(Unread::Clause));
    assert!(with(9, 1).is_ok());
}

#[test]
fn two_spellings_of_one_thing_are_never_both_read() {
    let value = claim(&name("api"), &plain()).1;
    for key in [&b"svc/Api"[..], b"svc/", b"svc/8080", b"svc/a/b"] {
        assert_eq!(said(Lane::Facts, &(key.to_vec(), value.clone())), Err(Unread::Malformed));
    }
    for key in [&b"port/tcp/080"[..], b"port/tcp/0", b"port/tcp/65536", b"port/tcp/+1"] {
        assert_eq!(said(Lane::Facts, &(key.to_vec(), empty())), Err(Unread::Malformed));
    }
}

proptest! {
    #[test]
    fn reading_survives_arbitrary_values(value in prop::collection::vec(any::<u8>(), 0..100), key in prop::collection::vec(any::<u8>(), 1..60)) {
        let keys = [node(None, &[]).0, claim_key(&name("api")), provider_key(&name("api"), &NodeKey([1; 32])), link_key(&NodeKey([1; 32])), seed_key(&name("api")), host_key(), replica(&VersionId(Digest([1; 32])), &name("api")).0, unable(&VersionId(Digest([1; 32])), Inability::Disk).0, key];
        for key in keys {
            for lane in Lane::ALL {
                let _ = said(lane, &(key.clone(), value.clone()));
            }
            let _ = (show_key(&key), target_in(&key));
        }
    }
}
