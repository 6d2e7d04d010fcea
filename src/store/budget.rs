//! Who has to give way: one budget for the node, caps of groups, the shares of hot copies and of negative entries.
//!
//! A *partition* is what shares a budget: all groups without a cap are partition 0, each group with a cap is its own.
//! Each partition has one pool per *class*. Nothing here moves an entry; it only says which pools are asked, in order.

use super::eviction::{PoolId, Queues};
use super::{Refusal, Role};
use crate::key::GroupId;

/// What competes with each other inside a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Main = 0,
    Hot = 1,
    /// Answers that say "not there", of both roles.
    Negative = 2,
}

/// Number of a partition; 0 is the one of all groups without a cap.
pub(super) type PartitionId = usize;

/// An entry that is about to come in, or to take the place of another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming {
    pub partition: PartitionId,
    pub class: Class,
    /// Of the value, which are charged already.
    pub bytes: usize,
    /// Pool and bytes of the entry that would be replaced.
    pub replaces: Option<(PoolId, usize)>,
    /// The part of the replaced entry's bytes that replacing it frees: a reader may hold its value.
    pub freed_bytes: usize,
}

/// Which budget is passed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pressure {
    /// Negative entries of one partition.
    NegativeOf(PartitionId),
    /// Negative entries of the node.
    Negative,
    /// The cap of a group.
    Partition(PartitionId),
    /// The limit of the node.
    Node,
}

/// Sums and caps; changed only with the lock of the order held.
#[derive(Debug)]
pub(super) struct Budget {
    partitions: Vec<Partition>,
    groups: Vec<Account>,
    class_bytes: [usize; CLASSES],
}

#[derive(Clone, Copy, Debug)]
struct Partition {
    /// `None` for partition 0 and for one that waits for another group.
    group: Option<GroupId>,
    cap_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    partition: PartitionId,
    roles: [RoleSums; 2],
}

/// What one group holds in one role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RoleSums {
    pub bytes: usize,
    pub items: usize,
    pub evictions: u64,
}

impl Budget {
    pub fn new() -> Self {
        Budget {
            partitions: vec![Partition { group: None, cap_bytes: usize::MAX }],
            groups: Vec::new(),
            class_bytes: [0; CLASSES],
        }
    }

    /// How many pools the partitions need.
    pub fn pools(&self) -> usize {
        self.partitions.len() * CLASSES
    }

    pub fn partition_of(&self, group: GroupId) -> PartitionId {
        self.groups.get(usize::from(group.0)).map_or(SHARED, |account| account.partition)
    }

    /// Replaces all caps; says whether a group is now in another partition than its entries.
    pub fn set_caps(&mut self, caps: &[(GroupId, usize)]) -> bool {
        let mut changed = false;
        for id in SHARED + 1..self.partitions.len() {
            let Some(group) = self.partitions[id].group else { continue };
            match caps.iter().find(|(capped, _)| *capped == group) {
                Some((_, cap_bytes)) => self.partitions[id].cap_bytes = *cap_bytes,
                None => {
                    self.partitions[id] = Partition { group: None, cap_bytes: usize::MAX };
                    self.account(group).partition = SHARED;
                    changed = true;
                }
            }
        }
        for &(group, cap_bytes) in caps {
            if self.partition_of(group) != SHARED {
                continue;
            }
            let partition = Partition { group: Some(group), cap_bytes };
            let free = (SHARED + 1..self.partitions.len()).find(|&id| self.partitions[id].group.is_none());
            let id = free.unwrap_or(self.partitions.len());
            match self.partitions.get_mut(id) {
                Some(place) => *place = partition,
                None => self.partitions.push(partition),
            }
            self.account(group).partition = id;
            changed = true;
        }
        changed
    }

    pub fn enter(&mut self, group: GroupId, role: Role, class: Class, bytes: usize) {
        let sums = &mut self.account(group).roles[role as usize];
        sums.bytes = sums.bytes.saturating_add(bytes);
        sums.items += 1;
        let all = &mut self.class_bytes[class as usize];
        *all = all.saturating_add(bytes);
    }

    pub fn leave(&mut self, group: GroupId, role: Role, class: Class, bytes: usize, evicted: bool) {
        let sums = &mut self.account(group).roles[role as usize];
        debug_assert!(sums.items > 0 && sums.bytes >= bytes);
        sums.bytes = sums.bytes.saturating_sub(bytes);
        sums.items = sums.items.saturating_sub(1);
        sums.evictions += u64::from(evicted);
        let all = &mut self.class_bytes[class as usize];
        *all = all.saturating_sub(bytes);
    }

    pub fn sums(&self, group: GroupId, role: Role) -> RoleSums {
        self.groups.get(usize::from(group.0)).map_or(RoleSums::default(), |account| account.roles[role as usize])
    }

    pub fn class_bytes(&self, class: Class) -> usize {
        self.class_bytes[class as usize]
    }

    /// Whether the entry is too large for what it would have to fit in.
    pub fn refusal(&self, incoming: &Incoming, limit: usize) -> Option<Refusal> {
        let cap = self.partitions[incoming.partition].cap_bytes;
        let negative_max = cap.min(limit) / NEGATIVE_SHARE;
        let too_large = incoming.bytes > limit / LIMIT_SHARE_OF_ONE
            || incoming.bytes > cap / CAP_SHARE_OF_ONE
            || incoming.class == Class::Negative && incoming.bytes > negative_max / CAP_SHARE_OF_ONE;
        too_large.then_some(Refusal::TooLarge)
    }

    /// Which budget `incoming` would pass, or is passed already by what is alive (in bytes) without it.
    pub fn pressure(
        &self,
        queues: &Queues,
        limit: usize,
        alive: usize,
        incoming: Option<&Incoming>,
    ) -> Option<Pressure> {
        let mut needed = alive;
        if let Some(incoming) = incoming {
            let Incoming { partition, class, bytes, replaces, freed_bytes } = *incoming;
            let replaced_in = |same: &dyn Fn(PoolId) -> bool| match replaces {
                Some((pool, bytes)) if same(pool) => bytes,
                _ => 0,
            };
            let cap = self.partitions[partition].cap_bytes;
            if class == Class::Negative {
                let own_pool = pool(partition, Class::Negative);
                let own = queues.pool_bytes(own_pool).saturating_add(bytes);
                if own.saturating_sub(replaced_in(&|pool| pool == own_pool)) > cap.min(limit) / NEGATIVE_SHARE {
                    return Some(Pressure::NegativeOf(partition));
                }
                let all = self.class_bytes(Class::Negative).saturating_add(bytes);
                let replaced = replaced_in(&|pool| pool % CLASSES == Class::Negative as usize);
                if all.saturating_sub(replaced) > limit / NEGATIVE_SHARE {
                    return Some(Pressure::Negative);
                }
            }
            let own = partition_bytes(queues, partition).saturating_add(bytes);
            if own.saturating_sub(replaced_in(&|pool| pool / CLASSES == partition)) > cap {
                return Some(Pressure::Partition(partition));
            }
            needed = needed.saturating_sub(freed_bytes);
        }
        (needed > limit).then_some(Pressure::Node)
    }

    /// A cap or share that is passed without anything coming in, after a reload made it smaller.
    pub fn pressure_anywhere(&self, queues: &Queues, limit: usize) -> Option<Pressure> {
        let over = |(id, partition): (PartitionId, &Partition)| {
            let cap = partition.cap_bytes;
            if queues.pool_bytes(pool(id, Class::Negative)) > cap.min(limit) / NEGATIVE_SHARE {
                return Some(Pressure::NegativeOf(id));
            }
            (partition_bytes(queues, id) > cap).then_some(Pressure::Partition(id))
        };
        let negative = self.class_bytes(Class::Negative) > limit / NEGATIVE_SHARE;
        self.partitions.iter().enumerate().find_map(over).or(negative.then_some(Pressure::Negative))
    }

    /// The pools that give way under `pressure`, the first to be asked first.
    pub fn giving_pools(&self, queues: &Queues, pressure: Pressure) -> Vec<PoolId> {
        match pressure {
            Pressure::NegativeOf(partition) => vec![pool(partition, Class::Negative)],
            Pressure::Negative => self.oldest_first(queues, Class::Negative),
            Pressure::Partition(partition) => {
                let bytes = |class| queues.pool_bytes(pool(partition, class));
                giving_classes(bytes(Class::Main), bytes(Class::Hot)).map(|class| pool(partition, class)).to_vec()
            }
            Pressure::Node => {
                let classes = giving_classes(self.class_bytes(Class::Main), self.class_bytes(Class::Hot));
                classes.into_iter().flat_map(|class| self.oldest_first(queues, class)).collect()
            }
        }
    }

    /// The only pool in question, without a list, in the usual case that no group has a cap.
    pub fn giving_pool(&self, pressure: Pressure) -> Option<PoolId> {
        if self.partitions.len() > 1 || !matches!(pressure, Pressure::Node) {
            return None;
        }
        let classes = giving_classes(self.class_bytes(Class::Main), self.class_bytes(Class::Hot));
        Some(pool(SHARED, classes[0]))
    }

    /// Whether hot copies of the partition give way before its main copies.
    pub fn hot_gives_way(&self, queues: &Queues, partition: PartitionId) -> bool {
        let bytes = |class| queues.pool_bytes(pool(partition, class));
        giving_classes(bytes(Class::Main), bytes(Class::Hot))[0] == Class::Hot
    }

    /// What the partition may hold of `limit`, and what it holds, in bytes.
    pub fn room(&self, queues: &Queues, partition: PartitionId, limit: usize) -> (usize, usize) {
        (self.partitions[partition].cap_bytes.min(limit), partition_bytes(queues, partition))
    }

    /// One order over all partitions: whose next victim came to its place longest ago is asked first.
    fn oldest_first(&self, queues: &Queues, class: Class) -> Vec<PoolId> {
        let with_age = |id| Some((queues.age_of_tail(pool(id, class))?, pool(id, class)));
        let mut pools: Vec<_> = (0..self.partitions.len()).filter_map(with_age).collect();
        pools.sort_by_key(|&(age, _)| std::cmp::Reverse(age));
        pools.into_iter().map(|(_, pool)| pool).take(POOLS_ASKED_MAX).collect()
    }

    fn account(&mut self, group: GroupId) -> &mut Account {
        let at = usize::from(group.0);
        if self.groups.len() <= at {
            self.groups.resize(at + 1, Account::default());
        }
        &mut self.groups[at]
    }
}

/// The pool of a class in a partition.
pub(super) fn pool(partition: PartitionId, class: Class) -> PoolId {
    partition * CLASSES + class as usize
}

/// groupcache's rule: hot copies give way while they are more than an eighth of main.
fn giving_classes(main_bytes: usize, hot_bytes: usize) -> [Class; CLASSES] {
    if hot_bytes > main_bytes / HOT_SHARE {
        [Class::Hot, Class::Main, Class::Negative]
    } else {
        [Class::Main, Class::Hot, Class::Negative]
    }
}

fn partition_bytes(queues: &Queues, partition: PartitionId) -> usize {
    [Class::Main, Class::Hot, Class::Negative].map(|class| queues.pool_bytes(pool(partition, class))).iter().sum()
}

const CLASSES: usize = 3;
const SHARED: PartitionId = 0;

/// `victim := hotBytes > mainBytes/8` in groupcache.go, `Group.populateCache`.
const HOT_SHARE: usize = 8;

/// Negative entries may take one part in this many: 5 %, as the interface promises.
const NEGATIVE_SHARE: usize = 20;

/// One entry may take this part of the node's limit: a larger one would push out too much that is wanted at once.
const LIMIT_SHARE_OF_ONE: usize = 8;

/// One entry may take this part of its group's cap, or of the room for negative entries. Guess.
const CAP_SHARE_OF_ONE: usize = 4;

/// So many pools of a class are asked for a victim before the next class is. Guess: only pools in which readers hold
/// everything are asked in vain.
const POOLS_ASKED_MAX: usize = 4;
