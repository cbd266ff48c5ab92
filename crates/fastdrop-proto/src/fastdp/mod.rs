//! FastDrop Protocol: version 2, and in `v1` what is different in the older ones. The specification is `docs/protocol/fastdp.md`;
//! section numbers refer to it.

mod code;
mod compression;
mod control;
mod encoding;
mod frame;
mod header;
mod identity;
mod left_out;
mod link;
mod manifest;
mod need;
mod path;
mod receiver;
mod root;
mod sender;
mod table;
mod tuner;
mod upgrade;
pub mod v1;
mod version;

pub use code::{Code, Failure, Violation};
pub use compression::{Archive, Compress, Compressor, Plan};
pub use control::{Capability, Do, Done, Durability, Existing, Failed, Grant, Links, Open, Place, Refuse};
pub use encoding::{Encoding, Extents};
pub use frame::{Content, Control, FrameHeader, FrameKind, Proven, Spent, control_payload_max, type_name};
pub use header::{HEADER_MAX, Header};
pub use identity::{IDENTITIES_PER_FRAME, Identities, IdentityTable};
pub use left_out::{LEFT_OUT_NAMED_MAX, LeftOut, LeftOutEntry};
pub use link::TARGET_MAX;
pub use manifest::{Entry, EntryError, EntryKind, Manifest, ManifestBuilder, ManifestEnd, ManifestError};
pub use need::{Held, NeedTotals, SkipReason, SkipRun};
pub use path::{COMPONENT_MAX, DEPTH_MAX, HIDDEN, LONG_PATH_MAX, PATH_MAX, PathError, RelPath};
pub use receiver::{ChunkVerdict, Completed, Expected, Finish, Receiver};
pub use root::{Transcript, root_digest};
pub use sender::{ALIVE_EVERY, Action, Outcome, SILENT_MAX, Sender, SenderConfig, StreamId, Streams};
pub use table::{ChunkContent, Table, TableError};
pub use tuner::Tuner;
pub use upgrade::{
    AnswerError, ENDPOINT, HEAD_BYTES_MAX, SERVER, UpgradeAnswer, UpgradeError, UpgradeRequest, head_len,
    is_endpoint, parse_answer, parse_request,
};
pub use version::{VERSION, Version, Versions};
