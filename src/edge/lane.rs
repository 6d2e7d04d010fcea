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
use std::pin::pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use tokio::time::Instant;

use super::body::{BodyReader, OneRequest};
use super::connection::{Connection, Gone, Pace, Received, Slices};
use super::decide::{ClientFacts, Decision, Exit, Load, decide};
use super::endpoints::{EndpointAnswer, EndpointRequest};
use super::h2::Http2;
use super::interim::{self, Heard};
use super::pass::{Pass, PassFacts};
use super::request_head::{BodyFraming, Lines, Refusal, RequestHead, lines};
use super::reset::ClientSocket;
use super::response::{Body, Cutter, FieldRules, Framing, Response, Segments};
use super::sites::{Site, Sites};
use super::{Edge, Finished, LogFacts};
use crate::cache::{Answer, Request};
use crate::clock::Now;
use crate::fields::Fields;
use crate::following::Following;
use crate::semantics::forward::is_of_connection_or_fill;
use crate::stats::Outcome;

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
        let digest = stream.get_socket_digest();
        let client = ClientFacts::of(digest.as_deref(), stream.get_ssl_digest().is_some(), &self.edge.roles);
        let limited = client.roles.clients;
        let _admitted = match self.edge.admission.admit(client.peer.map(|peer| peer.ip()), limited) {
            Ok(admitted) => admitted,
            Err(limit) => {
                Box::pin(self.turn_away(stream, limit)).await;
                return None;
            }
        };
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            Box::pin(self.http_2.clone().serve(stream, client)).await;
            return None;
        }
        self.serve(stream, client, shutdown).await;
        None
    }

    async fn cleanup(&self) {
        self.edge.drain.begin();
        self.proxy.http_cleanup().await;
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

/// A request as far as it had to be read, for what cannot be answered at once.
struct Turn<'s> {
    decision: Decision<'s>,
    exit: Exit,
    framing: BodyFraming,
    /// The request in the one form that goes further; empty where it does not pass.
    canonical: Vec<u8>,
    /// Of a request that is refused.
    log: LogFacts,
}

/// What is decided about a request.
#[allow(clippy::large_enum_variant)] // The large one is the usual one, and must not be allocated.
enum Ready<'s> {
    /// The answer is in memory and its head is written.
    Hit(Response, &'s Site, Exit),
    /// The cache has to be asked.
    Load(Box<Load>, Exit),
    Unusual(Box<Turn<'s>>),
}

/// What became of a request that the cache was asked for.
enum Loaded {
    /// It is answered: soundly, and whether the connection may stay.
    Answered { sound: bool, keep_alive: bool },
    /// It passes after all.
    Passing(Box<(Passing, PassFacts)>),
    /// The client is gone.
    Gone,
}

/// What a full session needs of a request.
struct Passing {
    canonical: Vec<u8>,
    framing: BodyFraming,
    keep_alive: bool,
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
        let mut sites = arc_swap::Cache::new(&self.edge.sites);
        let mut key = Vec::new();
        loop {
            let head_bytes = match connection.receive_head(&self.edge.drain, shutdown).await {
                Received::Head(bytes) => bytes,
                Received::Closed => return,
                Received::Refused(refusal) => {
                    Box::pin(self.refuse_unread(connection, client, refusal)).await;
                    return;
                }
            };
            let next = match self.decide(&mut connection, head_bytes, &client, sites.load(), &mut key) {
                Ready::Hit(response, site, exit) => {
                    let head_length = connection.head().len() as u64;
                    let mut pace = Pace::default();
                    let segments = response.segments();
                    let slices = segments.as_ref().map_or(Slices::NONE, Segments::slices);
                    let sent = connection.send(&mut pace, slices, b"").await;
                    let body_bytes = pace.bytes.saturating_sub(head_length);
                    site.group.stats.client.count(response.outcome, body_bytes);
                    if self.edge.log.wants(sent.is_err()) {
                        let finished = Finished {
                            site: Some(site),
                            status: response.status,
                            outcome: response.outcome,
                            body_bytes,
                            detail: sent.as_ref().err().map_or(Cow::Borrowed(""), broken_by),
                            broken: sent.is_err(),
                            ..Finished::of(&client, exit)
                        };
                        self.log_unread(&connection, head_bytes, finished);
                    }
                    connection.consume(head_bytes);
                    match sent {
                        Err(_) => return,
                        Ok(()) if exit.keep_alive => continue,
                        Ok(()) => Next::Close(connection),
                    }
                }
                Ready::Load(load, exit) => {
                    // A box for each, and a small one: a connection that only waits for requests needs no room for it.
                    let loaded = Box::pin(self.answer_load(&mut connection, head_bytes, load, exit, &client)).await;
                    connection.consume(head_bytes);
                    match loaded {
                        Loaded::Answered { sound: true, keep_alive: true } => continue,
                        Loaded::Answered { sound, keep_alive } => next(connection, sound, keep_alive),
                        Loaded::Passing(passing) => {
                            let (passing, facts) = *passing;
                            Box::pin(self.answer_pass(connection, passing, facts, shutdown)).await
                        }
                        Loaded::Gone => return,
                    }
                }
                Ready::Unusual(turn) => Box::pin(self.unusual(connection, head_bytes, *turn, &client, shutdown)).await,
            };
            match next {
                Next::Keep(kept) => connection = kept,
                Next::Close(connection) => return Box::pin(connection.close()).await,
                Next::Gone => return,
            }
        }
    }

    /// Reads a whole head and decides; the head of a hit's answer is then written. Nothing in here waits.
    #[inline]
    fn decide<'s>(
        &self,
        connection: &mut Connection,
        head_bytes: usize,
        client: &ClientFacts,
        sites: &'s Sites,
        key: &mut Vec<u8>,
    ) -> Ready<'s> {
        let now = self.edge.cache.now();
        let mut lines: Lines<'_> = lines();
        let (head, out, known) = connection.read_head(head_bytes, &mut lines);
        match head {
            Ok(head) => match decide(&self.edge, sites, &head, client, now, key, known) {
                (Decision::Hit(response, site), exit) => {
                    response.write_http_1(&site.to_client, now, exit.http_11, exit.keep_alive, out);
                    Ready::Hit(response, site, exit)
                }
                (Decision::Load(load), exit) => Ready::Load(load, exit),
                (decision, exit) => Ready::Unusual(Box::new(Turn::of(decision, exit, &head))),
            },
            Err(refusal) => {
                let exit = Exit { http_11: true, head_only: false, keep_alive: false, started: now };
                let decision = Decision::Refuse(refusal, Fields::empty(), None);
                let log = LogFacts::guessed(&connection.unread()[..head_bytes]);
                Ready::Unusual(Box::new(Turn {
                    decision,
                    exit,
                    framing: BodyFraming::None,
                    canonical: Vec::new(),
                    log,
                }))
            }
        }
    }

    /// Everything but what the cache is asked for.
    async fn unusual(
        &self,
        mut connection: Connection,
        head_bytes: usize,
        turn: Turn<'_>,
        client: &ClientFacts,
        shutdown: &ShutdownWatch,
    ) -> Next {
        let Turn { decision, exit, framing, canonical, log } = turn;
        connection.consume(head_bytes);
        match decision {
            Decision::Pass(facts) => {
                let passing = Passing { canonical, framing, keep_alive: exit.keep_alive };
                self.answer_pass(connection, passing, *facts, shutdown).await
            }
            Decision::Endpoint(request) => self.answer_endpoint(connection, *request, framing, exit).await,
            Decision::Refuse(refusal, fields, site) => {
                let sent = self.refuse(&mut connection, client, refusal, fields, site.as_deref(), &log, exit).await;
                next(connection, sent.broken.is_none(), exit.keep_alive && !self.edge.drain.has_begun())
            }
            Decision::Hit(..) | Decision::Load(_) => Next::Close(connection),
        }
    }

    /// The head stays unread in the connection until there is an answer: it is wanted again for the log, and where the
    /// request passes after all.
    async fn answer_load(
        &self,
        connection: &mut Connection,
        head_bytes: usize,
        load: Box<Load>,
        exit: Exit,
        client: &ClientFacts,
    ) -> Loaded {
        let answer = self.wait_for_answer(connection, &load.site, &load.request, exit.http_11).await;
        let Ok(answer) = answer else {
            load.site.group.stats.client.count(Outcome::Error, 0);
            if self.edge.log.wants(true) {
                let finished = Finished { site: Some(&load.site), ..Finished::of(client, exit) };
                let finished = Finished { detail: "the client left".into(), broken: true, ..finished };
                self.log_unread(connection, head_bytes, finished);
            }
            return Loaded::Gone;
        };
        let now = self.edge.cache.now();
        let site = load.site.clone();
        let mut response = match Response::of_answer(answer, &load.wanted, now) {
            Ok(response) => response,
            Err(reason) => match passing_of(&connection.unread()[..head_bytes], client, exit, reason, *load) {
                Some(passing) => return Loaded::Passing(Box::new(passing)),
                None => Response::own(502, reason, Fields::empty(), exit.head_only, now),
            },
        };
        let (sent, keep_alive) = self.send(connection, &mut response, &site.to_client, exit, now).await;
        site.group.stats.client.count(response.outcome, sent.body_bytes);
        let sound = sent.broken.is_none();
        if self.edge.log.wants(!sound || response.outcome == Outcome::Error) {
            let finished = Finished {
                site: Some(&site),
                status: response.status,
                outcome: response.outcome,
                body_bytes: sent.body_bytes,
                detail: sent.broken.unwrap_or_else(|| response.detail.clone()),
                broken: !sound,
                ..Finished::of(client, exit)
            };
            self.log_unread(connection, head_bytes, finished);
        }
        Loaded::Answered { sound, keep_alive }
    }

    /// Asks the cache, and sends the interim answers that come meanwhile.
    async fn wait_for_answer(
        &self,
        connection: &mut Connection,
        site: &Site,
        request: &Request,
        http_11: bool,
    ) -> Result<Answer, Gone> {
        let heard = Heard::default();
        let mut asking = pin!(self.edge.cache.get_hearing(&site.group, request, &heard));
        loop {
            let (interims, answer) = connection.wait_for(heard.next(asking.as_mut())).await?;
            if http_11 && !interims.is_empty() {
                connection.head().clear();
                interims.iter().for_each(|interim| interim::write(interim, &site.to_client, connection.head()));
                Box::pin(connection.send(&mut Pace::default(), Slices::NONE, b"")).await.map_err(|_| Gone)?;
            }
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
    }

    /// Sends a whole answer, body and all; says whether the connection may stay.
    async fn send(
        &self,
        connection: &mut Connection,
        response: &mut Response,
        to_client: &FieldRules,
        exit: Exit,
        now: Now,
    ) -> (Sent, bool) {
        let framing = response.framing();
        // HTTP/1.0 knows no chunks: the end of the body is the end of the connection.
        let may_stay = exit.http_11 || framing != Framing::Unknown;
        let keep_alive = exit.keep_alive && may_stay && !self.edge.drain.has_begun();
        response.write_http_1(to_client, now, exit.http_11, keep_alive, connection.head());
        let head_length = connection.head().len() as u64;
        let mut pace = Pace::default();
        let result = match response.body() {
            Body::None => connection.send(&mut pace, Slices::NONE, b"").await,
            Body::Segments(segments) => connection.send(&mut pace, segments.slices(), b"").await,
            Body::Stream(reader, mut cutter) => {
                let streamed = Streamed { framing, chunked: exit.http_11 && framing == Framing::Unknown };
                if let Some(segments) = streamed.at_once(reader, &mut cutter) {
                    if streamed.framing != Framing::Length(total(&segments)) {
                        return (Sent { body_bytes: 0, broken: Some(OTHER_LENGTH.into()) }, keep_alive);
                    }
                    let result = connection.send(&mut pace, Slices::Many(&segments), b"").await;
                    let body_bytes = pace.bytes.saturating_sub(head_length);
                    return (Sent { body_bytes, broken: result.err().as_ref().map(broken_by) }, keep_alive);
                }
                let sent = Box::pin(streamed.send(connection, reader, cutter, &mut pace)).await;
                if sent.broken.is_some() && framing == Framing::Unknown && !exit.http_11 {
                    connection.reset_on_close();
                }
                return (sent, keep_alive);
            }
        };
        let body_bytes = pace.bytes.saturating_sub(head_length);
        (Sent { body_bytes, broken: result.err().as_ref().map(broken_by) }, keep_alive)
    }

    /// Hands exactly one request to a full session, and takes the connection back.
    async fn answer_pass(
        &self,
        connection: Connection,
        passing: Passing,
        facts: PassFacts,
        shutdown: &ShutdownWatch,
    ) -> Next {
        let limits = *connection.limits();
        let (stream, unread) = connection.into_parts();
        let facts = PassFacts { socket: ClientSocket::of(&stream), ..facts };
        let request = OneRequest::new(stream, &passing.canonical, &unread, passing.framing);
        let mut session = ServerSession::new_http1(Box::new(request));
        session.set_keepalive(passing.keep_alive.then(|| limits.idle_timeout.as_secs().max(1)));
        session.set_read_timeout(Some(limits.send_stall));
        session.set_write_timeout(Some(limits.send_stall));
        session.set_connection_user_context(Some(Box::new(Arc::new(facts))));
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
                        let response = self.edge.refusal(refusal, Fields::empty(), exit.head_only);
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
                connection.head().clear();
                connection.head().extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n");
                connection.head().extend_from_slice(fields.as_bytes());
                connection.head().extend_from_slice(b"\r\n");
                // Without fields of ours, the protocol answers the upgrade itself.
                if fields.is_empty() || connection.send(&mut Pace::default(), Slices::NONE, b"").await.is_ok() {
                    let (stream, read) = connection.into_parts();
                    protocol.run(stream, read).await;
                }
                Next::Gone
            }
        }
    }

    async fn finish_endpoint(&self, mut connection: Connection, mut response: Response, exit: Exit) -> Next {
        let (sent, keep_alive) =
            self.send(&mut connection, &mut response, &FieldRules::default(), exit, self.edge.cache.now()).await;
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
            connection.head().clear();
            connection.head().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            connection.send(&mut Pace::default(), Slices::NONE, b"").await.map_err(|_| None)?;
        }
        let mut body = Vec::new();
        let deadline = Instant::now() + connection.limits().send_stall;
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
                connection.read_more(deadline).await.map_err(|Gone| None)?;
            }
        }
        Ok(body.into())
    }

    async fn refuse_unread(&self, mut connection: Connection, client: ClientFacts, refusal: Refusal) {
        let exit = Exit { http_11: true, head_only: false, keep_alive: false, started: self.edge.cache.now() };
        let log = LogFacts::guessed(connection.unread());
        let sent = self.refuse(&mut connection, &client, refusal, Fields::empty(), None, &log, exit).await;
        if sent.broken.is_none() {
            connection.close().await;
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn refuse(
        &self,
        connection: &mut Connection,
        client: &ClientFacts,
        refusal: Refusal,
        fields: Fields,
        site: Option<&Site>,
        log: &LogFacts,
        exit: Exit,
    ) -> Sent {
        let mut response = self.edge.refusal(refusal, fields, exit.head_only);
        let (sent, _) = self.send(connection, &mut response, &FieldRules::default(), exit, self.edge.cache.now()).await;
        if let Some(site) = site {
            site.group.stats.client.count(Outcome::Error, sent.body_bytes);
        }
        let finished = Finished {
            site,
            status: refusal.status,
            body_bytes: sent.body_bytes,
            detail: refusal.reason.into(),
            broken: sent.broken.is_some(),
            ..Finished::of(client, exit)
        };
        self.edge.log(log, finished);
        sent
    }

    /// Too many connections: a short answer that needs no question.
    async fn turn_away(&self, stream: Stream, limit: &'static str) {
        let mut connection = Connection::new(stream, &[], self.edge.limits());
        let mut response = self.edge.refusal(Refusal::new(503, limit, "too many connections"), Fields::empty(), false);
        let exit = Exit { http_11: true, head_only: false, keep_alive: false, started: self.edge.cache.now() };
        let (sent, _) =
            self.send(&mut connection, &mut response, &FieldRules::default(), exit, self.edge.cache.now()).await;
        if sent.broken.is_none() {
            connection.close().await;
        }
    }

    /// Logs a request whose head is still unread; the caller knows that such requests are logged, as asking once more would
    /// take a share of the share.
    #[cold]
    fn log_unread(&self, connection: &Connection, head_bytes: usize, finished: Finished<'_>) {
        let mut lines: Lines<'_> = lines();
        if let Ok(head) = RequestHead::parse(&connection.unread()[..head_bytes], &mut lines) {
            self.edge.record(&LogFacts::of(&head), finished);
        }
    }
}

impl<'s> Turn<'s> {
    #[cold]
    fn of(decision: Decision<'s>, exit: Exit, head: &RequestHead<'_>) -> Self {
        let (canonical, log) = match &decision {
            Decision::Pass(_) => (canonical_head(head, exit.keep_alive), LogFacts::default()),
            Decision::Refuse(..) => (Vec::new(), LogFacts::of(head)),
            _ => (Vec::new(), LogFacts::default()),
        };
        Turn { decision, exit, framing: head.body, canonical, log }
    }
}

/// What a full session needs of a request whose head was read before.
#[cold]
fn passing_of(
    head: &[u8],
    client: &ClientFacts,
    exit: Exit,
    reason: &'static str,
    load: Load,
) -> Option<(Passing, PassFacts)> {
    let mut lines: Lines<'_> = lines();
    let head = RequestHead::parse(head, &mut lines).ok()?;
    let facts = load.into_pass(head.target, client, exit.started, reason)?;
    let canonical = canonical_head(&head, exit.keep_alive);
    Some((Passing { canonical, framing: head.body, keep_alive: exit.keep_alive }, facts))
}

fn next(connection: Connection, sound: bool, keep_alive: bool) -> Next {
    match (sound, keep_alive) {
        (false, _) => Next::Gone,
        (true, true) => Next::Keep(connection),
        (true, false) => Next::Close(connection),
    }
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

/// A body that is sent while it arrives.
struct Streamed {
    framing: Framing,
    chunked: bool,
}

impl Streamed {
    /// The body as it goes out, if all of it is here and it is not large: then it goes with the head in one write, and nothing
    /// has to be waited for. Otherwise nothing has been read.
    fn at_once(&self, reader: &mut Following, cutter: &mut Cutter) -> Option<Vec<Bytes>> {
        if !matches!(self.framing, Framing::Length(_)) {
            return None;
        }
        let mut chunks = Vec::with_capacity(1);
        if !reader.take_all(BATCH_BYTES, &mut chunks) {
            return None;
        }
        let mut segments = Vec::with_capacity(chunks.len());
        cutter.pass(&mut chunks, &mut segments);
        Some(segments)
    }

    /// Sends the prepared head and the body. When the body breaks, the client sees an end that is no proper one, since the
    /// connection closes before the length is reached or without a last chunk.
    async fn send(
        &self,
        connection: &mut Connection,
        reader: &mut Following,
        mut cutter: Cutter,
        pace: &mut Pace,
    ) -> Sent {
        let (mut chunks, mut out) = (Vec::new(), Vec::new());
        let mut body_bytes = 0u64;
        let broken = |body_bytes, reason: Cow<'static, str>| Sent { body_bytes, broken: Some(reason) };
        // What is there already goes with the head in one write; what is not is not waited for.
        let mut first = true;
        loop {
            let read = match first {
                true => poll_once(reader.read(&mut chunks, BATCH_BYTES)).await,
                false => match connection.wait_for(reader.read(&mut chunks, BATCH_BYTES)).await {
                    Ok(read) => Some(read),
                    Err(Gone) => return broken(body_bytes, "the client left".into()),
                },
            };
            let ended = match read {
                None => false,
                Some(Ok(more)) => !more,
                Some(Err(error)) => {
                    if first {
                        // The head goes out, so that the client sees an answer that broke off rather than none.
                        let _ = connection.send(pace, Slices::NONE, b"").await;
                    }
                    return broken(body_bytes, error.to_string().into());
                }
            };
            cutter.pass(&mut chunks, &mut out);
            let bytes = total(&out);
            let so_far = body_bytes.saturating_add(bytes);
            let mut done = ended || cutter.is_done();
            if let Framing::Length(length) = self.framing {
                done |= so_far >= length;
                if so_far > length || (done && so_far < length) {
                    return broken(body_bytes, OTHER_LENGTH.into());
                }
            }
            if !first {
                connection.head().clear();
            }
            let tail = self.chunk(bytes, done, connection.head());
            if let Err(error) = connection.send(pace, Slices::Many(&out), tail).await {
                return broken(body_bytes, broken_by(&error));
            }
            body_bytes = so_far;
            out.clear();
            first = false;
            if done {
                return Sent { body_bytes, broken: None };
            }
        }
    }

    /// What stands before (appended to `head`) and behind so many bytes.
    fn chunk(&self, bytes: u64, done: bool, head: &mut Vec<u8>) -> &'static [u8] {
        match (self.chunked, bytes, done) {
            (false, ..) | (true, 0, false) => b"",
            (true, 0, true) => b"0\r\n\r\n",
            (true, bytes, done) => {
                head.extend_from_slice(format!("{bytes:x}\r\n").as_bytes());
                if done { b"\r\n0\r\n\r\n" } else { b"\r\n" }
            }
        }
    }
}

fn total(segments: &[Bytes]) -> u64 {
    segments.iter().map(|segment| segment.len() as u64).sum()
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

const OTHER_LENGTH: &str = "the body has another length than announced";

/// Guess: what a reader takes of a stream at once, so that one write carries many small chunks.
const BATCH_BYTES: u64 = 256 * 1024;
