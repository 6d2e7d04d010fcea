//! A history of reads, changes and invalidations on real nodes, and the check that no answer is older than an
//! acknowledged invalidation.
//!
//! Every operation is noted with its beginning and its end by one monotonic clock. An answer that begins after an
//! acknowledgement has at least the version that was current when the acknowledged request arrived.
//! `HISTORY_MINUTES` makes it last longer (`make history MINUTES=10`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::kit::client::Client;
use crate::kit::fleet::Fleet;
use crate::kit::node::Setup;
use crate::kit::origin::{Origin, Reply};

/// What one operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Did {
    /// Read this version.
    Read(u64),
    /// Was acknowledged; this version was current.
    Invalidated(u64),
}

/// One operation.
#[derive(Clone, Copy, Debug)]
struct Operation {
    key: usize,
    begun: Instant,
    ended: Instant,
    did: Did,
}

/// The operations that contradict the promise: each a read with the acknowledgement that it is older than.
fn contradictions(history: &[Operation]) -> Vec<(Operation, Operation)> {
    let mut found = Vec::new();
    let mut acknowledged: Vec<&Operation> =
        history.iter().filter(|operation| matches!(operation.did, Did::Invalidated(_))).collect();
    acknowledged.sort_by_key(|operation| operation.ended);
    for read in history {
        let Did::Read(version) = read.did else { continue };
        let before = acknowledged.iter().take_while(|invalidated| invalidated.ended < read.begun);
        let newer = before
            .filter(|invalidated| invalidated.key == read.key)
            .find(|invalidated| matches!(invalidated.did, Did::Invalidated(least) if version < least));
        found.extend(newer.map(|invalidated| (*read, **invalidated)));
    }
    found
}

#[test]
fn the_checker_sees_a_stale_read_and_no_other() {
    let start = Instant::now();
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    let operation = |key, from, to, did| Operation { key, begun: at(from), ended: at(to), did };
    let mut history = vec![
        operation(0, 0, 5, Did::Read(1)),
        operation(0, 3, 10, Did::Invalidated(2)),
        // Under way together with the invalidation: either version is right.
        operation(0, 9, 12, Did::Read(1)),
        operation(1, 20, 30, Did::Read(1)),
        operation(0, 20, 30, Did::Read(2)),
    ];
    assert!(contradictions(&history).is_empty());
    history.push(operation(0, 11, 12, Did::Read(1)));
    assert_eq!(contradictions(&history).len(), 1);
}

/// Each client has its own random numbers.
struct Choices(u64);

impl Choices {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_is_older_than_an_acknowledged_invalidation() {
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
            Reply::ok(body).header("Cache-Control", "max-age=600")
        });
        origin.on(&format!("/{key}"), reply);
    }
    let setup = Setup::group(&format!("origin: '{}'", origin.url()));
    let fleet = Fleet::start(NODES, &setup).await;
    let addresses: Vec<_> = fleet.nodes.iter().map(|node| node.address).collect();
    let left = Arc::new(AtomicUsize::new(OPERATIONS));
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let (addresses, versions, left) = (addresses.clone(), versions.clone(), left.clone());
        clients.push(tokio::spawn(async move {
            let mut choices = Choices(client as u64);
            let mut connections = Vec::new();
            for &address in &addresses {
                connections.push(Client::connect(address).await);
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
                let connection = &mut connections[node];
                let begun = Instant::now();
                let did = match choices.below(100) {
                    0..10 => {
                        versions[key].fetch_add(1, Ordering::SeqCst);
                        None
                    }
                    10..20 => {
                        connection
                            .send(format!("POST /{key} HTTP/1.1\r\nHost: test.example\r\nContent-Length: 0\r\n\r\n"))
                            .await;
                        let (status, version) = version_of(connection, key).await;
                        assert_eq!(status, 200);
                        // An unsafe request makes its client wait for a second at most, and tells the rest later.
                        (begun.elapsed() < TOLD_WITHIN).then_some(Did::Invalidated(version))
                    }
                    _ => {
                        connection.ask(&format!("/{key}")).await;
                        let (status, version) = version_of(connection, key).await;
                        assert_eq!(status, 200);
                        Some(Did::Read(version))
                    }
                };
                history.extend(did.map(|did| Operation { key, begun, ended: Instant::now(), did }));
            }
        }));
    }
    let mut history = Vec::new();
    for client in clients {
        history.extend(client.await.expect("a client"));
    }
    let invalidated = history.iter().filter(|operation| matches!(operation.did, Did::Invalidated(_))).count();
    println!("{} operations, {invalidated} invalidations", history.len());
    assert!(invalidated > 100, "{invalidated} acknowledged in time");
    let contradictions = contradictions(&history);
    assert!(contradictions.is_empty(), "{} of {}: {:?}", contradictions.len(), history.len(), contradictions.first());
    // The check means something only if memory answered.
    let hits: u64 = fleet.sum("cache_hits").await;
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
const CLIENTS: usize = 12;
const OPERATIONS: usize = 10_000;
const TOLD_WITHIN: Duration = Duration::from_millis(900);
