//! A question to a node: one HTTP/1.1 request on one connection, which is all that the commands need.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Failure, NodeArguments};
use crate::config::{Config, SystemEnvironment};
use crate::peer::dial::{Dial, PeerAddress, TcpDial, connector};

/// A node's base URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeUrl {
    tls: bool,
    host: String,
    port: u16,
}

/// An answer with its body.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
}

impl NodeUrl {
    /// Takes `http://host:port`, whatever path follows.
    pub fn parse(url: &str) -> Result<Self, Failure> {
        let wrong = || Failure::bad(format!("{url:?} is not the URL of a node, expected http://host:port"));
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(NodeUrl { tls, host, port })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl std::fmt::Display for NodeUrl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

impl NodeArguments {
    /// The node that is meant; `given` is an argument of the command that names it.
    pub(super) fn find(&self, given: Option<&str>) -> Result<NodeUrl, Failure> {
        let environment = std::env::var("GROUPCACHE_URL").ok().filter(|url| !url.is_empty());
        if let Some(url) = given.or(self.node.as_deref()).or(environment.as_deref()) {
            return NodeUrl::parse(url);
        }
        let loaded = Config::load(&self.config, &SystemEnvironment { allow_unset: true }).map_err(|_| {
            Failure::bad(format!(
                "which node? Give --node URL or set GROUPCACHE_URL ({} does not say it)",
                self.config.display()
            ))
        })?;
        let config = loaded.config;
        match config.admin.address {
            Some(address) => Ok(node_at(address, false)),
            None => Ok(config.listen.first().map_or_else(
                || node_at(SocketAddr::from(([127, 0, 0, 1], 8080)), false),
                |listener| node_at(listener.address, !listener.tls.is_empty()),
            )),
        }
    }

    /// The token to show, never taken from an argument: those are seen by everybody on the machine.
    pub(super) fn token(&self) -> Result<Option<String>, Failure> {
        if let Some(path) = &self.token_file {
            return read_token(path).map(Some);
        }
        let variable = |name| std::env::var(name).ok().filter(|token| !token.is_empty());
        Ok(variable("GROUPCACHE_ADMIN_TOKEN").or_else(|| variable("GROUPCACHE_READ_TOKEN")))
    }
}

/// Asks a node with `GET`.
///
/// # Errors
/// When it is not reached, or turns us away.
pub(super) fn get(node: &NodeUrl, target: &str, token: Option<&str>) -> Result<Reply, Failure> {
    request(node, &format!("GET {target}"), None, token, DEADLINE)
}

/// Tells a node something with `POST`; `body` is JSON. What is wanted may take `patience`.
///
/// # Errors
/// When it is not reached, or turns us away.
pub(super) fn post(
    node: &NodeUrl,
    target: &str,
    body: &str,
    token: Option<&str>,
    patience: Duration,
) -> Result<Reply, Failure> {
    request(node, &format!("POST {target}"), Some(body), token, DEADLINE.saturating_add(patience))
}

fn request(
    node: &NodeUrl,
    line: &str,
    body: Option<&str>,
    token: Option<&str>,
    deadline: Duration,
) -> Result<Reply, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::unable(format!("no runtime: {error}")))?;
    let asked = runtime.block_on(async { tokio::time::timeout(deadline, ask(node, line, body, token)).await });
    let reply = asked
        .unwrap_or_else(|_| Err("it does not answer".into()))
        .map_err(|reason| Failure::unable(format!("{node} was not reached: {reason}; does the node run?")))?;
    match reply.status {
        401 => Err(Failure::unable(format!(
            "{node} wants a token; set GROUPCACHE_ADMIN_TOKEN or GROUPCACHE_READ_TOKEN, or give --token-file"
        ))),
        403 => Err(Failure::unable(format!(
            "{node} does not answer this machine; ask from the node itself, or see admin.allow"
        ))),
        404 => Err(Failure::unable(format!(
            "{node} does not answer administration there; use the URL of admin.address, or of a listener on loopback"
        ))),
        _ => Ok(reply),
    }
}

async fn ask(node: &NodeUrl, line: &str, body: Option<&str>, token: Option<&str>) -> Result<Reply, String> {
    if node.tls {
        let address = PeerAddress::parse(&node.to_string())?;
        return converse(TcpDial::new(address, connector(None, None)).dial().await?, node, line, body, token).await;
    }
    // Tries all addresses of a name: "localhost" has two, and a node listens on one of them.
    let stream = tokio::net::TcpStream::connect((node.host.as_str(), node.port)).await;
    converse(stream.map_err(|error| error.to_string())?, node, line, body, token).await
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    node: &NodeUrl,
    line: &str,
    body: Option<&str>,
    token: Option<&str>,
) -> Result<Reply, String> {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let described = body.map(|body| format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    let described = described.unwrap_or_default();
    let request = format!(
        "{line} HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\n{authorization}{described}Connection: close\r\n\r\n{}",
        node.authority(),
        body.unwrap_or_default()
    );
    let wrong = |error: std::io::Error| error.to_string();
    stream.write_all(request.as_bytes()).await.map_err(wrong)?;
    stream.flush().await.map_err(wrong)?;
    let mut received = Vec::new();
    // A TLS peer that closes without saying so is an error of the stream; the length tells whether all is here.
    let read = stream.take(REPLY_BYTES_MAX).read_to_end(&mut received).await;
    parse(&received).ok_or_else(|| read.err().map_or_else(|| "it does not speak HTTP".to_owned(), wrong))
}

fn parse(received: &[u8]) -> Option<Reply> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = response.parse(received).ok()? else { return None };
    let status = response.code?;
    let header = |name: &str| response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    // Our own nodes say the length of what they make themselves; something else that answers here may not.
    let body = &received[head_bytes..];
    let body = match header("content-length").and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok()) {
        Some(length) => body.get(..length)?,
        None => body,
    };
    Some(Reply { status, body: body.to_vec() })
}

fn node_at(address: SocketAddr, tls: bool) -> NodeUrl {
    let host = match address.ip() {
        ip if !ip.is_unspecified() => ip.to_string(),
        // "Every address" is reached on loopback from here, and read there without a token.
        _ => "127.0.0.1".to_owned(),
    };
    NodeUrl { tls, host, port: address.port() }
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::bad(format!("{}: {error}", path.display())))?;
    let token = text.trim_end_matches(['\r', '\n']).to_owned();
    match token.is_empty() || token.chars().any(char::is_control) {
        true => Err(Failure::bad(format!("{}: expected one line with a token", path.display()))),
        false => Ok(token),
    }
}

/// For connecting, asking and reading.
const DEADLINE: Duration = Duration::from_secs(10);

/// The most that is read of an answer, in bytes.
const REPLY_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_by_the_beginning_of_a_url() {
        for (url, expected) in [
            ("http://127.0.0.1:8081", Some("http://127.0.0.1:8081")),
            ("http://node/thumbnails/a.jpg?w=1", Some("http://node:80")),
            ("https://[::1]/", Some("https://[::1]:443")),
            ("127.0.0.1:8081", None),
            ("ftp://node", None),
            ("/a", None),
        ] {
            assert_eq!(NodeUrl::parse(url).ok().map(|node| node.to_string()).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn a_reply_is_whole_or_nothing() {
        for (received, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokmore", Some((200, "ok"))),
            ("HTTP/1.1 404 Not Found\r\n\r\nnothing", Some((404, "nothing"))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", None),
            ("HTTP/1.1 200 OK\r\nConte", None),
            ("SSH-2.0-OpenSSH", None),
        ] {
            let reply = parse(received.as_bytes()).map(|reply| (reply.status, String::from_utf8(reply.body).unwrap()));
            assert_eq!(reply, expected.map(|(status, body)| (status, body.to_owned())), "{received}");
        }
    }
}
