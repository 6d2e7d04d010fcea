//! HTTP/2: pingora's connection loop with our gate, decision and answers in front of its proxy.
//!
//! Differs from the lane in one thing: pingora writes its own `Date` into every head of HTTP/2. `Age` is ours and right, so
//! caches behind us compute the same freshness.

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use httparse::Header;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, HttpSession, default_h2_options};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use tokio::time::{Instant, timeout};

use super::connection::{Gone, Limits, RATE_GRACE};
use super::decide::{ClientFacts, Decision, Exit, Load, decide};
use super::endpoints::{EndpointAnswer, EndpointRequest};
use super::pass::{Pass, PassFacts};
use super::request_head::{Refusal, RequestHead};
use super::response::{Body, FieldRules, Framing, Http2Head, Response};
use super::sites::{Site, Sites};
use super::{Edge, Finished, LogFacts};
use crate::fields::Fields;
use crate::stats::Outcome;

/// The app of connections that speak HTTP/2.
pub struct Http2 {
    edge: Arc<Edge>,
    proxy: Arc<HttpProxy<Pass>>,
    options: HttpServerOptions,
}

impl Http2 {
    /// An app that hands what it does not answer to `proxy`.
    pub fn new(edge: Arc<Edge>, proxy: Arc<HttpProxy<Pass>>) -> Self {
        let mut options = HttpServerOptions::default();
        let idle = edge.limits().idle_timeout;
        options.h2_idle_timeout = Some(if idle.is_zero() { IDLE_MAX } else { idle.min(IDLE_MAX) });
        Http2 { edge, proxy, options }
    }
}

#[async_trait]
impl HttpServerApp for Http2 {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        // Nothing else comes here: the listener chooses by ALPN.
        if let ServerSession::H2(session) = session {
            self.answer(session, shutdown).await;
        }
        None
    }

    fn h2_options(&self) -> Option<H2Options> {
        let header_bytes = u32::try_from(self.edge.limits().header_bytes).unwrap_or(u32::MAX);
        let header_bytes = if header_bytes == 0 { HEADER_LIST_BYTES_MAX } else { header_bytes };
        let mut options = default_h2_options();
        options
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(header_bytes)
            .max_send_buffer_size(WINDOW_BYTES as usize);
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }

    async fn http_cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

/// How an answer ended.
struct Sent {
    body_bytes: u64,
    broken: Option<Cow<'static, str>>,
}

impl Http2 {
    async fn answer(&self, mut session: HttpSession, shutdown: &ShutdownWatch) {
        let limits = self.edge.limits();
        session.set_write_timeout(Some(limits.send_stall).filter(|stall| !stall.is_zero()));
        let digest = session.digest().and_then(|digest| digest.socket_digest.clone());
        let client = ClientFacts::of(digest.as_deref(), true, &self.edge.roles);
        let has_body = !session.is_body_empty();
        let sites = self.edge.sites.load_full();
        let (decision, exit, log) = self.decide(&sites, session.req_header(), has_body, &client, &limits);
        match decision {
            Decision::Hit(mut response, site) => {
                self.finish_site(&mut session, &mut response, site, &client, exit, &log, &limits).await;
            }
            Decision::Load(load) => self.answer_load(session, *load, &client, exit, &log, &limits, shutdown).await,
            Decision::Pass(facts) => self.pass(session, *facts, shutdown).await,
            Decision::Endpoint(request) => self.answer_endpoint(&mut session, *request, has_body, exit, &limits).await,
            Decision::Refuse(refusal, fields, site) => {
                let mut response = self.edge.refusal(refusal, fields, exit.head_only);
                let sent = self.send(&mut session, &mut response, &FieldRules::default(), &limits).await;
                if let Some(site) = &site {
                    site.group.stats.client.count(Outcome::Error, sent.body_bytes);
                }
                let finished = Finished {
                    site: site.as_deref(),
                    status: refusal.status,
                    body_bytes: sent.body_bytes,
                    detail: refusal.reason.into(),
                    broken: sent.broken.is_some(),
                    ..Finished::of(&client, exit)
                };
                self.edge.log(&log, finished);
            }
        }
    }

    fn decide<'s>(
        &self,
        sites: &'s Sites,
        request: &RequestHeader,
        has_body: bool,
        client: &ClientFacts,
        limits: &Limits,
    ) -> (Decision<'s>, Exit, LogFacts) {
        let now = self.edge.cache.now();
        let lines: Vec<Header<'_>> = request
            .headers
            .iter()
            .map(|(name, value)| Header { name: name.as_str(), value: value.as_bytes() })
            .collect();
        let authority = request.uri.authority().map(|authority| authority.as_str().as_bytes());
        let head = RequestHead::of_http_2(request.method.as_str(), request.raw_path(), authority, &lines, has_body)
            .and_then(|head| match limits.header_bytes > 0 && head.head_bytes > limits.header_bytes {
                true => Err(Refusal::new(431, "header_bytes", "header section too long")),
                false => Ok(head),
            });
        match head {
            Ok(head) => {
                let (decision, exit) = decide(&self.edge, sites, &head, client, now, &mut Vec::new());
                (decision, exit, LogFacts::of(&head))
            }
            Err(refusal) => {
                let exit = Exit { http_11: true, head_only: false, keep_alive: true, started: now };
                (Decision::Refuse(refusal, Fields::empty(), None), exit, LogFacts::default())
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn answer_load(
        &self,
        mut session: HttpSession,
        load: Load,
        client: &ClientFacts,
        exit: Exit,
        log: &LogFacts,
        limits: &Limits,
        shutdown: &ShutdownWatch,
    ) {
        let Load { site, request, wanted, pass } = load;
        let Ok(answer) = wait_for(&mut session, self.edge.cache.get(&site.group, &request)).await else {
            site.group.stats.client.count(Outcome::Error, 0);
            let finished = Finished { site: Some(&site), ..Finished::of(client, exit) };
            return self.edge.log(log, Finished { detail: "the client left".into(), broken: true, ..finished });
        };
        let now = self.edge.cache.now();
        let mut response = match (Response::of_answer(answer, &wanted, now), pass) {
            (Ok(response), _) => response,
            (Err(reason), Some(facts)) => {
                return self.pass(session, PassFacts { detail: Some(reason), ..facts }, shutdown).await;
            }
            (Err(reason), None) => Response::own(502, reason, Fields::empty(), exit.head_only, now),
        };
        self.finish_site(&mut session, &mut response, &site, client, exit, log, limits).await;
    }

    /// Sends the answer of a group, counts and logs it.
    #[allow(clippy::too_many_arguments)]
    async fn finish_site(
        &self,
        session: &mut HttpSession,
        response: &mut Response,
        site: &Site,
        client: &ClientFacts,
        exit: Exit,
        log: &LogFacts,
        limits: &Limits,
    ) {
        let sent = self.send(session, response, &site.to_client, limits).await;
        site.group.stats.client.count(response.outcome, sent.body_bytes);
        let broken = sent.broken.is_some();
        let finished = Finished {
            site: Some(site),
            status: response.status,
            outcome: response.outcome,
            body_bytes: sent.body_bytes,
            detail: sent.broken.unwrap_or_else(|| response.detail.clone()),
            broken,
            ..Finished::of(client, exit)
        };
        self.edge.log(log, finished);
    }

    async fn pass(&self, mut session: HttpSession, facts: PassFacts, shutdown: &ShutdownWatch) {
        session.req_header_mut().extensions_mut().insert(Arc::new(facts));
        self.proxy.process_new_http(ServerSession::H2(session), shutdown).await;
    }

    async fn answer_endpoint(
        &self,
        session: &mut HttpSession,
        request: EndpointRequest,
        has_body: bool,
        exit: Exit,
        limits: &Limits,
    ) {
        let mut response = match self.edge.endpoints.admit(&request) {
            Err(refused) => Response::small(refused.status, refused.fields, refused.body, exit.head_only),
            Ok(body_bytes_max) => match read_body(session, has_body, body_bytes_max, limits).await {
                Err(None) => return,
                Err(Some(refusal)) => self.edge.refusal(refusal, Fields::empty(), exit.head_only),
                Ok(body) => {
                    let handled = wait_for(session, self.edge.endpoints.handle(request, body)).await;
                    match handled {
                        Err(Gone) => return,
                        Ok(EndpointAnswer::Response(answer)) => {
                            Response::small(answer.status, answer.fields, answer.body, exit.head_only)
                        }
                        Ok(EndpointAnswer::Upgrade(..)) => {
                            let refusal = Refusal::new(501, "upgrade", "no upgrade in HTTP/2");
                            self.edge.refusal(refusal, Fields::empty(), exit.head_only)
                        }
                    }
                }
            },
        };
        self.send(session, &mut response, &FieldRules::default(), limits).await;
    }

    /// Sends a whole answer. One that breaks ends with a reset of its stream.
    async fn send(
        &self,
        session: &mut HttpSession,
        response: &mut Response,
        to_client: &FieldRules,
        limits: &Limits,
    ) -> Sent {
        let mut head = Http2Head::default();
        response.write_head(to_client, self.edge.cache.now(), &mut head);
        let framing = response.framing();
        let head = head.finish(framing);
        let body = response.body();
        if session.write_response_header(head, matches!(body, Body::None)).is_err() {
            return Sent { body_bytes: 0, broken: Some("the client left".into()) };
        }
        let mut writer = Writer { session, limits, body_bytes: 0, blocked: Duration::ZERO };
        let result = match body {
            Body::None => Ok(()),
            Body::Segments(segments) => writer.write_all(&segments, true).await,
            Body::Stream(reader, mut cutter) => {
                let (mut chunks, mut out) = (Vec::new(), Vec::new());
                loop {
                    let read = wait_for(writer.session, reader.read(&mut chunks, BATCH_BYTES)).await;
                    let ended = match read {
                        Err(Gone) => break Err("the client left".into()),
                        Ok(Err(error)) => break Err(error.to_string().into()),
                        Ok(Ok(more)) => !more,
                    };
                    cutter.pass(&mut chunks, &mut out);
                    let bytes: u64 = out.iter().map(|segment| segment.len() as u64).sum();
                    let so_far = writer.body_bytes.saturating_add(bytes);
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
        let body_bytes = writer.body_bytes;
        if result.is_err() {
            session.shutdown_with_reason(h2::Reason::INTERNAL_ERROR);
        }
        Sent { body_bytes, broken: result.err() }
    }
}

/// Writes segments at the client's pace.
struct Writer<'a> {
    session: &'a mut HttpSession,
    limits: &'a Limits,
    body_bytes: u64,
    blocked: Duration,
}

impl Writer<'_> {
    async fn write_all(&mut self, segments: &[Bytes], end: bool) -> Result<(), Cow<'static, str>> {
        if segments.is_empty() && end {
            return self.session.finish().map_err(|_| "the client left".into());
        }
        for (index, segment) in segments.iter().enumerate() {
            let last = end && index + 1 == segments.len();
            // In pieces, so that the least rate is looked at now and then.
            let mut rest = segment.clone();
            loop {
                let piece = rest.split_to(rest.len().min(PIECE_BYTES));
                let (bytes, since) = (piece.len() as u64, Instant::now());
                let written = self.session.write_body(piece, last && rest.is_empty()).await;
                written.map_err(|_| "the client left or is too slow")?;
                self.body_bytes += bytes;
                self.blocked += since.elapsed();
                if let Some(earned_seconds) = self.body_bytes.checked_div(self.limits.body_min_rate)
                    && self.blocked.saturating_sub(RATE_GRACE).as_secs() > earned_seconds
                {
                    return Err("the client takes the answer too slowly".into());
                }
                if rest.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Waits for `future`, and for the client's giving up this stream.
async fn wait_for<T>(session: &mut HttpSession, future: impl Future<Output = T>) -> Result<T, Gone> {
    tokio::select! {
        biased;
        value = future => Ok(value),
        _ = session.idle() => Err(Gone),
    }
}

/// Reads a whole body; `Err(None)`: the client is gone.
async fn read_body(
    session: &mut HttpSession,
    has_body: bool,
    bytes_max: usize,
    limits: &Limits,
) -> Result<Bytes, Option<Refusal>> {
    let patience = if limits.send_stall.is_zero() { IDLE_MAX } else { limits.send_stall };
    let mut body = Vec::new();
    if !has_body {
        return Ok(Bytes::new());
    }
    loop {
        match timeout(patience, session.read_body_bytes()).await {
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

/// The default of pingora.
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
/// What a client may send of one body, and what is kept of one answer, before the other side has taken it.
const WINDOW_BYTES: u32 = 64 * 1024;
/// The same for all bodies of one connection.
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// A connection without a stream is closed after so long at most.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Guess, as in the lane.
const BATCH_BYTES: u64 = 256 * 1024;
/// One write; pingora waits for the client's window within it.
const PIECE_BYTES: usize = 64 * 1024;
