//! `fastdrop message`: messages as lines.

use crate::args::Common;
use crate::args::message::Message;
use crate::begin::{Refused, begin};
use crate::exit::ExitCode;
use crate::output::{Output, complain};
use failure::Failure;
use serde_json::json;

mod cnp;
mod credentials;
mod failure;
mod listen;
mod printer;
mod send;
mod sent;
mod vstp;

/// Does what the arguments say.
pub(crate) fn run(common: &Common, message: Message) -> Result<ExitCode, Refused> {
    let default_level = if matches!(message, Message::Listen(_)) { "info" } else { "warn" };
    let (stop, signals) = begin(common, default_level)?;
    let output = Output { json: common.json, quiet: common.quiet, data_on_stdout: false };
    // Tasks start in the order in which they are made, so that datagrams leave in the order of
    // their messages.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let result = match message {
        Message::Listen(listen) => runtime.block_on(listen::listen(listen, output, &stop))?,
        Message::Send(send) => runtime.block_on(send::send(send, output, &stop))?,
    };
    if let Err(Failure::Output(error)) = result {
        return Err(Refused::Output(error));
    }
    if let Err(error) = &result {
        let code = error.code();
        // What a peer has said is among it.
        let text = fastdrop::shown(error.to_string().as_bytes());
        // If the event cannot be written, the complaint and the exit code still tell of the error.
        let _ = output.event("error", json!({ "message": text, "exit": code.number() }));
        complain(&text);
        return Ok(code);
    }
    Ok(signals.seen().map_or(ExitCode::Done, ExitCode::Signal))
}
