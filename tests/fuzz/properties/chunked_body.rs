//! Chunked bodies: one reading, whatever the pieces in which the bytes come.

use groupcache_proxy::edge::body::{BodyReader, MalformedChunk};
use groupcache_proxy::edge::request_head::BodyFraming;

pub(super) fn hold(data: &[u8]) {
    let whole = read(BodyFraming::Chunked, data, data.len().max(1));
    for piece in [1, 2, 7] {
        assert_eq!(read(BodyFraming::Chunked, data, piece), whole, "in pieces of {piece}");
    }
    if let Ok(read) = &whole {
        nothing_behind_the_end_is_looked_at(data, read);
        another_reading_agrees(data, read);
    }
    if let Ok(Read { body, .. }) = &whole {
        coded_anew_it_is_the_same(body);
    }
    a_known_length_is_that_many_bytes(data);
}

#[derive(Debug, PartialEq, Eq)]
struct Read {
    body: Vec<u8>,
    used: usize,
    done: bool,
}

fn read(framing: BodyFraming, data: &[u8], piece: usize) -> Result<Read, MalformedChunk> {
    let mut reader = BodyReader::new(framing);
    let (mut body, mut used) = (Vec::new(), 0);
    for piece in data.chunks(piece) {
        let mut rest = piece;
        while !rest.is_empty() && !reader.is_done() {
            let (taken, bytes) = reader.advance(rest)?;
            assert!(taken <= rest.len() && bytes.len() <= taken && (taken > 0 || reader.is_done()));
            body.extend_from_slice(bytes);
            rest = &rest[taken..];
            used += taken;
        }
    }
    Ok(Read { body, used, done: reader.is_done() })
}

fn nothing_behind_the_end_is_looked_at(data: &[u8], whole: &Read) {
    if whole.done {
        assert_eq!(read(BodyFraming::Chunked, &data[..whole.used], 64).as_ref(), Ok(whole));
        assert!(data[..whole.used].ends_with(b"\r\n"));
        for behind in [&b"\0"[..], b"0\r\n\r\n", b"GET / HTTP/1.1\r\n"] {
            let longer = [&data[..whole.used], behind].concat();
            assert_eq!(read(BodyFraming::Chunked, &longer, longer.len()).as_ref(), Ok(whole));
        }
    } else {
        assert_eq!(whole.used, data.len());
    }
}

/// httparse reads the line with the size of a chunk, more leniently than we do.
fn another_reading_agrees(data: &[u8], whole: &Read) {
    let (mut rest, mut body) = (data, Vec::new());
    while let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(rest) {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        rest = &rest[line..];
        body.extend_from_slice(&rest[..size.min(rest.len())]);
        match rest.get(size.saturating_add(2)..) {
            Some(behind) if size > 0 => rest = behind,
            _ => break,
        }
    }
    assert_eq!(body, whole.body);
}

fn coded_anew_it_is_the_same(body: &[u8]) {
    let mut coded = Vec::new();
    for chunk in body.chunks(5) {
        coded.extend_from_slice(format!("{:X};a=\"b\"\r\n", chunk.len()).as_bytes());
        coded.extend_from_slice(chunk);
        coded.extend_from_slice(b"\r\n");
    }
    coded.extend_from_slice(b"0\r\nA: b\r\n\r\n");
    let again = read(BodyFraming::Chunked, &coded, coded.len());
    assert_eq!(again, Ok(Read { body: body.to_vec(), used: coded.len(), done: true }));
}

fn a_known_length_is_that_many_bytes(data: &[u8]) {
    for length in [1, 10, u64::MAX] {
        let read = read(BodyFraming::Length(length), data, 3).expect("no coding, no malformed coding");
        let expected = data.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        assert_eq!((&read.body[..], read.used), (&data[..expected], expected));
        assert_eq!(read.done, expected as u64 == length);
    }
}
