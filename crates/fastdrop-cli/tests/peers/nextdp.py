#!/usr/bin/env python3
"""A NextDP sender and receiver that behave as the program in use, written from docs/protocol/nextdp.md alone.

    nextdp.py send PORT FILE [--name NAME] [--order ORDER] [--threads N] [--compress gzip|zstd] [--skip N] [--id ID]
    nextdp.py receive FOLDER [--compress gzip|zstd]

Names are raw UTF-8 both ways, and a percent sign is one. Requests do not tell how they are compressed, nor to which
transfer they belong, unless --id is given. zstd needs the module zstandard.

`receive` prints its port, takes one file, and prints what it was called. `send` prints every answer that is not 200,
then `done`.
"""

import argparse
import gzip
import http.client
import http.server
import os
import random
import sys
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

CHUNK = 1 << 20


def compress(how, plain):
    if how == "gzip":
        return gzip.compress(plain)
    if how == "zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(plain)
    return plain


def decompress(how, body):
    if how == "gzip":
        return gzip.decompress(body)
    if how == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompress(body, max_output_size=CHUNK)
    return body


def send(args):
    with open(args.file, "rb") as file:
        content = file.read()
    chunks = [content[at : at + args.chunk] for at in range(0, len(content), args.chunk)] or [b""]
    name = args.name or os.path.basename(args.file)
    order = list(range(len(chunks)))
    if args.order == "reversed":
        order.reverse()
    elif args.order == "shuffled":
        random.Random(1).shuffle(order)
    order = [number for number in order if number != args.skip]
    local = threading.local()

    def post(number):
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", args.port, timeout=30)
        fields = {}
        if number == 0:
            fields = {"X-Filename": name.encode(), "X-Total-Chunks": str(args.total or len(chunks))}
        if args.id:
            fields["X-Transfer-Id"] = args.id
        body = compress(args.compress, chunks[number])
        local.connection.request("POST", f"/upload?chunk_number={number}", body, fields)
        answer = local.connection.getresponse()
        text = answer.read().decode().strip()
        if answer.status != 200 or text != "Chunk received":
            # At once: other threads write too.
            sys.stdout.write(f"{answer.status} {text}\n")
            local.connection.close()

    if args.threads == 1:
        for number in order:
            post(number)
    else:
        with ThreadPoolExecutor(args.threads) as pool:
            list(pool.map(post, order))
    print("done")


def receive(args):
    chunks, said = {}, {}
    complete = threading.Event()
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            url = urllib.parse.urlsplit(self.path)
            assert url.path == "/upload", self.path
            number = int(urllib.parse.parse_qs(url.query)["chunk_number"][0])
            body = decompress(args.compress, self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                if number == 0:
                    # The module has decoded it as Latin-1.
                    said["name"] = self.headers["X-Filename"].encode("latin-1").decode()
                    said["total"] = int(self.headers["X-Total-Chunks"])
                chunks[number] = body
                is_whole = len(chunks) == said.get("total")
                if is_whole:
                    with open(os.path.join(args.folder, os.path.basename(said["name"])), "wb") as file:
                        file.write(b"".join(chunks[number] for number in range(len(chunks))))
            self.send_response(200)
            self.send_header("Content-Length", "14")
            self.end_headers()
            self.wfile.write(b"Chunk received")
            if is_whole:
                complete.set()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    complete.wait(60)
    print(said["name"])


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    sender = commands.add_parser("send")
    sender.add_argument("port", type=int)
    sender.add_argument("file")
    sender.add_argument("--name")
    sender.add_argument("--chunk", type=int, default=CHUNK)
    sender.add_argument("--order", default="in-order")
    sender.add_argument("--threads", type=int, default=1)
    sender.add_argument("--compress", choices=["gzip", "zstd"])
    sender.add_argument("--id")
    sender.add_argument("--skip", type=int)
    sender.add_argument("--total", type=int)
    sender.set_defaults(run=send)
    receiver = commands.add_parser("receive")
    receiver.add_argument("folder")
    receiver.add_argument("--compress", choices=["gzip", "zstd"])
    receiver.set_defaults(run=receive)
    args = parser.parse_args()
    args.run(args)


main()
