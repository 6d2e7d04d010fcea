//! What comes before an answer and behind its body: interim answers (103, RFC 8297) are passed on to those who wait, over
//! the hop too, and never stored; trailers pass where both sides speak HTTP/2.

use crate::kit::client::Client;
use crate::kit::echo::Echo;
use crate::kit::fleet::Fleet;
use crate::kit::h2::{Ending, H2Origin};
use crate::kit::node::{Node, Setup};
use crate::kit::origin::{Gate, Origin, Reply};
use crate::kit::tls::{Http2Client, interims, read, read_with_trailers, write_pair};

const HINT: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";

fn setup(origin: &Origin) -> Setup {
    Setup::group(&format!("origin: '{}'", origin.url()))
}

fn page(gate: &Gate) -> Reply {
    Reply::ok("page").header("Cache-Control", "max-age=600").interim(1).hold_final(gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_reach_all_who_wait_on_all_nodes_before_the_answer() {
    let (origin, gate) = (Origin::start().await, Gate::new());
    origin.on("/a", page(&gate));
    let fleet = Fleet::start(3, &setup(&origin)).await;
    let mut waiting = Vec::new();
    for node in fleet.nodes.iter().chain(&fleet.nodes) {
        let mut client = node.connect().await;
        client.ask("/a").await;
        waiting.push(client);
    }
    // The origin holds the final answer: what comes now came before it.
    for client in &mut waiting {
        assert_eq!(client.head().await.text, HINT);
    }
    gate.open();
    for client in &mut waiting {
        let answer = client.answer().await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "page"));
    }
    assert_eq!(origin.log().len(), 1);
    // The connection goes on, and what was stored has no hint.
    for client in &mut waiting[..3] {
        assert_eq!(client.get("/a").await.status(), 200);
    }
    assert_eq!(fleet.sum("interims_dropped").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_0_gets_none() {
    let (origin, gate) = (Origin::start().await, Gate::new());
    origin.on("/a", page(&gate));
    let node = setup(&origin).start();
    let mut old = node.connect().await;
    old.send("GET /a HTTP/1.0\r\nHost: test.example\r\n\r\n").await;
    let mut new = node.connect().await;
    new.ask("/a").await;
    assert_eq!(new.head().await.text, HINT);
    gate.open();
    assert_eq!(old.head().await.status, 200);
    assert_eq!(new.answer().await.text(), "page");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_ends_in_an_error_after_as_many_as_are_passed_on() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("page").interim(9));
    let node = setup(&origin).start();
    let mut client = node.connect().await;
    client.ask("/a").await;
    for _ in 0..8 {
        assert_eq!(client.head().await.text, HINT);
    }
    assert_eq!(client.answer().await.status(), 502);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_through_has_its_hints_too() {
    let (origin, gate) = (Origin::start().await, Gate::new());
    origin.on("/a", page(&gate));
    let node = setup(&origin).start();
    let mut client: Client = node.connect().await;
    client.send("POST /a HTTP/1.1\r\nHost: test.example\r\nContent-Length: 0\r\n\r\n").await;
    let hint = client.head().await.text;
    assert!(hint.starts_with("HTTP/1.1 103 ") && hint.contains("Link: </a.css>"), "{hint}");
    gate.open();
    assert_eq!(client.answer().await.text(), "page");
}

/// One hint with what does not go on, and its answer.
fn noisy() -> Reply {
    let noise = "X-Gone: 1\r\nSurrogate-Key: k\r\nConnection: x-hop, Link\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n";
    let hint = format!("HTTP/1.1 103 Early Hints\r\nPreload: </b.css>\r\nContent-Length: 7\r\n{noise}\r\n");
    Reply::raw(format!("{hint}HTTP/1.1 200 OK\r\n{noise}Link: gone\r\nContent-Length: 4\r\n\r\npage"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_through_has_no_more_of_them_than_the_cache_would_give() {
    let origin = Origin::start().await;
    origin.on("/noise", noisy());
    origin.on("/flood", Reply::ok("page").interim(9));
    let group = format!("origin: '{}', headers: {{ to_client: {{ X-Gone: null, X-Added: 'yes' }} }}", origin.url());
    let node = Setup::group(&group).start();
    let post =
        |target: &str, version: &str| format!("POST {target} HTTP/{version}\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    for request in ["GET /noise HTTP/1.1\r\nHost: a\r\n\r\n", &post("/noise", "1.1")] {
        let mut client = node.connect().await;
        client.send(request).await;
        assert_eq!(client.head().await.text, "HTTP/1.1 103 Early Hints\r\nPreload: </b.css>\r\n\r\n", "{request}");
        let answer = client.answer().await;
        assert_eq!((answer.text().as_str(), answer.head.field("x-added")), ("page", Some("yes")));
        for gone in ["x-gone", "surrogate-key", "x-hop", "keep-alive", "link"] {
            assert_eq!(answer.head.field(gone), None, "{request}");
        }
    }
    let mut old = node.connect().await;
    old.send(post("/noise", "1.0")).await;
    assert_eq!(old.head().await.status, 200);
    let mut client = node.connect().await;
    client.send(post("/flood", "1.1")).await;
    for _ in 0..8 {
        assert_eq!(client.head().await.text, HINT);
    }
    assert_eq!(client.answer().await.status(), 502);
}

/// A node with one group that speaks TLS, and a client of HTTP/2.
async fn over_http_2(group: &str) -> (Node, Http2Client) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pair = write_pair(folder.path(), "one", &["one.example"]);
    let text = format!(
        "listen: [{{ address: '127.0.0.1:0', tls: {{ cert: one.pem, key: one.key }} }}]\n\
         admin: {{ address: '127.0.0.1:0' }}\nlog: {{ format: json }}\ngroups: [{{ name: all, {group} }}]\n"
    );
    std::fs::write(folder.path().join("proxy.yaml"), text).expect("writing the configuration");
    let node = Node::run(folder, &[], &["run", "--config", "proxy.yaml"]);
    let client = Http2Client::connect(node.address, "one.example", &pair).await.expect("a connection");
    (node, client)
}

fn request(method: &str, target: &str) -> http::Request<()> {
    let request = http::Request::builder().method(method).uri(format!("https://one.example{target}"));
    request.body(()).expect("a request")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_gets_them_before_the_answer_cached_or_passed() {
    let (origin, gate) = (Origin::start().await, Gate::new());
    origin.on("/a", page(&gate));
    origin.on("/noise", noisy());
    origin.on("/flood", Reply::ok("page").interim(9));
    let group = format!("origin: '{}', headers: {{ to_client: {{ X-Gone: null, X-Added: 'yes' }} }}", origin.url());
    let (_node, mut client) = over_http_2(&group).await;
    // The origin holds the final answers: what comes now came before them.
    let mut waiting = Vec::new();
    for method in ["GET", "GET", "POST"] {
        let (mut answer, _) = client.begin(request(method, "/a"), true).await;
        assert_eq!(interims(&mut answer, 1).await, ["103 link: </a.css>; rel=preload"], "{method}");
        waiting.push(answer);
    }
    gate.open();
    for answer in waiting {
        assert_eq!(read(answer).await.expect("an answer").body, b"page");
    }
    assert_eq!(origin.log().len(), 2);
    for method in ["GET", "POST"] {
        let (mut answer, _) = client.begin(request(method, "/noise"), true).await;
        assert_eq!(interims(&mut answer, 1).await, ["103 preload: </b.css>"], "{method}");
        let answer = read(answer).await.expect("an answer");
        assert_eq!((&answer.body[..], answer.field("x-added")), (&b"page"[..], Some("yes")));
        for gone in ["x-gone", "surrogate-key", "x-hop", "keep-alive", "connection", "link"] {
            assert_eq!(answer.field(gone), None, "{method}");
        }
        let (mut answer, _) = client.begin(request(method, "/flood"), true).await;
        assert_eq!(interims(&mut answer, 8).await.len(), 8);
        assert_eq!(read(answer).await.expect("an answer").head.status, 502);
    }
    // Nothing of them is stored. (What passed has invalidated what was.)
    read(client.begin(request("GET", "/a"), true).await.0).await.expect("an answer");
    let (mut answer, _) = client.begin(request("GET", "/a"), true).await;
    assert_eq!(interims(&mut answer, 1).await, [""; 0]);
    assert_eq!(read(answer).await.expect("an answer").body, b"page");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_whether_to_go_on_hears_it_over_any_pair_of_versions() {
    let ask =
        |body: usize| format!("POST /up HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {body}\r\n\r\n");
    let expecting = || http::Request::post("https://one.example/up").header("expect", "100-continue");
    let old_origin = Echo::start().await;
    // Over HTTP/2 the origin's 100 cannot be seen, so it is not asked for one.
    let new_origin = H2Origin::start(vec![Ending::Clean], usize::MAX).await;
    let old_group = format!("origin: '{}'", old_origin.url());
    let new_group = format!("origin: {{ urls: '{}', ca: '{}' }}", new_origin.url(), new_origin.ca().display());
    for (group, told) in [(&old_group, "hello"), (&new_group, "0123456789")] {
        let node = Setup::group(group).start();
        let mut client = node.connect().await;
        client.send(ask(5)).await;
        assert_eq!(client.head().await.status, 100, "{group}");
        client.send("hello").await;
        assert_eq!(client.answer().await.text(), told);

        let (_node, mut client) = over_http_2(group).await;
        let request = expecting().body(()).expect("a request");
        let (mut answer, mut body) = client.begin(request, false).await;
        assert_eq!(interims(&mut answer, 1).await, ["100"], "{group}");
        body.send_data("hello".into(), true).expect("sending");
        assert_eq!(read(answer).await.expect("an answer").body, told.as_bytes());
    }
    assert!(new_origin.log().iter().all(|request| !request.headers.contains_key("expect")));
}

/// What follows a body passes between two sides that speak HTTP/2; the cache keeps none of it, as in HTTP/1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_of_http_2_pass_and_are_not_stored() {
    let new_origin = H2Origin::start(vec![Ending::Trailers], usize::MAX).await;
    let tls = format!("origin: {{ urls: '{}', ca: '{}' }}", new_origin.url(), new_origin.ca().display());
    let (_node, mut client) = over_http_2(&tls).await;
    for (method, expected) in [("GET", None), ("GET", None), ("POST", Some("1"))] {
        let (answer, _) = client.begin(request(method, "/a"), true).await;
        let (body, trailers) = read_with_trailers(answer).await.expect("a whole answer");
        let sum = trailers.as_ref().and_then(|trailers| trailers.get("x-sum")?.to_str().ok());
        assert_eq!((&body[..], sum), (&b"0123456789"[..], expected), "{method}");
    }
    let node = Setup::group(&tls).start();
    let mut client = node.connect().await;
    client.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.text(), "0123456789");

    // Those of a request are left out, over HTTP/2 as over HTTP/1.
    let old_origin = Echo::start().await;
    let (_node, mut client) = over_http_2(&format!("origin: '{}'", old_origin.url())).await;
    let (answer, mut body) = client.begin(request("POST", "/up"), false).await;
    body.send_data("hello".into(), false).expect("sending");
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "1".parse().expect("a value"));
    body.send_trailers(trailers).expect("sending");
    assert_eq!(read(answer).await.expect("an answer").body, b"hello");
}
