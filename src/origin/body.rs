//! The body of an origin's answer, and the way of its connection back to the pool.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::protocols::http::client::HttpSession;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

use super::http::{Connection, Inner};
use super::upstream::InFlight;
use crate::source::{BodyStream, FetchError};

/// A body that comes in over a connection.
///
/// The connection goes back to the pool as soon as the framing proves the end, together with the last chunk where possible.
/// Dropped early it is closed, unless the rest is so small that reading it is cheaper than a new connection.
pub(super) struct HttpBody {
    inner: Arc<Inner>,
    /// `None` after the end and after an error.
    connection: Option<Connection>,
    in_flight: InFlight,
    /// Bytes that this body must have.
    expected: Option<u64>,
    received: u64,
}

/// A rest up to this length, in bytes, is read by ourselves: it is likely in the socket's buffer already (guess).
pub(super) const DRAIN_BYTES_MAX: u64 = 64 * 1024;
/// How long such a rest may take.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

impl HttpBody {
    pub(super) fn new(inner: Arc<Inner>, connection: Connection, in_flight: InFlight, expected: Option<u64>) -> Self {
        HttpBody { inner, connection: Some(connection), in_flight, expected, received: 0 }
    }

    /// Ends a body that has no byte.
    pub(super) async fn finish(mut self) -> Result<(), FetchError> {
        self.end().await
    }

    async fn end(&mut self) -> Result<(), FetchError> {
        let Some(mut connection) = self.connection.take() else { return Ok(()) };
        let confirmed = match &mut connection.session {
            HttpSession::H2(stream) => match stream.check_response_end_or_error() {
                Ok(true) => true,
                // The data ended without ending the stream: trailers follow, which nobody wants, or a reset.
                Ok(false) => matches!(timeout(self.inner.between_bytes(), stream.read_trailers()).await, Ok(Ok(_))),
                Err(_) => false,
            },
            _ => true,
        };
        if confirmed && self.expected.is_none_or(|expected| expected == self.received) {
            self.inner.release(connection).await;
            Ok(())
        } else {
            self.inner.give_up(connection).await;
            Err(self.broken("the origin's body ended early"))
        }
    }

    async fn fail(&mut self, reason: &'static str) -> FetchError {
        if let Some(connection) = self.connection.take() {
            self.inner.give_up(connection).await;
        }
        self.broken(reason)
    }

    fn broken(&self, reason: &'static str) -> FetchError {
        self.in_flight.upstream.count_error();
        tracing::debug!(origin = %self.in_flight.upstream.url, received = self.received, reason, "body broken");
        FetchError::broken(reason)
    }
}

#[async_trait]
impl BodyStream for HttpBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        // One deadline for the whole wait: empty frames of HTTP/2 do not count as progress.
        let deadline = Instant::now() + self.inner.between_bytes();
        loop {
            let Some(connection) = self.connection.as_mut() else { return Ok(None) };
            let read = timeout_at(deadline, connection.session.read_response_body()).await;
            let chunk = match read {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => {
                    self.end().await?;
                    return Ok(None);
                }
                Ok(Err(error)) => {
                    tracing::debug!(origin = %self.in_flight.upstream.url, %error, "reading the body failed");
                    return Err(self.fail("the origin's body ended early").await);
                }
                Err(_) => return Err(self.fail("the origin's body stalled").await),
            };
            self.received = self.received.saturating_add(chunk.len() as u64);
            if self.expected.is_some_and(|expected| self.received > expected) {
                return Err(self.fail("the origin's body is longer than declared").await);
            }
            if connection.session.response_done() {
                self.end().await?;
            }
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }
}

impl Drop for HttpBody {
    fn drop(&mut self) {
        // Outside a runtime nothing can be awaited: dropping the connection closes it.
        let (Some(mut connection), Ok(runtime)) = (self.connection.take(), Handle::try_current()) else { return };
        let rest = self.expected.map(|expected| expected.saturating_sub(self.received));
        let inner = self.inner.clone();
        match (&connection.session, rest) {
            (HttpSession::H1(_), Some(1..=DRAIN_BYTES_MAX)) => {
                runtime.spawn(async move {
                    let drained = timeout(DRAIN_TIMEOUT, async {
                        while let Ok(Some(_)) = connection.session.read_response_body().await {}
                        connection.session.response_done()
                    });
                    // Pingora closes what did not end cleanly.
                    if let Ok(true) = drained.await {
                        inner.release(connection).await;
                    }
                });
            }
            (HttpSession::H2(_), _) => {
                runtime.spawn(async move { inner.give_up(connection).await });
            }
            _ => {}
        }
    }
}
