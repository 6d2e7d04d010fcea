//! The hop as the cache sees it: what an owner gives a peer for an answer, and what the peer makes of it.
//!
//! Ages and remaining lifetimes travel, never instants. A copy that has become stale is renewed by the name of its body
//! ([`Entry::body_id`]): the asker names it, and the owner leaves the body out when its own entry still has it, however often
//! the origin confirmed that entry meanwhile. Validators and dates have no part in this: equal names are equal bytes, and a
//! body that was put together of parts has no name.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::cache::{Answer, Cache, FlightKey, Head, Landed, OwnerReport, Payload, Request};
use crate::clock::Now;
use crate::entry::{Entry, Parts};
use crate::fields::Fields;
use crate::fill::{Basis, Came, Filling, Received, Shelf};
use crate::flight::{Fill, ReadError};
use crate::following::Following;
use crate::freshness::{
    self, Copied, FoundIn, Freshness, LifetimeSource, RequestDirectives, ResponseDirectives, Verdict,
};
use crate::group::Group;
use crate::key::HashedKey;
use crate::parts;
use crate::purge::Vector;
use crate::remembered::{Memory, UNCACHEABLE_LIFETIME};
use crate::semantics::ranges::{ByteRange, ContentRange};
use crate::semantics::validators::LazyValidators;
use crate::source::{Ask, BodyStream, EntryId, FetchError, Fetched, Fits, Hop, Method, ReadyBody, Whole};
use crate::stats::Outcome;
use crate::store::Role;

impl Cache {
    /// What [`Cache::get_as_owner`] answers to a plain `GET`, if memory has it fresh, whole, in one piece and so that it `fits`, and the asker has
    /// nothing (`have`) that could be confirmed instead. Counts as [`Cache::get_as_owner`] does when it finds something, and
    /// nothing otherwise.
    pub fn find_for_peer(
        self: &Arc<Self>,
        group: &Arc<Group>,
        ask: &Ask,
        have: EntryId,
        fits: Fits<'_>,
    ) -> Option<Whole> {
        if ask.method != Method::Get || have.is_some() || !is_plain(ask) {
            return None;
        }
        let now = self.now();
        if !self.leasing.lets_memory_answer(now) {
            return None;
        }
        let key = HashedKey::new(group.id, &ask.key);
        let directives = RequestDirectives::default();
        let stamp = self.purges.applied().vector;
        let entry = self.store.find_if(&key, |slot, _| {
            let entry = slot.select(|| ask.fields.clone())?;
            let verdict = entry.freshness.verdict(&group.rules, &directives, now);
            let in_one_piece = entry.body.is_whole() && entry.body.segments().len() <= 1;
            let taken = in_one_piece && fits(entry.fields().len() + entry.sent().len(), entry.body.len() as usize);
            (verdict == Verdict::Fresh && taken).then(|| entry.clone())
        })?;
        group.stats.gets.increment();
        group.stats.server_requests.increment();
        group.stats.cache_hits.increment();
        let body = entry.body.to_segments().pop().unwrap_or_default();
        let mut hop = hop_of(&entry, Outcome::Hit, stamp, now);
        self.asked_by_peer(group, &ask.key, &mut hop, now);
        Some(Whole { status: entry.status, fields: entry.shared_fields(), hop, body })
    }

    /// Turns an answer into what the peer protocol carries.
    pub(crate) fn for_peer(&self, request: &Request, answer: Answer, have: EntryId) -> Result<Fetched, FetchError> {
        let now = self.now();
        match answer.payload {
            Payload::Entry(entry) => {
                let mut fetched = entry_for_peer(&entry, request, answer.outcome, have, answer.stamp.vector, now);
                if let Some(hop) = &mut fetched.hop {
                    hop.hit |= hop.stale && answer.report.forward.is_none();
                }
                Ok(fetched)
            }
            Payload::Stream(head, reader) => {
                let hop = Hop {
                    freshness: head.freshness.over_hop(now),
                    shareable: head.shareable,
                    storable: head.storable,
                    sent: head.sent.clone(),
                    entry: head.id,
                    body: head.body_id,
                    weak_date: head.validators().has_weak_date(),
                    hit: false,
                    stale: answer.outcome == Outcome::Stale,
                    revalidated: false,
                    not_modified: false,
                    tags: head.tags.clone(),
                    stamp: Some(head.dating.stamp.vector.clone()),
                    ..Hop::default()
                };
                let mut fetched = Fetched {
                    status: head.status,
                    fields: head.fields.clone(),
                    content_length: head.content_length,
                    hop: Some(hop),
                    close_delimited: false,
                    body: Box::new(StreamedBody(reader)),
                };
                let length = head.content_length;
                if let Some(part) = request.part(head.status, &head.fields, || head.validators(), length) {
                    fetched.body = parts::cut(fetched.body, part);
                    as_part(&mut fetched, part, length);
                }
                Ok(fetched)
            }
            Payload::Failure { status, reason } => Err(FetchError::Refused { status, reason }),
            Payload::Pass(reason) => Err(FetchError::refused(502, reason)),
        }
    }
}

/// What is said of an entry beside its head. `stamp` was read before the entry was looked up.
fn hop_of(entry: &Entry, outcome: Outcome, stamp: Vector, now: Now) -> Hop {
    Hop {
        freshness: entry.freshness.over_hop(now),
        shareable: true,
        storable: true,
        sent: entry.sent().to_fields(),
        entry: entry.id,
        body: entry.body_id(),
        weak_date: entry.validators.has_weak_date(),
        hit: outcome == Outcome::Hit,
        stale: outcome == Outcome::Stale,
        revalidated: outcome == Outcome::Revalidated,
        not_modified: false,
        tags: entry.tags().clone(),
        stamp: Some(stamp),
        ..Hop::default()
    }
}

/// Whether all fields of the question are such as select a variant: none asks for a range, and none is the client's word on
/// caching, which may travel among them.
fn is_plain(ask: &Ask) -> bool {
    ask.fields.lines().all(|(name, _)| {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        !(is("range") || is("if-range") || is("cache-control") || is("pragma"))
    })
}

/// What a peer gets of a stored entry; of a satisfiable single range only that part, and of a body that it has (`have`) only
/// the head.
pub(crate) fn entry_for_peer(
    entry: &Entry,
    request: &Request,
    outcome: Outcome,
    have: EntryId,
    stamp: Vector,
    now: Now,
) -> Fetched {
    let plain = request.method == Method::Get && request.range.is_none();
    let not_modified = plain && have.is_some() && have == entry.body_id() && entry.body.is_whole();
    let hop = Hop { not_modified, ..hop_of(entry, outcome, stamp, now) };
    let length = entry.body.len();
    let mut fetched = Fetched {
        status: entry.status,
        fields: entry.shared_fields(),
        content_length: Some(length),
        hop: Some(hop),
        close_delimited: false,
        body: Box::new(ReadyBody::default()),
    };
    if request.method == Method::Head || not_modified {
        return fetched;
    }
    match request.part_of(entry) {
        Some(part) => {
            fetched.body = Box::new(HeldBody::of(entry, entry.body.slice(part).unwrap_or_default()));
            as_part(&mut fetched, part, Some(length));
        }
        // Whole, several parts, or none of it: the asking node has the client and cuts for it.
        None => fetched.body = Box::new(HeldBody::of(entry, entry.body.to_segments())),
    }
    fetched
}

/// Makes a 206 of a whole response whose body was cut.
fn as_part(fetched: &mut Fetched, part: ByteRange, length: Option<u64>) {
    let content_range = ContentRange::Part { range: part, length }.to_string();
    let mut fields = fetched.fields.to_builder();
    fields.push_checked(b"Content-Range", content_range.as_bytes());
    fetched.fields = fields.finish();
    fetched.status = 206;
    fetched.content_length = Some(part.length());
}

/// Bytes of an entry on their way to a peer, which holds the entry: as long as they are alive, it is charged for them.
struct HeldBody {
    _entry: Entry,
    body: ReadyBody,
}

impl HeldBody {
    fn of(entry: &Entry, bytes: Vec<Bytes>) -> Self {
        HeldBody { _entry: entry.clone(), body: ReadyBody::new(bytes) }
    }
}

#[async_trait]
impl BodyStream for HeldBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        self.body.chunk().await
    }
}

/// The body of a flight, read on behalf of a peer.
struct StreamedBody(Following);

#[async_trait]
impl BodyStream for StreamedBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        self.0.chunk().await.map_err(|error| match error {
            ReadError::Source(error) => FetchError::broken(error.to_string()),
            ReadError::FellBehind { .. } => FetchError::broken("too slow for a body that is not stored"),
        })
    }
}

impl Filling {
    /// The body that the owner need not send: that of a copy that is to be renewed. By the name of the fill that brought it, never
    /// by validators or dates: equal names are equal bytes.
    pub(crate) fn have(&self) -> EntryId {
        match &self.basis {
            Basis::Confirm(copy) if self.wants_whole() && copy.body.is_whole() => copy.body_id(),
            _ => EntryId::default(),
        }
    }

    /// The owner confirmed the body that this node has: the same body under the owner's head. `None` when it means another one.
    pub(crate) fn confirm_copy(
        &self,
        fill: &Fill<FlightKey, Landed>,
        copy: &Entry,
        fetched: &Fetched,
        came: &Came,
    ) -> Option<(Entry, Option<OwnerReport>)> {
        let hop = fetched.hop.as_ref()?;
        let meant = self.have().is_some() && hop.body == self.have() && fetched.status == copy.status;
        if !meant || fetched.content_length != Some(copy.body.len()) || !hop.storable {
            return None;
        }
        let now = self.cache.now();
        self.hear_of_heat(hop, now);
        let head = self.head_of_copy(fetched, hop, came, Copied::Hot, now);
        let (owner, validators) = (head.owner, *head.validators());
        let shelf = Shelf { role: Role::Hot, rule: head.rule, variant: head.variant };
        let parts = Parts {
            id: head.id,
            body_id: head.body_id,
            status: head.status,
            freshness: head.freshness,
            validators,
            fields: head.fields,
            sent: head.sent,
            tags: head.tags,
            body: copy.body.clone(),
        };
        let entry = Entry::new(&self.request.key, parts, self.cache.ledger.charge(0));
        // Of the answer to such a request nothing is kept, wherever the owner has it from (RFC 9111 section 5.2.1.5).
        if !self.request.directives.no_store {
            self.cache.replace(&self.group, fill.key(), shelf, copy, entry.clone(), &came.dating.stamp);
        }
        Some((entry, owner))
    }

    pub(crate) fn receive_from_peer(&self, fetched: Fetched, hop: Hop, came: Came) -> Received {
        let now = self.cache.now();
        self.hear_of_heat(&hop, now);
        let key = HashedKey::new(self.group.id, &self.request.key);
        // What this node loaded itself in another's stead lies in the store already.
        let taken_over = hop.entry.incarnation == self.cache.incarnation();
        let may_keep = !taken_over && !self.request.directives.no_store;
        let deserved = may_keep && self.cache.deserves_hot_copy(&key, now);
        self.receive_copy(fetched, hop, came, (Copied::Hot, deserved.then_some(Role::Hot)), now)
    }

    /// Everything that follows from a head that came over the hop, for a place in the store that is decided already.
    pub(crate) fn receive_copy(
        &self,
        fetched: Fetched,
        hop: Hop,
        came: Came,
        (copied, role): (Copied, Option<Role>),
        now: Now,
    ) -> Received {
        let key = HashedKey::new(self.group.id, &self.request.key);
        let storable = if hop.storable { self.extent(&fetched) } else { Err("owner") };
        // As where the origin is asked: what the owner may store, it validates and answers, and the next request goes there too.
        if hop.storable {
            self.cache.remembered.forget(key.hash());
        } else if !hop.shareable && self.may_remember_uncacheable(fetched.status) {
            self.cache.remembered.remember(key.hash(), Memory::Uncacheable, now, UNCACHEABLE_LIFETIME);
        }
        let head = Head { storable: storable.is_ok(), ..self.head_of_copy(&fetched, &hop, &came, copied, now) };
        self.admit(fetched, head, storable, role)
    }

    /// What all may see of a head that came over the hop, where that is less: the owner sends the fields that are for the
    /// causer of its own fill alone, because this node's question was that.
    fn shared_of_copy(&self, fetched: &Fetched, hop: &Hop, now: Now) -> Option<Fields> {
        if !(hop.shareable || hop.storable) || !freshness::may_name_fields(&fetched.fields) {
            return None;
        }
        let rules = &self.group.rules;
        let directives = ResponseDirectives::parse(rules, &fetched.fields);
        // The owner went by a field that does not cross the hop, and whose directives name no fields.
        let hidden = hop.freshness.source == LifetimeSource::Targeted && directives.found_in != FoundIn::Targeted;
        let has_more = freshness::fields_for_causer(rules, &directives, &fetched.fields, now).is_some();
        (has_more && !hidden).then(|| freshness::fields_to_store(rules, &directives, &fetched.fields, now))
    }

    /// What came over the hop, as far as its head goes.
    fn head_of_copy(&self, fetched: &Fetched, hop: &Hop, came: &Came, copied: Copied, now: Now) -> Head {
        let rule = self.rule_of(&fetched.fields);
        let taken_over = hop.entry.incarnation == self.cache.incarnation();
        let lazy_validators = LazyValidators::received(now.wall_seconds, hop.weak_date);
        let shared = self.shared_of_copy(fetched, hop, now);
        let of_causer = || *lazy_validators.clone().of(&fetched.fields);
        let for_causer = shared.is_some().then(|| Box::new((fetched.fields.clone(), of_causer())));
        let fields = shared.unwrap_or_else(|| fetched.fields.clone());
        Head {
            status: fetched.status,
            content_length: fetched.content_length,
            // Read before the question was sent, hence certainly not later than the owner's own reading.
            freshness: Freshness::from_hop(&hop.freshness, came.asked_at, copied),
            lazy_validators,
            for_causer,
            fields,
            id: hop.entry,
            body_id: hop.body,
            sent: hop.sent.clone(),
            // The variant is decided by what the owner sent the origin; we sent the owner the same.
            variant: rule.variant_key(&hop.sent).unwrap_or_default(),
            rule,
            shareable: hop.shareable,
            storable: hop.storable,
            stored: false,
            owner: (!taken_over).then(|| OwnerReport {
                hit: hop.hit,
                stale: hop.stale,
                revalidated: hop.revalidated,
                ttl_seconds: hop.storable.then(|| hop.freshness.remaining_milliseconds.div_euclid(1000)),
            }),
            tags: hop.tags.clone(),
            dating: came.dating.clone(),
        }
    }
}
