//! A node in this process: the real lane over a real cache whose origin is a constant.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use groupcache_proxy::cache::{Cache, Request};
use groupcache_proxy::clock::{Clock, SystemClock};
use groupcache_proxy::edge::Edge;
use groupcache_proxy::edge::access_log::AccessLog;
use groupcache_proxy::edge::admission::Admission;
use groupcache_proxy::edge::connection::{Drain, Limits};
use groupcache_proxy::edge::endpoints::{EndpointAnswer, EndpointRequest, EndpointResponse, Endpoints, RoleTable};
use groupcache_proxy::edge::lane::Lane;
use groupcache_proxy::edge::pass::Pass;
use groupcache_proxy::edge::response::FieldRules;
use groupcache_proxy::edge::sites::{PassRule, Site, Sites};
use groupcache_proxy::fields::Fields;
use groupcache_proxy::fleet::Fleet;
use groupcache_proxy::freshness::format_http_date;
use groupcache_proxy::group::{Group, KeyRule};
use groupcache_proxy::key::GroupId;
use groupcache_proxy::memory::Ledger;
use groupcache_proxy::peer::client::{ClientSettings, NativePeer};
use groupcache_proxy::peer::dial::Dial;
use groupcache_proxy::peer::handshake::Secrets;
use groupcache_proxy::peer::link::PeerLink;
use groupcache_proxy::peer::server::{PeerServer, ServerSettings};
use groupcache_proxy::peer::{AskContext, LocalNode, Owner};
use groupcache_proxy::ring::{REPLICAS_DEFAULT, Ring, RingKind, RingPeer};
use groupcache_proxy::semantics::router::MatchRule;
use groupcache_proxy::source::{Aside, Ask, FetchError, Fetched, Fits, InterimSink, ReadyBody, Source, Whole};
use groupcache_proxy::stats::{GroupStats, NodeStats};
use groupcache_proxy::store::{Settings, Store};
use pingora::apps::ServerApp;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// A lane with one group that answers everything, a constant behind it.
pub struct Node {
    pub edge: Arc<Edge>,
    pub group: Arc<Group>,
    lane: Arc<Lane>,
    shutdown: watch::Sender<bool>,
}

impl Node {
    /// A node whose origin answers every key with so many bytes.
    pub fn new(body_bytes: usize) -> Node {
        Node::storing_up_to(32 << 20, body_bytes)
    }

    /// A node that asks its origin, which answers with so many bytes, for every request.
    pub fn keeping_nothing(body_bytes: usize) -> Node {
        Node::storing_up_to(1, body_bytes)
    }

    /// A node that keeps nothing and asks `owner` for every key.
    pub fn asking(owner: &Node, runtime: &Runtime) -> Node {
        let node = Node::storing_up_to(1, 0);
        let local = LocalNode::new("bench", 2, Secrets::new(["a secret that both nodes know"]));
        let settings = ClientSettings { runtime: Some(runtime.handle().clone()), ..ClientSettings::default() };
        let peer = NativePeer::new(local, Box::new(Pipe { server: owner.peer_server() }), settings);
        let ring = Ring::new(RingKind::Balanced, REPLICAS_DEFAULT, &[RingPeer::new("http://10.0.0.1:8082")]);
        node.edge
            .cache
            .set_fleet(Fleet::new(ring, vec![Some(Arc::new(PeerLink::native(peer)))], |key| Some(key.into())));
        node
    }

    fn peer_server(&self) -> Arc<PeerServer> {
        let local = LocalNode::new("bench", 1, Secrets::new(["a secret that both nodes know"]));
        let owner = Arc::new(Answering { cache: self.edge.cache.clone(), group: self.group.clone() });
        PeerServer::new(local, owner, ServerSettings::default())
    }

    fn storing_up_to(object_bytes_max: u64, body_bytes: usize) -> Node {
        let stats = Arc::new(NodeStats::default());
        let group = Arc::new(Group {
            id: GroupId(0),
            name: "bench".into(),
            rules: Default::default(),
            forward: Default::default(),
            variants_max: 4,
            keys: KeyRule::default(),
            cached: true,
            cookies_pass: false,
            object_bytes_max,
            fill_timeout: Duration::from_secs(300),
            limit: None,
            source: Arc::new(Constant::new(body_bytes)),
            stats: Arc::new(GroupStats::default()),
        });
        let site = Site {
            group: group.clone(),
            to_client: FieldRules::default(),
            to_origin: FieldRules::default(),
            pass: PassRule::None,
            target: None,
        };
        let rule = MatchRule { hosts: Vec::new(), path: "/".into() };
        let store = Store::new(Ledger::new(1 << 30), &Settings::default(), None);
        let edge = Arc::new(Edge {
            cache: Cache::new(store, Arc::new(SystemClock), 1),
            sites: ArcSwap::from_pointee(Sites::new([(rule, Arc::new(site))]).expect("one rule")),
            endpoints: Arc::new(NoEndpoints),
            log: Arc::new(AccessLog::none()),
            stats: stats.clone(),
            limits: ArcSwap::from_pointee(Limits::default()),
            roles: RoleTable::default(),
            trusted_proxies: Vec::new(),
            admission: Arc::new(Admission::new(stats, 0, 0)),
            drain: Arc::new(Drain::default()),
        });
        let proxy = Arc::new(http_proxy(&Arc::new(ServerConf::default()), Pass::new(edge.clone())));
        let lane = Arc::new(Lane::new(edge.clone(), proxy));
        Node { edge, group, lane, shutdown: watch::channel(false).0 }
    }

    /// Serves one connection on which `request` comes `count` times, each once the answer before it is written.
    pub fn serve(&self, runtime: &Runtime, request: &'static [u8], count: u64) -> u64 {
        self.serve_in_turn(runtime, [request; 2], count)
    }

    /// As [`Node::serve`], with two requests in turn.
    pub fn serve_in_turn(&self, runtime: &Runtime, requests: [&'static [u8]; 2], count: u64) -> u64 {
        let written = Arc::default();
        let stream =
            Box::new(Repeated { next: requests[1], ..Repeated::new(requests[0], count, Arc::clone(&written)) });
        let shutdown = self.shutdown.subscribe();
        let rest = runtime.block_on(self.lane.process_new(stream, &shutdown));
        assert!(rest.is_none());
        written.load(Ordering::Relaxed)
    }
}

impl Node {
    /// As [`Node::serve`], on a connection for each of the requests; `count` in all.
    pub fn serve_many(&self, runtime: &Runtime, requests: &[&'static [u8]], count: u64) {
        let connections = requests.len() as u64;
        runtime.block_on(async {
            let served: Vec<_> = (0..connections)
                .zip(requests)
                .map(|(number, request)| {
                    let share = count / connections + u64::from(number < count % connections);
                    let (lane, shutdown) = (self.lane.clone(), self.shutdown.subscribe());
                    let stream = Box::new(Repeated::new(request, share, Arc::default()));
                    tokio::spawn(async move { lane.process_new(stream, &shutdown).await })
                })
                .collect();
            for each in served {
                assert!(each.await.is_ok_and(|rest| rest.is_none()));
            }
        });
    }
}

/// The owner's side of a hop.
struct Answering {
    cache: Arc<Cache>,
    group: Arc<Group>,
}

#[async_trait]
impl Owner for Answering {
    fn at_once(&self, ask: &Ask, context: &AskContext, fits: Fits<'_>) -> Option<Whole> {
        self.cache.find_for_peer(&self.group, ask, context.have, fits)
    }

    async fn get_as_owner(
        &self,
        ask: Ask,
        context: AskContext,
        interims: &dyn InterimSink,
    ) -> Result<Fetched, FetchError> {
        let request = Request::from_ask(&self.group, &ask);
        self.cache.get_as_owner(&self.group, &request, Aside { have: context.have, interims, ..Aside::default() }).await
    }
}

/// A pipe instead of a socket.
struct Pipe {
    server: Arc<PeerServer>,
}

#[async_trait]
impl Dial for Pipe {
    async fn dial(&self) -> Result<Stream, String> {
        let (asker, owner) = tokio::io::duplex(256 << 10);
        let (server, shutdown) = (self.server.clone(), watch::channel(false));
        tokio::spawn(async move {
            server.accept(Box::new(owner), shutdown.1).await;
            drop(shutdown.0);
        });
        Ok(Box::new(asker))
    }

    fn authority(&self) -> &str {
        "memory"
    }
}

/// The least that answers a request: the head is parsed, prepared bytes are written.
pub fn serve_bare(runtime: &Runtime, head: &[u8], body: &[u8], request: &'static [u8], count: u64) {
    runtime.block_on(async {
        let mut stream: Stream = Box::new(Repeated::new(request, count, Arc::default()));
        let mut buffer = vec![0; 8192];
        let mut filled = 0;
        loop {
            let mut space = ReadBuf::new(&mut buffer[filled..]);
            let read = std::future::poll_fn(|context| Pin::new(&mut stream).poll_read(context, &mut space)).await;
            let bytes = space.filled().len();
            if read.is_err() || bytes == 0 {
                return;
            }
            filled += bytes;
            let mut lines = [httparse::EMPTY_HEADER; 32];
            let mut parsed = httparse::Request::new(&mut lines);
            if let Ok(httparse::Status::Complete(_)) = parsed.parse(&buffer[..filled]) {
                assert_eq!(parsed.method, Some("GET"));
                let slices = [IoSlice::new(head), IoSlice::new(body)];
                let write = |context: &mut Context<'_>| Pin::new(&mut stream).poll_write_vectored(context, &slices);
                let _ = std::future::poll_fn(write).await;
                let _ = std::future::poll_fn(|context| Pin::new(&mut stream).poll_flush(context)).await;
                filled = 0;
            }
        }
    });
}

/// An origin without a network.
struct Constant {
    fields: Fields,
    body: Bytes,
}

impl Constant {
    fn new(body_bytes: usize) -> Self {
        // A fixed date would make the answer stale one day.
        let date = format_http_date(SystemClock.now().wall_seconds);
        let fields = Fields::from_pairs([
            ("Server", "nginx"),
            ("Date", &*date),
            ("Content-Type", "application/octet-stream"),
            ("Last-Modified", "Fri, 20 Nov 2026 11:00:00 GMT"),
            ("ETag", "\"691efb40-1000\""),
            ("Cache-Control", "public, max-age=86400"),
            ("Accept-Ranges", "bytes"),
        ]);
        Constant { fields: fields.expect("well-formed"), body: Bytes::from(vec![b'x'; body_bytes]) }
    }
}

#[async_trait]
impl Source for Constant {
    async fn fetch(&self, _ask: &Ask) -> Result<Fetched, FetchError> {
        Ok(Fetched {
            status: 200,
            fields: self.fields.clone(),
            content_length: Some(self.body.len() as u64),
            close_delimited: false,
            hop: None,
            body: Box::new(ReadyBody::new([self.body.clone()])),
        })
    }
}

struct NoEndpoints;

#[async_trait]
impl Endpoints for NoEndpoints {
    fn admit(&self, _request: &EndpointRequest) -> Result<usize, EndpointResponse> {
        Err(EndpointResponse { status: 404, fields: Fields::empty(), body: Bytes::new() })
    }

    async fn handle(&self, _request: EndpointRequest, _body: Bytes) -> EndpointAnswer {
        EndpointAnswer::Response(EndpointResponse { status: 404, fields: Fields::empty(), body: Bytes::new() })
    }
}

/// A client in memory that sends a request once the answer before it has begun to arrive. As on a real connection, every
/// request is waited for once; what is written is only counted.
#[derive(Debug)]
struct Repeated {
    request: &'static [u8],
    /// The one after this.
    next: &'static [u8],
    left: u64,
    /// How much of the present request has been read.
    offset: usize,
    answered: bool,
    waited: bool,
    written: Arc<AtomicU64>,
}

impl Repeated {
    fn new(request: &'static [u8], count: u64, written: Arc<AtomicU64>) -> Self {
        Repeated { request, next: request, left: count, offset: 0, answered: true, waited: false, written }
    }

    fn take(&self, bytes: usize) -> Poll<io::Result<usize>> {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        Poll::Ready(Ok(bytes))
    }
}

impl AsyncRead for Repeated {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.answered {
            // Whoever waits for the answer is woken by its source.
            return Poll::Pending;
        }
        if self.offset == 0 && !std::mem::replace(&mut self.waited, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.left > 0 {
            let end = self.request.len().min(self.offset + out.remaining());
            out.put_slice(&self.request[self.offset..end]);
            self.offset = end % self.request.len();
            if self.offset == 0 {
                self.left -= 1;
                (self.request, self.next) = (self.next, self.request);
                (self.answered, self.waited) = (false, false);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Repeated {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.take(bytes.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.take(slices.iter().map(|slice| slice.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.answered = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[async_trait]
impl Shutdown for Repeated {
    async fn shutdown(&mut self) {}
}

impl UniqueID for Repeated {
    fn id(&self) -> UniqueIDType {
        0
    }
}

impl Ssl for Repeated {}

impl GetTimingDigest for Repeated {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Repeated {
    fn get_proxy_digest(&self) -> Option<Arc<pingora::protocols::raw_connect::ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Repeated {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

impl Peek for Repeated {}

/// Polls a future that is ready by construction.
pub fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it would wait"),
    }
}
