//! The words of a command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::process::Command;

/// Arguments of any mix of strings and paths.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => {
        vec![$(std::ffi::OsString::from(AsRef::<std::ffi::OsStr>::as_ref(&$arg))),*]
    };
}

/// Runs a system tool that the test cannot do without.
pub fn tool(name: &str, args: Vec<OsString>) {
    let out =
        Command::new(name).args(&args).output().unwrap_or_else(|error| panic!("cannot run {name}: {error}"));
    assert!(out.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// `127.0.0.1:port/path`.
pub fn target(port: u16, path: &OsStr) -> OsString {
    let mut bytes = format!("127.0.0.1:{port}").into_bytes();
    if !path.is_empty() {
        bytes.push(b'/');
        bytes.extend_from_slice(path.as_bytes());
    }
    OsString::from_vec(bytes)
}
