//! The versions of fastdp.

use std::fmt;

/// The native version.
pub const VERSION: &str = "2.0.0";

/// A version that this code speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 1.0.0.
    V1_0,
    /// 1.1.0.
    V1_1,
    /// 2.y.z of any y and z.
    V2,
}

impl Version {
    /// As in `Sec-FastDP-Version`.
    pub fn name(self) -> &'static str {
        match self {
            Version::V1_0 => "1.0.0",
            Version::V1_1 => "1.1.0",
            Version::V2 => VERSION,
        }
    }

    /// The version that a peer names `name`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "1.0.0" => Some(Version::V1_0),
            "1.1.0" => Some(Version::V1_1),
            name if name.starts_with("2.") => Some(Version::V2),
            _ => None,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The versions that a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// 1.0.0.
    pub v1_0: bool,
    /// 1.1.0.
    pub v1_1: bool,
    /// 2.
    pub v2: bool,
}

impl Versions {
    /// All of them.
    pub const ALL: Versions = Versions { v1_0: true, v1_1: true, v2: true };
    /// The native one alone.
    pub const V2: Versions = Versions { v1_0: false, v1_1: false, v2: true };

    /// Whether it is among them.
    pub fn has(self, version: Version) -> bool {
        match version {
            Version::V1_0 => self.v1_0,
            Version::V1_1 => self.v1_1,
            Version::V2 => self.v2,
        }
    }
}

impl fmt::Display for Versions {
    /// The newest first, separated by commas, as in the `Sec-FastDP-Version` of a refusal; the native one if there is none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spoken =
            [Version::V2, Version::V1_1, Version::V1_0].into_iter().filter(|&version| self.has(version));
        let names: Vec<_> = spoken.map(Version::name).collect();
        f.write_str(if names.is_empty() { VERSION } else { "" })?;
        f.write_str(&names.join(", "))
    }
}
