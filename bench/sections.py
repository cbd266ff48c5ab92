"""What a record reads like: tables, plots and text, and the statistics in them."""

import statistics
from dataclasses import dataclass, field

from files import GIB, KIB, MIB


@dataclass
class Table:
    """Rows of texts under their heads; the first column is to the left, all others to the right."""

    heads: list
    rows: list

    def markdown(self):
        lines = [self.heads, ["---"] + ["--:"] * (len(self.heads) - 1), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def text(self):
        lines = [[plain(cell) for cell in line] for line in [self.heads, *self.rows]]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
        return "\n".join("  ".join(line).rstrip() for line in padded)


@dataclass
class Plot:
    """A drawing that goes into a file of this name; `alt` says what it shows."""

    name: str
    svg: str
    alt: str


@dataclass
class Section:
    """A heading and what stands beneath it: texts, tables and plots."""

    title: str
    blocks: list = field(default_factory=list)


def plain(markdown):
    return markdown.replace("**", "").replace("`", "")


def runs_by_case(record):
    return {case["name"]: [run for run in record["runs"] if run["case"] == case["name"]] for case in record["cases"]}


def pair_ratios(runs, others):
    """The seconds of `runs` over those of `others` in the same round."""
    in_round = {run["round"]: run["seconds"] for run in others}
    return [run["seconds"] / in_round[run["round"]] for run in runs if run["round"] in in_round]


def ratio_and_wins(ratios):
    return f"**{statistics.median(ratios):.2f}**, {sum(ratio < 1 for ratio in ratios)}/{len(ratios)}"


def min_median_max(values):
    low, middle, high = min(values), statistics.median(values), max(values)
    digits = 2 if middle >= 1 else 3
    return f"{low:.{digits}f} / **{middle:.{digits}f}** / {high:.{digits}f}"


def size_text(size):
    """A round number of bytes with its binary unit."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} bytes"


# Fields of FastDrop's summary that tell how it was done.
SETTINGS = ("streams", "congestion", "checksum", "durability", "chunk_size", "retries")


def describe_summaries(summaries):
    """How it was done, and the medians of what limited it."""
    summaries = [summary for summary in summaries if summary]
    if not summaries:
        return "no summary"
    words = []
    for key in SETTINGS:
        values = sorted({str(summary.get(key)) for summary in summaries})
        if values not in (["0"], ["None"]):
            words.append(f"{key.replace('_', ' ')} {' or '.join(values)}")
    limited = [summary["limited"] for summary in summaries if summary.get("limited")]
    if limited:
        medians = {key: statistics.median(shares.get(key, 0) for shares in limited) for key in limited[0]}
        ranked = sorted(medians.items(), key=lambda item: -item[1])
        words.append("limited by " + ", ".join(f"{key} {share:.0%}" for key, share in ranked))
    return ", ".join(words)
