//! A Go peer as a source: one HTTP request per question, the whole value at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;

use crate::clock::Clock;
use crate::fields::Fields;
use crate::fleet::PurgeFailure;
use crate::peer::dial::PeerAddress;
use crate::peer::go::{Dialect, GoValue, go_can_carry, question_path};
use crate::peer::{Peer, PeerState, PeerStatus};
use crate::source::{Ask, EntryId, FetchError, Fetched, Method, ReadyBody, Source};

/// Settings for Go peers.
#[derive(Clone, Debug)]
pub struct GoSettings {
    /// Which library they use.
    pub dialect: Dialect,
    /// Where their pool is mounted; begins and ends with a slash.
    pub base_path: String,
    /// To a connected stream.
    pub connect_timeout: Duration,
    /// For the whole question. A Go peer gives no sign of life, so this is all there is.
    pub deadline: Duration,
    /// Longest value to take; the protocol cannot stream, so this much is held in memory.
    pub value_bytes_max: u64,
}

impl GoSettings {
    /// The defaults for a dialect.
    pub fn new(dialect: Dialect) -> Self {
        GoSettings {
            dialect,
            base_path: "/_groupcache/".to_owned(),
            connect_timeout: Duration::from_millis(250),
            deadline: Duration::from_secs(20),
            value_bytes_max: 32 * 1024 * 1024,
        }
    }
}

/// A peer that runs a Go groupcache.
pub struct GoPeer {
    address: PeerAddress,
    settings: GoSettings,
    connector: Arc<Connector>,
    clock: Arc<dyn Clock>,
    requests: AtomicU64,
    errors: AtomicU64,
    /// Why the last question failed, if it did.
    failure: Mutex<Option<String>>,
}

impl GoPeer {
    /// `connector` may be shared by all Go peers; see [`http_connector`].
    pub fn new(address: PeerAddress, settings: GoSettings, connector: Arc<Connector>, clock: Arc<dyn Clock>) -> Self {
        let (requests, errors) = (AtomicU64::new(0), AtomicU64::new(0));
        GoPeer { address, settings, connector, clock, requests, errors, failure: Mutex::new(None) }
    }

    async fn ask(&self, ask: &Ask, path: &str) -> Result<Fetched, String> {
        let mut peer = self.address.resolve().await?;
        peer.options.connection_timeout = Some(self.settings.connect_timeout);
        peer.options.total_connection_timeout = Some(self.settings.connect_timeout.saturating_mul(2));
        peer.options.idle_timeout = Some(IDLE_TIMEOUT);
        loop {
            let (mut session, reused) =
                self.connector.get_http_session(&peer).await.map_err(|error| said("cannot connect", &error))?;
            let head = self.ask_head(&mut session, "GET", path).await;
            match head {
                Ok(200) => {
                    let body = self.read_body(&mut session, self.settings.value_bytes_max + ENVELOPE_BYTES_MAX).await?;
                    self.connector.release_http_session(session, &peer, Some(IDLE_TIMEOUT)).await;
                    return self.fetched(ask, body);
                }
                Ok(status) => {
                    // The text of an error is short or not worth the connection.
                    if self.read_body(&mut session, ERROR_BYTES_MAX).await.is_ok() {
                        self.connector.release_http_session(session, &peer, Some(IDLE_TIMEOUT)).await;
                    }
                    return match status {
                        404 if self.settings.dialect.is_fork() => Ok(not_found()),
                        status => Err(format!("the Go peer answered {status}")),
                    };
                }
                // The peer closed an idle connection just then; a new one tells whether it is there.
                Err(_) if reused => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the peer forget a key, which only the forks' protocol can say.
    ///
    /// # Errors
    /// Whether it has forgotten is not known.
    pub(super) async fn delete(&self, group: &str, key: &[u8]) -> Result<(), PurgeFailure> {
        let path = question_path(&self.settings.base_path, group, key);
        let Some(path) = path.filter(|_| self.settings.dialect.is_fork()) else { return Err(PurgeFailure::Cannot) };
        let deleted = async {
            let mut peer = self.address.resolve().await?;
            peer.options.connection_timeout = Some(self.settings.connect_timeout);
            peer.options.total_connection_timeout = Some(self.settings.connect_timeout.saturating_mul(2));
            loop {
                let (mut session, reused) =
                    self.connector.get_http_session(&peer).await.map_err(|error| said("cannot connect", &error))?;
                match self.ask_head(&mut session, "DELETE", &path).await {
                    Ok(status) => {
                        if self.read_body(&mut session, ERROR_BYTES_MAX).await.is_ok() {
                            self.connector.release_http_session(session, &peer, Some(IDLE_TIMEOUT)).await;
                        }
                        return match status {
                            // A group that it does not know: it has nothing of it.
                            200..=299 | 404 => Ok(()),
                            status => Err(format!("the Go peer answered {status}")),
                        };
                    }
                    Err(_) if reused => {}
                    Err(error) => return Err(error),
                }
            }
        };
        let deleted = tokio::time::timeout(self.settings.deadline, deleted).await;
        let deleted = deleted.unwrap_or_else(|_| Err("the Go peer did not answer in time".to_owned()));
        deleted.map_err(|reason| FetchError::unreachable(reason).into())
    }

    async fn ask_head(&self, session: &mut HttpSession, method: &str, path: &str) -> Result<u16, String> {
        let failed = |error: Box<pingora::Error>| said("the Go peer did not answer", &error);
        let mut request = RequestHeader::build(method, path.as_bytes(), None).map_err(failed)?;
        request.insert_header("Host", &self.address.authority).map_err(failed)?;
        session.set_read_timeout(Some(self.settings.deadline));
        session.set_write_timeout(Some(self.settings.deadline));
        session.write_request_header(Box::new(request)).await.map_err(failed)?;
        session.finish_request_body().await.map_err(failed)?;
        for _ in 0..INTERIM_ANSWERS_MAX {
            session.read_response_header().await.map_err(failed)?;
            match session.response_header() {
                Some(head) if !head.status.is_informational() => {
                    // A value that only the end of the connection ends may have been cut.
                    let framed =
                        head.headers.contains_key("content-length") || head.headers.contains_key("transfer-encoding");
                    return if framed {
                        Ok(head.status.as_u16())
                    } else {
                        Err("the Go peer's answer has no end".to_owned())
                    };
                }
                _ => {}
            }
        }
        Err("the Go peer sent only interim answers".to_owned())
    }

    async fn read_body(&self, session: &mut HttpSession, bytes_max: u64) -> Result<Bytes, String> {
        let mut body = BytesMut::new();
        while let Some(chunk) =
            session.read_response_body().await.map_err(|error| said("the Go peer's answer broke off", &error))?
        {
            if (body.len() + chunk.len()) as u64 > bytes_max {
                return Err("the Go peer's value is too long".to_owned());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    fn fetched(&self, ask: &Ask, body: Bytes) -> Result<Fetched, String> {
        let GoValue { value, fields, hop } = GoValue::decode(body, self.clock.now())?;
        let content_length = Some(value.len() as u64);
        let body = match ask.method {
            Method::Get => ReadyBody::new([value]),
            Method::Head => ReadyBody::default(),
        };
        Ok(Fetched { status: 200, fields, content_length, close_delimited: false, hop, body: Box::new(body) })
    }
}

#[async_trait]
impl Source for GoPeer {
    /// A Go peer's failure is never the answer: it is worth as much as no peer.
    async fn fetch(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        let personal = ["authorization", "cookie"].iter().any(|name| ask.fields.contains(name));
        let path = question_path(&self.settings.base_path, &ask.group, &ask.key);
        let Some(path) = path.filter(|_| go_can_carry(&ask.key) && ask.host.is_none() && !personal) else {
            return Err(FetchError::unreachable("Go's protocol cannot carry this question"));
        };
        self.requests.fetch_add(1, Ordering::Relaxed);
        let answer = tokio::time::timeout(self.settings.deadline, self.ask(ask, &path)).await;
        let answer = answer.unwrap_or_else(|_| Err("the Go peer did not answer in time".to_owned()));
        *self.failure.lock() = answer.as_ref().err().cloned();
        answer.map_err(|reason| {
            self.errors.fetch_add(1, Ordering::Relaxed);
            FetchError::unreachable(reason)
        })
    }
}

#[async_trait]
impl Peer for GoPeer {
    /// Go's protocol has no peek.
    async fn peek(&self, _ask: &Ask, _have: EntryId) -> Result<Option<Fetched>, FetchError> {
        Ok(None)
    }

    fn status(&self) -> PeerStatus {
        PeerStatus {
            state: self.failure.lock().clone().map_or(PeerState::Up, PeerState::Down),
            protocol: "go",
            version: None,
            ring_id: None,
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            buffered_bytes: 0,
            incarnation: None,
            hit_time: None,
        }
    }
}

/// A connector for Go peers; the parameters are those of [`crate::peer::dial::connector`].
///
/// # Panics
/// In pingora, when a file cannot be read or the key does not fit; the configuration checks them before.
pub fn http_connector(ca: Option<String>, cert_and_key: Option<(String, String)>) -> Arc<Connector> {
    let options =
        ConnectorOptions { ca_file: ca, cert_key_file: cert_and_key, ..ConnectorOptions::new(POOL_CONNECTIONS) };
    Arc::new(Connector::new(Some(options)))
}

/// The forks' "not found" is an answer. How long it holds is for the group's rules to say.
fn not_found() -> Fetched {
    let body = Box::new(ReadyBody::default());
    Fetched { status: 404, fields: Fields::empty(), content_length: Some(0), close_delimited: false, hop: None, body }
}

fn said(what: &str, error: &pingora::Error) -> String {
    format!("{what}: {}", error.etype().as_str())
}

const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// What a `GetResponse` may have beside its value.
const ENVELOPE_BYTES_MAX: u64 = 64 * 1024;
const ERROR_BYTES_MAX: u64 = 4 * 1024;
const INTERIM_ANSWERS_MAX: usize = 8;
const POOL_CONNECTIONS: usize = 1024;
