//! The header of a 304, made from a stored one (RFC 9110 section 15.4.5).
//!
//! It must carry `Cache-Control`, `Content-Location`, `Date`, `ETag`, `Expires` and `Vary`. What describes the body that is not
//! sent is left out, `Last-Modified` too if there is an `ETag`; the rest may update the client's copy and stays.

use crate::fields::{FieldLines, Fields};

/// The fields of a 304 made from a stored response.
pub fn fields_of_304(stored: &FieldLines) -> Fields {
    let has_entity_tag = stored.contains("etag");
    stored.without(|name| is_left_out(name.as_bytes(), has_entity_tag))
}

/// Which lines of a header block a 304 leaves out: found once, when the entry is made, so that a 304 is a few copies.
///
/// Holds also of a block to which fields were added behind, if those are no `ETag` and none that a 304 leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinesOf304 {
    /// Ascending; the empty ones stand at the end.
    left_out: [Span; SPANS_MAX],
}

/// Bytes of a block, whole lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    start: u16,
    end: u16,
}

impl Span {
    /// In the first place: there are too many spans, or they lie too far behind.
    const UNKNOWN: Span = Span { start: u16::MAX, end: 0 };
}

impl LinesOf304 {
    /// Finds the lines of a block.
    pub fn of(stored: &FieldLines) -> Self {
        LinesOf304 { left_out: spans(stored).unwrap_or([Span::UNKNOWN; SPANS_MAX]) }
    }

    /// Appends the block of [`fields_of_304`] to `out`.
    #[inline]
    pub fn write(&self, stored: &FieldLines, out: &mut Vec<u8>) {
        let block = stored.as_bytes();
        if self.left_out[0] == Span::UNKNOWN {
            return out.extend_from_slice(fields_of_304(stored).as_bytes());
        }
        let mut kept_from = 0;
        for span in self.left_out.iter().take_while(|span| span.end > 0) {
            out.extend_from_slice(block.get(kept_from..usize::from(span.start)).unwrap_or_default());
            kept_from = usize::from(span.end);
        }
        out.extend_from_slice(block.get(kept_from..).unwrap_or_default());
    }
}

/// `None`: there are too many, or they lie too far behind.
fn spans(stored: &FieldLines) -> Option<[Span; SPANS_MAX]> {
    let has_entity_tag = stored.contains("etag");
    let block = stored.as_bytes();
    let mut spans = [Span::default(); SPANS_MAX];
    let (mut count, mut line_start) = (0, 0);
    while let Some(line_bytes) = memchr::memchr(b'\n', &block[line_start..]) {
        let line_end = line_start + line_bytes + 1;
        let line = &block[line_start..line_end];
        let name = &line[..memchr::memchr(b':', line)?];
        if is_left_out(name, has_entity_tag) {
            let (start, end) = (u16::try_from(line_start).ok()?, u16::try_from(line_end).ok()?);
            match spans[..count].last_mut() {
                Some(before) if before.end == start => before.end = end,
                _ => {
                    *spans.get_mut(count)? = Span { start, end };
                    count += 1;
                }
            }
        }
        line_start = line_end;
    }
    Some(spans)
}

#[inline]
fn is_left_out(name: &[u8], has_entity_tag: bool) -> bool {
    let is = |candidate: &str| name.eq_ignore_ascii_case(candidate.as_bytes());
    match name.len() {
        6 => is("digest"),
        7 => is("trailer"),
        11 if is("repr-digest") => true,
        13 if is("last-modified") => has_entity_tag,
        13 if is("accept-ranges") => true,
        17 if is("transfer-encoding") => true,
        // Policies are about the page as a whole, and a location is asked for by the RFC.
        16 if is("content-location") => false,
        23 if is("content-security-policy") => false,
        35 if is("content-security-policy-report-only") => false,
        9.. => name[..8].eq_ignore_ascii_case(b"content-"),
        _ => false,
    }
}

/// Origins put most of these lines side by side.
const SPANS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_304_describes_no_body() {
        let stored = Fields::from_pairs([
            ("Cache-Control", "max-age=5"),
            ("Content-Length", "4"),
            ("content-type", "text/plain"),
            ("Content-Encoding", "gzip"),
            ("Content-Language", "de"),
            ("Content-Range", "bytes 0-3/4"),
            ("Content-Location", "/a.de"),
            ("Content-Security-Policy", "default-src 'self'"),
            ("Accept-Ranges", "bytes"),
            ("Date", "Fri, 20 Nov 2026 11:00:00 GMT"),
            ("ETag", "\"a\""),
            ("Expires", "Fri, 20 Nov 2026 12:00:00 GMT"),
            ("Last-Modified", "Fri, 20 Nov 2026 10:00:00 GMT"),
            ("Vary", "Accept-Encoding"),
            ("X-Other", "1"),
        ])
        .unwrap();
        let names = |fields: &Fields| fields.iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>().join(" ");
        assert_eq!(
            names(&fields_of_304(&stored)),
            "Cache-Control Content-Location Content-Security-Policy Date ETag Expires Vary X-Other"
        );
        let untagged = stored.without(|name| name == "ETag");
        assert!(fields_of_304(&untagged).contains("last-modified"), "the only validator of the client's copy");
    }

    proptest! {
        /// Both ways to the fields of a 304 lead to the same bytes.
        #[test]
        fn a_304_is_written_as_it_is_made(
            names in prop::collection::vec(prop::sample::select(&[
                "content-", "Content-X", "content-type", "Content-Location", "content-security-policy", "ETag", "Trailer",
                "Content-Security-Policy-Report-Only", "last-modified", "accept-ranges", "Date", "digest", "repr-digest",
                "transfer-encoding", "a", "Last_Modified",
            ][..]), 0..14), x_bytes in prop::sample::select(&[0usize, 70_000][..]),
        ) {
            let long = ("X-Long", "x".repeat(x_bytes));
            let pairs = names.iter().map(|name| (*name, "a: b".to_owned()));
            let stored = Fields::from_pairs(std::iter::once(long).chain(pairs)).unwrap();
            let mut written = Vec::new();
            let lines = LinesOf304::of(&stored);
            lines.write(&stored, &mut written);
            let made = fields_of_304(&stored);
            prop_assert_eq!(&written, made.as_bytes());
            // A field that is added behind them is one of the 304, too.
            let mut builder = stored.to_builder();
            builder.push(b"Date", b"x").unwrap();
            let dated = builder.finish();
            written.clear();
            lines.write(&dated, &mut written);
            let made = fields_of_304(&dated);
            prop_assert_eq!(&written, made.as_bytes());
        }
    }
}
