//! Progress on standard error: a bar on a terminal, lines elsewhere.

use crate::args::Progress as How;
use crate::units::{bytes, seconds};
use fastdrop::{Observer, Phase};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
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
        let thread = std::thread::spawn({
            let over = Arc::clone(&over);
            move || if bar { show_bar(&observer, &over) } else { show_lines(&observer, &over) }
        });
        Self { over, thread: Some(thread) }
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
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} ETA {eta}";
    let counting = "{msg} {spinner}";
    let style =
        |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style(counting));
    let mut moving = false;
    while !wait(over, BAR_EVERY) {
        let phase = observer.phase();
        if phase == Phase::Moving && !moving {
            moving = true;
            bar.set_style(style(template));
            bar.reset();
        }
        bar.set_length(observer.bytes_total.load(Relaxed).max(1));
        bar.set_position(observer.bytes_done.load(Relaxed));
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
        let (done, total) = (observer.bytes_done.load(Relaxed), observer.bytes_total.load(Relaxed));
        let rate = (done - before.1.min(done)) as f64 / (now - before.0).as_secs_f64();
        before = (now, done);
        let left = total.saturating_sub(done) as f64 / rate;
        let eta =
            if left.is_finite() { seconds(Duration::from_secs_f64(left.min(1e9))) } else { "unknown".into() };
        let files = (observer.files_done.load(Relaxed), observer.files_total.load(Relaxed));
        let _ = writeln!(
            std::io::stderr().lock(),
            "{}: {} of {}, {}/s, ETA {eta}, {} of {} files",
            what(observer.phase()),
            bytes(done),
            bytes(total),
            bytes(rate as u64),
            files.0,
            files.1,
        );
    }
}
