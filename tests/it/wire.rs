//! The native protocol byte by byte: strangers who speak garbage, peers that turn out to be something else, and a peer of
//! version 1 written down here, which every later version has to answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ring::hmac;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::kit::client::{Client, within};
use crate::kit::node::{Node, Setup, free_addresses};
use crate::kit::origin::{Gate, Origin, Reply};
use crate::kit::poll;

const UPGRADE: &str =
    "GET /_groupcache/ HTTP/1.1\r\nHost: peer\r\nConnection: Upgrade\r\nUpgrade: groupcache/1\r\n\r\n";

/// A node of a fleet of two whose other peer is at `other`.
fn start(origin: &Origin, other: SocketAddr, keys: &str) -> Node {
    let address = free_addresses(1)[0];
    let setup = Setup::group(&format!("origin: '{}'", origin.url()));
    let fleet =
        format!("fleet: {{ self: 'http://{address}', peers: ['http://{address}', 'http://{other}'], {keys} }}\n");
    Setup { address, more: format!("{}{fleet}", setup.more), ..setup }.start()
}

fn pictures(origin: &Origin, count: usize) {
    for number in 0..count {
        origin.on(&format!("/{number}"), Reply::ok(format!("body {number}")).header("Cache-Control", "max-age=600"));
    }
}

/// A frame of the protocol: its length, and one field with a message in it.
fn frame(request: u64, kind: u64, message: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    if request > 0 {
        varint_field(&mut body, 1, request);
    }
    bytes_field(&mut body, kind, message);
    [&(body.len() as u32).to_be_bytes()[..], &body].concat()
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_field(out: &mut Vec<u8>, number: u64, value: u64) {
    varint(out, number << 3);
    varint(out, value);
}

fn bytes_field(out: &mut Vec<u8>, number: u64, value: &[u8]) {
    varint(out, number << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn hello(versions: (u64, u64), nonce: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    varint_field(&mut message, 1, versions.0);
    varint_field(&mut message, 2, versions.1);
    bytes_field(&mut message, 3, nonce);
    message
}

/// The fields of a message of protobuf: number, number of the varint or fixed value, bytes.
fn fields(mut message: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    fn read(message: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = message[0];
            *message = &message[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = read(&mut message);
        let (value, length) = match tag & 7 {
            0 => (read(&mut message), 0),
            1 => (u64::from_le_bytes(message[..8].try_into().unwrap()), 8),
            2 => (0, read(&mut message) as usize),
            kind => panic!("wire type {kind}"),
        };
        let bytes = if tag & 7 == 2 { message[..length].to_vec() } else { Vec::new() };
        message = &message[length..];
        found.push((tag >> 3, value, bytes));
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_speak_garbage_are_cut_off_counted_and_disturb_nobody() {
    let origin = Origin::start().await;
    pictures(&origin, 10);
    let nobody = free_addresses(1)[0];
    let node = start(&origin, nobody, "secret: 'fleet-secret-0123456789'");
    let ours = (1, 1);
    let nonce = [7; 32];
    let mut question = Vec::new();
    for (number, value) in [(3, "all"), (4, "1"), (5, "/1")] {
        bytes_field(&mut question, number, value.as_bytes());
    }
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a frame of 4 GiB", vec![0xff; 64], "handshake_oversize"),
        (
            "a frame of 2 KiB before it is proven",
            [&2048_u32.to_be_bytes()[..], &[0; 64]].concat(),
            "handshake_oversize",
        ),
        ("no protobuf", [&4_u32.to_be_bytes()[..], &[0xff; 4]].concat(), "handshake_malformed"),
        ("an answer first", frame(1, 3, b""), "handshake_unexpected"),
        ("a question first", frame(1, 2, &question), "handshake_unexpected"),
        ("another version", frame(0, 16, &hello((900, 901), &nonce)), "handshake_version"),
        ("a short nonce", frame(0, 16, &hello(ours, &[7; 3])), "handshake_malformed"),
        (
            "a wrong proof",
            [frame(0, 16, &hello(ours, &nonce)), frame(0, 18, &[&[0x0a, 32][..], &[9; 32]].concat())].concat(),
            "handshake_secret",
        ),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), "handshake_oversize"),
        ("nothing", Vec::new(), "handshake_timeout"),
    ];
    for (what, bytes, word) in &cases {
        let before = node.stats().await["rejects"][*word].as_u64().unwrap_or_default();
        let mut stranger = node.connect().await;
        stranger.send(UPGRADE).await;
        assert_eq!(stranger.head().await.status, 101);
        stranger.send(bytes).await;
        // Whatever is said before: it ends, and within the second that a handshake may take.
        while !stranger.some().await.is_empty() {}
        poll::until(what, async || node.stats().await["rejects"][*word].as_u64() == Some(before + 1)).await;
        let answer = node.get("/1").await;
        assert_eq!((answer.status(), &*answer.text()), (200, "body 1"), "after {what}");
    }
    assert_eq!(origin.requests("/1"), 1);
    assert!(node.log().contains("peer refused"), "{}", node.log());
    assert!(!node.log().contains("fleet-secret"));
}

/// What answers in the place of a peer.
#[derive(Clone, Copy, Debug)]
enum Impostor {
    Closes,
    SaysNothing,
    WebServer,
    Garbage,
    GarbageAfterUpgrade,
    FarFuture,
}

/// Behaves like this on every connection until dropped.
struct Impostors {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Impostors {
    async fn start(kind: Impostor) -> Impostors {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(answer(stream, kind));
            }
        });
        Impostors { address, task }
    }
}

impl Drop for Impostors {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, kind: Impostor) {
    let mut request = vec![0; 1024];
    let upgraded = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: groupcache/1\r\n\r\n";
    let said: Vec<u8> = match kind {
        Impostor::Closes => return,
        Impostor::SaysNothing => Vec::new(),
        Impostor::WebServer => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_vec(),
        Impostor::Garbage => vec![0xa5; 4096],
        Impostor::GarbageAfterUpgrade => [&upgraded[..], &[0xa5; 4096]].concat(),
        Impostor::FarFuture => [&upgraded[..], &frame(0, 17, &hello((900, 901), &[1; 32]))].concat(),
    };
    let _ = stream.read(&mut request).await;
    let _ = stream.write_all(&said).await;
    // Until the other side has enough.
    while let Ok(1..) = stream.read(&mut request).await {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_none_is_named_so_and_its_keys_are_answered_all_the_same() {
    for (kind, state) in [
        (Impostor::Closes, "up"),
        (Impostor::SaysNothing, "up"),
        (Impostor::WebServer, "refused"),
        (Impostor::Garbage, "refused"),
        (Impostor::GarbageAfterUpgrade, "refused"),
        (Impostor::FarFuture, "refused"),
    ] {
        let origin = Origin::start().await;
        pictures(&origin, 20);
        let impostors = Impostors::start(kind).await;
        let node = start(&origin, impostors.address, "");
        let since = Instant::now();
        for _ in 0..2 {
            for number in 0..20 {
                let answer = node.get(&format!("/{number}")).await;
                assert_eq!((answer.status(), answer.text()), (200, format!("body {number}")), "{kind:?}");
                assert_eq!(origin.requests(&format!("/{number}")), 1, "{kind:?}");
            }
        }
        // At most one handshake is waited for, not one for each of forty requests.
        assert!(since.elapsed() < Duration::from_secs(6), "{kind:?}: {:?}", since.elapsed());
        let stats = node.stats().await;
        let peer = &stats["fleet"]["peers"][0];
        // Nobody who was never reached is called down: it may be about to start.
        assert_eq!(peer["state"], state, "{kind:?}: {peer}");
        assert_eq!(peer["reason"].is_string(), state == "refused", "{kind:?}: {peer}");
    }
}

/// A peer of version 1, as it was released: what it sends is fixed here, what it expects may only grow.
struct Version1 {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Version1 {
    async fn connect(address: SocketAddr, secret: &[u8]) -> Version1 {
        let mut client =
            Version1 { stream: within(TcpStream::connect(address)).await.expect("a connection"), buffer: Vec::new() };
        client.send(UPGRADE.as_bytes()).await;
        while !client.buffer.windows(4).any(|end| end == b"\r\n\r\n") {
            client.more().await;
        }
        let end = client.buffer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(client.buffer.drain(..end).collect()).expect("a head");
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let nonce: [u8; 32] = std::array::from_fn(|index| index as u8);
        client.send(&frame(0, 16, &hello((1, 1), &nonce))).await;
        let challenge = client.message(17).await;
        let number =
            |wanted: u64| challenge.iter().find(|(field, ..)| *field == wanted).map_or(0, |(_, value, _)| *value);
        let theirs = &challenge.iter().find(|(field, ..)| *field == 3).expect("a nonce").2;
        let mut said = b"groupcache/1 proof\0\x01".to_vec();
        for (min, max, nonce) in [(1, 1, &nonce[..]), (number(1) as u32, number(2) as u32, theirs)] {
            said.extend_from_slice(&u32::to_be_bytes(min));
            said.extend_from_slice(&u32::to_be_bytes(max));
            said.extend_from_slice(nonce);
        }
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), &said);
        let mut proof = Vec::new();
        bytes_field(&mut proof, 1, tag.as_ref());
        client.send(&frame(0, 18, &proof)).await;
        client.message(18).await;
        client.message(19).await;
        let mut identity = Vec::new();
        bytes_field(&mut identity, 1, b"0.0.9");
        varint_field(&mut identity, 5, 250);
        client.send(&frame(0, 19, &identity)).await;
        client
    }

    async fn ask(&mut self, request: u64, target: &str) {
        let mut ask = Vec::new();
        bytes_field(&mut ask, 3, b"all");
        bytes_field(&mut ask, 4, target.trim_start_matches('/').as_bytes());
        bytes_field(&mut ask, 5, target.as_bytes());
        varint_field(&mut ask, 11, 65536);
        self.send(&frame(request, 2, &ask)).await;
    }

    /// Status and body of the answer to one question; meanwhile others only give signs of life.
    async fn read(&mut self, question: u64) -> (u64, Vec<u8>) {
        let (mut status, mut body) = (0, Vec::new());
        loop {
            let (request, kind, message) = self.next().await;
            let value = message.first().map_or(0, |(_, value, _)| *value);
            match kind {
                _ if request != question => assert!(request == 0 || kind == 4, "question {request}, kind {kind}"),
                3 | 4 => {}
                5 => status = value,
                6 => body.extend_from_slice(&message[0].2),
                7 => {
                    assert_eq!(value, body.len() as u64, "the length at the end");
                    return (status, body);
                }
                kind => panic!("kind {kind}: {message:?}"),
            }
        }
    }

    async fn message(&mut self, wanted: u64) -> Vec<(u64, u64, Vec<u8>)> {
        let (_, kind, message) = self.next().await;
        assert_eq!(kind, wanted, "a kind of frame");
        message
    }

    /// The next frame: question, kind, message.
    async fn next(&mut self) -> (u64, u64, Vec<(u64, u64, Vec<u8>)>) {
        loop {
            if let Some(length) = self.buffer.get(..4) {
                let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
                if self.buffer.len() >= 4 + length {
                    let body: Vec<u8> = self.buffer.drain(..4 + length).skip(4).collect();
                    let (mut request, mut kind) = (0, (0, Vec::new()));
                    for (number, value, bytes) in fields(&body) {
                        match number {
                            1 => request = value,
                            number => kind = (number, fields(&bytes)),
                        }
                    }
                    return (request, kind.0, kind.1);
                }
            }
            self.more().await;
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        within(self.stream.write_all(bytes)).await.expect("sending");
    }

    async fn more(&mut self) {
        let read = within(self.stream.read_buf(&mut self.buffer)).await.expect("reading");
        assert!(read > 0, "the node closed the connection");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_version_1_is_answered() {
    let origin = Origin::start().await;
    pictures(&origin, 2);
    let slow = Gate::new();
    origin.on("/slow", Reply::ok("late").header("Cache-Control", "max-age=600").hold(&slow));
    let secret = "fleet-secret-0123456789";
    let node = start(&origin, free_addresses(1)[0], &format!("secret: '{secret}'"));
    let mut old = Version1::connect(node.address, secret.as_bytes()).await;
    // Two questions on one connection; the slow one holds nobody up and gives signs of life.
    old.ask(1, "/slow").await;
    within(origin.arrived("/slow", 1)).await;
    let mut signs = 0;
    while signs < 2 {
        let (request, kind, _) = old.next().await;
        assert!(request == 1 && matches!(kind, 3 | 4), "question {request}, kind {kind}");
        signs += u64::from(kind == 4);
    }
    old.ask(2, "/1").await;
    assert_eq!(old.read(2).await, (200, b"body 1".to_vec()));
    slow.open();
    assert_eq!(old.read(1).await, (200, b"late".to_vec()));
    let mut client = Client::connect(node.address).await;
    assert_eq!(client.get("/slow").await.text(), "late");
    assert_eq!((origin.requests("/slow"), origin.requests("/1")), (1, 1));
    assert_eq!(node.group("all").await["server_requests"], 2);
}
