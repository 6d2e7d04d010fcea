//! Copies are renewed by the name of their body, and what an owner did shows at the node that asked it.

use super::*;

const TAGGED: &[(&str, &str)] = &[FRESH, ("ETag", "\"1\"")];

impl TestFleet {
    fn carried(&self, key: &str) -> u64 {
        self.carried[self.owner(key)].load(Ordering::SeqCst)
    }

    fn advance(&self, seconds: u64) {
        self.nodes.iter().for_each(|node| node.clock.advance(Duration::from_secs(seconds)));
    }

    /// A fleet in which the second node of three has a hot copy of `a`, and the bytes that this took.
    async fn with_copy(fields: &[(&str, &str)]) -> (TestFleet, usize, u64) {
        let fleet = TestFleet::new(3);
        fleet.origin.on("/a", Script::status(200, fields, "0123456789"));
        let other = fleet.others("a")[0];
        for _ in 0..6 {
            fleet.nodes[other].ask("a").await;
        }
        assert_eq!(fleet.nodes[other].ask("a").await, "hit 200 0123456789");
        let carried = fleet.carried("a");
        (fleet, other, carried)
    }
}

#[tokio::test]
async fn a_stale_copy_is_renewed_without_its_body_as_often_as_the_origin_confirms_it() {
    let (fleet, other, carried) = TestFleet::with_copy(TAGGED).await;
    assert!(carried > 0);
    for round in 1..4 {
        fleet.advance(61);
        let renewed = &[FRESH, ("ETag", "\"1\""), ("X-Round", &round.to_string())];
        fleet.origin.on("/a", Script::status(304, renewed, ""));
        let answer = fleet.nodes[other].ask_fully(&get("a", &[])).await;
        assert_eq!(answer, "revalidated stale after 304: 200 0123456789");
        assert_eq!(fleet.carried("a"), carried, "no byte of the body crosses the hop again");
        let Payload::Entry(entry) = fleet.nodes[other].get("a").await.payload else { panic!("an entry") };
        assert_eq!(entry.fields().get("x-round"), Some(round.to_string().as_bytes()), "but the new head does");
        assert_eq!(fleet.origin.asked("/a"), 1 + round, "the owner asked");
    }
    assert_eq!(fleet.nodes[other].ask("a").await, "hit 200 0123456789");
}

/// The owner was asked by somebody else meanwhile: its entry is another one with the same body.
#[tokio::test]
async fn an_entry_that_was_renewed_before_has_the_same_body() {
    let (fleet, other, carried) = TestFleet::with_copy(TAGGED).await;
    fleet.advance(61);
    fleet.origin.on("/a", Script::status(304, TAGGED, ""));
    assert_eq!(fleet.nodes[fleet.owner("a")].ask("a").await, "revalidated 200 0123456789");
    assert_eq!(fleet.nodes[other].ask_fully(&get("a", &[])).await, "revalidated stale after 304: 200 0123456789");
    assert_eq!(fleet.carried("a"), carried);
    assert_eq!(fleet.origin.asked("/a"), 2);
}

/// Whatever the validators say: a new body has a new name.
#[tokio::test]
async fn another_body_is_never_confirmed() {
    for same_tag in [true, false] {
        let (fleet, other, carried) = TestFleet::with_copy(TAGGED).await;
        fleet.advance(61);
        let tag = if same_tag { "\"1\"" } else { "\"2\"" };
        fleet.origin.on("/a", Script::status(200, &[FRESH, ("ETag", tag)], "9876543210"));
        assert_eq!(fleet.nodes[other].ask("a").await, "miss 200 9876543210", "same tag: {same_tag}");
        assert_eq!(fleet.carried("a"), carried + 10);
        fleet.nodes[other].settle().await;
        let again = fleet.nodes[other].ask("a").await;
        assert!(again.ends_with("200 9876543210"), "{again}");
    }
}

#[tokio::test]
async fn an_owner_that_forgot_sends_the_body() {
    let (fleet, other, carried) = TestFleet::with_copy(TAGGED).await;
    fleet.advance(61);
    let owner = &fleet.nodes[fleet.owner("a")];
    owner.cache.store.remove(&HashedKey::new(owner.group.id, b"a"));
    assert_eq!(fleet.nodes[other].ask("a").await, "miss 200 0123456789");
    assert_eq!(fleet.carried("a"), carried + 10);
}

/// An owner that confirms what nobody has is not believed.
#[tokio::test]
async fn a_confirmation_of_another_body_is_no_answer() {
    struct Liar(Arc<dyn crate::fleet::Peer>);
    #[async_trait]
    impl Source for Liar {
        async fn fetch(&self, ask: &Ask) -> Result<Fetched, FetchError> {
            self.0.fetch(ask).await
        }
        async fn fetch_with(&self, ask: &Ask, aside: Aside<'_>) -> Result<Fetched, FetchError> {
            let mut fetched = self.0.fetch(ask).await?;
            if let Some(hop) = fetched.hop.as_mut().filter(|_| aside.have.is_some()) {
                hop.not_modified = true;
                fetched.body = Box::new(ReadyBody::default());
            }
            Ok(fetched)
        }
    }
    #[async_trait]
    impl crate::fleet::Peer for Liar {
        async fn purge(&self, notice: &Notice) -> Result<Reply, PurgeFailure> {
            self.0.purge(notice).await
        }
        async fn offer(&self, ask: &Ask) -> Result<(), FetchError> {
            self.0.offer(ask).await
        }
        async fn peek(&self, ask: &Ask) -> Result<Option<Fetched>, FetchError> {
            self.0.peek(ask).await
        }
        async fn permit(&self, group: &Arc<str>, purpose: Purpose) -> Result<Fetched, FetchError> {
            self.0.permit(group, purpose).await
        }
        fn incarnation(&self) -> Option<u64> {
            self.0.incarnation()
        }
    }
    let (fleet, other, _) = TestFleet::with_copy(TAGGED).await;
    let peers: Vec<_> = (0..3).map(|peer| RingPeer::new(format!("http://node-{peer}"))).collect();
    let links = (0..3).map(|peer| {
        let (to, cut, carried) = (fleet.nodes[peer].clone(), Arc::default(), Arc::default());
        let (leaving, deaf) = (Arc::default(), Arc::default());
        let link = Link {
            from: fleet.nodes[other].cache.incarnation(),
            to,
            cut,
            leaving,
            deaf,
            carried,
            mute: Arc::default(),
            ahead: Arc::default(),
        };
        (peer != other).then(|| Arc::new(Liar(Arc::new(link))) as Arc<dyn crate::fleet::Peer>)
    });
    let ring = Ring::new(RingKind::Groupcache, 50, &peers);
    fleet.nodes[other].cache.set_fleet(Fleet::new(ring, links.collect(), |key| Some(key.into())));
    fleet.advance(61);
    fleet.origin.on("/a", Script::status(200, &[FRESH, ("ETag", "\"2\"")], "9876543210"));
    assert_eq!(fleet.nodes[other].ask("a").await, "miss 200 9876543210", "asked again without a name");
}

/// Ranges never take the short way: a part is not the body.
#[tokio::test]
async fn a_range_of_a_stale_copy_is_sent() {
    let (fleet, other, carried) = TestFleet::with_copy(TAGGED).await;
    fleet.advance(61);
    fleet.origin.on("/a", Script::status(304, TAGGED, ""));
    let part = get_range("a", "2-4", "");
    assert_eq!(fleet.nodes[other].ask_fully(&part).await, "miss stale: 206 [bytes 2-4/10] 234");
    assert_eq!(fleet.carried("a"), carried + 3);
}

/// What an owner answers with although it is stale is stale at the node that asked, in counters and in `Cache-Status`.
#[tokio::test]
async fn an_owners_stale_answer_is_stale_here_too() {
    let report = |answer: &Answer| (answer.outcome, answer.report.owner.unwrap());
    let fleet = TestFleet::new(3);
    let behind = &[("Cache-Control", "max-age=60, stale-while-revalidate=60"), ("ETag", "\"1\"")];
    fleet.origin.on("/a", Script::status(200, behind, "0123456789"));
    let (owner, other) = (fleet.owner("a"), fleet.others("a")[0]);
    fleet.nodes[owner].ask("a").await;
    fleet.advance(61);
    let answer = fleet.nodes[other].get("a").await;
    let expected = OwnerReport { hit: true, stale: true, revalidated: false, ttl_seconds: Some(-1) };
    assert_eq!(report(&answer), (Outcome::Stale, expected));
    assert_eq!(told(answer).await, "stale 200 0123456789");

    let fleet = TestFleet::new(3);
    fleet.origin.on("/a", Script::status(200, TAGGED, "0123456789"));
    let (owner, other) = (fleet.owner("a"), fleet.others("a")[0]);
    fleet.nodes[owner].ask("a").await;
    fleet.advance(61);
    fleet.origin.on("/a", Script::status(503, &[], "oops"));
    let answer = fleet.nodes[other].get("a").await;
    let expected = OwnerReport { hit: false, stale: true, revalidated: false, ttl_seconds: Some(-1) };
    assert_eq!(report(&answer), (Outcome::Stale, expected));
    fleet.origin.on("/a", Script::status(304, TAGGED, ""));
    let answer = fleet.nodes[other].get("a").await;
    let expected = OwnerReport { hit: false, stale: false, revalidated: true, ttl_seconds: Some(60) };
    assert_eq!(report(&answer), (Outcome::Miss, expected));
}

/// A date of the owner's clock makes `Last-Modified` no strong validator, here as little as there.
#[tokio::test]
async fn a_weak_date_stays_weak_over_the_hop() {
    for (dated, strong) in [(true, true), (false, false)] {
        let modified = ("Last-Modified", "Fri, 01 Jan 2021 00:00:00 GMT");
        let date = ("Date", "Fri, 15 Jan 2027 08:00:00 GMT");
        let fields = if dated { vec![FRESH, modified, date] } else { vec![FRESH, modified] };
        let (fleet, other, _) = TestFleet::with_copy(&fields).await;
        for node in [fleet.owner("a"), other] {
            let Payload::Entry(entry) = fleet.nodes[node].get("a").await.payload else { panic!("an entry") };
            assert!(entry.fields().contains("date"));
            let validators = entry.validators.in_block(entry.fields());
            assert_eq!(validators.last_modified_is_strong, strong, "node {node}, dated {dated}");
        }
    }
}

/// A herd at every node: the readers have the stale copy at once, and one refresh goes to the origin behind them.
#[tokio::test]
async fn a_stale_popular_key_is_refreshed_once_in_the_fleet_while_all_read_the_copy() {
    let fleet = TestFleet::new(3);
    let fields = &[("Cache-Control", "max-age=60, stale-while-revalidate=60"), ("ETag", "\"1\"")];
    fleet.origin.on("/a", Script::status(200, fields, "old"));
    for node in &fleet.nodes {
        for _ in 0..6 {
            node.ask("a").await;
        }
        assert_eq!(node.ask("a").await, "hit 200 old", "each has it in memory");
    }
    fleet.advance(61);
    let gate = Gate::new();
    fleet.origin.on("/a", Script::new().hold(&gate).then_head(200, fields, Some(3)).chunk("new"));
    // No answer waits for the gate.
    let herd = fleet.nodes.iter().flat_map(|node| (0..20).map(move |_| node.ask("a")));
    for answer in futures_join(herd).await {
        assert_eq!(answer, "stale 200 old");
    }
    fleet.origin.arrived("/a", 2).await;
    gate.open();
    for node in &fleet.nodes {
        node.settle().await;
    }
    for node in &fleet.nodes {
        let answer = node.ask("a").await;
        assert!(answer.ends_with(" 200 new") && !answer.starts_with("stale"), "{answer}");
    }
    assert_eq!(fleet.origin.asked("/a"), 2);
}
