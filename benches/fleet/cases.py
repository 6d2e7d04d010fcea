"""The promises to a fleet, one by one: what is done, and what came of it.

Each case gives rows (figure, promise, measured, kept): `kept` is None where a figure only stands beside another one.
"""

import asyncio
import json
import random
import signal
import time

from load import Load, Mixed, Readiness, Zipf, ask, between, connect, hit_ratio, quantile
from nodes import ORIGIN_MS, PEER_DEADLINE, SLOW_SECONDS, Fleet, fetch

KEYS = 20_000
#: Keys of a rolling restart, and the part of its requests that are for other keys: what every fleet asks its origin for.
WARM_KEYS, NEW_PERCENT = 5_000, 5


def row(figure, promise, measured, kept=None):
    return {"figure": figure, "promise": promise, "measured": measured, "kept": kept}


def ms(seconds):
    return f"{seconds * 1000:,.0f} ms"


def waits(figure, seconds, origin_seconds=ORIGIN_MS / 1000):
    """No request waits past the deadline for peers and what the origin takes, also among thousands that come at once."""
    limit = PEER_DEADLINE + origin_seconds
    return row(f"{figure}: slowest request", f"peer deadline + origin: {ms(limit)}", ms(seconds), seconds <= limit)


async def crowd(nodes, clients, path, begun=None):
    """So many clients of each node ask for the same thing on connections that are open already; `begun` runs when all have
    asked."""
    connections = []
    for node in nodes:
        for start in range(0, clients, 100):
            opened = await asyncio.gather(*(connect(node.port) for _ in range(min(100, clients - start))))
            connections += [(connection, node) for connection in opened]
    random.Random(3).shuffle(connections)
    asking = [asyncio.create_task(ask(connection, node, path, 30)) for connection, node in connections]
    # In a thread, so that it need not wait until all have asked.
    meanwhile = asyncio.create_task(asyncio.to_thread(begun)) if begun else None
    results = await asyncio.gather(*asking)
    if meanwhile:
        await meanwhile
    for connection, _ in connections:
        connection.transport.close()
    return results


def failures(results):
    counts = {}
    for result in results:
        if result.error:
            counts[result.error] = counts.get(result.error, 0) + 1
    return ", ".join(f"{count} {error}" for error, count in sorted(counts.items())) or "0"


async def cold(setting):
    """One cold key, a thousand clients on each node; and what becomes of it when its owner is killed in the middle."""
    rows = []
    with Fleet(setting) as fleet:
        results = await crowd(fleet.nodes, setting.clients, "/cold")
        asked, failed = fleet.origin.requests("/cold"), [result for result in results if result.error]
        rows.append(
            row(
                f"{setting.clients} clients on each of 5 nodes, one cold key",
                "1 origin request",
                f"{asked}; {len(failed)} failed",
                asked == 1 and not failed,
            )
        )
        rows.append(waits("the cold key", max(result.seconds for result in results)))
        owner = fleet.owner_of("/slow-killed")

        def kill():
            while not fleet.origin.requests("/slow-killed"):
                time.sleep(0.001)
            owner.process.kill()

        others = [node for node in fleet.nodes if node is not owner]
        results = await crowd(others, setting.clients, "/slow-killed", kill)
        asked, failed = fleet.origin.requests("/slow-killed"), [result for result in results if result.error]
        rows.append(
            row(
                "its owner killed in mid-fill (2 s at the origin; clients of the other nodes)",
                "at most 2 origin requests",
                f"{asked}; {failures(results)} failed",
                asked <= 2 and not failed,
            )
        )
        rows.append(waits("its owner killed", max(result.seconds for result in results), SLOW_SECONDS))
    return rows


async def views(setting):
    """Two views of the ring for ten seconds: two nodes have not heard of the fifth."""
    seen = {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}
    with Fleet(setting, views=lambda number: seen.get(number, [0, 1, 2, 3, 4])) as fleet:
        asked, slowest, failed, end, keys = [], 0.0, 0, time.monotonic() + 10, 0
        while time.monotonic() < end:
            path = f"/views-{keys}"
            keys += 1
            for _ in range(3):
                results = await crowd(fleet.nodes, 10, path)
                slowest = max(slowest, max(result.seconds for result in results))
                failed += sum(result.error is not None for result in results)
            asked.append(fleet.origin.requests(path))
        twice = sum(count == 2 for count in asked)
    return [
        row(
            "two views of the ring for 10 s, 150 requests for each of "
            f"{keys} keys",
            "at most 2 origin requests for a key",
            f"most {max(asked)} ({twice} keys twice); {failed} failed",
            max(asked) <= 2 and not failed,
        ),
        waits("two views", slowest),
    ]


async def kill(setting):
    """kill -9 of a node under load."""
    with Fleet(setting) as fleet:
        victim = fleet.nodes[2]
        zipf = Zipf(KEYS)
        targets = list(fleet.nodes)
        async with Load(setting.rate, zipf.path, lambda: targets) as load:
            await asyncio.sleep(8)
            killed = time.monotonic()
            victim.process.kill()
            targets.remove(victim)
            await asyncio.sleep(6)
        others = [result for result in load.results if result.node != victim.number]
        before, after = between(others, killed - 5, killed), between(others, killed - 1, killed + 5)
        transit = [result for result in after if result.error and "in the body" in result.error]
        failed = [result for result in after if result.error and "in the body" not in result.error]
        ended = sorted((result.begun + result.seconds, result) for result in between(others, killed - 1, killed + 3))
        # What the dead node owned and an other node had not: its answer came the other way.
        fallback = None
        tried = {}
        for end, result in ended:
            if end < killed or result.error or "fwd=" not in result.status:
                continue
            if result.path not in tried:
                tried[result.path] = json.loads(
                    fetch(fleet.nodes[0].admin, f"/_groupcache/explain?path={result.path}")[1]
                )["owner"]
            if tried[result.path] == victim.url and result.begun > killed - 0.2:
                fallback = end - killed
                break
        p99 = [quantile([result.seconds for result in of], 0.99) for of in (before, between(others, killed, killed + 5))]
        rows = [
            row(
                "kill -9 of a node under load: failed at the others",
                "0 but bodies in transit",
                f"{failures(failed)} of {len(after)}; {len(transit)} in transit",
                not failed,
            ),
            row(
                "its keys answered another way",
                "first within 300 ms",
                ms(fallback) if fallback is not None else "never",
                fallback is not None and fallback <= 0.3,
            ),
            row(
                "the others' p99, five seconds after and before",
                "at most 2 x",
                f"{p99[1] / p99[0]:.2f} x ({ms(p99[1])}, {ms(p99[0])})",
                p99[1] <= 2 * p99[0],
            ),
        ]
    return rows


async def frozen(setting):
    """SIGSTOP of a node for five seconds under load."""
    with Fleet(setting) as fleet:
        victim = fleet.nodes[2]
        zipf, targets = Zipf(KEYS), [node for node in fleet.nodes if node is not victim]
        async with Load(setting.rate, zipf.path, lambda: targets) as load:
            await asyncio.sleep(5)
            frozen = time.monotonic()
            victim.signal(signal.SIGSTOP)
            await asyncio.sleep(5)
            victim.signal(signal.SIGCONT)
            await asyncio.sleep(3)
        during = between(load.results, frozen - 1, frozen + 8)
        failed = [result for result in during if result.error]
        measured = f"{failures(failed)} failed of {len(during)}"
        return [
            row("frozen node (SIGSTOP 5 s): failed at the others", "0", measured, not failed),
            waits("frozen node", max(result.seconds for result in during)),
        ]


async def restart_all(fleet, stop_signal):
    """Every node once: ended, started, waited for."""
    for node in fleet.nodes:
        node.signal(stop_signal)
        while node.process.poll() is None:
            await asyncio.sleep(0.05)
        node.start()
        while not await asyncio.to_thread(node.is_ready):
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)


def spent(load, origin_before, origin_after, begun, ended):
    """The parts of the requests that were answered from memory by Cache-Status, and that cost the origin a request."""
    results = between(load.results, begun, ended)
    return hit_ratio(results), (origin_after - origin_before) / max(1, len(results))


def memory_rows(name, before, during, promised=True):
    """A fleet's memory is also that of the previous owner, which a Cache-Status of `fwd=miss` does not show."""
    points = 100 * (during[1] - before[1])
    more = during[1] / before[1] if before[1] else float("inf")
    return [
        row(
            f"{name}: answered from the fleet's memory",
            "within 2 points" if promised else "",
            f"{100 - 100 * before[1]:.1f} % before, {100 - 100 * during[1]:.1f} % during (without peeks at previous owners "
            f"{100 * before[0]:.1f} %, {100 * during[0]:.1f} %)",
            points <= 2 if promised else None,
        ),
        row(
            f"{name}: origin requests of a request",
            "at most 1.1 x" if promised else "",
            f"{more:.2f} x ({100 * before[1]:.2f} % before, {100 * during[1]:.2f} % during)",
            more <= 1.1 if promised else None,
        ),
    ]


async def fill(fleet, keys):
    """Every key is asked for once, at the nodes in turn."""
    waiting = list(range(keys))

    async def client(node):
        connection = await connect(node.port)
        while waiting:
            await ask(connection, node, f"/{waiting.pop()}", 30)
        connection.transport.close()

    await asyncio.gather(*(client(node) for node in fleet.members for _ in range(16)))


async def rolling_once(setting, stop_signal, requests, resharding="warm"):
    with Fleet(setting, resharding=resharding) as fleet:
        await fill(fleet, WARM_KEYS)
        mixed = Mixed(WARM_KEYS, NEW_PERCENT)
        async with Readiness(lambda: fleet.nodes) as readiness:
            async with Load(setting.rate, mixed.path, lambda: readiness.ready) as load:
                await asyncio.sleep(5)
                counts = [fleet.origin.requests()]
                times = [time.monotonic()]
                await asyncio.sleep(10)
                counts.append(fleet.origin.requests())
                times.append(time.monotonic())
                await restart_all(fleet, stop_signal)
                counts.append(fleet.origin.requests())
                times.append(time.monotonic())
                least = requests / setting.rate - (time.monotonic() - times[0])
                await asyncio.sleep(max(1, least))
                counts.append(fleet.origin.requests())
                times.append(time.monotonic())
        before = spent(load, counts[0], counts[1], times[0], times[1])
        restarting = spent(load, counts[1], counts[2], times[1], times[2])
        during = spent(load, counts[1], counts[3], times[1], times[3])
        failed = [result for result in load.results if result.error]
        return before, restarting, during, failed, len(load.results)


async def rolling(setting):
    """A rolling restart of five: as promised, on a plain ring, and without notice."""
    rows = []
    for name, stop_signal, resharding in (
        ("SIGTERM", signal.SIGTERM, "warm"),
        ("SIGTERM on a plain ring (resharding: cold)", signal.SIGTERM, "cold"),
        ("without hand-over (kill -9)", signal.SIGKILL, "warm"),
    ):
        promised = name == "SIGTERM"
        requests = 0 if stop_signal == signal.SIGKILL else setting.requests
        before, restarting, during, failed, count = await rolling_once(setting, stop_signal, requests, resharding)
        rows += [
            row(
                f"rolling restart of five, {name}: failed",
                f"0 of {setting.requests:,}" if promised else "",
                f"{failures(failed)} of {count:,}",
                not failed if promised else None,
            ),
        ]
        rows += memory_rows(f"{name}, while nodes restart", before, restarting, promised)
        if requests:
            rows += memory_rows(f"{name}, all requests", before, during, promised)
    return rows


async def scale(setting):
    """Five nodes, six, and five again, by the file that lists them: as promised, and on a plain ring."""
    plain = "5 to 6 to 5 nodes on a plain ring (resharding: cold)"
    return await scale_once(setting, "5 to 6 to 5 nodes", "warm") + await scale_once(setting, plain, "cold")


async def scale_once(setting, name, resharding):
    with Fleet(setting, size=6, listed=5, in_file=True, resharding=resharding) as fleet:
        await fill(fleet, WARM_KEYS)
        mixed = Mixed(WARM_KEYS, NEW_PERCENT)
        async with Readiness(lambda: fleet.members) as readiness:
            async with Load(setting.rate, mixed.path, lambda: readiness.ready) as load:
                await asyncio.sleep(5)
                counts, times = [fleet.origin.requests()], [time.monotonic()]
                await asyncio.sleep(10)
                counts.append(fleet.origin.requests())
                times.append(time.monotonic())
                sixth = fleet.nodes[5]
                fleet.members = fleet.nodes
                fleet.write_members()
                sixth.start()
                await asyncio.to_thread(sixth.wait_until_ready)
                await asyncio.sleep(10)
                sixth.signal(signal.SIGTERM)
                while sixth.process.poll() is None:
                    await asyncio.sleep(0.05)
                fleet.members = fleet.nodes[:5]
                fleet.write_members()
                await asyncio.sleep(8)
                counts.append(fleet.origin.requests())
                times.append(time.monotonic())
        before = spent(load, counts[0], counts[1], times[0], times[1])
        during = spent(load, counts[1], counts[2], times[1], times[2])
        failed = [result for result in load.results if result.error]
    promised = resharding == "warm"
    measured = f"{failures(failed)} of {len(load.results):,}"
    failed_row = row(f"{name}: failed", "0" if promised else "", measured, not failed if promised else None)
    return [failed_row] + memory_rows(name, before, during, promised)


async def purge(setting):
    """Purges of single keys under load, beside hits over a hop in the same seconds."""
    with Fleet(setting) as fleet:
        headers = {"Content-Type": "application/json"}
        body = json.dumps({"group": "all", "key": "warm-up"})
        status, _ = fetch(fleet.nodes[0].admin, "/_groupcache/purge", "POST", body, headers)
        if status == 404:
            return [row("purge acknowledged under load, p99", "at most 3 x the p99 of a hop hit", "this build purges nothing")]
        zipf, times, states = Zipf(KEYS // 10), [], set()
        async with Load(setting.rate, zipf.path, lambda: fleet.nodes) as load:
            await asyncio.sleep(6)
            begun = time.monotonic()

            def purge_one(number):
                body = json.dumps({"group": "all", "key": str(number)})
                start = time.monotonic()
                states.add(fetch(fleet.nodes[number % 5].admin, "/_groupcache/purge", "POST", body, headers)[0])
                return time.monotonic() - start

            number = 0
            while time.monotonic() < begun + 10:
                number += 1
                times.append(await asyncio.to_thread(purge_one, number))
                await asyncio.sleep(0.02)
            ended = time.monotonic()
        hops = [
            result.seconds
            for result in between(load.results, begun, ended)
            if "/owner; hit" in result.status and result.error is None
        ]
        ours, theirs = quantile(times, 0.99), quantile(hops, 0.99)
        return [
            row(
                f"purge of a key acknowledged by five nodes under load, p99 of {len(times)}",
                "at most 3 x the p99 of a hop hit",
                f"{ours / theirs:.2f} x ({1000 * ours:.1f} ms, {1000 * theirs:.1f} ms of {len(hops)}); answers {sorted(states)}",
                ours <= 3 * theirs and states == {200},
            )
        ]


async def hot(setting):
    """One key has half of all traffic."""
    with Fleet(setting) as fleet:
        zipf, coin = Zipf(KEYS // 10, prefix="/other-"), random.Random(11)
        path = lambda: "/hot" if coin.random() < 0.5 else zipf.path()
        work = lambda: [node.group()["gets"] for node in fleet.nodes]
        async with Load(setting.rate, path, lambda: fleet.nodes) as load:
            await asyncio.sleep(2)
            before = await asyncio.to_thread(work)
            await asyncio.sleep(8)
            after = await asyncio.to_thread(work)
        done = [after - before for after, before in zip(after, before)]
        busiest = max(done) / (sum(done) / len(done))
        asked = fleet.origin.requests("/hot")
        failed = [result for result in load.results if result.error]
        return [
            row(
                "one key with half of all traffic: busiest node, from the second second on",
                "at most 1.25 x the mean",
                f"{busiest:.2f} x; {failures(failed)} failed of {len(load.results)}",
                busiest <= 1.25 and not failed,
            ),
            row("the same: origin requests for the key", "1", str(asked), asked == 1),
        ]


async def limit(setting):
    """An origin with a limit, five nodes that want more, fills and passes."""
    keys = "max_concurrency: 64, queue: { length: 10000, timeout: 20s }"
    with Fleet(setting, keys=keys) as fleet:
        number = 0

        async def client(which):
            nonlocal number
            node = fleet.nodes[which % 5]
            connection, results = await connect(node.port), []
            while time.monotonic() < end:
                number += 1
                method = "POST" if which % 4 == 0 else "GET"
                results.append(await ask(connection, node, f"/cold-{number}", 30, method))
                if connection.closed:
                    connection = await connect(node.port)
            return results

        fleet.origin.reset()
        end = time.monotonic() + 8
        results = sum(await asyncio.gather(*(client(which) for which in range(400))), [])
        most, failed = fleet.origin.counts()["most"], [result for result in results if result.error]
        return [
            row(
                "max_concurrency: 64, 400 clients of five nodes, a quarter of them passes: most at the origin at once",
                "64",
                f"{most}; {failures(failed)} failed of {len(results):,}",
                most <= 64 and not failed,
            )
        ]


CASES = {case.__name__: case for case in (cold, views, kill, frozen, rolling, scale, purge, hot, limit)}
