#!/usr/bin/env python3
"""Makes docs/BENCHMARKS.md and its plots from results of bench/peers.py.

    python3 bench/report.py RESULTS.json...

Of a workload that is in several files the last one counts. What stands outside of the two marker
lines in docs/BENCHMARKS.md was written by people, and stays.
"""

import argparse
import os
import sys

sys.dont_write_bytecode = True

from processes import BenchError, note, read_text, run_main
from results import commands, load, sections
from sections import Plot, Table

DOCS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "docs")
BEGIN = "<!-- bench/report.py writes what follows -->"
END = "<!-- end of what bench/report.py writes -->"


def write(records, docs):
    """Puts the records' tables between the markers, and their plots beside."""
    page = os.path.join(docs, "BENCHMARKS.md")
    before, after = around_markers(read_text(page) if os.path.exists(page) else "# Benchmarks\n")
    os.makedirs(os.path.join(docs, "plots"), exist_ok=True)
    parts = []
    for section in [*sections(records), commands(records)]:
        parts.append(f"## {section.title}")
        for block in section.blocks:
            parts.append(as_markdown(block, docs))
    with open(page, "w") as file:
        file.write("\n\n".join([before + BEGIN, *parts, END + after]))
    note(f"wrote {page}")


def around_markers(text):
    if BEGIN not in text:
        return text.rstrip("\n") + "\n\n", "\n"
    before, _, rest = text.partition(BEGIN)
    if END not in rest:
        raise BenchError(f"docs/BENCHMARKS.md has the line `{BEGIN}` without `{END}`")
    return before, rest.partition(END)[2]


def as_markdown(block, docs):
    if isinstance(block, Table):
        return block.markdown()
    if isinstance(block, Plot):
        with open(os.path.join(docs, "plots", f"{block.name}.svg"), "w") as file:
            file.write(block.svg)
        return f"![{block.alt}](plots/{block.name}.svg)"
    return block


def as_text(records):
    """The same for a terminal, without plots and commands."""
    lines = []
    for section in sections(records):
        lines += [f"== {section.title}", ""]
        for block in section.blocks:
            if isinstance(block, Table):
                lines += [block.text(), ""]
            elif isinstance(block, str):
                lines += [block.replace("**", "").replace("`", ""), ""]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description="Makes docs/BENCHMARKS.md and its plots from results of bench/peers.py.")
    parser.add_argument("results", nargs="+", metavar="RESULTS.json")
    parser.add_argument("--docs", default=DOCS, metavar="FOLDER", help="default: docs")
    parser.add_argument("--text", action="store_true", help="print the tables instead")
    args = parser.parse_args()
    records = load(args.results)
    if args.text:
        print(as_text(records))
    else:
        write(records, args.docs)


if __name__ == "__main__":
    sys.exit(run_main(main))
