//! Randomness of the operating system.

use crate::error::Error;
use fastdrop_proto::fastdp::Code;

/// Random bytes of the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| Error::failed(Code::Internal, "no randomness to be had"))?;
    Ok(bytes)
}
