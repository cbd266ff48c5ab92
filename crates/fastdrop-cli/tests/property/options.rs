//! Random options of a run.

use super::support::*;
use super::trees::Choice;
use std::ffi::OsString;

/// The options of one run, as far as they decide what a 0 claims.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) existing: &'static str,
    pub(crate) links: &'static str,
    pub(crate) times: bool,
    pub(crate) mode: bool,
    pub(crate) compress: &'static str,
    pub(crate) checksum: &'static str,
    pub(crate) excludes: bool,
    /// Contents are compared, so that equal size and time are no excuse.
    pub(crate) checks: bool,
    /// Options that change nothing of the claim.
    others: Vec<&'static str>,
}

impl Options {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let mut others = Vec::new();
        if rng.one_in(5) {
            others.push("--no-resume");
        }
        others.extend(*rng.pick(&[&[][..], &["-j", "1"], &["-j", "2"], &["-j", "5"]]));
        others.extend(*rng.pick(&[&[][..], &["--durability", "none"]]));
        others.extend(*rng.pick(&[&[][..], &[], &[], &["--checkpoint", "1M"]]));
        Self {
            existing: *rng.pick(&["overwrite", "overwrite", "overwrite", "error", "skip", "rename"]),
            links: *rng.pick(&["copy", "copy", "copy", "copy", "safe", "skip", "follow"]),
            times: !rng.one_in(6),
            mode: !rng.one_in(6),
            compress: *rng.pick(&["auto", "auto", "none", "none", "zstd", "zip", "targz"]),
            checksum: *rng.pick(&["xxh3", "xxh3", "blake3", "none"]),
            excludes: rng.one_in(5),
            checks: rng.one_in(4),
            others,
        }
    }

    /// Options with which the last run of a seed should come to its end.
    pub(crate) fn plain() -> Self {
        Self {
            existing: "overwrite",
            links: "copy",
            times: true,
            mode: true,
            compress: "auto",
            checksum: "xxh3",
            excludes: false,
            checks: true,
            others: Vec::new(),
        }
    }

    pub(crate) fn words(&self) -> Vec<OsString> {
        let preserve = match (self.times, self.mode) {
            (true, true) => "times,mode",
            (true, false) => "times",
            (false, true) => "mode",
            (false, false) => "none",
        };
        let mut words = vec!["--existing", self.existing, "--links", self.links, "--preserve", preserve];
        words.extend(["--compress", self.compress, "--checksum", self.checksum]);
        words.extend(&self.others);
        if self.checks {
            words.push("--check");
        }
        if self.excludes {
            words.extend(["--exclude", "*.o"]);
        }
        words.into_iter().map(OsString::from).collect()
    }
}
