//! The asking side of one connection: many questions at once, each with its own window of credit.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::peer::checksum::Checksum;
use crate::peer::connection::{Outbox, Pump};
use crate::peer::protocol::{
    Envelope, Failure, GoodbyeReason, Head, Identity, Message, ProtocolError, Question, QuestionKind,
};
use crate::source::{BodyStream, FetchError, Fetched, Interim, InterimSink, Method};

/// One proven connection to a peer, as askers share it.
#[derive(Debug)]
pub(super) struct Exchange {
    outbox: Arc<Outbox>,
    draining: AtomicBool,
    /// The peer's view of the ring, as it last said.
    ring_id: AtomicU64,
    streams: Mutex<Streams>,
    /// No new questions will come; the connection ends with the last open one.
    stopping: AtomicBool,
    stop: Notify,
    /// Bytes that arrived and were not taken, over all connections to the peer.
    buffered_bytes: Arc<AtomicU64>,
    window_bytes: u32,
}

#[derive(Debug, Default)]
struct Streams {
    open: HashMap<u64, Arc<Inbound>>,
    last_request: u64,
    closed: Option<String>,
}

impl Exchange {
    pub(super) fn new(
        outbox: Arc<Outbox>,
        remote: &Identity,
        window_bytes: u32,
        buffered_bytes: Arc<AtomicU64>,
    ) -> Arc<Self> {
        let (draining, ring_id) = (AtomicBool::new(remote.draining), AtomicU64::new(remote.ring_id));
        let (streams, stopping, stop) = (Mutex::default(), AtomicBool::new(false), Notify::new());
        Arc::new(Exchange { outbox, draining, ring_id, streams, stopping, stop, buffered_bytes, window_bytes })
    }

    /// Whether the peer is leaving.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The peer's view of the ring.
    pub(super) fn ring_id(&self) -> u64 {
        self.ring_id.load(Ordering::Relaxed)
    }

    /// Ends the connection as soon as no question is open.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.stop.notify_one();
    }

    /// Asks and waits for the head; `None` only for a peek. Dropping the future cancels the question.
    pub(super) async fn ask(
        self: &Arc<Self>,
        mut question: Question,
        interims: &dyn InterimSink,
    ) -> Result<Option<Fetched>, FetchError> {
        question.window = self.window_bytes;
        let (kind, method) = (question.kind, question.ask.method);
        let inbound = Arc::new(Inbound::new(self.window_bytes, self.buffered_bytes.clone()));
        let request = {
            let mut streams = self.streams.lock();
            if let Some(reason) = &streams.closed {
                return Err(FetchError::unreachable(reason.clone()));
            }
            streams.last_request += 1;
            let request = streams.last_request;
            streams.open.insert(request, inbound.clone());
            request
        };
        let asked = Asked { exchange: self.clone(), inbound, request };
        self.outbox.push(request, &Message::Ask(Box::new(question)));
        match asked.inbound.head(interims).await {
            Ok(head) => {
                // A head that only confirms, or that was all we asked for, has no body whatever it declares.
                let bodyless = method == Method::Head
                    || head.hop.as_ref().is_some_and(|hop| hop.not_modified)
                    || matches!(head.status, 204 | 304);
                let declared = if bodyless { Some(0) } else { head.content_length };
                let body = PeerBody { asked, declared, taken: 0, checksum: Checksum::default() };
                Ok(Some(Fetched {
                    status: head.status,
                    fields: head.fields,
                    content_length: head.content_length,
                    close_delimited: false,
                    hop: head.hop,
                    body: Box::new(body),
                }))
            }
            Err(Failure::NotFound) if kind == QuestionKind::Peek => Ok(None),
            Err(Failure::NotFound) => Err(FetchError::unreachable("the peer answered a load as a peek")),
            Err(Failure::Draining) => Err(FetchError::unreachable("draining")),
            Err(Failure::Unreachable(reason)) => Err(FetchError::Unreachable(reason)),
            Err(Failure::Refused(status, reason)) => Err(FetchError::Refused { status, reason }),
        }
    }

    /// Runs the connection until it ends; returns why. Every open question has failed by then.
    pub(super) async fn run(&self, mut pump: Pump, silence: Duration) -> String {
        let reason = self.converse(&mut pump, silence).await;
        self.outbox.close();
        let open = {
            let mut streams = self.streams.lock();
            streams.closed = Some(reason.clone());
            std::mem::take(&mut streams.open)
        };
        // In the order of asking, so that what follows is the same in every run.
        let mut open: Vec<_> = open.into_iter().collect();
        open.sort_unstable_by_key(|(request, _)| *request);
        for (_, inbound) in open {
            inbound.fail(Failure::Unreachable(reason.clone().into()));
        }
        reason
    }

    async fn converse(&self, pump: &mut Pump, silence: Duration) -> String {
        let mut ticks = tokio::time::interval(silence / SILENT_TICKS);
        // After a pause of our own process one tick passes, not all of those missed: the peer's frames are waiting to be read.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut quiet = Quiet::default();
        loop {
            // Before the first read too: frames may have come with the last words of the handshake.
            loop {
                match pump.reader().next_frame() {
                    Ok(None) => break,
                    Ok(Some(envelope)) => {
                        if let Err(end) = self.dispatch(envelope) {
                            return self.say_goodbye(pump, end).await;
                        }
                    }
                    Err(error) => return self.say_goodbye(pump, End::Violation(error)).await,
                }
            }
            tokio::select! {
                biased;
                turned = pump.turn() => match turned {
                    Ok(true) => quiet = Quiet::default(),
                    Ok(false) => return "the peer closed the connection".to_owned(),
                    Err(error) => return format!("the connection failed ({})", error.kind()),
                },
                () = self.stop.notified() => if self.streams.lock().open.is_empty() {
                    return "the connection is no longer needed".to_owned();
                },
                _ = ticks.tick() => {
                    if self.is_silent(&mut quiet) {
                        return SILENT.to_owned();
                    }
                }
            }
        }
    }

    async fn say_goodbye(&self, pump: &mut Pump, end: End) -> String {
        match end {
            End::Violation(error) => {
                let text = error.to_string();
                self.outbox
                    .push(0, &Message::Goodbye { reason: GoodbyeReason::ProtocolError, text: text.clone().into() });
                let _ = tokio::time::timeout(GOODBYE_TIMEOUT, pump.flush()).await;
                format!("the peer speaks garbage: {text}")
            }
            End::Goodbye(reason) => reason,
        }
    }

    fn dispatch(&self, envelope: Envelope) -> Result<(), End> {
        let Envelope { request, message } = envelope;
        let violation = |what| Err(End::Violation(ProtocolError::Malformed(what)));
        match message {
            Message::Ping(number) => self.outbox.push(0, &Message::Pong(number)),
            Message::Pong(_) | Message::Unknown => {}
            Message::Status { draining, ring_id } => {
                self.draining.store(draining, Ordering::Relaxed);
                if ring_id != 0 {
                    self.ring_id.store(ring_id, Ordering::Relaxed);
                }
            }
            Message::Goodbye { reason, text } => {
                return Err(End::Goodbye(match reason {
                    GoodbyeReason::Shutdown => SHUT_DOWN.to_owned(),
                    _ => format!("the peer said goodbye: {text}"),
                }));
            }
            Message::Accepted | Message::Loading => {
                if let Some(inbound) = self.inbound(request) {
                    inbound.sign();
                }
            }
            Message::Interim(interim) => {
                if let Some(inbound) = self.inbound(request) {
                    inbound.push_interim(interim);
                }
            }
            Message::Head(head) => match self.inbound(request) {
                Some(inbound) if !inbound.set_head(*head) => return violation("second head"),
                _ => {}
            },
            Message::Data(payload) => match self.inbound(request) {
                Some(inbound) if !inbound.push(payload) => {
                    return violation("data before the head or beyond the credit");
                }
                _ => {}
            },
            Message::End { length, checksum } => {
                if !self.finish(request, Ok((length, checksum))) {
                    return violation("end before the head");
                }
            }
            Message::Abort { reason } => {
                if !self.finish(request, Err(FetchError::Broken(reason))) {
                    return violation("abort before the head");
                }
            }
            Message::Failure(failure) => {
                if let Some(inbound) = self.close(request) {
                    inbound.fail(failure);
                }
            }
            Message::Hello(_)
            | Message::Challenge(_)
            | Message::Proof(_)
            | Message::Identity(_)
            | Message::Ask(_)
            | Message::Credit(_)
            | Message::Cancel => return violation("unexpected message"),
        }
        Ok(())
    }

    /// One tick has passed. Gives up the questions without a sign of life; returns whether the whole connection is dead.
    fn is_silent(&self, quiet: &mut Quiet) -> bool {
        let mut silent = Vec::new();
        let idle = {
            let mut streams = self.streams.lock();
            streams.open.retain(|&request, inbound| {
                let keep = inbound.tick() < SILENT_TICKS;
                if !keep {
                    silent.push((request, inbound.clone()));
                }
                keep
            });
            streams.open.is_empty() && silent.is_empty()
        };
        // In the order of asking, so that what follows is the same in every run.
        silent.sort_unstable_by_key(|(request, _)| *request);
        for (request, inbound) in silent {
            self.outbox.push(request, &Message::Cancel);
            inbound.fail(Failure::Unreachable(SILENT.into()));
        }
        quiet.ticks += 1;
        match quiet.pinged_at {
            // Counted from the ping: a question asked late in a quiet time must not be the end of the connection.
            Some(pinged_at) => quiet.ticks - pinged_at >= SILENT_TICKS - BUSY_PING_TICKS,
            None => {
                if quiet.ticks >= if idle { IDLE_PING_TICKS } else { BUSY_PING_TICKS } {
                    quiet.pinged_at = Some(quiet.ticks);
                    self.outbox.push(0, &Message::Ping(u64::from(quiet.ticks)));
                }
                false
            }
        }
    }

    fn finish(&self, request: u64, end: Result<(u64, u64), FetchError>) -> bool {
        self.close(request).is_none_or(|inbound| inbound.finish(end))
    }

    fn inbound(&self, request: u64) -> Option<Arc<Inbound>> {
        self.streams.lock().open.get(&request).cloned()
    }

    fn close(&self, request: u64) -> Option<Arc<Inbound>> {
        let inbound = self.streams.lock().open.remove(&request);
        if self.stopping.load(Ordering::SeqCst) {
            self.stop.notify_one();
        }
        inbound
    }
}

/// How long nothing at all has arrived.
#[derive(Debug, Default)]
struct Quiet {
    ticks: u32,
    pinged_at: Option<u32>,
}

enum End {
    Violation(ProtocolError),
    Goodbye(String),
}

/// A question that is open; dropping it tells the owner that nobody waits any longer.
struct Asked {
    exchange: Arc<Exchange>,
    inbound: Arc<Inbound>,
    request: u64,
}

impl Drop for Asked {
    fn drop(&mut self) {
        if self.exchange.close(self.request).is_some() {
            self.exchange.outbox.push(self.request, &Message::Cancel);
        }
        self.inbound.forget();
    }
}

/// What has arrived for one question, between the connection's task and its one reader.
#[derive(Debug)]
struct Inbound {
    state: Mutex<InboundState>,
    buffered_bytes: Arc<AtomicU64>,
    window_bytes: u32,
}

#[derive(Debug)]
struct InboundState {
    head: HeadState,
    /// Those that the asker has not been given yet.
    interims: VecDeque<Interim>,
    chunks: VecDeque<Bytes>,
    chunks_bytes: u64,
    /// What the owner may still send.
    credit_bytes: u32,
    /// What the reader took and the owner was not told of.
    ungranted_bytes: u32,
    end: Option<Result<(u64, u64), FetchError>>,
    quiet_ticks: u32,
    /// Nobody reads any more; what was on its way is dropped.
    forgotten: bool,
    waker: Option<Waker>,
}

#[derive(Debug)]
enum HeadState {
    Awaited,
    Arrived(Result<Box<Head>, Failure>),
    Taken,
}

impl Inbound {
    fn new(window_bytes: u32, buffered_bytes: Arc<AtomicU64>) -> Self {
        let state = InboundState {
            head: HeadState::Awaited,
            interims: VecDeque::new(),
            chunks: VecDeque::new(),
            chunks_bytes: 0,
            credit_bytes: window_bytes,
            ungranted_bytes: 0,
            end: None,
            quiet_ticks: 0,
            forgotten: false,
            waker: None,
        };
        Inbound { state: Mutex::new(state), buffered_bytes, window_bytes }
    }

    async fn head(&self, interims: &dyn InterimSink) -> Result<Head, Failure> {
        poll_fn(|context| {
            // One by one, so that nobody is called under the lock.
            loop {
                let Some(interim) = self.state.lock().interims.pop_front() else { break };
                interims.hear(interim);
            }
            let mut state = self.state.lock();
            match std::mem::replace(&mut state.head, HeadState::Taken) {
                HeadState::Arrived(result) => Poll::Ready(result.map(|head| *head)),
                awaited => {
                    state.head = awaited;
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn sign(&self) {
        self.state.lock().quiet_ticks = 0;
    }

    /// Counts the ticks without a sign of life; none are counted once there is a head.
    fn tick(&self) -> u32 {
        let mut state = self.state.lock();
        match state.head {
            HeadState::Awaited => {
                state.quiet_ticks += 1;
                state.quiet_ticks
            }
            _ => 0,
        }
    }

    /// An interim answer, which is a sign of life too. One that comes after the head, or faster than it is taken, is dropped.
    fn push_interim(&self, interim: Interim) {
        self.change(|state| {
            state.quiet_ticks = 0;
            if matches!(state.head, HeadState::Awaited)
                && !state.forgotten
                && state.interims.len() < INTERIMS_WAITING_MAX
            {
                state.interims.push_back(interim);
            }
        });
    }

    /// False when there was a head already.
    fn set_head(&self, head: Head) -> bool {
        self.change(|state| {
            let first = matches!(state.head, HeadState::Awaited);
            if first {
                state.head = HeadState::Arrived(Ok(Box::new(head)));
            }
            first
        })
    }

    /// False when the peer broke the rules of credit or sent a body before its head.
    fn push(&self, payload: Bytes) -> bool {
        self.change(|state| {
            if state.forgotten {
                return true;
            }
            let Ok(bytes) = u32::try_from(payload.len()) else { return false };
            if matches!(state.head, HeadState::Awaited) || bytes > state.credit_bytes {
                return false;
            }
            state.credit_bytes -= bytes;
            state.chunks_bytes += u64::from(bytes);
            self.buffered_bytes.fetch_add(u64::from(bytes), Ordering::Relaxed);
            // A small slice that has to wait would keep a whole read buffer alive.
            let waits = !state.chunks.is_empty() && payload.len() < COPIED_WHEN_WAITING_BELOW_BYTES;
            state.chunks.push_back(if waits { Bytes::copy_from_slice(&payload) } else { payload });
            true
        })
    }

    /// The body ended; false when it did so before its head, which fails the question.
    fn finish(&self, end: Result<(u64, u64), FetchError>) -> bool {
        self.change(|state| {
            let headed = !matches!(state.head, HeadState::Awaited);
            if headed {
                state.end.get_or_insert(end);
            } else {
                // Nobody else will fail it: its number is free already.
                state.head = HeadState::Arrived(Err(Failure::Unreachable("the peer speaks garbage".into())));
            }
            headed
        })
    }

    /// The question failed: before the head as `failure` says, after it the body is broken.
    fn fail(&self, failure: Failure) {
        self.change(|state| match state.head {
            HeadState::Awaited => state.head = HeadState::Arrived(Err(failure)),
            _ => {
                let reason = match failure {
                    Failure::Unreachable(reason) | Failure::Refused(_, reason) => reason,
                    Failure::NotFound | Failure::Draining => "the peer failed after its head".into(),
                };
                state.end.get_or_insert(Err(FetchError::Broken(reason)));
            }
        });
    }

    /// Nobody will read any more.
    fn forget(&self) {
        let mut state = self.state.lock();
        self.buffered_bytes.fetch_sub(std::mem::take(&mut state.chunks_bytes), Ordering::Relaxed);
        state.chunks.clear();
        state.forgotten = true;
    }

    fn change<T>(&self, change: impl FnOnce(&mut InboundState) -> T) -> T {
        let (result, waker) = {
            let mut state = self.state.lock();
            (change(&mut state), state.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }
}

/// What the reader gets next.
enum Next {
    Chunk(Bytes, Option<u32>),
    End(u64, u64),
    Broken(FetchError),
}

impl Inbound {
    async fn next(&self) -> Next {
        poll_fn(|context| {
            let mut state = self.state.lock();
            if let Some(chunk) = state.chunks.pop_front() {
                let bytes = chunk.len() as u32;
                state.chunks_bytes -= u64::from(bytes);
                self.buffered_bytes.fetch_sub(u64::from(bytes), Ordering::Relaxed);
                state.ungranted_bytes += bytes;
                // Granting by halves keeps the owner busy with few frames; at the end of the body no grant is needed.
                let grant = state.end.is_none() && state.ungranted_bytes >= self.window_bytes / 2;
                let granted = grant.then(|| std::mem::take(&mut state.ungranted_bytes));
                state.credit_bytes += granted.unwrap_or_default();
                return Poll::Ready(Next::Chunk(chunk, granted));
            }
            match &state.end {
                Some(Ok((length, checksum))) => Poll::Ready(Next::End(*length, *checksum)),
                Some(Err(error)) => Poll::Ready(Next::Broken(error.clone())),
                None => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// The body of an answer, as its reader takes it. What arrived before a break is given out first.
struct PeerBody {
    asked: Asked,
    declared: Option<u64>,
    taken: u64,
    checksum: Checksum,
}

#[async_trait]
impl BodyStream for PeerBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        match self.asked.inbound.next().await {
            Next::Chunk(chunk, granted) => {
                if let Some(bytes) = granted {
                    self.asked.exchange.outbox.push(self.asked.request, &Message::Credit(bytes));
                }
                self.taken += chunk.len() as u64;
                self.checksum.update(&chunk);
                Ok(Some(chunk))
            }
            Next::End(length, checksum) => {
                if length != self.taken || self.declared.is_some_and(|declared| declared != length) {
                    return Err(FetchError::broken("the body has another length than the peer said"));
                }
                if checksum != std::mem::take(&mut self.checksum).finish() {
                    return Err(FetchError::broken("the body has another checksum than the peer said"));
                }
                Ok(None)
            }
            Next::Broken(error) => Err(error),
        }
    }
}

/// Why a connection ended that the peer ended in good order.
pub(super) const SHUT_DOWN: &str = "the peer shut down";
/// Interim answers that wait for the asker; an owner passes on as many of one answer at the most.
const INTERIMS_WAITING_MAX: usize = 8;
/// Why a peer is given up that says nothing.
pub(super) const SILENT: &str = "silent";
/// The silence is counted in so many ticks. Four keep the error below a quarter of it.
pub(super) const SILENT_TICKS: u32 = 4;
/// While questions are open, a quiet connection is tried after so many ticks.
const BUSY_PING_TICKS: u32 = 1;
/// An idle connection is tried after so many quiet ticks, so that a dead one is known within two
/// deadlines and before it is needed.
const IDLE_PING_TICKS: u32 = 4;
const COPIED_WHEN_WAITING_BELOW_BYTES: usize = 16 * 1024;
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(100);
