//! Peers without sockets: every byte goes through the real protocol, only the wire is a pipe in memory. For tests and
//! simulation; links can be cut and mended.

use std::sync::Arc;

use async_trait::async_trait;
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use crate::peer::dial::Dial;
use crate::peer::server::PeerServer;

/// A one-way link to a node in the same process.
#[derive(Clone)]
pub struct Link {
    whole: Arc<watch::Sender<bool>>,
}

impl Default for Link {
    fn default() -> Self {
        Link { whole: Arc::new(watch::Sender::new(true)) }
    }
}

impl Link {
    /// Breaks all connections over this link and lets no new one through.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}

/// Dials a [`PeerServer`] in the same process.
pub struct MemoryDial {
    server: Arc<PeerServer>,
    link: Link,
    shutdown: watch::Receiver<bool>,
}

impl MemoryDial {
    /// `shutdown` is the one that the server's connections watch.
    pub fn new(server: Arc<PeerServer>, link: Link, shutdown: watch::Receiver<bool>) -> Self {
        MemoryDial { server, link, shutdown }
    }
}

#[async_trait]
impl Dial for MemoryDial {
    async fn dial(&self) -> Result<Stream, String> {
        if !*self.link.whole.borrow() {
            return Err("the link is cut".to_owned());
        }
        let (asker, asker_end) = tokio::io::duplex(PIPE_BYTES);
        let (owner, owner_end) = tokio::io::duplex(PIPE_BYTES);
        let mut whole = self.link.whole.subscribe();
        tokio::spawn(async move {
            let (asker_reads, asker_writes) = tokio::io::split(asker_end);
            let (owner_reads, owner_writes) = tokio::io::split(owner_end);
            // As with TCP, the end of one direction takes nothing from the other.
            let both = async { tokio::join!(copy(asker_reads, owner_writes), copy(owner_reads, asker_writes)) };
            tokio::select! {
                biased;
                _ = both => {}
                _ = whole.wait_for(|whole| !*whole) => {}
            }
        });
        let (server, shutdown) = (self.server.clone(), self.shutdown.clone());
        tokio::spawn(async move { server.accept(Box::new(owner), shutdown).await });
        Ok(Box::new(asker))
    }

    fn authority(&self) -> &str {
        "memory"
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

const PIPE_BYTES: usize = 64 * 1024;
