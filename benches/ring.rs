//! What a look-up on the ring costs among a hundred peers, and what building a ring of a thousand costs.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
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
criterion_main!(benches);
