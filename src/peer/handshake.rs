//! How two proxies become peers: an HTTP/1.1 upgrade, then both prove that they know the fleet's secret.
//!
//! | step | asker                          | owner                                          |
//! |------|--------------------------------|------------------------------------------------|
//! | 1    | `GET /_groupcache/`, `Upgrade` | `101`                                          |
//! | 2    | `Hello`: versions, nonce       | `Challenge`: versions, nonce                   |
//! | 3    | `Proof`                        | `Proof` and `Identity`, or one uniform refusal |
//! | 4    | `Identity`                     |                                                |
//!
//! A proof is an HMAC-SHA-256 with the secret over the role, the versions of both and the nonces of both. The role is in it,
//! so that a proof cannot be reflected; both nonces are in it, so that it cannot be replayed; the versions are in it, so that
//! nobody on the way talks two new peers into an old version. No clock takes part. The asker proves first: a stranger who
//! connects gets nothing to guess the secret with. Whoever poses as the owner gets the asker's proof, which is worth nothing
//! towards anybody else's nonce. What travels later is not protected: `https://` peers are for networks with enemies in them.
//!
//! The first secret of the list proves, all of them are accepted. To rotate: append the new one everywhere, then move it to the
//! front everywhere, then remove the old one. An empty list is a fleet without a secret (loopback only); it fits no other.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pingora::protocols::Stream;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fields::Fields;
use crate::peer::protocol::{
    Envelope, FRAME_BYTES_MAX, FRAME_BYTES_MAX_UNPROVEN, FrameReader, GoodbyeReason, Hello, Identity, Message,
    NONCE_BYTES, ProtocolError, Versions, encode,
};

/// The secrets of a fleet. Never shown, not even by `Debug`.
#[derive(Clone)]
pub struct Secrets {
    first: hmac::Key,
    others: Vec<hmac::Key>,
}

impl Secrets {
    /// The first proves, all are accepted; none at all is the secret of a fleet that has none.
    pub fn new<S: AsRef<[u8]>>(secrets: impl IntoIterator<Item = S>) -> Self {
        let mut keys = secrets.into_iter().map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref()));
        let first = keys.next().unwrap_or_else(|| hmac::Key::new(hmac::HMAC_SHA256, b""));
        Secrets { first, others: keys.collect() }
    }

    fn prove(&self, role: Role, transcript: &Transcript) -> Bytes {
        Bytes::copy_from_slice(hmac::sign(&self.first, &transcript.bytes(role)).as_ref())
    }

    /// Tries all secrets, in constant time for each.
    fn accept(&self, role: Role, transcript: &Transcript, proof: &[u8]) -> bool {
        let said = transcript.bytes(role);
        std::iter::once(&self.first)
            .chain(&self.others)
            .fold(false, |accepted, key| hmac::verify(key, &said, proof).is_ok() | accepted)
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Secrets({})", 1 + self.others.len())
    }
}

/// Who proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Asker = 1,
    Owner = 2,
}

/// What both have said before they prove.
#[derive(Clone, Copy, Debug)]
struct Transcript {
    asker: Hello,
    owner: Hello,
}

impl Transcript {
    /// What is signed: every part has a fixed length, so two transcripts never give the same bytes.
    fn bytes(&self, role: Role) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(b"groupcache/1 proof\0");
        bytes.push(role as u8);
        for hello in [&self.asker, &self.owner] {
            bytes.extend_from_slice(&hello.versions.min.to_be_bytes());
            bytes.extend_from_slice(&hello.versions.max.to_be_bytes());
            bytes.extend_from_slice(&hello.nonce);
        }
        bytes
    }
}

/// Both ends are proven.
#[derive(Debug)]
pub(super) struct Proven {
    /// What the other end says about itself.
    pub(super) remote: Identity,
    /// Holds what has already arrived of the first frames.
    pub(super) reader: FrameReader,
}

/// Why the two did not become peers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum HandshakeError {
    #[error("the connection failed during the handshake ({0})")]
    Connection(std::io::ErrorKind),
    #[error("the handshake took too long")]
    Timeout,
    #[error("{0} during the handshake")]
    Protocol(#[from] ProtocolError),
    #[error("unexpected message during the handshake")]
    Unexpected,
    #[error("no common protocol version: this node speaks {ours}, the peer {theirs}")]
    Version { ours: Versions, theirs: Versions },
    #[error("the fleet secret differs")]
    Secret,
    #[error("the upgrade was answered with status {status}")]
    Upgrade { status: u16, like_go: bool },
    #[error("the answer to the upgrade is not HTTP/1.1")]
    NotHttp,
    #[error("the peer is this node itself")]
    Myself,
}

impl HandshakeError {
    /// The word for counters.
    pub fn word(&self) -> &'static str {
        match self {
            HandshakeError::Connection(_) => "handshake_connection",
            HandshakeError::Timeout => "handshake_timeout",
            HandshakeError::Protocol(ProtocolError::Oversize) => "handshake_oversize",
            HandshakeError::Protocol(ProtocolError::Malformed(_)) => "handshake_malformed",
            HandshakeError::Unexpected => "handshake_unexpected",
            HandshakeError::Version { .. } => "handshake_version",
            HandshakeError::Secret => "handshake_secret",
            HandshakeError::Upgrade { .. } => "handshake_upgrade",
            HandshakeError::NotHttp => "handshake_not_http",
            HandshakeError::Myself => "handshake_myself",
        }
    }

    /// Whether somebody answered and said no, in contrast to nobody answering.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, HandshakeError::Connection(_) | HandshakeError::Timeout)
    }
}

impl From<std::io::Error> for HandshakeError {
    fn from(error: std::io::Error) -> Self {
        HandshakeError::Connection(error.kind())
    }
}

/// Whether a request that arrived is the upgrade: `target` is exactly [`UPGRADE_TARGET`], it has no body, and both fields name
/// the protocol (RFC 9110 section 7.8).
pub fn is_upgrade(method: &str, target: &[u8], fields: &Fields) -> bool {
    let lists = |name, token: &str| {
        fields.get_all(name).any(|value| {
            value.split(|&byte| byte == b',').any(|element| element.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
        })
    };
    method == "GET"
        && target == UPGRADE_TARGET.as_bytes()
        && lists("upgrade", UPGRADE_PROTOCOL)
        && lists("connection", "upgrade")
        && !fields.contains("content-length")
        && !fields.contains("transfer-encoding")
}

/// The asker's side. `authority` is the peer's host and port.
///
/// # Errors
/// See [`HandshakeError`]; the stream is to be dropped then.
pub(super) async fn ask_for_upgrade(
    stream: &mut Stream,
    authority: &str,
    secrets: &Secrets,
    identity: Identity,
    versions: Versions,
    timeout: Duration,
) -> Result<Proven, HandshakeError> {
    let steps = async {
        let request = format!(
            "GET {UPGRADE_TARGET} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE_PROTOCOL}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut reader = FrameReader::new(FRAME_BYTES_MAX_UNPROVEN);
        reader.extend(&read_upgrade_answer(stream).await?);

        let ours = Hello { versions, nonce: nonce()? };
        send(stream, &[Message::Hello(ours)]).await?;
        let Message::Challenge(theirs) = receive(stream, &mut reader).await? else {
            return Err(HandshakeError::Unexpected);
        };
        if versions.common(theirs.versions).is_none() {
            return Err(HandshakeError::Version { ours: versions, theirs: theirs.versions });
        }
        let transcript = Transcript { asker: ours, owner: theirs };
        send(stream, &[Message::Proof(secrets.prove(Role::Asker, &transcript))]).await?;
        match receive(stream, &mut reader).await? {
            Message::Proof(proof) if secrets.accept(Role::Owner, &transcript, &proof) => {}
            Message::Proof(_) | Message::Goodbye { reason: GoodbyeReason::NotProven, .. } => {
                return Err(HandshakeError::Secret);
            }
            _ => return Err(HandshakeError::Unexpected),
        }
        let Message::Identity(remote) = receive(stream, &mut reader).await? else {
            return Err(HandshakeError::Unexpected);
        };
        if remote.incarnation == identity.incarnation {
            return Err(HandshakeError::Myself);
        }
        send(stream, &[Message::Identity(identity)]).await?;
        reader.set_frame_bytes_max(FRAME_BYTES_MAX);
        Ok(Proven { remote, reader })
    };
    tokio::time::timeout(timeout, steps).await.unwrap_or(Err(HandshakeError::Timeout))
}

/// The owner's side, after the request head. Answers the upgrade itself. Whatever is wrong, the other end is told one and the
/// same, but for the versions, which are no secret.
///
/// # Errors
/// See [`HandshakeError`]; the stream is to be dropped then.
pub(super) async fn answer_upgrade(
    stream: &mut Stream,
    surplus: &[u8],
    secrets: &Secrets,
    identity: Identity,
    versions: Versions,
    timeout: Duration,
) -> Result<Proven, HandshakeError> {
    let steps = async {
        stream.write_all(UPGRADE_ANSWER.as_bytes()).await?;
        stream.flush().await?;
        let mut reader = FrameReader::new(FRAME_BYTES_MAX_UNPROVEN);
        reader.extend(surplus);

        let Message::Hello(theirs) = receive(stream, &mut reader).await? else {
            return Err(HandshakeError::Unexpected);
        };
        let ours = Hello { versions, nonce: nonce()? };
        send(stream, &[Message::Challenge(ours)]).await?;
        if versions.common(theirs.versions).is_none() {
            return Err(HandshakeError::Version { ours: versions, theirs: theirs.versions });
        }
        let transcript = Transcript { asker: theirs, owner: ours };
        match receive(stream, &mut reader).await? {
            Message::Proof(proof) if secrets.accept(Role::Asker, &transcript, &proof) => {}
            Message::Proof(_) => return Err(HandshakeError::Secret),
            _ => return Err(HandshakeError::Unexpected),
        }
        send(stream, &[Message::Proof(secrets.prove(Role::Owner, &transcript)), Message::Identity(identity)]).await?;
        let Message::Identity(remote) = receive(stream, &mut reader).await? else {
            return Err(HandshakeError::Unexpected);
        };
        reader.set_frame_bytes_max(FRAME_BYTES_MAX);
        Ok(Proven { remote, reader })
    };
    let result = tokio::time::timeout(timeout, steps).await.unwrap_or(Err(HandshakeError::Timeout));
    if result.is_err() {
        let goodbye = Message::Goodbye { reason: GoodbyeReason::NotProven, text: "".into() };
        // Nobody waits for a stranger to read this.
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, send(stream, &[goodbye])).await;
    }
    result
}

async fn send(stream: &mut Stream, messages: &[Message]) -> std::io::Result<()> {
    let mut out = BytesMut::new();
    for message in messages {
        encode(0, message, &mut out);
    }
    stream.write_all(&out).await?;
    stream.flush().await
}

async fn receive(stream: &mut Stream, reader: &mut FrameReader) -> Result<Message, HandshakeError> {
    loop {
        if let Some(Envelope { request, message }) = reader.next_frame()? {
            return if request == 0 { Ok(message) } else { Err(HandshakeError::Unexpected) };
        }
        if stream.read_buf(reader.buffer(FRAME_BYTES_MAX_UNPROVEN)).await? == 0 {
            return Err(HandshakeError::Connection(std::io::ErrorKind::UnexpectedEof));
        }
    }
}

/// Reads the answer to the upgrade; returns the bytes after its head.
async fn read_upgrade_answer(stream: &mut Stream) -> Result<BytesMut, HandshakeError> {
    let mut buffer = BytesMut::with_capacity(1024);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(HandshakeError::Connection(std::io::ErrorKind::UnexpectedEof));
        }
        let Some(answer) = parse_upgrade_answer(&buffer)? else { continue };
        if answer.is_upgrade {
            return Ok(buffer.split_off(answer.head_bytes));
        }
        let like_go = match answer.go_body {
            Some(body) => {
                while buffer.len() < answer.head_bytes + body.len() && stream.read_buf(&mut buffer).await? > 0 {}
                buffer[answer.head_bytes..] == *body
            }
            None => false,
        };
        return Err(HandshakeError::Upgrade { status: answer.status, like_go });
    }
}

struct UpgradeAnswer {
    status: u16,
    head_bytes: usize,
    is_upgrade: bool,
    /// The body that a Go peer's answer with this head must have.
    go_body: Option<&'static [u8]>,
}

fn parse_upgrade_answer(bytes: &[u8]) -> Result<Option<UpgradeAnswer>, HandshakeError> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut answer = httparse::Response::new(&mut fields);
    let head_bytes = match answer.parse(bytes) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if bytes.len() < ANSWER_BYTES_MAX => return Ok(None),
        _ => return Err(HandshakeError::NotHttp),
    };
    let has = |name: &str, value: &str| {
        answer
            .headers
            .iter()
            .any(|field| field.name.eq_ignore_ascii_case(name) && field.value.eq_ignore_ascii_case(value.as_bytes()))
    };
    let status = answer.code.unwrap_or_default();
    let go_body = match status {
        400 => Some(GO_BAD_REQUEST),
        404 => Some(GO_NOT_FOUND),
        _ => None,
    };
    let go_body = go_body.filter(|body| {
        has("x-content-type-options", "nosniff")
            && has("content-type", "text/plain; charset=utf-8")
            && has("content-length", &body.len().to_string())
    });
    let is_upgrade = status == 101 && has("upgrade", UPGRADE_PROTOCOL);
    Ok(Some(UpgradeAnswer { status, head_bytes, is_upgrade, go_body }))
}

fn nonce() -> Result<[u8; NONCE_BYTES], HandshakeError> {
    let mut nonce = [0; NONCE_BYTES];
    // Without randomness there is no proof; the operating system does not run out of it.
    SystemRandom::new().fill(&mut nonce).map_err(|_| HandshakeError::Connection(std::io::ErrorKind::Other))?;
    Ok(nonce)
}

/// The path that peers ask for an upgrade.
pub const UPGRADE_TARGET: &str = "/_groupcache/";
/// The name of the protocol in `Upgrade`.
pub const UPGRADE_PROTOCOL: &str = "groupcache/1";
const UPGRADE_ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: groupcache/1\r\n\r\n";
/// How Go's `HTTPPool` answers a request for its base path (`http.Error` in its `ServeHTTP`).
const GO_BAD_REQUEST: &[u8] = b"bad request\n";
/// How Go's mux answers for a path that nobody serves, when the base path is another one.
const GO_NOT_FOUND: &[u8] = b"404 page not found\n";
const ANSWER_BYTES_MAX: usize = 8 * 1024;
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(100);

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
