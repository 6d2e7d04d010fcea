//! A history of reads, changes and purges on real nodes, and the check that no answer is older than an acknowledged purge.
//!
//! Every operation is noted with its beginning and its end by one monotonic clock. An answer that begins after an
//! acknowledgement has at least the version that was current when the acknowledged request was sent. Purges come through every
//! door: the endpoint (by key, tag and prefix, hard and soft), the method `PURGE`, and unsafe requests.
//! `HISTORY_MINUTES` makes it last longer (`make history MINUTES=10`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::kit::client::Client;
use crate::kit::fleet::Fleet;
use crate::kit::node::Setup;
use crate::kit::origin::{Origin, Reply};

/// What one operation did.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Did {
    /// Read this version of a key.
    Read(usize, u64),
    /// Was acknowledged; when it was sent, these keys had these versions.
    Purged(Vec<(usize, u64)>),
}

/// One operation.
#[derive(Clone, Debug)]
struct Operation {
    begun: Instant,
    ended: Instant,
    did: Did,
}

/// The reads that contradict the promise, each with the version that it should have had at least.
fn contradictions(history: &[Operation]) -> Vec<(&Operation, u64)> {
    let mut purges: Vec<&Operation> =
        history.iter().filter(|operation| matches!(operation.did, Did::Purged(_))).collect();
    purges.sort_by_key(|operation| operation.ended);
    // By key, from when on which version is the least.
    let mut least: BTreeMap<usize, Vec<(Instant, u64)>> = BTreeMap::new();
    for purge in purges {
        let Did::Purged(versions) = &purge.did else { continue };
        for &(key, version) in versions {
            let known = least.entry(key).or_default();
            let before = known.last().map_or(0, |(_, version)| *version);
            if version > before {
                known.push((purge.ended, version));
            }
        }
    }
    let promised = |read: &Operation, key: usize| {
        let known = least.get(&key)?;
        let acknowledged = known.partition_point(|(at, _)| *at < read.begun);
        Some(known[acknowledged.checked_sub(1)?].1)
    };
    let reads = history.iter().filter_map(|operation| match operation.did {
        Did::Read(key, version) => Some((operation, promised(operation, key).filter(|least| version < *least)?)),
        Did::Purged(_) => None,
    });
    reads.collect()
}

#[test]
fn the_checker_sees_a_stale_read_and_no_other() {
    let start = Instant::now();
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    let operation = |from, to, did| Operation { begun: at(from), ended: at(to), did };
    let mut history = vec![
        operation(0, 5, Did::Read(0, 1)),
        operation(3, 10, Did::Purged(vec![(0, 2), (2, 7)])),
        // An older one, which takes nothing back.
        operation(2, 15, Did::Purged(vec![(0, 1)])),
        // Under way together with the purge: either version is right.
        operation(9, 12, Did::Read(0, 1)),
        operation(20, 30, Did::Read(1, 1)),
        operation(20, 30, Did::Read(0, 2)),
        operation(20, 30, Did::Read(2, 7)),
    ];
    assert!(contradictions(&history).is_empty());
    history.push(operation(11, 12, Did::Read(0, 1)));
    history.push(operation(16, 17, Did::Read(0, 1)));
    history.push(operation(16, 17, Did::Read(2, 6)));
    let found: Vec<u64> = contradictions(&history).into_iter().map(|(_, least)| least).collect();
    assert_eq!(found, [2, 2, 7]);
}

/// Each client has its own random numbers.
struct Choices(u64);

impl Choices {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// A client's connections to one node.
struct Doors {
    clients: Client,
    admin: Client,
    authority: SocketAddr,
}

impl Doors {
    /// Purges some keys in one of the ways; returns which keys, and whether all members have confirmed.
    async fn purge(&mut self, key: usize, choices: &mut Choices) -> (Vec<usize>, bool) {
        let named = |is_meant: &dyn Fn(usize) -> bool| (0..KEYS).filter(|key| is_meant(*key)).collect::<Vec<_>>();
        let soft = choices.below(4) == 0;
        let (keys, what) = match choices.below(4) {
            0 => {
                let host = self.authority;
                self.clients.send(format!("PURGE /{key} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
                let answer = self.clients.answer().await;
                return (vec![key], answer.status() == 200);
            }
            1 => (vec![key], format!(r#""group":"all","key":"{key}""#)),
            2 => {
                let prefix = key.to_string();
                (named(&|key| key.to_string().starts_with(&prefix)), format!(r#""group":"all","prefix":"{prefix}""#))
            }
            _ => (named(&|other| other % TAGS == key % TAGS), format!(r#""tag":"t{}""#, key % TAGS)),
        };
        let body = format!(r#"{{{what},"soft":{soft}}}"#);
        let (host, length) = (self.authority, body.len());
        let head = format!("POST /_groupcache/purge HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n");
        self.admin.send(format!("{head}Content-Type: application/json\r\n\r\n{body}")).await;
        let answer = self.admin.answer().await;
        assert!(matches!(answer.status(), 200 | 503), "{}", answer.text());
        (keys, answer.status() == 200)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_is_older_than_an_acknowledged_purge() {
    let minutes = std::env::var("HISTORY_MINUTES").ok().and_then(|minutes| minutes.parse::<u64>().ok());
    let until = minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let origin = Origin::start().await;
    let versions: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| AtomicU64::new(1)).collect());
    for key in 0..KEYS {
        let versions = versions.clone();
        let reply = Reply::made(move |request, _| {
            let version = match &request.method[..] {
                "POST" => versions[key].fetch_add(1, Ordering::SeqCst) + 1,
                _ => versions[key].load(Ordering::SeqCst),
            };
            // Long enough that it comes in several pieces.
            let body = format!("{key}|{version}|{}", "x".repeat(key * 3000));
            let tag = format!("t{}", key % TAGS);
            Reply::ok(body).header("Cache-Control", "max-age=600").header("Surrogate-Key", tag)
        });
        origin.on(&format!("/{key}"), reply);
    }
    let setup = Setup::group(&format!("origin: '{}'", origin.url()));
    let fleet = Fleet::start(NODES, &setup).await;
    let addresses: Vec<_> = fleet.nodes.iter().map(|node| (node.address, node.admin)).collect();
    let left = Arc::new(AtomicUsize::new(OPERATIONS));
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let (addresses, versions, left) = (addresses.clone(), versions.clone(), left.clone());
        clients.push(tokio::spawn(async move {
            let mut choices = Choices(client as u64);
            let mut nodes = Vec::new();
            for &(address, admin) in &addresses {
                let (clients, admin) = (Client::connect(address).await, Client::connect(admin).await);
                nodes.push(Doors { clients, admin, authority: address });
            }
            let mut history = Vec::new();
            loop {
                let go_on = match until {
                    Some(until) => Instant::now() < until,
                    None => left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok(),
                };
                if !go_on {
                    return history;
                }
                // Few keys get most, so that operations on one key meet.
                let key = choices.below(KEYS).min(choices.below(KEYS));
                let node = choices.below(NODES);
                let doors = &mut nodes[node];
                let begun = Instant::now();
                let did = match choices.below(100) {
                    0..10 => {
                        versions[key].fetch_add(1, Ordering::SeqCst);
                        None
                    }
                    10..15 => {
                        doors
                            .clients
                            .send(format!("POST /{key} HTTP/1.1\r\nHost: test.example\r\nContent-Length: 0\r\n\r\n"))
                            .await;
                        let (status, version) = version_of(&mut doors.clients, key).await;
                        assert_eq!(status, 200);
                        // An unsafe request makes its client wait for a second at most, and tells the rest later.
                        (begun.elapsed() < TOLD_WITHIN).then(|| Did::Purged(vec![(key, version)]))
                    }
                    15..25 => {
                        let current: Vec<u64> = versions.iter().map(|version| version.load(Ordering::SeqCst)).collect();
                        let (keys, complete) = doors.purge(key, &mut choices).await;
                        complete.then(|| Did::Purged(keys.into_iter().map(|key| (key, current[key])).collect()))
                    }
                    _ => {
                        doors.clients.ask(&format!("/{key}")).await;
                        let (status, version) = version_of(&mut doors.clients, key).await;
                        assert_eq!(status, 200);
                        Some(Did::Read(key, version))
                    }
                };
                history.extend(did.map(|did| Operation { begun, ended: Instant::now(), did }));
            }
        }));
    }
    let mut history = Vec::new();
    for client in clients {
        history.extend(client.await.expect("a client"));
    }
    let purges = history.iter().filter(|operation| matches!(operation.did, Did::Purged(_))).count();
    println!("{} reads and {purges} purges", history.len() - purges);
    assert!(purges > 500, "{purges} acknowledged");
    let contradictions = contradictions(&history);
    assert!(contradictions.is_empty(), "{} of {}: {:?}", contradictions.len(), history.len(), contradictions.first());
    // The check means something only if memory answered.
    let hits: u64 = fleet.sum("cache_hits").await;
    println!("{hits} hits");
    assert!(hits as usize > history.len() / 20, "{hits} hits");
}

/// Status of an answer, and the version that its body says it is of.
async fn version_of(connection: &mut Client, key: usize) -> (u16, u64) {
    let answer = connection.answer().await;
    let text = answer.text();
    let mut parts = text.split('|');
    assert_eq!(parts.next(), Some(&key.to_string()[..]), "the body is another key's");
    let version = parts.next().and_then(|version| version.parse().ok()).expect("a version");
    assert_eq!(parts.next().map(str::len), Some(key * 3000), "a whole body");
    (answer.status(), version)
}

const NODES: usize = 3;
const KEYS: usize = 16;
const TAGS: usize = 4;
const CLIENTS: usize = 12;
const OPERATIONS: usize = 10_000;
const TOLD_WITHIN: Duration = Duration::from_millis(900);
