//! A sorted set in blocks that are as large as what they hold: an ordered tree takes two to three times the bytes of small
//! elements, and does not tell how many.

use std::borrow::Borrow;

use crate::memory::allocated_bytes;

/// Elements in order, each once.
#[derive(Debug)]
pub(super) struct Sorted<T> {
    /// None is empty, and each is below the next.
    blocks: Vec<Vec<T>>,
    /// What the blocks take of memory, without the list of them.
    block_bytes: usize,
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Sorted { blocks: Vec::new(), block_bytes: 0 }
    }
}

impl<T: Ord> Sorted<T> {
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.blocks.iter().map(Vec::len).sum()
    }

    /// Whether it is new.
    pub fn insert(&mut self, element: T) -> bool {
        // The last block that does not begin behind the element; before the first one there is none.
        let at = self.blocks.partition_point(|block| block[0] <= element).saturating_sub(1);
        let is_last = at + 1 >= self.blocks.len();
        let Some(block) = self.blocks.get_mut(at) else {
            self.add_block(0, vec![element]);
            return true;
        };
        let Err(place) = block.binary_search(&element) else { return false };
        if block.len() < BLOCK_LENGTH {
            self.resize(at, |block| {
                make_room(block);
                block.insert(place, element);
            });
        } else if is_last && place == BLOCK_LENGTH {
            // What comes in order fills its blocks.
            self.add_block(at + 1, vec![element]);
        } else {
            let mut upper = block.split_off(BLOCK_LENGTH / 2);
            self.resize(at, |block| {
                match place < BLOCK_LENGTH / 2 {
                    true => block.insert(place, element),
                    false => {
                        make_room(&mut upper);
                        upper.insert(place - BLOCK_LENGTH / 2, element);
                    }
                }
                block.shrink_to_fit();
            });
            self.add_block(at + 1, upper);
        }
        true
    }

    /// Puts an element in the place of one that is equal; gives that back, or nothing, and then nothing changed.
    pub fn replace(&mut self, element: T) -> Option<T> {
        let at = self.blocks.partition_point(|block| block[0] <= element).wrapping_sub(1);
        let block = self.blocks.get_mut(at)?;
        let place = block.binary_search(&element).ok()?;
        Some(std::mem::replace(&mut block[place], element))
    }

    /// Whether it was there.
    pub fn remove<Q: Ord + ?Sized>(&mut self, element: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        let at = self.blocks.partition_point(|block| block[0].borrow() <= element).wrapping_sub(1);
        let Some(block) = self.blocks.get(at) else { return false };
        let Ok(place) = block.binary_search_by(|known| known.borrow().cmp(element)) else { return false };
        self.resize(at, |block| {
            block.remove(place);
            if block.len() < block.capacity() / 2 {
                block.shrink_to(block.len() + block.len() / 8);
            }
        });
        let length = |at: usize| self.blocks.get(at).map_or(BLOCK_LENGTH, Vec::len);
        if length(at) == 0 {
            self.take_block(at);
        } else if length(at) + length(at + 1) <= BLOCK_LENGTH / 2 {
            let mut upper = self.take_block(at + 1);
            self.resize(at, |block| {
                block.reserve_exact(upper.len());
                block.append(&mut upper);
            });
        }
        true
    }

    /// All elements in order but the first ones, for which `is_before` says so.
    pub fn from(&self, is_before: impl Fn(&T) -> bool) -> impl Iterator<Item = &T> {
        let at = self.blocks.partition_point(|block| is_before(&block[0])).saturating_sub(1);
        let (first, rest) = self.blocks[at.min(self.blocks.len())..].split_first().unzip();
        let first =
            first.map_or(&[][..], |block: &Vec<T>| &block[block.partition_point(|element| is_before(element))..]);
        first.iter().chain(rest.into_iter().flatten().flatten())
    }

    /// What it takes of memory, in bytes.
    pub fn allocated(&self) -> usize {
        self.block_bytes + allocated_bytes(self.blocks.capacity() * size_of::<Vec<T>>())
    }

    fn resize(&mut self, at: usize, change: impl FnOnce(&mut Vec<T>)) {
        self.block_bytes -= block_bytes(&self.blocks[at]);
        change(&mut self.blocks[at]);
        self.block_bytes += block_bytes(&self.blocks[at]);
    }

    fn add_block(&mut self, at: usize, block: Vec<T>) {
        self.block_bytes += block_bytes(&block);
        make_room(&mut self.blocks);
        self.blocks.insert(at, block);
    }

    fn take_block(&mut self, at: usize) -> Vec<T> {
        let block = self.blocks.remove(at);
        self.block_bytes -= block_bytes(&block);
        if self.blocks.len() < self.blocks.capacity() / 2 {
            self.blocks.shrink_to(self.blocks.len() + self.blocks.len() / 8);
        }
        block
    }
}

/// Grows a full block to what the allocator gives for one element more.
fn make_room<T>(block: &mut Vec<T>) {
    if block.len() == block.capacity() {
        let capacity = allocated_bytes((block.len() + 1) * size_of::<T>()) / size_of::<T>();
        block.reserve_exact(capacity - block.len());
    }
}

fn block_bytes<T>(block: &Vec<T>) -> usize {
    allocated_bytes(block.capacity() * size_of::<T>())
}

/// Guess: an insertion moves half a block of 4 or 8 KiB, and one of 256 insertions moves half the list of blocks, which of a
/// million elements is some 30 KiB.
const BLOCK_LENGTH: usize = 512;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn check(set: &Sorted<u32>, model: &BTreeSet<u32>) {
        assert_eq!(set.len(), model.len());
        assert!(set.from(|_| false).eq(model.iter()));
        assert!(set.blocks.iter().all(|block| !block.is_empty() && block.len() <= BLOCK_LENGTH));
        let recounted = set.blocks.iter().map(block_bytes).sum::<usize>();
        assert_eq!(set.allocated(), recounted + allocated_bytes(set.blocks.capacity() * size_of::<Vec<u32>>()));
    }

    proptest! {
        /// Runs of neighbours come and go, so that blocks are split, merged and emptied.
        #[test]
        fn agrees_with_a_tree(runs in prop::collection::vec((any::<bool>(), 0u32..6000, 1u32..1500, any::<bool>()), 0..40)) {
            let (mut set, mut model) = (Sorted::default(), BTreeSet::new());
            for (inserts, start, count, descends) in runs {
                for step in 0..count {
                    let element = if descends { start + count - step } else { start + step };
                    match inserts {
                        true => prop_assert_eq!(set.insert(element), model.insert(element)),
                        false => prop_assert_eq!(set.remove(&element), model.remove(&element)),
                    }
                }
                check(&set, &model);
                prop_assert!(set.from(|element| *element < start).eq(model.range(start..)));
            }
        }
    }

    #[test]
    fn its_blocks_are_full_and_are_given_back() {
        for step in [1u32, 7919] {
            let (mut set, mut model) = (Sorted::default(), BTreeSet::new());
            for number in 0..100_000u32 {
                let element = number.wrapping_mul(step) % 100_003;
                set.insert(element);
                model.insert(element);
            }
            check(&set, &model);
            assert!(set.allocated() <= 100_000 * 5, "{}", set.allocated());
            for number in 0..100_000 {
                set.remove(&number);
                model.remove(&number);
            }
            check(&set, &model);
            assert!(set.allocated() < 1024);
        }
    }
}
