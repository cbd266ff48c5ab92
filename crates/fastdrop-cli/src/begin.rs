//! The beginning of every command: its log, its signals, and the reasons to end right there.

use crate::args::{Color, Common};
use crate::output::OutputError;
use crate::signals::Signals;
use fastdrop::Stop;

/// A reason for the program to end before it has begun.
pub(crate) enum Refused {
    Usage(String),
    Failed(anyhow::Error),
    Output(OutputError),
}

impl From<OutputError> for Refused {
    fn from(error: OutputError) -> Self {
        Refused::Output(error)
    }
}

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Self {
        Refused::Failed(error)
    }
}

/// Sets up the log on standard error.
fn log(common: &Common, default: &str) {
    let level = match (common.quiet, common.verbose) {
        (true, _) => "error",
        (_, 0) => default,
        (_, 1) => "info",
        (_, _) => "debug",
    };
    use std::io::IsTerminal;
    let color = match common.color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    // A log that cannot be written, on a full disk say, is no reason to stop.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(format!(
            "fastdrop={level},fastdrop_messages={level}"
        )))
        .with_writer(std::io::stderr)
        .with_ansi(color)
        .log_internal_errors(false)
        .with_target(false)
        .try_init();
}

/// Each stream and each open file takes a descriptor: as many as the system lets this process have.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Sets up the log, the descriptors and the signals of a command.
pub(crate) fn begin(common: &Common, default_level: &str) -> Result<(Stop, Signals), Refused> {
    log(common, default_level);
    raise_descriptors();
    let stop = Stop::new();
    let signals = Signals::watch(stop.clone()).map_err(anyhow::Error::from)?;
    Ok((stop, signals))
}
