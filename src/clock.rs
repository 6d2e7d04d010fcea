//! The only reader of the system clock, and its hand-driven twin.
//!
//! Everything below the edges takes a [`Now`] as a parameter and is therefore tested without waiting.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use once_cell::sync::Lazy;

/// One reading of both clocks of this machine.
///
/// `monotonic` decides every expiry; `wall` is only compared with dates that an origin wrote (RFC 9111 section 4.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Time since this process started; never goes back, and goes on while the machine sleeps: what was fresh before may be
    /// stale after.
    pub monotonic: Duration,
    /// Seconds since 1970-01-01 UTC by the system's clock, which an administrator may set.
    pub wall_seconds: i64,
}

/// Where a task that outlives its request takes the time from.
pub trait Clock: Send + Sync {
    /// Reads both clocks.
    fn now(&self) -> Now;
}

/// The clocks of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

static PROCESS_START: Lazy<Duration> = Lazy::new(since_boot);

/// Only Linux tells apart whether the time of sleep counts; elsewhere the monotonic clock is what there is.
#[inline]
fn since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let read = rustix::time::clock_gettime(CLOCK);
    Duration::new(u64::try_from(read.tv_sec).unwrap_or_default(), u32::try_from(read.tv_nsec).unwrap_or_default())
}

impl Clock for SystemClock {
    /// The wall clock is read anew every [`WALL_TICK`] at most: its seconds are compared with dates of whole seconds.
    #[inline]
    #[allow(clippy::disallowed_methods, reason = "this is the one place")]
    fn now(&self) -> Now {
        let start = *PROCESS_START;
        let monotonic = since_boot().saturating_sub(start);
        // Never 0, so that the first reading is one.
        let tick = 1 + (monotonic.as_secs() << TICKS_PER_SECOND_LOG) + u64::from(monotonic.subsec_nanos() >> TICK_LOG);
        let wall_seconds = match WALL_READ_AT.load(Ordering::Acquire) {
            at if at == tick => WALL_SECONDS.load(Ordering::Relaxed),
            _ => read_wall_seconds(tick),
        };
        Now { monotonic, wall_seconds }
    }
}

#[cold]
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
fn read_wall_seconds(tick: u64) -> i64 {
    let wall_seconds = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs() as i64,
        Err(before) => -(before.duration().as_secs() as i64),
    };
    // Two threads may write at once; both read within this tick.
    WALL_SECONDS.store(wall_seconds, Ordering::Relaxed);
    WALL_READ_AT.store(tick, Ordering::Release);
    wall_seconds
}

/// The last reading of the wall clock, and the tick it was read in.
static WALL_SECONDS: AtomicI64 = AtomicI64::new(0);
static WALL_READ_AT: AtomicU64 = AtomicU64::new(0);

/// For how long a reading of the wall clock holds: 2^24 nanoseconds.
pub const WALL_TICK: Duration = Duration::from_nanos(1 << TICK_LOG);
const TICK_LOG: u32 = 24;
/// 2^6 ticks are more than a second, so the ticks of two seconds never meet.
const TICKS_PER_SECOND_LOG: u32 = 6;

/// A clock that moves only when told to, for tests and simulation.
#[derive(Debug)]
pub struct ManualClock {
    monotonic_milliseconds: AtomicU64,
    wall_seconds_at_start: i64,
}

impl ManualClock {
    /// A clock whose monotonic reading is zero and whose wall clock shows `wall_seconds`.
    pub fn new(wall_seconds: i64) -> Self {
        ManualClock { monotonic_milliseconds: AtomicU64::new(0), wall_seconds_at_start: wall_seconds }
    }

    /// Moves both readings forward.
    pub fn advance(&self, by: Duration) {
        self.monotonic_milliseconds.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        let monotonic = Duration::from_millis(self.monotonic_milliseconds.load(Ordering::SeqCst));
        Now { monotonic, wall_seconds: self.wall_seconds_at_start + monotonic.as_secs() as i64 }
    }
}
