//! The ledger: one honest number for every byte that is alive in this process because of what it serves.
//!
//! Who makes a block that lives longer than a call takes a [`Charge`] for what the allocator really gives for it
//! ([`allocated_bytes`]) and keeps the charge beside the block: it ends with the block's last holder, so an entry that
//! left the store but is still being sent to a slow client keeps counting.
//!
//! ```text
//! used    = everything that is charged
//! stored  = the part of it that the store could give up (entries, keys, index)
//! outside = used - stored: in flight, buffers, and entries that readers hold after they left the store
//! ```
//! The store may hold `limit - outside`. [`Ledger::reserve`] is the admission before reading: it refuses when `outside`
//! would become more than a quarter of the limit, and asks the store to give way when the limit is passed.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use once_cell::sync::OnceCell;

/// The account of one process; clones are the same account.
#[derive(Clone)]
pub struct Ledger {
    accounts: Arc<Accounts>,
}

struct Accounts {
    used_bytes: Padded,
    stored_bytes: Padded,
    limit_bytes: AtomicUsize,
    relief: OnceCell<Weak<dyn Relief>>,
}

/// Who can make room when more is alive than the limit allows: the store.
pub trait Relief: Send + Sync {
    /// Gives up stored entries until the limit holds or nothing more can be freed.
    fn relieve(&self);
}

impl Ledger {
    /// An empty account that may hold `limit_bytes`.
    pub fn new(limit_bytes: usize) -> Self {
        Ledger {
            accounts: Arc::new(Accounts {
                used_bytes: Padded::default(),
                stored_bytes: Padded::default(),
                limit_bytes: AtomicUsize::new(limit_bytes),
                relief: OnceCell::new(),
            }),
        }
    }

    /// What may be alive, in bytes.
    pub fn limit(&self) -> usize {
        self.accounts.limit_bytes.load(Ordering::Relaxed)
    }

    /// Changes the limit (a reload). A store has to be asked to give way afterwards.
    pub fn set_limit(&self, limit_bytes: usize) {
        self.accounts.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }

    /// Everything that is alive, in bytes.
    pub fn used(&self) -> usize {
        self.accounts.used_bytes.0.load(Ordering::Relaxed)
    }

    /// The part of [`used`](Self::used) that the store holds.
    pub fn stored(&self) -> usize {
        self.accounts.stored_bytes.0.load(Ordering::Relaxed)
    }

    /// The part of [`used`](Self::used) that the store cannot give up: in flight, buffers, held by readers.
    pub fn outside(&self) -> usize {
        self.used().saturating_sub(self.stored())
    }

    /// Gives back `bytes` of a charge that was [kept apart](Charge::keep_apart).
    pub fn give_back(&self, bytes: usize) {
        self.subtract(bytes);
    }

    /// Counts `bytes` without asking: for what is small or has been admitted in another way.
    pub fn charge(&self, bytes: usize) -> Charge {
        self.add(bytes);
        Charge { ledger: self.clone(), bytes }
    }

    /// Admission before reading: counts `bytes`, or refuses when they do not belong in memory now.
    ///
    /// `None` means that what is outside of the store would become more than a quarter of the limit; the caller
    /// streams without storing. When the limit is passed, stored entries give way before this returns.
    pub fn reserve(&self, bytes: usize) -> Option<Charge> {
        self.admit(bytes).then(|| Charge { ledger: self.clone(), bytes })
    }

    /// Names who gives way when [`reserve`](Self::reserve) passes the limit. The first caller wins.
    pub fn set_relief(&self, relief: Weak<dyn Relief>) {
        let _ = self.accounts.relief.set(relief);
    }

    fn admit(&self, bytes: usize) -> bool {
        let limit = self.limit();
        let outside_max = limit / OUTSIDE_SHARE;
        if bytes > outside_max {
            return false;
        }
        let used = self.add(bytes);
        if used.saturating_sub(self.stored()) > outside_max {
            self.subtract(bytes);
            return false;
        }
        if used > limit
            && let Some(relief) = self.accounts.relief.get().and_then(Weak::upgrade)
        {
            relief.relieve();
        }
        true
    }

    /// Says that `bytes`, which are charged already, are now the store's.
    pub(crate) fn enter_store(&self, bytes: usize) {
        self.accounts.stored_bytes.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Says that the store no longer holds `bytes`, whether they were freed or not.
    pub(crate) fn leave_store(&self, bytes: usize) {
        let before = self.accounts.stored_bytes.0.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "the store gives back more than it took");
    }

    fn add(&self, bytes: usize) -> usize {
        self.accounts.used_bytes.0.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes)
    }

    fn subtract(&self, bytes: usize) {
        let before = self.accounts.used_bytes.0.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "more bytes are given back than were charged");
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Ledger")
            .field("limit_bytes", &self.limit())
            .field("used_bytes", &self.used())
            .field("stored_bytes", &self.stored())
            .finish()
    }
}

/// Bytes that count as alive until this is dropped.
#[derive(Debug)]
pub struct Charge {
    ledger: Ledger,
    bytes: usize,
}

impl Charge {
    /// How much this charge holds, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The ledger alone; the bytes stay counted. For who can tell them at any time, and gives them back by
    /// [`Ledger::give_back`] in the end.
    pub fn keep_apart(mut self) -> Ledger {
        self.bytes = 0;
        self.ledger.clone()
    }

    /// A charge of its own in the same ledger, as [`Ledger::charge`].
    pub fn another(&self, bytes: usize) -> Charge {
        self.ledger.charge(bytes)
    }

    /// Counts `bytes` more without asking, as [`Ledger::charge`].
    pub fn grow(&mut self, bytes: usize) {
        let bytes = bytes.min(usize::MAX - self.bytes);
        self.ledger.add(bytes);
        self.bytes += bytes;
    }

    /// Counts `bytes` more if they are admitted, as [`Ledger::reserve`]; says whether they were.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        if bytes > usize::MAX - self.bytes || !self.ledger.admit(bytes) {
            return false;
        }
        self.bytes += bytes;
        true
    }

    /// Gives back `bytes`, at most what this charge holds.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.ledger.subtract(bytes);
    }

    /// Grows or shrinks to `bytes`, without asking.
    pub fn resize(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.grow(bytes - self.bytes);
        } else {
            self.shrink(self.bytes - bytes);
        }
    }

    /// Takes `bytes`, at most what this charge holds, into a charge of their own; the ledger does not move.
    pub fn split(&mut self, bytes: usize) -> Charge {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Charge { ledger: self.ledger.clone(), bytes }
    }

    /// Takes over what `other` holds.
    pub fn merge(&mut self, mut other: Charge) {
        if Arc::ptr_eq(&self.ledger.accounts, &other.ledger.accounts) {
            self.bytes = self.bytes.saturating_add(std::mem::take(&mut other.bytes));
        } else {
            debug_assert!(false, "charges of two ledgers are merged");
            self.grow(other.bytes);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.ledger.subtract(self.bytes);
        }
    }
}

/// What the allocator gives for a block of `length` bytes: what an honest charge for it is.
///
/// These are the size classes of jemalloc 5.3.1 with `cache_oblivious:false`, compared with its `nallocx`: steps of 16 bytes up to
/// 128, then four classes per power of two, and above 16 KiB whole pages of 4 KiB. On a machine with larger pages it gives
/// more for blocks of middle size than this says. An empty block costs nothing. What the allocator keeps for itself and pages
/// that are partly empty are not in it: they are what the slack between limit and resident memory is for.
pub const fn allocated_bytes(length: usize) -> usize {
    const PAGE_BYTES: usize = 4096;
    if length == 0 {
        return 0;
    }
    if length <= 8 {
        return 8;
    }
    let step = if length <= 128 {
        16
    } else if length <= 4 * PAGE_BYTES {
        // The power of two below `length - 1`, in four steps.
        1 << ((length - 1).ilog2() - 2)
    } else {
        PAGE_BYTES
    };
    match length.checked_next_multiple_of(step) {
        Some(bytes) => bytes,
        None => usize::MAX,
    }
}

/// In flight and held by readers may be one part in this many of the limit before fills stream without being stored.
/// From the design; with a larger part a crowd of slow readers could empty the store.
const OUTSIDE_SHARE: usize = 4;

/// A counter on cache lines of its own: every fill of every thread writes it.
#[derive(Default)]
#[repr(align(128))]
struct Padded(AtomicUsize);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_charge_counts_until_it_is_dropped() {
        let ledger = Ledger::new(1000);
        let mut charge = ledger.charge(100);
        charge.grow(50);
        charge.shrink(20);
        assert_eq!((charge.bytes(), ledger.used()), (130, 130));
        let part = charge.split(30);
        assert_eq!((charge.bytes(), part.bytes(), ledger.used()), (100, 30, 130));
        drop(charge);
        assert_eq!(ledger.used(), 30);
        let mut whole = ledger.charge(5);
        whole.merge(part);
        assert_eq!((whole.bytes(), ledger.used()), (35, 35));
        whole.resize(10);
        assert_eq!(ledger.used(), 10);
        drop(whole);
        assert_eq!(ledger.used(), 0);
    }

    #[test]
    fn amounts_beyond_what_a_charge_holds_are_clamped() {
        let ledger = Ledger::new(1000);
        let mut charge = ledger.charge(10);
        assert_eq!(charge.split(50).bytes(), 10);
        charge.grow(7);
        charge.shrink(usize::MAX);
        assert_eq!((charge.bytes(), ledger.used()), (0, 0));
        assert!(!charge.try_grow(usize::MAX));
        assert!(ledger.reserve(usize::MAX).is_none());
        assert_eq!(ledger.used(), 0);
    }

    #[test]
    fn admission_keeps_what_is_outside_of_the_store_below_a_quarter() {
        let ledger = Ledger::new(1000);
        let mut first = ledger.reserve(200).expect("below a quarter");
        assert!(ledger.reserve(51).is_none());
        assert_eq!(ledger.used(), 200, "a refusal leaves nothing behind");
        assert!(first.try_grow(50) && !first.try_grow(1));
        ledger.enter_store(250);
        let second = ledger.reserve(250).expect("what is stored is not outside");
        assert_eq!((ledger.used(), ledger.outside()), (500, 250));
        ledger.leave_store(250);
        assert!(ledger.reserve(1).is_none(), "what left the store but is held by a reader counts");
        drop((first, second));
        assert_eq!(ledger.used(), 0);
    }

    #[test]
    fn passing_the_limit_asks_for_relief_and_nothing_else_does() {
        struct Asked(AtomicBool);
        impl Relief for Asked {
            fn relieve(&self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let ledger = Ledger::new(1000);
        let asked = Arc::new(Asked(AtomicBool::new(false)));
        let relief: Arc<dyn Relief> = asked.clone();
        ledger.set_relief(Arc::downgrade(&relief));
        let _stored = ledger.charge(900);
        ledger.enter_store(900);
        let _fits = ledger.reserve(100);
        assert!(!asked.0.load(Ordering::Relaxed));
        let _over = ledger.reserve(1);
        assert!(asked.0.load(Ordering::Relaxed));
    }

    #[test]
    fn size_classes_are_those_of_the_allocator() {
        // Length asked, what jemalloc 5.3.1 gives for it on x86-64 Linux.
        let table = [
            (1, 8),
            (8, 8),
            (9, 16),
            (17, 32),
            (33, 48),
            (65, 80),
            (113, 128),
            (128, 128),
            (129, 160),
            (225, 256),
            (256, 256),
            (257, 320),
            (513, 640),
            (1025, 1280),
            (2049, 2560),
            (16_384, 16_384),
            (16_385, 20_480),
            (20_664, 24_576),
            (32_952, 36_864),
            (65_720, 69_632),
            (131_256, 135_168),
            (253_276, 253_952),
            (577_641, 581_632),
            (1_040_925, 1_044_480),
            (2_110_250, 2_113_536),
            (31_684_093, 31_686_656),
            (81_294_549, 81_297_408),
        ];
        for (length, expected) in table {
            assert_eq!(allocated_bytes(length), expected, "for {length}");
        }
        assert_eq!(allocated_bytes(0), 0);
        assert_eq!(allocated_bytes(usize::MAX), usize::MAX);
    }

    #[test]
    fn a_block_never_costs_less_than_its_length_nor_a_quarter_more() {
        for length in (129..100_000).chain((100_000..80_000_000).step_by(7919)) {
            let given = allocated_bytes(length);
            assert!(given >= length && given <= length + length / 4 + 16, "{length} costs {given}");
        }
    }
}
