//! Cache directives are read in the safest way: nothing that cannot be read makes an answer fresher.

use groupcache_proxy::fields::Fields;
use groupcache_proxy::freshness::{
    Exchange, Judgement, RequestDirectives, ResponseDirectives, Rules, SECONDS_MAX, Seconds, Target, Verdict, judge,
};
use sfv::{BareItem, Dictionary, ListEntry, Parser};
use std::time::Duration;

use super::NOW;

pub(super) fn hold(data: &[u8]) {
    let lines = super::lines(data);
    if super::fields("cache-control", &lines).is_none() {
        return;
    }
    the_order_of_lines_does_not_count(&lines);
    what_forbids_is_found_wherever_it_stands(&lines);
    no_lifetime_comes_from_nowhere(&lines);
    what_cannot_be_read_permits_nothing(&lines);
    structured_fields_mean_the_same(data);
    a_request_gets_nothing_stale_that_it_did_not_ask_for(&lines);
}

fn directives(lines: &[&[u8]]) -> ResponseDirectives {
    let mut found = ResponseDirectives::parse(&Rules::default(), &super::fields("Cache-Control", lines).unwrap());
    found.no_cache_fields.sort();
    found.private_fields.sort();
    found
}

fn judged(base: &[(&str, &str)], lines: &[&[u8]]) -> Judgement {
    let pairs = base.iter().map(|(name, value)| (*name, value.as_bytes()));
    let received = Fields::from_pairs(pairs.chain(lines.iter().map(|line| ("Cache-Control", *line)))).unwrap();
    let exchange = Exchange {
        method: "GET",
        target: Target { authorities: &["example.org"], path: "/" },
        sent: &Fields::empty(),
        directives: RequestDirectives::default(),
        status: 200,
        received: &received,
        stores_parts: false,
        requested_at: NOW,
        received_at: NOW,
        jitter: 0.0,
    };
    judge(&Rules::default(), &exchange)
}

fn the_order_of_lines_does_not_count(lines: &[&[u8]]) {
    let mut reversed = lines.to_vec();
    reversed.reverse();
    assert_eq!(directives(lines), directives(&reversed));
    let mut twice = lines.to_vec();
    twice.extend_from_slice(lines);
    let (once, mut twice) = (directives(lines), directives(&twice));
    twice.no_cache_fields = once.no_cache_fields.clone();
    twice.private_fields = once.private_fields.clone();
    assert_eq!(once, twice);
}

fn what_forbids_is_found_wherever_it_stands(lines: &[&[u8]]) {
    let line = lines[0];
    for (before, after) in [("no-store,", ""), ("", ",no-store"), ("", " , no-store"), ("", ",No-Store=x")] {
        let line = [before.as_bytes(), line, after.as_bytes()].concat();
        assert!(directives(&[&line]).no_store, "{:?}", String::from_utf8_lossy(&line));
    }
    for (before, after) in [("private,", ""), ("", ",private"), ("", ",private=")] {
        let line = [before.as_bytes(), line, after.as_bytes()].concat();
        assert!(directives(&[&line]).private, "{:?}", String::from_utf8_lossy(&line));
    }
    for (before, after) in [("no-cache,", ""), ("", ",no-cache")] {
        let line = [before.as_bytes(), line, after.as_bytes()].concat();
        let judged = judged(&[], &[&line]);
        assert!(judged.directives.no_cache && !judged.shareable && !judged.freshness.is_fresh(NOW));
    }
    for seconds in ["5", "", "x", "-5", "5;a"] {
        let line = [line, b",s-maxage=", seconds.as_bytes()].concat();
        assert!(judged(&[], &[&line]).freshness.remaining(NOW) <= 5_000, "{:?}", String::from_utf8_lossy(&line));
    }
}

/// Without an `Expires` or `Last-Modified` every lifetime, and every extension of it, is a number on a line.
fn no_lifetime_comes_from_nowhere(lines: &[&[u8]]) {
    let text = lines.join(&b"\n"[..]);
    // An escape can stand between two digits of a quoted number.
    let unescaped: Vec<u8> = text.iter().copied().filter(|&byte| byte != b'\\').collect();
    let numbers = unescaped.split(|byte| !byte.is_ascii_digit()).map(|digits| {
        digits.iter().fold(0u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    });
    let largest = numbers.max().unwrap_or(0).min(u64::from(SECONDS_MAX));
    let judged = judged(&[], lines);
    let found = &judged.directives;
    for (seconds, name) in [
        (found.max_age, "max-age"),
        (found.s_maxage, "s-maxage"),
        (found.stale_while_revalidate, "stale-while-revalidate"),
        (found.stale_if_error, "stale-if-error"),
    ] {
        assert!(u64::from(seconds.or_zero().unwrap_or(0)) <= largest, "{found:?}");
        assert!(seconds == Seconds::Absent || super::mentions(&text, name), "{found:?}");
    }
    let remaining = judged.freshness.remaining(NOW);
    assert!(remaining <= 0 || remaining.unsigned_abs() <= largest * 1000, "{remaining} {largest}");
    assert!(remaining <= 0 || super::mentions(&text, "max-age") || super::mentions(&text, "s-maxage"));
    for (flag, name) in [
        (found.public, "public"),
        (found.must_understand, "must-understand"),
        (found.immutable, "immutable"),
        (found.no_store, "no-store"),
        (found.must_revalidate, "must-revalidate"),
    ] {
        assert!(!flag || super::mentions(&text, name), "{name}: {found:?}");
    }
}

/// The last line, if nothing on it is a well written permission, makes no answer fresher, longer useful or easier to store
/// or share.
fn what_cannot_be_read_permits_nothing(lines: &[&[u8]]) {
    let Some((added, before)) = lines.split_last() else { return };
    let alone = directives(&[added]);
    let given = |seconds| matches!(seconds, Seconds::Given(_));
    let permits = alone.public
        || alone.must_understand
        || alone.immutable
        || alone.shared_despite_authorization
        || [alone.max_age, alone.s_maxage, alone.stale_while_revalidate, alone.stale_if_error].into_iter().any(given);
    if permits {
        return;
    }
    let (rules, now) = (Rules::default(), "Wed, 18 May 2033 03:33:20 GMT");
    let expires = ("Expires", "Wed, 18 May 2033 04:33:20 GMT");
    let modified = ("Last-Modified", "Mon, 18 Apr 2033 03:33:20 GMT");
    for base in [
        &[("Date", now)][..],
        &[("Date", now), expires],
        &[("Date", now), modified],
        &[("Date", now), expires, modified],
    ] {
        let (without, with) = (judged(base, before), judged(base, lines));
        assert!(with.freshness.remaining(NOW) <= without.freshness.remaining(NOW), "{without:?} {with:?}");
        assert!(with.freshness.useful_for(&rules, NOW) <= without.freshness.useful_for(&rules, NOW));
        assert!(with.storable.is_err() || without.storable.is_ok(), "{without:?} {with:?}");
        assert!(!with.shareable || without.shareable, "{without:?} {with:?}");
    }
}

/// Where the line is a dictionary of RFC 9651 too, with each member once, both readings agree.
fn structured_fields_mean_the_same(line: &[u8]) {
    let Ok(dictionary) = Parser::new(line).parse::<Dictionary>() else { return };
    let members = line.iter().filter(|&&byte| byte == b',').count() + usize::from(!dictionary.is_empty());
    let plain = dictionary.values().all(|entry| matches!(entry, ListEntry::Item(item) if item.params.is_empty()));
    // Commas in strings and lists make the count larger, so that no repeated member is missed.
    if !plain || members != dictionary.len() || line.contains(&b'\n') {
        return;
    }
    let found = directives(&[line]);
    let item = |name: &str| match dictionary.get(name) {
        Some(ListEntry::Item(item)) => Some(&item.bare_item),
        _ => None,
    };
    for (name, ours) in [
        ("max-age", found.max_age),
        ("s-maxage", found.s_maxage),
        ("stale-while-revalidate", found.stale_while_revalidate),
        ("stale-if-error", found.stale_if_error),
    ] {
        let digits = |text: &str| (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(());
        let theirs = match item(name) {
            None => Seconds::Absent,
            Some(BareItem::Integer(number)) => match u64::try_from(i64::from(*number)) {
                // "-0" is a number there and none here.
                Ok(0) if super::mentions(line, "=-0") => Seconds::Invalid,
                Ok(number) => Seconds::Given(number.min(u64::from(SECONDS_MAX)) as u32),
                Err(_) => Seconds::Invalid,
            },
            Some(BareItem::String(text)) if digits(text.as_str()).is_some() => {
                Seconds::Given(text.as_str().parse().unwrap_or(u32::MAX).min(SECONDS_MAX))
            }
            Some(_) => Seconds::Invalid,
        };
        if theirs == Seconds::Invalid && ours == Seconds::Given(0) {
            continue;
        }
        assert_eq!(ours, theirs, "{name}");
    }
    for (name, ours) in [("no-store", found.no_store), ("must-revalidate", found.must_revalidate)] {
        assert_eq!(ours, item(name).is_some(), "{name}");
    }
    for (name, ours) in [("public", found.public), ("must-understand", found.must_understand)] {
        let bare = item(name) == Some(&BareItem::Boolean(true)) && !super::mentions(line, &format!("{name}="));
        assert_eq!(ours, bare, "{name}");
    }
}

fn a_request_gets_nothing_stale_that_it_did_not_ask_for(lines: &[&[u8]]) {
    let sent = super::fields("cache-control", lines).unwrap();
    let asked = RequestDirectives::parse(&sent);
    let text = lines.join(&b"\n"[..]);
    let rules = Rules { stale_if_error: Duration::ZERO, ..Rules::default() };
    let entry = judged(&[], &[b"max-age=60"]).freshness;
    for later in [0, 30, 59, 60, 90, u64::from(SECONDS_MAX)] {
        let now = groupcache_proxy::clock::Now { monotonic: NOW.monotonic + Duration::from_secs(later), ..NOW };
        let verdict = entry.verdict(&rules, &asked, now);
        assert!(verdict != Verdict::Fresh || later < 60, "{asked:?}");
        assert!(verdict != Verdict::StaleWhileRevalidate, "{asked:?}");
        if verdict == Verdict::StaleAccepted {
            assert!(later >= 60 && super::mentions(&text, "max-stale"), "{asked:?}");
        }
        if let Verdict::Revalidate { if_error: true, .. } = verdict {
            assert!(later < 60 || super::mentions(&text, "stale-if-error"), "{asked:?}");
        }
    }
    // A directive more never makes a client content with less, but for those that say so.
    let line = lines[0];
    for forbidding in ["no-cache", "no-cache=x", "max-age=0", "max-age=x", "min-fresh=x", "min-fresh=\""] {
        let more = super::fields("cache-control", &[line, forbidding.as_bytes()]).unwrap();
        let more = RequestDirectives::parse(&more);
        let now = groupcache_proxy::clock::Now { monotonic: NOW.monotonic + Duration::from_secs(1), ..NOW };
        assert!(matches!(entry.verdict(&rules, &more, now), Verdict::Revalidate { .. }), "{forbidding}: {more:?}");
    }
}
