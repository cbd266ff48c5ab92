#!/usr/bin/env python3
"""An UltraDP sender and receiver, written from docs/protocol/ultradp.md alone.

    ultradp.py send PORT FILE NAME [--compress] [--chunk BYTES] [--size N] [--cut BYTES]
    ultradp.py receive FOLDER

`receive` prints its port, takes one file, and prints what it was called. A compressed transfer needs the module zstandard.
"""

import argparse
import os
import socket
import struct


def send(args):
    with open(args.file, "rb") as file:
        content = file.read()
    size = len(content) if args.size is None else args.size
    wire = bytearray()
    for at in range(0, len(content), args.chunk):
        chunk = content[at : at + args.chunk]
        if args.compress:
            import zstandard

            chunk = zstandard.ZstdCompressor().compress(chunk)
        wire += struct.pack(">Q", len(chunk)) + chunk
    with socket.create_connection(("127.0.0.1", args.port), 30) as connection:
        try:
            connection.sendall(f"{args.name}:{size}:{int(args.compress)}\n".encode())
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
        name, size, compressed = stream.readline().decode().rstrip("\n").rsplit(":", 2)
        content = bytearray()
        while length := stream.read(8):
            chunk = read_exactly(stream, struct.unpack(">Q", length)[0])
            if compressed == "1":
                import zstandard

                chunk = zstandard.ZstdDecompressor().decompress(chunk)
            content += chunk
        if len(content) != int(size):
            raise EOFError(f"{len(content)} bytes instead of {size}")
        with open(os.path.join(args.folder, os.path.basename(name)), "wb") as file:
            file.write(content)
    print(name)


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    sender = commands.add_parser("send")
    sender.add_argument("port", type=int)
    sender.add_argument("file")
    sender.add_argument("name")
    sender.add_argument("--compress", action="store_true")
    sender.add_argument("--chunk", type=int, default=8 << 20)
    sender.add_argument("--size", type=int)
    sender.add_argument("--cut", type=int)
    sender.set_defaults(run=send)
    receiver = commands.add_parser("receive")
    receiver.add_argument("folder")
    receiver.set_defaults(run=receive)
    args = parser.parse_args()
    args.run(args)


main()
