//! HTTP/2: the frame layer of the `h2` crate with our gate, decision and answers on top.
//!
//! ```text
//! accept a stream ── the gate refuses ───────────── say why; too many of those end the connection
//!    │
//! decide ── a fresh hit that fits the window ────── answered within the connection's task: nothing to wake
//!    └───── anything else ───────────────────────── a task of its own, which ends with its stream
//! ```
//!
//! Everything a connection has to say goes through one `pipe`, so that the answers to requests that came together leave
//! together. What floods a connection with resets, settings or continuations is ended by the `h2` crate's own limits.

mod exchange;
mod pipe;
mod session;

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::header;
use http::request::Parts;
use httparse::Header;
use pingora::apps::HttpServerApp;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::{Digest, Stream};
use pingora::proxy::HttpProxy;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use self::exchange::{Exchange, NotSent};
use self::pipe::Pipe;
use self::session::PassingSession;
use super::connection::{Gone, Limits, Pace, RATE_GRACE, Timer, ended};
use super::decide::{ClientFacts, Decision, Exit, KnownForwarded, Load, decide};
use super::endpoints::{EndpointAnswer, EndpointRequest};
use super::head_writer::Http2Head;
use super::interim::{self, Heard};
use super::pass::{Pass, PassFacts};
use super::request_head::{Refusal, RequestHead};
use super::response::{Body, FieldRules, Framing, Response};
use super::sites::{Site, Sites};
use super::{Edge, Finished, LogFacts};
use crate::cache::{Answer, Request};
use crate::fields::Fields;
use crate::freshness::format_http_date;
use crate::stats::Outcome;

/// Answers connections that speak HTTP/2.
pub struct Http2 {
    edge: Arc<Edge>,
    proxy: Arc<HttpProxy<Pass>>,
}

impl Http2 {
    /// Hands what it does not answer to `proxy`.
    pub fn new(edge: Arc<Edge>, proxy: Arc<HttpProxy<Pass>>) -> Self {
        Http2 { edge, proxy }
    }

    /// Serves a connection until it ends; requests that are still answered then go on until they notice.
    pub async fn serve(self: Arc<Self>, stream: Stream, client: ClientFacts) {
        let limits = self.edge.limits();
        let digest = Arc::new(Digest {
            ssl_digest: stream.get_ssl_digest(),
            timing_digest: stream.get_timing_digest(),
            proxy_digest: stream.get_proxy_digest(),
            socket_digest: stream.get_socket_digest(),
        });
        let pipe = Pipe::new(stream);
        let handshake = options(&limits).handshake(pipe.clone());
        let limits = limits.without_zeros();
        let Ok(Ok(connection)) = timeout(limits.header_timeout, handshake).await else { return };
        pipe.collect();
        let common = Common { http_2: self, client, limits, digest };
        let serving = Serving {
            common: Arc::new(common),
            connection,
            pipe,
            key: Vec::new(),
            tasks: JoinSet::new(),
            malformed: 0,
            idle_since: None,
            pace: Pace::default(),
            written: 0,
            timer: Timer::default(),
        };
        serving.run().await;
    }
}

fn options(limits: &Limits) -> Builder {
    let header_bytes = u32::try_from(limits.header_bytes).unwrap_or(u32::MAX);
    let mut options = Builder::new();
    options
        .max_concurrent_streams(STREAMS_MAX)
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(if header_bytes == 0 { HEADER_LIST_BYTES_MAX } else { header_bytes })
        .max_send_buffer_size(WINDOW_BYTES as usize);
    options
}

/// What all requests of a connection share.
struct Common {
    http_2: Arc<Http2>,
    client: ClientFacts,
    limits: Limits,
    digest: Arc<Digest>,
}

/// A connection.
struct Serving {
    common: Arc<Common>,
    connection: Connection<Pipe, Bytes>,
    pipe: Pipe,
    /// Of the request that is decided; used again and again.
    key: Vec<u8>,
    /// Requests that are not answered at once.
    tasks: JoinSet<()>,
    /// Requests that the gate found malformed.
    malformed: usize,
    idle_since: Option<Instant>,
    /// How fast the client takes what has collected.
    pace: Pace,
    written: u64,
    timer: Timer,
}

impl Serving {
    async fn run(mut self) {
        let mut draining = self.common.http_2.edge.drain.watch();
        let mut ending = pin!(ended(&mut draining));
        let mut told = false;
        poll_fn(|context| {
            if !told && ending.as_mut().poll(context).is_ready() {
                self.connection.graceful_shutdown();
                told = true;
            }
            self.poll(context)
        })
        .await;
        self.tasks.detach_all();
    }

    /// Ready when the connection has ended or has to.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            while let Poll::Ready(accepted) = self.connection.poll_accept(context) {
                match accepted {
                    Some(Ok((request, respond))) => self.accept(request, respond),
                    Some(Err(_)) | None => return Poll::Ready(()),
                }
            }
            while let Poll::Ready(Some(_)) = self.tasks.poll_join_next(context) {}
            let sent = self.pipe.poll_send(context);
            let written = self.pipe.written();
            if written > self.written {
                self.pace.progress(written - self.written);
                self.written = written;
            }
            match sent {
                Poll::Ready(Ok(())) => self.pace = Pace::default(),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {
                    return self.pace.poll_blocked(&mut self.timer, &self.common.limits, context).map(drop);
                }
            }
            // What the frame layer could not get rid of before has room now.
            if !self.pipe.take_refused() {
                break;
            }
        }
        if !self.tasks.is_empty() {
            self.idle_since = None;
            return Poll::Pending;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        self.timer.poll(since + self.common.limits.idle_timeout.min(IDLE_MAX), context)
    }

    fn accept(&mut self, request: http::Request<RecvStream>, respond: SendResponse<Bytes>) {
        self.idle_since = None;
        let common = self.common.clone();
        let sites = common.http_2.edge.sites.load();
        let (head, body) = request.into_parts();
        let exchange = Exchange::new(body, respond);
        let (decision, exit) = self.decide(&sites, &head, &exchange);
        let unusual = match decision {
            Decision::Hit(response, site) => return self.answer_hit(exchange, head, response, site, exit),
            Decision::Load(load) => Unusual::Load(load),
            Decision::Pass(facts) => Unusual::Pass(facts),
            Decision::Endpoint(request) => Unusual::Endpoint(request),
            Decision::Refuse(refusal, fields, site) => Unusual::Refuse(refusal, fields, site),
        };
        self.tasks.spawn(common.clone().answer(exchange, head, unusual, exit));
    }

    fn decide<'s>(&mut self, sites: &'s Sites, head: &Parts, exchange: &Exchange) -> (Decision<'s>, Exit) {
        let Common { http_2, client, limits, .. } = &*self.common;
        let now = http_2.edge.cache.now();
        let lines: Vec<Header<'_>> =
            head.headers.iter().map(|(name, value)| Header { name: name.as_str(), value: value.as_bytes() }).collect();
        let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
        let has_body = has_body(head, exchange);
        let checked =
            RequestHead::of_http_2(head.method.as_str(), target(head), authority, &lines, has_body).and_then(|head| {
                match head.head_bytes > limits.header_bytes {
                    true => Err(Refusal::new(431, "header_bytes", "header section too long")),
                    false => Ok(head),
                }
            });
        match checked {
            Ok(head) => decide(&http_2.edge, sites, &head, client, now, &mut self.key, &mut KnownForwarded::default()),
            Err(refusal) => {
                self.malformed += 1;
                if self.malformed >= MALFORMED_MAX {
                    self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                }
                let exit = Exit { http_11: true, head_only: false, keep_alive: true, started: now };
                (Decision::Refuse(refusal, Fields::empty(), None), exit)
            }
        }
    }

    /// Answers from memory. What does not fit the client's window is left to a task.
    fn answer_hit(&mut self, mut exchange: Exchange, head: Parts, response: Response, site: &Arc<Site>, exit: Exit) {
        let edge = &self.common.http_2.edge;
        let mut out = Http2Head::default();
        response.write_head(&site.to_client, exit.started, &mut out);
        let out = out.finish(response.framing());
        let (sent, body_bytes) = match response.segments() {
            None => (exchange.send_head(out, true).map(|()| true), 0),
            Some(segments) => {
                let bytes = segments.bytes();
                let sent = exchange.send_head(out, false).and_then(|()| match bytes <= WINDOW_BYTES as usize {
                    true => exchange.send_at_once(&segments.shared()),
                    false => Ok(false),
                });
                (sent, bytes as u64)
            }
        };
        if sent == Ok(false) {
            let rest = self.common.clone().answer_rest(exchange, head, response, site.clone(), exit);
            self.tasks.spawn(rest);
            return;
        }
        let body_bytes = if sent.is_ok() { body_bytes } else { 0 };
        site.group.stats.client.count(response.outcome, body_bytes);
        if edge.log.wants(sent.is_err()) {
            let finished = Finished {
                site: Some(site),
                status: response.status,
                outcome: response.outcome,
                body_bytes,
                detail: sent.err().map_or(Cow::Borrowed(""), broken_by),
                broken: sent.is_err(),
                ..Finished::of(&self.common.client, exit)
            };
            edge.record(&log_facts(&head), finished);
        }
    }
}

/// What is decided about a request whose answer is not in memory.
enum Unusual {
    Load(Box<Load>),
    Pass(Box<PassFacts>),
    Endpoint(Box<EndpointRequest>),
    Refuse(Refusal, Fields, Option<Arc<Site>>),
}

/// How an answer ended.
struct Sent {
    body_bytes: u64,
    broken: Option<Cow<'static, str>>,
}

impl Common {
    /// Answers what cannot be answered at once.
    async fn answer(self: Arc<Self>, mut exchange: Exchange, head: Parts, unusual: Unusual, exit: Exit) {
        let edge = &self.http_2.edge;
        match unusual {
            Unusual::Load(load) => Box::pin(self.answer_load(exchange, head, *load, exit)).await,
            Unusual::Pass(facts) => Box::pin(self.pass(exchange, head, *facts)).await,
            Unusual::Endpoint(request) => {
                let has_body = has_body(&head, &exchange);
                Box::pin(self.answer_endpoint(&mut exchange, *request, has_body, exit)).await;
            }
            Unusual::Refuse(refusal, fields, site) => {
                let mut response = edge.refusal(refusal, fields, exit.head_only);
                let sent = self.send(&mut exchange, &mut response, &FieldRules::default()).await;
                if let Some(site) = &site {
                    site.group.stats.client.count(Outcome::Error, sent.body_bytes);
                }
                let finished = Finished {
                    site: site.as_deref(),
                    status: refusal.status,
                    body_bytes: sent.body_bytes,
                    detail: refusal.reason.into(),
                    broken: sent.broken.is_some(),
                    ..Finished::of(&self.client, exit)
                };
                edge.log(&log_facts(&head), finished);
            }
        }
    }

    /// Sends the body of a hit whose head has been sent.
    async fn answer_rest(
        self: Arc<Self>,
        mut exchange: Exchange,
        head: Parts,
        mut response: Response,
        site: Arc<Site>,
        exit: Exit,
    ) {
        let sent = self.send_body(&mut exchange, &mut response).await;
        self.finish(&head, &response, sent, &site, exit);
    }

    async fn answer_load(&self, mut exchange: Exchange, head: Parts, load: Load, exit: Exit) {
        let edge = &self.http_2.edge;
        let site = load.site.clone();
        let Ok(answer) = self.wait_for_answer(&mut exchange, &site, &load.request).await else {
            site.group.stats.client.count(Outcome::Error, 0);
            let finished = Finished { site: Some(&site), ..Finished::of(&self.client, exit) };
            let finished = Finished { detail: "the client left".into(), broken: true, ..finished };
            return edge.log(&log_facts(&head), finished);
        };
        let now = edge.cache.now();
        let mut response = match Response::of_answer(answer, &load.wanted, now) {
            Ok(response) => response,
            Err(reason) => match load.into_pass(target(&head), &self.client, exit.started, reason) {
                Some(facts) => return Box::pin(self.pass(exchange, head, facts)).await,
                None => Response::own(502, reason, Fields::empty(), exit.head_only, now),
            },
        };
        let sent = self.send(&mut exchange, &mut response, &site.to_client).await;
        self.finish(&head, &response, sent, &site, exit);
    }

    /// Asks the cache, and sends the interim answers that come meanwhile.
    async fn wait_for_answer(&self, exchange: &mut Exchange, site: &Site, request: &Request) -> Result<Answer, Gone> {
        let heard = Heard::default();
        let mut asking = pin!(self.http_2.edge.cache.get_hearing(&site.group, request, &heard));
        loop {
            let (interims, answer) = exchange.wait_for(heard.next(asking.as_mut())).await?;
            for interim in &interims {
                let head = interim::head_of_http_2(interim, &site.to_client);
                exchange.send_interim(head).await.map_err(|_| Gone)?;
            }
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
    }

    /// Counts and logs the answer of a group.
    fn finish(&self, head: &Parts, response: &Response, sent: Sent, site: &Site, exit: Exit) {
        site.group.stats.client.count(response.outcome, sent.body_bytes);
        let broken = sent.broken.is_some();
        let finished = Finished {
            site: Some(site),
            status: response.status,
            outcome: response.outcome,
            body_bytes: sent.body_bytes,
            detail: sent.broken.unwrap_or_else(|| response.detail.clone()),
            broken,
            ..Finished::of(&self.client, exit)
        };
        self.http_2.edge.log(&log_facts(head), finished);
    }

    async fn pass(&self, exchange: Exchange, mut head: Parts, facts: PassFacts) {
        let edge = &self.http_2.edge;
        head.extensions.insert(Arc::new(facts));
        let date = format_http_date(edge.cache.now().wall_seconds);
        let session = PassingSession::new(exchange, RequestHeader::from(head), self.digest.clone(), &date);
        let mut session = ServerSession::new_custom(Box::new(session));
        session.set_read_timeout(Some(self.limits.send_stall));
        session.set_write_timeout(Some(self.limits.send_stall));
        self.http_2.proxy.process_new_http(session, &edge.drain.watch()).await;
    }

    async fn answer_endpoint(&self, exchange: &mut Exchange, request: EndpointRequest, has_body: bool, exit: Exit) {
        let edge = &self.http_2.edge;
        let mut response = match edge.endpoints.admit(&request) {
            Err(refused) => Response::small(refused.status, refused.fields, refused.body, exit.head_only),
            Ok(body_bytes_max) => match self.read_body(exchange, has_body, body_bytes_max).await {
                Err(None) => return,
                Err(Some(refusal)) => edge.refusal(refusal, Fields::empty(), exit.head_only),
                Ok(body) => match exchange.wait_for(edge.endpoints.handle(request, body)).await {
                    Err(Gone) => return,
                    Ok(EndpointAnswer::Response(answer)) => {
                        Response::small(answer.status, answer.fields, answer.body, exit.head_only)
                    }
                    Ok(EndpointAnswer::Upgrade(..)) => {
                        let refusal = Refusal::new(501, "upgrade", "no upgrade in HTTP/2");
                        edge.refusal(refusal, Fields::empty(), exit.head_only)
                    }
                },
            },
        };
        self.send(exchange, &mut response, &FieldRules::default()).await;
    }

    /// Reads a whole body; `Err(None)`: the client is gone.
    async fn read_body(
        &self,
        exchange: &mut Exchange,
        has_body: bool,
        bytes_max: usize,
    ) -> Result<Bytes, Option<Refusal>> {
        let (mut body, deadline) = (Vec::new(), Instant::now() + self.limits.send_stall);
        if !has_body {
            return Ok(Bytes::new());
        }
        loop {
            match timeout_at(deadline, exchange.read()).await {
                Ok(Ok(Some(bytes))) => body.extend_from_slice(&bytes),
                Ok(Ok(None)) => break,
                Ok(Err(_)) | Err(_) => return Err(None),
            }
            if body.len() > bytes_max {
                return Err(Some(Refusal::new(413, "body_bytes", "the body is too large")));
            }
        }
        Ok(body.into())
    }

    /// Sends a whole answer. One that breaks ends with a reset of its stream.
    async fn send(&self, exchange: &mut Exchange, response: &mut Response, to_client: &FieldRules) -> Sent {
        let mut head = Http2Head::default();
        response.write_head(to_client, self.http_2.edge.cache.now(), &mut head);
        let head = head.finish(response.framing());
        let bodiless = matches!(response.body(), Body::None);
        match exchange.send_head(head, bodiless) {
            Ok(()) if bodiless => Sent { body_bytes: 0, broken: None },
            Ok(()) => self.send_body(exchange, response).await,
            Err(error) => Sent { body_bytes: 0, broken: Some(broken_by(error)) },
        }
    }

    async fn send_body(&self, exchange: &mut Exchange, response: &mut Response) -> Sent {
        let framing = response.framing();
        let mut writer = Writer { exchange, limits: &self.limits, blocked: Duration::ZERO };
        let result = match response.body() {
            Body::None => writer.exchange.finish().map_err(broken_by),
            Body::Segments(segments) => writer.write_all(&segments.shared(), true).await,
            Body::Stream(reader, mut cutter) => {
                let (mut chunks, mut out) = (Vec::new(), Vec::new());
                loop {
                    let read = writer.exchange.wait_for(reader.read(&mut chunks, BATCH_BYTES)).await;
                    let ended = match read {
                        Err(Gone) => break Err(broken_by(NotSent::Gone)),
                        Ok(Err(error)) => break Err(error.to_string().into()),
                        Ok(Ok(more)) => !more,
                    };
                    cutter.pass(&mut chunks, &mut out);
                    let bytes: u64 = out.iter().map(|segment| segment.len() as u64).sum();
                    let so_far = writer.exchange.bytes_sent.saturating_add(bytes);
                    let mut done = ended || cutter.is_done();
                    if let Framing::Length(length) = framing {
                        done |= so_far >= length;
                        if so_far > length || (done && so_far < length) {
                            break Err("the body has another length than announced".into());
                        }
                    }
                    if let Err(reason) = writer.write_all(&out, done).await {
                        break Err(reason);
                    }
                    out.clear();
                    if done {
                        break Ok(());
                    }
                }
            }
        };
        if result.is_err() {
            exchange.reset(Reason::INTERNAL_ERROR);
        }
        Sent { body_bytes: exchange.bytes_sent, broken: result.err() }
    }
}

/// Writes segments at the client's pace.
struct Writer<'a> {
    exchange: &'a mut Exchange,
    limits: &'a Limits,
    blocked: Duration,
}

impl Writer<'_> {
    async fn write_all(&mut self, segments: &[Bytes], end: bool) -> Result<(), Cow<'static, str>> {
        for segment in segments {
            // In pieces, so that the least rate is looked at now and then.
            let mut rest = segment.clone();
            while !rest.is_empty() {
                let piece = rest.split_to(rest.len().min(WINDOW_BYTES as usize));
                let since = Instant::now();
                self.exchange.send(piece, false, self.limits.send_stall).await.map_err(broken_by)?;
                self.blocked += since.elapsed();
                if let Some(earned_seconds) = self.exchange.bytes_sent.checked_div(self.limits.body_min_rate)
                    && self.blocked.saturating_sub(RATE_GRACE).as_secs() > earned_seconds
                {
                    return Err(broken_by(NotSent::Stalled));
                }
            }
        }
        if end { self.exchange.finish().map_err(broken_by) } else { Ok(()) }
    }
}

/// Path and query as received.
fn target(head: &Parts) -> &[u8] {
    head.uri.path_and_query().map_or(&[], |target| target.as_str().as_bytes())
}

fn has_body(head: &Parts, exchange: &Exchange) -> bool {
    !exchange.is_body_done() && head.headers.get(header::CONTENT_LENGTH).is_none_or(|length| length != "0")
}

fn log_facts(head: &Parts) -> LogFacts {
    let host = match head.uri.authority() {
        Some(authority) => authority.as_str().to_owned(),
        None => {
            let host = head.headers.get(header::HOST).map_or(&[][..], |host| host.as_bytes());
            String::from_utf8_lossy(host).into_owned()
        }
    };
    LogFacts {
        method: head.method.as_str().to_owned(),
        target: String::from_utf8_lossy(target(head)).into_owned(),
        host,
        version: "HTTP/2",
    }
}

fn broken_by(error: NotSent) -> Cow<'static, str> {
    match error {
        NotSent::Gone => "the client left".into(),
        NotSent::Stalled => "the client takes the answer too slowly".into(),
    }
}

/// Streams of one connection at a time; as many as RFC 9113 section 6.5.2 recommends at least.
const STREAMS_MAX: u32 = 100;
/// Requests of one connection that the gate may refuse before the connection is ended: rejecting costs more than asking.
const MALFORMED_MAX: usize = 32;
/// Header sections without a limit in the configuration.
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
/// What a client may send of one body, and what is kept of one answer, before the other side has taken it.
const WINDOW_BYTES: u32 = 64 * 1024;
/// The same for all bodies of one connection.
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// A connection without a stream is closed after so long at most.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Guess, as in the lane.
const BATCH_BYTES: u64 = 256 * 1024;
