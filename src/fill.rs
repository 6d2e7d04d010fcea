//! The fill: one task per flight, which asks, receives, hands out and stores.
//!
//! ```text
//! second look in the store ── load ── head: what may be shared, what is stored ── body, chunk by chunk ── entry into the store
//!                              │  ╰── 304, or the missing part: with what we have, an answer; if it does not fit, load once more
//!                              │
//!                              └─ Route::Fleet: the owner, each next peer on the ring, here
//!                                 Route::Here:  the origin, with validators when there is a stale entry
//! ```
//!
//! It belongs to no client. It ends early when nobody has been reading for [`ABANDONED_GRACE`], unless the response can be
//! stored and at least half of it is here.

mod begin;
mod dating;
mod interim;
mod pour;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::cache::{Cache, FlightKey, Head, Landed, OwnerReport, Request, Route};
use crate::clock::Now;
use crate::entry::{Body, Entry, Parts};
use crate::fields::{Fields, FieldsBuilder};
use crate::fill::begin::First;
pub(crate) use crate::fill::dating::Came;
use crate::fleet::Step;
use crate::flight::{Fill, Keep};
use crate::freshness::{self, Copied, Exchange, Judgement, RequestDirectives, Target, Verdict};
use crate::group::Group;
use crate::key::HashedKey;
use crate::memory::Charge;
use crate::parts::{self, Place};
use crate::permits;
use crate::purge::{Overtaking, Stamp, Tags};
use crate::purging::Dating;
use crate::remembered::{Memory, UNCACHEABLE_LIFETIME};
use crate::semantics::forward::without_inside;
use crate::semantics::ranges::ByteRange;
use crate::semantics::validators::StoredValidators;
use crate::semantics::variant::{VariantKey, VaryRule};
use crate::slot::Slot;
use crate::source::{Aside, Ask, EntryId, FetchError, Fetched, InterimSink, Method};
use crate::stats::Outcome;
use crate::store::Role;

/// One run of a fill: everything it needs to know of the request that caused it.
pub(crate) struct Filling {
    pub cache: Arc<Cache>,
    pub group: Arc<Group>,
    pub request: Request,
    pub basis: Basis,
    /// Which purges were applied before memory was asked for the basis.
    pub asked: Stamp,
    /// Whether the previous holder of the key may be asked for what it has.
    pub peeks: bool,
    /// As [`Aside::ahead_bytes_max`].
    pub ahead_bytes_max: Option<u32>,
}

/// Whom a fill asks that may ask peers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whom {
    /// The nodes in the ring's order.
    Fleet,
    /// The same once more, after one of them answered with something that a purge had overtaken.
    FleetAgain,
    /// This one.
    Here,
}

/// What we have already of what the fill is to bring.
pub(crate) enum Basis {
    Nothing,
    /// An entry that the origin may confirm.
    Confirm(Entry),
    /// Ranges of the representation: if one range is all that is missing, the origin may send just that.
    Complete(Entry),
}

/// What the origin's answer and the basis make together.
#[allow(clippy::large_enum_variant, reason = "one lives for a moment per fill, and a box would be an allocation")]
enum Brought {
    /// A response of its own.
    Response(Fetched),
    /// The entry of the basis, confirmed by the origin or by the owner of the key.
    Confirmed(Entry, Option<OwnerReport>),
    /// Nothing: they do not fit.
    Useless,
}

/// A response with what follows from its head.
pub(crate) struct Received {
    fetched: Fetched,
    head: Head,
    extent: Extent,
    /// Where the entry will go; `None` when it is not stored here.
    role: Option<Role>,
    /// For the memory of what arrives, when it is to be stored.
    reservation: Option<Charge>,
}

/// How much of the representation a response has.
#[derive(Clone, Copy)]
pub(crate) enum Extent {
    Whole,
    Part(Place),
}

/// Where an entry goes in the store.
pub(crate) struct Shelf {
    pub role: Role,
    pub rule: VaryRule,
    pub variant: VariantKey,
}

impl Filling {
    /// Runs the fill to its end, whatever that is.
    async fn run(mut self, fill: Fill<FlightKey, Landed>, mut first: Option<First>) {
        if first.is_none()
            && let Some((entry, stamp)) = self.landed_meanwhile(&fill, self.cache.now())
        {
            return fill.land(Landed::Entry(entry, Outcome::Hit, None, Dating::of(stamp)), Bytes::new());
        }
        let mut whom = Whom::Fleet;
        loop {
            let known = match &first {
                Some(first) => first.known.clone(),
                None => self.before_asking(),
            };
            let interims = self.flight_sink(&fill);
            let loaded = tokio::select! {
                biased;
                loaded = self.load(fill.key().route, whom, first.take(), &interims) => loaded,
                () = fill.abandoned(ABANDONED_GRACE) => Err(FetchError::broken("nobody waited any longer")),
            };
            let (fetched, asked_at) = match loaded {
                Ok(loaded) => loaded,
                Err(error) => {
                    self.remember_failure(&fill, &error, &known);
                    return fill.fail(error);
                }
            };
            let mut came = Came::with(&fetched, asked_at, known);
            if self.is_outdated(&fetched, &came) {
                // Nobody who comes now may wait for the next answer; who is on board may have it (see `purge`).
                fill.close();
                match (fill.key().route, whom) {
                    // Who had the key before need not be a member, and then nobody waited for it to hear of the purge.
                    (Route::Here, _) if self.peeks => {
                        self.peeks = false;
                        continue;
                    }
                    (Route::Fleet, Whom::Fleet) => {
                        self.cache.tell_owner(&self.request.key);
                        whom = Whom::FleetAgain;
                        continue;
                    }
                    // The same holds of a peer that still knows nothing of it.
                    (Route::Fleet, Whom::FleetAgain) => {
                        whom = Whom::Here;
                        continue;
                    }
                    // This node had not applied the purge when it was asked, and nothing was acknowledged.
                    (Route::Fleet, Whom::Here) | (Route::Here, _) => {
                        came.dating.reach = self.cache.purges.known().arrival;
                    }
                }
            }
            match self.bring(&fill, fetched, &came) {
                Brought::Response(fetched) => {
                    if self.request.method == Method::Head {
                        self.update_by_head(&fill, &fetched, &came);
                    }
                    let received = self.receive(fetched, came, fill.key().route);
                    return self.stream(fill, received).await;
                }
                Brought::Confirmed(entry, owner) => {
                    let stale = owner.is_some_and(|owner| owner.stale);
                    let outcome = if stale { Outcome::Stale } else { Outcome::Revalidated };
                    fill.begin(Landed::Entry(entry, outcome, owner, came.dating), Keep::Whole);
                    return fill.finish();
                }
                Brought::Useless => match std::mem::replace(&mut self.basis, Basis::Nothing) {
                    Basis::Nothing => {
                        return fill.fail(FetchError::refused(502, "an answer to a question that was not asked"));
                    }
                    // Once more, without conditions (RFC 9111 section 4.3.4).
                    Basis::Confirm(_) | Basis::Complete(_) => {}
                },
            }
        }
    }

    /// Two requests miss; the first one's fill lands and leaves the map of flights; then the second one, which looked in the
    /// store before, opens a flight. Hence the second look.
    fn landed_meanwhile(&self, fill: &Fill<FlightKey, Landed>, now: Now) -> Option<(Entry, Stamp)> {
        if matches!(self.basis, Basis::Confirm(_)) || !self.cache.leasing.lets_memory_answer(now) {
            return None;
        }
        let stamp = self.cache.purges.applied();
        let key = HashedKey::new(fill.key().group, &self.request.key);
        let (slot, _) = self.cache.store.peek(&key)?;
        let entry = slot.select(|| self.request.forwarded.clone())?;
        let verdict = entry.freshness.verdict(&self.group.rules, &self.request.directives, now);
        (verdict == Verdict::Fresh && self.request.is_answered_by(entry)).then(|| (entry.clone(), stamp))
    }

    /// Asks until somebody answers. The time is that at which the answering question was sent.
    async fn load(
        &self,
        route: Route,
        whom: Whom,
        mut first: Option<First>,
        interims: &dyn InterimSink,
    ) -> Result<(Fetched, Now), FetchError> {
        if route == Route::Here {
            if self.peeks
                && let Some(peeked) = self.peek_at_previous_holder().await
            {
                return Ok(peeked);
            }
            return self.load_from_origin(interims).await;
        }
        let stats = &self.group.stats;
        let steps = match &first {
            Some(first) => first.fleet.steps(&self.request.key),
            None => self.cache.fleet.load().steps(&self.request.key),
        };
        let asked = first.as_ref().map(|first| first.peer.clone());
        let is_asked =
            |step: &Step| matches!((step, &asked), (Step::Peer(peer), Some(asked)) if Arc::ptr_eq(peer, asked));
        let first_step = asked.iter().map(|peer| Step::Peer(peer.clone()));
        // Who was asked already comes first, and once, whatever is known of its health by now.
        let steps = first_step.chain(steps.into_iter().filter(|step| !is_asked(step)));
        let last_resort = (whom == Whom::Here).then_some(Step::Here);
        for step in steps.filter(|_| whom != Whom::Here).chain(last_resort) {
            let mut asked_at = self.cache.now();
            match step {
                Step::Peer(peer) => {
                    let answer = match first.take() {
                        Some(first) => {
                            asked_at = first.asked_at;
                            first.answer.answer(interims).await
                        }
                        None => {
                            let (have, ahead_bytes_max) = (self.have(), self.ahead_bytes_max);
                            peer.fetch_with(&self.ask_peer()?, Aside { have, interims, ahead_bytes_max }).await
                        }
                    };
                    match answer {
                        Ok(fetched) => {
                            stats.peer_loads.increment();
                            return Ok((fetched, asked_at));
                        }
                        Err(refused @ FetchError::Refused { .. }) => {
                            stats.peer_loads.increment();
                            return Err(refused);
                        }
                        Err(error) => {
                            stats.peer_errors.increment();
                            tracing::debug!(group = %self.group.name, %error, "a peer could not be asked");
                        }
                    }
                }
                // This node's turn on the ring, or the last resort: the flight that peers' questions join, too.
                Step::Here => {
                    let fetched = self
                        .cache
                        .load_here(&self.group, &self.request, Aside { interims, ..Aside::default() })
                        .await?;
                    return Ok((fetched, asked_at));
                }
            }
        }
        Err(FetchError::unreachable("no source"))
    }

    async fn load_from_origin(&self, interims: &dyn InterimSink) -> Result<(Fetched, Now), FetchError> {
        let stats = &self.group.stats;
        let ask = self.ask_origin()?;
        let permit = self.cache.permit(&self.group).await?;
        let asked_at = self.cache.now();
        match self.group.source.fetch_with(&ask, Aside { interims, ..Aside::default() }).await {
            Ok(fetched) => {
                stats.local_loads.increment();
                Ok((permits::held_by_body(fetched, permit), asked_at))
            }
            Err(error) => {
                stats.local_load_errs.increment();
                tracing::warn!(group = %self.group.name, %error, "the origin could not be asked");
                Err(match error {
                    FetchError::Unreachable(_) => FetchError::refused(502, "the origin cannot be reached"),
                    FetchError::Broken(_) => FetchError::refused(502, "the origin broke off"),
                    refused => refused,
                })
            }
        }
    }

    /// The question to the origin: the forwarded fields, the range, or the validators of what we have.
    fn ask_origin(&self) -> Result<Ask, FetchError> {
        let mut fields = self.request.forwarded.to_builder();
        // The same in all requests, so that nothing can vary with it.
        fields.push_checked(b"Surrogate-Capability", freshness::SURROGATE_CAPABILITY.as_bytes());
        self.add_range(&mut fields);
        match &self.basis {
            Basis::Nothing => {}
            // A condition comes before the range (RFC 9110 section 13.2.2): 304, or the range of something new.
            Basis::Confirm(stale) => {
                if let Some(tag) = stale.fields().get("etag") {
                    fields.push_checked(b"If-None-Match", tag);
                }
                if let Some(date) = stale.fields().get("last-modified") {
                    fields.push_checked(b"If-Modified-Since", date);
                }
            }
            Basis::Complete(entry) => {
                let validator = entry.fields().get("etag").or_else(|| entry.fields().get("last-modified"));
                if let (Some(gap), Some(validator)) = (self.missing(entry), validator) {
                    fields.push_checked(b"Range", format!("bytes={}-{}", gap.first, gap.last).as_bytes());
                    fields.push_checked(b"If-Range", validator);
                }
            }
        }
        self.ask(fields.finish())
    }

    pub(crate) fn wants_whole(&self) -> bool {
        self.request.method == Method::Get && self.request.range.is_none()
    }

    /// The one range that makes `entry` the whole that is wanted.
    fn missing(&self, entry: &Entry) -> Option<ByteRange> {
        if !self.wants_whole() || entry.body.len() > self.group.object_bytes_max {
            return None;
        }
        parts::only_gap(&entry.body)
    }

    /// The question to a peer: the forwarded fields, the range, and what the client said of caching.
    pub(crate) fn ask_peer(&self) -> Result<Ask, FetchError> {
        if self.request.range.is_none() && self.request.directives == RequestDirectives::default() {
            return self.ask(self.request.forwarded.clone());
        }
        let mut fields = self.request.forwarded.to_builder();
        self.add_range(&mut fields);
        if self.request.directives != RequestDirectives::default() && !self.request.forwarded.contains("cache-control")
        {
            fields.push_checked(b"Cache-Control", self.request.directives.to_string().as_bytes());
        }
        self.ask(fields.finish())
    }

    fn add_range(&self, fields: &mut FieldsBuilder) {
        if let Some(range) = &self.request.range {
            fields.push_checked(b"Range", range.set.to_string().as_bytes());
            if let Some(if_range) = &range.if_range_value {
                fields.push_checked(b"If-Range", if_range);
            }
        }
    }

    fn ask(&self, fields: Fields) -> Result<Ask, FetchError> {
        let ask = self.group.ask(&self.request.key, self.request.method, fields);
        ask.ok_or_else(|| FetchError::refused(400, "no such key in this group"))
    }

    /// Puts the answer and the basis together. What a peer sends is a response of its own, or confirms the body that it was told
    /// of ([`Filling::have`]).
    fn bring(&self, fill: &Fill<FlightKey, Landed>, fetched: Fetched, came: &Came) -> Brought {
        match (&self.basis, fetched.status) {
            (Basis::Confirm(stale), 304) if fetched.hop.is_none() => match self.confirm(fill, stale, &fetched, came) {
                Some(entry) => Brought::Confirmed(entry, None),
                None => Brought::Useless,
            },
            (Basis::Confirm(copy), _) if fetched.hop.as_ref().is_some_and(|hop| hop.not_modified) => {
                match self.confirm_copy(fill, copy, &fetched, came) {
                    Some((entry, owner)) => Brought::Confirmed(entry, owner),
                    None => Brought::Useless,
                }
            }
            _ if fetched.hop.as_ref().is_some_and(|hop| hop.not_modified) => Brought::Useless,
            (Basis::Complete(entry), 206) if self.missing(entry).is_some() => match parts::completed(entry, fetched) {
                Some(completed) => Brought::Response(completed),
                None => Brought::Useless,
            },
            (Basis::Complete(entry), 416) if self.missing(entry).is_some() => Brought::Useless,
            (_, 304) => Brought::Useless,
            _ => Brought::Response(fetched),
        }
    }

    /// Stores what another node has for a key, as this node's own or as a copy.
    pub async fn take_over(&self, fill: Fill<FlightKey, Landed>, fetched: Fetched, asked_at: Now, role: Role) {
        let Some(hop) = fetched.hop.clone() else { return };
        let came = Came::with(&fetched, asked_at, self.asked.clone());
        let copied = if role == Role::Main { Copied::No } else { Copied::Hot };
        let received = self.receive_copy(fetched, hop, came, (copied, Some(role)), self.cache.now());
        self.stream(fill, received).await;
    }

    /// Whether there is nothing yet of what the fill is to bring.
    pub(crate) fn has_nothing(&self) -> bool {
        matches!(self.basis, Basis::Nothing)
    }

    /// Everything that follows from the head.
    fn receive(&self, fetched: Fetched, came: Came, route: Route) -> Received {
        match (fetched.hop.clone(), route) {
            (Some(hop), Route::Fleet) => self.receive_from_peer(fetched, hop, came),
            // Peeked at the previous holder: it takes the place of the origin's answer.
            (Some(hop), Route::Here) => {
                let role = self.role_of_origin_answers();
                let copied = if role == Role::Main { Copied::No } else { Copied::Hot };
                self.receive_copy(fetched, hop, came, (copied, Some(role)), self.cache.now())
            }
            (None, _) => self.receive_from_origin(fetched, came),
        }
    }

    fn receive_from_origin(&self, fetched: Fetched, came: Came) -> Received {
        let group = &self.group;
        let received_at = self.cache.now();
        let method = self.request.method;
        let judgement = self.judge(method, fetched.status, &fetched.fields, came.asked_at, received_at);
        let rule = self.rule_of(&fetched.fields);
        let variant = rule.variant_key(&self.request.forwarded);
        let storable = judgement.storable.map_err(|reason| reason.word()).and_then(|()| self.extent(&fetched));
        let shareable = judgement.shareable && variant.is_some();
        let key = HashedKey::new(group.id, &self.request.key);
        if storable.is_ok() {
            self.cache.remembered.forget(key.hash());
        } else if !shareable && self.may_remember_uncacheable(fetched.status) {
            self.cache.remembered.remember(key.hash(), Memory::Uncacheable, received_at, UNCACHEABLE_LIFETIME);
        }
        let fields = match shareable || storable.is_ok() {
            true => freshness::fields_to_store(&group.rules, &judgement.directives, &fetched.fields, received_at),
            // It goes to the request that caused it and to nobody else: with the cookies that were meant for it.
            false => fetched.fields.clone(),
        };
        let fields = without_inside(fields);
        let for_causer = (shareable || storable.is_ok())
            .then(|| freshness::fields_for_causer(&group.rules, &judgement.directives, &fetched.fields, received_at))
            .flatten();
        let id = self.cache.next_entry_id();
        let mut tags = Tags::of(&fetched.fields);
        if let Basis::Complete(entry) = &self.basis {
            // Some of its bytes may be in this.
            tags = tags.union(entry.tags());
        }
        let head = Head {
            status: fetched.status,
            content_length: fetched.content_length,
            freshness: judgement.freshness,
            lazy_validators: self.validators(&fetched.fields, &fields, received_at).into(),
            for_causer: for_causer.map(|fields| {
                let fields = without_inside(fields);
                Box::new((fields.clone(), self.validators(&fetched.fields, &fields, received_at)))
            }),
            fields,
            id,
            body_id: id,
            sent: self.sent_for(&rule),
            variant: variant.unwrap_or_default(),
            rule,
            shareable,
            storable: storable.is_ok(),
            stored: false,
            owner: None,
            tags,
            dating: came.dating,
        };
        self.admit(fetched, head, storable, Some(self.role_of_origin_answers()))
    }

    /// The validators in `fields`, which were made from `received`.
    fn validators(&self, received: &Fields, fields: &Fields, received_at: Now) -> StoredValidators {
        let validators = StoredValidators::of(fields, received_at.wall_seconds);
        // Where the origin's own Date cannot be read, ours stands in its place.
        match freshness::has_received_date(received, received_at) {
            true => validators,
            false => validators.with_date_of_ours(),
        }
    }

    /// What RFC 9111 says of a response of the origin.
    pub(crate) fn judge(
        &self,
        method: Method,
        status: u16,
        received: &Fields,
        requested_at: Now,
        received_at: Now,
    ) -> Judgement {
        let exchange = Exchange {
            method: method.as_str(),
            // Only for POST, which never comes here.
            target: Target { authorities: &[], path: "/" },
            sent: &self.request.forwarded,
            directives: self.request.directives,
            status,
            received,
            // Whether this one can be kept is for `extent` to say.
            stores_parts: true,
            requested_at,
            received_at,
            jitter: self.cache.jitter(),
        };
        freshness::judge(&self.group.rules, &exchange)
    }

    /// Reserves memory for what is to be stored; without it the body streams through.
    pub(crate) fn admit(
        &self,
        fetched: Fetched,
        mut head: Head,
        mut storable: Result<Extent, &'static str>,
        role: Option<Role>,
    ) -> Received {
        let mut reservation = None;
        if head.tags.are_too_many() {
            storable = storable.and(Err("too_many_tags"));
        }
        if storable.is_ok() && self.overtaken(&head.dating.stamp, &head.tags).is_some() {
            storable = Err("invalidated");
        }
        if storable.is_ok() && role.is_some() {
            reservation = self.cache.ledger.reserve(fetched.content_length.unwrap_or_default() as usize);
            if reservation.is_none() {
                storable = Err("memory");
            }
        }
        if let Err(reason) = storable {
            self.group.stats.not_stored.increment(reason);
        }
        if self.group.stats.hint_is_due(storable.is_ok()) {
            let (group, reason) = (&self.group.name, storable.err().unwrap_or_default());
            tracing::warn!(%group, reason, set = key_to_set(reason), "none of the first hundred answers could be stored");
        }
        head.stored = reservation.is_some();
        let extent = storable.unwrap_or(Extent::Whole);
        Received { fetched, role: role.filter(|_| head.stored), head, extent, reservation }
    }

    /// What can be stored of a response that the rules of RFC 9111 let us store; if nothing, why, in the words of the
    /// statistics.
    pub(crate) fn extent(&self, fetched: &Fetched) -> Result<Extent, &'static str> {
        let extent = match (fetched.status, &self.request.range) {
            // It answers a range and says nothing of the key.
            (416, _) => return Err("partial"),
            (206, None) => return Err("partial"),
            (206, Some(_)) => Extent::Part(Place::of(fetched).ok_or("partial")?),
            _ => Extent::Whole,
        };
        let bytes = match extent {
            Extent::Whole => fetched.content_length,
            Extent::Part(place) => Some(place.range.length()),
        };
        match () {
            () if !self.group.cached => Err("cache_off"),
            () if self.request.method == Method::Head => Err("method"),
            () if fetched.close_delimited => Err("framing"),
            () if bytes.is_some_and(|bytes| bytes > self.group.object_bytes_max) => Err("too_large"),
            () => Ok(extent),
        }
    }

    /// There is a newer answer, which is not stored here: what it supersedes goes.
    fn supersede(&self, head: &Head) {
        let (Basis::Confirm(old) | Basis::Complete(old)) = &self.basis else { return };
        let superseded = match (&head.owner, &self.basis) {
            // What an owner sends comes of an entry; if that is another one than ours was made of, ours is outdated.
            (Some(_), _) => head.id != old.id,
            // RFC 9111 section 4.3.3; but what an origin says of a range does not replace a whole.
            (None, Basis::Confirm(_)) => self.request.method == Method::Get && !matches!(head.status, 206 | 416),
            (None, _) => false,
        };
        if superseded && !self.speaks_for_itself() {
            self.cache.remove_entry(&self.group, &self.request.key, old);
        }
    }

    /// What is to be stored of a response that has arrived; `None` when a part is not what it says.
    fn parts_of(&self, head: &Head, kept: &[Bytes], extent: Extent) -> Option<Parts> {
        let content = match head.owner {
            // Pieces of what was read of the connection to the owner.
            Some(_) => Body::gather(kept),
            None => Body::of_owned(kept),
        };
        let (status, fields, body) = match extent {
            Extent::Whole => (head.status, head.fields.clone(), content),
            Extent::Part(place) if place.range.length() != content.len() => return None,
            Extent::Part(place) => {
                let body = Body::of_ranges(place.complete_length, vec![place.range], content.into_segments());
                (200, Place::fields_of_whole(&head.fields), body)
            }
        };
        let validators = match extent {
            Extent::Whole => *head.validators(),
            Extent::Part(_) => {
                // The place of the tag in the block may have moved.
                let found = StoredValidators::of(&fields, self.cache.now().wall_seconds);
                let date_is_strong = head.validators().in_block(&head.fields).last_modified_is_strong;
                if date_is_strong { found } else { found.with_date_of_ours() }
            }
        };
        let (id, freshness, sent, tags) = (head.id, head.freshness, head.sent.clone(), head.tags.clone());
        let body_id = if let Extent::Whole = extent { head.body_id } else { EntryId::default() };
        Some(Parts { id, body_id, status, fields, freshness, validators, sent, tags, body })
    }

    pub(crate) fn rule_of(&self, fields: &Fields) -> VaryRule {
        if self.group.rules.ignore_vary { VaryRule::None } else { VaryRule::parse(fields) }
    }

    /// What we sent in the fields that decide the variant.
    pub(crate) fn sent_for(&self, rule: &VaryRule) -> Fields {
        let names = rule.names();
        if names.is_empty() {
            return Fields::empty();
        }
        self.request.forwarded.without(|name| !names.iter().any(|listed| listed.eq_ignore_ascii_case(name)))
    }

    pub(crate) fn role_of_origin_answers(&self) -> Role {
        self.cache.role_of_origin_answers(&self.request.key)
    }

    /// Whether the answer may be what it is because of who asked: it says nothing of what others may have, so that no client
    /// can push an entry out with credentials that the origin refuses.
    pub(crate) fn speaks_for_itself(&self) -> bool {
        self.request.authorization || self.request.directives.no_store
    }

    /// One client's private answer must not switch collapsing off for the rest: only a request without credentials writes
    /// the memory, and never because the origin failed for a moment.
    pub(crate) fn may_remember_uncacheable(&self, status: u16) -> bool {
        status < 500
            && !self.request.authorization
            && !self.request.forwarded.contains("cookie")
            && !self.request.directives.no_store
            && self.request.method == Method::Get
            && self.request.range.is_none()
    }

    fn remember_failure(&self, fill: &Fill<FlightKey, Landed>, error: &FetchError, known: &Stamp) {
        // What failed for one client's HEAD, range or credentials need not fail for a plain GET.
        let plain = self.request.method == Method::Get && self.request.range.is_none() && !self.speaks_for_itself();
        if let (FetchError::Refused { status, .. }, Route::Here, true) = (error, fill.key().route, plain) {
            let key = HashedKey::new(self.group.id, &self.request.key);
            let lifetime = self.group.rules.errors;
            // A purge takes the same lock before it makes forget.
            let _writing = self.cache.slot_writer(&key).lock();
            if self.overtaken(known, &Tags::default()).is_some() {
                return;
            }
            self.cache.remembered.remember(key.hash(), Memory::Failed(*status), self.cache.now(), lifetime);
        }
    }
}

impl Cache {
    /// An answer of the origin is main at the key's owner and a copy everywhere else.
    pub(crate) fn role_of_origin_answers(&self, key: &[u8]) -> Role {
        if self.fleet.load().owns(key) { Role::Main } else { Role::Hot }
    }

    /// Stores what a fill brought, beside the other variants of its key. A part is put together with what is stored of the
    /// same representation; of an entry that a later fill brought meanwhile, it takes nothing away.
    pub(crate) fn insert(
        &self,
        group: &Group,
        flight: &FlightKey,
        shelf: Shelf,
        (new, charge): (Parts, Charge),
        stamp: &Stamp,
    ) {
        let key = HashedKey::new(group.id, &flight.key);
        let _writing = self.slot_writer(&key).lock();
        if self.purges.overtaken(stamp, Overtaking::Any, &group.name, &flight.key, &new.tags).is_some() {
            return group.stats.not_stored.increment("invalidated");
        }
        let slot = self.store.peek(&key).map(|(slot, _)| slot);
        let stored = slot.as_ref().and_then(|slot| slot.get(&shelf.rule, &shelf.variant));
        let new = match stored.filter(|_| !new.body.is_whole()) {
            Some(stored) => match parts::combined(stored, new, group.object_bytes_max) {
                Ok(combined) => combined,
                Err(part) if is_later(stored, &part) => return,
                Err(part) => part,
            },
            None => new,
        };
        self.put(group, &key, slot.as_ref(), shelf, Entry::new(&flight.key, new, charge));
    }

    /// Stores `new`, which was made of `old`, if that is still there.
    pub(crate) fn replace(
        &self,
        group: &Group,
        flight: &FlightKey,
        shelf: Shelf,
        old: &Entry,
        new: Entry,
        stamp: &Stamp,
    ) {
        let key = HashedKey::new(group.id, &flight.key);
        let _writing = self.slot_writer(&key).lock();
        let (purges, tags) = (&self.purges, old.tags().union(new.tags()));
        if purges.overtaken(stamp, Overtaking::Any, &group.name, &flight.key, &tags).is_some() {
            return group.stats.not_stored.increment("invalidated");
        }
        let slot = self.store.peek(&key).map(|(slot, _)| slot);
        let stored = slot.as_ref().and_then(|slot| slot.get(&shelf.rule, &shelf.variant));
        if stored.is_none_or(|stored| stored.is_same(old)) {
            self.put(group, &key, slot.as_ref(), shelf, new);
        }
    }

    /// The caller holds the key's lock.
    fn put(&self, group: &Group, key: &HashedKey<'_>, slot: Option<&Slot>, shelf: Shelf, entry: Entry) {
        let slot = Slot::with(slot, shelf.rule, shelf.variant, entry, group.variants_max);
        self.store.insert(shelf.role, key, slot);
    }

    pub(crate) fn remove_entry(&self, group: &Group, key: &Bytes, entry: &Entry) {
        let hashed = HashedKey::new(group.id, key);
        let _writing = self.slot_writer(&hashed).lock();
        let Some((slot, role)) = self.store.peek(&hashed) else { return };
        match slot.without(entry) {
            Some(rest) => drop(self.store.insert(role, &hashed, rest)),
            None => drop(self.store.remove(&hashed)),
        }
    }
}

/// Whether `stored` came of a fill of the same node that got its answer later.
fn is_later(stored: &Entry, new: &Parts) -> bool {
    stored.id.incarnation == new.id.incarnation && stored.id.fill > new.id.fill
}

/// The configuration key that decides about the reason for which answers are not stored.
fn key_to_set(reason: &str) -> &'static str {
    match reason {
        "no_freshness_nor_validator" | "status" => "freshness.default",
        "set_cookie" => "set_cookie",
        "vary_any" => "freshness.ignore: [vary]",
        "no_store" | "private" | "must_understand" => "freshness.ignore: [cache-control]",
        "too_large" => "max_object",
        "memory" => "memory",
        "cache_off" => "cache",
        _ => "none: see not_stored in the statistics",
    }
}

/// How long a fill goes on when nobody reads it.
pub const ABANDONED_GRACE: Duration = Duration::from_secs(1);
