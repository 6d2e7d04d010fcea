//! The gate: every HTTP/1 request passes it, whole, before anything looks at it (RFC 9112 sections 2 to 6).
//!
//! What is not certain is refused, never repaired: two parsers that read one byte string as two different requests are how
//! requests get smuggled. A refusal closes the connection, because nobody knows where the next request would begin.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use httparse::Header;

use crate::fields::{Fields, FieldsBuilder, is_field_value, is_token};
use crate::semantics::target::{Authority, TARGET_BYTES_MAX, Target, path_of_origin_form};

/// Room for the field lines of one request; lives on the stack of the caller and is not initialised for each request.
pub type Lines<'a> = [MaybeUninit<Header<'a>>; FIELDS_MAX];

/// Fresh [`Lines`].
#[inline]
pub fn lines<'a>() -> Lines<'a> {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

/// A checked request head. It borrows everything from the bytes that were read.
#[derive(Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: Method<'a>,
    /// Path and query as received, without the site of an absolute-form target: characters of RFC 3986, no dot segment.
    pub target: &'a [u8],
    /// Length of the path at the beginning of `target`.
    pub path_bytes: usize,
    /// Whether the target came with scheme and authority (which agreed with `Host`).
    pub absolute: bool,
    /// Whether the version is at least 1.1; otherwise it is 1.0.
    pub http_11: bool,
    /// Whether the version is 2.
    pub http_2: bool,
    /// Value of `Host`; empty only when an HTTP/1.0 request has none.
    pub host: &'a [u8],
    /// The same in its parts; only an HTTP/1.0 request may have none.
    pub authority: Option<Authority<'a>>,
    /// Whether the client lets the connection stay open.
    pub keep_alive: bool,
    /// How the body is delimited.
    pub body: BodyFraming,
    /// Which of the fields that matter here are present.
    pub seen: Seen,
    /// Length of the head in bytes, with the empty line behind it and the one before it.
    pub head_bytes: usize,
    /// The fields, as far as they are not in `section`.
    lines: &'a [Header<'a>],
    /// A checked field section that was not taken apart for this request.
    section: &'a [u8],
}

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method<'a> {
    /// `GET`.
    Get,
    /// `HEAD`.
    Head,
    /// Any other that is not refused; a token of at most 32 bytes.
    Other(&'a str),
}

impl<'a> Method<'a> {
    /// Reads a method token; methods are case-sensitive (RFC 9110 section 9.1).
    pub fn of(token: &'a str) -> Self {
        match token {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            other => Method::Other(other),
        }
    }

    /// The token.
    pub fn as_str(self) -> &'a str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Other(token) => token,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
    Http2,
}

/// How the body of a request is delimited (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is none.
    None,
    /// This many bytes, at least one.
    Length(u64),
    /// Chunked coding; in HTTP/2, a body of unknown length.
    Chunked,
}

/// A set of fields that are present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen(u32);

impl Seen {
    /// `If-Match`, `If-None-Match`, `If-Modified-Since` or `If-Unmodified-Since`.
    pub const CONDITION: Seen = Seen(1);
    /// `Range`.
    pub const RANGE: Seen = Seen(1 << 1);
    /// `Cache-Control` or `Pragma`.
    pub const DIRECTIVES: Seen = Seen(1 << 2);
    /// `Authorization`.
    pub const AUTHORIZATION: Seen = Seen(1 << 3);
    /// `Cookie`.
    pub const COOKIE: Seen = Seen(1 << 4);
    /// `Upgrade`.
    pub const UPGRADE: Seen = Seen(1 << 5);
    /// `Expect`.
    pub const EXPECT: Seen = Seen(1 << 6);
    /// A field that only an intermediary adds: `Via`, `Forwarded`, `X-Forwarded-For`, `-Proto` or `-Host`.
    pub const FORWARDED: Seen = Seen(1 << 7);
    const HOST: Seen = Seen(1 << 8);
    const CONTENT_LENGTH: Seen = Seen(1 << 9);
    const TRANSFER_ENCODING: Seen = Seen(1 << 10);

    /// Whether any field of `other` is present.
    #[inline]
    pub fn any(self, other: Seen) -> bool {
        self.0 & other.0 != 0
    }

    /// Both sets.
    pub const fn with(self, other: Seen) -> Seen {
        Seen(self.0 | other.0)
    }

    #[inline]
    fn add(&mut self, other: Seen) {
        self.0 |= other.0;
    }
}

/// Why a request is refused, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {reason}")]
pub struct Refusal {
    /// The status of the answer.
    pub status: u16,
    /// The word under which it is counted.
    pub word: &'static str,
    /// What the client is told.
    pub reason: &'static str,
}

impl Refusal {
    /// A refusal with a status, the word it is counted under, and the text for the client.
    pub const fn new(status: u16, word: &'static str, reason: &'static str) -> Self {
        Refusal { status, word, reason }
    }
}

const fn malformed(reason: &'static str) -> Refusal {
    Refusal::new(400, "malformed", reason)
}

const fn framing(reason: &'static str) -> Refusal {
    Refusal::new(400, "framing", reason)
}

/// Finds the end of a head in bytes that arrive piece by piece, looking at each byte once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan {
    /// Bytes that have been looked at.
    scanned: usize,
    /// Where the line begins that is not yet complete.
    line_start: usize,
    /// Whether a line that is not empty has been seen.
    started: bool,
}

impl Scan {
    /// Whether the head is complete: its length with the empty line. `read` holds what has been read since the last request
    /// and only grows between two calls; `header_bytes_max` is the limit of a whole head.
    ///
    /// # Errors
    /// A bare line feed, a second empty line before the request line, a request line or head that is too long.
    #[inline]
    pub fn advance(&mut self, read: &[u8], header_bytes_max: usize) -> Result<Option<usize>, Refusal> {
        for found in memchr::memchr_iter(b'\n', &read[self.scanned..]) {
            let line_feed = self.scanned + found;
            if line_feed == self.line_start || read[line_feed - 1] != b'\r' {
                return Err(malformed("a line does not end with CRLF"));
            }
            let empty = line_feed - self.line_start == 1;
            if empty && self.started {
                return match line_feed < header_bytes_max {
                    true => Ok(Some(line_feed + 1)),
                    false => Err(HEAD_TOO_LONG),
                };
            }
            // RFC 9112 section 2.2: one empty line before the request line is ignored.
            if empty && self.line_start > 0 {
                return Err(malformed("empty lines before the request line"));
            }
            if !empty && !self.started && line_feed - self.line_start > REQUEST_LINE_BYTES_MAX {
                return Err(TARGET_TOO_LONG);
            }
            self.started |= !empty;
            self.line_start = line_feed + 1;
        }
        self.scanned = read.len();
        if !self.started && read.len() - self.line_start > REQUEST_LINE_BYTES_MAX {
            return Err(TARGET_TOO_LONG);
        }
        if read.len() >= header_bytes_max {
            return Err(HEAD_TOO_LONG);
        }
        Ok(None)
    }
}

impl<'a> RequestHead<'a> {
    /// Reads a whole head, as long as [`Scan`] says it is.
    ///
    /// # Errors
    /// Everything that is not exactly a request of RFC 9112, and what clients are refused (`CONNECT`, `TRACE`, unknown
    /// expectations).
    #[inline]
    pub fn parse(head: &'a [u8], lines: &'a mut Lines<'a>) -> Result<Self, Refusal> {
        let text = head.strip_prefix(b"\r\n").unwrap_or(head);
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(text, lines) {
            Ok(httparse::Status::Complete(bytes)) if bytes == text.len() => {}
            // The head ends where the scan found the first empty line; another opinion is another reading of it.
            Ok(_) => return Err(malformed("the head does not end at its first empty line")),
            Err(httparse::Error::TooManyHeaders) => {
                return Err(TOO_MANY_FIELDS);
            }
            Err(httparse::Error::Version) => return Err(malformed("bad protocol version")),
            Err(httparse::Error::HeaderName | httparse::Error::HeaderValue) => {
                return Err(malformed("bad header field"));
            }
            Err(_) => return Err(malformed("bad request line")),
        }
        let (Some(method), Some(raw_target), Some(minor)) = (request.method, request.path, request.version) else {
            return Err(malformed("bad request line"));
        };
        let lines: &'a [Header<'a>] = request.headers;
        let method = Method::of(method);
        let version = if minor == 1 { Version::Http11 } else { Version::Http10 };
        Self::check(method, raw_target.as_bytes(), version, None, lines, head.len())
    }

    /// Checks a request of HTTP/2, whose framing is not in its fields; `authority` is its `:authority`. Whether there is a
    /// body is known to the caller.
    ///
    /// # Errors
    /// As [`RequestHead::parse`].
    pub fn of_http_2(
        method: &'a str,
        target: &'a [u8],
        authority: Option<&'a [u8]>,
        lines: &'a [Header<'a>],
        has_body: bool,
    ) -> Result<Self, Refusal> {
        if lines.len() > FIELDS_MAX {
            return Err(TOO_MANY_FIELDS);
        }
        if !lines.iter().all(|line| is_token(line.name.as_bytes()) && is_field_value(line.value)) {
            return Err(malformed("bad header field"));
        }
        let head_bytes = target.len() + lines.iter().map(|line| line.name.len() + line.value.len() + 4).sum::<usize>();
        let mut head = Self::check(Method::of(method), target, Version::Http2, authority, lines, head_bytes)?;
        head.body = match head.body {
            _ if !has_body => BodyFraming::None,
            BodyFraming::None => BodyFraming::Chunked,
            framing => framing,
        };
        Ok(head)
    }

    fn check(
        method: Method<'a>,
        raw_target: &'a [u8],
        version: Version,
        authority: Option<&'a [u8]>,
        lines: &'a [Header<'a>],
        head_bytes: usize,
    ) -> Result<Self, Refusal> {
        if let Method::Other(token) = method {
            check_method(token)?;
        }
        let http_11 = version != Version::Http10;
        let facts = FieldFacts::gather(lines, http_11)?;
        let body = facts.body(http_11)?;
        let host = authority.unwrap_or(facts.host);
        if http_11 && authority.is_none() && !facts.seen.any(Seen::HOST) {
            return Err(Refusal::new(400, "host", "no Host"));
        }
        if authority.is_some() && facts.seen.any(Seen::HOST) && !facts.host.eq_ignore_ascii_case(host) {
            return Err(Refusal::new(400, "host", "two hosts"));
        }
        let authority = match host {
            [] if !http_11 => None,
            value => Some(Authority::parse(value).map_err(|_| Refusal::new(400, "host", "bad Host"))?),
        };
        let (target, path_bytes, absolute) = split_target(raw_target, authority.as_ref())?;
        if absolute && version == Version::Http2 {
            return Err(malformed("bad request target"));
        }
        Ok(RequestHead {
            method,
            target,
            path_bytes,
            absolute,
            http_11,
            http_2: version == Version::Http2,
            host,
            authority,
            keep_alive: !facts.close && (http_11 || facts.keep_alive),
            body,
            seen: facts.seen,
            head_bytes,
            lines,
            section: b"",
        })
    }

    /// The path, without the query.
    #[inline]
    pub fn path(&self) -> &'a [u8] {
        &self.target[..self.path_bytes]
    }

    /// The query, without its `?`.
    #[inline]
    pub fn query(&self) -> Option<&'a [u8]> {
        self.target.get(self.path_bytes + 1..)
    }

    /// The fields in order, hop-by-hop ones included.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        // Cannot fail: the gate let only tokens in.
        self.lines().map(|(name, value)| (std::str::from_utf8(name).unwrap_or_default(), value))
    }

    /// The same with the bytes of the names.
    #[inline]
    pub fn lines(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let lines = self.lines.iter().map(|line| (line.name.as_bytes(), line.value.trim_ascii()));
        lines.chain(lines_of_section(self.section))
    }

    /// All values of the field `name`.
    #[inline]
    pub fn get_all(&self, name: &'static [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.lines()
            .filter(move |(candidate, _)| candidate.len() == name.len() && candidate.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The first value of the field `name`.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.iter().find(|(candidate, _)| candidate.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The fields for which `keep` says so, as a block of their own.
    pub fn fields_where(&self, mut keep: impl FnMut(&str) -> bool) -> Fields {
        let bytes = self.lines.iter().map(|line| line.name.len() + line.value.len() + 4).sum::<usize>();
        let mut builder = FieldsBuilder::with_capacity(bytes + self.section.len());
        for (name, value) in self.iter().filter(|(name, _)| keep(name)) {
            // Cannot fail: the gate let only tokens and field values in.
            let _ = builder.push(name.as_bytes(), value);
        }
        builder.finish()
    }

    /// Whether every byte of the field section is as in the request before on the same connection.
    pub(super) fn is_known(&self) -> bool {
        !self.section.is_empty()
    }

    /// All fields as a block of their own.
    pub fn to_fields(&self) -> Fields {
        self.fields_where(|_| true)
    }
}

/// The field section of the last plain request of a connection, and what was found in it.
///
/// Most clients send the same fields with every request of a connection. Equal bytes have one reading, so they are compared
/// and not read again; the request line is. What is not exactly as usual goes through [`Scan`] and [`RequestHead::parse`].
#[derive(Debug, Default)]
pub struct KnownSection {
    /// From behind the request line to the empty line, that one included; empty when nothing is known.
    section: Vec<u8>,
    /// Value of `Host` as it stands in the section.
    host_start: usize,
    host_bytes: usize,
    /// The host in lower case, and the port.
    site: String,
    port: Option<u16>,
    keep_alive: bool,
    seen: Seen,
    /// The request line before a section that was found to be the known one.
    found: Option<PlainLine>,
}

/// A request line with `GET` or `HEAD`, an ordinary target and version 1.1.
#[derive(Clone, Copy, Debug)]
struct PlainLine {
    head_only: bool,
    /// With its end.
    line_bytes: usize,
    target_bytes: usize,
    path_bytes: usize,
}

impl KnownSection {
    /// Length of the head at the beginning of `read` if its request line is a plain one and its field section the known one:
    /// what [`Scan::advance`] and [`RequestHead::parse`] would say of it needs neither. `header_bytes_max` is as there.
    #[inline]
    pub fn find(&mut self, read: &[u8], header_bytes_max: usize) -> Option<usize> {
        self.found = None;
        if self.section.is_empty() {
            return None;
        }
        let line_bytes = memchr::memchr(b'\n', read)? + 1;
        let head_bytes = line_bytes + self.section.len();
        if read.get(line_bytes..head_bytes)? != self.section || head_bytes > header_bytes_max {
            return None;
        }
        self.found = Some(PlainLine::read(&read[..line_bytes])?);
        Some(head_bytes)
    }

    /// As [`RequestHead::parse`], for the head that [`KnownSection::find`] or, if that did not, [`Scan`] has found last.
    ///
    /// # Errors
    /// As [`RequestHead::parse`].
    #[inline]
    pub fn read<'a>(&'a mut self, head: &'a [u8], lines: &'a mut Lines<'a>) -> Result<RequestHead<'a>, Refusal> {
        if let Some(line) = self.found.take() {
            let target_start = line.line_bytes - line.target_bytes - PlainLine::END.len();
            return Ok(RequestHead {
                method: if line.head_only { Method::Head } else { Method::Get },
                target: &head[target_start..target_start + line.target_bytes],
                path_bytes: line.path_bytes,
                absolute: false,
                http_11: true,
                http_2: false,
                host: &self.section[self.host_start..self.host_start + self.host_bytes],
                authority: Some(Authority { host: Cow::Borrowed(&self.site), port: self.port }),
                keep_alive: self.keep_alive,
                body: BodyFraming::None,
                seen: self.seen,
                head_bytes: head.len(),
                lines: &[],
                section: &self.section,
            });
        }
        let head_read = RequestHead::parse(head, lines)?;
        self.learn(head, &head_read);
        Ok(head_read)
    }

    /// Whether [`KnownSection::find`] has found the section in what is read next.
    pub fn is_found(&self) -> bool {
        self.found.is_some()
    }

    /// Gives the memory back.
    pub fn forget(&mut self) {
        *self = KnownSection::default();
    }

    /// Remembers the section of a request that has no body.
    fn learn(&mut self, bytes: &[u8], head: &RequestHead<'_>) {
        self.section.clear();
        let (BodyFraming::None, true, Some(authority)) = (head.body, head.http_11, &head.authority) else { return };
        let Some(line_feed) = memchr::memchr(b'\n', bytes).filter(|&line_feed| line_feed > 1) else { return };
        let section = &bytes[line_feed + 1..];
        // Where in the section the gate found it.
        let Some(host_start) = (head.host.as_ptr() as usize).checked_sub(section.as_ptr() as usize) else { return };
        if section.len() > SECTION_BYTES_MAX || section.get(host_start..host_start + head.host.len()) != Some(head.host)
        {
            return;
        }
        self.section.extend_from_slice(section);
        (self.host_start, self.host_bytes) = (host_start, head.host.len());
        self.site.clear();
        self.site.push_str(&authority.host);
        self.port = authority.port;
        self.keep_alive = head.keep_alive;
        self.seen = head.seen;
    }
}

impl PlainLine {
    const END: &[u8] = b" HTTP/1.1\r\n";

    /// Reads a whole line; `None` of anything else.
    #[inline]
    fn read(line: &[u8]) -> Option<Self> {
        let (head_only, rest) = match line {
            [b'G', b'E', b'T', b' ', rest @ ..] => (false, rest),
            [b'H', b'E', b'A', b'D', b' ', rest @ ..] => (true, rest),
            _ => return None,
        };
        let target = rest.strip_suffix(PlainLine::END)?;
        let path_bytes = path_of_origin_form(target).ok()?;
        Some(PlainLine { head_only, line_bytes: line.len(), target_bytes: target.len(), path_bytes })
    }
}

/// The lines of a section that the gate let in.
fn lines_of_section<'a>(section: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
    let mut rest = section;
    std::iter::from_fn(move || {
        let end = memchr::memchr(b'\r', rest)?;
        let line = &rest[..end];
        rest = rest.get(end + 2..)?;
        let colon = memchr::memchr(b':', line)?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    })
}

/// What one pass over the field lines finds.
#[derive(Default)]
struct FieldFacts<'a> {
    seen: Seen,
    host: &'a [u8],
    content_length: &'a [u8],
    transfer_encoding: &'a [u8],
    close: bool,
    keep_alive: bool,
}

impl<'a> FieldFacts<'a> {
    #[inline]
    fn gather(lines: &'a [Header<'a>], http_11: bool) -> Result<Self, Refusal> {
        let mut facts = FieldFacts::default();
        for line in lines {
            // Chosen by length first: a field that does not matter costs one jump.
            let is = |name: &str| line.name.eq_ignore_ascii_case(name);
            match line.name.len() {
                3 if is("via") => facts.seen.add(Seen::FORWARDED),
                4 if is("host") => {
                    if facts.seen.any(Seen::HOST) {
                        return Err(Refusal::new(400, "host", "more than one Host"));
                    }
                    facts.seen.add(Seen::HOST);
                    facts.host = line.value.trim_ascii();
                }
                5 if is("range") => facts.seen.add(Seen::RANGE),
                6 if is("cookie") => facts.seen.add(Seen::COOKIE),
                6 if is("pragma") => facts.seen.add(Seen::DIRECTIVES),
                6 if is("expect") => {
                    if !line.value.trim_ascii().eq_ignore_ascii_case(b"100-continue") {
                        return Err(Refusal::new(417, "expectation", "unknown expectation"));
                    }
                    // RFC 9110 section 10.1.1: ignored in HTTP/1.0.
                    if http_11 {
                        facts.seen.add(Seen::EXPECT);
                    }
                }
                7 if is("upgrade") => facts.seen.add(Seen::UPGRADE),
                8 if is("if-match") => facts.seen.add(Seen::CONDITION),
                9 if is("forwarded") => facts.seen.add(Seen::FORWARDED),
                10 if is("connection") => facts.connection(line.value)?,
                13 if is("cache-control") => facts.seen.add(Seen::DIRECTIVES),
                13 if is("authorization") => facts.seen.add(Seen::AUTHORIZATION),
                13 if is("if-none-match") => facts.seen.add(Seen::CONDITION),
                14 if is("content-length") => {
                    if facts.seen.any(Seen::CONTENT_LENGTH) {
                        return Err(framing("more than one Content-Length"));
                    }
                    facts.seen.add(Seen::CONTENT_LENGTH);
                    facts.content_length = line.value.trim_ascii();
                }
                // Some servers read an underscore as a hyphen.
                14 if is("content_length") => return Err(framing("bad name of a framing field")),
                15 if is("x-forwarded-for") => facts.seen.add(Seen::FORWARDED),
                16 if is("x-forwarded-host") => facts.seen.add(Seen::FORWARDED),
                17 if is("transfer-encoding") => {
                    if facts.seen.any(Seen::TRANSFER_ENCODING) {
                        return Err(framing("more than one Transfer-Encoding"));
                    }
                    facts.seen.add(Seen::TRANSFER_ENCODING);
                    facts.transfer_encoding = line.value.trim_ascii();
                }
                17 if is("transfer_encoding") => return Err(framing("bad name of a framing field")),
                17 if is("if-modified-since") => facts.seen.add(Seen::CONDITION),
                17 if is("x-forwarded-proto") => facts.seen.add(Seen::FORWARDED),
                19 if is("if-unmodified-since") => facts.seen.add(Seen::CONDITION),
                _ => {}
            }
        }
        Ok(facts)
    }

    /// Options of `Connection`, and the fields it nominates as belonging to this hop (RFC 9110 section 7.6.1). Who nominates
    /// a field that belongs to the message wants it removed on the way.
    fn connection(&mut self, value: &[u8]) -> Result<(), Refusal> {
        for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
            if is(b"keep-alive") {
                self.keep_alive = true;
            } else if is(b"close") {
                self.close = true;
            } else if NEVER_NOMINATED.iter().any(|name| is(name)) {
                return Err(framing("Connection names a field that belongs to the message"));
            } else if !option.is_empty() && !is_token(option) {
                return Err(malformed("bad Connection"));
            }
        }
        Ok(())
    }

    fn body(&self, http_11: bool) -> Result<BodyFraming, Refusal> {
        let has_length = self.seen.any(Seen::CONTENT_LENGTH);
        if self.seen.any(Seen::TRANSFER_ENCODING) {
            return match () {
                () if has_length => Err(framing("both Content-Length and Transfer-Encoding")),
                () if !http_11 => Err(framing("Transfer-Encoding in HTTP/1.0")),
                () if self.transfer_encoding.eq_ignore_ascii_case(b"chunked") => Ok(BodyFraming::Chunked),
                () => Err(Refusal::new(501, "transfer_coding", "unknown transfer coding")),
            };
        }
        if !has_length {
            return Ok(BodyFraming::None);
        }
        let digits = self.content_length;
        if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
            return Err(framing("bad Content-Length"));
        }
        // At most 19 digits: no overflow.
        let length = digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
        Ok(if length == 0 { BodyFraming::None } else { BodyFraming::Length(length) })
    }
}

fn check_method(token: &str) -> Result<(), Refusal> {
    match token {
        "CONNECT" | "TRACE" => Err(Refusal::new(405, "method", "method not allowed")),
        _ if token.len() > 32 => Err(Refusal::new(501, "method", "unknown method")),
        _ => Ok(()),
    }
}

/// Path and query of a target, the length of the path, and whether a site was written before them.
fn split_target<'a>(raw: &'a [u8], host: Option<&Authority<'_>>) -> Result<(&'a [u8], usize, bool), Refusal> {
    let target = Target::parse(raw).map_err(|error| match error.status() {
        414 => TARGET_TOO_LONG,
        _ => malformed("bad request target"),
    })?;
    let Some((scheme, authority)) = &target.site else {
        return Ok((raw, target.path.len(), false));
    };
    if host.is_some_and(|host| !host.is_same_site(authority, scheme.default_port())) {
        return Err(Refusal::new(400, "host", "the target names another site than Host"));
    }
    if host.is_none() {
        return Err(Refusal::new(400, "host", "no Host"));
    }
    let query_bytes = target.query.map_or(0, |query| query.len() + 1);
    let path_and_query = target.path.len() + query_bytes;
    match raw.len().checked_sub(path_and_query) {
        Some(start) if raw[start..].starts_with(target.path) => Ok((&raw[start..], target.path.len(), true)),
        // `http://host` and `http://host?query`: the path is meant, not written.
        _ if target.query.is_none() => Ok((b"/", 1, true)),
        _ => Err(malformed("bad request target")),
    }
}

/// More fields than this are refused: browsers send about twenty.
pub const FIELDS_MAX: usize = 100;

/// A longer field section is read anew each time: it costs memory on every busy connection.
const SECTION_BYTES_MAX: usize = 2048;

/// Method, target and version of the longest request line.
const REQUEST_LINE_BYTES_MAX: usize = TARGET_BYTES_MAX + 64;

const TARGET_TOO_LONG: Refusal = Refusal::new(414, "target_bytes", "request target too long");
const TOO_MANY_FIELDS: Refusal = Refusal::new(431, "header_fields", "too many header fields");
const HEAD_TOO_LONG: Refusal = Refusal::new(431, "header_bytes", "header section too long");

/// Fields that no client may declare to be hop-by-hop.
const NEVER_NOMINATED: [&[u8]; 8] = [
    b"host",
    b"content-length",
    b"content-type",
    b"content-encoding",
    b"authorization",
    b"cookie",
    b"cache-control",
    b"range",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Scans and parses; gives the answer in one line.
    fn read(bytes: &[u8]) -> String {
        let mut scan = Scan::default();
        let end = match scan.advance(bytes, 32 * 1024) {
            Ok(Some(end)) => end,
            Ok(None) => return "incomplete".into(),
            Err(refusal) => return refusal.to_string(),
        };
        let mut lines = lines();
        match RequestHead::parse(&bytes[..end], &mut lines) {
            Ok(head) => format!(
                "{} {} {} {} {:?} {}",
                head.method.as_str(),
                String::from_utf8_lossy(head.target),
                if head.http_11 { "1.1" } else { "1.0" },
                if head.keep_alive { "keep" } else { "close" },
                head.body,
                String::from_utf8_lossy(head.host),
            ),
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn what_is_accepted_and_how_it_is_read() {
        for (request, expected) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / 1.1 keep None a"),
            ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / 1.1 keep None a"),
            ("HEAD /x?y=%20 HTTP/1.1\r\nhost:\ta:80 \r\n\r\n", "HEAD /x?y=%20 1.1 keep None a:80"),
            ("get / HTTP/1.1\r\nHost: a\r\n\r\n", "get / 1.1 keep None a"),
            ("GET / HTTP/1.0\r\n\r\n", "GET / 1.0 close None "),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "GET / 1.0 keep None "),
            ("GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n", "GET / 1.0 close None "),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, close\r\n\r\n", "GET / 1.1 close None a"),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n", "GET / 1.1 close None a"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n", "POST / 1.1 keep Length(12) a"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "POST / 1.1 keep None a"),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", "POST / 1.1 keep Chunked a"),
            ("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n\r\n", "PUT / 1.1 keep None a"),
            ("GET http://a/x?y HTTP/1.1\r\nHost: A:80\r\n\r\n", "GET /x?y 1.1 keep None A:80"),
            ("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", "GET / 1.1 keep None a"),
            ("GET http://a/? HTTP/1.1\r\nHost: a\r\n\r\n", "GET /? 1.1 keep None a"),
            ("GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", "GET / 1.1 keep None [::1]:8080"),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: \u{fc}\r\n\r\n", "GET / 1.1 keep None a"),
        ] {
            assert_eq!(read(request.as_bytes()), expected, "{request:?}");
        }
    }

    #[test]
    fn what_is_refused_and_with_what() {
        let host = "Host: a\r\n";
        let with = |line: &str| format!("GET / HTTP/1.1\r\n{host}{line}\r\n\r\n");
        let long = |bytes: usize| format!("GET /{} HTTP/1.1\r\n{host}\r\n", "a".repeat(bytes));
        let many = |count: usize| format!("GET / HTTP/1.1\r\n{host}{}\r\n", "a: b\r\n".repeat(count));
        let rows: Vec<(String, &str)> = vec![
            // Line ends (FRM 2).
            ("GET / HTTP/1.1\nHost: a\n\n".into(), "400"),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n".into(), "400"),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n".into(), "400"),
            ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET / HTTP/1.1\r\rHost: a\r\n\r\n".into(), "400"),
            (with("X: a\rb"), "400"),
            (with("X: a\r"), "400"),
            // Request line.
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            (" GET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n".into(), "400"),
            ("GET / x HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET /\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET / http/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            (format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "A".repeat(33)), "501"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), "400"),
            ("\x16\x03\x01\x02\x00\r\n\r\n".into(), "400"),
            // Host (FRM 3).
            ("GET / HTTP/1.1\r\n\r\n".into(), "400"),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n".into(), "400"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n".into(), "400"),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), "400"),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".into(), "400"),
            ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n".into(), "400"),
            ("GET / HTTP/1.1\r\nHost: a:x\r\n\r\n".into(), "400"),
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET http://a/ HTTP/1.0\r\n\r\n".into(), "400"),
            // Framing (FRM 4).
            (with("Content-Length: 1\r\nTransfer-Encoding: chunked"), "400"),
            (with("Content-Length: 1\r\nContent-Length: 1"), "400"),
            (with("Content-Length: 1, 1"), "400"),
            (with("Content-Length: +1"), "400"),
            (with("Content-Length: -1"), "400"),
            (with("Content-Length: 0x1"), "400"),
            (with("Content-Length: 1 2"), "400"),
            (with("Content-Length:"), "400"),
            (with("Content-Length: 99999999999999999999"), "400"),
            (with("Content_Length: 1"), "400"),
            (with("Transfer_Encoding: chunked"), "400"),
            (with("Transfer-Encoding: gzip, chunked"), "501"),
            (with("Transfer-Encoding: identity"), "501"),
            (with("Transfer-Encoding: chunked, chunked"), "501"),
            (with("Transfer-Encoding: xchunked"), "501"),
            (with("Transfer-Encoding: \u{b}chunked"), "400"),
            (with("Transfer-Encoding:"), "501"),
            (with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), "400"),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), "400"),
            (with("Transfer-Encoding : chunked"), "400"),
            // Field lines.
            (with(" folded: x"), "400"),
            (with("X: a\r\n b"), "400"),
            (with("X: a\r\n\tb"), "400"),
            (with("X Y: a"), "400"),
            (with("X : a"), "400"),
            (with(": a"), "400"),
            (with("X"), "400"),
            (with("X: a\0b"), "400"),
            (with("X: a\x7fb"), "400"),
            (with("X\u{fc}: a"), "400"),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n".into(), "400"),
            // Hop-by-hop abuse and tunnels (FRM 7).
            (with("Connection: Host"), "400"),
            (with("Connection: close, Content-Length"), "400"),
            (with("Connection: \"x\""), "400"),
            (with("Expect: 200-ok"), "417"),
            (with("Expect: 100-continue, x"), "417"),
            ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n".into(), "405"),
            ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".into(), "405"),
            // Targets (KEY 2).
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET /../a HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET /%2E%2e/a HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET /\u{fc} HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            ("GET /\\ HTTP/1.1\r\nHost: a\r\n\r\n".into(), "400"),
            // Sizes.
            (long(8192), "414"),
            (long(20000), "414"),
            (format!("GET /{}", "a".repeat(9000)), "414"),
            (with(&format!("X: {}", "a".repeat(33_000))), "431"),
            (format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(33_000)), "431"),
            (many(100), "431"),
        ];
        for (request, status) in rows {
            let shown = &request[..request.len().min(100)];
            assert_eq!(read(request.as_bytes()).split(':').next().unwrap(), status, "{shown:?}");
        }
        assert!(read(long(8191).as_bytes()).starts_with("GET /aaaa"));
        assert!(read(many(99).as_bytes()).starts_with("GET /"));
    }

    #[test]
    fn fields_that_matter_are_remembered() {
        for (line, seen) in [
            ("IF-NONE-MATCH: *", Seen::CONDITION),
            ("If-Match: *", Seen::CONDITION),
            ("If-Modified-Since: x", Seen::CONDITION),
            ("If-Unmodified-Since: x", Seen::CONDITION),
            ("Range: bytes=0-", Seen::RANGE),
            ("Cache-Control: no-cache", Seen::DIRECTIVES),
            ("Pragma: no-cache", Seen::DIRECTIVES),
            ("Authorization: x", Seen::AUTHORIZATION),
            ("Cookie: x", Seen::COOKIE),
            ("Upgrade: websocket", Seen::UPGRADE),
            ("Expect: 100-continue", Seen::EXPECT),
            ("Via: 1.1 x", Seen::FORWARDED),
            ("Forwarded: for=x", Seen::FORWARDED),
            ("X-Forwarded-For: x", Seen::FORWARDED),
            ("X-Forwarded-Proto: x", Seen::FORWARDED),
            ("X-Forwarded-Host: x", Seen::FORWARDED),
            ("Accept: x", Seen::default()),
        ] {
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
            let mut lines = lines();
            let head = RequestHead::parse(request.as_bytes(), &mut lines).unwrap();
            assert_eq!(head.seen, Seen::HOST.with(seen), "{line}");
        }
    }

    /// What a connection says of a head, with what it knows and without.
    fn read_twice(known: &mut KnownSection, request: &[u8], header_bytes_max: usize) -> (String, String) {
        let shown = |head: Result<RequestHead<'_>, Refusal>| match head {
            Ok(head) => {
                let facts = (head.method, head.target, head.path_bytes, head.absolute, head.http_11, head.http_2);
                let site = (head.host, &head.authority, head.keep_alive, head.body, head.seen, head.head_bytes);
                format!("{facts:?} {site:?} {:?}", head.iter().collect::<Vec<_>>())
            }
            Err(refusal) => refusal.to_string(),
        };
        let (mut some_lines, mut other_lines) = (lines(), lines());
        let plain = Scan::default().advance(request, header_bytes_max);
        let with = match known.find(request, header_bytes_max).map_or(plain, |bytes| Ok(Some(bytes))) {
            Ok(Some(bytes)) => format!("{bytes} {}", shown(known.read(&request[..bytes], &mut some_lines))),
            other => format!("{other:?}"),
        };
        let without = match plain {
            Ok(Some(bytes)) => format!("{bytes} {}", shown(RequestHead::parse(&request[..bytes], &mut other_lines))),
            other => format!("{other:?}"),
        };
        (with, without)
    }

    const SECTION: &str = "Host: Example.org:81\r\nAccept:  x \r\nempty:\r\nCookie: a=b\r\n\r\n";

    #[test]
    fn a_known_section_is_read_as_before() {
        let mut known = KnownSection::default();
        assert_eq!(known.find(b"GET / HTTP/1.1\r\n\r\n", 100), None);
        for (line, found) in [
            ("GET /a HTTP/1.1\r\n", false),
            ("GET /b?c HTTP/1.1\r\n", true),
            ("HEAD /%41.jpg HTTP/1.1\r\n", true),
            ("POST / HTTP/1.1\r\n", false),
            ("GET / HTTP/1.0\r\n", false),
            ("GET / HTTP/1.1\r\n", false),
            ("GET / HTTP/1.1\n", false),
            ("\r\n", false),
            ("\r\nGET / HTTP/1.1\r\n", false),
            ("GET / HTTP/1.1\r\nX: y\r\n", false),
            ("GET / HTTP/1.1\r\n", false),
            ("GET /.. HTTP/1.1\r\n", false),
            ("GET http://example.org:81/ HTTP/1.1\r\n", false),
            ("GET / HTTP/1.1\r\n", true),
        ] {
            let request = format!("{line}{SECTION}GET /next");
            assert_eq!(known.find(request.as_bytes(), 4096).is_some(), found, "{line:?}");
            let (with, without) = read_twice(&mut known, request.as_bytes(), 4096);
            assert_eq!(with, without, "{line:?}");
        }
        let request = format!("GET / HTTP/1.1\r\n{SECTION}");
        assert_eq!(known.find(request.as_bytes(), request.len()), Some(request.len()));
        assert_eq!(known.find(request.as_bytes(), request.len() - 1), None);
        assert_eq!(known.find(&request.as_bytes()[..request.len() - 1], 4096), None);
        known.forget();
        assert_eq!(known.find(request.as_bytes(), 4096), None);
    }

    #[test]
    fn fields_become_a_block_only_when_asked() {
        let mut lines = lines();
        let head = RequestHead::parse(b"GET /a?b HTTP/1.1\r\nHost: a\r\nAccept:  x \r\naccept: y\r\n\r\n", &mut lines)
            .unwrap();
        assert_eq!(head.path(), b"/a");
        assert_eq!(head.get("ACCEPT"), Some(&b"x"[..]));
        assert_eq!(head.to_fields().as_bytes().as_ref(), b"Host: a\r\nAccept: x\r\naccept: y\r\n");
        assert_eq!(head.fields_where(|name| name == "accept").as_bytes().as_ref(), b"accept: y\r\n");
    }

    proptest! {
        /// However the bytes arrive, the scan finds the same end, and nothing behind it changes the reading.
        #[test]
        fn pieces_do_not_matter(cuts in prop::collection::vec(0usize..80, 0..5), behind in prop::collection::vec(any::<u8>(), 0..20)) {
            let request = b"\r\nGET /some/path?query HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n";
            let mut all = request.to_vec();
            all.extend_from_slice(&behind);
            let mut scan = Scan::default();
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut found = None;
            for cut in cuts.into_iter().filter(|&cut| cut < all.len()).chain([all.len()]) {
                found = scan.advance(&all[..cut], 32 * 1024).unwrap();
                if found.is_some() {
                    break;
                }
            }
            prop_assert_eq!(found, Some(request.len()));
        }

        /// Whatever came before on a connection, a head is read as if it were the first.
        #[test]
        fn what_is_known_changes_no_reading(
            before in prop::sample::select(&[SECTION, "Host: a\r\n\r\n", "Host: a\r\nContent-Length: 2\r\n\r\n"][..]),
            section in prop::sample::select(&[SECTION, "Host: a\r\n\r\n", "\r\n"][..]),
            line in "(GET|HEAD|PUT) (/|/a\\.|/\\.|\\?|%2e|x|\\\\|\u{e4}){1,5} HTTP/1\\.[01]\r?\n",
            header_bytes_max in 40usize..200,
        ) {
            let mut known = KnownSection::default();
            for request in [format!("GET / HTTP/1.1\r\n{before}"), format!("{line}{section}"), format!("{line}{section}")] {
                let (with, without) = read_twice(&mut known, request.as_bytes(), header_bytes_max);
                prop_assert_eq!(with, without);
            }
        }

        #[test]
        fn no_bytes_upset_the_gate(bytes in prop::collection::vec(prop::sample::select(&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\0,;\xff%?#"[..]), 0..200)) {
            read(&bytes);
        }

        /// Whatever one byte of a request becomes, what is accepted still has one reading: the bytes it came from.
        #[test]
        fn a_changed_byte_is_refused_or_read_as_it_stands(place in 0usize..62, byte in any::<u8>()) {
            let mut request = b"POST /a/b?c HTTP/1.1\r\nHost: example.org\r\nContent-Length: 5\r\n\r\n".to_vec();
            request[place] = byte;
            let mut scan = Scan::default();
            if let Ok(Some(end)) = scan.advance(&request, 4096) {
                let mut lines = lines();
                if let Ok(head) = RequestHead::parse(&request[..end], &mut lines) {
                    prop_assert_eq!(head.http_11, request.windows(8).any(|window| window == b"HTTP/1.1"));
                    prop_assert!(head.target.starts_with(b"/"));
                    let declares = head.get("content-length").is_some();
                    prop_assert_eq!(declares && head.get("content-length") != Some(b"0"), head.body != BodyFraming::None);
                }
            }
        }
    }
}
