"""Many at once: 64 clients against one that moves as much, and idle connections."""

import os
import random
import resource
import shlex
import socket
import statistics
import time

import files
from files import KIB, MIB
from processes import BenchError, measure_together, note
from rounds import stage
from sections import Section, Table, min_median_max, size_text
from servers import FastDrop, Nginx
from workloads.copies import HEADROOM, MAIN_CONGESTION

CLIENTS = 64
BYTES_EACH = 32 * MIB
IDLE = 1000
# When a server's memory has not changed for so long, it has taken in all that came.
SETTLED_SECONDS = 0.5
SETTLED_SECONDS_MAX = 10


def run(bench):
    each = bench.scaled(BYTES_EACH)
    total = CLIENTS * each
    raise_file_limit()
    with stage(bench, bench.folder, 2 * total + each + HEADROOM, MAIN_CONGESTION) as here:
        files.write_random(here.source("each"), each)
        files.write_random(here.source("all"), total)
        for number in range(CLIENTS):
            os.mkdir(here.target(str(number)))
        ways = make_ways(here)
        runs = []
        for number in range(bench.rounds + 1):
            took = []
            for name, many in random.sample([(name, many) for name in ways for many in (True, False)], 2 * len(ways)):
                result = run_way(here, *ways[name], many, total)
                took.append(f"{name}, {CLIENTS if many else 1}: {result['seconds']:.2f}")
                if number > 0:
                    runs.append({"round": number, "case": name, "many": many, **result})
            note(f"{f'round {number} of {bench.rounds}' if number else 'warm-up'}: {', '.join(took)}")
        idle = {kind.__name__: idle_growth(here.server(kind)) for kind in idle_kinds(here)}
        return {"rounds": bench.rounds, "clients": CLIENTS, "bytes": total, "runs": runs, "idle": idle, "connections": IDLE}


def make_ways(here):
    """For each way the server, and the command for a source and the number of a folder for its result."""
    drop = here.server(FastDrop)
    ways = {
        "fastdrop send": (drop, lambda name, number: drop.send(here.source(name), f"to/{number}")),
        "fastdrop get": (drop, lambda name, number: drop.get(f"from/{name}", here.target(number))),
    }
    if here.has("nginx"):
        nginx = here.server(Nginx)
        ways["nginx + curl"] = (nginx, lambda name, number: nginx.curl(f"from/{name}", here.target(f"{number}/{name}")))
    return ways


def run_way(here, server, command, many, total):
    """All clients at once with a part each, or one with everything."""
    name, count = ("each", CLIENTS) if many else ("all", 1)
    files.ballast(os.path.join(here.folder, "ballast"), total)
    server.tree.reset_peak()
    cpu = server.tree.cpu_seconds()
    runs = measure_together([command(name, str(number)) for number in range(count)], here.output, here.env, server.tree)
    for number, run in enumerate(runs):
        if run.code != 0:
            argv = shlex.join(command(name, str(number)))
            raise BenchError(f"`{argv}` ended with {run.code}:\n{run.stderr.strip()}\nserver:\n{server.log()}")
        target = here.target(f"{number}/{name}")
        files.check_same(here.source(name), target)
        files.remove(target)
    seconds = [run.seconds for run in runs]
    return {
        "seconds": max(run.end for run in runs) - min(run.start for run in runs),
        "slowest": max(seconds) / statistics.median(seconds),
        "client_cpu": sum(run.cpu for run in runs),
        "server_cpu": server.tree.cpu_seconds() - cpu,
        "server_rss": server.tree.rss,
    }


def raise_file_limit():
    """Servers inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE + 200
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def idle_kinds(here):
    return [FastDrop, *([Nginx] if here.has("nginx") else [])]


def idle_growth(server):
    """What connections that say nothing cost the server, once it has accepted what it wants to."""
    before, files_before = server.tree.resident(), open_files(server.tree)
    connections = []
    try:
        for _ in range(IDLE):
            connections.append(socket.create_connection((server.addr, server.port), 10))
        settle(server.tree)
        return {"growth": server.tree.resident() - before, "accepted": open_files(server.tree) - files_before}
    finally:
        for connection in connections:
            connection.close()
        settle(server.tree)


def open_files(tree):
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in tree.pids())


def settle(tree):
    end = time.monotonic() + SETTLED_SECONDS_MAX
    last, since = None, time.monotonic()
    while time.monotonic() < end and time.monotonic() - since < SETTLED_SECONDS:
        now = (tree.resident(), open_files(tree))
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.02)


def section(record):
    rows = []
    for name in sorted({run["case"] for run in record["runs"]}):
        one = {run["round"]: run for run in record["runs"] if run["case"] == name and not run["many"]}
        many = [run for run in record["runs"] if run["case"] == name and run["many"]]
        ratios = [one[run["round"]]["seconds"] / run["seconds"] for run in many]
        rows.append(
            [
                f"`{name}`",
                min_median_max([run["seconds"] for run in one.values()]),
                min_median_max([run["seconds"] for run in many]),
                f"**{statistics.median(ratios):.2f}**",
                f"{statistics.median(run['slowest'] for run in many):.2f}",
                f"{statistics.median(run['client_cpu'] + run['server_cpu'] for run in many):.2f}",
                f"{max(run['server_rss'] for run in many) / MIB:.0f}",
            ]
        )
    count, total = record["clients"], record["bytes"]
    heads = ["", "one client, s", f"{count} at once, s", "throughput × one", "slowest ÷ median", "CPU s, both sides", "server's peak MiB"]
    text = (
        f"{count} clients at the same time, each with {size_text(total // count)}, against one with {size_text(total)};"
        f" {record['rounds']} rounds."
    )
    return Section("Many at once", [text, Table(heads, rows), idle_text(record)])


def idle_text(record):
    words = []
    for name, found in record["idle"].items():
        each = found["growth"] / max(found["accepted"], 1) / KIB
        words.append(f"{name} {found['growth'] / MIB:.1f} MiB, {each:.1f} KiB for each of {found['accepted']} that it accepted")
    return f"{record['connections']:,} idle TCP connections let the server's resident memory grow by: {'; '.join(words)}."
