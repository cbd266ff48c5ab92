"""The workloads by name, and the records that they leave: kept as JSON, read as sections."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import programs
from processes import BenchError
from sections import Section
from workloads import compression, copies, crowd, growth, limits, older, paths, resume, tiny


@dataclass(frozen=True)
class Workload:
    what: str
    run: Callable
    section: Callable
    # Whether a first impression includes it.
    quick: bool = False


WORKLOADS = {
    "big": Workload("one file of 2 GiB, in memory, CUBIC for all", copies.big, copies.section, quick=True),
    "shipped": Workload("the same with the kernel's default congestion control", copies.shipped, copies.section),
    "disk": Workload("the same on disk, synced", copies.disk, copies.section),
    "older": Workload("the same in memory by the older protocols", older.run, older.section),
    "compression": Workload("what --compress does, to data of both kinds on ways of both kinds", compression.run, compression.section),
    "tree": Workload("10,000 files of 4 to 64 KiB", copies.tree, copies.section, quick=True),
    "many": Workload("100,000 files of 1 KiB", copies.many, copies.section),
    "tiny": Workload("a file of 10 bytes", tiny.run, tiny.section, quick=True),
    "resume": Workload("the rest after a kill at 99 %", resume.run, resume.section),
    "crowd": Workload("64 clients at once, 1,000 idle connections", crowd.run, crowd.section),
    "paths": Workload("100 Mbit/s with 100 ms and losses, BBR for all", paths.run, paths.section),
    "paths-cubic": Workload("the same with CUBIC as the default", paths.run_cubic, paths.section),
    "limits": Workload("what limited it, as printed and as perf sees it", limits.run, limits.section),
    "sizes": Workload("time by size, 1 MiB to 16 GiB", growth.run_sizes, growth.section),
    "counts": Workload("time by number of files, 1 to 200,000", growth.run_counts, growth.section),
}


def save(path, records):
    with open(path, "w") as file:
        json.dump(list(records.values()), file, indent=1)
        file.write("\n")


def load(paths):
    """The records of all files by workload, in the order in which they are reported."""
    found = {}
    for path in paths:
        try:
            with open(path) as file:
                found |= {record["part"]: record for record in json.load(file)}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BenchError(f"{path} does not hold results: {error}") from error
    return {name: found[name] for name in WORKLOADS if name in found}


def sections(records):
    """What all records have in common, then each."""
    made = [circumstances(list(records.values()))]
    return made + [WORKLOADS[name].section(record) for name, record in records.items()]


def circumstances(records):
    """Who took part, where and when; there may be more than one answer to each."""
    lines = []
    for machine in distinct(record["machine"] for record in records):
        lines.append(f"{programs.describe(machine)}; both sides on it.")
    versions = distinct(f"{name} {version}" for record in records for name, version in record["versions"].items())
    lines.append(f"Versions: {', '.join(versions)}.")
    lines.append("Measured on " + ", ".join(sorted({record["date"] for record in records})) + ".")
    absent = {}
    for record in records:
        absent |= record["absent"]
    if absent:
        lines.append("Not there, and therefore missing: " + "; ".join(f"{peer} ({why})" for peer, why in absent.items()) + ".")
    return Section("Machine and versions", [" ".join(lines)])


def commands(records):
    """The commands of all servers and clients as they were called."""
    found = distinct(command for record in records.values() for command in record.get("servers", []))
    found += distinct(case["command"] for record in records.values() for case in record.get("cases", []))
    return Section("Commands", ["```sh\n" + "\n".join(found) + "\n```"])


def distinct(values):
    seen = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return seen
