//! Times in the extra fields of a ZIP archive.

use crate::codec::archive::bad;
use fastdrop_proto::units::Mtime;
use std::io::Result;
use zip::ExtraField;

/// The extra field of Info-ZIP with whole seconds, and its flag
/// for the time of the last modification.
const TIMESTAMP: u16 = 0x5455;
const TIMESTAMP_MODIFIED: u8 = 1;
/// The extra field of NTFS with steps of 100 ns since 1601, and the tag and length of its times.
const NTFS: u16 = 0x000a;
const NTFS_TIMES: u16 = 1;
const NTFS_TIMES_LEN: u16 = 24;
/// Seconds from 1601 to 1970.
const NTFS_EPOCH: i64 = 11_644_473_600;
/// Our own extra field: `i64` seconds and `u32` nanoseconds since 1970.
const EXACT: u16 = 0x4446;
const EXACT_LEN: usize = 12;

/// The extra fields for a time: those that other programs know, and ours where they are not exact.
pub(super) fn fields(mtime: Mtime) -> Vec<u8> {
    let Mtime { seconds, nanos } = mtime;
    let mut fields = Vec::new();
    let mut field = |id: u16, data: &[u8]| {
        fields.extend_from_slice(&id.to_le_bytes());
        fields.extend_from_slice(&(data.len() as u16).to_le_bytes());
        fields.extend_from_slice(data);
    };
    // Some programs take it for signed.
    let common = i32::try_from(seconds).ok().filter(|seconds| *seconds >= 0);
    if let Some(seconds) = common {
        field(TIMESTAMP, &[&[TIMESTAMP_MODIFIED][..], &seconds.to_le_bytes()].concat());
    } else if let Some(steps) = ntfs_steps(mtime) {
        let steps = steps.to_le_bytes();
        let head = [[0; 2], [0; 2], NTFS_TIMES.to_le_bytes(), NTFS_TIMES_LEN.to_le_bytes()].concat();
        field(NTFS, &[&head[..], &steps, &steps, &steps].concat());
    }
    if common.is_none() || nanos != 0 {
        field(EXACT, &[&seconds.to_le_bytes()[..], &nanos.to_le_bytes()].concat());
    }
    fields
}

fn ntfs_steps(mtime: Mtime) -> Option<u64> {
    let seconds = u64::try_from(mtime.seconds.checked_add(NTFS_EPOCH)?).ok()?;
    seconds.checked_mul(10_000_000)?.checked_add((mtime.nanos / 100).into())
}

/// The time that extra fields tell; 1970 where none does.
///
/// # Errors
///
/// A time that is none, and two that contradict each other.
pub(super) fn read<'a>(fields: impl Iterator<Item = &'a ExtraField>) -> Result<Mtime> {
    let mut common = None;
    let mut exact = None;
    for field in fields {
        match field {
            ExtraField::ExtendedTimestamp(times) => common = times.mod_time(),
            ExtraField::Custom(custom) if custom.header_id == EXACT => {
                let earlier = exact.replace(parse_exact(&custom.data)?);
                earlier.map_or(Ok(()), |_| Err(bad("a ZIP archive that says the time of a file twice")))?;
            }
            _ => {}
        }
    }
    let common = common.map(i64::from);
    match exact {
        Some(Mtime { seconds, .. }) if common.is_some_and(|common| common != seconds) => {
            Err(bad("a ZIP archive that says two times of a file"))
        }
        Some(exact) => Ok(exact),
        None => Ok(Mtime { seconds: common.unwrap_or(0), nanos: 0 }),
    }
}

fn parse_exact(data: &[u8]) -> Result<Mtime> {
    let wrong = || bad("a time in a ZIP archive that is none");
    let data: &[u8; EXACT_LEN] = data.try_into().map_err(|_| wrong())?;
    let [seconds @ .., n0, n1, n2, n3] = *data;
    let nanos = u32::from_le_bytes([n0, n1, n2, n3]);
    if nanos >= 1_000_000_000 {
        return Err(wrong());
    }
    Ok(Mtime { seconds: i64::from_le_bytes(seconds), nanos })
}
