//! What the store costs: a hit, a miss, an entry that comes while another goes, a question to the popularity sketch.
//!
//! `cargo bench --bench store` measures these. With `--features compare-engines -- --compare` it prints the store beside
//! foyer instead: cost of a hit, bytes of bookkeeping per entry, hit ratio on Zipf 1.0.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "it measures, and ends when something is wrong"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use groupcache_proxy::clock::Now;
use groupcache_proxy::key::{GroupId, HashedKey};
use groupcache_proxy::memory::{Charge, Ledger};
use groupcache_proxy::store::promote::Popularity;
use groupcache_proxy::store::{Eviction, Role, Settings, Store, Weighed};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A value that costs nothing but its charge, so that the store is measured and not the body.
struct Object {
    key: [u8; 24],
    charge: Charge,
}

impl Weighed for Object {
    fn key(&self) -> &[u8] {
        &self.key
    }

    fn charged_bytes(&self) -> usize {
        self.charge.bytes()
    }
}

const GROUP: GroupId = GroupId(0);
const LIMIT_BYTES: usize = 1 << 30;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    #[cfg(feature = "compare-engines")]
    if compare::run(&arguments) {
        return;
    }
    if arguments.iter().any(|argument| argument == "--compare") {
        eprintln!("--compare needs --features compare-engines");
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    hits(&mut criterion);
    insertions(&mut criterion);
    popularity(&mut criterion);
    criterion.final_summary();
}

fn hits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("find");
    group.throughput(Throughput::Elements(1));
    for (name, eviction, entries) in [
        ("s3fifo/1000", Eviction::S3Fifo, 1_000),
        ("s3fifo/1000000", Eviction::S3Fifo, 1_000_000),
        ("lru/1000", Eviction::Lru, 1_000),
        ("lru/1000000", Eviction::Lru, 1_000_000),
    ] {
        let store = filled(eviction, entries);
        println!("find/{name}: {} bytes of bookkeeping an entry", store.totals().bookkeeping_bytes as u64 / entries);
        let mut random = Random(7);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let key = key(random.below(entries));
                black_box(store.find(&HashedKey::new(GROUP, &key)))
            });
        });
    }
    let store = filled(Eviction::S3Fifo, 1_000);
    group.bench_function("s3fifo/absent", |bencher| {
        let mut random = Random(7);
        bencher.iter(|| black_box(store.find(&HashedKey::new(GROUP, &key(1_000 + random.below(1_000))))));
    });
    group.bench_function("s3fifo/one key", |bencher| {
        bencher.iter(|| black_box(store.find(&HashedKey::new(GROUP, &key(5)))));
    });
    group.bench_function("only the key and its hash", |bencher| {
        let mut random = Random(7);
        bencher.iter(|| black_box(HashedKey::new(GROUP, &key(random.below(1_000))).hash()));
    });
    group.finish();
}

fn insertions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("insert while another gives way");
    for (name, eviction) in [("s3fifo", Eviction::S3Fifo), ("lru", Eviction::Lru)] {
        let store = Store::new(Ledger::new(64 << 20), &Settings { eviction, caps: vec![] }, None);
        let mut next = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                next += 1;
                put(&store, next, 4096)
            });
        });
    }
    group.finish();
}

fn popularity(criterion: &mut Criterion) {
    let popularity = Popularity::new(&Ledger::new(LIMIT_BYTES));
    let mut random = Random(7);
    criterion.bench_function("popularity/observe", |bencher| {
        let now = Now { monotonic: Duration::from_secs(1), wall_seconds: 0 };
        bencher.iter(|| popularity.observe(HashedKey::new(GROUP, &key(random.below(100_000))).hash(), now));
    });
    let mut windows = 0;
    criterion.bench_function("popularity/first question of a window", |bencher| {
        bencher.iter(|| {
            windows += 10;
            let now = Now { monotonic: Duration::from_secs(windows), wall_seconds: 0 };
            popularity.observe(HashedKey::new(GROUP, &key(random.below(100_000))).hash(), now)
        });
    });
}

fn filled(eviction: Eviction, entries: u64) -> Arc<Store<Arc<Object>>> {
    let store = Store::new(Ledger::new(LIMIT_BYTES), &Settings { eviction, caps: vec![] }, None);
    for number in 0..entries {
        put(&store, number, 500);
    }
    assert_eq!(store.totals().items as u64, entries);
    store
}

fn put(store: &Store<Arc<Object>>, number: u64, bytes: usize) {
    let object = Arc::new(Object { key: key(number), charge: store.ledger().charge(bytes) });
    black_box(store.insert(Role::Main, &HashedKey::new(GROUP, &key(number)), object));
}

/// 24 bytes, like a short path.
fn key(number: u64) -> [u8; 24] {
    let mut key = *b"/thumbnails/00000000.jpg";
    let mut rest = number;
    for digit in key[12..20].iter_mut().rev() {
        *digit = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
    }
    key
}

/// Xorshift: the same sequence in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[cfg(feature = "compare-engines")]
mod compare {
    //! The store beside foyer, in one process and in turn; bytes per entry each in a process of its own.

    use std::process::Command;
    use std::time::Instant;

    use foyer::{Cache, CacheBuilder, EvictionConfig, LruConfig, S3FifoConfig};

    use super::*;

    enum Engine {
        Store(Arc<Store<Arc<Object>>>),
        Foyer(Cache<Vec<u8>, Arc<Object>>, Ledger),
    }

    const ENGINES: [(&str, &str, Eviction); 4] = [
        ("store", "s3fifo", Eviction::S3Fifo),
        ("foyer", "s3fifo", Eviction::S3Fifo),
        ("store", "lru", Eviction::Lru),
        ("foyer", "lru", Eviction::Lru),
    ];

    impl Engine {
        /// An engine for `entries` entries that all weigh the same; bookkeeping is not part of the comparison here.
        fn new(name: &str, eviction: Eviction, entries: usize) -> Engine {
            let ledger = Ledger::new(1 << 40);
            if name == "store" {
                let caps = vec![(GROUP, entries * OBJECT_BYTES)];
                return Engine::Store(Store::new(ledger, &Settings { eviction, caps }, None));
            }
            let config = match eviction {
                Eviction::S3Fifo => EvictionConfig::S3Fifo(S3FifoConfig::default()),
                Eviction::Lru => EvictionConfig::Lru(LruConfig::default()),
            };
            Engine::Foyer(CacheBuilder::new(entries).with_eviction_config(config).build(), ledger)
        }

        fn find(&self, number: u64) -> Option<Arc<Object>> {
            match self {
                Engine::Store(store) => store.find(&HashedKey::new(GROUP, &key(number))).map(|found| found.0),
                Engine::Foyer(cache, _) => cache.get(&key(number)[..]).map(|entry| Arc::clone(entry.value())),
            }
        }

        fn put(&self, number: u64) {
            match self {
                Engine::Store(store) => put(store, number, OBJECT_BYTES),
                Engine::Foyer(cache, ledger) => {
                    let object = Object { key: key(number), charge: ledger.charge(OBJECT_BYTES) };
                    cache.insert(key(number).to_vec(), Arc::new(object));
                }
            }
        }
    }

    pub fn run(arguments: &[String]) -> bool {
        if let Some(at) = arguments.iter().position(|argument| argument == "--bytes-of") {
            let (name, eviction) = (arguments[at + 1].as_str(), arguments[at + 2].as_str());
            let eviction = if eviction == "lru" { Eviction::Lru } else { Eviction::S3Fifo };
            println!("{:.0}", bytes_per_entry(name, eviction));
            return true;
        }
        if !arguments.iter().any(|argument| argument == "--compare") {
            return false;
        }
        costs();
        bytes();
        ratios();
        true
    }

    fn costs() {
        for (entries, threads) in [(1_000, 1), (1_000_000, 1), (1_000, 2)] {
            println!(
                "\nfind, {entries} entries, {threads} thread(s): ns per hit, median of {ROUNDS} rounds in turn (least, most)"
            );
            let engines = ENGINES.map(|(name, _, eviction)| {
                let engine = Engine::new(name, eviction, 2 * entries);
                (0..entries as u64).for_each(|number| engine.put(number));
                engine
            });
            let mut rounds = vec![Vec::new(); ENGINES.len()];
            for _ in 0..ROUNDS {
                for (engine, times) in engines.iter().zip(&mut rounds) {
                    let start = Instant::now();
                    std::thread::scope(|scope| {
                        for thread in 0..threads {
                            scope.spawn(move || {
                                let mut random = Random(11 + thread);
                                for _ in 0..FINDS {
                                    black_box(engine.find(random.below(entries as u64)));
                                }
                            });
                        }
                    });
                    times.push(start.elapsed().as_nanos() as f64 / FINDS as f64);
                }
            }
            for ((name, eviction, _), mut times) in ENGINES.into_iter().zip(rounds) {
                times.sort_by(f64::total_cmp);
                println!(
                    "  {name:6} {eviction:7} {:6.0} ({:.0}, {:.0})",
                    times[ROUNDS / 2],
                    times[0],
                    times[ROUNDS - 1]
                );
            }
        }
    }

    fn bytes() {
        println!("\nresident bytes per entry beyond key and value, {BYTES_ENTRIES} entries that all fit");
        for (name, eviction, _) in ENGINES {
            let program = std::env::current_exe().expect("a program has a path");
            let output = Command::new(program).args(["--bytes-of", name, eviction]).output().expect("runs again");
            println!("  {name:6} {eviction:7} {:>6}", String::from_utf8_lossy(&output.stdout).trim());
        }
    }

    fn bytes_per_entry(name: &str, eviction: Eviction) -> f64 {
        let engine = Engine::new(name, eviction, 2 * BYTES_ENTRIES);
        let before = resident_bytes();
        (0..BYTES_ENTRIES as u64).for_each(|number| engine.put(number));
        if let Engine::Store(store) = &engine {
            eprintln!("  charged: {}", store.totals().bookkeeping_bytes / BYTES_ENTRIES);
        }
        let grown = resident_bytes() - before;
        black_box(&engine);
        // The value's block with two counters, the key and the charge; foyer has the key in a block of its own beside it.
        let key_bytes = if name == "foyer" { 32.0 } else { 0.0 };
        grown / BYTES_ENTRIES as f64 - 64.0 - key_bytes
    }

    fn resident_bytes() -> f64 {
        let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
        pages.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok()).expect("a number") * 4096.0
    }

    fn ratios() {
        println!("\nhit ratio in percent, Zipf 1.0 over {KEYS} keys, {REQUESTS} requests after as many to warm up");
        let cumulative: Vec<f64> = (1..=KEYS)
            .scan(0.0, |sum, rank| {
                *sum += 1.0 / rank as f64;
                Some(*sum)
            })
            .collect();
        for percent in [0.5, 1.0, 2.0, 5.0, 10.0] {
            print!("  {percent:4} % of the keys fit:");
            for (name, eviction_name, eviction) in ENGINES {
                let engine = Engine::new(name, eviction, (KEYS as f64 * percent / 100.0) as usize);
                let mut random = Random(13);
                let mut hits = 0;
                for request in 0..2 * REQUESTS {
                    let chosen = (random.next() >> 11) as f64 / (1_u64 << 53) as f64 * cumulative[KEYS - 1];
                    let rank = cumulative.partition_point(|&sum| sum < chosen) as u64;
                    match engine.find(rank) {
                        Some(_) if request >= REQUESTS => hits += 1,
                        Some(_) => {}
                        None => engine.put(rank),
                    }
                }
                print!("  {name} {eviction_name} {:.1}", f64::from(hits) / REQUESTS as f64 * 100.0);
            }
            println!();
        }
    }

    const OBJECT_BYTES: usize = 4096;
    const ROUNDS: usize = 7;
    const FINDS: usize = 1_000_000;
    const BYTES_ENTRIES: usize = 1_000_000;
    const KEYS: usize = 500_000;
    const REQUESTS: usize = 2_500_000;
}
