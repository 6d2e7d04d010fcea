//! What happened in a run: a hash over everything, the last events in words, and the first promise that was broken.

use std::collections::VecDeque;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The record of a run.
pub struct Trace {
    started: Instant,
    silent: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    hash: DefaultHasher,
    events: u64,
    last: VecDeque<String>,
    broken: Option<Broken>,
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Broken {
    /// Which one, in a few words.
    pub promise: &'static str,
    /// By what.
    pub detail: String,
    /// The last events before.
    pub events: Vec<String>,
}

impl Trace {
    /// A silent one writes nothing down, for runs that are many: what they do is the same, and can be had again in words.
    pub fn new(silent: bool) -> Self {
        Trace { started: Instant::now(), silent, state: Mutex::default() }
    }

    /// Simulated time since the start.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Adds an event.
    pub fn event(&self, what: std::fmt::Arguments<'_>) {
        if self.silent {
            return;
        }
        let at = self.now();
        let mut state = self.state.lock();
        // A line that falls out gives its memory to the next one.
        let mut line = match state.last.len() {
            LAST_EVENTS => state.last.pop_front().unwrap_or_default(),
            _ => String::new(),
        };
        line.clear();
        let _ = write!(line, "{:>10.6} {what}", at.as_secs_f64());
        if SHOWN.load(Ordering::Relaxed) {
            println!("{line}");
        }
        state.hash.write(line.as_bytes());
        state.events += 1;
        state.last.push_back(line);
    }

    /// Notes that a promise was broken; the first one counts.
    pub fn broken(&self, promise: &'static str, detail: impl Into<String>) {
        let detail = detail.into();
        self.event(format_args!("BROKEN {promise}: {detail}"));
        let mut state = self.state.lock();
        if state.broken.is_none() {
            let events = state.last.iter().cloned().collect();
            state.broken = Some(Broken { promise, detail, events });
        }
    }

    /// The first promise that was broken.
    pub fn first_broken(&self) -> Option<Broken> {
        self.state.lock().broken.clone()
    }

    /// Whether one was.
    pub fn is_broken(&self) -> bool {
        self.state.lock().broken.is_some()
    }

    /// The hash over all events, and how many they were.
    pub fn hash(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.hash.finish(), state.events)
    }
}

/// Adds an event to the trace of a world.
macro_rules! event {
    ($trace:expr, $($argument:tt)*) => { $trace.event(format_args!($($argument)*)) };
}
pub(crate) use event;

/// Every event is printed as it happens.
pub static SHOWN: AtomicBool = AtomicBool::new(false);

const LAST_EVENTS: usize = 60;
