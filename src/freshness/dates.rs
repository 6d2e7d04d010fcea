//! HTTP dates, read as a cache must read them (RFC 9110 section 5.6.7, RFC 9111 section 4.2).
//!
//! Three formats are accepted and nothing else, because an `Expires` that is not one of them means "in the past"
//! (RFC 9111 section 5.3). Letters compare without regard to case, the only zone is GMT, and a day name is checked for
//! being one, not for being the right one.

use std::time::{Duration, UNIX_EPOCH};

/// Seconds since 1970-01-01 UTC of the date in `text`; `now` settles the century of a two-digit year.
pub fn parse_http_date(text: &[u8], now: i64) -> Option<i64> {
    imf_fixdate(text).or_else(|| rfc850_date(text, now)).or_else(|| asctime_date(text))
}

/// The preferred format, for a `Date` of our own; years before 1970 and after 9999 are clamped.
pub fn format_http_date(seconds: i64) -> String {
    let seconds = seconds.clamp(0, YEAR_9999_END);
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs()))
}

const YEAR_9999_END: i64 = 253_402_300_799;
const MONTHS: [&[u8]; 12] =
    [b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"];
const DAYS: [&[u8]; 7] = [b"monday", b"tuesday", b"wednesday", b"thursday", b"friday", b"saturday", b"sunday"];

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(text: &[u8]) -> Option<i64> {
    let rest = short_day_name(text)?.strip_prefix(b", ")?;
    let [d0, d1, b' ', m0, m1, m2, b' ', y0, y1, y2, y3, b' ', rest @ ..] = rest else { return None };
    let time = time_of_day(gmt(rest)?)?;
    seconds(number(&[*y0, *y1, *y2, *y3])?, month(&[*m0, *m1, *m2])?, number(&[*d0, *d1])?, time)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850_date(text: &[u8], now: i64) -> Option<i64> {
    let comma = memchr::memchr(b',', text)?;
    DAYS.iter().find(|day| day.eq_ignore_ascii_case(&text[..comma]))?;
    let [b',', b' ', d0, d1, b'-', m0, m1, m2, b'-', y0, y1, b' ', rest @ ..] = &text[comma..] else { return None };
    let time = time_of_day(gmt(rest)?)?;
    let (month, day) = (month(&[*m0, *m1, *m2])?, number(&[*d0, *d1])?);
    let two_digits = number(&[*y0, *y1])?;
    // More than 50 years ahead means the most recent past year with these digits (RFC 9110 section 5.6.7): the last
    // year with these digits that does not start more than 50 years from now, then the same test with the full date.
    let now = now.clamp(0, YEAR_9999_END);
    let (this_year, _, _) = civil_from_days(now.div_euclid(86_400));
    let century = (this_year + 50).div_euclid(100) * 100;
    let year = if century + two_digits > this_year + 50 { century + two_digits - 100 } else { century + two_digits };
    let date = seconds(year, month, day, time)?;
    let fifty_years_on = seconds(this_year + 50, 1, 1, 0)? + (now - seconds(this_year, 1, 1, 0)?);
    if date > fifty_years_on { seconds(year - 100, month, day, time) } else { Some(date) }
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime_date(text: &[u8]) -> Option<i64> {
    let rest = short_day_name(text)?;
    let [b' ', m0, m1, m2, b' ', d0, d1, b' ', rest @ ..] = rest else { return None };
    let (time, year) = rest.split_at_checked(8)?;
    let day = if *d0 == b' ' { number(&[*d1])? } else { number(&[*d0, *d1])? };
    let year = year.strip_prefix(b" ").filter(|year| year.len() == 4)?;
    seconds(number(year)?, month(&[*m0, *m1, *m2])?, day, time_of_day(time)?)
}

fn short_day_name(text: &[u8]) -> Option<&[u8]> {
    let (name, rest) = text.split_at_checked(3)?;
    DAYS.iter().any(|day| day[..3].eq_ignore_ascii_case(name)).then_some(rest)
}

/// Takes the zone away. Any other abbreviation makes the date invalid (RFC 9111 section 4.2).
fn gmt(text: &[u8]) -> Option<&[u8]> {
    let (time, zone) = text.split_at_checked(8)?;
    zone.eq_ignore_ascii_case(b" gmt").then_some(time)
}

/// Seconds since midnight of `HH:MM:SS`. A leap second counts as the second before it: the nearest time that is not
/// later (RFC 9111 section 4.2).
fn time_of_day(text: &[u8]) -> Option<i64> {
    let [h0, h1, b':', m0, m1, b':', s0, s1] = text else { return None };
    let (hour, minute, second) = (number(&[*h0, *h1])?, number(&[*m0, *m1])?, number(&[*s0, *s1])?);
    (hour < 24 && minute < 60 && second <= 60).then(|| hour * 3600 + minute * 60 + second.min(59))
}

fn month(name: &[u8]) -> Option<i64> {
    MONTHS.iter().position(|month| month.eq_ignore_ascii_case(name)).map(|index| index as i64 + 1)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
}

fn seconds(year: i64, month: i64, day: i64, time: i64) -> Option<i64> {
    let days = days_from_civil(year, month, day);
    // A day that the month does not have comes back as another date.
    (day >= 1 && civil_from_days(days) == (year, month, day)).then(|| days * 86_400 + time)
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar, with years that start in March so that leap days come last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12 + 1;
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_800_000_000; // 2027-01-15 08:00:00

    #[test]
    fn the_three_formats_and_what_is_not_one() {
        let august_2050 = Some(2_544_400_878); // 2050-08-18 02:01:18
        for (text, expected) in [
            // RFC 9110 section 5.6.7: the same instant in its three forms.
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777)),
            ("Sun Nov  6 08:49:37 1994", Some(784_111_777)),
            // Two-digit years: up to 50 years ahead stays ahead.
            ("Thursday, 18-Aug-50 02:01:18 GMT", august_2050),
            ("Friday, 15-Jan-77 08:00:00 GMT", Some(3_377_923_200)),
            ("Friday, 15-Jan-77 08:00:01 GMT", Some(222_163_201)),
            ("Saturday, 01-Jan-78 00:00:00 GMT", Some(252_460_800)),
            // RFC 9111 section 4.2: without regard to case; only GMT.
            ("THU, 18 Aug 2050 02:01:18 GMT", august_2050),
            ("Thu, 18 AUG 2050 02:01:18 gMT", august_2050),
            ("Thu, 18 Aug 2050 02:01:18 UTC", None),
            ("Thu, 18 Aug 2050 02:01:18 AEST", None),
            ("Thu, 18 Aug 2050 02:01:18 +0000", None),
            // A wrong day name is still a day name.
            ("Mon, 18 Aug 2050 02:01:18 GMT", august_2050),
            ("Thu Aug  8 02:01:18 2050", Some(2_543_536_878)),
            ("Foo, 18 Aug 2050 02:01:18 GMT", None),
            // A leap second is not later than the second before it.
            ("Sat, 31 Dec 2016 23:59:60 GMT", Some(1_483_228_799)),
            // RFC 9111 section 5.3: everything else is invalid.
            ("0", None),
            ("-1", None),
            ("", None),
            ("Thu, 18 Aug 50 02:01:18 GMT", None),
            ("Thu 18 Aug 2050 02:01:18 GMT", None),
            ("Thu, 18  Aug  2050 02:01:18 GMT", None),
            ("Thu, 18-Aug-2050 02:01:18 GMT", None),
            ("Thu, 18 Aug 2050 02.01.18 GMT", None),
            ("Thu, 18 Aug 2050 2:01:18 GMT", None),
            ("Thu, 30 Feb 2050 02:01:18 GMT", None),
            ("Thu, 00 Feb 2050 02:01:18 GMT", None),
            ("Thu, 18 Aug 2050 24:00:00 GMT", None),
            ("Thu, 18 Aug 2050 02:01:18 GMT, Thu, 18 Aug 2050 02:01:18 GMT", None),
        ] {
            assert_eq!(parse_http_date(text.as_bytes(), NOW), expected, "{text:?}");
        }
    }

    #[test]
    fn a_date_of_ours_is_never_out_of_range() {
        assert_eq!(format_http_date(i64::MIN), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(format_http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(format_http_date(i64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(seconds in 0..=YEAR_9999_END) {
            prop_assert_eq!(parse_http_date(format_http_date(seconds).as_bytes(), NOW), Some(seconds));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(text in prop::collection::vec(any::<u8>(), 0..40), now in any::<i64>()) {
            parse_http_date(&text, now);
        }

        #[test]
        fn bytes_that_look_like_dates_do_not_panic(
            text in "(Sunday, [0-9]{2}-Nov-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT|Sun, [0-9]{2} Feb [0-9]{4} [0-9:]{8} GMT)",
            now in any::<i64>(),
        ) {
            parse_http_date(text.as_bytes(), now);
        }

        #[test]
        fn two_digit_years_never_lie_more_than_fifty_years_ahead(
            year in 0..100i64, month in 1..13i64, day in 1..29i64, now in 0..4_102_444_800i64,
        ) {
            let text = format!("Sunday, {day:02}-{}-{year:02} 00:00:00 GMT",
                std::str::from_utf8(MONTHS[month as usize - 1]).unwrap());
            let date = parse_http_date(text.as_bytes(), now).unwrap();
            let (this_year, _, _) = civil_from_days(now / 86_400);
            let (found_year, _, _) = civil_from_days(date.div_euclid(86_400));
            prop_assert_eq!(found_year.rem_euclid(100), year);
            prop_assert!(found_year <= this_year + 50 && found_year >= this_year - 50, "{} at {}", text, now);
        }
    }
}
