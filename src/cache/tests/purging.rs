//! Purges: what goes, what stays, and every way in which something older could come back.

use super::*;
use crate::fleet::Former;
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

/// In a full store each entry takes the place of the one that it makes stale, and hardly another has to give way.
#[tokio::test]
async fn a_soft_purge_of_a_full_store_keeps_what_is_stale() {
    let origin = Scripted::new();
    for target in [all(), prefix("p"), tag("t")] {
        let node = Node::new(&origin);
        for number in 0..80 {
            let body = Bytes::from(vec![b'x'; 1 << 20]);
            let script = Script::head(200, &[FRESH, ("xkey", "t")], Some(1 << 20)).chunk(body);
            origin.on(&format!("/p{number}"), script);
            node.ask(&format!("p{number}")).await;
            node.settle().await;
        }
        let before = node.cache.store.totals().items;
        assert!((30..80).contains(&before), "it is full with {before}");
        let receipt = purge_as(&node, target.clone(), true).await;
        let kept = node.cache.store.totals().items;
        let stale = receipt.entries as usize;
        assert!(kept + 2 >= before && stale + 2 >= before, "{target:?}: {stale} stale, {kept} of {before} kept");
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

fn ask(node: &Arc<Node>, key: &'static str) -> tokio::task::JoinHandle<String> {
    let node = node.clone();
    tokio::spawn(async move { node.ask(key).await })
}

/// The owner has not heard of a purge that the asking node has applied: its answers go to nobody who asks this node, nobody
/// waits for the purge, and when the owner has heard, nothing old is left anywhere.
#[tokio::test(start_paused = true)]
async fn an_owner_that_lags_behind_is_not_believed() {
    for target in [key("a"), prefix("a"), all(), tag("t")] {
        let fleet = TestFleet::new(3);
        fleet.origin.on("/a", Script::status(200, &[FRESH, ("xkey", "t")], "old"));
        let (owner, others) = (fleet.owner("a"), fleet.others("a"));
        fleet.nodes[owner].ask("a").await;
        fleet.deaf[owner].store(true, Ordering::SeqCst);
        fleet.origin.on("/a", Script::status(200, &[FRESH, ("xkey", "t")], "new"));
        let receipt = purge(&fleet.nodes[others[0]], target.clone()).await;
        assert!(!receipt.complete);
        let state = |index: usize| receipt.nodes.iter().find(|node| node.url == index.to_string()).unwrap().state;
        assert_eq!([state(owner), state(others[1])], [NodeState::Unreachable, NodeState::Confirmed]);
        assert_eq!(fleet.nodes[others[0]].cache.purges_accepted(), (1, 1));
        for round in 0..3 {
            for &node in &others {
                // It need not be a member in the eyes of whoever purged, and then this is acknowledged.
                let answer = fleet.nodes[node].ask("a").await;
                assert!(answer.ends_with(" 200 new"), "{target:?} {round}: {answer}");
            }
        }
        assert_eq!(fleet.nodes[owner].ask("a").await, "hit 200 old", "{target:?}");
        fleet.deaf[owner].store(false, Ordering::SeqCst);
        while fleet.nodes[others[0]].cache.purges_accepted().1 > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for node in &fleet.nodes {
            assert!(node.ask("a").await.ends_with(" 200 new"), "{target:?}");
        }
        assert_eq!(fleet.origin.asked("/a"), 4, "once for each node, and before");
    }
}

/// A purge from a third node while the asking node waits for the owner, and the owner for the origin.
#[tokio::test]
async fn an_answer_over_the_hop_is_overtaken_before_and_after_its_head() {
    for target in [key("a"), path("a"), all(), tag("t")] {
        for in_body in [false, true] {
            let fleet = TestFleet::new(3);
            let gate = Gate::new();
            let fields = &[FRESH, ("Cache-Tag", "t")];
            let script = match in_body {
                true => Script::head(200, fields, Some(3)).hold(&gate).chunk("old"),
                false => Script::new().hold(&gate).then_head(200, fields, Some(3)).chunk("old"),
            };
            fleet.origin.on("/a", script);
            let (asker, third) = (fleet.others("a")[0], fleet.others("a")[1]);
            // Asked so often that its answer would be kept.
            let early: Vec<_> = (0..4).map(|_| ask(&fleet.nodes[asker], "a")).collect();
            fleet.origin.arrived("/a", 1).await;
            if in_body {
                while fleet.nodes[asker].cache.flights.any_head().is_none() {
                    tokio::task::yield_now().await;
                }
            }
            assert!(purge(&fleet.nodes[third], target.clone()).await.complete);
            fleet.origin.on("/a", Script::status(200, fields, "new"));
            let late: Vec<_> = fleet.nodes.iter().map(|node| ask(node, "a")).collect();
            if in_body || !matches!(target, Target::Tag(..)) {
                fleet.origin.arrived("/a", 2).await;
            }
            gate.open();
            let why = format!("{target:?}, in the body {in_body}");
            for answer in early {
                assert_eq!(answer.await.unwrap(), "miss 200 old", "{why}");
            }
            for answer in late {
                assert!(answer.await.unwrap().ends_with(" 200 new"), "{why}");
            }
            for node in &fleet.nodes {
                node.settle().await;
                assert!(node.ask("a").await.ends_with(" 200 new"), "{why}");
            }
            assert!(fleet.origin.asked("/a") <= 3, "{why}: {}", fleet.origin.asked("/a"));
        }
    }
}

/// The origin confirms what was purged meanwhile.
#[tokio::test]
async fn a_confirmation_does_not_bring_back_what_was_purged() {
    const TAGGED: &[(&str, &str)] = &[FRESH, ("ETag", "\"1\""), ("xkey", "t")];
    for (target, soft) in [(key("a"), false), (all(), false), (tag("t"), false), (tag("t"), true)] {
        let (origin, gate) = (Scripted::new(), Gate::new());
        let node = Arc::new(Node::new(&origin));
        origin.on("/a", Script::status(200, TAGGED, "old"));
        node.ask("a").await;
        node.clock.advance(Duration::from_secs(61));
        origin.on("/a", Script::new().hold(&gate).then_head(304, TAGGED, None));
        let before = ask(&node, "a");
        origin.arrived("/a", 2).await;
        purge_as(&node, target.clone(), soft).await;
        origin.on("/a", Script::status(200, TAGGED, "new"));
        let after = ask(&node, "a");
        gate.open();
        let why = format!("{target:?} soft {soft}");
        assert_eq!(before.await.unwrap(), "revalidated 200 old", "{why}");
        assert_eq!(after.await.unwrap(), "miss 200 new", "{why}");
        assert_eq!(node.ask("a").await, "hit 200 new", "{why}");
        let conditional = origin.asks().last().unwrap().fields.contains("if-none-match");
        assert_eq!(conditional, soft, "{why}: what is gone cannot be confirmed");
    }
}

/// What the origin says by a `HEAD` is as old as the question, whether a purge came before it or none ever did.
#[tokio::test]
async fn a_head_from_before_a_purge_says_nothing_of_what_came_after() {
    for purges_before in 0..2 {
        let (origin, gate) = (Scripted::new(), Gate::new());
        let node = Arc::new(Node::new(&origin));
        for _ in 0..purges_before {
            purge(&node, key("b")).await;
        }
        origin.on("/a", Script::new().hold(&gate).then_head(200, &[FRESH, ("X", "old")], Some(4)));
        let asking = tokio::spawn({
            let node = node.clone();
            async move { node.ask_fully(&Request { method: Method::Head, ..get("a", &[]) }).await }
        });
        origin.arrived("/a", 1).await;
        purge(&node, key("a")).await;
        origin.on("/a", Script::status(200, &[FRESH, ("X", "new")], "body"));
        assert_eq!(node.ask("a").await, "miss 200 body");
        let stored = || node.cache.store.peek(&HashedKey::new(GroupId(0), b"a")).is_some();
        while !stored() {
            tokio::task::yield_now().await;
        }
        gate.open();
        assert_eq!(asking.await.unwrap(), "miss uri-miss: 200 none");
        node.settle().await;
        let answer = node.get("a").await;
        assert_eq!(answer.outcome, Outcome::Hit);
        let seen = seen(&get("a", &[]), answer).await;
        let x = seen.fields.iter().find(|(name, _)| name == "x").map(|(_, value)| value.as_str());
        assert_eq!(x, Some("new"), "{purges_before} purges before");
    }
}

#[tokio::test]
async fn what_became_stale_is_confirmed_or_stands_in_for_a_failing_origin() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    origin.on("/a", Script::status(200, &[FRESH, ("ETag", "\"1\"")], "old"));
    node.ask("a").await;
    assert_eq!(purge_as(&node, key("a"), true).await.entries, 1);
    origin.on("/a", Script::status(500, &[], "oops"));
    assert_eq!(node.ask("a").await, "stale 200 old");
    origin.on("/a", Script::status(304, &[FRESH, ("ETag", "\"1\"")], ""));
    assert_eq!(node.ask("a").await, "revalidated 200 old");
    assert_eq!(node.ask("a").await, "hit 200 old");
}

#[tokio::test]
async fn an_answer_with_too_many_tags_is_not_kept() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    let tags: Vec<String> = (0..1001).map(|number| format!("t{number}")).collect();
    let (many, few) = (tags.join(" "), tags[..1000].join(" "));
    origin.on("/a", Script::status(200, &[FRESH, ("xkey", &many)], "a"));
    origin.on("/b", Script::status(200, &[FRESH, ("xkey", &few)], "b"));
    for key in ["a", "b"] {
        node.ask(key).await;
    }
    assert_eq!(node.group.stats.not_stored.value("too_many_tags"), 1);
    assert_eq!(purge(&node, tag("t999")).await.entries, 1);
    assert_eq!(node.cache.store.totals().items, 0);
}

#[tokio::test]
async fn a_purge_forgets_failures_and_uncacheability() {
    for target in [key("a"), prefix(""), all(), tag("t")] {
        let origin = Scripted::new();
        let node = Node::new(&origin);
        origin.on("/a", Script::fails(FetchError::unreachable("down")));
        assert_eq!(node.ask("a").await, "error 502");
        purge(&node, target.clone()).await;
        origin.on("/a", Script::status(200, &[FRESH], "new"));
        assert_eq!(node.ask("a").await, "miss 200 new", "{target:?}");
    }
}

#[tokio::test]
async fn only_the_variants_with_the_tag_go() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    for (language, tag) in [("de", "one"), ("en", "two")] {
        let fields = [FRESH, ("Vary", "Accept-Language"), ("xkey", tag)];
        origin.on("/a", Script::status(200, &fields, language));
        node.ask_with(&get("a", &[("Accept-Language", language)])).await;
    }
    assert_eq!(purge(&node, tag("one")).await.entries, 1);
    origin.on("/a", Script::status(200, &[FRESH, ("Vary", "Accept-Language")], "new"));
    assert_eq!(node.ask_with(&get("a", &[("Accept-Language", "en")])).await, "hit 200 en");
    assert_eq!(node.ask_with(&get("a", &[("Accept-Language", "de")])).await, "miss 200 new");
}

#[tokio::test]
async fn two_nodes_that_meet_again_know_the_same_purges() {
    let fleet = TestFleet::new(3);
    let [one, two] = [&fleet.nodes[0], &fleet.nodes[1]];
    for node in [one, two] {
        fleet.deaf.iter().for_each(|deaf| deaf.store(true, Ordering::SeqCst));
        let request = PurgeRequest { targets: vec![key("a")], timeout: Duration::ZERO, ..PurgeRequest::default() };
        assert!(!node.cache.purge_everywhere(request).await.complete);
    }
    let reply = two.cache.receive_purges(one.cache.purges_greeting()).await;
    let lacking = one.cache.purges_greeted(reply).await.expect("something that the other one lacks");
    assert!(two.cache.receive_purges(lacking).await.understood);
    assert_eq!(one.cache.purges.known().vector, two.cache.purges.known().vector);
    assert_eq!(one.cache.purges.applied().vector.positions().len(), 2);
    let reply = two.cache.receive_purges(one.cache.purges_greeting()).await;
    assert_eq!(one.cache.purges_greeted(reply).await, None);
}

/// A node that starts anew is told of everything that is remembered, and confirms.
#[tokio::test(start_paused = true)]
async fn many_purges_at_once_are_told_in_few_messages_and_in_order() {
    let fleet = TestFleet::new(3);
    fleet.deaf[1].store(true, Ordering::SeqCst);
    let node = &fleet.nodes[0];
    let purges: Vec<_> = (0..100)
        .map(|number| {
            let node = node.clone();
            tokio::spawn(async move { purge(&node, key(&format!("{}", number % 10))).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    fleet.deaf[1].store(false, Ordering::SeqCst);
    let mut sequences = Vec::new();
    for purge in purges {
        let receipt = purge.await.unwrap();
        assert!(receipt.complete, "{receipt:?}");
        sequences.push(receipt.sequence);
    }
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=100).collect::<Vec<_>>());
    assert_eq!(fleet.nodes[1].cache.purges.applied().vector.of(node.cache.incarnation()), 100);
    assert_eq!(node.cache.purges.len(), 10, "repeated purges do not pile up");
}

/// Two equal purges of which the second stands for the first: a peer that cannot purge has confirmed neither.
#[tokio::test(start_paused = true)]
async fn a_purge_that_a_later_one_stands_for_is_not_confirmed_by_who_cannot_purge() {
    let fleet = TestFleet::new(2);
    fleet.deaf[1].store(true, Ordering::SeqCst);
    let node = &fleet.nodes[0];
    let purges: Vec<_> = (0..2)
        .map(|_| {
            let node = node.clone();
            tokio::spawn(async move { purge(&node, tag("t")).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((node.cache.purges.sequence(), node.cache.purges.len()), (2, 1));
    fleet.mute[1].store(true, Ordering::SeqCst);
    for purge in purges {
        let receipt = purge.await.unwrap();
        assert_eq!(receipt.nodes[1].state, NodeState::CannotPurge, "{receipt:?}");
        assert!(!receipt.complete);
    }
}

#[tokio::test(start_paused = true)]
async fn a_former_member_is_told_of_purges_until_it_is_forgotten() {
    const FORGET: Duration = Duration::from_secs(600);
    let fleet = TestFleet::new(2);
    fleet.origin.on("/a", Script::status(200, &[FRESH], "old"));
    let (node, other) = (&fleet.nodes[0], &fleet.nodes[1]);
    node.ask("a").await;
    other.ask("a").await;
    let members = node.cache.fleet.load_full();
    let (url, peer) = members.named_peers().next().unwrap();
    let former = Former { url: url.to_owned(), peer: peer.clone(), since: node.cache.now().monotonic };
    node.cache.set_fleet(Fleet::alone().with_former(vec![former], FORGET));
    let states = |receipt: &Receipt| receipt.nodes.iter().map(|node| node.state).collect::<Vec<_>>();

    let receipt = purge(node, all()).await;
    assert_eq!((receipt.complete, states(&receipt)), (true, vec![NodeState::Confirmed; 2]));
    assert_eq!(other.cache.store.totals().items, 0);
    fleet.down[1].store(true, Ordering::SeqCst);
    for _ in 0..2 {
        let receipt = purge(node, all()).await;
        assert_eq!((receipt.complete, states(&receipt)[1]), (false, NodeState::Unreachable));
        node.clock.advance(FORGET / 3);
    }
    node.clock.advance(FORGET / 3);
    let receipt = purge(node, all()).await;
    assert_eq!((receipt.complete, states(&receipt)), (true, vec![NodeState::Confirmed]));
}
