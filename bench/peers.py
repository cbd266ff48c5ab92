#!/usr/bin/env python3
"""FastDrop against `cp` and its peers: nginx with curl, rclone and aria2c, rsync, GridFTP, scp, XRootD.

    cargo build --release
    python3 bench/peers.py --install --docs       # everything, in two hours; writes docs/BENCHMARKS.md
    python3 bench/peers.py --quick                # ratios in under two minutes
    python3 bench/peers.py --quick --peers none   # only against `cp`
    python3 bench/peers.py --only big,tree --rounds 9 --json-out results.json

How it measures is told in rounds.py. Servers run on this machine, in a network namespace of this
benchmark with its own congestion control, which needs root. With --json-out, what the file holds of
other workloads stays, so parts can be measured one by one; report.py makes the document of it.
"""

import argparse
import datetime
import os
import subprocess
import sys

# Running a benchmark leaves nothing behind in the source tree.
sys.dont_write_bytecode = True

import programs
import report
import results
from files import MIB
from processes import note, run_main
from rounds import Bench
from servers import FastDrop

ROUNDS = 7
QUICK_ROUNDS = 3


def bench(args):
    binary = FastDrop.binary = programs.find_binary(args.fastdrop)
    if args.install:
        programs.install(args.peers)
    found, absent = programs.find(args.peers, [peer for peer in programs.REQUIRED if peer in args.peers])
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    common = {
        "machine": programs.machine(),
        "versions": {"fastdrop": version, **programs.versions(found)},
        "absent": absent,
        "date": datetime.date.today().isoformat(),
    }
    for peer, lacks in absent.items():
        note(f"without {peer}: {lacks} not found")
    big_bytes = args.size * MIB if args.size else None
    setup = Bench(binary, found, args.rounds, args.quick, args.dir, args.disk_dir, big_bytes, args.files, args.shrink)
    records = results.load([args.json_out]) if args.json_out and os.path.exists(args.json_out) else {}
    measured = {}
    for name in args.only:
        note(f"{name}: {results.WORKLOADS[name].what}")
        measured[name] = {"part": name, **common, **results.WORKLOADS[name].run(setup)}
        # After each, so that what took an hour is not lost to what fails in the next.
        if args.json_out:
            results.save(args.json_out, records | measured)
    print(report.as_text(measured))
    if args.docs:
        report.write(records | measured, report.DOCS)


def parse_args():
    parser = argparse.ArgumentParser(
        description="FastDrop against cp and its peers.",
        epilog="workloads: " + "; ".join(f"{name}: {workload.what}" for name, workload in results.WORKLOADS.items()),
    )
    parser.add_argument("--fastdrop", default=programs.DEFAULT_BINARY, metavar="PATH", help="default: target/release/fastdrop")
    parser.add_argument("--only", metavar="NAMES", help="these workloads, separated by commas (default: all)")
    parser.add_argument("--peers", metavar="NAMES", help=f"some of {','.join(programs.PEERS)} (default: all), or none")
    installs = "install peers that are missing, with apt-get; some packages start a service of their own"
    parser.add_argument("--install", action="store_true", help=installs)
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default {ROUNDS}, and {QUICK_ROUNDS} with --quick; long ones take fewer")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer, for a first impression")
    parser.add_argument("--dir", default="/dev/shm", help="a folder in memory (default /dev/shm)")
    parser.add_argument("--disk-dir", default="/var/tmp", help="a folder on a disk (default /var/tmp)")
    parser.add_argument("--json-out", metavar="FILE", help="write every run's figures there, beside what is there of other workloads")
    parser.add_argument("--docs", action="store_true", help="write docs/BENCHMARKS.md and its plots")
    parser.add_argument("--size", type=int, metavar="MIB", help="of the big file")
    parser.add_argument("--files", type=int, metavar="N", help="in the tree")
    parser.add_argument("--shrink", type=int, default=1, metavar="N", help="divide all sizes by N, to try out the benchmark itself")
    args = parser.parse_args()
    usual = [name for name, workload in results.WORKLOADS.items() if workload.quick or not args.quick]
    args.only = chosen(parser, args.only, results.WORKLOADS) if args.only else usual
    usual = programs.REQUIRED if args.quick else list(programs.PEERS)
    args.peers = [] if args.peers == "none" else chosen(parser, args.peers, programs.PEERS) if args.peers else usual
    args.rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    if min(args.rounds, args.shrink, args.size or 1, args.files or 1) < 1:
        parser.error("--rounds, --size, --files and --shrink need at least 1")
    return args


def chosen(parser, names, known):
    for name in names.split(","):
        if name not in known:
            parser.error(f"there is no {name}, only {', '.join(known)}")
    return names.split(",")


if __name__ == "__main__":
    sys.exit(run_main(lambda: bench(parse_args())))
