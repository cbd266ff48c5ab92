//! Sends messages.

use super::failure::Failure;
use super::sent::{BATCH, Sent};
use super::{cnp, vstp};
use crate::address::{Address, AddressError};
use crate::args::message::{Protocol, Send};
use crate::begin::Refused;
use crate::output::{Output, OutputError};
use crate::units::bytes;
use fastdrop::{Stop, Target, shown};
use serde_json::json;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::thread::Builder;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

pub(super) async fn send(send: Send, output: Output, stop: &Stop) -> Result<Result<(), Failure>, Refused> {
    let mut words = send.words.clone();
    let target = words.pop().unwrap_or_default();
    let target = Target::parse(&target, send.protocol.default_port())
        .map_err(|error| Refused::Usage(error.to_string()))?;
    if !target.path.is_empty() {
        return Err(Refused::Usage("messages go to a host, not to a path".into()));
    }
    if !words.is_empty() && send.file.is_some() {
        return Err(Refused::Usage("messages come from the arguments or from --file, not from both".into()));
    }
    if let Some(flag) = send.flag_of_the_other_protocol() {
        return Err(Refused::Usage(format!("{flag} is not for this protocol")));
    }
    if let Some(why) = send.cannot_show(&target) {
        return Err(Refused::Usage(why.into()));
    }
    let start = Instant::now();
    let messages =
        messages(words.into_iter().map(OsStringExt::into_vec).collect(), send.file.clone(), send.whole);
    let mut sent = Sent::default();
    let address = authority(&target)?;
    let work = async {
        match (send.protocol, send.udp) {
            (Protocol::Cnp, _) => cnp::send(&send, &address, messages, &mut sent).await,
            (Protocol::Vstp, true) => Ok(vstp::by_udp(&send, &address, messages, &mut sent).await?),
            (Protocol::Vstp, false) => vstp::by_tcp(&send, &address, messages, &mut sent).await,
        }
    };
    let result = tokio::select! {
        result = work => result,
        () = stop.wait() => Ok(()),
    };
    match summarise(&send, output, &sent, start.elapsed()) {
        Err(error) if !error.is_closed_pipe() && result.is_ok() => Ok(Err(error.into())),
        _ => Ok(result),
    }
}

/// Host and port as the resolver takes them, which knows zones by number alone.
fn authority(target: &Target) -> Result<String, Refused> {
    match target.host.parse::<Address>() {
        Ok(address) => Ok(address.with_port(target.port).to_string()),
        Err(AddressError::NotAnAddress) => Ok(target.authority()),
        Err(error) => Err(Refused::Usage(format!("{}: {error}", shown(target.host.as_bytes())))),
    }
}

fn summarise(send: &Send, output: Output, sent: &Sent, time: Duration) -> Result<(), OutputError> {
    let Sent { messages, bytes: count, acknowledged, generation, stats } = *sent;
    let mut fields = json!({
        "messages": messages, "bytes": count, "acknowledged": acknowledged, "seconds": time.as_secs_f64(),
    });
    if let Some(generation) = generation {
        fields["generation"] = generation.into();
    }
    let confirmed = send.ack || send.protocol == Protocol::Cnp;
    let of_them = if confirmed { format!(", {acknowledged} acknowledged") } else { String::new() };
    let mut lines = vec![format!("sent {messages} messages, {}{of_them}", bytes(count))];
    if let Some(stats) = stats.filter(|_| send.stats) {
        let ms = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1000.0);
        let (rtt, rtt_min) = (ms(stats.rtt), ms(stats.rtt_min));
        let again = stats.counters.retransmissions;
        let goodput = stats.counters.bytes_acknowledged as f64 / stats.time.as_secs_f64().max(1e-9);
        fields["rtt_ms"] = rtt.into();
        fields["rtt_min_ms"] = rtt_min.into();
        fields["retransmissions"] = again.into();
        fields["goodput"] = goodput.into();
        fields["seconds_in_session"] = stats.time.as_secs_f64().into();
        let trip = match (rtt, rtt_min) {
            (Some(rtt), Some(min)) => format!("round trip {rtt:.3} ms (at least {min:.3})"),
            _ => "no round trip measured".into(),
        };
        lines.push(format!("{trip}, {again} retransmissions, {}/s acknowledged", bytes(goodput as u64)));
    }
    output.event("summary", fields)?;
    lines.iter().try_for_each(|line| output.say(line))
}

/// Messages as they come: from the arguments, or line by line from a thread that may wait for its
/// input for ever.
fn messages(
    words: Vec<Vec<u8>>,
    file: Option<PathBuf>,
    whole: bool,
) -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (give, take) = mpsc::channel(BATCH);
    let refused = give.clone();
    let give_all = move || {
        let read = || -> std::io::Result<()> {
            if file.is_none() && !words.is_empty() {
                // A receiver that is gone wants no more.
                words.into_iter().all(|word| give.blocking_send(Ok(word)).is_ok());
                return Ok(());
            }
            let mut input: Box<dyn Read> = match file.filter(|file| file.as_os_str() != "-") {
                Some(file) => Box::new(std::fs::File::open(file)?),
                None => Box::new(std::io::stdin()),
            };
            if whole {
                let mut message = Vec::new();
                input.read_to_end(&mut message)?;
                let _ = give.blocking_send(Ok(message));
                return Ok(());
            }
            for line in BufReader::new(input).split(b'\n') {
                let mut line = line?;
                line.pop_if(|last| *last == b'\r');
                if give.blocking_send(Ok(line)).is_err() {
                    break;
                }
            }
            Ok(())
        };
        if let Err(error) = read() {
            let _ = give.blocking_send(Err(error));
        }
    };
    if let Err(error) = Builder::new().name("messages".into()).spawn(give_all) {
        let _ = refused.try_send(Err(error));
    }
    take
}

impl Send {
    /// A flag that was given and that this protocol has no use for.
    fn flag_of_the_other_protocol(&self) -> Option<&'static str> {
        let flags = match self.protocol {
            Protocol::Vstp => vec![
                (self.operation_mode.is_some(), "--operation-mode"),
                (self.window.is_some(), "--window"),
                (self.repeat.is_some(), "--repeat"),
                (self.max_size.is_some(), "--max-size"),
                (self.packet_checksum.is_some(), "--packet-checksum"),
                (self.client_id.is_some(), "--client-id"),
                (self.stats, "--stats"),
                (self.packet_pause.is_some(), "--packet-pause"),
            ],
            Protocol::Cnp => vec![(!self.header.is_empty(), "--header"), (self.zstd, "--zstd")],
        };
        flags.into_iter().find_map(|(given, flag)| given.then_some(flag))
    }
}
