//! One request of HTTP/2 and its answer: both directions of a stream, each wait with its limit.

use std::future::{Future, poll_fn};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use tokio::time::timeout;

use crate::edge::connection::Gone;

/// Why an answer could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The client gave the stream up, or the connection broke.
    #[error("the client left")]
    Gone,
    /// The client opened no window for as long as it may stall.
    #[error("the client takes the answer too slowly")]
    Stalled,
}

/// A stream that a client has opened.
pub struct Exchange {
    body: RecvStream,
    respond: SendResponse<Bytes>,
    /// From the head of the answer on.
    sending: Option<SendStream<Bytes>>,
    ended: bool,
    /// Bytes of the answer's body so far.
    pub bytes_sent: u64,
}

impl Exchange {
    /// A stream whose request head has been read.
    pub fn new(body: RecvStream, respond: SendResponse<Bytes>) -> Self {
        Exchange { body, respond, sending: None, ended: false, bytes_sent: 0 }
    }

    /// Whether the client has ended its side.
    pub fn is_body_done(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Sends an interim answer (1xx, RFC 9113 section 8.1), which must not name fields of the connection. Nothing limits
    /// how many the client has not taken yet: whoever calls this does.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn send_interim(&mut self, head: http::Response<()>) -> Result<(), NotSent> {
        // The frame layer would queue it for a stream that has been given up, too.
        let gone = poll_fn(|context| Poll::Ready(self.poll_gone(context).is_ready())).await;
        if gone || self.sending.is_some() {
            return Err(NotSent::Gone);
        }
        self.respond.send_informational(head).map_err(|_| NotSent::Gone)
    }

    /// Sends the head of the answer; `end`: there is nothing behind it.
    ///
    /// # Errors
    /// The client is gone.
    pub fn send_head(&mut self, head: http::Response<()>, end: bool) -> Result<(), NotSent> {
        let sending = self.respond.send_response(head, end).map_err(|_| NotSent::Gone)?;
        self.sending = Some(sending);
        self.ended = end;
        Ok(())
    }

    /// Sends the rest of the answer if the client's window has room for all of it, in which case nothing remains to wait
    /// for; says whether it had.
    ///
    /// # Errors
    /// The client is gone.
    pub fn send_at_once(&mut self, segments: &[Bytes]) -> Result<bool, NotSent> {
        let Some(sending) = &mut self.sending else { return Err(NotSent::Gone) };
        let bytes = segments.iter().map(Bytes::len).sum();
        sending.reserve_capacity(bytes);
        if sending.capacity() < bytes {
            return Ok(false);
        }
        for (index, segment) in segments.iter().enumerate() {
            let end = index + 1 == segments.len();
            sending.send_data(segment.clone(), end).map_err(|_| NotSent::Gone)?;
        }
        self.ended = true;
        self.bytes_sent += bytes as u64;
        Ok(true)
    }

    /// Sends a part of the body at the client's pace.
    ///
    /// # Errors
    /// The client is gone, or its window has had no room for `stall`; zero is no limit.
    pub async fn send(&mut self, mut rest: Bytes, end: bool, stall: Duration) -> Result<(), NotSent> {
        let Some(sending) = self.sending.as_mut().filter(|_| !self.ended) else { return Err(NotSent::Gone) };
        while !rest.is_empty() {
            sending.reserve_capacity(rest.len());
            let room = poll_fn(|context| sending.poll_capacity(context));
            let room = match stall.is_zero() {
                true => room.await,
                false => timeout(stall, room).await.map_err(|_| NotSent::Stalled)?,
            };
            let Some(Ok(room)) = room else { return Err(NotSent::Gone) };
            let piece = rest.split_to(rest.len().min(room));
            if !piece.is_empty() {
                self.ended = end && rest.is_empty();
                self.bytes_sent += piece.len() as u64;
                sending.send_data(piece, self.ended).map_err(|_| NotSent::Gone)?;
            }
        }
        if end { self.finish() } else { Ok(()) }
    }

    /// Ends the answer properly. Without a head there is nothing to end: the stream is reset when it is dropped.
    ///
    /// # Errors
    /// The client is gone.
    pub fn finish(&mut self) -> Result<(), NotSent> {
        match &mut self.sending {
            Some(sending) if !self.ended => {
                self.ended = true;
                sending.send_data(Bytes::new(), true).map_err(|_| NotSent::Gone)
            }
            _ => Ok(()),
        }
    }

    /// Ends the answer with trailer fields.
    ///
    /// # Errors
    /// The client is gone.
    pub fn send_trailers(&mut self, trailers: http::HeaderMap) -> Result<(), NotSent> {
        let Some(sending) = self.sending.as_mut().filter(|_| !self.ended) else { return Err(NotSent::Gone) };
        self.ended = true;
        sending.send_trailers(trailers).map_err(|_| NotSent::Gone)
    }

    /// Breaks the answer off, so that the client can tell it from a whole one.
    pub fn reset(&mut self, reason: Reason) {
        if !self.ended {
            self.respond.send_reset(reason);
            self.ended = true;
        }
    }

    /// The next part of the request's body; `None` at its end.
    ///
    /// # Errors
    /// The client gave the stream up, or the connection broke.
    pub async fn read(&mut self) -> Result<Option<Bytes>, h2::Error> {
        let Some(data) = self.body.data().await.transpose()? else { return Ok(None) };
        // Fails only for more than was received.
        let _ = self.body.flow_control().release_capacity(data.len());
        Ok(Some(data))
    }

    /// Ready when the client gives up this stream.
    pub fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.sending {
            Some(sending) => sending.poll_reset(context),
            None => self.respond.poll_reset(context),
        };
        reset.map(drop)
    }

    /// Waits for `future`, and for the client's giving up this stream.
    ///
    /// # Errors
    /// The client gave it up first.
    pub async fn wait_for<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Gone> {
        tokio::select! {
            biased;
            value = future => Ok(value),
            () = poll_fn(|context| self.poll_gone(context)) => Err(Gone),
        }
    }
}
