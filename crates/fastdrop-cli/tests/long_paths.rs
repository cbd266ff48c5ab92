//! Paths that are longer than one system call takes, and folders within folders within folders.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use support::*;

/// A temporary folder for trees that only a patient tool can remove.
struct Deep(PathBuf);

impl Deep {
    fn new() -> Self {
        Self(scratch().keep())
    }
}

impl Drop for Deep {
    fn drop(&mut self) {
        tool("rm", args!["-rf", self.0]);
    }
}

/// The path of `name` in an open folder.
fn within(folder: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

/// The folder at the end of `components`, made where it is missing if `make` says so.
fn walk(root: &Path, components: &[String], make: bool) -> Option<File> {
    let mut folder = File::open(root).unwrap();
    for name in components {
        let path = within(&folder, name);
        if make && !path.exists() {
            fs::create_dir(&path).unwrap();
        }
        folder = File::open(path).ok()?;
    }
    Some(folder)
}

/// Components below `tree`, of at most 250 bytes each, that make `tree/…/leaf` have this length.
fn components(len: usize) -> Vec<String> {
    let mut left = len - "tree/".len() - "leaf".len();
    let mut components = Vec::new();
    while left > 0 {
        // One byte is the slash behind it; what is left must not be one byte alone.
        let take = match left {
            252 => 249,
            _ => left.min(251),
        };
        components.push("d".repeat(take - 1));
        left -= take;
    }
    assert_eq!("tree/".len() + components.iter().map(|c| c.len() + 1).sum::<usize>() + "leaf".len(), len);
    components
}

fn tree_of(components: &[String]) -> Vec<String> {
    [&["tree".to_owned()], components].concat()
}

fn transfer(
    get: bool,
    from: &Deep,
    to: &Deep,
    flags: &[&str],
    server_wrapper: Vec<std::ffi::OsString>,
) -> Output {
    let flags: Vec<_> = flags.iter().map(std::ffi::OsString::from).collect();
    let server = serve_through(if get { &from.0 } else { &to.0 }, &[], server_wrapper);
    client(match get {
        true => [args!["get"], flags, args![server.target("tree"), to.0]].concat(),
        false => [args!["send"], flags, args![from.0.join("tree"), server.target("")]].concat(),
    })
}

#[track_caller]
fn assert_leaf(to: &Deep, components: &[String], contents: &str) {
    let folder = walk(&to.0, &tree_of(components), false).expect("the folder of the leaf");
    assert_eq!(fs::read_to_string(within(&folder, "leaf")).unwrap(), contents);
}

/// Lengths around what one call takes, around the bound of peers without the capability, and the
/// longest.
#[test]
fn paths_of_up_to_65535_bytes_arrive_in_both_directions() {
    for len in [4094, 4095, 4096, 4097, 4200, 8191, 8193, 20_000, 65_535] {
        for (get, flags) in [(false, &[][..]), (true, &[]), (false, &["--compress", "targz"])] {
            let (from, to) = (Deep::new(), Deep::new());
            let components = components(len);
            let folder = walk(&from.0, &tree_of(&components), true).unwrap();
            fs::write(within(&folder, "leaf"), "it arrived").unwrap();
            std::os::unix::fs::symlink("leaf", within(&folder, "link")).unwrap();
            let out = transfer(get, &from, &to, flags, Vec::new()).expect(0);
            assert_leaf(&to, &components, "it arrived");
            let there = walk(&to.0, &tree_of(&components), false).unwrap();
            assert_eq!(fs::read_link(within(&there, "link")).unwrap(), Path::new("leaf"), "{out}");
            // Found to be there, the second time.
            let again = transfer(get, &from, &to, &[], Vec::new()).expect(0);
            assert_eq!(again.number("bytes_sent"), 0, "{len} {again}");
            assert!(!to.0.join(".fastdrop").exists());
        }
    }
}

/// Beyond the bounds an entry fails, with the reason, and everything else arrives.
#[test]
fn longer_or_deeper_than_the_bounds_is_a_failed_entry() {
    for (what, components) in [
        ("too long", components(66_000)),
        ("1,024", vec!["d".to_owned(); 1023]),
        ("1,024", vec!["d".to_owned(); 1500]),
    ] {
        for get in [false, true] {
            let (from, to) = (Deep::new(), Deep::new());
            let folder = walk(&from.0, &tree_of(&components), true).unwrap();
            fs::write(within(&folder, "leaf"), "too far").unwrap();
            fs::write(from.0.join("tree/near"), "it arrived").unwrap();
            let out = transfer(get, &from, &to, &[], Vec::new()).expect(3);
            assert!(out.to_string().contains(what), "{out}");
            assert_eq!(out.number("files_failed"), 1, "{out}");
            assert_eq!(fs::read_to_string(to.0.join("tree/near")).unwrap(), "it arrived");
        }
    }
}

/// The longest and deepest that there may be, with few descriptors: none of them is kept open for
/// each level.
#[test]
fn a_deep_tree_needs_few_descriptors() {
    for get in [false, true] {
        let (from, to) = (Deep::new(), Deep::new());
        let components = vec!["d".to_owned(); 1022];
        let folder = walk(&from.0, &tree_of(&components), true).unwrap();
        fs::write(within(&folder, "leaf"), "it arrived").unwrap();
        for depth in (0..1022).step_by(100) {
            let folder = walk(&from.0, &tree_of(&components[..depth]), false).unwrap();
            fs::write(within(&folder, "after"), "coming back").unwrap();
        }
        transfer(get, &from, &to, &[], args!["prlimit", "--nofile=100:100"]).expect(0);
        assert_leaf(&to, &components, "it arrived");
        let folder = walk(&to.0, &tree_of(&components[..900]), false).unwrap();
        assert_eq!(fs::read_to_string(within(&folder, "after")).unwrap(), "coming back");
    }
}

/// A path may become too long, or too deep, by the place that it goes to.
#[test]
fn a_path_that_becomes_too_long_where_it_goes_is_a_failed_entry() {
    let (from, to) = (Deep::new(), Deep::new());
    let components = components(65_500);
    let folder = walk(&from.0, &tree_of(&components), true).unwrap();
    fs::write(within(&folder, "leaf"), "too far").unwrap();
    fs::write(from.0.join("tree/near"), "it arrived").unwrap();
    let server = serve(&to.0, &[]);
    let out = client(args!["send", from.0.join("tree"), server.target(format!("{}/", "x".repeat(100)))]);
    let out = out.expect(3);
    assert!(out.to_string().contains("too long"), "{out}");
    assert!(to.0.join("x".repeat(100)).join("tree/near").exists());
}

/// An interrupted transfer goes on, however long the path is.
#[test]
fn an_interrupted_transfer_of_a_long_path_is_resumed() {
    for get in [false, true] {
        let (from, to) = (Deep::new(), Deep::new());
        let components = components(30_000);
        let folder = walk(&from.0, &tree_of(&components), true).unwrap();
        fs::write(within(&folder, "leaf"), fill(24 * MIB, 1)).unwrap();
        let mut server = serve(if get { &from.0 } else { &to.0 }, &[]);
        let command = |target: &dyn Fn(&str) -> std::ffi::OsString| match get {
            true => args!["get", "--retries", "0", target("tree"), to.0],
            false => args!["send", "--retries", "0", from.0.join("tree"), target("")],
        };
        let proxy = Proxy::to(server.port);
        proxy.hold_at(16 * MIB);
        let run = fastdrop(command(&|path| proxy.target(path))).json().start();
        proxy.wait_held();
        run.kill9();
        proxy.cut_all();
        server.wait_idle();
        let again = client(command(&|path| server.target(path))).expect(0);
        assert!(again.number("bytes_sent") < 20 * MIB, "{again}");
        let there = walk(&to.0, &tree_of(&components), false).unwrap();
        assert!(fs::read(within(&there, "leaf")).unwrap() == fill(24 * MIB, 1));
        assert!(server.is_running());
    }
}
