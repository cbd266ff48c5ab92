"""Resuming: a client killed when nearly all of its file had arrived, and how long the rest takes."""

import os
import random
import statistics

import files
from files import MIB
from processes import BenchError, measure, note
from rounds import Case, run_case, stage
from sections import Section, Table, min_median_max, size_text
from servers import FastDrop
from workloads.copies import HEADROOM, MAIN_CONGESTION, big_bytes

# The client is killed when all but this much has arrived, at a speed at which that can be hit. Chunks on their way do
# not count, so of a small file a few of them have to be missing.
MISSING_SHARE = 0.01
MISSING_BYTES_MIN = 8 * MIB
SECONDS_TO_KILL = 8


def run(bench):
    size = big_bytes(bench)
    with stage(bench, bench.folder, 2 * size + HEADROOM, MAIN_CONGESTION) as here:
        files.write_random(here.source("big"), size)
        drop = here.server(FastDrop)
        case = Case("whole", drop.send(here.source("big"), "to"), here.source("big"), here.target("big"), size, drop, True)
        runs = []
        for number in range(bench.rounds + 1):
            found = {}
            for way in random.sample(["whole", "rest"], 2):
                found[way] = run_whole(here, case) if way == "whole" else run_rest(here, case)
            note(f"round {number}: whole {found['whole']['seconds']:.3f} s, rest {found['rest']['seconds']:.3f} s")
            if number > 0:
                runs.append({"round": number, **found})
        return {"rounds": bench.rounds, "bytes": size, "runs": runs}


def run_whole(here, case):
    result, _ = run_case(here, case)
    files.remove(case.target)
    return result


def run_rest(here, case):
    """Kills a client near its end, then times the one that goes on."""
    files.ballast(os.path.join(here.folder, "ballast"), case.size)
    enough = case.size - missing_bytes(case.size)

    def watch(clients):
        if stored_bytes(here.root) - stored_bytes(here.source("")) >= enough:
            for client in clients:
                client.kill()

    limit = f"{case.size // SECONDS_TO_KILL // MIB}M"
    killed = measure([*case.argv, "--bwlimit", limit], here.output, here.env, watch=watch)
    if killed.code is not None:
        raise BenchError(f"the transfer to be killed ended before that, with {killed.code}:\n{killed.stderr}")
    run = measure(case.argv, here.output, here.env)
    if run.code != 0:
        raise BenchError(f"the transfer did not go on:\n{run.stderr}\nserver:\n{case.server.log()}")
    files.check_same(case.source, case.target)
    files.remove(case.target)
    return {"seconds": run.seconds, "client_cpu": run.cpu, "resumed": run.summary().get("bytes_resumed", 0)}


def missing_bytes(size):
    return max(int(MISSING_SHARE * size), MISSING_BYTES_MIN)


def stored_bytes(folder):
    """What is stored beneath a folder, of unfinished files too, without counting holes."""
    total = 0
    for inner, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(inner, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def section(record):
    runs = record["runs"]
    whole = [run["whole"]["seconds"] for run in runs]
    rest = [run["rest"]["seconds"] for run in runs]
    ratios = [run["rest"]["seconds"] / run["whole"]["seconds"] for run in runs]
    kept = [run["rest"]["resumed"] / record["bytes"] for run in runs]
    rows = [
        ["whole transfer", min_median_max(whole), ""],
        ["the rest", min_median_max(rest), f"**{statistics.median(ratios):.3f}**"],
    ]
    text = (
        f"`fastdrop send` of {size_text(record['bytes'])}, its client ended with SIGKILL when all but"
        f" {missing_bytes(record['bytes']) / MIB:.0f} MiB had arrived;"
        f" then the same command again. What was kept: {min(kept):.1%} to {max(kept):.1%}."
    )
    return Section("Resuming", [text, Table(["", "seconds, min / **median** / max", "× whole"], rows)])
