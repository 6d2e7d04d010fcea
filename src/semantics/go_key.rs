//! Keys as Go groupcache nodes see them: the percent-decoded path, then `?` and the query as it stands.
//!
//! Decoding loses information: `/a%2Fb` and `/a/b` are different targets for our origin, but one key for a Go node. So
//! only targets in the canonical encoding take part, which is what `URL.EscapedPath` of Go's `net/url` gives for the
//! decoded path: of those there is exactly one per key. All others are loaded by our own nodes.

use std::borrow::Cow;

use super::target::{check_path, check_query, split_query};

/// The key under which a Go owner is asked for one of our keys; `None` if it must not be asked: the key is not in the
/// canonical encoding, or Go's request multiplexer would redirect instead of answering.
pub fn go_key(key: &[u8]) -> Option<Vec<u8>> {
    let (path, query) = split_query(key);
    if !is_canonical_encoding(path) {
        return None;
    }
    let mut go_key = percent_decoded(path)?.into_owned();
    if let Some(query) = query {
        go_key.push(b'?');
        go_key.extend_from_slice(query);
    }
    (!go_mux_would_redirect(&go_key)).then_some(go_key)
}

/// Our key for a Go node's question; `None` if no target of ours has that key.
pub fn key_of_go_key(go_key: &[u8]) -> Option<Vec<u8>> {
    let (path, query) = split_query(go_key);
    let mut key = Vec::with_capacity(go_key.len() + 16);
    for &byte in path {
        if stands_for_itself(byte) {
            key.push(byte);
        } else {
            key.extend_from_slice(&[b'%', HEX_DIGITS[usize::from(byte >> 4)], HEX_DIGITS[usize::from(byte & 15)]]);
        }
    }
    check_path(&key).ok()?;
    if let Some(query) = query {
        check_query(query).ok()?;
        key.push(b'?');
        key.extend_from_slice(query);
    }
    Some(key)
}

/// The bytes that a percent-encoded path stands for; `None` if an escape is broken. A `+` is a plus.
pub fn percent_decoded(path: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(first) = memchr::memchr(b'%', path) else { return Some(Cow::Borrowed(path)) };
    let mut decoded = path[..first].to_vec();
    let mut rest = &path[first..];
    while let Some((&byte, behind)) = rest.split_first() {
        if byte != b'%' {
            decoded.push(byte);
            rest = behind;
            continue;
        }
        let (digits, behind) = behind.split_at_checked(2)?;
        let value = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
        decoded.push(value(digits[0])? << 4 | value(digits[1])?);
        rest = behind;
    }
    Some(Cow::Owned(decoded))
}

/// Whether a path is what Go writes for its decoded form: escapes in upper case, exactly where they are needed.
///
/// One difference: an escaped `?` counts as not canonical, because the decoded path could not be told from a path with
/// a query.
pub fn is_canonical_encoding(path: &[u8]) -> bool {
    let mut rest = path;
    while let Some((&byte, behind)) = rest.split_first() {
        if byte != b'%' {
            if !stands_for_itself(byte) {
                return false;
            }
            rest = behind;
            continue;
        }
        let value = |digit: u8| HEX_DIGITS.iter().position(|&candidate| candidate == digit);
        let Some((digits, behind)) = behind.split_at_checked(2) else { return false };
        match (value(digits[0]), value(digits[1])) {
            (Some(high), Some(low)) => {
                let decoded = (high << 4 | low) as u8;
                if stands_for_itself(decoded) || decoded == b'?' {
                    return false;
                }
            }
            _ => return false,
        }
        rest = behind;
    }
    true
}

/// Whether Go's `ServeMux` answers a question for this decoded key with a redirect: it cleans the whole decoded path,
/// of which the key with its query is the end, from empty segments and dot segments. An empty key counts too, since the
/// question would end in `/` and no Go client ever asks it.
pub fn go_mux_would_redirect(go_key: &[u8]) -> bool {
    let segments = go_key.split(|&byte| byte == b'/');
    let last = go_key.iter().filter(|&&byte| byte == b'/').count();
    segments.enumerate().any(|(index, segment)| match segment {
        // A slash at the very end stays.
        b"" => index < last || go_key.is_empty(),
        b"." | b".." => true,
        _ => false,
    })
}

/// Whether Go leaves this byte of a path as it is (`shouldEscape` for a path in `net/url`).
pub(super) fn stands_for_itself(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte)
}

const HEX_DIGITS: &[u8; 16] = b"0123456789ABCDEF";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_that_go_leaves_alone() {
        // Printed by Go 1.19: every byte b for which (&url.URL{Path: "/" + b}).EscapedPath() is "/" + b.
        let recorded = "$&+,-./0123456789:;=@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";
        let ours: Vec<u8> = (0..=255).filter(|&byte| stands_for_itself(byte)).collect();
        assert_eq!(ours, recorded.as_bytes());
    }

    #[test]
    fn canonical_encodings_as_go_writes_them() {
        // Recorded from Go 1.19: whether (&url.URL{Path: decoded}).EscapedPath() gives the path back. The two with an
        // escaped question mark are ours.
        for (path, expected) in [
            ("a%C3%9F", true),
            ("a%c3%9f", false),
            ("(a)", false),
            ("%28a%29", true),
            ("a%2Fb", false),
            ("a%3Fb", false),
            ("a%3fb", false),
            ("a+b", true),
            ("a%20b", true),
            ("a%41", false),
            ("%25", true),
            ("a;b,c:d@e&f=g$", true),
            ("*", false),
            ("%2A", true),
            ("~a", true),
            ("%7Ea", false),
            ("%00", true),
            ("%", false),
            ("%2", false),
            ("", true),
        ] {
            assert_eq!(is_canonical_encoding(path.as_bytes()), expected, "{path:?}");
        }
    }

    #[test]
    fn redirects_of_the_go_multiplexer() {
        for (key, expected) in [
            ("", true),
            ("a", false),
            ("a/b", false),
            ("a/", false),
            ("/", true),
            ("/a", true),
            ("a//", true),
            ("a//b", true),
            (".", true),
            ("..", true),
            ("a/.", true),
            ("a/../b", true),
            ("a/..", true),
            ("...", false),
            ("a/.b/c.", false),
            // The key's query is part of the path that Go sees.
            ("a?b=//c", true),
            ("a?b/../c", true),
            ("a?b/c", false),
            ("a?/", false),
        ] {
            assert_eq!(go_mux_would_redirect(key.as_bytes()), expected, "{key:?}");
        }
    }

    #[test]
    fn keys_for_go_owners() {
        for (key, expected) in [
            ("a.jpg", Some("a.jpg")),
            ("a%20b", Some("a b")),
            ("a+b", Some("a+b")),
            ("a%20b?c=%20", Some("a b?c=%20")),
            ("a?", Some("a?")),
            ("a%2Fb", None),
            ("a%3Fb", None),
            ("a%c3%9f", None),
            ("a//b", None),
            ("", None),
        ] {
            assert_eq!(go_key(key.as_bytes()).as_deref(), expected.map(str::as_bytes), "{key:?}");
        }
        for (asked, expected) in [
            ("a b", Some("a%20b")),
            ("a b?c=%20", Some("a%20b?c=%20")),
            ("a%", Some("a%25")),
            ("a%20", Some("a%2520")),
            ("(a)", Some("%28a%29")),
            ("../a", None),
            ("a/.", None),
            ("a?b c", None),
            ("a?%", None),
        ] {
            assert_eq!(key_of_go_key(asked.as_bytes()).as_deref(), expected.map(str::as_bytes), "{asked:?}");
        }
    }

    proptest! {
        /// Two different keys never meet at a Go owner: what it is asked for leads back to the one key.
        #[test]
        fn go_keys_are_injective(key in "([a-z/?=+()]|%2[05F]|%3[fF]|%41|%C3|%c3){0,8}") {
            if let Some(asked) = go_key(key.as_bytes()) {
                prop_assert_eq!(key_of_go_key(&asked), Some(key.into_bytes()));
            }
        }

        #[test]
        fn a_go_question_has_one_canonical_key(asked in prop::collection::vec(any::<u8>(), 0..12)) {
            if let Some(key) = key_of_go_key(&asked) {
                let (path, query) = split_query(&key);
                prop_assert!(is_canonical_encoding(path));
                let mut again = percent_decoded(path).unwrap().into_owned();
                again.extend(query.iter().flat_map(|query| [b"?", *query].concat()));
                prop_assert_eq!(&again, &asked);
                prop_assert_eq!(go_key(&key), (!go_mux_would_redirect(&asked)).then_some(asked));
            }
        }

        #[test]
        fn decoding_undoes_encoding(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let encoded: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(percent_decoded(encoded.as_bytes()).unwrap().into_owned(), bytes.clone());
            let _ = percent_decoded(&bytes);
            let _ = is_canonical_encoding(&bytes);
        }
    }
}
