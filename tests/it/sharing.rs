//! What may be shared and what never: private answers, credentials and cookies in a crowd, clients that leave, bodies that are
//! too large to keep.

use std::collections::HashSet;

use crate::kit::client::{Client, within};
use crate::kit::fleet::Fleet;
use crate::kit::node::Setup;
use crate::kit::origin::{Gate, Origin, Reply};
use crate::kit::poll;

fn setup(origin: &Origin) -> Setup {
    Setup::group(&format!("origin: '{}'", origin.url()))
}

/// So many clients, one after the other on each node, ask for `target`; all wait at the gate before it opens.
async fn answers_of_a_crowd(
    fleet: &Fleet,
    count: usize,
    target: &str,
    lines: impl Fn(usize) -> String,
    gate: &Gate,
) -> Vec<(u16, String)> {
    let mut waiting = Vec::new();
    for number in 0..count {
        let mut client = fleet.nodes[number % fleet.nodes.len()].connect().await;
        client.ask_with(target, &lines(number)).await;
        waiting.push(client);
    }
    poll::until("everybody asks", async || fleet.asked_by_clients().await >= count as u64).await;
    gate.open();
    let mut answers = Vec::new();
    for client in &mut waiting {
        let answer = client.answer().await;
        answers.push((answer.status(), answer.text()));
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_with_credentials_gets_each_its_own() {
    let origin = Origin::start().await;
    let gate = Gate::new();
    let held = gate.clone();
    let made = move |request: &crate::kit::origin::Request, _| {
        let who = request.field("authorization").unwrap_or("nobody").to_owned();
        Reply::ok(format!("for {who}")).header("Cache-Control", "max-age=600").hold(&held)
    };
    origin.on("/me", Reply::made(made));
    let fleet = Fleet::start(3, &setup(&origin)).await;
    let lines = |number| format!("Authorization: Bearer user-{number}\r\n");
    let answers = answers_of_a_crowd(&fleet, 30, "/me", lines, &gate).await;
    for (number, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer, (200, format!("for Bearer user-{number}")));
    }
    for node in &fleet.nodes {
        assert_eq!(node.get("/me").await.text(), "for nobody", "nobody's answer was stored for all");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_answer_goes_to_the_one_who_caused_it() {
    for (field, value) in [("Cache-Control", "private"), ("Cache-Control", "no-store"), ("Set-Cookie", "id=7; Path=/")]
    {
        let origin = Origin::start().await;
        let gate = Gate::new();
        let held = gate.clone();
        let made = move |_: &crate::kit::origin::Request, before: usize| {
            Reply::ok(format!("answer {before}")).header(field, value).hold(&held)
        };
        origin.on("/me", Reply::made(made));
        let fleet = Fleet::start(3, &setup(&origin)).await;
        let answers = answers_of_a_crowd(&fleet, 30, "/me", |_| String::new(), &gate).await;
        let distinct: HashSet<&String> = answers.iter().map(|(_, body)| body).collect();
        assert_eq!(distinct.len(), 30, "{field}: {value}: {answers:?}");
        assert!(answers.iter().all(|(status, _)| *status == 200));
        assert_eq!(origin.requests("/me"), 30, "{field}: {value}");
        for node in &fleet.nodes {
            let group = node.group("all").await;
            assert_eq!((&group["main"]["items"], &group["hot"]["items"]), (&0.into(), &0.into()), "{field}: {value}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_do_not_reach_the_origin_and_do_not_divide_the_cache() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("for all").header("Cache-Control", "max-age=600"));
    let fleet = Fleet::start(2, &setup(&origin)).await;
    for number in 0..6 {
        let mut client = fleet.nodes[number % 2].connect().await;
        let answer = client.get_with("/a", &format!("Cookie: session={number}\r\n")).await;
        assert_eq!(answer.text(), "for all");
    }
    assert_eq!(origin.requests("/a"), 1);
    assert_eq!(origin.last("/a").field("cookie"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_disturbs_nobody_and_a_fill_without_readers_ends() {
    let origin = Origin::start().await;
    let half = Gate::new();
    let body = vec![b'b'; 200_000];
    for target in ["/shared", "/alone"] {
        let reply = Reply::ok(body.clone()).header("Cache-Control", "max-age=600");
        origin.on(target, reply.hold_after(50_000, &half));
    }
    let fleet = Fleet::start(3, &setup(&origin)).await;
    let begin = async |index: usize, target: &str| {
        let mut client: Client = fleet.nodes[index].connect().await;
        client.ask(target).await;
        let head = client.head().await;
        assert_eq!(head.status, 200);
        (client, head)
    };
    // Asked through a node that is not the owner, so that two nodes have to notice.
    let owner = fleet.owner_of("/alone").await;
    let (leaving, _) = begin((owner + 1) % 3, "/alone").await;
    assert_eq!(origin.requests("/alone"), 1);
    drop(leaving);
    within(origin.closed(1)).await;

    let mut staying = Vec::new();
    for index in 0..3 {
        let (leaving, _) = begin(index, "/shared").await;
        staying.push(begin(index, "/shared").await);
        drop(leaving);
    }
    half.open();
    for (mut client, head) in staying {
        let (read, whole) = client.body(&head).await;
        assert!(whole && read == body);
    }
    assert_eq!(origin.requests("/shared"), 1);
    let answer = fleet.nodes[0].get("/alone").await;
    assert!(answer.body == body, "the next request works");
    assert_eq!(origin.requests("/alone"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_beyond_max_object_streams_through_every_node_and_stays_in_none() {
    let origin = Origin::start().await;
    // Every eight bytes tell their place.
    let body: Vec<u8> = (0..5_000_000_u64).flat_map(|place| (place * 8).to_be_bytes()).collect();
    let fresh = |reply: Reply| reply.header("Cache-Control", "max-age=600");
    origin.on("/length", fresh(Reply::ok(body.clone())));
    origin.on("/chunks", fresh(Reply::ok(body.clone()).chunked(100_000)));
    let fleet = Fleet::start(3, &Setup::group(&format!("origin: '{}', max_object: 1MiB", origin.url()))).await;
    for target in ["/length", "/chunks"] {
        for (index, node) in fleet.nodes.iter().enumerate() {
            let answer = node.get(target).await;
            assert_eq!(answer.status(), 200, "{target} from node {index}");
            let wrong = answer.body.iter().zip(&body).position(|(got, expected)| got != expected);
            let lengths = (answer.body.len(), body.len());
            assert!(answer.body == body, "{target} from node {index}: {lengths:?}, wrong from byte {wrong:?}");
        }
        assert_eq!(origin.requests(target), 3, "{target} is stored nowhere");
    }
    for node in &fleet.nodes {
        let stats = node.stats().await;
        let group = &stats["groups"]["all"];
        assert_eq!((&group["main"]["items"], &group["hot"]["items"]), (&0.into(), &0.into()));
        poll::until("what streamed through is given back", async || {
            node.stats().await["memory"]["used_bytes"].as_u64() < Some(2 << 20)
        })
        .await;
        let resident = stats["memory"]["resident_bytes"].as_u64().expect("resident bytes");
        assert!(resident < 128 << 20, "{resident} bytes resident for a budget of 64 MiB");
    }
}

/// An answer from the owner's memory that is too long to leave in one frame is looked for twice there, and is one question.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_answer_over_the_hop_counts_once() {
    let origin = Origin::start().await;
    let body = "0123456789".repeat(20_000);
    origin.on("/long", Reply::ok(body.clone()).header("Cache-Control", "max-age=600"));
    let fleet = Fleet::start(2, &setup(&origin)).await;
    let owner = fleet.owner_of("/long").await;
    assert_eq!(fleet.nodes[owner].get("/long").await.text(), body);
    let other = &fleet.nodes[1 - owner];
    assert_eq!(other.get("/long").await.text(), body);
    let owner = fleet.nodes[owner].group("all").await;
    let counted =
        ["gets", "server_requests", "cache_hits", "loads"].map(|name| owner[name].as_u64().expect("a counter"));
    assert_eq!(counted, [2, 1, 1, 1]);
}
