//! Does an entry that another node owns deserve a hot copy here? By how often it is asked for, not by a coin.
//!
//! groupcache keeps one foreign answer in ten, whatever the key: most copies are of keys that nobody asks for again,
//! and a key that is asked for all the time waits for luck. Here every question for a foreign key is counted in a
//! sketch of fixed size whose counts are halved every [`WINDOW`], and a copy is worth its bytes when the key
//!
//! 1. was asked for at least [`QUESTIONS_MIN`] times within about a window, and
//! 2. more often than the hot copy that would have to go for it, if one would.
//!
//! Every question means those that a hot copy answered too: a copy whose hits were not counted would look unwanted.
//! While all foreign keys are asked for rarely nothing is copied at all, and no byte of main is lost to cold copies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Now;
use crate::key::KeyHash;
use crate::memory::{Charge, Ledger, allocated_bytes};

/// How often foreign keys are asked for at this node: a count-min sketch that forgets.
///
/// Four counters of a key lie in one cache line; the least of them is the estimate, which is never too low but for lost
/// updates between threads, and too high only when all four places are shared with busier keys.
pub struct Popularity {
    lines: Box<[Line]>,
    window: AtomicU64,
    _charge: Charge,
}

impl Popularity {
    /// A sketch with a counter byte per KiB of the ledger's limit, between 64 KiB and 4 MiB, charged to the ledger.
    pub fn new(ledger: &Ledger) -> Self {
        let lines = (ledger.limit() / LIMIT_SHARE / LINE_BYTES).clamp(LINES_MIN, LINES_MAX).next_power_of_two();
        Popularity {
            lines: (0..lines).map(|_| Line::default()).collect(),
            window: AtomicU64::new(0),
            _charge: ledger.charge(allocated_bytes(lines * LINE_BYTES)),
        }
    }

    /// Counts a question for a foreign key and returns the estimate that includes it.
    pub fn observe(&self, key: KeyHash, now: Now) -> u32 {
        self.forget(now);
        let line = self.line(key);
        let places = places(key);
        let least = line.least(&places);
        if least < COUNT_MAX {
            // Only the least counters grow: the others are high because of other keys.
            for &place in &places {
                if line.count(place) == least {
                    line.words[place / 8].fetch_add(1 << (place % 8 * 8), Ordering::Relaxed);
                }
            }
        }
        least.saturating_add(1).min(COUNT_MAX).into()
    }

    /// How often the key was asked for lately: steady questions at a rate of `n` per window give `n` to `2 n`.
    pub fn estimate(&self, key: KeyHash, now: Now) -> u32 {
        self.forget(now);
        self.line(key).least(&places(key)).into()
    }

    /// Whether `key` has earned a hot copy at the expense of `victim`, the hot copy that would go
    /// ([`Store::hot_victim`](super::Store::hot_victim)); `None` when there is room.
    pub fn deserves_hot_copy(&self, key: KeyHash, victim: Option<KeyHash>, now: Now) -> bool {
        let estimate = self.estimate(key, now);
        estimate >= QUESTIONS_MIN && victim.is_none_or(|victim| estimate > self.estimate(victim, now))
    }

    /// Halves all counters once for every window that has passed. One thread does it, the others go on counting.
    fn forget(&self, now: Now) {
        let window = u64::try_from(now.monotonic.as_millis() / WINDOW.as_millis()).unwrap_or(u64::MAX);
        let seen = self.window.load(Ordering::Relaxed);
        if window <= seen || self.window.compare_exchange(seen, window, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let halvings = (window - seen).min(8) as u32;
        let kept = u64::from_ne_bytes([u8::MAX.checked_shr(halvings).unwrap_or(0); 8]);
        for word in self.lines.iter().flat_map(|line| &line.words) {
            let counts = word.load(Ordering::Relaxed);
            if counts != 0 {
                word.store((counts >> halvings) & kept, Ordering::Relaxed);
            }
        }
    }

    fn line(&self, key: KeyHash) -> &Line {
        &self.lines[key.get() as usize & (self.lines.len() - 1)]
    }
}

/// 64 counters of one byte on one cache line; a key has one in each quarter.
#[derive(Default)]
#[repr(align(64))]
struct Line {
    words: [AtomicU64; 8],
}

impl Line {
    fn count(&self, place: usize) -> u8 {
        (self.words[place / 8].load(Ordering::Relaxed) >> (place % 8 * 8)) as u8
    }

    fn least(&self, places: &[usize; 4]) -> u8 {
        places.iter().map(|&place| self.count(place)).min().unwrap_or(0)
    }
}

/// The four counters of a key in its line: the top bits of the hash, the lines use the low ones.
fn places(key: KeyHash) -> [usize; 4] {
    let bits = (key.get() >> 48) as usize;
    [0, 1, 2, 3].map(|quarter| quarter * 16 + (bits >> (quarter * 4) & 15))
}

/// How long a question counts in full. Guess: long enough to see a key of one question in three seconds, short enough
/// that a wave of interest gets its copies while it lasts.
pub const WINDOW: Duration = Duration::from_secs(10);

/// Questions within about a window that earn a copy where there is room: the third hop within seconds is the last.
/// Guess; groupcache's coin gives the copy after ten on average.
pub const QUESTIONS_MIN: u32 = 3;

/// Counters stop here and not at 255, so that threads which add at the same moment cannot overflow into the next one.
const COUNT_MAX: u8 = 128;

const LINE_BYTES: usize = size_of::<Line>();
const LIMIT_SHARE: usize = 1024;
const LINES_MIN: usize = (64 << 10) / LINE_BYTES;
const LINES_MAX: usize = (4 << 20) / LINE_BYTES;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::GroupId;

    fn key(number: u32) -> KeyHash {
        KeyHash::of(GroupId(3), &number.to_le_bytes())
    }

    fn at(seconds: u64) -> Now {
        Now { monotonic: Duration::from_secs(seconds), wall_seconds: 0 }
    }

    fn popularity() -> Popularity {
        Popularity::new(&Ledger::new(1 << 30))
    }

    #[test]
    fn the_third_question_within_a_window_earns_a_copy_where_there_is_room() {
        let popularity = popularity();
        for (question, deserves) in [(1, false), (2, false), (3, true)] {
            assert_eq!(popularity.observe(key(1), at(question)), question as u32);
            assert_eq!(popularity.deserves_hot_copy(key(1), None, at(question)), deserves, "question {question}");
        }
    }

    #[test]
    fn a_copy_must_be_wanted_more_than_the_one_that_goes_for_it() {
        let popularity = popularity();
        for _ in 0..5 {
            popularity.observe(key(1), at(1));
            popularity.observe(key(2), at(1));
        }
        assert!(!popularity.deserves_hot_copy(key(1), Some(key(2)), at(1)));
        popularity.observe(key(1), at(1));
        assert!(popularity.deserves_hot_copy(key(1), Some(key(2)), at(1)));
        assert!(!popularity.deserves_hot_copy(key(2), Some(key(1)), at(1)));
    }

    #[test]
    fn questions_are_forgotten_by_halves() {
        let popularity = popularity();
        for _ in 0..40 {
            popularity.observe(key(1), at(0));
        }
        let table = [(9, 40), (10, 20), (19, 20), (20, 10), (35, 5), (120, 0), (4_000_000_000, 0)];
        for (seconds, expected) in table {
            assert_eq!(popularity.estimate(key(1), at(seconds)), expected, "after {seconds} s");
        }
        assert_eq!(popularity.estimate(key(1), at(5)), 0, "a reading from before changes nothing");
    }

    #[test]
    fn a_key_that_is_asked_for_rarely_never_gets_a_copy() {
        let popularity = popularity();
        for question in 0..1000 {
            let now = at(question * 10);
            popularity.observe(key(1), now);
            assert!(!popularity.deserves_hot_copy(key(1), None, now));
        }
    }

    #[test]
    fn counts_stop_without_touching_their_neighbours() {
        let popularity = popularity();
        for _ in 0..1000 {
            popularity.observe(key(1), at(0));
        }
        assert_eq!(popularity.estimate(key(1), at(0)), u32::from(COUNT_MAX));
        let counted: usize =
            popularity.lines.iter().flat_map(|line| (0..64).map(|place| line.count(place) as usize)).sum();
        assert_eq!(counted, 4 * usize::from(COUNT_MAX));
    }

    #[test]
    fn a_crowd_of_cold_keys_does_not_look_hot() {
        let popularity = popularity();
        let deserving = (0..200_000).filter(|&number| {
            popularity.observe(key(number), at(0));
            popularity.deserves_hot_copy(key(number), None, at(0))
        });
        let share = deserving.count() as f64 / 200_000.0;
        assert!(share < 0.02, "{share} of keys that were asked for once");
    }

    #[test]
    fn its_memory_is_charged_and_bounded() {
        for (limit, expected) in [(1 << 20, 64 << 10), (1 << 30, 1 << 20), (1 << 40, 4 << 20)] {
            let ledger = Ledger::new(limit);
            let popularity = Popularity::new(&ledger);
            assert_eq!((ledger.used(), size_of_val(&*popularity.lines)), (allocated_bytes(expected), expected));
            drop(popularity);
            assert_eq!(ledger.used(), 0);
        }
    }
}
