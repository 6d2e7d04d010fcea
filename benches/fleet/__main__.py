"""Measures what is promised of a fleet, on real processes: `make fleet-figures CASES=cold,hot ROUNDS=1`.

Five nodes on loopback, an origin with 50 ms of latency and objects of 30 KiB, keys by Zipf's law. Clients, origin and nodes share
the machine, so absolute times mean little; what is compared was measured in the same run.
"""

import argparse
import asyncio
import datetime
import os
import platform
import resource
import sys
import tempfile
from pathlib import Path

# Nothing is left in the tree but results.
sys.dont_write_bytecode = True

from cases import CASES
from nodes import PROJECT


class Setting:
    def __init__(self, options, folder):
        self.binary, self.folder, self.fleets = options.binary, Path(folder), 0
        self.clients, self.rate, self.requests = options.clients, options.rate, options.requests


def find_binary():
    for profile in ("release", "debug"):
        path = PROJECT / "target" / profile / "groupcache-proxy"
        if path.exists():
            return path
    sys.exit("no build found: run `make release` or `cargo build`")


def table(results):
    lines = ["| figure | promise | measured | kept |", "|---|---|---|---|"]
    for result in results:
        kept = {True: "yes", False: "**no**", None: ""}[result["kept"]]
        lines.append(f"| {result['figure']} | {result['promise']} | {result['measured']} | {kept} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(prog="make fleet-figures", description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES), help="of " + ",".join(CASES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rate", type=int, default=1000, help="requests a second")
    parser.add_argument("--requests", type=int, default=100_000, help="of a rolling restart, at least")
    parser.add_argument("--clients", type=int, default=1000, help="of each node, for one cold key")
    parser.add_argument("--binary", type=Path, default=None)
    parser.add_argument("--no-record", action="store_true", help="leave benches/results as it is")
    options = parser.parse_args()
    options.binary = (options.binary or find_binary()).resolve()
    unknown = [case for case in options.cases.split(",") if case not in CASES]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    results = []
    with tempfile.TemporaryDirectory(prefix="fleet-figures-") as folder:
        setting = Setting(options, folder)
        for number in range(options.rounds):
            for case in options.cases.split(","):
                print(f"round {number + 1}: {case} ({CASES[case].__doc__.strip()})", file=sys.stderr, flush=True)
                rows = asyncio.run(CASES[case](setting))
                print(table(rows), file=sys.stderr, flush=True)
                results += rows
    profile = options.binary.parent.name
    about = (
        f"{datetime.date.today()}, {profile} build, {os.cpu_count()} cores ({platform.machine()}, load average "
        f"{os.getloadavg()[0]:.0f}), {options.rate} requests a second, {options.rounds} round(s). `make fleet-figures`; the cases "
        "are in `benches/fleet/cases.py`."
    )
    text = f"# A fleet of five on one machine\n\n{about}\n\n{table(results)}\n"
    print(text)
    if not options.no_record and set(options.cases.split(",")) == set(CASES):
        (PROJECT / "benches" / "results" / "fleet.md").write_text(text)
    if any(result["kept"] is False for result in results):
        sys.exit(1)


main()
