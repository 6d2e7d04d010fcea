//! A running node: its parts, each built once, and what a reload replaces.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::cache::Cache;
use crate::clock::Now;
use crate::config::Config;
use crate::edge::endpoints::Roles;
use crate::peer::LocalNode;
use crate::peer::server::PeerServer;
use crate::server::groups::Groups;
use crate::server::members::Members;
use crate::server::membership::Membership;
use crate::server::reload::Reloader;
use crate::server::shutdown::Lifecycle;
use crate::stats::NodeStats;

/// What all parts of a node share.
pub struct Node {
    /// Where the node is in its life.
    pub lifecycle: Arc<Lifecycle>,
    /// The cache.
    pub cache: Arc<Cache>,
    /// Counters that belong to no group.
    pub stats: Arc<NodeStats>,
    /// The groups of now.
    pub groups: Arc<ArcSwap<Groups>>,
    /// The members of the fleet of now.
    pub members: ArcSwap<Members>,
    /// The configuration of now.
    pub current: ArcSwap<Current>,
    /// What was wrong with the configuration at the last reload; `None` after one that succeeded.
    pub last_error: Mutex<Option<String>>,
    /// What peers are told about this node.
    pub local: Arc<LocalNode>,
    /// Answers peers.
    pub peers: Arc<PeerServer>,
    /// Where the node listens.
    pub listening: Vec<Listening>,
    /// When it started.
    pub started: Now,
    /// The search for members of the fleet.
    pub membership: Arc<Membership>,
    /// Who can read the configuration again, as soon as all parts are there.
    pub reloader: OnceLock<Weak<Reloader>>,
}

/// A configuration that is in effect.
pub struct Current {
    /// The checked values.
    pub config: Config,
    /// Of the file's bytes, in hexadecimal digits; empty without a file.
    pub sha256: String,
    /// When it was loaded, in seconds since 1970.
    pub loaded_wall_seconds: i64,
}

/// One listener as it was opened.
#[derive(Clone, Debug)]
pub struct Listening {
    /// Where it is bound.
    pub address: SocketAddr,
    /// Whom it answers.
    pub roles: Roles,
    /// How it is reached.
    pub url: String,
}

impl Node {
    /// Where the listener is bound that took a connection to `local`: the address itself, or all addresses with its port.
    pub fn listener_of(&self, local: Option<SocketAddr>) -> Option<SocketAddr> {
        let local = local?;
        let same_port =
            || self.listening.iter().map(|listening| listening.address).filter(|a| a.port() == local.port());
        same_port()
            .find(|address| address.ip().to_canonical() == local.ip().to_canonical())
            .or_else(|| same_port().find(|address| address.ip().is_unspecified()))
    }

    /// How this node is called: its URL in the fleet, otherwise that of its first listener.
    pub fn own_url(&self) -> String {
        let members = self.members.load();
        let url = members.own_url().map(str::to_owned);
        url.or_else(|| self.listening.first().map(|listening| listening.url.clone())).unwrap_or_default()
    }

    /// Begins to leave, as SIGTERM does, but stays until told otherwise: not ready, peers ask others, and those take over what
    /// is in memory here. Says whether that changed anything.
    pub fn drain(&self) -> bool {
        let changed = self.lifecycle.drain();
        // Peers hear first: they ask the next on the ring while this node still answers.
        self.local.set_draining(true);
        self.cache.permits.set_leaving(true);
        self.lifecycle.want_hand_over(true);
        changed
    }

    /// Takes [`Node::drain`] back; says whether that changed anything. A node that ends cannot stay.
    pub fn undo_drain(&self) -> bool {
        let changed = self.lifecycle.undo_drain();
        if changed {
            self.local.set_draining(false);
            self.cache.permits.set_leaving(false);
        }
        changed
    }

    /// How long the node has been running.
    pub fn uptime(&self) -> Duration {
        self.cache.now().monotonic.saturating_sub(self.started.monotonic)
    }
}
