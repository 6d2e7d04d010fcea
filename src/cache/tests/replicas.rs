//! Hot keys: what one key costs the nodes of a fleet, and the replicas that the owner gives away when it is too much for one.

use super::*;
use crate::replicas::REPLICA_LIFETIME;

impl TestFleet {
    fn all_advance(&self, by: Duration) {
        self.nodes.iter().for_each(|node| node.clock.advance(by));
    }

    /// Peers that this test only pretends to have ask the key's owner so often, within no time; what the last was told.
    async fn asked(&self, key: &str, questions: usize) -> (u16, crate::source::Hop) {
        let owner = &self.nodes[self.owner(key)];
        let mut told = None;
        for _ in 0..questions {
            let fetched = owner.cache.get_as_owner(&owner.group, &get(key, &[]), Aside::default()).await.unwrap();
            told = Some((fetched.status, fetched.hop.clone().unwrap()));
            let mut body = fetched.body;
            while body.chunk().await.unwrap().is_some() {}
            owner.settle().await;
        }
        told.unwrap()
    }

    /// Waits until nothing is pushed any more.
    async fn pushed(&self, key: &str) -> usize {
        let owner = &self.nodes[self.owner(key)].cache;
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        owner.replicas.hottest(1, owner.now())[0].replicas
    }

    /// The nodes that have the key after its owner on the ring.
    fn after_owner(&self, key: &str, count: usize) -> Vec<usize> {
        let fleet = self.nodes[self.owner(key)].cache.fleet.load_full();
        let incarnations =
            fleet.after_owner(key.as_bytes()).take(count).map(|peer| peer.unwrap().incarnation().unwrap());
        incarnations.map(|incarnation| incarnation as usize - 1).collect()
    }

    /// Makes the key so hot that it has two replicas, within a second.
    async fn heat_up(&self, key: &str) {
        self.asked(key, 60).await;
        self.all_advance(Duration::from_secs(1));
        self.stay_hot(key).await;
    }

    /// The owner's third of the questions of a second.
    async fn stay_hot(&self, key: &str) {
        self.asked(key, 1).await;
        assert_eq!(self.pushed(key).await, 2);
        self.asked(key, 14).await;
    }

    async fn with_two_replicas(size: usize, key: &str) -> TestFleet {
        let fleet = TestFleet::new(size);
        fleet.origin.on(&format!("/{key}"), Script::status(200, &[FRESH], "body"));
        fleet.heat_up(key).await;
        fleet
    }
}

/// The promise: the busiest node does at most 1.25 times the mean within two seconds, and the origin is asked once.
#[tokio::test]
async fn one_key_with_half_of_all_traffic_is_no_load_for_its_owner() {
    let fleet = TestFleet::new(5);
    for key in 0..200 {
        fleet.origin.on(&format!("/{key}"), Script::status(200, &[FRESH], "body"));
    }
    let work = || fleet.nodes.iter().map(|node| node.group.stats.gets.value()).collect::<Vec<_>>();
    let mut random = 1u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut before = work();
    for millisecond in 0..4_000 {
        let key = if next(2) == 0 { 0 } else { next(200) };
        let node = next(5) as usize;
        assert!(fleet.nodes[node].ask(&key.to_string()).await.ends_with("200 body"));
        fleet.all_advance(Duration::from_millis(1));
        if millisecond == 2_000 {
            before = work();
        }
    }
    let done: Vec<u64> = work().iter().zip(before).map(|(after, before)| after - before).collect();
    let mean = done.iter().sum::<u64>() as f64 / 5.0;
    let busiest = *done.iter().max().unwrap() as f64 / mean;
    assert!(busiest <= 1.25, "{busiest:.2}: {done:?}");
    assert_eq!(fleet.origin.asked("/0"), 1);
}

#[tokio::test]
async fn what_is_too_much_for_the_owner_goes_to_the_next_nodes_on_the_ring() {
    let fleet = TestFleet::with_two_replicas(8, "a").await;
    let replicas = fleet.after_owner("a", 2);
    let owner = fleet.owner("a");
    let expected: String = (0..8)
        .map(|node| {
            if node == owner {
                'M'
            } else if replicas.contains(&node) {
                'H'
            } else {
                '-'
            }
        })
        .collect();
    assert_eq!(fleet.places("a"), expected);
    let (_, hop) = fleet.asked("a", 1).await;
    assert_eq!((hop.replicas, hop.minute_rate), (2, 60 * 48), "askers are told");
    assert_eq!(fleet.origin.asked("/a"), 1);
    let cache = &fleet.nodes[owner].cache;
    let hottest = cache.replicas.hottest(5, cache.now());
    assert_eq!((hottest.len(), &*hottest[0].key, hottest[0].replicas), (1, &b"a"[..], 2));
}

#[tokio::test]
async fn askers_take_turns_with_the_replicas_and_what_expired_comes_from_one_fetch() {
    let fleet = TestFleet::new(20);
    fleet.origin.on("/a", Script::status(200, &[("Cache-Control", "max-age=2")], "body"));
    // What the askers of this test do counts beside what others are pretended to: there may be more than two replicas.
    let (owner, after) = (fleet.owner("a"), fleet.after_owner("a", 7));
    let askers: Vec<_> = fleet.others("a").into_iter().filter(|node| !after.contains(node)).collect();
    assert_eq!(askers.len(), 12);
    fleet.heat_up("a").await;
    fleet.all_advance(Duration::from_secs(1));
    // All copies have expired; the owner's one fetch is pushed.
    fleet.stay_hot("a").await;
    for &node in &askers {
        assert_eq!(fleet.nodes[node].ask("a").await, "miss 200 body");
        assert_eq!(fleet.nodes[node].ask("a").await, "hit 200 body", "its part of that rate earns a copy at once");
    }
    for _ in 0..2 {
        fleet.all_advance(Duration::from_secs(1));
        fleet.asked("a", 20).await;
    }
    let replicas = &after[..fleet.pushed("a").await];
    assert!((2..=6).contains(&replicas.len()), "{replicas:?}");
    let answered = |node: &usize| fleet.nodes[*node].cache.replicas.answered.value();
    let served = || fleet.nodes[owner].group.stats.server_requests.value();
    let before = (served(), replicas.iter().map(answered).sum::<u64>());
    for &node in &askers {
        let answer = fleet.nodes[node].ask("a").await;
        assert!(answer.ends_with("200 body"), "{answer}");
    }
    let by_owner = served() - before.0;
    assert_eq!(by_owner + replicas.iter().map(answered).sum::<u64>() - before.1, 12);
    assert!(by_owner <= 5, "a third, and a bit: {by_owner}");
    assert_eq!(fleet.origin.asked("/a"), 3, "one fetch for each lifetime");
}

#[tokio::test]
async fn a_replica_that_is_gone_or_empty_costs_a_question_to_the_owner() {
    let fleet = TestFleet::with_two_replicas(8, "a").await;
    let replicas = fleet.after_owner("a", 2);
    fleet.down[replicas[0]].store(true, Ordering::SeqCst);
    let emptied = &fleet.nodes[replicas[1]].cache;
    emptied.store.remove(&HashedKey::new(GroupId(0), b"a"));
    let askers = fleet.others("a").into_iter().filter(|node| !replicas.contains(node));
    for node in askers {
        for question in 0..4 {
            assert!(fleet.nodes[node].ask("a").await.ends_with("200 body"), "node {node}, question {question}");
            fleet.nodes[node].cache.store.remove(&HashedKey::new(GroupId(0), b"a"));
        }
        assert_eq!(fleet.nodes[node].group.stats.peer_errors.value(), 0, "a peek that fails is no failure of the load");
    }
    assert_eq!(fleet.origin.asked("/a"), 1);
}

#[tokio::test]
async fn an_invalidation_reaches_replicas() {
    let fleet = TestFleet::with_two_replicas(8, "a").await;
    fleet.origin.on("/a", Script::status(200, &[FRESH], "new"));
    let other = &fleet.nodes[fleet.others("a")[0]];
    other.cache.invalidate_everywhere(&other.group, vec!["a".into()]).await;
    assert_eq!(fleet.places("a"), "--------");
    for node in &fleet.nodes {
        assert!(node.ask("a").await.ends_with("200 new"));
    }
    assert_eq!(fleet.origin.asked("/a"), 2);
}

#[tokio::test]
async fn replicas_of_a_key_that_cooled_down_are_dropped() {
    let fleet = TestFleet::with_two_replicas(8, "a").await;
    let replicas = fleet.after_owner("a", 2);
    // Clients of one of them want the key themselves.
    for _ in 0..5 {
        fleet.nodes[replicas[0]].cache.popularity.observe(KeyHash::of(GroupId(0), b"a"), fleet.nodes[0].cache.now());
    }
    fleet.all_advance(REPLICA_LIFETIME - Duration::from_secs(1));
    fleet.nodes.iter().for_each(|node| node.cache.drop_cooled_replicas());
    assert_eq!(fleet.places("a").matches('H').count(), 2, "they were renewed a second ago");
    fleet.all_advance(Duration::from_secs(1));
    fleet.nodes.iter().for_each(|node| node.cache.drop_cooled_replicas());
    let places = fleet.places("a");
    assert_eq!(places.matches('H').count(), 1, "{places}");
    assert_eq!(places.chars().nth(replicas[0]), Some('H'));
    for &node in &replicas {
        let replicas = &fleet.nodes[node].cache.replicas;
        assert_eq!((replicas.taken.value(), replicas.dropped.value(), replicas.held()), (1, 1, 0));
    }
    assert_eq!(fleet.asked("a", 1).await.1.replicas, 0);
}

#[tokio::test]
async fn only_the_owner_gives_replicas() {
    let fleet = TestFleet::new(5);
    fleet.origin.on("/a", Script::status(200, &[FRESH], "body"));
    let (owner, others) = (fleet.owner("a"), fleet.others("a"));
    let node = &fleet.nodes[others[0]];
    let ask = node.group.ask(&"a".into(), Method::Get, Fields::empty()).unwrap();
    let by = |node: usize| fleet.nodes[node].cache.incarnation();
    for wrong in [by(others[1]), by(others[0]), 99] {
        assert!(node.cache.take_replica(&node.group, &ask, wrong).await.is_err());
    }
    assert_eq!(node.cache.take_replica(&node.group, &ask, by(owner)).await, Ok(()), "which has nothing to give");
    assert_eq!(fleet.places("a"), "-----");
}
