"""What `--compress` does to the time, with data that shrinks and data that does not, on a fast and on a slow way."""

import statistics

import files
from files import GIB, MIB
from rounds import interleave, stage
from sections import Section, Table, min_median_max, pair_ratios, ratio_and_wins, runs_by_case, size_text
from servers import FastDrop
from workloads.copies import HEADROOM, MAIN_CONGESTION, case_list, where

MODES = ("none", "auto", "zstd")
FAST_BYTES = GIB
SLOW_BYTES = 128 * MIB
LIMIT = "40M"


def run(bench):
    fast, slow = bench.scaled(FAST_BYTES), bench.scaled(SLOW_BYTES)
    with stage(bench, bench.folder, 2 * (fast + slow) + fast + HEADROOM, MAIN_CONGESTION) as here:
        drop = here.server(FastDrop)
        found = []
        for data, write in (("random", files.write_random), ("text", files.write_text)):
            for size, options in ((fast, []), (slow, ["--bwlimit", LIMIT])):
                name = f"{data}-{size}"
                write(here.source(name), size)
                cases, add = case_list(here, name, size)
                what = f"{data}, {size_text(size)}{f', {LIMIT}B/s' if options else ''}"
                for mode in MODES:
                    how = [*options, "--compress", mode]
                    add(f"{what}: send {mode}", drop.send(here.source(name), "to", *how), drop, sends=True)
                for mode in MODES:
                    how = [*options, "--compress", mode]
                    add(f"{what}: get {mode}", drop.get(f"from/{name}", here.targets, *how), drop)
                found += cases
        return interleave(here, found, bench.rounds) | where(here)


def section(record):
    runs = runs_by_case(record)
    rows = []
    for name, its in runs.items():
        what, mode = name.rsplit(" ", 1)
        wire = statistics.median(run["summary"]["bytes_wire"] / run["summary"]["bytes_sent"] for run in its)
        row = [what if mode == MODES[0] else "", f"`{mode}`", min_median_max([run["seconds"] for run in its])]
        row += ["" if mode == base else ratio_and_wins(pair_ratios(its, runs[f"{what} {base}"])) for base in ("none", "zstd")]
        rows.append([*row, f"{100 * wire:.0f}"])
    heads = ["", "`--compress`", "seconds, min / **median** / max", "× `none`, won", "× `zstd`, won", "% on the wire"]
    return Section("Compression", [f"{record['file_system']}, {record['rounds']} rounds.", Table(heads, rows)])
