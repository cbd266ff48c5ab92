//! The manifest that a server offers.

use crate::error::Error;
use crate::net::connection::FrameReader;
use fastdrop_proto::fastdp::{Control, LEFT_OUT_NAMED_MAX, LeftOut, Manifest, ManifestBuilder};

/// Reads a manifest, and what the server has left out of it.
pub(super) fn read_manifest(
    reader: &mut FrameReader,
    mut builder: ManifestBuilder,
) -> Result<(Manifest, LeftOut), Error> {
    let mut left_out = LeftOut::default();
    loop {
        match reader.next_control()? {
            Control::Manifest(part) => {
                builder.handle_part(&part).map_err(|error| Error::with_code(400, error.to_string()))?;
            }
            Control::ManifestEnd(end) => {
                let manifest = builder.handle_end(&end);
                return manifest
                    .map(|manifest| (manifest, left_out))
                    .map_err(|error| Error::with_code(400, error.to_string()));
            }
            Control::LeftOut(part) => {
                left_out.unnamed = left_out.unnamed.saturating_add(part.unnamed);
                left_out.entries.extend(part.entries);
                if !part.uncarried.is_empty() {
                    left_out.uncarried = part.uncarried;
                }
                if left_out.entries.len() > LEFT_OUT_NAMED_MAX {
                    return Err(Error::with_code(413, "more entries left out than may be named"));
                }
            }
            Control::Alive => {}
            Control::Refuse(refuse) => return Err(Error::Refused(refuse)),
            _ => return Err(Error::with_code(400, "something else where the manifest must be")),
        }
    }
}
