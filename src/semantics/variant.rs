//! Which stored answer fits a request among several for one key: `Vary` (RFC 9111 section 4.1, RFC 9110 section
//! 12.5.5).
//!
//! A variant is chosen by the header fields that *we sent* to the origin, not by what the client sent: what is never
//! forwarded is constant, and what is folded on the way ([`super::forward`]) is compared folded.

use std::borrow::Cow;

use super::{list_members, split_outside_quotes};
use crate::fields::{Fields, is_token};

/// The request fields on which a response depends, by its `Vary`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum VaryRule {
    /// On none: one answer fits all requests.
    #[default]
    None,
    /// On something that no later request can be compared with (`*`, or a `Vary` that cannot be read): never reused.
    Any,
    /// On these, in lower case, sorted, each once, at least one.
    Fields(Box<[Box<str>]>),
}

impl VaryRule {
    /// Reads all `Vary` lines of a response. A member that is no field name makes it [`VaryRule::Any`].
    pub fn parse(response: &Fields) -> Self {
        let mut names: Vec<Box<str>> = Vec::new();
        for member in response.get_all("vary").flat_map(list_members).filter(|member| !member.is_empty()) {
            match std::str::from_utf8(member) {
                Ok(name) if member != b"*" && is_token(member) => names.push(name.to_ascii_lowercase().into()),
                _ => return VaryRule::Any,
            }
        }
        if names.is_empty() {
            return VaryRule::None;
        }
        names.sort_unstable();
        names.dedup();
        VaryRule::Fields(names.into())
    }

    /// The names, none for [`VaryRule::None`] and [`VaryRule::Any`].
    pub fn names(&self) -> &[Box<str>] {
        match self {
            VaryRule::Fields(names) => names,
            VaryRule::None | VaryRule::Any => &[],
        }
    }

    /// The variant of a request that was sent with the fields `sent`; `None` for [`VaryRule::Any`], which fits nothing.
    pub fn variant_key(&self, sent: &Fields) -> Option<VariantKey> {
        let mut key = Vec::new();
        self.write_variant_key(sent, &mut key).then(|| VariantKey(key.into()))
    }

    /// Appends the bytes of [`VaryRule::variant_key`] to a buffer that a hit uses again and again; whether there is
    /// one.
    pub fn write_variant_key(&self, sent: &Fields, out: &mut Vec<u8>) -> bool {
        for name in self.names() {
            write_selecting_field(name, sent, out);
        }
        *self != VaryRule::Any
    }

    /// Whether an answer to a request sent with `stored_sent` may answer one that would be sent with `new_sent`.
    pub fn matches(&self, stored_sent: &Fields, new_sent: &Fields) -> bool {
        match self {
            VaryRule::Any => false,
            VaryRule::None => true,
            VaryRule::Fields(names) => {
                let (mut stored, mut new) = (Vec::new(), Vec::new());
                names.iter().all(|name| {
                    if stored_sent.get_all(name).eq(new_sent.get_all(name)) {
                        return true;
                    }
                    stored.clear();
                    new.clear();
                    write_selecting_field(name, stored_sent, &mut stored);
                    write_selecting_field(name, new_sent, &mut new);
                    stored == new
                })
            }
        }
    }
}

/// The selecting fields of a request and their normalised values, each with its length in front; empty when nothing
/// selects. Two keys are equal exactly when names, presence and normalised values are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VariantKey(Box<[u8]>);

impl VariantKey {
    /// A key that came from a peer; it is only ever compared.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        VariantKey(bytes.into())
    }

    /// The bytes, for an index or a peer.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether nothing selects: the key of the only variant of an answer without `Vary`.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Name, presence and normalised value of one field. An absent field differs from an empty one (RFC 9111 section 4.1).
fn write_selecting_field(name: &str, sent: &Fields, out: &mut Vec<u8>) {
    write_with_length(out, |out| out.extend_from_slice(name.as_bytes()));
    let present = sent.contains(name);
    out.push(u8::from(present));
    if present {
        write_with_length(out, |out| write_normalised(name, sent, out));
    }
}

fn write_with_length(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = u32::try_from(out.len() - start - 4).expect("a header block is shorter than 4 GiB");
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Brings the lines of a field into a form that is the same for values known to mean the same (RFC 9111 section 4.1):
/// several lines are one list, white space around commas does not count, and for the preferences of section 12.5 of RFC
/// 9110 neither does the order of members (a weight says what the client likes better), nor, for codings and languages,
/// the case.
fn write_normalised(name: &str, sent: &Fields, out: &mut Vec<u8>) {
    let start = out.len();
    if matches!(name, "accept" | "accept-charset" | "accept-encoding" | "accept-language") {
        let mut members: Vec<Cow<'_, [u8]>> = sent
            .get_all(name)
            .flat_map(list_members)
            .filter(|member| !member.is_empty())
            .map(|member| normalised_preference(member, name != "accept"))
            .collect();
        members.sort_unstable();
        for member in members {
            if out.len() > start {
                out.push(b',');
            }
            out.extend_from_slice(&member);
        }
    } else if SINGLE_VALUES.contains(&name) {
        for line in sent.get_all(name) {
            if out.len() > start {
                out.push(b',');
            }
            out.extend_from_slice(line);
        }
    } else {
        for (index, member) in sent.get_all(name).flat_map(list_members).enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(member);
        }
    }
}

/// A member without white space around its semicolons, and in lower case if its field has no case.
fn normalised_preference(member: &[u8], without_case: bool) -> Cow<'_, [u8]> {
    if !member.iter().any(|&byte| matches!(byte, b' ' | b'\t') || (without_case && byte.is_ascii_uppercase())) {
        return Cow::Borrowed(member);
    }
    let pieces: Vec<_> = split_outside_quotes(member, b';').map(<[u8]>::trim_ascii).collect();
    let mut normalised = pieces.join(&b';');
    if without_case {
        normalised.make_ascii_lowercase();
    }
    Cow::Owned(normalised)
}

/// Fields that are no lists, in which a comma is a byte like others.
const SINGLE_VALUES: [&str; 7] = ["authorization", "cookie", "from", "host", "origin", "referer", "user-agent"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        Fields::from_pairs(pairs.iter().copied()).unwrap()
    }

    fn names(names: &[&str]) -> VaryRule {
        VaryRule::Fields(names.iter().map(|&name| name.into()).collect())
    }

    #[test]
    fn vary_lines() {
        for (lines, expected) in [
            (&[][..], VaryRule::None),
            (&[""], VaryRule::None),
            (&[", ,"], VaryRule::None),
            (&["*"], VaryRule::Any),
            (&["*, *"], VaryRule::Any),
            (&["*", "*"], VaryRule::Any),
            (&[", *"], VaryRule::Any),
            (&["", "*"], VaryRule::Any),
            (&["*, Foo"], VaryRule::Any),
            (&["Foo, *"], VaryRule::Any),
            (&["Foo Bar"], VaryRule::Any),
            (&["\"Foo\""], VaryRule::Any),
            (&["Fö"], VaryRule::Any),
            (&["Foo"], names(&["foo"])),
            (&["foo ,BAR,,Foo"], names(&["bar", "foo"])),
            (&["Foo", "bar"], names(&["bar", "foo"])),
        ] {
            let response = Fields::from_pairs(lines.iter().map(|line| ("Vary", line))).unwrap();
            assert_eq!(VaryRule::parse(&response), expected, "{lines:?}");
        }
    }

    #[test]
    fn requests_that_mean_the_same_share_a_variant() {
        let (same, different) = (true, false);
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        let rows: &[(&str, Pairs<'_>, Pairs<'_>, bool)] = &[
            ("foo", &[("Foo", "1")], &[("foo", "1")], same),
            ("foo", &[("Foo", "1")], &[("Foo", "2")], different),
            ("foo", &[("Foo", "a")], &[("Foo", "A")], different),
            ("foo", &[("Foo", "1")], &[], different),
            ("foo", &[("Foo", "")], &[], different),
            ("foo", &[], &[], same),
            ("foo", &[("Foo", "1"), ("Other", "2")], &[("Foo", "1"), ("Other", "3")], same),
            ("foo", &[("Foo", "1,2")], &[("Foo", " 1, 2 ")], same),
            ("foo", &[("Foo", "1, 2")], &[("Foo", "1"), ("Foo", "2")], same),
            ("foo", &[("Foo", "1, 2")], &[("Foo", "2, 1")], different),
            ("foo", &[("Foo", "\"1, 2\"")], &[("Foo", "\"1,2\"")], different),
            ("foo", &[("Foo", "1 2")], &[("Foo", "12")], different),
            ("foo, bar", &[("Foo", "1"), ("Bar", "abc")], &[("Bar", "abc"), ("Foo", "1")], same),
            ("foo, bar", &[("Foo", "1")], &[("Bar", "1")], different),
            ("foo, bar", &[("Foo", "1"), ("Bar", "2")], &[("Foo", "2"), ("Bar", "1")], different),
            ("accept-language", &[("Accept-Language", "en, de")], &[("Accept-Language", "de,EN")], same),
            ("accept-language", &[("Accept-Language", "en; q=0.5, de")], &[("Accept-Language", "de, en;q=0.5")], same),
            (
                "accept-language",
                &[("Accept-Language", "en;q=0.5, de")],
                &[("Accept-Language", "de;q=0.5, en")],
                different,
            ),
            ("accept-encoding", &[("Accept-Encoding", "GZIP,,br")], &[("Accept-Encoding", "br , gzip")], same),
            ("accept", &[("Accept", "a/b; x=\"A, ;b\", c/d")], &[("Accept", "c/d,a/b;x=\"A, ;b\"")], same),
            ("accept", &[("Accept", "a/b;x=Y")], &[("Accept", "a/b;x=y")], different),
            ("cookie", &[("Cookie", "a=1,b")], &[("Cookie", "a=1, b")], different),
            ("user-agent", &[("User-Agent", "a, b")], &[("User-Agent", "a,b")], different),
        ];
        for (vary, first, second, expected) in rows {
            let (rule, first, second) = (VaryRule::parse(&fields(&[("Vary", vary)])), fields(first), fields(second));
            assert_eq!(rule.matches(&first, &second), *expected, "{vary}: {first:?} {second:?}");
            assert_eq!(
                rule.variant_key(&first) == rule.variant_key(&second),
                *expected,
                "{vary}: {first:?} {second:?}"
            );
        }
    }

    #[test]
    fn a_star_fits_nothing_and_no_vary_fits_all() {
        let (one, other) = (fields(&[("a", "1")]), fields(&[("a", "2")]));
        assert!(!VaryRule::Any.matches(&one, &one));
        assert_eq!(VaryRule::Any.variant_key(&one), None);
        assert!(VaryRule::None.matches(&one, &other));
        assert!(VaryRule::None.variant_key(&one).unwrap().is_empty());
    }

    #[test]
    fn presence_and_names_are_part_of_the_key() {
        let key = |vary, sent| VaryRule::parse(&fields(&[("Vary", vary)])).variant_key(&fields(sent));
        assert_ne!(key("a", &[("a", "b")]), key("a, b", &[]));
        assert_ne!(key("a", &[("a", "1")]), key("b", &[("b", "1")]));
        assert_ne!(key("a", &[("a", "")]), key("a", &[]));
    }

    fn any_rule() -> impl Strategy<Value = Vec<&'static str>> {
        prop::collection::vec(prop::sample::select(vec!["a", "ab", "b", "accept", "accept-language"]), 1..4)
    }

    fn any_sent() -> impl Strategy<Value = Vec<(&'static str, String)>> {
        let name = prop::sample::select(vec!["a", "ab", "b", "A", "accept", "accept-language"]);
        prop::collection::vec((name, "[ab,;\" \\\\=]{0,5}"), 0..4)
    }

    /// Names, presence and values as a structure that cannot be ambiguous.
    fn model(rule: &VaryRule, sent: &Fields) -> Vec<(String, Option<Vec<u8>>)> {
        let value = |name: &str| {
            let mut normalised = Vec::new();
            write_normalised(name, sent, &mut normalised);
            sent.contains(name).then_some(normalised)
        };
        rule.names().iter().map(|name| (name.to_string(), value(name))).collect()
    }

    proptest! {
        #[test]
        fn variant_keys_are_injective(first in (any_rule(), any_sent()), second in (any_rule(), any_sent())) {
            let build = |(rule, sent): &(Vec<&str>, Vec<(&str, String)>)| {
                let rule = VaryRule::parse(&Fields::from_pairs([("Vary", rule.join(","))]).unwrap());
                (rule, Fields::from_pairs(sent.iter().map(|(name, value)| (name, value))).unwrap())
            };
            let ((rule, sent), (other_rule, other_sent)) = (build(&first), build(&second));
            prop_assert_eq!(
                rule.variant_key(&sent) == other_rule.variant_key(&other_sent),
                model(&rule, &sent) == model(&other_rule, &other_sent)
            );
            prop_assert_eq!(rule.matches(&sent, &other_sent), rule.variant_key(&sent) == rule.variant_key(&other_sent));
            prop_assert!(rule.matches(&sent, &sent));
        }

        /// An unclosed quoted string has no normal form (joining lines moves commas into it), hence none here.
        #[test]
        fn values_are_normalised_once_and_for_all(
            lines in prop::collection::vec("[ab,; \\\\=]{0,6}", 1..4),
            name in prop::sample::select(vec!["a", "cookie", "accept", "accept-language"]),
        ) {
            let normalised = |lines: &[&[u8]]| {
                let sent = Fields::from_pairs(lines.iter().map(|line| (name, line))).unwrap();
                let mut out = Vec::new();
                write_normalised(name, &sent, &mut out);
                out
            };
            let once = normalised(&lines.iter().map(String::as_bytes).collect::<Vec<_>>());
            prop_assert_eq!(normalised(&[&once]), once.trim_ascii());
        }
    }
}
