//! One cell of the walk: a command, a protocol, and the trouble that they meet.

use std::fmt;

/// The program's commands, as far as their exit code claims something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    SendFile,
    SendTree,
    SendStdin,
    SendDry,
    SendZip,
    SendTarGz,
    GetFile,
    GetTree,
    GetStdout,
    GetDry,
    GetZip,
    GetTarGz,
    List,
    MessageTcp,
    MessageUdp,
    /// A command that only prints.
    Prints(&'static str),
}

impl Command {
    /// The direction: where the destination is.
    pub(crate) fn is_get(self) -> bool {
        matches!(self, Self::GetFile | Self::GetTree | Self::GetStdout | Self::GetDry | Self::GetZip)
            || self == Self::GetTarGz
    }

    pub(crate) fn moves_a_tree(self) -> bool {
        matches!(self, Self::SendTree | Self::GetTree | Self::SendZip | Self::SendTarGz)
            || matches!(self, Self::GetZip | Self::GetTarGz | Self::SendDry | Self::GetDry)
    }
}

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The command whose exit code is judged.
    Client,
    /// The server, or the listener.
    Server,
}

/// Something that stands where something else is to arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    OtherFile,
    Folder,
    Link,
    /// The destination's folder does not take new names.
    ReadOnlyFolder,
}

/// An odd thing about the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Oddity {
    UnreadableFile,
    UnreadableFolder,
    Pipe,
    LinkOutside,
    LinkToNothing,
    OddNames,
    OddTimes,
    /// It is not there at all.
    Missing,
}

/// Something that happens while a transfer is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    SourceGrows,
    SourceShrinks,
    SourceRewritten,
    SourceVanishes,
    Killed(End),
    Signal(End, &'static str),
    Cut,
    Restarted,
    BitFlips,
}

/// The trouble that a command meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    /// The other end was started with these arguments.
    Serves(&'static [&'static str]),
    /// The command has these arguments more.
    Asks(&'static [&'static str]),
    /// The path at the server is this one.
    Path(&'static str),
    Obstacle(Obstacle),
    Source(Oddity),
    /// An event once so many bytes have passed (for messages: once so many were printed).
    Meanwhile(u64, Event),
    /// Standard output of an end is this file; none: a pipe that nobody reads.
    Output(End, Option<&'static str>),
    /// `prlimit` with this argument.
    Limit(End, &'static str),
    /// `strace` with this injection, and the N-th call that it meets.
    Inject(End, &'static str, u32),
    /// The same for each call from the N-th on.
    InjectFrom(End, &'static str, u32),
    /// Nobody listens.
    NobodyThere,
}

impl Trouble {
    /// May end a run without a chance to tidy up: then the same command again is judged, too.
    pub(crate) fn interrupts(self) -> bool {
        match self {
            Self::Meanwhile(_, Event::Killed(_) | Event::Signal(..) | Event::Cut | Event::Restarted) => true,
            Self::Inject(_, what, _) => what.contains("signal"),
            _ => false,
        }
    }
}

/// A command that meets a trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) command: Command,
    pub(crate) protocol: &'static str,
    pub(crate) trouble: Trouble,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} by {}, {:?}", self.command, self.protocol, self.trouble)
    }
}
