//! The manifest on its way from one end to the other.

use crate::error::Error;
use crate::net::connection::{Connection, Ended};
use crate::net::frames::FrameReader;
use crate::transfer::limits::MANIFEST_PART;
use fastdrop_proto::fastdp::{
    Code, Control, LEFT_OUT_NAMED_MAX, LeftOut, Manifest, ManifestBuilder, ManifestError,
};
use std::time::{Duration, Instant};

/// The time that a manifest has to come in, from its first part on.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(600);
/// The time that the other end has for looking at its files before that, with signs of life only.
const LOOKING_TIMEOUT: Duration = Duration::from_secs(3600);

/// Sends the frames that offer a manifest, and what is left out of it.
pub(crate) fn offer(
    connection: &Connection,
    manifest: &Manifest,
    left_out: Vec<LeftOut>,
) -> Result<(), Ended> {
    for part in manifest.parts(MANIFEST_PART) {
        connection.send_control(&Control::Manifest(part.to_vec()))?;
    }
    for part in left_out {
        connection.send_control(&Control::LeftOut(part))?;
    }
    connection.send_control(&Control::ManifestEnd(manifest.end()))
}

/// Limits of a manifest that is read.
#[derive(Debug)]
pub(crate) struct ManifestRules {
    /// Takes the parts, at most as many entries as this end can have.
    pub(crate) builder: ManifestBuilder,
    /// Says whether the other end may say what it has left out: one that answers may, one that
    /// offers says it to its own user.
    pub(crate) left_out: bool,
    looking_timeout: Duration,
    manifest_timeout: Duration,
}

impl ManifestRules {
    pub(crate) fn new(builder: ManifestBuilder, left_out: bool) -> Self {
        Self {
            builder,
            left_out,
            // Who offers has looked at its files before it dialled.
            looking_timeout: if left_out { LOOKING_TIMEOUT } else { MANIFEST_TIMEOUT },
            manifest_timeout: MANIFEST_TIMEOUT,
        }
    }
}

/// Reads a manifest, and what the other end has left out of it.
///
/// # Errors
///
/// 400 for what is no manifest, 408 if it does not come in time, 413 if it is too large, what the
/// other end says in its place, or a connection that is lost.
pub(crate) fn read_manifest(
    reader: &mut FrameReader,
    rules: ManifestRules,
) -> Result<(Manifest, LeftOut), Error> {
    let began = Instant::now();
    reader.set_deadline(Some(began + rules.looking_timeout));
    let read = read_parts(reader, rules);
    reader.set_deadline(None);
    read
}

fn read_parts(reader: &mut FrameReader, rules: ManifestRules) -> Result<(Manifest, LeftOut), Error> {
    let bad = |error: ManifestError| Error::protocol(error.to_string());
    let ManifestRules { mut builder, left_out: takes_left_out, manifest_timeout, .. } = rules;
    let mut left_out = LeftOut::default();
    let mut has_begun = false;
    loop {
        let frame = reader.next_control()?;
        if !has_begun && !matches!(frame, Control::Alive) {
            has_begun = true;
            reader.set_deadline(Some(Instant::now() + manifest_timeout));
        }
        match frame {
            Control::Manifest(part) => builder.handle_part(&part).map_err(bad)?,
            Control::ManifestEnd(end) => return Ok((builder.handle_end(&end).map_err(bad)?, left_out)),
            Control::LeftOut(part) if takes_left_out => {
                left_out.unnamed = left_out.unnamed.saturating_add(part.unnamed);
                left_out.entries.extend(part.entries);
                if !part.uncarried.is_empty() {
                    left_out.uncarried = part.uncarried;
                }
                if left_out.entries.len() > LEFT_OUT_NAMED_MAX {
                    return Err(Error::failed(Code::OverLimit, "more entries left out than may be named"));
                }
            }
            Control::Alive => {}
            Control::Refuse(refuse) => return Err(Error::Refused(refuse)),
            _ => return Err(Error::protocol("something else where the manifest must be")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    /// A reader, and a peer that says `frame` again and again until nobody listens.
    fn babbler(frame: Vec<u8>) -> (FrameReader, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        let connection = Arc::new(Connection::new(near, Duration::ZERO).unwrap());
        let peer = std::thread::spawn(move || while far.write_all(&frame).is_ok() {});
        (FrameReader::new(connection, Vec::new()), peer)
    }

    fn rules(looking: u64, manifest: u64) -> ManifestRules {
        ManifestRules {
            looking_timeout: Duration::from_millis(looking),
            manifest_timeout: Duration::from_millis(manifest),
            ..ManifestRules::new(ManifestBuilder::new(5), true)
        }
    }

    #[test]
    fn a_manifest_that_never_comes_is_not_waited_for_for_ever() {
        let alive = Control::Alive.encode();
        let left_out = Control::LeftOut(LeftOut::default()).encode();
        let hour = 3_600_000;
        for (frame, looking, manifest) in [(alive, 20, hour), (left_out, hour, 20)] {
            let (mut reader, peer) = babbler(frame);
            let error = read_manifest(&mut reader, rules(looking, manifest)).unwrap_err();
            assert!(error.to_string().contains("too slow"), "{error}");
            assert_eq!(error.code(), Code::TooSlow);
            reader.connection().close();
            drop(reader);
            peer.join().unwrap();
        }
    }
}
