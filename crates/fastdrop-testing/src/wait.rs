//! Waiting, with a deadline.

use std::time::{Duration, Instant};

/// Longest that anything is waited for. Generous, since it only matters when a test fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Asks again and again, with a deadline, until there is an answer.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}
