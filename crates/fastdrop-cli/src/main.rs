//! `fastdrop`: serves a folder, sends, gets and lists; and messages.

mod address;
mod args;
mod begin;
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
    let arguments = match config::matches(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(config::Refused::Usage(error)) => return run::answer(&error).into(),
        Err(config::Refused::Config(why)) => {
            output::complain(&why);
            return ExitCode::Usage.into();
        }
    };
    run::run(&arguments).into()
}
