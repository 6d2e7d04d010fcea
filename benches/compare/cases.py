"""What is measured: each case prepares every contestant, checks that its answer is the right one, and measures a round."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import load
from contestants import (
    PROJECT, Contestant, GoGroupcache, HAProxy, Missing, NginxCache, NginxReturn, Ours, TrafficServer, Varnish, fetch, free_port,
)

PEERS = [NginxReturn, NginxCache, HAProxy, Varnish, TrafficServer, GoGroupcache, Ours]


class Case:
    """Requests per second of the servers that all cases of this kind share."""

    unit = "requests/s"
    higher_is_better = True

    def __init__(self, name, title, size, keys=1, fields=(), status=200, length=None, scheme="http", contestants=None):
        self.name, self.title, self.size, self.keys, self.fields = name, title, size, keys, fields
        self.status, self.length, self.scheme = status, size if length is None else length, scheme
        self.contestants = contestants or PEERS

    def servers(self, shared):
        """The servers that take part, from those that run already."""
        return [server for server in shared if type(server) in self.contestants and self.name not in server.cannot]

    def close(self):
        """Ends what only this case started."""

    def path(self):
        return f"/{self.size}/k"

    def prepare(self, server):
        """Fills the cache, and refuses a server that does not give the answer that the case is about."""
        fields = self.request_fields(server)
        for key in range(1, self.keys + 1):
            fetch(server.port, server.path(f"{self.path()}{key}"))
        answer = fetch(server.port, server.path(f"{self.path()}1"), fields)
        if isinstance(server, NginxReturn):
            return
        if answer.status != self.status or len(answer.content) != self.length:
            raise Missing(f"answers {answer.status} with {len(answer.content)} bytes, not {self.status} with {self.length}")

    def request_fields(self, server):
        if self.status != 304:
            return list(self.fields)
        return [("If-None-Match", fetch(server.port, server.path(f"{self.path()}1")).getheader("ETag"))]

    def measure(self, setting, server):
        fields = self.request_fields(server)
        if self.scheme == "h2":
            return load.h2load(setting, server.url(f"{self.path()}1", tls=True), setting.seconds)
        if self.status == 304 and fetch(server.port, server.path(f"{self.path()}1"), fields).getheader("Content-Length"):
            # wrk would wait for the body that has this length.
            return load.h2load(setting, server.url(f"{self.path()}1"), setting.seconds, fields, load.CONNECTIONS, 1, http_1=True)
        tls = self.scheme == "https"
        if self.keys == 1:
            return load.wrk(setting, server.url(f"{self.path()}1", tls), setting.seconds, fields)
        arguments = (server.path(self.path()), self.keys)
        return load.wrk(setting, server.url("/", tls), setting.seconds, fields, "random", arguments)

    def round(self, setting, server):
        """One measurement with the processor time and the questions to the origin that it took."""
        asked, (user, system) = setting.origin.requests(), server.cpu_seconds()
        result = self.measure(setting, server)
        user_after, system_after = server.cpu_seconds()
        if result.get("requests"):
            per_request = 1e6 / result["requests"]
            result["user_us"] = (user_after - user) * per_request
            result["system_us"] = (system_after - system) * per_request
            # One of the questions is ours, for the count.
            result["origin_share"] = max(0, setting.origin.requests() - asked - 1) / result["requests"]
        if self.status == 304 and "p99_ms" not in result:
            result["note"] = "by h2load, because its 304 says Content-Length; h2load is slower than wrk"
        if not self.expects_origin and result.get("origin_share", 0) > 0.01:
            result["note"] = f"asked the origin for {result['origin_share']:.0%}"
        return result

    expects_origin = False
    #: Not among all cases: it has to be asked for.
    only_by_name = False


class Miss(Case):
    """Every key is asked for once."""

    expects_origin = True

    def prepare(self, server):
        fetch(server.port, server.path(f"/{self.size}/probe"))

    def measure(self, setting, server):
        arguments = (server.path("/SIZE/m"), setting.unused_number(), self.size)
        return load.wrk(setting, server.url("/"), setting.seconds, (), "unique", arguments)


class Hop(Case):
    """The node that is asked is not among its own peers: another one, on the same core, owns every key."""

    def __init__(self, *arguments, misses=False, **named):
        super().__init__(*arguments, **named)
        self.misses = misses
        self.expects_origin = misses
        self.started = []

    def servers(self, shared):
        setting = shared[0].setting
        servers = [server for server in shared if isinstance(server, NginxCache)]
        # What the asked node may not keep has to be asked for again.
        for owner, asked in (
            (Ours(setting, "groupcache-proxy owner", owner=True), lambda peer: Ours(setting, "groupcache-proxy hop", [peer], "1KiB")),
            (GoGroupcache(setting, "Go owner"), lambda peer: GoGroupcache(setting, "Go groupcache hop", [peer], 0)),
        ):
            if type(owner) not in self.contestants or not setting.wants(owner):
                continue
            try:
                owner.start()
                self.started.append(owner)
                node = PairOnOneCore(asked(owner.address()), owner)
                node.start()
                self.started.append(node.asked)
                servers.append(node)
            except Missing as missing:
                setting.say(f"{self.name}: without {owner.label}: {missing}")
        return servers

    def prepare(self, server):
        if self.misses:
            fetch(server.port, server.path(f"/{self.size}/probe"))
        else:
            super().prepare(server)

    measure_hits = Case.measure

    def measure(self, setting, server):
        return Miss.measure(self, setting, server) if self.misses else self.measure_hits(setting, server)

    def close(self):
        for server in self.started:
            server.stop()
        self.started = []


class PairOnOneCore:
    """Two nodes that are measured as one."""

    def __init__(self, asked, owner):
        self.asked, self.owner = asked, owner
        self.label, self.setting, self.cannot = asked.label, asked.setting, ()

    def __getattr__(self, name):
        return getattr(self.asked, name)

    def cpu_seconds(self):
        return tuple(map(sum, zip(self.asked.cpu_seconds(), self.owner.cpu_seconds())))


class FirstByte(Case):
    """Milliseconds to the first byte at the 99th of a hundred clients that wait for one cold key."""

    unit = "ms, p99"
    higher_is_better = False
    expects_origin = True
    waiters = 64
    repetitions = 20

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.started, self.origin = [], None

    def servers(self, shared):
        setting = shared[0].setting
        port = free_port()
        command = ["taskset", "-c", str(setting.load_core), sys.executable, str(Path(__file__).parent / "slow_origin.py"), str(port), "50", str(self.size)]
        self.origin = subprocess.Popen(command, stdin=subprocess.PIPE)
        ordinary = setting.origin
        setting.origin = SlowOrigin(port)
        wait_for(port)
        try:
            owner = Ours(setting, "groupcache-proxy behind the hop", owner=True)
            candidates = [
                Ours(setting, "groupcache-proxy waiters"), owner,
                Ours(setting, "groupcache-proxy over a hop", [owner.address()]),
                NginxCache(setting, "nginx waiters"), HAProxy(setting, "HAProxy waiters"), Varnish(setting, "Varnish waiters"),
            ]
            for server in filter(setting.wants, candidates):
                try:
                    server.start()
                    self.started.append(server)
                except Missing as missing:
                    setting.say(f"{self.name}: without {server.label}: {missing}")
        finally:
            setting.origin = ordinary
        return [Direct(port, setting)] + [server for server in self.started if server is not owner]

    def prepare(self, server):
        pass

    def round(self, setting, server):
        waiters = 1 if isinstance(server, Direct) else self.waiters
        times = []
        for _ in range(self.repetitions * (2 if waiters == 1 else 1)):
            times += load.first_bytes(server.port, f"/{self.size}/w{setting.unused_number()}", waiters)
        times.sort()
        worst = times[min(len(times) - 1, len(times) * 99 // 100)]
        return {"rate": worst, "errors": sum(time == float("inf") for time in times), "median_ms": times[len(times) // 2]}

    def close(self):
        for server in self.started:
            server.stop()
        if self.origin:
            self.origin.stdin.close()
            self.origin.terminate()
            self.origin.wait()
        self.started, self.origin = [], None


class Direct:
    """The origin itself, asked by one client at a time."""

    label = "the origin itself, one client"
    cannot = ()

    def __init__(self, port, setting):
        self.port, self.setting = port, setting


class SlowOrigin:
    def __init__(self, port):
        self.port = port


def wait_for(port):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            fetch(port, "/100/probe")
            return
        except OSError:
            time.sleep(0.05)
    raise Missing("the slow origin does not answer")


class Memory(Case):
    """Resident bytes over the budget after four times the budget was offered."""

    unit = "resident / budget"
    higher_is_better = False
    expects_origin = True

    def __init__(self, name, title, sizes):
        super().__init__(name, title, 0)
        self.sizes, self.running = sizes, None

    def servers(self, shared):
        setting = shared[0].setting
        ordinary, setting.cache_bytes = setting.cache_bytes, setting.memory_bytes
        self.ordinary, self.setting = ordinary, setting
        servers = [Ours(setting, "groupcache-proxy budget", memory=str(setting.memory_bytes)), Varnish(setting, "Varnish budget"), HAProxy(setting, "HAProxy budget")]
        return [server for server in servers if setting.wants(server)]

    def prepare(self, server):
        pass

    def round(self, setting, server):
        server.start()
        try:
            before = server.resident_bytes()
            offered = offer(setting, server, self.sizes, 4 * setting.memory_bytes)
            time.sleep(1)
            resident = server.resident_bytes()
        finally:
            server.stop()
            shutil.rmtree(server.folder, ignore_errors=True)
        return {
            "rate": resident / setting.memory_bytes, "errors": 0, "resident_bytes": resident, "resident_at_start": before,
            "budget_bytes": setting.memory_bytes, "offered_bytes": offered,
            "note": f"{resident >> 20} MiB of {setting.memory_bytes >> 20} MiB, {before >> 20} MiB at the start",
        }

    def close(self):
        self.setting.cache_bytes = self.ordinary


def offer(setting, server, sizes, least_bytes):
    """Asks for keys that were never asked for until their bodies are `least_bytes` together."""
    offered, deadline = 0.0, time.monotonic() + 600
    mean = sum(sizes) / len(sizes)
    while offered < least_bytes and time.monotonic() < deadline:
        arguments = (server.path("/SIZE/m"), setting.unused_number(), *sizes)
        result = load.wrk(setting, server.url("/"), 2, (), "unique", arguments)
        if not result["requests"]:
            raise Missing("answers nothing")
        offered += result["requests"] * mean
    return offered


class Idle(Case):
    """What an idle connection costs after one hit."""

    unit = "KiB per connection"
    higher_is_better = False

    def servers(self, shared):
        setting = shared[0].setting
        self.started = []
        for kind in (Ours, NginxCache, HAProxy, Varnish):
            server = kind(setting, f"{kind.name} idle")
            try:
                if setting.wants(server):
                    server.start()
                    self.started.append(server)
            except Missing as missing:
                setting.say(f"{self.name}: without {server.label}: {missing}")
        return self.started

    def round(self, setting, server):
        before = server.resident_bytes()
        opened = []
        try:
            opened = load.idle_connections(server.port, server.path(f"{self.path()}1"), setting.idle_connections)
            # Servers give buffers back after a moment.
            time.sleep(4)
            grown = server.resident_bytes() - before
        finally:
            for each in opened:
                each.close()
        time.sleep(0.5)
        return {"rate": grown / setting.idle_connections / 1024, "errors": 0}

    def close(self):
        for server in self.started:
            server.stop()


class Readers(Case):
    """What a slow reader of a large stored body costs both nodes of a hop, beyond one copy of the body."""

    unit = "KiB per reader"
    higher_is_better = False
    readers = 50
    reading_seconds = 5

    def servers(self, shared):
        setting = shared[0].setting
        limit = str(2 * self.size)
        owner = Ours(setting, "groupcache-proxy owner of the large body", max_object=limit, memory="1GiB", owner=True)
        asked = Ours(setting, "groupcache-proxy readers", [owner.address()], "1KiB", "1GiB")
        self.started = []
        for server in (owner, asked):
            server.start()
            self.started.append(server)
        self.asked, self.owner = asked, owner
        return [asked]

    def prepare(self, server):
        """Measured before anything is stored, so that the one copy can be taken off."""
        self.before = self.resident()
        answer = fetch(self.owner.port, f"{self.path()}1")
        if len(answer.content) != self.size:
            raise Missing(f"answers {answer.status} with {len(answer.content)} bytes")

    def resident(self):
        return (self.owner.resident_bytes(), self.asked.resident_bytes())

    def round(self, setting, server):
        asked = setting.origin.requests()
        opened, taken, samples = [], 0, []
        try:
            opened = load.slow_readers(server.port, f"{self.path()}1", self.readers)
            deadline = time.monotonic() + self.reading_seconds
            while time.monotonic() < deadline:
                taken = load.read_slowly(opened, 64 * 1024)
                samples.append(self.resident())
                time.sleep(0.2)
        finally:
            for each in opened:
                each.close()
        # The median: what an allocator has not given back yet, of the body that was put together or of the readers before, is
        # no cost of these readers. The most is in the remarks.
        samples.sort(key=sum)
        usual, most = samples[len(samples) // 2], samples[-1]
        beyond = sum(usual) - sum(self.before) - self.size
        result = {"rate": beyond / self.readers / 1024, "errors": self.readers - taken}
        result["note"] = f"{usual[0] >> 20} MiB at the owner, {usual[1] >> 20} MiB at the node asked, at most {sum(most) >> 20} MiB in both; origin asked {setting.origin.requests() - asked - 1} times"
        return result

    def close(self):
        for server in self.started:
            server.stop()


class Objects(Case):
    """Hits per second among very many objects, as a share of those among a thousand.

    A million of them take 5 GiB in our process, and 9 GiB on nginx's memory disk; each server is filled in a minute or two.
    """

    unit = "rate among many / among 1,000"

    def servers(self, shared):
        setting = shared[0].setting
        self.started = []
        self.ordinary, self.setting = setting.cache_bytes, setting
        # nginx counts what the file system gives for a file: two pages, and room not to evict at the edge.
        for kind, object_bytes in ((Ours, 6144), (NginxCache, 3 * 4096)):
            setting.cache_bytes = setting.objects * object_bytes
            server = kind(setting, f"{kind.name} objects")
            try:
                if setting.wants(server):
                    server.start()
                    self.started.append(server)
            except Missing as missing:
                setting.say(f"{self.name}: without {server.label}: {missing}")
        return self.started

    def prepare(self, server):
        setting, filled, deadline = server.setting, 0, time.monotonic() + 900
        started = time.monotonic()
        while filled < setting.objects and time.monotonic() < deadline:
            result = load.wrk(setting, server.url("/"), 5, (), "unique", (server.path("/SIZE/k"), filled, self.size))
            if not result["requests"]:
                raise Missing("answers nothing")
            # Those under way at the end of a run may have been cut off.
            filled += max(1, result["requests"] - 64)
        setting.say(f"{self.name}: {server.label} has {filled} objects after {time.monotonic() - started:.0f} s")

    def round(self, setting, server):
        asked = setting.origin.requests()
        rates = []
        for count in (1000, setting.objects):
            arguments = (server.path(self.path()), count)
            rates.append(load.wrk(setting, server.url("/"), setting.seconds, (), "random-fresh", arguments))
        few, many = rates
        result = {"rate": many["rate"] / max(1.0, few["rate"]), "errors": few["errors"] + many["errors"]}
        share = (setting.origin.requests() - asked) / max(1, many["requests"])
        result["note"] = f"{few['rate'] / 1000:.1f} k and {many['rate'] / 1000:.1f} k per second, {share:.1%} asked of the origin"
        return result

    def close(self):
        self.setting.cache_bytes = self.ordinary
        for server in self.started:
            server.stop()
            shutil.rmtree(server.folder, ignore_errors=True)


class Variants:
    """Builds of this project that differ in one choice, side by side: `features` by the name of the variant.

    Each variant is built first, which takes minutes, so these cases run only when they are named.
    """

    only_by_name = True

    def variants(self, setting, **named):
        servers = []
        for name, features in self.features.items():
            server = Ours(setting, f"groupcache-proxy, {name}", **named)
            server.program = str(build(features, setting))
            servers.append(server)
        return servers

    def start(self, servers):
        self.started = []
        for server in servers:
            server.start()
            self.started.append(server)
        return servers

    def close(self):
        for server in self.started:
            server.stop()


def build(features, setting):
    """A release build with these features, beside which the ordinary one stays what it was."""
    if not features:
        return setting.binary
    setting.say(f"building with {', '.join(features)}")
    kept = PROJECT / "target" / "variants" / "-".join(features)
    kept.parent.mkdir(parents=True, exist_ok=True)
    # In the ordinary folder, where what does not differ is built already.
    build_release(["--features", ",".join(features)])
    shutil.copy2(PROJECT / "target" / "release" / "groupcache-proxy", kept)
    build_release([])
    return kept


def build_release(arguments):
    command = ["cargo", "build", "--locked", "--release", "--bin", "groupcache-proxy", *arguments]
    built = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if built.returncode != 0:
        raise Missing(f"cargo build: {built.stderr.strip().splitlines()[-1]}")


ALLOCATORS = {"jemalloc": [], "mimalloc": ["mimalloc"], "system": ["system-allocator"]}
RUNTIMES = {"work stealing": [], "a runtime per thread": ["runtime-per-thread"]}


class Allocators(Variants, Miss):
    """Misses: each allocates a request, a fill, an entry and its body, and once the store is full frees as much."""

    features = ALLOCATORS

    def servers(self, shared):
        return self.start(self.variants(shared[0].setting, memory="64MiB"))


class AllocatorsMemory(Variants, Memory):
    """What is resident after four times the budget."""

    features = ALLOCATORS
    close = Memory.close

    def servers(self, shared):
        setting = shared[0].setting
        self.ordinary, self.setting = setting.cache_bytes, setting
        return self.variants(setting, memory=str(setting.memory_bytes))


class Threads(Variants, Case):
    """Hits with two threads on both cores, which the load shares: the processor time of a request is what counts."""

    features = RUNTIMES

    def servers(self, shared):
        setting = shared[0].setting
        server_core, setting.server_core = setting.server_core, f"{setting.server_core},{setting.load_core}"
        try:
            return self.start(self.variants(setting, threads=2))
        finally:
            setting.server_core = server_core


def mixed_sizes():
    """From 100 bytes to 1 MiB, evenly on a scale of powers, in an order without a trend."""
    steps = 48
    sizes = [round(100 * (1048576 / 100) ** (step / (steps - 1))) for step in range(steps)]
    return [sizes[step * 29 % steps] for step in range(steps)]


TLS = [NginxCache, HAProxy, Ours]

CASES = [
    Case("hit-4k", "hit, 4 KiB, one key", 4096),
    Case("hit-4k-keys", "hit, 4 KiB, 2,000 random keys", 4096, keys=2000),
    Case("hit-100b", "hit, 100 B", 100),
    Case("hit-64k", "hit, 64 KiB", 65536),
    Case("hit-1m", "hit, 1 MiB", 1048576),
    Case("304", "304 to a conditional request, 4 KiB", 4096, status=304, length=0),
    Case("range", "single range of 1,000 bytes, 64 KiB", 65536, fields=[("Range", "bytes=5000-5999")], status=206, length=1000),
    Case("tls-h1", "hit, 4 KiB, TLS, HTTP/1.1", 4096, scheme="https", contestants=TLS),
    Case("tls-h2", "hit, 4 KiB, TLS, HTTP/2", 4096, scheme="h2", contestants=TLS),
    Hop("hop", "hit on another node, both on one core, 4 KiB", 4096, keys=2000, contestants=[NginxCache, GoGroupcache, Ours]),
    Miss("miss", "miss, 4 KiB", 4096),
    Hop("miss-hop", "miss through a hop, both nodes on one core, 4 KiB", 4096, misses=True, contestants=[NginxCache, GoGroupcache, Ours]),
    FirstByte("first-byte", "time to first byte of 64 waiters, origin after 50 ms", 4096),
    Memory("memory-4k", "resident after 4 x the budget, 4 KiB", [4096]),
    # Where the steps between the sizes that an allocator gives are whole pages.
    Memory("memory-16k", "resident after 4 x the budget, 16 KiB", [16 * 1024]),
    Memory("memory-mixed", "resident after 4 x the budget, 100 B to 1 MiB", mixed_sizes()),
    Idle("idle", "memory of an idle connection", 4096),
    Readers("readers", "memory of 50 slow readers of 100 MiB through a hop", 100 << 20),
    Objects("objects", "very many objects of 4 KiB", 4096),
    Allocators("allocators", "misses of 4 KiB, by allocator", 4096, contestants=[Ours]),
    AllocatorsMemory("allocators-memory", "resident after 4 x the budget, 100 B to 1 MiB, by allocator", mixed_sizes()),
    Threads("threads", "hit, 4 KiB, 2,000 random keys, two threads", 4096, keys=2000, contestants=[Ours]),
    Threads("threads-64k", "hit, 64 KiB, two threads", 65536, contestants=[Ours]),
]

__all__ = ["CASES", "PEERS", "Contestant", "Missing"]
