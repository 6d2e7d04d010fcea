//! Clients over TLS: HTTP/1.1 as [`Client`], HTTP/2 as [`Http2Client`].

use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use pingora_rustls::{
    CertificateDer, ClientConfig, ClientTlsStream, RootCertStore, ServerName, TlsConnector,
    install_default_crypto_provider,
};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::client::{Client, within};

/// A certificate that a client trusts.
pub type Certificate = CertificateDer<'static>;

/// Writes `FILE.pem` and `FILE.key` for these names, each moved into place as a whole.
pub fn write_pair(folder: &Path, file: &str, names: &[&str]) -> Certificate {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    for (kind, text) in [("key", made.signing_key.serialize_pem()), ("pem", made.cert.pem())] {
        let (aside, place) = (folder.join(format!("{file}.{kind}.new")), folder.join(format!("{file}.{kind}")));
        std::fs::write(&aside, text).expect("writing a file");
        std::fs::rename(aside, place).expect("moving a file");
    }
    made.cert.der().clone()
}

/// A connection of HTTP/1.1 under `name`, for a client that trusts this certificate alone.
///
/// # Errors
/// The handshake failed.
pub async fn connect(address: SocketAddr, name: &str, trusted: &Certificate) -> std::io::Result<Client> {
    Ok(Client::over(handshake(address, name, trusted, "http/1.1").await?))
}

/// A connection of HTTP/2.
pub struct Http2Client {
    requests: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Http2Answer {
    /// Status and fields.
    pub head: http::response::Parts,
    /// The body.
    pub body: Vec<u8>,
}

impl Http2Client {
    /// Connects under `name`, trusting this certificate alone.
    ///
    /// # Errors
    /// The handshake failed.
    pub async fn connect(address: SocketAddr, name: &str, trusted: &Certificate) -> std::io::Result<Http2Client> {
        let stream = handshake(address, name, trusted, "h2").await?;
        let (requests, connection) = within(h2::client::handshake(stream)).await.expect("a connection of HTTP/2");
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Http2Client { requests, driver })
    }

    /// Sends a request whose body is written by the caller.
    pub async fn begin(&mut self, request: http::Request<()>, ends: bool) -> (ResponseFuture, h2::SendStream<Bytes>) {
        let mut ready = within(self.requests.clone().ready()).await.expect("room for a stream");
        ready.send_request(request, ends).expect("sending")
    }

    /// Sends a request with this body and reads the whole answer.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn ask(&mut self, request: http::Request<()>, body: &[u8]) -> Result<Http2Answer, h2::Error> {
        let (answer, mut stream) = self.begin(request, body.is_empty()).await;
        if !body.is_empty() {
            stream.send_data(Bytes::copy_from_slice(body), true)?;
        }
        read(answer).await
    }

    /// Asks for `https://NAME/TARGET` and reads the whole answer.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn get(&mut self, url: &str) -> Result<Http2Answer, h2::Error> {
        self.ask(http::Request::get(url).body(()).expect("a request"), b"").await
    }
}

impl Drop for Http2Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Http2Answer {
    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Reads a whole answer.
///
/// # Errors
/// The stream was reset.
pub async fn read(answer: ResponseFuture) -> Result<Http2Answer, h2::Error> {
    let (head, mut stream) = within(answer).await?.into_parts();
    Ok(Http2Answer { head, body: read_body(&mut stream).await? })
}

/// Reads the body and the trailers of an answer.
///
/// # Errors
/// The stream was reset.
pub async fn read_with_trailers(answer: ResponseFuture) -> Result<(Vec<u8>, Option<http::HeaderMap>), h2::Error> {
    let mut stream = within(answer).await?.into_body();
    Ok((read_body(&mut stream).await?, within(stream.trailers()).await?))
}

async fn read_body(stream: &mut h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut body = Vec::new();
    while let Some(bytes) = within(stream.data()).await {
        let bytes = bytes?;
        let _ = stream.flow_control().release_capacity(bytes.len());
        body.extend_from_slice(&bytes);
    }
    Ok(body)
}

/// The next `count` interim answers, or fewer where the final one comes before: `STATUS NAME: VALUE...`.
pub async fn interims(answer: &mut ResponseFuture, count: usize) -> Vec<String> {
    let mut heard = Vec::new();
    while heard.len() < count {
        let Some(interim) = within(poll_fn(|context| answer.poll_informational(context))).await else { break };
        let (head, ()) = interim.expect("an interim answer").into_parts();
        let fields = head.headers.iter().map(|(name, value)| format!(" {name}: {}", value.to_str().expect("text")));
        heard.push(format!("{}{}", head.status.as_u16(), fields.collect::<String>()));
    }
    heard
}

async fn handshake(
    address: SocketAddr,
    name: &str,
    trusted: &Certificate,
    protocol: &str,
) -> std::io::Result<ClientTlsStream<TcpStream>> {
    install_default_crypto_provider();
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a root");
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = within(TcpStream::connect(address)).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let stream = within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
    Ok(stream)
}
