//! Dates: what is no date is in the past, and what is one means what a well-kept crate says.

use std::time::{Duration, UNIX_EPOCH};

use groupcache_proxy::fields::Fields;
use groupcache_proxy::freshness::{
    Exchange, LifetimeSource, RequestDirectives, Rules, Target, format_http_date, judge, parse_http_date,
};

use super::NOW;

const YEAR_9999_END: i64 = 253_402_300_799;

pub(super) fn hold(data: &[u8]) {
    let text = data.strip_suffix(b"\n").unwrap_or(data);
    for now in [NOW.wall_seconds, 0, -1, 946_684_800, YEAR_9999_END, i64::MAX, i64::MIN] {
        let Some(seconds) = parse_http_date(text, now) else { continue };
        assert_eq!(parse_http_date(&text.to_ascii_uppercase(), now), Some(seconds), "case counts");
        // Two digits can mean a year behind 9999, which four digits cannot write.
        assert!((-62_167_219_200..=YEAR_9999_END + 51 * 366 * 86_400).contains(&seconds));
        if (0..=YEAR_9999_END).contains(&seconds) {
            assert_eq!(parse_http_date(format_http_date(seconds).as_bytes(), now), Some(seconds));
        }
    }
    both_readings_agree(text);
    only_a_date_in_the_future_makes_fresh(text);
}

fn both_readings_agree(text: &[u8]) {
    let ours = parse_http_date(text, NOW.wall_seconds);
    let theirs = std::str::from_utf8(text).ok().and_then(|text| httpdate::parse_http_date(text).ok());
    let Some(theirs) = theirs else { return };
    let exact = httpdate::fmt_http_date(theirs);
    let theirs = theirs.duration_since(UNIX_EPOCH).expect("the crate reads no date before 1970").as_secs() as i64;
    // The century of two digits is settled in another way.
    let two_digits = text.iter().filter(|&&byte| byte == b'-').count() == 2;
    match ours {
        Some(ours) if two_digits => {
            assert_eq!(ours.rem_euclid(86_400), theirs.rem_euclid(86_400));
            assert!(ours <= NOW.wall_seconds + 51 * 366 * 86_400);
        }
        Some(ours) => assert_eq!(ours, theirs),
        None => assert_ne!(exact.as_bytes(), text, "a date in its preferred form is refused"),
    }
}

fn only_a_date_in_the_future_makes_fresh(text: &[u8]) {
    let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(NOW.wall_seconds.unsigned_abs()));
    for pairs in [
        vec![("Date", date.as_bytes()), ("Expires", text)],
        vec![("Date", date.as_bytes()), ("Expires", text), ("Expires", b"Thu, 01 Jan 2060 00:00:00 GMT")],
        vec![("Expires", text), ("Last-Modified", b"Thu, 01 Jan 1970 00:00:01 GMT")],
        vec![("Date", text), ("Expires", date.as_bytes())],
        vec![("Date", text), ("Last-Modified", text)],
    ] {
        let Ok(received) = Fields::from_pairs(pairs.iter().copied()) else { return };
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
        let freshness = judge(&Rules::default(), &exchange).freshness;
        let read = parse_http_date(text.trim_ascii(), NOW.wall_seconds);
        if !freshness.is_fresh(NOW) {
            continue;
        }
        match freshness.source() {
            LifetimeSource::Expires => {
                let expires = received.get_all("expires").map(|text| parse_http_date(text, NOW.wall_seconds));
                assert!(expires.min().flatten().is_some_and(|expires| expires >= NOW.wall_seconds), "{pairs:?}");
                let remaining = freshness.remaining(NOW);
                if received.get("expires") == Some(text.trim_ascii()) {
                    let left = read.expect("an Expires that was read") - NOW.wall_seconds;
                    assert!(remaining <= left.saturating_mul(1000), "{remaining} ms of {left} s");
                }
            }
            // A date is no time since the last change of itself.
            found => panic!("{pairs:?} is fresh by {found:?}"),
        }
    }
}
