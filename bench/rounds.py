"""The method: everything once a round in a new order, each run after its ballast and before its comparison.

Freshly freed memory may cost several times as much to allocate as memory that was in use a moment
ago, and other load comes and goes. Therefore a ballast file of the same size is written and deleted
before each run, and everything is compared with what ran in the same round: the figures to quote
are the median of these pairs' ratios and how many of the pairs were won. A first round warms up and
does not count. Every run's result is compared with its source, byte by byte, outside the measured time.
"""

import contextlib
import os
import random
import re
import shlex
import subprocess
import time
from dataclasses import dataclass

import files
import link
from processes import BenchError, measure, note, read_text
from programs import SEARCH
from servers import FastDrop


@dataclass
class Bench:
    """What the user chose, and what there is."""

    binary: str
    peers: list
    rounds: int
    quick: bool
    # In memory, and on a disk.
    folder: str
    disk_folder: str
    # None for what the workload takes by itself.
    big_bytes: int | None = None
    tree_files: int | None = None
    shrink: int = 1

    def scaled(self, amount):
        """An amount of bytes, files or rounds, less of it where the benchmark itself is tried out."""
        return max(amount // self.shrink, 1)


@dataclass
class Case:
    """A command to measure, where its result appears, and what that must be equal to.

    `server` is the one that the client talks to, if any, and `sends` says which side the client is.
    """

    name: str
    argv: list
    source: str
    target: str
    size: int
    server: object = None
    sends: bool = False

    @property
    def is_peer(self):
        """A peer that fails is left out and named; `cp` and FastDrop have to work."""
        return self.server is not None and not isinstance(self.server, FastDrop)


class CaseFailed(BenchError):
    pass


class Stage:
    """A folder with sources and results, the servers of it, and a network of its own.

    Beneath `root` lie `from` and `to`: every server serves both, every result appears in `to`.
    """

    def __init__(self, bench, folder, congestion, stack):
        self.bench, self.folder, self.congestion, self._stack = bench, folder, congestion, stack
        self.root = os.path.join(folder, "root")
        for name in ("root/from", "root/to", "servers", "clients", "home"):
            os.makedirs(os.path.join(folder, name))
        # xrootd serves as nobody.
        os.chmod(self.root, 0o755)
        self.output = os.path.join(folder, "clients")
        self.env = clean_env(os.path.join(folder, "home"))
        self.file_system = files.file_system(folder)
        self._servers = {}

    def source(self, name):
        return os.path.join(self.root, "from", name)

    def target(self, name):
        return os.path.join(self.root, "to", name)

    @property
    def targets(self):
        return os.path.join(self.root, "to")

    def has(self, peer):
        return peer in self.bench.peers

    def server(self, kind, addr="127.0.0.1"):
        """The server of this kind, started when it is first wanted."""
        if kind not in self._servers:
            folder = os.path.join(self.folder, "servers", kind.__name__.lower())
            self._servers[kind] = kind(self.root, folder, self.env, addr)
            self._stack.callback(self._servers[kind].stop)
        return self._servers[kind]

    def describe(self, argv):
        """A command as a reader wants to see it: without folders and ports that were made up."""
        text = shlex.join(argv).replace(self.root, "").replace(self.folder, "").replace(self.bench.binary, "fastdrop")
        return re.sub(r"(127\.0\.0\.1:|-P |-p |--port[ =])\d{4,}", r"\1PORT", text)

    def server_commands(self):
        return [self.describe(server.argv) for server in self._servers.values()]


@contextlib.contextmanager
def stage(bench, parent, need_bytes, congestion):
    """A stage in a new folder of `parent`, in a network whose default congestion control this is.

    None leaves the kernel's, and so does everything where the user is not root.
    """
    with files.work_folder(parent, need_bytes) as folder, contextlib.ExitStack() as stack:
        if os.geteuid() == 0:
            try:
                network = link.loopback_only(congestion)
            except OSError as error:
                raise BenchError(f"cannot make a network with {congestion} as its congestion control: {error}") from error
            stack.callback(network.close)
            stack.enter_context(network.entered())
        elif congestion:
            note("only root can make a network: this is the machine's, with its default congestion control")
            congestion = None
        yield Stage(bench, folder, congestion, stack)


def clean_env(home):
    """The environment without the user's settings and proxies, so that everyone's defaults hold."""
    settings = re.compile(r"(FASTDROP|RCLONE|RSYNC|XRD|GLOBUS)_.*|.*_proxy", re.IGNORECASE)
    env = {name: value for name, value in os.environ.items() if not settings.fullmatch(name)}
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        env[name] = home
    return dict(env, RCLONE_CONFIG="", PATH=SEARCH)


def run_case(stage, case, watch=None):
    """One run, with its ballast before and its comparison after."""
    files.remove(case.target)
    files.ballast(os.path.join(stage.folder, "ballast"), case.size)
    if stage.file_system != "tmpfs":
        # What earlier runs left to be written is not this one's work.
        os.sync()
    server = case.server.tree if case.server else None
    if server:
        server.reset_peak()
        server_cpu, processes = server.cpu_seconds(), len(server.pids())
    run = measure(case.argv, stage.output, stage.env, server, watch=watch)
    try:
        if run.code != 0:
            raise BenchError(f"ended with {run.code}: {run.stderr.strip()}\n{shlex.join(case.argv)}{server_log(case)}")
        files.check_same(case.source, case.target)
    except BenchError as error:
        raise CaseFailed(f"{case.name}: {error}") from error
    result = {"case": case.name, "seconds": run.seconds, "client_cpu": run.cpu, "client_rss": run.rss}
    if server:
        server.wait_shrunk(processes)
        result |= {"server_cpu": server.cpu_seconds() - server_cpu, "server_rss": server.rss}
    if summary := run.summary():
        result["summary"] = summary
    return result, run


def server_log(case):
    return f"\nserver:\n{case.server.log()}" if case.server else ""


def interleave(stage, cases, rounds, after=None, quiet=False):
    """Runs all cases in each round, and returns what a record holds of them.

    `after` may add to a result while its target is still there: it gets the case and its `Run`.
    """
    runs, failed = [], {}
    seen = {case.name: CongestionSeen() for case in cases}
    for number in range(rounds + 1):
        took = []
        for case in random.sample(cases, len(cases)):
            if case.name in failed:
                continue
            try:
                # Looking costs time, which only the warm-up has.
                result, run = run_case(stage, case, seen[case.name].look if number == 0 else None)
            except CaseFailed as error:
                if not case.is_peer:
                    raise
                note(f"left out from now on: {error}")
                failed[case.name] = str(error).splitlines()[0].replace(stage.root, "")
                continue
            if after and number > 0:
                result |= after(case, run)
            files.remove(case.target)
            took.append(f"{case.name} {result['seconds']:.3f}")
            if number > 0:
                runs.append({"round": number, **result})
        if not quiet:
            note(f"{f'round {number} of {rounds}' if number else 'warm-up'}: {', '.join(took)}")
    return {
        "rounds": rounds,
        "cases": [
            {"name": case.name, "command": stage.describe(case.argv), "served": case.server is not None, "sends": case.sends}
            for case in cases
            if case.name not in failed
        ],
        "runs": [run for run in runs if run["case"] not in failed],
        "failed": failed,
        "servers": stage.server_commands(),
        "congestion_seen": {name: sorted(look.names) for name, look in seen.items() if look.names},
    }


class CongestionSeen:
    """The congestion controls of this network's connections, as `ss` tells them, over all looks.

    Looks are `pause` seconds apart, since they disturb.
    """

    def __init__(self, pause=0.0):
        self.names = set()
        self._pause, self._next = pause, time.monotonic() + pause
        self._known = set(read_text("/proc/sys/net/ipv4/tcp_available_congestion_control").split())

    def look(self, _clients):
        # Only root has a network in which there is nobody else.
        if os.geteuid() != 0 or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._pause
        with contextlib.suppress(OSError):
            told = subprocess.run(["ss", "-tinH", "state", "established"], capture_output=True, text=True, check=False).stdout
            self.names |= self._known & set(told.split())
