//! Runs a cell that moves messages, and observes what the listener printed.

use super::cell::{Cell, Command, End, Event, Trouble};
use super::job::{HANGS, written};
use super::support::*;
use super::verdict::{Asked, Observed};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Messages of a run.
const MESSAGES: usize = 200;

/// The messages that the listener's output holds, whole lines only.
fn heard(output: &Path) -> Vec<String> {
    let bytes = fs::read(output).unwrap_or_default();
    let whole = bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let events = whole.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let messages = events.filter(|event| event["event"] == "message");
    messages.filter_map(|event| event["text"].as_str().map(str::to_owned)).collect()
}

fn port_in(output: &Path) -> Option<u16> {
    let text = fs::read_to_string(output).ok()?;
    let event: Value = text.lines().find_map(|line| serde_json::from_str(line).ok())?;
    event["port"].as_u64().map(|port| port as u16)
}

fn wrapper(trouble: Trouble, end: End, output: &Path) -> Vec<OsString> {
    match trouble {
        Trouble::Limit(of, limit) if of == end => args!["prlimit", limit],
        Trouble::Inject(of, what, nth) if of == end => {
            let calls = what.split(':').next().unwrap();
            let mut wrapper = args!["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null"];
            if end == End::Server && calls == "write" {
                // Only what goes to the listener's output.
                wrapper.extend(args!["-P", output]);
            }
            let inject = format!("inject={what}:when={nth}");
            wrapper.extend(args!["-e", format!("trace={calls}"), "-e", inject]);
            wrapper
        }
        _ => Vec::new(),
    }
}

/// Runs `cell` through `planted`, a command that runs the program in place of itself. None where
/// the trouble kept the listener from starting.
pub(crate) fn observe(cell: &Cell, planted: &[OsString]) -> Option<Vec<(Asked, Observed)>> {
    let own = scratch();
    let output: PathBuf = own.path().join("heard");
    let transport = if cell.command == Command::MessageUdp { "--udp" } else { "--tcp" };
    let mut listen =
        args!["message", "listen", "--json", "--protocol", cell.protocol, "--port", "0", transport];
    if let Trouble::Serves(extra) = cell.trouble {
        listen.extend(extra.iter().map(OsString::from));
    }
    let wrapped = wrapper(cell.trouble, End::Server, &output);
    let mut listener = FASTDROP.command(listen).wrapper(wrapped).stdout_to(written(&output)).start();
    let start = Instant::now();
    let port = loop {
        if let Some(port) = port_in(&output) {
            break port;
        }
        if !listener.is_running() || start.elapsed() > HANGS {
            return None;
        }
        std::thread::sleep(Duration::from_millis(3));
    };
    let messages: Vec<String> = (0..MESSAGES).map(|at| format!("message {at} {}", "x".repeat(at))).collect();
    let proxy = matches!(cell.trouble, Trouble::Meanwhile(_, Event::Cut)).then(|| Proxy::to(port));
    let at = proxy.as_ref().map_or(port, Proxy::port);
    let protocol =
        if let Trouble::Asks(["--protocol", other]) = cell.trouble { other } else { cell.protocol };
    let mut send = args!["message", "send", format!("127.0.0.1:{at}"), "--protocol", protocol, transport];
    if protocol == "vstp" {
        send.extend(args!["--ack"]);
    }
    if cell.trouble == Trouble::NobodyThere {
        listener.signal("KILL");
    }
    if let (Trouble::Meanwhile(at, Event::Cut), Some(proxy)) = (cell.trouble, &proxy) {
        proxy.cut_by_resets();
        proxy.cut_at(&[at]);
    }
    let mut lines = messages.join("\n");
    lines.push('\n');
    let mut sender_through = planted.to_vec();
    sender_through.extend(wrapper(cell.trouble, End::Client, &output));
    let mut cmd = FASTDROP.command(send).wrapper(sender_through).stdin(lines);
    let stdout_lost = matches!(cell.trouble, Trouble::Output(End::Client, Some(_)));
    if let Trouble::Output(End::Client, Some(file)) = cell.trouble {
        cmd = cmd.stdout_to(written(Path::new(file)));
    }
    let mut sender = cmd.start();
    if let Trouble::Meanwhile(count, event) = cell.trouble
        && event != Event::Cut
    {
        let start = Instant::now();
        while (heard(&output).len() as u64) < count && sender.is_running() && start.elapsed() < HANGS {
            std::thread::sleep(Duration::from_millis(1));
        }
        match event {
            Event::Killed(End::Server) => listener.signal("KILL"),
            Event::Killed(End::Client) => sender.signal("KILL"),
            Event::Signal(End::Server, signal) => listener.signal(signal),
            Event::Signal(End::Client, signal) => sender.signal(signal),
            _ => {}
        }
    }
    let (sent, in_time) = sender.wait_or_kill(HANGS);
    // At this moment: what was acknowledged has been written.
    let heard = heard(&output);
    let listened = listener.kill9();
    let observed = Observed {
        code: in_time.then(|| sent.code()),
        stdout: sent.stdout,
        stdout_lost,
        said: sent.stderr,
        peer_said: listened.stderr,
        heard,
        ..Observed::default()
    };
    Some(vec![(Asked::Heard(messages), observed)])
}
