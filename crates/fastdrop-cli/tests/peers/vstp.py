#!/usr/bin/env python3
"""A client and a server of VSTP as programs of version 0.2 are, written from docs/protocol/vstp.md alone.

    vstp.py send PORT MESSAGE... [--tcp] [--times N] [--ack] [--lose INDEX] [--repeat] [--echo]
    vstp.py serve [--tcp] [--deaf N]

`send` sends each message N times over, by UDP as 0.2 does: what is larger than 1,200 bytes in fragments of which each
carries the whole payload. It prints `ok`; with `--ack` each attempt must have one acknowledgement at most. `--lose` leaves out a fragment
of the first attempt, `--repeat` makes the network repeat every fragment, `--echo` waits for each message to come back.

`serve` prints its port, and for each message its length, its first byte and its header `k`, until one is `end`. By UDP it
joins fragments as 0.2 does, acknowledges, and `--deaf` leaves out so many acknowledgements; by TCP it closes without a
word when a frame has more than 8 MiB.
"""

import argparse
import socket
import struct
import sys
import zlib

DATA, BYE, ACK = 3, 6, 7
REQ_ACK, FRAG, KNOWN = 0x01, 0x10, 0x33
CUT, ROOM, FRAME_MAX = 1200, 2400, 8 << 20


def encode(kind, flags, headers, payload):
    packed = b"".join(bytes([len(k), len(v)]) + k + v for k, v in headers)
    head = b"VT" + bytes([1, kind, flags]) + struct.pack("<H", len(packed)) + struct.pack(">I", len(payload))
    frame = head + packed + payload
    return frame + struct.pack(">I", zlib.crc32(frame))


def decode(frame):
    """A frame in a whole datagram; None if not all of it is there."""
    if len(frame) < 11:
        return None
    assert frame[:3] == b"VT\x01", frame[:3]
    packed_len = struct.unpack("<H", frame[5:7])[0]
    payload_len = struct.unpack(">I", frame[7:11])[0]
    end = 11 + packed_len + payload_len
    if len(frame) < end + 4:
        return None
    assert struct.unpack(">I", frame[end:end + 4])[0] == zlib.crc32(frame[:end]), "a wrong CRC"
    headers, at = [], 11
    while at < 11 + packed_len:
        key_len, value_len = frame[at], frame[at + 1]
        at += 2
        headers.append((frame[at:at + key_len], frame[at + key_len:at + key_len + value_len]))
        at += key_len + value_len
    flags = frame[4] if frame[4] & ~KNOWN == 0 else 0
    return frame[3], flags, headers, frame[at:end]


def small(value):
    """A number of a fragment, which is one byte there; None if it is none."""
    return int(value) if value is not None and value.isdigit() and int(value) < 256 else None


class Joiner:
    def __init__(self):
        self.unfinished = {}

    def take(self, sender, frame):
        """The frame that a datagram completes, or None."""
        kind, flags, headers, payload = frame
        find = dict(reversed(headers)).get
        ident, index, total = (small(find(key)) for key in (b"frag-id", b"frag-index", b"frag-total"))
        if None in (ident, index, total):
            return frame
        parts = self.unfinished.setdefault((sender, ident), [None] * total)
        if index >= len(parts) or parts[index] is not None:
            return None
        parts[index] = payload
        if None in parts:
            return None
        del self.unfinished[sender, ident]
        headers = [header for header in headers if not header[0].startswith(b"frag-")]
        return kind, flags, headers, b"".join(parts)


class Client:
    def __init__(self, args):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.to, self.args, self.next_id = ("127.0.0.1", args.port), args, 1
        self.joiner = Joiner()
        self.attempts = self.acks = 0

    def send(self, headers, payload, flags=0, lose=None):
        whole = encode(DATA, flags, headers, payload)
        if len(whole) <= CUT:
            self.socket.sendto(whole, self.to)
            return
        total = -(-len(whole) // CUT)
        for index in range(total):
            numbers = zip((b"frag-id", b"frag-index", b"frag-total"), (self.next_id % 256, index, total))
            fields = [(key, str(number).encode()) for key, number in numbers]
            if index != lose:
                for _ in range(2 if self.args.repeat else 1):
                    self.socket.sendto(encode(DATA, flags | FRAG, headers + fields, payload), self.to)

    def receive(self, seconds):
        self.socket.settimeout(seconds)
        while True:
            frame, sender = self.socket.recvfrom(ROOM)
            frame = decode(frame)
            frame = frame and self.joiner.take(sender, frame)
            if frame:
                return frame

    def send_with_ack(self, headers, payload):
        ident = str(self.next_id).encode()
        self.next_id += 1
        for attempt in range(4):
            lose = self.args.lose if attempt == 0 else None
            self.attempts += 1
            self.send(headers + [(b"msg-id", ident)], payload, REQ_ACK, lose)
            try:
                while True:
                    kind, _, answer, _ = self.receive(2)
                    self.acks += kind == ACK
                    if kind == ACK and (b"msg-id", ident) in answer:
                        return
            except TimeoutError:
                pass
        sys.exit("no acknowledgement")


def send(args):
    messages = [(message * args.times).encode() for message in args.messages]
    headers = [(b"k", b"v")]
    if args.tcp:
        with socket.create_connection(("127.0.0.1", args.port), 30) as connection:
            for message in messages:
                connection.sendall(encode(DATA, 0, headers, message))
            connection.sendall(encode(BYE, 0, [], b""))
            # The other end closes when it has read everything.
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
        print("ok")
        return
    client = Client(args)
    for message in messages:
        if args.ack:
            client.send_with_ack(headers, message)
        else:
            client.send(headers, message, lose=args.lose)
        if args.echo:
            kind, _, back, payload = client.receive(30)
            assert (kind, payload) == (DATA, message), (kind, len(payload))
            assert (b"k", b"v") in back
    try:
        # What comes beside the acknowledgements that were waited for.
        while args.ack:
            assert client.receive(0.3)[0] == ACK
            client.acks += 1
    except TimeoutError:
        assert client.acks <= client.attempts, f"{client.acks} in {client.attempts} attempts"
    print("ok")


def show(headers, payload):
    key = dict(headers).get(b"k", b"-").decode()
    print(len(payload), payload[:1].decode(), key, flush=True)
    return payload == b"end"


def serve(args):
    if args.tcp:
        serve_stream()
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(30)
        print(server.getsockname()[1], flush=True)
        joiner, deaf, done = Joiner(), args.deaf, False
        while not done:
            frame, sender = server.recvfrom(ROOM)
            frame = decode(frame)
            frame = frame and joiner.take(sender, frame)
            if not frame:
                continue
            _, flags, headers, payload = frame
            ident = dict(headers).get(b"msg-id")
            if flags & REQ_ACK and ident and not deaf:
                server.sendto(encode(ACK, 0, [(b"msg-id", ident)], b""), sender)
            deaf = max(deaf - 1, 0)
            done = show(headers, payload)


def serve_stream():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    with connection:
        connection.settimeout(30)
        data = b""
        while True:
            frame = decode(data)
            if frame:
                kind, _, headers, payload = frame
                data = data[15 + sum(2 + len(k) + len(v) for k, v in headers) + len(payload):]
                if kind == BYE:
                    return
                show(headers, payload)
                continue
            if len(data) >= 11 and struct.unpack(">I", data[7:11])[0] > FRAME_MAX:
                return
            part = connection.recv(1 << 16)
            if not part:
                return
            data += part


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    sender = commands.add_parser("send")
    sender.set_defaults(run=send)
    sender.add_argument("port", type=int)
    sender.add_argument("messages", nargs="+")
    sender.add_argument("--times", type=int, default=1)
    sender.add_argument("--lose", type=int)
    server = commands.add_parser("serve")
    server.set_defaults(run=serve)
    server.add_argument("--deaf", type=int, default=0)
    for one in (sender, server):
        one.add_argument("--tcp", action="store_true")
    for flag in ("--ack", "--repeat", "--echo"):
        sender.add_argument(flag, action="store_true")
    args = parser.parse_args()
    args.run(args)


main()
