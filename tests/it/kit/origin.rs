//! A scripted origin: a raw HTTP/1.1 server on loopback that behaves, or misbehaves, exactly as a test says.
//!
//! ```ignore
//! let origin = Origin::start().await;
//! origin.on("/a", Reply::ok("hello").header("Cache-Control", "max-age=60"));
//! let gate = Gate::new();
//! origin.on("/slow", Reply::ok("0123456789").hold_after(4, &gate));
//! // … ask for origin.url() + "/slow", read "0123", and only then:
//! gate.open();
//! assert_eq!(origin.requests("/slow"), 1);
//! assert_eq!(origin.last("/slow").field("host"), Some(origin.authority().as_str()));
//! ```
//!
//! Nothing here sleeps: a reply stops at a [`Gate`] until the test opens it, and tests wait for what arrived
//! ([`Origin::arrived`], [`Gate::reached`]) or was closed ([`Origin::closed`]). Targets without a reply get 404. The server and
//! all its connections end when the [`Origin`] is dropped.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// The running server.
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    replies: Mutex<HashMap<String, Reply>>,
    requests: Mutex<Vec<Request>>,
    opened: AtomicUsize,
    closed: AtomicUsize,
    /// Bumped after every change that a test may wait for.
    changes: Changes,
}

struct Changes(watch::Sender<u64>);

impl Default for Changes {
    fn default() -> Self {
        Changes(watch::channel(0).0)
    }
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which connection brought it, counted from zero.
    pub connection: usize,
    /// Its head, byte for byte, with the empty line at the end.
    pub raw: Bytes,
    /// `GET`, `HEAD` …
    pub method: String,
    /// The request target as sent.
    pub target: String,
}

impl Request {
    /// The first value of a field, whose name is compared without regard to case.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields(name).into_iter().next()
    }

    /// All values of a field, in order.
    pub fn fields(&self, name: &str) -> Vec<&str> {
        let text = std::str::from_utf8(&self.raw).unwrap_or("");
        let lines = text.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(candidate, _)| candidate.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }
}

impl Origin {
    /// Starts a server on a free port of 127.0.0.1.
    pub async fn start() -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = listener.local_addr().expect("the listener's address");
        let shared = Arc::new(Shared::default());
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Origin { address, shared, accepting }
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `127.0.0.1:PORT`, what a `Host` field holds.
    pub fn authority(&self) -> String {
        self.address.to_string()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `target` (path and query, as sent) is answered like this.
    pub fn on(&self, target: &str, reply: Reply) {
        self.shared.replies.lock().unwrap().insert(target.to_owned(), reply);
    }

    /// How many requests asked for `target`.
    pub fn requests(&self, target: &str) -> usize {
        self.shared.requests.lock().unwrap().iter().filter(|request| request.target == target).count()
    }

    /// Every request so far, in order of arrival.
    pub fn log(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The last request for `target`; panics if there was none.
    pub fn last(&self, target: &str) -> Request {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().rev().find(|request| request.target == target).expect("a request for this target").clone()
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        self.shared.opened.load(Ordering::SeqCst)
    }

    /// Waits until `count` requests for `target` have come in.
    pub async fn arrived(&self, target: &str, count: usize) {
        self.wait_until(|| self.requests(target) >= count).await;
    }

    /// Waits until `count` connections have ended, by either side.
    pub async fn closed(&self, count: usize) {
        self.wait_until(|| self.shared.closed.load(Ordering::SeqCst) >= count).await;
    }

    /// Stops listening and cuts every connection, as a killed server would.
    pub async fn kill(self) {
        self.accepting.abort();
        while !self.accepting.is_finished() {
            tokio::task::yield_now().await;
        }
    }

    async fn wait_until(&self, condition: impl Fn() -> bool) {
        let mut changes = self.shared.changes.0.subscribe();
        while !condition() {
            changes.changed().await.expect("the origin lives");
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        // The task owns its connections' tasks, so they end with it.
        self.accepting.abort();
    }
}

/// A point where replies stop until the test lets them go on. Clones are the same gate.
#[derive(Clone)]
pub struct Gate(Arc<watch::Sender<GateState>>);

#[derive(Clone, Copy, Default)]
struct GateState {
    open: bool,
    reached: usize,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Gate {
        Gate(Arc::new(watch::channel(GateState::default()).0))
    }

    /// Lets everybody pass, now and later.
    pub fn open(&self) {
        self.0.send_modify(|state| state.open = true);
    }

    /// Waits until `count` replies have come to the gate, passed ones included.
    pub async fn reached(&self, count: usize) {
        let _ = self.0.subscribe().wait_for(|state| state.reached >= count).await;
    }

    /// Stops here until the gate is open.
    pub async fn pass(&self) {
        self.0.send_modify(|state| state.reached += 1);
        let _ = self.0.subscribe().wait_for(|state| state.open).await;
    }
}

impl Default for Gate {
    fn default() -> Self {
        Gate::new()
    }
}

/// What the origin answers. Without further words: the status, a `Content-Length` that is true, and the connection stays open.
#[derive(Clone)]
pub struct Reply {
    status: u16,
    version: &'static str,
    headers: Vec<(String, Vec<u8>)>,
    body: Bytes,
    framing: Framing,
    interim: usize,
    before_final: Option<Gate>,
    before_head: Vec<Gate>,
    stops: Vec<(usize, Stop)>,
    close: bool,
    ranges: bool,
    encoded: Option<(String, Bytes)>,
    made: Option<Maker>,
}

type Maker = Arc<dyn Fn(&Request, usize) -> Reply + Send + Sync>;

#[derive(Clone)]
enum Framing {
    Length,
    Declared(String),
    Chunked(usize),
    None,
    Raw(Bytes),
}

#[derive(Clone)]
enum Stop {
    Hold(Gate),
    Close,
    Reset,
}

impl Reply {
    /// 200 with this body.
    pub fn ok(body: impl Into<Bytes>) -> Reply {
        Reply::status(200, body)
    }

    /// This status with this body.
    pub fn status(status: u16, body: impl Into<Bytes>) -> Reply {
        Reply {
            status,
            version: "HTTP/1.1",
            headers: Vec::new(),
            body: body.into(),
            framing: Framing::Length,
            interim: 0,
            before_final: None,
            before_head: Vec::new(),
            stops: Vec::new(),
            close: false,
            ranges: false,
            encoded: None,
            made: None,
        }
    }

    /// Exactly these bytes instead of anything that looks like HTTP; the connection stays open unless [`Reply::close`] is said.
    pub fn raw(bytes: impl Into<Bytes>) -> Reply {
        Reply { framing: Framing::Raw(bytes.into()), ..Reply::ok("") }
    }

    /// A reply made for each request, which is told how many came for this target before it.
    pub fn made(make: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Reply {
        Reply { made: Some(Arc::new(make)), ..Reply::ok("") }
    }

    /// Adds a field, malformed ones too.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Reply {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Adds an entity tag (with its quotes) and answers `If-None-Match` with 304.
    pub fn etag(self, tag: &str) -> Reply {
        self.header("ETag", tag)
    }

    /// Adds `Last-Modified` and answers an equal `If-Modified-Since` with 304.
    pub fn last_modified(self, date: &str) -> Reply {
        self.header("Last-Modified", date)
    }

    /// Answers a single `Range` with 206, if `If-Range` is absent or equals the entity tag.
    pub fn ranges(mut self) -> Reply {
        self.ranges = true;
        self.header("Accept-Ranges", "bytes")
    }

    /// Sends this encoding to those who accept it, and `Vary: Accept-Encoding` to everybody.
    pub fn encoded(mut self, coding: &str, body: impl Into<Bytes>) -> Reply {
        self.encoded = Some((coding.to_owned(), body.into()));
        self.header("Vary", "Accept-Encoding")
    }

    /// Chunked, in pieces of so many bytes.
    pub fn chunked(mut self, piece: usize) -> Reply {
        self.framing = Framing::Chunked(piece.max(1));
        self
    }

    /// No framing: the end of the connection ends the body.
    pub fn until_close(mut self) -> Reply {
        self.framing = Framing::None;
        self.close()
    }

    /// Declares this length, whatever the body has; any text will do.
    pub fn declare(mut self, length: impl ToString) -> Reply {
        self.framing = Framing::Declared(length.to_string());
        self
    }

    /// Says HTTP/1.0 in the status line.
    pub fn http10(mut self) -> Reply {
        self.version = "HTTP/1.0";
        self
    }

    /// So many `103 Early Hints` before the answer.
    pub fn interim(mut self, count: usize) -> Reply {
        self.interim = count;
        self
    }

    /// Sends the interim answers and then nothing until the gate is open.
    pub fn hold_final(mut self, gate: &Gate) -> Reply {
        self.before_final = Some(gate.clone());
        self
    }

    /// Sends nothing until the gate is open.
    pub fn hold(mut self, gate: &Gate) -> Reply {
        self.before_head.push(gate.clone());
        self
    }

    /// Sends so many bytes of the body and goes on when the gate is open.
    pub fn hold_after(mut self, bytes: usize, gate: &Gate) -> Reply {
        self.stops.push((bytes, Stop::Hold(gate.clone())));
        self
    }

    /// Closes the connection after so many bytes of the body.
    pub fn truncate_after(mut self, bytes: usize) -> Reply {
        self.stops.push((bytes, Stop::Close));
        self
    }

    /// Resets the connection after so many bytes of the body.
    pub fn reset_after(mut self, bytes: usize) -> Reply {
        self.stops.push((bytes, Stop::Reset));
        self
    }

    /// Closes the connection after the answer, without announcing it.
    pub fn close(mut self) -> Reply {
        self.close = true;
        self
    }

    /// Gives the reply that fits the request: 304, 206, another encoding, or itself.
    fn fitted(mut self, request: &Request) -> Reply {
        if let Some((coding, body)) = self.encoded.take()
            && request.field("accept-encoding").is_some_and(|accepted| accepted.contains(&coding))
        {
            self.body = body;
            self = self.header("Content-Encoding", &coding);
        }
        let validator = |name: &str| {
            let found = self.headers.iter().find(|(candidate, _)| candidate == name);
            found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        };
        let (tag, date) = (validator("ETag"), validator("Last-Modified"));
        let same = |sent: Option<&str>, own: &Option<String>| sent.is_some() && sent == own.as_deref();
        if same(request.field("if-none-match"), &tag)
            || request.field("if-none-match").is_none() && same(request.field("if-modified-since"), &date)
        {
            self.status = 304;
            self.body = Bytes::new();
            self.framing = Framing::Declared(String::new());
            return self;
        }
        let condition = request.field("if-range");
        if self.ranges
            && (condition.is_none() || same(condition, &tag))
            && let Some((first, last)) = request.field("range").and_then(|range| parse_range(range, self.body.len()))
        {
            let range = format!("bytes {first}-{last}/{}", self.body.len());
            self.status = 206;
            self.body = self.body.slice(first..=last);
            self = self.header("Content-Range", range);
        }
        self
    }

    fn head(&self) -> Vec<u8> {
        let mut head = Vec::new();
        head.extend_from_slice(format!("{} {} Scripted\r\n", self.version, self.status).as_bytes());
        let framing = match &self.framing {
            Framing::Length => format!("Content-Length: {}\r\n", self.body.len()),
            Framing::Declared(length) if length.is_empty() => String::new(),
            Framing::Declared(length) => format!("Content-Length: {length}\r\n"),
            Framing::Chunked(_) => "Transfer-Encoding: chunked\r\n".to_owned(),
            Framing::None | Framing::Raw(_) => String::new(),
        };
        head.extend_from_slice(framing.as_bytes());
        for (name, value) in &self.headers {
            head.extend_from_slice(name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value);
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

fn parse_range(range: &str, length: usize) -> Option<(usize, usize)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) => (first, last.min(length.checked_sub(1)?)),
        (Ok(first), Err(_)) => (first, length.checked_sub(1)?),
        (Err(_), Ok(suffix)) => (length.saturating_sub(suffix), length.checked_sub(1)?),
        (Err(_), Err(_)) => return None,
    };
    (first <= last).then_some((first, last))
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let number = shared.opened.fetch_add(1, Ordering::SeqCst);
                let shared = shared.clone();
                connections.spawn(async move {
                    serve(stream, number, &shared).await;
                    shared.closed.fetch_add(1, Ordering::SeqCst);
                    shared.changes.0.send_modify(|count| *count += 1);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers one request after the other; returns when the connection is to end.
async fn serve(mut stream: TcpStream, connection: usize, shared: &Shared) {
    let _ = stream.set_nodelay(true);
    let mut buffer = BytesMut::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            match stream.read_buf(&mut buffer).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
        };
        let raw = buffer.split_to(end).freeze();
        let line = String::from_utf8_lossy(&raw).lines().next().unwrap_or("").to_owned();
        let mut words = line.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let request = Request { connection, raw, method, target };
        let before = {
            let mut requests = shared.requests.lock().unwrap();
            let before = requests.iter().filter(|other| other.target == request.target).count();
            requests.push(request.clone());
            before
        };
        shared.changes.0.send_modify(|count| *count += 1);
        let scripted = shared.replies.lock().unwrap().get(&request.target).cloned();
        let reply = match scripted {
            Some(Reply { made: Some(make), .. }) => make(&request, before),
            Some(reply) => reply,
            None => Reply::status(404, "not scripted\n"),
        };
        if answer(&mut stream, &request, reply.fitted(&request)).await.is_none() {
            return;
        }
    }
}

/// Writes one reply; `None` when the connection ends with it or the asker is gone.
async fn answer(stream: &mut TcpStream, request: &Request, reply: Reply) -> Option<()> {
    for gate in &reply.before_head {
        pass(stream, gate).await?;
    }
    if let Framing::Raw(bytes) = &reply.framing {
        stream.write_all(bytes).await.ok()?;
    } else {
        let interims = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n".repeat(reply.interim);
        let head = reply.head();
        match &reply.before_final {
            None => stream.write_all(&[interims.as_bytes(), &head].concat()).await.ok()?,
            Some(gate) => {
                stream.write_all(interims.as_bytes()).await.ok()?;
                pass(stream, gate).await?;
                stream.write_all(&head).await.ok()?;
            }
        }
        if request.method != "HEAD" && reply.status != 304 && reply.status != 204 {
            write_body(stream, &reply).await?;
        }
    }
    if reply.close {
        let _ = stream.shutdown().await;
        // Reading to the end keeps unread bytes from turning the close into a reset.
        while let Ok(1..) = stream.read(&mut [0; 1024]).await {}
        return None;
    }
    Some(())
}

async fn write_body(stream: &mut TcpStream, reply: &Reply) -> Option<()> {
    let mut sent = 0;
    let mut stops = reply.stops.clone();
    stops.sort_by_key(|(bytes, _)| *bytes);
    for (bytes, stop) in stops {
        let until = bytes.clamp(sent, reply.body.len());
        write_piece(stream, &reply.framing, reply.body.slice(sent..until)).await?;
        sent = until;
        match stop {
            Stop::Hold(gate) => pass(stream, &gate).await?,
            Stop::Close => return None,
            Stop::Reset => {
                let _ = stream.set_zero_linger();
                return None;
            }
        }
    }
    write_piece(stream, &reply.framing, reply.body.slice(sent..)).await?;
    if let Framing::Chunked(_) = reply.framing {
        stream.write_all(b"0\r\n\r\n").await.ok()?;
    }
    Some(())
}

async fn write_piece(stream: &mut TcpStream, framing: &Framing, bytes: Bytes) -> Option<()> {
    match framing {
        Framing::Chunked(piece) => {
            for chunk in bytes.chunks(*piece) {
                let framed = [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
                stream.write_all(&framed).await.ok()?;
            }
        }
        _ => stream.write_all(&bytes).await.ok()?,
    }
    Some(())
}

/// Waits at a gate; `None` when the asker closes the connection meanwhile.
async fn pass(stream: &mut TcpStream, gate: &Gate) -> Option<()> {
    let mut byte = [0];
    tokio::select! {
        () = gate.pass() => Some(()),
        read = stream.peek(&mut byte) => match read {
            Ok(1..) => { gate.pass().await; Some(()) }
            Ok(0) | Err(_) => None,
        },
    }
}
