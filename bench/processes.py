"""Programs, run and measured: wall time, CPU seconds and peak memory, their children included."""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from dataclasses import dataclass

# How often running programs are asked for their peak memory. It costs a fraction of a
# millisecond for each process, on the cores that the programs need themselves.
SAMPLE_SECONDS = 0.025

# Longer than anything here takes; who is not ready then hangs.
PATIENCE_SECONDS = 900

# From <sys/prctl.h>.
PR_SET_PDEATHSIG = 1


class BenchError(Exception):
    """Something that ends the benchmark; the text is for its user."""


@dataclass
class Run:
    """One program from its start to its end. `code` is None if it was killed for taking too long.

    `start` and `end` are readings of `time.perf_counter`, `began` is one of `time.time`; `cpu` is
    user and system time in seconds, `rss` in bytes.
    """

    start: float
    end: float
    began: float
    cpu: float
    rss: int
    code: int | None
    stdout: str
    stderr: str

    @property
    def seconds(self):
        return self.end - self.start

    def summary(self):
        """FastDrop's last event under `--json`, or nothing if there is none."""
        for line in reversed(self.stdout.splitlines()):
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == "summary":
                    return event
        return {}


class Tree:
    """A process and its descendants: what they cost together."""

    def __init__(self, pid):
        self.pid = pid
        self.rss = 0

    def pids(self):
        found = [self.pid]
        # A fork appears under the thread that called it; all servers here fork in their first.
        for pid in found:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
                found.extend(int(child) for child in file.read().split())
        return found

    def cpu_seconds(self):
        """User and system time of all that live, and of those that ended and were waited for."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
                # The name stands in parentheses and may contain anything. utime, stime, cutime
                # and cstime are the fields 14 to 17.
                ticks += sum(map(int, file.read().rpartition(")")[2].split()[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def wait_shrunk(self, processes, seconds=2):
        """Waits until there are no more than so many processes: what ends late is then counted."""
        end = time.monotonic() + seconds
        while len(self.pids()) > processes and time.monotonic() < end:
            time.sleep(0.002)

    def sample(self):
        """Takes note of the peaks of all that live now. Pages that they share count for each."""
        self.rss = max(self.rss, sum(memory(pid, "VmHWM") for pid in self.pids()))

    def resident(self):
        """What is resident at this moment, in bytes."""
        return sum(memory(pid, "VmRSS") for pid in self.pids())

    def reset_peak(self):
        """Lets the peaks count anew, where the kernel can; elsewhere they stay the peaks so far."""
        for pid in self.pids():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/clear_refs", "w") as file:
                file.write("5")
        self.rss = 0


def memory(pid, field):
    """A line of /proc/PID/status in bytes; 0 if the process has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as lines:
        for line in lines:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


class Client:
    """A program under way. Its end is when its `pidfd` becomes readable."""

    def __init__(self, argv, env, output):
        self._outputs = [f"{output}.out", f"{output}.err"]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_OPEN, fd, path, flags, 0o600) for fd, path in enumerate(self._outputs, 1)]
        self.killed = False
        self.end = None
        self._usage = self._status = None
        self.began, self.start = time.time(), time.perf_counter()
        self.pid = os.posix_spawnp(argv[0], argv, env, file_actions=actions)
        self.pidfd = os.pidfd_open(self.pid)
        self.tree = Tree(self.pid)

    def kill(self):
        self.killed = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def reap(self):
        """Waits for the end, if it has not come, and gives back what is held."""
        if self._status is None:
            _, self._status, self._usage = os.wait4(self.pid, 0)
            os.close(self.pidfd)

    def result(self, floor):
        rss = self.tree.rss
        # The kernel counts the interpreter's memory into ru_maxrss, since the child starts out in
        # it. Above that it is the child's own, and misses no last moment.
        if self._usage.ru_maxrss * 1024 > floor:
            rss = max(rss, self._usage.ru_maxrss * 1024)
        code = None if self.killed else os.waitstatus_to_exitcode(self._status)
        cpu = self._usage.ru_utime + self._usage.ru_stime
        return Run(self.start, self.end, self.began, cpu, rss, code, *map(read_text, self._outputs))


def measure_together(argvs, folder, env, server=None, timeout=PATIENCE_SECONDS, watch=None):
    """Starts all programs at once and runs each to its end; returns a `Run` for each.

    Their output goes to files in `folder`. `server` is a `Tree` whose peak is sampled, too.
    `watch` is called with the clients at every sample, and may kill them.
    """
    floor = memory(os.getpid(), "VmHWM")
    poller = select.poll()
    clients, running = [], {}
    try:
        for number, argv in enumerate(argvs):
            clients.append(Client(argv, env, os.path.join(folder, f"client-{number}")))
            running[clients[-1].pidfd] = clients[-1]
            poller.register(clients[-1].pidfd, select.POLLIN)
        next_sample = time.perf_counter() + SAMPLE_SECONDS
        deadline = time.perf_counter() + timeout
        while running:
            ready = poller.poll(max(next_sample - time.perf_counter(), 0) * 1000)
            now = time.perf_counter()
            for pidfd, _ in ready:
                poller.unregister(pidfd)
                client = running.pop(pidfd)
                client.end = now
                client.reap()
            if now >= next_sample and running:
                for tree in [client.tree for client in running.values()] + ([server] if server else []):
                    tree.sample()
                if watch:
                    watch(list(running.values()))
                if now > deadline:
                    for client in running.values():
                        client.kill()
                next_sample = time.perf_counter() + SAMPLE_SECONDS
    finally:
        for client in clients:
            if client.end is None:
                client.kill()
            client.reap()
    if server:
        server.sample()
    return [client.result(floor) for client in clients]


def measure(argv, folder, env, server=None, timeout=PATIENCE_SECONDS, watch=None):
    return measure_together([argv], folder, env, server, timeout, watch)[0]


def read_text(path):
    with open(path, errors="replace") as file:
        return file.read()


def end_with_parent():
    """For `preexec_fn`: whatever happens to the benchmark, its servers do not outlive it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def note(text):
    print(text, file=sys.stderr, flush=True)


def run_main(main):
    """Calls `main` and turns what ends a benchmark into one line and an exit code."""
    # SIGTERM then unwinds as Ctrl-C does, and everything is cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except BenchError as error:
        note(f"{os.path.basename(sys.argv[0])}: {error}")
        return 1
    except KeyboardInterrupt:
        note("interrupted")
        return 130
    return 0
