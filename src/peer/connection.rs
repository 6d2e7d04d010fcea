//! One connection between proven peers, the half that both ends share: frames of many questions go out in one vectored
//! write, and reading never waits for writing.
//!
//! A single task owns the socket and turns the [`Pump`]; everybody else puts frames into the [`Outbox`] and wakes it.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use pingora::protocols::Stream;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::sync::Semaphore;

use crate::peer::checksum::Checksum;
use crate::peer::protocol::codec::{Beside, KIND_LOAD, encode_ask, encode_end, encode_head};
use crate::peer::protocol::{FrameReader, Message, encode, encode_data_prefix};
use crate::source::{Ask, EntryId, Whole};

/// Frames that wait to be written.
///
/// What may be large (heads and pieces of bodies) first reserves its bytes; what is small (signs of life, credit, the end of
/// a body) does not, and is bounded by the number of open questions.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    room: Semaphore,
}

#[derive(Debug)]
struct Queue {
    /// Whole segments in order; `tail` follows them.
    segments: Vec<Bytes>,
    tail: BytesMut,
    reserved_bytes: usize,
    waker: Option<Waker>,
    /// Somebody who added a frame has woken the connection's task, and it has not run since.
    woken: bool,
    closed: bool,
}

/// What an outbox has for its connection's task.
enum Taken {
    /// Frames that reserved so many bytes.
    Frames(usize),
    /// Frames, and others may be about to follow.
    Soon,
    Nothing,
}

impl Queue {
    fn new() -> Self {
        Queue {
            segments: Vec::new(),
            tail: BytesMut::with_capacity(TAIL_BYTES),
            reserved_bytes: 0,
            waker: None,
            woken: false,
            closed: false,
        }
    }

    fn body(&mut self, request: u64, payload: Bytes) {
        encode_data_prefix(request, payload.len(), &mut self.tail);
        if payload.len() < COPIED_BELOW_BYTES {
            self.tail.extend_from_slice(&payload);
        } else {
            let prefix = self.tail.split().freeze();
            self.segments.extend([prefix, payload]);
        }
    }
}

impl Outbox {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Outbox { queue: Mutex::new(Queue::new()), room: Semaphore::new(OUTBOX_BYTES_MAX) })
    }

    /// Adds a frame that needs no reservation. On a closed connection it is dropped: whoever waits for an answer learns of the
    /// end from the connection's task.
    pub(super) fn push(&self, request: u64, message: &Message) {
        self.with_queue(|queue| encode(request, message, &mut queue.tail));
    }

    /// Adds a question that is to be loaded.
    pub(super) fn push_ask(&self, request: u64, ask: &Ask, have: EntryId, ring_id: u64, window: u32) {
        let beside = Beside { kind: KIND_LOAD, have, ring_id, window };
        self.with_queue(|queue| encode_ask(request, ask, &beside, &mut queue.tail));
    }

    /// Adds a frame for which `reserved_bytes` were reserved.
    pub(super) fn push_reserved(&self, request: u64, message: &Message, reserved_bytes: usize) {
        self.with_queue(|queue| {
            queue.reserved_bytes += reserved_bytes;
            encode(request, message, &mut queue.tail);
        });
    }

    /// Adds a piece of body for which as many bytes were reserved. The bytes are shared, not copied, unless they are so few
    /// that a copy is cheaper than one more element of the vectored write.
    pub(super) fn push_data(&self, request: u64, payload: Bytes) {
        self.with_queue(|queue| {
            queue.reserved_bytes += payload.len();
            queue.body(request, payload);
        });
    }

    /// Whether there is room now for a whole answer with so many bytes of fields and body.
    pub(super) fn has_room_for_whole(&self, head_bytes: usize, body_bytes: usize) -> bool {
        self.room.available_permits() >= (head_bytes + HEAD_BYTES_EXTRA + body_bytes).min(OUTBOX_BYTES_MAX)
    }

    /// Adds a whole answer: head, body in one piece, end. False, and nothing is added, when there is no room now.
    pub(super) fn push_whole(&self, request: u64, whole: Whole) -> bool {
        let Whole { status, fields, hop, body } = whole;
        let bytes = fields.len() + hop.sent.len() + HEAD_BYTES_EXTRA + body.len();
        let Ok(permit) = self.room.try_acquire_many(bytes.min(OUTBOX_BYTES_MAX) as u32) else { return false };
        permit.forget();
        let (length, checksum) = (body.len() as u64, Checksum::of(&body));
        self.with_queue(|queue| {
            queue.reserved_bytes += bytes.min(OUTBOX_BYTES_MAX);
            encode_head(request, status, fields.as_bytes(), Some(length), Some(&hop), &mut queue.tail);
            if !body.is_empty() {
                queue.body(request, body);
            }
            encode_end(request, length, checksum, &mut queue.tail);
        });
        true
    }

    /// Waits until `bytes` more may be queued; in the order of asking.
    ///
    /// # Errors
    /// The connection was closed.
    pub(super) async fn reserve(&self, bytes: usize) -> Result<(), Closed> {
        let bytes = u32::try_from(bytes.min(OUTBOX_BYTES_MAX)).map_err(|_| Closed)?;
        // The first try costs nothing of the task's share of the runtime.
        let permit = match self.room.try_acquire_many(bytes) {
            Ok(permit) => permit,
            Err(_) => self.room.acquire_many(bytes).await.map_err(|_| Closed)?,
        };
        permit.forget();
        Ok(())
    }

    /// Lets nobody wait or add any longer. What is queued is still written by a pump that goes on turning.
    pub(super) fn close(&self) {
        self.room.close();
        let waker = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn with_queue(&self, add: impl FnOnce(&mut Queue)) {
        let waker = {
            let mut queue = self.queue.lock();
            if queue.closed {
                return;
            }
            add(&mut queue);
            let waker = queue.waker.take();
            queue.woken |= waker.is_some();
            waker
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Moves everything queued into `into`, unless others may be about to add to it. When nothing is queued, `waker` is woken by
    /// the next frame.
    ///
    /// Tokio runs a task that was just woken before all that were ready before it: without the pause, each of many clients that
    /// were heard together would have its question written alone, at the price of a system call on both sides.
    fn take(&self, into: &mut VecDeque<Bytes>, waker: &Waker) -> Taken {
        let mut queue = self.queue.lock();
        if std::mem::take(&mut queue.woken) {
            return Taken::Soon;
        }
        if queue.segments.is_empty() && queue.tail.is_empty() {
            if queue.waker.as_ref().is_none_or(|registered| !registered.will_wake(waker)) {
                queue.waker = Some(waker.clone());
            }
            return Taken::Nothing;
        }
        into.extend(queue.segments.drain(..));
        if !queue.tail.is_empty() {
            into.push_back(queue.tail.split().freeze());
        }
        Taken::Frames(std::mem::take(&mut queue.reserved_bytes))
    }

    /// The connection's task is awake, and looks again by itself.
    fn forget_waker(&self) {
        let mut queue = self.queue.lock();
        queue.waker = None;
        queue.woken = false;
    }
}

/// The connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed;

/// Writes what the outbox holds and reads what arrives; belongs to the connection's task.
#[derive(Debug)]
pub(super) struct Pump {
    stream: Stream,
    reader: FrameReader,
    outbox: Arc<Outbox>,
    writing: VecDeque<Bytes>,
    writing_reserved_bytes: usize,
    needs_flush: bool,
    /// Stop reading while the other end does not take what we wrote: an owner must not collect questions whose answers pile
    /// up. Only one end may do that, or both wait for each other.
    reads_only_when_written: bool,
    /// Counts writes that moved bytes; who watches it can tell a stalled reader.
    written_bytes: u64,
}

impl Pump {
    pub(super) fn new(stream: Stream, reader: FrameReader, outbox: Arc<Outbox>, reads_only_when_written: bool) -> Self {
        Pump {
            stream,
            reader,
            outbox,
            writing: VecDeque::new(),
            writing_reserved_bytes: 0,
            needs_flush: false,
            reads_only_when_written,
            written_bytes: 0,
        }
    }

    /// Writes and reads until something was read; false at the end of the stream. May be dropped and called again.
    ///
    /// # Errors
    /// Those of the socket.
    pub(super) async fn turn(&mut self) -> io::Result<bool> {
        poll_fn(|context| self.poll_turn(context)).await
    }

    /// Writes what is queued.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.outbox.forget_waker();
        poll_fn(|context| match self.poll_write(context) {
            Ok(()) if self.has_unwritten() => Poll::Pending,
            result => Poll::Ready(result),
        })
        .await
    }

    /// Sends the end of the stream and closes.
    pub(super) async fn shutdown(mut self) {
        self.stream.shutdown().await;
    }

    pub(super) fn reader(&mut self) -> &mut FrameReader {
        &mut self.reader
    }

    /// Whether the socket does not take what should be written.
    pub(super) fn has_unwritten(&self) -> bool {
        !self.writing.is_empty() || self.needs_flush
    }

    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let written = self.poll_write(context);
        if written.is_ok() && self.reads_only_when_written && !self.writing.is_empty() {
            return Poll::Pending;
        }
        let buffer = self.reader.buffer(READ_BYTES);
        let read = pin!(self.stream.read_buf(buffer)).poll(context);
        if read.is_ready() {
            // The caller will answer some of what was read; that must not wake the very task that is about to write it.
            self.outbox.forget_waker();
        }
        match (read, written) {
            // The other end may have closed after a last word, and that is read before the failure to write counts.
            (Poll::Ready(Ok(bytes)), Err(_)) if bytes > 0 => Poll::Ready(Ok(true)),
            (_, Err(error)) => Poll::Ready(Err(error)),
            (read, Ok(())) => read.map_ok(|bytes| bytes > 0),
        }
    }

    /// Writes until nothing is queued or the socket takes no more.
    fn poll_write(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        loop {
            if !self.has_unwritten() {
                match self.outbox.take(&mut self.writing, context.waker()) {
                    Taken::Frames(reserved_bytes) => self.writing_reserved_bytes = reserved_bytes,
                    Taken::Soon => {
                        // Behind all tasks that are ready now.
                        context.waker().wake_by_ref();
                        return Ok(());
                    }
                    Taken::Nothing => return Ok(()),
                }
            }
            while !self.writing.is_empty() {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let mut count = 0;
                for (slice, bytes) in slices.iter_mut().zip(&self.writing) {
                    *slice = IoSlice::new(bytes);
                    count += 1;
                }
                match Pin::new(&mut self.stream).poll_write_vectored(context, &slices[..count]) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(written)) => self.advance(written),
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => return Ok(()),
                }
            }
            match Pin::new(&mut self.stream).poll_flush(context)? {
                Poll::Ready(()) => {
                    self.needs_flush = false;
                    self.outbox.room.add_permits(std::mem::take(&mut self.writing_reserved_bytes));
                }
                Poll::Pending => return Ok(()),
            }
        }
    }

    fn advance(&mut self, written_bytes: usize) {
        self.needs_flush = true;
        self.written_bytes = self.written_bytes.wrapping_add(written_bytes as u64);
        let mut left = written_bytes;
        while let Some(first) = self.writing.front_mut() {
            if left < first.len() {
                first.advance(left);
                return;
            }
            left -= first.len();
            self.writing.pop_front();
        }
    }
}

/// Reserved bytes that may wait in one outbox: what a connection to a peer costs that does not read.
const OUTBOX_BYTES_MAX: usize = 1024 * 1024;
/// What a head takes beside its fields, at most.
pub(super) const HEAD_BYTES_EXTRA: usize = 128;
/// Guess: a copy of so few bytes costs less than an element of a vectored write.
const COPIED_BELOW_BYTES: usize = 512;
/// Room asked for before a read: as much as the socket's own read buffer, which is passed by then.
const READ_BYTES: usize = 64 * 1024;
/// What frames are written into, a piece after the other; when it is used up, it is allocated anew. `bytes` knows no better
/// size by itself than that of the next frame, which would be an allocation for each.
const TAIL_BYTES: usize = 16 * 1024;
/// Elements of one vectored write.
const SLICES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use tokio::io::DuplexStream;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What arrived at the other end.
    fn arrived(end: &mut DuplexStream) -> usize {
        let mut bytes = BytesMut::new();
        match pin!(end.read_buf(&mut bytes)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(read) => read.unwrap(),
            Poll::Pending => 0,
        }
    }

    #[test]
    fn questions_of_tasks_that_are_ready_together_leave_together() {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut context = Context::from_waker(&waker);
        let (stream, mut end) = tokio::io::duplex(1024);
        let outbox = Outbox::new();
        let mut pump = Pump::new(Box::new(stream), FrameReader::new(1024), outbox.clone(), false);
        let mut turn = |context: &mut Context<'_>| assert!(pump.poll_turn(context).is_pending());
        let frame = Message::Status { draining: false, ring_id: 1 };

        turn(&mut context);
        outbox.push(1, &frame);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        turn(&mut context);
        assert_eq!((arrived(&mut end), wakes.0.load(Ordering::Relaxed)), (0, 2), "others may follow");
        outbox.push(2, &frame);
        outbox.push(3, &frame);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2, "it is awake");
        turn(&mut context);
        let three = arrived(&mut end);
        outbox.push(4, &frame);
        turn(&mut context);
        turn(&mut context);
        assert_eq!((three, wakes.0.load(Ordering::Relaxed)), (3 * arrived(&mut end), 4));

        // The last words of a connection wait for nobody.
        outbox.push(5, &frame);
        assert!(pin!(pump.flush()).poll(&mut context).is_ready());
        assert_eq!(arrived(&mut end) * 3, three);
    }
}
