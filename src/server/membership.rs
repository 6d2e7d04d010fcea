//! Finds the members of the fleet while the node runs: in a file, by names, by gossip. Every change goes the same way:
//!
//! ```text
//! file, DNS, gossip ── a list that differs ── [`COALESCE`] for others to come ── ring and connections, off the serving threads ── swap
//! ```
//!
//! A source that fails or has nothing to say changes nothing: the last good list stays, with a warning and a counter.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use parking_lot::Mutex;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::config::{Fleet, FleetPeer, Lookup, PEERS_MAX, PeerSource, SelfPeer, Url, parse_peer_list};
use crate::membership::gossip::{self, Gossip, Member};
use crate::membership::seal::PACKET_BYTES_MAX;
use crate::server::reload::{Reloader, stamp};
use crate::stats::{Counter, Tally};

/// The search for members, and what came of it.
pub struct Membership {
    /// Lists that were applied.
    pub changes: Counter,
    /// Times that a source failed or had nothing to say.
    pub failures: Counter,
    /// Why it failed last; `None` after it succeeded.
    pub last_failure: Mutex<Option<String>>,
    /// Packets of gossip that were dropped, by reason.
    pub dropped: Tally,
    /// Where this node gossips.
    pub gossip_address: Mutex<Option<SocketAddr>>,
    running: Mutex<Option<Running>>,
    /// Whether the members are known as well as can be expected of a node that has just started.
    settled: watch::Sender<bool>,
    /// Turned true when this node leaves.
    leaving: watch::Sender<bool>,
}

struct Running {
    /// What the search depends on; the members are its result.
    fleet: Option<Fleet>,
    tasks: Vec<AbortHandle>,
}

impl Default for Membership {
    fn default() -> Self {
        Membership {
            changes: Counter::default(),
            failures: Counter::default(),
            last_failure: Mutex::default(),
            dropped: Tally::default(),
            gossip_address: Mutex::default(),
            running: Mutex::default(),
            settled: watch::Sender::new(false),
            leaving: watch::Sender::new(false),
        }
    }
}

impl Membership {
    /// Begins to search as `fleet` says, unless that is what is done already; to be called inside a runtime.
    pub fn follow(&self, fleet: Option<&Fleet>, reloader: &Arc<Reloader>) {
        let mut running = self.running.lock();
        let fleet = fleet.filter(|fleet| fleet.source != PeerSource::List);
        // What is found, and what is done with those who are not found any more, is no part of the search.
        let search =
            |fleet: &Fleet| Fleet { peers: Vec::new(), source: fleet.source.clone().without_forget(), ..fleet.clone() };
        let fleet = fleet.map(search);
        if running.as_ref().is_some_and(|running| running.fleet == fleet) {
            return;
        }
        if let Some(before) = running.take() {
            before.tasks.iter().for_each(AbortHandle::abort);
        }
        let mut tasks = Vec::new();
        match &fleet {
            None => {
                self.settled.send_replace(true);
            }
            Some(fleet) => {
                let (found, list) = watch::channel(None);
                tasks.push(tokio::spawn(apply(Arc::downgrade(reloader), list)).abort_handle());
                let search = Search { fleet: fleet.clone(), reloader: Arc::downgrade(reloader), found };
                tasks.push(tokio::spawn(search.run()).abort_handle());
            }
        }
        *running = Some(Running { fleet, tasks });
    }

    /// Returns when the members are known, or after a second all the same.
    pub async fn settled(&self) {
        let mut settled = self.settled.subscribe();
        let _ = tokio::time::timeout(SETTLE_MAX, settled.wait_for(|settled| *settled)).await;
    }

    /// Tells the others that this node leaves for good.
    pub fn leave(&self) {
        self.leaving.send_replace(true);
    }

    fn failed(&self, reason: String) {
        self.failures.increment();
        let mut last = self.last_failure.lock();
        if last.as_ref() != Some(&reason) {
            tracing::warn!(reason, "the members of the fleet cannot be found out now; those that are known stay");
        }
        *last = Some(reason);
    }
}

/// Applies each list that is found, and of several at once only the last.
async fn apply(reloader: Weak<Reloader>, mut list: watch::Receiver<Option<Vec<FleetPeer>>>) {
    while list.changed().await.is_ok() {
        tokio::time::sleep(COALESCE).await;
        let Some(peers) = list.borrow_and_update().clone() else { continue };
        let Some(reloader) = reloader.upgrade() else { return };
        let membership = &reloader.node.membership;
        match reloader.set_peers(peers).await {
            Ok(()) => membership.changes.increment(),
            Err(reason) => membership.failed(reason),
        }
        membership.settled.send_replace(true);
    }
}

/// One source being followed.
struct Search {
    fleet: Fleet,
    reloader: Weak<Reloader>,
    found: watch::Sender<Option<Vec<FleetPeer>>>,
}

impl Search {
    async fn run(self) {
        match self.fleet.source.clone() {
            PeerSource::List => {}
            PeerSource::File(path) => self.follow_file(&path).await,
            PeerSource::Dns { url, lookup } => self.follow_names(&lookup, Question::Addresses(url)).await,
            PeerSource::Srv { name, lookup } => self.follow_names(&lookup, Question::Service(name)).await,
            PeerSource::Gossip { seeds, address, .. } => self.gossip(&seeds, address).await,
        }
    }

    /// A list from the source: nothing is done with one that says nothing new, that is empty, or that cannot be.
    fn publish(&self, mut peers: Vec<FleetPeer>) -> Result<(), String> {
        if peers.is_empty() {
            return Err("the list is empty".to_owned());
        }
        if peers.len() > PEERS_MAX {
            return Err(format!("more than {PEERS_MAX} members"));
        }
        for peer in &peers {
            self.fleet.can_have(peer).map_err(|reason| format!("{}: {reason}", peer.url))?;
        }
        peers.sort_by(|one, other| one.url.cmp(&other.url));
        peers.dedup_by(|one, other| one.url == other.url);
        if let Some(reloader) = self.reloader.upgrade() {
            *reloader.node.membership.last_failure.lock() = None;
        }
        self.found.send_if_modified(|found| {
            let changed = found.as_ref() != Some(&peers);
            if changed {
                *found = Some(peers);
            }
            changed
        });
        Ok(())
    }

    fn note(&self, published: Result<(), String>) {
        if let (Err(reason), Some(reloader)) = (published, self.reloader.upgrade()) {
            reloader.node.membership.failed(reason);
        }
    }

    async fn follow_file(&self, path: &Path) {
        // What was read with the configuration is in effect already.
        self.settle();
        let mut seen = stamp(path);
        loop {
            tokio::time::sleep(FILE_PAUSE).await;
            let found = stamp(path);
            if found == seen {
                continue;
            }
            let text = tokio::fs::read_to_string(path).await;
            let peers = text.map_err(|error| format!("{}: {error}", path.display())).and_then(|text| {
                parse_peer_list(&text).map_err(|problems| {
                    let lines = problems.iter().map(|(position, message)| {
                        format!("{}:{}:{}: {message}", path.display(), position.line, position.column)
                    });
                    lines.collect::<Vec<_>>().join("; ")
                })
            });
            self.note(peers.and_then(|peers| self.publish(peers)));
            seen = found;
        }
    }

    fn settle(&self) {
        if let Some(reloader) = self.reloader.upgrade() {
            reloader.node.membership.settled.send_replace(true);
        }
    }

    async fn follow_names(&self, lookup: &Lookup, question: Question) {
        loop {
            // Built anew each time: /etc/resolv.conf may change, and a look-up in seconds costs nothing.
            let peers = match tokio::time::timeout(LOOKUP_MAX, question.ask(lookup, self.fleet.tls.is_some())).await {
                Ok(peers) => peers,
                Err(_) => Err("no answer in time".to_owned()),
            };
            let peers = peers.map_err(|reason| format!("{}: {reason}", question.name()));
            self.note(peers.and_then(|peers| self.publish(peers)));
            tokio::time::sleep(lookup.every).await;
        }
    }

    async fn gossip(&self, seeds: &[String], address: SocketAddr) {
        loop {
            if let Err(reason) = self.try_gossip(seeds, address).await {
                self.note(Err(format!("gossip: {reason}")));
            }
            tokio::time::sleep(REBIND_PAUSE).await;
        }
    }

    /// Gossips until the socket fails.
    async fn try_gossip(&self, seeds: &[String], address: SocketAddr) -> Result<(), String> {
        let SelfPeer::Url(url) = &self.fleet.self_peer else { return Err("the URL of this node is not known".into()) };
        let own = FleetPeer::parse(url, 1)?;
        let socket = UdpSocket::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
        let bound = socket.local_addr().map_err(|error| error.to_string())?;
        let reached = SocketAddr::new(reached_at(&own.address, bound).await?, bound.port());
        let (mut life, mut seed) = ([0; 8], [0; 32]);
        let random = SystemRandom::new();
        random.fill(&mut life).and_then(|()| random.fill(&mut seed)).map_err(|_| "no random numbers".to_owned())?;
        let mut gossip = Gossip::new(gossip::Settings {
            own: Member { url: url.clone(), weight: 1 },
            address: reached,
            life: u64::from_ne_bytes(life).max(1),
            secrets: self.fleet.secrets.iter().map(|secret| secret.expose().as_bytes().to_vec()).collect(),
            seed,
        });
        let Some(membership) = self.reloader.upgrade().map(|reloader| reloader.node.membership.clone()) else {
            return Ok(());
        };
        *membership.gossip_address.lock() = Some(reached);
        tracing::info!(address = %reached, "gossiping");
        if seeds.is_empty() {
            membership.settled.send_replace(true);
        }
        let begun = Instant::now();
        let mut leaving = membership.leaving.subscribe();
        let mut introduce_at = begun;
        let mut buffer = vec![0; PACKET_BYTES_MAX + 1];
        loop {
            if introduce_at <= Instant::now() {
                // Some of the seeds may be this node, some may be dead, and names may have other addresses now.
                for seed in seeds {
                    let found = tokio::time::timeout(LOOKUP_MAX, tokio::net::lookup_host(seed)).await;
                    for address in found.ok().and_then(Result::ok).into_iter().flatten().filter(|to| *to != reached) {
                        gossip.introduce(address, begun.elapsed());
                    }
                }
                let pause = if gossip.alive() == 0 { INTRODUCE_ALONE } else { INTRODUCE_PAUSE };
                introduce_at = Instant::now() + pause;
            }
            for (to, packet) in gossip.take_packets() {
                // A packet that is lost is no loss.
                let _ = socket.send_to(&packet, to).await;
            }
            if let Some(members) = gossip.take_members(begun.elapsed()) {
                self.publish_members(members);
            }
            let next = gossip.next_time().map_or(introduce_at, |next| introduce_at.min(begun + next));
            tokio::select! {
                received = socket.recv_from(&mut buffer) => match received {
                    Ok((bytes, from)) => {
                        if let Err(dropped) = gossip.take_packet(&buffer[..bytes], from, begun.elapsed()) {
                            membership.dropped.increment(dropped.as_str());
                        }
                    }
                    // The answer to a packet for a port that nobody listens on.
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                    Err(error) => return Err(error.to_string()),
                },
                () = tokio::time::sleep_until(next) => gossip.take_time(begun.elapsed()),
                () = async { let _ = leaving.wait_for(|leaving| *leaving).await; } => {
                    gossip.leave(begun.elapsed());
                    for (to, packet) in gossip.take_packets() {
                        let _ = socket.send_to(&packet, to).await;
                    }
                    return std::future::pending().await;
                }
            }
        }
    }

    /// Members whose words cannot be followed are left out, and the rest is a fleet.
    fn publish_members(&self, members: Vec<Member>) {
        let usable = |member: &Member| {
            let peer = FleetPeer::parse(&member.url, member.weight).map_err(|error| format!("expected {error}"));
            let peer = peer.and_then(|peer| match self.fleet.can_have(&peer) {
                Ok(()) => Ok(peer),
                Err(reason) => Err(reason.to_owned()),
            });
            peer.map_err(|reason| tracing::warn!(url = member.url, reason, "a node cannot be a member")).ok()
        };
        self.note(self.publish(members.iter().filter_map(usable).collect()));
    }
}

/// The address under which others reach this node: the one that it is bound to, else that of its URL.
async fn reached_at(own: &Url, bound: SocketAddr) -> Result<IpAddr, String> {
    if !bound.ip().is_unspecified() {
        return Ok(bound.ip());
    }
    let found = tokio::net::lookup_host((own.host.as_str(), own.port)).await;
    let mut found = found.map_err(|error| format!("{}: {error}", own.host))?.map(|address| address.ip());
    let found = found.find(|ip| ip.is_ipv4() == bound.is_ipv4());
    found.ok_or_else(|| format!("{} has no address of the kind that fleet.peers.address has", own.host))
}

/// What is asked of the name servers.
enum Question {
    /// The addresses of the URL's name.
    Addresses(Url),
    /// The members of a service.
    Service(String),
}

impl Question {
    fn name(&self) -> &str {
        match self {
            Question::Addresses(url) => &url.host,
            Question::Service(name) => name,
        }
    }

    async fn ask(&self, lookup: &Lookup, tls: bool) -> Result<Vec<FleetPeer>, String> {
        match self {
            Question::Addresses(url) if lookup.nameservers.is_empty() => {
                // As everything else on this machine resolves names, its file of hosts included.
                let found = tokio::net::lookup_host((url.host.as_str(), url.port)).await;
                peers_at(url, found.map_err(|error| error.to_string())?.map(|address| address.ip()))
            }
            Question::Addresses(url) => {
                let found = resolver(lookup)?.lookup_ip(absolute(&url.host)).await;
                peers_at(url, found.map_err(|error| error.to_string())?.iter())
            }
            Question::Service(name) => {
                let found = resolver(lookup)?.srv_lookup(absolute(name)).await.map_err(|error| error.to_string())?;
                let services = found.answers().iter().filter_map(|record| match &record.data {
                    RData::SRV(service) => Some((service.target.to_string(), service.port, service.weight)),
                    _ => None,
                });
                let services: Vec<(String, u16, u16)> = services.collect();
                // Weights of one size say nothing, whatever the size is.
                let alike = services.windows(2).all(|pair| pair[0].2 == pair[1].2);
                let scheme = if tls { "https" } else { "http" };
                let peer = |(target, port, weight): &(String, u16, u16)| {
                    let url = format!("{scheme}://{}:{port}", target.trim_end_matches('.'));
                    FleetPeer::parse(&url, if alike { 1 } else { u32::from(*weight) })
                };
                services.iter().map(peer).collect::<Result<_, _>>().map_err(|expected| format!("expected {expected}"))
            }
        }
    }
}

fn peers_at(url: &Url, addresses: impl Iterator<Item = IpAddr>) -> Result<Vec<FleetPeer>, String> {
    let scheme = if url.https { "https" } else { "http" };
    let peer =
        |ip: IpAddr| FleetPeer::parse(&format!("{scheme}://{}", SocketAddr::new(ip.to_canonical(), url.port)), 1);
    addresses.map(peer).collect()
}

/// A name of a configuration is whole: no search list is tried for it, unless it has no dot.
fn absolute(name: &str) -> String {
    if name.contains('.') && !name.ends_with('.') { format!("{name}.") } else { name.to_owned() }
}

fn resolver(lookup: &Lookup) -> Result<TokioResolver, String> {
    let builder = match &lookup.nameservers[..] {
        [] => TokioResolver::builder_tokio().map_err(|error| error.to_string())?,
        servers => {
            let servers = servers.iter().map(|server| {
                let with_port = |mut connection: ConnectionConfig| {
                    connection.port = server.port();
                    connection
                };
                let connections = vec![with_port(ConnectionConfig::udp()), with_port(ConnectionConfig::tcp())];
                NameServerConfig::new(server.ip(), true, connections)
            });
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let mut builder = builder;
    let options = builder.options_mut();
    // Both families: a member that has one only is a member.
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.timeout = Duration::from_secs(1);
    options.cache_size = 0;
    builder.build().map_err(|error| error.to_string())
}

/// Changes that come together are one change.
const COALESCE: Duration = Duration::from_millis(50);

/// How long a node that starts is not ready because it knows nobody yet.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// How often a file is looked at.
const FILE_PAUSE: Duration = Duration::from_secs(1);

/// For one look-up with all its attempts.
const LOOKUP_MAX: Duration = Duration::from_secs(4);

/// Until the next introduction to the seeds: while nobody is known, and otherwise. The latter joins halves of a fleet that
/// forgot one another.
const INTRODUCE_ALONE: Duration = Duration::from_millis(200);
const INTRODUCE_PAUSE: Duration = Duration::from_secs(10);

/// Until a socket that failed is bound again.
const REBIND_PAUSE: Duration = Duration::from_secs(1);
