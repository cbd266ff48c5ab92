//! Ctrl-C, SIGTERM and the rest.

use fastdrop::Stop;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Which signal said to stop, if one did.
#[derive(Clone, Default)]
pub(crate) struct Signals(Arc<AtomicU8>);

impl Signals {
    /// Has the first SIGINT, SIGTERM or SIGHUP say `stop`, and a second one end the program at once.
    pub(crate) fn watch(stop: Stop) -> std::io::Result<Self> {
        let signals = Self::default();
        let seen = Arc::clone(&signals.0);
        // A file that may not become larger is an error of that write, not the end of the program.
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        let mut incoming = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        std::thread::spawn(move || {
            for signal in incoming.forever() {
                let signal = u8::try_from(signal).unwrap_or(1);
                if seen.swap(signal, Ordering::SeqCst) != 0 {
                    std::process::exit(128 + i32::from(signal));
                }
                stop.stop();
            }
        });
        Ok(signals)
    }

    /// The signal.
    pub(crate) fn seen(&self) -> Option<u8> {
        Some(self.0.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
    }
}
