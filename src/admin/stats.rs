//! The numbers of a node, in the words and the order of the interface.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use crate::config::{PeerSource, Ring};
use crate::origin::UpstreamSnapshot;
use crate::peer::{self, Peer as _};
use crate::permits::GateState;
use crate::purge::lease::Standing;
use crate::server::groups::{Groups, Served};
use crate::server::members::is_slow;
use crate::server::node::Node;
use crate::stats::GroupStats;
use crate::store::RoleUsage;

/// `GET stats`.
#[derive(Serialize)]
pub(super) struct Stats {
    version: &'static str,
    #[serde(rename = "self")]
    own_url: String,
    state: &'static str,
    uptime_seconds: u64,
    config: ConfigState,
    memory: Memory,
    connections: usize,
    rejects: BTreeMap<&'static str, u64>,
    flights: usize,
    flights_oldest_seconds: u64,
    purge: Purge,
    fleet: FleetState,
    replicas: Replicas,
    groups: BTreeMap<String, Group>,
}

#[derive(Serialize)]
struct ConfigState {
    sha256: Option<String>,
    loaded_at: String,
    last_error: Option<String>,
}

#[derive(Serialize)]
struct Memory {
    limit_bytes: usize,
    used_bytes: usize,
    resident_bytes: u64,
}

/// How many purges this node accepted, and how many of them not every member has confirmed.
#[derive(Serialize)]
struct Purge {
    sequence: u64,
    unconfirmed: u64,
}

/// The right of this node to answer from memory (`fleet.partition: strict`).
#[derive(Serialize)]
struct Lease {
    /// `held`, `lost`, or `unsettled` after a start; `unneeded` where nobody keeps leases.
    state: &'static str,
    remaining_milliseconds: u64,
    /// Lists of members before the present one, majorities of which this node still needs.
    previous_lists: usize,
}

impl Lease {
    fn of(node: &Node) -> Self {
        let standing = node.cache.lease();
        let remaining = if let Standing::Held(remaining) = standing { remaining } else { Duration::ZERO };
        Lease {
            state: lease_state(standing),
            remaining_milliseconds: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
            previous_lists: node.cache.previous_lists(),
        }
    }
}

/// How it stands with a lease, in a word.
pub(super) fn lease_state(standing: Standing) -> &'static str {
    match standing {
        Standing::Free => "unneeded",
        Standing::Held(_) => "held",
        Standing::Lost => "lost",
        Standing::Unsettled => "unsettled",
    }
}

#[derive(Serialize)]
struct FleetState {
    lease: Lease,
    ring: Option<&'static str>,
    members: Members,
    ring_id: Option<String>,
    peers: Vec<PeerState>,
}

/// Where the members come from, and how that goes.
#[derive(Serialize)]
struct Members {
    source: Option<&'static str>,
    changes: u64,
    failures: u64,
    /// Why the source could not be followed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failure: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gossip_address: Option<String>,
    /// Members that are not found any more and have not said goodbye: no purge is complete without them.
    former: Vec<String>,
}

#[derive(Serialize)]
struct PeerState {
    url: String,
    state: &'static str,
    /// Why it is not up.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    protocol: &'static str,
    version: Option<String>,
    ring_id: Option<String>,
    ring_share: f64,
    requests: u64,
    errors: u64,
    /// How long its answers from memory take, as a moving average.
    hit_milliseconds: Option<f64>,
    /// Whether it is up, and far slower than the others.
    slow: bool,
}

/// Replicas of hot keys: what this node gave to others, took, has, and dropped.
#[derive(Serialize)]
struct Replicas {
    pushed: u64,
    taken: u64,
    held: usize,
    dropped: u64,
    /// Questions answered from one, and questions of this node that one elsewhere answered.
    answered: u64,
    used: u64,
    /// The keys of this node that peers ask for most.
    hottest: Vec<HotKey>,
}

#[derive(Serialize)]
struct HotKey {
    group: String,
    key: String,
    per_second: u32,
    replicas: usize,
}

#[derive(Serialize)]
struct Group {
    gets: u64,
    cache_hits: u64,
    loads: u64,
    loads_deduped: u64,
    peer_loads: u64,
    peer_errors: u64,
    local_loads: u64,
    local_load_errs: u64,
    server_requests: u64,
    peeks: u64,
    peek_hits: u64,
    ring_disagreements: u64,
    main: Usage,
    hot: Usage,
    client: Client,
    loads_collapsed: u64,
    interims: u64,
    interims_dropped: u64,
    miss_reasons: BTreeMap<&'static str, u64>,
    not_stored: BTreeMap<&'static str, u64>,
    origins: BTreeMap<String, UpstreamSnapshot>,
    /// What this node grants to the fleet; left out where the origin is not limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    permits: Option<GateState>,
}

#[derive(Serialize)]
struct Usage {
    bytes: usize,
    items: usize,
    gets: u64,
    hits: u64,
    evictions: u64,
}

#[derive(Serialize)]
struct Client {
    requests: u64,
    hit: u64,
    stale: u64,
    revalidated: u64,
    miss: u64,
    pass: u64,
    error: u64,
    bytes: u64,
    hit_ratio_1m: f64,
}

/// The numbers of now. Each is read by itself: while requests are under way, sums may be off by those.
pub(super) fn of(node: &Node) -> Stats {
    let (sequence, unconfirmed) = node.cache.purges_accepted();
    let (current, groups) = (node.current.load(), node.groups.load());
    let ledger = &node.cache.ledger;
    let mut rejects = node.stats.rejects.counts();
    for (word, count) in node.peers.counters().rejects.counts() {
        *rejects.entry(word).or_default() += count;
    }
    for (word, count) in node.membership.dropped.counts() {
        *rejects.entry(word).or_default() += count;
    }
    let flights = &node.cache.flights;
    Stats {
        version: env!("CARGO_PKG_VERSION"),
        own_url: node.own_url(),
        state: node.lifecycle.state().as_str(),
        uptime_seconds: node.uptime().as_secs(),
        config: ConfigState {
            sha256: Some(current.sha256.clone()).filter(|sha256| !sha256.is_empty()),
            loaded_at: rfc3339(current.loaded_wall_seconds),
            last_error: node.last_error.lock().clone(),
        },
        memory: Memory {
            limit_bytes: ledger.limit(),
            used_bytes: ledger.used(),
            resident_bytes: resident_bytes().unwrap_or_default(),
        },
        connections: node.stats.connections.load(Ordering::Relaxed),
        rejects,
        flights: flights.count(),
        flights_oldest_seconds: flights.oldest().as_secs(),
        purge: Purge { sequence, unconfirmed },
        fleet: fleet(node),
        replicas: replicas(node, &groups),
        groups: groups.list.iter().map(|served| (served.group.name.to_string(), group(node, served))).collect(),
    }
}

fn fleet(node: &Node) -> FleetState {
    let members = node.members.load();
    let ring = members.config.as_ref().map(|fleet| match fleet.ring {
        Ring::Balanced => "balanced",
        Ring::Groupcache => "groupcache",
        Ring::Mailgun => "mailgun",
        Ring::V3 => "v3",
    });
    let others =
        members.list.iter().enumerate().filter_map(|(index, member)| Some((index, member, member.link.as_ref()?)));
    let statuses: Vec<_> = others.map(|(index, member, link)| (index, member, link.status())).collect();
    let hit_times: Vec<_> = statuses.iter().filter_map(|(_, _, status)| status.hit_time).collect();
    let peers = statuses.into_iter().map(|(index, member, status)| PeerState {
        hit_milliseconds: status.hit_time.map(|time| (time.as_secs_f64() * 1e6).round() / 1e3),
        slow: status.hit_time.is_some_and(|time| is_slow(time, &hit_times)),
        url: member.url.clone(),
        state: status.state.as_str(),
        reason: reason_of(&status.state),
        protocol: status.protocol,
        version: status.version,
        ring_id: status.ring_id.map(ring_id),
        ring_share: members.ring.as_ref().map_or(0.0, |ring| ring.share(index)),
        requests: status.requests,
        errors: status.errors,
    });
    let source = members.config.as_ref().map(|fleet| match fleet.source {
        PeerSource::List => "list",
        PeerSource::File(_) => "file",
        PeerSource::Dns { .. } => "dns",
        PeerSource::Srv { .. } => "srv",
        PeerSource::Gossip { .. } => "gossip",
    });
    let search = &node.membership;
    let found = Members {
        source,
        changes: search.changes.value(),
        failures: search.failures.value(),
        last_failure: search.last_failure.lock().clone(),
        gossip_address: search.gossip_address.lock().map(|address| address.to_string()),
        former: node.cache.former_members(),
    };
    let ring_id = members.ring.is_some().then(|| ring_id(members.ring_id()));
    FleetState { lease: Lease::of(node), ring, members: found, ring_id, peers: peers.collect() }
}

fn replicas(node: &Node, groups: &Groups) -> Replicas {
    let replicas = &node.cache.replicas;
    let name_of = |id| groups.list.iter().find(|served| served.group.id == id).map(|served| &served.group.name);
    let hottest = replicas.hottest(HOTTEST, node.cache.now()).into_iter().filter_map(|hottest| {
        Some(HotKey {
            group: name_of(hottest.group)?.to_string(),
            key: String::from_utf8_lossy(&hottest.key).into_owned(),
            per_second: hottest.rate,
            replicas: hottest.replicas,
        })
    });
    Replicas {
        pushed: replicas.pushed.value(),
        taken: replicas.taken.value(),
        held: replicas.held(),
        dropped: replicas.dropped.value(),
        answered: replicas.answered.value(),
        used: replicas.used.value(),
        hottest: hottest.collect(),
    }
}

fn reason_of(state: &peer::PeerState) -> Option<String> {
    match state {
        peer::PeerState::Down(reason) | peer::PeerState::Refused(reason) => Some(reason.clone()),
        peer::PeerState::Up | peer::PeerState::Draining => None,
    }
}

fn ring_id(id: u64) -> String {
    format!("{id:016x}")
}

fn group(node: &Node, served: &Served) -> Group {
    let stats: &GroupStats = &served.group.stats;
    let stored = node.cache.store.usage(served.group.id);
    let client = &stats.client;
    let origins = served.origin.iter().flat_map(|origin| origin.snapshot());
    Group {
        gets: stats.gets.value(),
        cache_hits: stats.cache_hits.value(),
        loads: stats.loads.value(),
        loads_deduped: stats.loads_deduped.value(),
        peer_loads: stats.peer_loads.value(),
        peer_errors: stats.peer_errors.value(),
        local_loads: stats.local_loads.value(),
        local_load_errs: stats.local_load_errs.value(),
        server_requests: stats.server_requests.value(),
        peeks: stats.peeks.value(),
        peek_hits: stats.peek_hits.value(),
        ring_disagreements: stats.ring_disagreements.value(),
        main: usage(stored.main),
        hot: usage(stored.hot),
        client: Client {
            requests: client.requests.value(),
            hit: client.hit.value(),
            stale: client.stale.value(),
            revalidated: client.revalidated.value(),
            miss: client.miss.value(),
            pass: client.pass.value(),
            error: client.error.value(),
            bytes: client.bytes.value(),
            hit_ratio_1m: stats.hit_ratio_last_minute(),
        },
        loads_collapsed: stats.loads_collapsed.value(),
        interims: stats.interims.value(),
        interims_dropped: stats.interims_dropped.value(),
        miss_reasons: stats.miss_reasons.counts(),
        not_stored: stats.not_stored.counts(),
        origins: origins.map(|origin| (origin.url.clone(), origin)).collect(),
        permits: served.group.limit.map(|limit| node.cache.permits.state(&served.group.name, limit)),
    }
}

fn usage(usage: RoleUsage) -> Usage {
    let RoleUsage { bytes, items, gets, hits, evictions } = usage;
    Usage { bytes, items, gets, hits, evictions }
}

/// How many of the hottest keys are shown.
const HOTTEST: usize = 10;

/// Memory of this process that is really there, in bytes (proc(5), `VmRSS`).
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A time as of RFC 3339, in UTC.
pub(super) fn rfc3339(wall_seconds: i64) -> String {
    let (days, seconds) = (wall_seconds.div_euclid(86_400), wall_seconds.rem_euclid(86_400));
    // The calendar repeats every 400 years; counting years from March puts the leap day last.
    let (era, day_of_era) = ((days + 719_468).div_euclid(146_097), (days + 719_468).rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds % 3600 / 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_the_right_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_795_176_000, "2026-11-20T12:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), expected);
        }
    }

    #[test]
    fn a_process_resides_in_memory() {
        assert!(resident_bytes().unwrap() > 1024 * 1024);
    }
}
