//! Purges: what goes, what stays, and every way in which something older could come back.

use super::*;
use crate::purge::Target;
use crate::purging::{NodeState, PurgeRequest, Receipt};

const GROUP: &str = "test";

fn key(key: &str) -> Target {
    Target::Key(GROUP.into(), Bytes::copy_from_slice(key.as_bytes()))
}

fn prefix(prefix: &str) -> Target {
    Target::Prefix(GROUP.into(), Bytes::copy_from_slice(prefix.as_bytes()))
}

fn path(path: &str) -> Target {
    Target::Path(GROUP.into(), Bytes::copy_from_slice(path.as_bytes()))
}

fn tag(tag: &str) -> Target {
    Target::Tag(None, Bytes::copy_from_slice(tag.as_bytes()))
}

fn all() -> Target {
    Target::Group(GROUP.into())
}

async fn purge(node: &Node, target: Target) -> Receipt {
    purge_as(node, target, false).await
}

async fn purge_as(node: &Node, target: Target, soft: bool) -> Receipt {
    let timeout = Duration::from_secs(5);
    node.cache.purge_everywhere(PurgeRequest { targets: vec![target], soft, dry_run: false, timeout }).await
}

#[tokio::test]
async fn what_a_purge_matches_goes_and_nothing_else() {
    const KEYS: [&str; 6] = ["a", "a?x=1", "a/b", "ab", "b", "b?a"];
    for (target, gone) in [
        (key("a"), &["a"][..]),
        (key("c"), &[]),
        (prefix("a"), &["a", "a?x=1", "a/b", "ab"]),
        (prefix("a/"), &["a/b"]),
        (prefix(""), &KEYS),
        (path("a"), &["a", "a?x=1"]),
        (path("b"), &["b", "b?a"]),
        (all(), &KEYS),
        (Target::Everything, &KEYS),
        (Target::Group("other".into()), &[]),
        (tag("even"), &["a?x=1", "ab", "b?a"]),
        (tag("none"), &[]),
        (Target::Tag(Some("other".into()), "even".into()), &[]),
        (Target::Tag(Some(GROUP.into()), "first second".into()), &[]),
        (Target::Tag(Some(GROUP.into()), "first".into()), &["a"]),
    ] {
        for soft in [false, true] {
            let origin = Scripted::new();
            let node = Node::new(&origin);
            for (index, name) in KEYS.iter().enumerate() {
                let tags = match index {
                    0 => ("Surrogate-Key", "first odd"),
                    _ if index % 2 == 1 => ("Cache-Tag", "a b, even"),
                    _ => ("xkey", "odd"),
                };
                origin.on(&format!("/{name}"), Script::status(200, &[FRESH, tags], "old"));
                node.ask(name).await;
            }
            let dry = PurgeRequest { targets: vec![target.clone()], dry_run: true, ..PurgeRequest::default() };
            assert_eq!(node.cache.purge_everywhere(dry).await.entries, gone.len() as u64, "{target:?} counted");
            let receipt = purge_as(&node, target.clone(), soft).await;
            assert_eq!((receipt.sequence, receipt.complete), (1, true));
            assert_eq!(receipt.entries, gone.len() as u64, "{target:?}");
            let kept = if soft { KEYS.len() } else { KEYS.len() - gone.len() };
            assert_eq!(node.cache.store.totals().items, kept, "{target:?}");
            for name in KEYS {
                origin.on(&format!("/{name}"), Script::status(200, &[FRESH], "new"));
                let expected = if gone.contains(&name) { "miss 200 new" } else { "hit 200 old" };
                assert_eq!(node.ask(name).await, expected, "{target:?} {name} soft {soft}");
            }
        }
    }
}

/// The fill begins, then the purge: before the head, and in the body. Who asked before is served, nobody else waits or gets the
/// old answer, and it is not stored.
#[tokio::test]
async fn a_purge_overtakes_a_fill() {
    for target in [key("a"), prefix("a"), path("a"), all(), Target::Everything, tag("t")] {
        for in_body in [false, true] {
            let (origin, gate) = (Scripted::new(), Gate::new());
            let node = Arc::new(Node::new(&origin));
            let fields = &[FRESH, ("Surrogate-Key", "s t")];
            let script = match in_body {
                true => Script::head(200, fields, Some(3)).hold(&gate).chunk("old"),
                false => Script::new().hold(&gate).then_head(200, fields, Some(3)).chunk("old"),
            };
            origin.on("/a", script);
            let ask = |node: &Arc<Node>| {
                let node = node.clone();
                tokio::spawn(async move { node.ask("a").await })
            };
            let before = ask(&node);
            origin.arrived("/a", 1).await;
            if in_body {
                while node.cache.flights.any_head().is_none() {
                    tokio::task::yield_now().await;
                }
            }
            assert_eq!(purge(&node, target.clone()).await.entries, 0);
            origin.on("/a", Script::status(200, fields, "new"));
            let after = ask(&node);
            let why = format!("{target:?}, in the body {in_body}");
            // Before the head nobody knows whether a tag matches.
            if in_body || !matches!(target, Target::Tag(..)) {
                origin.arrived("/a", 2).await;
            }
            gate.open();
            assert_eq!(before.await.unwrap(), "miss 200 old", "{why}");
            assert_eq!(after.await.unwrap(), "miss 200 new", "{why}");
            node.settle().await;
            assert_eq!(node.ask("a").await, "hit 200 new", "{why}");
            assert_eq!(node.group.stats.not_stored.value("invalidated"), 1, "{why}");
            assert_eq!(origin.asked("/a"), 2, "{why}");
        }
    }
}

#[tokio::test]
async fn a_purge_reaches_all_nodes_and_says_so() {
    for target in [key("a"), prefix("a"), all(), tag("t")] {
        for teller in 0..5 {
            let fleet = TestFleet::new(5);
            fleet.origin.on("/a", Script::status(200, &[FRESH, ("xkey", "t")], "old"));
            for node in &fleet.nodes {
                for _ in 0..4 {
                    node.ask("a").await;
                }
            }
            assert!(!fleet.places("a").contains('-'));
            let receipt = purge(&fleet.nodes[teller], target.clone()).await;
            assert!(receipt.complete);
            assert_eq!((receipt.entries, receipt.nodes.len()), (5, 5));
            assert!(receipt.nodes.iter().all(|node| node.entries == 1 && node.state == NodeState::Confirmed));
            assert_eq!(fleet.places("a"), "-----", "{target:?} told by {teller}");
            fleet.origin.on("/a", Script::status(200, &[FRESH], "new"));
            for node in &fleet.nodes {
                assert!(node.ask("a").await.ends_with(" 200 new"), "{target:?} told by {teller}");
            }
            assert_eq!(fleet.origin.asked("/a"), 2);
        }
    }
}
