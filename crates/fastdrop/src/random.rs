//! Randomness of the operating system.

use crate::error::Error;

/// Random bytes of the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| Error::with_code(500, "no randomness to be had"))?;
    Ok(bytes)
}
