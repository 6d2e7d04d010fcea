//! The body of an answer that is arriving: read from its flight, or alone after falling out of the flight's window.
//!
//! A body that is not stored has a window, and the window follows the fastest reader. Who falls out goes on in a flight of
//! its own that asks for the rest, by `Range` and `If-Range` (RFC 9110 section 13.1.5). That needs a strong validator: without
//! one nobody can tell whether the rest belongs to the same body, and the answer breaks off.

use std::sync::Arc;

use bytes::Bytes;

use crate::cache::{Cache, Head, Landed, RangeAsked, Request, Route};
use crate::flight::{FillReader, ReadError};
use crate::group::Group;
use crate::semantics::ranges::{ByteRange, ContentRange, IfRange, RangeSet};
use crate::source::Method;

/// Reads one answer's body to its end.
pub struct Following {
    reader: FillReader<Landed>,
    /// Bytes of the body that came before `reader`'s first.
    before: u64,
    head: Arc<Head>,
    alone: Option<Alone>,
}

/// What is needed to ask for the rest.
pub(crate) struct Alone {
    pub cache: Arc<Cache>,
    pub group: Arc<Group>,
    pub request: Request,
    pub route: Route,
}

impl Following {
    pub(crate) fn new(head: Arc<Head>, reader: FillReader<Landed>, alone: Alone) -> Self {
        Following { reader, before: 0, head, alone: Some(alone) }
    }

    /// The body of a flight that nobody can fall out of: [`FillReader::has_all`].
    pub(crate) fn of_flight(head: Arc<Head>, reader: FillReader<Landed>) -> Self {
        Following { reader, before: 0, head, alone: None }
    }

    /// The head that this is the body of.
    pub fn head(&self) -> &Arc<Head> {
        &self.head
    }

    /// As [`FillReader::read`].
    ///
    /// # Errors
    /// As there; [`ReadError::FellBehind`] only when the rest could not be had.
    pub async fn read(&mut self, chunks: &mut Vec<Bytes>, bytes_max: u64) -> Result<bool, ReadError> {
        loop {
            match self.reader.read(chunks, bytes_max).await {
                Err(ReadError::FellBehind { offset }) => {
                    let offset = self.before.saturating_add(offset);
                    let rest = match &self.alone {
                        Some(alone) => alone.rest(&self.head, offset).await,
                        None => None,
                    };
                    self.reader = rest.ok_or(ReadError::FellBehind { offset })?;
                    self.before = offset;
                }
                read => return read,
            }
        }
    }

    /// As [`FillReader::take_all`].
    pub fn take_all(&mut self, bytes_max: u64, chunks: &mut Vec<Bytes>) -> bool {
        self.before == 0 && self.reader.take_all(bytes_max, chunks)
    }

    /// As [`FillReader::chunk`].
    ///
    /// # Errors
    /// As [`Following::read`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ReadError> {
        let mut chunks = Vec::with_capacity(1);
        self.read(&mut chunks, 1).await?;
        Ok(chunks.pop())
    }
}

impl Alone {
    /// A reader of the body from `offset` on; `None` when that cannot be had for certain.
    async fn rest(&self, body_of: &Head, offset: u64) -> Option<FillReader<Landed>> {
        if body_of.status != 200 || self.request.method != Method::Get || self.request.range.is_some() {
            return None;
        }
        let tag = body_of.validators().in_block(&body_of.fields).entity_tag?;
        let value = body_of.fields.get("etag").filter(|_| !tag.is_weak())?;
        let range = RangeAsked {
            set: RangeSet::parse_value(format!("bytes={offset}-").as_bytes())?,
            if_range: IfRange::EntityTag(value.into()),
            if_range_value: Some(Bytes::copy_from_slice(value)),
        };
        let request = Request { range: Some(range), ..self.request.clone() };
        let reader = self.cache.open_alone(&self.group, request, self.route, Some(REST_AHEAD_BYTES_MAX));
        let Ok(Landed::Streaming(head)) = reader.head().await else { return None };
        // An origin may send less of a range than was asked for (RFC 9110 section 15.3.7): that has another end.
        let place = head.fields.get("content-range").and_then(ContentRange::parse)?;
        let ContentRange::Part { range: ByteRange { first, last }, length } = place else { return None };
        // Somebody has to have said where the end is, or a rest that ends too early would look whole.
        let whole = body_of.content_length.or(head.content_length.and_then(|rest| rest.checked_add(offset)))?;
        let is_rest = first == offset && last.checked_add(1) == Some(whole);
        let same_length = length.is_none_or(|length| length == whole);
        let same_tag = head.fields.get("etag").is_none_or(|other| other == value);
        (head.status == 206 && is_rest && same_length && same_tag).then_some(reader)
    }
}

/// How many bytes of a rest a peer may send ahead of its reader, who has been too slow for the others before and takes its
/// time with them. A fourth of what others are sent. Guess.
const REST_AHEAD_BYTES_MAX: u32 = 64 * 1024;
