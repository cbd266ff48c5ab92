//! Trying again after a loss.

use crate::context::client::ClientContext;
use crate::context::client::options::Compress;
use crate::error::Error;
use crate::observe::Phase;
use crate::random::random;
use fastdrop_proto::fastdp::Code;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

impl ClientContext {
    /// Calls `attempt` until it succeeds, fails for good, or has failed
    /// too often without getting any further.
    pub(crate) fn with_retries<T>(
        &self,
        mut attempt: impl FnMut(u32) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut in_vain = 0;
        for number in 0.. {
            let before = self.observer.bytes_done.load(Ordering::Relaxed);
            let error = match attempt(number) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            let again = match &error {
                Error::Network(_) => reached,
                Error::Refused(refuse) => matches!(refuse.code, Code::Unavailable | Code::TooSlow),
                _ => false,
            };
            if self.stop.is_stopped() {
                return Err(Error::Interrupted);
            }
            // Progress that the next attempt cannot build on is none.
            let moved = self.resumes() && self.observer.bytes_done.load(Ordering::Relaxed) > before;
            in_vain = if moved { 1 } else { in_vain + 1 };
            if !again || in_vain > self.options.retries {
                return Err(error);
            }
            tracing::info!(%error, attempt = number + 1, "trying again");
            self.observer.set_phase(Phase::Waiting);
            self.pause(in_vain)?;
            self.observer.set_phase(Phase::Connecting);
        }
        Err(Error::Interrupted)
    }

    /// Calls `attempt`, which begins anew each time, until it succeeds or fails for good; after a
    /// loss at most as often as there are retries, whatever was moved in vain.
    pub(crate) fn with_attempts<T>(&self, mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
        let before = self.observer.bytes_done.load(Ordering::Relaxed);
        let mut failed = 0;
        loop {
            let error = match attempt() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            failed += 1;
            if failed > self.options.retries || !self.is_worth_a_retry(&error) {
                return Err(error);
            }
            tracing::info!(%error, attempt = failed, "trying again");
            self.observer.bytes_done.store(before, Ordering::Relaxed);
            self.observer.set_phase(Phase::Waiting);
            self.pause(failed)?;
        }
    }

    /// Another attempt may succeed after this.
    pub(crate) fn is_worth_a_retry(&self, error: &Error) -> bool {
        match error {
            Error::Network(_) => self.reached.lock().is_ok_and(|reached| reached.is_some()),
            Error::Refused(refuse) => matches!(refuse.code, Code::TooSlow | Code::Unavailable),
            _ => false,
        }
    }

    /// Returns true if an attempt goes on where the last one stopped: archives are made anew.
    fn resumes(&self) -> bool {
        self.options.resume && !matches!(self.options.compress, Compress::Zip | Compress::TarGz)
    }

    /// Waits for the time of [`delay`], unless the client is stopped meanwhile.
    pub(crate) fn pause(&self, in_vain: u32) -> Result<(), Error> {
        let [random] = random::<1>()?;
        let delay = delay(in_vain, random);
        tracing::debug!(?delay, "waiting before the next attempt");
        let until = Instant::now() + delay;
        while Instant::now() < until {
            if self.stop.is_stopped() {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(
                Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())),
            );
        }
        Ok(())
    }
}

/// The pause after so many attempts in vain: 0.25 s, doubled each time up to 8 s, less a random
/// half, so that not everybody returns at once.
fn delay(in_vain: u32, random: u8) -> Duration {
    let full = Duration::from_millis(250) * (1 << in_vain.saturating_sub(1).min(5));
    full.mul_f64(1.0 - f64::from(random) / 512.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_eight_seconds_less_a_random_half() {
        let fulls = [250, 500, 1000, 2000, 4000, 8000, 8000, 8000].map(Duration::from_millis);
        for (in_vain, full) in (1..).zip(fulls) {
            assert_eq!(delay(in_vain, 0), full);
            let delays: Vec<_> = (0..=u8::MAX).map(|random| delay(in_vain, random)).collect();
            assert!(delays.is_sorted_by(|one, other| one > other), "{in_vain}");
            let least = delays.last().copied().unwrap_or_default();
            assert!(full / 2 < least && least < full * 51 / 100, "{in_vain}: {least:?}");
        }
        assert_eq!(delay(u32::MAX, 0), Duration::from_secs(8));
    }
}
