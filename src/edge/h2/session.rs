//! A stream of HTTP/2 as the pass-through proxy wants to see it.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::Stream;
use h2::Reason;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session;
use pingora::protocols::http::v1::client::http_req_header_to_wire;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, Result};
use tokio::time::timeout;

use super::exchange::{Exchange, NotSent};

/// One request that passes.
pub struct PassingSession {
    exchange: Exchange,
    request: RequestHeader,
    digest: Arc<Digest>,
    /// `Date` for an answer that has none.
    date: HeaderValue,
    written: Option<Box<ResponseHeader>>,
    bytes_read: usize,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    drain_timeout: Option<Duration>,
    sent_so_far: Option<Kept>,
}

/// The beginning of a request's body, for a second attempt.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

impl PassingSession {
    /// A session of a request that has been checked.
    pub fn new(exchange: Exchange, request: RequestHeader, digest: Arc<Digest>, date: &str) -> Self {
        PassingSession {
            exchange,
            request,
            digest,
            date: HeaderValue::from_str(date).unwrap_or_else(|_| HeaderValue::from_static("")),
            written: None,
            bytes_read: 0,
            read_timeout: None,
            write_timeout: None,
            drain_timeout: None,
            sent_so_far: None,
        }
    }

    async fn write_head(&mut self, mut head: Box<ResponseHeader>, end: bool) -> Result<()> {
        // There is no 101 in HTTP/2 (RFC 9113 section 8.6).
        if head.status == StatusCode::SWITCHING_PROTOCOLS || self.written.is_some() {
            return Ok(());
        }
        for name in [header::TRANSFER_ENCODING, header::CONNECTION, header::UPGRADE] {
            head.remove_header(&name);
        }
        for name in ["keep-alive", "proxy-connection"] {
            head.remove_header(&HeaderName::from_static(name));
        }
        if head.status.is_informational() {
            let interim = http::Response::from_parts(head.as_owned_parts(), ());
            return self.exchange.send_interim(interim).await.map_err(downstream);
        }
        // Who forwards an answer without a date adds it (RFC 9110 section 6.6.1).
        if !head.headers.contains_key(header::DATE) {
            head.insert_header(header::DATE, self.date.clone())?;
        }
        let response = http::Response::from_parts(head.as_owned_parts(), ());
        self.exchange.send_head(response, end).map_err(downstream)?;
        self.written = Some(head);
        Ok(())
    }
}

fn downstream(error: NotSent) -> Box<Error> {
    let kind = match error {
        NotSent::Gone => ErrorType::WriteError,
        NotSent::Stalled => ErrorType::WriteTimedout,
    };
    Error::explain(kind, "the client of an HTTP/2 stream").into_down()
}

#[async_trait]
impl Session for PassingSession {
    fn req_header(&self) -> &RequestHeader {
        &self.request
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.request
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        let read = match self.read_timeout {
            Some(limit) => timeout(limit, self.exchange.read())
                .await
                .map_err(|_| Error::explain(ErrorType::ReadTimedout, "the body of an HTTP/2 request").into_down())?,
            None => self.exchange.read().await,
        };
        let data = read.map_err(|error| {
            Error::because(ErrorType::ReadError, "the body of an HTTP/2 request", error).into_down()
        })?;
        if let Some(data) = &data {
            self.bytes_read += data.len();
            if let Some(kept) = &mut self.sent_so_far {
                kept.truncated |= kept.bytes.len() + data.len() > RETRY_BYTES_MAX;
                if kept.truncated {
                    kept.bytes = Vec::new();
                } else {
                    kept.bytes.extend_from_slice(data);
                }
            }
        }
        Ok(data)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        let limit = self.drain_timeout;
        let drain = async {
            while !self.is_body_done() && self.read_body_bytes().await?.is_some() {}
            Ok(())
        };
        match limit {
            Some(limit) => timeout(limit, drain)
                .await
                .map_err(|_| Error::explain(ErrorType::ReadTimedout, "draining an HTTP/2 request").into_down())?,
            None => drain.await,
        }
    }

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.write_head(head, end).await
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, end: bool) -> Result<()> {
        self.write_head(Box::new(head.clone()), end).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        let stall = self.write_timeout.unwrap_or_default();
        self.exchange.send(data, end, stall).await.map_err(downstream)
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.exchange.send_trailers(trailers).map_err(downstream)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut ends = false;
        for task in tasks {
            match task {
                HttpTask::Header(head, end) => {
                    self.write_head(head, end).await?;
                    ends |= end;
                }
                HttpTask::Body(data, end) => {
                    if let Some(data) = data.filter(|data| !data.is_empty()) {
                        self.write_body(data, end).await?;
                    }
                    ends |= end;
                }
                HttpTask::Trailer(trailers) => {
                    if let Some(trailers) = trailers {
                        self.write_trailers(*trailers).await?;
                    }
                    ends = true;
                }
                HttpTask::Done => ends = true,
                HttpTask::UpgradedBody(..) => {
                    return Error::e_explain(ErrorType::InternalError, "an upgrade within HTTP/2");
                }
                HttpTask::Failed(error) => return Err(error),
            }
        }
        if ends {
            self.exchange.finish().map_err(downstream)?;
        }
        Ok(ends)
    }

    fn set_read_timeout(&mut self, limit: Option<Duration>) {
        self.read_timeout = limit;
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.read_timeout
    }

    fn set_write_timeout(&mut self, limit: Option<Duration>) {
        self.write_timeout = limit;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    fn set_total_drain_timeout(&mut self, limit: Option<Duration>) {
        self.drain_timeout = limit;
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.drain_timeout
    }

    fn request_summary(&self) -> String {
        format!("{} {}", self.request.method, String::from_utf8_lossy(self.request.raw_path()))
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.written.as_deref()
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.exchange.reset(Reason::INTERNAL_ERROR);
    }

    fn is_body_done(&mut self) -> bool {
        self.exchange.is_body_done() || self.is_body_empty()
    }

    async fn finish(&mut self) -> Result<()> {
        self.exchange.finish().map_err(downstream)
    }

    fn is_body_empty(&mut self) -> bool {
        let length = self.request.headers.get(header::CONTENT_LENGTH);
        self.bytes_read == 0 && (self.exchange.is_body_done() || length.is_some_and(|length| length == "0"))
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if !no_body_expected && !self.is_body_done() {
            return self.read_body_bytes().await;
        }
        poll_fn(|context| self.exchange.poll_gone(context)).await;
        Error::e_explain(ErrorType::ConnectionClosed, "the client gave up its HTTP/2 stream")
            .map_err(|error: Box<Error>| error.into_down())
    }

    fn body_bytes_sent(&self) -> usize {
        self.exchange.bytes_sent as usize
    }

    fn body_bytes_read(&self) -> usize {
        self.bytes_read
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Arc::get_mut(&mut self.digest)
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.peer_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.local_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        http_req_header_to_wire(&self.request).map(|head| head.freeze()).unwrap_or_default()
    }

    fn enable_retry_buffering(&mut self) {
        self.sent_so_far.get_or_insert_default();
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.sent_so_far.as_ref().is_some_and(|kept| kept.truncated)
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        let kept = self.sent_so_far.as_ref().filter(|kept| !kept.truncated && !kept.bytes.is_empty())?;
        Some(Bytes::copy_from_slice(&kept.bytes))
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}

/// As much of a body as pingora keeps for a second attempt.
const RETRY_BYTES_MAX: usize = 64 * 1024;
