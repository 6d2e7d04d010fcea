//! What an origin may be told, checked once: later code trusts these values.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::fields::{is_field_value, is_token};

/// Everything that an [`HttpOrigin`](super::HttpOrigin) needs to know.
#[derive(Clone, Debug)]
pub struct OriginSettings {
    /// The servers that can be asked, at least one; all are taken to give the same answers.
    pub urls: Vec<OriginUrl>,
    /// How a server is chosen from several.
    pub balance: Balance,
    /// How many further servers are asked when one cannot be reached.
    pub retries: usize,
    /// How the servers of a list are watched. A single server is never probed.
    pub health: Health,
    /// How long the addresses of a host name are used before it is looked up again.
    pub resolve: Duration,
    /// PEM file of the only authorities that may vouch for an `https` server; without it those of the system.
    pub ca: Option<PathBuf>,
    /// Limits on every wait.
    pub timeouts: Timeouts,
    /// Which `Host` the origin sees.
    pub host: HostRule,
    /// Request fields that are set or removed last.
    pub headers: HeaderRules,
}

impl OriginSettings {
    /// The defaults of the configuration for these servers.
    pub fn new(urls: Vec<OriginUrl>) -> Self {
        OriginSettings {
            urls,
            balance: Balance::RoundRobin,
            retries: 1,
            health: Health::default(),
            resolve: Duration::from_secs(30),
            ca: None,
            timeouts: Timeouts::default(),
            host: HostRule::Origin,
            headers: HeaderRules::default(),
        }
    }
}

/// How a server is chosen from a list. Servers that are known to be down come last in every order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the fewest requests of this node in flight; in turn among equals.
    LeastConnections,
}

/// How the servers of a list are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Path that must answer 200 to 399; without it a connection that opens is enough.
    pub path: Option<String>,
    /// Pause between two probes of one server.
    pub every: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Health { path: None, every: Duration::from_secs(5) }
    }
}

/// Limits on the waits for an origin. None is infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For one address: from the first packet to a connection that can carry a request, TLS included.
    pub connect: Duration,
    /// From a connection to the complete head of the final answer.
    pub first_byte: Duration,
    /// Between two pieces of the body.
    pub between_bytes: Duration,
    /// For a whole load. Here it ends the wait for the head over all tries; for the body it holds only where the response can
    /// be stored, which the fill knows and the origin does not.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(1),
            first_byte: Duration::from_secs(15),
            between_bytes: Duration::from_secs(10),
            total: Duration::from_secs(300),
        }
    }
}

/// Which `Host` the origin sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostRule {
    /// The authority of the origin's URL.
    #[default]
    Origin,
    /// The client's, which then belongs to the key.
    Client,
    /// This name, with a port where one is needed.
    Name(String),
}

/// Why a setting cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The text is not the URL of an origin.
    #[error("{url}: {reason}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A field of `to_origin` cannot be set or removed.
    #[error("{name}: {reason}")]
    Header {
        /// Name of the field.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The list of servers is empty.
    #[error("an origin needs at least one URL")]
    NoUrl,
    /// `HostRule::Name` holds no authority.
    #[error("{0}: not a host name with an optional port")]
    HostName(String),
    /// The path for probes is not a path.
    #[error("{0}: a path for probes begins with / and holds no white space")]
    HealthPath(String),
    /// The certificates that should vouch for the origin cannot be used.
    #[error("{path}: {reason}")]
    Certificates {
        /// The file, or `system` for the certificates of the machine.
        path: String,
        /// What went wrong.
        reason: String,
    },
}

/// Where an origin listens and what stands before the target there.
#[derive(Clone, PartialEq, Eq)]
pub struct OriginUrl {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
    /// Without a slash at the end, so that a target can follow; empty for the root.
    prefix: String,
}

impl OriginUrl {
    /// Reads `http://host:port/prefix`. The prefix replaces what the group matched, with or without a slash at its end.
    ///
    /// # Errors
    /// When the text is no such URL, or names a user, a query or a fragment.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let wrong = |reason| SettingsError::Url { url: without_user(text), reason };
        let (scheme, rest) = text.split_once("://").ok_or(wrong("expected http:// or https://"))?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(wrong("expected http:// or https://")),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(wrong("a user name has no place here"));
        }
        if path.contains(['?', '#']) {
            return Err(wrong("a query or fragment has no place here"));
        }
        if !path.bytes().all(|byte| byte.is_ascii_graphic())
            || path.parse::<http::uri::PathAndQuery>().is_err() && !path.is_empty()
        {
            return Err(wrong("the path holds characters that must be percent-encoded"));
        }
        let authority = authority.to_ascii_lowercase();
        let (host, port) =
            split_authority(&authority).ok_or(wrong("expected a host name or address, and an optional port"))?;
        let default_port = if tls { 443 } else { 80 };
        Ok(OriginUrl {
            tls,
            host: host.to_owned(),
            port: port.unwrap_or(default_port),
            prefix: path.trim_end_matches('/').to_owned(),
            authority,
        })
    }

    /// Whether the origin is asked over TLS.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// Host name or address, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host as an address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port as written, for the `Host` field.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// What stands before a target there, without a slash at its end.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What is asked for under this URL: the prefix, then the target, byte for byte.
    pub fn path(&self, target: &[u8]) -> Vec<u8> {
        [self.prefix.as_bytes(), target].concat()
    }
}

impl fmt::Display for OriginUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(formatter, "{scheme}://{}{}/", self.authority, self.prefix)
    }
}

impl fmt::Debug for OriginUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "OriginUrl({self})")
    }
}

/// Request fields that a group sets or removes, after everything that the client or the cache asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderRules {
    rules: Vec<(String, Option<Vec<u8>>)>,
}

impl HeaderRules {
    /// Checks names and values; `None` removes the field.
    ///
    /// # Errors
    /// When a name or value is malformed, or the field decides framing, routing or caching and is therefore not free to choose.
    pub fn new(rules: impl IntoIterator<Item = (String, Option<String>)>) -> Result<Self, SettingsError> {
        let mut checked: Vec<(String, Option<Vec<u8>>)> = Vec::new();
        for (name, value) in rules {
            let reason = if !is_token(name.as_bytes()) {
                Some("not the name of a header field")
            } else if NOT_FREE.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
                Some("this field is set by the proxy itself")
            } else if value.as_ref().is_some_and(|value| !is_field_value(value.as_bytes())) {
                Some("the value holds a control character")
            } else {
                None
            };
            if let Some(reason) = reason {
                return Err(SettingsError::Header { name, reason });
            }
            checked.push((name, value.map(|value| value.trim().as_bytes().to_vec())));
        }
        Ok(HeaderRules { rules: checked })
    }

    /// Names with the value to set, or `None` to remove the field.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.rules.iter().map(|(name, value)| (name.as_str(), value.as_deref()))
    }

    /// Whether a rule speaks about the field `name`.
    pub fn covers(&self, name: &str) -> bool {
        self.rules.iter().any(|(ruled, _)| ruled.eq_ignore_ascii_case(name))
    }
}

/// Splits `host:port`, `[v6]:port` and the forms without a port.
pub(super) fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (address, after) = bracketed.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (address, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let named = authority.starts_with('[')
        || (!host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)));
    let port = match port {
        None => None,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(port.parse().ok().filter(|&port| port != 0)?)
        }
        Some(_) => return None,
    };
    named.then_some((host, port))
}

/// The text for a message: a password in a URL must not reach a log.
fn without_user(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme_end), Some(at)) if at > scheme_end => format!("{}://***{}", &text[..scheme_end], &text[at..]),
        _ => text.to_owned(),
    }
}

/// Fields that decide where a message ends, who is asked, or what kind of answer may come.
const NOT_FREE: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_replaces_what_the_group_matched_with_or_without_its_last_slash() {
        for (url, target, path) in [
            ("http://o:9000", "/a.jpg?x", "/a.jpg?x"),
            ("http://o:9000/", "/a.jpg?x", "/a.jpg?x"),
            ("http://o/base", "/a.jpg?x", "/base/a.jpg?x"),
            ("http://o/base/", "/a.jpg?x", "/base/a.jpg?x"),
            ("https://o/b/c%20d/", "/%C3%A4//+", "/b/c%20d/%C3%A4//+"),
        ] {
            assert_eq!(OriginUrl::parse(url).unwrap().path(target.as_bytes()), path.as_bytes(), "{url} {target}");
        }
    }

    #[test]
    fn a_url_is_taken_apart_or_refused() {
        for (text, expected) in [
            ("http://Images.Internal:9000/x/", Some(("images.internal", 9000, "images.internal:9000", false))),
            ("https://[::1]", Some(("::1", 443, "[::1]", true))),
            ("http://10.0.0.1", Some(("10.0.0.1", 80, "10.0.0.1", false))),
            ("HTTPS://a_b.example:8443", Some(("a_b.example", 8443, "a_b.example:8443", true))),
            ("ftp://a/", None),
            ("a:80", None),
            ("http://", None),
            ("http://a:0/", None),
            ("http://a:/", None),
            ("http://a:65536/", None),
            ("http://a:+80/", None),
            ("http://user:secret@a/", None),
            ("http://a/?q", None),
            ("http://a/#f", None),
            ("http://a/b c", None),
            ("http://a b/", None),
            ("http://[::1/", None),
            ("http://::1/", None),
        ] {
            let found = OriginUrl::parse(text).ok();
            let found = found.as_ref().map(|url| (url.host(), url.port(), url.authority(), url.tls()));
            assert_eq!(found, expected, "{text}");
        }
        let shown = OriginUrl::parse("http://user:secret@a/").unwrap_err().to_string();
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn fields_that_decide_framing_or_routing_cannot_be_set() {
        for name in ["Host", "content-length", "Transfer-Encoding", "connection", "Range", "If-None-Match", "a b", ""] {
            assert!(HeaderRules::new([(name.to_owned(), None)]).is_err(), "{name:?}");
        }
        assert!(HeaderRules::new([("X-Key".to_owned(), Some("a\r\nb: c".to_owned()))]).is_err());
        assert!(
            HeaderRules::new([("X-Key".to_owned(), Some("value".to_owned())), ("Referer".to_owned(), None)]).is_ok()
        );
    }
}
