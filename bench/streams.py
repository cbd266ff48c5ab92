#!/usr/bin/env python3
"""How many streams are best, and how close `--streams auto` comes to it.

    cargo build --release
    python3 bench/streams.py [--rounds N] [--paths loopback,10,100,100-lossy] [--json-out FILE]

Sends one file of random bytes from memory to memory with each number of streams and with
`auto`, over loopback and over simulated links (see link.py, which needs root). In every round
every number runs once, in a new order. A link is made anew for each run, and all runs of a
round lose the same packets by their number. The goodput is the file's size over the time from starting
the program to its exit, so it includes connecting, slow start and the commit.

The best fixed number is the one with the highest median, found afterwards; `auto` has to
find it while it runs. Noise alone makes the best of several look better than it is.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import sys

# Running a benchmark leaves nothing behind in the source tree.
sys.dont_write_bytecode = True

import files
import link as links
import programs
from files import MIB
from processes import PATIENCE_SECONDS, BenchError, measure, note, run_main
from rounds import clean_env
from sections import describe_summaries
from servers import FastDrop

FIXED = ["1", "2", "4", "8", "16"]
AUTO = "auto"
# Files beneath this size end before slow start does at 100 ms.
LINK_FILE_BYTES_MIN = 16 * MIB
# A run that takes this many times as long as the link's rate would need is given up.
PATIENCE = 8
# Above this share of late packets the forwarder shaped the traffic, not the link.
LATE_SHARE_MAX = 0.01


class Path:
    """One way from sender to receiver; `rtt_ms` is None for loopback."""

    def __init__(self, name, rtt_ms=None, loss=0.0):
        self.name, self.rtt_ms, self.loss = name, rtt_ms, loss

    def size(self, args):
        if self.rtt_ms is None:
            return args.size * MIB
        return max(int(args.rate * 1e6 / 8 * args.seconds), LINK_FILE_BYTES_MIN)

    def describe(self, args):
        if self.rtt_ms is None:
            return self.name
        return f"{self.rtt_ms} ms, {args.rate:g} Mbit/s, loss {100 * self.loss:g} %"


PATHS = [Path("loopback"), Path("10", 10), Path("100", 100), Path("100-lossy", 100, 0.001)]


def run_once(folder, env, path, streams, args, seed):
    """One transfer on a server and, unless over loopback, a link of its own."""
    root, logs = (os.path.join(folder, name) for name in ("root", "logs"))
    settings = os.path.join(folder, "server")
    size = path.size(args)
    source = os.path.join(folder, f"{size}.bin")
    target = os.path.join(root, os.path.basename(source))
    files.ballast(os.path.join(folder, "ballast"), size)
    with contextlib.ExitStack() as stack:
        link = None
        if path.rtt_ms is None:
            server = FastDrop(root, settings, env)
            client_host = contextlib.nullcontext()
            timeout = PATIENCE_SECONDS
        else:
            link = stack.enter_context(links.Link(path.rtt_ms / 2, args.rate, path.loss, None, args.mtu, seed))
            with link.on_server():
                server = FastDrop(root, settings, env, link.server_addr)
            client_host = link.on_client()
            timeout = PATIENCE * max(size * 8 / (args.rate * 1e6), 1)
        stack.callback(server.stop)
        server_cpu = server.tree.cpu_seconds()
        with client_host:
            run = measure(server.send(source, "", "--streams", streams), logs, env, server.tree, timeout)
        if run.code == 0:
            files.check_same(source, target)
        elif run.code is not None:
            raise BenchError(
                f"--streams {streams} over {path.name} ended with {run.code}:\n{run.stderr.strip()}"
                f"\nserver:\n{server.log()}"
            )
        result = {
            "path": path.name,
            "streams": streams,
            "bytes": size,
            "seconds": run.seconds,
            "finished": run.code == 0,
            "mbit": size * 8 / 1e6 / run.seconds,
            "client_cpu": run.cpu,
            "client_rss": run.rss,
            "server_cpu": server.tree.cpu_seconds() - server_cpu,
            "server_rss": server.tree.rss,
            "summary": run.summary(),
        }
        if link:
            result["link"] = link.stats()
    # After an unfinished run there are a journal and parts, too.
    for left in [settings, *(os.path.join(root, name) for name in os.listdir(root))]:
        files.remove(left)
    return result


def report(paths, results, args):
    width = max(len(path.describe(args)) for path in paths)
    heads = [*FIXED, AUTO]
    lines = [
        f"{'median goodput, Mbit/s':{width}}" + "".join(f"  {head:>8}" for head in heads) + "   best  auto/best   pairs   won",
    ]
    notes = []
    for path in paths:
        runs = {head: [r for r in results if r["path"] == path.name and r["streams"] == head] for head in heads}
        medians = {head: statistics.median(r["mbit"] for r in runs[head]) for head in heads}
        best = max(FIXED, key=medians.get)
        in_best = {r["round"]: r["mbit"] for r in runs[best]}
        pairs = [r["mbit"] / in_best[r["round"]] for r in runs[AUTO]]
        row = f"{path.describe(args):{width}}"
        for head in heads:
            # A run that was given up was slower than its figure says.
            mark = "" if all(r["finished"] for r in runs[head]) else "<"
            row += f"  {mark + format(medians[head], '.0f'):>8}"
        row += f"  {best:>5}  {medians[AUTO] / medians[best]:9.2f}  {statistics.median(pairs):6.2f}"
        row += f"  {sum(p > 1 for p in pairs)}/{len(pairs)}"
        lines.append(row)
        notes.append(f"{path.describe(args)}, auto: {describe_summaries([r['summary'] for r in runs[AUTO]])}")
        if path.rtt_ms is not None:
            shares = [late_share(r["link"]) for head in heads for r in runs[head]]
            if max(shares) > LATE_SHARE_MAX:
                slow = sum(share > LATE_SHARE_MAX for share in shares)
                notes.append(
                    f"{path.describe(args)}: in {slow} of {len(shares)} runs over {LATE_SHARE_MAX:.0%} of the packets came late;"
                    " the processor was too busy for the simulated link, so take a lower --rate"
                )
    lines.append("pairs: median of auto / best in the same round; <: given up as too slow, at most this")
    return "\n".join([*lines, "", *notes])


def late_share(stats):
    return sum(s["late"] for s in stats.values()) / max(sum(s["packets"] for s in stats.values()), 1)


def parse_args():
    parser = argparse.ArgumentParser(description="How many streams are best, and how close auto comes to it.")
    names = ",".join(path.name for path in PATHS)
    parser.add_argument("--fastdrop", default=programs.DEFAULT_BINARY, metavar="PATH", help="default: target/release/fastdrop")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default 5")
    parser.add_argument("--paths", default=names, help=f"default {names}")
    parser.add_argument("--rate", type=float, default=250, metavar="MBIT", help="of the links, 10^6 bits a second (default 250)")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="a link's file is what its rate carries in S (default 10)")
    parser.add_argument("--mtu", type=int, default=1500, help="of the links (default 1500)")
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="of the file over loopback (default 2048)")
    parser.add_argument("--dir", default="/dev/shm", help="a folder in memory (default /dev/shm)")
    parser.add_argument("--json-out", metavar="FILE", help="write every run's figures there")
    args = parser.parse_args()
    wanted = args.paths.split(",")
    args.paths = [path for path in PATHS if path.name in wanted]
    if len(args.paths) != len(set(wanted)):
        parser.error(f"--paths takes some of {names}")
    if args.rounds < 1 or args.size < 1 or args.rate <= 0 or args.seconds <= 0:
        parser.error("--rounds, --size, --rate and --seconds are above 0")
    return args


def bench(args):
    FastDrop.binary = programs.find_binary(args.fastdrop)
    if any(path.rtt_ms is not None for path in args.paths):
        # Says now, not after the first minutes, if links cannot be made here.
        try:
            with links.Link(mtu=args.mtu):
                pass
        except links.LinkError as error:
            raise BenchError(f"{error}; --paths loopback works without") from error
    sizes = {path.size(args) for path in args.paths}
    results = []
    with files.work_folder(args.dir, sum(sizes) + max(sizes) + 512 * MIB) as folder:
        for name in ("root", "logs", "home"):
            os.mkdir(os.path.join(folder, name))
        env = clean_env(os.path.join(folder, "home"))
        for size in sizes:
            files.write_random(os.path.join(folder, f"{size}.bin"), size)
        note("warm-up")
        run_once(folder, env, min(args.paths, key=lambda path: path.rtt_ms or 0), AUTO, args, 0)
        for number in range(1, args.rounds + 1):
            for path in args.paths:
                took = []
                for streams in random.sample([*FIXED, AUTO], len(FIXED) + 1):
                    result = run_once(folder, env, path, streams, args, number)
                    results.append({"round": number, **result})
                    took.append(f"{streams}: {result['mbit']:.0f}")
                note(f"round {number} of {args.rounds}, {path.describe(args)}, Mbit/s: {', '.join(took)}")
    machine = programs.describe(programs.machine())
    print(machine)
    print(f"{args.rounds} rounds; links with an MTU of {args.mtu} and a queue of one bandwidth-delay product")
    print()
    print(report(args.paths, results, args))
    if args.json_out:
        with open(args.json_out, "w") as file:
            json.dump({"machine": machine, "rate_mbit": args.rate, "mtu": args.mtu, "runs": results}, file, indent=1)


if __name__ == "__main__":
    sys.exit(run_main(lambda: bench(parse_args())))
