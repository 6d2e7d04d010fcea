//! From key to entry: a table in shards, each behind its own lock, with the entries of a shard side by side.
//!
//! Only [`Index::find`] runs without the lock of the order of eviction; everything that changes a shard is called with
//! it held, so index and order never disagree. A shard's lock is held for one probe and never while foreign code runs.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use hashbrown::HashTable;
use parking_lot::{RwLock, RwLockReadGuard};

use super::eviction::{Entries, Facts};
use super::nodes::{NodeId, Nodes};
use super::{Role, Stored, key_bytes};
use crate::key::{GroupId, HashedKey, KeyHash, SharedKey};
use crate::memory::allocated_bytes;

/// All entries of the store by key.
pub(super) struct Index<V> {
    shards: Box<[Padded<RwLock<Shard<V>>>]>,
    /// What the shards take of memory, in bytes; changed only with the lock of the order held.
    allocated: AtomicUsize,
}

/// One entry. 32 bytes: half a cache line, so that a probe touches one line here.
pub(super) struct Slot<V> {
    /// Shared with the ordered books.
    pub key: SharedKey,
    pub value: V,
    pub node: NodeId,
    pub group: GroupId,
    /// How often it was found, up to [`FREQUENCY_MAX`]; hits write it under the shared lock.
    pub frequency: AtomicU8,
    pub role: Role,
}

pub(super) struct Shard<V> {
    table: HashTable<u32>,
    slots: Vec<Slot<V>>,
}

impl<V: Stored> Slot<V> {
    /// What the entry is charged for: the value and the allocated key, in bytes.
    pub fn bytes(&self) -> usize {
        self.value.charged_bytes().saturating_add(key_bytes(self.key.len()))
    }

    /// Counts one use for the order of eviction: at most one relaxed store.
    #[inline]
    pub fn touch(&self) {
        let frequency = self.frequency.load(Ordering::Relaxed);
        if frequency < FREQUENCY_MAX {
            // Two uses at once may count as one; the order is a heuristic and a lock costs more.
            self.frequency.store(frequency + 1, Ordering::Relaxed);
        }
    }
}

impl<V: Stored> Index<V> {
    /// An index of `shards` shards, a power of two.
    pub fn new(shards: usize) -> Self {
        debug_assert!(shards.is_power_of_two());
        let shards: Box<[_]> =
            (0..shards).map(|_| Padded(RwLock::new(Shard { table: HashTable::new(), slots: Vec::new() }))).collect();
        let allocated = AtomicUsize::new(allocated_bytes(size_of_val(&*shards)));
        Index { shards, allocated }
    }

    /// The shard that `hash` belongs to, locked for reading.
    #[inline]
    pub fn read(&self, hash: KeyHash) -> RwLockReadGuard<'_, Shard<V>> {
        self.shard(hash).read()
    }

    /// Adds an entry whose key is not there yet; its node is in `nodes` already.
    pub fn insert(&self, hash: KeyHash, slot: Slot<V>, nodes: &Nodes) {
        let mut shard = self.shard(hash).write();
        let before = shard.allocated();
        let Shard { table, slots } = &mut *shard;
        if slots.len() == slots.capacity() {
            let capacity = allocated_bytes(grown(slots.len()) * size_of::<Slot<V>>()) / size_of::<Slot<V>>();
            slots.reserve_exact(capacity - slots.len());
        }
        table.insert_unique(hash.get(), slots.len() as u32, |&at| nodes.at(slots[at as usize].node).hash.get());
        slots.push(slot);
        self.account(before, shard.allocated());
    }

    /// Takes the entry of `node` out. `nodes` still holds the node.
    pub fn remove(&self, hash: KeyHash, node: NodeId, nodes: &Nodes) -> Option<Slot<V>> {
        let mut shard = self.shard(hash).write();
        let before = shard.allocated();
        let Shard { table, slots } = &mut *shard;
        let (at, _) = table.find_entry(hash.get(), |&at| slots[at as usize].node == node).ok()?.remove();
        let last = slots.len() - 1;
        if at as usize != last {
            let hash_of_last = nodes.at(slots[last].node).hash.get();
            if let Some(moved) = table.find_mut(hash_of_last, |&candidate| candidate as usize == last) {
                *moved = at;
            }
        }
        let slot = slots.swap_remove(at as usize);
        if slots.capacity() > SLOTS_KEPT && slots.len() < slots.capacity() / 2 {
            slots.shrink_to(grown(slots.len()));
        }
        if table.capacity() > SLOTS_KEPT && table.len() < table.capacity() / 4 {
            table.shrink_to(table.len() * 2, |&at| nodes.at(slots[at as usize].node).hash.get());
        }
        self.account(before, shard.allocated());
        Some(slot)
    }

    /// Changes the entry of `node` in place.
    pub fn change<T>(&self, hash: KeyHash, node: NodeId, change: impl FnOnce(&mut Slot<V>) -> T) -> Option<T> {
        let mut shard = self.shard(hash).write();
        let at = shard.position(hash, node)?;
        Some(change(&mut shard.slots[at]))
    }

    /// What the index takes of memory beyond keys and values, in bytes.
    pub fn allocated(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    /// What [`allocated`](Self::allocated) must be, counted afresh.
    #[cfg(test)]
    pub fn recount_allocated(&self) -> usize {
        let shards = self.shards.iter().map(|shard| shard.0.read().allocated()).sum::<usize>();
        allocated_bytes(size_of_val(&*self.shards)) + shards
    }

    fn shard(&self, hash: KeyHash) -> &RwLock<Shard<V>> {
        // Bits that neither the table's places (low) nor its tags (top 7) depend on.
        &self.shards[(hash.get() >> SHARD_SHIFT) as usize & (self.shards.len() - 1)].0
    }

    fn account(&self, before: usize, after: usize) {
        let allocated = self.allocated.load(Ordering::Relaxed);
        self.allocated.store(allocated.saturating_add(after).saturating_sub(before), Ordering::Relaxed);
    }
}

impl<V: Stored> Entries for Index<V> {
    fn facts(&self, hash: KeyHash, node: NodeId) -> Option<Facts> {
        self.read(hash).find_node(hash, node).map(|slot| Facts {
            bytes: slot.bytes(),
            frequency: slot.frequency.load(Ordering::Relaxed),
            pinned: slot.value.is_pinned(),
        })
    }

    fn set_frequency(&self, hash: KeyHash, node: NodeId, frequency: u8) {
        if let Some(slot) = self.read(hash).find_node(hash, node) {
            slot.frequency.store(frequency, Ordering::Relaxed);
        }
    }
}

impl<V: Stored> Shard<V> {
    #[inline]
    pub fn find(&self, key: &HashedKey<'_>) -> Option<&Slot<V>> {
        let same = |&at: &u32| {
            let slot = &self.slots[at as usize];
            slot.group == key.group() && *slot.key == *key.bytes()
        };
        self.table.find(key.hash().get(), same).map(|&at| &self.slots[at as usize])
    }

    pub fn find_node(&self, hash: KeyHash, node: NodeId) -> Option<&Slot<V>> {
        self.position(hash, node).map(|at| &self.slots[at])
    }

    /// All entries whose keys have this hash.
    pub fn of_hash(&self, hash: KeyHash) -> impl Iterator<Item = &Slot<V>> {
        let found = self.table.iter_hash(hash.get()).map(|&at| &self.slots[at as usize]);
        found.filter(move |slot| KeyHash::of(slot.group, &slot.key) == hash)
    }

    fn position(&self, hash: KeyHash, node: NodeId) -> Option<usize> {
        self.table.find(hash.get(), |&at| self.slots[at as usize].node == node).map(|&at| at as usize)
    }

    fn allocated(&self) -> usize {
        allocated_bytes(self.table.allocation_size()) + allocated_bytes(self.slots.capacity() * size_of::<Slot<V>>())
    }
}

/// Room for an eighth more: doubling would waste more than the copying costs.
fn grown(length: usize) -> usize {
    length + length / 8 + 4
}

/// The most that an entry's frequency counts to (two bits, as S3-FIFO is published).
pub(super) const FREQUENCY_MAX: u8 = 3;

const SHARD_SHIFT: u32 = 40;

/// Below this many entries a shard is not worth shrinking. Guess.
const SLOTS_KEPT: usize = 64;

/// A shard's lock and what it guards on one cache line that no other shard shares.
#[repr(align(64))]
struct Padded<T>(T);

const _: () = assert!(size_of::<Slot<[u64; 2]>>() == 32, "the bookkeeping per entry grew");
const _: () = assert!(size_of::<Padded<RwLock<Shard<u8>>>>() == 64);
