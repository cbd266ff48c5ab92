//! Writes what a listener prints, on a thread of its own: an output that nobody reads holds back
//! the messages that wait for it, and nothing else.

use crate::output::{Output, OutputError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fastdrop::{Stop, shown};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use tokio::sync::{mpsc, oneshot};

/// Prints messages, and knows whether they go back. Clones print to the same output.
#[derive(Clone)]
pub(super) struct Printer {
    output: Output,
    pub(super) echo: bool,
    lines: mpsc::Sender<String>,
    waiting: Arc<Mutex<Waiting>>,
    end: Stop,
}

type Written = Box<dyn FnOnce() + Send>;

/// Calls for the lines that wait to be written, in the order of these: each is made when its line
/// is written, and dropped if that is given up.
#[derive(Default)]
struct Waiting {
    calls: VecDeque<Written>,
    given_up: bool,
}

/// A line was not written, and will not be: the output is lost, or the listener ends.
#[derive(Debug, thiserror::Error)]
#[error("the message could not be written out")]
pub(super) struct NotWritten;

/// From where a message came.
#[derive(Debug, Clone)]
pub(super) struct Origin<'a> {
    pub(super) protocol: &'a str,
    pub(super) transport: &'a str,
    pub(super) session: &'a str,
    pub(super) from: SocketAddr,
    /// The generation of the peer's program, where the protocol has several.
    pub(super) generation: Option<&'a str>,
}

impl Printer {
    /// Lines that wait to be written; whoever has one more waits with it.
    const LINES: usize = 64;

    /// Starts the thread that writes. It ends with the last clone, or with its first error. The
    /// receiver gets that error, or that of a pipe whose reader has gone, also while there is
    /// nothing to write. Lines that are not written when `end` comes are not waited for.
    pub(super) fn start(output: Output, echo: bool, end: Stop) -> (Self, mpsc::Receiver<OutputError>) {
        let (lines, mut taken) = mpsc::channel::<String>(Self::LINES);
        let waiting = Arc::<Mutex<Waiting>>::default();
        let for_lines = Arc::clone(&waiting);
        let (failed, failure) = mpsc::channel(1);
        let closed = failed.clone();
        let fail = |failed: &mpsc::Sender<OutputError>, error: Errno| {
            // One is enough, and a listener that has ended wants none.
            let _ = failed.try_send(OutputError::from(std::io::Error::from(error)));
        };
        let (no_writer, no_watcher) = (failed.clone(), closed.clone());
        let write = move || {
            while let Some(mut text) = taken.blocking_recv() {
                // What else waits is written in the same call.
                let others = std::iter::from_fn(|| taken.try_recv().ok()).take(Self::LINES);
                let mut count = 1;
                for line in others {
                    text.push_str(&line);
                    count += 1;
                }
                // Whoever sent it has been refused: it is not written after that.
                if lock(&for_lines).given_up {
                    return;
                }
                if let Err(error) = write_all(text.as_bytes()) {
                    // Senders are told before the listener ends.
                    give_up(&for_lines);
                    return fail(&failed, error);
                }
                let written: Vec<_> = {
                    let calls = &mut lock(&for_lines).calls;
                    calls.drain(..count.min(calls.len())).collect()
                };
                written.into_iter().for_each(|written| written());
            }
        };
        let watch = move || {
            if wait_until_closed() {
                fail(&closed, Errno::PIPE);
            }
        };
        // Without a thread to be had nothing is printed: the receiver learns that at once.
        let refused = |failed: &mpsc::Sender<OutputError>, error: std::io::Error| {
            let _ = failed.try_send(OutputError::from(error));
        };
        if let Err(error) = Builder::new().name("print".into()).spawn(write) {
            refused(&no_writer, error);
        }
        if let Err(error) = Builder::new().name("watch".into()).spawn(watch) {
            refused(&no_watcher, error);
        }
        (Self { output, echo, lines, waiting, end }, failure)
    }

    /// Drops what was to be called when lines are written that are not: whoever waits for that
    /// learns that it will not happen.
    pub(super) fn give_up(&self) {
        give_up(&self.waiting);
    }

    /// Writes an event, or a line for people, whichever is wanted. When this returns well, all of
    /// it is written.
    pub(super) async fn say(&self, event: &str, fields: Value, text: &str) -> Result<(), NotWritten> {
        match self.output.event_line(event, fields) {
            Some(line) => self.write(line).await,
            None if self.output.quiet => Ok(()),
            None => self.write(format!("{text}\n")).await,
        }
    }

    /// Writes a message. When this returns well, all of it is written.
    pub(super) async fn print(
        &self,
        origin: Origin<'_>,
        headers: Map<String, Value>,
        message: &Bytes,
    ) -> Result<(), NotWritten> {
        self.write(self.line_of(origin, headers, message)).await
    }

    /// Waits until there is room for a message, which is written in its turn. Then `written` is
    /// called, from another thread; it is dropped if the message cannot be written.
    pub(super) async fn print_and(
        &self,
        origin: Origin<'_>,
        headers: Map<String, Value>,
        message: &Bytes,
        written: impl FnOnce() + Send + 'static,
    ) -> Result<(), NotWritten> {
        self.queue(self.line_of(origin, headers, message), Box::new(written)).await
    }

    fn line_of(
        &self,
        Origin { protocol, transport, session, from, generation }: Origin<'_>,
        headers: Map<String, Value>,
        message: &Bytes,
    ) -> String {
        if !self.output.json {
            return format!("{}\n", shown(message));
        }
        let mut fields = json!({
            "protocol": protocol, "transport": transport, "session": session, "from": from.to_string(),
            "headers": headers,
        });
        if let Some(generation) = generation {
            fields["generation"] = generation.into();
        }
        match std::str::from_utf8(message) {
            Ok(text) => fields["text"] = text.into(),
            Err(_) => fields["base64"] = STANDARD.encode(message).into(),
        }
        self.output.event_line("message", fields).unwrap_or_default()
    }

    async fn write(&self, text: String) -> Result<(), NotWritten> {
        let (tell, told) = oneshot::channel();
        // Whoever does not wait any more does not want to know.
        let written = move || {
            let _ = tell.send(());
        };
        self.queue(text, Box::new(written)).await?;
        tokio::select! {
            biased;
            told = told => told.map_err(|_| NotWritten),
            () = self.end.wait() => Err(NotWritten),
        }
    }

    async fn queue(&self, text: String, written: Written) -> Result<(), NotWritten> {
        let room = tokio::select! {
            biased;
            room = self.lines.reserve() => room.map_err(|_| NotWritten)?,
            () = self.end.wait() => return Err(NotWritten),
        };
        let mut waiting = lock(&self.waiting);
        if waiting.given_up {
            return Err(NotWritten);
        }
        // One after the other under the lock: lines and calls are in the same order.
        waiting.calls.push_back(written);
        room.send(text);
        Ok(())
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn give_up(waiting: &Mutex<Waiting>) {
    let calls = {
        let mut waiting = lock(waiting);
        waiting.given_up = true;
        std::mem::take(&mut waiting.calls)
    };
    drop(calls);
}

/// Waits until nobody reads standard output any more; false where that cannot be known.
fn wait_until_closed() -> bool {
    let output = std::io::stdout();
    loop {
        let mut fds = [PollFd::new(&output, PollFlags::empty())];
        match poll(&mut fds, None) {
            Ok(_) if fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR)) => return true,
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return false,
        }
    }
}

/// Writes to standard output, however long that takes, also where it is a pipe that does not block.
fn write_all(mut bytes: &[u8]) -> Result<(), Errno> {
    let output = std::io::stdout();
    while !bytes.is_empty() {
        match rustix::io::write(output.as_fd(), bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&output, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
