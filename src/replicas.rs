//! Replicas of hot keys: what one owner cannot answer alone, the next nodes on the ring answer with it.
//!
//! What is load? Of the requests of clients, spread over `n` nodes, every node answers `1/n`; what a node's memory has (main or
//! a hot copy) costs no other node anything. The owner of a key answers, beside its own clients, the *hops* of all nodes that
//! have no copy, or one that has become stale. With few nodes and a wanted key that is next to nothing: each node earns its
//! copy with the third question, and asks again when it expires. It is much where copies do not form (a thousand nodes that ask
//! rarely each, bodies too large for hot memory) or do not live long. So the owner counts hops, key by key ([`crate::heat`]):
//!
//! ```text
//! owner:   a peer asks ── counted ── more than a fair share? ── `replicate` to the next nodes on the ring, again every second
//! replica: takes it by a peek at the owner, as hot ── answers peeks ── not renewed for a while: drops it, unless wanted here
//! asker:   the owner's answer says how many replicas there are ── the next question goes, by a peek, to one of them,
//!          chosen in turn with the owner ── nothing there: the owner is asked after all
//! ```
//!
//! A replica never loads. The owner refreshes a hot key in its one flight, a little before it expires, and pushes what it got; else
//! all copies in the fleet would expire at once, and all nodes come to the owner while it loads. One peek and one load at most
//! belong to a request, as everywhere. A pushed entry comes by a peek like any other, with the stamp of the purges that it has seen
//! ([`crate::purge`]), and a purge takes it from memory like any other.
//!
//! An owner that says how often a key is asked for also lets a node keep its copy at the first question, if the node's part of
//! that rate would earn one. Go's protocol can say only that (`minute_qps`), and knows no replicas.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::cache::{Cache, Request};
use crate::clock::Now;
use crate::fill::Filling;
use crate::fleet::{Fleet, Health, Peer};
use crate::freshness::{HopFreshness, RequestDirectives};
use crate::group::Group;
use crate::heat::{Heat, Hottest, Lapsing, Question};
use crate::key::{GroupId, HashedKey};
use crate::source::{Ask, FetchError, Fetched, Hop, Method};
use crate::stats::Counter;
use crate::store::Role;
use crate::store::promote::{QUESTIONS_MIN, WINDOW};

/// What a node knows of hot keys, and counts.
#[derive(Debug, Default)]
pub struct Replicas {
    /// Keys of this node.
    pub(crate) heat: Heat,
    /// Keys of others, and how many nodes beside their owners have them.
    known: Lapsing<usize>,
    /// Keys of others that their owners gave this node.
    held: Lapsing<(GroupId, Bytes)>,
    /// Whose turn it is among those that have a key.
    turn: AtomicU64,
    /// Replicas that this node gave to others, renewals included.
    pub pushed: Counter,
    /// Replicas that this node took.
    pub taken: Counter,
    /// Replicas that this node dropped because nobody renewed them.
    pub dropped: Counter,
    /// Questions that this node answered from a replica.
    pub answered: Counter,
    /// Questions of this node that a replica elsewhere answered.
    pub used: Counter,
}

impl Replicas {
    /// Replicas that are here.
    pub fn held(&self) -> usize {
        self.held.count()
    }

    /// The hottest keys of this node, hottest first.
    pub fn hottest(&self, count: usize, now: Now) -> Vec<Hottest> {
        self.heat.hottest(count, now)
    }

    /// The ring is another one: who owns and who holds what is no longer known. What is held lapses by itself.
    pub(crate) fn fleet_changed(&self) {
        self.heat.clear();
        self.known.clear();
    }
}

impl Cache {
    /// Counts a peer's question for a key, and adds to what it is answered with (`hop`) what the peer should know of the key.
    /// A hot key is given to further nodes.
    pub(crate) fn asked_by_peer(self: &Arc<Self>, group: &Arc<Group>, key: &Bytes, hop: &mut Hop, now: Now) {
        let hashed = HashedKey::new(group.id, key);
        let estimate = self.popularity.observe(hashed.hash(), now);
        if estimate < QUESTIONS_MIN || !hop.storable || !self.owns(key) {
            return;
        }
        let question = Question {
            key: hashed,
            estimate,
            gets: group.stats.gets.value(),
            entry: hop.entry,
            peers: self.fleet.load().peers().count(),
        };
        let verdict = self.replicas.heat.asked(&question, now);
        hop.minute_rate = verdict.minute_rate;
        hop.replicas = u32::try_from(verdict.replicas).unwrap_or(u32::MAX);
        if let Some(count) = verdict.push {
            self.push_replicas(group, key, count);
        }
    }

    /// What has to be done a few times a second ([`TEND_EVERY`]): the hot keys of this node are refreshed before they expire, so
    /// that replicas have the next entry when all copies in the fleet expire at the same moment; and replicas of other nodes'
    /// keys that cooled down are dropped. `group` finds a group by its number.
    pub fn tend_replicas(self: &Arc<Self>, group: impl Fn(GroupId) -> Option<Arc<Group>>) {
        let now = self.now();
        for replicated in self.replicas.heat.replicated(now) {
            let asked = self.purges.applied();
            let key = HashedKey::new(replicated.group, &replicated.key);
            let Some(group) = group(replicated.group) else { continue };
            let Some((slot, _)) = self.store.peek(&key) else { continue };
            for entry in slot.entries().filter(|entry| expires_soon(&entry.freshness.over_hop(now))) {
                let request = Request {
                    key: replicated.key.clone(),
                    method: Method::Get,
                    forwarded: entry.sent().to_fields(),
                    authorization: false,
                    directives: RequestDirectives::default(),
                    range: None,
                };
                self.refresh_behind(&group, &request, entry, &asked);
            }
            let newest = slot.entries().map(|entry| entry.id).max_by_key(|id| id.fill).unwrap_or_default();
            if newest != replicated.pushed
                && let Some(count) = self.replicas.heat.renewed(key.hash(), newest)
            {
                self.push_replicas(&group, &replicated.key, count);
            }
        }
        self.drop_cooled_replicas();
    }

    /// Lets the `count` nodes after this one on the ring take what it has for the key.
    fn push_replicas(self: &Arc<Self>, group: &Group, key: &Bytes, count: usize) {
        let fleet = self.fleet.load();
        let places: Vec<_> = fleet.after_owner(key).take(count).map(|place| place.cloned()).collect();
        let asks = self.asks_for_fresh(group, key);
        let (cache, hash) = (self.clone(), HashedKey::new(group.id, key).hash());
        tokio::spawn(async move {
            let mut pushing = JoinSet::new();
            for (place, peer) in places.into_iter().enumerate() {
                let asks = asks.clone();
                pushing.spawn(async move { (place, push_to(peer, &asks).await) });
            }
            let mut first_without = if asks.is_empty() { 0 } else { count };
            while let Some(pushed) = pushing.join_next().await {
                match pushed {
                    Ok((_, true)) => cache.replicas.pushed.increment(),
                    Ok((place, false)) => first_without = first_without.min(place),
                    Err(_) => first_without = 0,
                }
            }
            // Askers count from the owner on: a node that has it behind one that has not is not asked.
            cache.replicas.heat.pushed(hash, first_without);
        });
    }

    /// Takes what the owner of a hot key, in its life `owner`, has for it, and keeps it as long as the owner says so again and
    /// again.
    ///
    /// # Errors
    /// That node is not the key's owner by this node's ring, or did not answer; or there are too many replicas here.
    pub async fn take_replica(self: &Arc<Self>, group: &Arc<Group>, ask: &Ask, owner: u64) -> Result<(), FetchError> {
        let now = self.now();
        let fleet = self.fleet.load_full();
        let Some(peer) = fleet.owner(&ask.key).filter(|peer| peer.incarnation() == Some(owner)) else {
            return Err(FetchError::unreachable("not the owner of the key"));
        };
        let key = HashedKey::new(group.id, &ask.key);
        let is_new = self.replicas.held.get(key.hash(), now).is_none();
        if !self.replicas.held.note(key.hash(), (group.id, ask.key.clone()), now, REPLICA_LIFETIME) {
            self.drop_cooled_replicas();
            return Err(FetchError::unreachable("too many replicas"));
        }
        if is_new {
            self.replicas.taken.increment();
        }
        let request = Request::from_ask(group, ask);
        if self.has_fresh(group, &request) {
            return Ok(());
        }
        self.copy(group, ask, request, peer, Role::Hot).await
    }

    /// Gives up the replicas whose owners have not renewed them: their keys have cooled down, or belong to others now. What
    /// this node's own clients want often stays.
    pub(crate) fn drop_cooled_replicas(&self) {
        let now = self.now();
        for (group, key) in self.replicas.held.take_lapsed(now) {
            self.replicas.dropped.increment();
            let key = HashedKey::new(group, &key);
            if self.popularity.deserves_hot_copy(key.hash(), None, now) {
                continue;
            }
            let _writing = self.slot_writer(&key).lock();
            if self.store.peek(&key).is_some_and(|(_, role)| role == Role::Hot) {
                self.store.remove(&key);
            }
        }
    }

    /// Counts an answer to a peek, if it was a replica's: that is a use of the copy like one by a client.
    pub(crate) fn note_peek(&self, key: &HashedKey<'_>, now: Now) {
        if self.replicas.held.get(key.hash(), now).is_some() {
            self.replicas.answered.increment();
            self.store.find(key);
        }
    }

    /// Whether memory has what a replica is to answer with, for a while yet.
    fn has_fresh(&self, group: &Group, request: &Request) -> bool {
        let Some((slot, _)) = self.store.peek(&HashedKey::new(group.id, &request.key)) else { return false };
        let entry = slot.select(|| request.forwarded.clone()).filter(|entry| request.is_answered_by(entry));
        let now = self.now();
        entry.is_some_and(|entry| entry.freshness.is_fresh(now) && !expires_soon(&entry.freshness.over_hop(now)))
    }
}

/// Whether an entry is in the last part of its lifetime: the owner of a hot key refreshes it then, and replicas take the next.
fn expires_soon(freshness: &HopFreshness) -> bool {
    let lifetime =
        i64::try_from(freshness.age_milliseconds).unwrap_or(i64::MAX).saturating_add(freshness.remaining_milliseconds);
    let ahead = (lifetime / AHEAD_SHARE).clamp(AHEAD_MILLISECONDS_MIN, AHEAD_MILLISECONDS_MAX).min(lifetime / 2);
    freshness.remaining_milliseconds <= ahead
}

/// Whether a node that is up has taken all variants.
async fn push_to(peer: Option<Arc<dyn Peer>>, asks: &[Ask]) -> bool {
    let Some(peer) = peer.filter(|peer| peer.health() == Health::Up) else { return false };
    for ask in asks {
        if !matches!(tokio::time::timeout(PUSH_PATIENCE, peer.replicate(ask)).await, Ok(Ok(()))) {
            return false;
        }
    }
    true
}

impl Filling {
    /// Hears what the owner says of the key beside its answer.
    pub(crate) fn hear_of_heat(&self, hop: &Hop, now: Now) {
        let cache = &self.cache;
        let key = HashedKey::new(self.group.id, &self.request.key);
        if hop.replicas > 0 {
            let replicas = (hop.replicas as usize).min(crate::heat::REPLICAS_MAX);
            // A full table costs questions to the owner.
            let _ = cache.replicas.known.note(key.hash(), replicas, now, KNOWN_FOR);
        }
        if hop.minute_rate > 0 {
            let nodes = cache.fleet.load().peers().count() as u64 + 1;
            let of_this_node = u64::from(hop.minute_rate) * WINDOW.as_secs() / 60 / nodes;
            // As if this node's clients had asked so often already; what it is worth beside other copies they have to show.
            for _ in 0..of_this_node.min(u64::from(QUESTIONS_MIN)) {
                if cache.popularity.estimate(key.hash(), now) < QUESTIONS_MIN {
                    cache.popularity.observe(key.hash(), now);
                }
            }
        }
    }

    /// The node that is asked before the owner: one that has a replica, when it is its turn.
    pub(crate) fn replica_to_ask(&self, fleet: &Fleet, now: Now) -> Option<Arc<dyn Peer>> {
        let key = HashedKey::new(self.group.id, &self.request.key);
        let replicas = self.cache.replicas.known.get(key.hash(), now)?;
        let request = &self.request;
        let plain = self.wants_whole() && !request.authorization && request.directives == RequestDirectives::default();
        let turn = self.cache.replicas.turn.fetch_add(1, Ordering::Relaxed).wrapping_add(self.cache.incarnation());
        let place = (turn % (replicas as u64 + 1)).checked_sub(1).filter(|_| plain)?;
        let peer = fleet.after_owner(&request.key).nth(place as usize)??;
        (peer.health() == Health::Up).then(|| peer.clone())
    }

    /// Peeks at a replica; when that brings nothing, the fill goes on as if there were none.
    pub(crate) async fn peek_at_replica(&self, replica: &Arc<dyn Peer>) -> Option<Fetched> {
        let ask = self.ask_peer().ok()?;
        let fetched = tokio::time::timeout(PEEK_PATIENCE, replica.peek(&ask)).await.ok()?.ok()??;
        self.cache.replicas.used.increment();
        Some(fetched)
    }
}

/// How often [`Cache::tend_replicas`] is to be called.
pub const TEND_EVERY: Duration = Duration::from_millis(250);

/// A fetch for a hot key comes so much earlier than it must: a part of a lifetime, enough for a slow origin and for two calls of
/// [`Cache::tend_replicas`], and never more than half of it.
const AHEAD_SHARE: i64 = 20;
const AHEAD_MILLISECONDS_MIN: i64 = 800;
const AHEAD_MILLISECONDS_MAX: i64 = 2000;

/// How long a replica stays when its owner says nothing more of it: some renewals may get lost.
pub const REPLICA_LIFETIME: Duration = Duration::from_secs(5);

/// How long an owner's word that there are replicas counts: as long as they stay at the least.
const KNOWN_FOR: Duration = Duration::from_secs(4);

/// How long a peek at a replica may take: as one at a previous owner.
const PEEK_PATIENCE: Duration = Duration::from_millis(250);

/// How long a node may take to come for a replica: the largest body over a slow network.
const PUSH_PATIENCE: Duration = Duration::from_secs(5);
