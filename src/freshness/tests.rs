//! Tables of header lines and what follows from them, each row with its section, and properties that hold for all.

use std::time::{Duration, SystemTime};

use http_cache_semantics::{CacheOptions, CachePolicy};
use proptest::prelude::*;

use super::*;
use crate::fields::Fields;

const RECEIVED: Now = Now { monotonic: Duration::from_secs(1_000), wall_seconds: 1_800_000_000 };
const TARGET: Target<'static> = Target { authorities: &["example.com"], path: "/a" };

fn later(milliseconds: u64) -> Now {
    Now {
        monotonic: RECEIVED.monotonic + Duration::from_millis(milliseconds),
        wall_seconds: RECEIVED.wall_seconds + (milliseconds / 1000) as i64,
    }
}

/// Fields from lines; `@7` stands for the date 7 seconds after receipt.
fn fields(lines: &[&str]) -> Fields {
    Fields::from_pairs(lines.iter().map(|line| {
        let (name, value) = line.split_once(':').expect(line);
        match value.trim().strip_prefix('@') {
            Some(offset) => (name, format_http_date(RECEIVED.wall_seconds + offset.parse::<i64>().unwrap())),
            None => (name, value.to_owned()),
        }
    }))
    .unwrap()
}

fn exchange<'a>(status: u16, sent: &'a Fields, received: &'a Fields) -> Exchange<'a> {
    Exchange {
        method: "GET",
        target: TARGET,
        sent,
        directives: RequestDirectives::default(),
        status,
        received,
        stores_parts: false,
        requested_at: RECEIVED,
        received_at: RECEIVED,
        jitter: 0.0,
    }
}

fn requested(lines: &[&str]) -> RequestDirectives {
    RequestDirectives::parse(&fields(lines))
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Fresh => "fresh",
        Verdict::StaleWhileRevalidate => "stale-while-revalidate",
        Verdict::StaleAccepted => "accepted",
        Verdict::Revalidate { if_slow: Some(_), .. } => "ask, stale if slow",
        Verdict::Revalidate { if_error: true, .. } => "ask, stale if error",
        Verdict::Revalidate { .. } => "ask",
    }
}

/// What becomes of a response: the reason why it is not stored, else the verdict after so many seconds.
fn outcome(rules: &Rules, status: u16, lines: &[&str], after_seconds: u64) -> String {
    let (sent, received) = (Fields::empty(), fields(lines));
    let judgement = judge(rules, &exchange(status, &sent, &received));
    match judgement.storable {
        Err(why) => why.word().to_owned(),
        Ok(()) => {
            let verdict =
                judgement.freshness.verdict(rules, &RequestDirectives::default(), later(after_seconds * 1000));
            word(verdict).to_owned()
        }
    }
}

/// Rules that add nothing of their own.
fn plain() -> Rules {
    Rules { stale_if_error: Duration::ZERO, set_cookie: SetCookie::Share, negative: Vec::new(), ..Rules::default() }
}

type Row<'a> = (&'a str, &'a [&'a str], u64, &'a str);

fn check(rules: &Rules, rows: &[Row<'_>]) {
    for (why, lines, after_seconds, expected) in rows {
        assert_eq!(outcome(rules, 200, lines, *after_seconds), *expected, "{why}: {lines:?} after {after_seconds} s");
    }
}

#[test]
fn lifetimes() {
    let nothing = "no_freshness_nor_validator";
    check(
        &plain(),
        &[
            ("4.2.2 nothing to go by", &[], 0, nothing),
            ("5.2.2.1", &["Cache-Control: max-age=3600"], 3599, "fresh"),
            ("4.2 fresh while lifetime > age", &["Cache-Control: max-age=3600"], 3600, "ask"),
            ("5.2.2.1", &["Cache-Control: max-age=0", "ETag: a"], 0, "ask"),
            ("3 stale and nothing to validate by", &["Cache-Control: max-age=0"], 0, nothing),
            ("1.2.2 2^31 - 1", &["Cache-Control: max-age=2147483647"], 9999, "fresh"),
            ("1.2.2 2^31", &["Cache-Control: max-age=2147483648"], 9999, "fresh"),
            ("1.2.2 overflow", &["Cache-Control: max-age=99999999999"], 9999, "fresh"),
            ("1.2.2 overflow", &["Cache-Control: max-age=99999999999999999999999999999999999"], 9999, "fresh"),
            ("1.2.2 leading zeros", &["Cache-Control: max-age=003600"], 3599, "fresh"),
            ("5.3 before Expires", &["Cache-Control: max-age=3600", "Expires: @-7200", "Date: @0"], 0, "fresh"),
            ("5.3 before a bad Expires", &["Cache-Control: max-age=3600", "Expires: 0", "Date: @0"], 0, "fresh"),
            ("5.3 before Expires", &["Cache-Control: max-age=0", "Expires: @3600", "ETag: a"], 0, "ask"),
            ("5.2.3 an extension", &["Cache-Control: foobar, max-age=3600"], 0, "fresh"),
            ("5.2 names are case-insensitive", &["Cache-Control: MaX-aGe=3600"], 0, "fresh"),
            ("5.2.2.10", &["Cache-Control: s-maxage=3600"], 3599, "fresh"),
            ("5.2.2.10 shorter", &["Cache-Control: max-age=3600, s-maxage=1"], 2, "ask"),
            ("5.2.2.10 shorter, first", &["Cache-Control: s-maxage=1, max-age=3600"], 2, "ask"),
            ("5.2.2.10 other line", &["Cache-Control: max-age=3600", "Cache-Control: s-maxage=1"], 2, "ask"),
            ("5.2.2.10 longer", &["Cache-Control: max-age=0, s-maxage=3600", "Expires: @-10"], 2, "fresh"),
            ("5.3", &["Expires: @3600", "Date: @0"], 3599, "fresh"),
            ("5.3", &["Expires: @3600", "Date: @0"], 3600, "ask"),
            ("5.3 without Date", &["Expires: @10"], 9, "fresh"),
            ("5.3 with a bad Date", &["Expires: @10", "Date: foo"], 9, "fresh"),
            ("5.3 past", &["Expires: @-30", "Date: @0", "ETag: a"], 0, "ask"),
            ("5.3 present", &["Expires: @0", "Date: @0", "ETag: a"], 0, "ask"),
            ("5.3 both ahead", &["Expires: @300", "Date: @400", "ETag: a"], 0, "ask"),
            ("5.3 invalid", &["Expires: 0", "Last-Modified: @-99999"], 0, "ask"),
            ("5.3 invalid", &["Expires: Thu, 18 Aug 2050 02:01:18 AEST", "ETag: a"], 0, "ask"),
            ("5.3 RFC 850", &["Expires: Thursday, 18-Aug-50 02:01:18 GMT"], 0, "fresh"),
            ("5.3 asctime", &["Expires: Thu Aug  8 02:01:18 2050"], 0, "fresh"),
            ("4.2 case", &["Expires: THU, 18 AUG 2050 02:01:18 gMT"], 0, "fresh"),
            ("4.2.1 two, the earlier", &["Expires: @100", "Expires: @10"], 20, "ask"),
            ("4.2.1 two, one bad", &["Expires: @100", "Expires: 0", "ETag: a"], 0, "ask"),
            ("4.2.1 two dates, the shorter", &["Expires: @100", "Date: @0", "Date: @90", "ETag: a"], 11, "ask"),
            ("interface: max", &["Cache-Control: max-age=99999999999"], 365 * 86_400, "ask"),
        ],
    );
}

#[test]
fn odd_syntax() {
    check(
        &plain(),
        &[
            ("5.2 quoted", &["Cache-Control: max-age=\"3600\""], 0, "fresh"),
            ("5.2 quoted pair", &["Cache-Control: max-age=\"3\\600\""], 3599, "fresh"),
            ("4.2.1 single quotes", &["Cache-Control: max-age='3600'", "ETag: a"], 0, "ask"),
            ("5.2 inside a string", &["Cache-Control: extension=\"max-age=3600\", max-age=1"], 2, "ask"),
            ("5.2 inside a string", &["Cache-Control: max-age=1, extension=\"max-age=3600\""], 2, "ask"),
            ("5.2 inside a string", &["Cache-Control: extension=\"a, max-age=3600\", max-age=\"1\""], 2, "ask"),
            ("5.2 inside a string", &["Cache-Control: extension=\"\\\", no-store\", max-age=9"], 2, "fresh"),
            ("4.2.1 decimal", &["Cache-Control: max-age=3600.0", "ETag: a"], 0, "ask"),
            ("4.2.1 letters", &["Cache-Control: max-age=3600a", "ETag: a"], 0, "ask"),
            ("4.2.1 letters", &["Cache-Control: max-age=a3600", "ETag: a"], 0, "ask"),
            ("4.2.1 negative", &["Cache-Control: max-age=-3600", "ETag: a"], 0, "ask"),
            ("4.2.1 no argument", &["Cache-Control: max-age", "ETag: a"], 0, "ask"),
            ("4.2.1 empty argument", &["Cache-Control: max-age=", "ETag: a"], 0, "ask"),
            ("4.2.1 empty string", &["Cache-Control: max-age=\"\"", "ETag: a"], 0, "ask"),
            ("4.2.1 space before =", &["Cache-Control: max-age =3600", "ETag: a"], 0, "ask"),
            ("4.2.1 space after =", &["Cache-Control: max-age= 3600", "ETag: a"], 0, "ask"),
            ("4.2.1 semicolon", &["Cache-Control: max-age=3600; x", "ETag: a"], 0, "ask"),
            ("4.2.1 semicolon, still private", &["Cache-Control: max-age=3600; private"], 0, "private"),
            ("4.2.1 no comma, still private", &["Cache-Control: max-age=3600 private"], 0, "private"),
            ("4.2.1 string behind", &["Cache-Control: max-age=3600\"x\"", "ETag: a"], 0, "ask"),
            ("4.2.1 something before", &["Cache-Control: ( max-age=3600", "ETag: a"], 0, "ask"),
            ("a comma starts afresh", &["Cache-Control: (, max-age=3600"], 0, "fresh"),
            ("9110 5.6.1 empty elements", &["Cache-Control: ,, ,max-age=3600,,"], 0, "fresh"),
            ("4.2.1 an open string", &["Cache-Control: x=\"y, max-age=3600", "ETag: a"], 0, "ask"),
            ("an open string hides nothing", &["Cache-Control: x=\"y, no-store", "ETag: a"], 0, "no_store"),
            ("an open string in one line", &["Cache-Control: x=\"y", "Cache-Control: max-age=9"], 0, "fresh"),
            ("4.2.1 two, the smaller", &["Cache-Control: max-age=1800, max-age=1"], 2, "ask"),
            ("4.2.1 two, the smaller", &["Cache-Control: max-age=1, max-age=1800"], 2, "ask"),
            ("4.2.1 two lines", &["Cache-Control: max-age=1800", "Cache-Control: max-age=3600"], 1799, "fresh"),
            ("4.2.1 two lines", &["Cache-Control: max-age=1800", "Cache-Control: max-age=1"], 2, "ask"),
            ("4.2.1 one is bad", &["Cache-Control: max-age=1800, max-age=x", "ETag: a"], 0, "ask"),
            ("4.2.1 a bad s-maxage", &["Cache-Control: max-age=1800, s-maxage=x", "ETag: a"], 0, "ask"),
            ("prohibitions count with arguments", &["Cache-Control: no-store=x, max-age=9"], 0, "no_store"),
            ("prohibitions count however written", &["Cache-Control: max-age=9, No-StOrE foo"], 0, "no_store"),
            ("not a directive", &["Cache-Control: max-age=9, no-storee, xno-store"], 0, "fresh"),
            ("bytes above ASCII", &["Cache-Control: max-age=9, \u{e9}no-store"], 0, "no_store"),
        ],
    );
}

#[test]
fn ages() {
    let hour = "Cache-Control: max-age=3600";
    check(
        &plain(),
        &[
            ("4.2.3 Age", &[hour, "Age: 3599"], 0, "fresh"),
            ("4.2.3 Age", &[hour, "Age: 3600", "ETag: a"], 0, "ask"),
            ("4.2.3 Age grows", &[hour, "Age: 1800"], 1800, "ask"),
            ("4.2.3 Date", &[hour, "Date: @-3599"], 0, "fresh"),
            ("4.2.3 Date", &[hour, "Date: @-3600", "ETag: a"], 0, "ask"),
            ("4.2.3 the older of both", &[hour, "Date: @-1800", "Age: 1000"], 1800, "ask"),
            ("4.2.3 the older of both", &[hour, "Date: @-1000", "Age: 1800"], 1800, "ask"),
            ("4.2.3 Date ahead", &[hour, "Date: @9999"], 3599, "fresh"),
            ("4.2.3 Age and Expires", &["Date: @-10", "Expires: @10", "Age: 25", "ETag: a"], 0, "ask"),
            ("4.2.3 Age and Expires", &["Date: @10", "Expires: @20", "Age: 15", "ETag: a"], 0, "ask"),
            ("5.1 not a number", &[hour, "Age: abc"], 3599, "fresh"),
            ("5.1 negative", &[hour, "Age: -7200"], 3599, "fresh"),
            ("5.1 decimal", &[hour, "Age: 7200.0"], 3599, "fresh"),
            ("5.1 empty", &[hour, "Age:", "Age: 3600", "ETag: a"], 0, "ask"),
            ("1.2.2 2^31 - 1", &[hour, "Age: 2147483647", "ETag: a"], 0, "ask"),
            ("1.2.2 overflow", &[hour, "Age: 99999999999999999999", "ETag: a"], 0, "ask"),
            ("1.2.2 both overflow", &["Cache-Control: max-age=99999999999", "Age: 99999999999", "ETag: a"], 0, "ask"),
            ("5.1 the first of a list", &[hour, "Age: 7200, 0", "ETag: a"], 0, "ask"),
            ("5.1 the first of a list", &[hour, "Age: 0, 7200"], 0, "fresh"),
            ("5.1 the first line", &[hour, "Age: 7200", "Age: 0", "ETag: a"], 0, "ask"),
            ("5.1 the first line", &[hour, "Age: 0", "Age: 7200"], 0, "fresh"),
            ("5.1 the same twice", &[hour, "Age: 0, 0"], 0, "fresh"),
            ("5.1 the same twice", &["Cache-Control: max-age=10000", "Age: 3600, 3600"], 0, "fresh"),
            ("5.1 with a parameter: the older reading", &[hour, "Age: 7200;foo=bar", "ETag: a"], 0, "ask"),
            ("5.1 with a parameter: the older reading", &[hour, "Age: 7200;foo=111", "ETag: a"], 0, "ask"),
        ],
    );
}

#[test]
fn the_delay_of_the_answer_counts_as_age() {
    // Section 4.2.3, measured on the monotonic clock: the wall clock was set back a year meanwhile.
    let (sent, received) = (Fields::empty(), fields(&["Cache-Control: max-age=10", "Age: 2"]));
    let requested_at = Now {
        monotonic: RECEIVED.monotonic - Duration::from_millis(3_500),
        wall_seconds: RECEIVED.wall_seconds + 31_536_000,
    };
    let freshness = judge(&plain(), &Exchange { requested_at, ..exchange(200, &sent, &received) }).freshness;
    assert_eq!(freshness.age(RECEIVED), Duration::from_millis(5_500));
    assert_eq!(freshness.remaining(later(1_000)), 3_500);
    assert_eq!(freshness.remaining(later(5_000)), -500);
    // A monotonic reading from before the receipt, by another thread, is no reason to be younger.
    assert_eq!(freshness.age(Now { monotonic: Duration::ZERO, wall_seconds: 0 }), Duration::from_millis(5_500));
}

#[test]
fn guesses() {
    let day_old = &["Last-Modified: @-86400", "Date: @0"][..];
    for (status, expected) in [
        (200, "fresh"),
        (201, "status"),
        (202, "status"),
        (203, "fresh"),
        (204, "fresh"),
        (206, "partial"),
        (300, "fresh"),
        (301, "fresh"),
        (302, "status"),
        (304, "not_modified"),
        (307, "status"),
        (308, "fresh"),
        (403, "status"),
        (404, "fresh"),
        (405, "fresh"),
        (410, "fresh"),
        (414, "fresh"),
        (500, "server_error"),
        (501, "fresh"),
        (502, "server_error"),
        (503, "server_error"),
        (504, "server_error"),
        (599, "server_error"),
    ] {
        assert_eq!(outcome(&plain(), status, day_old, 8_639), expected, "9110 15.1, status {status}");
    }
    check(
        &plain(),
        &[
            ("4.2.2 a tenth", day_old, 8_640, "ask"),
            ("4.2.2 a tenth of little", &["Last-Modified: @-5"], 0, "fresh"),
            ("4.2.2 nothing of nothing", &["Last-Modified: @0"], 0, "ask"),
            ("4.2.2 modified in the future", &["Last-Modified: @9"], 0, "ask"),
            ("4.2.2 not a date", &["Last-Modified: yesterday"], 0, "ask"),
            ("4.2.2 two dates, the later", &["Last-Modified: @-10", "Last-Modified: @-99999"], 1, "ask"),
            ("4.2.2 the earlier Date", &["Last-Modified: @-20", "Date: @0", "Date: @-10"], 0, "ask"),
            (
                "4.2.2 not against an explicit lifetime",
                &["Last-Modified: @-99999", "Cache-Control: max-age=0"],
                0,
                "ask",
            ),
            ("interface: heuristic_max", &["Last-Modified: @-99999999"], 86_399, "fresh"),
            ("interface: heuristic_max", &["Last-Modified: @-99999999"], 86_400, "ask"),
            ("5.4 Pragma where nothing else is said", &["Last-Modified: @-99999", "Pragma: No-Cache"], 0, "ask"),
            ("5.4 Pragma does not contradict", &["Cache-Control: max-age=9", "Pragma: no-cache"], 0, "fresh"),
            ("5.4 Pragma does not contradict", &["Expires: @9", "Pragma: no-cache"], 0, "fresh"),
            ("5.4 another Pragma", &["Last-Modified: @-99999", "Pragma: x"], 0, "fresh"),
        ],
    );
    assert_eq!(outcome(&plain(), 599, &["Last-Modified: @-86400", "Cache-Control: public"], 1), "fresh", "5.2.2.9");

    let off = Rules { heuristic_max: Duration::ZERO, ..plain() };
    assert_eq!(outcome(&off, 200, day_old, 0), "ask", "interface: heuristic_max 0s");
    let default = Rules { default_lifetime: Duration::from_secs(60), ..plain() };
    for (status, lines, after, expected) in [
        (200, &[][..], 59, "fresh"),
        (200, &[], 60, "ask"),
        (200, &["Last-Modified: @-86400"], 60, "fresh"),
        (200, &["Cache-Control: max-age=1"], 2, "ask"),
        (200, &["Pragma: no-cache"], 0, "no_freshness_nor_validator"),
        (301, &[], 59, "fresh"),
        (302, &[], 0, "status"),
        (302, &["Cache-Control: public"], 59, "fresh"),
        (404, &[], 0, "no_freshness_nor_validator"),
        (500, &[], 0, "server_error"),
    ] {
        assert_eq!(outcome(&default, status, lines, after), expected, "interface: default, {status} {lines:?}");
    }
    let negative = Rules { negative: vec![(404, Duration::from_secs(5)), (503, Duration::from_secs(2))], ..plain() };
    for (status, lines, after, expected) in [
        (404, &[][..], 4, "fresh"),
        (404, &[], 5, "ask"),
        (404, &["Last-Modified: @-86400"], 5, "ask"),
        (404, &["Cache-Control: max-age=60"], 59, "fresh"),
        (404, &["Cache-Control: no-store"], 0, "no_store"),
        (503, &[], 1, "fresh"),
        (410, &[], 0, "no_freshness_nor_validator"),
    ] {
        assert_eq!(outcome(&negative, status, lines, after), expected, "interface: negative, {status} {lines:?}");
    }
}

#[test]
fn what_is_not_believed() {
    let ignores = Rules { ignore_cache_control: true, ignore_expires: true, ignore_vary: true, ..plain() };
    check(
        &ignores,
        &[
            ("interface: ignore", &["Cache-Control: no-store", "Last-Modified: @-86400"], 0, "fresh"),
            ("interface: ignore", &["Cache-Control: max-age=60"], 0, "no_freshness_nor_validator"),
            ("interface: ignore", &["Pragma: no-cache", "Last-Modified: @-86400"], 0, "fresh"),
            ("interface: ignore", &["Expires: 0", "Last-Modified: @-86400"], 0, "fresh"),
            ("interface: ignore", &["Vary: *", "Last-Modified: @-86400"], 0, "fresh"),
            ("9213 2.2 a targeted field is no Cache-Control", &["CDN-Cache-Control: max-age=60"], 59, "fresh"),
        ],
    );
}

#[test]
fn prohibitions_and_permissions() {
    check(
        &plain(),
        &[
            ("5.2.2.5", &["Cache-Control: max-age=60, no-store", "Expires: @60"], 0, "no_store"),
            ("5.2.2.7", &["Cache-Control: private, max-age=60"], 0, "private"),
            ("5.2.2.7 with a field", &["Cache-Control: private=\"a\", max-age=60"], 0, "fresh"),
            ("5.2.2.7 as a token", &["Cache-Control: private=a, max-age=60"], 0, "fresh"),
            ("5.2.2.7 both forms", &["Cache-Control: private=\"a\", private, max-age=60"], 0, "private"),
            ("5.2.2.7 an empty list", &["Cache-Control: private=\"\", max-age=60"], 0, "private"),
            ("5.2.2.7 not a name", &["Cache-Control: private=\"a b\", max-age=60"], 0, "private"),
            ("5.2.2.7 an open list", &["Cache-Control: max-age=60, private=\"a"], 0, "private"),
            (
                "5.2.2.7 a field that nothing works without",
                &["Cache-Control: private=\"vary\", max-age=60"],
                0,
                "private",
            ),
            ("5.2.2.4", &["Cache-Control: max-age=60, no-cache", "Expires: @60"], 0, "no_freshness_nor_validator"),
            ("5.2.2.4", &["Cache-Control: max-age=60, No-CaChE", "ETag: a"], 0, "ask"),
            ("5.2.2.4 with fields", &["Cache-Control: no-cache=\"a, b\"", "Cache-Control: max-age=60"], 0, "fresh"),
            ("5.2.2.4 space before =", &["Cache-Control: no-cache =\"a\", max-age=60", "ETag: a"], 0, "ask"),
            ("5.2.2.3", &["Cache-Control: no-store, must-understand, max-age=60"], 0, "fresh"),
            ("5.2.2.3 badly written", &["Cache-Control: no-store, must-understand=1, max-age=60"], 0, "no_store"),
            ("4.1", &["Cache-Control: max-age=60", "Vary: a, *"], 0, "vary_any"),
            ("4.1, which of them cannot be read", &["Cache-Control: max-age=60", "Vary: a b"], 0, "vary_any"),
            ("4.1, the same", &["Cache-Control: max-age=60", "Vary: a, \"b, c\""], 0, "vary_any"),
            ("4.1", &["Cache-Control: max-age=60", "Vary: a", "Vary: b"], 0, "fresh"),
            ("7.3 shared", &["Cache-Control: max-age=60", "Set-Cookie: a=b"], 0, "fresh"),
        ],
    );
    for (status, lines, expected) in [
        (599, &["Cache-Control: max-age=60, must-understand"][..], "must_understand"),
        (599, &["Cache-Control: max-age=60, no-store, must-understand"], "must_understand"),
        (599, &["Cache-Control: max-age=60"], "fresh"),
        (299, &["Cache-Control: max-age=60"], "fresh"),
        (499, &["Expires: @60"], "fresh"),
        (302, &["Cache-Control: max-age=60"], "fresh"),
        (302, &["Cache-Control: max-age=x", "ETag: a"], "status"),
        (302, &["Expires: 0", "ETag: a"], "status"),
        (500, &["Expires: @60"], "fresh"),
        (500, &["Expires: @-60", "ETag: a"], "server_error"),
        (503, &["Cache-Control: max-age=60"], "fresh"),
        (101, &["Cache-Control: max-age=60"], "status"),
        (600, &["Cache-Control: max-age=60"], "status"),
    ] {
        assert_eq!(outcome(&plain(), status, lines, 0), expected, "3, status {status}: {lines:?}");
    }
    let cookies = &["Cache-Control: max-age=60", "Set-Cookie: a=b"][..];
    assert_eq!(outcome(&Rules::default(), 200, cookies, 0), "set_cookie", "interface: private");
    let strip = Rules { set_cookie: SetCookie::Strip, ..Rules::default() };
    assert_eq!(outcome(&strip, 200, cookies, 0), "fresh", "interface: strip");
    let named = &["Cache-Control: max-age=60, no-cache=\"Set-Cookie\"", "Set-Cookie: a=b"][..];
    assert_eq!(outcome(&Rules::default(), 200, named, 0), "fresh", "5.2.2.4: the origin takes the cookie out itself");
}

#[test]
fn authorization_and_methods() {
    let post = ["Cache-Control: max-age=60", "Content-Location: /a"];
    for (why, method, sent, lines, expected) in [
        ("3.5", "GET", &["Authorization: x"][..], &["Expires: @60"][..], "authorization"),
        ("3.5", "GET", &["Authorization: x"], &["Cache-Control: max-age=60"], "authorization"),
        ("3.5 public", "GET", &["Authorization: x"], &["Cache-Control: max-age=60, public"], "stored"),
        ("3.5 s-maxage", "GET", &["Authorization: x"], &["Cache-Control: s-maxage=60"], "stored"),
        (
            "3.5 must-revalidate",
            "GET",
            &["Authorization: x"],
            &["Cache-Control: max-age=60, must-revalidate"],
            "stored",
        ),
        (
            "3.5 not proxy-revalidate",
            "GET",
            &["Authorization: x"],
            &["Cache-Control: max-age=60, proxy-revalidate"],
            "authorization",
        ),
        (
            "3.5 a bad s-maxage takes the permission of a good one away, in this order too",
            "GET",
            &["Authorization: x"],
            &["Cache-Control: max-age=60, s-maxage=60", "Cache-Control: s-maxage=", "ETag: a"],
            "authorization",
        ),
        (
            "3.5 a bad s-maxage permits nothing",
            "GET",
            &["Authorization: x"],
            &["Cache-Control: max-age=60, s-maxage=x", "ETag: a"],
            "authorization",
        ),
        (
            "3.5 a bad public permits nothing",
            "GET",
            &["Authorization: x"],
            &["Cache-Control: max-age=60, public x"],
            "authorization",
        ),
        (
            "9213 2.2 the targeted field decides",
            "GET",
            &["Authorization: x"],
            &["Cache-Control: public, max-age=60", "CDN-Cache-Control: max-age=60"],
            "authorization",
        ),
        ("5.2.1.5", "GET", &["Cache-Control: no-store"], &["Cache-Control: max-age=60"], "request_no_store"),
        ("3", "HEAD", &[], &["Cache-Control: max-age=60"], "method"),
        ("3", "PUT", &[], &["Cache-Control: max-age=60"], "method"),
        ("9110 9.3.3", "POST", &[], &post, "stored"),
        ("9110 9.3.3", "POST", &[], &post[..1], "method"),
        ("9110 9.3.3", "POST", &[], &["Content-Location: /a", "Last-Modified: @-9999"], "method"),
        ("9110 9.3.3", "POST", &[], &["Content-Location: /b", "Cache-Control: max-age=60"], "method"),
    ] {
        let (sent, received) = (fields(sent), fields(lines));
        let exchange =
            Exchange { method, directives: RequestDirectives::parse(&sent), ..exchange(200, &sent, &received) };
        let found = judge(&plain(), &exchange).storable.map_or_else(WhyNotStored::word, |()| "stored");
        assert_eq!(found, expected, "{why}: {method} {lines:?}");
    }
}

#[test]
fn targeted_fields() {
    let lines = |targeted| ["Cache-Control: max-age=1", targeted, "ETag: a"];
    for (why, targeted, after, expected) in [
        ("9213 2.2", "CDN-Cache-Control: max-age=60", 59, "fresh"),
        ("9213 2.2", "CDN-Cache-Control: max-age=0", 0, "ask"),
        ("9213 2.1 an extension", "CDN-Cache-Control: foobar, max-age=60", 59, "fresh"),
        ("9213 2.1 parameters are ignored", "CDN-Cache-Control: max-age=60;x=y", 59, "fresh"),
        ("9213 2.1 overflow", "CDN-Cache-Control: max-age=99999999999", 9999, "fresh"),
        ("9213 2.2 private", "CDN-Cache-Control: private, max-age=60", 0, "private"),
        ("9213 2.2 private with a field", "CDN-Cache-Control: private=\"a\", max-age=60", 0, "fresh"),
        ("9213 2.2 no-cache", "CDN-Cache-Control: no-cache, max-age=60", 0, "ask"),
        ("9213 2.2 no-store", "CDN-Cache-Control: no-store", 0, "no_store"),
        ("9213 2.2 negative", "CDN-Cache-Control: max-age=-60", 0, "ask"),
        ("9213 2.2 empty", "CDN-Cache-Control:", 0, "fresh"),
        ("9213 2.2 empty", "CDN-Cache-Control:", 2, "ask"),
        ("9213 2.2 malformed", "CDN-Cache-Control: max-age=60, &&&", 2, "ask"),
        ("9213 2.2 malformed", "CDN-Cache-Control: max-age =60", 2, "ask"),
        ("9213 2.2 malformed", "CDN-Cache-Control: MaX-aGe=60", 2, "ask"),
        ("9213 2.1 wrong type", "CDN-Cache-Control: max-age=\"60\"", 2, "ask"),
        ("9213 2.1 wrong type", "CDN-Cache-Control: max-age=60.0", 2, "ask"),
        ("9213 2.1 wrong type", "CDN-Cache-Control: max-age=60, public=?0", 2, "ask"),
        ("edge max-age", "Surrogate-Control: max-age=60", 59, "fresh"),
        ("edge stale time", "Surrogate-Control: max-age=1+60", 59, "stale-while-revalidate"),
        ("edge stale time", "Surrogate-Control: max-age=1+x", 1, "ask"),
        ("edge case", "Surrogate-Control: MaX-aGe=60", 59, "fresh"),
        ("edge extension", "Surrogate-Control: foobar, max-age=60", 59, "fresh"),
        ("edge no-store", "Surrogate-Control: no-store, max-age=60", 0, "no_store"),
        ("edge for us", "Surrogate-Control: max-age=60;groupcache-proxy", 59, "fresh"),
        ("edge for us first", "Surrogate-Control: no-store, max-age=60; Groupcache-Proxy", 59, "fresh"),
        ("edge for others", "Surrogate-Control: max-age=60;not-for-you", 2, "ask"),
        ("edge nothing about caching", "Surrogate-Control: content=\"ESI/1.0\"", 2, "ask"),
        ("edge space before =", "Surrogate-Control: max-age =60", 2, "ask"),
        ("edge space after =", "Surrogate-Control: max-age= 60", 2, "ask"),
    ] {
        assert_eq!(outcome(&plain(), 200, &lines(targeted), after), expected, "{why}: {targeted}");
    }
    check(
        &plain(),
        &[
            ("9213 2.2 Expires is ignored", &["CDN-Cache-Control: max-age=60", "Expires: 0"], 59, "fresh"),
            ("9213 2.2 Expires is ignored", &["CDN-Cache-Control: max-age=0", "Expires: @60", "ETag: a"], 0, "ask"),
            (
                "9213 2.2 no-store is ignored",
                &["CDN-Cache-Control: max-age=60", "Cache-Control: no-store"],
                59,
                "fresh",
            ),
            ("9213 2.2 Age counts", &["CDN-Cache-Control: max-age=60", "Age: 60", "ETag: a"], 0, "ask"),
            ("9213 2.2 a guess", &["CDN-Cache-Control: foobar", "Expires: 0", "Last-Modified: @-9999"], 0, "fresh"),
            (
                "9213 2.2 the first of the list",
                &["CDN-Cache-Control: max-age=60", "Groupcache-Proxy-Cache-Control: max-age=1"],
                2,
                "ask",
            ),
            (
                "9213 2.2 a malformed first one",
                &["CDN-Cache-Control: max-age=60", "Groupcache-Proxy-Cache-Control: ="],
                2,
                "fresh",
            ),
            ("9110 5.3 two lines", &["CDN-Cache-Control: max-age=60", "CDN-Cache-Control: no-store"], 0, "no_store"),
            (
                "edge no-store in Cache-Control",
                &["Surrogate-Control: max-age=60", "Cache-Control: no-store"],
                0,
                "fresh",
            ),
        ],
    );
    let none = Rules { targeted: Vec::new(), ..plain() };
    assert_eq!(outcome(&none, 200, &lines("CDN-Cache-Control: max-age=60"), 2), "ask", "none configured");
}

#[test]
fn serving_stale() {
    let configured = Rules {
        stale_while_revalidate: Duration::from_secs(10),
        stale_if_error: Duration::from_secs(20),
        set_cookie: SetCookie::Share,
        ..Rules::default()
    };
    check(
        &configured,
        &[
            ("5861 3 configured", &["Cache-Control: max-age=1"], 10, "stale-while-revalidate"),
            ("5861 4 configured", &["Cache-Control: max-age=1"], 20, "ask, stale if error"),
            ("5861 4 over", &["Cache-Control: max-age=1"], 21, "ask"),
            (
                "5861 3 the response's own",
                &["Cache-Control: max-age=1, stale-while-revalidate=5"],
                5,
                "stale-while-revalidate",
            ),
            ("5861 3 its own, over", &["Cache-Control: max-age=1, stale-while-revalidate=5"], 6, "ask, stale if error"),
            (
                "5861 4 its own, over",
                &["Cache-Control: max-age=1, stale-if-error=5, stale-while-revalidate=0"],
                6,
                "ask",
            ),
            ("5861 4 bad", &["Cache-Control: max-age=1, stale-if-error=x, stale-while-revalidate=x"], 1, "ask"),
            (
                "5861 3 two, the smaller",
                &["Cache-Control: max-age=1, stale-while-revalidate=99, stale-while-revalidate=2"],
                3,
                "ask, stale if error",
            ),
            ("5.2.2.2", &["Cache-Control: max-age=1, must-revalidate"], 1, "ask"),
            ("5.2.2.2 fresh", &["Cache-Control: max-age=1, must-revalidate"], 0, "fresh"),
            (
                "5.2.2.2 before 5861",
                &["Cache-Control: max-age=1, must-revalidate, stale-if-error=9, stale-while-revalidate=9"],
                1,
                "ask",
            ),
            ("5.2.2.2 badly written", &["Cache-Control: max-age=1, must-revalidate=?"], 1, "ask"),
            ("5.2.2.8", &["Cache-Control: max-age=1, proxy-revalidate"], 1, "ask"),
            ("5.2.2.10", &["Cache-Control: max-age=1, s-maxage=1"], 1, "ask"),
            (
                "5.2.2.10 and 5861",
                &["Cache-Control: s-maxage=1, stale-while-revalidate=9"],
                9,
                "stale-while-revalidate",
            ),
            ("5.2.2.10 and 5861", &["Cache-Control: s-maxage=1, stale-if-error=9"], 9, "ask, stale if error"),
            ("5.2.2.4", &["Cache-Control: max-age=1, no-cache, stale-if-error=9", "ETag: a"], 1, "ask"),
            ("8246 2 only while fresh", &["Cache-Control: max-age=1, immutable"], 20, "ask, stale if error"),
            ("5861 3 never fresh", &["Cache-Control: max-age=0"], 0, "stale-while-revalidate"),
        ],
    );
    assert_eq!(outcome(&configured, 500, &["Cache-Control: max-age=1"], 1), "ask", "an old error is no help");
    let slow = Rules { stale_if_slow: Duration::from_secs(1), ..Rules::default() };
    let minute = &["Cache-Control: max-age=60"][..];
    assert_eq!(outcome(&slow, 200, minute, 61), "ask, stale if slow", "interface: stale_if_slow");
    assert_eq!(outcome(&slow, 200, minute, 3_661), "ask", "interface: within stale_if_error");
}

#[test]
fn what_a_client_wants() {
    let hour = &["Cache-Control: max-age=3600", "Date: @0"][..];
    let immutable = &["Cache-Control: max-age=3600, immutable"][..];
    let minute = &["Cache-Control: max-age=60"][..];
    let swr = &["Cache-Control: max-age=60, stale-while-revalidate=60"][..];
    for (why, response, request, after, expected) in [
        ("5.2.1.4", hour, &["Cache-Control: no-cache"][..], 1, "ask"),
        ("5.4", hour, &["Pragma: no-cache"], 1, "ask"),
        ("5.4 not beside Cache-Control", hour, &["Pragma: no-cache", "Cache-Control: x"], 1, "fresh"),
        ("5.4 another", hour, &["Pragma: x"], 1, "fresh"),
        ("5.2.1.1", hour, &["Cache-Control: max-age=0"], 1, "ask, stale if error"),
        ("5.2.1.1", hour, &["Cache-Control: max-age=600"], 600, "fresh"),
        ("5.2.1.1", hour, &["Cache-Control: max-age=600"], 601, "ask, stale if error"),
        ("5.2.1.1 bad", hour, &["Cache-Control: max-age=x"], 1, "ask, stale if error"),
        ("8246 2", immutable, &["Cache-Control: max-age=0"], 1, "fresh"),
        ("8246 2", immutable, &["Cache-Control: no-cache"], 1, "ask"),
        ("8246 2 stale", immutable, &["Cache-Control: max-age=0"], 3600, "ask"),
        ("5.2.1.3", hour, &["Cache-Control: min-fresh=600"], 3000, "fresh"),
        ("5.2.1.3", hour, &["Cache-Control: min-fresh=600"], 3001, "ask, stale if error"),
        ("5.2.1.3 bad", hour, &["Cache-Control: min-fresh=x"], 1, "ask, stale if error"),
        ("5.2.1.2", minute, &["Cache-Control: max-stale"], 9999, "accepted"),
        ("5.2.1.2", minute, &["Cache-Control: max-stale=10"], 70, "accepted"),
        ("5.2.1.2", minute, &["Cache-Control: max-stale=10"], 71, "ask"),
        ("5.2.1.2 bad", minute, &["Cache-Control: max-stale=x"], 61, "ask"),
        ("5.2.1.2 two, the smaller", minute, &["Cache-Control: max-stale, max-stale=1"], 70, "ask"),
        ("5.2.1.2 and max-age", minute, &["Cache-Control: max-stale=10, max-age=65"], 66, "ask"),
        ("5.2.2.2", &["Cache-Control: max-age=60, must-revalidate"], &["Cache-Control: max-stale"], 60, "ask"),
        ("5.2.2.10", &["Cache-Control: s-maxage=60"], &["Cache-Control: max-stale"], 60, "ask"),
        ("5.2.1.1 no stale answer", swr, &["Cache-Control: max-age=100"], 60, "ask"),
        ("5.2.1.2 nothing staler", swr, &["Cache-Control: max-stale=1"], 62, "ask"),
        ("5861 3", swr, &["Cache-Control: no-transform"], 60, "stale-while-revalidate"),
        ("5861 4 of the client", minute, &["Cache-Control: stale-if-error=10"], 69, "ask, stale if error"),
        (
            "5861 4 not against the origin",
            &["Cache-Control: max-age=60, stale-if-error=1"],
            &["Cache-Control: stale-if-error=10"],
            62,
            "ask",
        ),
    ] {
        let (sent, received) = (Fields::empty(), fields(response));
        let freshness = judge(&plain(), &exchange(200, &sent, &received)).freshness;
        let found = word(freshness.verdict(&plain(), &requested(request), later(after * 1000)));
        assert_eq!(found, expected, "{why}: {request:?} for {response:?} after {after} s");
    }
    assert!(requested(&["Cache-Control: Only-If-Cached, No-Store"]).only_if_cached, "5.2.1.7");
    assert_eq!(requested(&["Accept: */*", "Cookie: no-cache"]), RequestDirectives::default());
}

#[test]
fn why_it_asks() {
    let (sent, received) = (Fields::empty(), fields(&["Cache-Control: max-age=60"]));
    let freshness = judge(&plain(), &exchange(200, &sent, &received)).freshness;
    for (request, after, by_request) in [
        (&["Cache-Control: no-cache"][..], 1, true),
        (&["Cache-Control: max-age=0"], 1, true),
        (&["Cache-Control: min-fresh=60"], 1, true),
        (&[], 60, false),
        (&["Cache-Control: no-cache"], 60, false),
        (&["Cache-Control: max-age=0"], 60, false),
        (&["Cache-Control: min-fresh=60"], 60, false),
    ] {
        match freshness.verdict(&plain(), &requested(request), later(after * 1000)) {
            Verdict::Revalidate { reason, .. } => {
                assert_eq!(reason.is_by_request(), by_request, "9211 2.2: {request:?}")
            }
            verdict => panic!("{request:?}: {verdict:?}"),
        }
    }
}

#[test]
fn who_may_share_an_answer_that_came_while_they_waited() {
    for (status, lines, expected) in [
        (200, &[][..], true),
        (200, &["Cache-Control: max-age=0"], true),
        (200, &["Cache-Control: max-age=60"], true),
        (404, &[], true),
        (503, &[], true),
        (501, &[], false),
        (302, &[], false),
        (403, &[], false),
        (200, &["Cache-Control: no-cache", "ETag: a"], false),
        (200, &["Cache-Control: no-store"], false),
        (200, &["Cache-Control: private"], false),
        (503, &["Cache-Control: private"], false),
        (200, &["Vary: *"], false),
        (200, &["Set-Cookie: a=b"], false),
        (503, &["Set-Cookie: a=b"], false),
    ] {
        let (sent, received) = (Fields::empty(), fields(lines));
        assert_eq!(
            judge(&Rules::default(), &exchange(status, &sent, &received)).shareable,
            expected,
            "{status} {lines:?}"
        );
        let head = judge(&Rules::default(), &Exchange { method: "HEAD", ..exchange(status, &sent, &received) });
        assert_eq!(
            (head.storable, head.shareable),
            (Err(WhyNotStored::Method), expected),
            "head of {status} {lines:?}"
        );
    }
    let (sent, received) = (fields(&["Authorization: x"]), fields(&["ETag: a"]));
    assert!(!judge(&Rules::default(), &exchange(200, &sent, &received)).shareable, "3.5");
}

#[test]
fn which_fields_are_stored() {
    let date = "Date: @0";
    let strip = Rules { set_cookie: SetCookie::Strip, ..plain() };
    for (why, rules, received, expected) in [
        ("3.1", plain(), &["A: 1", date, "Age: 9"][..], &["A: 1", date][..]),
        (
            "3.1 one connection",
            plain(),
            &[
                "Connection: x, close",
                "X: 1",
                "Keep-Alive: 1",
                "Proxy-Connection: 1",
                "TE: 1",
                "Trailer: 1",
                "Transfer-Encoding: chunked",
                "Upgrade: 1",
                date,
            ],
            &[date],
        ),
        (
            "3.1 proxies",
            plain(),
            &["Proxy-Authenticate: 1", "Proxy-Authentication-Info: 1", "Proxy-Authorization: 1", date],
            &[date],
        ),
        (
            "9110 7.6.1 not for everyone's fields",
            plain(),
            &["Connection: cache-control, vary", "Cache-Control: no-cache", "Vary: a", date],
            &["Cache-Control: no-cache", "Vary: a", date],
        ),
        (
            "5.2.2.4 and 5.2.2.7",
            plain(),
            &["Cache-Control: no-cache=\"a, B\", private=c", "A: 1", "b: 2", "C: 3", "D: 4", date],
            &["Cache-Control: no-cache=\"a, B\", private=c", "D: 4", date],
        ),
        (
            "interface: share",
            plain(),
            &["Set-Cookie: a=b", "Set-Cookie: c=d", date],
            &["Set-Cookie: a=b", "Set-Cookie: c=d", date],
        ),
        ("interface: strip", strip, &["Set-Cookie: a=b", "Set-Cookie2: c=d", date], &[date]),
        ("9110 6.6.1", plain(), &["A: 1"], &["A: 1", date]),
        ("9110 6.6.1 a bad one", plain(), &["Date: now", "A: 1"], &["A: 1", date]),
    ] {
        let received = fields(received);
        let directives = ResponseDirectives::parse(&rules, &received);
        assert_eq!(fields_to_store(&rules, &directives, &received, RECEIVED), fields(expected), "{why}");
    }
}

#[test]
fn which_fields_are_for_the_causer_alone() {
    let with = |set_cookie| Rules { set_cookie, ..Rules::default() };
    let (share, private, strip) = (with(SetCookie::Share), with(SetCookie::Private), with(SetCookie::Strip));
    let date = "Date: @0";
    let named = "Cache-Control: max-age=9, no-cache=\"Set-Cookie, a\", private=b";
    for (why, rules, received, expected) in [
        ("nothing is named", &share, &["A: 1", "Set-Cookie: x", date][..], None),
        ("what is named is not there", &share, &[named, "C: 1", date], None),
        ("all is named", &private, &["Cache-Control: private", "A: 1"], None),
        ("5.2.2.4 and 5.2.2.7", &share, &[named, "A: 1", "B: 2", "TE: 3"], Some(&[named, "A: 1", "B: 2", date][..])),
        ("a named cookie", &private, &[named, "Set-Cookie: x", date], Some(&[named, "Set-Cookie: x", date])),
        ("interface: strip", &strip, &[named, "Set-Cookie: x", "A: 1", date], Some(&[named, "A: 1", date])),
    ] {
        let received = fields(received);
        let directives = ResponseDirectives::parse(rules, &received);
        let found = fields_for_causer(rules, &directives, &received, RECEIVED);
        assert_eq!(found, expected.map(fields), "{why}");
    }
}

#[test]
fn a_304_makes_an_entry_fresh_again() {
    // Sections 3.2 and 4.3.4: a second after it went stale, with and without a Date in the 304.
    let rules = plain();
    let sent = Fields::empty();
    let received = fields(&["Cache-Control: max-age=60", "ETag: \"a\"", "Date: @0"]);
    let directives = ResponseDirectives::parse(&rules, &received);
    let stored = fields_to_store(&rules, &directives, &received, RECEIVED);
    for (news, after, expected) in [
        (&["ETag: \"a\"", "Date: @61"][..], 120, "fresh"),
        (&["ETag: \"a\""], 120, "fresh"),
        (&["ETag: \"a\"", "Age: 50"], 72, "ask"),
        (&["ETag: \"a\"", "Cache-Control: max-age=600"], 660, "fresh"),
        (&["ETag: \"a\"", "Cache-Control: no-store"], 0, "no_store"),
    ] {
        let news = fields(news);
        assert_eq!(selected_by_304(&[&stored], &news), [0]);
        let merged = updated_by_304(&rules, &stored, &news, later(61_000));
        let judgement = judge(
            &rules,
            &Exchange { requested_at: later(61_000), received_at: later(61_000), ..exchange(200, &sent, &merged) },
        );
        let found = judgement.storable.map_or_else(WhyNotStored::word, |()| {
            word(judgement.freshness.verdict(&rules, &RequestDirectives::default(), later(after * 1000)))
        });
        assert_eq!(found, expected, "{news:?}");
    }
}

#[test]
fn a_soft_purge_leaves_the_stale_uses() {
    let rules = Rules { stale_while_revalidate: Duration::from_secs(10), ..Rules::default() };
    let freshness = Freshness::of_ours(Duration::from_secs(60), RECEIVED).expired(later(1_000));
    let verdict = |after| word(freshness.verdict(&rules, &RequestDirectives::default(), later(after)));
    assert_eq!(verdict(1_000), "stale-while-revalidate");
    assert_eq!(verdict(11_000), "ask, stale if error");
    assert!(!freshness.is_fresh(later(1_000)));
    assert_eq!(freshness.expired(later(9_000)), freshness, "a second one does not renew it");
}

#[test]
fn a_stale_hot_copy_asks_the_owner() {
    let rules = Rules {
        stale_while_revalidate: Duration::from_secs(10),
        stale_if_slow: Duration::from_secs(1),
        ..Rules::default()
    };
    let owner = Freshness::of_ours(Duration::from_secs(60), RECEIVED);
    let hot = Freshness::from_hop(&owner.over_hop(RECEIVED), RECEIVED, Copied::Hot);
    let plain = RequestDirectives::default();
    let max_stale = requested(&["Cache-Control: max-stale"]);
    for (freshness, request, after, expected) in [
        (owner, plain, 59, "fresh"),
        (hot, plain, 59, "fresh"),
        (owner, plain, 60, "stale-while-revalidate"),
        (hot, plain, 60, "ask, stale if error"),
        (owner, plain, 70, "ask, stale if slow"),
        (hot, plain, 70, "ask, stale if error"),
        (owner, max_stale, 70, "accepted"),
        (hot, max_stale, 70, "ask, stale if error"),
        (hot.with_role(Copied::No), plain, 60, "stale-while-revalidate"),
    ] {
        let found = word(freshness.verdict(&rules, &request, later(after * 1000)));
        assert_eq!(found, expected, "{:?} {request:?} after {after} s", freshness.role());
    }
}

#[test]
fn an_entry_keeps_little() {
    assert!(size_of::<Freshness>() <= 48, "{}", size_of::<Freshness>());
}

#[test]
fn every_reason_has_its_own_word_and_every_source_its_code() {
    let words: std::collections::HashSet<_> = WhyNotStored::ALL.iter().map(|why| why.word()).collect();
    assert_eq!(words.len(), WhyNotStored::ALL.len());
    for code in 0..=8 {
        assert_eq!(LifetimeSource::from_code(code).code(), code);
    }
    assert_eq!(LifetimeSource::from_code(9), LifetimeSource::None);
}

fn any_hop() -> impl Strategy<Value = HopFreshness> {
    let seconds = || prop::option::of(any::<u32>());
    let age = prop_oneof![any::<u64>(), 0..20_000u64];
    let remaining = prop_oneof![any::<i64>(), -20_000..20_000i64];
    (age, remaining, seconds(), seconds(), 0..3, prop::bool::weighted(0.1)).prop_map(
        |(age_milliseconds, remaining_milliseconds, stale_while_revalidate, stale_if_error, stale, no_cache)| {
            HopFreshness {
                age_milliseconds,
                remaining_milliseconds,
                stale_while_revalidate,
                stale_if_error,
                source: LifetimeSource::MaxAge,
                stale: [StalePermission::Free, StalePermission::OnlyByResponse, StalePermission::Never][stale as usize],
                no_cache,
                immutable: false,
            }
        },
    )
}

/// How much an entry may be used without asking; larger is more.
fn freedom(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Fresh => 4,
        Verdict::StaleAccepted | Verdict::StaleWhileRevalidate => 3,
        Verdict::Revalidate { if_slow: Some(_), .. } => 2,
        Verdict::Revalidate { if_error: true, .. } => 1,
        Verdict::Revalidate { .. } => 0,
    }
}

fn any_field_value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(prop_oneof![Just(b'\t'), 0x20..0x7fu8, 0x80..=0xffu8], 0..30),
        "(max-age|s-maxage|no-cache|private|public|stale-if-error)?[ ,;=\"\\\\'+0-9a-z@*-]{0,24}"
            .prop_map(String::into_bytes),
        "[A-Za-z, 0-9:-]{0,32}".prop_map(String::into_bytes),
    ]
}

#[test]
fn only_lines_that_may_name_fields_are_read_for_names() {
    for (line, may) in [
        ("Cache-Control: no-cache=\"set-cookie\"", true),
        ("Cache-Control: max-age=5, PRIVATE = \"set-cookie\"", true),
        ("CDN-Cache-Control: max-age=5, private=x", true),
        ("Cache-Control: max-age=60, no-cache", false),
        ("Content-Type: text/html; charset=utf-8", false),
    ] {
        assert_eq!(may_name_fields(&fields(&[line])), may, "{line}");
    }
}

proptest! {
    /// The search that stands in for reading the directives never says no where they name something.
    #[test]
    fn whoever_names_fields_is_found(
        line in "(max-age=[0-9]|[A-Z]{0,2}public)?[ ,;]{0,2}([nN]o-[cC]ache|private)[ \t]{0,2}=?[ \t]?[\"a-z ,=-]{0,16}",
        name in prop::sample::select(&["Cache-Control", "CDN-Cache-Control", "Surrogate-Control"][..]),
    ) {
        let received = Fields::from_pairs([("a", "b=c".to_owned()), (name, line)]).unwrap();
        let directives = ResponseDirectives::parse(&Rules::default(), &received);
        let names = !directives.no_cache_fields.is_empty() || !directives.private_fields.is_empty();
        prop_assert!(!names || may_name_fields(&received));
    }

    /// Issue: "Bad input ... never a panic, never fresh by accident".
    #[test]
    fn arbitrary_fields_do_not_panic_and_no_verdict_contradicts_itself(
        received in prop::collection::vec((prop::sample::select(&[
            "Cache-Control", "Expires", "Date", "Age", "Last-Modified", "Vary", "CDN-Cache-Control", "Surrogate-Control",
            "Connection", "Set-Cookie", "Pragma", "ETag", "Location", "Content-Location", "Content-Length",
        ][..]), any_field_value()), 0..8),
        status in 0..700u16,
        wall_seconds in any::<i64>(),
        after in any::<u32>(),
        jitter in any::<f64>(),
    ) {
        let received = Fields::from_pairs(received).unwrap();
        let received_at = Now { wall_seconds, ..RECEIVED };
        let rules = Rules::default();
        let exchange = Exchange { received_at, jitter, stores_parts: true, ..exchange(status, &received, &received) };
        let judgement = judge(&rules, &exchange);
        let stored = fields_to_store(&rules, &judgement.directives, &received, received_at);
        prop_assert!(Fields::parse(stored.as_bytes().clone()).is_ok());
        prop_assert_eq!(&stored, &fields_to_store(&rules, &judgement.directives, &stored, received_at));
        let merged = updated_by_304(&rules, &stored, &received, received_at);
        prop_assert!(Fields::parse(merged.as_bytes().clone()).is_ok());
        selected_by_304(&[&stored, &merged], &received);
        updated_by_head(&rules, &stored, Some(5), 200, &received, received_at);
        invalidated_by("POST", status, &TARGET, &received);
        let request = RequestDirectives::parse(&received);
        let now = later(u64::from(after));
        let freshness = judgement.freshness;
        let verdict = freshness.verdict(&rules, &request, now);
        prop_assert_eq!(freshness.is_fresh(now), freshness.verdict(&rules, &RequestDirectives::default(), now) == Verdict::Fresh);
        prop_assert!(verdict != Verdict::Fresh || freshness.remaining(now) > 0);
        if !request.no_cache && request.stale_if_error.is_none() && request.max_stale.is_none() && !matches!(verdict, Verdict::Fresh) {
            prop_assert_eq!(freedom(verdict) > 0, !freshness.useful_for(&rules, now).is_zero());
        }
        prop_assert!(!(judgement.storable.is_ok() && judgement.directives.no_store && !judgement.directives.must_understand));
        prop_assert!(!(judgement.shareable && judgement.directives.private));
    }

    /// A directive that is badly written grants nothing that its absence would not.
    #[test]
    fn garbage_is_never_fresher_than_its_absence(
        base in prop::collection::vec(prop::sample::select(&[
            "Cache-Control: max-age=60", "Cache-Control: s-maxage=30", "Cache-Control: public", "Expires: @40", "ETag: a",
            "Last-Modified: @-500", "Cache-Control: stale-if-error=5", "Cache-Control: must-revalidate", "Age: 7",
        ][..]), 0..4),
        name in prop::sample::select(&[
            "max-age", "s-maxage", "stale-while-revalidate", "stale-if-error", "public", "must-understand", "no-cache",
            "private", "no-store", "must-revalidate", "immutable", "x",
        ][..]),
        bad in prop::sample::select(&["=x", "=-1", "=1.5", "=", " =9", "= 9", "=\"", "=9 9", "=\"9", "=9;9", "\"", "=''", " x"][..]),
        field in prop::sample::select(&["Cache-Control", "Surrogate-Control", "Groupcache-Proxy-Cache-Control"][..]),
        status in prop::sample::select(&[200u16, 302, 404, 500, 599][..]),
        authorized in any::<bool>(),
        after in 0..120u64,
    ) {
        let sent = if authorized { fields(&["Authorization: x"]) } else { Fields::empty() };
        let garbage = format!("{field}: {name}{bad}");
        let mut lines = base;
        let without = fields(&lines);
        lines.push(&garbage);
        let with = fields(&lines);
        let rules = Rules { stale_while_revalidate: Duration::from_secs(9), ..Rules::default() };
        let (without, with) = (judge(&rules, &exchange(status, &sent, &without)), judge(&rules, &exchange(status, &sent, &with)));
        // Some of it is well formed in a structured field. And a field of the Edge Architecture puts Cache-Control out of
        // force as soon as it names a lifetime, however badly; what is left is stale, but prohibitions no longer hold.
        if with.directives.found_in != FoundIn::Targeted {
            prop_assert!(with.storable.is_err() || without.storable.is_ok(), "{:?} {:?}", with.storable, without.storable);
        }
        let request = RequestDirectives::default();
        let now = later(after * 1000);
        if field == "Cache-Control" {
            let (without, with) = (without.freshness.verdict(&rules, &request, now), with.freshness.verdict(&rules, &request, now));
            prop_assert!(freedom(with) <= freedom(without), "{garbage}: {with:?}, without it {without:?}");
        } else if field == "Surrogate-Control" {
            let fresh = with.storable.is_ok() && with.freshness.remaining(now) > 0;
            prop_assert!(!fresh || with.freshness.remaining(now) <= without.freshness.remaining(now));
        } else if with.directives.found_in != FoundIn::Targeted {
            prop_assert_eq!(with.freshness, without.freshness, "RFC 9213 section 2.2: as if it were not there");
        }
    }

    #[test]
    fn jitter_only_shortens_and_by_no_more_than_its_share(
        lifetime in any::<u64>(), age in any::<u64>(), percent in any::<f64>(), random in any::<f64>(),
    ) {
        let found = jittered(lifetime, age, percent, random);
        prop_assert!(found <= lifetime && found >= lifetime.min(age));
        let small = jittered(lifetime / 4, age / 4, 5.0, random);
        let remaining = (lifetime / 4).saturating_sub(age / 4);
        prop_assert!(lifetime / 4 - small <= remaining / 20 + remaining / 1_000_000 + 1);
    }

    /// Architecture: a hot copy never outlives what the owner would serve, whatever both clocks show.
    #[test]
    fn a_hot_copy_is_never_freer_than_the_owner(
        hop in any_hop(),
        owner_wall in any::<i64>(),
        hot_wall in any::<i64>(),
        journey in 0..5_000u64,
        after in prop_oneof![any::<u32>(), 0..20_000u32],
        max_stale in any::<bool>(),
    ) {
        let owner_start = Now { monotonic: Duration::from_secs(77), wall_seconds: owner_wall };
        let owner = Freshness::from_hop(&hop, owner_start, Copied::No);
        // The question left when the owner's clock showed its start; the answer took the journey.
        let hot_start = Now { monotonic: Duration::from_secs(5), wall_seconds: hot_wall };
        let answered = Now { monotonic: owner_start.monotonic + Duration::from_millis(journey), ..owner_start };
        let hot = Freshness::from_hop(&owner.over_hop(answered), hot_start, Copied::Hot);
        let after = Duration::from_millis(journey + u64::from(after));
        let (owner_now, hot_now) = (
            Now { monotonic: owner_start.monotonic + after, ..owner_start },
            Now { monotonic: hot_start.monotonic + after, ..hot_start },
        );
        let rules = Rules { stale_while_revalidate: Duration::from_secs(9), ..Rules::default() };
        let request = RequestDirectives { max_stale: max_stale.then_some(MaxStale::Any), ..Default::default() };
        prop_assert!(hot.age(hot_now) >= owner.age(owner_now));
        prop_assert!(hot.remaining(hot_now) <= owner.remaining(owner_now).max(0));
        let hot_verdict = hot.verdict(&rules, &request, hot_now);
        prop_assert!(freedom(hot_verdict) <= freedom(owner.verdict(&rules, &request, owner_now)));
        prop_assert!(!matches!(hot_verdict, Verdict::StaleWhileRevalidate | Verdict::StaleAccepted));
    }

    #[test]
    fn a_hop_changes_nothing_where_nothing_overflows(
        age in 0..1u64 << 40, remaining in 0..1i64 << 40, stale_if_error in prop::option::of(any::<u32>()), after in any::<u32>(),
    ) {
        let hop = HopFreshness { age_milliseconds: age, remaining_milliseconds: remaining, stale_if_error, ..Default::default() };
        let there = Freshness::from_hop(&hop, RECEIVED, Copied::No);
        prop_assert_eq!(there.over_hop(RECEIVED), hop);
        let now = later(u64::from(after));
        let back = Freshness::from_hop(&there.over_hop(now), now, Copied::No);
        prop_assert_eq!(back.age(now), there.age(now));
        prop_assert_eq!(back.remaining(now), there.remaining(now));
    }

    /// The crate http-cache-semantics (3.0.0) as a second opinion, over everything that it has an opinion about. Where it
    /// reads a standard differently the reason stands in `explained`, with who of the two may be the more generous.
    #[test]
    fn agrees_with_http_cache_semantics(case in any_case()) {
        let ours = ours(&case);
        let theirs = theirs(&case);
        match explained(&case) {
            None => prop_assert_eq!(ours, theirs, "{:?}", case),
            Some(Generous::Theirs) => prop_assert!(!ours || theirs, "{:?}", case),
            Some(Generous::Ours) => prop_assert!(!theirs || ours, "{:?}", case),
            Some(Generous::Either) => {}
        }
    }
}

#[derive(Clone, Debug)]
struct Case {
    status: u16,
    response: Vec<String>,
    request: Vec<String>,
    authorization: bool,
    after_seconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Generous {
    Theirs,
    Ours,
    Either,
}

fn any_case() -> impl Strategy<Value = Case> {
    let seconds = || prop::sample::select(&[0, 1, 10, 50, 100, 1000, 4_000_000_000u64][..]);
    let directive = prop_oneof![
        3 => seconds().prop_map(|seconds| format!("max-age={seconds}")),
        3 => seconds().prop_map(|seconds| format!("s-maxage={seconds}")),
        1 => seconds().prop_map(|seconds| format!("max-age=\"{seconds}\"")),
        4 => prop::sample::select(&[
            "public", "private", "no-store", "no-cache", "must-revalidate", "proxy-revalidate", "immutable", "no-transform",
            "must-understand", "max-age=x", "foo=bar", "stale-while-revalidate=50",
        ][..]).prop_map(String::from),
    ];
    let offset = || prop::sample::select(&[-2000i64, -100, -10, 0, 10, 50, 100, 1000][..]);
    let response = (
        prop::collection::vec(directive, 0..4),
        prop::option::of(offset()),
        prop::option::of(offset()),
        prop::option::of(prop::sample::select(&["0", "5", "60", "x", "-1"][..])),
        prop::option::of(offset()),
        prop::option::weighted(
            0.1,
            prop::sample::select(&["Vary: *", "Pragma: no-cache", "Set-Cookie: a=b", "ETag: a"][..]),
        ),
    )
        .prop_map(|(directives, expires, modified, age, date, other)| {
            let mut lines: Vec<String> = Vec::new();
            if !directives.is_empty() {
                lines.push(format!("Cache-Control: {}", directives.join(", ")));
            }
            lines.extend(expires.map(|offset| format!("Expires: @{offset}")));
            lines.extend(modified.map(|offset| format!("Last-Modified: @{offset}")));
            lines.extend(age.map(|age| format!("Age: {age}")));
            lines.extend(date.map(|offset| format!("Date: @{offset}")));
            lines.extend(other.map(String::from));
            lines
        });
    let request = prop_oneof![
        3 => Just(Vec::new()),
        1 => prop::sample::select(&[
            "Cache-Control: no-cache", "Cache-Control: no-store", "Pragma: no-cache", "Cache-Control: max-age=20",
            "Cache-Control: min-fresh=20", "Cache-Control: max-stale", "Cache-Control: max-stale=30",
            "Cache-Control: max-age=20, max-stale", "Cache-Control: x",
        ][..]).prop_map(|line| vec![line.to_owned()]),
    ];
    let status = prop::sample::select(
        &[200u16, 203, 204, 206, 300, 301, 302, 303, 307, 308, 403, 404, 405, 410, 414, 500, 501, 503][..],
    );
    (status, response, request, any::<bool>(), 0..200u64).prop_map(
        |(status, response, request, authorization, after_seconds)| Case {
            status,
            response,
            request,
            authorization,
            after_seconds,
        },
    )
}

/// Whether our entry, made from the response to a plain request, answers the request of the case.
fn ours(case: &Case) -> bool {
    let rules = Rules {
        lifetime_max: Duration::MAX,
        heuristic_max: Duration::MAX,
        jitter_percent: 0.0,
        targeted: Vec::new(),
        ..plain()
    };
    let sent = fields(if case.authorization { &["Authorization: x"] } else { &[] });
    let received = fields(&case.response.iter().map(String::as_str).collect::<Vec<_>>());
    let judgement = judge(&rules, &exchange(case.status, &sent, &received));
    let request = requested(&case.request.iter().map(String::as_str).collect::<Vec<_>>());
    let verdict = judgement.freshness.verdict(&rules, &request, later(case.after_seconds * 1000));
    judgement.storable.is_ok() && matches!(verdict, Verdict::Fresh | Verdict::StaleAccepted)
}

/// The same by http-cache-semantics.
fn theirs(case: &Case) -> bool {
    let with_fields = |fields: &Fields, map: &mut http::HeaderMap| {
        for (name, value) in fields.iter() {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            map.append(name, http::HeaderValue::from_bytes(value).unwrap());
        }
    };
    let mut sent = http::Request::get("http://example.com/a").body(()).unwrap();
    if case.authorization {
        sent.headers_mut().insert("authorization", http::HeaderValue::from_static("x"));
    }
    let mut response = http::Response::builder().status(case.status).body(()).unwrap();
    with_fields(&fields(&case.response.iter().map(String::as_str).collect::<Vec<_>>()), response.headers_mut());
    let received_at = SystemTime::UNIX_EPOCH + Duration::from_secs(RECEIVED.wall_seconds as u64);
    let options = CacheOptions { immutable_min_time_to_live: Duration::ZERO, ..CacheOptions::default() };
    let policy = CachePolicy::new_options(&sent, &response, received_at, options);
    let mut request = http::Request::get("http://example.com/a").body(()).unwrap();
    with_fields(&fields(&case.request.iter().map(String::as_str).collect::<Vec<_>>()), request.headers_mut());
    policy.is_storable()
        && policy
            .before_request(&request, received_at + Duration::from_secs(case.after_seconds))
            .satisfies_without_revalidation()
}

/// Who may answer where the other does not, by the differences that are known, each with its reason.
fn explained(case: &Case) -> Option<Generous> {
    let response = case.response.join("\n");
    let request = case.request.join("\n");
    let has = |text: &str| response.contains(text);
    let count = |text: &str| response.matches(text).count();
    let max_stale = request.contains("max-stale");
    let shared_max_age = has("s-maxage");
    let validator = has("Last-Modified") || has("ETag");
    let rows = [
        (
            matches!(case.status, 206 | 403 | 500 | 503),
            "It understands few statuses; an explicit lifetime makes any final status cacheable (3).",
            Generous::Ours,
        ),
        (
            count(" max-age=") > 1 || count("s-maxage=") > 1,
            "Several values: it takes the first and forbids stale use, we take the smallest (4.2.1 lets both).",
            Generous::Either,
        ),
        (
            has("must-understand") && has("no-store"),
            "It does not know must-understand, which puts no-store out of force here (5.2.2.3).",
            Generous::Ours,
        ),
        (has("Date: @-"), "It leaves the apparent age out; we take the conservative form of 4.2.3.", Generous::Theirs),
        (
            has("Set-Cookie") && !has("public"),
            "It does not reuse responses with cookies; we do so by rule, here `share` (7.3).",
            Generous::Ours,
        ),
        (
            has("proxy-revalidate") && !max_stale,
            "It never reuses these; the directive forbids stale use only (5.2.2.8).",
            Generous::Ours,
        ),
        (
            has("Pragma") && has("Expires") && !has("Cache-Control"),
            "It puts Pragma before Expires; its meaning in a response was never specified (5.4).",
            Generous::Ours,
        ),
        (has("immutable") && request.contains("max-age="), "It does not apply RFC 8246 to a reload.", Generous::Ours),
        (
            max_stale && (shared_max_age || has("proxy-revalidate")),
            "It lets max-stale go beyond s-maxage and proxy-revalidate, which forbid stale use (4.2.4).",
            Generous::Either,
        ),
        (
            max_stale && case.status >= 500,
            "It lets max-stale stretch a server error; we use these only while they are fresh (4.2.4 leaves it open).",
            Generous::Theirs,
        ),
        (
            max_stale && (has("no-cache") || has("Vary: *")),
            "It takes a forbidden reuse for a lifetime of zero, which max-stale then stretches (4.2.4, 4.1).",
            Generous::Theirs,
        ),
        (
            max_stale && has("max-age=x"),
            "It stores on the strength of a lifetime that cannot be read; that permits nothing here (4.2.1).",
            Generous::Theirs,
        ),
        (
            max_stale && !validator,
            "It keeps what is stale on arrival and has no validator; we do not, so max-stale finds nothing (3).",
            Generous::Theirs,
        ),
        (
            request.contains("max-stale=30"),
            "Of a response exactly as stale as the limit it says no; 5.2.1.2 says no more than.",
            Generous::Ours,
        ),
    ];
    // Where several apply, each may be the one that counts.
    let may =
        |who| rows.iter().any(|(applies, _, generous)| *applies && (*generous == who || *generous == Generous::Either));
    match (may(Generous::Ours), may(Generous::Theirs)) {
        (false, false) => None,
        (true, false) => Some(Generous::Ours),
        (false, true) => Some(Generous::Theirs),
        (true, true) => Some(Generous::Either),
    }
}
