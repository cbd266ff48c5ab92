//! The datagrams that leave in one call.

/// Bounds of what one call may write, as datagrams of one size, of which the last may be smaller.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    /// Bytes that the address may be sent, as far as it has proved itself.
    pub(super) budget: u64,
    /// Bytes that a cap lets leave now, which only the first datagram may exceed.
    pub(super) credit: u64,
    /// Datagrams.
    pub(super) segments: usize,
}

impl Batch {
    /// Bytes of one call: segmentation offload takes no more.
    pub(super) const BYTES_MAX: usize = 65_000;

    /// Returns true if a datagram of `len` bytes may follow `written` bytes of datagrams of `size`;
    /// None before the first, which may have any size.
    pub(super) fn has_room(&self, len: usize, written: usize, size: Option<usize>) -> bool {
        let end = written + len;
        let follows = |size| len <= size && end <= Self::BYTES_MAX && end as u64 <= self.credit;
        size.is_none_or(follows) && end as u64 <= self.budget
    }
}
