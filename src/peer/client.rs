//! A peer over the native protocol: its connections, opened with the first question, kept, and renewed in the background.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::fields::Fields;
use crate::fleet::{Begun, Health, Pending, Purpose, Then};
use crate::membership::damping::{Damping, DampingSettings};
use crate::peer::connection::{Outbox, Pump};
use crate::peer::dial::Dial;
use crate::peer::exchange::{Exchange, SHUT_DOWN, SILENT, SILENT_TICKS, Tallies};
use crate::peer::handshake::{HandshakeError, ask_for_upgrade};
use crate::peer::protocol::{Identity, Question, QuestionKind, Versions, question_fits};
use crate::peer::purges::{decode_reply, encode_notice};
use crate::peer::{LocalNode, Peer, PeerState, PeerStatus};
use crate::purge::{Notice, Reply};
use crate::source::{Aside, Ask, Deaf, EntryId, FetchError, Fetched, InterimSink, Method, Source};

/// How long a peer may take for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To a connected stream, name resolution and TLS included.
    pub connect: Duration,
    /// From there to the last proof.
    pub handshake: Duration,
    /// Without any sign of life, while something is awaited.
    pub silence: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_millis(250),
            handshake: Duration::from_secs(1),
            silence: Duration::from_secs(1),
        }
    }
}

/// Settings of the asking side.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Connections to keep to the peer; each is run by one task.
    pub connections: usize,
    /// Which of the connections the next question is for, by a number that is taken modulo theirs; one that is down is passed
    /// over. The threads of the process keep one each, unless said otherwise.
    pub connection_choice: fn() -> usize,
    /// Bytes of one body that may be under way or unread.
    pub window_bytes: u32,
    /// Where connections live; `None`: on the runtime of whoever asks first. Fills should all run on one runtime.
    pub runtime: Option<Handle>,
    /// What is spoken; only tests set anything else.
    pub versions: Versions,
}

impl Default for ClientSettings {
    fn default() -> Self {
        ClientSettings {
            timeouts: Timeouts::default(),
            connections: 1,
            connection_choice: by_thread,
            window_bytes: 256 * 1024,
            runtime: None,
            versions: Versions::OURS,
        }
    }
}

/// A peer that speaks the native protocol. Dropping it ends its connections.
pub struct NativePeer {
    shared: Arc<Shared>,
}

struct Shared {
    node: Arc<LocalNode>,
    dial: Box<dyn Dial>,
    settings: ClientSettings,
    lines: Vec<Line>,
    stop: watch::Sender<bool>,
    requests: AtomicU64,
    tallies: Tallies,
    /// Whether there ever was a connection; before, the peer counts as up.
    reached: AtomicBool,
    /// Whether it said goodbye, and was not reached since.
    left: AtomicBool,
    speaks_go: AtomicBool,
    remote: Mutex<Option<Identity>>,
    /// A connection on which both know the same purges, whether questions go there yet or not.
    greeted: Mutex<Option<Arc<Exchange>>>,
}

/// One connection, present or wanted.
#[derive(Default)]
struct Line {
    state: Mutex<LineState>,
    changed: Notify,
}

#[derive(Clone, Default)]
enum LineState {
    /// Nobody has asked yet.
    #[default]
    Idle,
    /// The first attempt after a time without failure; worth waiting for.
    Connecting,
    Up(Arc<Exchange>),
    /// Failed. Somebody tries again in the background, and nobody waits for that.
    Down {
        reason: String,
        refused: bool,
    },
}

impl NativePeer {
    /// A peer that is not contacted before the first question (or [`NativePeer::connect`]).
    pub fn new(node: Arc<LocalNode>, dial: Box<dyn Dial>, settings: ClientSettings) -> Self {
        let lines = (0..settings.connections.max(1)).map(|_| Line::default()).collect();
        NativePeer {
            shared: Arc::new(Shared {
                node,
                dial,
                settings,
                lines,
                stop: watch::Sender::new(false),
                requests: AtomicU64::new(0),
                tallies: Tallies::default(),
                reached: AtomicBool::new(false),
                left: AtomicBool::new(false),
                speaks_go: AtomicBool::new(false),
                remote: Mutex::new(None),
                greeted: Mutex::new(None),
            }),
        }
    }

    /// Opens the connections now, so that the first question need not.
    pub fn connect(&self) {
        for index in 0..self.shared.lines.len() {
            self.shared.start(index);
        }
    }

    /// Whether the peer is worth a question now; cheap, since every question asks it.
    pub(super) fn health(&self) -> Health {
        let shared = &self.shared;
        let mut health = Health::Down;
        for line in &shared.lines {
            match &*line.state.lock() {
                LineState::Up(exchange) if exchange.is_draining() => return Health::Draining,
                LineState::Up(_) | LineState::Idle | LineState::Connecting => health = Health::Up,
                // Never yet reached: it may be starting.
                LineState::Down { refused: false, .. } if !shared.reached.load(Ordering::Relaxed) => {
                    health = Health::Up
                }
                LineState::Down { .. } => {}
            }
        }
        health
    }

    /// Whether it ended in good order, as far as is known: it said goodbye, and no connection works.
    pub(super) fn has_left(&self) -> bool {
        self.shared.left.load(Ordering::Relaxed) && self.shared.any_exchange().is_none()
    }

    /// Whether the last contact answered the upgrade as Go's groupcache does.
    pub(super) fn speaks_go(&self) -> bool {
        self.shared.speaks_go.load(Ordering::Relaxed)
    }

    /// Tells the peer of purges, and waits until it has applied them. A peer that is leaving is told, too.
    ///
    /// # Errors
    /// Whether it has applied them is not known.
    pub async fn purge(&self, notice: &Notice) -> Result<Reply, FetchError> {
        // A connection that is only watched yet serves for this.
        let greeted = self.shared.greeted.lock().clone();
        let exchange = match greeted {
            Some(exchange) => exchange,
            None => self.shared.exchange(0).await?,
        };
        self.shared.purge(&exchange, notice).await
    }

    /// Tells the peer that this node has an answer for a key that the peer owns, and waits until it has taken it.
    ///
    /// # Errors
    /// It was not taken.
    pub async fn offer(&self, ask: &Ask) -> Result<(), FetchError> {
        self.ask(QuestionKind::Offer, ask, Aside::default()).await.map(drop)
    }

    /// Tells the peer to take a replica of what this node owns, and waits until it has.
    ///
    /// # Errors
    /// It has not.
    pub async fn replicate(&self, ask: &Ask) -> Result<(), FetchError> {
        self.ask(QuestionKind::Replicate, ask, Aside::default()).await.map(drop)
    }

    /// Asks for a permit for a request at the origin of `group`; it lasts as long as the body of the answer.
    ///
    /// # Errors
    /// As [`Source::fetch`].
    pub async fn permit(&self, group: &Arc<str>, purpose: Purpose) -> Result<Fetched, FetchError> {
        let kind = match purpose {
            Purpose::Begin => QuestionKind::Permit,
            Purpose::Continue => QuestionKind::HoldPermit,
        };
        // It is about the group as a whole.
        let ask = Ask {
            group: group.clone(),
            key: Bytes::new(),
            target: Bytes::from_static(b"/"),
            host: None,
            method: Method::Get,
            fields: Fields::empty(),
        };
        let answer = self.ask(kind, &ask, Aside::default()).await?;
        answer.ok_or_else(|| FetchError::unreachable("the peer knows no permits"))
    }

    /// Asks as [`Source::fetch_with`] does; see [`crate::fleet::Peer::begin`].
    pub fn begin(&self, ask: &Ask, have: EntryId, then: Then) {
        let shared = &self.shared;
        let line = &shared.lines[shared.next_line()];
        let exchange = match &*line.state.lock() {
            LineState::Up(exchange) if !exchange.is_draining() && question_fits(ask) => Some(exchange.clone()),
            _ => None,
        };
        let then = match exchange {
            Some(exchange) => match exchange.begin(ask, have, shared.node.ring_id(), then) {
                Ok(()) => {
                    shared.requests.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Err(then) => then,
            },
            None => then,
        };
        then(Begun::Later(Box::new(Unconnected { shared: shared.clone(), ask: ask.clone(), have })));
    }

    async fn ask(&self, kind: QuestionKind, ask: &Ask, aside: Aside<'_>) -> Result<Option<Fetched>, FetchError> {
        self.shared.ask(kind, ask, aside).await
    }
}

#[async_trait]
impl Source for NativePeer {
    async fn fetch(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        self.fetch_with(ask, Aside::default()).await
    }

    async fn fetch_with(&self, ask: &Ask, aside: Aside<'_>) -> Result<Fetched, FetchError> {
        self.shared.load(ask, aside).await
    }
}

#[async_trait]
impl Peer for NativePeer {
    async fn peek(&self, ask: &Ask, have: EntryId) -> Result<Option<Fetched>, FetchError> {
        self.ask(QuestionKind::Peek, ask, Aside { have, ..Aside::default() }).await
    }

    fn status(&self) -> PeerStatus {
        let shared = &self.shared;
        let remote = shared.remote.lock().clone();
        PeerStatus {
            state: shared.state(),
            protocol: if shared.speaks_go.load(Ordering::Relaxed) {
                "go"
            } else if remote.is_some() {
                "native"
            } else {
                "unknown"
            },
            ring_id: shared.ring_id().or(remote.as_ref().map(|remote| remote.ring_id)),
            incarnation: remote.as_ref().map(|remote| remote.incarnation),
            version: remote.map(|remote| remote.software),
            requests: shared.requests.load(Ordering::Relaxed),
            errors: shared.tallies.errors.load(Ordering::Relaxed),
            buffered_bytes: shared.tallies.buffered_bytes.load(Ordering::Relaxed),
            hit_time: match shared.tallies.hit_microseconds.load(Ordering::Relaxed) {
                0 => None,
                microseconds => Some(Duration::from_micros(microseconds)),
            },
        }
    }
}

impl Drop for NativePeer {
    fn drop(&mut self) {
        self.shared.stop.send_replace(true);
    }
}

/// A question for which there is no connection yet.
struct Unconnected {
    shared: Arc<Shared>,
    ask: Ask,
    have: EntryId,
}

#[async_trait]
impl Pending for Unconnected {
    async fn answer(self: Box<Self>, interims: &dyn InterimSink) -> Result<Fetched, FetchError> {
        self.shared.load(&self.ask, Aside { have: self.have, interims, ..Aside::default() }).await
    }
}

impl Shared {
    async fn load(self: &Arc<Self>, ask: &Ask, aside: Aside<'_>) -> Result<Fetched, FetchError> {
        let answer = self.ask(QuestionKind::Load, ask, aside).await?;
        answer.ok_or_else(|| FetchError::unreachable("the peer answered a load as a peek"))
    }

    async fn ask(
        self: &Arc<Self>,
        kind: QuestionKind,
        ask: &Ask,
        aside: Aside<'_>,
    ) -> Result<Option<Fetched>, FetchError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let result = self.ask_uncounted(kind, ask, aside).await;
        self.tallies.count(result)
    }

    async fn ask_uncounted(
        self: &Arc<Self>,
        kind: QuestionKind,
        ask: &Ask,
        aside: Aside<'_>,
    ) -> Result<Option<Fetched>, FetchError> {
        if !question_fits(ask) {
            return Err(FetchError::unreachable("the question is too long for a peer"));
        }
        let exchange = self.exchange(self.next_line()).await?;
        // Who leaves does nothing more for others, but says what it has, and hears what it must forget.
        if exchange.is_draining() && !kind.is_for_memory() {
            return Err(FetchError::unreachable("draining"));
        }
        let ring_id = self.node.ring_id();
        let usual = self.settings.window_bytes;
        let window = aside.ahead_bytes_max.map_or(usual, |most| most.min(usual));
        exchange
            .ask(
                Question { kind, ask: ask.clone(), have: aside.have, ring_id, window, purges: Bytes::new() },
                aside.interims,
            )
            .await
    }

    /// The connection for the next question: one that works.
    fn next_line(&self) -> usize {
        let lines = self.lines.len();
        if lines == 1 {
            return 0;
        }
        let usual = (self.settings.connection_choice)() % lines;
        let is_down = |index: usize| matches!(&*self.lines[index].state.lock(), LineState::Down { .. });
        (usual..lines).chain(0..usual).find(|index| !is_down(*index)).unwrap_or(usual)
    }

    /// Any connection that works.
    fn any_exchange(&self) -> Option<Arc<Exchange>> {
        self.lines.iter().find_map(|line| match &*line.state.lock() {
            LineState::Up(exchange) => Some(exchange.clone()),
            _ => None,
        })
    }

    /// A connection to ask on. Waits for one that is being opened for the first time; never for one that failed before.
    async fn exchange(self: &Arc<Self>, index: usize) -> Result<Arc<Exchange>, FetchError> {
        let line = &self.lines[index];
        loop {
            let changed = line.changed.notified();
            let mut changed = pin!(changed);
            changed.as_mut().enable();
            let state = line.state.lock().clone();
            match state {
                LineState::Up(exchange) => return Ok(exchange),
                LineState::Down { reason, .. } => return Err(FetchError::unreachable(reason)),
                LineState::Idle => self.start(index),
                LineState::Connecting => {}
            }
            changed.await;
        }
    }

    /// Starts the task that keeps the connection, unless it runs.
    fn start(self: &Arc<Self>, index: usize) {
        let mut state = self.lines[index].state.lock();
        if matches!(*state, LineState::Idle) {
            *state = LineState::Connecting;
            let runtime = self.settings.runtime.clone().unwrap_or_else(Handle::current);
            runtime.spawn(self.clone().keep(index));
        }
    }

    /// Connects, runs the connection, connects again, until the peer is dropped.
    async fn keep(self: Arc<Self>, index: usize) {
        let mut stop = self.stop.subscribe();
        let mut retry = RETRY_MIN;
        let (begun, mut damping) = (Instant::now(), Damping::new(RETURN));
        loop {
            let connected = tokio::select! {
                biased;
                connected = self.connect() => connected,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            match connected {
                Ok((pump, exchange)) => {
                    retry = RETRY_MIN;
                    let since = Instant::now();
                    let silence = self.settings.timeouts.silence;
                    let mut run = pin!(exchange.run(pump, silence));
                    // Before any question, both know all purges that either knows.
                    let greeted = tokio::select! {
                        biased;
                        reason = &mut run => Err(reason),
                        _ = stop.wait_for(|stop| *stop) => return,
                        greeted = self.greet(&exchange) => greeted.map_err(|error| error.to_string()),
                    };
                    let hold = damping.hold(begun.elapsed());
                    let mut held = pin!(tokio::time::sleep(hold));
                    let mut holding = !hold.is_zero();
                    let ended = match greeted {
                        Err(reason) => Some(reason),
                        Ok(()) => {
                            *self.greeted.lock() = Some(exchange.clone());
                            let state = match holding {
                                true => {
                                    LineState::Down { reason: "back, and watched for a while".into(), refused: false }
                                }
                                false => LineState::Up(exchange.clone()),
                            };
                            self.set(index, state);
                            let ended = loop {
                                tokio::select! {
                                    biased;
                                    reason = &mut run => break Some(reason),
                                    _ = stop.wait_for(|stop| *stop) => break None,
                                    () = &mut held, if holding => {
                                        holding = false;
                                        self.set(index, LineState::Up(exchange.clone()));
                                    }
                                }
                            };
                            let mut greeted = self.greeted.lock();
                            if greeted.as_ref().is_some_and(|greeted| Arc::ptr_eq(greeted, &exchange)) {
                                *greeted = self.any_exchange().filter(|other| !Arc::ptr_eq(other, &exchange));
                            }
                            drop(greeted);
                            ended
                        }
                    };
                    let Some(reason) = ended else {
                        // Who reads a body reads it to its end, whether the fleet still names this peer or not.
                        exchange.stop();
                        run.await;
                        return;
                    };
                    info!(peer = self.dial.authority(), reason, "connection to a peer ended");
                    if reason == SHUT_DOWN {
                        self.left.store(true, Ordering::Relaxed);
                    }
                    if reason != SHUT_DOWN {
                        damping.failed(begun.elapsed());
                    }
                    if reason == SILENT {
                        // The peer is, unless it spoke on another connection just now: no question shall find out once more.
                        for line in &self.lines {
                            if let LineState::Up(exchange) = &*line.state.lock() {
                                exchange.give_up();
                            }
                        }
                    }
                    if since.elapsed() >= RETRY_MAX && reason != SILENT && !holding {
                        // It worked for a while: the next attempt may work too, and questions may wait for it. But a frozen
                        // node still accepts connections, and then says as little as before.
                        self.set(index, LineState::Connecting);
                        continue;
                    }
                    self.set(index, LineState::Down { reason, refused: false });
                }
                Err(failure) => {
                    debug!(peer = self.dial.authority(), reason = failure.reason, "peer not reached");
                    let new = !matches!(&*self.lines[index].state.lock(), LineState::Down { reason, .. } if *reason == failure.reason);
                    if new && failure.refused && !failure.like_go {
                        warn!(peer = self.dial.authority(), reason = failure.reason, "peer refused");
                    }
                    if failure.refused {
                        // Who cannot be reached may still be what it was.
                        self.speaks_go.store(failure.like_go, Ordering::Relaxed);
                    }
                    self.set(index, LineState::Down { reason: failure.reason, refused: failure.refused });
                    if failure.like_go {
                        retry = RETRY_GO;
                    }
                }
            }
            // A peer that was never reached is about to start: it shall not wait long for us then.
            let wait = if self.reached.load(Ordering::Relaxed) || retry == RETRY_GO { retry } else { RETRY_UNREACHED };
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    async fn connect(&self) -> Result<(Pump, Arc<Exchange>), ConnectFailure> {
        let timeouts = &self.settings.timeouts;
        let dialled = tokio::time::timeout(timeouts.connect, self.dial.dial()).await;
        let mut stream = dialled.unwrap_or_else(|_| Err("connect timeout".to_owned()))?;
        let sign_interval = timeouts.silence / SILENT_TICKS;
        let identity = self.node.identity(u32::try_from(sign_interval.as_millis()).unwrap_or(u32::MAX));
        let (secrets, versions) = (self.node.secrets(), self.settings.versions);
        let proven =
            ask_for_upgrade(&mut stream, self.dial.authority(), &secrets, identity, versions, timeouts.handshake)
                .await?;
        self.reached.store(true, Ordering::Relaxed);
        self.left.store(false, Ordering::Relaxed);
        self.speaks_go.store(false, Ordering::Relaxed);
        *self.remote.lock() = Some(proven.remote.clone());
        let outbox = Outbox::new();
        let exchange = Exchange::new(outbox.clone(), &proven.remote, self.settings.window_bytes, self.tallies.clone());
        Ok((Pump::new(stream, proven.reader, outbox, false), exchange))
    }

    async fn greet(&self, exchange: &Arc<Exchange>) -> Result<(), FetchError> {
        let Some(purges) = self.node.purges.get() else { return Ok(()) };
        let reply = self.purge(exchange, &purges.greeting()).await?;
        if let Some(missing) = purges.greeted(reply).await {
            self.purge(exchange, &missing).await?;
        }
        Ok(())
    }

    async fn purge(&self, exchange: &Arc<Exchange>, notice: &Notice) -> Result<Reply, FetchError> {
        let (method, fields) = (Method::Get, Fields::empty());
        let ask = Ask { group: "-".into(), key: Bytes::new(), target: "/".into(), host: None, method, fields };
        let mut reply = Reply::default();
        for purges in encode_notice(notice) {
            let (kind, have) = (QuestionKind::Purge, EntryId::default());
            let (ring_id, window) = (self.node.ring_id(), self.settings.window_bytes);
            let answer =
                exchange.ask(Question { kind, ask: ask.clone(), have, ring_id, window, purges }, &Deaf).await?;
            let mut body = answer.ok_or_else(|| FetchError::unreachable("no answer to a purge"))?.body;
            let mut bytes = BytesMut::new();
            while let Some(chunk) = body.chunk().await? {
                if bytes.len() + chunk.len() > REPLY_BYTES_MAX {
                    return Err(FetchError::unreachable("the answer to a purge is too long"));
                }
                bytes.extend_from_slice(&chunk);
            }
            let said = decode_reply(bytes.freeze()).map_err(|error| FetchError::unreachable(error.to_string()))?;
            let entries = [reply.entries, said.entries].concat();
            reply = Reply { entries, ..said };
            if !reply.understood {
                break;
            }
        }
        Ok(reply)
    }

    /// The peer's view of the ring, as it last said on a connection that lives.
    fn ring_id(&self) -> Option<u64> {
        self.any_exchange().map(|exchange| exchange.ring_id())
    }

    fn set(&self, index: usize, state: LineState) {
        *self.lines[index].state.lock() = state;
        self.lines[index].changed.notify_waiters();
    }

    fn state(&self) -> PeerState {
        let mut down = None;
        for line in &self.lines {
            match &*line.state.lock() {
                LineState::Up(exchange) if exchange.is_draining() => return PeerState::Draining,
                LineState::Up(_) => return PeerState::Up,
                LineState::Down { reason, refused: true } => down = Some(PeerState::Refused(reason.clone())),
                LineState::Down { reason, refused: false } if self.reached.load(Ordering::Relaxed) => {
                    down = Some(PeerState::Down(reason.clone()));
                }
                LineState::Down { .. } | LineState::Idle | LineState::Connecting => {}
            }
        }
        down.unwrap_or(PeerState::Up)
    }
}

/// Why there is no connection.
struct ConnectFailure {
    reason: String,
    /// Somebody answered, and not as a peer of ours.
    refused: bool,
    /// And that was Go's groupcache.
    like_go: bool,
}

impl From<String> for ConnectFailure {
    fn from(reason: String) -> Self {
        ConnectFailure { reason, refused: false, like_go: false }
    }
}

impl From<HandshakeError> for ConnectFailure {
    fn from(error: HandshakeError) -> Self {
        ConnectFailure {
            reason: error.to_string(),
            refused: error.is_refusal(),
            like_go: matches!(error, HandshakeError::Upgrade { like_go: true, .. }),
        }
    }
}

/// The questions of a thread take the same connection, so that those which arrive there together leave together.
fn by_thread() -> usize {
    THREAD.with(|thread| *thread)
}

thread_local! {
    /// Tells the threads of the process apart.
    static THREAD: usize = {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        COUNT.fetch_add(1, Ordering::Relaxed)
    };
}

/// All purges that a node keeps, encoded, with room to spare.
const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Until the next attempt after the first failure, and at most after many; in between it doubles.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Between attempts on a peer that never answered: a fleet is whole half a second after its last node listens.
const RETRY_UNREACHED: Duration = Duration::from_millis(200);
/// A peer whose connection breaks once may have had an accident; one that breaks it again and again is asked only after it
/// has been well for longer and longer. Guess.
const RETURN: DampingSettings = DampingSettings {
    free: 1,
    first: Duration::from_millis(500),
    most: Duration::from_secs(10),
    forgiven_after: Duration::from_secs(30),
};
/// Until a Go peer is asked again whether it has learnt the native protocol.
const RETRY_GO: Duration = Duration::from_secs(60);
