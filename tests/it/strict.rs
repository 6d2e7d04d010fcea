//! Real processes that keep leases: who has no contact with a majority answers nothing from memory unasked.

use serde_json::Value;

use crate::kit::client::Client;
use crate::kit::fleet::Fleet;
use crate::kit::node::{Node, Setup, free_addresses};
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

/// Two members more at once, on one node sooner than on another; and two fewer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_members_come_and_go_at_once() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("a").header("Cache-Control", FRESH));
    let addresses = free_addresses(5);
    let with = |own: usize, members: std::ops::Range<usize>| {
        let peers: Vec<String> = addresses[members].iter().map(|address| format!("'http://{address}'")).collect();
        let setup = Setup::group(&format!("origin: '{}'", origin.url()));
        let (own, list) = (addresses[own], peers.join(", "));
        let fleet = format!("fleet: {{ self: 'http://{own}', peers: [{list}], partition: strict }}\n");
        Setup { address: own, more: format!("{}{fleet}", setup.more), ..setup }
    };
    let start = |own: usize, members: std::ops::Range<usize>| {
        let setup = with(own, members);
        std::thread::spawn(move || setup.start())
    };
    let joined = |node: std::thread::JoinHandle<Node>| node.join().expect("a node");
    let mut nodes: Vec<Node> = (0..3).map(|own| start(own, 0..3)).collect::<Vec<_>>().into_iter().map(joined).collect();
    for node in &nodes {
        until_lease(node, "held").await;
    }
    // They begin while nobody else has their list, and are no majority of it.
    let coming = [3, 4].map(|own| start(own, 0..5));
    for (own, node) in nodes.iter().enumerate() {
        node.rewrite(&with(own, 0..5));
        node.signal("HUP");
        node.wait_for_log("configuration read again");
    }
    nodes.extend(coming.map(joined));
    let settled = async |node: &Node| {
        let stats = node.stats().await;
        stats["fleet"]["lease"]["state"] == "held" && stats["fleet"]["lease"]["previous_lists"] == 0
    };
    for node in &nodes {
        until("it has a lease by the new list alone", async || settled(node).await).await;
    }
    nodes[0].wait_for_log("the old one counts no more");
    for node in &nodes {
        assert_eq!(node.get("/a").await.text(), "a");
    }
    let (status, receipt) = purge(&nodes[4], r#"{"group":"all","key":"a"}"#).await;
    assert_eq!((status, &receipt["complete"]), (200, &true.into()), "{receipt}");

    for (own, node) in nodes.iter().enumerate().take(3) {
        node.rewrite(&with(own, 0..3));
        node.signal("HUP");
    }
    for node in &nodes[..3] {
        let has_list = async || node.stats().await["fleet"]["peers"].as_array().is_some_and(|peers| peers.len() == 2);
        until("it has the old list", has_list).await;
        until("it has a lease by the old list alone", async || settled(node).await).await;
    }
    // Who keeps less than a majority of the members is told what that means.
    nodes[0].rewrite(&with(0, 0..1).more(&format!(
        "fleet: {{ self: 'http://{0}', peers: ['http://{0}', 'http://{1}'], partition: strict }}\nthreads: 2\n",
        addresses[0], addresses[4]
    )));
    nodes[0].signal("HUP");
    nodes[0].wait_for_log("no majority of the members before is left");
    until_lease(&nodes[0], "lost").await;
}
