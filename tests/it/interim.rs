//! Interim answers of the origin (103, RFC 8297): passed on to those who wait, over the hop too, and never stored.

use crate::kit::client::Client;
use crate::kit::fleet::Fleet;
use crate::kit::node::{Node, Setup};
use crate::kit::origin::{Gate, Origin, Reply};
use crate::kit::poll;
use crate::kit::tls::{Http2Client, write_pair};

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

/// Pingora's session drops them; the answer is unharmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_gets_the_answer_alone() {
    let (origin, gate) = (Origin::start().await, Gate::new());
    origin.on("/a", page(&gate));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pair = write_pair(folder.path(), "one", &["one.example"]);
    let text = format!(
        "listen: [{{ address: '127.0.0.1:0', tls: {{ cert: one.pem, key: one.key }} }}]\n\
         admin: {{ address: '127.0.0.1:0' }}\nlog: {{ format: json }}\n\
         groups: [{{ name: all, origin: '{}' }}]\n",
        origin.url()
    );
    std::fs::write(folder.path().join("proxy.yaml"), text).expect("writing the configuration");
    let node = Node::run(folder, &[], &["run", "--config", "proxy.yaml"]);
    let mut client = Http2Client::connect(node.address, "one.example", &pair).await.expect("a connection");
    let request = http::Request::get("https://one.example/a").body(()).expect("a request");
    let (answer, _) = client.begin(request, true).await;
    poll::until("the hint has come", async || node.group("all").await["interims"] == 1).await;
    gate.open();
    assert_eq!(crate::kit::tls::read(answer).await.expect("an answer").body, b"page");
}
