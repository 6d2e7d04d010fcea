//! How long somebody who failed has to be seen well before anybody relies on it again.

use std::time::Duration;

/// The memory of one peer's failures. Times are read from one steady clock, whichever that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damping {
    settings: DampingSettings,
    failures: u32,
    failed_at: Duration,
}

/// How much a failure weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DampingSettings {
    /// Failures that cost nothing: everybody may fall once.
    pub free: u32,
    /// The wait after the first failure beyond those; it doubles with each further one.
    pub first: Duration,
    /// The longest wait.
    pub most: Duration,
    /// A failure is forgiven after so long without another.
    pub forgiven_after: Duration,
}

impl Damping {
    /// Somebody who never failed.
    pub fn new(settings: DampingSettings) -> Self {
        Damping { settings, failures: 0, failed_at: Duration::ZERO }
    }

    /// It failed.
    pub fn failed(&mut self, now: Duration) {
        self.forgive(now);
        self.failures = self.failures.saturating_add(1);
        self.failed_at = now;
    }

    /// How long it has to be seen well if it comes back now.
    pub fn hold(&mut self, now: Duration) -> Duration {
        self.forgive(now);
        match self.failures.checked_sub(self.settings.free) {
            None | Some(0) => Duration::ZERO,
            Some(counted) => {
                let doubled = 1u32.checked_shl(counted - 1).filter(|_| counted <= 31).unwrap_or(u32::MAX);
                self.settings.first.saturating_mul(doubled).min(self.settings.most)
            }
        }
    }

    /// Whether nothing is remembered that would make a difference.
    pub fn is_forgiven(&mut self, now: Duration) -> bool {
        self.forgive(now);
        self.failures == 0
    }

    fn forgive(&mut self, now: Duration) {
        let quiet = now.saturating_sub(self.failed_at);
        let forgiven = quiet.as_nanos() / self.settings.forgiven_after.as_nanos().max(1);
        let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX).min(self.failures);
        if forgiven > 0 {
            self.failures -= forgiven;
            self.failed_at = self.failed_at.saturating_add(self.settings.forgiven_after.saturating_mul(forgiven));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: DampingSettings = DampingSettings {
        free: 1,
        first: Duration::from_secs(1),
        most: Duration::from_secs(10),
        forgiven_after: Duration::from_secs(60),
    };

    #[test]
    fn who_flaps_waits_longer_and_is_forgiven_in_time() {
        let at = Duration::from_secs;
        let mut damping = Damping::new(SETTINGS);
        assert_eq!(damping.hold(at(0)), at(0));
        for (second, expected) in [(1, 0), (2, 1), (3, 2), (4, 4), (5, 8), (6, 10), (7, 10)] {
            damping.failed(at(second));
            assert_eq!(damping.hold(at(second)), at(expected), "failure at {second}");
        }
        for (second, expected) in [(66, 10), (67, 10), (126, 10), (127, 8), (187, 4), (247, 2), (307, 1), (367, 0)] {
            assert_eq!(damping.hold(at(second)), at(expected), "at {second}");
        }
        assert!(!damping.is_forgiven(at(426)) && damping.is_forgiven(at(427)));
        damping.failed(at(500));
        assert_eq!(damping.hold(at(500)), at(0), "everybody may fall once");
    }

    #[test]
    fn a_clock_that_stands_still_and_many_failures_are_fine() {
        let mut damping = Damping::new(DampingSettings { free: 0, ..SETTINGS });
        for _ in 0..100 {
            damping.failed(Duration::ZERO);
        }
        assert_eq!(damping.hold(Duration::ZERO), SETTINGS.most);
        assert_eq!(damping.hold(Duration::MAX), Duration::ZERO);
    }
}
