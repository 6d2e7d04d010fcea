//! Hot keys on real processes: who does how much of the work.

use crate::kit::client::Client;
use crate::kit::fleet::Fleet;
use crate::kit::node::{Node, Setup, free_addresses};
use crate::kit::origin::{Origin, Reply};
use crate::kit::poll;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_with_half_of_all_traffic_makes_no_node_work_more_than_the_others() {
    let origin = Origin::start().await;
    for number in 0..50 {
        origin.on(&format!("/{number}"), Reply::ok(vec![b'x'; 30_000]).header("Cache-Control", "max-age=600"));
    }
    let fleet = Fleet::start(5, &Setup::group(&format!("origin: '{}'", origin.url()))).await;
    let mut clients = Vec::new();
    for node in &fleet.nodes {
        clients.push(Client::connect(node.address).await);
    }
    let mut random = 1u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for _ in 0..4000 {
        let key = if next(2) == 0 { 0 } else { next(50) };
        let answer = clients[next(5) as usize].get(&format!("/{key}")).await;
        assert_eq!((answer.head.status, answer.body.len()), (200, 30_000));
    }
    let mut work = Vec::new();
    for node in &fleet.nodes {
        work.push(node.group("all").await["gets"].as_u64().expect("a counter"));
    }
    let mean = work.iter().sum::<u64>() as f64 / 5.0;
    let busiest = *work.iter().max().expect("five nodes") as f64 / mean;
    assert!(busiest <= 1.25, "{busiest:.2} times the mean: {work:?}");
    assert_eq!(origin.requests("/0"), 1);
}

/// Nodes that may keep no copies, and therefore ask for everything.
fn start_with_a_node_that_keeps_nothing(origin: &Origin) -> Vec<Node> {
    let addresses = free_addresses(5);
    let peers: Vec<String> = addresses.iter().map(|address| format!("'http://{address}'")).collect();
    let setups = addresses.iter().enumerate().map(|(index, &address)| {
        let keeps = if index == 0 { "max_object: 1KiB, " } else { "" };
        let setup = Setup::group(&format!("{keeps}origin: '{}'", origin.url()));
        let own = format!("fleet: {{ self: 'http://{address}', peers: [{}] }}\n", peers.join(", "));
        Setup { address, more: format!("{}{own}", setup.more), ..setup }
    });
    let started: Vec<_> = setups.map(|setup| std::thread::spawn(move || setup.start())).collect();
    started.into_iter().map(|node| node.join().expect("a node")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_of_a_hot_key_gives_replicas_to_others_which_answer_until_it_cools_down() {
    let origin = Origin::start().await;
    let body = Reply::ok(vec![b'x'; 10_000]).header("Cache-Control", "max-age=600");
    let nodes = start_with_a_node_that_keeps_nothing(&origin);
    for node in &nodes {
        node.wait_until_connected().await;
    }
    let keys: Vec<String> = (0..12).map(|number| format!("/{number}")).collect();
    keys.iter().for_each(|key| origin.on(key, body.clone()));
    let counter = async |node: &Node, name: &str| node.stats().await["replicas"][name].as_u64().expect("a counter");
    let mut client = Client::connect(nodes[0].address).await;
    poll::until("replicas answer", async || {
        for key in keys.iter().cycle().take(500) {
            let answer = client.get(key).await;
            assert_eq!((answer.head.status, answer.body.len()), (200, 10_000));
        }
        counter(&nodes[0], "used").await >= 100
    })
    .await;
    let sum = async |name: &str| {
        let mut sum = 0;
        for node in &nodes {
            sum += counter(node, name).await;
        }
        sum
    };
    assert!(sum("pushed").await > 0 && sum("held").await > 0);
    assert!(sum("answered").await >= 100);
    let hottest = nodes[1].stats().await["replicas"]["hottest"].as_array().expect("a list").len();
    assert!(hottest <= 10);
    // Node 0 stores nothing: what it owns itself it fetches for every request.
    let owned = async |key: &str| {
        let explained = crate::kit::client::get(nodes[1].admin, &format!("/_groupcache/explain?path={key}")).await;
        explained.json()["owner"].as_str() == Some(&nodes[0].url())
    };
    for key in &keys {
        if !owned(key).await {
            assert_eq!(origin.requests(key), 1, "{key}");
        }
    }
    poll::until("all replicas are dropped", async || sum("held").await == 0).await;
    assert_eq!(sum("dropped").await, sum("taken").await);
}
