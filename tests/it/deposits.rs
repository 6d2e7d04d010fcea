//! What the answer to a `POST` leaves behind (RFC 9110 section 9.3.3, RFC 9111 section 4.4), over real sockets.

use crate::kit::client::{Answer, Client};
use crate::kit::fleet::Fleet;
use crate::kit::node::{Node, Setup};
use crate::kit::origin::{Origin, Reply, Request};
use crate::kit::poll;

async fn post(node: &Node, target: &str, lines: &str) -> Answer {
    let mut client: Client = node.connect().await;
    client.send(format!("POST {target} HTTP/1.1\r\nHost: test.example\r\nContent-Length: 0\r\n{lines}\r\n")).await;
    client.answer().await
}

fn asked(origin: &Origin, method: &str) -> usize {
    origin.log().iter().filter(|request| request.method == method).count()
}

fn posted(name: &str, value: &str) -> Reply {
    let (name, value) = (name.to_owned(), value.to_owned());
    Reply::made(move |request: &Request, _| match request.method.as_str() {
        "POST" => Reply::ok("posted").header("Cache-Control", "max-age=600").header(&name, &value),
        _ => Reply::ok("got").header("Cache-Control", "max-age=600"),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_a_post_answers_gets_on_every_node() {
    let origin = Origin::start().await;
    origin.on("/a", posted("Content-Location", "/a"));
    let fleet = Fleet::start(3, &Setup::group(&format!("origin: '{}'", origin.url()))).await;
    let owner = fleet.owner_of("/a").await;
    let teller = (owner + 1) % 3;
    assert_eq!(post(&fleet.nodes[teller], "/a", "").await.text(), "posted");
    // The owner takes it over behind the answer.
    poll::until("the owner has it", async || {
        fleet.nodes[owner].group("all").await["main"]["items"].as_u64() == Some(1)
    })
    .await;
    for node in &fleet.nodes {
        assert_eq!(node.get("/a").await.text(), "posted");
    }
    assert_eq!(asked(&origin, "GET"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_a_post_that_is_of_something_else_or_of_one_client_is_not_kept() {
    let origin = Origin::start().await;
    origin.on("/other", posted("Content-Location", "/elsewhere"));
    origin.on("/none", posted("X-Nothing", "1"));
    origin.on("/cookie", posted("Content-Location", "/cookie"));
    let node = Setup::group(&format!("origin: '{}'", origin.url())).start();
    for (target, lines) in [("/other", ""), ("/none", ""), ("/cookie", "Cookie: who=me\r\n")] {
        assert_eq!(post(&node, target, lines).await.text(), "posted", "{target}");
        assert_eq!(node.get(target).await.text(), "got", "{target}");
    }
}

/// The origin's paths begin at `/v1`, those of clients at `/shop`; what the answers name is found in either's words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_may_speak_of_the_origins_paths_or_of_the_clients() {
    let origin = Origin::start().await;
    origin.on("/v1/items/7", Reply::ok("seven").header("Cache-Control", "max-age=600"));
    for (target, location) in [
        ("/v1/items", "/v1/items/7".to_owned()),
        ("/v1/clients", "/shop/items/7".to_owned()),
        ("/v1/whole", format!("{}/v1/items/7", origin.url())),
        ("/v1/near", "items/7".to_owned()),
        ("/v1/far", "/items/7".to_owned()),
    ] {
        origin.on(target, Reply::made(move |_: &Request, _| Reply::status(201, "").header("Location", &location)));
    }
    origin.on("/v1/self", posted("Content-Location", "/v1/self"));
    let groups = format!("[{{ name: all, match: {{ path: /shop/ }}, origin: '{}/v1' }}]", origin.url());
    let node = Setup::groups(&groups).start();
    let fresh = async || node.get("/shop/items/7").await.head.field("age").is_some();
    for (name, gone) in [("items", true), ("clients", true), ("whole", true), ("near", true), ("far", false)] {
        node.get("/shop/items/7").await;
        // The client has the whole answer a moment before the store has it.
        poll::until(name, fresh).await;
        assert_eq!(post(&node, &format!("/shop/{name}"), "").await.status(), 201);
        assert_eq!(!fresh().await, gone, "{name}");
    }
    assert_eq!(post(&node, "/shop/self", "").await.text(), "posted");
    assert_eq!(node.get("/shop/self").await.text(), "posted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_after_forwarding_says_why_it_was_forwarded() {
    let node = Setup::group("origin: 'http://127.0.0.1:1'").start();
    let answer = post(&node, "/a", "").await;
    assert_eq!(answer.status(), 502);
    let said = answer.head.field("cache-status").expect("a Cache-Status").to_owned();
    assert!(said.starts_with("groupcache-proxy; fwd=method; detail="), "{said}");
}
