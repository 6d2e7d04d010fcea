//! Ranges: stored as parts, put together, completed, cut out of whole fills under way, and answered over the hop.

use super::*;

const TAG: (&str, &str) = ("ETag", "\"1\"");

/// A 206 for `range` of the ten digits.
fn digits(range: &str, fields: &[(&str, &str)]) -> Script {
    let (first, last) = range.split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let place = format!("bytes {range}/10");
    let fields: Vec<_> = fields.iter().copied().chain([("Content-Range", &*place)]).collect();
    Script::status(206, &fields, "0123456789"[first..=last].to_owned())
}

/// The last question to the origin, as `range if-range if-none-match`.
fn last_question(origin: &Scripted) -> String {
    let asks = origin.asks();
    let fields = &asks.last().unwrap().fields;
    ["range", "if-range", "if-none-match"].map(|name| fields.get_str(name).unwrap_or("-").to_owned()).join(" ")
}

#[tokio::test]
async fn parts_are_stored_put_together_and_become_the_whole() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    origin.on("/a", digits("2-4", &[FRESH, TAG]));
    assert_eq!(node.ask_fully(&get_range("a", "2-4", "")).await, "miss uri-miss: 206 [bytes 2-4/10] 234");
    assert_eq!(node.ask_fully(&get_range("a", "3-3", "")).await, "hit: 206 [bytes 3-3/10] 3");
    origin.on("/a", digits("5-9", &[FRESH, TAG]));
    assert_eq!(node.ask_fully(&get_range("a", "5-", "")).await, "miss partial: 206 [bytes 5-9/10] 56789");
    for (range, expected) in [
        ("4-6", "hit: 206 [bytes 4-6/10] 456"),
        ("-1", "hit: 206 [bytes 9-9/10] 9"),
        ("8-100", "hit: 206 [bytes 8-9/10] 89"),
    ] {
        assert_eq!(node.ask_fully(&get_range("a", range, "")).await, expected);
    }
    assert_eq!(node.ask_fully(&get_range("a", "3-4", "\"1\"")).await, "hit: 206 [bytes 3-4/10] 34");
    origin.on("/a", digits("0-1", &[FRESH, TAG]));
    node.ask_fully(&get_range("a", "0-1", "")).await;
    assert_eq!(node.ask_fully(&get("a", &[])).await, "hit: 200 0123456789");
    assert_eq!(node.ask_fully(&Request { method: Method::Head, ..get("a", &[]) }).await, "hit: 200 none");
    assert_eq!(origin.asked("/a"), 3);
}

#[tokio::test]
async fn what_an_incomplete_entry_does_not_answer() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    origin.on("/a", digits("2-4", &[FRESH, TAG]));
    node.ask_fully(&get_range("a", "2-4", "")).await;
    for request in [
        get_range("a", "2-5", ""),
        get_range("a", "1-3", ""),
        get_range("a", "2-2,4-4", ""),
        get_range("a", "10-", ""),
        get_range("a", "2-4", "\"0\""),
        Request { method: Method::Head, ..get("a", &[]) },
        get("a", &[]),
    ] {
        origin.on("/a", Script::status(404, &[("Cache-Control", "no-store")], "asked"));
        let body = if request.method == Method::Head { "none" } else { "asked" };
        assert_eq!(node.ask_fully(&request).await, format!("miss partial: 404 {body}"), "{request:?}");
        assert_eq!(node.ask_fully(&get_range("a", "2-4", "")).await, "hit: 206 [bytes 2-4/10] 234", "{request:?}");
        node.clock.advance(Duration::from_secs(1));
        node.cache.remembered.forget(KeyHash::of(GroupId(0), b"a"));
    }
}

#[tokio::test]
async fn parts_that_do_not_fit_are_not_put_together() {
    let date = ("Date", "Fri, 15 Jan 2027 08:00:00 GMT");
    let modified = ("Last-Modified", "Fri, 20 Nov 2026 10:00:00 GMT");
    for (why, first, second, expected) in [
        ("the same tag", &[FRESH, TAG][..], &[FRESH, TAG][..], "hit: 206 [bytes 0-6/10] 0123456"),
        ("the same strong date", &[FRESH, modified, date], &[FRESH, modified, date], "hit: 206 [bytes 0-6/10] 0123456"),
        ("another tag", &[FRESH, TAG], &[FRESH, ("ETag", "\"2\"")], "miss partial: 206 [bytes 0-6/10] 0123456"),
        ("no tag", &[FRESH], &[FRESH], "miss uri-miss: 206 [bytes 0-6/10] 0123456"),
        (
            "a weak tag",
            &[FRESH, ("ETag", "W/\"1\"")],
            &[FRESH, ("ETag", "W/\"1\"")],
            "miss uri-miss: 206 [bytes 0-6/10] 0123456",
        ),
        (
            "not to be stored",
            &[TAG, ("Cache-Control", "no-store")],
            &[TAG, ("Cache-Control", "no-store")],
            "miss uri-miss: 206 [bytes 0-6/10] 0123456",
        ),
    ] {
        let origin = Scripted::new();
        let node = Node::new(&origin);
        origin.on("/a", digits("0-3", first));
        node.ask_fully(&get_range("a", "0-3", "")).await;
        origin.on("/a", digits("3-6", second));
        node.ask_fully(&get_range("a", "3-6", "")).await;
        origin.on("/a", digits("0-6", second));
        assert_eq!(node.ask_fully(&get_range("a", "0-6", "")).await, expected, "{why}");
    }
}

#[tokio::test]
async fn answers_that_are_no_part_of_the_key_are_not_stored_as_it() {
    let lying = |fields| Script::status(206, fields, "01234");
    for (why, script) in [
        ("more bytes promised than sent", lying(&[FRESH, TAG, ("Content-Range", "bytes 4-9/10")])),
        ("no place", lying(&[FRESH, TAG])),
        ("open length", lying(&[FRESH, TAG, ("Content-Range", "bytes 0-4/*")])),
        ("unsatisfiable", Script::status(416, &[FRESH, TAG, ("Content-Range", "bytes */3")], "no")),
        (
            "a chunked part that is too short",
            Script::head(206, &[FRESH, TAG, ("Content-Range", "bytes 0-4/10")], None).chunk("0123"),
        ),
    ] {
        let origin = Scripted::new();
        let node = Node::new(&origin);
        origin.on("/a", script);
        assert!(node.ask_fully(&get_range("a", "0-4", "")).await.starts_with("miss uri-miss: "), "{why}");
        assert_eq!(node.cache.store.totals().items, 0, "{why}");
        assert_eq!(node.group.stats.not_stored.value("partial"), 1, "{why}");
    }
}

#[tokio::test]
async fn a_plain_get_fetches_the_only_missing_range() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    for (range, script) in [("0-3", digits("0-3", &[FRESH, TAG])), ("8-9", digits("8-9", &[FRESH, TAG]))] {
        origin.on("/a", script);
        node.ask_fully(&get_range("a", range, "")).await;
    }
    origin.on("/a", digits("4-7", &[FRESH, TAG, ("X", "new")]));
    let answer = node.get("a").await;
    let seen = seen(&get("a", &[]), answer).await;
    assert_eq!((seen.status, seen.body.as_deref()), (200, Some("0123456789")));
    assert!(seen.fields.contains(&("x".into(), "new".into())), "{:?}", seen.fields);
    assert!(!seen.fields.iter().any(|(name, _)| name == "content-range"));
    assert_eq!(last_question(&origin), "bytes=4-7 \"1\" -");
    assert_eq!(node.ask_fully(&get("a", &[])).await, "hit: 200 0123456789");
}

#[tokio::test]
async fn a_missing_range_that_does_not_fit_is_replaced_by_the_whole() {
    let broken = Script::head(206, &[FRESH, TAG, ("Content-Range", "bytes 4-9/10")], None).chunk("45");
    for (why, script, expected, asked) in [
        ("a new whole", Script::status(200, &[FRESH, ("ETag", "\"2\"")], "new"), "miss partial: 200 new", 2),
        (
            "another representation",
            digits("4-9", &[FRESH, ("ETag", "\"2\"")]),
            "miss partial: 206 [bytes 4-9/10] 456789",
            3,
        ),
        ("another range", digits("5-9", &[FRESH, TAG]), "miss partial: 206 [bytes 5-9/10] 56789", 3),
        ("a short one", broken, "miss partial: 200 none", 2),
    ] {
        let origin = Scripted::new();
        let node = Node::new(&origin);
        origin.on("/a", digits("0-3", &[FRESH, TAG]));
        node.ask_fully(&get_range("a", "0-3", "")).await;
        origin.on("/a", script);
        // An origin that answers every question the same way is seen as it is; the question is what counts.
        assert_eq!(node.ask_fully(&get("a", &[])).await, expected, "{why}");
        assert_eq!(origin.asked("/a"), asked, "{why}");
        assert_eq!(last_question(&origin), if asked == 3 { "- - -" } else { "bytes=4-9 \"1\" -" }, "{why}");
    }
}

#[tokio::test]
async fn stale_parts_and_stale_wholes_are_confirmed_for_a_range() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    origin.on("/part", digits("2-4", &[FRESH, TAG]));
    node.ask_fully(&get_range("part", "2-4", "")).await;
    origin.on("/whole", Script::status(200, &[FRESH, TAG], "0123456789"));
    node.ask_fully(&get("whole", &[])).await;
    node.clock.advance(Duration::from_secs(61));
    for key in ["part", "whole"] {
        origin.on(&format!("/{key}"), Script::status(304, &[FRESH, TAG], ""));
        assert_eq!(
            node.ask_fully(&get_range(key, "3-4", "")).await,
            "revalidated stale after 304: 206 [bytes 3-4/10] 34"
        );
        assert_eq!(last_question(&origin), "bytes=3-4 - \"1\"");
        assert_eq!(node.ask_fully(&get_range(key, "3-4", "")).await, "hit: 206 [bytes 3-4/10] 34");
    }
    node.clock.advance(Duration::from_secs(61));
    for key in ["part", "whole"] {
        origin.on(&format!("/{key}"), digits("3-4", &[FRESH, ("ETag", "\"2\"")]));
        assert_eq!(node.ask_fully(&get_range(key, "3-4", "")).await, "miss stale: 206 [bytes 3-4/10] 34");
        assert_eq!(node.ask_fully(&get_range(key, "4-4", "")).await, "hit: 206 [bytes 4-4/10] 4");
        origin.on(&format!("/{key}"), Script::status(500, &[], "oops"));
        assert!(
            node.ask_fully(&get_range(key, "2-4", "")).await.starts_with("miss partial: 500"),
            "the old one is gone"
        );
    }
}

#[tokio::test]
async fn a_range_near_a_running_fill_of_the_whole_follows_it() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    let node = Arc::new(Node::new(&origin));
    let body = "x".repeat(1 << 20);
    let big = Script::head(200, &[FRESH, TAG], Some(body.len() as u64)).chunk("x");
    origin.on("/a", big.hold(&gate).chunk(body[1..].to_owned()));
    let Payload::Stream(_, mut whole) = node.get("a").await.payload else { panic!("a stream") };
    whole.chunk().await.unwrap();
    let near = node.cache.get(&node.group, &get_range("a", "3-4", "")).await;
    let last = node.cache.get(&node.group, &get_range("a", "-1", "")).await;
    assert!(near.report.collapsed && last.report.collapsed);
    assert_eq!(origin.asked("/a"), 1);
    gate.open();
    assert_eq!(seen(&get_range("a", "3-4", ""), near).await.body.as_deref(), Some("xx"));
    assert_eq!(seen(&get_range("a", "-1", ""), last).await.status, 206);
    node.settle().await;
    assert_eq!(node.counters(), "gets 3 hits 0 loads 3 deduped 1 collapsed 2 peer 0 local 1 errors 0 served 0");
}

#[tokio::test]
async fn a_range_waits_for_the_head_of_a_running_fill_only_if_it_certainly_lies_near() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    let node = Arc::new(Node::new(&origin));
    origin.on("/a", Script::new().hold(&gate).then_head(200, &[FRESH, TAG], Some(10)).chunk("0123456789"));
    let ask = |request: Request| {
        let node = node.clone();
        tokio::spawn(async move { node.ask_fully(&request).await })
    };
    let whole = ask(get("a", &[]));
    origin.arrived("/a", 1).await;
    let near = ask(get_range("a", "3-4", ""));
    let unknown = ask(get_range("a", "-1", ""));
    origin.arrived("/a", 2).await;
    gate.open();
    assert_eq!(whole.await.unwrap(), "miss uri-miss: 200 0123456789");
    assert_eq!(near.await.unwrap(), "miss uri-miss: 206 [bytes 3-4/10] 34");
    assert_eq!(unknown.await.unwrap(), "miss uri-miss: 206 [bytes 9-9/10] 9", "an origin that ignores the range");
    assert_eq!(origin.asked("/a"), 2);
}

#[tokio::test]
async fn a_range_far_from_a_running_fill_goes_its_own_way() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    let mut node = Node::new(&origin);
    Arc::get_mut(&mut node.group).unwrap().object_bytes_max = 8 << 20;
    origin.on("/a", Script::head(200, &[FRESH, TAG], Some(4 << 20)).chunk("x").hold(&gate));
    let Payload::Stream(_, mut whole) = node.get("a").await.payload else { panic!("a stream") };
    whole.chunk().await.unwrap();
    let place = ("Content-Range", "bytes 4194303-4194303/4194304");
    origin.on("/a", Script::status(206, &[FRESH, TAG, place], "y"));
    assert_eq!(node.ask_fully(&get_range("a", "-1", "")).await, "miss uri-miss: 206 [bytes 4194303-4194303/4194304] y");
}

#[tokio::test]
async fn a_part_that_lands_beside_a_fresh_whole_takes_nothing_away() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    let node = Arc::new(Node::new(&origin));
    let old = &[FRESH, ("ETag", "\"old\""), ("Content-Range", "bytes 0-1/10")];
    origin.on("/a", Script::head(206, old, Some(2)).hold(&gate).chunk("01"));
    let range = node.cache.get(&node.group, &get_range("a", "0-1", "")).await;
    origin.on("/a", Script::status(200, &[FRESH, TAG], "0123456789"));
    assert_eq!(node.ask_fully(&get("a", &[])).await, "miss uri-miss: 200 0123456789");
    gate.open();
    assert_eq!(seen(&get_range("a", "0-1", ""), range).await.body.as_deref(), Some("01"));
    node.settle().await;
    assert_eq!(node.ask_fully(&get("a", &[])).await, "hit: 200 0123456789", "what was asked later counts");
}

#[tokio::test]
async fn variants_have_parts_of_their_own() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    let varies = &[FRESH, TAG, ("Vary", "Accept-Encoding")];
    let gzip = || Request { range: get_range("a", "2-4", "").range, ..get("a", &[("Accept-Encoding", "gzip")]) };
    origin.on("/a", digits("2-4", varies));
    assert_eq!(node.ask_fully(&gzip()).await, "miss uri-miss: 206 [bytes 2-4/10] 234");
    assert_eq!(node.ask_fully(&get_range("a", "2-4", "")).await, "miss vary-miss: 206 [bytes 2-4/10] 234");
    assert_eq!(node.ask_fully(&gzip()).await, "hit: 206 [bytes 2-4/10] 234");
    assert_eq!(node.ask_fully(&get_range("a", "2-4", "")).await, "hit: 206 [bytes 2-4/10] 234");
}

#[tokio::test]
async fn parts_are_charged_and_leave_nothing_behind() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    origin.on("/b", digits("0-1", &[FRESH, TAG]));
    node.ask_fully(&get_range("b", "0-1", "")).await;
    node.settle().await;
    node.cache.store.remove(&HashedKey::new(GroupId(0), b"b"));
    let beside_bookkeeping = || node.cache.ledger.used() - node.cache.store.totals().bookkeeping_bytes;
    let before = beside_bookkeeping();
    for range in ["0-1", "4-5", "1-3", "6-9"] {
        origin.on("/a", digits(range, &[FRESH, TAG]));
        node.ask_fully(&get_range("a", range, "")).await;
        node.settle().await;
        let (slot, _) = node.cache.store.peek(&HashedKey::new(GroupId(0), b"a")).unwrap();
        let entry = slot.entries().next().unwrap();
        let again = Entry::new(entry.key(), entry.to_parts(), node.cache.ledger.charge(0));
        assert_eq!(entry.charged_bytes(), again.charged_bytes());
    }
    node.cache.store.remove(&HashedKey::new(GroupId(0), b"a"));
    assert_eq!(beside_bookkeeping(), before);
}

#[tokio::test]
async fn an_owner_answers_peers_from_its_parts_and_copies_of_parts_answer_too() {
    let fleet = TestFleet::new(3);
    fleet.origin.on("/a", digits("2-6", &[FRESH, TAG]));
    let (owner, other) = (fleet.owner("a"), fleet.others("a")[0]);
    fleet.nodes[owner].ask_fully(&get_range("a", "2-6", "")).await;
    let mut answers = Vec::new();
    for _ in 0..6 {
        answers.push(fleet.nodes[other].ask_fully(&get_range("a", "3-5", "")).await);
        fleet.nodes[other].settle().await;
    }
    assert_eq!(answers[0], "miss uri-miss: 206 [bytes 3-5/10] 345");
    assert_eq!(answers[5], "hit: 206 [bytes 3-5/10] 345", "a wanted part earns a hot copy");
    assert_eq!(fleet.nodes[other].ask_fully(&get_range("a", "2-2", "")).await, "miss partial: 206 [bytes 2-2/10] 2");
    assert_eq!(fleet.origin.asked("/a"), 1);
    fleet.origin.on("/a", Script::status(200, &[FRESH, TAG], "0123456789"));
    assert_eq!(fleet.nodes[other].ask_fully(&get("a", &[])).await, "miss partial: 200 0123456789");
}

#[tokio::test]
async fn of_an_owners_running_fill_a_peer_gets_its_range_alone() {
    let fleet = TestFleet::new(3);
    let gate = Gate::new();
    fleet.origin.on("/a", Script::head(200, &[FRESH, TAG], Some(10)).chunk("01234").hold(&gate).chunk("56789"));
    let (owner, other) = (fleet.owner("a"), fleet.others("a")[0]);
    let whole = fleet.nodes[owner].get("a").await;
    let answer = fleet.nodes[other].cache.get(&fleet.nodes[other].group, &get_range("a", "1-2", "")).await;
    let Payload::Stream(head, _) = &answer.payload else { panic!("a stream") };
    assert_eq!((head.status, head.content_length), (206, Some(2)));
    assert_eq!(seen(&get_range("a", "1-2", ""), answer).await.body.as_deref(), Some("12"), "the gate is still closed");
    gate.open();
    assert_eq!(told(whole).await, "miss 200 0123456789");
    assert_eq!(fleet.origin.asked("/a"), 1);
}

/// Whoever asked for it can make of it what it could without a cache; the cache makes nothing of it (RFC 9110 section 14.4).
#[tokio::test]
async fn a_part_that_contradicts_its_length_is_handed_on_and_never_kept() {
    let contradicts = Script::status(206, &[FRESH, TAG, ("Content-Range", "bytes 4-9/10")], "01234");
    let node = {
        let origin = Scripted::new();
        origin.on("/a", contradicts.clone());
        let node = Node::new(&origin);
        for round in 1..3 {
            assert_eq!(node.ask_fully(&get_range("a", "-5", "")).await, "miss uri-miss: 206 [bytes 4-9/10] 01234");
            assert_eq!(origin.asked("/a"), round);
        }
        node
    };
    assert_eq!(node.cache.store.totals().items, 0);
    let fleet = TestFleet::new(2);
    fleet.origin.on("/a", contradicts);
    let other = fleet.others("a")[0];
    let answer = fleet.nodes[other].ask_fully(&get_range("a", "-5", "")).await;
    assert_eq!(answer, "miss uri-miss: 206 [bytes 4-9/10] 01234");
    assert_eq!(fleet.places("a"), "--");
}
