"""A fleet on loopback: its origin, its nodes, and how they are started, asked and ended."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
BODY_BYTES = 30 * 1024
ORIGIN_MS = 50
#: What the origin takes for a path that begins with /slow-: long enough for something to happen in the middle.
SLOW_SECONDS = 2
#: What a peer may take beside its origin: the silence, the ticks by which it is counted, and connecting.
PEER_DEADLINE = 1.6


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def fetch(port, path, method="GET", body=None, headers=None, timeout=10):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def until(what, check, seconds=30):
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


class Origin:
    """The small origin in a process of its own."""

    def __init__(self, milliseconds=ORIGIN_MS, body_bytes=BODY_BYTES):
        command = [sys.executable, str(HERE / "origin.py"), str(milliseconds), str(body_bytes), str(SLOW_SECONDS)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.port = int(self.process.stdout.readline())

    def counts(self):
        return json.loads(fetch(self.port, "/-/counts")[1])

    def requests(self, path=None):
        paths = self.counts()["paths"]
        return sum(paths.values()) if path is None else paths.get(path, 0)

    def reset(self):
        fetch(self.port, "/-/reset")

    def stop(self):
        self.process.stdin.close()
        self.process.wait(10)


class Node:
    """One process. It can be killed, frozen and started again at its address."""

    def __init__(self, fleet, number, port, admin):
        self.fleet, self.number, self.port, self.admin = fleet, number, port, admin
        self.folder = fleet.folder / f"node-{number}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self, peers=None):
        if peers is None:
            peers = self.fleet.peers()
        config = (
            f"listen: [{{ address: '127.0.0.1:{self.port}' }}]\n"
            f"admin: {{ address: '127.0.0.1:{self.admin}' }}\n"
            "memory: 512MiB\nthreads: 1\nlog: { access: none }\n"
            f"shutdown: {{ delay: {self.fleet.delay}, timeout: 20s }}\n"
            f"fleet: {{ self: '{self.url}', peers: {peers}, resharding: {self.fleet.resharding} }}\n"
            f"groups: [{{ name: all, origin: 'http://127.0.0.1:{self.fleet.origin.port}', {self.fleet.keys} }}]\n"
        )
        (self.folder / "proxy.yaml").write_text(config)
        with open(self.folder / "output.txt", "ab") as output:
            self.process = subprocess.Popen(
                [str(self.fleet.binary), "run", "--config", str(self.folder / "proxy.yaml")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def is_ready(self):
        try:
            return fetch(self.port, "/_groupcache/ready", timeout=2)[0] == 200
        except OSError:
            return False

    def wait_until_ready(self):
        def ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"node {self.number} ended: {(self.folder / 'output.txt').read_text()[-500:]}")
            return self.is_ready()

        until(f"node {self.number} is ready", ready)

    def stats(self):
        return json.loads(fetch(self.admin, "/_groupcache/stats")[1])

    def group(self):
        return self.stats()["groups"]["all"]

    def is_connected(self, others):
        up = {peer["url"] for peer in self.stats()["fleet"]["peers"] if peer["version"] and peer["state"] == "up"}
        return all(other.url in up for other in others if other is not self)

    def owner_of(self, path):
        return json.loads(fetch(self.admin, f"/_groupcache/explain?path={path}")[1])["owner"]

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.kill()
        if self.process:
            self.process.wait(30)


class Fleet:
    """So many nodes that know each other, with an origin of their own."""

    def __init__(self, setting, size=5, keys="", delay="2s", listed=None, views=None, in_file=False, resharding="warm"):
        self.folder = setting.folder / f"fleet-{setting.fleets}"
        setting.fleets += 1
        self.binary, self.keys, self.delay, self.in_file = setting.binary, keys, delay, in_file
        self.resharding = resharding
        self.folder.mkdir(parents=True)
        self.origin = Origin()
        ports = free_ports(2 * size)
        self.nodes = [Node(self, number, *ports[2 * number : 2 * number + 2]) for number in range(size)]
        #: The nodes that are members; all, unless told otherwise.
        self.members = self.nodes[: listed or size]
        self.write_members()
        try:
            for node in self.members:
                view = views and views(node.number)
                node.start(view and "[" + ", ".join(f"'{self.nodes[seen].url}'" for seen in view) + "]")
            self.wait(check_links=views is None)
        except BaseException:
            self.stop()
            raise

    def write_members(self):
        text = "".join(f"{node.url}\n" for node in self.members)
        (self.folder / "new.txt").write_text(text)
        os.replace(self.folder / "new.txt", self.folder / "peers.txt")

    def peers(self):
        if self.in_file:
            return f"{{ file: '{self.folder / 'peers.txt'}' }}"
        return "[" + ", ".join(f"'{node.url}'" for node in self.members) + "]"

    def wait(self, check_links=True):
        for node in self.members:
            node.wait_until_ready()
        if check_links:
            for node in self.members:
                until(f"node {node.number} knows its peers", lambda: node.is_connected(self.members))

    def owner_of(self, path):
        url = self.members[0].owner_of(path)
        return next(node for node in self.nodes if node.url == url)

    def stop(self):
        for node in self.nodes:
            node.stop()
        self.origin.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
