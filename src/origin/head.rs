//! The head of an origin's answer: what we believe of it and what we refuse.
//!
//! Pingora finds the end of a body; it forgives more than a cache may store (RFC 9112 section 6.3 with both framing fields,
//! repeated lengths, obs-fold). So the same bytes are read again here, strictly, and an answer whose framing could be read in
//! two ways becomes a 502 before anybody sees a part of it.

use std::borrow::Cow;

use http::HeaderMap;

use crate::fields::{Fields, FieldsBuilder, is_field_value, is_token_byte};
use crate::source::{Ask, FetchError, Interim, Method};

/// The head of a final answer after all checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// 200 to 599.
    pub status: u16,
    /// End-to-end fields in the order received, without `Content-Length`.
    pub fields: Fields,
    /// Declared length of the body in bytes; for `HEAD` that of the body a `GET` would have.
    pub content_length: Option<u64>,
    /// Whether only the end of the connection ends the body.
    pub close_delimited: bool,
}

/// What the request allows an answer to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// Only the head was asked for.
    pub head_only: bool,
    /// A range was asked for: 206 and 416 are answers.
    pub range: bool,
    /// Validators were sent: 304 is an answer.
    pub conditional: bool,
}

impl Asked {
    pub(super) fn of(ask: &Ask) -> Self {
        Asked {
            head_only: ask.method == Method::Head,
            range: ask.fields.contains("range"),
            conditional: ask.fields.contains("if-none-match") || ask.fields.contains("if-modified-since"),
        }
    }
}

/// How the status line was framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// By a version of HTTP/1 before 1.1, where nothing is in chunked coding.
    Http10,
    /// By HTTP/1.1.
    Http11,
    /// By HTTP/2, which frames bodies itself.
    Http2,
}

/// Longest head, in bytes, that an origin may send (hardening rule FRM 11).
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Checks the head of an HTTP/1 answer as it stood on the wire, status line included.
///
/// # Errors
/// [`FetchError::Refused`]: the answer could be read in two ways, or was not asked for.
pub fn from_block(block: &[u8], status: u16, wire: Wire, asked: Asked) -> Result<Head, FetchError> {
    if block.len() > HEAD_BYTES_MAX {
        return Err(refused("the origin's header is too large"));
    }
    let lines = lines_in(block)?;
    let lines: Vec<(&[u8], &[u8])> = lines.iter().map(|(name, value)| (*name, &**value)).collect();
    check(&lines, status, wire, asked, false)
}

/// The head of an answer that is as usual in every way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainHead {
    /// What [`from_block`] makes of it.
    pub head: Head,
    /// Length of the head with the empty line.
    pub bytes: usize,
    /// Whether the connection may be used again after the body.
    pub reusable: bool,
}

/// Reads the head of an HTTP/1.1 answer at the start of `block` when nothing about it needs a second look: it is there as a
/// whole, well formed to the letter, final, and it declares the length of its body or is one without. Otherwise `None`, which does
/// not mean that it is bad.
pub fn from_plain(block: &[u8], asked: Asked) -> Option<PlainHead> {
    let [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', b' ' | b'\r', ..] = block.strip_prefix(b"HTTP/1.1 ")?
    else {
        return None;
    };
    let status = [a, b, c].iter().fold(0, |status, digit| status * 10 + u16::from(**digit - b'0'));
    let mut at = end_of_line(block, 0)? + 2;
    let (mut lines, mut reusable) = (Vec::with_capacity(16), true);
    while !block[at..].starts_with(b"\r\n") {
        let length = block[at..].iter().position(|&byte| !is_token_byte(byte))?;
        let colon = at + length;
        if length == 0 || block[colon] != b':' || lines.len() == PLAIN_LINES_MAX {
            return None;
        }
        let end = end_of_line(block, colon)?;
        let (name, value) = (&block[at..colon], block[colon + 1..end].trim_ascii());
        if length == 10 && name.eq_ignore_ascii_case(b"connection") {
            let closes = |option: &[u8]| option.trim_ascii().eq_ignore_ascii_case(b"close");
            reusable &= !value.split(|&byte| byte == b',').any(closes);
        }
        lines.push((name, value));
        at = end + 2;
    }
    let head = check(&lines, status, Wire::Http11, asked, true).ok()?;
    let bodiless = matches!(status, 204 | 304);
    if bodiless {
        // Who announces a body all the same may send one, which would be the next answer. A 304 says the length of what it is about.
        let announces = |&(name, value): &(&[u8], &[u8])| {
            let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
            is(b"transfer-encoding") || (status == 204 && is(b"content-length") && value != b"0")
        };
        reusable &= !lines.iter().any(announces);
    }
    let framed = bodiless || head.content_length.is_some();
    (framed && !asked.head_only).then_some(PlainHead { head, bytes: at + 2, reusable })
}

/// More lines than this need a second look. Pingora's own limit is the same.
const PLAIN_LINES_MAX: usize = 256;

/// Where the line ends that goes on at `start`, if that is here and it has no control character.
fn end_of_line(block: &[u8], start: usize) -> Option<usize> {
    let end = start + memchr::memchr(b'\r', &block[start..])?;
    (block.get(end + 1) == Some(&b'\n') && is_field_value(&block[start..end])).then_some(end)
}

/// An interim answer of HTTP/1 as it stood on the wire; `None` when it is none that can be passed on. It frames nothing, so
/// its framing fields mean nothing (RFC 9110 section 8.6, RFC 9112 section 6.1) and are left out.
pub(super) fn interim_from_block(block: &[u8], status: u16) -> Option<Interim> {
    if block.len() > HEAD_BYTES_MAX || !Interim::is_one(status) {
        return None;
    }
    let lines = lines_in(block).ok()?;
    let named = lines.iter().filter(|(name, _)| name.eq_ignore_ascii_case(b"connection"));
    let nominated: Vec<&[u8]> =
        named.flat_map(|(_, value)| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii).collect();
    let mut fields = FieldsBuilder::with_capacity(block.len());
    for (name, value) in &lines {
        if !is_hop_by_hop(name) && !is_nominated(name, &nominated) && !name.eq_ignore_ascii_case(b"content-length") {
            fields.push(name, value).ok()?;
        }
    }
    Some(Interim { status, fields: fields.finish() })
}

/// A line of a header section: name and value.
type Line<'a> = (&'a [u8], Cow<'a, [u8]>);

fn lines_in(block: &[u8]) -> Result<Vec<Line<'_>>, FetchError> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    // Empty lines may stand before the status line (RFC 9112 section 2.2).
    for line in lines_of(block).skip_while(|line| line.is_empty()).skip(1).take_while(|line| !line.is_empty()) {
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            // obs-fold: one space takes its place (RFC 9112 section 5.2).
            let (_, value) = lines.last_mut().ok_or(refused("the origin's header is malformed"))?;
            let value = value.to_mut();
            value.push(b' ');
            value.extend_from_slice(line.trim_ascii());
        } else {
            let colon = memchr::memchr(b':', line).ok_or(refused("the origin's header is malformed"))?;
            // White space before the colon must be removed from a response (RFC 9112 section 5.1).
            lines.push((line[..colon].trim_ascii_end(), Cow::Borrowed(line[colon + 1..].trim_ascii())));
        }
    }
    Ok(lines)
}

/// Checks the head of an HTTP/2 answer.
///
/// # Errors
/// As [`from_block`].
pub fn from_map(headers: &HeaderMap, status: u16, asked: Asked) -> Result<Head, FetchError> {
    let lines: Vec<(&[u8], &[u8])> =
        headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes().trim_ascii())).collect();
    if lines.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>() > HEAD_BYTES_MAX {
        return Err(refused("the origin's header is too large"));
    }
    check(&lines, status, Wire::Http2, asked, false)
}

/// `well_formed`: whether names and values are known to be what they may be.
fn check(
    lines: &[(&[u8], &[u8])],
    status: u16,
    wire: Wire,
    asked: Asked,
    well_formed: bool,
) -> Result<Head, FetchError> {
    check_status(status, asked)?;
    let (mut codings, mut lengths, mut nominated, mut ranges, mut types) = (None, None, Vec::new(), Vec::new(), None);
    let (mut coding_count, mut length_count, mut bytes) = (0, 0, 0);
    for &(name, value) in lines {
        bytes += name.len() + value.len() + 4;
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        match name.len() {
            10 if is(b"connection") => nominated.extend(value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)),
            12 if is(b"content-type") => types = types.or(Some(value)),
            13 if is(b"content-range") => ranges.push(value),
            14 if is(b"content-length") => (lengths, length_count) = (Some(value), length_count + 1),
            17 if is(b"transfer-encoding") => (codings, coding_count) = (Some(value), coding_count + 1),
            _ => {}
        }
    }
    let chunked = match (codings, coding_count) {
        (None, _) => false,
        (Some(coding), 1) if coding.eq_ignore_ascii_case(b"chunked") && wire == Wire::Http11 && length_count == 0 => {
            true
        }
        _ => return Err(refused("the origin's answer has no certain end")),
    };
    let declared = match (lengths, length_count) {
        (None, _) => None,
        (Some(length), 1) => Some(parse_length(length).ok_or(refused("the origin's Content-Length is no number"))?),
        _ => return Err(refused("the origin sent more than one Content-Length")),
    };
    let bodyless = asked.head_only || status == 204 || status == 304;
    let content_length = match status {
        204 => Some(0),
        // A 304 may carry the length of the representation that it confirms, but it has no body to be measured.
        304 => None,
        _ => declared,
    };
    if status == 206 && !asked.head_only {
        check_part(&ranges, types)?;
    }
    let mut fields = FieldsBuilder::with_capacity(bytes);
    for (name, value) in lines {
        if is_hop_by_hop(name)
            || is_nominated(name, &nominated)
            || (name.len() == 14 && name.eq_ignore_ascii_case(b"content-length"))
        {
            continue;
        }
        match well_formed {
            true => fields.push_checked(name, value),
            false => fields.push(name, value).map_err(|_| refused("the origin's header is malformed"))?,
        }
    }
    Ok(Head {
        status,
        fields: fields.finish(),
        content_length,
        close_delimited: wire != Wire::Http2 && !bodyless && !chunked && declared.is_none(),
    })
}

/// Refuses what was not asked for (hardening rule FRM 12) and what is no status of HTTP.
fn check_status(status: u16, asked: Asked) -> Result<(), FetchError> {
    match status {
        206 | 416 if !asked.range => Err(refused("the origin sent a part that was not asked for")),
        304 if !asked.conditional => Err(refused("the origin answered 304 to a request without validators")),
        101 => Err(refused("the origin switched protocols without being asked")),
        200..=599 => Ok(()),
        _ => Err(refused("the origin's status is none of HTTP")),
    }
}

/// A 206 says which part it is (RFC 9110 section 15.3.7). One whose content has another length than the part it names goes to
/// those who asked for it, as the origin sent it, but nothing is stored or put together of it (`parts::Place`): nobody knows
/// where its bytes belong.
fn check_part(ranges: &[&[u8]], content_type: Option<&[u8]>) -> Result<(), FetchError> {
    let multipart = b"multipart/byteranges";
    let many = content_type.is_some_and(|value| {
        value.len() >= multipart.len() && value[..multipart.len()].eq_ignore_ascii_case(multipart)
    });
    let plausible = match ranges {
        [] => many,
        [range] => parse_content_range(range).is_some(),
        _ => false,
    };
    if plausible { Ok(()) } else { Err(refused("the origin's part does not say which part it is")) }
}

/// Length of the part that `bytes first-last/complete` names, if it can exist.
fn parse_content_range(value: &[u8]) -> Option<u64> {
    let value = std::str::from_utf8(value).ok()?;
    let (unit, range) = value.split_once(' ')?;
    let (span, complete) = range.split_once('/')?;
    let (first, last) = span.split_once('-')?;
    let (first, last) = (parse_length(first.as_bytes())?, parse_length(last.as_bytes())?);
    let fits = complete == "*" || last < parse_length(complete.as_bytes())?;
    (unit.eq_ignore_ascii_case("bytes") && first <= last && fits).then(|| (last - first).checked_add(1)).flatten()
}

/// Digits only: no sign, no list, no overflow (RFC 9110 section 8.6).
fn parse_length(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    if digits { std::str::from_utf8(value).ok()?.parse().ok() } else { None }
}

/// Lines without their ends; a bare LF ends a line too (RFC 9112 section 2.2), which is how pingora reads them.
fn lines_of(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    block.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// Whether the field belongs to one connection only (RFC 9110 section 7.6.1, RFC 9112 appendix C.2.2).
pub(super) fn is_hop_by_hop(name: &[u8]) -> bool {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    match name.len() {
        2 => is(b"te"),
        7 => is(b"trailer") || is(b"upgrade"),
        10 => is(b"connection") || is(b"keep-alive"),
        16 => is(b"proxy-connection"),
        17 => is(b"transfer-encoding"),
        18 => is(b"proxy-authenticate"),
        19 => is(b"proxy-authorization"),
        25 => is(b"proxy-authentication-info"),
        _ => false,
    }
}

/// Whether `Connection` names the field. Fields that protect the answer cannot be named away: without its `Cache-Control`,
/// `Vary` or `Set-Cookie` a private response would look like one for everybody (RFC 9110 section 7.6.1 forbids to name them).
fn is_nominated(name: &[u8], nominated: &[&[u8]]) -> bool {
    const PROTECTED: [&str; 21] = [
        "age",
        "cache-control",
        "cdn-cache-control",
        "content-encoding",
        "content-language",
        "content-location",
        "content-range",
        "content-security-policy",
        "content-type",
        "date",
        "etag",
        "expires",
        "groupcache-proxy-cache-control",
        "last-modified",
        "location",
        "pragma",
        "set-cookie",
        "surrogate-control",
        "vary",
        "via",
        "www-authenticate",
    ];
    nominated.iter().any(|candidate| name.eq_ignore_ascii_case(candidate))
        && !PROTECTED.iter().any(|protected| name.eq_ignore_ascii_case(protected.as_bytes()))
}

/// The origin's answer is no answer.
pub(super) fn refused(reason: &'static str) -> FetchError {
    FetchError::refused(502, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Asked = Asked { head_only: false, range: false, conditional: false };
    const HEAD: Asked = Asked { head_only: true, ..PLAIN };
    const RANGE: Asked = Asked { range: true, ..PLAIN };
    const CONDITIONAL: Asked = Asked { conditional: true, ..PLAIN };

    fn read(status: u16, wire: Wire, asked: Asked, lines: &str) -> Result<Head, FetchError> {
        from_block(format!("HTTP/1.1 {status} Whatever\r\n{lines}\r\n").as_bytes(), status, wire, asked)
    }

    /// What is kept, as one line: `length close? | fields`.
    fn shown(head: &Head) -> String {
        let length = head.content_length.map_or("-".to_owned(), |length| length.to_string());
        let close = if head.close_delimited { " close" } else { "" };
        let fields = String::from_utf8_lossy(head.fields.as_bytes()).trim_end().replace("\r\n", "; ");
        format!("{length}{close} | {fields}")
    }

    #[test]
    fn what_frames_the_body_is_believed_only_when_it_can_be_read_in_one_way() {
        use Wire::{Http10, Http11};
        for (status, wire, asked, lines, expected) in [
            (200, Http11, PLAIN, "Content-Length: 5\r\nA: b\r\n", Some("5 | A: b")),
            (200, Http11, PLAIN, "Transfer-Encoding: Chunked\r\n", Some("- | ")),
            (200, Http11, PLAIN, "A: b\r\n", Some("- close | A: b")),
            (200, Http10, PLAIN, "Content-Length: 5\r\n", Some("5 | ")),
            (200, Http10, PLAIN, "", Some("- close | ")),
            (204, Http11, PLAIN, "", Some("0 | ")),
            (204, Http11, PLAIN, "Content-Length: 9\r\n", Some("0 | ")),
            (304, Http11, CONDITIONAL, "Content-Length: 9\r\nETag: x\r\n", Some("- | ETag: x")),
            (200, Http11, HEAD, "Content-Length: 9\r\n", Some("9 | ")),
            (200, Http11, HEAD, "", Some("- | ")),
            (200, Http11, PLAIN, "Content-Length: 5\r\nContent-Length: 5\r\n", None),
            (200, Http11, PLAIN, "Content-Length: 5\r\nContent-Length: 6\r\n", None),
            (200, Http11, PLAIN, "Content-Length: 5, 5\r\n", None),
            (200, Http11, PLAIN, "Content-Length: +5\r\n", None),
            (200, Http11, PLAIN, "Content-Length: -5\r\n", None),
            (200, Http11, PLAIN, "Content-Length: \r\n", None),
            (200, Http11, PLAIN, "Content-Length: 99999999999999999999\r\n", None),
            (200, Http11, PLAIN, "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", None),
            (200, Http11, PLAIN, "Transfer-Encoding: gzip, chunked\r\n", None),
            (200, Http11, PLAIN, "Transfer-Encoding: gzip\r\n", None),
            (200, Http11, PLAIN, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", None),
            (200, Http11, PLAIN, "Transfer-Encoding: identity\r\n", None),
            (200, Http10, PLAIN, "Transfer-Encoding: chunked\r\n", None),
        ] {
            let found = read(status, wire, asked, lines);
            assert_eq!(found.as_ref().ok().map(shown).as_deref(), expected, "{status} {wire:?} {lines:?}: {found:?}");
        }
    }

    #[test]
    fn an_answer_that_was_not_asked_for_is_refused() {
        let part = "Content-Range: bytes 0-4/9\r\nContent-Length: 5\r\n";
        for (status, asked, lines, accepted) in [
            (206, PLAIN, part, false),
            (206, CONDITIONAL, part, false),
            (206, RANGE, part, true),
            (206, RANGE, "Content-Length: 5\r\n", false),
            // It contradicts itself, and goes on without being stored.
            (206, RANGE, "Content-Range: bytes 0-4/9\r\nContent-Length: 6\r\n", true),
            (206, RANGE, "Content-Range: bytes 5-4/9\r\n", false),
            (206, RANGE, "Content-Range: bytes 0-9/9\r\n", false),
            (206, RANGE, "Content-Range: bytes 0-18446744073709551615/*\r\n", false),
            (206, RANGE, "Content-Range: bytes 0-4/*\r\n", true),
            (206, RANGE, "Content-Type: multipart/byteranges; boundary=x\r\n", true),
            (416, PLAIN, "Content-Range: bytes */9\r\n", false),
            (416, RANGE, "Content-Range: bytes */9\r\n", true),
            (304, PLAIN, "", false),
            (304, RANGE, "", false),
            (304, CONDITIONAL, "", true),
            (101, PLAIN, "Upgrade: websocket\r\n", false),
            (600, PLAIN, "", false),
            (999, PLAIN, "", false),
            (503, PLAIN, "", true),
        ] {
            let found = read(status, Wire::Http11, asked, lines);
            assert_eq!(found.is_ok(), accepted, "{status} {asked:?} {lines:?}: {found:?}");
        }
    }

    #[test]
    fn hop_by_hop_fields_end_here_and_protecting_fields_cannot_be_named_away() {
        let lines = "Connection: close, X-Internal , Cache-Control\r\nX-Internal: 1\r\nCache-Control: private\r\nKeep-Alive: timeout=5\r\n\
                     Trailer: X-Sum\r\nProxy-Authenticate: Basic\r\nX-Kept: 1\r\nContent-Length: 0\r\n";
        let head = read(200, Wire::Http11, PLAIN, lines).unwrap();
        assert_eq!(shown(&head), "0 | Cache-Control: private; X-Kept: 1");
        for name in &crate::freshness::Rules::default().targeted {
            let lines = format!("Connection: {name}\r\n{name}: no-store\r\nContent-Length: 0\r\n");
            assert_eq!(shown(&read(200, Wire::Http11, PLAIN, &lines).unwrap()), format!("0 | {name}: no-store"));
        }
    }

    #[test]
    fn folded_lines_are_unfolded_and_malformed_ones_refused() {
        for (lines, expected) in [
            ("A: b\r\n  c\r\n\td\r\nContent-Length: 0\r\n", Some("0 | A: b c d")),
            ("A : b\r\nContent-Length: 0\r\n", Some("0 | A: b")),
            ("A: b\nContent-Length: 0\n", Some("0 | A: b")),
            ("A: \u{e4}\r\nContent-Length: 0\r\n", Some("0 | A: \u{e4}")),
            (" folded into nothing\r\n", None),
            ("A: b\rc\r\n", None),
            ("A: b\0c\r\n", None),
            ("no colon\r\n", None),
            ("a b: c\r\n", None),
            (": c\r\n", None),
        ] {
            let found = read(200, Wire::Http11, PLAIN, lines);
            assert_eq!(found.as_ref().ok().map(shown).as_deref(), expected, "{lines:?}: {found:?}");
        }
        let large = format!("A: {}\r\n", "x".repeat(HEAD_BYTES_MAX));
        assert!(read(200, Wire::Http11, PLAIN, &large).is_err());
    }

    #[test]
    fn what_is_read_plainly_is_what_is_read_strictly() {
        let usual = |status: &str, lines: &str| format!("HTTP/1.1 {status}\r\n{lines}\r\n");
        let plain = |block: &str, asked| from_plain(block.as_bytes(), asked);
        for (status, asked, lines, reusable) in [
            ("200 OK", PLAIN, "Server: x\r\nContent-Length: 5\r\nA:b\r\nEmpty:\r\n", true),
            ("200 ", PLAIN, "Content-Length: 0\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n", true),
            ("200", PLAIN, "CONTENT-LENGTH:\t5 \r\nConnection: x-a, Close\r\nX-A: 1\r\nX-B: \u{e4}\r\n", false),
            ("206 Part", RANGE, "Content-Range: bytes 0-4/9\r\nContent-Length: 5\r\n", true),
            ("304 Same", CONDITIONAL, "ETag: \"a\"\r\nContent-Length: 5\r\n", true),
            ("204 None", PLAIN, "Connection: close\r\n", false),
            ("204 None", PLAIN, "Content-Length: 0\r\n", true),
            ("204 None", PLAIN, "Content-Length: 40\r\n", false),
            ("304 Same", CONDITIONAL, "Transfer-Encoding: chunked\r\n", false),
            ("200 OK", PLAIN, "Content-Length: 5\r\nConnection: x\r\nConnection: keep-alive, close\r\n", false),
            ("503 Later", PLAIN, "Content-Length: 5\r\nSet-Cookie: a=b\r\n", true),
        ] {
            let block = usual(status, lines);
            let found = plain(&format!("{block}body"), asked).unwrap_or_else(|| panic!("{block:?}"));
            let status = status[..3].parse().unwrap();
            assert_eq!(found.head, from_block(block.as_bytes(), status, Wire::Http11, asked).unwrap(), "{block:?}");
            assert_eq!((found.bytes, found.reusable), (block.len(), reusable), "{block:?}");
        }
        let many = "A: b\r\n".repeat(300);
        for (block, asked) in [
            (usual("200 OK", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), PLAIN),
            (usual("200 OK", "Transfer-Encoding: chunked\r\n"), PLAIN),
            (usual("200 OK", "A: b\r\n"), PLAIN),
            (usual("200 OK", "Content-Length: 5\r\nContent-Length: 5\r\n"), PLAIN),
            (usual("200 OK", "Content-Length: 5, 5\r\n"), PLAIN),
            (usual("200 OK", "Content-Length: +5\r\n"), PLAIN),
            (usual("200 OK", "Content-Length: -5\r\n"), PLAIN),
            (usual("200 OK", "Content-Length: 18446744073709551616\r\n"), PLAIN),
            (usual("200 O\nK", "Content-Length: 5\r\n"), PLAIN),
            (usual("200 OK", "Content-Length: 5\r\nA: b\nc\r\n"), PLAIN),
            (usual("200 OK", " folded\r\nContent-Length: 5\r\n"), PLAIN),
            (usual("200OK", "Content-Length: 5\r\n"), PLAIN),
            (usual("200 OK", "Content-Length: 5\r\n folded\r\n"), PLAIN),
            (usual("200 OK", "Content-Length : 5\r\n"), PLAIN),
            (usual("200 OK", "Content-Length: 5\r\nA b: c\r\n"), PLAIN),
            (usual("200 OK", "Content-Length: 5\r\n: c\r\n"), PLAIN),
            (usual("200 OK", "Content-Length: 5\r\nA: b\0\r\n"), PLAIN),
            (usual("200 OK", "Content-Length: 5\r\nA: b\rc\r\n"), PLAIN),
            (usual("200 OK", "Content-Length: 5\nA: b\r\n"), PLAIN),
            (usual("200 O\0K", "Content-Length: 5\r\n"), PLAIN),
            (usual("200 OK", &format!("Content-Length: 5\r\n{many}")), PLAIN),
            (usual("200 OK", "Content-Length: 5\r\n"), HEAD),
            (usual("206 OK", "Content-Range: bytes 0-4/9\r\nContent-Length: 5\r\n"), PLAIN),
            (usual("304 OK", ""), PLAIN),
            (usual("100 Continue", "Content-Length: 0\r\n"), PLAIN),
            (usual("600 No", "Content-Length: 0\r\n"), PLAIN),
            (usual("2000 No", "Content-Length: 0\r\n"), PLAIN),
            (usual("20", "Content-Length: 0\r\n"), PLAIN),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(), PLAIN),
            ("\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(), PLAIN),
        ] {
            assert_eq!(plain(&block, asked), None, "{block:?}");
        }
        let whole = usual("200 OK", "Content-Length: 5\r\nA: b\r\n");
        for end in 0..whole.len() {
            assert_eq!(plain(&whole[..end], PLAIN), None, "the first {end} bytes");
        }
    }
}
