//! Standard input and output, and lists.

use crate::served_and_own;
use crate::support::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

/// `-` is standard input and output, of any length, known ahead or not.
#[test]
fn standard_input_and_output_carry_everything() {
    let (served, _own) = served_and_own();
    let server = serve(served.path(), &[]);
    for size in [0, 10, 1_048_576, 1_048_577, 20 * MIB] {
        let bytes = fill(size, size);
        let name = format!("from-stdin-{size}");
        let out =
            fastdrop(args!["send", "-", server.target(&name)]).json().stdin(bytes.clone()).run().expect(0);
        assert_eq!(out.number("bytes_sent"), size, "{out}");
        assert!(fs::read(server.path(&name)).unwrap() == bytes, "{size} bytes from standard input");
        let out = plain(args!["get", server.target(&name), "-"]).expect(0);
        assert!(out.stdout == bytes, "{size} bytes to standard output, but {} came", out.stdout.len());
    }
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0]);
}

/// `send - HOST/p` writes the file `p`, also where folders are missing, and never replaces a
/// folder.
#[test]
fn standard_input_always_writes_the_named_file() {
    let (served, _own) = served_and_own();
    fs::create_dir(served.path().join("folder")).unwrap();
    let server = serve(served.path(), &["--existing", "overwrite"]);
    let send = |target: &str, existing: &str| {
        fastdrop(args!["send", "--existing", existing, "-", server.target(target)])
            .json()
            .stdin("some text")
            .run()
    };
    send("a/b/c", "error").expect(0);
    assert_eq!(fs::read(server.path("a/b/c")).unwrap(), b"some text");
    send("a/b/c", "overwrite").expect(0);
    send("folder", "overwrite").expect(9);
    assert_eq!(names_in(&server.path("folder")), [] as [&str; 0]);
    // Without a path there is no name to give.
    send("", "error").expect(2);
}

/// A folder cannot go to standard output.
#[test]
fn getting_a_folder_to_standard_output_is_refused() {
    let (served, _own) = served_and_own();
    small_tree(&served.path().join("tree"), 1, 2, 1);
    let server = serve(served.path(), &[]);
    let out = plain(args!["get", server.target("tree"), "-"]).expect(9);
    assert_eq!(out.stdout, b"");
}

/// A listing shows each name of one level with its size, and not our own folder.
#[test]
fn list_shows_what_is_there() {
    let (served, _own) = served_and_own();
    write_file(&served.path().join("file.bin"), 12_345, 1);
    write_file(&served.path().join("folder/inside"), 10, 1);
    fs::create_dir(served.path().join(".fastdrop")).unwrap();
    symlink("file.bin", served.path().join("link")).unwrap();
    let server = serve(served.path(), &[]);
    let out = plain(args!["list", server.target("")]).expect(0);
    let text = out.text();
    for name in ["file.bin", "folder", "link"] {
        assert!(text.lines().any(|line| line.contains(name)), "{name} is missing:\n{text}");
    }
    assert!(!text.contains("inside") && !text.contains(".fastdrop"), "{text}");
    assert_eq!(plain(args!["ls", server.target("")]).expect(0).text(), text);

    let out = client(args!["list", server.target("")]).expect(0);
    let entry = |name: &str| {
        let named =
            |e: &&serde_json::Value| e["path"].as_str() == Some(name) || e["name"].as_str() == Some(name);
        out.events.iter().find(named).unwrap_or_else(|| panic!("no event for {name}\n{out}"))
    };
    assert_eq!(entry("file.bin")["size"], 12_345, "{out}");
    entry("folder");
    entry("link");
    assert!(!out.text().contains(".fastdrop"), "{out}");
    let out = plain(args!["list", server.target("folder")]).expect(0);
    assert!(out.text().contains("inside") && !out.text().contains("file.bin"), "{out}");
}

/// Our own folder is neither listed nor to be got, whatever lies in it.
#[test]
fn our_own_folder_is_not_served() {
    let (served, own) = served_and_own();
    write_file(&served.path().join(".fastdrop/secret/data"), 10, 1);
    write_file(&served.path().join("file"), 10, 1);
    let server = serve(served.path(), &[]);
    client(args!["get", server.target(""), own.path().join("all")]).expect(0);
    assert_eq!(leftovers(own.path()), [] as [PathBuf; 0]);
    assert_eq!(names_in(&own.path().join("all")), ["file"]);
    client(args!["get", server.target(".fastdrop/secret/data"), own.path().join("x")]).expect(9);
    client(args!["list", server.target(".fastdrop")]).expect(9);
    client(args!["send", own.path().join("all/file"), server.target(".fastdrop/secret/data2")]).expect(9);
    assert_eq!(names_in(&served.path().join(".fastdrop/secret")), ["data"]);
}
