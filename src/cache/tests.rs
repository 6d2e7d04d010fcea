//! One node and fleets of five in memory: no socket, scripted origins, gates instead of waiting.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::clock::ManualClock;
use crate::group::KeyRule;
use crate::ring::{Ring, RingKind, RingPeer};
use crate::source::Source;
use crate::stats::GroupStats;
use crate::store::Settings;
use crate::testing::{Gate, Script, Scripted};

const FRESH: (&str, &str) = ("Cache-Control", "max-age=60");

/// A node with its own scripted origin, so that a test sees who asked.
struct Node {
    cache: Arc<Cache>,
    group: Arc<Group>,
    clock: Arc<ManualClock>,
}

impl Node {
    fn new(origin: &Scripted) -> Self {
        Node::with(origin, crate::freshness::Rules { jitter_percent: 0.0, ..Default::default() }, 1)
    }

    fn with(origin: &Scripted, rules: crate::freshness::Rules, incarnation: u64) -> Self {
        let clock = Arc::new(ManualClock::new(1_800_000_000));
        let store = Store::new(Ledger::new(64 << 20), &Settings::default(), None);
        let group = Arc::new(Group {
            id: GroupId(0),
            name: "test".into(),
            rules,
            forward: Default::default(),
            variants_max: 4,
            keys: KeyRule::default(),
            cached: true,
            cookies_pass: false,
            object_bytes_max: 1 << 20,
            fill_timeout: Duration::from_secs(300),
            source: Arc::new(origin.clone()),
            stats: Arc::new(GroupStats::default()),
        });
        Node { cache: Cache::new(store, clock.clone(), incarnation), group, clock }
    }

    async fn get(&self, key: &str) -> Answer {
        self.cache.get(&self.group, &get(key, &[])).await
    }

    /// Outcome, status and body of an answer in one line.
    async fn ask(&self, key: &str) -> String {
        self.ask_with(&get(key, &[])).await
    }

    async fn ask_with(&self, request: &Request) -> String {
        told(self.cache.get(&self.group, request).await).await
    }

    /// The counters that say who did what.
    fn counters(&self) -> String {
        let stats = &self.group.stats;
        format!(
            "gets {} hits {} loads {} deduped {} collapsed {} peer {} local {} errors {} served {}",
            stats.gets.value(),
            stats.cache_hits.value(),
            stats.loads.value(),
            stats.loads_deduped.value(),
            stats.loads_collapsed.value(),
            stats.peer_loads.value(),
            stats.local_loads.value(),
            stats.peer_errors.value() + stats.local_load_errs.value(),
            stats.server_requests.value(),
        )
    }
}

fn get(key: &str, forwarded: &[(&str, &str)]) -> Request {
    Request {
        key: Bytes::copy_from_slice(key.as_bytes()),
        method: Method::Get,
        forwarded: Fields::from_pairs(forwarded.iter().copied()).unwrap(),
        authorization: forwarded.iter().any(|(name, _)| *name == "Authorization"),
        directives: RequestDirectives::default(),
        range: None,
    }
}

async fn told(answer: Answer) -> String {
    let outcome = answer.outcome.as_str();
    match answer.payload {
        Payload::Entry(entry) => {
            format!("{outcome} {} {}", entry.status, String::from_utf8_lossy(&entry.body.segments().concat()))
        }
        Payload::Stream(head, reader) => match read(reader).await {
            Ok(body) => format!("{outcome} {} {body}", head.status),
            Err(_) => format!("{outcome} {} broken", head.status),
        },
        Payload::Pass(reason) => format!("{outcome} {reason}"),
        Payload::Failure { status, .. } => format!("{outcome} {status}"),
    }
}

async fn read(mut reader: FillReader<Landed>) -> Result<String, ReadError> {
    let mut body = Vec::new();
    while let Some(chunk) = reader.chunk().await? {
        body.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn a_miss_is_loaded_once_and_then_hit() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[FRESH], "body"));
    let node = Node::new(&origin);
    assert_eq!(node.ask("a").await, "miss 200 body");
    assert_eq!(node.ask("a").await, "hit 200 body");
    assert_eq!(origin.asked("/a"), 1);
    assert_eq!(node.counters(), "gets 2 hits 1 loads 1 deduped 1 collapsed 0 peer 0 local 1 errors 0 served 0");
}

#[tokio::test]
async fn a_body_that_only_the_connections_end_ends_is_passed_on_and_never_stored() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[FRESH], "perhaps all").close_delimited());
    let node = Node::new(&origin);
    assert_eq!(node.ask("a").await, "miss 200 perhaps all");
    assert_eq!(node.ask("a").await, "miss 200 perhaps all");
    assert_eq!(origin.asked("/a"), 2);
}

#[tokio::test]
async fn a_thousand_readers_share_one_fill_and_read_while_it_runs() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    origin.on("/a", Script::head(200, &[FRESH], Some(6)).chunk("one").hold(&gate).chunk("two"));
    let node = Arc::new(Node::new(&origin));
    let mut answers = Vec::new();
    for _ in 0..1000 {
        let Payload::Stream(_, mut reader) = node.get("a").await.payload else { panic!("a stream") };
        assert_eq!(reader.chunk().await.unwrap().unwrap(), "one", "the first bytes come before the last");
        answers.push(reader);
    }
    gate.open();
    for reader in answers {
        assert_eq!(read(reader).await.unwrap(), "two");
    }
    assert_eq!(origin.asked("/a"), 1);
    assert_eq!(node.counters(), "gets 1000 hits 0 loads 1000 deduped 1 collapsed 999 peer 0 local 1 errors 0 served 0");
}

#[tokio::test]
async fn a_broken_body_is_broken_for_all_and_never_stored() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    origin.on("/a", Script::head(200, &[FRESH], Some(6)).chunk("one").hold(&gate).breaks());
    let node = Node::new(&origin);
    let (first, second) = (node.get("a").await, node.get("a").await);
    gate.open();
    assert_eq!(told(first).await, "miss 200 broken");
    assert_eq!(told(second).await, "miss 200 broken");
    origin.on("/a", Script::status(200, &[FRESH], "whole"));
    assert_eq!(node.ask("a").await, "miss 200 whole");
}

#[tokio::test]
async fn lies_about_the_length_are_breaks() {
    for (declared, body) in [(10, "short"), (2, "too long")] {
        let origin = Scripted::new();
        origin.on("/a", Script::head(200, &[FRESH], Some(declared)).chunk(body));
        let node = Node::new(&origin);
        assert_eq!(node.ask("a").await, "miss 200 broken", "{declared} declared, {body:?} sent");
        assert_eq!(node.cache.store.totals().items, 0);
    }
}

#[tokio::test]
async fn a_panicking_source_fails_its_key_alone() {
    let origin = Scripted::new();
    origin.on("/a", Script::new().panics());
    origin.on("/b", Script::status(200, &[FRESH], "b"));
    let node = Node::new(&origin);
    assert_eq!(node.ask("a").await, "error 502");
    assert_eq!(node.ask("b").await, "miss 200 b");
    assert_eq!(node.cache.flights.count(), 0);
}

#[tokio::test]
async fn readers_that_leave_do_not_end_the_fill_of_others() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    origin.on("/a", Script::head(200, &[FRESH], Some(6)).chunk("one").hold(&gate).chunk("two"));
    let node = Node::new(&origin);
    let first = node.get("a").await;
    let second = node.get("a").await;
    drop(first);
    gate.open();
    assert_eq!(told(second).await, "miss 200 onetwo");
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_nobody_reads_ends_after_a_second_unless_it_is_half_done() {
    let origin = Scripted::new();
    origin.on("/little", Script::head(200, &[FRESH], Some(100)).chunk("x").stalls());
    origin.on("/head", Script::new().stalls());
    let node = Node::new(&origin);
    drop(node.get("little").await);
    let waiting = tokio::spawn({
        let (cache, group) = (node.cache.clone(), node.group.clone());
        async move { drop(cache.get(&group, &get("head", &[])).await) }
    });
    origin.arrived("/head", 1).await;
    waiting.abort();
    origin.wait_abandoned(2).await;
    assert_eq!(node.cache.flights.count(), 0);
    assert_eq!(node.cache.flights.count(), 0);

    let gate = Gate::new();
    origin.on("/half", Script::head(200, &[FRESH], Some(6)).chunk("one").hold(&gate).chunk("two"));
    let Payload::Stream(_, mut reader) = node.get("half").await.payload else { panic!("a stream") };
    reader.chunk().await.unwrap();
    drop(reader);
    tokio::time::sleep(Duration::from_secs(5)).await;
    gate.open();
    while node.cache.flights.count() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.ask("half").await, "hit 200 onetwo");
}

#[tokio::test]
async fn what_may_not_be_shared_goes_to_the_one_who_caused_it() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    let private = &[("Cache-Control", "private, max-age=60"), ("Set-Cookie", "who=first")];
    origin.on("/a", Script::new().hold(&gate).then_head(200, private, Some(5)).chunk("first"));
    let node = Arc::new(Node::new(&origin));
    let ask = |node: &Arc<Node>| {
        let node = node.clone();
        tokio::spawn(async move { node.get("a").await })
    };
    let first = ask(&node);
    origin.arrived("/a", 1).await;
    let others: Vec<_> = (0..10).map(|_| ask(&node)).collect();
    while node.group.stats.loads_collapsed.value() < 10 {
        tokio::task::yield_now().await;
    }
    gate.open();
    assert_eq!(told(first.await.unwrap()).await, "miss 200 first");
    for other in others {
        assert_eq!(told(other.await.unwrap()).await, "pass not-shareable");
    }
    assert_eq!(node.ask("a").await, "pass uncacheable", "later requests do not queue");
    node.clock.advance(crate::remembered::UNCACHEABLE_LIFETIME);
    assert_eq!(node.ask("a").await, "miss 200 first");
    assert_eq!(origin.asked("/a"), 2);
}

#[tokio::test]
async fn one_clients_private_answer_does_not_switch_collapsing_off() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[("Cache-Control", "private")], "mine"));
    let node = Node::new(&origin);
    assert_eq!(node.ask_with(&get("a", &[("Authorization", "Basic x")])).await, "miss 200 mine");
    origin.on("/a", Script::status(200, &[FRESH], "public"));
    assert_eq!(node.ask("a").await, "miss 200 public");
    assert_eq!(node.ask_with(&get("a", &[("Authorization", "Basic x")])).await, "hit 200 public");
}

#[tokio::test]
async fn each_variant_is_loaded_once_and_all_live_under_the_key() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    let varies = &[FRESH, ("Vary", "Accept-Encoding")];
    origin.on("/a", Script::new().hold(&gate).then_head(200, varies, Some(2)).chunk("gz"));
    let node = Arc::new(Node::new(&origin));
    let ask = |fields: &'static [(&'static str, &'static str)]| {
        let node = node.clone();
        tokio::spawn(async move { node.ask_with(&get("a", fields)).await })
    };
    let gzip = ask(&[("Accept-Encoding", "gzip")]);
    origin.arrived("/a", 1).await;
    let more_gzip = ask(&[("Accept-Encoding", "gzip")]);
    let plain = [ask(&[]), ask(&[])];
    while node.group.stats.loads_collapsed.value() < 3 {
        tokio::task::yield_now().await;
    }
    origin.on("/a", Script::status(200, varies, "plain"));
    gate.open();
    assert_eq!(gzip.await.unwrap(), "miss 200 gz");
    assert_eq!(more_gzip.await.unwrap(), "miss 200 gz");
    for plain in plain {
        assert_eq!(plain.await.unwrap(), "miss 200 plain");
    }
    assert_eq!(origin.asked("/a"), 2, "one request per variant");
    assert_eq!(node.ask_with(&get("a", &[("Accept-Encoding", "gzip")])).await, "hit 200 gz");
    assert_eq!(node.ask("a").await, "hit 200 plain");
}

#[tokio::test]
async fn a_stale_entry_is_confirmed_or_replaced_by_the_origin() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[FRESH, ("ETag", "\"1\"")], "old"));
    let node = Node::new(&origin);
    assert_eq!(node.ask("a").await, "miss 200 old");
    node.clock.advance(Duration::from_secs(61));
    origin.on("/a", Script::status(304, &[FRESH, ("ETag", "\"1\"")], ""));
    assert_eq!(node.ask("a").await, "revalidated 200 old");
    assert_eq!(origin.asks().last().unwrap().fields.get("if-none-match"), Some(&b"\"1\""[..]));
    assert_eq!(node.ask("a").await, "hit 200 old");
    node.clock.advance(Duration::from_secs(61));
    origin.on("/a", Script::status(200, &[FRESH, ("ETag", "\"2\"")], "new"));
    assert_eq!(node.ask("a").await, "miss 200 new");
    assert_eq!(node.ask("a").await, "hit 200 new");
}

#[tokio::test]
async fn a_stale_entry_stands_in_for_a_failing_origin() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[FRESH], "old"));
    let node = Node::new(&origin);
    node.ask("a").await;
    node.clock.advance(Duration::from_secs(61));
    origin.on("/a", Script::status(500, &[], "oops"));
    assert_eq!(node.ask("a").await, "stale 200 old");
    origin.on("/a", Script::fails(FetchError::unreachable("down")));
    assert_eq!(node.ask("a").await, "stale 200 old");
    assert_eq!(node.ask("a").await, "stale 200 old", "remembered: nobody asks again at once");
    assert_eq!(origin.asked("/a"), 3);
    node.clock.advance(Duration::from_secs(3600));
    assert_eq!(node.ask("a").await, "error 502");
}

#[tokio::test]
async fn stale_while_revalidate_answers_at_once_and_refreshes_once() {
    let origin = Scripted::new();
    let fields = &[("Cache-Control", "max-age=60, stale-while-revalidate=60")];
    origin.on("/a", Script::status(200, fields, "old"));
    let node = Node::new(&origin);
    node.ask("a").await;
    node.clock.advance(Duration::from_secs(61));
    let gate = Gate::new();
    origin.on("/a", Script::new().hold(&gate).then_head(200, fields, Some(3)).chunk("new"));
    for _ in 0..10 {
        assert_eq!(node.ask("a").await, "stale 200 old");
    }
    gate.open();
    while node.cache.flights.count() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.ask("a").await, "hit 200 new");
    assert_eq!(origin.asked("/a"), 2);
}

#[tokio::test]
async fn our_own_failure_answers_for_a_moment() {
    let origin = Scripted::new();
    origin.on("/a", Script::fails(FetchError::unreachable("down")));
    let node = Node::new(&origin);
    assert_eq!((node.ask("a").await, node.ask("a").await), ("error 502".into(), "error 502".into()));
    assert_eq!(origin.asked("/a"), 1);
    node.clock.advance(node.group.rules.errors);
    origin.on("/a", Script::status(200, &[FRESH], "back"));
    assert_eq!(node.ask("a").await, "miss 200 back");
}

#[tokio::test]
async fn a_body_beyond_the_limit_streams_through_and_is_not_stored() {
    for declared in [Some(3 << 20), None] {
        let origin = Scripted::new();
        let mut script = Script::head(200, &[FRESH], declared);
        for _ in 0..3 {
            script = script.chunk(vec![b'x'; 1 << 20]);
        }
        origin.on("/a", script);
        let node = Node::new(&origin);
        let answer = node.ask("a").await;
        assert_eq!(answer.len(), "miss 200 ".len() + (3 << 20), "{declared:?}");
        assert_eq!(node.cache.store.totals().items, 0);
        assert_eq!(node.group.stats.not_stored.value("too_large"), 1, "{declared:?}");
    }
}

#[tokio::test]
async fn head_never_becomes_get_and_is_not_stored() {
    let origin = Scripted::new();
    origin.on("/a", Script::head(200, &[FRESH], Some(4)));
    let node = Node::new(&origin);
    let request = Request { method: Method::Head, ..get("a", &[]) };
    assert_eq!(node.ask_with(&request).await, "miss 200 ");
    assert_eq!(origin.asks()[0].method, Method::Head);
    origin.on("/a", Script::status(200, &[FRESH], "body"));
    assert_eq!(node.ask("a").await, "miss 200 body");
    assert_eq!(node.ask_with(&request).await, "hit 200 body", "the writer leaves the body out");
}

#[tokio::test]
async fn only_if_cached_asks_nobody() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    let directives = RequestDirectives { only_if_cached: true, ..Default::default() };
    assert_eq!(node.ask_with(&Request { directives, ..get("a", &[]) }).await, "error 504");
    assert!(origin.asks().is_empty());
}

/// A way from one node to another that a test can cut.
struct Link {
    to: Arc<Node>,
    cut: Arc<AtomicBool>,
}

#[async_trait]
impl Source for Link {
    async fn fetch(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(FetchError::unreachable("cut"));
        }
        let request = Request::from_ask(&self.to.group, ask);
        self.to.cache.get_as_owner(&self.to.group, &request).await
    }
}

/// Nodes around one origin. `views[n]` is the list of nodes that node `n` believes in.
struct TestFleet {
    nodes: Vec<Arc<Node>>,
    down: Vec<Arc<AtomicBool>>,
    origin: Scripted,
}

impl TestFleet {
    fn new(size: usize) -> Self {
        let everybody: Vec<usize> = (0..size).collect();
        TestFleet::with_views(size, |_| everybody.clone())
    }

    fn with_views(size: usize, view: impl Fn(usize) -> Vec<usize>) -> Self {
        let origin = Scripted::new();
        let rules = || crate::freshness::Rules { jitter_percent: 0.0, ..Default::default() };
        let nodes: Vec<_> = (0..size).map(|index| Arc::new(Node::with(&origin, rules(), index as u64 + 1))).collect();
        let down: Vec<_> = (0..size).map(|_| Arc::new(AtomicBool::new(false))).collect();
        for (index, node) in nodes.iter().enumerate() {
            let seen = view(index);
            let peers: Vec<_> = seen.iter().map(|peer| RingPeer::new(format!("http://node-{peer}"))).collect();
            let ring = Ring::new(RingKind::Groupcache, 50, &peers);
            let links = seen.iter().map(|&peer| {
                let link = Link { to: nodes[peer].clone(), cut: down[peer].clone() };
                (peer != index).then(|| Arc::new(link) as Arc<dyn Source>)
            });
            node.cache.set_fleet(Fleet::new(ring, links.collect(), |key| Some(key.into())));
        }
        TestFleet { nodes, down, origin }
    }

    /// The index of the key's owner, by the first node's view.
    fn owner(&self, key: &str) -> usize {
        self.nodes[0].cache.fleet.load().owner_index(key.as_bytes()).unwrap()
    }

    /// Nodes that do not own the key, by the first node's view.
    fn others(&self, key: &str) -> Vec<usize> {
        let owner = self.owner(key);
        (0..self.nodes.len()).filter(|&node| node != owner).collect()
    }

    /// Where the key lies, node by node: `M`ain, `H`ot or `-`.
    fn places(&self, key: &str) -> String {
        let place = |node: &Arc<Node>| match node.cache.store.peek(&HashedKey::new(GroupId(0), key.as_bytes())) {
            Some((_, Role::Main)) => 'M',
            Some((_, Role::Hot)) => 'H',
            None => '-',
        };
        self.nodes.iter().map(place).collect()
    }
}

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

async fn futures_join<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut joined = Vec::new();
    for future in futures.map(Box::pin).collect::<Vec<_>>() {
        joined.push(future.await);
    }
    joined
}
