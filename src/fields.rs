//! A block of header fields as the bytes that go on the wire: compact to keep, free to send, simple to read.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use ref_cast::{RefCastCustom, ref_cast_custom};

/// Header fields as one block of `Name: value\r\n` lines, in the order in which they were received.
///
/// Invariant: names are tokens (RFC 9110 section 5.6.2), values hold no CR, LF or NUL and no white space at either end.
/// The block does not end with the empty line. Cloning shares the bytes.
///
/// The rules of HTTP look up many fields that most blocks do not have. Which names may be there is noted when the block is made, so
/// that such a look-up reads none of its lines.
#[derive(Clone, Default)]
pub struct Fields {
    block: Bytes,
    names: Names,
}

/// Which names a block may have: a bit for each of 64 kinds of names. A bit that is not set says that there is none of that kind.
#[derive(Clone, Copy, Debug, Default)]
struct Names(u64);

impl Names {
    const ANY: Names = Names(u64::MAX);

    /// The factors tell the fields apart that are looked up most, and those that most answers have.
    #[inline(always)]
    fn of(name: &[u8]) -> Self {
        let [first, .., last] = name else { return Names(1) };
        let (first, last) = (usize::from(first | 0x20), usize::from(last | 0x20));
        Names(1 << ((name.len() * 4 + first * 48 + last * 5) % 64))
    }

    #[inline(always)]
    fn add(&mut self, name: &[u8]) {
        self.0 |= Names::of(name).0;
    }

    #[inline(always)]
    fn may_have(self, name: &str) -> bool {
        self.0 & Names::of(name.as_bytes()).0 != 0
    }
}

impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        self.block == other.block
    }
}

impl Eq for Fields {}

impl fmt::Debug for Fields {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Fields").field("block", &self.block).finish()
    }
}

/// A field that cannot stand in a header section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed header field")]
pub struct MalformedField;

impl Fields {
    /// A block with no field.
    pub const fn empty() -> Self {
        Fields { block: Bytes::new(), names: Names(0) }
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
        let (mut rest, mut names): (&[u8], _) = (&block, Names::default());
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
            names.add(&rest[..colon]);
            rest = &rest[end + 2..];
        }
        Ok(Fields { block, names })
    }

    /// The bytes for the wire, without the empty line that ends a header section.
    pub fn as_bytes(&self) -> &Bytes {
        &self.block
    }

    /// A block whose bytes were a block's already.
    pub(crate) fn of_checked(block: Bytes) -> Self {
        Fields { block, names: Names::ANY }
    }

    /// As [`FieldLines::get`].
    #[inline]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        if self.names.may_have(name) { self.deref().get(name) } else { None }
    }

    /// As [`FieldLines::get_str`].
    #[inline]
    pub fn get_str(&self, name: &str) -> Option<&str> {
        if self.names.may_have(name) { self.deref().get_str(name) } else { None }
    }

    /// As [`FieldLines::get_all`].
    #[inline]
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let lines: &[u8] = if self.names.may_have(name) { &self.block } else { &[] };
        FieldLines::of_block(lines).values(name)
    }

    /// As [`FieldLines::contains`].
    #[inline]
    pub fn contains(&self, name: &str) -> bool {
        self.names.may_have(name) && self.deref().contains(name)
    }

    /// A builder that starts with these fields.
    pub fn to_builder(&self) -> FieldsBuilder {
        FieldsBuilder { block: self.block.to_vec(), names: self.names }
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
        Fields::of_checked(Bytes::copy_from_slice(&self.0))
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
        FieldsBuilder { block: self.0.to_vec(), names: Names::ANY }
    }
}

/// Collects fields one by one.
#[derive(Debug, Default)]
pub struct FieldsBuilder {
    block: Vec<u8>,
    names: Names,
}

impl FieldsBuilder {
    /// A builder that does not grow before it holds `bytes` bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        FieldsBuilder { block: Vec::with_capacity(bytes), names: Names::default() }
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
        self.names.add(name);
        self.block.reserve(name.len() + value.len() + 4);
        self.block.extend_from_slice(name);
        self.block.extend_from_slice(b": ");
        self.block.extend_from_slice(value);
        self.block.extend_from_slice(b"\r\n");
    }

    /// The finished block.
    pub fn finish(self) -> Fields {
        Fields { block: self.block.into(), names: self.names }
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

/// Whether `byte` may stand in a token.
pub fn is_token_byte(byte: u8) -> bool {
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
    fn a_field_is_found_in_any_case_however_its_block_was_made() {
        let names = ["ETag", "x", "Cache-Control", "SET-COOKIE", "_a~"];
        let built = Fields::from_pairs(names.map(|name| (name, name))).unwrap();
        let parsed = Fields::parse(built.as_bytes().clone()).unwrap();
        let unknown = built.to_fields();
        let extended =
            || [built.to_builder(), unknown.to_builder(), FieldLines::of_block(built.as_bytes()).to_builder()];
        let extended = extended().map(|mut builder| {
            builder.push(b"Vary", b"b").unwrap();
            builder.finish()
        });
        for fields in [&built, &parsed, &unknown, &built.without(|name| name == "Vary")].into_iter().chain(&extended) {
            for name in names {
                for wanted in [name.to_ascii_lowercase(), name.to_ascii_uppercase()] {
                    assert!(fields.contains(&wanted));
                    assert_eq!(fields.get(&wanted), Some(name.as_bytes()));
                    assert_eq!(fields.get_str(&wanted), Some(name));
                    assert_eq!(fields.get_all(&wanted).count(), 1);
                }
            }
            assert_eq!(fields.contains("vary"), fields.len() > built.len());
            assert!(!fields.contains("age") && fields.get("etag2").is_none() && fields.get_all("y").next().is_none());
        }
        assert_eq!(built, unknown);
    }

    #[test]
    fn nothing_that_splits_a_header_gets_in() {
        for (name, value) in [("a b", "x"), ("", "x"), ("a", "x\r\nb: y"), ("a", "x\ny"), ("a", "\0"), ("a:", "x")] {
            assert_eq!(Fields::from_pairs([(name, value)]), Err(MalformedField), "{name:?}: {value:?}");
        }
        for block in [
            "a: b",
            "a b: c\r\n",
            ": x\r\n",
            "a: b\nc: d\r\n",
            "no colon\r\n",
            "a:  b\r\n",
            "\r\n",
            "a: b\nc\r\n",
            "a: \x7f\r\n",
        ] {
            assert_eq!(Fields::parse(Bytes::copy_from_slice(block.as_bytes())), Err(MalformedField), "{block:?}");
        }
        assert!(Fields::parse(Bytes::from_static(b"a: b\r\nc: \r\n")).is_ok());
    }
}
