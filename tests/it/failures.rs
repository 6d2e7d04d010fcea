//! Origins that stall, break off, lie and die, through a whole node and a whole fleet: who asked sees it, nothing is stored,
//! nobody else is disturbed.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::kit::client::{Client, within};
use crate::kit::fleet::Fleet;
use crate::kit::node::Setup;
use crate::kit::origin::{Gate, Origin, Reply};

fn setup(origin: &Origin) -> Setup {
    let timeouts = "timeouts: { connect: 1s, first_byte: 500ms, between_bytes: 500ms, total: 20s }";
    Setup::group(&format!("origin: '{}', {timeouts}, freshness: {{ errors: 0s }}", origin.url()))
}

/// What a client sees: `200 body`, `200 part… broken`, `502 reason`.
async fn seen(address: std::net::SocketAddr, target: &str) -> String {
    let mut client = Client::connect(address).await;
    client.ask(target).await;
    let head = client.head().await;
    let (body, whole) = client.body(&head).await;
    let body = String::from_utf8_lossy(&body).trim_end().to_owned();
    let end = if whole { "" } else { " broken" };
    format!("{} {body}{end}", head.status)
}

/// What a client of HTTP/1.0 gets to the end of its connection, and the error at that end.
async fn to_the_end(address: std::net::SocketAddr, request: &str) -> (String, Option<std::io::ErrorKind>) {
    let mut stream = within(tokio::net::TcpStream::connect(address)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    let end = within(stream.read_to_end(&mut read)).await;
    (String::from_utf8_lossy(&read).into_owned(), end.err().map(|error| error.kind()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_connection_alone_ends_a_body_a_broken_one_ends_with_a_reset() {
    let origin = Origin::start().await;
    origin.on("/whole", Reply::ok("0123456789").chunked(5));
    origin.on("/cut", Reply::ok("0123456789").chunked(5).truncate_after(10));
    let node = setup(&origin).start();
    for method in ["GET", "POST"] {
        let ask = |target: &str| format!("{method} {target} HTTP/1.0\r\nHost: any\r\n\r\n");
        let (text, end) = to_the_end(node.address, &ask("/whole")).await;
        assert!(text.ends_with("\r\n\r\n0123456789") && end.is_none(), "{method}: {end:?} {text}");
        let (text, end) = to_the_end(node.address, &ask("/cut")).await;
        assert_eq!(end, Some(std::io::ErrorKind::ConnectionReset), "{method}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lying_origin_is_seen_by_who_asked_and_nothing_of_it_is_stored() {
    let origin = Origin::start().await;
    let raw = |text: &str| Reply::raw(text.to_owned()).close();
    let never = Gate::new();
    let cases: Vec<(&str, Reply, &str)> = vec![
        ("more-declared", Reply::ok("short").declare(9).close(), "200 short broken"),
        ("cut", Reply::ok("0123456789").truncate_after(4), "200 0123 broken"),
        ("reset", Reply::ok("0123456789").reset_after(4), "200 0123 broken"),
        ("no-last-chunk", Reply::ok("0123456789").chunked(5).truncate_after(10), "200 0123456789 broken"),
        ("stalls", Reply::ok("0123456789").hold_after(4, &never), "200 0123 broken"),
        ("bad-chunk", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n"), "200 ab broken"),
        ("no-http", raw("hello, I am no web server\r\n\r\n"), "502 502 the origin's answer is malformed"),
        (
            "two-lengths",
            raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"),
            "502 502 the origin",
        ),
        ("bad-length", raw("HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc"), "502 502 the origin"),
        ("closes", Reply::raw("").close(), "502 502 the origin"),
        ("silent", Reply::ok("late").hold(&never), "504 504 the origin"),
    ];
    for (name, reply, _) in &cases {
        origin.on(&format!("/{name}"), reply.clone().header("Cache-Control", "max-age=600"));
    }
    origin.on("/good", Reply::ok("good").header("Cache-Control", "max-age=600"));
    let fleet = Fleet::start(3, &setup(&origin)).await;
    for (name, _, expected) in &cases {
        let target = format!("/{name}");
        for (index, node) in fleet.nodes.iter().enumerate() {
            let before = origin.requests(&target);
            let seen = seen(node.address, &target).await;
            let fits = match expected.strip_suffix(" broken") {
                // Bytes that were on their way when it broke may be lost; more than there were never appear.
                Some(all) => seen.strip_suffix(" broken").is_some_and(|part| all.starts_with(part)),
                None => seen.starts_with(expected),
            };
            assert!(fits, "{name} from node {index}: {seen:?}, expected {expected:?}");
            assert!(origin.requests(&target) > before, "{name}: something was stored by node {index}");
        }
        // Nobody else is disturbed.
        for node in &fleet.nodes {
            assert_eq!(seen(node.address, "/good").await, "200 good", "after {name}");
        }
    }
    assert_eq!(origin.requests("/good"), 1);
    let mut stored = 0;
    for node in &fleet.nodes {
        let group = node.group("all").await;
        stored += group["main"]["items"].as_u64().unwrap_or_default();
        assert_eq!(group["hot"]["items"].as_u64().map(|items| items <= 1), Some(true), "{group}");
    }
    assert_eq!(stored, 1, "only what is good is stored");
    assert!(fleet.sum("local_load_errs").await >= 3 * 5, "each failed load is counted");
}

/// More bytes than declared are the next answer on that connection for whoever believes it: they must go nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_beyond_the_declared_length_reach_nobody() {
    let origin = Origin::start().await;
    let poison = "0123HTTP/1.1 200 OK\r\nContent-Length: 6\r\nCache-Control: max-age=600\r\n\r\npoison";
    origin.on("/long", Reply::ok(poison).declare(4).header("Cache-Control", "max-age=600"));
    origin.on("/good", Reply::ok("good").header("Cache-Control", "max-age=600"));
    let node = setup(&origin).start();
    assert_eq!(seen(node.address, "/long").await, "200 0123");
    for _ in 0..3 {
        assert_eq!(seen(node.address, "/good").await, "200 good");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_who_waits_for_a_body_sees_it_break() {
    let origin = Origin::start().await;
    let half = Gate::new();
    let body = vec![b'x'; 50_000];
    origin.on(
        "/a",
        Reply::ok(body).header("Cache-Control", "max-age=600").hold_after(20_000, &half).truncate_after(30_000),
    );
    let fleet = Fleet::start(3, &setup(&origin).more("threads: 2")).await;
    let mut waiting = Vec::new();
    for number in 0..12 {
        let mut client = Client::connect(fleet.nodes[number % 3].address).await;
        client.ask("/a").await;
        waiting.push(client);
    }
    let mut heads = Vec::new();
    for client in &mut waiting {
        heads.push(client.head().await);
    }
    half.open();
    for (number, (mut client, head)) in waiting.into_iter().zip(heads).enumerate() {
        let (body, whole) = client.body(&head).await;
        assert!(!whole && body.len() <= 30_000, "client {number} got {} bytes, whole: {whole}", body.len());
    }
    assert_eq!(origin.requests("/a"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_origin_is_an_error_at_once_and_a_returned_one_is_used() {
    let origin = Origin::start().await;
    let node = setup(&origin).start();
    assert_eq!(seen(node.address, "/a").await, "404 not scripted");
    let address = origin.address();
    within(origin.kill()).await;
    let since = Instant::now();
    assert_eq!(seen(node.address, "/b").await, "502 502 the origin cannot be reached");
    assert!(since.elapsed() < Duration::from_secs(5));
    node.wait_for_log("the origin could not be asked");
    // Somebody else at its address.
    let Ok(listener) = tokio::net::TcpListener::bind(address).await else { return };
    let answering = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut head = vec![0; 1024];
        let _ = stream.read(&mut head).await;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback";
        stream.write_all(answer).await.expect("answering");
    });
    assert_eq!(seen(node.address, "/c").await, "200 back");
    within(answering).await.expect("the new origin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_failure_answers_all_who_waited_for_it() {
    let origin = Origin::start().await;
    let held = Gate::new();
    origin.on("/down", Reply::status(503, "later\n").header("Retry-After", "7").hold(&held));
    let fleet = Fleet::start(3, &Setup::group(&format!("origin: '{}'", origin.url()))).await;
    let mut waiting = Vec::new();
    for number in 0..30 {
        let mut client = Client::connect(fleet.nodes[number % 3].address).await;
        client.ask("/down").await;
        waiting.push(client);
    }
    crate::kit::poll::until("thirty wait", async || fleet.asked_by_clients().await == 30).await;
    held.open();
    for client in &mut waiting {
        let answer = client.answer().await;
        assert_eq!((answer.status(), &*answer.text()), (503, "later\n"), "the origin's own error is passed on");
        assert_eq!(answer.head.field("retry-after"), Some("7"));
    }
    assert_eq!(origin.requests("/down"), 1);
}
