//! A stored response: head, freshness facts, body. Immutable once made; who changes one makes another.
//!
//! There may be very many of them, so that an entry is one block, with its key and its head behind the facts that a hit needs,
//! and a body of its own block; what few entries have lies between the entry and its body (`Rare`).
//!
//! A body may be incomplete: then it holds some ranges of a representation whose length and strong validator are known,
//! which is RFC 9111 section 3.3's "as if it were an incomplete 200 response". The entry looks like one of the whole
//! (status 200, fields without `Content-Range`) and answers only requests for a range that it holds.

mod variants;

use std::fmt;
use std::ops::Deref;

use bytes::{Bytes, BytesMut};
use triomphe::{Arc, ThinArc};

use crate::clock::Now;
use crate::fields::{FieldLines, Fields};
use crate::freshness::Freshness;
use crate::memory::{Charge, Ledger, allocated_bytes};
use crate::purge::Tags;
use crate::semantics::multipart::slice_chunks;
use crate::semantics::ranges::ByteRange;
use crate::semantics::validators::StoredValidators;
use crate::source::EntryId;

pub(crate) use self::variants::{Variant, Variants};

/// One stored response; clones are the same.
#[derive(Clone)]
pub struct Entry(ThinArc<Facts, u8>);

/// What an [`Entry`] knows beside its fields.
pub struct Facts {
    /// What RFC 9111 needs to know of the fields, parsed once.
    pub freshness: Freshness,
    /// What conditional requests are compared with, parsed once.
    pub validators: StoredValidators,
    /// Final status code.
    pub status: u16,
    /// Which fill of which node made it.
    pub id: EntryId,
    /// The body, and what few entries have.
    pub body: Body,
    /// Of the block, in units of [`UNIT_BYTES`].
    units: u16,
    /// The node's memory, in which an entry counts until its last holder lets go.
    ledger: Ledger,
}

const _: () = assert!(size_of::<Facts>() == 96 && size_of::<Entry>() == 8, "every entry has this");

/// What few entries have: in the place of the body, so that the others pay nothing for it.
struct Rare {
    body: Body,
    body_id: EntryId,
    /// A block of fields.
    sent: Box<[u8]>,
    tags: Tags,
    /// Those for which an entry stands that is none of them.
    variants: Option<Box<Variants>>,
}

/// All that an entry is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Which fill of which node made it.
    pub id: EntryId,
    /// Which fill brought the body, whole and in one piece; what revalidation over the hop compares. An entry that was
    /// confirmed has another `id` and the same body. Zero for a body that was put together, which is never confirmed.
    pub body_id: EntryId,
    /// Final status code.
    pub status: u16,
    /// End-to-end fields as they go to clients, without those that are written anew each time (`Age`, `Cache-Status`, `Via`).
    pub fields: Fields,
    /// What RFC 9111 needs to know of the fields.
    pub freshness: Freshness,
    /// What conditional requests are compared with.
    pub validators: StoredValidators,
    /// What we sent the origin in the fields that the response's `Vary` names.
    pub sent: Fields,
    /// The names under which it can be purged beside its key.
    pub tags: Tags,
    /// The body.
    pub body: Body,
}

impl Parts {
    fn has_rare(&self) -> bool {
        self.body_id != self.id || !self.sent.is_empty() || self.tags != Tags::default()
    }
}

impl Entry {
    /// An entry of these parts under `key`; `charge` becomes what they take, as the allocator gives it.
    pub fn new(key: &[u8], parts: Parts, mut charge: Charge) -> Entry {
        let rare = parts.has_rare();
        let Parts { id, body_id, status, fields, freshness, validators, sent, tags, body } = parts;
        let sent = || sent.as_bytes().to_vec().into();
        let body = match rare {
            true => Body::behind(Rare { body: body.into_bare(), body_id, sent: sent(), tags, variants: None }),
            false => body.into_bare(),
        };
        let units = units(key.len(), fields.len());
        charge.resize(charged_bytes(units, &body));
        let facts = Facts { freshness, validators, status, units, id, body, ledger: charge.keep_apart() };
        Entry::of_block(facts, key, fields.as_bytes())
    }

    /// What stands for `variants`, of which there is at least one: the key and the facts of the first, without a body.
    pub(crate) fn of_variants(variants: Variants) -> Entry {
        let first = variants.first().clone();
        let (body_id, sent, tags) = (first.id, Box::default(), Tags::none());
        let body =
            Body::behind(Rare { body: Body::default(), body_id, sent, tags, variants: Some(Box::new(variants)) });
        let units = units(first.key().len(), 0);
        let charge = first.another_charge(charged_bytes(units, &body));
        let Facts { freshness, validators, status, id, .. } = *first;
        let facts = Facts { freshness, validators, status, units, id, body, ledger: charge.keep_apart() };
        Entry::of_block(facts, first.key(), &[])
    }

    fn of_block(facts: Facts, key: &[u8], fields: &[u8]) -> Entry {
        let mut slice = Vec::with_capacity(length_bytes(key.len()) + key.len() + fields.len());
        match u16::try_from(key.len()) {
            Ok(length) if length != LONG_KEY => slice.extend_from_slice(&length.to_ne_bytes()),
            _ => {
                slice.extend_from_slice(&LONG_KEY.to_ne_bytes());
                slice.extend_from_slice(&key.len().to_ne_bytes());
            }
        }
        slice.extend_from_slice(key);
        slice.extend_from_slice(fields);
        Entry(ThinArc::from_header_and_slice(facts, &slice))
    }

    /// The same, stale from now on at the latest.
    pub fn expired(&self, now: Now) -> Entry {
        let parts = Parts { freshness: self.freshness.expired(now), ..self.to_parts() };
        Entry::new(self.key(), parts, self.another_charge(0))
    }

    /// The key, within its group.
    #[inline]
    pub fn key(&self) -> &[u8] {
        self.key_and_fields().0
    }

    /// The variants for which it stands, if it does.
    #[inline]
    pub(crate) fn variants(&self) -> Option<&Variants> {
        self.body.rare().and_then(|rare| rare.variants.as_deref())
    }

    #[inline]
    fn key_and_fields(&self) -> (&[u8], &[u8]) {
        let Some((length, rest)) = self.0.slice.split_first_chunk() else { return Default::default() };
        match u16::from_ne_bytes(*length) {
            LONG_KEY => {
                let Some((length, rest)) = rest.split_first_chunk() else { return Default::default() };
                rest.split_at_checked(usize::from_ne_bytes(*length)).unwrap_or_default()
            }
            length => rest.split_at_checked(usize::from(length)).unwrap_or_default(),
        }
    }

    /// What it is made of; the body is shared.
    pub fn to_parts(&self) -> Parts {
        Parts {
            id: self.id,
            body_id: self.body_id(),
            status: self.status,
            fields: self.fields().to_fields(),
            freshness: self.freshness,
            validators: self.validators,
            sent: self.sent().to_fields(),
            tags: self.tags().clone(),
            body: self.body.bare().clone(),
        }
    }

    /// See [`Parts::fields`].
    #[inline]
    pub fn fields(&self) -> &FieldLines {
        FieldLines::of_block(self.key_and_fields().1)
    }

    /// The fields as a block that may outlive this handle; not copied.
    pub fn shared_fields(&self) -> Fields {
        Fields::of_checked(Bytes::from_owner(Head(self.clone())))
    }

    /// See [`Parts::body_id`].
    pub fn body_id(&self) -> EntryId {
        self.body.rare().map_or(self.id, |rare| rare.body_id)
    }

    /// See [`Parts::sent`].
    pub fn sent(&self) -> &FieldLines {
        FieldLines::of_block(self.body.rare().map_or(&[], |rare| &rare.sent))
    }

    /// See [`Parts::tags`].
    pub fn tags(&self) -> &Tags {
        static NONE: Tags = Tags::none();
        self.body.rare().map_or(&NONE, |rare| &rare.tags)
    }

    /// What it takes of memory, in bytes.
    pub fn charged_bytes(&self) -> usize {
        charged_bytes(self.units, &self.body)
    }

    /// A charge in the same ledger.
    pub fn another_charge(&self, bytes: usize) -> Charge {
        self.ledger.charge(bytes)
    }

    /// Whether both are the same entry, not only equal ones.
    pub fn is_same(&self, other: &Entry) -> bool {
        std::ptr::eq::<Facts>(&**self, &**other)
    }

    /// How many handles there are, this one included.
    pub fn holders(&self) -> usize {
        ThinArc::strong_count(&self.0)
    }
}

impl Drop for Facts {
    fn drop(&mut self) {
        self.ledger.give_back(charged_bytes(self.units, &self.body));
    }
}

/// What an entry takes of memory, as the allocator gives it.
fn charged_bytes(units: u16, body: &Body) -> usize {
    let rare = body.rare().map_or(0, |rare| {
        let blocks = allocated_bytes(rare.sent.len()) + allocated_bytes(rare.tags.len());
        allocated_bytes(CONTENT_BYTES)
            + allocated_bytes(size_of::<Rare>())
            + blocks
            + rare.variants.as_deref().map_or(0, Variants::charged_bytes)
    });
    allocated_bytes(usize::from(units) * UNIT_BYTES) + body.charged_bytes() + rare
}

impl Deref for Entry {
    type Target = Facts;

    #[inline]
    fn deref(&self) -> &Facts {
        &self.0.header.header
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_parts().fmt(formatter)
    }
}

/// The head of an entry as the owner of its bytes.
struct Head(Entry);

impl AsRef<[u8]> for Head {
    fn as_ref(&self) -> &[u8] {
        self.0.fields().as_bytes()
    }
}

/// What the block of an entry holds in front of its key: the count of its holders, the length of what follows, the facts.
const HEADER_BYTES: usize = 2 * size_of::<usize>() + size_of::<Facts>();

/// How long the key is stands in front of it in two bytes, if this does not: then in eight more. No server takes a request
/// line of 64 KiB, but how much a request may be is a setting.
const LONG_KEY: u16 = u16::MAX;

const fn length_bytes(key_bytes: usize) -> usize {
    if key_bytes < LONG_KEY as usize { size_of::<u16>() } else { size_of::<u16>() + size_of::<usize>() }
}

/// What a block takes, in units of [`UNIT_BYTES`].
fn units(key_bytes: usize, fields_bytes: usize) -> u16 {
    let units = (HEADER_BYTES + length_bytes(key_bytes) + key_bytes + fields_bytes).div_ceil(UNIT_BYTES);
    // No source passes on a head that is longer than what fits.
    u16::try_from(units).unwrap_or(u16::MAX)
}

/// All sizes that the allocator gives for an entry are multiples of it.
const UNIT_BYTES: usize = 32;

/// What a block behind a `Bytes` takes: the block, and the small one that counts its holders.
fn shared_bytes(length: usize) -> usize {
    if length == 0 { 0 } else { allocated_bytes(length) + allocated_bytes(SHARED_HANDLE_BYTES) }
}

/// What `bytes` allocates beside a block once it is shared: pointer, capacity, count.
const SHARED_HANDLE_BYTES: usize = 24;

/// A body in memory. It holds all of the representation, or ranges of it. Clones share the bytes.
#[derive(Clone, Default)]
pub struct Body(Option<Arc<Content>>);

enum Content {
    /// All of a representation that is not large, in one block.
    Block(Box<[u8]>),
    Segments(Box<Segments>),
    /// Of an entry: what few have, and the body.
    Behind(Box<Rare>),
}

/// What the block of a [`Body`] takes that points to its bytes: the count of its holders, place and length.
const CONTENT_BYTES: usize = size_of::<usize>() + size_of::<Content>();

const _: () = assert!(CONTENT_BYTES == 32, "every entry has this");

/// A body in segments that can be sent without a copy.
struct Segments {
    segments: Box<[Bytes]>,
    /// Length of the representation.
    bytes: u64,
    /// What the segments hold, one behind the other: ascending ranges with gaps between them. `None`: everything.
    held: Option<Box<[ByteRange]>>,
}

/// The block of a body as the owner of its bytes.
struct Block(Arc<Content>);

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        self.0.block().unwrap_or_default()
    }
}

impl Content {
    #[inline]
    fn block(&self) -> Option<&[u8]> {
        match self {
            Content::Block(block) => Some(block),
            Content::Segments(_) | Content::Behind(_) => None,
        }
    }
}

impl Body {
    /// Gathers chunks as they arrived: into one block, or into segments of [`SEGMENT_BYTES`], so that a body of many small
    /// chunks neither costs a handle each nor holds read buffers larger than itself.
    pub fn gather(chunks: &[Bytes]) -> Body {
        let bytes: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if bytes <= SEGMENT_BYTES as u64 {
            return Body::of_block(chunks.concat().into());
        }
        if let [only] = chunks {
            return Body::of_segments(vec![only.clone()], bytes, None);
        }
        let mut segments = Vec::with_capacity(bytes.div_ceil(SEGMENT_BYTES as u64) as usize);
        let mut left = bytes as usize;
        let mut segment = BytesMut::with_capacity(left.min(SEGMENT_BYTES));
        for chunk in chunks {
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                let room = (segment.capacity() - segment.len()).min(rest.len());
                segment.extend_from_slice(&rest[..room]);
                rest = &rest[room..];
                left -= room;
                if segment.len() == segment.capacity() {
                    let next = BytesMut::with_capacity(left.min(SEGMENT_BYTES));
                    segments.push(std::mem::replace(&mut segment, next).freeze());
                }
            }
        }
        if !segment.is_empty() {
            segments.push(segment.freeze());
        }
        Body::of_segments(segments, bytes, None)
    }

    /// The same of chunks that own what they hold and nothing else. Those of a very large body stay as they are, if the allocator
    /// gives little more for them: a second copy beside the first would be its peak, which allocators give back late.
    pub fn of_owned(chunks: &[Bytes]) -> Body {
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        let taken: usize = chunks.iter().map(|chunk| shared_bytes(chunk.len()) + size_of::<Bytes>()).sum();
        if bytes < KEPT_BYTES_LEAST || taken > bytes + bytes / KEPT_WASTE_SHARE {
            return Body::gather(chunks);
        }
        Body::of_segments(chunks.to_vec(), bytes as u64, None)
    }

    /// Whether these chunks are its memory, and not what it was copied from.
    pub fn is_made_of(&self, chunks: &[Bytes]) -> bool {
        match (self.segments(), chunks) {
            ([first, ..], [chunk, ..]) => first.as_ptr() == chunk.as_ptr(),
            _ => chunks.is_empty(),
        }
    }

    /// A body of which only ranges are here: ascending, apart from one another, `segments` being their bytes one behind
    /// the other. Ranges that make up the whole make a whole body.
    pub fn of_ranges(length: u64, held: Vec<ByteRange>, segments: Vec<Bytes>) -> Body {
        debug_assert!(held.windows(2).all(|pair| pair[0].last < pair[1].first.saturating_sub(1)));
        debug_assert_eq!(
            held.iter().map(ByteRange::length).sum::<u64>(),
            segments.iter().map(|segment| segment.len() as u64).sum::<u64>()
        );
        match *held {
            [ByteRange { first: 0, last }] if last.checked_add(1) == Some(length) => match length {
                0..=SEGMENT_BYTES_U64 => Body::gather(&segments),
                _ => Body::of_segments(segments, length, None),
            },
            _ => Body::of_segments(segments, length, Some(held.into())),
        }
    }

    fn of_block(block: Box<[u8]>) -> Body {
        Body((!block.is_empty()).then(|| Arc::new(Content::Block(block))))
    }

    fn behind(rare: Rare) -> Body {
        Body(Some(Arc::new(Content::Behind(Box::new(rare)))))
    }

    #[inline]
    fn rare(&self) -> Option<&Rare> {
        match self.0.as_deref() {
            Some(Content::Behind(rare)) => Some(rare),
            _ => None,
        }
    }

    /// The body alone.
    #[inline]
    fn bare(&self) -> &Body {
        self.rare().map_or(self, |rare| &rare.body)
    }

    fn into_bare(self) -> Body {
        match self.rare() {
            None => self,
            Some(rare) => rare.body.clone(),
        }
    }

    #[inline]
    fn content(&self) -> Option<&Content> {
        self.bare().0.as_deref()
    }

    fn of_segments(segments: Vec<Bytes>, bytes: u64, held: Option<Box<[ByteRange]>>) -> Body {
        Body(Some(Arc::new(Content::Segments(Box::new(Segments { segments: segments.into(), bytes, held })))))
    }

    /// Length of the representation in bytes, whether all of it is here or not.
    #[inline]
    pub fn len(&self) -> u64 {
        match self.content() {
            Some(Content::Block(block)) => block.len() as u64,
            Some(Content::Segments(segments)) => segments.bytes,
            Some(Content::Behind(_)) | None => 0,
        }
    }

    /// Whether the representation has no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether all of the representation is here.
    #[inline]
    pub fn is_whole(&self) -> bool {
        self.ranges().is_none()
    }

    #[inline]
    fn ranges(&self) -> Option<&[ByteRange]> {
        match self.content() {
            Some(Content::Segments(segments)) => segments.held.as_deref(),
            _ => None,
        }
    }

    /// The ranges that are here, ascending and apart from one another; none of an empty body.
    pub fn held(&self) -> Vec<ByteRange> {
        match (self.ranges(), self.len().checked_sub(1)) {
            (Some(held), _) => held.to_vec(),
            (None, Some(last)) => vec![ByteRange { first: 0, last }],
            (None, None) => Vec::new(),
        }
    }

    /// Whether all bytes of `range` are here.
    pub fn holds(&self, range: ByteRange) -> bool {
        match self.ranges() {
            None => range.last < self.len(),
            Some(held) => held.iter().any(|held| held.covers(&range)),
        }
    }

    /// The bytes of `range`, shared and not copied; `None` when they are not all here. The only way into a body that may be
    /// incomplete.
    pub fn slice(&self, range: ByteRange) -> Option<Vec<Bytes>> {
        let Some(Content::Segments(content)) = self.content() else {
            return Some(vec![self.share(self.block_of(range)?)]);
        };
        let Some(held) = &content.held else { return slice_chunks(&content.segments, range) };
        let mut before: u64 = 0;
        for part in held {
            if part.covers(&range) {
                // Where the range lies among the bytes that are here.
                let moved = |place: u64| before + (place - part.first);
                let range = ByteRange { first: moved(range.first), last: moved(range.last) };
                return slice_chunks(&content.segments, range);
            }
            before += part.length();
        }
        None
    }

    /// All of the body where it lies in one block, as small ones do.
    #[inline]
    pub fn block(&self) -> Option<&[u8]> {
        self.content().map_or(Some(&[]), Content::block)
    }

    /// The bytes of `range` out of it.
    #[inline]
    pub fn block_of(&self, range: ByteRange) -> Option<&[u8]> {
        let block = self.block().filter(|block| range.last < block.len() as u64)?;
        block.get(range.first as usize..=range.last as usize)
    }

    /// A part of [`block`](Self::block) that may outlive this body; not copied.
    pub fn share(&self, part: &[u8]) -> Bytes {
        match &self.bare().0 {
            Some(content) if !part.is_empty() => Bytes::from_owner(Block(content.clone())).slice_ref(part),
            _ => Bytes::new(),
        }
    }

    /// The segments of a body that does not lie in one block, in order: of a whole body, its bytes; of another, those that are
    /// here.
    #[inline]
    pub fn segments(&self) -> &[Bytes] {
        match self.content() {
            Some(Content::Segments(content)) => &content.segments,
            _ => &[],
        }
    }

    /// All that is here, shared and not copied.
    pub fn to_segments(&self) -> Vec<Bytes> {
        match self.block() {
            Some([]) => Vec::new(),
            Some(block) => vec![self.share(block)],
            None => self.segments().to_vec(),
        }
    }

    /// The same, given up: where nobody else has it, its block needs no holder.
    pub fn into_segments(self) -> Vec<Bytes> {
        let Some(content) = self.into_bare().0 else { return Vec::new() };
        match Arc::try_unwrap(content) {
            Ok(Content::Block(block)) => vec![block.into()],
            Ok(Content::Segments(content)) => content.segments.into(),
            Ok(Content::Behind(rare)) => rare.body.to_segments(),
            Err(content) => Body(Some(content)).to_segments(),
        }
    }

    /// What it takes of memory, as the allocator gives it.
    pub fn charged_bytes(&self) -> usize {
        let own = match self.content() {
            Some(Content::Behind(_)) | None => return 0,
            Some(Content::Block(block)) => allocated_bytes(block.len()),
            Some(Content::Segments(content)) => {
                allocated_bytes(size_of::<Segments>())
                    + allocated_bytes(size_of_val(&*content.segments))
                    + allocated_bytes(size_of_val(content.held.as_deref().unwrap_or_default()))
                    + content.segments.iter().map(|segment| shared_bytes(segment.len())).sum::<usize>()
            }
        };
        allocated_bytes(CONTENT_BYTES) + own
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Body({} bytes, {:?} here)", self.len(), self.held())
    }
}

/// Guess: large enough that one vectored write of a few segments fills a socket's buffer, small enough that the allocator
/// rounds little away.
pub const SEGMENT_BYTES: usize = 256 * 1024;
const SEGMENT_BYTES_U64: u64 = SEGMENT_BYTES as u64;

/// A smaller body is gathered: its second copy is soon used again, and few segments are sent with few calls.
const KEPT_BYTES_LEAST: usize = 8 << 20;
/// Chunks are kept when they take at most one part in so many more than they hold. Those of 64 KiB take a thousandth more.
const KEPT_WASTE_SHARE: usize = 64;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_entry_gives_back_what_it_was_made_of_whatever_its_key() {
        let ledger = Ledger::new(1 << 30);
        let now = Now { monotonic: Duration::from_secs(1), wall_seconds: 1 };
        let (id, other) = (EntryId { incarnation: 1, fill: 1 }, EntryId { incarnation: 2, fill: 2 });
        for key_bytes in [0, 1, 39, 65_534, 65_535, 65_536, 1 << 20] {
            for (body_id, tags) in [(id, Tags::none()), (other, Tags::none()), (id, Tags::new([&b"a"[..], b"b"]))] {
                let key = vec![b'k'; key_bytes];
                let fields = Fields::from_pairs([("ETag", "\"1\""), ("Vary", "Accept")]).expect("well-formed");
                let parts = Parts {
                    id,
                    body_id,
                    status: 200,
                    validators: StoredValidators::of(&fields, 0),
                    freshness: Freshness::of_ours(Duration::from_secs(60), now),
                    sent: Fields::empty(),
                    tags: tags.clone(),
                    body: Body::gather(&[Bytes::from_static(b"body")]),
                    fields: fields.clone(),
                };
                let first = Entry::new(&key, parts, ledger.charge(0));
                let again = first.expired(now);
                assert!(ledger.used() >= 2 * (key_bytes + fields.len() + 4));
                for entry in [&first, &again] {
                    assert!(entry.key() == key && entry.fields().as_bytes() == fields.as_bytes());
                    assert_eq!((entry.body.block(), entry.body.len()), (Some(&b"body"[..]), 4));
                    assert_eq!((entry.body_id(), entry.tags()), (body_id, &tags));
                    assert_eq!(entry.body.clone().into_segments(), [&b"body"[..]]);
                }
                assert_eq!(
                    first.body.block().map(<[u8]>::as_ptr),
                    again.body.block().map(<[u8]>::as_ptr),
                    "it is shared"
                );
            }
        }
        assert_eq!(ledger.used(), 0);
    }

    #[test]
    fn gathering_keeps_the_bytes_and_bounds_the_segments() {
        for (chunk_bytes, chunks) in [(0, 0), (1, 1), (4096, 1), (1000, 7), (65536, 8), (65536, 9), (300_000, 3)] {
            let parts: Vec<Bytes> = (0..chunks).map(|index| Bytes::from(vec![index as u8; chunk_bytes])).collect();
            let body = Body::gather(&parts);
            assert_eq!(body.len(), (chunk_bytes * chunks) as u64);
            let segments = body.to_segments();
            assert_eq!(segments.concat(), parts.concat());
            assert_eq!(body.block().is_some(), body.len() <= SEGMENT_BYTES as u64);
            assert!(chunks < 2 || segments.iter().all(|segment| segment.len() <= SEGMENT_BYTES));
            assert_eq!(
                segments.len(),
                if chunks == 1 { 1 } else { body.len().div_ceil(SEGMENT_BYTES as u64) as usize }
            );
            assert_eq!(body.into_segments(), segments);
        }
    }

    #[test]
    fn large_bodies_stay_in_large_chunks() {
        for (chunk_bytes, bytes, stays) in [
            (64 << 10, 9 << 20, true),
            (64 << 10, 7 << 20, false),
            (1 << 20, 9 << 20, true),
            // The allocator would give an eighth more, and small chunks weigh less than their handles.
            (66_000, 9 << 20, false),
            (1000, 9 << 20, false),
        ] {
            let chunks: Vec<Bytes> = vec![Bytes::from(vec![1; chunk_bytes]); bytes / chunk_bytes];
            let body = Body::of_owned(&chunks);
            let same = body.segments().len() == chunks.len() && body.segments()[0].as_ptr() == chunks[0].as_ptr();
            assert_eq!(same, stays, "{chunk_bytes}");
            assert_eq!(body.to_segments().concat(), chunks.concat());
        }
    }

    #[test]
    fn an_incomplete_body_gives_what_it_holds_and_nothing_else() {
        let range = |first, last| ByteRange { first, last };
        let segments = vec![Bytes::from("bc"), Bytes::from("d"), Bytes::from("gh")];
        let body = Body::of_ranges(10, vec![range(1, 3), range(6, 7)], segments);
        assert!(!body.is_whole());
        assert_eq!(body.len(), 10);
        for (first, last, expected) in [
            (1, 3, Some("bcd")),
            (2, 2, Some("c")),
            (2, 3, Some("cd")),
            (6, 7, Some("gh")),
            (7, 7, Some("h")),
            (0, 1, None),
            (3, 4, None),
            (3, 6, None),
            (7, 8, None),
            (8, 9, None),
        ] {
            let slice = body.slice(range(first, last)).map(|slices| slices.concat());
            assert_eq!(slice.as_deref(), expected.map(str::as_bytes), "{first}-{last}");
            assert_eq!(body.holds(range(first, last)), expected.is_some(), "{first}-{last}");
        }
        assert!(Body::of_ranges(3, vec![range(0, 2)], vec![Bytes::from("abc")]).is_whole());
        assert!(!Body::of_ranges(4, vec![range(0, 2)], vec![Bytes::from("abc")]).is_whole());
    }
}
