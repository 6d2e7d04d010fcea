//! Which group and key something belongs to, with the hash that finds it.

use once_cell::sync::OnceCell;
use ring::rand::{SecureRandom, SystemRandom};
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

    /// The upper half, for who keeps one hash per entry and can look at the entry itself.
    pub fn upper(self) -> u32 {
        (self.0 >> 32) as u32
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
