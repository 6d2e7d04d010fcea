//! The `Cache-Status` field (RFC 9211): what this cache, and the key's owner if it was asked, did for an answer.
//!
//! Written into a buffer of the caller without allocating. The cache nearest the origin stands first.

use bytes::BufMut;

use crate::fields::Fields;

/// One member of the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStatus<'a> {
    /// Whose member it is.
    pub cache: Cache,
    /// What happened to the request.
    pub handling: Handling,
    /// Remaining freshness in seconds, negative for a stale answer; `None` if there is nothing to say.
    pub ttl_seconds: Option<i64>,
    /// A word of ours about how or why, as in counters and log; written as a string if it is no token.
    pub detail: Option<&'a str>,
}

/// The cache a member speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// The node that talks to the client.
    #[default]
    Node,
    /// The owner of the key, asked by the node.
    Owner,
}

/// What happened to a request in one cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handling {
    /// Neither answered from the store nor forwarded: an answer of our own, such as 400 or 504.
    #[default]
    Own,
    /// Answered from the store.
    Hit,
    /// Went forward.
    Forwarded {
        /// Why.
        reason: ForwardReason,
        /// Status of the next hop's answer, where it is not that of ours.
        status: Option<u16>,
        /// Whether the answer was stored.
        stored: bool,
        /// Whether it shared another request's way to the origin.
        collapsed: bool,
    },
}

/// Why a request went forward (RFC 9211 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardReason {
    /// The configuration has the request passed on.
    Bypass,
    /// The method's semantics demand it.
    Method,
    /// Nothing is stored for the key.
    UriMiss,
    /// Something is stored for the key, but for other request fields (`Vary`).
    VaryMiss,
    /// Nothing is stored, and the cache does not know which of the two misses it was.
    Miss,
    /// A fresh answer was there, but the request's directives did not allow it.
    Request,
    /// The stored answer was stale.
    Stale,
    /// The stored answer has not all the ranges asked for.
    Partial,
}

impl ForwardReason {
    /// The token of the registry.
    pub fn as_str(self) -> &'static str {
        match self {
            ForwardReason::Bypass => "bypass",
            ForwardReason::Method => "method",
            ForwardReason::UriMiss => "uri-miss",
            ForwardReason::VaryMiss => "vary-miss",
            ForwardReason::Miss => "miss",
            ForwardReason::Request => "request",
            ForwardReason::Stale => "stale",
            ForwardReason::Partial => "partial",
        }
    }
}

impl CacheStatus<'_> {
    /// Appends the member, for example `groupcache-proxy; hit; ttl=118`.
    pub fn write(&self, out: &mut impl BufMut) {
        out.put_slice(match self.cache {
            Cache::Node => b"groupcache-proxy",
            Cache::Owner => b"groupcache-proxy/owner",
        });
        match self.handling {
            Handling::Own => {}
            Handling::Hit => out.put_slice(b"; hit"),
            Handling::Forwarded { reason, status, stored, collapsed } => {
                out.put_slice(b"; fwd=");
                out.put_slice(reason.as_str().as_bytes());
                if let Some(status) = status {
                    out.put_slice(b"; fwd-status=");
                    put_integer(i64::from(status), out);
                }
                if stored {
                    out.put_slice(b"; stored");
                }
                if collapsed {
                    out.put_slice(b"; collapsed");
                }
            }
        }
        if let Some(seconds) = self.ttl_seconds {
            out.put_slice(b"; ttl=");
            put_integer(seconds, out);
        }
        if let Some(detail) = self.detail {
            out.put_slice(b"; detail=");
            put_token_or_string(detail, out);
        }
    }
}

/// Appends the whole value: what caches before us said (see [`earlier_members`]), then the owner, then this node.
pub fn write_value(earlier: &[u8], owner: Option<&CacheStatus<'_>>, node: &CacheStatus<'_>, out: &mut impl BufMut) {
    if !earlier.is_empty() {
        out.put_slice(earlier);
        out.put_slice(b", ");
    }
    if let Some(owner) = owner {
        owner.write(out);
        out.put_slice(b", ");
    }
    node.write(out);
}

/// The members of caches between us and the origin in one line, prepared when an entry is made; empty if there are
/// none, or if they break the syntax, which would make our own members unreadable too.
pub fn earlier_members(response: &Fields) -> Vec<u8> {
    let lines: Vec<&[u8]> = response.get_all("cache-status").filter(|line| !line.is_empty()).collect();
    let joined = lines.join(&b", "[..]);
    match sfv::Parser::new(&joined).parse::<sfv::List>() {
        Ok(members) if !members.is_empty() => joined,
        _ => Vec::new(),
    }
}

/// An sf-integer: at most 15 digits (RFC 9651 section 3.3.1).
fn put_integer(number: i64, out: &mut impl BufMut) {
    const LARGEST: i64 = 999_999_999_999_999;
    let number = number.clamp(-LARGEST, LARGEST);
    if number < 0 {
        out.put_u8(b'-');
    }
    let mut digits = [0; 15];
    let mut start = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.put_slice(&digits[start..]);
}

/// A token as it is; anything else as a string without what a string cannot hold (RFC 9651 sections 3.3.3 and 3.3.4).
fn put_token_or_string(text: &str, out: &mut impl BufMut) {
    let may_follow = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte);
    let may_start = |byte: u8| byte.is_ascii_alphabetic() || byte == b'*';
    if text.bytes().next().is_some_and(may_start) && text.bytes().all(may_follow) {
        return out.put_slice(text.as_bytes());
    }
    out.put_u8(b'"');
    for byte in text.bytes().filter(|byte| (0x20..0x7f).contains(byte)) {
        if byte == b'"' || byte == b'\\' {
            out.put_u8(b'\\');
        }
        out.put_u8(byte);
    }
    out.put_u8(b'"');
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;

    fn forwarded(reason: ForwardReason, status: Option<u16>, stored: bool, collapsed: bool) -> Handling {
        Handling::Forwarded { reason, status, stored, collapsed }
    }

    fn value(earlier: &[u8], owner: Option<CacheStatus<'_>>, node: CacheStatus<'_>) -> String {
        let mut out = BytesMut::new();
        write_value(earlier, owner.as_ref(), &node, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn members_as_the_interface_shows_them() {
        let hit = CacheStatus { handling: Handling::Hit, ttl_seconds: Some(118), ..CacheStatus::default() };
        let miss =
            CacheStatus { handling: forwarded(ForwardReason::Miss, None, true, false), ..CacheStatus::default() };
        for (earlier, owner, node, expected) in [
            ("", None, CacheStatus { detail: Some("hot"), ..hit }, "groupcache-proxy; hit; ttl=118; detail=hot"),
            (
                "",
                Some(CacheStatus { cache: Cache::Owner, ..hit }),
                miss,
                "groupcache-proxy/owner; hit; ttl=118, groupcache-proxy; fwd=miss; stored",
            ),
            ("ExampleCache; hit", None, miss, "ExampleCache; hit, groupcache-proxy; fwd=miss; stored"),
            (
                "",
                None,
                CacheStatus {
                    handling: forwarded(ForwardReason::Stale, Some(304), true, true),
                    ttl_seconds: Some(-412),
                    ..CacheStatus::default()
                },
                "groupcache-proxy; fwd=stale; fwd-status=304; stored; collapsed; ttl=-412",
            ),
            (
                "",
                None,
                CacheStatus { detail: Some("only-if-cached"), ..CacheStatus::default() },
                "groupcache-proxy; detail=only-if-cached",
            ),
            (
                "",
                None,
                CacheStatus { detail: Some("no \"way\"\n"), ..hit },
                r#"groupcache-proxy; hit; ttl=118; detail="no \"way\"""#,
            ),
            ("", None, CacheStatus { ttl_seconds: Some(0), ..hit }, "groupcache-proxy; hit; ttl=0"),
            (
                "",
                None,
                CacheStatus { ttl_seconds: Some(i64::MIN), ..hit },
                "groupcache-proxy; hit; ttl=-999999999999999",
            ),
            (
                "",
                None,
                CacheStatus { ttl_seconds: Some(i64::MAX), ..hit },
                "groupcache-proxy; hit; ttl=999999999999999",
            ),
        ] {
            assert_eq!(value(earlier.as_bytes(), owner, node), expected);
        }
    }

    #[test]
    fn only_readable_members_of_others_are_kept() {
        for (lines, expected) in [
            (&[][..], ""),
            (&[""], ""),
            (&["ExampleCache; hit"], "ExampleCache; hit"),
            (&["\"a cache\"; fwd=miss", "B; hit; ttl=1"], "\"a cache\"; fwd=miss, B; hit; ttl=1"),
            (&["A", "", "B"], "A, B"),
            (&["A; hit,"], ""),
            (&["A; hit", "; B"], ""),
            (&["HIT from x.example"], ""),
            (&["\"unclosed"], ""),
        ] {
            let response = Fields::from_pairs(lines.iter().map(|line| ("Cache-Status", line))).unwrap();
            assert_eq!(earlier_members(&response), expected.as_bytes(), "{lines:?}");
        }
    }

    fn any_reason() -> impl Strategy<Value = ForwardReason> {
        use ForwardReason::{Bypass, Method, Miss, Partial, Request, Stale, UriMiss, VaryMiss};
        prop::sample::select(vec![Bypass, Method, UriMiss, VaryMiss, Miss, Request, Stale, Partial])
    }

    fn any_handling() -> impl Strategy<Value = Handling> {
        prop_oneof![
            Just(Handling::Own),
            Just(Handling::Hit),
            (any_reason(), prop::option::of(100u16..600), any::<bool>(), any::<bool>())
                .prop_map(|(reason, status, stored, collapsed)| forwarded(reason, status, stored, collapsed)),
        ]
    }

    proptest! {
        /// Another reader of structured fields finds what was meant.
        #[test]
        fn values_are_structured_fields(
            handling in any_handling(),
            ttl in prop::option::of(any::<i64>()),
            detail in prop::option::of(".{0,12}"),
            with_owner in any::<bool>(),
        ) {
            let node = CacheStatus { cache: Cache::Node, handling, ttl_seconds: ttl, detail: detail.as_deref() };
            let owner = with_owner.then_some(CacheStatus { cache: Cache::Owner, ..node });
            let earlier = earlier_members(&Fields::from_pairs([("Cache-Status", "Other; hit")]).unwrap());
            let value = value(&earlier, owner, node);
            let list = sfv::Parser::new(&value).parse::<sfv::List>().unwrap();
            prop_assert_eq!(list.len(), 2 + usize::from(with_owner));
            let names: Vec<&str> = list.iter().map(|entry| match entry {
                sfv::ListEntry::Item(item) => item.bare_item.as_token().unwrap().as_str(),
                sfv::ListEntry::InnerList(_) => panic!("no inner list was written"),
            }).collect();
            prop_assert_eq!(names[0], "Other");
            prop_assert_eq!(names[names.len() - 1], "groupcache-proxy");
            prop_assert!(!with_owner || names[1] == "groupcache-proxy/owner");
            let Some(sfv::ListEntry::Item(last)) = list.last() else { panic!("an item") };
            let parameter = |name: &str| {
                last.params.iter().find(|(key, _)| key.as_str() == name).map(|(_, value)| value)
            };
            prop_assert_eq!(parameter("hit").is_some(), handling == Handling::Hit);
            let (reason, status, stored, collapsed) = match handling {
                Handling::Forwarded { reason, status, stored, collapsed } => {
                    (Some(reason.as_str()), status, stored, collapsed)
                }
                _ => (None, None, false, false),
            };
            prop_assert_eq!(parameter("fwd").map(|value| value.as_token().unwrap().as_str()), reason);
            let integer = |name: &str| parameter(name).map(|value| i64::from(value.as_integer().unwrap()));
            prop_assert_eq!(integer("fwd-status"), status.map(i64::from));
            prop_assert_eq!(parameter("stored").is_some(), stored);
            prop_assert_eq!(parameter("collapsed").is_some(), collapsed);
            let written = ttl.map(|seconds| seconds.clamp(-999_999_999_999_999, 999_999_999_999_999));
            prop_assert_eq!(integer("ttl"), written);
            prop_assert_eq!(parameter("detail").is_some(), detail.is_some());
        }

        #[test]
        fn no_bytes_upset_the_reader(value in prop::collection::vec(0x20u8..0x7f, 0..40)) {
            earlier_members(&Fields::from_pairs([("Cache-Status", &value)]).unwrap());
        }
    }
}
