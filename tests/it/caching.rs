//! nginx as origin, with real files, through one node and through a fleet: what nginx says is what clients get.

use crate::kit::client::{Answer, Client, Framing};
use crate::kit::fleet::Fleet;
use crate::kit::nginx::Nginx;
use crate::kit::node::{Node, Setup};
use crate::kit::poll;

/// Files are new here, so their age alone would give them no lifetime.
fn setup(nginx: &Nginx, lifetime: &str) -> Setup {
    let keys = "origin: '{}', freshness: { default: LIFETIME, heuristic_max: 0s, jitter: 0% }";
    Setup::group(&keys.replace("LIFETIME", lifetime).replace("{}", &nginx.url()))
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 131 + index / 253) as u8).collect()
}

fn text(length: usize) -> Vec<u8> {
    b"the quick brown fox jumps over the lazy dog\n".iter().copied().cycle().take(length).collect()
}

async fn straight(nginx: &Nginx, target: &str, lines: &str) -> Answer {
    let address = nginx.url().trim_start_matches("http://").parse().expect("an address");
    Client::connect(address).await.get_with(target, lines).await
}

/// The fields that nginx gave and that a cache may not change.
fn described(answer: &Answer) -> Vec<Option<String>> {
    let names = ["content-type", "etag", "last-modified", "content-encoding", "vary"];
    names.iter().map(|name| answer.head.field(name).map(str::to_owned)).collect()
}

/// How often nginx was asked for something whose line of the log holds this.
fn asked(nginx: &Nginx, what: &str) -> usize {
    nginx.log().iter().filter(|line| line.contains(what)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_come_through_unchanged_and_nginx_is_asked_once_for_each() {
    let Some(nginx) = Nginx::start() else { return };
    let files =
        [("empty.txt", 0), ("one.jpg", 1), ("page.html", 4096), ("large.jpg", 700_001), ("huge.bin", 5_000_000)];
    for (name, length) in files {
        nginx.write(name, bytes(length));
    }
    let fleet = Fleet::start(3, &setup(&nginx, "600s")).await;
    let alone = setup(&nginx, "600s").start();
    for (name, length) in files {
        let target = format!("/{name}");
        let reference = straight(&nginx, &target, "").await;
        for (index, node) in fleet.nodes.iter().chain([&alone]).enumerate() {
            for round in 0..2 {
                let answer = node.get(&target).await;
                assert_eq!(answer.status(), 200, "{name} from node {index}, round {round}");
                assert!(answer.body == bytes(length), "{name} from node {index}, round {round}");
                assert_eq!(described(&answer), described(&reference), "{name} from node {index}, round {round}");
                assert_eq!(answer.head.framing, Framing::Length(length as u64));
            }
        }
        // Once by this test itself, once by the fleet, once by the node alone.
        assert_eq!(asked(&nginx, &target), 3, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_and_single_ranges_are_answered_from_memory_as_nginx_would() {
    let Some(nginx) = Nginx::start() else { return };
    nginx.write("a.jpg", bytes(10_000));
    let reference = straight(&nginx, "/a.jpg", "").await;
    let tag = reference.head.field("etag").expect("an entity tag").to_owned();
    let date = reference.head.field("last-modified").expect("a date").to_owned();
    let fleet = Fleet::start(3, &setup(&nginx, "600s")).await;
    // Each node once, so that what follows needs the owner at most.
    for node in &fleet.nodes {
        node.get("/a.jpg").await;
    }
    for lines in [
        format!("If-None-Match: {tag}\r\n"),
        "If-None-Match: \"other\"\r\n".to_owned(),
        "If-None-Match: *\r\n".to_owned(),
        format!("If-Modified-Since: {date}\r\n"),
        "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n".to_owned(),
        "If-Match: \"other\"\r\n".to_owned(),
        "Range: bytes=0-0\r\n".to_owned(),
        "Range: bytes=100-199\r\n".to_owned(),
        "Range: bytes=9990-\r\n".to_owned(),
        "Range: bytes=-10\r\n".to_owned(),
        "Range: bytes=0-99999\r\n".to_owned(),
        "Range: bytes=10000-\r\n".to_owned(),
        "Range: nonsense\r\n".to_owned(),
        format!("Range: bytes=5-9\r\nIf-Range: {tag}\r\n"),
        format!("Range: bytes=5-9\r\nIf-Range: {date}\r\n"),
        "Range: bytes=5-9\r\nIf-Range: \"other\"\r\n".to_owned(),
    ] {
        let reference = straight(&nginx, "/a.jpg", &lines).await;
        for (index, node) in fleet.nodes.iter().enumerate() {
            let answer = node.connect().await.get_with("/a.jpg", &lines).await;
            assert_eq!(answer.status(), reference.status(), "{lines:?} from node {index}");
            assert_eq!(answer.head.field("content-range"), reference.head.field("content-range"), "{lines:?}");
            if matches!(answer.status(), 200 | 206) {
                assert!(answer.body == reference.body, "{lines:?} from node {index}");
            }
        }
    }
    let mut client = fleet.nodes[0].connect().await;
    client.send("HEAD /a.jpg HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(client.head().await.field("content-length"), Some("10000"));
    assert_eq!(client.get("/a.jpg").await.status(), 200, "no byte of a body followed the answer to HEAD");
    // By this test directly: one plain request and sixteen more.
    assert_eq!(asked(&nginx, "/a.jpg"), 1 + 17, "the fleet asked once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_range_brings_just_the_range() {
    let Some(nginx) = Nginx::start() else { return };
    nginx.write("film.bin", bytes(3_000_000));
    let fleet = Fleet::start(3, &setup(&nginx, "600s")).await;
    for (index, node) in fleet.nodes.iter().enumerate() {
        let answer = node.connect().await.get_with("/film.bin", "Range: bytes=1000000-1000999\r\n").await;
        assert_eq!(answer.status(), 206, "node {index}");
        assert_eq!(answer.head.field("content-range"), Some("bytes 1000000-1000999/3000000"));
        assert!(answer.body == bytes(3_000_000)[1_000_000..1_001_000], "node {index}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gzip_is_a_variant_of_its_own() {
    let Some(nginx) = Nginx::start() else { return };
    nginx.write("a.txt", text(20_000));
    let coded = straight(&nginx, "/a.txt", "Accept-Encoding: gzip\r\n").await;
    assert_eq!(coded.head.field("content-encoding"), Some("gzip"));
    let plain = straight(&nginx, "/a.txt", "").await;
    let fleet = Fleet::start(3, &setup(&nginx, "600s")).await;
    for round in 0..2 {
        for (index, node) in fleet.nodes.iter().enumerate() {
            for (lines, reference) in [
                ("", &plain),
                ("Accept-Encoding: gzip\r\n", &coded),
                ("Accept-Encoding: gzip, deflate, br;q=0.5\r\n", &coded),
                ("Accept-Encoding: identity\r\n", &plain),
                ("Accept-Encoding: gzip;q=0\r\n", &plain),
            ] {
                let answer = node.connect().await.get_with("/a.txt", lines).await;
                assert_eq!(answer.status(), 200);
                assert!(answer.body == reference.body, "{lines:?} from node {index}, round {round}");
                assert_eq!(described(&answer), described(reference), "{lines:?} from node {index}, round {round}");
            }
        }
    }
    // Each variant once directly and once by the fleet; `br` first is a set of its own, which nginx answers with gzip.
    let asked = asked(&nginx, "/a.txt");
    assert!((4..=5).contains(&asked), "{asked}: {:?}", nginx.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expired_is_confirmed_by_304_or_replaced() {
    let Some(nginx) = Nginx::start() else { return };
    nginx.write("a.txt", "first");
    let fleet = Fleet::start(3, &setup(&nginx, "1s")).await;
    let owner = fleet.owner_of("/a.txt").await;
    let (owner, other) = (&fleet.nodes[owner], &fleet.nodes[(owner + 1) % 3]);
    assert_eq!(other.get("/a.txt").await.text(), "first");
    let confirmed = || nginx.log().iter().any(|line| line.contains("/a.txt") && line.contains(" 304 "));
    poll::until("it expires and nginx confirms it", async || {
        let answer = other.get("/a.txt").await;
        assert_eq!((answer.status(), &*answer.text()), (200, "first"));
        confirmed()
    })
    .await;
    let fetched_whole = nginx.log().iter().filter(|line| line.contains(" 200 ")).count();
    assert_eq!(fetched_whole, 1, "the body came once: {:?}", nginx.log());
    // Same length, other content, other date: nginx's tag has both.
    nginx.write("a.txt", "changed");
    for node in [other, owner] {
        poll::until("the new content is served", async || node.get("/a.txt").await.text() == "changed").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_nginx_is_a_clear_error_for_new_keys_and_none_for_known_ones() {
    let Some(nginx) = Nginx::start() else { return };
    nginx.write("known.txt", "known");
    nginx.write("new.txt", "new");
    let fleet = Fleet::start(3, &setup(&nginx, "1s")).await;
    for node in &fleet.nodes {
        assert_eq!(node.get("/known.txt").await.text(), "known");
    }
    drop(nginx);
    for node in &fleet.nodes {
        let answer = node.get("/new.txt").await;
        assert_eq!(
            (answer.status(), &*answer.text()),
            (502, "502 the origin cannot be reached\n"),
            "{}",
            answer.head.text
        );
        assert!(!answer.head.text.contains("127.0.0.1"), "an address of the inside: {}", answer.head.text);
    }
    let stale = async |node: &Node| {
        let answer = node.get("/known.txt").await;
        assert_eq!((answer.status(), &*answer.text()), (200, "known"), "{}", answer.head.text);
        answer.head.cache_status().contains("stale")
    };
    for node in &fleet.nodes {
        poll::until("it expires and is served stale", async || stale(node).await).await;
    }
}
