//! The decision over everything: [`Cache::get`] for clients, [`Cache::get_as_owner`] for peers.
//!
//! ```text
//! get ── look in the store ──────────────── fresh: answer; stale but allowed: answer, refresh behind
//!     ── what is remembered of the key ──── uncacheable: pass; failed a moment ago: the same failure
//!     ── join or open the flight ────────── `fill`: owner, next peers, here; its head decides who may follow
//! ```
//!
//! A peer's question takes the same way, but its flight loads here and never asks another peer: a request crosses at most one
//! hop, whatever the nodes believe about the ring. Flights that may ask a peer and flights that load here are kept apart
//! ([`Route`]), so that two nodes which take each other for the owner never wait for one another.

mod miss;
mod request;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::cache::miss::{Looked, Lookup, Miss, Stale, lookup};
use crate::clock::{Clock, Now};
use crate::entry::Entry;
use crate::fences::Fences;
use crate::fields::Fields;
use crate::fill::{Basis, Filling};
use crate::fleet::{Fleet, Purpose};
use crate::flight::{FillReader, Flights, Joined};
use crate::following::{Alone, Following};
use crate::freshness::{Freshness, RequestDirectives, Verdict, is_failure};
use crate::group::Group;
use crate::key::{GroupId, HashedKey, KeyHash};
use crate::leasing::Leasing;
use crate::memory::Ledger;
use crate::permits::{Permit, Permits};
use crate::purge::{Log, Stamp, Tags};
use crate::purging::{Dating, Spread};
use crate::remembered::{Memory, Remembered};
use crate::replicas::Replicas;
use crate::semantics::ranges::RangeSpec;
use crate::semantics::validators::{LazyValidators, StoredValidators};
use crate::semantics::variant::{VariantKey, VaryRule};
use crate::slot::Slot;
use crate::source::{Aside, Deaf, EntryId, FetchError, Fetched, InterimSink, Method};
use crate::stats::{Account, Outcome};
use crate::store::promote::Popularity;
use crate::store::{Role, Store};
use crate::warm::Warmth;

pub use self::request::{RangeAsked, Request};

/// The cache of one node.
pub struct Cache {
    pub(crate) fleet: ArcSwap<Fleet>,
    pub(crate) warmth: Warmth,
    pub(crate) store: Arc<Store<Slot>>,
    pub(crate) ledger: Ledger,
    pub(crate) flights: Arc<Flights<FlightKey, Landed>>,
    pub(crate) remembered: Remembered,
    pub(crate) fences: Fences,
    pub(crate) purges: Log,
    pub(crate) spread: Spread,
    pub(crate) leasing: Leasing,
    pub(crate) popularity: Popularity,
    /// What is known of hot keys.
    pub replicas: Replicas,
    /// Counts the requests at limited origins.
    pub permits: Arc<Permits>,
    pub(crate) clock: Arc<dyn Clock>,
    incarnation: u64,
    fills: AtomicU64,
    /// Taken while a slot is read, extended and written back, so that two variants landing at once both stay.
    pub(crate) slot_writers: Box<[Mutex<()>]>,
}

/// What the cache says to a request.
pub struct Answer {
    /// What became of the request.
    pub outcome: Outcome,
    /// Where the answer comes from.
    pub payload: Payload,
    /// What `Cache-Status` says beside the outcome.
    pub report: Report,
    /// Which purges a stored entry is not older than.
    pub stamp: Stamp,
}

/// Where the bytes of an answer come from.
#[allow(clippy::large_enum_variant, reason = "one lives per request, and a box would be an allocation on every miss")]
pub enum Payload {
    /// A stored entry. It may be incomplete ([`crate::entry::Body::is_whole`]), but only for a request whose one range it
    /// holds: [`crate::entry::Body::slice`] gives that.
    Entry(Entry),
    /// A response that is arriving: its head is known, its body is read as it comes. To a request for a range it may be a
    /// whole 200, out of which the range is cut, or a 206 that goes as it is.
    Stream(Arc<Head>, Following),
    /// The cache has no part in this: the client's own request goes to the pass-through lane. The word says why.
    Pass(&'static str),
    /// No answer could be had.
    Failure {
        /// 502, 503 or 504.
        status: u16,
        /// Short and fit for a client.
        reason: Cow<'static, str>,
    },
}

/// The parameters of `Cache-Status` (RFC 9211) that the outcome alone does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// `fwd`: why the request went further, in RFC 9211's words; `None` for a hit.
    pub forward: Option<&'static str>,
    /// `fwd-status`: status of the origin's answer where it differs from the one sent.
    pub forward_status: Option<u16>,
    /// Whether the request waited for another's fill.
    pub collapsed: bool,
    /// Whether the response was or will be stored here.
    pub stored: bool,
    /// `detail`, such as `hot`.
    pub detail: Option<&'static str>,
    /// What the owner reported, when a peer answered.
    pub owner: Option<OwnerReport>,
}

/// The owner's part of `Cache-Status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnerReport {
    /// Whether the owner answered from its memory without asking the origin.
    pub hit: bool,
    /// Whether what it answered with is stale, as the rules allow; without `hit`, after the origin failed.
    pub stale: bool,
    /// Whether the origin confirmed what the owner answered with.
    pub revalidated: bool,
    /// Remaining freshness in seconds at the owner, where it could be stored.
    pub ttl_seconds: Option<i64>,
}

/// The head of a response that is arriving.
#[derive(Clone, Debug)]
pub struct Head {
    /// Final status code.
    pub status: u16,
    /// End-to-end fields as they go to clients, as in [`Entry::fields`].
    pub fields: Fields,
    /// What stands in their place for the one whose request caused the fill, with the validators in it, if it may see more.
    pub for_causer: Option<Box<(Fields, StoredValidators)>>,
    /// Length of the body where it is known.
    pub content_length: Option<u64>,
    /// Freshness facts.
    pub freshness: Freshness,
    /// Validators; see [`Head::validators`].
    pub(crate) lazy_validators: LazyValidators,
    /// Which fill this is.
    pub id: EntryId,
    /// As [`Entry::body_id`], of what is arriving.
    pub body_id: EntryId,
    /// How the response varies.
    pub rule: VaryRule,
    /// Which of its variants this is.
    pub variant: VariantKey,
    /// What we sent in the fields that `rule` names.
    pub sent: Fields,
    /// Whether readers other than the one whose request caused the fill may have it.
    pub shareable: bool,
    /// Whether the rules allow storing it.
    pub storable: bool,
    /// Whether this node will store it, unless it breaks.
    pub stored: bool,
    /// What the owner reported, when a peer answered.
    pub owner: Option<OwnerReport>,
    /// The names under which the response can be purged beside its key.
    pub tags: Tags,
    /// Which purges the response is not older than.
    pub dating: Dating,
}

impl Head {
    /// What conditional requests are compared with.
    pub fn validators(&self) -> &StoredValidators {
        self.lazy_validators.of(&self.fields)
    }
}

/// What a flight tells its readers at the head.
#[derive(Clone)]
pub enum Landed {
    /// A response whose body is streaming.
    Streaming(Arc<Head>),
    /// There is an entry already: of a fill that landed just before ([`Outcome::Hit`]), or confirmed by the origin or the owner
    /// ([`Outcome::Revalidated`], or [`Outcome::Stale`] when the owner's own is stale), with what the owner reported and
    /// the purges that it is not older than.
    Entry(Entry, Outcome, Option<OwnerReport>, Dating),
}

/// What is collapsed into one flight.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct FlightKey {
    pub(crate) group: GroupId,
    pub(crate) key: Bytes,
    pub(crate) route: Route,
    pub(crate) kind: FlightKind,
    /// What the client said of caching, where a peer is told of it: its answer follows from that, and is not for those who
    /// said something else. The origin's answer is news to all of them.
    pub(crate) directives: Option<Box<RequestDirectives>>,
    /// The fence of the key when the flight was wanted: what began before an invalidation is joined by nobody after it.
    pub(crate) fence: u64,
}

/// Which way a flight's fill goes. Flights of different routes never wait for one another in a circle: those that load here
/// wait for the origin alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// May ask peers, as the ring says.
    Fleet,
    /// Loads from this node's origin.
    Here,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum FlightKind {
    Whole(VariantKey),
    Head(VariantKey),
    Part(VariantKey, RangeAsked),
}

/// A place in a flight.
struct Boarded {
    reader: FillReader<Landed>,
    /// Whether this request opened it.
    causer: bool,
    /// The fence of the key before.
    fence: u64,
}

/// A fresh answer from memory.
pub struct Hit {
    /// The entry.
    pub entry: Entry,
    /// Which memory it lies in.
    pub role: Role,
}

impl Cache {
    /// An empty cache that is a fleet of one until [`Cache::set_fleet`]. `incarnation` is a random number that no other life of
    /// any node has.
    pub fn new(store: Arc<Store<Slot>>, clock: Arc<dyn Clock>, incarnation: u64) -> Arc<Self> {
        let ledger = store.ledger().clone();
        Arc::new(Cache {
            fleet: ArcSwap::from_pointee(Fleet::alone()),
            warmth: Warmth::default(),
            store,
            popularity: Popularity::new(&ledger),
            purges: Log::new(incarnation, &ledger),
            spread: Spread::default(),
            leasing: Leasing::default(),
            replicas: Replicas::default(),
            permits: Arc::default(),
            ledger,
            flights: Flights::new(WAITERS_PER_KEY_MAX),
            remembered: Remembered::default(),
            fences: Fences::default(),
            clock,
            incarnation,
            fills: AtomicU64::new(0),
            slot_writers: (0..64).map(|_| Mutex::default()).collect(),
        })
    }

    /// How many keys are in flight.
    pub fn in_flight(&self) -> usize {
        self.flights.count()
    }

    /// Reads the clock once for a request.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// The shortest way: a fresh and whole entry for a `GET` or `HEAD` without anything that forbids it. Counts a get and a hit when it
    /// finds one, and nothing otherwise: the request then goes on to [`Cache::get`].
    #[inline]
    pub fn find_fresh(
        &self,
        group: &Group,
        key: &HashedKey<'_>,
        forwarded: impl FnOnce() -> Fields,
        directives: &RequestDirectives,
        now: Now,
    ) -> Option<Hit> {
        if !self.leasing.lets_memory_answer(now) {
            return None;
        }
        let (entry, role) = self.store.find_with(key, |slot, role| {
            let entry = slot.select(forwarded)?;
            let answers =
                entry.freshness.verdict(&group.rules, directives, now) == Verdict::Fresh && entry.body.is_whole();
            answers.then(|| (entry.clone(), role))
        })??;
        if role == Role::Hot {
            // Else a wanted copy would look unwanted when it has to be renewed.
            self.popularity.observe(key.hash(), now);
        }
        group.stats.gets.increment();
        group.stats.cache_hits.increment();
        Some(Hit { entry, role })
    }

    /// Answers a client of this node that hears no interim answers.
    pub async fn get(self: &Arc<Self>, group: &Arc<Group>, request: &Request) -> Answer {
        self.get_hearing(group, request, &Deaf).await
    }

    /// Answers a client of this node; `interims` hears the interim answers that come while it waits, and is not called but
    /// from within this future.
    pub async fn get_hearing(
        self: &Arc<Self>,
        group: &Arc<Group>,
        request: &Request,
        interims: &dyn InterimSink,
    ) -> Answer {
        group.stats.gets.increment();
        let account = Account::of(&group.stats);
        let (route, miss) = {
            let now = self.now();
            // First: with the lease goes that all purges acknowledged before the request are applied by now.
            let leased = self.leasing.lets_memory_answer(now);
            let asked = self.purges.applied();
            let route = match self.fleet.load().owns(&request.key) {
                true => Route::Here,
                false => Route::Fleet,
            };
            let key = HashedKey::new(group.id, &request.key);
            // The look-up was counted by `find_fresh`, which every client's request comes from; but what landed since then was not
            // found by that one.
            let mut found = self.store.peek(&key);
            if let Lookup::Fresh(_) = lookup(group, request, found.clone(), now) {
                found = self.store.find(&key);
            }
            match self.consult(group, request, route, Looked { leased, asked, found }, account, now) {
                Ok(answer) => return answer,
                Err(miss) => (route, miss),
            }
        };
        self.seek(group, request, route, &miss, account, interims).await
    }

    /// Answers a peer, from memory or from the origin; no further peer is asked. The flight is shared with this node's own
    /// clients where this node is the owner. A body that the peer has already is not sent again: then the answer is a head
    /// with [`Hop::not_modified`](crate::source::Hop::not_modified).
    ///
    /// # Errors
    /// [`FetchError::Refused`] with the failure that a client of this node would get.
    pub async fn get_as_owner(
        self: &Arc<Self>,
        group: &Arc<Group>,
        request: &Request,
        aside: Aside<'_>,
    ) -> Result<Fetched, FetchError> {
        group.stats.gets.increment();
        group.stats.server_requests.increment();
        let mut fetched = self.answer_here(group, request, Account::of(&group.stats), aside).await?;
        if let Some(hop) = &mut fetched.hop {
            self.asked_by_peer(group, &request.key, hop, self.now());
        }
        Ok(fetched)
    }

    /// What [`Cache::get_as_owner`] does, for a fill that found no peer to answer it. Its question has been counted already.
    pub(crate) async fn load_here(
        self: &Arc<Self>,
        group: &Arc<Group>,
        request: &Request,
        aside: Aside<'_>,
    ) -> Result<Fetched, FetchError> {
        self.answer_here(group, request, Account::default(), aside).await
    }

    async fn answer_here(
        self: &Arc<Self>,
        group: &Arc<Group>,
        request: &Request,
        account: Account<'_>,
        aside: Aside<'_>,
    ) -> Result<Fetched, FetchError> {
        let miss = {
            let now = self.now();
            let leased = self.leasing.lets_memory_answer(now);
            let asked = self.purges.applied();
            let found = self.store.find(&HashedKey::new(group.id, &request.key));
            self.consult(group, request, Route::Here, Looked { leased, asked, found }, account, now)
        };
        let mut answer = match miss {
            Ok(answer) => answer,
            Err(miss) => self.seek(group, request, Route::Here, &miss, account, aside.interims).await,
        };
        if let Payload::Pass(_) = answer.payload {
            // A peer has no pass-through lane to hand its request to: it gets an answer of its own.
            let reader = self.open_alone(group, request.clone(), Route::Here, None);
            answer = match reader.head_hearing(aside.interims).await {
                Ok(Landed::Streaming(head)) => {
                    let reader = self.following(group, request, Route::Here, head, reader);
                    Answer::from_stream(reader, "bypass", false)
                }
                Ok(Landed::Entry(entry, outcome, _, dating)) => Answer::from_entry(entry, outcome, None, dating.stamp),
                Err(error) => Answer::from_error(error, "bypass"),
            };
        }
        self.for_peer(request, answer, aside.have)
    }

    /// What memory says to a request, and what is remembered of its key; else what the request goes further with.
    #[allow(clippy::result_large_err, reason = "neither is an error, and a box would be an allocation on every miss")]
    fn consult(
        self: &Arc<Self>,
        group: &Arc<Group>,
        request: &Request,
        route: Route,
        looked: Looked,
        account: Account<'_>,
        now: Now,
    ) -> Result<Answer, Miss> {
        let Looked { leased, asked, found } = looked;
        let key = HashedKey::new(group.id, &request.key);
        let known = found.as_ref().map(|(slot, _)| slot.clone());
        let mut miss = match lookup(group, request, found, now) {
            found if !leased => Miss::without_lease(found, asked),
            Lookup::Fresh(hit) => {
                account.hit();
                return Ok(Answer::from_entry(hit.entry, Outcome::Hit, detail_of(hit.role), asked));
            }
            Lookup::Stale(hit) => match self.stale_verdict(group, request, route, &hit.entry, now) {
                Verdict::Fresh | Verdict::StaleAccepted => {
                    account.hit();
                    return Ok(Answer::from_entry(hit.entry, Outcome::Stale, detail_of(hit.role), asked));
                }
                Verdict::StaleWhileRevalidate => {
                    account.hit();
                    self.refresh_behind(group, request, &hit.entry, &asked);
                    return Ok(Answer::from_entry(hit.entry, Outcome::Stale, detail_of(hit.role), asked));
                }
                Verdict::Revalidate { reason, if_error, if_slow } => {
                    let forward = if reason.is_by_request() { "request" } else { "stale" };
                    let stale = Stale { entry: hit.entry, if_error, if_slow };
                    Miss { stale: Some(stale), ..Miss::because(forward, asked) }
                }
            },
            Lookup::Incomplete(entry) => Miss { incomplete: Some(entry), ..Miss::because("partial", asked) },
            Lookup::Absent(reason) => Miss::because(reason, asked),
        };
        // The fleet is one cache (RFC 9111 section 5.2.1.7): who does not own the key asks the owner, which asks nobody.
        let only_if_cached = request.directives.only_if_cached;
        if only_if_cached && route == Route::Here {
            return Ok(Answer::failure(504, "not in this cache, and the request wants nothing else"));
        }
        match self.remembered.recall(key.hash(), now).filter(|_| !only_if_cached) {
            Some(Memory::Uncacheable) if route == Route::Fleet || self.fleet.load().owns(&request.key) => {
                return Ok(Answer::pass("uncacheable"));
            }
            Some(Memory::Failed(status)) => {
                let failure = || Answer::failure(status, "the origin could not be asked a moment ago");
                return Ok(miss.noting_lease(miss.in_place_of_failure(None).unwrap_or_else(failure)));
            }
            _ => {}
        }
        miss.variant = known.and_then(|slot| slot.rule().variant_key(&request.forwarded)).unwrap_or_default();
        if route == Route::Fleet {
            self.popularity.observe(key.hash(), now);
        }
        account.miss(miss.forward);
        Err(miss)
    }

    /// Goes further with what memory cannot answer: follows or opens a flight.
    async fn seek(
        self: &Arc<Self>,
        group: &Arc<Group>,
        request: &Request,
        route: Route,
        miss: &Miss,
        account: Account<'_>,
        interims: &dyn InterimSink,
    ) -> Answer {
        // In a box, as everything that is rare and waits: most requests that wait here do so in large numbers.
        if request.range.is_some()
            && let Some(answer) = Box::pin(self.follow_whole(group, request, route, miss, account, interims)).await
        {
            return answer;
        }
        miss.noting_lease(self.follow(group, request, route, miss, account, interims).await)
    }

    /// Joins a running fill of the whole that will soon have the range that is wanted, instead of asking for the same bytes
    /// once more.
    async fn follow_whole(
        self: &Arc<Self>,
        group: &Arc<Group>,
        request: &Request,
        route: Route,
        miss: &Miss,
        account: Account<'_>,
        interims: &dyn InterimSink,
    ) -> Option<Answer> {
        let range = request.range.as_ref().filter(|_| !request.authorization && !miss.anew)?;
        let whole = Request { range: None, ..request.clone() };
        let flight_key = self.flight_key(group, &whole, route, miss.variant.clone());
        let reader = self.flights.follow(&flight_key)?;
        let arrived_bytes = match reader.progress() {
            (Some(_), arrived_bytes) => arrived_bytes,
            // Where the range ends is known before the head only if the client said so.
            (None, _) => match range.set.specs() {
                [RangeSpec::Between(range)] if range.last < FOLLOWED_AHEAD_BYTES => 0,
                _ => return None,
            },
        };
        // A failure is left to the flight of the range, which has the rules for it.
        let Ok(Landed::Streaming(head)) = reader.head_hearing(interims).await else { return None };
        let part = request.part(head.status, &head.fields, || head.validators(), head.content_length)?;
        let ours = head.rule.variant_key(&request.forwarded).is_some_and(|variant| variant == head.variant);
        if !self.may_have(group, &request.key, &head.tags, head.dating.reach, &miss.asked) {
            return None;
        }
        if !ours || !head.shareable || part.last >= arrived_bytes.saturating_add(FOLLOWED_AHEAD_BYTES) {
            return None;
        }
        account.load(false);
        let reader = self.following(group, request, route, head, reader);
        Some(Answer::from_stream(reader, miss.forward, true))
    }

    /// Joins the flight that may bring the answer, or opens it and begins its fill; `None` where too many wait for it.
    fn board(
        self: &Arc<Self>,
        group: &Arc<Group>,
        request: &Request,
        route: Route,
        miss: &Miss,
        variant: VariantKey,
    ) -> Option<Boarded> {
        let flight_key = self.flight_key(group, request, route, variant);
        let fence = flight_key.fence;
        let joined = match request.authorization {
            true => {
                let (reader, fill) = self.flights.alone(flight_key);
                Joined::Opened(reader, fill)
            }
            false => self.flights.join(flight_key),
        };
        match joined {
            Joined::Following(reader) => Some(Boarded { reader, causer: false, fence }),
            Joined::Opened(reader, fill) => {
                self.filling(group, request.clone(), miss.basis(), miss.asked.clone()).start(fill);
                Some(Boarded { reader, causer: true, fence })
            }
            Joined::Full => None,
        }
    }

    /// Joins or opens flights until one brings an answer that this request may have.
    async fn follow(
        self: &Arc<Self>,
        group: &Arc<Group>,
        request: &Request,
        route: Route,
        miss: &Miss,
        mut account: Account<'_>,
        interims: &dyn InterimSink,
    ) -> Answer {
        let mut variant = miss.variant.clone();
        let fence_at_first = miss.anew.then(|| self.fences.of(KeyHash::of(group.id, &request.key)));
        // The first flight may turn out to be another variant's; the second is opened for ours. A third try only follows an
        // origin that changes its Vary in between.
        for _ in 0..FLIGHTS_PER_REQUEST_MAX {
            let boarded = self.board(group, request, route, miss, variant.clone());
            let Some(Boarded { reader, causer, fence }) = boarded else {
                return Answer::failure(503, "too many requests wait for this");
            };
            // Its question may have been sent before this request came. The next one is for all who wait now.
            if !causer && Some(fence) == fence_at_first {
                let _ = reader.head_hearing(interims).await;
                self.fences.separate(KeyHash::of(group.id, &request.key), fence);
                continue;
            }
            std::mem::take(&mut account).load(causer);
            let landed = match &miss.stale {
                Some(stale) if let Some(patience) = stale.if_slow => {
                    match Box::pin(tokio::time::timeout(patience, reader.head_hearing(interims))).await {
                        Ok(landed) => landed,
                        Err(_) => {
                            // The slow answer is still wanted: by those who come next.
                            tokio::spawn(read_to_end(reader));
                            return miss.stale_answer(stale, "slow", None);
                        }
                    }
                }
                _ => reader.head_hearing(interims).await,
            };
            if let Ok(landed) = &landed
                && let (tags, reach) = landed.tags_and_reach()
                && !self.may_have(group, &request.key, tags, reach, &miss.asked)
            {
                // A purge that was over when this request came matches what the flight brought. Who comes now shall not join it
                // either.
                self.fences.separate(KeyHash::of(group.id, &request.key), fence);
                continue;
            }
            match landed {
                Err(error) => {
                    let failure = || Answer::from_error(error, miss.forward);
                    // Nothing has failed for one that was to be asked for nothing.
                    let stale = miss.in_place_of_failure(None).filter(|_| !request.directives.only_if_cached);
                    return stale.unwrap_or_else(failure);
                }
                Ok(Landed::Entry(entry, outcome, owner, dating)) => {
                    // The entry of another variant than ours is somebody else's; ours has its own flight.
                    let slot_variant = self.variant_of(group, request);
                    if slot_variant == variant || causer {
                        let mut answer = Answer::from_entry(entry, outcome, None, dating.stamp);
                        answer.report.collapsed = !causer;
                        if outcome != Outcome::Hit {
                            answer.report.forward = Some(miss.forward);
                            // What an owner says in place of a body that is here already is a 304 but for the name.
                            answer.report.forward_status = Some(304);
                        }
                        answer.report.owner = owner;
                        return answer;
                    }
                    variant = slot_variant;
                }
                Ok(Landed::Streaming(head)) => {
                    // An owner that has a failure in memory has chosen it; one that failed just now might have had less than we.
                    let chosen = head.owner.is_some_and(|owner| owner.hit);
                    if is_failure(head.status)
                        && !chosen
                        && let Some(answer) = miss.in_place_of_failure(Some(head.status))
                    {
                        return answer;
                    }
                    if causer {
                        let reader = self.following(group, request, route, head, reader);
                        return Answer::from_stream(reader, miss.forward, false);
                    }
                    let Some(ours) = head.rule.variant_key(&request.forwarded).filter(|_| head.shareable) else {
                        return Answer::pass("not-shareable");
                    };
                    if ours == head.variant {
                        let reader = self.following(group, request, route, head, reader);
                        return Answer::from_stream(reader, miss.forward, true);
                    }
                    variant = ours;
                }
            }
        }
        Answer::pass("vary-unstable")
    }

    /// Refreshes a stale entry with nobody waiting; many askers open one flight.
    pub(crate) fn refresh_behind(
        self: &Arc<Self>,
        group: &Arc<Group>,
        request: &Request,
        stale: &Entry,
        asked: &Stamp,
    ) {
        // Authorization, ranges and directives of this one client have no part in what everybody gets; but where there are
        // only parts, nobody has asked for the whole.
        let request = Request {
            method: Method::Get,
            range: request.range.clone().filter(|_| !stale.body.is_whole()),
            authorization: false,
            directives: RequestDirectives::default(),
            forwarded: request.forwarded.without(|name| name.eq_ignore_ascii_case("authorization")),
            ..request.clone()
        };
        let flight_key = self.flight_key(group, &request, Route::Here, self.variant_of(group, &request));
        if let Joined::Opened(reader, fill) = self.flights.join(flight_key) {
            self.filling(group, request, Basis::Confirm(stale.clone()), asked.clone()).start(fill);
            // The refresh has a reader of its own: a fill without readers would end.
            tokio::spawn(read_to_end(reader));
        }
    }

    /// The variant by what is known of the key's `Vary`; the empty one while nothing is known.
    fn variant_of(&self, group: &Group, request: &Request) -> VariantKey {
        let slot = self.store.peek(&HashedKey::new(group.id, &request.key));
        slot.and_then(|(slot, _)| slot.rule().variant_key(&request.forwarded)).unwrap_or_default()
    }

    fn flight_key(&self, group: &Group, request: &Request, route: Route, variant: VariantKey) -> FlightKey {
        let kind = match (request.method, &request.range) {
            (Method::Head, _) => FlightKind::Head(variant),
            (Method::Get, None) => FlightKind::Whole(variant),
            (Method::Get, Some(range)) => FlightKind::Part(variant, range.clone()),
        };
        let fence = self.fences.of(KeyHash::of(group.id, &request.key));
        let told = route == Route::Fleet && request.directives != RequestDirectives::default();
        let directives = told.then(|| Box::new(request.directives));
        FlightKey { group: group.id, key: request.key.clone(), route, kind, directives, fence }
    }

    /// The identity of what is going to be stored under `key` without a flight.
    pub(crate) fn flight_of_key(&self, group: &Group, key: &Bytes) -> FlightKey {
        let fence = self.fences.of(KeyHash::of(group.id, key));
        let kind = FlightKind::Whole(VariantKey::default());
        FlightKey { group: group.id, key: key.clone(), route: Route::Here, kind, directives: None, fence }
    }

    /// Opens a flight that this request shares with nobody; `ahead_bytes_max` as in [`Aside`].
    pub(crate) fn open_alone(
        self: &Arc<Self>,
        group: &Arc<Group>,
        request: Request,
        route: Route,
        ahead_bytes_max: Option<u32>,
    ) -> FillReader<Landed> {
        let (reader, fill) = self.flights.alone(self.flight_key(group, &request, route, VariantKey::default()));
        let filling = self.filling(group, request, Basis::Nothing, self.purges.applied());
        Filling { ahead_bytes_max, ..filling }.start(fill);
        reader
    }

    /// The body of `head` for this request.
    fn following(
        self: &Arc<Self>,
        group: &Arc<Group>,
        request: &Request,
        route: Route,
        head: Arc<Head>,
        reader: FillReader<Landed>,
    ) -> Following {
        if reader.has_all() {
            return Following::of_flight(head, reader);
        }
        let (cache, group, request) = (self.clone(), group.clone(), request.clone());
        Following::new(head, reader, Alone { cache, group, request, route })
    }

    /// A fill that begins when it is told to.
    pub(crate) fn filling(
        self: &Arc<Self>,
        group: &Arc<Group>,
        request: Request,
        basis: Basis,
        asked: Stamp,
    ) -> Filling {
        // Before the fill takes its stamp: a purge that does not know the group yet is then in it.
        self.spread.note_group(group);
        let (cache, group) = (self.clone(), group.clone());
        Filling { cache, group, request, basis, asked, peeks: true, ahead_bytes_max: None }
    }

    /// What a request needs to go to the group's origin; `None` where that is not limited.
    ///
    /// # Errors
    /// [`FetchError::Refused`] with 503: too many are there, and too many wait.
    pub async fn permit(self: &Arc<Self>, group: &Group) -> Result<Option<Permit>, FetchError> {
        let Some(limit) = group.limit else { return Ok(None) };
        let cache = self.clone();
        let fleet = move || cache.fleet.load_full();
        self.permits.take(&group.name, limit, fleet, self.incarnation()).await.map(Some)
    }

    /// Grants a permit to the node in its life `asker`.
    ///
    /// # Errors
    /// As [`Permits::grant`].
    pub async fn grant_permit(&self, group: &Group, purpose: Purpose, asker: u64) -> Result<Fetched, FetchError> {
        match group.limit {
            Some(limit) => self.permits.grant(&group.name, limit, purpose, asker, &self.fleet.load_full()).await,
            // A reload under way: by this node's configuration there is no limit, so another one has to count.
            None => Err(FetchError::unreachable("this node knows of no limit")),
        }
    }

    /// The next entry id of this node.
    pub(crate) fn next_entry_id(&self) -> EntryId {
        EntryId { incarnation: self.incarnation, fill: self.fills.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// The name of this life of this node in entry ids.
    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// A number from 0 to 1 that differs from fill to fill, for the spreading of expiry.
    pub(crate) fn jitter(&self) -> f64 {
        let mixed = twox_hash::XxHash3_64::oneshot_with_seed(
            self.incarnation,
            &self.fills.load(Ordering::Relaxed).to_le_bytes(),
        );
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether what a peer sends for this flight is asked for so often here that a copy of our own pays.
    pub(crate) fn deserves_hot_copy(&self, key: &HashedKey<'_>, now: Now) -> bool {
        self.popularity.deserves_hot_copy(key.hash(), self.store.hot_victim(key.group()), now)
    }

    pub(crate) fn slot_writer(&self, key: &HashedKey<'_>) -> &Mutex<()> {
        &self.slot_writers[key.hash().get() as usize % self.slot_writers.len()]
    }
}

/// A reader for a fill that nobody waits for: without one it would end.
pub(crate) async fn read_to_end(mut reader: FillReader<Landed>) {
    if let Ok(Landed::Streaming(_)) = reader.head().await {
        while let Ok(Some(_)) = reader.chunk().await {}
    }
}

fn detail_of(role: Role) -> Option<&'static str> {
    match role {
        Role::Main => None,
        Role::Hot => Some("hot"),
    }
}

impl Answer {
    fn from_entry(entry: Entry, outcome: Outcome, detail: Option<&'static str>, stamp: Stamp) -> Self {
        let report = Report { detail, ..Report::default() };
        Answer { outcome, payload: Payload::Entry(entry), report, stamp }
    }

    fn from_stream(reader: Following, forward: &'static str, collapsed: bool) -> Self {
        let mut head = reader.head().clone();
        if let Some(own) = head.for_causer.as_deref().filter(|_| !collapsed) {
            let (fields, validators) = own.clone();
            let lazy_validators = validators.into();
            head = Arc::new(Head { fields, lazy_validators, for_causer: None, ..Head::clone(&head) });
        }
        let report = Report {
            forward: Some(forward),
            forward_status: None,
            collapsed,
            stored: head.stored,
            detail: None,
            owner: head.owner,
        };
        // The owner may have answered with something stale: so has this node then.
        let stale = head.owner.is_some_and(|owner| owner.stale);
        let outcome = if stale { Outcome::Stale } else { Outcome::Miss };
        Answer { outcome, payload: Payload::Stream(head, reader), report, stamp: Stamp::default() }
    }

    fn pass(reason: &'static str) -> Self {
        let report = Report { forward: Some("bypass"), detail: Some(reason), ..Report::default() };
        Answer { outcome: Outcome::Pass, payload: Payload::Pass(reason), report, stamp: Stamp::default() }
    }

    /// A failure of ours.
    pub(crate) fn failure(status: u16, reason: impl Into<Cow<'static, str>>) -> Self {
        let payload = Payload::Failure { status, reason: reason.into() };
        Answer { outcome: Outcome::Error, payload, report: Report::default(), stamp: Stamp::default() }
    }

    fn from_error(error: FetchError, forward: &'static str) -> Self {
        let mut answer = match error {
            FetchError::Refused { status, reason } => Answer::failure(status, reason),
            FetchError::Unreachable(_) => Answer::failure(502, "the origin cannot be reached"),
            FetchError::Broken(_) => Answer::failure(502, "the answer broke off before it began"),
        };
        answer.report.forward = Some(forward);
        answer
    }
}

/// How many readers may wait for one key (interface: then 503).
pub const WAITERS_PER_KEY_MAX: usize = 20_000;

/// How far behind what has arrived of a whole body a range may end, in bytes, so that waiting for it is better than to ask for
/// it alone.
pub const FOLLOWED_AHEAD_BYTES: u64 = 1024 * 1024;

/// A request's own flight, the flight of its variant, one more for an origin that changed its `Vary` in between, one for a
/// flight that a purge by tag overtook, and without a lease one that began before.
const FLIGHTS_PER_REQUEST_MAX: usize = 5;

#[cfg(test)]
mod tests;
