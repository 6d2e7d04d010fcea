//! From the tree of a file to checked values: every default and every limit is decided here.

mod fleet;
mod group;
mod origin;
pub(super) mod text;
mod tls;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::Config;
use super::environment::replace;
use super::print::Marks;
use super::resources::memory_limit_bytes;
use super::section::{Checker, Section};
use super::units::{self, Amount, Expected, duration, percent_of};
use super::values::{
    AccessLog, Admin, Eviction, GroupSource, HEADER_BYTES_MAX, Limits, Listener, Log, LogFormat, LogLevel, Secret,
    Shutdown, Url,
};
use super::yaml::{Node, Value};

const EVICTIONS: &[(&str, Eviction)] = &[("s3fifo", Eviction::S3Fifo), ("lru", Eviction::Lru)];
const LEVELS: &[(&str, LogLevel)] = &[
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
const FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];

/// `memory: auto`, unless the machine or the container has less.
const MEMORY_AUTO_BYTES: u64 = 1 << 30;

/// `memory: auto` on a small machine; the rest is for the program, for the kernel's buffers and for rounding.
const MEMORY_AUTO_PERCENT: f64 = 70.0;

/// Below this, the fixed cost of connections and buffers leaves hardly anything to store in.
const MEMORY_USEFUL_BYTES: u64 = 16 << 20;

/// Tokens travel in a header; shorter ones can be guessed over the network.
const TOKEN_BYTES_USEFUL: usize = 16;

/// Builds the configuration; it may be used only when the checker then has no problems.
pub(super) fn config(checker: &mut Checker<'_>, root: &Node) -> Config {
    let mut section = checker.section(Some(root), String::new(), root.position);
    let listen = listen(checker, &mut section);
    let (memory, memory_bytes) = memory(checker, &mut section);
    let threads = threads(checker, &mut section);
    let eviction = checker.leaf(&mut section, "eviction", Eviction::S3Fifo, text::word(EVICTIONS));
    let shutdown = shutdown(checker, &mut section);
    let log = log(checker, &mut section);
    let limits = limits(checker, &mut section);
    let admin = admin(checker, &mut section);
    let fleet_node = section.take("fleet").filter(|node| !matches!(node.value, Value::Null));
    let fleet = fleet_node.map(|node| fleet::fleet(checker, node, &listen));
    let defaults = section.take("defaults");
    let groups = group::groups(checker, &mut section, defaults, memory_bytes);
    section.finish(checker);

    let place_of = |section: &str, key: &str| {
        let path = format!("{section}.{key}");
        find(root, &path).map(|node| (node, path))
    };
    let admin_place = place_of("admin", "address");
    let fleet_place = place_of("fleet", "address");
    if let (Some(address), Some((node, path))) = (admin.address, &admin_place) {
        no_overlap(checker, node, path, address, listen.iter().map(|listener| (listener.address, "listen")));
    }
    let fleet_address = fleet.as_ref().and_then(|fleet| fleet.address);
    if let (Some(address), Some((node, path))) = (fleet_address, &fleet_place) {
        let others = listen.iter().map(|listener| (listener.address, "listen"));
        no_overlap(checker, node, path, address, others.chain(admin.address.map(|address| (address, "admin.address"))));
    }
    for (index, group) in groups.iter().enumerate() {
        if let GroupSource::Origin(origin) = &group.source {
            let itself = origin.urls.iter().find(|url| listen.iter().any(|listener| is_listener(url, listener)));
            if let Some(url) = itself {
                let path = format!("groups[{index}].origin");
                let position = find(root, &path).map_or(root.position, |node| node.position);
                let message = format!("{url} is a listener of this node, expected another server");
                checker.problem(position, &path, message);
            }
        }
    }

    let mut given = BTreeSet::new();
    collect_paths(root, &mut given);
    let marks = Marks { given, memory, threads_auto: threads.is_none() };
    let threads = threads.unwrap_or_else(|| checker.environment.cores().max(1));
    Config { listen, memory_bytes, threads, eviction, shutdown, log, limits, admin, fleet, groups, marks }
}

fn listen(checker: &mut Checker<'_>, section: &mut Section<'_>) -> Vec<Listener> {
    let otherwise = vec![Listener { address: SocketAddr::from(([127, 0, 0, 1], 8080)), tls: Vec::new() }];
    let Some(node) = section.take("listen") else { return otherwise };
    let Value::List(list) = &node.value else {
        checker.unexpected(node, "a list of listeners, such as [{ address: 127.0.0.1:8080 }]");
        return otherwise;
    };
    if list.is_empty() {
        checker.unexpected(node, "at least one listener");
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for element in list {
        let mut section = checker.section(Some(element), element.path.clone(), element.position);
        let address_node = section.take("address");
        if address_node.is_none() {
            checker.missing(&section, "address", "an IP address with a port, such as 127.0.0.1:8080");
        }
        let address = address_node.and_then(|node| checker.read(node, text::listen_address));
        let tls = match section.take("tls") {
            None => Vec::new(),
            Some(node) => tls_pairs(checker, node),
        };
        section.finish(checker);
        if let (Some(address), Some(node)) = (address, address_node) {
            let others = listeners.iter().map(|listener| (listener.address, "another listener"));
            no_overlap(checker, node, &node.path, address, others);
            listeners.push(Listener { address, tls });
        }
    }
    listeners
}

fn tls_pairs(checker: &mut Checker<'_>, node: &Node) -> Vec<super::values::TlsPair> {
    let elements = match &node.value {
        Value::Map(_) => std::slice::from_ref(node),
        Value::List(list) if !list.is_empty() => list,
        _ => {
            checker.unexpected(node, "{ cert: PATH, key: PATH }, or a list of these");
            return Vec::new();
        }
    };
    elements
        .iter()
        .map(|element| {
            let mut section = checker.section(Some(element), element.path.clone(), element.position);
            let pair = tls::pair(checker, &mut section);
            section.finish(checker);
            pair
        })
        .collect()
}

/// The setting and what it comes to in bytes.
fn memory(checker: &mut Checker<'_>, section: &mut Section<'_>) -> (Option<Amount>, u64) {
    let node = section.take("memory");
    let limit = memory_limit_bytes(checker.environment);
    let setting = node.and_then(|node| {
        checker.read(node, |text| match text {
            "auto" => Ok(None),
            text => units::amount(text).map(Some).map_err(|expected| format!("auto, or {expected}").into()),
        })
    });
    let setting = setting.flatten();
    let bytes = match (setting, limit) {
        (None, Some(limit)) => MEMORY_AUTO_BYTES.min(percent_of(MEMORY_AUTO_PERCENT, limit)),
        (None, None) => MEMORY_AUTO_BYTES,
        (Some(amount), Some(limit)) => amount.of(limit),
        (Some(Amount::Bytes(bytes)), None) => bytes,
        (Some(Amount::Percent(_)), None) => {
            node.into_iter().for_each(|node| checker.unexpected(node, "a size: this machine does not tell its memory"));
            MEMORY_AUTO_BYTES
        }
    };
    if let (Some(node), Some(Amount::Bytes(bytes)), Some(limit)) = (node, setting, limit)
        && bytes > limit
    {
        let message = format!("is more than this machine or container has ({})", units::show_size(limit));
        checker.warn(node.position, &node.path, message);
    }
    if let Some(node) = node
        && bytes < MEMORY_USEFUL_BYTES
    {
        let message = format!("{} is hardly enough to store anything", units::show_size(bytes));
        checker.warn(node.position, &node.path, message);
    }
    (setting, bytes)
}

/// `None` is `auto`.
fn threads(checker: &mut Checker<'_>, section: &mut Section<'_>) -> Option<usize> {
    let read = |text: &str| match text {
        "auto" => Ok(None),
        text => match text::number(1, 1024)(text) {
            Ok(threads) => Ok(usize::try_from(threads).ok()),
            Err(expected) => Err(Expected::from(format!("auto, or {expected}"))),
        },
    };
    checker.leaf(section, "threads", None, read)
}

fn shutdown(checker: &mut Checker<'_>, section: &mut Section<'_>) -> Shutdown {
    let mut section = checker.subsection(section, "shutdown");
    let shutdown = Shutdown {
        delay: checker.leaf(&mut section, "delay", Duration::from_secs(5), duration),
        timeout: checker.leaf(&mut section, "timeout", Duration::from_secs(20), duration),
    };
    section.finish(checker);
    shutdown
}

fn log(checker: &mut Checker<'_>, section: &mut Section<'_>) -> Log {
    let mut section = checker.subsection(section, "log");
    let access = |text: &str| match text {
        "none" => Ok(AccessLog::None),
        "errors" => Ok(AccessLog::Errors),
        "all" => Ok(AccessLog::All),
        text => match units::percent(text) {
            Ok(0.0) => Ok(AccessLog::None),
            Ok(100.0) => Ok(AccessLog::All),
            Ok(percent) => Ok(AccessLog::Percent(percent)),
            Err(_) => Err("none, errors, all or a percentage such as 1%".into()),
        },
    };
    let log = Log {
        level: checker.leaf(&mut section, "level", LogLevel::Info, text::word(LEVELS)),
        format: checker.leaf(&mut section, "format", LogFormat::Text, text::word(FORMATS)),
        access: checker.leaf(&mut section, "access", AccessLog::Errors, access),
    };
    section.finish(checker);
    log
}

fn limits(checker: &mut Checker<'_>, section: &mut Section<'_>) -> Limits {
    let mut section = checker.subsection(section, "limits");
    let count = text::number(0, u64::MAX);
    let files_max = checker.environment.open_files_max();
    // The rest is for origins, peers, files and the log.
    let connections_max = files_max.map(|files| percent_of(80.0, files));
    let connections_node = section.take("connections");
    let connections = connections_node.and_then(|node| checker.read(node, &count));
    if let (Some(node), Some(connections), Some(files), Some(max)) =
        (connections_node, connections, files_max, connections_max)
        && (connections > max || connections == 0)
    {
        let message = format!("is more than 80% of the {files} files that the process may open (ulimit -n)");
        checker.warn(node.position, &node.path, message);
    }
    let connections = connections.unwrap_or_else(|| connections_max.unwrap_or(u64::MAX).clamp(1, 10_000));
    let per_address = checker.leaf(&mut section, "connections_per_address", 0, &count);
    let header_bytes = checker.leaf(&mut section, "header_bytes", 32 << 10, |text| match units::size(text)? {
        0 => Ok(HEADER_BYTES_MAX),
        bytes => match usize::try_from(bytes) {
            Ok(bytes) if (256..=HEADER_BYTES_MAX).contains(&bytes) => Ok(bytes),
            _ => Err("a size from 256 to 1MiB, or 0 for the most".into()),
        },
    });
    let some_time = |time: Duration| (!time.is_zero()).then_some(time);
    let limits = Limits {
        connections: some(connections),
        connections_per_address: some(per_address),
        header_bytes,
        header_timeout: some_time(checker.leaf(&mut section, "header_timeout", Duration::from_secs(10), duration)),
        idle_timeout: some_time(checker.leaf(&mut section, "idle_timeout", Duration::from_secs(75), duration)),
        body_min_rate: some(checker.leaf(&mut section, "body_min_rate", 1 << 10, units::size)),
        body_bytes: some(checker.leaf(&mut section, "body_bytes", 1 << 30, units::size)),
    };
    section.finish(checker);
    limits
}

/// Zero means that there is no limit.
fn some(limit: u64) -> Option<u64> {
    (limit != 0).then_some(limit)
}

fn admin(checker: &mut Checker<'_>, section: &mut Section<'_>) -> Admin {
    let mut section = checker.subsection(section, "admin");
    let loopback = || [IpAddr::from([127, 0, 0, 0]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    let allow_default = loopback()
        .into_iter()
        .filter_map(|address| ipnet::IpNet::new(address, if address.is_ipv4() { 8 } else { 128 }).ok())
        .collect();
    let admin = Admin {
        address: checker.optional(&mut section, "address", text::listen_address),
        allow: checker.list(&mut section, "allow", allow_default, text::network),
        read_tokens: tokens(checker, &mut section, "read_token", "${GROUPCACHE_READ_TOKEN:-}"),
        tokens: tokens(checker, &mut section, "token", "${GROUPCACHE_ADMIN_TOKEN:-}"),
        purge_allow: checker.list(&mut section, "purge_allow", Vec::new(), text::network),
    };
    section.finish(checker);
    admin
}

/// The tokens below `key`, or what `otherwise` comes to in the environment.
fn tokens(checker: &mut Checker<'_>, section: &mut Section<'_>, key: &'static str, otherwise: &str) -> Vec<Secret> {
    let (position, path) = (section.position, section.path_of(key));
    let (tokens, position) = match section.take(key) {
        Some(node) => (secrets(checker, node, 1).unwrap_or_default(), node.position),
        None => {
            let token = replace(otherwise, checker.environment, Path::new("")).unwrap_or_default();
            (if token.is_empty() { Vec::new() } else { vec![Secret::new(token)] }, position)
        }
    };
    for token in &tokens {
        if !token.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
            let message = "found a token that cannot stand in a header, expected visible ASCII without spaces";
            checker.problem(position, &path, message);
        } else if token.expose().len() < TOKEN_BYTES_USEFUL {
            let message = format!("is short enough to be guessed, better {TOKEN_BYTES_USEFUL} characters or more");
            checker.warn(position, &path, message);
        }
    }
    tokens
}

/// One secret or a list; empty ones count as absent. `None` when one of them is not known or wrong, which is reported
/// without showing it.
fn secrets(checker: &mut Checker<'_>, node: &Node, bytes_min: usize) -> Option<Vec<Secret>> {
    let elements = match &node.value {
        Value::List(list) => list,
        _ => std::slice::from_ref(node),
    };
    let mut secrets = Some(Vec::new());
    for element in elements {
        let found = match &element.value {
            Value::Null => continue,
            Value::Scalar(scalar) if scalar.unset => None,
            Value::Scalar(scalar) if scalar.text.is_empty() => continue,
            Value::Scalar(scalar) if scalar.text.len() < bytes_min => {
                let message = format!("found {} bytes, expected {bytes_min} bytes or more", scalar.text.len());
                checker.problem(element.position, &element.path, message);
                None
            }
            Value::Scalar(scalar) => Some(Secret::new(scalar.text.clone())),
            Value::List(_) | Value::Map(_) => {
                checker.unexpected(element, "a text");
                None
            }
        };
        match (found, &mut secrets) {
            (Some(secret), Some(secrets)) => secrets.push(secret),
            (None, _) => secrets = None,
            (Some(_), None) => {}
        }
    }
    secrets
}

/// Reports when `address` cannot be bound because another one is.
fn no_overlap<'a>(
    checker: &mut Checker<'_>,
    node: &Node,
    path: &str,
    address: SocketAddr,
    others: impl Iterator<Item = (SocketAddr, &'a str)>,
) {
    for (other, whose) in others.filter(|(other, _)| overlap(address, *other)) {
        let message = format!("{address} overlaps with {other} of {whose}, expected an address of its own");
        checker.problem(node.position, path, message);
    }
}

/// Whether binding one of the addresses keeps the other from being bound. `[::]` takes IPv4 as well.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |wide: IpAddr, narrow: IpAddr| wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4());
    let (one_ip, other_ip) = (one.ip(), other.ip());
    let same_port = one.port() == other.port() && one.port() != 0;
    same_port && (one_ip == other_ip || covers(one_ip, other_ip) || covers(other_ip, one_ip))
}

/// Whether an origin is certainly this listener: a request would go round for ever.
fn is_listener(url: &Url, listener: &Listener) -> bool {
    let address = listener.address;
    let same_address = match url.host.parse::<IpAddr>() {
        Ok(ip) => ip == address.ip() || (ip.is_loopback() && address.ip().is_unspecified()),
        Err(_) => url.host == "localhost" && (address.ip().is_loopback() || address.ip().is_unspecified()),
    };
    same_address && url.port == address.port()
}

fn find<'n>(node: &'n Node, path: &str) -> Option<&'n Node> {
    if node.path == path {
        return Some(node);
    }
    match &node.value {
        Value::Null | Value::Scalar(_) => None,
        Value::List(list) => list.iter().find_map(|node| find(node, path)),
        Value::Map(map) => map.iter().find_map(|entry| find(&entry.node, path)),
    }
}

/// The paths of all values that were written.
fn collect_paths(node: &Node, paths: &mut BTreeSet<String>) {
    paths.insert(node.path.clone());
    match &node.value {
        Value::Null | Value::Scalar(_) => {}
        Value::List(list) => list.iter().for_each(|node| collect_paths(node, paths)),
        Value::Map(map) => map.iter().for_each(|entry| collect_paths(&entry.node, paths)),
    }
}
