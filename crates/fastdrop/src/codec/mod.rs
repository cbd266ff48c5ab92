//! Zstandard, tar and ZIP: encoders, and decoders that trust no length.

pub(crate) mod archive;
pub(crate) mod decode;
pub(crate) mod deflate;
pub(crate) mod encode;
