//! What is said between us and Go's groupcache: keys go there and come back, and a value is never fresher than it says.

use bytes::Bytes;
use groupcache_proxy::peer::go::{Dialect, GoQuestion, GoValue, go_can_carry, go_key, key_from_go, question_path};

use super::NOW;

const DIALECTS: [Dialect; 3] = [Dialect::Golang, Dialect::Mailgun, Dialect::V3];

pub(super) fn hold(data: &[u8]) {
    let text = data.strip_suffix(b"\n").unwrap_or(data);
    a_key_of_go_comes_back(text);
    our_key_comes_back(text);
    paths(text);
    value(data);
}

fn a_key_of_go_comes_back(go: &[u8]) {
    let ours = key_from_go(go);
    assert!(ours.iter().all(u8::is_ascii_graphic), "{ours:?}");
    let back = go_key(&ours).expect("every key of ours can be decoded");
    // A query may have needed encoding, which is not taken back.
    if !go.contains(&b'?') {
        assert_eq!(back, go);
    }
    assert_eq!(key_from_go(&back), ours);
}

fn our_key_comes_back(key: &[u8]) {
    if !go_can_carry(key) {
        return;
    }
    let there = go_key(key).expect("a key that Go can carry");
    assert_eq!(key_from_go(&there), key);
    for group in ["g", "thumb-nails_1"] {
        let path = question_path("/_groupcache/", group, key).expect("a key that Go can carry");
        for dialect in DIALECTS {
            let question = GoQuestion::parse(dialect, "/_groupcache/", path.as_bytes()).expect("a question of ours");
            assert_eq!((question.group.as_str(), &question.go_key[..]), (group, &there[..]), "{dialect:?}");
        }
    }
}

fn paths(path: &[u8]) {
    for dialect in DIALECTS {
        if let Some(question) = GoQuestion::parse(dialect, "/_groupcache/", path) {
            assert!(path.starts_with(b"/_groupcache/") && path.iter().all(u8::is_ascii_graphic));
            assert!(!question.group.is_empty() && !question.group.contains('/'));
            assert!(question.go_key.len() < path.len());
        }
    }
}

fn value(body: &[u8]) {
    let Ok(value) = GoValue::decode(Bytes::copy_from_slice(body), NOW) else { return };
    assert!(value.value.len() <= body.len() && value.fields.len() <= body.len());
    for (name, _) in value.fields.iter() {
        let described = ["content-type", "etag", "last-modified"];
        assert!(described.iter().any(|known| name.eq_ignore_ascii_case(known)), "{name} came from a Go peer");
    }
    if let Some(hop) = value.hop {
        // The end is in nanoseconds and fits 64 bits: after 2262 nothing is fresh.
        let longest = i64::MAX / 1_000_000 - NOW.wall_seconds * 1000;
        assert!(hop.freshness.remaining_milliseconds <= longest);
    }
}
