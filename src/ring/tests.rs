use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const GO_KINDS: [RingKind; 3] = [RingKind::Groupcache, RingKind::Mailgun, RingKind::V3];

/// Ways in which operators name their nodes.
const NAME_FAMILIES: [fn(usize) -> String; 5] = [
    |number| format!("http://10.0.0.{}:8082", number + 1),
    |number| format!("http://127.0.0.1:{}", 9000 + number),
    |number| format!("http://cache-{number}.cache.default.svc.cluster.local:8082"),
    |number| format!("https://node{number:03}.example"),
    |number| format!("http://[fd00::{number:x}]:8082"),
];

fn peers(names: impl IntoIterator<Item = impl Into<String>>) -> Vec<RingPeer> {
    names.into_iter().map(RingPeer::new).collect()
}

fn weighted(members: &[(&str, u32)]) -> Vec<RingPeer> {
    members.iter().map(|&(url, weight)| RingPeer { url: url.to_owned(), weight }).collect()
}

fn ring(kind: RingKind, peers: &[RingPeer]) -> Ring {
    Ring::new(kind, REPLICAS_DEFAULT, peers)
}

/// Keys spread over the hash space of every kind.
fn keys(count: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..count).map(|number| format!("photos/{number}.jpg?w={}", number % 7).into_bytes())
}

fn owner_url<'a>(ring: &Ring, peers: &'a [RingPeer], key: &[u8]) -> &'a str {
    &peers[ring.owner(key).expect("a ring with peers")].url
}

/// Checks every answer of a file of `{"ring", "peers", "owners": [[key, owner]]}` lines; returns their number.
fn check_vectors(lines: &str) -> usize {
    let mut checked = 0;
    for line in lines.lines() {
        let vector: Value = serde_json::from_str(line).expect("a line of JSON");
        let kind: RingKind = vector["ring"].as_str().expect("a ring").parse().expect("a known ring");
        let peers = peers(vector["peers"].as_array().expect("peers").iter().map(|url| url.as_str().expect("a URL")));
        let ring = ring(kind, &peers);
        for pair in vector["owners"].as_array().expect("owners") {
            let (key, owner) = (pair[0].as_str().expect("a key"), pair[1].as_str().expect("an owner"));
            assert_eq!(owner_url(&ring, &peers, key.as_bytes()), owner, "{kind}, {} peers, {key:?}", peers.len());
            checked += 1;
        }
    }
    checked
}

#[test]
fn go_rings_give_the_owners_of_the_go_libraries() {
    assert_eq!(check_vectors(include_str!("../../tests/vectors/ring-owners.jsonl")), 18 * 120);
}

/// Peers of which two have one point, and keys whose hash is this point.
#[test]
fn of_colliding_points_the_go_library_keeps_the_last() {
    assert_eq!(check_vectors(include_str!("../../tests/vectors/ring-collisions.jsonl")), 24 * 3);
}

/// Point 1 of `10.0.0.9:80` has the name of point 11 of `0.0.0.9:80`, so all hashes collide.
#[test]
fn points_that_collide_by_name_go_to_the_peer_added_last() {
    use md5::Digest;
    let key_at_point: String = md5::Md5::digest(b"110.0.0.9:80").iter().map(|byte| format!("{byte:02x}")).collect();
    for (kind, scheme, key) in [
        (RingKind::Groupcache, "", "110.0.0.9:80"),
        (RingKind::Mailgun, "", &key_at_point),
        (RingKind::V3, "http://", &key_at_point),
    ] {
        for names in [["0.0.0.9:80", "10.0.0.9:80"], ["10.0.0.9:80", "0.0.0.9:80"]] {
            let ring = ring(kind, &peers(names.map(|name| format!("{scheme}{name}"))));
            assert_eq!(ring.preference(key.as_bytes()).collect::<Vec<_>>(), [1, 0], "{kind} {names:?}");
        }
    }
}

#[test]
fn words_of_the_configuration_name_the_kinds() {
    for kind in RingKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    assert_eq!("Balanced".parse::<RingKind>(), Err(UnknownRingKind("Balanced".to_owned())));
}

#[test]
fn an_empty_ring_has_no_owner_and_a_single_peer_owns_everything() {
    for kind in RingKind::ALL {
        let empty = ring(kind, &[]);
        assert_eq!((empty.owner(b"key"), empty.preference(b"key").count(), empty.share(0)), (None, 0, 0.0), "{kind}");
        assert!(empty.is_empty());
        let single = ring(kind, &peers(["http://10.0.0.1:80"]));
        assert_eq!((single.owner(b"key"), single.share(0), single.share(1)), (Some(0), 1.0, 0.0), "{kind}");
        assert_eq!(single.preference(b"key").collect::<Vec<_>>(), [0], "{kind}");
    }
    let without_points = Ring::new(RingKind::Mailgun, 0, &peers(["http://10.0.0.1:80"]));
    assert_eq!((without_points.owner(b"key"), without_points.preference(b"key").next()), (None, None));
}

/// The sizes where shares deviate most and least from the mean, for names of all families.
#[test]
fn the_busiest_balanced_peer_has_at_most_1_05_times_the_mean_whatever_the_names() {
    for name in NAME_FAMILIES {
        for count in [3, 100] {
            let ring = ring(RingKind::Balanced, &peers((0..count).map(name)));
            let busiest = (0..count).map(|index| ring.share(index)).fold(0.0, f64::max) * count as f64;
            assert!(busiest <= 1.05, "{} and so on, {count} peers: {busiest}", name(0));
        }
    }
}

/// Shares speak of the hash space; keys must follow them. The bound is five standard deviations of the count.
#[test]
fn keys_follow_the_shares() {
    const KEYS: usize = 20_000;
    let peers = peers((0..10).map(NAME_FAMILIES[0]));
    for kind in RingKind::ALL {
        let ring = ring(kind, &peers);
        let mut counts = vec![0.0; peers.len()];
        keys(KEYS).for_each(|key| counts[ring.owner(&key).expect("an owner")] += 1.0);
        for (index, count) in counts.into_iter().enumerate() {
            let expected = ring.share(index) * KEYS as f64;
            assert!((count - expected).abs() < 5.0 * expected.sqrt(), "{kind} {index}: {count}, expected {expected}");
        }
        assert!(((0..peers.len()).map(|index| ring.share(index)).sum::<f64>() - 1.0).abs() < 1e-9, "{kind}");
    }
}

#[test]
fn balanced_shares_are_in_proportion_to_the_weights() {
    let members = [("http://a", 1), ("http://b", 2), ("http://c", 0), ("http://d", 7), ("http://e", 100)];
    let mixed = ring(RingKind::Balanced, &weighted(&members));
    for (index, (url, weight)) in members.into_iter().enumerate() {
        let (share, expected) = (mixed.share(index), f64::from(weight.max(1)) / 111.0);
        assert!((share / expected - 1.0).abs() < 0.05, "{url}: {share}, expected {expected}");
    }
    let heavy = ring(RingKind::Balanced, &weighted(&[("http://a", u32::MAX), ("http://b", 1)]));
    assert!(heavy.share(0) > 0.999);
}

#[test]
fn a_changed_weight_moves_keys_only_from_or_to_its_peer() {
    let light = ring(RingKind::Balanced, &weighted(&[("http://a", 1), ("http://b", 1), ("http://c", 1)]));
    let heavy = ring(RingKind::Balanced, &weighted(&[("http://a", 1), ("http://b", 3), ("http://c", 1)]));
    let moved = keys(5000).filter(|key| light.owner(key) != heavy.owner(key)).inspect(|key| {
        assert_eq!(heavy.owner(key), Some(1), "{key:?}");
    });
    assert!(moved.count() > 500);
}

/// As the weights of Go rings do nothing, a list with weights is the same ring.
#[test]
fn go_rings_ignore_weights() {
    let members = [("http://a:80", 5), ("http://b:80", 1), ("http://c:80", 2)];
    let equal = peers(members.map(|(url, _)| url));
    for kind in GO_KINDS {
        let (weighted, equal) = (ring(kind, &weighted(&members)), ring(kind, &equal));
        assert!(keys(500).all(|key| weighted.owner(&key) == equal.owner(&key)), "{kind}");
        assert_eq!(weighted.id(), equal.id(), "{kind}");
    }
}

#[test]
fn of_balanced_peers_with_one_url_the_first_owns_all() {
    let ring = ring(RingKind::Balanced, &peers(["http://b", "http://a", "http://b", "http://a"]));
    assert!(ring.share(0) > 0.49 && ring.share(1) > 0.49 && ring.share(2) + ring.share(3) == 0.0);
}

#[test]
fn peers_beyond_the_limit_own_nothing() {
    let many = peers((0..PEERS_MAX + 2).map(|number| number.to_string()));
    let ring = Ring::new(RingKind::Groupcache, 1, &many);
    assert_eq!((ring.len(), ring.share(PEERS_MAX + 1)), (PEERS_MAX + 2, 0.0));
    assert!(keys(100).all(|key| ring.owner(&key).expect("an owner") < PEERS_MAX));
}

/// A release that gives other owners would move the keys of a fleet while it is being upgraded, and its nodes would
/// disagree meanwhile. If that is wanted, `ID_DOMAIN` must change too.
#[test]
fn balanced_owners_and_ids_are_those_of_earlier_releases() {
    let members = weighted(&[("http://10.0.0.4:8082", 1), ("http://10.0.0.5:8082", 2), ("http://10.0.0.6:8082", 1)]);
    let balanced = ring(RingKind::Balanced, &members);
    let owners: Vec<u8> = keys(10_000).map(|key| balanced.owner(&key).expect("an owner") as u8).collect();
    assert_eq!(format!("{:032x}", XxHash3_128::oneshot(&owners)), "de9eb60df4562d2886705349774bc1bd");
    let ids = RingKind::ALL.map(|kind| ring(kind, &members).id().to_string());
    let expected = [
        "f3e0aad215f225af461725930ba97b09",
        "734070ab3154676fc741fef63c975e66",
        "11986841d0f73a95e8b0cb25585c38a7",
        "4e0d7921b79a499ac80cb03c5973e84f",
    ];
    assert_eq!(ids, expected);
}

#[test]
fn ids_are_equal_for_the_same_ring_and_for_no_other() {
    let members = [("http://a:80", 1), ("http://b:80", 2)];
    let id = |kind, replicas, members: &[(&str, u32)]| Ring::new(kind, replicas, &weighted(members)).id();
    let balanced = id(RingKind::Balanced, 50, &members);
    assert_eq!(id(RingKind::Balanced, 50, &[members[1], members[0]]), balanced);
    assert_eq!(id(RingKind::Balanced, 99, &members), balanced);
    assert_eq!(RingId::from_bytes(balanced.to_bytes()), balanced);
    assert_eq!(u128::from_str_radix(&balanced.to_string(), 16), Ok(u128::from_be_bytes(balanced.to_bytes())));
    let others = [
        balanced,
        id(RingKind::Groupcache, 50, &members),
        id(RingKind::Groupcache, 51, &members),
        id(RingKind::Mailgun, 50, &members),
        id(RingKind::V3, 50, &members),
        id(RingKind::Balanced, 50, &[("http://a:80", 1), ("http://b:80", 1)]),
        id(RingKind::Balanced, 50, &[("http://a:80", 2), ("http://b:80", 1)]),
        id(RingKind::Balanced, 50, &members[..1]),
        id(RingKind::Balanced, 50, &[]),
        id(RingKind::Balanced, 50, &[("http://a:8", 1), ("0http://b:80", 2)]),
    ];
    assert_eq!(others.into_iter().map(RingId::to_bytes).collect::<BTreeSet<_>>().len(), others.len());
}

/// Names whose points collide with others' (leading digits) are likely among them.
fn fleet() -> impl Strategy<Value = Vec<RingPeer>> {
    let name = prop_oneof!["[0-9]{1,2}x", "http://[a-c]{1,3}:80", "\\PC{0,70}"];
    let members = proptest::collection::btree_map(name, prop_oneof![Just(1u32), 1u32..9], 2..9);
    members
        .prop_map(|members| members.into_iter().map(|(url, weight)| RingPeer { url, weight }).collect::<Vec<_>>())
        .prop_shuffle()
}

/// The ring's promises about change, for one fleet of which the peer at `leaver` leaves (read backwards, it joins).
fn check_leaving(kind: RingKind, before: &[RingPeer], leaver: usize) {
    let mut after = before.to_vec();
    after.remove(leaver);
    let (ring_before, ring_after) = (ring(kind, before), ring(kind, &after));
    for key in keys(400) {
        let names = |ring: &Ring, peers: &[RingPeer]| -> Vec<String> {
            ring.preference(&key).map(|index| peers[index].url.clone()).collect()
        };
        let mut expected = names(&ring_before, before);
        assert_eq!(expected[0], owner_url(&ring_before, before, &key));
        assert_eq!(
            expected.iter().collect::<BTreeSet<_>>().len(),
            before.len(),
            "{expected:?} misses or repeats peers"
        );
        assert_eq!(expected.len(), before.len());
        expected.retain(|url| *url != before[leaver].url);
        assert_eq!(names(&ring_after, &after), expected, "{kind}: {:?} left {before:?}", before[leaver].url);
        assert_eq!(owner_url(&ring_after, &after, &key), expected[0]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn who_leaves_a_balanced_ring_is_replaced_by_the_next_in_line((fleet, leaver) in fleet_and_member()) {
        check_leaving(RingKind::Balanced, &fleet, leaver);
    }

    #[test]
    fn balanced_owners_do_not_depend_on_the_order_of_peers((fleet, order) in fleet_and_order()) {
        let (listed, reordered) = (ring(RingKind::Balanced, &fleet), ring(RingKind::Balanced, &order));
        prop_assert_eq!(listed.id(), reordered.id());
        for key in keys(400) {
            prop_assert_eq!(owner_url(&listed, &fleet, &key), owner_url(&reordered, &order, &key));
        }
    }
}

proptest! {
    #[test]
    fn who_leaves_a_go_ring_is_replaced_by_the_next_in_line((fleet, leaver) in fleet_and_member(), kind in 0usize..3) {
        check_leaving(GO_KINDS[kind], &fleet, leaver);
    }
}

fn fleet_and_member() -> impl Strategy<Value = (Vec<RingPeer>, usize)> {
    fleet().prop_flat_map(|fleet| {
        let members = 0..fleet.len();
        (Just(fleet), members)
    })
}

fn fleet_and_order() -> impl Strategy<Value = (Vec<RingPeer>, Vec<RingPeer>)> {
    fleet().prop_flat_map(|fleet| (Just(fleet.clone()), Just(fleet).prop_shuffle()))
}
