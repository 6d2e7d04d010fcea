//! Hit ratios: traces of requests replayed through the store and, beside it, through reference caches.
//!
//! ```text
//! cargo bench --bench replay                                    three synthetic traces, one node
//! cargo bench --bench replay -- --fleet                         the same, through a fleet of five
//! cargo bench --bench replay -- --trace FILE [--fleet]          a trace of your own: lines of "key size seconds"
//! cargo bench --bench replay -- --quick                         a tenth of the requests
//! ```
//! A size is a share of the bytes of all objects in the trace. The first half of a trace warms the cache, the second is
//! counted. Every cache counts the object and its key, none its bookkeeping, and none takes an object larger than a
//! quarter of itself, which is the store's rule.

#[path = "support/random.rs"]
mod random;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use groupcache_proxy::clock::Now;
use groupcache_proxy::key::{GroupId, HashedKey};
use groupcache_proxy::memory::{Charge, Ledger, allocated_bytes};
use groupcache_proxy::ring::{REPLICAS_DEFAULT, Ring, RingKind, RingPeer};
use groupcache_proxy::store::promote::Popularity;
use groupcache_proxy::store::{Eviction, Role, Settings, Store, Weighed};
use random::{Random, Zipf};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let requests = if has("--quick") { REQUESTS / 10 } else { REQUESTS };
    let traces = match arguments.iter().position(|argument| argument == "--trace") {
        Some(at) => match arguments.get(at + 1).map(|path| Trace::read(Path::new(path))) {
            Some(Ok(trace)) => vec![trace],
            Some(Err(error)) => return eprintln!("{error}"),
            None => return eprintln!("--trace needs a file with lines of \"key size seconds\""),
        },
        None => vec![
            Trace::zipf("Zipf 1.0", 1.0, requests),
            Trace::zipf("Zipf 0.8", 0.8, requests),
            Trace::scan_polluted(requests),
            Trace::thumbnails(requests),
        ],
    };
    for trace in &traces {
        if has("--fleet") {
            fleet_table(trace);
        } else {
            one_node_table(trace);
        }
    }
}

/// Hit ratios of one cache.
fn one_node_table(trace: &Trace) {
    println!("\n{}", trace.describe());
    println!(
        "| size | LRU | S3-FIFO | over LRU | LFU | SIEVE | LRU bytes | S3-FIFO bytes |\n|---|---|---|---|---|---|---|---|"
    );
    for percent in PERCENTS {
        let capacity = trace.capacity(percent);
        let lru = replay(trace, &mut StoreCache::new(Eviction::Lru, capacity));
        let s3_fifo = replay(trace, &mut StoreCache::new(Eviction::S3Fifo, capacity));
        let lfu = replay(trace, &mut Lfu::new(capacity));
        let sieve = replay(trace, &mut Sieve::new(capacity));
        println!(
            "| {percent} % | {:.1} % | {:.1} % | {:+.1} | {:.1} % | {:.1} % | {:.1} % | {:.1} % |",
            lru.objects,
            s3_fifo.objects,
            s3_fifo.objects - lru.objects,
            lfu.objects,
            sieve.objects,
            lru.bytes,
            s3_fifo.bytes
        );
    }
}

/// What five nodes with one ring make of the same bytes, by the rule that decides about hot copies.
fn fleet_table(trace: &Trace) {
    println!("\n{}; five nodes, each with a fifth of the size; S3-FIFO", trace.describe());
    println!(
        "| size | rule of hot copies | answered by the fleet | without a hop | hot copies stored | hits per copy | hot share of the bytes |\n|---|---|---|---|---|---|---|"
    );
    for percent in PERCENTS {
        for rule in HotCopies::ALL {
            let outcome = replay_fleet(trace, rule, trace.capacity(percent) / NODES);
            println!(
                "| {percent} % | {} | {:.1} % | {:.1} % | {} | {:.1} | {:.1} % |",
                rule.name(),
                outcome.fleet,
                outcome.local,
                outcome.copies,
                outcome.hits_per_copy,
                outcome.hot_bytes_share
            );
        }
    }
}

/// A sequence of requests, the objects numbered from zero.
struct Trace {
    name: String,
    requests: Vec<Asked>,
    footprint_bytes: u64,
    objects: usize,
}

#[derive(Clone, Copy)]
struct Asked {
    object: u32,
    bytes: u32,
    milliseconds: u64,
}

impl Trace {
    fn new(name: impl Into<String>, requests: Vec<Asked>) -> Trace {
        let mut sizes: HashMap<u32, u32> = HashMap::new();
        for asked in &requests {
            sizes.insert(asked.object, asked.bytes);
        }
        let footprint_bytes = sizes.values().map(|&bytes| weight(bytes) as u64).sum();
        Trace { name: name.into(), requests, footprint_bytes, objects: sizes.len() }
    }

    /// Equal objects, independent requests, the popularity of rank r proportional to r^-exponent.
    fn zipf(name: &str, exponent: f64, requests: usize) -> Trace {
        let zipf = Zipf::new(KEYS, exponent);
        let mut random = Random(13);
        let asked = |number| Asked { object: zipf.rank(&mut random), bytes: 4096, milliseconds: number as u64 };
        Trace::new(name, (0..requests).map(asked).collect())
    }

    /// Zipf 1.0, and twice a crawler that asks for a fifth of as many objects, once each and in order, at every other request.
    fn scan_polluted(requests: usize) -> Trace {
        let zipf = Zipf::new(KEYS, 1.0);
        let mut random = Random(17);
        let scans = [requests / 2, requests * 3 / 4];
        let mut scanned = KEYS as u32;
        let asked = (0..requests).map(|number| {
            let scanning =
                scans.iter().any(|&start| (start..start + requests / 10).contains(&number)) && number % 2 == 0;
            let object = if scanning {
                scanned += 1;
                scanned
            } else {
                zipf.rank(&mut random)
            };
            Asked { object, bytes: 4096, milliseconds: number as u64 }
        });
        Trace::new("Zipf 1.0 with two scans", asked.collect())
    }

    /// Albums: somebody opens one (newer ones more often) and sees its thumbnails in order; some pictures are then opened large.
    fn thumbnails(requests: usize) -> Trace {
        let mut random = Random(19);
        let zipf = Zipf::new(ALBUMS, 0.9);
        let mut asked = Vec::with_capacity(requests);
        while asked.len() < requests {
            // A new album every 2,000 requests: what was the newest slowly becomes old.
            let newest = ALBUMS as u32 + (asked.len() / 2_000) as u32;
            let album = newest - zipf.rank(&mut random);
            for picture in 0..PICTURES {
                let milliseconds = asked.len() as u64;
                let thumbnail = (album * PICTURES + picture) * 2;
                asked.push(Asked { object: thumbnail, bytes: size(thumbnail, 3_000, 12_000), milliseconds });
                if random.below(20) == 0 {
                    asked.push(Asked {
                        object: thumbnail + 1,
                        bytes: size(thumbnail + 1, 40_000, 300_000),
                        milliseconds,
                    });
                }
                if random.below(12) == 0 {
                    break;
                }
            }
        }
        asked.truncate(requests);
        Trace::new("thumbnails", asked)
    }

    /// Lines of `key size seconds`, separated by white space or commas; lines that begin with `#` are left out.
    fn read(path: &Path) -> Result<Trace, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let mut requests = Vec::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let mut parts = line.split([' ', '\t', ',']).filter(|part| !part.is_empty());
            let mut asked = || {
                let key = parts.next()?;
                let next = numbers.len() as u32;
                let object = *numbers.entry(key).or_insert(next);
                let bytes = parts.next()?.parse::<u64>().ok()?.min(u64::from(u32::MAX)) as u32;
                let milliseconds = (parts.next()?.parse::<f64>().ok()? * 1000.0) as u64;
                Some(Asked { object, bytes, milliseconds })
            };
            requests.push(asked().ok_or(format!("{}:{}: expected \"key size seconds\"", path.display(), index + 1))?);
        }
        Ok(Trace::new(path.display().to_string(), requests))
    }

    fn describe(&self) -> String {
        let megabytes = self.footprint_bytes as f64 / 1e6;
        format!("{}: {} requests for {} objects of {megabytes:.0} MB", self.name, self.requests.len(), self.objects)
    }

    fn capacity(&self, percent: f64) -> usize {
        (self.footprint_bytes as f64 * percent / 100.0) as usize
    }
}

/// A size that depends on the object alone.
fn size(object: u32, least: u32, most: u32) -> u32 {
    let mut random = Random(u64::from(object) + 1);
    random.next();
    least + random.below(u64::from(most - least)) as u32
}

/// Share of the counted requests and of their bytes, in percent.
struct Ratios {
    objects: f64,
    bytes: f64,
}

trait Cache {
    /// Says whether the object was there; afterwards it is, if the cache wants it.
    fn ask(&mut self, object: u32, bytes: u32) -> bool;
}

fn replay(trace: &Trace, cache: &mut impl Cache) -> Ratios {
    let half = trace.requests.len() / 2;
    let (mut hits, mut hit_bytes, mut bytes) = (0_u64, 0_u64, 0_u64);
    for (number, asked) in trace.requests.iter().enumerate() {
        let hit = cache.ask(asked.object, asked.bytes);
        if number >= half {
            bytes += u64::from(asked.bytes);
            hits += u64::from(hit);
            hit_bytes += if hit { u64::from(asked.bytes) } else { 0 };
        }
    }
    Ratios { objects: percent(hits, (trace.requests.len() - half) as u64), bytes: percent(hit_bytes, bytes) }
}

fn percent(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64 * 100.0
}

/// What an object takes in every cache: itself and its key's block.
fn weight(bytes: u32) -> usize {
    bytes as usize + allocated_bytes(KEY_BYTES)
}

fn key(object: u32) -> [u8; KEY_BYTES] {
    let mut key = *b"/objects/00000000";
    for (place, digit) in key[9..].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(object >> (28 - 4 * place) & 15) as usize];
    }
    key
}

/// A value that weighs without taking memory.
struct Weight {
    key: [u8; KEY_BYTES],
    charge: Charge,
}

impl Weighed for Weight {
    fn key(&self) -> &[u8] {
        &self.key
    }

    fn charged_bytes(&self) -> usize {
        self.charge.bytes()
    }
}

/// The store of this project as a cache.
struct StoreCache(Arc<Store<Arc<Weight>>>);

impl StoreCache {
    fn new(eviction: Eviction, capacity: usize) -> Self {
        // The cap and not the limit, so that bookkeeping does not take part.
        let settings = Settings { eviction, caps: vec![(GROUP, capacity)] };
        StoreCache(Store::new(Ledger::new(1 << 40), &settings, None))
    }

    fn put(&self, role: Role, object: u32, bytes: u32) {
        let value = Arc::new(Weight { key: key(object), charge: self.0.ledger().charge(weight(bytes)) });
        self.0.insert(role, &HashedKey::new(GROUP, &value.key), value.clone());
    }
}

impl Cache for StoreCache {
    fn ask(&mut self, object: u32, bytes: u32) -> bool {
        let bytes_of_key = key(object);
        let key = HashedKey::new(GROUP, &bytes_of_key);
        let hit = self.0.find(&key).is_some();
        if !hit {
            self.put(Role::Main, object, bytes);
        }
        hit
    }
}

/// The least often used gives way, of several the one that is longest here; counts end with the entry.
struct Lfu {
    capacity: usize,
    used: usize,
    entries: HashMap<u32, (u32, u64, usize)>,
    order: BTreeSet<(u32, u64, u32)>,
    arrivals: u64,
}

impl Lfu {
    fn new(capacity: usize) -> Self {
        Lfu { capacity, used: 0, entries: HashMap::new(), order: BTreeSet::new(), arrivals: 0 }
    }
}

impl Cache for Lfu {
    fn ask(&mut self, object: u32, bytes: u32) -> bool {
        if let Some((uses, arrival, _)) = self.entries.get_mut(&object) {
            self.order.remove(&(*uses, *arrival, object));
            *uses += 1;
            self.order.insert((*uses, *arrival, object));
            return true;
        }
        let weight = weight(bytes);
        if weight > self.capacity / OBJECT_SHARE {
            return false;
        }
        while self.used + weight > self.capacity {
            let Some((_, _, victim)) = self.order.pop_first() else { break };
            self.used -= self.entries.remove(&victim).map_or(0, |(_, _, weight)| weight);
        }
        self.arrivals += 1;
        self.order.insert((1, self.arrivals, object));
        self.entries.insert(object, (1, self.arrivals, weight));
        self.used += weight;
        false
    }
}

/// SIEVE (Zhang et al., NSDI 2024): one queue by arrival, a mark for a hit, and a hand that goes from old to new, takes
/// marks away and evicts what has none.
struct Sieve {
    capacity: usize,
    used: usize,
    /// By arrival: object, weight, mark.
    queue: std::collections::BTreeMap<u64, (u32, usize, bool)>,
    arrivals: HashMap<u32, u64>,
    hand: u64,
    next: u64,
}

impl Sieve {
    fn new(capacity: usize) -> Self {
        Sieve { capacity, used: 0, queue: Default::default(), arrivals: HashMap::new(), hand: 0, next: 0 }
    }

    fn evict(&mut self) {
        loop {
            let Some((&at, entry)) = self.queue.range_mut(self.hand..).next() else {
                self.hand = 0;
                continue;
            };
            self.hand = at + 1;
            if std::mem::take(&mut entry.2) {
                continue;
            }
            let (object, weight, _) = *entry;
            self.queue.remove(&at);
            self.arrivals.remove(&object);
            self.used -= weight;
            return;
        }
    }
}

impl Cache for Sieve {
    fn ask(&mut self, object: u32, bytes: u32) -> bool {
        if let Some(entry) = self.arrivals.get(&object).and_then(|at| self.queue.get_mut(at)) {
            entry.2 = true;
            return true;
        }
        let weight = weight(bytes);
        if weight > self.capacity / OBJECT_SHARE {
            return false;
        }
        while self.used + weight > self.capacity {
            self.evict();
        }
        self.next += 1;
        self.queue.insert(self.next, (object, weight, false));
        self.arrivals.insert(object, self.next);
        self.used += weight;
        false
    }
}

/// Which answers of an owner the node that asked keeps.
#[derive(Clone, Copy)]
enum HotCopies {
    None,
    /// One in ten, as groupcache does.
    Coin,
    All,
    /// This project's measured popularity.
    Popular,
}

impl HotCopies {
    const ALL: [HotCopies; 4] = [HotCopies::None, HotCopies::Coin, HotCopies::All, HotCopies::Popular];

    fn name(self) -> &'static str {
        match self {
            HotCopies::None => "none",
            HotCopies::Coin => "one in ten (groupcache)",
            HotCopies::All => "all",
            HotCopies::Popular => "by popularity (ours)",
        }
    }
}

struct Node {
    cache: StoreCache,
    popularity: Popularity,
}

struct FleetOutcome {
    /// Answered by some memory of the fleet, in percent.
    fleet: f64,
    /// Answered by the memory of the node that was asked.
    local: f64,
    copies: u64,
    hits_per_copy: f64,
    hot_bytes_share: f64,
}

fn replay_fleet(trace: &Trace, rule: HotCopies, capacity: usize) -> FleetOutcome {
    let peers: Vec<RingPeer> = (0..NODES).map(|node| RingPeer::new(format!("http://10.0.0.{node}:8082"))).collect();
    let ring = Ring::new(RingKind::Balanced, REPLICAS_DEFAULT, &peers);
    let nodes: Vec<Node> = (0..NODES)
        .map(|_| {
            let cache = StoreCache::new(Eviction::S3Fifo, capacity);
            let popularity = Popularity::new(cache.0.ledger());
            Node { cache, popularity }
        })
        .collect();
    let mut random = Random(23);
    let half = trace.requests.len() / 2;
    let (mut local, mut loads, mut copies, mut hot_hits) = (0_u64, 0_u64, 0_u64, 0_u64);
    for (number, asked) in trace.requests.iter().enumerate() {
        // A request a millisecond at the whole fleet: 10,000 within the popularity's window.
        let now = Now { monotonic: Duration::from_millis(asked.milliseconds), wall_seconds: 0 };
        let counted = u64::from(number >= half);
        let bytes_of_key = key(asked.object);
        let key = HashedKey::new(GROUP, &bytes_of_key);
        let here = &nodes[random.below(NODES as u64) as usize];
        let owner = &nodes[ring.owner(key.bytes()).unwrap_or(0)];
        let owns = std::ptr::eq(here, owner);
        if !owns {
            here.popularity.observe(key.hash(), now);
        }
        if let Some((_, role)) = here.cache.0.find(&key) {
            local += counted;
            hot_hits += counted * u64::from(role == Role::Hot);
            continue;
        }
        if owns || owner.cache.0.find(&key).is_none() {
            loads += counted;
            owner.cache.put(Role::Main, asked.object, asked.bytes);
        }
        let keep = !owns
            && match rule {
                HotCopies::None => false,
                HotCopies::Coin => random.below(10) == 0,
                HotCopies::All => true,
                HotCopies::Popular => {
                    here.popularity.deserves_hot_copy(key.hash(), here.cache.0.hot_victim(GROUP), now)
                }
            };
        if keep {
            copies += counted;
            here.cache.put(Role::Hot, asked.object, asked.bytes);
        }
    }
    let totals = nodes.iter().map(|node| node.cache.0.totals());
    let (hot, main) = totals.fold((0, 0), |sums, totals| (sums.0 + totals.hot_bytes, sums.1 + totals.main_bytes));
    let counted = (trace.requests.len() - half) as u64;
    FleetOutcome {
        fleet: percent(counted - loads, counted),
        local: percent(local, counted),
        copies,
        hits_per_copy: hot_hits as f64 / copies.max(1) as f64,
        hot_bytes_share: percent(hot as u64, (hot + main) as u64),
    }
}

const GROUP: GroupId = GroupId(0);
const KEY_BYTES: usize = 17;
const NODES: usize = 5;
/// Shares of the bytes of all objects.
const PERCENTS: [f64; 6] = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0];
const KEYS: usize = 200_000;
const REQUESTS: usize = 2_000_000;
const ALBUMS: usize = 10_000;
const PICTURES: u32 = 40;
/// The store takes no object larger than its group's cap divided by this.
const OBJECT_SHARE: usize = 4;
