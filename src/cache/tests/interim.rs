//! Interim answers: who hears them, and how many.

use super::*;
use crate::flight::{INTERIM_BYTES_MAX, INTERIMS_MAX};
use crate::source::Interim;

/// Keeps what it hears.
#[derive(Default)]
struct Ear(Mutex<Vec<String>>);

impl InterimSink for Ear {
    fn hear(&self, interim: Interim) {
        let fields: Vec<String> =
            interim.fields.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value))).collect();
        self.0.lock().push(format!("{} {}", interim.status, fields.join(", ")));
    }
}

impl Node {
    /// What a client hears, and then gets.
    fn hear(self: &Arc<Self>, request: Request) -> tokio::task::JoinHandle<(Vec<String>, String)> {
        let node = self.clone();
        tokio::spawn(async move {
            let ear = Ear::default();
            let answer = node.cache.get_hearing(&node.group, &request, &ear).await;
            (ear.0.into_inner(), told(answer).await)
        })
    }
}

const LINK: (&str, &str) = ("Link", "</a.css>; rel=preload");

fn heard(lines: &[&str], told: &str) -> (Vec<String>, String) {
    (lines.iter().map(|line| line.to_string()).collect(), told.to_owned())
}

#[tokio::test]
async fn all_who_wait_hear_them_and_nobody_else() {
    let (origin, before, after) = (Scripted::new(), Gate::new(), Gate::new());
    let script = Script::new().hold(&before).interim(103, &[LINK]).interim(102, &[]).hold(&after);
    origin.on("/a", script.then_head(200, &[FRESH], Some(4)).chunk("body"));
    let node = Arc::new(Node::new(&origin));
    let causer = node.hear(get("a", &[]));
    origin.arrived("/a", 1).await;
    let follower = node.hear(get("a", &[]));
    while node.group.stats.loads_collapsed.value() < 1 {
        tokio::task::yield_now().await;
    }
    before.open();
    while node.group.stats.interims.value() < 2 {
        tokio::task::yield_now().await;
    }
    let late = node.hear(get("a", &[]));
    while node.group.stats.loads_collapsed.value() < 2 {
        tokio::task::yield_now().await;
    }
    after.open();
    let all = heard(&["103 Link: </a.css>; rel=preload", "102 "], "miss 200 body");
    for client in [causer, follower, late] {
        assert_eq!(client.await.unwrap(), all, "a hint is of use as long as the answer is not there");
    }
    assert_eq!(node.hear(get("a", &[])).await.unwrap(), heard(&[], "hit 200 body"), "never stored");
}

#[tokio::test]
async fn those_to_a_request_with_credentials_are_its_own() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    let script = Script::new().interim(103, &[LINK, ("Set-Cookie", "a=b"), ("Surrogate-Key", "k")]).hold(&gate);
    origin.on("/a", script.then_head(200, &[FRESH], Some(4)).chunk("body"));
    let node = Arc::new(Node::new(&origin));
    let causer = node.hear(get("a", &[("Cookie", "who=me")]));
    origin.arrived("/a", 1).await;
    let follower = node.hear(get("a", &[]));
    while node.group.stats.loads_collapsed.value() < 1 {
        tokio::task::yield_now().await;
    }
    gate.open();
    assert_eq!(causer.await.unwrap(), heard(&["103 Link: </a.css>; rel=preload"], "miss 200 body"));
    assert_eq!(follower.await.unwrap(), heard(&[], "miss 200 body"));
}

#[tokio::test]
async fn they_cross_the_hop_to_all_who_wait_there() {
    let fleet = TestFleet::new(3);
    let gate = Gate::new();
    let script = Script::new().interim(103, &[LINK]).hold(&gate);
    fleet.origin.on("/a", script.then_head(200, &[FRESH], Some(4)).chunk("body"));
    let asked: Vec<_> =
        fleet.nodes.iter().flat_map(|node| [node.hear(get("a", &[])), node.hear(get("a", &[]))]).collect();
    fleet.origin.arrived("/a", 1).await;
    while fleet.nodes.iter().map(|node| node.group.stats.loads_collapsed.value()).sum::<u64>() < 5 {
        tokio::task::yield_now().await;
    }
    gate.open();
    for client in asked {
        assert_eq!(client.await.unwrap(), heard(&["103 Link: </a.css>; rel=preload"], "miss 200 body"));
    }
    assert_eq!(fleet.origin.asked("/a"), 1);
}

#[tokio::test]
async fn a_node_that_loads_in_a_dead_owners_stead_passes_them_on() {
    let fleet = TestFleet::new(2);
    fleet.origin.on("/a", Script::new().interim(103, &[LINK]).then_head(200, &[FRESH], Some(4)).chunk("body"));
    fleet.down[fleet.owner("a")].store(true, Ordering::SeqCst);
    let client = fleet.nodes[fleet.others("a")[0]].hear(get("a", &[]));
    assert_eq!(client.await.unwrap(), heard(&["103 Link: </a.css>; rel=preload"], "miss 200 body"));
}

#[tokio::test]
async fn too_many_and_too_large_ones_are_dropped_and_counted() {
    let origin = Scripted::new();
    let mut many = Script::new();
    for _ in 0..INTERIMS_MAX + 3 {
        many = many.interim(103, &[LINK]);
    }
    origin.on("/many", many.then_head(200, &[FRESH], Some(4)).chunk("body"));
    let large = "x".repeat(INTERIM_BYTES_MAX);
    let script = Script::new().interim(103, &[("Link", &large)]).interim(103, &[LINK]);
    origin.on("/large", script.then_head(200, &[FRESH], Some(4)).chunk("body"));
    let node = Arc::new(Node::new(&origin));
    let (interims, told) = node.hear(get("many", &[])).await.unwrap();
    assert_eq!((interims.len(), told.as_str()), (INTERIMS_MAX, "miss 200 body"));
    let (interims, told) = node.hear(get("large", &[])).await.unwrap();
    assert_eq!((interims.len(), told.as_str()), (1, "miss 200 body"));
    let stats = &node.group.stats;
    assert_eq!((stats.interims.value(), stats.interims_dropped.value()), (INTERIMS_MAX as u64 + 1, 4));
}
