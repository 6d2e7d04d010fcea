//! One node and fleets of five in memory: no socket, scripted origins, gates instead of waiting.

mod confirmed;
mod fleet;
mod interim;
mod invalidation;
mod node;
mod parts;
mod permits;
mod personal;
mod purging;
mod replicas;
mod same;
mod spread;
mod strict;
mod warm;
mod weight;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;

use super::*;
use crate::clock::ManualClock;
use crate::fleet::{Begun, Health, PurgeFailure, Purpose, Then, Unasked};
use crate::flight::ReadError;
use crate::group::KeyRule;
use crate::purge::{Notice, Reply};
use crate::ring::{Ring, RingKind, RingPeer};
use crate::semantics::ranges::{ContentRange, IfRange, RangeSet, Resolved};
use crate::source::{Ask, BodyStream, NoBody, ReadyBody, Source, Whole};
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
        Node::limited(origin, rules, incarnation, None)
    }

    fn limited(
        origin: &Scripted,
        rules: crate::freshness::Rules,
        incarnation: u64,
        limit: Option<crate::group::Limit>,
    ) -> Self {
        Node::with_clock(origin, rules, incarnation, limit, Arc::new(ManualClock::new(1_800_000_000)))
    }

    fn with_clock(
        origin: &Scripted,
        rules: crate::freshness::Rules,
        incarnation: u64,
        limit: Option<crate::group::Limit>,
        clock: Arc<ManualClock>,
    ) -> Self {
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
            limit,
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

    /// Outcome, `fwd` and `fwd-status` of an answer, and what its client sees.
    async fn ask_fully(&self, request: &Request) -> String {
        let answer = self.cache.get(&self.group, request).await;
        let outcome = answer.outcome.as_str();
        let report = &answer.report;
        let status = report.forward_status.map(|status| format!(" after {status}")).unwrap_or_default();
        let forward = report.forward.map(|word| format!(" {word}")).unwrap_or_default();
        let seen = seen(request, answer).await;
        let place = seen.fields.iter().find(|(name, _)| name == "content-range");
        let place = place.map(|(_, value)| format!(" [{value}]")).unwrap_or_default();
        let body = seen.body.unwrap_or_else(|| "none".to_owned());
        format!("{outcome}{forward}{status}: {}{place} {body}", seen.status)
    }

    /// Waits until nothing is in flight: an entry comes into the store after the last byte has been read.
    async fn settle(&self) {
        while self.cache.flights.count() > 0 {
            tokio::task::yield_now().await;
        }
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

/// A `GET` for ranges, with an `If-Range` unless it is empty.
fn get_range(key: &str, range: &str, if_range: &str) -> Request {
    let fields = match if_range {
        "" => Fields::empty(),
        value => Fields::from_pairs([("If-Range", value)]).unwrap(),
    };
    let range = RangeAsked {
        set: RangeSet::parse_value(format!("bytes={range}").as_bytes()).unwrap(),
        if_range: IfRange::parse(&fields),
        if_range_value: fields.get("if-range").map(Bytes::copy_from_slice),
    };
    Request { range: Some(range), ..get(key, &[]) }
}

/// What a client of this answer sees, by the rules of the response writer: out of a whole response the one range is cut.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    /// In lower case and sorted, without `Age`.
    fields: Vec<(String, String)>,
    body: Option<String>,
}

async fn seen(request: &Request, answer: Answer) -> Seen {
    let text = |chunks: &[Bytes]| String::from_utf8_lossy(&chunks.concat()).into_owned();
    let (status, fields, part, length, body) = match answer.payload {
        Payload::Entry(entry) => {
            let part = request.part_of(&entry);
            assert!(entry.body.is_whole() || part.is_some(), "an incomplete entry answers nothing but a range");
            let chunks = match part {
                Some(part) => entry.body.slice(part).expect("a range that it holds"),
                None => entry.body.to_segments(),
            };
            (entry.status, entry.fields().to_fields(), part, Some(entry.body.len()), Some(text(&chunks)))
        }
        Payload::Stream(head, mut reader) => {
            let part = request.part(head.status, &head.fields, || head.validators(), head.content_length);
            let mut chunks = Vec::new();
            let end = loop {
                match reader.chunk().await {
                    Ok(Some(chunk)) => chunks.push(chunk),
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            let all = text(&chunks);
            let body = end.then(|| {
                part.map_or(all.clone(), |part| all[part.first as usize..][..part.length() as usize].to_owned())
            });
            (head.status, head.fields.clone(), part, head.content_length, body)
        }
        Payload::Pass(reason) => panic!("passes: {reason}"),
        Payload::Failure { status, .. } => return Seen { status, fields: Vec::new(), body: None },
    };
    let mut fields: Vec<(String, String)> = fields
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), String::from_utf8_lossy(value).into_owned()))
        .filter(|(name, _)| name != "age")
        .collect();
    if let Some(range) = part {
        fields.push(("content-range".to_owned(), ContentRange::Part { range, length }.to_string()));
    }
    fields.sort();
    let body = body.filter(|_| request.method == Method::Get);
    Seen { status: if part.is_some() { 206 } else { status }, fields, body }
}

async fn told(answer: Answer) -> String {
    let outcome = answer.outcome.as_str();
    match answer.payload {
        Payload::Entry(entry) => {
            format!("{outcome} {} {}", entry.status, String::from_utf8_lossy(&entry.body.to_segments().concat()))
        }
        Payload::Stream(head, reader) => match read(reader).await {
            Ok(body) => format!("{outcome} {} {body}", head.status),
            Err(_) => format!("{outcome} {} broken", head.status),
        },
        Payload::Pass(reason) => format!("{outcome} {reason}"),
        Payload::Failure { status, .. } => format!("{outcome} {status}"),
    }
}

async fn read(mut reader: Following) -> Result<String, ReadError> {
    let mut body = Vec::new();
    while let Some(chunk) = reader.chunk().await? {
        body.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// A way from one node to another that a test can cut.
struct Link {
    /// The asker's incarnation.
    from: u64,
    to: Arc<Node>,
    cut: Arc<AtomicBool>,
    /// Whether the node at the other end is leaving.
    leaving: Arc<AtomicBool>,
    /// It hears of no purge.
    deaf: Arc<AtomicBool>,
    /// It speaks a protocol that has no purges.
    mute: Arc<AtomicBool>,
    /// Bytes of bodies that came over links to this node.
    carried: Arc<AtomicU64>,
    /// What the last question to this node allowed to be sent ahead; zero for the usual.
    ahead: Arc<AtomicU64>,
}

/// A reader of a body of 5 MiB that has taken the first one, and fell out of the window while another one took all.
async fn left_behind(node: &Arc<Node>, origin: &Scripted, tag: &str, content_length: Option<u64>) -> Following {
    let gate = Gate::new();
    let mut script = Script::new().hold(&gate).then_head(200, &[FRESH, ("ETag", tag)], content_length);
    for _ in 0..5 {
        script = script.chunk(vec![b'x'; 1 << 20]);
    }
    origin.on("/a", script);
    let ask = || {
        let node = node.clone();
        tokio::spawn(async move { node.get("a").await })
    };
    let fast = ask();
    origin.arrived("/a", 1).await;
    let slow = ask();
    while node.group.stats.loads_collapsed.value() < 1 {
        tokio::task::yield_now().await;
    }
    gate.open();
    let Payload::Stream(_, mut slow) = slow.await.unwrap().payload else { panic!("a stream") };
    assert_eq!(slow.chunk().await.unwrap().unwrap().len(), 1 << 20);
    assert_eq!(told(fast.await.unwrap()).await.len(), "miss 200 ".len() + (5 << 20));
    slow
}

/// A body that counts what is taken of it.
struct Carried(Box<dyn BodyStream>, Arc<AtomicU64>);

#[async_trait]
impl BodyStream for Carried {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let chunk = self.0.chunk().await?;
        self.1.fetch_add(chunk.as_ref().map_or(0, Bytes::len) as u64, Ordering::SeqCst);
        Ok(chunk)
    }
}

#[async_trait]
impl Source for Link {
    async fn fetch(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        self.fetch_with(ask, Aside::default()).await
    }

    async fn fetch_with(&self, ask: &Ask, aside: Aside<'_>) -> Result<Fetched, FetchError> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(FetchError::unreachable("cut"));
        }
        self.ahead.store(aside.ahead_bytes_max.map_or(0, u64::from), Ordering::SeqCst);
        let request = Request::from_ask(&self.to.group, ask);
        let fetched = self.to.cache.get_as_owner(&self.to.group, &request, aside).await?;
        assert!(fetched.hop.is_some(), "an owner says what it answers with");
        Ok(Fetched { body: Box::new(Carried(fetched.body, self.carried.clone())), ..fetched })
    }
}

/// What a node does with peers' questions beside answering is what `server::owner` does.
#[async_trait]
impl crate::fleet::Peer for Link {
    fn begin(self: Arc<Self>, ask: &Ask, have: EntryId, then: Then) {
        let cut = self.cut.load(Ordering::SeqCst);
        let found = self.to.cache.find_for_peer(&self.to.group, ask, have, &|_, _| true).filter(|_| !cut);
        let Some(Whole { status, fields, hop, body }) = found else {
            return then(Begun::Later(Box::new(Unasked { peer: self, ask: ask.clone(), have })));
        };
        self.carried.fetch_add(body.len() as u64, Ordering::SeqCst);
        let (content_length, hop) = (Some(body.len() as u64), Some(hop));
        let head = Fetched { status, fields, content_length, close_delimited: false, hop, body: Box::new(NoBody) };
        then(Begun::Whole(head, body));
    }

    async fn purge(&self, notice: &Notice) -> Result<Reply, PurgeFailure> {
        if self.mute.load(Ordering::SeqCst) {
            return Err(PurgeFailure::Cannot);
        }
        if self.cut.load(Ordering::SeqCst) || self.deaf.load(Ordering::SeqCst) {
            return Err(FetchError::unreachable("cut").into());
        }
        Ok(self.to.cache.receive_purges(notice.clone()).await)
    }

    async fn offer(&self, ask: &Ask) -> Result<(), FetchError> {
        self.to.cache.take_over(&self.to.group, ask, self.from).await
    }

    async fn replicate(&self, ask: &Ask) -> Result<(), FetchError> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(FetchError::unreachable("cut"));
        }
        self.to.cache.take_replica(&self.to.group, ask, self.from).await
    }

    async fn peek(&self, ask: &Ask) -> Result<Option<Fetched>, FetchError> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(FetchError::unreachable("cut"));
        }
        Ok(self.to.cache.peek(&self.to.group, &Request::from_ask(&self.to.group, ask)))
    }

    async fn permit(&self, group: &Arc<str>, purpose: Purpose) -> Result<Fetched, FetchError> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(FetchError::unreachable("cut"));
        }
        assert_eq!(*group, self.to.group.name);
        let answer = self.to.cache.grant_permit(&self.to.group, purpose, self.from).await?;
        let body = Box::new(Cuttable { body: answer.body, cut: self.cut.clone() });
        Ok(Fetched { body, ..answer })
    }

    fn incarnation(&self) -> Option<u64> {
        Some(self.to.cache.incarnation())
    }

    fn health(&self) -> Health {
        if self.leaving.load(Ordering::SeqCst) { Health::Draining } else { Health::Up }
    }
}

/// A body that breaks when its link is cut.
struct Cuttable {
    body: Box<dyn BodyStream>,
    cut: Arc<AtomicBool>,
}

#[async_trait]
impl BodyStream for Cuttable {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let cut = async {
            while !self.cut.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            chunk = self.body.chunk() => chunk,
            () = cut => Err(FetchError::broken("cut")),
        }
    }
}

/// Nodes around one origin. `views[n]` is the list of nodes that node `n` believes in.
struct TestFleet {
    nodes: Vec<Arc<Node>>,
    down: Vec<Arc<AtomicBool>>,
    leaving: Vec<Arc<AtomicBool>>,
    deaf: Vec<Arc<AtomicBool>>,
    mute: Vec<Arc<AtomicBool>>,
    /// Bytes of bodies that came over the hop from each.
    carried: Vec<Arc<AtomicU64>>,
    /// See [`Link`].
    ahead: Vec<Arc<AtomicU64>>,
    origin: Scripted,
}

impl TestFleet {
    fn new(size: usize) -> Self {
        let everybody: Vec<usize> = (0..size).collect();
        TestFleet::with_views(size, |_| everybody.clone())
    }

    fn with_views(size: usize, view: impl Fn(usize) -> Vec<usize>) -> Self {
        TestFleet::build(size, view, None)
    }

    fn build(size: usize, view: impl Fn(usize) -> Vec<usize>, limit: Option<crate::group::Limit>) -> Self {
        let origin = Scripted::new();
        let rules = || crate::freshness::Rules { jitter_percent: 0.0, ..Default::default() };
        let node = |index| Arc::new(Node::limited(&origin, rules(), index as u64 + 1, limit));
        let nodes: Vec<_> = (0..size).map(node).collect();
        let flags = || (0..size).map(|_| Arc::new(AtomicBool::new(false))).collect::<Vec<_>>();
        let (down, leaving, deaf, mute) = (flags(), flags(), flags(), flags());
        let numbers = || (0..size).map(|_| Arc::new(AtomicU64::new(0))).collect::<Vec<_>>();
        let (carried, ahead) = (numbers(), numbers());
        let fleet = TestFleet { nodes, down, leaving, deaf, mute, carried, ahead, origin };
        (0..size).for_each(|node| fleet.see(node, &view(node)));
        fleet
    }

    /// From now on `node` believes in these.
    fn see(&self, node: usize, seen: &[usize]) {
        self.nodes[node].cache.set_fleet(self.view(node, seen));
    }

    /// What `node` sees of the fleet when it believes in these.
    fn view(&self, node: usize, seen: &[usize]) -> Fleet {
        let peers: Vec<_> = seen.iter().map(|peer| RingPeer::new(format!("http://node-{peer}"))).collect();
        let ring = Ring::new(RingKind::Groupcache, 50, &peers);
        let cache = &self.nodes[node].cache;
        let links = seen.iter().map(|&peer| {
            let link = Link {
                from: cache.incarnation(),
                to: self.nodes[peer].clone(),
                cut: self.down[peer].clone(),
                leaving: self.leaving[peer].clone(),
                deaf: self.deaf[peer].clone(),
                mute: self.mute[peer].clone(),
                carried: self.carried[peer].clone(),
                ahead: self.ahead[peer].clone(),
            };
            (peer != node).then(|| Arc::new(link) as Arc<dyn crate::fleet::Peer>)
        });
        let fleet = Fleet::new(ring, links.collect(), |key| Some(key.into()));
        fleet.named(seen.iter().map(ToString::to_string).collect())
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
