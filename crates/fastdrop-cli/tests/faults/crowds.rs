//! Many clients at once, and one that does not read.

use crate::support::*;
use std::fs;
use std::path::PathBuf;

/// Fifty clients at once, each with a file of its own.
#[test]
fn fifty_clients_at_once_are_all_served() {
    let (served, own) = (scratch(), scratch());
    let server = serve(served.path(), &[]);
    let sources: Vec<PathBuf> = (0..50).map(|n| own.path().join(format!("file-{n}"))).collect();
    for (n, source) in sources.iter().enumerate() {
        write_file(source, MIB + n as u64, n as u64);
    }
    let runs: Vec<Running> = sources
        .iter()
        .map(|source| fastdrop(args!["send", source, server.target("")]).json().start())
        .collect();
    for run in runs {
        run.wait().expect(0);
    }
    assert_same_contents(own.path(), served.path());
    assert_eq!(leftovers(served.path()), [] as [PathBuf; 0]);
}

/// Case 31: eight clients, one name, eight contents: one wins, the others are told, and it is the
/// winner's, whole.
#[test]
fn case_31_one_of_many_clients_wins_a_name() {
    let (served, own) = (scratch(), scratch());
    let server = serve(served.path(), &[]);
    for round in 0..3 {
        let name = format!("contested-{round}");
        let sources: Vec<PathBuf> = (0..8).map(|n| own.path().join(format!("{n}/{name}"))).collect();
        for (n, source) in sources.iter().enumerate() {
            write_file(source, 4 * MIB, 100 * round + n as u64);
            set_mtime(source, 1_000_000_000 + n as i64, 0);
        }
        let runs: Vec<Running> = sources
            .iter()
            .map(|source| fastdrop(args!["send", source, server.target("")]).json().start())
            .collect();
        let outs: Vec<Output> = runs.into_iter().map(|run| run.wait()).collect();
        let (winners, losers): (Vec<usize>, Vec<usize>) = (0..8).partition(|&n| outs[n].code() == 0);
        assert_eq!(winners.len(), 1, "{winners:?} have been told that theirs is there");
        losers.iter().for_each(|&n| assert_eq!(outs[n].code(), 9, "{}", outs[n]));
        assert_same_file(&sources[winners[0]], &server.path(&name));
    }
}

/// Case 97: a reader that stops reading costs the server no memory and keeps nobody out.
#[test]
fn case_97_a_reader_that_stops_costs_little() {
    let (served, own) = (scratch(), scratch());
    write_file(&served.path().join("big"), 200 * MIB, 1);
    let mut server = serve(served.path(), &[]);
    let proxy = Proxy::to(server.port);
    proxy.hold_at(10 * MIB);
    let runs: Vec<Running> = (0..3)
        .map(|n| {
            fastdrop(args!["get", "--streams", "2", proxy.target("big"), own.path().join(n.to_string())])
                .start()
        })
        .collect();
    proxy.wait_held();
    server.assert_serves("readers that stopped");
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let mib = peak.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10;
    assert!(mib < 150, "{mib} MiB for readers that do not read");
    drop(runs);
}
