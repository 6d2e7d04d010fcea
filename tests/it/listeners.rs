//! Listeners: TLS with both versions of HTTP, and what passes through to the origin.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http::Request;
use tempfile::TempDir;

use crate::kit::client::{Client, Framing, within};
use crate::kit::echo::{Echo, body_of};
use crate::kit::node::{Node, Setup};
use crate::kit::origin::{Gate, Origin, Reply};
use crate::kit::poll;
use crate::kit::tls::{self, Certificate, Http2Client};

/// A node whose one listener speaks TLS under two names.
struct Secure {
    node: Node,
    one: Certificate,
    two: Certificate,
}

impl Secure {
    fn start(origin: &str, keys: &str) -> Secure {
        let folder = TempDir::new().expect("a temporary folder");
        let one = tls::write_pair(folder.path(), "one", &["one.example"]);
        let two = tls::write_pair(folder.path(), "two", &["two.example", "*.two.example"]);
        let text = format!(
            "listen: [{{ address: '127.0.0.1:0', tls: [{{ cert: one.pem, key: one.key }}, {{ cert: two.pem, key: two.key }}] }}]\n\
             admin: {{ address: '127.0.0.1:0' }}\nlog: {{ format: json, access: errors }}\nmemory: 64MiB\nthreads: 2\n\
             shutdown: {{ delay: 0s, timeout: 20s }}\n{keys}groups: [{{ name: all, origin: '{origin}' }}]\n"
        );
        std::fs::write(folder.path().join("proxy.yaml"), text).expect("writing the configuration");
        let node = Node::run(folder, &[], &["run", "--config", "proxy.yaml"]);
        Secure { node, one, two }
    }

    fn address(&self) -> SocketAddr {
        self.node.address
    }
}

fn certificate_of(folder: &Path) -> Certificate {
    tls::write_pair(folder, "two", &["two.example", "*.two.example"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_versions_of_http_answer_alike_under_each_name() {
    let origin = Origin::start().await;
    let body: String = (0..100_000).map(|index| char::from(b'a' + (index % 26) as u8)).collect();
    origin.on("/a", Reply::ok(body.clone()).header("Cache-Control", "max-age=600").etag("\"v1\"").ranges());
    let secure = Secure::start(&origin.url(), "");

    let mut old = tls::connect(secure.address(), "one.example", &secure.one).await.expect("HTTP/1.1");
    let mut new = Http2Client::connect(secure.address(), "x.two.example", &secure.two).await.expect("HTTP/2");
    let url = "https://x.two.example/a";
    for round in 0..2 {
        let first = old.get("/a").await;
        assert_eq!((first.status(), first.text() == body), (200, true), "round {round}");
        let second = new.get(url).await.expect("an answer");
        assert!(second.head.status == 200 && second.body == body.as_bytes(), "round {round}");
        assert_eq!(second.field("etag"), Some("\"v1\""));
        assert!(second.field("cache-status").is_some_and(|status| status.contains("hit")), "{:?}", second.head);
        assert!(second.field("age").is_some() && second.field("via").is_some());
        assert!(second.field("connection").is_none() && second.field("transfer-encoding").is_none());
    }
    let request = |name: &str, value: &str| Request::get(url).header(name, value).body(()).expect("a request");
    let part = new.ask(request("range", "bytes=10-19"), b"").await.expect("an answer");
    assert_eq!((part.head.status.as_u16(), &*part.body), (206, &body.as_bytes()[10..20]));
    let same = new.ask(request("if-none-match", "\"v1\""), b"").await.expect("an answer");
    assert_eq!((same.head.status.as_u16(), same.body.len()), (304, 0));
    let head = new.ask(Request::head(url).body(()).expect("a request"), b"").await.expect("an answer");
    assert_eq!((head.head.status.as_u16(), head.field("content-length"), head.body.len()), (200, Some("100000"), 0));
    assert_eq!(origin.requests("/a"), 1);

    // Each name has its certificate, and only that.
    assert!(tls::connect(secure.address(), "two.example", &secure.one).await.is_err());
    assert!(Http2Client::connect(secure.address(), "one.example", &secure.two).await.is_err());
    // Plain HTTP on this port gets nothing that could be taken for an answer.
    let mut plain = Client::connect(secure.address()).await;
    plain.send("GET /a HTTP/1.1\r\nHost: one.example\r\n\r\n").await;
    assert!(!plain.some().await.starts_with(b"HTTP/"));
    assert_eq!(old.get("/a").await.status(), 200, "nobody else is disturbed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_streams_of_one_connection_stream_at_once() {
    let origin = Origin::start().await;
    let half = Gate::new();
    origin.on("/slow", Reply::ok("0123456789").header("Cache-Control", "max-age=600").hold_after(4, &half));
    let secure = Secure::start(&origin.url(), "");
    let mut client = Http2Client::connect(secure.address(), "one.example", &secure.one).await.expect("HTTP/2");
    let mut answers = Vec::new();
    for _ in 0..100 {
        let request = Request::get("https://one.example/slow").body(()).expect("a request");
        answers.push(client.begin(request, true).await.0);
    }
    let mut bodies = Vec::new();
    for answer in answers {
        let mut body = within(answer).await.expect("a head").into_body();
        let first = within(body.data()).await.expect("a first piece").expect("a first piece");
        assert_eq!(first, "0123");
        bodies.push(body);
    }
    half.open();
    for mut body in bodies {
        let mut rest = Vec::new();
        while let Some(piece) = within(body.data()).await {
            rest.extend_from_slice(&piece.expect("a piece"));
        }
        assert_eq!(rest, b"456789");
    }
    assert_eq!(origin.requests("/slow"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_serves_new_connections_and_drops_no_old_one() {
    let origin = Echo::start().await;
    let secure = Secure::start(&origin.url(), "");
    let mut old = Http2Client::connect(secure.address(), "two.example", &secure.two).await.expect("HTTP/2");
    assert_eq!(old.get("https://two.example/a").await.expect("an answer").body, body_of("/a"));
    let renewed = certificate_of(&secure.node.folder());
    secure.node.wait_for_log("certificates read again");
    assert!(Http2Client::connect(secure.address(), "two.example", &secure.two).await.is_err(), "the old one is gone");
    let mut new = Http2Client::connect(secure.address(), "two.example", &renewed).await.expect("HTTP/2");
    assert_eq!(new.get("https://two.example/a").await.expect("an answer").body, body_of("/a"));
    assert_eq!(old.get("https://two.example/b").await.expect("an answer").body, body_of("/b"), "it is still open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_body_is_a_reset_stream_and_the_connection_goes_on() {
    let origin = Origin::start().await;
    origin.on("/cut", Reply::ok("0123456789").header("Cache-Control", "max-age=600").truncate_after(4));
    origin.on("/chunks", Reply::ok("0123456789").chunked(2).header("Cache-Control", "max-age=600").truncate_after(4));
    origin.on("/good", Reply::ok("good").header("Cache-Control", "max-age=600"));
    let secure = Secure::start(&origin.url(), "");
    let mut client = Http2Client::connect(secure.address(), "one.example", &secure.one).await.expect("HTTP/2");
    for target in ["/cut", "/chunks"] {
        assert!(client.get(&format!("https://one.example{target}")).await.is_err(), "{target} looks whole");
        let good = client.get("https://one.example/good").await.expect("an answer");
        assert_eq!(good.body, b"good");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_pass_through_while_they_come_and_so_do_their_answers() {
    let origin = Echo::start().await;
    let secure = Secure::start(&origin.url(), "");
    let plain = Setup::group(&format!("origin: '{}'", origin.url())).start();
    let connect = async |place| match place {
        "TLS" => tls::connect(secure.address(), "one.example", &secure.one).await.expect("HTTP/1.1"),
        _ => plain.connect().await,
    };
    for place in ["plain", "TLS"] {
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let mut client = connect(place).await;
            let lines = "Host: one.example\r\nTransfer-Encoding: chunked";
            client.send(format!("{method} /upload HTTP/1.1\r\n{lines}\r\n\r\n5\r\nfirst\r\n")).await;
            let head = client.head().await;
            assert_eq!((head.status, head.field("x-method")), (200, Some(method)), "{place}");
            assert_eq!(head.framing, Framing::Chunked);
            // What was sent came back before the rest is sent: neither side collects the body.
            assert_eq!(client.some().await, b"5\r\nfirst\r\n", "{place} {method}");
            client.send("6\r\nsecond\r\n0\r\n\r\n").await;
            let (body, whole) = client.body(&head).await;
            assert_eq!((String::from_utf8_lossy(&body).as_ref(), whole), ("second", true), "{place} {method}");
            // An answer that begins before the request ends says that it closes.
            assert_eq!(head.field("connection"), Some("close"), "{place} {method}");
            assert!(client.is_closed().await);
        }
        // Of known length, in one piece.
        let mut client = connect(place).await;
        let upload = vec![b'u'; 300_000];
        let lines = format!("Host: one.example\r\nContent-Length: {}", upload.len());
        client.send([format!("PUT /upload HTTP/1.1\r\n{lines}\r\n\r\n").as_bytes(), &upload].concat()).await;
        assert!(client.answer().await.body == upload, "{place}");
    }
    let mut new = Http2Client::connect(secure.address(), "one.example", &secure.one).await.expect("HTTP/2");
    let request = Request::post("https://one.example/upload").body(()).expect("a request");
    let (answer, mut sending) = new.begin(request, false).await;
    sending.send_data(Bytes::from_static(b"first"), false).expect("sending");
    let (head, mut body) = within(answer).await.expect("a head while the upload lasts").into_parts();
    assert_eq!(head.status, 200);
    assert_eq!(within(body.data()).await.expect("a piece").expect("a piece"), "first");
    sending.send_data(Bytes::from_static(b"second"), true).expect("sending");
    let mut rest = Vec::new();
    while let Some(piece) = within(body.data()).await {
        rest.extend_from_slice(&piece.expect("a piece"));
    }
    assert_eq!(rest, b"second");
    assert_eq!(new.get("https://one.example/b").await.expect("an answer").body, body_of("/b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_beyond_the_limit_is_413_however_it_comes() {
    let origin = Echo::start().await;
    let secure = Secure::start(&origin.url(), "limits: { body_bytes: 1KiB }\n");
    let connect = async || tls::connect(secure.address(), "one.example", &secure.one).await.expect("HTTP/1.1");
    let ask = async |text: String| {
        let mut client = connect().await;
        client.send(text).await;
        client.head().await.status
    };
    let host = "Host: one.example";
    assert_eq!(ask(format!("POST /x HTTP/1.1\r\n{host}\r\nContent-Length: 1025\r\n\r\n")).await, 413);
    let expecting = format!("POST /x HTTP/1.1\r\n{host}\r\nContent-Length: 9999999\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(ask(expecting).await, 413, "before a byte of the body is sent");
    assert_eq!(origin.requests("POST /x"), 0, "the origin never hears of it");
    let mut client = connect().await;
    let inside = "i".repeat(1024);
    client.send(format!("POST /y HTTP/1.1\r\n{host}\r\nContent-Length: 1024\r\n\r\n{inside}")).await;
    assert_eq!(client.answer().await.text(), inside);

    // Of unknown length: the answer has begun when the limit is reached, so it must break.
    let mut client = connect().await;
    client.send(format!("POST /z HTTP/1.1\r\n{host}\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
    client.send(format!("800\r\n{}\r\n0\r\n\r\n", "o".repeat(2048))).await;
    let head = client.head().await;
    let (body, whole) = client.body(&head).await;
    assert!(head.status == 413 || !whole, "{} with {} bytes, whole: {whole}", head.status, body.len());

    let mut new = Http2Client::connect(secure.address(), "one.example", &secure.one).await.expect("HTTP/2");
    let request = Request::post("https://one.example/x").header("content-length", 1025).body(()).expect("a request");
    let refused = new.ask(request, &[b'x'; 1025]).await.expect("an answer");
    assert_eq!(refused.head.status, 413);
    assert_eq!(new.get("https://one.example/b").await.expect("an answer").body, body_of("/b"));
    let rejects = secure.node.stats().await["rejects"].clone();
    assert!(rejects["body_bytes"].as_u64() >= Some(3), "{rejects}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order_passes_among_them() {
    let origin = Echo::start().await;
    let node = Setup::group(&format!("origin: '{}'", origin.url())).start();
    node.get("/a").await;
    let mut client = node.connect().await;
    let host = "Host: h\r\n";
    let requests = [
        format!("GET /a HTTP/1.1\r\n{host}\r\n"),
        format!("POST /one HTTP/1.1\r\n{host}Content-Length: 5\r\n\r\nGET /"),
        format!("GET /b HTTP/1.1\r\n{host}\r\n"),
        format!("PUT /two HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
        format!("POST /three HTTP/1.1\r\n{host}Content-Length: 0\r\n\r\n"),
        format!("GET /a HTTP/1.1\r\n{host}\r\n"),
        format!("DELETE /four HTTP/1.1\r\n{host}\r\n"),
        format!("GET /c HTTP/1.1\r\n{host}\r\n"),
    ];
    let expected: [Vec<u8>; 8] = [
        body_of("/a"),
        b"GET /".to_vec(),
        body_of("/b"),
        b"abcde".to_vec(),
        Vec::new(),
        body_of("/a"),
        Vec::new(),
        body_of("/c"),
    ];
    // Three rounds: all at once, then in pieces that end anywhere.
    for piece in [usize::MAX, 7, 1] {
        let all = requests.concat();
        let mut rest = all.as_bytes();
        let mut sent = Vec::new();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(piece.min(rest.len()));
            sent.push(now);
            rest = later;
        }
        for piece in sent {
            client.send(piece).await;
        }
        for (request, expected) in requests.iter().zip(&expected) {
            let answer = client.answer().await;
            assert_eq!(answer.status(), 200, "{request:?}: {}", answer.head.text);
            assert!(answer.body == *expected, "{request:?} in pieces of {piece}: {}", answer.text());
        }
    }
    assert_eq!(origin.requests("POST /one"), 3);
    let group = node.group("all").await;
    assert_eq!(group["client"]["pass"], 12, "{group}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_that_cannot_reach_the_origin_is_a_clear_error() {
    let nobody = crate::kit::node::free_addresses(1)[0];
    let node = Setup::group(&format!("origin: 'http://{nobody}'")).start();
    let mut client = node.connect().await;
    client.send("POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi").await;
    let answer = client.answer().await;
    assert_eq!((answer.status(), &*answer.text()), (502, "502 the origin cannot be reached\n"), "{}", answer.head.text);
    assert!(!answer.head.text.contains("127.0.0.1"), "{}", answer.head.text);
    // Counted behind the answer.
    poll::until("the error is counted", async || node.group("all").await["client"]["error"] == 1).await;
}

/// Small answers wait in the connection's buffer, and the socket is full when they are to leave it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_gets_each_answer_once() {
    let origin = Origin::start().await;
    let body = |name: &str| name.repeat(2000);
    for name in ["a", "b"] {
        origin.on(&format!("/{name}"), Reply::ok(body(name)).header("Cache-Control", "max-age=600"));
    }
    let node = Setup::group(&format!("origin: '{}'", origin.url())).start();
    let stream = within(tokio::net::TcpStream::connect(node.address)).await.expect("a connection");
    let (reading, mut writing) = stream.into_split();
    let sending = tokio::spawn(async move {
        let pair = "GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n";
        let requests = pair.repeat(4000);
        within(tokio::io::AsyncWriteExt::write_all(&mut writing, requests.as_bytes())).await.expect("sending");
        writing
    });
    // More than sockets hold: the node answers until nothing more fits.
    let mut answered = 0;
    poll::until("the node waits for the client", async || {
        let before = std::mem::replace(&mut answered, node.group("all").await["client"]["hit"].as_u64().unwrap_or(0));
        answered > 0 && answered == before
    })
    .await;
    assert!(answered < 8000, "everything fitted into the sockets");
    let (_, nobody) = tokio::io::duplex(1);
    let mut client = Client::over(tokio::io::join(reading, nobody));
    for number in 0..8000 {
        let name = ["a", "b"][number % 2];
        let answer = client.answer().await;
        assert!(answer.status() == 200 && answer.text() == body(name), "answer {number}: {}", answer.head.text);
    }
    let mut writing = within(sending).await.expect("sending");
    let last = b"GET /c HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    within(tokio::io::AsyncWriteExt::write_all(&mut writing, last)).await.expect("sending");
    assert_eq!(client.answer().await.status(), 404);
    assert!(client.is_closed().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_counts_its_hops_goes_as_far_as_it_may() {
    let origin = Origin::start().await;
    origin.on("/x", Reply::ok("far"));
    let node = Setup::group(&format!("origin: '{}'", origin.url())).start();
    let ask = async |left: &str| {
        let mut client = node.connect().await;
        client.send(format!("OPTIONS /x HTTP/1.1\r\nHost: h\r\nMax-Forwards: {left}\r\n\r\n")).await;
        client.answer().await
    };
    for (left, then) in [("3", "2"), ("1", "0"), ("x", "x"), ("+1", "+1")] {
        assert_eq!(ask(left).await.text(), "far");
        assert_eq!(origin.last("/x").field("max-forwards"), Some(then));
    }
    let answer = ask("0").await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, ""));
    assert!(answer.head.field("allow").is_some_and(|methods| methods.contains("GET")));
    assert_eq!(origin.requests("/x"), 4);
}
