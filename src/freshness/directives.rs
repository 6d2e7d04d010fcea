//! Cache directives of requests and responses, parsed once into fields (RFC 9111 section 5.2).
//!
//! The safest reading wins. A directive that forbids something counts however badly it is written; one that permits
//! something, or gives a number, counts only when it is written well. A number that is not one makes the response stale
//! (RFC 9111 section 4.2.1), and of several the smallest counts.

use std::borrow::Cow;

use super::rules::Rules;
use super::targeted;
use crate::fields::{Fields, is_token};

/// What an origin allows caches to do with its response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    /// Where the directives were found.
    pub found_in: FoundIn,
    /// `no-store` (section 5.2.2.5).
    pub no_store: bool,
    /// `no-cache` without field names (section 5.2.2.4).
    pub no_cache: bool,
    /// Fields named by `no-cache="..."`, lower case.
    pub no_cache_fields: Vec<String>,
    /// `private` without field names (section 5.2.2.7).
    pub private: bool,
    /// Fields named by `private="..."`, lower case.
    pub private_fields: Vec<String>,
    /// `public` (section 5.2.2.9).
    pub public: bool,
    /// `max-age` (section 5.2.2.1).
    pub max_age: Seconds,
    /// `s-maxage` (section 5.2.2.10).
    pub s_maxage: Seconds,
    /// `must-revalidate` (section 5.2.2.2).
    pub must_revalidate: bool,
    /// `proxy-revalidate` (section 5.2.2.8).
    pub proxy_revalidate: bool,
    /// `must-understand` (section 5.2.2.3).
    pub must_understand: bool,
    /// `immutable` (RFC 8246).
    pub immutable: bool,
    /// `no-transform` (section 5.2.2.6).
    pub no_transform: bool,
    /// `stale-while-revalidate` (RFC 5861 section 3).
    pub stale_while_revalidate: Seconds,
    /// `stale-if-error` (RFC 5861 section 4).
    pub stale_if_error: Seconds,
    /// A well written `public`, `s-maxage` or `must-revalidate`: a response to a request with `Authorization` may be
    /// stored (section 3.5).
    pub shared_despite_authorization: bool,
}

/// Which field the directives of a response come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FoundIn {
    /// No directive was found.
    #[default]
    Nowhere,
    /// `Cache-Control`.
    CacheControl,
    /// A targeted field, which puts `Cache-Control` and `Expires` out of force (RFC 9213 section 2.2).
    Targeted,
}

/// What a client wants of a cache (RFC 9111 section 5.2.1). The default asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RequestDirectives {
    /// `no-cache`, or `Pragma: no-cache` in a request without `Cache-Control` (section 5.4).
    pub no_cache: bool,
    /// `no-store`: the answer to this request is not stored.
    pub no_store: bool,
    /// `only-if-cached`: 504 rather than a request to the origin.
    pub only_if_cached: bool,
    /// `no-transform`.
    pub no_transform: bool,
    /// `max-age`: the oldest acceptable answer.
    pub max_age: Option<u32>,
    /// `min-fresh`: how long the answer must still be fresh.
    pub min_fresh: Option<u32>,
    /// `max-stale`: how stale the answer may be.
    pub max_stale: Option<MaxStale>,
    /// `stale-if-error` of a request (RFC 5861 section 4).
    pub stale_if_error: Option<u32>,
}

/// How stale an answer a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MaxStale {
    /// However stale.
    Any,
    /// At most this many seconds.
    Seconds(u32),
}

/// A delta-seconds argument (RFC 9111 section 1.2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seconds {
    /// The directive is not there.
    #[default]
    Absent,
    /// The directive is there and its argument is not a number of seconds: it counts as 0 and permits nothing.
    Invalid,
    /// At most [`SECONDS_MAX`].
    Given(u32),
}

/// What larger numbers of seconds are taken for (RFC 9111 section 1.2.2).
pub const SECONDS_MAX: u32 = 1 << 31;

impl ResponseDirectives {
    /// The directives that are in force for us in a response with the fields `received`.
    ///
    /// The first targeted field of the rules with a valid, non-empty value decides alone (RFC 9213 section 2.2); else all
    /// lines of `Cache-Control` together.
    pub fn parse(rules: &Rules, received: &Fields) -> Self {
        if let Some(directives) = rules.targeted.iter().find_map(|name| targeted::parse(name, received)) {
            return directives;
        }
        let mut directives = ResponseDirectives::default();
        if rules.ignore_cache_control {
            return directives;
        }
        for line in received.get_all("cache-control") {
            directives.found_in = FoundIn::CacheControl;
            Directives::new(line).for_each(|directive| directives.take(&directive));
        }
        // Only now: one that cannot be read takes the permission of a well written one before it away.
        directives.shared_despite_authorization |= matches!(directives.s_maxage, Seconds::Given(_));
        // The meaning of Pragma in a response was never specified (RFC 9111 section 5.4). Where the origin says nothing
        // else, "no-cache" is still something it said, and neither a guess nor a default is put in its place.
        let expires = !rules.ignore_expires && received.contains("expires");
        if directives.found_in == FoundIn::Nowhere && !expires {
            directives.no_cache = received.get_all("pragma").any(names_no_cache);
        }
        directives
    }

    fn take(&mut self, directive: &Directive<'_>) {
        let permitted = directive.sound;
        match directive.name.to_ascii_lowercase().as_slice() {
            b"no-store" => self.no_store = true,
            b"no-cache" => directive.name_fields(&mut self.no_cache, &mut self.no_cache_fields),
            b"private" => directive.name_fields(&mut self.private, &mut self.private_fields),
            b"public" => self.public |= permitted && directive.argument == Argument::None,
            b"max-age" => self.max_age.take(directive.seconds()),
            b"s-maxage" => self.s_maxage.take(directive.seconds()),
            b"must-revalidate" => {
                self.must_revalidate = true;
                self.shared_despite_authorization |= permitted && directive.argument == Argument::None;
            }
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"must-understand" => self.must_understand |= permitted && directive.argument == Argument::None,
            // An argument of immutable is to be ignored (RFC 8246 section 2).
            b"immutable" => self.immutable |= permitted,
            b"no-transform" => self.no_transform = true,
            b"stale-while-revalidate" => self.stale_while_revalidate.take(directive.seconds()),
            b"stale-if-error" => self.stale_if_error.take(directive.seconds()),
            _ => {}
        }
        self.shared_despite_authorization |= self.public;
    }

    /// Whether the response gives its own lifetime in a directive, valid or not.
    pub fn has_lifetime(&self) -> bool {
        self.max_age != Seconds::Absent || self.s_maxage != Seconds::Absent
    }
}

impl RequestDirectives {
    /// What the request with the fields `sent` by a client asks for. Costs one pass over the names when it asks for
    /// nothing.
    pub fn parse(sent: &Fields) -> Self {
        let (mut directives, mut cache_control, mut pragma) = (RequestDirectives::default(), false, false);
        for (name, value) in sent.iter() {
            if name.eq_ignore_ascii_case("cache-control") {
                cache_control = true;
                Directives::new(value).for_each(|directive| directives.take(&directive));
            } else if name.eq_ignore_ascii_case("pragma") {
                pragma |= names_no_cache(value);
            }
        }
        directives.no_cache |= pragma && !cache_control;
        directives
    }

    fn take(&mut self, directive: &Directive<'_>) {
        let smaller = |known: Option<u32>, new: u32| Some(known.map_or(new, |known| known.min(new)));
        match directive.name.to_ascii_lowercase().as_slice() {
            b"no-cache" => self.no_cache = true,
            b"no-store" => self.no_store = true,
            b"only-if-cached" => self.only_if_cached = true,
            b"no-transform" => self.no_transform = true,
            b"max-age" => self.max_age = smaller(self.max_age, directive.seconds().or_zero().unwrap_or(0)),
            b"min-fresh" => {
                let seconds = match directive.seconds() {
                    Seconds::Given(seconds) => seconds,
                    Seconds::Absent | Seconds::Invalid => SECONDS_MAX,
                };
                self.min_fresh = Some(self.min_fresh.map_or(seconds, |known| known.max(seconds)));
            }
            b"max-stale" => {
                let new = match (directive.seconds(), directive.argument == Argument::None && directive.sound) {
                    (_, true) => MaxStale::Any,
                    (Seconds::Given(seconds), _) => MaxStale::Seconds(seconds),
                    (Seconds::Absent | Seconds::Invalid, _) => MaxStale::Seconds(0),
                };
                self.max_stale = Some(match (self.max_stale, new) {
                    (Some(MaxStale::Seconds(known)), MaxStale::Seconds(new)) => MaxStale::Seconds(known.min(new)),
                    (Some(MaxStale::Seconds(known)), MaxStale::Any) => MaxStale::Seconds(known),
                    (Some(MaxStale::Any) | None, new) => new,
                });
            }
            b"stale-if-error" => {
                self.stale_if_error = smaller(self.stale_if_error, directive.seconds().or_zero().unwrap_or(0));
            }
            _ => {}
        }
    }
}

impl Seconds {
    /// The number, with 0 for an invalid one, where the directive is there.
    pub fn or_zero(self) -> Option<u32> {
        match self {
            Seconds::Absent => None,
            Seconds::Invalid => Some(0),
            Seconds::Given(seconds) => Some(seconds),
        }
    }

    /// Reads decimal digits and nothing else.
    pub(super) fn from_digits(digits: &[u8]) -> Self {
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Seconds::Invalid;
        }
        let number =
            digits.iter().fold(0u32, |number, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
        Seconds::Given(number.min(SECONDS_MAX))
    }

    /// One more value for the same directive: the smallest counts, an invalid one makes all invalid. RFC 9111 section
    /// 4.2.1 asks for the first or for "stale"; the smallest is at every moment one of the two.
    pub(super) fn take(&mut self, new: Seconds) {
        *self = match (*self, new) {
            (Seconds::Absent, new) => new,
            (known, Seconds::Absent) => known,
            (Seconds::Given(known), Seconds::Given(new)) => Seconds::Given(known.min(new)),
            (Seconds::Invalid, _) | (_, Seconds::Invalid) => Seconds::Invalid,
        };
    }
}

/// One directive as it stands on the line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Directive<'a> {
    pub(super) name: &'a [u8],
    pub(super) argument: Argument<'a>,
    /// Names after semicolons, in fields that have such parameters.
    pub(super) parameters: Vec<&'a [u8]>,
    /// Nothing unexpected stands before or after it up to the commas.
    pub(super) sound: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Argument<'a> {
    None,
    Token(&'a [u8]),
    Quoted(Cow<'a, [u8]>),
    Malformed,
}

impl Directive<'_> {
    /// The argument as a number of seconds; a quoted number is one too (RFC 9111 section 5.2).
    pub(super) fn seconds(&self) -> Seconds {
        match &self.argument {
            Argument::Token(digits) if self.sound => Seconds::from_digits(digits),
            Argument::Quoted(digits) if self.sound => Seconds::from_digits(digits),
            _ => Seconds::Invalid,
        }
    }

    /// Adds the named fields to `fields`, or sets `whole` where no well written list is given. A list that names a field
    /// which decides about caching or describes the body concerns the whole response: without it the rest could not be
    /// used.
    fn name_fields(&self, whole: &mut bool, fields: &mut Vec<String>) {
        let list = match &self.argument {
            Argument::Token(name) if self.sound => *name,
            Argument::Quoted(list) if self.sound => list,
            _ => return *whole = true,
        };
        let names = match parse_field_names(list) {
            Some(names) => names,
            None => return *whole = true,
        };
        fields.extend(names);
    }
}

/// Whether a field of the block may name others with `no-cache="..."` or `private="..."`. Says yes too often rather than too
/// seldom, and costs a search for one byte where [`ResponseDirectives::parse`] costs thousands of instructions.
pub fn may_name_fields(received: &Fields) -> bool {
    let block = received.as_bytes();
    memchr::memchr_iter(b'=', block).any(|at| {
        let before = block[..at].trim_ascii_end();
        let ends_with =
            |name: &[u8]| before.len() >= name.len() && before[before.len() - name.len()..].eq_ignore_ascii_case(name);
        ends_with(b"no-cache") || ends_with(b"private")
    })
}

/// Lower-case field names of a comma-separated list; `None` when it is empty, malformed, or names a field without which
/// the response cannot be used.
pub(super) fn parse_field_names(list: &[u8]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for name in list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()) {
        let name = std::str::from_utf8(name).ok().filter(|name| is_token(name.as_bytes()))?.to_ascii_lowercase();
        if super::storable::is_essential(&name) {
            return None;
        }
        names.push(name);
    }
    (!names.is_empty()).then_some(names)
}

/// The directives of one field line, in order.
pub(super) struct Directives<'a> {
    rest: &'a [u8],
    /// Something unexpected was met since the last comma.
    doubtful: bool,
    /// A quoted string does not end: nobody knows what is inside it and what is not.
    torn: bool,
    /// Whether `;name` after a directive is a parameter (Edge Architecture) or something unexpected.
    with_parameters: bool,
}

impl<'a> Directives<'a> {
    pub(super) fn new(line: &'a [u8]) -> Self {
        Directives { rest: line, doubtful: false, torn: false, with_parameters: false }
    }

    pub(super) fn with_parameters(line: &'a [u8]) -> Self {
        Directives { with_parameters: true, ..Directives::new(line) }
    }

    fn skip_white_space(&mut self) {
        while let [b' ' | b'\t', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    fn token(&mut self) -> &'a [u8] {
        let end = self.rest.iter().position(|byte| !is_token(&[*byte])).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        token
    }

    /// The content of the quoted string (RFC 9110 section 5.6.4) whose opening quote is next.
    fn quoted(&mut self) -> Option<Cow<'a, [u8]>> {
        // A torn line is not searched again: that would cost the square of its length.
        let inside = self.rest.strip_prefix(b"\"").filter(|_| !self.torn)?;
        let mut unescaped: Option<Vec<u8>> = None;
        let mut index = 0;
        loop {
            match *inside.get(index..)? {
                [b'"', ..] => break,
                [b'\\', escaped, ..] => {
                    unescaped.get_or_insert_with(|| inside[..index].to_vec()).push(escaped);
                    index += 2;
                }
                [byte, ..] => {
                    if let Some(unescaped) = &mut unescaped {
                        unescaped.push(byte);
                    }
                    index += 1;
                }
                [] => return None,
            }
        }
        self.rest = &inside[index + 1..];
        Some(unescaped.map_or(Cow::Borrowed(&inside[..index]), Cow::Owned))
    }

    fn argument(&mut self) -> Argument<'a> {
        let [b'=', rest @ ..] = self.rest else { return Argument::None };
        self.rest = rest;
        if rest.first() == Some(&b'"') {
            if let Some(content) = self.quoted() {
                return Argument::Quoted(content);
            }
            self.torn = true;
            self.rest = &rest[1..];
            return Argument::Malformed;
        }
        match self.token() {
            [] => Argument::Malformed,
            token => Argument::Token(token),
        }
    }
}

impl<'a> Iterator for Directives<'a> {
    type Item = Directive<'a>;

    fn next(&mut self) -> Option<Directive<'a>> {
        loop {
            self.skip_white_space();
            match self.rest {
                [] => return None,
                [b',', rest @ ..] => {
                    self.doubtful = false;
                    self.rest = rest;
                    continue;
                }
                _ => {}
            }
            let name = self.token();
            if name.is_empty() {
                self.doubtful = true;
                if self.quoted().is_none() {
                    self.torn |= self.rest[0] == b'"';
                    self.rest = &self.rest[1..];
                }
                continue;
            }
            let argument = self.argument();
            let mut parameters = Vec::new();
            self.skip_white_space();
            while self.with_parameters && self.rest.first() == Some(&b';') {
                self.rest = &self.rest[1..];
                self.skip_white_space();
                parameters.push(self.token());
                self.skip_white_space();
            }
            let before = !self.doubtful && !self.torn && argument != Argument::Malformed;
            self.doubtful = !matches!(self.rest, [] | [b',', ..]);
            return Some(Directive { name, argument, parameters, sound: before && !self.doubtful });
        }
    }
}

fn names_no_cache(line: &[u8]) -> bool {
    Directives::new(line).any(|directive| directive.name.eq_ignore_ascii_case(b"no-cache"))
}

/// Displays as a `Cache-Control` value that is read as the same directives.
impl std::fmt::Display for RequestDirectives {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let flags = [
            (self.no_cache, "no-cache"),
            (self.no_store, "no-store"),
            (self.only_if_cached, "only-if-cached"),
            (self.no_transform, "no-transform"),
        ];
        let (max_stale, any_stale) = match self.max_stale {
            Some(MaxStale::Seconds(seconds)) => (Some(seconds), false),
            Some(MaxStale::Any) => (None, true),
            None => (None, false),
        };
        let numbers = [
            (self.max_age, "max-age"),
            (self.min_fresh, "min-fresh"),
            (max_stale, "max-stale"),
            (self.stale_if_error, "stale-if-error"),
        ];
        let mut separator = "";
        for (_, name) in flags.iter().chain([(any_stale, "max-stale")].iter()).filter(|(given, _)| *given) {
            write!(formatter, "{separator}{name}")?;
            separator = ", ";
        }
        for (seconds, name) in numbers {
            if let Some(seconds) = seconds {
                write!(formatter, "{separator}{name}={seconds}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}
