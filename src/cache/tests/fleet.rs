//! Fleets: who asks whom, who stores what, and what a broken link or ring costs.

use super::*;
use crate::stats::Counter;

#[tokio::test]
async fn every_node_asks_the_owner_and_the_owner_asks_once() {
    let fleet = TestFleet::new(5);
    fleet.origin.on("/a", Script::status(200, &[FRESH], "body"));
    for node in &fleet.nodes {
        assert!(["miss 200 body", "hit 200 body"].contains(&node.ask("a").await.as_str()));
    }
    assert_eq!(fleet.origin.asked("/a"), 1);
    let owner = fleet.owner("a");
    let expected: String = (0..5).map(|node| if node == owner { 'M' } else { '-' }).collect();
    assert_eq!(fleet.places("a"), expected, "one question does not earn a hot copy");
    assert_eq!(fleet.nodes[owner].group.stats.server_requests.value(), 4);
}

#[tokio::test]
async fn a_wanted_key_earns_a_hot_copy_that_ages_like_the_owners() {
    let fleet = TestFleet::new(3);
    fleet.origin.on("/a", Script::status(200, &[FRESH, ("Age", "10")], "body"));
    let (owner, other) = (fleet.owner("a"), fleet.others("a")[0]);
    let mut answers = Vec::new();
    for _ in 0..6 {
        answers.push(fleet.nodes[other].ask("a").await);
    }
    assert_eq!(answers.last().unwrap(), "hit 200 body");
    assert_eq!(fleet.places("a").chars().filter(|place| *place == 'H').count(), 1);
    let age = |node: usize| {
        let node = &fleet.nodes[node];
        let (slot, _) = node.cache.store.peek(&HashedKey::new(GroupId(0), b"a")).unwrap();
        slot.entries().next().unwrap().freshness.age(node.cache.now())
    };
    assert_eq!(age(owner), Duration::from_secs(10));
    assert_eq!(age(other), age(owner));
    fleet.origin.on("/a", Script::status(200, &[FRESH], "new"));
    for node in [owner, other] {
        fleet.nodes[node].clock.advance(Duration::from_secs(51));
    }
    assert_eq!(fleet.nodes[other].ask("a").await, "miss 200 new", "a stale copy asks its owner");
}

#[tokio::test]
async fn a_dead_owner_is_taken_over_by_the_next_on_the_ring() {
    let fleet = TestFleet::new(5);
    fleet.origin.on("/a", Script::status(200, &[FRESH], "body"));
    let owner = fleet.owner("a");
    fleet.down[owner].store(true, Ordering::SeqCst);
    for node in fleet.others("a") {
        let answer = fleet.nodes[node].ask("a").await;
        assert!(["miss 200 body", "hit 200 body"].contains(&answer.as_str()), "node {node}: {answer}");
    }
    assert_eq!(fleet.origin.asked("/a"), 1, "one of the living loads for all");
    assert_eq!(fleet.places("a").matches('H').count(), 1);
    assert_eq!(fleet.places("a").matches('M').count(), 0, "it is not the owner's place");
}

#[tokio::test]
async fn with_all_peers_dead_a_node_loads_itself() {
    let fleet = TestFleet::new(3);
    fleet.origin.on("/a", Script::status(200, &[FRESH], "body"));
    let other = fleet.others("a")[0];
    for node in 0..3 {
        fleet.down[node].store(node != other, Ordering::SeqCst);
    }
    assert_eq!(fleet.nodes[other].ask("a").await, "miss 200 body");
    assert_eq!(fleet.nodes[other].ask("a").await, "hit 200 body");
    let stats = &fleet.nodes[other].group.stats;
    let counted = [&stats.gets, &stats.cache_hits, &stats.loads, &stats.loads_deduped, &stats.local_loads];
    assert_eq!(counted.map(Counter::value), [2, 1, 1, 1, 1], "the load in the owner's stead is the same one");
    assert_eq!(stats.miss_reasons.value("uri-miss"), 1);
}

#[tokio::test]
async fn an_owners_failure_is_passed_on_and_not_fetched_again() {
    let fleet = TestFleet::new(5);
    fleet.origin.on("/a", Script::fails(FetchError::unreachable("down")));
    fleet.origin.on("/b", Script::status(500, &[], "oops"));
    for node in &fleet.nodes {
        assert_eq!(node.ask("a").await, "error 502");
        assert!(node.ask("b").await.ends_with("500 oops"));
    }
    assert_eq!(fleet.origin.asked("/a"), 1, "the failure is remembered for a moment");
}

#[tokio::test]
async fn rings_that_disagree_cost_loads_but_never_a_second_hop_or_a_hang() {
    // Every node believes in itself and its right neighbour only: questions would run around for ever.
    let fleet = TestFleet::with_views(5, |node| vec![node, (node + 1) % 5]);
    for key in ["a", "b", "c", "d", "e", "f", "g"] {
        fleet.origin.on(&format!("/{key}"), Script::status(200, &[FRESH], "body"));
        let answers = (0..5).map(|node| fleet.nodes[node].ask(key));
        for answer in futures_join(answers).await {
            assert!(["miss 200 body", "hit 200 body"].contains(&answer.as_str()), "{key}: {answer}");
        }
        assert!(fleet.origin.asked(&format!("/{key}")) <= 5, "at most one load per distinct owner");
    }
}

#[tokio::test]
async fn two_nodes_that_take_each_other_for_the_owner_do_not_wait_for_each_other() {
    let fleet = TestFleet::with_views(2, |node| vec![1 - node]);
    let gate = Gate::new();
    fleet.origin.on("/a", Script::new().hold(&gate).then_head(200, &[FRESH], Some(4)).chunk("body"));
    let ask = |node: usize| {
        let node = fleet.nodes[node].clone();
        tokio::spawn(async move { node.ask("a").await })
    };
    let asked = [ask(0), ask(1)];
    fleet.origin.arrived("/a", 2).await;
    gate.open();
    for answer in asked {
        assert_eq!(answer.await.unwrap(), "miss 200 body");
    }
}

#[tokio::test]
async fn a_body_breaks_over_the_hop_too() {
    let fleet = TestFleet::new(3);
    let gate = Gate::new();
    fleet.origin.on("/a", Script::head(200, &[FRESH], Some(6)).chunk("one").hold(&gate).breaks());
    let other = fleet.others("a")[0];
    let Payload::Stream(_, mut reader) = fleet.nodes[other].get("a").await.payload else { panic!("a stream") };
    assert_eq!(reader.chunk().await.unwrap().unwrap(), "one");
    gate.open();
    assert!(reader.chunk().await.is_err());
    assert_eq!(fleet.places("a"), "---");
}

#[tokio::test]
async fn private_answers_cross_the_hop_to_their_causer_alone() {
    let fleet = TestFleet::new(3);
    fleet.origin.on("/a", Script::status(200, &[("Cache-Control", "private")], "mine"));
    let others = fleet.others("a");
    assert_eq!(fleet.nodes[others[0]].ask("a").await, "miss 200 mine");
    assert_eq!(fleet.nodes[others[0]].ask("a").await, "pass uncacheable");
    assert_eq!(fleet.nodes[others[1]].ask("a").await, "miss 200 mine", "a peer gets an answer of its own");
    assert_eq!(fleet.places("a"), "---");
}

/// RFC 9111 section 5.2.1.5: the owner may have had it before; whoever got it for this request has not.
#[tokio::test]
async fn a_request_that_forbids_storing_makes_no_copy() {
    for no_store in [true, false] {
        let fleet = TestFleet::new(3);
        fleet.origin.on("/a", Script::status(200, &[FRESH], "body"));
        let node = &fleet.nodes[fleet.others("a")[0]];
        let directives = RequestDirectives { no_store, ..Default::default() };
        for _ in 0..7 {
            assert!(node.ask_with(&Request { directives, ..get("a", &[]) }).await.ends_with("200 body"));
            node.settle().await;
        }
        assert_eq!(fleet.places("a").contains('H'), !no_store);
    }
}

/// What an owner answers follows from what it is told; who would have told it something else asks for itself.
#[tokio::test]
async fn a_flight_to_the_owner_is_shared_by_those_who_ask_alike() {
    let node = Node::new(&Scripted::new());
    let plain = get("a", &[]);
    let fresh = Request { directives: RequestDirectives { max_age: Some(5), ..Default::default() }, ..get("a", &[]) };
    for (route, shared) in [(Route::Fleet, false), (Route::Here, true)] {
        let key = |request| node.cache.flight_key(&node.group, request, route, VariantKey::default());
        assert!(key(&fresh) == key(&fresh));
        assert_eq!(key(&plain) == key(&fresh), shared, "{route:?}");
    }
}

/// A failure that its origin calls fresh takes the place of what was stored, on one node; so it does in a fleet.
#[tokio::test]
async fn a_failure_in_the_owners_memory_is_the_answer_of_all_nodes() {
    let fleet = TestFleet::new(3);
    let (owner, other) = (&fleet.nodes[fleet.owner("a")], &fleet.nodes[fleet.others("a")[0]]);
    fleet.origin.on("/a", Script::status(200, &[FRESH], "body"));
    for _ in 0..7 {
        other.ask("a").await;
    }
    assert_eq!(other.ask("a").await, "hit 200 body");
    fleet.nodes.iter().for_each(|node| node.clock.advance(Duration::from_secs(61)));
    fleet.origin.on("/a", Script::status(503, &[FRESH], "busy"));
    assert_eq!(owner.ask("a").await, "stale 200 body", "it stands in for the failure that it causes to be stored");
    owner.settle().await;
    assert_eq!(owner.ask("a").await, "hit 503 busy");
    assert!(other.ask("a").await.ends_with(" 503 busy"));
}

#[tokio::test]
async fn who_fell_behind_lets_the_owner_send_less_ahead() {
    let fleet = TestFleet::new(2);
    let (owner, other) = (fleet.owner("a"), fleet.others("a")[0]);
    let slow = left_behind(&fleet.nodes[other], &fleet.origin, "\"strong\"", Some(5 << 20)).await;
    assert_eq!(fleet.ahead[owner].load(Ordering::SeqCst), 0);
    let part = &[FRESH, ("ETag", "\"strong\""), ("Content-Range", "bytes 1048576-5242879/5242880")];
    fleet.origin.on("/a", Script::status(206, part, vec![b'x'; 4 << 20]));
    assert_eq!(read(slow).await.unwrap().len(), 4 << 20);
    assert_eq!(fleet.ahead[owner].load(Ordering::SeqCst), 64 * 1024);
}
