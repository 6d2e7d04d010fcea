//! What a look-up on the ring costs among a hundred peers, and what building a ring of a thousand costs.
//!
//! ```text
//! cargo bench --bench ring            by criterion
//! cargo bench --bench ring -- --go    beside golang/groupcache's own ring, in rounds in turn
//! ```

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a bench reads the clock, and ends where it cannot go on"
)]

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use criterion::{BatchSize, Criterion, criterion_group};
use groupcache_proxy::ring::{REPLICAS_DEFAULT, Ring, RingKind, RingPeer};

fn peers(count: usize) -> Vec<RingPeer> {
    (0..count).map(|number| RingPeer::new(format!("http://cache-{number:03}.internal:8082"))).collect()
}

/// With and without hashing the key, and the way to the peer that takes over.
fn lookup(criterion: &mut Criterion) {
    let keys: Vec<Vec<u8>> = (0..4096).map(|number| format!("photos/{number}.jpg?w=200").into_bytes()).collect();
    for kind in RingKind::ALL {
        let ring = Ring::new(kind, REPLICAS_DEFAULT, &peers(100));
        let hashes: Vec<u64> = keys.iter().map(|key| ring.key_hash(key)).collect();
        let mut group = criterion.benchmark_group(format!("lookup/{kind}"));
        let mut turn = (0..keys.len()).cycle();
        let mut next = move || turn.next().unwrap_or(0);
        group.bench_function("owner", |bencher| bencher.iter(|| ring.owner(black_box(&keys[next()]))));
        group.bench_function("owner_of_hash", |bencher| bencher.iter(|| ring.owner_of_hash(black_box(hashes[next()]))));
        group.bench_function("second", |bencher| bencher.iter(|| ring.preference(black_box(&keys[next()])).nth(1)));
        group.finish();
    }
}

fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build");
    group.sample_size(10);
    for kind in RingKind::ALL {
        for count in [3, 100, 1000] {
            let peers = peers(count);
            group.bench_function(format!("{kind}/{count}"), |bencher| {
                bencher.iter_batched(
                    || peers.clone(),
                    |peers| Ring::new(kind, REPLICAS_DEFAULT, &peers),
                    BatchSize::LargeInput,
                );
            });
        }
    }
    group.finish();
}

criterion_group!(benches, lookup, build);

fn main() {
    if std::env::args().any(|argument| argument == "--go") {
        return compare_with_go();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}

/// Nanoseconds of the same work on both sides, round by round, and the medians of the ratios.
fn compare_with_go() {
    let program = build_go();
    let (mut lookups, mut builds) = (Vec::new(), Vec::new());
    println!("{:>6} {:>14} {:>8} {:>14} {:>8}", "round", "look-up, ns", "Go", "1,000 peers, us", "Go");
    for round in 1..=ROUNDS {
        let (lookup, build) = (time_of_lookup(), time_of_build());
        let said = Command::new(&program).env("GOMAXPROCS", "1").output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        let go: Vec<f64> = said.split_whitespace().map(|number| number.parse().unwrap()).collect();
        println!("{round:>6} {lookup:>14.1} {:>8} {:>14.0} {:>8.0}", go[0], build / 1000.0, go[1] / 1000.0);
        lookups.push(lookup / go[0]);
        builds.push(build / go[1]);
    }
    for (what, mut ratios) in [("look-up among 100 peers", lookups), ("building a ring of 1,000", builds)] {
        ratios.sort_by(f64::total_cmp);
        let (median, least, most) = (ratios[ROUNDS / 2], ratios[0], ratios[ROUNDS - 1]);
        println!("{what}: {median:.2} of Go's time ({least:.2} to {most:.2})");
    }
}

fn build_go() -> String {
    let program = format!("{}/go_ring", env!("CARGO_TARGET_TMPDIR"));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/go_ring");
    let mut go = Command::new("go");
    go.args(["build", "-o", &program, "main.go"]).current_dir(folder);
    go.env("GO111MODULE", "off").env("GOPATH", "/usr/share/gocode").env("GOFLAGS", "");
    let built = go.status().expect("go, of Debian's golang-go and golang-github-golang-groupcache-dev");
    assert!(built.success(), "go build failed");
    program
}

fn time_of_lookup() -> f64 {
    let keys: Vec<String> = (0..4096).map(|number| format!("photos/{number}.jpg?w=200")).collect();
    let ring = Ring::new(RingKind::Groupcache, REPLICAS_DEFAULT, &peers(100));
    let begun = Instant::now();
    for number in 0..LOOKUPS {
        black_box(ring.owner(black_box(keys[number % keys.len()].as_bytes())));
    }
    begun.elapsed().as_nanos() as f64 / LOOKUPS as f64
}

fn time_of_build() -> f64 {
    let peers = peers(1000);
    let begun = Instant::now();
    for _ in 0..BUILDS {
        black_box(Ring::new(RingKind::Groupcache, REPLICAS_DEFAULT, black_box(&peers)));
    }
    begun.elapsed().as_nanos() as f64 / BUILDS as f64
}

const ROUNDS: usize = 7;
/// As in `go_ring/main.go`.
const LOOKUPS: usize = 2_000_000;
const BUILDS: usize = 20;
