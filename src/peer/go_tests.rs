use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::clock::ManualClock;
use crate::peer::client::{ClientSettings, NativePeer};
use crate::peer::dial::{PeerAddress, TcpDial, connector};
use crate::peer::go_client::{GoPeer, GoSettings, http_connector};
use crate::peer::handshake::Secrets;
use crate::peer::link::PeerLink;
use crate::peer::{LocalNode, Peer, PeerState};
use crate::source::{Ask, InterimSink, Method, ReadyBody, Source};

const NOW: Now = Now { monotonic: Duration::ZERO, wall_seconds: 1_800_000_000 };

#[test]
fn keys_as_go_has_them() {
    // Ours; Go's; whether a Go owner is asked for ours.
    for (key, go, carried) in [
        ("a.png", "a.png", true),
        ("a%20b.png", "a b.png", true),
        ("a+b", "a+b", true),
        ("a%2Bb", "a+b", false),
        ("a/b/c", "a/b/c", true),
        ("a%2Fb", "a/b", false),
        ("a/", "a/", true),
        ("/a", "/a", false),
        ("a//b", "a//b", false),
        ("a/./b", "a/./b", false),
        ("a/..", "a/..", false),
        (".", ".", false),
        ("..a/...", "..a/...", true),
        ("", "", false),
        ("%C3%BC.png", "ü.png", true),
        ("%c3%bc.png", "ü.png", false),
        ("a?w=1&h=2", "a?w=1&h=2", true),
        ("a%3Fw", "a?w", false),
        ("a?u=b%20c", "a?u=b%20c", true),
        ("a?u=http://b", "a?u=http://b", false),
        ("a%00b", "a\0b", true),
        ("~a!$&'()*,;=:@", "~a!$&'()*,;=:@", true),
        ("%7Ea", "~a", false),
        ("100%25", "100%", true),
    ] {
        assert_eq!(go_key(key.as_bytes()).as_deref(), Some(go.as_bytes()), "{key}");
        assert_eq!(go_can_carry(key.as_bytes()), carried, "{key}");
        assert!(!carried || key_from_go(go.as_bytes()) == key, "{key}");
    }
    for malformed in ["%", "%2", "a%zz", "%%41"] {
        assert_eq!(go_key(malformed.as_bytes()), None);
        assert!(!go_can_carry(malformed.as_bytes()));
    }
}

#[test]
fn questions_are_read_as_each_dialect_writes_them() {
    use Dialect::{Golang, Mailgun, V3};
    let base = "/_groupcache/";
    for (dialect, path, parsed) in [
        (Golang, "/_groupcache/g/a", Some("a")),
        (Golang, "/_groupcache/g/a+b", Some("a b")),
        (Golang, "/_groupcache/g/a%2Bb", Some("a+b")),
        (Golang, "/_groupcache/g/a%20b", Some("a b")),
        (Mailgun, "/_groupcache/g/a+b", Some("a+b")),
        (V3, "/_groupcache/g/a+b", Some("a+b")),
        (V3, "/_groupcache/g/a%2Fb%2f%2Fc", Some("a/b//c")),
        (Golang, "/_groupcache/g%2Fa", Some("a")),
        (Golang, "/_groupcache/g/", Some("")),
        (Golang, "/_groupcache/g/%3Fx", Some("?x")),
        (Golang, "/_groupcache/g/a?x", None),
        (Golang, "/_groupcache/g", None),
        (Golang, "/_groupcache//a", None),
        (Golang, "/_groupcache/g/%", None),
        (Golang, "/_groupcache/g/%4", None),
        (Golang, "/_groupcache/g/a b", None),
        (Golang, "/_groupcache/g/\u{fc}", None),
        (Golang, "/other/g/a", None),
    ] {
        let question = GoQuestion::parse(dialect, base, path.as_bytes());
        assert_eq!(
            question.as_ref().map(|question| &question.go_key[..]),
            parsed.map(str::as_bytes),
            "{dialect:?} {path}"
        );
        assert!(question.is_none_or(|question| question.group == "g"));
    }
    assert_eq!(GoQuestion::parse(Golang, base, b"/_groupcache/%ff/a"), None);
}

proptest! {
    #[test]
    fn every_go_key_has_one_key_of_ours(go in proptest::collection::vec(any::<u8>(), 0..40)) {
        let key = key_from_go(&go);
        prop_assert!(key.iter().all(|byte| byte.is_ascii_graphic()));
        if !go.contains(&b'?') {
            prop_assert_eq!(go_key(&key), Some(go));
        } else {
            // A query is kept as it came, so only what cannot stand in one is changed, once.
            prop_assert_eq!(key_from_go(&go_key(&key).unwrap()), key);
        }
    }

    #[test]
    fn what_we_ask_every_dialect_reads_alike(key in "[!-~]{0,40}") {
        if let Some(path) = question_path("/_groupcache/", "g", key.as_bytes()) {
            for dialect in [Dialect::Golang, Dialect::Mailgun, Dialect::V3] {
                let question = GoQuestion::parse(dialect, "/_groupcache/", path.as_bytes()).unwrap();
                prop_assert_eq!(Some(question.go_key.to_vec()), go_key(key.as_bytes()));
            }
        }
    }

    #[test]
    fn arbitrary_answers_and_paths_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = GoValue::decode(bytes.clone().into(), NOW);
        let _ = GoQuestion::parse(Dialect::Golang, "/_groupcache/", &bytes);
        let _ = go_can_carry(&bytes);
    }
}

/// Answers with what `make` makes, and keeps the question.
struct Fixed<F>(F, Mutex<Option<Ask>>);

#[async_trait]
impl<F: Fn() -> Result<Fetched, FetchError> + Send + Sync> Owner for Fixed<F> {
    async fn get_as_owner(&self, ask: Ask, context: AskContext, _: &dyn InterimSink) -> Result<Fetched, FetchError> {
        assert_eq!(context, AskContext::default());
        *self.1.lock() = Some(ask);
        (self.0)()
    }

    fn ask_for_key(&self, group: &str, key: Bytes) -> Option<Ask> {
        (group == "g").then(|| Ask {
            group: group.into(),
            target: [b"/", &key[..]].concat().into(),
            key,
            host: None,
            method: Method::Get,
            fields: Fields::empty(),
        })
    }
}

fn answer(status: u16, fields: &[(&str, &str)], hop: Option<Hop>) -> Result<Fetched, FetchError> {
    let fields = Fields::from_pairs(fields.iter().copied()).unwrap();
    let body = Box::new(ReadyBody::new(["val", "ue"].map(|part| Bytes::from_static(part.as_bytes()))));
    Ok(Fetched { status, fields, content_length: None, close_delimited: false, hop, body })
}

fn storable() -> Option<Hop> {
    let freshness = HopFreshness { remaining_milliseconds: 1500, age_milliseconds: 7, ..HopFreshness::default() };
    Some(Hop { shareable: true, storable: true, freshness, ..Hop::default() })
}

#[tokio::test]
async fn only_a_storable_200_becomes_a_value() {
    let typed = ("Content-Type", "image/png");
    type Make = Box<dyn Fn() -> Result<Fetched, FetchError> + Send + Sync>;
    let rows: Vec<(&str, Make, u16, u16)> = vec![
        ("value", Box::new(move || answer(200, &[typed], storable())), 200, 200),
        ("404", Box::new(|| answer(404, &[], storable())), 404, 404),
        ("410", Box::new(|| answer(410, &[], storable())), 404, 404),
        ("206", Box::new(|| answer(206, &[], storable())), 500, 503),
        ("301", Box::new(|| answer(301, &[], storable())), 500, 503),
        ("500", Box::new(|| answer(500, &[], storable())), 500, 503),
        ("no hop", Box::new(|| answer(200, &[], None)), 500, 503),
        ("private", Box::new(|| answer(200, &[], Some(Hop { shareable: false, ..storable().unwrap() }))), 500, 503),
        ("no-store", Box::new(|| answer(200, &[], Some(Hop { storable: false, ..storable().unwrap() }))), 500, 503),
        ("gzip", Box::new(|| answer(200, &[("Content-Encoding", "gzip")], storable())), 500, 503),
        ("identity", Box::new(|| answer(200, &[("Content-Encoding", "identity")], storable())), 200, 200),
        ("refused", Box::new(|| Err(FetchError::refused(504, "slow"))), 500, 503),
        ("unreachable", Box::new(|| Err(FetchError::unreachable("leaving"))), 500, 503),
    ];
    for (what, make, golang, fork) in rows {
        let owner = Fixed(make, Mutex::new(None));
        for (dialect, status) in [(Dialect::Golang, golang), (Dialect::Mailgun, fork), (Dialect::V3, fork)] {
            let answer = answer_go(&owner, dialect, "/_groupcache/", b"/_groupcache/g/a%20b", NOW, 100).await;
            assert_eq!(answer.status, status, "{what} {dialect:?}");
            let asked = owner.1.lock().take().unwrap();
            assert_eq!((&asked.key[..], &asked.target[..]), (&b"a%20b"[..], &b"/a%20b"[..]));
            assert_eq!(asked.fields.as_bytes().as_ref(), b"Accept-Encoding: identity\r\n");
            if status == 200 {
                let response = wire::GetResponse::decode(answer.body).unwrap();
                assert_eq!(response.value.as_deref(), Some(&b"value"[..]));
                let expire = 1_800_000_000 * 1_000_000_000 + 1_500_000_000;
                assert_eq!(response.expire, dialect.is_fork().then_some(expire));
            }
        }
        let long = answer_go(&owner, Dialect::V3, "/_groupcache/", b"/_groupcache/g/a", NOW, 4).await;
        assert_ne!(long.status, 200, "{what}: five bytes are more than four");
    }
    let owner = Fixed(|| panic!("not asked"), Mutex::new(None));
    for (path, status) in [("/_groupcache/g", 400), ("/_groupcache/g/%", 400), ("/_groupcache/other/a", 404)] {
        let answer = answer_go(&owner, Dialect::Golang, "/_groupcache/", path.as_bytes(), NOW, 100).await;
        assert_eq!(answer.status, status, "{path}");
    }
}

#[test]
fn a_stale_value_does_not_live_for_ever() {
    assert_eq!(expire_nanoseconds(NOW, -5), 1_800_000_000 * 1_000_000_000);
    assert_eq!(expire_nanoseconds(Now { wall_seconds: 0, ..NOW }, 0), 1);
    assert_eq!(expire_nanoseconds(NOW, i64::MAX), i64::MAX);
}

/// As Go's protobuf writes it: value, minute_qps, expire.
#[test]
fn recorded_bytes_of_go() {
    let golang = GoValue::decode(Bytes::from_static(b"\x0a\x05value"), NOW).unwrap();
    assert_eq!((&golang.value[..], golang.hop), (&b"value"[..], None));
    let rated = GoValue::decode(Bytes::from_static(b"\x0a\x01v\x11\0\0\0\0\0\0\xf8?"), NOW).unwrap();
    assert_eq!(&rated.value[..], b"v");
    let mut fork = vec![0x0a, 1, b'v', 0x18];
    prost::encoding::encode_varint((1_800_000_002 * 1_000_000_000u64) + 500_000_000, &mut fork);
    let hop = GoValue::decode(fork.into(), NOW).unwrap().hop.unwrap();
    assert_eq!((hop.freshness.remaining_milliseconds, hop.storable, hop.shareable), (2500, true, true));
    assert_eq!(GoValue::decode(Bytes::from_static(b"\x0a\x01v\x18\0"), NOW).unwrap().hop, None);
    assert_eq!(GoValue::decode(Bytes::new(), NOW).unwrap().value, "");
    assert!(GoValue::decode(Bytes::from_static(b"<html>"), NOW).is_err());
}

/// A Go server by recorded answers: the first line of each request goes into the list, the answer is found by path.
async fn go_server(answers: Vec<(&'static str, Vec<u8>)>) -> (PeerAddress, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = PeerAddress::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let (asked, answers) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answers));
    let log = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (log, answers) = (log.clone(), answers.clone());
            tokio::spawn(async move {
                loop {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    let head = String::from_utf8(head).unwrap();
                    let line = head.lines().next().unwrap().to_owned();
                    let answer =
                        answers.iter().find(|(path, _)| line.split(' ').nth(1) == Some(path)).map(|(_, answer)| answer);
                    log.lock().push(line);
                    stream.write_all(answer.unwrap()).await.unwrap();
                }
            });
        }
    });
    (address, asked)
}

fn http(status: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nX-Content-Type-Options: nosniff\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn link(address: PeerAddress, dialect: Option<Dialect>) -> PeerLink {
    let node = LocalNode::new("0.1.0", 1, Secrets::new(["secret"]));
    let dial = TcpDial::new(address.clone(), connector(None, None));
    let native = NativePeer::new(node, Box::new(dial), ClientSettings::default());
    match dialect {
        None => PeerLink::native(native),
        Some(dialect) => {
            let clock = Arc::new(ManualClock::new(1_800_000_000));
            let settings = GoSettings { value_bytes_max: 10, ..GoSettings::new(dialect) };
            PeerLink::on_go_ring(native, GoPeer::new(address, settings, http_connector(None, None), clock))
        }
    }
}

fn ask(key: &'static str) -> Ask {
    let (target, fields) = (format!("/{key}").into(), Fields::empty());
    Ask { group: "g".into(), key: key.into(), target, host: None, method: Method::Get, fields }
}

#[tokio::test]
async fn a_go_peer_is_found_out_and_asked_in_its_way() {
    let text = "text/plain; charset=utf-8";
    let protobuf = "application/x-protobuf";
    let mut far_too_long = b"\x0a\x80\x80\x08".to_vec();
    far_too_long.resize(128 * 1024 + 4, b'x');
    let answers = vec![
        ("/_groupcache/", http("400 Bad Request", text, b"bad request\n")),
        ("/_groupcache/g/a%20b", http("200 OK", protobuf, b"\x0a\x05value")),
        ("/_groupcache/g/missing", http("404 Not Found", text, b"no\n")),
        ("/_groupcache/g/failed", http("500 Internal Server Error", text, b"no\n")),
        ("/_groupcache/g/garbage", http("200 OK", protobuf, b"<html>")),
        ("/_groupcache/g/long", http("200 OK", protobuf, &far_too_long)),
    ];
    let (address, asked) = go_server(answers).await;
    let link = link(address, Some(Dialect::V3));
    let mut answer = link.fetch(&ask("a%20b")).await.unwrap();
    assert_eq!((answer.status, answer.content_length, &answer.hop), (200, Some(5), &None));
    assert_eq!(answer.body.chunk().await.unwrap().unwrap(), "value");
    assert!(link.is_go());
    assert_eq!((link.status().protocol, link.status().state), ("go", PeerState::Up));
    assert_eq!(link.fetch(&ask("missing")).await.unwrap().status, 404);
    for key in ["failed", "garbage", "long"] {
        assert!(matches!(link.fetch(&ask(key)).await, Err(FetchError::Unreachable(_))), "{key}");
    }
    assert!(matches!(link.status().state, PeerState::Down(_)));
    let asked_before = asked.lock().len();
    let private = Ask { fields: Fields::from_pairs([("Authorization", "x")]).unwrap(), ..ask("a%20b") };
    for refused in [ask("a//b"), ask("a%2Fb"), Ask { host: Some("h".into()), ..ask("a%20b") }, private] {
        assert!(matches!(link.fetch(&refused).await, Err(FetchError::Unreachable(_))));
    }
    assert_eq!(asked.lock().len(), asked_before, "what cannot be carried is not asked");
    assert!(link.peek(&ask("a%20b"), Default::default()).await.unwrap().is_none());
    assert_eq!(asked.lock()[..2], ["GET /_groupcache/ HTTP/1.1", "GET /_groupcache/g/a%20b HTTP/1.1"]);
}

#[tokio::test]
async fn outside_a_go_ring_a_refused_upgrade_is_an_error() {
    let text = "text/plain; charset=utf-8";
    let (address, asked) = go_server(vec![("/_groupcache/", http("400 Bad Request", text, b"bad request\n"))]).await;
    let link = link(address, None);
    let refused = FetchError::unreachable("the upgrade was answered with status 400");
    assert_eq!(link.fetch(&ask("a")).await.err(), Some(refused));
    assert!(!link.is_go());
    assert!(matches!(link.status().state, PeerState::Refused(_)));
    assert!(asked.lock().iter().all(|line| line == "GET /_groupcache/ HTTP/1.1"));
}

#[tokio::test]
async fn golang_peers_know_no_not_found() {
    let text = "text/plain; charset=utf-8";
    let answers = vec![
        ("/_groupcache/", http("400 Bad Request", text, b"bad request\n")),
        ("/_groupcache/g/missing", http("404 Not Found", text, b"no such group: g\n")),
    ];
    let (address, _) = go_server(answers).await;
    let link = link(address, Some(Dialect::Golang));
    assert!(matches!(link.fetch(&ask("missing")).await, Err(FetchError::Unreachable(_))));
}

/// How often a key is asked for, in the unit of Go: questions a second.
#[tokio::test]
async fn the_rate_of_a_key_is_told_and_heard() {
    let hot = || answer(200, &[], Some(Hop { minute_rate: 90, ..storable().unwrap() }));
    for dialect in [Dialect::Golang, Dialect::Mailgun, Dialect::V3] {
        let owner = Fixed(hot, Mutex::new(None));
        let answer = answer_go(&owner, dialect, "/_groupcache/", b"/_groupcache/g/a", NOW, 100).await;
        assert_eq!(wire::GetResponse::decode(answer.body.clone()).unwrap().minute_qps, Some(1.5));
        let heard = GoValue::decode(answer.body, NOW).unwrap().hop.map(|hop| hop.minute_rate);
        assert_eq!(heard, dialect.is_fork().then_some(90), "without an expiry everything is kept anyway");
    }
    for (rate, heard) in [(f64::NAN, 0), (-1.0, 0), (f64::INFINITY, u32::MAX), (1e300, u32::MAX)] {
        let response = wire::GetResponse { minute_qps: Some(rate), expire: Some(1), ..wire::GetResponse::default() };
        let value = GoValue::decode(response.encode_to_vec().into(), NOW).unwrap();
        assert_eq!(value.hop.unwrap().minute_rate, heard, "{rate}");
    }
}
