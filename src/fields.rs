//! A block of header fields as the bytes that go on the wire: compact to keep, free to send, simple to read.

use std::ops::Deref;

use bytes::{BufMut, Bytes, BytesMut};
use ref_cast::{RefCastCustom, ref_cast_custom};

/// Header fields as one block of `Name: value\r\n` lines, in the order in which they were received.
///
/// Invariant: names are tokens (RFC 9110 section 5.6.2), values hold no CR, LF or NUL and no white space at either end.
/// The block does not end with the empty line. Cloning shares the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    block: Bytes,
}

/// A field that cannot stand in a header section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed header field")]
pub struct MalformedField;

impl Fields {
    /// A block with no field.
    pub const fn empty() -> Self {
        Fields { block: Bytes::new() }
    }

    /// Builds a block from names and values; values are trimmed of surrounding white space.
    pub fn from_pairs<N: AsRef<[u8]>, V: AsRef<[u8]>>(
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, MalformedField> {
        let mut builder = FieldsBuilder::default();
        for (name, value) in pairs {
            builder.push(name.as_ref(), value.as_ref())?;
        }
        Ok(builder.finish())
    }

    /// Takes a block that came from outside (a peer), after checking every line of it.
    pub fn parse(block: Bytes) -> Result<Self, MalformedField> {
        let mut rest: &[u8] = &block;
        while !rest.is_empty() {
            let colon = rest.iter().position(|&byte| !is_token_byte(byte)).ok_or(MalformedField)?;
            // No CR may stand anywhere but at the end of a line, so the first one ends it.
            let end = colon + memchr::memchr(b'\r', &rest[colon..]).ok_or(MalformedField)?;
            let value = rest[colon..end].strip_prefix(b":").ok_or(MalformedField)?;
            let value = value.strip_prefix(b" ").unwrap_or(value);
            let is_trimmed = |byte: Option<&u8>| byte.is_none_or(|byte| !byte.is_ascii_whitespace());
            if colon == 0
                || !is_field_value(value)
                || !(is_trimmed(value.first()) && is_trimmed(value.last()))
                || rest.get(end + 1) != Some(&b'\n')
            {
                return Err(MalformedField);
            }
            rest = &rest[end + 2..];
        }
        Ok(Fields { block })
    }

    /// The bytes for the wire, without the empty line that ends a header section.
    pub fn as_bytes(&self) -> &Bytes {
        &self.block
    }

    /// A block whose bytes were a block's already.
    pub(crate) fn of_checked(block: Bytes) -> Self {
        Fields { block }
    }
}

impl Deref for Fields {
    type Target = FieldLines;

    #[inline]
    fn deref(&self) -> &FieldLines {
        FieldLines::of_block(&self.block)
    }
}

/// The lines of a block of header fields, wherever it lies; the invariant is that of [`Fields`].
#[derive(Debug, PartialEq, Eq, RefCastCustom)]
#[repr(transparent)]
pub struct FieldLines([u8]);

impl FieldLines {
    /// Sees a block that is known to be one.
    #[ref_cast_custom]
    pub(crate) fn of_block(block: &[u8]) -> &FieldLines;

    /// The bytes for the wire, without the empty line that ends a header section.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A copy of the block.
    pub fn to_fields(&self) -> Fields {
        Fields { block: Bytes::copy_from_slice(&self.0) }
    }

    /// Length of the block in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the block has no field.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        // Names are tokens, hence ASCII, by the invariant of the block.
        self.lines().map_while(|(name, value)| Some((std::str::from_utf8(name).ok()?, value)))
    }

    /// The fields in order, with their names as bytes: for comparing alone, which needs no text.
    pub fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let end = memchr::memchr(b'\r', rest)?;
            let (name, value) = split_line(&rest[..end])?;
            rest = &rest[end + 2..];
            Some((name, value))
        })
    }

    /// The first value of the field `name`, compared without regard to case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.values(name).next()
    }

    /// The first value of the field `name` when it is visible ASCII or UTF-8.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All values of the field `name` in order; a list field may come in several lines (RFC 9110 section 5.3).
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.values(name)
    }

    fn values<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let (name, mut rest) = (name.as_bytes(), &self.0);
        // Where a line ends is all that has to be searched for: its name is compared and not looked for.
        std::iter::from_fn(move || {
            while let Some(end) = memchr::memchr(b'\r', rest) {
                let line = &rest[..end];
                rest = &rest[end + 2..];
                if line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name) {
                    let value = &line[name.len() + 1..];
                    return Some(value.strip_prefix(b" ").unwrap_or(value));
                }
            }
            None
        })
    }

    /// Whether the field `name` is there.
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A copy without the fields for which `drop` says so.
    pub fn without(&self, mut drop: impl FnMut(&str) -> bool) -> Fields {
        let mut builder = FieldsBuilder::with_capacity(self.len());
        for (name, value) in self.iter().filter(|(name, _)| !drop(name)) {
            builder.push_checked(name.as_bytes(), value);
        }
        builder.finish()
    }

    /// A builder that starts with these fields.
    pub fn to_builder(&self) -> FieldsBuilder {
        FieldsBuilder { block: BytesMut::from(&self.0) }
    }
}

/// Collects fields one by one.
#[derive(Debug, Default)]
pub struct FieldsBuilder {
    block: BytesMut,
}

impl FieldsBuilder {
    /// A builder that does not grow before it holds `bytes` bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        FieldsBuilder { block: BytesMut::with_capacity(bytes) }
    }

    /// Adds one field; its value is trimmed.
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> Result<(), MalformedField> {
        let value = value.trim_ascii();
        if !is_token(name) || !is_field_value(value) {
            return Err(MalformedField);
        }
        self.push_checked(name, value);
        Ok(())
    }

    /// Adds a field that is known to be well formed: a name of ours, and a value of ours or one that was a field's already.
    pub(crate) fn push_checked(&mut self, name: &[u8], value: &[u8]) {
        debug_assert!(is_token(name) && is_field_value(value));
        self.block.reserve(name.len() + value.len() + 4);
        self.block.put_slice(name);
        self.block.put_slice(b": ");
        self.block.put_slice(value);
        self.block.put_slice(b"\r\n");
    }

    /// The finished block.
    pub fn finish(self) -> Fields {
        Fields { block: self.block.freeze() }
    }
}

fn split_line(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = memchr::memchr(b':', line)?;
    let value = line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..]);
    Some((&line[..colon], value))
}

/// Whether `name` is a token of RFC 9110 section 5.6.2.
pub fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|&byte| is_token_byte(byte))
}

fn is_token_byte(byte: u8) -> bool {
    TOKEN_BYTES[usize::from(byte)]
}

/// Whether `value` may stand in a field line: no control character but the tab (RFC 9110 section 5.5).
pub fn is_field_value(value: &[u8]) -> bool {
    // Without an early end, so that many bytes are compared at once.
    !value.iter().fold(false, |bad, &byte| bad | (byte < 0x20 && byte != b'\t') | (byte == 0x7f))
}

static TOKEN_BYTES: [bool; 256] = {
    let mut token = [false; 256];
    let others = b"!#$%&'*+-.^_`|~";
    let mut index = 0;
    while index < others.len() {
        token[others[index] as usize] = true;
        index += 1;
    }
    let mut byte = 0;
    while byte < 128 {
        token[byte] |= (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    token
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_keeps_order_case_and_repeated_fields() {
        let fields = Fields::from_pairs([("ETag", " \"a\" "), ("Vary", "Accept"), ("vary", "Origin")]).unwrap();
        assert_eq!(fields.as_bytes().as_ref(), b"ETag: \"a\"\r\nVary: Accept\r\nvary: Origin\r\n");
        assert_eq!(fields.get("etag"), Some(&b"\"a\""[..]));
        assert_eq!(fields.get_all("VARY").collect::<Vec<_>>(), [&b"Accept"[..], b"Origin"]);
        assert_eq!(fields.without(|name| name.eq_ignore_ascii_case("vary")).as_bytes().as_ref(), b"ETag: \"a\"\r\n");
    }

    #[test]
    fn nothing_that_splits_a_header_gets_in() {
        for (name, value) in [("a b", "x"), ("", "x"), ("a", "x\r\nb: y"), ("a", "x\ny"), ("a", "\0"), ("a:", "x")] {
            assert_eq!(Fields::from_pairs([(name, value)]), Err(MalformedField), "{name:?}: {value:?}");
        }
        for block in ["a: b", "a b: c\r\n", ": x\r\n", "a: b\nc: d\r\n", "no colon\r\n", "a:  b\r\n", "\r\n"] {
            assert_eq!(Fields::parse(Bytes::copy_from_slice(block.as_bytes())), Err(MalformedField), "{block:?}");
        }
        assert!(Fields::parse(Bytes::from_static(b"a: b\r\nc: \r\n")).is_ok());
    }
}
