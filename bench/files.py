"""Sources to transfer, ballast between runs, and the comparison of what arrived."""

import contextlib
import os
import random
import shutil
import subprocess
import tempfile

from processes import BenchError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
BLOCK = 4 * MIB
FILES_PER_FOLDER = 100


@contextlib.contextmanager
def work_folder(parent, need_bytes):
    """A temporary folder with room for `need_bytes`, gone in the end."""
    if not os.path.isdir(parent):
        raise BenchError(f"there is no folder {parent}")
    free = shutil.disk_usage(parent).free
    if free < need_bytes:
        raise BenchError(f"{parent} has {free // MIB} MiB free, {need_bytes // MIB} MiB are needed")
    if file_system(parent) == "tmpfs" and memory_available() < need_bytes:
        raise BenchError(f"{memory_available() // MIB} MiB of memory are available, {need_bytes // MIB} MiB are needed")
    folder = tempfile.mkdtemp(prefix="fastdrop-bench-", dir=parent)
    # Some servers give up root's rights and must still get through.
    os.chmod(folder, 0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def memory_available():
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * KIB for line in lines if line.startswith("MemAvailable:"))


def file_system(path):
    """The name of the file system's type, such as ext4."""
    command = ["df", "--output=fstype", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[1]


def write_random(path, size):
    with open(path, "wb", buffering=0) as file:
        while size > 0:
            size -= file.write(os.urandom(min(size, BLOCK)))


def write_text(path, size):
    """Words as unevenly spread as those of a language: Zstandard leaves about a third of it."""
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(5000)]
    block = " ".join(rng.choices(words, [1 / rank for rank in range(1, 5001)], k=BLOCK)).encode()
    with open(path, "wb", buffering=0) as file:
        while size > 0:
            # Another beginning each time, so that blocks do not repeat within reach of a compressor.
            start = rng.randrange(len(block) // 2)
            size -= file.write(block[start : start + min(size, len(block) // 2)])


def make_sparse(path, size):
    with open(path, "wb") as file:
        file.truncate(size)


def make_tree(path, files, sizes):
    """Files of sizes evenly spread over `sizes`, in folders of a hundred; returns their bytes together."""
    rng = random.Random(1)
    total = 0
    for number in range(files):
        folder = os.path.join(path, f"{number // FILES_PER_FOLDER:04}")
        if number % FILES_PER_FOLDER == 0:
            os.makedirs(folder)
        size = rng.randint(*sizes)
        write_random(os.path.join(folder, f"{number:06}.bin"), size)
        total += size
    return total


def ballast(path, size):
    """Takes and gives back as much memory as the next run will take.

    Memory that was in use a moment ago can be had for a fraction of what it costs after it went
    back to the machine's host, so every run has to find the same.
    """
    block = bytes(BLOCK)
    with open(path, "wb", buffering=0) as file:
        while size > 0:
            size -= file.write(block[: min(size, BLOCK)])
    os.unlink(path)


def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def check_same(source, target):
    """Raises unless both are the same file, or trees of the same names and bytes."""
    if os.path.isdir(source):
        names = [sorted(os.listdir(path)) if os.path.isdir(path) else [] for path in (source, target)]
        if names[0] != names[1]:
            raise BenchError(f"{target} has other names than its source")
        for name in names[0]:
            check_same(os.path.join(source, name), os.path.join(target, name))
        return
    if not os.path.exists(target):
        raise BenchError(f"{target} is not there")
    with open(source, "rb", buffering=0) as a, open(target, "rb", buffering=0) as b:
        stats = [os.fstat(file.fileno()) for file in (a, b)]
        if stats[0].st_size != stats[1].st_size:
            raise BenchError(f"{target} has another size than its source")
        if stats[0].st_blocks == stats[1].st_blocks == 0 and stats[0].st_size > BLOCK:
            # Both are nothing but a hole.
            return
        while block := a.read(BLOCK):
            if block != b.read(BLOCK):
                raise BenchError(f"{target} has other bytes than its source")


def birth_times(folder):
    """When each file was made, in seconds since 1970, in order; empty where it is not recorded."""
    command = ["find", folder, "-type", "f", "-exec", "stat", "-c", "%.9W", "{}", "+"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    times = sorted(map(float, lines))
    return times if times and times[0] > 0 else []
