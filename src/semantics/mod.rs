//! What HTTP says about one request and one response, as pure functions of bytes: no socket, no clock, no store.
//!
//! In the order in which a request meets them:
//! - [`target`]: which targets and authorities are accepted at all, and their parts;
//! - [`router`]: which group a target belongs to, and what of it is left for the key;
//! - [`query`] and [`key`]: the group's rule for the query, and the key made of both;
//! - [`go_key`]: the same key as a Go groupcache node sees it;
//! - [`forward`]: which header fields of the client the origin gets;
//! - [`variant`]: which of them the answer depends on (`Vary`);
//! - [`validators`] and [`preconditions`]: `ETag`, `Last-Modified`, `If-None-Match` and the other conditions;
//! - [`not_modified`]: what of a stored header a 304 has;
//! - [`ranges`] and [`multipart`]: parts of a body;
//! - [`cache_status`]: what is said about all this in the answer.
//!
//! Nothing here repairs input. Whatever is malformed is refused or ignored, whichever of the two can do no harm, and
//! every function says which.

pub mod cache_status;
pub mod forward;
pub mod go_key;
pub mod key;
pub mod multipart;
pub mod not_modified;
pub mod preconditions;
pub mod query;
pub mod ranges;
pub mod router;
pub mod target;
pub mod validators;
pub mod variant;

/// The members of one line of a list field (RFC 9110 section 5.6.1): split at commas outside quoted strings, without
/// white space around them, empty members included.
fn list_members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    split_outside_quotes(line, b',').map(<[u8]>::trim_ascii)
}

/// The pieces of `text` between the `delimiter`s that stand outside quoted strings (RFC 9110 section 5.6.4).
/// A quoted string that is never closed reaches to the end.
fn split_outside_quotes(text: &[u8], delimiter: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let piece = rest?;
        let (mut quoted, mut escaped) = (false, false);
        let end = piece.iter().position(|&byte| {
            if escaped {
                escaped = false;
            } else if quoted && byte == b'\\' {
                escaped = true;
            } else if byte == b'"' {
                quoted = !quoted;
            }
            !quoted && byte == delimiter
        });
        rest = end.map(|end| &piece[end + 1..]);
        Some(&piece[..end.unwrap_or(piece.len())])
    })
}

/// A number of digits only, at least one; a number too large for the type counts as the largest one.
fn parse_digits_saturating(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    if digits.len() < 20 {
        return Some(digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')));
    }
    Some(digits.iter().fold(0u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_inside_quoted_strings_do_not_split() {
        let cases: [(&str, &[&str]); 7] = [
            ("", &[""]),
            ("a", &["a"]),
            ("a ,\tb", &["a", "b"]),
            (",a,", &["", "a", ""]),
            (r#""a,b",c"#, &[r#""a,b""#, "c"]),
            (r#""a\",b",c"#, &[r#""a\",b""#, "c"]),
            (r#""a,b"#, &[r#""a,b"#]),
        ];
        for (line, expected) in cases {
            let members: Vec<_> = list_members(line.as_bytes()).map(|m| std::str::from_utf8(m).unwrap()).collect();
            assert_eq!(members, expected, "{line:?}");
        }
    }

    #[test]
    fn numbers_saturate_and_hold_nothing_but_digits() {
        for (digits, expected) in [
            ("0", Some(0)),
            ("007", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", Some(u64::MAX)),
            ("99999999999999999999999999", Some(u64::MAX)),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("1 ", None),
            ("1.5", None),
        ] {
            assert_eq!(parse_digits_saturating(digits.as_bytes()), expected, "{digits:?}");
        }
    }
}
