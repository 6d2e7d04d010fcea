//! The access log: one line for each request that is logged, written by a thread of its own.
//!
//! A request never waits for it: lines go into a bounded queue, and what does not fit is dropped and counted. The target is
//! logged as received, query included; no other field of the request is, so no secret of a header gets in.

use std::borrow::Cow;
use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use crate::stats::Counter;

/// Which requests are logged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// None.
    None,
    /// Those that end with a status of 500 or more of our own making, are refused, or break.
    Errors,
    /// All.
    All,
    /// About this share of all, from 0 to 1, and all errors.
    Share(f64),
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Words in fixed order, those from the client in quotation marks.
    Text,
    /// One JSON object per line.
    Json,
}

/// One finished request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// Seconds since 1970 at the end of the request.
    pub wall_seconds: i64,
    /// Who asked, as far as known.
    pub client: Option<SocketAddr>,
    /// Method. Of a request that could not be read, this and the next three are what can be seen, and may be empty.
    pub method: String,
    /// Target as received.
    pub target: String,
    /// `Host`.
    pub host: String,
    /// Version of HTTP.
    pub version: &'static str,
    /// Status of the answer; 0 if none was sent.
    pub status: u16,
    /// Bytes of the body that were sent.
    pub body_bytes: u64,
    /// What became of the request, in the words of the statistics.
    pub outcome: &'static str,
    /// Why, where there is more to say: the reason of an error, a refusal or a pass.
    pub detail: Cow<'static, str>,
    /// The group, if one was found.
    #[serde(serialize_with = "as_text")]
    pub group: Option<Arc<str>>,
    /// Microseconds from the head of the request to the end of the answer.
    pub microseconds: u64,
    /// Whether the answer broke off.
    pub broken: bool,
}

/// The near end of the log. Cloning is not needed: it is shared behind an [`Arc`].
pub struct AccessLog {
    mode: Mode,
    queue: Option<SyncSender<Record>>,
    writer: Option<JoinHandle<()>>,
    /// Lines that did not fit into the queue.
    pub dropped: Counter,
    draws: AtomicU64,
}

impl AccessLog {
    /// A log that writes lines to `output`, flushed when the queue runs empty.
    pub fn new(mode: Mode, format: Format, output: impl Write + Send + 'static) -> Self {
        Self::with_queue(mode, format, output, QUEUE_RECORDS)
    }

    /// A log that writes nothing.
    pub fn none() -> Self {
        AccessLog { mode: Mode::None, queue: None, writer: None, dropped: Counter::default(), draws: AtomicU64::new(0) }
    }

    fn with_queue(mode: Mode, format: Format, output: impl Write + Send + 'static, records: usize) -> Self {
        if mode == Mode::None {
            return AccessLog::none();
        }
        let (queue, receiver) = sync_channel(records);
        let writer = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_all(&receiver, format, output))
            .inspect_err(|error| tracing::error!(%error, "no access log: its thread did not start"))
            .ok();
        AccessLog {
            mode,
            queue: writer.is_some().then_some(queue),
            writer,
            dropped: Counter::default(),
            draws: AtomicU64::new(0),
        }
    }

    /// Whether a request of this kind is to be logged; cheap, so that the record is made only when it is.
    #[inline]
    pub fn wants(&self, error: bool) -> bool {
        match self.mode {
            Mode::None => false,
            Mode::Errors => error,
            Mode::All => true,
            Mode::Share(share) => error || self.draw() < share,
        }
    }

    /// Hands one line to the writer, or drops and counts it when the writer is behind.
    pub fn write(&self, record: Record) {
        if let Some(queue) = &self.queue
            && let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.try_send(record)
        {
            self.dropped.increment();
        }
    }

    /// A number from 0 to 1; evenly spread, not unpredictable.
    fn draw(&self) -> f64 {
        // The steps of a golden-ratio sequence lie as even as can be, so 1 % is 1 % even of a thousand requests.
        let step = self.draws.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        (step >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Drop for AccessLog {
    /// Writes what is queued.
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AccessLog").field("mode", &self.mode).finish_non_exhaustive()
    }
}

fn write_all(records: &Receiver<Record>, format: Format, output: impl Write) {
    let mut output = BufWriter::with_capacity(64 * 1024, output);
    let mut line = String::new();
    while let Ok(first) = records.recv() {
        let mut next = Some(first);
        while let Some(record) = next {
            line.clear();
            record.append_to(&mut line, format);
            if output.write_all(line.as_bytes()).is_err() {
                // Nobody reads any more (a closed pipe, a full disk): the log must not take the proxy with it.
                let _ = output.flush();
            }
            next = records.try_recv().ok();
        }
        let _ = output.flush();
    }
}

impl Record {
    fn append_to(&self, line: &mut String, format: Format) {
        use std::fmt::Write as _;

        let time = rfc_3339(self.wall_seconds);
        match format {
            Format::Text => {
                let client = self.client.map_or_else(|| "-".to_owned(), |client| client.ip().to_string());
                // Writing to a string does not fail.
                let _ = writeln!(
                    line,
                    "{time} {client} {:?} {} {} {} {}us group={} host={:?}{}{}",
                    request_line(&self.method, &self.target, self.version),
                    self.status,
                    self.body_bytes,
                    self.outcome,
                    self.microseconds,
                    self.group.as_deref().unwrap_or("-"),
                    self.host,
                    if self.broken { " broken" } else { "" },
                    if self.detail.is_empty() { String::new() } else { format!(" detail={:?}", self.detail) },
                );
            }
            Format::Json => {
                #[derive(Serialize)]
                struct Line<'a> {
                    time: &'a str,
                    #[serde(flatten)]
                    record: &'a Record,
                }
                if let Ok(json) = serde_json::to_string(&Line { time: &time, record: self }) {
                    line.push_str(&json);
                    line.push('\n');
                }
            }
        }
    }
}

fn request_line(method: &str, target: &str, version: &str) -> String {
    format!("{method} {target} {version}")
}

fn as_text<S: serde::Serializer>(group: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    group.as_deref().serialize(serializer)
}

/// RFC 3339 in UTC, to the second.
fn rfc_3339(wall_seconds: i64) -> String {
    let since = UNIX_EPOCH + Duration::from_secs(wall_seconds.max(0) as u64);
    // `Sun, 06 Nov 1994 08:49:37 GMT`: a fixed form, whose parts only change places.
    let text = httpdate::fmt_http_date(since);
    let month = match &text[8..11] {
        "Jan" => 1,
        "Feb" => 2,
        "Mar" => 3,
        "Apr" => 4,
        "May" => 5,
        "Jun" => 6,
        "Jul" => 7,
        "Aug" => 8,
        "Sep" => 9,
        "Oct" => 10,
        "Nov" => 11,
        _ => 12,
    };
    format!("{}-{month:02}-{}T{}Z", &text[12..16], &text[5..7], &text[17..25])
}

/// Guess: a burst of a tenth of a second at full speed; some megabytes when full.
const QUEUE_RECORDS: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn record(target: &str) -> Record {
        Record {
            wall_seconds: 1_795_176_000,
            client: Some("10.0.0.9:4711".parse().unwrap()),
            method: "GET".into(),
            target: target.into(),
            host: "example.org".into(),
            version: "HTTP/1.1",
            status: 200,
            body_bytes: 4096,
            outcome: "hit",
            detail: "".into(),
            group: Some("thumbnails".into()),
            microseconds: 120,
            broken: false,
        }
    }

    fn written(mode: Mode, format: Format, records: Vec<Record>) -> String {
        let lines = Lines::default();
        let log = AccessLog::new(mode, format, lines.clone());
        for record in records {
            if log.wants(record.status >= 500) {
                log.write(record);
            }
        }
        drop(log);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_of_both_formats() {
        assert_eq!(
            written(Mode::All, Format::Text, vec![record("/a?b")]),
            "2026-11-20T12:00:00Z 10.0.0.9 \"GET /a?b HTTP/1.1\" 200 4096 hit 120us group=thumbnails host=\"example.org\"\n"
        );
        let json: serde_json::Value =
            serde_json::from_str(&written(Mode::All, Format::Json, vec![record("/a\"\n")])).unwrap();
        assert_eq!((&json["target"], &json["time"]), (&"/a\"\n".into(), &"2026-11-20T12:00:00Z".into()));
    }

    #[test]
    fn nothing_of_a_client_breaks_a_line() {
        let text = written(Mode::All, Format::Text, vec![record("/\r\n\" 500 0 error \x1b[2J")]);
        assert_eq!(text.lines().count(), 1);
        assert!(!text.contains('\x1b') && text.contains("\\\" 500"));
    }

    #[test]
    fn modes_choose() {
        let failed = || Record { status: 502, ..record("/failed") };
        let lines = |mode| written(mode, Format::Text, vec![record("/a"), failed()]).lines().count();
        assert_eq!([lines(Mode::None), lines(Mode::Errors), lines(Mode::All)], [0, 1, 2]);
        let logged = written(Mode::Share(0.1), Format::Text, (0..1000).map(|_| record("/a")).collect());
        assert!((90..=110).contains(&logged.lines().count()), "{}", logged.lines().count());
    }

    #[test]
    fn a_slow_writer_costs_lines_not_time() {
        struct Stuck(Arc<Mutex<()>>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                drop(self.0.lock());
                Ok(())
            }
        }
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().unwrap();
        let log = AccessLog::with_queue(Mode::All, Format::Text, Stuck(gate.clone()), 4);
        while log.dropped.value() == 0 {
            log.write(record("/a"));
        }
        drop(closed);
        drop(log);
    }
}
