//! The body of a 206 with several ranges, and parts of a body kept in chunks (RFC 9110 section 14.6).

use bytes::Bytes;

use super::ranges::{ByteRange, ContentRange};

/// The framing of a `multipart/byteranges` body, whose length is known before anything is sent.
///
/// The body is, for each part, its head and then the bytes of its range; and [`Multipart::end`] behind the last one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Multipart {
    boundary: String,
    parts: Vec<Part>,
    end: Bytes,
    length: u64,
}

/// One part of a [`Multipart`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Delimiter and header of the part, with the empty line.
    pub head: Bytes,
    /// The bytes of the representation that follow.
    pub range: ByteRange,
}

impl Multipart {
    /// Frames `ranges` of a representation of `complete_length` bytes.
    ///
    /// `boundary` is 1 to 70 letters and digits (RFC 2046 section 5.1.1) that do not occur in the body; the caller
    /// draws them at random. `content_type` is that of the representation; it is left out when it is longer than 1 KiB,
    /// so that all part heads together stay below 32 KiB.
    pub fn new(boundary: &str, content_type: Option<&[u8]>, ranges: &[ByteRange], complete_length: u64) -> Self {
        debug_assert!((1..=70).contains(&boundary.len()) && boundary.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let content_type = content_type.filter(|value| value.len() <= 1024);
        let mut parts = Vec::with_capacity(ranges.len());
        let mut length = 0u64;
        for (index, &range) in ranges.iter().enumerate() {
            let mut head = Vec::with_capacity(128 + boundary.len());
            if index > 0 {
                head.extend_from_slice(b"\r\n");
            }
            head.extend_from_slice(b"--");
            head.extend_from_slice(boundary.as_bytes());
            if let Some(value) = content_type {
                head.extend_from_slice(b"\r\nContent-Type: ");
                head.extend_from_slice(value);
            }
            let content_range = ContentRange::Part { range, length: Some(complete_length) };
            head.extend_from_slice(format!("\r\nContent-Range: {content_range}\r\n\r\n").as_bytes());
            length = length.saturating_add(head.len() as u64).saturating_add(range.length());
            parts.push(Part { head: head.into(), range });
        }
        let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        length = length.saturating_add(end.len() as u64);
        Multipart { boundary: boundary.to_owned(), parts, end, length }
    }

    /// The value of the answer's `Content-Type`.
    pub fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// The answer's `Content-Length` in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The parts in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// What follows the last part.
    pub fn end(&self) -> &Bytes {
        &self.end
    }
}

/// The bytes of `range` out of a body in chunks, shared, not copied; `None` if the chunks end before the range does.
pub fn slice_chunks(chunks: &[Bytes], range: ByteRange) -> Option<Vec<Bytes>> {
    let mut slices = Vec::new();
    let mut start = 0u64;
    for chunk in chunks {
        let end = start.saturating_add(chunk.len() as u64);
        if end > range.first && !chunk.is_empty() {
            let from = range.first.saturating_sub(start) as usize;
            let to = (range.last.saturating_add(1).min(end) - start) as usize;
            slices.push(chunk.slice(from..to));
        }
        if end > range.last {
            return Some(slices);
        }
        start = end;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_body_of_two_parts() {
        let ranges = [ByteRange { first: 0, last: 1 }, ByteRange { first: 4, last: 4 }];
        let multipart = Multipart::new("B", Some(b"text/plain"), &ranges, 6);
        let chunks = [Bytes::from_static(b"abc"), Bytes::from_static(b"def")];
        let mut body = Vec::new();
        for part in multipart.parts() {
            body.extend_from_slice(&part.head);
            slice_chunks(&chunks, part.range).unwrap().iter().for_each(|slice| body.extend_from_slice(slice));
        }
        body.extend_from_slice(multipart.end());
        let expected = "--B\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/6\r\n\r\nab\r\n\
                        --B\r\nContent-Type: text/plain\r\nContent-Range: bytes 4-4/6\r\n\r\ne\r\n--B--\r\n";
        assert_eq!(String::from_utf8(body).unwrap(), expected);
        assert_eq!(multipart.length(), expected.len() as u64);
        assert_eq!(multipart.content_type(), "multipart/byteranges; boundary=B");
    }

    #[test]
    fn the_largest_framing_stays_below_32_kib() {
        let ranges: Vec<_> =
            (0..16).map(|n| ByteRange { first: u64::MAX - 40 + 2 * n, last: u64::MAX - 40 + 2 * n }).collect();
        for (content_type_length, expected) in [(1024, true), (1025, false)] {
            let content_type = vec![b'x'; content_type_length];
            let multipart = Multipart::new(&"b".repeat(70), Some(&content_type), &ranges, u64::MAX);
            assert!(multipart.length() < 32 * 1024);
            assert_eq!(memchr::memmem::find(&multipart.parts()[0].head, b"Content-Type").is_some(), expected);
        }
    }

    proptest! {
        #[test]
        fn slices_are_the_bytes_of_the_range(
            lengths in prop::collection::vec(0usize..9, 0..9), first in 0u64..50, more in 0u64..50
        ) {
            let mut whole = Vec::new();
            let chunks: Vec<Bytes> = lengths.iter().map(|&length| {
                let chunk: Vec<u8> = (0..length).map(|n| (whole.len() + n) as u8).collect();
                whole.extend_from_slice(&chunk);
                chunk.into()
            }).collect();
            let range = ByteRange { first, last: first + more };
            let sliced = slice_chunks(&chunks, range);
            let expected = whole.get(first as usize..=(first + more) as usize);
            prop_assert_eq!(sliced.as_ref().map(|slices| slices.concat()), expected.map(<[u8]>::to_vec));
            // Shared with the chunks, and no empty slice on the way.
            for slice in sliced.iter().flatten() {
                prop_assert!(!slice.is_empty());
                prop_assert!(chunks.iter().any(|chunk| chunk.as_ptr_range().contains(&slice.as_ptr())));
            }
        }

        #[test]
        fn the_length_is_known_in_advance(
            lasts in prop::collection::vec((1u64..1000, 0u64..1000), 1..16), typed in any::<bool>()
        ) {
            let mut place = 0;
            let ranges: Vec<_> = lasts.iter().map(|&(gap, more)| {
                let range = ByteRange { first: place + gap, last: place + gap + more };
                place = range.last;
                range
            }).collect();
            let multipart = Multipart::new("boundary", typed.then_some(&b"image/webp"[..]), &ranges, place + 1);
            let counted: u64 = multipart.parts().iter().map(|part| part.head.len() as u64 + part.range.length()).sum();
            prop_assert_eq!(multipart.length(), counted + multipart.end().len() as u64);
        }

        #[test]
        fn extreme_ranges_do_not_overflow(first in any::<u64>(), length in 0usize..10) {
            let chunks = [Bytes::from(vec![0; length])];
            let _ = slice_chunks(&chunks, ByteRange { first, last: u64::MAX });
            let _ = slice_chunks(&chunks, ByteRange { first: 0, last: first });
        }
    }
}
