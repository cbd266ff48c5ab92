//! The flags that a user has given.

use std::collections::BTreeSet;

/// A setting of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Flag {
    /// What happens to files that exist and differ.
    Existing,
    /// How chunks are checked.
    Checksum,
    /// Done means synced.
    Durability,
    /// Times and modes are kept.
    Preserve,
    /// What happens to links.
    Links,
    /// Contents are compared.
    Check,
    /// Unfinished work is not continued.
    NoResume,
    /// Bytes between checkpoints.
    Checkpoint,
    /// Data streams.
    Streams,
    /// How contents are compressed.
    Compress,
    /// Entries that are left out.
    Exclude,
    /// Entries that are taken in spite of that.
    Include,
    /// The only entries that are taken.
    FilesFrom,
    /// Bytes a second at most.
    Bwlimit,
    /// UltraDP's chunks are encrypted.
    UltradpPasswordFile,
    /// Attempts after a loss.
    Retries,
    /// Only what would be done is told.
    DryRun,
    /// An archive stays one.
    KeepArchive,
}

/// The flags that were given, though perhaps with their default value.
pub type Asked = BTreeSet<Flag>;
