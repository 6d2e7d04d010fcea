"""`make compare`: this project beside nginx, HAProxy, Varnish, Traffic Server and Go groupcache, in one run.

Every server has one core and the load generator the other one. A case runs several rounds, and in each round every server
takes its turn, so that a noisy minute is noisy for all; ratios are taken within a round, and the median of the rounds is
reported. Everything listens on loopback, is limited in time, and ends with this program.

    make compare                                     all cases: 40 minutes
    make compare CASES=hit-4k,hop ROUNDS=3 SECONDS=2 a quick look
    make compare CASES=memory-4k MEMORY_MIB=1024     the figures at full size
    make compare CASES=allocators,allocators-memory,threads,threads-64k   what this project was chosen from: builds it anew
"""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Nothing is written beside the sources.
sys.dont_write_bytecode = True

import report
from cases import CASES, PEERS, Missing
from contestants import PROJECT, Origin, check_packages, find_program


class Setting:
    """What all servers and cases of a run share."""

    def __init__(self, options, folder):
        self.folder = folder
        self.seconds, self.rounds = options.seconds, options.rounds
        cores = sorted(os.sched_getaffinity(0))
        self.server_core, self.load_core = cores[0], cores[-1]
        self.cache_bytes = 1 << 30
        self.memory_bytes = options.memory_mib << 20
        self.idle_connections = options.idle_connections
        self.objects = options.objects
        self.binary = Path(options.binary).resolve()
        self.certificate = make_certificate(folder)
        # Files only of the cases that run: one of them is large.
        self.sizes = sorted({size for case in chosen(options) for size in (case.size, *getattr(case, "sizes", ()))} - {0} | {100})
        self.numbers = 0
        self.contestants = options.contestants
        self.origin = Origin(self)

    def wants(self, server):
        """Whether this kind of server was asked for."""
        return not self.contestants or server.name in self.contestants

    def unused_number(self):
        """Where a run of keys that were never asked for may begin."""
        self.numbers += 50_000_000
        return self.numbers

    def say(self, text):
        print(text, file=sys.stderr, flush=True)


def main():
    options = parse_arguments()
    cases = chosen(options)
    unknown = set(options.cases) - {case.name for case in CASES}
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(case.name for case in CASES)}")
    # A signal unwinds, so that the servers are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    check_packages(PEERS, lambda text: print(text, file=sys.stderr))
    memory_disk = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="compare-", dir=memory_disk))
    started, results = [], []
    try:
        setting = Setting(options, folder)
        setting.origin.start()
        started.append(setting.origin)
        for kind in PEERS:
            if not any(kind in case.contestants for case in cases) or not setting.wants(kind):
                continue
            server = kind(setting)
            try:
                server.start()
                started.append(server)
            except Missing as missing:
                setting.say(f"without {server.label}: {missing}")
        for case in cases:
            result = run_case(setting, case, started[1:])
            if result:
                results.append(result)
                print("\n" + report.case_table(result), flush=True)
    finally:
        for server in reversed(started):
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    if results:
        report.write(results, machine(options), PROJECT / "benches" / "results", options.name)


def chosen(options):
    """The cases that are named; without names, all but those that have to be named."""
    return [case for case in CASES if (case.name in options.cases if options.cases else not case.only_by_name)]


def run_case(setting, case, shared):
    """All rounds of a case: the measurements of each server by round."""
    servers, rounds, refusals = [], {}, {}
    try:
        for server in case.servers(shared):
            try:
                case.prepare(server)
                servers.append(server)
                rounds[server.label] = []
            except (Missing, OSError) as reason:
                refusals[server.label] = str(reason)
        for number in range(setting.rounds):
            for server in list(servers):
                setting.say(f"{case.name}: round {number + 1} of {setting.rounds}: {server.label}")
                try:
                    rounds[server.label].append(case.round(setting, server))
                except (Missing, OSError, subprocess.TimeoutExpired) as reason:
                    refusals[server.label] = str(reason)
                    servers.remove(server)
                    del rounds[server.label]
    finally:
        case.close()
    if not servers:
        setting.say(f"{case.name}: nobody takes part: {refusals}")
        return None
    return {
        "case": case.name, "title": case.title, "unit": case.unit, "higher_is_better": case.higher_is_better,
        "rounds": rounds, "refusals": refusals,
    }


def parse_arguments():
    parser = argparse.ArgumentParser(prog="make compare", description=__doc__.splitlines()[0])
    names = lambda text: [name.strip() for name in text.split(",") if name.strip()]
    parser.add_argument("--cases", type=names, default=[], help="names, separated by commas; without it all")
    parser.add_argument("--contestants", type=names, default=[], help="names, separated by commas; without it all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--memory-mib", type=int, default=128, help="budget of the memory cases")
    parser.add_argument("--idle-connections", type=int, default=9000)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--binary", default=PROJECT / "target" / "release" / "groupcache-proxy")
    parser.add_argument("--name", default=time.strftime("%Y-%m-%d"), help="of the files in benches/results")
    options = parser.parse_args()
    if not Path(options.binary).exists():
        parser.error(f"{options.binary} does not exist: cargo build --release")
    return options


def make_certificate(folder):
    """A certificate for 127.0.0.1 that lives as long as the run."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [find_program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )
    return certificate, key


def machine(options):
    """What a reader of the figures has to know."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.machine())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=PROJECT).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"), "processor": model, "cores": os.cpu_count(), "kernel": platform.release(),
        "commit": commit, "rounds": options.rounds, "seconds": options.seconds, "versions": versions(),
    }


def versions():
    """The first line that each program says about itself."""
    questions = {"nginx": ["nginx", "-v"], "HAProxy": ["haproxy", "-v"], "Varnish": ["varnishd", "-V"], "Traffic Server": ["traffic_server", "-V"], "Go": ["go", "version"], "wrk": ["wrk", "-v"], "h2load": ["h2load", "--version"]}
    found = {}
    for name, (program, flag) in questions.items():
        path = find_program(program)
        if path:
            answer = subprocess.run([path, flag], capture_output=True, text=True)
            found[name] = (answer.stdout + answer.stderr).strip().splitlines()[0][:80]
    return found


if __name__ == "__main__":
    main()
