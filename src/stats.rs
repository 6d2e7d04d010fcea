//! Every counter, what it counts, and how they add up.
//!
//! The names of the Go library keep its meanings. After any run, when nothing is in flight:
//! `gets = client requests that the cache was asked for + server_requests`, `cache_hits <= main.hits + hot.hits` (memory also
//! counts what it found stale), `cache_hits + loads <= gets` (the difference was turned away), `loads = loads_deduped +
//! loads_collapsed`, `loads <= the sum of miss_reasons <= gets - cache_hits`, and
//! `client.requests = client.hit + client.stale + client.revalidated + client.miss + client.pass + client.error`.
//!
//! A node that loads in a dead owner's stead counts the question once, as one of the flight that asked the peers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one more.
    #[inline]
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts `more`.
    #[inline]
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The number.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Serialize for Counter {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.value())
    }
}

/// Counts by a word from a fixed list. Words come from enums of ours, never from a request, so the size is bounded.
#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<&'static str, u64>>);

impl Tally {
    /// Counts one more of `word`.
    pub fn increment(&self, word: &'static str) {
        *self.0.lock().entry(word).or_default() += 1;
    }

    /// All words that were counted, with their counts.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().clone()
    }

    /// How often `word` was counted.
    pub fn value(&self, word: &str) -> u64 {
        self.0.lock().get(word).copied().unwrap_or_default()
    }
}

impl Serialize for Tally {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.lock().serialize(serializer)
    }
}

/// What became of a client's request; the same words in statistics, log and `Cache-Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered from memory, fresh.
    Hit,
    /// Answered from memory although stale, as the rules allow.
    Stale,
    /// Answered from memory after the origin confirmed it.
    Revalidated,
    /// Answered with what the owner or the origin sent for it.
    Miss,
    /// Passed through to the origin, uncached.
    Pass,
    /// Answered with an error of our own.
    Error,
}

impl Outcome {
    /// The word for log and statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Hit => "hit",
            Outcome::Stale => "stale",
            Outcome::Revalidated => "revalidated",
            Outcome::Miss => "miss",
            Outcome::Pass => "pass",
            Outcome::Error => "error",
        }
    }
}

/// Requests of clients by outcome.
#[derive(Debug, Default, Serialize)]
pub struct ClientStats {
    /// All requests of clients that were matched to the group.
    pub requests: Counter,
    /// [`Outcome::Hit`].
    pub hit: Counter,
    /// [`Outcome::Stale`].
    pub stale: Counter,
    /// [`Outcome::Revalidated`].
    pub revalidated: Counter,
    /// [`Outcome::Miss`].
    pub miss: Counter,
    /// [`Outcome::Pass`].
    pub pass: Counter,
    /// [`Outcome::Error`].
    pub error: Counter,
    /// Bytes of bodies sent to clients.
    pub bytes: Counter,
}

impl ClientStats {
    /// Counts a finished request.
    #[inline]
    pub fn count(&self, outcome: Outcome, body_bytes: u64) {
        self.requests.increment();
        self.bytes.add(body_bytes);
        match outcome {
            Outcome::Hit => &self.hit,
            Outcome::Stale => &self.stale,
            Outcome::Revalidated => &self.revalidated,
            Outcome::Miss => &self.miss,
            Outcome::Pass => &self.pass,
            Outcome::Error => &self.error,
        }
        .increment();
    }
}

/// The counters of one group.
#[derive(Debug, Default, Serialize)]
pub struct GroupStats {
    /// Questions to the cache, from clients and from peers.
    pub gets: Counter,
    /// Questions answered from main or hot memory.
    pub cache_hits: Counter,
    /// Questions that memory could not answer (`gets - cache_hits`, but for those that were turned away).
    pub loads: Counter,
    /// Loads that were left after deduplication: the fills that were started.
    pub loads_deduped: Counter,
    /// Fills that a peer answered.
    pub peer_loads: Counter,
    /// Peers that were asked by a fill and could not answer.
    pub peer_errors: Counter,
    /// Fills that this node's origin answered.
    pub local_loads: Counter,
    /// Fills that this node's origin failed to answer.
    pub local_load_errs: Counter,
    /// Questions of peers, included in `gets`.
    pub server_requests: Counter,
    /// Fills that asked the key's previous owner for what it has in memory, before the origin.
    pub peeks: Counter,
    /// Those that found it there.
    pub peek_hits: Counter,
    /// Questions of peers with another ring for keys that this node does not own by its own: answered, never passed on.
    pub ring_disagreements: Counter,
    /// Loads that followed a fill that another had started.
    pub loads_collapsed: Counter,
    /// Interim answers (1xx) that fills were given for those who wait.
    pub interims: Counter,
    /// Those that came too late or were too many or too large to be passed on.
    pub interims_dropped: Counter,
    /// Requests of clients.
    pub client: ClientStats,
    /// Why memory could not answer, in the words of `Cache-Status: fwd=`.
    pub miss_reasons: Tally,
    /// Why a response was not stored.
    pub not_stored: Tally,
    /// Answers that could not be stored before the first that could; stops counting then.
    #[serde(skip)]
    unstored_at_first: AtomicU64,
    #[serde(skip)]
    last_minute: Mutex<VecDeque<(u64, u64)>>,
}

impl GroupStats {
    /// Notes whether an answer could be stored. True once: when none of the first hundred could.
    pub fn hint_is_due(&self, storable: bool) -> bool {
        if storable {
            // Far beyond the hundredth: the hint never comes.
            self.unstored_at_first.store(u64::MAX / 2, Ordering::Relaxed);
            return false;
        }
        self.unstored_at_first.fetch_add(1, Ordering::Relaxed) == 99
    }

    /// Takes a sample of hits and requests; to be called once a second.
    pub fn sample(&self) {
        let mut samples = self.last_minute.lock();
        samples.push_back((self.client.hit.value(), self.client.requests.value()));
        while samples.len() > 61 {
            samples.pop_front();
        }
    }

    /// Share of hits among the requests of the last minute, as far as samples reach; zero without requests.
    pub fn hit_ratio_last_minute(&self) -> f64 {
        let (hits, requests) = self.last_minute.lock().front().copied().unwrap_or_default();
        let asked = self.client.requests.value().saturating_sub(requests);
        if asked == 0 {
            return 0.0;
        }
        self.client.hit.value().saturating_sub(hits) as f64 / asked as f64
    }
}

/// Where one question is counted: in its group, or nowhere (the default), because it has been counted before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account<'a>(Option<&'a GroupStats>);

impl<'a> Account<'a> {
    /// The counters of the question's group.
    pub fn of(stats: &'a GroupStats) -> Self {
        Account(Some(stats))
    }

    /// Memory answers it.
    pub fn hit(self) {
        if let Some(stats) = self.0 {
            stats.cache_hits.increment();
        }
    }

    /// Memory cannot answer it, for this reason.
    pub fn miss(self, reason: &'static str) {
        if let Some(stats) = self.0 {
            stats.miss_reasons.increment(reason);
        }
    }

    /// It waits for a fill: for one that it has `started`, or for another's.
    pub fn load(self, started: bool) {
        let Some(stats) = self.0 else { return };
        stats.loads.increment();
        match started {
            true => stats.loads_deduped.increment(),
            false => stats.loads_collapsed.increment(),
        }
    }
}

/// The counters of the node that belong to no group.
#[derive(Debug, Default)]
pub struct NodeStats {
    /// Connections of clients that are open now.
    pub connections: std::sync::atomic::AtomicUsize,
    /// Requests and connections that were turned away before they reached a group, by reason.
    pub rejects: Tally,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_comes_once_and_only_when_nothing_could_be_stored() {
        let (never, soon) = (GroupStats::default(), GroupStats::default());
        assert_eq!((0..300).filter(|_| never.hint_is_due(false)).count(), 1);
        assert!(!soon.hint_is_due(false) && !soon.hint_is_due(true));
        assert_eq!((0..300).filter(|_| soon.hint_is_due(false)).count(), 0);
    }

    #[test]
    fn the_last_minute_forgets_what_is_older() {
        let stats = GroupStats::default();
        assert_eq!(stats.hit_ratio_last_minute(), 0.0);
        stats.client.count(Outcome::Miss, 0);
        for _ in 0..61 {
            stats.sample();
        }
        stats.client.count(Outcome::Hit, 10);
        assert_eq!(stats.hit_ratio_last_minute(), 1.0);
        assert_eq!((stats.client.requests.value(), stats.client.bytes.value()), (2, 10));
    }
}
