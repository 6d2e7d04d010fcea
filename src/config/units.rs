//! Sizes, durations and percentages as people write them.
//!
//! Every reader answers `Err` with what was expected, which the message of the problem ends with.

use std::time::Duration;

/// What a reader expected instead.
pub type Expected = std::borrow::Cow<'static, str>;

/// An amount of memory, absolute or as a part of another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// So many bytes.
    Bytes(u64),
    /// A percentage above 0 and up to 100.
    Percent(f64),
}

impl Amount {
    /// The amount in bytes where the whole is `whole_bytes`.
    pub fn of(self, whole_bytes: u64) -> u64 {
        match self {
            Amount::Bytes(bytes) => bytes,
            Amount::Percent(percent) => percent_of(percent, whole_bytes),
        }
    }
}

/// `percent` of `whole`, rounded down.
pub(super) fn percent_of(percent: f64, whole: u64) -> u64 {
    // A float holds 53 bits exactly: the error is below one part in 10^15, and the cast saturates.
    (whole as f64 * (percent / 100.0)) as u64
}

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// In milliseconds.
const DURATION_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A hundred years: sums of a few such durations never overflow anything.
const DURATION_MAX: Duration = Duration::from_secs(36_500 * 86_400);

/// Reads bytes: a number with an optional unit (`KiB` = 1024, `KB` = 1000).
pub(super) fn size(text: &str) -> Result<u64, Expected> {
    let expected = || Expected::from("a size such as 512KiB, 32MiB, 1GiB or a number of bytes");
    let (number, unit) = split_number(text).ok_or_else(expected)?;
    let unit_bytes = match unit {
        "" => 1,
        unit => SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(expected)?.1,
    };
    scale(number, unit_bytes).ok_or_else(expected)
}

/// Reads a duration: numbers with units, `1h30m` too; only zero needs no unit.
pub fn duration(text: &str) -> Result<Duration, Expected> {
    let expected = || Expected::from("a duration such as 250ms, 10s, 5m, 24h or 7d");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut milliseconds: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = split_number(rest).ok_or_else(expected)?;
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let unit = &after[..unit_end];
        let unit = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(expected)?.1;
        milliseconds = scale(number, unit).and_then(|part| milliseconds.checked_add(part)).ok_or_else(expected)?;
        rest = &after[unit_end..];
    }
    let duration = Duration::from_millis(milliseconds);
    if text.is_empty() {
        return Err(expected());
    }
    if duration > DURATION_MAX {
        return Err("a duration of at most 36500d".into());
    }
    Ok(duration)
}

/// Reads a duration above zero.
pub(super) fn duration_above_zero(text: &str) -> Result<Duration, Expected> {
    match duration(text)? {
        Duration::ZERO => Err("a duration above 0".into()),
        duration => Ok(duration),
    }
}

/// Reads a percentage from 0 to 100, with its sign.
pub(super) fn percent(text: &str) -> Result<f64, Expected> {
    let expected = || Expected::from("a percentage from 0% to 100%");
    let number = text.strip_suffix('%').ok_or_else(expected)?;
    match split_number(number) {
        Some((number, "")) => {
            number.parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent)).ok_or_else(expected)
        }
        _ => Err(expected()),
    }
}

/// Reads a size or a percentage, both above zero.
pub(super) fn amount(text: &str) -> Result<Amount, Expected> {
    let expected = || Expected::from("a size such as 4GiB, or a percentage such as 60%; above 0");
    let amount = match text.ends_with('%') {
        true => Amount::Percent(percent(text).map_err(|_| expected())?),
        false => Amount::Bytes(size(text).map_err(|_| expected())?),
    };
    match amount {
        Amount::Bytes(0) | Amount::Percent(0.0) => Err(expected()),
        amount => Ok(amount),
    }
}

/// Writes a size in the largest unit that gives a whole number.
pub(super) fn show_size(bytes: u64) -> String {
    let unit = SIZE_UNITS[1..5].iter().rev().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    match unit {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// Writes a duration in the largest unit that gives a whole number; a single day is 24h.
pub(super) fn show_duration(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fits = |unit: u64| milliseconds.is_multiple_of(unit) && (unit != 86_400_000 || milliseconds >= 2 * unit);
    match DURATION_UNITS.iter().rev().find(|(_, unit)| milliseconds >= *unit && fits(*unit)) {
        Some((name, unit)) => format!("{}{name}", milliseconds / unit),
        None => "0s".to_owned(),
    }
}

/// Writes a percentage.
pub(super) fn show_percent(percent: f64) -> String {
    format!("{percent}%")
}

/// Writes an amount.
pub(super) fn show_amount(amount: Amount) -> String {
    match amount {
        Amount::Bytes(bytes) => show_size(bytes),
        Amount::Percent(percent) => show_percent(percent),
    }
}

/// Splits `12.5MiB` into its number and the rest; the number has digits on both sides of its point.
fn split_number(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let whole = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let fine = match number.split_once('.') {
        Some((whole_part, fraction)) => whole(whole_part) && whole(fraction),
        None => whole(number),
    };
    fine.then_some((number, rest))
}

/// `number` times `unit`; `None` when it does not fit. A fraction below one is rounded down.
fn scale(number: &str, unit: u64) -> Option<u64> {
    match number.contains('.') {
        false => number.parse::<u64>().ok()?.checked_mul(unit),
        true => {
            let scaled = number.parse::<f64>().ok()? * unit as f64;
            (scaled.is_finite() && scaled < u64::MAX as f64).then_some(scaled as u64)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("1KiB", Some(1024)),
            ("1KB", Some(1000)),
            ("1.5GiB", Some(3 << 29)),
            ("7B", Some(7)),
            ("16777215TiB", Some(16_777_215 << 40)),
            ("16777216TiB", None),
            ("99999999999999999999", None),
            ("1.0e3", None),
            ("1G", None),
            ("1 GiB", None),
            ("-1", None),
            ("", None),
            (".5GiB", None),
            ("1.", None),
            ("1gib", None),
            ("1\u{e9}", None),
        ] {
            assert_eq!(size(text).ok(), bytes, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, milliseconds) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("250ms", Some(250)),
            ("1h30m", Some(5_400_000)),
            ("1.5s", Some(1500)),
            ("365d", Some(31_536_000_000)),
            ("36500d", Some(3_153_600_000_000)),
            ("36501d", None),
            ("99999999999999999999d", None),
            ("18446744073709551615s", None),
            ("10", None),
            ("s", None),
            ("", None),
            ("-1s", None),
            ("1s ", None),
            ("1h30", None),
            ("1sec", None),
        ] {
            assert_eq!(duration(text).ok().map(|duration| duration.as_millis()), milliseconds, "{text}");
        }
        assert!(duration_above_zero("0s").is_err() && duration_above_zero("1ms").is_ok());
    }

    #[test]
    fn percentages_and_amounts() {
        for (text, value) in
            [("0%", Some(0.0)), ("5%", Some(5.0)), ("0.5%", Some(0.5)), ("101%", None), ("5", None), ("%", None)]
        {
            assert_eq!(percent(text).ok(), value, "{text}");
        }
        assert_eq!(amount("60%").map(|amount| amount.of(1 << 30)), Ok(644_245_094));
        assert_eq!(amount("4GiB").map(|amount| amount.of(1 << 30)), Ok(4 << 30));
        assert!(amount("0%").is_err() && amount("0").is_err() && amount("auto").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes: u64, milliseconds in 0..=3_153_600_000_000_u64) {
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
            let written = Duration::from_millis(milliseconds);
            prop_assert_eq!(duration(&show_duration(written)), Ok(written));
        }

        #[test]
        fn any_text_is_answered(text: String) {
            let _ = (size(&text), duration(&text), percent(&text), amount(&text));
        }
    }
}
