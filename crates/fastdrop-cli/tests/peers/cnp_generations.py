#!/usr/bin/env python3
"""Clients and servers of CNP's second, third and fourth generation, as they behave in the field.

    cnp_generations.py send GENERATION PORT MESSAGE... [variants]
    cnp_generations.py serve GENERATION [variants]

Written from docs/protocol/cnp.md, section 11, alone. `send` prints what came back and `ok` when everything was acknowledged and
the session was closed. `serve` prints its port, takes one session that comes to its handshake, and prints the messages and
`closed` or `broken`. Programs in the field take one `recv` for one packet, which a busy machine does not bear; here packets are
read by their lengths, and while one packet at a time is under way, nothing may follow one that has not been acknowledged.
With --stall, a last line `stalled` says that this process was kept from the processor for longer than that: then two packets may have been
found together that came apart, or one may have come again that was taken.
"""

import argparse
import hashlib
import json
import random
import socket
import struct
import sys
import time

# Running a test leaves nothing behind in the source tree.
sys.dont_write_bytecode = True

from stalls import Watch  # noqa: E402

SYN, ACK, FINAL, DATA = 1, 2, 3, 4
NACK, CHANNEL = 5, 99
READ = 1024


class Broken(Exception):
    pass


class Peer:
    def __init__(self, connection, args):
        self.socket, self.args = connection, args
        self.fourth = args.generation == 4
        self.head = 12 if self.fourth else 11
        self.disconnect = 6 if self.fourth else 5
        self.random = random.Random(args.seed)
        # Fragments of the message that is under way, and the next number.
        self.parts, self.expected = [], 0
        self.messages = []
        # A server takes what comes first as it is: it may have another header.
        self.begins = not hasattr(args, "port")
        self.window = 1
        # When the last packet was read.
        self.read_at = time.monotonic()

    def write(self, kind, payload, seq=0, last=0, damage=False):
        checksum = bytes(4) if damage else hashlib.md5(payload).digest()[:4]
        packet = struct.pack(">IBH4s", len(payload), kind, seq, checksum)
        if self.fourth:
            packet += bytes([last])
        self.socket.sendall(packet + payload)

    def exactly(self, count):
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def read(self):
        """The next packet. What does not begin as one is all that is there."""
        head = self.exactly(self.head)
        length, kind, seq, checksum = struct.unpack(">IBH4s", head[:11])
        last = head[11] if self.fourth else 0
        if length > READ - self.head:
            raise Broken(f"{length} bytes do not fit into one read")
        payload = self.exactly(length) if not self.begins else self.socket.recv(READ)
        self.read_at = time.monotonic()
        self.begins = False
        if hashlib.md5(payload).digest()[:4] != checksum:
            raise Broken("a wrong checksum")
        return kind, seq, last, payload

    def expect_silence(self):
        """Nothing follows a packet that is not acknowledged."""
        if self.window > 1 and self.args.generation == 2:
            return
        self.socket.setblocking(False)
        self.args.watch.note(time.monotonic() - self.read_at)
        try:
            if self.socket.recv(READ, socket.MSG_PEEK):
                raise Broken("a packet behind one that was not acknowledged")
        except BlockingIOError:
            pass
        finally:
            self.socket.settimeout(30)

    # ---- receiving ----

    def finish(self):
        if self.parts:
            self.messages.append("".join(self.parts))
        self.parts = []

    def take(self, kind, seq, last, payload):
        """A packet that is no acknowledgement."""
        if kind == self.disconnect and payload == b"Disconnect":
            self.finish()
            self.write(ACK, b"ACK", seq)
            raise EOFError
        if kind == CHANNEL:
            return
        if kind != DATA:
            # The second generation has no data of the first type, and says nothing.
            return
        text = payload.decode()
        self.expect_silence()
        if self.args.generation == 2:
            self.messages.append(text)
            self.write(ACK, b"ACK", seq)
            return
        if self.fourth and self.random.random() < self.args.loss:
            # Its simulated channel: the packet is lost, or damaged.
            if self.random.random() < 0.5:
                self.write(NACK, b"NACK", seq)
            return
        if len(text) > self.characters:
            raise Broken(f"{len(text)} characters where {self.characters} were agreed")
        if seq == 0:
            self.finish()
            self.expected = 0
        if seq != self.expected:
            raise Broken(f"number {seq} where {self.expected} was due")
        self.expected += 1
        self.parts.append(text)
        if last or (not self.fourth and len(text) < self.characters):
            self.finish_now()
        self.write(ACK, b"ACK", seq)

    def finish_now(self):
        self.messages.append("".join(self.parts))
        self.parts = []

    # ---- sending ----

    def fragments(self, message):
        if self.args.generation == 2:
            return [message]
        size = self.characters
        return [message[at : at + size] for at in range(0, len(message), size)] or [""]

    def send(self, message):
        """Sends a message with a window, and returns when all of it is acknowledged."""
        fragments = self.fragments(message)
        base, acknowledged = 0, set()
        sent = set()
        while base < len(fragments):
            for number in range(base, min(base + self.window, len(fragments))):
                if number in acknowledged or number in sent:
                    continue
                sent.add(number)
                last = int(number == len(fragments) - 1)
                payload = fragments[number].encode()
                lost = self.fourth and self.random.random() < self.args.loss
                if lost and (self.random.random() < 0.5 or not payload):
                    continue
                self.write(DATA, payload, self.first + number, last, damage=lost)
            self.socket.settimeout(self.args.timeout)
            try:
                kind, seq, last, payload = self.read()
            except socket.timeout:
                sent.clear()
                continue
            number = (seq - self.first) % 65536
            if kind == ACK:
                if payload != b"ACK" or number >= len(fragments):
                    raise Broken(f"an acknowledgement of {seq}: {payload}")
                acknowledged |= set(range(number + 1)) if self.args.protocol == "gbn" else {number}
            elif kind == NACK and self.fourth:
                sent.discard(number)
            else:
                self.take(kind, seq, last, payload)
            while base in acknowledged:
                base += 1
        if self.args.generation == 2:
            self.first = (self.first + 1) % 65536


def send(args):
    with socket.create_connection(("127.0.0.1", args.port), 30) as connection:
        peer = Peer(connection, args)
        if args.generation == 2:
            syn = {"operation_mode": args.mode, "max_size": args.size}
            if args.protocol:
                syn["protocol"] = args.protocol
        else:
            syn = {"protocol": args.protocol or "gbn", "window_size": args.window}
            if args.characters:
                syn["max_fragment_size"] = args.characters
        args.protocol = args.protocol or "gbn"
        peer.write(SYN, json.dumps(syn).encode())
        kind, seq, _, payload = peer.read()
        answer = json.loads(payload)
        if kind != ACK or answer["status"] != "ok":
            sys.exit(f"refused: {answer}")
        peer.first = args.first if args.generation == 2 else 0
        peer.window = args.window
        peer.characters = answer.get("max_fragment_size", 3)
        peer.write(FINAL, json.dumps({"session_id": answer["session_id"]}).encode())
        if peer.fourth:
            peer.write(CHANNEL, json.dumps({"loss": args.loss}).encode())
        for message in args.messages:
            peer.send(message)
        connection.settimeout(30)
        while len(peer.messages) < args.expect:
            peer.take(*peer.read())
            if len(peer.messages) + bool(peer.parts) == args.expect and args.expect_full:
                peer.finish()
        if not args.rude:
            peer.write(peer.disconnect, b"Disconnect", peer.first)
            kind = None
            while kind != ACK:
                kind, *_ = peer.read()
        for message in peer.messages:
            print(message)
        print("ok")


def serve(args):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            connection.settimeout(30)
            try:
                if serve_one(connection, args):
                    return
            except (Broken, ValueError, KeyError, EOFError, ConnectionError) as error:
                print(f"no session: {error}", file=sys.stderr, flush=True)
            finally:
                connection.close()


def serve_one(connection, args):
    """Serves a connection; false if there was no handshake to understand."""
    peer = Peer(connection, args)
    try:
        kind, seq, _, payload = peer.read()
        syn = json.loads(payload)
    except (Broken, ValueError):
        if args.silent:
            # It waits for what it could understand, as long as the connection lasts.
            while connection.recv(READ):
                pass
        raise
    answer = {"status": "ok", "session_id": "s-1"}
    if args.generation == 2:
        answer |= {"operation_mode": syn["operation_mode"], "max_size": args.size}
        if syn["operation_mode"] == "burst":
            answer["window_size"] = peer.window = args.window
    else:
        asked = syn["max_fragment_size"] if args.strict else syn.get("max_fragment_size", 3)
        if args.strict and "operation_mode" in syn:
            raise Broken("a mode that is not known")
        peer.characters = min(asked, args.characters or 3)
        peer.window = min(args.window, syn["window_size"])
        answer |= {"protocol": syn["protocol"], "max_fragment_size": peer.characters, "window_size": peer.window}
    args.protocol = args.protocol or "gbn"
    peer.write(ACK, json.dumps(answer).encode())
    kind, seq, _, payload = peer.read()
    assert kind == FINAL and json.loads(payload) == {"session_id": "s-1"}, (kind, payload)
    peer.first = 0
    ending = "broken"
    try:
        for message in args.messages:
            peer.send(message)
        connection.settimeout(30)
        while True:
            peer.take(*peer.read())
    except EOFError:
        ending = "closed" if not peer.parts else "broken"
    except Broken as error:
        ending = f"broken: {error}"
    peer.finish()
    for message in peer.messages:
        print(message)
    print(ending, flush=True)
    return True


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for name, run in [("send", send), ("serve", serve)]:
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("generation", type=int, choices=[2, 3, 4])
        if name == "send":
            command.add_argument("port", type=int)
        command.add_argument("messages", nargs="*")
        command.add_argument("--mode", default="step-by-step")
        command.add_argument("--protocol", choices=["gbn", "sr"])
        command.add_argument("--window", type=int, default=1)
        command.add_argument("--size", type=int, default=1024)
        command.add_argument("--characters", type=int, help="of a fragment; without it nothing is said of them, and 3 are used")
        command.add_argument("--first", type=int, default=0, help="the first number of the second generation")
        command.add_argument("--loss", type=float, default=0.0, help="of the fourth generation's simulated channel")
        command.add_argument("--seed", type=int, default=1)
        command.add_argument("--timeout", type=float, default=2.0)
        command.add_argument("--expect", type=int, default=0, help="so many messages of the server are waited for")
        command.add_argument("--expect-full", action="store_true", help="the last of them fills its fragments")
        command.add_argument("--stall", type=float, default=float("inf"), help="seconds from which a stall is reported")
        command.add_argument("--rude", action="store_true", help="no disconnect request")
        command.add_argument("--silent", action="store_true", help="a SYN that is not understood has no answer")
        command.add_argument("--strict", action="store_true", help="a SYN with other fields than its own is not understood")
    args = parser.parse_args()
    args.watch = Watch(args.stall)
    try:
        args.run(args)
    except Broken as error:
        print(f"broken: {error}")
    args.watch.report()


main()
