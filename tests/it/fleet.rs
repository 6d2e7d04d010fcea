//! Fleets of real processes.

use crate::kit::fleet::Fleet;
use crate::kit::node::Setup;
use crate::kit::origin::{Origin, Reply};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_asks_the_origin_once_for_each_key() {
    let origin = Origin::start().await;
    for number in 0..20 {
        origin.on(&format!("/{number}"), Reply::ok(format!("body {number}")).header("Cache-Control", "max-age=60"));
    }
    let fleet = Fleet::start(3, &Setup::group(&format!("origin: '{}'", origin.url()))).await;
    for number in 0..20 {
        for node in &fleet.nodes {
            let answer = node.get(&format!("/{number}")).await;
            assert_eq!((answer.status(), answer.text()), (200, format!("body {number}")));
        }
        assert_eq!(origin.requests(&format!("/{number}")), 1, "key {number}");
    }
    assert_eq!(fleet.sum("local_loads").await, 20);
    let stats = fleet.nodes[0].stats().await;
    let peers = stats["fleet"]["peers"].as_array().expect("peers");
    assert_eq!(peers.len(), 2);
    for peer in peers {
        assert_eq!((&peer["state"], &peer["protocol"]), (&"up".into(), &"native".into()), "{peer}");
        assert_eq!(peer["ring_id"], stats["fleet"]["ring_id"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_owner_is_stood_in_for_and_the_origin_is_asked_once_more_at_most() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("hello").header("Cache-Control", "max-age=60"));
    let mut fleet = Fleet::start(3, &Setup::group(&format!("origin: '{}'", origin.url()))).await;
    let owner = fleet.owner_of("/a").await;
    fleet.nodes[owner].kill();
    for (index, node) in fleet.nodes.iter().enumerate().filter(|(index, _)| *index != owner) {
        let answer = node.get("/a").await;
        assert_eq!((answer.status(), &*answer.text()), (200, "hello"), "node {index}");
    }
    assert_eq!(origin.requests("/a"), 1, "one of the two stands in for both");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_another_secret_is_no_peer() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("hello").header("Cache-Control", "max-age=60"));
    let setup = Setup::group(&format!("origin: '{}'", origin.url()));
    let fleet = Fleet::with(2, &setup, "secret: '${GROUPCACHE_FLEET_SECRET:-0123456789abcdef}'").await;
    for node in &fleet.nodes {
        assert_eq!(node.get("/a").await.text(), "hello");
    }
    assert_eq!(origin.requests("/a"), 1, "one secret: peers");
    drop(fleet);

    let addresses = crate::kit::node::free_addresses(2);
    let nodes: Vec<_> = addresses
        .iter()
        .zip(["0123456789abcdef", "fedcba9876543210"])
        .map(|(&address, secret)| {
            let fleet = format!(
                "fleet: {{ self: 'http://{address}', peers: ['http://{}', 'http://{}'], secret: '{secret}' }}\n",
                addresses[0], addresses[1]
            );
            let setup = Setup::group(&format!("origin: '{}'", origin.url()));
            Setup { address, more: format!("{}{fleet}", setup.more), ..setup }.start()
        })
        .collect();
    for node in &nodes {
        assert_eq!(node.get("/a").await.text(), "hello", "it loads for itself");
    }
    assert_eq!(origin.requests("/a"), 3);
    for node in &nodes {
        assert!(!node.log().contains("0123456789abcdef") && !node.log().contains("fedcba9876543210"));
    }
}
