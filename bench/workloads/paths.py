"""Long paths: a simulated link with a delay and losses, and how much of it each program uses."""

import contextlib
import random
import statistics

import files
import link
import plots
from processes import BenchError, measure, note
from rounds import CongestionSeen, Stage
from sections import Plot, Section, Table
from servers import FastDrop, Nginx, Rsync

RATE_MBIT = 100
RTT_MS = 100
LOSSES = (0, 0.001, 0.01)
# The file is what the link carries in this time.
LINK_SECONDS = 16
# Who takes so many times as long is stopped.
PATIENCE = 8
# More than this share of late packets, and the forwarder was the path, not the link.
LATE_SHARE_MAX = 0.01
# A run takes up to a minute, and a simulated link varies less than a processor.
ROUNDS = 3


def run(bench):
    return run_paths(bench, "bbr")


def run_cubic(bench):
    return run_paths(bench, "cubic")


def run_paths(bench, congestion):
    size = bench.scaled(RATE_MBIT * 1_000_000 // 8 * LINK_SECONDS)
    rounds = min(bench.rounds, ROUNDS)
    names = ["fastdrop send", "fastdrop get"]
    names += ["nginx + curl"] if "nginx" in bench.peers else []
    names += ["rsync to a daemon"] if "rsync" in bench.peers else []
    runs, seen = [], {}
    for number in range(1, rounds + 1):
        for loss in LOSSES:
            took = []
            for name in random.sample(names, len(names)):
                result = run_once(bench, name, size, loss, number, congestion)
                seen.setdefault(name, set()).update(result.pop("congestion_seen"))
                runs.append({"round": number, "case": name, "loss": loss, **result})
                took.append(f"{name} {result['share']:.0%}")
            note(f"round {number} of {rounds}, loss {100 * loss:g} %: {', '.join(took)}")
    return {
        "rounds": rounds,
        "bytes": size,
        "rate_mbit": RATE_MBIT,
        "rtt_ms": RTT_MS,
        "congestion": congestion,
        "congestion_seen": {name: sorted(found) for name, found in seen.items()},
        "runs": runs,
    }


def run_once(bench, name, size, loss, seed, congestion):
    """One transfer over a link of its own; all runs of a round lose the same packets by their number."""
    with files.work_folder(bench.folder, 3 * size) as folder, contextlib.ExitStack() as stack:
        try:
            wire = stack.enter_context(link.Link(RTT_MS / 2, RATE_MBIT, loss, seed=seed, congestion=congestion))
        except link.LinkError as error:
            raise BenchError(str(error)) from error
        here = Stage(bench, folder, congestion, stack)
        files.write_random(here.source("big"), size)
        with wire.on_server():
            argv = command(here, name, wire.server_addr)
        # Not before the connection has settled on one.
        seen = CongestionSeen(pause=0.5)
        timeout = PATIENCE * size * 8 / (RATE_MBIT * 1e6)
        with wire.on_client():
            run = measure(argv, here.output, here.env, timeout=timeout, watch=seen.look)
        if run.code not in (0, None):
            raise BenchError(f"{name} over the link ended with {run.code}:\n{run.stderr.strip()}")
        if run.code == 0:
            files.check_same(here.source("big"), here.target("big"))
        stats = wire.stats()
        finished = run.code == 0
        # What did not end moved no more than the link delivered, and what would have fitted.
        moved = size if finished else min(size, max(stats[way]["bytes"] for way in stats))
        packets = sum(way["packets"] for way in stats.values())
        return {
            "seconds": run.seconds,
            "finished": finished,
            "share": moved * 8 / (run.seconds * RATE_MBIT * 1e6),
            "client_cpu": run.cpu,
            "late": sum(way["late"] for way in stats.values()) / max(packets, 1),
            "summary": run.summary(),
            "congestion_seen": seen.names,
        }


def command(here, name, addr):
    """Starts the server on its end of the link and returns the client's command."""
    source, target = here.source("big"), here.target("big")
    if name == "fastdrop send":
        return here.server(FastDrop, addr).send(source, "to")
    if name == "fastdrop get":
        return here.server(FastDrop, addr).get("from/big", here.targets)
    if name == "nginx + curl":
        return here.server(Nginx, addr).curl("from/big", target)
    return here.server(Rsync, addr).push(source, "to")


def section(record):
    names = list(dict.fromkeys(run["case"] for run in record["runs"]))
    losses = list(dict.fromkeys(run["loss"] for run in record["runs"]))
    rows, series = [], []
    for name in sorted(names):
        row = [f"**`{name}`**" if name.startswith("fastdrop") else name, ", ".join(record["congestion_seen"].get(name, []))]
        medians = []
        for loss in losses:
            its = [run for run in record["runs"] if run["case"] == name and run["loss"] == loss]
            shares = [run["share"] for run in its]
            middle = statistics.median(shares)
            mark = "" if all(run["finished"] for run in its) else "< "
            row.append(f"{mark}{min(shares):.1%} / **{middle:.1%}** / {max(shares):.1%}")
            medians.append((100 * middle, f"{mark}{100 * middle:.1f}"))
        rows.append(row)
        series.append((name, medians))
    heads = ["", "congestion control", *(f"loss {100 * loss:g} %" for loss in losses)]
    default = record["congestion"]
    title = f"{record['rate_mbit']} Mbit/s and {record['rtt_ms']} ms round trip, {default} by default"
    text = (
        f"A simulated link (`bench/link.py`) with a queue of one bandwidth-delay product; goodput as a share of the line,"
        f" min / median / max of {record['rounds']} rounds, for a file of {record['bytes'] / 1e6:g} MB, connecting, slow start and"
        f" commit included. `<`: given up at {PATIENCE} times the line's own time, and at most this."
    )
    late = sum(run["late"] > LATE_SHARE_MAX for run in record["runs"])
    if late:
        text += f" In {late} of {len(record['runs'])} runs over {LATE_SHARE_MAX:.0%} of the packets came late:"
        text += " the processor was too busy for the link."
    svg = plots.groups(title, "share of the line in percent, median", [f"{100 * loss:g} % loss" for loss in losses], series)
    return Section(title, [text, Table(heads, rows), Plot(record["part"], svg, f"Share of the line that each program used: {title}")])
