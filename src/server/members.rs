//! From the fleet of the configuration to a ring and connections to each peer.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{self, FleetPeer, SelfPeer};
use crate::fleet::{self, Former};
use crate::peer::client::{ClientSettings, NativePeer, Timeouts};
use crate::peer::dial::{PeerAddress, TcpDial, connector};
use crate::peer::go::{Dialect, go_key};
use crate::peer::go_client::{GoPeer, GoSettings, http_connector};
use crate::peer::link::PeerLink;
use crate::peer::{LocalNode, Peer as _, PeerState};
use crate::ring::{Ring, RingKind, RingPeer};
use crate::server::node::Node;

/// The members of the fleet as this node sees them; a fleet of one has none.
#[derive(Default)]
pub struct Members {
    /// What the members were made of.
    pub config: Option<config::Fleet>,
    /// In the order of the ring.
    pub list: Vec<Member>,
    /// Who owns which key.
    pub ring: Option<Ring>,
    /// Addresses of listed peers, which Go peers ask from.
    pub addresses: Vec<IpAddr>,
    /// Members of before that are not found any more: they are told of purges for a while.
    pub former: Vec<Former<PeerLink>>,
}

/// One member.
pub struct Member {
    /// Its URL, byte for byte as all members know it.
    pub url: String,
    /// How it is asked; `None`: it is this node.
    pub link: Option<Arc<PeerLink>>,
}

/// Why there is no fleet.
#[derive(Debug, thiserror::Error)]
#[error("fleet.{key}: {reason}")]
pub struct FleetError {
    /// The key of the configuration.
    pub key: &'static str,
    /// What is wrong and what to do.
    pub reason: String,
}

/// What building the members needs to know.
pub struct Surroundings<'a> {
    /// What this node tells peers.
    pub local: &'a Arc<LocalNode>,
    /// The clock.
    pub clock: &'a Arc<dyn Clock>,
    /// Where this node listens for peers.
    pub listeners: &'a [SocketAddr],
    /// How long an origin may take for a head, at most: Go peers give no sign of life meanwhile.
    pub origin_patience: Duration,
    /// How many threads serve.
    pub threads: usize,
}

impl Members {
    /// Computes the ring and prepares connections to each peer; opens none. Takes tens of milliseconds and asks the resolver:
    /// no work for a thread that serves requests. Connections of `before` are kept where nothing changed.
    ///
    /// # Errors
    /// It cannot be found out which peer this node is, or certificates cannot be used.
    pub fn build(
        configured: &config::Fleet,
        surroundings: &Surroundings<'_>,
        before: &Members,
    ) -> Result<Members, FleetError> {
        let own = own_index(configured, surroundings.listeners)?;
        let kind = ring_kind(configured.ring);
        let ring_peers: Vec<RingPeer> =
            configured.peers.iter().map(|peer| RingPeer { url: peer.url.clone(), weight: peer.weight }).collect();
        let ring = Ring::new(kind, configured.go.replicas, &ring_peers);
        let links = Links::new(configured, surroundings, before)?;
        let mut list = Vec::with_capacity(configured.peers.len());
        for (index, peer) in configured.peers.iter().enumerate() {
            let link = match own == Some(index) {
                true => None,
                false => Some(links.to(peer)?),
            };
            list.push(Member { url: peer.url.clone(), link });
        }
        if own.is_none() && !configured.peers.is_empty() {
            tracing::warn!("this node is not among fleet.peers: it owns no key and asks the others for all");
        }
        let addresses = match configured.ring.is_go() {
            true => configured.peers.iter().flat_map(addresses_of).collect(),
            false => Vec::new(),
        };
        let former = before.former_of(configured, surroundings.clock.now().monotonic);
        Ok(Members { config: Some(configured.clone()), list, ring: Some(ring), addresses, former })
    }

    /// Who is a former member once these members are no more, and those of `configured` are.
    fn former_of(&self, configured: &config::Fleet, now: Duration) -> Vec<Former<PeerLink>> {
        let others = self.list.iter().filter_map(|member| Some((member.url.clone(), member.link.clone()?)));
        let comes = |url: &str| configured.peers.iter().any(|peer| peer.url == url);
        Former::of(&self.former, others, comes, configured.source.forget(), now)
    }

    /// The view that the cache works with.
    pub fn fleet(&self) -> fleet::Fleet {
        let Some(ring) = &self.ring else { return fleet::Fleet::alone() };
        let peers =
            self.list.iter().map(|member| member.link.clone().map(|link| link as Arc<dyn fleet::Peer>)).collect();
        let ring_key: fn(&[u8]) -> Option<Cow<'_, [u8]>> = match ring.kind().is_go() {
            true => |key| go_key(key).map(Cow::Owned),
            false => |key| Some(Cow::Borrowed(key)),
        };
        let urls = self.list.iter().map(|member| member.url.clone()).collect();
        let strict = self.config.as_ref().is_some_and(|config| config.partition == config::Partition::Strict);
        let warm = self.config.as_ref().is_none_or(|config| config.resharding == config::Resharding::Warm);
        let fleet = fleet::Fleet::new(ring.clone(), peers, ring_key);
        let former = self.former.iter().cloned();
        let former =
            former.map(|Former { url, peer, since }| Former { url, peer: peer as Arc<dyn fleet::Peer>, since });
        let forget = self.config.as_ref().map_or(Duration::ZERO, |config| config.source.forget());
        let fleet = fleet.named(urls).with_leases(strict).with_warm_resharding(warm);
        let fleet = fleet.with_former(former.collect(), forget);
        match &self.config {
            Some(config) => fleet.with_peer_deadline(config.timeouts.silence),
            None => fleet,
        }
    }

    /// What of the ring's identity peers tell one another; zero in a fleet of one.
    pub fn ring_id(&self) -> u64 {
        self.ring
            .as_ref()
            .map_or(0, |ring| u64::from_be_bytes(ring.id().to_bytes()[..8].try_into().unwrap_or_default()))
    }

    /// The URL of this node.
    pub fn own_url(&self) -> Option<&str> {
        self.list.iter().find(|member| member.link.is_none()).map(|member| &*member.url)
    }

    /// The first on the ring for `key` that is this node or seems to be up; what is asked for the key now.
    pub fn acting_owner(&self, ring_key: &[u8]) -> Option<&Member> {
        let up = |member: &&Member| match &member.link {
            None => true,
            Some(link) => link.status().state.as_str() == "up",
        };
        self.ring.as_ref()?.preference(ring_key).filter_map(|index| self.list.get(index)).find(up)
    }

    /// The library that Go peers of this fleet use.
    pub fn dialect(&self) -> Option<Dialect> {
        dialect(self.config.as_ref()?.ring)
    }

    /// Opens the connections to all peers; to be called inside a runtime.
    pub fn connect(&self) {
        self.list.iter().filter_map(|member| member.link.as_ref()).for_each(|link| link.connect());
    }
}

/// Says when a peer has had another view of the ring for some seconds: while views differ, a key may be loaded twice. Ends
/// with the runtime.
pub async fn watch_rings(node: Arc<Node>) {
    let mut differing: HashMap<String, u32> = HashMap::new();
    loop {
        tokio::time::sleep(RING_LOOK_PAUSE).await;
        let members = node.members.load_full();
        let ours = members.ring_id();
        let mut still: HashMap<String, u32> = HashMap::new();
        for member in &members.list {
            let Some(status) = member.link.as_ref().map(|link| link.status()) else { continue };
            let up = matches!(status.state, PeerState::Up | PeerState::Draining);
            let theirs = status.ring_id.filter(|theirs| up && *theirs != 0 && *theirs != ours);
            let before = differing.get(&member.url).copied().unwrap_or_default();
            match theirs {
                Some(theirs) => {
                    if before + 1 == RING_LOOKS_UNTIL_WARNING {
                        let (ours, theirs) = (format!("{ours:016x}"), format!("{theirs:016x}"));
                        tracing::warn!(peer = member.url, ours, theirs, "a peer has another view of the ring");
                    }
                    still.insert(member.url.clone(), before.saturating_add(1));
                }
                None if up && before >= RING_LOOKS_UNTIL_WARNING => {
                    tracing::info!(peer = member.url, "the peer has the same view of the ring again");
                }
                None => {}
            }
        }
        differing = still;
    }
}

/// Whether a peer that answers from its memory in `time` is much slower than the others: something is wrong with it although
/// it gives signs of life. `times` are those of all peers, this one included.
pub fn is_slow(time: Duration, times: &[Duration]) -> bool {
    let mut times = times.to_vec();
    times.sort_unstable();
    // The lower middle: of two peers, the faster one.
    let Some(usual) = times.get(times.len().saturating_sub(1) / 2) else { return false };
    times.len() > 1 && time > SLOW_MIN && time > usual.saturating_mul(SLOW_TIMES)
}

/// Answers from memory that take less are no trouble, whatever the others take. Guess.
const SLOW_MIN: Duration = Duration::from_millis(20);
/// How many times slower than usual is much slower. Guess: more than distance and load make of it.
const SLOW_TIMES: u32 = 8;

/// A change reaches all nodes within a second or two; views that differ for longer are worth a line.
const RING_LOOK_PAUSE: Duration = Duration::from_secs(1);
const RING_LOOKS_UNTIL_WARNING: u32 = 5;

/// How many connections a node keeps to each of its `peers`: one for each of its threads, as far as that helps and a large fleet
/// can bear it.
fn connections_to_a_peer(threads: usize, peers: usize) -> usize {
    threads.min(CONNECTIONS_TO_A_PEER_MAX).min(CONNECTIONS_TO_PEERS / peers.max(1)).max(1)
}

/// Beyond it the tasks of the connections are no longer what limits a hop. Guess.
const CONNECTIONS_TO_A_PEER_MAX: usize = 4;
/// To all peers together, if that is more than one to each: a connection that was busy holds some 100 KiB.
const CONNECTIONS_TO_PEERS: usize = 64;

/// Makes connections, or keeps them.
struct Links<'a> {
    configured: &'a config::Fleet,
    surroundings: &'a Surroundings<'a>,
    /// The members, and former members, whose connections can be kept, where none of what they depend on changed.
    kept: &'a [Member],
    kept_former: &'a [Former<PeerLink>],
    transport: Arc<pingora::connectors::TransportConnector>,
    go: Option<(Dialect, Arc<pingora::connectors::http::Connector>)>,
}

impl<'a> Links<'a> {
    fn new(
        configured: &'a config::Fleet,
        surroundings: &'a Surroundings<'a>,
        before: &'a Members,
    ) -> Result<Self, FleetError> {
        let alike = before.config.as_ref().is_some_and(|before| {
            before.tls == configured.tls
                && before.timeouts == configured.timeouts
                && before.ring == configured.ring
                && before.go == configured.go
        });
        let tls = configured.tls.as_ref().map(|tls| (text(&tls.ca), (text(&tls.pair.cert), text(&tls.pair.key))));
        let (ca, pair) = tls.unzip();
        let go = dialect(configured.ring).map(|dialect| (dialect, http_connector(ca.clone(), pair.clone())));
        let (kept, kept_former) = if alike { (&before.list[..], &before.former[..]) } else { (&[][..], &[][..]) };
        Ok(Links { configured, surroundings, kept, kept_former, transport: connector(ca, pair), go })
    }

    fn to(&self, peer: &FleetPeer) -> Result<Arc<PeerLink>, FleetError> {
        let members = self.kept.iter().filter_map(|member| Some((&member.url, member.link.as_ref()?)));
        let former = self.kept_former.iter().map(|former| (&former.url, &former.peer));
        if let Some((_, link)) = members.chain(former).find(|(url, _)| **url == peer.url) {
            return Ok(link.clone());
        }
        let failed = |reason: &str| FleetError { key: "peers", reason: format!("{}: {reason}", peer.url) };
        let address = PeerAddress::parse(&peer.url).map_err(failed)?;
        let timeouts = self.configured.timeouts;
        let settings = ClientSettings {
            timeouts: Timeouts { connect: timeouts.connect, silence: timeouts.silence, ..Timeouts::default() },
            connections: connections_to_a_peer(self.surroundings.threads, self.configured.peers.len()),
            ..ClientSettings::default()
        };
        let dial = Box::new(TcpDial::new(address.clone(), self.transport.clone()));
        let native = NativePeer::new(self.surroundings.local.clone(), dial, settings);
        Ok(Arc::new(match &self.go {
            None => PeerLink::native(native),
            Some((dialect, connector)) => {
                let settings = GoSettings {
                    base_path: self.configured.go.base_path.clone(),
                    connect_timeout: timeouts.connect,
                    deadline: self.surroundings.origin_patience,
                    ..GoSettings::new(*dialect)
                };
                let go = GoPeer::new(address, settings, connector.clone(), self.surroundings.clock.clone());
                PeerLink::on_go_ring(native, go)
            }
        }))
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn ring_kind(ring: config::Ring) -> RingKind {
    match ring {
        config::Ring::Balanced => RingKind::Balanced,
        config::Ring::Groupcache => RingKind::Groupcache,
        config::Ring::Mailgun => RingKind::Mailgun,
        config::Ring::V3 => RingKind::V3,
    }
}

fn dialect(ring: config::Ring) -> Option<Dialect> {
    match ring {
        config::Ring::Balanced => None,
        config::Ring::Groupcache => Some(Dialect::Golang),
        config::Ring::Mailgun => Some(Dialect::Mailgun),
        config::Ring::V3 => Some(Dialect::V3),
    }
}

/// Which of the peers is this node.
fn own_index(configured: &config::Fleet, listeners: &[SocketAddr]) -> Result<Option<usize>, FleetError> {
    match &configured.self_peer {
        SelfPeer::Url(url) => Ok(configured.peers.iter().position(|peer| peer.url == *url)),
        SelfPeer::Auto => own_among(&configured.peers, listeners, is_own_address),
    }
}

/// The peer with an address of this machine; among several, that on whose port this node listens.
fn own_among(
    peers: &[FleetPeer],
    listeners: &[SocketAddr],
    is_own: impl Fn(IpAddr) -> bool,
) -> Result<Option<usize>, FleetError> {
    let here: Vec<usize> = (0..peers.len()).filter(|&index| addresses_of(&peers[index]).any(&is_own)).collect();
    let listening: Vec<usize> = here
        .iter()
        .copied()
        .filter(|&index| listeners.iter().any(|listener| listener.port() == peers[index].address.port))
        .collect();
    match (&here[..], &listening[..]) {
        ([], _) => Ok(None),
        ([only], _) | (_, [only]) => Ok(Some(*only)),
        _ => Err(FleetError {
            key: "self",
            reason: format!(
                "{} peers are addresses of this machine; say which one this node is: self: {}",
                here.len(),
                peers[here[0]].url
            ),
        }),
    }
}

/// Asks the resolver, which may take a while.
fn addresses_of(peer: &FleetPeer) -> impl Iterator<Item = IpAddr> + use<> {
    let found = (peer.address.host.as_str(), peer.address.port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
    let found = found.unwrap_or_else(|error| {
        tracing::warn!(peer = %peer.url, %error, "the name of a peer has no address now");
        Vec::new()
    });
    found.into_iter().map(|address| address.ip().to_canonical())
}

/// An address of this machine is one that a socket can be bound to.
fn is_own_address(address: IpAddr) -> bool {
    !address.is_unspecified() && TcpListener::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, SystemEnvironment};

    fn peers(urls: &[&str]) -> Vec<FleetPeer> {
        let text = format!(
            "fleet: {{ secret: sixteen-bytes-or-more, peers: [{}] }}\ngroups: [{{ name: a, origin: 'http://127.0.0.1:9' }}]",
            urls.join(", ")
        );
        let parsed = Config::parse(&text, "test", Path::new(""), &SystemEnvironment::default());
        parsed.unwrap_or_else(|problems| panic!("{problems}")).config.fleet.unwrap().peers
    }

    #[test]
    fn a_node_finds_itself_among_its_peers() {
        let own = |address: IpAddr| address.to_string() == "10.0.0.4" || address.is_loopback();
        for (urls, ports, expected) in [
            (vec!["http://10.0.0.4:8082", "http://10.0.0.5:8082"], vec![8082], Ok(Some(0))),
            (vec!["http://10.0.0.5:8082", "http://10.0.0.4:8082"], vec![9], Ok(Some(1))),
            (vec!["http://10.0.0.5:8082", "http://10.0.0.6:8082"], vec![8082], Ok(None)),
            (vec!["http://127.0.0.1:1", "http://127.0.0.1:2"], vec![2], Ok(Some(1))),
            (vec!["http://127.0.0.1:1", "http://127.0.0.1:2"], vec![3], Err(())),
        ] {
            let listeners: Vec<SocketAddr> = ports.iter().map(|&port| SocketAddr::from(([0, 0, 0, 0], port))).collect();
            let found = own_among(&peers(&urls), &listeners, own);
            assert_eq!(found.map_err(|_| ()), expected, "{urls:?} {ports:?}");
        }
    }

    #[test]
    fn loopback_is_an_address_of_this_machine_and_a_documentation_address_is_not() {
        assert!(is_own_address("127.0.0.1".parse().unwrap()));
        assert!(!is_own_address("192.0.2.1".parse().unwrap()));
    }
}
