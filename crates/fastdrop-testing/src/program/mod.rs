//! A program as a process: a command, a server, a listener.

mod binary;
mod collected;
mod listener;
mod process;
mod run;
mod server;
mod users;

pub use binary::Program;
pub use listener::Listener;
pub use process::Signals;
pub use run::{Cmd, Output, Running};
pub use server::Server;
pub use users::{as_if_not_root, as_nobody, give_to_nobody};
