//! The checked values that a configuration consists of.
//!
//! What is in here holds: ports, names, paths and amounts were checked, paths of files are relative to nothing any more,
//! and a missing key has become its default. `None` in a limit means "no limit".

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::units::Amount;

/// An address on which clients are answered (`listen`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// `[::]:8080` means every address of the machine; port 0 lets the system choose.
    pub address: SocketAddr,
    /// Certificates, chosen by server name, the first also for clients that name none of them; empty: no TLS.
    pub tls: Vec<TlsPair>,
}

/// A certificate chain and its private key, both PEM; at load they were found to belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsPair {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Which entry makes room (`eviction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// Three queues, first in first out: entries asked for once leave soon.
    S3Fifo,
    /// The entry whose last use is longest ago.
    Lru,
}

/// What SIGTERM starts (`shutdown`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// How long the node still accepts connections while it says that it is not ready.
    pub delay: Duration,
    /// How long requests may then take to finish.
    pub timeout: Duration,
}

/// What is written to standard error (`log`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Log {
    /// The least important lines that are still written.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// Which requests get a line.
    pub access: AccessLog,
}

/// Importance of a line (`log.level`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Something failed and stays so.
    Error,
    /// Something failed and was helped.
    Warn,
    /// Starts, stops, reloads, changes of the fleet.
    Info,
    /// Decisions about single requests.
    Debug,
    /// Everything.
    Trace,
}

/// Form of a line (`log.format`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Which requests are logged (`log.access`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AccessLog {
    /// None.
    None,
    /// Those answered with a failure of the origin or of the proxy.
    Errors,
    /// All.
    All,
    /// A random choice of so many percent, above 0 and below 100.
    Percent(f64),
}

/// What clients may use (`limits`); `None` is "no limit", written as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of clients at once.
    pub connections: Option<u64>,
    /// Connections of one client address at once.
    pub connections_per_address: Option<u64>,
    /// Bytes of a request's head; never above [`HEADER_BYTES_MAX`].
    pub header_bytes: usize,
    /// Time for a whole request head.
    pub header_timeout: Option<Duration>,
    /// Time between two requests on a connection.
    pub idle_timeout: Option<Duration>,
    /// Bytes per second that the body of a request must bring on average.
    pub body_min_rate: Option<u64>,
    /// Bytes of a request's body.
    pub body_bytes: Option<u64>,
}

/// The largest request head whatever the configuration says, in bytes: what pingora reads at most.
pub const HEADER_BYTES_MAX: usize = 1 << 20;

/// Who may look and who may act (`admin`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The only listener that answers; `None`: the clients' listeners do, direct requests from loopback alone.
    pub address: Option<SocketAddr>,
    /// Client addresses that may read without a token.
    pub allow: Vec<IpNet>,
    /// Tokens that may read.
    pub read_tokens: Vec<Secret>,
    /// Tokens that may also purge, reload and drain.
    pub tokens: Vec<Secret>,
    /// Client addresses that may purge without a token.
    pub purge_allow: Vec<IpNet>,
}

/// A text that must not be seen: its `Debug` prints `***`, and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself. Compare it in constant time only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// The proxies that share one cache (`fleet`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// The only listener that answers peers; `None`: the clients' listeners do.
    pub address: Option<SocketAddr>,
    /// Which of the peers this node is.
    pub self_peer: SelfPeer,
    /// The members as far as the configuration knows them, this node included; no two have the same host and port. Empty
    /// where they are found while the node runs.
    pub peers: Vec<FleetPeer>,
    /// Where the members come from.
    pub source: PeerSource,
    /// How keys find their owner.
    pub ring: Ring,
    /// The first proves what we are, all are accepted; may be empty only when every peer is loopback.
    pub secrets: Vec<Secret>,
    /// Certificates for peers named `https://`; there whenever one is.
    pub tls: Option<FleetTls>,
    /// When a peer counts as gone.
    pub timeouts: FleetTimeouts,
    /// What only Go peers need.
    pub go: GoPeers,
    /// What is more to be had when the network splits the fleet.
    pub partition: Partition,
    /// Whether memory moves with the keys when members come and go.
    pub resharding: Resharding,
}

/// What becomes of what is in memory when keys change hands (`fleet.resharding`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resharding {
    /// The new owner asks the one before it, and a node that leaves hands over.
    #[default]
    Warm,
    /// Nothing: the new owner asks the origin, as on a plain ring.
    Cold,
}

/// What counts when members cannot reach one another (`fleet.partition`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partition {
    /// Everybody goes on serving; a purge is acknowledged when every member has confirmed it.
    #[default]
    Serve,
    /// A majority acknowledges purges; whoever is cut off from it serves nothing from memory unasked.
    Strict,
}

/// Where the members of the fleet come from (`fleet.peers`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerSource {
    /// They are listed in the configuration.
    List,
    /// This file lists them; it is read again whenever it changes.
    File(PathBuf),
    /// The addresses of a name, each with the URL's scheme and port.
    Dns {
        /// The URL with the name.
        url: Url,
        /// How the name is looked up.
        lookup: Lookup,
    },
    /// The targets and ports of a service.
    Srv {
        /// The name of the service.
        name: String,
        /// How the name is looked up.
        lookup: Lookup,
    },
    /// They find one another.
    Gossip {
        /// Hosts and ports of members that a node introduces itself to; some may be this node, some may be dead.
        seeds: Vec<String>,
        /// Where this node gossips, over UDP; port 0 lets the system choose.
        address: SocketAddr,
        /// As [`PeerSource::forget`].
        forget: Duration,
    },
}

impl PeerSource {
    /// How long a member that is not found any more is told of purges (`fleet.peers.forget`): meanwhile none is complete without
    /// it, unless it has said goodbye. Zero where members are listed: who is taken off a list is meant to be gone.
    pub fn forget(&self) -> Duration {
        match self {
            PeerSource::List | PeerSource::File(_) => Duration::ZERO,
            PeerSource::Dns { lookup, .. } | PeerSource::Srv { lookup, .. } => lookup.forget,
            PeerSource::Gossip { forget, .. } => *forget,
        }
    }

    /// The same search for members, whoever may be forgotten when.
    pub fn without_forget(mut self) -> Self {
        match &mut self {
            PeerSource::List | PeerSource::File(_) => {}
            PeerSource::Dns { lookup, .. } | PeerSource::Srv { lookup, .. } => lookup.forget = Duration::ZERO,
            PeerSource::Gossip { forget, .. } => *forget = Duration::ZERO,
        }
        self
    }
}

/// How names are looked up (`fleet.peers.every`, `fleet.peers.nameservers`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Time between two look-ups.
    pub every: Duration,
    /// Whom to ask; empty: as the system is configured.
    pub nameservers: Vec<SocketAddr>,
    /// As [`PeerSource::forget`].
    pub forget: Duration,
}

/// Which member of the fleet this node is (`fleet.self`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelfPeer {
    /// The one peer that is an address of this machine.
    Auto,
    /// The peer with this URL, byte for byte; one that is not among the peers owns nothing.
    Url(String),
}

/// A member of the fleet (`fleet.peers`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetPeer {
    /// As it was written, byte for byte: rings hash it. `http://` or `https://`, a host, perhaps a port, nothing else.
    pub url: String,
    /// The same in parts; its path is `/`.
    pub address: Url,
    /// Its share of the keys compared with the others, 1 to 100; always 1 on a ring of Go nodes.
    pub weight: u32,
}

/// How keys find their owner (`fleet.ring`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Our own, the most even.
    Balanced,
    /// As github.com/golang/groupcache.
    Groupcache,
    /// As github.com/mailgun/groupcache.
    Mailgun,
    /// As version 3 of mailgun's, github.com/groupcache/groupcache-go.
    V3,
}

impl Ring {
    /// Whether Go nodes can be members.
    pub fn is_go(self) -> bool {
        self != Ring::Balanced
    }
}

/// Mutual TLS between peers (`fleet.tls`); the files were read and parsed at load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetTls {
    /// Certificates of the authorities that sign members.
    pub ca: PathBuf,
    /// This node's own chain and key.
    pub pair: TlsPair,
}

/// When a peer counts as gone (`fleet.timeouts`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetTimeouts {
    /// For a connection to it.
    pub connect: Duration,
    /// Without a single frame while an answer is due.
    pub silence: Duration,
}

/// What only Go peers need (`fleet.go`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoPeers {
    /// Addresses besides those of the listed peers that may ask in Go's protocol.
    pub allow: Vec<IpNet>,
    /// Points of each peer on the ring.
    pub replicas: u32,
    /// Where Go peers ask; begins and ends with `/`.
    pub base_path: String,
    /// Whether what they `PUT` is taken.
    pub accept_set: bool,
}

/// A set of requests that are answered by the same rules (`groups`).
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Letters, digits, `-` and `_`; unlike that of any other group and of any endpoint under `/_groupcache/`.
    pub name: String,
    /// Which requests belong to it.
    pub matching: Matching,
    /// Whether anything is stored; otherwise all requests pass through.
    pub cache: bool,
    /// Where answers come from.
    pub source: GroupSource,
    /// The Host that the origin is sent.
    pub origin_host: OriginHost,
    /// What stands before the rest of the target in a key; may be empty.
    pub key_prefix: String,
    /// Which part of the query belongs to the key and reaches the origin.
    pub query: Query,
    /// Which headers of a request reach the origin on a fill.
    pub request_headers: RequestHeaders,
    /// Whether a client's Cache-Control counts.
    pub request_directives: RequestDirectives,
    /// What happens to cookies of requests.
    pub cookies: Cookies,
    /// What happens to Set-Cookie of responses.
    pub set_cookie: SetCookie,
    /// Headers that are set and removed.
    pub headers: HeaderEdits,
    /// How many versions of one key are kept apart, and by what.
    pub variants: Variants,
    /// Which methods besides GET and HEAD reach the origin.
    pub pass: Pass,
    /// How much memory the group may use, as it was written.
    pub memory: Amount,
    /// The same in bytes.
    pub memory_bytes: u64,
    /// Bodies of more bytes stream through and are never stored.
    pub max_object_bytes: u64,
    /// How many requests may be at the origin at once, from the whole fleet; `None`: any number.
    pub max_concurrency: Option<u32>,
    /// Where requests wait beyond `max_concurrency`.
    pub queue: Queue,
    /// How long the origin may take.
    pub timeouts: OriginTimeouts,
    /// How long answers stay usable.
    pub freshness: Freshness,
}

/// Which requests belong to a group (`match`); no two groups share a pair of host and path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matching {
    /// Whole segments of the target's bytes; always begins and ends with `/`, so `/a` in the file is `/a/` here.
    pub path: String,
    /// Any of these hosts; empty: every host.
    pub hosts: Vec<HostPattern>,
}

/// One host of a `match.host`, in small letters, without a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostPattern {
    /// This name or address.
    Exact(String),
    /// Written `*.example.com`: every name that ends with this text, which begins with a point.
    Suffix(String),
}

/// Where the answers of a group come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupSource {
    /// The files of a folder (`directory`), which was there at load.
    Directory(PathBuf),
    /// A server (`origin`).
    Origin(Origin),
}

/// A server, or several that give the same answers (`origin`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// At least one.
    pub urls: Vec<Url>,
    /// How one of several is chosen.
    pub balance: Balance,
    /// How often a request that is safe to repeat is tried again, at the next server where there are several.
    pub retries: u32,
    /// How servers that are down are found; a single one is never probed.
    pub health: Health,
    /// How often a name is resolved again.
    pub resolve: Duration,
    /// Certificates of the authorities to believe instead of the system's; parsed at load.
    pub ca: Option<PathBuf>,
}

/// The parts of an `http://` or `https://` URL without user, query and fragment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    /// Whether it is `https://`.
    pub https: bool,
    /// A name or an IPv4 address in small letters, or an IPv6 address without brackets.
    pub host: String,
    /// As written, or the scheme's own.
    pub port: u16,
    /// Replaces the prefix that a group matched; always begins and ends with `/`.
    pub path: String,
}

impl Url {
    /// Host and port as a Host header has them (RFC 9110 section 7.2): the scheme's own port is left out.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match self.port == if self.https { 443 } else { 80 } {
            true => host,
            false => format!("{host}:{}", self.port),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(formatter, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// How one of several servers is chosen (`origin.balance`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// One after the other.
    RoundRobin,
}

/// How servers that are down are found (`origin.health`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The target of a GET that must answer 2xx; `None`: a connection is enough.
    pub path: Option<String>,
    /// Time between two probes.
    pub every: Duration,
}

/// The Host that an origin is sent (`origin_host`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginHost {
    /// Host and port of the origin's URL.
    Origin,
    /// The client's, which then belongs to the key.
    Client,
    /// Always this.
    Name(String),
}

/// Which part of the query counts (`query`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// All of it, byte for byte.
    Keep,
    /// None of it.
    Drop,
    /// All of it, parameters in the order of their names.
    Sort,
    /// Parameters with these names.
    Only(Vec<NamePattern>),
    /// Parameters without these names.
    Except(Vec<NamePattern>),
}

/// A name, or the beginning of one (written `utm_*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    /// The name, or its beginning.
    pub text: String,
    /// Whether names may go on after `text`.
    pub prefix: bool,
}

/// Which headers of a request reach the origin on a fill (`request_headers`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestHeaders {
    /// Those that cannot carry an attack on other clients.
    Safe,
    /// All but those of the connection.
    All,
    /// The safe ones and these, in small letters.
    SafeAnd(Vec<String>),
}

/// Whether a client's Cache-Control counts (`request_directives`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestDirectives {
    /// No.
    Ignore,
    /// As RFC 9111 section 5.2.1 says.
    Honour,
}

/// What happens to cookies of requests (`cookies`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cookies {
    /// Removed.
    Strip,
    /// A request with cookies passes to the origin.
    Bypass,
}

/// What happens to Set-Cookie of responses (`set_cookie`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetCookie {
    /// A response with it is never stored.
    Private,
    /// Removed, and the response may be stored.
    Strip,
    /// Stored with the response, as RFC 9111 section 7.3 lets.
    Share,
}

/// Headers that are set and removed (`headers`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// On requests to the origin.
    pub to_origin: Vec<HeaderEdit>,
    /// On responses to clients.
    pub to_client: Vec<HeaderEdit>,
}

/// One header that is set or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderEdit {
    /// A field name as it was written; never one of the connection or of the message's framing.
    pub name: String,
    /// The new value, free of control characters; `None` removes the header.
    pub value: Option<String>,
}

/// Versions of one key (`variants`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variants {
    /// How many are kept; a new one then replaces the least used.
    pub max: u32,
    /// Media types that are told apart in Accept, in small letters.
    pub accept: Vec<String>,
    /// Codings that are told apart in Accept-Encoding, in small letters.
    pub accept_encoding: Vec<String>,
}

/// Which methods besides GET and HEAD reach the origin (`pass`); CONNECT and TRACE never do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pass {
    /// All.
    All,
    /// These, others get 405; empty (written `none`) for a directory.
    Only(Vec<String>),
}

/// Where requests wait for their turn at the origin (`queue`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// How many may wait, of the whole fleet; one more is refused.
    pub length: u32,
    /// How long one waits before it is refused.
    pub timeout: Duration,
}

/// How long an origin may take (`timeouts`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginTimeouts {
    /// For a connection.
    pub connect: Duration,
    /// From the request to the first byte of the response.
    pub first_byte: Duration,
    /// Between two bytes of the response.
    pub between_bytes: Duration,
    /// For a whole fill that can be stored.
    pub total: Duration,
}

/// How long answers stay usable (`freshness`).
#[derive(Clone, Debug, PartialEq)]
pub struct Freshness {
    /// Headers of the origin that are not believed.
    pub ignore: IgnoredHeaders,
    /// Lifetime when the origin says nothing and no heuristic applies.
    pub default: Duration,
    /// The longest lifetime derived from Last-Modified; zero: none is.
    pub heuristic_max: Duration,
    /// The longest lifetime at all.
    pub max: Duration,
    /// Lifetime by status when the origin says nothing.
    pub negative: BTreeMap<u16, Duration>,
    /// How long our own failure to load answers for the whole fleet.
    pub errors: Duration,
    /// By how many percent a lifetime is shortened at most, 0 to 100.
    pub jitter_percent: f64,
    /// How long a stale entry may answer while it is refreshed.
    pub stale_while_revalidate: Duration,
    /// How long a stale entry may answer when the origin fails.
    pub stale_if_error: Duration,
    /// How long the origin may be silent before a stale entry answers; `None`: as long as its timeouts let.
    pub stale_if_slow: Option<Duration>,
}

/// Headers of the origin that are not believed (`freshness.ignore`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IgnoredHeaders {
    /// Cache-Control.
    pub cache_control: bool,
    /// Expires.
    pub expires: bool,
    /// Vary.
    pub vary: bool,
}
