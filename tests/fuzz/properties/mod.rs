//! What always holds of each parser of what comes from outside, whatever the bytes.
//!
//! One function per parser, which panics when something does not hold. The fuzz targets call them with what libFuzzer
//! makes up, `tests/it/fuzz_corpus.rs` with the seeds in `tests/fuzz/corpus/` and with pieces of them. The inputs are as near to
//! the wire as can be, so that a seed reads like what it is about; `CASES` says how each is laid out.

mod cache_control;
mod chunked_body;
mod dates;
mod go_messages;
mod origin_head;
mod peer_frames;
mod ranges;
mod request_head;
mod structured_fields;
mod target;
mod validators;
mod vary;

use groupcache_proxy::clock::Now;
use groupcache_proxy::fields::{Fields, is_field_value};
use std::time::Duration;

/// Name of the target and of its folder of seeds, and what it checks.
pub const CASES: [(&str, fn(&[u8])); 12] = [
    // Lines of `Cache-Control`, the last of which is the one that is added to the others.
    ("cache_control", cache_control::hold),
    // A request body in chunked coding, and what follows it.
    ("chunked_body", chunked_body::hold),
    // One date.
    ("dates", dates::hold),
    // A key or the path of a question; also the bytes of a `GetResponse`.
    ("go_messages", go_messages::hold),
    // One letter for what was asked and how, then the head of an answer from its status line on.
    ("origin_head", origin_head::hold),
    // Frames with their lengths.
    ("peer_frames", peer_frames::hold),
    // A length, the value of `Range`, the value of `Content-Range`: a line each.
    ("ranges", ranges::hold),
    // A request head of HTTP/1, and what follows it.
    ("request_head", request_head::hold),
    // Lines of `Cache-Status`, the last of which is also a targeted field and a detail of ours.
    ("structured_fields", structured_fields::hold),
    // A request target, a key or a `Host`.
    ("target", target::hold),
    // An `ETag`, then the lines of `If-None-Match`.
    ("validators", validators::hold),
    // Lines of `Vary`, an empty line, header lines of one request, an empty line, those of another one.
    ("vary", vary::hold),
];

/// Runs the property of the target with this name.
pub fn check(name: &str, data: &[u8]) {
    let (_, hold) = CASES.iter().find(|(known, _)| *known == name).expect("a target of this list");
    hold(data);
}

/// A wall clock of 2033, and a process that is an hour old.
const NOW: Now = Now { monotonic: Duration::from_secs(3600), wall_seconds: 2_000_000_000 };

/// The lines of an input, without the line feed at its very end, which editors add.
fn lines(data: &[u8]) -> Vec<&[u8]> {
    data.strip_suffix(b"\n").unwrap_or(data).split(|&byte| byte == b'\n').collect()
}

/// A field of this name for each line; `None` when a line cannot stand in a header.
fn fields(name: &str, lines: &[&[u8]]) -> Option<Fields> {
    // A form feed at an end would be trimmed away, and be refused between this line and more of it.
    let sound = lines.iter().all(|line| is_field_value(line));
    Fields::from_pairs(lines.iter().map(|line| (name, line))).ok().filter(|_| sound)
}

/// Whether `text` has `part` in it, whatever the case of letters.
fn mentions(text: &[u8], part: &str) -> bool {
    text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part.as_bytes()))
}
