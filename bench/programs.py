"""The programs that take part: where they are, their versions, and how to install them."""

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass

from processes import BenchError, note, read_text

# Servers often live where only root's PATH leads.
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


DEFAULT_BINARY = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "target", "release", "fastdrop")


@dataclass(frozen=True)
class Program:
    command: str
    package: str
    ask: str = "--version"

    @property
    def path(self):
        return shutil.which(self.command, path=SEARCH)

    def version(self):
        """The first thing that looks like a version in what it says of itself."""
        asked = subprocess.run([self.path, self.ask], capture_output=True, text=True, check=False)
        found = re.search(r"v?\d+(?:\.\d+)+\w*", asked.stdout + asked.stderr)
        return found.group() if found else "unknown"


CURL = Program("curl", "curl")
NGINX = Program("nginx", "nginx-light", "-v")

# What each peer needs. The first three must run, or there is nothing to compare with.
PEERS = {
    "nginx": [NGINX, CURL],
    "rsync": [Program("rsync", "rsync")],
    "gridftp": [
        Program("globus-gridftp-server", "globus-gridftp-server-progs"),
        Program("globus-url-copy", "globus-gass-copy-progs", "-version"),
    ],
    "rclone": [NGINX, Program("rclone", "rclone", "version")],
    "aria2": [NGINX, Program("aria2c", "aria2")],
    "scp": [Program("sshd", "openssh-server", "-V"), Program("scp", "openssh-client", "-V"), Program("ssh", "openssh-client", "-V")],
    "xrootd": [Program("xrootd", "xrootd-server", "-v"), Program("xrdcp", "xrootd-client")],
}
REQUIRED = ["nginx", "rsync", "gridftp"]


def find_binary(path):
    """FastDrop itself."""
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        raise BenchError(f"no program at {path}: run `cargo build --release` first, or give --fastdrop PATH")
    return os.path.abspath(path)


def missing(peer):
    return [program for program in PEERS[peer] if not program.path]


def install(peers):
    """Installs what is missing with apt-get, as root or through sudo."""
    packages = sorted({program.package for peer in peers for program in missing(peer)})
    if not packages:
        return
    if not shutil.which("apt-get"):
        raise BenchError(f"--install needs apt-get; install what these packages of Debian hold: {' '.join(packages)}")
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    note(f"installing {' '.join(packages)}")
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run([*apt, *arguments], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"apt-get {arguments[0]} ended with {done.returncode}:\n{done.stdout}")


def find(peers, must_have):
    """Sorts peers into those that can run and those that cannot, with what they lack."""
    absent = {peer: ", ".join(program.command for program in missing(peer)) for peer in peers}
    absent = {peer: lacks for peer, lacks in absent.items() if lacks}
    for peer in must_have:
        if peer in absent:
            raise BenchError(f"{absent[peer]} not found: give --install, or choose others with --peers")
    return [peer for peer in peers if peer not in absent], absent


def versions(peers):
    found = {}
    for program in (program for peer in peers for program in PEERS[peer]):
        # ssh and scp come together and have one version.
        if program.command not in ("ssh", "scp"):
            found[program.command] = program.version()
    return found


def machine():
    """What figures depend on and a reader cannot see."""
    model = "unknown processor"
    for line in read_text("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "system": f"{platform.system()} {platform.release()}",
        "congestion": read_text("/proc/sys/net/ipv4/tcp_congestion_control").strip(),
    }


def describe(machine):
    return (
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, {machine['system']},"
        f" whose default congestion control is {machine['congestion']}"
    )
