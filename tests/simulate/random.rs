//! Choices by seed. Each part of the simulation has a stream of its own, so that one more choice in one part does not change
//! what another part does.

use std::ops::Range;
use std::time::Duration;

use parking_lot::Mutex;

/// A stream of choices.
pub struct Random(Mutex<fastrand::Rng>);

impl Random {
    /// The stream called `name` of `seed`.
    pub fn new(seed: u64, name: &str) -> Self {
        let mixed = name.bytes().fold(seed ^ 0x9e37_79b9_7f4a_7c15, |mixed, byte| {
            (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(17)
        });
        Random(Mutex::new(fastrand::Rng::with_seed(mixed)))
    }

    /// Whether what is called `name` is part of a seed's run, as it is of every other's, whatever else is.
    pub fn has(seed: u64, name: &str) -> bool {
        Random::new(seed, name).percent(50)
    }

    /// A number of `range`.
    pub fn number(&self, range: Range<u64>) -> u64 {
        self.0.lock().u64(range)
    }

    /// A place in a list of `length`.
    pub fn index(&self, length: usize) -> usize {
        self.0.lock().usize(0..length)
    }

    /// True in so many of a hundred cases.
    pub fn percent(&self, percent: u64) -> bool {
        self.number(0..100) < percent
    }

    /// A time of so many microseconds.
    pub fn microseconds(&self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.number(range))
    }

    /// One of `items`.
    pub fn pick<T: Copy>(&self, items: &[T]) -> T {
        items[self.index(items.len())]
    }

    /// A rank below `count` by Zipf's law with exponent 1, the first most often.
    pub fn zipf(&self, count: usize) -> usize {
        // By the inverse of the continuous law, which is near enough to the discrete one.
        let uniform = self.0.lock().f64();
        (((count as f64 + 1.0).ln() * uniform).exp() as usize).clamp(1, count) - 1
    }

    /// Gives way to other tasks up to `turns_max` times.
    pub async fn jostle(&self, turns_max: u64) {
        for _ in 0..self.number(0..turns_max + 1) {
            tokio::task::yield_now().await;
        }
    }
}
