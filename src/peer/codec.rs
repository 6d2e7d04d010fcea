//! The frames of a hit, written and read by hand: a question, a head, a piece of body, an end.
//!
//! `proto/peer.proto` stays the contract. What is written here is byte for byte what protobuf would write, and what is read
//! here is only that one form: fields in ascending order, each once, nothing unknown. Everything else, however valid, is left
//! to the generated code, so that both read the same out of every frame (test: `both_readers_agree`).

use std::ops::Range;

use bytes::{Buf, BufMut, BytesMut};

use super::wire;
use crate::purge::{Position, Vector};
use crate::source::{Ask, EntryId, Hop};

/// What a question says beside its [`Ask`].
#[derive(Clone, Copy, Debug)]
pub(in crate::peer) struct Beside {
    /// Number of the wire's kind of question.
    pub kind: u8,
    /// The entry that the asker holds already.
    pub have: EntryId,
    /// The asker's view of the ring.
    pub ring_id: u64,
    /// Bytes of body that may be sent before the first credit.
    pub window: u32,
}

/// Appends a question.
pub(in crate::peer) fn encode_ask(request: u64, ask: &Ask, beside: &Beside, out: &mut BytesMut) {
    let (mut front, mut back) = (Piece::new(), Piece::new());
    front.number(0x08, u64::from(beside.kind));
    front.number(0x10, ask.method as u64);
    back.fixed(0x41, beside.have.incarnation);
    back.number(0x48, beside.have.fill);
    back.fixed(0x51, beside.ring_id);
    back.number(0x58, u64::from(beside.window));
    let host = ask.host.as_ref().map_or(0, |host| 1 + varint_bytes(host.len() as u64) + host.len());
    let texts = [(0x1a, ask.group.as_bytes()), (0x22, &ask.key[..]), (0x2a, &ask.target[..])];
    let body = front.length
        + texts.iter().map(|(_, text)| text_bytes(text)).sum::<usize>()
        + host
        + text_bytes(ask.fields.as_bytes())
        + back.length;
    begin(request, ASK, body, out);
    out.put_slice(front.as_bytes());
    for (key, text) in texts {
        put_text(key, text, out);
    }
    if let Some(host) = &ask.host {
        put_even_empty(0x32, host, out);
    }
    put_text(0x3a, ask.fields.as_bytes(), out);
    out.put_slice(back.as_bytes());
}

/// Appends a head.
pub(in crate::peer) fn encode_head(
    request: u64,
    status: u16,
    fields: &[u8],
    content_length: Option<u64>,
    hop: Option<&Hop>,
    out: &mut BytesMut,
) {
    let (mut status_piece, mut length_piece) = (Piece::new(), Piece::new());
    status_piece.number(0x08, u64::from(status));
    if let Some(length) = content_length {
        length_piece.byte(0x18);
        length_piece.varint(length);
    }
    let hop = hop.map(|hop| (hop_front(hop), hop_back(hop), Purging::of(hop), hop_heat(hop), hop.sent.as_bytes()));
    let hop_length = hop.as_ref().map(|(front, back, purging, heat, sent)| {
        front.length + text_bytes(sent) + back.length + purging.encoded_bytes() + heat.length
    });
    let body = status_piece.length
        + text_bytes(fields)
        + length_piece.length
        + hop_length.map_or(0, |length| 1 + varint_bytes(length as u64) + length);
    begin(request, HEAD, body, out);
    out.put_slice(status_piece.as_bytes());
    put_text(0x12, fields, out);
    if let (Some((front, back, purging, heat, sent)), Some(length)) = (hop, hop_length) {
        length_piece.byte(0x22);
        length_piece.varint(length as u64);
        out.put_slice(length_piece.as_bytes());
        out.put_slice(front.as_bytes());
        put_text(0x5a, sent, out);
        out.put_slice(back.as_bytes());
        purging.put(out);
        out.put_slice(heat.as_bytes());
    } else {
        out.put_slice(length_piece.as_bytes());
    }
}

fn hop_front(hop: &Hop) -> Piece {
    let (freshness, mut piece) = (&hop.freshness, Piece::new());
    piece.number(0x08, freshness.age_milliseconds);
    let remaining = freshness.remaining_milliseconds;
    piece.number(0x10, ((remaining << 1) ^ (remaining >> 63)) as u64);
    for (key, seconds) in [(0x18, freshness.stale_while_revalidate), (0x20, freshness.stale_if_error)] {
        if let Some(seconds) = seconds {
            piece.byte(key);
            piece.varint(u64::from(seconds));
        }
    }
    piece.number(0x28, u64::from(freshness.source.code()));
    piece.number(0x30, super::stale_to_wire(freshness.stale) as u64);
    let flags = [(0x38, freshness.no_cache), (0x40, freshness.immutable), (0x48, hop.shareable), (0x50, hop.storable)];
    for (key, flag) in flags {
        piece.number(key, u64::from(flag));
    }
    piece
}

fn hop_back(hop: &Hop) -> Piece {
    let mut piece = Piece::new();
    piece.fixed(0x61, hop.entry.incarnation);
    piece.number(0x68, hop.entry.fill);
    piece.number(0x70, u64::from(hop.hit));
    piece.number(0x78, u64::from(hop.not_modified));
    // From here on keys have two bytes, the second of which is one.
    piece.far(0x81, hop.body.incarnation != 0);
    piece.fixed_value(hop.body.incarnation);
    piece.far(0x88, hop.body.fill != 0);
    piece.varint_value(hop.body.fill);
    for (key, flag) in [(0x90, hop.stale), (0x98, hop.weak_date), (0xa0, hop.revalidated)] {
        piece.far(key, flag);
        piece.varint_value(u64::from(flag));
    }
    piece
}

/// What is said of a hot key, behind all else.
fn hop_heat(hop: &Hop) -> Piece {
    let mut piece = Piece::new();
    for (key, number) in [(0xe0, hop.minute_rate), (0xe8, hop.replicas)] {
        piece.far(key, number != 0);
        piece.varint_value(u64::from(number));
    }
    piece
}

/// What purges need of a hop: nothing, most of the time.
struct Purging<'a> {
    tags: &'a [u8],
    too_many: bool,
    stamp: &'a [Position],
    stamp_bytes: usize,
}

impl<'a> Purging<'a> {
    fn of(hop: &'a Hop) -> Self {
        let stamp = hop.stamp.as_ref().map(Vector::positions).unwrap_or_default();
        let bytes = |position: &Position| varint_bytes(position.incarnation) + varint_bytes(position.sequence);
        let (tags, too_many) = (hop.tags.text(), hop.tags.are_too_many());
        Purging { tags, too_many, stamp, stamp_bytes: stamp.iter().map(bytes).sum() }
    }

    fn encoded_bytes(&self) -> usize {
        let far = |bytes: usize| if bytes == 0 { 0 } else { 2 + varint_bytes(bytes as u64) + bytes };
        far(self.tags.len()) + if self.too_many { 3 } else { 0 } + far(self.stamp_bytes)
    }

    fn put(&self, out: &mut BytesMut) {
        let mut piece = Piece::new();
        if !self.tags.is_empty() {
            piece.far(0xaa, true);
            piece.varint(self.tags.len() as u64);
            out.put_slice(piece.as_bytes());
            out.put_slice(self.tags);
            piece = Piece::new();
        }
        piece.far(0xb0, self.too_many);
        piece.varint_value(u64::from(self.too_many));
        piece.far(0xba, !self.stamp.is_empty());
        piece.varint_value(self.stamp_bytes as u64);
        out.put_slice(piece.as_bytes());
        for position in self.stamp {
            let mut piece = Piece::new();
            piece.varint(position.incarnation);
            piece.varint(position.sequence);
            out.put_slice(piece.as_bytes());
        }
    }
}

/// Appends everything of a piece of body but the payload, which must follow on the wire.
pub(in crate::peer) fn encode_data_prefix(request: u64, payload_bytes: usize, out: &mut BytesMut) {
    let mut piece = Piece::new();
    piece.byte(0x0a);
    piece.varint(payload_bytes as u64);
    begin(request, DATA, piece.length + payload_bytes, out);
    out.put_slice(piece.as_bytes());
}

/// Appends the end of a body.
pub(in crate::peer) fn encode_end(request: u64, length: u64, checksum: u64, out: &mut BytesMut) {
    let mut piece = Piece::new();
    piece.number(0x08, length);
    piece.fixed(0x11, checksum);
    begin(request, END, piece.length, out);
    out.put_slice(piece.as_bytes());
}

/// The length of a frame, its request, and key and length of its kind.
fn begin(request: u64, kind: u8, body: usize, out: &mut BytesMut) {
    let request_bytes = if request == 0 { 0 } else { 1 + varint_bytes(request) };
    let frame = request_bytes + 1 + varint_bytes(body as u64) + body;
    let mut piece = Piece::new();
    piece.bytes[..super::LENGTH_BYTES].copy_from_slice(&(frame as u32).to_be_bytes());
    piece.length = super::LENGTH_BYTES;
    piece.number(0x08, request);
    piece.byte(kind);
    piece.varint(body as u64);
    out.reserve(super::LENGTH_BYTES + frame);
    out.put_slice(piece.as_bytes());
}

/// An empty text is the default and is not written.
fn put_text(key: u8, text: &[u8], out: &mut BytesMut) {
    if !text.is_empty() {
        put_even_empty(key, text, out);
    }
}

fn put_even_empty(key: u8, text: &[u8], out: &mut BytesMut) {
    let mut piece = Piece::new();
    piece.byte(key);
    piece.varint(text.len() as u64);
    out.put_slice(piece.as_bytes());
    out.put_slice(text);
}

fn text_bytes(text: &[u8]) -> usize {
    if text.is_empty() { 0 } else { 1 + varint_bytes(text.len() as u64) + text.len() }
}

fn varint_bytes(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// A few numbers on their way into a frame. The longest piece is the back of a hop: at most 53 bytes.
struct Piece {
    bytes: [u8; 64],
    length: usize,
}

impl Piece {
    fn new() -> Self {
        Piece { bytes: [0; 64], length: 0 }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn byte(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }

    /// Zero is the default and is not written.
    fn number(&mut self, key: u8, value: u64) {
        if value != 0 {
            self.byte(key);
            self.varint(value);
        }
    }

    /// A key of two bytes, if the field is written.
    fn far(&mut self, key: u8, written: bool) {
        if written {
            self.byte(key);
            self.byte(1);
        }
    }

    fn varint_value(&mut self, value: u64) {
        if value != 0 {
            self.varint(value);
        }
    }

    fn fixed_value(&mut self, value: u64) {
        if value != 0 {
            self.bytes[self.length..self.length + 8].copy_from_slice(&value.to_le_bytes());
            self.length += 8;
        }
    }

    fn fixed(&mut self, key: u8, value: u64) {
        if value != 0 {
            self.byte(key);
            self.bytes[self.length..self.length + 8].copy_from_slice(&value.to_le_bytes());
            self.length += 8;
        }
    }
}

/// Takes the frame of `frame_bytes` (its length included) off the front of `buffer` if it is one of those that are read here
/// and in the form in which they are written here; otherwise leaves `buffer` as it was.
pub(super) fn take(buffer: &mut BytesMut, frame_bytes: usize) -> Option<(u64, wire::frame::Kind)> {
    use wire::frame::Kind;
    let mut cursor = Cursor { bytes: buffer.get(..frame_bytes)?, at: super::LENGTH_BYTES };
    let request = match cursor.peek()? {
        0x08 => {
            cursor.at += 1;
            cursor.varint()?
        }
        _ => 0,
    };
    let kind = cursor.byte()?;
    if cursor.varint()? != cursor.left() as u64 {
        return None;
    }
    match kind {
        DATA => {
            if cursor.byte()? != 0x0a || cursor.varint()? != cursor.left() as u64 {
                return None;
            }
            let at = cursor.at;
            let mut payload = buffer.split_to(frame_bytes).freeze();
            payload.advance(at);
            Some((request, Kind::Data(wire::Data { payload })))
        }
        END => {
            let end = read_end(&mut cursor)?;
            buffer.advance(frame_bytes);
            Some((request, Kind::End(end)))
        }
        HEAD => {
            let (mut head, fields, [sent, tags]) = read_head(&mut cursor)?;
            let frame = buffer.split_to(frame_bytes).freeze();
            head.fields = frame.slice(fields);
            if let Some(hop) = &mut head.hop {
                hop.sent = frame.slice(sent);
                hop.tags = frame.slice(tags);
            }
            Some((request, Kind::Head(head)))
        }
        ASK => {
            let (mut ask, texts, host) = read_ask(&mut cursor)?;
            let frame = buffer.split_to(frame_bytes).freeze();
            let [group, key, target, fields] = texts.map(|text| frame.slice(text));
            (ask.group, ask.key, ask.target, ask.fields) = (group, key, target, fields);
            ask.host = host.map(|host| frame.slice(host));
            Some((request, Kind::Ask(ask)))
        }
        _ => None,
    }
}

fn read_end(cursor: &mut Cursor<'_>) -> Option<wire::End> {
    let mut end = wire::End::default();
    let mut last = 0;
    while let Some(key) = cursor.next_key(&mut last)? {
        match key {
            0x08 => end.length = cursor.varint()?,
            0x11 => end.checksum = cursor.fixed()?,
            _ => return None,
        }
    }
    Some(end)
}

/// The head without its texts, and where these are.
fn read_head(cursor: &mut Cursor<'_>) -> Option<(wire::Head, Range<usize>, [Range<usize>; 2])> {
    let mut head = wire::Head::default();
    let (mut fields, mut of_hop) = (0..0, [0..0, 0..0]);
    let mut last = 0;
    while let Some(key) = cursor.next_key(&mut last)? {
        match key {
            0x08 => head.status = cursor.varint()? as u32,
            0x12 => fields = cursor.text()?,
            0x18 => head.content_length = Some(cursor.varint()?),
            0x22 => {
                let range = cursor.text()?;
                let mut inner = Cursor { bytes: cursor.bytes.get(..range.end)?, at: range.start };
                let (hop, texts) = read_hop(&mut inner)?;
                (head.hop, of_hop) = (Some(hop), texts);
            }
            _ => return None,
        }
    }
    Some((head, fields, of_hop))
}

/// The hop without its texts, and where the fields sent and the tags are.
fn read_hop(cursor: &mut Cursor<'_>) -> Option<(wire::Hop, [Range<usize>; 2])> {
    let mut hop = wire::Hop::default();
    let (mut sent, mut tags) = (0..0, 0..0);
    let mut last = 0;
    while let Some(key) = cursor.next_key(&mut last)? {
        match key {
            0x08 => hop.age_milliseconds = cursor.varint()?,
            0x10 => {
                let zigzag = cursor.varint()?;
                hop.remaining_milliseconds = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
            }
            0x18 => hop.stale_while_revalidate = Some(cursor.varint()? as u32),
            0x20 => hop.stale_if_error = Some(cursor.varint()? as u32),
            0x28 => hop.lifetime_source = cursor.varint()? as u32,
            0x30 => hop.stale = cursor.varint()? as i32,
            0x38 => hop.no_cache = cursor.varint()? != 0,
            0x40 => hop.immutable = cursor.varint()? != 0,
            0x48 => hop.shareable = cursor.varint()? != 0,
            0x50 => hop.storable = cursor.varint()? != 0,
            0x5a => sent = cursor.text()?,
            0x61 => hop.entry_incarnation = cursor.fixed()?,
            0x68 => hop.entry_fill = cursor.varint()?,
            0x70 => hop.hit = cursor.varint()? != 0,
            0x78 => hop.not_modified = cursor.varint()? != 0,
            // Two bytes, the second of which is one; the first has the number's low bits.
            0x81 if cursor.byte()? == 1 => hop.body_incarnation = cursor.fixed()?,
            0x88 if cursor.byte()? == 1 => hop.body_fill = cursor.varint()?,
            0x90 if cursor.byte()? == 1 => hop.answered_stale = cursor.varint()? != 0,
            0x98 if cursor.byte()? == 1 => hop.weak_date = cursor.varint()? != 0,
            0xa0 if cursor.byte()? == 1 => hop.revalidated = cursor.varint()? != 0,
            0xaa if cursor.byte()? == 1 => tags = cursor.text()?,
            0xb0 if cursor.byte()? == 1 => hop.tags_too_many = cursor.varint()? != 0,
            0xba if cursor.byte()? == 1 => {
                let range = cursor.text()?;
                let mut numbers = Cursor { bytes: cursor.bytes.get(..range.end)?, at: range.start };
                while numbers.left() > 0 {
                    hop.stamp.push(numbers.varint()?);
                }
            }
            0xe0 if cursor.byte()? == 1 => hop.minute_rate = cursor.varint()? as u32,
            0xe8 if cursor.byte()? == 1 => hop.replicas = cursor.varint()? as u32,
            _ => return None,
        }
    }
    Some((hop, [sent, tags]))
}

/// The question without its texts, and where group, key, target and fields are, and the host.
fn read_ask(cursor: &mut Cursor<'_>) -> Option<(wire::Ask, [Range<usize>; 4], Option<Range<usize>>)> {
    let mut ask = wire::Ask::default();
    let mut texts = [0..0, 0..0, 0..0, 0..0];
    let mut host = None;
    let mut last = 0;
    while let Some(key) = cursor.next_key(&mut last)? {
        match key {
            0x08 => ask.kind = cursor.varint()? as i32,
            0x10 => ask.method = cursor.varint()? as i32,
            0x1a => texts[0] = cursor.text()?,
            0x22 => texts[1] = cursor.text()?,
            0x2a => texts[2] = cursor.text()?,
            0x32 => host = Some(cursor.text()?),
            0x3a => texts[3] = cursor.text()?,
            0x41 => ask.have_incarnation = cursor.fixed()?,
            0x48 => ask.have_fill = cursor.varint()?,
            0x51 => ask.ring_id = cursor.fixed()?,
            0x58 => ask.window = cursor.varint()? as u32,
            _ => return None,
        }
    }
    Some((ask, texts, host))
}

/// Reads the one form; `None` wherever it is another.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        match self.byte()? {
            last @ 0..=1 => Some(value | u64::from(last) << 63),
            _ => None,
        }
    }

    fn fixed(&mut self) -> Option<u64> {
        let bytes = self.bytes.get(self.at..)?.first_chunk()?;
        self.at += 8;
        Some(u64::from_le_bytes(*bytes))
    }

    fn text(&mut self) -> Option<Range<usize>> {
        let length = usize::try_from(self.varint()?).ok()?;
        let start = self.at;
        let end = start.checked_add(length).filter(|&end| end <= self.bytes.len())?;
        self.at = end;
        Some(start..end)
    }

    /// The key of the next field, which must have a higher number than the one before; `Some(None)` at the end.
    fn next_key(&mut self, last: &mut u8) -> Option<Option<u8>> {
        let Some(key) = self.peek() else { return Some(None) };
        if key >> 3 <= *last {
            return None;
        }
        *last = key >> 3;
        self.at += 1;
        Some(Some(key))
    }
}

/// The wire's number of what is asked most.
pub(in crate::peer) const KIND_LOAD: u8 = wire::ask::Kind::Load as u8;

/// Keys of the kinds of frame: number and "length-delimited".
const ASK: u8 = 2 << 3 | 2;
const HEAD: u8 = 5 << 3 | 2;
const DATA: u8 = 6 << 3 | 2;
const END: u8 = 7 << 3 | 2;
