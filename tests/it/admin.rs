//! Who is answered under `/_groupcache/`, on real listeners.

use crate::kit::client::Client;
use crate::kit::node::Setup;
use crate::kit::origin::{Origin, Reply};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_listener_answers_what_it_is_for() {
    let setup =
        Setup { admin: "read_token: reading-token-12, token: acting-token-12".into(), ..Setup::group("directory: .") };
    let node = setup.start();
    let (clients, admin) = (node.address, node.admin);
    for (address, target, lines, expected) in [
        (clients, "/_groupcache/health", "", 200),
        (clients, "/_groupcache/ready", "", 200),
        (clients, "/_groupcache/ready", "Via: 1.1 other\r\n", 200),
        (admin, "/_groupcache/health", "", 200),
        (admin, "/_groupcache/stats", "", 200),
        (admin, "/_groupcache/stats", "X-Forwarded-For: 192.0.2.1\r\n", 401),
        (admin, "/_groupcache/stats", "Forwarded: for=192.0.2.1\r\nAuthorization: Bearer reading-token-12\r\n", 200),
        (admin, "/_groupcache/stats", "Via: 1.1 a\r\nAuthorization: Basic eDpyZWFkaW5nLXRva2VuLTEy\r\n", 200),
        (admin, "/_groupcache/stats", "Via: 1.1 a\r\nAuthorization: Bearer wrong\r\n", 401),
        (admin, "/_groupcache/explain?path=/a", "", 200),
        (admin, "/_groupcache/explain", "", 400),
        (admin, "/_groupcache/explain?path=/../a", "", 400),
        // Without the role there is nothing.
        (clients, "/_groupcache/stats", "", 404),
        (clients, "/_groupcache/stats", "Authorization: Bearer reading-token-12\r\n", 404),
        (clients, "/_groupcache/explain?path=/a", "", 404),
        (admin, "/a", "", 404),
        // Later issues.
        (admin, "/_groupcache/metrics", "", 404),
        (admin, "/_groupcache/top", "", 404),
        (admin, "/_groupcache/", "", 404),
        // Other spellings are no names of ours; and no group has such keys.
        (admin, "/_groupcache/stats/", "", 404),
        (admin, "/_groupcache/%73tats", "", 404),
        (clients, "/_groupcache/all/a", "", 404),
        // Nobody is a peer where there is no fleet.
        (clients, "/_groupcache/", "Connection: Upgrade\r\nUpgrade: groupcache/1\r\n", 404),
    ] {
        let answer = Client::connect(address).await.get_with(target, lines).await;
        let place = if address == admin { "admin" } else { "clients" };
        assert_eq!(answer.status(), expected, "{place} {target} {lines:?}: {}", answer.text());
    }
    let answer = Client::connect(admin).await.get_with("/_groupcache/stats", "Via: 1.1 a\r\n").await;
    assert!(answer.head.field("www-authenticate").is_some());
    assert!(!node.log().contains("token-12"), "a secret is in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_address_of_its_own_administration_is_for_loopback_asking_directly() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = "listen: [{ address: '127.0.0.1:0' }, { address: '[::]:0' }]\nlog: { format: json }\n\
                groups: [{ name: all, directory: . }]\n";
    std::fs::write(folder.path().join("proxy.yaml"), text).expect("writing the configuration");
    let node = crate::kit::node::Node::run(folder, &[], &["run", "--config", "proxy.yaml"]);
    node.wait_until_ready();
    let ask = async |lines: &str| node.connect().await.get_with("/_groupcache/stats", lines).await.status();
    assert_eq!(ask("").await, 200);
    assert_eq!(ask("X-Forwarded-For: 192.0.2.1\r\n").await, 403);
    assert_eq!(ask("X-Forwarded-Host: a\r\n").await, 403);
    assert_eq!(ask("Via: 1.1 a\r\n").await, 403);
    // Bound to every address: a proxy in front may reach it from anywhere.
    node.wait_for_log("[::]:");
    let log = node.log();
    let port: u16 = log.split("[::]:").nth(1).and_then(|rest| rest.split('"').next()?.parse().ok()).expect("a port");
    let answer = crate::kit::client::get(([127, 0, 0, 1], port).into(), "/_groupcache/stats").await;
    assert_eq!(answer.status(), 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_have_the_documented_names_and_add_up() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("hello").header("Cache-Control", "max-age=60"));
    origin.on("/private", Reply::ok("mine").header("Cache-Control", "private"));
    let node = Setup::group(&format!("origin: '{}'", origin.url())).start();
    let mut client = node.connect().await;
    client.get("/a").await;
    // The body was sent before it was stored.
    while node.group("all").await["main"]["items"] == 0 {}
    for target in ["/a", "/a", "/private", "/missing"] {
        client.get(target).await;
    }
    client.send("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi").await;
    client.answer().await;
    // What passes is counted once its answer is sent; the connection takes the next request after that.
    client.get("/_groupcache/health").await;

    let stats = node.stats().await;
    let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(
        names(&stats),
        "config connections fleet flights flights_oldest_seconds groups memory purge rejects replicas self state uptime_seconds version"
    );
    assert_eq!(names(&stats["config"]), "last_error loaded_at sha256");
    assert_eq!(names(&stats["memory"]), "limit_bytes resident_bytes used_bytes");
    let group = &stats["groups"]["all"];
    assert_eq!(
        names(group),
        "cache_hits client gets hot interims interims_dropped loads loads_collapsed loads_deduped local_load_errs local_loads main miss_reasons \
         not_stored origins peek_hits peeks peer_errors peer_loads ring_disagreements server_requests"
    );
    assert_eq!(names(&group["client"]), "bytes error hit hit_ratio_1m miss pass requests revalidated stale");
    assert_eq!(names(&group["main"]), "bytes evictions gets hits items");
    let number = |path: &str| group.pointer(path).and_then(|value| value.as_u64()).unwrap_or_else(|| panic!("{path}"));
    assert_eq!(number("/client/requests"), 6);
    let outcomes = ["hit", "stale", "revalidated", "miss", "pass", "error"];
    let sum: u64 = outcomes.iter().map(|outcome| number(&format!("/client/{outcome}"))).sum();
    assert_eq!(sum, number("/client/requests"), "{group}");
    assert_eq!(number("/loads"), number("/loads_deduped") + number("/loads_collapsed"));
    assert_eq!((number("/client/hit"), number("/client/pass")), (2, 1), "{group}");
    assert!(number("/main/items") >= 1 && number("/main/bytes") > 0);
    assert!(stats["memory"]["resident_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(group["origins"].as_object().unwrap().len() == 1, "{group}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_tells_and_never_fetches() {
    let origin = Origin::start().await;
    origin.on("/base/a?w=1", Reply::ok("hello").header("Cache-Control", "max-age=60"));
    let group = format!("[{{ name: all, match: {{ path: /pictures/ }}, origin: '{}/base' }}]", origin.url());
    let node = Setup::groups(&group).start();
    let explain =
        async |target: &str| crate::kit::client::get(node.admin, &format!("/_groupcache/explain?path={target}")).await;
    let before = explain("/pictures/a%3Fw%3D1").await.json();
    let expected_url = format!("{}/base/a?w=1", origin.url());
    assert_eq!((&before["group"], &before["key"], &before["stored"]), (&"all".into(), &"a?w=1".into(), &().into()));
    assert_eq!(before["origin_url"], expected_url);
    assert_eq!(before["owner"], node.url());
    assert_eq!(origin.log().len(), 0);

    assert_eq!(node.get("/pictures/a?w=1").await.status(), 200);
    // The body was sent before it was stored.
    while node.group("all").await["main"]["items"] == 0 {}
    let gets = node.group("all").await["gets"].clone();
    let after = explain("/pictures/a%3Fw%3D1").await.json();
    assert_eq!((&after["stored"], &after["reason"]), (&"main".into(), &"hit".into()));
    assert!((55..=60).contains(&after["ttl"].as_i64().unwrap()), "{after}");
    assert_eq!(node.group("all").await["gets"], gets, "looking counts nothing");
    assert_eq!(explain("/elsewhere").await.status(), 400);
    assert_eq!(origin.log().len(), 1);
}
