//! Validators of a response: entity tags and dates of last change (RFC 9110 section 8.8).

use once_cell::sync::OnceCell;

use super::not_modified::LinesOf304;
use crate::fields::FieldLines;

/// An entity tag as it stands in a header (RFC 9110 section 8.8.3).
///
/// Some origins send a tag without its quotation marks. Such a tag is no entity tag, but a client gives it back byte
/// for byte: it weakly equals the same bytes without marks, never a tag with marks, and never strongly equals anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntityTag<'a> {
    kind: Kind,
    opaque: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Strong,
    Weak,
    Unquoted,
}

impl<'a> EntityTag<'a> {
    /// Reads a whole value as one tag: `"x"`, `W/"x"` (the `W` in upper case), or bytes without quotation mark, white
    /// space and comma. Everything else is no tag.
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let (tag, rest) = Self::parse_prefix(value.trim_ascii())?;
        rest.is_empty().then_some(tag)
    }

    /// Takes one tag off the front of a list. The rest begins right behind the tag.
    fn parse_prefix(text: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (kind, quoted) = match text {
            [b'W', b'/', b'"', quoted @ ..] => (Kind::Weak, quoted),
            [b'"', quoted @ ..] => (Kind::Strong, quoted),
            _ => {
                let end = text.iter().position(|&byte| matches!(byte, b',' | b' ' | b'\t')).unwrap_or(text.len());
                let (opaque, rest) = text.split_at(end);
                let tolerable = !opaque.is_empty() && opaque != b"*" && opaque.iter().all(|&byte| is_etag_byte(byte));
                return tolerable.then_some((EntityTag { kind: Kind::Unquoted, opaque }, rest));
            }
        };
        let end = memchr::memchr(b'"', quoted)?;
        let opaque = &quoted[..end];
        opaque.iter().all(|&byte| is_etag_byte(byte)).then_some((EntityTag { kind, opaque }, &quoted[end + 1..]))
    }

    /// Whether the tag was written with `W/`, or without quotation marks.
    pub fn is_weak(&self) -> bool {
        self.kind != Kind::Strong
    }

    /// Strong comparison (RFC 9110 section 8.8.3.2): same bytes, and neither is weak.
    pub fn strongly_equals(&self, other: &EntityTag<'_>) -> bool {
        self.kind == Kind::Strong && other.kind == Kind::Strong && self.opaque == other.opaque
    }

    /// Weak comparison (RFC 9110 section 8.8.3.2): same bytes.
    pub fn weakly_equals(&self, other: &EntityTag<'_>) -> bool {
        (self.kind == Kind::Unquoted) == (other.kind == Kind::Unquoted) && self.opaque == other.opaque
    }
}

/// The tags of one line of `If-Match` or `If-None-Match`. A malformed member ends the list: the tags behind it might be
/// the inside of a broken one, and a condition that matches fewer tags costs a full answer and nothing else.
pub(super) fn entity_tags(line: &[u8]) -> impl Iterator<Item = EntityTag<'_>> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let start = rest.iter().position(|&byte| !matches!(byte, b',' | b' ' | b'\t'))?;
        let parsed = EntityTag::parse_prefix(&rest[start..]);
        rest = &[];
        let (tag, behind) = parsed?;
        let behind = behind.trim_ascii_start();
        if !behind.is_empty() && behind[0] != b',' {
            return None;
        }
        rest = behind;
        Some(tag)
    })
}

/// The validators of one response, ready to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validators<'a> {
    /// The entity tag, if the response has exactly one that can be read.
    pub entity_tag: Option<EntityTag<'a>>,
    /// `Last-Modified` in seconds since 1970, if the response has exactly one that can be read.
    pub last_modified_seconds: Option<i64>,
    /// Whether `Last-Modified` is a strong validator: the response's own `Date` is at least one second later (RFC 9110
    /// section 8.8.2.2).
    pub last_modified_is_strong: bool,
    /// `Date` of the response, or the time at which it was received, in seconds since 1970.
    pub date_seconds: i64,
}

impl<'a> Validators<'a> {
    /// Reads the validators of a response that was received at `received_wall_seconds` (seconds since 1970).
    ///
    /// A `Date` that the proxy itself adds must not be there yet: it was set by another clock than `Last-Modified`.
    pub fn of(response: &'a FieldLines, received_wall_seconds: i64) -> Self {
        Self::read(only_values(response), received_wall_seconds)
    }

    fn read([entity_tag, last_modified, date]: [Option<&'a [u8]>; 3], received_wall_seconds: i64) -> Self {
        let last_modified_seconds = last_modified.and_then(parse_http_date);
        let date_seconds = date.and_then(parse_http_date);
        let is_younger_than_change = |date: i64| last_modified_seconds.is_some_and(|modified| modified < date);
        Validators {
            entity_tag: entity_tag.and_then(EntityTag::parse),
            last_modified_seconds,
            last_modified_is_strong: date_seconds.is_some_and(is_younger_than_change),
            date_seconds: date_seconds.unwrap_or(received_wall_seconds),
        }
    }

    /// Whether there is a strong validator: without one, parts of a representation are never put together (RFC 9110
    /// section 15.3.7.3).
    pub fn are_strong(&self) -> bool {
        match self.entity_tag {
            Some(tag) => !tag.is_weak(),
            None => self.last_modified_is_strong,
        }
    }

    /// Whether both responses are certainly of the same representation, byte for byte: strong tags that are equal, or, where
    /// neither has a tag, strong dates that are equal.
    pub fn strongly_equal(&self, other: &Validators<'_>) -> bool {
        match (self.entity_tag, other.entity_tag) {
            (Some(own), Some(others)) => own.strongly_equals(&others),
            (None, None) => {
                let strong = self.last_modified_is_strong && other.last_modified_is_strong;
                strong && self.last_modified_seconds == other.last_modified_seconds
            }
            _ => false,
        }
    }
}

/// The validators of a stored response in 28 bytes, so that a hit compares them without reading its header again; and which
/// of its lines the answer has when they are equal.
///
/// The entity tag is a place in the header block from which they were made; fields may be added behind it. What does not fit
/// into the few bits here is looked up in that block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredValidators {
    /// [`FAR`]: it is beyond what fits.
    date_seconds: u32,
    /// [`FAR`] or [`NEVER`] where it is beyond what fits, or there is none.
    last_modified_seconds: u32,
    entity_tag_start: u16,
    /// Of the entity tag in the lower 15 bits, 0: there is none; [`ANYWHERE`]: its place does not fit. The upper bit:
    /// whether `Last-Modified` is a strong validator.
    length_and_strength: u16,
    lines_of_304: LinesOf304,
}

const _: () = assert!(size_of::<StoredValidators>() == 28, "every entry has this");

/// From here on seconds are looked up: in the year 2106.
const FAR: u32 = u32::MAX - 1;
const NEVER: u32 = u32::MAX;
const STRONG_BIT: u16 = 1 << 15;
const ANYWHERE: u16 = STRONG_BIT - 1;

impl StoredValidators {
    /// Prepares the validators of a response when its entry is made; see [`Validators::of`]. A time of receipt before 1970
    /// or after 2106 counts as the nearest between.
    pub fn of(response: &FieldLines, received_wall_seconds: i64) -> Self {
        let values = only_values(response);
        let validators = Validators::read(values, received_wall_seconds.clamp(0, i64::from(FAR) - 1));
        let place = |value: &[u8]| {
            let start = (value.as_ptr() as usize).checked_sub(response.as_bytes().as_ptr() as usize)?;
            let length = u16::try_from(value.len()).ok().filter(|length| *length < ANYWHERE)?;
            Some((u16::try_from(start).ok()?, length))
        };
        let value = validators.entity_tag.and(values[0]);
        let (start, length) = value.map_or((0, 0), |value| place(value).unwrap_or((0, ANYWHERE)));
        let compact = |seconds: i64| u32::try_from(seconds).map_or(FAR, |seconds| seconds.min(FAR));
        StoredValidators {
            date_seconds: compact(validators.date_seconds),
            last_modified_seconds: validators.last_modified_seconds.map_or(NEVER, compact),
            entity_tag_start: start,
            length_and_strength: if validators.last_modified_is_strong { length | STRONG_BIT } else { length },
            lines_of_304: LinesOf304::of(response),
        }
    }

    /// The same for a block whose `Date` the proxy added itself: it was set by another clock than `Last-Modified`.
    pub fn with_date_of_ours(self) -> Self {
        StoredValidators { length_and_strength: self.length_and_strength & !STRONG_BIT, ..self }
    }

    /// Whether there is a `Last-Modified`, and it is no strong validator.
    pub fn has_weak_date(&self) -> bool {
        self.last_modified_seconds != NEVER && !self.last_modified_is_strong()
    }

    fn last_modified_is_strong(&self) -> bool {
        self.length_and_strength & STRONG_BIT != 0
    }

    /// The validators, with the entity tag looked up in `response`, the block they were made from.
    pub fn in_block<'a>(&self, response: &'a FieldLines) -> Validators<'a> {
        let far = (self.date_seconds == FAR || self.last_modified_seconds == FAR)
            .then(|| Validators::read(only_values(response), i64::from(self.date_seconds)));
        let last_modified = (self.last_modified_seconds != NEVER).then_some(i64::from(self.last_modified_seconds));
        Validators {
            entity_tag: EntityTag::parse(self.entity_tag_in(response)),
            last_modified_seconds: far.map_or(last_modified, |far| far.last_modified_seconds),
            last_modified_is_strong: self.last_modified_is_strong(),
            date_seconds: far.map_or(i64::from(self.date_seconds), |far| far.date_seconds),
        }
    }

    /// The entity tag as it stands in `response`, the block they were made from; empty when there is none that can be read.
    #[inline]
    pub fn entity_tag_in<'a>(&self, response: &'a FieldLines) -> &'a [u8] {
        let length = self.length_and_strength & !STRONG_BIT;
        if length == ANYWHERE {
            return only_values(response)[0].unwrap_or_default();
        }
        let start = usize::from(self.entity_tag_start);
        response.as_bytes().get(start..start + usize::from(length)).unwrap_or_default()
    }

    /// Appends the header of a 304 that is made from `response`, the block they were made from.
    #[inline]
    pub fn write_fields_of_304(&self, response: &FieldLines, out: &mut Vec<u8>) {
        self.lines_of_304.write(response, out);
    }
}

/// The validators of a response that may pass through without anybody asking for them: found when they are wanted first.
#[derive(Clone, Debug)]
pub struct LazyValidators {
    received_wall_seconds: i64,
    date_is_ours: bool,
    found: OnceCell<StoredValidators>,
}

impl LazyValidators {
    /// Those of a response that was received at `received_wall_seconds`; `date_is_ours`: as
    /// [`StoredValidators::with_date_of_ours`].
    pub fn received(received_wall_seconds: i64, date_is_ours: bool) -> Self {
        LazyValidators { received_wall_seconds, date_is_ours, found: OnceCell::new() }
    }

    /// The validators in `response`, which must be the same block each time.
    pub fn of(&self, response: &FieldLines) -> &StoredValidators {
        self.found.get_or_init(|| {
            let found = StoredValidators::of(response, self.received_wall_seconds);
            if self.date_is_ours { found.with_date_of_ours() } else { found }
        })
    }
}

impl From<StoredValidators> for LazyValidators {
    fn from(found: StoredValidators) -> Self {
        LazyValidators { received_wall_seconds: 0, date_is_ours: false, found: OnceCell::with_value(found) }
    }
}

/// The values of `ETag`, `Last-Modified` and `Date` as by [`only_value`], in one pass.
fn only_values(response: &FieldLines) -> [Option<&[u8]>; 3] {
    let mut found: [Option<&[u8]>; 3] = [None; 3];
    let mut contradicts = [false; 3];
    for (name, value) in response.lines() {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        let index = match name.len() {
            4 if is("etag") => 0,
            13 if is("last-modified") => 1,
            4 if is("date") => 2,
            _ => continue,
        };
        contradicts[index] |= *found[index].get_or_insert(value) != value;
    }
    for (value, contradicts) in found.iter_mut().zip(contradicts) {
        *value = value.filter(|_| !contradicts);
    }
    found
}

/// The value of a field that may come only once; `None` also when it comes twice with different values.
pub(super) fn only_value<'a>(fields: &'a FieldLines, name: &'a str) -> Option<&'a [u8]> {
    let mut values = fields.get_all(name);
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

/// Seconds since 1970 of an HTTP date in any of the three forms of RFC 9110 section 5.6.7.
pub(super) fn parse_http_date(value: &[u8]) -> Option<i64> {
    let instant = httpdate::parse_http_date(std::str::from_utf8(value).ok()?).ok()?;
    i64::try_from(instant.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs()).ok()
}

/// `etagc` of RFC 9110 section 8.8.3.
fn is_etag_byte(byte: u8) -> bool {
    byte > b' ' && byte != b'"' && byte != 0x7f
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fields::Fields;

    #[test]
    fn comparison_follows_the_table_of_rfc_9110_section_8_8_3_2() {
        // first, second, strong, weak
        for (first, second, strong, weak) in [
            (r#"W/"1""#, r#"W/"1""#, false, true),
            (r#"W/"1""#, r#"W/"2""#, false, false),
            (r#"W/"1""#, r#""1""#, false, true),
            (r#""1""#, r#""1""#, true, true),
            (r#""""#, r#""""#, true, true),
            // Without quotation marks: only the same bytes, only weakly.
            ("1", "1", false, true),
            ("1", "2", false, false),
            ("1", r#""1""#, false, false),
            ("W/1", r#"W/"1""#, false, false),
        ] {
            let (a, b) = (EntityTag::parse(first.as_bytes()).unwrap(), EntityTag::parse(second.as_bytes()).unwrap());
            assert_eq!((a.strongly_equals(&b), a.weakly_equals(&b)), (strong, weak), "{first} {second}");
            assert_eq!((b.strongly_equals(&a), b.weakly_equals(&a)), (strong, weak), "{second} {first}");
        }
    }

    #[test]
    fn malformed_tags_are_no_tags() {
        for value in ["", "*", r#"""#, r#""a"#, r#"a""#, r#"w/"a""#, r#"W"a""#, r#"W\"a""#, r#"W/ "a""#, r#""a"b"#] {
            assert_eq!(EntityTag::parse(value.as_bytes()), None, "{value:?}");
        }
        for value in [r#""a b""#, "\"a\tb\"", "\"a\x7f\"", "a b", "a,b", r#""a","b""#] {
            assert_eq!(EntityTag::parse(value.as_bytes()), None, "{value:?}");
        }
        assert!(EntityTag::parse("\"ü,\"".as_bytes()).is_some(), "obs-text and commas may stand in a tag");
    }

    #[test]
    fn a_malformed_member_ends_a_list() {
        for (line, count) in [
            ("", 0),
            (",, ,", 0),
            (r#""a""#, 1),
            (r#" "a" , W/"b",,c"#, 3),
            (r#""a,b","c""#, 2),
            (r#""a" "b""#, 0),
            (r#""a", "b" x, "c""#, 1),
            (r#""a", "b, "c""#, 1),
            (r#""a", *, "c""#, 1),
        ] {
            assert_eq!(entity_tags(line.as_bytes()).count(), count, "{line:?}");
        }
    }

    #[test]
    fn last_modified_is_strong_when_the_answer_is_a_second_younger() {
        let modified = "Fri, 20 Nov 2026 10:00:00 GMT";
        for (date, strong) in [
            (Some("Fri, 20 Nov 2026 09:59:59 GMT"), false),
            (Some("Fri, 20 Nov 2026 10:00:00 GMT"), false),
            (Some("Fri, 20 Nov 2026 10:00:01 GMT"), true),
            (Some("yesterday"), false),
            (None, false),
        ] {
            let mut pairs = vec![("Last-Modified", modified)];
            pairs.extend(date.map(|date| ("Date", date)));
            let fields = Fields::from_pairs(pairs).unwrap();
            assert_eq!(Validators::of(&fields, i64::MAX).last_modified_is_strong, strong, "{date:?}");
        }
    }

    #[test]
    fn parts_are_put_together_by_strong_validators_alone() {
        let (modified, date) = ("Last-Modified: Fri, 20 Nov 2026 10:00:00 GMT", "Date: Fri, 20 Nov 2026 11:00:00 GMT");
        let changed = "Last-Modified: Fri, 20 Nov 2026 10:00:01 GMT";
        let same_second = "Date: Fri, 20 Nov 2026 10:00:00 GMT";
        for (first, second, expected) in [
            (&["ETag: \"a\""][..], &["ETag: \"a\""][..], true),
            (&["ETag: \"a\"", modified, date], &["ETag: \"a\"", changed, date], true),
            (&["ETag: \"a\""], &["ETag: \"b\""], false),
            (&["ETag: W/\"a\""], &["ETag: W/\"a\""], false),
            (&["ETag: W/\"a\"", modified, date], &["ETag: W/\"a\"", modified, date], false),
            (&["ETag: \"a\"", modified, date], &[modified, date], false),
            (&[modified, date], &[modified, date], true),
            (&[modified, date], &[changed, date], false),
            (&[modified, date], &[modified, same_second], false),
            (&[modified], &[modified], false),
            (&[], &[], false),
        ] {
            let fields =
                |lines: &[&str]| Fields::from_pairs(lines.iter().map(|line| line.split_once(':').unwrap())).unwrap();
            let (first, second) = (fields(first), fields(second));
            let (first, second) = (Validators::of(&first, 0), Validators::of(&second, 0));
            assert_eq!((first.strongly_equal(&second), second.strongly_equal(&first)), (expected, expected));
            assert!(!expected || first.are_strong() && second.are_strong());
        }
    }

    #[test]
    fn a_validator_that_contradicts_itself_does_not_count() {
        let fields = Fields::from_pairs([
            ("ETag", "\"a\""),
            ("ETag", "\"b\""),
            ("Last-Modified", "Fri, 20 Nov 2026 10:00:00 GMT"),
            ("Last-Modified", "Fri, 20 Nov 2026 10:00:01 GMT"),
        ])
        .unwrap();
        let validators = Validators::of(&fields, 5);
        assert_eq!((validators.entity_tag, validators.last_modified_seconds, validators.date_seconds), (None, None, 5));
        let same = Fields::from_pairs([("ETag", "\"a\""), ("ETag", "\"a\"")]).unwrap();
        assert!(Validators::of(&same, 5).entity_tag.is_some());
    }

    #[test]
    fn prepared_validators_are_small_and_survive_fields_behind_them() {
        assert!(size_of::<StoredValidators>() <= 40);
        let fields = Fields::from_pairs([("X", "y"), ("ETag", "W/\"a\"")]).unwrap();
        let stored = StoredValidators::of(&fields, 7);
        let mut builder = fields.to_builder();
        builder.push(b"Date", b"later").unwrap();
        let longer = builder.finish();
        assert_eq!(stored.in_block(&longer), Validators::of(&fields, 7));
        assert_eq!(stored.in_block(&Fields::empty()).entity_tag, None);
    }

    #[test]
    fn what_does_not_fit_is_looked_up() {
        for (before, tag) in
            [(10, 32_764), (10, 32_765), (10, 32_766), (10, 70_000), (65_525, 8), (65_526, 8), (70_000, 8)]
        {
            let tag = format!("\"{}\"", "e".repeat(tag));
            let fields = Fields::from_pairs([("X", "x".repeat(before)), ("ETag", tag.clone())]).unwrap();
            let stored = StoredValidators::of(&fields, 7);
            assert_eq!(stored.in_block(&fields), Validators::of(&fields, 7));
            assert_eq!(stored.entity_tag_in(&fields), tag.as_bytes());
        }
        let fields = Fields::from_pairs([("Last-Modified", "Fri, 20 Nov 2026 10:00:00 GMT")]).unwrap();
        let (before_1970, after_2106) = (StoredValidators::of(&fields, -5), StoredValidators::of(&fields, i64::MAX));
        assert_eq!(before_1970.in_block(&fields).date_seconds, 0);
        assert_eq!(after_2106.in_block(&fields).date_seconds, i64::from(FAR) - 1);
    }

    proptest! {
        #[test]
        fn prepared_validators_say_what_the_header_says(
            pairs in prop::collection::vec(
                (prop::sample::select(vec!["ETag", "Last-Modified", "Date", "Vary"]),
                 prop::sample::select(vec!["\"a\"", "W/\"b\"", "c", "\"", "", "Fri, 20 Nov 2026 10:00:00 GMT",
                     "Fri, 20 Nov 2026 10:00:01 GMT", "Friday, 20-Nov-26 10:00:00 GMT",
                     "Sun, 07 Feb 2106 06:28:13 GMT", "Sun, 07 Feb 2106 06:28:14 GMT", "Sun, 07 Feb 2106 06:28:15 GMT",
                     "Sun, 07 Feb 2106 06:28:16 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"])), 0..6),
            received in 0..i64::from(FAR),
        ) {
            let fields = Fields::from_pairs(pairs).unwrap();
            let prepared = StoredValidators::of(&fields, received);
            prop_assert_eq!(prepared.in_block(&fields), Validators::of(&fields, received));
        }

        #[test]
        fn no_bytes_upset_the_parsers(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = EntityTag::parse(&bytes);
            let _ = parse_http_date(&bytes);
            let _ = entity_tags(&bytes).count();
        }
    }
}
