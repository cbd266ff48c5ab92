"""One file in memory by each of the older protocols, FastDrop at both ends, against `cp`."""

import os
import statistics

import files
from processes import BenchError, measure
from rounds import interleave, stage
from sections import Section, size_text
from servers import FastDropOlder
from workloads import copies

# For the two passes that fastdp 1.1.0 demands: one before sending, one while receiving.
HASH_RUNS = 3


def run(bench):
    size = copies.big_bytes(bench)
    with stage(bench, bench.folder, 2 * size + copies.HEADROOM, copies.MAIN_CONGESTION) as here:
        files.write_random(here.source("big"), size)
        record = interleave(here, cases(here, size), bench.rounds)
        return record | {"bytes": size, "sha256_seconds": two_hashes(here), **copies.where(here)}


def cases(here, size):
    found, add = copies.case_list(here, "big", size)
    source = here.source("big")
    add("cp", ["cp", source, here.target("big")])
    drop = here.server(FastDropOlder)
    add("fastdrop send", drop.send(source, "to"), drop, sends=True)
    for protocol in ("ultradp", "fastdp1.0", "fastdp1.1", "nextdp"):
        add(f"fastdrop, {protocol}", drop.send(source, "to/", "--protocol", protocol, "--unconfirmed-ok"), drop, sends=True)
    # Its server gives what is directly in its folder.
    os.link(source, f"{here.root}/big")
    add("fastdrop, fastdownloader", drop.download("big", here.targets), drop)
    return found


def two_hashes(here):
    """Seconds of two SHA-256 of the file on one core."""
    source = here.source("big")
    seconds = []
    for _ in range(HASH_RUNS):
        run = measure(["taskset", "-c", "0", "openssl", "dgst", "-sha256", source, source], here.output, here.env)
        if run.code != 0:
            raise BenchError(f"openssl ended with {run.code}: {run.stderr}")
        seconds.append(run.seconds)
    return statistics.median(seconds)


def section(record):
    title = f"One file of {size_text(record['bytes'])}, memory to memory, by the older protocols"
    hashes = f"Two SHA-256 of the file on one core: {record['sha256_seconds']:.2f} s."
    return Section(title, [copies.circumstances_text(record), copies.table(record), hashes, copies.plot(record, title)])
