//! One key has half of all traffic: who does how much of the work, and what the origin sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use groupcache_proxy::fields::Fields;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clients::{Got, get};
use crate::hops::Heard;
use crate::node::Asked;
use crate::origin::Kind;
use crate::world::{Setting, World};

/// Hops are counted by the nodes themselves.
struct Nobody;

impl Asked for Nobody {
    fn heard(&self, _: &Heard<'_>) {}
}

/// What came of a run.
pub struct Outcome {
    /// In words.
    pub report: String,
    /// The busiest node's share of the mean.
    pub busiest: f64,
    /// Requests that were not answered.
    pub failed: u64,
}

/// Runs a fleet of `nodes` whose hot key stays fresh for two seconds (`short`) or for longer than the run.
pub async fn run(seed: u64, nodes: usize, kind: Kind) -> Outcome {
    let setting = Setting::calm(seed, nodes, 40..60);
    let world = World::heard_by(setting, Some(Arc::new(Nobody)));
    let hot = kind.key(0);
    let failed = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut clients = JoinSet::new();
    let (mut before, mut loads) = (Vec::new(), 0);
    for second in 0..SECONDS {
        if second == SETTLED {
            (before, loads) = (work(&world), world.origin.begun());
        }
        for tick in 0..100 {
            for _ in 0..nodes * REQUESTS_PER_NODE_AND_SECOND / 100 {
                let place = world.random.index(nodes);
                let key = match world.random.percent(50) {
                    true => hot.clone(),
                    false => Kind::Long.key(1 + world.random.zipf(KEYS)),
                };
                let (world, failed) = (world.clone(), failed.clone());
                clients.spawn(async move {
                    let Some(node) = world.node(place) else { return };
                    if !matches!(get(&node, &key, Fields::empty()).await, Got::Whole(200, ..)) {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            tokio::time::sleep_until(began + Duration::from_millis(second as u64 * 1000 + (tick + 1) * 10)).await;
            while clients.try_join_next().is_some() {}
            if tick % 25 == 24 {
                world.living().iter().for_each(|node| node.cache.tend_replicas(|_| Some(node.group.clone())));
            }
        }
    }
    while clients.join_next().await.is_some() {}
    let done: Vec<u64> = work(&world).iter().zip(&before).map(|(after, before)| after - before).collect();
    let mean = done.iter().sum::<u64>() as f64 / nodes as f64;
    let busiest = done.iter().max().copied().unwrap_or_default() as f64 / mean;
    let sum = |count: fn(&groupcache_proxy::replicas::Replicas) -> u64| {
        world.living().iter().map(|node| count(&node.cache.replicas)).sum::<u64>()
    };
    let owner = world.living().into_iter().find(|node| node.cache.owns(&hot)).expect("somebody owns the key");
    let report = format!(
        "{nodes} nodes, one key with half of {} requests a second, {}: busiest node {busiest:.2} times the mean, its owner {:.2}; \
         {} origin requests in {} s; replicas: {} pushed, {} questions answered, {} dropped; {} failed",
        nodes * REQUESTS_PER_NODE_AND_SECOND,
        if matches!(kind, Kind::Short) { "fresh for 2 s" } else { "always fresh" },
        done[owner.place] as f64 / mean,
        world.origin.begun() - loads,
        SECONDS - SETTLED,
        sum(|replicas| replicas.pushed.value()),
        sum(|replicas| replicas.answered.value()),
        sum(|replicas| replicas.dropped.value()),
        failed.load(Ordering::Relaxed),
    );
    Outcome { report, busiest, failed: failed.load(Ordering::Relaxed) }
}

/// Questions that each node answered.
fn work(world: &World) -> Vec<u64> {
    world.living().iter().map(|node| node.group.stats.gets.value() + node.cache.replicas.answered.value()).collect()
}

const KEYS: usize = 500;
const REQUESTS_PER_NODE_AND_SECOND: usize = 100;
const SECONDS: usize = 12;
/// From when on the work is counted: the promise allows two seconds.
const SETTLED: usize = 2;
