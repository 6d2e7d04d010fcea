//! Conditional requests, answered by a cache (RFC 9110 section 13, RFC 9111 section 4.3.2).

use http::Method;

use super::validators::{EntityTag, Validators, entity_tags, parse_http_date};
use crate::fields::Fields;

/// The conditions of one request. Cloning is cheap; the conditions outlive the request in a reader that waits for a
/// head.
#[derive(Clone, Debug, Default)]
pub struct Preconditions {
    /// The block in which the lists stand; they are read when they are needed.
    request: Fields,
    conditions: Conditions,
}

/// What can be said of the conditions without their lists.
#[derive(Clone, Copy, Debug, Default)]
struct Conditions {
    if_match: TagCondition,
    if_none_match: TagCondition,
    if_modified_since_seconds: Option<i64>,
    if_unmodified_since_seconds: Option<i64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TagCondition {
    #[default]
    Absent,
    /// `*`: any representation.
    Any,
    Listed,
}

/// What the conditions make of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answer as if there were no condition; `Range` and `If-Range` come next.
    Proceed,
    /// Answer 304 with [`super::not_modified::fields_of_304`].
    NotModified,
    /// Answer 412.
    PreconditionFailed,
}

impl Preconditions {
    /// Reads the conditions of a request. A date that cannot be read, or that comes twice, is ignored (RFC 9110
    /// sections 13.1.3 and 13.1.4); a list of tags that cannot be read is there and matches nothing.
    pub fn parse(request: &Fields) -> Self {
        let conditions = Conditions::of(bytes_of(request));
        let request = if conditions.is_empty() { Fields::empty() } else { request.clone() };
        Preconditions { request, conditions }
    }

    /// Whether there is no condition at all to evaluate.
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty()
    }
}

fn bytes_of(fields: &Fields) -> impl Iterator<Item = (&[u8], &[u8])> {
    fields.iter().map(|(name, value)| (name.as_bytes(), value))
}

impl Conditions {
    fn of<'a>(request: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let (mut if_match, mut if_none_match) = (TagCondition::Absent, TagCondition::Absent);
        let (mut if_modified_since, mut if_unmodified_since) = (OnlyValue::Absent, OnlyValue::Absent);
        for (name, value) in request {
            let is = |candidate: &str| name.eq_ignore_ascii_case(candidate.as_bytes());
            match name.len() {
                8 if is("if-match") => if_match = if_match.and(value),
                13 if is("if-none-match") => if_none_match = if_none_match.and(value),
                17 if is("if-modified-since") => if_modified_since = if_modified_since.and(value),
                19 if is("if-unmodified-since") => if_unmodified_since = if_unmodified_since.and(value),
                _ => {}
            }
        }
        Conditions {
            if_match,
            if_none_match,
            if_modified_since_seconds: if_modified_since.date_seconds(),
            if_unmodified_since_seconds: if_unmodified_since.date_seconds(),
        }
    }

    fn is_empty(&self) -> bool {
        self.if_match == TagCondition::Absent
            && self.if_none_match == TagCondition::Absent
            && self.if_modified_since_seconds.is_none()
            && self.if_unmodified_since_seconds.is_none()
    }
}

/// The value of a field that may come only once.
#[derive(Clone, Copy)]
enum OnlyValue<'a> {
    Absent,
    One(&'a [u8]),
    /// Different values.
    Several,
}

impl<'a> OnlyValue<'a> {
    fn and(self, value: &'a [u8]) -> Self {
        match self {
            OnlyValue::Absent => OnlyValue::One(value),
            OnlyValue::One(first) if first == value => self,
            _ => OnlyValue::Several,
        }
    }

    fn date_seconds(self) -> Option<i64> {
        let OnlyValue::One(value) = self else { return None };
        parse_http_date(value)
    }
}

impl TagCondition {
    /// With one more line of the field.
    fn and(self, value: &[u8]) -> Self {
        match (self, value) {
            (TagCondition::Absent, b"*") => TagCondition::Any,
            _ => TagCondition::Listed,
        }
    }
}

/// Whether `name` is one of the four header fields with a condition. (`If-Range` is part of a range request.)
pub fn is_conditional_name(name: &str) -> bool {
    name.len() >= 8
        && name.as_bytes()[..3].eq_ignore_ascii_case(b"if-")
        && ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]
            .iter()
            .any(|candidate| name.eq_ignore_ascii_case(candidate))
}

/// Evaluates the conditions of a `GET` or `HEAD` against a response in the order of RFC 9110 section 13.2.2.
///
/// Other methods always proceed: their conditions are about the state at the origin, which alone can judge them. So
/// does a response that is no 2xx, since conditions do not apply to it (RFC 9110 section 13.2.1). A cache may ignore
/// `If-Match` and `If-Unmodified-Since` (sections 13.1.1 and 13.1.4); we honour them, because a client that sends them
/// on a `GET` wants no other representation. A response without `Last-Modified` counts as changed at its `Date` for
/// `If-Modified-Since` (RFC 9111 section 4.3.2), and never for the other fields.
pub fn evaluate(request: &Preconditions, method: &Method, status: u16, response: &Validators<'_>) -> Outcome {
    if !(method == Method::GET || method == Method::HEAD) {
        return Outcome::Proceed;
    }
    evaluate_conditions(&request.conditions, || bytes_of(&request.request), status, response)
}

/// As [`evaluate`], for a `GET` or `HEAD` whose fields `lines` reads from the beginning each time it is called.
pub fn evaluate_lines<'a, I: Iterator<Item = (&'a [u8], &'a [u8])>>(
    lines: impl Fn() -> I,
    status: u16,
    response: &Validators<'_>,
) -> Outcome {
    evaluate_conditions(&Conditions::of(lines()), lines, status, response)
}

/// Whether the only condition among `lines` is an `If-None-Match` with exactly `tag`, which is one well-formed tag: the usual
/// question of a client that has a copy. The answer is 304 then, if the response is a 2xx; whatever else is for [`evaluate`].
pub fn name_only<'a>(tag: &[u8], lines: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> bool {
    let mut named = 0;
    for (name, value) in lines {
        let is_condition = match name.len() {
            13 if name.eq_ignore_ascii_case(b"if-none-match") => {
                named += 1;
                value != tag
            }
            8 => name.eq_ignore_ascii_case(b"if-match"),
            // Their other conditions do not count beside an If-None-Match, but those that come with If-Match do.
            19 => name.eq_ignore_ascii_case(b"if-unmodified-since"),
            _ => false,
        };
        if is_condition {
            return false;
        }
    }
    named == 1 && !tag.is_empty()
}

fn evaluate_conditions<'a, I: Iterator<Item = (&'a [u8], &'a [u8])>>(
    request: &Conditions,
    lines: impl Fn() -> I,
    status: u16,
    response: &Validators<'_>,
) -> Outcome {
    if !(200..300).contains(&status) {
        return Outcome::Proceed;
    }
    let any_listed = |name: &str, matches: &dyn Fn(&EntityTag<'_>, &EntityTag<'_>) -> bool| {
        response.entity_tag.is_some_and(|stored| {
            let mut values = lines().filter(|(candidate, _)| candidate.eq_ignore_ascii_case(name.as_bytes()));
            values.any(|(_, value)| entity_tags(value).any(|tag| matches(&stored, &tag)))
        })
    };
    let unmodified = match request.if_match {
        TagCondition::Any => true,
        TagCondition::Listed => any_listed("if-match", &|stored, tag| stored.strongly_equals(tag)),
        TagCondition::Absent => match (request.if_unmodified_since_seconds, response.last_modified_seconds) {
            (Some(since), Some(modified)) => modified <= since,
            _ => true,
        },
    };
    if !unmodified {
        return Outcome::PreconditionFailed;
    }
    let known_to_client = match request.if_none_match {
        TagCondition::Any => true,
        TagCondition::Listed => any_listed("if-none-match", &|stored, tag| stored.weakly_equals(tag)),
        TagCondition::Absent => request
            .if_modified_since_seconds
            .is_some_and(|since| response.last_modified_seconds.unwrap_or(response.date_seconds) <= since),
    };
    if known_to_client { Outcome::NotModified } else { Outcome::Proceed }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BEFORE: &str = "Fri, 20 Nov 2026 09:00:00 GMT";
    const MODIFIED: &str = "Fri, 20 Nov 2026 10:00:00 GMT";
    const MODIFIED_RFC_850: &str = "Friday, 20-Nov-26 10:00:00 GMT";
    const MODIFIED_ASCTIME: &str = "Fri Nov 20 10:00:00 2026";
    const DATE: &str = "Fri, 20 Nov 2026 11:00:00 GMT";
    const AFTER: &str = "Fri, 20 Nov 2026 12:00:00 GMT";

    fn outcome(method: &Method, status: u16, request: &[(&str, &str)], response: &[(&str, &str)]) -> Outcome {
        let request = Fields::from_pairs(request.iter().copied()).unwrap();
        let response = Fields::from_pairs(response.iter().copied()).unwrap();
        evaluate(&Preconditions::parse(&request), method, status, &Validators::of(&response, 0))
    }

    #[test]
    fn conditions_of_a_get() {
        use Outcome::{NotModified, PreconditionFailed, Proceed};
        let both: &[_] = &[("ETag", "\"a\""), ("Last-Modified", MODIFIED), ("Date", DATE)];
        let weak: &[_] = &[("ETag", "W/\"a\""), ("Date", DATE)];
        let unquoted: &[_] = &[("ETag", "a"), ("Date", DATE)];
        let dated: &[_] = &[("Last-Modified", MODIFIED), ("Date", DATE)];
        let bare: &[_] = &[("Date", DATE)];
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        // RFC 9110 section, response, request, outcome
        let rows: &[(&str, Pairs<'_>, Pairs<'_>, Outcome)] = &[
            ("none", both, &[], Proceed),
            ("none", both, &[("If-Range", "\"b\""), ("If-Nothing", "*")], Proceed),
            ("13.1.1", both, &[("If-Match", "\"a\"")], Proceed),
            ("13.1.1", both, &[("If-Match", "\"b\", \"a\"")], Proceed),
            ("13.1.1", both, &[("If-Match", "\"b\""), ("if-match", "\"a\"")], Proceed),
            ("13.1.1", both, &[("If-Match", "*")], Proceed),
            ("13.1.1", bare, &[("If-Match", "*")], Proceed),
            ("13.1.1", both, &[("If-Match", "\"b\"")], PreconditionFailed),
            ("13.1.1 strong", both, &[("If-Match", "W/\"a\"")], PreconditionFailed),
            ("13.1.1 strong", weak, &[("If-Match", "W/\"a\"")], PreconditionFailed),
            ("13.1.1 strong", unquoted, &[("If-Match", "a")], PreconditionFailed),
            ("13.1.1", bare, &[("If-Match", "\"a\"")], PreconditionFailed),
            ("13.1.1", both, &[("If-Match", "")], PreconditionFailed),
            ("13.1.2", both, &[("If-None-Match", "\"a\"")], NotModified),
            ("13.1.2 weak", both, &[("If-None-Match", "W/\"a\"")], NotModified),
            ("13.1.2 weak", weak, &[("If-None-Match", "\"a\"")], NotModified),
            ("13.1.2", both, &[("If-None-Match", "\"1\", \"a\", \"2\"")], NotModified),
            ("13.1.2", both, &[("If-None-Match", "\"1\""), ("If-None-Match", "\"a\"")], NotModified),
            ("13.1.2", both, &[("If-None-Match", "*")], NotModified),
            ("13.1.2", both, &[("If-None-Match", "\"b\"")], Proceed),
            ("13.1.2", bare, &[("If-None-Match", "\"a\"")], Proceed),
            ("13.1.2", both, &[("If-None-Match", "*, \"a\"")], Proceed),
            ("13.1.2", both, &[("If-None-Match", "")], Proceed),
            ("8.8.3", both, &[("If-None-Match", "a")], Proceed),
            ("8.8.3", both, &[("If-None-Match", "w/\"a\"")], Proceed),
            ("8.8.3", unquoted, &[("If-None-Match", "a")], NotModified),
            ("8.8.3", unquoted, &[("If-None-Match", "\"a\"")], Proceed),
            ("13.1.3", dated, &[("If-Modified-Since", MODIFIED)], NotModified),
            ("13.1.3", dated, &[("If-Modified-Since", AFTER)], NotModified),
            ("13.1.3", dated, &[("If-Modified-Since", BEFORE)], Proceed),
            ("5.6.7", dated, &[("If-Modified-Since", MODIFIED_RFC_850)], NotModified),
            ("5.6.7", dated, &[("If-Modified-Since", MODIFIED_ASCTIME)], NotModified),
            ("13.1.3", dated, &[("If-Modified-Since", "0")], Proceed),
            ("13.1.3", dated, &[("If-Modified-Since", "")], Proceed),
            ("13.1.3", dated, &[("If-Modified-Since", MODIFIED), ("If-Modified-Since", AFTER)], Proceed),
            ("13.1.3", both, &[("If-None-Match", "\"b\""), ("If-Modified-Since", AFTER)], Proceed),
            ("13.1.3", both, &[("If-None-Match", "\"a\""), ("If-Modified-Since", BEFORE)], NotModified),
            ("9111 4.3.2", bare, &[("If-Modified-Since", AFTER)], NotModified),
            ("9111 4.3.2", bare, &[("If-Modified-Since", DATE)], NotModified),
            ("9111 4.3.2", bare, &[("If-Modified-Since", BEFORE)], Proceed),
            ("13.1.4", dated, &[("If-Unmodified-Since", MODIFIED)], Proceed),
            ("13.1.4", dated, &[("If-Unmodified-Since", AFTER)], Proceed),
            ("13.1.4", dated, &[("If-Unmodified-Since", BEFORE)], PreconditionFailed),
            ("13.1.4", dated, &[("If-Unmodified-Since", "never")], Proceed),
            ("13.1.4", bare, &[("If-Unmodified-Since", BEFORE)], Proceed),
            ("13.2.2", both, &[("If-Match", "\"a\""), ("If-Unmodified-Since", BEFORE)], Proceed),
            ("13.2.2", both, &[("If-Match", "\"a\""), ("If-None-Match", "\"a\"")], NotModified),
            ("13.2.2", both, &[("If-Match", "\"b\""), ("If-None-Match", "\"a\"")], PreconditionFailed),
            ("13.2.2", both, &[("If-Unmodified-Since", BEFORE), ("If-Modified-Since", AFTER)], PreconditionFailed),
        ];
        for (section, response, request, expected) in rows {
            for method in [Method::GET, Method::HEAD] {
                assert_eq!(
                    outcome(&method, 200, request, response),
                    *expected,
                    "{section}: {request:?} on {response:?}"
                );
            }
            assert_eq!(outcome(&Method::POST, 200, request, response), Proceed);
            assert_eq!(outcome(&Method::GET, 404, request, response), Proceed);
            assert_eq!(outcome(&Method::GET, 301, request, response), Proceed);
        }
    }

    #[test]
    fn without_any_date_the_time_of_receipt_counts() {
        let request = Fields::from_pairs([("If-Modified-Since", MODIFIED)]).unwrap();
        let (since, empty) = (parse_http_date(MODIFIED.as_bytes()).unwrap(), Fields::empty());
        for (received, expected) in [(since, Outcome::NotModified), (since + 1, Outcome::Proceed)] {
            let validators = Validators::of(&empty, received);
            assert_eq!(evaluate(&Preconditions::parse(&request), &Method::GET, 200, &validators), expected);
        }
    }

    proptest! {
        #[test]
        fn a_condition_is_noticed_whatever_its_case(upper in any::<u32>(), which in 0usize..4) {
            let name = ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"][which];
            let name: String = name.chars().enumerate()
                .map(|(i, c)| if upper >> i & 1 == 1 { c.to_ascii_uppercase() } else { c }).collect();
            prop_assert!(is_conditional_name(&name));
            let request = Fields::from_pairs([("Accept", "*/*"), (name.as_str(), DATE)]).unwrap();
            prop_assert!(!Preconditions::parse(&request).is_empty());
        }

        /// The tag decides alone: a listed tag of the response is a 304 to `If-None-Match`, whatever stands around it.
        #[test]
        fn a_tag_is_found_anywhere_in_a_list(
            mut tags in prop::collection::vec("[!#-~]{0,8}", 0..6),
            own in "[!#-~]{0,8}",
            place in any::<prop::sample::Index>(),
        ) {
            let quoted = format!("\"{own}\"");
            let without = tags.iter().all(|tag| *tag != own);
            let outcome = |field: &str, tags: &[String]| {
                let list = tags.iter().map(|tag| format!("\"{tag}\"")).collect::<Vec<_>>().join(", ");
                outcome(&Method::GET, 200, &[(field, &list)], &[("ETag", &quoted)])
            };
            if without {
                prop_assert_eq!(outcome("If-None-Match", &tags), Outcome::Proceed);
            }
            tags.insert(place.index(tags.len() + 1), own);
            prop_assert_eq!(outcome("If-None-Match", &tags), Outcome::NotModified);
            prop_assert_eq!(outcome("If-Match", &tags), Outcome::Proceed);
        }
    }
}
