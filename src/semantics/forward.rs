//! Which header fields of a client's request the origin gets on a fill.
//!
//! A fill is a new request: it has the fields chosen here and those of the proxy, and nothing else of the client's.
//! Since variants are told apart by what is sent (see [`super::variant`]), a field that is not forwarded cannot tear
//! the cache apart, nor can one client's field poison the answer for others.

use std::borrow::Cow;

use super::{list_members, split_outside_quotes};
use crate::fields::{Fields, FieldsBuilder};

/// What a group forwards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardPolicy {
    /// Which fields besides the two below.
    pub headers: RequestHeaders,
    /// How the safe fields are folded.
    pub folding: Folding,
}

/// Which fields of a request reach the origin on a fill (`request_headers`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RequestHeaders {
    /// `Accept`, `Accept-Encoding` and `Accept-Language`, folded.
    #[default]
    Safe,
    /// All end-to-end fields as they came, none folded: the transparent cache.
    All,
    /// The safe ones and these, in any case, as they came. A safe one that is named here is not folded.
    Named(Vec<String>),
}

/// What is kept apart of the safe fields (`variants`); the rest is folded together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folding {
    /// Codings told apart, in lower case, most wanted first.
    pub accept_encoding: Vec<String>,
    /// Media types told apart, in lower case, most wanted first.
    pub accept: Vec<String>,
}

/// Fields of this one request that are forwarded whatever the policy says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Whether `Authorization` goes along; such a request never shares a flight.
    pub authorization: bool,
    /// Whether `Cookie` goes along.
    pub cookies: bool,
}

impl ForwardPolicy {
    /// Whether the field `name` of a client reaches the origin, where nothing else forbids it.
    pub fn forwards(&self, name: &str) -> bool {
        match &self.headers {
            RequestHeaders::Safe => false,
            RequestHeaders::All => !ABOUT_THE_CLIENT.iter().any(|about| about.eq_ignore_ascii_case(name)),
            RequestHeaders::Named(names) => names.iter().any(|named| named.eq_ignore_ascii_case(name)),
        }
    }

    /// The client's fields for the origin, in a fixed order for the folded ones.
    ///
    /// Never among them: fields of the connection and those that `Connection` names (RFC 9110 section 7.6.1), `Host`,
    /// framing, `Expect`, conditions and ranges, which the fill sets itself; `Authorization` and `Cookie` only as
    /// `credentials` says, even if they are named in the policy.
    pub fn forwarded(&self, client: &Fields, credentials: Credentials) -> Fields {
        let dropped_by_client: Vec<&[u8]> = client.get_all("connection").flat_map(list_members).collect();
        let may_go = |name: &str| {
            !is_of_connection_or_fill(name)
                && !dropped_by_client.iter().any(|dropped| dropped.eq_ignore_ascii_case(name.as_bytes()))
        };
        let is_wanted = |name: &str| {
            if name.eq_ignore_ascii_case("authorization") {
                return credentials.authorization;
            }
            if name.eq_ignore_ascii_case("cookie") {
                return credentials.cookies;
            }
            self.forwards(name)
        };
        let mut builder = FieldsBuilder::with_capacity(128);
        if self.headers != RequestHeaders::All {
            self.folding.write(client, |name| may_go(name) && !is_wanted(name), &mut builder);
        }
        for (name, value) in client.iter().filter(|(name, _)| is_wanted(name) && may_go(name)) {
            push(&mut builder, name, value);
        }
        builder.finish()
    }
}

impl Folding {
    /// The safe fields of a request, folded:
    /// - `Accept`: the media types of the list which the client names itself (ranges like `image/*` are sent by clients
    ///   that cannot show everything below them), then `*/*`; just `*/*` if there are none;
    /// - `Accept-Encoding`: the codings of the list which the client accepts; not sent if there are none;
    /// - `Accept-Language`: as it came, its lines joined; [`super::variant`] evens out its spellings.
    pub fn fold(&self, client: &Fields) -> Fields {
        let mut builder = FieldsBuilder::with_capacity(128);
        self.write(client, |_| true, &mut builder);
        builder.finish()
    }

    fn write(&self, client: &Fields, is_folded: impl Fn(&str) -> bool, builder: &mut FieldsBuilder) {
        if is_folded("accept") {
            let named = Preferences { client, name: "accept" };
            let mut value = String::with_capacity(48);
            for media_type in self.accept.iter().filter(|media_type| named.explicitly_accepts(media_type)) {
                value.push_str(media_type);
                value.push(',');
            }
            value.push_str("*/*");
            push(builder, "Accept", value.as_bytes());
        }
        if is_folded("accept-encoding") {
            let preferences = Preferences { client, name: "accept-encoding" };
            let mut value = String::new();
            for coding in self.accept_encoding.iter().filter(|coding| preferences.accepts_coding(coding)) {
                if !value.is_empty() {
                    value.push_str(", ");
                }
                value.push_str(coding);
            }
            if !value.is_empty() {
                push(builder, "Accept-Encoding", value.as_bytes());
            }
        }
        if is_folded("accept-language") && client.contains("accept-language") {
            let lines: Vec<&[u8]> = client.get_all("accept-language").filter(|line| !line.is_empty()).collect();
            let value = match lines[..] {
                [only] => Cow::Borrowed(only),
                _ => Cow::Owned(lines.join(&b", "[..])),
            };
            push(builder, "Accept-Language", &value);
        }
    }
}

/// Adds what came from a valid block or from the checked configuration.
fn push(builder: &mut FieldsBuilder, name: &str, value: &[u8]) {
    let pushed = builder.push(name.as_bytes(), value);
    debug_assert!(pushed.is_ok(), "{name} cannot stand in a header");
}

/// A field with preferences of one request. It is read once for each name asked about, which for a handful of names is
/// cheaper than keeping its members.
struct Preferences<'a> {
    client: &'a Fields,
    name: &'a str,
}

impl Preferences<'_> {
    /// Whether the client names `wanted` and never with weight zero.
    fn explicitly_accepts(&self, wanted: &str) -> bool {
        self.opinion_on(&[wanted]) == Some(true)
    }

    /// Whether the client takes a coding, by name or by `*` (RFC 9110 section 12.5.3).
    fn accepts_coding(&self, coding: &str) -> bool {
        // Two codings have an older name (RFC 9110 sections 8.4.1.1 and 8.4.1.3).
        let named = match coding {
            "gzip" => self.opinion_on(&["gzip", "x-gzip"]),
            "compress" => self.opinion_on(&["compress", "x-compress"]),
            _ => self.opinion_on(&[coding]),
        };
        named.or_else(|| self.opinion_on(&["*"])).unwrap_or(false)
    }

    /// Whether the client accepts what has these names; `None` if it names none, no if it does not accept one of them.
    fn opinion_on(&self, names: &[&str]) -> Option<bool> {
        self.client
            .get_all(self.name)
            .flat_map(list_members)
            .filter_map(preference)
            .filter(|(name, _)| names.iter().any(|wanted| name.eq_ignore_ascii_case(wanted.as_bytes())))
            .map(|(_, accepted)| accepted)
            .reduce(|first, second| first && second)
    }
}

/// Name and acceptance of one member; `None` if parameters other than the weight make it something else. A weight that
/// cannot be read counts as zero: nobody is sent what he may not understand.
fn preference(member: &[u8]) -> Option<(&[u8], bool)> {
    let mut pieces = split_outside_quotes(member, b';').map(<[u8]>::trim_ascii);
    let name = pieces.next()?;
    let mut accepted = true;
    for parameter in pieces.filter(|parameter| !parameter.is_empty()) {
        match parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q=")) {
            Some(weight) => accepted &= is_weight_above_zero(weight),
            None => return None,
        }
    }
    Some((name, accepted))
}

/// `qvalue` of RFC 9110 section 12.4.2.
fn is_weight_above_zero(weight: &[u8]) -> bool {
    let (whole, fraction) = match weight {
        [whole @ (b'0' | b'1')] => (*whole, &[][..]),
        [whole @ (b'0' | b'1'), b'.', fraction @ ..] if fraction.len() <= 3 => (*whole, fraction),
        _ => return false,
    };
    if whole == b'1' {
        return fraction.iter().all(|&digit| digit == b'0');
    }
    fraction.iter().all(u8::is_ascii_digit) && fraction.iter().any(|&digit| digit != b'0')
}

/// Whether a field belongs to one connection (RFC 9110 section 7.6.1), or is set by the fill itself.
pub fn is_of_connection_or_fill(name: &str) -> bool {
    NEVER_FORWARDED.iter().any(|never| name.eq_ignore_ascii_case(never))
}

const NEVER_FORWARDED: [&str; 21] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "surrogate-capability",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What names the client or the site. It is no part of the key, so with `all` one client could choose it for everybody; only
/// who names such a field gets it.
const ABOUT_THE_CLIENT: [&str; 5] =
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"];

/// Fields of an origin that are for caches and stay inside, and those that the writer sets itself; they are left out when
/// an entry or a head is made.
pub fn stays_inside(name: &str) -> bool {
    INSIDE.iter().any(|inside| name.eq_ignore_ascii_case(inside))
}

const INSIDE: [&str; 6] = ["surrogate-key", "cache-tag", "xkey", "surrogate-control", "content-length", "age"];

/// The fields without those that [`stays_inside`]; copied only if there is one.
pub fn without_inside(fields: Fields) -> Fields {
    if INSIDE.iter().any(|name| fields.contains(name)) { fields.without(stays_inside) } else { fields }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn folding() -> Folding {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Folding { accept_encoding: list(&["br", "gzip"]), accept: list(&["image/avif", "image/webp"]) }
    }

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        Fields::from_pairs(pairs.iter().copied()).unwrap()
    }

    fn folded(name: &str, lines: &[&str]) -> Option<String> {
        let client = Fields::from_pairs(lines.iter().map(|line| (name, line))).unwrap();
        folding().fold(&client).get_str(name).map(str::to_owned)
    }

    #[test]
    fn what_names_the_client_or_the_site_stays_here() {
        let client = Fields::from_pairs([
            ("X-Forwarded-Host", "evil.example"),
            ("x-forwarded-for", "192.0.2.1"),
            ("X-Forwarded-Proto", "https"),
            ("Forwarded", "host=evil.example"),
            ("X-Real-IP", "192.0.2.1"),
            ("X-Kept", "1"),
        ])
        .unwrap();
        let policy = ForwardPolicy { headers: RequestHeaders::All, ..ForwardPolicy::default() };
        let forwarded = policy.forwarded(&client, Credentials::default());
        assert_eq!(forwarded.as_bytes().as_ref(), b"X-Kept: 1\r\n");
    }

    #[test]
    fn codings_are_folded_to_those_told_apart() {
        for (lines, expected) in [
            (&[][..], None),
            (&[""], None),
            (&["identity"], None),
            (&["deflate, zstd"], None),
            (&["gzip"], Some("gzip")),
            (&["gzip, deflate, br"], Some("br, gzip")),
            (&["br;q=0.1, gzip;q=1.0"], Some("br, gzip")),
            (&["gzip", "br"], Some("br, gzip")),
            (&["GZIP"], Some("gzip")),
            (&["x-gzip"], Some("gzip")),
            (&["*"], Some("br, gzip")),
            (&["*;q=0"], None),
            (&["*, br;q=0"], Some("gzip")),
            (&["br, *;q=0"], Some("br")),
            (&["gzip;q=0"], None),
            (&["gzip;q=0.000, br"], Some("br")),
            (&["gzip; Q=0.001 , br ;q=0."], Some("gzip")),
            (&["gzip, gzip;q=0"], None),
            (&["gzip;q=2"], None),
            (&["gzip;q=0.0001"], None),
            (&["gzip;q=1.001"], None),
            (&["gzip;q="], None),
            (&["gzip;q=high"], None),
            (&["gzip;level=9"], None),
            (&["gzip;"], Some("gzip")),
            (&["not a coding, gzip"], Some("gzip")),
        ] {
            assert_eq!(folded("Accept-Encoding", lines).as_deref(), expected, "{lines:?}");
        }
    }

    #[test]
    fn media_types_are_folded_to_those_told_apart() {
        for (lines, expected) in [
            (&[][..], "*/*"),
            (&["*/*"], "*/*"),
            (&["image/*"], "*/*"),
            (&["text/html"], "*/*"),
            (&["image/webp"], "image/webp,*/*"),
            (&["image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"], "image/avif,image/webp,*/*"),
            (&["image/webp", "Image/AVIF;q=0.5"], "image/avif,image/webp,*/*"),
            (&["image/avif;q=0,image/webp"], "image/webp,*/*"),
            (&["image/webp;depth=8"], "*/*"),
            (&["text/html;a=\"image/webp,image/webp\""], "*/*"),
        ] {
            assert_eq!(folded("Accept", lines).as_deref(), Some(expected), "{lines:?}");
        }
    }

    #[test]
    fn languages_stay_as_they_came() {
        assert_eq!(folded("Accept-Language", &["de-CH, en;q=0.5"]).as_deref(), Some("de-CH, en;q=0.5"));
        assert_eq!(folded("Accept-Language", &["de", "", "en"]).as_deref(), Some("de, en"));
        assert_eq!(folded("Accept-Language", &[]), None);
    }

    #[test]
    fn each_policy_on_one_request() {
        let client = fields(&[
            ("Host", "example.com"),
            ("Accept", "image/webp, text/html"),
            ("accept-encoding", "gzip"),
            ("Accept-Language", "de"),
            ("User-Agent", "x"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("X-Hop", "1"),
            ("Connection", "close, X-HOP"),
            ("Keep-Alive", "1"),
            ("TE", "trailers"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", "5"),
            ("Upgrade", "h2c"),
            ("Expect", "100-continue"),
            ("Proxy-Authorization", "Basic x"),
            ("If-None-Match", "\"a\""),
            ("If-Range", "\"a\""),
            ("Range", "bytes=0-"),
            ("Authorization", "Bearer x"),
            ("Cookie", "a=b"),
        ]);
        let show = |headers: RequestHeaders, authorization, cookies| {
            let policy = ForwardPolicy { headers, folding: folding() };
            let sent = policy.forwarded(&client, Credentials { authorization, cookies });
            sent.iter()
                .map(|(name, value)| format!("{name}={}", std::str::from_utf8(value).unwrap()))
                .collect::<Vec<_>>()
                .join("|")
        };
        let named = |names: &[&str]| RequestHeaders::Named(names.iter().map(|&name| name.to_owned()).collect());
        let safe = "Accept=image/webp,*/*|Accept-Encoding=gzip|Accept-Language=de";
        assert_eq!(show(RequestHeaders::Safe, false, false), safe);
        assert_eq!(show(RequestHeaders::Safe, true, true), format!("{safe}|Authorization=Bearer x|Cookie=a=b"));
        assert_eq!(
            show(RequestHeaders::All, false, false),
            "Accept=image/webp, text/html|accept-encoding=gzip|Accept-Language=de|User-Agent=x"
        );
        assert_eq!(
            show(named(&["user-agent", "x-hop", "cookie", "host", "range"]), false, false),
            format!("{safe}|User-Agent=x")
        );
        assert_eq!(
            show(named(&["accept"]), false, false),
            "Accept-Encoding=gzip|Accept-Language=de|Accept=image/webp, text/html"
        );
    }

    #[test]
    fn a_safe_field_that_belongs_to_the_connection_is_not_sent() {
        let client = fields(&[("Connection", "accept-encoding"), ("Accept-Encoding", "gzip")]);
        let policy = ForwardPolicy { headers: RequestHeaders::Safe, folding: folding() };
        let sent = policy.forwarded(&client, Credentials::default());
        assert_eq!(sent, fields(&[("Accept", "*/*")]));
    }

    proptest! {
        /// At most 2^2 values of Accept and 2^2 of Accept-Encoding reach the origin, and folding them again changes
        /// nothing.
        #[test]
        fn folding_is_bounded_and_final(
            accept in "((image/(avif|webp|\\*)|\\*/\\*|text/html)(;q=(0|1|0\\.5|x))?,){0,4}",
            coding in "((gzip|br|x-gzip|\\*|identity)(;q=(0|1|0\\.5|x))?,){0,4}",
        ) {
            let once = folding().fold(&fields(&[("Accept", &accept), ("Accept-Encoding", &coding)]));
            let types = ["*/*", "image/avif,*/*", "image/webp,*/*", "image/avif,image/webp,*/*"];
            prop_assert!(types.contains(&once.get_str("accept").unwrap()));
            prop_assert!([None, Some("br"), Some("gzip"), Some("br, gzip")].contains(&once.get_str("accept-encoding")));
            prop_assert_eq!(folding().fold(&once), once);
        }

        #[test]
        fn no_bytes_upset_folding(accept in prop::collection::vec(0x20u8..0x7f, 0..40)) {
            let names = ["Accept", "Accept-Encoding", "Connection"];
            let client = Fields::from_pairs(names.map(|name| (name, &accept))).unwrap();
            let named = RequestHeaders::Named(vec!["accept".to_owned()]);
            for headers in [RequestHeaders::Safe, RequestHeaders::All, named] {
                ForwardPolicy { headers, folding: folding() }.forwarded(&client, Credentials::default());
            }
        }
    }
}
