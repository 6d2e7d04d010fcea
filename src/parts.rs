//! Parts of a representation: kept, put together, completed, and cut out of what streams by (RFC 9111 sections 3.3 and 3.4,
//! RFC 9110 sections 14 and 15.3.7).
//!
//! Only what certainly fits is put together: parts whose strong validators and complete lengths are equal. A 206 that
//! contradicts itself, leaves the complete length open, or has several parts goes to who asked and is forgotten.

use std::collections::VecDeque;

use async_trait::async_trait;
use bytes::Bytes;

use crate::entry::{Body, Entry, Parts, SEGMENT_BYTES};
use crate::fields::{FieldLines, Fields, FieldsBuilder};
use crate::semantics::ranges::{ByteRange, ContentRange};
use crate::semantics::validators::{StoredValidators, Validators};
use crate::source::{BodyStream, EntryId, FetchError, Fetched};

/// Where the content of a 206 lies in its representation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The bytes that are the content.
    pub range: ByteRange,
    /// Length of the whole.
    pub complete_length: u64,
}

impl Place {
    /// The place of a 206 that may be kept; `None` when it lacks a strong validator or the complete length, has several
    /// parts, or contradicts itself.
    pub fn of(fetched: &Fetched) -> Option<Place> {
        let mut lines = fetched.fields.get_all("content-range");
        let (206, Some(line), None) = (fetched.status, lines.next(), lines.next()) else { return None };
        let Some(ContentRange::Part { range, length: Some(complete_length) }) = ContentRange::parse(line) else {
            return None;
        };
        let consistent = fetched.content_length.is_none_or(|length| length == range.length());
        let strong = validators_of(fetched).are_strong();
        (consistent && strong).then_some(Place { range, complete_length })
    }

    /// The fields that an entry keeps of a 206: those that the whole would have.
    pub fn fields_of_whole(fields: &FieldLines) -> Fields {
        fields.without(|name| name.eq_ignore_ascii_case("content-range"))
    }
}

/// The validators of what has arrived. Whether the date is strong does not depend on when that was.
fn validators_of(fetched: &Fetched) -> Validators<'_> {
    let validators = Validators::of(&fetched.fields, 0);
    let weak_date = fetched.hop.as_ref().is_some_and(|hop| hop.weak_date);
    Validators { last_modified_is_strong: validators.last_modified_is_strong && !weak_date, ..validators }
}

/// The entry that a stored one and a new part of the same key and variant make together (RFC 9111 section 3.4).
///
/// The new part's fields replace the stored ones of the same names, its freshness counts, and the bytes are united.
///
/// # Errors
/// The part, when they are not of one representation, or would hold more than `bytes_max` bytes or too many ranges.
// The error is the argument, given back.
#[allow(clippy::result_large_err)]
pub fn combined(stored: &Entry, part: Parts, bytes_max: u64) -> Result<Parts, Parts> {
    let (old, new) = (stored.validators.in_block(stored.fields()), part.validators.in_block(&part.fields));
    if stored.status != 200 || !old.strongly_equal(&new) || stored.body.len() != part.body.len() {
        return Err(part);
    }
    let tags = stored.tags().union(&part.tags);
    if tags.are_too_many() {
        return Err(part);
    }
    let Some(body) = united(&stored.body, &part.body, bytes_max) else { return Err(part) };
    let date_is_strong = new.last_modified_is_strong;
    let fields = replaced(stored.fields(), &part.fields);
    let validators = StoredValidators::of(&fields, new.date_seconds);
    let validators = if date_is_strong { validators } else { validators.with_date_of_ours() };
    // What was put together of several answers is nobody's to confirm.
    Ok(Parts { body_id: EntryId::default(), fields, validators, tags, body, ..part })
}

/// The one range that `body` lacks; `None` when it is whole or lacks several.
pub fn only_gap(body: &Body) -> Option<ByteRange> {
    let whole = ByteRange { first: 0, last: body.len().checked_sub(1)? };
    match *gaps(&body.held(), whole) {
        [gap] => Some(gap),
        _ => None,
    }
}

/// The whole response that `stored`, which lacks one range, and a 206 with just that range make; the stored bytes stream
/// before and behind the arriving ones. `None` when they do not fit: nothing of the answer has been used then.
pub fn completed(stored: &Entry, fetched: Fetched) -> Option<Fetched> {
    let gap = only_gap(&stored.body)?;
    let place = Place::of(&fetched)?;
    let same = stored.validators.in_block(stored.fields()).strongly_equal(&validators_of(&fetched));
    if !same || place.range != gap || place.complete_length != stored.body.len() || fetched.close_delimited {
        return None;
    }
    let held = |range: Option<ByteRange>| range.and_then(|range| stored.body.slice(range)).unwrap_or_default();
    let before = gap.first.checked_sub(1).map(|last| ByteRange { first: 0, last });
    let behind = gap.last.checked_add(1).filter(|first| *first < stored.body.len());
    let behind = behind.map(|first| ByteRange { first, last: stored.body.len() - 1 });
    let body = Completing {
        before: held(before).into(),
        arriving: Some(fetched.body),
        missing_bytes: gap.length(),
        behind: held(behind).into(),
        _charged: stored.clone(),
    };
    Some(Fetched {
        status: 200,
        fields: replaced(stored.fields(), &Place::fields_of_whole(&fetched.fields)),
        content_length: Some(stored.body.len()),
        body: Box::new(body),
        ..fetched
    })
}

/// The bytes of `range` out of a body that streams by.
pub fn cut(body: Box<dyn BodyStream>, range: ByteRange) -> Box<dyn BodyStream> {
    Box::new(Cut { body, skip_bytes: range.first, left_bytes: range.length() })
}

/// A body whose middle arrives while its ends are here.
struct Completing {
    before: VecDeque<Bytes>,
    arriving: Option<Box<dyn BodyStream>>,
    missing_bytes: u64,
    behind: VecDeque<Bytes>,
    /// The entry that the bytes are charged to.
    _charged: Entry,
}

#[async_trait]
impl BodyStream for Completing {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        if let Some(chunk) = self.before.pop_front() {
            return Ok(Some(chunk));
        }
        if let Some(arriving) = &mut self.arriving {
            match arriving.chunk().await? {
                // What follows would lie in the wrong place.
                Some(chunk) if chunk.len() as u64 > self.missing_bytes => {
                    return Err(FetchError::broken("a part is longer than it says"));
                }
                Some(chunk) => {
                    self.missing_bytes -= chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                None if self.missing_bytes > 0 => {
                    return Err(FetchError::broken("a part is shorter than it says"));
                }
                None => self.arriving = None,
            }
        }
        Ok(self.behind.pop_front())
    }
}

struct Cut {
    body: Box<dyn BodyStream>,
    skip_bytes: u64,
    left_bytes: u64,
}

#[async_trait]
impl BodyStream for Cut {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        while self.left_bytes > 0 {
            let Some(mut chunk) = self.body.chunk().await? else {
                return Err(FetchError::broken("the body ended before the range did"));
            };
            let skipped = self.skip_bytes.min(chunk.len() as u64);
            self.skip_bytes -= skipped;
            let _ = chunk.split_to(skipped as usize);
            chunk.truncate(self.left_bytes.min(chunk.len() as u64) as usize);
            self.left_bytes -= chunk.len() as u64;
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }
}

/// The bytes of two bodies of one representation; `None` when they are too many, or lie in too many places.
fn united(stored: &Body, new: &Body, bytes_max: u64) -> Option<Body> {
    if stored.is_whole() {
        return Some(stored.clone());
    }
    if new.is_whole() {
        return (new.len() <= bytes_max).then(|| new.clone());
    }
    let stored_ranges = stored.held();
    let mut pieces: Vec<(ByteRange, Vec<Bytes>)> = Vec::new();
    for &range in &stored_ranges {
        pieces.push((range, stored.slice(range)?));
    }
    for range in new.held() {
        for gap in gaps(&stored_ranges, range) {
            let slices = new.slice(gap)?;
            // A slice keeps its whole block alive, for which nobody would be charged.
            let slices = match gap == range {
                true => slices,
                false => slices.iter().map(|slice| Bytes::copy_from_slice(slice)).collect(),
            };
            pieces.push((gap, slices));
        }
    }
    pieces.sort_unstable_by_key(|(range, _)| range.first);
    let mut runs: Vec<(ByteRange, Vec<Bytes>)> = Vec::new();
    for (range, slices) in pieces {
        match runs.last_mut() {
            Some((run, segments)) if run.last.checked_add(1) == Some(range.first) => {
                run.last = range.last;
                segments.extend(slices);
            }
            _ => runs.push((range, slices)),
        }
    }
    let bytes: u64 = runs.iter().map(|(run, _)| run.length()).sum();
    if runs.len() > RANGES_HELD_MAX || bytes > bytes_max {
        return None;
    }
    let mut held = Vec::with_capacity(runs.len());
    let mut segments = Vec::new();
    for (run, slices) in runs {
        held.push(run);
        match slices.len() as u64 > SMALL_SEGMENTS_MAX + 2 * run.length() / SEGMENT_BYTES as u64 {
            true => segments.extend_from_slice(&Body::gather(&slices).into_segments()),
            false => segments.extend(slices),
        }
    }
    Some(Body::of_ranges(stored.len(), held, segments))
}

/// What of `within` lies in none of `held`, which is ascending.
fn gaps(held: &[ByteRange], within: ByteRange) -> Vec<ByteRange> {
    let mut gaps = Vec::new();
    let mut first = within.first;
    for range in held.iter().filter(|range| range.last >= within.first && range.first <= within.last) {
        if range.first > first {
            gaps.push(ByteRange { first, last: range.first - 1 });
        }
        first = range.last.saturating_add(1);
    }
    if first <= within.last {
        gaps.push(ByteRange { first, last: within.last });
    }
    gaps
}

/// `stored` with all fields of `new` in the place of those with the same names.
fn replaced(stored: &FieldLines, new: &FieldLines) -> Fields {
    let mut builder = FieldsBuilder::with_capacity(stored.len() + new.len());
    for (name, value) in stored.iter().filter(|(name, _)| !new.contains(name)).chain(new.iter()) {
        builder.push_checked(name.as_bytes(), value);
    }
    builder.finish()
}

/// Guess: a client that jumps about in a large object leaves a few dozen places; more than these make the entry start anew.
const RANGES_HELD_MAX: usize = 64;

/// Parts of a few bytes each are gathered before their handles weigh more than they do.
const SMALL_SEGMENTS_MAX: u64 = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::ReadyBody;

    fn range(first: u64, last: u64) -> ByteRange {
        ByteRange { first, last }
    }

    /// Bytes of a representation in which every byte tells its place.
    fn content(range: ByteRange) -> Vec<u8> {
        (range.first..=range.last).map(|place| (place * 7 % 251) as u8).collect()
    }

    fn part(length: u64, place: ByteRange) -> Body {
        Body::of_ranges(length, vec![place], vec![content(place).into()])
    }

    fn fetched(status: u16, fields: &[(&str, &str)], content_length: Option<u64>) -> Fetched {
        Fetched {
            status,
            fields: Fields::from_pairs(fields.iter().copied()).unwrap(),
            content_length,
            close_delimited: false,
            hop: None,
            body: Box::new(ReadyBody::default()),
        }
    }

    #[test]
    fn which_parts_may_be_kept() {
        let tag = ("ETag", "\"a\"");
        let date = ("Date", "Fri, 20 Nov 2026 10:00:01 GMT");
        let modified = ("Last-Modified", "Fri, 20 Nov 2026 10:00:00 GMT");
        let here = ("Content-Range", "bytes 2-4/10");
        for (why, status, fields, length, expected) in [
            ("all is said", 206, &[tag, here][..], Some(3), true),
            ("chunked", 206, &[tag, here], None, true),
            ("9110 8.8.2.2 a strong date", 206, &[modified, date, here], Some(3), true),
            ("9110 8.8.2.2 a weak date", 206, &[modified, here], Some(3), false),
            ("9110 15.3.7.3 no validator", 206, &[here], Some(3), false),
            ("9110 15.3.7.3 a weak tag", 206, &[("ETag", "W/\"a\""), modified, date, here], Some(3), false),
            ("9110 14.4 another length", 206, &[tag, here], Some(4), false),
            ("9110 14.4 open length", 206, &[tag, ("Content-Range", "bytes 2-4/*")], Some(3), false),
            ("9110 14.4 malformed", 206, &[tag, ("Content-Range", "bytes 2-4/4")], Some(3), false),
            ("9110 15.3.7.2 several parts", 206, &[tag], Some(3), false),
            ("two places", 206, &[tag, here, here], Some(3), false),
            ("not a part", 200, &[tag, here], Some(3), false),
        ] {
            let expected = expected.then_some(Place { range: range(2, 4), complete_length: 10 });
            assert_eq!(Place::of(&fetched(status, fields, length)), expected, "{why}");
        }
    }

    #[test]
    fn too_many_places_and_too_many_bytes_start_anew() {
        let places = RANGES_HELD_MAX as u64;
        let mut held = part(1000, range(0, 0));
        for place in 1..places {
            held = united(&held, &part(1000, range(2 * place, 2 * place)), 1000).unwrap();
        }
        assert!(united(&held, &part(1000, range(2 * places, 2 * places)), 1000).is_none());
        assert!(united(&held, &part(1000, range(1, 1)), 1000).is_some(), "what fills a gap makes no place more");
        assert!(united(&held, &part(1000, range(1, 1)), places).is_none());
    }

    #[test]
    fn small_parts_are_gathered() {
        let mut held = part(100_000, range(0, 0));
        for place in 1..1000 {
            held = united(&held, &part(100_000, range(place, place)), 1000).unwrap();
        }
        assert!(held.to_segments().len() <= SMALL_SEGMENTS_MAX as usize + 1);
        assert_eq!(held.slice(range(0, 999)).unwrap().concat(), content(range(0, 999)));
    }

    #[tokio::test]
    async fn a_cut_takes_its_range_and_says_when_it_is_not_there() {
        let chunks = || ReadyBody::new(["ab", "cde", "f"].map(Bytes::from));
        for (first, last, expected) in [
            (0, 5, Some("abcdef")),
            (0, 0, Some("a")),
            (1, 2, Some("bc")),
            (2, 4, Some("cde")),
            (5, 5, Some("f")),
            (5, 6, None),
            (7, 7, None),
        ] {
            let mut cut = cut(Box::new(chunks()), range(first, last));
            let mut body = Vec::new();
            let ended = loop {
                match cut.chunk().await {
                    Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            assert_eq!(ended, expected.is_some(), "{first}-{last}");
            if let Some(expected) = expected {
                assert_eq!(String::from_utf8(body).unwrap(), expected);
            }
        }
    }

    proptest! {
        /// The naive model: a body is the set of places it holds.
        #[test]
        fn uniting_agrees_with_sets_of_places(parts in prop::collection::vec((0u64..60, 0u64..20), 1..9), length in 1u64..60) {
            let parts: Vec<_> = parts.iter().filter(|(first, _)| *first < length)
                .map(|&(first, more)| range(first, (first + more).min(length - 1))).collect();
            prop_assume!(!parts.is_empty());
            let mut places = std::collections::BTreeSet::new();
            let mut body = part(length, parts[0]);
            for &place in &parts {
                body = united(&body, &part(length, place), u64::MAX).unwrap();
                places.extend(place.first..=place.last);
                let held: Vec<u64> = body.held().iter().flat_map(|range| range.first..=range.last).collect();
                prop_assert_eq!(held, places.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(body.is_whole(), places.len() as u64 == length);
                for range in body.held() {
                    prop_assert_eq!(body.slice(range).unwrap().concat(), content(range));
                }
            }
            let missing: Vec<u64> = (0..length).filter(|place| !places.contains(place)).collect();
            let connected = missing.windows(2).all(|pair| pair[0] + 1 == pair[1]);
            let gap = missing.first().zip(missing.last()).filter(|_| connected);
            prop_assert_eq!(only_gap(&body), gap.map(|(&first, &last)| range(first, last)));
        }
    }
}
