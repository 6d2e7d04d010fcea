//! Keeping what the fleet has in memory when keys change hands: peeks at the previous owner, and hand-over by a node that
//! leaves.
//!
//! ```text
//! a key's owner misses ── who had the key before? ── a peek there, from memory only ── else the origin
//! a node drains ── its main entries, most wanted first ── offer to who owns the key without it ── which peeks back
//! ```
//!
//! Who had the key before: the owner by the ring before the last change, for [`WARM_FOR`]; for a node that has just started,
//! the next on the ring, which stood in for it and from which it takes the key over when it joins (removing a node gives its
//! keys to exactly the next). A node that answers in the owner's stead asks the owner: it may be draining, and have the key.
//! One peek and one load at most belong to a client's request, and a peek is never passed on.
//!
//! `fleet.resharding: cold` turns both off, here and at once ([`Fleet::is_warm`]): such a node asks no previous holder and hands
//! nothing over. It still answers peeks and takes what others offer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::task::JoinSet;

use crate::cache::{Cache, Request, Route};
use crate::clock::Now;
use crate::entry::Entry;
use crate::fill::Filling;
use crate::fleet::{Fleet, Health, Peer};
use crate::freshness::{Copied, RequestDirectives, Verdict};
use crate::group::Group;
use crate::key::{GroupId, HashedKey};
use crate::semantics::variant::VaryRule;
use crate::source::{Ask, Fetched, Method};
use crate::stats::Counter;
use crate::store::Role;

/// What a node remembers of the time before the present ring.
#[derive(Default)]
pub(crate) struct Warmth {
    previous: ArcSwapOption<Previous>,
    /// Monotonic milliseconds until which this node counts as just started; zero: it does not.
    started_until: AtomicU64,
    /// What this node handed over when it left.
    pub handed_over: Counter,
}

struct Previous {
    fleet: Arc<Fleet>,
    until: Duration,
}

impl Warmth {
    /// `before` was the fleet until now; one that has the same ring is no other.
    pub fn replaced(&self, before: Arc<Fleet>, after: &Fleet, now: Now) {
        if !after.is_warm() {
            self.previous.store(None);
        } else if before.ring().is_some() && before.ring_id() != after.ring_id() {
            let until = now.monotonic.saturating_add(WARM_FOR);
            self.previous.store(Some(Arc::new(Previous { fleet: before, until })));
        }
    }

    /// From now on, and for [`WARM_FOR`], this node counts as just started.
    pub fn start(&self, now: Now) {
        let until = now.monotonic.saturating_add(WARM_FOR).as_millis();
        self.started_until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The fleet before the last change, as long as it is of use.
    fn previous(&self, now: Now) -> Option<Arc<Fleet>> {
        let previous = self.previous.load_full()?;
        if now.monotonic < previous.until {
            return Some(previous.fleet.clone());
        }
        // It keeps connections to peers that are gone.
        self.previous.store(None);
        None
    }

    fn has_just_started(&self, now: Now) -> bool {
        now.monotonic.as_millis() < u128::from(self.started_until.load(Ordering::Relaxed))
    }
}

impl Cache {
    /// Replaces the view of the fleet; fills under way finish under the view they started with. The view before it is
    /// remembered for a while: who owned a key then may have it.
    pub fn set_fleet(&self, fleet: Fleet) {
        let fleet = Arc::new(fleet);
        self.leasing.follow(&fleet, self.now());
        let before = self.fleet.swap(fleet.clone());
        self.replicas.fleet_changed();
        self.warmth.replaced(before, &fleet, self.now());
    }

    /// Whether this node is the key's owner by its present view of the ring.
    pub fn owns(&self, key: &[u8]) -> bool {
        self.fleet.load().owns(key)
    }

    /// What an entry that is not simply fresh may do here. What lies in main and belongs to another node since the ring moved
    /// is as good as a hot copy; what was a copy and belongs to this node now is the owner's.
    pub(crate) fn stale_verdict(
        &self,
        group: &Group,
        request: &Request,
        route: Route,
        entry: &Entry,
        now: Now,
    ) -> Verdict {
        let role = match route {
            Route::Fleet => Copied::Hot,
            Route::Here if self.fleet.load().owns(&request.key) => Copied::No,
            Route::Here => entry.freshness.role(),
        };
        entry.freshness.with_role(role).verdict(&group.rules, &request.directives, now)
    }

    /// From now on this node has nothing that it owns in memory, but others may have: it asks them before the origin for
    /// [`WARM_FOR`]. To be called when a node of a fleet starts.
    pub fn warm_up(&self) {
        self.warmth.start(self.now());
    }

    /// Forgets the ring before the present one when its time is over; to be called now and then.
    pub fn forget_previous_fleet(&self) {
        let _ = self.warmth.previous(self.now());
    }

    /// Entries that other nodes took over when this one left.
    pub fn handed_over(&self) -> u64 {
        self.warmth.handed_over.value()
    }

    /// Who may have the key in memory, if this node has not.
    pub(crate) fn previous_holder(&self, key: &[u8], now: Now) -> Option<Arc<dyn Peer>> {
        let fleet = self.fleet.load();
        if !fleet.is_warm() {
            return None;
        }
        let reachable = |peer: &&Arc<dyn Peer>| peer.health() != Health::Down;
        if let Some(owner) = fleet.owner(key) {
            return Some(owner).filter(reachable).cloned();
        }
        if let Some(previous) = self.warmth.previous(now)
            && let Some(owner) = previous.owner(key).filter(reachable)
        {
            return Some(owner.clone());
        }
        if self.warmth.has_just_started(now) { fleet.stood_in(key).cloned() } else { None }
    }

    /// The peer in its life `incarnation`, of the present fleet or the one before.
    pub(crate) fn peer_in_life(&self, incarnation: u64) -> Option<Arc<dyn Peer>> {
        let in_fleet = |fleet: &Fleet| fleet.peers().find(|peer| peer.incarnation() == Some(incarnation)).cloned();
        in_fleet(&self.fleet.load()).or_else(|| in_fleet(&*self.warmth.previous(self.now())?))
    }

    /// Lets the nodes that own this node's keys without it take over what it has in main memory, most wanted first; returns
    /// how many entries they took or had; none where resharding is cold. `group` finds a group by its number. Dropping the future ends it.
    pub async fn hand_over(self: &Arc<Self>, group: impl Fn(GroupId) -> Option<Arc<Group>>) -> u64 {
        if !self.fleet.load().is_warm() {
            return 0;
        }
        let mut taken = 0;
        let mut offers: JoinSet<bool> = JoinSet::new();
        // The keys alone: holding the values would keep them alive while others are to be stored.
        let wanted: Vec<(GroupId, Box<[u8]>)> = {
            let wanted = self.store.most_wanted(Role::Main, HANDED_OVER_MAX);
            wanted.into_iter().map(|wanted| (wanted.group, wanted.key)).collect()
        };
        for (group_id, key) in wanted {
            let Some(group) = group(group_id) else { continue };
            let key = Bytes::from(key);
            for ask in self.asks_for_fresh(&group, &key) {
                // Looked up anew for each: peers come and go meanwhile.
                let Some(peer) = self.fleet.load().stand_in(&key).cloned() else { return taken };
                if offers.len() >= OFFERS_AT_ONCE {
                    taken += u64::from(offers.join_next().await.is_some_and(|offer| offer.unwrap_or(false)));
                }
                offers.spawn(async move { peer.offer(&ask).await.is_ok() });
            }
        }
        while let Some(offer) = offers.join_next().await {
            taken += u64::from(offer.unwrap_or(false));
        }
        self.warmth.handed_over.add(taken);
        taken
    }

    /// The question for each variant of the key that memory holds whole and fresh.
    pub(crate) fn asks_for_fresh(&self, group: &Group, key: &Bytes) -> Vec<Ask> {
        let now = self.now();
        let Some((slot, _)) = self.store.peek(&HashedKey::new(group.id, key)) else { return Vec::new() };
        let fresh = slot.entries().filter(|entry| entry.body.is_whole() && entry.freshness.is_fresh(now));
        // A field that varies by everything names nothing that could be asked for.
        let named = fresh.filter(|_| !matches!(slot.rule(), VaryRule::Any));
        named.filter_map(|entry| group.ask(key, Method::Get, entry.sent().clone())).collect()
    }
}

impl Filling {
    /// What the key's previous holder has in memory, with the time of the question. Only a plain `GET` that has nothing to
    /// confirm or to complete is worth it.
    pub(crate) async fn peek_at_previous_holder(&self) -> Option<(Fetched, Now)> {
        let request = &self.request;
        let plain = request.method == Method::Get && request.range.is_none() && !request.authorization;
        if !plain || !self.has_nothing() || request.directives != RequestDirectives::default() {
            return None;
        }
        let asked_at = self.cache.now();
        let holder = self.cache.previous_holder(&request.key, asked_at)?;
        let ask = self.ask_peer().ok()?;
        self.group.stats.peeks.increment();
        let fetched = tokio::time::timeout(PEEK_PATIENCE, holder.peek(&ask)).await.ok()?.ok()??;
        self.group.stats.peek_hits.increment();
        Some((fetched, asked_at))
    }
}

/// How long the previous owner is asked first. Guess: whatever is wanted often has been asked for by then; the rest is old.
pub const WARM_FOR: Duration = Duration::from_secs(600);

/// How long a peek may take: it is answered from memory, and behind it waits the origin. Guess: a busy node on the same
/// network answers within a tenth of it.
const PEEK_PATIENCE: Duration = Duration::from_millis(250);

/// Entries that a leaving node offers at most, so that the list of their keys stays small beside the cache. At a thousandth of
/// a second each, and [`OFFERS_AT_ONCE`] at a time, these take some seconds.
const HANDED_OVER_MAX: usize = 100_000;

/// Offers on their way at once: enough to fill a connection, few beside the questions of clients.
const OFFERS_AT_ONCE: usize = 32;
