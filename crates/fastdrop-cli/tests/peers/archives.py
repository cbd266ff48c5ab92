"""Writes archives into a folder: good-*, that must be taken, and bad-*, of which nothing may be.

    archives.py FOLDER
"""

import gzip
import io
import os
import stat
import struct
import sys
import tarfile
import warnings
import zipfile

folder = sys.argv[1]
warnings.simplefilter("ignore")  # zipfile warns of duplicate names


def write(name, data):
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)


def entry(name, content=b"content", kind=tarfile.REGTYPE, target="", mode=0o644, size=None):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    info.size = len(content) if size is None else size
    info.mtime = 1_000_000_000
    if kind != tarfile.REGTYPE:
        info.size, content = 0, b""
    return info, content


def raw_tar(*entries, form=tarfile.GNU_FORMAT, end=True):
    """Headers as they are, without tarfile's opinion of them."""
    out = b""
    for info, content in entries:
        out += info.tobuf(form) + content + b"\0" * (-len(content) % 512)
    return out + (b"\0" * 1024 if end else b"")


def tar(name, *entries, **options):
    write(name + ".tar.gz", gzip.compress(raw_tar(*entries, **options)))


def pax(records, info, content):
    """A pax header before an entry."""
    text = b""
    for key, value in records:
        line = b" %s=%s\n" % (key, value)
        length = len(line) + 1
        while len(b"%d" % length) + len(line) != length:
            length += 1
        text += b"%d" % length + line
    head = tarfile.TarInfo("pax")
    head.type, head.size = b"x", len(text)
    return (head, text), (info, content)


tar("good-tar", entry("top/a"), entry("top/suid", mode=0o4755), entry("top/sub", kind=tarfile.DIRTYPE),
    entry("top/sub/" + "long" * 40), entry("top/link", kind=tarfile.SYMTYPE, target="sub"))
tar("good-pax", *pax([(b"mtime", b"-1.25"), (b"comment", b"x"), (b"size", b"7")], *entry("top/a")))
write("good-padding.tar.gz", gzip.compress(raw_tar(entry("top/a")) + bytes(20 << 10)))

tar("bad-dotdot", entry("../x"))
tar("bad-inner-dotdot", entry("top/../../x"))
tar("bad-absolute", entry("/tmp/fastdrop-was-here"))
tar("bad-drive", entry("C:\\x"))
tar("bad-hidden", entry("top/.fastdrop/x"))
tar("bad-empty-name", entry("top//x"))
tar("bad-through-link", entry("top/link", kind=tarfile.SYMTYPE, target="sub"), entry("top/link/x"))
tar("bad-link-out", entry("top/link", kind=tarfile.SYMTYPE, target="../../etc/passwd"))
tar("bad-link-absolute", entry("top/link", kind=tarfile.SYMTYPE, target="/etc/passwd"))
tar("bad-hard-link", entry("top/a"), entry("top/b", kind=tarfile.LNKTYPE, target="top/a"))
tar("bad-device", entry("top/a", kind=tarfile.CHRTYPE))
tar("bad-pipe", entry("top/a", kind=tarfile.FIFOTYPE))
tar("bad-twice", entry("top/a"), entry("top/b"), entry("top/a", b"other"))
tar("bad-file-and-folder", entry("top/a"), entry("top/a", kind=tarfile.DIRTYPE))
tar("bad-beneath-file", entry("top/a"), entry("top/a/b"))
tar("bad-pax-size", *pax([(b"size", b"3")], *entry("top/a")))
tar("bad-pax-twice", *pax([(b"path", b"top/b"), (b"path", b"top/c")], *entry("top/a")))
tar("bad-pax-dotdot", *pax([(b"path", b"../x")], *entry("top/a")))
tar("bad-claims-8-tib", entry("top/a", size=8 << 40))
tar("bad-empty")
good = gzip.compress(raw_tar(entry("top/a", b"content" * 1000), entry("top/b")))
write("bad-cut.tar.gz", good[:-20])
write("bad-cut-inside.tar.gz", gzip.compress(raw_tar(entry("top/a", b"content" * 1000), end=False)[:1500]))
write("bad-behind.tar.gz", good + b"more")
write("bad-checksum.tar.gz", good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
write("bad-no-gzip.tar.gz", raw_tar(entry("top/a")))
write("bad-nothing.tar.gz", b"")
# 300 MiB of zeros, which a server with --max-size 100M has no room for.
write("bad-bomb.tar.gz", gzip.compress(raw_tar(entry("top/zeros", bytes(300 << 20)))))
# The same as what describes a file.
tar("bad-long-name", (lambda info: (info, bytes(64 << 20)))(entry("x", kind=b"L", content=bytes(64 << 20))[0]))


def zipped(name, *files, change=lambda data: data):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content, mode in files:
            info = zipfile.ZipInfo(path, (2001, 9, 9, 1, 46, 40))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            archive.writestr(info, content)
    write(name + ".zip", change(bytearray(out.getvalue())))


FILE, LINK = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
CENTRAL = b"PK\x01\x02"


def changed(offset, value, which=0):
    """Changes a field of one entry of the directory."""

    def change(data):
        at = -1
        for _ in range(which + 1):
            at = data.find(CENTRAL, at + 1)
        data[at + offset:at + offset + len(value)] = value
        return data

    return change


zipped("good-zip", ("top/", b"", stat.S_IFDIR | 0o755), ("top/a", b"content" * 99, FILE),
       ("top/suid", b"x", stat.S_IFREG | 0o4755), ("top/link", b"a", LINK))
zipped("bad-dotdot", ("../x", b"x", FILE))
zipped("bad-absolute", ("/tmp/fastdrop-was-here", b"x", FILE))
zipped("bad-drive", ("C:/x", b"x", FILE))
zipped("bad-through-link", ("top/link", b"sub", LINK), ("top/link/x", b"x", FILE))
zipped("bad-link-out", ("top/link", b"../../etc/passwd", LINK))
zipped("bad-device", ("top/a", b"", stat.S_IFCHR | 0o644))
zipped("bad-twice", ("top/a", b"1", FILE), ("top/a", b"2", FILE))
zipped("bad-encrypted", ("top/a", b"content", FILE), change=changed(8, b"\1"))
zipped("bad-size", ("top/a", b"content" * 99, FILE), change=changed(24, struct.pack("<I", 692)))
zipped("bad-larger-size", ("top/a", b"content" * 99, FILE), change=changed(24, struct.pack("<I", 694)))
zipped("bad-checksum", ("top/a", b"content" * 99, FILE), change=changed(16, b"\1\2\3\4"))
zipped("bad-name", ("top/a", b"content" * 99, FILE), change=changed(46, b"tip/a"))
# Two entries of the directory, one file; it is incompressible, so that both together exceed the archive.
body = os.urandom(5000)
zipped("bad-overlap", ("top/a", body, FILE), ("top/b", b"", FILE),
       change=lambda data: changed(42, struct.pack("<I", 0), 1)(changed(20, struct.pack("<I", 5005), 1)(data)))
zipped("bad-bomb", ("top/zeros", bytes(300 << 20), FILE))
zipped("bad-cut", ("top/a", b"content" * 99, FILE), change=lambda data: data[:-30])
zipped("bad-behind", ("top/a", b"content" * 99, FILE), change=lambda data: data + b"more")
zipped("bad-before", ("top/a", b"content" * 99, FILE), change=lambda data: b"more" + data)
zipped("bad-empty")


def many(data):
    end = data.rfind(b"PK\x05\x06")
    data[end + 8:end + 12] = b"\x10\x27\x10\x27"
    return data


zipped("bad-count", ("top/a", b"content", FILE), change=many)
