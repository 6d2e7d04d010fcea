//! How a stream to a peer comes about: over TCP or TLS, or in memory.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use http::Uri;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::protocols::Stream;
use pingora::upstreams::peer::HttpPeer;

/// Makes streams to one peer.
#[async_trait]
pub trait Dial: Send + Sync {
    /// A new stream. The caller bounds the time.
    ///
    /// # Errors
    /// Why there is none, for log and statistics.
    async fn dial(&self) -> Result<Stream, String>;

    /// The peer's host and port, for `Host`.
    fn authority(&self) -> &str;
}

/// Where a peer listens: its URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// The URL as configured.
    pub url: String,
    /// Whether it is `https`.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Host and port as in the URL.
    pub authority: String,
}

impl PeerAddress {
    /// Takes `http://host:port` or `https://host:port`, with or without a last slash.
    ///
    /// # Errors
    /// What was expected instead.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected http://host:port or https://host:port";
        let uri: Uri = url.parse().map_err(|_| EXPECTED)?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(EXPECTED),
        };
        let authority = uri.authority().ok_or(EXPECTED)?;
        if authority.as_str().contains('@') || uri.path() != "/" || uri.query().is_some() || uri.host() == Some("") {
            return Err(EXPECTED);
        }
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() != authority.host() => return Err(EXPECTED),
            None => [80, 443][usize::from(tls)],
        };
        if port == 0 || host.is_empty() {
            return Err(EXPECTED);
        }
        Ok(PeerAddress { url: url.to_owned(), tls, host, port, authority: authority.to_string() })
    }

    /// The peer for pingora's connectors. Host names are asked of the resolver anew each time, so that a peer may move.
    ///
    /// # Errors
    /// The name has no address.
    pub(super) async fn resolve(&self) -> Result<HttpPeer, String> {
        // Never HttpPeer::new with a name: that blocks the thread and panics when there is no address.
        let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let address: SocketAddr = addresses
            .map_err(|error| format!("cannot resolve {}: {error}", self.host))?
            .next()
            .ok_or_else(|| format!("{} has no address", self.host))?;
        // An empty server name would switch the check of the certificate off.
        Ok(HttpPeer::new(address, self.tls, if self.tls { self.host.clone() } else { String::new() }))
    }
}

/// Dials over TCP, and TLS where the URL says so.
pub struct TcpDial {
    address: PeerAddress,
    connector: Arc<TransportConnector>,
}

impl TcpDial {
    /// `connector` holds the fleet's TLS settings; see [`connector`].
    pub fn new(address: PeerAddress, connector: Arc<TransportConnector>) -> Self {
        TcpDial { address, connector }
    }
}

#[async_trait]
impl Dial for TcpDial {
    async fn dial(&self) -> Result<Stream, String> {
        let peer = self.address.resolve().await?;
        self.connector.new_stream(&peer).await.map_err(|error| format!("cannot connect: {}", error.etype().as_str()))
    }

    fn authority(&self) -> &str {
        &self.address.authority
    }
}

/// The connector for all peers of a fleet: `ca` signs their certificates, `cert` and `key` are this node's own (PEM files).
///
/// # Panics
/// In pingora, when a file cannot be read or the key does not fit; the configuration checks them before.
pub fn connector(ca: Option<String>, cert_and_key: Option<(String, String)>) -> Arc<TransportConnector> {
    let options = ConnectorOptions { ca_file: ca, cert_key_file: cert_and_key, ..ConnectorOptions::new(0) };
    Arc::new(TransportConnector::new(Some(options)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls() {
        for (url, tls, host, port) in [
            ("http://10.0.0.4:8082", false, "10.0.0.4", 8082),
            ("https://cache-1.internal:8443/", true, "cache-1.internal", 8443),
            ("http://[fd00::1]:8082", false, "fd00::1", 8082),
            ("http://cache", false, "cache", 80),
            ("https://cache", true, "cache", 443),
        ] {
            let address = PeerAddress::parse(url).unwrap();
            assert_eq!((address.tls, &address.host[..], address.port), (tls, host, port), "{url}");
        }
        for url in [
            "10.0.0.4:8082",
            "ftp://a:1",
            "http://a:1/x",
            "http://a:1?x",
            "http://u@a:1",
            "http://a:0",
            "http://a:99999",
            "",
            "http://",
        ] {
            assert!(PeerAddress::parse(url).is_err(), "{url}");
        }
    }
}
