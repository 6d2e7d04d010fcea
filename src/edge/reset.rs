//! Answers that break off where nothing but the end of the connection says that they end.
//!
//! To a client of HTTP/1.0, and behind an answer without a length, an orderly end means that the body is whole (RFC 9112
//! section 6.3). When it is not, the connection is reset instead.

use std::os::fd::RawFd;
use std::time::Duration;

use pingora::protocols::Stream;
use socket2_by_descriptor::SockRef;

/// The socket of a client's connection, by its number: good for as long as somebody holds the connection.
#[derive(Clone, Copy, Debug)]
pub struct ClientSocket(RawFd);

impl ClientSocket {
    /// The socket under this stream; `None` for a stream that has none, as in tests.
    pub fn of(stream: &Stream) -> Option<Self> {
        stream.get_socket_digest().map(|_| ClientSocket(stream.id()))
    }

    /// Makes the closing of the connection, which must still be open, a reset. What the client has not taken yet is lost.
    pub fn reset_on_close(self) {
        if let Err(error) = SockRef::from(&self.0).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "a connection cannot be reset");
        }
    }
}
