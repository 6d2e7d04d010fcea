//! Fences: what separates the fills of a key that began before an invalidation from those that began after it.
//!
//! The fence of a key is a number that an invalidation raises. It belongs to the identity of a flight, so that nobody who
//! asks afterwards joins a fill that began before; and a fill stores only while the fence of its key is still its own:
//!
//! ```text
//! fill begins: fence 3 ────────────── answer ── [slot lock: fence is 3? store] ──
//! invalidation:         raise to 4 ─────────────────────────────────────────────── [slot lock: remove] ── acknowledged
//! ```
//! The check and the storing are one step under the lock of the key's slot, the removal comes after the raising and takes
//! the same lock. So if the check still saw 3, the removal comes later and takes away what was stored; and if the removal
//! came first, the check sees 4. In both cases nothing from before the fence is left when the invalidation is
//! acknowledged, and nothing comes later.
//!
//! Bounded: a part that is full forgets its keys and raises the fence of all keys in it, which costs the fills under way
//! their place in the store and nobody an answer.

use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::key::KeyHash;

/// The fences of this node.
#[derive(Debug)]
pub struct Fences {
    raised: AtomicU64,
    parts: Box<[Mutex<Part>]>,
}

#[derive(Debug, Default)]
struct Part {
    /// The fence of every key that is not listed.
    floor: u64,
    keys: HashMap<KeyHash, u64>,
}

impl Default for Fences {
    fn default() -> Self {
        Fences { raised: AtomicU64::new(0), parts: (0..PARTS).map(|_| Mutex::default()).collect() }
    }
}

impl Fences {
    /// The fence of a key now.
    pub fn of(&self, key: KeyHash) -> u64 {
        // Nothing was ever invalidated: the usual case costs no lock.
        if self.raised.load(Ordering::SeqCst) == 0 {
            return 0;
        }
        let part = self.part(key).lock();
        part.keys.get(&key).copied().unwrap_or(part.floor)
    }

    /// Separates what begins from now on from what began before.
    pub fn raise(&self, key: KeyHash) {
        let mut part = self.part(key).lock();
        let fence = self.raised.fetch_add(1, Ordering::SeqCst) + 1;
        if part.keys.len() >= KEYS_PER_PART_MAX && !part.keys.contains_key(&key) {
            part.keys.clear();
            part.floor = fence;
        } else {
            part.keys.insert(key, fence);
        }
    }

    /// Separates what begins from now on from what has the fence `from`, unless somebody did already.
    pub fn separate(&self, key: KeyHash, from: u64) {
        if self.of(key) == from {
            self.raise(key);
        }
    }

    fn part(&self, key: KeyHash) -> &Mutex<Part> {
        &self.parts[key.get() as usize % PARTS]
    }
}

const PARTS: usize = 16;
/// Guess: 65,536 keys in all, about 2 MiB.
const KEYS_PER_PART_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::GroupId;

    #[test]
    fn a_fence_never_goes_back_even_when_it_is_forgotten() {
        let fences = Fences::default();
        let hash = |number: u32| KeyHash::of(GroupId(0), &number.to_le_bytes());
        assert_eq!(fences.of(hash(0)), 0);
        fences.raise(hash(0));
        let mut before = fences.of(hash(0));
        assert!(before > 0);
        assert_eq!(fences.of(hash(1)), 0, "others are not concerned");
        for number in 1..100_000 {
            fences.raise(hash(number));
            assert!(fences.of(hash(number)) > before);
            before = fences.of(hash(number));
        }
        assert!(fences.of(hash(0)) > 1, "forgotten with its part, whose floor is higher");
        assert!(fences.parts.iter().all(|part| part.lock().keys.len() <= KEYS_PER_PART_MAX));
    }
}
