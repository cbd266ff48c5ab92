"""Files and trees from one folder to another: FastDrop and its peers against `cp`, in memory and on disk."""

import statistics

import files
import plots
from files import GIB, KIB, MIB
from rounds import Case, interleave, stage
from sections import (
    Plot,
    Section,
    Table,
    describe_summaries,
    min_median_max,
    pair_ratios,
    ratio_and_wins,
    runs_by_case,
    size_text,
)
from servers import FastDrop, GridFtp, Nginx, Rsync, Sshd, Xrootd

BIG_BYTES = 2 * GIB
QUICK_BIG_BYTES = 512 * MIB
TREE_FILES = 10_000
TREE_SIZES = (4 * KIB, 64 * KIB)
MANY_FILES = 100_000
MANY_SIZES = (KIB, KIB)

# How many of the first and of the last files the rate of making them is taken of.
WINDOW = 1000

# Beside sources, one copy or its ballast: what the programs need themselves.
HEADROOM = 512 * MIB

MAIN_CONGESTION = "cubic"


def big(bench):
    """One file in memory, the same congestion control for all."""
    return one_file(bench, bench.folder, MAIN_CONGESTION, big_cases)


def shipped(bench):
    """The same with the kernel's default congestion control."""
    return one_file(bench, bench.folder, None, big_cases)


def disk(bench):
    """One file on a disk, and synced when it counts as done."""
    return one_file(bench, bench.disk_folder, MAIN_CONGESTION, disk_cases)


def one_file(bench, parent, congestion, make_cases):
    size = big_bytes(bench)
    with stage(bench, parent, 2 * size + HEADROOM, congestion) as here:
        files.write_random(here.source("big"), size)
        record = interleave(here, make_cases(here, size), bench.rounds)
        return record | {"bytes": size, **where(here)}


def tree(bench):
    """Ten thousand small files in memory."""
    return many_files(bench, bench.tree_files or bench.scaled(TREE_FILES), TREE_SIZES, tree_cases)


def many(bench):
    """A hundred thousand tiny files in memory, and whether the last ones are as fast as the first."""
    return many_files(bench, bench.scaled(MANY_FILES), MANY_SIZES, many_cases, window_seconds)


def many_files(bench, count, sizes, make_cases, after=None):
    with stage(bench, bench.folder, 2 * count * max(sizes[1], 4 * KIB) + HEADROOM, MAIN_CONGESTION) as here:
        size = files.make_tree(here.source("tree"), count, sizes)
        record = interleave(here, make_cases(here, size), bench.rounds, after)
        return record | {"files": count, "file_bytes": sizes, "bytes": size, **where(here)}


def window_seconds(case, _run):
    births = files.birth_times(case.target)
    if len(births) < 2 * WINDOW:
        return {}
    return {"first_seconds": births[WINDOW - 1] - births[0], "last_seconds": births[-1] - births[-WINDOW]}


def big_bytes(bench):
    return bench.big_bytes or bench.scaled(QUICK_BIG_BYTES if bench.quick else BIG_BYTES)


def where(here):
    return {"file_system": here.file_system, "congestion": here.congestion}


def big_cases(here, size):
    """One big file, each peer in the ways that might be its fastest."""
    cases, add = case_list(here, "big", size)
    source, target, full = here.source("big"), here.target("big"), not here.bench.quick
    add("cp", ["cp", source, target])
    drop = here.server(FastDrop)
    add("fastdrop send", drop.send(source, "to"), drop, sends=True)
    add("fastdrop get", drop.get("from/big", here.targets), drop)
    if full:
        add("fastdrop send, BLAKE3", drop.send(source, "to", "--checksum", "blake3"), drop, sends=True)
    if here.has("nginx"):
        nginx = here.server(Nginx)
        add("nginx + curl", nginx.curl("from/big", target), nginx)
    if here.has("rsync"):
        rsync = here.server(Rsync)
        add("rsync to a daemon", rsync.push(source, "to"), rsync, sends=True)
        if full:
            add("rsync from a daemon", rsync.pull("from/big", here.targets), rsync)
    if here.has("gridftp"):
        ftp = here.server(GridFtp)
        add("GridFTP get", ftp.get(source, target), ftp)
        add("GridFTP put, 2 streams", ftp.put(source, target, "-fast", "-p", "2"), ftp, sends=True)
        if full:
            add("GridFTP put", ftp.put(source, target), ftp, sends=True)
            add("GridFTP put, 4 streams", ftp.put(source, target, "-fast", "-p", "4"), ftp, sends=True)
    if full and here.has("rclone"):
        nginx = here.server(Nginx)
        add("nginx + rclone, 4 streams", nginx.rclone("from/big", target, 4), nginx)
    if full and here.has("aria2"):
        nginx = here.server(Nginx)
        add("nginx + aria2c, 4 streams", nginx.aria2("from/big", target, 4), nginx)
    if full and here.has("scp"):
        sshd = here.server(Sshd)
        add("scp, AES-128-GCM", sshd.scp(source, target), sshd, sends=True)
    if full and here.has("xrootd"):
        xrootd = here.server(Xrootd)
        add("xrdcp", xrootd.xrdcp(source, target), xrootd)
    return cases


def disk_cases(here, size):
    """One big file that is on the disk when the command ends."""
    cases, add = case_list(here, "big", size)
    source, target = here.source("big"), here.target("big")

    def then_sync(argv):
        return ["sh", "-c", '"$@" && sync "$0"', target, *argv]

    add("cp, fsync", then_sync(["cp", source, target]))
    drop = here.server(FastDrop)
    add("fastdrop send", drop.send(source, "to"), drop, sends=True)
    add("fastdrop get", drop.get("from/big", here.targets), drop)
    if here.has("nginx"):
        nginx = here.server(Nginx)
        add("nginx + curl, fsync", then_sync(nginx.curl("from/big", target)), nginx)
    if here.has("rsync"):
        rsync = here.server(Rsync)
        add("rsync --fsync to a daemon", rsync.push(source, "to", "--fsync"), rsync, sends=True)
    if here.has("gridftp"):
        ftp = here.server(GridFtp)
        add("GridFTP get, fsync", then_sync(ftp.get(source, target)), ftp)
        add("GridFTP put, 2 streams, fsync", then_sync(ftp.put(source, target, "-fast", "-p", "2")), ftp, sends=True)
    return cases


def tree_cases(here, size):
    """A tree, each peer with as many files at a time as help it."""
    cases, add = case_list(here, "tree", size)
    source, target, full = here.source("tree"), here.target("tree"), not here.bench.quick
    add_whole_trees(here, add)
    if full and here.has("rsync"):
        rsync = here.server(Rsync)
        add("rsync -r from a daemon", rsync.pull("from/tree", here.targets, "-r"), rsync)
    if here.has("gridftp"):
        ftp = here.server(GridFtp)
        # Without -fast every file takes a port of its own, and they run out.
        options = ["-r", "-cd", "-fast", "-cc", "4"]
        add("GridFTP get, 4 at once", ftp.get(f"{source}/", f"{target}/", *options), ftp)
        if full:
            add("GridFTP put, 4 at once", ftp.put(f"{source}/", f"{target}/", *options), ftp, sends=True)
    if here.has("nginx"):
        nginx = here.server(Nginx)
        add("nginx + curl, 8 at once", nginx.curl_tree("from/tree", target, 8), nginx)
    if full and here.has("rclone"):
        nginx = here.server(Nginx)
        add("nginx + rclone, 8 at once", nginx.rclone_tree("from/tree", target, 8), nginx)
    if full and here.has("scp"):
        sshd = here.server(Sshd)
        add("scp -r, AES-128-GCM", sshd.scp(source, here.targets, "-r"), sshd, sends=True)
    if full and here.has("xrootd"):
        xrootd = here.server(Xrootd)
        add("xrdcp -r, 4 at once", xrootd.xrdcp(f"{source}/", here.targets, "-r", "--parallel", "4"), xrootd)
    return cases


def many_cases(here, size):
    cases, add = case_list(here, "tree", size)
    add_whole_trees(here, add)
    return cases


def add_whole_trees(here, add):
    """Those who do not need a round trip for each file."""
    source, target = here.source("tree"), here.target("tree")
    add("cp -r", ["cp", "-r", source, target])
    drop = here.server(FastDrop)
    add("fastdrop send", drop.send(source, "to"), drop, sends=True)
    add("fastdrop get", drop.get("from/tree", here.targets), drop)
    if here.has("rsync"):
        rsync = here.server(Rsync)
        add("rsync -r to a daemon", rsync.push(source, "to", "-r"), rsync, sends=True)


def case_list(here, name, size):
    """An empty list, and a function that adds a case for the source of this name."""
    cases = []

    def add(title, argv, server=None, sends=False):
        cases.append(Case(title, argv, here.source(name), here.target(name), size, server, sends))

    return cases, add


TITLES = {
    "big": "One file of {size}, memory to memory",
    "shipped": "The same with the kernel's default congestion control",
    "disk": "One file of {size}, on disk and synced",
    "tree": "{files:,} files of 4 to 64 KiB",
    "many": "{files:,} files of 1 KiB",
}


def section(record):
    name = record["part"]
    title = TITLES[name].format(size=size_text(record["bytes"]), files=record.get("files", 0))
    texts = [fastdrop_text(record)]
    if rates := rates_text(record):
        texts.insert(0, rates)
    return Section(title, [circumstances_text(record), table(record), *texts, plot(record, title)])


def circumstances_text(record):
    default = record["machine"]["congestion"]
    wanted = record["congestion"] or default
    text = f"{record['file_system']}, {record['rounds']} rounds, {wanted}{'' if record['congestion'] else ' as this kernel has it'}."
    # What a program chose for itself is told, so that nobody takes the heading for the whole truth.
    others = {case: names for case, names in record["congestion_seen"].items() if names != [wanted]}
    if others:
        text += " By their own choice: " + ", ".join(f"{case} {' and '.join(names)}" for case, names in others.items()) + "."
    for why in record["failed"].values():
        text += f" Left out: {why}."
    return text


def table(record):
    runs = runs_by_case(record)
    base, ours = record["cases"][0]["name"], runs["fastdrop send"]
    heads = ["", "seconds, min / **median** / max", f"× `{base}`, won", "`send` ÷ it, won"]
    heads += ["CPU s, sender", "receiver", "peak MiB, sender", "receiver"]
    rows = []
    for case in record["cases"]:
        its = runs[case["name"]]
        row = [case_text(case["name"]), min_median_max([run["seconds"] for run in its])]
        row.append("" if case["name"] == base else ratio_and_wins(pair_ratios(its, runs[base])))
        row.append("" if case["name"] == "fastdrop send" else ratio_and_wins(pair_ratios(ours, its)))
        rows.append(row + sides(case, its))
    return Table(heads, rows)


def case_text(name):
    return f"**`{name}`**" if name.startswith("fastdrop") else name


def sides(case, runs):
    """CPU and memory of the sender and the receiver; `cp` is both."""
    cpu = [statistics.median(run["client_cpu"] for run in runs)]
    rss = [max(run["client_rss"] for run in runs) / MIB]
    if case["served"]:
        cpu.append(statistics.median(run["server_cpu"] for run in runs))
        rss.append(max(run["server_rss"] for run in runs) / MIB)
        if not case["sends"]:
            cpu.reverse()
            rss.reverse()
    cells = [f"{value:.2f}" for value in cpu] + [""] * (2 - len(cpu))
    # A program that ends before it is first sampled leaves no figure.
    return cells + [f"{value:.0f}" if value else "–" for value in rss] + [""] * (2 - len(rss))


def rates_text(record):
    """How the rate of files changed from the first to the last of them."""
    words = []
    for name, runs in runs_by_case(record).items():
        # Birth times come in steps of some milliseconds, which even out over the rounds.
        spans = [sum(run.get(f"{which}_seconds", 0) for run in runs) for which in ("first", "last")]
        if all(spans):
            first, last = (WINDOW * len(runs) / span for span in spans)
            words.append(f"{name} {first:,.0f} and {last:,.0f} ({last / first:.2f})")
    if not words:
        return ""
    return f"Files made per second among the first and among the last {WINDOW:,}, by their birth times: {'; '.join(words)}."


def fastdrop_text(record):
    lines = []
    for name, runs in runs_by_case(record).items():
        summaries = [run["summary"] for run in runs if "summary" in run]
        if summaries:
            lines.append(f"`{name}`: {describe_summaries(summaries)}")
    return "; ".join(lines) + "."


def plot(record, title):
    base = record["cases"][0]["name"]
    bars = []
    for name, runs in runs_by_case(record).items():
        seconds = [run["seconds"] for run in runs]
        ours = name.startswith("fastdrop")
        bars.append(plots.Bar(name, statistics.median(seconds), min(seconds), max(seconds), ours, name == base))
    svg = plots.bars(title, "seconds: median, and from minimum to maximum", sorted(bars, key=lambda bar: bar.value))
    return Plot(record["part"], svg, f"Bars of the seconds that each program took: {title}")
