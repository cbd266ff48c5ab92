//! What a receiver has to know of the sender before it can answer a manifest.

use crate::error::Error;
use crate::net::frames::FrameReader;
use fastdrop_proto::fastdp::{Capability, Code, Control, Grant, IdentityTable, Manifest};
use fastdrop_proto::units::EntryIndex;
use std::collections::HashMap;

/// Files that are asked for at once: so few that the answers fit into a connection's buffers while
/// this end still reads its own files, and the other end is not taken for silent.
pub(crate) const ASKED_MAX: usize = 2000;

/// The origin of answers.
enum Answers<'a> {
    Sender(&'a mut FrameReader),
    /// An archive that is here: the BLAKE3 of its files.
    Archive(HashMap<EntryIndex, [u8; 32]>),
}

/// Questions to the sender, on the control stream, while it waits for the answer to its manifest.
pub(crate) struct Inquiry<'a> {
    answers: Answers<'a>,
    identity: bool,
    content: bool,
    identities: IdentityTable,
}

impl<'a> Inquiry<'a> {
    /// Asks over `reader` what `grant` allows.
    pub(crate) fn new(reader: &'a mut FrameReader, grant: &Grant, manifest: &Manifest) -> Self {
        Self {
            answers: Answers::Sender(reader),
            identity: grant.has(Capability::Identity),
            content: grant.has(Capability::Content),
            identities: IdentityTable::new(manifest.len()),
        }
    }

    /// Asks nobody: an archive that is here has files with these BLAKE3.
    pub(crate) fn of_archive(contents: HashMap<EntryIndex, [u8; 32]>) -> Self {
        let identities = IdentityTable::default();
        Self { answers: Answers::Archive(contents), identity: false, content: true, identities }
    }

    /// Returns true if the sender can have what is left of an earlier transfer compared.
    pub(crate) fn may_resume(&self) -> bool {
        matches!(self.answers, Answers::Sender(_))
    }

    /// The same without questions for contents.
    pub(crate) fn without_contents(self) -> Self {
        Self { content: false, ..self }
    }

    /// Whether the sender tells versions of files apart, and compares what is held of another.
    pub(crate) fn knows_identities(&self) -> bool {
        self.identity
    }

    /// Whether the sender says the BLAKE3 of files.
    pub(crate) fn knows_contents(&self) -> bool {
        self.content
    }

    /// The identities of all files; of none from a sender that does not know them.
    ///
    /// # Errors
    ///
    /// The connection is lost, or the sender says something else.
    pub(crate) fn identities(&mut self) -> Result<&IdentityTable, Error> {
        if self.identity && !self.identities.is_complete() {
            self.ask(&[])?;
        }
        while self.identity && !self.identities.is_complete() {
            self.next(&mut |_, _| Err(Error::protocol("contents that nobody asked for")))?;
        }
        Ok(&self.identities)
    }

    /// Asks for the BLAKE3 of files, at most [`ASKED_MAX`].
    ///
    /// # Errors
    ///
    /// As [`Self::identities`].
    pub(crate) fn ask(&self, entries: &[EntryIndex]) -> Result<(), Error> {
        match &self.answers {
            Answers::Sender(reader) => {
                Ok(reader.connection().send_control(&Control::Ask(entries.to_vec()))?)
            }
            Answers::Archive(_) => Ok(()),
        }
    }

    /// The answers to [`Self::ask`]: None where the sender cannot read its file.
    ///
    /// # Errors
    ///
    /// As [`Self::identities`].
    pub(crate) fn answers(
        &mut self,
        entries: &[EntryIndex],
    ) -> Result<HashMap<EntryIndex, Option<[u8; 32]>>, Error> {
        if let Answers::Archive(contents) = &self.answers {
            return Ok(entries.iter().map(|entry| (*entry, contents.get(entry).copied())).collect());
        }
        let mut open: std::collections::HashSet<_> = entries.iter().copied().collect();
        let mut answers = HashMap::with_capacity(entries.len());
        while !open.is_empty() {
            self.next(&mut |entry, content| {
                if !open.remove(&entry) {
                    return Err(Error::protocol("contents that nobody asked for"));
                }
                answers.insert(entry, content);
                Ok(())
            })?;
        }
        Ok(answers)
    }

    fn next(
        &mut self,
        take: &mut dyn FnMut(EntryIndex, Option<[u8; 32]>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Answers::Sender(reader) = &mut self.answers else {
            return Err(Error::failed(Code::Internal, "a question that an archive cannot answer"));
        };
        match reader.next_control()? {
            Control::Alive => Ok(()),
            Control::Identity(part) if self.identity => Ok(self.identities.handle(&part)?),
            Control::Content(contents) if self.content => {
                contents.into_iter().try_for_each(|(entry, content)| take(entry, content))
            }
            Control::Refuse(refuse) => Err(Error::Refused(refuse)),
            _ => Err(Error::protocol("a frame that a sender does not send before it is answered")),
        }
    }

    /// What has come of the identities; the rest comes while chunks flow.
    pub(crate) fn into_identities(self) -> IdentityTable {
        self.identities
    }
}
