//! Waiting for what can only be asked for: the statistics of another process.

use std::time::{Duration, Instant};

use super::client::PATIENCE;

/// Asks until the answer is yes.
///
/// # Panics
/// It does not become yes; `what` says what was waited for.
pub async fn until(what: &str, mut asked: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !asked().await {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
