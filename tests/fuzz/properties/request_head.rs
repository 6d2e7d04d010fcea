//! Request heads: what passes the gate has one reading, and its body one end.

use groupcache_proxy::edge::request_head::{BodyFraming, KnownSection, Refusal, RequestHead, Scan, lines};
use groupcache_proxy::fields::{is_field_value, is_token};
use groupcache_proxy::semantics::target::{Authority, Target};

const BYTES_MAX: usize = 32 * 1024;

pub(super) fn hold(data: &[u8]) {
    let end = scan(data, data.len().max(1));
    for piece in [1, 3] {
        assert_eq!(scan(data, piece), end, "in pieces of {piece}");
    }
    let Ok(Some(end)) = end else { return };
    assert!(end <= BYTES_MAX && data[..end].ends_with(b"\r\n\r\n"));
    let mut room = lines();
    let head = match RequestHead::parse(&data[..end], &mut room) {
        Ok(head) => head,
        Err(refusal) => {
            assert!((400..=501).contains(&refusal.status) && !refusal.word.is_empty());
            return;
        }
    };
    assert_eq!(head.head_bytes, end);
    the_parts_are_sound(&head);
    the_body_has_one_end(&head, &data[..end]);
    written_anew_it_is_the_same(&head);
    other_spellings_of_a_line_are_refused(&data[..end]);
    what_is_known_of_a_connection_changes_nothing(&data[..end], &data[end..]);
}

/// Where the head ends, when it comes in pieces.
fn scan(data: &[u8], piece: usize) -> Result<Option<usize>, Refusal> {
    let mut scan = Scan::default();
    let mut arrived = 0;
    while arrived < data.len() {
        arrived = data.len().min(arrived + piece);
        if let Some(end) = scan.advance(&data[..arrived], BYTES_MAX)? {
            return Ok(Some(end));
        }
    }
    Ok(None)
}

fn the_parts_are_sound(head: &RequestHead<'_>) {
    assert!(is_token(head.method.as_str().as_bytes()) && !matches!(head.method.as_str(), "CONNECT" | "TRACE"));
    assert!(head.target.starts_with(b"/") && head.target.iter().all(u8::is_ascii_graphic));
    let target = Target::parse(head.target).expect("a target that was accepted");
    assert!(target.site.is_none());
    assert_eq!((target.path, target.query), (head.path(), head.query()));
    match &head.authority {
        Some(authority) => assert_eq!(Authority::parse(head.host).as_ref(), Ok(authority)),
        None => assert!(!head.http_11 && head.host.is_empty() && !head.absolute),
    }
    assert!(!head.http_2);
    let hosts = head.iter().filter(|(name, _)| name.eq_ignore_ascii_case("host"));
    assert!(hosts.count() <= 1);
    for (name, value) in head.iter() {
        assert!(is_token(name.as_bytes()) && is_field_value(value) && value == value.trim_ascii());
    }
    let fields = head.to_fields();
    assert!(fields.iter().eq(head.iter()));
}

/// Counted on the text, by lines.
fn the_body_has_one_end(head: &RequestHead<'_>, text: &[u8]) {
    let values = |name: &str| -> Vec<Vec<u8>> {
        text.split(|&byte| byte == b'\n')
            .filter_map(|line| {
                let colon = line.iter().position(|&byte| byte == b':')?;
                let found = line[..colon].trim_ascii().eq_ignore_ascii_case(name.as_bytes());
                found.then(|| line[colon + 1..].trim_ascii().to_ascii_lowercase())
            })
            .collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    match (&lengths[..], &codings[..]) {
        ([], []) => assert_eq!(head.body, BodyFraming::None),
        ([length], []) => {
            let length: u64 = std::str::from_utf8(length).unwrap().parse().unwrap();
            assert_eq!(head.body, if length == 0 { BodyFraming::None } else { BodyFraming::Length(length) });
        }
        ([], [coding]) => assert!(coding == b"chunked" && head.http_11 && head.body == BodyFraming::Chunked),
        _ => panic!("two ways to find the end of the body: {lengths:?} {codings:?}"),
    }
    assert!(values("content_length").is_empty() && values("transfer_encoding").is_empty());
}

fn written_anew_it_is_the_same(head: &RequestHead<'_>) {
    let mut text = head.method.as_str().as_bytes().to_vec();
    text.push(b' ');
    text.extend_from_slice(head.target);
    text.extend_from_slice(if head.http_11 { b" HTTP/1.1\r\n" } else { b" HTTP/1.0\r\n" });
    text.extend_from_slice(head.to_fields().as_bytes());
    text.extend_from_slice(b"\r\n");
    if text.len() > BYTES_MAX {
        return;
    }
    assert_eq!(scan(&text, text.len()), Ok(Some(text.len())));
    let mut room = lines();
    let again = RequestHead::parse(&text, &mut room).expect("a head that was accepted");
    assert_eq!((again.method, again.target, again.path_bytes), (head.method, head.target, head.path_bytes));
    assert_eq!((again.host, &again.authority, again.http_11), (head.host, &head.authority, head.http_11));
    assert_eq!((again.keep_alive, again.body, again.seen), (head.keep_alive, head.body, head.seen));
    assert!(again.iter().eq(head.iter()));
}

/// A second length, a coding beside a length, a folded line, a bare line feed: each makes two readings of one head.
fn other_spellings_of_a_line_are_refused(head: &[u8]) {
    let start = &head[..head.len() - 2];
    for added in [
        "Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n",
        "Content_Length: 1\r\n\r\n",
        " folded: 1\r\n\r\n",
        "A: b\rc\r\n\r\n",
        "Host: a\r\nHost: a\r\n\r\n",
    ] {
        let text = [start, added.as_bytes()].concat();
        if scan(&text, text.len()) == Ok(Some(text.len())) {
            let mut room = lines();
            assert!(RequestHead::parse(&text, &mut room).is_err(), "{added:?} is accepted");
        }
    }
    let text = [start, b"A: b\n\r\n"].concat();
    assert!(scan(&text, text.len()).is_err(), "a bare line feed is accepted");
}

/// The next head of a connection is read the same with what is known of the first one as without.
fn what_is_known_of_a_connection_changes_nothing(first: &[u8], behind: &[u8]) {
    let mut known = KnownSection::default();
    assert_eq!(known.find(first, BYTES_MAX), None);
    {
        let mut room = lines();
        assert!(known.read(first, &mut room).is_ok());
    }
    let line_end = first.iter().position(|&byte| byte == b'\n').map_or(0, |line_feed| line_feed + 1);
    let line = behind.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let mut nexts = vec![first.to_vec(), behind.to_vec(), [line, b"\n", &first[line_end..]].concat()];
    let lines_of_others = [
        "GET / HTTP/1.1",
        "HEAD /a?b HTTP/1.1",
        "GET /../a HTTP/1.1",
        "GET /%2e HTTP/1.1",
        "GET / HTTP/1.0",
        "POST / HTTP/1.1",
    ];
    nexts.extend(lines_of_others.map(|line| [line.as_bytes(), b"\r\n", &first[line_end..], b"x"].concat()));
    for next in nexts {
        let Some(end) = known.find(&next, BYTES_MAX) else { continue };
        assert_eq!(scan(&next, next.len()), Ok(Some(end)));
        let (mut room, mut other_room) = (lines(), lines());
        let shown = |head: RequestHead<'_>| {
            let RequestHead { method, target, path_bytes, absolute, http_11, http_2, host, .. } = head;
            let facts = (method, target, path_bytes, absolute, http_11, http_2, host);
            let more = (&head.authority, head.keep_alive, head.body, head.seen, head.head_bytes);
            format!("{facts:?} {more:?} {:?}", head.iter().collect::<Vec<_>>())
        };
        let by_known = known.read(&next[..end], &mut room).map(shown);
        assert_eq!(by_known, RequestHead::parse(&next[..end], &mut other_room).map(shown));
    }
}
