//! The members of a fleet as lines of a file, and what every list of members has to hold.

use std::net::IpAddr;

use super::check::text::peer_url;
use super::problem::Position;
use super::values::{Fleet, FleetPeer, Url};

/// Reads a list of members: a URL in each line, perhaps followed by `weight=N`; `#` begins a comment.
///
/// # Errors
/// What is wrong and what was expected, with its place.
pub fn parse_peer_list(text: &str) -> Result<Vec<FleetPeer>, Vec<(Position, String)>> {
    let mut peers: Vec<FleetPeer> = Vec::new();
    let mut problems = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let content = line.split('#').next().unwrap_or_default();
        let mut words = content.split_whitespace();
        let Some(url) = words.next() else { continue };
        let column_of = |word: &str| {
            let bytes = word.as_ptr() as usize - line.as_ptr() as usize;
            line.get(..bytes).map_or(1, |before| before.chars().count() + 1)
        };
        let mut wrong = |word: &str, message: String| {
            problems.push((Position { line: index + 1, column: column_of(word) }, message))
        };
        let weight = match words.next() {
            None => Some(1),
            Some(word) => {
                let number = word.strip_prefix("weight=").and_then(|number| number.parse().ok());
                let weight = number.filter(|weight| (1..=WEIGHT_MAX).contains(weight));
                if weight.is_none() {
                    wrong(word, format!("found {word:?}, expected weight=N with N from 1 to {WEIGHT_MAX}"));
                }
                weight
            }
        };
        if let Some(word) = words.next() {
            wrong(word, format!("found {word:?}, expected the end of the line"));
        }
        let address = match peer_url(url) {
            Ok(address) => address,
            Err(expected) => {
                wrong(url, format!("found {url:?}, expected {expected}"));
                continue;
            }
        };
        match peers.iter().find(|other| is_same(&other.address, &address)) {
            Some(other) => wrong(url, format!("{url} appears twice, first as {}", other.url)),
            None if peers.len() >= PEERS_MAX => wrong(url, format!("more than {PEERS_MAX} peers")),
            None => peers.push(FleetPeer { url: url.to_owned(), address, weight: weight.unwrap_or(1) }),
        }
    }
    if peers.is_empty() && problems.is_empty() {
        problems
            .push((Position::START, "found no peer, expected at least one URL such as http://10.0.0.4:8082".into()));
    }
    if problems.is_empty() { Ok(peers) } else { Err(problems) }
}

impl FleetPeer {
    /// A member with this URL.
    ///
    /// # Errors
    /// What was expected instead.
    pub fn parse(url: &str, weight: u32) -> Result<Self, String> {
        let address = peer_url(url).map_err(|expected| expected.to_string())?;
        Ok(FleetPeer { url: url.to_owned(), address, weight: weight.clamp(1, WEIGHT_MAX) })
    }
}

impl Fleet {
    /// Whether `peer`, which was found while the node ran, can be a member as this fleet is configured.
    ///
    /// # Errors
    /// What has to be configured first.
    pub fn can_have(&self, peer: &FleetPeer) -> Result<(), &'static str> {
        if self.secrets.is_empty() && !peer.address.is_loopback() {
            return Err("not every peer is loopback, and there is no fleet.secret");
        }
        if peer.address.https && self.tls.is_none() {
            return Err("it is https://, and there is no fleet.tls");
        }
        if self.ring.is_go() && peer.weight != 1 {
            return Err("rings of Go nodes know no weights");
        }
        Ok(())
    }
}

impl Url {
    /// Whether it can only mean this machine.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// Whether two URLs lead to one place.
pub(super) fn is_same(one: &Url, other: &Url) -> bool {
    one.host == other.host && one.port == other.port
}

/// The largest weight; the smallest is 1.
pub(super) const WEIGHT_MAX: u32 = 100;

/// Members at most, so that no file or answer can make a node compute for minutes: ten times what was ever simulated.
pub const PEERS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_a_url_in_each_line() {
        let text = "# the fleet\n\nhttp://10.0.0.4:8082\r\n  http://10.0.0.5:8082  weight=2 # the large one\n";
        let peers = parse_peer_list(text).unwrap();
        let seen: Vec<_> = peers.iter().map(|peer| (peer.url.as_str(), peer.weight)).collect();
        assert_eq!(seen, [("http://10.0.0.4:8082", 1), ("http://10.0.0.5:8082", 2)]);
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        for (text, line, column, message) in [
            ("", 1, 1, "found no peer"),
            ("# nothing\n", 1, 1, "found no peer"),
            ("http://a:1\n  10.0.0.4\n", 2, 3, "found \"10.0.0.4\", expected a URL"),
            ("http://a:1 weight=0", 1, 12, "expected weight=N with N from 1 to 100"),
            ("http://a:1 heavy", 1, 12, "found \"heavy\""),
            ("http://a:1 weight=2 more", 1, 21, "expected the end of the line"),
            ("http://a:1\nhttp://A:1", 2, 1, "http://A:1 appears twice, first as http://a:1"),
            ("http://a:1/", 1, 1, "without a last /"),
        ] {
            let problems = parse_peer_list(text).unwrap_err();
            assert_eq!(problems.len(), 1, "{text:?}: {problems:?}");
            assert_eq!(problems[0].0, Position { line, column }, "{text:?}");
            assert!(problems[0].1.contains(message), "{text:?}: {}", problems[0].1);
        }
        assert_eq!(parse_peer_list("x\ny\nhttp://a:1 z").unwrap_err().len(), 3, "not only the first");
    }
}
