//! Keys that change hands: what is in memory somewhere is not fetched again.

use super::*;

const KEYS: usize = 40;

/// A fleet whose first `size` nodes have loaded [`KEYS`] keys; the others are not members yet.
async fn loaded(nodes: usize, size: usize) -> TestFleet {
    let members: Vec<usize> = (0..size).collect();
    let fleet = TestFleet::with_views(nodes, |node| if node < size { members.clone() } else { vec![node] });
    for key in 0..KEYS {
        fleet.origin.on(&format!("/{key}"), Script::status(200, &[FRESH], format!("body {key}")));
        assert_eq!(fleet.nodes[key % size].ask(&key.to_string()).await, format!("miss 200 body {key}"));
    }
    assert_eq!(fleet.origin.asks().len(), KEYS);
    fleet
}

async fn all_answer(fleet: &TestFleet, node: usize) {
    for key in 0..KEYS {
        let answer = fleet.nodes[node].ask(&key.to_string()).await;
        assert!(answer.ends_with(&format!("200 body {key}")), "{answer}");
    }
}

fn sum(fleet: &TestFleet, counter: impl Fn(&GroupStats) -> &crate::stats::Counter) -> u64 {
    fleet.nodes.iter().map(|node| counter(&node.group.stats).value()).sum()
}

#[tokio::test]
async fn a_node_that_joins_asks_the_previous_owner_before_the_origin() {
    let fleet = loaded(4, 3).await;
    fleet.nodes[3].cache.warm_up();
    (0..4).for_each(|node| fleet.see(node, &[0, 1, 2, 3]));
    // Whoever owned a key before has it: the others ask the new owner.
    for node in 0..3 {
        all_answer(&fleet, node).await;
    }
    assert_eq!(fleet.origin.asks().len(), KEYS, "nothing is fetched twice");
    let moved: Vec<_> = (0..KEYS).filter(|key| fleet.owner(&key.to_string()) == 3).collect();
    assert!(!moved.is_empty());
    for key in moved {
        assert!(fleet.places(&key.to_string()).ends_with('M'), "the new owner has {key} as its own");
    }
    assert!(sum(&fleet, |stats| &stats.peek_hits) > 0);
}

#[tokio::test]
async fn keys_of_a_node_that_is_taken_from_the_ring_are_asked_of_it_as_long_as_it_is_there() {
    let fleet = loaded(4, 4).await;
    (0..3).for_each(|node| fleet.see(node, &[0, 1, 2]));
    all_answer(&fleet, 0).await;
    assert_eq!(fleet.origin.asks().len(), KEYS);
}

#[tokio::test]
async fn the_previous_ring_is_forgotten_in_time() {
    let fleet = loaded(4, 4).await;
    (0..3).for_each(|node| fleet.see(node, &[0, 1, 2]));
    let long = Script::status(200, &[("Cache-Control", "max-age=100000")], "body");
    let key = (0..).map(|number| format!("later-{number}")).find(|key| fleet.owner(key) == 0).unwrap();
    fleet.origin.on(&format!("/{key}"), long);
    for node in &fleet.nodes {
        node.clock.advance(crate::warm::WARM_FOR);
    }
    let peeks = sum(&fleet, |stats| &stats.peeks);
    assert_eq!(fleet.nodes[0].ask(&key).await, "miss 200 body");
    assert_eq!(sum(&fleet, |stats| &stats.peeks), peeks);
}

#[tokio::test]
async fn a_node_that_leaves_hands_over_and_takes_back_when_it_returns() {
    let fleet = loaded(3, 3).await;
    let owned: Vec<_> = (0..KEYS).filter(|key| fleet.owner(&key.to_string()) == 2).collect();
    let group = fleet.nodes[2].group.clone();
    let taken = fleet.nodes[2].cache.hand_over(|_| Some(group.clone())).await;
    assert_eq!(taken, owned.len() as u64);
    for key in &owned {
        assert_eq!(fleet.places(&key.to_string()).matches('M').count(), 2, "key {key}");
    }
    fleet.down[2].store(true, Ordering::SeqCst);
    all_answer(&fleet, 0).await;
    assert_eq!(fleet.origin.asks().len(), KEYS, "those who stand in have it");

    // It starts anew with nothing.
    fleet.nodes[2].cache.store.clear(GroupId(0));
    fleet.nodes[2].cache.warm_up();
    fleet.down[2].store(false, Ordering::SeqCst);
    for node in 0..2 {
        all_answer(&fleet, node).await;
    }
    assert_eq!(fleet.origin.asks().len(), KEYS, "it takes its keys back from those who stood in");
    for key in owned {
        assert!(fleet.places(&key.to_string()).ends_with('M'));
    }
}

/// The second step of a rolling restart.
#[tokio::test]
async fn a_node_that_has_started_asks_who_stood_in_for_it_even_when_that_one_is_leaving() {
    let fleet = loaded(3, 3).await;
    let group = fleet.nodes[2].group.clone();
    fleet.nodes[2].cache.hand_over(|_| Some(group.clone())).await;
    fleet.nodes[2].cache.store.clear(GroupId(0));
    fleet.nodes[2].cache.warm_up();
    fleet.leaving[1].store(true, Ordering::SeqCst);
    let owned = (0..KEYS).filter(|key| fleet.owner(&key.to_string()) == 2);
    let stood_in: Vec<_> = owned.filter(|key| fleet.places(&key.to_string()).starts_with("-M")).collect();
    assert!(!stood_in.is_empty());
    for key in stood_in {
        assert!(fleet.nodes[2].ask(&key.to_string()).await.ends_with(&format!("200 body {key}")));
    }
    assert_eq!(fleet.origin.asks().len(), KEYS);
}

#[tokio::test]
async fn nobody_takes_over_what_another_one_owns() {
    let fleet = loaded(3, 3).await;
    let key = (0..KEYS).map(|key| key.to_string()).find(|key| fleet.owner(key) == 0).unwrap();
    let ask = fleet.nodes[0].group.ask(&Bytes::from(key.clone()), Method::Get, Fields::empty()).unwrap();
    // Whoever owns the key without its owner, the third node does not.
    let second = (1..3).find(|&node| fleet.nodes[node].cache.fleet.load().owns_without(key.as_bytes(), 1)).unwrap();
    let third = 3 - second;
    fleet.nodes[third].cache.take_over(&fleet.nodes[third].group, &ask, 1).await.unwrap();
    assert!(fleet.places(&key).chars().nth(third) == Some('-'), "{}", fleet.places(&key));
    fleet.nodes[second].cache.take_over(&fleet.nodes[second].group, &ask, 1).await.unwrap();
    assert!(fleet.places(&key).chars().nth(second) == Some('M'), "{}", fleet.places(&key));
}

#[tokio::test]
async fn a_peek_finds_nothing_that_is_stale_and_the_origin_is_asked() {
    let fleet = loaded(4, 3).await;
    fleet.nodes[3].cache.warm_up();
    (0..4).for_each(|node| fleet.see(node, &[0, 1, 2, 3]));
    for node in &fleet.nodes {
        node.clock.advance(Duration::from_secs(61));
    }
    let key = (0..KEYS).map(|key| key.to_string()).find(|key| fleet.owner(key) == 3).unwrap();
    fleet.origin.on(&format!("/{key}"), Script::status(200, &[FRESH], "new"));
    assert_eq!(fleet.nodes[3].ask(&key).await, "miss 200 new");
}

#[tokio::test]
async fn where_resharding_is_cold_a_key_that_moves_is_fetched_again() {
    let fleet = loaded(4, 3).await;
    let see_all = |warm| {
        for (place, node) in fleet.nodes.iter().enumerate() {
            node.cache.set_fleet(fleet.view(place, &[0, 1, 2, 3]).with_warm_resharding(warm));
        }
    };
    fleet.nodes[3].cache.warm_up();
    see_all(false);
    let moved: Vec<_> = (0..KEYS).map(|key| key.to_string()).filter(|key| fleet.owner(key) == 3).collect();
    assert!(moved.len() > 1);
    assert_eq!(fleet.nodes[3].ask(&moved[0]).await, format!("miss 200 body {}", moved[0]));
    assert_eq!((fleet.origin.asks().len(), sum(&fleet, |stats| &stats.peeks)), (KEYS + 1, 0));
    // Nor does a node that leaves hand anything over, or one that stands in ask the owner that is leaving.
    let group = fleet.nodes[0].group.clone();
    assert_eq!(fleet.nodes[0].cache.hand_over(|_| Some(group.clone())).await, 0);
    let leaving = (0..KEYS).map(|key| key.to_string()).find(|key| fleet.owner(key) == 0).unwrap();
    fleet.leaving[0].store(true, Ordering::SeqCst);
    let other = fleet.others(&leaving).into_iter().find(|&node| fleet.places(&leaving).as_bytes()[node] == b'-');
    assert_eq!(fleet.nodes[other.unwrap()].ask(&leaving).await, format!("miss 200 body {leaving}"));
    assert_eq!((fleet.origin.asks().len(), sum(&fleet, |stats| &stats.peeks)), (KEYS + 2, 0));

    // A reload warms it again, for changes from now on: the ring before is forgotten, but this node has just started.
    see_all(true);
    assert_eq!(fleet.nodes[3].ask(&moved[1]).await, format!("miss 200 body {}", moved[1]));
    assert_eq!(sum(&fleet, |stats| &stats.peeks), 1);
}

#[tokio::test]
async fn a_fleet_that_is_made_cold_forgets_the_ring_before() {
    let fleet = loaded(4, 3).await;
    (0..4).for_each(|node| fleet.see(node, &[0, 1, 2, 3]));
    let cold = fleet.view(3, &[0, 1, 2, 3]).with_warm_resharding(false);
    fleet.nodes[3].cache.set_fleet(cold);
    fleet.see(3, &[0, 1, 2, 3]);
    let moved = (0..KEYS).map(|key| key.to_string()).find(|key| fleet.owner(key) == 3).unwrap();
    assert_eq!(fleet.nodes[3].ask(&moved).await, format!("miss 200 body {moved}"));
    assert_eq!((fleet.origin.asks().len(), sum(&fleet, |stats| &stats.peeks)), (KEYS + 1, 0));
}

#[tokio::test]
async fn what_lies_in_main_and_belongs_to_another_node_now_is_a_copy() {
    let fleet = TestFleet::with_views(2, |node| vec![node]);
    let fields = &[("Cache-Control", "max-age=60, stale-while-revalidate=600")];
    let owned_by = |fleet: &TestFleet, owner: usize| {
        fleet.see(0, &[0, 1]);
        (0..).map(|number| format!("key-{number}")).find(|key| fleet.owner(key) == owner).unwrap()
    };
    let key = owned_by(&fleet, 1);
    fleet.see(0, &[0]);
    fleet.origin.on(&format!("/{key}"), Script::status(200, fields, "old"));
    assert_eq!(fleet.nodes[0].ask(&key).await, "miss 200 old");
    fleet.see(0, &[0, 1]);
    fleet.see(1, &[0, 1]);
    assert_eq!(fleet.nodes[0].ask(&key).await, "hit 200 old", "it may be served while it is fresh");
    for node in &fleet.nodes {
        node.clock.advance(Duration::from_secs(61));
    }
    fleet.origin.on(&format!("/{key}"), Script::status(200, fields, "new"));
    assert_eq!(fleet.nodes[0].ask(&key).await, "miss 200 new", "the owner alone answers stale and refreshes behind");
    assert_eq!(fleet.nodes[1].group.stats.server_requests.value(), 1);
}
