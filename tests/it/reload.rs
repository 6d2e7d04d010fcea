//! Reloads under load: groups change as a whole, connections stay, and a mistake changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::kit::node::{Setup, free_addresses};
use crate::kit::origin::{Gate, Origin, Reply};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_change_under_load_and_no_connection_is_dropped() {
    let (old, new) = (Origin::start().await, Origin::start().await);
    old.on("/a", Reply::ok("old").header("Cache-Control", "max-age=600"));
    new.on("/a", Reply::ok("new").header("Cache-Control", "max-age=600"));
    let setup = Setup::group(&format!("origin: '{}'", old.url()));
    let node = setup.start();

    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (address, done, asked) = (node.address, done.clone(), asked.clone());
            tokio::spawn(async move {
                let mut client = crate::kit::client::Client::connect(address).await;
                let mut bodies = Vec::new();
                while !done.load(Ordering::SeqCst) {
                    let answer = client.get("/a").await;
                    assert_eq!(answer.status(), 200, "{}", answer.text());
                    bodies.push(answer.text());
                    asked.fetch_add(1, Ordering::SeqCst);
                }
                bodies
            })
        })
        .collect();
    let some_more = async || {
        let enough = asked.load(Ordering::SeqCst) + 100;
        while asked.load(Ordering::SeqCst) < enough {
            tokio::task::yield_now().await;
        }
    };
    some_more().await;
    node.rewrite(&Setup::group(&format!("origin: '{}'", new.url())));
    node.signal("HUP");
    node.wait_for_log("configuration read again");
    some_more().await;
    done.store(true, Ordering::SeqCst);
    for client in clients {
        let bodies = client.await.expect("a client");
        let turn = bodies.iter().position(|body| body == "new").expect("the new origin answers");
        assert!(bodies[..turn].iter().all(|body| body == "old") && bodies[turn..].iter().all(|body| body == "new"));
    }
    // Its entries were the old origin's: they went, and the counters went on.
    assert_eq!((old.requests("/a"), new.requests("/a")), (1, 1));
    let stats = node.stats().await;
    assert_eq!(stats["groups"]["all"]["local_loads"], 2);
    assert_eq!(stats["config"]["last_error"], serde_json::Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_changes_nothing_and_says_why() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("here").header("Cache-Control", "max-age=600"));
    let setup = Setup::group(&format!("origin: '{}'", origin.url()));
    let node = setup.start();
    let mut client = node.connect().await;
    assert_eq!(client.get("/a").await.text(), "here");
    let sha256 = node.stats().await["config"]["sha256"].clone();

    node.rewrite_text("groups:\n  - name: all\n    origin: nonsense\n    memoryy: 1GiB\n");
    node.signal("HUP");
    node.wait_for_log("the old configuration stays in effect");
    assert_eq!(client.get("/a").await.text(), "here");
    let config = node.stats().await["config"].clone();
    let error = config["last_error"].as_str().expect("the error").to_owned();
    assert!(error.contains("proxy.yaml:3:") && error.contains("proxy.yaml:4:"), "{error}");
    assert_eq!(error.lines().count(), 2, "{error}");
    assert_eq!(config["sha256"], sha256);

    node.rewrite(&setup);
    node.signal("HUP");
    node.wait_for_log("configuration read again");
    assert_eq!(node.stats().await["config"]["last_error"], serde_json::Value::Null);
    assert_eq!(origin.requests("/a"), 1, "what did not change keeps its entries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_restart_is_said() {
    let setup = Setup::group("directory: .");
    let node = setup.start();
    node.rewrite(&Setup { more: "threads: 3\n".into(), ..setup });
    node.signal("HUP");
    node.wait_for_log("configuration read again");
    assert!(node.log().contains("these keys changed and need a restart") && node.log().contains("threads"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_reads_a_changed_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = |lifetime: &str| {
        format!(
            "listen: [{{ address: '127.0.0.1:0' }}]\nadmin: {{ address: '127.0.0.1:0' }}\nlog: {{ format: json }}\n\
             groups: [{{ name: all, directory: ., freshness: {{ default: {lifetime} }} }}]\n"
        )
    };
    std::fs::write(folder.path().join("proxy.yaml"), text("1s")).expect("writing the configuration");
    let node = crate::kit::node::Node::run(folder, &[], &["run", "--watch", "--config", "proxy.yaml"]);
    node.wait_until_ready();
    node.rewrite_text(&text("2s"));
    node.wait_for_log("configuration read again");
}

/// A fill of before the reload ends after it: its client gets it, and nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fill_of_the_old_origin_stores_nothing_for_the_new_one() {
    let (old, new) = (Origin::start().await, Origin::start().await);
    let gate = Gate::new();
    old.on("/a", Reply::ok("old body").header("Cache-Control", "max-age=600").hold_after(3, &gate));
    new.on("/a", Reply::ok("new").header("Cache-Control", "max-age=600"));
    let node = Setup::group(&format!("origin: '{}'", old.url())).start();
    let mut early = node.connect().await;
    early.ask("/a").await;
    let head = early.head().await;

    node.rewrite(&Setup::group(&format!("origin: '{}'", new.url())));
    node.signal("HUP");
    node.wait_for_log("configuration read again");
    gate.open();
    let (body, whole) = early.body(&head).await;
    assert_eq!((&*body, whole), (&b"old body"[..], true));
    for _ in 0..2 {
        assert_eq!(node.get("/a").await.text(), "new");
    }
    assert_eq!((old.requests("/a"), new.requests("/a")), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_grows_by_a_reload() {
    let origin = Origin::start().await;
    for number in 0..20 {
        origin.on(&format!("/{number}"), Reply::ok("here").header("Cache-Control", "max-age=600"));
    }
    let addresses = free_addresses(2);
    let with = |own: usize, peers: &[usize]| {
        let peers: Vec<String> = peers.iter().map(|&peer| format!("'http://{}'", addresses[peer])).collect();
        let setup = Setup::group(&format!("origin: '{}'", origin.url()));
        let fleet = format!("fleet: {{ self: 'http://{}', peers: [{}] }}\n", addresses[own], peers.join(", "));
        Setup { address: addresses[own], more: format!("{}{fleet}", setup.more), ..setup }
    };
    let (first, second) = (with(0, &[0]).start(), with(1, &[0, 1]).start());
    let mut client = first.connect().await;
    assert_eq!(client.get("/0").await.text(), "here");
    first.rewrite(&with(0, &[0, 1]));
    first.signal("HUP");
    first.wait_for_log("configuration read again");
    first.wait_until_connected().await;
    let ring_id = async |node: &crate::kit::node::Node| node.stats().await["fleet"]["ring_id"].clone();
    assert_eq!(ring_id(&first).await, ring_id(&second).await);
    // On the connection of before, and each key is fetched once, whoever owns it now.
    for number in 1..20 {
        assert_eq!(client.get(&format!("/{number}")).await.text(), "here");
        assert_eq!(second.get(&format!("/{number}")).await.text(), "here");
        assert_eq!(origin.requests(&format!("/{number}")), 1, "key {number}");
    }
    let shared = first.group("all").await["peer_loads"].as_u64().expect("a counter");
    assert!(shared > 0, "the new peer owns some keys");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resharding_is_cold_from_a_reload_on() {
    let origin = Origin::start().await;
    let keys: Vec<String> = (0..20).map(|number| format!("/{number}")).collect();
    for key in &keys {
        origin.on(key, Reply::ok("here").header("Cache-Control", "max-age=600"));
    }
    let addresses = free_addresses(2);
    let with = |own: usize, peers: &[usize], resharding: &str| {
        let peers: Vec<String> = peers.iter().map(|&peer| format!("'http://{}'", addresses[peer])).collect();
        let setup = Setup::group(&format!("origin: '{}'", origin.url()));
        let list = peers.join(", ");
        let fleet =
            format!("fleet: {{ self: 'http://{}', peers: [{list}], resharding: {resharding} }}\n", addresses[own]);
        Setup { address: addresses[own], more: format!("{}{fleet}", setup.more), ..setup }
    };
    let (first, second) = (with(0, &[0], "warm").start(), with(1, &[0, 1], "cold").start());
    for key in &keys {
        assert_eq!(first.get(key).await.text(), "here");
    }
    first.rewrite(&with(0, &[0, 1], "cold"));
    first.signal("HUP");
    first.wait_for_log("configuration read again");
    first.wait_until_connected().await;
    second.wait_until_connected().await;
    for key in &keys {
        assert_eq!(second.get(key).await.text(), "here");
    }
    let asked = || keys.iter().map(|key| origin.requests(key)).sum::<usize>();
    let moved = second.group("all").await["local_loads"].as_u64().expect("a counter") as usize;
    assert!(moved > 0, "the new peer owns some keys");
    assert_eq!(asked(), keys.len() + moved, "each key that moved is fetched again");
    for node in [&first, &second] {
        assert_eq!(node.group("all").await["peeks"], 0);
    }
    // Who leaves hands nothing over.
    second.signal("TERM");
    second.wait_for_log("\"entries\":0");
}
