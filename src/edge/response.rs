//! The one writer of answers: whatever brings one (a fresh hit, an answer of the cache, an error of our own) and whatever
//! carries it (HTTP/1 or HTTP/2), status, fields and parts of the body are decided here.
//!
//! Conditions are evaluated against the head, whoever brings it, and ranges are cut here, so a hit, a miss and another
//! node's answer give the same bytes. Bodies are never copied: segments of an entry and chunks of a stream are handed on.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::connection::Slices;
use super::head_writer::{
    CENTURY_SECONDS, Decimal, HEAD_BYTES_BESIDE_FIELDS, HeadWriter, Http1Head, end_of_head, put_decimal,
};
use super::request_head::{Method, RequestHead, Seen};
use crate::cache::{Answer, Head, OwnerReport, Payload, Report};
use crate::clock::Now;
use crate::entry::Entry;
use crate::fields::{FieldLines, Fields};
use crate::following::Following;
use crate::freshness::{Freshness, format_http_date};
use crate::semantics::cache_status::{Cache as StatusOf, CacheStatus, ForwardReason, Handling};
use crate::semantics::multipart::Multipart;
use crate::semantics::not_modified::fields_of_304;
use crate::semantics::preconditions::{self, Preconditions, is_conditional_name};
use crate::semantics::ranges::{ByteRange, ContentRange, IfRange, RangeSet, RangeSpec, Resolved};
use crate::semantics::validators::StoredValidators;
use crate::stats::Outcome;

/// What a client wants of a representation. For a plain request it is the default and costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The method is `HEAD`: the same head, no body.
    pub head_only: bool,
    exceptional: Option<Box<Exceptional>>,
}

/// Conditions and ranges of a request.
#[derive(Clone, Debug)]
struct Exceptional {
    conditions: Preconditions,
    ranges: Option<(RangeSet, IfRange)>,
}

impl Wanted {
    /// What a request of HTTP/1 wants; allocates only when there are conditions or ranges.
    #[inline]
    pub fn of(head: &RequestHead<'_>) -> Self {
        let head_only = head.method == Method::Head;
        if !head.seen.any(Seen::CONDITION.with(Seen::RANGE)) {
            return Wanted { head_only, ..Wanted::default() };
        }
        let fields = head.fields_where(|name| {
            is_conditional_name(name) || name.eq_ignore_ascii_case("range") || name.eq_ignore_ascii_case("if-range")
        });
        Wanted::of_fields(head_only, &fields)
    }

    /// What a request with these fields wants.
    pub fn of_fields(head_only: bool, fields: &Fields) -> Self {
        let method = if head_only { http::Method::HEAD } else { http::Method::GET };
        let conditions = Preconditions::parse(fields);
        let ranges = RangeSet::parse(&method, fields).map(|ranges| (ranges, IfRange::parse(fields)));
        let exceptional = !conditions.is_empty() || ranges.is_some();
        Wanted { head_only, exceptional: exceptional.then(|| Box::new(Exceptional { conditions, ranges })) }
    }
}

/// An answer that is ready to be sent.
pub struct Response {
    /// Status of the answer.
    pub status: u16,
    /// What became of the request.
    pub outcome: Outcome,
    /// Why, for the log: the reason of an error.
    pub detail: Cow<'static, str>,
    selection: Selection,
    content: Content,
    /// `None`: nothing but what [`Response::hot`] says.
    report: Option<Box<Report>>,
    /// Whether the entry is a hot copy.
    hot: bool,
    head_only: bool,
}

/// Where head and body come from. A hit is moved about, and the others are boxed, to be small.
enum Content {
    Entry(Entry),
    Stream(Box<(Arc<Head>, Following)>),
    /// An answer of our own: plain text, and fields beside the usual ones.
    Own(Box<(Fields, Bytes)>),
}

/// Which part of a representation is sent.
enum Selection {
    Whole,
    NotModified,
    PreconditionFailed,
    Part(ByteRange, u64),
    Parts(Box<Multipart>),
    Unsatisfiable(u64),
}

/// The body of an answer.
pub enum Body<'a> {
    /// There is none.
    None,
    /// Bytes in memory, in order; they are shared, not copied.
    Segments(Segments<'a>),
    /// Bytes that arrive: read them and pass them through the cutter.
    Stream(&'a mut Following, Cutter),
}

/// A body in memory, or the wanted parts of one.
pub enum Segments<'a> {
    /// All of a body that lies in one block, or a part of it.
    Block(&'a [u8], &'a crate::entry::Body),
    /// All of another.
    Shared(&'a [Bytes]),
    /// Parts of it.
    Parts(Vec<Bytes>),
}

impl Segments<'_> {
    /// The bytes for a writer that has them written before the answer goes.
    #[inline]
    pub fn slices(&self) -> Slices<'_> {
        match self {
            Segments::Block(bytes, _) => Slices::One(bytes),
            Segments::Shared(segments) => Slices::Many(segments),
            Segments::Parts(segments) => Slices::Many(segments),
        }
    }

    /// The bytes for a writer that keeps them.
    pub fn shared(&self) -> Shared<'_> {
        match self {
            Segments::Block(bytes, body) => Shared::One([body.share(bytes)]),
            Segments::Shared(segments) => Shared::Many(segments),
            Segments::Parts(segments) => Shared::Many(segments),
        }
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        match self {
            Segments::Block(bytes, _) => bytes.len(),
            Segments::Shared(segments) => segments.iter().map(Bytes::len).sum(),
            Segments::Parts(segments) => segments.iter().map(Bytes::len).sum(),
        }
    }
}

/// [`Segments`] that may be kept.
pub enum Shared<'a> {
    /// In one piece.
    One([Bytes; 1]),
    /// In several.
    Many(&'a [Bytes]),
}

impl std::ops::Deref for Shared<'_> {
    type Target = [Bytes];

    fn deref(&self) -> &[Bytes] {
        match self {
            Shared::One(segment) => segment,
            Shared::Many(segments) => segments,
        }
    }
}

/// How the end of a body is told to a client of HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// The status has no body.
    None,
    /// `Content-Length`; to `HEAD` and where it is known, the length that `GET` would have.
    Length(u64),
    /// Nobody knows it yet: chunked coding, or the end of the connection for HTTP/1.0.
    Unknown,
}

/// Fields that a group sets on or removes from what goes to clients or to the origin (`headers`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldRules {
    /// Set, instead of what the other side said.
    pub set: Fields,
    /// Removed; any case.
    pub removed: Vec<String>,
}

impl FieldRules {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }

    /// Whether a field of the other side does not go on.
    pub fn drops(&self, name: &str) -> bool {
        self.removed.iter().any(|removed| removed.eq_ignore_ascii_case(name)) || self.set.contains(name)
    }
}

impl Response {
    /// The answer of a fresh hit to the request that is being read.
    #[inline]
    pub fn hit(entry: Entry, hot: bool, head: &RequestHead<'_>) -> Self {
        let selection = match head.seen.any(Seen::CONDITION.with(Seen::RANGE)) {
            true => select_of_head(head, &entry),
            false => Selection::Whole,
        };
        Self::of_selection(entry, Outcome::Hit, None, hot, selection, head.method == Method::Head)
    }

    /// The answer that the cache gave; `None` when the request has to pass through, with the reason.
    pub fn of_answer(answer: Answer, wanted: &Wanted, now: Now) -> Result<Self, &'static str> {
        match answer.payload {
            Payload::Entry(entry) => {
                Ok(Self::of_entry(entry, answer.outcome, Some(Box::new(answer.report)), false, wanted))
            }
            Payload::Stream(head, reader) => {
                let selection = select(wanted, head.status, &head.fields, || head.validators(), head.content_length);
                Ok(Response {
                    status: selection.status(head.status),
                    outcome: answer.outcome,
                    detail: Cow::Borrowed(""),
                    selection,
                    content: Content::Stream(Box::new((head, reader))),
                    report: Some(Box::new(answer.report)),
                    hot: false,
                    head_only: wanted.head_only,
                })
            }
            Payload::Pass(reason) => Err(reason),
            Payload::Failure { status, reason } => {
                let mut response = Self::own(status, reason, Fields::empty(), wanted.head_only, now);
                response.report = Some(Box::new(answer.report));
                Ok(response)
            }
        }
    }

    /// An answer of our own in one line of plain text.
    pub fn own(status: u16, reason: impl Into<Cow<'static, str>>, fields: Fields, head_only: bool, now: Now) -> Self {
        let reason = reason.into();
        let mut builder = fields.to_builder();
        let mut push = |name: &str, value: &str| {
            let pushed = builder.push(name.as_bytes(), value.as_bytes());
            debug_assert!(pushed.is_ok());
        };
        push("Date", &format_http_date(now.wall_seconds));
        push("Content-Type", "text/plain; charset=utf-8");
        push("Cache-Control", "no-store");
        if status == 503 {
            push("Retry-After", "1");
        }
        let text = Bytes::from(format!("{status} {reason}\n"));
        Response {
            status,
            outcome: Outcome::Error,
            detail: reason,
            selection: Selection::Whole,
            content: Content::Own(Box::new((builder.finish(), text))),
            report: None,
            hot: false,
            head_only,
        }
    }

    /// The same, where the request went to the origin before (RFC 9211 section 2.2).
    pub fn after_forwarding(mut self, reason: ForwardReason) -> Self {
        self.report = Some(Box::new(Report { forward: Some(reason.as_str()), ..self.report().clone() }));
        self
    }

    /// An answer of our own that is no error, with a body of its own type.
    pub fn small(status: u16, fields: Fields, body: Bytes, head_only: bool) -> Self {
        Response {
            status,
            outcome: Outcome::Hit,
            detail: Cow::Borrowed(""),
            selection: Selection::Whole,
            content: Content::Own(Box::new((fields, body))),
            report: None,
            hot: false,
            head_only,
        }
    }

    #[inline]
    fn of_entry(entry: Entry, outcome: Outcome, report: Option<Box<Report>>, hot: bool, wanted: &Wanted) -> Self {
        let selection = select(wanted, entry.status, entry.fields(), || &entry.validators, Some(entry.body.len()));
        Self::of_selection(entry, outcome, report, hot, selection, wanted.head_only)
    }

    #[inline]
    fn of_selection(
        entry: Entry,
        outcome: Outcome,
        report: Option<Box<Report>>,
        hot: bool,
        selection: Selection,
        head_only: bool,
    ) -> Self {
        Response {
            status: selection.status(entry.status),
            outcome,
            detail: Cow::Borrowed(""),
            selection,
            content: Content::Entry(entry),
            report,
            hot,
            head_only,
        }
    }

    fn report(&self) -> &Report {
        const PLAIN: Report =
            Report { forward: None, forward_status: None, collapsed: false, stored: false, detail: None, owner: None };
        const HOT: Report = Report { detail: Some("hot"), ..PLAIN };
        match &self.report {
            Some(report) => report,
            None if self.hot => &HOT,
            None => &PLAIN,
        }
    }

    /// How the body is delimited.
    #[inline]
    pub fn framing(&self) -> Framing {
        if matches!(self.status, 204 | 304) || self.status < 200 {
            return Framing::None;
        }
        match (&self.selection, &self.content) {
            (Selection::Part(range, _), _) => Framing::Length(range.length()),
            (Selection::Parts(parts), _) => Framing::Length(parts.length()),
            (Selection::Unsatisfiable(_) | Selection::PreconditionFailed | Selection::NotModified, _) => {
                Framing::Length(0)
            }
            (Selection::Whole, Content::Entry(entry)) => Framing::Length(entry.body.len()),
            (Selection::Whole, Content::Own(own)) => Framing::Length(own.1.len() as u64),
            (Selection::Whole, Content::Stream(stream)) => match stream.0.content_length {
                Some(bytes) => Framing::Length(bytes),
                None if self.head_only => Framing::None,
                None => Framing::Unknown,
            },
        }
    }

    /// Writes the whole head for HTTP/1 in place of what is in `out`.
    #[inline]
    pub fn write_http_1(&self, to_client: &FieldRules, now: Now, http_11: bool, keep_alive: bool, out: &mut Vec<u8>) {
        out.clear();
        if let (Content::Entry(entry), None, Outcome::Hit) = (&self.content, &self.report, self.outcome)
            && matches!(self.selection, Selection::Whole | Selection::Part(..) | Selection::NotModified)
            && to_client.is_empty()
            && let Some((age, ttl @ ..=CENTURY_SECONDS)) = entry.freshness.seconds_while_fresh(now)
        {
            self.write_hit(entry, age, ttl, out);
            return out.extend_from_slice(end_of_head(http_11, keep_alive));
        }
        self.write_head(to_client, now, &mut Http1Head(out));
        Http1Head(out).finish(self.framing(), http_11, keep_alive);
    }

    /// The same bytes for the usual hit, in as few pieces as can be.
    #[inline]
    fn write_hit(&self, entry: &Entry, age: u64, ttl: u64, out: &mut Vec<u8>) {
        out.reserve(entry.fields().len() + HEAD_BYTES_BESIDE_FIELDS);
        Http1Head(out).status(self.status);
        match &self.selection {
            Selection::NotModified => entry.validators.write_fields_of_304(entry.fields(), out),
            _ => out.extend_from_slice(entry.fields().as_bytes()),
        }
        if let Selection::Part(range, length) = &self.selection {
            out.extend_from_slice(b"Content-Range: bytes ");
            put_decimal(range.first, out);
            out.push(b'-');
            put_decimal(range.last, out);
            out.push(b'/');
            put_decimal(*length, out);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"Age: ");
        put_decimal(age, out);
        out.extend_from_slice(b"\r\nCache-Status: groupcache-proxy; hit; ttl=");
        put_decimal(ttl, out);
        if self.hot {
            out.extend_from_slice(b"; detail=hot");
        }
        match self.framing() {
            Framing::Length(bytes) => {
                out.extend_from_slice(b"\r\nVia: 1.1 groupcache-proxy\r\nContent-Length: ");
                put_decimal(bytes, out);
                out.extend_from_slice(b"\r\n");
            }
            // Of an entry: the status has no body.
            Framing::None | Framing::Unknown => out.extend_from_slice(b"\r\nVia: 1.1 groupcache-proxy\r\n"),
        }
    }

    /// Writes status and all fields but those that delimit the body.
    #[inline]
    pub fn write_head(&self, to_client: &FieldRules, now: Now, out: &mut impl HeadWriter) {
        out.status(self.status);
        let (fields, freshness): (&FieldLines, _) = match &self.content {
            Content::Entry(entry) => (entry.fields(), Some(&entry.freshness)),
            Content::Stream(stream) => (&stream.0.fields, Some(&stream.0.freshness)),
            Content::Own(own) => (&own.0, None),
        };
        let shared = || match &self.content {
            Content::Entry(entry) => entry.shared_fields(),
            Content::Stream(stream) => stream.0.fields.clone(),
            Content::Own(own) => own.0.clone(),
        };
        match (&self.selection, freshness) {
            (Selection::Whole | Selection::Part(..), Some(_)) if to_client.is_empty() => out.block(fields, shared),
            (Selection::Whole, None) => out.block(fields, shared),
            _ => self.write_fields(fields, to_client, freshness.is_some(), out),
        }
        if let Some(freshness) = freshness {
            self.write_age(freshness, now, out);
        }
        self.write_cache_status(freshness, now, out);
        out.line("Via", VIA);
    }

    /// The fields one by one, where some of them are changed or left out.
    #[cold]
    fn write_fields(&self, fields: &FieldLines, to_client: &FieldRules, of_origin: bool, out: &mut impl HeadWriter) {
        let of_304: Fields;
        let mut fields = fields;
        match &self.selection {
            Selection::NotModified => {
                of_304 = fields_of_304(fields);
                fields = &of_304;
            }
            Selection::Unsatisfiable(_) | Selection::PreconditionFailed => {
                of_304 = fields.without(|name| {
                    !["date", "cache-control", "etag", "last-modified", "vary", "accept-ranges"]
                        .iter()
                        .any(|kept| name.eq_ignore_ascii_case(kept))
                });
                fields = &of_304;
            }
            Selection::Whole | Selection::Part(..) | Selection::Parts(_) => {}
        }
        let parts = match &self.selection {
            Selection::Parts(parts) => Some(parts),
            _ => None,
        };
        for (name, value) in fields.iter() {
            let replaced = parts.is_some() && name.eq_ignore_ascii_case("content-type");
            let dropped = replaced || (of_origin && to_client.drops(name));
            if !dropped {
                out.line(name, value);
            }
        }
        if let Some(parts) = parts {
            out.line("Content-Type", parts.content_type().as_bytes());
        }
        if of_origin {
            for (name, value) in to_client.set.iter() {
                out.line(name, value);
            }
        }
    }

    #[inline]
    fn write_age(&self, freshness: &Freshness, now: Now, out: &mut impl HeadWriter) {
        match &self.selection {
            Selection::Part(range, length) => {
                let value = ContentRange::Part { range: *range, length: Some(*length) }.to_string();
                out.line("Content-Range", value.as_bytes());
            }
            Selection::Unsatisfiable(length) => {
                let value = ContentRange::Unsatisfied { length: *length }.to_string();
                out.line("Content-Range", value.as_bytes());
            }
            _ => {}
        }
        // A response that came straight from its origin for this request has no age (RFC 9111 section 5.1).
        let first_hand = matches!(self.outcome, Outcome::Miss) && self.report().owner.is_none();
        let age_seconds = freshness.age(now).as_secs();
        if !first_hand || age_seconds > 0 {
            out.line("Age", Decimal::of(age_seconds).as_bytes());
        }
    }

    #[inline]
    fn write_cache_status(&self, freshness: Option<&Freshness>, now: Now, out: &mut impl HeadWriter) {
        let report = self.report();
        let ttl_seconds = freshness.map(|freshness| freshness.remaining(now).div_euclid(1000));
        let handling = match report.forward {
            Some(word) => Handling::Forwarded {
                reason: forward_reason(word),
                status: report.forward_status,
                stored: report.stored,
                collapsed: report.collapsed,
            },
            None if freshness.is_some() => Handling::Hit,
            None => Handling::Own,
        };
        let said = match handling {
            Handling::Forwarded { stored: false, .. } => None,
            _ => ttl_seconds,
        };
        let detail = match (&self.content, report.detail) {
            (_, Some(detail)) => Some(detail),
            (Content::Own(_), None) if self.outcome == Outcome::Error => Some(&*self.detail),
            _ => None,
        };
        out.line_with("Cache-Status", |value| {
            if let Some(owner) = &report.owner {
                let ttl_seconds = owner.ttl_seconds;
                CacheStatus { cache: StatusOf::Owner, handling: handling_of(owner), ttl_seconds, detail: None }
                    .write(value);
                value.extend_from_slice(b", ");
            }
            CacheStatus { cache: StatusOf::Node, handling, ttl_seconds: said, detail }.write(value);
        });
    }

    /// The body. Bytes that are in memory are all there is; a stream is read by the caller.
    #[inline]
    pub fn body(&mut self) -> Body<'_> {
        if self.is_stream() && !self.head_only && !matches!(self.framing(), Framing::None | Framing::Length(0)) {
            let Content::Stream(stream) = &mut self.content else { return Body::None };
            return Body::Stream(&mut stream.1, Cutter::of(&self.selection));
        }
        self.segments().map_or(Body::None, Body::Segments)
    }

    /// The body of an answer that is in memory; `None` when there is none to send, or when it streams.
    #[inline]
    pub fn segments(&self) -> Option<Segments<'_>> {
        match (&self.selection, &self.content) {
            (Selection::Whole, Content::Entry(entry))
                if !self.head_only && !matches!(self.status, ..200 | 204 | 304) =>
            {
                Some(all_of(&entry.body))
            }
            _ => self.segments_of_others(),
        }
    }

    fn segments_of_others(&self) -> Option<Segments<'_>> {
        if self.head_only || matches!(self.framing(), Framing::None | Framing::Length(0)) {
            return None;
        }
        match &self.content {
            Content::Own(own) => Some(Segments::Shared(std::slice::from_ref(&own.1))),
            Content::Entry(entry) => Some(match &self.selection {
                Selection::Part(range, _) => match entry.body.block_of(*range) {
                    Some(part) => Segments::Block(part, &entry.body),
                    None => Segments::Parts(cut(&entry.body, *range)),
                },
                Selection::Parts(parts) => {
                    let mut segments = Vec::new();
                    for part in parts.parts() {
                        segments.push(part.head.clone());
                        segments.extend(cut(&entry.body, part.range));
                    }
                    segments.push(parts.end().clone());
                    Segments::Parts(segments)
                }
                _ => all_of(&entry.body),
            }),
            Content::Stream(_) => None,
        }
    }

    /// Whether the body is still arriving.
    pub fn is_stream(&self) -> bool {
        matches!(self.content, Content::Stream(_))
    }
}

impl Selection {
    #[inline]
    fn status(&self, status: u16) -> u16 {
        match self {
            Selection::Whole => status,
            Selection::NotModified => 304,
            Selection::PreconditionFailed => 412,
            Selection::Part(..) | Selection::Parts(_) => 206,
            Selection::Unsatisfiable(_) => 416,
        }
    }
}

/// What [`select`] says of the same request, without a copy of its fields where one range or conditions are all there is.
fn select_of_head(head: &RequestHead<'_>, entry: &Entry) -> Selection {
    if head.seen.any(Seen::CONDITION) {
        let tag = entry.validators.entity_tag_in(entry.fields());
        if matches!(entry.status, 200..300) && preconditions::name_only(tag, head.lines()) {
            return Selection::NotModified;
        }
        let validators = entry.validators.in_block(entry.fields());
        match preconditions::evaluate_lines(|| head.lines(), entry.status, &validators) {
            preconditions::Outcome::NotModified => return Selection::NotModified,
            preconditions::Outcome::PreconditionFailed => return Selection::PreconditionFailed,
            preconditions::Outcome::Proceed => {}
        }
    }
    if !head.seen.any(Seen::RANGE) || entry.status != 200 || head.method == Method::Head {
        return Selection::Whole;
    }
    if let Some(spec) = only_range(head)
        && let Some(range) = spec.resolve(entry.body.len())
    {
        return Selection::Part(range, entry.body.len());
    }
    select(&Wanted::of(head), entry.status, entry.fields(), || &entry.validators, Some(entry.body.len()))
}

/// The one range that a request asks for without a condition.
fn only_range(head: &RequestHead<'_>) -> Option<RangeSpec> {
    let mut range = None;
    for (name, value) in head.lines() {
        match name.len() {
            5 if name.eq_ignore_ascii_case(b"range") && range.replace(value).is_some() => return None,
            8 if name.eq_ignore_ascii_case(b"if-range") => return None,
            _ => {}
        }
    }
    RangeSet::parse_single(range?)
}

/// Conditions first, then ranges (RFC 9110 section 13.2.2).
#[inline]
fn select<'v>(
    wanted: &Wanted,
    status: u16,
    fields: &FieldLines,
    validators: impl FnOnce() -> &'v StoredValidators,
    length: Option<u64>,
) -> Selection {
    match &wanted.exceptional {
        None => Selection::Whole,
        Some(wanted) => select_exceptional(wanted, status, fields, validators(), length),
    }
}

#[cold]
fn select_exceptional(
    wanted: &Exceptional,
    status: u16,
    fields: &FieldLines,
    validators: &StoredValidators,
    length: Option<u64>,
) -> Selection {
    let validators = validators.in_block(fields);
    // Which of the two methods it is makes no difference to the conditions.
    match preconditions::evaluate(&wanted.conditions, &http::Method::GET, status, &validators) {
        preconditions::Outcome::NotModified => return Selection::NotModified,
        preconditions::Outcome::PreconditionFailed => return Selection::PreconditionFailed,
        preconditions::Outcome::Proceed => {}
    }
    let (Some((ranges, condition)), Some(length), 200) = (&wanted.ranges, length, status) else {
        return Selection::Whole;
    };
    if !condition.holds(&validators) {
        return Selection::Whole;
    }
    match ranges.resolve(length) {
        Resolved::Whole => Selection::Whole,
        Resolved::Single(range) => Selection::Part(range, length),
        Resolved::Several(ranges) => {
            Selection::Parts(Box::new(Multipart::new(&boundary(), fields.get("content-type"), &ranges, length)))
        }
        Resolved::Unsatisfiable => Selection::Unsatisfiable(length),
    }
}

/// A delimiter that an origin cannot know beforehand and that no second answer has.
fn boundary() -> String {
    use std::hash::{BuildHasher, RandomState};

    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let random = RandomState::new();
    format!("{:016x}{:016x}", random.hash_one(count), random.hash_one(!count))
}

#[inline]
fn all_of(body: &crate::entry::Body) -> Segments<'_> {
    match body.block() {
        Some(block) => Segments::Block(block, body),
        None => Segments::Shared(body.segments()),
    }
}

fn cut(body: &crate::entry::Body, range: ByteRange) -> Vec<Bytes> {
    // A selection is made for the length of this body, and of an incomplete one the cache gives out only what it holds.
    body.slice(range).unwrap_or_default()
}

/// Takes the wanted parts out of a body that streams by.
pub struct Cutter {
    pieces: Pieces,
    /// Bytes of the representation that have gone by.
    offset: u64,
}

enum Pieces {
    All,
    /// The next piece is last.
    Some(Vec<Piece>),
}

enum Piece {
    Text(Bytes),
    Range(ByteRange),
}

impl Cutter {
    fn of(selection: &Selection) -> Self {
        let pieces = match selection {
            Selection::Part(range, _) => Pieces::Some(vec![Piece::Range(*range)]),
            Selection::Parts(parts) => {
                let mut pieces = vec![Piece::Text(parts.end().clone())];
                for part in parts.parts().iter().rev() {
                    pieces.push(Piece::Range(part.range));
                    pieces.push(Piece::Text(part.head.clone()));
                }
                Pieces::Some(pieces)
            }
            _ => Pieces::All,
        };
        Cutter { pieces, offset: 0 }
    }

    /// Moves what is wanted of `chunks` to `out`.
    pub fn pass(&mut self, chunks: &mut Vec<Bytes>, out: &mut Vec<Bytes>) {
        let Pieces::Some(pieces) = &mut self.pieces else {
            out.append(chunks);
            return;
        };
        for chunk in chunks.drain(..) {
            let start = self.offset;
            self.offset = start.saturating_add(chunk.len() as u64);
            loop {
                match pieces.last() {
                    Some(Piece::Text(text)) => out.push(text.clone()),
                    Some(Piece::Range(range)) => {
                        let from = range.first.max(start);
                        let to = range.last.saturating_add(1).min(self.offset);
                        if from < to {
                            out.push(chunk.slice((from - start) as usize..(to - start) as usize));
                        }
                        if range.last >= self.offset {
                            break;
                        }
                    }
                    None => break,
                }
                pieces.pop();
            }
        }
    }

    /// Whether nothing more of the body is wanted.
    pub fn is_done(&self) -> bool {
        matches!(&self.pieces, Pieces::Some(pieces) if pieces.is_empty())
    }
}

/// What the owner did. Why it asked the origin travels only as far as its answer tells.
fn handling_of(owner: &OwnerReport) -> Handling {
    let forwarded = |reason, status, stored| Handling::Forwarded { reason, status, stored, collapsed: false };
    match owner {
        OwnerReport { hit: true, .. } => Handling::Hit,
        OwnerReport { revalidated: true, .. } => forwarded(ForwardReason::Stale, Some(304), true),
        OwnerReport { stale: true, .. } => forwarded(ForwardReason::Stale, None, false),
        _ => forwarded(ForwardReason::Miss, None, owner.ttl_seconds.is_some()),
    }
}

fn forward_reason(word: &'static str) -> ForwardReason {
    match word {
        "bypass" => ForwardReason::Bypass,
        "method" => ForwardReason::Method,
        "uri-miss" => ForwardReason::UriMiss,
        "vary-miss" => ForwardReason::VaryMiss,
        "request" => ForwardReason::Request,
        "stale" => ForwardReason::Stale,
        "partial" => ForwardReason::Partial,
        _ => ForwardReason::Miss,
    }
}

/// Value of our line of `Via` (RFC 9110 section 7.6.3).
pub const VIA: &[u8] = b"1.1 groupcache-proxy";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::head_writer::Http2Head;
    use super::*;
    use crate::entry::Parts;
    use crate::flight::{Flights, Joined, Keep};
    use crate::memory::Ledger;
    use crate::semantics::validators::LazyValidators;
    use crate::semantics::variant::{VariantKey, VaryRule};
    use crate::source::EntryId;

    const NOW: Now = Now { monotonic: Duration::from_secs(1000), wall_seconds: 1_795_176_000 };

    fn later(seconds: u64) -> Now {
        Now { monotonic: NOW.monotonic + Duration::from_secs(seconds), wall_seconds: NOW.wall_seconds + seconds as i64 }
    }

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        Fields::from_pairs(pairs.iter().copied()).unwrap()
    }

    fn stored() -> Fields {
        fields(&[
            ("Date", "Fri, 20 Nov 2026 11:59:00 GMT"),
            ("Content-Type", "text/x"),
            ("ETag", "\"e\""),
            ("Vary", "Accept"),
        ])
    }

    fn entry_of(status: u16, fields: Fields, chunks: &[&'static str]) -> Entry {
        let chunks: Vec<Bytes> = chunks.iter().map(|chunk| Bytes::from_static(chunk.as_bytes())).collect();
        let parts = Parts {
            id: EntryId::default(),
            body_id: EntryId::default(),
            status,
            validators: StoredValidators::of(&fields, NOW.wall_seconds),
            fields,
            freshness: Freshness::of_ours(Duration::from_secs(60), NOW),
            sent: Fields::empty(),
            tags: Default::default(),
            body: crate::entry::Body::gather(&chunks),
        };
        Entry::new(b"key", parts, Ledger::new(1000).charge(0))
    }

    fn wanted(request: &[(&str, &str)]) -> Wanted {
        Wanted::of_fields(false, &fields(request))
    }

    fn hit(entry: Entry, hot: bool, wanted: &Wanted) -> Response {
        Response::of_entry(entry, Outcome::Hit, None, hot, wanted)
    }

    /// Status, then head, without the lines every answer has.
    fn head_of(response: &Response, to_client: &FieldRules, now: Now) -> String {
        let mut out = Vec::new();
        response.write_head(to_client, now, &mut Http1Head(&mut out));
        Http1Head(&mut out).finish(response.framing(), true, true);
        String::from_utf8(out).unwrap()
    }

    fn body_of(response: &mut Response) -> String {
        match response.body() {
            Body::None => String::new(),
            Body::Segments(segments) => String::from_utf8(segments.shared().concat()).unwrap(),
            Body::Stream(..) => panic!("a stream"),
        }
    }

    #[test]
    fn a_plain_hit_is_the_stored_block_and_four_lines() {
        let mut response = hit(entry_of(200, stored(), &["hello"]), true, &Wanted::default());
        assert_eq!(
            head_of(&response, &FieldRules::default(), later(12)),
            "HTTP/1.1 200 OK\r\nDate: Fri, 20 Nov 2026 11:59:00 GMT\r\nContent-Type: text/x\r\nETag: \"e\"\r\nVary: Accept\r\n\
             Age: 12\r\nCache-Status: groupcache-proxy; hit; ttl=48; detail=hot\r\nVia: 1.1 groupcache-proxy\r\n\
             Content-Length: 5\r\n\r\n"
        );
        assert_eq!(body_of(&mut response), "hello");
        let mut head_only =
            hit(entry_of(200, stored(), &["hello"]), true, &Wanted { head_only: true, ..Wanted::default() });
        assert_eq!(head_of(&head_only, &FieldRules::default(), NOW), head_of(&response, &FieldRules::default(), NOW));
        assert_eq!(body_of(&mut head_only), "");
    }

    #[test]
    fn the_short_way_of_a_hit_writes_what_the_general_one_writes() {
        let rules = [FieldRules::default(), FieldRules { removed: vec!["etag".into()], ..FieldRules::default() }];
        for status in [200, 203, 204, 301, 404, 503] {
            for request in [&[][..], &[("Range", "bytes=1-2")], &[("If-None-Match", "\"e\"")]] {
                for (hot, head_only) in [(false, false), (true, false), (false, true)] {
                    let wanted = Wanted::of_fields(head_only, &fields(request));
                    for age_seconds in [0, 9, 10, 59, 60, 61, 1234] {
                        let response = hit(entry_of(status, stored(), &["abc", "d"]), hot, &wanted);
                        for (http_11, keep_alive) in [(true, true), (true, false), (false, true), (false, false)] {
                            for rules in &rules {
                                let (now, mut short, mut general) = (later(age_seconds), b"old".to_vec(), Vec::new());
                                response.write_http_1(rules, now, http_11, keep_alive, &mut short);
                                response.write_head(rules, now, &mut Http1Head(&mut general));
                                Http1Head(&mut general).finish(response.framing(), http_11, keep_alive);
                                assert_eq!(String::from_utf8(short), String::from_utf8(general));
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn conditions_and_ranges_of_a_stored_response() {
        // request; status, content-range or -, content-length, body
        type Row<'a> = (&'a [(&'a str, &'a str)], u16, &'a str, &'a str, &'a str);
        let rows: &[Row<'_>] = &[
            (&[], 200, "-", "10", "0123456789"),
            (&[("If-None-Match", "\"e\"")], 304, "-", "-", ""),
            (&[("If-None-Match", "\"x\"")], 200, "-", "10", "0123456789"),
            (&[("If-Match", "\"x\"")], 412, "-", "0", ""),
            (&[("Range", "bytes=0-0")], 206, "bytes 0-0/10", "1", "0"),
            (&[("Range", "bytes=3-")], 206, "bytes 3-9/10", "7", "3456789"),
            (&[("Range", "bytes=-4")], 206, "bytes 6-9/10", "4", "6789"),
            (&[("Range", "bytes=2-99")], 206, "bytes 2-9/10", "8", "23456789"),
            (&[("Range", "bytes=10-")], 416, "bytes */10", "0", ""),
            (&[("Range", "bytes=5-2")], 200, "-", "10", "0123456789"),
            (&[("Range", "pages=1-2")], 200, "-", "10", "0123456789"),
            (&[("Range", "bytes=0-5,3-7")], 200, "-", "10", "0123456789"),
            (&[("Range", "bytes=1-2"), ("If-Range", "\"e\"")], 206, "bytes 1-2/10", "2", "12"),
            (&[("Range", "bytes=1-2"), ("If-Range", "\"x\"")], 200, "-", "10", "0123456789"),
            (&[("Range", "bytes=1-2"), ("If-None-Match", "\"e\"")], 304, "-", "-", ""),
        ];
        for (request, status, content_range, length, body) in rows {
            let mut response = hit(entry_of(200, stored(), &["012", "3456", "789"]), false, &wanted(request));
            let head = head_of(&response, &FieldRules::default(), NOW);
            let line = |name: &str| {
                let lines: Vec<_> =
                    head.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect();
                assert!(lines.len() < 2, "{name} twice");
                lines.first().copied().unwrap_or("-")
            };
            assert_eq!(
                (response.status, line("Content-Range"), line("Content-Length"), body_of(&mut response).as_str()),
                (*status, *content_range, *length, *body),
                "{request:?}"
            );
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
            assert_eq!(line("Content-Type") == "-", matches!(status, 304 | 412 | 416), "{request:?}");
            assert_eq!((line("ETag"), line("Via")), ("\"e\"", "1.1 groupcache-proxy"), "{request:?}");
            assert_eq!(line("Cache-Status"), "groupcache-proxy; hit; ttl=60");
        }
    }

    #[test]
    fn numbers_are_written_as_they_are() {
        let mut numbers: Vec<u64> = vec![0, 12_345, 65_536, 9_999_999, 10_203_040, u64::MAX];
        numbers.extend((1..20).map(|digits| 10u64.pow(digits)).flat_map(|power| [power - 1, power, power + 1]));
        for number in numbers {
            let mut out = Vec::new();
            put_decimal(number, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }

    #[test]
    fn a_request_that_is_being_read_is_answered_as_one_that_was_kept() {
        let requests = [
            "",
            "If-None-Match: \"x\", \"e\"",
            "If-None-Match: \"x\"\r\nif-none-match: W/\"e\"",
            "If-None-Match: *",
            "If-Match: \"x\"",
            "If-Modified-Since: Fri, 20 Nov 2026 11:59:00 GMT",
            "If-Modified-Since: Fri, 20 Nov 2026 11:58:59 GMT",
            "If-Modified-Since: x",
            "If-Unmodified-Since: Fri, 20 Nov 2026 10:00:00 GMT",
            "Range: bytes=0-0",
            "Range: BYTES= 3- ",
            "Range: bytes=-4",
            "Range: bytes=-0",
            "Range: bytes=2-99",
            "Range: bytes=10-",
            "Range: bytes=5-2",
            "Range: bytes=",
            "Range: bytes",
            "Range: pages=1-2",
            "Range: bytes=1-2,",
            "Range: bytes=1-2, 5-6",
            "Range: bytes=1-2\r\nRange: bytes=1-2",
            "Range: bytes=1-2\r\nIf-Range: \"e\"",
            "Range: bytes=1-2\r\nIf-Range: \"x\"",
            "Range: bytes=1-2\r\nIf-None-Match: \"e\"",
            "Range: bytes=1-2\r\nIf-None-Match: \"x\"",
        ];
        for (method, status, chunks) in [
            ("GET", 200, &["0123456789"][..]),
            ("GET", 200, &["012", "3456", "789"]),
            ("GET", 200, &[]),
            ("GET", 404, &["ab"]),
            ("HEAD", 200, &["0123456789"]),
        ] {
            for request in requests {
                let text =
                    format!("{method} / HTTP/1.1\r\nHost: a\r\n{request}\r\n\r\n").replace("\r\n\r\n\r\n", "\r\n\r\n");
                let mut lines = crate::edge::request_head::lines();
                let head = RequestHead::parse(text.as_bytes(), &mut lines).unwrap();
                let mut read = Response::hit(entry_of(status, stored(), chunks), false, &head);
                let mut kept = hit(entry_of(status, stored(), chunks), false, &Wanted::of(&head));
                // Boundaries are drawn anew for each answer.
                let plain = |text: String| {
                    let lines = text.lines().filter(|line| !line.starts_with("--") && !line.contains("boundary="));
                    lines.collect::<Vec<_>>().join("\n")
                };
                assert_eq!(
                    plain(head_of(&read, &FieldRules::default(), NOW)),
                    plain(head_of(&kept, &FieldRules::default(), NOW)),
                    "{text}"
                );
                assert_eq!(plain(body_of(&mut read)), plain(body_of(&mut kept)), "{text}");
            }
        }
    }

    #[test]
    fn several_ranges_are_multipart_with_the_announced_length() {
        let mut response =
            hit(entry_of(200, stored(), &["012", "3456", "789"]), false, &wanted(&[("Range", "bytes=0-1,5-6")]));
        let head = head_of(&response, &FieldRules::default(), NOW);
        let body = body_of(&mut response);
        assert_eq!(response.status, 206);
        assert!(head.contains("Content-Type: multipart/byteranges; boundary="), "{head}");
        assert!(!head.contains("text/x") && head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        assert!(body.contains("Content-Range: bytes 5-6/10\r\n") && body.contains("\r\n\r\n56\r\n--"), "{body}");
    }

    #[test]
    fn only_whole_answers_are_cut_and_errors_are_not_conditional() {
        for (status, framing) in [(404, Framing::Length(2)), (206, Framing::Length(2)), (204, Framing::None)] {
            let request = wanted(&[("Range", "bytes=0-0")]);
            let response = hit(entry_of(status, stored(), &["ab"]), false, &request);
            assert_eq!((response.status, response.framing()), (status, framing));
        }
        let response = hit(entry_of(404, stored(), &["ab"]), false, &wanted(&[("If-None-Match", "*")]));
        assert_eq!(response.status, 404);
    }

    #[test]
    fn a_group_sets_and_removes_fields() {
        let to_client =
            FieldRules { set: fields(&[("X-Frame", "no"), ("vary", "Origin")]), removed: vec!["ETAG".into()] };
        for request in [&[][..], &[("Range", "bytes=0-0")], &[("If-None-Match", "\"e\"")]] {
            let response = hit(entry_of(200, stored(), &["ab"]), false, &wanted(request));
            let head = head_of(&response, &to_client, NOW);
            assert!(head.contains("X-Frame: no\r\nvary: Origin\r\n"), "{head}");
            assert!(!head.contains("ETag") && !head.contains("Accept\r\n"), "{head}");
        }
        let own = Response::own(502, "no answer", Fields::empty(), false, NOW);
        assert!(!head_of(&own, &to_client, NOW).contains("X-Frame"));
    }

    #[test]
    fn errors_of_ours_are_short_and_say_why() {
        let mut response = Response::own(503, "too many waiters", Fields::empty(), false, NOW);
        assert_eq!(
            head_of(&response, &FieldRules::default(), NOW),
            "HTTP/1.1 503 Service Unavailable\r\nDate: Fri, 20 Nov 2026 12:00:00 GMT\r\n\
             Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nRetry-After: 1\r\n\
             Cache-Status: groupcache-proxy; detail=\"too many waiters\"\r\nVia: 1.1 groupcache-proxy\r\n\
             Content-Length: 21\r\n\r\n"
        );
        assert_eq!(body_of(&mut response), "503 too many waiters\n");
    }

    #[test]
    fn what_cache_status_says() {
        let report = |forward: Option<&'static str>| Report { forward, ..Report::default() };
        let owner = |hit, ttl_seconds| Some(OwnerReport { hit, ttl_seconds, ..OwnerReport::default() });
        for (outcome, report, age_seconds, expected) in [
            (Outcome::Hit, report(None), 0, "groupcache-proxy; hit; ttl=60"),
            (Outcome::Stale, report(None), 90, "groupcache-proxy; hit; ttl=-30"),
            (
                Outcome::Miss,
                Report { stored: true, ..report(Some("uri-miss")) },
                0,
                "groupcache-proxy; fwd=uri-miss; stored; ttl=60",
            ),
            (
                Outcome::Miss,
                Report { collapsed: true, ..report(Some("miss")) },
                0,
                "groupcache-proxy; fwd=miss; collapsed",
            ),
            (
                Outcome::Revalidated,
                Report { forward_status: Some(304), stored: true, ..report(Some("stale")) },
                0,
                "groupcache-proxy; fwd=stale; fwd-status=304; stored; ttl=60",
            ),
            (
                Outcome::Miss,
                Report { owner: owner(true, Some(118)), ..report(Some("miss")) },
                0,
                "groupcache-proxy/owner; hit; ttl=118, groupcache-proxy; fwd=miss",
            ),
            (
                Outcome::Miss,
                Report { owner: owner(false, None), ..report(Some("miss")) },
                0,
                "groupcache-proxy/owner; fwd=miss, groupcache-proxy; fwd=miss",
            ),
            (
                Outcome::Stale,
                Report {
                    owner: Some(OwnerReport { hit: true, stale: true, ttl_seconds: Some(-5), revalidated: false }),
                    ..report(Some("uri-miss"))
                },
                0,
                "groupcache-proxy/owner; hit; ttl=-5, groupcache-proxy; fwd=uri-miss",
            ),
            (
                Outcome::Stale,
                Report {
                    owner: Some(OwnerReport { hit: false, stale: true, ttl_seconds: Some(-5), revalidated: false }),
                    ..report(Some("stale"))
                },
                0,
                "groupcache-proxy/owner; fwd=stale; ttl=-5, groupcache-proxy; fwd=stale",
            ),
            (
                Outcome::Miss,
                Report {
                    owner: Some(OwnerReport { hit: false, stale: false, ttl_seconds: Some(9), revalidated: true }),
                    ..report(Some("miss"))
                },
                0,
                "groupcache-proxy/owner; fwd=stale; fwd-status=304; stored; ttl=9, groupcache-proxy; fwd=miss",
            ),
        ] {
            let response = Response::of_entry(
                entry_of(200, stored(), &["a"]),
                outcome,
                Some(Box::new(report)),
                false,
                &Wanted::default(),
            );
            let head = head_of(&response, &FieldRules::default(), later(age_seconds));
            let said = head.lines().find_map(|line| line.strip_prefix("Cache-Status: ")).unwrap();
            assert_eq!(said, expected);
        }
    }

    fn stream_of(content_length: Option<u64>, chunks: &[&'static str], wanted: &Wanted) -> Response {
        let flights = Flights::<u8, crate::cache::Landed>::new(4);
        let Joined::Opened(reader, fill) = flights.join(0) else { panic!("a flight is open") };
        let head = Arc::new(Head {
            status: 200,
            fields: stored(),
            for_causer: None,
            content_length,
            freshness: Freshness::of_ours(Duration::from_secs(60), NOW),
            lazy_validators: LazyValidators::received(NOW.wall_seconds, false),
            id: EntryId::default(),
            body_id: EntryId::default(),
            rule: VaryRule::None,
            variant: VariantKey::default(),
            sent: Fields::empty(),
            shareable: true,
            storable: true,
            stored: false,
            owner: None,
            tags: Default::default(),
            dating: Default::default(),
        });
        fill.begin(crate::cache::Landed::Streaming(head.clone()), Keep::Whole);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for chunk in chunks {
                fill.push(Bytes::from_static(chunk.as_bytes())).await;
            }
        });
        fill.finish();
        let payload = Payload::Stream(head.clone(), Following::of_flight(head, reader));
        let answer = Answer { outcome: Outcome::Miss, payload, report: Report::default(), stamp: Default::default() };
        Response::of_answer(answer, wanted, NOW).ok().unwrap()
    }

    fn read_stream(response: &mut Response) -> String {
        let Body::Stream(reader, mut cutter) = response.body() else { return String::new() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (mut chunks, mut out) = (Vec::new(), Vec::new());
        runtime.block_on(async {
            while !cutter.is_done() && reader.read(&mut chunks, 1).await.unwrap() {
                cutter.pass(&mut chunks, &mut out);
            }
        });
        String::from_utf8(out.concat()).unwrap()
    }

    #[test]
    fn a_stream_is_answered_like_an_entry() {
        for request in [
            &[][..],
            &[("Range", "bytes=3-5")],
            &[("Range", "bytes=-1")],
            &[("Range", "bytes=0-0,2-3,9-9")],
            &[("Range", "bytes=20-")],
            &[("If-None-Match", "\"e\"")],
            &[("If-Match", "\"x\"")],
        ] {
            let mut streamed = stream_of(Some(10), &["012", "3456", "789"], &wanted(request));
            let mut stored = hit(entry_of(200, stored(), &["012", "3456", "789"]), false, &wanted(request));
            assert_eq!((streamed.status, streamed.framing()), (stored.status, stored.framing()), "{request:?}");
            let (streamed, stored) = (read_stream(&mut streamed), body_of(&mut stored));
            // Boundaries are drawn anew for each answer.
            let plain = |body: &str| body.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n");
            assert_eq!(plain(&streamed), plain(&stored), "{request:?}");
            assert_eq!(streamed.len(), stored.len());
        }
        let unknown = stream_of(None, &["01"], &wanted(&[("Range", "bytes=0-0")]));
        assert_eq!((unknown.status, unknown.framing()), (200, Framing::Unknown));
        let first_hand = stream_of(Some(2), &["01"], &Wanted::default());
        assert!(!head_of(&first_hand, &FieldRules::default(), NOW).contains("Age:"));
    }

    #[test]
    fn both_versions_say_the_same() {
        for request in
            [&[][..], &[("Range", "bytes=3-5")], &[("Range", "bytes=0-1,3-4")], &[("If-None-Match", "\"e\"")]]
        {
            let response = hit(entry_of(200, stored(), &["0123456789"]), true, &wanted(request));
            let mut http_2 = Http2Head::default();
            response.write_head(&FieldRules::default(), later(5), &mut http_2);
            let http_2 = http_2.finish(response.framing());
            let lines: Vec<String> = http_2
                .headers()
                .iter()
                .map(|(name, value)| format!("{}: {}", name.as_str(), value.to_str().unwrap()))
                .collect();
            let head = head_of(&response, &FieldRules::default(), later(5));
            let mut expected: Vec<String> = head
                .lines()
                .skip(1)
                .filter(|line| !line.is_empty())
                .map(|line| {
                    let (name, value) = line.split_once(": ").unwrap();
                    format!("{}: {value}", name.to_ascii_lowercase())
                })
                .collect();
            let mut lines = lines;
            lines.sort();
            expected.sort();
            assert_eq!((http_2.status().as_u16(), lines), (response.status, expected), "{request:?}");
        }
    }

    #[test]
    fn how_a_head_of_http_1_ends() {
        for (framing, http_11, keep_alive, expected) in [
            (Framing::Length(5), true, true, "Content-Length: 5\r\n\r\n"),
            (
                Framing::Length(u64::MAX),
                true,
                false,
                "Content-Length: 18446744073709551615\r\nConnection: close\r\n\r\n",
            ),
            (Framing::Length(0), false, true, "Content-Length: 0\r\nConnection: keep-alive\r\n\r\n"),
            (Framing::Unknown, true, true, "Transfer-Encoding: chunked\r\n\r\n"),
            (Framing::Unknown, false, false, "Connection: close\r\n\r\n"),
            (Framing::None, true, true, "\r\n"),
        ] {
            let mut out = Vec::new();
            Http1Head(&mut out).finish(framing, http_11, keep_alive);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    proptest! {
        /// However a body falls into chunks, a cutter takes the same bytes as slicing the whole.
        #[test]
        fn cutting_a_stream_is_slicing_the_whole(
            sizes in prop::collection::vec(1usize..9, 1..12), first in 0u64..60, length in 1u64..60
        ) {
            let total: usize = sizes.iter().sum();
            let whole: Vec<u8> = (0..total).map(|place| place as u8).collect();
            let range = ByteRange { first: first.min(total as u64 - 1), last: (first + length).min(total as u64 - 1) };
            let mut cutter = Cutter::of(&Selection::Part(range, total as u64));
            let (mut out, mut start) = (Vec::new(), 0);
            for size in sizes {
                let mut chunks = vec![Bytes::copy_from_slice(&whole[start..start + size])];
                start += size;
                cutter.pass(&mut chunks, &mut out);
                prop_assert_eq!(cutter.is_done(), start as u64 > range.last);
            }
            prop_assert_eq!(&out.concat()[..], &whole[range.first as usize..=range.last as usize]);
        }
    }
}
