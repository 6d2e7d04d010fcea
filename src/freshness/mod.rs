//! HTTP caching (RFC 9111) as pure functions of header fields, rules and the time.
//!
//! In the order of use: [`RequestDirectives`] says what a client wants; [`judge`] says of a response whether it may be
//! stored and shared, and makes its [`Freshness`]; [`fields_to_store`] says what of it; [`Freshness::verdict`] says for
//! each later request whether the entry answers it. [`updated_by_304`] and [`updated_by_head`] refresh an entry,
//! [`invalidated_by`] names the entries that an unsafe request makes invalid.
//!
//! Everything that is read from fields is read once, when the entry is made: the verdict on a hit compares integers.
//! Section numbers without another document are those of RFC 9111.

mod dates;
mod directives;
mod invalidation;
mod lifetime;
mod rules;
mod storable;
mod targeted;
#[cfg(test)]
mod tests;
mod update;

use std::time::Duration;

pub use dates::{format_http_date, parse_http_date};
pub use directives::{FoundIn, MaxStale, RequestDirectives, ResponseDirectives, SECONDS_MAX, Seconds, may_name_fields};
pub use invalidation::{Target, content_location_is_target, invalidated_by, is_safe};
pub use lifetime::LifetimeSource;
pub use rules::{Rules, SetCookie};
pub use storable::{
    Exchange, Judgement, WhyNotStored, fields_for_causer, fields_to_store, has_received_date, is_failure,
    is_for_one_connection, is_heuristically_cacheable, judge, nominated_by_connection, storable,
};
pub use targeted::{SURROGATE_CAPABILITY, SURROGATE_DEVICE};
pub use update::{HeadEffect, selected_by_304, updated_by_304, updated_by_head};

use crate::clock::Now;

/// What an entry knows about its freshness.
///
/// Times are milliseconds of the monotonic clock of this process, so that no change of the system's clock reaches them.
/// To other nodes it travels as [`HopFreshness`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// Milliseconds in the upper 48 bits, what is said in words in the lower 16.
    received_and_words: u64,
    initial_age_milliseconds: u64,
    /// Counted from age zero; already shortened by `max` and jitter.
    lifetime_milliseconds: u64,
    stale_while_revalidate: MaybeSeconds,
    stale_if_error: MaybeSeconds,
}

const _: () = assert!(size_of::<Freshness>() == 32, "every entry has this");

/// What [`Freshness`] knows that is neither a time nor a number, in [`WORD_BITS`] bits.
#[derive(Clone, Copy, Debug)]
struct Words {
    source: LifetimeSource,
    stale: StalePermission,
    no_cache: bool,
    immutable: bool,
    copy: Copied,
}

/// Seconds that may not be said, in four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MaybeSeconds(u32);

impl MaybeSeconds {
    const NONE: MaybeSeconds = MaybeSeconds(u32::MAX);

    fn of(seconds: Option<u32>) -> Self {
        // A second less than 136 years is said as well as 136 years are.
        seconds.map_or(MaybeSeconds::NONE, |seconds| MaybeSeconds(seconds.min(u32::MAX - 1)))
    }

    fn get(self) -> Option<u32> {
        (self != MaybeSeconds::NONE).then_some(self.0)
    }
}

/// Whether an entry may be used when it is stale (section 4.2.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StalePermission {
    /// As the response, the rules and the client say.
    #[default]
    Free,
    /// Only as far as the response itself says: `s-maxage` forbids it (section 5.2.2.10), but an RFC 5861 directive beside
    /// it is the origin's own, more specific word. The same holds of server errors.
    OnlyByResponse,
    /// Never: `must-revalidate` or `proxy-revalidate` (sections 5.2.2.2 and 5.2.2.8).
    Never,
}

/// Whether an entry is the owner's or a copy of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copied {
    /// The owner's entry, or one that nobody else has.
    #[default]
    No,
    /// A hot copy at a node that is not the owner. When it is stale the owner is asked, and only if that fails does
    /// stale-if-error apply: it grants neither stale-while-revalidate nor `max-stale`.
    Hot,
}

/// Freshness on its way to another node: ages and remaining times, never instants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HopFreshness {
    /// Age when this was made.
    pub age_milliseconds: u64,
    /// Time until it is stale; negative since when it is.
    pub remaining_milliseconds: i64,
    /// The response's own `stale-while-revalidate`, in seconds.
    pub stale_while_revalidate: Option<u32>,
    /// The response's own `stale-if-error`, in seconds.
    pub stale_if_error: Option<u32>,
    /// How the lifetime was found.
    pub source: LifetimeSource,
    /// See [`StalePermission`].
    pub stale: StalePermission,
    /// Every use needs a validation.
    pub no_cache: bool,
    /// RFC 8246.
    pub immutable: bool,
}

/// Whether an entry answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Fresh,
    /// It does, and is refreshed behind the answer (RFC 5861 section 3).
    StaleWhileRevalidate,
    /// It does, because the client accepts it as stale as it is (`max-stale`, section 5.2.1.2).
    StaleAccepted,
    /// The origin, or the owner, has to be asked first.
    Revalidate {
        /// What for.
        reason: Reason,
        /// The entry may answer if the origin cannot be reached or fails (RFC 5861 section 4, [`is_failure`]).
        if_error: bool,
        /// The entry may answer if the origin has been silent for this long.
        if_slow: Option<Duration>,
    },
}

/// Why an entry does not answer without being validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is stale.
    Stale,
    /// Its origin said `no-cache` (section 5.2.2.4).
    NoCache,
    /// It is fresh, and the client said `no-cache` (section 5.2.1.4).
    RequestNoCache,
    /// It is fresh, and older than the client's `max-age` (section 5.2.1.1).
    RequestMaxAge,
    /// It is fresh, but not for as long as the client's `min-fresh` (section 5.2.1.3).
    RequestMinFresh,
}

impl Reason {
    /// Whether `Cache-Status` says `fwd=request` instead of `fwd=stale` (RFC 9211 section 2.2).
    pub fn is_by_request(self) -> bool {
        matches!(self, Reason::RequestNoCache | Reason::RequestMaxAge | Reason::RequestMinFresh)
    }
}

impl Freshness {
    /// The freshness of a response that has just arrived.
    pub fn new(rules: &Rules, exchange: &Exchange<'_>, directives: &ResponseDirectives) -> Self {
        let initial_age_milliseconds = milliseconds(lifetime::initial_age(exchange));
        let (lifetime, source) = lifetime::lifetime(rules, exchange, directives);
        let lifetime_milliseconds =
            jittered(milliseconds(lifetime), initial_age_milliseconds, rules.jitter_percent, exchange.jitter);
        let stale = if directives.must_revalidate || directives.proxy_revalidate {
            StalePermission::Never
        } else if directives.s_maxage != Seconds::Absent || exchange.status >= 500 {
            StalePermission::OnlyByResponse
        } else {
            StalePermission::Free
        };
        let (no_cache, immutable) = (directives.no_cache, directives.immutable);
        let words = Words { source, stale, no_cache, immutable, copy: Copied::No };
        Freshness {
            received_and_words: received_and(exchange.received_at, words),
            initial_age_milliseconds,
            lifetime_milliseconds,
            stale_while_revalidate: MaybeSeconds::of(directives.stale_while_revalidate.or_zero()),
            stale_if_error: MaybeSeconds::of(directives.stale_if_error.or_zero()),
        }
    }

    /// The freshness of something that no response described, which is `lifetime` from now on: an answer of our own to a
    /// failure, a file, a value from a peer that sends no metadata.
    pub fn of_ours(lifetime: Duration, now: Now) -> Self {
        let stale = StalePermission::Free;
        let words = Words { source: LifetimeSource::Ours, stale, no_cache: false, immutable: false, copy: Copied::No };
        Freshness {
            received_and_words: received_and(now, words),
            initial_age_milliseconds: 0,
            lifetime_milliseconds: milliseconds(lifetime),
            stale_while_revalidate: MaybeSeconds::NONE,
            stale_if_error: MaybeSeconds::NONE,
        }
    }

    /// Rebuilds what another node sent. `not_after` is a reading of our clock that is certainly not later than the
    /// sender's reading: when the question was sent, or when the last frame before the answer arrived. The entry therefore
    /// never counts as younger, nor as fresh for longer, than it does at the sender.
    pub fn from_hop(hop: &HopFreshness, not_after: Now, copy: Copied) -> Self {
        let lifetime = i128::from(hop.age_milliseconds) + i128::from(hop.remaining_milliseconds);
        let lifetime = lifetime.clamp(0, i128::from(u64::MAX)) as u64;
        let HopFreshness { source, stale, no_cache, immutable, .. } = *hop;
        Freshness {
            received_and_words: received_and(not_after, Words { source, stale, no_cache, immutable, copy }),
            initial_age_milliseconds: hop.age_milliseconds,
            lifetime_milliseconds: lifetime,
            stale_while_revalidate: MaybeSeconds::of(hop.stale_while_revalidate),
            stale_if_error: MaybeSeconds::of(hop.stale_if_error),
        }
    }

    /// What to send to another node now.
    pub fn over_hop(&self, now: Now) -> HopFreshness {
        let Words { source, stale, no_cache, immutable, .. } = self.words();
        HopFreshness {
            age_milliseconds: self.age_milliseconds(now),
            remaining_milliseconds: self.remaining(now),
            stale_while_revalidate: self.stale_while_revalidate.get(),
            stale_if_error: self.stale_if_error.get(),
            source,
            stale,
            no_cache,
            immutable,
        }
    }

    /// The same entry in another role: a copy that becomes the owner's when the ring moves, or the reverse.
    pub fn with_role(self, copy: Copied) -> Self {
        let words = Words { copy, ..self.words() }.to_bits();
        Freshness { received_and_words: self.received_and_words >> WORD_BITS << WORD_BITS | words, ..self }
    }

    /// The same entry, stale from now on at the latest: a soft purge, or a HEAD that found something else.
    pub fn expired(self, now: Now) -> Self {
        let lifetime_milliseconds = self.lifetime_milliseconds.min(self.age_milliseconds(now));
        Freshness { lifetime_milliseconds, ..self }
    }

    /// `current_age` of section 4.2.3. The `Age` field holds its whole seconds.
    #[inline]
    pub fn age(&self, now: Now) -> Duration {
        Duration::from_millis(self.age_milliseconds(now))
    }

    /// Milliseconds until the entry is stale; zero or less once it is. `ttl` of `Cache-Status` is its whole seconds,
    /// rounded down.
    #[inline]
    pub fn remaining(&self, now: Now) -> i64 {
        let (lifetime, age) = (self.lifetime_milliseconds, self.age_milliseconds(now));
        let bounded = |milliseconds: u64| i64::try_from(milliseconds).unwrap_or(i64::MAX);
        if age <= lifetime { bounded(lifetime - age) } else { -bounded(age - lifetime) }
    }

    /// Age and time until it is stale in whole seconds, as [`Freshness::age`] and [`Freshness::remaining`] have them; `None` of
    /// what is stale.
    #[inline]
    pub fn seconds_while_fresh(&self, now: Now) -> Option<(u64, u64)> {
        let age = self.age_milliseconds(now);
        let remaining = self.lifetime_milliseconds.checked_sub(age)?;
        Some((age / 1000, remaining / 1000))
    }

    /// Whether it is fresh, whatever a client may want (section 4.2).
    pub fn is_fresh(&self, now: Now) -> bool {
        !self.no_cache() && self.age_milliseconds(now) < self.lifetime_milliseconds
    }

    /// How its lifetime was found.
    pub fn source(&self) -> LifetimeSource {
        self.words().source
    }

    /// Whether every use needs a validation (section 5.2.2.4).
    #[inline]
    pub fn no_cache(&self) -> bool {
        self.received_and_words & NO_CACHE_BIT != 0
    }

    /// Owner's entry or hot copy.
    pub fn role(&self) -> Copied {
        self.words().copy
    }

    /// Whether the entry answers a request with these directives (section 4.2.4, RFC 5861, RFC 8246).
    ///
    /// The rules are those of now: the three stale times are read when serving.
    #[inline]
    pub fn verdict(&self, rules: &Rules, request: &RequestDirectives, now: Now) -> Verdict {
        let age = self.age_milliseconds(now);
        let fresh = age < self.lifetime_milliseconds;
        // Nothing in the request is an exception to the usual hit.
        if fresh && !self.no_cache() && *request == RequestDirectives::default() {
            return Verdict::Fresh;
        }
        self.exceptional_verdict(rules, request, age)
    }

    /// For how long, from now on, the entry can still answer some request without being validated, counting
    /// stale-while-revalidate and stale-if-error. Zero: only a validation can use it.
    pub fn useful_for(&self, rules: &Rules, now: Now) -> Duration {
        if self.no_cache() {
            return Duration::ZERO;
        }
        let stale = self.stale_while_revalidate(rules).max(self.stale_if_error(rules, None));
        let end = self.lifetime_milliseconds.saturating_add(stale);
        Duration::from_millis(end.saturating_sub(self.age_milliseconds(now)))
    }

    /// Whether an entry that arrived now answers anything without validation. The configured stale-if-error alone does not
    /// make a stale arrival worth keeping: it is there for what was once fresh.
    fn is_ever_useful(&self, rules: &Rules, now: Now) -> bool {
        let stale = self.stale_while_revalidate(rules).max(match self.stale_if_error.get() {
            Some(_) => self.stale_if_error(rules, None),
            None => 0,
        });
        !self.no_cache() && self.age_milliseconds(now) < self.lifetime_milliseconds.saturating_add(stale)
    }

    #[cold]
    fn exceptional_verdict(&self, rules: &Rules, request: &RequestDirectives, age: u64) -> Verdict {
        if self.no_cache() {
            return Verdict::Revalidate { reason: Reason::NoCache, if_error: false, if_slow: None };
        }
        let fresh = age < self.lifetime_milliseconds;
        if request.no_cache {
            let reason = if fresh { Reason::RequestNoCache } else { Reason::Stale };
            return Verdict::Revalidate { reason, if_error: false, if_slow: None };
        }
        let staleness = age.saturating_sub(self.lifetime_milliseconds);
        // A reload sends max-age=0; of an immutable entry that is fresh it asks for nothing (RFC 8246 section 2).
        let too_old =
            request.max_age.is_some_and(|max_age| age > seconds(max_age)) && !(fresh && self.words().immutable);
        let soon_stale =
            request.min_fresh.is_some_and(|least| age.saturating_add(seconds(least)) > self.lifetime_milliseconds);
        let reason = if too_old {
            Reason::RequestMaxAge
        } else if soon_stale && (fresh || request.max_stale.is_none()) {
            Reason::RequestMinFresh
        } else if fresh {
            return Verdict::Fresh;
        } else {
            let accepted = match request.max_stale {
                Some(MaxStale::Any) => true,
                Some(MaxStale::Seconds(limit)) => staleness <= seconds(limit),
                None => false,
            };
            if accepted && self.words().stale == StalePermission::Free && self.role() == Copied::No {
                return Verdict::StaleAccepted;
            }
            // A client that names a max-age and no max-stale does not want a stale answer (section 5.2.1.1), and one that
            // names a max-stale none that is staler.
            let wanted = request.max_age.is_none() && request.min_fresh.is_none() && request.max_stale.is_none();
            if wanted && staleness < self.stale_while_revalidate(rules) {
                return Verdict::StaleWhileRevalidate;
            }
            Reason::Stale
        };
        let if_error = fresh || staleness < self.stale_if_error(rules, request.stale_if_error);
        let slow = if_error && reason == Reason::Stale && self.role() == Copied::No && !rules.stale_if_slow.is_zero();
        // What the request asks for is the reason only where a fresh entry does not answer it (RFC 9211 section 2.2).
        let reason = if fresh { reason } else { Reason::Stale };
        Verdict::Revalidate { reason, if_error, if_slow: slow.then_some(rules.stale_if_slow) }
    }

    fn words(&self) -> Words {
        Words::of_bits(self.received_and_words)
    }

    #[inline]
    fn age_milliseconds(&self, now: Now) -> u64 {
        let resident = milliseconds(now.monotonic).saturating_sub(self.received_and_words >> WORD_BITS);
        self.initial_age_milliseconds.saturating_add(resident)
    }

    /// Milliseconds after the lifetime; zero where it is not granted.
    fn stale_while_revalidate(&self, rules: &Rules) -> u64 {
        match (self.role(), self.granted_stale(self.stale_while_revalidate.get(), rules.stale_while_revalidate)) {
            (Copied::No, granted) => granted,
            (Copied::Hot, _) => 0,
        }
    }

    /// Milliseconds after the lifetime; zero where it is not granted. The request's own word may widen what the rules
    /// grant, not what the response says.
    fn stale_if_error(&self, rules: &Rules, request: Option<u32>) -> u64 {
        let rule = rules.stale_if_error.max(Duration::from_secs(u64::from(request.unwrap_or(0))));
        self.granted_stale(self.stale_if_error.get(), rule)
    }

    fn granted_stale(&self, by_response: Option<u32>, by_rules: Duration) -> u64 {
        match (self.words().stale, by_response) {
            (StalePermission::Never, _) | (StalePermission::OnlyByResponse, None) => 0,
            (_, Some(by_response)) => seconds(by_response),
            (StalePermission::Free, None) => milliseconds(by_rules),
        }
    }
}

impl Words {
    fn to_bits(self) -> u64 {
        let bit = |is: bool, bit: u64| if is { bit } else { 0 };
        self.source as u64
            | (self.stale as u64) << STALE_SHIFT
            | bit(self.no_cache, NO_CACHE_BIT)
            | bit(self.immutable, IMMUTABLE_BIT)
            | bit(self.copy == Copied::Hot, HOT_BIT)
    }

    fn of_bits(bits: u64) -> Self {
        Words {
            source: LifetimeSource::from_code((bits & SOURCE_MASK) as u8),
            stale: match bits >> STALE_SHIFT & 3 {
                0 => StalePermission::Free,
                1 => StalePermission::OnlyByResponse,
                _ => StalePermission::Never,
            },
            no_cache: bits & NO_CACHE_BIT != 0,
            immutable: bits & IMMUTABLE_BIT != 0,
            copy: if bits & HOT_BIT != 0 { Copied::Hot } else { Copied::No },
        }
    }
}

fn received_and(received_at: Now, words: Words) -> u64 {
    // The clock runs since this machine started: it does not reach 48 bits within 8,900 years.
    milliseconds(received_at.monotonic).min(u64::MAX >> WORD_BITS) << WORD_BITS | words.to_bits()
}

const WORD_BITS: u32 = 16;
const SOURCE_MASK: u64 = 15;
const STALE_SHIFT: u32 = 4;
const NO_CACHE_BIT: u64 = 1 << 6;
const IMMUTABLE_BIT: u64 = 1 << 7;
const HOT_BIT: u64 = 1 << 8;

/// Takes up to `percent` of what remains of a lifetime, as much of it as `random` (0 to 1) says. What has passed already
/// is not shortened, or an old response would lose all.
fn jittered(lifetime: u64, age: u64, percent: f64, random: f64) -> u64 {
    let remaining = lifetime.saturating_sub(age);
    // Both come from outside; NaN counts as none.
    let share = (percent.clamp(0.0, 100.0) / 100.0) * random.clamp(0.0, 1.0);
    let taken = if share.is_nan() { 0.0 } else { remaining as f64 * share };
    lifetime - (taken as u64).min(remaining)
}

#[inline]
fn milliseconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1000).saturating_add(u64::from(duration.subsec_millis()))
}

fn seconds(seconds: u32) -> u64 {
    u64::from(seconds) * 1000
}
