//! From key to entry: a table in shards, each behind its own lock.
//!
//! Only [`Index::find`] runs without the lock of the order of eviction; everything that changes a shard is called with
//! it held, so index and order never disagree. A shard's lock is held for one probe and never while foreign code runs.
//!
//! The entries lie in the table themselves, by linear probing in Robin Hood order: who comes in takes the place of one that is
//! nearer to its home. So a search is short whether it finds or not, at nine parts in ten full, and the table may have any
//! size: one that only doubles is half empty half of the time, and an entry that lies elsewhere costs its number here too.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};

use super::eviction::{Entries, Facts};
use super::nodes::{NodeId, Nodes};
use super::{Role, Stored};
use crate::key::{GroupId, HashedKey, KeyHash};
use crate::memory::allocated_bytes;

/// All entries of the store by key. Wherever a hash is asked for, it is the upper half of the key's.
pub(super) struct Index<V> {
    shards: Box<[Padded<RwLock<Shard<V>>>]>,
    /// What the shards take of memory, in bytes; changed only with the lock of the order held.
    allocated: AtomicUsize,
}

/// One entry, whose value has the key. 16 bytes: a probe that goes on stays in its cache line, most often.
pub(super) struct Slot<V> {
    pub value: V,
    pub node: NodeId,
    pub group: GroupId,
    /// From the low bits: two of how often it was found, up to [`FREQUENCY_MAX`], which hits write under the shared lock; one of
    /// the role; five of the hash, so that few keys are compared in vain.
    bits: AtomicU8,
    /// How far it lies behind its home, up to [`FAR`].
    distance: u8,
}

pub(super) struct Shard<V> {
    places: Vec<Option<Slot<V>>>,
    entries: usize,
}

impl<V: Stored> Slot<V> {
    pub fn new(hash: u32, value: V, node: NodeId, group: GroupId, role: Role) -> Self {
        Slot { value, node, group, bits: AtomicU8::new(tag(hash) | (role as u8) << ROLE_SHIFT), distance: 0 }
    }

    /// What the entry is charged for, in bytes.
    pub fn bytes(&self) -> usize {
        self.value.charged_bytes()
    }

    #[inline]
    pub fn role(&self) -> Role {
        if self.bits.load(Ordering::Relaxed) & 1 << ROLE_SHIFT == 0 { Role::Main } else { Role::Hot }
    }

    /// Returns the role from before.
    pub fn set_role(&mut self, role: Role) -> Role {
        let before = self.role();
        let bits = self.bits.get_mut();
        *bits = *bits & !(1 << ROLE_SHIFT) | (role as u8) << ROLE_SHIFT;
        before
    }

    pub fn frequency(&self) -> u8 {
        self.bits.load(Ordering::Relaxed) & FREQUENCY_MAX
    }

    /// Counts one use for the order of eviction: at most one relaxed store.
    #[inline]
    pub fn touch(&self) {
        let bits = self.bits.load(Ordering::Relaxed);
        if bits & FREQUENCY_MAX < FREQUENCY_MAX {
            // Two uses at once may count as one; the order is a heuristic and a lock costs more. The other bits are changed
            // under the exclusive lock alone.
            self.bits.store(bits + 1, Ordering::Relaxed);
        }
    }

    fn set_frequency(&self, frequency: u8) {
        let bits = self.bits.load(Ordering::Relaxed);
        self.bits.store(bits & !FREQUENCY_MAX | frequency.min(FREQUENCY_MAX), Ordering::Relaxed);
    }

    #[inline]
    fn has_tag(&self, tag: u8) -> bool {
        self.bits.load(Ordering::Relaxed) & TAG == tag
    }
}

impl<V: Stored> Index<V> {
    /// An index of `shards` shards, a power of two.
    pub fn new(shards: usize) -> Self {
        debug_assert!(shards.is_power_of_two());
        let shards: Box<[_]> = (0..shards).map(|_| Padded(RwLock::new(Shard::new()))).collect();
        let allocated = AtomicUsize::new(allocated_bytes(size_of_val(&*shards)));
        Index { shards, allocated }
    }

    /// The shard that `hash` belongs to, locked for reading.
    #[inline]
    pub fn read(&self, hash: u32) -> RwLockReadGuard<'_, Shard<V>> {
        self.shard(hash).read()
    }

    /// Adds an entry whose key is not there yet; its node is in `nodes` already.
    pub fn insert(&self, hash: u32, slot: Slot<V>, nodes: &Nodes) {
        let mut shard = self.shard(hash).write();
        let before = shard.allocated();
        if shard.entries >= most(shard.places.len()) {
            let places = shard.places.len();
            shard.rebuild(places + places / PLACES_GROWTH + 1, nodes);
        }
        shard.place(hash, slot);
        self.account(before, shard.allocated());
    }

    /// Takes the entry of `node` out. `nodes` still holds the node.
    pub fn remove(&self, hash: u32, node: NodeId, nodes: &Nodes) -> Option<Slot<V>> {
        let mut shard = self.shard(hash).write();
        let before = shard.allocated();
        let at = shard.position(hash, |slot| slot.node == node)?;
        let slot = shard.take(at, nodes);
        if shard.places.len() > PLACES_KEPT && shard.entries < shard.places.len() / 2 {
            let entries = shard.entries;
            shard.rebuild(entries + entries / 4, nodes);
        }
        self.account(before, shard.allocated());
        slot
    }

    /// Changes the entry of `node` in place.
    pub fn change<T>(&self, hash: u32, node: NodeId, change: impl FnOnce(&mut Slot<V>) -> T) -> Option<T> {
        let mut shard = self.shard(hash).write();
        let at = shard.position(hash, |slot| slot.node == node)?;
        shard.places[at].as_mut().map(change)
    }

    /// What the index takes of memory beyond values, in bytes.
    pub fn allocated(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    /// What [`allocated`](Self::allocated) must be, counted afresh, after a look at where everything lies.
    #[cfg(test)]
    pub fn recount_allocated(&self) -> usize {
        self.shards.iter().for_each(|shard| shard.0.read().check());
        let shards = self.shards.iter().map(|shard| shard.0.read().allocated()).sum::<usize>();
        allocated_bytes(size_of_val(&*self.shards)) + shards
    }

    fn shard(&self, hash: u32) -> &RwLock<Shard<V>> {
        // The bits that the homes within a shard depend on least.
        &self.shards[hash as usize & (self.shards.len() - 1)].0
    }

    fn account(&self, before: usize, after: usize) {
        let allocated = self.allocated.load(Ordering::Relaxed);
        self.allocated.store(allocated.saturating_add(after).saturating_sub(before), Ordering::Relaxed);
    }
}

impl<V: Stored> Entries for Index<V> {
    fn facts(&self, hash: u32, node: NodeId) -> Option<Facts> {
        self.read(hash).find_node(hash, node).map(|slot| Facts {
            bytes: slot.bytes(),
            frequency: slot.frequency(),
            pinned: slot.value.is_pinned(),
        })
    }

    fn set_frequency(&self, hash: u32, node: NodeId, frequency: u8) {
        if let Some(slot) = self.read(hash).find_node(hash, node) {
            slot.set_frequency(frequency);
        }
    }
}

impl<V: Stored> Shard<V> {
    fn new() -> Self {
        Shard { places: Vec::new(), entries: 0 }
    }

    #[inline]
    pub fn find(&self, key: &HashedKey<'_>) -> Option<&Slot<V>> {
        let same = |slot: &Slot<V>| slot.group == key.group() && *slot.value.key() == *key.bytes();
        self.places[self.position(key.hash().upper(), same)?].as_ref()
    }

    pub fn find_node(&self, hash: u32, node: NodeId) -> Option<&Slot<V>> {
        self.places[self.position(hash, |slot| slot.node == node)?].as_ref()
    }

    /// Shows the entries of `group` whose keys have this hash.
    pub fn each_of_hash(&self, group: GroupId, hash: KeyHash, mut show: impl FnMut(&Slot<V>)) {
        self.position(hash.upper(), |slot| {
            if slot.group == group && KeyHash::of(group, slot.value.key()) == hash {
                show(slot);
            }
            false
        });
    }

    /// Where the entry is of which `is` says so; it is asked of few others.
    #[inline]
    fn position<'a>(&'a self, hash: u32, mut is: impl FnMut(&'a Slot<V>) -> bool) -> Option<usize> {
        let tag = tag(hash);
        let mut at = home(hash, self.places.len());
        for distance in 0..self.places.len() {
            let distance = distance.min(FAR.into()) as u8;
            let slot = self.places.get(at)?.as_ref()?;
            if slot.distance < distance {
                return None;
            }
            if slot.distance == distance && slot.has_tag(tag) && is(slot) {
                return Some(at);
            }
            at = self.after(at);
        }
        None
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.places.len() { 0 } else { at + 1 }
    }

    /// There is an empty place.
    fn place(&mut self, hash: u32, mut slot: Slot<V>) {
        slot.distance = 0;
        let mut at = home(hash, self.places.len());
        loop {
            match &mut self.places[at] {
                place @ None => {
                    *place = Some(slot);
                    self.entries += 1;
                    return;
                }
                Some(other) if other.distance < slot.distance => std::mem::swap(other, &mut slot),
                Some(_) => {}
            }
            slot.distance = slot.distance.saturating_add(1);
            at = self.after(at);
        }
    }

    fn take(&mut self, at: usize, nodes: &Nodes) -> Option<Slot<V>> {
        let slot = self.places[at].take()?;
        self.entries -= 1;
        let (mut gap, mut lost) = (at, false);
        loop {
            let next = self.after(gap);
            let Some(mut moved) = self.places[next].take_if(|slot| slot.distance > 0) else { break };
            lost |= moved.distance == FAR;
            moved.distance -= 1;
            self.places[gap] = Some(moved);
            gap = next;
        }
        if lost {
            // How far it was is not known.
            self.rebuild(self.places.len(), nodes);
        }
        Some(slot)
    }

    /// Makes at least so many places and finds every entry its own.
    fn rebuild(&mut self, places: usize, nodes: &Nodes) {
        let places = allocated_bytes(places * size_of::<Option<Slot<V>>>()) / size_of::<Option<Slot<V>>>();
        let mut empty = Vec::with_capacity(places);
        empty.resize_with(places, || None);
        self.entries = 0;
        for slot in std::mem::replace(&mut self.places, empty).into_iter().flatten() {
            self.place(nodes.at(slot.node).hash, slot);
        }
    }

    fn allocated(&self) -> usize {
        allocated_bytes(self.places.capacity() * size_of::<Option<Slot<V>>>())
    }
}

#[cfg(test)]
impl<V: Stored> Shard<V> {
    /// Everything lies where a search finds it.
    fn check(&self) {
        let entries = self.places.iter().flatten();
        assert_eq!(entries.clone().count(), self.entries);
        for slot in entries {
            let hash = KeyHash::of(slot.group, slot.value.key()).upper();
            let at = self.position(hash, |found| std::ptr::eq(found, slot)).expect("it is found");
            let distance = (at + self.places.len() - home(hash, self.places.len())) % self.places.len();
            assert_eq!(usize::from(slot.distance), distance.min(FAR.into()));
        }
    }
}

/// Where an entry would lie in a shard of so many places.
#[inline]
fn home(hash: u32, places: usize) -> usize {
    ((u64::from(hash) * places as u64) >> 32) as usize
}

/// Bits that neither the shard (low) nor the home (high) depends on.
#[inline]
fn tag(hash: u32) -> u8 {
    (hash >> (SHARD_BITS - TAG_SHIFT)) as u8 & TAG
}

/// The most entries that so many places are good for: at nine parts in ten a search looks at five or six of them.
fn most(places: usize) -> usize {
    places / 10 * 9 + places % 10 * 9 / 10
}

/// The most that an entry's frequency counts to (two bits, as S3-FIFO is published).
pub(super) const FREQUENCY_MAX: u8 = 3;

const ROLE_SHIFT: u32 = 2;
const TAG_SHIFT: u32 = 3;
const TAG: u8 = u8::MAX << TAG_SHIFT;

/// So many low bits of a hash may choose the shard.
const SHARD_BITS: u32 = super::SHARDS_MAX.ilog2();

/// An entry this far from its home, or farther: as good as never, but nothing breaks.
const FAR: u8 = u8::MAX;

/// A full shard grows by one part in so many. Each step finds all its entries new places: less would not be worth it. Guess.
const PLACES_GROWTH: usize = 8;

/// Below this many places a shard is not worth shrinking. Guess.
const PLACES_KEPT: usize = 64;

/// A shard's lock and what it guards on one cache line that no other shard shares.
#[repr(align(64))]
struct Padded<T>(T);

const _: () = assert!(size_of::<Option<Slot<std::sync::Arc<u8>>>>() == 16, "the bookkeeping per entry grew");
const _: () = assert!(size_of::<Padded<RwLock<Shard<u8>>>>() == 64);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Weighed;
    use super::super::nodes::{NONE, Node};
    use super::*;

    struct Nothing;

    impl Weighed for Nothing {
        fn key(&self) -> &[u8] {
            b""
        }

        fn charged_bytes(&self) -> usize {
            0
        }
    }

    /// So many share one home that how far they are from it does not fit into its byte, and others have their homes among them.
    #[test]
    fn entries_far_from_their_home_are_found_and_removed() {
        let hashes = |number: u32| if number % 3 == 0 { number << 20 } else { 0x8000_0000 };
        let (index, mut nodes) = (Index::<Arc<Nothing>>::new(1), Nodes::default());
        for number in 0..450 {
            let hash = hashes(number);
            let node = nodes.push(Node { hash, previous: NONE, next: NONE, queue: 0, tick: 0 });
            index.insert(hash, Slot::new(hash, Arc::new(Nothing), node, GroupId(0), Role::Hot), &nodes);
        }
        let mut here: Vec<u32> = (0..450).collect();
        for step in 0..450_usize {
            let number = here.swap_remove(step * 7919 % here.len());
            let removed = index.remove(hashes(number), number, &nodes).expect("it is there");
            assert_eq!((removed.node, removed.role()), (number, Role::Hot));
            if step % 20 == 0 {
                let shard = index.shards[0].0.read();
                assert_eq!((shard.entries, shard.places.iter().flatten().count()), (here.len(), here.len()));
                assert!(here.iter().all(|&number| shard.find_node(hashes(number), number).is_some()));
                assert!(shard.find_node(hashes(number), number).is_none());
                assert!(shard.places.len() <= (shard.entries * 2).max(PLACES_KEPT) * 5 / 4);
            }
        }
        assert_eq!(index.allocated(), index.recount_allocated());
    }
}
