//! A client that sends exactly the bytes it is given and shows what comes back, piece by piece. Every wait has an end.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// One connection.
pub struct Client {
    stream: Box<dyn Transport>,
    received: Vec<u8>,
}

/// What bytes come and go over.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    /// Status code.
    pub status: u16,
    /// The head as it came, with its last empty line.
    pub text: String,
    /// How the body ends.
    pub framing: Framing,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its head.
    pub head: Head,
    /// Its body.
    pub body: Vec<u8>,
}

impl Client {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Client {
        let stream = within(TcpStream::connect(address)).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket option");
        Client::over(stream)
    }

    /// A client on a connection that is there already.
    pub fn over(stream: impl Transport + 'static) -> Client {
        Client { stream: Box::new(stream), received: Vec::new() }
    }

    /// Sends these bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.expect("sending");
    }

    /// Sends a plain `GET`.
    pub async fn ask(&mut self, target: &str) {
        self.ask_with(target, "").await;
    }

    /// Sends a `GET` with more header lines, each with its line break.
    pub async fn ask_with(&mut self, target: &str, lines: &str) {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: test.example\r\n{lines}\r\n")).await;
    }

    /// Asks and reads the whole answer.
    pub async fn get(&mut self, target: &str) -> Answer {
        self.ask(target).await;
        self.answer().await
    }

    /// Asks with more header lines and reads the whole answer.
    pub async fn get_with(&mut self, target: &str, lines: &str) -> Answer {
        self.ask_with(target, lines).await;
        self.answer().await
    }

    /// Reads the head of the next answer.
    pub async fn head(&mut self) -> Head {
        loop {
            if let Some(end) = self.received.windows(4).position(|end| end == b"\r\n\r\n") {
                let text: Vec<u8> = self.received.drain(..end + 4).collect();
                return Head::of(String::from_utf8(text).expect("a head in UTF-8"));
            }
            assert!(self.read_more().await > 0, "no answer: {:?}", String::from_utf8_lossy(&self.received));
        }
    }

    /// Reads a whole answer.
    ///
    /// # Panics
    /// It ends before its framing says so.
    pub async fn answer(&mut self) -> Answer {
        let head = self.head().await;
        let (body, whole) = self.body(&head).await;
        assert!(whole, "the body broke off after {} bytes", body.len());
        Answer { head, body }
    }

    /// Reads the body to its end; `false` when the connection ended first.
    pub async fn body(&mut self, head: &Head) -> (Vec<u8>, bool) {
        match head.framing {
            Framing::Length(bytes) => {
                let mut body = Vec::new();
                while (body.len() as u64) < bytes {
                    if self.received.is_empty() && self.read_more().await == 0 {
                        return (body, false);
                    }
                    let take = self.received.len().min((bytes - body.len() as u64) as usize);
                    body.extend(self.received.drain(..take));
                }
                (body, true)
            }
            Framing::Chunked => self.chunks().await,
            Framing::Close => {
                while self.read_more().await > 0 {}
                (std::mem::take(&mut self.received), true)
            }
        }
    }

    async fn chunks(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            let Some(line) = self.line().await else { return (body, false) };
            let length = usize::from_str_radix(line.trim(), 16).expect("a chunk's length");
            while self.received.len() < length + 2 {
                if self.read_more().await == 0 {
                    return (body, false);
                }
            }
            body.extend(self.received.drain(..length));
            assert_eq!(self.received.drain(..2).collect::<Vec<_>>(), b"\r\n");
            if length == 0 {
                return (body, true);
            }
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|end| end == b"\r\n") {
                let line: Vec<u8> = self.received.drain(..end + 2).collect();
                return Some(String::from_utf8(line).expect("a line in UTF-8"));
            }
            if self.read_more().await == 0 {
                return None;
            }
        }
    }

    /// Waits for at least one byte and shows all that is there and not yet taken.
    pub async fn some(&mut self) -> Vec<u8> {
        if self.received.is_empty() {
            self.read_more().await;
        }
        std::mem::take(&mut self.received)
    }

    /// Whether the other side closes now, without another byte.
    pub async fn is_closed(&mut self) -> bool {
        self.received.is_empty() && self.read_more().await == 0
    }

    /// Zero at the end, a reset included.
    async fn read_more(&mut self) -> usize {
        within(self.stream.read_buf(&mut self.received)).await.unwrap_or_default()
    }
}

impl Head {
    fn of(text: String) -> Head {
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        let mut head = Head { status, text, framing: Framing::Close };
        head.framing = match (head.field("content-length"), head.field("transfer-encoding")) {
            _ if status < 200 || status == 204 || status == 304 => Framing::Length(0),
            (Some(length), _) => Framing::Length(length.parse().expect("a length")),
            (None, Some(_)) => Framing::Chunked,
            (None, None) => Framing::Close,
        };
        head
    }

    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.text.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// `Cache-Status`, or nothing.
    pub fn cache_status(&self) -> &str {
        self.field("cache-status").unwrap_or_default()
    }
}

impl Answer {
    /// Status code.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// Asks once, on a connection of its own.
pub async fn get(address: SocketAddr, target: &str) -> Answer {
    Client::connect(address).await.get_with(target, "Connection: close\r\n").await
}

/// The end of every wait: far longer than anything here takes, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits, but not for ever.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this takes too long")
}
