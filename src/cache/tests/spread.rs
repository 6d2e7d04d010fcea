//! Unsafe requests in a fleet: every node forgets, and the owner gets what a `POST` left elsewhere.

use super::*;
use crate::invalidate::Passed;

async fn invalidate(node: &Node, key: &str) -> u64 {
    let keys = vec![Bytes::copy_from_slice(key.as_bytes())];
    node.cache.invalidate_everywhere(&node.group, keys).await.0
}

/// Asks one node until it has a copy of its own.
async fn warm(node: &Node, key: &str) {
    for _ in 0..6 {
        node.ask(key).await;
    }
    assert!(node.ask(key).await.starts_with("hit "));
}

#[tokio::test]
async fn an_invalidation_at_any_node_reaches_the_owner_and_all_copies() {
    for teller in 0..4 {
        let fleet = TestFleet::new(4);
        fleet.origin.on("/a", Script::status(200, &[FRESH], "old"));
        for node in &fleet.nodes {
            warm(node, "a").await;
        }
        assert!(!fleet.places("a").contains('-'));
        assert_eq!(invalidate(&fleet.nodes[teller], "a").await, 1);
        assert_eq!(fleet.places("a"), "----", "told by node {teller}");
        fleet.origin.on("/a", Script::status(200, &[FRESH], "new"));
        for node in &fleet.nodes {
            assert!(node.ask("a").await.ends_with(" 200 new"), "told by node {teller}");
        }
        assert_eq!(fleet.origin.asked("/a"), 2, "told by node {teller}");
    }
}

#[tokio::test]
async fn a_dead_node_keeps_nobody_from_forgetting() {
    let fleet = TestFleet::new(4);
    fleet.origin.on("/a", Script::status(200, &[FRESH], "old"));
    for node in &fleet.nodes {
        warm(node, "a").await;
    }
    let (owner, dead) = (fleet.owner("a"), fleet.others("a")[0]);
    fleet.down[dead].store(true, Ordering::SeqCst);
    invalidate(&fleet.nodes[owner], "a").await;
    assert_eq!(fleet.places("a").matches('-').count(), 3, "the dead one finds out when it is asked for validation");
}

#[tokio::test]
async fn what_a_post_left_at_another_node_goes_to_the_owner() {
    let fleet = TestFleet::new(3);
    let (owner, teller, third) = (fleet.owner("a"), fleet.others("a")[0], fleet.others("a")[1]);
    deposit(&fleet.nodes[teller], &[]);
    settled(&fleet, owner).await;
    assert_eq!(fleet.nodes[owner].ask("a").await, "hit 200 post");
    assert_eq!(fleet.nodes[third].ask("a").await, "miss 200 post");
    let stored = |node: usize| {
        let (slot, _) = fleet.nodes[node].cache.store.peek(&HashedKey::new(GroupId(0), b"a")).unwrap();
        let entry = slot.entries().next().unwrap().clone();
        (entry.fields().to_fields(), entry.freshness.age(fleet.nodes[node].cache.now()))
    };
    assert_eq!(stored(owner), stored(teller));
    assert!(fleet.origin.asks().is_empty());
    invalidate(&fleet.nodes[third], "a").await;
    assert_eq!(fleet.places("a"), "---");
}

#[tokio::test]
async fn an_owner_keeps_what_it_has_and_takes_nothing_that_is_not_its_own() {
    let fleet = TestFleet::new(3);
    let (owner, teller, third) = (fleet.owner("a"), fleet.others("a")[0], fleet.others("a")[1]);
    fleet.origin.on("/a", Script::status(200, &[FRESH], "owners"));
    fleet.nodes[owner].ask("a").await;
    deposit(&fleet.nodes[teller], &[]);
    let ask = fleet.nodes[owner].group.ask(&Bytes::from("a"), Method::Get, Fields::empty()).unwrap();
    let from = fleet.nodes[teller].cache.incarnation();
    for node in [owner, third] {
        let node = &fleet.nodes[node];
        assert_eq!(node.cache.take_over(&node.group, &ask, from).await, Ok(()));
    }
    assert_eq!(fleet.nodes[owner].ask("a").await, "hit 200 owners");
    assert_eq!(fleet.places("a").matches('-').count(), 1);
}

/// What an origin says to caches is not for clients, whichever way it came.
#[tokio::test]
async fn a_deposit_keeps_inside_what_stays_inside() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    deposit(&node, &[("Surrogate-Key", "a b"), ("X", "1")]);
    let (slot, _) = node.cache.store.peek(&HashedKey::new(GroupId(0), b"a")).unwrap();
    let fields = slot.entries().next().unwrap().fields();
    assert!(fields.contains("x") && !fields.contains("surrogate-key"), "{fields:?}");
}

/// The answer to a `POST` for the key `a`, as the pass-through lane brings it.
fn deposit(node: &Node, more: &[(&str, &str)]) {
    let own = [FRESH, ("Content-Location", "/a")];
    let fields = Fields::from_pairs(own.iter().chain(more).copied()).unwrap();
    let passed = Passed {
        key: &Bytes::from("a"),
        authorities: &["www.example.com"],
        prefixes: ["", ""],
        method: "POST",
        sent: &Fields::empty(),
        directives: RequestDirectives::default(),
        status: 200,
        fields: &fields,
        content_length: Some(4),
        requested_at: node.cache.now(),
        stamp: &node.cache.purges_known(),
    };
    let mut deposit = node.cache.deposit(&node.group, &passed, None).unwrap();
    assert!(deposit.push(b"post"));
    deposit.finish();
}

/// Waits until the owner has the key `a`.
async fn settled(fleet: &TestFleet, owner: usize) {
    for _ in 0..1000 {
        if fleet.places("a").as_bytes()[owner] == b'M' {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the owner did not take it: {}", fleet.places("a"));
}

#[tokio::test(start_paused = true)]
async fn an_unsafe_request_waits_for_a_deaf_node_as_long_as_a_peer_may_be_silent() {
    let fleet = TestFleet::new(3);
    let node = &fleet.nodes[0];
    fleet.deaf[2].store(true, Ordering::SeqCst);
    for deadline in [Duration::from_secs(1), Duration::from_millis(300), Duration::from_secs(4)] {
        node.cache.set_fleet(fleet.view(0, &[0, 1, 2]).with_peer_deadline(deadline));
        let began = tokio::time::Instant::now();
        node.cache.invalidate_everywhere(&node.group, vec!["a".into()]).await;
        // What waits for a timer is told by the next millisecond.
        assert_eq!(began.elapsed().as_millis() / 10, deadline.as_millis() / 10);
    }
}
