//! A large fleet under traffic by Zipf's law: warming up, at rest, with nodes that die and come back, and through a rolling
//! restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use groupcache_proxy::fields::Fields;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::chart::{Panel, Phase, svg};
use crate::clients::{Got, get};
use crate::hops::{Heard, What};
use crate::network::Place;
use crate::node::Asked;
use crate::origin::{Kind, version_in};
use crate::world::{Setting, World};

/// What is counted, second by second.
#[derive(Default)]
struct Counts {
    hops: AtomicU64,
    seconds: Mutex<Vec<Second>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    requests: u64,
    hits: u64,
    hops: u64,
    loads: u64,
    failed: u64,
}

impl Asked for Counts {
    fn heard(&self, heard: &Heard<'_>) {
        self.hops.fetch_add(u64::from(matches!(heard.what, What::Load(_))), Ordering::Relaxed);
    }
}

/// Runs a fleet of `nodes` and returns a report in words and the chart.
pub async fn run(seed: u64, nodes: usize) -> (String, String) {
    let counts = Arc::new(Counts::default());
    let setting = Setting::calm(seed, nodes, 80..120);
    let world = World::heard_by(setting, Some(counts.clone()));
    let phases = [
        Phase { name: "warming up", from: 0, to: WARM },
        Phase { name: "at rest", from: WARM, to: REST },
        Phase { name: "churn", from: REST, to: CHURN },
        Phase { name: "rolling restart", from: CHURN, to: ROLLING },
        Phase { name: "at rest", from: ROLLING, to: END },
    ];
    let began = Instant::now();
    let purges: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let mut clients = JoinSet::new();
    let mut gets_before = Vec::new();
    let mut busiest = 0.0;
    let mut restarted = 0;
    for second in 0..END {
        match second {
            WARM => gets_before = gets(&world),
            REST => busiest = busiest_of(&gets(&world), &gets_before),
            _ => {}
        }
        if (REST..CHURN).contains(&second) {
            let place = world.random.index(nodes);
            restart(&world, &mut clients, place, world.random.percent(50));
        }
        if (CHURN..ROLLING).contains(&second) {
            let until = nodes * (second + 1 - CHURN) / (ROLLING - CHURN);
            for place in restarted..until {
                restart(&world, &mut clients, place, false);
            }
            restarted = until;
        }
        purge(&world, &mut clients, &purges);
        let (hops, loads) = (counts.hops.load(Ordering::Relaxed), world.origin.begun());
        counts.seconds.lock().push(Second::default());
        for tick in 0..100 {
            for _ in 0..nodes * REQUESTS_PER_NODE_AND_SECOND / 100 {
                let (place, key) = (world.random.index(nodes), Kind::Long.key(world.random.zipf(KEYS)));
                clients.spawn(client(world.clone(), counts.clone(), second, place, key));
            }
            tokio::time::sleep_until(began + Duration::from_millis(second as u64 * 1000 + (tick + 1) * 10)).await;
            while clients.try_join_next().is_some() {}
        }
        let now = &mut counts.seconds.lock()[second];
        now.hops = counts.hops.load(Ordering::Relaxed) - hops;
        now.loads = world.origin.begun() - loads;
    }
    while clients.join_next().await.is_some() {}
    let seconds = counts.seconds.lock().clone();
    let mut latencies = purges.lock().clone();
    latencies.sort_unstable();
    let report = report(&phases, &seconds, busiest, &latencies);
    (report, chart(nodes, &phases, &seconds))
}

async fn client(world: Arc<World>, counts: Arc<Counts>, second: usize, place: Place, key: Bytes) {
    // A client whose node is gone takes another one, as behind a load balancer.
    let node = (0..).map(|next| (place + next) % world.size()).find_map(|place| world.node(place)).expect("a node");
    let got = get(&node, &key, Fields::empty()).await;
    let died = node.is_dead();
    let mut seconds = counts.seconds.lock();
    let second = &mut seconds[second];
    second.requests += 1;
    match got {
        Got::Whole(200, body, outcome) if version_in(&key, &body).is_some() => {
            second.hits += u64::from(outcome == "hit");
        }
        // Its own node died under it.
        _ if died => {}
        _ => second.failed += 1,
    }
}

fn restart(world: &Arc<World>, clients: &mut JoinSet<()>, place: Place, silently: bool) {
    if world.node(place).is_none() {
        return;
    }
    world.kill(place, silently);
    let world = world.clone();
    clients.spawn(async move {
        tokio::time::sleep(DOWN).await;
        world.start(place);
    });
}

fn purge(world: &Arc<World>, clients: &mut JoinSet<()>, latencies: &Arc<Mutex<Vec<Duration>>>) {
    let (place, key) = (world.random.index(world.size()), Kind::Long.key(world.random.zipf(KEYS)));
    let (world, latencies) = (world.clone(), latencies.clone());
    clients.spawn(async move {
        let Some(node) = world.node(place) else { return };
        let begun = Instant::now();
        node.cache.invalidate_everywhere(&node.group, vec![key]).await;
        latencies.lock().push(begun.elapsed());
    });
}

fn gets(world: &World) -> Vec<u64> {
    (0..world.size()).map(|place| world.node(place).map_or(0, |node| node.group.stats.gets.value())).collect()
}

/// The share of the busiest node, of the mean.
fn busiest_of(after: &[u64], before: &[u64]) -> f64 {
    let done: Vec<u64> = after.iter().zip(before).map(|(after, before)| after.saturating_sub(*before)).collect();
    let mean = done.iter().sum::<u64>() as f64 / done.len() as f64;
    done.into_iter().max().unwrap_or_default() as f64 / mean
}

fn report(phases: &[Phase], seconds: &[Second], busiest: f64, purges: &[Duration]) -> String {
    let mut lines = Vec::new();
    for phase in phases {
        let of = &seconds[phase.from..phase.to];
        let sum = |count: fn(&Second) -> u64| of.iter().map(count).sum::<u64>();
        let requests = sum(|second| second.requests).max(1);
        let percent = |part: u64| 100.0 * part as f64 / requests as f64;
        lines.push(format!(
            "{:>3} to {:>3} s {:<16} {requests:>8} requests, {:>5.1} % hits, {:>5.1} % over a hop, {:>6} origin requests \
             ({:.2} %), {} failed",
            phase.from,
            phase.to,
            phase.name,
            percent(sum(|second| second.hits)),
            percent(sum(|second| second.hops)),
            sum(|second| second.loads),
            percent(sum(|second| second.loads)),
            sum(|second| second.failed),
        ));
    }
    let quantile = |share: f64| purges[((purges.len() - 1) as f64 * share) as usize];
    lines.push(format!("busiest node at rest: {busiest:.2} times the mean of what all were asked"));
    lines.push(format!("invalidation of a key everywhere: median {:?}, p99 {:?}", quantile(0.5), quantile(0.99)));
    lines.join("\n")
}

fn chart(nodes: usize, phases: &[Phase], seconds: &[Second]) -> String {
    let share = |of: fn(&Second) -> u64| {
        seconds.iter().map(|second| 100.0 * of(second) as f64 / second.requests.max(1) as f64).collect::<Vec<_>>()
    };
    let loads: Vec<f64> = seconds.iter().map(|second| second.loads as f64).collect();
    let rate = nodes * REQUESTS_PER_NODE_AND_SECOND;
    // The first seconds, when nothing is cached, would flatten the rest.
    let loads_top = loads.iter().skip(3).copied().fold(10.0, f64::max).ceil();
    let panels = [
        Panel {
            title: "answered from the memory of the node that was asked".into(),
            values: share(|second| second.hits),
            top: 100.0,
            unit: " %",
        },
        Panel { title: "answered over a hop".into(), values: share(|second| second.hops), top: 100.0, unit: " %" },
        Panel { title: format!("requests at the origin, of {rate} a second"), values: loads, top: loads_top, unit: "" },
    ];
    svg(&format!("Simulation: {nodes} nodes, {KEYS} keys by Zipf's law"), phases, &panels)
}

const KEYS: usize = 20_000;
const REQUESTS_PER_NODE_AND_SECOND: usize = 4;
/// Seconds at which the phases end.
const WARM: usize = 20;
const REST: usize = 35;
const CHURN: usize = 60;
const ROLLING: usize = 90;
const END: usize = 105;
/// How long a node is away when it is restarted.
const DOWN: Duration = Duration::from_secs(2);
