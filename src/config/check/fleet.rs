//! The section `fleet`.

use std::net::IpAddr;
use std::time::Duration;

use super::super::section::{Checker, Section};
use super::super::units::{Expected, duration_above_zero};
use super::super::values::{
    Fleet, FleetPeer, FleetTimeouts, FleetTls, GoPeers, Listener, Ring, SelfPeer, TlsPair, Url,
};
use super::super::yaml::{Node, Value};
use super::{secrets, text, tls};

const RINGS: &[(&str, Ring)] =
    &[("balanced", Ring::Balanced), ("groupcache", Ring::Groupcache), ("mailgun", Ring::Mailgun), ("v3", Ring::V3)];

/// Shorter secrets can be guessed from one recorded proof.
const SECRET_BYTES_MIN: usize = 16;

/// Reads the section; `listen` are the clients' listeners, on which peers are answered where there is no `address`.
pub(super) fn fleet(checker: &mut Checker<'_>, node: &Node, listen: &[Listener]) -> Fleet {
    let mut section = checker.section(Some(node), node.path.clone(), node.position);
    let address_node = section.take("address");
    let address = address_node.and_then(|node| checker.read(node, text::listen_address));
    let self_node = section.take("self");
    let self_peer = self_node.and_then(|node| checker.read(node, self_peer)).unwrap_or(SelfPeer::Auto);
    let ring_node = section.take("ring");
    let ring = ring_node.and_then(|node| checker.read(node, text::word(RINGS))).unwrap_or(Ring::Balanced);
    let peers = peers(checker, &mut section, ring);
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

    let all_loopback = peers.iter().all(|peer| is_loopback(&peer.address));
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
    let https = peers.iter().find(|peer| peer.address.https);
    match (&tls, https) {
        (None, Some(peer)) => {
            let message = format!("missing, expected ca, cert and key: the peer {} is https://", peer.url);
            checker.problem(section.position, &section.path_of("tls"), message);
        }
        (Some(_), None) if !peers.is_empty() => {
            checker.warn(section.position, &section.path_of("tls"), "does nothing: no peer is named https://");
        }
        _ => {}
    }
    if let (SelfPeer::Url(url), Some(node)) = (&self_peer, self_node)
        && !peers.iter().any(|peer| peer.url == *url)
    {
        checker.warn(node.position, &node.path, "is not among the peers, byte for byte: this node will own nothing");
    }
    section.finish(checker);
    Fleet { address, self_peer, peers, ring, secrets: secrets.unwrap_or_default(), tls, timeouts, go }
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

fn peers(checker: &mut Checker<'_>, section: &mut Section<'_>, ring: Ring) -> Vec<FleetPeer> {
    let expected = "a list of URLs, such as [http://10.0.0.4:8082, http://10.0.0.5:8082]";
    let Some(node) = section.take("peers") else {
        checker.missing(section, "peers", expected);
        return Vec::new();
    };
    let Value::List(list) = &node.value else {
        checker.unexpected(node, expected);
        return Vec::new();
    };
    if list.is_empty() {
        checker.unexpected(node, "at least one peer");
    }
    let mut peers: Vec<FleetPeer> = Vec::new();
    for element in list {
        let Some((url_node, peer)) = peer(checker, element, ring) else { continue };
        let same =
            |other: &&FleetPeer| other.address.host == peer.address.host && other.address.port == peer.address.port;
        match peers.iter().find(same) {
            Some(other) => {
                let message = format!("{} appears twice, first as {}", peer.url, other.url);
                checker.problem(url_node.position, &url_node.path, message);
            }
            None => peers.push(peer),
        }
    }
    peers
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

/// Whether the URL can only mean this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    url.host == "localhost" || url.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
