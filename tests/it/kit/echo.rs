//! An origin that needs no script: a `GET` is answered with bytes made of its target, every other method with the body that
//! it brings, piece by piece while it comes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{Buf, BytesMut};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The running server; it ends when dropped.
pub struct Echo {
    address: SocketAddr,
    requests: Requests,
    accepting: JoinHandle<()>,
}

/// How often each `METHOD TARGET` was asked for.
type Requests = Arc<Mutex<HashMap<String, usize>>>;

impl Echo {
    /// Starts a server on a free port of 127.0.0.1.
    pub async fn start() -> Echo {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = listener.local_addr().expect("the listener's address");
        let requests = Requests::default();
        let accepting = tokio::spawn(accept(listener, requests.clone()));
        Echo { address, requests, accepting }
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often `METHOD TARGET` was asked for.
    pub fn requests(&self, request: &str) -> usize {
        self.requests.lock().unwrap().get(request).copied().unwrap_or_default()
    }

    /// How often each percent-decoded target was asked for by `GET`: what is one key for Go is one here.
    pub fn loads_by_decoded_target(&self) -> HashMap<Vec<u8>, usize> {
        let mut loads = HashMap::new();
        for (request, count) in &*self.requests.lock().unwrap() {
            if let Some(target) = request.strip_prefix("GET ") {
                *loads.entry(percent_decode_str(target).collect()).or_default() += count;
            }
        }
        loads
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The body of the answer to a `GET` of `target`: the same for all spellings of one path.
pub fn body_of(target: &str) -> Vec<u8> {
    let decoded: Vec<u8> = percent_decode_str(target).collect();
    let mut body = b"value of ".to_vec();
    body.extend_from_slice(&decoded);
    // Bytes that are no text, and a length that differs from key to key.
    let sum = decoded.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    body.extend((0..sum % 300).map(|index| (index * 7 + sum) as u8));
    body
}

async fn accept(listener: TcpListener, requests: Requests) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(serve(stream, requests.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers one request after the other; `None` when the connection ends.
async fn serve(mut stream: TcpStream, requests: Requests) -> Option<()> {
    let _ = stream.set_nodelay(true);
    let mut buffer = BytesMut::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            more(&mut stream, &mut buffer).await?;
        };
        let head = String::from_utf8_lossy(&buffer.split_to(end)).into_owned();
        let mut words = head.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        *requests.lock().unwrap().entry(format!("{method} {target}")).or_default() += 1;
        let field = |wanted: &str| {
            let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
            lines.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim().to_owned())
        };
        if matches!(method, "GET" | "HEAD") {
            let body = body_of(target);
            let head =
                format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nContent-Length: {}\r\n\r\n", body.len());
            let body = if method == "HEAD" { &[] } else { &body[..] };
            stream.write_all(&[head.as_bytes(), body].concat()).await.ok()?;
            continue;
        }
        if field("expect").is_some() {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
        }
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Method: {method}\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.ok()?;
        match field("content-length") {
            Some(length) => echo(&mut stream, &mut buffer, length.parse().ok()?).await?,
            None if field("transfer-encoding").is_some() => loop {
                let end = loop {
                    if let Some(end) = buffer.windows(2).position(|window| window == b"\r\n") {
                        break end;
                    }
                    more(&mut stream, &mut buffer).await?;
                };
                let length = usize::from_str_radix(std::str::from_utf8(&buffer.split_to(end)).ok()?, 16).ok()?;
                buffer.advance(2);
                echo(&mut stream, &mut buffer, length).await?;
                while buffer.len() < 2 {
                    more(&mut stream, &mut buffer).await?;
                }
                buffer.advance(2);
                if length == 0 {
                    break;
                }
            },
            None => {}
        }
        stream.write_all(b"0\r\n\r\n").await.ok()?;
    }
}

/// Sends the next `length` bytes back as they come.
async fn echo(stream: &mut TcpStream, buffer: &mut BytesMut, mut length: usize) -> Option<()> {
    while length > 0 {
        if buffer.is_empty() {
            more(stream, buffer).await?;
        }
        let piece = buffer.split_to(buffer.len().min(length));
        length -= piece.len();
        let framed = [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat();
        stream.write_all(&framed).await.ok()?;
    }
    Some(())
}

async fn more(stream: &mut TcpStream, buffer: &mut BytesMut) -> Option<()> {
    stream.read_buf(buffer).await.ok().filter(|&count| count > 0).map(|_| ())
}
