//! The demo's origin: the sample pictures, slowly, and a word on standard output for each question.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::samples::PICTURES;

/// Starts it on a free port of loopback.
pub(super) async fn start() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream))),
                // Out of files, for a moment.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(address)
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut received = Vec::new();
    loop {
        let Some(head_bytes) = received.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4) else {
            if received.len() > HEAD_BYTES_MAX || stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let answer = answer(&received[..head_bytes]);
        received.drain(..head_bytes);
        // As long as the making of a thumbnail takes, so that the eye sees what the cache saves.
        tokio::time::sleep(THINKING).await;
        stream.write_all(&answer).await?;
    }
}

/// Nobody but our own nodes asks, with `GET` and `HEAD` and without a body.
fn answer(head: &[u8]) -> Vec<u8> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(head).is_ok();
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let name = target.trim_start_matches('/').split('?').next().unwrap_or_default();
    let name = if name.is_empty() { "index.html" } else { name };
    let (status, media_type, etag, body) = match PICTURES.iter().find(|picture| picture.name == name) {
        _ if !parsed => ("400 Bad Request", "text/plain", String::new(), &b"bad request\n"[..]),
        None => ("404 Not Found", "text/plain", String::new(), &b"no such picture\n"[..]),
        Some(picture) => {
            let etag = format!("ETag: \"{:x}\"\r\n", picture.bytes.len());
            ("200 OK", picture.media_type, etag, picture.bytes)
        }
    };
    let number = QUESTIONS.fetch_add(1, Ordering::Relaxed) + 1;
    let shown: String = target.chars().filter(|c| !c.is_control()).take(80).collect();
    // Nobody may be reading any longer.
    let _ = writeln!(std::io::stdout(), "origin: question {number}: {method} {shown} -> {status}");
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nCache-Control: max-age=60\r\n{etag}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    if method != "HEAD" {
        answer.extend_from_slice(body);
    }
    answer
}

static QUESTIONS: AtomicU64 = AtomicU64::new(0);
const THINKING: Duration = Duration::from_millis(150);
const HEAD_BYTES_MAX: usize = 64 * 1024;
