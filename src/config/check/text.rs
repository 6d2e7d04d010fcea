//! Readers of single texts: words, numbers, names, addresses, URLs.
//!
//! Every reader answers `Err` with what was expected, which the message of the problem ends with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::super::units::Expected;
use super::super::values::{HostPattern, NamePattern, Url};

/// One of several words.
pub(super) fn word<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&str) -> Result<T, Expected> {
    move |text| match words.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(*value),
        None => Err(one_of(&words.iter().map(|(word, _)| *word).collect::<Vec<_>>()).into()),
    }
}

/// "a, b or c".
pub(super) fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Result<bool, Expected> {
    word(&[("true", true), ("false", false)])(text)
}

/// A whole number from `least` to `most`.
pub(super) fn number(least: u64, most: u64) -> impl Fn(&str) -> Result<u64, Expected> {
    move |text| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let value = digits.then(|| text.parse::<u64>().ok()).flatten();
        value.filter(|value| (least..=most).contains(value)).ok_or_else(|| match most {
            u64::MAX => format!("a whole number, {least} or more").into(),
            _ => format!("a whole number from {least} to {most}").into(),
        })
    }
}

/// An address to listen on.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, Expected> {
    text.parse().map_err(|_| "an IP address with a port, such as 127.0.0.1:8080, or [::]:8080 for every address".into())
}

/// An address to listen on as the command line takes it: `:8080` is every address.
pub(in super::super) fn listen_address_short(text: &str) -> Result<SocketAddr, Expected> {
    match text.strip_prefix(':') {
        Some(port) => listen_address(&format!("[::]:{port}")),
        None => listen_address(text),
    }
    .map_err(|_| "an IP address with a port, such as 127.0.0.1:8080, or :8080 for every address".into())
}

/// A block of addresses, or a single one.
pub(super) fn network(text: &str) -> Result<IpNet, Expected> {
    let single = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse::<IpNet>()
        .ok()
        .or_else(single)
        .ok_or_else(|| "an address or a block of addresses, such as 10.0.0.0/8 or \"fd00::/8\"".into())
}

/// A text of at least one character.
pub(super) fn not_empty(expected: &'static str) -> impl Fn(&str) -> Result<String, Expected> {
    move |text| match text.is_empty() || text.contains('\0') {
        true => Err(expected.into()),
        false => Ok(text.to_owned()),
    }
}

/// The words under `/_groupcache/` that are endpoints, so that no group can have them as its name.
pub(super) const ENDPOINTS: [&str; 9] =
    ["stats", "metrics", "top", "explain", "health", "ready", "purge", "reload", "drain"];

/// The name of a group.
pub(super) fn group_name(text: &str) -> Result<String, Expected> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if text.is_empty() || text.len() > 64 || !text.bytes().all(fine) {
        return Err("a name of 1 to 64 letters, digits, - and _".into());
    }
    if ENDPOINTS.contains(&text) {
        return Err(format!("a name that is no endpoint of /_groupcache/ ({})", ENDPOINTS.join(", ")).into());
    }
    Ok(text.to_owned())
}

/// A path of whole segments as it stands in a request target; the last `/` is added where it is missing.
pub(super) fn path_prefix(text: &str) -> Result<String, Expected> {
    let expected = "a path that begins with /, percent-encoded as in a request, without ?, #, // and dot segments";
    let path = if text.ends_with('/') { text.to_owned() } else { format!("{text}/") };
    let inner = path.strip_prefix('/').filter(|_| text.starts_with('/')).ok_or(expected)?;
    let segments_fine = inner.strip_suffix('/').is_none_or(|inner| inner.split('/').all(is_segment));
    if (inner.is_empty() || segments_fine) && path != "//" { Ok(path) } else { Err(expected.into()) }
}

/// A path to ask for, perhaps with a query.
pub(super) fn target(text: &str) -> Result<String, Expected> {
    let (path, query) = text.split_once('?').map_or((text, ""), |(path, query)| (path, query));
    let query_fine = escapes_are_whole(query) && query.bytes().all(|byte| is_path_byte(byte) || b"/?".contains(&byte));
    let path_fine = path.strip_prefix('/').is_some_and(|path| path.is_empty() || path.split('/').all(is_path_part));
    if path_fine && query_fine { Ok(text.to_owned()) } else { Err("a path such as /health, percent-encoded".into()) }
}

/// A header name (RFC 9110 section 5.1).
pub(super) fn header_name(text: &str) -> Result<String, Expected> {
    if is_token(text) { Ok(text.to_owned()) } else { Err("the name of a header, such as X-Request-Id".into()) }
}

/// Headers of the connection or of the framing: a wrong one of these would desynchronise or loop connections
/// (RFC 9110 sections 7.6.1 and 8.6, RFC 9112 section 6).
pub(super) const CONNECTION_HEADERS: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// A header name that may be set, removed or forwarded.
pub(super) fn free_header_name(text: &str) -> Result<String, Expected> {
    let name = header_name(text)?;
    match CONNECTION_HEADERS.iter().any(|taken| name.eq_ignore_ascii_case(taken)) {
        true if name.eq_ignore_ascii_case("host") => Err("another header; Host is set by origin_host".into()),
        true => Err("a header that is not one of the connection; those are set by the proxy itself".into()),
        false => Ok(name),
    }
}

/// A header value (RFC 9110 section 5.5), without white space at its ends.
pub(super) fn header_value(text: &str) -> Result<String, Expected> {
    match text.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
        true => Err("the value of a header, without control characters".into()),
        false => Ok(text.trim_matches([' ', '\t']).to_owned()),
    }
}

/// A method besides GET and HEAD that may reach an origin.
pub(super) fn method(text: &str) -> Result<String, Expected> {
    match text {
        "CONNECT" | "TRACE" => Err("another method; CONNECT and TRACE never reach an origin".into()),
        "GET" | "HEAD" => Err("another method; GET and HEAD are always answered".into()),
        _ if is_token(text) && !text.bytes().any(|byte| byte.is_ascii_lowercase()) => Ok(text.to_owned()),
        _ => Err("a method in capital letters, such as POST".into()),
    }
}

/// A media type without parameters, in small letters.
pub(super) fn media_type(text: &str) -> Result<String, Expected> {
    match text.split_once('/') {
        Some((kind, subtype)) if is_token(kind) && is_token(subtype) && !text.contains('*') => {
            Ok(text.to_ascii_lowercase())
        }
        _ => Err("a media type such as image/webp".into()),
    }
}

/// A content coding, in small letters.
pub(super) fn coding(text: &str) -> Result<String, Expected> {
    match is_token(text) && text != "*" && !text.eq_ignore_ascii_case("identity") {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("a content coding such as br or gzip".into()),
    }
}

/// A name of a query parameter, or the beginning of one.
pub(super) fn parameter(text: &str) -> Result<NamePattern, Expected> {
    let expected =
        "the name of a query parameter as it stands in a request, such as page, or its beginning, such as utm_*";
    let (name, prefix) = text.strip_suffix('*').map_or((text, false), |name| (name, true));
    let byte_fine = |byte: u8| (is_path_byte(byte) || byte == b'/' || byte == b'?') && !b"*&=".contains(&byte);
    match !name.is_empty() && name.bytes().all(byte_fine) && escapes_are_whole(name) {
        true => Ok(NamePattern { text: name.to_owned(), prefix }),
        false => Err(expected.into()),
    }
}

/// The text before `{rest}` in a key.
pub(super) fn key_prefix(text: &str) -> Result<String, Expected> {
    let expected = "{rest}, perhaps with a text before it: \"/{rest}\", \"prefix:{rest}\"";
    let prefix = text.strip_suffix("{rest}").ok_or(expected)?;
    match prefix.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}?#%".contains(&byte)) {
        true => Ok(prefix.to_owned()),
        false => Err(expected.into()),
    }
}

/// A host, or all hosts below a name.
pub(super) fn host_pattern(text: &str) -> Result<HostPattern, Expected> {
    let expected = "a host such as example.com, or *.example.com, without a port";
    match text.strip_prefix('*') {
        Some(suffix) => match suffix.strip_prefix('.').and_then(host) {
            Some(name) if !name.contains(':') => Ok(HostPattern::Suffix(format!(".{name}"))),
            _ => Err(expected.into()),
        },
        None => host(text).map(HostPattern::Exact).ok_or_else(|| expected.into()),
    }
}

/// A Host header: a host, perhaps with a port.
pub(super) fn host_header(text: &str) -> Result<String, Expected> {
    let fine = host_and_port(text).is_some_and(|(name, port)| host(name).is_some() && port.is_none_or(|p| p.is_some()));
    if fine { Ok(text.to_ascii_lowercase()) } else { Err("origin, client, or a host such as example.com".into()) }
}

/// The URL of an origin.
pub(super) fn origin_url(text: &str) -> Result<Url, Expected> {
    let expected =
        "an http:// or https:// URL with a host, perhaps a port and a path, without user, query and fragment";
    url(text).ok_or_else(|| expected.into())
}

/// The URL of a member of the fleet: no path, not even the last slash, because rings hash its bytes.
pub(in super::super) fn peer_url(text: &str) -> Result<Url, Expected> {
    let after_scheme = text.split_once("://").map_or("", |(_, rest)| rest);
    match url(text) {
        Some(url) if !after_scheme.contains('/') => Ok(url),
        _ => Err("a URL such as http://10.0.0.4:8082, without a path and without a last /".into()),
    }
}

/// A name or address with a port.
pub(super) fn host_and_port_required(text: &str) -> Result<String, Expected> {
    let fine = host_and_port(text)
        .is_some_and(|(name, port)| host(name).is_some() && port.flatten().is_some_and(|port| port != 0));
    if fine { Ok(text.to_ascii_lowercase()) } else { Err("a host and a port, such as 10.0.0.5:7946".into()) }
}

/// The name of a service in the DNS (RFC 2782).
pub(super) fn service_name(text: &str) -> Result<String, Expected> {
    let labels: Vec<&str> = text.trim_end_matches('.').split('.').collect();
    let fine = labels.len() > 2 && labels[..2].iter().all(|label| label.len() > 1 && label.starts_with('_'));
    match fine.then(|| host(text.trim_end_matches('.'))).flatten() {
        Some(_) => Ok(text.to_ascii_lowercase()),
        None => Err("the name of a service such as _peer._tcp.cache.internal".into()),
    }
}

/// A server to ask for names; 53 is the port that is left out.
pub(super) fn name_server(text: &str) -> Result<SocketAddr, Expected> {
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)).or_else(|_| text.parse());
    address.map_err(|_| "an IP address, perhaps with a port, such as 10.0.0.2 or 10.0.0.2:5353".into())
}

fn url(text: &str) -> Option<Url> {
    let (https, rest) = match text.split_once("://")? {
        ("http", rest) => (false, rest),
        ("https", rest) => (true, rest),
        _ => return None,
    };
    let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
    let (name, port) = host_and_port(authority)?;
    let port = match port {
        None if https => 443,
        None => 80,
        Some(port) => port.filter(|port| *port != 0)?,
    };
    Some(Url { https, host: host(name)?, port, path: path_prefix(path).ok()? })
}

/// Splits `host:port`; the port is `Some(None)` when it is there but no number.
fn host_and_port(authority: &str) -> Option<(&str, Option<Option<u16>>)> {
    let port_start = match authority.starts_with('[') {
        true => authority.find(']')? + 1,
        false => authority.find(':').unwrap_or(authority.len()),
    };
    let (name, port) = authority.split_at_checked(port_start)?;
    if port.is_empty() {
        return Some((name, None));
    }
    let digits = port.strip_prefix(':')?;
    let fine = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    Some((name, Some(fine.then(|| digits.parse().ok()).flatten())))
}

/// A name or address in small letters, an IPv6 address without its brackets.
fn host(text: &str) -> Option<String> {
    if let Some(inner) = text.strip_prefix('[') {
        return Some(inner.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.to_string());
    }
    // A last label of digits can only be an IPv4 address (WHATWG URL, "ends in a number").
    let numeric_end = text.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    if numeric_end {
        return Some(text.parse::<Ipv4Addr>().ok()?.to_string());
    }
    let label_fine = |label: &str| {
        let byte_fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(byte_fine)
    };
    (text.len() <= 253 && text.split('.').all(label_fine)).then(|| text.to_ascii_lowercase())
}

/// A segment that may stand in the middle of a path.
fn is_segment(segment: &str) -> bool {
    !segment.is_empty() && is_path_part(segment)
}

fn is_path_part(part: &str) -> bool {
    let dots = part.replace("%2e", ".").replace("%2E", ".");
    dots != "." && dots != ".." && part.bytes().all(is_path_byte) && escapes_are_whole(part)
}

/// The characters of a segment (RFC 3986 section 3.3), and the `%` of an escape.
fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%".contains(&byte)
}

fn escapes_are_whole(text: &str) -> bool {
    let hex = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_hexdigit);
    let bytes = text.as_bytes();
    (0..bytes.len()).filter(|&at| bytes[at] == b'%').all(|at| hex(bytes.get(at + 1)) && hex(bytes.get(at + 2)))
}

/// A token of RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, expected) in [
            ("http://images.internal:9000", Some("http://images.internal:9000/")),
            ("http://images.internal:9000/", Some("http://images.internal:9000/")),
            ("https://Images.Internal:443/a/b", Some("https://images.internal/a/b/")),
            ("http://[::1]:9000/a%20b/", Some("http://[::1]:9000/a%20b/")),
            ("http://10.0.0.1", Some("http://10.0.0.1/")),
            ("http://a_b", Some("http://a_b/")),
            ("ftp://host/", None),
            ("HTTP://host/", None),
            ("host:9000", None),
            ("http://", None),
            ("http:///path", None),
            ("http://user@host/", None),
            ("http://user:word@host/", None),
            ("http://host/?query", None),
            ("http://host?query", None),
            ("http://host/#fragment", None),
            ("http://host:", None),
            ("http://host:0/", None),
            ("http://host:65536/", None),
            ("http://host:80:80/", None),
            ("http://host:+80/", None),
            ("http://[::1/", None),
            ("http://[::1]9000/", None),
            ("http://::1/", None),
            ("http://300.0.0.1/", None),
            ("http://1.2.3/", None),
            ("http://host/a/../b", None),
            ("http://host/%2e%2E/b", None),
            ("http://host//b", None),
            ("http://host/%zz", None),
            ("http://host/\u{e9}", None),
            ("http://ho st/", None),
            ("http://.host/", None),
            ("http://[\u{e9}", None),
        ] {
            assert_eq!(origin_url(text).ok().map(|url| url.to_string()).as_deref(), expected, "{text}");
        }
        assert_eq!(origin_url("https://h").map(|url| url.authority()), Ok("h".into()));
        assert_eq!(origin_url("https://h:80").map(|url| url.authority()), Ok("h:80".into()));
        assert!(peer_url("http://10.0.0.4:8082").is_ok() && peer_url("http://10.0.0.4:8082/").is_err());
        assert!(peer_url("http://10.0.0.4:8082/base").is_err());
    }

    #[test]
    fn paths() {
        for (text, expected) in [
            ("/", Some("/")),
            ("/a", Some("/a/")),
            ("/a/", Some("/a/")),
            ("/a/b.c/", Some("/a/b.c/")),
            ("/%C3%BC", Some("/%C3%BC/")),
            ("", None),
            ("a", None),
            ("//", None),
            ("/a//b", None),
            ("/a//", None),
            ("/..", None),
            ("/a/./b", None),
            ("/a?b", None),
            ("/a#b", None),
            ("/a b", None),
            ("/\u{fc}", None),
            ("/%2", None),
        ] {
            assert_eq!(path_prefix(text).ok().as_deref(), expected, "{text}");
        }
        for (text, fine) in
            [("/", true), ("/health?deep=1", true), ("health", false), ("/a b", false), ("/a/%2", false)]
        {
            assert_eq!(target(text).is_ok(), fine, "{text}");
        }
    }

    #[test]
    fn hosts() {
        for (text, expected) in [
            ("Example.COM", Some(HostPattern::Exact("example.com".into()))),
            ("*.example.com", Some(HostPattern::Suffix(".example.com".into()))),
            ("[::1]", Some(HostPattern::Exact("::1".into()))),
            ("127.0.0.1", Some(HostPattern::Exact("127.0.0.1".into()))),
            ("*", None),
            ("*example.com", None),
            ("a.*.com", None),
            ("example.com:80", None),
            ("", None),
            ("a..b", None),
        ] {
            assert_eq!(host_pattern(text).ok(), expected, "{text}");
        }
        assert!(host_header("example.com:8080").is_ok() && host_header("example.com:x").is_err());
    }

    #[test]
    fn names_and_numbers() {
        assert!(group_name("thumb-nails_2").is_ok());
        for text in ["", "a b", "a/b", "stats", "drain", "\u{e9}", &"a".repeat(65)] {
            assert!(group_name(text).is_err(), "{text}");
        }
        for (text, fine) in [("0", false), ("1", true), ("10", true), ("11", false), ("+1", false), ("", false)] {
            assert_eq!(number(1, 10)(text).is_ok(), fine, "{text}");
        }
        for (text, prefix) in [
            ("{rest}", Some("")),
            ("/{rest}", Some("/")),
            ("prefix:{rest}", Some("prefix:")),
            ("{rest}x", None),
            ("{host}{rest}", None),
            ("", None),
            ("a b{rest}", None),
        ] {
            assert_eq!(key_prefix(text).ok().as_deref(), prefix, "{text}");
        }
        for (text, fine) in [("X-Name", true), ("Host", false), ("transfer-encoding", false), ("a b", false)] {
            assert_eq!(free_header_name(text).is_ok(), fine, "{text}");
        }
        assert!(header_value("a\r\nb: c").is_err() && header_value("a\tb").is_ok());
        assert!(parameter("utm_*").is_ok_and(|pattern| pattern.text == "utm_" && pattern.prefix));
        assert!(parameter("page").is_ok_and(|pattern| pattern.text == "page" && !pattern.prefix));
        assert!(["", "*", "a=b", "a&b", "a*b", "%2"].iter().all(|text| parameter(text).is_err()));
        assert!(["10.0.0.0/8", "::1", "1.2.3.4"].iter().all(|text| network(text).is_ok()));
        assert!(network("10.0.0.0/33").is_err() && network("host").is_err());
        assert_eq!(listen_address_short(":8080").map(|address| address.to_string()), Ok("[::]:8080".into()));
        assert!(listen_address(":8080").is_err() && listen_address("localhost:8080").is_err());
    }
}
