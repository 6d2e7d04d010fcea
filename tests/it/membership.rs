//! Fleets that change: where members come from, and what becomes of keys when nodes come, go, sleep and die.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use serde_json::Value;

use crate::kit::client::Client;
use crate::kit::dns::{NameServer, Says};
use crate::kit::fleet::Fleet;
use crate::kit::node::{LOOPBACK, Node, Setup, free_addresses};
use crate::kit::origin::{Origin, Reply};
use crate::kit::poll::until;

const SECRET: &str = "secret: sixteen-bytes-or-more";

/// A node at `address` with these keys of `fleet`.
fn setup(origin: &Origin, address: SocketAddr, fleet: &str) -> Setup {
    let setup = Setup::group(&format!("origin: '{}'", origin.url()));
    let fleet = format!("fleet: {{ self: 'http://{address}', {fleet} }}\n");
    Setup { address, more: format!("{}{fleet}", setup.more), ..setup }
}

/// The URLs of the peers that a node sees, without those that it could not reach.
async fn peers(node: &Node) -> Vec<String> {
    let stats = node.stats().await;
    let peers = stats["fleet"]["peers"].as_array().expect("peers").iter();
    let up = peers.filter(|peer| peer["state"] == "up" && peer["ring_id"].is_string());
    up.map(|peer| peer["url"].as_str().expect("a URL").to_owned()).collect()
}

/// Waits until all of these nodes see exactly one another, and one ring.
async fn until_whole(nodes: &[&Node]) {
    until("the fleet is whole", async || {
        let mut rings = Vec::new();
        for node in nodes {
            let seen = peers(node).await;
            let stats = node.stats().await;
            let listed = stats["fleet"]["peers"].as_array().expect("peers").len();
            if seen.len() != nodes.len() - 1 || listed != seen.len() {
                return false;
            }
            rings.push(stats["fleet"]["ring_id"].clone());
            rings.extend(stats["fleet"]["peers"].as_array().expect("peers").iter().map(|peer| peer["ring_id"].clone()));
        }
        rings.windows(2).all(|pair| pair[0] == pair[1])
    })
    .await;
}

async fn members(node: &Node) -> Value {
    node.stats().await["fleet"]["members"].take()
}

async fn failures(node: &Node) -> u64 {
    members(node).await["failures"].as_u64().expect("a counter")
}

/// Lets an origin answer so many keys, and asks all of them.
fn keys(origin: &Origin, count: usize) {
    for number in 0..count {
        origin.on(&format!("/{number}"), Reply::ok(format!("body {number}")).header("Cache-Control", "max-age=600"));
    }
}

async fn ask_all(nodes: &[&Node], count: usize) {
    for number in 0..count {
        let answer = nodes[number % nodes.len()].get(&format!("/{number}")).await;
        assert_eq!((answer.status(), answer.text()), (200, format!("body {number}")));
    }
}

fn asked(origin: &Origin) -> usize {
    origin.log().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_members_is_followed_and_a_broken_one_changes_nothing() {
    let origin = Origin::start().await;
    keys(&origin, 40);
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("peers.txt");
    let write = |text: &str| {
        let aside = folder.path().join("peers.new");
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, &list).unwrap();
    };
    let addresses = free_addresses(3);
    let line = |number: usize| format!("http://{}\n", addresses[number]);
    write(&format!("# two of three\n{}{}", line(0), line(1)));
    let keys_of_fleet = format!("peers: {{ file: '{}' }}", list.display());
    let start = |number: usize| setup(&origin, addresses[number], &keys_of_fleet).start();
    let (first, second) = (start(0), start(1));
    until_whole(&[&first, &second]).await;
    ask_all(&[&first, &second], 40).await;
    assert_eq!(asked(&origin), 40);
    let asked_of_second = first.stats().await["fleet"]["peers"][0]["requests"].as_u64().unwrap();
    assert!(asked_of_second > 0);

    write(&format!("{}{}{}", line(0), line(1), line(2)));
    let third = start(2);
    until_whole(&[&first, &second, &third]).await;
    ask_all(&[&second, &third, &first], 40).await;
    assert_eq!(asked(&origin), 40, "the new owner asks the previous one");
    assert!(third.group("all").await["peek_hits"].as_u64().unwrap() > 0);
    let stats = first.stats().await;
    let kept = stats["fleet"]["peers"].as_array().unwrap().iter().find(|peer| peer["url"] == second.url()).unwrap();
    assert!(kept["requests"].as_u64().unwrap() >= asked_of_second, "the connection to a peer that stays was kept");

    let before = failures(&first).await;
    write(&format!("{}nonsense\n", line(0)));
    until("the broken file was seen", async || failures(&first).await > before).await;
    assert!(members(&first).await["last_failure"].as_str().unwrap().contains("peers.txt:2:1: found \"nonsense\""));
    assert_eq!(peers(&first).await.len(), 2);

    write(&format!("{}{}", line(0), line(1)));
    until("the third is out", async || peers(&first).await == [second.url()]).await;
    assert!(members(&first).await["last_failure"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_followed_and_bad_answers_change_nothing() {
    let origin = Origin::start().await;
    let names = NameServer::start().await;
    let hosts = [2, 3, 4].map(|last| Ipv4Addr::new(127, 0, 0, last));
    // One port that is free on all three.
    let port = (0..100)
        .find_map(|_| {
            let first = TcpListener::bind((hosts[0], 0)).unwrap();
            let port = first.local_addr().unwrap().port();
            let rest: Vec<_> = hosts[1..].iter().map(|host| TcpListener::bind((*host, port))).collect();
            rest.iter().all(Result::is_ok).then_some(port)
        })
        .unwrap();
    let server = names.address;
    for form in ["dns", "srv"] {
        let source = match form {
            "dns" => format!("dns: 'http://peers.test:{port}'"),
            _ => "srv: _peer._tcp.peers.test".to_owned(),
        };
        let fleet = format!("{SECRET}, peers: {{ {source}, every: 100ms, nameservers: ['{server}'] }}");
        let says = |says: Says| {
            let name = if form == "dns" { "peers.test" } else { "_peer._tcp.peers.test" };
            names.says(name, says);
        };
        let has = |count: usize| match form {
            "dns" => Says::Addresses(hosts[..count].to_vec()),
            _ => Says::Services(hosts[..count].iter().map(|host| (host.to_string(), port)).collect()),
        };
        says(has(2));
        let start = |number: usize| setup(&origin, SocketAddr::new(hosts[number].into(), port), &fleet).start();
        let (first, second) = (start(0), start(1));
        until_whole(&[&first, &second]).await;
        says(has(3));
        let third = start(2);
        until_whole(&[&first, &second, &third]).await;
        assert_eq!(members(&first).await["source"], form);

        for bad in [Says::NoName, Says::Nothing, Says::Garbage] {
            says(bad.clone());
            let before = failures(&first).await;
            until("the bad answer was seen", async || failures(&first).await >= before + 2).await;
            assert_eq!(peers(&first).await.len(), 2, "{form} {bad:?}");
        }
        says(has(2));
        until("the third is out", async || peers(&first).await == [second.url()]).await;
    }
}

/// UDP ports of loopback that are free now.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<UdpSocket> = (0..count).map(|_| UdpSocket::bind(LOOPBACK).unwrap()).collect();
    held.iter().map(|socket| socket.local_addr().unwrap().port()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_find_one_another_by_gossip_and_notice_who_dies() {
    let origin = Origin::start().await;
    let (addresses, ports) = (free_addresses(6), free_ports(6));
    let fleet = |number: usize, secret: &str| {
        let (seeds, own) = (&ports[..2], ports[number]);
        format!(
            "{secret}, peers: {{ gossip: ['127.0.0.1:{}', '127.0.0.1:{}'], address: '127.0.0.1:{own}' }}",
            seeds[0], seeds[1]
        )
    };
    let start = |number: usize| setup(&origin, addresses[number], &fleet(number, SECRET)).start();
    let mut nodes: Vec<Node> = (0..5).map(start).collect();
    until_whole(&nodes.iter().collect::<Vec<_>>()).await;

    let mut dead = nodes.remove(3);
    dead.kill();
    until_whole(&nodes.iter().collect::<Vec<_>>()).await;
    nodes.push(start(3));
    until_whole(&nodes.iter().collect::<Vec<_>>()).await;

    let stranger = setup(&origin, addresses[5], &fleet(5, "secret: another-secret-of-16")).start();
    until("the stranger was heard and refused", async || {
        nodes[0].stats().await["rejects"]["gossip_foreign"].as_u64().unwrap_or_default() > 2
    })
    .await;
    assert_eq!(stranger.stats().await["fleet"]["peers"].as_array().unwrap().len(), 0);
    until_whole(&nodes.iter().collect::<Vec<_>>()).await;

    // One that leaves in good order says so.
    let mut leaving = nodes.remove(0);
    leaving.signal("TERM");
    assert_eq!(leaving.ended().await.code(), Some(0));
    until_whole(&nodes.iter().collect::<Vec<_>>()).await;
}

/// Purges everything; the status, and the states of the members but the first, which is `node`.
async fn purge_all(node: &Node) -> (u16, Vec<(String, String)>) {
    let body = r#"{"group":"all","all":true}"#;
    let mut client = Client::connect(node.admin).await;
    let head =
        format!("POST /_groupcache/purge HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n", node.admin, body.len());
    client.send(format!("{head}Content-Type: application/json\r\n\r\n{body}")).await;
    let answer = client.answer().await;
    let receipt: Value = answer.json();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let others = receipt["nodes"].as_array().expect("nodes").iter().skip(1);
    let mut others: Vec<_> = others.map(|node| (text(&node["url"]), text(&node["state"]))).collect();
    // So that the order of their ports does not matter.
    others.sort_by(|one, other| one.1.cmp(&other.1));
    (answer.status(), others)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_purge_is_complete_without_a_member_that_fell_silent_and_has_not_left() {
    let origin = Origin::start().await;
    keys(&origin, 10);
    let (addresses, ports) = (free_addresses(3), free_ports(3));
    let start = |number: usize| {
        let peers = format!("peers: {{ gossip: ['127.0.0.1:{}'], address: '127.0.0.1:{}' }}", ports[0], ports[number]);
        setup(&origin, addresses[number], &format!("{SECRET}, {peers}")).start()
    };
    let mut nodes: Vec<Node> = (0..3).map(start).collect();
    until_whole(&nodes.iter().collect::<Vec<_>>()).await;
    for node in &nodes {
        ask_all(&[node], 10).await;
    }
    let (told, frozen) = (nodes[1].url(), nodes[2].url());
    nodes[2].signal("STOP");
    until("the frozen node is no member", async || {
        nodes[0].stats().await["fleet"]["peers"].as_array().expect("peers").len() == 1
    })
    .await;
    assert_eq!(members(&nodes[0]).await["former"], Value::from(vec![frozen.clone()]));
    nodes[0].wait_for_log(&format!("\"former\":\"{frozen}\""));
    for number in 0..10 {
        let new = Reply::ok(format!("new {number}")).header("Cache-Control", "max-age=600");
        origin.on(&format!("/{number}"), new);
    }
    let expected = vec![(told.clone(), "confirmed".to_owned()), (frozen.clone(), "unreachable".to_owned())];
    assert_eq!(purge_all(&nodes[0]).await, (503, expected));

    nodes[2].signal("CONT");
    until_whole(&nodes.iter().collect::<Vec<_>>()).await;
    assert_eq!(members(&nodes[0]).await["former"], Value::Array(Vec::new()));
    for node in &nodes {
        for number in 0..10 {
            assert_eq!(node.get(&format!("/{number}")).await.text(), format!("new {number}"));
        }
    }
    let (status, others) = purge_all(&nodes[0]).await;
    assert_eq!((status, others.len()), (200, 2));
    assert!(others.iter().all(|(_, state)| state == "confirmed"), "{others:?}");

    // One that leaves in good order is not missed; one that is killed may have been cut off, for all that anybody knows.
    let mut leaving = nodes.remove(2);
    leaving.signal("TERM");
    assert_eq!(leaving.ended().await.code(), Some(0));
    until_whole(&nodes.iter().collect::<Vec<_>>()).await;
    assert_eq!(purge_all(&nodes[0]).await, (200, vec![(told.clone(), "confirmed".to_owned())]));
    nodes.remove(1).kill();
    until_whole(&[&nodes[0]]).await;
    assert_eq!(purge_all(&nodes[0]).await, (503, vec![(told.clone(), "unreachable".to_owned())]));
    nodes.push(start(1));
    until_whole(&nodes.iter().collect::<Vec<_>>()).await;
    assert_eq!(purge_all(&nodes[0]).await, (200, vec![(told, "confirmed".to_owned())]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_keeps_what_is_in_memory() {
    const KEYS: usize = 100;
    let origin = Origin::start().await;
    keys(&origin, KEYS);
    let addresses = free_addresses(5);
    let listed: Vec<String> = addresses.iter().map(|address| format!("'http://{address}'")).collect();
    let fleet = format!("peers: [{}]", listed.join(", "));
    let setups: Vec<Setup> = addresses
        .iter()
        .map(|&address| {
            let setup = setup(&origin, address, &fleet);
            Setup { more: setup.more.replace("delay: 0s", "delay: 100ms"), ..setup }
        })
        .collect();
    let mut nodes: Vec<Node> = setups.iter().map(Setup::start).collect();
    until_whole(&nodes.iter().collect::<Vec<_>>()).await;
    ask_all(&nodes.iter().collect::<Vec<_>>(), KEYS).await;
    assert_eq!(asked(&origin), KEYS);
    for restarted in 0..5 {
        nodes[restarted].signal("TERM");
        nodes[restarted].wait_until_not_ready();
        let others = |nodes: &[Node]| -> Vec<usize> { (0..nodes.len()).filter(|&node| node != restarted).collect() };
        // Clients follow `ready`: they ask the others while it leaves, and when it is gone.
        let serving: Vec<&Node> = others(&nodes).into_iter().map(|node| &nodes[node]).collect();
        ask_all(&serving, KEYS).await;
        assert_eq!(nodes[restarted].ended().await.code(), Some(0));
        assert!(nodes[restarted].log().contains("handed over"), "{}", nodes[restarted].log());
        let serving: Vec<&Node> = others(&nodes).into_iter().map(|node| &nodes[node]).collect();
        ask_all(&serving, KEYS).await;
        nodes[restarted] = setups[restarted].start();
        until_whole(&nodes.iter().collect::<Vec<_>>()).await;
        ask_all(&nodes.iter().collect::<Vec<_>>(), KEYS).await;
        assert!(asked(&origin) * 10 <= KEYS * 11, "after restart {restarted}: {} of {KEYS}", asked(&origin));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_node_is_stood_in_for() {
    const KEYS: usize = 20;
    let origin = Origin::start().await;
    keys(&origin, KEYS);
    let fleet = Fleet::start(3, &Setup::group(&format!("origin: '{}'", origin.url()))).await;
    fleet.nodes[2].signal("STOP");
    ask_all(&[&fleet.nodes[0], &fleet.nodes[1]], KEYS).await;
    for node in &fleet.nodes[..2] {
        until("it is known to be silent", async || peers(node).await.len() == 1).await;
    }
    ask_all(&[&fleet.nodes[1], &fleet.nodes[0]], KEYS).await;
    assert_eq!(asked(&origin), KEYS, "one of the two stands in for both");
    fleet.nodes[2].signal("CONT");
    for node in &fleet.nodes[..2] {
        until("it is back", async || peers(node).await.len() == 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_drains_when_told_and_stays_after_all() {
    let origin = Origin::start().await;
    keys(&origin, 30);
    let fleet = Fleet::start(2, &Setup::group(&format!("origin: '{}'", origin.url()))).await;
    let (node, other) = (&fleet.nodes[0], &fleet.nodes[1]);
    ask_all(&[node], 30).await;
    let folder = tempfile::tempdir().unwrap();
    let url = node.admin_url();
    let drained = crate::kit::node::run(folder.path(), &["drain", &url]);
    assert!(drained.status.success(), "{drained:?}");
    assert_eq!(String::from_utf8_lossy(&drained.stdout), format!("{url} is draining\n"));
    assert_eq!(node.get("/_groupcache/ready").await.status(), 503);
    until("its entries are handed over", async || node.log().contains("handed over")).await;
    until("its peer knows", async || other.stats().await["fleet"]["peers"][0]["state"] == "draining").await;
    let questions = node.group("all").await["server_requests"].as_u64().unwrap();
    ask_all(&[other], 30).await;
    assert_eq!(node.group("all").await["server_requests"], questions, "nobody asks it to load");
    assert_eq!(asked(&origin), 30);
    let undone = crate::kit::node::run(folder.path(), &["drain", "--undo", &url]);
    assert!(undone.status.success(), "{undone:?}");
    assert_eq!(node.get("/_groupcache/ready").await.status(), 200);
    until("its peer knows", async || other.stats().await["fleet"]["peers"][0]["state"] == "up").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_may_act_drains_and_reloads() {
    let origin = Origin::start().await;
    let node = Setup::group(&format!("origin: '{}'", origin.url())).start();
    let head = |line: &str, host: &str, more: &str| {
        format!("{line} HTTP/1.1\r\nHost: {host}\r\n{more}Content-Length: 0\r\nConnection: close\r\n\r\n")
    };
    let json = "Content-Type: application/json\r\n";
    for (case, address, text, expected) in [
        ("no JSON", node.admin, head("POST /_groupcache/drain", "127.0.0.1", ""), 403),
        ("another host", node.admin, head("POST /_groupcache/drain", "evil.example", json), 403),
        (
            "a page in a browser",
            node.admin,
            head("POST /_groupcache/drain", "127.0.0.1", &format!("{json}Origin: http://evil.example\r\n")),
            403,
        ),
        (
            "through a proxy",
            node.admin,
            head("POST /_groupcache/reload", "127.0.0.1", &format!("{json}X-Forwarded-For: 192.0.2.1\r\n")),
            403,
        ),
        ("clients' listener", node.address, head("POST /_groupcache/drain", "127.0.0.1", json), 404),
        ("another method", node.admin, head("GET /_groupcache/drain", "127.0.0.1", json), 405),
        ("allowed", node.admin, head("POST /_groupcache/reload", "localhost:1", json), 200),
    ] {
        let mut client = Client::connect(address).await;
        client.send(text).await;
        assert_eq!(client.answer().await.status(), expected, "{case}");
    }
    assert_eq!(node.get("/_groupcache/ready").await.status(), 200, "nobody drained it");
    node.rewrite_text("groups: nonsense\n");
    let folder = tempfile::tempdir().unwrap();
    let reload = || crate::kit::node::run(folder.path(), &["reload", &node.admin_url()]);
    let wrong = reload();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("proxy.yaml:1:9: groups: found"), "{wrong:?}");
    node.rewrite(&Setup::group(&format!("origin: '{}'", origin.url())));
    let right = reload();
    assert!(right.status.success(), "{right:?}");
}
