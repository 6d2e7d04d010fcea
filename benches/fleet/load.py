"""Clients: keep-alive connections to the nodes of a fleet, at a steady rate, and what each request brought."""

import asyncio
import bisect
import itertools
import random
import time
from collections import namedtuple

#: `begun` and `seconds` are times; `error` is None, or why it failed; `status` is Cache-Status.
Result = namedtuple("Result", "begun seconds node path code status error")


class Zipf:
    """Paths by Zipf's law with exponent one."""

    def __init__(self, keys, seed=1, prefix="/"):
        self.random, self.prefix = random.Random(seed), prefix
        self.sums = list(itertools.accumulate(1 / rank for rank in range(1, keys + 1)))

    def path(self):
        return f"{self.prefix}{bisect.bisect(self.sums, self.random.random() * self.sums[-1])}"


class Mixed:
    """Zipf, but so many of a hundred requests are for a key that nobody asks for twice."""

    def __init__(self, keys, new_percent, seed=1):
        self.zipf, self.share, self.number = Zipf(keys, seed), new_percent / 100, 0

    def path(self):
        if self.zipf.random.random() >= self.share:
            return self.zipf.path()
        self.number += 1
        return f"/once-{self.number}"


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self):
        self.buffer, self.needed, self.head, self.answer, self.closed = bytearray(), None, b"", None, False

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, error):
        self.closed = True
        if self.answer and not self.answer.done():
            self.answer.set_exception(ConnectionError(f"closed {'in the body' if self.needed is not None else 'before the head'}"))

    def data_received(self, data):
        if self.answer is None:
            return
        self.buffer += data
        if self.needed is None:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self.head = bytes(self.buffer[:end])
            lower = self.head.lower()
            at = lower.find(b"\r\ncontent-length:")
            self.needed = end + 4 + (int(lower[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0)
        if len(self.buffer) >= self.needed and not self.answer.done():
            if b"\r\nconnection: close" in self.head.lower():
                self.closed = True
                self.transport.close()
            self.answer.set_result(self.head)

    async def ask(self, request, timeout):
        self.buffer.clear()
        self.needed, self.answer = None, asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await asyncio.wait_for(self.answer, timeout)


async def connect(port):
    return (await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port))[1]


def request_for(path, port, method="GET"):
    length = "Content-Length: 0\r\n" if method == "POST" else ""
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{length}\r\n".encode()


async def ask(connection, node, path, timeout, method="GET"):
    """One request on a connection; never raises."""
    begun = time.monotonic()
    try:
        head = await connection.ask(request_for(path, node.port, method), timeout)
    except (OSError, asyncio.TimeoutError) as error:
        connection.closed = True
        connection.transport.abort()
        return Result(begun, time.monotonic() - begun, node.number, path, 0, "", str(error) or "no answer in time")
    code = int(head[9:12])
    at = head.lower().find(b"\r\ncache-status:")
    status = head[at + 15 :].split(b"\r\n", 1)[0].decode().strip() if at >= 0 else ""
    error = None if code < 500 else f"{code}"
    return Result(begun, time.monotonic() - begun, node.number, path, code, status, error)


class Load:
    """Requests at `rate` a second from so many clients. Each goes to a node that `targets` says, on a kept connection."""

    def __init__(self, rate, path, targets, clients=64, timeout=30, seed=7):
        self.rate, self.path, self.targets, self.timeout = rate, path, targets, timeout
        self.results, self.random, self.clients = [], random.Random(seed), clients
        self.asked, self.stopped, self.task = 0, False, None

    async def __aenter__(self):
        self.begun = time.monotonic()
        self.task = asyncio.gather(*(self.client() for _ in range(self.clients)))
        return self

    async def __aexit__(self, *_):
        await self.stop()

    async def stop(self):
        self.stopped = True
        await self.task

    async def client(self):
        connections = {}
        while not self.stopped:
            turn = self.begun + self.asked / self.rate
            self.asked += 1
            late = turn - time.monotonic()
            if late > 0:
                await asyncio.sleep(late)
            targets = self.targets()
            if self.stopped or not targets:
                continue
            node = self.random.choice(targets)
            path = self.path()
            # Who is not a target any more is left: a client follows what `ready` says.
            for number in [number for number in connections if all(number != target.number for target in targets)]:
                connections.pop(number).transport.close()
            connection = connections.get(node.number)
            if connection is None or connection.closed:
                try:
                    connection = connections[node.number] = await connect(node.port)
                except OSError:
                    self.results.append(Result(time.monotonic(), 0, node.number, path, 0, "", "not connected"))
                    continue
            self.results.append(await ask(connection, node, path, self.timeout))
        for connection in connections.values():
            connection.transport.close()


class Readiness:
    """The nodes whose `ready` says yes, asked all the time, as a load balancer does."""

    def __init__(self, nodes, every=0.1):
        self.nodes, self.every, self.ready, self.stopped = nodes, every, list(nodes()), False

    async def __aenter__(self):
        self.task = asyncio.create_task(self.watch())
        return self

    async def __aexit__(self, *_):
        # Not by cancelling, which a wait that ends at that moment would swallow.
        self.stopped = True
        await self.task

    async def watch(self):
        connections = {}
        while not self.stopped:
            ready = []
            for node in self.nodes():
                try:
                    connection = connections.get(node.number)
                    if connection is None or connection.closed:
                        connection = connections[node.number] = await asyncio.wait_for(connect(node.port), 1)
                    if (await ask(connection, node, "/_groupcache/ready", 1)).code == 200:
                        ready.append(node)
                except (OSError, asyncio.TimeoutError):
                    pass
            self.ready = ready
            await asyncio.sleep(self.every)


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def between(results, begin, end):
    return [result for result in results if begin <= result.begun < end]


def hit_ratio(results):
    """The share that came from the memory of the fleet: no request of the origin was waited for."""
    good = [result for result in results if result.error is None]
    hits = [result for result in good if "hit" in result.status.split(",")[0] or "; hit" in result.status]
    return len(hits) / len(good) if good else float("nan")
