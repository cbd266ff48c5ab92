//! Progress on standard error: a bar on a terminal, lines elsewhere.

use crate::args::Progress as How;
use crate::units::{bytes, seconds};
use fastdrop::{Observer, Phase};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

const BAR_EVERY: Duration = Duration::from_millis(100);
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Shows progress from a thread of its own until it is dropped.
pub(crate) struct Shown {
    over: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Shown {
    pub(crate) fn start(how: How, observer: Arc<Observer>) -> Self {
        let bar = match how {
            How::None => return Self { over: Arc::default(), thread: None },
            How::Bar => true,
            How::Plain => false,
            How::Auto => std::io::stderr().is_terminal(),
        };
        let over = Arc::<(Mutex<bool>, Condvar)>::default();
        let shown = Arc::clone(&over);
        let show = move || if bar { show_bar(&observer, &shown) } else { show_lines(&observer, &shown) };
        // Without a thread to be had, the transfer goes on without a word.
        let thread = Builder::new().name("progress".into()).spawn(show).ok();
        Self { over, thread }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        *self.over.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.over.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits; true once it is over.
fn wait(over: &(Mutex<bool>, Condvar), time: Duration) -> bool {
    let guard = over.0.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = over.1.wait_timeout_while(guard, time, |over| !*over);
    *waited.unwrap_or_else(PoisonError::into_inner).0
}

fn what(phase: Phase) -> &'static str {
    match phase {
        Phase::Walking => "looking",
        Phase::Connecting => "connecting",
        Phase::Moving => "moving",
        Phase::Finishing => "finishing",
        _ => "waiting to reconnect",
    }
}

fn show_bar(observer: &Observer, over: &(Mutex<bool>, Condvar)) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let known = "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} ETA {eta}";
    let unknown = "{msg} {spinner} {bytes} {binary_bytes_per_sec}";
    let counting = "{msg} {spinner}";
    let style =
        |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let mut template = counting;
    bar.set_style(style(template));
    while !wait(over, BAR_EVERY) {
        let phase = observer.phase();
        let (bytes_done, bytes_total) =
            (observer.bytes_done.load(Relaxed), observer.bytes_total.load(Relaxed));
        if phase == Phase::Moving || template != counting {
            let wanted = if is_known(bytes_done, bytes_total) { known } else { unknown };
            if template == counting {
                bar.reset();
            }
            if template != wanted {
                template = wanted;
                bar.set_style(style(template));
            }
        }
        bar.set_length(bytes_total.max(1));
        bar.set_position(bytes_done);
        let (done, total) = (observer.files_done.load(Relaxed), observer.files_total.load(Relaxed));
        bar.set_message(match phase {
            Phase::Moving => format!("{done}/{total} files"),
            other => what(other).to_owned(),
        });
        bar.tick();
    }
    bar.finish_and_clear();
}

fn show_lines(observer: &Observer, over: &(Mutex<bool>, Condvar)) {
    let start = Instant::now();
    let mut before = (start, 0);
    while !wait(over, LINE_EVERY) {
        let now = Instant::now();
        let done = observer.bytes_done.load(Relaxed);
        let rate = (done - before.1.min(done)) as f64 / (now - before.0).as_secs_f64();
        before = (now, done);
        let total = observer.bytes_total.load(Relaxed);
        let files = (observer.files_done.load(Relaxed), observer.files_total.load(Relaxed));
        let _ = writeln!(std::io::stderr().lock(), "{}", line(observer.phase(), (done, total), rate, files));
    }
}

/// Reports whether a total can be one: that of a stream or an archive is not known before its end.
fn is_known(done: u64, total: u64) -> bool {
    total > 0 && done <= total
}

/// One line: bytes and files, each as done and total, and the rate in bytes a second.
fn line(phase: Phase, (done, total): (u64, u64), rate: f64, files: (u64, u64)) -> String {
    let mut parts = vec![bytes(done)];
    let known = is_known(done, total);
    if known {
        parts[0] += &format!(" of {}", bytes(total));
    }
    parts.push(format!("{}/s", bytes(rate as u64)));
    if known {
        let left = (total - done) as f64 / rate;
        let eta =
            if left.is_finite() { seconds(Duration::from_secs_f64(left.min(1e9))) } else { "unknown".into() };
        parts.push(format!("ETA {eta}"));
    }
    parts.push(format!("{} of {} files", files.0, files.1));
    format!("{}: {}", what(phase), parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_is_shown_only_where_it_is_known() {
        const MIB: u64 = 1 << 20;
        for (done, total, rate, expected) in [
            (0, 0, 0.0, "moving: 0 B, 0 B/s, 0 of 1 files"),
            (2 * MIB, 0, 1048576.0, "moving: 2.00 MiB, 1.00 MiB/s, 0 of 1 files"),
            (3 * MIB, 2 * MIB, 1048576.0, "moving: 3.00 MiB, 1.00 MiB/s, 0 of 1 files"),
            (0, 2 * MIB, 0.0, "moving: 0 B of 2.00 MiB, 0 B/s, ETA unknown, 0 of 1 files"),
            (MIB, 2 * MIB, 1048576.0, "moving: 1.00 MiB of 2.00 MiB, 1.00 MiB/s, ETA 1.0 s, 0 of 1 files"),
        ] {
            assert_eq!(line(Phase::Moving, (done, total), rate, (0, 1)), expected);
        }
    }
}
