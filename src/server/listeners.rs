//! The sockets that a node listens on: bound before anything else starts, and handed to pingora.
//!
//! Binding comes first so that an address in use is one clear line and an exit code, not a panic in a service. pingora binds
//! by itself and then retries for half a minute; it takes over sockets that it finds in its table of listeners, the one it
//! uses for upgrades, and that is the way they get there. It also makes port 0 useful: the address is known before the
//! first connection.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;

use pingora::listeners::tls::TlsSettings;
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::server::Fds;

use crate::config::{Config, SelfPeer, TlsPair};
use crate::edge::endpoints::Roles;
use crate::server::tls::Certificates;

/// What a listener is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// As configured; port 0 lets the system choose.
    pub address: SocketAddr,
    /// Who is answered.
    pub roles: Roles,
    /// Encryption.
    pub tls: TlsPlan,
    /// The key of the configuration that names the address, for messages.
    pub key: &'static str,
}

/// Encryption of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsPlan {
    /// None.
    Plain,
    /// For clients: certificates by server name.
    Clients(Vec<TlsPair>),
    /// For peers: certificates of the fleet's authority on both sides.
    Peers {
        /// This node's own.
        pair: TlsPair,
        /// Who signs members.
        authority: std::path::PathBuf,
    },
}

/// A listener whose socket is bound.
pub struct Bound {
    /// Where it really listens.
    pub address: SocketAddr,
    /// What it is to be.
    pub plan: Plan,
    /// Its certificates, to be looked after.
    pub certificates: Option<Arc<Certificates>>,
    socket: TcpListener,
    tls: Option<TlsSettings>,
}

/// Why a node cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The system does not give the address.
    #[error("cannot listen on {address} ({key}): {reason}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// The key of the configuration.
        key: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The certificates cannot be used.
    #[error("cannot serve TLS on {address} ({key}): {reason}")]
    Tls {
        /// The address.
        address: SocketAddr,
        /// The key of the configuration.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// The listeners that a configuration asks for; an address that is named twice gets both roles.
pub fn plan(config: &Config) -> Vec<Plan> {
    let peers_have_own = config.fleet.as_ref().is_some_and(|fleet| fleet.address.is_some());
    let mut plans: Vec<Plan> = Vec::new();
    for listener in &config.listen {
        let tls = match listener.tls.is_empty() {
            true => TlsPlan::Plain,
            false => TlsPlan::Clients(listener.tls.clone()),
        };
        let roles = Roles {
            clients: true,
            peers: config.fleet.is_some() && !peers_have_own,
            admin: config.admin.address.is_none(),
        };
        plans.push(Plan { address: listener.address, roles, tls, key: "listen" });
    }
    if let Some(fleet) = &config.fleet
        && let Some(address) = fleet.address
    {
        let https = match &fleet.self_peer {
            SelfPeer::Url(url) => url.starts_with("https://"),
            SelfPeer::Auto => fleet.peers.iter().all(|peer| peer.address.https),
        };
        let tls = match &fleet.tls {
            Some(tls) if https => TlsPlan::Peers { pair: tls.pair.clone(), authority: tls.ca.clone() },
            _ => TlsPlan::Plain,
        };
        let roles = Roles { peers: true, ..Roles::default() };
        add(&mut plans, Plan { address, roles, tls, key: "fleet.address" });
    }
    if let Some(address) = config.admin.address {
        let roles = Roles { admin: true, ..Roles::default() };
        add(&mut plans, Plan { address, roles, tls: TlsPlan::Plain, key: "admin.address" });
    }
    plans
}

fn add(plans: &mut Vec<Plan>, plan: Plan) {
    match plans.iter_mut().find(|other| other.address == plan.address && plan.address.port() != 0) {
        Some(other) => {
            other.roles.peers |= plan.roles.peers;
            other.roles.admin |= plan.roles.admin;
        }
        None => plans.push(plan),
    }
}

/// Binds a listener.
///
/// # Errors
/// When the address or the certificates cannot be used.
pub fn bind(plan: Plan) -> Result<Bound, ListenError> {
    let (address, key) = (plan.address, plan.key);
    let tls_error = |reason| ListenError::Tls { address, key, reason };
    let (certificates, tls) = match &plan.tls {
        TlsPlan::Plain => (None, None),
        TlsPlan::Clients(pairs) => {
            let certificates = Certificates::load(pairs).map_err(tls_error)?;
            let settings = certificates.for_clients();
            (Some(certificates), Some(settings))
        }
        TlsPlan::Peers { pair, authority } => {
            let certificates = Certificates::load(std::slice::from_ref(pair)).map_err(tls_error)?;
            let settings = certificates.for_peers(authority).map_err(tls_error)?;
            (Some(certificates), Some(settings))
        }
    };
    // One socket and one task that accepts. With two threads and a connection for each request, 41.3 k a second; with two tasks
    // 41.4 k, with two sockets by SO_REUSEPORT 40.2 k (benches/README.md).
    let bound = TcpListener::bind(address).and_then(|socket| {
        // As tokio demands of a socket that it takes over.
        socket.set_nonblocking(true)?;
        Ok((socket.local_addr()?, socket))
    });
    let (address, socket) =
        bound.map_err(|error| ListenError::Address { address, key, reason: advice(&error, address, key) })?;
    Ok(Bound { address, plan, certificates, socket, tls })
}

fn advice(error: &io::Error, address: SocketAddr, key: &str) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => {
            format!("the address is in use; stop the program that listens on port {} or change {key}", address.port())
        }
        ErrorKind::PermissionDenied => {
            format!("no permission; choose a port above 1023 in {key}, or give the program CAP_NET_BIND_SERVICE")
        }
        ErrorKind::AddrNotAvailable => {
            format!("{} is no address of this machine; change {key}, [::] is every address", address.ip())
        }
        _ => error.to_string(),
    }
}

/// The roles in words, for the log.
pub fn words(roles: Roles) -> String {
    let words = [(roles.clients, "clients"), (roles.peers, "peers"), (roles.admin, "admin")];
    let words: Vec<&str> = words.iter().filter(|(has, _)| *has).map(|(_, word)| *word).collect();
    words.join(", ")
}

impl Bound {
    /// The URL under which the listener is reached, where a URL can say it.
    pub fn url(&self) -> String {
        let scheme = if self.plan.tls == TlsPlan::Plain { "http" } else { "https" };
        format!("{scheme}://{}", self.address)
    }

    /// What pingora needs to listen here; `sockets` is the table in which it finds the socket.
    pub fn into_endpoint(self, sockets: &mut Fds) -> ListenerConfig {
        let name = self.address.to_string();
        // From here on pingora owns the descriptor: it makes a listener of it and closes it at the end.
        sockets.add(name.clone(), self.socket.into_raw_fd());
        // None below ours: pingora's own would cost 65 KiB for each connection. Heads are read into a buffer of ours and
        // answers are one write; TLS has its own on both sides.
        let endpoint = ListenerConfig::tcp(name).l4_buffer(L4BufferSettings::unbuffered());
        match self.tls {
            Some(tls) => endpoint.tls(tls),
            None => endpoint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_at(address: SocketAddr) -> Plan {
        Plan { address, roles: Roles::default(), tls: TlsPlan::Plain, key: "listen" }
    }

    #[test]
    fn port_zero_becomes_a_real_port_and_a_second_bind_says_what_to_do() {
        let first = bind(plan_at("127.0.0.1:0".parse().unwrap())).unwrap();
        assert_ne!(first.address.port(), 0);
        let error = bind(plan_at(first.address)).err().unwrap().to_string();
        assert!(error.contains("in use") && error.contains("change listen"), "{error}");
        let error = bind(plan_at("192.0.2.1:0".parse().unwrap())).err().unwrap().to_string();
        assert!(error.contains("no address of this machine"), "{error}");
    }

    #[test]
    fn one_address_for_two_purposes_is_one_listener_with_both_roles() {
        let address = "127.0.0.1:8081".parse().unwrap();
        let mut plans = vec![Plan { roles: Roles { clients: true, ..Roles::default() }, ..plan_at(address) }];
        add(&mut plans, Plan { roles: Roles { admin: true, ..Roles::default() }, ..plan_at(address) });
        assert_eq!(plans.len(), 1);
        assert_eq!(words(plans[0].roles), "clients, admin");
    }
}
