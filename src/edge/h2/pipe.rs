//! The stream under a connection of HTTP/2, whose small writes become few large ones.
//!
//! The frame layer flushes after every `DATA` frame. Over TLS each of those flushes would be a record and a system call of
//! its own; here they collect until the connection's task has nothing more to answer, and then go together.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A shared handle: one is the frame layer's, the other one the connection task's, which alone really flushes. Both live in
/// the same task, so the lock is never waited for.
#[derive(Clone)]
pub struct Pipe(Arc<Mutex<Inner>>);

struct Inner {
    stream: Stream,
    /// `buffer[start..]` is yet to be written.
    buffer: Vec<u8>,
    start: usize,
    written: u64,
    collects: bool,
    /// Whether a write had to wait since it was last asked.
    refused: bool,
}

impl Pipe {
    /// A pipe that does not collect yet: a handshake waits for what it has written.
    pub fn new(stream: Stream) -> Self {
        Pipe(Arc::new(Mutex::new(Inner {
            stream,
            buffer: Vec::new(),
            start: 0,
            written: 0,
            collects: false,
            refused: false,
        })))
    }

    /// From now on only [`Pipe::poll_send`] flushes, or a full buffer.
    pub fn collect(&self) {
        self.0.lock().collects = true;
    }

    /// Bytes that the stream below has taken.
    pub fn written(&self) -> u64 {
        self.0.lock().written
    }

    /// Whether the frame layer had to wait since this was asked last: it may have more to write.
    pub fn take_refused(&self) -> bool {
        std::mem::take(&mut self.0.lock().refused)
    }

    /// Writes and flushes what has collected.
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_send(context)
    }
}

impl Inner {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.start < self.buffer.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.buffer[self.start..]))?;
            self.took(written)?;
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Notes that the stream took so many bytes of the buffer.
    fn took(&mut self, bytes: usize) -> io::Result<()> {
        if bytes == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += bytes as u64;
        self.start += bytes;
        if self.start >= self.buffer.len() {
            // Given back: most connections wait most of the time.
            (self.buffer, self.start) = (Vec::new(), 0);
        }
        Ok(())
    }

    fn poll_write_vectored(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let result = self.poll_collect(context, slices);
        self.refused |= result.is_pending();
        result
    }

    fn poll_collect(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        loop {
            let waiting = self.buffer.len() - self.start;
            if waiting + bytes <= BATCH_BYTES {
                if self.buffer.capacity() == 0 {
                    self.buffer.reserve_exact(BATCH_BYTES);
                }
                // What has been written in front is not moved: the buffer grows by that at most.
                slices.iter().for_each(|slice| self.buffer.extend_from_slice(slice));
                return Poll::Ready(Ok(bytes));
            }
            if waiting == 0 {
                let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
                self.written += written as u64;
                return Poll::Ready(Ok(written));
            }
            let mut together = [IoSlice::new(&[]); SLICES_MAX];
            together[0] = IoSlice::new(&self.buffer[self.start..]);
            let count = slices.len().min(SLICES_MAX - 1);
            together[1..=count].copy_from_slice(&slices[..count]);
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, &together[..=count]))?;
            if written > waiting {
                self.took(waiting)?;
                self.written += (written - waiting) as u64;
                return Poll::Ready(Ok(written - waiting));
            }
            self.took(written)?;
        }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().stream).poll_read(context, out)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        if inner.collects {
            return Poll::Ready(Ok(()));
        }
        inner.poll_send(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        ready!(inner.poll_send(context))?;
        Pin::new(&mut inner.stream).poll_shutdown(context)
    }
}

/// What goes together at most: two full records of TLS. More would wait longer for its first byte than it saves.
const BATCH_BYTES: usize = 32 * 1024;
/// Slices of one write: the frame layer has two, a frame's head and its payload.
const SLICES_MAX: usize = 8;
