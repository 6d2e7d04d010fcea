//! The small operations that `parts` measures in time and `instructions` in instructions.

use std::hint::black_box;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use groupcache_proxy::cache::Cache;
use groupcache_proxy::clock::{Clock, Now, SystemClock};
use groupcache_proxy::edge::request_head::{RequestHead, Scan, lines};
use groupcache_proxy::edge::response::{FieldRules, Response};
use groupcache_proxy::entry::{Body, Entry, Parts};
use groupcache_proxy::fields::Fields;
use groupcache_proxy::flight::{Flights, Joined, Keep};
use groupcache_proxy::freshness::{
    Exchange, Freshness, HopFreshness, RequestDirectives, ResponseDirectives, Rules, Target, format_http_date,
};
use groupcache_proxy::key::{GroupId, HashedKey};
use groupcache_proxy::memory::{Charge, Ledger};
use groupcache_proxy::peer::protocol::{self, FRAME_BYTES_MAX, FrameReader, Head, Message, Question, QuestionKind};
use groupcache_proxy::purge::{Tags, Target as PurgeTarget};
use groupcache_proxy::purging::PurgeRequest;
use groupcache_proxy::ring::{REPLICAS_DEFAULT, Ring, RingKind, RingPeer};
use groupcache_proxy::semantics::validators::StoredValidators;
use groupcache_proxy::semantics::variant::{VariantKey, VaryRule};
use groupcache_proxy::slot::Slot;
use groupcache_proxy::source::{Ask, EntryId, Hop, Method};
use groupcache_proxy::store::{Role, Settings, Store, Weighed};
use tokio::runtime::{Builder, Runtime};

use super::node::{Node, ready, serve_bare};

/// Does the operation so many times.
pub type Run = Box<dyn FnMut(u64)>;

/// One operation.
pub struct Operation {
    /// Name in the record and on the command line.
    pub name: &'static str,
    /// Sets up what the operation needs.
    pub prepare: fn() -> Run,
}

/// All of them, from the request inwards.
pub const OPERATIONS: [Operation; 22] = [
    Operation { name: "lane/bare", prepare: lane_bare },
    Operation { name: "lane/hit", prepare: || lane(GET, 4096) },
    Operation { name: "lane/hit with other fields each time", prepare: || lane_in_turn([GET, GET_OF_ANOTHER], 4096) },
    Operation { name: "lane/hit of a browser", prepare: || lane(GET_OF_BROWSER, 4096) },
    Operation { name: "lane/hit 1 MiB", prepare: || lane(GET, 1 << 20) },
    Operation { name: "lane/not modified", prepare: || lane(GET_CONDITIONAL, 4096) },
    Operation { name: "lane/range", prepare: || lane(GET_RANGE, 4096) },
    Operation { name: "lane/miss", prepare: lane_miss },
    Operation { name: "hop/one client", prepare: || hop(1) },
    Operation { name: "hop/64 clients", prepare: || hop(64) },
    Operation { name: "request head", prepare: request_head },
    Operation { name: "ring/owner among 100", prepare: ring_owner },
    Operation { name: "ring/owner of a hash", prepare: ring_owner_of_hash },
    Operation { name: "store/find", prepare: store_find },
    Operation { name: "store/insert while another gives way", prepare: store_insert },
    Operation { name: "purge/tag of 1000, a 250th, among 10000", prepare: || purge_by_tag(10) },
    Operation { name: "purge/tag of 1000, a 250th, among 1000000", prepare: || purge_by_tag(1000) },
    Operation { name: "freshness/verdict", prepare: freshness_verdict },
    Operation { name: "freshness/verdict, parsing the stored fields", prepare: freshness_verdict_parsing },
    Operation { name: "entry to wire", prepare: entry_to_wire },
    Operation { name: "frames/question and answer of 4 KiB", prepare: frames },
    Operation { name: "flight/64 readers", prepare: flight },
];

const GET: &[u8] = b"GET /thumbnails/00000000.jpg HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";
/// As long as [`GET`], so that both cost the same but for what is known of them.
const GET_OF_ANOTHER: &[u8] = b"GET /thumbnails/00000000.jpg HTTP/1.1\r\nHost: 127.0.0.2:8080\r\n\r\n";
const GET_CONDITIONAL: &[u8] =
    b"GET /thumbnails/00000000.jpg HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nIf-None-Match: \"691efb40-1000\"\r\n\r\n";
const GET_RANGE: &[u8] =
    b"GET /thumbnails/00000000.jpg HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nRange: bytes=1000-1999\r\n\r\n";
const GET_OF_BROWSER: &[u8] = b"GET /thumbnails/00000000.jpg HTTP/1.1\r\nHost: pictures.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0\r\n\
    Accept: image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5\r\n\
    Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nConnection: keep-alive\r\n\
    Referer: https://pictures.example.com/albums/12\r\nCookie: session=0123456789abcdef\r\n\
    Sec-Fetch-Dest: image\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Site: same-origin\r\n\r\n";
const KEY: &[u8] = b"thumbnails/00000000.jpg";
const GROUP: GroupId = GroupId(0);

/// What the bare lane sends: as long as the head of a hit.
const BARE_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Fri, 20 Nov 2026 12:00:00 GMT\r\n\
    Content-Type: application/octet-stream\r\nLast-Modified: Fri, 20 Nov 2026 11:00:00 GMT\r\n\
    ETag: \"691efb40-1000\"\r\nCache-Control: public, max-age=86400\r\nAccept-Ranges: bytes\r\nAge: 0\r\n\
    Cache-Status: groupcache-proxy; hit; ttl=86399\r\nVia: 1.1 groupcache-proxy\r\nContent-Length: 4096\r\n\r\n";

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn lane_bare() -> Run {
    let (runtime, body) = (runtime(), vec![b'x'; 4096]);
    Box::new(move |count| serve_bare(&runtime, BARE_HEAD, &body, GET, count))
}

fn lane(request: &'static [u8], body_bytes: usize) -> Run {
    lane_in_turn([request; 2], body_bytes)
}

fn lane_in_turn(requests: [&'static [u8]; 2], body_bytes: usize) -> Run {
    let (runtime, node) = (runtime(), Node::new(body_bytes));
    // The first is a miss, and its entry is in the store only after the fill has ended.
    node.serve(&runtime, GET, 1);
    runtime.block_on(tokio::task::yield_now());
    node.serve(&runtime, GET, 1);
    assert_eq!(node.group.stats.cache_hits.value(), 1);
    Box::new(move |count| {
        black_box(node.serve_in_turn(&runtime, requests, count));
    })
}

/// The origin is a constant of this process, so that its side costs next to nothing.
fn lane_miss() -> Run {
    let (runtime, node) = (runtime(), Node::keeping_nothing(4096));
    Box::new(move |count| {
        black_box(node.serve(&runtime, GET, count));
        assert_eq!(node.group.stats.cache_hits.value(), 0);
    })
}

/// From a client's request to its answer, with both nodes in this process.
fn hop(clients: usize) -> Run {
    // Keys of their own, or the clients would share their fills.
    let request = |number| -> &'static [u8] {
        format!("GET /thumbnails/{number:08}.jpg HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n").into_bytes().leak()
    };
    let requests: Vec<_> = (0..clients).map(request).collect();
    let (runtime, owner) = (runtime(), Node::new(4096));
    let asking = Node::asking(&owner, &runtime);
    asking.serve_many(&runtime, &requests, 2 * clients as u64);
    Box::new(move |count| {
        let before = owner.group.stats.server_requests.value();
        asking.serve_many(&runtime, &requests, count);
        let asked = owner.group.stats.server_requests.value() - before;
        assert_eq!(asked, count);
    })
}

fn request_head() -> Run {
    Box::new(|count| {
        for _ in 0..count {
            let text = black_box(GET_OF_BROWSER);
            let bytes = Scan::default().advance(text, 32 << 10).expect("well-formed").expect("whole");
            let mut lines = lines();
            black_box(RequestHead::parse(&text[..bytes], &mut lines).is_ok());
        }
    })
}

fn ring() -> Ring {
    let peers: Vec<RingPeer> =
        (0..100).map(|number| RingPeer::new(format!("http://cache-{number:03}.internal:8082"))).collect();
    Ring::new(RingKind::Balanced, REPLICAS_DEFAULT, &peers)
}

fn keys() -> Vec<Vec<u8>> {
    (0..64).map(|number| format!("photos/{number:04}.jpg?w=200").into_bytes()).collect()
}

fn ring_owner() -> Run {
    let (ring, keys) = (ring(), keys());
    Box::new(move |count| {
        for number in 0..count {
            black_box(ring.owner(black_box(&keys[number as usize % 64])));
        }
    })
}

fn ring_owner_of_hash() -> Run {
    let ring = ring();
    let hashes: Vec<u64> = keys().iter().map(|key| ring.key_hash(key)).collect();
    Box::new(move |count| {
        for number in 0..count {
            black_box(ring.owner_of_hash(black_box(hashes[number as usize % 64])));
        }
    })
}

struct Object {
    key: [u8; 8],
    charge: Charge,
}

impl Weighed for Object {
    fn key(&self) -> &[u8] {
        &self.key
    }

    fn charged_bytes(&self) -> usize {
        self.charge.bytes()
    }
}

fn put(store: &Store<Arc<Object>>, number: u64) {
    let key = number.to_be_bytes();
    let value = Arc::new(Object { key, charge: store.ledger().charge(4096) });
    black_box(store.insert(Role::Main, &HashedKey::new(GROUP, &key), value));
}

fn store_find() -> Run {
    let store = Store::new(Ledger::new(1 << 30), &Settings::default(), None);
    (0..1000).for_each(|number| put(&store, number));
    Box::new(move |count| {
        for number in 0..count {
            let key = (number % 1000).to_be_bytes();
            black_box(store.find(&HashedKey::new(GROUP, &key)));
        }
    })
}

fn store_insert() -> Run {
    let store = Store::new(Ledger::new(16 << 20), &Settings::default(), None);
    (0..8000).for_each(|number| put(&store, number));
    let mut next = 8000;
    Box::new(move |count| {
        for _ in 0..count {
            next += 1;
            put(&store, next);
        }
    })
}

fn freshness() -> (Freshness, Now) {
    let now = SystemClock.now();
    (Freshness::of_ours(std::time::Duration::from_secs(3600), now), now)
}

/// A purge by tag of 1,000 of the objects in a cache that holds 1,000 for each of `tags` tags. What is purged does not come back,
/// so that only purging counts: a short run purges nothing, and a long one purges one tag.
fn purge_by_tag(tags: u64) -> Run {
    let store = Store::new(Ledger::new(4 << 30), &Settings::default(), None);
    let cache = Cache::new(store.clone(), Arc::new(SystemClock), 1);
    let (freshness, fields) = (freshness().0, Fields::from_pairs([("ETag", "\"1\"")]).expect("well-formed"));
    for number in 0..tags * 1000 {
        let parts = Parts {
            id: EntryId { incarnation: 1, fill: number },
            body_id: EntryId { incarnation: 1, fill: number },
            status: 200,
            fields: fields.clone(),
            freshness,
            validators: StoredValidators::of(&fields, 0),
            sent: Fields::empty(),
            tags: Tags::new([&tag(number % tags)[..]]),
            body: Body::gather(&[Bytes::from_static(b"x")]),
        };
        let key = format!("thumbnails/{number:08x}.jpg");
        let entry = Entry::new(key.as_bytes(), parts, store.ledger().charge(0));
        let slot = Slot::with(None, VaryRule::None, VariantKey::default(), entry, 4);
        store.insert(Role::Main, &HashedKey::new(GROUP, key.as_bytes()), slot);
    }
    let runtime = runtime();
    // The first purge of all sets up what the later ones find; no object has this tag.
    runtime.block_on(cache.purge_everywhere(purge_of(b"nothing")));
    let mut next = 0;
    Box::new(move |count| {
        for _ in 0..count / PURGE_SHARE {
            let receipt = runtime.block_on(cache.purge_everywhere(purge_of(&tag(next % tags))));
            assert_eq!(receipt.entries, 1000);
            next += 1;
        }
    })
}

fn tag(number: u64) -> Vec<u8> {
    format!("article-{number}").into_bytes()
}

fn purge_of(tag: &[u8]) -> PurgeRequest {
    let targets = vec![PurgeTarget::Tag(None, Bytes::copy_from_slice(tag))];
    PurgeRequest { targets, timeout: std::time::Duration::from_secs(5), ..PurgeRequest::default() }
}

/// Of so many operations one purges: of 200 none, of 2,200 eight, which is fewer than there are tags.
const PURGE_SHARE: u64 = 250;

fn freshness_verdict() -> Run {
    let (freshness, now) = freshness();
    let rules = Rules::default();
    Box::new(move |count| {
        for _ in 0..count {
            black_box(black_box(&freshness).verdict(&rules, &RequestDirectives::default(), black_box(now)));
        }
    })
}

/// What a hit would cost if an entry kept no facts but the header as it was stored, and the times of the exchange.
fn freshness_verdict_parsing() -> Run {
    let now = SystemClock.now();
    let date = format_http_date(now.wall_seconds);
    let modified = format_http_date(now.wall_seconds - 86_400);
    let received = Fields::from_pairs([
        ("Server", "nginx"),
        ("Date", &date),
        ("Content-Type", "application/octet-stream"),
        ("Last-Modified", &modified),
        ("ETag", "\"691efb40-1000\""),
        ("Cache-Control", "public, max-age=3600"),
        ("Accept-Ranges", "bytes"),
    ]);
    let received = received.expect("well-formed");
    let rules = Rules::default();
    Box::new(move |count| {
        for _ in 0..count {
            let received = black_box(&received);
            let exchange = Exchange {
                method: "GET",
                target: Target { authorities: &[], path: "/" },
                sent: &Fields::empty(),
                directives: RequestDirectives::default(),
                status: 200,
                received,
                stores_parts: true,
                requested_at: now,
                received_at: now,
                jitter: 0.0,
            };
            let directives = ResponseDirectives::parse(&rules, received);
            let freshness = Freshness::new(&rules, &exchange, &directives);
            black_box(freshness.verdict(&rules, &RequestDirectives::default(), black_box(now)));
        }
    })
}

fn entry_to_wire() -> Run {
    let (runtime, node) = (runtime(), Node::new(4096));
    node.serve(&runtime, GET, 1);
    runtime.block_on(tokio::task::yield_now());
    let now = node.edge.cache.now();
    let key = HashedKey::new(GROUP, KEY);
    let found = node.edge.cache.find_fresh(&node.group, &key, Fields::empty, &RequestDirectives::default(), now);
    let entry = found.expect("stored").entry;
    let lines = Box::leak(Box::new(lines()));
    let head = RequestHead::parse(GET, lines).expect("well-formed");
    let (rules, mut out) = (FieldRules::default(), Vec::new());
    Box::new(move |count| {
        for _ in 0..count {
            let response = Response::hit(black_box(&entry).clone(), false, &head);
            response.write_http_1(&rules, now, true, true, &mut out);
            black_box(&out);
        }
    })
}

fn frames() -> Run {
    let question = Message::Ask(Box::new(Question {
        kind: QuestionKind::Load,
        ask: Ask {
            group: "thumbnails".into(),
            key: Bytes::from_static(KEY),
            target: Bytes::from_static(b"/thumbnails/00000000.jpg"),
            host: None,
            method: Method::Get,
            fields: Fields::from_pairs([("Accept-Encoding", "gzip")]).expect("well-formed"),
        },
        have: EntryId::default(),
        ring_id: 7,
        window: 256 << 10,
        purges: Bytes::new(),
    }));
    let fields = Fields::from_pairs([("Content-Type", "image/jpeg"), ("ETag", "\"691efb40-1000\"")]);
    let head = Message::Head(Box::new(Head {
        status: 200,
        fields: fields.expect("well-formed"),
        content_length: Some(4096),
        hop: Some(Hop {
            freshness: HopFreshness { remaining_milliseconds: 3_600_000, ..HopFreshness::default() },
            shareable: true,
            storable: true,
            entry: EntryId { incarnation: 1, fill: 1 },
            hit: true,
            ..Hop::default()
        }),
    }));
    let body = vec![b'x'; 4096];
    let (mut asker, mut owner) = (FrameReader::new(FRAME_BYTES_MAX), FrameReader::new(FRAME_BYTES_MAX));
    let mut out = BytesMut::new();
    Box::new(move |count| {
        for number in 0..count {
            protocol::encode(number, &question, &mut out);
            pass(&mut out, &mut owner, 1);
            protocol::encode(number, &head, &mut out);
            protocol::encode_data_prefix(number, body.len(), &mut out);
            out.extend_from_slice(&body);
            protocol::encode(number, &Message::End { length: 4096, checksum: 1 }, &mut out);
            pass(&mut out, &mut asker, 3);
        }
    })
}

/// Hands over what was written, as a socket would, and takes the frames.
fn pass(out: &mut BytesMut, reader: &mut FrameReader, frames: usize) {
    reader.buffer(16 << 10).extend_from_slice(out);
    out.clear();
    for _ in 0..frames {
        black_box(reader.next_frame().expect("well-formed").expect("whole"));
    }
}

fn flight() -> Run {
    let flights: Arc<Flights<u64, ()>> = Flights::new(1000);
    let chunk = Bytes::from(vec![b'x'; 4096]);
    Box::new(move |count| {
        for key in 0..count {
            let Joined::Opened(first, fill) = flights.join(key) else { panic!("nobody else asks") };
            let mut readers = vec![first];
            for _ in 1..64 {
                let Joined::Following(reader) = flights.join(key) else { panic!("it is under way") };
                readers.push(reader);
            }
            fill.begin((), Keep::Whole);
            ready(fill.push(chunk.clone()));
            fill.finish();
            for reader in &mut readers {
                ready(reader.head()).expect("a head");
                while ready(reader.chunk()).expect("a chunk").is_some() {}
            }
        }
    })
}
