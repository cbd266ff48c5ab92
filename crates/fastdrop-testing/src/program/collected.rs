//! The output of a process.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Shared {
    /// The bytes so far, and whether that is all.
    bytes: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

/// The output of a process, collected by a thread so that it never blocks on a full pipe.
pub(super) struct Collected {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Collected {
    pub(super) fn of(mut from: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let n = from.read(&mut buffer).unwrap_or(0);
                let mut state = for_thread.bytes.lock().unwrap();
                state.0.extend_from_slice(&buffer[..n]);
                state.1 |= n == 0;
                for_thread.changed.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        Self { shared, thread: Some(thread) }
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.bytes.lock().unwrap().0).into_owned()
    }

    /// Waits for a whole line of which `pick` makes something; None if the stream ends or the time
    /// is over.
    pub(super) fn wait_line<T>(
        &self,
        within: Duration,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Option<T> {
        let end = Instant::now() + within;
        let mut state = self.shared.bytes.lock().unwrap();
        loop {
            let text = String::from_utf8_lossy(&state.0).into_owned();
            let whole = if state.1 { text.len() } else { text.rfind('\n').map_or(0, |at| at + 1) };
            if let Some(found) = text[..whole].lines().find_map(&mut pick) {
                return Some(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                return None;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        std::mem::take(&mut self.shared.bytes.lock().unwrap().0)
    }
}
