//! The section `fleet`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::super::peer_list::{is_same, parse_peer_list};
use super::super::problem::Problem;
use super::super::section::{Checker, Section};
use super::super::units::{Expected, duration, duration_above_zero};
use super::super::values::{
    Fleet, FleetPeer, FleetTimeouts, FleetTls, GoPeers, Listener, Lookup, Partition, PeerSource, Resharding, Ring,
    SelfPeer, TlsPair,
};
use super::super::yaml::{Node, Value};
use super::{secrets, text, tls};

const RINGS: &[(&str, Ring)] =
    &[("balanced", Ring::Balanced), ("groupcache", Ring::Groupcache), ("mailgun", Ring::Mailgun), ("v3", Ring::V3)];

const PARTITIONS: &[(&str, Partition)] = &[("serve", Partition::Serve), ("strict", Partition::Strict)];

const RESHARDINGS: &[(&str, Resharding)] = &[("warm", Resharding::Warm), ("cold", Resharding::Cold)];

/// Shorter secrets can be guessed from one recorded proof.
const SECRET_BYTES_MIN: usize = 16;

/// Reads the section; `listen` are the clients' listeners, on which peers are answered where there is no `address`.
pub(super) fn fleet(checker: &mut Checker<'_>, node: &Node, listen: &[Listener]) -> Fleet {
    let mut section = checker.section(Some(node), node.path.clone(), node.position);
    let address_node = section.take("address");
    let address = address_node.and_then(|node| checker.read(node, text::listen_address));
    let self_node = section.take("self");
    let mut self_peer = self_node.and_then(|node| checker.read(node, self_peer)).unwrap_or(SelfPeer::Auto);
    let ring_node = section.take("ring");
    let ring = ring_node.and_then(|node| checker.read(node, text::word(RINGS))).unwrap_or(Ring::Balanced);
    let peers_position = section.position_of("peers");
    let (peers, source) = peers(checker, &mut section, ring);
    let secret_node = section.take("secret");
    let secrets = secret_node.map_or(Some(Vec::new()), |node| secrets(checker, node, SECRET_BYTES_MIN));
    let tls = section.take("tls").map(|node| tls_section(checker, node));
    let timeouts = {
        let mut section = checker.subsection(&mut section, "timeouts");
        let timeouts = FleetTimeouts {
            connect: checker.leaf(&mut section, "connect", Duration::from_millis(250), duration_above_zero),
            silence: checker.leaf(&mut section, "silence", Duration::from_secs(1), duration_above_zero),
        };
        section.finish(checker);
        timeouts
    };
    let go = go(checker, &mut section, ring);
    let partition_node = section.take("partition");
    let partition = partition_node.and_then(|node| checker.read(node, text::word(PARTITIONS))).unwrap_or_default();
    if let (Some(node), Partition::Strict) = (partition_node, partition) {
        if ring.is_go() {
            checker.unexpected(node, "serve: Go nodes know no leases");
        }
        // Found members are those that can be seen: two halves would each be a majority of themselves.
        if !matches!(source, PeerSource::List | PeerSource::File(_)) {
            checker.unexpected(node, "serve: a majority is one of members that are listed, in fleet.peers or a file");
        }
    }
    let resharding = checker.leaf(&mut section, "resharding", Resharding::Warm, text::word(RESHARDINGS));

    // Who finds its peers while it runs cannot know where they are.
    let all_loopback =
        peers.iter().all(|peer| peer.address.is_loopback()) && matches!(source, PeerSource::List | PeerSource::File(_));
    if secrets.as_ref().is_some_and(Vec::is_empty) && !all_loopback {
        let position = secret_node.map_or(section.position, |node| node.position);
        let message = "missing or empty, expected a secret of 16 bytes or more: not every peer is loopback";
        checker.problem(position, &section.path_of("secret"), message);
    }
    if ring.is_go() && address_node.is_none() && listen.iter().any(|listener| !listener.address.ip().is_loopback()) {
        let position = ring_node.map_or(section.position, |node| node.position);
        let message = "missing, expected an address only for peers: Go peers can prove nothing, and a listener for \
                       clients is not loopback";
        checker.problem(position, &section.path_of("address"), message);
    }
    let looked_up = match &source {
        PeerSource::Dns { url, .. } if url.https => {
            Some(FleetPeer { url: url.to_string(), address: url.clone(), weight: 1 })
        }
        _ => None,
    };
    let https = peers.iter().chain(&looked_up).find(|peer| peer.address.https);
    match (&tls, https) {
        (None, Some(peer)) => {
            let message = format!("missing, expected ca, cert and key: the peer {} is https://", peer.url);
            checker.problem(section.position, &section.path_of("tls"), message);
        }
        (Some(_), None) if !peers.is_empty() && source == PeerSource::List => {
            checker.warn(section.position, &section.path_of("tls"), "does nothing: no peer is named https://");
        }
        _ => {}
    }
    if let (SelfPeer::Url(url), Some(node)) = (&self_peer, self_node)
        && source == PeerSource::List
        && !peers.iter().any(|peer| peer.url == *url)
    {
        checker.warn(node.position, &node.path, "is not among the peers, byte for byte: this node will own nothing");
    }
    if let PeerSource::Gossip { .. } = &source {
        // Others hear the URL from this node itself: it has to know it.
        if let (SelfPeer::Auto, Some(address)) = (&self_peer, address.filter(|address| !address.ip().is_unspecified()))
        {
            self_peer = SelfPeer::Url(format!("http{}://{address}", if tls.is_some() { "s" } else { "" }));
        }
        if self_peer == SelfPeer::Auto {
            let position = self_node.or(address_node).map_or(section.position, |node| node.position);
            let message = "expected the URL of this node, such as http://10.0.0.4:8082: others hear it by gossip";
            checker.problem(position, &section.path_of("self"), message);
        }
        if ring.is_go() {
            let position = peers_position.unwrap_or(section.position);
            checker.problem(
                position,
                &section.path_of("peers"),
                "found gossip, which Go nodes do not speak, expected a list",
            );
        }
    }
    section.finish(checker);
    Fleet {
        address,
        self_peer,
        peers,
        source,
        ring,
        secrets: secrets.unwrap_or_default(),
        tls,
        timeouts,
        go,
        partition,
        resharding,
    }
}

fn self_peer(text: &str) -> Result<SelfPeer, Expected> {
    match text {
        "auto" => Ok(SelfPeer::Auto),
        url => match text::peer_url(url) {
            Ok(_) => Ok(SelfPeer::Url(url.to_owned())),
            Err(expected) => Err(format!("auto, or {expected}").into()),
        },
    }
}

/// The members that are known, and where the others come from.
fn peers(checker: &mut Checker<'_>, section: &mut Section<'_>, ring: Ring) -> (Vec<FleetPeer>, PeerSource) {
    let expected = "a list of URLs, such as [http://10.0.0.4:8082, http://10.0.0.5:8082], or one of { file: PATH }, \
                    { dns: URL }, { srv: NAME } and { gossip: [HOST:PORT] }";
    let Some(node) = section.take("peers") else {
        checker.missing(section, "peers", expected);
        return (Vec::new(), PeerSource::List);
    };
    match &node.value {
        Value::List(list) => (listed(checker, node, list, ring), PeerSource::List),
        Value::Map(_) => found(checker, node, expected),
        _ => {
            checker.unexpected(node, expected);
            (Vec::new(), PeerSource::List)
        }
    }
}

fn listed(checker: &mut Checker<'_>, node: &Node, list: &[Node], ring: Ring) -> Vec<FleetPeer> {
    if list.is_empty() {
        checker.unexpected(node, "at least one peer");
    }
    let mut peers: Vec<FleetPeer> = Vec::new();
    for element in list {
        let Some((url_node, peer)) = peer(checker, element, ring) else { continue };
        match peers.iter().find(|other| is_same(&other.address, &peer.address)) {
            Some(other) => {
                let message = format!("{} appears twice, first as {}", peer.url, other.url);
                checker.problem(url_node.position, &url_node.path, message);
            }
            None => peers.push(peer),
        }
    }
    peers
}

/// A map that says where to find the members.
fn found(checker: &mut Checker<'_>, node: &Node, expected: &str) -> (Vec<FleetPeer>, PeerSource) {
    let mut section = checker.section(Some(node), node.path.clone(), node.position);
    let (file, dns) = (section.take("file"), section.take("dns"));
    let (srv, gossip) = (section.take("srv"), section.take("gossip"));
    let given = [file, dns, srv, gossip].iter().flatten().count();
    let mut peers = Vec::new();
    let mut source = None;
    if let Some(node) = file {
        let path = checker.read(node, text::not_empty("the path of a file")).map(|path| checker.resolve(&path));
        if let Some(path) = path {
            peers = read_list(checker, node, &path);
            source = Some(PeerSource::File(path));
        }
    }
    if let Some(node) = dns {
        let url = checker.read(node, text::peer_url);
        let lookup = lookup(checker, &mut section);
        source = url.map(|url| PeerSource::Dns { url, lookup });
    } else if let Some(node) = srv {
        let name = checker.read(node, text::service_name);
        let lookup = lookup(checker, &mut section);
        source = name.map(|name| PeerSource::Srv { name, lookup });
    }
    if let Some(node) = gossip {
        let seeds = checker.one_or_list(
            node,
            "a list of hosts and ports, such as [10.0.0.5:7946]",
            text::host_and_port_required,
        );
        let address = checker.leaf(&mut section, "address", GOSSIP_ADDRESS, text::listen_address);
        let forget = checker.leaf(&mut section, "forget", FORGET, duration);
        source = Some(PeerSource::Gossip { seeds: seeds.into_iter().map(|(_, seed)| seed).collect(), address, forget });
    }
    if given != 1 && !section.has_unknown() {
        checker.unexpected(node, expected);
    }
    section.finish(checker);
    (peers, source.unwrap_or(PeerSource::List))
}

fn lookup(checker: &mut Checker<'_>, section: &mut Section<'_>) -> Lookup {
    Lookup {
        every: checker.leaf(section, "every", Duration::from_secs(5), duration_above_zero),
        nameservers: checker.list(section, "nameservers", Vec::new(), text::name_server),
        forget: checker.leaf(section, "forget", FORGET, duration),
    }
}

/// The members that the file lists now; its mistakes are reported with their places in it.
fn read_list(checker: &mut Checker<'_>, node: &Node, path: &Path) -> Vec<FleetPeer> {
    let read = checker.environment.read_file(path).map_err(|error| error.to_string());
    let text = read.and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned()));
    match text.as_deref().map(parse_peer_list) {
        Err(why) => {
            checker.unexpected_path(node, "a file with a URL in each line", path, why);
            Vec::new()
        }
        Ok(Err(problems)) => {
            let file = path.display().to_string();
            for (position, message) in problems {
                let key = node.path.clone();
                checker.problems.push(Problem { file: file.clone(), position: Some(position), key, message });
            }
            Vec::new()
        }
        Ok(Ok(peers)) => peers,
    }
}

fn peer<'n>(checker: &mut Checker<'_>, element: &'n Node, ring: Ring) -> Option<(&'n Node, FleetPeer)> {
    let with_text = |text: &str| text::peer_url(text).map(|address| (text.to_owned(), address));
    if !matches!(element.value, Value::Map(_)) {
        let (url, address) = checker.read(element, with_text)?;
        return Some((element, FleetPeer { url, address, weight: 1 }));
    }
    let mut section = checker.section(Some(element), element.path.clone(), element.position);
    let url_node = section.take("url");
    if url_node.is_none() {
        checker.missing(&section, "url", "a URL such as http://10.0.0.4:8082");
    }
    let weight_node = section.take("weight");
    let weight = weight_node.and_then(|node| checker.read(node, text::number(1, 100))).unwrap_or(1);
    if let Some(node) = weight_node
        && ring.is_go()
        && weight != 1
    {
        checker.unexpected(node, "1: rings of Go nodes know no weights");
    }
    section.finish(checker);
    let (url, address) = checker.read(url_node?, with_text)?;
    Some((url_node?, FleetPeer { url, address, weight: u32::try_from(weight).unwrap_or(1) }))
}

fn tls_section(checker: &mut Checker<'_>, node: &Node) -> FleetTls {
    let mut section = checker.section(Some(node), node.path.clone(), node.position);
    let ca = tls::authorities(checker, &mut section, "ca");
    if ca.is_none() {
        checker.missing(&section, "ca", "the path of a PEM file");
    }
    let pair: TlsPair = tls::pair(checker, &mut section);
    section.finish(checker);
    FleetTls { ca: ca.unwrap_or_default(), pair }
}

fn go(checker: &mut Checker<'_>, fleet: &mut Section<'_>, ring: Ring) -> GoPeers {
    let mut section = checker.subsection(fleet, "go");
    if !ring.is_go() && fleet.has("go") {
        checker.warn(section.position, &section.path, "does nothing: fleet.ring is not one of Go nodes");
    }
    let go = GoPeers {
        allow: checker.list(&mut section, "allow", Vec::new(), text::network),
        replicas: u32::try_from(checker.leaf(&mut section, "replicas", 50, text::number(1, 10_000))).unwrap_or(50),
        base_path: checker.leaf(&mut section, "base_path", "/_groupcache/".to_owned(), base_path),
        accept_set: checker.leaf(&mut section, "accept_set", false, text::boolean),
    };
    section.finish(checker);
    go
}

fn base_path(text: &str) -> Result<String, Expected> {
    match text::path_prefix(text) {
        Ok(path) if path == text && path != "/" => Ok(path),
        _ => Err("a path of at least one segment that begins and ends with /, such as /_groupcache/".into()),
    }
}

/// Where a node gossips that does not say it.
const GOSSIP_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7946);

/// How long a member that is not found any more is told of purges where nothing else is said: most splits of a network are over by then, and a node
/// that crashed for good does not fail purges for ever.
const FORGET: Duration = Duration::from_secs(600);
