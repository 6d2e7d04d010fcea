//! Fields that `no-cache` and `private` name: for the one who caused the fill, and for nobody else.

use super::*;

const NAMED: &[(&str, &str)] = &[
    ("Cache-Control", "max-age=60, no-cache=\"Set-Cookie\""),
    ("Cache-Control", "private=\"X-Who\""),
    ("ETag", "\"1\""),
    ("Set-Cookie", "who=first"),
    ("X-Who", "first"),
    ("X-All", "1"),
];
const OWN: &str = "miss: set-cookie x-all x-who";

/// The outcome, and which of the fields there are; the answer is read to its end.
async fn named(answer: Answer) -> String {
    let outcome = answer.outcome.as_str();
    let fields = match &answer.payload {
        Payload::Stream(head, _) => head.fields.clone(),
        Payload::Entry(entry) => entry.fields().to_fields(),
        _ => Fields::empty(),
    };
    told(answer).await;
    let there = ["set-cookie", "x-all", "x-who"].into_iter().filter(|name| fields.contains(name));
    format!("{outcome}: {}", there.collect::<Vec<_>>().join(" "))
}

#[tokio::test]
async fn the_causer_alone_sees_them() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    origin.on("/a", Script::new().hold(&gate).then_head(200, NAMED, Some(4)).chunk("body"));
    let node = Arc::new(Node::new(&origin));
    let ask = || {
        let node = node.clone();
        tokio::spawn(async move { named(node.get("a").await).await })
    };
    let causer = ask();
    origin.arrived("/a", 1).await;
    let follower = ask();
    while node.group.stats.loads_collapsed.value() < 1 {
        tokio::task::yield_now().await;
    }
    gate.open();
    assert_eq!((causer.await.unwrap(), follower.await.unwrap()), (OWN.to_owned(), "miss: x-all".to_owned()));
    node.settle().await;
    assert_eq!(named(node.get("a").await).await, "hit: x-all");
    assert_eq!(origin.asked("/a"), 1);
}

#[tokio::test]
async fn over_the_hop_too() {
    let fleet = TestFleet::new(3);
    fleet.origin.on("/a", Script::status(200, NAMED, "body"));
    let [first, second] = fleet.others("a")[..] else { panic!("three nodes") };
    assert_eq!(named(fleet.nodes[first].get("a").await).await, OWN);
    for node in &fleet.nodes {
        node.settle().await;
    }
    // Neither a copy nor what the owner has.
    for node in [second, first, fleet.owner("a"), first, first, first, first] {
        let answer = named(fleet.nodes[node].get("a").await).await;
        assert!(answer.ends_with(": x-all"), "{answer}");
        fleet.nodes[node].settle().await;
    }
    assert_eq!(fleet.origin.asked("/a"), 1);
}

/// Where it becomes a copy at once: who waits beside the causer at its node sees none of it.
#[tokio::test]
async fn who_waits_beside_the_causer_at_another_node_does_not() {
    let fleet = TestFleet::new(3);
    let gate = Gate::new();
    fleet.origin.on("/a", Script::new().hold(&gate).then_head(200, NAMED, Some(4)).chunk("body"));
    let other = fleet.others("a")[0];
    let node = Arc::new(&fleet.nodes[other]);
    let (causer, follower, ()) = tokio::join!(
        async { named(node.get("a").await).await },
        async {
            fleet.origin.arrived("/a", 1).await;
            named(node.get("a").await).await
        },
        async {
            while node.group.stats.loads_collapsed.value() < 1 {
                tokio::task::yield_now().await;
            }
            gate.open();
        }
    );
    assert_eq!((causer, follower), (OWN.to_owned(), "miss: x-all".to_owned()));
    node.settle().await;
}
