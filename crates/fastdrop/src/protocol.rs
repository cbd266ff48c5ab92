//! The protocols that the program speaks, by their names.

use fastdrop_proto::fastdp::Versions;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Makes the enum from its table, so that no list of protocols can lack one.
macro_rules! protocols {
    ($($(#[$doc:meta])* $variant:ident $name:literal $port:literal,)*) => {
        /// A protocol that moves files.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Protocol {
            $($(#[$doc])* $variant,)*
        }

        impl Protocol {
            /// All of them.
            pub const ALL: [Protocol; [$($name),*].len()] = [$(Protocol::$variant),*];

            /// Its name, as users type it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Protocol::$variant => $name,)*
                }
            }

            /// The port that its servers listen on unless they are told otherwise.
            pub fn port(self) -> u16 {
                match self {
                    $(Protocol::$variant => $port,)*
                }
            }
        }
    };
}

protocols! {
    /// fastdp, version 2: the native one.
    FastDp "fastdp" 8888,
    /// fastdp, version 1.0.0.
    FastDp10 "fastdp1.0" 8888,
    /// fastdp, version 1.1.0.
    FastDp11 "fastdp1.1" 8888,
    /// UltraDP.
    UltraDp "ultradp" 4321,
    /// NextDP.
    NextDp "nextdp" 4321,
    /// FastDownloader.
    FastDownloader "fastdownloader" 1337,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(name: &str) -> Result<Self, UnknownProtocol> {
        let known = Self::ALL.into_iter().find(|protocol| protocol.name() == name);
        known.ok_or_else(|| UnknownProtocol { name: name.into() })
    }
}

/// A name that no protocol has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no protocol {name:?}; there are {}", Protocol::ALL.map(Protocol::name).join(", "))]
pub struct UnknownProtocol {
    name: String,
}

/// The protocols that a server answers on its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept(BTreeSet<Protocol>);

impl Accept {
    /// All but FastDownloader, which has a port of its own.
    pub fn all() -> Self {
        Self(Protocol::ALL.into_iter().filter(|&protocol| protocol != Protocol::FastDownloader).collect())
    }

    /// The versions of fastdp that are among them.
    pub(crate) fn versions(&self) -> Versions {
        Versions {
            v1_0: self.has(Protocol::FastDp10),
            v1_1: self.has(Protocol::FastDp11),
            v2: self.has(Protocol::FastDp),
        }
    }

    /// Whether it is among them.
    pub fn has(&self, protocol: Protocol) -> bool {
        self.0.contains(&protocol)
    }
}

impl FromStr for Accept {
    type Err = String;

    /// Names, separated by commas, or `all`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::all());
        }
        let mut accepted = BTreeSet::new();
        for name in text.split(',').map(str::trim) {
            match name.parse().map_err(|error: UnknownProtocol| error.to_string())? {
                Protocol::FastDownloader => {
                    return Err("fastdownloader has a port of its own: --fastdownloader[=PORT]".into());
                }
                protocol => accepted.insert(protocol),
            };
        }
        Ok(Self(accepted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_protocols_is_parsed_by_name() {
        let some: Accept = "fastdp1.0,nextdp".parse().unwrap();
        assert!(some.has(Protocol::FastDp10) && some.has(Protocol::NextDp) && !some.has(Protocol::FastDp));
        assert!("all".parse::<Accept>().unwrap().has(Protocol::UltraDp));
        for bad in ["", "fastdp,", "ftp", "fastdownloader"] {
            bad.parse::<Accept>().unwrap_err();
        }
    }
}
