//! What clients, operators and strangers get wrong: a clear error to whoever caused it, a counter, a line of the log without
//! secrets, nothing stored, nobody else disturbed.

use serde_json::Value;
use tempfile::TempDir;

use crate::kit::client::{self, Client};
use crate::kit::node::{Node, Setup, free_addresses, run};
use crate::kit::origin::{Origin, Reply};
use crate::kit::poll;

/// Everything that a person may get wrong in one file, each with the beginning of the line that says so.
#[test]
fn a_wrong_configuration_starts_nothing_and_every_mistake_has_its_line() {
    let cases: &[(&str, &[&str])] = &[
        ("", &["proxy.yaml"]),
        ("groups: []\n", &["proxy.yaml:1:9: groups"]),
        ("groups:\n  - name: a\n", &["proxy.yaml:2:5: groups[0]"]),
        ("groups:\n\t- name: a\n", &["proxy.yaml:2:"]),
        ("groups: [{ name: a, origin: 'http://127.0.0.1:9' }\n", &["proxy.yaml:"]),
        (
            "memory: lots\nthreads: -1\nevction: lru\ngroups:\n  - name: a/b\n    origin: http://127.0.0.1:9\n",
            &[
                "proxy.yaml:1:9: memory",
                "proxy.yaml:2:10: threads",
                "proxy.yaml:3:1: evction",
                "proxy.yaml:5:11: groups[0].name",
            ],
        ),
        (
            "groups:\n  - name: a\n    origin: ftp://127.0.0.1\n  - name: a\n    origin: http://127.0.0.1:9\n    directory: .\n",
            &[
                "proxy.yaml:3:13: groups[0].origin",
                "proxy.yaml:4:5: groups[1].match",
                "proxy.yaml:4:11: groups[1].name",
                "proxy.yaml:6:16: groups[1].directory",
            ],
        ),
        (
            "listen: [{ address: nowhere }]\ngroups: [{ name: health, directory: not-there }]\n",
            &[
                "proxy.yaml:1:21: listen[0].address",
                "proxy.yaml:2:18: groups[0].name",
                "proxy.yaml:2:37: groups[0].directory",
            ],
        ),
        (
            "fleet:\n  peers: ['http://192.0.2.4:8082', 'http://192.0.2.5:8082']\ngroups: [{ name: a, origin: 'http://127.0.0.1:9' }]\n",
            &["proxy.yaml:2:3: fleet.secret"],
        ),
        (
            "fleet: { peers: ['http://192.0.2.4:8082'], secret: short }\ngroups: [{ name: a, origin: 'http://127.0.0.1:9' }]\n",
            &["proxy.yaml:1:52: fleet.secret"],
        ),
        (
            "admin: { token: '${NOT_SET_ANYWHERE}' }\ngroups: [{ name: a, origin: 'http://127.0.0.1:9' }]\n",
            &["proxy.yaml:1:17: admin.token"],
        ),
    ];
    for (text, expected) in cases {
        let folder = TempDir::new().expect("a temporary folder");
        std::fs::write(folder.path().join("proxy.yaml"), text).expect("writing the configuration");
        for command in ["check", "run"] {
            let output = run(folder.path(), &[command, "--config", "proxy.yaml"]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{command} {text:?}: {said}");
            for line in *expected {
                assert!(said.lines().any(|said| said.starts_with(line)), "{command} {text:?}: no {line} in\n{said}");
            }
            assert_eq!(said.lines().count(), expected.len(), "{command} {text:?}: every mistake once, in\n{said}");
            assert!(!said.contains("short"), "a secret is shown: {said}");
        }
    }
    let folder = TempDir::new().expect("a temporary folder");
    let output = run(folder.path(), &["run", "--config", "not-there.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not-there.yaml"));
}

/// A node that logs every request that fails.
fn start(groups: &str, more: &str) -> Node {
    let folder = TempDir::new().expect("a temporary folder");
    let text = format!(
        "listen: [{{ address: '127.0.0.1:0' }}]\nadmin: {{ address: '127.0.0.1:0', token: 'admin-secret-0123' }}\n\
         log: {{ format: json, access: errors }}\nmemory: 64MiB\nthreads: 2\nshutdown: {{ delay: 0s, timeout: 20s }}\n{more}groups: {groups}\n"
    );
    std::fs::write(folder.path().join("proxy.yaml"), text).expect("writing the configuration");
    let node = Node::run(folder, &[], &["run", "--config", "proxy.yaml"]);
    node.wait_until_ready();
    node
}

fn rejects(stats: &Value) -> u64 {
    stats["rejects"].as_object().expect("rejects").values().filter_map(Value::as_u64).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_request_is_refused_counted_logged_and_reaches_nobody() {
    let origin = Origin::start().await;
    origin.on("/good", Reply::ok("good").header("Cache-Control", "max-age=600"));
    let node = start(&format!("[{{ name: all, origin: '{}' }}]", origin.url()), "");
    let mut neighbour = node.connect().await;
    assert_eq!(neighbour.get("/good").await.text(), "good");

    let long = "k".repeat(9 * 1024);
    let fields: String = (0..300).map(|number| format!("X-{number}: 1\r\n")).collect();
    let get = |lines: &str| format!("GET /x HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
    let cases: Vec<(&str, String, u16, &str)> = vec![
        ("a key of 9 KiB", format!("GET /{long} HTTP/1.1\r\nHost: h\r\n\r\n"), 414, "target_bytes"),
        ("a query of 9 KiB", format!("GET /x?{long} HTTP/1.1\r\nHost: h\r\n\r\n"), 414, "target_bytes"),
        ("a head of 40 KiB", get(&format!("X-A: {}\r\n", "v".repeat(40 * 1024))), 431, "header_bytes"),
        ("three hundred fields", get(&fields), 431, "header_fields"),
        ("no HTTP", "hello world\r\n\r\n".into(), 400, "malformed"),
        ("HTTP/2 on a plain port", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 400, "malformed"),
        ("a bare line feed", "GET /x HTTP/1.1\nHost: h\n\n".into(), 400, "malformed"),
        ("a space in the target", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400, "malformed"),
        ("no Host", "GET /x HTTP/1.1\r\n\r\n".into(), 400, "host"),
        ("two Hosts", get("Host: other\r\n"), 400, "host"),
        ("another site than Host", "GET http://other/x HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400, "host"),
        ("a space before the colon", get("X-A : 1\r\n"), 400, "malformed"),
        ("a folded line", get("X-A: 1\r\n  2\r\n"), 400, "malformed"),
        ("a null byte", get("X-A: \0\r\n"), 400, "malformed"),
        ("two lengths", get("Content-Length: 1\r\nContent-Length: 2\r\n"), 400, "framing"),
        ("length and chunks", get("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), 400, "framing"),
        ("a length that is none", get("Content-Length: -1\r\n"), 400, "framing"),
        ("an unknown coding", get("Transfer-Encoding: gzip, chunked\r\n"), 501, "transfer_coding"),
        ("an unknown expectation", get("Expect: a miracle\r\n"), 417, "expectation"),
        ("CONNECT", "CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n".into(), 405, "method"),
        ("TRACE", "TRACE /x HTTP/1.1\r\nHost: h\r\n\r\n".into(), 405, "method"),
    ];
    for (what, request, status, word) in &cases {
        let before = node.stats().await["rejects"][*word].as_u64().unwrap_or_default();
        let mut stranger = node.connect().await;
        stranger.send(request).await;
        let answer = stranger.answer().await;
        assert_eq!(answer.status(), *status, "{what}: {}", answer.text());
        assert!(answer.text().starts_with(&format!("{status} ")) && answer.text().lines().count() == 1, "{what}");
        assert!(stranger.is_closed().await, "{what}: nobody knows where the next request would begin");
        let after = node.stats().await["rejects"][*word].as_u64().unwrap_or_default();
        assert_eq!(after, before + 1, "{what} is counted as {word}");
        assert_eq!(neighbour.get("/good").await.text(), "good", "after {what}");
    }
    // Targets that no cache should guess at.
    for target in ["/a/../b", "/%2e%2e/b", "/a/./b", "/a%zzb", "/a\\b", "/a#b", "*"] {
        let answer = node.get(target).await;
        assert_eq!(answer.status(), 400, "{target}: {}", answer.text());
    }
    assert_eq!(origin.log().len(), 1, "nothing of it reached the origin");
    let stats = node.stats().await;
    assert_eq!(stats["groups"]["all"]["main"]["items"], 1, "nothing of it was stored");
    assert_eq!(rejects(&stats), cases.len() as u64 + 7, "{}", stats["rejects"]);
    // The log is written behind the answers, in their order; of what cannot be read it has what can be seen.
    node.wait_for_log("\"target\":\"/a#b\"");
    let log = node.log();
    assert!(log.matches("\"status\":414").count() == 2 && log.contains("\"status\":431"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_no_group_or_endpoint_is_said_so() {
    let origin = Origin::start().await;
    let groups = format!(
        "[{{ name: pictures, match: {{ path: /pictures/, host: a.example }}, origin: '{0}' }}, \
          {{ name: files, match: {{ path: /files/ }}, directory: . }}]",
        origin.url()
    );
    let node = start(&groups, "");
    let ask = async |method: &str, host: &str, target: &str| {
        let mut client = node.connect().await;
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        let answer = client.answer().await;
        (answer.status(), answer.text())
    };
    assert_eq!(ask("GET", "a.example", "/elsewhere").await.0, 404);
    assert_eq!(ask("GET", "a.example", "/picturesque").await.0, 404, "whole segments");
    assert_eq!(ask("GET", "a.example", "/pictures/x").await.0, 404, "by the origin");
    assert_eq!(ask("GET", "b.example", "/files/not-there").await.0, 404);
    assert_eq!(ask("POST", "b.example", "/files/proxy.yaml").await.0, 405, "none for a directory");
    assert_eq!(ask("GET", "a.example", "/_groupcache/stats").await.0, 404, "not on this listener");
    assert_eq!(ask("GET", "a.example", "/_groupcache/pictures/x").await.0, 404);
    assert_eq!(ask("GET", "a.example", "/_groupcache/").await.0, 404);
    let (status, said) = ask("GET", "b.example", "/pictures/x").await;
    assert!(matches!(status, 404 | 421), "{said}");
    assert_eq!(origin.log().len(), 1);
    let admin = client::get(node.admin, "/_groupcache/unknown/thing").await;
    assert_eq!(admin.status(), 404);
    assert!(rejects(&node.stats().await) >= 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_of_requests_are_in_no_log() {
    let origin = Origin::start().await;
    let node = start(&format!("[{{ name: all, origin: '{}', freshness: {{ errors: 0s }} }}]", origin.url()), "");
    let address = origin.address();
    drop(origin);
    let secret = "top-secret-4711";
    let lines = format!("Authorization: Bearer {secret}\r\nCookie: session={secret}\r\nX-Api-Key: {secret}\r\n");
    for (target, lines) in [("/x", lines.as_str()), ("/y", &lines), ("/a/../b", &lines)] {
        let answer = node.connect().await.get_with(target, lines).await;
        assert!(answer.status() >= 400);
        assert!(!answer.text().contains(&address.to_string()) && !answer.head.text.contains(&address.to_string()));
    }
    let mut upload = node.connect().await;
    upload
        .send(format!("POST /x HTTP/1.1\r\nHost: h\r\n{lines}Content-Length: {}\r\n\r\n{secret}", secret.len()))
        .await;
    assert_eq!(upload.answer().await.status(), 502);
    let wrong = Client::connect(node.admin).await.get_with("/_groupcache/stats", &lines).await;
    assert!(matches!(wrong.status(), 200 | 401 | 403));
    node.wait_for_log("\"status\":502");
    poll::until("the upload is logged", async || node.log().matches("\"status\":502").count() >= 3).await;
    let log = node.log();
    assert!(!log.contains(secret), "{log}");
    assert!(!log.contains("admin-secret-0123"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_fleet_secret_is_refused_counted_and_costs_no_answer() {
    let origin = Origin::start().await;
    for number in 0..12 {
        origin.on(&format!("/{number}"), Reply::ok(format!("body {number}")).header("Cache-Control", "max-age=600"));
    }
    let addresses = free_addresses(3);
    let peers: Vec<String> = addresses.iter().map(|address| format!("'http://{address}'")).collect();
    let secrets = ["right-secret-0123456789", "right-secret-0123456789", "wrong-secret-9876543210"];
    let starting: Vec<_> = addresses
        .iter()
        .zip(secrets)
        .map(|(&address, secret)| {
            let setup = Setup::group(&format!("origin: '{}'", origin.url()));
            let fleet =
                format!("fleet: {{ self: 'http://{address}', peers: [{}], secret: '{secret}' }}\n", peers.join(", "));
            let setup = Setup { address, more: format!("{}{fleet}", setup.more), ..setup };
            std::thread::spawn(move || setup.start())
        })
        .collect();
    let nodes: Vec<Node> = starting.into_iter().map(|node| node.join().expect("a node")).collect();
    let state_of = async |node: &Node, peer: usize| {
        let stats = node.stats().await;
        let peers = stats["fleet"]["peers"].as_array().expect("peers").clone();
        peers.into_iter().find(|state| state["url"] == format!("http://{}", addresses[peer])).expect("the peer")
    };
    for (node, stranger) in [(0, 2), (1, 2), (2, 0), (2, 1)] {
        poll::until("the stranger is known as one", async || {
            let state = state_of(&nodes[node], stranger).await;
            state["state"] == "refused" && state["reason"].as_str().is_some_and(|reason| reason.contains("secret"))
        })
        .await;
    }
    assert_eq!(state_of(&nodes[0], 1).await["state"], "up");
    for (index, node) in nodes.iter().enumerate() {
        for number in 0..12 {
            let answer = node.get(&format!("/{number}")).await;
            assert_eq!((answer.status(), answer.text()), (200, format!("body {number}")), "node {index}");
        }
        let rejects = node.stats().await["rejects"].clone();
        assert!(rejects["handshake_secret"].as_u64() >= Some(1), "node {index}: {rejects}");
        assert!(node.log().contains("secret differs"), "node {index}: {}", node.log());
        assert!(secrets.iter().all(|secret| !node.log().contains(secret)), "node {index}");
    }
    for number in 0..12 {
        assert_eq!(origin.requests(&format!("/{number}")), 2, "once for the two that agree, once for the one outside");
    }
}
