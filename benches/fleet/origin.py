"""An origin that answers after a while and counts: `origin.py MILLISECONDS BYTES SLOW_SECONDS`, the last for
paths that begin with /slow-; says its port, ends with its input.

Every path is an object; `/-/counts` is what was asked for since `/-/reset`, and how many requests were here at once.
"""

import asyncio
import json
import sys

DELAY, BYTES, SLOW_SECONDS = int(sys.argv[1]) / 1000, int(sys.argv[2]), float(sys.argv[3])
HEAD = (
    "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nCache-Control: max-age=3600\r\n"
    f"Content-Length: {BYTES}\r\n\r\n"
)
ANSWER = HEAD.encode() + b"x" * BYTES


class Counts:
    def __init__(self):
        self.reset()

    def reset(self):
        self.paths, self.at_once, self.most = {}, 0, 0


COUNTS = Counts()


class Answering(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.unread, self.waiting = transport, b"", 0

    def connection_lost(self, _):
        COUNTS.at_once -= self.waiting
        self.waiting = 0

    def data_received(self, data):
        self.unread += data
        while b"\r\n\r\n" in self.unread:
            head, _, rest = self.unread.partition(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            if len(rest) < length:
                return
            self.unread = rest[length:]
            self.answer(head.split(b" ", 2)[1].decode())

    def answer(self, path):
        if path == "/-/reset":
            COUNTS.reset()
        if path.startswith("/-/"):
            body = json.dumps({"paths": COUNTS.paths, "most": COUNTS.most}).encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            return
        COUNTS.paths[path] = COUNTS.paths.get(path, 0) + 1
        COUNTS.at_once += 1
        self.waiting += 1
        COUNTS.most = max(COUNTS.most, COUNTS.at_once)
        delay = SLOW_SECONDS if path.startswith("/slow-") else DELAY
        asyncio.get_running_loop().call_later(delay, self.done)

    def done(self):
        if self.waiting:
            self.waiting -= 1
            COUNTS.at_once -= 1
            self.transport.write(ANSWER)


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answering, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = loop.create_future()
    loop.add_reader(sys.stdin.fileno(), lambda: sys.stdin.buffer.read1(1024) or ended.done() or ended.set_result(None))
    await ended


asyncio.run(main())
