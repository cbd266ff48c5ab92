#!/usr/bin/env python3
"""A server and a client of fastdp 2.0 without capabilities, written from docs/protocol/fastdp.md.

    fastdp2.py serve FOLDER [--cut N] [--stubborn] [--wrong-end]
    fastdp2.py put PORT SOURCE [--cut N] [--checkpoint] [--wrong-end] [--checksum xxh3|none]
    fastdp2.py get PORT PATH FOLDER [--holds FOLDER] [--links copy|skip] [--checksum xxh3|none]
    fastdp2.py list PORT PATH

It knows nothing of identities, proofs, contents, previews, or what is left out: a server continues
whatever has the same path, size and time, a client believes what it is told to be held. `serve`
prints its port first; all print one line for each thing that happens.
"""

import argparse
import json
import os
import secrets
import socket
import stat
import struct
import sys
import threading

sys.dont_write_bytecode = True
from hashes import blake3, xxh3  # noqa: E402

OPEN, GRANT, REFUSE, MANIFEST, MANIFEST_END, SKIP, HELD, NEED, CONFIRM, AGAIN = range(1, 11)
CHECKPOINT, CHECKPOINTED, SIZE, ABANDON, ABANDONED, END, DONE, MORE, ALIVE, SPENT = range(11, 21)
FILE, FOLDER, LINK, STREAM = 1, 2, 3, 4
CONTROL = 0x8000_0000


class Refused(Exception):
    """What this end refuses, with a code and a sentence."""


class Over(Exception):
    """The other end refused, or the connection is to be cut."""


def say(*words):
    print(*words, flush=True)


# ---- the connection


class Connection:
    def __init__(self, socket):
        self.socket, self.has_header = socket, False

    def read(self, count):
        data = bytearray()
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def head(self):
        head = bytearray()
        while not head.endswith(b"\r\n\r\n"):
            head += self.read(1)
        first, *lines = head.decode().split("\r\n")
        return first, {name.lower(): value for name, value in (line.split(": ", 1) for line in lines if line)}

    def send(self, data):
        self.socket.sendall(data)

    def send_header(self, text):
        self.has_header = True
        self.send(struct.pack(">I", len(text)) + text)

    @staticmethod
    def packed(kind, payload):
        return struct.pack(">II", CONTROL | kind, len(payload)) + payload

    def control(self, kind, payload=b""):
        if isinstance(payload, dict):
            payload = json.dumps(payload).encode()
        self.send(self.packed(kind, payload))
        return payload

    def frame(self):
        """The next frame but ALIVE: its number and payload."""
        while True:
            number, size = struct.unpack(">II", self.read(8))
            payload = self.read(size)
            if number == CONTROL | REFUSE:
                refuse = json.loads(payload)
                say("refused", refuse["Code"], refuse["Message"])
                raise Over
            if number & CONTROL and not OPEN <= number - CONTROL <= SPENT:
                say("unknown frame", number - CONTROL)
                raise Refused(400, "an unknown frame type")
            if number != CONTROL | ALIVE:
                return number, payload

    def refuse(self, code, message):
        try:
            if not self.has_header:
                self.send_header(json.dumps(header_of([], 1024)).encode())
            self.control(REFUSE, {"Code": code, "Message": message, "Paths": []})
            self.socket.shutdown(socket.SHUT_WR)
            # What is still on its way must not reset the connection before the refusal is read.
            while self.socket.recv(1 << 16):
                pass
        except OSError:
            pass

    def expect(self, kind):
        number, payload = self.frame()
        if number != CONTROL | kind:
            raise Refused(400, f"a frame {number:#x} instead of type {kind}")
        return payload


# ---- the manifest and its chunks


class Entry:
    def __init__(self, kind, path, mode, time, size=0, target=b"", source=None):
        self.kind, self.path, self.mode, self.time = kind, path, mode, time
        self.size, self.target, self.source = size, target, source

    def encode(self):
        seconds, nanoseconds = divmod(self.time, 10**9)
        out = struct.pack(">BH", self.kind, len(self.path)) + self.path
        out += struct.pack(">IqI", self.mode, seconds, nanoseconds)
        if self.kind == FILE:
            out += struct.pack(">Q", self.size)
        if self.kind == LINK:
            out += struct.pack(">H", len(self.target)) + self.target
        return out


def decode(data, listing=False):
    entries, at = [], 0

    def take(count):
        nonlocal at
        at += count
        if at > len(data):
            raise Refused(400, "half an entry")
        return data[at - count : at]

    while at < len(data):
        kind, length = struct.unpack(">BH", take(3))
        path = take(length)
        mode, seconds, nanoseconds = struct.unpack(">IqI", take(16))
        entry = Entry(kind, path, mode, seconds * 10**9 + nanoseconds)
        if kind == FILE:
            entry.size = struct.unpack(">Q", take(8))[0]
        elif kind == LINK:
            entry.target = take(struct.unpack(">H", take(2))[0])
        elif kind not in (FOLDER, STREAM):
            raise Refused(400, "an unknown kind of entry")
        entries.append(entry)
    tops = {entry.path.split(b"/")[0] for entry in entries}
    for entry in entries:
        names = entry.path.split(b"/")
        if len(entry.path) > 4096 or any(not 0 < len(name) < 256 or name in (b".", b"..", b".fastdrop") for name in names):
            raise Refused(400, "a path that breaks a rule")
        if entry.kind == LINK and not listing and not may_lead(entry.path, entry.target, tops):
            raise Refused(400, "a link that breaks a rule")
    return entries


def may_lead(path, target, tops):
    """The rule for links without the capability `links`."""
    depth, named, decided = path.count(b"/"), False, path.count(b"/") > 0
    if target.startswith(b"/") or not target:
        return False
    for name in target.split(b"/"):
        if name in (b"", b"."):
            continue
        if name == b"..":
            if named or depth == 0:
                return False
            depth -= 1
            decided = depth > 0
            continue
        named = True
        if depth == 0:
            if len(tops) < 2 or name not in tops:
                return False
            decided = True
        depth += 1
    return decided


def look(path, name):
    """The entry `name` for what is at `path`."""
    found = os.lstat(path)
    if stat.S_ISDIR(found.st_mode):
        return Entry(FOLDER, name, found.st_mode & 0o777, found.st_mtime_ns)
    if stat.S_ISLNK(found.st_mode):
        return Entry(LINK, name, 0o777, found.st_mtime_ns, target=os.readlink(path))
    return Entry(FILE, name, found.st_mode & 0o777, found.st_mtime_ns, found.st_size, source=path)


def walk(path, name, depth=100):
    """Entries for `path`, called `name`, which is empty for the contents of a folder."""
    found = [look(path, name)] if name else []
    if os.path.isdir(path) and not os.path.islink(path) and depth:
        for child in sorted(os.listdir(path)):
            found += walk(os.path.join(path, child), name + b"/" + child if name else child, depth - 1)
    return found


def chunks_of(entries, one):
    """For each chunk: its slices, as entry, offset and length, and whether it is a piece."""
    chunks, pack = [], None
    for at, entry in enumerate(entries):
        if entry.kind != FILE or entry.size == 0:
            continue
        if entry.size >= one:
            pack = None
            for offset in range(0, entry.size, one):
                chunks.append(([(at, offset, min(one, entry.size - offset))], True))
            continue
        if pack is None or sum(size for _, _, size in pack) + entry.size > one or len(pack) == 1024:
            pack = []
            chunks.append((pack, False))
        pack.append((at, 0, entry.size))
    return chunks


class Sums:
    def __init__(self, algorithm):
        if algorithm not in ("xxh3", "none"):
            raise Refused(415, "a checksum that this end does not know")
        self.length = 8 if algorithm == "xxh3" else 0

    def of(self, data):
        return xxh3(data).to_bytes(8, "big") if self.length else b""

    def of_chunk(self, slices, is_piece, data):
        if is_piece:
            return self.of(data)
        sums, at = b"", 0
        for _, _, size in slices:
            sums += self.of(data[at : at + size])
            at += size
        return self.of(sums)


def root_digest(transcript, sums):
    text = xxh3(transcript).to_bytes(8, "big")
    return blake3(text + b"".join(struct.pack(">I", number) + sums[number] for number in sorted(sums)))


# ---- the two ends of a transfer


def send_manifest(connection, entries):
    encoded = [entry.encode() for entry in entries]
    part = b""
    for entry in encoded:
        if len(part) + len(entry) > 1 << 20:
            connection.control(MANIFEST, part)
            part = b""
        part += entry
    connection.control(MANIFEST, part)
    digest = xxh3(b"".join(encoded))
    size = sum(entry.size for entry in entries)
    connection.control(MANIFEST_END, struct.pack(">IQQ", len(entries), size, digest))


def read_manifest(connection, listing=False):
    data = b""
    while True:
        number, payload = connection.frame()
        if number == CONTROL | MANIFEST:
            data += payload
        elif number == CONTROL | MANIFEST_END:
            break
        else:
            raise Refused(400, "another frame than those of a manifest")
    entries = decode(data, listing)
    count, size, digest = struct.unpack(">IQQ", payload)
    if (count, size, digest) != (len(entries), sum(entry.size for entry in entries), xxh3(data)):
        raise Refused(400, "a manifest that contradicts its end")
    return entries


def send_files(connection, entries, one, sums, transcript, cut=None, wrong_end=False, join=None):
    """Sends what the receiver needs. As 2.0 did, it believes what the receiver holds.

    `join` opens a data stream, which ends with a checkpoint.
    """
    chunks = chunks_of(entries, one)
    skipped, known = {}, {}
    while True:
        number, payload = connection.frame()
        if number == CONTROL | SKIP:
            for first, count, reason in struct.iter_unpack(">IIB", payload):
                skipped.update(dict.fromkeys(range(first, first + count), reason))
        elif number == CONTROL | HELD:
            first, held = struct.unpack(">I", payload[:4])[0], payload[4:]
            for at in range(len(held) // sums.length if sums.length else 1):
                known[first + at] = held[at * sums.length : (at + 1) * sums.length]
        elif number == CONTROL | NEED:
            break
        else:
            raise Refused(400, "another frame than those of an answer")
    say("needed", *struct.unpack(">IQ", payload), "held", len(known), "skipped", len(skipped), "of them held", list(skipped.values()).count(3))
    unconfirmed = set()
    carrier = join() if join else connection

    def send(at):
        slices, is_piece = chunks[at]
        slices = [slice for slice in slices if slice[0] not in skipped]
        if not slices:
            return
        data = b""
        for entry, offset, size in slices:
            with open(entries[entry].source, "rb") as file:
                file.seek(offset)
                data += file.read(size)
        known[at] = sums.of_chunk(slices, is_piece, data)
        unconfirmed.add(at)
        carrier.send(struct.pack(">II", at, len(data) + sums.length) + data + known[at])

    def settle():
        while unconfirmed:
            number, payload = carrier.frame()
            if number == CONTROL | CONFIRM:
                unconfirmed.difference_update(number for (number,) in struct.iter_unpack(">I", payload))
            elif number == CONTROL | AGAIN:
                for (number,) in struct.iter_unpack(">I", payload):
                    send(number)

    for at in range(len(chunks)):
        if at == cut:
            settle()
            say("cut")
            raise Over
        if at not in known:
            send(at)
    settle()
    if join:
        carrier.control(CHECKPOINT)
        carrier.expect(CHECKPOINTED)
        say("checkpointed")
    digest = root_digest(transcript, known)
    connection.control(SPENT, bytes(24))
    connection.control(END, bytes(32) if wrong_end else digest)
    done = json.loads(connection.expect(DONE))
    say("done", done["Files"], "failed", len(done.get("Failed", [])))


def receive_files(connection, entries, one, sums, transcript, skipped, held, cut=None):
    """Takes what is not `skipped` or `held`; the bytes of each entry, once END was right."""
    chunks = chunks_of(entries, one)
    runs = [struct.pack(">IIB", entry, 1, reason) for entry, reason in sorted(skipped.items())]
    answer = connection.packed(SKIP, b"".join(runs)) if runs else b""
    known, brought = {}, dict(held)
    for number in sorted(held):
        slices, is_piece = chunks[number]
        known[number] = sums.of_chunk(slices, is_piece, held[number])
        answer += connection.packed(HELD, struct.pack(">I", number) + known[number])
    missing = {}
    for number, (slices, is_piece) in enumerate(chunks):
        slices = [slice for slice in slices if slice[0] not in skipped]
        if slices and number not in held:
            missing[number] = (slices, is_piece)
    size = sum(size for slices, _ in missing.values() for _, _, size in slices)
    # At once, so that a refusal in between is read.
    connection.send(answer + connection.packed(NEED, struct.pack(">IQ", len(missing), size)))
    came = 0
    while True:
        number, payload = connection.frame()
        if number == CONTROL | END:
            break
        if number == CONTROL | ABANDON:
            connection.control(ABANDONED, payload[:4])
        elif number < len(chunks):
            slices, is_piece = chunks[number]
            slices = [slice for slice in slices if slice[0] not in skipped]
            data, sum_ = payload[: len(payload) - sums.length], payload[len(payload) - sums.length :]
            if len(data) != sum(size for _, _, size in slices):
                raise Refused(400, "a chunk of another length")
            if sums.of_chunk(slices, is_piece, data) != sum_:
                raise Refused(422, "a wrong checksum")
            if known.setdefault(number, sum_) != sum_:
                raise Refused(409, "two versions of one chunk")
            brought[number] = data
            connection.control(CONFIRM, struct.pack(">I", number))
            came += 1
            if came == cut:
                return brought, False
        elif number != CONTROL | SPENT:
            raise Refused(400, "a frame that a sender does not send")
    if set(missing) - set(brought):
        raise Refused(422, "END before everything was there")
    if root_digest(transcript, known) != payload:
        raise Refused(422, "another root digest")
    return brought, True


def bytes_of(entries, chunks, skipped, brought):
    """Puts the bytes of entries together, as far as they were brought."""
    found = {}
    for number, data in brought.items():
        at = 0
        for entry, offset, size in chunks[number][0]:
            if entry not in skipped:
                found.setdefault(entry, {})[offset] = data[at : at + size]
                at += size
    return found


def write(folder, entry, parts):
    path = os.path.join(folder, entry.path)
    if entry.kind == FOLDER:
        os.makedirs(path, exist_ok=True)
    elif entry.kind == LINK:
        os.symlink(entry.target, path)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            for offset in sorted(parts):
                file.seek(offset)
                file.write(parts[offset])
        os.chmod(path, entry.mode)
        os.utime(path, ns=(entry.time, entry.time))


def finish_folders(folder, entries):
    for entry in reversed(entries):
        if entry.kind == FOLDER:
            path = os.path.join(folder, entry.path)
            os.chmod(path, entry.mode)
            os.utime(path, ns=(entry.time, entry.time))


# ---- the server


class Server:
    def __init__(self, args):
        self.args, self.partial = args, {}
        self.cuts = [args.cut] if args.cut else []

    def serve(self):
        listener = socket.create_server(("127.0.0.1", 0))
        say(listener.getsockname()[1])
        while True:
            accepted, _ = listener.accept()
            threading.Thread(target=self.handle, args=(Connection(accepted),), daemon=True).start()

    def handle(self, connection):
        try:
            first, fields = connection.head()
            assert first == "GET /fastdp-endpoint HTTP/1.1" and fields["sec-fastdp-version"].startswith("2."), first
            connection.send(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: fastdp\r\nConnection: Upgrade\r\n"
                f"Sec-FastDP-Key: {fields['sec-fastdp-key']}\r\nSec-FastDP-Version: 2.0.0\r\n\r\n".encode()
            )
            self.session(connection)
        except Refused as refused:
            code, message = refused.args
            say("refuses", code, message)
            connection.refuse(code, message)
        except (Over, EOFError, OSError):
            pass
        finally:
            connection.socket.close()

    def session(self, connection):
        client = connection.read(struct.unpack(">I", connection.read(4))[0])
        open_text = connection.expect(OPEN)
        opened = json.loads(open_text)
        if opened["Do"] not in ("put", "get", "list"):
            raise Refused(400 if opened["Do"] != "join" else 404, f"Do is {opened['Do']}")
        grant = {"Transfer": secrets.token_hex(16), "Streams": 1, "Checksum": opened["Checksum"]}
        grant |= {"Durability": opened["Durability"], "Place": "into", "Capabilities": []}
        sums = Sums(opened["Checksum"])
        path = bytes.fromhex("".join(percent_decoded(opened["Path"])))
        answer = {"put": self.put, "get": self.get, "list": self.list}[opened["Do"]]
        answer(connection, client, open_text, opened, grant, sums, path)

    def agree(self, connection, client, open_text, header, grant):
        connection.send_header(header)
        return client + open_text + header + connection.control(GRANT, grant)

    def put(self, connection, client, open_text, opened, grant, sums, path):
        entries = read_manifest(connection)
        one = json.loads(client)["OneChunk"]
        place = opened["Place"]
        if place == "as" or place == "auto" and path and not os.path.isdir(os.path.join(self.args.folder, path)):
            raise Refused(415, "this peer puts things into folders only")
        folder = os.path.join(self.args.folder, path)
        skipped, held = {}, {}
        resume = opened["Resume"] or self.args.stubborn
        for at, entry in enumerate(entries):
            there = os.path.join(folder, entry.path)
            if os.path.lexists(there):
                same = look(there, entry.path)
                if entry.kind == FILE and (same.size, same.time) != (entry.size, entry.time):
                    raise Refused(409, "it exists and differs")
                skipped[at] = 1
        chunks = chunks_of(entries, one)
        parts = {}
        for number, (slices, is_piece) in enumerate(chunks):
            for at, offset, size in slices:
                key = (entries[at].path, entries[at].size, entries[at].time)
                data = self.partial.get(key, {}).get(offset) if resume else None
                if data is None or at in skipped or len(data) != size:
                    continue
                if is_piece:
                    held[number] = data
                else:
                    skipped[at] = 3
                    parts[at] = {0: data}
        say("put resume", str(opened["Resume"]).lower(), "held", len(held), "skipped", list(skipped.values()).count(3))
        transcript = self.agree(connection, client, open_text, client, grant)
        cut = self.cuts.pop() if self.cuts else None
        brought, is_all = receive_files(connection, entries, one, sums, transcript, skipped, held, cut)
        parts |= bytes_of(entries, chunks, skipped, brought)
        if not is_all:
            for at, found in parts.items():
                self.partial[entries[at].path, entries[at].size, entries[at].time] = found
            say("cut")
            raise Over
        files = 0
        for at, entry in enumerate(entries):
            if skipped.get(at) != 1:
                write(folder, entry, parts.get(at, {}))
                files += entry.kind == FILE
        finish_folders(folder, entries)
        done = {"Files": files, "Bytes": 0, "Durability": opened["Durability"], "Failed": []}
        connection.control(DONE, done | {"WaitMicros": 0, "CpuMicros": 0, "WriteMicros": 0})
        say("done", files)

    def header(self, client, entries, one):
        totals = {"FullChunk": len(chunks_of(entries, one)), "FullSize": sum(entry.size for entry in entries)}
        return json.dumps(json.loads(client) | {"OneChunk": one} | totals).encode()

    def get(self, connection, client, open_text, opened, grant, sums, path):
        there = os.path.join(self.args.folder, path.rstrip(b"/"))
        if not os.path.lexists(there):
            raise Refused(404, "not there")
        contents = not path or path.endswith(b"/")
        entries = walk(there, b"" if contents else os.path.basename(there))
        one = min(json.loads(client)["OneChunk"], 1 << 16)
        say("get resume", str(opened["Resume"]).lower())
        transcript = self.agree(connection, client, open_text, self.header(client, entries, one), grant)
        send_manifest(connection, entries)
        cut = self.cuts.pop() if self.cuts else None
        send_files(connection, entries, one, sums, transcript, cut, self.args.wrong_end)

    def list(self, connection, client, open_text, _opened, grant, _sums, path):
        entries = walk(os.path.join(self.args.folder, path), b"", 1)
        self.agree(connection, client, open_text, self.header(client, [], 1 << 16), grant)
        send_manifest(connection, entries)
        say("list")


def percent_decoded(text):
    """The octets of a percent-encoded text, each as two hex digits."""
    at = 0
    while at < len(text):
        if text[at] == "%":
            yield text[at + 1 : at + 3]
            at += 3
        else:
            yield text[at].encode().hex()
            at += 1


# ---- the client


def connect(port):
    connection = Connection(socket.create_connection(("127.0.0.1", port), 60))
    key = secrets.token_hex(16)
    connection.send(
        "GET /fastdp-endpoint HTTP/1.1\r\nHost: x\r\nUpgrade: fastdp\r\nConnection: Upgrade\r\n"
        f"Sec-FastDP-Key: {key}\r\nSec-FastDP-Version: 2.0.0\r\n\r\n".encode()
    )
    first, fields = connection.head()
    assert " 101 " in first and fields["sec-fastdp-key"] == key, (first, fields)
    return connection


def offer(connection, do, path, checksum, header, entries=None, links="copy"):
    """Sends header, OPEN and a manifest.

    Returns the header of the server, the transcript, and the name of the transfer.
    """
    client = json.dumps(header).encode()
    connection.send_header(client)
    opened = {"Do": do, "Path": "".join(f"%{octet:02x}" for octet in path), "Place": "auto", "Streams": 1}
    opened |= {"Checksum": checksum, "Existing": "error", "Durability": "commit", "Links": links, "Resume": True}
    open_text = connection.control(OPEN, opened)
    if entries is not None:
        send_manifest(connection, entries)
    first = struct.unpack(">I", connection.read(4))[0]
    if first & CONTROL:
        refuse = json.loads(connection.read(struct.unpack(">I", connection.read(4))[0]))
        say("refused", refuse["Code"], refuse["Message"])
        raise Over
    server = connection.read(first)
    grant = connection.expect(GRANT)
    assert json.loads(grant)["Capabilities"] == [], grant
    return json.loads(server), client + open_text + server + grant, json.loads(grant)["Transfer"]


def header_of(entries, one):
    totals = {"OneChunk": one, "FullChunk": len(chunks_of(entries, one)), "FullSize": sum(entry.size for entry in entries)}
    return totals | {"DPVersion": "2.0.0", "CompressType": "None", "FileName": "x"}


def put(args):
    entries = walk(args.source, os.path.basename(args.source))
    connection = connect(args.port)
    header = header_of(entries, args.chunk)
    server, transcript, transfer = offer(connection, "put", b"", args.checksum, header, entries)

    def join():
        joined = connect(args.port)
        joined.send_header(json.dumps(header).encode())
        joined.control(OPEN, {"Do": "join", "Transfer": transfer, "Streams": 1, "Checksum": args.checksum})
        joined.read(struct.unpack(">I", joined.read(4))[0])
        joined.expect(GRANT)
        return joined

    by = join if args.checkpoint else None
    send_files(connection, entries, server["OneChunk"], Sums(args.checksum), transcript, args.cut, args.wrong_end, by)


def get(args):
    connection = connect(args.port)
    server, transcript, _ = offer(connection, "get", args.path, args.checksum, header_of([], args.chunk), links=args.links)
    entries = read_manifest(connection)
    skipped, held = {}, {}
    chunks = chunks_of(entries, server["OneChunk"])
    for number, (slices, is_piece) in enumerate(chunks):
        for at, offset, size in slices:
            there = os.path.join(args.holds, entries[at].path) if args.holds else None
            if not there or not os.path.exists(there):
                continue
            with open(there, "rb") as file:
                file.seek(offset)
                data = file.read(size)
            if is_piece and data:
                held[number] = data
            elif not is_piece:
                skipped[at] = 3
    say("offers held", len(held), "skipped", len(skipped))
    brought, _ = receive_files(connection, entries, server["OneChunk"], Sums(args.checksum), transcript, skipped, held)
    parts = bytes_of(entries, chunks, skipped, brought)
    for at, entry in enumerate(entries):
        if at not in skipped:
            write(args.folder, entry, parts.get(at, {}))
    finish_folders(args.folder, entries)
    done = {"Files": len(parts), "Bytes": 0, "Durability": "commit", "Failed": []}
    connection.control(DONE, done | {"WaitMicros": 0, "CpuMicros": 0, "WriteMicros": 0})
    say("done", len(parts))


def list_(args):
    connection = connect(args.port)
    offer(connection, "list", args.path, "xxh3", header_of([], 1 << 16))
    say("listed", *sorted(entry.path.decode() for entry in read_manifest(connection, True)))


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("serve")
    one.add_argument("folder", type=os.fsencode)
    one.add_argument("--cut", type=int, help="ends the first transfer after so many chunks")
    one.add_argument("--stubborn", action="store_true", help="continues although Resume is false")
    one.add_argument("--wrong-end", action="store_true")
    one = commands.add_parser("put")
    one.add_argument("port", type=int)
    one.add_argument("source", type=os.fsencode)
    one.add_argument("--cut", type=int, help="ends when so many chunks are confirmed")
    one.add_argument("--checkpoint", action="store_true", help="sends by a data stream, up to a checkpoint")
    one.add_argument("--wrong-end", action="store_true")
    one = commands.add_parser("get")
    one.add_argument("port", type=int)
    one.add_argument("path", type=os.fsencode)
    one.add_argument("folder", type=os.fsencode)
    one.add_argument("--holds", type=os.fsencode, help="a folder of which it says that it holds what has the same names")
    one.add_argument("--links", default="copy")
    for one_of in ("put", "get"):
        commands.choices[one_of].add_argument("--checksum", default="xxh3")
        commands.choices[one_of].add_argument("--chunk", type=int, default=1 << 16)
    one = commands.add_parser("list")
    one.add_argument("port", type=int)
    one.add_argument("path", type=os.fsencode)
    args = parser.parse_args()
    if args.command == "serve":
        Server(args).serve()
    try:
        {"put": put, "get": get, "list": list_}[args.command](args)
    except Over:
        pass
    except (Refused, EOFError) as ended:
        say("refuses" if isinstance(ended, Refused) else "ended", *ended.args)


if __name__ == "__main__":
    main()
