//! Messages of the native protocol to bytes and back. No I/O, no clock, no task.
//!
//! A frame is a length of four bytes (big endian) and one protobuf `Frame` (`proto/peer.proto`). Whatever arrives is checked
//! here, whole, before anybody acts on it: a [`Message`] that [`FrameReader::next_frame`] returns holds to every limit below. What
//! this version does not know is passed over: unknown fields by protobuf, unknown kinds of frame as [`Message::Unknown`].

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;

use crate::fields::Fields;
use crate::freshness::{HopFreshness, LifetimeSource, StalePermission};
use crate::peer::purges::{stamp_of_wire, stamp_to_wire};
use crate::purge::Tags;
use crate::source::{Ask, EntryId, FetchError, Hop, Interim, Method};

/// The generated messages of `proto/peer.proto`; nobody outside this file sees them.
mod wire {
    #![allow(missing_docs, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/groupcache_proxy.peer.v1.rs"));
}

/// The same for the frames of a hit, by hand.
#[path = "codec.rs"]
pub(super) mod codec;

/// A message, and the question it belongs to (zero: the connection itself).
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// The asker's number for the question.
    pub request: u64,
    /// What is said.
    pub message: Message,
}

/// Everything that can be said; see `proto/peer.proto` for the meaning of each.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Message {
    Hello(Hello),
    Challenge(Hello),
    Proof(Bytes),
    Identity(Identity),
    Ping(u64),
    Pong(u64),
    Status { draining: bool, ring_id: u64 },
    Goodbye { reason: GoodbyeReason, text: Cow<'static, str> },
    Ask(Box<Question>),
    Accepted,
    Loading,
    Head(Box<Head>),
    Interim(Interim),
    Data(Bytes),
    End { length: u64, checksum: u64 },
    Abort { reason: Cow<'static, str> },
    Failure(Failure),
    Credit(u32),
    Cancel,
    Unknown,
}

/// The versions that one end speaks, and its nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The versions.
    pub versions: Versions,
    /// Random, new for each connection.
    pub nonce: [u8; NONCE_BYTES],
}

/// A range of protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The lowest.
    pub min: u32,
    /// The highest.
    pub max: u32,
}

impl Versions {
    /// What this software speaks.
    pub const OURS: Versions = Versions { min: 1, max: 1 };

    /// The highest version that both speak.
    pub fn common(self, other: Versions) -> Option<u32> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} to {}", self.min, self.max)
    }
}

/// What a proven peer tells about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Version of its software; printable ASCII.
    pub software: String,
    /// Its view of the ring.
    pub ring_id: u64,
    /// The random number of this life of it.
    pub incarnation: u64,
    /// Whether it is leaving.
    pub draining: bool,
    /// How often it wants a sign of life while it waits for a head, in milliseconds.
    pub sign_milliseconds: u32,
}

/// An [`Ask`] on its way to the owner.
#[derive(Clone, Debug)]
pub struct Question {
    /// What it wants.
    pub kind: QuestionKind,
    /// The question itself.
    pub ask: Ask,
    /// The entry that the asker holds already.
    pub have: EntryId,
    /// The asker's view of the ring.
    pub ring_id: u64,
    /// How many bytes of body may be sent before the first credit.
    pub window: u32,
    /// Of [`QuestionKind::Purge`]: what `proto/purge.proto` says.
    pub purges: Bytes,
}

impl Question {
    /// What goes beside the [`Ask`].
    pub(super) fn beside(&self) -> codec::Beside {
        codec::Beside {
            kind: kind_to_wire(self.kind) as u8,
            have: self.have,
            ring_id: self.ring_id,
            window: self.window,
        }
    }
}

impl PartialEq for Question {
    fn eq(&self, other: &Self) -> bool {
        let fields = |question: &Question| question.ask.fields.as_bytes().clone();
        self.kind == other.kind
            && (self.have, self.ring_id, self.window) == (other.have, other.ring_id, other.window)
            && (&self.ask.group, &self.ask.key, &self.ask.target)
                == (&other.ask.group, &other.ask.key, &other.ask.target)
            && self.purges == other.purges
            && (&self.ask.host, self.ask.method) == (&other.ask.host, other.ask.method)
            && fields(self) == fields(other)
    }
}

/// What peers ask of one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuestionKind {
    /// Answer from memory or from the origin, never from another peer.
    Load,
    /// Answer from memory only.
    Peek,
    /// Purges: what [`Question::purges`] says; answered with 200 and a body.
    Purge,
    /// Take over, with a peek, what the asker has and does not own; answered with 204.
    Offer,
    /// A permit for a request at the origin of the group; the body of the answer lasts as long as it is used.
    Permit,
    /// The same for a request that is at the origin already: it is counted at once.
    HoldPermit,
    /// Take a replica of what the asker owns, with a peek, and keep it for a while; answered with 204.
    Replicate,
}

impl QuestionKind {
    /// Whether it is about what is in memory, which a node that leaves still answers: others live on it when it is gone.
    pub(super) fn is_for_memory(self) -> bool {
        matches!(self, QuestionKind::Peek | QuestionKind::Purge)
    }
}

/// The answer up to its body.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// Status code, 200 to 599.
    pub status: u16,
    /// End-to-end header fields.
    pub fields: Fields,
    /// Length of the body where it is known.
    pub content_length: Option<u64>,
    /// What the owner says about the entry.
    pub hop: Option<Hop>,
}

/// Why there is no head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing was tried; somebody else may be asked.
    Unreachable(Cow<'static, str>),
    /// This is the answer: 502, 503 or 504 and a reason.
    Refused(u16, Cow<'static, str>),
    /// A peek found nothing.
    NotFound,
    /// The owner is leaving; somebody else may be asked.
    Draining,
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Unreachable(reason) => Failure::Unreachable(reason),
            FetchError::Refused { status, reason } => Failure::Refused(status, reason),
            // Broken before a head was given out: nobody saw a byte, but the origin did answer, and wrongly.
            FetchError::Broken(reason) => Failure::Refused(502, reason),
        }
    }
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoodbyeReason {
    /// None of those that this version knows.
    Other,
    /// The other end did not prove that it belongs to the fleet. Says nothing about what was wrong.
    NotProven,
    /// The other end broke the rules of this file.
    ProtocolError,
    /// This end stops.
    Shutdown,
}

/// What arrived is not this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A frame is longer than allowed at this point.
    #[error("frame too long")]
    Oversize,
    /// A frame breaks a rule.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
}

impl ProtocolError {
    /// The word for counters.
    pub fn word(self) -> &'static str {
        match self {
            ProtocolError::Oversize => "oversize",
            ProtocolError::Malformed(_) => "malformed",
        }
    }
}

/// Cuts frames out of the bytes as they arrive. Bodies and field blocks are slices of its buffer.
#[derive(Debug)]
pub struct FrameReader {
    buffer: BytesMut,
    frame_bytes_max: usize,
    known: Known,
}

/// What the last question said and the next one will most likely say again: groups are few, and so are the fields that go
/// on to an origin. Equal bytes need no second check, and no allocation.
#[derive(Debug, Default)]
struct Known {
    group: Option<Arc<str>>,
    fields: Fields,
}

impl FrameReader {
    /// A reader that refuses frames longer than `frame_bytes_max`.
    pub fn new(frame_bytes_max: usize) -> Self {
        FrameReader { buffer: BytesMut::new(), frame_bytes_max, known: Known::default() }
    }

    /// Raises the limit, once the other end is proven.
    pub fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Where to read into, with room for at least the rest of the frame that has begun.
    pub fn buffer(&mut self, room_bytes: usize) -> &mut BytesMut {
        let missing = match self.frame_length() {
            Some(length) => (LENGTH_BYTES + length.min(self.frame_bytes_max)).saturating_sub(self.buffer.len()),
            None => 0,
        };
        if missing > self.buffer.capacity() - self.buffer.len()
            || self.buffer.capacity() - self.buffer.len() < room_bytes / 4
        {
            self.buffer.reserve(missing.max(room_bytes));
        }
        &mut self.buffer
    }

    /// Adds bytes that were read elsewhere.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether a frame has begun and not ended.
    pub fn is_mid_frame(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next whole frame, if it has arrived.
    ///
    /// # Errors
    /// The bytes are not this protocol. The connection is useless from there on.
    pub fn next_frame(&mut self) -> Result<Option<Envelope>, ProtocolError> {
        let Some(length) = self.frame_length() else { return Ok(None) };
        if length > self.frame_bytes_max {
            return Err(ProtocolError::Oversize);
        }
        if self.buffer.len() - LENGTH_BYTES < length {
            return Ok(None);
        }
        if let Some((request, kind)) = codec::take(&mut self.buffer, LENGTH_BYTES + length) {
            return Ok(Some(Envelope { request, message: check(kind, &mut self.known)? }));
        }
        let mut frame = self.buffer.split_to(LENGTH_BYTES + length).freeze();
        let frame =
            wire::Frame::decode(frame.split_off(LENGTH_BYTES)).map_err(|_| ProtocolError::Malformed("protobuf"))?;
        let message = match frame.kind {
            Some(kind) => check(kind, &mut self.known)?,
            None => Message::Unknown,
        };
        Ok(Some(Envelope { request: frame.request, message }))
    }

    fn frame_length(&self) -> Option<usize> {
        let length = self.buffer.first_chunk::<LENGTH_BYTES>()?;
        Some(u32::from_be_bytes(*length) as usize)
    }
}

/// Appends a frame to `out`. Bodies go by [`encode_data_prefix`] instead, so that they are not copied.
pub fn encode(request: u64, message: &Message, out: &mut BytesMut) {
    match message {
        Message::Ask(question) if question.purges.is_empty() => {
            codec::encode_ask(request, &question.ask, &question.beside(), out);
        }
        Message::Head(head) => {
            let (fields, hop) = (head.fields.as_bytes(), head.hop.as_ref());
            codec::encode_head(request, head.status, fields, head.content_length, hop, out);
        }
        Message::End { length, checksum } => codec::encode_end(request, *length, *checksum, out),
        message => encode_generated(request, message, out),
    }
}

fn encode_generated(request: u64, message: &Message, out: &mut BytesMut) {
    let frame = wire::Frame { request, kind: to_wire(message) };
    let start = out.len();
    out.reserve(LENGTH_BYTES + 64);
    out.put_u32(0);
    // Encoding into a buffer that grows cannot fail.
    let encoded = frame.encode(out);
    debug_assert!(encoded.is_ok());
    let length = (out.len() - start - LENGTH_BYTES) as u32;
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// Appends everything of a `Data` frame but the payload, which must follow on the wire.
pub fn encode_data_prefix(request: u64, payload_bytes: usize, out: &mut BytesMut) {
    codec::encode_data_prefix(request, payload_bytes, out);
}

/// Whether the question is within the limits that the other end will check.
pub fn question_fits(ask: &Ask) -> bool {
    ask.key.len() <= KEY_BYTES_MAX
        && ask.target.len() <= KEY_BYTES_MAX
        && ask.host.as_ref().is_none_or(|host| host.len() <= HOST_BYTES_MAX)
        && ask.group.len() <= GROUP_BYTES_MAX
        && ask.fields.len() <= FIELDS_BYTES_MAX
}

/// Whether the head is within the limits that the other end will check.
pub fn head_fits(head: &Head) -> bool {
    let sent = head.hop.as_ref().map_or(0, |hop| hop.sent.len());
    head.fields.len() <= FIELDS_BYTES_MAX && sent <= FIELDS_BYTES_MAX && (200..=599).contains(&head.status)
}

fn to_wire(message: &Message) -> Option<wire::frame::Kind> {
    use wire::frame::Kind;
    Some(match message {
        Message::Hello(hello) => Kind::Hello(wire::Hello {
            version_min: hello.versions.min,
            version_max: hello.versions.max,
            nonce: Bytes::copy_from_slice(&hello.nonce),
        }),
        Message::Challenge(hello) => Kind::Challenge(wire::Challenge {
            version_min: hello.versions.min,
            version_max: hello.versions.max,
            nonce: Bytes::copy_from_slice(&hello.nonce),
        }),
        Message::Proof(tag) => Kind::Proof(wire::Proof { tag: tag.clone() }),
        Message::Identity(identity) => Kind::Identity(wire::Identity {
            software: identity.software.clone(),
            ring_id: identity.ring_id,
            incarnation: identity.incarnation,
            draining: identity.draining,
            sign_milliseconds: identity.sign_milliseconds,
        }),
        Message::Ping(number) => Kind::Ping(wire::Ping { number: *number }),
        Message::Pong(number) => Kind::Pong(wire::Pong { number: *number }),
        Message::Status { draining, ring_id } => Kind::Status(wire::Status { draining: *draining, ring_id: *ring_id }),
        Message::Goodbye { reason, text } => Kind::Goodbye(wire::Goodbye {
            reason: match reason {
                GoodbyeReason::Other => wire::goodbye::Reason::Unspecified,
                GoodbyeReason::NotProven => wire::goodbye::Reason::NotProven,
                GoodbyeReason::ProtocolError => wire::goodbye::Reason::ProtocolError,
                GoodbyeReason::Shutdown => wire::goodbye::Reason::Shutdown,
            }
            .into(),
            text: printable(text),
        }),
        Message::Ask(question) => Kind::Ask(ask_to_wire(question)),
        Message::Accepted => Kind::Accepted(wire::Accepted {}),
        Message::Loading => Kind::Loading(wire::Loading {}),
        Message::Head(head) => Kind::Head(wire::Head {
            status: u32::from(head.status),
            fields: head.fields.as_bytes().clone(),
            content_length: head.content_length,
            hop: head.hop.as_ref().map(hop_to_wire),
        }),
        Message::Interim(interim) => Kind::Interim(wire::Interim {
            status: u32::from(interim.status),
            fields: interim.fields.as_bytes().clone(),
        }),
        Message::Data(payload) => Kind::Data(wire::Data { payload: payload.clone() }),
        Message::End { length, checksum } => Kind::End(wire::End { length: *length, checksum: *checksum }),
        Message::Abort { reason } => Kind::Abort(wire::Abort { reason: printable(reason) }),
        Message::Failure(failure) => Kind::Failure(failure_to_wire(failure)),
        Message::Credit(bytes) => Kind::Credit(wire::Credit { bytes: *bytes }),
        Message::Cancel => Kind::Cancel(wire::Cancel {}),
        Message::Unknown => return None,
    })
}

fn ask_to_wire(question: &Question) -> wire::Ask {
    let ask = &question.ask;
    wire::Ask {
        kind: kind_to_wire(question.kind).into(),
        method: match ask.method {
            Method::Get => wire::ask::Method::Get,
            Method::Head => wire::ask::Method::Head,
        }
        .into(),
        group: Bytes::copy_from_slice(ask.group.as_bytes()),
        key: ask.key.clone(),
        target: ask.target.clone(),
        host: ask.host.clone(),
        fields: ask.fields.as_bytes().clone(),
        have_incarnation: question.have.incarnation,
        have_fill: question.have.fill,
        ring_id: question.ring_id,
        window: question.window,
        purges: question.purges.clone(),
    }
}

fn kind_to_wire(kind: QuestionKind) -> wire::ask::Kind {
    match kind {
        QuestionKind::Load => wire::ask::Kind::Load,
        QuestionKind::Peek => wire::ask::Kind::Peek,
        QuestionKind::Purge => wire::ask::Kind::Purge,
        QuestionKind::Offer => wire::ask::Kind::Offer,
        QuestionKind::Permit => wire::ask::Kind::Permit,
        QuestionKind::HoldPermit => wire::ask::Kind::HoldPermit,
        QuestionKind::Replicate => wire::ask::Kind::Replicate,
    }
}

fn hop_to_wire(hop: &Hop) -> wire::Hop {
    let freshness = &hop.freshness;
    wire::Hop {
        age_milliseconds: freshness.age_milliseconds,
        remaining_milliseconds: freshness.remaining_milliseconds,
        stale_while_revalidate: freshness.stale_while_revalidate,
        stale_if_error: freshness.stale_if_error,
        lifetime_source: u32::from(freshness.source.code()),
        stale: stale_to_wire(freshness.stale).into(),
        no_cache: freshness.no_cache,
        immutable: freshness.immutable,
        shareable: hop.shareable,
        storable: hop.storable,
        sent: hop.sent.as_bytes().clone(),
        entry_incarnation: hop.entry.incarnation,
        entry_fill: hop.entry.fill,
        hit: hop.hit,
        not_modified: hop.not_modified,
        body_incarnation: hop.body.incarnation,
        body_fill: hop.body.fill,
        answered_stale: hop.stale,
        revalidated: hop.revalidated,
        weak_date: hop.weak_date,
        tags: Bytes::copy_from_slice(hop.tags.text()),
        tags_too_many: hop.tags.are_too_many(),
        stamp: hop.stamp.as_ref().map(stamp_to_wire).unwrap_or_default(),
        minute_rate: hop.minute_rate,
        replicas: hop.replicas,
    }
}

fn stale_to_wire(stale: StalePermission) -> wire::hop::StalePermission {
    match stale {
        StalePermission::Free => wire::hop::StalePermission::Free,
        StalePermission::OnlyByResponse => wire::hop::StalePermission::OnlyByResponse,
        StalePermission::Never => wire::hop::StalePermission::Never,
    }
}

fn failure_to_wire(failure: &Failure) -> wire::Failure {
    let (kind, status, reason) = match failure {
        Failure::Unreachable(reason) => (wire::failure::Kind::Unreachable, 0, printable(reason)),
        Failure::Refused(status, reason) => (wire::failure::Kind::Refused, u32::from(*status), printable(reason)),
        Failure::NotFound => (wire::failure::Kind::NotFound, 0, String::new()),
        Failure::Draining => (wire::failure::Kind::Draining, 0, String::new()),
    };
    wire::Failure { kind: kind.into(), status, reason }
}

fn check(kind: wire::frame::Kind, known: &mut Known) -> Result<Message, ProtocolError> {
    use wire::frame::Kind;
    Ok(match kind {
        Kind::Hello(hello) => Message::Hello(check_hello(hello.version_min, hello.version_max, &hello.nonce)?),
        Kind::Challenge(hello) => Message::Challenge(check_hello(hello.version_min, hello.version_max, &hello.nonce)?),
        Kind::Proof(proof) => Message::Proof(proof.tag),
        Kind::Identity(identity) => Message::Identity(Identity {
            software: printable(&identity.software),
            ring_id: identity.ring_id,
            incarnation: identity.incarnation,
            draining: identity.draining,
            sign_milliseconds: identity.sign_milliseconds,
        }),
        Kind::Ping(ping) => Message::Ping(ping.number),
        Kind::Pong(pong) => Message::Pong(pong.number),
        Kind::Status(status) => Message::Status { draining: status.draining, ring_id: status.ring_id },
        Kind::Goodbye(goodbye) => Message::Goodbye {
            reason: match goodbye.reason() {
                wire::goodbye::Reason::Unspecified => GoodbyeReason::Other,
                wire::goodbye::Reason::NotProven => GoodbyeReason::NotProven,
                wire::goodbye::Reason::ProtocolError => GoodbyeReason::ProtocolError,
                wire::goodbye::Reason::Shutdown => GoodbyeReason::Shutdown,
            },
            text: printable(&goodbye.text).into(),
        },
        Kind::Ask(ask) => Message::Ask(Box::new(check_ask(ask, known)?)),
        Kind::Accepted(_) => Message::Accepted,
        Kind::Loading(_) => Message::Loading,
        Kind::Head(head) => Message::Head(Box::new(check_head(head)?)),
        Kind::Interim(interim) => Message::Interim(check_interim(interim)?),
        Kind::Data(data) if data.payload.is_empty() => return Err(ProtocolError::Malformed("empty data")),
        Kind::Data(data) => Message::Data(data.payload),
        Kind::End(end) => Message::End { length: end.length, checksum: end.checksum },
        Kind::Abort(abort) => Message::Abort { reason: printable(&abort.reason).into() },
        Kind::Failure(failure) => Message::Failure(check_failure(&failure)?),
        Kind::Credit(credit) => Message::Credit(credit.bytes),
        Kind::Cancel(_) => Message::Cancel,
    })
}

fn check_hello(min: u32, max: u32, nonce: &[u8]) -> Result<Hello, ProtocolError> {
    let nonce = nonce.try_into().map_err(|_| ProtocolError::Malformed("nonce"))?;
    if min == 0 || min > max {
        return Err(ProtocolError::Malformed("versions"));
    }
    Ok(Hello { versions: Versions { min, max }, nonce })
}

fn check_ask(ask: wire::Ask, known: &mut Known) -> Result<Question, ProtocolError> {
    // An unknown kind may want anything, so it is not a load.
    let kind = match wire::ask::Kind::try_from(ask.kind) {
        Ok(wire::ask::Kind::Load) => QuestionKind::Load,
        Ok(wire::ask::Kind::Peek) => QuestionKind::Peek,
        Ok(wire::ask::Kind::Purge) => QuestionKind::Purge,
        Ok(wire::ask::Kind::Offer) => QuestionKind::Offer,
        Ok(wire::ask::Kind::Permit) => QuestionKind::Permit,
        Ok(wire::ask::Kind::HoldPermit) => QuestionKind::HoldPermit,
        Ok(wire::ask::Kind::Replicate) => QuestionKind::Replicate,
        Err(_) => return Err(ProtocolError::Malformed("kind of question")),
    };
    let method = match wire::ask::Method::try_from(ask.method) {
        Ok(wire::ask::Method::Get) => Method::Get,
        Ok(wire::ask::Method::Head) => Method::Head,
        Err(_) => return Err(ProtocolError::Malformed("method")),
    };
    let group = match &mut known.group {
        Some(group) if group.as_bytes() == &ask.group[..] => group.clone(),
        last => last.insert(Arc::from(check_group(&ask.group)?)).clone(),
    };
    if ask.fields != known.fields.as_bytes() {
        // A copy: a slice would keep the frames around it for as long as the connection lasts.
        known.fields = check_fields(Bytes::copy_from_slice(&ask.fields))?;
    }
    if ask.key.len() > KEY_BYTES_MAX {
        return Err(ProtocolError::Malformed("key"));
    }
    let visible = |bytes: &[u8]| bytes.iter().all(|byte| byte.is_ascii_graphic());
    if !ask.target.starts_with(b"/") || ask.target.len() > KEY_BYTES_MAX || !visible(&ask.target) {
        return Err(ProtocolError::Malformed("target"));
    }
    if ask.host.as_ref().is_some_and(|host| host.is_empty() || host.len() > HOST_BYTES_MAX || !visible(host)) {
        return Err(ProtocolError::Malformed("host"));
    }
    Ok(Question {
        kind,
        ask: Ask { group, key: ask.key, target: ask.target, host: ask.host, method, fields: known.fields.clone() },
        have: EntryId { incarnation: ask.have_incarnation, fill: ask.have_fill },
        ring_id: ask.ring_id,
        window: ask.window.min(WINDOW_BYTES_MAX),
        purges: ask.purges,
    })
}

fn check_group(group: &[u8]) -> Result<&str, ProtocolError> {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    if group.is_empty() || group.len() > GROUP_BYTES_MAX || !group.iter().all(allowed) {
        return Err(ProtocolError::Malformed("group"));
    }
    std::str::from_utf8(group).map_err(|_| ProtocolError::Malformed("group"))
}

fn check_head(head: wire::Head) -> Result<Head, ProtocolError> {
    let status = u16::try_from(head.status).ok().filter(|status| (200..=599).contains(status));
    let hop = match head.hop {
        None => None,
        Some(hop) => Some(Hop {
            freshness: HopFreshness {
                age_milliseconds: hop.age_milliseconds,
                remaining_milliseconds: hop.remaining_milliseconds,
                stale_while_revalidate: hop.stale_while_revalidate,
                stale_if_error: hop.stale_if_error,
                source: LifetimeSource::from_code(u8::try_from(hop.lifetime_source).unwrap_or(u8::MAX)),
                // What a later version permits and this one does not know is not permitted.
                stale: match wire::hop::StalePermission::try_from(hop.stale) {
                    Ok(wire::hop::StalePermission::Free) => StalePermission::Free,
                    Ok(wire::hop::StalePermission::OnlyByResponse) => StalePermission::OnlyByResponse,
                    Ok(wire::hop::StalePermission::Never) | Err(_) => StalePermission::Never,
                },
                no_cache: hop.no_cache,
                immutable: hop.immutable,
            },
            shareable: hop.shareable,
            storable: hop.storable,
            sent: check_fields(hop.sent)?,
            entry: EntryId { incarnation: hop.entry_incarnation, fill: hop.entry_fill },
            body: EntryId { incarnation: hop.body_incarnation, fill: hop.body_fill },
            hit: hop.hit,
            stale: hop.answered_stale,
            revalidated: hop.revalidated,
            weak_date: hop.weak_date,
            not_modified: hop.not_modified,
            tags: match hop.tags_too_many {
                true => Tags::too_many(),
                false => Tags::new(hop.tags.split(|&byte| byte == b'\n')),
            },
            stamp: Some(stamp_of_wire(&hop.stamp)?),
            minute_rate: hop.minute_rate,
            replicas: hop.replicas,
        }),
    };
    Ok(Head {
        status: status.ok_or(ProtocolError::Malformed("status"))?,
        fields: check_fields(head.fields)?,
        content_length: head.content_length,
        hop,
    })
}

fn check_interim(interim: wire::Interim) -> Result<Interim, ProtocolError> {
    let status = u16::try_from(interim.status).ok().filter(|&status| Interim::is_one(status));
    let status = status.ok_or(ProtocolError::Malformed("status of an interim answer"))?;
    Ok(Interim { status, fields: check_fields(interim.fields)? })
}

fn check_fields(block: Bytes) -> Result<Fields, ProtocolError> {
    if block.len() > FIELDS_BYTES_MAX {
        return Err(ProtocolError::Malformed("header section too long"));
    }
    Fields::parse(block).map_err(|_| ProtocolError::Malformed("header section"))
}

fn check_failure(failure: &wire::Failure) -> Result<Failure, ProtocolError> {
    Ok(match wire::failure::Kind::try_from(failure.kind) {
        Ok(wire::failure::Kind::Refused) => {
            let status = u16::try_from(failure.status).ok().filter(|status| (500..=599).contains(status));
            Failure::Refused(
                status.ok_or(ProtocolError::Malformed("status of a failure"))?,
                printable(&failure.reason).into(),
            )
        }
        Ok(wire::failure::Kind::NotFound) => Failure::NotFound,
        Ok(wire::failure::Kind::Draining) => Failure::Draining,
        // A kind of a later version: nothing is known but that there is no answer.
        Ok(wire::failure::Kind::Unreachable) | Err(_) => Failure::Unreachable(printable(&failure.reason).into()),
    })
}

/// Text from outside goes into logs and error pages: printable ASCII, and short.
fn printable(text: &str) -> String {
    let clean = |character: char| if (' '..='~').contains(&character) { character } else { '?' };
    text.chars().take(TEXT_BYTES_MAX).map(clean).collect()
}

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;
/// Longest frame before both ends are proven.
pub const FRAME_BYTES_MAX_UNPROVEN: usize = 1024;
/// Longest frame afterwards: two header sections, key and target, or a piece of body, with room to spare.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Longest header section, in either direction (as `origin` limits it).
pub const FIELDS_BYTES_MAX: usize = 64 * 1024;
/// Longest key or target: 8 KiB from a client and as much again for a group's own prefix.
pub const KEY_BYTES_MAX: usize = crate::purge::VALUE_BYTES_MAX;
/// Longest `Host`.
pub const HOST_BYTES_MAX: usize = 512;
/// Longest name of a group.
pub const GROUP_BYTES_MAX: usize = crate::purge::GROUP_BYTES_MAX;
/// Longest reason.
pub const TEXT_BYTES_MAX: usize = 256;
/// No credit goes above this, whatever an asker grants.
pub const WINDOW_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// Longest piece of body in one frame, so that streams take turns.
pub const DATA_BYTES_MAX: usize = 64 * 1024;

const LENGTH_BYTES: usize = 4;

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
