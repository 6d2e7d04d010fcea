//! The fill: one task per flight, which asks, receives, hands out and stores.
//!
//! ```text
//! second look in the store ── load ── head: what may be shared, what is stored ── body, chunk by chunk ── entry into the store
//!                              │
//!                              └─ Route::Fleet: the owner, each next peer on the ring, here
//!                                 Route::Here:  the origin, with validators when there is a stale entry
//! ```
//!
//! It belongs to no client. It ends early when nobody has been reading for [`ABANDONED_GRACE`], unless the response can be
//! stored and at least half of it is here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::cache::{Cache, FlightKey, Head, Landed, OwnerReport, Request, Route};
use crate::clock::Now;
use crate::entry::{Body, Entry};
use crate::fields::{Fields, FieldsBuilder};
use crate::fleet::Step;
use crate::flight::{Fill, Keep};
use crate::freshness::{self, Copied, Exchange, Freshness, Judgement, RequestDirectives, Target, Verdict};
use crate::group::Group;
use crate::key::HashedKey;
use crate::memory::Charge;
use crate::remembered::{Memory, UNCACHEABLE_LIFETIME};
use crate::semantics::forward::stays_inside;
use crate::semantics::validators::StoredValidators;
use crate::semantics::variant::{VariantKey, VaryRule};
use crate::slot::Slot;
use crate::source::{Ask, FetchError, Fetched, Hop, Method};
use crate::stats::Outcome;
use crate::store::Role;

/// One run of a fill: everything it needs to know of the request that caused it.
pub(crate) struct Filling {
    pub cache: Arc<Cache>,
    pub group: Arc<Group>,
    pub request: Request,
    /// The entry that a revalidation may confirm.
    pub stale: Option<Arc<Entry>>,
}

/// A response with what follows from its head.
struct Received {
    fetched: Fetched,
    head: Head,
    /// Where the entry will go; `None` when it is not stored here.
    role: Option<Role>,
    /// For the memory of what arrives, when it is to be stored.
    reservation: Option<Charge>,
}

impl Filling {
    /// Runs the fill to its end, whatever that is.
    pub async fn run(self, fill: Fill<FlightKey, Landed>) {
        if let Some(entry) = self.landed_meanwhile(&fill) {
            fill.begin(Landed::Entry(entry, Outcome::Hit), Keep::Whole);
            return fill.finish();
        }
        let loaded = tokio::select! {
            loaded = self.load(fill.key().route) => loaded,
            () = fill.abandoned(ABANDONED_GRACE) => Err(FetchError::broken("nobody waited any longer")),
        };
        match loaded {
            Err(error) => {
                self.remember_failure(&fill, &error);
                fill.fail(error);
            }
            Ok((fetched, asked_at)) if fetched.status == 304 => self.confirm(fill, fetched, asked_at),
            Ok((fetched, asked_at)) => {
                let received = self.receive(fetched, asked_at);
                self.stream(fill, received).await;
            }
        }
    }

    /// Two requests miss; the first one's fill lands and leaves the map of flights; then the second one, which looked in the
    /// store before, opens a flight. Hence the second look.
    fn landed_meanwhile(&self, fill: &Fill<FlightKey, Landed>) -> Option<Arc<Entry>> {
        if self.stale.is_some() || self.request.range.is_some() || self.request.method == Method::Head {
            return None;
        }
        let key = HashedKey::new(fill.key().group, &self.request.key);
        let (slot, _) = self.cache.store.peek(&key)?;
        let entry = slot.select(|| self.request.forwarded.clone())?;
        let verdict = entry.freshness.verdict(&self.group.rules, &self.request.directives, self.cache.now());
        (verdict == Verdict::Fresh).then(|| entry.clone())
    }

    /// Asks until somebody answers. The time is that at which the answering question was sent.
    async fn load(&self, route: Route) -> Result<(Fetched, Now), FetchError> {
        if route == Route::Here {
            return self.load_from_origin().await;
        }
        let stats = &self.group.stats;
        let steps = self.cache.fleet.load().steps(&self.request.key);
        for step in steps {
            let asked_at = self.cache.now();
            match step {
                Step::Peer(peer) => match peer.fetch(&self.ask_peer()?).await {
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
                },
                // This node's turn on the ring, or the last resort: the flight that peers' questions join, too.
                Step::Here => {
                    let fetched = self.cache.load_here(&self.group, &self.request).await?;
                    return Ok((fetched, asked_at));
                }
            }
        }
        Err(FetchError::unreachable("no source"))
    }

    async fn load_from_origin(&self) -> Result<(Fetched, Now), FetchError> {
        let stats = &self.group.stats;
        let asked_at = self.cache.now();
        match self.group.source.fetch(&self.ask_origin()?).await {
            Ok(fetched) => {
                stats.local_loads.increment();
                Ok((fetched, asked_at))
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
        self.add_range(&mut fields);
        if let (None, Some(stale)) = (&self.request.range, &self.stale) {
            if let Some(tag) = stale.fields.get("etag") {
                fields.push_checked(b"If-None-Match", tag);
            }
            if let Some(date) = stale.fields.get("last-modified") {
                fields.push_checked(b"If-Modified-Since", date);
            }
        }
        self.ask(fields.finish())
    }

    /// The question to a peer: the forwarded fields, the range, and what the client said of caching.
    fn ask_peer(&self) -> Result<Ask, FetchError> {
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

    /// The origin confirmed what we have (RFC 9111 section 4.3.4): the same body under fresh facts.
    fn confirm(&self, fill: Fill<FlightKey, Landed>, fetched: Fetched, asked_at: Now) {
        let Some(stale) = &self.stale else {
            return fill.fail(FetchError::refused(502, "an answer to a question that was not asked"));
        };
        let received_at = self.cache.now();
        if freshness::selected_by_304(&[&stale.fields], &fetched.fields).is_empty() {
            return fill.fail(FetchError::refused(502, "the origin confirmed something else than was asked"));
        }
        let updated = freshness::updated_by_304(&self.group.rules, &stale.fields, &fetched.fields, received_at);
        let judgement = self.judge(stale.status, &updated, asked_at, received_at);
        let fields = freshness::fields_to_store(&self.group.rules, &judgement.directives, &updated, received_at);
        let fields = fields.without(stays_inside);
        let freshness = judgement.freshness;
        let rule = self.rule_of(&fields);
        let Some(variant) = rule.variant_key(&self.request.forwarded) else {
            return fill.fail(FetchError::refused(502, "an answer that fits no request"));
        };
        let charge = self.cache.ledger.charge(Entry::charged_bytes(&fields, &stale.sent, &stale.body));
        let entry = Arc::new(Entry {
            id: self.cache.next_entry_id(),
            status: stale.status,
            validators: self.validators(&updated, &fields, received_at),
            fields,
            freshness,
            sent: stale.sent.clone(),
            body: stale.body.clone(),
            charge,
        });
        let role = self.role_of_origin_answers();
        self.cache.insert(&self.group, &self.request.key, role, rule, variant, entry.clone());
        fill.begin(Landed::Entry(entry, Outcome::Revalidated), Keep::Whole);
        fill.finish();
    }

    /// Everything that follows from the head.
    fn receive(&self, fetched: Fetched, asked_at: Now) -> Received {
        match fetched.hop.clone() {
            Some(hop) => self.receive_from_peer(fetched, hop, asked_at),
            None => self.receive_from_origin(fetched, asked_at),
        }
    }

    fn receive_from_origin(&self, fetched: Fetched, asked_at: Now) -> Received {
        let group = &self.group;
        let received_at = self.cache.now();
        let judgement = self.judge(fetched.status, &fetched.fields, asked_at, received_at);
        let rule = self.rule_of(&fetched.fields);
        let variant = rule.variant_key(&self.request.forwarded);
        let storable = judgement.storable.map_err(|reason| reason.word()).and_then(|()| self.obstacle(&fetched));
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
        let fields = fields.without(stays_inside);
        let head = Head {
            status: fetched.status,
            content_length: fetched.content_length,
            freshness: judgement.freshness,
            validators: self.validators(&fetched.fields, &fields, received_at),
            fields,
            id: self.cache.next_entry_id(),
            sent: self.sent_for(&rule),
            variant: variant.unwrap_or_default(),
            rule,
            shareable,
            storable: storable.is_ok(),
            stored: false,
            owner: None,
        };
        self.admit(fetched, head, storable, Some(self.role_of_origin_answers()))
    }

    /// The validators in `fields`, which were made from `received`.
    fn validators(&self, received: &Fields, fields: &Fields, received_at: Now) -> StoredValidators {
        let validators = StoredValidators::of(fields, received_at.wall_seconds);
        if received.contains("date") { validators } else { validators.with_date_of_ours() }
    }

    /// What RFC 9111 says of a response of the origin.
    fn judge(&self, status: u16, received: &Fields, requested_at: Now, received_at: Now) -> Judgement {
        let exchange = Exchange {
            method: self.request.method.as_str(),
            // Only for POST, which never comes here.
            target: Target { authorities: &[], path: "/" },
            sent: &self.request.forwarded,
            directives: self.request.directives,
            status,
            received,
            stores_parts: false,
            requested_at,
            received_at,
            jitter: self.cache.jitter(),
        };
        freshness::judge(&self.group.rules, &exchange)
    }

    fn receive_from_peer(&self, fetched: Fetched, hop: Hop, asked_at: Now) -> Received {
        let now = self.cache.now();
        let key = HashedKey::new(self.group.id, &self.request.key);
        let rule = self.rule_of(&fetched.fields);
        // The variant is decided by what the owner sent the origin; we sent the owner the same.
        let variant = rule.variant_key(&hop.sent).unwrap_or_default();
        // Read before the question was sent, hence certainly not later than the owner's own reading.
        let freshness = Freshness::from_hop(&hop.freshness, asked_at, Copied::Hot);
        let storable = if hop.storable { self.obstacle(&fetched) } else { Err("owner") };
        if !hop.shareable && self.may_remember_uncacheable(fetched.status) {
            self.cache.remembered.remember(key.hash(), Memory::Uncacheable, now, UNCACHEABLE_LIFETIME);
        }
        // What this node loaded itself in another's stead lies in the store already.
        let taken_over = hop.entry.incarnation == self.cache.incarnation();
        let deserved = !taken_over && self.cache.deserves_hot_copy(&key, now);
        let head = Head {
            status: fetched.status,
            content_length: fetched.content_length,
            freshness,
            validators: StoredValidators::of(&fetched.fields, now.wall_seconds),
            fields: fetched.fields.clone(),
            id: hop.entry,
            sent: hop.sent,
            variant,
            rule,
            shareable: hop.shareable,
            storable: storable.is_ok(),
            stored: false,
            owner: (!taken_over).then(|| OwnerReport {
                hit: hop.hit,
                ttl_seconds: hop.storable.then(|| hop.freshness.remaining_milliseconds.div_euclid(1000)),
            }),
        };
        self.admit(fetched, head, storable, deserved.then_some(Role::Hot))
    }

    /// Reserves memory for what is to be stored; without it the body streams through.
    fn admit(
        &self,
        fetched: Fetched,
        mut head: Head,
        mut storable: Result<(), &'static str>,
        role: Option<Role>,
    ) -> Received {
        let mut reservation = None;
        if storable.is_ok() && role.is_some() {
            reservation = self.cache.ledger.reserve(fetched.content_length.unwrap_or_default() as usize);
            if reservation.is_none() {
                storable = Err("memory");
            }
        }
        if let Err(reason) = storable {
            self.group.stats.not_stored.increment(reason);
        }
        head.stored = reservation.is_some();
        Received { fetched, role: role.filter(|_| head.stored), head, reservation }
    }

    /// What forbids storing beside the rules of RFC 9111, in the words of the statistics.
    fn obstacle(&self, fetched: &Fetched) -> Result<(), &'static str> {
        if !self.group.cached {
            Err("cache_off")
        } else if self.request.method == Method::Head {
            Err("method")
        } else if fetched.status == 206 {
            Err("partial")
        } else if fetched.close_delimited {
            Err("framing")
        } else if fetched.content_length.is_some_and(|length| length > self.group.object_bytes_max) {
            Err("too_large")
        } else {
            Ok(())
        }
    }

    /// Hands the body out and stores it at its end.
    async fn stream(&self, fill: Fill<FlightKey, Landed>, received: Received) {
        let Received { fetched, head, role, mut reservation } = received;
        let head = Arc::new(head);
        let keep = match reservation {
            Some(_) => Keep::Whole,
            // Shared by those who wait already; a window suffices for it.
            None => Keep::Window(WINDOW_BYTES),
        };
        if !head.shareable {
            fill.close();
        }
        fill.begin(Landed::Streaming(head.clone()), keep);

        let deadline = tokio::time::Instant::now() + self.group.fill_timeout;
        let mut body = fetched.body;
        let mut kept: Vec<Bytes> = Vec::new();
        let mut received_bytes: u64 = 0;
        loop {
            let half_done = head.content_length.is_some_and(|length| received_bytes * 2 >= length);
            let next = async {
                match reservation {
                    // The deadline is for what is to be stored; a long download through a window has the readers' pace.
                    Some(_) => tokio::time::timeout_at(deadline, body.chunk())
                        .await
                        .unwrap_or(Err(FetchError::broken("the fill took too long"))),
                    None => body.chunk().await,
                }
            };
            let chunk = tokio::select! {
                chunk = next => chunk,
                () = fill.abandoned(ABANDONED_GRACE), if reservation.is_none() || !half_done => {
                    return fill.fail(FetchError::broken("nobody read any longer"));
                }
            };
            let chunk = match chunk {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(group = %self.group.name, %error, "a body broke off");
                    return fill.fail(error);
                }
            };
            received_bytes += chunk.len() as u64;
            if head.content_length.is_some_and(|length| received_bytes > length) {
                return fill.fail(FetchError::broken("more bytes than declared"));
            }
            // Chunks are often slices of a large read buffer; what is kept must not keep that alive.
            let chunk = Bytes::copy_from_slice(&chunk);
            if let Some(charge) = &mut reservation {
                let unexpected = (received_bytes as usize).saturating_sub(charge.bytes());
                if received_bytes > self.group.object_bytes_max || !charge.try_grow(unexpected) {
                    self.group.stats.not_stored.increment("too_large");
                    reservation = None;
                    kept = Vec::new();
                    fill.narrow(WINDOW_BYTES);
                } else {
                    kept.push(chunk.clone());
                }
            }
            tokio::select! {
                () = fill.push(chunk) => {}
                () = fill.abandoned(ABANDONED_GRACE), if reservation.is_none() => {
                    return fill.fail(FetchError::broken("nobody read any longer"));
                }
            }
        }
        if self.request.method == Method::Get && head.content_length.is_some_and(|length| received_bytes != length) {
            return fill.fail(FetchError::broken("fewer bytes than declared"));
        }
        if let (Some(reservation), Some(role)) = (reservation, role) {
            let entry = self.entry_of(&head, &kept, reservation);
            let (rule, variant) = (head.rule.clone(), head.variant.clone());
            self.cache.insert(&self.group, &self.request.key, role, rule, variant, Arc::new(entry));
        } else if head.status < 500
            && let Some(stale) = &self.stale
        {
            // The origin has a newer answer, which may not be stored: the old one is superseded (RFC 9111 section 4.3.3).
            self.cache.remove_entry(&self.group, &self.request.key, stale);
        }
        fill.finish();
    }

    fn entry_of(&self, head: &Head, kept: &[Bytes], reservation: Charge) -> Entry {
        let body = Body::gather(kept);
        let mut charge = reservation;
        charge.resize(Entry::charged_bytes(&head.fields, &head.sent, &body));
        Entry {
            id: head.id,
            status: head.status,
            fields: head.fields.clone(),
            freshness: head.freshness.clone(),
            validators: head.validators.clone(),
            sent: head.sent.clone(),
            body,
            charge,
        }
    }

    fn rule_of(&self, fields: &Fields) -> VaryRule {
        if self.group.rules.ignore_vary { VaryRule::None } else { VaryRule::parse(fields) }
    }

    /// What we sent in the fields that decide the variant.
    fn sent_for(&self, rule: &VaryRule) -> Fields {
        let names = rule.names();
        if names.is_empty() {
            return Fields::empty();
        }
        self.request.forwarded.without(|name| !names.iter().any(|listed| listed.eq_ignore_ascii_case(name)))
    }

    /// An answer of the origin is main at the key's owner and a copy everywhere else.
    fn role_of_origin_answers(&self) -> Role {
        if self.cache.fleet.load().owns(&self.request.key) { Role::Main } else { Role::Hot }
    }

    /// One client's private answer must not switch collapsing off for the rest: only a request without credentials writes
    /// the memory, and never because the origin failed for a moment.
    fn may_remember_uncacheable(&self, status: u16) -> bool {
        status < 500
            && !self.request.authorization
            && !self.request.forwarded.contains("cookie")
            && !self.request.directives.no_store
            && self.request.method == Method::Get
            && self.request.range.is_none()
    }

    fn remember_failure(&self, fill: &Fill<FlightKey, Landed>, error: &FetchError) {
        if let (FetchError::Refused { status, .. }, Route::Here) = (error, fill.key().route) {
            let key = HashedKey::new(self.group.id, &self.request.key);
            let lifetime = self.group.rules.errors;
            self.cache.remembered.remember(key.hash(), Memory::Failed(*status), self.cache.now(), lifetime);
        }
    }
}

impl Cache {
    /// Stores an entry beside the other variants of its key.
    fn insert(&self, group: &Group, key: &Bytes, role: Role, rule: VaryRule, variant: VariantKey, entry: Arc<Entry>) {
        let hashed = HashedKey::new(group.id, key);
        let _writing = self.slot_writer(&hashed).lock();
        let stored = self.store.peek(&hashed).map(|(slot, _)| slot);
        let slot = Slot::with(stored.as_deref(), rule, variant, entry, group.variants_max);
        self.store.insert(role, &hashed, Arc::new(slot));
    }

    fn remove_entry(&self, group: &Group, key: &Bytes, entry: &Arc<Entry>) {
        let hashed = HashedKey::new(group.id, key);
        let _writing = self.slot_writer(&hashed).lock();
        let Some((slot, role)) = self.store.peek(&hashed) else { return };
        match slot.without(entry) {
            Some(rest) => drop(self.store.insert(role, &hashed, Arc::new(rest))),
            None => drop(self.store.remove(&hashed)),
        }
    }
}

/// How long a fill goes on when nobody reads it.
pub const ABANDONED_GRACE: Duration = Duration::from_secs(1);

/// How far a body that is not stored may run ahead of its fastest reader. Guess: a few round trips of a fast client.
pub const WINDOW_BYTES: usize = 1024 * 1024;
