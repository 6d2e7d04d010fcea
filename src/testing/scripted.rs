//! A source that does what a script says, step by step, stopping at gates until a test lets it go on.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::Gate;
use crate::fields::Fields;
use crate::source::{Aside, Ask, BodyStream, FetchError, Fetched, Interim, Method, Source};

/// Answers by script, and remembers who asked what.
///
/// ```ignore
/// let (source, gate) = (Scripted::new(), Gate::new());
/// source.on("/a", Script::head(200, &[("ETag", "\"1\"")], Some(10)).chunk("01234").hold(&gate).chunk("56789"));
/// // … the head and five bytes arrive; the rest after gate.open()
/// assert_eq!(source.asked("/a"), 1);
/// ```
/// Targets without a script get 404.
#[derive(Clone)]
pub struct Scripted {
    scripts: Arc<Mutex<HashMap<String, Script>>>,
    seen: Arc<watch::Sender<Seen>>,
}

#[derive(Default)]
struct Seen {
    asks: Vec<Ask>,
    abandoned: usize,
}

/// What happens after a question, in order. Steps before the head happen in `fetch`, later ones in the body, whose end comes
/// with the end of the script.
#[derive(Clone, Debug, Default)]
pub struct Script {
    steps: VecDeque<Step>,
}

#[derive(Clone)]
enum Step {
    Hold(Gate),
    Interim(Interim),
    Head { status: u16, fields: Fields, content_length: Option<u64>, close_delimited: bool },
    Chunk(Bytes),
    Fail(FetchError),
    Stall,
    Panic,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Step::Hold(_) => "hold",
            Step::Interim(_) => "interim",
            Step::Head { .. } => "head",
            Step::Chunk(_) => "chunk",
            Step::Fail(_) => "fail",
            Step::Stall => "stall",
            Step::Panic => "panic",
        })
    }
}

impl Script {
    /// Nothing yet; steps before the head can be added.
    pub fn new() -> Self {
        Script::default()
    }

    /// 200 with a body of known length in one chunk.
    pub fn ok(body: impl Into<Bytes>) -> Self {
        Script::status(200, &[], body)
    }

    /// A status with fields and a body of known length in one chunk.
    pub fn status(status: u16, fields: &[(&str, &str)], body: impl Into<Bytes>) -> Self {
        let body: Bytes = body.into();
        Script::head(status, fields, Some(body.len() as u64)).chunk(body)
    }

    /// A head; chunks follow.
    pub fn head(status: u16, fields: &[(&str, &str)], content_length: Option<u64>) -> Self {
        Script::new().then_head(status, fields, content_length)
    }

    /// No answer but this failure.
    pub fn fails(error: FetchError) -> Self {
        Script::new().then(Step::Fail(error))
    }

    /// The head, after the steps so far.
    pub fn then_head(self, status: u16, fields: &[(&str, &str)], content_length: Option<u64>) -> Self {
        let fields = Fields::from_pairs(fields.iter().copied()).expect("well-formed fields");
        self.then(Step::Head { status, fields, content_length, close_delimited: false })
    }

    /// Marks the body as one that only the end of the connection ends.
    pub fn close_delimited(mut self) -> Self {
        for step in &mut self.steps {
            if let Step::Head { close_delimited, content_length, .. } = step {
                (*close_delimited, *content_length) = (true, None);
            }
        }
        self
    }

    /// Some bytes of the body; an empty chunk is left out.
    pub fn chunk(self, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { self } else { self.then(Step::Chunk(bytes)) }
    }

    /// An interim answer, which only comes before the head.
    pub fn interim(self, status: u16, fields: &[(&str, &str)]) -> Self {
        let fields = Fields::from_pairs(fields.iter().copied()).expect("well-formed fields");
        self.then(Step::Interim(Interim { status, fields }))
    }

    /// Waits until the gate is open.
    pub fn hold(self, gate: &Gate) -> Self {
        self.then(Step::Hold(gate.clone()))
    }

    /// The body breaks here; before the head the source refuses with 502.
    pub fn breaks(self) -> Self {
        let headed = self.steps.iter().any(|step| matches!(step, Step::Head { .. }));
        let error = if headed { FetchError::broken("scripted") } else { FetchError::refused(502, "scripted") };
        self.then(Step::Fail(error))
    }

    /// Nothing more ever comes.
    pub fn stalls(self) -> Self {
        self.then(Step::Stall)
    }

    /// The source panics.
    pub fn panics(self) -> Self {
        self.then(Step::Panic)
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push_back(step);
        self
    }
}

impl Scripted {
    /// A source without scripts.
    pub fn new() -> Self {
        Scripted { scripts: Arc::default(), seen: Arc::new(watch::channel(Seen::default()).0) }
    }

    /// From now on questions for `target` are answered by this script.
    pub fn on(&self, target: &str, script: Script) {
        self.scripts.lock().unwrap().insert(target.to_owned(), script);
    }

    /// How often `target` was asked for.
    pub fn asked(&self, target: &str) -> usize {
        count(&self.seen.borrow(), target)
    }

    /// Every question so far.
    pub fn asks(&self) -> Vec<Ask> {
        self.seen.borrow().asks.clone()
    }

    /// Waits until `target` was asked for so many times.
    pub async fn arrived(&self, target: &str, times: usize) {
        let _ = self.seen.subscribe().wait_for(|seen| count(seen, target) >= times).await;
    }

    /// Waits until so many answers were dropped before their end.
    pub async fn wait_abandoned(&self, times: usize) {
        let _ = self.seen.subscribe().wait_for(|seen| seen.abandoned >= times).await;
    }
}

impl Default for Scripted {
    fn default() -> Self {
        Scripted::new()
    }
}

fn count(seen: &Seen, target: &str) -> usize {
    seen.asks.iter().filter(|ask| ask.target == target.as_bytes()).count()
}

#[async_trait]
impl Source for Scripted {
    async fn fetch(&self, ask: &Ask) -> Result<Fetched, FetchError> {
        self.fetch_with(ask, Aside::default()).await
    }

    async fn fetch_with(&self, ask: &Ask, aside: Aside<'_>) -> Result<Fetched, FetchError> {
        self.seen.send_modify(|seen| seen.asks.push(ask.clone()));
        let target = String::from_utf8_lossy(&ask.target);
        let script = self.scripts.lock().unwrap().get(&*target).cloned();
        let script = script.unwrap_or_else(|| Script::status(404, &[], "not scripted\n"));
        let mut answer = Answer { steps: script.steps, seen: self.seen.clone(), ended: false };
        loop {
            match answer.next_step().await? {
                Some(Step::Head { status, fields, content_length, close_delimited }) => {
                    if ask.method == Method::Head {
                        answer.steps.clear();
                    }
                    let body = Box::new(answer);
                    return Ok(Fetched { status, fields, content_length, close_delimited, hop: None, body });
                }
                Some(Step::Interim(interim)) => aside.interims.hear(interim),
                Some(_) => {}
                None => return Err(FetchError::unreachable("the script has no head")),
            }
        }
    }
}

/// The rest of a script.
struct Answer {
    steps: VecDeque<Step>,
    seen: Arc<watch::Sender<Seen>>,
    ended: bool,
}

impl Answer {
    /// Does what needs no reader, and gives the next head or chunk.
    async fn next_step(&mut self) -> Result<Option<Step>, FetchError> {
        loop {
            // A step leaves the script when it is done: a wait that is cancelled is waited for again.
            match self.steps.front().cloned() {
                Some(Step::Hold(gate)) => gate.pass().await,
                Some(Step::Stall) => std::future::pending().await,
                Some(Step::Panic) => panic!("scripted panic"),
                Some(Step::Fail(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                Some(step) => {
                    self.steps.pop_front();
                    return Ok(Some(step));
                }
                None => {
                    self.ended = true;
                    return Ok(None);
                }
            }
            self.steps.pop_front();
        }
    }
}

#[async_trait]
impl BodyStream for Answer {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        assert!(!self.ended, "a body is not read after its end or a failure");
        match self.next_step().await? {
            Some(Step::Chunk(bytes)) => Ok(Some(bytes)),
            Some(_) => panic!("a script has one head"),
            None => Ok(None),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // A body whose last byte was taken need not be asked for its end.
        if !self.ended && !self.steps.is_empty() {
            self.seen.send_modify(|seen| seen.abandoned += 1);
        }
    }
}
