//! Times of the small operations, from the lane with a request to the frames between peers.

#![allow(clippy::panic, clippy::disallowed_methods, reason = "it measures, and ends when something is wrong")]

mod support;

use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use support::operations::OPERATIONS;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn parts(criterion: &mut Criterion) {
    for operation in &OPERATIONS {
        let mut run = (operation.prepare)();
        criterion.bench_function(operation.name, |bencher| {
            bencher.iter_custom(|count| {
                let start = Instant::now();
                run(count);
                start.elapsed()
            });
        });
    }
}

criterion_group!(benches, parts);
criterion_main!(benches);
