//! The decision over everything: [`Cache::get`] for clients, [`Cache::get_as_owner`] for peers.

use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Now;
use crate::entry::Entry;
use crate::fields::Fields;
use crate::flight::FillReader;
use crate::freshness::{Freshness, RequestDirectives};
use crate::group::Group;
use crate::semantics::preconditions::StoredValidators;
use crate::source::Method;
use crate::stats::Outcome;

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
    /// The value of a valid `Range` field of a `GET`, and of its `If-Range`.
    pub range: Option<RangeAsked>,
}

/// A client's `Range` with its `If-Range`, as received.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RangeAsked {
    /// Value of `Range`.
    pub range: Bytes,
    /// Value of `If-Range`, if there was one.
    pub if_range: Option<Bytes>,
}

/// What the cache says to a request.
pub struct Answer {
    /// What became of the request.
    pub outcome: Outcome,
    /// Where the answer comes from.
    pub payload: Payload,
    /// What `Cache-Status` says beside the outcome.
    pub report: Report,
}

/// Where the bytes of an answer come from.
pub enum Payload {
    /// A stored entry.
    Entry(Arc<Entry>),
    /// A response that is arriving: its head is known, its body is read as it comes.
    Stream(Arc<Head>, FillReader<Landed>),
    /// The cache has no part in this: hand the client's own request to the pass-through lane. The word says why.
    Pass(&'static str),
    /// No answer could be had.
    Failure {
        /// 502, 503 or 504.
        status: u16,
        /// Short and fit for a client.
        reason: std::borrow::Cow<'static, str>,
    },
}

/// The parameters of `Cache-Status` (RFC 9211) that the outcome alone does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// `fwd`: why the request went further, in RFC 9211's words; `None` for a hit.
    pub forward: Option<&'static str>,
    /// Status of the origin's answer where it differs from the one sent.
    pub forward_status: Option<u16>,
    /// Whether the request waited for another's fill.
    pub collapsed: bool,
    /// Whether the response was or will be stored here.
    pub stored: bool,
    /// `detail`, such as `hot`.
    pub detail: Option<&'static str>,
    /// What the owner reported when a peer answered: hit there?
    pub owner: Option<OwnerReport>,
}

/// The owner's part of `Cache-Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerReport {
    /// Whether the owner had it.
    pub hit: bool,
    /// Remaining freshness in seconds at the owner, where it could be stored.
    pub ttl_seconds: Option<i64>,
}

/// The head of a response that is arriving.
#[derive(Debug)]
pub struct Head {
    /// Final status code.
    pub status: u16,
    /// End-to-end fields as they go to clients, as in [`Entry::fields`].
    pub fields: Fields,
    /// Length of the body where it is known.
    pub content_length: Option<u64>,
    /// Freshness facts.
    pub freshness: Freshness,
    /// Validators.
    pub validators: StoredValidators,
    /// When the head arrived.
    pub received_at: Now,
}

/// What a flight tells its readers at the head.
#[derive(Clone)]
pub enum Landed {
    /// A response whose body is streaming.
    Streaming(Arc<Head>),
    /// There is an entry: a fill that landed just before, or one that the origin confirmed.
    Entry(Arc<Entry>, Outcome),
}
