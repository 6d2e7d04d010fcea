//! The story that this project exists for: one node was asked, the file is gone, the others still have it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::kit::fleet::Fleet;
use crate::kit::nginx::Nginx;
use crate::kit::node::{Node, Setup, free_addresses};
use crate::kit::origin::{Origin, Reply};

fn picture(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 131 + index / 97) as u8).collect()
}

fn thumbnails(origin: &str) -> Setup {
    // The file is new, so its age alone would give it no lifetime.
    Setup::groups(&format!(
        "[{{ name: all, match: {{ path: /thumbnails/ }}, origin: '{origin}', freshness: {{ default: 600s, heuristic_max: 0s }} }}]"
    ))
}

/// A node of a fleet with this `self` and these peers.
fn member(setup: &Setup, address: SocketAddr, own: SocketAddr, peers: &[SocketAddr]) -> Setup {
    let peers: Vec<String> = peers.iter().map(|peer| format!("'http://{peer}'")).collect();
    let fleet = format!("fleet: {{ self: 'http://{own}', peers: [{}] }}\n", peers.join(", "));
    Setup { address, more: format!("{}{fleet}", setup.more), ..setup.clone() }
}

fn start_all(setups: Vec<Setup>) -> Vec<Node> {
    let started: Vec<_> = setups.into_iter().map(|setup| std::thread::spawn(move || setup.start())).collect();
    started.into_iter().map(|node| node.join().expect("a node")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_deleted_at_the_origin_is_still_served_by_every_node() {
    let Some(nginx) = Nginx::start() else { return };
    let names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg"];
    for (number, name) in names.iter().enumerate() {
        nginx.write(name, picture(1000 * (number + 1)));
    }
    let fleet = Fleet::start(3, &thumbnails(&nginx.url())).await;
    // Whoever owns it: the first node is asked for it, the file goes, every node serves it.
    for (number, name) in names.iter().enumerate() {
        let target = format!("/thumbnails/{name}");
        assert_eq!(fleet.nodes[0].get(&target).await.status(), 200);
        nginx.delete(name);
        for (index, node) in fleet.nodes.iter().enumerate() {
            let answer = node.get(&target).await;
            assert_eq!(answer.status(), 200, "{name} from node {index}: {}", answer.head.text);
            assert!(answer.body == picture(1000 * (number + 1)), "{name} from node {index}");
            assert_eq!(answer.head.field("content-type"), Some("image/jpeg"));
        }
        assert_eq!(nginx.log().iter().filter(|line| line.contains(name)).count(), 1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_among_the_peers_is_served_by_them() {
    let Some(nginx) = Nginx::start() else { return };
    let names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"];
    for name in names {
        nginx.write(name, picture(5000));
    }
    let addresses = free_addresses(3);
    let (peers, outside) = (&addresses[..2], addresses[2]);
    let setup = thumbnails(&nginx.url());
    let nodes = start_all(addresses.iter().map(|&address| member(&setup, address, address, peers)).collect());
    for node in &nodes {
        node.wait_until_connected().await;
    }
    let stats = nodes[2].stats().await;
    assert_eq!(stats["fleet"]["peers"].as_array().expect("peers").len(), 2, "{}", stats["fleet"]);
    for name in names {
        let target = format!("/thumbnails/{name}");
        // Asked of the outsider first: an owner loads it and keeps it.
        let answer = nodes[2].get(&target).await;
        assert!((answer.status(), answer.body) == (200, picture(5000)), "{name} from {outside}");
        nginx.delete(name);
        for (index, node) in nodes.iter().enumerate() {
            let answer = node.get(&target).await;
            assert!((answer.status(), answer.body) == (200, picture(5000)), "{name} from node {index}");
        }
    }
    assert_eq!(nginx.log().len(), names.len());
    let outsider = nodes[2].group("all").await;
    assert_eq!((&outsider["local_loads"], &outsider["main"]["items"]), (&0.into(), &0.into()), "it owns nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_never_start_cost_nothing_but_their_help() {
    let origin = Origin::start().await;
    for number in 0..30 {
        origin.on(&format!("/{number}"), Reply::ok(format!("picture {number}")).header("Cache-Control", "max-age=600"));
    }
    let addresses = free_addresses(3);
    let setup = member(&thumbnails(&origin.url()), addresses[0], addresses[0], &addresses);
    let node = setup.start();
    let since = Instant::now();
    for round in 0..2 {
        for number in 0..30 {
            let answer = node.get(&format!("/thumbnails/{number}")).await;
            assert_eq!((answer.status(), answer.text()), (200, format!("picture {number}")), "round {round}");
        }
    }
    // Refused connections are noticed at once; sixty requests that waited for a deadline would take a minute.
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    for number in 0..30 {
        assert_eq!(origin.requests(&format!("/{number}")), 1, "what was loaded in another's stead is kept");
    }
}
