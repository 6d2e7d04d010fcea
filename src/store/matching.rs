//! Which entries a purge matches: the keys of each group in order, and the keys of each tag. The cost of a search grows with
//! what it finds and not with what is stored.
//!
//! A tag is known by 48 bits of its hash, and a key with that tag by its own hash, so that a pair takes 16 bytes. Who searches
//! compares the tags themselves: two that look alike here cost a look and nothing else.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::Deref;

use super::sorted::Sorted;
use super::{Store, Stored};
use crate::key::{GroupId, KeyHash};
use crate::memory::allocated_bytes;

/// The ordered books over all entries; changed only with the lock of the order held.
#[derive(Debug)]
pub(super) struct Books<V> {
    /// By number of the group.
    keys: Vec<Sorted<StoredKey<V>>>,
    tags: Sorted<(u64, KeyHash)>,
    /// What `keys` takes of memory beside the list itself.
    keys_bytes: usize,
}

/// The key of a value that is in the store, held with the value.
#[derive(Clone, Debug)]
struct StoredKey<V>(V);

impl<V: Stored> Deref for StoredKey<V> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.key()
    }
}

impl<V: Stored> Borrow<[u8]> for StoredKey<V> {
    fn borrow(&self) -> &[u8] {
        self
    }
}

// As the bytes alone, which the books are searched by.
impl<V: Stored> Ord for StoredKey<V> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl<V: Stored> PartialOrd for StoredKey<V> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<V: Stored> PartialEq for StoredKey<V> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<V: Stored> Eq for StoredKey<V> {}

impl<V> Default for Books<V> {
    fn default() -> Self {
        Books { keys: Vec::new(), tags: Sorted::default(), keys_bytes: 0 }
    }
}

impl<V: Stored> Books<V> {
    pub fn enter_key(&mut self, group: GroupId, value: &V) {
        let at = usize::from(group.0);
        if self.keys.len() <= at {
            self.keys.resize_with(at + 1, Sorted::default);
        }
        let keys = &mut self.keys[at];
        self.keys_bytes -= keys.allocated();
        keys.insert(StoredKey(value.clone()));
        self.keys_bytes += keys.allocated();
    }

    /// The value under the same key is another now.
    pub fn replace_key(&mut self, group: GroupId, value: &V) {
        if let Some(keys) = self.keys.get_mut(usize::from(group.0)) {
            keys.replace(StoredKey(value.clone()));
        }
    }

    pub fn leave_key(&mut self, group: GroupId, key: &[u8]) {
        if let Some(keys) = self.keys.get_mut(usize::from(group.0)) {
            self.keys_bytes -= keys.allocated();
            keys.remove(key);
            self.keys_bytes += keys.allocated();
        }
    }

    pub fn enter_tags(&mut self, group: GroupId, key: KeyHash, value: &V) {
        value.for_each_tag(&mut |tag| {
            self.tags.insert((tag_in_group(tag, group), key));
        });
    }

    /// `hash` is that of the key, where it is known.
    pub fn leave_tags(&mut self, group: GroupId, mut hash: Option<KeyHash>, value: &V) {
        value.for_each_tag(&mut |tag| {
            let key = *hash.get_or_insert_with(|| KeyHash::of(group, value.key()));
            self.tags.remove(&(tag_in_group(tag, group), key));
        });
    }

    /// What the books take of memory, in bytes.
    pub fn allocated(&self) -> usize {
        self.keys_bytes
            + self.tags.allocated()
            + allocated_bytes(self.keys.capacity() * size_of::<Sorted<StoredKey<V>>>())
    }

    /// All keys, and all pairs of tag and key.
    #[cfg(test)]
    pub fn counts(&self) -> (usize, usize) {
        assert_eq!(self.keys.iter().map(Sorted::allocated).sum::<usize>(), self.keys_bytes);
        (self.keys.iter().map(Sorted::len).sum(), self.tags.len())
    }
}

/// Keys that a step of a search found, in the order in which it found them.
///
/// They are copies: who held the key where it lies would hold its value, and what a purge takes away or replaces would not be free
/// before the step is over, so that in a full store others had to give way.
#[derive(Debug, Default)]
pub struct FoundKeys {
    bytes: Vec<u8>,
    /// By key, its group and where it ends in `bytes`.
    ends: Vec<(GroupId, usize)>,
}

impl FoundKeys {
    fn push(&mut self, group: GroupId, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push((group, self.bytes.len()));
    }

    /// Whether a step should end here.
    fn is_full(&self) -> bool {
        self.ends.len() >= KEYS_PER_STEP || self.bytes.len() >= KEY_BYTES_PER_STEP
    }

    /// The keys with their groups.
    pub fn iter(&self) -> impl Iterator<Item = (GroupId, &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(group, end)| (group, &self.bytes[std::mem::replace(&mut start, end)..end]))
    }

    /// The last one; `None` when nothing was found, which ends a search.
    pub fn last(&self) -> Option<&[u8]> {
        let (_, end) = self.ends.last()?;
        let start = self.ends.len().checked_sub(2).map_or(0, |before| self.ends[before].1);
        Some(&self.bytes[start..*end])
    }
}

/// Where a search by tag goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagPlace(u64, KeyHash);

impl<V: Stored> Store<V> {
    /// Keys of `group` that begin with `prefix` and come after `after`, in order, at most [`KEYS_PER_STEP`].
    pub fn keys_with_prefix(&self, group: GroupId, prefix: &[u8], after: Option<&[u8]>) -> FoundKeys {
        let order = self.order.lock();
        let mut found = FoundKeys::default();
        let Some(keys) = order.books.keys.get(usize::from(group.0)) else { return found };
        let following = keys.from(|key| match after {
            Some(after) => **key <= *after,
            None => **key < *prefix,
        });
        for key in following.take_while(|key| key.starts_with(prefix)) {
            found.push(group, key);
            if found.is_full() {
                break;
            }
        }
        found
    }

    /// Entries of `group` (or of all groups) that may have `tag`, beginning behind `after`, at most about [`KEYS_PER_STEP`]; and
    /// where to go on, `None` at the end.
    pub fn keys_with_tag(
        &self,
        group: Option<GroupId>,
        tag: &[u8],
        after: Option<TagPlace>,
    ) -> (FoundKeys, Option<TagPlace>) {
        let (first, last) = match group {
            Some(group) => (tag_in_group(tag, group), tag_in_group(tag, group)),
            None => (tag_in_group(tag, GroupId(0)), tag_in_group(tag, GroupId(u16::MAX))),
        };
        let order = self.order.lock();
        let mut place = None;
        let mut found = FoundKeys::default();
        let pairs = order.books.tags.from(|pair| match after {
            Some(TagPlace(tag, key)) => *pair <= (tag, key),
            None => pair.0 < first,
        });
        for &(tag_in_group, hash) in pairs.take_while(|pair| pair.0 <= last).take(KEYS_PER_STEP) {
            place = Some(TagPlace(tag_in_group, hash));
            let group = GroupId(tag_in_group as u16);
            let shard = self.index.read(hash.upper());
            shard.each_of_hash(group, hash, |slot| found.push(group, slot.value.key()));
            if found.is_full() {
                break;
            }
        }
        (found, place)
    }
}

/// The tag, known by its hash, in its group: the pairs of one tag lie together, those of one group within.
fn tag_in_group(tag: &[u8], group: GroupId) -> u64 {
    KeyHash::of(GroupId(u16::MAX), tag).get() & !u64::from(u16::MAX) | u64::from(group.0)
}

/// Keys that one step of a search gives, under the lock of the order.
pub const KEYS_PER_STEP: usize = 256;
/// A step ends with the key that makes its keys take so many bytes.
const KEY_BYTES_PER_STEP: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::key::HashedKey;
    use crate::memory::{Charge, Ledger};
    use crate::store::{Role, Settings, Weighed};

    struct Page {
        key: Vec<u8>,
        tags: Vec<u8>,
        charge: Charge,
    }

    impl Weighed for Page {
        fn key(&self) -> &[u8] {
            &self.key
        }

        fn charged_bytes(&self) -> usize {
            self.charge.bytes()
        }

        fn for_each_tag(&self, give: &mut dyn FnMut(&[u8])) {
            self.tags.iter().for_each(|tag| give(&[*tag]));
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16, String, Vec<u8>),
        Remove(u16, String),
    }

    fn step() -> impl Strategy<Value = Step> {
        let tags = prop::collection::vec(0u8..4, 0..3);
        prop_oneof![
            3 => (0u16..2, "[ab]{0,3}", tags).prop_map(|(group, key, tags)| Step::Insert(group, key, tags)),
            1 => (0u16..2, "[ab]{0,3}").prop_map(|(group, key)| Step::Remove(group, key)),
        ]
    }

    fn all_with_prefix(store: &Store<Arc<Page>>, group: u16, prefix: &str) -> Vec<String> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let keys = store.keys_with_prefix(GroupId(group), prefix.as_bytes(), after.as_deref());
            let Some(last) = keys.last() else { return found };
            after = Some(last.to_vec());
            found.extend(keys.iter().map(|(_, key)| String::from_utf8(key.to_vec()).unwrap()));
        }
    }

    fn all_with_tag(store: &Store<Arc<Page>>, group: Option<u16>, tag: u8) -> BTreeSet<(u16, String)> {
        let (mut found, mut place) = (BTreeSet::new(), None);
        loop {
            let (keys, next) = store.keys_with_tag(group.map(GroupId), &[tag], place);
            found.extend(keys.iter().map(|(group, key)| (group.0, String::from_utf8(key.to_vec()).unwrap())));
            match next {
                Some(_) => place = next,
                None => return found,
            }
        }
    }

    proptest! {
        /// The limit is so small that entries give way all the time.
        #[test]
        fn the_books_say_what_is_stored(
            steps in prop::collection::vec(step(), 0..200),
            prefix in "[ab]{0,2}",
            tag in 0u8..4,
        ) {
            let store: Arc<Store<Arc<Page>>> = Store::new(Ledger::new(768 << 10), &Settings::default(), None);
            for step in steps {
                match step {
                    Step::Insert(group, key, tags) => {
                        let charge = store.ledger().charge(30 << 10);
                        let page = Arc::new(Page { key: key.into_bytes(), tags, charge });
                        store.insert(Role::Main, &HashedKey::new(GroupId(group), &page.key), page.clone());
                    }
                    Step::Remove(group, key) => {
                        store.remove(&HashedKey::new(GroupId(group), key.as_bytes()));
                    }
                }
            }
            let mut stored: BTreeMap<(u16, String), Vec<u8>> = BTreeMap::new();
            store.for_each(None, |listed| {
                let key = String::from_utf8(listed.key.to_vec()).unwrap();
                stored.insert((listed.group.0, key), listed.value.tags.clone());
            });
            let pairs: BTreeSet<_> =
                stored.iter().flat_map(|(key, tags)| tags.iter().map(move |tag| (key.clone(), *tag))).collect();
            prop_assert_eq!(store.order.lock().books.counts(), (stored.len(), pairs.len()));
            for group in 0..2 {
                let expected: Vec<String> = stored
                    .keys()
                    .filter(|(of, key)| *of == group && key.starts_with(&prefix))
                    .map(|(_, key)| key.clone())
                    .collect();
                prop_assert_eq!(all_with_prefix(&store, group, &prefix), expected);
            }
            for group in [None, Some(0), Some(1)] {
                let expected: BTreeSet<_> = pairs
                    .iter()
                    .filter(|((of, _), known)| *known == tag && group.is_none_or(|group| group == *of))
                    .map(|(key, _)| key.clone())
                    .collect();
                prop_assert_eq!(all_with_tag(&store, group, tag), expected);
            }
        }
    }

    #[test]
    fn a_search_goes_on_where_its_step_ended() {
        let store: Arc<Store<Arc<Page>>> = Store::new(Ledger::new(64 << 20), &Settings::default(), None);
        for number in 0..1000 {
            let (key, charge) = (format!("k{number:04}").into_bytes(), store.ledger().charge(100));
            let page = Arc::new(Page { key, tags: vec![7], charge });
            store.insert(Role::Main, &HashedKey::new(GroupId(1), &page.key), page.clone());
        }
        assert_eq!(store.keys_with_prefix(GroupId(1), b"k", None).iter().count(), KEYS_PER_STEP);
        assert_eq!(all_with_prefix(&store, 1, "k").len(), 1000);
        assert_eq!(all_with_prefix(&store, 1, "k01").len(), 100);
        assert_eq!(all_with_tag(&store, None, 7).len(), 1000);
        assert_eq!(all_with_tag(&store, Some(0), 7).len(), 0);
    }
}
