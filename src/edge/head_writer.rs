//! Heads of answers on their way out: lines of HTTP/1.1 in a buffer that is used again, or fields of HTTP/2.

use bytes::Bytes;

use crate::fields::Fields;

use super::response::Framing;

/// Takes a head, line by line.
pub trait HeadWriter {
    /// Begins with the status.
    fn status(&mut self, status: u16);
    /// Adds a whole block.
    fn block(&mut self, fields: &Fields);
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

/// Appends a number; those of up to eight digits, which are nearly all, without a loop.
#[inline]
pub(super) fn put_decimal(number: u64, out: &mut Vec<u8>) {
    match number {
        0..10 => out.push(b'0' + number as u8),
        10..10_000 => put_up_to_four_digits(number as u32, out),
        10_000..100_000_000 => {
            let (high, low) = ((number / 10_000) as u32, (number % 10_000) as u32);
            put_up_to_four_digits(high, out);
            out.extend_from_slice(&four_digits(low));
        }
        _ => out.extend_from_slice(Decimal::of(number).as_bytes()),
    }
}

#[inline]
fn put_up_to_four_digits(number: u32, out: &mut Vec<u8>) {
    let digits = four_digits(number);
    match number {
        0..10 => out.extend_from_slice(&digits[3..]),
        10..100 => out.extend_from_slice(&digits[2..]),
        100..1000 => out.extend_from_slice(&digits[1..]),
        _ => out.extend_from_slice(&digits),
    }
}

#[inline]
fn four_digits(number: u32) -> [u8; 4] {
    let digit = |place: u32| b'0' + (number / place % 10) as u8;
    [digit(1000), digit(100), digit(10), digit(1)]
}

/// Longer lifetimes are for the general form, which knows the largest integer of a structured field.
pub(super) const CENTURY_MILLISECONDS: u64 = 100 * 366 * 86_400 * 1000;

/// More than status line and our own fields of a hit take.
pub(super) const HEAD_BYTES_BESIDE_FIELDS: usize = 320;

impl HeadWriter for Http1Head<'_> {
    #[inline]
    fn status(&mut self, status: u16) {
        match status {
            200 => return self.0.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
            206 => return self.0.extend_from_slice(b"HTTP/1.1 206 Partial Content\r\n"),
            304 => return self.0.extend_from_slice(b"HTTP/1.1 304 Not Modified\r\n"),
            _ => {}
        }
        self.0.extend_from_slice(b"HTTP/1.1 ");
        self.0.extend_from_slice(Decimal::of(status.into()).as_bytes());
        self.0.push(b' ');
        let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        self.0.extend_from_slice(reason.unwrap_or_default().as_bytes());
        self.0.extend_from_slice(b"\r\n");
    }

    #[inline]
    fn block(&mut self, fields: &Fields) {
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

    fn block(&mut self, fields: &Fields) {
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
