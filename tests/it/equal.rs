//! The same requests to one node alone, to the owner of a key and to the other nodes give the same answers.

use crate::kit::client::{Client, Head};
use crate::kit::fleet::Fleet;
use crate::kit::node::{Node, Setup};
use crate::kit::origin::{Origin, Reply};

/// What differs between nodes by its nature (RFC 9211, RFC 9110 sections 7.6.3 and 6.6.1, RFC 9111 section 5.1).
const OWN: [&str; 4] = ["age", "cache-status", "via", "date"];

/// Status line, fields in order of their names, and the body, in one text.
async fn seen(node: &Node, request: &str) -> String {
    seen_with_status(node, request).await.0
}

/// The same with what `Cache-Status` says.
async fn seen_with_status(node: &Node, request: &str) -> (String, String) {
    let mut client = Client::connect(node.address).await;
    client.send(request).await;
    let mut head = client.head().await;
    while head.status < 200 {
        // Those come only to who waits for the origin.
        head = client.head().await;
    }
    let body = match request.starts_with("HEAD ") {
        true => String::new(),
        false => {
            let (body, whole) = client.body(&head).await;
            format!("{}{}", String::from_utf8_lossy(&body), if whole { "" } else { " broken" })
        }
    };
    let seen = format!("{}\n{}\n{body}", head.text.lines().next().unwrap_or_default(), fields(&head).join("\n"));
    (seen, head.field("cache-status").unwrap_or_default().to_owned())
}

fn fields(head: &Head) -> Vec<String> {
    let lines = head.text.lines().skip(1).filter(|line| !line.is_empty());
    let mut fields: Vec<String> = lines
        .filter(|line| !OWN.iter().any(|own| line.split(':').next().is_some_and(|name| name.eq_ignore_ascii_case(own))))
        .map(|line| {
            line.split_once(':').map_or(line.to_owned(), |(name, value)| format!("{}:{value}", name.to_lowercase()))
        })
        .collect();
    fields.sort();
    fields
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_an_owner_and_the_others_answer_alike() {
    let origin = Origin::start().await;
    let old = "Sun, 06 Nov 1994 08:49:37 GMT";
    let fresh = |reply: Reply| reply.header("Cache-Control", "max-age=600");
    let text = "0123456789".repeat(50);
    let replies: Vec<(&str, Reply)> = vec![
        ("plain", fresh(Reply::ok(text.clone()).header("Content-Type", "text/plain"))),
        ("tagged", fresh(Reply::ok(text.clone()).etag("\"v1\"").last_modified(old).ranges())),
        ("weak", fresh(Reply::ok(text.clone()).etag("W/\"v1\""))),
        ("dated", fresh(Reply::ok(text.clone()).last_modified(old))),
        ("chunked", fresh(Reply::ok(text.clone()).chunked(7).etag("\"c\""))),
        ("by-close", fresh(Reply::ok(text.clone()).until_close())),
        ("empty", fresh(Reply::ok(""))),
        ("none", fresh(Reply::status(204, "").declare(""))),
        ("coded", fresh(Reply::ok(text.clone()).encoded("gzip", "coded").etag("\"g\""))),
        ("missing", Reply::status(404, "no such thing\n")),
        ("gone", fresh(Reply::status(410, "gone\n"))),
        ("moved", fresh(Reply::status(301, "").header("Location", "/plain"))),
        ("found", Reply::status(302, "look there\n").header("Location", "/plain")),
        ("denied", Reply::status(403, "no\n")),
        ("failing", Reply::status(500, "oops\n")),
        ("busy", Reply::status(503, "busy\n").header("Retry-After", "3")),
        ("private", Reply::ok("mine").header("Cache-Control", "private")),
        ("no-store", Reply::ok("never").header("Cache-Control", "no-store").etag("\"n\"")),
        ("no-cache", Reply::ok("ask").header("Cache-Control", "no-cache").etag("\"n\"")),
        ("cookie", fresh(Reply::ok("yours").header("Set-Cookie", "id=1"))),
        ("vary-all", fresh(Reply::ok("unique").header("Vary", "*"))),
        ("silent", Reply::ok("no word about freshness").header("X-Other", "kept")),
        ("twice", fresh(Reply::ok("two lines").header("X-A", "1").header("X-A", "2").header("X-B", ""))),
        (
            "tags",
            fresh(
                Reply::ok("inside").header("Surrogate-Key", "a b").header("Connection", "x-hop").header("X-Hop", "1"),
            ),
        ),
        ("interim", fresh(Reply::ok("final").interim(2))),
        ("old", fresh(Reply::ok("from HTTP/1.0").http10())),
        ("large", fresh(Reply::ok("x".repeat(300_000)).etag("\"l\"").ranges())),
    ];
    for (name, reply) in &replies {
        origin.on(&format!("/{name}"), reply.clone());
    }
    let setup = Setup::group(&format!("origin: '{}', max_object: 200KiB", origin.url()));
    let fleet = Fleet::start(3, &setup).await;
    let alone = setup.start();

    let variations = [
        ("GET", ""),
        ("GET", "Range: bytes=5-9\r\n"),
        ("HEAD", ""),
        ("GET", "If-None-Match: \"v1\"\r\n"),
        ("GET", "If-None-Match: W/\"v1\", \"g\"\r\n"),
        ("GET", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
        ("GET", "If-Match: \"other\"\r\n"),
        ("GET", "Range: bytes=-3\r\n"),
        ("GET", "Range: bytes=0-1,4-5\r\n"),
        ("GET", "Range: bytes=900000-\r\n"),
        ("GET", "Range: bytes=5-9\r\nIf-Range: \"v1\"\r\n"),
        ("GET", "Range: bytes=5-9\r\nIf-Range: \"other\"\r\n"),
        ("GET", "Accept-Encoding: gzip\r\n"),
        ("GET", "Cache-Control: no-cache\r\n"),
        ("GET", "Authorization: Basic eDp5\r\n"),
        ("GET", "Cookie: a=b\r\n"),
        ("HEAD", "Range: bytes=0-0\r\n"),
        ("GET", ""),
    ];
    let mut differing = Vec::new();
    let mut compare = async |place: &str, index: usize, target: &str, (method, lines): (&str, &str)| {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: test.example\r\n{lines}\r\n");
        let expected = mask_boundary(&seen(&alone, &request).await);
        let got = mask_boundary(&seen(&fleet.nodes[index], &request).await);
        if got != expected {
            differing.push(format!("{request:?} at the {place}:\n--- {}\n+++ {}", short(&expected), short(&got)));
        }
    };
    let places = [("owner", 0), ("next", 1), ("last", 2)];
    for (name, reply) in &replies {
        // Each place with a target of its own, cold at first on both sides; then all questions about that.
        for (place, offset) in places {
            let target = format!("/{name}?{place}");
            origin.on(&target, reply.clone());
            let owner = fleet.owner_of(&target).await;
            for variation in variations {
                compare(place, (owner + offset) % 3, &target, variation).await;
            }
        }
        // Each question as the first about its target, and once more.
        for (number, variation) in variations.into_iter().enumerate() {
            let (place, offset) = places[number % 3];
            let target = format!("/{name}?first-{number}");
            origin.on(&target, reply.clone());
            let owner = fleet.owner_of(&target).await;
            for _ in 0..2 {
                compare(place, (owner + offset) % 3, &target, variation).await;
            }
            compare(place, (owner + offset) % 3, &target, ("GET", "")).await;
        }
        // And one target for all places, asked of each in turn.
        let target = format!("/{name}");
        let request = format!("GET {target} HTTP/1.1\r\nHost: test.example\r\n\r\n");
        for node in fleet.nodes.iter().chain([&alone]) {
            seen(node, &request).await;
        }
        for index in 0..3 {
            for variation in variations {
                compare("shared target", index, &target, variation).await;
            }
        }
    }
    assert!(differing.is_empty(), "{} answers differ:\n{}", differing.len(), differing.join("\n\n"));
}

fn short(text: &str) -> String {
    text.chars().take(600).collect()
}

/// The boundary of a multipart answer is random.
fn mask_boundary(seen: &str) -> String {
    let Some(boundary) = seen.split("boundary=").nth(1).and_then(|rest| rest.lines().next()) else {
        return seen.to_owned();
    };
    seen.replace(boundary.trim_matches('"'), "BOUNDARY")
}

/// The first answer for a key is brought by a fill and written by the lane. When it may not be shared, that is remembered, and
/// further requests go through a full session of pingora, whose writer is another one. What passes is the origin's to answer: an
/// origin that serves no ranges sends the whole, and its 304 has the fields that it chose.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lane_and_a_full_session_answer_alike() {
    let origin = Origin::start().await;
    let text = "0123456789".repeat(50);
    let old = "Sun, 06 Nov 1994 08:49:37 GMT";
    let replies: Vec<(&str, Reply)> = vec![
        ("plain", Reply::ok(text.clone()).header("Content-Type", "text/plain")),
        ("tagged", Reply::ok(text.clone()).etag("\"v1\"").last_modified(old).ranges()),
        ("chunked", Reply::ok(text.clone()).chunked(7)),
        ("by-close", Reply::ok(text.clone()).until_close()),
        ("empty", Reply::ok("")),
        ("none", Reply::status(204, "").declare("")),
        ("missing", Reply::status(404, "no such thing\n")),
        ("moved", Reply::status(301, "").header("Location", "/plain")),
        ("cookie", Reply::ok("yours").header("Set-Cookie", "id=1")),
        ("twice", Reply::ok("two lines").header("X-A", "1").header("X-A", "2").header("X-B", "")),
        ("hop", Reply::ok("inside").header("Connection", "x-hop").header("X-Hop", "1")),
        ("old", Reply::ok("from HTTP/1.0").http10()),
        ("large", Reply::ok("x".repeat(300_000))),
    ];
    let requests = [
        ("GET", ""),
        ("HEAD", ""),
        ("GET", "Accept-Encoding: gzip\r\nUser-Agent: other\r\n"),
        ("GET", "Range: bytes=2-5\r\n"),
    ];
    let node = Setup::group(&format!("origin: '{}'", origin.url())).start();
    let mut differing = Vec::new();
    for (name, reply) in replies {
        let reply = reply.header("Cache-Control", "private");
        let asked = requests.iter().filter(|(_, lines)| name == "tagged" || !lines.starts_with("Range"));
        for (number, (method, lines)) in asked.enumerate() {
            let target = format!("/{name}-{number}");
            origin.on(&target, reply.clone());
            let request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
            let (by_lane, status) = seen_with_status(&node, &request).await;
            assert!(!status.contains("uncacheable"), "{request}: {status}");
            seen(&node, &format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
            let (by_session, status) = seen_with_status(&node, &request).await;
            assert!(status.contains("uncacheable"), "{request}: {status}");
            let (by_lane, by_session) = (without_reason(&by_lane), of_session(&by_session, *method == "HEAD"));
            if by_lane != by_session {
                differing.push(format!("{request:?}:\n--- {}\n+++ {}", short(&by_lane), short(&by_session)));
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n\n"));
}

/// pingora passes the origin's reason phrase on, which means nothing (RFC 9112 section 4), says that a connection stays, and to a
/// `HEAD` how the body would be framed (section 6.1).
fn of_session(answer: &str, is_head: bool) -> String {
    let own = |line: &&str| *line != "connection: keep-alive" && !(is_head && *line == "transfer-encoding: chunked");
    without_reason(&answer.split('\n').filter(own).collect::<Vec<_>>().join("\n"))
}

fn without_reason(answer: &str) -> String {
    let (status_line, rest) = answer.split_once('\n').unwrap_or_default();
    format!("{}\n{rest}", status_line.split(' ').nth(1).unwrap_or_default())
}
