//! Many clients at once, and what they see when the owner of their key dies, freezes or waits for a slow origin.

use std::time::{Duration, Instant};

use crate::kit::client::{Client, Framing, Head, within};
use crate::kit::fleet::Fleet;
use crate::kit::node::Setup;
use crate::kit::origin::{Gate, Origin, Reply};
use crate::kit::poll;

/// Clients that have asked for the same thing.
struct Crowd(Vec<Client>);

/// A client that has read the beginning of a body.
struct Begun {
    client: Client,
    head: Head,
    body: Vec<u8>,
}

impl Crowd {
    /// So many clients, spread over the nodes; each sends a `GET` with the lines that belong to its number.
    async fn ask(
        nodes: &[std::net::SocketAddr],
        count: usize,
        target: &str,
        lines: fn(usize) -> &'static str,
    ) -> Crowd {
        let asking: Vec<_> = (0..count)
            .map(|number| {
                let (address, target) = (nodes[number % nodes.len()], target.to_owned());
                tokio::spawn(async move {
                    let mut client = Client::connect(address).await;
                    client.ask_with(&target, lines(number)).await;
                    client
                })
            })
            .collect();
        let mut clients = Vec::with_capacity(count);
        for client in asking {
            clients.push(client.await.expect("a client"));
        }
        Crowd(clients)
    }

    /// Every client's head and the first bytes of its body.
    async fn begin(self) -> Vec<Begun> {
        let reading: Vec<_> = self.0.into_iter().map(|client| tokio::spawn(Begun::read(client))).collect();
        let mut begun = Vec::with_capacity(reading.len());
        for client in reading {
            begun.push(client.await.expect("a client"));
        }
        begun
    }
}

impl Begun {
    async fn read(mut client: Client) -> Begun {
        let head = client.head().await;
        assert_eq!(head.status, 200, "{}", head.text);
        let body = client.some().await;
        assert!(!body.is_empty(), "a head and no body: {}", head.text);
        Begun { client, head, body }
    }

    /// The whole body; `false` when it broke off.
    async fn end(mut self) -> (Vec<u8>, bool) {
        let Framing::Length(length) = self.head.framing else { panic!("no length: {}", self.head.text) };
        let rest = Head { framing: Framing::Length(length - self.body.len() as u64), ..self.head };
        let (more, whole) = self.client.body(&rest).await;
        self.body.extend(more);
        (self.body, whole)
    }
}

/// The answers of the whole crowd: how many were broken, while the others must be `expected(number)`.
async fn broken_among(begun: Vec<Begun>, expected: impl Fn(usize) -> Vec<u8>) -> usize {
    let reading: Vec<_> = begun.into_iter().map(|client| tokio::spawn(client.end())).collect();
    let mut broken = 0;
    for (number, client) in reading.into_iter().enumerate() {
        let (body, whole) = client.await.expect("a client");
        if whole {
            assert!(body == expected(number), "client {number} got something else, {} bytes", body.len());
        } else {
            assert!(expected(number).starts_with(&body), "client {number} got something else, {} bytes", body.len());
            broken += 1;
        }
    }
    broken
}

fn bytes(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 + index / 251 + seed) as u8).collect()
}

/// Requests of clients that the caches have seen begin, in the whole fleet.
async fn asked_by_clients(fleet: &Fleet) -> u64 {
    fleet.sum("gets").await - fleet.sum("server_requests").await
}

fn addresses(fleet: &Fleet) -> Vec<std::net::SocketAddr> {
    fleet.nodes.iter().map(|node| node.address).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_clients_of_three_nodes_cost_the_origin_one_request_and_read_while_it_arrives() {
    let origin = Origin::start().await;
    let (slow, half) = (Gate::new(), Gate::new());
    let body = bytes(16 * 1024, 0);
    let reply = Reply::ok(body.clone()).header("Cache-Control", "max-age=600").hold(&slow).hold_after(4096, &half);
    origin.on("/cold", reply);
    let fleet = Fleet::start(3, &Setup::group(&format!("origin: '{}'", origin.url()))).await;

    let crowd = Crowd::ask(&addresses(&fleet), 2000, "/cold", |_| "").await;
    poll::until("2,000 requests wait", async || asked_by_clients(&fleet).await == 2000).await;
    slow.open();
    // All of them have a head and a first byte, and the origin still holds three quarters back.
    let begun = crowd.begin().await;
    assert_eq!(begun.len(), 2000);
    half.open();
    assert_eq!(broken_among(begun, |_| body.clone()).await, 0);
    assert_eq!(origin.requests("/cold"), 1);
    // Three flights at most: one per node; all other requests followed one.
    let (loads, deduped) = (fleet.sum("loads").await, fleet.sum("loads_deduped").await);
    assert!(loads >= 2000 && deduped <= 5, "loads {loads}, deduped {deduped}");
    assert_eq!(fleet.sum("local_loads").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_kinds_of_clients_cost_the_origin_one_request_for_each_variant() {
    let origin = Origin::start().await;
    let (slow, half) = (Gate::new(), Gate::new());
    let (plain, coded) = (bytes(16 * 1024, 1), bytes(12 * 1024, 2));
    let reply = Reply::ok(plain.clone()).encoded("gzip", coded.clone()).header("Cache-Control", "max-age=600");
    origin.on("/cold", reply.hold(&slow).hold_after(4096, &half));
    let fleet = Fleet::start(3, &Setup::group(&format!("origin: '{}'", origin.url()))).await;

    // Every node gets both kinds.
    let wants_gzip = |number: usize| number / 3 % 2 == 1;
    let lines = |number: usize| if number / 3 % 2 == 1 { "Accept-Encoding: gzip\r\n" } else { "" };
    let crowd = Crowd::ask(&addresses(&fleet), 2000, "/cold", lines).await;
    poll::until("2,000 requests wait", async || asked_by_clients(&fleet).await == 2000).await;
    slow.open();
    let begun = crowd.begin().await;
    for (number, client) in begun.iter().enumerate() {
        assert_eq!(client.head.field("content-encoding"), wants_gzip(number).then_some("gzip"), "client {number}");
    }
    half.open();
    let expected = |number| if wants_gzip(number) { coded.clone() } else { plain.clone() };
    assert_eq!(broken_among(begun, expected).await, 0);
    assert_eq!(origin.requests("/cold"), 2, "one request for each variant");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_killed_in_mid_body_gives_nobody_a_part_for_the_whole_and_the_next_request_works() {
    let origin = Origin::start().await;
    let half = Gate::new();
    let body = bytes(64 * 1024, 3);
    origin.on("/cold", Reply::ok(body.clone()).header("Cache-Control", "max-age=600").hold_after(20_000, &half));
    let mut fleet = Fleet::start(3, &Setup::group(&format!("origin: '{}'", origin.url()))).await;
    let owner = fleet.owner_of("/cold").await;

    let begun = Crowd::ask(&addresses(&fleet), 30, "/cold", |_| "").await.begin().await;
    assert_eq!(origin.requests("/cold"), 1);
    fleet.nodes[owner].kill();
    // Nobody can have the whole: the origin never sent it.
    assert_eq!(broken_among(begun, |_| body.clone()).await, 30);
    half.open();
    for (_, node) in fleet.nodes.iter().enumerate().filter(|(index, _)| *index != owner) {
        let answer = node.get("/cold").await;
        assert!((answer.status(), &answer.body) == (200, &body), "{}", answer.head.text);
    }
    assert_eq!(origin.requests("/cold"), 2, "one of the two stands in for both");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_owner_is_stood_in_for_after_the_silence() {
    let origin = Origin::start().await;
    let half = Gate::new();
    for target in ["/before", "/after"] {
        origin.on(target, Reply::ok("hello").header("Cache-Control", "max-age=600"));
    }
    let fleet = Fleet::start(3, &Setup::group(&format!("origin: '{}'", origin.url()))).await;
    // A key of the same owner that is still arriving when the owner freezes.
    let owner = fleet.owner_of("/before").await;
    let mut arriving = None;
    for number in 0..100 {
        let target = format!("/arriving/{number}");
        if fleet.owner_of(&target).await == owner {
            arriving = Some(target);
            break;
        }
    }
    let arriving = arriving.expect("a key of this owner");
    origin.on(&arriving, Reply::ok("0123456789").header("Cache-Control", "max-age=600").hold_after(4, &half));
    let others: Vec<_> = fleet.nodes.iter().enumerate().filter(|(index, _)| *index != owner).collect();
    let begun = Crowd::ask(&[others[0].1.address, others[1].1.address], 4, &arriving, |_| "").await.begin().await;

    fleet.nodes[owner].signal("STOP");
    let since = Instant::now();
    for (index, node) in &others {
        let answer = node.get("/before").await;
        assert_eq!((answer.status(), &*answer.text()), (200, "hello"), "node {index}");
    }
    // One silence is a second; three of them leave room for a busy machine.
    assert!(since.elapsed() < Duration::from_secs(6), "{:?}", since.elapsed());
    assert_eq!(origin.requests("/before"), 1, "one of the two stands in for both");
    assert_eq!(broken_among(begun, |_| b"0123456789".to_vec()).await, 4, "what was arriving broke off visibly");

    // Thawed, it is a peer again.
    fleet.nodes[owner].signal("CONT");
    for (_, node) in &others {
        node.wait_until_connected().await;
    }
    for node in &fleet.nodes {
        assert_eq!(node.get(&format!("/before?{}", node.address)).await.status(), 404, "not scripted, but answered");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_origin_is_not_a_silent_owner() {
    let origin = Origin::start().await;
    let slow = Gate::new();
    origin.on("/slow", Reply::ok("late").header("Cache-Control", "max-age=600").hold(&slow));
    let fleet =
        Fleet::with(3, &Setup::group(&format!("origin: '{}'", origin.url())), "timeouts: { silence: 1s }").await;
    let crowd = Crowd::ask(&addresses(&fleet), 6, "/slow", |_| "").await;
    within(origin.arrived("/slow", 1)).await;
    // Time itself is what is tested here: three times the silence that a peer may keep.
    tokio::time::sleep(Duration::from_secs(3)).await;
    slow.open();
    assert_eq!(broken_among(crowd.begin().await, |_| b"late".to_vec()).await, 0);
    assert_eq!(origin.requests("/slow"), 1, "nobody took the owner for dead");
    assert_eq!(fleet.sum("peer_errors").await, 0);
}
