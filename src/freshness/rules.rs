//! What a group of the configuration says about freshness.

use std::time::Duration;

/// The freshness rules of one group; the defaults are the documented ones of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// The origin's `Cache-Control` and `Pragma` are not believed. Targeted fields still are: who sends one means us.
    pub ignore_cache_control: bool,
    /// The origin's `Expires` is not believed.
    pub ignore_expires: bool,
    /// The origin's `Vary` is not believed, `Vary: *` included.
    pub ignore_vary: bool,
    /// Lifetime of a cacheable answer when the origin says nothing and no heuristic applies.
    pub default_lifetime: Duration,
    /// Longest lifetime guessed from `Last-Modified` (RFC 9111 section 4.2.2); zero turns guessing off.
    pub heuristic_max: Duration,
    /// Longest lifetime of all, whatever the origin says.
    pub lifetime_max: Duration,
    /// Lifetimes of answers with these statuses when the origin says nothing.
    pub negative: Vec<(u16, Duration)>,
    /// How long our own failure to load answers.
    pub errors: Duration,
    /// Up to this share of the remaining lifetime is taken away, so that a fleet does not expire in step. 0 to 100.
    pub jitter_percent: f64,
    /// RFC 5861 section 3, where the origin neither gives a value nor forbids it.
    pub stale_while_revalidate: Duration,
    /// RFC 5861 section 4, where the origin neither gives a value nor forbids it.
    pub stale_if_error: Duration,
    /// How long the origin may be silent before an answer that stale-if-error allows is used; zero turns it off.
    pub stale_if_slow: Duration,
    /// What happens to answers with `Set-Cookie`.
    pub set_cookie: SetCookie,
    /// Whether a client's `Cache-Control` counts. The caller reads it: if not, it passes
    /// [`RequestDirectives::default`](super::RequestDirectives::default).
    pub honour_request_directives: bool,
    /// Names of the fields that override `Cache-Control` and `Expires`, most specific first (RFC 9213 section 2.2).
    pub targeted: Vec<String>,
}

/// What happens to answers with `Set-Cookie` (RFC 9111 section 7.3 leaves it to the cache).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetCookie {
    /// They are never stored.
    #[default]
    Private,
    /// The field is removed, the rest is stored.
    Strip,
    /// Stored with the field, as far as RFC 9111 lets.
    Share,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            ignore_cache_control: false,
            ignore_expires: false,
            ignore_vary: false,
            default_lifetime: Duration::ZERO,
            heuristic_max: Duration::from_secs(24 * 3600),
            lifetime_max: Duration::from_secs(365 * 24 * 3600),
            negative: vec![(404, Duration::from_secs(5)), (410, Duration::from_secs(5))],
            errors: Duration::from_secs(1),
            jitter_percent: 5.0,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::from_secs(3600),
            stale_if_slow: Duration::ZERO,
            set_cookie: SetCookie::Private,
            honour_request_directives: false,
            targeted: ["Groupcache-Proxy-Cache-Control", "CDN-Cache-Control", "Surrogate-Control"]
                .map(String::from)
                .to_vec(),
        }
    }
}

impl Rules {
    /// The configured lifetime of an answer with `status` whose origin says nothing.
    pub(super) fn negative_lifetime(&self, status: u16) -> Option<Duration> {
        self.negative.iter().find(|(listed, _)| *listed == status).map(|(_, lifetime)| *lifetime)
    }
}
