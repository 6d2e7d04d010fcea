//! Unsafe requests and `HEAD`: what they do to what is stored, and to what is on its way into the store.

use super::*;
use crate::clock::Clock;
use crate::invalidate::Passed;

fn passed<'a>(
    node: &Node,
    key: &'a Bytes,
    method: &'a str,
    status: u16,
    fields: &'a Fields,
    stamp: &'a Stamp,
) -> Passed<'a> {
    static NONE: Fields = Fields::empty();
    Passed {
        key,
        authorities: &["www.example.com"],
        prefixes: ["", ""],
        method,
        sent: &NONE,
        directives: RequestDirectives::default(),
        status,
        fields,
        content_length: Some(4),
        requested_at: node.clock.now(),
        stamp,
    }
}

async fn invalidate(node: &Node, key: &str, method: &str, status: u16, fields: &[(&str, &str)]) -> u64 {
    let (key, fields) = (Bytes::copy_from_slice(key.as_bytes()), Fields::from_pairs(fields.iter().copied()).unwrap());
    let stamp = node.cache.purges_known();
    let passed = passed(node, &key, method, status, &fields, &stamp);
    node.cache.invalidate_everywhere(&node.group, passed.invalidated_keys(&node.group)).await.0
}

#[tokio::test]
async fn which_keys_an_unsafe_request_invalidates() {
    for (method, status, fields, gone) in [
        ("POST", 200, &[][..], &["a"][..]),
        ("UNKNOWN", 204, &[], &["a"]),
        ("GET", 200, &[], &[]),
        ("PUT", 500, &[], &[]),
        ("PUT", 201, &[("Location", "/b"), ("Content-Location", "http://www.example.com/c?d")], &["a", "b", "c?d"]),
        ("PUT", 303, &[("Location", "http://elsewhere.example/b")], &["a"]),
    ] {
        let origin = Scripted::new();
        let node = Node::new(&origin);
        for key in ["a", "b", "c?d"] {
            origin.on(&format!("/{key}"), Script::status(200, &[FRESH], "old"));
            node.ask(key).await;
        }
        assert_eq!(invalidate(&node, "a", method, status, fields).await, gone.len() as u64, "{method} {status}");
        for key in ["a", "b", "c?d"] {
            origin.on(&format!("/{key}"), Script::status(200, &[FRESH], "new"));
            let expected = if gone.contains(&key) { "miss 200 new" } else { "hit 200 old" };
            assert_eq!(node.ask(key).await, expected, "{method} {status} {key}");
        }
    }
}

/// The origin lies at `/v1` and the group at `/shop`; either may stand in what the origin writes.
#[tokio::test]
async fn an_origin_names_its_own_paths_or_those_of_clients() {
    for (location, gone) in [
        ("/v1/items/7", &["items", "items/7"][..]),
        ("/shop/items/7", &["items", "items/7"]),
        ("http://www.example.com/v1/items/7", &["items", "items/7"]),
        ("items/7", &["items", "items/7"]),
        ("./items/7?x", &["items"]),
        ("/items/7", &["items"]),
        ("/v1items/7", &["items"]),
        ("/v1/../items/7", &["items"]),
        ("../items/7", &["items"]),
        ("http://elsewhere.example/v1/items/7", &["items"]),
    ] {
        let origin = Scripted::new();
        let node = Node::new(&origin);
        for key in ["items", "items/7"] {
            origin.on(&format!("/{key}"), Script::status(200, &[FRESH], "old"));
            node.ask(key).await;
        }
        let (key, fields) = (Bytes::from("items"), Fields::from_pairs([("Location", location)]).unwrap());
        let stamp = node.cache.purges_known();
        let passed = Passed { prefixes: ["/v1", "/shop"], ..passed(&node, &key, "POST", 201, &fields, &stamp) };
        let (_, invalidated) =
            node.cache.invalidate_everywhere(&node.group, passed.invalidated_keys(&node.group)).await;
        for key in ["items", "items/7"] {
            let outcome = if gone.contains(&key) { "miss 200 old" } else { "hit 200 old" };
            assert_eq!(node.ask(key).await, outcome, "{location} {key}");
        }
        // And what answers the POST would answer a GET of it, in either's words.
        let described = Fields::from_pairs([FRESH, ("Content-Location", location)]).unwrap();
        let target = Bytes::from("items/7");
        let passed = Passed { key: &target, status: 200, fields: &described, ..passed };
        let mine = location == "../items/7" || gone.len() == 2 && location != "items/7";
        assert_eq!(node.cache.deposit(&node.group, &passed, invalidated).is_some(), mine, "{location}");
    }
}

/// The schedules of [`crate::fences`]: the fill begins, the request is invalidated before the head, in the body, or before a
/// confirmation; whoever asked before gets the answer, nobody else does, and it is not stored.
#[tokio::test]
async fn what_began_before_an_invalidation_is_neither_stored_nor_joined_after_it() {
    type Pairs = &'static [(&'static str, &'static str)];
    const TAGGED: Pairs = &[FRESH, ("ETag", "\"1\"")];
    const PART: Pairs = &[FRESH, ("ETag", "\"1\""), ("Content-Range", "bytes 0-2/10")];
    let whole = || get("a", &[]);
    for (why, request, stored, script, expected) in [
        (
            "before the head",
            whole(),
            false,
            |gate| Script::new().hold(gate).then_head(200, TAGGED, Some(3)).chunk("old"),
            "miss 200 old",
        ),
        (
            "in the body",
            whole(),
            false,
            |gate| Script::head(200, TAGGED, Some(3)).hold(gate).chunk("old"),
            "miss 200 old",
        ),
        (
            "in a part",
            get_range("a", "0-2", ""),
            false,
            |gate| Script::head(206, PART, Some(3)).hold(gate).chunk("old"),
            "miss 206 old",
        ),
        (
            "before a confirmation",
            whole(),
            true,
            |gate| Script::new().hold(gate).then_head(304, TAGGED, None),
            "revalidated 200 old",
        ),
        (
            "in a body that replaces a stale one",
            whole(),
            true,
            |gate| Script::head(200, &[FRESH, ("ETag", "\"2\"")], Some(3)).hold(gate).chunk("old"),
            "miss 200 old",
        ),
    ] as [(&str, Request, bool, fn(&Gate) -> Script, &str); 5]
    {
        let (origin, gate) = (Scripted::new(), Gate::new());
        let node = Arc::new(Node::new(&origin));
        let mut asked = 1;
        if stored {
            origin.on("/a", Script::status(200, TAGGED, "old"));
            node.ask("a").await;
            node.clock.advance(Duration::from_secs(61));
            asked += 1;
        }
        origin.on("/a", script(&gate));
        let before = tokio::spawn({
            let (node, request) = (node.clone(), request.clone());
            async move { node.ask_with(&request).await }
        });
        origin.arrived("/a", asked).await;
        invalidate(&node, "a", "POST", 200, &[]).await;
        origin.on("/a", Script::status(200, &[FRESH], "new"));
        // Who joined would wait for the gate.
        let after = tokio::time::timeout(Duration::from_secs(10), node.ask("a")).await;
        assert_eq!(after.as_deref(), Ok("miss 200 new"), "{why}: who asks afterwards does not join");
        gate.open();
        assert_eq!(before.await.unwrap(), expected, "{why}: who asked before is served");
        node.settle().await;
        assert_eq!(node.ask("a").await, "hit 200 new", "{why}: the old answer is not stored");
        assert_eq!(node.group.stats.not_stored.value("invalidated"), 1, "{why}");
    }
}

#[tokio::test]
async fn an_invalidation_forgets_failures_and_uncacheability() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    origin.on("/a", Script::status(200, &[("Cache-Control", "private")], "mine"));
    node.ask("a").await;
    assert_eq!(node.ask("a").await, "pass uncacheable");
    assert_eq!(invalidate(&node, "a", "POST", 200, &[]).await, 0);
    origin.on("/a", Script::fails(FetchError::unreachable("down")));
    assert_eq!(node.ask("a").await, "error 502");
    invalidate(&node, "a", "DELETE", 204, &[]).await;
    origin.on("/a", Script::status(200, &[FRESH], "new"));
    assert_eq!(node.ask("a").await, "miss 200 new");
}

#[tokio::test]
async fn the_answer_to_a_post_is_stored_for_get_where_it_says_so() {
    let fresh = ("Expires", "Fri, 15 Jan 2027 09:00:00 GMT");
    let own = ("Content-Location", "/a");
    for (why, method, status, fields, body, expected) in [
        ("9110 9.3.3", "POST", 200, &[fresh, own][..], "post", "hit 200 post"),
        ("no lifetime", "POST", 200, &[own], "post", "miss 200 get"),
        ("no location", "POST", 200, &[fresh], "post", "miss 200 get"),
        ("another location", "POST", 200, &[fresh, ("Content-Location", "/b")], "post", "miss 200 get"),
        ("not to be stored", "POST", 200, &[fresh, own, ("Cache-Control", "private")], "post", "miss 200 get"),
        ("another method", "PUT", 200, &[fresh, own], "post", "miss 200 get"),
        ("too short", "POST", 200, &[fresh, own], "pos", "miss 200 get"),
        ("too long", "POST", 200, &[fresh, own], "posts", "miss 200 get"),
    ] {
        let origin = Scripted::new();
        let node = Node::new(&origin);
        origin.on("/a", Script::status(200, &[FRESH], "get"));
        node.ask("a").await;
        let (key, fields) = (Bytes::from("a"), Fields::from_pairs(fields.iter().copied()).unwrap());
        let stamp = node.cache.purges_known();
        let passed = passed(&node, &key, method, status, &fields, &stamp);
        let (removed, invalidated) =
            node.cache.invalidate_everywhere(&node.group, passed.invalidated_keys(&node.group)).await;
        assert_eq!(removed, 1);
        if let Some(mut deposit) = node.cache.deposit(&node.group, &passed, invalidated) {
            deposit.push(&body.as_bytes()[..1]);
            deposit.push(&body.as_bytes()[1..]);
            deposit.finish();
        }
        assert_eq!(node.ask("a").await, expected, "{why}");
    }
}

#[tokio::test]
async fn a_deposit_that_is_overtaken_is_not_stored() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    let fields = Fields::from_pairs([FRESH, ("Content-Location", "/a")]).unwrap();
    let key = Bytes::from("a");
    let stamp = node.cache.purges_known();
    let passed = passed(&node, &key, "POST", 200, &fields, &stamp);
    let mut deposit = node.cache.deposit(&node.group, &passed, None).unwrap();
    deposit.push(b"post");
    invalidate(&node, "a", "PUT", 200, &[]).await;
    deposit.finish();
    assert_eq!(node.cache.store.totals().items, 0);
}

#[tokio::test]
async fn what_a_head_answer_does_to_the_stored_get() {
    let tag = ("ETag", "\"1\"");
    for (why, status, fields, length, expected) in [
        ("4.3.5 it takes the fields over", 200, &[tag, FRESH, ("X", "2")][..], Some(4), "hit: 200 2 body"),
        ("4.3.5 another tag makes it stale", 200, &[("ETag", "\"2\""), FRESH][..], Some(4), "miss stale: 200 - new"),
        ("4.3.5 another length makes it stale", 200, &[tag, FRESH], Some(5), "miss stale: 200 - new"),
        ("4.3.5 another status says nothing", 410, &[tag, FRESH, ("X", "2")], Some(4), "miss stale: 200 - new"),
        (
            "5.2.2.5 it may no longer be stored",
            200,
            &[tag, ("Cache-Control", "no-store")],
            Some(4),
            "miss uri-miss: 200 - new",
        ),
    ] {
        let origin = Scripted::new();
        let node = Node::new(&origin);
        origin.on("/a", Script::status(200, &[FRESH, tag, ("X", "1")], "body"));
        node.ask("a").await;
        node.clock.advance(Duration::from_secs(61));
        origin.on("/a", Script::head(status, fields, length));
        let head = Request { method: Method::Head, ..get("a", &[]) };
        assert_eq!(node.ask_fully(&head).await, format!("miss stale: {status} none"), "{why}");
        node.settle().await;
        origin.on("/a", Script::status(200, &[FRESH], "new"));
        let answer = node.get("a").await;
        let (outcome, forward) = (answer.outcome.as_str(), answer.report.forward);
        let forward = forward.map(|word| format!(" {word}")).unwrap_or_default();
        let seen = seen(&get("a", &[]), answer).await;
        let x = seen.fields.iter().find(|(name, _)| name == "x").map_or("-", |(_, value)| value);
        assert_eq!(format!("{outcome}{forward}: {} {x} {}", seen.status, seen.body.unwrap()), expected, "{why}");
    }
}

#[tokio::test]
async fn a_head_that_finds_something_new_makes_even_a_fresh_entry_stale() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    origin.on("/a", Script::status(200, &[FRESH, ("ETag", "\"1\"")], "body"));
    node.ask("a").await;
    origin.on("/a", Script::head(200, &[FRESH, ("ETag", "\"2\"")], Some(4)));
    let directives = RequestDirectives { no_cache: true, ..Default::default() };
    let head = Request { method: Method::Head, directives, ..get("a", &[]) };
    assert_eq!(node.ask_fully(&head).await, "miss request: 200 none");
    origin.on("/a", Script::status(200, &[FRESH, ("ETag", "\"2\"")], "new!"));
    assert_eq!(node.ask_fully(&get("a", &[])).await, "miss stale: 200 new!");
}

#[tokio::test]
async fn a_304_that_confirms_something_else_is_asked_again_without_conditions() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    let node = Arc::new(Node::new(&origin));
    origin.on("/a", Script::status(200, &[FRESH, ("ETag", "\"1\"")], "old"));
    node.ask("a").await;
    node.clock.advance(Duration::from_secs(61));
    origin.on("/a", Script::new().hold(&gate).then_head(304, &[FRESH, ("ETag", "\"2\"")], None));
    let asked = tokio::spawn({
        let node = node.clone();
        async move { node.ask_fully(&get("a", &[])).await }
    });
    origin.arrived("/a", 2).await;
    origin.on("/a", Script::status(200, &[FRESH, ("ETag", "\"2\"")], "new"));
    gate.open();
    assert_eq!(asked.await.unwrap(), "miss stale: 200 new");
    let questions: Vec<_> = origin.asks().iter().map(|ask| ask.fields.contains("if-none-match")).collect();
    assert_eq!(questions, [false, true, false]);
    node.settle().await;
    assert_eq!(node.ask_fully(&get("a", &[])).await, "hit: 200 new");
}

#[tokio::test]
async fn an_origin_that_always_says_304_is_asked_twice_and_no_more() {
    let origin = Scripted::new();
    let node = Node::with(&origin, crate::freshness::Rules { stale_if_error: Duration::ZERO, ..Default::default() }, 1);
    origin.on("/a", Script::status(200, &[FRESH, ("ETag", "\"1\"")], "old"));
    node.ask("a").await;
    node.clock.advance(Duration::from_secs(61));
    origin.on("/a", Script::status(304, &[FRESH, ("ETag", "\"2\"")], ""));
    assert_eq!(node.ask_fully(&get("a", &[])).await, "error stale: 502 none");
    assert_eq!(origin.asked("/a"), 3);
}

#[tokio::test]
async fn why_a_request_went_further_and_what_came_first() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    let varies = &[FRESH, ("ETag", "\"1\""), ("Vary", "Accept-Encoding")];
    origin.on("/a", Script::status(200, varies, "body"));
    let no_cache = RequestDirectives { no_cache: true, ..Default::default() };
    assert_eq!(node.ask_fully(&get("a", &[])).await, "miss uri-miss: 200 body");
    assert_eq!(node.ask_fully(&get("a", &[("Accept-Encoding", "gzip")])).await, "miss vary-miss: 200 body");
    assert_eq!(node.ask_fully(&Request { directives: no_cache, ..get("a", &[]) }).await, "miss request: 200 body");
    node.clock.advance(Duration::from_secs(61));
    origin.on("/a", Script::status(500, &[], "oops"));
    assert_eq!(node.ask_fully(&get("a", &[])).await, "stale stale after 500: 200 body");
    origin.on("/a", Script::status(304, varies, ""));
    assert_eq!(node.ask_fully(&get("a", &[])).await, "revalidated stale after 304: 200 body");
    assert_eq!(node.ask_fully(&get("a", &[])).await, "hit: 200 body");
}

/// RFC 9110 section 8.8.2.2: a `Date` that cannot be read is none, and ours in its place makes no date strong.
#[tokio::test]
async fn what_a_post_left_has_a_strong_date_only_by_its_own_date() {
    let modified = ("Last-Modified", "Fri, 15 Jan 2027 07:00:00 GMT");
    for (date, expected) in [
        (("Date", "Fri, 15 Jan 2027 08:00:00 GMT"), "hit: 206 [bytes 0-1/4] ab"),
        (("Date", "today"), "hit: 200 abcd"),
        (("X-Date", "none"), "hit: 200 abcd"),
    ] {
        let node = Node::new(&Scripted::new());
        let fields = Fields::from_pairs([FRESH, modified, date, ("Content-Location", "/a")]).unwrap();
        let (key, stamp) = (Bytes::from("a"), node.cache.purges_known());
        let passed = passed(&node, &key, "POST", 200, &fields, &stamp);
        let (_, invalidated) =
            node.cache.invalidate_everywhere(&node.group, passed.invalidated_keys(&node.group)).await;
        let mut deposit = node.cache.deposit(&node.group, &passed, invalidated).expect("explicitly fresh");
        assert!(deposit.push(b"abcd"));
        deposit.finish();
        assert_eq!(node.ask_fully(&get_range("a", "0-1", modified.1)).await, expected, "{date:?}");
    }
}
