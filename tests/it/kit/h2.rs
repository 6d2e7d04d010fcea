//! A scripted origin that speaks HTTP/2 over TLS, for the ways in which a stream can end. Who insists on HTTP/1.1 gets one
//! answer in it, `old`, and not what was scripted.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use h2::SendStream;
use h2::server::SendResponse;
use pingora_rustls::{CertificateDer, PrivateKeyDer, ServerConfig, TlsAcceptor};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The running server.
pub struct H2Origin {
    address: SocketAddr,
    folder: TempDir,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<http::request::Parts>>>,
    accepting: JoinHandle<()>,
}

/// How a stream is answered.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    /// Head, body, end of stream.
    Clean,
    /// The same, and trailers after the body (`x-sum: 1`).
    Trailers,
    /// The head alone ends the stream, and declares no body.
    HeadOnly,
    /// The head alone ends the stream, and declares a body.
    HeadWithoutBody,
    /// Half of the declared body, then the end of the stream.
    Short,
    /// Half of the body, then a reset with this code.
    Reset(h2::Reason),
    /// No head, only a reset with this code.
    ResetBeforeHead(h2::Reason),
    /// The connection is cut in the middle of the body.
    Cut,
}

/// What every body is.
pub const BODY: &[u8] = b"0123456789";

impl H2Origin {
    /// Starts a server that ends stream after stream as `endings` say, the last for ever; each connection is closed
    /// (with GOAWAY) after `streams` streams.
    pub async fn start(endings: Vec<Ending>, streams: usize) -> H2Origin {
        let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
        let folder = TempDir::new().expect("a temporary folder");
        std::fs::write(folder.path().join("cert.pem"), certified.cert.pem()).expect("writing the certificate");
        pingora_rustls::install_default_crypto_provider();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
        let chain = vec![CertificateDer::from(certified.cert.der().to_vec())];
        let mut config =
            ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("a TLS server");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = listener.local_addr().expect("the listener's address");
        let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let shared = Shared {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            endings: endings.into(),
            streams,
            requests: requests.clone(),
        };
        let accepting = tokio::spawn(accept(listener, shared, connections.clone()));
        H2Origin { address, folder, connections, requests, accepting }
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate that vouches for it.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The heads of all requests so far.
    pub fn log(&self) -> Vec<http::request::Parts> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for H2Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Clone)]
struct Shared {
    acceptor: TlsAcceptor,
    endings: Arc<[Ending]>,
    streams: usize,
    requests: Arc<Mutex<Vec<http::request::Parts>>>,
}

async fn accept(listener: TcpListener, shared: Shared, opened: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                opened.fetch_add(1, Ordering::SeqCst);
                let shared = shared.clone();
                connections.spawn(async move { serve(stream, shared).await });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one connection; its end drops and thereby closes it.
async fn serve(stream: TcpStream, shared: Shared) -> Option<()> {
    let stream = shared.acceptor.accept(stream).await.ok()?;
    if stream.get_ref().1.alpn_protocol() == Some(b"http/1.1") {
        return serve_old(stream).await;
    }
    let mut connection = h2::server::handshake(stream).await.ok()?;
    let mut ping = connection.ping_pong()?;
    let mut served = 0;
    // The connection moves only while it is asked for the next stream, so answers are written beside that.
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let (request, respond) = accepted?.ok()?;
                let number = {
                    let mut requests = shared.requests.lock().unwrap();
                    requests.push(request.into_parts().0);
                    requests.len() - 1
                };
                let ending = shared.endings[number.min(shared.endings.len() - 1)];
                answering.spawn(async move { begin(respond, ending).await.map(|stream| (stream, ending)) });
                served += 1;
                if served == shared.streams {
                    connection.graceful_shutdown();
                }
            }
            Some(begun) = answering.join_next() => {
                let (Some(stream), ending) = begun.ok()?.ok()? else { continue };
                // An answered ping proves that what was queued before is on the wire; a second one, that it was flushed.
                for _ in 0..2 {
                    tokio::select! {
                        pong = ping.ping(h2::Ping::opaque()) => { pong.ok()?; }
                        // No further stream comes while a test waits for this one.
                        _ = connection.accept() => return None,
                    }
                }
                match ending {
                    Ending::Reset(reason) => { let mut stream = stream; stream.send_reset(reason); }
                    _ => return None,
                }
            }
        }
    }
}

/// One request and its answer in HTTP/1.1.
async fn serve_old(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<()> {
    let mut head = BytesMut::new();
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_buf(&mut head).await.ok().filter(|&count| count > 0)?;
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nold").await.ok()?;
    stream.shutdown().await.ok()
}

/// Writes the answer; gives the stream back where its end is still to come.
async fn begin(mut respond: SendResponse<Bytes>, ending: Ending) -> Result<Option<SendStream<Bytes>>, h2::Error> {
    if let Ending::ResetBeforeHead(reason) = ending {
        respond.send_reset(reason);
        return Ok(None);
    }
    let length = if matches!(ending, Ending::HeadOnly) { 0 } else { BODY.len() };
    let response = http::Response::builder().header("content-length", length).header("x-kept", "1");
    let response = response.body(()).expect("a response");
    let head_only = matches!(ending, Ending::HeadOnly | Ending::HeadWithoutBody);
    let mut stream = respond.send_response(response, head_only)?;
    let (half, rest) = (Bytes::from_static(&BODY[..5]), Bytes::from_static(&BODY[5..]));
    match ending {
        Ending::HeadOnly | Ending::HeadWithoutBody | Ending::ResetBeforeHead(_) => {}
        Ending::Clean => {
            stream.send_data(half, false)?;
            stream.send_data(rest, true)?;
        }
        Ending::Trailers => {
            stream.send_data(half, false)?;
            stream.send_data(rest, false)?;
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-sum", http::HeaderValue::from_static("1"));
            stream.send_trailers(trailers)?;
        }
        Ending::Short => stream.send_data(half, true)?,
        Ending::Reset(_) | Ending::Cut => {
            stream.send_data(half, false)?;
            return Ok(Some(stream));
        }
    }
    Ok(None)
}
