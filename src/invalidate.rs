//! What the answer to an unsafe request does to the cache (RFC 9111 section 4.4, RFC 9110 section 9.3.3).
//!
//! Such requests pass the cache by; who passes them on tells it of the answer: [`Cache::invalidate_everywhere`] at the head, and
//! after that [`Cache::deposit`], if what answers the `POST` would answer a `GET` as well.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::cache::{Cache, FlightKey, Landed, Request, read_to_end};
use crate::clock::Now;
use crate::entry::{Body, Parts};
use crate::fields::Fields;
use crate::fill::{Basis, Filling, Shelf};
use crate::fleet::Peer;
use crate::freshness::{self, Exchange, HopFreshness, RequestDirectives, Target, Verdict};
use crate::group::Group;
use crate::hop::entry_for_peer;
use crate::key::HashedKey;
use crate::memory::Charge;
use crate::purge::{Position, Stamp, Tags};
use crate::semantics::forward::stays_inside;
use crate::semantics::validators::StoredValidators;
use crate::semantics::variant::VaryRule;
use crate::source::{Ask, EntryId, FetchError, Fetched, Hop, Method, ReadyBody};
use crate::stats::Outcome;
use crate::store::Role;

/// An exchange with the origin that did not go through a fill.
#[derive(Clone, Copy, Debug)]
pub struct Passed<'a> {
    /// The key that the request has in the group.
    pub key: &'a Bytes,
    /// Host and port under which the origin knows itself: the Host sent to it, and, where it differs, the client's.
    pub authorities: &'a [&'a str],
    /// Where the paths behind which the group's targets lie begin, without a slash at the end: at the origin (the base path of
    /// its URL), and for clients (what the group matches). The origin may write its own paths into its answers or, where it
    /// knows them, those of the clients; what lies elsewhere is not of this group.
    pub prefixes: [&'a str; 2],
    /// The method.
    pub method: &'a str,
    /// The fields that were sent to the origin.
    pub sent: &'a Fields,
    /// The client's directives; the default where the group ignores them.
    pub directives: RequestDirectives,
    /// The final status received.
    pub status: u16,
    /// The fields received, without those of the connection and without `Content-Length`.
    pub fields: &'a Fields,
    /// Length of the body where it is known.
    pub content_length: Option<u64>,
    /// When the request was sent.
    pub requested_at: Now,
    /// Which purges were recorded before it was sent.
    pub stamp: &'a Stamp,
}

impl Passed<'_> {
    /// The keys that the answer makes invalid: the request's own, and those of `Location` and `Content-Location` on the same
    /// host.
    pub fn invalidated_keys(&self, group: &Group) -> Vec<Bytes> {
        let Some((host, target)) = self.target(group) else { return Vec::new() };
        let mut keys: Vec<Bytes> = Vec::new();
        for prefix in self.prefixes {
            let path = format!("{prefix}{target}");
            let seen = Target { authorities: self.authorities, path: &path };
            let paths = freshness::invalidated_by(self.method, self.status, &seen, self.fields);
            // The first path is the request's own, whose key is known.
            for (index, path) in paths.iter().enumerate() {
                let behind = path.strip_prefix(prefix).filter(|behind| behind.starts_with('/'));
                let key = match index {
                    0 => Some(self.key.clone()),
                    _ => behind.and_then(|target| group.keys.key_of(&host, target)),
                };
                keys.extend(key.filter(|key| !keys.contains(key)));
            }
        }
        keys
    }

    /// The target as whoever wrote the answer's `Content-Location` sees it.
    fn path_in_answer(&self, target: &str) -> String {
        let [origins, clients] = self.prefixes.map(|prefix| format!("{prefix}{target}"));
        let target = Target { authorities: self.authorities, path: &clients };
        if freshness::content_location_is_target(&target, self.fields) { clients } else { origins }
    }

    /// Host, where it belongs to the key, and origin target of the request.
    fn target(&self, group: &Group) -> Option<(String, String)> {
        let (host, target) = group.keys.target_of(self.key)?;
        let host = host.map(|host| String::from_utf8_lossy(&host).into_owned()).unwrap_or_default();
        Some((host, String::from_utf8(target.to_vec()).ok()?))
    }
}

impl Cache {
    /// Purges what the answer to an unsafe request makes invalid ([`Passed::invalidated_keys`]), on all nodes; returns how many
    /// entries this node had of it, and which purge it was. Who does not confirm within the peer deadline is
    /// told until it does, but not waited for.
    pub async fn invalidate_everywhere(
        self: &Arc<Self>,
        group: &Arc<Group>,
        keys: Vec<Bytes>,
    ) -> (u64, Option<Position>) {
        self.purge_keys(group, keys, self.fleet.load().peer_deadline()).await
    }

    /// What this node has in memory for a peer's question.
    pub fn peek(&self, group: &Group, request: &Request) -> Option<Fetched> {
        let now = self.now();
        if !self.leasing.lets_memory_answer(now) {
            return None;
        }
        let stamp = self.purges.applied().vector;
        let (slot, _) = self.store.peek(&HashedKey::new(group.id, &request.key))?;
        let entry = slot.select(|| request.forwarded.clone()).filter(|entry| request.is_answered_by(entry))?;
        let fresh = entry.freshness.verdict(&group.rules, &request.directives, now) == Verdict::Fresh;
        if fresh {
            self.note_peek(&HashedKey::new(group.id, &request.key), now);
        }
        fresh.then(|| entry_for_peer(entry, request, Outcome::Hit, EntryId::default(), stamp, now))
    }

    /// Takes over what the node in its life `from` has for a key that this node owns, now or as soon as that one has left;
    /// what this node has already it keeps.
    ///
    /// # Errors
    /// That node did not answer.
    pub async fn take_over(self: &Arc<Self>, group: &Arc<Group>, ask: &Ask, from: u64) -> Result<(), FetchError> {
        let request = Request::from_ask(group, ask);
        let Some(peer) = self.peer_in_life(from) else { return Ok(()) };
        if !self.fleet.load().owns_without(&ask.key, from) || self.peek(group, &request).is_some() {
            return Ok(());
        }
        self.copy(group, ask, request, &peer, Role::Main).await
    }

    /// Stores what a peer has in memory for a key, if it has something.
    ///
    /// # Errors
    /// It did not answer.
    pub(crate) async fn copy(
        self: &Arc<Self>,
        group: &Arc<Group>,
        ask: &Ask,
        request: Request,
        peer: &Arc<dyn Peer>,
        role: Role,
    ) -> Result<(), FetchError> {
        // Read before the question: a purge from now on keeps the answer out.
        self.spread.note_group(group);
        let asked = self.purges.known();
        let (mut reader, fill) = self.flights.alone(self.flight_of_key(group, &ask.key));
        let asked_at = self.now();
        let Some(fetched) = peer.peek(ask).await? else { return Ok(()) };
        let filling = Filling { peeks: false, ..self.filling(group, request, Basis::Nothing, asked) };
        let reading = async {
            if let Ok(Landed::Streaming(_)) = reader.head().await {
                while let Ok(Some(_)) = reader.chunk().await {}
            }
        };
        tokio::join!(filling.take_over(fill, fetched, asked_at, role), reading);
        Ok(())
    }

    /// Takes what somebody else made as the answer for a key, fresh for `lifetime`: what was stored of the key goes, on all nodes,
    /// and if this node owns it, the value takes its place.
    pub async fn set(self: &Arc<Self>, group: &Arc<Group>, key: Bytes, value: Bytes, lifetime: Duration) {
        self.purge_keys(group, vec![key.clone()], self.fleet.load().peer_deadline()).await;
        if !self.owns(&key) || lifetime.is_zero() {
            return;
        }
        self.spread.note_group(group);
        let (asked, asked_at) = (self.purges.known(), self.now());
        let remaining_milliseconds = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
        let freshness = HopFreshness { remaining_milliseconds, ..HopFreshness::default() };
        let id = self.next_entry_id();
        let hop = Hop { freshness, shareable: true, storable: true, entry: id, body: id, ..Hop::default() };
        let fetched = Fetched {
            status: 200,
            fields: Fields::empty(),
            content_length: Some(value.len() as u64),
            close_delimited: false,
            hop: Some(hop),
            body: Box::new(ReadyBody::new([value])),
        };
        let request = Request::plain(key.clone());
        let (reader, fill) = self.flights.alone(self.flight_of_key(group, &key));
        let filling = Filling { peeks: false, ..self.filling(group, request, Basis::Nothing, asked) };
        tokio::join!(filling.take_over(fill, fetched, asked_at, Role::Main), read_to_end(reader));
    }

    /// Begins to store the answer to a `POST` for later `GET`s; `None` when it may not be. `invalidated` is what
    /// [`Cache::invalidate_everywhere`] said of the same answer.
    pub fn deposit(
        self: &Arc<Self>,
        group: &Arc<Group>,
        passed: &Passed<'_>,
        invalidated: Option<Position>,
    ) -> Option<Deposit> {
        self.spread.note_group(group);
        let received_at = self.now();
        // What arrives from now on is looked for when the body has ended; what came since the request was sent, here.
        let stamp = self.purges.known();
        let (_, target) = passed.target(group)?;
        let target = passed.path_in_answer(&target);
        let exchange = Exchange {
            method: passed.method,
            target: Target { authorities: passed.authorities, path: &target },
            sent: passed.sent,
            directives: passed.directives,
            status: passed.status,
            received: passed.fields,
            stores_parts: false,
            requested_at: passed.requested_at,
            received_at,
            jitter: self.jitter(),
        };
        let judgement = freshness::judge(&group.rules, &exchange);
        let length = passed.content_length;
        if passed.method != "POST" || judgement.storable.is_err() || length? > group.object_bytes_max {
            return None;
        }
        let rule = if group.rules.ignore_vary { VaryRule::None } else { VaryRule::parse(passed.fields) };
        let names = rule.names();
        let sent = passed.sent.without(|name| !names.iter().any(|listed| listed.eq_ignore_ascii_case(name)));
        let variant = rule.variant_key(passed.sent)?;
        let fields = freshness::fields_to_store(&group.rules, &judgement.directives, passed.fields, received_at);
        let fields = fields.without(stays_inside);
        let validators = StoredValidators::of(&fields, received_at.wall_seconds);
        // Also where the origin's own Date cannot be read and ours stands in its place.
        let weak_date = StoredValidators::of(passed.fields, received_at.wall_seconds).has_weak_date();
        let tags = Tags::of(passed.fields);
        let overtaken = self.purges.overtaken_but_by(invalidated, passed.stamp, &group.name, passed.key, &tags);
        if tags.are_too_many() || overtaken {
            return None;
        }
        let charge = self.ledger.reserve(length? as usize)?;
        let id = self.next_entry_id();
        let parts = Parts {
            id,
            body_id: id,
            status: passed.status,
            fields,
            freshness: judgement.freshness,
            validators: if weak_date { validators.with_date_of_ours() } else { validators },
            sent,
            tags,
            body: Body::default(),
        };
        Some(Deposit {
            cache: self.clone(),
            group: group.clone(),
            flight: self.flight_of_key(group, passed.key),
            shelf: Shelf { role: self.role_of_origin_answers(passed.key), rule, variant },
            parts,
            stamp,
            kept: Vec::new(),
            left_bytes: length?,
            charge,
        })
    }
}

/// A response whose body goes by, to be stored when it is whole. Dropping it stores nothing.
pub struct Deposit {
    cache: Arc<Cache>,
    group: Arc<Group>,
    flight: FlightKey,
    shelf: Shelf,
    /// All but the body.
    parts: Parts,
    stamp: Stamp,
    kept: Vec<Bytes>,
    left_bytes: u64,
    charge: Charge,
}

impl Deposit {
    /// Takes the next bytes; says whether it still makes sense to go on.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let Some(left_bytes) = self.left_bytes.checked_sub(bytes.len() as u64) else {
            // More than declared: never again will nothing be left.
            self.left_bytes = u64::MAX;
            return false;
        };
        self.left_bytes = left_bytes;
        self.kept.push(Bytes::copy_from_slice(bytes));
        true
    }

    /// The body has ended as its framing says. Stores it, if that is what was declared and nothing was invalidated since. To
    /// be called inside a runtime: where another node owns the key, it is told to come and take it.
    pub fn finish(self) {
        let Deposit { cache, group, flight, shelf, parts, stamp, kept, left_bytes, charge } = self;
        if left_bytes > 0 {
            return;
        }
        let body = Body::gather(&kept);
        let (role, sent) = (shelf.role, parts.sent.clone());
        cache.insert(&group, &flight, shelf, (Parts { body, ..parts }, charge), &stamp);
        let Some(ask) = group.ask(&flight.key, Method::Get, sent).filter(|_| role == Role::Hot) else { return };
        let Some(owner) = cache.fleet.load().owner(&flight.key).cloned() else { return };
        tokio::spawn(async move {
            if let Err(error) = owner.offer(&ask).await {
                tracing::debug!(group = %ask.group, %error, "the owner of a deposit did not take it");
            }
        });
    }
}
