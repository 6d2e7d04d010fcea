//! Go's groupcache and its forks: how their keys look on the wire, and how their questions are answered.
//!
//! A Go peer asks `GET {base path}{group}/{key}` and wants a protobuf `GetResponse` with the bytes of the value, or an error
//! status. It proves nothing, gives no sign of life, and knows no header fields; whoever lets it ask has checked its address.
//!
//! **Keys.** What Go calls the key is our key with its path percent-decoded ([`go_key`]). Different keys of ours can therefore
//! be one Go key; only the one in canonical form ([`key_from_go`]) is ever asked of a Go owner, and only if Go's mux does not
//! redirect it ([`go_can_carry`]). Read in golang/groupcache `http.go` (as packaged by Debian), mailgun/groupcache `http.go`,
//! groupcache-go v3 `transport/http_transport.go`, and Go 1.19 `net/http/server.go` (`cleanPath`).

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};
use prost::Message as _;

use crate::clock::Now;
use crate::fields::Fields;
use crate::freshness::HopFreshness;
use crate::peer::{AskContext, Owner};
use crate::source::{Deaf, FetchError, Fetched, Hop};

/// The generated messages of `proto/groupcache.proto`.
mod wire {
    // GetRequest is part of the contract, but over HTTP its fields are in the path.
    #![allow(missing_docs, dead_code, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/groupcachepb.rs"));
}

/// Which of the Go libraries the ring is shared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// golang/groupcache.
    Golang,
    /// mailgun/groupcache.
    Mailgun,
    /// groupcache/groupcache-go v3.
    V3,
}

impl Dialect {
    /// Whether it is one of the forks, which know expiry and "not found".
    pub fn is_fork(self) -> bool {
        self != Dialect::Golang
    }

    /// What its peers are told when there is no value for another reason than that there is none.
    fn failure_status(self) -> u16 {
        if self.is_fork() { 503 } else { 500 }
    }
}

/// The key that a Go peer has for our `key`: its path percent-decoded, its query as it is. The ring of a Go fleet hashes this.
/// `None` when a percent sign is not followed by two digits.
pub fn go_key(key: &[u8]) -> Option<Vec<u8>> {
    let (path, query) = key.split_at(memchr::memchr(b'?', key).unwrap_or(key.len()));
    let mut go_key = decode(path)?;
    go_key.extend_from_slice(query);
    Some(go_key)
}

/// Our key for a Go key, in canonical form: in the path everything is encoded that RFC 3986 section 3.3 does not allow there,
/// in the query what section 3.4 does not. `go_key(key_from_go(k)) == k`, but for queries that needed encoding.
pub fn key_from_go(go_key: &[u8]) -> Bytes {
    let (path, query) = go_key.split_at(memchr::memchr(b'?', go_key).unwrap_or(go_key.len()));
    let mut key: Vec<u8> = percent_encode(path, PATH).to_string().into();
    for (index, &byte) in query.iter().enumerate() {
        let is_escape =
            byte == b'%' && query[index..].get(1..3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        if is_escape {
            key.push(byte);
        } else {
            key.extend_from_slice(percent_encode(&[byte], QUERY).to_string().as_bytes());
        }
    }
    key.into()
}

/// Whether a Go owner can be asked for our `key`: it is the canonical form of its Go key, and Go's mux, which cleans the
/// decoded path, leaves it alone (no empty segment, no dot segment). The empty key is not asked either.
pub fn go_can_carry(key: &[u8]) -> bool {
    let Some(go_key) = go_key(key) else { return false };
    let mut segments = go_key.split(|&byte| byte == b'/');
    let last = segments.next_back().unwrap_or_default();
    !go_key.is_empty()
        && key_from_go(&go_key) == key
        && segments.all(|segment| !matches!(segment, b"" | b"." | b".."))
        && !matches!(last, b"." | b"..")
}

/// The path and nothing but the path of a question to a Go peer, strictly encoded: no dialect reads it in two ways.
pub fn question_path(base_path: &str, group: &str, key: &[u8]) -> Option<String> {
    let go_key = go_key(key)?;
    Some(format!("{base_path}{}/{}", percent_encode(group.as_bytes(), STRICT), percent_encode(&go_key, STRICT)))
}

/// A Go peer's question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoQuestion {
    /// Name of the group.
    pub group: String,
    /// The key as Go knows it.
    pub go_key: Bytes,
}

impl GoQuestion {
    /// Takes the path of a request, as it was received. `None` when it is no question: another base path, no key, a query, or
    /// a malformed escape.
    pub fn parse(dialect: Dialect, base_path: &str, path: &[u8]) -> Option<Self> {
        let rest = path.strip_prefix(base_path.as_bytes())?;
        if rest.iter().any(|byte| matches!(byte, b'?' | b'#') || !byte.is_ascii_graphic()) {
            return None;
        }
        // golang/groupcache escapes as for a query, where a space becomes a plus; the forks escape as for a path.
        let decoded = match dialect {
            Dialect::Golang => {
                decode(&rest.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect::<Vec<_>>())?
            }
            Dialect::Mailgun | Dialect::V3 => decode(rest)?,
        };
        let slash = memchr::memchr(b'/', &decoded)?;
        let group = std::str::from_utf8(&decoded[..slash]).ok().filter(|group| !group.is_empty())?.to_owned();
        Some(GoQuestion { group, go_key: Bytes::from(decoded).slice(slash + 1..) })
    }
}

/// The answer to a Go peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoAnswer {
    /// Status code.
    pub status: u16,
    /// For `Content-Type`.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
}

impl GoAnswer {
    fn error(status: u16, text: &'static str) -> Self {
        GoAnswer { status, content_type: "text/plain; charset=utf-8", body: Bytes::from_static(text.as_bytes()) }
    }
}

/// Answers a Go peer's request. Its path is taken as received. Values longer than `value_bytes_max` are not given: this
/// protocol cannot stream.
pub async fn answer_go(
    owner: &dyn Owner,
    dialect: Dialect,
    base_path: &str,
    path: &[u8],
    now: Now,
    value_bytes_max: u64,
) -> GoAnswer {
    let Some(question) = GoQuestion::parse(dialect, base_path, path) else {
        return GoAnswer::error(400, "bad request\n");
    };
    let Some(mut ask) = owner.ask_for_key(&question.group, key_from_go(&question.go_key)) else {
        return GoAnswer::error(404, "no such group or key\n");
    };
    // A Go value has no header fields, so a negotiated form would be given to those who cannot read it.
    let Ok(fields) = Fields::from_pairs([("Accept-Encoding", "identity")]) else {
        return GoAnswer::error(dialect.failure_status(), "failed\n");
    };
    ask.fields = fields;
    let failed = |text| GoAnswer::error(dialect.failure_status(), text);
    match owner.get_as_owner(ask, AskContext::default(), &Deaf).await {
        Ok(fetched) if matches!(fetched.status, 404 | 410) => GoAnswer::error(404, "not found\n"),
        Ok(fetched) => match value_of(fetched, value_bytes_max).await {
            Ok((value, fields, hop)) => {
                let response = wire::GetResponse {
                    value: Some(value),
                    // Of the last seconds, but no other unit is known here.
                    minute_qps: Some(f64::from(hop.minute_rate) / 60.0).filter(|rate| *rate > 0.0),
                    expire: dialect.is_fork().then(|| expire_nanoseconds(now, hop.freshness.remaining_milliseconds)),
                    metadata: Some(wire::Metadata {
                        fields: Some(described(&fields).as_bytes().clone()),
                        age_milliseconds: Some(hop.freshness.age_milliseconds),
                    }),
                };
                GoAnswer { status: 200, content_type: "application/x-protobuf", body: response.encode_to_vec().into() }
            }
            Err(text) => failed(text),
        },
        Err(FetchError::Unreachable(_) | FetchError::Refused { .. } | FetchError::Broken(_)) => {
            failed("the origin did not answer\n")
        }
    }
}

/// The group and our key that a Go peer's `DELETE` means, by the same path as a question.
pub fn deleted_by_go(dialect: Dialect, base_path: &str, path: &[u8]) -> Option<(String, Bytes)> {
    let question = GoQuestion::parse(dialect, base_path, path).filter(|_| dialect.is_fork())?;
    Some((question.group, key_from_go(&question.go_key)))
}

/// The whole value of an answer that any Go peer may keep as long as it likes.
async fn value_of(mut fetched: Fetched, value_bytes_max: u64) -> Result<(Bytes, Fields, Hop), &'static str> {
    let hop = fetched.hop.take().filter(|hop| hop.storable && hop.shareable);
    let identity = |coding: &[u8]| coding.eq_ignore_ascii_case(b"identity");
    if fetched.status != 200 || !fetched.fields.get_all("content-encoding").all(identity) {
        return Err("the origin's answer is no value\n");
    }
    let hop = hop.ok_or("the origin's answer may not be shared\n")?;
    let mut value = Vec::new();
    while let Some(chunk) = fetched.body.chunk().await.map_err(|_| "the origin's answer broke off\n")? {
        if (value.len() + chunk.len()) as u64 > value_bytes_max {
            return Err("the value is too long\n");
        }
        value.extend_from_slice(&chunk);
    }
    Ok((value.into(), fetched.fields, hop))
}

/// The only absolute time that leaves this node, because the forks know no other; never zero, which means for ever.
fn expire_nanoseconds(now: Now, remaining_milliseconds: i64) -> i64 {
    let remaining = remaining_milliseconds.max(0);
    now.wall_seconds.saturating_mul(1_000_000_000).saturating_add(remaining.saturating_mul(1_000_000)).max(1)
}

/// The fields that make sense without the others.
fn described(fields: &Fields) -> Fields {
    fields.without(|name| !DESCRIBING_FIELDS.iter().any(|kept| name.eq_ignore_ascii_case(kept)))
}

/// What a Go peer's `GetResponse` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoValue {
    /// The value: the body of an answer.
    pub value: Bytes,
    /// `Content-Type`, `ETag` and `Last-Modified`, where the peer is one of ours that speaks this protocol.
    pub fields: Fields,
    /// `None` when the peer set no expiry: then the group's own rules for origins apply.
    pub hop: Option<Hop>,
}

impl GoValue {
    /// Reads the body of a Go peer's answer.
    ///
    /// # Errors
    /// The bytes are not a `GetResponse`.
    pub fn decode(body: Bytes, now: Now) -> Result<Self, &'static str> {
        let response = wire::GetResponse::decode(body).map_err(|_| "the Go peer's answer is not a GetResponse")?;
        let metadata = response.metadata.unwrap_or_default();
        let fields =
            Fields::parse(metadata.fields.unwrap_or_default()).map(|fields| described(&fields)).unwrap_or_default();
        let hop = response.expire.filter(|&expire| expire != 0).map(|expire| {
            let remaining = expire.saturating_sub(now.wall_seconds.saturating_mul(1_000_000_000)) / 1_000_000;
            Hop {
                freshness: HopFreshness {
                    age_milliseconds: metadata.age_milliseconds.unwrap_or_default(),
                    remaining_milliseconds: remaining,
                    ..HopFreshness::default()
                },
                shareable: true,
                storable: true,
                hit: true,
                minute_rate: response.minute_qps.map_or(0, |rate| (rate * 60.0) as u32),
                ..Hop::default()
            }
        });
        Ok(GoValue { value: response.value.unwrap_or_default(), fields, hop })
    }
}

/// Percent-decodes strictly: every percent sign must be an escape.
fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut escapes = memchr::memchr_iter(b'%', bytes);
    let whole = |at: usize| bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    escapes.all(whole).then(|| percent_decode(bytes).collect())
}

/// RFC 3986 section 2.3: what never needs encoding.
const STRICT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// RFC 3986 section 3.3: `pchar` and the slash.
const PATH: &AsciiSet = &STRICT
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@')
    .remove(b'/');
/// RFC 3986 section 3.4.
const QUERY: &AsciiSet = &PATH.remove(b'?');
const DESCRIBING_FIELDS: [&str; 3] = ["content-type", "etag", "last-modified"];

#[cfg(test)]
#[path = "go_tests.rs"]
mod tests;
