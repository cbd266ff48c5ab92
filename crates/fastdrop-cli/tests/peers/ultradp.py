#!/usr/bin/env python3
"""An UltraDP sender and receiver that behave as the programs in use, written from docs/protocol/ultradp.md alone.

    ultradp.py send PORT FILE NAME [--compress] [--secured] [--password-file FILE] [--chunk BYTES] [--size N] [--cut BYTES]
    ultradp.py receive FOLDER [--password-file FILE]

`--secured` is the program whose line has a fourth field, `0` unless there is a password.

The receiver splits its line at every colon, and gives up on any other number of fields. It adds up the sizes of chunks as
they come and stops when they reach the announced size; if the sender ends before, it has written all that came, and
complains. It prints its port, takes one file, and prints what it was called and its complaints. A compressed transfer
needs the module zstandard.
"""

import argparse
import hashlib
import os
import socket
import struct
import sys

ROUNDS = 100_000


def aes_tables():
    """The four tables of a round of AES, and the S-box (FIPS 197)."""
    log, exp, x = [0] * 256, [0] * 256, 1
    for at in range(255):
        exp[at], log[x] = x, at
        x ^= (x << 1) ^ (0x11B if x & 0x80 else 0)
        x &= 0xFF
    box = []
    for value in range(256):
        inverse = exp[(255 - log[value]) % 255] if value else 0
        turned = 0
        for turn in range(5):
            turned ^= ((inverse << turn) | (inverse >> (8 - turn))) & 0xFF
        box.append(turned ^ 0x63)
    double = [(s << 1) ^ (0x11B if s & 0x80 else 0) for s in box]
    first = [(double[v] << 24) | (s << 16) | (s << 8) | (double[v] ^ s) for v, s in enumerate(box)]
    tables = [first]
    for _ in range(3):
        tables.append([(word >> 8) | ((word & 0xFF) << 24) for word in tables[-1]])
    return tables, box


(T0, T1, T2, T3), BOX = aes_tables()


class Cfb:
    """AES-256 in CFB mode with segments of 128 bits, as one stream."""

    def __init__(self, key, iv):
        words = list(struct.unpack(">8I", key))
        rcon = 1
        for at in range(8, 60):
            word = words[-1]
            if at % 8 == 0:
                word = ((word << 8) | (word >> 24)) & 0xFFFFFFFF
            if at % 4 == 0:
                word = sum(BOX[(word >> shift) & 0xFF] << shift for shift in (0, 8, 16, 24))
            if at % 8 == 0:
                word ^= rcon << 24
                rcon <<= 1
            words.append(words[-8] ^ word)
        self.keys = [words[at : at + 4] for at in range(0, 60, 4)]
        self.feedback, self.mask = iv, b""

    def block(self, block):
        state = [word ^ key for word, key in zip(struct.unpack(">4I", block), self.keys[0])]
        for keys in self.keys[1:-1]:
            a, b, c, d = state
            state = [
                T0[p >> 24] ^ T1[(q >> 16) & 0xFF] ^ T2[(r >> 8) & 0xFF] ^ T3[s & 0xFF] ^ key
                for (p, q, r, s), key in zip(((a, b, c, d), (b, c, d, a), (c, d, a, b), (d, a, b, c)), keys)
            ]
        a, b, c, d = state
        last = [
            ((BOX[p >> 24] << 24) | (BOX[(q >> 16) & 0xFF] << 16) | (BOX[(r >> 8) & 0xFF] << 8) | BOX[s & 0xFF]) ^ key
            for (p, q, r, s), key in zip(((a, b, c, d), (b, c, d, a), (c, d, a, b), (d, a, b, c)), self.keys[-1])
        ]
        return struct.pack(">4I", *last)

    def update(self, data, encrypts):
        out = bytearray()
        at = 0
        while at < len(data):
            if not self.mask:
                self.mask, self.feedback = self.block(self.feedback), b""
            part = data[at : at + len(self.mask)]
            turned = bytes(byte ^ mask for byte, mask in zip(part, self.mask))
            self.mask = self.mask[len(part) :]
            self.feedback += turned if encrypts else part
            out += turned
            at += len(part)
        return bytes(out)


def cipher(password_file, salt, iv):
    with open(password_file, "rb") as file:
        password = file.read().rstrip(b"\n")
    return Cfb(hashlib.pbkdf2_hmac("sha256", password, salt, ROUNDS, 32), iv)


def send(args):
    with open(args.file, "rb") as file:
        content = file.read()
    size = len(content) if args.size is None else args.size
    line = f"{args.name}:{size}:{int(args.compress)}"
    wire, secret = bytearray(), None
    if args.secured or args.password_file:
        line += f":{int(bool(args.password_file))}"
    if args.password_file:
        salt, iv = os.urandom(16), os.urandom(16)
        secret = cipher(args.password_file, salt, iv)
        wire += salt + iv
    for at in range(0, len(content), args.chunk):
        chunk = content[at : at + args.chunk]
        if args.compress:
            import zstandard

            chunk = zstandard.ZstdCompressor().compress(chunk)
        if secret:
            chunk = secret.update(chunk, True)
        wire += struct.pack(">Q", len(chunk)) + chunk
    with socket.create_connection(("127.0.0.1", args.port), 30) as connection:
        try:
            connection.sendall(f"{line}\n".encode())
            connection.sendall(wire[: args.cut])
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        except OSError:
            print("the receiver broke off")


def read_exactly(stream, count):
    data = stream.read(count)
    if len(data) != count:
        raise EOFError(f"{len(data)} bytes instead of {count}")
    return data


def receive(args):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        fields = stream.readline().decode().rstrip("\n").split(":")
        secret = None
        if args.password_file and len(fields) == 4:
            if fields.pop() == "1":
                salt, iv = read_exactly(stream, 16), read_exactly(stream, 16)
                secret = cipher(args.password_file, salt, iv)
        if len(fields) != 3:
            sys.exit(f"a line of {len(fields)} fields")
        name, size, compressed = fields
        content, counted, complaint = bytearray(), 0, ""
        while counted < int(size):
            length = stream.read(8)
            if len(length) < 8:
                complaint = "\nthe end came too early"
                break
            chunk = read_exactly(stream, struct.unpack(">Q", length)[0])
            counted += len(chunk)
            if secret:
                chunk = secret.update(chunk, False)
            if compressed == "1":
                import zstandard

                chunk = zstandard.ZstdDecompressor().decompress(chunk)
            content += chunk
        with open(os.path.join(args.folder, os.path.basename(name)), "wb") as file:
            file.write(content)
    print(name + complaint)


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    sender = commands.add_parser("send")
    sender.add_argument("port", type=int)
    sender.add_argument("file")
    sender.add_argument("name")
    sender.add_argument("--compress", action="store_true")
    sender.add_argument("--secured", action="store_true")
    sender.add_argument("--password-file")
    sender.add_argument("--chunk", type=int, default=8 << 20)
    sender.add_argument("--size", type=int)
    sender.add_argument("--cut", type=int)
    sender.set_defaults(run=send)
    receiver = commands.add_parser("receive")
    receiver.add_argument("folder")
    receiver.add_argument("--password-file")
    receiver.set_defaults(run=receive)
    args = parser.parse_args()
    args.run(args)


main()
