//! Purges of all kinds against fills, hot copies, joiners, hand-overs and one another: very many small interleavings, each with a key of its own.
//!
//! Nothing takes time here. What happens first is decided by how many turns of other tasks everything waits for, which the seed
//! chooses: in each node before it acts, between the nodes, and at the origin.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::clients;
use crate::network::{Delays, Place};
use crate::node::Links;
use crate::origin::{Manners, text};
use crate::purges::{self, Aim};
use crate::trace::{Broken, event};
use crate::world::{Setting, World};

/// Runs `count` interleavings of a seed.
pub async fn run(seed: u64, nodes: usize, count: u64, traced: bool) -> Option<Broken> {
    let world = World::new(Setting {
        seed,
        nodes,
        delays: Delays { usual: 0..1, late_percent: 0, late: 0..1 },
        manners: Manners {
            head_milliseconds: 0..1,
            slow_percent: 0,
            fail_percent: 0,
            break_percent: 0,
            records: false,
            at_once_max: None,
        },
        memory_bytes: 8 << 20,
        limit: None,
        strict: false,
        links: Links::Turns,
        connections: 1,
        gossips: false,
        traced,
    });
    for number in 0..count {
        let key = Bytes::from(format!("l/{number}"));
        event!(world.trace, "---- interleaving {number}");
        interleave(&world, &key).await;
        if world.trace.is_broken() {
            break;
        }
        world.journal.forget(&key);
    }
    world.trace.first_broken()
}

async fn interleave(world: &Arc<World>, key: &Bytes) {
    let random = &world.random;
    // A place that is empty for a while: who stands in for it loads, and is asked for that when it is back.
    let joiner = random.percent(JOINS_PERCENT).then(|| random.index(world.size()));
    if let Some(place) = joiner {
        world.kill(place, false);
    }
    // Cold, at its owner, or in hot copies too.
    for _ in 0..random.pick(&[0, 0, 1, 2, 5, 12]) {
        clients::request(world.clone(), random.index(world.size()), key.clone()).await;
    }
    if let Some(place) = joiner {
        world.start(place);
    }
    let mut acting = JoinSet::new();
    for _ in 0..random.number(1..5) {
        acting.spawn(read(world.clone(), random.index(world.size()), key.clone(), random.number(1..4)));
    }
    for _ in 0..random.number(1..3) {
        acting.spawn(purge(world.clone(), random.index(world.size()), key.clone()));
    }
    if random.percent(JOINS_PERCENT) {
        acting.spawn(hand_over(world.clone(), random.index(world.size())));
    }
    while acting.join_next().await.is_some() {}
}

async fn read(world: Arc<World>, place: Place, key: Bytes, times: u64) {
    for _ in 0..times {
        world.random.jostle(TURNS_MAX).await;
        clients::request(world.clone(), place, key.clone()).await;
    }
}

/// What a node does that leaves; this one stays.
async fn hand_over(world: Arc<World>, place: Place) {
    world.random.jostle(TURNS_MAX).await;
    let Some(node) = world.node(place) else { return };
    let group = node.group.clone();
    node.cache.hand_over(move |_| Some(group.clone())).await;
}

/// A change and its purge; when it is acknowledged, everybody reads.
async fn purge(world: Arc<World>, place: Place, key: Bytes) {
    world.random.jostle(TURNS_MAX).await;
    let version = world.origin.change(&key);
    event!(world.trace, "{} has version {version}", text(&key));
    let aim = Aim::some(&world.random, &key, std::slice::from_ref(&key));
    purges::carry_out(world.clone(), place, aim, PATIENCE, false).await;
    let mut reading = JoinSet::new();
    for place in 0..world.size() {
        reading.spawn(read(world.clone(), place, key.clone(), 1));
    }
    while reading.join_next().await.is_some() {}
}

const TURNS_MAX: u64 = 30;
/// Of a hundred interleavings in so many a node comes back empty, and in as many one hands over what it has.
const JOINS_PERCENT: u64 = 8;
/// Nobody is out of reach, so nobody is waited for so long.
const PATIENCE: Duration = Duration::from_secs(5);
