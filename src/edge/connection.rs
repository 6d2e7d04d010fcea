//! One client's connection of HTTP/1: bytes in, bytes out, and a deadline for every wait.
//!
//! A busy connection pays for no timer: one timer per connection is armed rarely and looked at only when there is nothing
//! to do. Nor for memory: who waits for a request lends its buffers to the next connection of the thread. After
//! [`BUSY_WAIT`] or a little more without a byte the connection counts as idle and listens for the end of the process.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::decide::KnownForwarded;
use super::request_head::{KnownSection, Lines, Refusal, RequestHead, Scan};
use super::reset::ClientSocket;

/// How long a client may take, and how much it may send; 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest head of a request in bytes.
    pub header_bytes: usize,
    /// From the first byte of a head, and from the beginning of the connection, to the end of the head.
    pub header_timeout: Duration,
    /// Between two requests.
    pub idle_timeout: Duration,
    /// Bytes per second that a client must at least take or send, after [`RATE_GRACE`]; 0: no limit.
    pub body_min_rate: u64,
    /// Largest body of a request in bytes; 0: no limit.
    pub body_bytes: u64,
    /// A client that takes not one byte for so long is cut off. The body of a question to an endpoint, which is short, has as
    /// long in all.
    pub send_stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            header_bytes: 32 * 1024,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_min_rate: 1024,
            body_bytes: 1 << 30,
            send_stall: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// With what "no limit" means for each: a year to wait, and a head as large as any (1 MiB).
    pub(super) fn without_zeros(self) -> Self {
        let forever = |duration: Duration| if duration.is_zero() { FOREVER } else { duration };
        Limits {
            header_bytes: if self.header_bytes == 0 { HEADER_BYTES_MAX } else { self.header_bytes },
            header_timeout: forever(self.header_timeout),
            idle_timeout: forever(self.idle_timeout),
            send_stall: forever(self.send_stall),
            ..self
        }
    }
}

/// Tells every connection that the process is about to end: finish what is running, take nothing new.
#[derive(Debug)]
pub struct Drain {
    begun: AtomicBool,
    watch: watch::Sender<bool>,
}

impl Default for Drain {
    fn default() -> Self {
        Drain { begun: AtomicBool::new(false), watch: watch::channel(false).0 }
    }
}

impl Drain {
    /// Begins: answers say `Connection: close`, idle connections are closed, connections of HTTP/2 take no new stream.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.watch.send_replace(true);
    }

    /// Takes it back; what was closed stays closed.
    pub fn undo(&self) {
        self.begun.store(false, Ordering::Release);
        self.watch.send_replace(false);
    }

    /// Whether it has begun.
    #[inline]
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// The same for those who wait.
    pub fn watch(&self) -> ShutdownWatch {
        self.watch.subscribe()
    }
}

/// What only a connection needs that has something to do.
struct Buffers {
    /// What is read goes here.
    read: Vec<u8>,
    /// The head of the answer.
    head: Vec<u8>,
    /// While these are spare: those that were given back before, and how many they are.
    before: Option<Box<Buffers>>,
    count_before: usize,
}

impl Buffers {
    fn new(bytes: usize) -> Box<Self> {
        Box::new(Buffers { read: vec![0; bytes], head: Vec::new(), before: None, count_before: 0 })
    }
}

thread_local! {
    /// The buffers that were given back last, which are the likeliest to be in the processor's cache.
    static SPARE: Cell<Option<Box<Buffers>>> = const { Cell::new(None) };
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A head, complete; its length in bytes.
    Head(usize),
    /// The client, or the end of the process, closed the connection between two requests; or it broke.
    Closed,
    /// A head that is refused.
    Refused(Refusal),
}

/// The client closed its side or the connection broke while it waited for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client is gone")]
pub struct Gone;

/// A connection and what has been read from it.
pub struct Connection {
    stream: Stream,
    /// `None` while a request is waited for.
    buffers: Option<Box<Buffers>>,
    /// `buffers.read[start..end]` has been read and not been used.
    start: usize,
    end: usize,
    known: KnownSection,
    known_forwarded: KnownForwarded,
    timer: Timer,
    /// How long one tick of the short wait takes.
    tick: Duration,
    limits: Limits,
    served: bool,
}

impl Connection {
    /// A connection of which `read` has been read already.
    pub fn new(stream: Stream, read: &[u8], limits: Limits) -> Self {
        let limits = limits.without_zeros();
        let mut connection = Connection {
            stream,
            buffers: None,
            start: 0,
            end: 0,
            known: KnownSection::default(),
            known_forwarded: KnownForwarded::default(),
            timer: Timer::default(),
            tick: BUSY_WAIT.min(limits.idle_timeout) / BUSY_TICKS,
            limits,
            served: false,
        };
        connection.give_back(read);
        connection
    }

    /// A connection that comes back from a full session, between two requests.
    pub fn resume(stream: Stream, read: &[u8], limits: Limits) -> Self {
        Connection { served: true, ..Connection::new(stream, read, limits) }
    }

    /// The limits of this connection.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What has been read and not been used.
    #[inline]
    pub fn unread(&self) -> &[u8] {
        self.buffers.as_ref().map_or(&[], |buffers| &buffers.read[self.start..self.end])
    }

    /// Where the head of the next answer is written; [`Connection::send`] sends it.
    #[inline]
    pub fn head(&mut self) -> &mut Vec<u8> {
        &mut self.buffers.get_or_insert_with(spare_buffers).head
    }

    /// Declares the first `bytes` of [`Connection::unread`] used.
    #[inline]
    pub fn consume(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        self.served = true;
    }

    /// Makes the closing of this connection a reset.
    pub fn reset_on_close(&self) {
        if let Some(socket) = ClientSocket::of(&self.stream) {
            socket.reset_on_close();
        }
    }

    /// Gives up the connection: the stream, and what was read and not used.
    pub fn into_parts(self) -> (Stream, Bytes) {
        let unread = Bytes::copy_from_slice(self.unread());
        (self.stream, unread)
    }

    fn give_back(&mut self, read: &[u8]) {
        if !read.is_empty() {
            let mut buffers = Buffers::new(read.len().max(BUFFER_BYTES));
            buffers.read[..read.len()].copy_from_slice(read);
            self.buffers = Some(buffers);
            self.end = read.len();
        }
    }

    /// Reads the head of `bytes` bytes that [`Connection::receive_head`] has just announced. Also gives the place where the
    /// head of the answer is written, and what is known of the forwarded fields.
    ///
    /// # Errors
    /// As [`RequestHead::parse`].
    #[inline]
    pub fn read_head<'a>(
        &'a mut self,
        bytes: usize,
        lines: &'a mut Lines<'a>,
    ) -> (Result<RequestHead<'a>, Refusal>, &'a mut Vec<u8>, &'a mut KnownForwarded) {
        let Connection { buffers, start, known, known_forwarded, .. } = self;
        let Buffers { read, head, .. } = &mut **buffers.get_or_insert_with(spare_buffers);
        if !known.is_found() {
            known_forwarded.forget();
        }
        (known.read(&read[*start..*start + bytes], lines), head, known_forwarded)
    }

    /// Waits for the next whole head.
    pub async fn receive_head(&mut self, drain: &Drain, shutdown: &ShutdownWatch) -> Received {
        let mut scan = Scan::default();
        // A connection that never sent a byte has as long as for a head.
        let mut deadline = (!self.served).then(|| Instant::now() + self.limits.header_timeout);
        loop {
            if let (Some(buffers), true) = (&self.buffers, self.end > self.start) {
                // Only of the first read: what came in pieces has been looked at already.
                if deadline.is_none()
                    && let Some(bytes) = self.known.find(&buffers.read[self.start..self.end], self.limits.header_bytes)
                {
                    return Received::Head(bytes);
                }
                match scan.advance(self.unread(), self.limits.header_bytes) {
                    Ok(Some(bytes)) => return Received::Head(bytes),
                    Ok(None) => {}
                    Err(refusal) => return Received::Refused(refusal),
                }
            }
            let begun = self.end > self.start;
            if begun && deadline.is_none() {
                deadline = Some(Instant::now() + self.limits.header_timeout);
            }
            let read = match deadline {
                Some(deadline) => self.read_until(deadline).await,
                None => {
                    if drain.has_begun() {
                        return Received::Closed;
                    }
                    match self.read_busy().await {
                        Read::TimedOut => self.read_idle(drain, shutdown).await,
                        read => read,
                    }
                }
            };
            match read {
                Read::Bytes => {}
                Read::TimedOut if begun => {
                    return Received::Refused(Refusal::new(408, "header_timeout", "the header section took too long"));
                }
                Read::TimedOut | Read::Closed => return Received::Closed,
            }
        }
    }

    /// Waits for `future`, and for the client's leaving.
    ///
    /// # Errors
    /// The client left first. A client that only closed its sending side counts as gone: the two cannot be told apart.
    pub async fn wait_for<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Gone> {
        let mut future = pin!(future);
        self.make_room();
        poll_fn(|context| {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(value));
            }
            // What the client sends meanwhile is its next request; when there is no room for more, it has to wait, and
            // its leaving shows when the answer is written.
            while self.has_room() {
                match self.poll_read(context) {
                    Poll::Ready(Read::Bytes) => {}
                    Poll::Ready(_) => return Poll::Ready(Err(Gone)),
                    Poll::Pending => break,
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Reads more behind what is unread, for a body that the lane itself reads.
    ///
    /// # Errors
    /// The client is gone, or sent nothing until `deadline`.
    pub async fn read_more(&mut self, deadline: Instant) -> Result<(), Gone> {
        match self.read_until(deadline).await {
            Read::Bytes => Ok(()),
            Read::Closed | Read::TimedOut => Err(Gone),
        }
    }

    /// Sends the prepared [`Connection::head`], then the segments, then `tail`, without copying them.
    ///
    /// # Errors
    /// The connection broke, or the client takes the bytes too slowly.
    #[inline]
    pub async fn send(&mut self, pace: &mut Pace, segments: Slices<'_>, tail: &'static [u8]) -> io::Result<()> {
        let mut cursor = Cursor { index: 0, offset: 0 };
        let Connection { stream, buffers, timer, limits, .. } = self;
        let head = &buffers.get_or_insert_with(spare_buffers).head;
        poll_fn(|context| {
            // The usual answer: one write takes all of it.
            if let (0, Some(body), b"") = (cursor.index + cursor.offset, segments.only(), tail)
                && !head.is_empty()
            {
                let slices = [IoSlice::new(head), IoSlice::new(body)];
                match Pin::new(&mut *stream).poll_write_vectored(context, &slices) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => {
                        pace.progress(written as u64);
                        match written == head.len() + body.len() {
                            true => cursor.index = segments.len() + 2,
                            false => cursor.advance(written, head, segments, tail),
                        }
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return pace.poll_blocked(timer, limits, context),
                }
            }
            // Not again when flushing has to wait: what is written must not be written once more then.
            while cursor.index < segments.len() + 2 {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let (count, last) = cursor.gather(head, segments, tail, &mut slices);
                if count == 0 {
                    break;
                }
                let bytes: usize = slices[..count].iter().map(|slice| slice.len()).sum();
                match Pin::new(&mut *stream).poll_write_vectored(context, &slices[..count]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => {
                        pace.progress(written as u64);
                        if written == bytes && last {
                            cursor = Cursor { index: segments.len() + 2, offset: 0 };
                            break;
                        }
                        cursor.advance(written, head, segments, tail);
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return pace.poll_blocked(timer, limits, context),
                }
            }
            match Pin::new(&mut *stream).poll_flush(context) {
                Poll::Pending => pace.poll_blocked(timer, limits, context),
                ready => ready,
            }
        })
        .await
    }

    /// Closes so that the client can still read the answer: says that nothing more comes, then takes what the client still
    /// sends for a moment. Closing at once would reset the connection and may destroy the answer on its way.
    pub async fn close(mut self) {
        let until = Instant::now() + LINGER;
        let Connection { stream, timer, .. } = &mut self;
        let mut scratch = [0; 1024];
        let mut bytes_left = LINGER_BYTES_MAX;
        let mut said = false;
        poll_fn(|context| {
            if !said {
                match Pin::new(&mut *stream).poll_shutdown(context) {
                    Poll::Ready(Ok(())) => said = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return timer.poll(until, context),
                }
            }
            loop {
                let mut space = ReadBuf::new(&mut scratch);
                match Pin::new(&mut *stream).poll_read(context, &mut space) {
                    Poll::Ready(Ok(())) if !space.filled().is_empty() => {
                        bytes_left = bytes_left.saturating_sub(space.filled().len());
                        if bytes_left == 0 {
                            return Poll::Ready(());
                        }
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return timer.poll(until, context),
                }
            }
        })
        .await;
    }

    /// Whether something can be read.
    #[inline]
    fn has_room(&self) -> bool {
        self.buffers.as_ref().is_some_and(|buffers| self.end < buffers.read.len())
    }

    /// Room for at least one byte behind what is unread.
    #[inline]
    fn make_room(&mut self) {
        if !self.has_room() {
            match self.buffers {
                None => self.buffers = Some(spare_buffers()),
                Some(_) => self.make_more_room(),
            }
        }
    }

    /// A head that does not fit makes the buffer grow up to the limit.
    #[cold]
    fn make_more_room(&mut self) {
        let read = &mut self.buffers.get_or_insert_with(spare_buffers).read;
        if self.start > 0 {
            read.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        } else {
            let grown = (read.len() * 2).min(self.limits.header_bytes.max(BUFFER_BYTES) + 1);
            read.resize(grown.max(self.end + 1), 0);
        }
    }

    async fn read_until(&mut self, deadline: Instant) -> Read {
        poll_fn(|context| {
            self.make_room();
            match self.poll_read(context) {
                Poll::Pending => {
                    self.lend_buffers();
                    self.timer.poll(deadline, context).map(|()| Read::TimedOut)
                }
                ready => ready,
            }
        })
        .await
    }

    /// Gives the buffers to whichever connection of this thread needs some next, if nothing is in them: who waits has none.
    #[inline]
    fn lend_buffers(&mut self) {
        if self.end == 0
            && let Some(buffers) = self.buffers.take()
        {
            lend(buffers);
        }
    }

    /// The short wait between two requests: for [`BUSY_WAIT`], or a tick longer.
    async fn read_busy(&mut self) -> Read {
        // The first of those that go on from an earlier wait began before this one.
        let ticks_needed = BUSY_TICKS + u32::from(self.timer.ticking.is_some());
        let mut ticks = 0;
        poll_fn(|context| {
            self.make_room();
            match self.poll_read(context) {
                Poll::Pending => {
                    self.lend_buffers();
                    while self.timer.poll_tick(self.tick, context).is_ready() {
                        ticks += 1;
                        if ticks >= ticks_needed {
                            return Poll::Ready(Read::TimedOut);
                        }
                    }
                    Poll::Pending
                }
                ready => ready,
            }
        })
        .await
    }

    /// The long wait between two requests.
    async fn read_idle(&mut self, drain: &Drain, shutdown: &ShutdownWatch) -> Read {
        self.known.forget();
        self.known_forwarded.forget();
        let deadline = Instant::now() + self.limits.idle_timeout.saturating_sub(BUSY_WAIT);
        let (mut shutdown, mut draining) = (shutdown.clone(), drain.watch());
        let ending = async {
            tokio::select! {
                () = ended(&mut draining) => {}
                () = ended(&mut shutdown) => {}
            }
        };
        let mut ending = pin!(ending);
        poll_fn(|context| {
            self.make_room();
            match self.poll_read(context) {
                Poll::Pending => self.lend_buffers(),
                ready => return ready,
            }
            if ending.as_mut().poll(context).is_ready() {
                return Poll::Ready(Read::Closed);
            }
            self.timer.poll(deadline, context).map(|()| Read::TimedOut)
        })
        .await
    }

    /// There must be room.
    #[inline]
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Read> {
        debug_assert!(self.has_room());
        let mut space = ReadBuf::new(&mut self.buffers.get_or_insert_with(spare_buffers).read[self.end..]);
        match Pin::new(&mut self.stream).poll_read(context, &mut space) {
            Poll::Ready(Ok(())) if !space.filled().is_empty() => {
                self.end += space.filled().len();
                Poll::Ready(Read::Bytes)
            }
            Poll::Ready(_) => Poll::Ready(Read::Closed),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Buffers with nothing in them.
#[inline]
fn spare_buffers() -> Box<Buffers> {
    let spare = SPARE.with(|spare| {
        let mut buffers = spare.take()?;
        spare.set(buffers.before.take());
        Some(buffers)
    });
    spare.unwrap_or_else(|| Buffers::new(BUFFER_BYTES))
}

/// Keeps buffers with nothing in them for the next connection. Those that had to grow are not kept.
#[inline]
fn lend(mut buffers: Box<Buffers>) {
    if buffers.read.len() != BUFFER_BYTES || buffers.head.capacity() > BUFFER_BYTES {
        return;
    }
    SPARE.with(|spare| {
        let before = spare.take();
        let count_before = before.as_ref().map_or(0, |before| before.count_before + 1);
        if count_before == SPARE_MAX {
            return spare.set(before);
        }
        buffers.head.clear();
        (buffers.before, buffers.count_before) = (before, count_before);
        spare.set(Some(buffers));
    });
}

/// Ready when the process shuts down; never when nobody can say so any more.
pub(super) async fn ended(shutdown: &mut ShutdownWatch) {
    loop {
        if *shutdown.borrow_and_update() {
            return;
        }
        if shutdown.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// Bytes came; they are unread now.
    Bytes,
    /// The client closed its side, or the connection broke.
    Closed,
    TimedOut,
}

/// Bytes of a body in memory, in order.
#[derive(Clone, Copy, Debug)]
pub enum Slices<'a> {
    /// In one piece.
    One(&'a [u8]),
    /// In several.
    Many(&'a [Bytes]),
}

impl<'a> Slices<'a> {
    /// No byte.
    pub const NONE: Slices<'static> = Slices::One(&[]);

    #[inline]
    fn len(self) -> usize {
        match self {
            Slices::One(_) => 1,
            Slices::Many(segments) => segments.len(),
        }
    }

    fn get(self, index: usize) -> Option<&'a [u8]> {
        match self {
            Slices::One(slice) => (index == 0).then_some(slice),
            Slices::Many(segments) => segments.get(index).map(|segment| &segment[..]),
        }
    }

    /// All of them, if they are one piece at the most.
    #[inline]
    fn only(self) -> Option<&'a [u8]> {
        match self {
            Slices::One(slice) => Some(slice),
            Slices::Many([]) => Some(&[]),
            Slices::Many([segment]) => Some(segment),
            Slices::Many(_) => None,
        }
    }
}

/// How far sending has come in the head, the segments and the tail, counted in this order.
struct Cursor {
    index: usize,
    offset: usize,
}

impl Cursor {
    fn slice<'a>(index: usize, head: &'a [u8], segments: Slices<'a>, tail: &'a [u8]) -> Option<&'a [u8]> {
        match index {
            0 => Some(head),
            _ if index <= segments.len() => segments.get(index - 1),
            _ if index == segments.len() + 1 => Some(tail),
            _ => None,
        }
    }

    /// The next slices, how many, and whether nothing lies behind them.
    #[inline]
    fn gather<'a>(
        &self,
        head: &'a [u8],
        segments: Slices<'a>,
        tail: &'a [u8],
        slices: &mut [IoSlice<'a>; SLICES_MAX],
    ) -> (usize, bool) {
        let (mut index, mut offset, mut count) = (self.index, self.offset, 0);
        while let Some(slice) = Cursor::slice(index, head, segments, tail) {
            if offset < slice.len() {
                if count == SLICES_MAX {
                    return (count, false);
                }
                slices[count] = IoSlice::new(&slice[offset..]);
                count += 1;
            }
            (index, offset) = (index + 1, 0);
        }
        (count, true)
    }

    fn advance(&mut self, mut written: usize, head: &[u8], segments: Slices<'_>, tail: &[u8]) {
        while let Some(slice) = Cursor::slice(self.index, head, segments, tail) {
            let left = slice.len() - self.offset;
            if written < left {
                self.offset += written;
                return;
            }
            written -= left;
            (self.index, self.offset) = (self.index + 1, 0);
        }
    }
}

/// How fast a client takes one answer. Only the time during which we wait for the client counts.
#[derive(Debug, Default)]
pub struct Pace {
    /// Bytes that the client, or its operating system, took.
    pub bytes: u64,
    blocked: Duration,
    blocked_since: Option<Instant>,
}

impl Pace {
    #[inline]
    pub(super) fn progress(&mut self, bytes: u64) {
        self.bytes += bytes;
        if let Some(since) = self.blocked_since.take() {
            self.blocked += since.elapsed();
        }
    }

    /// Ready when the client has made us wait for too long.
    pub(super) fn poll_blocked(
        &mut self,
        timer: &mut Timer,
        limits: &Limits,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let since = *self.blocked_since.get_or_insert_with(Instant::now);
        let mut patience = limits.send_stall;
        if let Some(earned_seconds) = self.bytes.checked_div(limits.body_min_rate) {
            // A day is for ever; the sum must not overflow.
            let earned = Duration::from_secs(earned_seconds.min(86_400));
            patience = patience.min((RATE_GRACE + earned).saturating_sub(self.blocked));
        }
        timer.poll(since + patience, context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// The one timer of a connection. It may be armed earlier than asked and is then armed again; so a deadline that moves on
/// with every request costs nothing.
#[derive(Default)]
pub(super) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whom the next tick wakes, while the timer ticks.
    ticking: Option<Waker>,
}

impl Timer {
    /// Ready at most once for each `tick` that passes. Ticks go on from one wait to the next, so a wait that ends before the
    /// next one costs neither a look at the clock nor at the timer.
    #[inline]
    fn poll_tick(&mut self, tick: Duration, context: &mut Context<'_>) -> Poll<()> {
        match (&self.sleep, &self.ticking) {
            // Not `will_wake`: it also compares tables of functions, of which there may be copies.
            (Some(sleep), Some(waker)) if !sleep.is_elapsed() && waker.data() == context.waker().data() => {
                Poll::Pending
            }
            _ => self.arm_tick(tick, context),
        }
    }

    #[cold]
    fn arm_tick(&mut self, tick: Duration, context: &mut Context<'_>) -> Poll<()> {
        let deadline = Instant::now() + tick;
        let ticked = self.ticking.take().is_some() && self.sleep.as_ref().is_some_and(|sleep| sleep.is_elapsed());
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        sleep.as_mut().reset(deadline);
        if sleep.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        self.ticking = Some(context.waker().clone());
        if ticked { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(super) fn poll(&mut self, deadline: Instant, context: &mut Context<'_>) -> Poll<()> {
        self.ticking = None;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if deadline < sleep.deadline() {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(context).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// A connection without a byte for so long is idle.
pub const BUSY_WAIT: Duration = Duration::from_secs(1);
/// [`BUSY_WAIT`] is counted in so many ticks.
const BUSY_TICKS: u32 = 4;
/// A client has so long before its average rate counts.
pub const RATE_GRACE: Duration = Duration::from_secs(30);
/// Longer than any connection lasts.
const FOREVER: Duration = Duration::from_secs(365 * 86_400);
/// A head may not grow beyond this even without a limit.
const HEADER_BYTES_MAX: usize = 1 << 20;
/// One read of a busy connection; a plain request has a few hundred bytes. Of 64 connections, buffers of 4, 8, 16 and 64 KiB
/// (pingora's) all take 5.1 to 5.2 µs for a hit; of 2,000, 64 KiB take 8.4 µs where 8 KiB take 7.4 (benches/README.md).
const BUFFER_BYTES: usize = 8 * 1024;
/// Buffers that a thread keeps for its connections: half a MiB. Only those that are being served at the moment have buffers, but
/// those whose answers another node has are served together.
const SPARE_MAX: usize = 64;
/// Slices of one write; a body of 1 MiB has four segments.
const SLICES_MAX: usize = 16;
/// How long a closed connection is still listened to.
const LINGER: Duration = Duration::from_secs(1);
/// How much of it is taken.
const LINGER_BYTES_MAX: usize = 256 * 1024;
