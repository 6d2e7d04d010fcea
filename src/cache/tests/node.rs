//! One node.

use super::*;

#[tokio::test]
async fn a_miss_is_loaded_once_and_then_hit() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[FRESH], "body"));
    let node = Node::new(&origin);
    assert_eq!(node.ask("a").await, "miss 200 body");
    assert_eq!(node.ask("a").await, "hit 200 body");
    assert_eq!(origin.asked("/a"), 1);
    assert_eq!(node.counters(), "gets 2 hits 1 loads 1 deduped 1 collapsed 0 peer 0 local 1 errors 0 served 0");
}

#[tokio::test]
async fn a_body_that_only_the_connections_end_ends_is_passed_on_and_never_stored() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[FRESH], "perhaps all").close_delimited());
    let node = Node::new(&origin);
    assert_eq!(node.ask("a").await, "miss 200 perhaps all");
    assert_eq!(node.ask("a").await, "miss 200 perhaps all");
    assert_eq!(origin.asked("/a"), 2);
}

#[tokio::test]
async fn a_thousand_readers_share_one_fill_and_read_while_it_runs() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    origin.on("/a", Script::head(200, &[FRESH], Some(6)).chunk("one").hold(&gate).chunk("two"));
    let node = Arc::new(Node::new(&origin));
    let mut answers = Vec::new();
    for _ in 0..1000 {
        let Payload::Stream(_, mut reader) = node.get("a").await.payload else { panic!("a stream") };
        assert_eq!(reader.chunk().await.unwrap().unwrap(), "one", "the first bytes come before the last");
        answers.push(reader);
    }
    gate.open();
    for reader in answers {
        assert_eq!(read(reader).await.unwrap(), "two");
    }
    assert_eq!(origin.asked("/a"), 1);
    assert_eq!(node.counters(), "gets 1000 hits 0 loads 1000 deduped 1 collapsed 999 peer 0 local 1 errors 0 served 0");
}

#[tokio::test]
async fn a_broken_body_is_broken_for_all_and_never_stored() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    origin.on("/a", Script::head(200, &[FRESH], Some(6)).chunk("one").hold(&gate).breaks());
    let node = Node::new(&origin);
    let (first, second) = (node.get("a").await, node.get("a").await);
    gate.open();
    assert_eq!(told(first).await, "miss 200 broken");
    assert_eq!(told(second).await, "miss 200 broken");
    origin.on("/a", Script::status(200, &[FRESH], "whole"));
    assert_eq!(node.ask("a").await, "miss 200 whole");
}

#[tokio::test]
async fn lies_about_the_length_are_breaks() {
    for (declared, body) in [(10, "short"), (2, "too long")] {
        let origin = Scripted::new();
        origin.on("/a", Script::head(200, &[FRESH], Some(declared)).chunk(body));
        let node = Node::new(&origin);
        assert_eq!(node.ask("a").await, "miss 200 broken", "{declared} declared, {body:?} sent");
        assert_eq!(node.cache.store.totals().items, 0);
    }
}

#[tokio::test]
async fn a_panicking_source_fails_its_key_alone() {
    let origin = Scripted::new();
    origin.on("/a", Script::new().panics());
    origin.on("/b", Script::status(200, &[FRESH], "b"));
    let node = Node::new(&origin);
    assert_eq!(node.ask("a").await, "error 502");
    assert_eq!(node.ask("b").await, "miss 200 b");
    assert_eq!(node.cache.flights.count(), 0);
}

#[tokio::test]
async fn readers_that_leave_do_not_end_the_fill_of_others() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    origin.on("/a", Script::head(200, &[FRESH], Some(6)).chunk("one").hold(&gate).chunk("two"));
    let node = Node::new(&origin);
    let first = node.get("a").await;
    let second = node.get("a").await;
    drop(first);
    gate.open();
    assert_eq!(told(second).await, "miss 200 onetwo");
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_nobody_reads_ends_after_a_second_unless_it_is_half_done() {
    let origin = Scripted::new();
    origin.on("/little", Script::head(200, &[FRESH], Some(100)).chunk("x").stalls());
    origin.on("/head", Script::new().stalls());
    let node = Node::new(&origin);
    drop(node.get("little").await);
    let waiting = tokio::spawn({
        let (cache, group) = (node.cache.clone(), node.group.clone());
        async move { drop(cache.get(&group, &get("head", &[])).await) }
    });
    origin.arrived("/head", 1).await;
    waiting.abort();
    origin.wait_abandoned(2).await;
    assert_eq!(node.cache.flights.count(), 0);
    assert_eq!(node.cache.flights.count(), 0);

    let gate = Gate::new();
    origin.on("/half", Script::head(200, &[FRESH], Some(6)).chunk("one").hold(&gate).chunk("two"));
    let Payload::Stream(_, mut reader) = node.get("half").await.payload else { panic!("a stream") };
    reader.chunk().await.unwrap();
    drop(reader);
    tokio::time::sleep(Duration::from_secs(5)).await;
    gate.open();
    while node.cache.flights.count() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.ask("half").await, "hit 200 onetwo");
}

#[tokio::test]
async fn what_may_not_be_shared_goes_to_the_one_who_caused_it() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    let private = &[("Cache-Control", "private, max-age=60"), ("Set-Cookie", "who=first")];
    origin.on("/a", Script::new().hold(&gate).then_head(200, private, Some(5)).chunk("first"));
    let node = Arc::new(Node::new(&origin));
    let ask = |node: &Arc<Node>| {
        let node = node.clone();
        tokio::spawn(async move { node.get("a").await })
    };
    let first = ask(&node);
    origin.arrived("/a", 1).await;
    let others: Vec<_> = (0..10).map(|_| ask(&node)).collect();
    while node.group.stats.loads_collapsed.value() < 10 {
        tokio::task::yield_now().await;
    }
    gate.open();
    assert_eq!(told(first.await.unwrap()).await, "miss 200 first");
    for other in others {
        assert_eq!(told(other.await.unwrap()).await, "pass not-shareable");
    }
    assert_eq!(node.ask("a").await, "pass uncacheable", "later requests do not queue");
    node.clock.advance(crate::remembered::UNCACHEABLE_LIFETIME);
    assert_eq!(node.ask("a").await, "miss 200 first");
    assert_eq!(origin.asked("/a"), 2);
}

#[tokio::test]
async fn one_clients_private_answer_does_not_switch_collapsing_off() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[("Cache-Control", "private")], "mine"));
    let node = Node::new(&origin);
    assert_eq!(node.ask_with(&get("a", &[("Authorization", "Basic x")])).await, "miss 200 mine");
    origin.on("/a", Script::status(200, &[FRESH], "public"));
    assert_eq!(node.ask("a").await, "miss 200 public");
    assert_eq!(node.ask_with(&get("a", &[("Authorization", "Basic x")])).await, "hit 200 public");
}

#[tokio::test]
async fn each_variant_is_loaded_once_and_all_live_under_the_key() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    let varies = &[FRESH, ("Vary", "Accept-Encoding")];
    origin.on("/a", Script::new().hold(&gate).then_head(200, varies, Some(2)).chunk("gz"));
    let node = Arc::new(Node::new(&origin));
    let ask = |fields: &'static [(&'static str, &'static str)]| {
        let node = node.clone();
        tokio::spawn(async move { node.ask_with(&get("a", fields)).await })
    };
    let gzip = ask(&[("Accept-Encoding", "gzip")]);
    origin.arrived("/a", 1).await;
    let more_gzip = ask(&[("Accept-Encoding", "gzip")]);
    let plain = [ask(&[]), ask(&[])];
    while node.group.stats.loads_collapsed.value() < 3 {
        tokio::task::yield_now().await;
    }
    origin.on("/a", Script::status(200, varies, "plain"));
    gate.open();
    assert_eq!(gzip.await.unwrap(), "miss 200 gz");
    assert_eq!(more_gzip.await.unwrap(), "miss 200 gz");
    for plain in plain {
        assert_eq!(plain.await.unwrap(), "miss 200 plain");
    }
    assert_eq!(origin.asked("/a"), 2, "one request per variant");
    assert_eq!(node.ask_with(&get("a", &[("Accept-Encoding", "gzip")])).await, "hit 200 gz");
    assert_eq!(node.ask("a").await, "hit 200 plain");
}

#[tokio::test]
async fn a_stale_entry_is_confirmed_or_replaced_by_the_origin() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[FRESH, ("ETag", "\"1\"")], "old"));
    let node = Node::new(&origin);
    assert_eq!(node.ask("a").await, "miss 200 old");
    node.clock.advance(Duration::from_secs(61));
    origin.on("/a", Script::status(304, &[FRESH, ("ETag", "\"1\"")], ""));
    assert_eq!(node.ask("a").await, "revalidated 200 old");
    assert_eq!(origin.asks().last().unwrap().fields.get("if-none-match"), Some(&b"\"1\""[..]));
    assert_eq!(node.ask("a").await, "hit 200 old");
    node.clock.advance(Duration::from_secs(61));
    origin.on("/a", Script::status(200, &[FRESH, ("ETag", "\"2\"")], "new"));
    assert_eq!(node.ask("a").await, "miss 200 new");
    assert_eq!(node.ask("a").await, "hit 200 new");
}

#[tokio::test]
async fn a_stale_entry_stands_in_for_a_failing_origin() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[FRESH], "old"));
    let node = Node::new(&origin);
    node.ask("a").await;
    node.clock.advance(Duration::from_secs(61));
    origin.on("/a", Script::status(500, &[], "oops"));
    assert_eq!(node.ask("a").await, "stale 200 old");
    origin.on("/a", Script::fails(FetchError::unreachable("down")));
    assert_eq!(node.ask("a").await, "stale 200 old");
    assert_eq!(node.ask("a").await, "stale 200 old", "remembered: nobody asks again at once");
    assert_eq!(origin.asked("/a"), 3);
    node.clock.advance(Duration::from_secs(3600));
    assert_eq!(node.ask("a").await, "error 502");
}

const STALE_WHILE_REVALIDATE: &[(&str, &str); 1] = &[("Cache-Control", "max-age=60, stale-while-revalidate=60")];

/// A node that has `old` for `a`, which may be answered for a minute while it is refreshed.
async fn stale_for_a_minute(origin: &Scripted) -> Node {
    origin.on("/a", Script::status(200, STALE_WHILE_REVALIDATE, "old"));
    let node = Node::new(origin);
    node.ask("a").await;
    node.clock.advance(Duration::from_secs(61));
    node
}

#[tokio::test]
async fn stale_while_revalidate_answers_at_once_and_refreshes_once() {
    let origin = Scripted::new();
    let node = stale_for_a_minute(&origin).await;
    let gate = Gate::new();
    origin.on("/a", Script::new().hold(&gate).then_head(200, STALE_WHILE_REVALIDATE, Some(3)).chunk("new"));
    for _ in 0..10 {
        assert_eq!(node.ask("a").await, "stale 200 old");
    }
    gate.open();
    while node.cache.flights.count() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.ask("a").await, "hit 200 new");
    assert_eq!(origin.asked("/a"), 2);
}

/// The answer to the client is not to be stored; the refresh is no answer to it.
#[tokio::test]
async fn a_refresh_behind_a_request_that_forbids_storing_is_stored() {
    let origin = Scripted::new();
    let node = stale_for_a_minute(&origin).await;
    origin.on("/a", Script::status(200, STALE_WHILE_REVALIDATE, "new"));
    let directives = RequestDirectives { no_store: true, ..Default::default() };
    assert_eq!(node.ask_with(&Request { directives, ..get("a", &[]) }).await, "stale 200 old");
    node.settle().await;
    assert_eq!(node.ask("a").await, "hit 200 new");
    assert_eq!(origin.asked("/a"), 2);
}

#[tokio::test]
async fn our_own_failure_answers_for_a_moment() {
    let origin = Scripted::new();
    origin.on("/a", Script::fails(FetchError::unreachable("down")));
    let node = Node::new(&origin);
    assert_eq!((node.ask("a").await, node.ask("a").await), ("error 502".into(), "error 502".into()));
    assert_eq!(origin.asked("/a"), 1);
    node.clock.advance(node.group.rules.errors);
    origin.on("/a", Script::status(200, &[FRESH], "back"));
    assert_eq!(node.ask("a").await, "miss 200 back");
}

#[tokio::test]
async fn a_body_beyond_the_limit_streams_through_and_is_not_stored() {
    for declared in [Some(3 << 20), None] {
        let origin = Scripted::new();
        let mut script = Script::head(200, &[FRESH], declared);
        for _ in 0..3 {
            script = script.chunk(vec![b'x'; 1 << 20]);
        }
        origin.on("/a", script);
        let node = Node::new(&origin);
        let answer = node.ask("a").await;
        assert_eq!(answer.len(), "miss 200 ".len() + (3 << 20), "{declared:?}");
        assert_eq!(node.cache.store.totals().items, 0);
        assert_eq!(node.group.stats.not_stored.value("too_large"), 1, "{declared:?}");
    }
}

/// The suite's surrogate-max-age-me-target and surrogate-fresh-cc-nostore.
#[tokio::test]
async fn an_origin_can_address_this_cache_by_the_name_that_it_was_told() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[], "first"));
    let node = Node::new(&origin);
    assert_eq!(node.ask("a").await, "miss 200 first");
    let told = origin.asks()[0].fields.get("surrogate-capability").map(<[u8]>::to_vec).unwrap();
    let (name, _) = std::str::from_utf8(&told).unwrap().split_once('=').unwrap();
    let for_us = format!("max-age=60;{name}");
    let response = [("Cache-Control", "no-store"), ("Surrogate-Control", for_us.as_str())];
    origin.on("/a", Script::status(200, &response, "second"));
    assert_eq!(node.ask("a").await, "miss 200 second");
    assert_eq!(node.ask("a").await, "hit 200 second");
}

#[tokio::test]
async fn head_never_becomes_get_and_is_not_stored() {
    let origin = Scripted::new();
    origin.on("/a", Script::head(200, &[FRESH], Some(4)));
    let node = Node::new(&origin);
    let request = Request { method: Method::Head, ..get("a", &[]) };
    assert_eq!(node.ask_with(&request).await, "miss 200 ");
    assert_eq!(origin.asks()[0].method, Method::Head);
    origin.on("/a", Script::status(200, &[FRESH], "body"));
    assert_eq!(node.ask("a").await, "miss 200 body");
    assert_eq!(node.ask_with(&request).await, "hit 200 body", "the writer leaves the body out");
}

#[tokio::test]
async fn only_if_cached_asks_nobody() {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    let directives = RequestDirectives { only_if_cached: true, ..Default::default() };
    assert_eq!(node.ask_with(&Request { directives, ..get("a", &[]) }).await, "error 504");
    assert!(origin.asks().is_empty());
}

const REST: u64 = 4 << 20;

#[tokio::test]
async fn a_reader_that_falls_out_of_the_window_goes_on_alone_or_breaks() {
    for (tag, expected) in [("\"strong\"", Ok(5 << 20)), ("W/\"weak\"", Err(()))] {
        let origin = Scripted::new();
        let slow = left_behind(&Arc::new(Node::new(&origin)), &origin, tag, Some(5 << 20)).await;
        // The rest, as an origin answers a range.
        let part = &[FRESH, ("ETag", tag), ("Content-Range", "bytes 1048576-5242879/5242880")];
        origin.on("/a", Script::status(206, part, vec![b'x'; REST as usize]));
        let read = read(slow).await.map(|rest| rest.len() + (1 << 20)).map_err(|_| ());
        assert_eq!(read, expected, "{tag}");
        if expected.is_ok() {
            let asked = origin.asks().pop().unwrap().fields;
            assert_eq!(asked.get("range"), Some(&b"bytes=1048576-"[..]));
            assert_eq!(asked.get("if-range"), Some(tag.as_bytes()));
        }
    }
}

/// An origin may send less of a range than was asked for; whoever reads on must not take that for the end.
#[tokio::test]
async fn a_rest_that_ends_too_early_or_is_of_another_body_is_no_rest() {
    for (what, tag, range, length, expected) in [
        ("the rest", "\"a\"", "bytes 1048576-5242879/5242880", Some(REST), true),
        ("the rest of who knows how much", "\"a\"", "bytes 1048576-5242879/*", Some(REST), true),
        ("less than the rest", "\"a\"", "bytes 1048576-5242879/6291456", Some(REST), false),
        ("less than it says", "\"a\"", "bytes 1048576-6291455/6291456", None, false),
        ("the rest of another body", "\"b\"", "bytes 1048576-5242879/5242880", Some(REST), false),
    ] {
        let origin = Scripted::new();
        // Nobody knows the length, so only the end says where the end is.
        let slow = left_behind(&Arc::new(Node::new(&origin)), &origin, "\"a\"", None).await;
        let part = &[FRESH, ("ETag", tag), ("Content-Range", range)];
        origin.on("/a", Script::head(206, part, length).chunk(vec![b'x'; REST as usize]));
        assert_eq!(read(slow).await.is_ok(), expected, "{what}");
    }
}

/// RFC 9110 section 8.8.2.2: a `Date` that comes later, or is ours, says nothing of the second in which the body came.
#[tokio::test]
async fn a_confirmation_makes_no_weak_date_strong() {
    let modified = ("Last-Modified", "Fri, 15 Jan 2027 08:00:00 GMT");
    let date = |seconds: &'static str| ("Date", seconds);
    let later = date("Fri, 15 Jan 2027 08:01:10 GMT");
    for (why, first, confirmation, expected) in [
        ("no date at all", &[FRESH, modified][..], &[FRESH][..], "hit: 200 0123456789"),
        ("the second of the change", &[FRESH, modified, ("Date", modified.1)], &[FRESH, later], "hit: 200 0123456789"),
        (
            "a later second",
            &[FRESH, modified, date("Fri, 15 Jan 2027 08:00:01 GMT")],
            &[FRESH],
            "hit: 206 [bytes 0-3/10] 0123",
        ),
    ] {
        let origin = Scripted::new();
        origin.on("/a", Script::status(200, first, "0123456789"));
        let node = Node::new(&origin);
        node.ask("a").await;
        node.settle().await;
        node.clock.advance(Duration::from_secs(70));
        origin.on("/a", Script::status(304, confirmation, ""));
        assert_eq!(node.ask("a").await, "revalidated 200 0123456789", "{why}");
        assert_eq!(node.ask_fully(&get_range("a", "0-3", modified.1)).await, expected, "{why}");
    }
}

#[tokio::test]
async fn a_304_that_forbids_storing_confirms_nothing_for_others() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    origin.on("/a", Script::status(200, &[FRESH, ("ETag", "\"1\"")], "old"));
    let node = Arc::new(Node::new(&origin));
    node.ask("a").await;
    node.clock.advance(Duration::from_secs(61));
    let forbids = &[("Cache-Control", "no-store"), ("ETag", "\"1\"")];
    origin.on("/a", Script::new().hold(&gate).then_head(304, forbids, Some(0)));
    let asking = tokio::spawn({
        let node = node.clone();
        async move { node.ask("a").await }
    });
    origin.arrived("/a", 2).await;
    origin.on("/a", Script::status(200, forbids, "mine"));
    gate.open();
    assert_eq!(asking.await.unwrap(), "miss 200 mine", "asked again without conditions");
    assert_eq!(node.cache.store.totals().items, 0);
}

#[tokio::test]
async fn credentials_that_are_refused_push_nothing_out() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[FRESH, ("ETag", "\"1\"")], "old"));
    let node = Node::new(&origin);
    node.ask("a").await;
    node.clock.advance(Duration::from_secs(61));
    origin.on("/a", Script::status(401, &[], "no"));
    assert_eq!(node.ask_with(&get("a", &[("Authorization", "Basic bogus")])).await, "miss 401 no");
    origin.on("/a", Script::status(304, &[FRESH, ("ETag", "\"1\"")], ""));
    assert_eq!(node.ask("a").await, "revalidated 200 old");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_came_too_slowly_is_there_for_the_next() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    origin.on("/a", Script::status(200, &[FRESH], "old"));
    let slow = Duration::from_millis(300);
    let rules = crate::freshness::Rules { jitter_percent: 0.0, stale_if_slow: slow, ..Default::default() };
    let node = Node::with(&origin, rules, 1);
    node.ask("a").await;
    node.clock.advance(Duration::from_secs(61));
    origin.on("/a", Script::new().hold(&gate).then_head(200, &[FRESH], Some(3)).chunk("new"));
    assert_eq!(node.ask("a").await, "stale 200 old");
    tokio::time::sleep(Duration::from_secs(3)).await;
    gate.open();
    while node.cache.flights.count() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.ask("a").await, "hit 200 new");
    assert_eq!(origin.asked("/a"), 2);
}

#[tokio::test]
async fn a_failing_head_says_nothing_of_get() {
    let origin = Scripted::new();
    origin.on("/a", Script::fails(FetchError::refused(504, "slow")));
    let node = Node::new(&origin);
    assert_eq!(node.ask_with(&Request { method: Method::Head, ..get("a", &[]) }).await, "error 504");
    origin.on("/a", Script::status(200, &[FRESH], "body"));
    assert_eq!(node.ask("a").await, "miss 200 body");
}

#[tokio::test]
async fn one_reader_needs_a_smaller_window_than_several() {
    for (readers, charged) in [(1, 256 << 10), (2, 2 << 20)] {
        let (origin, gate) = (Scripted::new(), Gate::new());
        let after = Gate::new();
        let large = Script::new().hold(&gate).then_head(200, &[FRESH], Some(5 << 20)).chunk("some").hold(&after);
        origin.on("/a", large.breaks());
        let node = Arc::new(Node::new(&origin));
        let before = node.cache.ledger.used();
        let ask = || {
            let node = node.clone();
            tokio::spawn(async move { node.get("a").await })
        };
        let asking: Vec<_> = (0..readers).map(|_| ask()).collect();
        while node.group.stats.loads.value() < readers {
            tokio::task::yield_now().await;
        }
        gate.open();
        let mut answers = Vec::new();
        for answer in asking {
            answers.push(answer.await.unwrap());
        }
        let used = node.cache.ledger.used() - before;
        assert!((charged..charged * 3 / 2).contains(&used), "{used} for {readers}");
        after.open();
    }
}

/// What turns out too large has been kept from its first byte, and a reader that takes nothing keeps it alive.
#[tokio::test]
async fn a_body_that_grows_too_large_stays_charged_while_it_is_held() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    let mut script = Script::head(200, &[FRESH], None);
    for _ in 0..9 {
        script = script.chunk(vec![b'x'; 128 << 10]);
    }
    origin.on("/a", script.hold(&gate).breaks());
    let node = Node::new(&origin);
    let before = node.cache.ledger.used();
    let Payload::Stream(_, mut reader) = node.get("a").await.payload else { panic!("a stream") };
    while node.group.stats.not_stored.value("too_large") == 0 {
        tokio::task::yield_now().await;
    }
    assert!(node.cache.ledger.used() >= before + (1 << 20), "nobody has read it");
    for _ in 0..9 {
        reader.chunk().await.unwrap();
    }
    gate.open();
    assert!(reader.chunk().await.is_err());
    drop(reader);
    let freed = async {
        while node.cache.ledger.used() != before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), freed).await.expect("the charge ends with the transfer");
}

#[tokio::test]
async fn a_body_that_streams_through_counts_while_it_does() {
    let (origin, gate) = (Scripted::new(), Gate::new());
    let private = &[("Cache-Control", "private")];
    origin.on("/a", Script::head(200, private, Some(5 << 20)).chunk(vec![b'x'; 1 << 20]).hold(&gate).breaks());
    let node = Node::new(&origin);
    let before = node.cache.ledger.used();
    let answer = node.get("a").await;
    assert!(node.cache.ledger.used() >= before + (1 << 20), "what is held is charged");
    drop(answer);
    gate.open();
    let freed = async {
        while node.cache.ledger.used() != before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), freed).await.expect("the charge ends with the transfer");
}

/// What the store says that it holds must have been charged, or what is alive outside of it looks smaller than it is.
#[tokio::test]
async fn whatever_is_stored_is_charged_to_the_byte() {
    let origin = Scripted::new();
    let varies = &[FRESH, ("Vary", "Accept-Language")];
    origin.on("/a", Script::status(200, varies, "body"));
    origin.on("/b", Script::status(200, &[FRESH], "another"));
    let node = Node::new(&origin);
    let before = node.cache.ledger.outside();
    for language in ["de", "en", "fr"] {
        node.ask_with(&get("a", &[("Accept-Language", language)])).await;
    }
    node.ask("b").await;
    node.settle().await;
    assert_eq!(node.cache.store.totals().items, 2);
    assert_eq!(node.cache.ledger.outside(), before);
    node.cache.invalidate_everywhere(&node.group, vec![Bytes::from("a"), Bytes::from("b")]).await;
    let kept = node.cache.purges.charged_bytes();
    assert_eq!(node.cache.ledger.outside(), before + kept);
}

/// A request misses, and before it asks, another one's fill lands: what it then finds was found, in the books too.
#[tokio::test]
async fn what_landed_between_the_two_looks_is_a_look_up_of_its_own() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[FRESH], "body"));
    let node = Node::new(&origin);
    let request = get("a", &[]);
    let key = HashedKey::new(GroupId(0), b"a");
    let missed =
        node.cache.find_fresh(&node.group, &key, Fields::empty, &RequestDirectives::default(), node.cache.now());
    assert!(missed.is_none());
    node.ask("a").await;
    node.settle().await;
    assert_eq!(told(node.cache.get(&node.group, &request).await).await, "hit 200 body");
    let usage = node.cache.store.usage(GroupId(0));
    let found = usage.main.hits + usage.hot.hits;
    assert!(node.group.stats.cache_hits.value() <= found, "{} found", found);
}

/// Of a body that is stored the readers' chunks are a second copy; it counts until the last reader has gone.
#[tokio::test]
async fn what_slow_readers_have_not_taken_counts_beside_the_entry() {
    const BODY_BYTES: usize = 1 << 20;
    let origin = Scripted::new();
    let in_eight = |script: Script| (0..8).fold(script, |script, _| script.chunk(vec![7; BODY_BYTES / 8]));
    origin.on("/a", in_eight(Script::head(200, &[FRESH], Some(BODY_BYTES as u64))));
    origin.on("/large", Script::status(200, &[("Cache-Control", "no-store")], vec![7; 1000]));
    origin.on("/broken", Script::head(200, &[FRESH], Some(2000)).chunk(vec![7; 1000]));
    let node = Node::new(&origin);
    for (key, bytes) in [("a", BODY_BYTES), ("large", 1000), ("broken", 1000)] {
        let outside = node.cache.ledger.outside();
        let answer = node.cache.get(&node.group, &get(key, &[])).await;
        node.settle().await;
        assert_eq!(node.cache.in_flight(), 0, "{key}");
        let held = node.cache.ledger.outside() - outside;
        assert!(held >= bytes, "{key}: {held}");
        drop(answer);
        assert_eq!(node.cache.ledger.outside(), outside, "{key}");
    }
    assert!(node.cache.store.peek(&HashedKey::new(GroupId(0), b"a")).is_some());
}

/// An entry that gave way while it is sent to a peer is still alive.
#[tokio::test]
async fn what_is_sent_to_a_peer_counts_until_it_is_sent() {
    let origin = Scripted::new();
    origin.on("/a", Script::status(200, &[FRESH], vec![7; 100_000]));
    let node = Node::new(&origin);
    node.ask("a").await;
    let ask = node.group.ask(&"a".into(), Method::Get, Fields::empty()).unwrap();
    let request = Request::from_ask(&node.group, &ask);
    let fetched = node.cache.get_as_owner(&node.group, &request, Aside::default()).await.unwrap();
    let key = HashedKey::new(GroupId(0), b"a");
    node.cache.store.remove(&key);
    assert!(node.cache.ledger.outside() >= 100_000);
    drop(fetched);
    assert!(node.cache.ledger.outside() < 100_000);
}
