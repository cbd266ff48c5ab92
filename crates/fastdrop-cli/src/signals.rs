//! Ctrl-C, SIGTERM and the rest.

use fastdrop::Stop;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::Builder;

/// Which signal said to stop, if one did.
#[derive(Clone, Default)]
pub(crate) struct Signals(Arc<AtomicU8>);

impl Signals {
    /// Has the first SIGINT, SIGTERM or SIGHUP say `stop`, and a second one end the program at
    /// once. Those that were ignored when the program started, as by `nohup`, stay ignored.
    pub(crate) fn watch(stop: Stop) -> std::io::Result<Self> {
        let signals = Self::default();
        let seen = Arc::clone(&signals.0);
        // A file that may not become larger is an error of that write, not the end of the program.
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        let ignored = Ignored::of_this_process();
        let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !ignored.contains(signal));
        let mut incoming = signal_hook::iterator::Signals::new(wanted)?;
        let watch = move || {
            for signal in incoming.forever() {
                let signal = u8::try_from(signal).unwrap_or(1);
                if seen.swap(signal, Ordering::SeqCst) != 0 {
                    std::process::exit(128 + i32::from(signal));
                }
                stop.stop();
            }
        };
        Builder::new().name("signals".into()).spawn(watch)?;
        Ok(signals)
    }

    /// The signal.
    pub(crate) fn seen(&self) -> Option<u8> {
        Some(self.0.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
    }
}

/// The set of signals that a process ignores.
struct Ignored(u64);

impl Ignored {
    /// The set of this process; empty where there is no `/proc`.
    fn of_this_process() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    /// Reads the field `SigIgn` of a process's status: signal n is bit n - 1 (proc_pid_status(5)).
    fn parse(status: &str) -> Self {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        Self(mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0))
    }

    fn contains(&self, signal: i32) -> bool {
        (1..=64).contains(&signal) && self.0 >> (signal - 1) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status_of_the_process() {
        let set = |mask: &str| {
            let ignored =
                Ignored::parse(&format!("Name:\tx\nSigBlk:\tffff\nSigIgn:\t{mask}\nSigCgt:\tffff\n"));
            (0..=65).filter(|&signal| ignored.contains(signal)).collect::<Vec<i32>>()
        };
        assert_eq!(set("0000000000000000"), [0; 0]);
        assert_eq!(set("0000000000001000"), [13]);
        assert_eq!(set("0000000000000003"), [SIGHUP, SIGINT]);
        assert_eq!(set("8000000000004000"), [SIGTERM, 64]);
        assert_eq!(set("no number"), [0; 0]);
        assert!(!Ignored::parse("").contains(SIGHUP));
    }
}
