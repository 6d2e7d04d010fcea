//! How often entries were asked for: counters that cost a hit one addition on a line of its own thread.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use once_cell::sync::OnceCell;

use crate::key::{GroupId, HashedKey};
use crate::memory::allocated_bytes;

/// Counts look-ups by group and outcome (main hit, hot hit, miss): one addition each, in the stripe of the thread, so
/// that threads do not meet. The four counters of the interface follow from the three.
pub(super) struct Lookups {
    chunks: Box<[OnceCell<Box<LookupChunk>>]>,
    chunks_made: AtomicUsize,
}

type LookupChunk = [LookupStripe; LOOKUP_STRIPES];

/// The counters of a chunk of groups that some threads use; on cache lines of its own.
#[repr(align(128))]
struct LookupStripe([[AtomicU64; 3]; GROUPS_PER_CHUNK]);

thread_local! {
    static STRIPE: usize = {
        static NEXT: AtomicUsize = const { AtomicUsize::new(0) };
        NEXT.fetch_add(1, Ordering::Relaxed) % LOOKUP_STRIPES
    };
}

impl Lookups {
    pub fn new() -> Self {
        let chunks = (usize::from(u16::MAX) + 1) / GROUPS_PER_CHUNK;
        Lookups { chunks: (0..chunks).map(|_| OnceCell::new()).collect(), chunks_made: AtomicUsize::new(0) }
    }

    /// Counts one look-up; `outcome` is the role of what was found, or [`LOOKUP_MISS`].
    #[inline]
    pub fn count(&self, key: &HashedKey<'_>, outcome: usize) {
        let group = usize::from(key.group().0);
        let chunk = self.chunks[group / GROUPS_PER_CHUNK].get_or_init(|| self.make_chunk());
        STRIPE.with(|&stripe| &chunk[stripe]).0[group % GROUPS_PER_CHUNK][outcome].fetch_add(1, Ordering::Relaxed);
    }

    /// Main hits, hot hits and misses of `group`.
    pub fn of(&self, group: GroupId) -> [u64; 3] {
        let group = usize::from(group.0);
        let Some(chunk) = self.chunks[group / GROUPS_PER_CHUNK].get() else { return [0; 3] };
        let counter =
            |stripe: &LookupStripe, outcome: usize| stripe.0[group % GROUPS_PER_CHUNK][outcome].load(Ordering::Relaxed);
        let sum = |outcome| chunk.iter().map(|stripe| counter(stripe, outcome)).sum();
        [sum(0), sum(1), sum(LOOKUP_MISS)]
    }

    /// What the counters take of memory, in bytes. A group's first look-up makes them, the next change charges them.
    pub fn allocated(&self) -> usize {
        let chunks = self.chunks_made.load(Ordering::Relaxed) * allocated_bytes(size_of::<LookupChunk>());
        allocated_bytes(size_of_val(&*self.chunks)) + chunks
    }

    fn make_chunk(&self) -> Box<LookupChunk> {
        self.chunks_made.fetch_add(1, Ordering::Relaxed);
        let counters = |_| std::array::from_fn(|_| AtomicU64::new(0));
        Box::new(std::array::from_fn(|_| LookupStripe(std::array::from_fn(counters))))
    }
}

/// The outcome of a look-up that found nothing.
pub(super) const LOOKUP_MISS: usize = 2;
const LOOKUP_STRIPES: usize = 16;
const GROUPS_PER_CHUNK: usize = 64;
