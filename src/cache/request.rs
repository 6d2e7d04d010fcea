//! What the cache is asked: by a client, by a peer, by itself.

use bytes::Bytes;

use crate::entry::Entry;
use crate::fields::{FieldLines, Fields};
use crate::freshness::RequestDirectives;
use crate::group::Group;
use crate::semantics::ranges::{ByteRange, IfRange, RangeSet, Resolved};
use crate::semantics::validators::StoredValidators;
use crate::source::{Ask, Method};

/// What a client wants, as far as the cache is concerned. Preconditions and the cutting of ranges out of a whole response
/// are the response writer's business: they are evaluated at the head, whoever brings it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The key: one byte string for look-up, ring, purge and origin.
    pub key: Bytes,
    /// `GET` or `HEAD`.
    pub method: Method,
    /// The client's end-to-end fields that the group forwards, folded; with `Authorization` where the client sent it.
    /// What is not in here cannot vary.
    pub forwarded: Fields,
    /// Whether `forwarded` has `Authorization`: the request looks in the stores but shares no flight.
    pub authorization: bool,
    /// The client's cache directives; the default where the group ignores them.
    pub directives: RequestDirectives,
    /// The `Range` of a `GET`, when it is one that may be answered with a part.
    pub range: Option<RangeAsked>,
}

/// A client's `Range` with its `If-Range`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RangeAsked {
    /// The ranges.
    pub set: RangeSet,
    /// Its condition.
    pub if_range: IfRange,
    /// Value of `If-Range` as received, for the origin.
    pub if_range_value: Option<Bytes>,
}

impl Request {
    /// A `GET` of a key that says nothing else.
    pub fn plain(key: Bytes) -> Self {
        Request {
            key,
            method: Method::Get,
            forwarded: Fields::empty(),
            authorization: false,
            directives: RequestDirectives::default(),
            range: None,
        }
    }

    /// What a peer asks. Its fields were chosen by the rules of the node that its client asked; the range and the client's
    /// directives travel among them.
    pub fn from_ask(group: &Group, ask: &Ask) -> Self {
        let directives = group.directives(&ask.fields);
        let set = ask.fields.get("range").and_then(RangeSet::parse_value).filter(|_| ask.method == Method::Get);
        let range = set.map(|set| RangeAsked {
            set,
            if_range: IfRange::parse(&ask.fields),
            if_range_value: ask.fields.get("if-range").map(Bytes::copy_from_slice),
        });
        let forwards_directives = group.forward.forwards("cache-control");
        let forwarded = ask.fields.without(|name| {
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            is("range") || is("if-range") || (!forwards_directives && is("cache-control"))
        });
        Request {
            key: ask.key.clone(),
            method: ask.method,
            authorization: forwarded.contains("authorization"),
            forwarded,
            directives,
            range,
        }
    }

    /// Whether `entry` has what this request wants. One that is incomplete answers nothing but a single range that it holds
    /// (RFC 9111 section 3.3).
    pub(crate) fn is_answered_by(&self, entry: &Entry) -> bool {
        entry.body.is_whole() || self.part_of(entry).is_some_and(|part| entry.body.holds(part))
    }

    /// The one part that answers this request out of `entry`; `None` when the answer is something else.
    pub(crate) fn part_of(&self, entry: &Entry) -> Option<ByteRange> {
        self.part(entry.status, entry.fields(), || &entry.validators, Some(entry.body.len()))
    }

    /// The one part that answers this request out of a response; `None` when that is the whole, several parts, or a 416.
    pub(crate) fn part<'v>(
        &self,
        status: u16,
        fields: &FieldLines,
        validators: impl FnOnce() -> &'v StoredValidators,
        length: Option<u64>,
    ) -> Option<ByteRange> {
        let (Method::Get, Some(range), 200, Some(length)) = (self.method, &self.range, status, length) else {
            return None;
        };
        match range.set.resolve(length) {
            Resolved::Single(part) if range.if_range.holds(&validators().in_block(fields)) => Some(part),
            _ => None,
        }
    }
}
