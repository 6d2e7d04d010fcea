//! What happens in a run: requests, changes, purges and faults, chosen by the seed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use groupcache_proxy::group::Limit;
use groupcache_proxy::purging::PURGE_TIMEOUT_DEFAULT;
use groupcache_proxy::source::Method;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clients;
use crate::invariants::{self, Loads};
use crate::network::{Delays, ORIGIN, Place};
use crate::node::Links;
use crate::origin::{Kind, Manners, text};
use crate::purges::{self, Aim};
use crate::random::Random;
use crate::trace::{Broken, event};
use crate::world::{FaultKind, Setting, World};

/// What may go wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Nothing: every promise holds to the letter.
    Calm,
    /// Nodes die, with or without their machine, and come back.
    Deaths,
    /// Nodes freeze and go on.
    Pauses,
    /// Ways are blocked, in one direction or both.
    Partitions,
    /// Connections break, and packets are lost.
    Cuts,
    /// Nodes see different fleets.
    Views,
    /// The origin fails, is slow, breaks off.
    Origin,
    /// All of it.
    Storm,
}

impl Weather {
    const ALL: [Weather; 8] = [
        Weather::Calm,
        Weather::Deaths,
        Weather::Pauses,
        Weather::Partitions,
        Weather::Cuts,
        Weather::Views,
        Weather::Origin,
        Weather::Storm,
    ];

    /// Every eighth seed has the same weather.
    pub fn of(seed: u64) -> Self {
        Weather::ALL[seed as usize % Weather::ALL.len()]
    }

    fn has(self, other: Weather) -> bool {
        self == other || self == Weather::Storm
    }

    fn loads(self) -> Loads {
        match self {
            Weather::Calm | Weather::Origin => Loads::One,
            Weather::Deaths => Loads::OnePerLife,
            Weather::Views => Loads::OnePerOwner,
            Weather::Pauses | Weather::Partitions | Weather::Cuts | Weather::Storm => Loads::OnePerNode,
        }
    }

    fn delays(self) -> Delays {
        let late_percent = if self.has(Weather::Cuts) { 3 } else { 0 };
        Delays { usual: 100..5_000, late_percent, late: 200_000..600_000 }
    }

    /// Every fourth run of each weather has a limit for the origin.
    fn limit(self, seed: u64) -> Option<Limit> {
        let limited = seed / Weather::ALL.len() as u64 % 4 == 3;
        limited.then(|| Limit { requests_max: 2 + seed as usize % 5, waiting_max: 10_000, patience: PATIENCE })
    }

    /// Every fourth run of the others keeps leases; where views differ, a majority is nobody's.
    fn strict(self, seed: u64) -> bool {
        !self.has(Weather::Views) && seed / Weather::ALL.len() as u64 % 4 == 1
    }

    /// Half of the runs find their members by gossip: where no list is made by hand, and none differs by the will of the script.
    fn gossips(self, seed: u64) -> bool {
        let lists = matches!(self, Weather::Views | Weather::Origin | Weather::Storm) || self.strict(seed);
        !lists && Random::has(seed, "gossip")
    }

    fn manners(self, seed: u64) -> Manners {
        // Where nodes cannot reach one another, or take one another for dead, each side counts for itself; and where several
        // die and come back within seconds, those who count change faster than they can tell one another.
        let counted = matches!(self, Weather::Calm | Weather::Origin);
        let bad = self.has(Weather::Origin);
        Manners {
            head_milliseconds: 1..100,
            slow_percent: if bad { 5 } else { 1 },
            fail_percent: if bad { 5 } else { 0 },
            break_percent: if bad { 5 } else { 0 },
            records: true,
            at_once_max: self.limit(seed).map(|limit| limit.requests_max).filter(|_| counted),
        }
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    pub weather: Weather,
    pub hash: u64,
    pub events: u64,
    pub broken: Option<Broken>,
    pub tally: std::collections::BTreeMap<&'static str, u64>,
    pub simulated: Duration,
}

/// Runs one seed.
pub async fn run(seed: u64, nodes: usize, steps: usize) -> Report {
    let weather = Weather::of(seed);
    let setting = Setting {
        seed,
        nodes,
        delays: weather.delays(),
        manners: weather.manners(seed),
        memory_bytes: 32 << 20,
        limit: weather.limit(seed),
        strict: weather.strict(seed),
        links: Links::Wire,
        connections: if Random::has(seed, "connections") { 2 } else { 1 },
        gossips: weather.gossips(seed),
        traced: true,
    };
    let world = World::new(setting);
    if world.strict {
        // Until the first leases are there.
        tokio::time::sleep(STARTED).await;
    }
    if world.gossips {
        invariants::whole(&world).await;
    }
    let lists = Lists {
        last: (0..nodes).collect(),
        undisturbed_until: None,
        waiting: Arc::new(Mutex::new(vec![VecDeque::new(); nodes])),
    };
    let methods = Random::new(seed, "methods");
    let mut script =
        Script { world: world.clone(), weather, keys: keys(), methods, clients: JoinSet::new(), faults: 0, lists };
    world.note_owners(&script.keys);
    for _ in 0..steps {
        if world.trace.is_broken() {
            break;
        }
        script.step().await;
    }
    script.end().await;
    let (hash, events) = world.trace.hash();
    let (tally, simulated) = (world.journal.tally(), world.trace.now());
    Report { seed, weather, hash, events, broken: world.trace.first_broken(), tally, simulated }
}

fn keys() -> Vec<Bytes> {
    let count = |kind| match kind {
        Kind::Long => 8,
        Kind::Big => 2,
        Kind::Short => 5,
        Kind::Private => 2,
    };
    // Mixed, so that each kind has popular keys and others.
    let mut keys: Vec<(usize, Kind)> =
        Kind::ALL.iter().flat_map(|&kind| (0..count(kind)).map(move |number| (number, kind))).collect();
    keys.sort_by_key(|&(number, kind)| (number, kind));
    keys.into_iter().map(|(number, kind)| kind.key(number)).collect()
}

struct Script {
    world: Arc<World>,
    weather: Weather,
    keys: Vec<Bytes>,
    methods: Random,
    clients: JoinSet<()>,
    faults: usize,
    lists: Lists,
}

/// Lists of members, where leases are kept: every node takes all of them, in the same order, sooner or later.
struct Lists {
    last: Vec<Place>,
    /// Until then nothing else happens to the fleet.
    undisturbed_until: Option<Instant>,
    /// By place, those that the node there has not taken yet.
    waiting: Arc<Mutex<Vec<VecDeque<Vec<Place>>>>>,
}

impl Script {
    async fn step(&mut self) {
        let random = &self.world.random;
        // Half of the steps come in the same instant as the one before.
        if random.percent(50) {
            tokio::time::sleep(Duration::from_millis(random.number(1..150))).await;
        }
        random.jostle(5).await;
        let key = self.keys[random.zipf(self.keys.len())].clone();
        match random.number(0..100) {
            0..58 => self.client(self.some_place(), &key),
            58..66 => {
                for _ in 0..random.number(2..20) {
                    self.client(self.some_place(), &key);
                }
            }
            66..76 => self.change(&key),
            76..90 => self.purge(self.some_place(), &key),
            90..92 => self.jump(self.some_place()),
            92..100 if self.lists.undisturbed_until.is_some_and(|until| Instant::now() < until) => {}
            92..94 if self.lists_change() => self.change_list(),
            _ => self.fault(),
        }
    }

    fn some_place(&self) -> Place {
        self.world.random.index(self.world.size())
    }

    fn client(&mut self, place: Place, key: &Bytes) {
        let (world, key) = (self.world.clone(), key.clone());
        let method = if self.methods.percent(HEADS_PERCENT) { Method::Head } else { Method::Get };
        self.clients.spawn(async move {
            clients::request_by(world, place, key, method).await;
        });
    }

    fn change(&self, key: &Bytes) {
        let version = self.world.origin.change(key);
        event!(self.world.trace, "{} has version {version}", text(key));
    }

    /// Changes a key, and some of those that a purge is about, which a node then carries out.
    fn purge(&mut self, place: Place, key: &Bytes) {
        let random = &self.world.random;
        let aim = Aim::some(random, key, &self.keys);
        self.change(key);
        for other in aim.keys.iter().filter(|other| *other != key) {
            if random.percent(30) {
                self.change(other);
            }
        }
        // Somebody has it in a loop.
        let times = if random.percent(2) { 20 } else { 1 };
        let patience = Duration::from_millis(random.pick(&[300, 1000, 5000]));
        // A majority decides when the leases of the others have run out.
        let patience = if self.world.strict { PURGE_TIMEOUT_DEFAULT } else { patience };
        let world = self.world.clone();
        self.clients.spawn(async move {
            for _ in 1..times {
                purges::carry_out(world.clone(), place, aim.clone(), Duration::from_millis(20), false).await;
            }
            purges::carry_out(world, place, aim, patience, true).await;
        });
    }

    fn jump(&self, place: Place) {
        if let Some(node) = self.world.node(place) {
            let seconds = self.world.random.number(0..2 * YEAR_SECONDS) as i64 - YEAR_SECONDS as i64;
            event!(self.world.trace, "node {place} sets its clock by {seconds} s");
            node.clock.jump(seconds);
        }
    }

    /// Whether members come and go: where leases are kept and no node forgets what it knew.
    fn lists_change(&self) -> bool {
        self.world.strict && self.world.size() > 3 && !self.weather.has(Weather::Deaths)
    }

    /// Other members: several at once, but a majority stays, and those who are new are none.
    fn change_list(&mut self) {
        let random = &self.world.random;
        let (size, before) = (self.world.size(), &self.lists.last);
        let some = || (0..size).filter(|_| random.percent(60)).collect::<Vec<Place>>();
        let is_safe = |after: &Vec<Place>| {
            let kept = after.iter().filter(|place| before.contains(place)).count();
            after.len() > size / 2
                && kept > before.len() / 2
                && after.len() - kept <= after.len() / 2
                && after != before
        };
        // Half of those who were all: then a majority of either may be without the other.
        let half = || {
            let mut some = before.clone();
            while some.len() > before.len() / 2 + 1 {
                some.remove(random.index(some.len()));
            }
            some
        };
        let halved = self.weather == Weather::Partitions && before.len() == size;
        let after = match halved {
            true => Some(half()),
            false => std::iter::repeat_with(some).take(20).find(is_safe),
        };
        let Some(after) = after else { return };
        event!(self.world.trace, "the members are {after:?}");
        let side = &after[..after.len() / 2 + 1];
        let outside = before.iter().filter(|place| !side.contains(place)).count();
        let side = side.to_vec();
        if self.weather == Weather::Partitions && outside > before.len() / 2 {
            self.part_while_taking(&side);
            return self.take_list(after, &side);
        }
        self.take_list(after, &[]);
    }

    /// A majority of the members to come, but not of those before, is alone when it takes the list, and the others do not know it yet.
    fn part_while_taking(&mut self, side: &[Place]) {
        let others = (0..self.world.size()).filter(|place| !side.contains(place));
        let ways = others.flat_map(|other| side.iter().flat_map(move |&place| [(place, other), (other, place)]));
        let lasts = Duration::from_millis(self.world.random.number(3000..6000));
        self.block(ways.collect(), lasts);
        self.lists.undisturbed_until = Some(Instant::now() + lasts);
    }

    fn block(&mut self, ways: Vec<(Place, Place)>, lasts: Duration) {
        let world = self.world.clone();
        event!(world.trace, "blocked: {ways:?}");
        let fault = world.journal.fault_begins(FaultKind::Partition);
        for &(from, to) in &ways {
            world.network.block(from, to, true);
        }
        self.clients.spawn(async move {
            tokio::time::sleep(lasts).await;
            for (from, to) in ways {
                world.network.block(from, to, false);
            }
            world.journal.fault_ends(fault);
        });
    }

    /// Lets every node take the list, some time within three seconds: if some are named, they early and the others late.
    fn take_list(&mut self, list: Vec<Place>, early: &[Place]) {
        self.lists.last = list.clone();
        let fault = self.world.journal.fault_begins(FaultKind::Views);
        let mut taking = JoinSet::new();
        for place in 0..self.world.size() {
            self.lists.waiting.lock()[place].push_back(list.clone());
            let within = match early.contains(&place) {
                _ if early.is_empty() => 0..3000,
                true => 0..100,
                false => 2500..3000,
            };
            let after = Duration::from_millis(self.world.random.number(within));
            let (world, waiting) = (self.world.clone(), self.lists.waiting.clone());
            taking.spawn(async move {
                tokio::time::sleep(after).await;
                world.network.running(place).await;
                // Not always the one that this waited for, but all come in turn.
                let next = waiting.lock()[place].pop_front();
                world.see(place, next.unwrap_or_default());
            });
        }
        let world = self.world.clone();
        self.clients.spawn(async move {
            while taking.join_next().await.is_some() {}
            world.journal.fault_ends(fault);
        });
    }

    fn fault(&mut self) {
        let kinds: Vec<Weather> = Weather::ALL[1..7].iter().copied().filter(|kind| self.weather.has(*kind)).collect();
        if kinds.is_empty() {
            return;
        }
        let (world, random) = (self.world.clone(), &self.world.random);
        let kind = random.pick(&kinds);
        let lasts = Duration::from_millis(random.number(50..5000));
        let (place, other) = (self.some_place(), self.some_place());
        self.faults += 1;
        match kind {
            Weather::Deaths => {
                if world.node(place).is_none_or(|node| node.local.is_draining()) {
                    return;
                }
                let fault = world.journal.fault_begins(FaultKind::Death(place));
                let (leaves, silently) = (random.percent(25), random.percent(30));
                if !leaves {
                    world.kill(place, silently);
                }
                self.clients.spawn(async move {
                    if leaves {
                        world.leave(place).await;
                    }
                    tokio::time::sleep(lasts).await;
                    world.start(place);
                    world.journal.fault_ends(fault);
                });
            }
            Weather::Pauses => {
                if world.node(place).is_none() || world.network.is_paused(place) {
                    return;
                }
                let fault = world.journal.fault_begins(FaultKind::Pause(place));
                let drains = world.gossips && random.percent(30);
                self.clients.spawn(async move {
                    if drains {
                        world.drain(place, true);
                        tokio::time::sleep(HEARD_OF).await;
                    }
                    world.network.pause(place, true);
                    tokio::time::sleep(lasts).await;
                    world.network.pause(place, false);
                    world.drain(place, false);
                    world.journal.fault_ends(fault);
                });
            }
            Weather::Partitions => {
                let ways = self.some_ways(place);
                self.block(ways, lasts);
            }
            Weather::Cuts if place != other => {
                let fault = world.journal.fault_begins(FaultKind::Cut);
                world.network.cut(place, other);
                world.journal.fault_ends(fault);
            }
            Weather::Views => {
                let fault = world.journal.fault_begins(FaultKind::Views);
                let view = self.some_view(place);
                world.see(place, view);
                world.note_owners(&self.keys);
                self.clients.spawn(async move {
                    tokio::time::sleep(lasts).await;
                    world.see(place, (0..world.size()).collect());
                    world.journal.fault_ends(fault);
                });
            }
            Weather::Origin => {
                event!(world.trace, "the origin fails");
                world.origin.set_failing(true);
                self.clients.spawn(async move {
                    tokio::time::sleep(lasts / 2).await;
                    world.origin.set_failing(false);
                    event!(world.trace, "the origin is back");
                });
            }
            _ => {}
        }
    }

    /// Ways that a partition blocks: a group of nodes from the rest, or one node from the origin; in both directions or one.
    fn some_ways(&self, place: Place) -> Vec<(Place, Place)> {
        let random = &self.world.random;
        if self.weather == Weather::Storm && random.percent(15) {
            return vec![(place, ORIGIN)];
        }
        let one_way = random.percent(40);
        let inside: Vec<Place> = (0..self.world.size()).filter(|&node| node == place || random.percent(30)).collect();
        let mut ways = Vec::new();
        for outside in (0..self.world.size()).filter(|node| !inside.contains(node)) {
            for &node in &inside {
                ways.push((node, outside));
                if !one_way {
                    ways.push((outside, node));
                }
            }
        }
        ways
    }

    /// A view of the fleet that lacks some; it may lack the node itself.
    fn some_view(&self, place: Place) -> Vec<Place> {
        let random = &self.world.random;
        let view: Vec<Place> = (0..self.world.size()).filter(|_| random.percent(60)).collect();
        if view.is_empty() { vec![place] } else { view }
    }

    async fn end(mut self) {
        event!(self.world.trace, "the script is over");
        if self.lists_change() {
            self.take_list((0..self.world.size()).collect(), &[]);
        }
        let world = self.world;
        // What was begun ends by itself: faults and requests.
        while let Some(ended) = self.clients.join_next().await {
            if ended.is_err() {
                world.trace.broken("no panic", "in a client");
            }
        }
        if world.trace.is_broken() {
            return;
        }
        world.network.heal();
        world.origin.heal();
        invariants::healed(&world, &self.keys).await;
        invariants::quiescent(&world).await;
        invariants::whole(&world).await;
        invariants::purges_known(&world).await;
        if world.strict {
            invariants::leased(&world).await;
        } else {
            // Without a lease each request asks anew.
            invariants::loads(&world, self.weather.loads());
        }
    }
}

/// After so long a node that was away is connected again, also one that came and went often and was watched for a while.
pub const RECONNECTED: Duration = Duration::from_secs(13);
/// So soon everybody has heard that a node drains.
const HEARD_OF: Duration = Duration::from_millis(50);
/// How long a fleet that starts has no leases.
const STARTED: Duration = Duration::from_secs(6);
/// How long a request may wait for its turn at the origin.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Of a hundred requests so many are for a head alone.
const HEADS_PERCENT: u64 = 10;
const YEAR_SECONDS: u64 = 365 * 24 * 3600;
