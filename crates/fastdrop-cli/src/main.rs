//! `fastdrop`: serves a folder, sends, gets and lists; and messages.

mod address;
mod args;
mod config;
mod exit;
mod message;
mod output;
mod progress;
mod run;
mod signals;
mod units;

use exit::ExitCode;
use std::process::ExitCode as ProcessExit;

fn main() -> ProcessExit {
    let matches = match config::matches(std::env::args_os().collect()) {
        Ok(matches) => matches,
        Err(config::Refused::Usage(error)) => {
            // Help and version are results, everything else is a complaint; clap knows which.
            let _ = error.print();
            let code = if error.use_stderr() { ExitCode::Usage } else { ExitCode::Done };
            return code.into();
        }
        Err(config::Refused::Config(why)) => {
            output::complain(&why);
            return ExitCode::Usage.into();
        }
    };
    run::run(matches).into()
}
