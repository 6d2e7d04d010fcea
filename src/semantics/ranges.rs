//! Parts of a representation: `Range`, `If-Range` and `Content-Range` (RFC 9110 sections 13.1.5 and 14).

use std::fmt;

use http::Method;

use super::validators::{EntityTag, Validators, only_value, parse_http_date};
use super::{list_members, parse_digits_saturating};
use crate::fields::Fields;

/// A request for more ranges than this is answered with the whole: each range costs a part header, so that many small
/// ones would make an answer that is larger than the representation.
pub const RANGES_MAX: usize = 16;

/// Bytes `first` to `last`, both included; `first <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// Place of the first byte.
    pub first: u64,
    /// Place of the last byte.
    pub last: u64,
}

impl ByteRange {
    /// Number of bytes, at least 1; saturates for the range of all 2^64 places.
    pub fn length(&self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// Whether `other` lies wholly inside.
    pub fn covers(&self, other: &ByteRange) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

/// One range as the client wrote it, before the length is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RangeSpec {
    /// `first-last`, with `first <= last`.
    Between(ByteRange),
    /// `first-`.
    From(u64),
    /// `-length`: the last `length` bytes.
    Last(u64),
}

/// The ranges of one request, 1 to [`RANGES_MAX`] in the client's order. Displays as the value of a `Range` field, the
/// same for all spellings of the same ranges, so that it can stand in the key of a flight.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RangeSet {
    specs: Vec<RangeSpec>,
}

/// What a [`RangeSet`] means for a representation of known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Answer with the whole and 200: the set overlaps, runs backwards, or asks for the end of nothing.
    Whole,
    /// Answer 206 with one range.
    Single(ByteRange),
    /// Answer 206 with `multipart/byteranges`: two ranges or more, ascending, without overlap.
    Several(Vec<ByteRange>),
    /// Answer 416 with `Content-Range: bytes */length`.
    Unsatisfiable,
}

impl RangeSet {
    /// Reads the `Range` of a request. `None` means: answer as if the field were not there (RFC 9110 section 14.2),
    /// since the method is not `GET`, the unit is not `bytes`, the field comes twice or breaks the grammar in any of
    /// its members (`5-2` does), or it asks for more than [`RANGES_MAX`] ranges.
    pub fn parse(method: &Method, request: &Fields) -> Option<Self> {
        if method != Method::GET {
            return None;
        }
        let mut lines = request.get_all("range");
        let line = lines.next()?;
        if lines.next().is_some() {
            return None;
        }
        Self::parse_value(line)
    }

    /// Reads the value of a `Range` field; `None` as in [`RangeSet::parse`].
    pub fn parse_value(value: &[u8]) -> Option<Self> {
        let equals = memchr::memchr(b'=', value)?;
        // Names of units have no case (RFC 9110 section 14.1).
        if !value[..equals].eq_ignore_ascii_case(b"bytes") {
            return None;
        }
        let mut specs = Vec::new();
        for member in list_members(&value[equals + 1..]).filter(|member| !member.is_empty()) {
            if specs.len() == RANGES_MAX {
                return None;
            }
            specs.push(RangeSpec::parse(member)?);
        }
        (!specs.is_empty()).then_some(RangeSet { specs })
    }

    /// Reads the value of a `Range` field that asks for one range and has no list; of others, `None`.
    pub fn parse_single(value: &[u8]) -> Option<RangeSpec> {
        let (unit, spec) = value.split_first_chunk::<6>()?;
        let listed = || spec.iter().any(|&byte| matches!(byte, b',' | b'"'));
        (unit.eq_ignore_ascii_case(b"bytes=") && !listed()).then(|| RangeSpec::parse(spec.trim_ascii()))?
    }

    /// The ranges as written.
    pub fn specs(&self) -> &[RangeSpec] {
        &self.specs
    }

    /// What the set means for a representation of `length` bytes (RFC 9110 section 14.1.2). Ranges that begin behind
    /// the end are left out as long as another one is satisfiable.
    pub fn resolve(&self, length: u64) -> Resolved {
        if length == 0 {
            // The end of an empty representation is satisfiable, but no Content-Range could say so.
            let asks_for_end = self.specs.iter().any(|spec| matches!(spec, RangeSpec::Last(1..)));
            return if asks_for_end { Resolved::Whole } else { Resolved::Unsatisfiable };
        }
        let mut ranges: Vec<ByteRange> = self.specs.iter().filter_map(|spec| spec.resolve(length)).collect();
        if ranges.windows(2).any(|pair| pair[1].first <= pair[0].last) {
            return Resolved::Whole;
        }
        match ranges.len() {
            0 => Resolved::Unsatisfiable,
            1 => Resolved::Single(ranges.remove(0)),
            _ => Resolved::Several(ranges),
        }
    }
}

impl RangeSpec {
    fn parse(text: &[u8]) -> Option<Self> {
        let dash = memchr::memchr(b'-', text)?;
        let (first, last) = (&text[..dash], &text[dash + 1..]);
        match (first.is_empty(), last.is_empty()) {
            (true, _) => Some(RangeSpec::Last(parse_digits_saturating(last)?)),
            (false, true) => Some(RangeSpec::From(parse_digits_saturating(first)?)),
            (false, false) => {
                let range = ByteRange { first: parse_digits_saturating(first)?, last: parse_digits_saturating(last)? };
                (range.first <= range.last).then_some(RangeSpec::Between(range))
            }
        }
    }

    /// The bytes meant, or `None` if this range alone is unsatisfiable.
    pub fn resolve(&self, length: u64) -> Option<ByteRange> {
        let end = length.checked_sub(1)?;
        match *self {
            RangeSpec::Between(range) => {
                (range.first <= end).then_some(ByteRange { first: range.first, last: range.last.min(end) })
            }
            RangeSpec::From(first) => (first <= end).then_some(ByteRange { first, last: end }),
            RangeSpec::Last(0) => None,
            RangeSpec::Last(count) => Some(ByteRange { first: length.saturating_sub(count), last: end }),
        }
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, spec) in self.specs.iter().enumerate() {
            formatter.write_str(if index == 0 { "bytes=" } else { "," })?;
            match spec {
                RangeSpec::Between(range) => write!(formatter, "{}-{}", range.first, range.last)?,
                RangeSpec::From(first) => write!(formatter, "{first}-")?,
                RangeSpec::Last(count) => write!(formatter, "-{count}")?,
            }
        }
        Ok(())
    }
}

/// The condition under which a `Range` counts (RFC 9110 section 13.1.5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum IfRange {
    /// No condition.
    #[default]
    Absent,
    /// The strong entity tag, as written, of the representation of which the client has a part.
    EntityTag(Box<[u8]>),
    /// `Last-Modified` of that representation, in seconds since 1970.
    LastModified(i64),
    /// Something that can never hold: a weak tag, or no validator at all.
    Never,
}

impl IfRange {
    /// Reads the condition of a request; it means nothing in a request without `Range`.
    pub fn parse(request: &Fields) -> Self {
        if !request.contains("if-range") {
            return IfRange::Absent;
        }
        let Some(value) = only_value(request, "if-range") else { return IfRange::Never };
        match EntityTag::parse(value) {
            Some(tag) if !tag.is_weak() => IfRange::EntityTag(value.into()),
            _ => parse_http_date(value).map_or(IfRange::Never, IfRange::LastModified),
        }
    }

    /// Whether the ranges may be taken from this response; otherwise the answer is the whole. Tags are compared
    /// strongly; dates must be equal, and the response's `Last-Modified` must be a strong validator.
    pub fn holds(&self, response: &Validators<'_>) -> bool {
        match self {
            IfRange::Absent => true,
            IfRange::EntityTag(tag) => match (EntityTag::parse(tag), response.entity_tag) {
                (Some(tag), Some(stored)) => stored.strongly_equals(&tag),
                _ => false,
            },
            IfRange::LastModified(seconds) => {
                response.last_modified_is_strong && response.last_modified_seconds == Some(*seconds)
            }
            IfRange::Never => false,
        }
    }
}

/// `Content-Range` (RFC 9110 section 14.4), the unit always being `bytes`. Displays as the value of the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentRange {
    /// `bytes first-last/length`; `length` is `None` for `*`.
    Part {
        /// The bytes that follow.
        range: ByteRange,
        /// Length of the whole, greater than `range.last`, if it is known.
        length: Option<u64>,
    },
    /// `bytes */length` of a 416.
    Unsatisfied {
        /// Length of the whole.
        length: u64,
    },
}

impl ContentRange {
    /// Reads a value strictly: one space, digits that fit 64 bits, `first <= last < length`. From anything else a part
    /// must not be combined with others, so `None` means that the answer cannot be used.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (unit, rest) = value.split_at_checked(6)?;
        if !unit.eq_ignore_ascii_case(b"bytes ") {
            return None;
        }
        let slash = memchr::memchr(b'/', rest)?;
        let (range, length) = (&rest[..slash], &rest[slash + 1..]);
        if range == b"*" {
            return Some(ContentRange::Unsatisfied { length: parse_place(length)? });
        }
        let length = if length == b"*" { None } else { Some(parse_place(length)?) };
        let dash = memchr::memchr(b'-', range)?;
        let range = ByteRange { first: parse_place(&range[..dash])?, last: parse_place(&range[dash + 1..])? };
        let sound = range.first <= range.last && length.is_none_or(|length| range.last < length);
        sound.then_some(ContentRange::Part { range, length })
    }
}

impl fmt::Display for ContentRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContentRange::Part { range, length: Some(length) } => {
                write!(formatter, "bytes {}-{}/{length}", range.first, range.last)
            }
            ContentRange::Part { range, length: None } => write!(formatter, "bytes {}-{}/*", range.first, range.last),
            ContentRange::Unsatisfied { length } => write!(formatter, "bytes */{length}"),
        }
    }
}

/// A number that must fit: what saturates is refused.
fn parse_place(digits: &[u8]) -> Option<u64> {
    parse_digits_saturating(digits).filter(|&place| place < u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: u64, last: u64) -> ByteRange {
        ByteRange { first, last }
    }

    #[test]
    fn sets_of_ranges_on_ten_bytes() {
        let single = |first, last| Some(Resolved::Single(range(first, last)));
        let several =
            |ranges: &[(u64, u64)]| Some(Resolved::Several(ranges.iter().map(|&(a, b)| range(a, b)).collect()));
        let (whole, unsatisfiable, ignored) = (Some(Resolved::Whole), Some(Resolved::Unsatisfiable), None);
        for (value, expected) in [
            ("bytes=0-0", single(0, 0)),
            ("bytes=0-9", single(0, 9)),
            ("bytes=2-5", single(2, 5)),
            ("bytes=2-99", single(2, 9)),
            ("bytes=2-99999999999999999999999", single(2, 9)),
            ("bytes=9-", single(9, 9)),
            ("bytes=0-", single(0, 9)),
            ("bytes=-1", single(9, 9)),
            ("bytes=-10", single(0, 9)),
            ("bytes=-99999999999999999999999", single(0, 9)),
            ("BYTES=2-5", single(2, 5)),
            ("bytes= 2-5 ", single(2, 5)),
            ("bytes=,2-5,,", single(2, 5)),
            ("bytes=007-008", single(7, 8)),
            ("bytes=10-", unsatisfiable.clone()),
            ("bytes=10-12", unsatisfiable.clone()),
            ("bytes=99999999999999999999999-", unsatisfiable.clone()),
            ("bytes=-0", unsatisfiable.clone()),
            ("bytes=-0,10-", unsatisfiable.clone()),
            ("bytes=0-1,3-4", several(&[(0, 1), (3, 4)])),
            ("bytes=0-1,2-3", several(&[(0, 1), (2, 3)])),
            ("bytes=0-1, 4-5 ,-1", several(&[(0, 1), (4, 5), (9, 9)])),
            ("bytes=0-1,20-30", single(0, 1)),
            ("bytes=-0,0-1", single(0, 1)),
            ("bytes=0-5,5-6", whole.clone()),
            ("bytes=0-,-1", whole.clone()),
            ("bytes=5-6,0-1", whole.clone()),
            ("bytes=-1,0-1", whole.clone()),
            ("bytes=0-0,0-0", whole),
            ("bytes=5-2", ignored.clone()),
            ("bytes=0-1,5-2", ignored.clone()),
            ("bytes=", ignored.clone()),
            ("bytes=,", ignored.clone()),
            ("bytes=-", ignored.clone()),
            ("bytes=a-b", ignored.clone()),
            ("bytes=1", ignored.clone()),
            ("bytes=1-2-3", ignored.clone()),
            ("bytes=--1", ignored.clone()),
            ("bytes=0 - 1", ignored.clone()),
            ("bytes=+0-1", ignored.clone()),
            ("bytes=0x0-1", ignored.clone()),
            ("bytes =0-1", ignored.clone()),
            ("bytes 0-1", ignored.clone()),
            ("bytes:0-1", ignored.clone()),
            ("items=0-1", ignored.clone()),
            ("=0-1", ignored.clone()),
            ("0-1", ignored.clone()),
            ("", ignored),
        ] {
            assert_eq!(RangeSet::parse_value(value.as_bytes()).map(|set| set.resolve(10)), expected, "{value:?}");
        }
    }

    #[test]
    fn empty_representations_have_no_part() {
        for (value, expected) in [
            ("bytes=0-", Resolved::Unsatisfiable),
            ("bytes=0-0", Resolved::Unsatisfiable),
            ("bytes=-0", Resolved::Unsatisfiable),
            ("bytes=-5", Resolved::Whole),
            ("bytes=0-,-5", Resolved::Whole),
        ] {
            assert_eq!(RangeSet::parse_value(value.as_bytes()).unwrap().resolve(0), expected, "{value:?}");
        }
    }

    #[test]
    fn only_one_line_of_a_get_with_few_ranges_counts() {
        let one = Fields::from_pairs([("Range", "bytes=0-1")]).unwrap();
        assert!(RangeSet::parse(&Method::GET, &one).is_some());
        assert!(RangeSet::parse(&Method::HEAD, &one).is_none());
        assert!(RangeSet::parse(&Method::POST, &one).is_none());
        let two = Fields::from_pairs([("Range", "bytes=0-1"), ("range", "bytes=0-1")]).unwrap();
        assert!(RangeSet::parse(&Method::GET, &two).is_none());
        let many = |count: u64| {
            format!("bytes={}", (0..count).map(|n| format!("{0}-{0}", 2 * n)).collect::<Vec<_>>().join(","))
        };
        assert_eq!(RangeSet::parse_value(many(16).as_bytes()).unwrap().specs().len(), 16);
        assert!(RangeSet::parse_value(many(17).as_bytes()).is_none());
    }

    #[test]
    fn if_range_wants_the_very_same_representation() {
        let (modified, date) = ("Fri, 20 Nov 2026 10:00:00 GMT", "Fri, 20 Nov 2026 11:00:00 GMT");
        let response = |tag| Fields::from_pairs([("ETag", tag), ("Last-Modified", modified), ("Date", date)]).unwrap();
        for (if_range, tag, expected) in [
            (&[][..], "\"a\"", true),
            (&["\"a\""], "\"a\"", true),
            (&["\"a\"", "\"a\""], "\"a\"", true),
            (&["\"b\""], "\"a\"", false),
            (&["\"a\"", "\"b\""], "\"a\"", false),
            (&["W/\"a\""], "W/\"a\"", false),
            (&["\"a\""], "W/\"a\"", false),
            (&["W/\"a\""], "\"a\"", false),
            (&["a"], "a", false),
            (&["*"], "\"a\"", false),
            (&["\"a\", \"b\""], "\"a\"", false),
            (&[""], "\"a\"", false),
            (&[modified], "\"a\"", true),
            (&["Friday, 20-Nov-26 10:00:00 GMT"], "\"a\"", true),
            (&["Fri, 20 Nov 2026 09:59:59 GMT"], "\"a\"", false),
            (&["Fri, 20 Nov 2026 10:00:01 GMT"], "\"a\"", false),
        ] {
            let request = Fields::from_pairs(if_range.iter().map(|value| ("If-Range", value))).unwrap();
            let response = response(tag);
            let holds = IfRange::parse(&request).holds(&Validators::of(&response, 0));
            assert_eq!(holds, expected, "{if_range:?} on {tag}");
        }
        // A date that is only weakly known does not do (RFC 9110 section 8.8.2.2).
        let request = Fields::from_pairs([("If-Range", modified)]).unwrap();
        let response = Fields::from_pairs([("Last-Modified", modified), ("Date", modified)]).unwrap();
        assert!(!IfRange::parse(&request).holds(&Validators::of(&response, 0)));
    }

    #[test]
    fn content_range_is_read_strictly() {
        let part = |first, last, length| Some(ContentRange::Part { range: range(first, last), length });
        for (value, expected) in [
            ("bytes 0-4/10", part(0, 4, Some(10))),
            ("bytes 9-9/10", part(9, 9, Some(10))),
            ("Bytes 0-4/*", part(0, 4, None)),
            ("bytes */10", Some(ContentRange::Unsatisfied { length: 10 })),
            ("bytes */0", Some(ContentRange::Unsatisfied { length: 0 })),
            ("bytes 0-10/10", None),
            ("bytes 10-9/10", None),
            ("bytes 4-0/10", None),
            ("bytes */*", None),
            ("bytes 0-4", None),
            ("bytes 0-4/", None),
            ("bytes -4/10", None),
            ("bytes 0-/10", None),
            ("bytes  0-4/10", None),
            ("bytes 0-4 /10", None),
            ("bytes=0-4/10", None),
            ("bytes 0-4/10, bytes 5-6/10", None),
            ("bytes 0-4/18446744073709551616", None),
            ("bytes 0-99999999999999999999/*", None),
            ("items 0-4/10", None),
            ("bytes", None),
            ("", None),
        ] {
            assert_eq!(ContentRange::parse(value.as_bytes()), expected, "{value:?}");
        }
    }

    fn any_extreme() -> impl Strategy<Value = u64> {
        prop::sample::select(vec![0, 1, u64::MAX - 1, u64::MAX])
    }

    fn any_spec() -> impl Strategy<Value = String> {
        let place =
            prop_oneof![9 => (0u64..40).prop_map(|n| n.to_string()), 1 => any::<u64>().prop_map(|n| n.to_string())];
        let place = prop_oneof![8 => place, 1 => Just(String::new())];
        (place.clone(), place).prop_map(|(first, last)| format!("{first}-{last}"))
    }

    proptest! {
        /// The naive model: a range is the set of places it names.
        #[test]
        fn resolving_agrees_with_counting_bytes(specs in prop::collection::vec(any_spec(), 1..5), length in 1u64..40) {
            let value = format!("bytes={}", specs.join(","));
            let named = |spec: &str| -> Option<Vec<u64>> {
                let (first, last) = spec.split_once('-').unwrap();
                let (first, last) = (first.parse::<u64>().ok(), last.parse::<u64>().ok());
                match (first, last) {
                    (Some(first), Some(last)) if first > last => None,
                    (Some(first), last) => {
                        Some((0..length).filter(|&n| n >= first && last.is_none_or(|last| n <= last)).collect())
                    }
                    (None, Some(count)) => Some((0..length).filter(|&n| length - n <= count).collect()),
                    (None, None) => None,
                }
            };
            let model: Option<Vec<Vec<u64>>> = specs.iter().map(|spec| named(spec)).collect();
            let set = RangeSet::parse_value(value.as_bytes());
            prop_assert_eq!(set.is_some(), model.is_some());
            let (Some(set), Some(mut model)) = (set, model) else { return Ok(()) };
            model.retain(|places| !places.is_empty());
            let all: Vec<u64> = model.iter().flatten().copied().collect();
            let ascending = all.windows(2).all(|pair| pair[0] < pair[1]);
            let expected = match model.len() {
                0 => Resolved::Unsatisfiable,
                _ if !ascending => Resolved::Whole,
                1 => Resolved::Single(range(all[0], all[all.len() - 1])),
                _ => Resolved::Several(model.iter().map(|places| range(places[0], places[places.len() - 1])).collect()),
            };
            prop_assert_eq!(set.resolve(length), expected);
        }

        #[test]
        fn sets_and_content_ranges_read_what_they_write(
            specs in prop::collection::vec(any_spec(), 1..5),
            first in 0u64..1000,
            more in 0u64..1000,
            behind in 1u64..1000,
        ) {
            if let Some(set) = RangeSet::parse_value(format!("bytes={}", specs.join(" , ")).as_bytes()) {
                prop_assert_eq!(RangeSet::parse_value(set.to_string().as_bytes()), Some(set));
            }
            for length in [None, Some(first + more + behind)] {
                let written = ContentRange::Part { range: range(first, first + more), length };
                prop_assert_eq!(ContentRange::parse(written.to_string().as_bytes()), Some(written));
            }
        }

        #[test]
        fn no_bytes_upset_the_parsers(bytes in prop::collection::vec(any::<u8>(), 0..60), length in any::<u64>()) {
            for prefix in [&b""[..], b"bytes=", b"bytes "] {
                let value = [prefix, &bytes].concat();
                if let Some(set) = RangeSet::parse_value(&value) { set.resolve(length); }
                let _ = ContentRange::parse(&value);
            }
        }

        #[test]
        fn extreme_numbers_do_not_overflow(first in any_extreme(), last in any_extreme(), length in any_extreme()) {
            for value in [format!("bytes={first}-{last}"), format!("bytes={first}-"), format!("bytes=-{last}")] {
                match RangeSet::parse_value(value.as_bytes()).map(|set| set.resolve(length)) {
                    Some(Resolved::Single(range)) => {
                        prop_assert!(range.first <= range.last && range.last < length);
                        prop_assert!(range.length() >= 1);
                    }
                    Some(Resolved::Several(_)) => prop_assert!(false),
                    _ => {}
                }
            }
        }
    }
}
