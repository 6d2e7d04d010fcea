//! The usual conversation over a connection without TLS: a `GET`, and an answer whose length is declared.
//!
//! The request is written as text and the answer read where it lies, which takes a fraction of what pingora's session takes. What
//! is not as usual in any way (a head that does not arrive at once, interim answers, chunks, folded lines, an end by closing,
//! anything malformed) is put back into the connection, and pingora reads it from its first byte.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use pingora::protocols::l4::stream::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

use super::body::{DRAIN_BYTES_MAX, DRAIN_TIMEOUT};
use super::head::{self, Asked, Head, PlainHead};
use super::http::Inner;
use super::idle::IdleConnections;
use super::upstream::InFlight;
use crate::source::{BodyStream, FetchError};

/// A connection without TLS, and where it leads.
pub(super) struct PlainConnection {
    pub(super) stream: Box<Stream>,
    pub(super) address: SocketAddr,
}

/// What came of a question.
pub(super) enum Plain {
    /// The head of an answer as usual, with the first bytes of its body.
    Usual(PlainHead, Bytes),
    /// Something else, which is to be read again.
    Other,
    /// The connection ended before an answer, as an idle one may have long ago.
    Dead,
}

/// Room for the first read: the head and a small body.
const FIRST_READ_BYTES: usize = 8 * 1024;
/// Room for the further ones.
const READ_BYTES: usize = 64 * 1024;

impl PlainConnection {
    pub(super) async fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(PlainConnection { stream: Box::new(stream.into()), address })
    }

    /// Writes the request and reads what comes first.
    pub(super) async fn converse(&mut self, request: &[u8], asked: Asked) -> Plain {
        let mut block = BytesMut::with_capacity(FIRST_READ_BYTES);
        let asking = async {
            self.stream.write_all(request).await?;
            self.stream.flush().await?;
            self.stream.read_buf(&mut block).await
        };
        match asking.await {
            Ok(1..) => {}
            Ok(0) => return Plain::Dead,
            Err(error) => {
                tracing::debug!(origin = %self.address, %error, "no answer");
                return Plain::Dead;
            }
        }
        match head::from_plain(&block, asked) {
            Some(head) => {
                let body = block.freeze().split_off(head.bytes);
                Plain::Usual(head, body)
            }
            None => {
                self.stream.rewind(&block);
                Plain::Other
            }
        }
    }
}

/// A body of declared length that has not arrived as a whole.
pub(super) struct PlainBody {
    inner: Arc<Inner>,
    in_flight: InFlight,
    /// `None` after the end and after an error.
    connection: Option<PlainConnection>,
    /// Whether it may be used again.
    reusable: bool,
    /// What was read and not handed out.
    read: Bytes,
    /// What has not been read.
    left: u64,
}

impl PlainBody {
    /// A body of which `read` has arrived, and `left` bytes have not; then the connection is `reusable`.
    pub(super) fn new(
        inner: Arc<Inner>,
        in_flight: InFlight,
        connection: PlainConnection,
        reusable: bool,
        read: Bytes,
        left: u64,
    ) -> Self {
        PlainBody { inner, in_flight, connection: Some(connection), reusable, read, left }
    }

    fn broken(&mut self, reason: &'static str) -> FetchError {
        self.connection = None;
        self.in_flight.upstream.count_error();
        tracing::debug!(origin = %self.in_flight.upstream.url, left = self.left, reason, "body broken");
        FetchError::broken(reason)
    }
}

/// Reads a part of the `left` bytes, and never what is behind them.
async fn read_part(stream: &mut Stream, left: &mut u64) -> std::io::Result<Bytes> {
    let room = usize::try_from(*left).unwrap_or(READ_BYTES).min(READ_BYTES);
    let mut part = BytesMut::with_capacity(room);
    stream.take(*left).read_buf(&mut part).await?;
    *left -= part.len() as u64;
    Ok(part.freeze())
}

#[async_trait]
impl BodyStream for PlainBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        if !self.read.is_empty() {
            return Ok(Some(std::mem::take(&mut self.read)));
        }
        let Some(connection) = &mut self.connection else { return Ok(None) };
        let deadline = Instant::now() + self.inner.between_bytes();
        match timeout_at(deadline, read_part(&mut connection.stream, &mut self.left)).await {
            Ok(Ok(part)) if !part.is_empty() => {
                if self.left == 0
                    && let Some(connection) = self.connection.take()
                {
                    keep(&self.inner.idle, connection, self.reusable);
                }
                Ok(Some(part))
            }
            Ok(Ok(_)) => Err(self.broken("the origin's body ended early")),
            Ok(Err(error)) => {
                tracing::debug!(origin = %self.in_flight.upstream.url, %error, "reading the body failed");
                Err(self.broken("the origin's body ended early"))
            }
            Err(_) => Err(self.broken("the origin's body stalled")),
        }
    }
}

impl Drop for PlainBody {
    fn drop(&mut self) {
        // Outside a runtime nothing can be awaited: dropping the connection closes it.
        let (Some(mut connection), Ok(runtime)) = (self.connection.take(), Handle::try_current()) else { return };
        if self.left > DRAIN_BYTES_MAX || !self.reusable {
            return;
        }
        let (inner, mut left) = (self.inner.clone(), self.left);
        runtime.spawn(async move {
            let drained = timeout(DRAIN_TIMEOUT, async {
                while left > 0 {
                    match read_part(&mut connection.stream, &mut left).await {
                        Ok(part) if !part.is_empty() => {}
                        _ => return false,
                    }
                }
                true
            });
            if let Ok(true) = drained.await {
                keep(&inner.idle, connection, true);
            }
        });
    }
}

/// Keeps a connection for the next request, or closes it.
pub(super) fn keep(idle: &Arc<IdleConnections>, connection: PlainConnection, reusable: bool) {
    if reusable {
        idle.put(connection.address, connection.stream);
    }
}

/// The text of a request.
pub(super) struct RequestText(Vec<u8>);

impl RequestText {
    /// A `GET` of the target `path`; `None` where it has a byte that needs a second look.
    pub(super) fn get(path: &[u8], host: &[u8]) -> Option<Self> {
        let usual = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%/?".contains(byte);
        if path.first() != Some(&b'/') || !path.iter().all(usual) {
            return None;
        }
        let mut text = Vec::with_capacity(512);
        text.extend_from_slice(b"GET ");
        text.extend_from_slice(path);
        text.extend_from_slice(b" HTTP/1.1\r\nHost: ");
        text.extend_from_slice(host);
        text.extend_from_slice(b"\r\n");
        Some(RequestText(text))
    }

    /// Adds a field that is known to be well formed.
    pub(super) fn field(&mut self, name: &[u8], value: &[u8]) {
        for part in [name, b": ", value, b"\r\n"] {
            self.0.extend_from_slice(part);
        }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"\r\n");
        self.0
    }
}

/// Splits what was read behind a head: the body as far as it is here, how much of it is not, and whether more is here than that.
pub(super) fn split_body(head: &Head, read: Bytes) -> (Bytes, u64, bool) {
    let declared = if head.status == 304 { 0 } else { head.content_length.unwrap_or_default() };
    let here = usize::try_from(declared).unwrap_or(usize::MAX).min(read.len());
    (read.slice(..here), declared - here as u64, read.len() > here)
}
