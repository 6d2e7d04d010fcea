//! The files of a folder, answered as a good origin would.
//!
//! A target is decoded segment by segment and becomes a path that is then resolved by the file system; what resolves to a place
//! outside the folder, to a dot file, or to anything but a regular file does not exist as far as we say. Answers carry `ETag`,
//! `Last-Modified` and `Accept-Ranges`. A conditional request costs one look at the file's metadata and reads nothing, so a
//! cache may ask again whenever it likes.
//!
//! The `ETag` is made of size and modification time in nanoseconds, so that copies of a file on several nodes agree, and it is
//! strong: a file that is replaced keeps its bytes for those who are reading it, and one that is written in place breaks their
//! transfer. What it cannot see is a second write of the same length within the granularity of the file system's clock.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::task::spawn_blocking;

use crate::fields::{Fields, FieldsBuilder, MalformedField, is_field_value};
use crate::source::{Ask, BodyStream, FetchError, Fetched, Method, ReadyBody, Source};

/// What a directory serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectorySettings {
    /// The folder.
    pub root: PathBuf,
    /// Value of `Cache-Control` on files; by default nothing is said, and the cache revalidates by a look at the file.
    pub cache_control: Option<String>,
}

/// Why a directory cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The folder is not there or not readable.
    #[error("{path}: {error}")]
    Unusable {
        /// The folder as configured.
        path: PathBuf,
        /// What the file system says.
        error: io::Error,
    },
    /// The value of `Cache-Control` cannot stand in a header.
    #[error("cache_control holds a control character")]
    CacheControl,
}

/// What tells two versions of a file apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileValidators {
    /// Strong entity tag with its quotes.
    pub etag: String,
    /// Value of `Last-Modified`.
    pub last_modified: String,
    /// Length of the file in bytes.
    pub length: u64,
}

/// A source that serves the files of a folder: no dot files, no listing, `index.html` for a target that ends in `/`.
#[derive(Clone, Debug)]
pub struct Directory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Without symbolic links, so that a resolved path can be compared with it.
    root: PathBuf,
    cache_control: Option<String>,
}

/// How much of a file is read at once, in bytes: pingora's own unit for bodies, and enough for most thumbnails in one go.
const CHUNK_BYTES: u64 = 64 * 1024;

impl Directory {
    /// Opens the folder.
    ///
    /// # Errors
    /// When it is not a folder that can be entered.
    pub fn new(settings: DirectorySettings) -> Result<Self, DirectoryError> {
        let DirectorySettings { root: path, cache_control } = settings;
        if cache_control.as_ref().is_some_and(|value| !is_field_value(value.as_bytes())) {
            return Err(DirectoryError::CacheControl);
        }
        let resolved = path.canonicalize().and_then(|root| {
            std::fs::read_dir(&root)?;
            Ok(root)
        });
        match resolved {
            Ok(root) => Ok(Directory { inner: Arc::new(Inner { root, cache_control }) }),
            Err(error) => Err(DirectoryError::Unusable { path, error }),
        }
    }

    /// The validators of the file that `target` names, by a look at its metadata alone; `None` if there is no such file.
    ///
    /// # Errors
    /// When the file system fails.
    pub async fn validators(&self, target: &[u8]) -> Result<Option<FileValidators>, FetchError> {
        let (inner, target) = (self.inner.clone(), Bytes::copy_from_slice(target));
        blocking(move || match inner.find(&target)? {
            Found::File { metadata, .. } => Ok(Some(Version::of(&metadata).validators())),
            Found::Folder | Found::Nothing => Ok(None),
        })
        .await
    }
}

#[async_trait]
impl Source for Directory {
    async fn fetch(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        let (inner, ask) = (self.inner.clone(), ask.clone());
        blocking(move || inner.answer(&ask)).await
    }
}

/// What a target names.
enum Found {
    File {
        path: PathBuf,
        metadata: Metadata,
    },
    /// A folder with an index, asked for without the slash at its end.
    Folder,
    Nothing,
}

impl Inner {
    fn answer(&self, ask: &Ask) -> io::Result<Fetched> {
        match self.find(&ask.target)? {
            Found::File { path, metadata } => match self.answer_file(ask, &path, &metadata) {
                Err(error) if is_absence(&error) => Ok(not_found(ask.method)),
                answer => answer,
            },
            Found::Folder => Ok(text(ask.method, 301, &[("Location", &with_slash(&ask.target))], b"moved\n")),
            Found::Nothing => Ok(not_found(ask.method)),
        }
    }

    fn answer_file(&self, ask: &Ask, path: &Path, metadata: &Metadata) -> io::Result<Fetched> {
        let seen = Version::of(metadata);
        if not_modified(&ask.fields, &seen.validators(), seen.seconds) {
            let fields = well_formed(self.file_fields(&seen.validators()));
            return Ok(fetched(304, fields, None, Box::new(ReadyBody::default())));
        }
        // The path may have got another file since we looked, so the head describes the one that is opened.
        let file = if ask.method == Method::Get { Some(File::open(path)?) } else { None };
        let version = file.as_ref().map_or(Ok(seen), |file| file.metadata().map(|metadata| Version::of(&metadata)))?;
        let validators = version.validators();
        let length = version.length;
        let mut fields = self.file_fields(&validators).and_then(|mut fields| {
            fields.push(b"Content-Type", content_type(path).as_bytes())?;
            Ok(fields)
        });
        let part = match ask.method {
            Method::Get => part(&ask.fields, &validators, version.seconds),
            Method::Head => Part::Whole,
        };
        let (status, first, count) = match part {
            Part::Whole => (200, 0, length),
            Part::From { first, count } => (206, first, count),
            Part::Unsatisfiable => {
                let range = format!("bytes */{length}");
                return Ok(text(ask.method, 416, &[("Content-Range", range.as_bytes())], b"range not satisfiable\n"));
            }
        };
        if status == 206 {
            let range = format!("bytes {first}-{}/{length}", (first + count).saturating_sub(1));
            fields = fields.and_then(|mut fields| fields.push(b"Content-Range", range.as_bytes()).map(|()| fields));
        }
        let fields = well_formed(fields);
        let Some(file) = file.filter(|_| count > 0) else {
            return Ok(fetched(status, fields, Some(count), Box::new(ReadyBody::default())));
        };
        let mut reader = FileReader { file, version, position: first, left: count };
        // A small file is read here, in the same trip to the blocking threads.
        let next = reader.read()?;
        let body = FileBody { next: Some(next), reader: Some(reader) };
        Ok(fetched(status, fields, Some(count), Box::new(body)))
    }

    fn file_fields(&self, validators: &FileValidators) -> Result<FieldsBuilder, MalformedField> {
        let mut fields = FieldsBuilder::with_capacity(256);
        fields.push(b"ETag", validators.etag.as_bytes())?;
        fields.push(b"Last-Modified", validators.last_modified.as_bytes())?;
        fields.push(b"Accept-Ranges", b"bytes")?;
        if let Some(value) = &self.cache_control {
            fields.push(b"Cache-Control", value.as_bytes())?;
        }
        Ok(fields)
    }

    fn find(&self, target: &[u8]) -> io::Result<Found> {
        let Some(relative) = relative_path(target) else { return Ok(Found::Nothing) };
        let found = self.resolve(&relative).and_then(|resolved| match resolved {
            None => Ok(Found::Nothing),
            Some((path, metadata)) if metadata.is_file() => Ok(Found::File { path, metadata }),
            Some((_, metadata)) if metadata.is_dir() && !relative.ends_with("index.html") => {
                let index = self.resolve(&relative.join("index.html"))?;
                Ok(if index.is_some_and(|(_, metadata)| metadata.is_file()) { Found::Folder } else { Found::Nothing })
            }
            Some(_) => Ok(Found::Nothing),
        });
        match found {
            Err(error) if is_absence(&error) => Ok(Found::Nothing),
            found => found,
        }
    }

    /// The place a relative path leads to, if it is inside the folder and no part of it is hidden.
    fn resolve(&self, relative: &Path) -> io::Result<Option<(PathBuf, Metadata)>> {
        let path = self.root.join(relative).canonicalize()?;
        let Ok(inside) = path.strip_prefix(&self.root) else { return Ok(None) };
        let hidden = inside.components().any(|part| match part {
            Component::Normal(name) => name.as_bytes().starts_with(b"."),
            _ => true,
        });
        if hidden {
            return Ok(None);
        }
        let metadata = path.metadata()?;
        Ok(Some((path, metadata)))
    }
}

/// The path that a target names below the folder. Each segment is decoded by itself, so `%2F` does not separate and `%2e%2e`
/// does not climb; empty and dot segments, hidden names, NUL and broken escapes name nothing.
fn relative_path(target: &[u8]) -> Option<PathBuf> {
    let path = target.split(|&byte| byte == b'?').next()?;
    let mut relative = PathBuf::new();
    let mut segments = path.strip_prefix(b"/")?.split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_none() {
            relative.push("index.html");
            break;
        }
        let name = decode(segment)?;
        if name.is_empty() || name.starts_with(b".") || name.iter().any(|&byte| byte == b'/' || byte == 0) {
            return None;
        }
        relative.push(std::ffi::OsStr::from_bytes(&name));
    }
    Some(relative)
}

/// Percent-decodes; `None` for a `%` that no two hexadecimal digits follow (RFC 3986 section 2.1).
fn decode(segment: &[u8]) -> Option<Vec<u8>> {
    let broken = segment.iter().enumerate().any(|(index, &byte)| {
        byte == b'%'
            && !segment.get(index + 1..index + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    (!broken).then(|| percent_encoding::percent_decode(segment).collect())
}

/// Relative to the target, because what stands before it is the group's: `./name/?query`.
fn with_slash(target: &[u8]) -> Vec<u8> {
    let query = target.iter().position(|&byte| byte == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(query);
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    [b"./", name, b"/", query].concat()
}

/// One state of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    length: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Version { length: metadata.len(), seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() }
    }

    fn validators(&self) -> FileValidators {
        let since = Duration::from_secs(self.seconds.clamp(0, LAST_SECOND) as u64);
        FileValidators {
            etag: format!("\"{:x}-{:x}.{:x}\"", self.length, self.seconds, self.nanoseconds),
            last_modified: httpdate::fmt_http_date(UNIX_EPOCH + since),
            length: self.length,
        }
    }
}

/// The last second of the year 9999, beyond which HTTP has no dates.
const LAST_SECOND: i64 = 253_402_300_799;

/// Whether the asker has this version (RFC 9110 section 13.2.2; `If-Match` and `If-Unmodified-Since` do not matter for `GET`
/// here, since a cache never sends them).
fn not_modified(fields: &Fields, validators: &FileValidators, seconds: i64) -> bool {
    let mut tags = fields.get_all("if-none-match").peekable();
    if tags.peek().is_some() {
        let opaque = |tag: &[u8]| tag.strip_prefix(b"W/").unwrap_or(tag) == validators.etag.as_bytes();
        // Our own tags hold no comma, so splitting a list at commas finds them.
        return tags
            .flat_map(|list| list.split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
            .any(|tag| tag == b"*" || opaque(tag));
    }
    fields.get_str("if-modified-since").and_then(seconds_of).is_some_and(|since| seconds <= since)
}

fn seconds_of(date: &str) -> Option<i64> {
    let date: SystemTime = httpdate::parse_http_date(date).ok()?;
    i64::try_from(date.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
}

/// What of a file is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    From { first: u64, count: u64 },
    Unsatisfiable,
}

/// Reads `Range` and `If-Range` (RFC 9110 sections 13.1.5 and 14.2). Several ranges, other units and malformed ones get the whole.
fn part(fields: &Fields, validators: &FileValidators, seconds: i64) -> Part {
    let Some(range) = fields.get_str("range") else { return Part::Whole };
    if let Some(condition) = fields.get_str("if-range") {
        let matches = condition == validators.etag || seconds_of(condition).is_some_and(|date| date == seconds);
        if !matches {
            return Part::Whole;
        }
    }
    let Some((unit, range)) = range.split_once('=') else { return Part::Whole };
    let Some((first, last)) = range.trim().split_once('-') else { return Part::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") || range.contains(',') {
        return Part::Whole;
    }
    let length = validators.length;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More digits than fit name a place behind every file.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (number(first), number(last)) {
        (None, Some(suffix)) if first.is_empty() => match suffix.min(length) {
            0 => Part::Unsatisfiable,
            count => Part::From { first: length - count, count },
        },
        (Some(first), last_number) if last.is_empty() || last_number.is_some_and(|last| first <= last) => {
            if first >= length {
                return Part::Unsatisfiable;
            }
            let end = last_number.map_or(length, |last| last.saturating_add(1).min(length));
            Part::From { first, count: end - first }
        }
        _ => Part::Whole,
    }
}

fn content_type(path: &Path) -> String {
    let guess = mime_guess::from_path(path).first_or_octet_stream();
    let essence = guess.essence_str();
    let text = guess.type_() == "text" || essence == "application/javascript";
    if text { format!("{essence}; charset=utf-8") } else { essence.to_owned() }
}

fn not_found(method: Method) -> Fetched {
    text(method, 404, &[], b"not found\n")
}

/// A short text of our own.
fn text(method: Method, status: u16, fields: &[(&str, &[u8])], body: &'static [u8]) -> Fetched {
    let mut builder = FieldsBuilder::default();
    let pushed = builder
        .push(b"Content-Type", b"text/plain; charset=utf-8")
        .and_then(|()| fields.iter().try_for_each(|(name, value)| builder.push(name.as_bytes(), value)));
    let fields = well_formed(pushed.map(|()| builder));
    let content = if method == Method::Head { None } else { Some(Bytes::from_static(body)) };
    fetched(status, fields, Some(body.len() as u64), Box::new(ReadyBody::new(content)))
}

fn fetched(status: u16, fields: Fields, content_length: Option<u64>, body: Box<dyn BodyStream>) -> Fetched {
    Fetched { status, fields, content_length, close_delimited: false, hop: None, body }
}

/// A target may hold bytes that no header can; a field that cannot be said is left out with all others.
fn well_formed(fields: Result<FieldsBuilder, MalformedField>) -> Fields {
    fields.map(FieldsBuilder::finish).unwrap_or_default()
}

/// A range of one version of one file.
struct FileReader {
    file: File,
    version: Version,
    position: u64,
    left: u64,
}

impl FileReader {
    /// The next chunk; an error if the file is no longer the one whose head was given.
    fn read(&mut self) -> io::Result<Bytes> {
        let count = self.left.min(CHUNK_BYTES);
        let mut chunk = BytesMut::zeroed(count as usize);
        self.file.read_exact_at(&mut chunk, self.position)?;
        self.position += count;
        self.left -= count;
        // Before the last chunk goes out the whole must still be one version.
        if self.left == 0 && Version::of(&self.file.metadata()?) != self.version {
            return Err(io::Error::other("the file changed while it was read"));
        }
        Ok(chunk.freeze())
    }
}

/// The body of a file, read on the threads for blocking work.
struct FileBody {
    next: Option<Bytes>,
    /// `None` after the end and after an error.
    reader: Option<FileReader>,
}

#[async_trait]
impl BodyStream for FileBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        if let Some(chunk) = self.next.take() {
            return Ok(Some(chunk));
        }
        let Some(mut reader) = self.reader.take().filter(|reader| reader.left > 0) else { return Ok(None) };
        let read = spawn_blocking(move || reader.read().map(|chunk| (chunk, reader))).await;
        match read {
            Ok(Ok((chunk, reader))) => {
                self.reader = Some(reader);
                Ok(Some(chunk))
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "reading a file failed");
                Err(FetchError::broken("the file changed while it was read"))
            }
            Err(_) => Err(FetchError::broken("reading the file was given up")),
        }
    }
}

/// Whether the file system says, in whatever words, that we have no such file. Missing permission is one of them: what we may
/// not read is not ours to mention.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied};
    /// `ELOOP`, too many symbolic links, whose kind has no stable name.
    const TOO_MANY_LINKS: i32 = 40;
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied | InvalidFilename | InvalidInput)
        || error.raw_os_error() == Some(TOO_MANY_LINKS)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, FetchError> {
    match spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the directory cannot be read");
            Err(FetchError::refused(503, "the directory cannot be read"))
        }
        Err(_) => Err(FetchError::refused(503, "reading the directory was given up")),
    }
}
