//! Which entry gives way next: S3-FIFO and LRU over the same two lists, as pure order without values or locks.
//!
//! A *pool* is a set of entries that compete with each other: the main copies of all groups without a cap are one, the
//! hot copies of a group with a cap another. Each pool has two lists and one memory of hashes:
//!
//! | | `s3fifo` | `lru` |
//! |---|---|---|
//! | new entry | head of *small*; of *large* when the ghost remembers it | head of *large* |
//! | hit | counts up to 3 in the entry, nothing moves | to the head of *large* |
//! | gives way | tail of *small* while that is a tenth of the pool, else tail of *large* | tail of *large* |
//! | second chance | found twice in *small*: to *large*; found in *large*: once more round for each | none |
//!
//! (Published names: *S*, *M* and *G*; the second list is called *large* here because *main* is a role in this project.)
//! After a change from `s3fifo` to `lru` what is in *small* gives way first; nothing is moved at the change.
//!
//! An entry that a reader holds frees nothing when it goes, so it goes round instead, and the search for a victim ends
//! after a bounded number of looks.
//!
//! S3-FIFO: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023, algorithm 1.

use super::ghost::Ghost;
use super::index::FREQUENCY_MAX;
use super::nodes::{List, NONE, Node, NodeId, Nodes};

/// Which order of eviction a store follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    /// Two FIFO queues and a memory of what left: resists scans, hits take no lock of the order.
    #[default]
    S3Fifo,
    /// The least recently used gives way, as in groupcache; every hit takes the lock of the order.
    Lru,
}

/// What the order asks about an entry, because only the entry knows it.
pub(super) trait Entries {
    fn facts(&self, hash: u32, node: NodeId) -> Option<Facts>;
    fn set_frequency(&self, hash: u32, node: NodeId, frequency: u8);
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub bytes: usize,
    pub frequency: u8,
    pub pinned: bool,
}

/// Number of a pool.
pub(super) type PoolId = usize;

/// The order of all entries.
#[derive(Debug)]
pub(super) struct Queues {
    pub nodes: Nodes,
    pools: Vec<Pool>,
    eviction: Eviction,
    /// Counts what comes to a head; its upper bits are the ticks of nodes.
    arrivals: u64,
    ghosts_allocated: usize,
}

#[derive(Debug)]
struct Pool {
    lists: [List; 2],
    ghost: Ghost,
}

/// A node that got another number because another was removed.
pub(super) struct Renumbered {
    pub hash: u32,
    pub from: NodeId,
    pub to: NodeId,
}

impl Queues {
    pub fn new(eviction: Eviction) -> Self {
        Queues { nodes: Nodes::default(), pools: Vec::new(), eviction, arrivals: 0, ghosts_allocated: 0 }
    }

    pub fn set_eviction(&mut self, eviction: Eviction) {
        self.eviction = eviction;
    }

    /// Makes pools up to the number `pools`; pools are never taken away.
    pub fn ensure_pools(&mut self, pools: usize) {
        while self.pools.len() < pools {
            self.pools.push(Pool { lists: [List::EMPTY; 2], ghost: Ghost::default() });
        }
    }

    pub fn pool_bytes(&self, pool: PoolId) -> usize {
        self.pools.get(pool).map_or(0, Pool::bytes)
    }

    pub fn pool_of(&self, id: NodeId) -> PoolId {
        self.nodes.at(id).queue as usize / 2
    }

    /// Puts a new entry in its place.
    pub fn insert(&mut self, pool: PoolId, hash: u32, bytes: usize) -> NodeId {
        let segment = match self.eviction {
            Eviction::Lru => LARGE,
            Eviction::S3Fifo => {
                let Pool { lists, ghost } = &mut self.pools[pool];
                if ghost.take(hash, lists[LARGE].bytes) { LARGE } else { SMALL }
            }
        };
        let id = self.nodes.push(Node { hash, previous: NONE, next: NONE, queue: 0, tick: 0 });
        self.link(id, queue(pool, segment), bytes);
        id
    }

    /// Takes an entry out; `evicted` says that it gave way, so that its early return is noticed.
    pub fn remove(&mut self, id: NodeId, bytes: usize, evicted: bool) -> Option<Renumbered> {
        let at = self.nodes.at(id).queue as usize;
        self.unlink(id, bytes);
        let Node { hash, .. } = self.nodes.swap_remove(id);
        let pool = &mut self.pools[at / 2];
        if evicted && at % 2 == SMALL && self.eviction == Eviction::S3Fifo {
            let before = pool.ghost.allocated();
            pool.ghost.insert(hash, bytes, pool.lists[SMALL].items + pool.lists[LARGE].items);
            self.ghosts_allocated = self.ghosts_allocated + pool.ghost.allocated() - before;
        }
        let from = self.nodes.len() as NodeId;
        if from == id {
            return None;
        }
        let moved = self.nodes.at(id);
        let (hash, at) = (moved.hash, moved.queue as usize);
        self.pools[at / 2].lists[at % 2].renumber(&mut self.nodes, id);
        Some(Renumbered { hash, from, to: id })
    }

    /// A hit: moves the entry to the head in LRU. `bytes` are those of the entry, asked for only when they matter.
    pub fn touch(&mut self, id: NodeId, bytes: impl FnOnce() -> usize) {
        if self.eviction != Eviction::Lru {
            return;
        }
        let at = self.nodes.at(id).queue as usize;
        // Inside one list the bytes cancel out.
        let bytes = if at % 2 == LARGE { 0 } else { bytes() };
        self.move_to_head(id, queue(at / 2, LARGE), bytes);
    }

    /// The entry's bytes changed because its value was replaced: in S3-FIFO it keeps its place, in LRU it was used.
    pub fn replace(&mut self, id: NodeId, bytes_before: usize, bytes: usize) {
        let at = self.nodes.at(id).queue as usize;
        match self.eviction {
            Eviction::Lru => {
                self.unlink(id, bytes_before);
                self.link(id, queue(at / 2, LARGE), bytes);
            }
            Eviction::S3Fifo => {
                let list = &mut self.pools[at / 2].lists[at % 2];
                list.bytes = list.bytes.saturating_sub(bytes_before).saturating_add(bytes);
            }
        }
    }

    /// Puts the entry at the head of the same list of another pool.
    pub fn move_to_pool(&mut self, id: NodeId, pool: PoolId, bytes_before: usize, bytes: usize) {
        let at = self.nodes.at(id).queue as usize;
        self.unlink(id, bytes_before);
        self.link(id, queue(pool, at % 2), bytes);
    }

    /// The entry of `pool` that gives way next, or none when readers hold all that was looked at.
    pub fn victim(&mut self, pool: PoolId, entries: &impl Entries) -> Option<NodeId> {
        // How many entries of each list went round because a reader holds them.
        let mut held = [0; 2];
        for looks in 0..LOOKS_MAX {
            let segment = self.giving_segment(pool, held)?;
            let id = self.pools[pool].lists[segment].tail;
            let hash = self.nodes.at(id).hash;
            let Some(facts) = entries.facts(hash, id) else {
                debug_assert!(false, "an entry of the order is not in the index");
                return None;
            };
            if facts.pinned {
                held[segment] += 1;
                self.move_to_head(id, queue(pool, segment), facts.bytes);
                continue;
            }
            if self.eviction == Eviction::Lru || looks >= SECOND_CHANCES_MAX {
                return Some(id);
            }
            if segment == SMALL && facts.frequency >= USES_FOR_LARGE {
                entries.set_frequency(hash, id, 0);
                self.move_to_head(id, queue(pool, LARGE), facts.bytes);
            } else if segment == LARGE && facts.frequency > 0 {
                entries.set_frequency(hash, id, facts.frequency.min(FREQUENCY_MAX) - 1);
                self.move_to_head(id, queue(pool, LARGE), facts.bytes);
            } else {
                return Some(id);
            }
        }
        None
    }

    /// How long ago the entry that gives way next came to its place, in ticks; `None` for an empty pool.
    pub fn age_of_tail(&self, pool: PoolId) -> Option<u32> {
        let segment = self.giving_segment(pool, [0; 2])?;
        let tail = self.pools[pool].lists[segment].tail;
        Some(self.tick().wrapping_sub(self.nodes.at(tail).tick))
    }

    /// The entry at the place that gives way next, and its hash; a second chance may still save it.
    pub fn tail(&self, pool: PoolId) -> Option<(NodeId, u32)> {
        let segment = self.giving_segment(pool, [0; 2])?;
        let tail = self.pools[pool].lists[segment].tail;
        Some((tail, self.nodes.at(tail).hash))
    }

    /// How much an entry is wanted, by the order's own measure: larger is more.
    pub fn wanted(&self, id: NodeId, frequency: u8) -> u32 {
        let node = self.nodes.at(id);
        match self.eviction {
            Eviction::Lru => u32::MAX - self.tick().wrapping_sub(node.tick),
            Eviction::S3Fifo => u32::from(frequency) + (node.queue % 2) * (u32::from(FREQUENCY_MAX) + 1),
        }
    }

    /// What nodes and ghosts take of memory, in bytes.
    pub fn allocated(&self) -> usize {
        self.nodes.allocated() + self.ghosts_allocated
    }

    /// Walks all lists and both directions; returns the sums of the lists, which must be those of the entries.
    #[cfg(test)]
    pub fn recount(&self) -> Vec<(PoolId, usize, usize)> {
        assert_eq!(self.ghosts_allocated, self.pools.iter().map(|pool| pool.ghost.allocated()).sum::<usize>());
        let mut sums = Vec::new();
        for (pool, lists) in self.pools.iter().map(|pool| &pool.lists).enumerate() {
            for (segment, list) in lists.iter().enumerate() {
                let (mut id, mut previous, mut items) = (list.head, NONE, 0);
                while id != NONE {
                    let node = self.nodes.at(id);
                    assert_eq!((node.queue, node.previous), (queue(pool, segment), previous));
                    (previous, id, items) = (id, node.next, items + 1);
                }
                assert_eq!((list.tail, list.items), (previous, items));
            }
            sums.push((pool, lists[SMALL].items + lists[LARGE].items, self.pool_bytes(pool)));
        }
        sums
    }

    fn giving_segment(&self, pool: PoolId, held: [usize; 2]) -> Option<usize> {
        let lists = &self.pools.get(pool)?.lists;
        let has = |segment: usize| lists[segment].items > held[segment];
        let small_first = match self.eviction {
            Eviction::Lru => true,
            Eviction::S3Fifo => {
                let all = lists[SMALL].bytes.saturating_add(lists[LARGE].bytes);
                lists[SMALL].bytes >= all / SMALL_SHARE
            }
        };
        match (has(SMALL), has(LARGE)) {
            (true, true) => Some(if small_first { SMALL } else { LARGE }),
            (true, false) => Some(SMALL),
            (false, true) => Some(LARGE),
            (false, false) => None,
        }
    }

    fn move_to_head(&mut self, id: NodeId, queue: u32, bytes: usize) {
        self.unlink(id, bytes);
        self.link(id, queue, bytes);
    }

    fn link(&mut self, id: NodeId, queue: u32, bytes: usize) {
        self.arrivals = self.arrivals.wrapping_add(1);
        let tick = self.tick();
        let node = self.nodes.at_mut(id);
        (node.queue, node.tick) = (queue, tick);
        self.pools[queue as usize / 2].lists[queue as usize % 2].push_head(&mut self.nodes, id, bytes);
    }

    fn unlink(&mut self, id: NodeId, bytes: usize) {
        let at = self.nodes.at(id).queue as usize;
        self.pools[at / 2].lists[at % 2].unlink(&mut self.nodes, id, bytes);
    }

    fn tick(&self) -> u32 {
        (self.arrivals >> TICK_SHIFT) as u32
    }
}

impl Pool {
    fn bytes(&self) -> usize {
        self.lists[SMALL].bytes.saturating_add(self.lists[LARGE].bytes)
    }
}

fn queue(pool: PoolId, segment: usize) -> u32 {
    (pool * 2 + segment) as u32
}

const SMALL: usize = 0;
const LARGE: usize = 1;

/// The small list is one part in this many of the pool (published: 10 %).
pub(super) const SMALL_SHARE: usize = 10;

/// So many uses in the small list earn a place in the large one (published: more than one).
pub(super) const USES_FOR_LARGE: u8 = 2;

/// After so many looks at one search an entry goes although it was used: a working set that just fits and was all used
/// three times would otherwise be walked three times under the lock. Guess.
pub(super) const SECOND_CHANCES_MAX: usize = 64;

/// After so many looks nothing is found: readers hold all of them. Guess.
const LOOKS_MAX: usize = 128;

/// 64 arrivals make a tick: 32 bits of ticks come round after 2^38 arrivals, which only misplaces entries that are older
/// than that, and only between pools.
const TICK_SHIFT: u32 = 6;
