//! The asking side of one connection: many questions at once, each with its own window of credit.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};

use crate::fleet::{Begun, Pending, Then};
use crate::peer::checksum::Checksum;
use crate::peer::connection::{Outbox, Pump};
use crate::peer::protocol::{
    Envelope, Failure, GoodbyeReason, Head, Identity, Message, ProtocolError, Question, QuestionKind,
};
use crate::source::{Ask, BodyStream, EntryId, FetchError, Fetched, Interim, InterimSink, Method, NoBody};

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
    /// The peer was found dead elsewhere.
    given_up: AtomicBool,
    stop: Notify,
    tallies: Tallies,
    window_bytes: u32,
}

/// What all connections to one peer count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Tallies {
    /// Bytes of bodies that arrived and were not taken.
    pub buffered_bytes: Arc<AtomicU64>,
    /// Questions that were not answered.
    pub errors: Arc<AtomicU64>,
    /// How long an answer out of the peer's memory takes, on average; zero before the first.
    pub hit_microseconds: Arc<AtomicU64>,
}

impl Tallies {
    fn note_hit(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).clamp(1, HIT_MICROSECONDS_MAX);
        let before = self.hit_microseconds.load(Ordering::Relaxed);
        // An eighth of each new one. Two threads at once lose one of their answers, which an average bears.
        let average = if before == 0 { took } else { (before * 7 + took).div_ceil(8) };
        self.hit_microseconds.store(average, Ordering::Relaxed);
    }

    /// Counts an answer that is none.
    pub fn count<T>(&self, result: Result<T, FetchError>) -> Result<T, FetchError> {
        if matches!(result, Err(FetchError::Unreachable(_) | FetchError::Broken(_))) {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

#[derive(Debug, Default)]
struct Streams {
    open: HashMap<u64, Open>,
    last_request: u64,
    closed: Option<String>,
}

/// A question that is open.
#[derive(Debug)]
enum Open {
    /// Nothing has arrived, and nobody waits: whoever reads the first of the answer does what follows.
    Begun(Waiting),
    /// Somebody waits.
    Followed(Arc<Inbound>),
}

struct Waiting {
    then: Then,
    method: Method,
    asked_at: Instant,
    quiet_ticks: u32,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Waiting").field("quiet_ticks", &self.quiet_ticks).finish_non_exhaustive()
    }
}

/// An answer whose frames came one behind the other, as far as they are read.
struct Partial {
    request: u64,
    head: Box<Head>,
    body: Option<Bytes>,
}

impl Exchange {
    pub(super) fn new(outbox: Arc<Outbox>, remote: &Identity, window_bytes: u32, tallies: Tallies) -> Arc<Self> {
        let (draining, ring_id) = (AtomicBool::new(remote.draining), AtomicU64::new(remote.ring_id));
        let (streams, stop) = (Mutex::default(), Notify::new());
        let (stopping, given_up) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Exchange { outbox, draining, ring_id, streams, stopping, given_up, stop, tallies, window_bytes })
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

    /// Ends the connection as one to a peer that says nothing, which another connection to it has found out; but not if the peer
    /// has said something on this one during the last tick.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::SeqCst);
        self.stop.notify_one();
    }

    /// Asks and waits for the head; `None` only for a peek. Dropping the future cancels the question.
    pub(super) async fn ask(
        self: &Arc<Self>,
        question: Question,
        interims: &dyn InterimSink,
    ) -> Result<Option<Fetched>, FetchError> {
        let (kind, method) = (question.kind, question.ask.method);
        let inbound = self.new_inbound(question.window);
        let request = self.open(|| Open::Followed(inbound.clone()))?;
        let asked = Asked { exchange: self.clone(), inbound, request, asked_at: Instant::now() };
        self.outbox.push(request, &Message::Ask(Box::new(question)));
        asked.answer(kind, method, interims).await
    }

    /// Asks for what is to be loaded, without waiting.
    ///
    /// # Errors
    /// The connection is closed; `then` was not called.
    pub(super) fn begin(&self, ask: &Ask, have: EntryId, ring_id: u64, then: Then) -> Result<(), Then> {
        let mut then = Some(then);
        let method = ask.method;
        let opened = self.open(|| {
            let then = then.take().unwrap_or_else(|| Box::new(|_| {}));
            Open::Begun(Waiting { then, method, asked_at: Instant::now(), quiet_ticks: 0 })
        });
        match (opened, then) {
            (Ok(request), _) => {
                self.outbox.push_ask(request, ask, have, ring_id, self.window_bytes);
                Ok(())
            }
            (Err(_), Some(then)) => Err(then),
            (Err(_), None) => Ok(()),
        }
    }

    fn open(&self, open: impl FnOnce() -> Open) -> Result<u64, FetchError> {
        let mut streams = self.streams.lock();
        if let Some(reason) = &streams.closed {
            return Err(FetchError::unreachable(reason.clone()));
        }
        streams.last_request += 1;
        let request = streams.last_request;
        streams.open.insert(request, open());
        Ok(request)
    }

    fn new_inbound(&self, window_bytes: u32) -> Arc<Inbound> {
        Arc::new(Inbound::new(window_bytes, self.tallies.buffered_bytes.clone()))
    }

    /// Lets the question be followed from here on.
    fn follow(self: &Arc<Self>, request: u64, waiting: Waiting, inbound: Arc<Inbound>) {
        let asked = Asked { exchange: self.clone(), inbound, request, asked_at: waiting.asked_at };
        call(waiting.then, Begun::Later(Box::new(Loading { asked, method: waiting.method })));
    }

    /// Runs the connection until it ends; returns why. Every open question has failed by then.
    pub(super) async fn run(self: &Arc<Self>, mut pump: Pump, silence: Duration) -> String {
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
        for (request, open) in open {
            self.followed(request, open).fail(Failure::Unreachable(reason.clone().into()));
        }
        reason
    }

    async fn converse(self: &Arc<Self>, pump: &mut Pump, silence: Duration) -> String {
        let mut ticks = tokio::time::interval(silence / SILENT_TICKS);
        // After a pause of our own process one tick passes, not all of those missed: the peer's frames are waiting to be read.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut quiet = Quiet::default();
        let mut partial = None;
        loop {
            // Before the first read too: frames may have come with the last words of the handshake.
            if let Err(end) = self.dispatch_all(pump, &mut partial) {
                return self.say_goodbye(pump, end).await;
            }
            tokio::select! {
                biased;
                turned = pump.turn() => match turned {
                    Ok(true) => quiet = Quiet::default(),
                    ended => {
                        // Whatever came of an answer has come.
                        let _ = self.dispatch_partial(partial.take());
                        return match ended {
                            Ok(_) => "the peer closed the connection".to_owned(),
                            Err(error) => format!("the connection failed ({})", error.kind()),
                        };
                    }
                },
                // An answer of which only the beginning was read is handed out when no more is there to be read at once.
                () = std::future::ready(()), if partial.is_some() => {
                    if let Err(end) = self.dispatch_partial(partial.take()) {
                        return self.say_goodbye(pump, end).await;
                    }
                }
                () = self.stop.notified() => {
                    if self.given_up.swap(false, Ordering::SeqCst) && quiet.ticks >= GIVEN_UP_TICKS {
                        return SILENT.to_owned();
                    }
                    if self.stopping.load(Ordering::SeqCst) && self.streams.lock().open.is_empty() {
                        return "the connection is no longer needed".to_owned();
                    }
                }
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

    /// Takes every frame that is here. An answer that is here whole is handed out as a whole; of the last one, what is here stays
    /// in `partial`.
    fn dispatch_all(self: &Arc<Self>, pump: &mut Pump, partial: &mut Option<Partial>) -> Result<(), End> {
        loop {
            let next = pump.reader().next_frame();
            let (request, message) = match next {
                Ok(Some(Envelope { request, message })) => (request, message),
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.dispatch_partial(partial.take())?;
                    return Err(End::Violation(error));
                }
            };
            match (message, partial.as_mut().filter(|partial| partial.request == request)) {
                (Message::Data(payload), Some(partial)) if partial.body.is_none() => partial.body = Some(payload),
                (Message::End { length, checksum }, Some(_)) => {
                    if let Some(partial) = partial.take() {
                        self.dispatch_whole(partial, length, checksum)?;
                    }
                }
                (message, _) => {
                    self.dispatch_partial(partial.take())?;
                    match message {
                        Message::Head(head) => *partial = Some(Partial { request, head, body: None }),
                        message => self.dispatch(Envelope { request, message })?,
                    }
                }
            }
        }
    }

    fn dispatch_partial(self: &Arc<Self>, partial: Option<Partial>) -> Result<(), End> {
        let Some(Partial { request, head, body }) = partial else { return Ok(()) };
        self.dispatch(Envelope { request, message: Message::Head(head) })?;
        match body {
            Some(payload) => self.dispatch(Envelope { request, message: Message::Data(payload) }),
            None => Ok(()),
        }
    }

    fn dispatch_whole(self: &Arc<Self>, partial: Partial, length: u64, checksum: u64) -> Result<(), End> {
        let request = partial.request;
        let body = partial.body.as_deref().unwrap_or_default();
        let as_said = length == body.len() as u64
            && partial.head.content_length == Some(length)
            && body.len() <= self.window_bytes as usize
            && !has_no_body(Method::Get, &partial.head);
        let waiting = {
            let mut streams = self.streams.lock();
            match streams.open.remove(&request) {
                Some(Open::Begun(waiting)) if as_said && waiting.method == Method::Get => Some(waiting),
                Some(open) => {
                    streams.open.insert(request, open);
                    None
                }
                None => return Ok(()),
            }
        };
        let body = match waiting {
            Some(waiting) if Checksum::of(body) == checksum => {
                self.closed();
                if partial.head.hop.as_ref().is_some_and(|hop| hop.hit) {
                    self.tallies.note_hit(waiting.asked_at.elapsed());
                }
                let body = partial.body.unwrap_or_default();
                call(waiting.then, Begun::Whole(fetched(*partial.head, Box::new(NoBody)), body));
                return Ok(());
            }
            // The reader of the body finds the same out once more, and says so.
            Some(waiting) => {
                self.streams.lock().open.insert(request, Open::Begun(waiting));
                partial.body
            }
            None => partial.body,
        };
        self.dispatch_partial(Some(Partial { request, head: partial.head, body }))?;
        self.dispatch(Envelope { request, message: Message::End { length, checksum } })
    }

    fn dispatch(self: &Arc<Self>, envelope: Envelope) -> Result<(), End> {
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
    fn is_silent(self: &Arc<Self>, quiet: &mut Quiet) -> bool {
        let mut silent = Vec::new();
        let idle = {
            let mut streams = self.streams.lock();
            silent.extend(streams.open.extract_if(|_, open| open.tick() >= SILENT_TICKS));
            streams.open.is_empty() && silent.is_empty()
        };
        // In the order of asking, so that what follows is the same in every run.
        silent.sort_unstable_by_key(|(request, _)| *request);
        for (request, open) in silent {
            self.outbox.push(request, &Message::Cancel);
            self.followed(request, open).fail(Failure::Unreachable(SILENT.into()));
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

    fn finish(self: &Arc<Self>, request: u64, end: Result<(u64, u64), FetchError>) -> bool {
        self.close(request).is_none_or(|inbound| inbound.finish(end))
    }

    fn inbound(self: &Arc<Self>, request: u64) -> Option<Arc<Inbound>> {
        let (waiting, inbound) = {
            let mut streams = self.streams.lock();
            match streams.open.get_mut(&request)? {
                Open::Followed(inbound) => return Some(inbound.clone()),
                open => {
                    let inbound = self.new_inbound(self.window_bytes);
                    (std::mem::replace(open, Open::Followed(inbound.clone())), inbound)
                }
            }
        };
        if let Open::Begun(waiting) = waiting {
            self.follow(request, waiting, inbound.clone());
        }
        Some(inbound)
    }

    fn close(self: &Arc<Self>, request: u64) -> Option<Arc<Inbound>> {
        let open = self.streams.lock().open.remove(&request);
        self.closed();
        Some(self.followed(request, open?))
    }

    /// A question was closed.
    fn closed(&self) {
        if self.stopping.load(Ordering::SeqCst) {
            self.stop.notify_one();
        }
    }

    /// What is followed of a question that is no longer open.
    fn followed(self: &Arc<Self>, request: u64, open: Open) -> Arc<Inbound> {
        match open {
            Open::Followed(inbound) => inbound,
            Open::Begun(waiting) => {
                let inbound = self.new_inbound(self.window_bytes);
                self.follow(request, waiting, inbound.clone());
                inbound
            }
        }
    }
}

impl Open {
    /// Counts the ticks without a sign of life.
    fn tick(&mut self) -> u32 {
        match self {
            Open::Followed(inbound) => inbound.tick(),
            Open::Begun(waiting) => {
                waiting.quiet_ticks += 1;
                waiting.quiet_ticks
            }
        }
    }
}

/// Somebody else's work on the connection's task: its panic is not the connection's end.
fn call(then: Then, begun: Begun) {
    if catch_unwind(AssertUnwindSafe(|| then(begun))).is_err() {
        tracing::error!("what was to be done with a peer's answer panicked");
    }
}

/// A head that only confirms, or that was all we asked for, has no body whatever it declares.
fn has_no_body(method: Method, head: &Head) -> bool {
    method == Method::Head || head.hop.as_ref().is_some_and(|hop| hop.not_modified) || matches!(head.status, 204 | 304)
}

fn fetched(head: Head, body: Box<dyn BodyStream>) -> Fetched {
    let Head { status, fields, content_length, hop } = head;
    Fetched { status, fields, content_length, close_delimited: false, hop, body }
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
    asked_at: Instant,
}

impl Asked {
    /// Waits for the head; `None` only for a peek.
    async fn answer(
        self,
        kind: QuestionKind,
        method: Method,
        interims: &dyn InterimSink,
    ) -> Result<Option<Fetched>, FetchError> {
        match self.inbound.head(interims).await {
            Ok(head) => {
                if head.hop.as_ref().is_some_and(|hop| hop.hit) {
                    self.exchange.tallies.note_hit(self.asked_at.elapsed());
                }
                let declared = if has_no_body(method, &head) { Some(0) } else { head.content_length };
                let body = PeerBody { asked: self, declared, taken: 0, checksum: Checksum::default() };
                Ok(Some(fetched(head, Box::new(body))))
            }
            Err(Failure::NotFound) if kind == QuestionKind::Peek => Ok(None),
            Err(Failure::NotFound) => Err(FetchError::unreachable("the peer answered a load as a peek")),
            Err(Failure::Draining) => Err(FetchError::unreachable("draining")),
            Err(Failure::Unreachable(reason)) => Err(FetchError::Unreachable(reason)),
            Err(Failure::Refused(status, reason)) => Err(FetchError::Refused { status, reason }),
        }
    }
}

/// A question that was begun without anybody who waits.
struct Loading {
    asked: Asked,
    method: Method,
}

#[async_trait]
impl Pending for Loading {
    async fn answer(self: Box<Self>, interims: &dyn InterimSink) -> Result<Fetched, FetchError> {
        let tallies = self.asked.exchange.tallies.clone();
        let answer = tallies.count(self.asked.answer(QuestionKind::Load, self.method, interims).await)?;
        answer.ok_or_else(|| FetchError::unreachable("the peer answered a load as a peek"))
    }
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
/// A connection that has been quiet for so many ticks ends when another one is silent. Two make a whole one; and a peer that is
/// dead has said nothing anywhere since that other one was tried, which is longer ago.
const GIVEN_UP_TICKS: u32 = 2;
/// An idle connection is tried after so many quiet ticks, so that a dead one is known within two
/// deadlines and before it is needed.
const IDLE_PING_TICKS: u32 = 4;
const COPIED_WHEN_WAITING_BELOW_BYTES: usize = 16 * 1024;
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(100);
/// An answer that took longer counts as this long.
const HIT_MICROSECONDS_MAX: u64 = 60_000_000;
