//! What peers get: an answer of the cache in the form of the hop, or out of memory without a future.

use async_trait::async_trait;
use bytes::Bytes;

use super::{Answer, Cache, Payload, Request};
use crate::clock::Now;
use crate::entry::Entry;
use crate::flight::ReadError;
use crate::following::Following;
use crate::freshness::{RequestDirectives, Verdict};
use crate::group::Group;
use crate::key::HashedKey;
use crate::parts;
use crate::semantics::ranges::{ByteRange, ContentRange};
use crate::source::{Ask, BodyStream, FetchError, Fetched, Hop, Method, ReadyBody, Whole};
use crate::stats::Outcome;

impl Cache {
    /// Turns an answer into what the peer protocol carries.
    pub(super) fn for_peer(&self, request: &Request, answer: Answer) -> Result<Fetched, FetchError> {
        let now = self.now();
        match answer.payload {
            Payload::Entry(entry) => Ok(entry_for_peer(&entry, request, answer.outcome == Outcome::Hit, now)),
            Payload::Stream(head, reader) => {
                let hop = Hop {
                    freshness: head.freshness.over_hop(now),
                    shareable: head.shareable,
                    storable: head.storable,
                    sent: head.sent.clone(),
                    entry: head.id,
                    hit: false,
                    not_modified: false,
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
                if let Some(part) = request.part(head.status, &head.fields, &head.validators, length) {
                    fetched.body = parts::cut(fetched.body, part);
                    as_part(&mut fetched, part, length);
                }
                Ok(fetched)
            }
            Payload::Failure { status, reason } => Err(FetchError::Refused { status, reason }),
            Payload::Pass(reason) => Err(FetchError::refused(502, reason)),
        }
    }

    /// What [`Cache::get_as_owner`] answers to a plain `GET`, if memory has it fresh, whole and in one piece. Counts as
    /// [`Cache::get_as_owner`] does when it finds something, and nothing otherwise.
    pub fn find_for_peer(&self, group: &Group, ask: &Ask) -> Option<Whole> {
        if ask.method != Method::Get || !is_plain(ask) {
            return None;
        }
        let now = self.now();
        let key = HashedKey::new(group.id, &ask.key);
        let directives = RequestDirectives::default();
        let entry = self.store.find_if(&key, |slot, _| {
            let entry = slot.select(|| ask.fields.clone())?;
            let verdict = entry.freshness.verdict(&group.rules, &directives, now);
            let in_one_piece = entry.body.is_whole() && entry.body.segments().len() <= 1;
            (verdict == Verdict::Fresh && in_one_piece).then(|| entry.clone())
        })?;
        group.stats.gets.increment();
        group.stats.server_requests.increment();
        group.stats.cache_hits.increment();
        let hop = Hop {
            freshness: entry.freshness.over_hop(now),
            shareable: true,
            storable: true,
            sent: entry.sent.clone(),
            entry: entry.id,
            hit: true,
            not_modified: false,
        };
        let body = entry.body.segments().first().cloned().unwrap_or_default();
        Some(Whole { status: entry.status, fields: entry.fields.clone(), hop, body })
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

/// What a peer gets of a stored entry; of a satisfiable single range only that part.
pub(crate) fn entry_for_peer(entry: &Entry, request: &Request, hit: bool, now: Now) -> Fetched {
    let hop = Hop {
        freshness: entry.freshness.over_hop(now),
        shareable: true,
        storable: true,
        sent: entry.sent.clone(),
        entry: entry.id,
        hit,
        not_modified: false,
    };
    let length = entry.body.len();
    let mut fetched = Fetched {
        status: entry.status,
        fields: entry.fields.clone(),
        content_length: Some(length),
        hop: Some(hop),
        close_delimited: false,
        body: Box::new(ReadyBody::default()),
    };
    if request.method == Method::Head {
        return fetched;
    }
    match request.part_of(entry) {
        Some(part) => {
            fetched.body = Box::new(ReadyBody::new(entry.body.slice(part).unwrap_or_default()));
            as_part(&mut fetched, part, Some(length));
        }
        // Whole, several parts, or none of it: the asking node has the client and cuts for it.
        None => fetched.body = Box::new(ReadyBody::new(entry.body.segments().iter().cloned())),
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
