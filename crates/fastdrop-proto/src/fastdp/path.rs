//! Relative paths that cannot point outside (section 5).

use std::cmp::Ordering;
use std::fmt;

/// Longest path in bytes, towards a peer without the capability `long-paths`.
pub const PATH_MAX: usize = 4096;
/// Longest path in bytes.
pub const LONG_PATH_MAX: usize = 65_535;
/// Most components of a path.
pub const DEPTH_MAX: usize = 1024;
/// Longest component in bytes.
pub const COMPONENT_MAX: usize = 255;
/// The folder in which receivers keep unfinished work: never a name in a transfer.
pub const HIDDEN: &[u8] = b".fastdrop";

/// Why a path was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Nothing at all.
    #[error("an empty path")]
    Empty,
    /// Longer than [`LONG_PATH_MAX`], or than [`PATH_MAX`] where both ends are not known to take
    /// more.
    #[error("a path that is too long")]
    TooLong,
    /// More than [`DEPTH_MAX`] components.
    #[error("a path of more than 1,024 components")]
    TooDeep,
    /// Begins with a slash.
    #[error("an absolute path")]
    Absolute,
    /// `.`, `..`, nothing, or more than 255 bytes between two slashes.
    #[error("a path with an empty, too long, `.` or `..` component")]
    Component,
    /// Contains a NUL.
    #[error("a path with a NUL byte")]
    Nul,
    /// Has a component `.fastdrop`.
    #[error("a path through .fastdrop")]
    Hidden,
    /// A link's target that leaves the folder in which it arrives.
    #[error("a link that leads outside of the folder in which it arrives")]
    Escapes,
}

/// A checked relative path: at most [`DEPTH_MAX`] components of 1 to 255 bytes, joined by `/`.
///
/// Ordered component by component, so that a directory comes right before what is in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelPath<'a>(&'a [u8]);

impl<'a> RelPath<'a> {
    /// Checks `bytes`.
    pub fn new(bytes: &'a [u8]) -> Result<Self, PathError> {
        if bytes.is_empty() {
            return Err(PathError::Empty);
        }
        if bytes.len() > LONG_PATH_MAX {
            return Err(PathError::TooLong);
        }
        if bytes.first() == Some(&b'/') {
            return Err(PathError::Absolute);
        }
        if bytes.contains(&0) {
            return Err(PathError::Nul);
        }
        for (depth, component) in bytes.split(|&byte| byte == b'/').enumerate() {
            if depth >= DEPTH_MAX {
                return Err(PathError::TooDeep);
            }
            if component.is_empty()
                || component.len() > COMPONENT_MAX
                || component == b"."
                || component == b".."
            {
                return Err(PathError::Component);
            }
            if component == HIDDEN {
                return Err(PathError::Hidden);
            }
        }
        Ok(Self(bytes))
    }

    /// The path's bytes.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Returns true if only a peer with the capability `long-paths` takes it.
    pub fn is_long(self) -> bool {
        self.0.len() > PATH_MAX
    }

    /// The components, from the top.
    pub fn components(self) -> impl Iterator<Item = &'a [u8]> {
        self.0.split(|&byte| byte == b'/')
    }

    /// The first component.
    pub fn top(self) -> &'a [u8] {
        self.0.split(|&byte| byte == b'/').next().unwrap_or(self.0)
    }

    /// What follows the first component and its slash, if anything does.
    pub fn below_top(self) -> Option<&'a [u8]> {
        self.0.iter().position(|&byte| byte == b'/').and_then(|at| self.0.get(at + 1..))
    }

    /// Whether `self` lies beneath `other`.
    pub fn is_beneath(self, other: RelPath<'_>) -> bool {
        self.0.strip_prefix(other.0).is_some_and(|rest| rest.first() == Some(&b'/'))
    }
}

impl Ord for RelPath<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.components().cmp(other.components())
    }
}

impl PartialOrd for RelPath<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for RelPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cases_47_and_53_names_that_could_lead_elsewhere_are_refused() {
        let long = vec![b'a'; 256];
        let too_long = [&[b'a'; 254][..], b"/"].concat().repeat(258);
        let too_deep = &b"a/".repeat(1025)[..2049];
        for (bytes, why) in [
            (&b""[..], PathError::Empty),
            (b"/etc/passwd", PathError::Absolute),
            (b"../x", PathError::Component),
            (b"a/../x", PathError::Component),
            (b"a/.", PathError::Component),
            (b"a//b", PathError::Component),
            (b"a/", PathError::Component),
            (b"a\0b", PathError::Nul),
            (&long, PathError::Component),
            (&too_long, PathError::TooLong),
            (too_deep, PathError::TooDeep),
            (b"a/.fastdrop/x", PathError::Hidden),
        ] {
            assert_eq!(RelPath::new(bytes), Err(why), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn cases_53_and_57_every_other_name_is_a_name() {
        let longest = [b'a'; 255];
        let long = [&[b'a'; 254][..], b"/"].concat().repeat(257);
        let deep = b"a/".repeat(1024);
        for bytes in [
            &longest[..],
            &long[..65_534],
            &deep[..2047],
            b"C:\\x",
            b"con",
            b"...",
            b"-rf",
            b"a b\n\x1b[2J\r",
            b"\xff\xfe",
            "\u{202e}gpj.exe".as_bytes(),
            b"%2e%2e%2fx",
            b"GET x",
        ] {
            assert!(RelPath::new(bytes).is_ok(), "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn a_folder_comes_right_before_what_is_in_it(a in "[a-c!.x]{1,3}(/[a-c!.x]{1,3}){0,3}", b in "[a-c!.x]{1,3}(/[a-c!.x]{1,3}){0,3}") {
            if let (Ok(a), Ok(b)) = (RelPath::new(a.as_bytes()), RelPath::new(b.as_bytes())) {
                if b.is_beneath(a) { prop_assert!(a < b); }
                let inner = [a.as_bytes(), b"/x"].concat();
                let inner = RelPath::new(&inner).unwrap();
                // Nothing can stand between a folder and its content but more of its content.
                if a < b && b < inner { prop_assert!(b.is_beneath(a)); }
            }
        }
    }
}
