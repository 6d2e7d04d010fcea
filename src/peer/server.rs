//! The answering side of one connection: every question in its own task, all answers on one wire.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use parking_lot::Mutex;
use pingora::protocols::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;
use tracing::{debug, warn};

use crate::fields::Fields;
use crate::fleet::Purpose;
use crate::peer::checksum::Checksum;
use crate::peer::connection::{Closed, HEAD_BYTES_EXTRA, Outbox, Pump};
use crate::peer::handshake::{HandshakeError, answer_upgrade, is_upgrade};
use crate::peer::protocol::{
    DATA_BYTES_MAX, Envelope, FIELDS_BYTES_MAX, Failure, GoodbyeReason, Head, Identity, Message, ProtocolError,
    Question, QuestionKind, Versions, WINDOW_BYTES_MAX, head_fits,
};
use crate::peer::purges::{decode_notice, encode_reply};
use crate::peer::{AskContext, LocalNode, Owner, Standing};
use crate::source::{FetchError, Fetched, Interim, InterimSink, Method, ReadyBody};
use crate::stats::{Counter, Tally};

/// Limits of the answering side.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Questions that one connection may have open; one more is refused with 503.
    pub questions_max: usize,
    /// From the upgrade to the last proof.
    pub handshake_timeout: Duration,
    /// How long a peer may not take a byte of what it asked for.
    pub stall_timeout: Duration,
    /// How long a peer may say nothing at all; it is pinged before.
    pub idle_timeout: Duration,
    /// How long open questions may take after the node was told to stop.
    pub drain_timeout: Duration,
    /// What is spoken; only tests set anything else.
    pub versions: Versions,
}

impl Default for ServerSettings {
    fn default() -> Self {
        ServerSettings {
            questions_max: 4096,
            handshake_timeout: Duration::from_secs(1),
            stall_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(20),
            versions: Versions::OURS,
        }
    }
}

/// What the answering side counts.
#[derive(Debug, Default)]
pub struct ServerCounters {
    /// Connections that became peers.
    pub connections: Counter,
    /// Questions that arrived.
    pub questions: Counter,
    /// Questions that their asker cancelled.
    pub cancelled: Counter,
    /// Panics while answering.
    pub panics: Counter,
    /// What was refused or cut off, by reason: the words of [`HandshakeError::word`] and [`ProtocolError::word`], and
    /// `too_many_questions`, `stalled`, `silent`.
    pub rejects: Tally,
}

/// Answers peers.
pub struct PeerServer {
    node: Arc<LocalNode>,
    owner: Arc<dyn Owner>,
    settings: ServerSettings,
    counters: Arc<ServerCounters>,
}

impl PeerServer {
    /// A server that lets `owner` answer.
    pub fn new(node: Arc<LocalNode>, owner: Arc<dyn Owner>, settings: ServerSettings) -> Arc<Self> {
        Arc::new(PeerServer { node, owner, settings, counters: Arc::default() })
    }

    /// What was counted so far.
    pub fn counters(&self) -> &ServerCounters {
        &self.counters
    }

    /// Runs one connection to its end, from the moment when the upgrade request was read (see
    /// [`crate::peer::handshake::is_upgrade`]); `surplus` is what was read after its head. Writes the 101 itself. When `shutdown`
    /// turns true, open questions are finished and new ones refused.
    pub async fn serve(&self, mut stream: Stream, surplus: Bytes, mut shutdown: watch::Receiver<bool>) {
        let identity = self.node.identity(0);
        let told = Standing { draining: identity.draining, ring_id: identity.ring_id };
        let secrets = self.node.secrets();
        let (versions, timeout) = (self.settings.versions, self.settings.handshake_timeout);
        let proven = match answer_upgrade(&mut stream, &surplus, &secrets, identity, versions, timeout).await {
            Ok(proven) => proven,
            Err(error) => {
                self.counters.rejects.increment(error.word());
                match error {
                    HandshakeError::Connection(_) => debug!(%error, "peer handshake failed"),
                    _ => warn!(%error, "peer refused"),
                }
                return;
            }
        };
        drop(surplus);
        self.counters.connections.increment();
        let outbox = Outbox::new();
        let mut pump = Pump::new(stream, proven.reader, outbox.clone(), true);
        let conversation = Arc::new(Conversation {
            outbox,
            open: Mutex::default(),
            finished: Notify::new(),
            stopping: AtomicBool::new(false),
            sign_interval: sign_interval(&proven.remote),
            remote: proven.remote,
        });
        let end = self.converse(&conversation, &mut pump, told, &mut shutdown).await;
        let mut open: Vec<_> = conversation.open.lock().drain().collect();
        // In the order of asking, so that what follows is the same in every run.
        open.sort_unstable_by_key(|(request, _)| *request);
        for (_, outbound) in open {
            outbound.abort();
        }
        if let End::Goodbye(reason, text) = end {
            conversation.outbox.push(0, &Message::Goodbye { reason, text: text.into() });
            conversation.outbox.close();
            let _ = tokio::time::timeout(GOODBYE_TIMEOUT, pump.flush()).await;
            let _ = tokio::time::timeout(GOODBYE_TIMEOUT, pump.shutdown()).await;
        } else {
            conversation.outbox.close();
        }
    }

    /// Reads the upgrade request from a fresh stream, then [`PeerServer::serve`]: for streams that no HTTP listener accepted.
    /// Anything but the upgrade gets 400.
    pub async fn accept(&self, mut stream: Stream, shutdown: watch::Receiver<bool>) {
        let read = tokio::time::timeout(self.settings.handshake_timeout, read_upgrade(&mut stream));
        match read.await.unwrap_or(None) {
            Some(surplus) => self.serve(stream, surplus, shutdown).await,
            None => {
                self.counters.rejects.increment("handshake_upgrade");
                let _ = stream
                    .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    .await;
                let _ = stream.flush().await;
            }
        }
    }

    async fn converse(
        &self,
        conversation: &Arc<Conversation>,
        pump: &mut Pump,
        mut told: Standing,
        shutdown: &mut watch::Receiver<bool>,
    ) -> End {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watchdog = Watchdog::default();
        let mut stopping: Option<Pin<Box<tokio::time::Sleep>>> = None;
        loop {
            // Before the first read too: frames may have come with the last words of the handshake.
            loop {
                match pump.reader().next_frame() {
                    Ok(None) => break,
                    Ok(Some(envelope)) => {
                        if let Err(end) = self.dispatch(conversation, envelope, stopping.is_some()) {
                            return end;
                        }
                    }
                    Err(error) => return self.violation(error),
                }
            }
            if stopping.is_some() && conversation.open.lock().is_empty() {
                return End::Goodbye(GoodbyeReason::Shutdown, "shutting down");
            }
            tokio::select! {
                biased;
                turned = pump.turn() => match turned {
                    Ok(true) => watchdog.heard(),
                    Ok(false) | Err(_) => return End::Connection,
                },
                () = conversation.finished.notified() => {}
                now = self.node.standing_other_than(told) => {
                    told = now;
                    conversation.outbox.push(0, &now.message());
                }
                true = told_to_stop(shutdown), if stopping.is_none() => {
                    conversation.stopping.store(true, Ordering::SeqCst);
                    conversation.outbox.push(0, &Standing { draining: true, ..told }.message());
                    stopping = Some(Box::pin(tokio::time::sleep(self.settings.drain_timeout)));
                }
                () = async { match &mut stopping { Some(limit) => limit.await, None => std::future::pending().await } } => {
                    return End::Goodbye(GoodbyeReason::Shutdown, "shutting down");
                }
                _ = ticks.tick() => {
                    if let Some(word) = watchdog.tick(pump, &conversation.outbox, &self.settings) {
                        self.counters.rejects.increment(word);
                        return End::Connection;
                    }
                }
            }
        }
    }

    fn violation(&self, error: ProtocolError) -> End {
        self.counters.rejects.increment(error.word());
        warn!(%error, "a peer speaks garbage");
        End::Goodbye(
            GoodbyeReason::ProtocolError,
            match error {
                ProtocolError::Oversize => "frame too long",
                ProtocolError::Malformed(what) => what,
            },
        )
    }

    fn dispatch(&self, conversation: &Arc<Conversation>, envelope: Envelope, stopping: bool) -> Result<(), End> {
        let Envelope { request, message } = envelope;
        match message {
            Message::Ask(question) => {
                if request == 0 || conversation.open.lock().contains_key(&request) {
                    return Err(self.violation(ProtocolError::Malformed("number of a question")));
                }
                self.counters.questions.increment();
                if stopping && !question.kind.is_for_memory() {
                    conversation.outbox.push(request, &Message::Failure(Failure::Draining));
                } else if conversation.open.lock().len() >= self.settings.questions_max {
                    self.counters.rejects.increment("too_many_questions");
                    let failure = Failure::Refused(503, "too many requests between peers".into());
                    conversation.outbox.push(request, &Message::Failure(failure));
                } else if !self.answer_at_once(conversation, request, &question) {
                    self.start(conversation, request, *question);
                }
            }
            Message::Credit(bytes) => {
                let outbound = conversation.open.lock().get(&request).cloned();
                if outbound.is_some_and(|outbound| !outbound.grant(bytes)) {
                    return Err(self.violation(ProtocolError::Malformed("credit")));
                }
            }
            Message::Cancel => {
                if let Some(outbound) = conversation.open.lock().remove(&request) {
                    self.counters.cancelled.increment();
                    outbound.abort();
                }
            }
            Message::Ping(number) => conversation.outbox.push(0, &Message::Pong(number)),
            Message::Pong(_) | Message::Status { .. } | Message::Unknown => {}
            Message::Goodbye { .. } => return Err(End::Connection),
            Message::Hello(_)
            | Message::Challenge(_)
            | Message::Proof(_)
            | Message::Identity(_)
            | Message::Accepted
            | Message::Loading
            | Message::Interim(_)
            | Message::Head(_)
            | Message::Data(_)
            | Message::End { .. }
            | Message::Abort { .. }
            | Message::Failure(_) => return Err(self.violation(ProtocolError::Malformed("unexpected message"))),
        }
        Ok(())
    }

    /// Answers out of memory what needs neither a future nor credit; false when that cannot be.
    fn answer_at_once(&self, conversation: &Conversation, request: u64, question: &Question) -> bool {
        if question.kind != QuestionKind::Load {
            return false;
        }
        let context =
            AskContext { ring_id: question.ring_id, asker: conversation.remote.incarnation, have: question.have };
        let bytes_max = DATA_BYTES_MAX.min(question.window as usize);
        let fits = |head_bytes: usize, body_bytes: usize| {
            body_bytes <= bytes_max
                && head_bytes <= FIELDS_BYTES_MAX
                && conversation.outbox.has_room_for_whole(head_bytes, body_bytes)
        };
        // Who panics here does so again where it is counted.
        let answer = || self.owner.at_once(&question.ask, &context, &fits);
        let answer = catch_unwind(AssertUnwindSafe(answer)).unwrap_or_default();
        answer
            .is_some_and(|whole| (200..=599).contains(&whole.status) && conversation.outbox.push_whole(request, whole))
    }

    /// Answers at once what can be answered at once, and in a task of its own what cannot. The answer is tried here first
    /// because most questions are hits: these then cost no task, and all that arrived together leave together.
    fn start(&self, conversation: &Arc<Conversation>, request: u64, question: Question) {
        let outbound = Arc::new(Outbound::new(question.window));
        let context =
            AskContext { ring_id: question.ring_id, asker: conversation.remote.incarnation, have: question.have };
        let answering = Answering {
            request,
            outbox: conversation.outbox.clone(),
            outbound: outbound.clone(),
            sign_interval: conversation.sign_interval,
        };
        let owner = self.owner.clone();
        let mut answer = Box::pin(answering.clone().run(owner, question, context));
        // Whatever the future waits for hears of the new waker when its task polls it, which is at once.
        let first = catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))));
        match first {
            Ok(Poll::Ready(())) => {}
            Err(_) => {
                self.counters.panics.increment();
                answering.panicked();
            }
            Ok(Poll::Pending) => {
                conversation.open.lock().insert(request, outbound.clone());
                let guard =
                    Finish { conversation: conversation.clone(), request, answering, counters: self.counters.clone() };
                let task = tokio::spawn(async move {
                    let guard = guard;
                    answer.await;
                    drop(guard);
                });
                outbound.set_task(task.abort_handle());
            }
        }
    }
}

impl Standing {
    fn message(self) -> Message {
        Message::Status { draining: self.draining, ring_id: self.ring_id }
    }
}

/// The answer to what has no answer.
fn done() -> Fetched {
    Fetched { status: 204, ..with_body(Bytes::new()) }
}

fn with_body(body: Bytes) -> Fetched {
    Fetched {
        status: 200,
        fields: Fields::empty(),
        content_length: Some(body.len() as u64),
        close_delimited: false,
        hop: None,
        body: Box::new(ReadyBody::new([body])),
    }
}

/// One connection's questions.
struct Conversation {
    outbox: Arc<Outbox>,
    open: Mutex<HashMap<u64, Arc<Outbound>>>,
    /// Wakes the connection's task when a question ends, once it is stopping.
    finished: Notify,
    stopping: AtomicBool,
    sign_interval: Duration,
    remote: Identity,
}

enum End {
    Connection,
    Goodbye(GoodbyeReason, &'static str),
}

/// Removes a question whose task ends, whatever the way: done, panicked or aborted.
struct Finish {
    conversation: Arc<Conversation>,
    request: u64,
    answering: Answering,
    counters: Arc<ServerCounters>,
}

impl Drop for Finish {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.counters.panics.increment();
            self.answering.panicked();
        }
        self.conversation.open.lock().remove(&self.request);
        if self.conversation.stopping.load(Ordering::SeqCst) {
            self.conversation.finished.notify_one();
        }
    }
}

/// One question being answered.
#[derive(Clone)]
struct Answering {
    request: u64,
    outbox: Arc<Outbox>,
    outbound: Arc<Outbound>,
    sign_interval: Duration,
}

impl Answering {
    async fn run(self, owner: Arc<dyn Owner>, question: Question, context: AskContext) {
        let method = question.ask.method;
        match self.head(owner, question, context).await {
            Ok(Some(fetched)) => {
                // A connection that closed has nobody left to tell.
                let _ = self.send(fetched, method).await;
            }
            Ok(None) => self.outbox.push(self.request, &Message::Failure(Failure::NotFound)),
            Err(error) => self.fail(error),
        }
    }

    /// Waits for the head and gives signs of life meanwhile, but none when the answer is there at once.
    async fn head(
        &self,
        owner: Arc<dyn Owner>,
        question: Question,
        context: AskContext,
    ) -> Result<Option<Fetched>, FetchError> {
        let mut head = pin!(async move {
            match question.kind {
                QuestionKind::Load => owner.get_as_owner(question.ask, context, self).await.map(Some),
                QuestionKind::Peek => owner.peek(question.ask, context).await,
                QuestionKind::Purge => {
                    let notice =
                        decode_notice(question.purges).map_err(|error| FetchError::unreachable(error.to_string()))?;
                    owner.purge(notice).await.map(|reply| Some(with_body(encode_reply(&reply))))
                }
                QuestionKind::Offer => owner.offered(question.ask, context).await.map(|()| Some(done())),
                QuestionKind::Replicate => owner.replicate(question.ask, context).await.map(|()| Some(done())),
                QuestionKind::Permit => owner.permit(&question.ask.group, Purpose::Begin, context).await.map(Some),
                QuestionKind::HoldPermit => {
                    owner.permit(&question.ask.group, Purpose::Continue, context).await.map(Some)
                }
            }
        });
        if let Poll::Ready(head) = poll_fn(|task| Poll::Ready(head.as_mut().poll(task))).await {
            return head;
        }
        self.outbox.push(self.request, &Message::Accepted);
        loop {
            tokio::select! {
                biased;
                head = &mut head => return head,
                () = tokio::time::sleep(self.sign_interval) => self.outbox.push(self.request, &Message::Loading),
            }
        }
    }

    async fn send(&self, fetched: Fetched, method: Method) -> Result<(), Closed> {
        // A body that only the end of a connection ended is not storable (the hop says so), but its end here is a real one.
        let Fetched { status, fields, content_length, close_delimited: _, hop, mut body } = fetched;
        let bodyless =
            method == Method::Head || hop.as_ref().is_some_and(|hop| hop.not_modified) || matches!(status, 204 | 304);
        let head = Head { status, fields, content_length, hop };
        if !head_fits(&head) {
            self.fail(FetchError::refused(502, "the header section is too long for a peer"));
            return Ok(());
        }
        let head_bytes = head.fields.len() + head.hop.as_ref().map_or(0, |hop| hop.sent.len()) + HEAD_BYTES_EXTRA;
        self.outbox.reserve(head_bytes).await?;
        self.outbound.headed.store(true, Ordering::Relaxed);
        self.outbox.push_reserved(self.request, &Message::Head(Box::new(head)), head_bytes);

        let mut checksum = Checksum::default();
        let mut sent_bytes: u64 = 0;
        loop {
            // What can have no body is not asked for one.
            let next = if bodyless { Ok(None) } else { body.chunk().await };
            match next {
                Ok(Some(mut chunk)) => {
                    checksum.update(&chunk);
                    while !chunk.is_empty() {
                        let bytes = self.outbound.take_credit(chunk.len().min(DATA_BYTES_MAX)).await;
                        self.outbox.reserve(bytes).await?;
                        self.outbox.push_data(self.request, chunk.split_to(bytes));
                        sent_bytes += bytes as u64;
                    }
                }
                Ok(None) if bodyless || content_length.is_none_or(|declared| declared == sent_bytes) => break,
                Ok(None) => {
                    self.abort("the body has another length than its head said".into());
                    return Ok(());
                }
                Err(error) => {
                    self.abort(error.to_string().into());
                    return Ok(());
                }
            }
        }
        let end = Message::End { length: sent_bytes, checksum: checksum.finish() };
        self.outbox.push(self.request, &end);
        Ok(())
    }

    fn fail(&self, error: FetchError) {
        let failure = match Failure::from(error) {
            Failure::Refused(status, reason) if !(500..=599).contains(&status) => Failure::Refused(502, reason),
            failure => failure,
        };
        self.outbox.push(self.request, &Message::Failure(failure));
    }

    fn abort(&self, reason: Cow<'static, str>) {
        self.outbox.push(self.request, &Message::Abort { reason });
    }

    fn panicked(&self) {
        if self.outbound.headed.load(Ordering::Relaxed) {
            self.abort("the owner failed".into());
        } else {
            self.fail(FetchError::refused(502, "the owner failed"));
        }
    }
}

/// What is heard goes to the asker, who does not know the kind of frame and passes it over, or passes it on. How many there may
/// be is for the flight to say.
impl InterimSink for Answering {
    fn hear(&self, interim: Interim) {
        if interim.fields.len() <= FIELDS_BYTES_MAX {
            self.outbox.push(self.request, &Message::Interim(interim));
        }
    }
}

/// What the asker has granted for one answer.
#[derive(Debug)]
struct Outbound {
    credit: Mutex<Credit>,
    headed: AtomicBool,
    task: Mutex<Option<AbortHandle>>,
}

#[derive(Debug)]
struct Credit {
    bytes: u32,
    waker: Option<Waker>,
}

impl Outbound {
    fn new(window_bytes: u32) -> Self {
        let credit = Mutex::new(Credit { bytes: window_bytes, waker: None });
        Outbound { credit, headed: AtomicBool::new(false), task: Mutex::new(None) }
    }

    /// Takes what there is, at most `wanted_bytes`; waits when there is nothing.
    async fn take_credit(&self, wanted_bytes: usize) -> usize {
        poll_fn(|context| {
            let mut credit = self.credit.lock();
            if credit.bytes == 0 {
                credit.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            let taken = (credit.bytes as usize).min(wanted_bytes);
            credit.bytes -= taken as u32;
            Poll::Ready(taken)
        })
        .await
    }

    /// False when that is more credit than anybody may have.
    fn grant(&self, bytes: u32) -> bool {
        let (allowed, waker) = {
            let mut credit = self.credit.lock();
            credit.bytes = credit.bytes.saturating_add(bytes);
            (credit.bytes <= WINDOW_BYTES_MAX, credit.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        allowed
    }

    fn set_task(&self, task: AbortHandle) {
        *self.task.lock() = Some(task);
    }

    fn abort(&self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}

/// Notices peers that take nothing, or say nothing.
#[derive(Debug, Default)]
struct Watchdog {
    written_bytes: u64,
    stalled: Duration,
    quiet: Duration,
}

impl Watchdog {
    fn heard(&mut self) {
        self.quiet = Duration::ZERO;
    }

    /// Returns why the connection is dead, if it is.
    fn tick(&mut self, pump: &Pump, outbox: &Outbox, settings: &ServerSettings) -> Option<&'static str> {
        let moved = pump.written_bytes() != self.written_bytes;
        self.written_bytes = pump.written_bytes();
        self.stalled = if pump.has_unwritten() && !moved { self.stalled + TICK } else { Duration::ZERO };
        if self.stalled >= settings.stall_timeout {
            return Some("stalled");
        }
        let ping_after = settings.idle_timeout / 2;
        let was_quiet = self.quiet;
        self.quiet += TICK;
        if was_quiet < ping_after && self.quiet >= ping_after {
            outbox.push(0, &Message::Ping(0));
        }
        (self.quiet >= settings.idle_timeout).then_some("silent")
    }
}

async fn read_upgrade(stream: &mut Stream) -> Option<Bytes> {
    let mut buffer = BytesMut::with_capacity(1024);
    loop {
        if stream.read_buf(&mut buffer).await.ok()? == 0 || buffer.len() > UPGRADE_BYTES_MAX {
            return None;
        }
        let mut lines = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut lines);
        if let httparse::Status::Complete(head_bytes) = request.parse(&buffer).ok()? {
            let fields = Fields::from_pairs(request.headers.iter().map(|field| (field.name, field.value))).ok()?;
            let upgrade = is_upgrade(request.method?, request.path?.as_bytes(), &fields);
            return upgrade.then(|| buffer.split_off(head_bytes).freeze());
        }
    }
}

async fn told_to_stop(shutdown: &mut watch::Receiver<bool>) -> bool {
    shutdown.wait_for(|stop| *stop).await.is_ok()
}

fn sign_interval(remote: &Identity) -> Duration {
    match remote.sign_milliseconds {
        0 => Duration::from_millis(250),
        wanted => Duration::from_millis(u64::from(wanted).clamp(10, 1000)),
    }
}

const UPGRADE_BYTES_MAX: usize = 2048;
const TICK: Duration = Duration::from_secs(1);
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(100);
