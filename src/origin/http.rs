//! An origin over HTTP: [`HttpOrigin`] asks one of its servers and hands back what passed all checks.
//!
//! A request goes: choose a server, take an idle connection or open one on any of the server's addresses, write our own request,
//! wait for the head, check it (`head`), and hand out the body (`body`, `plain`), which keeps the connection for the next request
//! after an end that its framing proves. An origin that is a list is asked again elsewhere only while nothing was sent.
//!
//! Connections belong to the tokio runtime that opened them. Ask an [`HttpOrigin`] from one runtime that lives as long as it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderValue;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v1::client::HttpSession as Http1Session;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{WrappedX509, parse_x509};
use pingora::{Error, ErrorType, RetryType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use x509_parser::parse_x509_certificate;

use super::body::HttpBody;
use super::head::{self, Asked, Head, PlainHead, Wire, refused};
use super::idle::IdleConnections;
use super::plain::{Plain, PlainBody, PlainConnection, RequestText, keep, split_body};
use super::settings::{HostRule, OriginSettings, OriginUrl, SettingsError, split_authority};
use super::upstream::{InFlight, Lookup, Upstream, UpstreamSnapshot, choose, system_lookup};
use crate::fields::Fields;
use crate::source::{Aside, Ask, BodyStream, Deaf, FetchError, Fetched, InterimSink, Method, ReadyBody, Source};

/// A source that is asked over HTTP/1.1, or HTTP/2 where a TLS server prefers it.
///
/// Cloning shares everything: the pool of connections, the health of the servers and the counters.
#[derive(Clone)]
pub struct HttpOrigin {
    inner: Arc<Inner>,
}

/// Where a request goes that passes through.
pub struct PassChoice {
    /// What to connect to.
    pub peer: HttpPeer,
    /// The server's URL.
    pub url: OriginUrl,
}

/// What bodies on their way share with their origin.
pub(super) struct Inner {
    settings: OriginSettings,
    pub(super) connector: Connector,
    /// Those without TLS; the others are in the connector's pool.
    pub(super) idle: Arc<IdleConnections>,
    /// For requests that pass: the authorities that may vouch for the servers, if not those of the system.
    pass_ca: Option<(Arc<CaType>, u64)>,
    upstreams: Vec<Arc<Upstream>>,
    /// Counts requests, for turns.
    turn: AtomicUsize,
}

/// Idle connections kept per origin and protocol (guess: an origin that serves this many at once is far from idle).
pub(super) const POOL_CONNECTIONS: usize = 256;
/// Streams that we open on one HTTP/2 connection, the usual limit of servers (nginx: 128).
const HTTP2_STREAMS: usize = 100;
/// Receive window of an HTTP/2 stream in bytes, so that a slow reader holds no more than this outside our accounts.
const HTTP2_WINDOW_BYTES: u32 = 1 << 20;
/// How long a connection waits for its next request. Shorter than the 75 s of nginx and the 60 s of most others.
pub(super) const POOL_IDLE: Duration = Duration::from_secs(50);
/// Interim answers before one is no answer at all (hardening rule FRM 11).
const INTERIM_MAX: usize = 8;

impl HttpOrigin {
    /// Prepares the connections; opens none.
    ///
    /// # Errors
    /// When a setting cannot be used: no URL, a malformed name, or certificates that cannot be read.
    pub fn new(settings: OriginSettings) -> Result<Self, SettingsError> {
        Self::with_lookup(settings, system_lookup())
    }

    fn with_lookup(settings: OriginSettings, lookup: Lookup) -> Result<Self, SettingsError> {
        check(&settings)?;
        let tls = settings.urls.iter().any(|url| url.tls());
        let ca_file = if tls { certificates(settings.ca.as_deref())? } else { Some(NO_CERTIFICATES.to_owned()) };
        let pass_ca = settings.ca.as_deref().filter(|_| tls).map(authorities).transpose()?;
        let connector = Connector::new(Some(ConnectorOptions { ca_file, ..ConnectorOptions::new(POOL_CONNECTIONS) }));
        let upstreams = settings.urls.iter().map(|url| {
            let (tls, host) = (url.tls(), url.host().to_owned());
            let make_peer = Box::new(move |address: SocketAddr| peer(address, tls, &host));
            Arc::new(Upstream::new(url.clone(), make_peer, lookup.clone(), settings.resolve))
        });
        let upstreams = upstreams.collect();
        let turn = AtomicUsize::new(0);
        Ok(HttpOrigin {
            inner: Arc::new(Inner { settings, connector, idle: Arc::default(), pass_ca, upstreams, turn }),
        })
    }

    /// What was counted about each server, in the order of the configuration.
    pub fn snapshot(&self) -> Vec<UpstreamSnapshot> {
        self.inner.upstreams.iter().map(|upstream| upstream.snapshot()).collect()
    }

    /// A server for a request in which the cache has no part: the next in turn, or after `attempt` failures the one after as
    /// many others.
    ///
    /// # Errors
    /// None has an address now.
    pub async fn choose_for_pass(&self, attempt: usize) -> Result<PassChoice, FetchError> {
        let inner = &self.inner;
        let turn = match attempt {
            0 => inner.turn.fetch_add(1, Ordering::Relaxed),
            _ => inner.turn.load(Ordering::Relaxed).wrapping_sub(1).wrapping_add(attempt),
        };
        let index = choose(&inner.upstreams, inner.settings.balance, turn, &[]);
        let upstream = index.and_then(|index| inner.upstreams.get(index));
        let upstream = upstream.ok_or_else(|| FetchError::unreachable("the origin has no server"))?;
        let peers = upstream.peers().await?;
        let peer = peers.first().ok_or_else(|| FetchError::unreachable("the origin has no address"))?;
        let mut peer = HttpPeer::clone(peer);
        if let Some((authorities, number)) = &inner.pass_ca {
            peer.options.ca = Some(authorities.clone());
            // Requests of all groups share one pool, which does not look at the authorities.
            peer.group_key = *number;
        }
        Ok(PassChoice { peer, url: upstream.url.clone() })
    }

    /// The settings in force.
    pub fn settings(&self) -> &OriginSettings {
        &self.inner.settings
    }

    /// Probes the servers of a list until `shutdown` turns true or its sender is gone. Returns at once for a single server:
    /// there is nobody to ask instead.
    pub async fn health_loop(&self, mut shutdown: watch::Receiver<bool>) {
        if self.inner.upstreams.len() < 2 {
            return;
        }
        let mut ticks = interval(self.inner.settings.health.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let probing = async {
            loop {
                ticks.tick().await;
                self.probe_all().await;
            }
        };
        let stopping = async {
            let _ = shutdown.wait_for(|stop| *stop).await;
        };
        tokio::select! {
            () = probing => {}
            () = stopping => {}
        }
    }

    async fn probe_all(&self) {
        let mut probes = JoinSet::new();
        for upstream in &self.inner.upstreams {
            let (inner, upstream) = (self.inner.clone(), upstream.clone());
            probes.spawn(async move {
                let up = inner.probe(&upstream).await;
                upstream.probed(up);
            });
        }
        while probes.join_next().await.is_some() {}
    }
}

#[async_trait]
impl Source for HttpOrigin {
    async fn fetch(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        self.fetch_with(ask, Aside::default()).await
    }

    async fn fetch_with(&self, ask: &Ask, aside: Aside<'_>) -> Result<Fetched, FetchError> {
        match timeout(self.inner.settings.timeouts.total, self.inner.fetch(ask, aside.interims)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(FetchError::refused(504, "the origin took too long")),
        }
    }
}

/// A connection that carries one request in a session of pingora's.
pub(super) struct Connection {
    pub session: HttpSession,
    /// Where it goes in the pool afterwards.
    pub peer: Arc<HttpPeer>,
}

/// A connection that may carry one.
enum Line {
    Plain(PlainConnection),
    Session(Box<HttpSession>),
    /// It was dead.
    Closed,
}

/// A connection and how it was come by.
struct Connected {
    line: Line,
    peer: Arc<HttpPeer>,
    reused: bool,
}

/// A request as it is written.
enum Question {
    /// A `GET` without TLS.
    Text(Vec<u8>),
    Header(Box<RequestHeader>),
}

/// The head of a final answer.
enum Answer {
    Head(Head),
    /// The connection is still a plain one, and these are the first bytes of the body.
    Plain(PlainHead, Bytes),
}

/// Why a conversation gave no head.
struct Fault {
    error: FetchError,
    again: Again,
}

/// Whether the same question may be asked once more, on a new connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    Never,
    /// If the connection was idle before: it may have been dead all along.
    IfReused,
    /// The server says that it did not look at the question, or wants HTTP/1.1 for it.
    Always,
}

impl From<FetchError> for Fault {
    fn from(error: FetchError) -> Self {
        Fault { error, again: Again::Never }
    }
}

impl Inner {
    async fn fetch(self: &Arc<Self>, ask: &Ask, interims: &dyn InterimSink) -> Result<Fetched, FetchError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut tried = Vec::new();
        let mut outcome = Err(FetchError::unreachable("the origin has no server"));
        while tried.len() <= self.settings.retries {
            let Some(index) = choose(&self.upstreams, self.settings.balance, turn, &tried) else { break };
            tried.push(index);
            let upstream = &self.upstreams[index];
            if !upstream.admits() {
                outcome = Err(FetchError::unreachable("the origin failed several times in a row"));
                continue;
            }
            upstream.count_request();
            outcome = self.exchange(upstream, &upstream.url.path(&ask.target), ask, interims).await;
            match &outcome {
                Ok(_) => upstream.answered(true),
                Err(FetchError::Unreachable(_) | FetchError::Refused { status: 504, .. }) => upstream.answered(false),
                // A malformed answer is one: else one bad page, asked for again and again, would close the way to all.
                Err(_) => {}
            }
            if outcome.is_err() {
                upstream.count_error();
            }
            if !matches!(outcome, Err(FetchError::Unreachable(_))) {
                break;
            }
        }
        outcome
    }

    /// Asks one server, on a new connection again when an idle one turns out to be dead: the request was not read then, and
    /// `GET` and `HEAD` may be repeated in any case (RFC 9110 section 9.2.2).
    async fn exchange(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        path: &[u8],
        ask: &Ask,
        interims: &dyn InterimSink,
    ) -> Result<Fetched, FetchError> {
        let in_flight = upstream.begin();
        let question = self.question(upstream, path, ask)?;
        let asked = Asked::of(ask);
        let mut connection = self.connect(upstream, Reuse::Idle).await?;
        let mut outcome = self.converse(upstream, &mut connection, &question, asked, interims).await;
        let again = outcome.as_ref().err().map_or(Again::Never, |fault| fault.again);
        if again == Again::Always || again == Again::IfReused && connection.reused {
            self.hang_up(connection).await;
            connection = self.connect(upstream, Reuse::Never).await?;
            outcome = self.converse(upstream, &mut connection, &question, asked, interims).await;
        }
        match outcome {
            Ok(answer) => self.fetched(answer, asked, connection, in_flight).await,
            Err(fault) => {
                self.hang_up(connection).await;
                Err(fault.error)
            }
        }
    }

    /// A connection to any address of the server, from the pool if that is wanted and it has one.
    async fn connect(&self, upstream: &Arc<Upstream>, reuse: Reuse) -> Result<Connected, FetchError> {
        let mut reason = "the origin has no address";
        for peer in upstream.peers().await? {
            match self.connect_to(upstream, &peer, reuse).await {
                Ok(connection) => {
                    upstream.prefer(&peer);
                    return Ok(connection);
                }
                Err(why) => reason = why,
            }
        }
        upstream.failed_to_connect();
        Err(FetchError::unreachable(reason))
    }

    async fn connect_to(
        &self,
        upstream: &Upstream,
        peer: &Arc<HttpPeer>,
        reuse: Reuse,
    ) -> Result<Connected, &'static str> {
        let connected = |line, reused| Connected { line, peer: peer.clone(), reused };
        if let Some(address) = plain_address(peer) {
            if reuse == Reuse::Idle
                && let Some(stream) = self.idle.take(address)
            {
                return Ok(connected(Line::Plain(PlainConnection { stream, address }), true));
            }
            return match timeout(self.settings.timeouts.connect, PlainConnection::connect(address)).await {
                Ok(Ok(connection)) => Ok(connected(Line::Plain(connection), false)),
                Ok(Err(error)) => {
                    tracing::debug!(origin = %upstream.url, %address, %error, "no connection");
                    Err(match error.kind() {
                        ErrorKind::ConnectionRefused => "the origin refuses connections",
                        ErrorKind::TimedOut => "connecting to the origin took too long",
                        _ => "the origin cannot be reached",
                    })
                }
                Err(_) => Err("connecting to the origin took too long"),
            };
        }
        // In a box, as all that seldom happens here: each fill has room for what is not.
        Box::pin(self.connect_session(upstream, peer, reuse)).await
    }

    /// A connection with TLS.
    async fn connect_session(
        &self,
        upstream: &Upstream,
        peer: &Arc<HttpPeer>,
        reuse: Reuse,
    ) -> Result<Connected, &'static str> {
        let connected = |line, reused| Connected { line, peer: peer.clone(), reused };
        if reuse == Reuse::Idle {
            match timeout(self.settings.timeouts.connect, self.connector.get_http_session(&**peer)).await {
                Ok(Ok((session, reused))) => return Ok(connected(Line::Session(session.into()), reused)),
                // A pooled HTTP/2 connection that died says so only when it is asked for a stream.
                Ok(Err(error)) if matches!(error.etype(), ErrorType::H2Error) => {}
                Ok(Err(error)) => return Err(connect_reason(upstream, peer, &error)),
                Err(_) => return Err("connecting to the origin took too long"),
            }
        }
        let fresh = unpooled(peer);
        match timeout(self.settings.timeouts.connect, self.connector.get_http_session(&fresh)).await {
            Ok(Ok((session, reused))) => Ok(connected(Line::Session(session.into()), reused)),
            Ok(Err(error)) => Err(connect_reason(upstream, peer, &error)),
            Err(_) => Err("connecting to the origin took too long"),
        }
    }

    /// Writes the request and waits for the head of the final answer.
    async fn converse(
        &self,
        upstream: &Upstream,
        connection: &mut Connected,
        question: &Question,
        asked: Asked,
        interims: &dyn InterimSink,
    ) -> Result<Answer, Fault> {
        let line = &mut connection.line;
        let waited = timeout(self.settings.timeouts.first_byte, async {
            let mut asked_as_text = false;
            if let (Line::Plain(plain), Question::Text(text)) = (&mut *line, question) {
                match plain.converse(text, asked).await {
                    Plain::Usual(head, body) => return Ok(Answer::Plain(head, body)),
                    Plain::Dead => return Err(Trouble::Closed),
                    Plain::Other => asked_as_text = true,
                }
            }
            let in_session = async {
                let session = line.session().ok_or(Trouble::Closed)?;
                match question {
                    Question::Header(request) => write_request(session, request.clone()).await?,
                    Question::Text(_) if asked_as_text => {}
                    // Text is for lines that take it.
                    Question::Text(_) => return Err(Trouble::Refused(unsayable())),
                }
                read_head(session, asked, interims).await.map(Answer::Head)
            };
            Box::pin(in_session).await
        });
        match waited.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Trouble::Closed)) => Err(Fault { error: refused(CLOSED), again: Again::IfReused }),
            Ok(Err(Trouble::Refused(error))) => {
                tracing::debug!(origin = %upstream.url, %error, "answer refused");
                Err(error.into())
            }
            Ok(Err(Trouble::Pingora(error))) => {
                tracing::debug!(origin = %upstream.url, %error, "no answer");
                Err(fault(&error))
            }
            Err(_) => Err(FetchError::refused(504, "the origin did not answer in time").into()),
        }
    }

    async fn fetched(
        self: &Arc<Self>,
        answer: Answer,
        asked: Asked,
        connected: Connected,
        in_flight: InFlight,
    ) -> Result<Fetched, FetchError> {
        let Connected { line, peer, .. } = connected;
        match (answer, line) {
            (Answer::Plain(head, read), Line::Plain(connection)) => {
                Ok(self.fetched_plain(head, read, connection, in_flight))
            }
            (Answer::Head(head), Line::Session(session)) => {
                let connection = Connection { session: *session, peer };
                Box::pin(self.fetched_in_session(head, asked, connection, in_flight)).await
            }
            _ => Err(refused(CLOSED)),
        }
    }

    async fn fetched_in_session(
        self: &Arc<Self>,
        head: Head,
        asked: Asked,
        mut connection: Connection,
        in_flight: InFlight,
    ) -> Result<Fetched, FetchError> {
        let Head { status, fields, content_length, close_delimited } = head;
        // What the head of an answer to `HEAD` declares is not sent.
        let expected = if asked.head_only { Some(0) } else { content_length };
        // True for HTTP/1 without a body, and for HTTP/2 where the head ended the stream.
        let ended = connection.session.response_done();
        let body = HttpBody::new(self.clone(), connection, in_flight, expected);
        if !ended {
            return Ok(Fetched { status, fields, content_length, close_delimited, hop: None, body: Box::new(body) });
        }
        body.finish().await.map_err(|_| refused("the origin's body ended early"))?;
        let body = Box::new(ReadyBody::default());
        Ok(Fetched { status, fields, content_length, close_delimited, hop: None, body })
    }

    /// Most bodies are here with their head.
    fn fetched_plain(
        self: &Arc<Self>,
        head: PlainHead,
        read: Bytes,
        connection: PlainConnection,
        in_flight: InFlight,
    ) -> Fetched {
        let (read, left, surplus) = split_body(&head.head, read);
        let body: Box<dyn BodyStream> = if left == 0 {
            keep(&self.idle, connection, head.reusable && !surplus);
            Box::new(ReadyBody::new([read]))
        } else {
            Box::new(PlainBody::new(self.clone(), in_flight, connection, head.reusable, read, left))
        };
        let Head { status, fields, content_length, close_delimited } = head.head;
        Fetched { status, fields, content_length, close_delimited, hop: None, body }
    }

    async fn hang_up(&self, connected: Connected) {
        // A plain connection ends by being dropped.
        if let Connected { line: Line::Session(session), peer, .. } = connected {
            Box::pin(self.give_up(Connection { session: *session, peer })).await;
        }
    }

    /// Ends a conversation that failed: HTTP/1 closes the connection, HTTP/2 resets the stream.
    pub(super) async fn give_up(&self, connection: Connection) {
        let Connection { mut session, peer, .. } = connection;
        let ending = async {
            session.shutdown().await;
            if let HttpSession::H2(_) = session {
                // The pool keeps books about streams; only a release takes this one out.
                self.connector.release_http_session(session, &*peer, Some(POOL_IDLE)).await;
            }
        };
        let _ = timeout(RELEASE_TIMEOUT, ending).await;
    }

    pub(super) fn between_bytes(&self) -> Duration {
        self.settings.timeouts.between_bytes
    }

    /// Gives a connection back whose answer ended cleanly. Pingora closes it when it must not be used again: the origin said
    /// so, the body was ended by closing, or bytes came after the end.
    pub(super) async fn release(&self, connection: Connection) {
        let Connection { session, peer } = connection;
        let releasing = async {
            match (session, plain_address(&peer)) {
                (HttpSession::H1(mut session), Some(address)) => {
                    session.respect_keepalive();
                    if let Some(stream) = session.reuse().await
                        && let Ok(stream) = stream.into_any().downcast()
                    {
                        self.idle.put(address, stream);
                    }
                }
                (session, _) => self.connector.release_http_session(session, &*peer, Some(POOL_IDLE)).await,
            }
        };
        let _ = timeout(RELEASE_TIMEOUT, releasing).await;
    }

    /// Our own request: nothing of a client's bytes but the fields it was allowed to bring (hardening rule FRM 6).
    fn question(&self, upstream: &Upstream, path: &[u8], ask: &Ask) -> Result<Question, FetchError> {
        let host = match (&self.settings.host, &ask.host) {
            (HostRule::Client, Some(host)) => host,
            (HostRule::Name(name), _) => name.as_bytes(),
            (HostRule::Client | HostRule::Origin, _) => upstream.url.authority().as_bytes(),
        };
        if split_authority(&String::from_utf8_lossy(host)).is_none() {
            return Err(unsayable());
        }
        if !upstream.url.tls()
            && ask.method == Method::Get
            && let Some(mut text) = RequestText::get(path, host)
        {
            for (name, field) in self.fields(ask) {
                text.field(name.as_bytes(), field);
            }
            text.field(b"Via", VIA.as_bytes());
            return Ok(Question::Text(text.finish()));
        }
        let cannot = |_| unsayable();
        let mut request = RequestHeader::build(ask.method.as_str(), path, Some(16)).map_err(cannot)?;
        if request.raw_path() != path {
            return Err(unsayable());
        }
        request.insert_header("Host", value(host)?).map_err(cannot)?;
        for (name, field) in self.fields(ask) {
            request.append_header(name.to_owned(), value(field)?).map_err(cannot)?;
        }
        request.append_header("Via", HeaderValue::from_static(VIA)).map_err(cannot)?;
        Ok(Question::Header(Box::new(request)))
    }

    /// The fields of a request: the asker's, as far as they are not ours to say, and those of the configuration.
    fn fields<'a>(&'a self, ask: &'a Ask) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let rules = &self.settings.headers;
        let is_askers = |name: &str| {
            !head::is_hop_by_hop(name.as_bytes()) && !NOT_ASKED.iter().any(|other| name.eq_ignore_ascii_case(other))
        };
        let askers = ask.fields.iter().filter(move |(name, _)| is_askers(name) && !rules.covers(name));
        askers.chain(rules.iter().filter_map(|(name, field)| Some((name, field?))))
    }

    /// Whether the server answers a probe.
    async fn probe(self: &Arc<Self>, upstream: &Arc<Upstream>) -> bool {
        let Some(path) = &self.settings.health.path else {
            let Ok(peers) = upstream.peers().await else { return false };
            for peer in peers {
                if let Some(address) = peer._address.as_inet()
                    && let Ok(Ok(_)) = timeout(self.settings.timeouts.connect, TcpStream::connect(address)).await
                {
                    return true;
                }
            }
            return false;
        };
        let ask = Ask {
            group: "".into(),
            key: Default::default(),
            target: Default::default(),
            host: None,
            method: Method::Get,
            fields: Fields::empty(),
        };
        let answer =
            timeout(self.settings.timeouts.first_byte, self.exchange(upstream, path.as_bytes(), &ask, &Deaf)).await;
        matches!(answer, Ok(Ok(fetched)) if fetched.status < 400)
    }
}

/// What we call ourselves towards the origin (RFC 9110 section 7.6.3).
const VIA: &str = "1.1 groupcache-proxy";
/// Bound on giving a connection back: TLS writes a farewell, which a stalled peer may not take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// Request fields that are never the asker's: they frame a body, or ask for a conversation we do not have.
const NOT_ASKED: &[&str] = &["host", "content-length", "expect"];
/// A file without certificates: pingora then reads none of the system's, which plain HTTP does not need.
const NO_CERTIFICATES: &str = "/dev/null";

const CLOSED: &str = "the origin closed the connection before it answered";

impl Line {
    /// The line as a session of pingora's; `None` if it is closed.
    fn session(&mut self) -> Option<&mut HttpSession> {
        *self = match std::mem::replace(self, Line::Closed) {
            Line::Plain(PlainConnection { stream, .. }) => {
                Line::Session(HttpSession::H1(Http1Session::new(stream)).into())
            }
            line => line,
        };
        match self {
            Line::Session(session) => Some(session),
            Line::Plain(_) | Line::Closed => None,
        }
    }
}

/// Where a connection leads that has no TLS.
fn plain_address(peer: &HttpPeer) -> Option<SocketAddr> {
    peer._address.as_inet().copied().filter(|_| !peer.is_tls())
}

/// Whether an idle connection will do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reuse {
    Idle,
    Never,
}

/// Why no head came.
enum Trouble {
    Closed,
    Refused(FetchError),
    Pingora(Box<Error>),
}

async fn write_request(session: &mut HttpSession, request: Box<RequestHeader>) -> Result<(), Trouble> {
    match session {
        HttpSession::H2(stream) => {
            let request = with_authority(*request).ok_or_else(|| Trouble::Refused(unsayable()))?;
            // Ends the stream with its head: an empty frame afterwards would cost a packet.
            stream.write_request_header(Box::new(request), true).map_err(Trouble::Pingora)
        }
        _ => {
            session.write_request_header(request).await.map_err(Trouble::Pingora)?;
            session.finish_request_body().await.map_err(Trouble::Pingora)
        }
    }
}

/// HTTP/2 names the host in `:authority` instead of `Host`. Pingora would send both, which nginx refuses. `None` where the
/// target is not UTF-8 and would be changed.
fn with_authority(mut request: RequestHeader) -> Option<RequestHeader> {
    let host = request.remove_header("host")?;
    let path = request.raw_path_is_utf8().then(|| request.uri.path_and_query().cloned())??;
    let uri = http::Uri::builder().scheme("https").authority(host.as_bytes()).path_and_query(path).build().ok()?;
    request.set_uri(uri);
    Some(request)
}

async fn read_head(session: &mut HttpSession, asked: Asked, interims: &dyn InterimSink) -> Result<Head, Trouble> {
    let mut interim = 0;
    loop {
        session.read_response_header().await.map_err(Trouble::Pingora)?;
        let Some(header) = session.response_header() else {
            return Err(Trouble::Refused(refused("the origin sent no header")));
        };
        let status = header.status.as_u16();
        // Pingora does not show those of HTTP/2; h2 bounds them by its own budget for frames.
        if (100..=199).contains(&status) && status != 101 {
            interim += 1;
            if interim > INTERIM_MAX {
                return Err(Trouble::Refused(refused("the origin sent too many interim answers")));
            }
            if let HttpSession::H1(stream) = &*session
                && let Some(interim) = head::interim_from_block(&stream.get_headers_raw_bytes(), status)
            {
                interims.hear(interim);
            }
            continue;
        }
        let checked = match &*session {
            HttpSession::H1(stream) => {
                let wire = if header.version == http::Version::HTTP_11 { Wire::Http11 } else { Wire::Http10 };
                head::from_block(&stream.get_headers_raw_bytes(), status, wire, asked)
            }
            _ => head::from_map(&header.headers, status, asked),
        };
        return checked.map_err(Trouble::Refused);
    }
}

/// What a failed conversation means.
fn fault(error: &Error) -> Fault {
    let again = match (&error.retry, error.etype()) {
        (RetryType::Decided(true), _) => Again::Always,
        (RetryType::ReusedOnly, _) | (_, ErrorType::WriteError) => Again::IfReused,
        (RetryType::Decided(false), _) => Again::Never,
    };
    let reason = match error.etype() {
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError => CLOSED,
        _ => "the origin's answer is malformed",
    };
    Fault { error: refused(reason), again }
}

fn connect_reason(upstream: &Upstream, peer: &HttpPeer, error: &Error) -> &'static str {
    tracing::debug!(origin = %upstream.url, address = %peer._address, %error, "no connection");
    match error.etype() {
        ErrorType::ConnectRefused => "the origin refuses connections",
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => "connecting to the origin took too long",
        ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => {
            "the origin's certificate or TLS cannot be trusted"
        }
        _ => "the origin cannot be reached",
    }
}

fn peer(address: SocketAddr, tls: bool, host: &str) -> HttpPeer {
    // An empty server name would switch verification off, so an address stands for itself.
    let mut peer = HttpPeer::new(address, tls, if tls { host.to_owned() } else { String::new() });
    if tls {
        peer.options.set_http_version(2, 1);
        peer.options.max_h2_streams = HTTP2_STREAMS;
        peer.options.h2_stream_window_size = Some(HTTP2_WINDOW_BYTES);
        peer.options.h2_connection_window_size = Some(8 * HTTP2_WINDOW_BYTES);
    }
    peer
}

/// The same server under a number that no pooled connection has. HTTP/1 only: such a connection can join the common pool
/// afterwards, an HTTP/2 one would be lost in a pool of its own.
fn unpooled(peer: &HttpPeer) -> HttpPeer {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut fresh = peer.clone();
    fresh.group_key = NEXT.fetch_add(1, Ordering::Relaxed);
    fresh.options.set_http_version(1, 1);
    fresh
}

fn value(bytes: &[u8]) -> Result<HeaderValue, FetchError> {
    HeaderValue::from_bytes(bytes).map_err(|_| unsayable())
}

/// The target, the host or a field does not fit into a request.
fn unsayable() -> FetchError {
    refused("the request cannot be sent to the origin")
}

fn check(settings: &OriginSettings) -> Result<(), SettingsError> {
    if settings.urls.is_empty() {
        return Err(SettingsError::NoUrl);
    }
    if let HostRule::Name(name) = &settings.host
        && split_authority(name).is_none()
    {
        return Err(SettingsError::HostName(name.clone()));
    }
    if let Some(path) = &settings.health.path
        && !(path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'))
    {
        return Err(SettingsError::HealthPath(path.clone()));
    }
    Ok(())
}

/// The same for connections that are not ours but the pass-through proxy's, which takes them from each request; with a number
/// that no other authorities have.
fn authorities(file: &Path) -> Result<(Arc<CaType>, u64), SettingsError> {
    let failed = |reason: String| SettingsError::Certificates { path: file.display().to_string(), reason };
    let mut hasher = DefaultHasher::new();
    let mut authorities = Vec::new();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| failed(error.to_string()))? {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        // Pingora panics where this fails.
        parse_x509_certificate(&certificate).map_err(|error| failed(error.to_string()))?;
        certificate.hash(&mut hasher);
        authorities.push(WrappedX509::new(certificate.to_vec(), parse_x509));
    }
    Ok((authorities.into(), hasher.finish()))
}

/// Reads the certificates once, because pingora panics where they cannot be read. Gives the file for pingora.
fn certificates(ca: Option<&Path>) -> Result<Option<String>, SettingsError> {
    let mut store = pingora_rustls::RootCertStore::empty();
    let (path, read) = match ca {
        Some(file) => (file.display().to_string(), pingora_rustls::load_ca_file_into_store(file, &mut store)),
        None => ("system".to_owned(), pingora_rustls::load_platform_certs_incl_env_into_store(&mut store)),
    };
    match read {
        Err(error) => Err(SettingsError::Certificates { path, reason: error.to_string() }),
        Ok(()) if store.is_empty() => {
            Err(SettingsError::Certificates { path, reason: "no certificate found".to_owned() })
        }
        Ok(()) => match ca.map(|file| file.to_str().map(str::to_owned)) {
            None => Ok(None),
            Some(Some(file)) => Ok(Some(file)),
            Some(None) => Err(SettingsError::Certificates { path, reason: "the path is not UTF-8".to_owned() }),
        },
    }
}
