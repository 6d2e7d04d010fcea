//! The express lane: owns a client's connection of HTTP/1 and answers from the cache.
//!
//! ```text
//! receive a head ── refused ──────────────────────── say why, close
//!    │
//! decide ── a fresh hit ──────────────────────────── send: one vectored write, nothing allocated
//!    ├───── GET or HEAD, not in memory ───────────── ask the cache, stream while it arrives
//!    ├───── /_groupcache/ ────────────────────────── the endpoints
//!    └───── anything else ────────────────────────── one whole request to a pingora session, and the stream back
//! ```
//!
//! Every head of a connection is read and checked here, also those behind a request that passed: no second request is ever
//! parsed by looser rules.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use ipnet::IpNet;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;

use super::access_log::{AccessLog, Record};
use super::admission::Admission;
use super::body::{BodyReader, OneRequest};
use super::connection::{Connection, Drain, Gone, Limits, Pace, Received};
use super::endpoints::{self, EndpointAnswer, EndpointRequest, Endpoints, RoleTable, Roles};
use super::h2::Http2;
use super::pass::{Pass, PassFacts};
use super::request_head::{BodyFraming, Lines, Method, Refusal, RequestHead, Seen, lines};
use super::response::{Body, FieldRules, Framing, Http1Head, Response, Wanted};
use super::sites::{Site, Sites};
use crate::cache::{Cache, RangeAsked, Request};
use crate::clock::Now;
use crate::fields::Fields;
use crate::freshness::RequestDirectives;
use crate::key::HashedKey;
use crate::semantics::cache_status::ForwardReason;
use crate::semantics::forward::{Credentials, is_of_connection_or_fill};
use crate::semantics::ranges::{IfRange, RangeSet};
use crate::semantics::router::NoRoute;
use crate::source;
use crate::stats::{NodeStats, Outcome};
use crate::store::Role;

/// What all connections of this process share.
pub struct Edge {
    /// Where answers come from.
    pub cache: Arc<Cache>,
    /// The groups; replaced by a reload.
    pub sites: ArcSwap<Sites>,
    /// What lies under `/_groupcache/`.
    pub endpoints: Arc<dyn Endpoints>,
    /// The access log.
    pub log: Arc<AccessLog>,
    /// Counters that belong to no group.
    pub stats: Arc<NodeStats>,
    /// How long clients may take; a connection keeps those it began with.
    pub limits: ArcSwap<Limits>,
    /// What each listener is for.
    pub roles: RoleTable,
    /// Load balancers whose word about the client is taken.
    pub trusted_proxies: Vec<IpNet>,
    /// How many connections there may be.
    pub admission: Arc<Admission>,
    /// Whether the process is about to end.
    pub drain: Arc<Drain>,
}

impl Edge {
    /// The limits of now.
    pub fn limits(&self) -> Limits {
        **self.limits.load()
    }
}

/// The app of every listener of clients, peers and administration.
pub struct Lane {
    edge: Arc<Edge>,
    proxy: Arc<HttpProxy<Pass>>,
    http_2: Arc<Http2>,
}

impl Lane {
    /// A lane that hands what it does not answer to `proxy`, which is made of a [`Pass`] over the same `edge`.
    pub fn new(edge: Arc<Edge>, proxy: Arc<HttpProxy<Pass>>) -> Self {
        let http_2 = Arc::new(Http2::new(edge.clone(), proxy.clone()));
        Lane { edge, proxy, http_2 }
    }
}

#[async_trait]
impl ServerApp for Lane {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let client = ClientFacts::of(&stream, &self.edge.roles);
        let limited = client.roles.clients;
        let _admitted = match self.edge.admission.admit(client.peer.map(|peer| peer.ip()), limited) {
            Ok(admitted) => admitted,
            Err(limit) => {
                self.edge.stats.rejects.increment(limit);
                self.turn_away(stream).await;
                return None;
            }
        };
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            return self.http_2.process_new(stream, shutdown).await;
        }
        self.serve(stream, client, shutdown).await;
        None
    }

    async fn cleanup(&self) {
        self.edge.drain.begin();
        self.proxy.http_cleanup().await;
    }
}

/// What is known of a client's connection.
#[derive(Clone, Copy, Debug)]
pub struct ClientFacts {
    /// Address of the client.
    pub peer: Option<SocketAddr>,
    /// Address the client connected to.
    pub local: Option<SocketAddr>,
    /// What that listener is for.
    pub roles: Roles,
    /// Whether the connection is protected by TLS.
    pub tls: bool,
}

impl ClientFacts {
    fn of(stream: &Stream, roles: &RoleTable) -> Self {
        let digest = stream.get_socket_digest();
        let peer = digest.as_ref().and_then(|digest| digest.peer_addr()?.as_inet().copied());
        let local = digest.as_ref().and_then(|digest| digest.local_addr()?.as_inet().copied());
        ClientFacts { peer, local, roles: roles.roles_of(local), tls: stream.get_ssl_digest().is_some() }
    }
}

/// What becomes of the connection after a request.
enum Next {
    Keep(Connection),
    /// Close so that the client can read the answer.
    Close(Connection),
    /// The connection is broken, or somebody else's.
    Gone,
}

/// What is to be done with a request.
enum Decision {
    /// The answer is there and its head is written.
    Send(Response, Arc<Site>, Exit),
    /// The cache has to be asked.
    Load(Box<Load>),
    /// It passes.
    Pass(Box<Passing>),
    Endpoint(Box<EndpointRequest>, BodyFraming, Exit),
    /// An answer of ours; the connection may stay unless the exit says otherwise.
    Refuse(Refusal, Fields, Option<Arc<Site>>, Exit),
}

/// What matters of the request once its answer is known.
#[derive(Clone, Copy, Debug)]
struct Exit {
    http_11: bool,
    head_only: bool,
    keep_alive: bool,
    started: Now,
}

struct Load {
    site: Arc<Site>,
    request: Request,
    wanted: Wanted,
    exit: Exit,
    /// In case the cache has no part in it after all.
    passing: Option<Box<Passing>>,
    log: LogFacts,
}

struct Passing {
    /// The client's request in the one form that goes further.
    head: Vec<u8>,
    framing: BodyFraming,
    keep_alive: bool,
    facts: PassFacts,
}

/// What the log wants to know of a request that is not there any more.
#[derive(Clone, Debug)]
struct LogFacts {
    method: String,
    target: String,
    host: String,
}

impl LogFacts {
    fn of(head: &RequestHead<'_>) -> Self {
        LogFacts {
            method: head.method.as_str().to_owned(),
            target: String::from_utf8_lossy(head.target).into_owned(),
            host: String::from_utf8_lossy(head.host).into_owned(),
        }
    }
}

/// How an answer ended.
struct Sent {
    body_bytes: u64,
    /// Why it broke off.
    broken: Option<Cow<'static, str>>,
}

impl Lane {
    async fn serve(&self, stream: Stream, client: ClientFacts, shutdown: &ShutdownWatch) {
        let mut connection = Connection::new(stream, &[], self.edge.limits());
        let mut scratch = Scratch::default();
        loop {
            let head_bytes = match connection.receive_head(&self.edge.drain, shutdown).await {
                Received::Head(bytes) => bytes,
                Received::Closed => return,
                Received::Refused(refusal) => {
                    Box::pin(self.refuse_unread(connection, client, refusal)).await;
                    return;
                }
            };
            let decision = self.decide(&mut connection, head_bytes, client, &mut scratch);
            let next = match decision {
                Decision::Send(response, site, exit) => {
                    let segments = response.segments().unwrap_or_default();
                    let mut pace = Pace::default();
                    let head_length = connection.head.len() as u64;
                    let sent = connection.send(&mut pace, &segments, b"").await;
                    let body_bytes = pace.bytes.saturating_sub(head_length);
                    site.group.stats.client.count(response.outcome, body_bytes);
                    if self.edge.log.wants(sent.is_err()) {
                        self.log_hit(&connection, head_bytes, client, &response, &site, exit, body_bytes, sent.is_err());
                    }
                    drop(segments);
                    scratch.keep_site(site);
                    connection.consume(head_bytes);
                    match sent {
                        Err(_) => Next::Gone,
                        Ok(()) if exit.keep_alive => continue,
                        Ok(()) => Next::Close(connection),
                    }
                }
                other => {
                    connection.consume(head_bytes);
                    Box::pin(self.unusual(connection, other, client, shutdown)).await
                }
            };
            match next {
                Next::Keep(kept) => connection = kept,
                Next::Close(connection) => {
                    connection.close().await;
                    return;
                }
                Next::Gone => return,
            }
        }
    }

    /// Reads a whole head and decides. Nothing in here waits, and for a hit nothing is allocated.
    fn decide(
        &self,
        connection: &mut Connection,
        head_bytes: usize,
        client: ClientFacts,
        scratch: &mut Scratch,
    ) -> Decision {
        let now = self.edge.cache.now();
        let mut out = std::mem::take(&mut connection.head);
        let mut lines: Lines<'_> = lines();
        let decision = match RequestHead::parse(&connection.unread()[..head_bytes], &mut lines) {
            Ok(head) => self.decide_head(&head, client, now, scratch, &mut out),
            Err(refusal) => {
                let exit = Exit { http_11: true, head_only: false, keep_alive: false, started: now };
                Decision::Refuse(refusal, Fields::empty(), None, exit)
            }
        };
        connection.head = out;
        decision
    }

    #[inline]
    fn decide_head(
        &self,
        head: &RequestHead<'_>,
        client: ClientFacts,
        now: Now,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Decision {
        let head_only = head.method == Method::Head;
        let keep_alive = head.keep_alive && !self.edge.drain.has_begun();
        let mut exit = Exit { http_11: head.http_11, head_only, keep_alive, started: now };
        if head.path().starts_with(endpoints::PREFIX) {
            return self.decide_endpoint(head, client, exit);
        }
        if !client.roles.clients {
            return refuse(Refusal::new(404, "not_for_clients", "not found"), head, exit);
        }
        let sites = self.edge.sites.load();
        let site = match sites.route(head.authority.as_ref(), head.path(), head.query(), &mut scratch.key) {
            Ok(site) => site,
            Err(no_route) => return refuse(no_group(no_route), head, exit),
        };
        let group = &*site.group;
        if let Method::Other(method) = head.method {
            if !site.passes(method) {
                let allow = Fields::from_pairs([("Allow", site.allow())]).unwrap_or_default();
                return refuse_at(Refusal::new(405, "method", "method not allowed"), allow, Some(site.clone()), head, exit);
            }
            return self.pass(head, site, &scratch.key, ForwardReason::Method, None, client, exit);
        }
        if head.body != BodyFraming::None {
            if site.passes(head.method.as_str()) {
                return self.pass(head, site, &scratch.key, ForwardReason::Bypass, Some("body"), client, exit);
            }
            // Answered as if there were none; the connection closes, since nobody reads it.
            exit.keep_alive = false;
        }
        if (!group.cached || (group.cookies_pass && head.seen.any(Seen::COOKIE))) && site.target.is_some() {
            let detail = if group.cached { Some("cookies") } else { None };
            return self.pass(head, site, &scratch.key, ForwardReason::Bypass, detail, client, exit);
        }
        let directives = match head.seen.any(Seen::DIRECTIVES) {
            true => group.directives(&head.fields_where(is_directive)),
            false => RequestDirectives::default(),
        };
        let authorization = head.seen.any(Seen::AUTHORIZATION);
        let credentials = Credentials { authorization, cookies: false };
        let wanted = Wanted::of(head);
        let key = HashedKey::new(group.id, &scratch.key);
        let forwarded = || group.forward.forwarded(&head.to_fields(), credentials);
        let Some(hit) = self.edge.cache.find_fresh(group, &key, forwarded, &directives, now) else {
            return self.load(head, site, &scratch.key, directives, credentials, wanted, client, exit);
        };
        let response = Response::hit(hit.entry, hit.role == Role::Hot, &wanted);
        out.clear();
        response.write_head(&site.to_client, now, &mut Http1Head(out));
        Http1Head(out).finish(response.framing(), exit.http_11, exit.keep_alive);
        Decision::Send(response, scratch.site(site), exit)
    }

    #[cold]
    fn decide_endpoint(&self, head: &RequestHead<'_>, client: ClientFacts, exit: Exit) -> Decision {
        // Internal names are decided on the bytes received: any other spelling leads nowhere.
        if head.absolute {
            return refuse(Refusal::new(404, "not_found", "not found"), head, exit);
        }
        let request = EndpointRequest {
            method: head.method.as_str().to_owned(),
            target: Bytes::copy_from_slice(head.target),
            host: Bytes::copy_from_slice(head.host),
            fields: head.to_fields(),
            http_11: head.http_11,
            peer: client.peer,
            local: client.local,
            roles: client.roles,
            tls: client.tls,
            direct: !head.seen.any(Seen::FORWARDED),
            now: exit.started,
        };
        Decision::Endpoint(Box::new(request), head.body, exit)
    }

    #[cold]
    #[allow(clippy::too_many_arguments)]
    fn load(
        &self,
        head: &RequestHead<'_>,
        site: &Arc<Site>,
        key: &[u8],
        directives: RequestDirectives,
        credentials: Credentials,
        wanted: Wanted,
        client: ClientFacts,
        exit: Exit,
    ) -> Decision {
        let fields = head.to_fields();
        let request = Request {
            key: Bytes::copy_from_slice(key),
            method: if exit.head_only { source::Method::Head } else { source::Method::Get },
            forwarded: site.group.forward.forwarded(&fields, credentials),
            authorization: credentials.authorization,
            directives,
            range: range_asked(exit.head_only, &fields),
        };
        let passing = match self.pass(head, site, key, ForwardReason::Bypass, None, client, exit) {
            Decision::Pass(passing) => Some(passing),
            _ => None,
        };
        Decision::Load(Box::new(Load { site: site.clone(), request, wanted, exit, passing, log: LogFacts::of(head) }))
    }

    #[cold]
    #[allow(clippy::too_many_arguments)]
    fn pass(
        &self,
        head: &RequestHead<'_>,
        site: &Arc<Site>,
        key: &[u8],
        reason: ForwardReason,
        detail: Option<&'static str>,
        client: ClientFacts,
        exit: Exit,
    ) -> Decision {
        let limits = self.edge.limits();
        if let BodyFraming::Length(bytes) = head.body
            && limits.body_bytes > 0
            && bytes > limits.body_bytes
        {
            let refusal = Refusal::new(413, "body_bytes", "the body is too large");
            return refuse_at(refusal, Fields::empty(), Some(site.clone()), head, exit);
        }
        let Some((_, target)) = site.group.keys.target_of(key).filter(|_| site.target.is_some()) else {
            return refuse(Refusal::new(502, "no_origin", "the group has no origin to pass this to"), head, exit);
        };
        let facts = PassFacts {
            site: site.clone(),
            target,
            received_target: Bytes::copy_from_slice(head.target),
            reason,
            detail,
            client: client.peer,
            tls: client.tls,
            started: exit.started,
        };
        let head_bytes = canonical_head(head, exit.keep_alive);
        Decision::Pass(Box::new(Passing { head: head_bytes, framing: head.body, keep_alive: exit.keep_alive, facts }))
    }

    /// Everything but a hit.
    async fn unusual(
        &self,
        mut connection: Connection,
        decision: Decision,
        client: ClientFacts,
        shutdown: &ShutdownWatch,
    ) -> Next {
        match decision {
            Decision::Load(load) => self.answer_load(connection, *load, client, shutdown).await,
            Decision::Pass(passing) => self.answer_pass(connection, *passing, shutdown).await,
            Decision::Endpoint(request, framing, exit) => {
                self.answer_endpoint(connection, *request, framing, exit).await
            }
            Decision::Refuse(refusal, fields, site, exit) => {
                let log = LogFacts { method: String::new(), target: String::new(), host: String::new() };
                let sent = self.send_refusal(&mut connection, client, refusal, fields, site, log, exit).await;
                next(connection, sent.broken.is_none(), exit.keep_alive)
            }
            Decision::Send(..) => Next::Close(connection),
        }
    }

    async fn answer_load(&self, mut connection: Connection, load: Load, client: ClientFacts, shutdown: &ShutdownWatch) -> Next {
        let Load { site, request, wanted, exit, passing, log } = load;
        let Ok(answer) = connection.wait_for(self.edge.cache.get(&site.group, &request)).await else {
            site.group.stats.client.count(Outcome::Error, 0);
            self.log(&log, client, exit, Some(&site), 0, Outcome::Error, 0, "the client left", true);
            return Next::Gone;
        };
        let now = self.edge.cache.now();
        let mut response = match (Response::of_answer(answer, &wanted, now), passing) {
            (Ok(response), _) => response,
            (Err(reason), Some(mut passing)) => {
                passing.facts.detail = Some(reason);
                return self.answer_pass(connection, *passing, shutdown).await;
            }
            (Err(reason), None) => Response::own(502, reason, Fields::empty(), exit.head_only, now),
        };
        let (sent, keep_alive) = self.send(&mut connection, &mut response, &site.to_client, exit).await;
        site.group.stats.client.count(response.outcome, sent.body_bytes);
        let failed = sent.broken.is_some();
        let detail = sent.broken.unwrap_or_else(|| response.detail.clone());
        self.log(&log, client, exit, Some(&site), response.status, response.outcome, sent.body_bytes, detail, failed);
        drop(response);
        next(connection, !failed, keep_alive)
    }

    /// Sends a whole answer, body and all; says whether the connection may stay.
    async fn send(
        &self,
        connection: &mut Connection,
        response: &mut Response,
        to_client: &FieldRules,
        exit: Exit,
    ) -> (Sent, bool) {
        let framing = response.framing();
        // HTTP/1.0 knows no chunks: the end of the body is the end of the connection.
        let keep_alive = exit.keep_alive && (exit.http_11 || framing != Framing::Unknown);
        let mut head = std::mem::take(&mut connection.head);
        head.clear();
        response.write_head(to_client, self.edge.cache.now(), &mut Http1Head(&mut head));
        Http1Head(&mut head).finish(framing, exit.http_11, keep_alive);
        let head_length = head.len() as u64;
        connection.head = head;
        let mut pace = Pace::default();
        let result = match response.body() {
            Body::None => connection.send(&mut pace, &[], b"").await.map_err(|error| broken_by(&error)),
            Body::Segments(segments) => {
                connection.send(&mut pace, &segments, b"").await.map_err(|error| broken_by(&error))
            }
            Body::Stream(reader, cutter) => {
                let chunked = framing == Framing::Unknown && exit.http_11;
                let length = match framing {
                    Framing::Length(bytes) => Some(bytes),
                    _ => None,
                };
                return match stream_body(connection, reader, cutter, chunked, length, &mut pace).await {
                    Ok(body_bytes) => (Sent { body_bytes, broken: None }, keep_alive),
                    Err((body_bytes, reason)) => (Sent { body_bytes, broken: Some(reason) }, false),
                };
            }
        };
        (Sent { body_bytes: pace.bytes.saturating_sub(head_length), broken: result.err() }, keep_alive)
    }

    async fn answer_pass(&self, connection: Connection, passing: Passing, shutdown: &ShutdownWatch) -> Next {
        let limits = *connection.limits();
        let (stream, unread) = connection.into_parts();
        let request = OneRequest::new(stream, &passing.head, &unread, passing.framing);
        let mut session = ServerSession::new_http1(Box::new(request));
        session.set_keepalive(passing.keep_alive.then(|| limits.idle_timeout.as_secs().max(1)));
        session.set_read_timeout(Some(limits.send_stall));
        session.set_write_timeout(Some(limits.send_stall));
        session.set_connection_user_context(Some(Box::new(Arc::new(passing.facts))));
        let reused = self.proxy.process_new_http(session, shutdown).await;
        let rest = reused.and_then(|reused| reused.consume().0.into_any().downcast::<OneRequest>().ok()?.into_rest());
        match rest {
            Some((stream, unread)) => Next::Keep(Connection::resume(stream, &unread, limits)),
            None => Next::Gone,
        }
    }

    async fn answer_endpoint(
        &self,
        mut connection: Connection,
        request: EndpointRequest,
        framing: BodyFraming,
        mut exit: Exit,
    ) -> Next {
        let answer = match self.edge.endpoints.admit(&request) {
            Ok(body_bytes_max) => {
                match self.read_body(&mut connection, framing, body_bytes_max, &request.fields, exit).await {
                    Ok(body) => {
                        let handled = connection.wait_for(self.edge.endpoints.handle(request, body)).await;
                        let Ok(answer) = handled else { return Next::Gone };
                        answer
                    }
                    Err(Some(refusal)) => {
                        exit.keep_alive = false;
                        self.edge.stats.rejects.increment(refusal.word);
                        let response = Response::own(refusal.status, refusal.reason, Fields::empty(), exit.head_only, exit.started);
                        return self.finish_endpoint(connection, response, exit).await;
                    }
                    Err(None) => return Next::Gone,
                }
            }
            Err(response) => {
                exit.keep_alive &= framing == BodyFraming::None;
                EndpointAnswer::Response(response)
            }
        };
        match answer {
            EndpointAnswer::Response(answer) => {
                let response = Response::small(answer.status, answer.fields, answer.body, exit.head_only);
                self.finish_endpoint(connection, response, exit).await
            }
            EndpointAnswer::Upgrade(fields, protocol) => {
                connection.head.clear();
                connection.head.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n");
                connection.head.extend_from_slice(fields.as_bytes());
                connection.head.extend_from_slice(b"\r\n");
                if connection.send(&mut Pace::default(), &[], b"").await.is_ok() {
                    let (stream, read) = connection.into_parts();
                    protocol.run(stream, read).await;
                }
                Next::Gone
            }
        }
    }

    async fn finish_endpoint(&self, mut connection: Connection, mut response: Response, exit: Exit) -> Next {
        let (sent, keep_alive) = self.send(&mut connection, &mut response, &FieldRules::default(), exit).await;
        next(connection, sent.broken.is_none(), keep_alive)
    }

    /// Reads the whole body of a request to an endpoint; `Err(None)`: the client is gone.
    async fn read_body(
        &self,
        connection: &mut Connection,
        framing: BodyFraming,
        bytes_max: usize,
        fields: &Fields,
        exit: Exit,
    ) -> Result<Bytes, Option<Refusal>> {
        const TOO_LARGE: Refusal = Refusal::new(413, "body_bytes", "the body is too large");
        let mut reader = BodyReader::new(framing);
        if matches!(framing, BodyFraming::Length(bytes) if bytes > bytes_max as u64) {
            return Err(Some(TOO_LARGE));
        }
        if !reader.is_done() && exit.http_11 && fields.contains("expect") {
            connection.head.clear();
            connection.head.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            connection.send(&mut Pace::default(), &[], b"").await.map_err(|_| None)?;
        }
        let mut body = Vec::new();
        while !reader.is_done() {
            let (used, data) = match reader.advance(connection.unread()) {
                Ok(advanced) => advanced,
                Err(_) => return Err(Some(Refusal::new(400, "framing", "malformed chunked coding"))),
            };
            body.extend_from_slice(data);
            if body.len() > bytes_max {
                return Err(Some(TOO_LARGE));
            }
            connection.consume(used);
            if used == 0 {
                connection.read_more().await.map_err(|Gone| None)?;
            }
        }
        Ok(body.into())
    }

    async fn refuse_unread(&self, mut connection: Connection, client: ClientFacts, refusal: Refusal) {
        let exit = Exit { http_11: true, head_only: false, keep_alive: false, started: self.edge.cache.now() };
        let log = LogFacts { method: String::new(), target: String::new(), host: String::new() };
        let sent = self.send_refusal(&mut connection, client, refusal, Fields::empty(), None, log, exit).await;
        if sent.broken.is_none() {
            connection.close().await;
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn send_refusal(
        &self,
        connection: &mut Connection,
        client: ClientFacts,
        refusal: Refusal,
        mut fields: Fields,
        site: Option<Arc<Site>>,
        log: LogFacts,
        exit: Exit,
    ) -> Sent {
        self.edge.stats.rejects.increment(refusal.word);
        if refusal.status == 405 && fields.is_empty() {
            fields = Fields::from_pairs([("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")]).unwrap_or_default();
        }
        let mut response =
            Response::own(refusal.status, refusal.reason, fields, exit.head_only, self.edge.cache.now());
        let (sent, _) = self.send(connection, &mut response, &FieldRules::default(), exit).await;
        if let Some(site) = &site {
            site.group.stats.client.count(Outcome::Error, sent.body_bytes);
        }
        let broken = sent.broken.is_some();
        self.log(&log, client, exit, site.as_deref(), refusal.status, Outcome::Error, sent.body_bytes, refusal.reason, broken);
        sent
    }

    /// Too many connections: a short answer that needs no question, if the socket takes it at once.
    async fn turn_away(&self, stream: Stream) {
        let mut connection = Connection::new(stream, &[], self.edge.limits());
        let mut response =
            Response::own(503, "too many connections", Fields::empty(), false, self.edge.cache.now());
        let exit = Exit { http_11: true, head_only: false, keep_alive: false, started: self.edge.cache.now() };
        let (sent, _) = self.send(&mut connection, &mut response, &FieldRules::default(), exit).await;
        if sent.broken.is_none() {
            connection.close().await;
        }
    }

    #[cold]
    #[allow(clippy::too_many_arguments)]
    fn log_hit(
        &self,
        connection: &Connection,
        head_bytes: usize,
        client: ClientFacts,
        response: &Response,
        site: &Site,
        exit: Exit,
        body_bytes: u64,
        broken: bool,
    ) {
        let mut lines: Lines<'_> = lines();
        let Ok(head) = RequestHead::parse(&connection.unread()[..head_bytes], &mut lines) else { return };
        let detail = if broken { "the client left or was too slow" } else { "" };
        let log = LogFacts::of(&head);
        self.write_log(&log, client, exit, Some(site), response.status, response.outcome, body_bytes, detail.into(), broken);
    }

    #[allow(clippy::too_many_arguments)]
    fn log(
        &self,
        log: &LogFacts,
        client: ClientFacts,
        exit: Exit,
        site: Option<&Site>,
        status: u16,
        outcome: Outcome,
        body_bytes: u64,
        detail: impl Into<Cow<'static, str>>,
        broken: bool,
    ) {
        if self.edge.log.wants(broken || outcome == Outcome::Error) {
            self.write_log(log, client, exit, site, status, outcome, body_bytes, detail.into(), broken);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn write_log(
        &self,
        log: &LogFacts,
        client: ClientFacts,
        exit: Exit,
        site: Option<&Site>,
        status: u16,
        outcome: Outcome,
        body_bytes: u64,
        detail: Cow<'static, str>,
        broken: bool,
    ) {
        let now = self.edge.cache.now();
        self.edge.log.write(Record {
            wall_seconds: now.wall_seconds,
            client: client.peer,
            method: log.method.clone(),
            target: log.target.clone(),
            host: log.host.clone(),
            version: if exit.http_11 { "HTTP/1.1" } else { "HTTP/1.0" },
            status,
            body_bytes,
            outcome: outcome.as_str(),
            detail,
            group: site.map(|site| site.group.name.clone()),
            microseconds: now.monotonic.saturating_sub(exit.started.monotonic).as_micros() as u64,
            broken,
        });
    }
}

/// What a connection uses again for each request.
#[derive(Default)]
struct Scratch {
    key: Vec<u8>,
    /// The group of the request before: most connections ask for one, and counting its holders again would cost more than
    /// the look-up.
    site: Option<Arc<Site>>,
}

impl Scratch {
    fn site(&mut self, wanted: &Arc<Site>) -> Arc<Site> {
        match self.site.take() {
            Some(site) if Arc::ptr_eq(&site, wanted) => site,
            _ => wanted.clone(),
        }
    }

    fn keep_site(&mut self, site: Arc<Site>) {
        self.site = Some(site);
    }
}

fn next(connection: Connection, sound: bool, keep_alive: bool) -> Next {
    match (sound, keep_alive) {
        (false, _) => Next::Gone,
        (true, true) => Next::Keep(connection),
        (true, false) => Next::Close(connection),
    }
}

fn refuse(refusal: Refusal, head: &RequestHead<'_>, exit: Exit) -> Decision {
    refuse_at(refusal, Fields::empty(), None, head, exit)
}

/// A refused request has been understood: the connection may stay unless there is a body that nobody reads.
fn refuse_at(refusal: Refusal, fields: Fields, site: Option<Arc<Site>>, head: &RequestHead<'_>, exit: Exit) -> Decision {
    let keep_alive = exit.keep_alive && head.body == BodyFraming::None;
    Decision::Refuse(refusal, fields, site, Exit { keep_alive, ..exit })
}

/// The refusal of a target that belongs to no group.
pub(super) fn no_group(no_route: NoRoute) -> Refusal {
    match no_route {
        NoRoute::UnknownHost => Refusal::new(421, "unknown_host", "no group serves this host"),
        NoRoute::UnknownPath => Refusal::new(404, "no_group", "no group serves this path"),
    }
}

/// Whether a field tells a cache what to do.
pub(super) fn is_directive(name: &str) -> bool {
    name.eq_ignore_ascii_case("cache-control") || name.eq_ignore_ascii_case("pragma")
}

/// The range of a `GET` that the cache may answer with a part.
pub(super) fn range_asked(head_only: bool, fields: &Fields) -> Option<RangeAsked> {
    let method = if head_only { http::Method::HEAD } else { http::Method::GET };
    let set = RangeSet::parse(&method, fields)?;
    let if_range_value = fields.get("if-range").map(Bytes::copy_from_slice);
    Some(RangeAsked { set, if_range: IfRange::parse(fields), if_range_value })
}

/// The one form in which a checked request goes to a full session.
fn canonical_head(head: &RequestHead<'_>, keep_alive: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.head_bytes + 64);
    let mut line = |name: &str, value: &[u8]| {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    };
    if !head.host.is_empty() {
        line("Host", head.host);
    }
    let nominated: Vec<&[u8]> = head
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("connection"))
        .flat_map(|(_, value)| value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii))
        .collect();
    for (name, value) in head.iter() {
        let stays_here = is_of_connection_or_fill(name) && !is_end_to_end(name);
        if !stays_here && !nominated.iter().any(|nominated| nominated.eq_ignore_ascii_case(name.as_bytes())) {
            line(name, value);
        }
    }
    match head.body {
        BodyFraming::None => {}
        BodyFraming::Length(bytes) => line("Content-Length", bytes.to_string().as_bytes()),
        BodyFraming::Chunked => line("Transfer-Encoding", b"chunked"),
    }
    line("Connection", if keep_alive { b"keep-alive" } else { b"close" });
    out.extend_from_slice(b"\r\n");
    let mut request = Vec::with_capacity(out.len() + head.target.len() + 32);
    request.extend_from_slice(head.method.as_str().as_bytes());
    request.push(b' ');
    request.extend_from_slice(head.target);
    request.extend_from_slice(if head.http_11 { b" HTTP/1.1\r\n" } else { b" HTTP/1.0\r\n" });
    request.extend_from_slice(&out);
    request
}

/// Of the fields that a fill sets itself, those that belong to the client's own request when that goes further.
fn is_end_to_end(name: &str) -> bool {
    ["expect", "if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "range"]
        .iter()
        .any(|kept| name.eq_ignore_ascii_case(kept))
}

/// Sends a body while it arrives. `Err` says how far it came and why it went no further; the client then sees an end that
/// is no proper one, since the connection closes before the length is reached or without a last chunk.
async fn stream_body(
    connection: &mut Connection,
    reader: &mut crate::flight::FillReader<crate::cache::Landed>,
    mut cutter: super::response::Cutter,
    chunked: bool,
    length: Option<u64>,
    pace: &mut Pace,
) -> Result<u64, (u64, Cow<'static, str>)> {
    let (mut chunks, mut out) = (Vec::new(), Vec::new());
    let mut body_bytes = 0u64;
    // What is there already goes with the head in one write; what is not is not waited for.
    let mut first = true;
    loop {
        let read = match first {
            true => poll_once(reader.read(&mut chunks, BATCH_BYTES)).await,
            false => match connection.wait_for(reader.read(&mut chunks, BATCH_BYTES)).await {
                Ok(read) => Some(read),
                Err(Gone) => return Err((body_bytes, "the client left".into())),
            },
        };
        let ended = match read {
            None => false,
            Some(Ok(more)) => !more,
            Some(Err(error)) => {
                if first {
                    // The head goes out, so that the client sees an answer that broke off rather than none.
                    let _ = connection.send(pace, &[], b"").await;
                }
                return Err((body_bytes, error.to_string().into()));
            }
        };
        cutter.pass(&mut chunks, &mut out);
        let bytes: u64 = out.iter().map(|segment| segment.len() as u64).sum();
        let done = ended || cutter.is_done() || length.is_some_and(|length| body_bytes + bytes >= length);
        if length.is_some_and(|length| body_bytes + bytes > length || (done && body_bytes + bytes < length)) {
            return Err((body_bytes, "the body has another length than announced".into()));
        }
        if !first {
            connection.head.clear();
        }
        let mut tail: &'static [u8] = b"";
        if chunked && bytes > 0 {
            connection.head.extend_from_slice(format!("{bytes:x}\r\n").as_bytes());
            tail = if done { b"\r\n0\r\n\r\n" } else { b"\r\n" };
        } else if chunked && done {
            tail = b"0\r\n\r\n";
        }
        if let Err(error) = connection.send(pace, &out, tail).await {
            return Err((body_bytes, broken_by(&error)));
        }
        body_bytes += bytes;
        out.clear();
        first = false;
        if done {
            return Ok(body_bytes);
        }
    }
}

/// The value if it is there at once.
async fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

fn broken_by(error: &std::io::Error) -> Cow<'static, str> {
    match error.kind() {
        std::io::ErrorKind::TimedOut => "the client takes the answer too slowly".into(),
        _ => "the client left".into(),
    }
}

/// Guess: what a reader takes of a stream at once, so that one write carries many small chunks.
const BATCH_BYTES: u64 = 256 * 1024;
