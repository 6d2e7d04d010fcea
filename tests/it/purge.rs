//! Purges through every door of real processes, and what a fleet says of nodes that do not answer.

use std::net::SocketAddr;

use serde_json::Value;

use crate::kit::client::{self, Client};
use crate::kit::fleet::Fleet;
use crate::kit::node::{self, Node, Setup};
use crate::kit::origin::{Origin, Reply};
use crate::kit::poll;

const FRESH: &str = "max-age=600";

fn setup(origin: &Origin) -> Setup {
    Setup::group(&format!("origin: '{}'", origin.url()))
}

/// Sends a request with a body, and reads the answer.
async fn send(address: SocketAddr, method: &str, target: &str, lines: &str, body: &str) -> client::Answer {
    let mut client = Client::connect(address).await;
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let host = if lines.contains("Host:") { String::new() } else { format!("Host: {address}\r\n") };
    client.send(format!("{method} {target} HTTP/1.1\r\n{host}{lines}{length}\r\n{body}")).await;
    client.answer().await
}

const JSON: &str = "Content-Type: application/json\r\n";

async fn purge(node: &Node, body: &str) -> (u16, Value) {
    let answer = send(node.admin, "POST", "/_groupcache/purge", JSON, body).await;
    let receipt = if answer.status() == 400 { Value::String(answer.text()) } else { answer.json() };
    (answer.status(), receipt)
}

async fn text_of(node: &Node, target: &str) -> String {
    node.get(target).await.text()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_through_each_door_reaches_every_node() {
    let origin = Origin::start().await;
    let fleet = Fleet::start(3, &setup(&origin)).await;
    let doors: [(&str, &[&str]); 10] = [
        (r#"{"group":"all","key":"a?w=1"}"#, &[]),
        (r#"{"group":"all","keys":["b","a?w=1"]}"#, &[]),
        (r#"{"group":"all","prefix":"a"}"#, &[]),
        (r#"{"group":"all","paths":["/a"]}"#, &[]),
        (r#"{"url":"/a?w=1"}"#, &[]),
        (r#"{"tags":["first"],"soft":true}"#, &[]),
        (r#"{"group":"all","all":true}"#, &[]),
        ("", &["purge", "/a?w=1"]),
        ("", &["purge", "--tag", "second", "--soft"]),
        ("PURGE", &[]),
    ];
    for (index, (body, command)) in doors.into_iter().enumerate() {
        let old =
            Reply::ok(format!("old {index}")).header("Cache-Control", FRESH).header("Surrogate-Key", "first second");
        origin.on("/a?w=1", old);
        purge(&fleet.nodes[0], r#"{"group":"all","all":true}"#).await;
        for node in &fleet.nodes {
            assert_eq!(text_of(node, "/a?w=1").await, format!("old {index}"));
        }
        origin.on("/a?w=1", Reply::ok(format!("new {index}")).header("Cache-Control", FRESH));
        let teller = &fleet.nodes[index % 3];
        match (body, command) {
            ("PURGE", _) => {
                let answer = send(teller.address, "PURGE", "/a?w=1", "", "").await;
                assert_eq!(answer.status(), 200, "{}", answer.text());
                assert_eq!(answer.json()["complete"], true);
            }
            ("", command) => {
                let url = teller.admin_url();
                let command = [command, &["--node", &url]].concat();
                let output = node::run(&teller.folder(), &command);
                assert_eq!(output.status.code(), Some(0), "{command:?}: {output:?}");
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                assert_eq!(said.matches("confirmed").count(), 3, "{said}");
            }
            (body, _) => {
                let (status, receipt) = purge(teller, body).await;
                assert_eq!((status, &receipt["complete"]), (200, &true.into()), "{body}: {receipt}");
                let nodes = receipt["nodes"].as_array().expect("nodes");
                assert_eq!(nodes.len(), 3, "{receipt}");
                assert!(nodes.iter().all(|node| node["state"] == "confirmed" && node["url"] != ""), "{receipt}");
                assert!(receipt["entries"].as_u64() >= Some(1), "{receipt}");
            }
        }
        for (number, node) in fleet.nodes.iter().enumerate() {
            assert_eq!(text_of(node, "/a?w=1").await, format!("new {index}"), "{body} {command:?} at node {number}");
        }
    }
    assert!(fleet.nodes.iter().all(|node| !node.log().contains("panic")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_purge_and_what_is_no_purge() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("a").header("Cache-Control", FRESH).header("Cache-Tag", "t, two words"));
    let setup = Setup { admin: "read_token: reading-token-12, token: acting-token-12".into(), ..setup(&origin) };
    let node = setup.start();
    node.get("/a").await;
    let whole = r#"{"group":"all","key":"b"}"#;
    let acting = "Content-Type: application/json\r\nAuthorization: Bearer acting-token-12\r\n";
    let (admin, clients) = (node.admin, node.address);
    for (address, lines, body, expected) in [
        (admin, JSON, whole, 200),
        (admin, acting, whole, 200),
        (admin, "Content-Type: application/json; charset=utf-8\r\n", whole, 200),
        (admin, "Content-Type: application/json\r\nOrigin: http://evil.example\r\n", whole, 401),
        (admin, "Content-Type: application/json\r\nSec-Fetch-Site: cross-site\r\n", whole, 401),
        (admin, "Content-Type: application/json\r\nHost: evil.example\r\n", whole, 401),
        (admin, "Content-Type: application/json\r\nHost: localhost:1\r\n", whole, 200),
        (admin, "Content-Type: application/json\r\nX-Forwarded-For: 192.0.2.1\r\n", whole, 401),
        (admin, "Content-Type: application/json\r\nAuthorization: Bearer reading-token-12\r\n", whole, 401),
        (admin, "Content-Type: application/json\r\nAuthorization: Bearer wrong\r\n", whole, 401),
        (admin, "Content-Type: text/plain\r\n", whole, 401),
        (admin, "Content-Type: text/plain\r\nAuthorization: Bearer acting-token-12\r\n", whole, 415),
        (clients, JSON, whole, 404),
        (clients, acting, whole, 404),
        (admin, JSON, "", 400),
        (admin, JSON, "nonsense", 400),
        (admin, JSON, "{}", 400),
        (admin, JSON, r#"{"group":"all"}"#, 400),
        (admin, JSON, r#"{"key":"a"}"#, 400),
        (admin, JSON, r#"{"group":"none","key":"a"}"#, 400),
        (admin, JSON, r#"{"group":"all","key":"a","prefix":"b"}"#, 400),
        (admin, JSON, r#"{"group":"all","key":7}"#, 400),
        (admin, JSON, r#"{"group":"all","key":"a","later":true}"#, 400),
        (admin, JSON, r#"{"all":true}"#, 400),
        (admin, JSON, r#"{"url":"/../a"}"#, 400),
        (admin, JSON, r#"{"tag":""}"#, 400),
        (admin, JSON, r#"{"tag":"t","timeout":"soon"}"#, 400),
        (admin, JSON, r#"{"tag":"t","timeout":-1}"#, 400),
    ] {
        let answer = send(address, "POST", "/_groupcache/purge", lines, body).await;
        assert_eq!(answer.status(), expected, "{lines:?} {body}: {}", answer.text());
    }
    let large = format!(r#"{{"tag":"{}"}}"#, "t".repeat(200_000));
    assert_eq!(send(admin, "POST", "/_groupcache/purge", JSON, &large).await.status(), 413);
    assert_eq!(send(admin, "GET", "/_groupcache/purge", JSON, "").await.status(), 405);
    for lines in ["Origin: http://evil.example\r\n", "Authorization: Bearer wrong\r\n", "Via: 1.1 other\r\n"] {
        assert_eq!(send(clients, "PURGE", "/a", lines, "").await.status(), 403, "{lines}");
    }
    assert_eq!(send(clients, "PURGE", "/_groupcache/stats", "", "").await.status(), 404);
    let rejects = node.stats().await["rejects"].clone();
    let counted: u64 = rejects.as_object().expect("reasons").values().filter_map(Value::as_u64).sum();
    assert!(counted >= 10, "each is counted by its reason: {rejects}");
    let explained = client::get(admin, "/_groupcache/explain?path=/a").await.json();
    assert_eq!(explained["tags"], serde_json::json!(["t", "two words"]));
    assert_eq!(explained["stored"], "main", "nobody purged it");
    assert_eq!(origin.log().iter().filter(|request| request.method == "PURGE").count(), 0);
    let dry = send(admin, "POST", "/_groupcache/purge", JSON, r#"{"tag":"two words","dry_run":true}"#).await.json();
    assert_eq!(dry["entries"], 1);
    assert_eq!(send(clients, "PURGE", "/a", "", "").await.json()["entries"], 1);
    assert_eq!(node.stats().await["purge"]["unconfirmed"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_node_is_named_told_again_and_never_answers_with_what_was_purged() {
    let origin = Origin::start().await;
    let fleet = Fleet::start(3, &setup(&origin)).await;
    for number in 0..20 {
        origin.on(&format!("/{number}"), Reply::ok("old").header("Cache-Control", FRESH));
        for node in &fleet.nodes {
            text_of(node, &format!("/{number}")).await;
        }
    }
    let (teller, frozen) = (&fleet.nodes[0], &fleet.nodes[2]);
    frozen.signal("STOP");
    for number in 0..20 {
        origin.on(&format!("/{number}"), Reply::ok("new").header("Cache-Control", FRESH));
    }
    let (status, receipt) = purge(teller, r#"{"group":"all","all":true,"timeout":"500ms"}"#).await;
    assert_eq!((status, &receipt["complete"]), (503, &false.into()), "{receipt}");
    let states: Vec<_> =
        receipt["nodes"].as_array().unwrap().iter().map(|node| node["state"].as_str().unwrap()).collect();
    assert_eq!(states.iter().filter(|state| **state == "unreachable").count(), 1, "{receipt}");
    let (status, _) = purge(teller, r#"{"group":"all","all":true,"timeout":"500ms","accept_partial":true}"#).await;
    assert_eq!(status, 207);
    let url = teller.admin_url();
    let output =
        node::run(&teller.folder(), &["purge", "--group", "all", "--all", "--timeout", "500ms", "--node", &url]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(teller.stats().await["purge"]["unconfirmed"].as_u64().unwrap() >= 3);
    frozen.signal("CONT");
    poll::until("the frozen node confirms", async || teller.stats().await["purge"]["unconfirmed"] == 0).await;
    for number in 0..20 {
        for node in &fleet.nodes {
            assert_eq!(text_of(node, &format!("/{number}")).await, "new");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsafe_request_purges_everywhere() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("old").header("Cache-Control", FRESH));
    let fleet = Fleet::start(3, &setup(&origin)).await;
    for node in &fleet.nodes {
        assert_eq!(text_of(node, "/a").await, "old");
    }
    origin.on("/a", Reply::ok("new").header("Cache-Control", FRESH));
    assert_eq!(send(fleet.nodes[1].address, "PUT", "/a", "", "x").await.status(), 200);
    for node in &fleet.nodes {
        assert_eq!(text_of(node, "/a").await, "new");
    }
}

/// What is too long or too much to be said in one frame between nodes is said otherwise, and never stands in the way of what
/// comes after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purges_of_any_size_reach_every_node() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("old").header("Cache-Control", FRESH));
    let fleet = Fleet::start(3, &setup(&origin)).await;
    let long = "x".repeat(20_000);
    let elsewhere = format!("/{long}");
    origin.on("/form", Reply::ok("done").header("Location", &elsewhere));
    assert_eq!(send(fleet.nodes[0].address, "POST", "/form", "", "x").await.status(), 200);
    let paths: Vec<String> = (0..500).map(|number| format!("/{number}{}", "p".repeat(230))).collect();
    let paths = serde_json::json!({"group": "all", "paths": paths}).to_string();
    for (body, expected) in [
        (format!(r#"{{"group":"all","key":"{long}"}}"#), 200),
        (format!(r#"{{"group":"all","prefix":"{long}"}}"#), 200),
        (format!(r#"{{"tag":"{long}"}}"#), 400),
        (paths.clone(), 200),
        (paths.replace("{\"group\"", "{\"dry_run\":true,\"group\""), 200),
    ] {
        let (status, receipt) = purge(&fleet.nodes[0], &body).await;
        assert_eq!(status, expected, "{} {receipt}", &body[..60]);
    }
    for node in &fleet.nodes {
        assert_eq!(text_of(node, "/a").await, "old");
    }
    origin.on("/a", Reply::ok("new").header("Cache-Control", FRESH));
    let (status, receipt) = purge(&fleet.nodes[0], r#"{"url":"/a"}"#).await;
    assert!(status == 200 && receipt["entries"].as_u64() >= Some(1), "{receipt}");
    for node in &fleet.nodes {
        assert_eq!(text_of(node, "/a").await, "new");
    }
}

/// What a fork's `Set` sends: group, key, value.
fn set_request(key: &str, value: &str) -> String {
    let field =
        |number: u8, text: &str| format!("{}{}{text}", char::from(number << 3 | 2), char::from(text.len() as u8));
    [field(1, "all"), field(2, key), field(3, value)].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_peers_set_values_only_where_they_may() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("of the origin").header("Cache-Control", FRESH));
    let with_default = Setup::group(&format!("origin: '{}', freshness: {{ default: 60s }}", origin.url()));
    for (ring, keys, expected, text) in [
        ("mailgun", "accept_set: true", 200, "set"),
        ("mailgun", "", 405, "of the origin"),
        ("groupcache", "accept_set: true", 405, "of the origin"),
    ] {
        let fleet = Fleet::with(1, &with_default, &format!("ring: {ring}, go: {{ {keys} }}")).await;
        let node = &fleet.nodes[0];
        node.get("/a").await;
        for (target, body, status) in [
            ("/_groupcache/all/a", set_request("a", "set"), expected),
            ("/_groupcache/all/a", set_request("b", "set"), if expected == 200 { 400 } else { expected }),
            ("/_groupcache/all/a", "nonsense".to_owned(), if expected == 200 { 400 } else { expected }),
            ("/_groupcache/none/a", set_request("a", "set"), if expected == 200 { 400 } else { expected }),
        ] {
            let answer = send(node.address, "PUT", target, "", &body).await;
            assert_eq!(answer.status(), status, "{ring} {keys} {target} {body:?}: {}", answer.text());
        }
        // Who is not listed is refused before its body is read.
        let stranger =
            send(node.address, "PUT", "/_groupcache/all/a", "X-Forwarded-For: 192.0.2.1\r\n", &set_request("a", "x"))
                .await;
        assert!(matches!(stranger.status(), 403 | 404), "{}", stranger.text());
        assert_eq!(text_of(node, "/a").await, text, "{ring} {keys}");
    }
}

/// A server that answers as a fork of groupcache does, and what it is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_peers_are_told_of_keys_and_tell_of_them() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("old").header("Cache-Control", FRESH));
    let go = Origin::start().await;
    let no = Reply::status(400, "bad request\n")
        .header("Content-Type", "text/plain; charset=utf-8")
        .header("X-Content-Type-Options", "nosniff");
    go.on("/_groupcache/", no);
    go.on("/_groupcache/all/a", Reply::ok(""));
    let [address] = node::free_addresses(1)[..] else { panic!("one address") };
    for (ring, key, all, deleted) in [
        ("mailgun", (200, "confirmed"), (503, "cannot_purge"), 200),
        ("groupcache", (503, "cannot_purge"), (503, "cannot_purge"), 405),
    ] {
        let fleet = format!(
            "fleet: {{ self: 'http://{address}', peers: ['http://{address}', '{}'], ring: {ring} }}\n",
            go.url()
        );
        let setup = setup(&origin);
        let node = Setup { address, more: format!("{}{fleet}", setup.more), ..setup }.start();
        poll::until("the Go peer is known", async || node.stats().await["fleet"]["peers"][0]["protocol"] == "go").await;
        for (body, (status, state)) in [(r#"{"group":"all","key":"a"}"#, key), (r#"{"group":"all","all":true}"#, all)] {
            let (answered, receipt) = purge(&node, body).await;
            assert_eq!(
                (answered, receipt["nodes"][1]["state"].as_str()),
                (status, Some(state)),
                "{ring} {body}: {receipt}"
            );
        }
        node.get("/a").await;
        let before = node.stats().await["purge"]["sequence"].as_u64().unwrap();
        let answer = send(node.address, "DELETE", "/_groupcache/all/a", "", "").await;
        assert_eq!(answer.status(), deleted, "{ring}: {}", answer.text());
        let after = node.stats().await["purge"]["sequence"].as_u64().unwrap();
        assert_eq!(after - before, u64::from(deleted == 200), "{ring}");
        // A name that no group has goes no further.
        let answer = send(node.address, "DELETE", "/_groupcache/user.profiles/a", "", "").await;
        assert_eq!(answer.status(), if deleted == 200 { 404 } else { deleted }, "{ring}: {}", answer.text());
        assert_eq!(node.stats().await["purge"]["sequence"].as_u64(), Some(after), "{ring}");
    }
    let deletes = go.log().into_iter().filter(|request| request.method == "DELETE");
    assert!(deletes.clone().count() >= 1, "told of the purge");
    assert!(deletes.map(|request| request.target).all(|target| target == "/_groupcache/all/a"));
}
