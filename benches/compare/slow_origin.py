"""An origin whose first byte comes after a while: `slow_origin.py PORT MILLISECONDS BYTES`. Ends with its standard input."""

import asyncio
import sys

PORT, DELAY, BYTES = int(sys.argv[1]), int(sys.argv[2]) / 1000, int(sys.argv[3])
HEAD = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nCache-Control: max-age=3600\r\nContent-Length: {BYTES}\r\n\r\n"
ANSWER = HEAD.encode() + b"x" * BYTES


class Answering(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.unread = transport, b""

    def data_received(self, data):
        self.unread += data
        while b"\r\n\r\n" in self.unread:
            head, _, self.unread = self.unread.partition(b"\r\n\r\n")
            if b"/probe" in head:
                self.transport.write(ANSWER)
            else:
                asyncio.get_running_loop().call_later(DELAY, self.transport.write, ANSWER)


async def main():
    loop = asyncio.get_running_loop()
    await loop.create_server(Answering, "127.0.0.1", PORT, backlog=1024)
    ended = loop.create_future()
    loop.add_reader(sys.stdin.fileno(), lambda: sys.stdin.buffer.read1(1024) or ended.done() or ended.set_result(None))
    await ended


asyncio.run(main())
