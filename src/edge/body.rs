//! Request bodies: where they end, and the stream that shows a full HTTP session exactly one request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, BufMut, BytesMut};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};

use super::request_head::BodyFraming;

/// Finds the end of a body in bytes that arrive piece by piece. Strict about chunked coding (RFC 9112 section 7.1): every
/// deviation is an error, extensions and trailers are dropped.
#[derive(Clone, Debug)]
pub struct BodyReader {
    state: State,
    /// Bytes of the current chunk line, or of all trailer lines.
    line_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// This many bytes are left of a body of known length.
    Length(u64),
    Size {
        digits: u8,
        value: u64,
    },
    Extension {
        value: u64,
    },
    SizeLineFeed {
        value: u64,
    },
    /// This many bytes are left of a chunk.
    Data(u64),
    DataReturn,
    DataLineFeed,
    /// At the beginning of a trailer line, or of the empty line that ends them.
    TrailerStart,
    Trailer,
    TrailerLineFeed,
    LastLineFeed,
    Done,
}

/// Chunked coding that is not exactly as it should be: nobody knows where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed chunked coding")]
pub struct MalformedChunk;

impl BodyReader {
    /// A reader of a body with this framing.
    pub fn new(framing: BodyFraming) -> Self {
        let state = match framing {
            BodyFraming::None => State::Done,
            BodyFraming::Length(bytes) => State::Length(bytes),
            BodyFraming::Chunked => State::Size { digits: 0, value: 0 },
        };
        BodyReader { state, line_bytes: 0 }
    }

    /// Whether the body is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the body is in chunked coding.
    fn is_chunked(&self) -> bool {
        !matches!(self.state, State::Length(_) | State::Done)
    }

    /// Looks at the bytes that came: how many of them are used up, and which of those are body. Everything behind the end
    /// of the body stays untouched. Call it again with the rest until it uses nothing.
    ///
    /// # Errors
    /// Malformed chunked coding.
    pub fn advance<'a>(&mut self, input: &'a [u8]) -> Result<(usize, &'a [u8]), MalformedChunk> {
        if let State::Length(left) = self.state {
            let taken = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
            let left = left - taken as u64;
            self.state = if left == 0 { State::Done } else { State::Length(left) };
            return Ok((taken, &input[..taken]));
        }
        let mut used = 0;
        while used < input.len() && self.state != State::Done {
            if let State::Data(left) = self.state {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(input.len() - used);
                let left = left - taken as u64;
                self.state = if left == 0 { State::DataReturn } else { State::Data(left) };
                return Ok((used + taken, &input[used..used + taken]));
            }
            self.step(input[used])?;
            used += 1;
        }
        Ok((used, &[]))
    }

    fn step(&mut self, byte: u8) -> Result<(), MalformedChunk> {
        let is_text = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        self.line_bytes += 1;
        self.state = match (self.state, byte) {
            (State::Size { digits, value }, _) if byte.is_ascii_hexdigit() && digits < CHUNK_DIGITS_MAX => {
                let digit = (byte as char).to_digit(16).ok_or(MalformedChunk)?;
                State::Size { digits: digits + 1, value: value << 4 | u64::from(digit) }
            }
            (State::Size { digits: 1.., value }, b'\r') => State::SizeLineFeed { value },
            (State::Size { digits: 1.., value }, b';') => State::Extension { value },
            (State::Extension { value }, b'\r') => State::SizeLineFeed { value },
            (State::Extension { value }, _) if is_text && self.line_bytes < CHUNK_LINE_BYTES_MAX => {
                State::Extension { value }
            }
            (State::SizeLineFeed { value }, b'\n') => {
                self.line_bytes = 0;
                if value == 0 { State::TrailerStart } else { State::Data(value) }
            }
            (State::DataReturn, b'\r') => State::DataLineFeed,
            (State::DataLineFeed, b'\n') => {
                self.line_bytes = 0;
                State::Size { digits: 0, value: 0 }
            }
            (State::TrailerStart, b'\r') => State::LastLineFeed,
            (State::TrailerStart, _) if byte.is_ascii_alphanumeric() => State::Trailer,
            (State::Trailer, b'\r') => State::TrailerLineFeed,
            (State::Trailer, _) if is_text && self.line_bytes < TRAILER_BYTES_MAX => State::Trailer,
            (State::TrailerLineFeed, b'\n') => State::TrailerStart,
            (State::LastLineFeed, b'\n') => State::Done,
            _ => return Err(MalformedChunk),
        };
        Ok(())
    }
}

/// A client's stream as a full HTTP session may see it: one request, re-written by us, and then silence.
///
/// The session reads the head that it is given and the declared body, whose chunks are coded anew. What comes behind stays
/// in here for the lane, so no second request is ever read by looser rules. After the body the session still learns when
/// the client goes away.
pub struct OneRequest {
    stream: BufWriter<Stream>,
    /// What the session reads next.
    ready: BytesMut,
    /// What the client sent and nobody has looked at.
    unread: BytesMut,
    body: BodyReader,
    chunked: bool,
}

impl OneRequest {
    /// A request with this `head`; `unread` is what has been read behind the client's own head.
    pub fn new(stream: Stream, head: &[u8], unread: &[u8], framing: BodyFraming) -> Self {
        let body = BodyReader::new(framing);
        let chunked = body.is_chunked();
        let stream = BufWriter::with_capacity(WRITE_BYTES, stream);
        OneRequest { stream, ready: BytesMut::from(head), unread: BytesMut::from(unread), body, chunked }
    }

    /// The client's stream and what was read of it behind this request; `None` when the request has not been read whole,
    /// so that the connection cannot be used further.
    pub fn into_rest(self) -> Option<(Stream, BytesMut)> {
        let clean = self.body.is_done() && self.ready.is_empty() && self.stream.buffer().is_empty();
        clean.then(|| (self.stream.into_inner(), self.unread))
    }

    /// Moves body bytes from `unread` to `ready`.
    fn decode(&mut self) -> io::Result<()> {
        while !self.body.is_done() && !self.unread.is_empty() && self.ready.len() < READ_BYTES {
            let (used, data) = self.body.advance(&self.unread).map_err(|error| {
                // Whatever the client sends from here on has no meaning.
                io::Error::new(io::ErrorKind::InvalidData, error)
            })?;
            if !data.is_empty() {
                if self.chunked {
                    self.ready.put_slice(format!("{:x}\r\n", data.len()).as_bytes());
                    self.ready.put_slice(data);
                    self.ready.put_slice(b"\r\n");
                } else {
                    self.ready.put_slice(data);
                }
            }
            self.unread.advance(used);
            if self.body.is_done() && self.chunked {
                self.ready.put_slice(b"0\r\n\r\n");
            }
        }
        Ok(())
    }

    /// Reads what the client sends into `unread`; zero bytes are the end.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let before = self.unread.len();
        self.unread.resize(before + READ_BYTES, 0);
        let mut space = ReadBuf::new(&mut self.unread[before..]);
        let polled = Pin::new(&mut self.stream).poll_read(context, &mut space);
        let read = space.filled().len();
        self.unread.truncate(before + read);
        polled.map_ok(|()| read)
    }
}

impl AsyncRead for OneRequest {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            self.decode()?;
            if !self.ready.is_empty() {
                let bytes = self.ready.len().min(out.remaining());
                out.put_slice(&self.ready[..bytes]);
                self.ready.advance(bytes);
                return Poll::Ready(Ok(()));
            }
            if self.body.is_done() && self.unread.len() >= SURPLUS_BYTES_MAX {
                // The client is far ahead; it has to wait for its answer, and so nothing is to be woken for.
                return Poll::Pending;
            }
            if ready!(self.poll_fill(context))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for OneRequest {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl std::fmt::Debug for OneRequest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("OneRequest").field("stream", &self.stream).finish_non_exhaustive()
    }
}

#[async_trait]
impl Shutdown for OneRequest {
    async fn shutdown(&mut self) {
        // What collected before a break is not sent: the answer must not look whole.
        Shutdown::shutdown(&mut **self.stream.get_mut()).await;
    }
}

impl UniqueID for OneRequest {
    fn id(&self) -> UniqueIDType {
        self.stream.get_ref().id()
    }
}

impl Ssl for OneRequest {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.stream.get_ref().get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ref().get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.get_ref().selected_alpn_proto()
    }
}

impl GetTimingDigest for OneRequest {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_ref().get_timing_digest()
    }
}

impl GetProxyDigest for OneRequest {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_ref().get_proxy_digest()
    }
}

impl GetSocketDigest for OneRequest {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_ref().get_socket_digest()
    }
}

impl Peek for OneRequest {}

/// 64 bits.
const CHUNK_DIGITS_MAX: u8 = 16;
/// Nobody needs extensions; some are sent.
const CHUNK_LINE_BYTES_MAX: usize = 256;
/// All trailer fields together.
const TRAILER_BYTES_MAX: usize = 8 * 1024;
/// Guess: what is read of a body at once.
const READ_BYTES: usize = 16 * 1024;
/// A session writes head and body one after the other; together they are one system call. Connections themselves have no
/// buffer, since the lane writes everything at once.
const WRITE_BYTES: usize = 4 * 1024;
/// What is kept of the requests behind this one.
const SURPLUS_BYTES_MAX: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Reads a chunked body in pieces of `piece` bytes: the body and what is left behind it, or where it broke.
    fn read_chunked(input: &[u8], piece: usize) -> Result<(String, String), &'static str> {
        let mut reader = BodyReader::new(BodyFraming::Chunked);
        let mut body = Vec::new();
        let mut rest: Vec<u8> = Vec::new();
        for piece in input.chunks(piece) {
            rest.extend_from_slice(piece);
            while !rest.is_empty() && !reader.is_done() {
                let (used, data) = reader.advance(&rest).map_err(|_| "malformed")?;
                body.extend_from_slice(data);
                if used == 0 {
                    break;
                }
                rest.drain(..used);
            }
        }
        match reader.is_done() {
            true => Ok((String::from_utf8(body).unwrap(), String::from_utf8(rest).unwrap())),
            false => Err("incomplete"),
        }
    }

    #[test]
    fn chunked_coding_is_read_strictly() {
        type Expected<'a> = Result<(&'a str, &'a str), &'a str>;
        let rows: &[(&str, Expected<'_>)] = &[
            ("0\r\n\r\n", Ok(("", ""))),
            ("5\r\nhello\r\n0\r\n\r\nGET", Ok(("hello", "GET"))),
            ("1\r\na\r\nA\r\n0123456789\r\n0\r\n\r\n", Ok(("a0123456789", ""))),
            ("0005\r\nhello\r\n000\r\n\r\n", Ok(("hello", ""))),
            ("5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n", Ok(("hello", ""))),
            ("0\r\nX: y\r\nZ: \r\n\r\nrest", Ok(("", "rest"))),
            ("5\r\nhello\r\n0\r\n", Err("incomplete")),
            ("5\r\nhel", Err("incomplete")),
            ("\r\n", Err("malformed")),
            (";a\r\n", Err("malformed")),
            ("5\nhello\r\n0\r\n\r\n", Err("malformed")),
            ("5\r\nhello\n0\r\n\r\n", Err("malformed")),
            ("5\r\nhello0\r\n\r\n", Err("malformed")),
            ("5\r\nhello\r\n0\r\n\n", Err("malformed")),
            ("5 \r\nhello\r\n0\r\n\r\n", Err("malformed")),
            (" 5\r\nhello\r\n0\r\n\r\n", Err("malformed")),
            ("0x5\r\nhello\r\n0\r\n\r\n", Err("malformed")),
            ("+5\r\nhello\r\n0\r\n\r\n", Err("malformed")),
            ("-5\r\nhello\r\n0\r\n\r\n", Err("malformed")),
            ("5\rhello\r\n0\r\n\r\n", Err("malformed")),
            ("5;\x01\r\nhello\r\n0\r\n\r\n", Err("malformed")),
            ("5;a\nb\r\nhello\r\n0\r\n\r\n", Err("malformed")),
            ("10000000000000000\r\n", Err("malformed")),
            ("0\r\nX: y\nZ: a\r\n\r\n", Err("malformed")),
            ("0\r\n X: y\r\n\r\n", Err("malformed")),
            ("0\r\nX: y\r\r\n\r\n", Err("malformed")),
        ];
        for (input, expected) in rows {
            for piece in [1, 2, 3, 7, 1000] {
                let expected = expected.map(|(body, rest)| (body.to_owned(), rest.to_owned()));
                assert_eq!(read_chunked(input.as_bytes(), piece), expected, "{input:?} in pieces of {piece}");
            }
        }
        let long = |text: usize| format!("0;{}\r\n\r\n", "a".repeat(text));
        assert!(read_chunked(long(200).as_bytes(), 1000).is_ok());
        assert!(read_chunked(long(256).as_bytes(), 1000).is_err());
        assert!(read_chunked(format!("0\r\nX: {}\r\n\r\n", "a".repeat(9000)).as_bytes(), 1000).is_err());
    }

    #[test]
    fn a_length_is_a_length() {
        let mut reader = BodyReader::new(BodyFraming::Length(5));
        assert_eq!(reader.advance(b"abc"), Ok((3, &b"abc"[..])));
        assert!(!reader.is_done());
        assert_eq!(reader.advance(b"defg"), Ok((2, &b"de"[..])));
        assert!(reader.is_done());
        assert_eq!(reader.advance(b"g"), Ok((0, &b""[..])));
        assert!(BodyReader::new(BodyFraming::None).is_done());
    }

    proptest! {
        #[test]
        fn what_is_coded_is_read_back(chunks in prop::collection::vec("[a-z]{1,20}", 0..6), piece in 1usize..30) {
            let mut coded: String = chunks.iter().map(|chunk| format!("{:X};x\r\n{chunk}\r\n", chunk.len())).collect();
            coded.push_str("0\r\n\r\nnext");
            prop_assert_eq!(read_chunked(coded.as_bytes(), piece), Ok((chunks.concat(), "next".to_owned())));
        }

        #[test]
        fn no_bytes_upset_the_reader(input in prop::collection::vec(prop::sample::select(&b"0123aF;\r\n x:\0\xff"[..]), 0..60), piece in 1usize..9) {
            let mut reader = BodyReader::new(BodyFraming::Chunked);
            for piece in input.chunks(piece) {
                let mut rest = piece;
                while !rest.is_empty() {
                    match reader.advance(rest) {
                        Ok((0, _)) | Err(_) => break,
                        Ok((used, _)) => rest = &rest[used..],
                    }
                }
            }
        }
    }

    async fn read_some(request: &mut OneRequest, expected: &str) {
        let mut read = Vec::new();
        while read.len() < expected.len() {
            assert_ne!(request.read_buf(&mut read).await.unwrap(), 0, "{}", String::from_utf8_lossy(&read));
        }
        assert_eq!(String::from_utf8(read).unwrap(), expected);
    }

    #[tokio::test]
    async fn a_session_sees_one_request_and_the_rest_stays() {
        let (mut client, server) = tokio::io::duplex(4096);
        let mut request = OneRequest::new(Box::new(server), b"HEAD", b"ab", BodyFraming::Length(4));
        client.write_all(b"cdGET / HTTP").await.unwrap();
        read_some(&mut request, "HEADabcd").await;
        let mut byte = [0];
        let mut waiting = Box::pin(request.read(&mut byte));
        let polled = std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending())).await;
        assert!(polled, "the next request is none of the session's business");
        drop(waiting);
        client.write_all(b"/1.1").await.unwrap();
        let (_, rest) = request.into_rest().unwrap();
        assert_eq!(rest, "GET / HTTP");
    }

    #[tokio::test]
    async fn a_session_learns_that_the_client_left() {
        let (client, server) = tokio::io::duplex(4096);
        let mut request = OneRequest::new(Box::new(server), b"HEAD", b"", BodyFraming::None);
        read_some(&mut request, "HEAD").await;
        drop(client);
        assert_eq!(request.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn chunks_are_coded_anew_and_errors_end_the_request() {
        let (mut client, server) = tokio::io::duplex(4096);
        let mut request = OneRequest::new(Box::new(server), b"", b"3;x=", BodyFraming::Chunked);
        client.write_all(b"y\r\nabc\r\n0\r\nTrailer: x\r\n\r\nsurplus").await.unwrap();
        read_some(&mut request, "3\r\nabc\r\n0\r\n\r\n").await;
        let (stream, rest) = request.into_rest().unwrap();
        assert_eq!(rest, "surplus");
        let mut request = OneRequest::new(stream, b"", b"3\nabc", BodyFraming::Chunked);
        assert_eq!(request.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(request.into_rest().is_none());
    }
}
