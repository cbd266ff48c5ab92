#!/usr/bin/env python3
"""A sender and a receiver of fastdp 1.0.0 and 1.1.0, written from docs/protocol/fastdp1.md alone.

    fastdp1.py send PORT FILE [--version V] [--compress TYPE] [--name NAME] [--first N] [--order ORDER] ...
    fastdp1.py receive FOLDER [--version V] [--reconnect-after BYTES] ...

`receive` prints its port, takes one file, and prints what it was called. `send` prints what the receiver answers.
Zstd needs the module zstandard.

What the programs that were published do, and the page does not ask for:

    send --two-headers          1.0.0 says its header twice, and reads one answer for each
    send --late SECONDS         1.1.0 shakes hands first, and reads, compresses and hashes the file only then
    receive (1.1.0)             hashes chunks in the order in which they come
    receive --server NAME       names itself in its 101; one that is a FastDrop is sent no empty chunk
    receive --exact             1.0.0 waits for exactly FullSize / OneChunk + 1 chunks, rounded down
    receive --forget            1.0.0 forgets everything when it has said RECONNECT, or lost the connection
    receive --cannot-write HOW  1.1.0 that cannot write its file closes without a text: at once, amid the
                                chunks, or at the end; it then waits for the next connection, for ever
"""

import argparse
import hashlib
import io
import json
import os
import random
import socket
import struct
import tarfile
import time
import zipfile


def read_exactly(connection, count):
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError(f"{len(data)} bytes instead of {count}")
        data += part
    return bytes(data)


def read_head(connection):
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(connection, 1)
    lines = head.decode().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:] if line)
    return lines[0], {name.lower(): value for name, value in fields.items()}


def pack(kind, content, name):
    out = io.BytesIO()
    if kind == "None":
        return content
    if kind == "Zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(content)
    if kind == "Zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
    if kind == "TarGz":
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def unpack(kind, payload):
    if kind == "None":
        return payload
    if kind == "Zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompress(payload)
    if kind == "Zip":
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            (name,) = archive.namelist()
            return archive.read(name)
    with tarfile.open(fileobj=io.BytesIO(payload), mode="r:gz") as archive:
        (member,) = archive.getmembers()
        return archive.extractfile(member).read()


def upgrade(args):
    connection = socket.create_connection(("127.0.0.1", args.port), 30)
    if args.after_another:
        # A connection that is kept alive, and upgraded by a later request.
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        _, fields = read_head(connection)
        read_exactly(connection, int(fields["content-length"]))
    connection.sendall(
        f"GET /fastdp-endpoint HTTP/1.1\r\nHost: x\r\nUpgrade: fastdp\r\nConnection: Upgrade\r\n"
        f"Sec-FastDP-Key: {args.key}\r\nSec-FastDP-Version: {args.version}\r\n\r\n".encode()
    )
    status, fields = read_head(connection)
    if " 101 " not in status:
        raise SystemExit(f"{status}; {fields.get('sec-fastdp-version')}")
    assert fields["sec-fastdp-key"] == args.key and fields["sec-fastdp-version"] == args.version, fields
    return connection


def send(args):
    early = None
    if args.late is not None:
        early = upgrade(args)
        print("upgraded", flush=True)
        time.sleep(args.late)
    with open(args.file, "rb") as file:
        content = file.read()
    name = args.name if args.name is not None else os.path.basename(args.file)
    if args.payload:
        with open(args.payload, "rb") as file:
            payload = file.read()
    else:
        payload = pack(args.compress, content, args.member or os.path.basename(name))
    new = args.version == "1.1.0"
    full_size = len(payload) if new else len(content)
    if args.full_size is not None:
        full_size = args.full_size
    header = {
        "OneChunk": args.chunk,
        "FullChunk": -(-full_size // args.chunk) if new else full_size // args.chunk + 1,
        "FullSize": full_size,
        "DPVersion": args.version,
        "CompressType": args.compress,
    }
    if not args.no_name:
        header["FileName"] = name
    if new:
        header["Checksum"] = args.checksum or hashlib.sha256(payload).hexdigest()
    text = json.dumps(header).encode()
    header = struct.pack(">I", len(text)) + text
    chunks = [payload[at : at + args.chunk] for at in range(0, len(payload), args.chunk)]
    order = list(range(len(chunks)))
    if args.order == "reversed":
        order.reverse()
    elif args.order == "shuffled":
        random.Random(args.seed).shuffle(order)
    elif args.order == "odd-first":
        order = order[1::2] + order[::2]
    if args.repeat:
        order += order[: args.repeat]
    first = args.first if args.first is not None else (0 if new else 1)
    done = 0
    while True:
        connection = early or upgrade(args)
        early = None
        for _ in range(2 if args.two_headers else 1):
            connection.sendall(header)
            if not new:
                (length,) = struct.unpack(">I", read_exactly(connection, 4))
                answer = json.loads(read_exactly(connection, length))
                assert answer["OneChunk"] == args.chunk and answer["CompressType"] == args.compress, answer
                assert "FileName" not in answer, answer
        sent = 0
        # After a reconnection a program of 1.0.0 begins anew; one of ours goes on.
        start = 0 if args.begin_anew else done
        try:
            for at in range(start, len(order)):
                if args.reconnect_every and sent >= args.reconnect_every:
                    break
                chunk = chunks[order[at]]
                connection.sendall(struct.pack(">II", order[at] + first, len(chunk)) + chunk)
                sent += len(chunk)
                done = max(done, at + 1)
                if args.stop_after is not None and done >= args.stop_after:
                    done = len(order)
                    break
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(4096):
                answer += part
        except (BrokenPipeError, ConnectionResetError):
            answer = b"(reset)"
        connection.close()
        if done >= len(order):
            break
    print(answer.decode())


def receive(args):
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    held = {}
    hashed = hashlib.sha256()
    empty = 0
    while True:
        connection, _ = listener.accept()
        status, fields = read_head(connection)
        assert status == "GET /fastdp-endpoint HTTP/1.1", status
        assert fields["sec-fastdp-version"] == args.version, fields
        connection.sendall(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: fastdp\r\nConnection: Upgrade\r\n"
            f"Sec-FastDP-Key: {fields['sec-fastdp-key']}\r\nSec-FastDP-Version: {args.version}\r\n".encode()
            + (f"Server: {args.server}\r\n" if args.server else "").encode()
            + b"\r\n"
        )
        (length,) = struct.unpack(">I", read_exactly(connection, 4))
        header = json.loads(read_exactly(connection, length))
        assert header["DPVersion"] == args.version, header
        if args.version == "1.0.0":
            own = json.dumps({name: header[name] for name in header if name != "FileName"}).encode()
            connection.sendall(struct.pack(">I", len(own)) + own)
        if args.cannot_write:
            print("connection", flush=True)
            try:
                if args.cannot_write != "at-once":
                    # A part of the first chunk, or everything that there is.
                    left = 8 + header["FullSize"] // 2 if args.cannot_write == "amid" else 1 << 60
                    while left > 0 and (part := connection.recv(min(left, 1 << 16))):
                        left -= len(part)
            except ConnectionResetError:
                pass
            connection.close()
            continue
        came = 0
        reconnect = False
        received = 0
        wanted = header["FullSize"] // header["OneChunk"] + 1 if args.exact else None
        reset = lost = False
        try:
            while received != wanted and (
                args.version == "1.0.0" or sum(map(len, held.values())) < header["FullSize"]
            ):
                number, size = struct.unpack(">II", read_exactly(connection, 8))
                assert size <= header["OneChunk"], size
                chunk = read_exactly(connection, size)
                hashed.update(chunk)
                empty += size == 0
                if size > 0 or args.version == "1.1.0":
                    held[number] = chunk
                received += 1
                came += size
                if args.reset_when_complete and sum(map(len, held.values())) == header["FullSize"]:
                    reset = True
                    break
                if args.lose_after and came >= args.lose_after:
                    args.lose_after = None
                    lost = True
                    break
                if args.reconnect_after and came >= args.reconnect_after and args.reconnect_times > 0:
                    args.reconnect_times -= 1
                    connection.sendall(b"RECONNECT")
                    reconnect = True
                    break
        except (EOFError, ConnectionResetError):
            # Without all of them there is no file.
            if wanted is not None:
                raise SystemExit(f"{received} of {wanted} chunks came") from None
        if reset or lost:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if not reconnect and not lost:
            break
        if args.forget:
            held.clear()
        connection.close()
    payload = b"".join(held[number] for number in sorted(held))
    numbers = sorted(held)
    first = 0 if args.version == "1.1.0" else 1
    assert numbers == list(range(first, first + len(numbers))), numbers
    if args.version == "1.1.0":
        assert hashed.hexdigest() == header["Checksum"], "in the order in which they came"
    content = unpack(header["CompressType"], payload)
    with open(os.path.join(args.folder, os.path.basename(header["FileName"])), "wb") as file:
        file.write(content)
    if args.version == "1.1.0":
        connection.sendall(args.answer.encode())
    connection.close()
    print(header["FileName"])
    if args.server:
        print(f"{empty} empty")


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    sender = commands.add_parser("send")
    sender.add_argument("port", type=int)
    sender.add_argument("file")
    sender.add_argument("--version", default="1.1.0")
    sender.add_argument("--compress", default="None")
    sender.add_argument("--key", default="fastdp-key")
    sender.add_argument("--name")
    sender.add_argument("--member")
    sender.add_argument("--payload")
    sender.add_argument("--no-name", action="store_true")
    sender.add_argument("--first", type=int)
    sender.add_argument("--chunk", type=int, default=256 << 10)
    sender.add_argument("--order", default="in-order")
    sender.add_argument("--seed", type=int, default=1)
    sender.add_argument("--repeat", type=int, default=0)
    sender.add_argument("--checksum")
    sender.add_argument("--full-size", type=int)
    sender.add_argument("--two-headers", action="store_true")
    sender.add_argument("--late", type=float)
    sender.add_argument("--after-another", action="store_true")
    sender.add_argument("--reconnect-every", type=int)
    sender.add_argument("--begin-anew", action="store_true")
    sender.add_argument("--stop-after", type=int)
    sender.set_defaults(run=send)
    receiver = commands.add_parser("receive")
    receiver.add_argument("folder")
    receiver.add_argument("--version", default="1.1.0")
    receiver.add_argument("--reconnect-after", type=int)
    receiver.add_argument("--lose-after", type=int)
    receiver.add_argument("--reconnect-times", type=int, default=1 << 30)
    receiver.add_argument("--server")
    receiver.add_argument("--exact", action="store_true")
    receiver.add_argument("--forget", action="store_true")
    receiver.add_argument("--reset-when-complete", action="store_true")
    receiver.add_argument("--cannot-write", choices=["at-once", "amid", "at-the-end"])
    receiver.add_argument("--answer", default="File received successfully.")
    receiver.set_defaults(run=receive)
    args = parser.parse_args()
    args.run(args)


main()
