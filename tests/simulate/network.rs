//! The simulated network: who can reach whom now, and connections that carry the bytes of the real protocol late, in pieces,
//! not at all, or break.
//!
//! The transport is TCP's: within one connection bytes neither vanish nor change places. So what a network does to it is delay
//! (a lost packet is one that comes late), silence (a partition: the bytes come when it is healed, if anybody still waits), and
//! the end of the connection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use groupcache_proxy::peer::dial::Dial;
use groupcache_proxy::peer::server::PeerServer;
use parking_lot::Mutex;
use pingora::protocols::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use crate::random::Random;

/// Where something is: a node by its number, or the origin.
pub type Place = usize;

/// The place of the origin.
pub const ORIGIN: Place = usize::MAX;

/// Everything between the nodes.
pub struct Network {
    seed: u64,
    random: Random,
    /// What becomes of datagrams.
    datagrams: Random,
    delays: Delays,
    state: Mutex<State>,
    changed: Notify,
}

/// How long bytes are under way.
#[derive(Clone, Debug)]
pub struct Delays {
    /// Usually, in microseconds.
    pub usual: std::ops::Range<u64>,
    /// Of a hundred pieces so many are late, as after a lost packet.
    pub late_percent: u64,
    /// How late, in microseconds.
    pub late: std::ops::Range<u64>,
}

#[derive(Default)]
struct State {
    /// From whom to whom nothing gets through, and how many faults say so.
    blocked: BTreeMap<(Place, Place), u32>,
    paused: BTreeSet<Place>,
    servers: Vec<Option<Listener>>,
    connections: Vec<Arc<Connection>>,
    /// What a dead machine does to those who connect: nothing at all, where a dead process refuses.
    silent: BTreeSet<Place>,
    /// The sockets for datagrams.
    inboxes: Vec<Option<mpsc::Sender<(Place, Vec<u8>)>>>,
}

/// What comes to a socket, and where from.
pub type Datagrams = mpsc::Receiver<(Place, Vec<u8>)>;

#[derive(Clone)]
struct Listener {
    server: Arc<PeerServer>,
    shutdown: watch::Receiver<bool>,
}

struct Connection {
    ends: (Place, Place),
    number: u64,
    /// Nothing is carried any more, though the ends have not heard of it yet.
    dead: AtomicBool,
    is_cut: AtomicBool,
    /// Not a watch channel, whose receivers are woken in a random order.
    cut: Notify,
}

impl Connection {
    fn end(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        self.cut.notify_waiters();
    }

    async fn ended(&self) {
        let ended = self.cut.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if !self.is_cut.load(Ordering::SeqCst) {
            ended.await;
        }
    }
}

impl Network {
    pub fn new(seed: u64, nodes: usize, delays: Delays) -> Arc<Self> {
        let state = State { servers: vec![None; nodes], inboxes: vec![None; nodes], ..State::default() };
        let random = Random::new(seed, "network");
        let datagrams = Random::new(seed, "datagrams");
        Arc::new(Network { seed, random, datagrams, delays, state: Mutex::new(state), changed: Notify::new() })
    }

    /// How long the next piece is under way.
    pub fn delay(&self) -> Duration {
        self.delay_by(&self.random)
    }

    fn delay_by(&self, random: &Random) -> Duration {
        let late = random.percent(self.delays.late_percent);
        random.microseconds(if late { self.delays.late.clone() } else { self.delays.usual.clone() })
    }

    /// Whether something gets from one place to the other now.
    pub fn passes(&self, from: Place, to: Place) -> bool {
        let state = self.state.lock();
        !state.blocked.contains_key(&(from, to)) && !state.paused.contains(&from) && !state.paused.contains(&to)
    }

    /// Waits until something gets from one place to the other.
    pub async fn passable(&self, from: Place, to: Place) {
        self.wait_until(|| self.passes(from, to)).await;
    }

    async fn wait_until(&self, mut is_so: impl FnMut() -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if is_so() {
                return;
            }
            changed.await;
        }
    }

    /// Waits until the node runs.
    pub async fn running(&self, node: Place) {
        self.passable(node, node).await;
    }

    /// Whether the node is frozen.
    pub fn is_paused(&self, node: Place) -> bool {
        self.state.lock().paused.contains(&node)
    }

    /// Blocks the way from one place to another, or takes that back: everything gets through again when nobody blocks it any more.
    pub fn block(&self, from: Place, to: Place, blocked: bool) {
        self.change(|state| {
            let count = state.blocked.entry((from, to)).or_default();
            *count = if blocked { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                state.blocked.remove(&(from, to));
            }
        });
    }

    /// Freezes a node, or lets it go on.
    pub fn pause(&self, node: Place, paused: bool) {
        self.change(|state| match paused {
            true => state.paused.insert(node),
            false => state.paused.remove(&node),
        });
    }

    /// All ways are open and all nodes run.
    pub fn heal(&self) {
        self.change(|state| {
            state.blocked.clear();
            state.paused.clear();
            state.silent.clear();
        });
    }

    /// The connections between two nodes end.
    pub fn cut(&self, one: Place, other: Place) {
        let mut cut = Vec::new();
        self.state.lock().connections.retain(|connection| {
            let between = connection.ends == (one, other) || connection.ends == (other, one);
            if between {
                cut.push(connection.clone());
            }
            !between
        });
        for connection in cut {
            connection.end();
        }
    }

    /// A node listens.
    pub fn listen(&self, node: Place, server: Arc<PeerServer>, shutdown: watch::Receiver<bool>) {
        let mut state = self.state.lock();
        state.silent.remove(&node);
        state.servers[node] = Some(Listener { server, shutdown });
    }

    /// A node opens its socket for datagrams.
    pub fn bind(&self, node: Place) -> Datagrams {
        let (sender, receiver) = mpsc::channel(DATAGRAMS_UNREAD);
        self.state.lock().inboxes[node] = Some(sender);
        receiver
    }

    /// Sends a datagram, which may be lost, come twice, or be overtaken by another one.
    pub fn send(self: &Arc<Self>, from: Place, to: Place, packet: Vec<u8>) {
        let random = &self.datagrams;
        let copies = match random.percent(self.delays.late_percent) {
            true => 0,
            false => 1 + usize::from(random.percent(DOUBLED_PERCENT)),
        };
        for _ in 0..copies {
            let (network, packet, delay) = (self.clone(), packet.clone(), self.delay_by(random));
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let state = network.state.lock();
                if let Some(inbox) = state.inboxes[to].as_ref().filter(|_| !state.blocked.contains_key(&(from, to))) {
                    // More than the socket keeps is lost.
                    let _ = inbox.try_send((from, packet));
                }
            });
        }
    }

    /// A node dies: as a process, whose machine ends its connections, or with its machine, which says nothing to anybody.
    pub fn die(self: &Arc<Self>, node: Place, silently: bool) {
        let mut ending = Vec::new();
        self.change(|state| {
            state.servers[node] = None;
            state.inboxes[node] = None;
            state.paused.remove(&node);
            if silently {
                state.silent.insert(node);
            }
            state.connections.retain(|connection| {
                let (one, other) = connection.ends;
                let mine = one == node || other == node;
                if mine {
                    connection.dead.store(true, Ordering::SeqCst);
                    ending.push((connection.clone(), if one == node { other } else { one }));
                }
                !mine
            });
        });
        for (connection, other) in ending {
            let network = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(network.delay()).await;
                network.passable(node, other).await;
                // A machine that is back answers for connections it does not know.
                network.wait_until(|| !network.state.lock().silent.contains(&node)).await;
                connection.end();
            });
        }
    }

    /// Says that a dead machine is back, before anything listens on it.
    pub fn boot(&self, node: Place) {
        self.change(|state| state.silent.remove(&node));
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) {
        change(&mut self.state.lock());
        self.changed.notify_waiters();
    }

    /// A new connection, its end for the asker and that for the owner.
    fn connect(self: &Arc<Self>, from: Place, to: Place) -> (DuplexStream, DuplexStream) {
        let (asker, asker_end) = tokio::io::duplex(PIPE_BYTES);
        let (owner, owner_end) = tokio::io::duplex(PIPE_BYTES);
        let number = self.random.number(0..u64::MAX);
        let connection = Arc::new(Connection {
            ends: (from, to),
            number,
            dead: AtomicBool::new(false),
            is_cut: AtomicBool::new(false),
            cut: Notify::new(),
        });
        {
            let mut state = self.state.lock();
            // Nobody holds those that ended by themselves.
            state.connections.retain(|connection| Arc::strong_count(connection) > 1);
            state.connections.push(connection.clone());
        }
        let (asker_reads, asker_writes) = tokio::io::split(asker_end);
        let (owner_reads, owner_writes) = tokio::io::split(owner_end);
        tokio::spawn(carry(self.clone(), (from, to), connection.clone(), asker_reads, owner_writes));
        tokio::spawn(carry(self.clone(), (to, from), connection, owner_reads, asker_writes));
        (asker, owner)
    }
}

/// One direction of a connection.
async fn carry(
    network: Arc<Network>,
    (from, to): (Place, Place),
    connection: Arc<Connection>,
    mut reads: ReadHalf<DuplexStream>,
    mut writes: WriteHalf<DuplexStream>,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(PIECES_UNDER_WAY);
    // Delays of its own: what other connections carry does not change them.
    let random = Random::new(network.seed ^ connection.number, if from < to { "up" } else { "down" });
    let taking = {
        let network = network.clone();
        async move {
            let mut arrives = Instant::now();
            loop {
                let mut piece = BytesMut::with_capacity(PIECE_BYTES);
                match reads.read_buf(&mut piece).await {
                    Ok(bytes) if bytes > 0 => {}
                    _ => return,
                }
                arrives = arrives.max(Instant::now() + network.delay_by(&random));
                if sender.send((arrives, piece.freeze())).await.is_err() {
                    return;
                }
            }
        }
    };
    let giving = async {
        while let Some((arrives, piece)) = receiver.recv().await {
            tokio::time::sleep_until(arrives).await;
            network.passable(from, to).await;
            if connection.dead.load(Ordering::SeqCst) {
                return std::future::pending().await;
            }
            if writes.write_all(&piece).await.is_err() {
                // A socket that is closed answers what still comes with a reset, which ends both directions.
                network.passable(to, from).await;
                connection.end();
                return std::future::pending().await;
            }
        }
        network.passable(from, to).await;
        if connection.dead.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        let _ = writes.shutdown().await;
    };
    tokio::select! {
        biased;
        () = connection.ended() => {}
        _ = async { tokio::join!(taking, giving) } => {}
    }
}

/// How a node reaches another one.
pub struct SimulatedDial {
    pub network: Arc<Network>,
    pub from: Place,
    pub to: Place,
    /// False when the asking node is dead.
    pub alive: Arc<AtomicBool>,
}

#[async_trait]
impl Dial for SimulatedDial {
    async fn dial(&self) -> Result<Stream, String> {
        let network = &self.network;
        network.running(self.from).await;
        tokio::time::sleep(network.delay() + network.delay()).await;
        let listener = {
            let state = network.state.lock();
            let blocked =
                state.blocked.contains_key(&(self.from, self.to)) || state.blocked.contains_key(&(self.to, self.from));
            // The kernel of a frozen process accepts connections; a machine that is gone does not answer.
            if blocked || state.silent.contains(&self.to) { None } else { Some(state.servers[self.to].clone()) }
        };
        if !self.alive.load(Ordering::SeqCst) {
            return Err("this node is dead".to_owned());
        }
        match listener {
            None => std::future::pending().await,
            Some(None) => Err("connection refused".to_owned()),
            Some(Some(Listener { server, shutdown })) => {
                let (asker, owner) = network.connect(self.from, self.to);
                tokio::spawn(async move { server.accept(Box::new(owner), shutdown).await });
                Ok(Box::new(asker))
            }
        }
    }

    fn authority(&self) -> &str {
        "simulated"
    }
}

/// Of a hundred datagrams so many come twice.
const DOUBLED_PERCENT: u64 = 2;
/// What a socket keeps for a node that does not read.
const DATAGRAMS_UNREAD: usize = 200;
const PIPE_BYTES: usize = 16 * 1024;
const PIECE_BYTES: usize = 16 * 1024;
const PIECES_UNDER_WAY: usize = 16;
