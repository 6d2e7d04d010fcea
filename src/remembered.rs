//! What is remembered of keys beside their entries: that an answer may not be shared, and that we failed to load.
//!
//! Bounded in number: when a part is full, what has expired goes first, then everything in that part. Losing a memory only
//! costs a collapsed load, never a wrong answer.

use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::clock::Now;
use crate::key::KeyHash;

/// What is remembered of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// An answer to a request without credentials could not be shared: later requests do not queue for one another.
    Uncacheable,
    /// Loading failed with this status: everybody gets it for a moment, without asking again.
    Failed(u16),
}

/// The memories of this node.
#[derive(Debug)]
pub struct Remembered {
    parts: Box<[Mutex<HashMap<KeyHash, (Memory, Duration)>>]>,
}

impl Default for Remembered {
    fn default() -> Self {
        Remembered { parts: (0..PARTS).map(|_| Mutex::default()).collect() }
    }
}

impl Remembered {
    /// What is known of the key, unless it has expired.
    pub fn recall(&self, key: KeyHash, now: Now) -> Option<Memory> {
        let mut part = self.part(key).lock();
        let (memory, until) = *part.get(&key)?;
        if until > now.monotonic {
            return Some(memory);
        }
        part.remove(&key);
        None
    }

    /// Remembers `memory` for `lifetime`; zero is not remembered at all.
    pub fn remember(&self, key: KeyHash, memory: Memory, now: Now, lifetime: Duration) {
        if lifetime.is_zero() {
            return;
        }
        let mut part = self.part(key).lock();
        if part.len() >= KEYS_PER_PART_MAX && !part.contains_key(&key) {
            part.retain(|_, (_, until)| *until > now.monotonic);
            if part.len() >= KEYS_PER_PART_MAX {
                part.clear();
            }
        }
        part.insert(key, (memory, now.monotonic + lifetime));
    }

    /// Forgets the key: a storable answer came.
    pub fn forget(&self, key: KeyHash) {
        self.part(key).lock().remove(&key);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.parts.iter().for_each(|part| part.lock().clear());
    }

    fn part(&self, key: KeyHash) -> &Mutex<HashMap<KeyHash, (Memory, Duration)>> {
        &self.parts[key.get() as usize % PARTS]
    }
}

/// How long an uncacheable key is remembered. Guess, near Varnish's two minutes: an origin that changes its mind is noticed soon.
pub const UNCACHEABLE_LIFETIME: Duration = Duration::from_secs(60);

const PARTS: usize = 16;
/// Guess: 65,536 keys in all, about 3 MiB.
const KEYS_PER_PART_MAX: usize = 4096;
