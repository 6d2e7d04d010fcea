"""Load from the other core: wrk for HTTP/1.1, h2load for HTTP/2, and two small clients of our own.

A measurement is a dictionary: `rate` per second, `errors`, and where they make sense `requests`, `bytes_per_second` and
`p99_ms`.
"""

import re
import selectors
import socket
import subprocess
import time
from pathlib import Path

from contestants import find_program

CONNECTIONS = 64


def wrk(setting, url, seconds, fields=(), script=None, arguments=(), connections=CONNECTIONS):
    """One thread of wrk with keep-alive connections."""
    command = ["taskset", "-c", str(setting.load_core), find_program("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    for name, value in fields:
        command += ["-H", f"{name}: {value}"]
    if script:
        path = setting.folder / f"{script}.lua"
        if not path.exists():
            path.write_text(SCRIPTS[script])
        command += ["-s", str(path), url, "--", *map(str, arguments)]
    else:
        command.append(url)
    output = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if not rate:
        return {"rate": 0.0, "errors": 1, "requests": 0}
    errors = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", output)))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    return {
        "rate": float(rate[1]),
        "errors": errors + (int(refused[1]) if refused else 0),
        "requests": int(re.search(r"(\d+) requests in", output)[1]),
        "bytes_per_second": size(re.search(r"Transfer/sec:\s+([\d.]+)(\w*)", output)),
        "p99_ms": milliseconds(re.search(r"99%\s+([\d.]+)(\w+)", output)),
    }


def h2load(setting, url, seconds, fields=(), connections=16, streams=16, http_1=False):
    """HTTP/2 over TLS, 16 connections with 16 streams each; or HTTP/1.1, where wrk would wait for a body after a 304."""
    command = ["taskset", "-c", str(setting.load_core), find_program("h2load"), "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}", url]
    for name, value in fields:
        command += ["-H", f"{name}: {value}"]
    if http_1:
        command.append("--h1")
    output = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60).stdout
    rate = re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", output)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", output)
    status = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx", output)
    if not (rate and counts and status and int(status[1]) + int(status[2])):
        return {"rate": 0.0, "errors": 1, "requests": 0}
    return {"rate": float(rate[1]), "errors": int(counts[2]) + int(counts[3]), "requests": int(counts[1])}


def size(match):
    return float(match[1]) * {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}[match[2]] if match else 0.0


def milliseconds(match):
    return float(match[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60000.0}[match[2]] if match else 0.0


def first_bytes(port, path, waiters, timeout=10.0):
    """Asks `waiters` times at once on connections that are open already; the milliseconds to each first byte, sorted."""
    sockets = [socket.create_connection(("127.0.0.1", port), timeout) for _ in range(waiters)]
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    times = []
    try:
        with selectors.DefaultSelector() as selector:
            start = time.perf_counter()
            for each in sockets:
                each.sendall(request)
            for each in sockets:
                selector.register(each, selectors.EVENT_READ)
            while selector.get_map() and time.perf_counter() - start < timeout:
                for key, _ in selector.select(timeout):
                    answer = key.fileobj.recv(65536)
                    times.append((time.perf_counter() - start) * 1000 if b" 200 " in answer[:16] else float("inf"))
                    selector.unregister(key.fileobj)
    finally:
        for each in sockets:
            each.close()
    return sorted(times + [float("inf")] * (waiters - len(times)))


def idle_connections(port, path, count):
    """Opens `count` connections, gets one answer on each and returns them, open."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    opened = []
    for _ in range(count):
        each = socket.create_connection(("127.0.0.1", port), 10)
        opened.append(each)
        each.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            part = each.recv(65536)
            if not part:
                raise OSError("the server closed a connection")
            answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])
        while len(body) < length:
            body += each.recv(65536)
    return opened


def slow_readers(port, path, count):
    """Opens `count` connections with small receive buffers and asks on each; nothing is read yet."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    opened = []
    for _ in range(count):
        each = socket.socket()
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        each.settimeout(10)
        each.connect(("127.0.0.1", port))
        each.sendall(request)
        opened.append(each)
    return opened


def read_slowly(opened, count):
    """Reads up to `count` bytes of what each connection has; says how many had some."""
    return sum(1 for each in opened if each.recv(count))


# wrk's scripts. Requests are prepared once: the generator must not be slower than what it measures.
SCRIPTS = {
    # arguments: prefix of the path, number of keys
    "random": """
local requests, count = {}, 0
function init(arguments)
    count = tonumber(arguments[2])
    for key = 1, count do requests[key] = wrk.format("GET", arguments[1] .. key) end
    math.randomseed(7)
end
function request() return requests[math.random(count)] end
""",
    # arguments: prefix of the path, number of keys; written anew each time, where so many prepared requests would be too many
    "random-fresh": """
local before, after, count
function init(arguments)
    local whole = wrk.format("GET", arguments[1] .. "@")
    local at = whole:find("@", 1, true)
    before, after, count = whole:sub(1, at - 1), whole:sub(at + 1), tonumber(arguments[2])
    math.randomseed(7)
end
function request() return before .. math.random(count) .. after end
""",
    # arguments: prefix of the path, first number, then sizes of which each request takes the next: every key is asked once
    "unique": """
local before, after, sizes, number, prefix = nil, nil, {}, 0, ""
function init(arguments)
    prefix, number = arguments[1], tonumber(arguments[2])
    for place = 3, #arguments do sizes[#sizes + 1] = arguments[place] end
    local whole = wrk.format("GET", "/@")
    local at = whole:find("/@", 1, true)
    before, after = whole:sub(1, at - 1), whole:sub(at + 2)
end
function request()
    number = number + 1
    return before .. prefix:gsub("SIZE", sizes[number % #sizes + 1]) .. number .. after
end
""",
}
