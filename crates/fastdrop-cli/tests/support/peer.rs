//! Independent peers of the older protocols: the Python scripts in `tests/peers`.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name)
}

fn has_zstandard(python: &Path) -> bool {
    let imported = Command::new(python).args(["-c", "import zstandard"]).output();
    imported.is_ok_and(|out| out.status.success())
}

/// A Python that can import `zstandard`; made beneath the build folder if the machine's own cannot.
fn python_with_zstandard() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let own = PathBuf::from("python3");
        if has_zstandard(&own) {
            return own;
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-peers");
        let python = folder.join("bin/python3");
        if !has_zstandard(&python) {
            super::tool("python3", crate::args!["-m", "venv", folder]);
            super::tool(
                &python.display().to_string(),
                crate::args!["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "zstandard"],
            );
        }
        python
    })
}

/// A peer that runs. Killed when dropped.
pub struct Peer {
    child: Child,
    stdout: BufReader<ChildStdout>,
    what: String,
}

impl Peer {
    /// Starts a script of `tests/peers`.
    pub fn start(name: &str, args: Vec<OsString>) -> Self {
        Self::start_with(Path::new("python3"), name, args)
    }

    /// The same, where Zstandard is needed.
    pub fn start_zstd(name: &str, args: Vec<OsString>) -> Self {
        Self::start_with(python_with_zstandard(), name, args)
    }

    fn start_with(python: &Path, name: &str, args: Vec<OsString>) -> Self {
        let what = format!("{name} {args:?}");
        let child = Command::new(python)
            .arg(script(name))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut child =
            child.unwrap_or_else(|error| panic!("{what}: {error}; the peers of these tests need python3"));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout, what }
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The port that it prints first.
    pub fn port(&mut self) -> u16 {
        let line = self.line();
        line.parse().unwrap_or_else(|_| panic!("{}: {line:?} is no port", self.what))
    }

    /// What it prints until it ends, which it must do well.
    #[track_caller]
    pub fn finish(mut self) -> String {
        let (text, well) = self.end();
        assert!(well, "{}: {text}", self.what);
        text
    }

    /// Ends it, and returns what it has printed until then.
    #[allow(dead_code, reason = "not every test ends a peer")]
    pub fn stop(mut self) -> String {
        let _ = self.child.kill();
        self.end().0
    }

    /// What it prints until it ends, and whether it ended well.
    pub fn end(&mut self) -> (String, bool) {
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        let status = self.child.wait().unwrap();
        (text.trim_end().to_owned(), status.success())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
