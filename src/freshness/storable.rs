//! May a response be stored, and may those who wait for it share it (RFC 9111 section 3)?

use super::Freshness;
use super::dates::{format_http_date, parse_http_date};
use super::directives::{RequestDirectives, ResponseDirectives, Seconds};
use super::invalidation::{self, Target};
use super::rules::{Rules, SetCookie};
use crate::clock::Now;
use crate::fields::{FieldLines, Fields, is_token};

/// One request that went to the origin and the head that came back.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// The method sent; methods are case-sensitive.
    pub method: &'a str,
    /// What was asked for, as the origin saw it.
    pub target: Target<'a>,
    /// The fields sent to the origin, `Authorization` among them.
    pub sent: &'a Fields,
    /// The client's directives; the default when the rules do not honour them.
    pub directives: RequestDirectives,
    /// The status received. After a 304 that updated a stored response: the stored response's.
    pub status: u16,
    /// The fields received. After a 304: what [`updated_by_304`](super::updated_by_304) made of both.
    pub received: &'a Fields,
    /// Whether the caller can store and combine parts: without it a 206 is not stored.
    pub stores_parts: bool,
    /// When the request was sent.
    pub requested_at: Now,
    /// When the head was received.
    pub received_at: Now,
    /// A random number from 0 to 1, for the jitter of the lifetime.
    pub jitter: f64,
}

/// Everything that follows from an exchange, found in one go.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The directives in force; [`fields_to_store`] wants them.
    pub directives: ResponseDirectives,
    /// What an entry keeps.
    pub freshness: Freshness,
    /// Whether the response may be stored, or the reason why not.
    pub storable: Result<(), WhyNotStored>,
    /// Whether requests that were already waiting for this response may be answered with it.
    pub shareable: bool,
}

/// Why a response is not stored. The words are the same in counters, log, explain and `Cache-Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WhyNotStored {
    /// The method's responses are not cached; of POST only those with a lifetime and a `Content-Location` that names the
    /// target (RFC 9110 section 9.3.3).
    Method,
    /// Not a final status, or one that only explicit freshness makes cacheable (RFC 9110 section 15.1).
    Status,
    /// A part, and the caller cannot store parts.
    Partial,
    /// A 304 has to be combined with a stored response first.
    NotModified,
    /// `must-understand`, with a status that we do not know (section 5.2.2.3).
    MustUnderstand,
    /// A server error that is not fresh by its own account.
    ServerError,
    /// The request said `no-store` (section 5.2.1.5).
    RequestNoStore,
    /// The response said `no-store` (section 5.2.2.5).
    NoStore,
    /// The response said `private` (section 5.2.2.7).
    Private,
    /// The response sets a cookie, and the rules keep such responses private.
    SetCookie,
    /// `Vary: *`, or a `Vary` that cannot be read, matches no other request (section 4.1).
    VaryAny,
    /// The request carried `Authorization` and the response does not allow sharing (section 3.5).
    Authorization,
    /// Stale on arrival, and without a validator to refresh it by.
    NoFreshnessNorValidator,
}

impl WhyNotStored {
    /// Every reason, for counters.
    pub const ALL: [WhyNotStored; 13] = [
        WhyNotStored::Method,
        WhyNotStored::Status,
        WhyNotStored::Partial,
        WhyNotStored::NotModified,
        WhyNotStored::MustUnderstand,
        WhyNotStored::ServerError,
        WhyNotStored::RequestNoStore,
        WhyNotStored::NoStore,
        WhyNotStored::Private,
        WhyNotStored::SetCookie,
        WhyNotStored::VaryAny,
        WhyNotStored::Authorization,
        WhyNotStored::NoFreshnessNorValidator,
    ];

    /// The word for counters, log, explain and `Cache-Status`.
    pub fn word(self) -> &'static str {
        match self {
            WhyNotStored::Method => "method",
            WhyNotStored::Status => "status",
            WhyNotStored::Partial => "partial",
            WhyNotStored::NotModified => "not_modified",
            WhyNotStored::MustUnderstand => "must_understand",
            WhyNotStored::ServerError => "server_error",
            WhyNotStored::RequestNoStore => "request_no_store",
            WhyNotStored::NoStore => "no_store",
            WhyNotStored::Private => "private",
            WhyNotStored::SetCookie => "set_cookie",
            WhyNotStored::VaryAny => "vary_any",
            WhyNotStored::Authorization => "authorization",
            WhyNotStored::NoFreshnessNorValidator => "no_freshness_nor_validator",
        }
    }
}

/// Judges an exchange: directives, freshness, storing, sharing.
///
/// Sharing is for requests that came before the head did (RFC 9111 section 4: requests may be collapsed when the
/// response is storable). It needs no lifetime, so a response without one is shared though it is not stored. It is
/// refused where section 3 refuses storing, and for `no-cache`, which asks for a validation per request. Server errors
/// are shared as well, although only a lifetime would make them storable: else a failing origin would get the whole
/// queue of a key at once, for the same failure. A `HEAD` is shared where its `GET` would be: those who want the head are as
/// many, and what keeps it out of the store is that it has no body.
pub fn judge(rules: &Rules, exchange: &Exchange<'_>) -> Judgement {
    let directives = ResponseDirectives::parse(rules, exchange.received);
    let freshness = Freshness::new(rules, exchange, &directives);
    let storable = storable(rules, exchange, &directives, &freshness);
    let as_body = match exchange.method {
        "HEAD" => self::storable(rules, &Exchange { method: "GET", ..*exchange }, &directives, &freshness),
        _ => storable,
    };
    let shareable = !directives.no_cache
        && match as_body {
            Ok(()) | Err(WhyNotStored::NoFreshnessNorValidator) => true,
            Err(WhyNotStored::ServerError) => is_failure(exchange.status),
            Err(_) => false,
        };
    Judgement { directives, freshness, storable, shareable }
}

/// The conditions of RFC 9111 section 3, prohibitions first, so that the reason found is the one to act on.
pub fn storable(
    rules: &Rules,
    exchange: &Exchange<'_>,
    directives: &ResponseDirectives,
    freshness: &Freshness,
) -> Result<(), WhyNotStored> {
    let &Exchange { status, received, sent, .. } = exchange;
    let explicit = gives_lifetime(rules, exchange, directives);
    match exchange.method {
        "GET" => {}
        "POST" if explicit && invalidation::content_location_is_target(&exchange.target, received) => {}
        _ => return Err(WhyNotStored::Method),
    }
    match status {
        200..=205 | 207..=303 | 305..=599 => {}
        206 if exchange.stores_parts => {}
        206 => return Err(WhyNotStored::Partial),
        304 => return Err(WhyNotStored::NotModified),
        _ => return Err(WhyNotStored::Status),
    }
    // With must-understand, no-store is for caches that do not know must-understand (section 5.2.2.3).
    if directives.must_understand && !is_understood(status) {
        return Err(WhyNotStored::MustUnderstand);
    }
    if directives.no_store && !directives.must_understand {
        return Err(WhyNotStored::NoStore);
    }
    if exchange.directives.no_store {
        return Err(WhyNotStored::RequestNoStore);
    }
    if directives.private {
        return Err(WhyNotStored::Private);
    }
    if rules.set_cookie == SetCookie::Private && sets_cookie(directives, received) {
        return Err(WhyNotStored::SetCookie);
    }
    if !rules.ignore_vary && varies_on_everything(received) {
        return Err(WhyNotStored::VaryAny);
    }
    if sent.contains("authorization") && !directives.shared_despite_authorization {
        return Err(WhyNotStored::Authorization);
    }
    let configured = rules.negative_lifetime(status).is_some();
    if status >= 500 && freshness.remaining(exchange.received_at) <= 0 {
        return Err(WhyNotStored::ServerError);
    }
    if !explicit && !directives.public && !configured && !is_heuristically_cacheable(status) {
        return Err(WhyNotStored::Status);
    }
    let validator = received.contains("etag") || received.contains("last-modified");
    if !validator && !freshness.is_ever_useful(rules, exchange.received_at) {
        return Err(WhyNotStored::NoFreshnessNorValidator);
    }
    Ok(())
}

/// The fields of an entry: what was received without what must not be stored (RFC 9111 section 3.1), with a `Date`
/// (RFC 9110 section 6.6.1). `Age` is left out, because the answer gets its own.
///
/// Left out are the fields of this connection (RFC 9110 section 7.6.1), those that concern authentication at a proxy,
/// those named by `no-cache` and `private`, and cookies where the rules say so. The other readers of a flight get these
/// fields too; the request that caused the fill gets [`fields_for_causer`].
pub fn fields_to_store(rules: &Rules, directives: &ResponseDirectives, received: &Fields, received_at: Now) -> Fields {
    let nominated = if received.contains("connection") { nominated_by_connection(received) } else { Vec::new() };
    let has_date = has_received_date(received, received_at);
    let cookies = rules.set_cookie != SetCookie::Share;
    // Of most answers nothing is left out, and then nothing is copied.
    let named =
        !directives.no_cache_fields.is_empty() || !directives.private_fields.is_empty() || !nominated.is_empty();
    let has_any = |names: &[&str]| names.iter().any(|name| received.contains(name));
    let leaves_out = !has_date
        || named
        || received.contains("age")
        || has_any(&FOR_ONE_CONNECTION)
        || (cookies && has_any(&COOKIES));
    let kept = if leaves_out {
        let mut lower = String::new();
        received.without(|name| {
            lower.clear();
            lower.push_str(name);
            lower.make_ascii_lowercase();
            lower == "age"
                || (lower == "date" && !has_date)
                || is_for_one_connection(&lower, &nominated)
                || directives.no_cache_fields.contains(&lower)
                || directives.private_fields.contains(&lower)
                || (cookies && is_cookie(&lower))
        })
    } else {
        received.clone()
    };
    if has_date { kept } else { with_date(&kept, received_at) }
}

/// Whether the response says when it was made, as far as that can be read; if not, [`fields_to_store`] has a date of ours.
pub fn has_received_date(received: &Fields, received_at: Now) -> bool {
    received.contains("date") && has_date(received, received_at)
}

/// The fields for the request that caused the fill, where they are more than [`fields_to_store`] leaves: those that
/// `no-cache` and `private` name are in its own answer, which needs no validation and is for nobody else (sections 5.2.2.4
/// and 5.2.2.7), and fields are forwarded where nothing says otherwise (RFC 9110 section 5.1). `None`: there are none.
pub fn fields_for_causer(
    rules: &Rules,
    directives: &ResponseDirectives,
    received: &Fields,
    received_at: Now,
) -> Option<Fields> {
    let named = |name: &str| {
        let mut names = directives.no_cache_fields.iter().chain(&directives.private_fields);
        names.any(|named| named.eq_ignore_ascii_case(name))
    };
    let names_none = directives.no_cache_fields.is_empty() && directives.private_fields.is_empty();
    if names_none || !received.iter().any(|(name, _)| named(name)) {
        return None;
    }
    let unnamed = ResponseDirectives { no_cache_fields: Vec::new(), private_fields: Vec::new(), ..directives.clone() };
    let set_cookie = match rules.set_cookie {
        SetCookie::Strip => SetCookie::Strip,
        SetCookie::Private | SetCookie::Share => SetCookie::Share,
    };
    Some(fields_to_store(&Rules { set_cookie, ..rules.clone() }, &unnamed, received, received_at))
}

/// Statuses that RFC 9110 section 15.1 allows to be cached without explicit freshness.
pub fn is_heuristically_cacheable(status: u16) -> bool {
    matches!(status, 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Answers of an origin in whose place a stale one may be used (RFC 5861 section 4).
pub fn is_failure(status: u16) -> bool {
    matches!(status, 500 | 502 | 503 | 504)
}

/// Final statuses whose definition (RFC 9110 section 15, RFC 6585, RFC 7725, RFC 8470) we know and, as far as it says
/// anything about caching, follow.
fn is_understood(status: u16) -> bool {
    matches!(status, 200..=206 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421 | 422 | 425 | 426 | 428 | 429 | 431 | 451
        | 500..=505 | 511)
}

/// Whether the response gives a lifetime of its own that can be read. A bad one makes a response stale; it does not make
/// a response cacheable that would not be without it.
fn gives_lifetime(rules: &Rules, exchange: &Exchange<'_>, directives: &ResponseDirectives) -> bool {
    let given = |seconds| matches!(seconds, Seconds::Given(_));
    if directives.has_lifetime() || directives.found_in == super::FoundIn::Targeted {
        return given(directives.max_age) || given(directives.s_maxage);
    }
    let now = exchange.received_at.wall_seconds;
    !rules.ignore_expires && exchange.received.get_all("expires").any(|date| parse_http_date(date, now).is_some())
}

fn sets_cookie(directives: &ResponseDirectives, received: &Fields) -> bool {
    COOKIES.iter().any(|name| received.contains(name))
        && received.lines().any(|(line, _)| {
            let cookie = COOKIES.iter().find(|name| line.eq_ignore_ascii_case(name.as_bytes()));
            cookie.is_some_and(|name| {
                let mut listed = directives.private_fields.iter().chain(&directives.no_cache_fields);
                !listed.any(|listed| listed == name)
            })
        })
}

/// The fields that set cookies, lower case.
const COOKIES: [&str; 2] = ["set-cookie", "set-cookie2"];

pub(super) fn is_cookie(name: &str) -> bool {
    COOKIES.contains(&name)
}

/// Whether `Vary` has a star, or a member that is no field name: then nobody knows what it asks to be compared.
fn varies_on_everything(received: &Fields) -> bool {
    let members = received.get_all("vary").flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    members.filter(|member| !member.is_empty()).any(|member| member == b"*" || !is_token(member))
}

/// Names in `Connection`, lower case. Fields for every recipient must not be named there (RFC 9110 section 7.6.1); one
/// that is essential stays, or the name of a field would be a way to lose its restrictions.
pub fn nominated_by_connection(received: &FieldLines) -> Vec<String> {
    received
        .get_all("connection")
        .flat_map(|line| line.split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .filter(|name| !is_essential(name))
        .collect()
}

/// Whether the field with this lower-case name stays with its connection or with a proxy on the way (RFC 9111 section
/// 3.1). Trailer sections are not stored, so their announcement is not either.
pub fn is_for_one_connection(name: &str, nominated: &[String]) -> bool {
    FOR_ONE_CONNECTION.contains(&name) || nominated.iter().any(|nominated| nominated == name)
}

const FOR_ONE_CONNECTION: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Fields without which a stored response cannot be used rightly; lower-case name.
pub(super) fn is_essential(name: &str) -> bool {
    matches!(
        name,
        "cache-control"
            | "cdn-cache-control"
            | "groupcache-proxy-cache-control"
            | "surrogate-control"
            | "expires"
            | "pragma"
            | "vary"
            | "date"
            | "age"
            | "content-type"
            | "content-encoding"
            | "content-length"
            | "content-range"
    )
}

pub(super) fn has_date(fields: &FieldLines, now: Now) -> bool {
    fields.get_all("date").any(|text| parse_http_date(text, now.wall_seconds).is_some())
}

/// Adds the time of receipt as `Date` (RFC 9110 section 6.6.1).
pub(super) fn with_date(fields: &FieldLines, received_at: Now) -> Fields {
    let mut builder = fields.to_builder();
    let added = builder.push(b"Date", format_http_date(received_at.wall_seconds).as_bytes());
    debug_assert!(added.is_ok(), "a date is a field value");
    builder.finish()
}
