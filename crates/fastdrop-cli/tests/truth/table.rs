//! The cells of the walk, as data.

use super::cell::{Cell, Command, End, Event, Obstacle, Oddity, Trouble};
use Command::{
    GetDry, GetFile, GetStdout, GetTarGz, GetTree, GetZip, List, MessageTcp, MessageUdp, Prints, SendDry,
    SendFile, SendStdin, SendTarGz, SendTree, SendZip,
};
use End::{Client, Server};
use Trouble::{
    Asks, Inject, InjectFrom, Limit, Meanwhile, NobodyThere, Obstacle as InTheWay, Output, Path, Serves,
    Source,
};

/// The native protocol's commands.
const NATIVE: [Command; 13] = [
    SendFile, SendTree, SendStdin, SendDry, SendZip, SendTarGz, GetFile, GetTree, GetStdout, GetDry, GetZip,
    GetTarGz, List,
];
/// The older protocols that can be sent by.
const OLDER: [&str; 4] = ["fastdp1.0", "fastdp1.1", "ultradp", "nextdp"];

/// A name of 300 bytes, which no file can have.
const TOO_LONG: &str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\
    nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\
    nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";

/// Servers that refuse what is sent.
const REFUSE_SENDS: [Trouble; 5] = [
    Serves(&["--read-only"]),
    Serves(&["--max-size", "1K"]),
    Serves(&["--min-free", "1000000G"]),
    Path("../outside"),
    Path(".fastdrop/x"),
];

const OBSTACLES: [Trouble; 4] = [
    InTheWay(Obstacle::OtherFile),
    InTheWay(Obstacle::Folder),
    InTheWay(Obstacle::Link),
    InTheWay(Obstacle::ReadOnlyFolder),
];

const ODDITIES: [Trouble; 8] = [
    Source(Oddity::UnreadableFile),
    Source(Oddity::UnreadableFolder),
    Source(Oddity::Pipe),
    Source(Oddity::LinkOutside),
    Source(Oddity::LinkToNothing),
    Source(Oddity::OddNames),
    Source(Oddity::OddTimes),
    Source(Oddity::Missing),
];

/// Events in the middle of a transfer of 12 MiB.
const EVENTS: [Trouble; 13] = [
    Meanwhile(2_000_000, Event::SourceGrows),
    Meanwhile(2_000_000, Event::SourceShrinks),
    Meanwhile(2_000_000, Event::SourceRewritten),
    Meanwhile(2_000_000, Event::SourceVanishes),
    Meanwhile(2_000_000, Event::Killed(Client)),
    Meanwhile(2_000_000, Event::Killed(Server)),
    Meanwhile(2_000_000, Event::Signal(Client, "TERM")),
    Meanwhile(2_000_000, Event::Signal(Client, "INT")),
    Meanwhile(2_000_000, Event::Signal(Server, "TERM")),
    Meanwhile(2_000_000, Event::Cut),
    Meanwhile(2_000_000, Event::Restarted),
    Meanwhile(300, Event::Cut),
    Meanwhile(12_580_000, Event::Cut),
];

fn cells(protocol: &'static str, commands: &[Command], troubles: &[Trouble]) -> Vec<Cell> {
    let of = |&command| troubles.iter().map(move |&trouble| Cell { command, protocol, trouble });
    commands.iter().flat_map(of).collect()
}

/// All cells that need nothing but the program.
pub(crate) fn plain() -> Vec<Cell> {
    let mut all = Vec::new();
    all.extend(cells("fastdp", &NATIVE, &[Trouble::None, NobodyThere]));
    all.extend(cells("fastdp", &[SendFile, SendTree, SendStdin, SendDry, SendZip], &REFUSE_SENDS));
    all.extend(cells(
        "fastdp",
        &[SendFile, SendTree, SendDry],
        &[Path(TOO_LONG), Serves(&["--accept", "ultradp"])],
    ));
    all.extend(cells(
        "fastdp",
        &[GetFile, GetTree, GetStdout, GetDry, GetZip, List],
        &[
            Serves(&["--write-only"]),
            Path("missing"),
            Path("../from/thing"),
            Path(".fastdrop"),
            Path("thing/x"),
        ],
    ));
    all.extend(cells(
        "fastdp",
        &[SendFile, SendTree, SendDry, SendTarGz, GetFile, GetTree, GetDry, GetZip],
        &OBSTACLES,
    ));
    let overwrite = [Asks(&["--existing", "overwrite"]), Asks(&["--check"])];
    all.extend(cells("fastdp", &[SendTree, GetTree], &overwrite));
    all.extend(cells(
        "fastdp",
        &[SendTree, SendDry, SendZip, SendTarGz, GetTree, GetDry, GetZip, GetTarGz],
        &ODDITIES,
    ));
    all.extend(cells("fastdp", &[SendFile, GetFile, GetStdout], &[ODDITIES[0], ODDITIES[7]]));
    all.extend(cells("fastdp", &[SendFile, SendTree, GetFile, GetTree], &EVENTS));
    all.extend(cells("fastdp", &[SendTarGz, GetZip, GetStdout], &EVENTS[..11]));
    all.extend(cells("fastdp", &[SendFile, SendTree, SendStdin], &[Meanwhile(1_000_000, Event::BitFlips)]));
    all.extend(cells(
        "fastdp",
        &[SendFile, GetTree],
        &[Limit(Client, "--nofile=14:14"), Limit(Server, "--nofile=16:16")],
    ));
    all.extend(cells(
        "fastdp",
        &[SendTree, GetTree],
        &[Limit(Client, "--fsize=1000000"), Limit(Server, "--fsize=1000000")],
    ));
    let outputs = [Output(Client, Some("/dev/full")), Output(Client, None)];
    all.extend(cells("fastdp", &[SendFile, SendTree, SendDry, GetFile, GetStdout, GetDry, List], &outputs));
    for protocol in OLDER {
        all.extend(cells(protocol, &[SendFile], &[Trouble::None, NobodyThere]));
        all.extend(cells(protocol, &[SendFile], &REFUSE_SENDS));
        all.extend(cells(protocol, &[SendFile], &OBSTACLES));
        all.extend(cells(protocol, &[SendFile], &[Path(TOO_LONG), Serves(&["--accept", "fastdp"])]));
        all.extend(cells(protocol, &[SendFile], &[ODDITIES[0], ODDITIES[7]]));
        all.extend(cells(protocol, &[SendFile], &EVENTS));
        all.extend(cells(protocol, &[SendFile], &[Output(Client, Some("/dev/full"))]));
        all.extend(cells(protocol, &[SendTree, SendStdin, SendDry, GetFile, List], &[Trouble::NobodyThere]));
        all.extend(cells(protocol, &[SendTree], &[Serves(&[])]));
        all.extend(cells(protocol, &[SendDry], &[Serves(&["--read-only"])]));
    }
    all.extend(cells("fastdp1.1", &[SendFile], &[Meanwhile(1_000_000, Event::BitFlips)]));
    for command in [GetFile, GetStdout, List] {
        all.extend(cells("fastdownloader", &[command], &[NobodyThere, Path("missing"), Path("../x")]));
        all.extend(cells("fastdownloader", &[command], &outputs));
    }
    all.extend(cells("fastdownloader", &[GetFile], &[Serves(&["--write-only"]), ODDITIES[0], ODDITIES[7]]));
    // Its chunks come in any order, so it does not write to standard output.
    all.extend(cells("fastdownloader", &[GetFile, List], &[Trouble::None]));
    all.extend(cells("fastdownloader", &[GetStdout], &[Serves(&[])]));
    all.extend(cells("fastdownloader", &[GetFile], &EVENTS));
    all.extend(cells("fastdownloader", &[GetFile], &OBSTACLES));
    for protocol in ["vstp", "cnp"] {
        let troubles = [
            Trouble::None,
            NobodyThere,
            Serves(&["--max-size", "150"]),
            Meanwhile(1, Event::Killed(Server)),
            Meanwhile(1, Event::Killed(Client)),
            Meanwhile(1, Event::Signal(Server, "TERM")),
            Meanwhile(1, Event::Signal(Client, "TERM")),
            Limit(Server, "--fsize=1000"),
            Limit(Server, "--fsize=20000"),
            Output(Client, Some("/dev/full")),
        ];
        all.extend(cells(protocol, &[MessageTcp, MessageUdp], &troubles));
        all.extend(cells(
            protocol,
            &[MessageTcp],
            &[Meanwhile(2000, Event::Cut), Meanwhile(20_000, Event::Cut)],
        ));
    }
    all.extend(cells("cnp", &[MessageTcp, MessageUdp], &[Serves(&["--max-message", "150"])]));
    all.extend(cells("vstp", &[MessageTcp, MessageUdp], &[Asks(&["--protocol", "cnp"])]));
    all.extend(cells("cnp", &[MessageTcp, MessageUdp], &[Asks(&["--protocol", "vstp"])]));
    for command in ["completions bash", "completions zsh", "man", "--help", "--version", "send --help"] {
        all.extend(cells("no protocol", &[Prints(command)], &[Trouble::None]));
        all.extend(cells("no protocol", &[Prints(command)], &outputs));
    }
    all
}

/// System calls with the errors that they may give.
const FAULTS: [&str; 24] = [
    "openat:error=EACCES",
    "openat2:error=EMFILE",
    "openat2:error=EIO",
    "read:error=EIO",
    "pread64:error=EIO",
    "write:error=EIO",
    "pwrite64:error=EIO",
    "pwrite64:error=ENOSPC",
    "fsync:error=EIO",
    "fdatasync:error=EIO",
    "renameat2:error=EIO",
    "renameat2:error=EACCES",
    "mkdirat:error=EACCES",
    "mkdirat:error=ENOSPC",
    "unlinkat:error=EACCES",
    "symlinkat:error=EIO",
    "fchmod,fchmodat:error=EPERM",
    "utimensat:error=EPERM",
    "statx:error=EIO",
    "newfstatat:error=EIO",
    "fstat:error=EIO",
    "readlinkat:error=EIO",
    "getdents64:error=EIO",
    "fstatfs:error=EIO",
];

/// The same, for the end that is killed there.
const DEATHS: [&str; 8] = [
    "pwrite64:signal=SIGKILL",
    "fsync:signal=SIGKILL",
    "fdatasync:signal=SIGKILL",
    "renameat2:signal=SIGKILL",
    "mkdirat:signal=SIGKILL",
    "unlinkat:signal=SIGKILL",
    "openat2:signal=SIGKILL",
    "recvfrom:signal=SIGKILL",
];

/// All cells that need `strace`: each fault at the N-th call of a thread, for the N that are given.
pub(crate) fn injected(nths: &[u32]) -> Vec<Cell> {
    let mut all = Vec::new();
    for end in [Client, Server] {
        for &nth in nths {
            for what in FAULTS {
                all.extend(cells("fastdp", &[SendTree, GetTree], &[Inject(end, what, nth)]));
            }
            for what in DEATHS {
                all.extend(cells("fastdp", &[SendTree, GetTree], &[Inject(end, what, nth)]));
            }
        }
        for what in
            ["pwrite64:error=ENOSPC", "fdatasync:error=EIO", "renameat2:error=EIO", "openat2:error=EMFILE"]
        {
            all.extend(cells("fastdp", &[SendTarGz, GetZip, GetFile, SendFile], &[InjectFrom(end, what, 2)]));
        }
        for what in [
            "pwrite64:error=EIO",
            "write:error=ENOSPC",
            "fsync:error=EIO",
            "renameat2:error=EIO",
            "openat2:error=ENFILE",
        ] {
            for protocol in OLDER {
                all.extend(cells(protocol, &[SendFile], &[InjectFrom(end, what, 1)]));
            }
            all.extend(cells("fastdownloader", &[GetFile], &[InjectFrom(end, what, 1)]));
        }
    }
    for protocol in ["vstp", "cnp"] {
        for command in [MessageTcp, MessageUdp] {
            all.extend(cells(
                protocol,
                &[command],
                &[
                    Inject(Server, "write:error=ENOSPC", 2),
                    Inject(Server, "write:error=EIO", 20),
                    Inject(Server, "write:error=EINTR", 3),
                ],
            ));
        }
    }
    all.extend(cells(
        "fastdp",
        &[GetStdout],
        &[Inject(Client, "write:error=EIO", 2), Inject(Client, "write:error=ENOSPC", 1)],
    ));
    all.extend(cells(
        "fastdp",
        &[List],
        &[Inject(Server, "getdents64:error=EIO", 1), Inject(Server, "openat2:error=EMFILE", 1)],
    ));
    all.extend(cells(
        "no protocol",
        &[Prints("man"), Prints("completions bash")],
        &[Inject(Client, "write:error=EIO", 1)],
    ));
    all
}

/// Cells that are known to be untrue, by parts of their name, with the reason. To be empty.
pub(crate) const KNOWN_GAPS: &[(&[&str], &str)] = &[];
