//! Request targets and authorities: what is accepted, and its parts (RFC 9112 section 3.2, RFC 3986).
//!
//! A target is accepted or refused, never repaired: the accepted bytes are the key and go to the origin as they are, so
//! that no two parties can read them differently.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;

/// Targets of more bytes are answered with 414.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;

/// Longest name of the domain name system in its text form, and more than any address literal.
const HOST_BYTES_MAX: usize = 253;

/// An accepted request target. It borrows the bytes of the request line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Scheme and authority of an absolute-form target; they must be checked against the connection and `Host`.
    pub site: Option<(Scheme, Authority<'a>)>,
    /// The path with its leading `/`: characters of RFC 3986, valid escapes, no dot segment.
    pub path: &'a [u8],
    /// What follows the first `?`; `Some` and empty if nothing does.
    pub query: Option<&'a [u8]>,
}

/// Scheme of an absolute-form target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http`, port 80.
    Http,
    /// `https`, port 443.
    Https,
}

impl Scheme {
    /// The port meant when none is written.
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// Why a target is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// More than [`TARGET_BYTES_MAX`] bytes.
    #[error("request target too long")]
    TooLong,
    /// Neither `/...` nor `http://...` nor `https://...`; also `*` and `host:port`, which no cached method uses.
    #[error("request target is neither a path nor an http URL")]
    Form,
    /// A byte outside RFC 3986, or one that may not stand there (a fragment, for example).
    #[error("request target has a character that is not allowed")]
    Character,
    /// `%` without two hexadecimal digits.
    #[error("request target has a broken percent escape")]
    Escape,
    /// A segment `.` or `..`, plain or escaped.
    #[error("request target has a dot segment")]
    DotSegment,
    /// The authority of an absolute-form target.
    #[error("request target has a bad authority")]
    Authority,
}

impl TargetError {
    /// The status with which the request is refused.
    pub fn status(self) -> u16 {
        if self == TargetError::TooLong { 414 } else { 400 }
    }
}

impl<'a> Target<'a> {
    /// Reads the target of a request line: origin-form, or absolute-form with `http` or `https`.
    pub fn parse(raw: &'a [u8]) -> Result<Self, TargetError> {
        if raw.len() > TARGET_BYTES_MAX {
            return Err(TargetError::TooLong);
        }
        if raw.first() == Some(&b'/') {
            return Self::parse_origin_form(raw);
        }
        let (scheme, rest) = if let Some(rest) = strip_prefix_ignoring_case(raw, b"http://") {
            (Scheme::Http, rest)
        } else if let Some(rest) = strip_prefix_ignoring_case(raw, b"https://") {
            (Scheme::Https, rest)
        } else {
            return Err(TargetError::Form);
        };
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
        let authority = Authority::parse(&rest[..end]).map_err(|_| TargetError::Authority)?;
        let mut target = match rest.get(end) {
            Some(b'/') => Self::parse_origin_form(&rest[end..])?,
            // An empty path means `/` (RFC 9112 section 3.2.1).
            Some(b'?') => Target { site: None, path: b"/", query: Some(&rest[end + 1..]) },
            Some(_) => return Err(TargetError::Character),
            None => Target { site: None, path: b"/", query: None },
        };
        if let Some(query) = target.query {
            check_query(query)?;
        }
        target.site = Some((scheme, authority));
        Ok(target)
    }

    fn parse_origin_form(raw: &'a [u8]) -> Result<Self, TargetError> {
        let path_bytes = path_of_origin_form(raw)?;
        Ok(Target { site: None, path: &raw[..path_bytes], query: raw.get(path_bytes + 1..) })
    }
}

/// The length of the path of a target that begins with `/`, all of which is checked as [`Target::parse`] does.
///
/// # Errors
/// As there; also when it does not begin with `/`.
#[inline]
pub fn path_of_origin_form(raw: &[u8]) -> Result<usize, TargetError> {
    if raw.len() > TARGET_BYTES_MAX {
        return Err(TargetError::TooLong);
    }
    if raw.first() != Some(&b'/') {
        return Err(TargetError::Form);
    }
    if is_ordinary(raw) {
        return Ok(raw.len());
    }
    let (path, query) = split_query(raw);
    if !is_ordinary(path) {
        check_path(path)?;
    }
    if let Some(query) = query {
        check_query(query)?;
    }
    Ok(path.len())
}

/// Whether a path is of the usual kind, which needs no further look: letters, digits and `-./:;_`, and no segment that begins
/// with a dot. Sixteen bytes are looked at at once, each with the one before it; a shorter path counts as unusual.
#[inline]
fn is_ordinary(path: &[u8]) -> bool {
    let (Some((_, before)), Some((_, bytes))) = (path.split_last(), path.split_first()) else { return false };
    let (Some(last_before), Some(last_bytes)) = (before.last_chunk(), bytes.last_chunk()) else { return false };
    let mut unusual = [0; 16];
    let mut look = |before: &[u8; 16], bytes: &[u8; 16]| {
        for place in 0..16 {
            let byte = bytes[place];
            let is_letter = (byte | 0x20).wrapping_sub(b'a') < 26;
            // From the hyphen to the semicolon.
            let is_mark_or_digit = byte.wrapping_sub(b'-') < 15;
            let is_hidden = (byte == b'.') & (before[place] == b'/');
            unusual[place] |= u8::from(!(is_letter | is_mark_or_digit | (byte == b'_')) | is_hidden);
        }
    };
    // The last sixteen overlap those before them.
    before.as_chunks().0.iter().zip(bytes.as_chunks().0).for_each(|(before, bytes)| look(before, bytes));
    look(last_before, last_bytes);
    u128::from_ne_bytes(unusual) == 0
}

/// Splits at the first `?`.
pub(super) fn split_query(raw: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'?', raw) {
        Some(end) => (&raw[..end], Some(&raw[end + 1..])),
        None => (raw, None),
    }
}

/// Checks a path, or the part of one behind a `/`: only `pchar` and `/`, whole escapes, no dot segment.
pub(super) fn check_path(path: &[u8]) -> Result<(), TargetError> {
    check_path_of(path, classes_of(path))
}

#[inline]
fn check_path_of(path: &[u8], classes: u8) -> Result<(), TargetError> {
    // A segment of dots begins with one, and an escaped dot with a percent sign.
    let suspicious = match classes {
        PLAIN => false,
        DOT => path.first() == Some(&b'.') || path.windows(2).any(|pair| pair == b"/."),
        _ => check_characters(path, NOT_IN_PATH)?,
    };
    if suspicious && path.split(|&byte| byte == b'/').any(is_dot_segment) {
        return Err(TargetError::DotSegment);
    }
    Ok(())
}

/// What kinds of bytes there are in a text.
#[inline]
fn classes_of(text: &[u8]) -> u8 {
    let class = |byte: u8| CLASSES[usize::from(byte)];
    let (chunks, rest) = text.as_chunks::<8>();
    let of_chunks =
        chunks.iter().fold(PLAIN, |classes, chunk| chunk.iter().fold(classes, |all, &byte| all | class(byte)));
    rest.iter().fold(of_chunks, |all, &byte| all | class(byte))
}

/// Checks a query: only `pchar`, `/` and `?`, whole escapes.
pub(super) fn check_query(query: &[u8]) -> Result<(), TargetError> {
    match classes_of(query) & NOT_IN_QUERY {
        PLAIN => Ok(()),
        _ => check_characters(query, NOT_IN_QUERY).map(|_| ()),
    }
}

/// Whether a segment is `.` or `..` in any spelling.
fn is_dot_segment(segment: &[u8]) -> bool {
    let mut rest = segment;
    let mut dots = 0;
    while !rest.is_empty() {
        rest = match rest {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return false,
        };
        dots += 1;
    }
    dots == 1 || dots == 2
}

/// Checks every byte; the answer says whether a dot was seen, plain or escaped.
fn check_characters(text: &[u8], forbidden: u8) -> Result<bool, TargetError> {
    let mut has_dot = false;
    let mut index = 0;
    while let Some(&byte) = text.get(index) {
        if byte == b'%' {
            let digits = text.get(index + 1..index + 3).ok_or(TargetError::Escape)?;
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return Err(TargetError::Escape);
            }
            has_dot |= digits.eq_ignore_ascii_case(b"2e");
            index += 3;
            continue;
        }
        if CLASSES[usize::from(byte)] & forbidden != 0 {
            return Err(TargetError::Character);
        }
        has_dot |= byte == b'.';
        index += 1;
    }
    Ok(has_dot)
}

/// Stands for itself, in path and query.
const PLAIN: u8 = 0;
/// Allowed in a query and not in a path.
const NOT_IN_PATH: u8 = 1;
/// Allowed nowhere, but for the percent sign of an escape.
const NOT_IN_QUERY: u8 = 2;
/// A dot, which is allowed.
const DOT: u8 = 4;

/// Where each byte may stand (RFC 3986 sections 3.3 and 3.4).
const CLASSES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => PLAIN,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => PLAIN,
            b':' | b'@' | b'/' => PLAIN,
            b'.' => DOT,
            b'?' => NOT_IN_PATH,
            _ => NOT_IN_PATH | NOT_IN_QUERY,
        };
        byte += 1;
    }
    table
};

fn strip_prefix_ignoring_case<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Host and port, as in `Host` (RFC 9110 section 7.2). Displays as `host` or `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority<'a> {
    /// A name, an IPv4 address, or an IPv6 address in brackets; in lower case.
    pub host: Cow<'a, str>,
    /// The port if one is written.
    pub port: Option<u16>,
}

/// An authority that cannot be used; the request is answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad host")]
pub struct AuthorityError;

impl<'a> Authority<'a> {
    /// Reads the value of `Host`, or the authority of a URL.
    ///
    /// Accepted are letters, digits, `-`, `_` and `.` between non-empty labels (one point may end the name), and IPv6
    /// addresses in brackets, with an optional port up to 65535. RFC 3986 also knows escapes and punctuation in names;
    /// no site has them, and parsers disagree about them.
    pub fn parse(value: &'a [u8]) -> Result<Self, AuthorityError> {
        let value = std::str::from_utf8(value).map_err(|_| AuthorityError)?;
        let host_end = match value.strip_prefix('[') {
            Some(literal) => 2 + literal.find(']').ok_or(AuthorityError)?,
            None => value.bytes().position(|byte| byte == b':').unwrap_or(value.len()),
        };
        let (host, port) = value.split_at(host_end);
        let sound = match host.strip_prefix('[') {
            Some(literal) => literal.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
            None => is_name(host),
        };
        if !sound {
            return Err(AuthorityError);
        }
        let port = match port.strip_prefix(':') {
            // An empty port is none (RFC 3986 section 3.2.3).
            Some("") => None,
            Some(digits) if digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| AuthorityError)?)
            }
            Some(_) => return Err(AuthorityError),
            None if port.is_empty() => None,
            None => return Err(AuthorityError),
        };
        let has_upper_case = host.bytes().fold(false, |any, byte| any | byte.is_ascii_uppercase());
        let host = if has_upper_case { Cow::Owned(host.to_ascii_lowercase()) } else { Cow::Borrowed(host) };
        Ok(Authority { host, port })
    }

    /// Whether both name the same site when no port means `default_port`.
    pub fn is_same_site(&self, other: &Authority<'_>, default_port: u16) -> bool {
        self.host == other.host && self.port.unwrap_or(default_port) == other.port.unwrap_or(default_port)
    }

    /// A copy that borrows nothing.
    pub fn into_owned(self) -> Authority<'static> {
        Authority { host: Cow::Owned(self.host.into_owned()), port: self.port }
    }
}

impl fmt::Display for Authority<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.host)?;
        match self.port {
            Some(port) => write!(formatter, ":{port}"),
            None => Ok(()),
        }
    }
}

fn is_name(host: &str) -> bool {
    // A point may stand behind a label, that is, where the byte before is none.
    let mut behind_label = false;
    for byte in host.bytes() {
        match byte {
            b'.' if behind_label => behind_label = false,
            b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => behind_label = true,
            _ => return false,
        }
    }
    (1..=HOST_BYTES_MAX).contains(&host.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A target as one line: `authority|path|query`.
    fn show(raw: &str) -> Result<String, TargetError> {
        Target::parse(raw.as_bytes()).map(|target| {
            let text = |bytes| std::str::from_utf8(bytes).unwrap();
            let site = target.site.map_or(String::new(), |(scheme, authority)| format!("{scheme:?} {authority}"));
            format!("{site}|{}|{}", text(target.path), target.query.map_or("none", text))
        })
    }

    #[test]
    fn targets() {
        use TargetError::{Authority, Character, DotSegment, Escape, Form};
        for (raw, expected) in [
            ("/", Ok("|/|none")),
            ("/a/b.jpg", Ok("|/a/b.jpg|none")),
            ("/a?", Ok("|/a|")),
            ("/a?b=c&d", Ok("|/a|b=c&d")),
            ("/a?b?c/d", Ok("|/a|b?c/d")),
            ("//", Ok("|//|none")),
            ("//host/a", Ok("|//host/a|none")),
            ("/%20%2F%fF", Ok("|/%20%2F%fF|none")),
            ("/-._~!$&'()*+,;=:@", Ok("|/-._~!$&'()*+,;=:@|none")),
            ("/...", Ok("|/...|none")),
            ("/.a", Ok("|/.a|none")),
            ("/a.", Ok("|/a.|none")),
            ("/a?..", Ok("|/a|..")),
            ("/a?/../", Ok("|/a|/../")),
            ("/%2f..%2f", Ok("|/%2f..%2f|none")),
            ("http://Example.com", Ok("Http example.com|/|none")),
            ("HTTPS://example.com:8443/a?b", Ok("Https example.com:8443|/a|b")),
            ("http://example.com?a", Ok("Http example.com|/|a")),
            ("http://[::1]:80/", Ok("Http [::1]:80|/|none")),
            ("http://a//b", Ok("Http a|//b|none")),
            ("", Err(Form)),
            ("*", Err(Form)),
            ("a", Err(Form)),
            ("example.com:80", Err(Form)),
            ("ftp://example.com/", Err(Form)),
            ("http:/a", Err(Form)),
            ("?a", Err(Form)),
            ("\\a", Err(Form)),
            ("http:///a", Err(Authority)),
            ("http://", Err(Authority)),
            ("http://user@host/", Err(Authority)),
            ("http://a b/", Err(Authority)),
            ("http://a:99999/", Err(Authority)),
            ("http://a#b", Err(Character)),
            ("http://a/#b", Err(Character)),
            ("http://a?b#c", Err(Character)),
            ("http://a?b c", Err(Character)),
            ("/a#b", Err(Character)),
            ("/a?b#c", Err(Character)),
            ("/a b", Err(Character)),
            ("/a\tb", Err(Character)),
            ("/a\0", Err(Character)),
            ("/a\r\n", Err(Character)),
            ("/a\\b", Err(Character)),
            ("/a\"b", Err(Character)),
            ("/a<b>", Err(Character)),
            ("/{a}", Err(Character)),
            ("/[a]", Err(Character)),
            ("/a|b", Err(Character)),
            ("/a^b", Err(Character)),
            ("/a`b", Err(Character)),
            ("/ü", Err(Character)),
            ("/a\x7f", Err(Character)),
            ("/a?[b]", Err(Character)),
            ("/%", Err(Escape)),
            ("/%2", Err(Escape)),
            ("/%2g", Err(Escape)),
            ("/%%20", Err(Escape)),
            ("/a?%", Err(Escape)),
            ("/a?%2x", Err(Escape)),
            ("/%2/2", Err(Escape)),
            ("/%2?2", Err(Escape)),
            ("/.", Err(DotSegment)),
            ("/..", Err(DotSegment)),
            ("/./a", Err(DotSegment)),
            ("/a/../b", Err(DotSegment)),
            ("/a/..?b", Err(DotSegment)),
            ("/%2e", Err(DotSegment)),
            ("/a/.%2E/b", Err(DotSegment)),
            ("/a/%2e./b", Err(DotSegment)),
            ("/a/%2E%2e", Err(DotSegment)),
            ("http://a/..", Err(DotSegment)),
        ] {
            assert_eq!(show(raw), expected.map(str::to_owned), "{raw:?}");
        }
    }

    #[test]
    fn length_is_limited_for_all_forms() {
        for start in ["/", "http://a/"] {
            let longest = format!("{start}{}", "a".repeat(TARGET_BYTES_MAX - start.len()));
            assert!(Target::parse(longest.as_bytes()).is_ok());
            let error = Target::parse(format!("{longest}a").as_bytes()).unwrap_err();
            assert_eq!((error, error.status()), (TargetError::TooLong, 414));
        }
        assert_eq!(TargetError::DotSegment.status(), 400);
    }

    #[test]
    fn authorities() {
        for (value, expected) in [
            ("example.com", Some("example.com")),
            ("EXAMPLE.com:8080", Some("example.com:8080")),
            ("example.com.", Some("example.com.")),
            ("example.com:", Some("example.com")),
            ("a_b-c.1", Some("a_b-c.1")),
            ("127.0.0.1:0080", Some("127.0.0.1:80")),
            ("[::1]", Some("[::1]")),
            ("[FE80::A]:65535", Some("[fe80::a]:65535")),
            ("", None),
            (":80", None),
            (".", None),
            (".a", None),
            ("a..b", None),
            ("a b", None),
            (" a", None),
            ("a ", None),
            ("a,b", None),
            ("a/b", None),
            ("a@b", None),
            ("a?b", None),
            ("a#b", None),
            ("a%2eb", None),
            ("a;b", None),
            ("a\\b", None),
            ("ä", None),
            ("a\0", None),
            ("a:b", None),
            ("a:-1", None),
            ("a:+1", None),
            ("a:65536", None),
            ("a:000080", None),
            ("a:80:80", None),
            ("::1", None),
            ("[::1", None),
            ("::1]", None),
            ("[]", None),
            ("[a]", None),
            ("[1.2.3.4]", None),
            ("[::1%25eth0]", None),
            ("[v1.a]", None),
            ("[::1]a", None),
            ("[::1]:a", None),
            ("[[::1]]", None),
        ] {
            let parsed = Authority::parse(value.as_bytes());
            assert_eq!(parsed.as_ref().ok().map(ToString::to_string).as_deref(), expected, "{value:?}");
        }
        assert!(Authority::parse("a".repeat(254).as_bytes()).is_err());
        assert!(matches!(Authority::parse(b"example.com").unwrap().host, Cow::Borrowed(_)));
    }

    #[test]
    fn a_site_is_host_and_port() {
        for (first, second, expected) in [
            ("a", "A:80", true),
            ("a:80", "a", true),
            ("a:81", "a", false),
            ("a:443", "a:80", false),
            ("a", "b", false),
            ("a.", "a", false),
        ] {
            let (first, second) =
                (Authority::parse(first.as_bytes()).unwrap(), Authority::parse(second.as_bytes()).unwrap());
            assert_eq!(first.is_same_site(&second, Scheme::Http.default_port()), expected);
        }
    }

    proptest! {
        /// Whatever is accepted in origin-form is, byte for byte, what is kept of it.
        #[test]
        fn accepted_targets_lose_nothing(raw in "/[a-zA-Z0-9%./?&=;#~ -]{0,20}") {
            if let Ok(target) = Target::parse(raw.as_bytes()) {
                let mut again = target.path.to_vec();
                if let Some(query) = target.query {
                    again.push(b'?');
                    again.extend_from_slice(query);
                }
                prop_assert_eq!(again, raw.as_bytes());
                prop_assert_eq!(target.site, None);
            }
        }

        /// No decoder that looks at segments finds a way out of an accepted path.
        #[test]
        fn accepted_paths_have_no_dot_segment(raw in "(/|\\.|%2e|%2E|a){1,10}") {
            let decoded = raw.to_ascii_lowercase().replace("%2e", ".");
            let has_dots = decoded.split('/').any(|segment| segment == "." || segment == "..");
            prop_assert_eq!(check_path(raw.as_bytes()).is_err(), has_dots);
        }

        /// The quick look at the usual path lets nothing in that the slow one refuses.
        #[test]
        fn a_path_of_the_usual_kind_is_an_accepted_one(
            raw in "/([a-zA-Z0-9/:;_-]|[./]){15,50}([^a-zA-Z0-9]|%2e|\\?)?[a-z./]{0,50}"
        ) {
            let raw = raw.as_bytes();
            let (path, query) = split_query(raw);
            prop_assert!(!is_ordinary(path) || check_path(path).is_ok());
            let slowly = check_path(path).and_then(|()| check_query(query.unwrap_or_default()));
            prop_assert_eq!(path_of_origin_form(raw), slowly.map(|()| path.len()));
            let usual = path.len() > 16 && check_path(path).is_ok()
                && path.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-./:;_".contains(byte))
                && !path.windows(2).any(|pair| pair == b"/.");
            prop_assert_eq!(is_ordinary(path), usual);
        }

        #[test]
        fn no_bytes_upset_the_parsers(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            for prefix in [&b""[..], b"/", b"http://", b"http://a", b"["] {
                let raw = [prefix, &bytes].concat();
                let _ = Target::parse(&raw);
                if let Ok(authority) = Authority::parse(&raw) {
                    let shown = authority.to_string();
                    prop_assert_eq!(Authority::parse(shown.as_bytes()), Ok(authority));
                }
            }
        }
    }
}
