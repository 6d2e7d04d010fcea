//! How old a response is when it arrives, and how long it is fresh (RFC 9111 sections 4.2.1 to 4.2.3).

use std::time::Duration;

use super::dates::parse_http_date;
use super::directives::{FoundIn, ResponseDirectives, Seconds};
use super::rules::Rules;
use super::storable::{Exchange, is_heuristically_cacheable};

/// How a lifetime was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum LifetimeSource {
    /// Nobody gave one: zero.
    #[default]
    None = 0,
    /// A targeted field (RFC 9213).
    Targeted = 1,
    /// `s-maxage`.
    SharedMaxAge = 2,
    /// `max-age`.
    MaxAge = 3,
    /// `Expires`.
    Expires = 4,
    /// A tenth of the time since `Last-Modified` (RFC 9111 section 4.2.2).
    Heuristic = 5,
    /// The configured default.
    Default = 6,
    /// The configured lifetime of this status.
    Negative = 7,
    /// Set by us, not by a response: an answer of our own, a file, a value from a peer without metadata.
    Ours = 8,
}

impl LifetimeSource {
    /// The word for explain and the log.
    pub fn word(self) -> &'static str {
        match self {
            LifetimeSource::None => "none",
            LifetimeSource::Targeted => "targeted",
            LifetimeSource::SharedMaxAge => "s-maxage",
            LifetimeSource::MaxAge => "max-age",
            LifetimeSource::Expires => "expires",
            LifetimeSource::Heuristic => "heuristic",
            LifetimeSource::Default => "default",
            LifetimeSource::Negative => "negative",
            LifetimeSource::Ours => "ours",
        }
    }

    /// The number for the wire between peers.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The source with this number; an unknown one is [`LifetimeSource::None`].
    pub fn from_code(code: u8) -> Self {
        use LifetimeSource::*;
        [None, Targeted, SharedMaxAge, MaxAge, Expires, Heuristic, Default, Negative, Ours]
            .get(usize::from(code))
            .copied()
            .unwrap_or(None)
    }

    /// Whether the origin itself gave the lifetime.
    pub fn is_explicit(self) -> bool {
        use LifetimeSource::*;
        matches!(self, Targeted | SharedMaxAge | MaxAge | Expires)
    }
}

/// How long the response is fresh, counted from age zero and before jitter, and how that was found.
pub(super) fn lifetime(
    rules: &Rules,
    exchange: &Exchange<'_>,
    directives: &ResponseDirectives,
) -> (Duration, LifetimeSource) {
    let (lifetime, source) =
        explicit(rules, exchange, directives).unwrap_or_else(|| guessed(rules, exchange, directives));
    (lifetime.min(rules.lifetime_max), source)
}

/// RFC 9111 section 4.2.1, in its order: s-maxage, max-age, Expires.
fn explicit(
    rules: &Rules,
    exchange: &Exchange<'_>,
    directives: &ResponseDirectives,
) -> Option<(Duration, LifetimeSource)> {
    let source = |source| if directives.found_in == FoundIn::Targeted { LifetimeSource::Targeted } else { source };
    let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
    if let Some(shared_max_age) = directives.s_maxage.or_zero() {
        return Some((seconds(shared_max_age), source(LifetimeSource::SharedMaxAge)));
    }
    if let Some(max_age) = directives.max_age.or_zero() {
        return Some((seconds(max_age), source(LifetimeSource::MaxAge)));
    }
    if directives.found_in == FoundIn::Targeted || rules.ignore_expires {
        return None;
    }
    let now = exchange.received_at.wall_seconds;
    // Of several dates the one that makes the response older counts, and an invalid one is in the past (section 5.3).
    let expires =
        exchange.received.get_all("expires").map(|text| parse_http_date(text, now).unwrap_or(i64::MIN)).min()?;
    let date = dates(exchange).max().unwrap_or(now);
    let lifetime = u64::try_from(expires.saturating_sub(date)).unwrap_or(0);
    Some((Duration::from_secs(lifetime), LifetimeSource::Expires))
}

/// What applies when the origin gives no lifetime: the configured one of this status, a guess, the default.
fn guessed(rules: &Rules, exchange: &Exchange<'_>, directives: &ResponseDirectives) -> (Duration, LifetimeSource) {
    if let Some(negative) = rules.negative_lifetime(exchange.status) {
        return (negative, LifetimeSource::Negative);
    }
    // Section 4.2.2: only for statuses that are defined so, or where the response says it may be cached.
    if !is_heuristically_cacheable(exchange.status) && !directives.public {
        return (Duration::ZERO, LifetimeSource::None);
    }
    if let Some(lifetime) = heuristic(rules, exchange) {
        return (lifetime, LifetimeSource::Heuristic);
    }
    if rules.default_lifetime > Duration::ZERO && (exchange.status < 400 || directives.public) {
        return (rules.default_lifetime, LifetimeSource::Default);
    }
    (Duration::ZERO, LifetimeSource::None)
}

/// A tenth of the time between `Last-Modified` and `Date` (section 4.2.2).
fn heuristic(rules: &Rules, exchange: &Exchange<'_>) -> Option<Duration> {
    let now = exchange.received_at.wall_seconds;
    let modified = exchange
        .received
        .get_all("last-modified")
        .map(|text| parse_http_date(text, now))
        // One that is no date, or several, leave nothing to guess from but the latest.
        .try_fold(None, |latest: Option<i64>, date| {
            date.map(|date| Some(latest.map_or(date, |known| known.max(date))))
        })??;
    let date = dates(exchange).min().unwrap_or(now);
    let since = u64::try_from(date.saturating_sub(modified)).ok().filter(|since| *since > 0)?;
    let lifetime = Duration::from_millis(since.saturating_mul(100)).min(rules.heuristic_max);
    (lifetime > Duration::ZERO).then_some(lifetime)
}

/// `corrected_initial_age` of section 4.2.3, in its conservative form. The delay of the answer is measured on the
/// monotonic clock; only `Date`, which the origin's clock wrote, is compared with the wall clock.
pub(super) fn initial_age(exchange: &Exchange<'_>) -> Duration {
    let now = exchange.received_at.wall_seconds;
    let apparent = dates(exchange).min().map_or(0, |date| u64::try_from(now.saturating_sub(date)).unwrap_or(0));
    let delay = exchange.received_at.monotonic.saturating_sub(exchange.requested_at.monotonic);
    let corrected = Duration::from_secs(u64::from(age_value(exchange))).saturating_add(delay);
    corrected.max(Duration::from_secs(apparent))
}

/// The `Age` field: of a list the first member counts, an invalid one is ignored (section 5.1). A number with
/// parameters behind it is taken for the number: that is the older reading.
fn age_value(exchange: &Exchange<'_>) -> u32 {
    let Some(line) = exchange.received.get_all("age").find(|line| !line.is_empty()) else { return 0 };
    let first = line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).find(|member| !member.is_empty());
    let number = first.and_then(|member| member.split(|byte| *byte == b';').next()).unwrap_or_default();
    match Seconds::from_digits(number.trim_ascii()) {
        Seconds::Given(seconds) => seconds,
        Seconds::Absent | Seconds::Invalid => 0,
    }
}

/// The valid values of `Date`; there should be one.
fn dates<'a>(exchange: &'a Exchange<'_>) -> impl Iterator<Item = i64> + 'a {
    let now = exchange.received_at.wall_seconds;
    exchange.received.get_all("date").filter_map(move |text| parse_http_date(text, now))
}
