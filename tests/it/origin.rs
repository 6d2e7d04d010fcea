//! An origin over HTTP: good ones, broken ones, and those that lie.

use std::time::Duration;

use bytes::Bytes;
use groupcache_proxy::fields::Fields;
use groupcache_proxy::origin::{
    Balance, HeaderRules, Health, HostRule, HttpOrigin, OriginSettings, OriginUrl, SettingsError, Timeouts,
    UpstreamState,
};
use groupcache_proxy::source::{Ask, FetchError, Fetched, Method, Source};
use tokio::sync::watch;

use crate::kit::h2::{Ending, H2Origin};
use crate::kit::nginx::Nginx;
use crate::kit::origin::{Gate, Origin, Reply};

fn ask(target: &str, fields: &[(&str, &str)]) -> Ask {
    Ask {
        group: "test".into(),
        key: Bytes::new(),
        target: Bytes::copy_from_slice(target.as_bytes()),
        host: None,
        method: Method::Get,
        fields: Fields::from_pairs(fields.iter().copied()).unwrap(),
    }
}

fn settings(urls: &[&str]) -> OriginSettings {
    OriginSettings::new(urls.iter().map(|url| OriginUrl::parse(url).unwrap()).collect())
}

fn source(origin: &Origin) -> HttpOrigin {
    HttpOrigin::new(settings(&[&origin.url()])).unwrap()
}

async fn read(fetched: &mut Fetched) -> Result<Vec<u8>, FetchError> {
    let mut all = Vec::new();
    while let Some(chunk) = fetched.body.chunk().await? {
        assert!(!chunk.is_empty());
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

/// The whole outcome in one line: `200 body`, `200 body (by close)`, `200 part… broken`, `refused 502`, `unreachable`.
async fn outcome(source: &HttpOrigin, ask: &Ask) -> String {
    match source.fetch(ask).await {
        Ok(mut fetched) => {
            let close = if fetched.close_delimited { " (by close)" } else { "" };
            match read(&mut fetched).await {
                Ok(body) => format!("{} {}{close}", fetched.status, String::from_utf8_lossy(&body)),
                Err(FetchError::Broken(_)) => format!("{} broken", fetched.status),
                Err(other) => panic!("a body fails in one way only: {other:?}"),
            }
        }
        Err(FetchError::Refused { status, .. }) => format!("refused {status}"),
        Err(FetchError::Unreachable(_)) => "unreachable".to_owned(),
        Err(FetchError::Broken(reason)) => panic!("broken before the head: {reason}"),
    }
}

/// Every way to lie ends as a 502 or a visible break, and a connection that showed an anomaly is not used again.
#[tokio::test]
async fn a_lying_origin_is_refused_or_visibly_broken_and_its_connection_is_not_reused() {
    let large = "x".repeat(200_000);
    let raw = |text: &str| Reply::raw(text.to_owned()).close();
    let cases: Vec<(&str, Reply, &str)> = vec![
        ("declares more than it sends", Reply::ok("short").declare(9).close(), "200 broken"),
        ("declares less than it sends", Reply::ok("longer than that").declare(6), "200 longer"),
        ("closes in the middle", Reply::ok("0123456789").truncate_after(4), "200 broken"),
        ("resets in the middle", Reply::ok("0123456789").reset_after(4), "200 broken"),
        ("leaves out the last chunk", Reply::ok("0123456789").chunked(3).truncate_after(10), "200 broken"),
        ("resets between chunks", Reply::ok("0123456789").chunked(3).reset_after(5), "200 broken"),
        (
            "sends a chunk of no size",
            raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n"),
            "200 broken",
        ),
        (
            "sends a chunk without its end",
            raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd0\r\n\r\n"),
            "200 broken",
        ),
        ("sends two lengths", Reply::ok("12345").header("Content-Length", "6"), "refused 502"),
        ("sends the same length twice", Reply::ok("12345").header("Content-Length", "5"), "refused 502"),
        ("sends a list of lengths", Reply::ok("12345").declare("5, 5"), "refused 502"),
        ("sends a negative length", Reply::ok("12345").declare("-5"), "refused 502"),
        ("sends a signed length", Reply::ok("12345").declare("+5"), "refused 502"),
        ("sends a length that overflows", Reply::ok("12345").declare("18446744073709551621"), "refused 502"),
        ("frames in two ways", Reply::ok("12345").chunked(5).header("Content-Length", "5"), "refused 502"),
        (
            "uses an unknown transfer coding",
            Reply::ok("12345").declare("").header("Transfer-Encoding", "gzip").close(),
            "refused 502",
        ),
        ("codes twice", Reply::ok("12345").chunked(5).header("Transfer-Encoding", "chunked"), "refused 502"),
        ("chunks in HTTP/1.0", Reply::ok("12345").chunked(5).http10().close(), "refused 502"),
        ("sends a header of 200 kB", Reply::ok("12345").header("X-Large", &large), "refused 502"),
        ("sends 300 fields", (0..300).fold(Reply::ok("1"), |reply, _| reply.header("A", "b")), "refused 502"),
        ("floods with interim answers", Reply::ok("12345").interim(9), "refused 502"),
        ("floods and says nothing", raw(&"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000)), "refused 502"),
        ("puts a bare CR in a value", Reply::ok("12345").header("X-A", "b\rSet-Cookie: c"), "refused 502"),
        ("puts a NUL in a value", Reply::ok("12345").header("X-A", "b\0c"), "refused 502"),
        ("puts a space in a name", Reply::ok("12345").header("X A", "b"), "refused 502"),
        ("sends a part unasked", Reply::status(206, "12").header("Content-Range", "bytes 0-1/9"), "refused 502"),
        ("says 304 unasked", Reply::status(304, "").declare(""), "refused 502"),
        ("says 416 unasked", Reply::status(416, "no"), "refused 502"),
        ("switches protocols", Reply::status(101, "").declare("").header("Upgrade", "h2c"), "refused 502"),
        ("has a status of its own", Reply::status(700, "12345"), "refused 502"),
        (
            "answers twice at once",
            raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
            "200 hi",
        ),
        (
            "sends a body after 204",
            raw("HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            "204 ",
        ),
        ("speaks another protocol", raw("SSH-2.0-OpenSSH_9.2\r\n"), "refused 502"),
        ("says nothing and closes", raw(""), "refused 502"),
        ("closes within the head", raw("HTTP/1.1 200 OK\r\nContent-Le"), "refused 502"),
        ("lets the end of the connection end the body", Reply::ok("12345").until_close(), "200 12345 (by close)"),
        ("is of the last century", Reply::ok("12345").http10().until_close(), "200 12345 (by close)"),
    ];
    assert!(cases.len() >= 35);
    for (number, (what, reply, expected)) in cases.into_iter().enumerate() {
        let origin = Origin::start().await;
        let source = source(&origin);
        let target = format!("/{number}");
        origin.on(&target, reply);
        origin.on("/good", Reply::ok("good"));
        assert_eq!(outcome(&source, &ask(&target, &[])).await, expected, "an origin that {what}");
        assert_eq!(origin.requests(&target), 1, "an origin that {what} is asked once");
        let failed = expected.starts_with("refused") || expected.ends_with("broken");
        assert_eq!(source.snapshot()[0].errors, u64::from(failed), "an origin that {what}");
        assert_eq!(outcome(&source, &ask("/good", &[])).await, "200 good", "after an origin that {what}");
        assert_eq!(origin.connections(), 2, "a connection is not used again after an origin that {what}");
    }
}

#[tokio::test]
async fn good_answers_of_every_framing_come_through_and_the_connection_is_reused() {
    let origin = Origin::start().await;
    let source = source(&origin);
    origin.on("/length", Reply::ok("0123456789"));
    origin.on("/chunked", Reply::ok("0123456789").chunked(3));
    origin.on("/interim", Reply::ok("0123456789").interim(8));
    origin.on("/empty", Reply::ok(""));
    origin.on("/none", Reply::status(204, "").declare(""));
    origin.on("/error", Reply::status(503, "busy").header("Retry-After", "1"));
    for (target, expected) in [
        ("/length", "200 0123456789"),
        ("/chunked", "200 0123456789"),
        ("/interim", "200 0123456789"),
        ("/empty", "200 "),
        ("/none", "204 "),
        ("/error", "503 busy"),
        ("/absent", "404 not scripted\n"),
    ] {
        assert_eq!(outcome(&source, &ask(target, &[])).await, expected, "{target}");
        assert_eq!(
            outcome(&source, &Ask { method: Method::Head, ..ask(target, &[]) }).await,
            format!("{} ", &expected[..3])
        );
    }
    assert_eq!(origin.connections(), 1);
    let counted = &source.snapshot()[0];
    assert_eq!((counted.requests, counted.errors, counted.connect_failures, counted.in_flight), (14, 0, 0, 0));
    assert_eq!(counted.state, UpstreamState::Up);
}

/// The request is ours, byte for byte.
#[tokio::test]
async fn the_request_holds_the_target_as_given_one_host_and_nothing_of_the_connection() {
    let origin = Origin::start().await;
    let mut settings = settings(&[&format!("{}/base/", origin.url())]);
    settings.headers = HeaderRules::new([
        ("X-Key".to_owned(), Some("secret".to_owned())),
        ("Referer".to_owned(), None),
        ("accept".to_owned(), Some("image/webp".to_owned())),
    ])
    .unwrap();
    let source = HttpOrigin::new(settings.clone()).unwrap();
    let target = "/%61//b/%2F+%C3%a4/.~!$&'()*,;=:@?q=%20&&x=a+b?/&";
    let fields = [
        ("Accept", "image/avif"),
        ("Accept-Encoding", "gzip"),
        ("Referer", "http://elsewhere/"),
        ("Connection", "X-Kept"),
        ("Keep-Alive", "1"),
        ("TE", "trailers"),
        ("Transfer-Encoding", "chunked"),
        ("Content-Length", "5"),
        ("Upgrade", "h2c"),
        ("Expect", "100-continue"),
        ("Host", "evil"),
        ("X-Kept", "1"),
        ("Via", "1.1 somebody"),
    ];
    outcome(&source, &ask(target, &fields)).await;
    let request = origin.log().remove(0);
    let text = String::from_utf8(request.raw.to_vec()).unwrap();
    let (line, fields) = text.split_once("\r\n").unwrap();
    assert_eq!(line, format!("GET /base{target} HTTP/1.1"));
    let mut sent: Vec<&str> = fields.trim_end().split("\r\n").collect();
    sent.sort_unstable();
    let host = format!("Host: {}", origin.authority());
    let mut expected = vec![
        "Accept-Encoding: gzip",
        &host,
        "Via: 1.1 groupcache-proxy",
        "Via: 1.1 somebody",
        "X-Kept: 1",
        "X-Key: secret",
        "accept: image/webp",
    ];
    expected.sort_unstable();
    assert_eq!(sent, expected);

    let client = Ask { host: Some(Bytes::from_static(b"www.example:81")), ..ask("/", &[]) };
    for (rule, expected) in [
        (HostRule::Origin, origin.authority()),
        (HostRule::Client, "www.example:81".to_owned()),
        (HostRule::Name("cdn.example".to_owned()), "cdn.example".to_owned()),
    ] {
        let source = HttpOrigin::new(OriginSettings { host: rule, ..settings.clone() }).unwrap();
        outcome(&source, &client).await;
        assert_eq!(origin.last("/base/").fields("host"), [expected]);
    }
    // What cannot stand in a request line or a Host field does not get out.
    let before = origin.log().len();
    let source = HttpOrigin::new(OriginSettings { host: HostRule::Client, ..settings }).unwrap();
    for target in ["/a b", "/a#fragment", "/a\r\nX: y", "/a\0"] {
        assert_eq!(outcome(&source, &ask(target, &[])).await, "refused 502", "{target:?}");
    }
    for host in ["user@host", "a b", "a\r\nb", "a:99999", ""] {
        let ask = Ask { host: Some(Bytes::copy_from_slice(host.as_bytes())), ..ask("/", &[]) };
        assert_eq!(outcome(&source, &ask).await, "refused 502", "{host:?}");
    }
    assert_eq!(origin.log().len(), before);
}

#[tokio::test]
async fn conditional_and_ranged_questions_get_their_answers_and_coded_bodies_stay_coded() {
    let origin = Origin::start().await;
    let source = source(&origin);
    let reply = Reply::ok("0123456789").etag("\"v1\"").last_modified("Fri, 20 Nov 2026 10:00:00 GMT").ranges();
    origin.on("/a", reply.encoded("gzip", "not really gzip"));
    for (fields, expected) in [
        (&[("If-None-Match", "\"v1\"")][..], "304 "),
        (&[("If-None-Match", "\"v2\"")], "200 0123456789"),
        (&[("If-Modified-Since", "Fri, 20 Nov 2026 10:00:00 GMT")], "304 "),
        (&[("Range", "bytes=2-4")], "206 234"),
        (&[("Range", "bytes=2-4"), ("If-Range", "\"v1\"")], "206 234"),
        (&[("Range", "bytes=2-4"), ("If-Range", "\"v0\"")], "200 0123456789"),
        (&[("Accept-Encoding", "gzip")], "200 not really gzip"),
    ] {
        assert_eq!(outcome(&source, &ask("/a", fields)).await, expected, "{fields:?}");
    }
    let fetched = source.fetch(&ask("/a", &[("Accept-Encoding", "gzip")])).await.unwrap();
    assert_eq!(fetched.fields.get_str("content-encoding"), Some("gzip"));
    assert_eq!(fetched.fields.get_str("vary"), Some("Accept-Encoding"));
    assert_eq!(fetched.content_length, Some(15));
    assert!(!fetched.fields.contains("content-length"));
}

/// Waits are bounded: no head is 504, no more body is a break. Time is real here, because sockets are; the limits are short.
#[tokio::test]
async fn an_origin_that_stalls_is_given_up() {
    let origin = Origin::start().await;
    let mut settings = settings(&[&origin.url()]);
    let short = Duration::from_millis(100);
    settings.timeouts = Timeouts { first_byte: short, between_bytes: short, ..Timeouts::default() };
    let source = HttpOrigin::new(settings.clone()).unwrap();
    let gate = Gate::new();
    origin.on("/head", Reply::ok("x").hold(&gate));
    origin.on("/body", Reply::ok("0123456789").hold_after(4, &gate));
    origin.on("/chunks", Reply::ok("0123456789").chunked(2).hold_after(4, &gate));
    assert_eq!(outcome(&source, &ask("/head", &[])).await, "refused 504");
    assert_eq!(outcome(&source, &ask("/body", &[])).await, "200 broken");
    assert_eq!(outcome(&source, &ask("/chunks", &[])).await, "200 broken");
    origin.closed(3).await;
    settings.timeouts = Timeouts { total: short, ..Timeouts::default() };
    let source = HttpOrigin::new(settings).unwrap();
    assert_eq!(outcome(&source, &ask("/head", &[])).await, "refused 504");
}

#[tokio::test]
async fn bytes_are_passed_on_as_they_arrive() {
    let origin = Origin::start().await;
    let source = source(&origin);
    let gate = Gate::new();
    origin.on("/a", Reply::ok("0123456789").hold_after(0, &gate).hold_after(4, &gate));
    let (first, second) = (Gate::new(), Gate::new());
    origin.on("/b", Reply::ok("0123456789").hold_after(0, &first).hold_after(4, &second));
    let mut fetched = source.fetch(&ask("/b", &[])).await.unwrap();
    first.reached(1).await;
    first.open();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.extend_from_slice(&fetched.body.chunk().await.unwrap().unwrap());
    }
    assert_eq!(seen, b"0123");
    second.reached(1).await;
    second.open();
    assert_eq!(read(&mut fetched).await.unwrap(), b"456789");
}

#[tokio::test]
async fn dropping_an_answer_closes_its_connection_unless_the_rest_is_small() {
    let origin = Origin::start().await;
    let source = source(&origin);
    origin.on("/large", Reply::ok(vec![b'x'; 300_000]));
    drop(source.fetch(&ask("/large", &[])).await.unwrap());
    // Long before an idle connection in the pool would be closed.
    tokio::time::timeout(Duration::from_secs(10), origin.closed(1)).await.expect("the connection is closed");
    assert_eq!(source.snapshot()[0].in_flight, 0);

    let gate = Gate::new();
    origin.on("/small", Reply::ok("0123456789").hold_after(4, &gate));
    drop(source.fetch(&ask("/small", &[])).await.unwrap());
    gate.reached(1).await;
    gate.open();
    origin.on("/next", Reply::ok("next"));
    // The rest is read behind; a question that comes too early opens a connection of its own.
    while outcome(&source, &ask("/next", &[])).await == "200 next" && origin.last("/next").connection != 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(origin.last("/next").connection, 1);

    let gate = Gate::new();
    origin.on("/never", Reply::ok("x").hold(&gate));
    let before = origin.connections();
    let never = ask("/never", &[]);
    tokio::select! {
        _ = source.fetch(&never) => panic!("no head was sent"),
        () = gate.reached(1) => {}
    }
    origin.closed(2).await;
    assert!(origin.connections() <= before + 1);
}

/// An idle connection that the origin closes is no reason to fail, whichever moment it chooses.
#[tokio::test]
async fn a_dead_pooled_connection_is_replaced_once() {
    let origin = Origin::start().await;
    let source = source(&origin);
    origin.on("/first", Reply::ok("1"));
    assert_eq!(outcome(&source, &ask("/first", &[])).await, "200 1");
    // Closes on the reused connection without a byte, answers on the next.
    origin.on(
        "/second",
        Reply::made(|request, _| if request.connection == 0 { Reply::raw("").close() } else { Reply::ok("2") }),
    );
    assert_eq!(outcome(&source, &ask("/second", &[])).await, "200 2");
    assert_eq!((origin.requests("/second"), origin.connections()), (2, 2));
    // On a new connection the same is an answer: it is not asked for ever.
    origin.on("/third", Reply::raw("").close());
    assert_eq!(outcome(&source, &ask("/third", &[])).await, "refused 502");
    assert_eq!(origin.requests("/third"), 2);
    // The connection that replaced the dead one is pooled like any other.
    origin.on("/fourth", Reply::ok("4"));
    assert_eq!(outcome(&source, &ask("/fourth", &[])).await, "200 4");
    assert_eq!(outcome(&source, &ask("/fourth", &[])).await, "200 4");
    assert_eq!(origin.log()[origin.log().len() - 2].connection, origin.last("/fourth").connection);
}

#[tokio::test]
async fn a_list_is_asked_in_turn_and_the_next_one_only_when_nothing_was_sent() {
    let (one, two) = (Origin::start().await, Origin::start().await);
    let dead = Origin::start().await;
    let dead_url = dead.url();
    dead.kill().await;
    for (origin, name) in [(&one, "one"), (&two, "two")] {
        origin.on("/a", Reply::ok(name));
        origin.on("/broken", Reply::raw("").close());
    }
    let source = HttpOrigin::new(settings(&[&one.url(), &two.url()])).unwrap();
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(outcome(&source, &ask("/a", &[])).await);
    }
    assert_eq!(answers, ["200 one", "200 two", "200 one", "200 two"]);
    assert_eq!(outcome(&source, &ask("/broken", &[])).await, "refused 502");
    assert_eq!(two.requests("/broken"), 0, "a failure that was answered is not asked again elsewhere");

    let source = HttpOrigin::new(settings(&[&dead_url, &one.url()])).unwrap();
    for _ in 0..4 {
        assert_eq!(outcome(&source, &ask("/a", &[])).await, "200 one");
    }
    let counted = source.snapshot();
    assert_eq!(counted[0].connect_failures, 1, "passed over for a second after it failed");
    assert_eq!((counted[0].state, counted[1].state), (UpstreamState::Failing, UpstreamState::Up));
    let json = serde_json::to_value(&counted[0]).unwrap();
    assert_eq!(json["state"], "failing");

    let source = HttpOrigin::new(settings(&[&dead_url])).unwrap();
    assert_eq!(outcome(&source, &ask("/a", &[])).await, "unreachable");
    let source = HttpOrigin::new(OriginSettings { retries: 0, ..settings(&[&dead_url, &one.url()]) }).unwrap();
    assert_eq!(outcome(&source, &ask("/a", &[])).await, "unreachable");
}

#[tokio::test]
async fn the_least_busy_server_is_chosen_where_that_is_wanted() {
    let (one, two) = (Origin::start().await, Origin::start().await);
    let gate = Gate::new();
    for (origin, name) in [(&one, "one"), (&two, "two")] {
        origin.on("/a", Reply::ok(name));
        origin.on("/held", Reply::ok("0123456789").hold_after(1, &gate));
    }
    let least = OriginSettings { balance: Balance::LeastConnections, ..settings(&[&one.url(), &two.url()]) };
    let source = HttpOrigin::new(least).unwrap();
    let held = source.fetch(&ask("/held", &[])).await.unwrap();
    for _ in 0..3 {
        assert_eq!(outcome(&source, &ask("/a", &[])).await, "200 two");
    }
    drop(held);
}

#[tokio::test]
async fn servers_of_a_list_are_probed_and_a_single_one_never() {
    let (one, two) = (Origin::start().await, Origin::start().await);
    one.on("/health", Reply::status(500, "sick"));
    two.on("/health", Reply::ok("well"));
    for (origin, name) in [(&one, "one"), (&two, "two")] {
        origin.on("/base/a", Reply::ok(name));
    }
    let urls = [&one, &two].map(|origin| format!("{}/base", origin.url()));
    let mut list = settings(&[&urls[0], &urls[1]]);
    list.health = Health { path: Some("/health".to_owned()), every: Duration::from_millis(10) };
    let source = HttpOrigin::new(list).unwrap();
    let (stop, stopped) = watch::channel(false);
    let probing = tokio::spawn({
        let source = source.clone();
        async move { source.health_loop(stopped).await }
    });
    // The second probe begins after the first was judged.
    one.arrived("/health", 2).await;
    assert_eq!(source.snapshot()[0].state, UpstreamState::Down);
    for _ in 0..3 {
        assert_eq!(outcome(&source, &ask("/a", &[])).await, "200 two");
    }
    one.on("/health", Reply::ok("well"));
    let sick = one.requests("/health");
    one.arrived("/health", sick + 3).await;
    assert_eq!(source.snapshot()[0].state, UpstreamState::Up);
    stop.send(true).unwrap();
    probing.await.unwrap();

    // By connection: the state follows whether somebody listens.
    let dead = Origin::start().await;
    let dead_url = dead.url();
    dead.kill().await;
    let mut list = settings(&[&dead_url, &two.url()]);
    list.health.every = Duration::from_millis(10);
    let source = HttpOrigin::new(list).unwrap();
    let (_stop, stopped) = watch::channel(false);
    let before = two.connections();
    tokio::select! {
        () = source.health_loop(stopped) => panic!("stops only when told"),
        () = async { while two.connections() < before + 2 || source.snapshot()[0].state != UpstreamState::Down { tokio::task::yield_now().await } } => {}
    }
    assert_eq!(source.snapshot()[1].state, UpstreamState::Up);

    let alone = HttpOrigin::new(settings(&[&one.url()])).unwrap();
    let (_stop, stopped) = watch::channel(false);
    alone.health_loop(stopped).await;
}

#[tokio::test]
async fn a_host_name_is_resolved_and_all_its_addresses_are_tried() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("found"));
    // `localhost` has ::1 first on many machines, where nobody listens.
    let source = HttpOrigin::new(settings(&[&format!("http://localhost:{}", origin.address().port())])).unwrap();
    assert_eq!(outcome(&source, &ask("/a", &[])).await, "200 found");
    assert_eq!(origin.last("/a").field("host"), Some(format!("localhost:{}", origin.address().port()).as_str()));
    let source = HttpOrigin::new(settings(&["http://no-such-name.invalid/"])).unwrap();
    assert_eq!(outcome(&source, &ask("/a", &[])).await, "unreachable");
}

#[test]
fn settings_that_cannot_work_are_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("ca.pem");
    std::fs::write(&garbage, "no certificate").unwrap();
    let https = || settings(&["https://origin.test/"]);
    let absent = Some(folder.path().join("absent"));
    assert!(matches!(HttpOrigin::new(settings(&[])), Err(SettingsError::NoUrl)));
    for ca in [Some(garbage), absent] {
        assert!(matches!(HttpOrigin::new(OriginSettings { ca, ..https() }), Err(SettingsError::Certificates { .. })));
    }
    let health = Health { path: Some("health check".to_owned()), ..Health::default() };
    assert!(HttpOrigin::new(OriginSettings { health, ..settings(&["http://a/"]) }).is_err());
    let host = HostRule::Name("not a name".to_owned());
    assert!(HttpOrigin::new(OriginSettings { host, ..settings(&["http://a/"]) }).is_err());
}

#[tokio::test]
async fn nginx_with_real_files() {
    let Some(nginx) = Nginx::start() else { return };
    let text = "a line of text that compresses well\n".repeat(200);
    nginx.write("a.txt", &text);
    nginx.write("picture.jpg", vec![7; 300_000]);
    let source = HttpOrigin::new(settings(&[&nginx.url()])).unwrap();
    let mut whole = source.fetch(&ask("/a.txt", &[])).await.unwrap();
    assert_eq!((whole.status, whole.content_length, whole.close_delimited), (200, Some(text.len() as u64), false));
    let tag = whole.fields.get_str("etag").unwrap().to_owned();
    let date = whole.fields.get_str("last-modified").unwrap().to_owned();
    assert_eq!(read(&mut whole).await.unwrap(), text.as_bytes());

    assert_eq!(outcome(&source, &ask("/a.txt", &[("If-None-Match", &tag)])).await, "304 ");
    assert_eq!(outcome(&source, &ask("/a.txt", &[("If-Modified-Since", &date)])).await, "304 ");
    assert_eq!(outcome(&source, &ask("/a.txt", &[("Range", "bytes=2-5")])).await, "206 line");
    assert_eq!(
        outcome(&source, &ask("/a.txt", &[("Range", "bytes=2-5"), ("If-Range", "\"x\"")])).await,
        format!("200 {text}")
    );
    assert!(outcome(&source, &ask("/a.txt", &[("Range", "bytes=99999-")])).await.starts_with("416 "));

    let mut coded = source.fetch(&ask("/a.txt", &[("Accept-Encoding", "gzip")])).await.unwrap();
    assert_eq!(coded.fields.get_str("content-encoding"), Some("gzip"));
    assert_eq!(coded.fields.get_str("vary"), Some("Accept-Encoding"));
    let body = read(&mut coded).await.unwrap();
    assert!(body.starts_with(&[0x1f, 0x8b]) && body.len() < text.len());

    let head = source.fetch(&Ask { method: Method::Head, ..ask("/picture.jpg", &[]) }).await.unwrap();
    assert_eq!((head.status, head.content_length), (200, Some(300_000)));
    let mut picture = source.fetch(&ask("/picture.jpg", &[])).await.unwrap();
    assert_eq!(read(&mut picture).await.unwrap().len(), 300_000);
    nginx.delete("a.txt");
    assert!(outcome(&source, &ask("/a.txt", &[])).await.starts_with("404 "));

    let log = nginx.log();
    let connections: std::collections::HashSet<_> = log.iter().filter_map(|line| line.rsplit(' ').next()).collect();
    assert_eq!((log.len(), connections.len()), (10, 1), "one connection carries everything: {log:#?}");
}

#[tokio::test]
async fn nginx_over_tls_speaks_http_2_and_its_certificate_is_checked() {
    let Some(nginx) = Nginx::start() else { return };
    nginx.write("a.txt", "over TLS");
    nginx.write("large.jpg", vec![7; 3_000_000]);
    let trusting = |url: &str| HttpOrigin::new(OriginSettings { ca: Some(nginx.ca()), ..settings(&[url]) }).unwrap();
    let source = trusting(&nginx.tls_url());
    let mut whole = source.fetch(&ask("/a.txt", &[])).await.unwrap();
    assert_eq!(
        (whole.status, whole.content_length),
        (200, Some(8)),
        "{}",
        String::from_utf8_lossy(whole.fields.as_bytes())
    );
    let tag = whole.fields.get_str("etag").unwrap().to_owned();
    assert_eq!(read(&mut whole).await.unwrap(), b"over TLS");
    assert_eq!(outcome(&source, &ask("/a.txt", &[("If-None-Match", &tag)])).await, "304 ");
    assert_eq!(outcome(&source, &ask("/a.txt", &[("Range", "bytes=5-7")])).await, "206 TLS");
    assert_eq!(outcome(&source, &Ask { method: Method::Head, ..ask("/a.txt", &[]) }).await, "200 ");
    assert!(outcome(&source, &ask("/absent", &[])).await.starts_with("404 "));
    let mut large = source.fetch(&ask("/large.jpg", &[])).await.unwrap();
    assert_eq!(read(&mut large).await.unwrap().len(), 3_000_000);
    // A dropped stream leaves the connection to the others.
    let mut dropped = source.fetch(&ask("/large.jpg", &[])).await.unwrap();
    dropped.body.chunk().await.unwrap();
    drop(dropped);
    let many = (0..20).map(|_| {
        let source = source.clone();
        tokio::spawn(async move { outcome(&source, &ask("/a.txt", &[])).await })
    });
    for task in many.collect::<Vec<_>>() {
        assert_eq!(task.await.unwrap(), "200 over TLS");
    }
    assert!(nginx.log().iter().all(|line| line.contains(" HTTP/2.0 ")), "{:#?}", nginx.log());
    assert_eq!(source.snapshot()[0].errors, 0);

    let by_name = trusting(&nginx.tls_url().replace("127.0.0.1", "localhost"));
    assert_eq!(outcome(&by_name, &ask("/a.txt", &[])).await, "200 over TLS");
    let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("other.pem");
    std::fs::write(&ca, stranger.cert.pem()).unwrap();
    let distrusting = HttpOrigin::new(OriginSettings { ca: Some(ca), ..settings(&[&nginx.tls_url()]) }).unwrap();
    assert_eq!(outcome(&distrusting, &ask("/a.txt", &[])).await, "unreachable");
    assert_eq!(distrusting.snapshot()[0].connect_failures, 1);
}

/// However a stream ends that is not whole, nobody takes it for whole.
#[tokio::test]
async fn streams_of_http_2_that_end_early_are_broken() {
    use Ending::{Clean, Cut, HeadOnly, HeadWithoutBody, Reset, ResetBeforeHead, Short, Trailers};
    for (ending, expected) in [
        (Clean, "200 0123456789"),
        (Trailers, "200 0123456789"),
        (HeadOnly, "200 "),
        (HeadWithoutBody, "refused 502"),
        (Short, "200 broken"),
        (Reset(h2::Reason::INTERNAL_ERROR), "200 broken"),
        (Reset(h2::Reason::CANCEL), "200 broken"),
        (Reset(h2::Reason::NO_ERROR), "200 broken"),
        (ResetBeforeHead(h2::Reason::INTERNAL_ERROR), "refused 502"),
        // Asked again: the server did not look at the request, or wants it in the old protocol.
        (ResetBeforeHead(h2::Reason::REFUSED_STREAM), "200 old"),
        (ResetBeforeHead(h2::Reason::HTTP_1_1_REQUIRED), "200 old"),
        (Cut, "200 broken"),
    ] {
        let origin = H2Origin::start(vec![ending, Clean], usize::MAX).await;
        let source = HttpOrigin::new(OriginSettings { ca: Some(origin.ca()), ..settings(&[&origin.url()]) }).unwrap();
        assert_eq!(outcome(&source, &ask("/a", &[])).await, expected, "{ending:?}");
        assert_eq!(outcome(&source, &ask("/b", &[])).await, "200 0123456789", "after {ending:?}");
        assert_eq!(source.snapshot()[0].in_flight, 0);
    }
}

#[tokio::test]
async fn an_http_2_connection_is_shared_and_a_closing_one_replaced() {
    let target = "/%61//b/%2F+%C3%a4/.~!$&'()*,;=:@?q=%20&&x=a+b?/&";
    let origin = H2Origin::start(vec![Ending::Clean], usize::MAX).await;
    let source = HttpOrigin::new(OriginSettings { ca: Some(origin.ca()), ..settings(&[&origin.url()]) }).unwrap();
    for _ in 0..5 {
        assert_eq!(outcome(&source, &ask(target, &[("Accept", "image/webp")])).await, "200 0123456789");
    }
    assert_eq!(origin.connections(), 1);
    let request = &origin.log()[0];
    assert_eq!(request.uri.path_and_query().unwrap().as_str(), target);
    assert_eq!(format!("https://{}", request.uri.authority().unwrap()), origin.url());
    let mut names: Vec<&str> = request.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "via"]);

    // Every connection says goodbye after its first stream.
    let origin = H2Origin::start(vec![Ending::Clean], 1).await;
    let source = HttpOrigin::new(OriginSettings { ca: Some(origin.ca()), ..settings(&[&origin.url()]) }).unwrap();
    for _ in 0..5 {
        assert_eq!(outcome(&source, &ask("/a", &[])).await, "200 0123456789");
    }
}
