//! The seam: origin, directory and peer are asked the same way and fail in the same three ways.
//!
//! `cache` knows only this page. Every implementation passes the one suite in `testing::source_contract`.
//!
//! Interim answers (1xx) go beside the answer, and only forwards: the origin hands them to the [`InterimSink`] that came with
//! the question; a fill's sink puts them into its flight; every reader that waits there takes them from it and hands them to
//! the sink of whoever waits, a client's connection or a peer's question, which sends them over the hop to the next flight.
//! Nobody keeps them longer than the flight lasts, and an entry never has them.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::fields::Fields;
use crate::freshness::HopFreshness;
use crate::purge::{Tags, Vector};

/// The methods that a cache asks for. Everything else passes through and never meets a [`Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// The whole representation, or with a `Range` field a part of it.
    Get,
    /// The head alone.
    Head,
}

impl Method {
    /// The method's token on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
        }
    }
}

/// One question to a source.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Name of the group; a peer finds its own rules for it by this name.
    pub group: Arc<str>,
    /// The key, as the ring and the store know it.
    pub key: Bytes,
    /// What the origin is asked for: path and query as sent, always beginning with `/`, without the origin's own prefix.
    pub target: Bytes,
    /// The client's `Host`, only where the group's `origin_host: client` makes it part of the key.
    pub host: Option<Bytes>,
    /// `GET` or `HEAD`.
    pub method: Method,
    /// End-to-end fields to send: those of the client that the group forwards, and validators or a range of our own.
    /// `Host` and hop-by-hop fields are the source's business and never in here.
    pub fields: Fields,
}

/// The answer of a source up to the end of its header section; the body follows chunk by chunk.
pub struct Fetched {
    /// Final status code, 200 to 599. Interim answers (1xx) never show here.
    pub status: u16,
    /// The fields as received, without hop-by-hop ones and without `Content-Length`: whoever frames a body writes its own.
    pub fields: Fields,
    /// Length of the body in bytes where the framing declares it; for `HEAD` that of the body a `GET` would have.
    pub content_length: Option<u64>,
    /// Whether nothing but the end of the connection ends the body: it may be passed on and must never be stored, because a
    /// break looks like an end (RFC 9112 section 6.3, item 8).
    pub close_delimited: bool,
    /// What a peer adds about the entry it answered from; `None` from an origin.
    pub hop: Option<Hop>,
    /// The body.
    pub body: Box<dyn BodyStream>,
}

/// An answer of an owner that is all there.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Final status code.
    pub status: u16,
    /// End-to-end fields.
    pub fields: Fields,
    /// What the owner says about the entry.
    pub hop: Hop,
    /// The body.
    pub body: Bytes,
}

/// Whether a [`Whole`] with so many bytes of fields and so many bytes of body can be taken now.
pub type Fits<'a> = &'a dyn Fn(usize, usize) -> bool;

/// What an owner says about its answer beside head and body. No instant of any clock is in here (architecture: freshness
/// over the hop): ages and remaining lifetimes only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// How old and how fresh the response is at the owner now.
    pub freshness: HopFreshness,
    /// Whether the response may be given to other readers than the one who asked.
    pub shareable: bool,
    /// Whether the response may be stored in a shared cache.
    pub storable: bool,
    /// What the owner sent the origin in the fields that the response's `Vary` names.
    pub sent: Fields,
    /// Which entry of which owner this is.
    pub entry: EntryId,
    /// Which body it has: the fill that brought it. An entry that the origin confirmed is another one with the same body.
    /// Zero where nothing can be said of it.
    pub body: EntryId,
    /// Whether `Last-Modified` is no strong validator, whatever `Date` says: the origin sent no `Date`, and this one is of
    /// the owner's clock (RFC 9110 section 8.8.2.2).
    pub weak_date: bool,
    /// Whether the owner answered from its memory without asking the origin.
    pub hit: bool,
    /// Whether what it answered with is stale, as the rules allow; without `hit`, after the origin failed.
    pub stale: bool,
    /// Whether the origin confirmed what the owner answered with.
    pub revalidated: bool,
    /// Whether the body that the asker named is still the owner's: then there is none here, and the head only refreshes it.
    pub not_modified: bool,
    /// The names under which the response can be purged beside its key.
    pub tags: Tags,
    /// Which purges the response is certainly not older than; `None` from a node that knows nothing of purges (Go's).
    pub stamp: Option<Vector>,
    /// How often the key is asked for in a minute, as far as the owner sees; zero where it does not say.
    pub minute_rate: u32,
    /// How many nodes after the owner on the ring have the key as well ([`crate::replicas`]).
    pub replicas: u32,
}

/// Names one stored response: which life of which node filled it, and the how-manieth fill of that life it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EntryId {
    /// A random number drawn when the node started; zero means no entry.
    pub incarnation: u64,
    /// Counts the fills of that node from one.
    pub fill: u64,
}

impl EntryId {
    /// Whether it names anything.
    pub fn is_some(self) -> bool {
        self.incarnation != 0
    }
}

/// An interim answer of the origin (RFC 9110 section 15.2), such as 103 (Early Hints, RFC 8297).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interim {
    /// 102 to 199: a 100 answers the question whether content may be sent, which a fill never asks; a 101 is no interim
    /// answer but the end of HTTP.
    pub status: u16,
    /// The fields, without those of the connection, those of framing, and cookies.
    pub fields: Fields,
}

impl Interim {
    /// Whether an answer of this status can be passed on as interim.
    pub fn is_one(status: u16) -> bool {
        (102..=199).contains(&status)
    }
}

/// Whoever hears the interim answers to a question. It must not wait: it is called in the middle of the question.
pub trait InterimSink: Send + Sync {
    /// One more has come. Those that are too many or too large may be dropped.
    fn hear(&self, interim: Interim);
}

/// Hears nothing.
#[derive(Clone, Copy, Debug)]
pub struct Deaf;

impl InterimSink for Deaf {
    fn hear(&self, _: Interim) {}
}

/// What goes with a question beside what is asked.
#[derive(Clone, Copy)]
pub struct Aside<'a> {
    /// Names the body that the asker has already; zero for none. A peer whose entry still has it need not send it again.
    pub have: EntryId,
    /// Who hears interim answers.
    pub interims: &'a dyn InterimSink,
    /// How many bytes of the body a peer may send ahead of its reader, where that is to be less than usual.
    pub ahead_bytes_max: Option<u32>,
}

impl Default for Aside<'_> {
    fn default() -> Self {
        Aside { have: EntryId::default(), interims: &Deaf, ahead_bytes_max: None }
    }
}

/// A body on its way. Dropping it ends the transfer.
#[async_trait]
pub trait BodyStream: Send {
    /// The next bytes, never empty; `None` at an end that the framing confirms (or, where [`Fetched::close_delimited`] says so,
    /// at the end of the connection). After an error or the end it is not called again.
    ///
    /// # Errors
    /// Always [`FetchError::Broken`]: the head has been given out, so nobody else can be asked.
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError>;
}

/// Somebody who can be asked for a key: the origin, a directory, or the peer that owns the key.
#[async_trait]
pub trait Source: Send + Sync {
    /// Asks and waits for the head. Dropping the future cancels the request.
    ///
    /// # Errors
    /// Before the head all three kinds may come; see [`FetchError`] for what follows from each.
    async fn fetch(&self, ask: &Ask) -> Result<Fetched, FetchError>;

    /// The same with something beside the question. A source that has no interim answers and confirms nothing ignores it.
    ///
    /// # Errors
    /// As [`Source::fetch`].
    async fn fetch_with(&self, ask: &Ask, aside: Aside<'_>) -> Result<Fetched, FetchError> {
        let _ = aside;
        self.fetch(ask).await
    }
}

/// Why a source gave no answer, in the three kinds from which three things follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Nothing was answered and nobody else's answer is prejudiced: somebody else may be asked.
    #[error("unreachable: {0}")]
    Unreachable(Cow<'static, str>),
    /// The source answered, and its answer is a failure: it holds for everybody who waits. `status` is what a client is told.
    #[error("refused with {status}: {reason}")]
    Refused {
        /// 502, 503 or 504.
        status: u16,
        /// Short, fit for a client: names nothing of the inside.
        reason: Cow<'static, str>,
    },
    /// The head was sent and then the body ended early: every reader sees the break, nothing is stored.
    #[error("broken: {0}")]
    Broken(Cow<'static, str>),
}

impl FetchError {
    /// [`FetchError::Unreachable`] with a reason.
    pub fn unreachable(reason: impl Into<Cow<'static, str>>) -> Self {
        FetchError::Unreachable(reason.into())
    }

    /// [`FetchError::Broken`] with a reason.
    pub fn broken(reason: impl Into<Cow<'static, str>>) -> Self {
        FetchError::Broken(reason.into())
    }

    /// [`FetchError::Refused`] with the status for clients and a reason.
    pub fn refused(status: u16, reason: impl Into<Cow<'static, str>>) -> Self {
        FetchError::Refused { status, reason: reason.into() }
    }
}

/// A body of no bytes; a box of it allocates nothing.
#[derive(Debug, Default)]
pub struct NoBody;

#[async_trait]
impl BodyStream for NoBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        Ok(None)
    }
}

/// A body that is already there.
#[derive(Debug, Default)]
pub struct ReadyBody(std::collections::VecDeque<Bytes>);

impl ReadyBody {
    /// A body of these chunks; empty ones are left out.
    pub fn new(chunks: impl IntoIterator<Item = Bytes>) -> Self {
        ReadyBody(chunks.into_iter().filter(|chunk| !chunk.is_empty()).collect())
    }
}

#[async_trait]
impl BodyStream for ReadyBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        Ok(self.0.pop_front())
    }
}
