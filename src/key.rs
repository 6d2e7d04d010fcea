//! Which group and key something belongs to, with the hash that finds it.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::Deref;

use once_cell::sync::OnceCell;
use ring::rand::{SecureRandom, SystemRandom};
use triomphe::ThinArc;
use twox_hash::XxHash3_64;

/// Number of a group in the configuration of this process; small and dense, so that tables are indexed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u16);

/// XXH3-64 of group and key under a seed of this process: for tables in memory, never for the wire or the ring.
///
/// The seed is secret and random, so a client cannot choose keys that fall into one place of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash(u64);

/// A key with its group and its hash, computed once per request and used by every table that the request meets.
#[derive(Clone, Copy, Debug)]
pub struct HashedKey<'a> {
    group: GroupId,
    bytes: &'a [u8],
    hash: KeyHash,
}

impl<'a> HashedKey<'a> {
    /// Hashes `bytes` as a key of `group`.
    pub fn new(group: GroupId, bytes: &'a [u8]) -> Self {
        HashedKey { group, bytes, hash: KeyHash::of(group, bytes) }
    }

    /// The group that the key belongs to.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The key itself.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The hash of group and key.
    pub fn hash(&self) -> KeyHash {
        self.hash
    }
}

/// The bytes of a key in one block that all who keep the key share; 8 bytes by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedKey(ThinArc<(), u8>);

impl SharedKey {
    /// What the block holds in front of the bytes: the count of its holders and the length.
    pub const HEADER_BYTES: usize = 16;

    /// Copies the bytes of a key.
    pub fn new(bytes: &[u8]) -> Self {
        SharedKey(ThinArc::from_header_and_slice((), bytes))
    }
}

impl Deref for SharedKey {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.0.slice
    }
}

impl Borrow<[u8]> for SharedKey {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Ord for SharedKey {
    fn cmp(&self, other: &Self) -> Ordering {
        // As the bytes alone, which ordered collections are searched by.
        (**self).cmp(&**other)
    }
}

impl PartialOrd for SharedKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl KeyHash {
    /// The hash of `bytes` as a key of `group`.
    pub fn of(group: GroupId, bytes: &[u8]) -> Self {
        let seed = SEED.get_or_init(random_seed).wrapping_add(u64::from(group.0).wrapping_mul(GROUP_STEP));
        KeyHash(XxHash3_64::oneshot_with_seed(seed, bytes))
    }

    /// All 64 bits.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// Any odd number keeps the seeds of two groups apart; this one (2^64 divided by the golden ratio) spreads them.
const GROUP_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

static SEED: OnceCell<u64> = OnceCell::new();

/// Replaces the random seed of this process, so that a simulation or a measurement meets the same tables in every run.
/// Returns whether it came in time: before the first key was hashed. A process that serves clients never calls it.
pub fn set_seed(seed: u64) -> bool {
    SEED.set(seed).is_ok()
}

fn random_seed() -> u64 {
    let mut seed = [0; 8];
    match SystemRandom::new().fill(&mut seed) {
        Ok(()) => u64::from_ne_bytes(seed),
        // Without the system's randomness TLS does not work either; the standard library's seed is the next best.
        Err(_) => std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_depends_on_group_and_key_and_on_nothing_else() {
        let one = HashedKey::new(GroupId(1), b"a/b.jpg");
        assert_eq!(one.hash(), HashedKey::new(GroupId(1), &[&b"a/b"[..], b".jpg"].concat()).hash());
        assert_ne!(one.hash(), HashedKey::new(GroupId(2), b"a/b.jpg").hash());
        assert_ne!(one.hash(), HashedKey::new(GroupId(1), b"a/c.jpg").hash());
    }
}
