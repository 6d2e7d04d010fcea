//! The rings of three Go libraries, reproduced so that our nodes can be members of their fleets.
//!
//! All three are the same ring: each peer has some points, hashes of its number among them followed by the peer's name,
//! and owns the keys whose hashes lie between the point before and its own. They differ in the hash, in the order of
//! hashes, and in the name:
//!
//! | kind | point `i` of a peer | key | order | name |
//! |---|---|---|---|---|
//! | `groupcache` | CRC-32 (IEEE) of `{i}{name}` | CRC-32 | unsigned | URL |
//! | `mailgun` | 64 bit FNV-1 of the hexadecimal MD5 of `{i}{name}` | 64 bit FNV-1 | signed | URL |
//! | `v3` | as mailgun | as mailgun | signed | `host:port` |
//!
//! The hashes become Go `int`s, taken as 64 bits wide: a Go process built for a 32 bit machine has another ring.
//!
//! **Collisions.** Where points of two peers are equal, golang/groupcache and mailgun keep one map entry, so the peer
//! added last owns the point. So it is here, for all three kinds; the peers added before stay behind it in line, which
//! is where the point goes when the last one leaves. Version 3 has no map: it sorts its points after every peer with an
//! unstable sort, so there the owner of a colliding point hangs on the inner workings of Go's `sort.Slice`, and either
//! peer is as likely. Its points collide only between addresses of which one is the other behind more digits (point 1
//! of `10.0.0.9:80` has the name of point 11 of `0.0.0.9:80`); an operator who has such a pair and cares for agreement
//! on these few points should rename one of them.

use std::borrow::Cow;

use md5::{Digest, Md5};

use super::short_md5::{LANES, MESSAGE_BYTES_MAX, short_md5};
use super::{RingKind, RingPeer};

/// The points of all peers in the order of the ring.
#[derive(Clone)]
pub(super) struct GoRing {
    kind: RingKind,
    /// Sorted; signed hashes with the sign bit flipped, so that all compare as unsigned integers.
    points: Vec<u64>,
    /// By point, its peer's index. Of equal points the peer added last comes first.
    owners: Vec<u16>,
    peer_count: usize,
}

impl GoRing {
    /// `peers` are at most [`super::PEERS_MAX`], in the order in which the Go program adds them.
    pub(super) fn new(kind: RingKind, replicas: u32, peers: &[RingPeer]) -> Self {
        let numbers: Vec<String> = (0..replicas).map(|number| number.to_string()).collect();
        let mut placed: Vec<(u64, u16)> = Vec::with_capacity(peers.len().saturating_mul(numbers.len()));
        for (index, peer) in peers.iter().enumerate() {
            let lateness = u16::MAX - index as u16;
            each_point(kind, &numbers, &name_on(kind, &peer.url), |point| placed.push((point, lateness)));
        }
        placed.sort_unstable();
        GoRing {
            kind,
            points: placed.iter().map(|&(point, _)| point).collect(),
            owners: placed.iter().map(|&(_, lateness)| u16::MAX - lateness).collect(),
            peer_count: peers.len(),
        }
    }

    pub(super) fn key_hash(&self, key: &[u8]) -> u64 {
        key_hash(self.kind, key)
    }

    pub(super) fn owner(&self, key_hash: u64) -> Option<usize> {
        self.owners.get(self.place(key_hash)).map(|&index| usize::from(index))
    }

    pub(super) fn preference(&self, key_hash: u64) -> Preference<'_> {
        Preference { ring: self, place: self.place(key_hash), points_passed: 0, owner: None, seen: Vec::new() }
    }

    /// By index, the part of the hash space owned: the way to each of the peer's points from the point before.
    pub(super) fn shares(&self) -> Vec<f64> {
        let space: u128 = if self.kind == RingKind::Groupcache { 1 << 32 } else { 1 << 64 };
        let mut lengths = vec![0u128; self.peer_count];
        // From the last point over the end of the space to the first.
        let mut before = self.points.last().map_or(0, |&last| i128::from(last) - space as i128);
        for (&point, &owner) in self.points.iter().zip(&self.owners) {
            lengths[usize::from(owner)] += (i128::from(point) - before) as u128;
            before = i128::from(point);
        }
        lengths.into_iter().map(|length| length as f64 / space as f64).collect()
    }

    /// Of the first point that is not before the hash, or of the first of all behind the last.
    fn place(&self, key_hash: u64) -> usize {
        let place = self.points.partition_point(|&point| point < key_hash);
        if place == self.points.len() { 0 } else { place }
    }
}

/// The peers in the order of their next points from a place on, each once.
pub(super) struct Preference<'ring> {
    ring: &'ring GoRing,
    place: usize,
    points_passed: usize,
    owner: Option<usize>,
    /// By index, whether the peer was named; made only when somebody asks beyond the owner.
    seen: Vec<bool>,
}

impl Iterator for Preference<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let owners = &self.ring.owners;
        let Some(owner) = self.owner else {
            self.owner = owners.get(self.place).map(|&index| usize::from(index));
            return self.owner;
        };
        if self.seen.is_empty() {
            self.seen = vec![false; self.ring.peer_count];
            self.seen[owner] = true;
        }
        while self.points_passed < owners.len() {
            let peer = usize::from(owners[self.place]);
            self.points_passed += 1;
            self.place = if self.place + 1 == owners.len() { 0 } else { self.place + 1 };
            if !self.seen[peer] {
                self.seen[peer] = true;
                return Some(peer);
            }
        }
        None
    }
}

/// What the Go program hashes of a peer: its URL, or for version 3 the address, the port always with it.
fn name_on(kind: RingKind, url: &str) -> Cow<'_, str> {
    if kind != RingKind::V3 {
        return Cow::Borrowed(url);
    }
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    // Colons inside the brackets belong to an IPv6 address.
    let behind_host = authority.rfind(']').unwrap_or(0);
    if authority[behind_host..].contains(':') {
        return Cow::Borrowed(authority);
    }
    let port = if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 };
    Cow::Owned(format!("{authority}:{port}"))
}

/// Hands out the points of one peer, in the order of their numbers.
fn each_point(kind: RingKind, numbers: &[String], name: &str, mut place: impl FnMut(u64)) {
    let mut named: [Vec<u8>; LANES] = Default::default();
    for batch in numbers.chunks(LANES) {
        for (named, number) in named.iter_mut().zip(batch) {
            named.clear();
            named.extend_from_slice(number.as_bytes());
            named.extend_from_slice(name.as_bytes());
        }
        let points = match kind {
            RingKind::Groupcache => std::array::from_fn(|lane| key_hash(kind, &named[lane])),
            _ if named.iter().all(|named| named.len() <= MESSAGE_BYTES_MAX) => fork_points(&short_md5(&named)),
            _ => fork_points(&std::array::from_fn(|lane| Md5::digest(&named[lane]).into())),
        };
        points[..batch.len()].iter().for_each(|&point| place(point));
    }
}

/// The hash of the hexadecimal form of each digest: side by side, as each hash is one chain of multiplications.
fn fork_points(digests: &[[u8; 16]; LANES]) -> [u64; LANES] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hashes = [FNV_OFFSET_BASIS; LANES];
    for at in 0..16 {
        for (hash, digest) in hashes.iter_mut().zip(digests) {
            *hash = fnv1_step(*hash, DIGITS[usize::from(digest[at] >> 4)]);
            *hash = fnv1_step(*hash, DIGITS[usize::from(digest[at] & 15)]);
        }
    }
    hashes.map(|hash| hash ^ SIGN_BIT)
}

fn key_hash(kind: RingKind, key: &[u8]) -> u64 {
    match kind {
        RingKind::Groupcache => u64::from(crc32fast::hash(key)),
        _ => fnv1(key) ^ SIGN_BIT,
    }
}

/// FNV-1 with 64 bits: multiplies first, unlike the commoner FNV-1a.
fn fnv1(bytes: &[u8]) -> u64 {
    bytes.iter().fold(FNV_OFFSET_BASIS, |hash, &byte| fnv1_step(hash, byte))
}

fn fnv1_step(hash: u64, byte: u8) -> u64 {
    hash.wrapping_mul(FNV_PRIME) ^ u64::from(byte)
}

/// Flipped, it makes signed integers compare as unsigned ones.
const SIGN_BIT: u64 = 1 << 63;

/// draft-eastlake-fnv, section 5, 64 bits.
const FNV_OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// Likewise.
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_3_hashes_host_and_port() {
        for (url, name) in [
            ("http://10.0.0.5:8082", "10.0.0.5:8082"),
            ("https://cache.example:8443/", "cache.example:8443"),
            ("http://cache.example", "cache.example:80"),
            ("https://cache.example/_groupcache/", "cache.example:443"),
            ("http://[fd00::1]:8082", "[fd00::1]:8082"),
            ("http://[fd00::1]", "[fd00::1]:80"),
            ("10.0.0.5:8082", "10.0.0.5:8082"),
            ("", ":80"),
        ] {
            assert_eq!(name_on(RingKind::V3, url), name);
            assert_eq!(name_on(RingKind::Mailgun, url), url);
        }
    }

    /// Names of every length around the block of MD5, and numbers of points that fill no batch.
    #[test]
    fn points_are_the_hashes_that_the_table_above_names() {
        for replicas in [1, 2, 4, 7, 101] {
            let numbers: Vec<String> = (0..replicas).map(|number| number.to_string()).collect();
            for length in 0..120 {
                let name: String = "http://cache.example/".chars().cycle().take(length).collect();
                for kind in [RingKind::Groupcache, RingKind::Mailgun, RingKind::V3] {
                    let mut points = Vec::new();
                    each_point(kind, &numbers, &name, |point| points.push(point));
                    let expected: Vec<u64> = (0..replicas)
                        .map(|number| match kind {
                            RingKind::Groupcache => crc32fast::hash(format!("{number}{name}").as_bytes()).into(),
                            _ => {
                                let digest = Md5::digest(format!("{number}{name}"));
                                let text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                                (fnv1(text.as_bytes()) as i64).wrapping_sub(i64::MIN) as u64
                            }
                        })
                        .collect();
                    assert_eq!(points, expected, "{kind}, {length} bytes, {replicas} points");
                }
            }
        }
    }
}
