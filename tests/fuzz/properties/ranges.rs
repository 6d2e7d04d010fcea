//! Ranges: never a byte outside of the representation, and the same bytes as read one by one.

use bytes::Bytes;
use groupcache_proxy::semantics::multipart::{Multipart, slice_chunks};
use groupcache_proxy::semantics::ranges::{ByteRange, ContentRange, RANGES_MAX, RangeSet, RangeSpec, Resolved};

pub(super) fn hold(data: &[u8]) {
    let lines = super::lines(data);
    let length = lines[0]
        .iter()
        .take(20)
        .fold(0u64, |number, byte| number.saturating_mul(10).saturating_add(u64::from(byte.wrapping_sub(b'0') % 10)));
    if let Some(set) = lines.get(1).and_then(|line| RangeSet::parse_value(line)) {
        printing_changes_nothing(&set);
        nothing_reaches_outside(&set, length);
        for length in 0..40 {
            nothing_reaches_outside(&set, length);
            each_byte_is_where_it_should_be(&set, length);
        }
    }
    if let Some(line) = lines.get(2) {
        content_range(line);
    }
}

fn printing_changes_nothing(set: &RangeSet) {
    assert!((1..=RANGES_MAX).contains(&set.specs().len()));
    assert_eq!(RangeSet::parse_value(set.to_string().as_bytes()).as_ref(), Some(set));
}

fn resolved(set: &RangeSet, length: u64) -> Vec<ByteRange> {
    match set.resolve(length) {
        Resolved::Single(range) => vec![range],
        Resolved::Several(ranges) => {
            assert!(ranges.len() >= 2);
            ranges
        }
        Resolved::Whole | Resolved::Unsatisfiable => Vec::new(),
    }
}

fn nothing_reaches_outside(set: &RangeSet, length: u64) {
    let ranges = resolved(set, length);
    assert!(ranges.iter().all(|range| range.first <= range.last && range.last < length && range.length() >= 1));
    assert!(ranges.windows(2).all(|pair| pair[0].last < pair[1].first), "{ranges:?}");
    assert!(ranges.iter().map(ByteRange::length).sum::<u64>() <= length);
    if ranges.is_empty() {
        return;
    }
    let multipart = Multipart::new("boundary", Some(b"text/plain"), &ranges, length);
    let heads: u64 = multipart.parts().iter().map(|part| part.head.len() as u64).sum();
    let bodies: u64 = multipart.parts().iter().map(|part| part.range.length()).sum();
    assert_eq!(multipart.length(), heads.saturating_add(bodies).saturating_add(multipart.end().len() as u64));
    let ranges_again: Vec<ByteRange> = multipart.parts().iter().map(|part| part.range).collect();
    assert_eq!(ranges_again, ranges);
}

/// Against a reading that asks of every byte whether it is wanted.
fn each_byte_is_where_it_should_be(set: &RangeSet, length: u64) {
    let wanted = |place: u64| {
        set.specs().iter().any(|spec| match *spec {
            RangeSpec::Between(range) => (range.first..=range.last).contains(&place),
            RangeSpec::From(first) => place >= first,
            RangeSpec::Last(count) => place >= length.saturating_sub(count),
        })
    };
    let ranges = resolved(set, length);
    let given = |place: u64| ranges.iter().any(|range| (range.first..=range.last).contains(&place));
    match set.resolve(length) {
        Resolved::Whole => {}
        _ => assert!((0..length).all(|place| wanted(place) == given(place)), "{set} of {length}: {ranges:?}"),
    }
    let bytes: Vec<u8> = (0..length as u8).collect();
    let chunks: Vec<Bytes> = bytes.chunks(7).map(Bytes::copy_from_slice).collect();
    for range in &ranges {
        let cut = slice_chunks(&chunks, *range).expect("a range inside of the body").concat();
        assert_eq!(cut, &bytes[range.first as usize..=range.last as usize]);
    }
}

fn content_range(line: &[u8]) {
    let Some(read) = ContentRange::parse(line) else { return };
    assert_eq!(ContentRange::parse(read.to_string().as_bytes()), Some(read));
    if let ContentRange::Part { range, length } = read {
        assert!(range.first <= range.last && length.is_none_or(|length| range.last < length));
        assert_eq!(range.length(), range.last - range.first + 1);
    }
    assert!(super::mentions(line, "bytes ") && line.iter().all(|&byte| byte > 0x1f));
}
