//! What a stored object costs beside its key, its head and its body.
//!
//! | bytes | for |
//! |---|---|
//! | 114 | the entry: facts, count, lengths; its key and its head lie behind them |
//! | 32 | the block that points to the body, with its count |
//! | 47 to 50 | place in the index (16), the order (20) and the book of keys (8), with their spare room |
//!
//! Nine bytes less come out: in a block of its own the key would be rounded up too. What gave way not long ago adds 8 to 11 bytes
//! for each that is stored. Of an object with tags 196 more: 112 for what few have, 48 for the text, 36 for two pairs of tag and
//! key in the books.

use super::*;
use crate::memory::allocated_bytes;

/// What the ledger charges for one of [`OBJECTS`] objects beyond what blocks of nothing but its key, its head and its body
/// would take; and how much larger than key, head and body those blocks are, because the allocator rounds. In bytes.
async fn beside_key_head_and_body(body_bytes: impl Fn(usize) -> usize, fields: &[(&str, &str)]) -> (usize, usize) {
    let origin = Scripted::new();
    let node = Node::new(&origin);
    let before = node.cache.ledger.stored();
    let (mut blocks, mut bytes) = (0, 0);
    for number in 0..OBJECTS {
        let name = format!("images/products/{number:08}/large/front.jp");
        let body = vec![b'x'; body_bytes(number)];
        // Heads of 218 to 281 bytes, so that the figure is not that of one lucky length.
        let request_id = "x".repeat(1 + number % 64);
        let fields = [fields, &[("X-Request-Id", &request_id[..])]].concat();
        origin.on(&format!("/{name}"), Script::head(200, &fields, Some(body.len() as u64)).chunk(Bytes::from(body)));
        node.ask(&name).await;
        node.settle().await;
        let (slot, _) = node.cache.store.peek(&HashedKey::new(GroupId(0), name.as_bytes())).expect("it is stored");
        let entry = slot.entries().next().unwrap();
        assert_eq!(name.len(), 39);
        for length in [name.len(), entry.fields().len(), entry.body.len() as usize] {
            blocks += allocated_bytes(length);
            bytes += length;
        }
    }
    assert_eq!(node.cache.store.totals().items, OBJECTS);
    assert_eq!(node.cache.ledger.outside(), Node::new(&origin).cache.ledger.outside(), "all of it is the store's");
    ((node.cache.ledger.stored() - before - blocks).div_ceil(OBJECTS), (blocks - bytes) / OBJECTS)
}

/// As the machines of users send it.
const NGINX: [(&str, &str); 6] = [
    ("Server", "nginx"),
    ("Date", "Fri, 20 Nov 2026 10:00:01 GMT"),
    ("Content-Type", "image/jpeg"),
    ("Last-Modified", "Wed, 18 Nov 2026 08:12:44 GMT"),
    ("ETag", "\"691c2b0c-1f4a3\""),
    ("Cache-Control", "public, max-age=86400, stale-while-revalidate=600"),
];

const OBJECTS: usize = 3000;

#[tokio::test]
async fn an_object_costs_little_beside_key_head_and_body() {
    let of_4_kib = |_: usize| 4096;
    // 100 bytes to 51 KiB, each power of two as often, and each remainder.
    let mixed = |number: usize| {
        let power = 100 << (number % 10);
        power + number * 7919 % power
    };
    let small = |number: usize| 100 + number % 400;
    let mut tagged = NGINX.to_vec();
    tagged.push(("Surrogate-Key", "product-4711 category-12"));
    for (what, found, most, rounding) in [
        ("4 KiB", beside_key_head_and_body(of_4_kib, &NGINX).await, 190, 40),
        ("mixed", beside_key_head_and_body(mixed, &NGINX).await, 190, 1515),
        ("small", beside_key_head_and_body(small, &NGINX).await, 190, 65),
        ("4 KiB with two tags", beside_key_head_and_body(of_4_kib, &tagged).await, 400, 40),
    ] {
        assert!(found.0 <= most && found.1 <= rounding, "{what}: {found:?}");
    }
}
