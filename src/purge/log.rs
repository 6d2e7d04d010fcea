//! The purges that this node knows: what overtakes what, what others lack, and what is still to be applied here.
//!
//! ```text
//! record ── known grows, waits in the queue ── front ── (the caller removes what matches) ── finish ── applied grows
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use parking_lot::Mutex;

use super::{Claim, Notice, Position, Record, Stamp, Tags, Target, Vector};
use crate::memory::{Charge, Ledger};

/// The purges of this node and of others, in the order in which they were recorded here.
///
/// A later purge of the same target by the same life takes the place of the earlier one, so that repeated purges do not pile
/// up: who has recorded the later one needs the earlier one no more.
pub struct Log {
    incarnation: u64,
    state: Mutex<State>,
    seen: ArcSwap<Seen>,
    /// As in `seen`: the usual case, nothing was ever purged, costs one load.
    arrivals: AtomicU64,
    retention_milliseconds: AtomicU64,
    records_max: usize,
}

/// What is known and applied, readable without a lock.
#[derive(Default)]
struct Seen {
    known: Stamp,
    applied: Stamp,
    /// Some purges came ahead of what makes the knowledge of their life complete: the vector alone does not tell of them.
    ahead: bool,
}

struct State {
    /// One item for each target, by arrival.
    items: BTreeMap<u64, Item>,
    /// Life, number, and which of its targets.
    by_position: BTreeMap<(u64, u64, u32), u64>,
    by_target: HashMap<(u64, Arc<Target>), u64>,
    arrivals: u64,
    known: Vector,
    /// When each life was last heard of.
    advanced: HashMap<u64, Duration>,
    /// What was dropped.
    forgotten: Vector,
    /// What is older than this may have been overtaken by purges that were dropped.
    dropped_arrival: u64,
    queue: VecDeque<Arc<Batch>>,
    /// How many entries recent purges removed.
    entries: VecDeque<(Position, u64)>,
    bytes: usize,
    charge: Charge,
}

struct Item {
    position: Position,
    index: u32,
    target: Arc<Target>,
    soft: bool,
    /// The arrival of the first of the equal purges whose place this one has.
    first_arrival: u64,
    at: Duration,
}

/// A purge that waits to be applied.
#[derive(Debug)]
pub struct Batch {
    /// Which one it is; `None` when nothing is left of it but that it is known.
    pub position: Option<Position>,
    /// What goes.
    pub targets: Vec<Arc<Target>>,
    /// Whether it only becomes stale.
    pub soft: bool,
    /// What is applied once this is.
    then: Stamp,
}

/// Which purges may overtake something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overtaking {
    /// All of them.
    Any,
    /// Those that take entries away: what a soft purge made stale may still be confirmed.
    Hard,
}

impl Log {
    /// An empty log of the node's life `incarnation`.
    pub fn new(incarnation: u64, ledger: &Ledger) -> Self {
        Log::with_records_max(incarnation, ledger, RECORDS_MAX)
    }

    /// As [`Log::new`], for fewer records.
    pub fn with_records_max(incarnation: u64, ledger: &Ledger, records_max: usize) -> Self {
        let state = State {
            items: BTreeMap::new(),
            by_position: BTreeMap::new(),
            by_target: HashMap::new(),
            arrivals: 0,
            known: Vector::default(),
            advanced: HashMap::new(),
            forgotten: Vector::default(),
            dropped_arrival: 0,
            queue: VecDeque::new(),
            entries: VecDeque::new(),
            bytes: 0,
            charge: ledger.charge(0),
        };
        Log {
            incarnation,
            state: Mutex::new(state),
            seen: ArcSwap::default(),
            arrivals: AtomicU64::new(0),
            retention_milliseconds: AtomicU64::new(RETENTION_DEFAULT.as_millis() as u64),
            records_max,
        }
    }

    /// How long a purge is kept: as long as a fill may last, and as a node may be out of reach without losing its memory.
    pub fn set_retention(&self, retention: Duration) {
        let milliseconds = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
        self.retention_milliseconds.store(milliseconds, Ordering::Relaxed);
    }

    /// What is recorded now: the stamp of a question that is sent to an origin now.
    pub fn known(&self) -> Stamp {
        match self.arrivals.load(Ordering::SeqCst) {
            0 => Stamp::default(),
            _ => self.seen.load().known.clone(),
        }
    }

    /// What is applied now: the stamp of what memory gives from now on, and what a request that came now may rely on.
    pub fn applied(&self) -> Stamp {
        match self.arrivals.load(Ordering::SeqCst) {
            0 => Stamp::default(),
            _ => self.seen.load().applied.clone(),
        }
    }

    /// The number of the last purge that this node accepted.
    pub fn sequence(&self) -> u64 {
        self.state.lock().known.of(self.incarnation)
    }

    /// How many targets are kept.
    pub fn len(&self) -> usize {
        self.state.lock().items.len()
    }

    /// What they are charged for, in bytes.
    pub fn charged_bytes(&self) -> usize {
        self.state.lock().charge.bytes()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Records a purge of this node.
    pub fn accept(&self, targets: Vec<Arc<Target>>, soft: bool, now: Duration) -> Position {
        let mut state = self.state.lock();
        let position = Position { incarnation: self.incarnation, sequence: state.known.of(self.incarnation) + 1 };
        let record = Record { position, soft, targets };
        state.add(&record, now);
        state.claim(position, now);
        state.enqueue(Some(record));
        self.trim(&mut state, now);
        self.publish(&state);
        position
    }

    /// Records what another node sent; returns what of it is new here.
    ///
    /// # Errors
    /// This node lacks more than the notice tells; nothing is recorded.
    pub fn record(&self, notice: &Notice, now: Duration) -> Result<Vec<Record>, Lacking> {
        let mut state = self.state.lock();
        if !state.known.contains_all(&notice.base) {
            return Err(Lacking);
        }
        let is_new = |state: &State, position: Position| {
            let from = (position.incarnation, position.sequence, 0);
            let to = (position.incarnation, position.sequence, u32::MAX);
            !state.known.contains(position) && state.by_position.range(from..=to).next().is_none()
        };
        let records: Vec<Record> =
            notice.records.iter().filter(|record| is_new(&state, record.position)).cloned().collect();
        for record in &records {
            state.add(record, now);
            state.enqueue(Some(record.clone()));
        }
        for claim in &notice.claims {
            let age = Duration::from_secs(claim.age_seconds.into());
            state.claim(claim.position, now.saturating_sub(age));
        }
        // Known even where nothing of it is left; and what another call has queued is applied before.
        state.enqueue(None);
        self.trim(&mut state, now);
        self.publish(&state);
        Ok(records)
    }

    /// The purge that is to be applied next.
    pub fn front(&self) -> Option<Arc<Batch>> {
        self.state.lock().queue.front().cloned()
    }

    /// `batch`, which was the front, is applied, and so many entries went.
    pub fn finish(&self, batch: &Arc<Batch>, entries: u64) {
        let mut state = self.state.lock();
        if state.queue.front().is_some_and(|front| Arc::ptr_eq(front, batch)) {
            state.queue.pop_front();
            if let Some(position) = batch.position {
                if state.entries.len() >= COUNTS_MAX {
                    state.entries.pop_front();
                }
                state.entries.push_back((position, entries));
            }
            let seen = self.seen.load();
            let (known, ahead) = (seen.known.clone(), seen.ahead);
            self.seen.store(Arc::new(Seen { known, applied: batch.then.clone(), ahead }));
        }
    }

    /// How many entries a recent purge removed here.
    pub fn entries(&self, position: Position) -> Option<u64> {
        let state = self.state.lock();
        state.entries.iter().rev().find(|(counted, _)| *counted == position).map(|(_, entries)| *entries)
    }

    /// Whether a purge matches that `stamp` does not contain, and if so, which number in this log (or an earlier one) it has.
    pub fn overtaken(
        &self,
        stamp: &Stamp,
        overtaking: Overtaking,
        group: &str,
        key: &[u8],
        tags: &Tags,
    ) -> Option<u64> {
        let arrivals = self.arrivals.load(Ordering::SeqCst);
        if arrivals <= stamp.arrival {
            return None;
        }
        if stamp.arrival == 0 {
            let seen = self.seen.load();
            if !seen.ahead && stamp.vector.contains_all(&seen.known.vector) {
                return None;
            }
        }
        self.state.lock().overtaken(stamp, overtaking, group, key, tags)
    }

    /// As [`Log::overtaken`] for something with a stamp of this node, leaving out the purge that it was part of itself.
    pub fn overtaken_but_by(&self, own: Option<Position>, stamp: &Stamp, group: &str, key: &[u8], tags: &Tags) -> bool {
        let state = self.state.lock();
        let later = state.items.range(stamp.arrival + 1..);
        let mut overtaking = later.filter(|(_, item)| item.target.matches(group, key, tags));
        stamp.arrival < state.dropped_arrival
            || overtaking.any(|(arrival, item)| {
                // It may stand in the place of an equal one of somebody else.
                Some(item.position) != own || (stamp.arrival + 1..*arrival).contains(&item.first_arrival)
            })
    }

    /// Everything that a node with this vector lacks.
    pub fn missing(&self, vector: &Vector, now: Duration) -> Notice {
        let state = self.state.lock();
        let lives = state.known.positions().iter().map(|position| position.incarnation);
        let mut notice = Notice { base: vector.clone(), ..Notice::default() };
        for incarnation in lives {
            state.add_missing(incarnation, vector.of(incarnation), now, &mut notice);
        }
        notice
    }

    /// This node's own purges after `sequence`.
    pub fn own_after(&self, sequence: u64, now: Duration) -> Notice {
        let state = self.state.lock();
        let base = Position { incarnation: self.incarnation, sequence };
        let mut notice = Notice { base: Vector::new([base]), ..Notice::default() };
        state.add_missing(self.incarnation, sequence, now, &mut notice);
        notice
    }

    fn trim(&self, state: &mut State, now: Duration) {
        let retention = Duration::from_millis(self.retention_milliseconds.load(Ordering::Relaxed));
        while let Some((&arrival, item)) = state.items.first_key_value() {
            let expired = now.saturating_sub(item.at) > retention;
            if !expired && state.items.len() <= self.records_max && state.bytes <= BYTES_MAX {
                break;
            }
            let position = item.position;
            state.remove(arrival);
            state.dropped_arrival = arrival;
            state.forgotten = state.forgotten.with(&[position]);
        }
        // A life that nobody has heard of for long is no part of any stamp that may come.
        let gone = |state: &State, incarnation: u64, share: u32| {
            let silent = state.advanced.get(&incarnation).map_or(Duration::MAX, |at| now.saturating_sub(*at));
            silent > retention.saturating_mul(share) / 2
                && state.by_position.range((incarnation, 0, 0)..=(incarnation, u64::MAX, u32::MAX)).next().is_none()
        };
        // What others still say they know must not be missed here: forgotten goes before known, and both at the same age on
        // all nodes.
        if state.forgotten.positions().iter().any(|position| gone(state, position.incarnation, 3)) {
            state.forgotten = state.forgotten.only(|incarnation| !gone(state, incarnation, 3));
        }
        let keeps = |state: &State, incarnation: u64| incarnation == self.incarnation || !gone(state, incarnation, 4);
        if state.known.positions().iter().any(|position| !keeps(state, position.incarnation)) {
            state.known = state.known.only(|incarnation| keeps(state, incarnation));
            let known = state.known.clone();
            state.advanced.retain(|incarnation, _| known.of(*incarnation) > 0);
        }
        let bytes = state.bytes;
        state.charge.resize(bytes);
    }

    fn publish(&self, state: &State) {
        let known = Stamp { arrival: state.arrivals, vector: state.known.clone() };
        let applied = self.seen.load().applied.clone();
        self.seen.store(Arc::new(Seen { known, applied, ahead: state.is_ahead() }));
        self.arrivals.store(state.arrivals, Ordering::SeqCst);
    }
}

/// What this node knows is less than what a notice builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacking;

impl State {
    fn add(&mut self, record: &Record, now: Duration) {
        let Position { incarnation, sequence } = record.position;
        for (index, target) in (0u32..).zip(&record.targets) {
            self.arrivals += 1;
            let arrival = self.arrivals;
            let mut first_arrival = arrival;
            let same = (incarnation, target.clone());
            if let Some(&earlier) = self.by_target.get(&same) {
                let superseded = self
                    .items
                    .get(&earlier)
                    .is_some_and(|item| item.position.sequence <= sequence && (item.soft || !record.soft));
                if superseded && let Some(item) = self.remove(earlier) {
                    first_arrival = item.first_arrival;
                }
            }
            let item = Item {
                position: record.position,
                index,
                target: target.clone(),
                soft: record.soft,
                first_arrival,
                at: now,
            };
            self.bytes += bytes_of(target);
            self.items.insert(arrival, item);
            self.by_position.insert((incarnation, sequence, index), arrival);
            self.by_target.insert(same, arrival);
        }
    }

    /// Whether purges are listed that are not claimed yet.
    fn is_ahead(&self) -> bool {
        let mut until = (u64::MAX, u64::MAX, u32::MAX);
        while let Some((&(incarnation, sequence, _), _)) = self.by_position.range(..=until).next_back() {
            if !self.known.contains(Position { incarnation, sequence }) {
                return true;
            }
            match incarnation.checked_sub(1) {
                Some(before) => until = (before, u64::MAX, u32::MAX),
                None => break,
            }
        }
        false
    }

    fn remove(&mut self, arrival: u64) -> Option<Item> {
        let item = self.items.remove(&arrival)?;
        self.bytes = self.bytes.saturating_sub(bytes_of(&item.target));
        self.by_position.remove(&(item.position.incarnation, item.position.sequence, item.index));
        let same = (item.position.incarnation, item.target.clone());
        if self.by_target.get(&same) == Some(&arrival) {
            self.by_target.remove(&same);
        }
        Some(item)
    }

    fn claim(&mut self, position: Position, at: Duration) {
        self.known = self.known.with(&[position]);
        let advanced = self.advanced.entry(position.incarnation).or_default();
        *advanced = (*advanced).max(at);
    }

    fn enqueue(&mut self, record: Option<Record>) {
        let then = Stamp { arrival: self.arrivals, vector: self.known.clone() };
        let batch = match record {
            Some(Record { position, soft, targets }) => Batch { position: Some(position), targets, soft, then },
            None => Batch { position: None, targets: Vec::new(), soft: false, then },
        };
        self.queue.push_back(Arc::new(batch));
    }

    fn overtaken(&self, stamp: &Stamp, overtaking: Overtaking, group: &str, key: &[u8], tags: &Tags) -> Option<u64> {
        let overtakes =
            |item: &Item| (overtaking == Overtaking::Any || !item.soft) && item.target.matches(group, key, tags);
        if stamp.arrival > 0 {
            if stamp.arrival < self.dropped_arrival {
                return Some(stamp.arrival + 1);
            }
            let later = self.items.range(stamp.arrival + 1..);
            let found = later.map(|(_, item)| item).filter(|item| overtakes(item));
            return found.map(|item| item.first_arrival.max(stamp.arrival + 1)).min();
        }
        if !stamp.vector.contains_all(&self.forgotten) {
            return Some(1);
        }
        let mut first: Option<u64> = None;
        // Not only what is known: some of it may have come ahead of what makes it complete.
        let mut from = 0;
        while let Some((&(incarnation, ..), _)) = self.by_position.range((from, 0, 0)..).next() {
            let contained = stamp.vector.of(incarnation);
            let missing = self.by_position.range((incarnation, contained + 1, 0)..=(incarnation, u64::MAX, u32::MAX));
            let found = missing.filter_map(|(_, arrival)| self.items.get(arrival)).filter(|item| overtakes(item));
            first = found.map(|item| item.first_arrival).chain(first).min();
            match incarnation.checked_add(1) {
                Some(next) => from = next,
                None => break,
            }
        }
        first
    }

    fn add_missing(&self, incarnation: u64, sequence: u64, now: Duration, notice: &mut Notice) {
        let known = self.known.of(incarnation);
        if known <= sequence {
            return;
        }
        let forgotten = self.forgotten.of(incarnation);
        if forgotten > sequence {
            // What it was is not known any more, so it was everything.
            let position = Position { incarnation, sequence: forgotten };
            notice.records.push(Record { position, soft: false, targets: vec![Arc::new(Target::Everything)] });
        }
        let missing = self.by_position.range((incarnation, sequence + 1, 0)..=(incarnation, known, u32::MAX));
        for (&(_, sequence, _), arrival) in missing {
            let Some(item) = self.items.get(arrival) else { continue };
            let position = Position { incarnation, sequence };
            match notice.records.last_mut() {
                Some(last) if last.position == position => {
                    last.targets.push(item.target.clone());
                    last.soft &= item.soft;
                }
                _ => notice.records.push(Record { position, soft: item.soft, targets: vec![item.target.clone()] }),
            }
        }
        let age = self.advanced.get(&incarnation).map_or(Duration::ZERO, |at| now.saturating_sub(*at));
        notice.claims.push(Claim {
            position: Position { incarnation, sequence: known },
            age_seconds: u32::try_from(age.as_secs()).unwrap_or(u32::MAX),
        });
    }
}

/// What an item takes of memory, about: it lies in three tables.
fn bytes_of(target: &Target) -> usize {
    ITEM_BYTES + target.value().len()
}

impl std::fmt::Debug for Log {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Log").field("known", &self.known()).field("applied", &self.applied()).finish()
    }
}

/// The most targets that a log keeps. Guess: two hundred a second for as long as a fill may last.
pub const RECORDS_MAX: usize = 65_536;
/// The most that they may take, in bytes.
const BYTES_MAX: usize = 32 * 1024 * 1024;
const ITEM_BYTES: usize = 320;
/// Purges whose counts are remembered, for receipts of those that came twice.
const COUNTS_MAX: usize = 1024;
/// Five minutes of a fill, and an hour out of reach.
const RETENTION_DEFAULT: Duration = Duration::from_secs(65 * 60);
