//! Walks through all entries, a few at a time and without a lock while foreign code runs: purges and hand-over.

use std::collections::BinaryHeap;

use super::{ENTRIES_PER_STEP, Role, Store, Stored};
use crate::key::{GroupId, HashedKey};

/// An entry as a walk through the store shows it.
#[derive(Debug)]
pub struct Listed<'a, V> {
    /// The group of the key.
    pub group: GroupId,
    /// The role of the entry.
    pub role: Role,
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a V,
}

/// An entry that is worth handing to another node.
#[derive(Clone, Debug)]
pub struct Wanted<V> {
    /// The group of the key.
    pub group: GroupId,
    /// The key.
    pub key: Box<[u8]>,
    /// The value.
    pub value: V,
}

impl<V: Stored> Store<V> {
    /// Shows every entry of `group` (or of all groups), a few at a time, with no lock held meanwhile.
    ///
    /// What is in the store from before the call until after it is shown at least once; what comes, goes or is replaced
    /// meanwhile may be shown or not, and after a removal an entry may be shown twice.
    pub fn for_each(&self, group: Option<GroupId>, mut show: impl FnMut(Listed<'_, V>)) {
        let mut walk = Walk::new(self);
        while self.next_batch(&mut walk, group) {
            for Step { group, role, value, .. } in walk.batch.drain(..) {
                show(Listed { group, role, key: value.key(), value: &value });
            }
        }
    }

    /// Removes the entries of `group` (or of all groups) for which `keep` says no; returns how many went.
    ///
    /// Sees what [`for_each`](Self::for_each) sees. An entry that is inserted during the call may survive it: who purges
    /// has to stop such insertions itself.
    pub fn retain(&self, group: Option<GroupId>, mut keep: impl FnMut(Listed<'_, V>) -> bool) -> usize {
        let mut removed = 0;
        let mut walk = Walk::new(self);
        while self.next_batch(&mut walk, group) {
            for Step { group, role, value, .. } in walk.batch.drain(..) {
                if !keep(Listed { group, role, key: value.key(), value: &value }) {
                    removed += usize::from(self.remove_if_same(&HashedKey::new(group, value.key()), &value));
                }
            }
        }
        removed
    }

    /// Removes all entries of `group`; returns how many went.
    pub fn clear(&self, group: GroupId) -> usize {
        self.retain(Some(group), |_| false)
    }

    /// The `count` entries of `role` that are wanted most, most wanted first; negative ones are never worth it.
    ///
    /// By the order's own measure: uses and list for S3-FIFO, the last use (in steps of 64) for LRU. Looks at every entry.
    pub fn most_wanted(&self, role: Role, count: usize) -> Vec<Wanted<V>> {
        let mut best: BinaryHeap<Ranked<V>> = BinaryHeap::new();
        let mut walk = Walk::new(self);
        while self.next_batch(&mut walk, None) {
            for Step { group, role: found_role, value, rank } in walk.batch.drain(..) {
                let full = best.len() >= count;
                if found_role != role
                    || value.is_negative()
                    || full && best.peek().is_none_or(|worst| rank <= worst.rank)
                {
                    continue;
                }
                if full {
                    best.pop();
                }
                best.push(Ranked { rank, wanted: Wanted { group, key: value.key().into(), value } });
            }
        }
        best.into_sorted_vec().into_iter().map(|ranked| ranked.wanted).collect()
    }

    /// Fills the walk's batch with the next entries; `false` at the end.
    ///
    /// Walks from the last node to the first: a removal brings the last node, which was shown already, to a lower place,
    /// so that nothing is missed.
    fn next_batch(&self, walk: &mut Walk<V>, group: Option<GroupId>) -> bool {
        while walk.batch.is_empty() {
            if walk.below == 0 {
                return false;
            }
            let order = self.order.lock();
            let end = walk.below.min(order.queues.nodes.len() as u32);
            walk.below = end.saturating_sub(ENTRIES_PER_STEP);
            for node in (walk.below..end).rev() {
                let hash = order.queues.nodes.at(node).hash;
                let shard = self.index.read(hash);
                let Some(slot) = shard.find_node(hash, node) else { continue };
                if group.is_some_and(|group| group != slot.group) {
                    continue;
                }
                let rank = order.queues.wanted(node, slot.frequency());
                walk.batch.push(Step { group: slot.group, role: slot.role(), value: slot.value.clone(), rank });
            }
        }
        true
    }
}

struct Step<V> {
    group: GroupId,
    role: Role,
    value: V,
    /// How much the entry is wanted.
    rank: u32,
}

/// A walk through all entries: those of one step, and where the next step begins.
struct Walk<V> {
    below: u32,
    batch: Vec<Step<V>>,
}

impl<V: Stored> Walk<V> {
    fn new(_: &Store<V>) -> Self {
        Walk { below: u32::MAX, batch: Vec::new() }
    }
}

/// Compares the other way round, so that a heap gives its least wanted entry first.
struct Ranked<V> {
    rank: u32,
    wanted: Wanted<V>,
}

impl<V> PartialEq for Ranked<V> {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl<V> Eq for Ranked<V> {}

impl<V> PartialOrd for Ranked<V> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<V> Ord for Ranked<V> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.rank.cmp(&self.rank)
    }
}
