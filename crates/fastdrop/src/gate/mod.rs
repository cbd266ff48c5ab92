//! The gate: every request of every protocol is one question, who wants to do what where, and this
//! is the only place that says yes. It touches no file.

pub(crate) mod action;
pub(crate) mod path;
pub(crate) mod principal;

use crate::error::Error;
use crate::gate::action::Action;
use crate::gate::path::ServedPath;
use crate::gate::principal::Principal;
use fastdrop_proto::fastdp::{Code, Existing};

/// The rules of a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Nothing is taken.
    pub(crate) read_only: bool,
    /// Nothing is given, nor listed.
    pub(crate) write_only: bool,
    /// The most that may become of files that exist.
    pub(crate) existing: Existing,
}

/// Decides who may do what where.
#[derive(Debug)]
pub(crate) struct Gate {
    rules: Rules,
}

impl Gate {
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules }
    }

    /// Admits `who` to doing `action` at `path`, as it came from the network; empty for the served
    /// folder. The path that is returned is the only one to be used.
    ///
    /// # Errors
    ///
    /// 403: the rules do not allow it, or the path leads elsewhere.
    pub(crate) fn admit(&self, who: &Principal, action: Action, path: &[u8]) -> Result<ServedPath, Error> {
        self.allows(who, action)?;
        ServedPath::parse(path)
    }

    /// Admits `who` to writing a file for which the peer has no wish as to what exists: it is done
    /// as the server has it.
    ///
    /// # Errors
    ///
    /// As [`Self::admit`].
    pub(crate) fn admit_file(&self, who: &Principal, path: &[u8]) -> Result<(ServedPath, Existing), Error> {
        let existing = self.rules.existing;
        let path = self.admit(who, Action::Write(existing), path)?;
        if path.means_contents() {
            return Err(Error::failed(Code::Forbidden, "the name of a file does not end in a slash"));
        }
        Ok((path, existing))
    }

    /// Checks whether `who` may do `action` anywhere, before it is known where.
    ///
    /// # Errors
    ///
    /// 403: the rules do not allow it.
    pub(crate) fn allows(&self, who: &Principal, action: Action) -> Result<(), Error> {
        let Rules { read_only, write_only, existing } = self.rules;
        let why = match action {
            Action::Read | Action::List if write_only => "this server only takes",
            Action::Write(_) if read_only => "this server only gives",
            Action::Write(wanted) if wanted > existing.max(Existing::Error) => match wanted {
                Existing::Rename => {
                    "this server gives no other names to what exists: serve --existing rename would"
                }
                _ => "this server keeps what exists: serve --existing overwrite would let it be replaced",
            },
            Action::Read | Action::List | Action::Write(_) => return Ok(()),
        };
        tracing::debug!(%who, ?action, why, "not admitted");
        Err(Error::failed(Code::Forbidden, why))
    }

    /// The most that may become of files that exist.
    pub(crate) fn existing(&self) -> Existing {
        self.rules.existing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn gate(read_only: bool, write_only: bool, existing: Existing) -> Gate {
        Gate::new(Rules { read_only, write_only, existing })
    }

    fn who() -> Principal {
        Principal::of(SocketAddr::from(([192, 0, 2, 1], 7)))
    }

    const POLICIES: [Existing; 4] = [Existing::Skip, Existing::Error, Existing::Rename, Existing::Overwrite];

    #[test]
    fn each_kind_of_server_admits_its_own_actions_alone() {
        let actions = |wanted| [Action::Read, Action::List, Action::Write(wanted)];
        for (read_only, write_only, admitted) in [
            (false, false, [true, true, true]),
            (true, false, [true, true, false]),
            (false, true, [false, false, true]),
        ] {
            let gate = gate(read_only, write_only, Existing::Error);
            for (action, admitted) in actions(Existing::Error).into_iter().zip(admitted) {
                let found = gate.admit(&who(), action, b"a/b");
                assert_eq!(found.is_ok(), admitted, "{action:?} {read_only} {write_only}");
                assert!(admitted || found.unwrap_err().code() == Code::Forbidden);
            }
        }
    }

    #[test]
    fn nobody_does_more_with_what_exists_than_the_server_does() {
        for (own, allowed) in
            [(Existing::Skip, 2), (Existing::Error, 2), (Existing::Rename, 3), (Existing::Overwrite, 4)]
        {
            let gate = gate(false, false, own);
            for (at, wanted) in POLICIES.into_iter().enumerate() {
                assert_eq!(
                    gate.allows(&who(), Action::Write(wanted)).is_ok(),
                    at < allowed,
                    "{own:?} {wanted:?}"
                );
            }
            assert_eq!(gate.admit_file(&who(), b"f").unwrap().1, own);
        }
    }

    #[test]
    fn a_path_is_admitted_only_as_it_is_normalised() {
        let gate = gate(false, false, Existing::Error);
        for path in [
            &b"/etc/passwd"[..],
            b"..",
            b"a/../b",
            b"a//b",
            b"./a",
            b"a/.",
            b"a\0b",
            b".fastdrop",
            b".fastdrop/x",
            b"a/.fastdrop/x",
            b"//",
            b"a//",
        ] {
            for action in [Action::Read, Action::List, Action::Write(Existing::Error)] {
                let refused = gate.admit(&who(), action, path).map(|path| path.to_string());
                assert_eq!(refused.unwrap_err().code(), Code::Forbidden, "{}", path.escape_ascii());
            }
        }
        for (path, bytes, contents) in
            [(&b""[..], &b""[..], true), (b"/", b"", true), (b"a", b"a", false), (b"a/b/", b"a/b", true)]
        {
            let served = gate.admit(&who(), Action::Read, path).unwrap();
            assert_eq!((served.as_bytes(), served.means_contents()), (bytes, contents));
        }
    }

    #[test]
    fn a_file_has_a_name_that_is_no_folders() {
        let gate = gate(false, false, Existing::Error);
        for path in [&b""[..], b"/", b"a/", b"a/b/"] {
            let refused = gate.admit_file(&who(), path).map(|(path, _)| path.to_string());
            assert_eq!(refused.unwrap_err().code(), Code::Forbidden, "{}", path.escape_ascii());
        }
        assert_eq!(gate.admit_file(&who(), b"a/b").unwrap().0.as_bytes(), b"a/b");
    }
}
