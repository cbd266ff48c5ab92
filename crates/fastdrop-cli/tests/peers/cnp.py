#!/usr/bin/env python3
"""A client and a server of CNP as they are in the field, written from docs/protocol/cnp.md alone.

    cnp.py send PORT MESSAGE... [variants]
    cnp.py serve [variants]

`send` prints `ok` when everything was acknowledged and the session was closed, and before that what the server said.
`serve` prints its port, takes one session, and prints what came, and `closed` or `broken`. With --stall SECONDS a last
line `stalled` says that this process was kept from the processor for longer than that: what it had taken may have come again.
"""

import argparse
import hashlib
import json
import socket
import struct
import sys

# Running a test leaves nothing behind in the source tree.
sys.dont_write_bytecode = True

from stalls import Watch  # noqa: E402

DATA, ACK, ERROR, KEEP_ALIVE, DISCONNECT = 1, 2, 3, 4, 5


class Peer:
    def __init__(self, connection, args):
        self.socket, self.args = connection, args
        self.seq = args.first
        self.data = KEEP_ALIVE if args.later else DATA
        self.early = []

    def write(self, kind, payload, seq=0, damage=False):
        checksum = hashlib.md5(payload).digest()[:4]
        if damage:
            checksum = bytes(4)
        self.socket.sendall(struct.pack(">IBH4s", len(payload), kind, seq, checksum) + payload)

    def exactly(self, count):
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def read(self, alone=True):
        """A packet.

        Nothing answers the end of a handshake, so on a busy machine it does not come alone.
        """
        if self.args.naive and alone:
            # One recv, one packet: what comes with it is lost, and what is not all there is broken.
            packet = self.socket.recv(65536)
            if not packet:
                raise EOFError
        else:
            packet = self.exactly(11)
            packet += self.exactly(struct.unpack(">I", packet[:4])[0])
        length, kind, seq, checksum = struct.unpack(">IBH4s", packet[:11])
        payload = packet[11:]
        assert len(payload) == length, f"{len(payload)} bytes where the header says {length}"
        assert hashlib.md5(payload).digest()[:4] == checksum, "a wrong checksum"
        return kind, seq, payload

    def sequence(self):
        seq = self.seq
        self.seq = 0 if self.args.zero else (self.seq + 1) % 65536
        return seq

    def take(self, kind, seq, payload):
        """What is no acknowledgement: a message, or the end."""
        if kind in (self.data, DATA):
            self.early.append(payload.decode())
            self.write(ACK, b"ACK", 0 if self.args.zero_acks else seq)
        elif kind == DISCONNECT:
            self.write(ACK, b"ACK", seq)
            raise EOFError
        elif kind == ERROR:
            sys.exit(f"error: {payload.decode()}")

    def acknowledgement(self):
        while True:
            kind, seq, payload = self.read()
            if kind == ACK:
                assert payload == b"ACK"
                return seq
            self.take(kind, seq, payload)

    def send_all(self, messages):
        """Sends with a window, and returns when everything is acknowledged."""
        waiting = []
        for number, message in enumerate(messages):
            if len(waiting) == self.window:
                self.settle(waiting)
            seq = self.sequence()
            if number == self.args.damage:
                # A damaged packet is not acknowledged, so it comes again.
                self.write(self.data, message, seq, damage=True)
            if number == self.args.repeat:
                self.write(self.data, message, seq)
                waiting.append(seq)
            self.write(self.data, message, seq)
            waiting.append(seq)
            if self.args.keep_alive and not self.args.later:
                while waiting:
                    self.settle(waiting)
                self.write(KEEP_ALIVE, b"")
                self.acknowledgement()
        while waiting:
            self.settle(waiting)

    def settle(self, waiting):
        seq = self.acknowledgement()
        assert seq in waiting, f"an acknowledgement for {seq}, and {waiting} wait"
        waiting.remove(seq)


def send(args):
    with socket.create_connection(("127.0.0.1", args.port), 30) as connection:
        peer = Peer(connection, args)
        syn = {args.size_name: args.size}
        if args.later:
            syn |= {"protocol": args.later, "window_size": args.window}
        else:
            syn["operation_mode"] = args.mode
            if args.mode == "burst":
                syn["window_size"] = args.window
        if args.client_id:
            syn["client_id"] = args.client_id
        peer.write(DATA, json.dumps(syn).encode())
        kind, seq, payload = peer.read()
        answer = json.loads(payload)
        assert (kind, seq) == (ACK, 0), (kind, seq)
        if answer["status"] != "ok":
            sys.exit(f"refused: {answer['status']}")
        size = answer[args.size_name]
        assert size <= args.size
        assert not {"fragmentation", "checksum", "keep_alive"} & answer.keys(), answer
        peer.window = answer.get("window_size", 1)
        assert peer.window <= args.window
        peer.write(args.ack_type, json.dumps({"session_id": answer["session_id"]}).encode())
        peer.send_all([message.encode() for message in args.messages])
        for _ in range(args.expect - len(peer.early)):
            peer.take(*peer.read())
        if not args.rude:
            peer.write(DISCONNECT, b"Disconnect", peer.sequence())
            peer.acknowledgement()
        for message in peer.early:
            print(message)
        print("ok")


def serve_one_packet(args):
    """The first generation's own server: it handles one packet a connection, and knows data of type 01 alone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        # Nobody may come again.
        listener.settimeout(20)
        count = 0
        while True:
            connection, _ = listener.accept()
            count += 1
            with connection:
                connection.settimeout(30)
                peer = Peer(connection, args)
                syn = json.loads(peer.read()[2])
                answer = {"status": "ok", "session_id": args.session, args.size_name: args.size}
                answer["operation_mode"] = syn["operation_mode"]
                peer.write(ACK, json.dumps(answer).encode())
                peer.read()
                kind, seq, payload = peer.read()
                if kind == DATA:
                    peer.write(ACK, b"ACK", seq)
                    print(f"{payload.decode()}\n{count} connections", flush=True)
                    return


def serve(args):
    if args.one_packet:
        return serve_one_packet(args)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    with connection:
        connection.settimeout(30)
        peer = Peer(connection, args)
        kind, seq, payload = peer.read()
        syn = json.loads(payload)
        assert (kind, seq) == (DATA, 0), (kind, seq)
        assert "operation_mode" in syn and "max_packet_size" in syn, syn
        if args.refuse:
            peer.write(ACK, json.dumps({"status": args.refuse}).encode())
            return
        answer = {"status": "ok", "session_id": args.session, args.size_name: args.size}
        if not args.terse:
            answer["operation_mode"] = syn["operation_mode"]
        peer.window = 1
        if syn["operation_mode"] == "burst":
            peer.window = answer["window_size"] = min(args.window, syn["window_size"])
            if args.answer_protocol:
                answer["protocol"] = syn["protocol"]
        peer.write(ACK, json.dumps(answer).encode())
        kind, seq, payload = peer.read(alone=False)
        assert kind in (ACK, ERROR) and seq == 0
        assert json.loads(payload)["session_id"] == args.session
        if args.messages:
            peer.send_all([message.encode() for message in args.messages])
        if args.die_after is not None and args.die_after == 0:
            return
        count = 0
        skipped = args.skip
        try:
            while True:
                kind, seq, payload = peer.read()
                if kind in (peer.data, DATA) and skipped:
                    # As if it had not come: it comes again.
                    skipped -= 1
                    continue
                peer.take(kind, seq, payload)
                count += kind in (peer.data, DATA)
                if count == args.die_after:
                    return
        except EOFError:
            end = "closed" if kind == DISCONNECT else "broken"
        for message in peer.early:
            print(message)
        print(end, flush=True)


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for name, run in [("send", send), ("serve", serve)]:
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        if name == "send":
            command.add_argument("port", type=int)
        command.add_argument("messages", nargs="*")
        command.add_argument("--mode", default="step-by-step")
        command.add_argument("--window", type=int, default=1)
        command.add_argument("--size", type=int, default=1024)
        command.add_argument("--size-name", default="max_packet_size")
        command.add_argument("--ack-type", type=int, default=3)
        command.add_argument("--later", help="the protocol of a later program")
        command.add_argument("--first", type=int, default=0, help="the first sequence number")
        command.add_argument("--zero", action="store_true", help="every message has the number 0")
        command.add_argument("--zero-acks", action="store_true", help="every acknowledgement has the number 0")
        command.add_argument("--naive", action="store_true", help="one recv for a packet")
        command.add_argument("--damage", type=int, help="this message is damaged at first")
        command.add_argument("--repeat", type=int, help="this message is sent twice")
        command.add_argument("--keep-alive", action="store_true")
        command.add_argument("--client-id")
        command.add_argument("--expect", type=int, default=0, help="so many messages of the server are waited for")
        command.add_argument("--rude", action="store_true", help="no disconnect request")
        command.add_argument("--session", default="session-1")
        command.add_argument("--terse", action="store_true", help="no operation_mode in the answer")
        command.add_argument("--answer-protocol", action="store_true")
        command.add_argument("--refuse")
        command.add_argument("--skip", type=int, default=0, help="so many messages are not acknowledged at first")
        command.add_argument("--die-after", type=int)
        command.add_argument("--one-packet", action="store_true", help="a connection has one packet")
        command.add_argument("--stall", type=float, default=float("inf"), help="seconds from which a stall is reported")
    args = parser.parse_args()
    watch = Watch(args.stall)
    args.run(args)
    watch.report()


main()
