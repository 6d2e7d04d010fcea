//! A fleet of five that the network splits, when it serves on and when it keeps leases.

use super::*;
use crate::purge::Target;
use crate::purge::lease::{LEASE, Standing};
use crate::purging::{NodeState, PurgeRequest, Receipt};

/// Five nodes, and which ways between them are blocked.
struct Split {
    nodes: Vec<Arc<Node>>,
    ways: Vec<Vec<Arc<AtomicBool>>>,
    origin: Scripted,
}

impl Split {
    /// A fleet whose nodes know one another; one that keeps leases has given them.
    async fn new(strict: bool) -> Split {
        let origin = Scripted::new();
        let rules = || crate::freshness::Rules { jitter_percent: 0.0, ..Default::default() };
        let nodes: Vec<_> = (0..5).map(|place| Arc::new(Node::with(&origin, rules(), place + 1))).collect();
        let ways = (0..5).map(|_| (0..5).map(|_| Arc::default()).collect()).collect();
        let split = Split { nodes, ways, origin };
        (0..5).for_each(|place| split.see(place, strict));
        if strict {
            // Until the first are settled, and have said yes to the others.
            split.pass(6000).await;
        }
        split
    }

    fn see(&self, place: usize, strict: bool) {
        let peers: Vec<_> = (0..5).map(|peer| RingPeer::new(format!("http://node-{peer}"))).collect();
        let node = &self.nodes[place];
        let links = self.nodes.iter().enumerate().map(|(peer, to)| {
            let (cut, deaf) = (self.ways[place][peer].clone(), Arc::default());
            let (from, to) = (node.cache.incarnation(), to.clone());
            let link = Link {
                from,
                to,
                cut,
                deaf,
                mute: Arc::default(),
                leaving: Arc::default(),
                carried: Arc::default(),
                ahead: Arc::default(),
            };
            (peer != place).then(|| Arc::new(link) as Arc<dyn crate::fleet::Peer>)
        });
        let fleet = Fleet::new(Ring::new(RingKind::Groupcache, 50, &peers), links.collect(), |key| Some(key.into()));
        let urls = (0..5).map(|peer| peer.to_string()).collect();
        node.cache.set_fleet(fleet.named(urls).with_leases(strict));
        tokio::spawn(node.cache.clone().keep_lease());
    }

    /// Blocks the ways between these nodes and the rest; none is blocked beside them.
    fn cut_off(&self, lonely: &[usize]) {
        for (from, ways) in self.ways.iter().enumerate() {
            for (to, way) in ways.iter().enumerate() {
                way.store(lonely.contains(&from) != lonely.contains(&to), Ordering::SeqCst);
            }
        }
    }

    /// Lets time pass, for nodes and network alike.
    async fn pass(&self, milliseconds: u64) {
        for _ in 0..milliseconds / 50 {
            self.nodes.iter().for_each(|node| node.clock.advance(Duration::from_millis(50)));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The same until the purge is answered.
    async fn purge(&self, place: usize, target: Target) -> Receipt {
        let request =
            PurgeRequest { targets: vec![target], timeout: Duration::from_secs(5), ..PurgeRequest::default() };
        let cache = self.nodes[place].cache.clone();
        let mut purging = tokio::spawn(async move { cache.purge_everywhere(request).await });
        loop {
            tokio::select! {
                biased;
                receipt = &mut purging => return receipt.unwrap(),
                () = self.pass(50) => {}
            }
        }
    }

    /// What each node answers for the key.
    async fn ask_all(&self, key: &str) -> Vec<String> {
        let mut answers = Vec::new();
        for node in &self.nodes {
            answers.push(node.ask(key).await);
        }
        answers
    }

    /// Fills the memories of all nodes with the present answers to the keys.
    async fn warm(&self, keys: &[&str], body: &'static str) {
        for key in keys {
            self.origin.on(&format!("/{key}"), Script::status(200, &[FRESH], body));
            // Often enough that each deserves a copy.
            for _ in 0..5 {
                self.ask_all(key).await;
            }
        }
    }

    fn standings(&self) -> String {
        let letter = |node: &Arc<Node>| match node.cache.lease() {
            Standing::Free => 'f',
            Standing::Held(_) => 'h',
            Standing::Lost => 'l',
            Standing::Unsettled => 'u',
        };
        self.nodes.iter().map(letter).collect()
    }
}

fn states(receipt: &Receipt) -> String {
    let letter = |state: NodeState| match state {
        NodeState::Confirmed => 'c',
        NodeState::Unreachable => 'u',
        NodeState::WithoutLease => 'w',
        NodeState::CannotPurge => '-',
    };
    receipt.nodes.iter().map(|node| letter(node.state)).collect()
}

fn group() -> Target {
    Target::Group("test".into())
}

const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

#[tokio::test(start_paused = true)]
async fn who_serves_in_a_partition_serves_what_it_has_and_nothing_is_acknowledged() {
    let split = Split::new(false).await;
    split.warm(&KEYS, "old").await;
    assert_eq!(split.standings(), "fffff");
    split.cut_off(&[3, 4]);
    let receipt = split.purge(0, group()).await;
    assert_eq!((receipt.complete, &*states(&receipt)), (false, "cccuu"));
    for key in KEYS {
        split.origin.on(&format!("/{key}"), Script::status(200, &[FRESH], "new"));
    }
    let memory = |node: &Arc<Node>| {
        KEYS.iter().filter(|key| node.cache.store.peek(&HashedKey::new(GroupId(0), key.as_bytes())).is_some()).count()
    };
    assert!(split.nodes[..3].iter().all(|node| memory(node) == 0));
    let mut old = 0;
    for key in KEYS {
        for node in &split.nodes[..3] {
            assert!(node.ask(key).await.ends_with("200 new"), "{key}");
        }
        for node in &split.nodes[3..] {
            old += usize::from(node.ask(key).await.ends_with("200 old"));
        }
    }
    assert!(old > 0, "the others go on");
    split.cut_off(&[]);
    split.pass(5000).await;
    for key in KEYS {
        assert!(split.ask_all(key).await.iter().all(|answer| answer.ends_with("200 new")), "{key} after healing");
    }
}

#[tokio::test(start_paused = true)]
async fn a_strict_majority_purges_and_the_minority_asks_anew() {
    let split = Split::new(true).await;
    assert_eq!(split.standings(), "hhhhh");
    split.warm(&KEYS, "old").await;
    assert!(split.ask_all("a").await.iter().any(|answer| answer == "hit 200 old"), "leases let memory answer");
    split.cut_off(&[3, 4]);
    let begun = split.nodes[0].clock.now().monotonic;
    let receipt = split.purge(1, group()).await;
    let took = split.nodes[0].clock.now().monotonic - begun;
    assert_eq!((receipt.complete, &*states(&receipt)), (true, "cccww"), "{receipt:?}");
    assert!(took > Duration::from_secs(1) && took < LEASE + Duration::from_secs(1), "{took:?}");
    assert_eq!(split.standings(), "hhhll");
    for key in KEYS {
        split.origin.on(&format!("/{key}"), Script::status(200, &[FRESH], "new"));
    }
    for key in KEYS {
        for answer in split.ask_all(key).await {
            assert!(answer.ends_with("200 new"), "{key}: {answer}");
        }
    }
    // Those who are cut off for long cost a purge no time.
    let begun = split.nodes[0].clock.now().monotonic;
    let receipt = split.purge(0, group()).await;
    assert_eq!((receipt.complete, &*states(&receipt)), (true, "cccww"));
    assert!(split.nodes[0].clock.now().monotonic - begun < Duration::from_millis(500));
    // On the other side nobody can purge.
    let receipt = split.purge(4, group()).await;
    assert_eq!((receipt.complete, &*states(&receipt)), (false, "cuuuc"));
    split.cut_off(&[]);
    split.pass(5000).await;
    assert_eq!(split.standings(), "hhhhh");
    for key in KEYS {
        split.origin.on(&format!("/{key}"), Script::status(200, &[FRESH], "newest"));
        // What the minority fetched before it heard of the purges is gone.
        assert!(split.ask_all(key).await.iter().all(|answer| answer.ends_with("200 newest")), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_lease_every_answer_was_asked_for_after_its_request() {
    let split = Split::new(true).await;
    split.cut_off(&[4]);
    let lonely = &split.nodes[4];
    // Its own, so that what it answers with is what the origin said.
    let key: &'static str =
        (0..100).map(|key| &*key.to_string().leak()).find(|key| lonely.cache.owns(key.as_bytes())).unwrap();
    let path = format!("/{key}");
    let validators = [FRESH, ("ETag", "\"1\"")];
    split.origin.on(&path, Script::status(200, &validators, "old"));
    split.pass(2500).await;
    assert_eq!(split.standings(), "hhhhl");
    assert_eq!(lonely.ask(key).await, "miss 200 old");
    lonely.settle().await;
    // The origin confirms what lies in memory.
    split.origin.on(&path, Script::status(304, &validators, ""));
    assert_eq!(lonely.ask(key).await, "revalidated 200 old");
    lonely.settle().await;
    assert_eq!(lonely.get(key).await.report.detail, Some("no-lease"));
    lonely.settle().await;
    // A request does not share a flight that asked before it came; those that came meanwhile share the next one.
    let gate = Gate::new();
    split.origin.on(&path, Script::new().hold(&gate).then_head(200, &validators, Some(6)).chunk("second"));
    let before = split.origin.asked(&path);
    let ask = |key: &'static str| {
        let node = lonely.clone();
        tokio::spawn(async move { node.ask(key).await })
    };
    let first = ask(key);
    tokio::task::yield_now().await;
    while split.origin.asked(&path) == before {
        tokio::task::yield_now().await;
    }
    let later: Vec<_> = (0..10).map(|_| ask(key)).collect();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    split.origin.on(&path, Script::status(200, &validators, "third"));
    gate.open();
    assert_eq!(first.await.unwrap(), "miss 200 second");
    for later in later {
        assert!(later.await.unwrap().ends_with("200 third"));
    }
    // An origin that does not answer leaves nothing to answer with.
    split.origin.on(&path, Script::fails(FetchError::unreachable("scripted")));
    assert_eq!(lonely.ask(key).await, "error 503");
    let ask = lonely.group.ask(&Bytes::from_static(key.as_bytes()), Method::Get, Fields::empty()).unwrap();
    assert!(lonely.cache.find_for_peer(&lonely.group, &ask, EntryId::default(), &|_, _| true).is_none());
    assert!(lonely.cache.peek(&lonely.group, &get(key, &[])).is_none());
}
