#!/usr/bin/env python3
"""FastDrop against `cp`, over loopback, in memory: one big file and a tree of small ones.

    cargo build --release
    python3 bench/loopback.py [--rounds N] [--quick] [--json-out FILE]

Freshly freed memory may cost several times as much to allocate as memory that was in use a
moment ago, and other load comes and goes. Therefore every round runs everything once in a new
order, a ballast file of the same size is written and deleted before each run, and FastDrop is
compared with the `cp` of the same round: the figure to quote is the median of these ratios and
how many of the pairs were won. A first round warms up and does not count. Every run's result is
compared with its source, byte by byte, outside the measured time.

Of each run it takes the seconds from starting the program to its exit, the CPU seconds and the
peak resident memory of both sides (resident memory includes mapped pages of files). FastDrop
runs with its defaults; the server is started once, before everything.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
BIG_BYTES = 2048 * MIB
TREE_FILES = 10_000
TREE_FILES_PER_FOLDER = 100
TREE_FILE_BYTES = (4 << 10, 64 << 10)
BLOCK = 4 * MIB

# How often a running client is asked for its peak memory.
SAMPLE_SECONDS = 0.01
DEFAULT_BINARY = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "target", "release", "fastdrop")


class BenchError(Exception):
    """Something that ends the benchmark; the text is for its user."""


class Run:
    """One measured process: wall and CPU seconds, peak memory, exit code and what it printed."""

    def __init__(self, seconds, cpu, rss, code, stdout, stderr):
        self.seconds, self.cpu, self.rss, self.code = seconds, cpu, rss, code
        self.stdout, self.stderr = stdout, stderr

    def summary(self):
        """The last event of `--json`, or nothing if there is none."""
        for line in reversed(self.stdout.splitlines()):
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == "summary":
                    return event
        return {}


def measure(argv, folder, env, timeout=None):
    """Runs a program to its end; `code` is None if it was killed for taking too long."""
    paths = [os.path.join(folder, name) for name in ("client.out", "client.err")]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    actions += [(os.POSIX_SPAWN_OPEN, number, path, flags, 0o600) for number, path in enumerate(paths, 1)]
    # The kernel counts this interpreter's memory into the child's ru_maxrss.
    floor = peak_rss(os.getpid())
    start = time.perf_counter()
    deadline = start + timeout if timeout else None
    pid = os.posix_spawnp(argv[0], argv, env, file_actions=actions)
    rss = 0
    killed = False
    status = None
    try:
        handle = os.pidfd_open(pid)
        try:
            while not select.select([handle], [], [], SAMPLE_SECONDS)[0]:
                rss = max(rss, peak_rss(pid))
                if deadline and not killed and time.perf_counter() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    killed = True
            seconds = time.perf_counter() - start
        finally:
            os.close(handle)
        _, status, usage = os.wait4(pid, 0)
    finally:
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    # Above the floor ru_maxrss is the child's own, and it misses no last moment.
    if usage.ru_maxrss * 1024 > floor:
        rss = max(rss, usage.ru_maxrss * 1024)
    stdout, stderr = (read_text(path) for path in paths)
    code = None if killed else os.waitstatus_to_exitcode(status)
    return Run(seconds, usage.ru_utime + usage.ru_stime, rss, code, stdout, stderr)


def peak_rss(pid):
    """Peak resident bytes since the start, or since `reset_peak_rss`; 0 if it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as lines:
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def reset_peak_rss(pid):
    """Lets the peak count anew, where the kernel can; elsewhere it stays the peak so far."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/clear_refs", "w") as file:
        file.write("5")


def cpu_seconds(pid):
    """User and system time of a running process, ended threads included."""
    with open(f"/proc/{pid}/stat") as file:
        # The name stands in parentheses and may contain anything; utime is the 14th field.
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_text(path):
    with open(path, errors="replace") as file:
        return file.read()


class Server:
    """`fastdrop serve` on a port of its choice; `start` is how a process is started."""

    def __init__(self, binary, folder, logs, env, bind="127.0.0.1", start=subprocess.Popen):
        self._out, self._err = (os.path.join(logs, name) for name in ("server.out", "server.err"))
        argv = [binary, "serve", folder, "--bind", bind, "--port", "0", "--json"]
        with open(self._out, "w") as out, open(self._err, "w") as err:
            self.process = start(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env)
        self.pid = self.process.pid
        try:
            self.target = f"{bind}:{self._wait_port()}"
        except BaseException:
            self.stop()
            raise

    def _wait_port(self):
        end = time.monotonic() + 20
        while time.monotonic() < end and self.process.poll() is None:
            for line in read_text(self._out).splitlines(keepends=True):
                # The main port's event comes first; a line without its end is still being written.
                if line.endswith("\n"):
                    with contextlib.suppress(ValueError):
                        event = json.loads(line)
                        if event.get("event") == "listening":
                            return event["port"]
            time.sleep(0.01)
        raise BenchError(f"the server does not listen:\n{self.errors()}")

    def errors(self):
        return read_text(self._err).strip()

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def find_binary(path):
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        raise BenchError(f"no program at {path}: run `cargo build --release` first, or give --fastdrop PATH")
    return os.path.abspath(path)


def clean_env(folder):
    """The environment without the user's settings for FastDrop, so that its defaults hold."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("FASTDROP_")}
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        env[name] = folder
    return env


@contextlib.contextmanager
def work_folder(parent, need_bytes):
    """A temporary folder with room for `need_bytes`, gone in the end."""
    if not os.path.isdir(parent):
        raise BenchError(f"no folder {parent}; give --dir a folder in memory (tmpfs)")
    free = shutil.disk_usage(parent).free
    if free < need_bytes:
        raise BenchError(f"{parent} has {free // MIB} MiB free, {need_bytes // MIB} MiB are needed; give --dir another one")
    with contextlib.suppress(OSError), open("/proc/meminfo") as lines:
        available = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}.get("MemAvailable")
        if available is not None and available < need_bytes:
            raise BenchError(f"{available // MIB} MiB of memory are available, {need_bytes // MIB} MiB are needed")
    folder = tempfile.mkdtemp(prefix="fastdrop-bench-", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_random(path, size):
    with open(path, "wb", buffering=0) as file:
        while size > 0:
            size -= file.write(os.urandom(min(size, BLOCK)))


def make_tree(path, files):
    """Files of evenly spread sizes in folders of a hundred; returns their bytes together."""
    rng = random.Random(1)
    total = 0
    for number in range(files):
        folder = os.path.join(path, f"{number // TREE_FILES_PER_FOLDER:04}")
        if number % TREE_FILES_PER_FOLDER == 0:
            os.makedirs(folder)
        size = rng.randint(*TREE_FILE_BYTES)
        write_random(os.path.join(folder, f"{number:06}.bin"), size)
        total += size
    return total


def ballast(path, size):
    """Takes and gives back as much memory as the next run will take."""
    block = bytes(BLOCK)
    with open(path, "wb", buffering=0) as file:
        while size > 0:
            size -= file.write(block[: min(size, BLOCK)])
    os.unlink(path)


def remove(path):
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def check_same(source, target):
    """Raises unless both are the same file, or trees of the same names and bytes."""
    if os.path.isdir(source):
        names = [sorted(os.listdir(path)) for path in (source, target)]
        if names[0] != names[1]:
            raise BenchError(f"{target} has not the same names as {source}")
        for name in names[0]:
            check_same(os.path.join(source, name), os.path.join(target, name))
        return
    with open(source, "rb", buffering=0) as a, open(target, "rb", buffering=0) as b:
        if os.fstat(a.fileno()).st_size != os.fstat(b.fileno()).st_size:
            raise BenchError(f"{target} has not the size of {source}")
        while block := a.read(BLOCK):
            if block != b.read(BLOCK):
                raise BenchError(f"{target} has not the bytes of {source}")


class Case:
    """One thing to measure: a command, where its result appears, and what it is compared with."""

    def __init__(self, name, argv, source, target, size, baseline, role):
        self.name, self.argv, self.source, self.target = name, argv, source, target
        self.size, self.baseline, self.role = size, baseline, role


def make_cases(binary, root, server, sizes):
    """Every kind of run for the big file and the tree. The server's folder is `root`."""
    cases = []
    for name, size in sizes.items():
        source = os.path.join(root, "from", name)
        copy = "cp -r" if os.path.isdir(source) else "cp"
        base = f"{copy} {name}"
        sent, got, copied = (os.path.join(root, folder, name) for folder in ("sent", "got", "copied"))
        client = ["--json", "--progress", "none"]
        cases.append(Case(base, [*copy.split(), source, copied], source, copied, size, None, None))
        argv = [binary, "send", *client, source, f"{server.target}/sent"]
        cases.append(Case(f"fastdrop send {name}", argv, source, sent, size, base, "sender"))
        argv = [binary, "get", *client, f"{server.target}/from/{name}", os.path.dirname(got)]
        cases.append(Case(f"fastdrop get {name}", argv, source, got, size, base, "receiver"))
    return cases


def run_case(case, root, logs, env, server):
    """One run, with its ballast before and its comparison after."""
    remove(case.target)
    ballast(os.path.join(root, "ballast"), case.size)
    reset_peak_rss(server.pid)
    server_cpu = cpu_seconds(server.pid)
    run = measure(case.argv, logs, env)
    if run.code != 0:
        raise BenchError(
            f"`{' '.join(case.argv)}` ended with {run.code}:\n{run.stderr.strip()}\nserver:\n{server.errors()}"
        )
    check_same(case.source, case.target)
    result = {"case": case.name, "seconds": run.seconds, "client_cpu": run.cpu, "client_rss": run.rss}
    if case.role:
        # By now, after the comparison, the server has long finished what follows a transfer.
        result["server_cpu"] = cpu_seconds(server.pid) - server_cpu
        result["server_rss"] = peak_rss(server.pid)
        result["summary"] = run.summary()
    remove(case.target)
    return result


def report(cases, results):
    """The table as text."""
    by_case = {case.name: [r for r in results if r["case"] == case.name] for case in cases}
    width = max(len(case.name) for case in cases)
    lines = [
        f"{'':{width}}  {'seconds':^22}  {'to cp':^13}  {'CPU s, median':^15}  {'peak MiB':^15}",
        f"{'':{width}}  {'min':>6}  {'median':>6}  {'max':>6}  {'ratio':>6}  {'won':>5}"
        f"  {'sender':>6}  {'receiver':>8}  {'sender':>6}  {'receiver':>8}",
    ]
    notes = []
    for case in cases:
        runs = by_case[case.name]
        seconds = [r["seconds"] for r in runs]
        row = f"{case.name:{width}}  {min(seconds):6.3f}  {statistics.median(seconds):6.3f}  {max(seconds):6.3f}"
        cpu = [statistics.median(r["client_cpu"] for r in runs), None]
        rss = [max(r["client_rss"] for r in runs) / MIB, None]
        if case.baseline:
            base = {r["round"]: r["seconds"] for r in by_case[case.baseline]}
            ratios = [r["seconds"] / base[r["round"]] for r in runs]
            row += f"  {statistics.median(ratios):6.2f}  {sum(r < 1 for r in ratios):2}/{len(ratios):<2}"
            cpu[1] = statistics.median(r["server_cpu"] for r in runs)
            rss[1] = max(r["server_rss"] for r in runs) / MIB
            notes.append(f"{case.name}: {describe_summaries([r['summary'] for r in runs])}")
        else:
            row += f"  {'':6}  {'':5}"
        if case.role == "receiver":
            cpu.reverse()
            rss.reverse()
        row += "".join(f"  {'' if value is None else f'{value:.2f}':>{w}}" for value, w in zip(cpu, (6, 8)))
        row += "".join(f"  {'' if value is None else f'{value:.1f}':>{w}}" for value, w in zip(rss, (6, 8)))
        lines.append(row.rstrip())
    return "\n".join([*lines, "", *notes])


# Fields of the summary that repeat the table or belong to no run in particular.
NOT_SETTINGS = {"event", "version", "v", "protocol_version", "files", "bytes", "bytes_sent", "seconds", "rate", "limited", "transfer", "id"}


def describe_summaries(summaries):
    """What the summaries say of how it was done, and the medians of what limited it."""
    if not any(summaries):
        return "no summary event"
    words = []
    for key in dict.fromkeys(key for summary in summaries for key in summary):
        values = [summary.get(key) for summary in summaries]
        texts = list(dict.fromkeys(json.dumps(value).replace('"', "") for value in values))
        if key in NOT_SETTINGS or texts in (["0"], ["null"]):
            continue
        if len(texts) > 1 and all(isinstance(value, (int, float)) for value in values):
            texts = [f"{min(values):g} to {max(values):g}"]
        words.append(f"{key} {' | '.join(texts)}")
    limited = [s["limited"] for s in summaries if s.get("limited")]
    if limited:
        words.append("limited by " + describe_limited(limited))
    return ", ".join(words)


def describe_limited(limited):
    """The medians of the shares, largest first, or the text as it is."""
    if not all(isinstance(shares, dict) for shares in limited):
        return str(limited[len(limited) // 2])
    medians = {}
    for key in dict.fromkeys(key for shares in limited for key in shares):
        values = [shares.get(key, 0) for shares in limited]
        if all(isinstance(value, (int, float)) for value in values):
            medians[key] = statistics.median(values)
    # Shares may come as fractions or in percent.
    scale = 100 if sum(medians.values()) < 2 else 1
    return ", ".join(f"{key} {scale * value:.0f} %" for key, value in sorted(medians.items(), key=lambda item: -item[1]))


def describe_machine(binary):
    """What figures depend on and a reader cannot see."""
    model = congestion = "unknown"
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    with contextlib.suppress(OSError):
        congestion = read_text("/proc/sys/net/ipv4/tcp_congestion_control").strip()
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"{version or binary}; {os.cpu_count()} cores of {model}; {platform.system()} {platform.release()},"
        f" whose default congestion control is {congestion}"
    )


def exit_on_sigterm():
    """SIGTERM then unwinds as Ctrl-C does, and everything is cleaned up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def note(text):
    print(text, file=sys.stderr, flush=True)


def parse_args():
    parser = argparse.ArgumentParser(description="FastDrop against cp, over loopback, in memory.")
    parser.add_argument("--fastdrop", default=DEFAULT_BINARY, metavar="PATH", help="default: target/release/fastdrop")
    parser.add_argument("--rounds", type=int, metavar="N", help="default 7")
    parser.add_argument("--quick", action="store_true", help="3 rounds, for a first impression")
    parser.add_argument("--dir", default="/dev/shm", help="a folder in memory (default /dev/shm)")
    parser.add_argument("--size", type=int, default=BIG_BYTES // MIB, metavar="MIB", help="of the big file (default 2048)")
    parser.add_argument("--files", type=int, default=TREE_FILES, metavar="N", help="in the tree (default 10000)")
    parser.add_argument("--json-out", metavar="FILE", help="write every run's figures there")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 7)
    if min(args.rounds, args.size, args.files) < 1:
        parser.error("--rounds, --size and --files need at least 1")
    return args


def bench(args):
    binary = find_binary(args.fastdrop)
    big_bytes = args.size * MIB
    tree_bytes_max = args.files * TREE_FILE_BYTES[1]
    machine = describe_machine(binary)
    # The sources, one copy or the ballast, and what the programs themselves need.
    need = 2 * big_bytes + 2 * tree_bytes_max + 512 * MIB
    results = []
    with work_folder(args.dir, need) as folder, contextlib.ExitStack() as stack:
        root, logs = (os.path.join(folder, name) for name in ("root", "logs"))
        for name in ("root/from", "root/sent", "root/got", "root/copied", "logs", "home"):
            os.makedirs(os.path.join(folder, name))
        env = clean_env(os.path.join(folder, "home"))
        note(f"making a file of {args.size} MiB and a tree of {args.files} files")
        write_random(os.path.join(root, "from", "big"), big_bytes)
        tree_bytes = make_tree(os.path.join(root, "from", "tree"), args.files)
        server = Server(binary, root, logs, env)
        stack.callback(server.stop)
        cases = make_cases(binary, root, server, {"big": big_bytes, "tree": tree_bytes})
        for number in range(args.rounds + 1):
            took = []
            for case in random.sample(cases, len(cases)):
                result = run_case(case, root, logs, env, server)
                took.append(f"{case.name} {result['seconds']:.3f}")
                if number > 0:
                    results.append({"round": number, **result})
            note(f"{f'round {number} of {args.rounds}' if number else 'warm-up'}: {', '.join(took)}")
    print(machine)
    print(
        f"big: {args.size} MiB; tree: {args.files} files, {tree_bytes / 1e6:.0f} MB; random bytes, in {args.dir};"
        f" {args.rounds} rounds; every run's result compared with its source"
    )
    print()
    print(report(cases, results))
    if args.json_out:
        save_json(args.json_out, {"machine": machine, "big_bytes": big_bytes, "tree_bytes": tree_bytes, "runs": results})


def save_json(path, data):
    with open(path, "w") as file:
        json.dump(data, file, indent=1)
        file.write("\n")


def run_main(main):
    """Calls `main` and turns what ends a benchmark into one line and an exit code."""
    exit_on_sigterm()
    try:
        main()
    except BenchError as error:
        note(f"{os.path.basename(sys.argv[0])}: {error}")
        return 1
    except KeyboardInterrupt:
        note("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: bench(parse_args())))
