//! Disks that are full, read-only, slow or broken, and other limits of a system.

use crate::source_file;
use crate::support::wire::{self};
use crate::support::*;
use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Case 83: full before it begins. When there is room, the same command completes.
#[test]
#[ignore = "needs root"]
fn case_83_disk_full_is_507_and_resumes() {
    let (disk, own) = (Mount::tmpfs("size=24m"), scratch());
    let source = source_file(own.path(), 12 * MIB);
    write_file(&disk.path().join("ballast"), 16 * MIB, 1);
    let mut server = serve(disk.path(), &[]);
    client(args!["send", source, server.target("")]).expect(8);
    assert_eq!(names_in(disk.path()), ["ballast"]);
    server.assert_serves("a full disk");
    fs::remove_file(disk.path().join("ballast")).unwrap();
    client(args!["send", source, server.target("")]).expect(0);
    assert_same_file(&source, &server.path("file"));
    assert_eq!(leftovers(disk.path()), [] as [PathBuf; 0]);
}

/// Case 83: it fills up while the transfer runs; what was confirmed is not sent again.
#[test]
#[ignore = "needs root"]
fn case_83_a_disk_that_fills_up_meanwhile_is_507_and_resumes() {
    for stream in [false, true] {
        let (disk, own) = (Mount::tmpfs("size=40m"), scratch());
        let source = source_file(own.path(), 24 * MIB);
        let server = serve(disk.path(), &[]);
        let proxy = Proxy::to(server.port);
        proxy.hold_at(6 * MIB);
        let run = if stream {
            // Of unknown size, so that nobody can have reserved the room.
            fastdrop(args!["send", "-", proxy.target("file")])
                .json()
                .stdin(fs::read(&source).unwrap())
                .start()
        } else {
            fastdrop(args!["send", source, proxy.target("")]).json().start()
        };
        proxy.wait_held();
        fill_up(&disk.path().join("ballast"));
        proxy.resume();
        run.wait().expect(8);
        assert!(!server.path("file").exists());
        fs::remove_file(disk.path().join("ballast")).unwrap();
        if !stream {
            let again = client(args!["send", source, server.target("")]).expect(0);
            assert!(again.number("bytes_sent") <= 24 * MIB, "{again}");
            assert_same_file(&source, &server.path("file"));
            assert_eq!(leftovers(disk.path()), [] as [PathBuf; 0]);
        }
    }
}

/// Case 83: no room for names. When there is, the same command completes.
#[test]
#[ignore = "needs root"]
fn case_83_no_inodes_left_resumes() {
    let (disk, own) = (Mount::tmpfs("size=40m,nr_inodes=100"), scratch());
    let tree = own.path().join("tree");
    small_tree(&tree, 2, 100, 1);
    let server = serve(disk.path(), &[]);
    client(args!["send", tree, server.target("")]).expect(8);
    if server.path("tree").exists() {
        assert_nothing_partial(&tree, &server.path("tree"));
    }
    disk.remount("nr_inodes=2000");
    client(args!["send", tree, server.target("")]).expect(0);
    assert_same_tree(&tree, &server.path("tree"));
}

/// Case 83, here: the disk of a `get` is full.
#[test]
#[ignore = "needs root"]
fn case_83_getting_onto_a_full_disk_is_exit_8_and_resumes() {
    let (disk, served) = (Mount::tmpfs("size=24m"), scratch());
    let source = source_file(served.path(), 12 * MIB);
    write_file(&disk.path().join("ballast"), 16 * MIB, 1);
    let server = serve(served.path(), &[]);
    client(args!["get", server.target("file"), disk.path()]).expect(8);
    assert_eq!(names_in(disk.path()), ["ballast"]);
    fs::remove_file(disk.path().join("ballast")).unwrap();
    client(args!["get", server.target("file"), disk.path()]).expect(0);
    assert_same_file(&source, &disk.path().join("file"));
    assert_eq!(leftovers(disk.path()), [] as [PathBuf; 0]);
}

/// Case 86: a read-only folder can be read from and says why it cannot be written to.
#[test]
#[ignore = "needs root"]
fn case_86_a_read_only_file_system_is_named() {
    let (folder, own) = (scratch(), scratch());
    write_file(&folder.path().join("there"), 2 * MIB, 1);
    let source = source_file(own.path(), 10);
    let mount = Mount::read_only(folder.path());
    let mut server = serve(mount.path(), &[]);
    let out = plain(args!["send", "--progress", "none", source, server.target("")]).expect(9);
    assert!(out.stderr.to_lowercase().contains("read-only"), "{out}");
    client(args!["get", server.target("there"), own.path()]).expect(0);
    assert_same_file(&folder.path().join("there"), &own.path().join("there"));
    assert!(server.is_running());

    // And here.
    let out = plain(args!["get", "--progress", "none", server.target("there"), mount.path().join("copy")]);
    let out = out.expect(9);
    assert!(out.stderr.to_lowercase().contains("read-only"), "{out}");
}

/// Case 86 (EFBIG) and 91 (SIGXFSZ): a limit on the size of files is an error, not the server's
/// death.
#[test]
fn case_86_a_file_size_limit_is_an_error_not_death() {
    let (served, own) = (scratch(), scratch());
    let source = source_file(own.path(), 24 * MIB);
    let limit = (4 * MIB).to_string();
    let mut server = serve_through(served.path(), &[], args!["prlimit", format!("--fsize={limit}:{limit}")]);
    client(args!["send", "--retries", "0", source, server.target("")]).expect(8);
    fastdrop(args!["send", "--retries", "0", "-", server.target("piped")])
        .stdin(fill(24 * MIB, 1))
        .run()
        .expect(8);
    assert_eq!(names_in(served.path()), [] as [&str; 0]);
    server.assert_serves("a file size limit");
}

/// Case 86 (EMFILE): out of descriptors, the accept loop lives on.
#[test]
fn case_86_no_descriptors_left_is_survived() {
    let served = scratch();
    let mut server = serve_through(served.path(), &[], args!["prlimit", "--nofile=48:48"]);
    let idle: Vec<TcpStream> =
        (0..100).filter_map(|_| TcpStream::connect(("127.0.0.1", server.port)).ok()).collect();
    // Some of these make it beyond what the server has descriptors for.
    assert!(idle.len() > 60);
    for mut stream in &idle {
        let _ = stream.write_all(b"GET ");
    }
    drop(idle);
    server.assert_serves("no descriptors");
}

fn strace(log: &Path, inject: &str) -> Vec<std::ffi::OsString> {
    let calls = inject.split(':').next().unwrap();
    let (trace, inject) = (format!("trace={calls}"), format!("inject={inject}"));
    args!["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", log, "-e", trace, "-e", inject]
}

/// A transfer of NextDP whose disk is slow holds up neither another request of its address nor who
/// comes to the port.
#[test]
#[ignore = "needs strace"]
fn a_slow_disk_of_a_nextdp_transfer_holds_up_nobody_else() {
    let (served, own) = (scratch(), scratch());
    let log = own.path().join("strace.log");
    let server = serve_through(served.path(), &[], strace(&log, "pwrite64:delay_enter=8000000"));
    let request = |head: &str| {
        let mut stream = wire::Raw::bare(server.port);
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let began = Instant::now();
    let _spooling = request(
        "POST /upload?chunk_number=1 HTTP/1.1\r\nHost: x\r\nX-Transfer-Id: T\r\nContent-Length: 1\r\n\r\nx",
    );
    eventually("the chunk is written", || {
        fs::read_to_string(&log).ok().filter(|log| log.contains("pwrite64"))
    });
    let _second = request(
        "POST /upload?chunk_number=0 HTTP/1.1\r\nHost: x\r\nX-Transfer-Id: T\r\nX-Filename: f\r\nX-Total-Chunks: 2\r\n\
         Content-Length: 1\r\n\r\nx",
    );
    // By then the server has read the second request, or nobody would be answered either.
    for _ in 0..3 {
        let mut other = request("GET /zz HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(wire::read_answer(&mut other).is_some());
    }
    assert!(began.elapsed() < Duration::from_secs(8), "they waited for the disk: {:?}", began.elapsed());
}

/// Case 84: a sync that fails poisons the attempt, even if the next one works: no success, no name.
#[test]
#[ignore = "needs strace"]
fn case_84_a_failed_sync_is_never_success() {
    for when in ["1", "1+"] {
        let (served, own) = (scratch(), scratch());
        let log = own.path().join("strace.log");
        let inject = format!("fsync,fdatasync,syncfs:error=EIO:when={when}");
        let wrapper = strace(&log, &inject);
        let source = source_file(own.path(), 3 * MIB);
        let mut server = serve_through(served.path(), &[], wrapper);
        client(args!["send", "--retries", "0", source, server.target("")]).expect(1);
        assert!(
            fs::read_to_string(&log).unwrap().contains("INJECTED"),
            "no sync failed: this tested nothing"
        );
        assert!(!server.path("file").exists(), "named although the sync failed");
        assert!(server.is_running());
        // With nothing in the way the same command completes.
        server.kill9();
        let server = serve(served.path(), &[]);
        client(args!["send", source, server.target("")]).expect(0);
        assert_same_file(&source, &server.path("file"));
    }
}

/// Case 84, here: the receiver is the client.
#[test]
#[ignore = "needs strace"]
fn case_84_a_failed_sync_of_the_client_is_never_success() {
    let (served, own) = (scratch(), scratch());
    let log = own.path().join("strace.log");
    let wrapper = strace(&log, "fsync,fdatasync,syncfs:error=EIO:when=1");
    let source = source_file(served.path(), 3 * MIB);
    let server = serve(served.path(), &[]);
    let here = own.path().join("copy");
    fastdrop(args!["get", "--retries", "0", server.target("file"), here]).wrapper(wrapper).run().expect(1);
    assert!(fs::read_to_string(&log).unwrap().contains("INJECTED"), "no sync failed: this tested nothing");
    assert!(!here.exists());
    client(args!["get", server.target("file"), here]).expect(0);
    assert_same_file(&source, &here);
}

/// Case 84: a write that fails is an error, and nothing gets a name.
#[test]
#[ignore = "needs strace"]
fn case_84_a_failed_write_is_an_error() {
    let (served, own) = (scratch(), scratch());
    let log = own.path().join("strace.log");
    let wrapper = strace(&log, "pwrite64,pwritev,pwritev2:error=EIO:when=1+");
    let source = source_file(own.path(), 3 * MIB);
    let mut server = serve_through(served.path(), &[], wrapper);
    client(args!["send", "--retries", "0", source, server.target("")]).expect(1);
    assert!(fs::read_to_string(&log).unwrap().contains("INJECTED"), "no write failed: this tested nothing");
    assert!(!server.path("file").exists());
    client(args!["list", server.target("")]).expect(0);
    assert!(server.is_running());
}

/// Case 85: interrupted writes are completed.
#[test]
#[ignore = "needs strace"]
fn case_85_interrupted_calls_are_repeated() {
    let (served, own) = (scratch(), scratch());
    let log = own.path().join("strace.log");
    let inject = "pwrite64,pwritev,pwritev2,ftruncate,fallocate:error=EINTR:when=2";
    let wrapper = strace(&log, inject);
    let tree = own.path().join("tree");
    write_file(&tree.join("big"), 5 * MIB, 1);
    small_tree(&tree.join("small"), 1, 10, 1);
    let server = serve_through(served.path(), &[], wrapper);
    client(args!["send", tree, server.target("")]).expect(0);
    assert!(
        fs::read_to_string(&log).unwrap().contains("INJECTED"),
        "nothing was interrupted: this tested nothing"
    );
    assert_same_tree(&tree, &server.path("tree"));
}
