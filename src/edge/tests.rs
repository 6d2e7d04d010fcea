//! The lane over in-memory pipes: a real cache, a scripted origin for fills, and a raw one on loopback for what passes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::access_log::{AccessLog, Format, Mode};
use super::admission::Admission;
use super::connection::{Drain, Limits};
use super::endpoints::{EndpointAnswer, EndpointRequest, EndpointResponse, Endpoints, RoleTable, UpgradedConnection};
use super::lane::Lane;
use super::pass::{Pass, PassPeer, PassTarget, PassTimeouts};
use super::response::FieldRules;
use super::sites::{PassRule, Site, Sites};
use super::{Edge, LogFacts};
use crate::cache::Cache;
use crate::clock::ManualClock;
use crate::fields::Fields;
use crate::group::{Group, KeyRule};
use crate::key::GroupId;
use crate::memory::Ledger;
use crate::semantics::router::MatchRule;
use crate::stats::{GroupStats, NodeStats};
use crate::store::{Settings, Store};
use crate::testing::{Gate, Script, Scripted};

const FRESH: (&str, &str) = ("Cache-Control", "max-age=60");
const DATE: (&str, &str) = ("Date", "Fri, 20 Nov 2026 12:00:00 GMT");

/// What a test changes of a node.
struct Setup {
    limits: Limits,
    connections_max: usize,
    pass: PassRule,
    pass_to: Option<SocketAddr>,
    cookies_pass: bool,
    to_client: FieldRules,
    logged: Mode,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            limits: Limits::default(),
            connections_max: 0,
            pass: PassRule::All,
            pass_to: None,
            cookies_pass: false,
            to_client: FieldRules::default(),
            logged: Mode::All,
        }
    }
}

struct Node {
    origin: Scripted,
    edge: Arc<Edge>,
    lane: Arc<Lane>,
    group: Arc<Group>,
    clock: Arc<ManualClock>,
    shutdown: watch::Sender<bool>,
    log: Lines,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Node {
    fn new() -> Self {
        Node::with(Setup::default())
    }

    fn with(setup: Setup) -> Self {
        let clock = Arc::new(ManualClock::new(1_795_176_000));
        let origin = Scripted::new();
        let store = Store::new(Ledger::new(64 << 20), &Settings::default(), None);
        let group = Arc::new(Group {
            id: GroupId(0),
            name: "test".into(),
            rules: crate::freshness::Rules { jitter_percent: 0.0, ..Default::default() },
            forward: Default::default(),
            variants_max: 4,
            keys: KeyRule::default(),
            cached: true,
            cookies_pass: setup.cookies_pass,
            object_bytes_max: 16 << 20,
            fill_timeout: Duration::from_secs(300),
            limit: None,
            source: Arc::new(origin.clone()),
            stats: Arc::new(GroupStats::default()),
        });
        let site = Site {
            group: group.clone(),
            to_client: setup.to_client,
            to_origin: FieldRules::default(),
            pass: setup.pass,
            target: setup.pass_to.map(|address| Arc::new(To(address)) as Arc<dyn PassTarget>),
        };
        let rule = MatchRule { hosts: Vec::new(), path: "/t/".into() };
        let stats = Arc::new(NodeStats::default());
        let log = Lines::default();
        let edge = Arc::new(Edge {
            cache: Cache::new(store, clock.clone(), 1),
            sites: ArcSwap::from_pointee(Sites::new([(rule, Arc::new(site))]).unwrap()),
            endpoints: Arc::new(Told),
            log: Arc::new(AccessLog::new(setup.logged, Format::Text, log.clone())),
            stats: stats.clone(),
            limits: ArcSwap::from_pointee(setup.limits),
            roles: RoleTable::default(),
            trusted_proxies: Vec::new(),
            admission: Arc::new(Admission::new(stats, setup.connections_max, 0)),
            drain: Arc::new(Drain::default()),
        });
        let proxy = Arc::new(http_proxy(&Arc::new(ServerConf::default()), Pass::new(edge.clone())));
        let lane = Arc::new(Lane::new(edge.clone(), proxy));
        Node { origin, edge, lane, group, clock, shutdown: watch::channel(false).0, log }
    }

    /// Opens a connection with so much room in each direction.
    fn connect_with_room(&self, bytes: usize) -> Client {
        let (client, server) = tokio::io::duplex(bytes);
        let (lane, shutdown) = (self.lane.clone(), self.shutdown.subscribe());
        let served = tokio::spawn(async move {
            assert!(lane.process_new(Box::new(server), &shutdown).await.is_none());
        });
        Client { stream: client, served, read: Vec::new() }
    }

    fn connect(&self) -> Client {
        self.connect_with_room(64 * 1024)
    }

    /// Sends bytes on a connection of their own, closes the sending side only after the answer, and gives all that came.
    async fn exchange(&self, request: &str) -> String {
        let mut client = self.connect();
        client.send(request).await;
        client.rest().await
    }

    /// The counters of the client side; they always add up.
    fn counters(&self) -> String {
        let client = &self.group.stats.client;
        let outcomes = [&client.hit, &client.stale, &client.revalidated, &client.miss, &client.pass, &client.error];
        assert_eq!(client.requests.value(), outcomes.iter().map(|counter| counter.value()).sum::<u64>());
        format!(
            "hit {} miss {} pass {} error {} bytes {}",
            client.hit.value(),
            client.miss.value(),
            client.pass.value(),
            client.error.value(),
            client.bytes.value()
        )
    }

    fn rejects(&self, word: &str) -> u64 {
        self.edge.stats.rejects.value(word)
    }
}

struct Client {
    stream: DuplexStream,
    served: JoinHandle<()>,
    read: Vec<u8>,
}

impl Client {
    async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Reads one answer whose length is declared, or which has no body.
    async fn answer(&mut self) -> String {
        self.answer_to(false).await
    }

    async fn answer_to(&mut self, head_only: bool) -> String {
        loop {
            if let Some(end) = find(&self.read, b"\r\n\r\n") {
                let head = String::from_utf8(self.read[..end + 4].to_vec()).unwrap();
                let length = field(&head, "Content-Length").map_or(0, |length| length.parse().unwrap());
                let total = end + 4 + if head_only { 0 } else { length };
                if self.read.len() >= total {
                    let answer = self.read.drain(..total).collect();
                    return String::from_utf8(answer).unwrap();
                }
            }
            let mut bytes = [0; 4096];
            let count = self.stream.read(&mut bytes).await.unwrap();
            assert_ne!(count, 0, "the connection closed; read: {:?}", String::from_utf8_lossy(&self.read));
            self.read.extend_from_slice(&bytes[..count]);
        }
    }

    /// Reads until `text` has come.
    async fn until(&mut self, text: &str) -> String {
        while find(&self.read, text.as_bytes()).is_none() {
            let count = self.stream.read_buf(&mut self.read).await.unwrap();
            assert_ne!(count, 0, "the connection closed; read: {:?}", String::from_utf8_lossy(&self.read));
        }
        String::from_utf8(std::mem::take(&mut self.read)).unwrap()
    }

    /// Reads until the other side closes.
    async fn rest(&mut self) -> String {
        self.stream.read_to_end(&mut self.read).await.unwrap();
        String::from_utf8(std::mem::take(&mut self.read)).unwrap()
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, wanted)
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")
}

/// Status and body.
fn told(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    format!("{} {body}", head.split(' ').nth(1).unwrap())
}

struct To(SocketAddr);

#[async_trait]
impl PassTarget for To {
    async fn choose(&self, _attempt: usize) -> Result<PassPeer, &'static str> {
        Ok(PassPeer {
            peer: HttpPeer::new(self.0, false, String::new()),
            base_path: "/base".into(),
            host: Some("origin.test".into()),
            timeouts: PassTimeouts::default(),
        })
    }

    fn retries(&self) -> usize {
        1
    }
}

/// Endpoints that say what they were asked.
struct Told;

#[async_trait]
impl Endpoints for Told {
    fn admit(&self, request: &EndpointRequest) -> Result<usize, EndpointResponse> {
        match &request.target[..] {
            b"/_groupcache/forbidden" => {
                Err(EndpointResponse { status: 403, fields: Fields::empty(), body: "no".into() })
            }
            _ => Ok(10),
        }
    }

    async fn handle(&self, request: EndpointRequest, body: Bytes) -> EndpointAnswer {
        if request.fields.get("upgrade") == Some(b"groupcache/1") {
            let fields = Fields::from_pairs([("Upgrade", "groupcache/1")]).unwrap();
            return EndpointAnswer::Upgrade(fields, Box::new(Echo));
        }
        let said = format!(
            "{} {} {} direct={}",
            request.method,
            String::from_utf8_lossy(&request.target),
            String::from_utf8_lossy(&body),
            request.direct
        );
        EndpointAnswer::Response(EndpointResponse { status: 200, fields: Fields::empty(), body: said.into() })
    }
}

struct Echo;

#[async_trait]
impl UpgradedConnection for Echo {
    async fn run(self: Box<Self>, mut stream: Stream, read: Bytes) {
        stream.write_all(&read).await.unwrap();
        let mut byte = [0];
        while stream.read(&mut byte).await.unwrap() > 0 {
            stream.write_all(&byte).await.unwrap();
        }
    }
}

/// An origin that remembers requests, bodies included, and answers each with its number.
struct RawOrigin {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl RawOrigin {
    async fn start() -> Self {
        RawOrigin::answering(|number| format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX-Up: y\r\n\r\n{number}")).await
    }

    async fn answering(answer: impl Fn(usize) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (requests.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (seen, answer) = (seen.clone(), answer.clone());
                tokio::spawn(async move {
                    let mut read = Vec::new();
                    loop {
                        while let Some(length) = request_length(&read) {
                            let request = String::from_utf8(read.drain(..length).collect()).unwrap();
                            let number = {
                                let mut seen = seen.lock().unwrap();
                                seen.push(request);
                                seen.len()
                            };
                            stream.write_all(answer(number).as_bytes()).await.unwrap();
                        }
                        if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                });
            }
        });
        RawOrigin { address, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Length of the first request if it is whole.
fn request_length(read: &[u8]) -> Option<usize> {
    let end = find(read, b"\r\n\r\n")? + 4;
    let head = String::from_utf8(read[..end].to_vec()).unwrap().to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        return find(&read[end..], b"0\r\n\r\n").map(|last| end + last + 5);
    }
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |text| text.parse().unwrap());
    (read.len() >= end + length).then_some(end + length)
}

#[test]
fn of_a_request_that_cannot_be_read_the_log_has_what_can_be_seen() {
    let show = |unread: &str| {
        let LogFacts { method, target, host, version } = LogFacts::guessed(unread.as_bytes());
        format!("{method}|{target}|{host}|{version}")
    };
    for (unread, expected) in [
        ("GET /a HTTP/1.1\r\nA: b\r\nhOst:  x \r\nHost: y\r\nContent-Length: 1\r\n\r\n", "GET|/a|x|HTTP/1.1"),
        ("\r\nGET /a b HTTP/1.0\r\n\r\n", "GET|/a||"),
        ("GET /a HTTP/1.0\nHost: x\n\n", "GET|/a|x|HTTP/1.0"),
        ("GET /half", "GET|/half||"),
        ("\u{16}\u{3}\u{1}", "\u{16}\u{3}\u{1}|||"),
        ("", "|||"),
    ] {
        assert_eq!(show(unread), expected, "{unread:?}");
    }
    let long = LogFacts::guessed(format!("GET /{} HTTP/1.1\r\n", "a".repeat(9000)).as_bytes());
    assert_eq!(long.target.len(), 512);
}

#[tokio::test]
async fn a_refused_request_is_logged_with_its_target() {
    let node = Node::new();
    node.exchange("GET /t/a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n").await;
    node.exchange("GET /t/b HTTP/1.1\nHost: x\n\n").await;
    let written = || String::from_utf8(node.log.0.lock().unwrap().clone()).unwrap();
    let both = async {
        while written().lines().count() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("two lines");
    for line in ["\"GET /t/a HTTP/1.1\" 400", "\"GET /t/b HTTP/1.1\" 400"] {
        assert!(written().contains(line), "{line} is not in {}", written());
    }
}

/// Whether a request is of the share is drawn once for it. Drawn twice, no hit would be logged at all: the draws are spread
/// so evenly that two small ones never come one behind the other.
#[tokio::test]
async fn a_share_of_the_log_is_that_share_of_hits_and_misses() {
    let node = Node::with(Setup { logged: Mode::Share(0.1), ..Setup::default() });
    node.origin.on("/hit", Script::status(200, &[FRESH, DATE], "x"));
    let mut client = node.connect();
    for number in 0..1000 {
        for target in ["/t/hit".to_owned(), format!("/t/missing/{number}")] {
            client.send(&get(&target)).await;
            client.answer().await;
        }
    }
    drop(client);
    let Node { edge, lane, log, .. } = node;
    // The writer has written what it was given once the log is gone.
    drop((edge, lane));
    let ended = async {
        while Arc::strong_count(&log.0) > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("the log is closed");
    let written = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for kind in ["/t/hit", "/t/missing"] {
        let lines = written.lines().filter(|line| line.contains(kind)).count();
        assert!((70..=130).contains(&lines), "{lines} of 1000 for {kind}");
    }
}

/// The body of a question to an endpoint has one deadline in all: a byte now and then does not extend it.
#[tokio::test(start_paused = true)]
async fn a_dripping_body_of_an_endpoint_has_an_end() {
    let node = Node::new();
    let mut client = node.connect();
    client.send("POST /_groupcache/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n").await;
    for _ in 0..4 {
        client.send("a").await;
        tokio::time::sleep(Duration::from_secs(9)).await;
    }
    assert!(client.stream.write_all(b"a").await.is_err(), "it was cut off after 30 s");
}

#[tokio::test]
async fn a_miss_then_hits_on_one_connection() {
    let node = Node::new();
    node.origin.on("/a?b", Script::status(200, &[FRESH, DATE, ("ETag", "\"e\"")], "0123456789"));
    let mut client = node.connect();
    client.send(&get("/t/a?b")).await;
    assert_eq!(
        client.answer().await,
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nDate: Fri, 20 Nov 2026 12:00:00 GMT\r\nETag: \"e\"\r\n\
         Cache-Status: groupcache-proxy; fwd=uri-miss; stored; ttl=60\r\nVia: 1.1 groupcache-proxy\r\n\
         Content-Length: 10\r\n\r\n0123456789"
    );
    node.clock.advance(Duration::from_secs(5));
    client.send(&get("/t/a?b")).await;
    assert_eq!(
        client.answer().await,
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nDate: Fri, 20 Nov 2026 12:00:00 GMT\r\nETag: \"e\"\r\nAge: 5\r\n\
         Cache-Status: groupcache-proxy; hit; ttl=55\r\nVia: 1.1 groupcache-proxy\r\nContent-Length: 10\r\n\r\n0123456789"
    );
    client.send("HEAD /t/a?b HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(client.answer_to(true).await.ends_with("Content-Length: 10\r\n\r\n"));
    for (line, expected) in [
        ("If-None-Match: \"e\"", "304 "),
        ("Range: bytes=2-4", "206 234"),
        ("Range: bytes=20-", "416 "),
        ("If-Match: \"x\"", "412 "),
        ("Cookie: a=b", "200 0123456789"),
        ("Authorization: x", "200 0123456789"),
        ("Upgrade: h2c", "200 0123456789"),
        ("Cache-Control: no-cache", "200 0123456789"),
    ] {
        client.send(&format!("GET /t/a?b HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n")).await;
        assert_eq!(told(&client.answer().await), expected, "{line}");
    }
    assert_eq!(node.origin.asked("/a?b"), 1);
    drop(client.stream);
    client.served.await.unwrap();
    assert_eq!(node.counters(), "hit 10 miss 1 pass 0 error 0 bytes 63");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (node, gate) = (Node::new(), Gate::new());
    node.origin.on("/slow", Script::head(200, &[FRESH], Some(4)).hold(&gate).chunk("slow"));
    node.origin.on("/fast", Script::status(200, &[FRESH], "fast"));
    let mut client = node.connect();
    client
        .send(
            &(get("/t/slow")
                + &get("/t/fast")
                + &get("/t/missing")
                + "GET /t/slow HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"),
        )
        .await;
    client.until("Content-Length: 4\r\n\r\n").await;
    gate.open();
    let rest = client.rest().await;
    let bodies: Vec<&str> = rest.split("HTTP/1.1 ").map(|answer| answer.split("\r\n\r\n").last().unwrap()).collect();
    assert_eq!(bodies, ["slow", "fast", "not scripted\n", "slow"]);
    assert!(rest.contains("Connection: close\r\n\r\nslow"));
    client.served.await.unwrap();
}

#[tokio::test]
async fn requests_in_pieces_are_the_same_requests() {
    let node = Node::new();
    node.origin.on("/a", Script::status(200, &[FRESH], "body"));
    let request = "\r\n".to_owned() + &get("/t/a") + "HEAD /t/a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    for cut in 0..request.len() {
        let mut client = node.connect();
        client.send(&request[..cut]).await;
        // Lets the lane see the first piece alone.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        client.send(&request[cut..]).await;
        let rest = client.rest().await;
        assert_eq!(rest.matches("HTTP/1.1 200 OK").count(), 2, "cut at {cut}: {rest}");
    }
    assert_eq!(node.origin.asked("/a"), 1);
}

#[tokio::test]
async fn what_is_refused_is_answered_counted_and_ends_the_connection() {
    let node = Node::new();
    for (request, status, word) in [
        ("GET / HTTP/1.1\r\n\r\n", "400", "host"),
        ("GET /t/a HTTP/1.1\nHost: h\n\n", "400", "malformed"),
        ("GET /t/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "400", "framing"),
        ("GET /t/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", "501", "transfer_coding"),
        ("CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", "405", "method"),
        ("GET /t/a HTTP/1.1\r\nHost: h\r\nExpect: x\r\n\r\n", "417", "expectation"),
        ("GET /t/../a HTTP/1.1\r\nHost: h\r\n\r\n", "400", "malformed"),
        ("\x16\x03\x01\r\n\r\n\r\n", "400", "malformed"),
    ] {
        let before = node.rejects(word);
        let answer = node.exchange(&(request.to_owned() + &get("/t/a"))).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        assert!(answer.contains("Connection: close\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "nothing behind a refused request is answered: {answer}");
        assert_eq!(node.rejects(word), before + 1, "{word}");
    }
    let long = format!("GET /t/{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(9000));
    assert!(node.exchange(&long).await.starts_with("HTTP/1.1 414 "));
    let large = format!("GET /t/a HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(40_000));
    assert!(node.exchange(&large).await.starts_with("HTTP/1.1 431 "));
    assert_eq!(node.origin.asks().len(), 0);
}

#[tokio::test]
async fn a_large_head_within_the_limit_is_read() {
    let node = Node::new();
    node.origin.on("/a", Script::status(200, &[FRESH], "body"));
    let mut client = node.connect();
    for bytes in [7_000, 8_100, 8_192, 20_000, 31_000] {
        client.send(&format!("GET /t/a HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(bytes))).await;
        assert_eq!(told(&client.answer().await), "200 body", "{bytes}");
    }
}

#[tokio::test]
async fn what_belongs_to_no_group_leaves_the_connection_usable() {
    let node = Node::new();
    node.origin.on("/a", Script::status(200, &[FRESH], "body"));
    let mut client = node.connect();
    client.send(&get("/elsewhere")).await;
    assert_eq!(told(&client.answer().await), "404 404 no group serves this path\n");
    client.send("DELETE /t/a HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("Allow: GET, HEAD\r\n"), "{answer}");
    client.send(&get("http://h/t/a")).await;
    assert_eq!(told(&client.answer().await), "200 body");
    assert_eq!(node.counters(), "hit 0 miss 1 pass 0 error 1 bytes 27");
}

#[tokio::test]
async fn a_body_that_nobody_reads_ends_the_connection() {
    let node = Node::new();
    node.origin.on("/a", Script::status(200, &[FRESH], "body"));
    let answer =
        node.exchange(&format!("GET /t/a HTTP/1.1\r\nHost: h\r\nContent-Length: 40\r\n\r\n{}", get("/t/a"))).await;
    assert!(answer.contains("Connection: close") && answer.matches("HTTP/1.1 200").count() == 1, "{answer}");
}

#[tokio::test]
async fn bodies_of_unknown_length_are_chunked_or_end_with_the_connection() {
    let node = Node::new();
    let (first, second) = (Gate::new(), Gate::new());
    node.origin.on("/a", Script::head(200, &[], None).chunk("one").hold(&first).chunk("three").hold(&second));
    let mut client = node.connect();
    client.send(&get("/t/a")).await;
    let start = client.until("one\r\n").await;
    assert!(start.contains("Transfer-Encoding: chunked\r\n") && start.ends_with("\r\n\r\n3\r\none\r\n"), "{start}");
    first.open();
    assert_eq!(client.until("three\r\n").await, "5\r\nthree\r\n");
    second.open();
    assert_eq!(client.until("\r\n\r\n").await, "0\r\n\r\n");
    client.send("GET /t/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    let old = client.rest().await;
    assert!(old.contains("Connection: close\r\n\r\nonethree") && !old.contains("Transfer-Encoding"), "{old}");
}

#[tokio::test]
async fn a_broken_body_never_looks_whole() {
    let node = Node::new();
    node.origin.on("/known", Script::head(200, &[FRESH], Some(10)).chunk("12345").breaks());
    node.origin.on("/unknown", Script::head(200, &[FRESH], None).chunk("12345").breaks());
    let known = node.exchange(&get("/t/known")).await;
    assert!(known.contains("Content-Length: 10\r\n") && known.ends_with("12345"), "{known}");
    let unknown = node.exchange(&get("/t/unknown")).await;
    assert!(unknown.ends_with("5\r\n12345\r\n"), "{unknown}");
    assert!(node.exchange(&get("/t/known")).await.ends_with("12345"));
    assert_eq!(node.origin.asked("/known"), 2, "nothing of it is stored");
}

#[tokio::test]
async fn ranges_are_cut_from_a_body_that_arrives() {
    let (node, gate) = (Node::new(), Gate::new());
    node.origin.on("/a", Script::head(200, &[FRESH], Some(10)).hold(&gate).chunk("01234").chunk("56789"));
    let mut client = node.connect();
    client.send("GET /t/a HTTP/1.1\r\nHost: h\r\nRange: bytes=3-6\r\n\r\n").await;
    node.origin.arrived("/a", 1).await;
    gate.open();
    let answer = client.answer().await;
    assert!(told(&answer).starts_with("206 3456") && answer.contains("Content-Range: bytes 3-6/10"), "{answer}");
}

#[tokio::test]
async fn a_client_that_leaves_stops_waiting() {
    let node = Node::new();
    node.origin.on("/a", Script::new().stalls());
    let mut client = node.connect();
    client.send(&get("/t/a")).await;
    node.origin.arrived("/a", 1).await;
    drop(client.stream);
    client.served.await.unwrap();
    assert_eq!(node.counters(), "hit 0 miss 0 pass 0 error 1 bytes 0");
    node.origin.on("/b", Script::head(200, &[FRESH], Some(10)).chunk("12345").stalls());
    let mut client = node.connect();
    client.send(&get("/t/b")).await;
    client.until("12345").await;
    drop(client.stream);
    client.served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_wait_for_a_client_ends() {
    let node = Node::new();
    node.origin.on("/a", Script::status(200, &[FRESH], "body"));
    let limits = Limits::default();
    let elapsed = async |send: &str| {
        let mut client = node.connect();
        client.send(send).await;
        let start = tokio::time::Instant::now();
        let rest = client.rest().await;
        client.served.await.unwrap();
        (start.elapsed(), rest)
    };
    let (took, rest) = elapsed("").await;
    assert_eq!((took, &*rest), (limits.header_timeout, ""));
    let (took, rest) = elapsed("GET /t/a HT").await;
    assert!(took >= limits.header_timeout && took < limits.header_timeout + Duration::from_secs(2), "{took:?}");
    assert!(rest.starts_with("HTTP/1.1 408 "), "{rest}");
    let (took, rest) = elapsed(&get("/t/a")).await;
    assert_eq!(took, limits.idle_timeout);
    assert!(rest.ends_with("body"));
    let (took, rest) = elapsed(&(get("/t/a") + "G")).await;
    assert!(took >= limits.header_timeout && took < limits.header_timeout + Duration::from_secs(2), "{took:?}");
    assert!(rest.contains("HTTP/1.1 408 "), "{rest}");
    assert_eq!(node.rejects("header_timeout"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_drips_in_has_one_deadline() {
    let node = Node::new();
    let mut client = node.connect();
    let start = tokio::time::Instant::now();
    let dripped = async {
        for byte in get("/t/a").chars() {
            client.send(&byte.to_string()).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            if client.served.is_finished() {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(60), dripped).await;
    client.rest().await;
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_stays_usable_after_a_long_pause() {
    let node = Node::new();
    node.origin.on("/a", Script::status(200, &[FRESH], "body"));
    let mut client = node.connect();
    for _ in 0..3 {
        client.send(&get("/t/a")).await;
        assert_eq!(told(&client.answer().await), "200 body");
        tokio::time::sleep(Duration::from_secs(70)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_cut_off() {
    let node = Node::new();
    node.origin.on("/a", Script::status(200, &[FRESH], "x".repeat(100_000)));
    node.exchange(&get("/t/a").replace("Host: h", "Host: h\r\nConnection: close")).await;
    let mut client = node.connect_with_room(1000);
    client.send(&get("/t/a")).await;
    let start = tokio::time::Instant::now();
    client.served.await.unwrap();
    assert_eq!(start.elapsed(), Limits::default().send_stall);
}

#[tokio::test(start_paused = true)]
async fn a_client_below_the_least_rate_is_cut_off_and_one_above_is_not() {
    let node = Node::new();
    node.origin.on("/a", Script::status(200, &[FRESH], "x".repeat(200_000)));
    node.exchange(&get("/t/a").replace("Host: h", "Host: h\r\nConnection: close")).await;
    for (bytes_per_second, whole) in [(100, false), (3000, true)] {
        let mut client = node.connect_with_room(1000);
        client.send(&get("/t/a")).await;
        let mut read = 0;
        loop {
            let mut bytes = vec![0; bytes_per_second];
            match client.stream.read(&mut bytes).await.unwrap() {
                0 => break,
                count => read += count,
            }
            if read > 200_000 {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(read > 200_000, whole, "{bytes_per_second} bytes per second, {read} read");
    }
}

#[tokio::test(start_paused = true)]
async fn draining_closes_idle_connections_and_ends_busy_ones_politely() {
    let (node, gate) = (Node::new(), Gate::new());
    node.origin.on("/a", Script::head(200, &[FRESH], Some(4)).hold(&gate).chunk("body"));
    let (mut busy, mut idle) = (node.connect(), node.connect());
    idle.send("GET /elsewhere HTTP/1.1\r\nHost: h\r\n\r\n").await;
    idle.answer().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    busy.send(&(get("/t/a") + &get("/t/a"))).await;
    busy.until("Content-Length: 4").await;
    node.edge.drain.begin();
    assert_eq!(idle.rest().await, "");
    idle.served.await.unwrap();
    gate.open();
    let rest = busy.rest().await;
    assert!(rest.contains("body") && rest.contains("Connection: close\r\n\r\nbody"), "{rest}");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_process_closes_idle_connections() {
    let node = Node::new();
    let mut idle = node.connect();
    idle.send("GET /elsewhere HTTP/1.1\r\nHost: h\r\n\r\n").await;
    idle.answer().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    node.shutdown.send(true).unwrap();
    assert_eq!(idle.rest().await, "");
}

#[tokio::test]
async fn a_large_body_over_a_socket_is_whole() {
    let node = Node::new();
    let body: String = (0..800_000).map(|number| format!("{:09}\n", number % 1_000_000)).collect();
    // More segments than one write takes.
    let half = body.len() / 2;
    let script = Script::head(200, &[FRESH], Some(body.len() as u64));
    node.origin.on("/a", script.chunk(body[..half].to_owned()).chunk(body[half..].to_owned()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (lane, shutdown, address) = (node.lane.clone(), node.shutdown.subscribe(), listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (lane, shutdown) = (lane.clone(), shutdown.clone());
            let stream = pingora::protocols::l4::stream::Stream::from(stream);
            tokio::spawn(async move { lane.process_new(Box::new(stream), &shutdown).await });
        }
    });
    for _ in 0..3 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let close = get("/t/a").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        stream.write_all((get("/t/a") + &close).as_bytes()).await.unwrap();
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap();
        let read = String::from_utf8(read).unwrap();
        let answers: Vec<&str> = read.split("HTTP/1.1 200 OK\r\n").skip(1).collect();
        assert_eq!(answers.len(), 2);
        assert!(answers.iter().all(|answer| answer.split_once("\r\n\r\n").unwrap().1 == body));
    }
    assert_eq!(node.origin.asked("/a"), 1);
}

#[tokio::test]
async fn a_connection_between_requests_is_small() {
    let node = Node::new();
    let (_client, server) = tokio::io::duplex(16);
    let shutdown = node.shutdown.subscribe();
    let serving = node.lane.process_new(Box::new(server), &shutdown);
    // With 12 KiB for everything a connection has in this process and in the runtime, its state must be a small part.
    assert!(size_of_val(&*serving) < 2048, "{} bytes", size_of_val(&*serving));
}

#[tokio::test(start_paused = true)]
async fn zero_is_no_limit() {
    let zero = Duration::ZERO;
    let limits = Limits {
        header_bytes: 0,
        header_timeout: zero,
        idle_timeout: zero,
        body_min_rate: 0,
        body_bytes: 0,
        send_stall: zero,
    };
    let node = Node::with(Setup { limits, ..Setup::default() });
    node.origin.on("/a", Script::status(200, &[FRESH], "x".repeat(100_000)));
    let mut client = node.connect_with_room(1000);
    client.send(&get("/t/a")[..5]).await;
    tokio::time::sleep(Duration::from_secs(10_000)).await;
    client.send(&get("/t/a")[5..]).await;
    tokio::time::sleep(Duration::from_secs(10_000)).await;
    assert!(client.answer().await.ends_with('x'));
    tokio::time::sleep(Duration::from_secs(10_000)).await;
    client.send(&get("/t/a")).await;
    assert!(client.answer().await.ends_with('x'));
}

#[tokio::test]
async fn endpoints_are_found_by_exact_bytes() {
    let node = Node::new();
    for (target, expected) in [
        ("/_groupcache/stats?x", "200 GET /_groupcache/stats?x  direct=true"),
        ("/_groupcache/", "200 GET /_groupcache/  direct=true"),
        ("/_groupcache", "404 404 no group serves this path\n"),
        ("/%5Fgroupcache/stats", "404 404 no group serves this path\n"),
        ("//_groupcache/stats", "404 404 no group serves this path\n"),
        ("http://h/_groupcache/stats", "404 404 not found\n"),
        ("/_groupcache/forbidden", "403 no"),
    ] {
        let mut client = node.connect();
        client.send(&get(target)).await;
        assert_eq!(told(&client.answer().await), expected, "{target}");
    }
}

#[tokio::test]
async fn endpoints_get_whole_bodies_within_their_limit() {
    let node = Node::new();
    let post = |line: &str, body: &str| {
        format!("POST /_groupcache/purge HTTP/1.1\r\nHost: h\r\nVia: 1.1 x\r\n{line}\r\n\r\n{body}")
    };
    let mut client = node.connect();
    for (line, body) in
        [("Content-Length: 5", "hello"), ("Transfer-Encoding: chunked", "2\r\nhe\r\n3;x\r\nllo\r\n0\r\n\r\n")]
    {
        client.send(&post(line, body)).await;
        assert_eq!(told(&client.answer().await), "200 POST /_groupcache/purge hello direct=false");
    }
    client.send(&post("Content-Length: 5\r\nExpect: 100-continue", "")).await;
    assert_eq!(client.answer().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello").await;
    assert_eq!(told(&client.answer().await), "200 POST /_groupcache/purge hello direct=false");
    for (line, body, status) in [
        ("Content-Length: 11", "", "413"),
        ("Transfer-Encoding: chunked", "b\r\nhello world\r\n", "413"),
        ("Transfer-Encoding: chunked", "b\nhello world\r\n", "400"),
    ] {
        let answer = node.exchange(&post(line, body)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains("Connection: close"), "{answer}");
    }
    let refused = node.exchange("POST /_groupcache/forbidden HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("Connection: close"), "{refused}");
}

#[tokio::test]
async fn an_upgrade_takes_the_connection_and_what_was_read() {
    let node = Node::new();
    let mut client = node.connect();
    client
        .send("GET /_groupcache/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: groupcache/1\r\n\r\nearly")
        .await;
    assert_eq!(
        client.until("early").await,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: groupcache/1\r\n\r\nearly"
    );
    client.send("late").await;
    assert_eq!(client.until("late").await, "late");
}

#[tokio::test]
async fn too_many_connections_are_turned_away() {
    let node = Node::with(Setup { connections_max: 1, ..Setup::default() });
    let _first = node.connect();
    tokio::task::yield_now().await;
    let answer = node.exchange("").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Connection: close"), "{answer}");
    assert_eq!(node.rejects("connections"), 1);
}

#[tokio::test]
async fn a_request_that_passes_is_one_request_and_the_lane_goes_on() {
    let origin = RawOrigin::start().await;
    let node = Node::with(Setup { pass_to: Some(origin.address), ..Setup::default() });
    node.origin.on("/a", Script::status(200, &[FRESH], "body"));
    let mut client = node.connect();
    // The second request lies behind the body in one write; the third comes after.
    client
        .send(&format!(
            "POST /t/form?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\
             Upgrade: websocket\r\nCookie: c\r\nProxy-Authorization: secret\r\n\r\nhello{}",
            get("/t/a")
        ))
        .await;
    let answer = client.answer().await;
    assert_eq!(told(&answer), "200 1", "{answer}");
    assert!(answer.contains("X-Up: y\r\n") && answer.contains("Via: 1.1 groupcache-proxy\r\n"), "{answer}");
    assert!(answer.contains("Cache-Status: groupcache-proxy; fwd=method\r\n"), "{answer}");
    assert_eq!(told(&client.answer().await), "200 body");
    client.send("POST /t/chunks HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: x\r\n\r\n").await;
    assert_eq!(told(&client.answer().await), "200 2");
    client.send("DELETE /t/gone HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(told(&client.answer().await), "200 3");
    client.send(&get("/t/a")).await;
    assert_eq!(told(&client.answer().await), "200 body");
    let requests = origin.requests();
    let (head, body) = requests[0].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /base/form?x=1 HTTP/1.1\r\n") && body == "hello", "{head}");
    assert_eq!(head.matches("Host: origin.test").count(), 1, "{head}");
    let lower = head.to_ascii_lowercase();
    for absent in ["6.6.6.6", "x-hop", "upgrade", "secret", "transfer-encoding", "host: h"] {
        assert!(!lower.contains(absent), "{absent}: {head}");
    }
    for present in ["content-length: 5", "via: 1.1 groupcache-proxy", "x-forwarded-proto: http", "cookie: c"] {
        assert!(lower.contains(present), "{present}: {head}");
    }
    assert!(requests[1].ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), "{}", requests[1]);
    assert!(requests[2].starts_with("DELETE /base/gone HTTP/1.1\r\n"));
    drop(client.stream);
    client.served.await.unwrap();
    assert_eq!(node.counters(), "hit 1 miss 1 pass 3 error 0 bytes 11");
}

#[tokio::test]
async fn an_unsafe_request_that_passes_invalidates_what_is_stored() {
    let origin = RawOrigin::start().await;
    let node = Node::with(Setup { pass_to: Some(origin.address), ..Setup::default() });
    node.origin.on("/a", Script::status(200, &[FRESH], "body"));
    let mut client = node.connect();
    for (method, asked) in [("GET", 1), ("GET", 1), ("OPTIONS", 1), ("POST", 1), ("GET", 2), ("DELETE", 2), ("GET", 3)]
    {
        client.send(&format!("{method} /t/a HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        assert!(client.answer().await.starts_with("HTTP/1.1 200 "), "{method}");
        assert_eq!(node.origin.asked("/a"), asked, "{method}");
    }
}

#[tokio::test]
async fn what_passes_of_get_and_why() {
    let origin = RawOrigin::start().await;
    let node = Node::with(Setup { pass_to: Some(origin.address), cookies_pass: true, ..Setup::default() });
    node.origin.on("/private", Script::status(200, &[("Cache-Control", "private")], "body"));
    let mut client = node.connect();
    for (line, body, detail) in
        [("Cookie: a=b", "", "fwd=bypass; detail=cookies"), ("Content-Length: 2", "{}", "fwd=bypass; detail=body")]
    {
        client.send(&format!("GET /t/a HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n{body}")).await;
        let answer = client.answer().await;
        assert!(answer.contains(&format!("Cache-Status: groupcache-proxy; {detail}\r\n")), "{answer}");
    }
    client.send(&get("/t/private")).await;
    assert_eq!(told(&client.answer().await), "200 body");
    client.send("GET /t/private HTTP/1.1\r\nHost: h\r\nIf-None-Match: \"x\"\r\n\r\n").await;
    let answer = client.answer().await;
    assert!(answer.contains("Cache-Status: groupcache-proxy; fwd=bypass; detail=uncacheable\r\n"), "{answer}");
    assert!(origin.requests()[2].to_ascii_lowercase().contains("if-none-match: \"x\"\r\n"));
}

#[tokio::test]
async fn bodies_that_are_too_large_or_malformed_do_not_pass() {
    let origin = RawOrigin::start().await;
    let limits = Limits { body_bytes: 10, ..Limits::default() };
    let node = Node::with(Setup { pass_to: Some(origin.address), limits, ..Setup::default() });
    let post = |line: &str, body: &str| format!("POST /t/a HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n{body}");
    let answer = node.exchange(&post("Content-Length: 11", "")).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let answer = node.exchange(&post("Transfer-Encoding: chunked", "b\r\nhello world\r\n0\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let answer = node.exchange(&(post("Transfer-Encoding: chunked", "2\nhe\r\n0\r\n\r\n") + &get("/t/a"))).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count().max(1), 1, "nothing behind it is answered: {answer}");
    assert_eq!(origin.requests().len(), 0);
}

#[tokio::test]
async fn an_origin_that_fails_a_request_that_passes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let node = Node::with(Setup { pass_to: Some(nobody), ..Setup::default() });
    let answer = node.exchange("DELETE /t/a HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.ends_with("502 the origin cannot be reached\n"), "{answer}");
    assert!(!answer.contains(&nobody.port().to_string()), "no address of the inside: {answer}");
    assert_eq!(node.counters(), "hit 0 miss 0 pass 0 error 1 bytes 33");
    let upgrading = RawOrigin::answering(|_| {
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".into()
    })
    .await;
    let node = Node::with(Setup { pass_to: Some(upgrading.address), ..Setup::default() });
    let answer = node.exchange("DELETE /t/a HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[tokio::test]
async fn methods_pass_only_where_the_group_lets_them() {
    let origin = RawOrigin::start().await;
    let pass = PassRule::Only(vec!["POST".into()]);
    let node = Node::with(Setup { pass_to: Some(origin.address), pass, ..Setup::default() });
    let mut client = node.connect();
    client.send("PUT /t/a HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("Allow: GET, HEAD, POST\r\n"), "{answer}");
    client.send("POST /t/a HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(told(&client.answer().await), "200 1");
}

#[tokio::test]
async fn the_log_has_a_line_for_every_request() {
    let origin = RawOrigin::start().await;
    let node = Node::with(Setup { pass_to: Some(origin.address), ..Setup::default() });
    node.origin.on("/a", Script::status(200, &[FRESH], "body"));
    let mut client = node.connect();
    for request in [
        get("/t/a?q"),
        get("/t/a?q"),
        "DELETE /t/x HTTP/1.1\r\nHost: h\r\nAuthorization: secret\r\n\r\n".into(),
        get("/no"),
    ] {
        client.send(&request).await;
        client.answer().await;
    }
    drop(client.stream);
    client.served.await.unwrap();
    let Node { edge, lane, log, .. } = node;
    drop((edge, lane));
    let lines = log.0.lock().unwrap().clone();
    let lines = String::from_utf8(lines).unwrap();
    let told: Vec<String> = lines
        .lines()
        .map(|line| line.split(' ').skip(2).filter(|word| !word.ends_with("us")).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(told.len(), 4, "{lines}");
    assert_eq!(told[0], "\"GET /t/a?q HTTP/1.1\" 404 13 miss group=test host=\"h\"");
    assert_eq!(told[2], "\"DELETE /t/x HTTP/1.1\" 200 1 pass group=test host=\"h\" detail=\"method\"");
    assert!(!lines.contains("secret"));
}

/// HTTP/2 over a pipe that says what TLS would say.
mod http_2 {
    use std::io;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use h2::client::SendRequest;
    use pingora::protocols::raw_connect::ProxyDigest;
    use pingora::protocols::{
        ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
        UniqueID, UniqueIDType,
    };
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;

    /// With a count of its writes.
    #[derive(Debug)]
    struct Negotiated(DuplexStream, Arc<AtomicUsize>);

    impl AsyncRead for Negotiated {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(context, out)
        }
    }

    impl AsyncWrite for Negotiated {
        fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let result = Pin::new(&mut self.0).poll_write(context, bytes);
            self.1.fetch_add(usize::from(result.is_ready()), Ordering::Relaxed);
            result
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }

    #[async_trait]
    impl Shutdown for Negotiated {
        async fn shutdown(&mut self) {}
    }

    impl UniqueID for Negotiated {
        fn id(&self) -> UniqueIDType {
            0
        }
    }

    impl Ssl for Negotiated {
        fn selected_alpn_proto(&self) -> Option<ALPN> {
            Some(ALPN::H2)
        }
    }

    impl GetTimingDigest for Negotiated {
        fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
            Vec::new()
        }
    }

    impl GetProxyDigest for Negotiated {
        fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
            None
        }
    }

    impl GetSocketDigest for Negotiated {
        fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
            None
        }
    }

    impl Peek for Negotiated {}

    struct Client2 {
        requests: SendRequest<Bytes>,
        served: JoinHandle<()>,
        /// Writes of the node.
        writes: Arc<AtomicUsize>,
    }

    async fn connect(node: &Node) -> Client2 {
        connect_with(node, &h2::client::Builder::new()).await
    }

    async fn connect_with(node: &Node, options: &h2::client::Builder) -> Client2 {
        let (client, served, writes) = open(node, 64 * 1024);
        let (requests, connection) = options.handshake(client).await.unwrap();
        tokio::spawn(connection);
        Client2 { requests, served, writes }
    }

    /// The client's side of a connection with so much room in each direction.
    fn open(node: &Node, room: usize) -> (DuplexStream, JoinHandle<()>, Arc<AtomicUsize>) {
        let (client, server) = tokio::io::duplex(room);
        let (lane, shutdown) = (node.lane.clone(), node.shutdown.subscribe());
        let writes = Arc::new(AtomicUsize::new(0));
        let server = Negotiated(server, writes.clone());
        let served = tokio::spawn(async move {
            lane.process_new(Box::new(server), &shutdown).await;
        });
        (client, served, writes)
    }

    /// What a client says first, and `GET /t/a` on stream 1 with every name from the static table.
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const GET_A: &[u8] = b"\0\0\x0b\x01\x05\0\0\0\x01\x82\x87\x04\x04/t/a\x01\x01h";

    fn request(method: &str, target: &str, fields: &[(&str, &str)]) -> http::Request<()> {
        let mut request = http::Request::builder().method(method).uri(format!("https://h{target}"));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    impl Client2 {
        /// Status, fields, sorted, and body; or how the stream broke.
        async fn ask(
            &mut self,
            request: http::Request<()>,
            body: Option<&str>,
        ) -> Result<(u16, Vec<String>, String), h2::Error> {
            let (response, mut sending) = self.requests.send_request(request, body.is_none())?;
            if let Some(body) = body {
                sending.send_data(Bytes::copy_from_slice(body.as_bytes()), true)?;
            }
            let (head, mut stream) = response.await?.into_parts();
            let mut fields: Vec<String> =
                head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            fields.sort();
            let mut body = Vec::new();
            while let Some(bytes) = stream.data().await {
                let bytes = bytes?;
                stream.flow_control().release_capacity(bytes.len())?;
                body.extend_from_slice(&bytes);
            }
            Ok((head.status.as_u16(), fields, String::from_utf8(body).unwrap()))
        }
    }

    #[tokio::test]
    async fn both_versions_answer_the_same() {
        let node = Node::new();
        node.origin.on("/a", Script::status(200, &[FRESH, DATE, ("ETag", "\"e\"")], "0123456789"));
        for target in ["/t/a", "/t/missing"] {
            node.exchange(&get(target).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        }
        let mut second = connect(&node).await;
        for (method, target, fields) in [
            ("GET", "/t/a", &[][..]),
            ("HEAD", "/t/a", &[]),
            ("GET", "/t/a", &[("if-none-match", "\"e\"")]),
            ("GET", "/t/a", &[("range", "bytes=2-4")]),
            ("GET", "/t/a", &[("range", "bytes=20-")]),
            ("GET", "/t/a", &[("if-match", "\"x\"")]),
            ("GET", "/t/missing", &[]),
            ("GET", "/elsewhere", &[]),
            ("GET", "/t/../a", &[]),
            ("GET", "/t/%zz", &[]),
            ("DELETE", "/t/a", &[]),
            ("TRACE", "/t/a", &[]),
            ("GET", "/t/a", &[("expect", "x")]),
            ("GET", "/_groupcache/stats", &[]),
            ("GET", "/_groupcache/forbidden", &[]),
        ] {
            let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let mut first = node.connect();
            first.send(&format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{lines}\r\n")).await;
            let answer = first.answer_to(method == "HEAD").await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let mut expected: Vec<String> = head
                .lines()
                .skip(1)
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| format!("{}: {value}", name.to_ascii_lowercase()))
                .filter(|line| line != "connection: close")
                .collect();
            expected.sort();
            let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
            let told = second.ask(request(method, target, fields), None).await.unwrap();
            assert_eq!(told, (status, expected, body.to_owned()), "{method} {target} {fields:?}");
        }
    }

    #[tokio::test]
    async fn what_passes_and_what_breaks() {
        let origin = RawOrigin::start().await;
        let node = Node::with(Setup { pass_to: Some(origin.address), ..Setup::default() });
        node.origin.on("/broken", Script::head(200, &[FRESH], Some(10)).chunk("12345").breaks());
        node.origin.on("/large", Script::status(200, &[FRESH], "x".repeat(500_000)));
        let mut client = connect(&node).await;
        let (status, fields, body) = client.ask(request("POST", "/t/form?x", &[]), Some("hello")).await.unwrap();
        assert_eq!((status, &*body), (200, "1"), "{fields:?}");
        assert!(fields.contains(&"cache-status: groupcache-proxy; fwd=method".to_owned()), "{fields:?}");
        let sent = origin.requests()[0].to_ascii_lowercase();
        for part in
            ["post /base/form?x http/1.1\r\n", "host: origin.test\r\n", "via: 2.0 groupcache-proxy\r\n", "hello"]
        {
            assert!(sent.contains(part), "{part}: {sent}");
        }
        assert_eq!(sent.matches("host:").count() - sent.matches("-host:").count(), 1, "{sent}");
        assert!(client.ask(request("GET", "/t/broken", &[]), None).await.is_err());
        for _ in 0..2 {
            let (_, _, body) = client.ask(request("GET", "/t/large", &[]), None).await.unwrap();
            assert_eq!(body.len(), 500_000);
        }
        let (status, _, body) = client.ask(request("POST", "/_groupcache/purge", &[]), Some("hello")).await.unwrap();
        assert_eq!((status, &*body), (200, "POST /_groupcache/purge hello direct=true"));
        let (status, _, _) = client.ask(request("POST", "/_groupcache/purge", &[]), Some("hello world")).await.unwrap();
        assert_eq!(status, 413);
        assert_eq!(node.counters(), "hit 1 miss 2 pass 1 error 0 bytes 1000006");
        drop(client.requests);
        client.served.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_gives_up_a_stream_stops_waiting() {
        let node = Node::new();
        node.origin.on("/a", Script::new().stalls());
        let mut client = connect(&node).await;
        let (response, _) = client.requests.send_request(request("GET", "/t/a", &[]), true).unwrap();
        node.origin.arrived("/a", 1).await;
        drop(response);
        // The fill ends when nobody reads any more: the seam to the source says so.
        node.origin.on("/b", Script::status(200, &[FRESH], "body"));
        assert_eq!(client.ask(request("GET", "/t/b", &[]), None).await.unwrap().2, "body");
        while node.group.stats.client.error.value() == 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn draining_ends_connections() {
        let node = Node::new();
        node.origin.on("/a", Script::status(200, &[FRESH], "body"));
        let mut client = connect(&node).await;
        assert_eq!(client.ask(request("GET", "/t/a", &[]), None).await.unwrap().2, "body");
        node.edge.drain.begin();
        client.served.await.unwrap();
    }

    #[tokio::test]
    async fn a_hit_keeps_the_date_of_its_origin() {
        let node = Node::new();
        node.origin.on("/a", Script::status(200, &[FRESH, DATE], "body"));
        let mut client = connect(&node).await;
        for _ in 0..2 {
            let (_, fields, _) = client.ask(request("GET", "/t/a", &[]), None).await.unwrap();
            assert!(fields.contains(&"date: Fri, 20 Nov 2026 12:00:00 GMT".to_owned()), "{fields:?}");
        }
    }

    #[tokio::test]
    async fn answers_to_requests_that_came_together_leave_together() {
        let node = Node::new();
        node.origin.on("/a", Script::status(200, &[FRESH], "x".repeat(2000)));
        let mut client = connect(&node).await;
        client.ask(request("GET", "/t/a", &[]), None).await.unwrap();
        let before = client.writes.load(Ordering::Relaxed);
        let asked: Vec<_> =
            (0..20).map(|_| client.requests.send_request(request("GET", "/t/a", &[]), true).unwrap().0).collect();
        for response in asked {
            let mut body = response.await.unwrap().into_body();
            let mut bytes = 0;
            while let Some(data) = body.data().await {
                bytes += data.unwrap().len();
                body.flow_control().release_capacity(bytes).ok();
            }
            assert_eq!(bytes, 2000);
        }
        // 40 kB are more than one batch.
        let writes = client.writes.load(Ordering::Relaxed) - before;
        assert!(writes <= 6, "{writes} writes for 20 answers");
    }

    #[tokio::test]
    async fn a_long_body_passes_within_the_windows() {
        let origin = RawOrigin::start().await;
        let node = Node::with(Setup { pass_to: Some(origin.address), ..Setup::default() });
        let mut client = connect(&node).await;
        let body = "y".repeat(300_000);
        let length = body.len().to_string();
        for fields in [&[("content-length", &*length)][..], &[]] {
            let (status, _, _) = client.ask(request("POST", "/t/form", fields), Some(&body)).await.unwrap();
            assert_eq!(status, 200);
            let sent = origin.requests().pop().unwrap();
            assert_eq!(sent.split_once("\r\n\r\n").unwrap().1.matches('y').count(), body.len());
        }
        let conflicting = request("POST", "/t/form", &[("content-length", "2")]);
        assert!(client.ask(conflicting, Some("hello")).await.is_err(), "the body is longer than announced");
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_that_is_too_small_is_waited_for_but_not_forever() {
        let node = Node::new();
        node.origin.on("/a", Script::status(200, &[FRESH], "x".repeat(5000)));
        let mut options = h2::client::Builder::new();
        let mut client = connect_with(&node, options.initial_window_size(1000)).await;
        for _ in 0..2 {
            assert_eq!(client.ask(request("GET", "/t/a", &[]), None).await.unwrap().2.len(), 5000);
        }
        let (response, _) = client.requests.send_request(request("GET", "/t/a", &[]), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap().len(), 1000);
        let start = tokio::time::Instant::now();
        let broken = body.data().await.unwrap().unwrap_err();
        assert_eq!(broken.reason(), Some(h2::Reason::INTERNAL_ERROR));
        assert_eq!(start.elapsed(), Limits::default().send_stall);
        assert_eq!(node.counters(), "hit 2 miss 1 pass 0 error 0 bytes 11000");
        // Only the stream is given up.
        assert_eq!(client.ask(request("GET", "/t/a", &[]), None).await.unwrap().2.len(), 5000);
    }

    #[tokio::test(start_paused = true)]
    async fn every_wait_for_a_connection_ends() {
        let node = Node::new();
        node.origin.on("/a", Script::status(200, &[FRESH], "x".repeat(50_000)));
        let limits = Limits::default();
        let elapsed = async |room: usize, send: &[u8]| {
            let (mut client, served, _) = open(&node, room);
            client.write_all(send).await.unwrap();
            let start = tokio::time::Instant::now();
            served.await.unwrap();
            start.elapsed()
        };
        assert_eq!(elapsed(1 << 20, b"").await, limits.header_timeout);
        assert_eq!(elapsed(1 << 20, &PREFACE[..20]).await, limits.header_timeout);
        // Without a request, with half of one, and behind one; a client that takes nothing of its answer.
        let idle = Duration::from_secs(60);
        assert_eq!(elapsed(1 << 20, PREFACE).await, idle);
        assert_eq!(elapsed(1 << 20, &[PREFACE, &GET_A[..15]].concat()).await, idle);
        assert_eq!(elapsed(1 << 20, &[PREFACE, GET_A].concat()).await, idle);
        assert_eq!(elapsed(1000, &[PREFACE, GET_A].concat()).await, limits.send_stall);
        assert_eq!(node.counters(), "hit 1 miss 1 pass 0 error 0 bytes 100000");
    }

    #[tokio::test]
    async fn requests_that_the_gate_refuses_end_a_connection_in_the_end() {
        let node = Node::new();
        let mut client = connect(&node).await;
        let mut refused = 0;
        while let Ok((status, _, _)) = client.ask(request("GET", "/t/a", &[("host", "other")]), None).await {
            assert_eq!(status, 400);
            refused += 1;
        }
        assert_eq!(refused, 31);
        client.served.await.unwrap();
        assert_eq!(node.rejects("host"), 32);
    }
}
