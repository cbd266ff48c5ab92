#!/usr/bin/env python3
"""A FastDownloader client and server, written from docs/protocol/fastdownloader.md alone.

    fastdownloader.py get PORT NAME OUTPUT [--terminator] [--v1]
    fastdownloader.py serve FOLDER [--clients N] [--short] [--v1] [--unpadded] [--first N]

`get` prints the list, then the server's answer. `serve` prints its port.

What other programs do, and the page does not ask for:

    --v1          the published program V1.0: 1,400 bytes a chunk, with `$SEPARATOR$` on either side of its bytes.
                  Its client takes what one recv(1400) brings for a chunk and splits it at the separator, its
                  server reads the name with one recv, gives 6 streams at most, and leaves streams open until
                  its client has closed them. With --wait the client takes whole chunks, however many calls
                  they come in
    --unpadded    a server that writes ordinals as they are, so that its chunks are shorter
    --first 1     a server that counts from 1
"""

import argparse
import os
import socket
import threading


SEPARATOR = b"$SEPARATOR$"


def read_all(connection):
    data = bytearray()
    while part := connection.recv(1 << 16):
        data += part
    return bytes(data)


def get(args):
    with socket.create_connection(("127.0.0.1", args.port), 30) as control:
        print(control.recv(1 << 20).decode(), end="")
        control.sendall(args.name.encode() + (b"\n" if args.terminator else b""))
        answer = control.recv(4096).decode()
        print(answer)
        if answer == "WRONG_INPUT":
            return
        word, streams, chunks, *ports = answer.split(" ")
        assert word == "ACCEPTED" and len(ports) == int(streams), answer
        held = {}

        def fetch_v1(port):
            with socket.create_connection(("127.0.0.1", int(port)), 30) as stream:
                while chunk := stream.recv(1400):
                    while args.wait and len(chunk) < 1400 and (more := stream.recv(1400 - len(chunk))):
                        chunk += more
                    assert len(chunk) == 1400, f"one recv brought {len(chunk)} bytes"
                    number, content, filling = chunk.split(SEPARATOR)
                    assert filling.strip(b"0") == b"" and int(number) not in held, chunk
                    held[int(number)] = content

        def fetch(port):
            with socket.create_connection(("127.0.0.1", int(port)), 30) as stream:
                data = read_all(stream)
            for at in range(0, len(data), 1024):
                number, _, content = data[at : at + 1024].partition(b" ")
                assert int(number) not in held, number
                held[int(number)] = content

        if args.v1:
            assert all(int(port) >= 49152 for port in ports) and len(ports) <= 7, ports
            fetch = fetch_v1
        threads = [threading.Thread(target=fetch, args=(port,)) for port in ports]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(held) == list(range(int(chunks))), f"{len(held)} of {chunks}"
    with open(args.output, "wb") as file:
        file.write(b"".join(held[number] for number in range(int(chunks))))


def serve(args):
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    for _ in range(args.clients):
        control, _ = listener.accept()
        names = sorted(os.listdir(args.folder))
        # The last line has no end here: none is promised.
        control.sendall("\n".join(f"{at + 1}) {name}" for at, name in enumerate(names)).encode())
        name = control.recv(4096).decode().strip()
        if name not in names:
            if name:
                control.sendall(b"WRONG_INPUT")
            control.close()
            continue
        with open(os.path.join(args.folder, name), "rb") as file:
            content = file.read()
        chunks = len(content) // 1000 + 1
        streams = 3
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(streams)]
        ports = " ".join(str(each.getsockname()[1]) for each in listeners)
        control.sendall(f"ACCEPTED {streams} {chunks} {ports}".encode())

        def encode(k):
            content_of_it = content[1000 * k : 1000 * k + 1000]
            number = k + args.first
            if args.v1:
                return (str(number).encode() + SEPARATOR + content_of_it + SEPARATOR).ljust(1400, b"0")
            return (b"%d " if args.unpadded else b"%023d ") % number + content_of_it

        def give_v1(which):
            stream, _ = listeners[which].accept()
            for k in range(which, chunks, streams):
                stream.sendall(encode(k))
            # It is the client that closes.
            stream.settimeout(30)
            try:
                assert stream.recv(1) == b""
            except ConnectionResetError:
                pass
            stream.close()

        def give(which):
            stream, _ = listeners[which].accept()
            mine = [k for k in range(chunks) if k % streams == which]
            if args.short and which == 0:
                mine = mine[:-1]
            # From the end, but for the last chunk of all: its stream ends behind it.
            mine.sort(key=lambda k: (k == chunks - 1, -k))
            for k in mine:
                stream.sendall(encode(k))
            stream.close()

        if args.v1:
            give = give_v1

        threads = [threading.Thread(target=give, args=(which,)) for which in range(streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        control.close()


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    client = commands.add_parser("get")
    client.add_argument("port", type=int)
    client.add_argument("name")
    client.add_argument("output")
    client.add_argument("--terminator", action="store_true")
    client.add_argument("--v1", action="store_true")
    client.add_argument("--wait", action="store_true")
    client.set_defaults(run=get)
    server = commands.add_parser("serve")
    server.add_argument("folder")
    server.add_argument("--clients", type=int, default=1)
    server.add_argument("--short", action="store_true")
    server.add_argument("--v1", action="store_true")
    server.add_argument("--unpadded", action="store_true")
    server.add_argument("--first", type=int, default=0)
    server.set_defaults(run=serve)
    args = parser.parse_args()
    args.run(args)


main()
