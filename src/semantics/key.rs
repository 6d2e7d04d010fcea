//! Keys: what follows a group's prefix in the target, raw, with the query by the group's rule.
//!
//! One byte string is looked up, placed on the ring, purged and, by [`KeyTemplate::split`], turned into the target for
//! the origin. A path holds no `?`, so that the first one in a key always begins the query.

use super::target::{check_path, check_query, split_query};

/// What a group's keys look like: a fixed beginning, then the rest of the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyTemplate {
    prefix: Box<[u8]>,
}

/// A template that is not `{rest}` behind an optional beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {{rest}}, or a beginning of letters, digits and -._~$&+,/:;=@ followed by {{rest}}")]
pub struct KeyTemplateError;

/// A key that no target of its group has; the origin is never asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a key of this group")]
pub struct ForeignKey;

impl KeyTemplate {
    /// Reads `{rest}`, `/{rest}` or `prefix:{rest}`.
    pub fn parse(template: &str) -> Result<Self, KeyTemplateError> {
        template.strip_suffix("{rest}").ok_or(KeyTemplateError).and_then(Self::with_prefix)
    }

    /// A template that puts `prefix` before the rest. The prefix may hold only what stands for itself in the canonical
    /// encoding of Go ([`super::go_key`]), and no `?`.
    pub fn with_prefix(prefix: &str) -> Result<Self, KeyTemplateError> {
        if !prefix.bytes().all(super::go_key::stands_for_itself) {
            return Err(KeyTemplateError);
        }
        Ok(KeyTemplate { prefix: prefix.as_bytes().into() })
    }

    /// The key of a target: `rest` is the path behind the group's prefix, `query` what the group's rule left of it.
    pub fn key(&self, rest: &[u8], query: Option<&[u8]>) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + rest.len() + query.map_or(0, |query| query.len() + 1));
        self.write_key(rest, query, &mut key);
        key
    }

    /// Appends the key to `out`, which a hit uses again and again.
    pub fn write_key(&self, rest: &[u8], query: Option<&[u8]>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.prefix);
        append_target(rest, query, out);
    }

    /// The rest and the query of a key. A key that came from a peer or a purge is checked like a target, because the
    /// origin will be asked for it.
    pub fn split<'a>(&self, key: &'a [u8]) -> Result<(&'a [u8], Option<&'a [u8]>), ForeignKey> {
        let (rest, query) = split_query(key.strip_prefix(&self.prefix[..]).ok_or(ForeignKey)?);
        check_path(rest).map_err(|_| ForeignKey)?;
        check_query(query.unwrap_or_default()).map_err(|_| ForeignKey)?;
        Ok((rest, query))
    }
}

/// The target with which the origin is asked: its own path, one `/`, then the rest and the query as they stand in the
/// key.
pub fn origin_target(origin_path: &str, rest: &[u8], query: Option<&[u8]>) -> Vec<u8> {
    let mut target = Vec::with_capacity(origin_path.len() + rest.len() + query.map_or(0, <[u8]>::len) + 2);
    target.extend_from_slice(origin_path.strip_suffix('/').unwrap_or(origin_path).as_bytes());
    target.push(b'/');
    append_target(rest, query, &mut target);
    target
}

fn append_target(rest: &[u8], query: Option<&[u8]>, out: &mut Vec<u8>) {
    out.extend_from_slice(rest);
    if let Some(query) = query {
        out.push(b'?');
        out.extend_from_slice(query);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn templates() {
        for (template, expected) in [
            ("{rest}", Some("a?b")),
            ("/{rest}", Some("/a?b")),
            ("prefix:{rest}", Some("prefix:a?b")),
            ("", None),
            ("rest", None),
            ("{rest}/", None),
            ("{path}", None),
            ("{rest}{rest}", None),
            ("a?{rest}", None),
            ("a b{rest}", None),
            ("a%20{rest}", None),
            ("(a){rest}", None),
            ("ä{rest}", None),
        ] {
            let key = KeyTemplate::parse(template).map(|template| template.key(b"a", Some(b"b")));
            assert_eq!(key.ok().as_deref(), expected.map(str::as_bytes), "{template:?}");
        }
    }

    #[test]
    fn keys_that_no_target_has_are_foreign() {
        let template = KeyTemplate::parse("p:{rest}").unwrap();
        assert_eq!(template.split(b"p:a/b?c=/d?e"), Ok((&b"a/b"[..], Some(&b"c=/d?e"[..]))));
        assert_eq!(template.split(b"p:"), Ok((&b""[..], None)));
        assert_eq!(template.split(b"p:?"), Ok((&b""[..], Some(&b""[..]))));
        for key in ["", "a", "p", "p:a b", "p:../a", "p:a/%2e%2E", "p:..", "p:a#b", "p:a\r\nb", "p:%", "p:a?%", "p:a? "]
        {
            assert_eq!(template.split(key.as_bytes()), Err(ForeignKey), "{key:?}");
        }
    }

    #[test]
    fn the_origin_is_asked_below_its_own_path() {
        for (origin_path, rest, query, expected) in [
            ("", "a.jpg", None, "/a.jpg"),
            ("/", "a.jpg", None, "/a.jpg"),
            ("/base", "a.jpg", Some("b"), "/base/a.jpg?b"),
            ("/base/", "a.jpg", Some(""), "/base/a.jpg?"),
            ("/base/", "", None, "/base/"),
            ("/", "/a", None, "//a"),
            ("", "", None, "/"),
        ] {
            let target = origin_target(origin_path, rest.as_bytes(), query.map(str::as_bytes));
            assert_eq!(target, expected.as_bytes(), "{origin_path:?} {rest:?} {query:?}");
        }
    }

    proptest! {
        #[test]
        fn keys_split_into_what_they_were_made_of(
            prefix in prop::sample::select(vec!["", "/", "p:"]),
            rest in "([a-z/:=@]|\\.a|%2F){0,8}",
            query in prop::option::of("([a-z/?&=.]|%20){0,8}"),
        ) {
            let template = KeyTemplate::with_prefix(prefix).unwrap();
            let key = template.key(rest.as_bytes(), query.as_deref().map(str::as_bytes));
            prop_assert_eq!(template.split(&key), Ok((rest.as_bytes(), query.as_deref().map(str::as_bytes))));
        }

        #[test]
        fn no_bytes_upset_the_splitter(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            for prefix in ["", "p:"] {
                let template = KeyTemplate::with_prefix(prefix).unwrap();
                if let Ok((rest, query)) = template.split(&bytes) {
                    prop_assert_eq!(template.key(rest, query), bytes.clone());
                }
            }
        }
    }
}
