//! All that one run consists of: nodes, network, origin, and the journal by which the promises are checked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use groupcache_proxy::fields::Fields;
use groupcache_proxy::freshness::Rules;
use groupcache_proxy::group::Limit;
use groupcache_proxy::purge::Target;
use groupcache_proxy::source::Fetched;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::direct::Hosts;
use crate::gossip;
use crate::hops::{Heard, Hops, What};
use crate::network::{Delays, Network, Place};
use crate::node::{Asked, Common, Links, Node, begin_turns, ring_of};
use crate::origin::{Manners, Origin, text};
use crate::purges::{Aim, Floor};
use crate::random::Random;
use crate::trace::{Trace, event};

/// One run's world.
pub struct World {
    pub seed: u64,
    pub trace: Arc<Trace>,
    pub network: Arc<Network>,
    pub origin: Arc<Origin>,
    pub random: Random,
    pub journal: Arc<Journal>,
    /// Whether the origin has a limit.
    pub limited: bool,
    /// Whether a majority decides about purges.
    pub strict: bool,
    /// Whether members find one another by gossip.
    pub gossips: bool,
    common: Common,
    nodes: Mutex<Vec<Option<Arc<Node>>>>,
    views: Mutex<Vec<Vec<Place>>>,
    /// By life, which lives it ever had among its members.
    met: Mutex<BTreeMap<u64, BTreeSet<u64>>>,
    lives: AtomicU64,
}

/// What was done and what happened, as far as the promises depend on it.
pub struct Journal {
    trace: Arc<Trace>,
    state: Mutex<State>,
    hops: Mutex<Hops>,
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    purges: Vec<Purge>,
    /// By key, what no answer may be older than.
    floors: BTreeMap<Bytes, Floors>,
    /// By life that accepted it, what was ever purged.
    targets: BTreeSet<(u64, Target)>,
    /// All owners that the keys had in some node's view.
    owners: BTreeMap<Bytes, Vec<Place>>,
    tally: BTreeMap<&'static str, u64>,
}

/// Something that the script did to the fleet.
#[derive(Clone, Debug)]
pub struct Fault {
    pub what: FaultKind,
    pub begun: Instant,
    pub ended: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A node dies; ends with its next life.
    Death(Place),
    /// A node is frozen.
    Pause(Place),
    /// Some ways are blocked.
    Partition,
    /// Connections ended.
    Cut,
    /// Some nodes see another fleet.
    Views,
}

/// What acknowledged purges promise of a key.
#[derive(Default)]
struct Floors {
    /// To all clients.
    everywhere: Floor,
    /// To those of a life that has confirmed, while others have not.
    lives: BTreeMap<u64, Floor>,
}

/// A purge.
#[derive(Clone, Debug)]
pub struct Purge {
    keys: Arc<[Bytes]>,
    pub begun: Instant,
    pub acknowledged: Option<Instant>,
}

impl Purge {
    /// Whether it is about the key.
    pub fn is_of(&self, key: &Bytes) -> bool {
        self.keys.contains(key)
    }
}

/// What a run is made of.
pub struct Setting {
    pub seed: u64,
    pub nodes: usize,
    pub delays: Delays,
    pub manners: Manners,
    pub memory_bytes: usize,
    /// How many requests may be at the origin at once.
    pub limit: Option<Limit>,
    /// Whether a majority decides about purges.
    pub strict: bool,
    pub links: Links,
    /// How many connections a node keeps to each peer.
    pub connections: usize,
    /// Whether members find one another by gossip, rather than all being listed.
    pub gossips: bool,
    /// Write down what happens.
    pub traced: bool,
}

impl Setting {
    /// Many nodes where nothing goes wrong by itself, and an origin that takes so long for a head.
    pub fn calm(seed: u64, nodes: usize, head_milliseconds: Range<u64>) -> Self {
        Setting {
            seed,
            nodes,
            delays: Delays { usual: 200..1500, late_percent: 0, late: 0..1 },
            manners: Manners {
                head_milliseconds,
                slow_percent: 0,
                fail_percent: 0,
                break_percent: 0,
                records: false,
                at_once_max: None,
            },
            memory_bytes: 16 << 20,
            limit: None,
            strict: false,
            links: Links::Calls,
            connections: 1,
            gossips: false,
            traced: false,
        }
    }
}

impl World {
    /// Nodes that all know one another.
    pub fn new(setting: Setting) -> Arc<Self> {
        World::heard_by(setting, None)
    }

    /// The same, where somebody else than the journal hears of the questions between nodes.
    pub fn heard_by(setting: Setting, asked: Option<Arc<dyn Asked>>) -> Arc<Self> {
        let Setting { seed, nodes, delays, manners, memory_bytes, limit, strict, links, connections, gossips, traced } =
            setting;
        begin_turns();
        let trace = Arc::new(Trace::new(!traced));
        let network = Network::new(seed, nodes, delays);
        let origin = Origin::new(seed, network.clone(), trace.clone(), manners);
        let journal = Arc::new(Journal { trace: trace.clone(), state: Mutex::default(), hops: Mutex::default() });
        let common = Common {
            network: network.clone(),
            origin: origin.clone(),
            asked: asked.unwrap_or_else(|| journal.clone()),
            memory_bytes,
            rules: Rules::default(),
            limit,
            strict,
            links,
            connections,
            forget: if gossips { gossip::FORGET } else { Duration::ZERO },
            hosts: Arc::new(Hosts::new(seed, nodes)),
        };
        let everybody: Vec<Place> = (0..nodes).collect();
        let world = Arc::new(World {
            seed,
            gossips,
            met: Mutex::default(),
            trace,
            network,
            origin,
            random: Random::new(seed, "script"),
            journal,
            limited: common.limit.is_some(),
            strict: common.strict,
            common,
            nodes: Mutex::new(vec![None; nodes]),
            views: Mutex::new(vec![everybody; nodes]),
            lives: AtomicU64::new(0),
        });
        for place in 0..nodes {
            world.start(place);
        }
        world
    }

    /// How many places there are.
    pub fn size(&self) -> usize {
        self.nodes.lock().len()
    }

    /// The node that lives at a place.
    pub fn node(&self, place: Place) -> Option<Arc<Node>> {
        self.nodes.lock()[place].clone()
    }

    /// What the node at a place sees of the fleet.
    pub fn view(&self, place: Place) -> Vec<Place> {
        self.views.lock()[place].clone()
    }

    /// Who lives at each place.
    pub fn lives(&self) -> Vec<Option<u64>> {
        self.nodes.lock().iter().map(|node| node.as_ref().map(|node| node.incarnation)).collect()
    }

    /// The nodes that live.
    pub fn living(&self) -> Vec<Arc<Node>> {
        self.nodes.lock().iter().flatten().cloned().collect()
    }

    /// Begins a life at an empty place.
    pub fn start(self: &Arc<Self>, place: Place) {
        let life = self.lives.fetch_add(1, Ordering::SeqCst) + 1;
        // Wall clocks are what their administrators made of them.
        let wall_seconds = 1_800_000_000 + self.random.number(0..7200) as i64 - 3600;
        self.network.boot(place);
        let node = Node::start(&self.common, place, 1000 + life, wall_seconds);
        event!(self.trace, "node {place} starts its life {}", node.incarnation);
        if self.strict {
            // Who finds nobody that remembers all purges begins with one of everything.
            self.journal.may_purge_everything(node.incarnation);
        }
        if self.gossips {
            self.views.lock()[place] = vec![place];
        }
        node.see(&self.common, &self.views.lock()[place]);
        node.cache.warm_up();
        self.nodes.lock()[place] = Some(node.clone());
        if self.gossips {
            gossip::begin(self, &node);
        }
    }

    /// Ends the life at a place.
    pub fn kill(&self, place: Place, silently: bool) {
        let Some(node) = self.nodes.lock()[place].take() else { return };
        self.end(&node, silently);
    }

    fn end(&self, node: &Node, silently: bool) {
        let place = node.place;
        event!(self.trace, "node {place} dies{}", if silently { " with its machine" } else { "" });
        node.die();
        self.common.hosts.leave(place);
        self.network.die(place, silently);
    }

    /// Lets the node at a place hand over what it has, and then ends its life.
    pub async fn leave(&self, place: Place) {
        let Some(node) = self.node(place) else { return };
        event!(self.trace, "node {place} leaves");
        node.local.set_draining(true);
        let group = node.group.clone();
        let _ = tokio::time::timeout(LEAVING_MAX, node.cache.hand_over(move |_| Some(group.clone()))).await;
        if node.is_dead() {
            return;
        }
        // From now on no client reaches it, and it says its last words.
        self.nodes.lock()[place] = None;
        node.shut_down();
        node.leaving.notify_one();
        tokio::time::sleep(LAST_WORDS).await;
        self.end(&node, false);
    }

    /// Lets a node say that it drains, or that it does so no more; it serves all the same.
    pub fn drain(&self, place: Place, drains: bool) {
        let Some(node) = self.node(place).filter(|node| node.local.is_draining() != drains) else { return };
        event!(self.trace, "node {place} {}", if drains { "drains" } else { "drains no more" });
        node.local.set_draining(drains);
    }

    /// Changes what a node sees of the fleet.
    pub fn see(&self, place: Place, view: Vec<Place>) {
        event!(self.trace, "node {place} sees {view:?}");
        if let Some(node) = self.node(place) {
            node.see(&self.common, &view);
        }
        self.views.lock()[place] = view;
        self.meet(place);
    }

    /// Notes who lives at the places that the node sees now.
    pub fn meet(&self, place: Place) {
        let (lives, view) = (self.lives(), self.view(place));
        let Some(own) = lives[place] else { return };
        self.met.lock().entry(own).or_default().extend(view.iter().filter_map(|&place| lives[place]));
    }

    /// Whether a life ever had another one among its members.
    pub fn has_met(&self, life: u64, other: u64) -> bool {
        self.met.lock().get(&life).is_some_and(|met| met.contains(&other))
    }

    /// Whether every node sees all places.
    pub fn is_whole(&self) -> bool {
        self.views.lock().iter().all(|view| view.len() == self.size())
    }

    /// Notes who owns the keys by all present views.
    pub fn note_owners(&self, keys: &[Bytes]) {
        let views = self.views.lock().clone();
        for view in views {
            let ring = ring_of(&view);
            for key in keys {
                if let Some(owner) = ring.owner(key) {
                    self.journal.note_owner(key, view[owner]);
                }
            }
        }
    }
}

impl Journal {
    /// A fault begins; returns its number.
    pub fn fault_begins(&self, what: FaultKind) -> usize {
        event!(self.trace, "{what:?} begins");
        let mut state = self.state.lock();
        state.faults.push(Fault { what, begun: Instant::now(), ended: None });
        state.faults.len() - 1
    }

    /// A fault ends.
    pub fn fault_ends(&self, number: usize) {
        let mut state = self.state.lock();
        let fault = &mut state.faults[number];
        if fault.ended.is_none() {
            fault.ended = Some(Instant::now());
            let what = fault.what;
            drop(state);
            event!(self.trace, "{what:?} ends");
        }
    }

    /// The faults that were there at some time between two.
    pub fn faults_between(&self, from: Instant, to: Instant) -> Vec<Fault> {
        let during = |fault: &&Fault| fault.begun <= to && fault.ended.is_none_or(|ended| ended >= from);
        self.state.lock().faults.iter().filter(during).cloned().collect()
    }

    /// All faults.
    pub fn faults(&self) -> Vec<Fault> {
        self.state.lock().faults.clone()
    }

    /// A purge is received by a life; returns its number.
    pub fn purge_begins(&self, life: u64, aim: &Aim) -> usize {
        self.hops.lock().purged(&aim.keys);
        let mut state = self.state.lock();
        state.targets.extend(aim.targets().iter().map(|target| (life, target.clone())));
        state.purges.push(Purge { keys: aim.keys.clone().into(), begun: Instant::now(), acknowledged: None });
        state.purges.len() - 1
    }

    /// A purge has its receipt.
    pub fn purge_ends(&self, number: usize) {
        let mut state = self.state.lock();
        state.purges[number].acknowledged = Some(Instant::now());
        self.hops.lock().purged(&state.purges[number].keys);
    }

    /// From now on no answer is older than `floors`: none at all, or none of this life.
    pub fn raise(&self, life: Option<u64>, floors: &[(Bytes, Floor)]) {
        let mut state = self.state.lock();
        for (key, floor) in floors {
            let known = state.floors.entry(key.clone()).or_default();
            let raised = match life {
                Some(life) => known.lives.entry(life).or_default(),
                None => &mut known.everywhere,
            };
            *raised = raised.with(*floor);
        }
    }

    /// Nothing more will happen to a key.
    pub fn forget(&self, key: &Bytes) {
        let mut state = self.state.lock();
        state.purges.clear();
        state.targets.clear();
        state.floors.remove(key);
        drop(state);
        self.hops.lock().forget();
    }

    /// A life may purge everything by itself.
    fn may_purge_everything(&self, life: u64) {
        self.state.lock().targets.insert((life, Target::Everything));
    }

    /// How many targets were purged by each life, equal ones once, and the bytes of all of them.
    pub fn targets(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.targets.len(), state.targets.iter().map(|(_, target)| target.value().len()).sum())
    }

    /// All purges.
    pub fn purges(&self) -> Vec<Purge> {
        self.state.lock().purges.clone()
    }

    /// What the answer to a request that this life gets now may not be older than.
    pub fn floor(&self, life: u64, key: &[u8]) -> Floor {
        let state = self.state.lock();
        let Some(floors) = state.floors.get(key) else { return Floor::default() };
        floors.everywhere.with(floors.lives.get(&life).copied().unwrap_or_default())
    }

    /// A client asks a life of a node; returns the fields of its request.
    pub fn client_asks(&self, incarnation: u64) -> Fields {
        self.hops.lock().request(incarnation)
    }

    fn note(&self, breach: Option<(&'static str, String)>) {
        if let Some((promise, detail)) = breach {
            self.trace.broken(promise, detail);
        }
    }

    fn note_owner(&self, key: &Bytes, owner: Place) {
        let mut state = self.state.lock();
        let owners = state.owners.entry(key.clone()).or_default();
        if !owners.contains(&owner) {
            owners.push(owner);
        }
    }

    /// How many nodes owned the key in some view.
    pub fn owners(&self, key: &[u8]) -> usize {
        self.state.lock().owners.get(key).map_or(1, Vec::len)
    }

    /// Counts a word for the report.
    pub fn count(&self, word: &'static str) {
        *self.state.lock().tally.entry(word).or_default() += 1;
    }

    /// What was counted.
    pub fn tally(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().tally.clone()
    }
}

impl Asked for Journal {
    fn heard(&self, heard: &Heard<'_>) {
        let Heard { place, asker, .. } = heard;
        match heard.what {
            What::Load(ask) => event!(self.trace, "life {asker} asks node {place} for {}", text(&ask.key)),
            What::Peek(ask) => event!(self.trace, "life {asker} peeks at {} of node {place}", text(&ask.key)),
            What::Offer(_) | What::Replicate(_) | What::Permit(_) => {}
        }
        self.note(self.hops.lock().heard(heard));
    }

    fn answered(&self, life: u64, key: &Bytes, fetched: &Fetched) {
        self.note(self.hops.lock().answered(life, key, fetched));
    }
}

/// How long a node that has said that it leaves is still there.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// How long a node that leaves hands over.
const LEAVING_MAX: Duration = Duration::from_secs(1);

/// How long a peer may take beside its origin, at most: the silence, the ticks by which it is counted, and connecting.
pub const PEER_MAX: Duration = Duration::from_millis(1600);
