//! One node and fleets of five in memory: no socket, scripted origins, gates instead of waiting.

mod fleet;
mod node;

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

async fn futures_join<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut joined = Vec::new();
    for future in futures.map(Box::pin).collect::<Vec<_>>() {
        joined.push(future.await);
    }
    joined
}
