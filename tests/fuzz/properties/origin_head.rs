//! Heads of origins' answers: the body has one end, and nothing that protects the answer is lost.

use groupcache_proxy::fields::{is_field_value, is_token};
use groupcache_proxy::origin::head::{Asked, Head, Wire, from_block, from_map, from_plain};
use http::{HeaderMap, HeaderName, HeaderValue};

pub(super) fn hold(data: &[u8]) {
    let Some((&how, block)) = data.split_first() else { return };
    let asked = Asked { head_only: how & 1 != 0, range: how & 2 != 0, conditional: how & 4 != 0 };
    let wire = if how & 8 != 0 { Wire::Http10 } else { Wire::Http11 };
    if let Some(plain) = from_plain(block, asked) {
        let strictly = from_block(&block[..plain.bytes], plain.head.status, Wire::Http11, asked);
        assert_eq!(strictly.ok(), Some(plain.head), "what is read plainly is what is read strictly");
    }
    let status = status(block);
    let Ok(head) = from_block(block, status, wire, asked) else { return };
    the_answer_was_asked_for(&head, asked);
    the_body_has_one_end(&head, block, wire, asked);
    what_protects_is_kept(&head, block);
    line_ends_do_not_count(&head, block, wire, asked);
    over_http_2_it_is_the_same(&head, asked);
}

/// The second word of the status line; 200 without one, because pingora has read it before.
fn status(block: &[u8]) -> u16 {
    let line = block.split(|&byte| byte == b'\n').find(|line| !line.trim_ascii_end().is_empty()).unwrap_or_default();
    let word = line.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
    std::str::from_utf8(word.trim_ascii()).ok().and_then(|word| word.parse().ok()).unwrap_or(200)
}

fn the_answer_was_asked_for(head: &Head, asked: Asked) {
    assert!((200..=599).contains(&head.status));
    assert!(asked.range || !matches!(head.status, 206 | 416));
    assert!(asked.conditional || head.status != 304);
    for (name, value) in head.fields.iter() {
        assert!(is_token(name.as_bytes()) && is_field_value(value) && value == value.trim_ascii());
        let of_connection =
            ["connection", "transfer-encoding", "content-length", "keep-alive", "upgrade", "te", "trailer"];
        assert!(!of_connection.iter().any(|gone| name.eq_ignore_ascii_case(gone)), "{name}");
    }
}

/// Names and values on the lines of the block, folded lines left out.
fn values(block: &[u8], name: &str) -> Vec<Vec<u8>> {
    let lines = block.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let fields = lines.skip_while(|line| line.is_empty()).skip(1).take_while(|line| !line.is_empty());
    fields
        .filter_map(|line| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            let found = line[..colon].trim_ascii_end().eq_ignore_ascii_case(name.as_bytes());
            found.then(|| line[colon + 1..].trim_ascii().to_vec())
        })
        .collect()
}

fn the_body_has_one_end(head: &Head, block: &[u8], wire: Wire, asked: Asked) {
    let (lengths, codings) = (values(block, "content-length"), values(block, "transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "two ways to find the end of the body");
    let bodyless = asked.head_only || matches!(head.status, 204 | 304);
    assert_eq!(head.close_delimited, !bodyless && lengths.is_empty() && codings.is_empty());
    assert!(codings.is_empty() || wire == Wire::Http11);
    if let ([length], false) = (&lengths[..], matches!(head.status, 204 | 304)) {
        assert!(length.iter().all(u8::is_ascii_digit) || head.fields.is_empty() || block.contains(&b'\t'));
        assert!(head.content_length.is_some());
    }
}

fn what_protects_is_kept(head: &Head, block: &[u8]) {
    for name in ["cache-control", "vary", "set-cookie", "age", "date", "expires", "content-encoding", "content-range"] {
        assert_eq!(head.fields.get_all(name).count(), values(block, name).len(), "{name}");
    }
}

fn line_ends_do_not_count(head: &Head, block: &[u8], wire: Wire, asked: Asked) {
    let bare: Vec<u8> = block.split(|&byte| byte == b'\n').fold(Vec::new(), |mut text, line| {
        text.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        text.push(b'\n');
        text
    });
    // What is left of two carriage returns would become a line end itself.
    if bare.contains(&b'\r') {
        return;
    }
    assert_eq!(from_block(&bare, head.status, wire, asked).as_ref(), Ok(head));
}

/// Framing aside, which HTTP/2 has of its own.
fn over_http_2_it_is_the_same(head: &Head, asked: Asked) {
    let mut map = HeaderMap::new();
    for (name, value) in head.fields.iter() {
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) else {
            return;
        };
        map.append(name, value);
    }
    if let Some(length) = head.content_length.filter(|_| head.status != 204) {
        map.insert("content-length", length.into());
    }
    let again = from_map(&map, head.status, asked).expect("fields that were accepted");
    assert_eq!((again.status, again.content_length), (head.status, head.content_length));
    assert!(!again.close_delimited);
    assert_eq!(again.fields.iter().count(), head.fields.iter().count());
}
