//! A stored response: head, freshness facts, body in segments. Immutable once made; who changes one makes another.
//!
//! A body may be incomplete: then it holds some ranges of a representation whose length and strong validator are known,
//! which is RFC 9111 section 3.3's "as if it were an incomplete 200 response". The entry looks like one of the whole
//! (status 200, fields without `Content-Range`) and answers only requests for a range that it holds.

use bytes::{Bytes, BytesMut};

use crate::clock::Now;
use crate::fields::Fields;
use crate::freshness::Freshness;
use crate::memory::{Charge, allocated_bytes};
use crate::purge::Tags;
use crate::semantics::multipart::slice_chunks;
use crate::semantics::ranges::ByteRange;
use crate::semantics::validators::StoredValidators;
use crate::source::EntryId;

/// One stored response.
#[derive(Debug)]
pub struct Entry {
    /// Which fill of which node made it.
    pub id: EntryId,
    /// Which fill brought the body, whole and in one piece; what revalidation over the hop compares. An entry that was
    /// confirmed has another `id` and the same body. Zero for a body that was put together, which is never confirmed.
    pub body_id: EntryId,
    /// Final status code.
    pub status: u16,
    /// End-to-end fields as they go to clients, without those that are written anew each time (`Age`, `Cache-Status`, `Via`).
    pub fields: Fields,
    /// What RFC 9111 needs to know of the fields, parsed once.
    pub freshness: Freshness,
    /// What conditional requests are compared with, parsed once.
    pub validators: StoredValidators,
    /// What we sent the origin in the fields that the response's `Vary` names.
    pub sent: Fields,
    /// The names under which it can be purged beside its key.
    pub tags: Tags,
    /// The body.
    pub body: Body,
    /// The charge in the node's memory; it ends with the last holder of this entry.
    pub charge: Charge,
}

impl Entry {
    /// The same, stale from now on at the latest.
    pub fn expired(&self, now: Now) -> Entry {
        Entry {
            id: self.id,
            body_id: self.body_id,
            status: self.status,
            fields: self.fields.clone(),
            freshness: self.freshness.expired(now),
            validators: self.validators,
            sent: self.sent.clone(),
            tags: self.tags.clone(),
            body: self.body.clone(),
            charge: self.charge.another(self.charge.bytes()),
        }
    }

    /// What an entry of these parts takes of memory, as the allocator gives it.
    pub fn charged_bytes(fields: &Fields, sent: &Fields, tags: &Tags, body: &Body) -> usize {
        let handles = if body.segments().len() > 1 { size_of_val(body.segments()) } else { 0 };
        let segments = body.segments().iter().map(|segment| shared_bytes(segment.len())).sum::<usize>();
        allocated_bytes(ARC_BYTES + size_of::<Entry>())
            + shared_bytes(fields.len())
            + shared_bytes(sent.len())
            + allocated_bytes(tags.len())
            + allocated_bytes(handles)
            + allocated_bytes(size_of_val(body.held.as_deref().unwrap_or_default()))
            + segments
    }
}

/// What a block behind a `Bytes` takes: the block, and the small one that counts its holders.
fn shared_bytes(length: usize) -> usize {
    if length == 0 { 0 } else { allocated_bytes(length) + allocated_bytes(SHARED_HANDLE_BYTES) }
}

/// The two counts in front of what an `Arc` holds.
pub const ARC_BYTES: usize = 16;

/// What `bytes` allocates beside a block once it is shared: pointer, capacity, count.
const SHARED_HANDLE_BYTES: usize = 24;

/// A body in memory, in segments that can be sent without a copy. It holds all of the representation, or ranges of it.
#[derive(Clone, Debug, Default)]
pub struct Body {
    segments: Segments,
    /// Length of the representation.
    bytes: u64,
    /// What the segments hold, one behind the other: ascending ranges with gaps between them. `None`: everything.
    held: Option<Box<[ByteRange]>>,
}

#[derive(Clone, Debug, Default)]
enum Segments {
    #[default]
    None,
    One(Bytes),
    Many(Box<[Bytes]>),
}

impl Body {
    /// Gathers chunks as they arrived into segments of [`SEGMENT_BYTES`], so that a body of many small chunks neither costs
    /// a handle each nor holds read buffers larger than itself.
    pub fn gather(chunks: &[Bytes]) -> Body {
        let bytes: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if let [] | [_] = chunks {
            return Body { segments: Segments::of(chunks.to_vec()), bytes, held: None };
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
        Body { segments: Segments::of(segments), bytes, held: None }
    }

    /// The same of chunks that own what they hold and nothing else. Those of a very large body stay as they are, if the allocator
    /// gives little more for them: a second copy beside the first would be its peak, which allocators give back late.
    pub fn of_owned(chunks: &[Bytes]) -> Body {
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        let taken: usize = chunks.iter().map(|chunk| shared_bytes(chunk.len()) + size_of::<Bytes>()).sum();
        if bytes < KEPT_BYTES_LEAST || taken > bytes + bytes / KEPT_WASTE_SHARE {
            return Body::gather(chunks);
        }
        Body { segments: Segments::of(chunks.to_vec()), bytes: bytes as u64, held: None }
    }

    /// A body of which only ranges are here: ascending, apart from one another, `segments` being their bytes one behind
    /// the other. Ranges that make up the whole make a whole body.
    pub fn of_ranges(length: u64, held: Vec<ByteRange>, segments: Vec<Bytes>) -> Body {
        debug_assert!(held.windows(2).all(|pair| pair[0].last < pair[1].first.saturating_sub(1)));
        debug_assert_eq!(
            held.iter().map(ByteRange::length).sum::<u64>(),
            segments.iter().map(|segment| segment.len() as u64).sum::<u64>()
        );
        let whole = matches!(*held, [ByteRange { first: 0, last }] if last.checked_add(1) == Some(length));
        Body { segments: Segments::of(segments), bytes: length, held: (!whole).then(|| held.into()) }
    }

    /// Length of the representation in bytes, whether all of it is here or not.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether the representation has no byte.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether all of the representation is here.
    #[inline]
    pub fn is_whole(&self) -> bool {
        self.held.is_none()
    }

    /// The ranges that are here, ascending and apart from one another; none of an empty body.
    pub fn held(&self) -> Vec<ByteRange> {
        match (&self.held, self.bytes.checked_sub(1)) {
            (Some(held), _) => held.to_vec(),
            (None, Some(last)) => vec![ByteRange { first: 0, last }],
            (None, None) => Vec::new(),
        }
    }

    /// Whether all bytes of `range` are here.
    pub fn holds(&self, range: ByteRange) -> bool {
        match &self.held {
            None => range.last < self.bytes,
            Some(held) => held.iter().any(|held| held.covers(&range)),
        }
    }

    /// The bytes of `range`, shared and not copied; `None` when they are not all here. The only way into a body that may be
    /// incomplete.
    pub fn slice(&self, range: ByteRange) -> Option<Vec<Bytes>> {
        let Some(held) = &self.held else { return slice_chunks(self.segments(), range) };
        let mut before: u64 = 0;
        for part in held {
            if part.covers(&range) {
                // Where the range lies among the bytes that are here.
                let moved = |place: u64| before + (place - part.first);
                let range = ByteRange { first: moved(range.first), last: moved(range.last) };
                return slice_chunks(self.segments(), range);
            }
            before += part.length();
        }
        None
    }

    /// The same where one segment holds all of the body: the usual case, which needs no list.
    pub fn slice_of_only_segment(&self, range: ByteRange) -> Option<Bytes> {
        match (&self.segments, &self.held) {
            (Segments::One(segment), None) if range.last < segment.len() as u64 => {
                Some(segment.slice(range.first as usize..=range.last as usize))
            }
            _ => None,
        }
    }

    /// The segments in order: of a whole body, its bytes; of another, those that are here.
    pub fn segments(&self) -> &[Bytes] {
        match &self.segments {
            Segments::None => &[],
            Segments::One(segment) => std::slice::from_ref(segment),
            Segments::Many(segments) => segments,
        }
    }
}

impl Segments {
    fn of(mut segments: Vec<Bytes>) -> Self {
        match segments.len() {
            0 => Segments::None,
            1 => Segments::One(segments.swap_remove(0)),
            _ => Segments::Many(segments.into()),
        }
    }
}

/// Guess: large enough that one vectored write of a few segments fills a socket's buffer, small enough that the allocator
/// rounds little away.
pub const SEGMENT_BYTES: usize = 256 * 1024;

/// A smaller body is gathered: its second copy is soon used again, and few segments are sent with few calls.
const KEPT_BYTES_LEAST: usize = 8 << 20;
/// Chunks are kept when they take at most one part in so many more than they hold. Those of 64 KiB take a thousandth more.
const KEPT_WASTE_SHARE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathering_keeps_the_bytes_and_bounds_the_segments() {
        for (chunk_bytes, chunks) in [(0, 0), (1, 1), (4096, 1), (1000, 7), (65536, 8), (65536, 9), (300_000, 3)] {
            let parts: Vec<Bytes> = (0..chunks).map(|index| Bytes::from(vec![index as u8; chunk_bytes])).collect();
            let body = Body::gather(&parts);
            assert_eq!(body.len(), (chunk_bytes * chunks) as u64);
            assert_eq!(body.segments().concat(), parts.concat());
            assert!(chunks < 2 || body.segments().iter().all(|segment| segment.len() <= SEGMENT_BYTES));
            assert_eq!(
                body.segments().len(),
                if chunks == 1 { 1 } else { body.len().div_ceil(SEGMENT_BYTES as u64) as usize }
            );
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
            assert_eq!(body.segments().concat(), chunks.concat());
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
