"""Growth: how the time rises with the size of a file and with the number of files."""

import statistics

import files
import plots
from files import KIB, MIB
from processes import note
from rounds import Case, interleave, stage
from sections import Plot, Section, Table, size_text
from servers import FastDrop
from workloads.copies import HEADROOM, MAIN_CONGESTION

SIZES = [MIB << power for power in range(0, 15, 2)]
COUNTS = [1, 10, 100, 1000, 10_000, 50_000, 200_000]
FILE_BYTES = KIB
# A file that small takes a page in memory.
PAGE = 4 * KIB
ROUNDS = 3
# Source, result and ballast at once must leave room for everything else.
COPIES_IN_MEMORY = 3


def run_sizes(bench):
    """Files of random bytes, and above what memory holds three times files of nothing but a hole."""
    runs = []
    rounds = min(bench.rounds, ROUNDS)
    for size in (size for size in SIZES if size <= bench.scaled(SIZES[-1])):
        sparse = COPIES_IN_MEMORY * size > files.memory_available()
        with stage(bench, bench.folder, HEADROOM if sparse else COPIES_IN_MEMORY * size, MAIN_CONGESTION) as here:
            (files.make_sparse if sparse else files.write_random)(here.source("it"), size)
            runs += run_one(here, size, 0 if sparse else size, rounds, ["cp"], sparse=sparse)
    return {"rounds": rounds, "runs": runs}


def run_counts(bench):
    runs = []
    rounds = min(bench.rounds, ROUNDS)
    for count in (count for count in COUNTS if count <= bench.scaled(COUNTS[-1])):
        with stage(bench, bench.folder, COPIES_IN_MEMORY * count * PAGE + HEADROOM, MAIN_CONGESTION) as here:
            files.make_tree(here.source("it"), count, (FILE_BYTES, FILE_BYTES))
            runs += run_one(here, count, count * PAGE, rounds, ["cp", "-r"])
    return {"rounds": rounds, "file_bytes": FILE_BYTES, "runs": runs}


def run_one(here, amount, ballast, rounds, copy, sparse=False):
    """Warmed-up and shuffled rounds at one point of the curve."""
    source, target = here.source("it"), here.target("it")
    drop = here.server(FastDrop)
    cases = [
        Case(" ".join(copy), [*copy, source, target], source, target, ballast),
        Case("fastdrop send", drop.send(source, "to"), source, target, ballast, drop, True),
        Case("fastdrop get", drop.get("from/it", here.targets), source, target, ballast, drop),
    ]
    runs = interleave(here, cases, rounds, quiet=True)["runs"]
    took = {case.name: statistics.median(run["seconds"] for run in runs if run["case"] == case.name) for case in cases}
    note(f"{amount:,}: " + ", ".join(f"{name} {seconds:.3f}" for name, seconds in took.items()))
    return [{"amount": amount, "sparse": sparse, **run} for run in runs]


def section(record):
    of_files = "file_bytes" in record
    amounts = sorted({run["amount"] for run in record["runs"]})
    names = sorted({run["case"] for run in record["runs"]}, key=lambda name: (not name.startswith("fastdrop"), name))
    rows, series = [], {name: plots.Line(name, []) for name in names}
    sparse = {run["amount"] for run in record["runs"] if run["sparse"]}
    for amount in amounts:
        row = [f"{amount:,}" if of_files else size_text(amount) + (" (a hole)" if amount in sparse else "")]
        for name in names:
            seconds = statistics.median(run["seconds"] for run in record["runs"] if (run["case"], run["amount"]) == (name, amount))
            (series[name].apart if amount in sparse else series[name].points).append((amount, seconds))
            row.append(plots.significant(seconds))
        rows.append(row)
    title = "Time by number of files" if of_files else "Time by size of file"
    what = f"Files of {size_text(record['file_bytes'])}" if of_files else "One file of random bytes"
    text = f"{what}, median of {record['rounds']} rounds, seconds."
    note_text = ""
    if sparse:
        which = " and ".join(size_text(size) for size in sorted(sparse))
        text += f" {which}: too much for this memory, so it is a file of nothing but a hole."
        note_text = "hollow: a file of nothing but a hole"
    x_label = f"files of {size_text(record['file_bytes'])}" if of_files else "size of the file"
    x_ticks = None if of_files else amounts
    x_text = plots.tick_text if of_files else size_text
    svg = plots.lines(title, x_label, "seconds, median", list(series.values()), x_ticks, x_text, note_text)
    return Section(title, [text, Table(["", *names], rows), Plot(record["part"], svg, f"Seconds on logarithmic axes. {title}")])
