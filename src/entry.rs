//! A stored response: head, freshness facts, body in segments. Immutable once made; who changes one makes another.

use bytes::{Bytes, BytesMut};

use crate::fields::Fields;
use crate::freshness::Freshness;
use crate::memory::{Charge, allocated_bytes};
use crate::semantics::validators::StoredValidators;
use crate::source::EntryId;

/// One stored response.
#[derive(Debug)]
pub struct Entry {
    /// Which fill of which node brought it; revalidation over the hop compares this.
    pub id: EntryId,
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
    /// The body.
    pub body: Body,
    /// The charge in the node's memory; it ends with the last holder of this entry.
    pub charge: Charge,
}

impl Entry {
    /// What an entry of these parts takes of memory, as the allocator gives it.
    pub fn charged_bytes(fields: &Fields, sent: &Fields, body: &Body) -> usize {
        let handles = if body.segments().len() > 1 { size_of_val(body.segments()) } else { 0 };
        let segments = body.segments().iter().map(|segment| shared_bytes(segment.len())).sum::<usize>();
        allocated_bytes(ARC_BYTES + size_of::<Entry>())
            + shared_bytes(fields.len())
            + shared_bytes(sent.len())
            + allocated_bytes(handles)
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

/// A body in memory, in segments that can be sent without a copy.
#[derive(Clone, Debug, Default)]
pub struct Body {
    segments: Segments,
    bytes: u64,
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
        let segments = match chunks {
            [] => Segments::None,
            [one] => Segments::One(one.clone()),
            several => {
                let mut segments = Vec::with_capacity(bytes.div_ceil(SEGMENT_BYTES as u64) as usize);
                let mut left = bytes as usize;
                let mut segment = BytesMut::with_capacity(left.min(SEGMENT_BYTES));
                for chunk in several {
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
                match segments.len() {
                    1 => Segments::One(segments.remove(0)),
                    _ => Segments::Many(segments.into()),
                }
            }
        };
        Body { segments, bytes }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The segments in order.
    pub fn segments(&self) -> &[Bytes] {
        match &self.segments {
            Segments::None => &[],
            Segments::One(segment) => std::slice::from_ref(segment),
            Segments::Many(segments) => segments,
        }
    }
}

/// Guess: large enough that one vectored write of a few segments fills a socket's buffer, small enough that the allocator
/// rounds little away.
pub const SEGMENT_BYTES: usize = 256 * 1024;

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
}
