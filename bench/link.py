#!/usr/bin/env python3
"""A simulated network link: delay, rate, a finite queue and seeded loss between two hosts.

The two hosts are network namespaces of this machine, each with a TUN device. Whatever one
host sends is read here as IP packets, kept for as long as the link would have taken, and
written into the other host. So every connection over the link is the kernel's own TCP or UDP,
with its congestion control, and only the wire is made up.

    python3 bench/link.py --rtt 100 --rate 100 --loss 0.1 \\
        --server 'fastdrop serve DIR --bind $LINK_SERVER' -- sh -c 'fastdrop send FILE $LINK_SERVER'

    with Link(delay_ms=50, rate_mbit=100, loss=0.001, seed=1) as link:
        server = link.server(["fastdrop", "serve", "--bind", link.server_addr])
        link.wait_listening(server)
        link.client(["fastdrop", "send", "FILE", link.server_addr]).wait()

The namespaces have no names and belong to this process: when it ends, however it ends, the
kernel removes them. It needs Linux, /dev/net/tun and root.
"""

import argparse
import contextlib
import ctypes
import errno
import fcntl
import gc
import json
import math
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque

# 198.18.0.0/15 is set aside for benchmarks of network devices (RFC 2544), so it cannot be
# taken for a network that somebody uses.
SERVER_ADDR = "198.18.0.1"
CLIENT_ADDR = "198.18.0.2"
NETMASK = "255.255.255.252"

# From <sched.h>, <linux/if_tun.h>, <linux/if.h> and <linux/sockios.h>.
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
IFF_UP = 0x0001
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
SIOCSIFADDR = 0x8916
SIOCSIFNETMASK = 0x891C
SIOCSIFMTU = 0x8922
SIOCSIFTXQLEN = 0x8943

CONGESTION = "/proc/sys/net/ipv4/tcp_congestion_control"
CONGESTION_ALLOWED = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"

# Packets that a TUN device holds until the forwarder reads them. Generous, so that the only
# queue which overflows is the simulated one.
DEVICE_QUEUE_PACKETS = 20_000

# How long the forwarder sleeps while packets flow. Shorter follows the schedule more closely
# and costs more CPU.
TICK_SECONDS = 0.0003

# With more than this on the way, packets flow; with fewer, each is delivered at its own time.
FEW_PACKETS = 4

# Packets read before due ones are delivered, so that a flood cannot hold deliveries back.
READ_BATCH = 128

# A packet delivered later than this counts as late: the forwarder, not the link, held it.
LATE_SECONDS = 0.002


class LinkError(Exception):
    """The link cannot be made here; the text says why and what would help."""


class Link:
    """Two hosts and the wire between them. Use it with `with`.

    delay_ms     one way, in milliseconds; the round trip takes twice that
    rate_mbit    10^6 bits a second each way, counting IP packets; None for no limit
    loss         probability, 0 to 1, that a packet is lost, each way
    queue_bytes  what may wait for its turn on the wire, each way; what comes on top is
                 dropped. Default: one bandwidth-delay product, at least 30 packets
    mtu          of both devices, in bytes
    seed         of the losses; the same seed loses the same packets by their number
    congestion   TCP's congestion control on both hosts; None for the kernel's default
    """

    server_addr = SERVER_ADDR
    client_addr = CLIENT_ADDR

    def __init__(self, delay_ms=0.0, rate_mbit=None, loss=0.0, queue_bytes=None, mtu=1500, seed=1, congestion=None):
        if delay_ms < 0 or not 0 <= loss <= 1 or not 576 <= mtu <= 65535:
            raise ValueError("delay_ms >= 0, 0 <= loss <= 1 and 576 <= mtu <= 65535")
        if rate_mbit is not None and rate_mbit <= 0:
            raise ValueError("rate_mbit > 0, or None for no limit")
        rate = rate_mbit * 1e6 / 8 if rate_mbit else None
        if queue_bytes is None and rate:
            queue_bytes = max(int(rate * 2 * delay_ms / 1000), 30 * mtu)
        self.mtu = mtu
        self.congestion = congestion
        self.queue_bytes = queue_bytes
        self.final_stats = None
        self._settings = {"delay": delay_ms / 1000, "rate": rate, "loss": loss, "queue": queue_bytes}
        self._seed = seed
        self._hosts = []
        self._forwarders = []
        self._children = []

    def __enter__(self):
        try:
            with congestion_allowed(self.congestion):
                server, client = (self._add_host(a) for a in (SERVER_ADDR, CLIENT_ADDR))
            self._add_forwarder("up", client, server, self._seed * 2)
            self._add_forwarder("down", server, client, self._seed * 2 + 1)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise LinkError(explain(error)) from error
            raise
        # From here on the forwarders alone hold the devices.
        for host in self._hosts:
            host.close_device()
        return self

    def __exit__(self, *_):
        self.close()

    def server(self, argv, **popen):
        """Starts a program on the server's host; `popen` goes to `subprocess.Popen`."""
        return self._start(self._hosts[0], argv, popen)

    def client(self, argv, **popen):
        """Starts a program on the client's host; `popen` goes to `subprocess.Popen`."""
        return self._start(self._hosts[1], argv, popen)

    def on_server(self):
        """While inside, what this thread starts or connects belongs to the server's host."""
        return self._hosts[0].entered()

    def on_client(self):
        """While inside, what this thread starts or connects belongs to the client's host."""
        return self._hosts[1].entered()

    def wait_listening(self, process, seconds=10.0):
        """Waits until anything listens on TCP on the host of `process`; says whether it does."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and process.poll() is None:
            for table in ("tcp", "tcp6"):
                with contextlib.suppress(OSError), open(f"/proc/{process.pid}/net/{table}") as lines:
                    # The fourth column is the state; 0A is LISTEN.
                    if any(line.split()[3] == "0A" for line in lines):
                        return True
            time.sleep(0.01)
        return False

    def change(self, delay_ms=None, rate_mbit=None, loss=None, queue_bytes=None):
        """Changes the running link both ways; what is None stays. `loss=1` cuts it."""
        settings = {
            "delay": None if delay_ms is None else delay_ms / 1000,
            "rate": None if rate_mbit is None else rate_mbit * 1e6 / 8,
            "loss": loss,
            "queue": queue_bytes,
        }
        settings = {name: value for name, value in settings.items() if value is not None}
        for forwarder in self._forwarders:
            forwarder.ask(settings)

    def stats(self):
        """Counters of both directions since the start: `up` is client to server."""
        if self.final_stats is not None:
            return self.final_stats
        return {forwarder.name: forwarder.ask({}) for forwarder in self._forwarders}

    def close(self):
        """Ends what was started on the hosts, then the wire, then the hosts."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self._end_processes(number, seconds=5.0):
                break
        if self.final_stats is None and self._forwarders:
            with contextlib.suppress(OSError, ValueError):
                self.final_stats = self.stats()
        for forwarder in self._forwarders:
            forwarder.close()
        for host in self._hosts:
            host.close()
        self._children, self._forwarders, self._hosts = [], [], []

    def _add_host(self, addr):
        host = Host(addr, self.mtu, self.congestion)
        self._hosts.append(host)
        return host

    def _add_forwarder(self, name, source, target, seed):
        settings = dict(self._settings, mtu=self.mtu, seed=seed)
        self._forwarders.append(Forwarder(name, source.device, target.device, settings))

    def _end_processes(self, number, seconds):
        """Signals every process on the hosts, children of children too; says whether any is left."""
        end = time.monotonic() + seconds
        signalled = set()
        while True:
            for child in self._children:
                child.poll()
            left = {pid for host in self._hosts for pid in host.processes()}
            for pid in left - signalled:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            signalled |= left
            if not left or time.monotonic() > end:
                return bool(left)
            time.sleep(0.02)

    def _start(self, host, argv, popen):
        with host.entered():
            child = subprocess.Popen(argv, **popen)
        self._children.append(child)
        return child


class Namespace:
    """A network namespace, held by nothing but an open descriptor.

    `configure` is called inside while it is new, on a thread that belongs to nothing else.
    """

    def __init__(self, configure):
        self._handle = None
        failure = []

        # A namespace belongs to a thread, so a thread makes it and ends, and its starter
        # never leaves its own.
        def build():
            try:
                libc_call("unshare", CLONE_NEWNET)
                self._handle = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                configure()
            except OSError as error:
                failure.append(error)

        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
        if failure:
            self.close()
            raise failure[0]

    @contextlib.contextmanager
    def entered(self):
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc_call("setns", self._handle, CLONE_NEWNET)
            try:
                yield
            finally:
                libc_call("setns", home, CLONE_NEWNET)
        finally:
            os.close(home)

    def processes(self):
        """Who lives in this namespace, except this process, of which a thread may be inside."""
        if self._handle is None:
            return []
        own = os.fstat(self._handle)
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with contextlib.suppress(OSError):
                    if os.path.samestat(own, os.stat(f"/proc/{name}/ns/net")):
                        found.append(int(name))
        return found

    def close(self):
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class Host(Namespace):
    """One end of the link: a namespace with a TUN device."""

    def __init__(self, addr, mtu, congestion=None):
        self.device = None

        def configure():
            set_congestion(congestion)
            self.device = open_device(addr, mtu)

        super().__init__(configure)

    def close_device(self):
        if self.device is not None:
            os.close(self.device)
            self.device = None

    def close(self):
        self.close_device()
        super().close()


class Forwarder:
    """The process that carries one direction, and the line on which it is asked things.

    Each direction is a process, since two threads of one interpreter would wait for each other.
    """

    def __init__(self, name, source, target, settings):
        self.name = name
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair()
        with theirs:
            numbers = [str(fd) for fd in (source, target, theirs.fileno())]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", os.path.abspath(__file__), "--forward", *numbers, json.dumps(settings)],
                pass_fds=(source, target, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                # Ctrl-C is for the one who started the link; the forwarder ends with the line.
                start_new_session=True,
            )
        ours.settimeout(10)
        self._line = ours
        self._replies = ours.makefile("r")

    def ask(self, settings):
        """Hands over new settings, if any, and returns the counters."""
        with self._lock:
            self._line.sendall(json.dumps(settings).encode() + b"\n")
            reply = self._replies.readline()
        if not reply:
            raise OSError("the link's forwarder ended before its time")
        return json.loads(reply)

    def close(self):
        self._replies.close()
        self._line.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def open_device(addr, mtu):
    """Opens and configures a TUN device in the calling thread's namespace."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        name = b"link0"
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name, IFF_TUN | IFF_NO_PI))
        # No checksum or segmentation offload: the kernel hands over packets as they would be
        # on a wire, none longer than the MTU.
        fcntl.ioctl(device, TUNSETOFFLOAD, 0)
        # IPv6 would send router solicitations into the measurement. Metrics kept from one
        # connection would make the next one start differently.
        write_sysctl("net/ipv6/conf/all/disable_ipv6", "1")
        write_sysctl("net/ipv4/tcp_no_metrics_save", "1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCSIFTXQLEN, struct.pack("16si20x", name, DEVICE_QUEUE_PACKETS))
            fcntl.ioctl(sock, SIOCSIFMTU, struct.pack("16si20x", name, mtu))
            fcntl.ioctl(sock, SIOCSIFADDR, interface_address(name, addr))
            fcntl.ioctl(sock, SIOCSIFNETMASK, interface_address(name, NETMASK))
        for interface in (b"lo", name):
            bring_up(interface)
    except BaseException:
        os.close(device)
        raise
    return device


def loopback_only(congestion):
    """A namespace with a loopback interface and `congestion`, or the kernel's default, as TCP's congestion control."""

    def configure():
        set_congestion(congestion)
        bring_up(b"lo")

    with congestion_allowed(congestion):
        return Namespace(configure)


def bring_up(interface):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        flags = struct.unpack("16sh22x", fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sh22x", interface, 0)))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", interface, flags | IFF_UP))


def set_congestion(name):
    """Makes it the default of the calling thread's namespace; raises where the kernel has it not."""
    if name:
        with open(CONGESTION, "w") as file:
            file.write(name)


@contextlib.contextmanager
def congestion_allowed(name):
    """While inside, `set_congestion` may take a name that is meant for root alone, as CUBIC is where BBR is the default.

    A new namespace's default must be among those that everybody may use, so it becomes one for these milliseconds.
    """
    with open(CONGESTION_ALLOWED) as file:
        allowed = file.read().strip()
    if not name or name in allowed.split():
        yield
        return
    with open(CONGESTION_ALLOWED, "w") as file:
        file.write(f"{allowed} {name}")
    try:
        yield
    finally:
        with open(CONGESTION_ALLOWED, "w") as file:
            file.write(allowed)


def interface_address(name, addr):
    """A `struct ifreq` that holds an IPv4 address."""
    return struct.pack("16sHH4s16x", name, socket.AF_INET, 0, socket.inet_aton(addr))


def write_sysctl(name, value):
    """Sets what can be set: an older kernel, or one without IPv6, lacks some of it."""
    with contextlib.suppress(OSError), open(f"/proc/sys/{name}", "w") as file:
        file.write(value)


def libc_call(name, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def explain(error):
    if error.errno in (errno.EPERM, errno.EACCES):
        help_text = "it needs root, with the right to make network namespaces"
    elif error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        help_text = "it needs /dev/net/tun (`modprobe tun`, or the container's permission for it)"
    else:
        help_text = "it needs Linux with network namespaces and /dev/net/tun"
    return f"cannot make the simulated link: {error}; {help_text}"


def forward(source, target, line, settings):
    """Carries packets from `source` to `target` until `line` is closed by its other end.

    A packet that arrives at time t starts on the wire when its predecessor has left it, takes
    length / rate, and is delivered one delay after that. The queue is what has arrived and not
    yet left, so it needs no data structure: `wire_free` says all about it.
    """
    gc.disable()
    # A late forwarder looks like a slow network. Real-time priority is safe, since it sleeps
    # whenever it has nothing to deliver; where it is refused, it goes without.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    read, write, clock, sleep = os.read, os.write, time.monotonic, time.sleep
    longest = settings["mtu"]
    rng = random.Random(settings["seed"])
    delay, rate, loss, queue = (settings[name] for name in ("delay", "rate", "loss", "queue"))
    byte_seconds = 1 / rate if rate else 0.0
    queue_seconds = queue * byte_seconds if rate else math.inf
    until_loss = packets_until_loss(rng, loss)

    pending = deque()
    wire_free = last_read = next_check = clock()
    delivered = delivered_bytes = lost = dropped = late = 0
    latest = queue_max = 0.0
    asleep = False

    while True:
        # Read all there is. After a sleep the packets came at some time in it: take its middle.
        now = clock()
        arrived = (now + last_read) / 2 if asleep else now
        count = 0
        try:
            while count < READ_BATCH:
                packet = read(source, longest)
                count += 1
                if byte_seconds:
                    if wire_free < arrived:
                        wire_free = arrived
                    elif wire_free - arrived > queue_seconds:
                        dropped += 1
                        continue
                    wire_free += len(packet) * byte_seconds
                else:
                    wire_free = arrived
                until_loss -= 1
                if until_loss < 0:
                    lost += 1
                    until_loss = packets_until_loss(rng, loss)
                    continue
                pending.append((wire_free + delay, packet))
        except BlockingIOError:
            pass
        last_read = now
        if wire_free - now > queue_max:
            queue_max = wire_free - now

        # Deliver what is due. While it sleeps in ticks, a packet is up to half a tick early or
        # late, so that on average it is neither.
        now = clock() + (TICK_SECONDS / 2 if asleep else 0.0)
        if pending and pending[0][0] <= now:
            if now - pending[0][0] > latest:
                latest = now - pending[0][0]
            late_before = now - LATE_SECONDS
            # Bounded like reading, so that neither end of the wire waits for the other.
            for _ in range(2 * READ_BATCH):
                if not pending or pending[0][0] > now:
                    break
                due, packet = pending.popleft()
                write(target, packet)
                delivered += 1
                delivered_bytes += len(packet)
                if due < late_before:
                    late += 1

        # Rest: a tick while packets flow, otherwise until the next one is due or arrives.
        asleep = False
        now = clock()
        wait = pending[0][0] - now if pending else None
        if count == READ_BATCH or (wait is not None and wait <= 0):
            ready = ()
        elif count > 1 or len(pending) > FEW_PACKETS:
            sleep(TICK_SECONDS)
            asleep = True
            ready = ()
        else:
            ready = select.select([source, line], [], [], wait)[0]

        # Requests are rare; looking for them in every round would be a system call too many.
        if line in ready or now > next_check:
            next_check = now + 0.05
            try:
                request = line.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            if not request:
                return
            change = json.loads(request)
            delay, rate = change.get("delay", delay), change.get("rate", rate)
            loss, queue = change.get("loss", loss), change.get("queue", queue)
            byte_seconds = 1 / rate if rate else 0.0
            queue_seconds = queue * byte_seconds if rate and queue is not None else math.inf
            if "loss" in change:
                until_loss = packets_until_loss(rng, loss)
            reply = {
                "packets": delivered,
                "bytes": delivered_bytes,
                "lost": lost,
                "dropped": dropped,
                "queue_ms_max": round(queue_max * 1000, 3),
                "late": late,
                "late_ms_max": round(latest * 1000, 3),
                "cpu_seconds": round(time.process_time(), 3),
            }
            line.sendall(json.dumps(reply).encode() + b"\n")


def packets_until_loss(rng, loss):
    """How many packets pass before the next lost one: one random number a loss, not a packet."""
    if loss <= 0:
        return math.inf
    if loss >= 1:
        return 0
    return int(math.log(1 - rng.random()) / math.log(1 - loss))


def describe(stats):
    """The counters in words, a line each way."""
    lines = []
    for name, s in stats.items():
        lines.append(
            f"{name:4}  {s['packets']} packets, {s['bytes']} bytes; {s['lost']} lost, {s['dropped']} dropped by the queue"
            f" (longest {s['queue_ms_max']:.1f} ms); {s['late']} late (at most {s['late_ms_max']:.1f} ms),"
            f" {s['cpu_seconds']:.2f} s CPU"
        )
    return "\n".join(lines)


def parse_args(argv):
    own, command = argv, []
    if "--" in argv:
        cut = argv.index("--")
        own, command = argv[:cut], argv[cut + 1 :]
    parser = argparse.ArgumentParser(
        prog="link.py",
        usage="%(prog)s [options] -- COMMAND...",
        description="Runs COMMAND on the client's end of a simulated link.",
        epilog="LINK_SERVER and LINK_CLIENT hold the addresses of both ends. COMMAND's exit code is returned.",
    )
    parser.add_argument("--rtt", type=float, default=0.0, metavar="MS", help="round trip in milliseconds (default 0)")
    parser.add_argument("--rate", type=float, metavar="MBIT", help="10^6 bits a second each way (default: no limit)")
    parser.add_argument("--loss", type=float, default=0.0, metavar="PERCENT", help="of the packets, each way (default 0)")
    parser.add_argument("--queue", type=int, metavar="BYTES", help="default: one bandwidth-delay product")
    parser.add_argument("--mtu", type=int, default=1500, metavar="BYTES", help="default 1500")
    parser.add_argument("--seed", type=int, default=1, help="of the losses (default 1)")
    parser.add_argument("--server", metavar="SHELL_COMMAND", help="runs on the server's end; COMMAND waits until it listens")
    parser.add_argument("-q", "--quiet", action="store_true", help="no counters at the end")
    args = parser.parse_args(own)
    if not command:
        parser.error("no COMMAND after --")
    return args, command


def main(argv):
    args, command = parse_args(argv)
    env = dict(os.environ, LINK_SERVER=SERVER_ADDR, LINK_CLIENT=CLIENT_ADDR)
    # SIGTERM ends it as Ctrl-C does, through the clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        link = Link(args.rtt / 2, args.rate, args.loss / 100, args.queue, args.mtu, args.seed)
        with link:
            if args.server:
                server = link.server(["/bin/sh", "-c", "exec " + args.server], env=env, stdin=subprocess.DEVNULL)
                if not link.wait_listening(server):
                    raise LinkError("the server's command does not listen on TCP")
            code = link.client(command, env=env).wait()
    except (LinkError, ValueError, OSError) as error:
        print(f"link.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if not args.quiet and link.final_stats:
        print(describe(link.final_stats), file=sys.stderr)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    if sys.argv[1:2] == ["--forward"]:
        source_fd, target_fd, line_fd = map(int, sys.argv[2:5])
        forward(source_fd, target_fd, socket.socket(fileno=line_fd), json.loads(sys.argv[5]))
    else:
        sys.exit(main(sys.argv[1:]))
