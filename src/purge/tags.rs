//! Tags: the names under which an origin lets its answers be purged (`Surrogate-Key`, `Cache-Tag`, `xkey`).

use crate::fields::Fields;

/// The tags of one response, parsed once. Compared byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Each followed by a line feed, which no field value can hold; `None` for the usual answer without tags.
    text: Option<Box<[u8]>>,
    /// More than may be kept: every purge by tag concerns it, and it is not stored.
    too_many: bool,
}

impl Tags {
    /// The tags in the fields that name them: `Surrogate-Key` and `xkey` are split at white space, `Cache-Tag` at commas.
    pub fn of(fields: &Fields) -> Self {
        if !NAMES.iter().any(|name| fields.contains(name)) {
            return Tags::default();
        }
        let mut tags: Vec<&[u8]> = Vec::new();
        for name in NAMES {
            for value in fields.get_all(name) {
                match name {
                    "cache-tag" => tags.extend(value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)),
                    _ => tags.extend(value.split(u8::is_ascii_whitespace)),
                }
            }
        }
        Tags::new(tags)
    }

    /// These tags, each once; empty ones are left out.
    pub fn new<'a>(tags: impl IntoIterator<Item = &'a [u8]>) -> Self {
        // A header section is bounded, and so is their number here.
        let mut tags: Vec<&[u8]> = tags.into_iter().filter(|tag| !tag.is_empty() && !tag.contains(&b'\n')).collect();
        tags.sort_unstable();
        tags.dedup();
        let bytes: usize = tags.iter().map(|tag| tag.len() + 1).sum();
        if tags.len() > TAGS_MAX || bytes > TAGS_BYTES_MAX {
            return Tags::too_many();
        }
        if tags.is_empty() {
            return Tags::default();
        }
        let mut text = Vec::with_capacity(bytes);
        for tag in tags {
            text.extend_from_slice(tag);
            text.push(b'\n');
        }
        Tags { text: Some(text.into()), too_many: false }
    }

    /// No tag.
    pub const fn none() -> Self {
        Tags { text: None, too_many: false }
    }

    /// More tags than may be kept.
    pub fn too_many() -> Self {
        Tags { text: None, too_many: true }
    }

    /// Whether there were more than may be kept: then the response is not to be stored.
    pub fn are_too_many(&self) -> bool {
        self.too_many
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.text.is_none() && !self.too_many
    }

    /// The tags in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let text = self.text.as_deref().unwrap_or_default();
        text.split(|&byte| byte == b'\n').filter(|tag| !tag.is_empty())
    }

    /// Whether the tag is among them, or may be.
    pub fn may_have(&self, tag: &[u8]) -> bool {
        self.too_many || self.iter().any(|own| own == tag)
    }

    /// The tags of both.
    pub fn union(&self, other: &Tags) -> Tags {
        match () {
            () if self.too_many || other.too_many => Tags::too_many(),
            () if other.text.is_none() || self == other => self.clone(),
            () if self.text.is_none() => other.clone(),
            () => Tags::new(self.iter().chain(other.iter())),
        }
    }

    /// Each tag, followed by a line feed.
    pub fn text(&self) -> &[u8] {
        self.text.as_deref().unwrap_or_default()
    }

    /// Bytes that they hold.
    pub fn len(&self) -> usize {
        self.text.as_deref().map_or(0, <[u8]>::len)
    }

    /// Whether `fields` say anything of tags.
    pub fn are_in(fields: &Fields) -> bool {
        NAMES.iter().any(|name| fields.contains(name))
    }
}

const NAMES: [&str; 3] = ["surrogate-key", "cache-tag", "xkey"];

/// The most tags of one response, and their bytes: what the large providers allow. More are not stored, because a tag that was
/// dropped would be a purge that is lost.
pub const TAGS_MAX: usize = 1000;
/// See [`TAGS_MAX`].
pub const TAGS_BYTES_MAX: usize = 16 * 1024;
