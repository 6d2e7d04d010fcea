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

fn fixed_field(out: &mut Vec<u8>, number: u64, value: u64) {
    varint(out, number << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
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
    /// All that it has sent.
    sent: Vec<u8>,
}

impl Version1 {
    async fn connect(address: SocketAddr, secret: &[u8]) -> Version1 {
        let stream = within(TcpStream::connect(address)).await.expect("a connection");
        let mut client = Version1 { stream, buffer: Vec::new(), sent: Vec::new() };
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
        self.sent.extend_from_slice(bytes);
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

/// The first purge of the life 99, of everything, as a question.
fn purge_of_everything(kind_of_target: u64, sequence: u64) -> Vec<u8> {
    let message = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    let position = message(&|out| {
        fixed_field(out, 1, 99);
        varint_field(out, 2, sequence);
    });
    let target = message(&|out| varint_field(out, 1, kind_of_target));
    let record = message(&|out| {
        bytes_field(out, 1, &position);
        bytes_field(out, 3, &target);
    });
    let notice = message(&|out| {
        bytes_field(out, 5, &record);
        bytes_field(out, 6, &position);
    });
    message(&|out| {
        varint_field(out, 1, 4);
        for (number, value) in [(3, "all"), (5, "/")] {
            bytes_field(out, number, value.as_bytes());
        }
        varint_field(out, 11, 65536);
        bytes_field(out, 12, &notice);
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purges_that_are_not_proven_replayed_tampered_with_or_cut_short_purge_nothing() {
    let origin = Origin::start().await;
    pictures(&origin, 2);
    let secret = "fleet-secret-0123456789";
    let node = start(&origin, free_addresses(1)[0], &format!("secret: '{secret}'"));
    let refused = async |word: &str| node.stats().await["rejects"][word].as_u64().unwrap_or_default();
    let is_stored = async || {
        let asked = origin.requests("/1");
        assert_eq!(node.get("/1").await.text(), "body 1");
        origin.requests("/1") == asked
    };
    let mut other = Version1::connect(node.address, secret.as_bytes()).await;

    // What the rest is compared with: from who has proven itself, it purges.
    assert!(!is_stored().await && is_stored().await);
    let mut proven = Version1::connect(node.address, secret.as_bytes()).await;
    proven.send(&frame(1, 2, &purge_of_everything(0, 1))).await;
    assert_eq!(proven.read(1).await.0, 200);
    assert!(!is_stored().await && is_stored().await);

    let unproven = [UPGRADE.as_bytes(), &frame(1, 2, &purge_of_everything(0, 2))].concat();
    for (what, bytes, word) in
        [("not proven", &unproven, "handshake_unexpected"), ("replayed", &proven.sent, "handshake_secret")]
    {
        let before = refused(word).await;
        let mut stranger = TcpStream::connect(node.address).await.expect("a connection");
        stranger.write_all(bytes).await.expect("sending");
        // Whatever is answered, it is no answer to a question, and it ends.
        within(stranger.read_to_end(&mut Vec::new())).await.expect("an end");
        poll::until(what, async || refused(word).await == before + 1).await;
        assert!(is_stored().await, "{what}");
    }

    let whole = frame(1, 2, &purge_of_everything(0, 3));
    let (mut longer, mut questions) = (whole.clone(), 0);
    longer[3] += 1;
    let ends_too_soon = [&[8, 4, 0x1a, 3][..], b"all", &[0x2a, 1, b'/', 0x62, 2, 0x2a, 9]].concat();
    let cases = [
        (
            "a kind of target that there is not",
            frame(1, 2, &purge_of_everything(9, 3)),
            "purge_malformed",
            "is answered",
        ),
        ("no number", frame(1, 2, &purge_of_everything(0, 0)), "purge_malformed", "is answered"),
        ("a notice that ends too soon", frame(1, 2, &ends_too_soon), "purge_malformed", "is answered"),
        ("a frame that ends too soon", frame(1, 2, &purge_of_everything(0, 3)[..20]), "malformed", "ends"),
        ("a length of 4 GiB", [&[0xff; 4], &whole[4..]].concat(), "oversize", "ends"),
        ("a frame that is cut short", whole[..whole.len() - 1].to_vec(), "malformed", "is dropped"),
        ("a frame that says to be longer", longer, "malformed", "is dropped"),
    ];
    for (what, bytes, word, how) in &cases {
        let before = refused(word).await;
        let mut peer = Version1::connect(node.address, secret.as_bytes()).await;
        peer.send(bytes).await;
        if *how == "ends" {
            within(peer.stream.read_to_end(&mut peer.buffer)).await.expect("an end");
        } else if *how == "is answered" {
            let (request, kind, _) = peer.next().await;
            assert_eq!((request, kind), (1, 9), "{what}: a failure");
        }
        drop(peer);
        if *how != "is dropped" {
            poll::until(what, async || refused(word).await == before + 1).await;
        }
        assert!(is_stored().await, "{what}");
        // Those on other connections notice nothing.
        questions += 1;
        other.ask(questions, "/1").await;
        assert_eq!(other.read(questions).await, (200, b"body 1".to_vec()), "{what}");
    }
    assert!(node.log().contains("purges that cannot be understood"), "{}", node.log());
    assert!(node.log().contains("a peer speaks garbage"), "{}", node.log());
    assert_eq!(origin.requests("/1"), 2, "nobody made it ask");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_another_ring_is_named_and_all_keys_are_answered() {
    let origin = Origin::start().await;
    pictures(&origin, 30);
    let addresses = free_addresses(3);
    let with = |own: usize, count: usize| {
        let peers: Vec<String> = addresses[..count].iter().map(|address| format!("'http://{address}'")).collect();
        let setup = Setup::group(&format!("origin: '{}'", origin.url()));
        let fleet = format!("fleet: {{ self: 'http://{}', peers: [{}] }}\n", addresses[own], peers.join(", "));
        Setup { address: addresses[own], more: format!("{}{fleet}", setup.more), ..setup }
    };
    // Nobody is at the third address.
    let nodes = [with(0, 2).start(), with(1, 3).start()];
    let state_of_other = async |node: usize| {
        let stats = nodes[node].stats().await;
        let url = format!("http://{}", addresses[1 - node]);
        let peers = stats["fleet"]["peers"].as_array().expect("peers").clone();
        let peer = peers.into_iter().find(|peer| peer["url"] == url).expect("the peer");
        (peer, stats["fleet"]["ring_id"].clone())
    };
    for node in 0..2 {
        let is_up = |peer: &serde_json::Value| peer["state"] == "up" && peer["ring_id"].is_string();
        poll::until("the other is up", async || is_up(&state_of_other(node).await.0)).await;
        let (peer, ours) = state_of_other(node).await;
        assert_ne!(peer["ring_id"], ours);
    }
    for number in 0..30 {
        for node in &nodes {
            assert_eq!(node.get(&format!("/{number}")).await.text(), format!("body {number}"));
        }
        assert!(origin.requests(&format!("/{number}")) <= 2, "once for each opinion");
    }
    let mut disagreements = 0;
    for node in &nodes {
        disagreements += node.group("all").await["ring_disagreements"].as_u64().expect("a counter");
        node.wait_for_log("a peer has another view of the ring");
    }
    assert!(disagreements > 0, "the second node takes the third for the owner of some keys that the first asks it for");
}
