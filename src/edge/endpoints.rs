//! What lies under `/_groupcache/`: asked for by exact bytes, before anything else, and never a key of a group.

use std::net::SocketAddr;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::protocols::Stream;

use crate::clock::Now;
use crate::fields::Fields;

/// Beginning of every target that is not a client's.
pub const PREFIX: &[u8] = b"/_groupcache/";

/// What a listener is for. The endpoints decide who may ask for what; a listener without any role is for clients alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// Clients' requests are answered here.
    pub clients: bool,
    /// Peers are answered here.
    pub peers: bool,
    /// Statistics, purge and the like are answered here.
    pub admin: bool,
}

/// Which roles the listeners of this process have, by the address a client connected to.
#[derive(Clone, Debug, Default)]
pub struct RoleTable {
    listeners: Vec<(SocketAddr, Roles)>,
}

impl RoleTable {
    /// A table of listening addresses; several entries of one address add up.
    pub fn new(listeners: impl IntoIterator<Item = (SocketAddr, Roles)>) -> Self {
        RoleTable { listeners: listeners.into_iter().collect() }
    }

    /// The roles of the listener that accepted a connection to `local`; a listener on every address is meant only where
    /// none names the address itself.
    pub fn roles_of(&self, local: Option<SocketAddr>) -> Roles {
        let Some(local) = local else { return Roles { clients: true, ..Roles::default() } };
        let ip = local.ip().to_canonical();
        let of = |wanted: &dyn Fn(&SocketAddr) -> bool| {
            self.listeners
                .iter()
                .filter(|(address, _)| address.port() == local.port() && wanted(address))
                .map(|(_, roles)| *roles)
                .reduce(|first, second| Roles {
                    clients: first.clients || second.clients,
                    peers: first.peers || second.peers,
                    admin: first.admin || second.admin,
                })
        };
        of(&|address| address.ip().to_canonical() == ip)
            .or_else(|| of(&|address| address.ip().is_unspecified()))
            .unwrap_or_default()
    }
}

/// One question, without its body.
#[derive(Clone, Debug)]
pub struct EndpointRequest {
    /// Method, as received.
    pub method: String,
    /// Target as received; begins with [`PREFIX`], or with the path below which Go peers ask.
    pub target: Bytes,
    /// `Host`; empty only in HTTP/1.0.
    pub host: Bytes,
    /// All fields, those of the connection included.
    pub fields: Fields,
    /// Whether the version is 1.1, which an upgrade needs. False for HTTP/2 too.
    pub http_11: bool,
    /// Who asks.
    pub peer: Option<SocketAddr>,
    /// Which address was connected to.
    pub local: Option<SocketAddr>,
    /// The roles of the listener.
    pub roles: Roles,
    /// Whether the connection is protected by TLS.
    pub tls: bool,
    /// Whether the client asks for itself: no `Via`, `Forwarded` or `X-Forwarded-*`.
    pub direct: bool,
    /// When the head arrived.
    pub now: Now,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct EndpointResponse {
    /// Status.
    pub status: u16,
    /// Fields, without those that delimit the body.
    pub fields: Fields,
    /// The whole body.
    pub body: Bytes,
}

/// What becomes of a question.
pub enum EndpointAnswer {
    /// It is answered.
    Response(EndpointResponse),
    /// The connection changes to another protocol: 101 with these fields is sent, then the protocol takes the connection.
    /// Without any field nothing is sent: the protocol says 101 itself.
    /// Only where the question came with HTTP/1.1 and without a body.
    Upgrade(Fields, Box<dyn UpgradedConnection>),
}

/// A protocol that takes over a connection.
#[async_trait]
pub trait UpgradedConnection: Send {
    /// Speaks it until its end. `read` is what the client sent behind its request.
    async fn run(self: Box<Self>, stream: Stream, read: Bytes);
}

/// Who answers below [`PREFIX`].
#[async_trait]
pub trait Endpoints: Send + Sync {
    /// Decides before the body is read: how many bytes it may have at most.
    ///
    /// # Errors
    /// The refusal. The body is then never read.
    fn admit(&self, request: &EndpointRequest) -> Result<usize, EndpointResponse>;

    /// Answers. Dropped when the client leaves.
    async fn handle(&self, request: EndpointRequest, body: Bytes) -> EndpointAnswer;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_known_by_the_address_connected_to() {
        let roles = |clients, peers, admin| Roles { clients, peers, admin };
        let table = RoleTable::new([
            ("[::]:8080".parse().unwrap(), roles(true, false, false)),
            ("127.0.0.1:8080".parse().unwrap(), roles(false, false, true)),
            ("127.0.0.1:8080".parse().unwrap(), roles(false, true, false)),
            ("10.0.0.4:8082".parse().unwrap(), roles(false, true, false)),
        ]);
        for (local, expected) in [
            ("127.0.0.1:8080", roles(false, true, true)),
            ("[::ffff:127.0.0.1]:8080", roles(false, true, true)),
            ("10.0.0.4:8080", roles(true, false, false)),
            ("10.0.0.4:8082", roles(false, true, false)),
            ("10.0.0.5:8082", roles(false, false, false)),
        ] {
            assert_eq!(table.roles_of(Some(local.parse().unwrap())), expected, "{local}");
        }
    }
}
