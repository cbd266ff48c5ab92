//! The last word of a receiver: what has arrived, and what has failed.

use fastdrop_proto::fastdp::{Done, EntryKind, Failed, Receiver};
use fastdrop_proto::units::EntryIndex;
use std::collections::BTreeMap;

/// Bytes of failures that are told one by one, as they are encoded: they must fit into one frame.
const FAILED_SHOWN_MAX: usize = 512 << 10;
/// Failures that are told one by one.
const FAILED_COUNT_MAX: usize = 1000;

/// Counts what has arrived: everything that is needed and has not failed.
pub(super) fn count(proto: &Receiver, failed: &BTreeMap<EntryIndex, Failed>) -> Done {
    let mut done = Done {
        failed: shown_failures(failed.values()),
        failed_count: failed.len() as u64,
        ..Done::default()
    };
    for index in proto.needed_entries().filter(|index| !failed.contains_key(index)) {
        let Some(entry) = proto.manifest().get(index) else { continue };
        let streamed = proto.stream_size().filter(|_| entry.kind == EntryKind::Stream);
        if entry.kind != EntryKind::Directory {
            done.files += 1;
            done.bytes += entry.size() + streamed.unwrap_or(0);
        }
    }
    done
}

/// As many failures as fit. A name becomes at most three times as long on the wire.
pub(super) fn shown_failures<'a>(failed: impl Iterator<Item = &'a Failed>) -> Vec<Failed> {
    let mut left = FAILED_SHOWN_MAX;
    let fits = |failed: &&Failed| {
        let size = 3 * failed.path.len() + 6 * failed.message.len() + 64;
        let fits = size <= left;
        left = left.saturating_sub(size);
        fits
    };
    failed.take_while(fits).take(FAILED_COUNT_MAX).cloned().collect()
}
