//! One life of one simulated node: the real cache, store, flights and peer protocol, in a simulated place.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use groupcache_proxy::cache::{Cache, Request};
use groupcache_proxy::clock::{Clock, Now};
use groupcache_proxy::fleet::{self, Fleet, Former, Purpose};
use groupcache_proxy::freshness::Rules;
use groupcache_proxy::group::{Group, KeyRule, Limit};
use groupcache_proxy::key::GroupId;
use groupcache_proxy::memory::Ledger;
use groupcache_proxy::peer::client::{ClientSettings, NativePeer};
use groupcache_proxy::peer::handshake::Secrets;
use groupcache_proxy::peer::link::PeerLink;
use groupcache_proxy::peer::server::{PeerServer, ServerSettings};
use groupcache_proxy::peer::{AskContext, KnowsPurges, LocalNode, Owner};
use groupcache_proxy::purge::{Notice, Reply};
use groupcache_proxy::ring::{Ring, RingKind, RingPeer};
use groupcache_proxy::slot::Slot;
use groupcache_proxy::source::{Aside, Ask, FetchError, Fetched, Fits, InterimSink, Whole};
use groupcache_proxy::stats::GroupStats;
use groupcache_proxy::store::{Settings, Store};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::direct::{DirectPeer, Host, Hosts};
use crate::hops::{Heard, What};
use crate::network::{Network, Place, SimulatedDial};
use crate::origin::{Origin, OriginOf};

/// One life of a node.
pub struct Node {
    pub place: Place,
    pub incarnation: u64,
    pub cache: Arc<Cache>,
    pub group: Arc<Group>,
    pub store: Arc<Store<Slot>>,
    pub clock: Arc<NodeClock>,
    pub alive: Arc<AtomicBool>,
    pub local: Arc<LocalNode>,
    /// What was alive outside of the store before the first request.
    pub outside_at_start: usize,
    /// Told when this life is about to leave.
    pub leaving: Notify,
    /// The connections to the members of the present list, and to former members.
    members: Mutex<Members>,
    shutdown: watch::Sender<bool>,
}

#[derive(Default)]
struct Members {
    links: BTreeMap<Place, Arc<PeerLink>>,
    former: Vec<Former<PeerLink>>,
}

/// Hears of every question that a node gets of a peer.
pub trait Asked: Send + Sync {
    /// One was asked.
    fn heard(&self, heard: &Heard<'_>);

    /// A life answers a peer's question for a key.
    fn answered(&self, life: u64, key: &Bytes, fetched: &Fetched) {
        let _ = (life, key, fetched);
    }
}

/// What all nodes of a run have in common.
pub struct Common {
    pub network: Arc<Network>,
    pub origin: Arc<Origin>,
    pub asked: Arc<dyn Asked>,
    pub memory_bytes: usize,
    pub rules: Rules,
    pub limit: Option<Limit>,
    /// Whether a majority decides about purges.
    pub strict: bool,
    pub links: Links,
    /// How many connections a node keeps to each peer.
    pub connections: usize,
    /// How long former members are told of purges.
    pub forget: Duration,
    pub hosts: Arc<Hosts>,
}

/// What lies between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// The real peer protocol over simulated connections.
    Wire,
    /// Calls that take their time: for very many nodes.
    Calls,
    /// Calls that take a few turns of other tasks and no time at all: for very many runs.
    Turns,
}

impl Node {
    /// A node that knows nobody yet; [`Node::see`] makes it part of a fleet.
    pub fn start(common: &Common, place: Place, incarnation: u64, wall_seconds: i64) -> Arc<Self> {
        let clock = Arc::new(NodeClock { started: Instant::now(), wall_seconds: AtomicI64::new(wall_seconds) });
        let alive = Arc::new(AtomicBool::new(true));
        let store = Store::new(Ledger::new(common.memory_bytes), &Settings::default(), None);
        let source = OriginOf { origin: common.origin.clone(), node: place, incarnation, alive: alive.clone() };
        let group = Arc::new(Group {
            id: GroupId(0),
            name: GROUP.into(),
            rules: common.rules.clone(),
            forward: Default::default(),
            variants_max: 4,
            keys: KeyRule::default(),
            cached: true,
            cookies_pass: false,
            object_bytes_max: 1 << 20,
            fill_timeout: Duration::from_secs(60),
            limit: common.limit,
            source: Arc::new(source),
            stats: Arc::new(GroupStats::default()),
        });
        let cache = Cache::new(store.clone(), clock.clone(), incarnation);
        let local = LocalNode::new("simulated", incarnation, Secrets::new(["secret"]));
        let owner = Arc::new(NodeOwner {
            place,
            life: incarnation,
            cache: cache.clone(),
            group: group.clone(),
            asked: common.asked.clone(),
        });
        local.set_purges(owner.clone());
        common.hosts.join(place, Host { owner: owner.clone(), incarnation, alive: alive.clone() });
        let server = PeerServer::new(local.clone(), owner, ServerSettings::default());
        let (shutdown, watching) = watch::channel(false);
        common.network.listen(place, server, watching);
        if common.strict {
            tokio::spawn(cache.clone().keep_lease());
        }
        let outside_at_start = store.ledger().outside();
        Arc::new(Node {
            place,
            incarnation,
            cache,
            group,
            store,
            clock,
            alive,
            local,
            outside_at_start,
            leaving: Notify::new(),
            members: Mutex::default(),
            shutdown,
        })
    }

    /// From now on the fleet is what this node sees: the nodes of `view`, in ascending order.
    pub fn see(&self, common: &Common, view: &[Place]) {
        let network = &common.network;
        let mut members = self.members.lock();
        let before = std::mem::take(&mut members.links);
        let named = before.iter().map(|(&place, link)| (url_of(place), link.clone()));
        let comes = |url: &str| place_of(url).is_some_and(|place| view.contains(&place));
        let kept_former = std::mem::take(&mut members.former);
        members.former = Former::of(&kept_former, named, comes, common.forget, self.clock.now().monotonic);
        let former = kept_former.into_iter().filter_map(|former| Some((place_of(&former.url)?, former.peer)));
        members.links = before.into_iter().chain(former).filter(|(place, _)| view.contains(place)).collect();
        let links = &mut members.links;
        let peers = view.iter().map(|&peer| {
            if peer == self.place {
                return None;
            }
            if common.links != Links::Wire {
                return Some(Arc::new(DirectPeer {
                    network: network.clone(),
                    hosts: common.hosts.clone(),
                    takes_time: common.links == Links::Calls,
                    from: self.place,
                    asker: self.incarnation,
                    to: peer,
                }) as Arc<dyn fleet::Peer>);
            }
            if let Some(link) = links.get(&peer) {
                return Some(link.clone() as Arc<dyn fleet::Peer>);
            }
            let dial =
                SimulatedDial { network: network.clone(), from: self.place, to: peer, alive: self.alive.clone() };
            let connections = common.connections;
            let settings = ClientSettings { connections, connection_choice: in_turn, ..ClientSettings::default() };
            let native = NativePeer::new(self.local.clone(), Box::new(dial), settings);
            let link = Arc::new(PeerLink::native(native));
            link.connect();
            links.insert(peer, link.clone());
            Some(link as Arc<dyn fleet::Peer>)
        });
        let ring = ring_of(view);
        self.local.set_ring_id(u64::from_be_bytes(ring.id().to_bytes()[..8].try_into().expect("eight bytes")));
        let urls = view.iter().map(|&peer| url_of(peer)).collect();
        let fleet = Fleet::new(ring, peers.collect(), |key| Some(key.into())).named(urls);
        let former = members.former.iter().cloned();
        let former =
            former.map(|Former { url, peer, since }| Former { url, peer: peer as Arc<dyn fleet::Peer>, since });
        let fleet = fleet.with_former(former.collect(), common.forget);
        self.cache.set_fleet(fleet.with_leases(common.strict));
    }

    /// Whether this life has ended.
    pub fn is_dead(&self) -> bool {
        !self.alive.load(Ordering::SeqCst)
    }

    /// Ends the conversations with its peers in good order.
    pub fn shut_down(&self) {
        self.shutdown.send_replace(true);
    }

    /// Ends this life: whatever its tasks still do reaches nobody.
    pub fn die(&self) {
        self.alive.store(false, Ordering::SeqCst);
        self.cache.set_fleet(Fleet::alone());
        *self.members.lock() = Members::default();
    }
}

thread_local! {
    /// Every run has a thread for itself.
    static TURN: Cell<usize> = const { Cell::new(0) };
}

/// Questions take the connections to a peer in turn, where threads of a process would each take their own.
fn in_turn() -> usize {
    TURN.with(|turn| turn.replace(turn.get().wrapping_add(1)))
}

/// A run begins with the first turn.
pub fn begin_turns() {
    TURN.with(|turn| turn.set(0));
}

/// The URL of the node at a place.
pub fn url_of(place: Place) -> String {
    format!("http://node-{place}:8082")
}

/// The place of the node with this URL.
pub fn place_of(url: &str) -> Option<Place> {
    url.strip_prefix("http://node-")?.strip_suffix(":8082")?.parse().ok()
}

/// The ring over these nodes. Computing one takes long, and few differ, so all runs of a process share them.
pub fn ring_of(view: &[Place]) -> Ring {
    static RINGS: Mutex<BTreeMap<Vec<Place>, Ring>> = Mutex::new(BTreeMap::new());
    let mut rings = RINGS.lock();
    rings
        .entry(view.to_vec())
        .or_insert_with(|| {
            let peers: Vec<_> = view.iter().map(|&peer| RingPeer::new(url_of(peer))).collect();
            Ring::new(RingKind::Balanced, 50, &peers)
        })
        .clone()
}

/// The clocks of one node: simulated time, and a wall clock that its administrator may set.
pub struct NodeClock {
    started: Instant,
    wall_seconds: AtomicI64,
}

impl NodeClock {
    /// Sets the wall clock forward or back.
    pub fn jump(&self, by_seconds: i64) {
        self.wall_seconds.fetch_add(by_seconds, Ordering::SeqCst);
    }
}

impl Clock for NodeClock {
    fn now(&self) -> Now {
        let monotonic = self.started.elapsed();
        Now { monotonic, wall_seconds: self.wall_seconds.load(Ordering::SeqCst) + monotonic.as_secs() as i64 }
    }
}

/// Answers peers, as the server's owner does for the groups of a configuration.
pub struct NodeOwner {
    pub place: Place,
    pub life: u64,
    pub cache: Arc<Cache>,
    pub group: Arc<Group>,
    pub asked: Arc<dyn Asked>,
}

impl NodeOwner {
    fn heard(&self, context: &AskContext, what: What<'_>) {
        self.asked.heard(&Heard { place: self.place, life: self.life, asker: context.asker, what });
    }
}

#[async_trait]
impl Owner for NodeOwner {
    async fn get_as_owner(
        &self,
        ask: Ask,
        context: AskContext,
        interims: &dyn InterimSink,
    ) -> Result<Fetched, FetchError> {
        self.heard(&context, What::Load(&ask));
        let aside = Aside { have: context.have, interims, ..Aside::default() };
        let fetched = self.cache.get_as_owner(&self.group, &Request::from_ask(&self.group, &ask), aside).await?;
        self.asked.answered(self.life, &ask.key, &fetched);
        Ok(fetched)
    }

    fn at_once(&self, ask: &Ask, context: &AskContext, fits: Fits<'_>) -> Option<Whole> {
        let whole = self.cache.find_for_peer(&self.group, ask, context.have, fits)?;
        self.heard(context, What::Load(ask));
        Some(whole)
    }

    async fn peek(&self, ask: Ask, context: AskContext) -> Result<Option<Fetched>, FetchError> {
        self.heard(&context, What::Peek(&ask));
        Ok(self.cache.peek(&self.group, &Request::from_ask(&self.group, &ask)))
    }

    async fn purge(&self, notice: Notice) -> Result<Reply, FetchError> {
        Ok(self.cache.receive_purges(notice).await)
    }

    async fn offered(&self, ask: Ask, context: AskContext) -> Result<(), FetchError> {
        self.heard(&context, What::Offer(&ask));
        self.cache.take_over(&self.group, &ask, context.asker).await
    }

    async fn replicate(&self, ask: Ask, context: AskContext) -> Result<(), FetchError> {
        self.heard(&context, What::Replicate(&ask));
        self.cache.take_replica(&self.group, &ask, context.asker).await
    }

    async fn permit(&self, _: &str, purpose: Purpose, context: AskContext) -> Result<Fetched, FetchError> {
        self.heard(&context, What::Permit(purpose));
        self.cache.grant_permit(&self.group, purpose, context.asker).await
    }
}

#[async_trait]
impl KnowsPurges for NodeOwner {
    fn greeting(&self) -> Notice {
        self.cache.purges_greeting()
    }

    async fn greeted(&self, reply: Reply) -> Option<Notice> {
        self.cache.purges_greeted(reply).await
    }
}

/// The name of the group that all nodes have.
pub const GROUP: &str = "simulated";
