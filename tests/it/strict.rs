//! Real processes that keep leases: who has no contact with a majority answers nothing from memory unasked.

use serde_json::Value;

use crate::kit::client::Client;
use crate::kit::fleet::Fleet;
use crate::kit::node::{Node, Setup};
use crate::kit::origin::{Origin, Reply};
use crate::kit::poll::until;

const FRESH: &str = "max-age=600";

async fn purge(node: &Node, body: &str) -> (u16, Value) {
    let mut client = Client::connect(node.admin).await;
    let (host, length) = (node.admin, body.len());
    client
        .send(format!(
            "POST /_groupcache/purge HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await;
    let answer = client.answer().await;
    (answer.status(), answer.json())
}

async fn lease(node: &Node) -> String {
    node.stats().await["fleet"]["lease"]["state"].as_str().expect("a state").to_owned()
}

async fn explain(node: &Node, target: &str) -> Value {
    crate::kit::client::get(node.admin, &format!("/_groupcache/explain?path={target}")).await.json()
}

async fn until_lease(node: &Node, state: &str) {
    until(state, async || lease(node).await == state).await;
}

/// A fleet of three that keeps leases, and has them.
async fn strict_fleet(origin: &Origin) -> Fleet {
    let setup = Setup::group(&format!("origin: '{}'", origin.url()));
    let fleet = Fleet::with(3, &setup, "partition: strict").await;
    for node in &fleet.nodes {
        until_lease(node, "held").await;
    }
    fleet
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_majority_asks_the_origin_before_it_answers_from_memory() {
    let origin = Origin::start().await;
    let fleet = strict_fleet(&origin).await;
    origin.on("/a", Reply::ok("old").header("Cache-Control", FRESH));
    let lone = &fleet.nodes[0];
    let in_memory = async || lone.get("/a").await.head.cache_status().contains("; hit;");
    until("the node has a copy", in_memory).await;
    let asked = origin.log().len();
    assert!(in_memory().await, "a lease lets memory answer");
    let explained = explain(lone, "/a").await;
    assert_eq!((&explained["lease"], &explained["reason"]), (&"held".into(), &"hit".into()), "{explained}");
    let admin = format!("http://{}", lone.admin);
    let mut command = crate::kit::node::command(std::path::Path::new("."), &["explain", "/a", "--node", &admin]);
    let printed = String::from_utf8(command.output().expect("an output").stdout).expect("a text");
    assert!(printed.contains("lease         held\n"), "{printed}");
    assert_eq!(origin.log().len(), asked);
    for frozen in &fleet.nodes[1..] {
        frozen.signal("STOP");
    }
    lone.wait_for_log("the lease ran out");
    origin.on("/a", Reply::ok("new").header("Cache-Control", FRESH));
    let answer = lone.get("/a").await;
    assert_eq!((answer.status(), answer.text()), (200, "new".to_owned()));
    let explained = explain(lone, "/a").await;
    let reason = "no lease: the origin is asked before memory answers";
    assert_eq!((&explained["lease"], &explained["reason"]), (&"lost".into(), &reason.into()), "{explained}");
    let asked = origin.log().len();
    assert!(lone.get("/a").await.head.cache_status().contains("no-lease"));
    assert_eq!(origin.log().len(), asked + 1, "every request asks anew");
    let (status, receipt) = purge(lone, r#"{"group":"all","all":true,"timeout":"500ms"}"#).await;
    assert_eq!((status, &receipt["complete"]), (503, &false.into()), "{receipt}");
    for frozen in &fleet.nodes[1..] {
        frozen.signal("CONT");
    }
    until_lease(lone, "held").await;
    lone.wait_for_log("gave a lease");
    until("memory answers again", in_memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_purges_although_a_node_is_frozen_and_that_node_knows_it_has_been() {
    let origin = Origin::start().await;
    let fleet = strict_fleet(&origin).await;
    for number in 0..20 {
        origin.on(&format!("/{number}"), Reply::ok("old").header("Cache-Control", FRESH));
        for node in &fleet.nodes {
            node.get(&format!("/{number}")).await;
        }
    }
    let frozen = &fleet.nodes[2];
    // Open already: what is sent over them waits in the kernel while the node does not run.
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(frozen.connect().await);
    }
    frozen.signal("STOP");
    for number in 0..20 {
        origin.on(&format!("/{number}"), Reply::ok("new").header("Cache-Control", FRESH));
    }
    let (status, receipt) = purge(&fleet.nodes[0], r#"{"group":"all","all":true}"#).await;
    assert_eq!((status, &receipt["complete"]), (200, &true.into()), "{receipt}");
    let nodes = receipt["nodes"].as_array().expect("nodes");
    assert_eq!(nodes.iter().filter(|node| node["state"] == "without_lease").count(), 1, "{receipt}");
    // They come after the acknowledgement, and before the node has heard of anything.
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    }
    frozen.signal("CONT");
    for client in &mut clients {
        assert_eq!(client.answer().await.text(), "new");
    }
    until("the frozen node confirms", async || fleet.nodes[0].stats().await["purge"]["unconfirmed"] == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_has_always_its_lease() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("a").header("Cache-Control", FRESH));
    let setup = Setup::group(&format!("origin: '{}'", origin.url()));
    let fleet = Fleet::with(1, &setup, "partition: strict").await;
    let node = &fleet.nodes[0];
    assert_eq!(lease(node).await, "unneeded");
    assert_eq!(explain(node, "/a").await["lease"], Value::Null);
    node.get("/a").await;
    node.get("/a").await;
    assert_eq!(origin.log().len(), 1);
    let (status, receipt) = purge(node, r#"{"group":"all","key":"a"}"#).await;
    assert_eq!((status, &receipt["complete"]), (200, &true.into()), "{receipt}");
}
