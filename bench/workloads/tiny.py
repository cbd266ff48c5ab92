"""A file of ten bytes: what a transfer costs before its first byte, from starting the client to its exit."""

import statistics

import files
import plots
from rounds import interleave, stage
from sections import Plot, Section, Table, pair_ratios, ratio_and_wins, runs_by_case
from servers import FastDrop, GridFtp, Nginx, Rsync
from workloads.copies import HEADROOM, MAIN_CONGESTION, case_list, case_text

BYTES = 10
# A round takes a fraction of a second, and a millisecond is easily disturbed.
ROUNDS = 200
QUICK_ROUNDS = 40


def run(bench):
    with stage(bench, bench.folder, HEADROOM, MAIN_CONGESTION) as here:
        files.write_random(here.source("tiny"), BYTES)
        rounds = bench.scaled(QUICK_ROUNDS if bench.quick else ROUNDS)
        return interleave(here, make_cases(here), rounds, quiet=True) | {"bytes": BYTES}


def make_cases(here):
    cases, add = case_list(here, "tiny", BYTES)
    source, target = here.source("tiny"), here.target("tiny")
    add("cp", ["cp", source, target])
    drop = here.server(FastDrop)
    add("fastdrop send", drop.send(source, "to"), drop, sends=True)
    add("fastdrop get", drop.get("from/tiny", here.targets), drop)
    if here.has("nginx"):
        nginx = here.server(Nginx)
        add("nginx + curl", nginx.curl("from/tiny", target), nginx)
    if here.has("gridftp"):
        ftp = here.server(GridFtp)
        add("GridFTP get", ftp.get(source, target), ftp)
    if here.has("rsync"):
        rsync = here.server(Rsync)
        add("rsync to a daemon", rsync.push(source, "to"), rsync, sends=True)
    return cases


def section(record):
    runs = runs_by_case(record)
    # Without nginx there is still `cp` to compare with.
    base = "nginx + curl" if "nginx + curl" in runs else "cp"
    rows, bars = [], []
    for name, its in runs.items():
        ms = sorted(run["seconds"] * 1000 for run in its)
        middle = statistics.median(ms)
        row = [case_text(name), f"{ms[0]:.2f} / **{middle:.2f}** / {ms[len(ms) * 95 // 100]:.2f} / {ms[-1]:.2f}"]
        row.append("" if name == base else ratio_and_wins(pair_ratios(its, runs[base])))
        row.append(f"{1000 * statistics.mean(run['client_cpu'] for run in its):.2f}")
        # The kernel tells a server's CPU time in hundredths of a second, so only its mean says something.
        row.append(f"{1000 * statistics.mean(run['server_cpu'] for run in its):.2f}" if "server_cpu" in its[0] else "")
        rows.append(row)
        bars.append(plots.Bar(name, middle, ms[len(ms) * 5 // 100], ms[len(ms) * 95 // 100], name.startswith("fastdrop"), name == base))
    heads = ["", "ms, min / **median** / 95 % / max", f"× {base}, won", "CPU ms, client (mean)", "server (mean)"]
    title = f"A file of {record['bytes']} bytes"
    svg = plots.bars(title, "milliseconds of the whole client process: median, and 5 % to 95 %", sorted(bars, key=lambda bar: bar.value))
    text = f"The whole client process, {record['rounds']} rounds."
    return Section(title, [text, Table(heads, rows), Plot("tiny", svg, "Bars of the milliseconds that each client took")])
