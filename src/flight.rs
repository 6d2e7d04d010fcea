//! One fill per key; readers follow it while it streams.
//!
//! A *flight* is a fill and its readers. The [`Fill`] is held by a task that belongs to no client; every requester, the first
//! one too, is a [`FillReader`]. What a reader may do in each phase of the fill:
//!
//! | phase | how it is entered | a reader may |
//! |---|---|---|
//! | Waiting | the flight was opened | wait for the head, and hear the interim answers before it |
//! | Streaming | [`Fill::begin`] | take the head, read the chunks that arrived, wait for more |
//! | Done | [`Fill::finish`] | take the head, read all chunks to the end |
//! | Failed | [`Fill::fail`], or the fill was dropped (its task panicked) | take the head if there was one, then the failure |
//!
//! Nothing waits while the lock of a flight or of the map is held: both only look and change fields. Waking readers comes after.
//!
//! A flight leaves the map when it is done, failed, or closed because its answer may not be given to later readers. Readers
//! that joined before keep it alive and read on.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::memory::Charge;
use crate::source::{FetchError, Interim, InterimSink};

/// All flights of this process by key. `H` is what a reader learns at the head.
pub struct Flights<K, H> {
    shards: Box<[Shard<K, H>]>,
    /// Seeded at random, so that a client cannot choose keys that fall into one place.
    hasher: DefaultHashBuilder,
    waiters_max: usize,
}

type Shard<K, H> = Mutex<Table<K, H>>;
type Table<K, H> = HashTable<(K, Arc<Flight<H>>)>;

/// What [`Flights::join`] found.
pub enum Joined<K: Hash + Eq + Clone, H: Clone> {
    /// A fill is under way: follow it.
    Following(FillReader<H>),
    /// There was none. The caller must give the [`Fill`] to a task that fills it; dropping it fails the flight.
    Opened(FillReader<H>, Fill<K, H>),
    /// As many readers as allowed wait for this key already.
    Full,
}

impl<K: Hash + Eq + Clone, H: Clone> Flights<K, H> {
    /// No flights yet; at most `waiters_max` readers may wait for one key.
    pub fn new(waiters_max: usize) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::new(HashTable::new())).collect();
        Arc::new(Flights { shards, hasher: DefaultHashBuilder::default(), waiters_max })
    }

    /// Follows the flight of `key`, or opens one.
    pub fn join(self: &Arc<Self>, key: K) -> Joined<K, H> {
        let hash = self.hasher.hash_one(&key);
        let mut shard = self.shard(hash).lock();
        if let Some((_, flight)) = shard.find(hash, |(other, _)| *other == key) {
            return match flight.add_reader(self.waiters_max) {
                Some(reader) => Joined::Following(reader),
                None => Joined::Full,
            };
        }
        let flight = Arc::new(Flight::new());
        shard.insert_unique(hash, (key.clone(), flight.clone()), |(other, _)| self.hasher.hash_one(other));
        drop(shard);
        let reader = flight.first_reader();
        Joined::Opened(reader, Fill { flights: self.clone(), key, hash, flight, finished: false })
    }

    /// Opens a flight that nobody can join: for an answer that is one request's own.
    pub fn alone(self: &Arc<Self>, key: K) -> (FillReader<H>, Fill<K, H>) {
        let flight = Arc::new(Flight::new());
        let reader = flight.first_reader();
        let hash = self.hasher.hash_one(&key);
        (reader, Fill { flights: self.clone(), key, hash, flight, finished: false })
    }

    /// Follows the flight of `key` if there is one.
    pub fn follow(&self, key: &K) -> Option<FillReader<H>> {
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash).lock();
        shard.find(hash, |(other, _)| other == key).and_then(|(_, flight)| flight.add_reader(self.waiters_max))
    }

    /// Lets no further reader join the flights that `goes` names by their key and, once it is there, their head; those on board
    /// read on. Looks at every flight, a shard at a time.
    pub fn detach(&self, goes: impl Fn(&K, Option<&H>) -> bool) {
        for shard in &self.shards {
            shard.lock().retain(|(key, flight)| !goes(key, flight.state.lock().head.as_ref()));
        }
    }

    /// How many keys are in flight.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// How long the oldest flight has lasted, in the runtime's time; zero when there is none.
    pub fn oldest(&self) -> Duration {
        let opened =
            self.shards.iter().filter_map(|shard| shard.lock().iter().map(|(_, flight)| flight.opened).min()).min();
        opened.map_or(Duration::ZERO, |opened| opened.elapsed())
    }

    /// Any head of a flight under way.
    #[cfg(test)]
    pub fn any_head(&self) -> Option<H> {
        let head = |shard: &Shard<K, H>| shard.lock().iter().find_map(|(_, flight)| flight.state.lock().head.clone());
        self.shards.iter().find_map(head)
    }

    fn shard(&self, hash: u64) -> &Shard<K, H> {
        // The table uses the low bits and the highest seven.
        &self.shards[(hash >> 40) as usize % SHARDS]
    }
}

/// The writing side of a flight. Exactly one exists; dropping it before [`Fill::finish`] fails every reader, so that a
/// panicking task leaves no waiter behind.
pub struct Fill<K: Hash + Eq + Clone, H: Clone> {
    flights: Arc<Flights<K, H>>,
    key: K,
    hash: u64,
    flight: Arc<Flight<H>>,
    finished: bool,
}

/// What happens to chunks that every reader has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// They stay: the body is to be stored, and a reader may join at any time.
    Whole,
    /// They go: at most about twice this many bytes are held, for a single reader about as many. The writer waits for the
    /// fastest reader; a slower one that falls out of the window gets [`ReadError::FellBehind`]. The flight closes to new
    /// readers.
    Window(usize),
}

impl<K: Hash + Eq + Clone, H: Clone> Fill<K, H> {
    /// Gives out the head.
    pub fn begin(&self, head: H, keep: Keep) {
        {
            let mut state = self.flight.state.lock();
            debug_assert!(matches!(state.phase, Phase::Waiting));
            state.head = Some(head);
            state.phase = Phase::Streaming;
            state.window_bytes = match keep {
                Keep::Whole => None,
                Keep::Window(bytes) => Some(bytes.max(1) as u64),
            };
        }
        if keep != Keep::Whole {
            self.close();
        }
        self.flight.readers_wake.notify_waiters();
    }

    /// Hands an interim answer to those who wait for the head, and to those who join before it. False when it is dropped:
    /// the head has been given out, or there have been too many ([`INTERIMS_MAX`], [`INTERIM_BYTES_MAX`]).
    pub fn interim(&self, interim: Interim, audience: Audience) -> bool {
        {
            let mut state = self.flight.state.lock();
            let bytes = state.interim_bytes + interim.fields.len();
            let waiting = matches!(state.phase, Phase::Waiting);
            if !waiting || state.interims.len() >= INTERIMS_MAX || bytes > INTERIM_BYTES_MAX {
                return false;
            }
            state.interim_bytes = bytes;
            state.interims.push((interim, audience));
        }
        self.flight.readers_wake.notify_waiters();
        true
    }

    /// Lets no further reader join; those on board read on. Later requests for the key open a flight of their own.
    pub fn close(&self) {
        self.close_in(&mut self.flights.shard(self.hash).lock());
    }

    fn close_in(&self, shard: &mut Table<K, H>) {
        if let Ok(found) = shard.find_entry(self.hash, |(_, flight)| Arc::ptr_eq(flight, &self.flight)) {
            found.remove();
        }
    }

    /// Turns a whole body into a window from here on, because it grew beyond what may be stored.
    pub fn narrow(&self, window_bytes: usize) {
        self.close();
        self.flight.state.lock().window_bytes = Some(window_bytes.max(1) as u64);
    }

    /// Hands one chunk to the readers. With a window, waits while the fastest reader is a window behind.
    pub async fn push(&self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        loop {
            let progress = self.flight.read_wake.notified();
            {
                let mut state = self.flight.state.lock();
                let blocked = state
                    .window_bytes
                    .is_some_and(|window| state.readers > 0 && state.end.saturating_sub(state.fastest) >= window);
                if !blocked {
                    state.end += chunk.len() as u64;
                    state.chunks.push_back(chunk);
                    // The only reader left may be behind another that was here before: what it has read goes when it has.
                    if let Some(window) = state.window_bytes.filter(|_| state.readers != 1) {
                        state.trim(window);
                    }
                    break;
                }
            }
            progress.await;
        }
        self.flight.readers_wake.notify_waiters();
    }

    /// How many bytes of the body are held for readers.
    pub fn held_bytes(&self) -> usize {
        let state = self.flight.state.lock();
        usize::try_from(state.end.saturating_sub(state.start)).unwrap_or(usize::MAX)
    }

    /// Leaves the charge for the chunks with the flight: it ends with the last reader.
    pub fn charge(&self, charge: Charge) {
        self.flight.state.lock().charge = Some(charge);
    }

    /// The whole answer at once: as [`Fill::begin`], [`Fill::push`] and [`Fill::finish`], but the readers wake only once. As for
    /// [`Fill::finish`], the entry is in the store already, if it goes there.
    pub fn land(mut self, head: H, body: Bytes) {
        self.finished = true;
        self.close();
        {
            let mut state = self.flight.state.lock();
            debug_assert!(matches!(state.phase, Phase::Waiting));
            state.head = Some(head);
            if !body.is_empty() {
                state.end = body.len() as u64;
                state.chunks.push_back(body);
            }
            state.phase = Phase::Done;
        }
        self.flight.readers_wake.notify_waiters();
    }

    /// The body is whole. Call it after the entry is in the store: until then late readers follow the flight, from then on
    /// they find the entry, and no instant lies between.
    pub fn finish(mut self) {
        self.end(Phase::Done);
    }

    /// The source failed; every reader learns why.
    pub fn fail(mut self, error: FetchError) {
        self.end(Phase::Failed(error));
    }

    /// Ready when nobody has been reading for `grace`. From then on nobody can join: who comes next opens a flight instead
    /// of learning that this one was given up.
    pub async fn abandoned(&self, grace: Duration) {
        loop {
            let left = self.flight.left_wake.notified();
            let Some(unread_since) = self.flight.state.lock().unread_since else {
                left.await;
                continue;
            };
            // By the moment at which the last reader left and not by that of this call: a writer asks again for each chunk.
            tokio::time::sleep_until(unread_since + grace).await;
            // Under both locks, as readers join.
            let mut shard = self.flights.shard(self.hash).lock();
            if self.flight.state.lock().unread_since == Some(unread_since) {
                self.close_in(&mut shard);
                return;
            }
        }
    }

    /// What this flight is of.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// How many readers are on board.
    pub fn readers(&self) -> usize {
        self.flight.state.lock().readers
    }

    fn end(&mut self, phase: Phase) {
        self.finished = true;
        self.flight.state.lock().phase = phase;
        self.close();
        self.flight.readers_wake.notify_waiters();
    }
}

impl<K: Hash + Eq + Clone, H: Clone> Drop for Fill<K, H> {
    fn drop(&mut self) {
        if !self.finished {
            self.end(Phase::Failed(FetchError::broken("the fill ended without an answer")));
        }
    }
}

/// Who may hear an interim answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// All readers.
    All,
    /// The one whose request opened the flight: the answer may be of its credentials.
    Causer,
}

/// One who waits for and reads what a fill brings. Dropping it only takes a reader off.
pub struct FillReader<H> {
    flight: Arc<Flight<H>>,
    /// Whether its request opened the flight.
    causer: bool,
    /// Bytes of the body that this reader has taken.
    offset: u64,
}

/// Why a reader gets no further chunk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] FetchError),
    /// The window moved past this reader; it may go on alone from this offset.
    #[error("fell out of the window at byte {offset}")]
    FellBehind {
        /// Bytes of the body that this reader has.
        offset: u64,
    },
}

impl<H: Clone> FillReader<H> {
    /// Waits for the head.
    ///
    /// # Errors
    /// The failure of the fill, when it came before a head.
    pub async fn head(&self) -> Result<H, FetchError> {
        self.wait(State::landed).await
    }

    /// The same, handing interim answers to `interims` as they come. A reader that comes after the head hears none: what they
    /// were to hint at is there.
    ///
    /// # Errors
    /// As [`FillReader::head`].
    pub async fn head_hearing(&self, interims: &dyn InterimSink) -> Result<H, FetchError> {
        let mut heard = 0;
        let mut waited = false;
        loop {
            let next = self.wait(|state| {
                match state.landed() {
                    Some(landed) if !waited => return Some(Next::Landed(landed)),
                    _ => waited = true,
                }
                while let Some((interim, audience)) = state.interims.get(heard) {
                    heard += 1;
                    if self.causer || *audience == Audience::All {
                        return Some(Next::Interim(interim.clone()));
                    }
                }
                state.landed().map(Next::Landed)
            });
            match next.await {
                Next::Interim(interim) => interims.hear(interim),
                Next::Landed(landed) => return landed,
            }
        }
    }

    /// What is there without waiting: the head, if it has come, and how many bytes of the body have.
    pub fn progress(&self) -> (Option<H>, u64) {
        let state = self.flight.state.lock();
        (state.head.clone(), state.end)
    }

    /// Whether all of the body is here and stays, so that this reader cannot fall behind.
    pub fn has_all(&self) -> bool {
        let state = self.flight.state.lock();
        matches!(state.phase, Phase::Done) && state.start == 0
    }

    /// Waits for bytes and appends what is there to `chunks`, at most `bytes_max` (but one chunk at least). Returns false at
    /// the confirmed end of the body.
    ///
    /// # Errors
    /// The failure of the fill, once all bytes before it have been read, or that this reader was too slow.
    pub async fn read(&mut self, chunks: &mut Vec<Bytes>, bytes_max: u64) -> Result<bool, ReadError> {
        let offset = self.offset;
        let taken = self
            .wait(|state| {
                if offset < state.start {
                    return Some(Err(ReadError::FellBehind { offset }));
                }
                if offset < state.end {
                    let taken = state.take(offset, bytes_max, chunks);
                    state.passed(offset + taken);
                    return Some(Ok(taken));
                }
                match &state.phase {
                    Phase::Done => Some(Ok(0)),
                    Phase::Failed(error) => Some(Err(ReadError::Source(error.clone()))),
                    Phase::Waiting | Phase::Streaming => None,
                }
            })
            .await?;
        self.offset += taken;
        if taken > 0 {
            self.flight.read_wake.notify_one();
        }
        Ok(taken > 0)
    }

    /// Appends the whole body to `chunks` if it is here, nothing has been read of it, and it has no more than `bytes_max`
    /// bytes. Otherwise nothing is taken, and false returned.
    pub fn take_all(&mut self, bytes_max: u64, chunks: &mut Vec<Bytes>) -> bool {
        let state = self.flight.state.lock();
        if !matches!(state.phase, Phase::Done) || self.offset > 0 || state.start > 0 || state.end > bytes_max {
            return false;
        }
        // As by `State::take`, of all; nobody waits for readers any more.
        chunks.extend(state.chunks.iter().cloned());
        self.offset = state.end;
        true
    }

    /// The next chunk, or `None` at the confirmed end.
    ///
    /// # Errors
    /// As [`FillReader::read`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ReadError> {
        let mut chunks = Vec::with_capacity(1);
        self.read(&mut chunks, 1).await?;
        Ok(chunks.pop())
    }

    async fn wait<T>(&self, mut look: impl FnMut(&mut State<H>) -> Option<T>) -> T {
        loop {
            let wake = self.flight.readers_wake.notified();
            tokio::pin!(wake);
            // Registered before the look: a change between look and wait is not missed.
            wake.as_mut().enable();
            if let Some(found) = look(&mut self.flight.state.lock()) {
                return found;
            }
            wake.await;
        }
    }
}

impl<H> Drop for FillReader<H> {
    fn drop(&mut self) {
        let last = {
            let mut state = self.flight.state.lock();
            state.readers -= 1;
            // Once the fill has ended, nobody waits for readers to leave.
            let last = state.readers == 0 && matches!(state.phase, Phase::Waiting | Phase::Streaming);
            if last {
                state.unread_since = Some(tokio::time::Instant::now());
            }
            last
        };
        if last {
            self.flight.left_wake.notify_one();
            self.flight.read_wake.notify_one();
        }
    }
}

/// What a reader that waits for the head gets next.
enum Next<H> {
    Interim(Interim),
    Landed(Result<H, FetchError>),
}

struct Flight<H> {
    state: Mutex<State<H>>,
    readers_wake: Notify,
    /// For the writer that waits for room in a window. It and `left_wake` are two, because a writer waits for both at once
    /// and a wake-up of one must not be lost on the other.
    read_wake: Notify,
    left_wake: Notify,
    opened: tokio::time::Instant,
}

struct State<H> {
    phase: Phase,
    head: Option<H>,
    /// The interim answers before the head; without one, nothing is allocated.
    interims: Vec<(Interim, Audience)>,
    interim_bytes: usize,
    /// What is held of the body: bytes `start..end`.
    chunks: VecDeque<Bytes>,
    start: u64,
    end: u64,
    /// How far the fastest reader ever came.
    fastest: u64,
    window_bytes: Option<u64>,
    /// For the chunks, once nothing else is charged for them.
    charge: Option<Charge>,
    readers: usize,
    /// When the last reader left; `None` while there is one.
    unread_since: Option<tokio::time::Instant>,
}

#[derive(Clone, Debug)]
enum Phase {
    Waiting,
    Streaming,
    Done,
    Failed(FetchError),
}

impl<H> Flight<H> {
    fn first_reader(self: &Arc<Self>) -> FillReader<H> {
        let mut state = self.state.lock();
        state.readers += 1;
        state.unread_since = None;
        FillReader { flight: self.clone(), causer: true, offset: 0 }
    }

    fn new() -> Self {
        let opened = tokio::time::Instant::now();
        let state = State {
            phase: Phase::Waiting,
            head: None,
            interims: Vec::new(),
            interim_bytes: 0,
            chunks: VecDeque::new(),
            start: 0,
            end: 0,
            fastest: 0,
            window_bytes: None,
            charge: None,
            readers: 0,
            unread_since: Some(opened),
        };
        Flight {
            state: Mutex::new(state),
            readers_wake: Notify::new(),
            read_wake: Notify::new(),
            left_wake: Notify::new(),
            opened,
        }
    }

    fn add_reader(self: &Arc<Self>, waiters_max: usize) -> Option<FillReader<H>> {
        let mut state = self.state.lock();
        if state.readers >= waiters_max {
            return None;
        }
        state.readers += 1;
        state.unread_since = None;
        Some(FillReader { flight: self.clone(), causer: false, offset: 0 })
    }
}

impl<H: Clone> State<H> {
    /// The head or the failure before it, once there is one.
    fn landed(&mut self) -> Option<Result<H, FetchError>> {
        match (&self.head, &self.phase) {
            (Some(head), _) => Some(Ok(head.clone())),
            (None, Phase::Failed(error)) => Some(Err(error.clone())),
            (None, _) => None,
        }
    }
}

impl<H> State<H> {
    /// Notes how far a reader came. With a window, the only one left sets the pace, even if a faster one was here before:
    /// nobody joins any more, so what lies behind is for nobody.
    fn passed(&mut self, offset: u64) {
        if self.window_bytes.is_some() && self.readers == 1 {
            self.fastest = offset;
            self.trim(0);
        } else {
            self.fastest = self.fastest.max(offset);
        }
    }

    /// Lets go of the chunks that lie so many bytes behind the fastest reader.
    fn trim(&mut self, behind: u64) {
        if self.readers == 0 {
            // Nobody can join any more: what still comes until the writer notices is for nobody.
            (self.start, self.chunks) = (self.end, VecDeque::new());
        }
        while let Some(first) = self.chunks.front() {
            let first_end = self.start + first.len() as u64;
            if first_end + behind > self.fastest {
                break;
            }
            self.start = first_end;
            self.chunks.pop_front();
        }
    }

    fn take(&self, offset: u64, bytes_max: u64, chunks: &mut Vec<Bytes>) -> u64 {
        // Readers mostly sit near the end of what is held, so the search starts there.
        let mut position = self.end;
        let mut index = self.chunks.len();
        while position > offset {
            index -= 1;
            position -= self.chunks[index].len() as u64;
        }
        let mut taken = 0;
        for chunk in self.chunks.range(index..) {
            let chunk = chunk.slice((offset + taken - position) as usize..);
            position = offset + taken + chunk.len() as u64;
            taken += chunk.len() as u64;
            chunks.push(chunk);
            if taken >= bytes_max {
                break;
            }
        }
        taken
    }
}

/// Interim answers of one flight that are passed on. An origin has one or two to give; the limit of what is read of it is the
/// same (hardening rule FRM 11).
pub const INTERIMS_MAX: usize = 8;

/// Bytes of their fields together. Hints are a list of links; what is larger than a usual head is no hint (guess).
pub const INTERIM_BYTES_MAX: usize = 16 * 1024;

/// Guess: enough that 64 connections rarely meet on one lock.
const SHARDS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    type TestFlights = Arc<Flights<&'static str, u16>>;

    fn open(flights: &TestFlights, key: &'static str) -> (FillReader<u16>, Fill<&'static str, u16>) {
        match flights.join(key) {
            Joined::Opened(reader, fill) => (reader, fill),
            _ => panic!("a flight of {key} is open already"),
        }
    }

    fn follow(flights: &TestFlights, key: &'static str) -> FillReader<u16> {
        match flights.join(key) {
            Joined::Following(reader) => reader,
            _ => panic!("no flight of {key} to follow"),
        }
    }

    async fn rest(reader: &mut FillReader<u16>) -> Result<Vec<u8>, ReadError> {
        let mut body = Vec::new();
        while let Some(chunk) = reader.chunk().await? {
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    #[tokio::test]
    async fn every_reader_gets_head_and_body_while_they_arrive() {
        let flights = Flights::new(10);
        let (mut first, fill) = open(&flights, "a");
        let mut second = follow(&flights, "a");
        assert_eq!(first.progress(), (None, 0));
        fill.begin(200, Keep::Whole);
        assert_eq!((first.head().await, second.head().await), (Ok(200), Ok(200)));
        fill.push(Bytes::from_static(b"one")).await;
        assert_eq!(first.progress(), (Some(200), 3));
        assert_eq!(first.chunk().await, Ok(Some(Bytes::from_static(b"one"))));
        fill.push(Bytes::from_static(b"two")).await;
        let mut late = follow(&flights, "a");
        fill.finish();
        assert_eq!(rest(&mut first).await.unwrap(), b"two");
        assert_eq!(rest(&mut second).await.unwrap(), b"onetwo");
        assert_eq!(rest(&mut late).await.unwrap(), b"onetwo");
        assert_eq!(flights.count(), 0);
    }

    #[tokio::test]
    async fn a_failure_reaches_all_after_the_bytes_before_it() {
        let flights = Flights::new(10);
        let (mut first, fill) = open(&flights, "a");
        fill.begin(200, Keep::Whole);
        fill.push(Bytes::from_static(b"part")).await;
        fill.fail(FetchError::broken("reset"));
        assert_eq!(first.chunk().await, Ok(Some(Bytes::from_static(b"part"))));
        assert_eq!(first.chunk().await, Err(ReadError::Source(FetchError::broken("reset"))));
        let (reader, _fill) = open(&flights, "a");
        drop(reader);
    }

    #[tokio::test]
    async fn a_panicking_fill_leaves_no_waiter() {
        let flights = Flights::new(10);
        let (reader, fill) = open(&flights, "a");
        let task = tokio::spawn(async move {
            let _fill = fill;
            panic!("as the test wants");
        });
        assert!(matches!(reader.head().await, Err(FetchError::Broken(_))));
        assert!(task.await.is_err());
        assert_eq!(flights.count(), 0);
    }

    #[tokio::test]
    async fn a_closed_flight_is_read_to_its_end_but_not_joined() {
        let flights = Flights::new(10);
        let (mut reader, fill) = open(&flights, "a");
        fill.close();
        let (_other, _other_fill) = open(&flights, "a");
        fill.begin(200, Keep::Whole);
        fill.push(Bytes::from_static(b"x")).await;
        fill.finish();
        assert_eq!(rest(&mut reader).await.unwrap(), b"x");
        assert_eq!(flights.count(), 1, "finishing must not remove the flight that took the key over");
    }

    #[tokio::test]
    async fn a_window_holds_the_writer_back_and_lets_slow_readers_fall_out() {
        let flights = Flights::new(10);
        let (mut fast, fill) = open(&flights, "a");
        let mut slow = follow(&flights, "a");
        fill.begin(200, Keep::Window(2));
        fill.push(Bytes::from_static(b"ab")).await;
        let mut blocked = Box::pin(fill.push(Bytes::from_static(b"cd")));
        assert!(futures_poll(&mut blocked).is_none(), "the fastest reader is a window behind");
        assert_eq!(fast.chunk().await.unwrap().unwrap(), "ab");
        blocked.await;
        assert_eq!(fast.chunk().await.unwrap().unwrap(), "cd");
        fill.push(Bytes::from_static(b"ef")).await;
        assert_eq!(slow.chunk().await, Err(ReadError::FellBehind { offset: 0 }));
        fill.finish();
        assert_eq!(rest(&mut fast).await.unwrap(), b"ef");
    }

    #[tokio::test]
    async fn the_only_reader_left_sets_the_pace() {
        let flights = Flights::new(10);
        let (mut fast, fill) = open(&flights, "a");
        let mut slow = follow(&flights, "a");
        fill.begin(200, Keep::Window(4));
        fill.push(Bytes::from_static(b"ab")).await;
        fill.push(Bytes::from_static(b"cd")).await;
        assert_eq!(
            (fast.chunk().await.unwrap().unwrap(), fast.chunk().await.unwrap().unwrap()),
            ("ab".into(), "cd".into())
        );
        drop(fast);
        assert_eq!(slow.chunk().await.unwrap().unwrap(), "ab");
        assert_eq!(fill.flight.state.lock().start, 2, "what it has read is for nobody");
        fill.push(Bytes::from_static(b"ef")).await;
        let mut blocked = Box::pin(fill.push(Bytes::from_static(b"gh")));
        assert!(futures_poll(&mut blocked).is_none(), "the only reader is a window behind");
        assert_eq!(slow.chunk().await.unwrap().unwrap(), "cd");
        blocked.await;
        fill.finish();
        assert_eq!(rest(&mut slow).await.unwrap(), b"efgh");
    }

    /// Another reader was ahead of it and left: what that one had read is not lost for the one that stays.
    #[tokio::test]
    async fn the_only_reader_left_does_not_fall_out() {
        let flights = Flights::new(10);
        let (mut fast, fill) = open(&flights, "a");
        let mut slow = follow(&flights, "a");
        fill.begin(200, Keep::Window(2));
        fill.push(Bytes::from_static(b"ab")).await;
        assert_eq!(fast.chunk().await.unwrap().unwrap(), "ab");
        fill.push(Bytes::from_static(b"cd")).await;
        assert_eq!(fast.chunk().await.unwrap().unwrap(), "cd");
        drop(fast);
        fill.push(Bytes::from_static(b"ef")).await;
        assert_eq!(fill.held_bytes(), 6);
        fill.finish();
        assert_eq!(rest(&mut slow).await.unwrap(), b"abcdef");
    }

    #[tokio::test]
    async fn a_writer_that_also_waits_for_readers_to_leave_hears_of_room() {
        let flights = Flights::new(10);
        let (mut reader, fill) = open(&flights, "a");
        fill.begin(200, Keep::Window(1));
        let writer = tokio::spawn(async move {
            for chunk in ["a", "b", "c", "d"] {
                tokio::select! {
                    () = fill.push(Bytes::from(chunk)) => {}
                    () = fill.abandoned(Duration::from_secs(1)) => panic!("somebody reads"),
                }
            }
            fill.finish();
        });
        assert_eq!(rest(&mut reader).await.unwrap(), b"abcd");
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn a_window_without_readers_does_not_block_its_writer() {
        let flights = Flights::new(10);
        let (reader, fill) = open(&flights, "a");
        fill.begin(200, Keep::Window(1));
        fill.push(Bytes::from_static(b"ab")).await;
        let mut blocked = Box::pin(fill.push(Bytes::from_static(b"cd")));
        assert!(futures_poll(&mut blocked).is_none());
        drop(reader);
        blocked.await;
        // And nothing is held for nobody.
        for _ in 0..100 {
            fill.push(Bytes::from_static(b"ef")).await;
        }
        assert_eq!(fill.flight.state.lock().chunks.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn abandoned_is_ready_one_grace_after_the_last_reader_left() {
        let flights = Flights::new(10);
        let (reader, fill) = open(&flights, "a");
        let grace = Duration::from_secs(1);
        assert!(tokio::time::timeout(Duration::from_secs(60), fill.abandoned(grace)).await.is_err());
        let left = tokio::time::Instant::now();
        drop(reader);
        fill.abandoned(grace).await;
        assert_eq!(left.elapsed(), grace);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_when_a_flight_has_been_given_up_opens_one() {
        let flights = Flights::new(10);
        let (reader, fill) = open(&flights, "a");
        drop(reader);
        fill.abandoned(Duration::from_secs(1)).await;
        let (next, next_fill) = open(&flights, "a");
        fill.fail(FetchError::broken("nobody waited any longer"));
        next_fill.begin(200, Keep::Whole);
        assert_eq!(next.head().await, Ok(200));
        assert!(matches!(flights.join("a"), Joined::Following(_)), "the end of the first does not end the second");
    }

    #[tokio::test(start_paused = true)]
    async fn abandoned_counts_from_the_last_reader_however_often_it_is_asked() {
        let flights = Flights::new(10);
        let (reader, fill) = open(&flights, "a");
        fill.begin(200, Keep::Window(1));
        drop(reader);
        let left = tokio::time::Instant::now();
        let mut drops = 0;
        loop {
            tokio::select! {
                () = fill.abandoned(Duration::from_secs(1)) => break,
                () = tokio::time::sleep(Duration::from_millis(100)) => drops += 1,
            }
            fill.push(Bytes::from_static(b"x")).await;
        }
        assert_eq!(left.elapsed(), Duration::from_secs(1), "a dripping source ends too");
        assert!(drops >= 9);
    }

    #[tokio::test]
    async fn more_waiters_than_allowed_are_turned_away() {
        let flights = Flights::<&str, u16>::new(2);
        let (_first, _fill) = open(&flights, "a");
        let _second = follow(&flights, "a");
        assert!(matches!(flights.join("a"), Joined::Full));
        assert!(matches!(flights.join("b"), Joined::Opened(..)));
    }

    #[test]
    fn reads_start_anywhere_in_what_is_held() {
        let mut state = Flight::<u16>::new().state.into_inner();
        for chunk in ["abc", "d", "ef"] {
            state.end += chunk.len() as u64;
            state.chunks.push_back(Bytes::from(chunk));
        }
        for offset in 0..6 {
            let mut chunks = Vec::new();
            assert_eq!(state.take(offset, u64::MAX, &mut chunks), 6 - offset);
            assert_eq!(chunks.concat(), &b"abcdef"[offset as usize..]);
            chunks.clear();
            state.take(offset, 1, &mut chunks);
            assert_eq!(chunks.len(), 1);
        }
    }

    /// Polls once, without a waker.
    fn futures_poll<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }
}
