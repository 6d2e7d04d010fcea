//! The simulated origin: every key has a version, every body says of which key and version it is, and every fetch is recorded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use groupcache_proxy::fields::Fields;
use groupcache_proxy::source::{Ask, BodyStream, FetchError, Fetched, Method, ReadyBody, Source};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::network::{Network, ORIGIN, Place};
use crate::purges::tags_of;
use crate::random::Random;
use crate::trace::{Trace, event};

/// What a key's first letter says of its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Fresh for longer than any run.
    Long,
    /// The same with a body of many chunks.
    Big,
    /// Fresh for two seconds, with an entity tag to validate by.
    Short,
    /// For the one who asks alone.
    Private,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Long, Kind::Big, Kind::Short, Kind::Private];

    pub fn of(key: &[u8]) -> Kind {
        match key.first() {
            Some(b'b') => Kind::Big,
            Some(b's') => Kind::Short,
            Some(b'p') => Kind::Private,
            _ => Kind::Long,
        }
    }

    pub fn key(self, number: usize) -> Bytes {
        let letter = match self {
            Kind::Long => 'l',
            Kind::Big => 'b',
            Kind::Short => 's',
            Kind::Private => 'p',
        };
        format!("{letter}/{number}").into()
    }

    fn cache_control(self) -> &'static str {
        match self {
            Kind::Long | Kind::Big => "max-age=86400",
            Kind::Short => "max-age=2",
            Kind::Private => "private",
        }
    }
}

/// How long answers of [`Kind::Short`] are fresh.
pub const SHORT_LIFETIME: Duration = Duration::from_secs(2);

/// The one origin of a run.
pub struct Origin {
    network: Arc<Network>,
    trace: Arc<Trace>,
    random: Random,
    manners: Manners,
    state: Mutex<State>,
}

/// How the origin behaves.
#[derive(Clone, Debug)]
pub struct Manners {
    /// Milliseconds to the head, usually; where that is none at all, bodies take no time either.
    pub head_milliseconds: std::ops::Range<u64>,
    /// Of a hundred answers so many take the longest time that [`HEAD_MAX`] allows.
    pub slow_percent: u64,
    /// Of a hundred questions so many fail before the head, while the script does not want it otherwise.
    pub fail_percent: u64,
    /// Of a hundred bodies so many break.
    pub break_percent: u64,
    /// Whether fetches are kept one by one, for the checks of single loads.
    pub records: bool,
    /// How many questions of living nodes may be there at once, where that is promised.
    pub at_once_max: Option<usize>,
}

/// The longest that the origin takes for a head.
pub const HEAD_MAX: Duration = Duration::from_secs(2);

#[derive(Default)]
struct State {
    versions: BTreeMap<Bytes, Vec<(Instant, u64)>>,
    fetches: Vec<Fetch>,
    failing: bool,
    healed: bool,
    /// When the origin last did not answer as it should.
    last_trouble: Option<Instant>,
    /// The questions that are there, with the lives that asked.
    present: BTreeMap<u64, Arc<AtomicBool>>,
    begun: u64,
}

/// One question to the origin.
#[derive(Clone, Debug)]
pub struct Fetch {
    pub key: Bytes,
    pub method: Method,
    pub node: Place,
    /// Which life of the node asked.
    pub incarnation: u64,
    pub begun: Instant,
    /// The version that it was answered with.
    pub version: Option<u64>,
    pub ended: Option<(Instant, Ended)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The last byte was taken, or there was none.
    Whole,
    /// It failed as the origin wanted.
    Failed,
    /// The node gave it up.
    Abandoned,
}

impl Origin {
    pub fn new(seed: u64, network: Arc<Network>, trace: Arc<Trace>, manners: Manners) -> Arc<Self> {
        let random = Random::new(seed, "origin");
        Arc::new(Origin { network, trace, random, manners, state: Mutex::default() })
    }

    /// The version of a key now; the first is 1.
    pub fn version(&self, key: &[u8]) -> u64 {
        self.state.lock().versions.get(key).and_then(|versions| versions.last()).map_or(1, |(_, version)| *version)
    }

    /// Changes what is under a key; returns the new version.
    pub fn change(&self, key: &Bytes) -> u64 {
        let version = self.version(key) + 1;
        self.state.lock().versions.entry(key.clone()).or_default().push((Instant::now(), version));
        version
    }

    /// The oldest version that was current at some time since `since`.
    pub fn oldest_since(&self, key: &[u8], since: Instant) -> u64 {
        let state = self.state.lock();
        let Some(versions) = state.versions.get(key) else { return 1 };
        versions.iter().rev().find(|(at, _)| *at <= since).map_or(1, |(_, version)| *version)
    }

    /// Lets all questions fail, or none.
    pub fn set_failing(&self, failing: bool) {
        let mut state = self.state.lock();
        if state.failing || failing {
            state.last_trouble = Some(Instant::now());
        }
        state.failing = failing;
    }

    /// From now on it answers everything, and soon.
    pub fn heal(&self) {
        self.set_failing(false);
        self.state.lock().healed = true;
    }

    fn is_healed(&self) -> bool {
        self.state.lock().healed
    }

    /// When the origin last did not answer as it should; now, while it does not.
    pub fn last_trouble(&self) -> Option<Instant> {
        let state = self.state.lock();
        if state.failing { Some(Instant::now()) } else { state.last_trouble }
    }

    /// All questions so far.
    pub fn fetches(&self) -> Vec<Fetch> {
        self.state.lock().fetches.clone()
    }

    /// How many questions there were.
    pub fn begun(&self) -> u64 {
        self.state.lock().begun
    }

    fn trouble(&self) {
        self.state.lock().last_trouble = Some(Instant::now());
    }
}

/// The body of a key's version: its name, then bytes that follow from it.
pub fn body_of(key: &[u8], version: u64) -> Vec<u8> {
    let name = format!("{}|{version}|", String::from_utf8_lossy(key));
    let mixed = key.iter().fold(version, |mixed, byte| mixed.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let length = match Kind::of(key) {
        Kind::Big => 40_000 + mixed % 200_000,
        _ => 20 + mixed % 3000,
    } as usize;
    let mut body = name.into_bytes();
    let mut next = mixed as u8;
    while body.len() < length {
        next = next.wrapping_mul(5).wrapping_add(113);
        body.push(next);
    }
    body
}

/// The version that a body of `key` says it is of; `None` when it is not whole, or another one.
pub fn version_in(key: &[u8], body: &[u8]) -> Option<u64> {
    let rest = body.strip_prefix(key)?.strip_prefix(b"|")?;
    let digits = rest.iter().position(|byte| *byte == b'|')?;
    let version = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
    (body == body_of(key, version)).then_some(version)
}

/// The version that an entity tag names.
pub fn version_of_tag(tag: &[u8]) -> Option<u64> {
    std::str::from_utf8(tag.strip_prefix(b"\"")?.strip_suffix(b"\"")?).ok()?.parse().ok()
}

/// The origin as one life of one node reaches it.
pub struct OriginOf {
    pub origin: Arc<Origin>,
    pub node: Place,
    pub incarnation: u64,
    pub alive: Arc<AtomicBool>,
}

impl OriginOf {
    fn is_dead(&self) -> bool {
        !self.alive.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Source for OriginOf {
    async fn fetch(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        if self.is_dead() {
            return Err(FetchError::unreachable("this node is dead"));
        }
        let (origin, network) = (&self.origin, &self.origin.network);
        let begun = Instant::now();
        network.running(self.node).await;
        let mut record = Record::begin(self, ask, begun);
        let (random, manners) = (&origin.random, &origin.manners);
        let slow = random.percent(manners.slow_percent) && !origin.is_healed();
        let there = Duration::from_millis(random.number(manners.head_milliseconds.clone()) / 2);
        if !there.is_zero() {
            tokio::time::sleep(there).await;
        }
        random.jostle(3).await;
        let cut_off = !network.passes(self.node, ORIGIN) && !network.is_paused(self.node);
        if origin.state.lock().failing || cut_off || (random.percent(manners.fail_percent) && !origin.is_healed()) {
            origin.trouble();
            record.end(Ended::Failed);
            network.running(self.node).await;
            return Err(FetchError::refused(502, "the origin does not answer"));
        }
        let version = origin.version(&ask.key);
        record.says(version);
        let back = if slow { HEAD_MAX - there } else { there };
        if !back.is_zero() {
            tokio::time::sleep(back).await;
        }
        // Sometimes as long as a purge takes from its beginning to its acknowledgement.
        random.jostle(if random.percent(20) { 80 } else { 3 }).await;
        network.running(self.node).await;
        if self.is_dead() {
            return Err(FetchError::unreachable("this node is dead"));
        }
        event!(origin.trace, "origin to node {}: {} version {version}", self.node, text(&ask.key));
        let tag = format!("\"{version}\"");
        let kind = Kind::of(&ask.key);
        let tags = tags_of(&ask.key, version);
        let pairs = [("ETag", &tag[..]), ("Cache-Control", kind.cache_control()), ("Surrogate-Key", &tags)];
        let fields = Fields::from_pairs(pairs).map_err(|_| FetchError::refused(502, "malformed"))?;
        let mut fetched = Fetched {
            status: 200,
            fields,
            content_length: None,
            close_delimited: false,
            hop: None,
            body: Box::new(ReadyBody::default()),
        };
        if ask.fields.get("if-none-match") == Some(tag.as_bytes()) {
            fetched.status = 304;
            record.end(Ended::Whole);
            return Ok(fetched);
        }
        let body = Bytes::from(body_of(&ask.key, version));
        // Every third body comes without its length.
        fetched.content_length = (version % 3 != 0).then_some(body.len() as u64);
        if ask.method == Method::Head {
            record.end(Ended::Whole);
            return Ok(fetched);
        }
        let breaks = random.percent(manners.break_percent) && !origin.is_healed();
        let breaks_at = breaks.then(|| random.index(body.len()));
        fetched.body = Box::new(OriginBody { rest: body, breaks_at, record, taken: 0 });
        Ok(fetched)
    }
}

struct OriginBody {
    rest: Bytes,
    breaks_at: Option<usize>,
    record: Record,
    taken: usize,
}

#[async_trait]
impl BodyStream for OriginBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let origin = self.record.origin.clone();
        origin.random.jostle(2).await;
        if self.taken > 0 && origin.manners.head_milliseconds.end > 1 && origin.random.percent(30) {
            tokio::time::sleep(Duration::from_millis(origin.random.number(1..8))).await;
        }
        origin.network.running(self.record.node).await;
        if !self.record.alive.load(Ordering::SeqCst) {
            return Err(FetchError::broken("this node is dead"));
        }
        if self.breaks_at.is_some_and(|at| at <= self.taken) {
            origin.trouble();
            self.record.end(Ended::Failed);
            return Err(FetchError::broken("the origin broke off"));
        }
        let bytes = (1 + origin.random.index(16 * 1024)).min(self.rest.len());
        self.taken += bytes;
        let chunk = self.rest.split_to(bytes);
        if self.rest.is_empty() && self.breaks_at.is_none() {
            self.record.end(Ended::Whole);
        }
        Ok((!chunk.is_empty()).then_some(chunk))
    }
}

/// The record of one fetch; one that is dropped before its end was given up.
struct Record {
    origin: Arc<Origin>,
    alive: Arc<AtomicBool>,
    node: Place,
    question: u64,
    number: usize,
    ended: bool,
}

impl Record {
    fn begin(of: &OriginOf, ask: &Ask, begun: Instant) -> Self {
        let OriginOf { origin, node, incarnation, alive } = of;
        let (key, method) = (&ask.key, ask.method);
        let head = if method == Method::Head { "the head of " } else { "" };
        event!(origin.trace, "node {node} asks the origin for {head}{}", text(key));
        let mut state = origin.state.lock();
        if origin.manners.records {
            let (node, incarnation) = (*node, *incarnation);
            state.fetches.push(Fetch {
                key: key.clone(),
                method,
                node,
                incarnation,
                begun,
                version: None,
                ended: None,
            });
        }
        let number = state.fetches.len().wrapping_sub(1);
        state.begun += 1;
        let question = state.begun;
        state.present.insert(question, alive.clone());
        // What a dead node left there nobody counts any more.
        let at_once = state.present.values().filter(|alive| alive.load(Ordering::SeqCst)).count();
        drop(state);
        if let Some(limit) = origin.manners.at_once_max.filter(|limit| at_once > *limit) {
            origin.trace.broken("the origin's limit", format!("{at_once} at once, limit {limit}"));
        }
        Record { origin: origin.clone(), alive: alive.clone(), node: *node, question, number, ended: false }
    }

    fn says(&self, version: u64) {
        if self.origin.manners.records {
            self.origin.state.lock().fetches[self.number].version = Some(version);
        }
    }

    fn end(&mut self, how: Ended) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.origin.state.lock().present.remove(&self.question);
        if self.origin.manners.records {
            self.origin.state.lock().fetches[self.number].ended = Some((Instant::now(), how));
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.end(Ended::Abandoned);
    }
}

/// A key in words.
pub fn text(key: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(key)
}
