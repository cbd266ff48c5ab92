"""What limited a transfer: the shares that FastDrop prints beside those that `perf` sees from outside.

`perf record` notes when each thread of both sides enters and leaves a system call, which costs a
microsecond or two where `strace` stops the thread twice. What a thread does follows from the call it
is in, and from being in none: then it computes. Two readings are made of that.

totals   what `strace -f -c -w` could say if it kept threads apart: times of the calls added up, and
         the sender's sending split in the proportions of what the receiver spent its time with.
moments  every moment by itself, from the first chunk to DONE: a stream's sender that reads or
         computes is that; while it sends, its receiver decides. Moments are shared by the streams.
"""

import bisect
import contextlib
import itertools
import os
import platform
import re
import signal
import statistics
import subprocess
import time
from collections import defaultdict

import files
import link
from files import GIB, KIB, MIB
from processes import BenchError, note
from programs import SEARCH, Program
from rounds import Case, Stage, run_case, stage
from sections import Section, Table, size_text
from servers import QUIET, FastDrop
from workloads.copies import HEADROOM, MAIN_CONGESTION

PERF = Program("perf", "linux-perf")

DISK_BYTES = GIB
LINK_BYTES = 32 * MIB
CPU_BYTES = GIB
RATE_MBIT = 100
RTT_MS = 20
# A run takes seconds, and is made twice: with `perf` and without.
ROUNDS = 3
# What the program and the observer may be apart, in points.
POINTS_MAX = 10
# Between telling that a call has been left and leaving it, `perf`'s own time included: 1.5 to 5 microseconds.
EXIT_SECONDS = 6e-6

CATEGORIES = ("reading", "cpu", "network", "writing")
# Whoever moves so much in one call moves chunks.
CHUNK_CALL_BYTES = 32 * KIB

READS = {"pread64", "preadv", "readv"}
SENDS = {"write", "writev", "sendto", "sendmsg", "sendfile"}
RECEIVES = {"recvfrom", "recvmsg", "read", "readv"}
WRITES = {"pwrite64", "pwritev"}
# Whoever is in these waits for another thread.
IDLE = {"futex", "epoll_wait", "epoll_pwait", "poll", "ppoll", "clock_nanosleep", "nanosleep", "sched_yield"}
# These belong to computing: its buffers, and threads.
MEMORY = {"mmap", "munmap", "mprotect", "madvise", "brk", "clone3", "rt_sigprocmask", "sigaltstack", "set_robust_list", "rseq", "gettid"}
# On the receiver, talking to the sender is the way between them.
TALKS = {"writev", "sendto", "sendmsg", "shutdown", "setsockopt", "getsockopt"}
ENDINGS = {"fsync", "fdatasync", "syncfs", "sync_file_range", "renameat2", "unlinkat"}

# From <asm/unistd_64.h>.
NUMBERS_X86_64 = {
    **{0: "read", 1: "write", 7: "poll", 9: "mmap", 10: "mprotect", 11: "munmap", 12: "brk", 14: "rt_sigprocmask", 17: "pread64"},
    **{18: "pwrite64", 19: "readv", 20: "writev", 24: "sched_yield", 28: "madvise", 35: "nanosleep", 40: "sendfile", 44: "sendto"},
    **{45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 48: "shutdown", 54: "setsockopt", 55: "getsockopt", 74: "fsync", 75: "fdatasync"},
    **{131: "sigaltstack", 186: "gettid", 202: "futex", 230: "clock_nanosleep", 232: "epoll_wait", 263: "unlinkat", 271: "ppoll"},
    **{273: "set_robust_list", 277: "sync_file_range", 281: "epoll_pwait", 295: "preadv", 296: "pwritev", 306: "syncfs"},
    **{316: "renameat2", 334: "rseq", 435: "clone3"},
}


class ObservedFastDrop(FastDrop):
    """A server that runs beneath `perf`."""

    def configure(self):
        self.trace = os.path.join(self.folder, "trace")
        return observed(super().configure(), self.trace)

    def stop(self):
        # Once its program has ended, `perf` writes down the rest and ends.
        end = time.monotonic() + 10
        for pid in self.tree.pids()[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        while self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        super().stop()


def observed(argv, trace):
    events = "raw_syscalls:sys_enter,raw_syscalls:sys_exit"
    return [PERF.path, "record", "-q", "-m", "4M", "--switch-events", "-e", events, "-o", trace, "--", *argv]


def run(bench):
    lacks = None
    if not PERF.path:
        lacks = f"there is no perf; Debian's package {PERF.package} has it"
    elif os.geteuid() != 0 or platform.machine() != "x86_64":
        lacks = "only root may look at all system calls, and their numbers are known for x86_64 alone"
    if lacks:
        note(f"left out: {lacks}")
        return {"lacks": lacks, "rounds": 0, "runs": []}
    # The names say what should limit them.
    runs, rounds = [], min(bench.rounds, ROUNDS)
    for number in range(1, rounds + 1):
        for name, once in (("disk", run_disk), ("disk, synchronous", run_sync), ("network", run_network), ("CPU", run_cpu)):
            # What is printed without `perf` shows what `perf` itself changes.
            plain = once(bench, FastDrop)
            seen = once(bench, ObservedFastDrop)
            runs.append({"round": number, "case": name, **seen, "plain_seconds": plain["seconds"], "plain": plain["printed"]})
            points = " and ".join(f"{apart(runs[-1], reading):.0f}" for reading in ("totals", "moments"))
            note(f"round {number} of {rounds}, {name}: {seen['seconds']:.2f} s, unobserved {plain['seconds']:.2f}; {points} points apart")
    return {"rounds": rounds, "rate_mbit": RATE_MBIT, "rtt_ms": RTT_MS, "runs": runs}


def run_disk(bench, kind):
    """From memory to a disk."""
    return run_to(bench, kind, bench.disk_folder)


def run_sync(bench, kind):
    """The same where every write waits for the disk: what the page cache takes may hide the disk altogether."""
    size = bench.scaled(DISK_BYTES)
    with files.work_folder(bench.disk_folder, 2 * size + HEADROOM) as folder, synchronous(folder, 3 * size + HEADROOM) as mounted:
        return run_to(bench, kind, mounted)


def run_to(bench, kind, folder):
    size = bench.scaled(DISK_BYTES)
    with files.work_folder(bench.folder, size + HEADROOM) as memory, stage(bench, folder, 2 * size, MAIN_CONGESTION) as here:
        source = os.path.join(memory, "big")
        return run_once(here, kind, source, size, "--durability", "commit") | {"file_system": here.file_system}


@contextlib.contextmanager
def synchronous(folder, size):
    """A file system of its own in a file, mounted so that every write is synchronous."""
    image, mounted = os.path.join(folder, "image"), os.path.join(folder, "mounted")
    os.mkdir(mounted)
    files.make_sparse(image, size)
    call(["mkfs.ext4", "-q", image])
    call(["mount", "-o", "loop,sync", image, mounted])
    try:
        yield mounted
    finally:
        call(["umount", mounted])


def call(argv):
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"PATH": SEARCH})
    if done.returncode != 0:
        raise BenchError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()}")


def run_network(bench, kind):
    """Over a slow link, in memory."""
    size = bench.scaled(LINK_BYTES)
    with files.work_folder(bench.folder, 3 * size + HEADROOM) as folder, contextlib.ExitStack() as stack:
        try:
            wire = stack.enter_context(link.Link(RTT_MS / 2, RATE_MBIT))
        except link.LinkError as error:
            raise BenchError(str(error)) from error
        here = Stage(bench, folder, None, stack)
        with wire.on_server():
            here.server(kind, wire.server_addr)
        with wire.on_client():
            return run_once(here, kind, here.source("big"), size) | {"file_system": here.file_system}


def run_cpu(bench, kind):
    """From memory to memory, with the checksum that costs most."""
    size = bench.scaled(CPU_BYTES)
    with stage(bench, bench.folder, 2 * size + HEADROOM, MAIN_CONGESTION) as here:
        return run_once(here, kind, here.source("big"), size, "--checksum", "blake3") | {"file_system": here.file_system}


def run_once(here, kind, source, size, *options):
    files.write_random(source, size)
    server = here.server(kind)
    argv = server.send(source, "to", *options)
    trace = os.path.join(here.output, "trace")
    looks = kind is ObservedFastDrop
    case = Case("fastdrop send", observed(argv, trace) if looks else argv, source, here.target("big"), size, server, True)
    result, _ = run_case(here, case)
    summary = result["summary"]
    found = {
        "bytes": size,
        "command": " ".join(["fastdrop", "send", *QUIET, *options, "FILE", "ADDRESS/to"]),
        "seconds": summary["seconds"],
        "streams": summary["streams"],
        "durability": summary["durability"],
        "printed": summary["limited"],
    }
    if looks:
        server.stop()
        found |= judge(read_trace(trace), read_trace(server.trace))
    return found


def read_trace(path):
    """Each thread's system calls in order: when entered, when left, its name, what it returned.

    The kernel gives the processor to another thread at the very end of a call, when it has told of
    that already. This time belongs to the call.
    """
    argv = [PERF.path, "script", "-i", path, "-F", "tid,time,event,trace", "--ns", "--show-switch-events"]
    told = subprocess.run(argv, capture_output=True, text=True, check=True, env={"PATH": SEARCH, "LC_ALL": "C"})
    if "LOST" in told.stdout or "lost" in told.stderr:
        raise BenchError(f"perf lost events: {told.stderr.strip()}")
    line_form = re.compile(
        r"\s*(\d+)\s+(\d+)\.(\d+):\s+(?:raw_syscalls:sys_(enter|exit): NR (-?\d+)(?: = (-?\d+))?|PERF_RECORD_SWITCH (IN|OUT))"
    )
    entered, delayed, calls = {}, set(), defaultdict(list)
    for line in told.stdout.splitlines():
        if not (match := line_form.match(line)):
            continue
        tid, seconds, nanos, way, number, value, switch = match.groups()
        when = int(seconds) + int(nanos) / 1e9
        if switch == "OUT":
            if tid not in entered and calls[tid] and when - calls[tid][-1][1] < EXIT_SECONDS:
                delayed.add(tid)
        elif switch == "IN":
            if tid in delayed:
                delayed.remove(tid)
                start, _, *rest = calls[tid][-1]
                calls[tid][-1] = (start, when, *rest)
        elif way == "enter":
            entered[tid] = when
        elif tid in entered:
            calls[tid].append((entered.pop(tid), when, NUMBERS_X86_64.get(int(number), number), int(value)))
    if not any(calls.values()):
        raise BenchError(f"perf saw nothing: {told.stderr.strip()}")
    return calls


class Thread:
    """What a thread that moves chunks did: stretches of time that follow each other."""

    def __init__(self, calls, state_of, comes, goes):
        moved = [call for call in calls if moves(call, goes)]
        self.first = next(call for call in calls if moves(call, comes | goes))[0]
        self.last = moved[-1][1]
        # How many bytes had moved at the end of each call that moves some, chunks or parts of them.
        self.times = [call[1] for call in calls if call[2] in goes and call[3] > 0]
        self.bytes = list(itertools.accumulate(call[3] for call in calls if call[2] in goes and call[3] > 0))
        self.starts, self.stretches = [], []
        # `perf` takes its time for each call, outside of it: what passes even where nothing is computed.
        gaps = sorted(after[0] - before[1] for before, after in itertools.pairwise(calls))
        floor = gaps[len(gaps) // 20] if gaps else 0.0
        left = None
        for start, end, name, _ in calls:
            if left is not None and start > left + floor:
                self._add(left + floor, start, "computing")
            self._add(start, end, state_of(name))
            left = end

    def _add(self, start, end, state):
        self.starts.append(start)
        self.stretches.append((start, end, state))

    def between(self, start, end):
        """Its stretches in this time, cut to it."""
        at = max(bisect.bisect_right(self.starts, start) - 1, 0)
        while at < len(self.stretches) and self.stretches[at][0] < end:
            since, until, state = self.stretches[at]
            if until > start:
                yield max(since, start), min(until, end), state
            at += 1


def moves(call, names):
    return call[2] in names and call[3] >= CHUNK_CALL_BYTES


def sender_state(name):
    if name in SENDS:
        return "sending"
    if name in IDLE:
        return "idle"
    return "computing" if name in MEMORY else "reading"


def receiver_state(name):
    if name in RECEIVES or name in TALKS:
        return "waiting"
    if name in IDLE:
        return "idle"
    # Journal, syncs, names: whatever else it calls is for what it writes.
    return "computing" if name in MEMORY else "writing"


def judge(client, server):
    """The shares by both readings, and the seconds that they were made of."""

    def threads(calls_of, state_of, comes, goes):
        movers = [calls for calls in calls_of.values() if any(moves(call, goes) for call in calls)]
        return [Thread(calls, state_of, comes, goes) for calls in movers]

    senders = threads(client, sender_state, READS, SENDS)
    receivers = threads(server, receiver_state, RECEIVES, WRITES)
    if not senders or len(senders) != len(receivers):
        raise BenchError(f"perf saw {len(senders)} threads that send chunks, and {len(receivers)} that receive them")
    sent = max(thread.last for thread in senders)
    # Whoever syncs and names in the end, on whatever thread.
    endings = [(max(call[0], sent), call[1]) for calls in server.values() for call in calls if call[2] in ENDINGS and call[1] > sent]
    done = max([thread.last for thread in receivers] + [end for _, end in endings])
    totals, spent = by_totals(senders, receivers, union_seconds(endings))
    moments = by_moments(pair(senders, receivers), receivers, sent, done, endings)
    return {"totals": totals, "moments": moments, "spent": spent, "end_seconds": done - sent}


def pair(senders, receivers):
    """Both ends of each stream: those of which one has written what the other has sent, all the time."""

    def mismatch(sender, receiver):
        total = 0
        for when, written in zip(receiver.times, receiver.bytes, strict=True):
            at = bisect.bisect_right(sender.times, when)
            total += abs((sender.bytes[at - 1] if at else 0) - written)
        return total

    # The closest first: there may be too many streams to try all ways.
    pairs, taken = [], set()
    for _, one, other in sorted((mismatch(a, b), i, j) for i, a in enumerate(senders) for j, b in enumerate(receivers)):
        if ("sender", one) not in taken and ("receiver", other) not in taken:
            taken |= {("sender", one), ("receiver", other)}
            pairs.append((senders[one], receivers[other]))
    return pairs


def union_seconds(intervals):
    total, reached = 0.0, 0.0
    for start, end in sorted(intervals):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def by_totals(senders, receivers, ending):
    spent = defaultdict(float)
    for side, threads in (("sender", senders), ("receiver", receivers)):
        for thread in threads:
            for start, end, state in thread.between(thread.first, thread.last):
                spent[f"{side} {state}"] += end - start
    spent["receiver writing"] += ending
    own = {"reading": spent["sender reading"], "cpu": spent["sender computing"], "network": 0.0, "writing": 0.0}
    blamed = {"network": "waiting", "cpu": "computing", "writing": "writing"}
    doing = {category: spent[f"receiver {state}"] for category, state in blamed.items()}
    # Some of its waiting was for the sender's own work.
    doing["network"] = max(doing["network"] - spent["sender reading"] - spent["sender computing"], 0.0)
    whole = sum(doing.values())
    for category, seconds in doing.items():
        own[category] += spent["sender sending"] * seconds / whole
    return shares(own), dict(spent)


def by_moments(pairs, receivers, sent, done, endings):
    blamed = {"waiting": "network", "idle": "network", "computing": "cpu", "writing": "writing"}
    pieces = []
    for sender, receiver in pairs:
        for start, end, state in sender.between(sender.first, sender.last):
            if state == "sending":
                for since, until, doing in receiver.between(start, end):
                    pieces.append((since, until, blamed[doing]))
            elif state != "idle":
                pieces.append((start, end, "reading" if state == "reading" else "cpu"))
    # Everything has been sent: what is left is for the receiver to write down and sync, or still under way.
    writes = [(start, end) for thread in receivers for start, end, state in thread.between(sent, done) if state == "writing"]
    busy = union_seconds(writes + endings)
    # A sweep over all moments, each shared by the streams that are in it.
    pieces = [piece for piece in pieces if piece[1] > piece[0]]
    changes = sorted([(start, 1, what) for start, _, what in pieces] + [(end, -1, what) for _, end, what in pieces])
    own, now, before = dict.fromkeys(CATEGORIES, 0.0), dict.fromkeys(CATEGORIES, 0), 0.0
    for when, change, what in changes:
        if active := sum(now.values()):
            for category, count in now.items():
                own[category] += (when - before) * count / active
        now[what] += change
        before = when
    own["writing"] += busy
    own["network"] += max(done - sent - busy, 0.0)
    return shares(own)


def shares(own):
    whole = sum(own.values())
    return {category: seconds / whole for category, seconds in own.items()}


def apart(run, reading):
    return max(abs(100 * (run["printed"][category] - run[reading][category])) for category in CATEGORIES)


READINGS = {"printed": "printed", "printed without `perf`": "plain", "`perf`, totals": "totals", "`perf`, moments": "moments"}


def section(record):
    title = "What limited it, as printed and as observed"
    if record.get("lacks"):
        return Section(title, [f"Left out: {record['lacks']}."])
    rows = []
    of = defaultdict(list)
    for run in record["runs"]:
        of[run["case"]].append(run)
    for name, its in of.items():
        for label, key in READINGS.items():
            row = [f"{name}: {label}"]
            row += [f"{100 * statistics.median(run[key][category] for run in its):.1f}" for category in CATEGORIES]
            points = [apart(run, key) for run in its] if key in ("totals", "moments") else []
            row.append(f"{min(points):.1f} to **{max(points):.1f}**" if points else "")
            seconds = "plain_seconds" if key == "plain" else "seconds"
            row.append(f"{statistics.median(run[seconds] for run in its):.2f}" if key in ("printed", "plain") else "")
            rows.append(row)
    disk, network, cpu = (of[name][0] for name in ("disk", "network", "CPU"))
    text = (
        f"`fastdrop send`: disk is {size_text(disk['bytes'])} from memory to {disk['file_system']} with `--durability commit`, and"
        f" once more to a file system in a file there, mounted with `-o sync`; network is {size_text(network['bytes'])} over"
        f" {record['rate_mbit']} Mbit/s with {record['rtt_ms']} ms; CPU is {size_text(cpu['bytes'])} from memory to memory with"
        f" `--checksum blake3`. Percent, median of {record['rounds']} rounds. Both sides run beneath `perf record`, which notes when"
        " a thread that moves chunks enters and leaves a system call. The sender's reads are reading, time outside of calls is cpu,"
        " and what the sender waits for in sending is blamed on what the receiver does meanwhile, whose writes and syncs are writing:"
        " in the proportions of its whole run, less the waiting for the sender's own work (totals), or at that very moment in the same stream, with the syncs after the last byte"
        f" (moments). To agree means at most {POINTS_MAX} points apart."
    )
    return Section(title, [text, Table(["percent", *CATEGORIES, "points apart, min to **max**", "seconds"], rows)])
