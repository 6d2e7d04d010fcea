//! Which peer owns a key: a function of the set of peers and of nothing else.
//!
//! Every node builds the same [`Ring`] from the same peers, without talking to the others, and so agrees with them on
//! each key's owner and on the order in which the other peers take over when the owner is down ([`Ring::preference`]).
//! Health is not the ring's business: a peer that is down keeps its place, and its keys come back to it.
//!
//! Two families of rings exist. [`RingKind::Balanced`] is ours (`balanced.rs`: how, and why the shares are even). The
//! other three reproduce Go libraries point by point (`go.rs`), so that our nodes can share one fleet with Go nodes.
//!
//! Removing a peer gives each of its keys to exactly the peer that `preference` named second, on every kind of ring, so
//! a takeover warms the very peer that owns the key once the dead one is taken from the list.

mod balanced;
mod go;
mod short_md5;

use std::fmt;
use std::str::FromStr;

use twox_hash::XxHash3_128;

use balanced::BalancedRing;
use go::GoRing;

/// The points each peer has on a Go ring unless both sides are configured otherwise: the default of all three Go
/// libraries.
pub const REPLICAS_DEFAULT: u32 = 50;

/// The most peers a ring takes; those beyond it in the list given to [`Ring::new`] own nothing.
pub const PEERS_MAX: usize = 1 << 16;

/// How keys are spread over peers; all nodes of a fleet must be given the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RingKind {
    /// Ours: even shares, weights, the same owner for any order of the peers.
    Balanced,
    /// As golang/groupcache: CRC-32 of `{replica}{url}`.
    Groupcache,
    /// As mailgun/groupcache: 64 bit FNV-1 of the hexadecimal MD5 of `{replica}{url}`, compared as signed integers.
    Mailgun,
    /// As groupcache/groupcache-go version 3: mailgun's hash over `{replica}{host}:{port}`.
    V3,
}

impl RingKind {
    /// All kinds, in the order in which the configuration documents them.
    pub const ALL: [RingKind; 4] = [RingKind::Balanced, RingKind::Groupcache, RingKind::Mailgun, RingKind::V3];

    /// The configuration's word for this kind.
    pub fn as_str(self) -> &'static str {
        match self {
            RingKind::Balanced => "balanced",
            RingKind::Groupcache => "groupcache",
            RingKind::Mailgun => "mailgun",
            RingKind::V3 => "v3",
        }
    }

    /// Whether this is a ring that Go nodes share: points per peer count, weights do not.
    pub fn is_go(self) -> bool {
        self != RingKind::Balanced
    }
}

impl fmt::Display for RingKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl FromStr for RingKind {
    type Err = UnknownRingKind;

    fn from_str(word: &str) -> Result<Self, UnknownRingKind> {
        RingKind::ALL.into_iter().find(|kind| kind.as_str() == word).ok_or_else(|| UnknownRingKind(word.to_owned()))
    }
}

/// A word that names no [`RingKind`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown ring {0:?}: expected balanced, groupcache, mailgun or v3")]
pub struct UnknownRingKind(pub String);

/// A member of the set that a ring is a function of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RingPeer {
    /// The peer's name, byte for byte as every node knows it; only hashed here, never connected to.
    pub url: String,
    /// Share of the keys relative to the other peers' weights; 0 counts as 1. Go rings know no weights: there every
    /// peer counts as 1.
    pub weight: u32,
}

impl RingPeer {
    /// A peer of weight 1.
    pub fn new(url: impl Into<String>) -> Self {
        RingPeer { url: url.into(), weight: 1 }
    }

    fn weight_on(&self, kind: RingKind) -> u32 {
        if kind.is_go() { 1 } else { self.weight.max(1) }
    }
}

/// The owner of every key, for one set of peers.
///
/// Peers are named by their index in the list given to [`Ring::new`]. A ring never changes; a fleet that changes builds
/// a new one. Building a balanced ring takes tens of milliseconds of computing whatever the number of peers, so it is
/// no work for a thread that serves requests.
#[derive(Clone)]
pub struct Ring {
    kind: RingKind,
    id: RingId,
    table: Table,
    shares: Vec<f64>,
}

#[derive(Clone)]
enum Table {
    Balanced(BalancedRing),
    Go(GoRing),
}

impl Ring {
    /// The ring of `peers`.
    ///
    /// `replicas` is the number of points of each peer on a Go ring; the balanced ring has no points and ignores it.
    ///
    /// The order of `peers` matters only on Go rings, and there only where points of two peers collide: as in the Go
    /// libraries the peer later in the list then owns the point. Of balanced peers with the same URL the first owns all.
    pub fn new(kind: RingKind, replicas: u32, peers: &[RingPeer]) -> Self {
        let id = RingId::of(kind, replicas, peers);
        let members = &peers[..peers.len().min(PEERS_MAX)];
        let table = match kind {
            RingKind::Balanced => Table::Balanced(BalancedRing::new(members)),
            _ => Table::Go(GoRing::new(kind, replicas, members)),
        };
        let mut shares = match &table {
            Table::Balanced(ring) => ring.shares(),
            Table::Go(ring) => ring.shares(),
        };
        shares.resize(peers.len(), 0.0);
        Ring { kind, id, table, shares }
    }

    /// The peer that owns `key`; `None` only when the ring has no peer (or a Go ring no points).
    pub fn owner(&self, key: &[u8]) -> Option<usize> {
        self.owner_of_hash(self.key_hash(key))
    }

    /// The place of `key` in this kind's hash space: XXH3-64 on the balanced ring, the library's hash on Go rings.
    pub fn key_hash(&self, key: &[u8]) -> u64 {
        match &self.table {
            Table::Balanced(_) => balanced::key_hash(key),
            Table::Go(ring) => ring.key_hash(key),
        }
    }

    /// As [`Ring::owner`], for a key already hashed by [`Ring::key_hash`] of a ring of the same kind.
    pub fn owner_of_hash(&self, key_hash: u64) -> Option<usize> {
        match &self.table {
            Table::Balanced(ring) => ring.owner(key_hash),
            Table::Go(ring) => ring.owner(key_hash),
        }
    }

    /// The peers in the order in which they stand in for each other for `key`: the owner, then who owns it without
    /// the owner, and so on until every peer that owns anything was named once.
    ///
    /// Nothing is computed beyond what is taken; the owner alone costs what [`Ring::owner`] costs.
    pub fn preference(&self, key: &[u8]) -> Preference<'_> {
        let key_hash = self.key_hash(key);
        Preference(match &self.table {
            Table::Balanced(ring) => Order::Balanced(ring.preference(key_hash)),
            Table::Go(ring) => Order::Go(ring.preference(key_hash)),
        })
    }

    /// What this ring was built from, to compare with other nodes.
    pub fn id(&self) -> RingId {
        self.id
    }

    /// The kind this ring was built as.
    pub fn kind(&self) -> RingKind {
        self.kind
    }

    /// The part of the hash space that the peer at `index` owns, from 0 to 1; 0 for an index that does not exist.
    pub fn share(&self, index: usize) -> f64 {
        self.shares.get(index).copied().unwrap_or(0.0)
    }

    /// The number of peers the ring was built from.
    pub fn len(&self) -> usize {
        self.shares.len()
    }

    /// Whether the ring was built from no peers, and so has no owner for anything.
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Ring")
            .field("kind", &self.kind)
            .field("peers", &self.len())
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The peers of a ring in takeover order for one key; see [`Ring::preference`].
pub struct Preference<'ring>(Order<'ring>);

enum Order<'ring> {
    Balanced(balanced::Preference<'ring>),
    Go(go::Preference<'ring>),
}

impl Iterator for Preference<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        match &mut self.0 {
            Order::Balanced(order) => order.next(),
            Order::Go(order) => order.next(),
        }
    }
}

/// A digest of what decides a ring's owners: kind, peers, weights (balanced) and points per peer (Go rings).
///
/// Compared for equality only: two nodes with one id agree on all owners (but see below), two ids say nothing about
/// which is newer. It is the XXH3-128 of an unambiguous encoding of the peers sorted by URL, the same on every machine;
/// the encoding starts with the version of our owners' function, so that releases that would disagree on owners never
/// show the same id.
///
/// The order of peers is left out, although on a Go ring it decides who owns a colliding point (for a hundred peers of
/// 50 points, one CRC-32 ring in some 350 has such a point; the 64 bit rings as good as none): lists that differ only
/// in order are the same fleet.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RingId(u128);

impl RingId {
    fn of(kind: RingKind, replicas: u32, peers: &[RingPeer]) -> Self {
        let mut members: Vec<(&str, u32)> =
            peers.iter().map(|peer| (peer.url.as_str(), peer.weight_on(kind))).collect();
        members.sort_unstable();
        let mut encoded = Vec::new();
        encoded.extend_from_slice(ID_DOMAIN);
        encoded.extend_from_slice(kind.as_str().as_bytes());
        encoded.push(b'\n');
        encoded.extend_from_slice(&if kind.is_go() { replicas } else { 0 }.to_le_bytes());
        for (url, weight) in members {
            encoded.extend_from_slice(&(url.len() as u64).to_le_bytes());
            encoded.extend_from_slice(url.as_bytes());
            encoded.extend_from_slice(&weight.to_le_bytes());
        }
        RingId(XxHash3_128::oneshot(&encoded))
    }

    /// The id as it travels between peers, most significant byte first.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The id that a peer sent; every value is one.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        RingId(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for RingId {
    /// 32 hexadecimal digits.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

impl fmt::Debug for RingId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RingId({self})")
    }
}

/// Starts the encoding of a [`RingId`]; the number goes up when any ring gives other owners for the same peers.
const ID_DOMAIN: &[u8] = b"groupcache-proxy ring 1\n";

#[cfg(test)]
mod tests;
