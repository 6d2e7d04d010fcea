//! The pass-through lane: requests in which the cache has no part go to the origin as they are, streamed both ways.
//!
//! Everything about the request has been checked before it comes here; the lane says in [`PassFacts`] where it belongs and
//! why it passes. What is written to the origin is pingora's serialisation of a head that is put together here.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ipnet::IpNet;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::{Error, ErrorSource, ErrorType, OkOrErr, Result};

use super::Edge;
use super::access_log::Record;
use super::connection::RATE_GRACE;
use super::head_writer::Http2Head;
use super::reset::ClientSocket;
use super::response::{Body, FieldRules, Response, VIA};
use super::sites::Site;
use crate::clock::Now;
use crate::fields::Fields;
use crate::flight::INTERIMS_MAX;
use crate::freshness::{SURROGATE_CAPABILITY, is_for_one_connection, is_safe, nominated_by_connection};
use crate::invalidate::{Deposit, Passed};
use crate::permits::Permit;
use crate::purge::Stamp;
use crate::semantics::cache_status::{CacheStatus, ForwardReason, Handling};
use crate::semantics::forward::{Credentials, stays_inside};
use crate::source::FetchError;
use crate::stats::Outcome;

/// Where the requests of one group go when they pass.
#[async_trait]
pub trait PassTarget: Send + Sync {
    /// Chooses an origin. `attempt` counts from 0: after a failure another one is wanted, if there is another.
    ///
    /// # Errors
    /// None can be named; the text is fit for a client.
    async fn choose(&self, attempt: usize) -> Result<PassPeer, &'static str>;

    /// How often another origin is tried when one cannot be reached.
    fn retries(&self) -> usize;
}

/// One origin for one request.
pub struct PassPeer {
    /// Address, TLS and timeouts. All timeouts should be set; those that are not are set to those of [`PassTimeouts`].
    pub peer: HttpPeer,
    /// Put before the target, without a slash at its end.
    pub base_path: Cow<'static, str>,
    /// `Host`; `None`: the client's.
    pub host: Option<Cow<'static, str>>,
    /// Used where the peer sets none.
    pub timeouts: PassTimeouts,
}

/// Limits of the origin's slowness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassTimeouts {
    /// Connecting, with TLS.
    pub connect: Duration,
    /// From the request to the head, and between two pieces of the body.
    pub read: Duration,
    /// Between two pieces of the request's body that the origin takes.
    pub write: Duration,
    /// How long an idle connection is kept.
    pub idle: Duration,
}

impl Default for PassTimeouts {
    fn default() -> Self {
        PassTimeouts {
            connect: Duration::from_secs(1),
            read: Duration::from_secs(15),
            write: Duration::from_secs(10),
            idle: Duration::from_secs(60),
        }
    }
}

/// What the lane knows of a request that passes.
#[derive(Clone)]
pub struct PassFacts {
    /// The group.
    pub site: Arc<Site>,
    /// The key that a `GET` of the same target has.
    pub key: Bytes,
    /// Path and query for the origin, behind its own base path.
    pub target: Bytes,
    /// Target as received, for the log.
    pub received_target: Bytes,
    /// Why it passes.
    pub reason: ForwardReason,
    /// More about it, in a word of ours.
    pub detail: Option<&'static str>,
    /// The client, as far as known.
    pub client: Option<SocketAddr>,
    /// Whether the client's connection is protected by TLS.
    pub tls: bool,
    /// When the head arrived.
    pub started: Now,
    /// Which purges were recorded then.
    pub purges: Stamp,
    /// The client's connection, where the answer is the only one on it.
    pub socket: Option<ClientSocket>,
}

/// The pass-through proxy. One for the process; [`pingora::proxy::http_proxy`] makes the session handler of it.
pub struct Pass {
    edge: Arc<Edge>,
}

impl Pass {
    /// A proxy for the groups of `edge`.
    pub fn new(edge: Arc<Edge>) -> Self {
        Pass { edge }
    }

    /// What the answer to an unsafe request does to the caches of the fleet, before the client sees its head.
    async fn tell_cache(&self, request: Unsafe, response: &ResponseHeader, passing: &mut Passing) -> Result<()> {
        let facts = passing.facts()?;
        let host = passing.peer_fields.as_ref().and_then(|(_, host)| host.as_deref()).unwrap_or_default();
        let fields = end_to_end(&response.headers);
        let content_length = response.headers.get(http::header::CONTENT_LENGTH);
        let group = &facts.site.group;
        // Variants are told apart by what a later GET would send; the credentials decide whether anything is shared.
        let sent = group.forward.forwarded(&request.fields, Credentials { authorization: true, cookies: false });
        let asked = passing.peer_fields.as_ref().map(|(path, _)| &path[..]).unwrap_or_default();
        let prefixes = [asked, &facts.received_target[..]].map(|path| prefix_of(path, &facts.target));
        let passed = Passed {
            key: &facts.key,
            authorities: &[host, &request.host],
            prefixes,
            method: request.method.as_str(),
            directives: group.directives(&request.fields),
            sent: &sent,
            status: response.status.as_u16(),
            fields: &fields,
            content_length: content_length.and_then(|length| length.to_str().ok()?.parse().ok()),
            requested_at: facts.started,
            stamp: &facts.purges,
        };
        let (_, invalidated) = self.edge.cache.invalidate_everywhere(group, passed.invalidated_keys(group)).await;
        // What was said to one client's cookie is not for others.
        if group.cached && !request.fields.contains("cookie") {
            passing.deposit = self.edge.cache.deposit(group, &passed, invalidated);
        }
        Ok(())
    }
}

/// What of an unsafe request matters for the cache.
struct Unsafe {
    method: http::Method,
    host: String,
    fields: Fields,
}

impl Unsafe {
    fn of(request: &RequestHeader) -> Self {
        let host = String::from_utf8_lossy(host_of(request)).into_owned();
        Unsafe { method: request.method.clone(), host, fields: end_to_end(&request.headers) }
    }
}

/// What stands before `target` in `path`, which differs from it in nothing else; empty where that cannot be said.
fn prefix_of<'a>(path: &'a [u8], target: &[u8]) -> &'a str {
    let prefix = path.strip_suffix(target).unwrap_or_default();
    std::str::from_utf8(prefix).unwrap_or_default()
}

/// A header section without its framing; what belongs to the connection is left out when it is stored.
fn end_to_end(headers: &http::HeaderMap) -> Fields {
    let kept = headers.iter().filter(|(name, _)| **name != http::header::CONTENT_LENGTH);
    Fields::from_pairs(kept.map(|(name, value)| (name.as_str(), value.as_bytes()))).unwrap_or_default()
}

/// The state of one request.
pub struct Passing {
    facts: Option<Arc<PassFacts>>,
    attempts: usize,
    peer_fields: Option<(Bytes, Option<Cow<'static, str>>)>,
    /// Interim answers of the origin so far.
    interims: usize,
    body_bytes: u64,
    body_since: Option<tokio::time::Instant>,
    failure: Cow<'static, str>,
    /// Whether the answer broke off behind its head.
    broken: bool,
    /// The answer to a `POST` on its way into the store.
    deposit: Option<Deposit>,
    /// Where the origin is limited: the right to be there, until this request has ended.
    permit: Option<Permit>,
}

#[async_trait]
impl ProxyHttp for Pass {
    type CTX = Passing;

    fn new_ctx(&self) -> Passing {
        Passing {
            facts: None,
            attempts: 0,
            peer_fields: None,
            interims: 0,
            body_bytes: 0,
            body_since: None,
            failure: Cow::Borrowed(""),
            broken: false,
            deposit: None,
            permit: None,
        }
    }

    /// No module is wanted; the default adds one for compression.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    fn on_connection_reuse(
        &self,
        _session: &mut Session,
        passing: &mut Passing,
        handed_over: Box<dyn std::any::Any + Send + Sync>,
    ) {
        passing.facts = handed_over.downcast::<Arc<PassFacts>>().ok().map(|facts| *facts);
    }

    async fn early_request_filter(&self, session: &mut Session, passing: &mut Passing) -> Result<()> {
        if passing.facts.is_none() {
            passing.facts = session.req_header().extensions.get::<Arc<PassFacts>>().cloned();
        }
        // HTTP/1.0 has no interim answers (RFC 9110 section 15.2).
        if session.req_header().version == http::Version::HTTP_10 {
            session.as_downstream_mut().set_ignore_info_resp(true);
        }
        match &passing.facts {
            Some(_) => Ok(()),
            // Nobody hands a request over without its facts.
            None => Error::e_explain(ErrorType::HTTPStatus(500), "a request came without a group"),
        }
    }

    /// A request that may go no further ends here.
    async fn request_filter(&self, session: &mut Session, passing: &mut Passing) -> Result<bool> {
        let request = session.req_header();
        if forwards_left(request) != Some(0) {
            return Ok(false);
        }
        let facts = passing.facts()?;
        let allow = Fields::from_pairs([("Allow", facts.site.allow())]).unwrap_or_default();
        let response = Response::small(200, allow, Bytes::new(), false);
        let mut head = Http2Head::default();
        response.write_head(&FieldRules::default(), self.edge.cache.now(), &mut head);
        let head = ResponseHeader::from(head.finish(response.framing()).into_parts().0);
        session.as_downstream_mut().write_error_response(head, Bytes::new()).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, _session: &mut Session, passing: &mut Passing) -> Result<Box<HttpPeer>> {
        let facts = passing.facts()?;
        let target = facts.site.target.clone().or_err(ErrorType::HTTPStatus(502), "the group has no origin")?;
        if passing.permit.is_none() {
            match self.edge.cache.permit(&facts.site.group).await {
                Ok(permit) => passing.permit = permit,
                Err(error) => {
                    let (status, reason) = match error {
                        FetchError::Refused { status, reason } => (status, reason),
                        FetchError::Unreachable(reason) | FetchError::Broken(reason) => (503, reason),
                    };
                    passing.failure = reason;
                    return Error::e_explain(ErrorType::HTTPStatus(status), "no permit");
                }
            }
        }
        let chosen = match target.choose(passing.attempts).await {
            Ok(chosen) => chosen,
            Err(reason) => {
                passing.failure = Cow::Borrowed(reason);
                return Error::e_explain(ErrorType::HTTPStatus(502), reason);
            }
        };
        passing.attempts += 1;
        let path = [chosen.base_path.as_bytes(), &facts.target].concat();
        passing.peer_fields = Some((path.into(), chosen.host));
        let mut peer = chosen.peer;
        let (options, timeouts) = (&mut peer.options, chosen.timeouts);
        options.connection_timeout.get_or_insert(timeouts.connect);
        options.total_connection_timeout.get_or_insert(timeouts.connect);
        options.read_timeout.get_or_insert(timeouts.read);
        options.write_timeout.get_or_insert(timeouts.write);
        options.idle_timeout.get_or_insert(timeouts.idle);
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        passing: &mut Passing,
    ) -> Result<()> {
        let facts = passing.facts()?;
        let Some((path, host)) = &passing.peer_fields else {
            return Error::e_explain(ErrorType::InternalError, "no origin was chosen");
        };
        let version = session.req_header().version;
        rewrite_request(upstream, &facts, version, path, host.as_deref(), &self.edge.trusted_proxies)?;
        // Interim answers over HTTP/2 are not shown to us, and a client that waits for a 100 would not hear of it: it gets
        // ours, and the origin is not asked for one (RFC 9110 section 10.1.1).
        if upstream.version == http::Version::HTTP_2
            && upstream.remove_header("expect").is_some()
            && version != http::Version::HTTP_10
        {
            let go_on = ResponseHeader::build(http::StatusCode::CONTINUE, Some(0))?;
            session.as_downstream_mut().write_response_header(Box::new(go_on)).await?;
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        passing: &mut Passing,
    ) -> Result<()> {
        let Some(bytes) = body.as_ref().map(|body| body.len() as u64).filter(|bytes| *bytes > 0) else {
            return Ok(());
        };
        let limits = self.edge.limits();
        passing.body_bytes += bytes;
        if limits.body_bytes > 0 && passing.body_bytes > limits.body_bytes {
            passing.failure = Cow::Borrowed("the body is too large");
            return Error::e_explain(ErrorType::HTTPStatus(413), "the body is too large");
        }
        let now = tokio::time::Instant::now();
        let since = *passing.body_since.get_or_insert(now);
        let seconds = now.saturating_duration_since(since).saturating_sub(RATE_GRACE).as_secs();
        if passing.body_bytes < limits.body_min_rate.saturating_mul(seconds) {
            passing.failure = Cow::Borrowed("the body comes too slowly");
            return Error::e_explain(ErrorType::HTTPStatus(408), "the body comes too slowly");
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        passing: &mut Passing,
    ) -> Result<()> {
        if response.status.is_informational() {
            passing.interims += 1;
            if passing.interims > INTERIMS_MAX {
                passing.failure = Cow::Borrowed("the origin sent too many interim answers");
                return Error::e_explain(ErrorType::HTTPStatus(502), "too many interim answers");
            }
        }
        // No upgrade was asked for; a tunnel is nothing that clients get.
        if response.status == 101 {
            passing.failure = Cow::Borrowed("the origin changed the protocol");
            return Error::e_explain(ErrorType::HTTPStatus(502), "the origin changed the protocol");
        }
        if !response.status.is_informational() && !is_safe(session.req_header().method.as_str()) {
            let request = Unsafe::of(session.req_header());
            self.tell_cache(request, response, passing).await?;
        }
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        passing: &mut Passing,
    ) -> Result<Option<Duration>> {
        let Some(mut deposit) = passing.deposit.take() else { return Ok(None) };
        let goes_on = body.as_ref().is_none_or(|bytes| deposit.push(bytes));
        match (goes_on, end_of_stream) {
            (true, true) => deposit.finish(),
            (true, false) => passing.deposit = Some(deposit),
            (false, _) => {}
        }
        Ok(None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        passing: &mut Passing,
    ) -> Result<()> {
        if response.status.is_informational() {
            rewrite_interim(response, &*passing.facts()?);
            return Ok(());
        }
        // A client of HTTP/1.0 knows no chunks (RFC 9112 section 6.1): the end of the connection ends its body.
        if session.req_header().version == http::Version::HTTP_10 && !response.headers.contains_key("content-length") {
            response.remove_header("transfer-encoding");
            session.set_keepalive(None);
        }
        rewrite_response(response, &*passing.facts()?)
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _peer: &HttpPeer,
        passing: &mut Passing,
        mut error: Box<Error>,
    ) -> Box<Error> {
        passing.failure = Cow::Borrowed("the origin cannot be reached");
        let retries =
            passing.facts.as_ref().and_then(|facts| facts.site.target.as_ref()).map_or(0, |target| target.retries());
        error.set_retry(session.req_header().method.is_safe() && passing.attempts <= retries);
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        passing: &mut Passing,
        client_reused: bool,
    ) -> Box<Error> {
        if *error.esource() == ErrorSource::Upstream && passing.failure.is_empty() {
            passing.failure = Cow::Borrowed(match error.etype() {
                ErrorType::ReadTimedout | ErrorType::WriteTimedout => "the origin is too slow",
                _ => "the origin broke off",
            });
        }
        // A connection that was kept open may have been closed at that very moment: a safe request is sent once more.
        match session.req_header().method.is_safe() && !session.as_ref().retry_buffer_truncated() {
            true => error.retry.decide_reuse(client_reused),
            false => error.set_retry(false),
        }
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, passing: &mut Passing) -> FailToProxy {
        let status = status_of(error);
        passing.broken = session.response_written().is_some_and(|response| !response.status.is_informational());
        if status > 0 {
            let reason = match &*passing.failure {
                "" => Cow::Borrowed(default_reason(status)),
                _ => passing.failure.clone(),
            };
            let head_only = session.req_header().method == http::Method::HEAD;
            let own = Response::own(status, reason, Fields::empty(), head_only, self.edge.cache.now());
            let mut response = match &passing.facts {
                Some(facts) => own.after_forwarding(facts.reason),
                None => own,
            };
            let mut head = Http2Head::default();
            response.write_head(&FieldRules::default(), self.edge.cache.now(), &mut head);
            let head = ResponseHeader::from(head.finish(response.framing()).into_parts().0);
            let body = match response.body() {
                Body::Segments(segments) => Bytes::from(segments.shared().concat()),
                _ => Bytes::new(),
            };
            if session.as_downstream_mut().write_error_response(head, body).await.is_err() {
                tracing::debug!("a client left before its error");
            }
        }
        FailToProxy { error_code: status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, passing: &mut Passing) {
        let Some(facts) = &passing.facts else { return };
        let status = session.response_written().map_or(0, |response| response.status.as_u16());
        let body_bytes = session.body_bytes_sent() as u64;
        let has_end = session.response_written().is_some_and(|response| {
            response.headers.contains_key("content-length") || response.headers.contains_key("transfer-encoding")
        });
        if let Some(socket) = facts.socket.filter(|_| passing.broken && !has_end) {
            socket.reset_on_close();
        }
        let outcome = if error.is_some() { Outcome::Error } else { Outcome::Pass };
        facts.site.group.stats.client.count(outcome, body_bytes);
        if !self.edge.log.wants(error.is_some()) {
            return;
        }
        let now = self.edge.cache.now();
        let request = session.req_header();
        self.edge.log.write(Record {
            wall_seconds: now.wall_seconds,
            client: facts.client,
            method: request.method.as_str().to_owned(),
            target: String::from_utf8_lossy(&facts.received_target).into_owned(),
            host: String::from_utf8_lossy(host_of(request)).into_owned(),
            version: match request.version {
                http::Version::HTTP_2 => "HTTP/2",
                http::Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            status,
            body_bytes,
            outcome: outcome.as_str(),
            detail: match (&*passing.failure, error) {
                ("", None) => Cow::Borrowed(facts.reason.as_str()),
                ("", Some(error)) => Cow::Borrowed(error.etype().as_str()),
                _ => passing.failure.clone(),
            },
            group: Some(facts.site.group.name.clone()),
            microseconds: now.monotonic.saturating_sub(facts.started.monotonic).as_micros() as u64,
            broken: error.is_some() && status < 400,
        });
    }

    /// Everything worth a line is in the access log.
    fn suppress_error_log(&self, _session: &Session, _passing: &Passing, _error: &Error) -> bool {
        true
    }
}

impl Passing {
    fn facts(&self) -> Result<Arc<PassFacts>> {
        self.facts.clone().or_err(ErrorType::InternalError, "a request without a group")
    }
}

/// Puts together what the origin is asked (hardening FRM 6): origin-form target, one `Host`, our own forwarding fields.
/// Framing and hop-by-hop fields are pingora's part, under the policy set on the peer.
fn rewrite_request(
    upstream: &mut RequestHeader,
    facts: &PassFacts,
    version: http::Version,
    path: &[u8],
    host: Option<&str>,
    trusted_proxies: &[IpNet],
) -> Result<()> {
    let client_host = host_of(upstream).to_vec();
    upstream.set_raw_path(path)?;
    let host = host.map_or(&client_host[..], str::as_bytes);
    upstream.remove_header("host");
    if !host.is_empty() {
        upstream.insert_header("Host", host)?;
    }
    let client = facts.client.map(|client| client.ip().to_canonical());
    let trusted = client.is_some_and(|client| is_trusted(trusted_proxies, client));
    if !trusted {
        for name in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "x-real-ip"] {
            upstream.remove_header(name);
        }
    }
    if let Some(client) = client {
        append_to_list(upstream, "X-Forwarded-For", &client.to_string())?;
    }
    if !upstream.headers.contains_key("x-forwarded-proto") {
        upstream.insert_header("X-Forwarded-Proto", if facts.tls { "https" } else { "http" })?;
    }
    for name in ["proxy-authorization", "proxy-connection", "upgrade", "http2-settings"] {
        upstream.remove_header(name);
    }
    let received = match version {
        http::Version::HTTP_10 => "1.0 groupcache-proxy",
        http::Version::HTTP_2 => "2.0 groupcache-proxy",
        _ => "1.1 groupcache-proxy",
    };
    append_to_list(upstream, "Via", received)?;
    if let Some(left) = forwards_left(upstream) {
        upstream.insert_header("Max-Forwards", left.saturating_sub(1))?;
    }
    upstream.insert_header("Surrogate-Capability", SURROGATE_CAPABILITY)?;
    let rules = &facts.site.to_origin;
    for name in rules.removed.iter().map(String::as_str).chain(rules.set.iter().map(|(name, _)| name)) {
        upstream.remove_header(name);
    }
    for (name, value) in rules.set.iter() {
        upstream.append_header(name.to_owned(), value)?;
    }
    Ok(())
}

fn rewrite_response(response: &mut ResponseHeader, facts: &PassFacts) -> Result<()> {
    drop_fields(response, |name| stays_inside(name) && is_tag(name));
    let rules = &facts.site.to_client;
    for name in rules.removed.iter().map(String::as_str).chain(rules.set.iter().map(|(name, _)| name)) {
        response.remove_header(name);
    }
    for (name, value) in rules.set.iter() {
        response.append_header(name.to_owned(), value)?;
    }
    let handling = Handling::Forwarded { reason: facts.reason, status: None, stored: false, collapsed: false };
    let mut value = Vec::with_capacity(64);
    CacheStatus { handling, detail: facts.detail, ..CacheStatus::default() }.write(&mut value);
    response.append_header("Cache-Status", &value[..])?;
    response.append_header("Via", VIA)?;
    Ok(())
}

/// What goes on of an interim answer: what the cache would pass on, with the cookies, which are this client's.
fn rewrite_interim(response: &mut ResponseHeader, facts: &PassFacts) {
    // Framing has no place in one (RFC 9110 section 8.6, RFC 9112 section 6.1).
    drop_fields(response, |name| {
        stays_inside(name) || matches!(name, "transfer-encoding" | "trailer") || facts.site.to_client.drops(name)
    });
}

/// Drops what is between the origin and us (RFC 9110 section 7.6.1), and what `dropped` says. Of an answer's framing pingora
/// makes its own.
fn drop_fields(response: &mut ResponseHeader, dropped: impl Fn(&str) -> bool) {
    let nominated = nominated_by_connection(&end_to_end(&response.headers));
    let is_framing = |name: &str| matches!(name, "content-length" | "transfer-encoding" | "trailer");
    let dropped = |name: &str| dropped(name) || is_for_one_connection(name, &nominated) && !is_framing(name);
    let names: Vec<http::HeaderName> = response.headers.keys().filter(|name| dropped(name.as_str())).cloned().collect();
    for name in names {
        response.remove_header(&name);
    }
}

/// Of the fields that stay inside, those that are not framing.
fn is_tag(name: &str) -> bool {
    !matches!(name, "content-length" | "age")
}

fn append_to_list(upstream: &mut RequestHeader, name: &'static str, member: &str) -> Result<()> {
    let mut list: Vec<u8> = Vec::new();
    for line in upstream.headers.get_all(name) {
        list.extend_from_slice(line.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(member.as_bytes());
    upstream.insert_header(name, &list[..])
}

/// Over how many nodes an `OPTIONS` may still go (RFC 9110 section 7.6.2); `None` is no limit. (`TRACE` goes nowhere.)
fn forwards_left(request: &RequestHeader) -> Option<u64> {
    let limited = request.method == http::Method::OPTIONS;
    let value = request.headers.get("max-forwards").filter(|_| limited)?.as_bytes();
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

/// The client's `Host`, which HTTP/2 calls `:authority`.
fn host_of(request: &RequestHeader) -> &[u8] {
    match request.uri.authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => request.headers.get("host").map_or(&[], |host| host.as_bytes()),
    }
}

/// Whether an address belongs to a load balancer whose word about the client is taken.
pub fn is_trusted(trusted_proxies: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    trusted_proxies.iter().any(|net| net.contains(&address))
}

/// The status for the client; 0 when it is gone.
fn status_of(error: &Error) -> u16 {
    match (error.etype(), error.esource()) {
        (ErrorType::HTTPStatus(status), _) => *status,
        (ErrorType::ConnectTimedout | ErrorType::ReadTimedout | ErrorType::WriteTimedout, ErrorSource::Upstream) => 504,
        (_, ErrorSource::Upstream) => 502,
        (ErrorType::WriteError | ErrorType::ConnectionClosed, ErrorSource::Downstream) => 0,
        (ErrorType::ReadTimedout, ErrorSource::Downstream) => 408,
        // A body whose chunks are malformed; or the connection broke, and nobody sees this.
        (_, ErrorSource::Downstream) => 400,
        (_, ErrorSource::Internal | ErrorSource::Unset) => 500,
    }
}

fn default_reason(status: u16) -> &'static str {
    match status {
        400 => "the request broke off",
        408 => "the body comes too slowly",
        413 => "the body is too large",
        502 => "the origin gave no answer",
        504 => "the origin is too slow",
        _ => "the request could not be passed on",
    }
}
