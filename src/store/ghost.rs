//! The memory of what left the small queue not long ago (the ghost queue of S3-FIFO), kept as hashes.
//!
//! Published as a FIFO queue; here each hash carries the time at which it left, in bytes that left since, and sits in
//! one of eight places that its hash chooses. Who is older than the bytes of the main queue is forgotten, which is what
//! a FIFO queue of that many bytes would do, at 8 bytes a hash and without links.

use crate::memory::allocated_bytes;

/// Halves of hashes of entries that left, at most as many bytes of them as the caller's window.
#[derive(Debug, Default)]
pub(super) struct Ghost {
    /// Each place holds a fingerprint (high half, never 0) and the time at which it came; 0 is an empty place.
    buckets: Vec<[u64; BUCKET_PLACES]>,
    bytes_passed: usize,
}

impl Ghost {
    /// Whether `hash` left within the last `window_bytes`; it is forgotten by that.
    pub fn take(&mut self, hash: u32, window_bytes: usize) -> bool {
        let now = self.time();
        let fingerprint = fingerprint(hash);
        let Some(bucket) = self.bucket_mut(fingerprint) else { return false };
        for place in bucket {
            if (*place >> 32) as u32 == fingerprint {
                let fresh = age(*place, now) <= window(window_bytes);
                *place = 0;
                return fresh;
            }
        }
        false
    }

    /// Remembers that `hash` left with `bytes`. `items` is how many hashes are worth room: the entries of the pool.
    pub fn insert(&mut self, hash: u32, bytes: usize, items: usize) {
        self.bytes_passed = self.bytes_passed.wrapping_add(bytes);
        let wanted = items.div_ceil(BUCKET_PLACES).max(BUCKETS_MIN);
        if self.buckets.len() < wanted || self.buckets.len() > wanted * 2 {
            let bytes = allocated_bytes((wanted + wanted / BUCKETS_GROWTH) * BUCKET_BYTES);
            self.rebuild(bytes / BUCKET_BYTES);
        }
        let now = self.time();
        self.put(fingerprint(hash), now, now);
    }

    /// What the table takes of memory, in bytes.
    pub fn allocated(&self) -> usize {
        allocated_bytes(self.buckets.capacity() * BUCKET_BYTES)
    }

    /// Takes an empty place, the same hash's, or the oldest.
    fn put(&mut self, fingerprint: u32, time: u32, now: u32) {
        let Some(bucket) = self.bucket_mut(fingerprint) else { return };
        let mut chosen = 0;
        let mut chosen_age = 0;
        for (index, place) in bucket.iter().enumerate() {
            if *place == 0 || (*place >> 32) as u32 == fingerprint {
                chosen = index;
                break;
            }
            if age(*place, now) >= chosen_age {
                chosen = index;
                chosen_age = age(*place, now);
            }
        }
        bucket[chosen] = u64::from(fingerprint) << 32 | u64::from(time);
    }

    fn rebuild(&mut self, buckets: usize) {
        let now = self.time();
        for place in std::mem::replace(&mut self.buckets, vec![[0; BUCKET_PLACES]; buckets]).iter().flatten() {
            if *place != 0 {
                self.put((*place >> 32) as u32, *place as u32, now);
            }
        }
    }

    fn bucket_mut(&mut self, fingerprint: u32) -> Option<&mut [u64; BUCKET_PLACES]> {
        // Without the bit that all have.
        let at = (u64::from(fingerprint << 1) * self.buckets.len() as u64) >> 32;
        self.buckets.get_mut(at as usize)
    }

    fn time(&self) -> u32 {
        (self.bytes_passed >> TIME_SHIFT) as u32
    }
}

fn fingerprint(hash: u32) -> u32 {
    hash | 1 << 31
}

fn age(place: u64, now: u32) -> u32 {
    now.wrapping_sub(place as u32)
}

fn window(bytes: usize) -> u32 {
    u32::try_from(bytes >> TIME_SHIFT).unwrap_or(u32::MAX)
}

/// One cache line.
const BUCKET_PLACES: usize = 8;
const BUCKET_BYTES: usize = size_of::<[u64; BUCKET_PLACES]>();
const BUCKETS_MIN: usize = 8;
/// The table grows by one part in so many: to double it would leave half of it empty half of the time. Guess.
const BUCKETS_GROWTH: usize = 16;
/// Time counts in KiB, so that 32 bits come round after 4 TiB; a hash that is remembered by mistake then costs nothing
/// but one entry in the wrong queue.
const TIME_SHIFT: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{GroupId, KeyHash};

    fn hash(number: usize) -> u32 {
        KeyHash::of(GroupId(0), &number.to_le_bytes()).upper()
    }

    #[test]
    fn remembers_what_left_within_the_window_once() {
        let mut ghost = Ghost::default();
        assert!(!ghost.take(hash(1), usize::MAX));
        ghost.insert(hash(1), 4096, 100);
        ghost.insert(hash(2), 4096, 100);
        assert!(!ghost.take(hash(3), 1 << 20));
        assert!(ghost.take(hash(1), 4096));
        assert!(!ghost.take(hash(1), 4096), "it came back, so it is no longer gone");
        for number in 10..20 {
            ghost.insert(hash(number), 4096, 100);
        }
        assert!(!ghost.take(hash(2), 10 * 4096 - 1), "ten others left since");
    }

    #[test]
    fn size_follows_the_pool_and_memory_survives_it() {
        let mut ghost = Ghost::default();
        for number in 0..10_000 {
            ghost.insert(hash(number), 1024, number);
        }
        assert!((80_000..=98_304).contains(&ghost.allocated()), "{}", ghost.allocated());
        let kept = (5_000..10_000).filter(|&number| ghost.take(hash(number), usize::MAX)).count();
        assert!(kept > 4_900, "{kept} of 5000");
        ghost.insert(hash(0), 1024, 10);
        assert_eq!(ghost.allocated(), allocated_bytes(8 * 64));
    }
}
