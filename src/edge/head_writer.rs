//! Heads of answers on their way out: lines of HTTP/1.1 in a buffer that is used again, or fields of HTTP/2.

use bytes::Bytes;

use crate::fields::{FieldLines, Fields};

use super::response::Framing;

/// Takes a head, line by line.
pub trait HeadWriter {
    /// Begins with the status.
    fn status(&mut self, status: u16);
    /// Adds a whole block.
    fn block(&mut self, fields: &FieldLines, shared: impl FnOnce() -> Fields);
    /// Adds one field.
    fn line(&mut self, name: &str, value: &[u8]);
    /// Adds one field whose value the function appends to the vector; the vector may hold other bytes before it.
    fn line_with(&mut self, name: &str, value: impl FnOnce(&mut Vec<u8>));
}

/// Writes a head of HTTP/1.1 into a buffer that is used again and again.
pub struct Http1Head<'a>(pub &'a mut Vec<u8>);

impl Http1Head<'_> {
    /// Ends the head: how the body is delimited and whether the connection stays.
    #[inline]
    pub fn finish(self, framing: Framing, http_11: bool, keep_alive: bool) {
        match framing {
            Framing::None => {}
            Framing::Length(bytes) => {
                self.0.extend_from_slice(b"Content-Length: ");
                self.0.extend_from_slice(Decimal::of(bytes).as_bytes());
                self.0.extend_from_slice(b"\r\n");
            }
            Framing::Unknown if http_11 => self.0.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            Framing::Unknown => {}
        }
        self.0.extend_from_slice(end_of_head(http_11, keep_alive));
    }
}

#[inline]
pub(super) fn end_of_head(http_11: bool, keep_alive: bool) -> &'static [u8] {
    match (http_11, keep_alive) {
        (true, true) => b"\r\n",
        (_, false) => b"Connection: close\r\n\r\n",
        (false, true) => b"Connection: keep-alive\r\n\r\n",
    }
}

/// Appends a number; those of up to eight digits, which are nearly all, without a loop or a branch.
#[inline]
pub(super) fn put_decimal(number: u64, out: &mut Vec<u8>) {
    if number >= 100_000_000 {
        return put_long_decimal(number, out);
    }
    let digits = eight_digits(number);
    // The last digit stays, also of a zero.
    let leading_zeros = (digits.trailing_zeros() / 8).min(7);
    let end = out.len() + 8 - leading_zeros as usize;
    out.extend_from_slice(&((digits | 0x3030_3030_3030_3030) >> (8 * leading_zeros)).to_le_bytes());
    out.truncate(end);
}

#[cold]
fn put_long_decimal(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(Decimal::of(number).as_bytes());
}

/// The digits of a number below 100,000,000, a byte each, the first in the lowest byte. Each step divides all parts at once:
/// by 10,000, by 100, by 10; the division is a multiplication with a rounded reciprocal, exact for parts of this size.
#[inline]
fn eight_digits(number: u64) -> u64 {
    let fours = (number / 10_000) | ((number % 10_000) << 32);
    let hundreds = (fours.wrapping_mul(10_486) >> 20) & 0x0000_007f_0000_007f;
    let pairs = hundreds | (fours.wrapping_sub(hundreds.wrapping_mul(100)) << 16);
    let tens = (pairs.wrapping_mul(103) >> 10) & 0x000f_000f_000f_000f;
    tens | (pairs.wrapping_sub(tens.wrapping_mul(10)) << 8)
}

/// Longer lifetimes are for the general form, which knows the largest integer of a structured field.
pub(super) const CENTURY_SECONDS: u64 = 100 * 366 * 86_400;

/// More than status line and our own fields of a hit take.
pub(super) const HEAD_BYTES_BESIDE_FIELDS: usize = 320;

impl HeadWriter for Http1Head<'_> {
    #[inline]
    fn status(&mut self, status: u16) {
        match status {
            200 => self.0.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
            206 => self.0.extend_from_slice(b"HTTP/1.1 206 Partial Content\r\n"),
            304 => self.0.extend_from_slice(b"HTTP/1.1 304 Not Modified\r\n"),
            _ => write_unusual_status(status, self.0),
        }
    }

    #[inline]
    fn block(&mut self, fields: &FieldLines, _: impl FnOnce() -> Fields) {
        self.0.extend_from_slice(fields.as_bytes());
    }

    #[inline]
    fn line(&mut self, name: &str, value: &[u8]) {
        self.line_with(name, |out| out.extend_from_slice(value));
    }

    #[inline]
    fn line_with(&mut self, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b": ");
        value(self.0);
        self.0.extend_from_slice(b"\r\n");
    }
}

#[cold]
fn write_unusual_status(status: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(Decimal::of(status.into()).as_bytes());
    out.push(b' ');
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    out.extend_from_slice(reason.unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Collects a head for HTTP/2.
pub struct Http2Head {
    status: http::StatusCode,
    fields: http::HeaderMap,
}

impl Default for Http2Head {
    fn default() -> Self {
        Http2Head { status: http::StatusCode::OK, fields: http::HeaderMap::with_capacity(16) }
    }
}

impl Http2Head {
    /// The finished head.
    pub fn finish(mut self, framing: Framing) -> http::Response<()> {
        if let Framing::Length(bytes) = framing {
            self.line("content-length", Decimal::of(bytes).as_bytes());
        }
        let mut response = http::Response::new(());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.fields;
        response
    }

    fn push(&mut self, name: &str, value: Result<http::HeaderValue, http::header::InvalidHeaderValue>) {
        // Fields hold tokens and field values only, which these accept.
        let (Ok(name), Ok(value)) = (http::HeaderName::from_bytes(name.as_bytes()), value) else { return };
        // What belongs to a connection of HTTP/1 makes an answer of HTTP/2 malformed (RFC 9113 section 8.2.2).
        let of_connection =
            matches!(name.as_str(), "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade");
        if !of_connection {
            // A head of more than 32,768 fields is none that we read.
            let _ = self.fields.try_append(name, value);
        }
    }
}

impl HeadWriter for Http2Head {
    fn status(&mut self, status: u16) {
        // Statuses come from parsed heads and are 102 to 599.
        self.status = http::StatusCode::from_u16(status).unwrap_or_default();
    }

    fn block(&mut self, _: &FieldLines, shared: impl FnOnce() -> Fields) {
        let fields = shared();
        for (name, value) in fields.iter() {
            // Shares the bytes of the block.
            self.push(name, http::HeaderValue::from_maybe_shared(fields.as_bytes().slice_ref(value)));
        }
    }

    fn line(&mut self, name: &str, value: &[u8]) {
        self.push(name, http::HeaderValue::from_bytes(value));
    }

    fn line_with(&mut self, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
        let mut text = Vec::with_capacity(64);
        value(&mut text);
        self.push(name, http::HeaderValue::from_maybe_shared(Bytes::from(text)));
    }
}

/// A number in decimal digits, on the stack.
pub(super) struct Decimal {
    digits: [u8; 20],
    start: usize,
}

impl Decimal {
    #[inline]
    pub(super) fn of(mut number: u64) -> Self {
        let mut digits = [0; 20];
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return Decimal { digits, start };
            }
        }
    }

    #[inline]
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.digits[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are_read() {
        let edges = (0..9).map(|power| 10u64.pow(power)).flat_map(|number| [number - 1, number, number + 1]);
        let ends = [99_999_998, 99_999_999, 100_000_000, u64::MAX - 1, u64::MAX];
        for number in (0..20_000).chain((0..100_000_000).step_by(9973)).chain(edges).chain(ends) {
            let mut out = b"before ".to_vec();
            put_decimal(number, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("before {number}"));
        }
    }
}
